"""Attention consistency: alignment cell by cell, and networks for which it holds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.losses import checked, maps
from konkyo.training import TrainingMaps, Views, aligned, attention_consistency, random_views


def some_views(count: int, seed: int = 0) -> Views:
    images = torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return random_views(images, torch.Generator().manual_seed(seed), least=0.3)


def by_hand(grid: Tensor, box: list[float], mirrored: bool) -> Tensor:
    """What a view sees of a grid, cell by cell: its centre is followed back into the image, and read there."""
    height, width = grid.shape
    result = torch.zeros_like(grid)
    for i in range(height):
        for j in range(width):
            across = (width - 1 - j if mirrored else j) + 0.5
            x = (box[0] + (box[2] - box[0]) * across / width) * width - 0.5
            y = (box[1] + (box[3] - box[1]) * (i + 0.5) / height) * height - 0.5
            x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
            x0, y0 = math.floor(x), math.floor(y)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            top = float(grid[y0, x0]) * (1 - x + x0) + float(grid[y0, x1]) * (x - x0)
            bottom = float(grid[y1, x0]) * (1 - x + x0) + float(grid[y1, x1]) * (x - x0)
            result[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return result


def test_maps_are_aligned_as_cell_by_cell() -> None:
    views, grids = some_views(6), maps(6, 5, 7)
    assert {bool(m) for m in views.mirrored} == {True, False}
    expected = torch.stack(
        [by_hand(g, b, m) for g, b, m in zip(grids, views.boxes.tolist(), views.mirrored.tolist(), strict=True)]
    )
    torch.testing.assert_close(aligned(grids, views), expected, rtol=1e-6, atol=1e-6)
    several = torch.stack([grids, 2 * grids - 1], 1)
    torch.testing.assert_close(aligned(several, views)[:, 1], 2 * expected - 1, rtol=1e-6, atol=1e-6)
    others = maps(6, 5, 7, seed=1)
    found = attention_consistency(grids, others, views).item()
    assert found == pytest.approx((expected - others).square().mean().item(), rel=1e-6)


def test_a_flip_is_exact_and_its_own_inverse() -> None:
    images = maps(8, 3, 9, 9)
    views = random_views(images, torch.Generator().manual_seed(2), least=1)
    assert views.boxes.tolist() == [[0, 0, 1, 1]] * 8
    grids = maps(8, 4, 5)
    for i, mirrored in enumerate(views.mirrored.tolist()):
        assert torch.equal(views.images[i], images[i].flip(-1) if mirrored else images[i])
        assert torch.equal(aligned(grids, views)[i], grids[i].flip(-1) if mirrored else grids[i])
    assert torch.equal(aligned(aligned(grids, views), views), grids)
    assert not random_views(images, torch.Generator().manual_seed(2), least=1, mirror=False).mirrored.any()


def test_views_are_parts_of_the_image() -> None:
    views = some_views(200)
    left, top, right, bottom = views.boxes.unbind(1)
    area = (right - left) * (bottom - top)
    assert (views.boxes >= 0).all()
    assert (views.boxes <= 1 + 1e-6).all()
    assert 0.3 <= area.min() < 0.35
    assert 0.95 < area.max() <= 1
    torch.testing.assert_close(right - left, bottom - top)
    assert 70 < int(views.mirrored.sum()) < 130
    ramp = (torch.arange(16).double() + 0.5)[None, None, None].expand(200, 1, 12, 16) / 16
    seen = random_views(ramp, torch.Generator().manual_seed(0), least=0.3)
    middle = seen.images[:, 0, 0].mean(1).float()
    torch.testing.assert_close(middle, (left + right) / 2, rtol=0, atol=0.02)


def test_an_equivariant_network_has_no_loss() -> None:
    """Of kernels of one pixel and a mean over the grid, maps follow flips; a kernel that sees a side does not."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for size, zero in ((1, True), (3, False)):
        network = nn.Sequential(
            nn.Conv2d(3, 6, size, padding="same", padding_mode="circular"),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        ).double()
        reader, labels = TrainingMaps(network, (3, 8, 8), layer="1"), torch.tensor([0, 1, 2, 0])
        first = reader(network(images), labels)
        views = random_views(images, torch.Generator().manual_seed(5), least=1)
        assert views.mirrored.any()
        loss = attention_consistency(first, reader(network(views.images), labels), views)
        assert first.max() > 1e-3
        assert (loss.item() < 1e-20) == zero
        reader.close()


def test_a_cut_of_whole_pixels_moves_the_maps_of_a_pixelwise_network() -> None:
    """A quarter of an image of 2 x 2 tiles is one tile: a pixelwise map of it is that tile's map."""
    tiles = maps(1, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    box = torch.tensor([[0.0, 0.5, 0.5, 1.0]])
    views = Views(tiles[:, :, 4:, :4].repeat_interleave(2, 2).repeat_interleave(2, 3), box, torch.tensor([False]))
    inner = (aligned(tiles[:, 0] ** 2, views) - views.images[:, 0] ** 2)[:, 1:-1, 1:-1]
    assert inner.abs()[:, 1:, :-1].max() < 1e-6


def test_gradients_go_through_both_maps() -> None:
    views, other = some_views(3), maps(3, 4, 5, seed=1)
    checked(lambda at: attention_consistency(at, other, views), maps(3, 4, 5))
    checked(lambda at: attention_consistency(other, at, views), maps(3, 4, 5))


def test_other_shapes() -> None:
    views = some_views(3)
    with pytest.raises(konkyo.KonkyoError, match="on one grid"):
        attention_consistency(maps(3, 4, 5), maps(3, 4, 4), views)
    with pytest.raises(konkyo.KonkyoError, match="of 3 views"):
        aligned(maps(2, 4, 5), views)
    with pytest.raises(konkyo.KonkyoError, match="least"):
        random_views(maps(2, 3, 4, 5), torch.Generator(), least=0)
