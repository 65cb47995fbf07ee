"""The command that says which method to use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import (
    Data,
    Folder,
    Layers,
    MatchingOptions,
    Metrics,
    ModelName,
    ModelOptions,
    PrecisionName,
    WhatIsExplained,
    layer_of,
    names_in,
    numbers_by_name,
    require_explained,
    setup_of,
)
from konkyo.apps.cli.terminal import print_line, print_table, progress_bar


@with_groups
def recommend(
    model: ModelName = "konkyo/scenes-classifier",
    data: Data = "scenes:50",
    method: Annotated[
        str, typer.Option("--method", help="Those to choose from, as in grad_cam,layer_cam; default: the usual ones.")
    ] = "",
    metrics: Metrics = "",
    criteria: Annotated[
        str,
        typer.Option(help="Weights of faithfulness, localisation and stability (1, 1, 0.5), as in localisation=2."),
    ] = "",
    explained: WhatIsExplained = "decision",
    limit: Annotated[int, typer.Option("--limit", min=2, help="So many images, drawn by the seed.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the images and of what is random.")] = 0,
    matching_options: MatchingOptions = MatchingOptions(),
    layer: Layers = None,
    to: Folder = Path("konkyo-recommendation"),
    model_options: ModelOptions = ModelOptions(),
    precision: PrecisionName = None,
) -> None:
    """Rank methods on your own model and images by faithfulness, localisation, stability and cost."""
    from konkyo.evaluation.recommend import recommend as run
    from konkyo.tasks.base import Matching

    require_explained(explained)
    setup = setup_of(model, model_options)
    with progress_bar("measuring") as progress:
        result = run(
            setup.model,
            data,
            names_in(method) or None,
            names_in(metrics) or None,
            criteria=numbers_by_name("--criteria", criteria, "stability=0"),
            explained=explained,  # type: ignore[arg-type] # checked above
            matching=Matching(matching_options.score, matching_options.iou),
            limit=limit,
            seed=seed,
            layer=layer_of(layer),
            precision=precision,  # type: ignore[arg-type] # checked by the Pass
            out=to,
            progress=progress,
        )
    result.save(to)
    head, rows = result.table()
    print_table(head, [[cell.replace("**", "") for cell in row] for row in rows])
    for line in (result.sentence(), *result.remarks(), f"every value in {to}"):
        print_line(line)
