"""The command that says which method to use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from konkyo.apps.cli.evaluate import split
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
    setup_of,
)
from konkyo.apps.cli.terminal import out, print_table, progress_bar
from konkyo.errors import KonkyoError


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

    if explained not in ("decision", "label"):
        raise KonkyoError(f"--explained is decision or label; got {explained!r}")
    setup = setup_of(model, model_options)
    with progress_bar("measuring") as progress:
        found = run(
            setup.model,
            data,
            split(method) or None,
            split(metrics) or None,
            criteria=weights_of(criteria),
            explained=explained,  # type: ignore[arg-type] # checked above
            matching=Matching(matching_options.score, matching_options.iou),
            limit=limit,
            seed=seed,
            layer=layer[0] if layer and len(layer) == 1 else layer or None,
            precision=precision,  # type: ignore[arg-type] # checked by the Pass
            out=to,
            progress=progress,
        )
    found.save(to)
    head, rows = found.table()
    print_table(head, [[cell.replace("**", "") for cell in row] for row in rows])
    for line in (found.sentence(), *found.remarks(), f"every value in {to}"):
        out.print(escape(line), highlight=False, soft_wrap=True)


def weights_of(text: str) -> dict[str, float]:
    """Reads the weights of criteria. KonkyoError: something else than NAME=NUMBER."""
    found = {}
    for part in split(text):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise KonkyoError(f"--criteria: name=number was expected, as in stability=0; got {part!r}") from None
    return found
