"""Small sums that parts share, most over grids; dimension-generic: (N, C, *grid) with one, two or three grid axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.errors import KonkyoError, unknown

FUSES = ("layer_cam", "max", "mean", "sum", "product")
Fuse: TypeAlias = Literal["layer_cam", "max", "mean", "sum", "product"] | Callable[[Sequence[Tensor]], Tensor]
"""How the maps of several layers become one: by name, or a function of the maps (N, h, w) of all layers."""

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def at_least_float32(tensor: Tensor) -> Tensor:
    """Returns the tensor in single precision, or in double if it is: sums over half-precision values need that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """Shapes one value per image or map (N,) so that it multiplies what is like (N, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def grid_mean(values: Tensor) -> Tensor:
    """Averages over the grid. (N, C, *grid) -> (N, C)"""
    return values.flatten(2).mean(2)


def grid_sum(values: Tensor) -> Tensor:
    """Sums over the grid. (N, C, *grid) -> (N, C)"""
    return values.flatten(2).sum(2)


def channels(values: Tensor, like: Tensor) -> Tensor:
    """Shapes one value per channel (N, C) so that it multiplies the grid of `like` (N, C, *grid)."""
    return values.reshape(*values.shape, *[1] * (like.ndim - 2))


def weigh(weights: Tensor, activations: Tensor) -> Tensor:
    """Sums channels with weights (N, C). (N, C, *grid) -> (N, *grid)"""
    return torch.einsum("nc,nc...->n...", weights, activations)


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Returns the quotient, and 0 where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Interpolates linearly between cell centres. (N, *grid) -> (N, *size)"""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    mode = _LINEAR[len(size)]
    return torch.nn.functional.interpolate(maps[:, None], size=size, mode=mode, align_corners=False)[:, 0]


def blurred(
    values: Tensor, sigma: float, *, reach: int | None = None, padding: Literal["reflect", "constant"] = "reflect"
) -> Tensor:
    """Blurs every channel by a Gaussian, mirrored at the borders. (N, C, *grid) -> (N, C, *grid)

    `sigma` is in cells; the Gaussian ends `reach` cells away (None: at 3 sigma), or at the grid's size. `padding`
    "constant" puts zeros beyond the borders.
    """
    wide = math.ceil(3 * sigma) if reach is None else reach
    for axis in range(2, values.ndim):
        far = min(wide, values.shape[axis] - 1)
        steps = torch.arange(-far, far + 1).to(values)
        kernel = torch.exp(-(steps**2) / (2 * sigma**2))
        rows = values.movedim(axis, -1)
        padded = torch.nn.functional.pad(rows.reshape(-1, 1, rows.shape[-1]), (far, far), mode=padding)
        smooth = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])
        values = smooth.view(rows.shape).movedim(-1, axis)
    return values


def on_finest(maps: Sequence[Tensor]) -> Tensor:
    """Puts maps of several grids, [(N, *grid), ...], all on the finest of them: (L, N, *grid)."""
    finest = max((tuple(m.shape[1:]) for m in maps), key=math.prod)
    return torch.stack([resize(m, finest) for m in maps])


def min_max(maps: Tensor) -> Tensor:
    """Scales every map by min and max; a constant map becomes zeros, never NaN. (N, *grid) -> (N, *grid) in [0, 1]"""
    flat = maps.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    return safe_divide(maps - per_item(low, maps), per_item(high - low, maps))


def normalised(maps: Tensor) -> Tensor:
    """Divides each map by its largest absolute value; a map of zeros stays. (N, *grid) -> (N, *grid)"""
    return safe_divide(maps, per_item(maps.flatten(1).abs().amax(1), maps))


def fuse(maps: Sequence[Tensor], how: Fuse = "layer_cam") -> Tensor:
    """Makes several layers' maps [(N, *grid), ...], shallow to deep, one on the finest grid.

    Every map is divided by its largest absolute value, enlarged, and "max", "mean", "sum" or "product" is taken at
    every place. "layer_cam" is the maximum as in LayerCAM (Jiang et al., 2021): before it all but the deepest are
    stretched by tanh(2 M), which lifts the small values of shallow layers. The "product" of signed maps is that of the
    positive parts minus that of the negative parts' magnitudes: negative where all are, 0 where signs differ. A
    function of one's own gets the list of maps as they are and gives one (N, *grid); KonkyoError where it does not.
    """
    if callable(how):
        return _checked_fusion(how(maps), maps[0])
    if how not in FUSES:
        raise unknown("way to fuse layers", how, FUSES)
    scaled = [normalised(m) for m in maps]
    if how == "layer_cam":
        scaled = [torch.tanh(2 * m) for m in scaled[:-1]] + scaled[-1:]
    stack = on_finest(scaled)
    if how in ("mean", "sum"):
        return stack.mean(0) if how == "mean" else stack.sum(0)
    return stack.relu().prod(0) - (-stack).relu().prod(0) if how == "product" else stack.amax(0)


