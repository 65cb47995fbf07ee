"""Gradients integrated along a path from a baseline to the image (or to the layer's activations)."""

from typing import Literal

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.method import method
from konkyo.probe import Regrad

Rule = Literal["right", "midpoint"]


@method(layer="input")
def integrated_gradients(
    activations: Tensor, regrad: Regrad, *, steps: int = 50, baseline: float = 0.0, rule: Rule = "right"
) -> Tensor:
    """Integrated Gradients (Sundararajan et al., 2017, Eq. 3): the gradient averaged on the way from a baseline.

    map = sum_c (x_c - b) (1 / steps) sum_k d score(b + k / steps (x - b)) / d x_c, k = 1 ... steps. The map's sum
    approaches score(x) - score(b). `baseline` is a value of the preprocessed image (0: the mean colour). `rule`
    "right" takes the paper's right-hand nodes, "midpoint" the middles, which need fewer steps.
    """
    if steps < 1 or rule not in ("right", "midpoint"):
        raise KonkyoError(
            f"integrated_gradients needs steps >= 1 and rule 'right' or 'midpoint'; got {steps}, {rule!r}"
        )
    nodes = (torch.arange(1, steps + 1) - (0.5 if rule == "midpoint" else 0.0)).to(activations) / steps
    way = activations - baseline

    def points(image: int, k: Tensor) -> Tensor:
        return baseline + nodes[k].view(-1, *[1] * (way.ndim - 1)) * way[image]

    return (way * regrad(torch.full_like(nodes, 1 / steps), activations=points)).sum(1)
