"""Maps whose masks are mixed of many channels: of groups, or of all of them with weights that are searched for."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import Differentiate, On, Rescore
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.methods.score_cam import contrast
from konkyo.targets.base import Target, as_target
from konkyo.utils.tensors import blurred, channels, grid_mean, min_max, per_item, resize, weigh


@method(score="probability")
def group_cam(
    inputs: Tensor,
    activations: Tensor,
    targets: Sequence[Target],
    differentiate: Differentiate,
    rescore: Rescore,
    *,
    groups: int = 32,
    variant: Literal["paper", "released"] = "paper",
) -> Tensor:
    """Group-CAM (Zhang et al., 2021) weights groups of channels by what they bring back into a blurred image.

    map = sum_l ReLU(p(x * m_l + b * (1 - m_l)) - p(b)) M_l. M_l = ReLU(sum of mean(G_k) A_k over the channels k of
    group l), m_l = min_max(up(M_l)). b is x under a Gaussian of 51 x 51 pixels and deviation 50. Groups are
    neighbouring channels. G is the class's logit's gradient, p its probability. `variant` "paper" sets to 0 what in M_l
    is not above its 70th percentile, "released" leaves it, as the authors' last code does. A group whose M_l is
    constant has no mask and no weight. Cost: groups + 1 forwards; under a budget the strongest groups come first.
    """
    if groups < 1:
        raise KonkyoError(f"group_cam needs groups >= 1; got {groups}")
    weights = grid_mean(differentiate(lambda output, score: _logits(output, score, targets)))
    grouped = (channels(weights, activations) * activations).chunk(groups, 1)
    maps = torch.stack([group.sum(1) for group in grouped], 1).relu()
    if variant == "paper":
        ordered = maps.flatten(2).sort(2).values
        maps = torch.where(maps > channels(ordered[..., int(0.7 * (ordered.shape[2] - 1))], maps), maps, 0.0)
    size, veiled = tuple(inputs.shape[2:]), blurred(inputs, 50.0, reach=25)

    def mixed(image: int, k: Tensor) -> Tensor:
        masks = min_max(resize(maps[image, k - 1], size))  # k = 0 is the blurred image itself
        masks = torch.where(channels(k == 0, inputs), 0.0, masks)[:, None]
        return masks * inputs[image] + (1 - masks) * veiled[image]

    strength = contrast(maps)
    priority = torch.cat([torch.full_like(strength[:, :1], torch.inf), strength], 1)
    scores = rescore(priority.shape[1], inputs=mixed, priority=priority)
    return weigh(torch.where(scores == -torch.inf, 0.0, scores - scores[:, :1])[:, 1:].relu(), maps)


@method
def opti_cam(
    inputs: Tensor,
    activations: Tensor,
    score: Tensor,
    on: On,
    *,
    steps: int = 100,
    rate: float = 0.1,
    objective: Literal["maximise", "keep"] = "maximise",
) -> Tensor:
    """Opti-CAM (Zhang et al., 2023) gives channels the weights under which the masked image scores highest.

    map = sum_k w_k ReLU(A_k), w = softmax(u), u from `steps` steps of Adam at the learning rate `rate`, from u = 0,
    that raise score(x * min_max(up(map))). `objective` "keep" brings that score to the image's own instead.
    All images of the batch at once, each as if alone. Cost: a forward and a whole backward per step. The weights are
    positive and no step looks at what is against the class; a mask may win by what its edges look like.
    """
    if steps < 1 or not 0 < rate < math.inf:
        raise KonkyoError(f"opti_cam needs steps >= 1 and rate > 0; got {steps}, {rate}")
    features, size = activations.relu(), tuple(inputs.shape[2:])
    u = torch.zeros_like(features.flatten(2)[..., 0])
    mean, square = torch.zeros_like(u), torch.zeros_like(u)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            masked = min_max(resize(weigh(leaf.softmax(1), features), size))[:, None] * inputs
        scored = on(masked.detach().to(inputs), "input")
        sign = torch.ones_like(score) if objective == "maximise" else (score - scored.score).sign()
        uphill = scored.gradients * per_item(sign, inputs)
        (slope,) = torch.autograd.grad(masked, leaf, uphill.to(masked))
        mean, square = torch.lerp(slope, mean, 0.9), torch.lerp(slope**2, square, 0.999)
        u = u + rate * mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return channels(u.softmax(1), features) * features


def _logits(output: Tensor, score: Tensor, targets: Sequence[Target]) -> Tensor:
    """Returns the logit of every row's class, or what a target makes of such; of others the score (N,)."""
    logits = [as_target(target).logit(output[i : i + 1]) for i, target in enumerate(targets)]
    return torch.cat([score[i : i + 1] if logit is None else logit for i, logit in enumerate(logits)])
