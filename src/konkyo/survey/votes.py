"""Votes: who preferred which of two methods on which item, as arrays, and the standard errors of what they say.

Votes are not independent: those of one rater share a taste, those on one item share a picture. Every standard error
here counts both raters and items as drawn at random (`standard_error`), and so speaks of other raters and other items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from konkyo.survey.form import Answer

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
_CHUNK = 4_000_000  # weights that are held at once


@dataclass(frozen=True, eq=False)
class Votes:
    """N votes, each between two methods of which the first has the smaller index."""

    methods: tuple[str, ...]
    raters: tuple[str, ...]
    items: tuple[str, ...]
    rater: Integers
    """(N,) who voted: an index of `raters`."""
    item: Integers
    """(N,) on what: an index of `items`."""
    first: Integers
    """(N,) an index of `methods`."""
    second: Integers
    """(N,) another index of `methods`, which is larger."""
    outcome: Floats
    """(N,) 1 where the first method is preferred, 0 where the second is, 0.5 where both are equally good."""

    @classmethod
    def of(cls, answers: Iterable[Answer], methods: Sequence[str]) -> Votes:
        """Makes votes of all answers but "cannot_judge". The names of methods must be among `methods`."""
        listed = [answer for answer in answers if answer.answer != "cannot_judge"]
        raters, items = (list(dict.fromkeys(getattr(a, name) for a in listed)) for name in ("rater", "item"))
        place = {name: index for index, name in enumerate(methods)}
        places = [{name: index for index, name in enumerate(names)} for names in (raters, items)]
        pairs = [sorted((place[a.method_left], place[a.method_right])) for a in listed]
        outcomes = [
            0.5 if a.preferred is None else float(place[a.preferred] == pair[0])
            for a, pair in zip(listed, pairs, strict=True)
        ]
        return cls(
            tuple(methods),
            tuple(raters),
            tuple(items),
            np.asarray([places[0][a.rater] for a in listed], dtype=np.int64),
            np.asarray([places[1][a.item] for a in listed], dtype=np.int64),
            np.asarray([pair[0] for pair in pairs], dtype=np.int64),
            np.asarray([pair[1] for pair in pairs], dtype=np.int64),
            np.asarray(outcomes, dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.outcome)

    @property
    def ties(self) -> int:
        """Returns how many votes find both equally good."""
        return int((self.outcome == 0.5).sum())

    def where(self, chosen: NDArray[np.bool_]) -> Votes:
        """Returns the votes at which `chosen` (N,) is true; raters and items without votes are gone."""
        raters, rater = np.unique(self.rater[chosen], return_inverse=True)
        items, item = np.unique(self.item[chosen], return_inverse=True)
        return replace(
            self,
            raters=tuple(self.raters[i] for i in raters),
            items=tuple(self.items[i] for i in items),
            rater=rater.astype(np.int64),
            item=item.astype(np.int64),
            first=self.first[chosen],
            second=self.second[chosen],
            outcome=self.outcome[chosen],
        )

    def decided(self) -> Votes:
        """Returns the votes without ties."""
        return self.where(self.outcome != 0.5)

    def of_pair(self, first: int, second: int) -> Votes:
        """Returns the votes between two methods, given by their indices, the smaller first."""
        return self.where((self.first == first) & (self.second == second))

    def pairs(self) -> list[tuple[int, int]]:
        """Returns the pairs of methods that votes were cast on."""
        there = set(zip(self.first.tolist(), self.second.tolist(), strict=True))
        return [pair for pair in combinations(range(len(self.methods)), 2) if pair in there]

    def by_item(self) -> Integers:
        """Returns how many votes of every item are for the first method, a tie, and for the second. -> (items, 3)"""
        kinds = (2 - 2 * self.outcome).astype(np.int64)
        return np.bincount(3 * self.item + kinds, minlength=3 * len(self.items)).reshape(-1, 3)


@dataclass(frozen=True)
class StandardError:
    """The standard error of an estimate, and the degrees of freedom of Student's t that go with it; NaN if unknown."""

    value: float
    freedom: float


