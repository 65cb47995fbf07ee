"""The command that shows what makes two images alike to a network of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import Json, Layers, ModelName, ModelOptions, setup_of
from konkyo.apps.cli.terminal import print_json, print_line
from konkyo.errors import KonkyoError


@with_groups
def pair(
    first: Annotated[str, typer.Argument(help="An image.")],
    second: Annotated[str, typer.Argument(help="The image that it is compared with.")],
    model: ModelName,
    method: Annotated[str, typer.Option("--method", help="What explains the likeness in each image.")] = "hires_cam",
    kind: Annotated[str, typer.Option("--kind", help="dot, cosine or distance.")] = "dot",
    layer: Layers = None,
    links: Annotated[int, typer.Option("--links", min=0, help="Lines between the places that add most.")] = 5,
    place: Annotated[
        str | None, typer.Option("--place", help="x,y in the first image: also draw what it adds with the second.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="The picture with both images lit.")] = Path("pair.png"),
    model_options: ModelOptions = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Show what makes two images alike: a map of each, and lines between the places that add most."""
    from konkyo.explanation.pairs import pair as compared

    if layer and len(layer) > 1:
        raise KonkyoError(f"a pair is explained at one layer; got {', '.join(layer)}")
    where, network = layer[0] if layer else None, setup_of(model, model_options).model
    result = compared(network, first, second, method=method, kind=kind, layer=where)  # type: ignore[arg-type]
    result.picture(to, links=links if result.matrix is not None else 0)
    files = [str(to)]
    if place is not None:
        files.append(str(to.with_name(f"{to.stem}.place{to.suffix}")))
        result.counterpart_picture(*_place(place), path=files[1])
    if as_json:
        values = {"cosine": result.cosine, "layer": result.a.layer, "matrix": result.refusal or result.matrix_layer}
        print_json({**values, "pictures": files})
        return
    print_line(f"cosine {result.cosine:.3f}; {' and '.join(files)}")
    if result.refusal:
        print_line(f"no lines: {result.refusal}")


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise KonkyoError(f"--place is x,y in pixels of the first image, as in 120,64; got {text!r}") from None
    return x, y
