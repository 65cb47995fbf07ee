"""What chance alone gives: sign flips over images, permuted labels, and p-values of many tests together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def sign_flips(differences: Values, resamples: int = 1000, seed: int = 0) -> tuple[Values, Values]:
    """Returns p-values (m,) of m means being above zero, each alone and all together.

    `differences` (n, m) has a row per image. If nothing but chance acts, every row is as probable with the other sign;
    all m of a row change sign together, since they are of one image. The p-values of all together compare each mean
    with the largest of the m (Westfall and Young, 1993), after each column is divided by its root mean square.
    """
    n, columns = differences.shape
    root = np.sqrt((differences**2).mean(0))
    scaled = differences / np.where(root > 0, root, 1)
    actual = scaled.mean(0)
    generator = np.random.default_rng(seed)
    signs = generator.choice((-1.0, 1.0), (resamples, n))
    by_chance = signs @ scaled / n  # (resamples, m)
    return p_values(by_chance, actual), p_values(np.repeat(by_chance.max(1, keepdims=True), columns, 1), actual)


def joint_p(groups: Sequence[Values], resamples: int = 1000, seed: int = 0) -> list[float]:
    """Returns a p-value for the mean of every group of values, adjusted for all groups together.

    All values change signs at random. Each group's sum, divided by the root of its sum of squares, is compared with the
    largest of any group (Westfall and Young, 1993): unlike Holm's, these p-values reach 0.001 for any number of groups.
    """
    generator = np.random.default_rng(seed)
    actual, chance = np.zeros(len(groups)), np.full(resamples, -np.inf)
    for place, values in enumerate(groups):
        root = float(np.sqrt((values**2).sum()))
        scaled = values / root if root > 0 else values
        actual[place] = scaled.sum()
        signs = generator.choice((-1.0, 1.0), (resamples, len(values)))
        chance = np.maximum(chance, signs @ scaled)
    return [float(p) for p in p_values(chance[:, None], actual)]


def p_values(by_chance: NDArray[np.floating[Any]], actual: NDArray[np.floating[Any]] | float) -> Values:
    """Returns how often chance (resamples, ...) reaches the actual values (...), which count as one more resample."""
    reached = (by_chance >= np.asarray(actual, dtype=np.float64) - 1e-12).sum(0)
    return np.asarray((1 + reached) / (1 + len(by_chance)), dtype=np.float64)


def interval_of_mean(values: Values, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of a mean over images, by resampling them (percentiles)."""
    if len(values) < 2:
        return float("nan"), float("nan")
    indices = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[indices].mean(1), (2.5, 97.5))
    return float(low), float(high)
