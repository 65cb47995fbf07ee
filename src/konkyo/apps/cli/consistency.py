"""The command that measures how alike the maps of a class are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import (
    Batch,
    Data,
    Format,
    ForwardOptions,
    Json,
    Layers,
    Limit,
    MethodOptions,
    ModelName,
    ModelOptions,
    PrecisionName,
    figure_format,
    request_of,
    setup_of,
)
from konkyo.apps.cli.reports import ReportOptions, note_origin, report_of_folder
from konkyo.apps.cli.terminal import out, print_json, print_line, print_table, progress_bar
from konkyo.errors import KonkyoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from konkyo.models import Model


@with_groups
def consistency(
    model: ModelName = "konkyo/scenes-classifier",
    data: Data = "scenes:200,objects=1",
    method: Annotated[str, typer.Option("--method", help="One of those that `konkyo methods` lists.")] = "grad_cam",
    distance: Annotated[
        str,
        typer.Option(
            "--distance", help="mse (Eq. 9), l2_over_hw (as the study's code), pearson, cosine, js, centre or top_iou."
        ),
    ] = "mse",
    grid: Annotated[int, typer.Option("--grid", min=2, help="Cells a side that maps are brought to.")] = 14,
    target: Annotated[
        str, typer.Option("--target", help="Of wrongly decided images: the map of their label, or of the decision.")
    ] = "label",
    all_: Annotated[bool, typer.Option("--all", help="All images, not only those that are decided correctly.")] = False,
    layer: Layers = None,
    limit: Limit = None,
    batch: Batch = 32,
    resamples: Annotated[int, typer.Option("--resamples", min=0, help="For the intervals; 0: none.")] = 1000,
    permutations: Annotated[int, typer.Option("--permutations", min=0, help="Of the labels; 0: no p-value.")] = 200,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="With an untrained copy of the network, too: twice the time."),
    ] = True,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Draw PNG files.")] = True,
    to: Annotated[Path, typer.Option("--out", help="Folder for tables, maps and figures.")] = Path(
        "konkyo-consistency"
    ),
    model_options: ModelOptions = ModelOptions(),
    method_options: MethodOptions = MethodOptions(),
    precision: PrecisionName = None,
    format: Format = "png",
    report_options: ReportOptions = ReportOptions(),
    as_json: Json = False,
) -> None:
    """Measure how alike the maps of one class are: gaze consistency, with baselines, mean maps and extreme images."""
    from konkyo.evaluation.consistency import consistency as run

    kind = figure_format(format)
    setup = setup_of(model, model_options)
    names, request = request_of(method, method_options, forward=ForwardOptions(layer=layer))
    if len(names) != 1:
        raise KonkyoError(f"--method is one method here; got {', '.join(names)}")
    with progress_bar("explaining", None) as progress:
        result = run(
            setup.model,
            data,
            method=names[0],
            target=target,  # type: ignore[arg-type] # checked there
            only_correct=not all_,
            grid=grid,
            distance=distance,  # type: ignore[arg-type] # checked there
            layer=request["layer"],
            limit=limit,
            batch=batch,
            resamples=resamples,
            permutations=permutations,
            baselines=baselines,
            seed=method_options.seed,
            progress=lambda done, total: progress(done, total or done),
            **request["options"],
            **({} if precision is None else {"precision": precision}),
        )
    pictures = _pictures(setup.model, data, limit, method_options.seed) if figures else None
    result.save(to, figures=figures, pictures=pictures, format=kind)
    note_origin(to, setup.model)
    notes = report_of_folder(to, report_options)
    if as_json:
        print_json(result.description())
        return
    print_table(*result.table())
    out.print()
    print_table(*result.summary())
    out.print()
    for line in result.remarks():
        print_line(line)
    for note in (f"table, maps and figures in {to}", *notes):
        print_line(note)


def _pictures(model: Model, data: str, limit: int | None, seed: int) -> Callable[[str], Image.Image]:
    """Returns the name of an image -> what the model sees of it."""
    from konkyo.data.samples import samples

    chosen = samples(data, limit=limit, seed=seed)
    places = {name: index for index, name in enumerate(chosen.names)}
    prepare = model.preprocess
    assert prepare is not None  # the images have been prepared
    return lambda name: prepare.view(chosen[places[name]].image)
