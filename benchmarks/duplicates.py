"""Measures how often changed copies of pictures are found as duplicates, and how often other pictures are.

python benchmarks/duplicates.py DIR [DIR ...]   # folders of pictures, about a second per 100 pictures and folder
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from konkyo.data.hashes import Hashes, is_grey, near_pairs
from konkyo.data.images import find_images, open_image
from konkyo.evaluation.diagnose.duplicates import LIMIT, LIMIT_GREY

LONGEST = 512
"""Pictures are made that long at most before they are changed, to save time."""


def saved_again(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    def crop(picture: Image.Image) -> Image.Image:
        x, y = picture.width * (1 - share) / 2, picture.height * (1 - share) / 2
        return picture.crop((round(x), round(y), round(picture.width - x), round(picture.height - y)))

    return crop


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 30": saved_again,
    "half size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "brightness x 1.3": lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    "crop to 95 %": cropped(0.95),
    "crop to 90 %": cropped(0.9),
    "mirrored": ImageOps.mirror,
    "turned by 2 degrees": lambda picture: picture.rotate(2),
}


def row(folder: Path) -> str:
    """Returns a row of the table: other pictures at both limits, the nearest pair, and the changed copies found."""
    pictures = [open_image(path) for path in find_images(folder)]
    for picture in pictures:
        picture.thumbnail((LONGEST, LONGEST))
    hashes = Hashes.of(iter(pictures))
    _, histogram = near_pairs(hashes, None, 0)
    near = [int(histogram[: limit + 1].sum()) for limit in (LIMIT_GREY, LIMIT)]
    closest = int(np.flatnonzero(histogram)[0])
    cells = [folder.name, f"{len(pictures)} ({np.mean([is_grey(p) for p in pictures]):.0%})", str(histogram.sum())]
    cells += [f"{near[0]} / {near[1]}", str(closest)]
    for change in CHANGES.values():
        copies = Hashes.of(change(picture) for picture in pictures)
        own = np.concatenate(
            [block[range(len(block)), range(at, at + len(block))] for at, block in copies.distances(hashes)]
        )
        cells.append(f"{np.mean(own <= LIMIT_GREY):.0%} / {np.mean(own <= LIMIT):.0%}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    head = [
        "data",
        "pictures (grey)",
        "pairs",
        "pairs at <= 6 / 10",
        "closest",
        *(f"found: {name}" for name in CHANGES),
    ]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for folder in sys.argv[1:]:
        print(row(Path(folder)), flush=True)


if __name__ == "__main__":
    main()
