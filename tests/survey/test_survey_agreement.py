"""Agreement beyond chance: worked examples of the literature, other libraries, and counting all pairs."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from helpers.simulated_raters import table_of
from konkyo.survey.agreement import Agreement, fleiss, krippendorff
from konkyo.survey.votes import Votes

_ = 0  # no answer
FOUR_OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
"""Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: alpha = 0.743, answers missing."""
TWO_OBSERVERS = [[1, 2, 1, 1, 1, 1, 1, 1, 2, 1], [2, 2, 2, 1, 1, 2, 1, 1, 1, 1]]
"""The same, section A: alpha = 0.095."""
FOURTEEN_RATERS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""The worked example of Fleiss' kappa that textbooks and Wikipedia print: P = 0.378, P_e = 0.213, kappa = 0.210."""


def counts_of(table: list[list[int]]) -> np.ndarray:
    values = np.array(table)
    return np.stack([(values == k).sum(0) for k in range(1, values.max() + 1)], 1)


def test_krippendorffs_own_examples() -> None:
    assert krippendorff(counts_of(FOUR_OBSERVERS)) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff(counts_of(TWO_OBSERVERS)) == pytest.approx(0.095, abs=5e-4)


def test_fleiss_worked_example() -> None:
    assert fleiss(np.array(FOURTEEN_RATERS)) == pytest.approx((0.378, 0.213, 0.210), abs=5e-4)


def test_kappa_is_that_of_statsmodels() -> None:
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    counts = np.random.default_rng(0).multinomial(7, [0.5, 0.2, 0.3], 20)
    assert fleiss(counts)[2] == pytest.approx(inter_rater.fleiss_kappa(counts), abs=1e-12)


def test_alpha_counts_pairs_of_answers() -> None:
    """By its definition over pairs of answers, each of an item's weighed by 1 / (n - 1), with answers missing."""
    generator = np.random.default_rng(1)
    answers = generator.integers(0, 4, (6, 15))  # 0: none
    kept = [column[column > 0] for column in answers.T]
    kept = [column for column in kept if len(column) > 1]
    within = sum(sum(a != b for a, b in permutations(column, 2)) / (len(column) - 1) for column in kept)
    every = np.concatenate(kept)
    among = sum(a != b for a, b in permutations(every, 2)) / (len(every) * (len(every) - 1))
    expected = 1 - within / len(every) / among
    assert krippendorff(counts_of(answers.tolist())) == pytest.approx(expected, abs=1e-12)


def test_who_agrees_by_chance_alone_and_who_agrees_always() -> None:
    chance = np.random.default_rng(2).multinomial(10, [0.6, 0.4], 4000)
    assert fleiss(chance)[2] == pytest.approx(0, abs=0.02)
    assert krippendorff(chance) == pytest.approx(0, abs=0.02)
    always = np.array([[5, 0], [0, 5], [5, 0]])
    assert fleiss(always)[2] == krippendorff(always) == 1


def test_what_is_not_known_is_nan() -> None:
    for counts in (np.zeros((0, 3), dtype=np.int64), np.array([[4, 0, 0], [3, 0, 0]])):
        assert math.isnan(fleiss(counts)[2])
        assert math.isnan(krippendorff(counts))


def test_items_with_one_answer_say_nothing() -> None:
    votes = Votes.of(table_of([["ours", "ours", ""], ["theirs", "ours", ""], ["", "", "ours"]]), ("ours", "theirs"))
    agreement = Agreement.of(votes)
    assert (agreement.items, agreement.answers) == (2, 4)
    assert agreement.observed == 0.5
