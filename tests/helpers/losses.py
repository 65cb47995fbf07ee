"""Random maps for losses, and their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def maps(count: int, *size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def checked(function: Callable[[Tensor], Tensor], at: Tensor, tolerance: float = 1e-6, most: int = 48) -> None:
    """The gradient of a scalar function against central differences, at up to `most` places."""
    leaf = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf), leaf)
    step, flat = 1e-6, at.detach().flatten()
    expected = found.flatten().clone()
    for i in torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:most]:
        ends = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[i] += sign * step
            ends.append(function(moved.view_as(at)).detach())
        expected[i] = (ends[0] - ends[1]) / (2 * step)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-4, atol=tolerance)
