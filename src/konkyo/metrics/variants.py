"""What metrics that ask the model share: variants of images in chunks, orders of pixels, and what hides them."""

from collections.abc import Callable

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.metrics.base import Explain, Score
from konkyo.utils.baselines import Baseline, baseline_images
from konkyo.utils.tensors import at_least_float32, resize, safe_divide

_ORDER, _NOISE = 0x5EED, 0xF1117  # so that two uses of one seed draw different numbers


def over_variants(
    count: int,
    images: Tensor,
    ask: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    *,
    draw: Callable[[int], Tensor] | None = None,
    shape: tuple[int, ...] = (),
) -> Tensor:
    """Asks about `count` variants of every image, `batch` variants of any images at a time. -> (R, count, ...)

    `ask` gets rows and variants, (V,) int64 each; where there is `draw`, what it drew for the variants, (V, ...), which
    is the same for all rows. `shape` is that of an answer where there are no images to ask about.
    """
    if batch < 1:
        raise KonkyoError(f"batch is a number of images, 1 or more; got {batch}")
    total, answers = len(images) * count, []
    if not total:
        return images.new_zeros(len(images), count, *shape, dtype=torch.promote_types(images.dtype, torch.float32))
    for start in range(0, total, batch):
        stop = min(start + batch, total)
        places = torch.arange(start, stop, device=images.device)
        rows, variants = places % len(images), places.div(len(images), rounding_mode="floor")
        if draw is not None:
            first, last = start // len(images), (stop - 1) // len(images)
            variants = torch.stack([draw(k) for k in range(first, last + 1)])[variants - first]
        answers.append(ask(rows, variants))
    values = torch.cat(answers)
    return values.view(count, len(images), *values.shape[1:]).transpose(0, 1)


def scores_of(score: Score, variants: Tensor, rows: Tensor) -> Tensor:
    """Returns the scores (V,) of variants, in 32 bits at least."""
    scores = score(variants, rows)
    if scores.shape != rows.shape:
        raise KonkyoError(f"score gives one number per variant, ({len(rows)},); got {tuple(scores.shape)}")
    return at_least_float32(scores)


def scores_of_images(score: Score, images: Tensor, batch: int) -> Tensor:
    """Returns the score of every image itself (R, 1)."""
    return over_variants(1, images, lambda rows, _: scores_of(score, images[rows], rows), batch)


