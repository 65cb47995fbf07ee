"""Another border for a forward: what convolutions take for zeros around a grid becomes a copy of the grid's edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.engine.session import OwnMode

Border: TypeAlias = Literal["reflect", "replicate"]
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_PAD = ("input", "pad", "mode", "value")


class Padding(OwnMode):
    """Within the context every 2-D convolution that pads with zeros, and `pad` itself, pads with what is at the edge.

    "reflect" mirrors the grid at its border cells, "replicate" repeats them; a grid too small to be mirrored is
    repeated. The network is not changed. Pooling is left alone, and so are paddings that cut off.
    """

    def __init__(self, border: Border) -> None:
        super().__init__()
        self.border: Border = border
        self.used = 0
        """How many paddings were replaced."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch, with its padding replaced, as the mode's protocol asks."""
        kwargs = kwargs or {}
        if function is torch.conv2d:
            values = dict(zip(_CONVOLUTION, args, strict=False)) | kwargs
            sides = _sides(values)
            if any(sides):
                values |= {"input": self._padded(values["input"], sides), "padding": 0}
                return function(**values)
        elif function is functional.pad:
            values = dict(zip(_PAD, args, strict=False)) | kwargs
            if _of_zeros(values):
                return self._padded(values["input"], (*values["pad"], 0, 0)[:4])
        return function(*args, **kwargs)

    def _padded(self, grid: Tensor, sides: Sequence[int]) -> Tensor:
        """Returns the grid (..., h, w) with so many cells more at its left, right, top and bottom."""
        self.used += 1
        height, width = grid.shape[-2:]
        small = max(sides[:2]) >= width or max(sides[2:]) >= height
        return functional.pad(grid, list(sides), mode="replicate" if small else self.border)


def _sides(values: dict[str, Any]) -> tuple[int, int, int, int]:
    """Returns by how many cells a convolution pads its input with zeros at the left, right, top and bottom."""
    padding = values.get("padding", 0)
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        spread = _pair(values.get("dilation", 1))
        down, across = (step * (size - 1) for step, size in zip(spread, values["weight"].shape[-2:], strict=True))
        return across // 2, across - across // 2, down // 2, down - down // 2
    down, across = _pair(padding)
    return across, across, down, down


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return values[0], values[-1]


def _of_zeros(values: dict[str, Any]) -> bool:
    """Tells whether a call of `pad` puts zeros around the grids of images (N, C, h, w), and cuts nothing off."""
    pad, grid = list(values["pad"]), values["input"]
    zero = values.get("mode", "constant") == "constant" and not values.get("value")
    around = len(pad) in (2, 4) and min(pad) >= 0 and any(pad)
    return zero and around and grid.ndim == 4 and grid.is_floating_point()
