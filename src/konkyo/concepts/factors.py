"""Non-negative matrix factorisation of features, and the coefficients of new ones."""

from __future__ import annotations

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.utils.tensors import safe_divide


def nonnegative_factors(
    values: Tensor, components: int, *, sweeps: int = 200, tolerance: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Factorises non-negative values (P, C) ~ coefficients (P, r) @ directions (r, C), both non-negative.

    The squared error is made smaller by exact updates of one column, or row, at a time (HALS; Cichocki & Phan, 2009).
    The start is NNDSVD (Boutsidis & Gallopoulos, 2008), so nothing is drawn at random. It ends after `sweeps`, or where
    one makes the error, as a share of |values|, smaller by less than `tolerance`. KonkyoError: negative values, or no
    number of components from 1 to the smaller side.
    """
    most = min(values.shape)
    if not 1 <= components <= most:
        raise KonkyoError(
            f"components: a number from 1 to {most} (the smaller of places and channels); got {components}"
        )
    if bool((values < 0).any()) or not bool(values.isfinite().all()):
        raise KonkyoError("non-negative, finite values are factorised; some are not")
    total = values.double().square().sum()
    coefficients, directions = _start(values, components)
    before = float("inf")
    for _ in range(sweeps):
        coefficients = _descended(coefficients, values @ directions.mT, directions @ directions.mT)
        cross, gram = values.mT @ coefficients, coefficients.mT @ coefficients
        directions = _descended(directions.mT, cross, gram).mT
        fit = 2 * (cross.mT * directions).double().sum() - (gram * (directions @ directions.mT)).double().sum()
        error = float(safe_divide((total - fit).clamp_min(0), total).sqrt())
        if before - error < tolerance:
            break
        before = error
    return coefficients, directions


def coefficients_of(values: Tensor, directions: Tensor, *, sweeps: int = 500, tolerance: float = 1e-6) -> Tensor:
    """Finds the non-negative coefficients (P, r) of given directions (r, C) nearest to values (P, C)."""
    cross, gram = values @ directions.mT, directions @ directions.mT
    exact: Tensor = torch.linalg.lstsq(gram.double(), cross.double().mT).solution.mT
    coefficients = exact.clamp_min(0).to(values)
    for _ in range(sweeps):
        before = coefficients
        coefficients = _descended(before, cross, gram)
        if bool((coefficients - before).abs().amax() <= tolerance * coefficients.abs().amax()):
            break
    return coefficients


def _descended(factor: Tensor, cross: Tensor, gram: Tensor) -> Tensor:
    """Moves every column of a factor (P, r) in turn to its best non-negative value, given the other factor."""
    factor = factor.clone()
    for j in range(factor.shape[1]):
        step = safe_divide(cross[:, j] - factor @ gram[:, j], gram[j, j])
        factor[:, j] = (factor[:, j] + step).clamp_min(0)
    return factor


def _start(values: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Returns NNDSVD's factors: of every singular pair the positive or the negative parts, whichever are stronger."""
    matrix = values.double()
    wide = matrix.shape[1] > matrix.shape[0]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    squares, vectors = squares.flip(0)[:components].clamp_min(0), vectors.flip(1)[:, :components]
    lengths = squares.sqrt()
    others = safe_divide(matrix.mT @ vectors if wide else matrix @ vectors, lengths)
    left, right = (vectors, others) if wide else (others, vectors)
    parts = []
    for sign in (1, -1):
        one, two = (sign * left).clamp_min(0), (sign * right).clamp_min(0)
        parts.append((one, two, one.norm(dim=0) * two.norm(dim=0)))
    stronger = parts[0][2] >= parts[1][2]
    one, two, strength = (torch.where(stronger, a, b) for a, b in zip(*parts, strict=True))
    scale = (lengths * strength).sqrt()
    one, two = (safe_divide(part, part.norm(dim=0)) * scale for part in (one, two))
    return one.to(values), two.mT.to(values)
