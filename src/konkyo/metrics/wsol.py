"""Weakly supervised localisation: boxes drawn around what a map shows, and its pixels as a segmentation.

After Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", 2020. A map is scaled to [0, 1] by
min and max and cut; places that touch, also at a corner (8 neighbours), are one component. Boxes are xyxy in pixel
edges: x2 is the last column + 1, and IoU is of areas. The authors' code differs, and `protocol` "wsol" is what it does.
It gives a component the corner (x2, y2), cut at the last pixel, as a pixel of the box (its IoU adds 1 to every side).
So its boxes are a pixel wider and taller than the component unless they touch the border. It compares with all boxes of
an object; here that is so where `all_boxes` are given. Its boxes of several components include those around holes. Its
largest component is the one whose outline encloses most, here the one of most pixels.

An image without an object has no box that could be right: the accuracies of boxes leave it out, PxAP counts its pixels.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, NotApplicable
from konkyo.metrics.base import OfMean, metric
from konkyo.metrics.localisation import defined, histogram, in_chunks, pixels_in_random_order
from konkyo.utils.tensors import min_max, overlap, safe_divide

Protocol = Literal["areas", "wsol"]
"""Boxes of components and IoU of areas, or what the authors' code does."""

DELTAS = (0.3, 0.5, 0.7)
"""The overlaps with the object's box that MaxBoxAccV2 asks for."""


def _at_best_threshold(accuracy: Tensor) -> Tensor:
    """Returns the largest over T of (..., T), and of several the mean."""
    return accuracy.amax(-1).mean()


def _average_precision(counts: Tensor) -> Tensor:
    """Computes the sum of precision times gain in recall of pixels outside [0] and inside [1] by level (2, levels)."""
    outside, inside = counts.flip(1)
    right, wrong = inside.cumsum(0), outside.cumsum(0)
    precision = safe_divide(right, right + wrong)
    area: Tensor = torch.dot(precision, inside) / inside.sum()
    return area


@metric(better="higher", pooled=OfMean(_at_best_threshold))
def max_box_acc(
    maps: Tensor,
    boxes: Tensor,
    all_boxes: Tensor | None = None,
    *,
    protocol: Protocol = "areas",
    delta: float = 0.5,
    steps: int = 255,
    seed: int = 0,
) -> Tensor:
    """MaxBoxAcc (Choe et al., 2020) is how often the box of the largest component is right, at the best threshold.

    The map is rounded down to 0 / steps, 1 / steps, ..., 1. For every value but the last, 1 where the box of what is
    above it overlaps the object's with an IoU of at least `delta`, (R, steps). Of a data set it is the mean over maps
    at the threshold where that is largest. 255 steps are all that the authors' 1,000 thresholds tell apart on maps of 8
    bits. Of equally large components one is taken by the seed. A constant map has no box: 0. The boxes are in pixels of
    `maps`. With `all_boxes` any of an object's boxes will do.

    `protocol` "wsol" is the authors' evaluation to the bit, of maps that are 224 x 224 there. The map becomes 8 bits,
    contours are OpenCV's (holes have some, too), and the largest is the one that encloses most, the first of equals. A
    box of pixels x, y, w, h is [x, y, min(x + w, W - 1), min(y + h, H - 1)], the last one part of it, so that IoU adds
    1 to every side; where there is none it is the first pixel. The object's boxes are cut down to whole numbers. It
    needs OpenCV (NotApplicable otherwise).
    """
    if protocol == "wsol":
        return _hits(_overlaps_of_contours(maps, boxes, all_boxes, steps, largest=True), (delta,))[:, 0]
    order = pixels_in_random_order(maps, seed)
    return _hits(_overlaps(maps, _boxes_of_each(maps, boxes, all_boxes), steps, order), (delta,))[:, 0]


@metric(better="higher", pooled=OfMean(_at_best_threshold))
def max_box_acc_v2(
    maps: Tensor, boxes: Tensor, all_boxes: Tensor | None = None, *, protocol: Protocol = "areas", steps: int = 255
) -> Tensor:
    """MaxBoxAccV2 (Choe et al., 2020) is how often some component's box is right, each at the best threshold.

    As `max_box_acc` with the box, of all components', that overlaps the object's most, and for an IoU of at least 0.3,
    0.5 and 0.7, (R, 3, steps). Of a data set it is the mean of the three, each at its own best threshold. `protocol`
    "wsol": the authors' contours and boxes, as in `max_box_acc`.
    """
    if protocol == "wsol":
        return _hits(_overlaps_of_contours(maps, boxes, all_boxes, steps, largest=False), DELTAS)
    return _hits(_overlaps(maps, _boxes_of_each(maps, boxes, all_boxes), steps, None), DELTAS)


