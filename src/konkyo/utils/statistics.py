"""Means, paired differences, shares, correlations and lines with 95 % intervals. scipy is imported when it is used."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from konkyo.errors import KonkyoError

Key = TypeVar("Key", bound=Hashable)
CENTRAL = 0.95
"""The probability that an interval holds the true value."""
REACH = statistics.NormalDist().inv_cdf((1 + CENTRAL) / 2)
"""So many standard errors a normal interval reaches to either side: 1.96."""


@dataclass(frozen=True)
class Estimate:
    """An estimate is a mean over independent values, with its interval. NaN stands for what is not known."""

    n: int
    mean: float
    sd: float
    """The standard deviation of the sample (divided by n - 1), of two values or more."""
    low: float
    """The lower end of the 95 % interval by Student's t. It needs two values that differ: equal ones would say that
    nothing varies."""
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """Makes the estimate of the values that are finite."""
        known = [value for value in values if math.isfinite(value)]
        if len(known) < 2:
            return cls(len(known), known[0] if known else math.nan, math.nan, math.nan, math.nan)
        mean, sd = statistics.fmean(known), statistics.stdev(known)
        if sd == 0:
            return cls(len(known), mean, sd, math.nan, math.nan)
        reach = t_quantile((1 + CENTRAL) / 2, len(known) - 1) * sd / math.sqrt(len(known))
        return cls(len(known), mean, sd, mean - reach, mean + reach)

    @classmethod
    def of_groups(cls, groups: Iterable[Sequence[float]]) -> Estimate:
        """Makes the estimate of values whose groups are independent, and not the values within one (splits of data).

        It is the mean of the groups' means, with the interval of Student's t over these means: whatever differs from
        group to group is in it. Of a single group it is the estimate of its values.
        """
        known = [[value for value in group if math.isfinite(value)] for group in groups]
        known = [group for group in known if group]
        within = cls.of(value for group in known for value in group)
        if len(known) < 2:
            return within
        over = cls.of(statistics.fmean(group) for group in known)
        return cls(within.n, over.mean, within.sd, over.low, over.high)

    def through(self, function: Callable[[float], float]) -> Estimate:
        """Puts the estimate on another scale: mean and interval go through `function`, the deviation becomes NaN."""
        return Estimate(self.n, function(self.mean), math.nan, function(self.low), function(self.high))


@dataclass(frozen=True)
class Correlation:
    """This holds the correlations of two numbers over n points. NaN stands for what is not known."""

    n: int
    pearson: float
    """The linear correlation, of three points or more."""
    low: float
    """The lower end of the 95 % interval by Fisher's z, standard error 1 / sqrt(n - 3); of four points or more."""
    high: float
    spearman: float
    spearman_low: float
    """By Fisher's z, too, with the standard error sqrt((1 + r^2 / 2) / (n - 3)) of Bonett and Wright (2000)."""
    spearman_high: float

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float], held: int = 0) -> Correlation:
        """Computes the correlations of the pairs that are finite.

        `held`: how many further numbers were taken out of both by least squares. Every one of them costs a point,
        and ranks of the remainders mean little, so Spearman's correlation is NaN then.
        """
        pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
        free = len(pairs) - held - 3
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        if free < 0 or max(first) - min(first) <= 1e-12 or max(second) - min(second) <= 1e-12:
            return cls(len(pairs), *(math.nan,) * 6)
        from scipy.stats import rankdata

        r = _bounded(statistics.correlation(first, second))
        ends = _fisher(r, 1.0, free)
        if held:
            return cls(len(pairs), r, *ends, *(math.nan,) * 3)
        rho = _bounded(statistics.correlation(rankdata(first).tolist(), rankdata(second).tolist()))
        return cls(len(pairs), r, *ends, rho, *_fisher(rho, 1 + rho**2 / 2, free))


def paired(values: Mapping[Key, float], others: Mapping[Key, float]) -> dict[Key, tuple[float, float]]:
    """Returns (value, other) of every key that both have, such as seeds, in the order of `values`.

    >>> paired({0: 2.0, 1: 3.0}, {1: 1.0, 2: 5.0})
    {1: (3.0, 1.0)}
    """
    return {key: (value, others[key]) for key, value in values.items() if key in others}


@dataclass(frozen=True)
class LineFit:
    """A straight line and its band, at as many places as it is drawn with."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def fitted(points: Sequence[tuple[float, float]]) -> LineFit | None:
    """Returns the line of least squares and the 95 % band of its mean; None of fewer than three points, or of one x.

    The band is y +- t s sqrt(1 / n + (x - mean)^2 / S).
    """
    n = len(points)
    x, y = [a for a, _ in points], [b for _, b in points]
    if n < 3 or max(x) - min(x) <= 1e-12:
        return None
    line = statistics.linear_regression(x, y)
    middle = statistics.fmean(x)
    spread = sum((a - middle) ** 2 for a in x)
    residual = sum((b - line.intercept - line.slope * a) ** 2 for a, b in points)
    reach = t_quantile((1 + CENTRAL) / 2, n - 2) * math.sqrt(residual / (n - 2))
    at = [min(x) + (max(x) - min(x)) * i / 60 for i in range(61)]
    fit = [line.intercept + line.slope * a for a in at]
    half = [reach * math.sqrt(1 / n + (a - middle) ** 2 / spread) for a in at]
    lower, upper = ([f + sign * h for f, h in zip(fit, half, strict=True)] for sign in (-1, 1))
    return LineFit(at, fit, lower, upper)


def interval_of_share(count: int, n: int) -> tuple[float, float]:
    """Returns Wilson's interval of a share, `count` of `n` (JASA, 1927); (NaN, NaN) of none.

    >>> [round(end, 3) for end in interval_of_share(0, 10)], interval_of_share(0, 10)[0] == 0
    ([0.0, 0.278], True)
    """
    if not n:
        return math.nan, math.nan
    share, spread = count / n, REACH**2 / n
    middle = (share + spread / 2) / (1 + spread)
    reach = REACH / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return (max(0.0, middle - reach) if count else 0.0), (min(1.0, middle + reach) if count < n else 1.0)


def t_quantile(share: float, freedom: float) -> float:
    """Returns the value below which Student's t of `freedom` degrees lies with probability `share`, inside (0, 1).

    KonkyoError: no such share, fewer than one degree of freedom.
    """
    from scipy.special import stdtrit  # loads in a sixth of the time of scipy.stats, whose quantile this is

    if not 0 < share < 1 or freedom < 1:
        raise KonkyoError(f"a share between 0 and 1 and a degree of freedom at least; got {share} and {freedom}")
    return float(stdtrit(freedom, share))


def holm(p: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number (Holm, 1979); NaN stays, and is not counted.

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    adjusted, largest = [math.nan] * len(p), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


def _bounded(r: float) -> float:
    return max(-1.0, min(1.0, r))


def _fisher(r: float, variance: float, free: int) -> tuple[float, float]:
    """Returns the interval around a correlation; a perfect one has none but itself."""
    if free < 1:
        return math.nan, math.nan
    if abs(r) >= 1:
        return r, r
    reach = REACH * math.sqrt(variance / free)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)
