"""Augmentation by maps: against loops over images and pixels, and what must hold for any draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import konkyo
from konkyo.training.augmentation import keep_salient_cutout, keep_salient_paste, saliency_mix

SIZE = (12, 16)


def batch(count: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Images that can be told apart at every pixel, labels, and maps at the images' size."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, *SIZE, generator=generator)
    labels = functional.one_hot(torch.arange(count) % 3, 3).float()
    return images, labels, torch.rand(count, *SIZE, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_saliency_mix_is_the_papers_for_each_pair() -> None:
    images, labels, maps = batch()
    found = saliency_mix(images, labels, maps, seeded())
    drawn = seeded()
    order = torch.randperm(8, generator=drawn).tolist()
    shares = torch.rand(3, 8, generator=drawn)[0]
    assert found.source.tolist() == order
    for i, j in enumerate(order):
        ratio = float((1 - shares[i]).sqrt())
        tall, wide = int(SIZE[0] * ratio), int(SIZE[1] * ratio)
        y, x = divmod(int(maps[j].argmax()), SIZE[1])
        top, bottom = max(y - tall // 2, 0), min(y + tall // 2, SIZE[0])
        left, right = max(x - wide // 2, 0), min(x + wide // 2, SIZE[1])
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = images[j, :, top:bottom, left:right]
        assert torch.equal(found.images[i], expected)
        kept = 1 - (bottom - top) * (right - left) / (SIZE[0] * SIZE[1])
        torch.testing.assert_close(found.labels[i], kept * labels[i] + (1 - kept) * labels[j])
    assert 0.1 < found.pasted.float().mean() < 0.7


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_shares_of_area(seed: int) -> None:
    images, labels, maps = batch(16)
    found = saliency_mix(images, labels, maps[:, ::2, ::4], seeded(seed))
    torch.testing.assert_close(found.labels.sum(1), torch.ones(16))
    taken = (found.images == images[found.source]).all(1)
    assert torch.equal(
        taken & ~(images == images[found.source]).all(1),
        found.pasted & (found.source != torch.arange(16))[:, None, None],
    )
    again = saliency_mix(images, labels, maps[:, ::2, ::4], seeded(seed))
    assert torch.equal(found.images, again.images)
    assert functional.cross_entropy(torch.randn(16, 3), found.labels).isfinite()


def test_the_peak_of_the_source_is_pasted() -> None:
    images, labels, maps = batch(32)
    found = saliency_mix(images, labels, maps, seeded())
    large = found.pasted.flatten(1).any(1)
    peaks = found.pasted.flatten(1).gather(1, maps[found.source].flatten(1).argmax(1, keepdim=True))[:, 0]
    assert large.sum() > 16
    assert peaks[large].all()


def test_a_blank_map_has_its_patch_anywhere() -> None:
    images, labels, _ = batch(1)
    many = images.expand(600, -1, -1, -1) + torch.arange(600).view(-1, 1, 1, 1)
    found = saliency_mix(many, labels.expand(600, -1), torch.zeros(600, 3, 4), seeded())
    corners = [found.pasted[:, y, x].float().mean() for y in (0, -1) for x in (0, -1)]
    assert max(corners) < 0.35
    assert min(corners) > 0.05


def allowed(importance: Tensor, side: int, tau: float, below: bool) -> set[tuple[int, int]]:
    """The squares that may be drawn, by loops."""
    sums = {}
    for y in range(importance.shape[0] - side + 1):
        for x in range(importance.shape[1] - side + 1):
            sums[y, x] = float(importance[y : y + side, x : x + side].double().sum())
    ranked = sorted(sums.values())
    quantile = ranked[math.ceil(tau * len(ranked)) - 1]
    return {at for at, total in sums.items() if (total < quantile if below else total > quantile)}


@pytest.mark.parametrize("tau", [0.3, 0.6])
@pytest.mark.parametrize("below", [True, False])
def test_squares_are_drawn_alike_from_those_beyond_the_quantile(below: bool, tau: float) -> None:
    images, _, maps = batch(1)
    count, side = 3000, 5
    many, importance = images.expand(count, -1, -1, -1), maps.expand(count, -1, -1)
    if below:
        changed, square = keep_salient_cutout(many, importance, seeded(), side=side, tau=tau)
        assert torch.equal(changed, many * ~square[:, None])
    else:
        changed, square = keep_salient_paste(many, many + 1, importance, seeded(), side=side, tau=tau)
        assert torch.equal(changed, torch.where(square[:, None], many, many + 1))
    assert (square.flatten(1).sum(1) == side * side).all()
    expected = allowed(maps[0], side, tau, below)
    first = square.flatten(1).float().argmax(1)
    places = [divmod(int(at), SIZE[1]) for at in first]
    assert set(places) == expected
    frequencies = torch.tensor([places.count(at) for at in expected]).float()
    even = count / len(expected)
    assert ((frequencies - even).square() / even).sum() < len(expected) + 5 * math.sqrt(2 * len(expected))


def test_where_nothing_is_salient_any_square_is_cut() -> None:
    images, _, _ = batch(1)
    many = images.expand(400, -1, -1, -1)
    _, cut = keep_salient_cutout(many, torch.zeros(400, 3, 4), seeded(), side=11)
    assert len({divmod(int(at), SIZE[1]) for at in cut.flatten(1).float().argmax(1)}) == 2 * 6


def test_what_does_not_fit() -> None:
    images, labels, maps = batch()
    with pytest.raises(konkyo.KonkyoError, match="a side from 1 to 12"):
        keep_salient_cutout(images, maps, seeded(), side=13)
    with pytest.raises(konkyo.KonkyoError, match="tau in"):
        keep_salient_cutout(images, maps, seeded(), side=3, tau=1.0)
    with pytest.raises(konkyo.KonkyoError, match="as many augmented"):
        keep_salient_paste(images, images[:1], maps, seeded(), side=3)
    with pytest.raises(konkyo.KonkyoError, match="a map"):
        saliency_mix(images, labels, maps[:2], seeded())
    with pytest.raises(konkyo.KonkyoError, match="one_hot"):
        saliency_mix(images, torch.arange(8), maps, seeded())
