"""This tells which methods' maps can be trained: those made of a layer's activations and the gradient there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.methods.base import METHODS, Method, find, methods

OFFER = ("activations", "gradients", "class_weights")
"""The needs that a training has an answer to, of which the map is a differentiable function."""


def trainable(which: str | Method) -> Method:
    """Returns a method whose maps can be trained. KonkyoError: another one, or an unknown name."""
    if isinstance(which, str) and "(" not in which and which not in methods():
        raise unknown("method for training", which, _offered())
    method = find(which)
    if reason := _obstacle(method):
        raise KonkyoError(
            f"method {method.name!r} cannot be trained: {reason}. On offer: {', '.join(_offered())}, and methods of "
            "your own that need activations and gradients only"
        )
    return method


def evidence(method: Method, needs: Mapping[str, Tensor]) -> Tensor:
    """Returns the maps (R, *grid) of a method, with a graph to what it is given; after its ReLU where it has one."""
    result = method.function(*(needs[name] for name in method.needs))
    maps = result.sum(1) if result.ndim == needs["activations"].ndim else result
    return maps.relu() if method.rectified else maps


def _offered() -> list[str]:
    methods()
    return [name for name, method in METHODS.items() if not _obstacle(method)]


@cache
def _obstacle(method: Method) -> str:
    """Returns why a method's maps cannot be trained, in words; nothing where they can."""
    missing = [name for name in method.needs if name not in OFFER]
    if missing or method.inner is not None:
        return f"it needs {', '.join(missing) or 'another method'}, which a step of training does not have"
    if method.layer is not None:
        return f"it is defined at {method.layer!r}, and not at a feature layer"
    if not method.needs_target():
        return "its map is the same for every class"
    if method.score != "logit":
        return f"it explains the {method.score} of a class, and not its logit"
    return _checked(method)


def _checked(method: Method) -> str:
    """Compares the gradient of a map with finite differences, on made-up activations and gradients at them.

    Two of the channels are dead, and one image has nothing but zeros, as after a ReLU.
    """
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    activations, gradients, weights = numbers(3, 6, 3, 4).relu(), numbers(3, 6, 3, 4), numbers(3, 6)
    activations[:, ::3] = activations[2] = 0
    values = {"activations": activations, "gradients": gradients, "class_weights": weights}
    share = torch.linspace(0.5, 2.0, 36, dtype=torch.float64).view(3, 3, 4)
    steps = {name: numbers(*value.shape) * (value != 0) for name, value in values.items()}

    def total(step: float) -> Tensor:
        moved = {name: value + step * steps[name] for name, value in values.items()}
        return (evidence(method, moved) * share).sum()

    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        start = (evidence(method, leaves) * share).sum()
        if not start.requires_grad:
            return "its map has no gradient"
        slopes = torch.autograd.grad(start, list(leaves.values()), allow_unused=True)
    slope = sum(float((g * s).sum()) for g, s in zip(slopes, steps.values(), strict=True) if g is not None)
    difference = float(total(1e-6) - total(-1e-6)) / 2e-6
    if not abs(slope - difference) <= 1e-4 * (1 + abs(difference)):  # NaN, too
        return f"its map has the gradient {slope:.4g} where finite differences have {difference:.4g}"
    return ""
