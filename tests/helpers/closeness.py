"""Whether values are equal up to rounding, as seen from the largest of those expected, which are not all zero."""

from __future__ import annotations

import torch
from torch import Tensor


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """No value is off by more than this part of itself and this part of the largest one."""
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance * scale)


def close_to_largest(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """No value is off by more than this part of the largest one."""
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
