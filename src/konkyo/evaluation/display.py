"""How evaluations, consistencies and sanity tests show themselves: in a line, in a notebook, and as figures."""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING

from konkyo.utils import markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from konkyo.evaluation.consistency.result import Consistency
    from konkyo.evaluation.recommend import Recommendation
    from konkyo.evaluation.result import Evaluation
    from konkyo.evaluation.sanity import Sanity

_TRACK = 110  # pixels of an interval's line
_PICTURE_BYTES = 200_000
_CLASSES = 24  # of mean maps in a notebook


def words_of_evaluation(result: Evaluation) -> str:
    """Returns the evaluation in a line, with the best method of the first metric that has one."""
    size = f"{len(result.methods)} methods x {len(result.columns)} metrics on {len(result.rows)} maps"
    column = next((c for c in result.columns if c.metric.better != "neither" and result.common(c.name).any()), None)
    if column is None:
        return f"Evaluation({size})"
    best = result.best(column.name)
    value = float(column.metric.over(result.statistics[best, column.name][result.common(column.name)]))
    return f"Evaluation({size}; best {column.name}: {best} {value:.2f})"


def html_of_evaluation(result: Evaluation) -> str:
    """Returns the table: values with their intervals as lines, the best in bold, what is worse marked, and remarks."""
    from konkyo.evaluation.result import ARROWS

    head = ["method", *(markup.escaped(f"{c.name} {ARROWS[c.metric.better]}") for c in result.columns), "absent"]
    ends = {}
    for column in result.columns:
        cells = [result.cell(m, column.name) for m in result.measured(column.name)]
        known = [v for c in cells for v in (c.value, c.low, c.high) if not math.isnan(v)]
        ends[column.name] = (min(known), max(known)) if known else (0.0, 1.0)
    rows = [
        [
            markup.escaped(m),
            *(_measured(result, m, c.name, ends[c.name]) for c in result.columns),
            str(result.absent.get(m, 0)),
        ]
        for m in result.methods
    ]
    key = "Bold: the best of a column. *: differs from it (p < 0.05, Holm). The line: the 95 % interval."
    return markup.block(
        markup.title(words_of_evaluation(result)),
        markup.table(head, rows),
        markup.note(key),
        *(markup.note(remark) for remark in result.remarks()),
    )


def plot_of_evaluation(result: Evaluation, metric: str | None) -> Figure:
    """Returns a figure of intervals; of a single metric that has curves, of these too."""
    from konkyo.draw.intervals import Measured, intervals_figure
    from konkyo.evaluation.result import ARROWS

    columns = result.columns if metric is None else (result.column(metric),)
    panels = []
    for column in columns:
        methods = result.measured(column.name)
        cells = [(m, result.cell(m, column.name)) for m in methods]
        if not any(cell.count for _, cell in cells):
            continue
        curves = {}
        if metric is not None and result.has_curve(column):
            curves = {m: result.curve(m, column.name).tolist() for m in methods}
        bests = () if column.metric.better == "neither" else result.bests(column.name)
        title = f"{column.name} {ARROWS[column.metric.better]} (n = {cells[0][1].count})"
        panels.append(Measured(title, [(m, c.value, c.low, c.high) for m, c in cells], bests, curves))
    return intervals_figure(panels, "points: mean; lines: 95 % interval by resampling images; blue: the best")


def words_of_consistency(result: Consistency) -> str:
    """Returns the consistency in a line."""
    from konkyo.evaluation.result import bracketed

    used = sum(c.used for c in result.of_class)
    interval = bracketed(result.value, result.low, result.high)
    ratio = bracketed(result.ratio, result.ratio_low, result.ratio_high)
    measured = sum(c.used > 0 for c in result.of_class)
    return f"Consistency(L {interval} in {result.distance}, W / T {ratio}; {used} maps, {measured} classes)"


