"""Gradients integrated along a path from a baseline to the image (or to the layer's activations)."""

from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import Regrad, Revisit
from konkyo.engine.probe import On
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.utils.tensors import grid_mean, weigh

QuadratureRule = Literal["right", "midpoint"]


@method(layer="input")
def integrated_gradients(
    activations: Tensor, regrad: Regrad, *, steps: int = 50, baseline: float = 0.0, rule: QuadratureRule = "right"
) -> Tensor:
    """Integrated Gradients (Sundararajan et al., 2017, Eq. 3) averages the gradient on the way from a baseline.

    map = sum_c (x_c - b) (1 / steps) sum_k d score(b + k / steps (x - b)) / d x_c, k = 1 ... steps. The map's sum
    approaches score(x) - score(b). `baseline` is a value of the preprocessed image (0: the mean colour). `rule`
    "right" takes the paper's right-hand nodes, "midpoint" the middles, which need fewer steps.
    """
    nodes = _nodes("integrated_gradients", steps, rule).to(activations)
    way = activations - baseline

    def points(image: int, k: Tensor) -> Tensor:
        return baseline + nodes[k].view(-1, *[1] * (way.ndim - 1)) * way[image]

    return way * regrad(torch.full_like(nodes, 1 / steps), activations=points)


@method(rectified=True)
def integrated_grad_cam(
    inputs: Tensor,
    activations: Tensor,
    on: On,
    revisit: Revisit,
    *,
    steps: int = 20,
    baseline: float = 0.0,
    rule: QuadratureRule = "right",
    rectify: Literal["nodes", "sum"] = "nodes",
) -> Tensor:
    """Integrated Grad-CAM (Sattarzadeh et al., 2021) averages Grad-CAM on the way from a baseline image.

    map = (1 / steps) sum_t ReLU(sum_k mean(G_k(x_t)) (A_k(x_t) - A_k(b))), x_t = b + t / steps (x - b), t = 1 ...
    steps. `baseline` is a value of the preprocessed image (0: the mean colour; the paper's is black). `rule` as in
    `integrated_gradients`. `rectify` "sum" puts the ReLU outside the sum, so that what speaks against the class along
    the way is weighed up and stays in `signed`. Cost: `steps` forwards and backwards, and a forward for the baseline.
    """
    nodes = _nodes("integrated_grad_cam", steps, rule).to(inputs)
    way, start = inputs - baseline, on(torch.full_like(inputs, baseline)).activations

    def points(image: int, k: Tensor) -> Tensor:
        return baseline + nodes[k].view(-1, *[1] * (way.ndim - 1)) * way[image]

    maps = activations.new_zeros(len(activations), *activations.shape[2:])
    for image, _, values, gradients in revisit(steps, inputs=points):
        node_maps = weigh(grid_mean(gradients), values - start[image])
        maps[image] += (node_maps.relu() if rectify == "nodes" else node_maps).sum(0) / steps
    return maps


def _nodes(name: str, steps: int, rule: QuadratureRule) -> Tensor:
    """Returns the nodes' places on the way, from above 0 to 1."""
    if steps < 1:
        raise KonkyoError(f"{name} needs steps >= 1; got {steps}")
    return (torch.arange(1, steps + 1) - (0.5 if rule == "midpoint" else 0.0)) / steps
