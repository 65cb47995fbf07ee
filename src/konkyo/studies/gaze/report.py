"""report_gaze(): what the trainings of a study of gaze consistency say: tables, intervals over seeds, and pictures."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from konkyo.draw.sheets import save_image
from konkyo.errors import KonkyoError
from konkyo.evaluation.consistency import PLACELESS, Consistency
from konkyo.evaluation.result import Table, bracketed, markdown, number
from konkyo.studies.base import MAPS, STUDY, Shown, read_maps
from konkyo.studies.gaze import figures as drawing
from konkyo.training.loop import EPOCHS, Numbers, read_epochs
from konkyo.training.losses.consistency import LambdaSchedule
from konkyo.utils.files import csv_of, plain, read_json, write_text
from konkyo.utils.statistics import CENTRAL, Correlation, Estimate, t_quantile
from konkyo.utils.tensors import unit

MEASURED: Mapping[str, str] = {
    "accuracy": "accuracy",
    "kappa": "kappa",
    "L": "value",
    "rms": "rms",
    "wt": "ratio",
    "coverage": "coverage",
}
"""What the tables have of the test set: column -> field of `Consistency`."""
TITLES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "kappa": "κ",
    "L": "L",
    "rms": "RMS",
    "wt": "W/T",
    "coverage": "coverage",
}
_CURVES: Mapping[str, str] = {
    "valid_accuracy": "validation accuracy",
    "valid_loss": "validation cross-entropy",
    "valid_L": "validation L",
    "valid_wt": "validation W/T",
}
_POSITIVE = ("L", "rms", "wt")  # whose ratios mean something
_RATIO: Mapping[str, str] = {"mean": "", "low": "_low", "high": "_high"}
_SHOWN = 12  # pictures beside each other in the grid of maps
_FEW = 4  # runs whose correlations are written in a picture
_LINES = 16  # classes below each other in the picture of mean maps
_AUTOCORRELATED = (
    "Warning: epochs of one run are autocorrelated; they are no independent observations.\n"
    "No interval or test of the epochs is valid. Read the correlation across models instead."
)


# --- the runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Run:
    """One training."""

    level: int
    strength: float
    """lambda"""
    seed: int
    epochs: tuple[Numbers, ...]
    test: Consistency | None
    """None: not finished."""
    maps: Tensor | None
    """(P, h, w) raw, of the study's pictures."""

    def value(self, column: str) -> float:
        """A number of the test set, named as in `MEASURED`; NaN of a run that is not finished."""
        return math.nan if self.test is None else float(getattr(self.test, MEASURED[column]))

    @property
    def name(self) -> str:
        """For people."""
        return f"level {self.level}, λ = {self.strength:g}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class GazeReport:
    """The runs of a study, and what they say together."""

    study: Mapping[str, Any]
    runs: tuple[Run, ...]
    pictures: tuple[Shown, ...]
    notes: tuple[str, ...] = field(default=())
    """What is not there."""

    @property
    def levels(self) -> list[int]:
        """In their order."""
        return sorted({run.level for run in self.runs})

    @property
    def finished(self) -> list[Run]:
        """The runs that have been tested."""
        return [run for run in self.runs if run.test is not None]

    @property
    def burn_in(self) -> int:
        """Epochs that no correlation within runs counts: those in which lambda is not yet what it will be."""
        return int(self.study.get("end", 5))

    def of(self, level: int, strength: float) -> dict[int, Run]:
        """Finished runs by their seeds."""
        return {run.seed: run for run in self.finished if (run.level, run.strength) == (level, strength)}

    def settings(self) -> list[tuple[int, float]]:
        """(level, lambda) of all finished runs."""
        return sorted({(run.level, run.strength) for run in self.finished})

    def estimate(self, level: int, strength: float, column: str) -> Estimate:
        """A number of the test set over seeds."""
        return Estimate.of(run.value(column) for run in self.of(level, strength).values())

    def difference(self, level: int, strength: float, column: str) -> Estimate:
        """That number less the one of lambda = 0 of the same seed, over seeds that have both."""
        return Estimate.of(a - b for a, b in self._pairs(level, strength, column))

    def ratio(self, level: int, strength: float, column: str) -> Estimate:
        """That number divided by the one of lambda = 0 of the same seed: the geometric mean, its interval by t of
        logarithms. NaN where one is not positive."""
        logs = [math.log(a / b) for a, b in self._pairs(level, strength, column) if a > 0 and b > 0]
        return Estimate.of(logs).through(math.exp)

    def _pairs(self, level: int, strength: float, column: str) -> list[tuple[float, float]]:
        plain_ = self.of(level, 0.0)
        own = self.of(level, strength)
        return [(run.value(column), plain_[seed].value(column)) for seed, run in own.items() if seed in plain_]

    def correlations(self) -> dict[str, Correlation]:
        """kappa against L with one point per trained model: of all, of each level, without those whose maps
        are to differ, without the loss, and of what is left when the mean of every level and lambda is taken out."""
        runs = self.finished
        found = {"all models": _kappa_l(runs)}
        if len(self.levels) > 1:
            found |= {f"level {n}": _kappa_l([run for run in runs if run.level == n]) for n in self.levels}
        strengths = {run.strength for run in runs}
        if min(strengths, default=0.0) < 0 < max(strengths):
            found["λ ≥ 0"] = _kappa_l([run for run in runs if run.strength >= 0])
        if 0 in strengths and len(strengths) > 1:
            found["λ = 0"] = _kappa_l([run for run in runs if run.strength == 0])
        groups = [_centred(list(self.of(*setting).values())) for setting in self.settings()]
        groups = [group for group in groups if len(group) > 1]
        if len(groups) > 1:
            x, y = ([point[i] for group in groups for point in group] for i in (0, 1))
            found["within λ"] = Correlation.of(x, y, held=len(groups) - 1)
        return found

    def within(self, run: Run) -> Correlation:
        """kappa against L over the epochs of a run, validation, after the burn-in; without intervals: epochs are not
        independent."""
        late = [row for row in run.epochs if row["epoch"] > self.burn_in]
        x, y = ([row.get(column, math.nan) for row in late] for column in ("valid_L", "valid_kappa"))
        found = Correlation.of(x, y)
        nan = math.nan
        return Correlation(found.n, found.pearson, nan, nan, found.spearman, nan, nan)

    def _within(self, level: int, strength: float) -> list[Correlation]:
        """Those of the runs that have one."""
        own = [run for run in self.runs if (run.level, run.strength) == (level, strength)]
        return [found for found in map(self.within, own) if math.isfinite(found.pearson)]

    # --- what is told -------------------------------------------------------------------------------------------------

    def table(self, shown: Callable[[Estimate], str] | None = None) -> Table:
        """A line per level and lambda: the test set's numbers, mean and standard deviation over seeds."""
        shown = shown or _spread
        columns = ["accuracy", "kappa", "L", "rms", "wt"]
        head = ["level", "λ", "seeds", *(TITLES[c] for c in columns)]
        rows = []
        for level, strength in self.settings():
            found = [self.estimate(level, strength, column) for column in columns]
            rows.append([str(level), f"{strength:g}", str(len(self.of(level, strength))), *map(shown, found)])
        return head, rows

    def differences(self) -> Table:
        """A line per level and lambda but 0: differences from lambda = 0 of the same seed, and the ratios of L."""
        columns = ["accuracy", "kappa", "L", "wt"]
        head = ["level", "λ", "pairs", *(f"Δ {TITLES[c]}" for c in columns), "L / L(0)", "W/T / W/T(0)"]
        rows = []
        for level, strength in self.settings():
            if strength == 0 or not self._pairs(level, strength, "L"):
                continue
            found = [self.difference(level, strength, column) for column in columns]
            ratios = [_bracketed(self.ratio(level, strength, column)) for column in ("L", "wt")]
            cells = [_bracketed(estimate, signed=True) for estimate in found]
            rows.append([str(level), f"{strength:g}", str(found[0].n), *cells, *ratios])
        return head, rows

    def correlation_table(self) -> Table:
        """A line per selection of trained models."""
        rows = [
            [
                name,
                str(c.n),
                bracketed(c.pearson, c.low, c.high),
                bracketed(c.spearman, c.spearman_low, c.spearman_high),
            ]
            for name, c in self.correlations().items()
        ]
        return ["κ against L", "models", "Pearson r [95 %]", "Spearman ρ [95 %]"], rows

    def within_table(self) -> Table:
        """A line per level and lambda: the correlations of its runs, each over its own epochs."""
        rows = []
        for level, strength in sorted({(run.level, run.strength) for run in self.runs}):
            found = self._within(level, strength)
            r = [c.pearson for c in found]
            z = Estimate.of(math.atanh(value) for value in r if abs(value) < 1).through(math.tanh)
            counts = sorted({c.n for c in found})
            epochs = "-" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            each = ", ".join(f"{value:.2f}" for value in r) or "-"
            rows.append([str(level), f"{strength:g}", str(len(found)), epochs, each, _bracketed(z)])
        return ["level", "λ", "runs", "epochs of each", "r of each run", "mean of runs [95 % over runs]"], rows

    def run_table(self) -> Table:
        """A line per run."""
        head = ["level", "λ", "seed", "epochs", *(TITLES[c] for c in MEASURED), "blank"]
        rows = []
        for run in self.runs:
            blank = "-" if run.test is None else str(run.test.blank)
            cells = [number(run.value(column)) for column in MEASURED]
            rows.append([str(run.level), f"{run.strength:g}", str(run.seed), str(len(run.epochs)), *cells, blank])
        return head, rows

    def remarks(self) -> list[str]:
        """What one has to know to read the numbers."""
        said = list(self.notes)
        sizes = sorted({len(self.of(*setting)) for setting in self.settings()})
        if sizes and sizes[0] < 2:
            said.append("A single seed has no interval: what differs between lambdas may be chance.")
        elif sizes and sizes[0] < 3:
            said.append("Intervals of two seeds are so wide (12.7 standard errors) that they exclude hardly anything.")
        epochs, end = self.study.get("recipe", {}).get("epochs"), self.study.get("end")
        if epochs and end and end > epochs:
            share = LambdaSchedule(1.0, self.study.get("start", 0), end)(epochs)
            said.append(f"The loss never had its whole weight: {share:.2g} of λ in the last of {epochs} epochs.")
        if self.settings() and not self.differences()[1]:
            said.append("No differences: they need runs with and without the loss (lambda 0) from the same seed.")
        for level in self.levels:
            ratio = self.estimate(level, 0.0, "wt").mean
            if ratio > PLACELESS:
                said.append(
                    f"Level {level}: W/T is {ratio:.2f} without the loss, above {PLACELESS}. Position is not defined "
                    "by the class here, and a lower L only says that all maps are alike."
                )
        for level, strength in self.settings():
            which = f"Level {level}, λ = {strength:g}"
            own = [run.test for run in self.of(level, strength).values() if run.test is not None]
            if count := sum(test.blank for test in own):
                shares = sum(len(test.images) for test in own)
                said.append(f"{which}: {count} of {shares} test maps are blank and left out.")
            if few := sum(any(not c.used for c in test.of_class) for test in own):
                said.append(
                    f"{which}: in {few} of {len(own)} runs a class has fewer than two correctly decided test images, "
                    "and no part in L and W/T."
                )
            said += sorted({f"{which}: {note}." for test in own for note in test.notes})
        if (kinds := len(self.study.get("classes", []))) > _LINES and self.finished:
            said.append(f"Mean maps are drawn of the first {_LINES} classes of {kinds}.")
        if all(row["epoch"] <= self.burn_in for run in self.runs for row in run.epochs):
            said.append(
                f"No correlation within runs: none has come beyond epoch {self.burn_in}, where λ stops growing."
            )
        if len(self.correlations()) > 1:
            said.append(
                "The interval of a correlation takes models as independent. Those of one seed begin with the same "
                "weights, and λ changes κ and L at once: 'within λ' is what is left when λ is held; it is led by the "
                "λ whose models differ most."
            )
        said.append(
            "Consistency is not correctness: maps can agree on the wrong place. `konkyo evaluate` measures whether "
            "they are right."
        )
        return said

    def markdown(self, pictures: Iterable[str] = ()) -> str:
        """The report; `pictures`: names of the files that lie beside it."""
        have, study = list(pictures), self.study
        sizes = ", ".join(f"{name} {count}" for name, count in study.get("sizes", {}).items())
        facts: list[tuple[str, Any]] = [
            ("data", f"{study.get('data', '-')}" + (f" ({sizes} images)" if sizes else "")),
            ("classes", ", ".join(study.get("classes", []))),
            ("levels", ", ".join(map(str, self.levels))),
            ("λ", ", ".join(f"{s:g}" for s in sorted({run.strength for run in self.runs}))),
            ("seeds", ", ".join(map(str, sorted({run.seed for run in self.runs})))),
            ("trained with", f"{study.get('distance', '-')}, λ from epoch {study.get('start')} to {study.get('end')}"),
            ("recipe", ", ".join(f"{name} {value}" for name, value in study.get("recipe", {}).items())),
            ("runs", f"{len(self.finished)} finished of {len(self.runs)}"),
        ]
        parts = ["# A study of gaze consistency\n", markdown((["", ""], [[n, str(v)] for n, v in facts if v]))]

        def section(title: str, *lines: str, files: str = "") -> None:
            shown = [f"![{name}]({name})\n" for name in have if files and name.startswith(files)]
            if lines or shown:
                parts.extend([f"## {title}\n", *lines, *shown])

        if self.finished:
            section(
                "Test set: L and accuracy against λ",
                "Mean ± standard deviation over seeds, and the 95 % interval of the mean (Student's t).\n",
                markdown(self.table(_full)),
                files="lambda",
            )
        if self.differences()[1]:
            section(
                "Differences from λ = 0",
                "Paired: runs of one seed begin with the same weights and see the same images in the same order. In "
                "brackets the 95 % interval (Student's t; of ratios, of their logarithms), not corrected for the "
                "number of comparisons.\n",
                markdown(self.differences()),
            )
        section("Learning curves", files="curves")
        if self.finished:
            section(
                "κ against L across models",
                "One point per trained model, on the test set.\n",
                markdown(self.correlation_table()),
                files="kappa_L.",
            )
        section(
            "κ against L within runs",
            f"**{' '.join(_AUTOCORRELATED.split())}**\n",
            f"Validation, epochs after {self.burn_in} (until then λ is growing). The interval is over runs, which are "
            "independent, not over epochs.\n",
            markdown(self.within_table()),
            files="kappa_L_within",
        )
        section("Mean maps", files="mean_maps")
        section("Maps of the same test images", files="map_grid")
        section("Runs", markdown(self.run_table()))
        section("To be kept in mind", "\n".join(f"- {line}" for line in self.remarks()) + "\n")
        return "\n".join(parts)

    def records(self) -> dict[str, list[dict[str, Any]]]:
        """Name of a csv file -> its rows, each column -> value."""
        runs = [
            {"level": run.level, "lambda": run.strength, "seed": run.seed, "epochs": len(run.epochs)}
            | {column: run.value(column) for column in MEASURED}
            | {"blank": math.nan if run.test is None else run.test.blank}
            for run in self.runs
        ]
        means, apart = list[dict[str, Any]](), list[dict[str, Any]]()
        for level, strength in self.settings():
            where = {"level": level, "lambda": strength}
            for column in MEASURED:
                means.append(where | {"quantity": column} | asdict(self.estimate(level, strength, column)))
                if strength == 0 or not self._pairs(level, strength, column):
                    continue
                found = where | {"quantity": column} | asdict(self.difference(level, strength, column))
                ratio = asdict(self.ratio(level, strength, column)) if column in _POSITIVE else {}
                apart.append(found | {f"ratio{e}": ratio.get(n, math.nan) for n, e in _RATIO.items()})
        return {
            "runs": runs,
            "lambdas": means,
            "differences": apart,
            "correlations": [{"models": name} | asdict(c) for name, c in self.correlations().items()],
            "within": [
                {"level": run.level, "lambda": run.strength, "seed": run.seed, "epochs": found.n}
                | {"pearson": found.pearson, "spearman": found.spearman, "warning": "autocorrelated"}
                for run in self.runs
                for found in [self.within(run)]
            ],
        }

    def description(self) -> dict[str, Any]:
        """All numbers, as plain JSON values."""
        return plain(  # type: ignore[no-any-return]
            {"study": dict(self.study), "burn_in": self.burn_in, **self.records(), "remarks": self.remarks()}
        )

    # --- pictures -----------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Image.Image]:
        """File name -> picture. With several levels, maps have a picture for each."""
        lines = {
            f"Level {level}": [_line(run) for run in self.runs if run.level == level and run.epochs]
            for level in self.levels
        }
        lines = {name: own for name, own in lines.items() if own}
        found = dict[str, Image.Image]()
        if lines:
            rising = (float(self.study["start"]), float(self.study["end"])) if "end" in self.study else None
            found["curves.png"] = drawing.curves(lines, _CURVES, rising)
            said = {name: dict[float, str]() for name in lines}
            for level, strength in sorted({(run.level, run.strength) for run in self.runs if run.epochs}):
                r = [c.pearson for c in self._within(level, strength)]
                few = ", ".join(f"{value:.2f}" for value in r) or "-"
                said[f"Level {level}"][strength] = (
                    few if len(r) <= _FEW else f"{statistics.fmean(r):.2f}, the mean of {len(r)}"
                )
            columns = ("valid_L", "valid_kappa")
            found["kappa_L_within.png"] = drawing.within(
                lines, said, columns, after=self.burn_in, warning=_AUTOCORRELATED
            )
        if not self.finished:
            return found
        points = [drawing.Point(run.strength, run.level, run.value("L"), run.value("kappa")) for run in self.finished]
        points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
        all_ = self.correlations()["all models"]
        title = f"Pearson r = {bracketed(all_.pearson, all_.low, all_.high)}, n = {all_.n} models"
        title = title if math.isfinite(all_.pearson) else f"no correlation: n = {all_.n}, or values that do not differ"
        named = (f"L ({self.distance})", "κ")
        found["kappa_L.png"] = drawing.across(points, _fitted([(p.x, p.y) for p in points]), title, named)
        bars: dict[str, dict[float, dict[str, drawing.Bar]]] = {}
        for level, strength in self.settings():
            bars.setdefault(f"Level {level}", {})[strength] = {
                column: self._bar(level, strength, column) for column in ("L", "accuracy", "wt")
            }
        foot = "test set; dot: mean of seeds, bar: its 95 % interval (t), it may leave the panel; pale lines: seeds"
        shown = {"L": f"L ({self.distance})", "accuracy": "accuracy", "wt": "W/T"}
        found["lambda.png"] = drawing.against(bars, shown, foot)
        for level in sorted({level for level, _ in self.settings()}):
            ending = ".png" if len(self.levels) == 1 else f"-level-{level}.png"
            found[f"mean_maps{ending}"] = self._mean_maps(level)
            if grid := self._grid(level):
                found[f"map_grid{ending}"] = drawing.map_grid(*grid)
        return found

    @property
    def distance(self) -> str:
        """What L is measured in on the test set."""
        return next((run.test.distance for run in self.runs if run.test is not None), "mse")

    def _bar(self, level: int, strength: float, column: str) -> drawing.Bar:
        over = self.estimate(level, strength, column)
        each = {seed: run.value(column) for seed, run in self.of(level, strength).items()}
        return drawing.Bar(over.mean, over.low, over.high, each)

    def _mean_maps(self, level: int) -> Image.Image:
        """Over seeds the mean of means, and the root of the mean of squared deviations."""
        strengths = [strength for n, strength in self.settings() if n == level]
        tests = [[r.test for r in self.of(level, s).values() if r.test is not None] for s in strengths]
        means = torch.stack([torch.stack([t.mean for t in own]).nanmean(0) for own in tests])
        squares = torch.stack([torch.stack([t.deviation.square() for t in own]).nanmean(0) for own in tests])
        values = [torch.tensor([[c.value for c in t.of_class] for t in own]).nanmean(0) for own in tests]
        first = slice(_LINES)  # classes
        maps = (means[:, first], squares.sqrt()[:, first])
        return drawing.mean_maps(tests[0][0].classes[first], strengths, *maps, torch.stack(values)[:, first])

    def _grid(self, level: int) -> tuple[drawing.Grid, str] | None:
        """The maps of the seed that has most of them, and what is written above."""
        mapped = [run for run in self.runs if run.level == level and run.maps is not None]
        if not mapped or not self.pictures:
            return None
        seeds = [run.seed for run in mapped]
        seed = min(seeds, key=lambda s: (-seeds.count(s), s))
        chosen = _some([picture.label for picture in self.pictures])
        shown = [self.pictures[i] for i in chosen]
        lines = []
        for run in sorted((run for run in mapped if run.seed == seed), key=lambda run: run.strength):
            assert run.maps is not None  # those that have none are left out
            lines.append((run.strength, unit(run.maps[chosen].float()), [_taken_for(run, p.name) for p in shown]))
        pictures = [_opened(Path(picture.file)) for picture in shown]
        title = f"Level {level}, seed {seed}: test images; each map on its own scale; ✗ and a class: wrongly decided"
        return drawing.Grid(pictures, [picture.label for picture in shown], lines), title

    # --- on disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Writes report.md, report.json, csv files and pictures into a folder. -> the folder"""
        folder = Path(folder)
        drawn = self.figures()
        for name, picture in drawn.items():
            save_image(picture, folder / name)
        for name, rows in self.records().items():
            if rows:
                write_text(folder / f"{name}.csv", csv_of(rows))
        write_text(folder / "report.json", json.dumps(self.description(), indent=1) + "\n")
        write_text(folder / "report.md", self.markdown(drawn))
        return folder


