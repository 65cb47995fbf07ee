"""Sobol' indices: how much of a score's variance a group of inputs takes part in, estimated from designs."""

from __future__ import annotations

import torch
from torch import Tensor

from konkyo.errors import KonkyoError

_FLOOR = 1e-12  # of the variance


def sobol_designs(count: int, groups: int, seed: int = 0) -> Tensor:
    """Returns the points at which a score is asked for: count * (groups + 1) settings in [0, 1]. -> (M, groups)

    First A (count, groups); then, for every group i, A with the column i of a second design B. Both designs are halves
    of one scrambled Sobol' sequence in 2 * groups dimensions; a power of two is the best `count`. KonkyoError: fewer
    than 2 points, no group.
    """
    if count < 2 or groups < 1:
        raise KonkyoError(f"designs have 2 points or more and a group at least; got {count} and {groups}")
    engine = torch.quasirandom.SobolEngine(2 * groups, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    points = engine.draw(count)
    first, second = points[:, :groups], points[:, groups:]
    mixed = first.repeat(groups, 1, 1)
    every = torch.arange(groups)
    mixed[every, :, every] = second.mT
    return torch.cat([first, mixed.flatten(0, 1)])


def total_indices(scores: Tensor, groups: int) -> Tensor:
    """Estimates Sobol' total indices from the scores (..., M) at the points of `sobol_designs`. -> (..., groups)

    ST_i = sum_n (f(A_n) - f(C_i,n))^2 / (2 n var f(A)) (Jansen, 1999), the variance divided by n - 1: the share of the
    variance in which group i takes part, alone or with others. A group that the score ignores has exactly 0, and so has
    every group where the score does not vary.
    """
    count = scores.shape[-1] // (groups + 1)
    scores = scores.double()
    first, mixed = scores[..., :count], scores[..., count:].reshape(*scores.shape[:-1], groups, count)
    variance = first.var(-1, keepdim=True).clamp_min(_FLOOR)
    indices: Tensor = (first.unsqueeze(-2) - mixed).square().sum(-1) / (2 * count * variance)
    return indices
