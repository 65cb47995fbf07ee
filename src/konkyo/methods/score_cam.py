"""Maps that are sums of channels, weighted by how the score changes with the channel: as a mask, or taken out."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import Ablate, Rescore
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.utils.tensors import channels, min_max, resize, safe_divide


@method(rectified=True)
def score_cam(inputs: Tensor, activations: Tensor, rescore: Rescore, *, prune: float = 0.0) -> Tensor:
    """Score-CAM (Wang et al., 2020, Alg. 1) weights channels by the score of the image seen through them.

    map = ReLU(sum_k w_k A_k), w = softmax_k(score(x * min_max(up(A_k))) - score(baseline)); the baseline's score is the
    same for every channel and cancels in the softmax. A constant channel has no mask: its weight is 0, and it costs
    no forward. One forward per channel; masks are made on the device, a chunk at a time. All weights are positive: of
    signed activations (a layer norm's) the sum may be negative everywhere.

    `prune` leaves out channels whose largest absolute activation is below `prune` times the layer's largest. W is the
    softmax mass of the channels that stay, tau the largest |activation| of those left out. Then at every pixel |full -
    W pruned| <= (1 - W) tau <= tau. Up to the factor W, common to all pixels, none moves by more than tau.
    """
    size = tuple(inputs.shape[2:])

    def masked(image: int, k: Tensor) -> Tensor:
        return min_max(resize(activations[image, k], size))[:, None] * inputs[image]

    scores = rescore(activations.shape[1], inputs=masked, priority=_pruned(contrast(activations), prune))
    return channels(_channel_weights(scores, 1), activations) * activations


@method(rectified=True)
def ss_cam(
    inputs: Tensor,
    activations: Tensor,
    generator: torch.Generator,
    rescore: Rescore,
    *,
    noise: Literal["mask", "input"] = "mask",
    samples: int = 35,
    std: float = 2.0,
) -> Tensor:
    """SS-CAM (Wang et al., 2020) is Score-CAM with the score of every channel averaged over noise.

    map = ReLU(sum_k w_k A_k), w = softmax_k(mean_n score(x * (M_k + noise_n))), M_k = min_max(up(A_k)).
    `noise` "input": score(x * M_k + noise_n). Gaussian noise of deviation `std`, in units of the mask (0 to 1) or of
    the preprocessed image. All channels and images meet the same `samples` of it, so that channels differ by what they
    show alone. std = 0 is Score-CAM. Cost: samples * channels forwards. Under a budget the strongest channels come
    first.
    """
    if samples < 1 or not 0 <= std < math.inf:
        raise KonkyoError(f"ss_cam needs samples >= 1 and std >= 0; got {samples}, {std}")
    size = tuple(inputs.shape[2:])
    planes = 1 if noise == "mask" else inputs.shape[1]
    fields = std * torch.randn(samples, planes, *size, generator=generator, device="cpu").to(inputs)

    def noisy(image: int, k: Tensor) -> Tensor:
        masks, field = min_max(resize(activations[image, k // samples], size))[:, None], fields[k % samples]
        return (masks + field) * inputs[image] if noise == "mask" else masks * inputs[image] + field

    priority = contrast(activations).repeat_interleave(samples, 1)
    scores = rescore(priority.shape[1], inputs=noisy, priority=priority)
    return channels(_channel_weights(scores, samples), activations) * activations


@method(rectified=True)
def is_cam(
    inputs: Tensor,
    activations: Tensor,
    rescore: Rescore,
    *,
    steps: int = 10,
    scale: Literal["cumulative", "linear"] = "cumulative",
) -> Tensor:
    """IS-CAM (Naidu et al., 2020) is Score-CAM with the score of every channel averaged while its mask grows.

    map = ReLU(sum_k w_k A_k), w = softmax_k(mean_i score(s_i x * min_max(up(A_k)))), i = 1 ... steps. The paper adds up
    the steps, s_i = sum_{j <= i} j / steps. So the masked image ends (steps + 1) / 2 times as bright as it is. `scale`
    "linear" is the integral up to the masked image itself, s_i = i / steps. steps = 1 is Score-CAM. Cost: steps *
    channels forwards; under a budget the strongest channels come first.
    """
    if steps < 1:
        raise KonkyoError(f"is_cam needs steps >= 1; got {steps}")
    size = tuple(inputs.shape[2:])
    factors = torch.arange(1, steps + 1).to(inputs) / steps
    factors = factors.cumsum(0) if scale == "cumulative" else factors

    def grown(image: int, k: Tensor) -> Tensor:
        masks = channels(factors[k % steps], inputs) * min_max(resize(activations[image, k // steps], size))
        return masks[:, None] * inputs[image]

    priority = contrast(activations).repeat_interleave(steps, 1)
    scores = rescore(priority.shape[1], inputs=grown, priority=priority)
    return channels(_channel_weights(scores, steps), activations) * activations


@method(rectified=True)
def ablation_cam(activations: Tensor, score: Tensor, ablate: Ablate, *, prune: float = 0.0) -> Tensor:
    """Ablation-CAM (Ramaswamy, 2020) weights channels by the drop in score when they are set to zero.

    map = ReLU(sum_k w_k A_k), w_k = (y - y_k) / |y|. The paper divides by y, which it takes to be positive; dividing
    a negative score by itself would swap evidence for and against. Cost: a forward of what follows the layer per
    channel; none at all where that is the mean over the grid and one linear layer.

    `prune` leaves out channels whose largest absolute activation is below `prune` times the layer's largest. With tau
    the largest |activation| of those left out, |full - pruned| <= tau sum |w_k| over them at every pixel. What that sum
    is cannot be known without running them.
    """
    strength = activations.flatten(2).abs().amax(2)
    drop = score[:, None] - ablate(_pruned(strength, prune))
    return channels(safe_divide(drop, score.abs()[:, None]), activations) * activations


def lnorm_product(maps: Sequence[Tensor]) -> Tensor:
    """Multiplies the maps of Poly-CAM from the deepest to the shallowest: each over its own coarse version."""
    fused = maps[-1]
    for one in reversed(maps[:-1]):
        size = tuple(one.shape[1:])
        coarse = resize(resize(one, tuple(fused.shape[1:])), size)
        fused = safe_divide(one, coarse) * resize(fused, size)
    return fused


@method(rectified=True, layer="stages", score="probability", fuse=lnorm_product)
def poly_cam(inputs: Tensor, activations: Tensor, rescore: Rescore, *, variant: Literal["±", "+", "-"] = "±") -> Tensor:
    """Poly-CAM (Englebert et al., 2022) fuses maps of all grid sizes, each sharpening the one below it.

    map_l = LNorm(L_l) * up(map_{l+1}), from the deepest layer up, where the map is L. L_l = ReLU(sum_k w_k A_k),
    LNorm(L) = L / up(down(L)) with down to the grid of layer l + 1. With M_k = up(min_max(A_k)), `variant` "+" takes
    w_k = p(x * M_k), "-" ReLU(p(x) - p(x * (1 - M_k))), "±" ReLU of the sum of both. `min_max` divides by the largest
    value minus the smallest. The released code takes the 0.1 and 99.9 percentiles for these, and divides by the upper
    one alone. Where a layer's coarse version is 0, LNorm is 0. Made for activations after a ReLU. Cost: one forward per
    channel of every layer, for "±" two: thousands; a budget goes to the channels with the largest activations.
    """
    size, count = tuple(inputs.shape[2:]), activations.shape[1]

    def masked(image: int, k: Tensor) -> Tensor:
        masks = resize(min_max(activations[image, k // 2 % count]), size)  # k: seen, hidden, ..., the image itself
        masks = torch.where(channels(k % 2 == 1, inputs), 1 - masks, masks)
        return torch.where(channels(k == 2 * count, inputs), 1.0, masks)[:, None] * inputs[image]

    strength = contrast(activations)
    pairs = torch.stack([strength * (variant != "-"), strength * (variant != "+")], 2).flatten(1)
    whole = torch.full_like(pairs[:, :1], 0 if variant == "+" else torch.inf)
    scores = rescore(2 * count + 1, inputs=masked, priority=torch.cat([pairs, whole], 1))
    gain = scores[:, :-1:2] if variant != "-" else torch.zeros_like(strength)
    if variant != "+":
        gain = (gain + scores[:, -1:] - scores[:, 1::2]).relu()
    return channels(torch.where(gain.isfinite(), gain, 0.0), activations) * activations


def contrast(activations: Tensor) -> Tensor:
    """Returns the largest absolute value of every channel, and 0 for a constant one: there is no mask in it.

    -> (N, C)
    """
    flat = activations.flatten(2)
    return torch.where(flat.amin(2) == flat.amax(2), 0.0, flat.abs().amax(2))


def _pruned(strength: Tensor, prune: float) -> Tensor:
    """Returns the strengths (N, C), and 0 for those below `prune` times the largest."""
    if not 0 <= prune <= 1:
        raise KonkyoError(f"prune is a part of the largest activation, 0 to 1; got {prune}")
    return torch.where(strength < prune * strength.amax(1, keepdim=True), 0.0, strength)


def _channel_weights(scores: Tensor, repeats: int) -> Tensor:
    """Returns the softmax over channels of their mean scores.

    (N, C * repeats) -> (N, C). A channel has `repeats` scores, of which those count that ran.
    """
    scores = scores.view(len(scores), -1, repeats)
    ran = scores != -torch.inf
    means = scores.masked_fill(~ran, 0).sum(2) / ran.sum(2)
    means = torch.where(ran.any(2), means, -torch.inf)
    return torch.where(ran.any(2).any(1, keepdim=True), means.softmax(1), 0.0)
