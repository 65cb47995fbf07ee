"""These metrics tell whether a map stays when the image hardly changes."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.metrics.base import Decided, Explain, Outputs, metric
from konkyo.metrics.variants import absent, gaussian, maps_of, over_variants, pearson, uniform
from konkyo.utils.tensors import normalised, per_item

_LEAST = 1e-6
"""What stands for a divisor that is 0."""


@metric(better="lower")
def max_sensitivity(
    images: Tensor, explain: Explain, *, radius: float = 0.02, samples: int = 10, seed: int = 0, batch: int = 32
) -> Tensor:
    """Max-sensitivity (Yeh et al., 2019) is how far the map goes, at most, when the image moves a little.

    max over samples of ||map(x + d) - map(x)|| / ||map(x)||. d is uniform in [-`radius`, `radius`] of the prepared
    image's units in every value, the same for all images. -> (R,), NaN where map(x) is 0 everywhere. Both maps are the
    method's own, at its layer's resolution. Cost: `samples` explanations and one more.
    """
    return _sensitivities(images, explain, radius, samples, seed, batch).amax(1)


@metric(better="lower")
def average_sensitivity(
    images: Tensor, explain: Explain, *, radius: float = 0.02, samples: int = 10, seed: int = 0, batch: int = 32
) -> Tensor:
    """Average sensitivity (Bhatt et al., 2020) is how far the map goes on average when the image moves a little.

    The mean over samples of what `max_sensitivity` takes the maximum of, with the same noise: it grows less with their
    number. -> (R,), NaN where map(x) is 0 everywhere. Cost: `samples` explanations and one more.
    """
    return _sensitivities(images, explain, radius, samples, seed, batch).mean(1)


@metric(better="lower")
def local_lipschitz(
    images: Tensor,
    explain: Explain,
    *,
    std: float = 0.1,
    samples: int = 10,
    norm: Literal[1, 2] = 2,
    normalise: bool = False,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Local Lipschitz estimate (Alvarez-Melis & Jaakkola, 2018) is how fast the map moves, at most, with the image.

    max over samples of |map(x + d) - map(x)| / |d|_2, d normal noise of `std` in the prepared image's units, the same
    for all images. -> (R,) The maps are the method's own, at its layer's resolution, so their units count: the value is
    0 for the gradient of a linear network, at most max |w| for its input x gradient. `normalise` divides every map by
    its largest absolute value first, which lets methods be compared; NaN where map(x) is 0 everywhere then. `norm` 1
    sums the map's moves instead of their squares, as the test of continuity does (Montavon et al., 2018). Cost:
    `samples` explanations and one more.
    """
    _check_noise(std, samples, "std")

    def of(variants: Tensor, rows: Tensor) -> Tensor:
        maps = maps_of(explain, variants, rows)
        return normalised(maps) if normalise else maps

    def speed(rows: Tensor, noise: Tensor) -> Tensor:
        moved = of(images[rows] + std * noise, rows) - still[rows]
        distance: Tensor = torch.linalg.vector_norm(moved.flatten(1), ord=norm, dim=1)
        return distance / (std * _length(noise)).to(distance)

    still = _undisturbed(images, lambda rows: of(images[rows], rows), batch)
    speeds = over_variants(samples, images, speed, batch, draw=lambda k: gaussian(images, seed, k)).amax(1)
    return speeds.masked_fill(_length(still) == 0, torch.nan) if normalise else speeds


