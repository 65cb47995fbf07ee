"""Means and correlations over a handful of trainings, with what they are known to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from konkyo.errors import KonkyoError

CENTRAL = 0.95
"""The probability that all intervals are to have."""


@dataclass(frozen=True)
class Estimate:
    """A mean over independent values, and what it is known to. NaN: not known."""

    n: int
    mean: float
    sd: float
    """The sample's (divided by n - 1); of two values or more."""
    low: float
    """Of the 95 % interval by Student's t; of two values or more that are not all the same, which would say that
    nothing varies."""
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """Of the values that are finite."""
        known = [value for value in values if math.isfinite(value)]
        if len(known) < 2:
            return cls(len(known), known[0] if known else math.nan, math.nan, math.nan, math.nan)
        mean, sd = statistics.fmean(known), statistics.stdev(known)
        if sd == 0:
            return cls(len(known), mean, sd, math.nan, math.nan)
        reach = t_quantile((1 + CENTRAL) / 2, len(known) - 1) * sd / math.sqrt(len(known))
        return cls(len(known), mean, sd, mean - reach, mean + reach)

    def through(self, function: Callable[[float], float]) -> Estimate:
        """Mean and interval on another scale; the deviation has none there."""
        return Estimate(self.n, function(self.mean), math.nan, function(self.low), function(self.high))


@dataclass(frozen=True)
class Correlation:
    """How two numbers go together over n points. NaN: not known."""

    n: int
    pearson: float
    """Of three points or more."""
    low: float
    """Of the 95 % interval by Fisher's z, standard error 1 / sqrt(n - 3); of four points or more."""
    high: float
    spearman: float
    spearman_low: float
    """By Fisher's z, too, with the standard error sqrt((1 + r^2 / 2) / (n - 3)) of Bonett and Wright (2000)."""
    spearman_high: float

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float], held: int = 0) -> Correlation:
        """Over the pairs that are finite. `held`: how many further numbers were taken out of both by least squares;
        each costs a point, and ranks of what is left mean little, so Spearman's is NaN then."""
        pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
        free = len(pairs) - held - 3
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        if free < 0 or max(first) - min(first) <= 1e-12 or max(second) - min(second) <= 1e-12:
            return cls(len(pairs), *(math.nan,) * 6)
        r = _bounded(statistics.correlation(first, second))
        rho = _bounded(statistics.correlation(_ranks(first), _ranks(second)))
        ends = _fisher(r, 1.0, free)
        if held:
            return cls(len(pairs), r, *ends, *(math.nan,) * 3)
        return cls(len(pairs), r, *ends, rho, *_fisher(rho, 1 + rho**2 / 2, free))


def t_quantile(share: float, freedom: int) -> float:
    """The value below which Student's t with so many degrees of freedom lies with probability `share`, inside (0, 1).

    The distribution as a finite sum over whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4), in the
    angle whose tangent is t / sqrt(freedom), and bisected. KonkyoError: no such share, no degree of freedom.
    """
    if not 0 < share < 1 or freedom < 1:
        raise KonkyoError(f"a share between 0 and 1 and a degree of freedom at least; got {share} and {freedom}")
    if share < 0.5:
        return -t_quantile(1 - share, freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, freedom) < 2 * share - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _central(angle: float, freedom: int) -> float:
    """P(|t| <= sqrt(freedom) tan(angle))."""
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1, equal values sharing the mean of their ranks."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def _bounded(r: float) -> float:
    return max(-1.0, min(1.0, r))


def _fisher(r: float, variance: float, free: int) -> tuple[float, float]:
    """The interval around a correlation; a perfect one has none but itself."""
    if free < 1:
        return math.nan, math.nan
    if abs(r) >= 1:
        return r, r
    reach = statistics.NormalDist().inv_cdf((1 + CENTRAL) / 2) * math.sqrt(variance / free)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)
