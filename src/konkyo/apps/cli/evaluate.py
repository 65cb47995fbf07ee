"""The command that measures explanations on data with truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import (
    Data,
    Folder,
    Format,
    Json,
    Layers,
    Limit,
    MatchingOptions,
    MethodOptions,
    Metrics,
    ModelOptions,
    PrecisionName,
    WhatIsExplained,
    figure_format,
    layer_of,
    names_in,
    request_of,
    require_explained,
    setup_of,
)
from konkyo.apps.cli.reports import ReportOptions, note_origin, report_of_folder
from konkyo.apps.cli.terminal import print_evaluation, print_json, print_line, progress_bar


@with_groups
def evaluate(
    model: Annotated[
        str, typer.Option("--model", "-m", help="As of `konkyo explain`; 'none': only --maps of other tools.")
    ] = "konkyo/scenes-classifier",
    data: Data = "scenes:100",
    method: Annotated[
        str, typer.Option("--method", help="Several, as in grad_cam,layer_cam, or 'all'; default: the usual ones.")
    ] = "",
    metrics: Metrics = "",
    maps: Annotated[
        list[Path] | None,
        typer.Option("--maps", help="Folder of maps that another tool made (NAME.npz, .npy or .png); repeatable."),
    ] = None,
    explained: WhatIsExplained = "decision",
    matching_options: MatchingOptions = MatchingOptions(),
    unique: Annotated[
        bool, typer.Option("--unique", help="Detectors: only where every method's map has one highest place.")
    ] = False,
    limit: Limit = None,
    layer: Layers = None,
    to: Folder = Path("konkyo-evaluation"),
    model_options: ModelOptions = ModelOptions(),
    method_options: MethodOptions = MethodOptions(),
    precision: PrecisionName = None,
    format: Format = "png",
    report_options: ReportOptions = ReportOptions(),
    as_json: Json = False,
) -> None:
    """Measure explanations on data with truth: a table of methods and metrics, with 95 % intervals and paired tests."""
    from konkyo.evaluation.evaluate import evaluate as run
    from konkyo.evaluation.plan import Maps
    from konkyo.tasks.base import Matching

    kind = figure_format(format)
    setup = None if model == "none" else setup_of(model, model_options)
    names: list[Any] = []
    options: dict[str, Any] = {}
    if setup is not None and (method or not maps):
        names, request = request_of(method or ",".join(setup.model.task.methods), method_options)
        options = request["options"]
    require_explained(explained)
    with progress_bar("evaluating") as progress:
        evaluation = run(
            None if setup is None else setup.model,
            data,
            [*names, *(Maps(folder) for folder in maps or ())],
            names_in(metrics) or None,
            explained=explained,  # type: ignore[arg-type] # checked above
            matching=Matching(matching_options.score, matching_options.iou, unique),
            limit=limit,
            seed=method_options.seed,
            layer=layer_of(layer),
            precision=precision,  # type: ignore[arg-type] # checked by the Pass
            out=to,
            progress=progress,
            **options,
        )
    if kind != "png":
        evaluation.save(to, format=kind)
    note_origin(to, None if setup is None else setup.model)
    notes = report_of_folder(to, report_options)
    if as_json:
        print_json(evaluation.description())
        return
    print_evaluation(evaluation)
    for note in (f"table, curves and every value in {to}", *notes):
        print_line(note)
