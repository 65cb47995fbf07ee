"""Statistics of a handful of trainings: when scipy is loaded, and ranks with ties."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from konkyo.utils.statistics import Correlation, Estimate, interval_of_share, paired

STATEMENTS = {
    "import konkyo.apps.cli.main": False,
    "import konkyo.utils.statistics": False,
    "import konkyo; konkyo.explain": False,
    "konkyo.metrics.metrics()": False,  # torchmetrics would load it
    "konkyo.evaluate": False,
    "from konkyo.utils.statistics import t_quantile; t_quantile(0.975, 3)": True,
}


def test_scipy_is_loaded_when_it_is_used() -> None:
    """One statement after the other, in one process."""
    loaded = "import sys; print(any(name.split('.')[0] == 'scipy' for name in sys.modules))"
    program = "\n".join(f"{statement}; {loaded}" for statement in STATEMENTS)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert dict(zip(STATEMENTS, run.stdout.split(), strict=True)) == {s: str(of) for s, of in STATEMENTS.items()}


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    """x has the ranks 1, 2.5, 2.5, 4 and y 1, 2, 3, 4: the covariance 4.5 by the root of 4.5 times 5."""
    assert Correlation.of([0, 1, 1, 9], [1, 2, 4, 8]).spearman == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_a_perfect_order_is_exactly_one() -> None:
    """Its interval is itself; a rank correlation that is 1 to rounding only would get another one."""
    perfect = Correlation.of(range(7), [n**3 for n in range(7)])
    assert (perfect.spearman, perfect.spearman_low, perfect.spearman_high) == (1, 1, 1)


def test_wilson_against_a_table() -> None:
    """Of Newcombe (1998), Table I: 81 of 263 and 0 of 20."""
    assert interval_of_share(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert interval_of_share(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert all(map(math.isnan, interval_of_share(0, 0)))


def test_paired_differences_are_the_paired_t_tests() -> None:
    values, others = {0: 0.91, 1: 0.95, 2: 0.88, 5: 0.9}, {0: 0.85, 2: 0.87, 1: 0.9, 7: 0.1}
    pairs = list(paired(values, others).values())
    assert pairs == [(0.91, 0.85), (0.95, 0.9), (0.88, 0.87)]
    expected = stats.ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).confidence_interval(0.95)
    difference = Estimate.of(a - b for a, b in pairs)
    assert (difference.n, difference.low, difference.high) == pytest.approx((3, expected.low, expected.high))


def test_intervals_over_splits_hold_the_mean_where_those_of_all_values_do_not() -> None:
    """Values are split + seed, each of deviation 1: 400 studies of 5 splits and 4 seeds, whose mean is 0."""
    random = np.random.default_rng(0)
    values = random.normal(size=(400, 5, 1)) + random.normal(size=(400, 5, 4))
    grouped = [Estimate.of_groups(study.tolist()) for study in values]
    pooled = [Estimate.of(study.flatten().tolist()) for study in values]
    held, missed = (sum(e.low <= 0 <= e.high for e in estimates) / 400 for estimates in (grouped, pooled))
    assert 0.92 <= held <= 0.98  # 0.95 and three standard errors
    assert missed < 0.8
    one = values[0, 0].tolist()
    assert Estimate.of_groups([one, [math.nan]]) == Estimate.of(one)
    first = grouped[0]
    assert (first.n, first.mean) == pytest.approx((20, values[0].mean()))
    low, high = stats.t.interval(0.95, 4, values[0].mean(1).mean(), stats.sem(values[0].mean(1)))
    assert (first.low, first.high) == pytest.approx((low, high))
