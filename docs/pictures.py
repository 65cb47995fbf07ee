"""Draws docs/assets/methods/NAME.jpg: every method on one scene, for both of its objects, with the models that ship.

python docs/pictures.py [NAME ...]
python docs/pictures.py vqa            (docs/assets/vqa.webp: a question of every kind, four methods)
python docs/pictures.py checkpoints    (docs/assets/checkpoints.webp, by the code of docs/cookbook/checkpoints.md)
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import wrap
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

import konkyo
from konkyo.draw.sheets import save_image

FOLDER = Path(__file__).resolve().parent / "assets" / "methods"
SEED, INDEX, SIDE, GAP = 2033, 0, 200, 6
VQA = {"exist": 0, "count": 0, "objects": 0, "side": 0, "relation": 2}
"""Of every kind of question, which of the samples is drawn."""


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


def vqa() -> None:
    """A column per kind of question: the scene with both masks outlined, and the maps of four methods."""
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    model, methods = konkyo.load("konkyo/scenes-vqa"), ("grad_cam", "hires_cam", "occlusion", "integrated_gradients")
    columns = [konkyo.data.samples.samples(f"questions:40,size=256,kinds={kind}")[VQA[kind]] for kind in VQA]
    side, top, font = 170, 50, ImageFont.load_default(13)
    sheet = Image.new("RGB", ((side + GAP) * len(columns) + 20, top + (side + GAP) * (1 + len(methods))), "white")
    pen = ImageDraw.Draw(sheet)
    for column, sample in enumerate(columns):
        (thing,) = sample.annotations
        x = 20 + column * (side + GAP)
        shown = sample.image.copy()
        for mask, colour in ((thing.mask, (40, 90, 255)), (thing.evidence, (255, 0, 140))):
            area = Image.fromarray(mask.numpy()).convert("L")
            shown.paste(colour, mask=ImageChops.subtract(area.filter(ImageFilter.MaxFilter(5)), area))
        found = konkyo.explanations(model, sample.image, methods, question=sample.question, layer="cells")
        label = found[methods[0]].labels[0]
        pen.text((x, 0), "\n".join([*wrap(sample.question.replace(" ?", "?"), 26), label]), "black", font)
        for row, picture in enumerate((shown, *(found[method].overlay(0) for method in methods))):
            sheet.paste(picture.convert("RGB").resize((side, side)), (x, top + row * (side + GAP)))
    for row, method in enumerate(methods, 1):
        name = Image.new("RGB", (side, 18), "white")
        ImageDraw.Draw(name).text((4, 0), method, "black", font)
        sheet.paste(name.rotate(90, expand=True), (0, top + row * (side + GAP)))
    save_image(sheet, FOLDER.parent / "vqa.webp")


if __name__ == "__main__":
    {("checkpoints",): checkpoints, ("vqa",): vqa}.get(tuple(sys.argv[1:]), main)()
