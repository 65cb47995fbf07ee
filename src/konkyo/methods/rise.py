"""Maps from how the score changes when places are hidden: of the image, or of a layer's grid."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import Rescore, Segment
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.utils.segments import Segmentation
from konkyo.utils.tensors import blurred, normalised, per_item, resize, safe_divide

Enlarging = Literal["bilinear", "nearest"]
Border = Literal["clamp", "mirror"]
"""What lies beyond the border of a coarse grid when it is enlarged: its last cells again, or those before them."""
LEVELS = (150, 300, 600, 1200)
"""How many segments the masks of each level are made of, about, where a user does not say."""


@method(layer="input", score="probability")
def rise(
    inputs: Tensor,
    segment: Segment,
    rescore: Rescore,
    generator: torch.Generator,
    *,
    masks: int = 4000,
    cells: int | tuple[int, ...] = 7,
    keep: float = 0.5,
    border: Border = "clamp",
    segments: Segmentation | None = None,
    levels: tuple[int, ...] | None = None,
) -> Tensor:
    """RISE (Petsiuk et al., 2018, Eq. 6) is the mean of random masks, weighted by the score of the masked image.

    map = 1 / (masks * keep) sum_i score(x * M_i) M_i. A mask is a coarse grid of `cells` per side (or for every place
    its own number: (1, 7, 7) for masks of a video that stay the same over time). Each cell is kept with probability
    `keep`; the grid is enlarged bilinearly to one cell more than the image and cropped at random. All images see the
    same masks. `border` is how masks are enlarged in the outer half of the outermost cells: "clamp" repeats the cell,
    "mirror" goes on towards the cell before it, as the authors' code does. `score` "logit" weighs by the class's logit.
    `segments` and `levels`: masks of superpixels, as in `d_rise`. Cost: `masks` forwards; under a budget the mean is
    that of the masks that ran.
    """
    labels = _segments_by_level(segment, segments, levels)
    if labels:
        return _of_segments(inputs, labels, rescore, generator, masks, keep)
    mask = _random_masks(inputs, generator, masks, cells, keep, "bilinear", border)
    return _of_masks(inputs, rescore, mask, masks) / keep


@method(layer="input", score="similarity")
def d_rise(
    inputs: Tensor,
    segment: Segment,
    rescore: Rescore,
    generator: torch.Generator,
    *,
    masks: int = 5000,
    cells: int | tuple[int, ...] = 16,
    keep: float = 0.5,
    enlarge: Enlarging = "bilinear",
    border: Border = "clamp",
    centre: bool = False,
    segments: Segmentation | None = None,
    levels: tuple[int, ...] | None = None,
) -> Tensor:
    """D-RISE (Petsiuk et al., 2021) is the mean of random masks, weighted by how much of the detection each leaves.

    map = mean_i w_i M_i, w_i = max_j IoU(box, box_j) cos(p, p_j) over all candidates j of the masked image x * M_i.
    (The paper's objectness is left out: few detectors have one.) A quantity that is asked for (a side of the box)
    weighs the masks instead, as scores do in RISE. Masks and `border` as in `rise`; all detections of an image share
    them and their forwards. `enlarge` "nearest" keeps hard edges, as a released implementation does; it has no
    `border`. `centre` takes the mean of the weights off, which takes the same constant background out of every map and
    leaves less noise. Cost: `masks` forwards, however many detections there are.

    `segments` ("slic", "grid", ...) makes the masks of superpixels at several `levels`, so many segments each (None:
    about 150, 300, 600 and 1200), which is the idea of D-CLOSE (Truong et al., 2023). Segments of the user's own, (H,
    W) of the prepared image, are one level. `cells`, `enlarge` and `border` then play no part. A level gets its share
    of the masks; a segment is kept with probability `keep`, and the mask blurred (sigma: 1/40 of the shorter side).
    map = the mean over levels of sum_i w_i M_i / sum_i M_i.
    """
    labels = _segments_by_level(segment, segments, levels)
    if labels:
        return _of_segments(inputs, labels, rescore, generator, masks, keep, centre=centre)
    mask = _random_masks(inputs, generator, masks, cells, keep, enlarge, border)
    return _of_masks(inputs, rescore, mask, masks, centre=centre)


def per_place(name: str, value: int | tuple[int, ...], size: Sequence[int]) -> tuple[int, ...]:
    """Returns an option as a number per place of images of this size. KonkyoError: other numbers, or not as many."""
    values = (value,) * len(size) if isinstance(value, int) else tuple(value)
    if len(values) != len(size) or not all(isinstance(n, int) for n in values):
        raise KonkyoError(f"{name} is a whole number, or one for each of the image's {len(size)} places; got {value!r}")
    return values


def _random_masks(
    inputs: Tensor,
    generator: torch.Generator,
    masks: int,
    cells: int | tuple[int, ...],
    keep: float,
    enlarge: Enlarging,
    border: Border,
) -> Callable[[Tensor], Tensor]:
    """Makes RISE's masks, indices -> (v, *size): coarse grids enlarged to one cell more than the image, and cropped."""
    size = inputs.shape[2:]
    sides = per_place("cells", cells, size)
    if masks < 1 or min(sides) < 1 or not 0 < keep <= 1:
        raise KonkyoError(f"masks >= 1, cells >= 1 and 0 < keep <= 1 were expected; got {masks}, {cells}, {keep}")
    stride = [-(-s // n) for s, n in zip(size, sides, strict=True)]
    open_cells = torch.rand(masks, *sides, generator=generator, device="cpu") < keep
    coarse = open_cells.to(inputs.device, torch.promote_types(inputs.dtype, torch.float32))
    moves = [torch.randint(s, (masks,), generator=generator, device="cpu").to(inputs.device) for s in stride]

    def mask(indices: Tensor) -> Tensor:
        """Returns the masks (v, *size) of these indices."""
        extents = tuple((n + 1) * s for n, s in zip(sides, stride, strict=True))
        if enlarge == "nearest":
            large = torch.nn.functional.interpolate(coarse[indices, None], size=extents, mode="nearest-exact")[:, 0]
        elif border == "mirror":
            large = _mirrored(coarse[indices], extents)
        else:
            large = resize(coarse[indices], extents)
        for axis, (extent, move) in enumerate(zip(size, moves, strict=True), start=1):
            window = move[indices, None] + torch.arange(extent, device=large.device)
            window = window.view(-1, *[1] * (axis - 1), extent, *[1] * (len(size) - axis))
            shape = [*large.shape[:axis], extent, *large.shape[axis + 1 :]]
            large = large.gather(axis, window.expand(shape))
        return large

    return mask


def _mirrored(coarse: Tensor, extents: Sequence[int]) -> Tensor:
    """Enlarges grids (v, *cells) bilinearly to `extents`.

    Beyond the centre of an outermost cell the grid is mirrored at that centre ("mirror" of scipy, "reflect" of
    scikit-image's resize).
    """
    for axis, extent in enumerate(extents, start=1):
        last = coarse.shape[axis] - 1
        at = (torch.arange(extent, device=coarse.device) + 0.5).to(coarse) * ((last + 1) / extent) - 0.5
        at = (last - (last - at.abs()).abs()).clamp_min(0)
        low = at.long()
        share = (at - low).view(-1, *[1] * (coarse.ndim - axis - 1))
        one, other = coarse.index_select(axis, low), coarse.index_select(axis, (low + 1).clamp_max(last))
        coarse = torch.lerp(one, other, share)
    return coarse


def _of_masks(
    inputs: Tensor, rescore: Rescore, mask: Callable[[Tensor], Tensor], count: int, *, centre: bool = False
) -> Tensor:
    """Returns the mean of the masks that ran, weighted by the scores of the images seen through them. -> (N, *size)"""
    scores = rescore(count, inputs=lambda image, k: mask(k)[:, None] * inputs[image])
    weights, ran = _weights(scores, inputs, centre=centre)
    return safe_divide(_blend(weights, mask), per_item(ran.sum(1), inputs[:, 0]))


def _weights(scores: Tensor, inputs: Tensor, *, centre: bool) -> tuple[Tensor, Tensor]:
    """Returns the masks' weights (N, count), 0 of those that did not run, less their mean to `centre`; and 1 of those
    that ran."""
    ones = torch.ones((), device=inputs.device, dtype=torch.promote_types(inputs.dtype, torch.float32))
    ran = (scores != -torch.inf).to(ones)
    weights = torch.where(ran > 0, scores.to(ones), 0.0)
    if centre:
        weights = ran * (weights - safe_divide(weights.sum(1, keepdim=True), ran.sum(1, keepdim=True)))
    return weights, ran


def _segments_by_level(
    segment: Segment, segments: Segmentation | None, levels: Sequence[int] | int | None
) -> list[Tensor]:
    """Returns the segments (N, *size) of every level; nothing where masks are coarse grids.

    KonkyoError: levels where there are no segmenter's segments, or none of them.
    """
    custom = not isinstance(segments, str | None)
    if levels is not None and (segments is None or custom):
        raise KonkyoError(
            'levels are numbers of superpixels, which segments="slic" or another name makes; got levels='
            f"{levels!r} {'and segments of your own, which are one level' if custom else 'without segments'}"
        )
    if segments is None:
        return []
    if custom:
        return [segment(segments)]
    counts = LEVELS if levels is None else (levels,) if isinstance(levels, int) else tuple(levels)
    if not counts:
        raise KonkyoError("one level of segments or more was expected; got none")
    return [segment(segments, count) for count in counts]


def _of_segments(
    inputs: Tensor,
    labels: Sequence[Tensor],
    rescore: Rescore,
    generator: torch.Generator,
    masks: int,
    keep: float,
    *,
    centre: bool = False,
) -> Tensor:
    """Returns the mean over levels of their masks' mean weight at every pixel, masks of superpixels. -> (N, *size)

    `labels`: the segments (N, *size) of every level.
    """
    depth = len(labels)
    share = masks // depth
    if share < 1 or not 0 < keep <= 1:
        raise KonkyoError(f"masks >= levels >= 1 and 0 < keep <= 1 were expected; got {masks}, {depth} and {keep}")
    shown = [torch.rand(share, int(label.max()) + 1, generator=generator, device="cpu") < keep for label in labels]
    shown = [part.to(inputs) for part in shown]
    sigma = min(inputs.shape[2:]) / 40

    def seen(image: int, indices: Tensor) -> Tensor:
        """Returns the image through the masks of these indices (v, C, *size)."""
        sharp = inputs.new_empty(len(indices), *inputs.shape[2:])
        for level, (label, part) in enumerate(zip(labels, shown, strict=True)):
            chosen = indices % depth == level  # in turn, so that a budget is shared
            sharp[chosen] = part[indices[chosen] // depth][:, label[image]]
        return blurred(sharp[:, None], sigma) * inputs[image]

    scores = rescore(share * depth, inputs=seen)
    weights, ran = _weights(scores, inputs, centre=centre)
    maps = torch.zeros_like(inputs[:, 0], dtype=weights.dtype)
    for level, (label, part) in enumerate(zip(labels, shown, strict=True)):
        open_segments = part.to(weights)
        weight, count = (values[:, level::depth] @ open_segments for values in (weights, ran))
        sums = torch.stack([weight, count], 1)  # of segments: blurring is linear, and once is enough
        total = sums.gather(2, label.flatten(1)[:, None].expand(-1, 2, -1)).view(len(sums), 2, *label.shape[1:])
        maps += safe_divide(*blurred(total, sigma).unbind(1))
    levels_run = ran[:, :depth].sum(1).clamp_min(1)  # fewer than all under a small budget
    return maps / per_item(levels_run, maps)


@method(layer="input", score="probability")
def occlusion(
    inputs: Tensor,
    rescore: Rescore,
    *,
    window: int | tuple[int, ...] = 16,
    stride: int | tuple[int, ...] = 8,
    baseline: float = 0.0,
) -> Tensor:
    """Occlusion (Zeiler & Fergus, 2014) shows how far the score falls when a square that covers the pixel is hidden.

    map = mean over the windows that cover a pixel of score(x) - score(x with the window set to `baseline`). A window is
    `window` pixels wide in all directions, or as the image where that is less, and moves by `stride`; (4, 16, 16) is a
    block of a video, of 4 frames. The last of a row is cut at the border. `baseline` is a value of the preprocessed
    image (0: the mean colour). `score` "logit" shows how far the class's logit falls, which does not saturate where the
    class is certain. Cost: a forward per window and
    one more, 730 for 224 x 224 pixels. Under a budget windows far apart come first; pixels that none of them
    covered get 0. Evidence larger than the window, or there twice, is missed: hiding a part of it changes nothing.
    """
    drops, ran, hidden = _drops_of_windows(inputs, rescore, window, stride, baseline)
    return safe_divide(_blend(drops, hidden), _blend(ran.to(drops), hidden))


@method(layer="input")
def sbsm(
    inputs: Tensor,
    rescore: Rescore,
    *,
    window: int | tuple[int, ...] = 24,
    stride: int | tuple[int, ...] = 8,
    baseline: float = 0.0,
) -> Tensor:
    """SBSM (Dong et al., 2019) shows how far the similarity to a reference falls when a square of the image is hidden.

    map = mean over the windows that cover a pixel of max(0, score(x) - score(x with the window set to `baseline`)). It
    is `occlusion` of which only what supports the likeness is kept, window by window; the score is that of
    `konkyo.Similarity`, whose "distance" is the paper's. Windows, `baseline` and cost as in `occlusion`.
    """
    drops, ran, hidden = _drops_of_windows(inputs, rescore, window, stride, baseline)
    return safe_divide(_blend(drops.clamp_min(0), hidden), _blend(ran.to(drops), hidden))


def _drops_of_windows(
    inputs: Tensor, rescore: Rescore, window: int | tuple[int, ...], stride: int | tuple[int, ...], baseline: float
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Returns how far the score falls when each window is hidden, and what says which pixels that is.

    -> drops (N, windows), 0 where a window did not run; which ones ran (N, windows); indices -> (v, *size) bool.
    """
    size = inputs.shape[2:]
    windows, strides = per_place("window", window, size), per_place("stride", stride, size)
    if not all(1 <= step <= wide for step, wide in zip(strides, windows, strict=True)):
        raise KonkyoError(f"windows need 1 <= stride <= window; got {stride}, {window}")
    counts = [1 + math.ceil(max(0, n - wide) / step) for n, wide, step in zip(size, windows, strides, strict=True)]
    steps = torch.cartesian_prod(*map(torch.arange, counts)).view(-1, len(size))
    corners = torch.cat([steps * torch.tensor(strides), torch.tensor([size])]).to(
        inputs.device
    )  # the last window hides nothing

    def hidden(indices: Tensor) -> Tensor:
        inside = torch.ones(len(indices), *[1] * len(size), dtype=torch.bool, device=inputs.device)
        for axis, extent in enumerate(size):
            beyond = torch.arange(extent, device=inputs.device) - corners[indices, axis, None]
            shape = [-1, *[1] * axis, extent, *[1] * (len(size) - axis - 1)]
            inside = inside & ((beyond >= 0) & (beyond < windows[axis])).view(shape)
        return inside

    def occluded(image: int, indices: Tensor) -> Tensor:
        return torch.where(hidden(indices)[:, None], baseline, inputs[image])

    coarse = torch.where(steps == 0, 2**30, steps & -steps).amin(1)  # how many steps apart: 1, 2, 4, ...
    order = torch.cat([coarse, torch.tensor([2**31])]).to(inputs.device).expand(len(inputs), -1)
    scores = rescore(len(corners), inputs=occluded, priority=order)
    ran = scores[:, :-1] != -torch.inf
    drops = torch.where(ran, scores[:, -1:] - scores[:, :-1], 0.0)
    return drops, ran, hidden


@method(score="probability")
def recipro_cam(activations: Tensor, rescore: Rescore, *, mask: Literal["cell", "gaussian"] = "cell") -> Tensor:
    """Recipro-CAM (Byun & Lee, 2022) is the score that remains when one place of the layer's grid is all there is.

    map at p = score(A * M_p), M_p: 1 at p and 0 elsewhere. `mask` "gaussian" lets the neighbours shine through, with
    1/4 at p falling to 1/16 at its corners, as ViT-ReciproCAM (Byun & Lee, 2023) does. "cell" is what the authors' code
    does for convolutions. Tokens that stand before the grid stay as they are. Cost: a forward per place of what follows
    the layer; under a budget the places with the largest activations come first, and the others get the lowest score. A
    lone place is an input that the network never saw; what the layers after it combine is not credited.
    """
    grid = activations.shape[2:]
    bands = [_band(extent, activations) for extent in grid]

    def alone(image: int, places: Tensor) -> Tensor:
        masks = torch.nn.functional.one_hot(places, math.prod(grid)).to(activations).view(-1, *grid)
        if mask == "gaussian":
            for axis, band in enumerate(bands, start=1):
                masks = (masks.movedim(axis, -1) @ band).movedim(-1, axis)
        return masks[:, None] * activations[image]

    strength = normalised(activations.abs().amax(1)).flatten(1)  # 0 is a place like any other: it comes last
    scores = rescore(math.prod(grid), activations=alone, priority=1 + strength)
    ran = scores != -torch.inf
    lowest = scores.masked_fill(~ran, torch.inf).amin(1, keepdim=True)
    return torch.where(ran, scores, torch.where(lowest == torch.inf, 0.0, lowest)).view(-1, *grid)


def _band(extent: int, like: Tensor) -> Tensor:
    """Returns (extent, extent): what the weights 1/4, 1/2, 1/4 make of every place on one axis."""
    distance = (torch.arange(extent)[:, None] - torch.arange(extent)).abs()
    return torch.where(distance <= 1, 0.5 / (1 + distance), 0.0).to(like)


def _blend(values: Tensor, masks: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the sum of the masks (count, *size) with weights (N, count), a few masks at a time. -> (N, *size)"""
    parts = torch.split(torch.arange(values.shape[1], device=values.device), 64)
    total: Tensor = torch.tensordot(values[:, parts[0]], masks(parts[0]).to(values), 1)
    for part in parts[1:]:
        total += torch.tensordot(values[:, part], masks(part).to(values), 1)
    return total
