"""Bradley and Terry: a worked example of the literature, another optimiser, known strengths, separation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.simulated_raters import answers_of, form_of
from konkyo.survey.form import Answer
from konkyo.survey.strengths import Strengths, davidson, influences, separated, tables
from konkyo.survey.votes import Votes

BASEBALL = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]
"""Wins of the American League, 1987: Milwaukee, Detroit, Toronto, New York, Boston, Cleveland, Baltimore (Agresti,
Categorical Data Analysis, 2002, table 10.10)."""
ABILITIES = [1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0.0]
"""Of the teams, above Baltimore's, as the R package BradleyTerry2 prints them (Turner and Firth, 2012)."""


def votes_of(methods: tuple[str, ...], outcomes: list[tuple[str, str, str]]) -> Votes:
    """Votes (left, right, word), an item and a rater each."""
    return Votes.of(
        [
            Answer(f"r{n % 7}", f"i{n}", left, right, word, 1, "2026-01-31T09:30:00Z", "f")  # type: ignore[arg-type]
            for n, (left, right, word) in enumerate(outcomes)
        ],
        methods,
    )


def test_the_abilities_of_baseball_teams() -> None:
    wins = np.array(BASEBALL, dtype=float)
    worths, tie = davidson(np.stack([wins, 0 * wins])[None])
    logs = np.log(worths[0])
    assert (logs - logs[-1]).tolist() == pytest.approx(ABILITIES, abs=6e-5)
    assert tie[0] == 0


def test_ties_by_another_optimiser() -> None:
    """Davidson's likelihood, written out and minimised by BFGS."""
    from scipy.optimize import minimize

    generator = np.random.default_rng(0)
    wins = generator.integers(1, 9, (4, 4)).astype(float)
    ties = np.triu(generator.integers(0, 6, (4, 4)), 1).astype(float)
    ties += ties.T
    np.fill_diagonal(wins, 0)

    def loss(values: np.ndarray) -> float:
        worth, nu = np.exp(np.append(values[:3], 0)), math.exp(values[3])
        total = 0.0
        for i in range(4):
            for j in range(i):
                even = nu * math.sqrt(worth[i] * worth[j])
                every = worth[i] + worth[j] + even
                total -= wins[i, j] * math.log(worth[i] / every) + wins[j, i] * math.log(worth[j] / every)
                total -= ties[i, j] * math.log(even / every)
        return total

    expected = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8})
    worths, nu = davidson(np.stack([wins, ties])[None])
    logs = np.log(worths[0])
    assert (logs - logs[-1])[:3].tolist() == pytest.approx(expected.x[:3].tolist(), abs=1e-5)
    assert math.log(nu[0]) == pytest.approx(expected.x[3], abs=1e-5)


def test_what_a_vote_adds_is_what_leaving_it_out_takes_away() -> None:
    """The influence of a vote is about the change of the estimate without it; together they sum to 0."""
    form = form_of(["a", "b", "c"], 40)
    votes = Votes.of(answers_of(form, 8, [0.6, 0, -0.4], np.random.default_rng(1)), form.methods)

    def logs_of(weights: np.ndarray) -> tuple[np.ndarray, float]:
        worths, nu = davidson(tables(votes, weights[None]))
        return np.log(worths[0]) - np.log(worths[0]).mean(), float(nu[0])

    everything = np.ones(len(votes))
    logs, nu = logs_of(everything)
    influence = influences(votes, logs, nu)
    assert influence.sum(0) == pytest.approx(np.zeros(3), abs=1e-6)
    for place in (0, 17, 100):
        without = everything.copy()
        without[place] = 0
        change = logs - logs_of(without)[0]
        assert influence[place] == pytest.approx(change, abs=0.1 * np.abs(change).max() + 1e-6)


def test_known_strengths_are_recovered() -> None:
    """Raters who follow the model, without effects of their own: within 0.1 of the truth with 9,600 votes."""
    logs = np.array([0.8, 0.3, -0.2, -0.9])
    form = form_of(["a", "b", "c", "d"], 80)
    answers = answers_of(form, 120, logs, np.random.default_rng(2), deviations=(0, 0), ties=0)
    strengths = Strengths.of(Votes.of(answers, form.methods), resamples=0, seed=0)
    assert [s.method for s in strengths.methods] == ["a", "b", "c", "d"]
    assert [s.value for s in strengths.methods] == pytest.approx(logs.tolist(), abs=0.1)
    for pair in strengths.pairs:
        difference = logs["abcd".index(pair.first)] - logs["abcd".index(pair.second)]
        assert pair.probability == pytest.approx(1 / (1 + math.exp(-difference)), abs=0.03)
        assert pair.p <= pair.adjusted < 0.001


def test_of_two_methods_the_model_is_the_rate() -> None:
    from konkyo.survey.preference import rate_of

    form = form_of(["a", "b"], 30)
    votes = Votes.of(answers_of(form, 10, [0.5, -0.5], np.random.default_rng(3), ties=0), form.methods)
    rate, low, high, p, _ = rate_of(votes)
    pair = Strengths.of(votes, resamples=0, seed=0).pairs[0]
    assert (pair.probability, pair.low, pair.high, pair.p) == pytest.approx((rate, low, high, p), rel=1e-6)


def test_intervals_of_strengths_hold_the_truth() -> None:
    """60 surveys of 12 raters and 24 items, whose raters and items differ: 240 intervals, 90 % or more hold it."""
    logs = np.array([0.5, 0.0, -0.5])
    form = form_of(["a", "b", "c"], 24)
    generator = np.random.default_rng(4)
    hits = []
    for _ in range(60):
        answers = answers_of(form, 12, logs, generator, deviations=(0.5, 0.5), ties=0)
        for s in Strengths.of(Votes.of(answers, form.methods), resamples=0, seed=0).methods:
            truth = logs["abc".index(s.method)] / math.sqrt(1 + 0.5 / 1.7**2)  # effects flatten shares so much
            hits.append(s.low <= truth <= s.high)
    assert np.mean(hits) > 0.9


def test_a_method_that_never_won_is_told_and_not_infinite() -> None:
    games = [("a", "b", "left"), ("a", "b", "right"), ("a", "c", "left"), ("b", "c", "left"), ("c", "b", "right")]
    strengths = Strengths.of(votes_of(("a", "b", "c"), games), resamples=50, seed=0)
    assert strengths.groups == (("a", "b"), ("c",))
    assert strengths.methods == strengths.pairs == ()
    tied = Strengths.of(votes_of(("a", "b", "c"), [*games, ("c", "a", "tie")]), resamples=0, seed=0)
    assert tied.groups == ()
    assert tied.methods[-1].method == "c"
    assert all(math.isfinite(s.value) for s in tied.methods)


def test_methods_that_were_never_compared_are_apart() -> None:
    games = [("a", "b", "left"), ("a", "b", "right"), ("c", "d", "left"), ("c", "d", "right")]
    assert len(separated(tables(votes_of(("a", "b", "c", "d"), games), np.ones((1, 4)))[0])) == 2


def test_bootstrap_intervals_of_strengths_are_there_and_wider() -> None:
    form = form_of(["a", "b", "c"], 24)
    votes = Votes.of(answers_of(form, 10, [0.4, 0, -0.4], np.random.default_rng(5)), form.methods)
    strengths = Strengths.of(votes, resamples=200, seed=0)
    for s in strengths.methods:
        assert s.bootstrap_low < s.value < s.bootstrap_high
    again = Strengths.of(votes, resamples=200, seed=0)
    assert again == strengths
