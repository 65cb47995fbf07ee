"""This tells whether a map stays when the image hardly changes."""

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.metrics.base import Explain, metric
from konkyo.metrics.variants import absent, maps_of, over_variants, pearson, uniform


@metric(better="lower")
def max_sensitivity(
    images: Tensor, explain: Explain, *, radius: float = 0.02, samples: int = 10, seed: int = 0, batch: int = 32
) -> Tensor:
    """Max-sensitivity (Yeh et al., 2019) is how far the map goes, at most, when the image moves a little.

    max over samples of ||map(x + d) - map(x)|| / ||map(x)||. d is uniform in [-`radius`, `radius`] of the prepared
    image's units in every value, the same for all images. -> (R,), NaN where map(x) is 0 everywhere. Both maps are the
    method's own, at its layer's resolution. Cost: `samples` explanations and one more.
    """
    _check_noise(radius, samples)

    def first(rows: Tensor, _: Tensor) -> Tensor:
        return maps_of(explain, images[rows], rows)

    def far(rows: Tensor, noise: Tensor) -> Tensor:
        maps = maps_of(explain, images[rows] + radius * (2 * noise - 1), rows)
        return _length(maps - still[rows])

    still = over_variants(1, images, first, batch, shape=(1, 1))[:, 0]
    moves = over_variants(samples, images, far, batch, draw=lambda k: uniform(images, seed, k))
    length = _length(still)
    return moves.amax(1) / length.masked_fill(length == 0, torch.nan)


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


def _length(maps: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(maps.flatten(1), dim=1)
    return lengths


def _check_noise(radius: float, samples: int) -> None:
    if samples < 1 or not radius > 0:
        raise KonkyoError(f"samples >= 1 and radius > 0 were expected; got {samples} and {radius}")
