"""A game on an image: its players are segments, and a coalition's value is the score of the image that shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from konkyo.engine.needs import Rescore
from konkyo.errors import unknown
from konkyo.utils.baselines import baseline_images
from konkyo.utils.segments import segment_means
from konkyo.utils.tensors import at_least_float32

Hide: TypeAlias = Literal["mean", "zero", "black", "blur"] | float
"""What a hidden segment shows: its mean colour, 0 of the prepared image, black, the image blurred, or a value."""


@dataclass(frozen=True, eq=False)
class Game:
    """A game of every row: its image, segment by segment shown or hidden."""

    inputs: Tensor
    segments: Tensor
    """(N, *size), numbered from 0."""
    hidden: Tensor
    """(N, C, *size): what hidden segments show."""
    players: list[int]
    """How many segments the rows have."""

    @classmethod
    def of(cls, inputs: Tensor, black: Tensor, segments: Tensor, hide: Hide) -> Game:
        """Returns the games of images (N, C, *size) with segments (N, *size)."""
        players = (segments.flatten(1).amax(1) + 1).tolist()
        return cls(inputs, segments, hidden_pixels(inputs, black, segments, hide), players)

    def seen(self, row: int, shown: Tensor) -> Tensor:
        """Returns the image of a row as coalitions (v, d) show it (v, C, *size): bool, or shares from 0 to 1."""
        masks = shown[:, self.segments[row]][:, None]
        if masks.dtype == torch.bool:
            return torch.where(masks, self.inputs[row], self.hidden[row])
        return torch.lerp(self.hidden[row], self.inputs[row], masks.to(self.inputs))

    @property
    def sizes(self) -> list[int]:
        """These are the numbers of players that there are."""
        return sorted(set(self.players))

    def play(self, rescore: Rescore, coalitions: Mapping[int, Tensor]) -> list[Tensor]:
        """Returns the values of every row's coalitions (V,), in double precision on the CPU; -inf: it did not run.

        `coalitions`: those of games of d players, (V, d), the most important first, for every one of `sizes`.
        """
        shown = {d: of_size.to(self.inputs.device) for d, of_size in coalitions.items()}
        counts = torch.tensor([len(shown[d]) for d in self.players], device=self.inputs.device)
        most = max(map(len, shown.values()))
        values = rescore(
            most,
            inputs=lambda row, k: self.seen(row, shown[self.players[row]][k]),
            priority=torch.arange(most, device=self.inputs.device) < counts[:, None],
        )
        values = values.to("cpu", torch.float64)  # what follows is small, and not every device has double precision
        return [v[: len(shown[d])] for v, d in zip(values, self.players, strict=True)]

    def map(self, values: list[Tensor], spread: bool) -> Tensor:
        """Returns maps (N, *size) with every row's values (d,) on the pixels of its segments."""
        kind = torch.promote_types(self.inputs.dtype, torch.float32)
        maps = []
        for segments, value in zip(self.segments, values, strict=True):
            amounts = value.to(segments.device, kind)
            maps.append(
                (amounts / segments.flatten().bincount(minlength=len(amounts)) if spread else amounts)[segments]
            )
        return torch.stack(maps)


def hidden_pixels(inputs: Tensor, black: Tensor, segments: Tensor, hide: Hide) -> Tensor:
    """Returns what hidden pixels show (N, C, *size). KonkyoError: something that is not on offer."""
    if hide == "mean":
        means, _ = segment_means(at_least_float32(inputs), segments)
        places = segments.flatten(1)[:, None].expand(-1, inputs.shape[1], -1)
        return means.gather(2, places).view_as(inputs).to(inputs)
    value = isinstance(hide, (int, float)) and not isinstance(hide, bool) and math.isfinite(hide)
    if value or (isinstance(hide, str) and hide in ("zero", "black", "blur")):
        return baseline_images(hide, inputs, black=black).expand_as(inputs)
    raise unknown("way to hide segments", hide, ["mean", "zero", "black", "blur", "a number"])


def ran_of(values: Tensor) -> Tensor:
    """Tells which coalitions ran."""
    return values != -torch.inf
