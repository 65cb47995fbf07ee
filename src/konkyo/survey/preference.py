"""How often one method is preferred to another: over votes, with items and raters drawn at random, and over items."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from konkyo.survey.votes import Floats, Votes, percentiles, resampled, standard_error
from konkyo.utils.statistics import CENTRAL, interval_of_share, t_quantile

Ties: TypeAlias = Literal["dropped", "half"]
TIES: tuple[Ties, ...] = ("dropped", "half")
"""What becomes of "no difference": such votes are left out, or count half for both methods."""
_TAIL = (1 - CENTRAL) / 2


@dataclass(frozen=True)
class SignTest:
    """It tells whether a method wins more items than chance would give it, by the binomial distribution, exactly."""

    wins: int
    losses: int
    draws: int
    """Items with as many votes for one as for the other; they are left out."""
    p: float
    """Two-sided, of wins and losses being equally probable; NaN without any."""
    low: float
    """Of the 95 % interval of the share of items that are won, by Clopper and Pearson (1934)."""
    high: float
    wilson_low: float
    """By Wilson (1927), which is shorter and covers 95 % on average, not always."""
    wilson_high: float

    @classmethod
    def of(cls, wins: int, losses: int, draws: int = 0) -> SignTest:
        """Makes the test of so many items that were won and lost.

        >>> test = SignTest.of(11, 4)
        >>> round(test.p, 3), round(test.low, 3), round(test.high, 3)
        (0.118, 0.449, 0.922)
        """
        n = wins + losses
        if not n:
            return cls(0, 0, draws, *(math.nan,) * 5)
        from scipy.stats import binomtest

        result = binomtest(wins, n)
        exact = result.proportion_ci(CENTRAL, "exact")
        return cls(
            wins, losses, draws, float(result.pvalue), float(exact.low), float(exact.high), *interval_of_share(wins, n)
        )

    @property
    def share(self) -> float:
        """Returns the share of decided items that are won; NaN of none."""
        n = self.wins + self.losses
        return self.wins / n if n else math.nan


@dataclass(frozen=True)
class Preference:
    """A preference is the rate at which votes are for the first of two methods. NaN stands for what is not known."""

    first: str
    second: str
    raters: str
    """Whose votes: "all", or "kept" for those that are left by the rule of exclusion."""
    ties: Ties
    votes: int
    """How many are counted: without ties where these are dropped."""
    tied: float
    """The share of ties among all votes of the two methods."""
    rate: float
    low: float
    """Of the 95 % interval with raters and items drawn at random (`standard_error`), on the scale of the logit."""
    high: float
    p: float
    """Two-sided, of the rate being one half; by the same standard error."""
    effective: float
    """So many independent votes would be worth as much: rate (1 - rate) / variance."""
    bootstrap_low: float
    """Of the interval by resampling raters and items (`pigeonhole`), the middle 95 %."""
    bootstrap_high: float
    items: SignTest

    @classmethod
    def of(cls, votes: Votes, *, raters: str, ties: Ties, resamples: int, seed: int) -> Preference:
        """Makes the preference of votes between two methods, all of one pair."""
        counted = votes.decided() if ties == "dropped" else votes
        names = (votes.methods[int(votes.first[0])], votes.methods[int(votes.second[0])]) if len(votes) else ("", "")
        rate, low, high, p, effective = rate_of(counted)
        return cls(
            *names,
            raters,
            ties,
            len(counted),
            votes.ties / len(votes) if len(votes) else math.nan,
            rate,
            low,
            high,
            p,
            effective,
            *_bootstrap(counted, resamples, seed),
            sign_test(votes),
        )


def sign_test(votes: Votes) -> SignTest:
    """Returns the test of item majorities: an item is won with more votes for the first method than for the second."""
    if not len(votes):
        return SignTest.of(0, 0)
    first, _, second = votes.by_item().T
    return SignTest.of(int((first > second).sum()), int((first < second).sum()), int((first == second).sum()))


def rate_of(votes: Votes) -> tuple[float, float, float, float, float]:
    """Returns (rate, low, high, p, effective) of votes between two methods; `Preference` says what they are.

    The interval is logit(rate) -+ t s / (rate (1 - rate)), with the standard error s, turned back. Where all votes
    agree there is no spread to go by: the interval is that of as many independent votes as there are raters or items,
    whichever are fewer, all for one method.
    """
    unknown = (math.nan,) * 3
    n = len(votes)
    if not n:
        return math.nan, math.nan, *unknown
    rate = float(votes.outcome.mean())
    if votes.outcome.min() == votes.outcome.max():
        fewer = min(len(votes.raters), len(votes.items))
        if rate == 0.5:
            return rate, *unknown, math.nan
        end = _TAIL ** (1 / fewer)
        p = min(1.0, 2 * 0.5**fewer)
        return (rate, end, 1.0, p, float(fewer)) if rate == 1 else (rate, 0.0, 1 - end, p, float(fewer))
    varied = float(votes.outcome.var())
    error = standard_error((votes.outcome - rate) / n, votes, least=varied / n)
    if not error.value > 0:
        return rate, *unknown, math.nan
    scale = error.value / (rate * (1 - rate))
    middle = math.log(rate / (1 - rate))
    reach = t_quantile(1 - _TAIL, error.freedom) * scale
    low, high = (1 / (1 + math.exp(-(middle + sign * reach))) for sign in (-1, 1))
    return rate, low, high, two_sided(middle / scale, error.freedom), varied / error.value**2


def two_sided(t: float, freedom: float) -> float:
    """Returns the two-sided p-value of Student's t."""
    from scipy.special import stdtr

    return min(1.0, 2 * float(stdtr(freedom, -abs(t))))


def _bootstrap(votes: Votes, resamples: int, seed: int) -> tuple[float, float]:
    if not len(votes) or not resamples:
        return math.nan, math.nan

    def rates(weights: Floats) -> Iterable[float]:
        with np.errstate(invalid="ignore"):  # a resample may have none of the votes
            return np.asarray(weights @ votes.outcome / weights.sum(1), dtype=np.float64)

    return percentiles(resampled(votes, rates, resamples, seed))
