"""Drawn scans: a grey body with one lesion whose look is its class, at a place that tells the class too, or does not.

Where every class has its place, models that look alike for all images of a class look at the lesion; where it has none,
they cannot. What is said of the consistency of maps can be tried on both, with the lesion known pixel by pixel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from konkyo.data.samples import Annotation, Sample, Samples, around, synthetic
from konkyo.errors import KonkyoError

CLASSES: tuple[str, ...] = ("disc", "ring", "stripes")
"""The names of the classes, by the texture of the lesion."""
PLACES: tuple[str, ...] = ("fixed", "random")

_Array = NDArray[np.floating]

_CENTRES = ((-0.18, -0.1), (0.18, -0.1), (0.0, 0.2))
"""Of the classes' fixed places, x and y from the middle; the unit is the picture's side."""
_SPREAD = 4 / 48
"""How far, at most, a lesion lies from its fixed place along x and along y."""
_RADIUS = (0.145, 0.175)
_BODY = (0.44, 0.48)
"""Half axes of the body, from and to."""
_CONTRAST = (0.30, 0.45)
"""Of lesions and distractors; 1 is the step from black to white."""
_TEXTURE = 0.03
_NOISE = 0.05


class Lesions(torch.utils.data.Dataset[Sample]):
    """This draws `length` scans, the classes in turn; seed and index decide all but the noise, whatever the size.

    `places` is "fixed", a place per class and up to 4/48 of the side away from it along x and y, or "random", anywhere
    in the body. Nothing else differs between the two. A sample has a grey picture (RGB of three equal channels) and one
    `Annotation`: the lesion, its label, its box and its mask. The mask is the whole round patch, holes and gaps
    included, and its evidence as well. Two distractors, a soft spot and a cross, say nothing about the class.

    >>> sample = Lesions(300, seed=3)[1]
    >>> sample.name, sample.label, sample.image.size, sample.annotations[0].box
    ('lesion-fixed-3-1', 'ring', (48, 48), (27.0, 14.0, 42.0, 29.0))
    """

    def __init__(self, length: int = 600, *, seed: int = 0, size: int = 48, places: str = "fixed") -> None:
        if length < 0 or seed < 0:
            raise KonkyoError(f"length and seed: expected no negative number, got {length} and {seed}")
        if not 32 <= size <= 1024:
            raise KonkyoError(f"size: expected 32 to 1024 pixels, got {size}")
        if places not in PLACES:
            raise KonkyoError(f"places: expected {' or '.join(PLACES)}, got {places!r}")
        self.length, self.seed, self.size, self.places = length, seed, size, places

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not -self.length <= index < self.length:
            raise IndexError(f"lesion {index} of {self.length}")
        index %= self.length
        values, mask = _scan(self.seed, index, self.size, self.places)
        label, inside = CLASSES[index % len(CLASSES)], torch.from_numpy(mask)
        image = Image.fromarray(values).convert("RGB")
        return Sample(self.name(index), image, label, (Annotation(label, around(inside), inside, inside),))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(self.length))

    def name(self, index: int) -> str:
        """Returns the name of a sample."""
        return f"lesion-{self.places}-{self.seed}-{index}"


@synthetic
def lesions(count: str, seed: int, *, places: str = "fixed", size: str = "48") -> Samples:
    """Draws COUNT (600) scans with a lesion; `places` fixed (a place per class) or random, `size` in pixels."""
    if re.fullmatch(r"\d* \d+", f"{count} {size}") is None or places not in PLACES:
        raise KonkyoError(f"expected lesions:600,places=fixed,size=48; got {count!r}, {places!r} and {size!r}")
    scans = Lesions(int(count or 600), seed=seed, size=int(size), places=places)
    labels = tuple(CLASSES[index % len(CLASSES)] for index in range(len(scans)))
    names = tuple(map(scans.name, range(len(scans))))
    return Samples(names, scans.__getitem__, CLASSES, "masks of whole lesions", labels=labels)


# --- drawing: (size, size) fields, x to the right, y down, both from -0.5 to 0.5 --------------------------------------


@cache
def _grid(size: int) -> tuple[_Array, _Array, _Array]:
    """Returns x (1, size), y (size, 1), and the first five cosines over them (size, 5)."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    return at[None] - 0.5, at[:, None] - 0.5, np.cos(np.pi * at[:, None] * np.arange(5, dtype=np.float32))


