"""Sobol' indices: how much of a score's variance a group of inputs takes part in, estimated from designs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from konkyo.errors import KonkyoError

_FLOOR = 1e-12  # of the variance


def sobol_points(count: int, dimensions: int, seed: int = 0) -> Tensor:
    """Returns the first points of a scrambled Sobol' sequence. -> (count, dimensions) from 0 to 1"""
    engine = SobolEngine(dimensions, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    return engine.draw(count)


def sobol_designs(count: int, groups: int, seed: int = 0) -> Tensor:
    """Returns the points at which a score is asked for: count * (groups + 1) settings in [0, 1]. -> (M, groups)

    First A (count, groups); then, for every row of A, that row with the column i of a second design B, for every group
    i. Both designs are halves of one scrambled Sobol' sequence in 2 * groups dimensions; a power of two is the best
    `count`. KonkyoError: fewer than 2 points, no group.
    """
    if count < 2 or groups < 1:
        raise KonkyoError(f"Sobol' designs are 2 or more, of a group at least; got {count} and {groups}")
    first, second = sobol_points(count, 2 * groups, seed).chunk(2, 1)
    swapped = torch.where(torch.eye(groups).bool(), second[:, None], first[:, None])  # (count, groups, groups)
    return torch.cat([first, swapped.flatten(0, 1)])


def total_indices(scores: Tensor, groups: int) -> Tensor:
    """Estimates Sobol' total indices from the scores (..., M) at the points of `sobol_designs`. -> (..., groups)

    ST_i = sum_n (f(A_n) - f(C_i,n))^2 / (2 n var f(A)) (Jansen, 1999), the variance divided by n - 1: the share of the
    variance in which group i takes part, alone or with others. A group that the score ignores has exactly 0, and so has
    every group where the score does not vary. NaN, a point that was not asked, is left out.
    """
    count = scores.shape[-1] // (groups + 1)
    scores = scores.double()
    first, swapped = scores[..., :count], scores[..., count:].reshape(*scores.shape[:-1], count, groups)
    squares = (first.unsqueeze(-1) - swapped).square()
    used = (~first.isnan()).sum(-1, keepdim=True)
    apart = (first - first.nanmean(-1, keepdim=True)).square().nansum(-1, keepdim=True)
    variance = (apart / (used - 1).clamp_min(1)).clamp_min(_FLOOR)
    indices: Tensor = squares.nansum(-2) / (2 * (~squares.isnan()).sum(-2).clamp_min(1) * variance)
    return indices
