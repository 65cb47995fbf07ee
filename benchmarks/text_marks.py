"""Measures how well a printed label in a corner is told from other pictures, with a white box behind it and without.

python benchmarks/text_marks.py DIR [DIR ...]   # folders of pictures, every second of them; a minute for 600
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from konkyo.data.images import find_images, open_image
from konkyo.evaluation.diagnose.text import text_mark

LETTERS = list("ABCDEFGHKLMNPRSTUXYZ0123456789")
Corner = tuple[int, int, int, int]


def labelled(picture: Image.Image, generator: np.random.Generator, box: bool) -> tuple[Image.Image, Corner]:
    """Returns the picture with seven characters in a corner, a quarter as wide as it, and where they are."""
    marked = picture.copy()
    width, height = picture.width // 4, picture.height // 8
    right, below = picture.width - width, picture.height - height
    x, y = [(0, 0), (right, 0), (0, below), (right, below)][generator.integers(4)]
    pen = ImageDraw.Draw(marked)
    if box:
        pen.rectangle((x, y, x + width - 1, y + height - 1), fill="white")
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", max(8, int(0.7 * height)))
    words = "".join(generator.choice(LETTERS, 7))
    pen.text((x + 2, y + 1), words, fill="black" if box else "white", font=font)
    return marked, (x, y, x + width, y + height)


def auroc(positive: list[float], negative: list[float]) -> float:
    difference = np.array(positive)[:, None] - np.array(negative)
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def main() -> None:
    head = ["data", "pictures", "clean: 99 % below", "box: 99 % above", "AUROC", "found at the box", "no box: AUROC"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for folder in map(Path, sys.argv[1:]):
        generator = np.random.default_rng(0)
        clean, boxed, bare, hits = list[float](), list[float](), list[float](), list[bool]()
        for path in find_images(folder)[::2]:
            picture = open_image(path)
            clean.append(text_mark(picture).score)
            marked, (x0, y0, x1, y1) = labelled(picture, generator, box=True)
            mark = text_mark(marked)
            boxed.append(mark.score)
            hits.append(mark.box[0] < x1 and mark.box[2] > x0 and mark.box[1] < y1 and mark.box[3] > y0)
            bare.append(text_mark(labelled(picture, generator, box=False)[0]).score)
        numbers = [np.percentile(clean, 99), np.percentile(boxed, 1), auroc(boxed, clean)]
        cells = [*(f"{number:.2f}" for number in numbers), f"{np.mean(hits):.0%}", f"{auroc(bare, clean):.2f}"]
        print(f"| {folder.name} | {len(clean)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
