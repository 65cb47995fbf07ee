"""Maps of groups of pixels: what each segment of the image adds to the score, when the others are shown or hidden.

A game: the players are the d segments of an image, and the value v(z) of a coalition z in {0, 1}^d is the score of the
image in which the segments with z = 0 are hidden. v(1) is the score of the image, v(0) that of the image all hidden.
All targets of an image share its segments, coalitions and forwards. Coalitions depend on the seed and on d alone, so
they are the same whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from konkyo.engine.needs import Rescore, Segments
from konkyo.errors import KonkyoError, unknown
from konkyo.methods.base import method
from konkyo.utils.segments import Count, Segmentation
from konkyo.utils.tensors import blurred, safe_divide

Hide: TypeAlias = Literal["mean", "zero", "black", "blur"] | float
"""What is shown in the place of a hidden segment: its mean colour, 0 of the prepared image (the mean colour of the
data), black, the image blurred, or a value of the prepared image."""


@method(layer="input", score="probability")
def feature_ablation(
    inputs: Tensor,
    black: Tensor,
    segments: Segments,
    rescore: Rescore,
    *,
    segments_by: Segmentation = "slic",
    count: Count = 50,
    hide: Hide = "mean",
    spread: bool = False,
) -> Tensor:
    """Feature ablation shows how far the score falls when a segment of the image is hidden.

    map = phi_g on every pixel of segment g, phi_g = v(1) - v(all but g).
    """
    game = Game.of(inputs, black, segments(segments_by, count), hide)
    alone = _by_size(game, lambda players: torch.cat([torch.ones(1, players), 1 - torch.eye(players)]).bool())
    values, ran = game.play(rescore, alone)
    drops = torch.where(ran[:, 1:] & ran[:, :1], values[:, :1] - values[:, 1:], 0.0)
    return game.map(drops, spread=spread)
