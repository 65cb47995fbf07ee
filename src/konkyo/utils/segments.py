"""Segments: an image's pixels in groups: superpixels by scikit-image (the extra `segments`), a grid, or one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, NotApplicable, install_hint, unknown
from konkyo.utils.tensors import min_max, per_item, safe_divide

Segmenter: TypeAlias = Literal["slic", "quickshift", "felzenszwalb", "grid"]
"""How an image is divided into segments."""
Segmentation: TypeAlias = Segmenter | Tensor
"""How, or the segments themselves: (*size), or (N, *size) for every image its own; whole numbers."""
Count: TypeAlias = int | tuple[int, ...]
"""How many segments, about; of a grid also the cells along every axis."""

_BEYOND = 0.25  # of the way from black to white: what lies further outside was prepared in a way that nobody said


def segments_of(
    images: Tensor, kind: Segmentation = "slic", count: Count = 50, *, black: Tensor, white: Tensor
) -> Tensor:
    """Divides every image into segments (N, *size), int64, numbered 0, 1, ... without a gap.

    `images` (N, C, *size) as prepared for the network; `black` and `white` are such pixels, (C,) or images of them.
    "slic" (Achanta et al., 2012) makes about `count` segments of one colour and compact; "grid" about `count` cells, or
    (rows, columns) of them. "quickshift" (as in LIME) and "felzenszwalb" find as many as there are; the latter makes
    none smaller than a fifth of size / `count`. One channel is segmented as a grey picture. NotApplicable: without
    scikit-image, or inputs of other axes than the segmenter has.
    """
    if not isinstance(kind, str):
        return _numbered(_given(kind, images))
    if kind not in get_args(Segmenter):
        raise unknown("kind of segments", kind, get_args(Segmenter))
    size = images.shape[2:]
    if kind == "grid":
        return _grid(size, count).to(images.device).expand(len(images), *size).contiguous()
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise KonkyoError(f'count is a whole number of segments, 1 or more (of a "grid" also a tuple); got {count!r}')
    if len(size) not in ((2, 3) if kind == "slic" else (2,)):
        raise NotApplicable(f'{kind} divides pictures; inputs with places {tuple(size)} are divided by segments="grid"')
    segment = _segmenter(kind, count, images.shape[1], math.prod(size))
    labels = [segment(picture.movedim(0, -1).contiguous().numpy()) for picture in _colours(images, black, white).cpu()]
    return _numbered(torch.stack([torch.as_tensor(one) for one in labels]).to(images.device))


def segment_means(values: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean of values (N, C, *size) over every segment (N, C, d), 0 of none, and its pixels (N, d).

    `segments`: (N, *size) from 0 to d - 1; an image may have fewer than d of them.
    """
    flat, pixels = segments.flatten(1), values.flatten(2)
    count = int(flat.max()) + 1 if flat.numel() else 1
    places = flat[:, None].expand(-1, values.shape[1], -1)
    sums = pixels.new_zeros(*values.shape[:2], count).scatter_add_(2, places, pixels)
    sizes = pixels.new_zeros(len(flat), count).scatter_add_(1, flat, pixels.new_ones(()).expand(flat.shape))
    return safe_divide(sums, sizes[:, None]), sizes


def _given(segments: Any, images: Tensor) -> Tensor:
    """Returns segments of the user's as (N, *size). KonkyoError: of another shape, or no whole numbers."""
    size = images.shape[2:]
    try:
        segments = torch.as_tensor(segments)
    except (TypeError, ValueError, RuntimeError):
        raise unknown("kind of segments", segments, [*get_args(Segmenter), "a tensor of them"]) from None
    shaped = tuple(segments.shape) in (tuple(size), (len(images), *size))
    if not shaped or segments.is_floating_point() or segments.is_complex():
        raise KonkyoError(
            f"segments are whole numbers of shape {tuple(size)}, or {(len(images), *size)} for {len(images)} prepared "
            f"images; got {tuple(segments.shape)} {segments.dtype}"
        )
    numbers: Tensor = segments.to(images.device, torch.int64)
    return numbers.expand(len(images), *size)


def _numbered(segments: Tensor) -> Tensor:
    """Numbers the segments of every image from 0, without a gap."""
    return torch.stack([one.unique(return_inverse=True)[1] for one in segments])


def _grid(size: Sequence[int], count: Count) -> Tensor:
    """Returns (*size): which cell of a grid a place is in; the cells of an axis differ by one place at most."""
    if isinstance(count, int) and not isinstance(count, bool):
        edge = (math.prod(size) / max(count, 1)) ** (1 / len(size))
        sides = tuple(min(extent, max(1, round(extent / edge))) for extent in size) if count > 0 else ()
    else:
        sides = tuple(count) if isinstance(count, (tuple, list)) else ()
    if len(sides) != len(size) or not all(
        isinstance(n, int) and 1 <= n <= extent for n, extent in zip(sides, size, strict=True)
    ):
        raise KonkyoError(
            f"count of a grid on {tuple(size)} places is their number, or that along each axis; got {count!r}"
        )
    cells = torch.zeros((), dtype=torch.int64)
    for side, extent in zip(sides, size, strict=True):
        cells = cells[..., None] * side + torch.arange(extent) * side // extent
    return cells


def _segmenter(kind: Segmenter, count: int, planes: int, places: int) -> Callable[[Any], Any]:
    """Returns the function of scikit-image that gives the segments of a picture (*size, C)."""
    try:
        segmentation = import_module("skimage.segmentation")
    except ImportError as error:
        raise NotApplicable(
            f'segments="{kind}" needs scikit-image: {install_hint("segments")}; segments="grid" does without'
        ) from error
    if kind == "slic":
        return lambda picture: segmentation.slic(
            picture, n_segments=count, compactness=10, start_label=0, channel_axis=-1
        )
    if kind == "quickshift":
        lab = planes in (1, 3)
        return lambda picture: segmentation.quickshift(
            picture, kernel_size=4, max_dist=200, ratio=0.2, convert2lab=lab, channel_axis=-1
        )
    smallest = max(1, places // (5 * count))
    return lambda picture: segmentation.felzenszwalb(picture, scale=100, sigma=0.5, min_size=smallest, channel_axis=-1)


def _colours(images: Tensor, black: Tensor, white: Tensor) -> Tensor:
    """Returns prepared images as colours from 0 to 1, in double precision; one channel becomes three.

    An image far outside black and white was not prepared as these say: it is scaled by its own range.
    """
    shape = (1, -1, *[1] * (images.ndim - 2))
    low, high = (pixel.double().view(shape) if pixel.ndim == 1 else pixel.double() for pixel in (black, white))
    colours = (images.double() - low) / (high - low)
    flat = colours.flatten(1)
    outside = (flat.amin(1) < -_BEYOND) | (flat.amax(1) > 1 + _BEYOND)
    colours = torch.where(per_item(outside, images), min_max(images.double()), colours).clamp(0, 1)
    return colours.expand(-1, 3, *colours.shape[2:]) if colours.shape[1] == 1 else colours
