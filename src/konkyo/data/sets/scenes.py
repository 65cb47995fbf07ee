"""Drawn scenes in which the part of the image that decides the class is known, pixel by pixel.

The ten classes are five pairs of twins. Twins share body, colours, pose, size and surroundings, and differ in one part
only: the *evidence*. A model that names the class has seen the evidence, so a map that shows why must point there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor

from konkyo.errors import KonkyoError, unknown

CLASSES: tuple[str, ...] = (
    *("cat", "rabbit"),  # told apart by the ears
    *("taxi", "police_car"),  # by what is on the roof
    *("sailboat", "steamboat"),  # by what drives it
    *("tulip", "daisy"),  # by the blossom
    *("lighthouse", "windmill"),  # by the top of the tower
)
"""The names of the classes, in pairs that one part tells apart; a label is an index into them."""

_Array = NDArray[np.float64]
_Colour = tuple[int, int, int]
_Palette = dict[str, _Colour]


@dataclass(frozen=True)
class Scene:
    """A scene is an image and what is true of it: n objects, the one farthest back first."""

    image: Image.Image
    """RGB, (size, size)."""
    labels: Tensor
    """(n,) int64, indices into CLASSES."""
    boxes: Tensor
    """(n, 4) float32, xyxy in pixels, tight around the visible part of the object."""
    masks: Tensor
    """(n, H, W) bool, visible pixels of the object."""
    evidence: Tensor
    """(n, H, W) bool, visible pixels of the part that alone decides the class; a subset of the mask."""
    colours: tuple[str, ...]
    """(n,), of COLOURS: the main paint of the object's body; "" where it has no clear name. Flowers have none."""


class Scenes(torch.utils.data.Dataset[Scene]):
    """This draws `length` scenes; seed and index decide the scene, whatever the size it is drawn at.

    `objects` is a number or a range (low, high), `classes` the names to draw from. Of every object at least 50 % stays
    visible, and of its evidence at least 60 %.

    >>> scene = Scenes(10, seed=3, objects=2)[0]
    >>> scene.image.size, tuple(scene.boxes.shape), bool((scene.evidence & ~scene.masks).any())
    ((128, 128), (2, 4), False)
    """

    def __init__(
        self,
        length: int = 1000,
        *,
        seed: int = 0,
        size: int = 128,
        objects: int | tuple[int, int] = (1, 5),
        classes: Sequence[str] | None = None,
    ) -> None:
        """Checks the options. KonkyoError: a number out of range, or an unknown class."""
        low, high = (objects, objects) if isinstance(objects, int) else objects
        names = CLASSES if classes is None else tuple(classes)
        if not 1 <= low <= high <= 8:
            raise KonkyoError(f"objects: expected a number from 1 to 8 or a range (low, high) of them, got {objects!r}")
        if size < 64:
            raise KonkyoError(f"size: expected at least 64 pixels, got {size}")
        if length < 0 or seed < 0:
            raise KonkyoError(f"length and seed: expected no negative number, got {length} and {seed}")
        if isinstance(classes, str) or not names:
            raise KonkyoError(f"classes: expected a list of names, got {classes!r}. On offer: {', '.join(CLASSES)}")
        for name in names:
            if name not in CLASSES:
                raise unknown("class", name, CLASSES)
        self.length, self.seed, self.size, self.objects = length, seed, size, (low, high)
        self.labels = tuple(CLASSES.index(name) for name in names)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if not -self.length <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return _render(_plan(self.seed, index % self.length, self.objects, self.labels), self.size)

    def __iter__(self) -> Iterator[Scene]:
        return (self[index] for index in range(self.length))


# Shapes: closed polygons (n, 2) in a frame with x to the right and y down


def _poly(*points: tuple[float, float]) -> _Array:
    """Returns the points (n, 2) as an array."""
    return np.array(points, dtype=np.float64)


def _points(text: str) -> _Array:
    """Reads points written "x,y x,y", in hundredths."""
    return np.array(text.replace(",", " ").split(), dtype=np.float64).reshape(-1, 2) / 100


def _oval(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> _Array:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return _turned(np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1), turn, (x, y))


