"""Pixels filled from around them: noisy linear imputation, for all images at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.utils.tensors import at_least_float32, safe_divide

_DAMPING = 0.9
_ROUNDS = 200


def impute(images: Tensor, masks: Tensor, *, noise: float = 0.01, seed: int = 0, tolerance: float = 1e-4) -> Tensor:
    """Fills the pixels of the masks: each gets the weighted mean of its eight neighbours, and noise.

    Noisy linear imputation (Rong et al., 2022). Neighbours weigh 1/6 at the edges and 1/12 at the corners, of those
    that the image has. Neighbours that are filled themselves make it a linear system. (V, C, H, W), (V, H, W) bool ->
    (V, C, H, W). `noise` is the standard deviation in the units of the prepared image, drawn once for all images. An
    image without a pixel left is filled with 0. The system is solved by conjugate gradients on a hierarchy of grids
    until the error's energy is `tolerance` squared of the start's, in 3 to 10 rounds whatever the masks.
    """
    if images.ndim != 4:
        raise KonkyoError(f"noisy linear imputation fills pictures (V, C, H, W); got {tuple(images.shape)}")
    if masks.dtype != torch.bool or masks.shape != (len(images), *images.shape[2:]):
        expected = (len(images), *images.shape[2:])
        raise KonkyoError(f"masks are {expected} bool; got {tuple(masks.shape)} {masks.dtype}")
    if not tolerance > 0 or not noise >= 0:
        raise KonkyoError(f"tolerance > 0 and noise >= 0 were expected; got {tolerance} and {noise}")
    field = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)
    fitting = 2**20 // max(1, images[0].numel()) if len(images) and images.device.type == "cpu" else len(images)
    together = max(1, fitting)  # what stays in a CPU's cache
    exact = at_least_float32(images)
    parts = zip(torch.split(exact, together), torch.split(masks, together), strict=True)
    filled = torch.cat([_harmonic(part, gone, tolerance) for part, gone in parts])
    return torch.where(masks[:, None], filled.to(images) + noise * field, images)


@dataclass(frozen=True, eq=False)
class _Equations:
    """A grid holds equations (diagonal - soft) x = r, in twelfths, in a frame of zeros: (V, 1, 2 h + 1, 2 w + 1) each.

    What follows `take` is room to work in, (V, C, 2 h + 1, 2 w + 1): memory that is used again costs a CPU far less.
    """

    unknown: Tensor
    """1 where a value is sought."""
    diagonal: Tensor
    keep: Tensor
    """What a round of damped Jacobi keeps of x, and"""
    take: Tensor
    """what it takes of r + soft(x)."""
    right_side: Tensor
    solution: Tensor
    left: Tensor
    spread: Tensor
    """0 but at the odd places."""
    sums: tuple[Tensor, Tensor]


def _harmonic(images: Tensor, masks: Tensor, tolerance: float) -> Tensor:
    """Sets every pixel of the masks to the weighted mean of its neighbours, by conjugate gradients."""
    height, width = masks.shape[1:]
    grids = _grids(masks, images)
    finest = grids[0]
    residual = _soft(_framed(images * ~masks[:, None]), finest.sums) * finest.unknown
    solution, moved = torch.zeros_like(residual), torch.empty_like(residual)
    way = _cycle(residual, grids).clone()
    energy = (residual * way).sum((2, 3), keepdim=True)
    enough = tolerance**2 * energy
    for _ in range(_ROUNDS):
        if not (energy > enough).any():
            return solution[:, :, 1 : height + 1, 1 : width + 1]
        torch.mul(finest.diagonal, way, out=moved)
        moved.addcmul_(finest.unknown, _soft(way, finest.sums), value=-1)
        length = safe_divide(energy, torch.mul(way, moved, out=finest.left).sum((2, 3), keepdim=True))
        solution.addcmul_(length, way)
        residual.addcmul_(length, moved, value=-1)
        near = _cycle(residual, grids)
        before, energy = energy, torch.mul(residual, near, out=finest.left).sum((2, 3), keepdim=True)
        way.mul_(safe_divide(energy, before)).add_(near)
    raise KonkyoError(f"imputation did not reach a tolerance of {tolerance} in {_ROUNDS} rounds; give a larger one")


def _grids(masks: Tensor, like: Tensor) -> list[_Equations]:
    """Returns the masks' equations on the image's grid, and on grids of half as many places each way, to the smallest.

    A grid's energy is that of differences between neighbours sought, and of what ties each to known values. The next
    coarser has the same weights between neighbours, and the ties of the finer one's places added up.
    """
    unknown = _framed(masks[:, None].to(like))
    ties = _soft(_framed((~masks[:, None]).to(like))) * unknown
    grids: list[_Equations] = []
    while True:
        weights = (_soft(unknown) - 4 * unknown + ties).mul_(unknown)
        take = safe_divide(_DAMPING * unknown, weights)
        diagonal = weights + 4 * unknown  # `soft` counts a place itself, with 4
        right_side, spread = like.new_zeros(2, *like.shape[:2], *unknown.shape[2:])
        solution, left, *sums = like.new_empty(4, *right_side.shape)
        keep = unknown - take * diagonal
        grids.append(_Equations(unknown, diagonal, keep, take, right_side, solution, left, spread, (sums[0], sums[1])))
        if max(unknown.shape[-2:]) <= 7:
            return grids
        ties = _framed(_soft(ties)[:, :, 1::2, 1::2] / 4)
        unknown = (_framed(_soft(unknown)[:, :, 1::2, 1::2]) > 0).to(like)


def _cycle(residual: Tensor, grids: list[_Equations]) -> Tensor:
    """Roughly solves the finest of the grids' equations, in its `solution`: a V-cycle, a round of Jacobi each way.

    Between grids a value goes bilinearly; what a coarse grid gets is the transpose of what it gives.
    """
    grid, *coarser = grids
    solution = torch.mul(grid.take, residual, out=grid.solution)
    if coarser:
        torch.addcmul(residual, grid.unknown, _soft(solution, grid.sums), out=grid.left)
        grid.left.addcmul_(grid.diagonal, solution, value=-1)
        below = coarser[0]
        height, width = (extent // 2 for extent in solution.shape[2:])
        inside = (..., slice(1, height + 1), slice(1, width + 1))
        odd = (..., slice(1, None, 2), slice(1, None, 2))
        torch.mul(_soft(grid.left, grid.sums)[odd], below.unknown[inside], out=below.right_side[inside])
        torch.mul(_cycle(below.right_side, coarser)[inside], 1 / 16, out=grid.spread[odd])
        solution.addcmul_(grid.unknown, _soft(grid.spread, grid.sums))
    for _ in range(1 if coarser else 4):
        change = _soft(solution, grid.sums).add_(residual)
        solution.mul_(grid.keep).addcmul_(grid.take, change)
    return solution


def _framed(values: Tensor) -> Tensor:
    """Puts values on a grid (V, C, h, w) in a frame of zeros, whose odd places are those of the coarser grid."""
    height, width = values.shape[2:]
    framed = values.new_zeros(*values.shape[:2], height // 2 * 2 + 3, width // 2 * 2 + 3)
    framed[:, :, 1 : height + 1, 1 : width + 1] = values
    return framed


def _soft(values: Tensor, sums: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Sums neighbours with the weights 1 2 1, 2 4 2, 1 2 1, of values in a frame of zeros; in the second of `sums`.

    Rows and images are added as one long row, each shifted by one and by a row: the frame keeps them apart.
    """
    one, two = (room.view(-1) for room in sums or (torch.empty_like(values), torch.empty_like(values)))
    width, flat = values.shape[-1], values.view(-1)
    torch.add(flat[1:], flat[:-1], out=one[:-1])
    torch.add(one[1:-1], one[:-2], out=two[:-2])
    torch.add(two[width:-2], two[: -width - 2], out=one[: -width - 2])
    torch.add(one[width : -width - 2], one[: -2 * width - 2], out=two[width + 1 : -width - 1])
    two[: width + 1] = two[-width - 1 :] = 0
    return two.view(values.shape)
