"""Instance-specific maps of detectors: ODAM, and its gradient integrated on the way from a baseline.

A: activations (N, C, *grid), G: d score / d A. For a class of a classifier they are what they are for an instance.
"""

import math
from typing import Literal, TypeAlias

from torch import Tensor

from konkyo.engine.needs import Integrate
from konkyo.engine.path import GradientScale, Sampling
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.utils.baselines import BaselineName, baseline_images
from konkyo.utils.tensors import blurred, channels, grid_mean, grid_sum, safe_divide

BaselineImage: TypeAlias = Literal["black", "mean", "blur"]
WeightKind: TypeAlias = Literal["elementwise", "channel"]


@method(rectified=True, score="probability")
def odam(activations: Tensor, gradients: Tensor, *, grad_smooth_sigma: float = 0.0) -> Tensor:
    """ODAM (Zhao & Chan, 2023) weights every activation by the instance's own gradient there.

    map = ReLU(sum_k G_k A_k). `grad_smooth_sigma` smooths the gradient by a Gaussian of so many cells first; the
    authors' code does not.
    """
    if not 0 <= grad_smooth_sigma < math.inf:
        raise KonkyoError(f"grad_smooth_sigma is a number of cells, 0 or more; got {grad_smooth_sigma}")
    return (blurred(gradients, grad_smooth_sigma) if grad_smooth_sigma else gradients) * activations


@method(rectified=True, score="probability")
def ss_grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """SSGrad-CAM (Yamauchi & Ishikawa, 2022) is Grad-CAM weighted at every place by the size of the gradient there.

    map = ReLU(sum_k mean(G_k) A_k S_k), S_k = |G_k| / max |G_k|; 0 for a channel without a gradient. S_k takes the map
    to the places that the instance depends on; where the gradient is the same everywhere, it is Grad-CAM of this score.
    """
    return channels(grid_mean(gradients), activations) * activations * _sensitivity(gradients)


@method(rectified=True, score="probability")
def ss_grad_cam_pp(
    activations: Tensor, gradients: Tensor, *, support: Literal["gradient", "all"] = "gradient"
) -> Tensor:
    """SSGrad-CAM++ (Yamauchi, 2024) is Grad-CAM++ weighted at every place by the size of the gradient there.

    map = ReLU(sum_k w_k A_k S_k), S_k as in `ss_grad_cam`, w_k = sum alpha_k ReLU(G_k), alpha_k = 1 / (2 + sum(A_k M_k)
    G_k), which is G_k^2 / (2 G_k^2 + sum(A_k M_k) G_k^3). M_k is 1 on the instance's cells: with `support` "gradient"
    those where G_k is not 0, with "all" every cell, as in Grad-CAM++. The first is konkyo's reading: the paper speaks
    of the cells of a detection, for which detectors have no common word.
    """
    inside = activations * (gradients != 0) if support == "gradient" else activations
    alpha = safe_divide(gradients.new_ones(()), 2 + channels(grid_sum(inside), activations) * gradients)
    weights = grid_sum(alpha * gradients.relu())
    return channels(weights, activations) * activations * _sensitivity(gradients)


def _sensitivity(gradients: Tensor) -> Tensor:
    """Returns |G| divided by its largest value in each channel (N, C, *grid)."""
    size = gradients.abs()
    return safe_divide(size, channels(size.flatten(2).amax(2), size))


@method(rectified=True, score="probability")
def ig_odam(
    inputs: Tensor,
    activations: Tensor,
    black: Tensor,
    integrate: Integrate,
    *,
    nodes: int = 32,
    baseline: BaselineImage = "black",
    weights: WeightKind = "elementwise",
) -> Tensor:
    """IG-ODAM (Nakai et al., 2025, Eq. 1-2) is ODAM with its gradient integrated on the way from a baseline image.

    map = ReLU(sum_k w_k A_k), w = integral of G(I_alpha) d alpha by the trapezoid rule on `nodes` uniform nodes,
    I_alpha = b + alpha (I - b). In every I_alpha the instance is found again among all candidates by its likeness.
    Where nothing is like it, G is 0. One node, at alpha = 1, is ODAM. `baseline`: a "black" image, the "mean" colour (0
    of the prepared image), or the image under a "blur". `weights` "channel" takes the mean of w over the grid, and with
    it the instance out of the map. The map does not add up to the score: `path_odam` does. Cost: `nodes` forwards,
    shared by all instances of an image, and a backward to the layer for each.
    """
    w = integrate(_baseline(inputs, black, baseline), Sampling(nodes))
    return _weighted(w, activations, weights)


@method(rectified=True, score="probability")
def adaptive_ig_odam(
    inputs: Tensor,
    activations: Tensor,
    black: Tensor,
    integrate: Integrate,
    *,
    nodes: int = 32,
    initial: int = 9,
    balance: float = 0.5,
    length_power: float = 0.0,
    split_per_round: int = 1,
    gradient_scale: GradientScale = "max",
    baseline: BaselineImage = "black",
    weights: WeightKind = "elementwise",
) -> Tensor:
    """Adaptive IG-ODAM (Nakai et al., Eq. 3-7) is IG-ODAM with its nodes where gradient and box change most.

    From `initial` uniform nodes on, the interval of the highest priority R = `balance` g + (1 - `balance`) s is halved
    until there are `nodes`. g = |G(b) - G(a)|_1, divided by the largest of the present intervals' (`gradient_scale`), s
    = 1 - IoU of the boxes. The paper's R knows no length, so that at a jump it stays however short the interval; it is
    therefore never halved below 1 / (4 `nodes`). `length_power` multiplies R by a power of the length (1 evens out the
    trapezoid rule's error). `split_per_round` halves several intervals at once. The nodes, priorities, boxes and scores
    are kept in the explanation's `path`. Cost: a forward for every node that any instance of the image wants and a
    backward there for each that wants it, and some in vain: places are guessed, so that several run together. Those
    gradients (C, *grid) are kept, and at most 8 more of each instance.
    """
    sampling = Sampling(nodes, True, initial, balance, length_power, split_per_round, gradient_scale)
    return _weighted(integrate(_baseline(inputs, black, baseline), sampling), activations, weights)


@method(score="probability")
def path_odam(
    inputs: Tensor, black: Tensor, integrate: Integrate, *, nodes: int = 32, baseline: BaselineImage = "black"
) -> Tensor:
    """The complete form of IG-ODAM shows what the activations' change on the way from a baseline adds to the score.

    map = sum_k integral of G_k dA_k by the trapezoid rule, sum_m (G_m + G_(m+1)) / 2 (A_(m+1) - A_m). Its sum over the
    layer approaches score(I) - score(b), if the score depends on the image through the layer alone and one candidate is
    followed all the way. IG-ODAM's sum does not. (The levels of a pyramid are enlarged to one grid, which counts the
    coarse ones several times.) Options and cost as in `ig_odam`.
    """
    if nodes < 2:
        raise KonkyoError(f"path_odam needs nodes >= 2, for what changes between them; got {nodes}")
    return integrate(_baseline(inputs, black, baseline), Sampling(nodes), through="activations").sum(1)


def _baseline(inputs: Tensor, black: Tensor, which: BaselineImage) -> Tensor:
    name: BaselineName = "zero" if which == "mean" else which  # the mean colour of the network's data
    return baseline_images(name, inputs, black=black).expand_as(inputs)


def _weighted(w: Tensor, activations: Tensor, weights: WeightKind) -> Tensor:
    return (w if weights == "elementwise" else channels(grid_mean(w), activations)) * activations
