"""Maps of parts that are halved again and again, where the score depends on them most."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as counting
from typing import TypeAlias

import torch
from torch import Tensor

from konkyo.engine.needs import Rescore
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.methods.game import Hide, hidden_pixels

_Box: TypeAlias = tuple[tuple[int, int], ...]
"""From where to where along every axis."""
_AT_ONCE = 32  # boxes that are halved before the next ones are chosen


@method(layer="input")
def partition(
    inputs: Tensor, black: Tensor, rescore: Rescore, *, evaluations: int = 500, hide: Hide = "blur"
) -> Tensor:
    """Partition SHAP (shap's image explainer) gives the halves of ever smaller boxes their Owen values.

    The image is a box, halved along its longer side, and so are its halves, down to the pixels. A box n = l + r in a
    context S (other boxes that are shown too) adds v(S + n) - v(S). Of that l gets half of v(S + l) - v(S) plus v(S +
    n) - v(S + r), and r the rest. Both are then halved in turn, in the contexts S and S + sibling. The box with
    the largest share comes first, 32 at a time. map: every box that was not halved spreads its value over its
    pixels. So the map's sum is v(1) - v(0) however few `evaluations`, and it is finest where the score depends on it.
    `hide`: hidden pixels show the image under a "blur", the "mean" colour of the image, 0 of the prepared image
    ("zero"), "black", or a value. No segments are needed. Cost: `evaluations` forwards for every target.
    """
    if evaluations < 2:
        raise KonkyoError(f"partition needs evaluations >= 2: the image and all of it hidden; got {evaluations}")
    size = tuple(inputs.shape[2:])
    hidden = hidden_pixels(inputs, black, torch.zeros_like(inputs[:, 0], dtype=torch.int64), hide)
    whole: _Box = tuple((0, extent) for extent in size)

    def scored(shown: Sequence[Sequence[Sequence[_Box]]]) -> list[list[float]]:
        """Returns the scores of every row's variants, each a list of boxes that are shown; -inf: it did not run."""
        most = max(map(len, shown))
        ran = torch.tensor([[k < len(row) for k in range(most)] for row in shown], device=inputs.device)

        def variants(row: int, k: Tensor) -> Tensor:
            masks = torch.stack([_mask(shown[row][i], size) for i in k.tolist()]).to(inputs.device)
            return torch.where(masks[:, None], inputs[row], hidden[row])

        values: list[list[float]] = rescore(most, inputs=variants, priority=ran).tolist()
        return values

    rows = [
        _Row(_Part(whole, (), 1.0, none, full), evaluations - 2)
        for none, full in scored([[[], [whole]] for _ in inputs])
    ]
    while any(chosen := [row.best() for row in rows]):
        values = scored([[boxes for part in parts for boxes in part.variants()] for parts in chosen])
        for row, parts, scores in zip(rows, chosen, values, strict=True):
            row.halve(parts, scores)
    kind = torch.promote_types(inputs.dtype, torch.float32)
    return torch.stack([row.map(size) for row in rows]).to(inputs.device, kind)


@dataclass(frozen=True)
class _Part:
    """A box in a context, and what it has of the whole."""

    box: _Box
    context: tuple[_Box, ...]
    weight: float
    without: float
    """The score of the context alone."""
    with_: float
    """The score of the context and the box."""

    @property
    def value(self) -> float:
        """Returns the part's value; 0 where the scores that it is made of did not run."""
        return self.weight * (self.with_ - self.without) if self.ran else 0.0

    @property
    def ran(self) -> bool:
        """Tells whether its scores are known."""
        return -math.inf not in (self.with_, self.without)

    def halves(self) -> tuple[_Box, _Box]:
        """Returns the box's halves along its longer side; of sides as long the first."""
        axis = max(range(len(self.box)), key=lambda a: self.box[a][1] - self.box[a][0])
        start, stop = self.box[axis]
        middle = (start + stop + 1) // 2
        before, after = self.box[:axis], self.box[axis + 1 :]
        return (*before, (start, middle), *after), (*before, (middle, stop), *after)

    def variants(self) -> list[tuple[_Box, ...]]:
        """Returns what is shown for the scores of its halves: the context and one half."""
        return [(*self.context, half) for half in self.halves()]

    def divided(self, first: float, second: float) -> list[_Part]:
        """Returns its parts, by the scores of the context with the first and with the second half."""
        one, other = self.halves()
        w = self.weight / 2
        return [
            _Part(one, self.context, w, self.without, first),
            _Part(one, (*self.context, other), w, second, self.with_),
            _Part(other, self.context, w, self.without, second),
            _Part(other, (*self.context, one), w, first, self.with_),
        ]


class _Row:
    """The parts that an image is divided into for a target."""

    def __init__(self, whole: _Part, evaluations: int) -> None:
        """Starts with the whole image, and so many forwards to go."""
        self.left, self.number = evaluations, counting()
        self.open: list[tuple[float, int, _Part]] = []
        """A heap, the part of the largest value first."""
        self.done: list[_Part] = []
        self.add([whole])

    def add(self, parts: Sequence[_Part]) -> None:
        """Notes parts: those of more than a pixel can be halved."""
        for part in parts:
            if part.ran and any(stop - start > 1 for start, stop in part.box):
                heapq.heappush(self.open, (-abs(part.value), next(self.number), part))
            else:
                self.done.append(part)

    def best(self) -> list[_Part]:
        """Takes out the parts that are halved next."""
        count = min(_AT_ONCE, len(self.open), self.left // 2)
        self.left -= 2 * count
        return [heapq.heappop(self.open)[2] for _ in range(count)]

    def halve(self, parts: Sequence[_Part], scores: Sequence[float]) -> None:
        """Divides the parts by the scores of their halves; a part whose scores did not run stays as it is."""
        for part, first, second in zip(parts, scores[::2], scores[1::2], strict=False):
            if -math.inf in (first, second):
                self.done.append(part)
            else:
                self.add(part.divided(first, second))

    def map(self, size: tuple[int, ...]) -> Tensor:
        """Returns the map (*size), every part's value spread over its pixels."""
        total = torch.zeros(size, dtype=torch.float64)
        for part in [*self.done, *(part for *_, part in self.open)]:
            pixels = math.prod(stop - start for start, stop in part.box)
            total[_slices(part.box)] += part.value / pixels
        return total


def _slices(box: _Box) -> tuple[slice, ...]:
    """Returns the box as an index."""
    return tuple(slice(*side) for side in box)


def _mask(boxes: Sequence[_Box], size: tuple[int, ...]) -> Tensor:
    """Returns where any of the boxes is (*size)."""
    mask = torch.zeros(size, dtype=torch.bool)
    for box in boxes:
        mask[_slices(box)] = True
    return mask
