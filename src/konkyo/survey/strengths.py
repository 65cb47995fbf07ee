"""Strengths of methods by the model of Bradley and Terry, with Davidson's ties, and what is certain of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from konkyo.survey.preference import two_sided
from konkyo.survey.votes import Floats, Votes, percentiles, resampled, standard_error
from konkyo.utils.statistics import CENTRAL, holm, t_quantile

_ROUNDS, _EXACT = 10_000, 1e-10


@dataclass(frozen=True)
class Strength:
    """The strength of a method: the logarithm of its worth, where those of all methods have the mean 0."""

    method: str
    value: float
    low: float
    """Of the 95 % interval, with raters and items drawn at random."""
    high: float
    bootstrap_low: float
    """Of the interval by resampling raters and items."""
    bootstrap_high: float


@dataclass(frozen=True)
class Comparison:
    """Two methods by the model: the probability that the first is preferred, where one is."""

    first: str
    second: str
    probability: float
    low: float
    high: float
    p: float
    """Two-sided, of the strengths being equal."""
    adjusted: float
    """The p-value after Holm's correction for the number of pairs."""


@dataclass(frozen=True)
class Strengths:
    """The strengths of all methods, the strongest first, and their pairs; both are empty where `groups` is not."""

    methods: tuple[Strength, ...]
    pairs: tuple[Comparison, ...]
    tie: float
    """Davidson's nu: of two methods of one strength, the probability of a tie is nu / (2 + nu)."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Groups of methods without a vote for the latter against the former: strengths would differ infinitely, and the
    model has no estimate (`separated`). Empty where it has."""

    @classmethod
    def of(cls, votes: Votes, *, resamples: int, seed: int) -> Strengths:
        """Makes the strengths of votes, all of them; a tie is a third outcome (Davidson, 1970)."""
        table = tables(votes, np.ones((1, len(votes))))
        if len(groups := separated(table[0])) > 1:
            return cls((), (), math.nan, tuple(tuple(votes.methods[i] for i in group) for group in groups))
        worths, tie = (estimates[0] for estimates in davidson(table))
        logs = np.log(worths) - np.log(worths).mean()
        influence = influences(votes, logs, float(tie))

        def values(weights: Floats) -> Floats:
            counted = tables(votes, weights)
            known = np.array([len(separated(t)) == 1 for t in counted])
            samples = np.full((len(weights), len(logs)), math.nan)
            if known.any():
                samples[known] = np.log(davidson(counted[known])[0])
            centred: Floats = samples - samples.mean(1, keepdims=True)
            return centred

        samples = resampled(votes, values, resamples, seed) if resamples else np.full((1, len(logs)), math.nan)
        strengths = []
        for i in np.argsort(-logs, kind="stable").tolist():
            contrast = np.eye(len(logs))[i] - 1 / len(logs)
            ends, _ = _interval(float(logs[i]), influence @ contrast, votes)
            strengths.append(Strength(votes.methods[i], float(logs[i]), *ends, *percentiles(samples[:, i])))
        return cls(tuple(strengths), _comparisons(votes, logs, influence), float(tie))


def tables(votes: Votes, weights: Floats) -> Floats:
    """Returns weighted counts of outcomes: wins of row over column, and ties beneath. (b, N) -> (b, 2, K, K)"""
    kinds = len(votes.methods)
    won = np.where(votes.outcome == 1, votes.first, votes.second)
    lost = np.where(votes.outcome == 1, votes.second, votes.first)
    tied = votes.outcome == 0.5
    place = tied * kinds * kinds + won * kinds + lost
    flat = np.zeros((len(weights), 2 * kinds * kinds))
    np.add.at(flat.T, place, weights.T)
    counts: Floats = flat.reshape(-1, 2, kinds, kinds)
    counts[:, 1] += counts[:, 1].transpose(0, 2, 1)
    return counts


def separated(table: Floats) -> tuple[tuple[int, ...], ...]:
    """Returns groups of methods that votes do not connect both ways, the winning ones first; one group alone is well.

    Strengths are finite where every method reaches every other one by wins and ties (Ford, 1957; Davidson, 1970).
    Otherwise all votes between two groups, if there are any, are for one of the two. `table`: (2, K, K), as of
    `tables`.
    """
    from scipy.sparse.csgraph import connected_components

    edges = (table[0] + table[1]) > 0
    count, parts = connected_components(edges, connection="strong")
    if count == 1:
        return (tuple(range(len(edges))),)
    reach = np.linalg.matrix_power(edges.astype(float) + np.eye(len(edges)), len(edges)) > 0
    groups = [tuple(np.flatnonzero(parts == part).tolist()) for part in range(count)]
    return tuple(sorted(groups, key=lambda group: -int(reach[group[0]].sum())))


