"""The tests behind findings: exact McNemar, AUROC, nearest neighbours, pairs of maps, and confused pairs of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from konkyo.evaluation.diagnose.chance import interval_of_mean, p_values
from konkyo.utils.statistics import REACH
from konkyo.utils.tensors import safe_divide


@dataclass(frozen=True)
class McNemar:
    """Two deciders over the same images: how often only one of them is right, and how probable that is by chance."""

    first_only: int
    """Images that only the first gets right."""
    second_only: int
    n: int
    p: float
    """How probable so many of the first's are, if both are equally good (one-sided, exact)."""
    low: float
    high: float
    """The 95 % interval of `difference`: Wald's with Agresti's and Min's correction (2005)."""

    @property
    def difference(self) -> float:
        """Returns the accuracy of the first minus that of the second."""
        return (self.first_only - self.second_only) / self.n

    def smallest(self, alpha: float, least: float) -> float:
        """Returns the least difference with p <= alpha and a lower bound above `least`, the second's own wins as here.

        NaN: no difference would do, with so few images.
        """
        for wins in range(self.n - self.second_only + 1):
            test = mcnemar_of(wins, self.second_only, self.n)
            if test.p <= alpha and test.low > least:
                return test.difference
        return math.nan


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """Compares two deciders by which images (n,) bool each gets right (McNemar, 1947; the exact binomial test)."""
    return mcnemar_of(int((first & ~second).sum()), int((second & ~first).sum()), len(first))


def mcnemar_of(first_only: int, second_only: int, n: int) -> McNemar:
    """Returns the same of the counts."""
    from scipy.special import bdtrc  # loads in a sixth of the time of scipy.stats, whose binom.sf this is

    discordant = first_only + second_only
    p = 1.0 if first_only == 0 else float(bdtrc(first_only - 1, discordant, 0.5))
    ones, twos, total = first_only + 0.5, second_only + 0.5, n + 2
    middle = (ones - twos) / total
    reach = REACH * math.sqrt(max(0.0, (ones + twos) / total - middle**2) / total)
    return McNemar(first_only, second_only, n, p, max(-1.0, middle - reach), min(1.0, middle + reach))


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Returns how probable a positive (n,) bool has a higher score (n,) than a negative; ties count one half.

    NaN: all are of one kind.
    """
    ones, zeros = scores[positive].double(), scores[~positive].double()
    if not len(ones) or not len(zeros):
        return math.nan
    ranks = mid_ranks(torch.cat([ones, zeros]))
    return float((ranks[: len(ones)].mean() - (len(ones) + 1) / 2) / len(zeros))


def mid_ranks(values: Tensor) -> Tensor:
    """Returns the ranks (n,) float64 of values from 1 on; equal values share their mean rank."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return ranks[inverse]


def rank_mean(scores: Sequence[Tensor]) -> Tensor:
    """Returns the mean over several scores (n,) of the ranks, from 0 (lowest) to 1. -> (n,) float64"""
    top = max(1, len(scores[0]) - 1)
    return torch.stack([(mid_ranks(score) - 1) / top for score in scores]).mean(0)


# --- neighbours -------------------------------------------------------------------------------------------------------


def standardised(features: Tensor, like: Tensor) -> Tensor:
    """Returns features (n, C) minus the mean of `like` (m, C), divided by its deviation; constant ones are 0."""
    deviation = like.double().std(0, correction=0)
    return safe_divide(features.double() - like.double().mean(0), deviation)


