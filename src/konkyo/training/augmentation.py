"""What happens to pictures before a network in training sees them: mirrored and cut at random, or as maps guide it.

Guided by maps: pasted where something is to be seen, cut where nothing is. Tensors in, tensors out, whole batches on
their device. A blank map says nothing about places: there the place is drawn at random, and the functions are CutMix
(Yun et al., 2019) and Cutout (DeVries & Taylor, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from konkyo.errors import KonkyoError
from konkyo.metrics.distances import blank
from konkyo.models import Preprocess
from konkyo.utils.tensors import at_least_float32, resize


def augmented(preprocess: Preprocess, least: float = 0.9) -> Callable[[Image.Image], Tensor]:
    """Returns what mirrors half of the pictures and cuts a part of every one, as large as the network wants.

    A part has from `least` to all of the area. Parts are from 3/4 to 4/3 times as wide as high. Draws from the global
    random state, as torchvision does.
    """
    from torchvision.transforms import v2

    side = preprocess.side
    size = (side, side) if isinstance(side, int) else side
    change = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(size, scale=(least, 1.0))])
    then = Preprocess(None, None, preprocess.mean, preprocess.std)

    def prepare(image: Image.Image) -> Tensor:
        return then(change(image.convert("RGB" if len(preprocess.mean) == 3 else "L")))

    return prepare


class Mixed(NamedTuple):
    """The batch holds images that are mixed of two."""

    images: Tensor
    """(N, C, H, W)"""
    labels: Tensor
    """(N, K) shares of sum 1, by area; `cross_entropy` takes them as they are."""
    pasted: Tensor
    """(N, H, W) bool: where the second image is; to mix masks alike."""
    source: Tensor
    """(N,) int64: which image of the batch is the second."""


def saliency_mix(images: Tensor, labels: Tensor, maps: Tensor, generator: torch.Generator) -> Mixed:
    """Pastes on every image a patch of another, around the peak of that one's map.

    SaliencyMix (Uddin et al., 2021). The sources are a permutation of the batch. lambda is uniform, Beta(1, 1), for
    every image. The patch has the sides W sqrt(1 - lambda) and H sqrt(1 - lambda), in whole pixels. Its middle is the
    highest pixel of the source's map; it is cut off at the border, and lands where it was. Labels are mixed by the area
    that it really has. (The authors' code draws one lambda for the batch and takes the peak of one image for all.) A
    blank map's peak is drawn at random.

    `labels` (N, K): one-hot, or mixed before. `maps` (N, h, w) on any grid. KonkyoError: shapes that do not match.
    """
    _require(images, maps)
    if labels.ndim != 2 or len(labels) != len(images) or not labels.is_floating_point():
        raise KonkyoError(
            f"labels are shares (N, K), as of functional.one_hot(labels, K).float(); got {tuple(labels.shape)} "
            f"{labels.dtype}"
        )
    count, (height, width) = len(images), images.shape[2:]
    source = torch.randperm(count, generator=generator, device=generator.device).to(images.device)
    share, y, x = _uniform((3, count), generator, images)
    peak = resize(at_least_float32(maps[source]), (height, width)).flatten(1).argmax(1)
    lost = blank(maps)[source]
    y = torch.where(lost, (y * height).long(), peak // width)
    x = torch.where(lost, (x * width).long(), peak % width)
    root = (1 - share).sqrt()
    tall, wide = (height * root).long(), (width * root).long()
    pasted = _rectangles(y - tall // 2, x - wide // 2, y + tall // 2, x + wide // 2, (height, width))
    area = pasted.flatten(1).sum(1, keepdim=True).to(labels) / (height * width)
    return Mixed(
        torch.where(pasted[:, None], images[source], images),
        (1 - area) * labels + area * labels[source],
        pasted,
        source,
    )


def keep_salient_cutout(
    images: Tensor, maps: Tensor, generator: torch.Generator, *, side: int, tau: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Sets a square to 0 that matters less than most. -> (images, cut)

    KeepAugment's selective cut (Gong et al., 2021). The square is drawn from the squares of `side` pixels in the image
    whose importance, the map's sum over them, is below the tau-quantile of all squares'. The paper's importance is the
    gradient of the label's logit by the image, the largest size over channels. `maps` (N, h, w) on any grid, as they
    are. Where no square is below the quantile (a blank map), all are drawn from. 0 is the mean colour of a normalised
    image. `cut` (N, H, W) bool. KonkyoError: shapes that do not match, a square that does not fit, tau outside (0, 1).
    """
    cut = _square(images, maps, generator, side, tau, below=True)
    return images.masked_fill(cut[:, None], 0), cut


def keep_salient_paste(
    images: Tensor, augmented: Tensor, maps: Tensor, generator: torch.Generator, *, side: int, tau: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Puts a square that matters back into images that anything augmented. -> (images, square)

    KeepAugment's selective paste. `square` (N, H, W) bool. The square of `side` pixels is drawn from those whose
    importance in `maps`, of the `images`, is above the tau-quantile, else as in `keep_salient_cutout`. The augmentation
    must leave things where they are (colour, noise, blur). KonkyoError: as there.
    """
    if augmented.shape != images.shape:
        raise KonkyoError(f"as many augmented images as images were expected; got {tuple(augmented.shape)}")
    square = _square(images, maps, generator, side, tau, below=False)
    return torch.where(square[:, None], images, augmented), square


def _square(images: Tensor, maps: Tensor, generator: torch.Generator, side: int, tau: float, *, below: bool) -> Tensor:
    """Returns (N, H, W) bool, a square per image, with an importance below or above the quantile."""
    _require(images, maps)
    height, width = images.shape[2:]
    if not 1 <= side <= min(height, width) or not 0 < tau < 1:
        raise KonkyoError(
            f"a side from 1 to {min(height, width)} pixels and tau in (0, 1) were expected; got {side} and {tau}"
        )
    importance = resize(at_least_float32(maps), (height, width))[:, None]
    sums = functional.avg_pool2d(functional.avg_pool2d(importance, (side, 1), 1), (1, side), 1)[:, 0]
    flat = sums.flatten(1)
    quantile = flat.kthvalue(math.ceil(tau * flat.shape[1]), dim=1, keepdim=True).values
    fitting = flat < quantile if below else flat > quantile
    anywhere = blank(maps)[:, None] | ~fitting.any(1, keepdim=True)
    keys = _uniform(tuple(flat.shape), generator, images)  # the largest of many is any of them alike
    place = torch.where(fitting | anywhere, keys, -1.0).argmax(1)
    y, x = place // sums.shape[2], place % sums.shape[2]
    return _rectangles(y, x, y + side, x + side, (height, width))


def _rectangles(top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns (N, H, W) bool, from top and left to before bottom and right, cut off at the border."""
    ys, xs = (torch.arange(n, device=top.device) for n in size)
    rows = (ys >= top[:, None]) & (ys < bottom[:, None])
    return rows[:, :, None] & ((xs >= left[:, None]) & (xs < right[:, None]))[:, None]


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Numbers in [0, 1), drawn where the generator is."""
    return torch.rand(shape, generator=generator, device=generator.device).to(like.device)


def _require(images: Tensor, maps: Tensor) -> None:
    if images.ndim != 4 or maps.ndim != 3 or len(maps) != len(images):
        raise KonkyoError(
            f"images (N, C, H, W) and a map (N, h, w) for each were expected; got {tuple(images.shape)} and "
            f"{tuple(maps.shape)}"
        )
