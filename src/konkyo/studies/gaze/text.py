"""The tables and the text of a report on gaze consistency."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from konkyo.evaluation.consistency import NOT_CORRECTNESS, PLACELESS
from konkyo.evaluation.result import Table, bracketed, number
from konkyo.evaluation.result import markdown as markdown_table
from konkyo.studies.gaze.figures import AUTOCORRELATED, MEAN_MAPS_SHOWN, panel_name
from konkyo.studies.gaze.study import seldom_used
from konkyo.studies.report import grouping_remarks
from konkyo.training.losses.consistency import LOW_SHARE, LambdaSchedule
from konkyo.training.recipe import Numbers
from konkyo.utils.statistics import Correlation, Estimate

if TYPE_CHECKING:
    from konkyo.studies.gaze.report import GazeReport

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
_POSITIVE = ("L", "rms", "wt")  # whose ratios mean something
_RATIO: Mapping[str, str] = {"mean": "", "low": "_low", "high": "_high"}
_PAIRED = (
    "Paired: runs of one seed begin with the same weights and see the same images in the same order. In brackets the "
    "95 % interval (Student's t; of ratios, of their logarithms), not corrected for the number of comparisons. Of "
    'several splits it is of their means. "all" is the mean over the levels of each seed.\n'
)


_PUBLISHED = "L as published"
_CLAIMS = (
    "Of this study's data alone; with several levels effects are of their mean for each seed. An interval on one side "
    "decides, any other one leaves the claim open.\n"
)


def level_name(level: int | None) -> str:
    """Returns what a level is called in tables: its number, "backbone", or "all" of the mean over levels."""
    return "all" if level is None else str(level) if level else "backbone"


def run_name(level: int, split: int, strength: float, seed: int) -> str:
    """Returns the name of a run in sentences."""
    network = f"level {level}" if level else "backbone"
    return f"{network}, λ = {strength:g}, {f'split {split}, ' if split else ''}seed {seed}"


def mean_and_deviation(estimate: Estimate) -> str:
    """Returns the mean, and the standard deviation where there is one.

    >>> mean_and_deviation(Estimate.of([1.0, 3.0]))
    '2.000 ± 1.414'
    """
    mean = number(estimate.mean)
    return mean if math.isnan(estimate.sd) else f"{mean} ± {number(estimate.sd)}"


def _with_interval(estimate: Estimate) -> str:
    ends = "" if math.isnan(estimate.low) else f" [{number(estimate.low)}, {number(estimate.high)}]"
    return mean_and_deviation(estimate) + ends


def _bracketed(estimate: Estimate, signed: bool = False) -> str:
    return bracketed(estimate.mean, estimate.low, estimate.high, signed)


def test_table(report: GazeReport, cell: Callable[[Estimate], str]) -> Table:
    """Returns the table of the test set's numbers over seeds, a line per level and lambda."""
    columns = ["accuracy", "kappa", "L", "rms", "wt"]
    head = ["level", "λ", "runs", *(TITLES[c] for c in columns)]
    rows = []
    for level, strength in report.settings():
        estimates = [report.estimate(level, strength, column) for column in columns]
        runs = str(len(report.of(level, strength)))
        rows.append([level_name(level), f"{strength:g}", runs, *map(cell, estimates)])
    return head, rows


def differences(report: GazeReport) -> Table:
    """Returns the table of differences from lambda = 0 of the same seed, and of ratios, a line per setting.

    Of several levels the last lines, "all", have the means over them.
    """
    columns = ["accuracy", "kappa", "L", "rms", "wt"]
    head = ["level", "λ", "pairs", *(f"Δ {TITLES[c]}" for c in columns), "L / L(0)", "W/T / W/T(0)"]
    rows = []
    every: list[tuple[int | None, float]] = [(level, strength) for level, strength in report.settings()]
    if len(report.levels) > 1:
        every += [(None, strength) for strength in sorted({strength for _, strength in report.settings()})]
    for level, strength in every:
        if strength == 0 or not report.pairs(level, strength, "L"):
            continue
        estimates = [report.difference(level, strength, column) for column in columns]
        ratios = [_bracketed(report.ratio(level, strength, column)) for column in ("L", "wt")]
        cells = [_bracketed(estimate, signed=True) for estimate in estimates]
        rows.append([level_name(level), f"{strength:g}", str(estimates[0].n), *cells, *ratios])
    return head, rows