@metric(better="lower")
def relative_stability(
    images: Tensor,
    explain: Explain,
    outputs: Outputs | None = None,
    decided: Decided | None = None,
    *,
    kind: Literal["input", "output"] = "input",
    samples: int = 10,
    radius: float = 0.05,
    floor: float = 0.01,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Relative stability (Agarwal et al., 2022) is how far the map moves, at most, relative to what moved it.

    max over samples x' of |(a - a') / a|_2 / |(x - x') / x|_2, a and a' the maps of x and x', or for `kind` "output"
    of |(a - a') / a|_2 / |y - y'|_2, y the network's raw `outputs`. Noise as in `max_sensitivity`. Where `decided` is
    given, only samples on which the network still decides the same count: NaN where none is, and where map(x) is 0
    everywhere. Divisors a and x are at least `floor` of their largest absolute value, with their sign: otherwise the
    value is one of the pixels where they are almost 0, as most of a rectified map are. 0 is the authors' (1e-6 for a
    divisor of 0). -> (R,) Cost: `samples` explanations and one more; for "output", or with `decided`, as many forwards.
    """
    _check_noise(radius, samples)
    if not 0 <= floor < 1:
        raise KonkyoError(f"floor of relative_stability is a share in [0, 1); got {floor}")
    if kind == "output" and outputs is None:
        raise KonkyoError("relative_stability of kind 'output' needs outputs: variants, rows -> the network's (V, K)")

    def answer(variants: Tensor, rows: Tensor) -> Tensor:
        return outputs(variants, rows).flatten(1).to(images.dtype) if outputs and kind == "output" else variants

    def ratio(rows: Tensor, noise: Tensor) -> Tensor:
        noisy = images[rows] + radius * (2 * noise - 1)
        again = maps_of(explain, noisy, rows)
        moved = _length((again - still[rows]) / _divisor(still[rows], floor))
        if kind == "output":
            cause = _length(answer(noisy, rows) - first[rows])
        else:
            cause = _length((noisy - images[rows]) / _divisor(images[rows], floor))
        value = moved / cause.to(moved).clamp_min(_LEAST)
        same = torch.ones_like(rows, dtype=torch.bool) if decided is None else decided(noisy, rows)
        return value.masked_fill(~same, -torch.inf)

    still = _undisturbed(images, lambda rows: maps_of(explain, images[rows], rows), batch)
    first = over_variants(1, images, lambda rows, _: answer(images[rows], rows), batch, shape=images.shape[1:])[:, 0]
    largest = over_variants(samples, images, ratio, batch, draw=lambda k: uniform(images, seed, k)).amax(1)
    return largest.masked_fill((largest == -torch.inf) | (_length(still) == 0), torch.nan)


@metric(better="higher")
def map_stability(
    maps: Tensor,
    images: Tensor,
    explain: Explain,
    *,
    radius: float = 0.1,
    samples: int = 10,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Map stability is how alike the map and the maps of noisy copies of the image are.

    The mean over samples of their linear correlation, the noise as in `max_sensitivity` but larger. -> (R,), 1 for maps
    that stay as they are, NaN where one is constant. Ours, of the kind that Alvarez-Melis & Jaakkola (2018) ask for.
    A map that does not look at the model is as stable as can be: read it beside a test of parameters. Cost: `samples`
    explanations.
    """
    _check_noise(radius, samples)
    size = tuple(maps.shape[1:])

    def alike(rows: Tensor, noise: Tensor) -> Tensor:
        noisy = maps_of(explain, images[rows] + radius * (2 * noise - 1), rows, size)
        return pearson(maps[rows].flatten(1), noisy.flatten(1).to(maps))

    correlations = over_variants(samples, images, alike, batch, draw=lambda k: uniform(images, seed, k)).mean(1)
    return correlations.masked_fill(absent(maps), torch.nan)


def _undisturbed(images: Tensor, of: Callable[[Tensor], Tensor], batch: int) -> Tensor:
    """Returns what there is of the images themselves, for their rows (V,) -> (V, ...), batch by batch."""
    return over_variants(1, images, lambda rows, _: of(rows), batch, shape=(1, 1))[:, 0]


def _length(maps: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(maps.flatten(1), dim=1)
    return lengths


def _sensitivities(images: Tensor, explain: Explain, radius: float, samples: int, seed: int, batch: int) -> Tensor:
    """Returns how far the map goes with every sample of noise, as a share of its length. -> (R, samples)"""
    _check_noise(radius, samples)

    def far(rows: Tensor, noise: Tensor) -> Tensor:
        maps = maps_of(explain, images[rows] + radius * (2 * noise - 1), rows)
        return _length(maps - still[rows])

    still = _undisturbed(images, lambda rows: maps_of(explain, images[rows], rows), batch)
    moves = over_variants(samples, images, far, batch, draw=lambda k: uniform(images, seed, k))
    length = _length(still)
    return moves / length.masked_fill(length == 0, torch.nan)[:, None]


def _divisor(values: Tensor, floor: float) -> Tensor:
    """Returns values (R, ...) whose size is at least `floor` of the largest of their row; never 0."""
    least = per_item(floor * values.flatten(1).abs().amax(1), values)
    size = torch.maximum(values.abs(), least)
    return torch.where(values < 0, -size, size).masked_fill(size == 0, _LEAST)


def _check_noise(radius: float, samples: int, name: str = "radius") -> None:
    if samples < 1 or not radius > 0:
        raise KonkyoError(f"samples >= 1 and {name} > 0 were expected; got {samples} and {radius}")