def _scan(seed: int, index: int, size: int, places: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draws the picture, and where the lesion is."""
    rng = np.random.default_rng([seed, index])
    x, y, waves = _grid(size)
    half, middle = rng.uniform(*_BODY, 2), rng.uniform(-0.02, 0.02, 2)
    body = _ramp((1 - np.hypot((x - middle[0]) / half[0], (y - middle[1]) / half[1])) * half.min(), size)
    texture = waves @ rng.normal(0, _TEXTURE, (5, 5)).astype(np.float32) @ waves.T
    field = body * (rng.uniform(0.38, 0.46) + texture)
    for shape in (_spot, _cross):
        at, width = middle + _inside(rng, half - 0.08), rng.uniform(0.05, 0.07)
        field += rng.uniform(*_CONTRAST) * shape(*_turned_from(x, y, at, rng), width, size)

    label, radius = index % len(CLASSES), rng.uniform(*_RADIUS)
    at = middle + _place(np.random.default_rng([seed, index, 1]), half - radius, middle, label, places)
    u, v = _turned_from(x, y, at, rng)
    field += rng.uniform(*_CONTRAST) * _LOOKS[label](u, v, radius, size)
    field += rng.normal(0, _NOISE, (size, size))
    return (255 * field).clip(0, 255).astype(np.uint8), np.hypot(u, v) <= radius


def _place(rng: np.random.Generator, half: _Array, middle: _Array, label: int, places: str) -> _Array:
    """Draws the place of the lesion, from the middle, in the ellipse of these half axes.

    Nothing else depends on its randomness.
    """
    while places == "fixed":
        at = np.array(_CENTRES[label]) + rng.uniform(-_SPREAD, _SPREAD, 2) - middle
        if np.hypot(*(at / half)) <= 1:
            return np.asarray(at)
    return _inside(rng, half)


def _inside(rng: np.random.Generator, half: _Array) -> _Array:
    """Draws a point in the ellipse, equally likely everywhere."""
    angle, away = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
    return half * (away * math.cos(angle), away * math.sin(angle))


def _turned_from(x: _Array, y: _Array, at: _Array, rng: np.random.Generator) -> tuple[_Array, _Array]:
    """Returns coordinates from that point, turned by any angle."""
    angle = rng.uniform(0, math.pi)
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return c * (x - at[0]) + s * (y - at[1]), c * (y - at[1]) - s * (x - at[0])


def _ramp(depth: _Array, size: int) -> _Array:
    """Returns 1 inside, 0 outside, and a ramp one pixel wide where the depth is 0."""
    return (depth * size + 0.5).clip(0, 1)


def _disc(u: _Array, v: _Array, radius: float, size: int) -> _Array:
    return _ramp(radius - np.hypot(u, v), size)


def _ring(u: _Array, v: _Array, radius: float, size: int) -> _Array:
    return _disc(u, v, radius, size) - _disc(u, v, 0.55 * radius, size)


def _stripes(u: _Array, v: _Array, radius: float, size: int) -> _Array:
    """Draws three bars and two gaps of equal widths."""
    width = 2 * radius / 5
    return _disc(u, v, radius, size) * _ramp(width / 2 - np.abs((u / width + 1) % 2 - 1) * width, size)


def _spot(u: _Array, v: _Array, width: float, _size: int) -> _Array:
    return np.asarray(np.exp(-(u**2 + v**2) / width**2))


def _cross(u: _Array, v: _Array, width: float, size: int) -> _Array:
    near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return np.minimum(_ramp(0.25 * width - near, size), _ramp(1.2 * width - far, size))


_LOOKS = (_disc, _ring, _stripes)
"""In the order of CLASSES."""
