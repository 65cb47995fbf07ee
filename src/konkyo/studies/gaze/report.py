"""report_gaze(): from the folder of a study of gaze consistency to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konkyo.errors import KonkyoError
from konkyo.studies.gaze.result import GazeReport
from konkyo.studies.gaze.run import Run, read_runs
from konkyo.studies.reports import read_settings, read_test_pictures
from konkyo.training.loop import EPOCHS


def report_gaze(folder: str | Path) -> GazeReport:
    """Returns the report of the runs in a folder of `konkyo train gaze`; those that are not finished have curves only.

    KonkyoError: no study of gaze consistency, no run, a file that cannot be read, runs that do not belong together.
    """
    folder = Path(folder)
    study, pictures = read_settings(folder, "gaze"), read_test_pictures(folder)
    runs = sorted(read_runs(folder, len(pictures)), key=lambda run: (run.level, run.strength, run.seed))
    if not runs:
        raise KonkyoError(f"{folder} holds no run: level-N/lambda_W/seed_S/{EPOCHS} was expected")
    kinds = {(r.test.classes, r.test.grid, r.test.distance) for r in runs if r.test is not None}
    if len(kinds) > 1:
        raise KonkyoError(f"{folder} holds runs with other classes, grids or distances: {sorted(map(str, kinds))}")
    return GazeReport(study, tuple(runs), tuple(pictures), tuple(_missing(study, runs)))


def _missing(study: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    """Returns the sentences about runs of the study that are not finished, or not begun."""
    last = study.get("recipe", {}).get("epochs", "?")
    notes = [f"Not finished: {run.name} ({len(run.epochs)} of {last} epochs)." for run in runs if run.test is None]
    begun = {(run.level, run.strength, run.seed) for run in runs}
    levels, strengths, seeds = (study.get(name, []) for name in ("levels", "lambdas", "seeds"))
    planned = [(level, strength, seed) for level in levels for strength in strengths for seed in seeds]
    if missing := [key for key in planned if key not in begun]:
        named = "; ".join(f"level {n}, λ = {w:g}, seed {s}" for n, w, s in missing[:6])
        notes.append(f"Not begun: {named}{f' and {len(missing) - 6} more' if len(missing) > 6 else ''}.")
    return notes
