"""Class activation maps from principal components, and a random control."""

import torch
from torch import Tensor

from konkyo.method import method
from konkyo.tensors import weigh


@method
def eigen_cam(activations: Tensor, *, centred: bool = False) -> Tensor:
    """Eigen-CAM (Muhammad & Yeasin, 2020): the activations' projection on their first principal component.

    map = A V_1, with A as a (pixels, channels) matrix and V_1 its first right singular vector. The same for every
    class. `centred` subtracts each channel's mean first (pytorch-grad-cam does). The sign of a singular vector is
    arbitrary: the map's largest absolute value is made positive.
    """
    maps = _first_component(activations, centred)
    flat = maps.flatten(1)
    return _oriented(maps, flat.gather(1, flat.abs().argmax(1, keepdim=True)))


@method
def eigen_grad_cam(activations: Tensor, gradients: Tensor, *, centred: bool = False) -> Tensor:
    """Eigen-CAM of gradient times activation (pytorch-grad-cam): its projection on the first principal component.

    The sign is the one that agrees with the sum over channels, so that evidence for the class stays positive.
    """
    evidence = gradients * activations
    maps = _first_component(evidence, centred)
    return _oriented(maps, (maps * evidence.sum(1)).flatten(1).sum(1, keepdim=True))


@method
def random_cam(activations: Tensor, generator: torch.Generator) -> Tensor:
    """A control: channels weighted by random numbers in (-1, 1), the same for every image."""
    weights = torch.rand(activations.shape[1], generator=generator, device="cpu") * 2 - 1
    return weigh(weights.to(activations).expand(len(activations), -1), activations)


def _first_component(values: Tensor, centred: bool) -> Tensor:
    """The projection of every pixel's channels on the first right singular vector. (N, C, *grid) -> (N, *grid)

    Through the eigenvectors of the smaller of the two Gram matrices: of pixels (P, P) or of channels (C, C).
    """
    matrix = values.flatten(2).mT  # (N, P, C)
    if centred:
        matrix = matrix - matrix.mean(1, keepdim=True)
    broken = ~matrix.isfinite().flatten(1).all(1)  # one image's NaN must not stop the others
    matrix = matrix.masked_fill(broken[:, None, None], 0)
    pixels, channels = matrix.shape[1:]
    projection: Tensor
    if pixels <= channels:
        eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.mT)
        projection = vectors[..., -1] * eigenvalues[:, -1:].clamp_min(0).sqrt()  # U_1 s_1 = A V_1
    else:
        _, vectors = torch.linalg.eigh(matrix.mT @ matrix)
        projection = torch.einsum("npc,nc->np", matrix, vectors[..., -1])
    return projection.masked_fill(broken[:, None], torch.nan).reshape(len(values), *values.shape[2:])


def _oriented(maps: Tensor, positive: Tensor) -> Tensor:
    """The maps, each with the sign that makes `positive` (N, 1) positive."""
    return maps * torch.where(positive < 0, -1.0, 1.0).to(maps).view(-1, *[1] * (maps.ndim - 1))
