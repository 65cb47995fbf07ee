"""Metrics of robustness against Captum and plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.metric_inputs import explain, images_of, maps_of
from konkyo.errors import KonkyoError
from konkyo.metrics.robustness import map_stability, max_sensitivity
from konkyo.metrics.variants import uniform


def test_max_sensitivity_is_captum_s_with_the_same_perturbations() -> None:
    captum = pytest.importorskip("captum.metrics")
    images = images_of()
    noise = torch.stack([0.02 * (2 * uniform(images, 0, k) - 1) for k in range(10)])

    def perturb(inputs: Tensor, radius: float) -> Tensor:
        assert radius == 0.02
        return inputs + noise.repeat(3, 1, 1, 1)

    def of_rows(inputs: Any) -> Any:
        if isinstance(inputs, tuple):
            return (of_rows(inputs[0]),)
        return explain(inputs, torch.arange(3).repeat_interleave(len(inputs) // 3))

    expected = captum.sensitivity_max(of_rows, images, perturb)
    for batch in (1, 7, 100):
        found = max_sensitivity(maps_of(), images=images, explain=explain, batch=batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_noise_is_within_its_radius_and_the_same_for_all_images() -> None:
    images, seen = images_of(), []

    def look(variants: Tensor, rows: Tensor) -> Tensor:
        seen.append(variants - images[rows])
        return variants[:, 0]

    max_sensitivity(maps_of(), images=images, explain=look, radius=0.3, samples=20, batch=60)
    assert torch.equal(seen[0], torch.zeros_like(images))
    noise = seen[1].view(20, 3, -1)
    torch.testing.assert_close(noise[:, 0], noise[:, 2], atol=1e-6, rtol=0)
    assert float(noise.abs().max()) <= 0.3 + 1e-6
    assert float(noise.std()) == pytest.approx(0.3 / 3**0.5, rel=0.05)
    assert not torch.allclose(noise[0, 0], noise[1, 0], atol=1e-3)


def test_a_map_that_never_changes_and_one_that_does() -> None:
    images, maps = images_of(), maps_of()

    def still(variants: Tensor, rows: Tensor) -> Tensor:
        return maps[rows]

    def opposite(variants: Tensor, rows: Tensor) -> Tensor:
        moved = (variants != images[rows]).flatten(1).any(1)
        return maps[rows] * torch.where(moved, -1.0, 1.0).view(-1, 1, 1)

    given = {"images": images}
    assert max_sensitivity(maps, **given, explain=still).tolist() == [0, 0, 0]
    torch.testing.assert_close(max_sensitivity(maps, **given, explain=opposite), torch.full((3,), 2.0))
    torch.testing.assert_close(map_stability(maps, **given, explain=still), torch.ones(3))
    torch.testing.assert_close(map_stability(maps, **given, explain=opposite), -torch.ones(3))
    between = map_stability(maps, **given, explain=lambda v, r: maps[r] + (v - images[r])[:, 0])
    assert ((between < 1) & (between > 0.5)).all()


def test_stability_by_hand() -> None:
    images = images_of()
    maps = explain(images, torch.arange(3))
    found = map_stability(maps, images=images, explain=explain, radius=0.5, samples=4, batch=5)
    enlarged = torch.nn.functional.interpolate(maps[:, None], size=(6, 9), mode="bilinear")[:, 0]
    for row in range(3):
        values = []
        for k in range(4):
            moved = images[row] + 0.5 * (2 * uniform(images, 0, k) - 1)
            again = explain(moved[None], torch.tensor([row]))
            again = torch.nn.functional.interpolate(again[None], size=(6, 9), mode="bilinear")[0, 0]
            values.append(float(torch.corrcoef(torch.stack([enlarged[row].flatten(), again.flatten()]))[0, 1]))
        assert found[row].item() == pytest.approx(sum(values) / 4, abs=1e-4)


def test_where_robustness_is_not_defined() -> None:
    images, maps = images_of(3, 1), maps_of()

    def constant(variants: Tensor, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), 2, 3) + (rows == 0).view(-1, 1, 1)

    assert max_sensitivity(maps, images=images, explain=constant).isnan().tolist() == [False, True, True]
    assert map_stability(maps, images=images, explain=constant).isnan().all()
    assert map_stability(maps * 0, images=images, explain=lambda v, r: v[:, 0]).isnan().all()
    maps[2] = math.nan
    assert map_stability(maps, images=images, explain=lambda v, r: v[:, 0]).isnan().tolist() == [False, False, True]
    for metric in (max_sensitivity, map_stability):
        assert metric(maps[:0], images=images[:0], explain=constant).shape == (0,)
        with pytest.raises(KonkyoError, match="radius > 0"):
            metric(maps, images=images, explain=constant, radius=0)
        with pytest.raises(KonkyoError, match="one map per variant"):
            metric(maps, images=images, explain=lambda v, r: v)
