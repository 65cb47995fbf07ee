"""Average sensitivity, the local Lipschitz estimate and relative stabilities: closed forms and plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.metric_inputs import explain, images_of, maps_of
from konkyo.errors import KonkyoError
from konkyo.metrics.robustness import average_sensitivity, local_lipschitz, max_sensitivity, relative_stability
from konkyo.metrics.variants import gaussian, uniform

WEIGHTS = torch.randn(3, 3, 6, 9, generator=torch.Generator().manual_seed(8))
MAPS = maps_of()
"""Not looked at by metrics that ask the method."""


def slope(variants: Tensor, rows: Tensor) -> Tensor:
    """The gradient of a linear network, summed over channels."""
    return WEIGHTS[rows].sum(1)


def times_input(variants: Tensor, rows: Tensor) -> Tensor:
    """Input x gradient of a linear network."""
    return (WEIGHTS[rows] * variants).sum(1)


def moves(method: Any, noises: list[Tensor]) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """(image's noise, map, map of the noisy image) of every row and sample."""
    images, found = images_of(), []
    for row in range(3):
        which = torch.tensor([row])
        still = method(images[row : row + 1], which)[0]
        found.append([(noise, still, method((images[row] + noise)[None], which)[0]) for noise in noises])
    return found


def test_average_sensitivity_is_the_mean_of_what_max_sensitivity_takes_the_maximum_of() -> None:
    images = images_of()
    noises = [0.1 * (2 * uniform(images, 5, k) - 1) for k in range(6)]
    given: dict[str, Any] = {"images": images, "explain": explain, "radius": 0.1, "samples": 6, "seed": 5}
    average, largest = average_sensitivity(MAPS, **given, batch=4), max_sensitivity(MAPS, **given)
    for row, pairs in enumerate(moves(explain, noises)):
        shares = [float((there - here).norm() / here.norm()) for _, here, there in pairs]
        assert average[row].item() == pytest.approx(sum(shares) / 6, rel=1e-4)
        assert largest[row].item() == pytest.approx(max(shares), rel=1e-4)
    assert average_sensitivity(MAPS, images=images, explain=slope).tolist() == [0, 0, 0]
    nothing = lambda v, r: torch.zeros(len(r), 2, 3)
    assert average_sensitivity(MAPS, images=images, explain=nothing).isnan().all()
    with pytest.raises(KonkyoError, match="radius > 0"):
        average_sensitivity(MAPS, images=images, explain=explain, radius=0)


def test_the_lipschitz_estimate_of_a_linear_network() -> None:
    """Its gradient stays: 0. One channel's input x gradient moves by at most max |w| times the image."""
    images = images_of()
    assert local_lipschitz(MAPS, images=images, explain=slope).tolist() == [0, 0, 0]
    one = WEIGHTS[:, :1]
    given = {"images": images[:, :1], "explain": lambda v, r: (one[r] * v)[:, 0]}
    found = local_lipschitz(MAPS, **given, samples=50)
    bound = one.flatten(1).abs().amax(1)
    assert (found <= bound).all()
    assert (found > 0.25 * bound).all()
    torch.testing.assert_close(local_lipschitz(MAPS, **given, std=3.0, samples=50), found, rtol=1e-3, atol=0)
    same = lambda v, r: v[:, 0]
    torch.testing.assert_close(
        local_lipschitz(MAPS, images=images[:, :1], explain=same), torch.ones(3), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_lipschitz_estimate_by_hand(norm: int, normalise: bool) -> None:
    images = images_of()
    noises = [0.2 * gaussian(images, 0, k) for k in range(5)]
    options: dict[str, Any] = {"norm": norm, "normalise": normalise}
    found = local_lipschitz(MAPS, images=images, explain=explain, std=0.2, samples=5, batch=4, **options)
    for row, pairs in enumerate(moves(explain, noises)):
        speeds = []
        for noise, here, there in pairs:
            if normalise:
                here, there = here / here.abs().max(), there / there.abs().max()
            length = sum(v**2 for v in noise.flatten().tolist()) ** 0.5
            speeds.append(sum(abs(v) ** norm for v in (there - here).flatten().tolist()) ** (1 / norm) / length)
        assert found[row].item() == pytest.approx(max(speeds), rel=1e-3)
    assert abs(float(torch.stack(noises).std()) - 0.2) < 0.02


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_relative_stability_by_hand(kind: str, floor: float) -> None:
    images = images_of()
    outputs = lambda v, rows: torch.stack([v.mean((1, 2, 3)), (v**2).mean((1, 2, 3))], 1)
    noises = [0.3 * (2 * uniform(images, 0, k) - 1) for k in range(6)]
    given: dict[str, Any] = {"images": images, "explain": explain, "outputs": outputs, "samples": 6, "radius": 0.3}
    found = relative_stability(MAPS, **given, kind=kind, floor=floor, batch=4)

    def divisor(value: float, largest: float) -> float:
        size = max(abs(value), floor * largest)
        return (-size if value < 0 else size) or 1e-6

    def share(before: Tensor, after: Tensor) -> float:
        pairs = list(zip(before.flatten().tolist(), after.flatten().tolist(), strict=True))
        largest = max(abs(a) for a, _ in pairs)
        return math.sqrt(sum(((b - a) / divisor(a, largest)) ** 2 for a, b in pairs))

    for row, triples in enumerate(moves(explain, noises)):
        ratios = []
        for noise, here, there in triples:
            noisy = images[row] + noise
            change = outputs(noisy[None], None) - outputs(images[row : row + 1], None)
            cause = share(images[row], noisy) if kind == "input" else float(change.norm())
            ratios.append(share(here, there) / cause)
        assert found[row].item() == pytest.approx(max(ratios), rel=1e-3)


def test_only_images_that_are_still_decided_count() -> None:
    images = images_of()
    given: dict[str, Any] = {"images": images, "explain": explain, "samples": 8, "radius": 0.2, "batch": 1000}
    seen: list[Tensor] = []

    def decided(variants: Tensor, rows: Tensor) -> Tensor:
        stays = ((variants - images[rows]).sum((1, 2, 3)) > 0) & (rows < 2)
        seen.append(stays.view(8, 3).T)
        return stays

    found = relative_stability(MAPS, **given, decided=decided)
    assert 0 < int(seen[0][0].sum()) < 8
    assert found.isnan().tolist() == [False, False, True]
    assert (found[:2] <= relative_stability(MAPS, **given)[:2]).all()
    same = lambda v, r: v[:, 0] / images[r][:, 0].abs().amax((1, 2), keepdim=True)
    single = {"images": images[:, :1], "explain": same}
    torch.testing.assert_close(relative_stability(MAPS, **single), torch.ones(3), rtol=1e-4, atol=0)


def test_the_floor_takes_a_rectified_map_out_of_the_hands_of_its_zeros() -> None:
    images = images_of(3, 1)
    rectified = lambda v, r: v[:, 0].relu()
    given: dict[str, Any] = {"images": images, "explain": rectified, "radius": 0.3}
    theirs, ours = relative_stability(MAPS, **given, floor=0.0), relative_stability(MAPS, **given)
    assert (theirs > 100 * ours).all()
    assert (ours < 10).all()
    nothing = lambda v, r: 0 * v[:, 0]
    assert relative_stability(MAPS, images=images, explain=nothing).isnan().all()
    for wrong, said in (({"kind": "output"}, "outputs"), ({"floor": 1.0}, "floor"), ({"samples": 0}, "samples >= 1")):
        with pytest.raises(KonkyoError, match=said):
            relative_stability(MAPS, images=images, explain=rectified, **wrong)
    for metric in (local_lipschitz, average_sensitivity, relative_stability):
        assert metric(MAPS[:0], images=images[:0], explain=rectified).shape == (0,)
