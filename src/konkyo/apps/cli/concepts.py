"""The command that finds the concepts of a set of images and what each counts for a class."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

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
    setup_of,
)
from konkyo.apps.cli.sources import Images, samples_of
from konkyo.apps.cli.terminal import out, print_table
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

    if bool(images) == (data is not None):
        raise KonkyoError("concepts are of IMAGES or of a data set, as in --data scenes:24,objects=1; give one of them")
    if target is not None and not designs:
        raise KonkyoError("--class says what concepts count for, and --designs 0 that this is not measured")
    network = setup_of(model, model_options).model
    chosen = samples(data if data is not None else samples_of(files_of(images or [])), limit=limit, seed=seed)
    where = layer[0] if layer and len(layer) == 1 else layer or None
    found = factorise(network, [one.image for one in chosen], components, layer=where, batch=batch, seed=seed)
    found = replace(found, names=chosen.names)
    counts = None
    if designs:
        counts = found.importance(None if target is None else class_of_text(target), designs=designs, seed=seed)
    to.mkdir(parents=True, exist_ok=True)
    found.examples(to / "concepts.png", k=min(examples, 5), importance=counts)
    for number in range(len(found)):
        found.examples(to / f"concept-{number + 1}.png", k=examples, importance=counts, only=[number])
    rows = table_of(found, counts, examples)
    write_text(to / "concepts.csv", csv_text(HEAD, rows))
    write_text(to / "images.csv", csv_text(*images_of(found, counts)))
    if as_json:
        described = {"layer": found.layer, "left out": found.error, "importance": counts and repr(counts)}
        listed = [dict(zip(HEAD, row, strict=True)) for row in rows]
        print(json.dumps({**described, "concepts": listed}, indent=1))  # noqa: T201 - asked for
        return
    head, *_ = repr(found).partition("\n")
    out.print(escape(head), highlight=False, soft_wrap=True)
    print_table(HEAD[:-1], [[str(row[0]), f"{row[1]:.0%}", row[2], _number(row[3])] for row in rows])
    if counts is not None:
        left = float((counts.scores - counts.decoded).abs().mean())
        line = f"the score is {float(counts.scores.mean()):.2f} on average; of the concepts alone it is {left:.2f} off"
        out.print(line, highlight=False, soft_wrap=True)
    out.print(f"a sheet per concept, concepts.csv and images.csv in {escape(str(to))}", highlight=False, soft_wrap=True)


def table_of(found: Concepts, counts: Importance | None, examples: int) -> list[list[Any]]:
    """Returns a line per concept; the one that counts most comes first, where that is known."""
    order = range(len(found)) if counts is None else counts.values.argsort(descending=True).tolist()
    return [
        [
            j + 1,
            float(found.energy[j]),
            found.labels[j],
            None if counts is None else float(counts.values[j]),
            "; ".join(found.names[i] for i in found.strongest(j, examples)),
        ]
        for j in order
    ]


def images_of(found: Concepts, counts: Importance | None) -> tuple[list[str], list[list[Any]]]:
    """Returns a line per image: how much of every concept it holds on average, and what each counts there."""
    numbers = [j + 1 for j in range(len(found))]
    head = ["image", *(f"concept {j}" for j in numbers)]
    rows: list[list[Any]] = [
        [name, *amounts] for name, amounts in zip(found.names, found.maps.flatten(2).mean(2).tolist(), strict=True)
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