def html_of_consistency(result: Consistency) -> str:
    """Returns the tables, the classes' mean maps, and the remarks."""
    from konkyo.draw.consistency import class_maps

    shown = [index for index, c in enumerate(result.of_class) if c.used][:_CLASSES]
    pictures = []
    if shown:
        names = [f"{result.classes[i]} ({result.of_class[i].used})" for i in shown]
        alt = f"Mean map and standard deviation of {', '.join(names)}"
        pictures.append(_picture(class_maps(names, result.mean[shown], result.deviation[shown]), alt))
        if (left := sum(c.used > 0 for c in result.of_class) - len(shown)) > 0:
            pictures.append(markup.note(f"... and {left} more classes: result.figures()."))
    return markup.block(
        markup.title(words_of_consistency(result)),
        *(_table(table) for table in (result.summary(), result.table())),
        *pictures,
        *(markup.note(remark) for remark in result.remarks()),
    )


def words_of_sanity(result: Sanity) -> str:
    """Returns the sanity test in a line."""
    return f"Sanity({result.test}: {'passed' if result.passed else 'FAILED'}; {result.verdict})"


def html_of_sanity(result: Sanity) -> str:
    """Returns the verdict, and how alike the maps are after every step."""
    rows = []
    for step, values in zip(result.steps, result.similarity, strict=True):
        known = values[~values.isnan()]
        mean = float(known.mean()) if len(known) else math.nan
        shown = "constant maps" if math.isnan(mean) else f"{_line(mean, mean, mean, (-1.0, 1.0))} {mean:.2f}"
        rows.append([markup.escaped(step), shown, str(len(known))])
    verdict = "passed" if result.passed else "failed"
    return markup.block(
        markup.title(f"Sanity test ({result.test}): {verdict}"),
        f"<div>{markup.escaped(result.verdict)}.</div>",
        markup.table(["what is random", "mean rank correlation, from -1 to 1", "maps"], rows),
    )


def html_of_recommendation(result: Recommendation) -> str:
    """Returns what to use and why, and the table of standings."""
    return markup.block(
        markup.title("Which method to use"),
        f"<div>{markup.escaped(result.sentence())}</div>",
        _table(result.table()),
        *(markup.note(remark) for remark in result.remarks()),
    )


# --- parts ------------------------------------------------------------------------------------------------------------


def _measured(result: Evaluation, method: str, name: str, ends: tuple[float, float]) -> str:
    if (method, name) not in result.statistics:
        return '<span style="opacity:0.6">not applicable</span>'
    cell = result.cell(method, name)
    if not cell.count:
        return '<span style="opacity:0.6">-</span>'
    text = f"{cell.value:.3f}"
    best = result.column(name).metric.better != "neither" and method in result.bests(name)
    text = f"<b>{text}</b>" if best else text + (" *" if method in result.differing(name) else "")
    if math.isnan(cell.low):
        return text
    return f'{text}<br><small style="opacity:0.75">{cell.low:.3f} to {cell.high:.3f}</small>' + _line(
        cell.low, cell.value, cell.high, ends
    )


def _line(low: float, value: float, high: float, ends: tuple[float, float]) -> str:
    """Returns an interval on a line that runs from one end to the other, with the value as a mark."""
    wide = (ends[1] - ends[0]) or 1.0
    left, at, right = (round((number - ends[0]) / wide * (_TRACK - 4)) for number in (low, value, high))
    track = f"position:relative;width:{_TRACK}px;height:8px;border-bottom:1px solid currentColor"
    bar = f"position:absolute;left:{left}px;width:{right - left + 4}px;top:2px;height:4px;background:#5b8fd0"
    mark = f"position:absolute;left:{at}px;width:4px;top:0;height:8px;background:currentColor"
    return f'<div style="{track}"><div style="{bar}"></div><div style="{mark}"></div></div>'


def _table(table: tuple[list[str], list[list[str]]]) -> str:
    head, rows = table
    return markup.table([markup.escaped(name) for name in head], [[markup.escaped(c) for c in row] for row in rows])


def _picture(image: Image.Image, alt: str) -> str:
    """Returns a figure as part of the page; it shrinks until it is small enough for a notebook."""
    for share in (1.0, 0.75, 0.5, 0.35):
        size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        buffer = BytesIO()
        image.resize(size, reducing_gap=3).save(buffer, "png", optimize=True)
        if len(buffer.getvalue()) <= _PICTURE_BYTES:
            break
    return markup.picture(buffer.getvalue(), "png", alt)