def _rectangle(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> _Array:
    """Returns a rectangle as a polygon, its corners rounded by `radius`."""
    if radius == 0:
        return _poly((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    t = np.linspace(0, np.pi / 2, 5)
    corners = [
        (x1 - radius, y1 - radius),
        (x0 + radius, y1 - radius),
        (x0 + radius, y0 + radius),
        (x1 - radius, y0 + radius),
    ]
    arcs = [
        np.stack([x + radius * np.cos(t + i * np.pi / 2), y + radius * np.sin(t + i * np.pi / 2)], 1)
        for i, (x, y) in enumerate(corners)
    ]
    return np.concatenate(arcs)


def _curve(text: str) -> _Array:
    """Returns the closed Catmull-Rom curve through the points of a path."""
    p1 = _points(text)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, 5, endpoint=False)[None, :, None]
    a, b, c, d = (p[:, None] for p in (p0, p1, p2, p3))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.asarray(curve.reshape(-1, 2))


def _stroke(x0: float, y0: float, x1: float, y1: float, width: float) -> _Array:
    dx, dy = x1 - x0, y1 - y0
    nx, ny = (-dy * width / 2 / math.hypot(dx, dy), dx * width / 2 / math.hypot(dx, dy))
    return _poly((x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))


def _turned(shape: _Array, degrees: float, about: tuple[float, float]) -> _Array:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray((shape - about) @ np.array([[c, s], [-s, c]]) + about)


def _mirrored(shape: _Array) -> _Array:
    return np.asarray(shape * [-1, 1] + [1, 0])


def _widened(shape: _Array, width: float) -> _Array:
    """Returns the polygon with its edge moved outwards, corners mitred."""
    after, before = np.roll(shape, -1, 0) - shape, shape - np.roll(shape, 1, 0)
    area = np.sum(shape[:, 0] * np.roll(shape[:, 1], -1) - shape[:, 1] * np.roll(shape[:, 0], -1))
    normals = [
        np.stack([e[:, 1], -e[:, 0]], 1) / np.linalg.norm(e, axis=1, keepdims=True).clip(1e-9) for e in (after, before)
    ]
    mean = (normals[0] + normals[1]) * np.sign(area)
    return np.asarray(shape + width * 2 * mean / (mean**2).sum(1, keepdims=True).clip(1.0))


# Figures: parts painted one over the other


class _FigurePart(NamedTuple):
    """A part is one shape of a figure, with its colour."""

    colour: str
    shape: _Array
    rim: _Array | None
    """The shape with its outline; None for a detail without one."""
    twin: int | None
    """The twin whose evidence this is; None for what both have."""
    extra: bool
    """Left out in half of the objects."""

    def moved(self, move: Callable[[_Array], _Array]) -> _FigurePart:
        return self._replace(shape=move(self.shape), rim=None if self.rim is None else move(self.rim))


_RIM = 0.017


def _ink(colour: str, shape: _Array, twin: int | None = None) -> _FigurePart:
    return _FigurePart(colour, shape, _widened(shape, _RIM), twin, False)


def _flat(colour: str, shape: _Array, twin: int | None = None, *, extra: bool = False) -> _FigurePart:
    return _FigurePart(colour, shape, None, twin, extra)


def _both(make: Callable[..., _FigurePart], colour: str, shape: _Array, twin: int | None = None) -> list[_FigurePart]:
    return [make(colour, shape, twin), make(colour, _mirrored(shape), twin)]


def _pet() -> list[_FigurePart]:
    """Lists the parts of the pet, whose twins differ by their evidence alone."""
    cat = _curve("27,46 22.5,30 23.5,15 26,13.5 36,20 47,31 45,45")
    cat_inner = _curve("30,40 27.5,27 28.5,21 36,26 41,33 38,42")
    rabbit = _oval(0.375, 0.2, 0.082, 0.21, -9)
    rabbit_inner = _oval(0.377, 0.21, 0.04, 0.15, -9)
    return [
        *_both(_ink, "main", cat, 0),
        *_both(_flat, "pink", cat_inner, 0),
        *_both(_ink, "main", rabbit, 1),
        *_both(_flat, "pink", rabbit_inner, 1),
        _ink("main", _curve("50,60 67,66 74,84 70,98.5 50,100 30,98.5 26,84 33,66")),
        _flat("light", _oval(0.5, 0.86, 0.135, 0.125)),
        *_both(_ink, "main", _oval(0.4, 0.965, 0.085, 0.05)),
        _ink("main", _curve("50,33 66,37 76,50 73,62 50,70 27,62 24,50 34,37")),
        _flat("shade", _curve("44,34.5 56,34.5 53,41 50,43 47,41"), extra=True),
        _flat("light", _oval(0.5, 0.61, 0.12, 0.075)),
        *_both(_flat, "blush", _oval(0.325, 0.595, 0.045, 0.03)),
        *_both(_flat, "ink", _oval(0.385, 0.515, 0.036, 0.048)),
        *_both(_flat, "white", _oval(0.395, 0.498, 0.013, 0.016)),
        _flat("rose", _curve("46,57.5 54,57.5 50,61")),
        _flat("ink", _stroke(0.5, 0.6, 0.5, 0.635, 0.014)),
        *_both(_flat, "ink", _stroke(0.5, 0.632, 0.455, 0.648, 0.014)),
    ]


def _car() -> list[_FigurePart]:
    """Lists the parts of the car, whose twins differ by their evidence alone."""
    shell = _curve("2,80 2,70 6,63 18,59 27,44 36,40 60,40 69,44 79,58 93,62 98,70 98,80 94,84 50,84 6,84")
    wheel = [
        _ink("tyre", _oval(0.25, 0.845, 0.105, 0.105)),
        _flat("silver", _oval(0.25, 0.845, 0.055, 0.055)),
        _flat("tyre", _oval(0.25, 0.845, 0.018, 0.018)),
    ]
    other = [part.moved(lambda shape: shape + np.array([0.5, 0])) for part in wheel]
    return [
        _ink("yellow", _points("29,39 32.5,15.5 61.5,15.5 65,39"), 0),
        *(
            _flat("tyre", _rectangle(x, 0.215 + 0.055 * row, x + 0.05, 0.27 + 0.055 * row), 0)
            for row, columns in enumerate(((0.345, 0.445, 0.545), (0.395, 0.495)))
            for x in columns
        ),
        _ink("silver", _rectangle(0.27, 0.33, 0.67, 0.39), 1),
        _ink("red", _curve("28,33.5 28.5,24 33,18.5 40,18.5 46.5,18.5 46.5,33.5"), 1),
        _ink("blue", _curve("66,33.5 65.5,24 61,18.5 54,18.5 47.5,18.5 47.5,33.5"), 1),
        *(_flat("white", _oval(x, 0.24, 0.025, 0.03), 1) for x in (0.345, 0.555)),
        _ink("main", shell),
        _flat("light", _rectangle(0.045, 0.655, 0.955, 0.68), extra=True),
        _flat("shade", _rectangle(0.05, 0.765, 0.95, 0.835)),
        _ink("glass", _curve("25,57.5 32,47 37,45.5 45.5,45.5 45.5,58.5 36,58.5")),
        _ink("glass", _curve("51,45.5 60,45.5 65,47.5 71.5,57.5 62,58.5 51,58.5")),
        _flat("white", _points("31,56 36,47.5 39,47.5 34,56")),
        _flat("white", _points("54,56 57.5,47.5 60.5,47.5 57,56")),
        _flat("ink", _rectangle(0.475, 0.62, 0.485, 0.765)),
        _flat("ink", _rectangle(0.5, 0.64, 0.555, 0.655)),
        _flat("cream", _oval(0.945, 0.705, 0.028, 0.032)),
        _flat("rose", _oval(0.05, 0.705, 0.022, 0.032)),
        *wheel,
        *other,
    ]


def _boat() -> list[_FigurePart]:
    """Lists the parts of the boat, whose twins differ by their evidence alone."""
    funnel = [
        _ink("accent", _points("36,60 34.5,20 47.5,20 48,60"), 1),
        _flat("white", _points("35.3,40 35,31 47.7,31 47.8,40"), 1),
        _ink("tyre", _rectangle(0.325, 0.14, 0.49, 0.215, 0.02), 1),
    ]
    other = [part.moved(lambda shape: shape + np.array([0.2, 0])) for part in funnel]
    return [
        *funnel,
        *other,
        _ink("wood", _rectangle(0.475, 0.02, 0.51, 0.64), 0),
        _ink("cream", _curve("53,6 66,22 78,42 80,56 66,56.5 53.5,55 55,30"), 0),
        _flat("accent", _points("54.5,33 72,33 77.5,43 54.5,43"), 0),
        _ink("accent", _curve("45.5,10 36,30 22,53 25,56 44,55 45,35"), 0),
        _ink("white", _rectangle(0.27, 0.585, 0.75, 0.7, 0.02)),
        *(_flat("glass", _rectangle(x, 0.615, x + 0.075, 0.66)) for x in (0.32, 0.42, 0.52, 0.62)),
        _ink("main", _curve("4,70 6,69 50,70.5 94,66.5 97,68 90,84 80,94 50,95 22,94 10,84")),
        _flat("shade", _curve("12,86 50,87 87,86 79,93.5 50,94.5 23,93.5")),
        _flat("light", _points("5.5,73.5 50,74.5 94.5,72.5 93.5,75 50,77 6.3,76"), extra=True),
        *(_flat("ink", _oval(x, 0.805, 0.03, 0.03)) for x in (0.25, 0.42, 0.59, 0.76)),
        *(_flat("glass", _oval(x, 0.805, 0.019, 0.019)) for x in (0.25, 0.42, 0.59, 0.76)),
    ]


def _flower() -> list[_FigurePart]:
    """Lists the parts of the flower, whose twins differ by their evidence alone."""
    x, y = 0.5, 0.225
    petals = [_turned(_oval(x, y - 0.135, 0.058, 0.095), turn, (x, y)) for turn in range(0, 360, 36)]
    side = _curve("50,43 36,40 30.5,27 33,6 34.5,5.5 42,13 50,22")
    front = _curve("50,5 58,16 61,28 57,39 50,43 43,39 39,28 42,16")
    leaf = _curve("50,72 40,69 27,58 23,47 25,46.5 36,51 46,60")
    return [
        _ink("green", _stroke(0.5, 0.3, 0.5, 0.75, 0.035)),
        *_both(_ink, "green", leaf),
        *_both(_flat, "leaf", _curve("47,68 36,60 28,51 38,58")),
        *_both(_ink, "accent", side, 0),
        _ink("accent_light", front, 0),
        *(_ink("accent", petal, 1) for petal in petals),
        *(
            _flat("accent_light", _turned(_oval(x, y - 0.14, 0.02, 0.05), turn, (x, y)), 1)
            for turn in range(0, 360, 36)
        ),
        _ink("yellow", _oval(x, y, 0.085, 0.085), 1),
        _flat("amber", _oval(x + 0.012, y + 0.015, 0.055, 0.055), 1),
        _ink("main", _curve("29,76 50,76.5 71,76 67,90 63.5,99 50,100 36.5,99 33,90")),
        _flat("light", _points("32.5,86 67.5,86 66.2,90.5 33.8,90.5"), extra=True),
        _ink("main", _rectangle(0.255, 0.69, 0.745, 0.78, 0.02)),
        _flat("light", _rectangle(0.28, 0.705, 0.72, 0.725)),
    ]


def _tower() -> list[_FigurePart]:
    """Lists the parts of the tower, whose twins differ by their evidence alone."""
    hub = (0.5, 0.3)
    vane = [_rectangle(0.485, 0.0, 0.515, 0.3), _rectangle(0.515, 0.015, 0.61, 0.225)]
    bars = [_rectangle(0.515, y, 0.61, y + 0.016) for y in (0.075, 0.14)]
    turns = (38, 128, 218, 308)
    return [
        _flat("beam", _points("50,14 50,22 11,28.5 11,7"), 0),
        _flat("beam", _points("50,14 50,22 89,28.5 89,7"), 0),
        _ink("main", _curve("37,36 50,35 63,36 66,62 71,97 50,98.5 29,97 34,62")),
        _flat("light", _points("36.3,44 63.7,44 65,55 35,55"), extra=True),
        _flat("light", _points("33.5,68 66.5,68 68.5,80 31.5,80"), extra=True),
        _ink("glass", _rectangle(0.465, 0.6, 0.535, 0.7, 0.03)),
        _ink("wood", _curve("43,98 43.5,85 50,80 56.5,85 57,98 50,98.5")),
        _flat("yellow", _oval(0.54, 0.9, 0.012, 0.012)),
        _ink("stone", _rectangle(0.25, 0.955, 0.75, 1.0, 0.015)),
        _ink("cream", _rectangle(0.405, 0.13, 0.595, 0.31), 0),
        _flat("yellow", _oval(0.5, 0.2, 0.06, 0.06), 0),
        *(_flat("ink", _rectangle(x, 0.13, x + 0.016, 0.31), 0) for x in (0.455, 0.53)),
        _ink("accent", _curve("37.5,13.5 42,6 50,2 58,6 62.5,13.5 50,14"), 0),
        _ink("accent", _rectangle(0.33, 0.305, 0.67, 0.365, 0.015), 0),
        _ink("accent", _curve("36,36.5 38,25 50,18 62,25 64,36.5 50,37"), 1),
        *(_ink("white", _turned(vane[1], turn, hub), 1) for turn in turns),
        *(_flat("silver", _turned(bar, turn, hub), 1) for turn in turns for bar in bars),
        *(_ink("wood", _turned(vane[0], turn, hub), 1) for turn in turns),
        _ink("yellow", _oval(*hub, 0.035, 0.035), 1),
    ]


def _rock() -> list[_FigurePart]:
    return [
        _ink("stone", _curve("2,97 5,70 25,50 50,45 80,58 97,80 98,97 50,100")),
        _flat("stone_light", _curve("14,75 28,57 50,52 55,58 35,66")),
        _flat("stone_shade", _curve("60,90 80,78 93,86 93,95 70,97")),
    ]


def _bush() -> list[_FigurePart]:
    return [
        _ink("green", _curve("3,97 0,78 12,64 24,65 30,48 50,42 68,48 74,62 90,64 100,80 97,97 50,100")),
        _flat("leaf", _curve("30,62 40,51 54,49 46,56 40,66")),
        _flat("leaf", _curve("9,80 15,71 26,70 20,76")),
        _flat("leaf", _curve("68,78 76,69 88,70 79,76")),
    ]


def _post() -> list[_FigurePart]:
    return [
        _ink("wood", _rectangle(0.44, 0.2, 0.56, 1.0, 0.03)),
        _flat("wood_shade", _rectangle(0.51, 0.24, 0.55, 0.98)),
        _flat("wood_shade", _rectangle(0.45, 0.45, 0.5, 0.47)),
    ]


def _crate() -> list[_FigurePart]:
    return [
        _ink("wood", _rectangle(0.05, 0.2, 0.95, 1.0)),
        _flat("wood_shade", _rectangle(0.13, 0.28, 0.87, 0.92)),
        *(_flat("wood", _rectangle(0.13, y, 0.87, y + 0.14)) for y in (0.31, 0.53, 0.75)),
    ]


def _ball() -> list[_FigurePart]:
    return [_ink("main", _oval(0.5, 0.6, 0.4, 0.4)), _flat("light", _oval(0.38, 0.47, 0.13, 0.1, -35))]


def _cloud() -> list[_FigurePart]:
    return [_flat("mist", _curve("5,98 0,85 12,74 25,75 36,60 56,60 68,72 86,72 100,85 95,98 50,100"))]


_PAIRS = (_pet, _car, _boat, _flower, _tower)
_PROPS = (_rock, _bush, _post, _crate, _ball)


@cache
def _figure(draw: Callable[[], list[_FigurePart]]) -> tuple[_FigurePart, ...]:
    """Scales the parts: the longer side of the whole is 1, its foot (the middle of the lower edge) the origin."""
    parts = draw()
    points = np.concatenate([part.shape if part.rim is None else part.rim for part in parts])
    low, high = points.min(0), points.max(0)
    foot, scale = np.array([(low[0] + high[0]) / 2, high[1]]), (high - low).max()
    return tuple(part.moved(lambda shape: (shape - foot) / scale) for part in parts)


@cache
def _corners(draw: Callable[[], list[_FigurePart]]) -> tuple[_Array, tuple[tuple[int, int, int], ...]]:
    """Lists all corners of a figure, x, y, x, y, ..., and where in it each part's rim and shape begin and it ends."""
    parts, spans, start = _figure(draw), [], 0
    for part in parts:
        middle = start + (0 if part.rim is None else len(part.rim))
        spans.append((2 * start, 2 * middle, 2 * (middle + len(part.shape))))
        start = middle + len(part.shape)
    return np.concatenate([points for p in parts for points in (p.rim, p.shape) if points is not None]), tuple(spans)


# Plans: what stands where, in unit coordinates

_FURS = (
    (238, 160, 84), (176, 124, 88), (150, 152, 164), (244, 222, 186), (112, 104, 116), (214, 186, 160), (250, 244, 236),
    (196, 98, 62),
)  # fmt: skip
_PAINTS = (
    (232, 92, 80), (244, 150, 70), (248, 206, 92), (122, 190, 112), (64, 168, 160), (84, 164, 220), (88, 112, 196),
    (152, 108, 192), (236, 132, 170), (244, 240, 232), (196, 204, 212), (96, 104, 124), (190, 120, 84),
    (150, 206, 196),
)  # fmt: skip
_NAMES = (
    "orange", "brown", "gray", "", "gray", "", "white", "",
    "red", "orange", "yellow", "green", "", "blue", "blue", "purple", "pink", "white", "", "gray", "brown", "",
)  # fmt: skip
_PAINT_NAMES = dict(zip((*_FURS, *_PAINTS), _NAMES, strict=True))
"""What the paints are called; "" where people would not agree."""
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "white")
"""The names that objects' colours can have."""


def _colour_name(item: _Item) -> str:
    """Returns the name of the nearest paint; "" if it has none, or one of another name is not clearly farther."""
    if item.draw is _flower:  # the pot has one colour, the blossom another
        return ""
    distances = {paint: math.dist(paint, item.palette["main"]) for paint in _PAINT_NAMES}
    nearest = min(distances, key=lambda paint: distances[paint])
    others = [d for paint, d in distances.items() if _PAINT_NAMES[paint] != _PAINT_NAMES[nearest]]
    return _PAINT_NAMES[nearest] if distances[nearest] < 0.6 * min(others) else ""


_FIXED: _Palette = {
    "ink": (52, 44, 64), "white": (255, 253, 248), "pink": (250, 176, 180), "blush": (248, 158, 150),
    "rose": (226, 96, 112), "tyre": (62, 58, 74), "silver": (206, 210, 220), "yellow": (255, 210, 70),
    "amber": (222, 146, 52), "red": (236, 62, 66), "blue": (54, 112, 232), "glass": (184, 226, 242),
    "cream": (255, 246, 214), "wood": (164, 112, 78), "wood_shade": (132, 88, 64), "green": (86, 158, 84),
    "leaf": (136, 196, 106), "stone": (158, 156, 166), "stone_light": (194, 192, 198), "stone_shade": (128, 124, 138),
    "beam": (255, 240, 160), "mist": (250, 252, 255),
}  # fmt: skip


@dataclass(frozen=True)
class _Item:
    """An item is a figure that stands in the scene; `label` is None for a prop, which has no class."""

    draw: Callable[[], list[_FigurePart]]
    label: int | None
    foot: tuple[float, float]
    matrix: _Array
    extra: bool
    palette: _Palette

    def polygons(self, twin: int | None, side: int) -> Iterator[tuple[_FigurePart, list[float], list[float]]]:
        """Yields the parts of that twin on a canvas: each with its edge and its shape, x and y in turn."""
        corners, spans = _corners(self.draw)
        xy = ((corners @ self.matrix + self.foot) * side - 0.5).ravel().tolist()
        for part, (start, middle, end) in zip(_figure(self.draw), spans, strict=True):
            if part.twin in (None, twin) and (self.extra or not part.extra):
                shape = xy[middle:end]
                yield part, xy[start:middle] or shape, shape


@dataclass(frozen=True)
class _ScenePlan:
    items: tuple[_Item, ...]
    """Back to front."""
    backdrop: int
    horizon: float
    seed: tuple[int, ...]
    """Of the painter's randomness."""


def _plan(seed: int, index: int, objects: tuple[int, int], labels: Sequence[int]) -> _ScenePlan:
    """Plans the scene of that seed and index. Which twin an object is has no influence on anything else."""
    rng = np.random.default_rng([seed, index])
    count = int(rng.integers(objects[0], objects[1] + 1))
    chosen = [labels[int(i)] for i in rng.integers(len(labels), size=count)]
    backdrop = int(rng.integers(len(_BACKDROPS)))
    horizon = _BACKDROPS[backdrop][1] + 0.1 * float(rng.random())
    largest = (0.65, 0.52, 0.44, 0.4, 0.37, 0.34, 0.32, 0.3)[count - 1]
    placed: list[tuple[_Item, NDArray[np.bool_]]] = []
    while len(placed) < count:  # each failed layout makes the next one a little smaller
        placed = []
        for label in chosen:
            for _ in range(12):
                candidate = _item(rng, _PAIRS[label // 2], label, (0.2, largest), horizon)
                if _try(placed, candidate):
                    break
        largest = max(0.22, largest * 0.95)
    for _ in range(int(rng.integers(2, 7))):
        _try(placed, _item(rng, _PROPS[int(rng.integers(len(_PROPS)))], None, (0.07, 0.2), horizon))
    order = sorted((item for item, _ in placed), key=lambda item: item.foot[1])
    order = [replace(item, palette=_palette(rng, item.draw)) for item in order]
    return _ScenePlan(tuple(order), backdrop, horizon, (seed, index, 1))


def _item(
    rng: np.random.Generator,
    draw: Callable[[], list[_FigurePart]],
    label: int | None,
    sizes: tuple[float, float],
    horizon: float,
) -> _Item:
    """Draws the size, turn and place of a figure that stands on the ground below the horizon."""
    size, stretch = rng.uniform(*sizes), math.sqrt(rng.uniform(0.88, 1.14))
    turn, flip = math.radians(rng.normal(0, 5)), rng.choice((-1, 1))
    c, s = math.cos(turn), math.sin(turn)
    matrix = size * np.diag([flip * stretch, 1 / stretch]) @ np.array([[c, s], [-s, c]])
    lowest = max(horizon + 0.06, size + 0.02)
    foot = (rng.uniform(size / 2, 1 - size / 2), rng.uniform(min(lowest, 0.96), 0.98))
    return _Item(draw, label, foot, matrix, bool(rng.integers(2)), _FIXED)


def _palette(rng: np.random.Generator, draw: Callable[[], list[_FigurePart]]) -> _Palette:
    paints = _FURS if draw is _pet else _PAINTS
    main = _jitter(rng, paints[int(rng.integers(len(paints)))], 14)
    accent = _jitter(rng, _PAINTS[int(rng.integers(len(_PAINTS)))], 14)
    shift = rng.normal(0, 7, 3).tolist()
    palette = {name: _clip((r + shift[0], g + shift[1], b + shift[2])) for name, (r, g, b) in _FIXED.items()}
    palette |= {"main": main, "shade": _mix(main, (60, 30, 80), 0.22), "light": _mix(main, (255, 252, 240), 0.5)}
    return palette | {"accent": accent, "accent_light": _mix(accent, (255, 252, 240), 0.3)}


_COARSE = 96
"""Side of the grid on which the planner measures what is visible."""


def _try(placed: list[tuple[_Item, NDArray[np.bool_]]], item: _Item) -> bool:
    """Puts the item in the list if it fits: objects lie within the image and stay visible, as either twin."""
    if item.label is not None:
        points = _corners(item.draw)[0] @ item.matrix + item.foot
        if points.min() < 0.01 or points.max() > 0.99:
            return False
    trial = [*placed, (item, _cover(item))]
    for one, cover in trial:
        if one.label is None:
            continue
        hidden = np.zeros((_COARSE, _COARSE), bool)
        for other, over in trial:
            if other.foot[1] > one.foot[1]:
                hidden |= over.any(0)
        for body, evidence in (cover[:2], cover[2:]):
            if (evidence & ~hidden).sum() < 0.7 * evidence.sum() or (body & ~hidden).sum() < 0.6 * body.sum():
                return False
    placed.append(trial[-1])
    return True


def _cover(item: _Item) -> NDArray[np.bool_]:
    """Returns (4, P, P): the whole object and its evidence, as the first twin and as the second."""
    maps: list[NDArray[np.bool_]] = []
    for twin in (0, 1):
        ids = Image.new("L", (_COARSE, _COARSE))
        draw = ImageDraw.Draw(ids)
        for part, edge, _ in item.polygons(twin, _COARSE):
            if part.rim is not None or part.twin is not None:
                draw.polygon(edge, 1 if part.twin is None else 2)
        grid = np.asarray(ids)
        maps += [grid > 0, grid == 2]
    return np.stack(maps)


# Paint


def _clip(colour: Sequence[float] | _Array) -> _Colour:
    r, g, b = (min(255, max(0, int(c))) for c in colour)
    return r, g, b


def _mix(a: Sequence[float], b: Sequence[float], share: float) -> _Colour:
    return _clip([x + (y - x) * share for x, y in zip(a, b, strict=True)])


def _jitter(rng: np.random.Generator, colour: _Colour, amount: float) -> _Colour:
    return _clip(colour + rng.normal(0, amount, 3) + rng.normal(0, amount / 2))


_DARK, _PALE = (44, 36, 84), (255, 250, 236)
_SKIES: tuple[tuple[_Colour, _Colour], ...] = (
    ((120, 190, 240), (216, 240, 250)), ((150, 206, 232), (246, 240, 220)), ((250, 190, 150), (255, 232, 190)),
    ((150, 140, 210), (250, 196, 190)), ((56, 66, 122), (130, 132, 188)), ((160, 214, 210), (236, 246, 226)),
)  # fmt: skip


class _Brush:
    """A brush draws in unit coordinates on a canvas of that side."""

    def __init__(self, canvas: Image.Image, rng: np.random.Generator, horizon: float) -> None:
        self.canvas, self.rng, self.horizon, self.side = canvas, rng, horizon, canvas.width
        self.draw = ImageDraw.Draw(canvas)

    def shape(self, points: _Array, colour: _Colour, at: tuple[float, float] = (0, 0)) -> None:
        self.draw.polygon(((points + np.array(at)) * self.side).ravel().tolist(), colour)

    def fade(self, top: _Colour, bottom: _Colour, start: float, end: float) -> None:
        ramp = np.linspace(top, bottom, 24).astype(np.uint8)[:, None]
        y0, y1 = round(start * self.side), round(end * self.side)
        column = Image.fromarray(ramp).resize((1, max(1, y1 - y0)), Image.Resampling.BILINEAR)
        self.canvas.paste(column.resize((self.side, column.height), Image.Resampling.NEAREST), (0, y0))

    def sky(self, end: float = 0.0) -> None:
        top, bottom = _SKIES[int(self.rng.integers(len(_SKIES)))]
        self.fade(_jitter(self.rng, top, 8), _jitter(self.rng, bottom, 8), 0, end or self.horizon + 0.02)
        lowest = max(0.1, (end or self.horizon) - 0.04)
        for _ in range(int(self.rng.integers(1, 5))):
            self.cloud(_mix(bottom, (255, 255, 255), 0.55), self.rng.uniform(0.03, lowest))

    def cloud(self, colour: _Colour, y: float) -> None:
        size = self.rng.uniform(0.14, 0.34)
        shape = _figure(_cloud)[0].shape * [size, size * self.rng.uniform(0.7, 1.1)]
        self.shape(shape, colour, (self.rng.random(), y))

    def ridge(self, colour: _Colour, height: float, depth: float) -> None:
        """Draws hills: everything below a wavy line."""
        x, a = np.linspace(0, 1, 32), self.rng.uniform(0, 6.3, 2)
        wave = 0.6 * np.sin(self.rng.uniform(3, 6) * x + a[0]) + 0.4 * np.sin(self.rng.uniform(7, 11) * x + a[1])
        self.shape(np.concatenate([np.stack([x, height - depth * wave], 1), [[1, 1], [0, 1]]]), colour)

    def scatter(self, shape: _Array, colour: _Colour, count: int, size: float) -> None:
        """Draws copies on the ground, smaller towards the horizon."""
        for x, t, s in self.rng.random((count, 3)):
            y = self.horizon + 0.04 + (0.96 - self.horizon) * t
            self.shape(shape * (size * (0.5 + 0.5 * t) * (0.6 + 0.8 * s)), colour, (x, y))


_TUFT = _points("-50,0 -70,-80 -25,-30 0,-110 25,-30 70,-80 50,0")
_SPECK = _oval(0, 0, 0.5, 0.3)
_WAVE = _points("-100,0 -50,-20 0,0 50,-20 100,0 50,-8 0,14 -50,-8")


def _meadow(b: _Brush) -> None:
    """Paints hills and grass."""
    b.sky()
    green = _jitter(b.rng, (134, 188, 96), 12)
    b.ridge(_mix(green, (150, 190, 220), 0.55), b.horizon - 0.03, 0.06)
    b.ridge(_mix(green, (120, 170, 190), 0.28), b.horizon, 0.035)
    b.fade(_mix(green, _PALE, 0.18), _mix(green, _DARK, 0.14), b.horizon + 0.02, 1)
    b.scatter(_TUFT, _mix(green, (30, 80, 60), 0.3), 26, 0.022)
    b.scatter(_TUFT, _mix(green, _PALE, 0.32), 16, 0.02)


def _beach(b: _Brush) -> None:
    """Paints the sea behind, and sand with specks in front."""
    b.sky()
    sand, sea = _jitter(b.rng, (240, 214, 160), 8), _jitter(b.rng, (78, 178, 196), 14)
    b.fade(_mix(sea, _DARK, 0.15), _mix(sea, _PALE, 0.3), b.horizon - 0.06, b.horizon + 0.1)
    b.ridge(_mix(sea, (255, 255, 255), 0.75), b.horizon + 0.07, 0.012)
    b.ridge(_mix(sand, (150, 110, 80), 0.18), b.horizon + 0.09, 0.012)
    b.ridge(sand, b.horizon + 0.12, 0.014)
    b.scatter(_SPECK, _mix(sand, (150, 110, 80), 0.32), 34, 0.014)
    b.scatter(_SPECK, _mix(sand, (255, 255, 255), 0.5), 16, 0.012)


def _street(b: _Brush) -> None:
    """Paints a row of houses with windows, and a road with its dashed line before them."""
    b.sky()
    x, wall = -0.05, _jitter(b.rng, (176, 170, 190), 16)
    while x < 1:
        width, top = b.rng.uniform(0.1, 0.2), b.horizon - b.rng.uniform(0.08, 0.26)
        face = _mix(_jitter(b.rng, wall, 12), (220, 225, 240), 0.2)
        b.shape(_rectangle(x, top, x + width, b.horizon + 0.03), face)
        for i in range(3):
            for j in range(3):
                pane, glow = _rectangle(0.16 * width, 0.025, 0.3 * width, 0.055), b.rng.random() < 0.4
                b.shape(pane, _mix(face, _PALE if glow else _DARK, 0.3), (x + 0.26 * width * i, top + 0.055 * j))
        x += width + 0.012
    tar = _jitter(b.rng, (124, 124, 138), 8)
    b.fade(_mix(tar, _PALE, 0.45), _mix(tar, _PALE, 0.38), b.horizon + 0.02, b.horizon + 0.1)
    b.shape(_rectangle(0, b.horizon + 0.09, 1, b.horizon + 0.11), _mix(tar, _DARK, 0.3))
    b.fade(_mix(tar, _PALE, 0.1), _mix(tar, _DARK, 0.12), b.horizon + 0.11, 1)
    line, start = b.horizon + 0.11 + 0.42 * (0.89 - b.horizon), b.rng.uniform(-0.2, 0)
    for i in range(6):
        b.shape(_points("0,0 13,0 12,2.8 -1,2.8"), _mix(tar, _PALE, 0.75), (start + 0.25 * i, line))
    b.scatter(_SPECK, _mix(tar, _DARK, 0.2), 24, 0.012)


def _snow(b: _Brush) -> None:
    """Paints white hills, and snow that falls."""
    b.sky()
    snow = _jitter(b.rng, (228, 238, 248), 5)
    b.ridge(_mix(snow, (110, 140, 190), 0.42), b.horizon - 0.05, 0.09)
    b.ridge(_mix(snow, (130, 160, 205), 0.2), b.horizon, 0.04)
    b.fade(snow, _mix(snow, (140, 165, 215), 0.28), b.horizon + 0.02, 1)
    b.scatter(_SPECK, _mix(snow, (120, 150, 205), 0.25), 20, 0.05)
    for x, y, s in b.rng.random((36, 3)):
        b.shape(_SPECK * [0.008 + 0.012 * s, 0.013 + 0.02 * s], (255, 255, 255), (x, y))


def _room(b: _Brush) -> None:
    """Paints a wall with stripes or diamonds, and a wooden floor."""
    wall, wood = _jitter(b.rng, _PAINTS[int(b.rng.integers(len(_PAINTS)))], 10), _jitter(b.rng, (196, 148, 106), 14)
    wall = _mix(wall, (250, 240, 225), 0.6)
    b.fade(_mix(wall, _PALE, 0.2), wall, 0, b.horizon + 0.02)
    step = float(b.rng.choice((0.05, 0.075, 0.1)))
    if b.rng.random() < 0.5:
        for i in range(int(1 / step) + 1):
            b.shape(_rectangle(i * step, 0, i * step + step / 2, b.horizon), _mix(wall, _DARK, 0.07))
    else:
        for i in range(int(1 / step) + 1):
            for j in range(int(b.horizon / step)):
                diamond = _points("0,-21 21,0 0,21 -21,0") * step
                b.shape(diamond, _mix(wall, _DARK, 0.09), ((i + j % 2 / 2) * step, (j + 0.5) * step))
    b.fade(_mix(wood, _PALE, 0.12), _mix(wood, _DARK, 0.18), b.horizon, 1)
    rows = np.cumsum([0.045, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2]) + b.horizon
    for y in rows:
        b.shape(_rectangle(0, y, 1, y + 0.006), _mix(wood, _DARK, 0.28))
    for y0, y1 in pairwise(rows):
        for x in b.rng.random(2):
            b.shape(_rectangle(x, y0, x + 0.006, y1), _mix(wood, _DARK, 0.28))
    b.shape(_rectangle(0, b.horizon - 0.02, 1, b.horizon + 0.025), _mix(wall, (255, 255, 255), 0.7))
    b.shape(_rectangle(0, b.horizon + 0.02, 1, b.horizon + 0.03), _mix(wood, _DARK, 0.35))


def _air(b: _Brush) -> None:
    b.sky(1.0)
    for y in b.rng.random(4):
        b.cloud(_mix(_SKIES[0][1], (255, 255, 255), 0.4 + 0.5 * y), y)


def _sea(b: _Brush) -> None:
    b.sky()
    sea = _jitter(b.rng, (72, 158, 196), 16)
    b.ridge(_mix(sea, (150, 150, 200), 0.5), b.horizon - 0.01, 0.04)
    b.fade(_mix(sea, _PALE, 0.34), _mix(sea, _DARK, 0.2), b.horizon, 1)
    b.scatter(_WAVE, _mix(sea, (255, 255, 255), 0.5), 22, 0.05)
    b.scatter(_WAVE, _mix(sea, _DARK, 0.22), 14, 0.05)


def _desert(b: _Brush) -> None:
    """Paints hills and dunes of sand."""
    b.sky()
    sand = _jitter(b.rng, (232, 176, 116), 12)
    b.ridge(_mix(sand, (170, 110, 130), 0.45), b.horizon - 0.04, 0.07)
    b.ridge(_mix(sand, (160, 90, 80), 0.2), b.horizon, 0.05)
    b.fade(_mix(sand, _PALE, 0.3), _mix(sand, (150, 70, 70), 0.16), b.horizon + 0.03, 1)
    for t in (0.25, 0.5, 0.75):
        b.ridge(_mix(_mix(sand, _PALE, 0.25), (150, 70, 70), 0.25 * t), b.horizon + 0.05 + t * (0.9 - b.horizon), 0.02)
    b.scatter(_SPECK, _mix(sand, (120, 60, 50), 0.25), 20, 0.014)


_BACKDROPS: tuple[tuple[Callable[[_Brush], None], float], ...] = (
    (_meadow, 0.3), (_beach, 0.26), (_street, 0.3), (_snow, 0.3), (_room, 0.36), (_air, 0.0), (_sea, 0.28),
    (_desert, 0.3),
)  # fmt: skip
"""Each with the height of its horizon, at least."""
_ALOFT = 0.12
"""Above this horizon there is no ground to throw a shadow on."""


def _render(plan: _ScenePlan, size: int) -> Scene:
    """Draws the plan three times as large as asked for, then averages it down."""
    side, rng = 3 * size, np.random.default_rng(plan.seed)
    canvas = Image.new("RGB", (side, side))
    _BACKDROPS[plan.backdrop][0](_Brush(canvas, rng, plan.horizon))
    light, ids = _light(plan, side, rng), Image.new("L", (side, side))
    for number, item in enumerate(plan.items):
        _paint(item, canvas, light, ids, 2 * number + 1)
    canvas = ImageChops.add(canvas, Image.merge("RGB", (light, light, light)), 1, -128)
    gains = rng.uniform(0.86, 1.06) * rng.normal(1, 0.025, 3)
    image = canvas.reduce(3).point(np.outer(gains, np.arange(256)).clip(0, 255).astype(np.uint8).ravel().tolist())
    grid = np.asarray(ids)[1::3, 1::3]
    objects = {2 * number + 1: item for number, item in enumerate(plan.items) if item.label is not None}
    labels = {number: item.label for number, item in objects.items()}
    evidence = np.stack([grid == number + 1 for number in labels])
    masks = evidence | np.stack([grid == number for number in labels])
    boxes = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in map(np.nonzero, masks)], np.float32)
    truth = torch.from_numpy(boxes), torch.from_numpy(masks), torch.from_numpy(evidence)
    return Scene(image, torch.tensor(list(labels.values())), *truth, tuple(map(_colour_name, objects.values())))


def _light(plan: _ScenePlan, side: int, rng: np.random.Generator) -> Image.Image:
    """Returns what is added to the paint, 128 for nothing: the ground's texture and the shadows on it."""
    patches = Image.fromarray(rng.normal(0, 6, (14, 14)).astype(np.float32))
    grain = np.asarray(patches.resize((96, 96), Image.Resampling.BICUBIC)) + rng.normal(0, 4, (96, 96))
    grain[: int(96 * plan.horizon)] *= 0.5
    shadow = Image.new("L", (96, 96))
    draw = ImageDraw.Draw(shadow)
    for item in plan.items:
        width = 0.46 * float(np.abs(item.matrix).max())
        x, y = item.foot[0] + 0.25 * width, item.foot[1]
        draw.ellipse([96 * v for v in (x - width, y - 0.22 * width, x + width, y + 0.16 * width)], 58)
    dark = np.asarray(shadow.filter(ImageFilter.GaussianBlur(1.6))) * (plan.horizon > _ALOFT)
    level = Image.fromarray((128 + grain - dark).clip(0, 255).astype(np.uint8))
    return level.resize((side, side), Image.Resampling.BILINEAR)


def _paint(item: _Item, canvas: Image.Image, light: Image.Image, ids: Image.Image, number: int) -> None:
    """Paints the figure, lit from the upper left; in `ids` it is `number`, and its evidence the next number."""
    colour, mark, side = ImageDraw.Draw(canvas), ImageDraw.Draw(ids), canvas.width
    for part, edge, shape in item.polygons(None if item.label is None else item.label % 2, side):
        mark.polygon(edge, number + (part.twin is not None))
        if part.rim is not None:
            colour.polygon(edge, item.palette["ink"])
        colour.polygon(shape, item.palette[part.colour])
    (x, y), reach = item.foot, 1.1 * float(np.abs(item.matrix).max())
    x0, y0 = max(0, round((x - 0.6 * reach) * side)), max(0, round((y - reach) * side))
    x1, y1 = min(side, round((x + 0.6 * reach) * side)), min(side, round((y + 0.1 * reach) * side))
    figure = ids.crop((x0, y0, x1, y1)).point([255 * (number <= value <= number + 1) for value in range(256)])
    light.paste(_SLOPE.resize(figure.size, Image.Resampling.NEAREST), (x0, y0), figure)


_SLOPE = Image.fromarray((162 - 34 * np.add.outer(np.linspace(0, 1, 128), np.linspace(0, 1, 128))).astype(np.uint8))
"""Brighter than 128 at the upper left, darker at the lower right."""
