"""Evaluation: the values of metrics for every map of every method, and what they say of the methods."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation import display
from konkyo.evaluation.columns import Column, column
from konkyo.metrics.base import Metric, OfMean
from konkyo.utils.files import csv_text, plain, read_json, replacing, write_text
from konkyo.utils.frames import data_frame
from konkyo.utils.statistics import holm

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_RESAMPLES = 2000
_STATISTICS = "statistics.safetensors"
_POOLED_RESAMPLES = 300  # every one of them pools the statistics of a whole data set


FigureFormat: TypeAlias = Literal["png", "svg", "pdf"]
Table: TypeAlias = tuple[list[str], list[list[str]]]
"""(head, rows)"""


def markdown(table: Table) -> str:
    """Returns a table in Markdown."""
    head, rows = table
    lines = [head, *rows]
    texts = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([texts[0], "|---" * len(head) + "|", *texts[1:]]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "κ": r"$\kappa$",
    "λ": r"$\lambda$",
    "β": r"$\beta$",
    "−": "$-$",
    "✗": r"$\times$",
}
"""What LaTeX would read as something else, or has no letter for."""


def latex(table: Table) -> str:
    r"""Returns a table in LaTeX, with the rules of booktabs: the first column to the left, the others to the right.

    Bold and starred cells of Markdown stay so. It needs \usepackage{booktabs}, and for names in other scripts
    XeLaTeX or LuaLaTeX.

    >>> print(latex((["class", "L"], [["red_fox", "**0.1** \\*"]])))
    \begin{tabular}{lr}
    \toprule
    class & L \\
    \midrule
    red\_fox & \textbf{0.1}$^{*}$ \\
    \bottomrule
    \end{tabular}
    <BLANKLINE>
    """
    head, rows = table
    lines = [" & ".join(map(_latex_cell, cells)) + r" \\" for cells in (head, *rows)]
    columns = "l" + "r" * (len(head) - 1)
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*begin, *lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(text: str) -> str:
    starred, text = text.endswith("\\*"), text.removesuffix("\\*").rstrip()
    bold = re.fullmatch(r"\*\*(.*)\*\*", text)
    escaped = "".join(_LATEX.get(character, character) for character in (bold[1] if bold else text).strip())
    return (rf"\textbf{{{escaped}}}" if bold else escaped) + ("$^{*}$" if starred else "")


def number(value: float, signed: bool = False) -> str:
    """Three significant digits, "-" of what is not known; `signed`: with a plus.

    >>> number(0.0351234), number(0.5, signed=True), number(math.nan)
    ('0.0351', '+0.500', '-')
    """
    if not math.isfinite(value):
        return "-"
    sign = "+" if signed else ""
    return f"{value:{sign}.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:{sign}.3g}"


def _loaded(folder: Path) -> Evaluation:
    """Returns the evaluation that was saved in a folder. ValueError: its files do not belong together."""
    values = read_json(folder / "evaluation.json")
    if "rows" not in values:
        raise ValueError("an older version wrote it; the same `konkyo evaluate` completes it from samples.jsonl")
    tensors = load_file(folder / _STATISTICS)
    methods, columns = tuple(values["methods"]), tuple(column(name) for name in values["columns"])
    rows = tuple(Row(**{**row, **with_nan({"score": row["score"]})}) for row in values["rows"])
    numbers = [(int(i), int(j)) for i, _, j in (name.partition(".") for name in tensors)]
    statistics = {
        (methods[i], columns[j].name): tensor for (i, j), tensor in zip(numbers, tensors.values(), strict=True)
    }
    if any(len(tensor) != len(rows) for tensor in statistics.values()):
        raise ValueError(f"its statistics are not of {len(rows)} rows")
    return Evaluation(methods, columns, rows, statistics, values["absent"], values["settings"], tuple(values["notes"]))


def with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values of a file, with NaN for the numbers that JSON does not know."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def bracketed(value: float, low: float, high: float, signed: bool = False) -> str:
    """Returns a number with its interval, where there is one."""
    shown = number(value, signed)
    return shown if math.isnan(low) else f"{shown} [{number(low, signed)}, {number(high, signed)}]"


@dataclass(frozen=True)
class Row:
    """The image and the target that a map was of."""

    sample: str
    explained: str
    """What the target is called."""
    score: float
    label: str = ""
    """What is true: the image's class, or that of the thing that a detection is of; "" where it is not known."""
    decision: str = ""
    """What the model decided; "" where it was not asked, or an older version measured it."""


