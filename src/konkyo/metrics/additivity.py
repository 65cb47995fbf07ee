"""These metrics tell whether a map's values are what pixels do to the score: sums of values against its changes."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.metrics.base import Score, metric
from konkyo.metrics.variants import (
    absent,
    filler,
    over_variants,
    pearson,
    ranks,
    scores_of,
    scores_of_images,
    seeded,
    spearman,
)
from konkyo.utils.baselines import Baseline
from konkyo.utils.tensors import per_item, resize, safe_divide


@metric(better="lower")
def infidelity(
    raw: Tensor,
    images: Tensor,
    score: Score,
    *,
    kind: Literal["gaussian", "square"] = "gaussian",
    holds_input: bool | None = None,
    baseline: float = 0.0,
    std: float = 0.2,
    side: int = 16,
    samples: int = 1000,
    scaling: Literal["none", "optimal"] = "none",
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Infidelity (Yeh et al., 2019) is how far the map is from foretelling what perturbations do to the score.

    mean over perturbations I of (I . a - (s(x) - s(x - I)))^2 -> (R,). `holds_input` says what kind of map a is. False:
    the score's slope per unit of a pixel (`gradient`), the same for all channels, and I . a = sum over pixels of (sum
    over channels of I) a. True: what each pixel adds to the score (input x gradient, Integrated Gradients, occlusion).
    Then I takes a share rho of every pixel, I = rho (x - `baseline`), and I . a = sum over pixels of rho a. None: True
    for squares, as the authors' code has it, and False for noise.

    `kind` "square": `side` pixels at a random place become the `baseline`, rho = 1. "gaussian": I is noise of `std` in
    the prepared image's units; with `holds_input` rho is noise of `std`, one number for all channels of a pixel. So
    maps of both kinds see the same squares, but other noise. Maps that are smaller than the image are enlarged, which
    leaves no units. `scaling` "optimal" multiplies each map by the number that serves it best first, as in the authors'
    code. Cost: `samples` forwards and one more.
    """
    if samples < 1 or side < 1 or not 0 < std < math.inf or not math.isfinite(baseline):
        raise KonkyoError(
            "infidelity needs samples >= 1, side >= 1, std > 0 and a finite baseline; "
            f"got {samples}, {side}, {std} and {baseline}"
        )
    holds_input = kind == "square" if holds_input is None else holds_input
    size = tuple(images.shape[2:])
    attribution = resize(raw.float(), size)
    whole = scores_of_images(score, images, batch)[:, 0]

    def draw(sample: int) -> Tensor:
        """Returns the perturbation of this number: noise (C, H, W), or shares of the pixels (1, *size)."""
        generator = seeded(seed, sample)
        if kind == "gaussian":
            channels = 1 if holds_input else images.shape[1]
            return std * torch.randn(channels, *size, generator=generator).to(images)
        square = torch.zeros(1, *size)
        wide = [min(side, n) for n in size]
        starts = [int(torch.randint(n - w + 1, (), generator=generator)) for n, w in zip(size, wide, strict=True)]
        where = [slice(at, at + w) for at, w in zip(starts, wide, strict=True)]
        square[0][tuple(where)] = 1
        return square.to(images)

    def compared(rows: Tensor, perturbation: Tensor) -> Tensor:
        shares = holds_input or kind == "square"
        change = perturbation * (images[rows] - baseline) if shares else perturbation
        amount = perturbation[:, 0] if holds_input else change.sum(1)
        predicted = (amount.to(attribution) * attribution[rows]).flatten(1).sum(1)
        falls = whole[rows] - scores_of(score, images[rows] - change, rows)
        return torch.stack([predicted.to(falls), falls], 1)

    predicted, falls = over_variants(samples, images, compared, batch, draw=draw, shape=(2,)).unbind(2)
    if scaling == "optimal":
        predicted = predicted * safe_divide((predicted * falls).sum(1), (predicted**2).sum(1))[:, None]
    return ((predicted - falls) ** 2).mean(1).masked_fill(absent(raw), torch.nan)