# --- from a folder ----------------------------------------------------------------------------------------------------


def report_gaze(folder: str | Path) -> GazeReport:
    """What the runs in a folder of `konkyo train gaze` say; those that are not finished have curves only.

    KonkyoError: no study of gaze consistency, no run, a file that cannot be read, runs that do not belong together.
    """
    folder, notes = Path(folder), list[str]()
    path = folder / STUDY
    if not path.is_file():
        raise KonkyoError(f"{folder} holds no study: {STUDY} was expected, as `konkyo train gaze` writes it")
    study = read_json(path)
    if not isinstance(study, dict) or study.get("kind") != "gaze":
        raise KonkyoError(f"{path} is of no study of gaze consistency")
    runs = sorted(_runs(folder), key=lambda run: (run.level, run.strength, run.seed))
    if not runs:
        raise KonkyoError(f"{folder} holds no run: level-N/lambda_W/seed_S/{EPOCHS} was expected")
    kinds = {(r.test.classes, r.test.grid, r.test.distance) for r in runs if r.test is not None}
    if len(kinds) > 1:
        raise KonkyoError(f"{folder} holds runs with other classes, grids or distances: {sorted(map(str, kinds))}")
    last = study.get("recipe", {}).get("epochs", "?")
    notes += [f"Not finished: {run.name} ({len(run.epochs)} of {last} epochs)." for run in runs if run.test is None]
    here = {(run.level, run.strength, run.seed) for run in runs}
    wanted = [(n, w, s) for n in _levels(study) for w in study.get("lambdas", []) for s in study.get("seeds", [])]
    if missing := [key for key in wanted if key not in here]:
        named = "; ".join(f"level {n}, λ = {w:g}, seed {s}" for n, w, s in missing[:6])
        notes.append(f"Not begun: {named}{f' and {len(missing) - 6} more' if len(missing) > 6 else ''}.")
    pictures = _pictures(folder / "pictures")
    for run in runs:
        if run.maps is not None and len(run.maps) != len(pictures):
            raise KonkyoError(f"{run.name} has {len(run.maps)} maps of {len(pictures)} pictures")
    return GazeReport(study, tuple(runs), tuple(pictures), tuple(notes))


