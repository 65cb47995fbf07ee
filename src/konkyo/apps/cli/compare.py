"""The command that compares methods on a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from konkyo.apps.cli.options import (
    Boxes,
    Budget,
    Classes,
    Crop,
    Device,
    FuseName,
    Images,
    Json,
    Labels,
    Layers,
    Mean,
    ModelName,
    Not,
    Of,
    Options,
    PrecisionName,
    Resize,
    Score,
    Seed,
    Std,
    Top,
    Wanted,
    Weights,
    err,
    files_of,
    out,
    progress,
    request_of,
    setup_of,
    target_of,
)

if TYPE_CHECKING:
    from konkyo.draw.sheets import Row

from konkyo.apps.cli.manifest import Manifest, report_of
from konkyo.apps.cli.pictures import explained, rows_of


def compare(
    images: Images,
    model: ModelName = "konkyo/scenes-classifier",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Several, as in grad_cam,layer_cam, or 'all'; default: the seven CAMs, of detectors the six compared "
            "in the paper on IG-ODAM.",
        ),
    ] = "",
    classes: Classes = None,
    top: Top = None,
    against: Not = None,
    score: Score = None,
    box: Boxes = None,
    of: Of = None,
    layer: Layers = None,
    fuse: FuseName = None,
    to: Annotated[Path, typer.Option("--out", help="The contact sheet: .png, .jpg or .webp.")] = Path("konkyo.png"),
    shared: Annotated[bool, typer.Option("--shared", help="One colour scale per row instead of one per map.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 40,
    weights: Weights = "default",
    labels: Labels = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    option: Options = None,
    budget: Budget = None,
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionName = None,
    as_json: Json = False,
) -> None:
    """Compare methods on a contact sheet: a row per image and class (or detection), a column per method."""
    from konkyo.draw.sheets import contact_sheet, picture_name, save_image

    picture_name(to)
    files = files_of(images)
    setup = setup_of(model, weights, labels, (resize, crop, mean, std), device)
    target = target_of(setup, Wanted(classes, top, against, score, box, of))
    names, request = request_of(method or ",".join(setup.model.task.methods), target, layer, option)
    request |= {"fuse": fuse, "budget": budget, "seed": seed, "precision": precision}
    manifest = Manifest(None, {**setup.settings, "methods": names, **{k: repr(v) for k, v in request.items()}})
    rows: list[Row] = []
    for file, told in progress(files[:limit], "comparing"):
        with manifest.image(file) as entry:
            found = explained(setup.model, file, names, {**request, "progress": told}, entry)
            rows += rows_of(found, file.name, entry)
            if not entry.get("maps"):
                entry["nothing"] = setup.model.task.nothing(target)
                if not as_json:
                    out.print(escape(f"{file.name}: {entry['nothing']}"), soft_wrap=True, highlight=False)
    if len(files) > limit:
        err.print(f"{len(files) - limit} of {len(files)} images left out (--limit {limit})")
    notes = []
    if rows:
        save_image(contact_sheet(rows, names, title=setup.model.name, shared=shared), to)
        manifest.sheet(to)
        notes.append(f"contact sheet: {to}")
    report_of(manifest, as_json, notes)
