"""Siamese networks: two images go in, and one of them is explained while the other stays as it is."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn

from konkyo.data.images import open_image, upright
from konkyo.errors import KonkyoError, unknown
from konkyo.models.base import Model
from konkyo.models.preprocess import Preprocess
from konkyo.tasks.regression import RegressionTask


@dataclass(frozen=True, eq=False)
class _Beside:
    """It runs a network of two images on the explained one and the one that stays."""

    other: Tensor
    """(1, C, H, W)"""
    explained: int

    def __call__(self, module: nn.Module, images: Tensor) -> Any:
        other = self.other.to(images.device, images.dtype).expand(len(images), *self.other.shape[1:])
        return module(images, other) if self.explained == 0 else module(other, images)


def siamese(
    network: nn.Module,
    other: Tensor | Image.Image | str | os.PathLike[str],
    *,
    explained: int | str = 0,
    preprocess: Preprocess | None = None,
    **model: Any,
) -> Model:
    """Returns the model of one image that a network of two, `network(a, b)`, is when the other one is fixed.

    `other`: the fixed image, prepared (C, H, W) or (1, C, H, W), or a picture, which `preprocess` prepares.
    `explained`: the argument that is explained, 0 or 1, or its name in the network's `forward`. So the evidence in b is
    `siamese(network, a, explained=1)`. `model`: other arguments of `konkyo.Model`, as `classes=("another", "same")`;
    without any that say what the output means it is one number, how alike (or far apart) the images are. Where the
    network puts out both embeddings, `select` makes a number of them:
    `select=lambda pair: torch.cosine_similarity(*pair)`. KonkyoError: no such argument, or no such image.
    """
    place = _place(network, explained)
    prepared = other if isinstance(other, Tensor) else _prepared(other, preprocess)
    prepared = prepared[None] if prepared.ndim == 3 else prepared
    if len(prepared) != 1 or not prepared.is_floating_point():
        raise KonkyoError(
            f"the fixed image is one prepared float tensor (1, C, H, W), or a picture; got {tuple(prepared.shape)} "
            f"{prepared.dtype}"
        )
    call: Callable[[nn.Module, Tensor], Any] = _Beside(prepared.detach(), place)
    if not {"task", "classes", "multilabel", "probabilities"} & model.keys():
        model = {"task": RegressionTask(), **model}
    return Model(network, preprocess, call=call, **model)


def _place(network: nn.Module, explained: int | str) -> int:
    """Returns whether the first or the second argument is explained. KonkyoError: another one."""
    if isinstance(explained, str):
        names = list(inspect.signature(network.forward).parameters)[:2]
        if explained not in names:
            raise unknown(f"image among the arguments of {type(network).__name__}", explained, names)
        return names.index(explained)
    if explained not in (0, 1) or isinstance(explained, bool):
        raise KonkyoError(f"explained is 0, 1 or an argument's name; got {explained!r}")
    return explained


def _prepared(picture: Image.Image | str | os.PathLike[str], preprocess: Preprocess | None) -> Tensor:
    """Returns the picture as the network takes it. KonkyoError: it is not said how, or it is no picture."""
    if preprocess is None:
        raise KonkyoError("a picture needs preprocess=konkyo.Preprocess(...); or give a prepared tensor (1, C, H, W)")
    if isinstance(picture, Image.Image):
        return preprocess(upright(picture))
    return preprocess(open_image(os.fspath(picture)))
