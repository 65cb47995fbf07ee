"""Names of places in a picture: nine of them, in every language of the reports."""

from __future__ import annotations

import torch
from torch import Tensor

from konkyo.evaluation.diagnose.findings import Text
from konkyo.metrics.distances import on_grid

PLACES: tuple[Text, ...] = (
    {"en": "the upper left", "ja": "左上"},
    {"en": "the top", "ja": "上"},
    {"en": "the upper right", "ja": "右上"},
    {"en": "the left", "ja": "左"},
    {"en": "the middle", "ja": "中央"},
    {"en": "the right", "ja": "右"},
    {"en": "the lower left", "ja": "左下"},
    {"en": "the bottom", "ja": "下"},
    {"en": "the lower right", "ja": "右下"},
)


def place_at(x: float, y: float) -> Text:
    """Returns the name of a point, x and y as shares of the width and height."""
    return PLACES[3 * min(2, int(3 * y)) + min(2, int(3 * x))]


def place_of(map_: Tensor) -> Text:
    """Returns where a map (h, w) is highest: the ninth of the picture with the most of its positive part."""
    ninths = on_grid(map_.clamp_min(0)[None].float(), 3)[0]
    return PLACES[int(torch.argmax(ninths.flatten()))]
