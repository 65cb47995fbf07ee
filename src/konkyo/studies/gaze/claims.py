"""The claims of the paper on gaze consistency (Yonemura), and what the runs of a study say of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from konkyo.evaluation.result import Table, bracketed
from konkyo.utils.statistics import Correlation, Estimate

if TYPE_CHECKING:
    from konkyo.studies.gaze.report import GazeReport

CONFIRMED, REFUTED, UNKNOWN = "confirmed", "refuted", "cannot be told"
LITTLE = 0.02
"""A gain of accuracy of at most two points is limited."""
WEAK = 0.3
"""A correlation whose interval stays within this is none."""


def claims(report: GazeReport) -> Table:
    """Returns the table of claims: verdict, effect with its 95 % interval, and the table that it is from.

    Verdicts follow the rules in the first column's sentences: an interval that lies wholly on one side decides, any
    other one leaves it open. They are of this study's data alone.
    """
    strengths = sorted({strength for _, strength in report.settings()})
    above, below = ([s for s in strengths if sign * s > 0] for sign in (1, -1))
    rows = [_correlated(report)]
    rows += (
        [_consistent(report, "A positive weight makes maps more alike: L / L(0) below 1", above, 1)] if above else []
    )
    rows += [_consistent(report, "A negative weight makes maps differ: L / L(0) above 1", below, -1)] if below else []
    if above:
        rows += [_limited(report, above), _in_most(report, above)]
    if 1 in report.levels and len(report.levels) > 1:
        rows += [_level_one(report, "published", "L as published"), _level_one(report, "rms", "RMS")]
    for claim in ("What the loss does depends on the data", "It helps where a class defines the place"):
        rows.append([claim, UNKNOWN, _places(report), "one study is of one data set: compare two"])
    return ["the paper's claim, and the rule", "verdict here", "effect [95 %]", "from"], rows


def over_splits(values: Mapping[tuple[int, int], float]) -> Estimate:
    """Returns the estimate of numbers by (split, seed).

    With several splits its interval is of the splits' means: the seeds of a split share its images.
    """
    groups: dict[int, list[float]] = {}
    for (split, _), value in values.items():
        groups.setdefault(split, []).append(value)
    return Estimate.of_groups(groups.values())


def _over(report: GazeReport) -> int | None:
    """Returns the level that effects are of; None: the mean over several."""
    return None if len(report.levels) > 1 else report.levels[0]


def _sides(estimates: Sequence[Estimate], middle: float) -> list[int]:
    """Returns on which side of the middle each interval lies; 0: it holds it, or there is none."""
    return [1 if e.low > middle else -1 if e.high < middle else 0 for e in estimates]


def _listed(strengths: Sequence[float], estimates: Sequence[Estimate], *, signed: bool = False) -> str:
    cells = [bracketed(e.mean, e.low, e.high, signed) for e in estimates]
    return "; ".join(f"λ = {s:g}: {cell}" for s, cell in zip(strengths, cells, strict=True))


def _correlated(report: GazeReport) -> list[str]:
    every = report.correlations("accuracy", "L")
    chosen = {name: c for name, c in every.items() if name.startswith(("level", "λ = 0"))} or every
    known = {name: c for name, c in chosen.items() if math.isfinite(c.low)}
    sides = {1 if c.low > 0 else -1 if c.high < 0 else 0 for c in known.values()}
    none = any(c.low > -WEAK and c.high < WEAK for c in known.values())
    verdict = CONFIRMED if {1, -1} <= sides or none else REFUTED if sides in ({1}, {-1}) else UNKNOWN
    rule = (
        "Accuracy and consistency need not be correlated: intervals of r on both sides of 0, or one within "
        f"±{WEAK}; refuted if all are on one side"
    )
    return [rule, verdict, "; ".join(f"{name}: {_r(c)}" for name, c in chosen.items()) or "-", "accuracy against L"]


def _r(c: Correlation) -> str:
    return bracketed(c.pearson, c.low, c.high)


def _consistent(report: GazeReport, claim: str, strengths: Sequence[float], sign: int) -> list[str]:
    ratios = [report.ratio(_over(report), strength, "L") for strength in strengths]
    sides = _sides(ratios, 1.0)
    verdict = CONFIRMED if set(sides) == {-sign} else REFUTED if sign in sides else UNKNOWN
    return [claim, verdict, _listed(strengths, ratios), f"differences, {_lines(report)}"]


def _lines(report: GazeReport) -> str:
    return 'lines "all"' if len(report.levels) > 1 else "all lines"


def _limited(report: GazeReport, strengths: Sequence[float]) -> list[str]:
    gains = [report.difference(_over(report), strength, "accuracy") for strength in strengths]
    sides = _sides(gains, LITTLE)
    verdict = REFUTED if 1 in sides else CONFIRMED if set(sides) == {-1} else UNKNOWN
    rule = f"Accuracy gains little by it: Δ below {LITTLE}; refuted if one is above"
    return [rule, verdict, _listed(strengths, gains, signed=True), f"differences, {_lines(report)}"]


def _in_most(report: GazeReport, strengths: Sequence[float]) -> list[str]:
    gains = [report.difference(level, s, "accuracy") for level in report.levels for s in strengths]
    sides = [side for side, gain in zip(_sides(gains, 0.0), gains, strict=True) if gain.n]
    up, down = sides.count(1), sides.count(-1)
    verdict = CONFIRMED if 2 * up > len(sides) else REFUTED if 2 * down > len(sides) else UNKNOWN
    rule = "Accuracy rises in many networks: Δ above 0 in most of them; refuted if it is below 0 in most"
    return [rule, verdict, f"above 0 in {up}, below in {down} of {len(sides)}", "differences, lines of levels"]


def _level_one(report: GazeReport, column: str, name: str) -> list[str]:
    numbers = report.numbers(1, 0.0, column)
    others = [report.numbers(level, 0.0, column) for level in report.levels if level != 1]
    apart = {
        key: value - sum(of_level[key] for of_level in others) / len(others)
        for key, value in numbers.items()
        if all(key in of_level for of_level in others)
    }
    difference = over_splits(apart)
    (side,) = _sides([difference], 0.0)
    verdict = {1: REFUTED, -1: CONFIRMED, 0: UNKNOWN}[side]
    effect = bracketed(difference.mean, difference.low, difference.high, True)
    return [
        f"Level 1 is the most consistent by {name}: less than the mean of the others",
        verdict,
        effect,
        "runs, λ = 0",
    ]


def _places(report: GazeReport) -> str:
    ratio = report.estimate(_over(report), 0.0, "wt")
    return f"W/T without the loss: {bracketed(ratio.mean, ratio.low, ratio.high)}"
