"""Keypoints: a joint's heat map at its highest place, or where that place lies, as a target."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import BaseTarget
from konkyo.targets.specs import class_of_text, number_of, spec, with_settings
from konkyo.utils.tensors import at_least_float32

Coordinate: TypeAlias = Literal["x", "y"]
TEMPERATURE = 0.05
"""A heat map whose joint reaches 1 and whose other cells are near 0 has nearly all of its softmax at the joint then."""


@dataclass(frozen=True)
class Keypoint(BaseTarget):
    """This target is what a network says of one joint. Output: heat maps (N, J, h, w) -> (N,).

    `joint`: its index, or for `explain` its name. Without a `coordinate` the score is the heat map's value at its
    highest cell on the explained image, a place that then stays the same: why is the joint seen there? With "x" or "y"
    it is where the joint lies, as the mean place under softmax(heat map / `temperature`), in cells of the heat map:
    what pulls it to the right (or down), and what to the left?
    """

    joint: int | str
    coordinate: Coordinate | None = None
    temperature: float = TEMPERATURE
    name: str = ""
    place: tuple[int, int] | None = None
    """(row, column) of the highest cell, which `explain` fills in; None: that of every image itself."""

    def __post_init__(self) -> None:
        if isinstance(self.joint, bool) or not isinstance(self.joint, (int, str)):
            raise KonkyoError(f"a joint is its index from 0, or its name; got {self.joint!r}")
        if self.coordinate is not None and self.coordinate not in get_args(Coordinate):
            raise unknown("coordinate", self.coordinate, get_args(Coordinate))
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise KonkyoError(f"a temperature is above 0; got {self.temperature}")

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the joint's score of every image. KonkyoError: no heat maps, or no such joint."""
        heat = self.heat(output)
        if self.coordinate is not None:
            axis = -1 if self.coordinate == "x" else -2
            shares = (heat.flatten(1) / self.temperature).softmax(1).view_as(heat)
            places = torch.arange(heat.shape[axis], device=heat.device, dtype=heat.dtype)
            return shares.sum(-2 if axis == -1 else -1) @ places
        if self.place is None:
            return heat.flatten(1).amax(1)
        return heat[:, self.place[0], self.place[1]]

    def of_place(self) -> bool:
        """Returns True: the place of a joint is one of the picture."""
        return True

    @property
    def channel(self) -> int | None:
        """This is the joint's own, where the score is its heat."""
        return self.joint if isinstance(self.joint, int) and self.coordinate is None else None

    def heat(self, output: Tensor) -> Tensor:
        """Returns the joint's heat map (N, h, w), in single precision at least."""
        if not isinstance(self.joint, int):
            raise KonkyoError(f"{self.joint!r} is a name, which konkyo.explain resolves; here give the joint's index")
        if output.ndim != 4:
            raise KonkyoError(f"heat maps are (N, joints, h, w); the output has shape {tuple(output.shape)}")
        if not 0 <= self.joint < output.shape[1]:
            raise KonkyoError(f"joint {self.joint} of {output.shape[1]} (0 to {output.shape[1] - 1})")
        return at_least_float32(output[:, self.joint])

    def fixed(self, output: Tensor) -> Keypoint:
        """Returns it with the place of the joint on this image."""
        heat = self.heat(output)[0]
        row, column = divmod(int(heat.argmax()), heat.shape[1])
        return replace(self, place=(row, column))

    def in_words(self, label: str, score: float) -> str:
        """Returns the joint with its score, as in "left wrist (heat 0.83)" or "x of left wrist (cell 12.3)"."""
        return f"{label} (cell {score:.1f})" if self.coordinate else f"{label} (heat {score:.2f})"


@spec("keypoint:NAME_OR_INDEX[,coordinate=x|y][,temperature=NUMBER]")
def _keypoint(value: str) -> Keypoint:
    name, settings = with_settings(value, "coordinate", "temperature")
    temperature = number_of(settings["temperature"], "temperature") if "temperature" in settings else TEMPERATURE
    return Keypoint(class_of_text(name), settings.get("coordinate"), temperature)  # type: ignore[arg-type]  # checked there
