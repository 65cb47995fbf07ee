"""Pictures as evidence of a finding: pictures beside each other, maps, and bars of a histogram."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from konkyo.draw.overlay import colourise
from konkyo.utils.tensors import resize

_GAP = 4
_INK, _MARK = "#2f6db5", "#d9562b"


def beside(rows: Sequence[Sequence[Image.Image]], side: int = 144) -> Image.Image:
    """Returns a sheet of pictures in rows, each made to fit a square of so many pixels."""
    columns = max((len(row) for row in rows), default=0)
    step = side + _GAP
    sheet = Image.new("RGB", (max(1, columns * step - _GAP), max(1, len(rows) * step - _GAP)), "white")
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            scale = side / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            small = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
            corner = (across * step + (side - size[0]) // 2, down * step + (side - size[1]) // 2)
            sheet.paste(small, corner)
    return sheet


def framed(picture: Image.Image, box: Sequence[float]) -> Image.Image:
    """Returns a copy of the picture with a box xyxy drawn around a part of it."""
    copy = picture.convert("RGB").copy()
    width = max(1, round(max(copy.size) / 100))
    x0, y0, x1, y1 = (round(value) for value in box)
    ImageDraw.Draw(copy).rectangle((x0 - width, y0 - width, x1 + width - 1, y1 + width - 1), outline=_MARK, width=width)
    return copy


def map_picture(map_: Tensor, side: int) -> Image.Image:
    """Draws a map (h, w) alone, as a square of so many pixels."""
    return colourise(_enlarged(map_, side))


def difference_picture(first: Tensor, second: Tensor, side: int) -> Image.Image:
    """Draws the difference of two maps (h, w): red where the first is higher, blue where the second is."""
    gap = _enlarged(first, side) - _enlarged(second, side)
    most = max(float(gap.abs().max()), 1e-6)
    return colourise(gap, limits=(-most, most))


def _enlarged(map_: Tensor, side: int) -> Tensor:
    return resize(map_.detach().cpu().float()[None], (side, side))[0]


def bars(counts: Sequence[float], threshold: int, size: tuple[int, int] = (390, 120)) -> Image.Image:
    """Draws counts as bars, by the square root of the count; those up to the threshold in another colour."""
    sheet = Image.new("RGB", size, "white")
    pen, largest = ImageDraw.Draw(sheet), max([1.0, *map(float, counts)])
    step = size[0] / max(1, len(counts))
    for place, count in enumerate(counts):
        if count:
            top = size[1] - 1 - max(2, round((size[1] - 4) * (count / largest) ** 0.5))
            colour = _MARK if place <= threshold else _INK
            pen.rectangle((place * step, top, (place + 1) * step - 1, size[1] - 1), fill=colour)
    return sheet