def _runs(folder: Path) -> Iterable[Run]:
    for path in folder.glob(f"level-*/lambda_*/seed_*/{EPOCHS}"):
        own = path.parent
        parts = [own.parent.parent.name, own.parent.name, own.name]
        try:
            level, strength, seed = (float(re.split("[-_]", part, maxsplit=1)[1]) for part in parts)
        except ValueError:
            raise KonkyoError(f"{own}: level-NUMBER/lambda_NUMBER/seed_NUMBER was expected") from None
        whole = (own / "test" / "consistency.json").is_file()  # written last
        maps = read_maps(own) if whole and (own / MAPS).is_file() else None
        test = Consistency.load(own / "test") if whole else None
        yield Run(int(level), strength + 0.0, int(seed), tuple(read_epochs(path)), test, maps)


def _pictures(folder: Path) -> list[Shown]:
    path = folder / "index.json"
    if not path.is_file():
        return []
    try:
        return [Shown(str(e["name"]), str(e["label"]), str(folder / e["file"])) for e in read_json(path)]
    except (LookupError, TypeError) as error:
        raise KonkyoError(f"{path}: a list of name, label and file was expected ({error})") from error


def _opened(path: Path) -> Image.Image:
    try:
        picture: Image.Image = Image.open(path).convert("RGB")
    except OSError as error:
        raise KonkyoError(f"{path} cannot be read as a picture: {error}") from error
    return picture


