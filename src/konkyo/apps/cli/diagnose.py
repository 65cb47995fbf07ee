"""The command that says what a classifier rests on, why it is wrong, and which images to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import (
    Batch,
    Data,
    Json,
    Layers,
    Limit,
    ModelName,
    ModelOptions,
    Seed,
    layer_of,
    numbers_by_name,
    setup_of,
)
from konkyo.apps.cli.reports import ReportOptions, language_of, note_origin, report_of_folder
from konkyo.apps.cli.terminal import print_json, print_line, print_note, progress_bar
from konkyo.errors import unknown

Train = Annotated[
    str | None, typer.Option("--train", help="What the model was trained on, as --data; several questions need it.")
]
FAILURES = ("high", "medium", "low")


@with_groups
def diagnose(
    model: ModelName,
    data: Data,
    train: Train = None,
    ask: Annotated[
        str, typer.Option("--ask", help="Questions, separated by commas: cue, head, backbone, wrong, ...; or all.")
    ] = "all",
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", "-c", help="Ask questions about single classes of these only; repeatable."),
    ] = None,
    cue_rule: Annotated[
        str | None,
        typer.Option(
            "--cue-rule", help="Thresholds of cue that differ from high=0.12,medium=0.08,cover=0.03,paste=0.02."
        ),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="Of the maps; `konkyo methods` lists them.")] = "grad_cam",
    layer: Layers = None,
    limit: Limit = None,
    batch: Batch = 32,
    resamples: Annotated[int, typer.Option("--resamples", min=1, help="Of permutations and intervals.")] = 1000,
    alpha: Annotated[float, typer.Option("--alpha", help="Error rate of a question over all its subjects.")] = 0.01,
    budget: Annotated[int, typer.Option("--budget", min=1, help="Images that a class's changes are tried on.")] = 48,
    seed: Seed = 0,
    to: Annotated[Path, typer.Option("--out", help="Folder for findings, tables, maps and the page.")] = Path(
        "konkyo-diagnosis"
    ),
    page: Annotated[bool, typer.Option("--html/--no-html", help="Write report.html.")] = True,
    fail_on: Annotated[
        str | None, typer.Option("--fail-on", help="Exit with 4 if a finding is that severe: high, medium or low.")
    ] = None,
    model_options: ModelOptions = ModelOptions(),
    report_options: ReportOptions = ReportOptions(),
    as_json: Json = False,
) -> None:
    """Say what a classifier rests on, why it is wrong and which images to look at: a sentence each, worst first."""
    if fail_on is not None and fail_on not in FAILURES:
        raise unknown("--fail-on", fail_on, FAILURES)
    from konkyo.evaluation.diagnose.run import diagnose as run

    setup = setup_of(model, model_options)

    with progress_bar("explaining", None) as progress:
        report = run(
            setup.model,
            data,
            train,
            ask,
            alpha,
            classes=classes or (),
            cue_rule=numbers_by_name("--cue-rule", cue_rule or "", "cover=0.05,paste=0.03"),
            method=method,
            layer=layer_of(layer),
            limit=limit,
            batch=batch,
            resamples=resamples,
            budget=budget,
            seed=seed,
            progress=lambda done, total: progress(done, total or done),
            announce=print_note,
        )
    words = language_of(report_options.lang)
    report.save(to, lang=words)
    note_origin(to, setup.model)
    if page and report_options.report is None:
        report_options = replace(report_options, report=to / "report.html")
    notes = report_of_folder(to, report_options) if page else []
    if as_json:
        print_json(report.description())
    else:
        for line in [*report.lines(words), "", *report.remarks(), *notes, f"findings, tables and maps in {to}"]:
            print_line(line)
    if fail_on is not None and report.worst in FAILURES[: FAILURES.index(fail_on) + 1]:
        raise typer.Exit(4)
