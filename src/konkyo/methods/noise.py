"""Gradients averaged over noisy copies of the image.

The noise is Gaussian, its standard deviation `std` times the range (largest minus smallest value) of the preprocessed
image. Every image of a batch gets the same numbers, those of the call's seed. Cost: `samples` forwards and backwards.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import Revisit, Vary
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.utils.tensors import channels, grid_sum, safe_divide


@method(rectified=True)
def smooth_grad_cam_pp(
    inputs: Tensor,
    activations: Tensor,
    generator: torch.Generator,
    revisit: Revisit,
    *,
    samples: int = 25,
    std: float = 0.15,
    numerator: Literal["second", "first"] = "second",
) -> Tensor:
    """Smooth Grad-CAM++ (Omeiza et al., 2019) is Grad-CAM++ with the gradient's powers averaged over noisy images.

    map = ReLU(sum_k w_k A_k), w_k = sum alpha_k ReLU(D1_k), alpha_k = D2_k / (2 D2_k + sum(A_k) D3_k). Dp is the mean
    over noisy images of G^p, A that of the clean image; std = 0 is Grad-CAM++. `numerator` "first" is alpha as the
    paper prints it, with D1 in the place of D2. Where D3 < 0 the denominator can pass through 0 and alpha be huge.
    """
    noisy = noisy_copies("smooth_grad_cam_pp", inputs, generator, samples, std)
    powers = activations.new_zeros(3, *activations.shape)
    for image, _, _, gradients in revisit(samples, inputs=noisy):
        for power in (1, 2, 3):
            powers[power - 1, image] += (gradients**power).sum(0) / samples
    first, second, third = powers
    total = channels(grid_sum(activations), activations)
    alpha = safe_divide(second if numerator == "second" else first, 2 * second + total * third)
    return channels(grid_sum(alpha * first.relu()), activations) * activations


@method(layer="input", holds_input=False)
def smooth_grad(
    inputs: Tensor,
    activations: Tensor,
    generator: torch.Generator,
    revisit: Revisit,
    *,
    samples: int = 50,
    std: float = 0.15,
) -> Tensor:
    """SmoothGrad (Smilkov et al., 2017) averages the gradient over noisy copies of the image, seen as `saliency`.

    map = max_c |mean_n G_c(x + noise_n)|. The paper finds `std` 0.1 to 0.2 and 50 samples enough.
    """
    noisy = noisy_copies("smooth_grad", inputs, generator, samples, std)
    return _mean_power(activations, samples, noisy, revisit, 1).abs().amax(1)


@method(layer="input", holds_input=False)
def square_grad(
    inputs: Tensor,
    activations: Tensor,
    generator: torch.Generator,
    revisit: Revisit,
    *,
    samples: int = 50,
    std: float = 0.15,
) -> Tensor:
    """SmoothGrad squared (Hooker et al., 2019) averages the gradient's square over noisy copies of the image.

    map = max_c mean_n G_c(x + noise_n)^2: VarGrad's variance plus SmoothGrad's square, channel by channel. It has no
    sign. Of the variants of SmoothGrad it and VarGrad are those that beat a random ranking in the authors' ROAR.
    """
    noisy = noisy_copies("square_grad", inputs, generator, samples, std)
    return _mean_power(activations, samples, noisy, revisit, 2).amax(1)


@method(layer="input", holds_input=False)
def var_grad(
    inputs: Tensor,
    gradients: Tensor,
    generator: torch.Generator,
    revisit: Revisit,
    *,
    samples: int = 50,
    std: float = 0.15,
) -> Tensor:
    """VarGrad (Adebayo et al., 2018) shows how much the gradient varies over noisy copies of the image.

    map = max_c var_n G_c(x + noise_n), the variance divided by the number of samples. It knows no sign, and is 0
    wherever the network is linear in the noise.
    """
    noisy = noisy_copies("var_grad", inputs, generator, samples, std, at_least=2)
    shifted, squared = torch.zeros_like(gradients), torch.zeros_like(gradients)
    for image, _, _, noisy_gradients in revisit(samples, inputs=noisy):
        difference = noisy_gradients - gradients[image]  # sums of squares around a value nearby lose no digits
        shifted[image] += difference.sum(0)
        squared[image] += (difference**2).sum(0)
    return (squared / samples - (shifted / samples) ** 2).clamp_min(0).amax(1)


def _mean_power(activations: Tensor, samples: int, noisy: Vary, revisit: Revisit, power: int) -> Tensor:
    """Returns the mean of a power of the gradient over noisy copies of every image (N, C, *grid)."""
    total = torch.zeros_like(activations)
    for image, _, _, gradients in revisit(samples, inputs=noisy):
        total[image] += (gradients**power).sum(0)
    return total / samples


def noisy_copies(
    name: str, inputs: Tensor, generator: torch.Generator, samples: int, std: float, *, at_least: int = 1
) -> Vary:
    """Returns what makes noisy copies of an image (image, indices (v,)) -> (v, C, *size). KonkyoError: bad options."""
    if samples < at_least or not 0 <= std < math.inf:
        raise KonkyoError(f"{name} needs samples >= {at_least} and std >= 0; got {samples}, {std}")
    noise = torch.randn(samples, *inputs.shape[1:], generator=generator, device="cpu")
    spread = std * (inputs.flatten(1).amax(1) - inputs.flatten(1).amin(1))

    def noisy(image: int, k: Tensor) -> Tensor:
        return inputs[image] + spread[image] * noise[k.cpu()].to(inputs)

    return noisy
