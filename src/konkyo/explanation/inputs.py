"""Inputs: what a user gives as images, as the network takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from konkyo.data.images import open_image
from konkyo.errors import KonkyoError
from konkyo.models import Frame, Model

Images: TypeAlias = "Tensor | str | Path | Image.Image | Sequence[str | Path | Image.Image]"


@dataclass(frozen=True, eq=False)
class Prepared:
    """Images as the network takes them."""

    images: Tensor
    """(N, C, ...)"""
    pictures: tuple[Image.Image, ...] | Tensor
    """What the model sees of them."""
    frames: tuple[Frame, ...]
    """Where that lies in the network's input."""


def prepare(model: Model, images: Images) -> Prepared:
    """Returns paths, pictures or a tensor as the network takes them. KonkyoError: something else, or other sizes."""
    if isinstance(images, Tensor):
        tensor = model.prepared(images)
        shown = tensor.detach() if model.preprocess is None else model.preprocess.undo(tensor.detach())
        return Prepared(tensor, shown, (Frame(),) * len(tensor))
    if not isinstance(images, (str, Path, Image.Image, Sequence)):
        raise KonkyoError(
            f"images are a path, a picture, a list of them, or a tensor (N, C, H, W); got {type(images).__name__}"
        )
    listed = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    if not listed:
        raise KonkyoError("no images: an empty list came")
    for item in listed:
        if not isinstance(item, (str, Path, Image.Image)):
            raise KonkyoError(
                f"images are a path, a picture, a list of them, or a tensor (N, C, H, W); got {type(item).__name__}"
            )
    if model.preprocess is None:
        raise KonkyoError(
            f"{model.name} does not say how to prepare a picture; give a prepared tensor (N, C, H, W), or "
            "konkyo.Model(module, preprocess=konkyo.Preprocess(...))"
        )
    opened = [item if isinstance(item, Image.Image) else open_image(item) for item in listed]
    prepared = [model.preprocess(picture) for picture in opened]
    if len({t.shape for t in prepared}) > 1:
        raise KonkyoError(
            "the pictures differ in size after preprocessing; give the Preprocess a crop, or explain them one by one"
        )
    return Prepared(
        model.prepared(torch.stack(prepared)),
        tuple(model.preprocess.view(picture) for picture in opened),
        tuple(model.preprocess.frame(picture) for picture in opened),
    )
