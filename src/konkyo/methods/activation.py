"""Class activation maps from the activations' statistics and principal components, and two controls."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.errors import KonkyoError, NotApplicable
from konkyo.methods.base import method
from konkyo.utils.tensors import agreeing, channels, first_component, oriented

KERNEL_PLACES = 4096
"""The largest grid (64 x 64) of which `kpca_cam` compares every two places."""


@method
def eigen_cam(activations: Tensor, *, centred: bool = False) -> Tensor:
    """Eigen-CAM (Muhammad & Yeasin, 2020) projects the activations on their first principal component.

    map = A V_1, with A as a (pixels, channels) matrix and V_1 its first right singular vector. The same for every
    class. `centred` subtracts each channel's mean first (pytorch-grad-cam does). The sign of a singular vector is
    arbitrary: the map's largest absolute value is made positive.
    """
    return _peak_positive(first_component(activations, centred=centred))


@method
def eigen_grad_cam(activations: Tensor, gradients: Tensor, *, centred: bool = False) -> Tensor:
    """Eigen-Grad-CAM (pytorch-grad-cam) projects gradient times activation on its first principal component.

    The sign is the one that agrees with the sum over channels, so that evidence for the class stays positive:
    `first_component(hires_cam)`, with each channel's mean subtracted first where `centred`.
    """
    evidence = gradients * activations
    return agreeing(first_component(evidence, centred=centred), evidence)


@method
def seg_eigen_cam(activations: Tensor, gradients: Tensor, *, centred: bool = True) -> Tensor:
    """Seg-Eigen-CAM (Chung & Ying, 2025) is Eigen-CAM of the activations times their absolute gradients.

    map = (|G| A) V_1, V_1 the first right singular vector of |G| A as a (pixels, channels) matrix, each channel's mean
    subtracted first unless `centred` is False. The map's largest absolute value is made positive. Made for
    segmentation: the target is then the sum of a class's scores over pixels. Evidence for and against look alike.
    """
    return _peak_positive(first_component(gradients.abs() * activations, centred=centred))


@method
def kpca_cam(
    activations: Tensor, *, kernel: Literal["sigmoid", "rbf", "linear"] = "sigmoid", gamma: float = 0.0
) -> Tensor:
    """KPCA-CAM (Karmani et al., 2024) is Eigen-CAM with a kernel: the first component of a kernel PCA of the pixels.

    map = sqrt(l_1) u_1 of the centred kernel matrix K_pq = tanh(gamma a_p . a_q + 1). a_p are the channels of a pixel,
    each channel's mean subtracted first. "rbf" is exp(-gamma |a_p - a_q|^2), "linear" a_p . a_q (`eigen_cam` centred).
    gamma 0: 1 / channels. The same for every class; the sign as in `eigen_cam`. Large activations saturate the sigmoid.
    Cost: the eigenvectors of a (pixels, pixels) matrix.
    """
    if not 0 <= gamma < math.inf:
        raise KonkyoError(f"kpca_cam needs gamma >= 0 (0: 1 / channels); got {gamma}")
    places = activations.flatten(2).mT  # (N, P, C)
    if places.shape[1] > KERNEL_PLACES:
        raise NotApplicable(f"compares every two of {places.shape[1]} places; take a layer of at most {KERNEL_PLACES}")
    broken = ~places.isfinite().flatten(1).all(1)
    places = (places - places.mean(1, keepdim=True)).masked_fill(broken[:, None, None], 0)
    gram, scale = places @ places.mT, gamma or 1 / places.shape[2]
    if kernel == "sigmoid":
        gram = torch.tanh(scale * gram + 1)
    elif kernel == "rbf":
        gram = torch.exp(-scale * torch.cdist(places, places) ** 2)
    means = gram.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(gram - means - means.mT + means.mean(2, keepdim=True))
    maps = (vectors[..., -1] * values[:, -1:].clamp_min(0).sqrt()).masked_fill(broken[:, None], torch.nan)
    return _peak_positive(maps.reshape(len(maps), *activations.shape[2:]))


@method
def fem(activations: Tensor, *, sigma: float = 2.0) -> Tensor:
    """FEM (Fuad et al., 2020) shows where channels are unusually strong, weighted by their means.

    map = sum_k mean(A_k) [A_k > mean(A_k) + sigma std(A_k)]. Means are over the whole grid. (pytorch-grad-cam adds up
    the whole A_k, weighted by the fraction of its cells above the threshold.) The same for every class. Made for
    activations after a ReLU. On small grids few values lie that far out, and the map has few levels. (Of P places, none
    lies beyond sqrt(P - 1) standard deviations.)
    """
    if not 0 <= sigma < math.inf:
        raise KonkyoError(f"fem needs sigma >= 0; got {sigma}")
    flat = activations.flatten(2)
    mean, deviation = flat.mean(2), flat.std(2, correction=0)
    return (activations > channels(mean + sigma * deviation, activations)) * channels(mean, activations)


@method
def random_cam(activations: Tensor, generator: torch.Generator) -> Tensor:
    """This control weights channels by random numbers in (-1, 1), the same for every image of a call."""
    weights = torch.rand(activations.shape[1], generator=generator, device="cpu") * 2 - 1
    return channels(weights.to(activations)[None], activations) * activations


@method(layer="input")
def edge_map(inputs: Tensor) -> Tensor:
    """This control shows the picture's own edges, without a look at the model.

    map = the length of the Sobel gradient of the mean over the (preprocessed) image's channels, borders repeated. A
    method whose maps look like this one's may be explaining the picture rather than the model.
    """
    grey = inputs.mean(1, keepdim=True)
    padded = functional.pad(grey, (1, 1) * (grey.ndim - 2), mode="replicate")
    squares = torch.zeros_like(grey)
    for direction in range(2, grey.ndim):
        slope = padded
        for axis in range(2, grey.ndim):
            before, middle, after = (slope.narrow(axis, start, grey.shape[axis]) for start in (0, 1, 2))
            slope = after - before if axis == direction else before + 2 * middle + after
        squares += slope**2
    return squares.sqrt()[:, 0]


def _peak_positive(maps: Tensor) -> Tensor:
    """Returns the maps, each with the sign that makes its largest absolute value positive."""
    flat = maps.flatten(1)
    return oriented(maps, flat.gather(1, flat.abs().argmax(1, keepdim=True)))