def standard_error(influence: Floats, votes: Votes, least: float = 0.0) -> StandardError:
    """Returns the standard error of an estimate whose error is about the sum of `influence` (N,) over the votes.

    With T the sums of influence by rater, by item, the variances of R raters and of I items drawn at random are
    V_R = R / (R - 1) sum T_r^2 and V_I alike. The noise of single votes, V_E, is in both, so the variance is
    V = V_R + V_I - V_E (Cameron, Gelbach and Miller, 2011), and not smaller than V_R, V_I or `least`. V_E = N s^2 is of
    what is left of the influence when effects of raters and of items are taken out. The degrees of freedom are
    Satterthwaite's, V^2 / (V_R^2 / (R - 1) + V_I^2 / (I - 1) + V_E^2 / (N - R - I + 1)); in balanced tables this is the
    test of crossed raters and items of Obuchowski and Rockette (1995) with the freedom of Hillis (2007). A single rater
    (item) says nothing of others: then only items (raters) count as drawn at random.
    """
    parts = [_of_clusters(influence, index) for index in (votes.rater, votes.item)]
    known = [(variance, free) for variance, free in parts if free > 0]
    if not known:
        return StandardError(math.nan, math.nan)
    if len(known) == 2:
        noise, rest = _noise(influence, votes)
        known.append((-noise, rest))
    total = sum(variance for variance, _ in known)
    variance = max(total, least, *(v for v, _ in known))
    spread = sum(v**2 / free for v, free in known if free > 0)
    if variance <= 0 or spread <= 0:
        return StandardError(math.sqrt(max(0.0, variance)), min(free for _, free in known if free > 0))
    return StandardError(math.sqrt(variance), max(1.0, variance**2 / spread))


def _of_clusters(influence: Floats, index: Integers) -> tuple[float, int]:
    """Returns the variance of a sum whose clusters are drawn at random, and its degrees of freedom."""
    sums = np.bincount(index, influence)
    count = len(sums)
    return (float((sums**2).sum()) * count / (count - 1) if count > 1 else math.nan), count - 1


def _noise(influence: Floats, votes: Votes) -> tuple[float, int]:
    """Returns the variance of the sum by single votes alone, and its degrees of freedom; (0, 0) if it is not known."""
    raters, items, n = len(votes.raters), len(votes.items), len(votes)
    counts = np.bincount(votes.rater * items + votes.item, minlength=raters * items).reshape(raters, items)
    if counts.min() == counts.max():  # a complete table, whose effects are means
        of_rater, of_item = (np.bincount(i, influence) / np.bincount(i) for i in (votes.rater, votes.item))
        rest = influence - of_rater[votes.rater] - of_item[votes.item] + influence.mean()
        free = n - raters - items + 1
        return (n * float((rest**2).sum()) / free, free) if free > 0 else (0.0, 0)
    normal = np.block([[np.diag(counts.sum(1)), counts], [counts.T, np.diag(counts.sum(0))]]).astype(np.float64)
    sums = np.concatenate([np.bincount(votes.rater, influence), np.bincount(votes.item, influence)])
    effects, _, rank, _ = np.linalg.lstsq(normal, sums, rcond=1e-10)
    free = n - int(rank)
    if free < 1:
        return 0.0, 0
    rest = influence - effects[votes.rater] - effects[raters + votes.item]
    return n * float((rest**2).sum()) / free, free


def pigeonhole(votes: Votes, resamples: int, seed: int) -> Iterator[Floats]:
    """Yields weights of the votes in resamples, a part of these at a time: how often a vote comes. -> (b, N)

    Raters and items are drawn with replacement, each for themselves, and a vote comes as often as its rater times as
    often as its item: the pigeonhole bootstrap (McCullagh, 2000; Owen, 2007). Its variance counts the noise of single
    votes three times, so it is too large where raters and items hardly differ.
    """
    generator = np.random.default_rng(seed)
    raters, items = len(votes.raters), len(votes.items)
    step = max(1, _CHUNK // max(1, len(votes)))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        of_rater = generator.multinomial(raters, [1 / raters] * raters, count)
        of_item = generator.multinomial(items, [1 / items] * items, count)
        yield (of_rater[:, votes.rater] * of_item[:, votes.item]).astype(np.float64)


def resampled(votes: Votes, statistic: Callable[[Floats], Any], resamples: int, seed: int) -> Floats:
    """Returns `statistic` of the weights (b, N) of all resamples of `pigeonhole`. -> (resamples, ...)"""
    return np.concatenate([np.asarray(statistic(weights)) for weights in pigeonhole(votes, resamples, seed)])


def percentiles(values: Floats) -> tuple[float, float]:
    """Returns the middle 95 % of values over resamples; (NaN, NaN) if more than 2.5 % of them are not known."""
    known = values[np.isfinite(values)]
    if len(values) - len(known) > 0.025 * len(values) or not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
