"""Saliency-guided training: what has little gradient shall not matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.capture import untouched
from konkyo.errors import KonkyoError
from konkyo.targets.classes import class_logits
from konkyo.utils.tensors import at_least_float32


def saliency_guided(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    generator: torch.Generator,
    *,
    share: float = 0.5,
) -> Tensor:
    """Returns how far the output moves when pixels of little gradient are redrawn (Ismail et al., NeurIPS 2021). -> ()

    D_KL(f(x) || f(x')), the mean over images (Algorithm 1, with the caller's factor for lambda), of the caller's
    `logits` (N, K) and those of another forward of the network as it is, on x' = `redrawn(x, gradient)`. Gradients go
    through both. The gradient that ranks pixels is that of the label's logit by the image, in eval mode, as in the
    authors' code. That code ranks it with its sign unless told otherwise; here its size counts, for the paper speaks of
    small gradients.

    `images` (N, C, H, W), `labels` (N,) int64. Batch norm meets x' too. Cost: a forward and a backward to the images in
    eval mode, and another forward and backward of the step. KonkyoError: as of `redrawn`, or an output that is no (N,
    K).
    """
    with torch.enable_grad(), untouched(network):
        leaf = images.detach().clone().requires_grad_()
        output = network(leaf)
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape != logits.shape:
            raise KonkyoError(f"a network that puts out logits {tuple(logits.shape)} was expected")
        score = class_logits(output).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    moved = network(redrawn(images.detach(), gradient, generator, share=share))
    with torch.autocast(images.device.type, enabled=False):
        usual, other = (class_logits(at_least_float32(z)).log_softmax(1) for z in (logits, moved))
        return functional.kl_div(other, usual, reduction="batchmean", log_target=True)


def redrawn(images: Tensor, gradient: Tensor, generator: torch.Generator, *, share: float = 0.5) -> Tensor:
    """Returns the images with the share of pixels that have the smallest gradient drawn anew. -> (N, C, H, W)

    A pixel's gradient is the mean size over its channels, and floor(share H W) pixels of every image are redrawn, in
    every channel: uniformly between the image's smallest and largest value of that channel. `gradient` has the images'
    shape. KonkyoError: other shapes, a share outside of [0, 1].
    """
    if images.ndim != 4 or gradient.shape != images.shape or not 0 <= share <= 1:
        raise KonkyoError(
            f"images (N, C, H, W), a gradient of their shape and a share in [0, 1] were expected; got "
            f"{tuple(images.shape)}, {tuple(gradient.shape)} and {share}"
        )
    size = at_least_float32(gradient).abs().mean(1).flatten(1)
    lowest = size.topk(int(share * size.shape[1]), dim=1, largest=False).indices
    chosen = torch.zeros_like(size, dtype=torch.bool).scatter_(1, lowest, True).view(len(images), 1, *images.shape[2:])
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    noise = torch.rand(images.shape, generator=generator, device=generator.device).to(images)
    return torch.where(chosen, low + (high - low) * noise, images)