def correlation_table(report: GazeReport) -> Table:
    """Returns the table of correlations across models, a line per selection of them."""
    rows = [[name, str(c.n), *_both(c)] for name, c in report.correlations().items()]
    return ["κ against L", "models", "Pearson r [95 %]", "Spearman ρ [95 %]"], rows


def accuracy_table(report: GazeReport) -> Table:
    """Returns the table of accuracy against L, RMS, W/T and the published L, a line per selection of models."""
    head, rows = ["accuracy against", "of", "models", "Pearson r [95 %]", "Spearman ρ [95 %]"], []
    for column in ("L", "rms", "wt", "published"):
        for name, c in report.correlations("accuracy", column).items():
            rows.append([TITLES.get(column, _PUBLISHED), name, str(c.n), *_both(c)])
    return head, rows


def _both(c: Correlation) -> list[str]:
    return [bracketed(c.pearson, c.low, c.high), bracketed(c.spearman, c.spearman_low, c.spearman_high)]


def share_table(report: GazeReport) -> Table:
    """Returns the table of what the loss was of, in the epochs in which it had a weight: means over runs and epochs."""
    head = ["level", "λ", "images used %", "of correct ones %", "classes skipped a batch", "blank maps %"]
    rows = []
    for level, strength in sorted({(run.level, run.strength) for run in report.runs if run.strength}):
        late = weighted_epochs(report, level, strength)
        if late:
            used, correct = (statistics.fmean(row[f"train_{c}"] for row in late) for c in ("used", "accuracy"))
            skipped, blank = (statistics.fmean(row[f"train_{c}"] for row in late) for c in ("skipped", "blank"))
            share = used / correct if correct > 0 else math.nan
            cells = [f"{100 * used:.1f}", f"{100 * share:.1f}", number(skipped), f"{100 * blank:.1f}"]
            rows.append([level_name(level), f"{strength:g}", *cells])
    return head, rows


def weighted_epochs(report: GazeReport, level: int, strength: float) -> list[Numbers]:
    """Returns the rows of the epochs in which the loss of a level and a lambda had a weight."""
    runs = [run for run in report.runs if (run.level, run.strength) == (level, strength)]
    return [row for run in runs for row in run.epochs if row.get("train_weight") and "train_used" in row]


def within_table(report: GazeReport) -> Table:
    """Returns the table of correlations within runs, each over its own epochs; a line per level and lambda."""
    rows = []
    for level, strength in sorted({(run.level, run.strength) for run in report.runs}):
        correlations = report.within_runs(level, strength)
        r = [c.pearson for c in correlations]
        z = Estimate.of(math.atanh(value) for value in r if abs(value) < 1).through(math.tanh)
        counts = sorted({c.n for c in correlations})
        epochs = "-" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        listed = ", ".join(f"{value:.2f}" for value in r) or "-"
        rows.append([level_name(level), f"{strength:g}", str(len(correlations)), epochs, listed, _bracketed(z)])
    return ["level", "λ", "runs", "epochs of each", "r of each run", "mean of runs [95 % over runs]"], rows


def run_table(report: GazeReport) -> Table:
    """Returns the table of all runs, a line each."""
    splits = ["split"] if any(run.split for run in report.runs) else []
    head = ["level", *splits, "λ", "seed", "epochs", *(TITLES[c] for c in MEASURED), "blank"]
    rows = []
    for run in report.runs:
        blank = "-" if run.test is None else str(run.test.blank)
        cells = [number(run.value(column)) for column in MEASURED]
        where = [level_name(run.level), *([str(run.split)] if splits else []), f"{run.strength:g}", str(run.seed)]
        epochs = str(len(run.epochs)) if run.diverged is None else f"diverged in epoch {run.diverged}"
        rows.append([*where, epochs, *cells, blank])
    return head, rows


