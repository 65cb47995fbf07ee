"""D-RISE by hand from the masked images that the detector saw."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.closeness import close
from helpers.detections import likeness_by_hand, masks_by_hand
from helpers.detectors import SIZE, dense, noise, recorded, wrapped
from konkyo.targets.detections import InstanceTarget

ALL = konkyo.Detections(threshold=0.0, top=3)
FEW = {"masks": 30, "cells": 4}


def weight_by_hand(model: konkyo.Model, target: InstanceTarget, masked: Tensor) -> float:
    with torch.no_grad():
        output = model.module.network(masked[None])[0]
    return max(likeness_by_hand(target, row) for row in output.tolist())


@pytest.mark.parametrize("enlarge", ["bilinear", "nearest"])
@pytest.mark.parametrize("centre", [False, True])
def test_the_map_is_the_mean_of_the_masks_weighted_by_what_each_leaves(centre: bool, enlarge: str) -> None:
    model, network, images = recorded(2)
    result = konkyo.explain(model, images, method="d_rise", target=ALL, centre=centre, enlarge=enlarge, **FEW)
    assert result.signed.shape == (6, *SIZE)
    masks = masks_by_hand(network, images, 30)
    for row, target in enumerate(result.targets):
        assert isinstance(target, InstanceTarget)
        assert target.quantity == "similarity"
        image = int(result.image_index[row])
        weights = [weight_by_hand(model, target, mask * images[image]) for mask in masks[image]]
        assert max(weights) - min(weights) > 0.05
        less = sum(weights) / 30 if centre else 0.0
        expected = torch.zeros(SIZE, dtype=torch.float64)
        for weight, mask in zip(weights, masks[image], strict=True):
            expected += (weight - less) * mask / 30
        torch.testing.assert_close(result.signed[row].double(), expected, rtol=0, atol=1e-6)
        assert result.scores[row].item() == pytest.approx(1, abs=1e-6)  # all of the detection is there
    assert not result.rectified
    assert result.layer == "input"


def test_masks_are_kept_cells_enlarged_and_moved() -> None:
    shown = {}
    for enlarge in ("bilinear", "nearest"):
        model, network, images = recorded()
        konkyo.explain(model, images, method="d_rise", target=ALL, masks=200, cells=4, keep=0.3, enlarge=enlarge)
        shown[enlarge] = torch.stack(masks_by_hand(network, images, 200)[0])
        assert shown[enlarge].mean().item() == pytest.approx(0.3, abs=0.05)
        assert shown[enlarge].min() >= 0
        assert shown[enlarge].max() <= 1 + 1e-12
    hard, soft = shown["nearest"], shown["bilinear"]
    assert ((hard - hard.round()).abs() < 1e-9).all()  # kept or not, with hard edges
    assert ((soft - soft.round()).abs() > 0.05).double().mean() > 0.3
    # Four cells, of 6 x 8 pixels on 24 x 32, are enlarged to five cells' room: they become 7.5 pixels tall, 10 wide.
    for axis, (longest, size) in enumerate(zip((8, 10), SIZE, strict=True), start=1):
        changes = (hard.diff(dim=axis).abs() > 0.5).flatten(1 if axis == 2 else 2)
        assert changes.any()
        lines = hard.movedim(axis, -1).reshape(-1, size).round()
        runs = []
        for line in lines[::37].tolist():
            at = [i for i in range(1, size) if line[i] != line[i - 1]]
            runs += [b - a for a, b in pairwise(at)]
        assert min(runs) >= longest - 1
    edges = {int(i) for i in (hard[:, 0].diff(dim=1).abs() > 0.5).nonzero()[:, 1]}
    assert len(edges) > 20  # moved by any number of pixels


def test_masks_with_a_mirrored_border_are_the_others_but_for_the_outer_half_cells() -> None:
    """Cells of 6 x 8 pixels become 7.5 x 10: what lies 4 and 5 pixels from the border of the grid is the same."""
    shown = {}
    for border in ("clamp", "mirror"):
        model, network, images = recorded()
        konkyo.explain(model, images, method="d_rise", target=ALL, border=border, **FEW)
        shown[border] = torch.stack(masks_by_hand(network, images, 30)[0])
    differ = (shown["clamp"] - shown["mirror"]).abs() > 1e-6
    assert differ.any()
    assert not differ[:, 4 : 24 - 4, 5 : 32 - 5].any()


def test_a_seed_gives_the_same_masks_for_every_image_and_another_seed_others() -> None:
    model, network, images = recorded(2)
    konkyo.explain(model, images, method="d_rise", target=ALL, **FEW)
    first, second = (torch.stack(m) for m in masks_by_hand(network, images, 30))
    torch.testing.assert_close(first, second)
    network.seen.clear()
    konkyo.explain(model, images[:1], method="d_rise", target=ALL, seed=1, **FEW)
    assert (torch.stack(masks_by_hand(network, images[:1], 30)[0]) - first).abs().max() > 0.5


@pytest.mark.parametrize("top", [1, 3, 20])
def test_all_instances_of_an_image_share_the_forwards(top: int) -> None:
    model, network, images = recorded()
    result = konkyo.explain(model, images, method="d_rise", target=replace(ALL, top=top), **FEW)
    assert len(result) == top
    assert 30 < len(network.seen) <= 32


def test_under_a_budget_the_mean_is_that_of_the_masks_that_ran() -> None:
    model, network, images = recorded()
    result = konkyo.explain(model, images, method="d_rise", target=ALL, budget=12, centre=True, **FEW)
    (masks,) = masks_by_hand(network, images, 12)
    for row, target in enumerate(result.targets):
        assert isinstance(target, InstanceTarget)
        weights = [weight_by_hand(model, target, mask * images[0]) for mask in masks]
        expected = sum((w - sum(weights) / 12) * mask / 12 for w, mask in zip(weights, masks, strict=True))
        torch.testing.assert_close(result.signed[row].double(), expected, rtol=0, atol=1e-6)


def test_other_quantities_weigh_the_masks_as_rise_does() -> None:
    model, images = dense(), noise(1)
    wanted = replace(ALL, quantity="probability")
    rise = konkyo.explain(model, images, method="rise", target=ALL, **FEW)
    d_rise = konkyo.explain(model, images, method="d_rise", target=wanted, **FEW)
    torch.testing.assert_close(d_rise.signed, rise.signed * 0.5)  # RISE divides by the share that is kept
    torch.testing.assert_close(d_rise.scores, rise.scores)


class Bright(nn.Module):
    """One box, as probable as its own place is bright; its class likeness is that of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        lit = images[:, :, 4:12, 20:28].flatten(1).mean(1)
        box = lit.new_tensor([20.0, 4.0, 28.0, 12.0]).expand(len(lit), 4)
        return torch.cat([box, lit[:, None], (1 - lit)[:, None]], 1)[:, None]


