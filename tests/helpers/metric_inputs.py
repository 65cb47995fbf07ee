"""Images, maps and scorers to measure metrics on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PIXELS = torch.tensor([[-2.0, -1.5, -1.0], [2.0, 2.5, 3.0]])
"""Black and white."""


def images_of(rows: int = 3, channels: int = 3, size: tuple[int, int] = (6, 9)) -> Tensor:
    return torch.randn(rows, channels, *size, generator=torch.Generator().manual_seed(3))


def maps_of(rows: int = 3, size: tuple[int, int] = (6, 9)) -> Tensor:
    return torch.rand(rows, *size, generator=torch.Generator().manual_seed(4))


def linear(weights: Tensor) -> Any:
    """A scorer that is a weighted sum of the pixels: weights (R, C, H, W)."""
    return lambda variants, rows: (variants * weights[rows]).sum((1, 2, 3))


def network(variants: Tensor, rows: Tensor) -> Tensor:
    """Something bent, different for every row, in (0, 1)."""
    ramp = torch.linspace(-1, 1, variants[0].numel()).view(variants.shape[1:])
    return ((variants * ramp).sum((1, 2, 3)) / 3 + 0.3 * rows + (variants**2).mean((1, 2, 3))).sigmoid()


def explain(variants: Tensor, rows: Tensor) -> Tensor:
    weights = torch.tensor([1.0, -0.5, 0.25]).view(3, 1, 1)
    return torch.nn.functional.avg_pool2d((variants * weights).sum(1) * (1 + rows.view(-1, 1, 1)), (2, 3))
