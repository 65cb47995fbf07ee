"""Noisy linear imputation against the literal sparse system, solved exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.metrics.imputation import impute


def exact(image: Tensor, mask: Tensor) -> Tensor:
    """(C, H, W), (H, W) -> (C, H, W): an equation for every pixel of the mask, one neighbour after the other."""
    sparse = pytest.importorskip("scipy.sparse")
    solvers = pytest.importorskip("scipy.sparse.linalg")
    height, width = mask.shape
    if not mask.any():
        return image.double()
    number = {(int(y), int(x)): i for i, (y, x) in enumerate(mask.nonzero())}
    rows, columns, entries = [], [], []
    right = torch.zeros(len(number), len(image), dtype=torch.float64)
    for (y, x), i in number.items():
        total = 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside = 0 <= y + dy < height and 0 <= x + dx < width
                if not inside or (dy, dx) == (0, 0):
                    continue
                weight = 1 / 12 if dy and dx else 1 / 6
                total += weight
                if (y + dy, x + dx) in number:
                    rows.append(i)
                    columns.append(number[y + dy, x + dx])
                    entries.append(-weight)
                else:
                    right[i] += weight * image[:, y + dy, x + dx]
        rows.append(i)
        columns.append(i)
        entries.append(total)
    matrix = sparse.csc_matrix((entries, (rows, columns)))
    solved = torch.from_numpy(solvers.spsolve(matrix, right.numpy())).view(len(number), -1)
    filled = image.double().clone()
    for (y, x), i in number.items():
        filled[:, y, x] = solved[i]
    return filled


def picture(count: int, size: tuple[int, int], channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, channels, k, k, generator=generator) for k in (2, 5, 16)]
    return torch.stack([torch.nn.functional.interpolate(p, size=size, mode="bilinear") for p in parts]).sum(0)


def scattered(count: int, size: tuple[int, int], share: float) -> Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(1)) < share


def in_one_piece(count: int, size: tuple[int, int], share: float) -> Tensor:
    """As smooth maps leave: large holes."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[:, 0]
    return fine.flatten(1).argsort(1).argsort(1).view(fine.shape) < share * size[0] * size[1]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("make", [scattered, in_one_piece])
@pytest.mark.parametrize("size", [(48, 65), (33, 20)])
def test_imputation_solves_the_literal_system(size: tuple[int, int], make: object, share: float) -> None:
    images, masks = picture(3, size), make(3, size, share)  # type: ignore[operator]
    for tolerance, allowed in ((1e-4, 2e-3), (1e-6, 3e-5)):
        found = impute(images, masks, noise=0, tolerance=tolerance)
        assert torch.equal(found[~masks[:, None].expand_as(found)], images[~masks[:, None].expand_as(found)])
        for row in range(3):
            expected = exact(images[row], masks[row])
            spread = float(expected.max() - expected.min())
            assert float((found[row] - expected).abs().max()) < allowed * spread


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (3, 50), (5, 4)])
def test_imputation_of_small_and_narrow_images(size: tuple[int, int]) -> None:
    images, masks = picture(4, size, 1), scattered(4, size, 0.6)
    masks[:, 0, 0] = False
    found = impute(images, masks, noise=0, tolerance=1e-6)
    for row in range(4):
        torch.testing.assert_close(found[row].double(), exact(images[row], masks[row]), atol=1e-4, rtol=0)


def test_a_plane_is_filled_as_a_plane_inside() -> None:
    plane = (torch.arange(30.0)[:, None] + 2 * torch.arange(40.0)).expand(2, 3, 30, 40)
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    masks[:, 4:25, 6:33] = True
    torch.testing.assert_close(impute(plane, masks, noise=0, tolerance=1e-6), plane, atol=2e-3, rtol=0)


def test_what_is_between_all_and_nothing() -> None:
    images = picture(3, (12, 14))
    masks = torch.zeros(3, 12, 14, dtype=torch.bool)
    masks[1] = True
    masks[2] = True
    masks[2, 3, 4] = False
    found = impute(images, masks, noise=0)
    assert torch.equal(found[0], images[0])
    assert (found[1] == 0).all()
    torch.testing.assert_close(found[2], images[2, :, 3:4, 4:5].expand(3, 12, 14), atol=2e-3, rtol=1e-3)
    assert impute(images[:0], masks[:0]).shape == (0, 3, 12, 14)


def test_images_do_not_touch_each_other_and_batches_change_little() -> None:
    images, masks = picture(9, (40, 33)), scattered(9, (40, 33), 0.7)
    together = impute(images, masks)
    for row in (0, 4, 8):
        alone = impute(images[row : row + 1], masks[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=3e-3, rtol=0)
    images[3] = 1e6
    torch.testing.assert_close(impute(images, masks)[[2, 4]], together[[2, 4]], atol=3e-3, rtol=0)


def test_noise_is_where_pixels_are_filled_and_the_same_for_all_images() -> None:
    images, masks = picture(2, (60, 60)), scattered(2, (60, 60), 0.5)
    noise = impute(images, masks, noise=0.05, seed=3) - impute(images, masks, noise=0, seed=3)
    assert (noise[~masks[:, None].expand_as(noise)] == 0).all()
    both = (masks[0] & masks[1]).expand(3, 60, 60)
    torch.testing.assert_close(noise[0][both], noise[1][both], atol=1e-5, rtol=0)
    assert float(noise[masks[:, None].expand_as(noise)].std()) == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(impute(images, masks, seed=4), impute(images, masks, seed=5))


def test_numbers_of_other_kinds() -> None:
    images, masks = picture(2, (20, 20)), scattered(2, (20, 20), 0.5)
    whole = impute(images, masks, noise=0)
    assert impute(images.double(), masks).dtype == torch.float64
    half = impute(images.bfloat16(), masks, noise=0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.05, rtol=0.05)
    with pytest.raises(KonkyoError, match=r"masks are \(2, 20, 20\) bool"):
        impute(images, masks.float())
    with pytest.raises(KonkyoError, match="tolerance > 0"):
        impute(images, masks, tolerance=0)
