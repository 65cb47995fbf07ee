"""A map drawn over its picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from konkyo.errors import KonkyoError, unknown

Map: TypeAlias = "Tensor | NDArray[np.generic]"
Limits: TypeAlias = "tuple[float, float]"
Brightness: TypeAlias = Literal["probability", "full"]
"""How bright a map is drawn: as its target is probable, or like every other."""

SEQUENTIAL = "plasma"
"""Colours of non-negative maps: perceptually uniform, and of hues (violet to yellow) that photographs seldom hold."""
DIVERGING = "coolwarm"
"""Colours of signed maps: blue below zero, red above, equally bright on both sides."""
OPACITY = 0.7
"""How much of a map's colour covers the picture where the map is strong."""

_STRONG = 0.5  # from half of the highest value on, colour alone tells values apart; below, the picture shows through
_PALE = 0.5  # the inner half of a diverging colour map is nearly white and would look like fog
_FINE, _SHARE = 64 * 64, 0.99  # of maps with so many cells the highest hundredth shares the last colour
_SMALL_PART = 0.002  # of the picture: a part that would be overlooked
_HIGHEST_LEVEL = 254  # levels from 0 to this: an odd number of them, so that zero has its own


def colourise(map_: Map, *, cmap: str | None = None, limits: Limits | None = None) -> Image.Image:
    """Draws the map (h, w) as an RGB picture of w x h pixels; pixels that are not finite are hatched grey.

    Scale and colours as in `overlay`: non-negative maps from their lowest to their highest value, maps with a value
    below zero by their largest magnitude, with zero in the middle. `cmap` is any name that matplotlib knows.
    """
    values = _values(map_)
    signed = is_signed(values, limits)
    levels, missing = _levels(_scaled(values, signed, limits), signed, tuple(values.shape))
    return _hatched(_coloured(_colours(cmap, signed), levels), missing)


def overlay(
    image: Image.Image,
    map_: Map,
    *,
    signed: bool | None = None,
    limits: Limits | None = None,
    cmap: str | None = None,
    opacity: float = OPACITY,
) -> Image.Image:
    """Draws the map (h, w) over the picture, at the picture's size: RGB.

    The map is enlarged linearly, cell centres in place. Where it is zero (or lowest, if non-negative) the picture is
    unchanged. Towards half of the highest value it gives way to grey under the map's colour, up to `opacity`. Beyond
    that the colour alone changes. A pixel depends on its own value only: pictures with the same `limits` compare.

    Without `limits` a non-negative map runs from its lowest to its highest value, and a constant one leaves the picture
    as it is. A signed one runs over plus and minus its largest magnitude. In a fine map (4096 cells or more), where a
    few pixels can outshine all others, the highest hundredth counts as one. `signed`: None for "if a value (or the
    lower limit) is below zero". `cmap`: any name that matplotlib knows. Pixels that are not finite are hatched grey.
    """
    if not 0 <= opacity <= 1:
        raise KonkyoError(f"opacity lies between 0 and 1; got {opacity}")
    values = _values(map_)
    if signed is None:
        signed = is_signed(values, limits)
    levels, missing = _levels(_scaled(values, signed, limits), signed, (image.height, image.width))
    strength = np.abs(np.linspace(-1 if signed else 0, 1, _HIGHEST_LEVEL + 1))
    covered = np.minimum(strength / _STRONG, 1) * 255
    picture = image.convert("RGB")
    picture = Image.composite(picture.convert("L").convert("RGB"), picture, _mask(covered, levels))
    colours = _coloured(_colours(cmap, signed, skip=_PALE), levels)
    return _hatched(Image.composite(colours, picture, _mask(covered * opacity, levels)), missing)


