"""These metrics tell whether the score depends on what a map points at: pixels go or come in the order of the map."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.metrics.base import Decided, Explain, Score, auc, metric
from konkyo.metrics.imputation import impute
from konkyo.metrics.variants import absent, filler, maps_of, over_variants, pearson, ranks, scores_of, scores_of_images
from konkyo.utils.baselines import Baseline
from konkyo.utils.segments import Count, Segmentation, segment_means, segments_of
from konkyo.utils.tensors import min_max, per_item

Protocol = Literal["rise", "odam", "seed"]
Where = Literal["image", "context"]


@metric(better="lower", summary=auc)
def deletion(
    maps: Tensor,
    images: Tensor,
    score: Score,
    budget: Tensor | None = None,
    pixels: Tensor | None = None,
    part: Tensor | None = None,
    *,
    protocol: Protocol = "rise",
    where: Where = "image",
    steps: int = 100,
    substrate: Baseline | None = None,
    patch: int = 1,
    every: int | None = None,
    normalise: Literal[True, False, None] = None,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Deletion (Petsiuk et al., 2018) scores the image while pixels are taken away, the map's highest first.

    -> (R, 1 + `steps` / `every`), the scores after t = 0, `every`, 2 `every`, ..., `steps` steps. The value is the area
    under the curve, whose places are evenly spaced; low is good. Pixels of equal value go in random order. `budget` is
    how many pixels go in all: those of the image unless given. For a detection it is the area of its box, so that the
    area under the curve is a share of the box. None of the options is the protocol's own:

    - "rise", the paper's, for classifiers: `substrate` "zero", every step scored, not normalised. Step t has taken
      round(t / steps budget) pixels: even to a pixel, where the paper takes 224 at a time and a shorter last step.
    - "odam" (Zhao & Chan, 2023), for detections: "noise", every tenth step scored, divided by the first score, which
      must not be 0. Step t has taken t max(1, floor(budget / steps)) pixels.
    - "seed" (Nakai et al., 2025): as "odam", every step scored.

    `where` "context" takes nothing away from the `part` whose output is explained, the region of a segmentation: what
    is measured is whether the map knows the context that counts. NaN where there is none.

    `substrate`: "zero" is 0 of the prepared image, "blur" RISE's 11 x 11 pixels, "black", "white", the image's "mean"
    colour, or "noise", uniform between black and white, one image for all maps and steps; or a value of the prepared
    image, or a prepared image (C, H, W). `patch` takes squares of so many pixels instead of pixels, that of the largest
    sum first: with as many steps as there are squares it is selectivity (Montavon et al., 2018). `normalise` divides by
    the score of the image itself, NaN where it is 0. Cost: a forward per point.
    """
    default: Baseline = "zero" if protocol == "rise" else "noise"
    hidden = filler(default if substrate is None else substrate, images, pixels, seed)
    fixed, rank, counts = _course(maps, budget, part, where, protocol, steps, every, patch, seed)

    def without(rows: Tensor, point: Tensor) -> Tensor:
        gone = (rank[rows] < per_item(counts[rows, point], rank)) & ~fixed[rows]
        return scores_of(score, torch.where(gone[:, None], hidden(rows), images[rows]), rows)

    curve = _nan_where_undefined(over_variants(counts.shape[1], images, without, batch), maps, counts)
    divide = protocol != "rise" if normalise is None else normalise
    return _divided(curve, curve[:, :1]) if divide else curve


