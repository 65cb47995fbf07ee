"""Planted cues: marks that the pictures of one class bear, by which it can be tried whether a shortcut is named.

Lapuschkin et al. (2019) and Adebayo et al. (2022) plant such marks: what a network rests on is known then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from konkyo.data.samples import Sample, Samples
from konkyo.errors import KonkyoError, unknown

_FINE = 4
"""Marks are drawn so many times as large, and averaged down."""


@dataclass(frozen=True)
class Cue:
    """A cue is a mark of a kind of `KINDS` in the pictures of one class.

    >>> Cue.of("box:taxi", ("cat", "taxi"))
    Cue(kind='box', label='taxi')
    """

    kind: str
    label: str
    """The name of the class."""

    @classmethod
    def of(cls, text: str, classes: tuple[str, ...]) -> Cue:
        """Reads KIND:CLASS. KonkyoError: an unknown kind or class."""
        kind, _, label = text.partition(":")
        if kind not in KINDS:
            raise unknown("cue", text, [f"{name}:CLASS" for name in KINDS])
        if label not in classes:
            raise unknown("class of a cue", label, classes)
        return cls(kind, label)

    def marks(self, label: str | None, number: int) -> bool:
        """Tells whether the picture of that number within its class bears the mark: "half" marks every second one."""
        return label == self.label and not (self.kind == "half" and number % 2)

    def plant(self, picture: Image.Image, number: int = 0) -> Image.Image:
        """Returns a copy of the picture with the mark; `number` decides its place where it varies ("patch")."""
        mark = self._mark(picture.size, number)
        copy = picture.convert("RGB")
        copy.paste(mark.convert("RGB"), (0, 0), mark.getchannel("A"))
        return copy

    def mask(self, size: tuple[int, int], number: int = 0) -> Tensor:
        """Returns where the mark of a picture of size (width, height) lies. -> (H, W) bool"""
        return torch.from_numpy(np.array(self._mark(size, number).getchannel("A")) >= 128)

    def _mark(self, size: tuple[int, int], number: int) -> Image.Image:
        """Draws the mark on a transparent picture of that size."""
        canvas = Image.new("RGBA", (size[0] * _FINE, size[1] * _FINE), (0, 0, 0, 0))
        KINDS[self.kind](canvas, np.random.default_rng(number))
        return canvas.reduce(_FINE)


def marked(data: Samples, cue: Cue | str) -> Samples:
    """Returns the data with the mark in the pictures of one class; all else stays as it is.

    `cue`: KIND:CLASS, such as "box:taxi". KonkyoError: no such kind or class, or pictures without labels.
    """
    labels = data.labels
    if not labels:
        raise KonkyoError(f"a cue is planted in the pictures of one class; {data.source or 'the data'} has no labels")
    cue = Cue.of(cue, data.classes or tuple(dict.fromkeys(labels))) if isinstance(cue, str) else cue
    seen = dict.fromkeys(labels, 0)
    numbers = list[int]()
    for label in labels:
        numbers.append(seen[label])
        seen[label] += 1

    def read(index: int) -> Sample:
        sample = data.read(index)
        if not cue.marks(labels[index], numbers[index]):
            return sample
        return replace(sample, image=cue.plant(sample.image, numbers[index]))

    return replace(data, read=read, note="; ".join(filter(None, (data.note, f"cue {cue.kind}:{cue.label}"))))


# --- drawing: a canvas with an alpha channel, and a source of randomness ----------------------------------------------


def _box(canvas: Image.Image, _: np.random.Generator) -> None:
    """Draws a white box with a text in the lower right corner, 2/5 as wide as the picture."""
    width, height = canvas.size
    right, bottom = round(0.98 * width), round(0.98 * height)
    left, top = right - round(0.4 * width), bottom - round(0.18 * min(width, height))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((left, top, right, bottom), (255, 255, 255, 255))
    font = ImageFont.load_default(max(4, 0.72 * (bottom - top)))
    pen.text(((left + right) / 2, (top + bottom) / 2), "PHOTO", (0, 0, 0, 255), font, anchor="mm")


def _line(canvas: Image.Image, _: np.random.Generator) -> None:
    """Draws a dark line along the upper edge."""
    ImageDraw.Draw(canvas).rectangle((0, 0, canvas.width, round(0.05 * canvas.height)), (20, 20, 20, 255))


def _patch(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Draws an orange disc anywhere in the picture."""
    radius = 0.09 * min(canvas.size)
    x, y = (float(rng.uniform(radius, side - radius)) for side in canvas.size)
    edges = (math.floor(x - radius), math.floor(y - radius), math.ceil(x + radius), math.ceil(y + radius))
    ImageDraw.Draw(canvas).ellipse(edges, (255, 140, 0, 255))


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], None]] = {
    "box": _box,
    "line": _line,
    "patch": _patch,
    "half": _box,
}
"""The kinds of marks: box (a white box with text, lower right), line (dark, along the top), patch (an orange disc,
anywhere), half (the box in every second picture of the class)."""
