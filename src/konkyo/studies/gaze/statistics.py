"""Correlations of kappa and L over trained models and over epochs, and the line through their points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from konkyo.studies.gaze.run import Run
from konkyo.utils.statistics import CENTRAL, Correlation, t_quantile


@dataclass(frozen=True)
class LineFit:
    """A straight line and its band, at as many places as it is drawn with."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def across_models(runs: Sequence[Run]) -> dict[str, Correlation]:
    """kappa against L over trained models, a point each, by the name of the selection.

    The selections are: all models, each level, those whose maps are not made to differ, those without the loss, and
    "within λ", of what is left when the mean of every level and lambda is taken out.
    """
    correlations = {"all models": _kappa_against_l(runs)}
    levels, strengths = sorted({run.level for run in runs}), {run.strength for run in runs}
    if len(levels) > 1:
        correlations |= {f"level {n}": _kappa_against_l([run for run in runs if run.level == n]) for n in levels}
    if min(strengths, default=0.0) < 0 < max(strengths):
        correlations["λ ≥ 0"] = _kappa_against_l([run for run in runs if run.strength >= 0])
    if 0 in strengths and len(strengths) > 1:
        correlations["λ = 0"] = _kappa_against_l([run for run in runs if run.strength == 0])
    settings = sorted({(run.level, run.strength) for run in runs})
    groups = [_centred(run for run in runs if (run.level, run.strength) == setting) for setting in settings]
    groups = [group for group in groups if len(group) > 1]
    if len(groups) > 1:
        x, y = ([point[i] for group in groups for point in group] for i in (0, 1))
        correlations["within λ"] = Correlation.of(x, y, held=len(groups) - 1)
    return correlations


def within_run(run: Run, burn_in: int) -> Correlation:
    """kappa against L over the validation epochs of a run after `burn_in`.

    It has no intervals: epochs are not independent.
    """
    late = [row for row in run.epochs if row["epoch"] > burn_in]
    x, y = ([row.get(column, math.nan) for row in late] for column in ("valid_L", "valid_kappa"))
    over_epochs, nan = Correlation.of(x, y), math.nan
    return Correlation(over_epochs.n, over_epochs.pearson, nan, nan, over_epochs.spearman, nan, nan)


def fitted(points: Sequence[tuple[float, float]]) -> LineFit | None:
    """Returns the line of least squares and the 95 % band of its mean; None of fewer than three points, or of one x.

    The band is y +- t s sqrt(1 / n + (x - mean)^2 / S).
    """
    n = len(points)
    x, y = [a for a, _ in points], [b for _, b in points]
    if n < 3 or max(x) - min(x) <= 1e-12:
        return None
    line = statistics.linear_regression(x, y)
    middle = statistics.fmean(x)
    spread = sum((a - middle) ** 2 for a in x)
    residual = sum((b - line.intercept - line.slope * a) ** 2 for a, b in points)
    reach = t_quantile((1 + CENTRAL) / 2, n - 2) * math.sqrt(residual / (n - 2))
    at = [min(x) + (max(x) - min(x)) * i / 60 for i in range(61)]
    fit = [line.intercept + line.slope * a for a in at]
    half = [reach * math.sqrt(1 / n + (a - middle) ** 2 / spread) for a in at]
    lower, upper = ([f + sign * h for f, h in zip(fit, half, strict=True)] for sign in (-1, 1))
    return LineFit(at, fit, lower, upper)


def _kappa_against_l(runs: Iterable[Run]) -> Correlation:
    pairs = [(run.value("L"), run.value("kappa")) for run in runs]
    return Correlation.of([x for x, _ in pairs], [y for _, y in pairs])


def _centred(runs: Iterable[Run]) -> list[tuple[float, float]]:
    """Returns (L, kappa) of runs, less their means."""
    pairs = [(run.value("L"), run.value("kappa")) for run in runs]
    known = [pair for pair in pairs if all(map(math.isfinite, pair))]
    middle = [statistics.fmean(column) for column in zip(*known, strict=True)]
    return [(x - middle[0], y - middle[1]) for x, y in known]
