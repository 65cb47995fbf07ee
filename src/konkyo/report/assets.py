"""Pictures and maps as the text that a page carries: WebP and 8-bit grids in base64."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konkyo.draw.overlay import colour_table, is_signed, overlay, scale_of
from konkyo.report.page import HeatMap, ImageRow
from konkyo.utils.tensors import resize

BLOCK = 50
"""So many pictures, or the maps of so many rows, lie in one block of JSON, which is parsed when it is needed."""
_QUALITY = 70
_SIDES = ((60, 448), (250, 320))  # of so many pictures at most, the longer side in pixels
_SIDE = 224
_MAP_BYTES, _MAP_SIDES = 1_800_000, (14, 112)  # of all maps together; the least and most cells along a side


def data_uri(picture: Image.Image, side: int | None = None) -> str:
    """Returns a picture as a data URI of WebP, its longer side at most `side` pixels."""
    return f"data:image/webp;base64,{encoded(picture, side)}"


def encoded(picture: Image.Image, side: int | None = None) -> str:
    """Returns a picture as WebP in base64, its longer side at most `side` pixels."""
    small = picture.convert("RGB") if side is None else reduced(picture, side)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=_QUALITY, method=4)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def reduced(picture: Image.Image, side: int) -> Image.Image:
    """Returns a copy of the picture in RGB whose longer side is `side` pixels at most."""
    small = picture.convert("RGB").copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def composite(picture: Image.Image, map_: HeatMap, side: int) -> Image.Image:
    """Draws a map over its picture, whose longer side becomes `side` pixels at most."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    return overlay(small, placed(map_), limits=map_.limits)


def placed(map_: HeatMap) -> Tensor:
    """Returns the part of a map (h, w) that lies on its picture, float32 on the CPU."""
    values = map_.values.detach().cpu().float()
    if map_.region is None:
        return values
    left, top, right, bottom = map_.region
    fine = resize(values[None], (values.shape[0] * 8, values.shape[1] * 8))[0]
    tall, wide = fine.shape
    part = fine[round(top * tall) : round(bottom * tall), round(left * wide) : round(right * wide)]
    cells = (max(1, round(values.shape[0] * (bottom - top))), max(1, round(values.shape[1] * (right - left))))
    return resize(part[None], (cells[0] * 2, cells[1] * 2))[0]  # twice as fine, since its cells are cut at the border


def packed_map(map_: HeatMap, side: int) -> dict[str, Any]:
    """Returns a map for the page: its cells as bytes in base64, its size, its scale, and what was said of it.

    A byte is a level of the colour scale: 0 to 254 from the lowest to the highest value; of a signed map 127 is zero.
    255 stands for a value that is not finite.
    """
    values = placed(map_)
    if max(values.shape) > side:
        shrink = side / max(values.shape)
        size = tuple(max(1, round(n * shrink)) for n in values.shape)
        values = torch.nn.functional.interpolate(values[None, None], size=size, mode="area")[0, 0]
    signed = is_signed(values, map_.limits)
    levels, low, high = scale_of(values, map_.limits)
    packed: dict[str, Any] = {
        "g": [values.shape[1], values.shape[0]],
        "d": base64.b64encode(levels.tobytes()).decode("ascii"),
        "lo": rounded(low, 4),
        "hi": rounded(high, 4),
    }
    if signed:
        packed["s"] = 1
    if map_.limits is not None:
        packed["sh"] = 1
    return packed


def described_map(map_: HeatMap) -> dict[str, Any]:
    """Returns what the table of rows knows of a map before its cells are needed."""
    values: dict[str, Any] = {} if map_.diagnosis == "ok" else {"k": map_.diagnosis, "msg": map_.message}
    return values | ({"c": dict(map_.caption)} if map_.caption else {})


def map_side(rows: Sequence[ImageRow]) -> int:
    """Returns how many cells along a side maps may have, so that all of them together keep within their budget."""
    count = sum(len(row.maps) + len(row.contrasts) + sum(n.map is not None for n in row.neighbours) for row in rows)
    least, most = _MAP_SIDES
    return max(least, min(most, int(math.sqrt(_MAP_BYTES / max(count, 1)))))


def picture_side(count: int) -> int:
    """Returns the longer side in pixels that so many pictures get."""
    return next((side for most, side in _SIDES if count <= most), _SIDE)


class Pictures:
    """The pictures of a page by number, each picture object once, in blocks that the page reads when it needs them."""

    def __init__(self, side: int) -> None:
        self._side, self._numbers = side, dict[int, int]()
        self._held: list[Image.Image] = []  # keeps the objects alive, so that their ids stay theirs
        self._encoded: list[str] = []

    def add(self, picture: Image.Image, side: int | None = None) -> int:
        """Returns the number of a picture, which is encoded when it comes for the first time."""
        if id(picture) not in self._numbers:
            self._numbers[id(picture)] = len(self._encoded)
            self._held.append(picture)
            self._encoded.append(encoded(picture, side or self._side))
        return self._numbers[id(picture)]

    def blocks(self) -> list[list[str]]:
        """Returns the encoded pictures, `BLOCK` a block."""
        return [self._encoded[at : at + BLOCK] for at in range(0, len(self._encoded), BLOCK)]


def colour_tables() -> dict[str, str]:
    """Returns RGB of the 255 levels of both colour scales, in base64: those of `konkyo.draw.overlay`."""
    return {
        name: base64.b64encode(np.ascontiguousarray(colour_table(signed)).tobytes()).decode("ascii")
        for name, signed in (("sequential", False), ("diverging", True))
    }


def rounded(value: float, digits: int = 5) -> float | None:
    """Returns a number with so many digits, as JSON takes it; None of what is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
