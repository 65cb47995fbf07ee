"""What a survey can show, before it starts: exactly for majorities of items, by simulation for votes that agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from konkyo.errors import KonkyoError
from konkyo.survey.preference import rate_of
from konkyo.survey.votes import Floats, Votes

ALPHA = 0.05
WANTED = 0.8
"""The probability of showing what is there that surveys are usually planned for."""
RATER_DEVIATION, ITEM_DEVIATION = 0.5, 1.0
"""Of raters and of items, on the scale of the logit: items differ more than raters. A pilot tells better."""
_MOST = 2000  # items or votes that are tried


@cache
def critical_count(n: int, alpha: float = ALPHA) -> int | None:
    """Returns the smallest number of n items, or of n votes, that is significant by the two-sided sign test.

    None: not even all of them are.

    >>> critical_count(15), critical_count(30), critical_count(27), critical_count(5)
    (12, 21, 20, None)
    """
    from scipy.special import bdtrc

    significant = np.flatnonzero(2 * bdtrc(np.arange(n), n, 0.5) <= alpha)  # P(X > k) for k = 0 ... n - 1
    return int(significant[0]) + 1 if len(significant) else None


def exact_power(n: int, rate: float, alpha: float = ALPHA) -> float:
    """Returns the probability that n independent items show a method as preferred that wins each with `rate`.

    >>> [round(exact_power(15, rate), 2) for rate in (0.7, 0.8, 0.9)]
    [0.3, 0.65, 0.94]
    """
    from scipy.special import bdtrc

    least = critical_count(n, alpha)
    return 0.0 if least is None else float(bdtrc(least - 1, n, rate))


def needed_count(rate: float, wanted: float = WANTED, alpha: float = ALPHA) -> int | None:
    """Returns from which number of independent items on the power is `wanted` or more, also for every larger number.

    None: more than about 1000. Exact power rises and falls a little from one number to the next.

    >>> [needed_count(rate) for rate in (0.7, 0.8, 0.9)]
    [54, 23, 12]
    """
    if not 0.5 < rate < 1:
        return None
    rough = ((0.98 + 0.85 * math.sqrt(rate * (1 - rate))) / (rate - 0.5)) ** 2  # by the normal distribution
    end = 2 * math.ceil(rough) + 40
    if end > _MOST:
        return None
    return max(n for n in range(1, end) if exact_power(n, rate, alpha) < wanted) + 1


@dataclass(frozen=True)
class Population:
    """Raters and items as they are drawn in simulations: logit P(vote for the first) = middle + rater + item."""

    rate: float
    """The probability that any rater prefers the first method on any item."""
    raters: float = RATER_DEVIATION
    """The standard deviation of raters, on the scale of the logit."""
    items: float = ITEM_DEVIATION

    def draw(self, raters: int, items: int, generator: np.random.Generator) -> Votes:
        """Returns the votes of so many new raters on so many new items, one each. KonkyoError: no such rate."""
        logits = (
            self.middle
            + self.raters * generator.standard_normal((raters, 1))
            + self.items * generator.standard_normal((1, items))
        )
        chosen = generator.random((raters, items)) < 1 / (1 + np.exp(-logits))
        return complete(chosen.astype(np.float64))

    @cached_property
    def middle(self) -> float:
        """Returns the logit of an average rater and item that makes the rate what it is. KonkyoError: no such rate."""
        from scipy.optimize import brentq

        if not 0 < self.rate < 1 or self.raters < 0 or self.items < 0:
            raise KonkyoError(f"a rate between 0 and 1 and deviations of 0 or more were expected; got {self}")
        nodes, weights = np.polynomial.hermite_e.hermegauss(61)
        deviation = math.hypot(self.raters, self.items)

        def excess(middle: float) -> float:
            return float((weights / weights.sum()) @ (1 / (1 + np.exp(-middle - deviation * nodes)))) - self.rate

        return float(brentq(excess, -60, 60))


def complete(outcomes: Floats) -> Votes:
    """Returns the votes of a table (raters, items) in which every rater answers every item: 1, 0.5 or 0."""
    raters, items = outcomes.shape
    rater, item = (index.ravel() for index in np.indices(outcomes.shape))
    zeros = np.zeros(outcomes.size, dtype=np.int64)
    names = tuple(f"rater {i}" for i in range(raters)), tuple(f"item {i}" for i in range(items))
    return Votes(("first", "second"), *names, rater, item, zeros, zeros + 1, outcomes.ravel())


@dataclass(frozen=True)
class Power:
    """The power of a survey of so many raters and items: how probably it shows the preference that there is."""

    raters: int
    items: int
    rate: float
    exact: float
    """Of the sign test, if `rate` is that at which items have a majority for the first method."""
    majorities: float
    """Of the sign test, if `rate` is that of votes, and raters and items vary: simulated."""
    votes: float
    """Of the interval over votes not reaching one half, simulated."""
    needed: int | None
    """From how many items on `exact` is 0.8 or more."""
    needed_votes: int | None
    """From how many items on `votes` is 0.8 or more with as many raters, found by simulation; None: above 500."""


def power(
    raters: int,
    items: int,
    rate: float,
    *,
    population: Population | None = None,
    simulations: int = 1000,
    seed: int = 0,
) -> Power:
    """Returns the power of a survey at a rate. `population`: how raters and items vary; its rate is not used.

    KonkyoError: a rate that is not between one half and 1, or no raters, items or simulations.
    """
    if not 0.5 < rate < 1 or min(raters, items, simulations) < 1:
        raise KonkyoError(
            "power needs a rate between 0.5 and 1, and 1 or more raters, items and simulations; "
            f"got {rate}, {raters}, {items} and {simulations}"
        )
    spread = population or Population(rate)
    spread = Population(rate, spread.raters, spread.items)
    majorities, votes = _simulated(spread, raters, items, simulations, seed)
    needed = _needed_items(spread, raters, max(100, simulations // 2), seed)
    return Power(raters, items, rate, exact_power(items, rate), majorities, votes, needed_count(rate), needed)


def _simulated(population: Population, raters: int, items: int, simulations: int, seed: int) -> tuple[float, float]:
    """Returns how often the sign test, and the interval over votes, show the first method as preferred."""
    generator = np.random.default_rng((seed, raters, items))
    shown = np.zeros((simulations, 2))
    for row in shown:
        votes = population.draw(raters, items, generator)
        first, _, second = votes.by_item().T
        wins, losses = int((first > second).sum()), int((first < second).sum())
        least = critical_count(wins + losses)
        row[:] = (least is not None and wins >= least, rate_of(votes)[1] > 0.5)
    return float(shown[:, 0].mean()), float(shown[:, 1].mean())


def _needed_items(population: Population, raters: int, simulations: int, seed: int) -> int | None:
    """Returns the smallest number of items, up to 500, with enough power over votes, by bisection."""
    low, high = 1, 2
    while _simulated(population, raters, high, simulations, seed)[1] < WANTED:
        low, high = high, 2 * high
        if high > 512:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if _simulated(population, raters, middle, simulations, seed)[1] < WANTED:
            low = middle
        else:
            high = middle
    return high
