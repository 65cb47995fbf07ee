"""What a consistency result says: its tables, its remarks, and the alarm of a class whose maps gather in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from konkyo.evaluation.result import Table, bracketed, number

if TYPE_CHECKING:
    from konkyo.evaluation.consistency.result import Consistency

PLACELESS = 0.85
"""From this W / T on, classes hardly say where to look: 0.92 is measured for objects anywhere, 0.44 for fixed ones."""
FEW = 10
"""Of fewer maps in a class, the interval of its L is rough."""
NOT_CORRECTNESS = (
    "Consistency is not correctness: maps can agree on the wrong place. `konkyo evaluate` measures whether they are "
    "right."
)
"""The remark that every report on consistency ends with."""
NOT_MERIT = (
    "A low L is no merit by itself: a marker, such as a watermark in one class, gives it too. `konkyo diagnose` tests "
    "whether a class rests on one place."
)
"""The remark before it."""


def table(result: Consistency) -> Table:
    """Returns a table with a line per class that has images, and one for all."""
    head = ["class", "images", "correct", "used", "blank", "L [95 %]", "L (Eq. 10)", "RMS", "W"]
    lines = [
        [
            c.name,
            *map(str, (c.total, c.correct, c.used, c.blank)),
            *_cells(c.value, c.low, c.high, c.plain, c.rms, c.within),
        ]
        for c in result.of_class
        if c.total or c.used
    ]
    sums = [sum(getattr(c, name) for c in result.of_class) for name in ("total", "correct", "used", "blank")]
    overall = _cells(result.value, result.low, result.high, result.plain, result.rms, result.within)
    return head, [*lines, ["all", *map(str, sums), *overall]]


def summary(result: Consistency) -> Table:
    """Returns a table with a line per number of the whole data set, and lines for the baselines."""
    rows = [
        [f"L ({result.distance})", bracketed(result.value, result.low, result.high)],
        ["L, the mean of classes", number(result.macro)],
        ["L as defined (Eq. 10)", number(result.plain)],
        ["W", bracketed(result.within, result.within_low, result.within_high)],
        ["W / T", bracketed(result.ratio, result.ratio_low, result.ratio_high)],
        ["W / T of shuffled labels", f"{number(result.shuffled)} (p = {number(result.p)})"],
        ["coverage", number(result.coverage)],
        ["accuracy", number(result.accuracy)],
        ["kappa", number(result.kappa)],
        ["L of wrong decisions", f"{number(result.wrong)} ({result.wrong_count} maps)"],
        *([f"L in {name}", number(value)] for name, value in result.distances.items() if name != result.distance),
    ]
    for name, baseline in result.baselines.items():
        ratio = "" if math.isnan(baseline.ratio) else f", W / T {number(baseline.ratio)}"
        rows.append([f"baseline: {name}", f"L {number(baseline.value)}{ratio}"])
    return ["of all", "value"], rows


def remarks(result: Consistency) -> list[str]:
    """Returns the sentences that a reader of the numbers has to know."""
    total, used = len(result.images), sum(c.used for c in result.of_class)
    lines = [f"Maps: {used} of {total} images are used; {result.blank} are blank and left out."]
    if alone := [c.name for c in result.of_class if c.total and not c.used]:
        lines.append(f"Classes with fewer than two maps, not measured: {', '.join(alone[:10])}.")
    if few := [f"{c.name} ({c.used})" for c in result.of_class if 0 < c.used < FEW]:
        lines.append(
            f"Fewer than {FEW} maps: {', '.join(few[:10])}. Intervals of so few are wide and rough: see "
            "docs/consistency.md."
        )
    if result.ratio > PLACELESS:
        lines.append(
            f"W / T is {result.ratio:.2f}, above {PLACELESS}: maps of one class are hardly more alike than maps of "
            "any. Position is not defined by the class here, and a low L only says that all maps are alike."
        )
    if result.distance == "l2_over_hw":
        lines.append("l2_over_hw falls with the number of cells: compare it at one grid only.")
    if (marked := alarm(result)) is not None:
        lines.append(marked[1]["en"])
    return [*lines, NOT_MERIT, NOT_CORRECTNESS, *result.notes]


def alarm(result: Consistency) -> tuple[str, dict[str, str]] | None:
    """As of `Consistency.alarm`."""
    known = [i for i, c in enumerate(result.of_class) if c.used]
    if len(known) < 2:
        return None
    from konkyo.evaluation.diagnose.cue_test import RULE, excesses  # that package measures consistency, too

    lowest = min(range(len(known)), key=lambda place: result.of_class[known[place]].value)
    excess = float(excesses(result.mean[known])[lowest])
    if excess < RULE.medium:
        return None
    name = result.of_class[known[lowest]].name
    return name, {
        "en": f"L is lowest in {name}, and its maps gather in one window ({excess:.2f} more of the map than in "
        "other classes): a marker? `konkyo diagnose --ask cue` covers and pastes that window.",
        "ja": f"L は {name} で最も低く、そのマップは一か所に集中しています（他クラスより {excess:.2f} 多い）。"
        "目印でしょうか。`konkyo diagnose --ask cue` でその部分を隠し、貼り付けて調べられます。",
    }


def _cells(value: float, low: float, high: float, *others: float) -> list[str]:
    return [bracketed(value, low, high), *map(number, others)]
