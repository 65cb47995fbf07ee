"""Candidates: all that a detector proposes for an image, before anything is suppressed, as one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from konkyo.errors import KonkyoError


@dataclass(frozen=True)
class Candidates:
    """This reads a detector's output (N, Q, 4 B + K) as boxes and class probabilities, both in the output's graph.

    B is 1, or K where every class has a box of its own (the heads of R-CNN). There is no class "nothing": a candidate
    that is nothing has low probabilities. KonkyoError: another shape.
    """

    output: Tensor
    classes: int

    def __post_init__(self) -> None:
        if self.output.ndim != 3 or self.output.shape[2] not in (4 + self.classes, 5 * self.classes):
            raise KonkyoError(
                f"candidates of {self.classes} classes are (N, Q, {4 + self.classes}) or (N, Q, {5 * self.classes}); "
                f"got {tuple(self.output.shape)}"
            )

    @property
    def probabilities(self) -> Tensor:
        """These are the class probabilities (N, Q, K)."""
        return self.output[..., -self.classes :]

    def boxes(self, label: int) -> Tensor:
        """Returns the boxes for a class (N, Q, 4), xyxy in pixels of the network's input."""
        start = 4 * label if self.output.shape[2] == 5 * self.classes else 0
        return self.output[..., start : start + 4]


def pack(boxes: Tensor, probabilities: Tensor) -> Tensor:
    """Puts boxes (N, Q, 4), or (N, Q, K, 4) with one per class, and probabilities (N, Q, K) into one output."""
    return torch.cat([boxes.flatten(2), probabilities], dim=2)
