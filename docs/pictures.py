"""Draws docs/assets/methods/NAME.jpg: every method on one scene, for both of its objects, with the models that ship.

python docs/pictures.py [NAME ...]
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from PIL import Image

import konkyo
from konkyo.draw.sheets import save_image

FOLDER = Path(__file__).parent / "assets" / "methods"
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


if __name__ == "__main__":
    main()
