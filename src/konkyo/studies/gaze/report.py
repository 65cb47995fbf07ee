"""The report of a study of gaze consistency: its runs, and the numbers over seeds that tables and pictures show."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.evaluation.consistency import Consistency
from konkyo.evaluation.result import FigureFormat, Table
from konkyo.report.page import Page
from konkyo.studies.base import MAPS, TestPicture, diverged_in
from konkyo.studies.gaze import figures, text
from konkyo.studies.gaze.claims import claims, over_splits
from konkyo.studies.report import read_settings, read_test_maps, read_test_pictures, save_report, study_page
from konkyo.training.loop import EPOCHS, read_epochs
from konkyo.training.recipe import Numbers
from konkyo.utils.files import plain
from konkyo.utils.statistics import Correlation, Estimate, paired


@dataclass(frozen=True, eq=False)
class Run:
    """One training: its epochs and, where it is finished, its test."""

    level: int
    """0: the study's own backbone."""
    strength: float
    """lambda"""
    seed: int
    epochs: tuple[Numbers, ...]
    test: Consistency | None
    """None: not finished."""
    maps: Tensor | None
    """(P, h, w) raw, of the study's pictures; None: not finished, or of another split than the pictures."""
    split: int = 0
    diverged: int | None = None
    """The epoch in which its loss was no number any more."""

    def value(self, column: str) -> float:
        """Returns a number of the test set, named as in `text.MEASURED`, or "published"; NaN where it is not known.

        "published" is L as the study's code computes it: the root of the mean square on the layer's own grid of h x w
        cells, divided by the root of h w. It is made of RMS, on the grid that L is measured on.
        """
        if self.test is None:
            return math.nan
        if column == "published":
            return math.nan if self.maps is None else self.test.rms / math.sqrt(self.maps[0].numel())
        return float(getattr(self.test, text.MEASURED[column]))

    @property
    def key(self) -> tuple[int, int]:
        """Returns what pairs it with runs of other lambdas: its split and its seed."""
        return self.split, self.seed

    @property
    def name(self) -> str:
        """Returns the name of the run in sentences."""
        return text.run_name(self.level, self.split, self.strength, self.seed)


def read_runs(folder: Path, pictures: int) -> Iterator[Run]:
    """The runs in the folder of a study with so many test pictures. KonkyoError: a file that cannot be read."""
    seeds = [f"{network}/{split}lambda_*/seed_*" for network in ("level-*", "backbone") for split in ("", "split_*/")]
    for home in (path for pattern in seeds for path in folder.glob(pattern)):
        epochs, diverged = home / EPOCHS, diverged_in(home)
        if not epochs.is_file() and diverged is None:
            continue
        try:
            parts = [re.split("[-_]", part, maxsplit=1) for part in home.relative_to(folder).parts]
            numbers = [float(part[1]) if len(part) > 1 else 0.0 for part in parts]
        except ValueError:
            raise KonkyoError(f"{home}: level-NUMBER/lambda_NUMBER/seed_NUMBER was expected") from None
        level, split, strength, seed = numbers if len(numbers) == 4 else [numbers[0], 0.0, *numbers[1:]]
        finished = (home / "test" / "consistency.json").is_file()  # written last
        yield Run(
            int(level),
            strength + 0.0,
            int(seed),
            tuple(read_epochs(epochs)) if epochs.is_file() else (),
            Consistency.load(home / "test") if finished else None,
            read_test_maps(home, pictures) if finished and (home / MAPS).is_file() else None,
            int(split),
            diverged,
        )


