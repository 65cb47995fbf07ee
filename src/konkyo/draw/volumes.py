"""Maps of volumes: slices in three planes, the one through the maximum first, with a scale bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from konkyo.draw.clips import shared_limits
from konkyo.draw.overlay import overlay
from konkyo.draw.text import Font

_SIDE, _GAP, _LINE, _SLICES = 168, 6, 20, 5
_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def chosen_slices(count: int, first: int, most: int = _SLICES) -> list[int]:
    """Returns the slice of the maximum, then others that are spread evenly.

    >>> chosen_slices(32, 20)
    [20, 4, 12, 28]
    """
    others = [(2 * i + 1) * count // (2 * (most - 1)) for i in range(most - 1)]
    others = sorted({slice_ for slice_ in others if abs(slice_ - first) > max(1, count // (3 * most))})
    return [first, *others][:most]


def montage(
    volume: Tensor, map_: Tensor, step: Sequence[float], unit: str, names: Sequence[str], **style: Any
) -> Image.Image:
    """Draws a map (D, H, W) over slices of a volume (D, H, W) of greys from 0 to 1, a row for each of three planes.

    `step`: how far voxels are apart along each place, in `unit`, which gives slices their shape and the bar its length.
    `names`: what each plane is called. The first slice of every row goes through the maximum of the map; where nothing
    of it is positive, through its minimum.
    """
    style = {"limits": shared_limits(map_), **style}
    highest = float(map_.max()) > 0
    peak = np.unravel_index(int(map_.argmax() if highest else map_.argmin()), map_.shape)
    extent = [n * s for n, s in zip(volume.shape, step, strict=True)]
    scale = _SIDE / max(extent)
    rows = []
    for axis in range(3):
        down, across = (other for other in range(3) if other != axis)
        size = (max(1, round(extent[across] * scale)), max(1, round(extent[down] * scale)))
        numbers = chosen_slices(volume.shape[axis], int(peak[axis]))
        cells = []
        for number in numbers:
            grey = (volume.select(axis, number).clamp(0, 1) * 255).round().byte().cpu().numpy()
            picture = Image.fromarray(grey).convert("RGB").resize(size, Image.Resampling.BICUBIC)
            cells.append(overlay(picture, map_.select(axis, number), **style))
        note = "the maximum" if highest else "the minimum"
        rows.append(_row(names[axis], cells, [(n, volume.shape[axis]) for n in numbers], note, unit, scale))
    wide, tall = max(row.width for row in rows), sum(row.height for row in rows)
    whole = Image.new("RGB", (wide, tall), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def _row(
    name: str, cells: Sequence[Image.Image], numbers: Sequence[tuple[int, int]], note: str, unit: str, scale: float
) -> Image.Image:
    """Draws the slices of one plane beside each other, with the scale bar in the first."""
    width, height = cells[0].size
    step = max(width, 132) + _GAP
    row = Image.new("RGB", (_GAP + len(cells) * step, height + 2 * _LINE + _GAP), "white")
    draw, font, bold = ImageDraw.Draw(row), Font(12), Font(12, bold=True)
    bold.draw(draw, (_GAP, 2), name, "#1a1a1a")
    for place, (cell, (number, count)) in enumerate(zip(cells, numbers, strict=True)):
        left = _GAP + place * step
        row.paste(cell, (left, _LINE))
        peak = f", {note}" if place == 0 else ""
        font.draw(draw, (left, _LINE + height + 2), f"{number + 1}/{count}{peak}", "#404040")
    length = max([n for n in _LENGTHS if n * scale <= width / 2], default=_LENGTHS[0])
    x, y = _GAP + 6, _LINE + height - 8
    draw.rectangle((x - 1, y - 1, x + round(length * scale) + 1, y + 3), fill="black")
    draw.rectangle((x, y, x + round(length * scale), y + 2), fill="white")
    for shift, colour in ((1, "black"), (0, "white")):
        Font(11).draw(draw, (x + shift, y - 16 + shift), f"{length} {unit or 'voxels'}", colour)
    return row
