"""The command that writes a classifier as an ONNX file with a map beside its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import ModelName, ModelOptions, setup_of, size_of
from konkyo.apps.cli.terminal import print_line
from konkyo.errors import KonkyoError


@with_groups
def export_cam(
    model: ModelName = "konkyo/scenes-classifier",
    method: Annotated[
        str, typer.Option("--method", help="eigen_cam, cam, grad_cam, recipro_cam or attention_rollout.")
    ] = "eigen_cam",
    layer: Annotated[str | None, typer.Option("--layer", "-l", help="The layer whose grid the map is on.")] = None,
    target: Annotated[
        str | None, typer.Option("--class", "-c", help="The class that is always explained; default: the decision.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Side of prepared images, or HEIGHTxWIDTH; default: as prepared.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="The file.")] = Path("konkyo-cam.onnx"),
    model_options: ModelOptions = ModelOptions(),
) -> None:
    """Write an ONNX file of a classifier whose second output is the map of its decision.

    For methods that need no backward. The file is run, and held against the model, before it gets its name.
    """
    from konkyo.explanation.onnx import export_cam
    from konkyo.targets.specs import class_of_text

    setup = setup_of(model, model_options)
    sides = None if size is None else size_of(size)
    if to.suffix != ".onnx":
        raise KonkyoError(f"--out is a file that ends in .onnx; got {to}")
    path = export_cam(
        setup.model,
        to,
        method=method,
        layer=layer,
        target=None if target is None else class_of_text(target),
        size=sides,
    )
    line = f"{path}: images -> logits, maps ({method}), {path.stat().st_size / 1e6:.1f} MB; equal to the model's own"
    print_line(line)