def remarks(report: GazeReport) -> list[str]:
    """Returns the sentences that a reader of the numbers has to know."""
    lines = [*report.notes, *_on_seeds(report), *_on_shares(report)]
    for level in report.levels:
        ratio = report.estimate(level, 0.0, "wt").mean
        if ratio > PLACELESS:
            lines.append(
                f"{panel_name(level)}: W/T is {ratio:.2f} without the loss, above {PLACELESS}. Position is not defined "
                "by the class here, and a lower L only says that all maps are alike."
            )
    for level, strength in report.settings():
        lines += _on_tests(report, level, strength)
    if (kinds := len(report.study.get("classes", []))) > MEAN_MAPS_SHOWN and report.finished:
        lines.append(f"Mean maps are drawn of the first {MEAN_MAPS_SHOWN} classes of {kinds}.")
    if all(row["epoch"] <= report.burn_in for run in report.runs for row in run.epochs):
        lines.append(f"No correlation within runs: none has come beyond epoch {report.burn_in}, where λ stops growing.")
    if len(report.correlations()) > 1:
        lines.append(
            "The interval of a correlation takes models as independent. Those of one seed begin with the same "
            "weights, and λ changes κ and L at once: 'within λ' is what is left when λ is held; it is led by the "
            "λ whose models differ most."
        )
    return [*lines, *grouping_remarks(report.study), NOT_CORRECTNESS]


def _on_shares(report: GazeReport) -> list[str]:
    """Returns the remarks on weights that hardly act, because the loss is of few images."""
    lines = []
    for level, strength in sorted({(run.level, run.strength) for run in report.runs if run.strength}):
        late = weighted_epochs(report, level, strength)
        correct = sum(row["train_accuracy"] for row in late)
        share = sum(row["train_used"] for row in late) / correct if correct > 0 else math.nan
        if share < LOW_SHARE:
            batch = report.study.get("recipe", {}).get("batch", "?")
            lines.append(f"{panel_name(level)}, λ = {strength:g}: {seldom_used(share, batch)}.")
    return lines


def _on_seeds(report: GazeReport) -> list[str]:
    """Returns the remarks on too few seeds, on the weight of the loss, and on runs that have no pair."""
    lines = []
    sizes = sorted({len(report.of(*setting)) for setting in report.settings()})
    splits = {run.split for run in report.finished}
    if len(splits) > 1:
        lines.append(
            f"Intervals are of the means of {len(splits)} splits, so they contain what differs from split to split. "
            "More splits with fewer seeds each make them narrower for the same price."
        )
    if sizes and sizes[0] < 2:
        lines.append("A single seed has no interval: what differs between lambdas may be chance.")
    elif sizes and sizes[0] < 3:
        lines.append("Intervals of two seeds are so wide (12.7 standard errors) that they exclude hardly anything.")
    epochs, end = report.study.get("recipe", {}).get("epochs"), report.study.get("end")
    if epochs and end and end > epochs:
        share = LambdaSchedule(1.0, report.study.get("start", 0), end)(epochs)
        lines.append(f"The loss never had its whole weight: {share:.2g} of λ in the last of {epochs} epochs.")
    if report.settings() and not report.differences()[1]:
        lines.append("No differences: they need runs with and without the loss (lambda 0) from the same seed.")
    return lines


def _on_tests(report: GazeReport, level: int, strength: float) -> list[str]:
    """Returns the remarks on blank maps, on classes with too few maps, and on images that could not be read."""
    lines, which = [], f"{panel_name(level)}, λ = {strength:g}"
    tests = [run.test for run in report.of(level, strength).values() if run.test is not None]
    if count := sum(test.blank for test in tests):
        images = sum(len(test.images) for test in tests)
        lines.append(f"{which}: {count} of {images} test maps are blank and left out.")
    if few := sum(any(not c.used for c in test.of_class) for test in tests):
        lines.append(
            f"{which}: in {few} of {len(tests)} runs a class has fewer than two correctly decided test images, "
            "and no part in L and W/T."
        )
    return lines + sorted({f"{which}: {note}." for test in tests for note in test.notes})


