"""Rates, their intervals and tests: brute force, other libraries, simulated raters."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from helpers.simulated_raters import table_of
from konkyo.survey.power import Population, complete
from konkyo.survey.preference import Preference, SignTest, rate_of, sign_test
from konkyo.survey.votes import Votes, percentiles, pigeonhole, resampled, standard_error
from konkyo.utils.statistics import holm

METHODS = ("ours", "theirs")


def votes_of(*rows: list[str]) -> Votes:
    return Votes.of(table_of(rows), METHODS)


def preference_of(votes: Votes, **changes: object) -> Preference:
    values = {"raters": "all", "ties": "dropped", "resamples": 200, "seed": 0} | changes
    return Preference.of(votes, **values)  # type: ignore[arg-type]


def test_the_questionnaire_of_the_paper() -> None:
    """11 of 15 items: p = 0.118, counting all outcomes as far from one half; 44.9-92.2 %; Wilson 48-89.1 %."""
    test = SignTest.of(11, 4)
    extreme = sum(math.comb(15, k) for k in range(16) if abs(k - 7.5) >= 3.5) / 2**15
    assert test.p == pytest.approx(extreme, abs=1e-12)
    assert test.p == pytest.approx(0.118, abs=5e-4)
    assert (test.low, test.high) == pytest.approx((0.449, 0.922), abs=5e-4)
    assert (test.wilson_low, test.wilson_high) == pytest.approx((0.480, 0.891), abs=5e-4)


def test_intervals_of_shares_are_those_of_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for k, n in ((0, 6), (3, 11), (11, 15), (24, 24)):
        test = SignTest.of(k, n - k)
        assert (test.low, test.high) == pytest.approx(proportion.proportion_confint(k, n, method="beta"), abs=1e-9)
        wilson = proportion.proportion_confint(k, n, method="wilson")
        assert (test.wilson_low, test.wilson_high) == pytest.approx(wilson, abs=1e-9)


def test_holm_is_that_of_statsmodels() -> None:
    multiple = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).random(12) ** 3
    assert holm(p.tolist()) == pytest.approx(multiple.multipletests(p, method="holm")[1].tolist(), abs=1e-12)
    assert holm([0.01, math.nan, 0.04])[0::2] == pytest.approx([0.02, 0.04])


def test_majorities_of_items_and_their_ties() -> None:
    votes = votes_of(["ours", "ours", "theirs", "tie"], ["ours", "tie", "ours", "tie"], ["theirs", "tie", "tie", ""])
    assert votes.by_item().tolist() == [[2, 0, 1], [1, 2, 0], [1, 1, 1], [0, 2, 0]]
    test = sign_test(votes)
    assert (test.wins, test.losses, test.draws) == (2, 0, 2)


def test_sides_do_not_matter_for_what_is_preferred() -> None:
    one, other = table_of([["ours", "theirs", "tie"]]), table_of([["theirs", "ours", "tie"]], METHODS[::-1])
    assert Votes.of(one, METHODS).outcome.tolist() == [1, 0, 0.5]
    assert Votes.of(other, METHODS).outcome.tolist() == [0, 1, 0.5]
    assert Votes.of(one, METHODS[::-1]).outcome.tolist() == [0, 1, 0.5]


def test_the_standard_error_is_the_analysis_of_variance_of_crossed_raters_and_items() -> None:
    """(MS_raters + MS_items - MS_rest) / N, written out with means over a complete table."""
    y = (np.random.default_rng(4).random((7, 9)) < np.linspace(0.2, 0.95, 9)).astype(float)
    y[0] = 1
    votes = complete(y)
    raters, items = y.shape
    of_rater = items * ((y.mean(1) - y.mean()) ** 2).sum() / (raters - 1)
    of_item = raters * ((y.mean(0) - y.mean()) ** 2).sum() / (items - 1)
    rest = ((y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()) ** 2).sum() / ((raters - 1) * (items - 1))
    squares = np.array([of_rater, of_item, -rest]) / y.size
    error = standard_error((y.ravel() - y.mean()) / y.size, votes)
    assert error.value == pytest.approx(math.sqrt(squares.sum()), rel=1e-9)
    free = np.array([raters - 1, items - 1, (raters - 1) * (items - 1)])
    assert error.freedom == pytest.approx(squares.sum() ** 2 / (squares**2 / free).sum(), rel=1e-9)


def test_incomplete_tables_go_through_least_squares() -> None:
    """The same table, once complete and once with a lone vote of another rater on another item, of no weight."""
    y = (np.random.default_rng(5).random((6, 8)) < 0.6).astype(float)
    votes = complete(y)
    influence = (y.ravel() - y.mean()) / y.size
    names = (*votes.raters, "more"), (*votes.items, "more")
    arrays = [np.append(a, b) for a, b in ((votes.rater, 6), (votes.item, 8), (votes.first, 0), (votes.second, 1))]
    more = Votes(votes.methods, *names, *arrays, np.append(votes.outcome, 0.5))
    from konkyo.survey.votes import _noise

    one, other = _noise(influence, votes), _noise(np.append(influence, 0.0), more)
    assert other[1] == one[1] == 35
    assert other[0] / 49 == pytest.approx(one[0] / 48, rel=1e-9)


def test_the_pigeonhole_bootstrap_draws_raters_and_items() -> None:
    """A vote weighs its rater's times its item's count: all weights of a resample form a table of rank 1."""
    votes = complete(np.ones((4, 5)))
    weights = np.concatenate(list(pigeonhole(votes, 50, 3)))
    assert weights.shape == (50, 20)
    for row in weights.reshape(50, 4, 5):
        assert np.linalg.matrix_rank(row) == 1
        assert row.sum() == 20
    assert not np.array_equal(weights, np.concatenate(list(pigeonhole(votes, 50, 4))))


def test_the_bootstrap_of_two_raters_and_two_items_by_all_resamples() -> None:
    """All 2^2 x 2^2 draws are enumerated; the percentiles of many resamples are theirs."""
    y = np.array([[1.0, 1.0], [1.0, 0.0]])
    rates = sorted(
        float(np.mean([y[r, i] for r in raters for i in items]))
        for raters, items in product(product(range(2), repeat=2), repeat=2)
    )
    drawn = resampled(complete(y), lambda w: w @ y.ravel() / w.sum(1), 20_000, 0)
    for value in sorted(set(rates)):
        assert (drawn == value).mean() == pytest.approx(rates.count(value) / 16, abs=0.015)
    assert percentiles(drawn) == (0.0, 1.0)


def test_ties_are_dropped_or_count_half() -> None:
    votes = votes_of(["ours", "tie", "theirs", "ours"], ["ours", "tie", "tie", "tie"])
    dropped, half = preference_of(votes), preference_of(votes, ties="half")
    assert (dropped.votes, dropped.rate, dropped.tied) == (4, 0.75, 0.5)
    assert (half.votes, half.rate) == (8, 0.625)


@pytest.mark.parametrize(
    ("rows", "votes", "rate"),
    [
        ([["tie", "tie"], ["tie", "tie"]], 0, math.nan),
        ([["ours"] * 6] * 3, 18, 1.0),
        ([["theirs"] * 6] * 3, 18, 0.0),
        ([["ours", "theirs", "ours", "ours"]], 4, 0.75),
        ([["ours"], ["theirs"], ["theirs"]], 3, 1 / 3),
        ([["ours"]], 1, 1.0),
    ],
)
def test_tables_at_the_edge(rows: list[list[str]], votes: int, rate: float) -> None:
    result = preference_of(votes_of(*rows))
    assert result.votes == votes
    assert result.rate == pytest.approx(rate, nan_ok=True)
    if not math.isnan(result.low):
        assert 0 <= result.low <= result.rate <= result.high <= 1
        assert 0 < result.p <= 1


def test_of_no_spread_the_interval_is_that_of_the_fewer_of_raters_and_items() -> None:
    rate, low, high, p, effective = rate_of(votes_of(*[["ours"] * 6] * 3))
    assert (rate, high, effective) == (1, 1, 3)
    assert low == pytest.approx(0.025 ** (1 / 3))  # all of three: (1 - share)^3 = 0.025 at the end
    assert p == 0.25


def test_votes_that_agree_are_worth_fewer() -> None:
    """Of identical raters only the items count; of votes without any pattern, nearly all of them."""
    outcomes = (np.random.default_rng(6).random(40) < 0.6).astype(float)
    alike = preference_of(complete(np.tile(outcomes, (30, 1))), resamples=0)
    assert alike.effective == pytest.approx(39, rel=0.02)
    free = [rate_of(Population(0.6, 0, 0).draw(30, 40, np.random.default_rng(seed)))[4] for seed in range(30)]
    assert 700 < np.median(free) <= 1200.5


def test_a_preference_of_one_rater_speaks_of_items() -> None:
    votes = votes_of(["ours", "theirs", "ours", "ours", "theirs"])
    error = standard_error((votes.outcome - 0.6) / 5, votes)
    assert error.value == pytest.approx(np.std(votes.outcome, ddof=1) / math.sqrt(5))
    assert error.freedom == pytest.approx(4)


@pytest.mark.parametrize(
    ("raters", "items", "rate", "deviations"), [(5, 10, 0.7, (0.5, 1.0)), (30, 15, 0.7, (1.0, 1.0))]
)
def test_intervals_over_votes_cover(raters: int, items: int, rate: float, deviations: tuple[float, float]) -> None:
    """Of 300 surveys 95 % or more hold the rate, but for chance (0.95 - 2.5 standard errors)."""
    population = Population(rate, *deviations)
    generator = np.random.default_rng(7)
    ends = np.array([rate_of(population.draw(raters, items, generator))[1:3] for _ in range(300)])
    covered = ((ends[:, 0] <= rate) & (rate <= ends[:, 1])).mean()
    assert covered > 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / 300)


def test_votes_taken_for_independent_would_not_cover() -> None:
    """Why all this: the interval of a binomial share holds the rate far too rarely when raters and items differ."""
    population = Population(0.7, 0.5, 1.0)
    generator = np.random.default_rng(8)
    hits = []
    for _ in range(300):
        rate = population.draw(30, 15, generator).outcome.mean()
        hits.append(abs(rate - 0.7) < 1.96 * math.sqrt(rate * (1 - rate) / 450))
    assert np.mean(hits) < 0.75