@metric(better="higher")
def sensitivity_n(
    maps: Tensor,
    images: Tensor,
    score: Score,
    *,
    share: float = 0.1,
    samples: int = 100,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Sensitivity-n (Ancona et al., 2018) tells whether sums over n random pixels foretell how far the score falls.

    The value is a correlation over `samples` random sets of n = `share` of the pixels. It relates the sum of the map
    over the set to the fall of the score when the set becomes 0 of the prepared image, in all channels. -> (R,), NaN
    where either does not vary. The paper draws it over all n. Cost: `samples` forwards and one more.
    """
    if not 0 < share < 1:
        raise KonkyoError(f"share is between 0 and 1; got {share}")
    area = math.prod(maps.shape[1:])
    return _foretold(maps, images, score, None, max(1, round(share * area)), "zero", samples, seed, batch)


@metric(better="higher")
def faithfulness_correlation(
    maps: Tensor,
    images: Tensor,
    score: Score,
    pixels: Tensor | None = None,
    *,
    subset: int = 224,
    substrate: Baseline = "zero",
    samples: int = 100,
    subsets: Literal["random", "ranked"] = "random",
    groups: int = 50,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Faithfulness correlation (Bhatt et al., 2020) tells whether sums over random pixels foretell how the score falls.

    As `sensitivity_n`, but of sets of `subset` pixels that take the `substrate`. -> (R,), NaN where either does not
    vary. So few pixels of so many hardly move a network: expect values near 0, and take more where they are all there.

    `subsets` "ranked" is the faithfulness estimate (Alvarez-Melis & Jaakkola, 2018): all pixels, cut in the map's order
    into `groups` of equal size, each hidden alone. Cost: `samples` or `groups` forwards and one more.
    """
    if subsets == "ranked":
        group = _groups(maps, groups, seed)
        sums = _sums(maps, group, groups)
        whole = scores_of_images(score, images, batch)
        falls = whole - _without_group(group, groups, images, filler(substrate, images, pixels, seed), score, batch)
        return pearson(sums.to(falls), falls).masked_fill(absent(maps), torch.nan)
    subset = min(subset, math.prod(maps.shape[1:]))
    return _foretold(maps, images, score, pixels, subset, substrate, samples, seed, batch)


def _foretold(
    maps: Tensor,
    images: Tensor,
    score: Score,
    pixels: Tensor | None,
    size: int,
    substrate: Baseline,
    samples: int,
    seed: int,
    batch: int,
) -> Tensor:
    """Correlates sums over random sets of `size` pixels with the fall of the score when they are hidden. -> (R,)"""
    if samples < 2 or size < 1:
        raise KonkyoError(f"2 samples of a pixel at least were expected; got {samples} of {size}")
    hidden = filler(substrate, images, pixels, seed)

    def draw(sample: int) -> Tensor:
        chosen = torch.zeros(math.prod(maps.shape[1:]), dtype=torch.bool)
        chosen[torch.randperm(len(chosen), generator=seeded(seed, sample))[:size]] = True
        return chosen.view(maps.shape[1:]).to(maps.device)

    def compared(rows: Tensor, chosen: Tensor) -> Tensor:
        left = scores_of(score, torch.where(chosen[:, None], hidden(rows), images[rows]), rows)
        return torch.stack([(maps[rows] * chosen).flatten(1).sum(1).to(left), -left], 1)

    sums, falls = over_variants(samples, images, compared, batch, draw=draw, shape=(2,)).unbind(2)
    whole = scores_of_images(score, images, batch)
    return pearson(sums, falls + whole).masked_fill(absent(maps), torch.nan)


@metric(better="higher")
def monotonicity(
    maps: Tensor,
    images: Tensor,
    score: Score,
    pixels: Tensor,
    *,
    groups: int = 50,
    samples: int = 10,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Monotonicity (Nguyen & Martinez, 2020) tells whether what has the larger attribution moves the score further.

    Pixels are split in `groups` of equal size in the map's order, without its sign. The value is the rank correlation
    over groups of sum |a| and the mean of (s(x) - s(x'))^2. In x' the group's pixels take random values between black
    and white, `samples` times. -> (R,), NaN where either does not vary. The paper takes each feature for a group. Cost:
    `groups` times `samples` forwards and one more.
    """
    if samples < 1:
        raise KonkyoError(f"a sample at least was expected; got {samples}")
    group = _groups(maps.abs(), groups, seed)
    sums = _sums(maps.abs(), group, groups)
    whole = scores_of_images(score, images, batch)
    squares = torch.zeros_like(sums, dtype=whole.dtype)
    for sample in range(samples):
        other = filler("noise", images, pixels, seed, sample)
        squares += (_without_group(group, groups, images, other, score, batch) - whole) ** 2
    return spearman(sums.to(squares), squares).masked_fill(absent(maps), torch.nan)


def _groups(maps: Tensor, groups: int, seed: int) -> Tensor:
    """Cuts the pixels, from the map's highest down, into groups of equal size. -> (R, H, W) int64. KonkyoError."""
    area = math.prod(maps.shape[1:])
    if not 2 <= groups <= area:
        raise KonkyoError(f"2 to {area} groups were expected, as many as pixels at most; got {groups}")
    return ranks(maps, seed).long().mul_(groups).div_(area, rounding_mode="floor")


def _sums(maps: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums the map over every group of pixels. -> (R, groups)"""
    return maps.new_zeros(len(maps), groups).scatter_add_(1, group.flatten(1), maps.flatten(1))


def _without_group(
    group: Tensor, groups: int, images: Tensor, hidden: Callable[[Tensor], Tensor], score: Score, batch: int
) -> Tensor:
    """Scores the images with every group of pixels hidden in its turn.

    `group` (R, H, W): the group of a pixel. -> (R, groups)
    """

    def without(rows: Tensor, which: Tensor) -> Tensor:
        inside = group[rows] == per_item(which, group)
        return scores_of(score, torch.where(inside[:, None], hidden(rows), images[rows]), rows)

    return over_variants(groups, images, without, batch)


@metric(better="lower")
def completeness_error(
    raw: Tensor,
    images: Tensor,
    score: Score,
    pixels: Tensor | None = None,
    *,
    baseline: Literal["zero", "black"] = "zero",
    relative: bool = True,
    batch: int = 32,
) -> Tensor:
    """Completeness error (Sundararajan et al., 2017) is how far the map's sum is from what the image adds to the score.

    |sum a - (s(I) - s(b))|, for `relative` divided by |s(I) - s(b)|, NaN where that is 0. -> (R,). The sum is over the
    map as the method gave it, at its layer's resolution. The `baseline` b is the one that the method went from: "zero"
    of the prepared image (its mean colour), or "black". Only methods of paths claim to be complete. Cost: two forwards.
    """
    hidden = filler(baseline, images, pixels, 0)

    def end(rows: Tensor, which: Tensor) -> Tensor:
        return scores_of(score, torch.where(per_item(which == 1, images), hidden(rows), images[rows]), rows)

    whole, nothing = over_variants(2, images, end, batch).unbind(1)
    added = whole - nothing
    error = (raw.flatten(1).to(added).sum(1) - added).abs()
    return error / added.abs().masked_fill(added == 0, torch.nan) if relative else error
