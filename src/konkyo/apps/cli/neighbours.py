"""The command that shows which images of a data set an image resembles for the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import Batch, Data, Json, Layers, Limit, ModelName, ModelOptions, layer_of, setup_of
from konkyo.apps.cli.terminal import print_json, print_line, print_table


@with_groups
def nearest_images(
    images: Annotated[str, typer.Argument(help="A picture, or data as --data takes it.")],
    model: ModelName,
    data: Data,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Neighbours of every image.")] = 5,
    layer: Layers = None,
    by: Annotated[
        str, typer.Option("--by", help="What is compared: embedding, or map, where places weigh as their map does.")
    ] = "embedding",
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Channels minus their mean over the data, divided by their deviation.")
    ] = False,
    limit: Limit = None,
    batch: Batch = 32,
    to: Annotated[Path, typer.Option("--out", help="The picture with all of them.")] = Path("neighbours.png"),
    model_options: ModelOptions = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Show the images of a data set that an image resembles most for the model, with their maps."""
    from konkyo.evaluation.neighbours import neighbours

    setup = setup_of(model, model_options)
    result = neighbours(
        setup.model,
        images,
        data,
        count,
        layer_of(layer),
        by=by,  # type: ignore[arg-type]
        standardise=standardise,
        limit=limit,
        batch=batch,
    )
    result.sheet(to)
    head, rows = result.table()
    if as_json:
        print_json([dict(zip(head, row, strict=True)) for row in rows])
        return
    print_table(head, rows)
    print_line(f"picture in {to}")
