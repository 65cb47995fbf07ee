"""Layers: they read what a module puts out as a feature grid; the image itself is a grid, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from konkyo.errors import KonkyoError

INPUT = "input"
STAGES = "stages"
MAX_PREFIX_TOKENS = 8  # class token, distillation token, registers


@dataclass(frozen=True)
class Layer:
    """A layer is a module whose output is a feature grid; `module=None` is the image itself.

    `fold` turns what the module puts out into (N, C, *grid), `unfold` turns such a grid back. Channels first, channels
    last and tokens differ here and nowhere else.
    """

    name: str
    module: nn.Module | None
    channel_axis: int = 1
    """Where the channels are: 1 for (N, C, h, w), -1 for (N, h, w, C) and for tokens (N, L, C)."""
    tokens: tuple[int, ...] | None = None
    """The grid that the tokens form, when the module puts out tokens."""
    prefix: int = 0
    """How many tokens (class, distillation, registers) stand before the grid."""
    call: int = -1
    """Which call of the module in one forward is meant; -1 is the last."""
    level: int | None = -1
    """-1: the first tensor of what the module puts out; None: all maps in it, a pyramid's levels; or one of them."""
    batch_axis: int = 0
    """Where the images are: 1 for tokens (L, N, C)."""
    order: tuple[int, ...] = ()
    """How the module's axes lie, if not as the image's places do: for each of them, which place of the image it is."""
    stacked: int = 0
    """So many frames of every image stand one after the other on the batch axis, each a grid; 0: none do."""
    part: bool = False
    """Whether it makes a layer together with others: what comes before it is no part of its gradient's way."""

    def fold(self, raw: Tensor) -> Tensor:
        """Returns the module's output as (N, C, *grid)."""
        raw = raw.movedim(self.batch_axis, 0)
        if self.tokens is not None:
            end = self.prefix + math.prod(self._laid)  # what follows are no places (a detector's queries)
            raw = raw[:, self.prefix : end].reshape(raw.shape[0], *self._laid, -1)  # `len` would fix it in exports
        grid = raw.movedim(self.channel_axis, 1)
        if self.stacked:
            grid = grid.reshape(-1, self.stacked, *grid.shape[1:]).movedim(1, 2)
        places = [0] * len(self.order)
        for axis, place in enumerate(self.order):
            places[place] = 2 + axis
        return grid.permute(0, 1, *places) if self.order else grid

    def unfold(self, grid: Tensor, raw: Tensor) -> Tensor:
        """Returns a grid (V, C, *grid) in the module's form; other tokens come from `raw`, its output for one image."""
        if self.order:
            grid = grid.permute(0, 1, *(2 + place for place in self.order))
        if self.stacked:
            grid = grid.movedim(2, 1).flatten(0, 1)
        out = grid.movedim(1, self.channel_axis)
        if self.tokens is not None:
            raw = raw.movedim(self.batch_axis, 0)
            of_all = (
                raw.expand(grid.shape[0], -1, -1) if raw.shape[0] == 1 else raw.repeat(grid.shape[0] // len(raw), 1, 1)
            )
            before, _, after = of_all.tensor_split((self.prefix, self.prefix + math.prod(self._laid)), dim=1)
            out = torch.cat([before, out.flatten(1, len(self._laid)), after], dim=1)
        return out.movedim(0, self.batch_axis)

    @property
    def _laid(self) -> tuple[int, ...]:
        """These are the sizes of the grid that tokens form, in the order in which they are laid; of a single frame."""
        tokens = self.tokens or ()
        laid = tuple(tokens[place] for place in self.order) if self.order else tokens
        return laid[1:] if self.stacked else laid


def main_tensor(output: Any) -> Tensor | None:
    """Returns the first tensor of what a module puts out: itself, or the first in a tuple, list or mapping."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((v for v in values if isinstance(v, Tensor)), None)


def maps_in(output: Any) -> list[Tensor]:
    """Returns a pyramid's levels: the floating (N, C, *grid) in a module's output, however nested, in its order.

    What it holds twice, as the last hidden state of a list of all, is one level.
    """
    maps = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point() and t.ndim >= 3]
    return list({id(t): t for t in maps}.values())


def tensors_of(output: Any, layer: Layer) -> list[Tensor]:
    """Returns what a layer captures of its module's output: one tensor, or all levels of a pyramid."""
    if layer.level == -1:
        first = main_tensor(output)
        return [] if first is None else [first]
    levels = maps_in(output)
    return levels if layer.level is None else levels[layer.level : layer.level + 1]


def exchanged(output: Any, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
    """Returns the output with `others` in the places of `tensors`, which are in it."""
    swap = {id(tensor): other for tensor, other in zip(tensors, others, strict=True)}
    swapped = 0

    def exchange(leaf: Any) -> Any:
        nonlocal swapped
        swapped += id(leaf) in swap
        return swap.get(id(leaf), leaf)

    result = tree_map(exchange, output)
    if swapped < len(swap):
        raise KonkyoError(f"a layer's output of type {type(output).__name__} cannot be read; name a layer inside it")
    return result


def covers(grid: Sequence[int], spatial: Sequence[int]) -> bool:
    """Tells whether the grid could be the input divided by one stride, up to rounding."""
    if any(g > s or g < 1 for g, s in zip(grid, spatial, strict=True)):
        return False
    stride = max(spatial) / grid[spatial.index(max(spatial))]
    return all(abs(g - s / stride) <= 1 for g, s in zip(grid, spatial, strict=True))


def bind(layer: Layer, root: nn.Module) -> Layer:
    """Returns the layer with its module, looked up by name in `root`."""
    return replace(layer, module=root.get_submodule(layer.name))


def linear_head(root: nn.Module, means: Tensor, output: Tensor, tolerance: float) -> nn.Module | None:
    """Returns the module that makes the output (N, K) of the means over the grid (N, C), or None.

    It is a linear layer, or a convolution of one cell, which does the same before the mean over the grid or after it.
    """
    heads = [m for m in root.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    for head in reversed(heads):
        if tuple(head.weight.shape) != (output.shape[1], means.shape[1], *[1] * (head.weight.ndim - 2)):
            continue
        # Without the bias: beside a large one, what other grids give would look the same.
        unbiased = output if head.bias is None else output - head.bias.detach().to(output)
        again = means @ head_weight(head).to(means).T
        if ((again - unbiased).abs() <= tolerance * unbiased.abs().amax()).all():
            return head
    return None


def head_weight(head: nn.Module) -> Tensor:
    """Returns the weight (K, C) of a linear layer or of a convolution of one cell, detached."""
    weight: Tensor = head.weight  # type: ignore[assignment]
    return weight.detach().flatten(1)
