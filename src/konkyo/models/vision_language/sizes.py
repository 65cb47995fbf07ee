"""Sizes: what processors resize pictures to where that follows from the picture's own size; see `Preprocess.resize`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module

import torch

from konkyo.models.preprocess import Resizing, Size, resizing


@resizing
@dataclass(frozen=True)
class Multiples(Resizing):
    """Both sides become multiples of `factor`, `least` to `most` pixels in all, nearly in the same form: Qwen-VL."""

    factor: int
    least: int
    most: int

    def steps(self, size: Size) -> tuple[Size, ...]:
        """Returns the size that the library's `smart_resize` chooses."""
        library = import_module("transformers.models.qwen2_vl.image_processing_qwen2_vl")
        height, width = library.smart_resize(*size, factor=self.factor, min_pixels=self.least, max_pixels=self.most)
        return ((int(height), int(width)),)


@resizing
@dataclass(frozen=True)
class TileMultiples(Resizing):
    """The longer side becomes `longest`, then both sides multiples of a tile's `side`: Idefics3, SmolVLM.

    `split`: whether there may be several tiles; False: one, so that both sides become `side`.
    """

    longest: int
    side: int
    split: bool = True

    def steps(self, size: Size) -> tuple[Size, ...]:
        """Returns both sizes, as the processor resizes twice."""
        library = import_module("transformers.models.idefics3.image_processing_idefics3")
        empty = torch.empty(3, *size, device="meta")
        height, width = library.get_resize_output_image_size(empty, self.longest)
        return (int(height), int(width)), self._tiled(height, width) if self.split else (self.side, self.side)

    def _tiled(self, height: int, width: int) -> Size:
        """Returns multiples of the tile's side: first the longer side, then the other by the picture's form."""
        longer = math.ceil(max(height, width) / self.side) * self.side
        other = int(longer / (width / height)) if width >= height else int(longer * (width / height))
        other = math.ceil(other / self.side) * self.side
        return (other, longer) if width >= height else (longer, other)


@resizing
@dataclass(frozen=True)
class AtMost(Resizing):
    """Pictures keep their size, except those with a longer side above `longest`, which shrink to that."""

    longest: int

    def steps(self, size: Size) -> tuple[Size, ...]:
        """Returns the size, or a smaller one of the same form."""
        scale = min(1.0, self.longest / max(size))
        return ((max(1, round(size[0] * scale)), max(1, round(size[1] * scale))),)
