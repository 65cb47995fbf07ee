"""These functions tell how alike the maps of one class are: distances of maps, class means, shares of variance.

These are sums over a whole set of maps, not a value per map, so none is a registered metric; `konkyo.consistency`
puts them together. All but "top_iou" can be differentiated, for training.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.metrics.variants import absent
from konkyo.utils.tensors import at_least_float32, safe_divide

Distance: TypeAlias = Literal["mse", "l2_over_hw", "pearson", "cosine", "js", "centre", "top_iou"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)

TOP = 0.2
"""The share of a map's cells that "top_iou" compares."""

_LOG_FLOOR = 1e-12  # a logarithm's argument: p log p is 0 at 0, but its gradient is infinite


def on_grid(maps: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """Resamples maps to another grid, of so many cells a side; it does not normalise them. (N, h, w) -> (N, *grid)

    Along an axis where the grid is coarser every cell is the mean over the area that it covers, whatever the ratio.
    Where it is finer, values are interpolated linearly between cell centres. Differentiable; in 32 bits at least.
    KonkyoError: maps of another shape, a grid below 2.
    """
    size = (grid, grid) if isinstance(grid, int) else grid
    if min(size) < 2:
        raise KonkyoError(f"a map's grid has at least 2 cells a side; got {grid}")
    _require_maps(maps)
    maps = at_least_float32(maps)
    if maps.shape[1:] == size:
        return maps
    with torch.autocast(maps.device.type, enabled=False):  # products would be in 16 bits
        down, across = (_axis(extent, cells, maps) for extent, cells in zip(maps.shape[1:], size, strict=True))
        resized: Tensor = down @ maps @ across.mT
    return resized


def blank(maps: Tensor) -> Tensor:
    """Tells where a map shows nothing: one value everywhere (to rounding), or a value that is no number. -> (N,) bool

    Min-max would make zeros of it, which lie on the mean of other zeros: a blank map must not count as consistent.
    """
    flat = maps.detach().flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    return absent(maps.detach()) | (high - low <= 64 * torch.finfo(maps.dtype).eps * torch.maximum(high, -low))


def distances(maps: Tensor, others: Tensor, kind: Distance = "mse") -> Tensor:
    """Measures how far each map is from another, 0 where they are one. (N, h, w), (N or 1, h, w) or (h, w) -> (N,)

    Both are normalised maps (`konkyo.utils.tensors.min_max`) or means of such; with P cells:

    - "mse": the mean squared difference (Eq. 9 of the study of gaze consistency).
    - "l2_over_hw": the root of the sum of squares, divided by P: what that study's code computes. It falls with the
      square root of P for one and the same map.
    - "pearson": 1 - correlation over cells; "cosine": 1 - cosine. 1 where a map is constant, or of zeros.
    - "js": Jensen-Shannon divergence in bits of the maps divided by their sums; a map of zeros counts as uniform.
    - "centre": between the centres of mass, as a share of the diagonal, both axes running from 0 to 1.
    - "top_iou": 1 - IoU of the cells that are the highest 20 % of their map and above 0. No gradient.

    KonkyoError: an unknown distance, maps of shapes that do not match.
    """
    if kind not in DISTANCES:
        raise unknown("distance", kind, DISTANCES)
    _require_maps(maps)
    if others.shape[-2:] != maps.shape[1:] or others.shape[:-2] not in ((), (1,), (len(maps),)):
        raise KonkyoError(f"other maps of shape {tuple(maps.shape)} were expected; got {tuple(others.shape)}")
    shape = maps.shape[1:]
    one, other = maps.flatten(1), others.expand(maps.shape).flatten(1)
    lengths: Tensor
    if kind == "mse":
        return (one - other).square().mean(1)
    if kind == "l2_over_hw":
        lengths = torch.linalg.vector_norm(one - other, dim=1) / one.shape[1]
        return lengths
    if kind == "top_iou":
        first, second = _top(one), _top(other)
        return 1 - safe_divide((first & second).sum(1).to(one.dtype), (first | second).sum(1).to(one.dtype))
    if kind == "pearson":
        one, other = (values - values.mean(1, keepdim=True) for values in (one, other))
    if kind in ("pearson", "cosine"):
        lengths = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(other, dim=1)
        return 1 - safe_divide((one * other).sum(1), lengths)
    one, other = _sum_to_one(one), _sum_to_one(other)
    if kind == "js":
        return (_entropy((one + other) / 2) - (_entropy(one) + _entropy(other)) / 2).clamp_min(0)
    lengths = torch.linalg.vector_norm(_centres(one, shape) - _centres(other, shape), dim=1) / math.sqrt(2)
    return lengths


def class_means(maps: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns every class's mean map and standard deviation, (K, h, w) each, and how many maps it has (K,).

    The deviation is from the class's own maps, divided by their number: the mean of its square over the cells is the
    class's mean "mse". Zeros for a class without maps. `labels`: (N,) int64 below `classes`.
    """
    _require_labels(maps, labels)
    on_host = labels.device.type == "cpu"  # to ask a device would make every step of a training wait
    if on_host and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise KonkyoError(
            f"labels from 0 to {classes - 1} were expected; got {int(labels.min())} to {int(labels.max())}"
        )
    counts = labels.new_zeros(classes).index_add(0, labels, torch.ones_like(labels))
    empty = maps.new_zeros(classes, *maps.shape[1:])
    share = 1 / counts.clamp_min(1).to(maps.dtype)[:, None, None]
    mean = empty.index_add(0, labels, maps) * share
    squares = empty.index_add(0, labels, (maps - mean[labels]).square()) * share
    return mean, squares.sqrt(), counts


def within_total(maps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the variance of maps within classes, W, and of all of them, T, each the mean over cells. -> two scalars

    W = the sum over classes of squared deviations from the class's mean, divided by n - K' (K' classes that have maps).
    T = that from the mean of all, divided by n - 1. So labels that mean nothing have E[W] = T: W / T is 0 where the
    maps of a class are identical and about 1 where classes do not differ. 1 - W / T is the share that classes explain.
    NaN where no class has two maps.
    """
    _require_labels(maps, labels)
    flat = maps.flatten(1)
    flat = flat - flat.mean(0)
    kinds, labels = torch.unique(labels, return_inverse=True)
    total = flat.square().mean(1).sum()
    return _within_variance(flat, total, labels, len(kinds)), total / (len(flat) - 1)


def shuffled_within(maps: Tensor, labels: Tensor, permutations: int, generator: torch.Generator) -> Tensor:
    """Computes W of `within_total` with the labels dealt out anew, again and again. -> (permutations,)"""
    _require_labels(maps, labels)
    flat = maps.flatten(1)
    flat = flat - flat.mean(0)
    kinds, labels = torch.unique(labels, return_inverse=True)
    total = flat.square().mean(1).sum()
    orders = (torch.randperm(len(labels), generator=generator).to(labels.device) for _ in range(permutations))
    variances = [_within_variance(flat, total, labels[order], len(kinds)) for order in orders]
    return torch.stack(variances) if variances else flat.new_zeros(0)


def kappa(confusion: Tensor) -> Tensor:
    """Computes Cohen's kappa of counts (K, K), rows the truth:

    (p_o - p_e) / (1 - p_e), 0 where p_e is 1. -> scalar, 64 bits

    It is 1 where all are as labelled, and 0 where chance with these frequencies would do as well. It is 0 of no counts.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise KonkyoError(f"counts of shape (K, K) were expected; got {tuple(confusion.shape)}")
    shares = safe_divide(confusion.double(), confusion.double().sum())
    agreed, chance = shares.diagonal().sum(), (shares.sum(0) * shares.sum(1)).sum()
    return torch.where(1 - chance <= 1e-12, 0.0, (agreed - chance) / (1 - chance).clamp_min(1e-12))


def _within_variance(centred: Tensor, total: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Computes W of maps (n, P) whose mean is 0: squares around class means are all squares less those of the means."""
    counts = torch.bincount(labels, minlength=classes).to(centred.dtype)
    sums = centred.new_zeros(classes, centred.shape[1]).index_add(0, labels, centred)
    between = (sums.square().mean(1) / counts).sum()
    spare = len(centred) - classes
    return (total - between).clamp_min(0) / spare if spare > 0 else centred.new_full((), math.nan)


def _axis(size: int, grid: int, like: Tensor) -> Tensor:
    """Returns the share of each of `size` places in each of `grid` cells, rows of sum 1. -> (grid, size)"""
    places = torch.arange(size, device=like.device, dtype=like.dtype)
    cells = torch.arange(grid, device=like.device, dtype=like.dtype)[:, None]
    if grid > size:  # linear between centres, the ends held
        centre = ((cells + 0.5) * size / grid - 0.5).clamp(0, size - 1)
        return (1 - (centre - places).abs()).clamp_min(0)
    low, high = cells * size / grid, (cells + 1) * size / grid
    return (torch.minimum(high, places + 1) - torch.maximum(low, places)).clamp_min(0) * grid / size


def _sum_to_one(flat: Tensor) -> Tensor:
    """Divides rows by their sums; a row of zeros becomes uniform."""
    total = flat.sum(1, keepdim=True)
    return torch.where(total == 0, 1 / flat.shape[1], safe_divide(flat, total))


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp_min(_LOG_FLOOR).log2()).sum(1)


def _centres(shares: Tensor, shape: torch.Size) -> Tensor:
    """Returns the centres of mass, y and x from 0 to 1. (N, P) -> (N, 2)"""
    weights = shares.view(-1, *shape)
    steps = [(torch.arange(n, device=shares.device, dtype=shares.dtype) + 0.5) / n for n in shape]
    return torch.stack([(weights.sum(2) * steps[0]).sum(1), (weights.sum(1) * steps[1]).sum(1)], 1)


def _top(flat: Tensor) -> Tensor:
    """Marks the highest cells of each map; cells of one value are in or out together, those of 0 out."""
    least = flat.topk(max(1, round(TOP * flat.shape[1])), dim=1).values[:, -1:]
    return (flat >= least) & (flat > 0)


def _require_maps(maps: Tensor) -> None:
    if maps.ndim != 3 or not maps.is_floating_point() or not maps.shape[1:].numel():
        raise KonkyoError(f"maps (N, h, w) of floating point numbers were expected; got {tuple(maps.shape)}")


def _require_labels(maps: Tensor, labels: Tensor) -> None:
    _require_maps(maps)
    if labels.shape != maps.shape[:1] or labels.is_floating_point():
        raise KonkyoError(f"a class index per map, ({len(maps)},) int64, was expected; got {tuple(labels.shape)}")
