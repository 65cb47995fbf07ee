"""Marks like printed text: where in a picture edges are dense and pixels nearly black or nearly white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_HEIGHT, _WIDTH = 0.1, 0.2
"""The window's, as shares of the picture's sides."""
_LONGEST = 320
"""Larger pictures are made smaller first: text is read at any size, and edges are counted per pixel."""
_STEP = 0.2
"""The least difference of neighbouring grey values, of 1, that is an edge."""
_BLACK, _WHITE = 0.15, 0.85


@dataclass(frozen=True)
class TextMark:
    """The window of a picture that is most like printed text."""

    score: float
    """The share of its pixels at an edge times the share that is nearly black or nearly white."""
    box: tuple[float, float, float, float]
    """xyxy in pixels of the picture."""


def text_mark(picture: Image.Image) -> TextMark:
    """Returns the window, a tenth of the height and a fifth of the width, that is most like printed text.

    It tells nothing of what a model reads, and white letters without a box are often missed.
    """
    scale = min(1.0, _LONGEST / max(picture.size))
    size = (max(2, round(picture.width * scale)), max(2, round(picture.height * scale)))
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float64) / 255
    height, width = max(1, round(_HEIGHT * size[1])), max(1, round(_WIDTH * size[0]))
    edges, extreme = (_window_means(values, height, width) for values in (_edges(grey), _extreme(grey)))
    scores = edges * extreme
    top, left = np.unravel_index(int(scores.argmax()), scores.shape)
    box = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    return TextMark(float(scores[top, left]), tuple(map(float, box)))  # type: ignore[arg-type]


def text_score(picture: Image.Image) -> float:
    """Returns how much a whole picture, such as a window cut out of another, is like printed text, from 0 to 1."""
    grey = np.asarray(picture.convert("L"), dtype=np.float64) / 255
    return float(_edges(grey).mean() * _extreme(grey).mean())


def _edges(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    down, across = (np.abs(np.diff(grey, axis=axis, append=np.take(grey, [-1], axis))) for axis in (0, 1))
    return np.asarray(np.maximum(down, across) >= _STEP, dtype=np.float64)


def _extreme(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((grey <= _BLACK) | (grey >= _WHITE), dtype=np.float64)


def _window_means(values: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Returns the means over all windows of a size that lie inside, by sums from the corner."""
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return np.asarray(inside / (height * width))
