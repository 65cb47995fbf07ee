"""From what a user asks of a dense output, a region or a pixel of the picture, to the cells of the output it is of."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from konkyo.data.frame import Frame
from konkyo.data.images import open_image
from konkyo.errors import ImageError, KonkyoError
from konkyo.targets.regions import (
    WHOLE,
    Mask,
    Pixel,
    Region,
    RegionTarget,
    box_on_grid,
    component_of,
    mask_on_grid,
)

_MOST_CELLS = 2**26
"""A stored mask has at most so many cells."""


def region_of(
    request: Region | Pixel, size: tuple[int, int], frame: Frame, predicted: Callable[[], Tensor] | None = None
) -> tuple[tuple[float, float, float, float] | Mask, str]:
    """Returns the region of an output's grid (*size) that a request is about, and what it is called.

    `predicted` gives the cells (*size) where the network decides for the request's class; None: it decides nothing, and
    a region is all of the picture unless something else is said. KonkyoError: an empty region, or one outside.
    """
    if isinstance(request, Pixel):
        return Mask(box_on_grid(request.box, size, frame)), f"pixel {request.box[0]:.0f},{request.box[1]:.0f}"
    within, weights, words = request.within, torch.ones(size), []
    if within is None:
        within = "predicted" if request.box is None and predicted is not None else "all"
    if within == "predicted":
        if predicted is None:
            raise KonkyoError('within="predicted" is of networks that decide on classes; this one puts out numbers')
        weights = predicted().float()
    elif within != "all":
        mask = within if isinstance(within, Mask) else read_mask(within)
        weights = mask_on_grid(mask, size, frame)
        words.append("mask" if isinstance(within, Mask) else f"mask {Path(within).name}")
    if request.box is not None:
        weights = weights * box_on_grid(request.box, size, frame)
        words.append(f"box {','.join(f'{side:g}' for side in request.box)}")
    if not bool((weights > 0).any()):
        raise KonkyoError(f"the region ({' and '.join([str(within), *words])}) has no cell of the output")
    if request.component is not None:
        weights = component_of(weights, request.component)
        words.append(f"part {request.component}")
    if bool((weights == 1).all()):
        return WHOLE, " ".join(words) or "all of the picture"
    return Mask(weights), " ".join(words)


def read_mask(path: str) -> Mask:
    """Returns the pixels of a picture that are not black. KonkyoError: no such picture, or an empty one."""
    try:
        pixels = np.asarray(open_image(Path(path).expanduser()).convert("L"))
    except ImageError as error:  # which is said of the picture that is explained
        raise KonkyoError(f"the mask cannot be read: {error}") from error
    if not pixels.any():
        raise KonkyoError(f"the mask {path} is empty: all of its pixels are black")
    return Mask(torch.from_numpy(pixels > 0))


def saved_region(target: RegionTarget) -> dict[str, Any]:
    """Returns a target of a region as plain JSON values."""
    region: Any = list(target.region) if not isinstance(target.region, Mask) else packed(target.region)
    return {"index": target.index, "region": region, "score": target.score, "where": target.where}


def restored_region(values: Mapping[str, Any]) -> RegionTarget | None:
    """Returns the target that `saved_region` gave these values for; None where they are of something else."""
    if values.keys() != {"index", "region", "score", "where"}:
        return None
    region = values["region"]
    place: Any = unpacked(region) if isinstance(region, Mapping) else tuple(map(float, region))
    return RegionTarget(values["index"], place, values["score"], str(values["where"]))


def packed(mask: Mask) -> dict[str, Any]:
    """Returns a mask as plain JSON values."""
    data = zlib.compress(mask.weights.numpy().astype("<f4").tobytes(), 6)
    return {"size": list(mask.weights.shape), "weights": base64.b64encode(data).decode("ascii")}


def unpacked(values: Mapping[str, Any]) -> Mask:
    """Returns the mask that `packed` gave these values for. KonkyoError: values that hold none."""
    size: Sequence[int] = values["size"]
    cells = int(np.prod([int(side) for side in size], dtype=np.float64))
    if not size or min(size) < 1 or cells > _MOST_CELLS:
        raise KonkyoError(f"a mask of 1 to {_MOST_CELLS} cells was expected; got {size}")
    data = zlib.decompressobj().decompress(base64.b64decode(values["weights"]), 4 * cells)
    if len(data) != 4 * cells:
        raise KonkyoError(f"a mask of {size} has {4 * cells} bytes; got {len(data)}")
    return Mask(torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32).reshape(tuple(size))))
