"""Maps from how the score changes when the input or a channel is changed."""

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.method import method
from konkyo.probe import Rescore
from konkyo.tensors import resize, safe_divide, unit, weigh


@method(rectified=True)
def score_cam(inputs: Tensor, activations: Tensor, rescore: Rescore) -> Tensor:
    """Score-CAM (Wang et al., 2020, Alg. 1): channels weighted by the score of the image seen through them.

    map = ReLU(sum_k w_k A_k), w = softmax_k(score(x * unit(up(A_k))) - score(baseline)); the baseline's score is the
    same for every channel and cancels in the softmax. A constant channel has no mask: its weight is 0, and it costs
    no forward. One forward per channel; masks are made on the device, a chunk at a time.
    """
    size, flat = tuple(inputs.shape[2:]), activations.flatten(2)

    def masked(image: int, channels: Tensor) -> Tensor:
        return unit(resize(activations[image, channels], size))[:, None] * inputs[image]

    alive = flat.amin(2) != flat.amax(2)
    scores = rescore(activations.shape[1], inputs=masked, where=alive)
    return weigh(torch.where(alive.any(1, keepdim=True), scores.softmax(1), 0.0), activations)


@method(rectified=True)
def ablation_cam(activations: Tensor, score: Tensor, ablated_score: Tensor) -> Tensor:
    """Ablation-CAM (Ramaswamy, 2020): channels weighted by the drop in score when they are set to zero.

    map = ReLU(sum_k w_k A_k), w_k = (y - y_k) / |y|. The paper divides by y, which it takes to be positive; dividing
    a negative score by itself would swap evidence for and against.
    """
    return weigh(safe_divide(score[:, None] - ablated_score, score.abs()[:, None]), activations)


@method(layer="input", score="probability")
def rise(
    inputs: Tensor,
    rescore: Rescore,
    generator: torch.Generator,
    *,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
) -> Tensor:
    """RISE (Petsiuk et al., 2018, Eq. 6): the mean of random masks, weighted by the score of the masked image.

    map = 1 / (masks * keep) sum_i score(x * M_i) M_i. A mask is a coarse grid of `cells` per side, each kept with
    probability `keep`, enlarged bilinearly to one cell more than the image and cropped at random. All images see the
    same masks.
    """
    if masks < 1 or cells < 1 or not 0 < keep <= 1:
        raise KonkyoError(f"rise needs masks >= 1, cells >= 1 and 0 < keep <= 1; got {masks}, {cells}, {keep}")
    size = inputs.shape[2:]
    stride = [-(-s // cells) for s in size]
    drawn = torch.rand(masks, *[cells] * len(size), generator=generator, device="cpu") < keep
    coarse = drawn.to(inputs.device, torch.promote_types(inputs.dtype, torch.float32))
    moves = [torch.randint(s, (masks,), generator=generator, device="cpu").to(inputs.device) for s in stride]

    def mask(indices: Tensor) -> Tensor:
        large = resize(coarse[indices], tuple((cells + 1) * s for s in stride))
        for axis, (extent, move) in enumerate(zip(size, moves, strict=True), start=1):
            window = move[indices, None] + torch.arange(extent, device=large.device)
            window = window.view(-1, *[1] * (axis - 1), extent, *[1] * (len(size) - axis))
            shape = [*large.shape[:axis], extent, *large.shape[axis + 1 :]]
            large = large.gather(axis, window.expand(shape))
        return large

    scores = rescore(masks, inputs=lambda image, k: mask(k)[:, None] * inputs[image])
    total = coarse.new_zeros(len(inputs), *size)
    for k in torch.split(torch.arange(masks, device=inputs.device), 64):
        total += torch.tensordot(scores[:, k].to(total), mask(k), 1)
    return total / (masks * keep)