@metric(better="higher", pooled=OfMean(_average_precision))
def px_ap(
    maps: Tensor,
    masks: Tensor,
    ignored: Tensor | None = None,
    *,
    steps: int = 1000,
    empty: Literal["count", "skip"] = "count",
) -> Tensor:
    """PxAP (Choe et al., 2020) is the average precision of all pixels of a data set, ranked by the map's value.

    Of every map it counts the pixels outside and inside the mask whose value is 0 / steps, 1 / steps, ..., 1, rounded
    down, (R, 2, steps + 1). Of a data set it is sum_t precision_t (recall_t - recall_(t-1)) of the summed counts, t
    falling. An image whose mask is empty has no object: its pixels count as false alarms, as in the authors' code.
    `empty` "skip" leaves such images out, for data in which an empty mask says that nobody has drawn one. A data set
    without any object has no value: NaN. Pixels that are `ignored` and not in the mask are not counted at all.
    """
    _check_steps(steps)

    def part(maps: Tensor, masks: Tensor, ignored: Tensor) -> Tensor:
        levels = (min_max(maps).nan_to_num() * steps).floor()
        levels = levels.masked_fill(ignored & ~masks, steps + 1)  # a level of their own, which is dropped
        counts = histogram(levels, masks, steps + 2)[..., :-1].float()
        return defined(counts, maps, masks) if empty == "skip" else defined(counts, maps)

    return in_chunks(part, maps, masks, torch.zeros_like(masks) if ignored is None else ignored.to(masks.device))


def boxes_of(heat: Tensor, threshold: float = 0.2) -> Tensor:
    """Returns the boxes around what is above a threshold of a map (H, W), xyxy, that of most pixels first. -> (n, 4)

    `threshold` is a share of the range from the map's minimum to its maximum. The first box at 0.2 is that of CAM (Zhou
    et al., 2016), for a map whose minimum is 0. A constant map, and one that is not finite, has none.
    """
    if heat.ndim != 2 or not 0 <= threshold < 1:
        raise KonkyoError(f"boxes_of takes a map (H, W) and 0 <= threshold < 1; got {tuple(heat.shape)}, {threshold}")
    above = (min_max(heat.detach().float()[None]) > threshold).int()
    _, sizes, boxes = next(_components(above, 1))
    return boxes[sizes.argsort(descending=True, stable=True)]


def _opencv() -> Any:
    """Returns OpenCV's module. NotApplicable: it is not installed."""
    try:
        return import_module("cv2")
    except ImportError:
        raise NotApplicable(
            "protocol='wsol' takes OpenCV's contours, which is not installed: pip install opencv-python-headless"
        ) from None


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= 10_000:
        raise KonkyoError(f"steps is a number of thresholds from 1 to 10000; got {steps}")


def _hits(overlaps: Tensor, deltas: tuple[float, ...]) -> Tensor:
    """Returns 1.0 where IoUs (R, T) reach a delta, NaN where they are NaN. -> (R, deltas, T)"""
    thresholds = overlaps.new_tensor(deltas)[:, None]
    return torch.where(overlaps[:, None].isnan(), torch.nan, (overlaps[:, None] >= thresholds).float())


def _boxes_of_each(maps: Tensor, boxes: Tensor, all_boxes: Tensor | None) -> Tensor:
    """Returns all boxes of every map's object (R, B, 4). KonkyoError: boxes of another shape."""
    every = boxes[:, None] if all_boxes is None else all_boxes
    if every.ndim != 3 or every.shape[2] != 4 or every.shape[1] < 1:
        raise KonkyoError(f"all_boxes are ({len(maps)}, B, 4), NaN where an object has fewer; got {tuple(every.shape)}")
    return every.to(maps)


