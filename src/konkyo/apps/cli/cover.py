"""The command that covers a region of images and tells how far scores move."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import Batch, Data, Json, Limit, ModelName, ModelOptions, Seed, setup_of
from konkyo.apps.cli.sources import samples_of
from konkyo.apps.cli.terminal import print_json, print_line, print_note, print_table


@with_groups
def cover(
    model: ModelName = "konkyo/scenes-classifier",
    data: Data = "scenes:100,objects=1",
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Image files instead of --data: their decisions are tested.")
    ] = None,
    region: Annotated[
        str,
        typer.Option(
            "--region",
            help="x0,y0,x1,y1: shares of the sides, or pixels of the prepared image; a mask's file, or a name.",
        ),
    ] = "lower right",
    target: Annotated[
        str, typer.Option("--target", help="label, decision, or the class whose images are covered.")
    ] = "label",
    fill: Annotated[
        str | None,
        typer.Option("--fill", help="swap (another class's image; the default of --data), blur, mean, noise."),
    ] = None,
    controls: Annotated[int, typer.Option("--controls", min=0, help="Other places that are covered too.")] = 8,
    limit: Limit = None,
    batch: Batch = 32,
    seed: Seed = 0,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for a sheet before and after, and images.csv.")
    ] = None,
    model_options: ModelOptions = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Cover a region of images, and paste it into others: how far do the scores move?"""
    from konkyo.data.samples import samples
    from konkyo.evaluation.diagnose.regions import BUDGET, region_test
    from konkyo.utils.files import csv_text, write_text

    setup = setup_of(model, model_options)
    box = re.fullmatch(r"[\d.]+(,[\d.]+){3}", region)
    pictures = samples_of(image) if image else None
    fill = fill or ("blur" if pictures else "swap")
    target = "decision" if pictures and target == "label" else target
    chosen = pictures or samples(data, limit=limit, seed=seed)
    if not as_json:
        print_note(f"at most {len(chosen) * (2 + controls) + 2 * BUDGET} forwards")
    result = region_test(
        setup.model,
        chosen,
        [float(value) for value in region.split(",")] if box else region,
        target=target,
        fill=fill,
        controls=controls,
        budget=BUDGET,
        batch=batch,
        seed=seed,
    )
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        result.sheet().save(to / "before-after.png")
        write_text(to / "images.csv", csv_text(*result.table()))
    if as_json:
        print_json(result.description())
        return
    head, rows = result.table()
    print_table(head, rows[:20])
    if len(rows) > 20:
        print_line(f"and {len(rows) - 20} images more (--out, --json)")
    print_table(*result.summary())
    print_line(f"{result.forwards} forwards")
    if to is not None:
        print_line(f"before-after.png and images.csv in {to}")