def boxed(
    image: Image.Image,
    box: Sequence[float],
    *,
    width: int | None = None,
    colour: str = "white",
    edge: int | None = None,
) -> Image.Image:
    """Draws a box (x1, y1, x2, y2) in pixels of the picture on it, in `colour` between dark lines; NaN: no box.

    Sides beyond the picture's border are drawn on the border. `width` of the line in pixels (None: by the picture's
    size), `edge` that of the dark lines (None: half of that).
    """
    if not all(np.isfinite(box)):
        return image
    framed = image.copy()
    line = width or max(1, round(max(image.size) / 250))
    dark = (line + 1) // 2 if edge is None else edge
    draw = ImageDraw.Draw(framed)
    x1, x2 = (round(min(max(x, dark), image.width - 1 - dark)) for x in (box[0], box[2]))
    y1, y2 = (round(min(max(y, dark), image.height - 1 - dark)) for y in (box[1], box[3]))
    x2, y2 = max(x1, x2), max(y1, y2)
    for ink, grown, thick in (("black", dark, line + 2 * dark), (colour, 0, line)):
        if grown or ink == colour:
            draw.rectangle((x1 - grown, y1 - grown, x2 + grown, y2 + grown), outline=ink, width=thick)
    return framed


def outlined(image: Image.Image, part: Map, *, width: int | None = None) -> Image.Image:
    """Draws the outline of a part of the picture on it, in white between dark lines; a small part gets a ring as well.

    `part` (h, w) lies over the whole picture: it is where it reaches half of its highest value. `width` of the white
    line in pixels (None: by the picture's size).
    """
    line = width or max(1, round(max(image.size) / 250))
    values = _values(part)
    tall, wide = image.height, image.width
    mode = "bilinear" if values.shape[0] < tall or values.shape[1] < wide else "area"
    enlarged = interpolate(values[None, None].float(), size=(tall, wide), mode=mode)[0, 0]
    inside = enlarged >= values.max() / 2
    edge, framed = (line + 1) // 2, image.copy()
    for ink, outer, inner in (("black", line + edge, edge), ("white", line, 0)):
        ring = _grown(inside, outer) & ~_grown(inside, -inner)
        framed.paste(ink, mask=Image.fromarray((ring.numpy() * 255).astype(np.uint8)))
    rows, columns = inside.nonzero().unbind(1)
    if len(rows) and inside.float().mean() < _SMALL_PART:
        x, y, reach = columns.float().mean().item(), rows.float().mean().item(), max(6, 5 * line, max(image.size) / 25)
        draw = ImageDraw.Draw(framed)
        for ink, thick in (("black", line + 2 * ((line + 1) // 2)), ("white", line)):
            grown = reach + (thick - line) // 2
            draw.ellipse((x - grown, y - grown, x + grown, y + grown), outline=ink, width=thick)
    return framed


def _grown(inside: Tensor, reach: int) -> Tensor:
    """Returns a part (h, w) bool with so many pixels more on every side, or fewer; the picture's border is no side."""
    sign = 1 if reach >= 0 else -1
    pooled: Tensor = sign * max_pool2d(sign * inside.float()[None, None], 2 * abs(reach) + 1, 1, abs(reach))
    return pooled[0, 0] > 0.5


def is_signed(map_: Map, limits: Limits | None = None) -> bool:
    """Tells whether a map is drawn around zero: the lower limit, or else any finite value, is below zero."""
    if limits is not None:
        return limits[0] < 0
    values = _values(map_)
    return bool((values[values.isfinite()] < 0).any())


def colour_table(signed: bool) -> NDArray[np.uint8]:
    """Returns RGB (255, 3) of the levels that `overlay` draws over a picture; of a signed scale 127 is zero."""
    return _colours(None, signed, skip=_PALE if signed else 0.0)


def scale_of(map_: Map, limits: Limits | None = None) -> tuple[NDArray[np.uint8], float, float]:
    """Returns the levels (h, w) of a map as `overlay` scales it, and the values of the first and last of them.

    Levels run from 0 to 254; 255 stands for a value that is not finite.
    """
    values = _values(map_)
    signed = is_signed(values, limits)
    levels, missing = _levels(_scaled(values, signed, limits), signed, tuple(values.shape))
    low, high = limits or _limits(values[values.isfinite()].numpy(), signed)
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    return np.where(missing, 255, levels).astype(np.uint8), float(low), float(high)


def _values(map_: Map) -> Tensor:
    """Returns the map (h, w) as float64 on the CPU."""
    values = map_.detach() if isinstance(map_, Tensor) else torch.from_numpy(np.array(map_, dtype=np.float64))
    if values.ndim != 2 or not values.numel():
        raise KonkyoError(f"a map to be drawn has the shape (h, w); got {tuple(values.shape)}")
    return values.cpu().double()


def _scaled(values: Tensor, signed: bool, limits: Limits | None) -> Tensor:
    """Scales into [0, 1], or [-1, 1] if signed; what is not finite stays NaN."""
    finite = values.isfinite()
    known = values[finite]
    if limits is None:
        limits = _limits(known.numpy(), signed)
    low, high = map(float, limits)
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise KonkyoError(f"limits are two finite numbers, the lower one first; got {limits}")
    if signed:
        low, high = 0.0, max(abs(low), abs(high))
    scaled = (values - low) / (high - low) if high > low else torch.zeros_like(values)
    return scaled.clamp(-1 if signed else 0, 1).where(finite, torch.nan)


def _limits(known: NDArray[np.float64], signed: bool) -> Limits:
    """Returns the range of the values; in a fine map a few pixels must not leave the others without colour."""
    if not known.size:
        return 0.0, 0.0
    low, high = float(known.min()), float(known.max())
    if known.size >= _FINE:
        strong = float(np.quantile(np.abs(known) if signed else known, _SHARE))
        high = strong if strong > max(low, 0.0) else high
        low = -high if signed else low
    return low, high


def _levels(scaled: Tensor, signed: bool, size: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Returns steps of the colour scale, enlarged to (H, W) before rounding, and where nothing is known."""
    if tuple(scaled.shape) != size:
        shrunk = scaled.shape[0] > size[0] or scaled.shape[1] > size[1]

        def enlarge(grid: Tensor) -> Tensor:
            return interpolate(
                grid[None, None].float(), size=size, mode="bilinear", align_corners=False, antialias=shrunk
            )[0, 0]

        known = scaled.isfinite()
        if known.all():
            scaled = enlarge(scaled)
        else:  # the mean over known neighbours only
            nearest = interpolate(known[None, None].float(), size=size, mode="nearest-exact")[0, 0] > 0
            scaled = enlarge(scaled.nan_to_num(0)) / enlarge(known.double()).clamp(min=1e-6)
            scaled = scaled.where(nearest, torch.nan)
    position = scaled.numpy()
    missing = np.isnan(position)
    position = np.where(missing, 0, position)
    half = _HIGHEST_LEVEL // 2
    steps = np.rint(position * half) + half if signed else np.rint(position * _HIGHEST_LEVEL)
    return steps.clip(0, _HIGHEST_LEVEL).astype(np.uint8), missing


@lru_cache(maxsize=32)
def _colours(cmap: str | None, signed: bool, skip: float = 0.0) -> NDArray[np.uint8]:
    """Returns RGB of every level, read-only; of a signed scale the share `skip` around the middle is left out."""
    import matplotlib  # drawing only: `import konkyo` stays light

    name = cmap or (DIVERGING if signed else SEQUENTIAL)
    if name not in matplotlib.colormaps:
        raise unknown("colour map", name, matplotlib.colormaps)
    where = np.linspace(0, 1, _HIGHEST_LEVEL + 1)
    if signed:
        around = 2 * where - 1
        where = (1 + np.sign(around) * skip + around * (1 - skip)) / 2
    table = np.array(matplotlib.colormaps[name](where, bytes=True)[:, :3], dtype=np.uint8)
    table.flags.writeable = False  # it is shared
    return table


def _coloured(table: NDArray[np.uint8], levels: NDArray[np.uint8]) -> Image.Image:
    """Returns the picture of a palette's colours (k, 3) at levels (h, w)."""
    picture = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
    picture.putpalette(table.tobytes())
    return picture.convert("RGB")


def _mask(per_level: NDArray[np.float64], levels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(per_level.round().astype(np.uint8)[levels])


def _hatched(picture: Image.Image, missing: NDArray[np.bool_]) -> Image.Image:
    if not missing.any():
        return picture
    diagonals = np.add.outer(np.arange(missing.shape[0]), np.arange(missing.shape[1]))
    stripes = np.where(diagonals % 8 < 4, 110, 150).astype(np.uint8)
    picture.paste(Image.fromarray(stripes).convert("RGB"), mask=Image.fromarray(missing.astype(np.uint8) * 255))
    return picture
