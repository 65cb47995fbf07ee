"""Estimates of consistency that do not depend on the number of images, and their intervals by resampling images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from konkyo.metrics.distances import TOP, Distance, class_means, distances
from konkyo.utils.statistics import CENTRAL, t_quantile

_CHUNK = 4_000_000  # numbers that are held at once
_LEAST = 1e-300  # of a logarithm's argument


def corrected_distances(maps: Tensor, of: Tensor, classes: int, distance: Distance) -> Tensor:
    """Returns the distance of every map from a mean of its class in which it counts less than the others. -> (n,)

    From the mean of all n maps a map's distance is too small, for it is in that mean; from the mean of the others it is
    too large, for that mean varies, too. Here each counts w = sqrt(n (n - 1)) - (n - 1), about a half, and the others
    count 1. For "mse" the mean of these distances is the variance divided by n - 1, and expects the distance of a new
    map from the mean map of the population exactly. `maps`: (n, g, g) in classes (n,) of two or more.
    """
    mean, _, counts = class_means(maps, of, classes)
    number = counts[of].to(maps.dtype)[:, None, None]
    weight = (number * (number - 1)).sqrt() - (number - 1)
    return distances(maps, (number * mean[of] - (1 - weight) * maps) / (number - 1 + weight), distance)


@dataclass(frozen=True, eq=False)
class Resampled:
    """The numbers of R resamples, for their spread: they are smaller than those of the maps themselves."""

    of_class: Tensor
    """(R, K) L of every class; NaN of a class without maps."""
    value: Tensor
    """(R,) L of all maps."""
    of_within: Tensor
    """(R, K) what every class adds to W; 0 of a class without maps."""
    within: Tensor
    """(R,) W."""
    ratio: Tensor
    """(R,) W / T, whose W is corrected for unequal weights: T is not smaller in a resample, so their ratio would be."""


def resampled(
    maps: Tensor, of: Tensor, classes: int, distance: Distance, resamples: int, generator: torch.Generator
) -> Resampled:
    """Draws weights of the images within each class; mean maps, distances and variances are computed with them.

    The weights are exponential numbers divided by their sum (the Bayesian bootstrap; Rubin, 1981), so that no resample
    is of one image only, as it would often be with three of them. L is the weighted mean of the distances from the
    weighted mean map. `maps`: (n, g, g) in classes (n,) of two or more.
    """
    number, cells = len(maps), maps.shape[1] * maps.shape[2]
    centred = (maps - maps.mean(0)).flatten(1)
    squares = centred.square().sum(1)
    values = maps.new_full((resamples, classes), math.nan)
    within, second = maps.new_zeros(resamples, classes), maps.new_zeros(resamples)
    first = maps.new_zeros(resamples, cells)
    total, corrected = maps.new_zeros(resamples), maps.new_zeros(resamples)
    for index in torch.unique(of).tolist():
        members = of == index
        count = int(members.sum())
        weights = _weights(resamples, count, generator)
        values[:, index] = _mean_distances(maps[members], weights, distance)
        means = weights @ centred[members]
        square = weights @ squares[members]
        spread = (square - means.square().sum(1)).clamp_min(0)
        within[:, index] = (count - 1) * spread
        corrected += (count - 1) * spread / (1 - weights.square().sum(1))
        total += count * values[:, index]
        second += count * square
        first += count * means
    everything = second - first.square().sum(1) / number
    kinds = len(torch.unique(of))
    freedom = max(1, number - kinds)
    ratio = (corrected / freedom) / (everything / (number - 1)).clamp_min(_LEAST)
    within = within / cells / freedom
    return Resampled(values, total / number, within, within.sum(1), ratio)


def interval(value: float, resamples: Tensor, parts: Tensor, counts: Tensor) -> tuple[float, float]:
    """Returns the 95 % interval of a positive number by the spread of its logarithm over resamples (R,).

    It reaches value * exp(-+ t c s), where s is the standard deviation of the logarithms. Weights of the n images of a
    class vary too little, so the variance of what a class adds, `parts` (R, K), counts (n + 1) / (n - 1) times: v. c^2
    is the sum of v over the sum of those variances, and t Student's of (sum v)^2 / sum(v^2 / (n - 1)) degrees of
    freedom (Satterthwaite, 1946). Of K classes of one size and spread these are (n + 1) / (n - 1) and K (n - 1).
    `counts` (K,): images of every class; classes with fewer than two are left out. (NaN, NaN) where nothing varies, or
    is not known.
    """
    several = counts > 1
    if len(resamples) < 2 or not several.any() or not value > 0:
        return math.nan, math.nan
    images, raw = counts[several].double(), parts[:, several].double().var(0)
    variances = raw * (images + 1) / (images - 1)
    total = float(variances.sum())
    if not (math.isfinite(total) and total > 0):
        return math.nan, math.nan
    freedom = max(1.0, total**2 / float((variances.square() / (images - 1)).sum()))  # 1 but for rounding
    spread = float(resamples.clamp_min(_LEAST).log().std()) * math.sqrt(total / float(raw.sum()))
    if not math.isfinite(spread):
        return math.nan, math.nan
    factor = math.exp(min(700.0, t_quantile((1 + CENTRAL) / 2, freedom) * spread))
    return value / factor, value * factor


def _weights(resamples: int, count: int, generator: torch.Generator) -> Tensor:
    """Returns weights of `count` images, rows of sum 1, all of them likely alike. -> (resamples, count) float64"""
    shares = torch.empty(resamples, count, dtype=torch.float64).exponential_(generator=generator)
    return shares / shares.sum(1, keepdim=True)


def _mean_distances(maps: Tensor, weights: Tensor, kind: Distance) -> Tensor:
    """Returns the weighted mean distance of maps (n, g, g) from their weighted mean, for weights (R, n). -> (R,)

    It equals `distances`, by products of matrices: R means and n maps are compared in one of them. Only "js" has to
    look at every cell of every pair.
    """
    flat = maps.flatten(1)
    means = weights @ flat
    if kind == "js":
        return _mean_divergences(flat, means, weights)
    rows = max(1, _CHUNK // len(flat))
    parts = zip(torch.split(means, rows), torch.split(weights, rows), strict=True)
    if kind == "mse":
        return torch.cat([(w * _square_distances(m, flat)).sum(1) for m, w in parts]) / flat.shape[1]
    if kind == "l2_over_hw":
        return torch.cat([(w * _square_distances(m, flat).sqrt()).sum(1) for m, w in parts]) / flat.shape[1]
    if kind == "centre":
        places = _centres(maps)
        centres = [(w, _centres(m.view(-1, *maps.shape[1:]))) for m, w in parts]
        return torch.cat([(w * torch.cdist(c, places)).sum(1) for w, c in centres]) / math.sqrt(2)
    if kind == "top_iou":
        top, counts = _top(flat), _top(flat).sum(1)
        shares = []
        for m, w in parts:
            of_mean = _top(m)
            both = of_mean @ top.T
            shares.append((w * both / (of_mean.sum(1, keepdim=True) + counts - both).clamp_min(1)).sum(1))
        return 1 - torch.cat(shares)
    if kind == "pearson":
        flat, means = (values - values.mean(1, keepdim=True) for values in (flat, means))
    directions = torch.nn.functional.normalize(flat, dim=1, eps=1e-150)
    return 1 - (torch.nn.functional.normalize(means, dim=1, eps=1e-150) * (weights @ directions)).sum(1)


def _square_distances(means: Tensor, flat: Tensor) -> Tensor:
    """Returns the squared distances of every mean (R, P) from every map (n, P). -> (R, n)"""
    products = means @ flat.T
    return (means.square().sum(1, keepdim=True) + flat.square().sum(1) - 2 * products).clamp_min(0)


def _mean_divergences(flat: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    """Returns weighted means of Jensen-Shannon divergences in bits. (n, P), (R, P), (R, n) -> (R,)"""
    one, other = (values / values.sum(1, keepdim=True) for values in (flat, means))
    of_maps, of_mean = _entropies(one), _entropies(other)
    rows = max(1, _CHUNK // flat.numel())
    mixed = [
        (w[:, :, None] * _summands((m[:, None] + one) / 2)).sum((1, 2))
        for m, w in zip(torch.split(other, rows), torch.split(weights, rows), strict=True)
    ]
    return (torch.cat(mixed) - (weights @ of_maps + of_mean) / 2).clamp_min(0)


def _entropies(shares: Tensor) -> Tensor:
    return _summands(shares).sum(1)


def _summands(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp_min(1e-12).log2())


def _centres(maps: Tensor) -> Tensor:
    """Returns the centres of mass, y and x from 0 to 1. (N, g, g) -> (N, 2)"""
    steps = (torch.arange(maps.shape[1], dtype=maps.dtype) + 0.5) / maps.shape[1]
    total = maps.sum((1, 2))
    return torch.stack([maps.sum(2) @ steps / total, maps.sum(1) @ steps / total], 1)


def _top(flat: Tensor) -> Tensor:
    """Returns 1 for the highest cells of each map, as "top_iou" takes them, else 0. (N, P) -> (N, P)"""
    least = flat.topk(max(1, round(TOP * flat.shape[1])), dim=1).values[:, -1:]
    return ((flat >= least) & (flat > 0)).to(flat.dtype)