def _overlaps_of_contours(
    maps: Tensor, boxes: Tensor, all_boxes: Tensor | None, steps: int, *, largest: bool
) -> Tensor:
    """Computes the IoU of the objects' boxes with OpenCV's contours above each threshold, as WSOL's code has it.

    NaN where an object has no box, or a map is not finite. -> (R, steps)
    """
    _check_steps(steps)
    cv2: Any = _opencv()
    every = _boxes_of_each(maps, boxes, all_boxes).cpu()
    levels = (min_max(maps).nan_to_num() * 255).to(torch.uint8).cpu()
    height, width = maps.shape[1:]
    best = torch.full((len(maps), steps), torch.nan)
    for row, level in enumerate(levels):
        known = every[row][(every[row, :, 2:] > every[row, :, :2]).all(1)].trunc()
        if not len(known):
            continue
        top = int(level.max())
        cuts = [step * top // steps for step in range(steps)]
        shares: dict[int, float] = {}
        for cut in set(cuts):
            above = ((level > cut).to(torch.uint8) * 255).numpy()
            contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
            if largest and contours:
                contours = [max(contours, key=cv2.contourArea)]
            rectangles = [cv2.boundingRect(c) for c in contours]
            corners = [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in rectangles]
            corners = corners or [(0, 0, 0, 0)]
            inclusive = torch.tensor([0.0, 0.0, 1.0, 1.0])  # the last pixel is part of a box
            shares[cut] = float(overlap(torch.tensor(corners)[:, None] + inclusive, known + inclusive).max())
        best[row] = torch.tensor([shares[cut] for cut in cuts])
    return defined(best.to(maps), maps)


def _overlaps(maps: Tensor, boxes: Tensor, steps: int, order: Tensor | None) -> Tensor:
    """Computes the IoU of the largest, or the best, component above each threshold with the best box. -> (R, steps)

    Of an object's `boxes` (R, B, 4); NaN where it has none. `order` (H * W,) says which of equally large components is
    taken; None: the component that overlaps most.
    """
    _check_steps(steps)
    pixels = maps.shape[1] * maps.shape[2]
    rank = None if order is None else order.argsort()

    def part(maps: Tensor, boxes: Tensor) -> Tensor:
        """Computes the IoUs of a chunk of maps. -> (n, steps)"""
        best, there = maps.new_zeros(steps, len(maps)), (boxes[..., 2:] > boxes[..., :2]).all(2)
        levels = (min_max(maps).nan_to_num() * steps).floor().int()
        for above, (corner, size, reach) in zip(range(steps - 1, -1, -1), _components(levels, steps), strict=True):
            row = corner // pixels
            shared = overlap(reach[:, None], boxes[row]).where(there[row], 0.0).amax(1)
            if rank is not None:
                key = size * pixels + rank[corner % pixels]
                largest = key.new_zeros(len(maps)).scatter_reduce(0, row, key, "amax")
                shared = torch.where(key == largest[row], shared, 0.0)
            best[above].scatter_reduce_(0, row, shared, "amax")
        return torch.where(there.any(1)[:, None], defined(best.T, maps), torch.nan)

    return in_chunks(part, maps, boxes) if len(maps) else maps.new_zeros(0, steps)


def _components(levels: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields for every level from `steps` down to 1 the components of the pixels that reach it. Levels (R, H, W) ints.

    Of each its first pixel (n,) as an index into all R * H * W, its number of pixels (n,) and its box (n, 4). A
    component is part of one at the next lower level, so each level only joins what its own pixels connect. A forest of
    pixels, whose roots are the components' first pixels, joins two neighbours at the lower of their levels.
    """
    height, width = levels.shape[1:]
    level = levels.flatten()
    ids = torch.arange(level.numel(), device=level.device).view(levels.shape)
    neighbours = [
        (ids[:, :, :-1], ids[:, :, 1:]),
        (ids[:, :-1], ids[:, 1:]),
        (ids[:, :-1, :-1], ids[:, 1:, 1:]),
        (ids[:, :-1, 1:], ids[:, 1:, :-1]),
    ]
    one, other = (torch.cat([pair[side].flatten() for pair in neighbours]) for side in (0, 1))
    edges = _by_level(torch.minimum(level[one], level[other]), steps)
    pixels = _by_level(level, steps)

    parent = ids.flatten().clone()
    size = torch.ones_like(parent)
    x, y = parent % width, parent // width % height
    reach = torch.stack([-x, -y, x + 1, y + 1], dim=1)
    roots = parent[:0]
    for edge, pixel in zip(reversed(edges), reversed(pixels), strict=True):
        before = torch.unique(_root(parent, torch.cat([one[edge], other[edge]])))
        _join(parent, one[edge], other[edge])
        after = _root(parent, before)
        moved = before != after
        before, after = before[moved], after[moved]
        size.index_add_(0, after, size[before])
        reach.scatter_reduce_(0, after[:, None].expand(-1, 4), reach[before], "amax")
        roots = torch.cat([roots, pixel])
        roots = roots[parent[roots] == roots]
        yield roots, size[roots], reach[roots] * reach.new_tensor([-1, -1, 1, 1])


def _by_level(level: Tensor, steps: int) -> list[Tensor]:
    """Returns the indices of the values 1, ..., steps, a tensor for each, ascending within it."""
    order = level.to(torch.int16).argsort(stable=True)
    counts: list[int] = torch.bincount(level, minlength=steps + 1).tolist()
    return list(torch.split(order, counts))[1:]


def _root(parent: Tensor, nodes: Tensor) -> Tensor:
    """Returns the root of every node's tree; the nodes then hang from it."""
    up = parent[nodes]
    while not torch.equal(up, above := parent[up]):
        parent[nodes] = above
        up = above
    return up


def _join(parent: Tensor, one: Tensor, other: Tensor) -> None:
    """Makes every two nodes part of one tree, whose root is the smallest of their roots."""
    while len(one):
        one, other = _root(parent, one), _root(parent, other)
        apart = one != other
        one, other = one[apart], other[apart]
        parent.scatter_reduce_(0, torch.maximum(one, other), torch.minimum(one, other), "amin")
