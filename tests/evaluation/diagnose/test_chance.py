"""Chance: sign flips against all signs written out, and error rates."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from konkyo.evaluation.diagnose.chance import interval_of_mean, joint_p, p_values, sign_flips


def test_sign_flips_come_near_to_all_signs_written_out() -> None:
    differences = np.random.default_rng(1).normal(0.4, 1, (9, 2))
    root = np.sqrt((differences**2).mean(0))
    actual = differences.mean(0) / root
    flipped = np.array(
        [(np.array(signs)[:, None] * differences).mean(0) / root for signs in product((-1, 1), repeat=9)]
    )
    alone = (flipped >= actual - 1e-12).mean(0)
    together = (flipped.max(1, keepdims=True) >= actual - 1e-12).mean(0)
    p, p_all = sign_flips(differences, 20_000, seed=3)
    assert np.allclose(p, alone, atol=0.01)
    assert np.allclose(p_all, together, atol=0.01)
    assert (p_all >= p).all()


def test_sign_flips_hold_their_rate_where_nothing_but_chance_acts() -> None:
    generator = np.random.default_rng(2)
    smallest = [sign_flips(generator.standard_t(4, (20, 4)), 200, seed)[1].min() for seed in range(400)]
    assert 0.02 <= np.mean(np.array(smallest) <= 0.05) <= 0.09


def test_a_column_of_zeros_is_no_effect() -> None:
    p, p_all = sign_flips(np.zeros((8, 3)), 100)
    assert (p == 1).all()
    assert (p_all == 1).all()


def test_a_p_value_counts_the_actual_value_itself() -> None:
    chance = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    assert p_values(chance, np.array([1.0, 3.0])).tolist() == [0.75, 0.25]
    assert float(p_values(chance[:, 0], 0.0)) == 1.0


def test_the_interval_of_a_mean_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = interval_of_mean(values, 2000)
    assert low == pytest.approx(values.mean() - 1.96 * 0.05, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * 0.05, abs=0.02)


def test_joint_p_holds_its_error_rate() -> None:
    rng = np.random.default_rng(0)
    low = sum(min(joint_p([rng.normal(size=10) for _ in range(15)], 200, seed)) <= 0.05 for seed in range(200))
    assert 2 <= low <= 20  # 5 % of 200
    assert joint_p([np.full(12, 0.1), rng.normal(size=12)], 1000)[0] <= 0.01