def markdown(report: GazeReport, pictures: Iterable[str]) -> str:
    """Returns the text of the report; `pictures`: names of the files that lie beside it."""
    files = list(pictures)
    parts = ["# A study of gaze consistency\n", markdown_table((["", ""], _facts(report)))]

    def section(title: str, *lines: str, shown: str = "") -> None:
        links = [f"![{name}]({name})\n" for name in files if shown and name.startswith(shown)]
        if lines or links:
            parts.extend([f"## {title}\n", *lines, *links])

    if report.finished:
        section(
            "Test set: L and accuracy against λ",
            "Mean ± standard deviation over seeds, and the 95 % interval of the mean (Student's t).\n",
            markdown_table(report.table(_with_interval)),
            shown="lambda",
        )
    if report.differences()[1]:
        section("Differences from λ = 0", _PAIRED, markdown_table(report.differences()))
    section("Learning curves", shown="curves")
    if report.finished:
        section(
            "κ against L across models",
            "One point per trained model, on the test set.\n",
            markdown_table(report.correlation_table()),
            shown="kappa_L.",
        )
        section(
            "Accuracy against L across models",
            f"The same points. {_PUBLISHED}: RMS divided by the root of the number of the layer's cells, as the "
            "study's code scales it. W/T is a ratio of variances, hardly changed by the grid of L.\n",
            markdown_table(report.accuracy_table()),
        )
        section("The paper's claims", _CLAIMS, markdown_table(report.claims()))
    if report.share_table()[1]:
        section(
            "What the loss is of",
            "In the epochs in which it had a weight: correctly decided images of classes that had enough of them in "
            "the batch.\n",
            markdown_table(report.share_table()),
        )
    section(
        "κ against L within runs",
        f"**{' '.join(AUTOCORRELATED.split())}**\n",
        f"Validation, epochs after {report.burn_in} (until then λ is growing). The interval is over runs, which are "
        "independent, not over epochs.\n",
        markdown_table(report.within_table()),
        shown="kappa_L_within",
    )
    section("Mean maps", shown="mean_maps")
    section("Maps of the same test images", shown="map_grid")
    section("Runs", markdown_table(report.run_table()))
    section("To be kept in mind", "\n".join(f"- {line}" for line in report.remarks()) + "\n")
    return "\n".join(parts)


def _facts(report: GazeReport) -> list[list[str]]:
    """Returns (name, value) of the settings that a reader looks for first."""
    study = report.study
    sizes = ", ".join(f"{name} {count}" for name, count in study.get("sizes", {}).items())
    facts = [
        ["data", f"{study.get('data', '-')}" + (f" ({sizes} images)" if sizes else "")],
        ["classes", ", ".join(study.get("classes", []))],
        ["levels", ", ".join(map(level_name, report.levels))],
        ["backbone", str(study.get("backbone") or "")],
        ["λ", ", ".join(f"{s:g}" for s in sorted({run.strength for run in report.runs}))],
        ["splits", ", ".join(map(str, sorted({run.split for run in report.runs})))],
        ["seeds", ", ".join(map(str, sorted({run.seed for run in report.runs})))],
        ["trained with", f"{study.get('distance', '-')}, λ from epoch {study.get('start')} to {study.get('end')}"],
        ["recipe", ", ".join(f"{name} {value}" for name, value in study.get("recipe", {}).items())],
        ["runs", f"{len(report.finished)} finished of {len(report.runs)}"],
    ]
    return [[name, value] for name, value in facts if value]


def records(report: GazeReport) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of every csv file by its name, each column -> value."""
    runs = [
        {"level": run.level, "split": run.split, "lambda": run.strength, "seed": run.seed, "epochs": len(run.epochs)}
        | {column: run.value(column) for column in (*MEASURED, "published")}
        | {"blank": math.nan if run.test is None else run.test.blank}
        | {"diverged": math.nan if run.diverged is None else run.diverged}
        for run in report.runs
    ]
    means, differences = list[dict[str, Any]](), list[dict[str, Any]]()
    for level, strength in report.settings():
        where = {"level": level, "lambda": strength}
        for column in MEASURED:
            means.append(where | {"quantity": column} | asdict(report.estimate(level, strength, column)))
            if strength == 0 or not report.pairs(level, strength, column):
                continue
            difference = where | {"quantity": column} | asdict(report.difference(level, strength, column))
            ratio = asdict(report.ratio(level, strength, column)) if column in _POSITIVE else {}
            differences.append(difference | {f"ratio{e}": ratio.get(n, math.nan) for n, e in _RATIO.items()})
    return {
        "runs": runs,
        "lambdas": means,
        "differences": differences,
        "correlations": [{"models": name} | asdict(c) for name, c in report.correlations().items()],
        "accuracy": [
            {"against": column, "models": name} | asdict(c)
            for column in ("L", "rms", "wt", "published")
            for name, c in report.correlations("accuracy", column).items()
        ],
        "within": [
            {"level": run.level, "split": run.split, "lambda": run.strength, "seed": run.seed, "epochs": within.n}
            | {"pearson": within.pearson, "spearman": within.spearman, "warning": "autocorrelated"}
            for run in report.runs
            for within in [report.within(run)]
        ],
    }