def test_the_map_is_highest_where_the_detection_hangs_on() -> None:
    images = torch.ones(1, 3, *SIZE, dtype=torch.float64)
    result = konkyo.explain(wrapped(Bright(), classes=2), images, method="d_rise", masks=300, cells=4)
    y, x = divmod(int(result.signed[0].argmax()), SIZE[1])
    assert 4 <= y < 12
    assert 20 <= x < 28
    centred = konkyo.explain(wrapped(Bright(), classes=2), images, method="d_rise", masks=300, cells=4, centre=True)
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[4:12, 20:28] = True
    far = centred.signed[0][:, :8]
    assert centred.signed[0][inside].mean() > 10 * far.abs().mean()
    assert result.signed[0][inside].mean() < 2 * result.signed[0][:, :8].mean()  # the background that centring removes


@pytest.mark.parametrize("wrong", [{"masks": 0}, {"cells": 0}, {"keep": 0.0}, {"keep": 1.5}, {"enlarge": "cubic"}])
def test_masks_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(konkyo.KonkyoError, match=next(iter(wrong))):
        konkyo.explain(dense(), noise(1), method="d_rise", target=ALL, **wrong)


def test_a_classifier_has_no_detections() -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        classifier[-1].weight.abs_()  # no class for which everything speaks against it: such a map warns
    for target in (None, 1, konkyo.Detections()):
        with pytest.raises(konkyo.NotApplicable, match="no detector"):
            konkyo.explain(classifier.eval(), noise(1).float(), method="d_rise", target=target)
    found = konkyo.explanations(classifier, noise(1).float(), ["d_rise", "odam"], target=1)
    assert isinstance(found["d_rise"], konkyo.NotApplicable)
    assert isinstance(found["odam"], konkyo.Explanation)