@dataclass(frozen=True)
class Cell:
    """The cell is one metric of one method, over the rows that all methods have."""

    value: float
    low: float
    """Of the 95 % interval, by resampling images."""
    high: float
    count: int
    """How many maps are in it."""
    p: float
    """Of the difference to the best method of the column, by flipping signs of the images' differences; NaN: none."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result holds values (R,) of every metric for every method, NaN where a map or the truth is absent."""

    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    statistics: Mapping[tuple[str, str], Tensor]
    """(method, column) -> (R, ...): values, or the curves and histograms that values are made of."""
    absent: Mapping[str, int]
    """How many maps of a method are blank: those are in no metric."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    _known: dict[tuple[str, str], Cell] = field(default_factory=dict, repr=False)
    """The cells that were asked for."""

    def column(self, name: str) -> Column:
        """Returns the column of a name. KonkyoError: none of them."""
        column = next((c for c in self.columns if c.name == name), None)
        if column is None:
            raise unknown("column", name, [c.name for c in self.columns])
        return column

    def values(self, method: str, name: str) -> Tensor:
        """Returns the value of every map (R,) fp64, NaN where undefined. KonkyoError: a metric of whole data sets."""
        return self.column(name).metric.summarised(self._statistic(method, name)).double()

    def curve(self, method: str, name: str) -> Tensor:
        """Returns the mean curve (T,) of a metric that is one, over the rows that all methods have."""
        statistic = self._statistic(method, name)[self.common(name)]
        if statistic.ndim != 2:
            raise KonkyoError(f"{name} has no curve")
        return statistic.double().mean(0)

    def cell(self, method: str, name: str) -> Cell:
        """Returns the value over the data set with its interval, and how it differs from the best method's."""
        if (method, name) not in self._known:
            self._known[method, name] = self._cell(method, name)
        return self._known[method, name]

    def _cell(self, method: str, name: str, seed: int = 0) -> Cell:
        metric, common = self.column(name).metric, self.common(name)
        group, statistic = self.images()[common], self._statistic(method, name)[common]
        if not len(group):
            return Cell(math.nan, math.nan, math.nan, 0, math.nan)
        value, (low, high), p = float(metric.over(statistic)), _interval(metric, statistic, group, seed), math.nan
        if metric.pooled is None and metric.better != "neither" and (best := self.best(name)) != method:
            rival = self._statistic(best, name)[common]
            p = _flipped((metric.summarised(statistic) - metric.summarised(rival)).double(), group, seed)
        return Cell(value, low, high, len(statistic), p)

    def best(self, name: str) -> str:
        """Returns the first of `bests`. KonkyoError: nothing is better."""
        return self.bests(name)[0]

    def bests(self, name: str) -> tuple[str, ...]:
        """Returns the methods that share the best value of a column over the rows that all have.

        KonkyoError: nothing is better.
        """
        column_, common = self.column(name), self.common(name)
        if column_.metric.better == "neither":
            raise KonkyoError(f"of {name} neither the higher nor the lower is better")
        sign = 1 if column_.metric.better == "higher" else -1

        def rank(method: str) -> float:
            value = float(column_.metric.over(self._statistic(method, name)[common]))
            return -math.inf if math.isnan(value) else sign * value

        ranks = {method: rank(method) for method in self.measured(name)}
        highest = max(ranks.values(), default=-math.inf)
        return tuple(method for method, value in ranks.items() if value == highest)

    def measured(self, name: str) -> list[str]:
        """Returns the methods that have values of a column."""
        return [method for method in self.methods if (method, name) in self.statistics]

    def differing(self, name: str) -> set[str]:
        """Returns the methods that differ from a column's best: p < 0.05 after Holm's correction for their number."""
        methods = self.measured(name)
        adjusted = holm([self.cell(m, name).p for m in methods])
        return {m for m, p in zip(methods, adjusted, strict=True) if p < 0.05}

    def worst(self, method: str, name: str, count: int = 5) -> list[Row]:
        """Returns the rows where a method is worst, the worst first."""
        values = self.values(method, name)
        sign = 1 if self.column(name).metric.better == "higher" else -1
        order = torch.where(values.isnan(), math.inf, sign * values).argsort(stable=True)
        return [self.rows[i] for i in order[: min(count, int((~values.isnan()).sum()))].tolist()]

    def contested(self, name: str, count: int = 5) -> list[Row]:
        """Returns the rows where methods differ most, the most contested first: by the spread of their values."""
        values = [self.values(m, name) for m in self.measured(name)]
        spread = torch.stack(values).std(0, correction=0)
        order = torch.where(spread.isnan(), -math.inf, spread).argsort(descending=True, stable=True)
        return [self.rows[i] for i in order[: min(count, int((~spread.isnan()).sum()))].tolist()]

    # --- shown -------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return display.words_of_evaluation(self)

    def _repr_html_(self) -> str:
        return display.html_of_evaluation(self)

    def plot(self, metric: str | None = None) -> Figure:
        """Returns a figure of matplotlib's: every metric's values with their 95 % intervals; nothing is shown.

        `metric`: that one alone, with its mean curves if it has any. KonkyoError: no such metric.
        """
        return display.plot_of_evaluation(self, metric)

    def to_frame(self, *, maps: bool = False) -> pandas.DataFrame:
        """Returns a table of pandas with a line per method and metric; or `maps`: per map, method and metric.

        KonkyoError: pandas is not installed.
        """
        head, rows = (_OF_MAPS, list(self._values())) if maps else (_HEAD, self._cells())
        return data_frame({name: [row[place] for row in rows] for place, name in enumerate(head)})

    # --- on disk ------------------------------------------------------------------------------------------------------

    def table(self) -> Table:
        """Returns a row per method: value [95 % interval], bold if best, * if `differing` from it, and absent maps."""
        head = ["method", *(f"{c.name} {ARROWS[c.metric.better]}" for c in self.columns), "absent"]
        rows = [[m, *(self._shown(m, c) for c in self.columns), str(self.absent.get(m, 0))] for m in self.methods]
        return head, rows

    def remarks(self) -> list[str]:
        """Returns the sentences about what the table was made of, and what was left out."""
        counts = {c.name: int(self.common(c.name).sum()) for c in self.columns}
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        return [f"Maps in the comparison (those that every method has) of {len(self.rows)}: {listed}.", *self.notes]

    def markdown(self) -> str:
        """The text holds `table` and `remarks`."""
        return markdown(self.table()) + "\n" + "\n".join(self.remarks()) + "\n"

    def _shown(self, method: str, of: Column) -> str:
        if (method, of.name) not in self.statistics:
            return "not applicable"
        cell = self.cell(method, of.name)
        text = f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
        if of.metric.better != "neither" and cell.count and method in self.bests(of.name):
            return f"**{text}**"
        return text + (" \\*" if method in self.differing(of.name) else "")

    def save(self, folder: str | Path, *, format: FigureFormat = "png") -> Path:
        """Writes table.md, table.tex, table.csv, values.csv, curves.png and what `load` reads. -> the folder

        `format`: of the curves, "png", "svg" or "pdf".
        """
        from konkyo.draw.curves import curves_figure  # pictures are drawn only when asked for
        from konkyo.draw.sheets import save_image

        folder = Path(folder)
        texts = {
            "table.md": self.markdown(),
            "table.tex": latex(self.table()),
            "table.csv": csv_text(_HEAD, self._cells()),
            "values.csv": csv_text(_OF_MAPS, self._values()),
            "evaluation.json": json.dumps(self.description(), indent=1),
        }
        with replacing(folder / _STATISTICS) as temporary:
            save_file(_tensors(self), temporary)
        for name, text in texts.items():
            write_text(folder / name, text)
        curves = {c.name: c.metric.better for c in self.columns if self.has_curve(c)}
        if curves:
            lines = {name: {m: self.curve(m, name).tolist() for m in self.measured(name)} for name in curves}
            picture = curves_figure(lines, {name: ARROWS[better] for name, better in curves.items()})
            save_image(picture, folder / f"curves.{format}")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Reads the result that `save` wrote.

        KonkyoError: the folder holds none, or one of a version that did not save statistics.
        """
        folder = Path(folder)
        try:
            return _loaded(folder)
        except Exception as error:  # damaged files fail in every possible way
            raise KonkyoError(f"{folder} holds no saved evaluation: {error}") from error

    def description(self) -> dict[str, Any]:
        """Returns everything but curves and histograms, as plain JSON values."""
        return plain(  # type: ignore[no-any-return]
            {
                "konkyo": 1,
                "settings": dict(self.settings),
                "notes": list(self.notes),
                "absent": dict(self.absent),
                "methods": list(self.methods),
                "columns": [c.name for c in self.columns],
                "rows": [vars(row) for row in self.rows],
                "table": [dict(zip(_HEAD, cell, strict=True)) for cell in self._cells()],
                "worst": {
                    f"{m}: {c.name}": [vars(r) for r in self.worst(m, c.name)]
                    for m in self.methods
                    for c in self.columns
                    if (m, c.name) in self.statistics and c.metric.pooled is None and c.metric.better != "neither"
                },
                "contested": {
                    c.name: [vars(r) for r in self.contested(c.name)]
                    for c in self.columns
                    if c.metric.pooled is None and self.measured(c.name)
                },
            }
        )

    def _cells(self) -> list[list[Any]]:
        return [
            [m, c.name, *vars(self.cell(m, c.name)).values()]
            for m in self.methods
            for c in self.columns
            if (m, c.name) in self.statistics
        ]

    def _values(self) -> Iterator[list[Any]]:
        for method in self.methods:
            for c in self.columns:
                if (method, c.name) not in self.statistics or c.metric.pooled is not None:
                    continue
                for row, value in zip(self.rows, self.values(method, c.name).tolist(), strict=True):
                    yield [*vars(row).values(), method, c.name, value]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _statistic(self, method: str, name: str) -> Tensor:
        if (method, name) not in self.statistics:
            raise unknown("method and column", f"{method}: {name}", [f"{m}: {c}" for m, c in self.statistics])
        return self.statistics[method, name]

    def has_curve(self, of: Column) -> bool:
        """Tells whether the values of a column are made of curves."""
        return of.metric.pooled is None and any(self.statistics[m, of.name].ndim == 2 for m in self.measured(of.name))

    def common(self, name: str) -> Tensor:
        """Returns (R,) bool: the rows where every method's value is defined."""
        column_ = self.column(name)
        statistics = [self.statistics[m, name] for m in self.measured(name)]
        if not statistics:
            return torch.zeros(len(self.rows), dtype=torch.bool)
        if column_.metric.pooled is None:
            statistics = [column_.metric.summarised(s) for s in statistics]
        return torch.stack([~s.flatten(1).isnan().any(1) if s.ndim > 1 else ~s.isnan() for s in statistics]).all(0)

    def images(self) -> Tensor:
        """Returns the number of every row's image (R,) int64, in the order in which they come."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(row.sample, len(numbers)) for row in self.rows], dtype=torch.int64)


_OF_MAPS = [*(f.name for f in fields(Row)), "method", "metric", "value"]
_HEAD = ["method", "metric", *(f.name for f in fields(Cell))]
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


def _tensors(result: Evaluation) -> dict[str, Tensor]:
    """Returns the statistics under the numbers of their method and column, as files keep them."""
    return {
        f"{i}.{j}": result.statistics[m, c.name].detach().cpu().contiguous()
        for i, m in enumerate(result.methods)
        for j, c in enumerate(result.columns)
        if (m, c.name) in result.statistics
    }


def _per_image(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (sum of values, number of them) of every image."""
    counts = torch.bincount(group).double()
    sums = values.new_zeros(len(counts), *values.shape[1:]).index_add(0, group, values)
    return sums[counts > 0], counts[counts > 0]


