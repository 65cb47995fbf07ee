"""A perceptual hash of a picture: 64 bits that hardly change when it is saved again, made smaller or brighter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE, _KEPT = 32, 8
BITS = _KEPT**2
LIMIT, LIMIT_GREY = 10, 6
"""Bits that differ at most between duplicates, of pictures in colours and of grey ones (measured: docs/checks.md)."""
_FLAT = 1e-6
"""Coefficients nearer to zero than that are rounding."""
_GREY = 3.0
"""The largest mean difference of two colour channels, of 255, in a grey picture."""
_CHUNK = 1024
"""Pictures are compared with that many others at once."""


def perceptual_hash(picture: Image.Image, *, mirrored: bool = False) -> NDArray[np.bool_]:
    """Returns pHash (64,): which of the 8 x 8 lowest cosine coefficients lie above their median.

    The picture is made grey and 32 x 32 pixels large first (Zauner, 2010; as in the package imagehash). `mirrored`:
    of the picture's mirror image. A flat picture has no bit but the first one.
    """
    from scipy.fft import dct

    small = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float64)
    pixels = pixels[:, ::-1] if mirrored else pixels
    lowest = dct(dct(pixels, axis=0), axis=1)[:_KEPT, :_KEPT]
    lowest[np.abs(lowest) < _FLAT] = 0
    return np.asarray(lowest > np.median(lowest)).ravel()


def is_grey(picture: Image.Image) -> bool:
    """Tells whether a picture has no colours, but for what JPEG adds."""
    pixels = np.asarray(picture.convert("RGB").resize((_SIDE, _SIDE)), dtype=np.float64)
    return bool(np.abs(pixels[..., :1] - pixels[..., 1:]).mean((0, 1)).max() <= _GREY)


@dataclass(frozen=True, eq=False)
class Hashes:
    """The hashes of n pictures, as they are and mirrored."""

    upright: NDArray[np.bool_]
    """(n, 64)"""
    mirrored: NDArray[np.bool_]
    """(n, 64)"""

    @classmethod
    def of(cls, pictures: Iterator[Image.Image]) -> Hashes:
        """Computes the hashes of pictures, which are opened one by one."""
        both = [(perceptual_hash(picture), perceptual_hash(picture, mirrored=True)) for picture in pictures]
        none = np.zeros((0, BITS), bool)
        return cls(*(np.stack(rows) if rows else none for rows in (list(zip(*both, strict=True)) or [(), ()])))

    def distances(self, others: Hashes) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yields (the first row, (rows, m) differing bits), of a picture and another or its mirror image."""
        signs = [np.float32(2) * bits - np.float32(1) for bits in (others.upright, others.mirrored)]
        for start in range(0, len(self.upright), _CHUNK):
            rows = np.float32(2) * self.upright[start : start + _CHUNK] - np.float32(1)
            nearest = np.maximum(*(rows @ sign.T for sign in signs))  # whole numbers up to 64, exact in 32 bits
            yield start, np.asarray((BITS - nearest) / 2, dtype=np.int64)


@dataclass(frozen=True)
class Pair:
    """A pair is two pictures that may be one."""

    first: int
    second: int
    distance: int
    """Bits that differ, of 64."""


def near_pairs(first: Hashes, second: Hashes | None, limit: int) -> tuple[list[Pair], NDArray[np.int64]]:
    """Returns pairs at a distance of `limit` or less, the nearest first, and a histogram (65,) of all distances.

    `second` None: of the first pictures among themselves, every pair once.
    """
    pairs, histogram = list[Pair](), np.zeros(BITS + 1, np.int64)
    for start, block in first.distances(second or first):
        if second is None:  # the lower triangle, with the diagonal, is left out
            rows = np.arange(start, start + len(block))[:, None]
            block = np.where(np.arange(block.shape[1]) > rows, block, -1)
        histogram += np.bincount(block[block >= 0], minlength=BITS + 1)
        where = np.argwhere((block >= 0) & (block <= limit))
        pairs += [Pair(start + int(i), int(j), int(block[i, j])) for i, j in where]
    return sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second)), histogram
