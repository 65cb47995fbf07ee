"""Class activation maps from gradients, and their relatives at the input.

A: activations (N, C, *grid), G: d score / d A. Maps are signed; where they are a sum over channels, what each channel
adds to them is returned (N, C, *grid).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import ClassIndex, Curvature, Differentiate
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.methods.base import method
from konkyo.targets.base import Target, as_target
from konkyo.utils.tensors import channels, grid_mean, grid_sum, safe_divide


@method
def cam(class_weights: Tensor, activations: Tensor) -> Tensor:
    """CAM (Zhou et al., 2016, Eq. 2) weights channels by the linear layer that follows global average pooling.

    map = sum_k w_k A_k. The head must be global average pooling and one linear layer, or one convolution of 1 x 1
    cells before or after the pooling. Where the pooled grid is the output itself, the class's channel is the map: in
    SqueezeNet, whose convolution a ReLU follows, at that ReLU as `layer`.
    """
    return channels(class_weights, activations) * activations


@method(rectified=True)
def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017, Eq. 1-2) weights channels by their mean gradient.

    map = ReLU(sum_k mean(G_k) A_k).
    """
    return channels(grid_mean(gradients), activations) * activations


@method(rectified=True)
def grad_cam_pp(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al., 2018, Eq. 19) weights channels by their positive gradients, evened out.

    map = ReLU(sum_k w_k A_k), w_k = sum alpha_k ReLU(G_k), alpha_k = G_k^2 / (2 G_k^2 + sum(A_k) G_k^3). alpha_k is
    reduced to 1 / (2 + sum(A_k) G_k), which is exact wherever G_k > 0 and needs no epsilon. The factor exp(score) that
    the paper's derivation adds to every gradient is one number per image and is left out. Made for activations after a
    ReLU.
    """
    alpha = safe_divide(gradients.new_ones(()), 2 + channels(grid_sum(activations), activations) * gradients)
    return channels(grid_sum(alpha * gradients.relu()), activations) * activations


@method(rectified=True)
def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM (Jiang et al., 2021) weights every activation by its own positive gradient.

    map = ReLU(sum_k ReLU(G_k) A_k). Several layers are fused as in the paper: see `explain`.
    """
    return gradients.relu() * activations


@method
def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM (Draelos & Carin, 2020) sums gradient times activation over channels.

    map = sum_k G_k A_k: where the head is linear in A, the map's sum is the score without its bias.
    """
    return gradients * activations


@method(rectified=True)
def xgrad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM (Fu et al., 2020) weights channels by their gradient, averaged with the activation as weight.

    map = ReLU(sum_k w_k A_k), w_k = sum(G_k A_k) / sum(A_k); 0 for a channel whose sum is 0.
    """
    weights = safe_divide(grid_sum(gradients * activations), grid_sum(activations))
    return channels(weights, activations) * activations


@method
def grad_cam_elementwise(activations: Tensor, gradients: Tensor) -> Tensor:
    """Element-wise Grad-CAM (pytorch-grad-cam) adds up the positive products of gradient and activation.

    map = sum_k ReLU(G_k A_k).
    """
    return (gradients * activations).relu()


