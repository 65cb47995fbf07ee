"""The page of an evaluation: the table with intervals, curves, rank agreement, and the images that decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from konkyo.evaluation.result import Evaluation
from konkyo.evaluation.result import Row as MeasuredRow
from konkyo.report.builders import Request, builder
from konkyo.report.data import DataPictures, provenance_of
from konkyo.report.page import (
    Cell,
    CurveFigure,
    ImageRow,
    Line,
    MatrixBlock,
    Measure,
    Page,
    Shortlist,
    TableBlock,
    words,
)
from konkyo.utils.statistics import REACH, Correlation

LISTED = 8
"""So many images stand in a shortlist."""
_NO_MAPS = words(
    "In the table of images a metric's value is the mean over methods. An evaluation keeps values and no maps; "
    "`konkyo compare` draws them.",
    "画像の表の指標の値は手法の平均です。評価は値だけを保存し、マップは保存しません（`konkyo compare` で描けます）。",
)


@builder(Evaluation)
def page_of_evaluation(result: Evaluation, request: Request) -> Page:
    """Returns the page of an evaluation."""
    settings = result.settings
    source = DataPictures(settings, request)
    shortlists = _shortlists(result)
    first = {result.rows[k].sample for shortlist in shortlists for k in shortlist.rows}
    pictures = source.of([row.sample for row in result.rows], first)
    names = [c.name for c in result.columns if c.metric.pooled is None]
    means = {name: _mean_over_methods(result, name) for name in names}
    rows = tuple(
        ImageRow(
            name=row.sample,
            picture=pictures.get(row.sample),
            decision=row.decision,
            probability=_probability(row) if row.decision == row.explained else math.nan,
            true_label=row.label,
            asked=row.explained,
            asked_probability=_probability(row),
            values={name: float(means[name][k]) for name in names},
        )
        for k, row in enumerate(result.rows)
    )
    return Page(
        title=request.title or f"{settings.get('model') or 'maps'}: {', '.join(result.methods)}",
        verdict=_verdict(result),
        shortlists=shortlists,
        rows=rows,
        tables=(_table(result),),
        curves=_curves(result),
        matrices=_agreement(result, names),
        provenance=provenance_of(settings, request),
        command=request.command or "",
        notes=(_NO_MAPS, *(words(line) for line in result.remarks()), *source.notes),
    )


def _probability(row: MeasuredRow) -> float:
    """Returns the probability of what is explained, by which perturbed images are scored; NaN of another score."""
    return row.score if 0 <= row.score <= 1 else math.nan


def _verdict(result: Evaluation) -> Mapping[str, str]:
    """Returns which method is best in how many columns."""
    judged = [c.name for c in result.columns if c.metric.better != "neither" and any(result.measured(c.name))]
    bests = [method for name in judged for method in result.bests(name)]
    if not bests:
        return words(f"{len(result.methods)} methods on {len(result.rows)} maps.")
    most = max(dict.fromkeys(bests), key=bests.count)
    return words(
        f"{most} has the best value in {bests.count(most)} of {len(judged)} metrics ({len(result.rows)} maps).",
        f"{len(judged)} 個の指標のうち {bests.count(most)} 個で {most} が最良です（マップ {len(result.rows)} 枚）。",
    )


def _table(result: Evaluation) -> TableBlock:
    """Returns the table of values with their intervals."""
    bests = {
        c.name: result.bests(c.name) for c in result.columns if c.metric.better != "neither" and result.measured(c.name)
    }
    worse = {name: result.differing(name) for name in bests}
    rows = list[list[Cell]]()
    for m in result.methods:
        line: list[Cell] = [m]
        for c in result.columns:
            if (m, c.name) not in result.statistics:
                line.append("not applicable")
                continue
            cell = result.cell(m, c.name)
            best = bool(cell.count) and m in bests.get(c.name, ())
            line.append(Measure(cell.value, cell.low, cell.high, best, m in worse.get(c.name, ())))
        rows.append([*line, result.absent.get(m, 0)])
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    head = ["method", *(f"{c.name}{arrows[c.metric.better]}" for c in result.columns), "absent"]
    note = words(
        "Means with 95 % intervals by resampling images; worse: differs from the best with p < 0.05, paired by image, "
        "after Holm's correction.",
        "平均値と 95 % 信頼区間（画像の再標本化）。"
        "「劣る」：最良の手法と p < 0.05 で異なる（画像ごとの対、Holm 補正）。",
    )
    return TableBlock(words("Metrics", "指標"), head, rows, note)


def _curves(result: Evaluation) -> tuple[CurveFigure, ...]:
    """Returns a figure per metric that is a curve: mean and 95 % interval at every place."""
    figures = []
    for c in (c for c in result.columns if c.metric.pooled is None):
        lines = [_line(m, result.statistics[m, c.name][result.common(c.name)]) for m in result.measured(c.name)]
        known = tuple(line for line in lines if line is not None)
        if known:
            place = words("from the first to the last place of the curve", "曲線の最初から最後までの位置")
            figures.append(CurveFigure(words(c.name), place, words("mean over maps", "マップの平均"), known))
    return tuple(figures)


def _line(method: str, curves: Tensor) -> Line | None:
    """Returns the mean of curves (R, T), with the normal interval of the mean; None of what is no curve."""
    if curves.ndim != 2 or not len(curves):
        return None
    mean, places = curves.double().mean(0), max(1, curves.shape[1] - 1)
    x = [i / places for i in range(curves.shape[1])]
    if len(curves) < 2:
        return Line(method, x, mean.tolist())
    reach = REACH * curves.double().std(0) / math.sqrt(len(curves))
    return Line(method, x, mean.tolist(), (mean - reach).tolist(), (mean + reach).tolist())


def _mean_over_methods(result: Evaluation, name: str) -> Tensor:
    values = [result.values(m, name) for m in result.measured(name)]
    return torch.stack(values).nanmean(0) if values else torch.full((len(result.rows),), math.nan)


def _agreement(result: Evaluation, names: Sequence[str]) -> tuple[MatrixBlock, ...]:
    """Returns how alike methods rank the maps: Spearman's correlation of their values, the mean over metrics."""
    methods = [m for m in result.methods if any((m, name) in result.statistics for name in names)]
    if len(methods) < 2:
        return ()
    matrix = torch.eye(len(methods), dtype=torch.float64)
    for (i, one), (j, other) in combinations(enumerate(methods), 2):
        both = [name for name in names if {(one, name), (other, name)} <= result.statistics.keys()]
        pairs = (Correlation.of(result.values(one, n).tolist(), result.values(other, n).tolist()) for n in both)
        known = [pair.spearman for pair in pairs if math.isfinite(pair.spearman)]
        matrix[i, j] = matrix[j, i] = fmean(known) if known else math.nan
    title = words("Rank agreement of methods", "手法間の順位の一致")
    note = words(
        "Spearman's correlation of their values over maps, the mean over metrics.",
        "マップごとの値のスピアマン順位相関（指標の平均）。",
    )
    return (MatrixBlock(title, tuple(methods), matrix, note),)


def _shortlists(result: Evaluation) -> tuple[Shortlist, ...]:
    """Returns where the best method of a metric is worst, and where methods differ most."""
    numbers = {id(row): k for k, row in enumerate(result.rows)}
    lists = []

    def places(rows: Sequence[MeasuredRow]) -> tuple[int, ...]:
        return tuple(numbers[id(row)] for row in rows)

    for c in result.columns:
        if c.metric.pooled is not None or c.metric.better == "neither" or not (methods := result.measured(c.name)):
            continue
        best = result.best(c.name)
        if worst := places(result.worst(best, c.name, LISTED)):
            note = words("The best method's worst maps.", "最良の手法で最も悪いマップ。")
            lists.append(
                Shortlist(words(f"{c.name}: worst of {best}", f"{c.name}：{best} で最も悪い画像"), note, worst)
            )
        if len(methods) > 1 and (contested := places(result.contested(c.name, LISTED))):
            note = words("Methods differ most here.", "手法間の差が最も大きい画像。")
            lists.append(Shortlist(words(f"{c.name}: contested", f"{c.name}：手法で差がある画像"), note, contested))
    return tuple(lists)
