"""pHash against a literal transcription, and planted duplicates among drawn pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from konkyo.data.hashes import Hashes, is_grey, near_pairs, perceptual_hash
from konkyo.data.sets.scenes import Scenes

PICTURES = [scene.image for scene in (Scenes(24, seed=5, size=96)[i] for i in range(24))]


def transcribed(picture: Image.Image) -> list[bool]:
    """Computes the hash sum by sum: DCT-II of 32 x 32 grey pixels, 8 x 8 lowest coefficients against their median."""
    small = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    pixels = [[small.getpixel((x, y)) for x in range(32)] for y in range(32)]
    cosines = [[math.cos(math.pi * (2 * i + 1) * k / 64) for i in range(32)] for k in range(8)]
    lowest = [
        4 * sum(pixels[y][x] * cosines[v][y] * cosines[u][x] for y in range(32) for x in range(32))
        for v in range(8)
        for u in range(8)
    ]
    ordered = sorted(lowest)
    median = (ordered[31] + ordered[32]) / 2
    return [value > median for value in lowest]


@pytest.mark.parametrize("index", range(3))
def test_the_hash_is_that_of_its_definition(index: int) -> None:
    assert perceptual_hash(PICTURES[index]).tolist() == transcribed(PICTURES[index])
    mirrored = perceptual_hash(PICTURES[index], mirrored=True)
    assert (mirrored != perceptual_hash(ImageOps.mirror(PICTURES[index]))).sum() <= 2  # resizing rounds


def saved_again(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cropped(picture: Image.Image) -> Image.Image:
    edge = 0.025 * picture.width
    return picture.crop((round(edge), round(edge), round(picture.width - edge), round(picture.height - edge)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 30": saved_again,
    "half size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    "crop to 95 %": cropped,
    "mirrored": ImageOps.mirror,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_other_pictures_are_not(change: str) -> None:
    copies = [CHANGES[change](picture) for picture in PICTURES]
    pairs, histogram = near_pairs(Hashes.of(iter(copies)), Hashes.of(iter(PICTURES)), 10)
    own = {pair.first for pair in pairs if pair.first == pair.second}
    assert len(own) >= (20 if change == "crop to 95 %" else 23)
    assert all(pair.first == pair.second for pair in pairs)
    assert histogram.sum() == 24 * 24


def test_pairs_within_a_set_come_once_and_nearest_first() -> None:
    pictures = [PICTURES[0], PICTURES[1], saved_again(PICTURES[1]), PICTURES[0], PICTURES[2]]
    pairs, histogram = near_pairs(Hashes.of(iter(pictures)), None, 10)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 3), (1, 2)]
    assert pairs[0].distance == 0
    assert histogram.sum() == 10


def test_the_distance_is_the_smaller_of_both_ways() -> None:
    one, other = Hashes.of(iter(PICTURES[:3])), Hashes.of(iter(PICTURES[3:6]))
    (start, block), *rest = one.distances(other)
    assert (start, rest) == (0, [])
    for i in range(3):
        for j in range(3):
            both = [(one.upright[i] != bits[j]).sum() for bits in (other.upright, other.mirrored)]
            assert block[i, j] == min(both)


def test_flat_pictures_have_one_hash_whatever_their_grey() -> None:
    flat = [perceptual_hash(Image.new("RGB", (50, 40), (v, v, v))) for v in (40, 128, 250)]
    assert all((bits == flat[0]).all() for bits in flat)
    assert flat[0].sum() == 1


def test_grey_is_told_from_colour_and_survives_jpeg() -> None:
    grey = PICTURES[0].convert("L").convert("RGB")
    assert is_grey(saved_again(grey))
    assert not is_grey(PICTURES[0])


def test_no_pictures_have_no_pairs() -> None:
    pairs, histogram = near_pairs(Hashes.of(iter([])), None, 10)
    assert pairs == []
    assert np.all(histogram == 0)