@method(rectified=True)
def finer_cam(
    activations: Tensor,
    output: Tensor,
    score: Tensor,
    targets: Sequence[Target],
    differentiate: Differentiate,
    class_index: ClassIndex,
    *,
    gamma: float = 0.6,
    classes: int = 3,
    against: Sequence[int | str] = (),
    weights: Literal["mean", "softmax"] = "mean",
) -> Tensor:
    """Finer-CAM (Zhang et al., 2025) is Grad-CAM of what sets a class apart from the classes most easily taken for it.

    map = ReLU(sum_k mean(dF/dA_k) A_k), F = y_c - gamma sum_t w_t y_t over the `classes` other classes t whose logits
    are nearest to y_c, or over the classes `against` which it is to be told apart (indices or names; c itself does not
    count). `weights` are 1 / the number of them, or the softmax of those classes' logits, held fixed. (The authors'
    code lets their gradient in.) gamma = 0 is Grad-CAM; near 1 only the differences are left. Needs a class's logit as
    target and at least two classes.
    """
    if not 0 <= gamma < math.inf or classes < 1:
        raise KonkyoError(f"finer_cam needs gamma >= 0 and classes >= 1; got {gamma}, {classes}")
    indices = [index for target in targets if (index := as_target(target).class_logit) is not None]
    if output.ndim != 2 or output.shape[1] < 2 or len(indices) < len(targets):
        raise NotApplicable("compares a class's logit with other classes'; needs such a target, and two classes")
    rows = torch.arange(len(indices), device=output.device)
    apart = _classes_apart(against, class_index, output.shape[1])
    others = torch.ones_like(output, dtype=torch.bool)
    if apart:
        others = torch.zeros_like(others)
        others[:, apart] = True
    others[rows, indices] = False
    count = others.sum(1, keepdim=True)
    if not count.all():
        raise KonkyoError(f"finer_cam needs other classes than the explained one in against; got {against!r}")
    distance = (output - score[:, None]).abs().masked_fill(~others, math.inf)
    near = distance.topk(len(apart) or min(classes, output.shape[1] - 1), largest=False).indices
    counted = others.gather(1, near)  # all of them, but where the explained class is one of `against`
    if weights == "softmax":
        share = output.gather(1, near).masked_fill(~counted, -math.inf).softmax(1)
    else:
        share = counted / counted.sum(1, keepdim=True).to(output)
    gradients = differentiate(lambda out, y: y - gamma * (share * out.gather(1, near)).sum(1))
    return channels(grid_mean(gradients), activations) * activations


def _classes_apart(against: Sequence[int | str], class_index: ClassIndex, count: int) -> list[int]:
    """Returns the indices of classes, each once. KonkyoError: no list of classes, or one that there is not."""
    if not isinstance(against, (Sequence, int)) or isinstance(against, bool):
        raise KonkyoError(f"against is a list of classes, indices or names; got {against!r}")
    indices = list[int]()
    for name in [against] if isinstance(against, (str, int)) else against:
        index = class_index(name) if isinstance(name, str) else name
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise KonkyoError(f"against lists classes, names or 0 to {count - 1}; got {name!r}")
        indices.append(index)
    return list(dict.fromkeys(indices))


@method(rectified=True)
def shapley_cam(activations: Tensor, gradients: Tensor, curvature: Curvature) -> Tensor:
    """ShapleyCAM (Cai, 2025) is Grad-CAM with gradients corrected by the score's curvature.

    map = ReLU(sum_k mean(G_k - (H A)_k / 2) A_k) with H the Hessian of the score at the layer: the Shapley values of
    the channels in a second-order expansion. H of a logit is 0 where what follows is piecewise linear (Grad-CAM then);
    the paper's utility ReST has one: `target=lambda out: out[:, c] + out.log_softmax(1)[:, c]`. A is the grid alone: a
    class token stays out of H A (in the authors' code it is in). Cost: a forward and two backwards more.
    """
    return channels(grid_mean(gradients - curvature(activations) / 2), activations) * activations


@method(layer="input", holds_input=False)
def gradient(gradients: Tensor) -> Tensor:
    """Gradient (Baehrens et al., 2010) is the score's slope at every pixel, with its sign.

    map = sum_c G_c, the fall of the score where all channels of a pixel become smaller, per unit. `saliency` is its
    size without a sign, by the largest channel.
    """
    return gradients


@method(layer="input", holds_input=False)
def saliency(gradients: Tensor) -> Tensor:
    """Saliency (Simonyan et al., 2013, Sec. 3) is the largest absolute gradient over the channels of a pixel.

    map = max_c |G_c|.
    """
    return gradients.abs().amax(1)


@method(layer="input")
def input_x_gradient(activations: Tensor, gradients: Tensor) -> Tensor:
    """Input x gradient (Shrikumar et al., 2016) is the first-order effect of taking a pixel to the baseline 0.

    map = sum_c x_c G_c, HiResCAM's formula at the input.
    """
    return activations * gradients