@dataclass(frozen=True, eq=False)
class GazeReport:
    """The runs of a study, and what they say together."""

    study: Mapping[str, Any]
    runs: tuple[Run, ...]
    pictures: tuple[TestPicture, ...]
    notes: tuple[str, ...] = field(default=())
    """The sentences about runs that are missing."""

    @property
    def levels(self) -> list[int]:
        """Returns the levels of the runs, in their order."""
        return sorted({run.level for run in self.runs})

    @property
    def finished(self) -> list[Run]:
        """Returns the runs that have been tested."""
        return [run for run in self.runs if run.test is not None]

    @property
    def burn_in(self) -> int:
        """Returns the number of epochs that no correlation within runs counts: lambda is not yet what it will be."""
        return int(self.study.get("end", 5))

    @property
    def distance(self) -> str:
        """Returns the distance in which L is measured on the test set."""
        return next((run.test.distance for run in self.runs if run.test is not None), "mse")

    def of(self, level: int, strength: float) -> dict[tuple[int, int], Run]:
        """Returns the finished runs of a level and a lambda, by (split, seed)."""
        return {run.key: run for run in self.finished if (run.level, run.strength) == (level, strength)}

    def settings(self) -> list[tuple[int, float]]:
        """Returns (level, lambda) of all finished runs."""
        return sorted({(run.level, run.strength) for run in self.finished})

    # --- numbers over seeds -------------------------------------------------------------------------------------------

    def numbers(self, level: int | None, strength: float, column: str) -> dict[tuple[int, int], float]:
        """Returns a number of the test set by (split, seed); of level None its mean over the levels that all have."""
        if level is not None:
            return {key: run.value(column) for key, run in self.of(level, strength).items()}
        every = [self.numbers(number, strength, column) for number in self.levels]
        keys = [key for key in every[0] if all(key in of_level for of_level in every)] if every else []
        return {key: statistics.fmean(of_level[key] for of_level in every) for key in keys}

    def estimate(self, level: int | None, strength: float, column: str) -> Estimate:
        """Returns the estimate of a number of the test set over splits and seeds, as of `over_splits`."""
        return over_splits(self.numbers(level, strength, column))

    def difference(self, level: int | None, strength: float, column: str) -> Estimate:
        """Returns the estimate of that number less that of lambda = 0, over splits and seeds that have both."""
        return over_splits({key: a - b for key, (a, b) in self.pairs(level, strength, column).items()})

    def ratio(self, level: int | None, strength: float, column: str) -> Estimate:
        """Returns the geometric mean of that number divided by the one of lambda = 0 of the same split and seed.

        Numbers that are not positive have no ratio.
        """
        pairs = self.pairs(level, strength, column)
        logs = {key: math.log(a / b) for key, (a, b) in pairs.items() if a > 0 and b > 0}
        return over_splits(logs).through(math.exp)

    def pairs(self, level: int | None, strength: float, column: str) -> dict[tuple[int, int], tuple[float, float]]:
        """Returns (the number, that of lambda = 0) of every split and seed that have both."""
        return paired(self.numbers(level, strength, column), self.numbers(level, 0.0, column))

    def correlations(self, decided: str = "kappa", alike: str = "L") -> dict[str, Correlation]:
        """Returns "kappa" or "accuracy" against L, or another number, over trained models, as of `across_models`."""
        return across_models(self.finished, decided, alike)

    def within(self, run: Run) -> Correlation:
        """kappa against L over the epochs of a run after the burn-in, as of `within_run`."""
        return within_run(run, self.burn_in)

    def within_runs(self, level: int, strength: float) -> list[Correlation]:
        """Returns the correlations within the runs of a level and a lambda that have one."""
        runs = [run for run in self.runs if (run.level, run.strength) == (level, strength)]
        return [correlation for correlation in map(self.within, runs) if math.isfinite(correlation.pearson)]

    # --- tables, text and pictures ------------------------------------------------------------------------------------

    def table(self, cell: Callable[[Estimate], str] = text.mean_and_deviation) -> Table:
        """Returns the table of the test set's numbers over seeds, a line per level and lambda."""
        return text.test_table(self, cell)

    def differences(self) -> Table:
        """Returns the table of differences from lambda = 0 of the same seed, a line per level and other lambda."""
        return text.differences(self)

    def correlation_table(self) -> Table:
        """Returns the table of correlations across models, a line per selection of them."""
        return text.correlation_table(self)

    def accuracy_table(self) -> Table:
        """Returns the table of accuracy against L, RMS, W/T and the published L, a line per selection of models."""
        return text.accuracy_table(self)

    def share_table(self) -> Table:
        """Returns the table of what the loss was of while it had a weight, a line per level and lambda."""
        return text.share_table(self)

    def claims(self) -> Table:
        """Returns the paper's claims and what these runs say of them, a line each."""
        return claims(self)

    def within_table(self) -> Table:
        """Returns the table of correlations within runs, a line per level and lambda."""
        return text.within_table(self)

    def run_table(self) -> Table:
        """Returns the table of all runs, a line each."""
        return text.run_table(self)

    def remarks(self) -> list[str]:
        """Returns the sentences that a reader of the numbers has to know."""
        return text.remarks(self)

    def markdown(self, pictures: Iterable[str] = ()) -> str:
        """Returns the text of the report; `pictures`: names of the files that lie beside it."""
        return text.markdown(self, pictures)

    def records(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the rows of every csv file by its name, each column -> value."""
        return text.records(self)

    def description(self) -> dict[str, Any]:
        """Returns all numbers, as plain JSON values."""
        return plain(  # type: ignore[no-any-return]
            {"study": dict(self.study), "burn_in": self.burn_in, **self.records(), "remarks": self.remarks()}
        )

    def figures(self) -> dict[str, Image.Image]:
        """Returns the pictures by file name. With several levels, maps have a picture for each."""
        return figures.figures(self)

    def page(self, pictures: Mapping[str, Image.Image] | None = None) -> Page:
        """Returns the page of the study; `pictures`: those of `figures`, where they are drawn already."""
        tables = {
            "Numbers of the test set": self.table(),
            "Differences from lambda = 0": self.differences(),
            "kappa against L, across models": self.correlation_table(),
            "Accuracy against L, across models": self.accuracy_table(),
            "kappa against L, within runs": self.within_table(),
            "What the loss is of": self.share_table(),
            "The paper's claims": self.claims(),
            "All runs": self.run_table(),
        }
        shown = self.figures() if pictures is None else pictures
        return study_page("Gaze consistency in training", self.study, tables, shown, self.remarks())

    def save(self, folder: str | Path, *, format: FigureFormat = "png") -> Path:
        """Writes report.md, .html and .json, tables.tex, csv files and pictures into a folder. -> the folder

        `format`: of the pictures, "png", "svg" or "pdf".
        """
        pictures = {str(Path(name).with_suffix(f".{format}")): picture for name, picture in self.figures().items()}
        text, page = self.markdown(pictures), self.page(pictures)
        return save_report(Path(folder), text, self.description(), self.records(), pictures, page)


def report_gaze(folder: str | Path) -> GazeReport:
    """Returns the report of the runs in a folder of `konkyo train gaze`; those that are not finished have curves only.

    KonkyoError: no study of gaze consistency, no run, a file that cannot be read, runs that do not belong together.
    """
    folder = Path(folder)
    study, pictures = read_settings(folder, "gaze"), read_test_pictures(folder)
    runs = sorted(read_runs(folder, len(pictures)), key=lambda run: (run.level, run.strength, run.key))
    if not runs:
        raise KonkyoError(f"{folder} holds no run: level-N/lambda_W/seed_S/{EPOCHS} was expected")
    kinds = {(r.test.classes, r.test.grid, r.test.distance) for r in runs if r.test is not None}
    if len(kinds) > 1:
        raise KonkyoError(f"{folder} holds runs with other classes, grids or distances: {sorted(map(str, kinds))}")
    return GazeReport(study, tuple(runs), tuple(pictures), tuple(_missing(study, runs)))


def _missing(study: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    """Returns the sentences about runs of the study that diverged, are not finished, or not begun."""
    last = study.get("recipe", {}).get("epochs", "?")
    notes = [f"Diverged: {run.name}, in epoch {run.diverged}." for run in runs if run.diverged is not None]
    left = [run for run in runs if run.test is None and run.diverged is None]
    notes += [f"Not finished: {run.name} ({len(run.epochs)} of {last} epochs)." for run in left]
    begun = {(run.level, run.split, run.strength, run.seed) for run in runs}
    levels, strengths, seeds = (study.get(name, []) for name in ("levels", "lambdas", "seeds"))
    planned = product(levels, study.get("splits", [0]), strengths, seeds)
    if missing := [key for key in planned if key not in begun]:
        named = "; ".join(text.run_name(*key) for key in missing[:6])
        notes.append(f"Not begun: {named}{f' and {len(missing) - 6} more' if len(missing) > 6 else ''}.")
    return notes


def across_models(runs: Sequence[Run], decided: str = "kappa", alike: str = "L") -> dict[str, Correlation]:
    """Returns how a network decides against how alike its maps are, a point per model, by the name of the selection.

    The selections are: all models, those without level 1, each level, those whose maps are not made to differ, those
    without the loss, and "within λ", of what is left when the mean of every level and lambda is taken out.
    """

    def of(chosen: Iterable[Run]) -> Correlation:
        pairs = [(run.value(alike), run.value(decided)) for run in chosen]
        return Correlation.of([x for x, _ in pairs], [y for _, y in pairs])

    correlations = {"all models": of(runs)} if runs else {}
    levels, strengths = sorted({run.level for run in runs}), {run.strength for run in runs}
    if len(levels) > 2 and 1 in levels:
        correlations["without level 1"] = of(run for run in runs if run.level != 1)
    if len(levels) > 1:
        correlations |= {f"level {n}": of(run for run in runs if run.level == n) for n in levels}
    if min(strengths, default=0.0) < 0 < max(strengths):
        correlations["λ ≥ 0"] = of(run for run in runs if run.strength >= 0)
    if 0 in strengths and len(strengths) > 1:
        correlations["λ = 0"] = of(run for run in runs if run.strength == 0)
        if len(levels) > 2 and 1 in levels:
            correlations["λ = 0, without level 1"] = of(run for run in runs if run.strength == 0 and run.level != 1)
    settings = sorted({(run.level, run.strength) for run in runs})
    points = [
        [(run.value(alike), run.value(decided)) for run in runs if (run.level, run.strength) == setting]
        for setting in settings
    ]
    groups = [group for group in map(_centred, points) if len(group) > 1]
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


def _centred(pairs: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the pairs that are known, less their means."""
    known = [pair for pair in pairs if all(map(math.isfinite, pair))]
    middle = [statistics.fmean(column) for column in zip(*known, strict=True)]
    return [(x - middle[0], y - middle[1]) for x, y in known]
