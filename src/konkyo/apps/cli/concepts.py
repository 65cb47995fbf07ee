"""The command that finds the concepts of a set of images and what each counts for a class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import (
    Batch,
    Json,
    Layers,
    Limit,
    ModelName,
    ModelOptions,
    Seed,
    files_of,
    layer_of,
    setup_of,
)
from konkyo.apps.cli.sources import Images, require_one_source, samples_of
from konkyo.apps.cli.terminal import print_json, print_line, print_table
from konkyo.errors import KonkyoError

if TYPE_CHECKING:
    from konkyo.concepts import Concepts, Importance

HEAD = ["concept", "energy", "alone decides", "counts", "images that hold most of it"]


@with_groups
def concepts(
    images: Images = None,
    model: ModelName = "konkyo/scenes-classifier",
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A data set in place of IMAGES, as in scenes:24,objects=1.")
    ] = None,
    components: Annotated[int, typer.Option("--components", "-k", min=1, help="How many concepts are found.")] = 8,
    target: Annotated[
        str | None,
        typer.Option(
            "--class", "-c", help="The class that concepts count for; default: what is decided of each image."
        ),
    ] = None,
    designs: Annotated[
        int, typer.Option("--designs", min=0, help="Points for what concepts count, a power of two; 0: not measured.")
    ] = 32,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Images on the sheet of a concept.")] = 8,
    layer: Layers = None,
    limit: Limit = None,
    batch: Batch = 16,
    seed: Seed = 0,
    to: Annotated[
        Path, typer.Option("--out", help="Folder for a sheet per concept, concepts.csv and images.csv.")
    ] = Path("konkyo-concepts"),
    model_options: ModelOptions = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Find the concepts that images share in a layer's features, and what each counts for a class."""
    from konkyo.concepts import factorise
    from konkyo.data.samples import samples
    from konkyo.targets.specs import class_of_text
    from konkyo.utils.files import csv_text, write_text

    require_one_source(images, data)
    if target is not None and not designs:
        raise KonkyoError("--class says what concepts count for, and --designs 0 that this is not measured")
    network = setup_of(model, model_options).model
    chosen = samples(data if data is not None else samples_of(files_of(images or [])), limit=limit, seed=seed)
    result = factorise(
        network, [one.image for one in chosen], components, layer=layer_of(layer), batch=batch, seed=seed
    )
    result = replace(result, names=chosen.names)
    counts = None
    if designs:
        counts = result.importance(None if target is None else class_of_text(target), designs=designs, seed=seed)
    to.mkdir(parents=True, exist_ok=True)
    result.examples(to / "concepts.png", k=min(examples, 5), importance=counts)
    for number in range(len(result)):
        result.examples(to / f"concept-{number + 1}.png", k=examples, importance=counts, only=[number])
    rows = table_of(result, counts, examples)
    write_text(to / "concepts.csv", csv_text(HEAD, rows))
    write_text(to / "images.csv", csv_text(*images_of(result, counts)))
    if as_json:
        described = {"layer": result.layer, "left out": result.error, "importance": counts and repr(counts)}
        listed = [dict(zip(HEAD, row, strict=True)) for row in rows]
        print_json({**described, "concepts": listed})
        return
    head, *_ = repr(result).partition("\n")
    print_line(head)
    print_table(HEAD[:-1], [[str(row[0]), f"{row[1]:.0%}", row[2], _number(row[3])] for row in rows])
    if counts is not None:
        left = float((counts.scores - counts.decoded).abs().mean())
        line = f"the score is {float(counts.scores.mean()):.2f} on average; of the concepts alone it is {left:.2f} off"
        print_line(line)
    print_line(f"a sheet per concept, concepts.csv and images.csv in {to}")


def table_of(result: Concepts, counts: Importance | None, examples: int) -> list[list[Any]]:
    """Returns a line per concept; the one that counts most comes first, where that is known."""
    order = range(len(result)) if counts is None else counts.values.argsort(descending=True).tolist()
    return [
        [
            j + 1,
            float(result.energy[j]),
            result.labels[j],
            None if counts is None else float(counts.values[j]),
            "; ".join(result.names[i] for i in result.strongest(j, examples)),
        ]
        for j in order
    ]


def images_of(result: Concepts, counts: Importance | None) -> tuple[list[str], list[list[Any]]]:
    """Returns a line per image: how much of every concept it holds on average, and what each counts there."""
    numbers = [j + 1 for j in range(len(result))]
    head = ["image", *(f"concept {j}" for j in numbers)]
    rows: list[list[Any]] = [
        [name, *amounts] for name, amounts in zip(result.names, result.maps.flatten(2).mean(2).tolist(), strict=True)
    ]
    if counts is None:
        return head, rows
    head += ["explained", "score", "score of the concepts", *(f"concept {j} counts" for j in numbers)]
    measured = zip(
        counts.targets, counts.scores.tolist(), counts.decoded.tolist(), counts.of_images.tolist(), strict=True
    )
    return head, [[*row, *values, *shares] for row, (*values, shares) in zip(rows, measured, strict=True)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
