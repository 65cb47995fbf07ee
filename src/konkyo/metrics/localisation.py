"""Metrics of localisation tell whether a map lies on its object: overlap, energy and ranks inside a mask.

A value is NaN where it is not defined: a map that is not finite everywhere, or an empty mask. Ties between pixels are
broken by one random order of all pixels that depends on `seed` and the size alone. So a map's value does not depend on
the maps that are measured with it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.metrics.base import auc, metric
from konkyo.metrics.variants import absent, mean_ranks
from konkyo.utils.tensors import min_max, per_item, safe_divide

THRESHOLDS = tuple(i / 10 for i in range(1, 10))
"""Where VEA cuts a map that reaches from 0 to 1."""


def mean_of_curve(curve: Tensor) -> Tensor:
    """Averages curves over thresholds. (R, T) -> (R,)"""
    return curve.mean(1)


# --- overlap ----------------------------------------------------------------------------------------------------------


@metric(better="higher", summary=mean_of_curve)
def vea(maps: Tensor, masks: Tensor) -> Tensor:
    """VEA (Oh et al., 2021) is the mask's IoU with the map cut at 0.1, 0.2, ..., 0.9; its mean is the value.

    curve_t = IoU(mask, m > t) of the map m scaled to [0, 1] by min and max. -> (R, 9). ODAM's evaluation reports the
    curve; the paper on IG-ODAM gives one number and does not say which. A constant map, cut, is empty: 0.
    """
    return _vea_curve(maps, masks)


@metric(better="higher", summary=auc)
def vea_auc(maps: Tensor, masks: Tensor) -> Tensor:
    """This VEA takes the area under its curve by the trapezoid rule, divided by the range 0.8, instead of the mean."""
    return _vea_curve(maps, masks)


@metric(better="higher")
def iou(maps: Tensor, masks: Tensor, *, threshold: float = 0.5) -> Tensor:
    """IoU compares the mask with the map, scaled to [0, 1], above a threshold. A constant map: 0. -> (R,)"""
    if not 0 <= threshold < 1:
        raise KonkyoError(f"threshold of iou lies in [0, 1); got {threshold}")

    def part(maps: Tensor, masks: Tensor) -> Tensor:
        above = min_max(maps) > threshold
        common, either = ((above & masks).flatten(1).sum(1), (above | masks).flatten(1).sum(1))
        return defined(common / either, maps, masks)

    return in_chunks(part, maps, masks)


@metric(better="higher")
def best_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """Best IoU is the largest of the mask and the map above a threshold, over all thresholds.

    A constant map: 0. -> (R,)

    Exact: every value of the map is a threshold (VEA's curve has nine of them, the same for all maps).
    """

    def part(maps: Tensor, masks: Tensor) -> Tensor:
        values, order = maps.flatten(1).sort(dim=1, descending=True)
        common = masks.flatten(1).gather(1, order).cumsum(1)
        size = torch.arange(1, values.shape[1] + 1, device=maps.device)
        overlaps = common / (size + common[:, -1:] - common)
        ends = torch.cat([values[:, :-1] > values[:, 1:], torch.zeros_like(masks.flatten(1)[:, :1])], dim=1)
        return defined(torch.where(ends, overlaps, 0.0).amax(1), maps, masks)

    return in_chunks(part, maps, masks)


# --- energy -----------------------------------------------------------------------------------------------------------


@metric(better="higher")
def ebpg(maps: Tensor, masks: Tensor) -> Tensor:
    """The energy-based pointing game (Wang et al., 2020) is the share of the map inside the mask.

    sum_mask m / sum m of the map m scaled to [0, 1], so that it does not depend on an offset of the map. A constant map
    has no energy then: 0. With `box_masks` as masks it is that of boxes. A map without relation to the object has the
    mask's share of the area: see `ebpg_lift`. -> (R,)
    """

    def part(maps: Tensor, masks: Tensor) -> Tensor:
        energy = min_max(maps)
        return defined(safe_divide((energy * masks).flatten(1).sum(1), energy.flatten(1).sum(1)), maps, masks)

    return in_chunks(part, maps, masks)


@metric(better="higher")
def ebpg_lift(maps: Tensor, masks: Tensor) -> Tensor:
    """EBPG lift is how many times more of the map's energy than of the area lies inside the mask.

    It is EBPG over the area's share. -> (R,)
    """
    inside = masks.flatten(1).sum(1) / masks[0].numel() if len(masks) else maps.new_zeros(0)
    return ebpg(maps, masks=masks) / inside


@metric(better="higher")
def relevance_mass(maps: Tensor, masks: Tensor) -> Tensor:
    """Relevance mass accuracy (Arras et al., 2022) is the share of the map's positive part inside the mask.

    The map as it is, not scaled by min and max; NaN where nothing of it is positive. -> (R,)
    """

    def part(maps: Tensor, masks: Tensor) -> Tensor:
        mass = maps.relu()
        return defined((mass * masks).flatten(1).sum(1) / mass.flatten(1).sum(1), maps, masks)

    return in_chunks(part, maps, masks)


@metric(better="lower")
def odi(maps: Tensor, masks: Tensor, others: Tensor) -> Tensor:
    """ODI (Zhao & Chan, 2023) is the share of the map's energy on objects that lies on those it is not about.

    sum_others m / sum_(mask or others) m of the map m scaled to [0, 1]. As in the authors' code, where regions overlap
    (boxes do) the common part counts as another's. NaN where the image has no other object, and where the map has no
    energy on any object; the authors' code scores both 0. -> (R,)
    """

    def part(maps: Tensor, masks: Tensor, others: Tensor) -> Tensor:
        energy = min_max(maps)
        share = (energy * others).flatten(1).sum(1) / (energy * (masks | others)).flatten(1).sum(1)
        return defined(share, maps, masks, others)

    return in_chunks(part, maps, masks, others)


# --- ranks ------------------------------------------------------------------------------------------------------------


@metric(better="higher")
def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: float = 0.0, seed: int = 0) -> Tensor:
    """The pointing game (Zhang et al., 2016) gives 1 if the map's highest pixel is inside the mask, else 0.

    `tolerance`: it may lie so many pixels (between centres) outside; the authors allowed 15. A constant map points
    nowhere: NaN. -> (R,)
    """
    if not tolerance >= 0:
        raise KonkyoError(f"tolerance of pointing_game is a number of pixels, 0 or more; got {tolerance}")
    order = pixels_in_random_order(maps, seed)
    places = torch.cartesian_prod(*(torch.arange(n, device=maps.device) for n in maps.shape[1:]))
    places = places.view(-1, maps.ndim - 1)

    def part(maps: Tensor, masks: Tensor) -> Tensor:
        """Tells for a chunk of maps whether the peak hits the mask. -> (n,)"""
        peak = _peaks(maps, order)
        if tolerance > 0:
            squares = sum((at - at[peak, None]).square() for at in places.unbind(1))
            hit = ((squares <= tolerance**2) & masks.flatten(1)).any(1)
        else:
            hit = masks.flatten(1).gather(1, peak[:, None])[:, 0]
        return torch.where(_constant(maps), torch.nan, defined(hit.float(), maps, masks))

    return in_chunks(part, maps, masks)


@metric(better="higher")
def relevance_rank(maps: Tensor, masks: Tensor, *, k: int | None = None, lift: bool = False, seed: int = 0) -> Tensor:
    """Relevance rank accuracy (Arras et al., 2022) is the share inside the mask of the |mask| highest pixels.

    A constant map ranks the pixels at random, and so gets about the mask's share of the area. -> (R,) `k`: of so many
    highest pixels instead (of all, if the map has no more), the top-k intersection (Theiner et al., 2021). `lift`
    divides by the mask's share of the area: 1 for a map that does not know the object (their concept influence).
    """
    if k is not None and k < 1:
        raise KonkyoError(f"k of relevance_rank is a number of pixels, 1 or more; got {k}")
    shuffled = pixels_in_random_order(maps, seed)

    def part(maps: Tensor, masks: Tensor) -> Tensor:
        order = maps.flatten(1)[:, shuffled].argsort(dim=1, descending=True, stable=True)
        inside = masks.flatten(1)[:, shuffled].gather(1, order).cumsum(1)
        size, area = inside[:, -1:], inside.shape[1]
        count = size if k is None else torch.full_like(size, min(k, area))
        share = inside.gather(1, (count - 1).clamp_min(0)) / count
        return defined((share / (size / area) if lift else share)[:, 0], maps, masks)

    return in_chunks(part, maps, masks)


@metric(better="higher")
def roc_auc(maps: Tensor, masks: Tensor) -> Tensor:
    """ROC-AUC is how often a pixel inside the mask is higher than one outside, of all such pairs.

    (S - n1 (n1 + 1) / 2) / (n1 n0), S the sum of the ranks, from the lowest up, of the n1 pixels inside; n0 are
    outside. Equal pixels share their mean rank and count half, so a constant map has 0.5, as has one that does not know
    the object. It is the area under the curve of true over false positives at all thresholds; any increasing function
    of the map has the same. NaN where the mask is empty or full. -> (R,)
    """

    def part(maps: Tensor, masks: Tensor) -> Tensor:
        inside = masks.flatten(1)
        n1 = inside.sum(1).double()
        sums = (mean_ranks(maps.flatten(1)) * inside).sum(1)  # ranks from 0: n1 less in all
        pairs = n1 * (inside.shape[1] - n1)
        return defined(((sums - n1 * (n1 - 1) / 2) / pairs).float(), maps, masks, ~masks)

    return in_chunks(part, maps, masks)


# --- time -------------------------------------------------------------------------------------------------------------


@metric(better="higher")
def temporal_iou(maps: Tensor, masks: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Temporal IoU compares when the map is strong with when the object is there, of maps whose first place is time.

    The map's positive part is summed over all other places. Its interval is the run of times around its highest one at
    which the sum is at least `threshold` of that. The other interval is of the times at which the mask has a cell. NaN
    where nothing of the map is positive. -> (R,)
    """
    if not 0 < threshold <= 1:
        raise KonkyoError(f"threshold of temporal_iou lies in (0, 1]; got {threshold}")
    curve, there = maps.relu()[..., None].flatten(2).sum(2), masks[..., None].flatten(2).any(2)
    highest, peak = curve.max(1, keepdim=True)
    strong = curve >= threshold * highest
    gaps = (~strong).cumsum(1)  # times of one run have as many gaps before them
    run = strong & (gaps == gaps.gather(1, peak))
    value = (run & there).sum(1) / (run | there).sum(1)
    return defined(value.where(highest[:, 0] > 0, torch.nan), maps, masks)


# --- shape of the map alone -------------------------------------------------------------------------------------------


@metric(better="lower")
def compactness(maps: Tensor, boxes: Tensor, *, seed: int = 0) -> Tensor:
    """Compactness (Zhao & Chan, 2023) is how far from its peak the map reaches, in half diagonals of the box.

    sqrt(sum_x m(x) |x - x_max|^2 / (sum_x m(x) (w^2 + h^2) / 4)) of the map m scaled to [0, 1]. Where the box lies does
    not matter. NaN for a constant map and for a box without area. The boxes are in pixels of `maps`. -> (R,)
    """
    order = pixels_in_random_order(maps, seed)
    ys, xs = (torch.arange(n, device=maps.device) for n in maps.shape[1:])

    def part(maps: Tensor, boxes: Tensor) -> Tensor:
        energy, peak = min_max(maps), _peaks(maps, order)
        rows, columns = energy.sum(2), energy.sum(1)
        down = rows * (ys - (peak // len(xs))[:, None]).square()
        across = columns * (xs - (peak % len(xs))[:, None]).square()
        sides = boxes[:, 2:] - boxes[:, :2]
        reach = (down.sum(1) + across.sum(1)) / (rows.sum(1) * sides.square().sum(1) / 4)
        return torch.where((sides > 0).all(1), defined(reach.sqrt(), maps), torch.nan)

    return in_chunks(part, maps, boxes.to(maps))


@metric(better="higher")
def sparseness(maps: Tensor) -> Tensor:
    """Sparseness (Chalasani et al., 2020) is the Gini index of the map's absolute values; 0 if all are equal.

    sum_i (2 i - n - 1) a_i / (n sum a), a_1 <= ... <= a_n. NaN for a map of zeros. -> (R,)
    """

    def part(maps: Tensor) -> Tensor:
        values = maps.flatten(1).abs().sort(dim=1).values
        n = values.shape[1]
        weights = (2 * torch.arange(1, n + 1, device=maps.device) - n - 1) / n
        return defined((values / values.sum(1, keepdim=True) * weights).sum(1), maps)

    return in_chunks(part, maps)


@metric(better="lower")
def complexity(maps: Tensor) -> Tensor:
    """Complexity (Bhatt et al., 2020) is the entropy of |map| / sum |map|, in nats; ADCC has another.

    NaN for a map of zeros. -> (R,)
    """

    def part(maps: Tensor) -> Tensor:
        values = maps.flatten(1).abs()
        share = values / values.sum(1, keepdim=True)
        return defined(torch.special.entr(share).sum(1), maps)

    return in_chunks(part, maps)


@metric(better="lower")
def effective_complexity(maps: Tensor, *, threshold: float = 0.01) -> Tensor:
    """Effective complexity (Nguyen & Martinez, 2020) is the share of pixels that count: larger than a threshold.

    The share of the pixels with |m| > `threshold` max |m|. -> (R,), NaN for a map of zeros. Relative to the map's own
    largest value, which a threshold in the map's units is not: nearly all pixels of an enlarged map are above 1e-5.
    """
    if not 0 <= threshold < 1:
        raise KonkyoError(f"threshold of effective_complexity lies in [0, 1); got {threshold}")

    def part(maps: Tensor) -> Tensor:
        values = maps.flatten(1).abs()
        highest = values.amax(1, keepdim=True)
        share = (values > threshold * highest).float().mean(1)
        return defined(share.where(highest[:, 0] > 0, torch.nan), maps)

    return in_chunks(part, maps)


# --- what they share --------------------------------------------------------------------------------------------------


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Marks every pixel that a box touches. Boxes (R, 4) xyxy in pixels, (H, W) -> (R, H, W) bool

    From floor(x1) to ceil(x2), cut at the border; a box without area, or of NaN, has none.
    """
    low, high = boxes[:, :2].floor(), boxes[:, 2:].ceil()
    area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    ys, xs = (torch.arange(n, device=boxes.device) for n in size)
    across = (xs >= low[:, :1]) & (xs < high[:, :1]) & area[:, None]
    down = (ys >= low[:, 1:]) & (ys < high[:, 1:])
    return down[:, :, None] & across[:, None]


def in_chunks(part: Callable[..., Tensor], *tensors: Tensor, pixels: int = 1 << 20) -> Tensor:
    """Calls `part` with some rows of the tensors at a time, about so many pixels of the first, which saves memory."""
    rows = max(1, pixels // max(1, tensors[0][:1].numel()))
    return torch.cat([part(*some) for some in zip(*(torch.split(t, rows) for t in tensors), strict=True)])


def defined(values: Tensor, maps: Tensor, *regions: Tensor) -> Tensor:
    """Returns the values (R, ...), NaN where a map (R, H, W) is not finite or one of the regions is empty."""
    fine = ~absent(maps)
    for region in regions:
        fine = fine & region.flatten(1).any(1)
    return torch.where(per_item(fine, values), values, torch.nan)


def histogram(levels: Tensor, masks: Tensor, count: int) -> Tensor:
    """Counts the pixels of each level outside [:, 0] and inside [:, 1] the mask. (R, H, W) ints -> (R, 2, count)"""
    rows = torch.arange(len(levels), device=levels.device, dtype=torch.int32)
    places = levels.int() + count * masks.int() + 2 * count * per_item(rows, levels)
    return torch.bincount(places.flatten(), minlength=2 * count * len(levels)).view(-1, 2, count)


def pixels_in_random_order(maps: Tensor, seed: int) -> Tensor:
    """Returns the indices of all pixels (H * W,) in an order that depends on the seed and their number."""
    count = math.prod(maps.shape[1:])
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(maps.device)


def _vea_curve(maps: Tensor, masks: Tensor) -> Tensor:
    """Computes the IoU of the mask with the map above every threshold. -> (R, thresholds)"""

    def part(maps: Tensor, masks: Tensor) -> Tensor:
        scaled, levels = min_max(maps), torch.zeros_like(masks, dtype=torch.uint8)
        for threshold in THRESHOLDS:
            levels += scaled > threshold
        outside, inside = histogram(levels, masks, len(THRESHOLDS) + 1).flip(2).cumsum(2).flip(2).unbind(1)
        return defined(inside[:, 1:] / (outside[:, 1:] + inside[:, :1]), maps, masks)

    return in_chunks(part, maps, masks)


def _constant(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return flat.amax(1) == flat.amin(1)


def _peaks(maps: Tensor, order: Tensor) -> Tensor:
    """Returns the index of the highest pixel of every map (R,); of several, the last in the order."""
    flat = maps.flatten(1)
    place = order.argsort().int()
    last = torch.where(flat == flat.amax(1, keepdim=True), place, -1).amax(1)
    return order[last]