def _checked_fusion(fused: object, like: Tensor) -> Tensor:
    """Returns what a function of the caller's made of the maps, if it is as many maps with as many axes."""
    if isinstance(fused, Tensor) and fused.ndim == like.ndim and len(fused) == len(like) and fused.numel():
        return fused
    came = tuple(fused.shape) if isinstance(fused, Tensor) else type(fused).__name__
    raise KonkyoError(
        f"a function that fuses layers gives one map per image, a tensor of shape ({len(like)}, *grid) whose grid has "
        f"{like.ndim - 1} axes; got {came}"
    )


def first_component(values: Tensor, *, centred: bool = False) -> Tensor:
    """Projects every pixel's channels on the first right singular vector. (N, C, *grid) -> (N, *grid)

    Through the eigenvectors of the smaller of the two Gram matrices: of pixels (P, P) or of channels (C, C). The sign
    is arbitrary. `centred` subtracts each channel's mean first: the first principal component.
    """
    matrix = values.flatten(2).mT  # (N, P, C)
    if centred:
        matrix = matrix - matrix.mean(1, keepdim=True)
    broken = ~matrix.isfinite().flatten(1).all(1)  # one image's NaN must not stop the others
    matrix = matrix.masked_fill(broken[:, None, None], 0)
    scale = matrix.abs().amax((1, 2), keepdim=True)  # squares of very large or small values leave the numbers' range
    matrix = safe_divide(matrix, scale)
    pixels, channels = matrix.shape[1:]
    projection: Tensor
    if pixels <= channels:
        eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.mT)
        projection = vectors[..., -1] * eigenvalues[:, -1:].clamp_min(0).sqrt()  # U_1 s_1 = A V_1
    else:
        _, vectors = torch.linalg.eigh(matrix.mT @ matrix)
        projection = torch.einsum("npc,nc->np", matrix, vectors[..., -1])
    projection = (projection * scale[:, :, 0]).masked_fill(broken[:, None], torch.nan)
    return projection.reshape(len(values), *values.shape[2:])


def oriented(maps: Tensor, positive: Tensor) -> Tensor:
    """Returns the maps, each with the sign that makes `positive` (N, 1) positive."""
    return maps * per_item(torch.where(positive < 0, -1.0, 1.0).to(maps), maps)


def agreeing(maps: Tensor, evidence: Tensor) -> Tensor:
    """Returns the maps (N, *grid), each with the sign that agrees with the channel sum of `evidence` (N, C, *grid)."""
    return oriented(maps, (maps * evidence.sum(1)).flatten(1).sum(1, keepdim=True))


def overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """Computes the IoU of boxes (..., 4) with one box (4,) or as many; 0 for boxes without area. -> (...)"""
    low, high = torch.maximum(boxes[..., :2], box[..., :2]), torch.minimum(boxes[..., 2:], box[..., 2:])
    common: Tensor = (high - low).clamp_min(0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).clamp_min(0).prod(-1) for b in (boxes, box)]
    total = areas[0] + areas[1] - common
    return safe_divide(common, total)


def mean_colour(images: Tensor) -> Tensor:
    """Returns images (N, C, *size) in which every pixel has the mean colour of its image."""
    return channels(grid_mean(images), images).expand_as(images).contiguous()


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean over the images of (weight of the label) * cross-entropy, of logits (N, K) and classes (N,).

    `weights` (K,) are of the classes. The sum is divided by the number of images and not, as PyTorch's,
    by the batch's sum of weights: so an image weighs the same in every batch, on every device, and in accumulated ones.
    """
    if weights is None:
        return functional.cross_entropy(logits, labels)
    return (functional.cross_entropy(logits, labels, reduction="none") * weights.to(logits)[labels]).mean()
