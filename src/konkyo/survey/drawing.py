"""The pictures of a survey: both sides drawn by one rule, so that nothing but the maps tells them apart."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from konkyo.draw.overlay import Limits, boxed, outlined, overlay
from konkyo.errors import KonkyoError, unknown
from konkyo.explanation.result import Explanation

Scale: TypeAlias = Literal["picture", "joint"]
"""Every map from its own lowest to its own highest value; or all maps of an item on one scale."""
_QUALITY = 92
_STRONGEST = 0.99  # of a map's cells; the rest shares the last colour, as in every fine map that konkyo draws
_ALIKE = 3.0  # levels of 255: the mean difference of two views that are one picture, resized in two ways


@dataclass(frozen=True)
class Drawing:
    """This says how pictures are drawn: with the same colours, rule of scaling and size for all methods."""

    scale: Scale = "picture"
    signed: bool = False
    """Whether evidence against the target is drawn too, around zero; else it counts as nothing, of every method."""
    side: int = 448
    """The longer side of a picture in pixels."""

    def __post_init__(self) -> None:
        if self.scale not in (offer := ("picture", "joint")):
            raise unknown("scale", self.scale, offer)
        if not 96 <= self.side <= 2048:
            raise KonkyoError(f"the longer side of a picture has 96 to 2048 pixels; got {self.side}")

    def plain(self, result: Explanation) -> Image.Image:
        """Returns the picture of a row without a map, with the box or the region that is explained."""
        picture = sized(result.picture(0), self.side)
        return marked(picture, result)

    def drawn(self, results: Mapping[str, Explanation]) -> dict[str, Image.Image]:
        """Returns the picture of every method: its map, of one row, over what the model saw."""
        first = next(iter(results.values()))
        picture = sized(first.picture(0), self.side)
        maps = {name: self._values(result, picture) for name, result in results.items()}
        limits = _limits(list(maps.values())) if self.scale == "joint" else None
        return {
            name: marked(overlay(picture, values, signed=self.signed, limits=limits), results[name])
            for name, values in maps.items()
        }

    def _values(self, result: Explanation, picture: Image.Image) -> Tensor:
        shown = result if self.signed else replace(result, rectified=True)  # cell by cell, before maps are enlarged
        return shown.at((picture.height, picture.width))[0].detach().cpu().float()


def _limits(maps: Sequence[Tensor]) -> Limits:
    """Returns one scale for several maps: from the lowest value to what all but a hundredth are below."""
    values = torch.stack([m.nan_to_num(0) for m in maps]).flatten()
    low, high = float(values.min()), float(values.abs().kthvalue(max(1, int(_STRONGEST * len(values)))).values)
    return min(low, high), high


def sized(picture: Image.Image, side: int) -> Image.Image:
    """Returns a picture whose longer side has so many pixels."""
    share = side / max(picture.size)
    size = max(1, round(picture.width * share)), max(1, round(picture.height * share))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def marked(picture: Image.Image, result: Explanation) -> Image.Image:
    """Draws the box of a detection, or the outline of the region, that a row explains."""
    if result.boxes is not None:
        share = picture.width / result.picture(0).width
        return boxed(picture, [side * share for side in result.boxes[0].tolist()])
    part = result.part(0)
    return picture if part is None else outlined(picture, part)


def same_view(first: Image.Image, other: Image.Image) -> bool:
    """Tells whether two models saw the same part of a picture, at whatever resolution."""
    if abs(first.width * other.height - other.width * first.height) > max(first.size) * max(other.size) / 100:
        return False
    small = [
        torch.frombuffer(bytearray(p.convert("RGB").resize((64, 64)).tobytes()), dtype=torch.uint8)
        for p in (first, other)
    ]
    return float((small[0].float() - small[1].float()).abs().mean()) <= _ALIKE


def shuffled(result: Explanation, draw: random.Random) -> Explanation:
    """Returns a row whose map has its cells in random places."""
    cells = list(range(result.signed[0].numel()))
    draw.shuffle(cells)
    return replace(result, signed=result.signed.flatten(1)[:, cells].reshape(result.signed.shape))


def webp(picture: Image.Image) -> bytes:
    """Returns the file of a picture; the same bytes for the same picture."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=_QUALITY, method=4)
    return buffer.getvalue()
