"""A layer's features of many images, and their gradients, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from konkyo.engine.forward import OneByOne, Pass
from konkyo.engine.layer import INPUT, Layer
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError
from konkyo.explanation.run import Where
from konkyo.models import Model


def one_layer(model: Model, where: Where, shape: tuple[int, ...]) -> Layer:
    """Returns the one layer whose features are meant. KonkyoError: several layers, or the image itself."""
    if where is not None and isinstance(where, (list, tuple)):
        raise KonkyoError(f"concepts are of one layer; got {len(where)}")
    layer = model.layer(where, shape)  # type: ignore[arg-type]
    if layer.module is None:
        raise KonkyoError(f"concepts are of a layer's features; {INPUT!r} has the image's colours only")
    return layer


def passes(model: Model, images: Tensor, layer: Layer, batch: int, *, gradients: bool = False) -> Iterator[Pass]:
    """Yields a forward of every batch of prepared images (N, C, ...), with the layer captured.

    Networks that run images one by one get them so. KonkyoError: a pyramid of several grids.
    """
    start = 0
    while start < len(images):
        part = images[start : start + batch]
        try:
            made = Pass(model, part, [layer], differentiable=[layer] if gradients else [])
        except OneByOne:
            batch = 1
            continue
        if len(made.levels(layer)) > 1:
            raise KonkyoError(f"{layer.name} puts out {len(made.levels(layer))} grids; name a layer of one")
        yield made
        start += len(part)


def features(model: Model, images: Tensor, layer: Layer, batch: int, seed: int) -> Tensor:
    """Returns what the layer puts out for prepared images (N, C, *grid), in 32 bits at least."""
    session = untouched(model.module, seed)
    with session, session:  # twice: see `Session`
        parts = [made.activations(made.levels(layer)[0]).detach() for made in passes(model, images, layer, batch)]
    if len({part.shape[1:] for part in parts}) > 1:
        raise KonkyoError("the grids of the layer differ between the images")
    values = torch.cat(parts)
    return values.to(torch.promote_types(values.dtype, torch.float32))


def targets_of(model: Model, made: Pass, target: Any, start: int) -> tuple[list[Any], list[str]]:
    """Returns a target for every image of a batch, of which the first is number `start`, and what each is called.

    `target`: one for all images, or a list with one each. KonkyoError: several of an image, or none.
    """
    count, output = len(made.images), made.output
    request = target[start : start + count] if isinstance(target, (list, tuple)) else target
    per_image = model.targets(request, output.detach())
    if any(len(image) != 1 for image in per_image):
        raise KonkyoError(
            "one target per image is asked for here, a class or a Target; got several of an image, or none"
        )
    assert len(per_image) == count
    targets = [image[0] for image in per_image]
    return targets, [model.label(one, output.shape[1] if output.ndim == 2 else None) for one in targets]