def _levels(study: Mapping[str, Any]) -> list[int]:
    return list(study.get("levels", []))


# --- parts ------------------------------------------------------------------------------------------------------------


def _kappa_l(runs: Sequence[Run]) -> Correlation:
    return Correlation.of([run.value("L") for run in runs], [run.value("kappa") for run in runs])


def _centred(runs: Sequence[Run]) -> list[tuple[float, float]]:
    """(L, kappa) of runs, less their means."""
    pairs = [(run.value("L"), run.value("kappa")) for run in runs]
    known = [pair for pair in pairs if all(map(math.isfinite, pair))]
    middle = [statistics.fmean(column) for column in zip(*known, strict=True)]
    return [(x - middle[0], y - middle[1]) for x, y in known]


def _fitted(points: Sequence[tuple[float, float]]) -> drawing.Fit | None:
    """Least squares and the 95 % band of the line's mean, y +- t s sqrt(1 / n + (x - mean)^2 / S); None of fewer than
    three points, or of one x."""
    n = len(points)
    x, y = [a for a, _ in points], [b for _, b in points]
    if n < 3 or max(x) - min(x) <= 1e-12:
        return None
    line = statistics.linear_regression(x, y)
    middle = statistics.fmean(x)
    spread = sum((a - middle) ** 2 for a in x)
    left = sum((b - line.intercept - line.slope * a) ** 2 for a, b in points)
    reach = t_quantile((1 + CENTRAL) / 2, n - 2) * math.sqrt(left / (n - 2))
    at = [min(x) + (max(x) - min(x)) * i / 60 for i in range(61)]
    fit = [line.intercept + line.slope * a for a in at]
    half = [reach * math.sqrt(1 / n + (a - middle) ** 2 / spread) for a in at]
    lower, upper = ([f + sign * h for f, h in zip(fit, half, strict=True)] for sign in (-1, 1))
    return drawing.Fit(at, fit, lower, upper)


