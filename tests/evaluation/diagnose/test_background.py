"""Use of the background: linear nets that read nothing but the object, or nothing but what is around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from konkyo.evaluation.diagnose.background import (
    BackgroundUse,
    background_findings,
    background_gap,
    background_use,
    largest_component,
    tiled_background,
)

SIDE, COUNT = 12, 40
MASK = torch.zeros(SIDE, SIDE, dtype=torch.bool)
MASK[4:8, 4:8] = True


def pictures(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns images whose object and whose background both have their class's grey (0: dark, 1: bright), and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(COUNT) % 2
    images = (2.0 * labels - 1)[:, None, None, None] + 0.3 * torch.randn(COUNT, 1, SIDE, SIDE, generator=generator)
    return images, MASK.expand(COUNT, SIDE, SIDE), labels


def reads(where: Tensor):
    """Returns the probabilities of a linear net that reads the mean grey of a region."""

    def probabilities(images: Tensor) -> Tensor:
        score = 3 * (images[:, 0] * where).sum((1, 2)) / where.sum()
        return torch.stack([-score, score], 1).softmax(1)

    return probabilities


def test_a_net_of_the_background_is_found_by_the_swap_and_by_the_background_alone() -> None:
    swap, alone = background_findings(background_use(reads(~MASK), *pictures(0)))
    assert (swap.severity, swap.n, swap.values["decisions changed"]) == ("high", 32, 1.0)
    assert swap.cost == 32 * 34
    assert swap.value > 0.9
    assert swap.values["decisions changed, own class"] == 0
    assert (alone.severity, alone.value) == ("low", 1.0)


def test_a_net_of_the_object_is_ok_and_its_probabilities_do_not_move() -> None:
    use = background_use(reads(MASK), *pictures(1))
    swap, alone = background_findings(use)
    assert (swap.severity, swap.value, swap.values["decisions changed"]) == ("ok", 0.0, 0.0)
    assert "would have been named" in swap.sentence["en"]
    apart = ~np.eye(32, dtype=bool)
    assert np.allclose(use.swapped[apart], np.broadcast_to(use.whole[:, None], (32, 32))[apart])
    assert use.triples[0].shape == (3, 1, SIDE, SIDE)
    assert alone.values["by chance"] < 0.6


def test_the_swap_is_the_object_on_the_other_image_without_its_object() -> None:
    images, masks, labels = pictures(2)
    net = reads(~MASK)
    use = background_use(net, images[:5], masks[:5], labels[:5])
    assert use.rows == (0, 1, 2, 3, 4)
    backgrounds = [tiled_background(image, MASK) for image in images[:5]]
    assert torch.equal(use.triples[0][0], images[0])
    assert torch.equal(use.triples[0][1], torch.where(MASK, images[0], backgrounds[1]))
    assert torch.equal(use.triples[0][2], backgrounds[0])
    for i in range(5):
        for j in range(5):
            mixed = net(torch.where(MASK, images[i], backgrounds[j])[None])[0]
            if i != j:
                assert use.swapped[i, j] == pytest.approx(float(mixed[labels[i]]), abs=1e-6)
    same = [use.swapped[i, j] for i in range(5) for j in range(5) if i != j and labels[i] == labels[j]]
    other = [use.swapped[i, j] for i in range(5) for j in range(5) if labels[i] != labels[j]]
    assert use.swapped[use.same].mean() == pytest.approx(np.mean(same))
    assert use.swapped[use.other].mean() == pytest.approx(np.mean(other))
    assert background_findings(use)[0].severity == "unknown"


def test_null_labels_give_findings_at_the_stated_rate() -> None:
    """Every background moves all objects of a class together, and labels are drawn: no effect, but no independence."""
    findings = 0
    for run in range(150):
        generator = np.random.default_rng(run)
        labels = np.repeat([0, 1], 6)
        background = generator.normal(0, 0.2, 12)
        swapped = 0.5 + np.outer(2 * labels - 1, background) + generator.normal(0, 0.05, (12, 12))
        np.fill_diagonal(swapped, np.nan)
        none = np.zeros((12, 12), bool)
        use = BackgroundUse(tuple(range(12)), labels, np.full(12, 0.5), swapped, none, labels, (), 0)
        findings += background_gap(use, resamples=39, seed=run)[3] <= 0.05
    assert 2 <= findings <= 14


def test_images_are_drawn_by_turns_of_classes_that_have_two() -> None:
    labels = torch.tensor([0] * 20 + [1] * 3 + [2])
    images = torch.randn(24, 1, SIDE, SIDE)
    use = background_use(reads(MASK), images, MASK.expand(24, SIDE, SIDE), labels, most=8)
    assert np.bincount(use.labels).tolist() == [5, 3]


def test_tiles_come_from_the_largest_strip() -> None:
    image = torch.arange(36.0).view(1, 6, 6)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[0:2, 1:4] = True
    tiled = tiled_background(image, mask)
    assert tiled is not None
    expected = image.clone()
    expected[:, 0:2, 1:4] = image[:, 2:4, 0:3]  # the strip below, rows 2 to 5
    assert torch.equal(tiled, expected)


def test_an_object_that_leaves_no_background_cannot_be_tested() -> None:
    assert tiled_background(torch.rand(1, 6, 6), torch.ones(6, 6, dtype=torch.bool)) is None
    assert tiled_background(torch.rand(1, 6, 6), torch.zeros(6, 6, dtype=torch.bool)) is None


def test_the_largest_component_is_the_one_with_most_cells() -> None:
    map_ = torch.zeros(5, 5)
    map_[0, 0], map_[3:5, 3:5] = 1.0, 0.8
    expected = np.zeros((5, 5), bool)
    expected[3:5, 3:5] = True
    assert np.array_equal(largest_component(map_), expected)
    assert not largest_component(torch.ones(3, 3)).any()
