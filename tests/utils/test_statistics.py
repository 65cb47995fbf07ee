"""Statistics of a handful of trainings: when scipy is loaded, and ranks with ties."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from konkyo.utils.statistics import Correlation, interval_of_share

LOADED = "import sys; {}; print(any(name.split('.')[0] == 'scipy' for name in sys.modules))"


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import konkyo; konkyo.explain", False),
        ("import konkyo.apps.cli.main", False),
        ("import konkyo.utils.statistics", False),
        ("from konkyo.utils.statistics import t_quantile; t_quantile(0.975, 3)", True),
    ],
)
def test_scipy_is_loaded_when_it_is_used(statement: str, loaded: bool) -> None:
    run = subprocess.run([sys.executable, "-c", LOADED.format(statement)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(loaded)


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