def _line(run: Run) -> drawing.Line:
    columns = dict.fromkeys(name for row in run.epochs for name in row)
    return drawing.Line(run.strength, {n: [row.get(n, math.nan) for row in run.epochs] for n in columns})


def _some(labels: Sequence[str]) -> list[int]:
    """The first places of each label, together as many as stand beside each other."""
    kinds = list(dict.fromkeys(labels))[:_SHOWN]
    each = max(1, _SHOWN // max(1, len(kinds)))
    return [i for kind in kinds for i in [j for j, label in enumerate(labels) if label == kind][:each]]


def _taken_for(run: Run, name: str) -> str | None:
    """The class that an image is wrongly decided as."""
    test = run.test
    found = None if test is None else next((image for image in test.images if image.name == name), None)
    return None if test is None or found is None or found.correct else test.classes[found.prediction]


def _bracketed(found: Estimate, signed: bool = False) -> str:
    return bracketed(found.mean, found.low, found.high, signed)


def _spread(found: Estimate) -> str:
    shown = number(found.mean)
    return shown if math.isnan(found.sd) else f"{shown} ± {number(found.sd)}"


def _full(found: Estimate) -> str:
    ends = "" if math.isnan(found.low) else f" [{number(found.low)}, {number(found.high)}]"
    return _spread(found) + ends
