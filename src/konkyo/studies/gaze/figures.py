"""The figures of a report on gaze consistency: which curves, points, bars and maps they show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from konkyo.evaluation.result import bracketed
from konkyo.studies.gaze import drawings
from konkyo.studies.report import open_picture
from konkyo.utils.statistics import fitted
from konkyo.utils.tensors import min_max

if TYPE_CHECKING:
    from konkyo.studies.gaze.report import GazeReport, Run

AUTOCORRELATED = (
    "Warning: epochs of one run are autocorrelated; they are no independent observations.\n"
    "No interval or test of the epochs is valid. Read the correlation across models instead."
)
MEAN_MAPS_SHOWN = 16
"""At most, below each other in the picture of mean maps."""
_CURVES: Mapping[str, str] = {
    "valid_accuracy": "validation accuracy",
    "valid_loss": "validation cross-entropy",
    "valid_L": "validation L",
    "valid_wt": "validation W/T",
}
_PICTURES_SHOWN = 12  # beside each other in the grid of maps
_RUNS_NAMED = 4  # whose correlations are written in a picture


def panel_name(level: int) -> str:
    """Returns what a level is called at the beginning of a sentence; 0 is the study's own backbone."""
    return f"Level {level}" if level else "Backbone"


def figures(report: GazeReport) -> dict[str, Image.Image]:
    """Returns the figures by file name; `GazeReport.figures` says which."""
    pictures = _of_epochs(report)
    if not report.finished:
        return pictures
    pictures["kappa_L.png"] = _across_models(report)
    pictures["lambda.png"] = _against_lambda(report)
    for level in sorted({level for level, _ in report.settings()}):
        ending = ".png" if len(report.levels) == 1 else f"-level-{level}.png"
        pictures[f"mean_maps{ending}"] = mean_maps(report, level)
        if grid := map_grid(report, level):
            pictures[f"map_grid{ending}"] = drawings.map_grid(*grid)
    return pictures


def _of_epochs(report: GazeReport) -> dict[str, Image.Image]:
    """Returns the learning curves, and kappa against L over epochs; none of runs without epochs."""
    lines = {
        panel_name(level): [_line(run) for run in report.runs if run.level == level and run.epochs]
        for level in report.levels
    }
    lines = {name: of_level for name, of_level in lines.items() if of_level}
    if not lines:
        return {}
    rising = (float(report.study["start"]), float(report.study["end"])) if "end" in report.study else None
    notes = {name: dict[float, str]() for name in lines}
    for level, strength in sorted({(run.level, run.strength) for run in report.runs if run.epochs}):
        r = [c.pearson for c in report.within_runs(level, strength)]
        few = ", ".join(f"{value:.2f}" for value in r) or "-"
        many = f"{statistics.fmean(r):.2f}, the mean of {len(r)}" if len(r) > _RUNS_NAMED else ""
        notes[panel_name(level)][strength] = many or few
    columns = ("valid_L", "valid_kappa")
    return {
        "curves.png": drawings.curves(lines, _CURVES, rising),
        "kappa_L_within.png": drawings.within(lines, notes, columns, after=report.burn_in, warning=AUTOCORRELATED),
    }


def _across_models(report: GazeReport) -> Image.Image:
    points = [drawings.Point(run.strength, run.level, run.value("L"), run.value("kappa")) for run in report.finished]
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    every = report.correlations()["all models"]
    title = f"Pearson r = {bracketed(every.pearson, every.low, every.high)}, n = {every.n} models"
    title = title if math.isfinite(every.pearson) else f"no correlation: n = {every.n}, or values that do not differ"
    return drawings.across(points, fitted([(p.x, p.y) for p in points]), title, (f"L ({report.distance})", "κ"))


def _against_lambda(report: GazeReport) -> Image.Image:
    bars: dict[str, dict[float, dict[str, drawings.SeedBar]]] = {}
    for level, strength in report.settings():
        bars.setdefault(panel_name(level), {})[strength] = {
            column: _bar(report, level, strength, column) for column in ("L", "accuracy", "wt")
        }
    foot = "test set; dot: mean of seeds, bar: its 95 % interval (t), it may leave the panel; pale lines: seeds"
    titles = {"L": f"L ({report.distance})", "accuracy": "accuracy", "wt": "W/T"}
    return drawings.against(bars, titles, foot)


def mean_maps(report: GazeReport, level: int) -> Image.Image:
    """Draws a level's mean maps: the mean over seeds, and the root of the mean of squared deviations."""
    strengths = [strength for n, strength in report.settings() if n == level]
    tests = [[run.test for run in report.of(level, s).values() if run.test is not None] for s in strengths]
    means = torch.stack([torch.stack([t.mean for t in of_lambda]).nanmean(0) for of_lambda in tests])
    squares = torch.stack([torch.stack([t.deviation.square() for t in of_lambda]).nanmean(0) for of_lambda in tests])
    values = [torch.tensor([[c.value for c in t.of_class] for t in of_lambda]).nanmean(0) for of_lambda in tests]
    first = slice(MEAN_MAPS_SHOWN)
    maps = (means[:, first], squares.sqrt()[:, first])
    return drawings.mean_maps(tests[0][0].classes[first], strengths, *maps, torch.stack(values)[:, first])


def map_grid(report: GazeReport, level: int) -> tuple[drawings.Grid, str] | None:
    """Returns the maps of the seed that has most, and the title of their picture; None where there are no maps."""
    mapped = [run for run in report.runs if run.level == level and run.maps is not None]
    if not mapped or not report.pictures:
        return None
    seeds = [run.seed for run in mapped]
    seed = min(seeds, key=lambda s: (-seeds.count(s), s))
    chosen = _some([picture.label for picture in report.pictures])
    shown = [report.pictures[i] for i in chosen]
    lines = []
    for run in sorted((run for run in mapped if run.seed == seed), key=lambda run: run.strength):
        assert run.maps is not None  # those that have none are left out
        lines.append((run.strength, min_max(run.maps[chosen].float()), [_mistaken_for(run, p.name) for p in shown]))
    title = f"{panel_name(level)}, seed {seed}: test images; each map on its own scale; ✗ and a class: wrongly decided"
    return drawings.Grid([open_picture(p) for p in shown], [p.label for p in shown], lines), title


# --- parts ------------------------------------------------------------------------------------------------------------


def _line(run: Run) -> drawings.Line:
    columns = dict.fromkeys(name for row in run.epochs for name in row)
    return drawings.Line(run.strength, {n: [row.get(n, math.nan) for row in run.epochs] for n in columns})


def _bar(report: GazeReport, level: int, strength: float, column: str) -> drawings.SeedBar:
    mean = report.estimate(level, strength, column)
    by_seed = report.numbers(level, strength, column)
    return drawings.SeedBar(mean.mean, mean.low, mean.high, by_seed)


def _some(labels: Sequence[str]) -> list[int]:
    """Returns the first places of each label, together as many as stand beside each other."""
    kinds = list(dict.fromkeys(labels))[:_PICTURES_SHOWN]
    count = max(1, _PICTURES_SHOWN // max(1, len(kinds)))
    return [i for kind in kinds for i in [j for j, label in enumerate(labels) if label == kind][:count]]


def _mistaken_for(run: Run, name: str) -> str | None:
    """Returns the class that an image is wrongly decided as; None where it is decided rightly, or not known."""
    if run.test is None:
        return None
    image = next((image for image in run.test.images if image.name == name), None)
    return None if image is None or image.correct else run.test.classes[image.prediction]