def _resampled(count: int, times: int, seed: int) -> Tensor:
    """Returns (times, count) how often each of `count` images comes when as many are drawn with replacement."""
    indices = torch.randint(count, (times, count), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(times, count, dtype=torch.float64).scatter_add(1, indices, torch.ones_like(indices).double())


def _interval(metric: Metric, statistic: Tensor, group: Tensor, seed: int) -> tuple[float, float]:
    """Returns the middle 95 % of the values of resampled images; NaN of a single image."""
    pool = metric.pooled
    if pool is None:
        statistic = metric.summarised(statistic)
    sums, counts = _per_image(statistic.double().flatten(1) if statistic.ndim > 1 else statistic.double(), group)
    if len(counts) < 2:
        return math.nan, math.nan
    weights = _resampled(len(counts), _RESAMPLES if pool is None else _POOLED_RESAMPLES, seed)
    if pool is None:
        values = (weights @ sums) / (weights @ counts)
    elif isinstance(pool, OfMean):
        means = (weights @ sums) / (weights @ counts)[:, None]
        values = torch.stack([pool.value(mean.view(statistic.shape[1:])) for mean in means])
    else:
        members = [(group == image).nonzero()[:, 0] for image in sorted(set(group.tolist()))]
        resamples = [torch.cat([m.repeat(int(n)) for m, n in zip(members, w, strict=True) if n]) for w in weights]
        values = torch.stack([pool(statistic[rows]).double() for rows in resamples])
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def _flipped(differences: Tensor, group: Tensor, seed: int) -> float:
    """Returns how probable so large a mean difference is, if the sign of every image's is chance."""
    sums, _ = _per_image(differences, group)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (_RESAMPLES, len(sums)), generator=generator).double() * 2 - 1
    larger = (signs @ sums).abs() >= sums.sum().abs() * (1 - 1e-12)
    return float((1 + larger.sum()) / (1 + _RESAMPLES))