@pytest.mark.parametrize("centre", [False, True])
def test_masks_of_segments_are_weighted_level_by_level(centre: bool) -> None:
    model, network, images = recorded(2)
    levels = ((2, 3), (4, 6))
    result = konkyo.explain(
        model, images, method="d_rise", target=ALL, segments="grid", levels=levels, masks=20, keep=0.4, centre=centre
    )
    masks = masks_by_hand(network, images, 20)
    for row, target in enumerate(result.targets):
        assert isinstance(target, InstanceTarget)
        image = int(result.image_index[row])
        seen = torch.stack(masks[image])
        weights = torch.tensor([weight_by_hand(model, target, m * images[image]) for m in masks[image]]).double()
        weights = weights - weights.mean() if centre else weights
        parts = [(weights[a::2, None, None] * seen[a::2]).sum(0) / seen[a::2].sum(0) for a in (0, 1)]
        torch.testing.assert_close(result.signed[row].double(), (parts[0] + parts[1]) / 2, rtol=0, atol=1e-5)
    # sharp but for a blur of sigma 24 / 40 pixels: in the middle of a cell of 12 x 11 pixels a mask is 0 or 1
    middle = torch.stack(masks[0])[::2, 6::12, 5::11]
    assert ((middle - middle.round()).abs() < 1e-4).all()
    assert 0 < middle.mean() < 1


@pytest.mark.parametrize("budget", [1, 7])
def test_levels_share_a_budget(budget: int) -> None:
    model, network, images = recorded()
    options = {"segments": "grid", "levels": ((2, 3), (4, 6)), "masks": 20}
    result = konkyo.explain(model, images, method="d_rise", target=ALL, budget=budget, **options)
    (masks,) = masks_by_hand(network, images, budget)
    seen = torch.stack(masks)
    for row, target in enumerate(result.targets):
        assert isinstance(target, InstanceTarget)
        weights = torch.tensor([weight_by_hand(model, target, m * images[0]) for m in masks])
        levels = [((weights[a::2, None, None] * seen[a::2]).sum(0), seen[a::2].sum(0)) for a in range(min(budget, 2))]
        expected = sum(torch.where(some > 0, of / some, 0.0) for of, some in levels) / len(levels)
        known = torch.stack([some for _, some in levels]).amin(0) > 1e-3
        torch.testing.assert_close(result.signed[row].double()[known], expected[known], rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrong", [{"masks": 3}, {"levels": ()}])
def test_masks_of_too_many_levels_and_of_none_are_refused(wrong: dict[str, object]) -> None:
    model, _, images = recorded()
    with pytest.raises(konkyo.KonkyoError, match=r"masks >= levels|one level of segments or more"):
        konkyo.explain(model, images, method="d_rise", target=ALL, segments="grid", **wrong)


@pytest.mark.parametrize("method", ["rise", "d_rise"])
def test_levels_are_of_segments_that_have_a_number(method: str) -> None:
    model, _, images = recorded()
    cells = torch.arange(24)[:, None] // 12 * 2 + torch.arange(32) // 16
    options = {"method": method, "target": ALL, "masks": 20}
    for segments, message in ((None, "without segments"), (cells, "your own, which are one level")):
        with pytest.raises(konkyo.KonkyoError, match=message):
            konkyo.explain(model, images, segments=segments, levels=(4, 9), **options)
    own = konkyo.explain(model, images, segments=cells, **options)
    close(own.signed, konkyo.explain(model, images, segments="grid", levels=((2, 2),), **options).signed)