def maps_of(explain: Explain, variants: Tensor, rows: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
    """Returns the maps (V, h, w) of variants, in 32 bits at least; enlarged to `size` where it is given."""
    maps = explain(variants, rows)
    if maps.ndim != variants.ndim - 1 or len(maps) != len(rows):
        raise KonkyoError(f"explain gives one map per variant, ({len(rows)}, h, w); got {tuple(maps.shape)}")
    maps = at_least_float32(maps)
    return resize(maps, size) if size else maps


def seeded(seed: int, use: int = 0) -> torch.Generator:
    """Makes a random generator that no other use of the seed shares."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + use) % 2**63)


def ranks(maps: Tensor, seed: int) -> Tensor:
    """Counts how many pixels of the map come before each, from its highest value down. (R, H, W) -> (R, H, W) int32

    Equal values are in random order, the same for all maps.
    """
    flat = maps.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=seeded(seed, _ORDER)).to(maps.device)
    place = torch.arange(flat.shape[1], device=maps.device, dtype=torch.int32)
    ranking = torch.empty(flat.shape, dtype=torch.int32, device=maps.device)
    for start in range(0, len(flat), 64):  # the sort needs several times their memory
        order = shuffled[flat[start : start + 64, shuffled].argsort(dim=1, descending=True, stable=True)]
        ranking[start : start + 64].scatter_(1, order, place.expand_as(order))
    return ranking.view(maps.shape)


def absent(maps: Tensor) -> Tensor:
    """Tells where there is no map: one of its values is no number. (R, H, W) -> (R,) bool"""
    flat = maps.flatten(1)
    return ~(flat.amax(1).isfinite() & flat.amin(1).isfinite())


def filler(
    which: Baseline, images: Tensor, pixels: Tensor | None, seed: int, sample: int = 0
) -> Callable[[Tensor], Tensor]:
    """Returns what fills the pixels of the images of `rows`: rows (V,) -> (V or 1, C or 1, H or 1, W or 1).

    "blur" is RISE's; the others are as in `konkyo.utils.baselines`, black and white from `pixels`. Noise is one image
    per seed and sample, for all rows.
    """
    if isinstance(which, str) and which == "blur":
        fill = torch.cat([_rise_blur(part) for part in torch.split(images, 16)])
    elif pixels is None and isinstance(which, str) and which in ("black", "white", "noise"):
        raise KonkyoError(f"{which} pixels need `pixels`: (2, C), a black and a white one as prepared for the network")
    else:
        colours = [None, None] if pixels is None else pixels.to(images).view(2, 1, -1, *[1] * (images.ndim - 2))
        black, white = colours
        fill = baseline_images(which, images, black=black, white=white, generator=seeded(seed, _NOISE + sample))
    return lambda rows: fill if len(fill) == 1 else fill[rows]


def uniform(images: Tensor, seed: int, sample: int) -> Tensor:
    """Draws uniform numbers from 0 to 1, (C, H, W), the same for all images; others for every `sample`."""
    shape = images.shape[1:]
    return torch.rand(shape, generator=seeded(seed, _NOISE + sample)).to(images)


def gaussian(images: Tensor, seed: int, sample: int) -> Tensor:
    """Draws normal numbers of deviation 1, (C, H, W), the same for all images; others for every `sample`."""
    return torch.randn(images.shape[1:], generator=seeded(seed, _NOISE + sample)).to(images)


def _rise_blur(images: Tensor) -> Tensor:
    """Applies RISE's blur: 11 x 11, nearly a box, zeros around the image. (N, C, *size) -> (N, C, *size)

    Their kernel is a point under a Gaussian of 5 pixels that is mirrored at the borders of the 11 x 11 window.
    """
    reach = torch.arange(-20, 21)
    weights = torch.exp(-(reach**2) / 50)
    at = (5 + reach) % 22
    kernel = torch.zeros(11).index_add_(0, torch.where(at > 10, 21 - at, at), weights / weights.sum()).to(images)
    for axis in range(2, images.ndim):
        rows = images.movedim(axis, -1)
        smooth = torch.nn.functional.conv1d(rows.reshape(-1, 1, rows.shape[-1]), kernel.view(1, 1, 11), padding=5)
        images = smooth.view(rows.shape).movedim(-1, axis)
    return images


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Computes their linear correlation, NaN where one of them is constant. (R, T), (R, T) -> (R,)"""
    constant = (one.amax(1) == one.amin(1)) | (other.amax(1) == other.amin(1))
    one, other = (values - values.mean(1, keepdim=True) for values in (one, other))
    one, other = (safe_divide(values, values.abs().amax(1, keepdim=True)) for values in (one, other))  # tiny squares
    correlation = safe_divide((one * other).sum(1), one.norm(dim=1) * other.norm(dim=1)).clamp(-1, 1)
    return correlation.masked_fill(constant, torch.nan)


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Computes the linear correlation of their ranks, equal values sharing the mean rank. (R, T), (R, T) -> (R,)"""
    return pearson(*(mean_ranks(values) for values in (one, other)))


def mean_ranks(values: Tensor) -> Tensor:
    """Returns every value's place from the lowest up, from 0; equal values share the mean one. (R, T) -> (R, T)"""
    ordered, values = values.sort(1).values.contiguous(), values.contiguous()
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).to(torch.float64) / 2


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Computes the structural similarity (Wang et al., 2004) of maps in [0, 1], NaN where one is constant. -> (R,)

    The mean over all windows of 11 places a side that lie inside the maps (fewer where the maps are smaller), weighted
    by a Gaussian of 1.5, with sample covariances. (R, *grid), (R, *grid). KonkyoError: maps of fewer than 3 places.
    """
    shortest = min(one.shape[1:])
    side = min(11, shortest - (shortest + 1) % 2)
    if side < 3:
        raise KonkyoError(f"structural similarity compares maps of 3 places a side or more; got {tuple(one.shape)}")
    reach = torch.arange(side) - side // 2
    kernel = torch.exp(-(reach**2) / (2 * 1.5**2)).double()
    kernel = (kernel / kernel.sum()).to(one.device)

    def mean(values: Tensor) -> Tensor:
        for axis in range(1, values.ndim):
            values = values.unfold(axis, side, 1) @ kernel
        return values

    a, b = one.double(), other.double()
    count = side ** (one.ndim - 1)
    mean_a, mean_b = mean(a), mean(b)
    of_a, of_b, both = (
        (mean(product) - means) * count / (count - 1)
        for product, means in ((a * a, mean_a**2), (b * b, mean_b**2), (a * b, mean_a * mean_b))
    )
    small, smaller = 0.01**2, 0.03**2
    alike = (2 * mean_a * mean_b + small) * (2 * both + smaller)
    alike = alike / ((mean_a**2 + mean_b**2 + small) * (of_a + of_b + smaller))
    constant = (one.flatten(1).amax(1) == one.flatten(1).amin(1)) | (
        other.flatten(1).amax(1) == other.flatten(1).amin(1)
    )
    values: Tensor = alike.flatten(1).mean(1).masked_fill(constant, torch.nan).to(one)
    return values