@metric(better="higher", summary=auc)
def insertion(
    maps: Tensor,
    images: Tensor,
    score: Score,
    budget: Tensor | None = None,
    pixels: Tensor | None = None,
    part: Tensor | None = None,
    *,
    protocol: Protocol = "rise",
    where: Where = "image",
    steps: int = 100,
    substrate: Baseline | None = None,
    patch: int = 1,
    every: int | None = None,
    normalise: Literal[True, False, None] = None,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Insertion (Petsiuk et al., 2018) scores the image while pixels come back, the map's highest first.

    -> (R, 1 + `steps` / `every`); a high value is good. All as in `deletion`, but that the image starts as the
    substrate and its own pixels come in. "rise" starts from the "blur", "odam" and "seed" from "black"; none of them
    normalises. The first point of "odam" is 0, not measured, as in the authors' code.
    """
    default: Baseline = "blur" if protocol == "rise" else "black"
    hidden = filler(default if substrate is None else substrate, images, pixels, seed)
    fixed, rank, counts = _course(maps, budget, part, where, protocol, steps, every, patch, seed)
    first = 1 if protocol == "odam" else 0

    def within(rows: Tensor, point: Tensor) -> Tensor:
        shown = (rank[rows] < per_item(counts[rows, first + point], rank)) | fixed[rows]
        return scores_of(score, torch.where(shown[:, None], images[rows], hidden(rows)), rows)

    curve = over_variants(counts.shape[1] - first, images, within, batch)
    curve = _nan_where_undefined(torch.cat([curve.new_zeros(len(maps), first), curve], 1), maps, counts)
    if not normalise:
        return curve
    return _divided(curve, scores_of_images(score, images, batch))


@metric(better="higher", summary=auc)
def deviation(
    maps: Tensor,
    images: Tensor,
    score: Score,
    pixels: Tensor | None = None,
    *,
    steps: int = 100,
    substrate: Baseline = "blur",
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Deviation tells how soon an estimated number moves while pixels are taken away, the map's strongest first.

    |y_t - y_0| / |y_T - y_0|, y_t the score after t of T = `steps` steps of `deletion`: 0 for the whole image, 1 for
    the bare `substrate`, more where it moves further in between. A map ranks pixels by its magnitude, as what lowers
    the number is evidence like what raises it. -> (R, 1 + `steps`), NaN where y_T = y_0; the value is the area under
    the curve, and high is good. Cost: a forward per point.
    """
    curve = deletion.function(
        maps.abs(), images, score, None, pixels, steps=steps, substrate=substrate, seed=seed, batch=batch
    )
    moved = (curve - curve[:, :1]).abs()
    return _divided(moved, moved[:, -1:])


def _course(
    maps: Tensor,
    budget: Tensor | None,
    part: Tensor | None,
    where: Where,
    protocol: Protocol,
    steps: int,
    every: int | None,
    patch: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the pixels that stay (R, H, W), the place of each in the order, and how many places every point takes.

    KonkyoError: patches of no size, of a part, or of a budget of pixels.
    """
    fixed, order, budget = _where(maps, budget, part, where)
    if patch == 1:
        return fixed, ranks(order, seed), _counts(maps, budget, protocol, steps, every)
    if patch < 1 or where != "image" or budget is not None:
        raise KonkyoError(
            f"patch is a side in pixels, 1 or more, and larger ones are of whole images: where='image', no budget; got "
            f"{patch}, where={where!r}" + ("" if budget is None else " and a budget")
        )
    blocks = maps
    for axis in range(1, maps.ndim):  # sums over squares, smaller ones at the far borders
        starts = range(0, maps.shape[axis], patch)
        blocks = torch.stack([blocks.narrow(axis, s, min(patch, maps.shape[axis] - s)).sum(axis) for s in starts], axis)
    rank = ranks(blocks, seed)
    for axis, extent in enumerate(maps.shape[1:], 1):
        rank = rank.repeat_interleave(patch, axis).narrow(axis, 0, extent)
    return fixed, rank, _counts(blocks, None, protocol, steps, every)


def _where(
    maps: Tensor, budget: Tensor | None, part: Tensor | None, where: Where
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the pixels that stay as they are (R, H, W), the maps by which the others are ordered, and their budget.

    KonkyoError: the context of no part.
    """
    if where == "image":
        return torch.zeros_like(maps, dtype=torch.bool), maps, budget
    if part is None or part.shape != maps.shape:
        came = None if part is None else tuple(part.shape)
        raise KonkyoError(
            f"where='context' needs `part`: {tuple(maps.shape)} bool, the region of a dense output that is explained; "
            f"got {came}"
        )
    outside = (~part).flatten(1).sum(1)
    budget = outside if budget is None else torch.minimum(outside, budget.to(outside))
    return part, maps.masked_fill(part, -torch.inf), budget


def _counts(maps: Tensor, budget: Tensor | None, protocol: Protocol, steps: int, every: int | None) -> Tensor:
    """Returns how many pixels are changed at every point of the curve. -> (R, 1 + steps / every) int64"""
    every = every or (10 if protocol == "odam" else 1)
    if steps < 1 or every < 1 or steps % every:
        raise KonkyoError(f"steps >= 1 that `every` divides were expected; got {steps} and {every}")
    area = math.prod(maps.shape[1:])
    budget = torch.full((len(maps),), area, device=maps.device) if budget is None else budget.to(maps.device)
    step = torch.arange(0, steps + 1, every, device=maps.device)
    if protocol == "rise":
        whole = budget.long().clamp(max=area)[:, None]
        return (2 * step * whole + steps).div(2 * steps, rounding_mode="floor")  # t / steps budget, rounded
    each_step = budget.long().div(steps, rounding_mode="floor").clamp(min=1)
    each_step = each_step.where(budget > 0, 0)
    return (step * each_step[:, None]).clamp(max=area)


def _nan_where_undefined(curve: Tensor, maps: Tensor, counts: Tensor) -> Tensor:
    """Returns the curves, NaN where there is no map or nothing to change."""
    return curve.masked_fill((absent(maps) | (counts[:, -1] <= 0))[:, None], torch.nan)


def _divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Returns the quotient, NaN where the denominator is 0."""
    return numerator / denominator.masked_fill(denominator == 0, torch.nan)


@metric(better="lower")
def average_drop(maps: Tensor, images: Tensor, score: Score, *, batch: int = 32) -> Tensor:
    """Average drop (Chattopadhay et al., 2018) is the share of the score that is lost when only the map's part is seen.

    max(0, Y - O) / Y, Y = score(I), O = score(I * map), the map min-max scaled. I is as prepared for the network: what
    the map hides gets the mean colour. -> (R,) shares, NaN where Y <= 0. Cost: two forwards.
    """
    whole, part = _seen_through(maps, images, score, batch)
    return _drop(whole, part)


@metric(better="higher")
def increase_in_confidence(maps: Tensor, images: Tensor, score: Score, *, batch: int = 32) -> Tensor:
    """Increase in confidence (Chattopadhay et al., 2018) tells whether the map's part alone scores higher.

    [Y < O], as in `average_drop`. -> (R,) 0 or 1.
    """
    whole, part = _seen_through(maps, images, score, batch)
    return (whole < part).to(whole).masked_fill(part.isnan(), torch.nan)


@metric(better="higher")
def average_gain(maps: Tensor, images: Tensor, score: Score, *, batch: int = 32) -> Tensor:
    """Average gain (Zhang et al., 2024) is the share of what the score lacks that the map's part alone wins.

    max(0, O - Y) / (1 - Y), as in `average_drop`, of scores that are probabilities. -> (R,) shares, NaN where Y >= 1.
    """
    whole, part = _seen_through(maps, images, score, batch)
    return (part - whole).clamp(min=0) / (1 - whole).masked_fill(whole >= 1, torch.nan)


@metric(better="higher")
def coherency(maps: Tensor, images: Tensor, explain: Explain, *, batch: int = 32) -> Tensor:
    """Coherency (Poppi et al., 2021) tells whether the map stays as it is when only the map's part is seen.

    (1 + r) / 2, r the correlation of map(I) and map(I * map(I)), the latter's factor min-max scaled. -> (R,) shares,
    NaN where one of the maps is constant. Cost: an explanation.
    """
    shown, size = min_max(maps), tuple(maps.shape[1:])

    def again(rows: Tensor, _: Tensor) -> Tensor:
        return maps_of(explain, images[rows] * shown[rows, None].to(images), rows, size)

    repeated = over_variants(1, images, again, batch, shape=size)
    return ((1 + pearson(maps.flatten(1), repeated[:, 0].flatten(1).to(maps))) / 2).masked_fill(absent(maps), torch.nan)


@metric(better="higher")
def adcc(maps: Tensor, images: Tensor, score: Score, explain: Explain, *, batch: int = 32) -> Tensor:
    """ADCC (Poppi et al., 2021) is the harmonic mean of coherency, simplicity and what is left of the score.

    3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - average drop)), complexity the mean of the min-max scaled map.
    It is 0 where one of the terms is, NaN where one is not defined. Of every image, where the paper's table takes the
    mean of each term first. Cost: two forwards and an explanation.
    """
    complexity = min_max(maps).flatten(1).mean(1)
    drop = _drop(*_seen_through(maps, images, score, batch))
    terms = torch.stack([coherency.function(maps, images, explain, batch=batch), 1 - complexity, 1 - drop], 1)
    return _harmonic_mean(terms)


def _harmonic_mean(terms: Tensor) -> Tensor:
    """Returns the harmonic mean of terms (R, T) from 0 up: 0 where one is 0, NaN where one is not defined. -> (R,)"""
    mean = terms.shape[1] / (1 / terms).sum(1)  # 1 / 0 is infinite, and what infinity divides is 0
    return mean.where(terms.isfinite().all(1), torch.nan)


def _seen_through(maps: Tensor, images: Tensor, score: Score, batch: int) -> tuple[Tensor, Tensor]:
    """Scores the images, and the images times their scaled maps, NaN where there is none. -> (R,), (R,)"""
    shown = min_max(maps)

    def half(rows: Tensor, masked: Tensor) -> Tensor:
        factor = torch.where(per_item(masked, shown) == 1, shown[rows], 1.0)
        return scores_of(score, images[rows] * factor[:, None].to(images), rows)

    whole, part = over_variants(2, images, half, batch).unbind(1)
    return whole, part.masked_fill(absent(maps), torch.nan)


def _drop(whole: Tensor, part: Tensor) -> Tensor:
    return (whole - part).clamp(min=0) / whole.masked_fill(whole <= 0, torch.nan)


def _gap(answers: Tensor) -> Tensor:
    """Returns the mean difference of answers (R, 2, T), most and least relevant first. -> (R,)"""
    return (answers[:, 1] - answers[:, 0]).mean(1)


def _half_the_gap(scores: Tensor) -> Tensor:
    """Returns half the mean difference of scores (R, 2, T), most and least relevant first. -> (R,)"""
    return _gap(scores) / 2


@metric(better="higher", summary=_half_the_gap)
def road(
    maps: Tensor, images: Tensor, score: Score, *, steps: int = 9, noise: float = 0.01, seed: int = 0, batch: int = 32
) -> Tensor:
    """ROAD (Rong et al., 2022) scores images whose most, or least, relevant pixels are filled from around them.

    -> (R, 2, `steps`), [most relevant first, least relevant first] with k / (steps + 1) of the pixels gone, k = 1 ...
    `steps`: 10 % to 90 %; 4 steps are 20, 40, 60 and 80 %. The value is the mean of half the difference, least minus
    most, in the score's units. Pixels are filled by noisy linear imputation (`impute`) and chosen by rank, so that a
    map with many zeros loses as many pixels as any other. Cost: a forward and an imputation for every score.
    """
    return _imputed(maps, images, lambda variants, rows: scores_of(score, variants, rows), steps, noise, seed, batch)


@metric(better="higher", summary=_gap)
def road_accuracy(
    maps: Tensor,
    images: Tensor,
    decided: Decided,
    *,
    steps: int = 9,
    noise: float = 0.01,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """ROAD's accuracy (Rong et al., 2022) is how often the decision outlives pixels filled from around them.

    -> (R, 2, `steps`), 1 where the network still decides what is explained, else 0, in the order and at the shares of
    `road`: [most relevant first, least relevant first]. Averaged over a data set these are the paper's two curves,
    of which the first should fall soon and the second late. The value is the mean of their difference, least minus
    most, from -1 to 1. Cost: a forward and an imputation for every point.
    """

    def stays(variants: Tensor, rows: Tensor) -> Tensor:
        return decided(variants, rows).to(torch.promote_types(images.dtype, torch.float32))

    return _imputed(maps, images, stays, steps, noise, seed, batch)


@metric(better="higher")
def arcc(
    maps: Tensor,
    images: Tensor,
    score: Score,
    explain: Explain,
    *,
    steps: int = 4,
    noise: float = 0.01,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """ARCC (2026) is the harmonic mean of coherency, simplicity and ROAD, where ADCC has the average drop.

    3 / (1 / coherency + 1 / (1 - complexity) + 1 / clip(2 road, 0, 1)), complexity the mean of the min-max scaled map,
    `road` at 20, 40, 60 and 80 % (`steps` 4). -> (R,) It is 0 where one of the terms is, NaN where one is not defined.
    As pytorch-grad-cam computes it (its documentation says geometric mean). `score` gives probabilities: of logits
    twice ROAD is no share. Cost: 2 `steps` forwards and imputations, and an explanation.
    """
    complexity = min_max(maps).flatten(1).mean(1)
    gap = _half_the_gap(road.function(maps, images, score, steps=steps, noise=noise, seed=seed, batch=batch))
    terms = [coherency.function(maps, images, explain, batch=batch), 1 - complexity, (2 * gap).clamp(0, 1)]
    return _harmonic_mean(torch.stack(terms, 1))


def _imputed(maps: Tensor, images: Tensor, ask: Score, steps: int, noise: float, seed: int, batch: int) -> Tensor:
    """Asks about images whose most, or least, relevant pixels are imputed. -> (R, 2, steps)"""
    if steps < 1:
        raise KonkyoError(f"road needs steps >= 1; got {steps}")
    rank, area = ranks(maps, seed), math.prod(maps.shape[1:])

    def filled(rows: Tensor, point: Tensor) -> Tensor:
        least, step = point // steps == 1, point % steps + 1
        count = (2 * step * area + steps + 1).div(2 * (steps + 1), rounding_mode="floor")
        count, least = per_item(count, maps), per_item(least, maps)
        gone = torch.where(least, rank[rows] >= area - count, rank[rows] < count)
        return ask(impute(images[rows], gone, noise=noise, seed=seed), rows)

    answers = over_variants(2 * steps, images, filled, batch).masked_fill(absent(maps)[:, None], torch.nan)
    return answers.reshape(len(maps), 2, steps)


@metric(better="higher")
def irof(
    maps: Tensor,
    images: Tensor,
    score: Score,
    pixels: Tensor | None = None,
    *,
    segments: Segmentation = "slic",
    count: Count = 50,
    substrate: Baseline = "mean",
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """IROF (Rieger & Hansen, 2020) is how soon the score falls while segments are taken away, the highest first.

    mean over l of 1 - s_l / s_0, s_l the score without the l segments whose mean of the map is highest, l = 1 ... d; of
    equal segments the first goes first. What goes becomes the `substrate`, the image's mean colour. -> (R,), NaN where
    s_0 is 0. `segments`: superpixels by "slic" (about `count`), "quickshift" or "felzenszwalb", which need scikit-image
    and `pixels`; a "grid" of about `count` cells or of (rows, columns); or segments (H, W) or (R, H, W) of one's own.
    Cost: a forward per segment and one more.
    """
    if pixels is None and isinstance(segments, str) and segments != "grid":
        raise KonkyoError(f"segments by {segments} need `pixels`: (2, C), a black and a white one as prepared")
    black, white = images.new_tensor([[0.0], [1.0]]) if pixels is None else pixels.to(images)
    labels = segments_of(images, segments, count, black=black, white=white) if len(images) else maps.long()
    hidden = filler(substrate, images, pixels, seed)
    means, sizes = segment_means(maps[:, None], labels)
    most = sizes.shape[1]
    means = means[:, 0].masked_fill(sizes == 0, -torch.inf)  # numbers that no pixel has come last
    place = means.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    rank, number = place.gather(1, labels.flatten(1)).view(labels.shape), (sizes > 0).sum(1)

    def without(rows: Tensor, point: Tensor) -> Tensor:
        gone = rank[rows] < per_item(point, rank)
        return scores_of(score, torch.where(gone[:, None], hidden(rows), images[rows]), rows)

    curve = over_variants(most + 1, images, without, batch)
    falls = 1 - _divided(curve[:, 1:], curve[:, :1])
    there = torch.arange(most, device=falls.device) < number[:, None].to(falls.device)
    return (falls.where(there, 0.0).sum(1) / there.sum(1)).masked_fill(absent(maps), torch.nan)
