"""What questions share that change images: which images are taken, how they are run, and pictures of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from konkyo.data.arrays import picture_of_colours
from konkyo.errors import NotApplicable
from konkyo.evaluation.diagnose.collected import Collected
from konkyo.models.base import preprocess_of

Probabilities: TypeAlias = Callable[[Tensor], Tensor]
"""Prepared images (N, C, H, W) -> probabilities of the classes (N, K)."""


def batched(probabilities: Probabilities, images: Tensor, batch: int) -> Tensor:
    """Runs images in batches -> (N, K) probabilities."""
    with torch.no_grad():
        return torch.cat([probabilities(part) for part in torch.split(images, batch)])


def images_of_one_size(collected: Collected, most: int, use: str, among: Sequence[int] | None = None) -> list[int]:
    """Draws so many images at most, of the size that the first one drawn has once it is prepared; in order.

    NotApplicable: there is none.
    """
    pool = list(range(len(collected))) if among is None else list(among)
    if not pool:
        raise NotApplicable(
            "images have several sizes once they are prepared, and a class has none of the size that was drawn: "
            "--resize HEIGHTxWIDTH, or a Preprocess with a crop, makes them alike"
        )
    order = torch.randperm(len(pool), generator=collected.generator(use)).tolist()
    if collected.one_size:  # no picture has to be opened
        return sorted(pool[place] for place in order[:most])
    indices, shape = list[int](), None
    for place in order:
        if len(indices) == most:
            break
        size = tuple(collected.image(pool[place]).shape)
        shape = shape or size
        if size == shape:
            indices.append(pool[place])
    return sorted(indices)


def pictured(collected: Collected, images: Tensor) -> list[Image.Image]:
    """Returns prepared images (N, C, H, W) as pictures."""
    return [picture_of_colours(colours) for colours in preprocess_of(collected.model).undo(images.float())]
