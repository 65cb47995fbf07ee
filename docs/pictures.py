"""Draws docs/assets/methods/NAME.jpg: every method on one scene, for both of its objects, with the models that ship.

python docs/pictures.py [NAME ...]
python docs/pictures.py checkpoints    (docs/assets/checkpoints.webp, by the code of docs/cookbook/checkpoints.md)
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

import konkyo
from konkyo.draw.sheets import save_image

FOLDER = Path(__file__).resolve().parent / "assets" / "methods"
SEED, INDEX, SIDE, GAP = 2033, 0, 200, 6


def main() -> None:
    """A picture per method: the scene, the map of its first class, the map of its second."""
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    classifier, detector = konkyo.load("konkyo/scenes-classifier"), konkyo.load("konkyo/scenes-detr")
    scene = konkyo.data.scenes.Scenes(INDEX + 1, seed=SEED, size=256, objects=2)[INDEX]
    classes = konkyo.Each(*[konkyo.data.scenes.CLASSES[label] for label in scene.labels.tolist()])
    for name in sys.argv[1:] or konkyo.methods():
        method = konkyo.methods()[name]
        of_instances = method.score == "similarity" or method.function.__module__ == "konkyo.methods.odam"
        model, target = (detector, konkyo.Detections(top=2)) if of_instances else (classifier, classes)
        found = konkyo.explanations(model, scene.image, [name], target=target)[name]
        if isinstance(found, konkyo.NotApplicable):
            print(f"{name}: {found}")  # noqa: T201 - what a reader of the terminal wants to know
            continue
        cells = [scene.image, *(found.overlay(row) for row in range(2))]
        sheet = Image.new("RGB", (3 * SIDE + 2 * GAP, SIDE), "white")
        for i, cell in enumerate(cells):
            sheet.paste(cell.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (i * (SIDE + GAP), 0))
        save_image(sheet, FOLDER / f"{name}.jpg")


def checkpoints() -> None:
    """The image whose map changes most between the two checkpoints of the cookbook: before, and after."""
    page = (FOLDER.parents[1] / "cookbook" / "checkpoints.md").read_text(encoding="utf-8")
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        names: dict[str, Any] = {}
        exec("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)), names)
        row = names["alike"].argmin().item()
        sheet = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
        for i, when in enumerate(("before", "after")):
            sheet.paste(Image.open(f"{row}-{when}.png").convert("RGB").resize((SIDE, SIDE)), (i * (SIDE + GAP), 0))
    save_image(sheet, FOLDER.parent / "checkpoints.webp")


if __name__ == "__main__":
    checkpoints() if sys.argv[1:] == ["checkpoints"] else main()
