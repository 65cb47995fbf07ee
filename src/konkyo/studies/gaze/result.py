"""The report of a study of gaze consistency: its runs, and the numbers over seeds that tables and pictures show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from konkyo.evaluation.result import FigureFormat, Table
from konkyo.report.page import Page
from konkyo.studies.base import TestPicture
from konkyo.studies.gaze import figures, text
from konkyo.studies.gaze.run import Run
from konkyo.studies.gaze.statistics import across_models, within_run
from konkyo.studies.reports import save_report, study_page
from konkyo.utils.files import plain
from konkyo.utils.statistics import Correlation, Estimate


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

    def of(self, level: int, strength: float) -> dict[int, Run]:
        """Returns the finished runs of a level and a lambda, by their seeds."""
        return {run.seed: run for run in self.finished if (run.level, run.strength) == (level, strength)}

    def settings(self) -> list[tuple[int, float]]:
        """Returns (level, lambda) of all finished runs."""
        return sorted({(run.level, run.strength) for run in self.finished})

    # --- numbers over seeds -------------------------------------------------------------------------------------------

    def estimate(self, level: int, strength: float, column: str) -> Estimate:
        """Returns the estimate of a number of the test set over seeds."""
        return Estimate.of(run.value(column) for run in self.of(level, strength).values())

    def difference(self, level: int, strength: float, column: str) -> Estimate:
        """Returns the estimate of that number less that of lambda = 0, over seeds that have both."""
        return Estimate.of(a - b for a, b in self.pairs(level, strength, column))

    def ratio(self, level: int, strength: float, column: str) -> Estimate:
        """Returns the estimate of that number divided by the one of lambda = 0 of the same seed.

        It is the geometric mean, with the interval by t of logarithms; NaN where a number is not positive.
        """
        logs = [math.log(a / b) for a, b in self.pairs(level, strength, column) if a > 0 and b > 0]
        return Estimate.of(logs).through(math.exp)

    def pairs(self, level: int, strength: float, column: str) -> list[tuple[float, float]]:
        """Returns (the number, that of lambda = 0) of every seed that has both."""
        without = self.of(level, 0.0)
        with_loss = self.of(level, strength)
        return [(run.value(column), without[seed].value(column)) for seed, run in with_loss.items() if seed in without]

    def correlations(self) -> dict[str, Correlation]:
        """kappa against L over trained models, as of `across_models`."""
        return across_models(self.finished)

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
            "kappa against L, within runs": self.within_table(),
            "All runs": self.run_table(),
        }
        drawn = self.figures() if pictures is None else pictures
        return study_page("Gaze consistency in training", self.study, tables, drawn, self.remarks())

    def save(self, folder: str | Path, *, format: FigureFormat = "png") -> Path:
        """Writes report.md, .html and .json, tables.tex, csv files and pictures into a folder. -> the folder

        `format`: of the pictures, "png", "svg" or "pdf".
        """
        pictures = {str(Path(name).with_suffix(f".{format}")): picture for name, picture in self.figures().items()}
        text, page = self.markdown(pictures), self.page(pictures)
        return save_report(Path(folder), text, self.description(), self.records(), pictures, page)
