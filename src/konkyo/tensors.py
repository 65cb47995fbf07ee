"""Small sums over grids that methods share; dimension-generic: (N, C, *grid) with one, two or three grid axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def grid_mean(values: Tensor) -> Tensor:
    """Mean over the grid. (N, C, *grid) -> (N, C)"""
    return values.flatten(2).mean(2)


def grid_sum(values: Tensor) -> Tensor:
    """Sum over the grid. (N, C, *grid) -> (N, C)"""
    return values.flatten(2).sum(2)


def weigh(weights: Tensor, activations: Tensor) -> Tensor:
    """The sum of channels with weights (N, C). (N, C, *grid) -> (N, *grid)"""
    return torch.einsum("nc,nc...->n...", weights, activations)


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Linear interpolation between cell centres. (N, *grid) -> (N, *size)"""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    mode = _LINEAR[len(size)]
    return torch.nn.functional.interpolate(maps[:, None], size=size, mode=mode, align_corners=False)[:, 0]


def unit(maps: Tensor) -> Tensor:
    """Min-max per map; a constant map becomes zeros, never NaN. (N, *grid) -> (N, *grid) in [0, 1]"""
    flat = maps.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    shape = (-1, *[1] * (maps.ndim - 1))
    return safe_divide(maps - low.view(shape), (high - low).view(shape))


def fuse(maps: Sequence[Tensor], gamma: float = 2.0) -> Tensor:
    """The element-wise maximum of several layers' maps [(N, *grid), ...], shallow to deep, on the finest grid.

    As in LayerCAM (Jiang et al., 2021): every map is divided by its largest absolute value, all but the
    deepest are stretched by tanh(gamma M), which lifts the small values of shallow layers.
    """
    finest = max((tuple(m.shape[1:]) for m in maps), key=lambda size: torch.Size(size).numel())
    shape = (-1, *[1] * len(finest))
    scaled = [safe_divide(m, m.flatten(1).abs().amax(1).view(shape)) for m in maps]
    scaled = [torch.tanh(gamma * m) for m in scaled[:-1]] + scaled[-1:]
    return torch.stack([resize(m, finest) for m in scaled]).amax(0)
