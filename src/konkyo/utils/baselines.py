"""Baselines: what an image is compared with, by name; methods go from them, and metrics put them in place of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.utils.tensors import blurred, mean_colour

BaselineName: TypeAlias = Literal["zero", "black", "white", "mean", "blur", "noise"]
"""0 of the prepared image (the mean colour of its data), a black or a white image, the image's own mean colour, the
image under a Gaussian of a sixteenth of its longest side, or noise: uniform between black and white, for all images."""
Baseline: TypeAlias = "float | BaselineName | Tensor"
"""One baseline: a value of the prepared image, a name, or a prepared image (C, *size), or what broadcasts to one."""
Baselines: TypeAlias = "Baseline | Sequence[Baseline]"
"""One or several: a list, or a tensor (M, C, *size) of M baselines. Each is for every image."""

NAMES: tuple[str, ...] = get_args(BaselineName)


def baseline_images(
    which: Baseline,
    images: Tensor,
    *,
    black: Tensor | None = None,
    white: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns one baseline of every image (N, C, *size), (N or 1, C or 1, *size or 1s), which broadcasts with them.

    `black` and `white` are prepared images of these colours, or what broadcasts to them; `generator` draws the noise.
    KonkyoError: something that is no baseline, or a name that needs what is not given.
    """
    if isinstance(which, Tensor):
        return _given(which, images)
    if isinstance(which, (int, float)) and not isinstance(which, bool):
        if not math.isfinite(which):
            raise KonkyoError(f"a baseline is a finite value of the prepared image; got {which}")
        return images.new_full((1,) * images.ndim, which)
    if not isinstance(which, str) or which not in NAMES:
        raise unknown("baseline", which, [*NAMES, "a number", "a tensor"])
    if which == "zero":
        return images.new_zeros((1,) * images.ndim)
    if which == "mean":
        return mean_colour(images)
    if which == "blur":
        return blurred(images, max(images.shape[2:]) / 16)
    if which == "black":
        return _colour(which, black, images)
    if which == "white":
        return _colour(which, white, images)
    dark, light = _colour("black", black, images), _colour("white", white, images)
    if generator is None:
        raise KonkyoError("the baseline 'noise' needs a generator that draws it")
    noise = torch.rand(images.shape[1:], generator=generator, device=generator.device).to(images)
    return dark + noise[None] * (light - dark)


def each_baseline(which: Baselines, axes: int) -> list[Baseline]:
    """Returns the baselines one by one, for images with so many axes (4: N, C, H, W). KonkyoError: an empty list."""
    listed: list[Baseline]
    if isinstance(which, Tensor):
        listed = list(which) if which.ndim == axes else [which]
    elif isinstance(which, Sequence) and not isinstance(which, str):
        listed = [one for item in which for one in each_baseline(item, axes)]
    else:
        listed = [which]
    if not listed:
        raise KonkyoError("one baseline or more was expected; got none")
    return listed


def all_baseline_images(
    which: Baselines,
    images: Tensor,
    *,
    black: Tensor | None = None,
    white: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Returns the images (N, C, *size) of every baseline of `which`; see `baseline_images`."""
    return [
        baseline_images(one, images, black=black, white=white, generator=generator).expand_as(images)
        for one in each_baseline(which, images.ndim)
    ]


def _colour(name: str, colour: Tensor | None, images: Tensor) -> Tensor:
    if colour is None:
        raise KonkyoError(f"the baseline {name!r} needs to know what {name} is as prepared for the network")
    return colour.to(images).reshape((1,) * (images.ndim - colour.ndim) + tuple(colour.shape))


def _given(tensor: Tensor, images: Tensor) -> Tensor:
    """Returns a tensor with as many axes as the images. KonkyoError: it does not broadcast with them."""
    shaped = tensor.to(images).reshape((1,) * (images.ndim - tensor.ndim) + tuple(tensor.shape))
    fits = shaped.ndim == images.ndim and all(a in (1, b) for a, b in zip(shaped.shape, images.shape, strict=True))
    if not fits:
        one = "x".join(map(str, images.shape[1:]))
        raise KonkyoError(f"a baseline is one prepared image, {one}, or broadcasts to it; got {tuple(tensor.shape)}")
    return shaped