def nearest(queries: Tensor, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k rows of features (m, C) of the highest cosine with every query (n, C): indices, cosines (n, k).

    Of equal cosines the first row counts as nearer.
    """
    cosines = _unit(queries.double()) @ _unit(features.double()).mT
    values, order = cosines.sort(dim=1, descending=True, stable=True)
    return order[:, :k], values[:, :k]


def _unit(rows: Tensor) -> Tensor:
    return safe_divide(rows, torch.linalg.vector_norm(rows, dim=1, keepdim=True))


def vote(neighbours: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns the most frequent label (n,) of neighbours (n, k), whose labels are `labels` (m,); then the nearest."""
    of = labels[neighbours]
    counts = torch.nn.functional.one_hot(of, classes).double()
    nearer = 1e-3 * 0.5 ** torch.arange(of.shape[1], dtype=torch.float64)  # the nearest decides among equal counts
    return (counts * (1 + nearer)[None, :, None]).sum(1).argmax(1)


# --- pairs of maps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How much two kinds of thing, such as maps, agree of the same image, and of two different images."""

    own: float
    """The mean agreement of an image's thing of the one kind with its own of the other kind."""
    other: float
    """The mean agreement with another image's of the other kind."""
    p: float
    """How probable so high a mean is if it does not matter whose is compared."""
    low: float
    high: float
    """The 95 % interval of `difference`, over images."""
    n: int
    critical: float
    """The least difference with p below the error rate."""

    @property
    def difference(self) -> float:
        """Returns what is owed to the image itself."""
        return self.own - self.other


def agreement(
    maps: Tensor, others: Tensor, *, resamples: int, alpha: float, generator: torch.Generator
) -> Agreement | None:
    """Compares two kinds of map (n, h, w) of the same images by Pearson's correlation; None of fewer than six maps.

    Images with a constant map are left out.
    """
    usable = varying(maps, others)
    one, two = (_unit(_centred(m)[usable]) for m in (maps, others))
    return matching(one @ two.mT, resamples=resamples, alpha=alpha, generator=generator) if len(one) >= 6 else None


def varying(maps: Tensor, others: Tensor) -> Tensor:
    """Tells of which images (n,) both maps are not constant."""
    one, two = (_centred(m).abs().amax(1) > 0 for m in (maps, others))
    return one & two


def matching(table: Tensor, *, resamples: int, alpha: float, generator: torch.Generator) -> Agreement:
    """Compares the diagonal of a table (n, n), an image's agreement with itself, with the rest of the rows.

    Permutations of the columns over the rows say what chance gives.
    """
    n, table = len(table), table.double()
    matched, rows = table.diagonal(), torch.arange(n)
    of_others = (table.sum(1) - matched) / (n - 1)
    by_chance = torch.stack([table[rows, torch.randperm(n, generator=generator)].mean() for _ in range(resamples)])
    seed = int(torch.randint(2**31, (), generator=generator))
    low, high = interval_of_mean((matched - of_others).numpy(), resamples, seed)
    other, p = float(of_others.mean()), p_values(by_chance.numpy(), float(matched.mean()))
    return Agreement(float(matched.mean()), other, float(p), low, high, n, float(by_chance.quantile(1 - alpha)) - other)


def _centred(maps: Tensor) -> Tensor:
    flat = maps.flatten(1).double()
    return flat - flat.mean(1, keepdim=True)


# --- confused pairs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Swaps:
    """How often every pair of classes is mistaken for each other, in both directions together."""

    counts: Tensor
    """(K, K) symmetric, zeros on the diagonal."""
    expected: Tensor
    """(K, K) what chance gives on average."""
    p: Tensor
    """(K, K) of every pair, all pairs together: compared with the largest excess of any pair by chance."""
    critical: float
    """The excess, in standard deviations of chance, from which on p is below the error rate."""


def swaps(
    labels: Tensor, predictions: Tensor, classes: int, *, resamples: int, alpha: float, generator: torch.Generator
) -> Swaps:
    """Tests which pairs of classes are confused more often than mistakes fall by chance. labels, predictions (n,).

    Chance is quasi-independence: among the wrong images, labels and decisions keep their frequencies, and which label
    goes with which decision means nothing, but that they differ. It is drawn by a Markov chain of exchanges of labels
    that has this uniform distribution. The p-values are those of the largest excess of any pair (Westfall and Young,
    1993), the excess in standard deviations of chance.
    """
    wrong = labels != predictions
    truth, decided = labels[wrong], predictions[wrong]
    exchanged = _exchanged(truth, decided, resamples, generator)
    actual = _pairs(truth[None], decided, classes)[0]
    by_chance = _pairs(exchanged, decided, classes)
    mean, deviation = by_chance.mean(0), by_chance.std(0, correction=0)
    free = deviation > 0
    excess = torch.where(free, (actual - mean) / torch.where(free, deviation, 1), 0.0)
    chance = torch.where(free, (by_chance - mean) / torch.where(free, deviation, 1), 0.0).flatten(1).amax(1)
    p = (1 + (chance[:, None, None] >= excess - 1e-9).sum(0)) / (1 + resamples)
    critical = float(chance.quantile(1 - alpha)) if resamples else math.nan
    return Swaps(actual, mean, torch.where(actual > 0, p, 1.0).double(), critical)


def _pairs(labels: Tensor, decided: Tensor, classes: int) -> Tensor:
    """Counts the pairs of classes in labels (r, m) and decisions (m,), both directions together. -> (r, K, K)"""
    codes = labels * classes + decided
    counts = torch.zeros(len(labels), classes * classes, dtype=torch.float64)
    counts.scatter_add_(1, codes, torch.ones(codes.shape, dtype=torch.float64))
    table = counts.view(-1, classes, classes)
    return table + table.mT


def _exchanged(labels: Tensor, decided: Tensor, chains: int, generator: torch.Generator) -> Tensor:
    """Exchanges labels (m,) at random, so that none becomes the decision. -> (chains, m)"""
    m = len(labels)
    state = labels.expand(chains, m).clone()
    if m < 2:
        return state
    rows = torch.arange(chains)
    for _ in range(20 * m):
        first, second = torch.randint(m, (2, chains), generator=generator)
        one, two = state[rows, first], state[rows, second]
        fits = (one != decided[second]) & (two != decided[first])
        state[rows, first] = torch.where(fits, two, one)
        state[rows, second] = torch.where(fits, one, two)
    return state
