"""Power: against sums of probabilities, against statsmodels' style of counting, and what the paper could have shown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from konkyo.errors import KonkyoError
from konkyo.survey.counts import Counts
from konkyo.survey.power import Population, critical_count, exact_power, needed_count, power


def two_sided(k: int, n: int) -> float:
    return min(1.0, sum(math.comb(n, j) for j in range(n + 1) if abs(2 * j - n) >= abs(2 * k - n)) / 2**n)


@pytest.mark.parametrize("n", [1, 5, 6, 15, 24, 27, 30, 61])
def test_the_least_significant_count_by_brute_force(n: int) -> None:
    significant = [k for k in range(n + 1) if 2 * k > n and two_sided(k, n) <= 0.05]
    assert critical_count(n) == (min(significant) if significant else None)


def test_power_is_the_sum_of_probabilities() -> None:
    for n, rate in ((15, 0.7), (24, 0.8), (5, 0.9)):
        least = critical_count(n)
        expected = (
            0.0
            if least is None
            else sum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(least, n + 1))
        )
        assert exact_power(n, rate) == pytest.approx(expected, abs=1e-12)


def test_the_needed_number_of_items_is_the_last_that_would_not_do_and_one() -> None:
    for rate in (0.7, 0.8, 0.9):
        needed = needed_count(rate)
        assert needed is not None
        assert exact_power(needed - 1, rate) < 0.8
        assert all(exact_power(n, rate) >= 0.8 for n in range(needed, 3 * needed))
    assert needed_count(0.501) is needed_count(0.5) is None


def test_what_the_paper_of_15_items_could_have_shown() -> None:
    counts = Counts.parse("11/15", (30, 27))
    assert counts.needed == 12
    assert [round(share, 2) for _, share, _ in counts.power] == [0.30, 0.65, 0.94]
    assert counts.of_item == ((30, 21), (27, 20))
    lines = " ".join(counts.lines())
    for words in ("p = 0.118", "45%–92%", "not significant", "12 won items", "450 votes", "not independent"):
        assert words in lines
    assert "p = 0.118" in " ".join(counts.lines("ja"))


@pytest.mark.parametrize("text", ["11", "16/15", "0/0", "a/b", "-1/4", "1.5/4"])
def test_counts_that_are_none(text: str) -> None:
    with pytest.raises(KonkyoError, match="11/15"):
        Counts.parse(text)


def test_few_items_show_nothing_whatever_they_say() -> None:
    counts = Counts.of(5, 5)
    assert counts.needed is None
    assert "all of them would not do" in counts.lines()[1]


@pytest.mark.parametrize("deviations", [(0.0, 0.0), (0.5, 1.0), (2.0, 0.0)])
def test_a_population_has_its_rate(deviations: tuple[float, float]) -> None:
    """The rate of 200 x 200 votes: its standard error is below 0.03 with a deviation of 2 of raters."""
    votes = Population(0.8, *deviations).draw(400, 400, np.random.default_rng(0))
    assert votes.outcome.mean() == pytest.approx(0.8, abs=0.05)


def test_simulated_power_without_effects_is_the_exact_one_of_many_items() -> None:
    """One rater: an item's majority is its vote, so that the simulated sign test has the exact power."""
    result = power(1, 20, 0.8, population=Population(0.8, 0, 0), simulations=300)
    assert result.majorities == pytest.approx(result.exact, abs=0.06)


def test_raters_cannot_replace_items() -> None:
    """Where items differ much and there are few, three times the raters hardly help; three times the items do."""
    few, raters, items = (
        power(r, i, 0.7, population=Population(0.7, 0.5, 2.0), simulations=100).votes
        for r, i in ((10, 8), (30, 8), (10, 24))
    )
    assert items > few + 0.2
    assert items > raters + 0.15


def test_power_says_what_it_needs() -> None:
    for arguments in ((0, 15, 0.7), (30, 0, 0.7), (30, 15, 0.5), (30, 15, 1.0)):
        with pytest.raises(KonkyoError, match=r"between 0\.5 and 1"):
            power(*arguments)
    with pytest.raises(KonkyoError, match="rate between 0 and 1"):
        Population(1.0).draw(2, 2, np.random.default_rng(0))