def davidson(table: Floats) -> tuple[Floats, Floats]:
    """Returns the worths (b, K) of sum 1 and nu (b,) of largest likelihood, of counts (b, 2, K, K) as of `tables`.

    P(i before j) = w_i / (w_i + w_j + nu sqrt(w_i w_j)), P(tie) = nu sqrt(w_i w_j) / (same). Each round sets
    w_i = s_i / sum_j n_ij (2 + nu sqrt(w_j / w_i)) / (w_i + w_j + nu sqrt(w_i w_j)), where s_i counts 2 for a win and 1
    for a tie, and nu = ties / sum_{i<j} n_ij sqrt(w_i w_j) / (same). Without ties this is the minorisation of Zermelo
    (1929) and Hunter (2004), w_i = wins_i / sum_j n_ij / (w_i + w_j).
    """
    wins, ties = table[:, 0], table[:, 1]
    games = wins + wins.transpose(0, 2, 1) + ties
    scores = 2 * wins.sum(2) + ties.sum(2)
    tied = ties.sum((1, 2)) / 2
    kinds = wins.shape[1]
    worths = np.full(scores.shape, 1 / kinds)
    nu = np.where(tied > 0, 2 * tied / np.maximum(games.sum((1, 2)) / 2 - tied, 1), 0.0)
    for _ in range(_ROUNDS):
        roots = np.sqrt(worths)
        products = roots[:, :, None] * roots[:, None, :]
        sums = worths[:, :, None] + worths[:, None, :] + nu[:, None, None] * products
        per_worth = games * (2 + nu[:, None, None] * roots[:, None, :] / roots[:, :, None]) / sums
        updated = scores / per_worth.sum(2)
        updated /= updated.sum(1, keepdims=True)
        nu_updated = np.where(tied > 0, tied / ((games * products / sums).sum((1, 2)) / 2), 0.0)
        change = max(float(np.abs(np.log(updated / worths)).max()), float(np.abs(nu_updated - nu).max(initial=0.0)))
        worths, nu = updated, nu_updated
        if change < _EXACT:
            break
    return worths, nu


def influences(votes: Votes, logs: Floats, tie: float) -> Floats:
    """Returns what every vote adds to the error of the logarithms of the worths: information^-1 score. -> (N, K)"""
    kinds = len(logs)
    features = np.zeros((len(votes), 3, kinds + 1))  # of the outcomes first, tie, second
    rows = np.arange(len(votes))
    features[rows, 0, votes.first] = features[rows, 2, votes.second] = 1
    features[rows, 1, votes.first] = features[rows, 1, votes.second] = 0.5
    features[:, 1, kinds] = 1
    parameters = np.append(logs, math.log(tie) if tie > 0 else 0.0)
    odds = np.exp(features @ parameters)
    odds[:, 1] *= tie > 0
    chances = odds / odds.sum(1, keepdims=True)
    expected = (chances[:, :, None] * features).sum(1)
    spread = features - expected[:, None]
    information = np.einsum("nk,nki,nkj->ij", chances, spread, spread)
    score = features[rows, (2 - 2 * votes.outcome).astype(int)] - expected
    return np.asarray(score @ np.linalg.pinv(information, rcond=1e-9))[:, :kinds]


def _interval(value: float, influence: Floats, votes: Votes) -> tuple[tuple[float, float], float]:
    """Returns the 95 % interval of a logarithm, and the p-value of its being 0."""
    error = standard_error(influence, votes)
    if not error.value > 0:
        return (math.nan, math.nan), math.nan
    reach = t_quantile((1 + CENTRAL) / 2, error.freedom) * error.value
    return (value - reach, value + reach), two_sided(value / error.value, error.freedom)


def _comparisons(votes: Votes, logs: Floats, influence: Floats) -> tuple[Comparison, ...]:
    """Returns all pairs, the method of the smaller index first."""
    pairs = []
    for i, j in combinations(range(len(logs)), 2):
        difference = float(logs[i] - logs[j])
        ends, p = _interval(difference, influence[:, i] - influence[:, j], votes)
        probability, low, high = (_probability(x) for x in (difference, *ends))
        pairs.append(Comparison(votes.methods[i], votes.methods[j], probability, low, high, p, p))
    adjusted = holm([comparison.p for comparison in pairs])
    return tuple(replace(c, adjusted=a) for c, a in zip(pairs, adjusted, strict=True))


def _probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if math.isfinite(logit) else logit
