"""Draws docs/assets/methods/NAME.jpg: every method on one scene, for both of its objects, with the models that ship.

python docs/pictures.py [NAME ...]
python docs/pictures.py segmentation   (docs/assets/segmentation.webp: a class, a contrast and a pixel, three methods)
python docs/pictures.py vqa            (docs/assets/vqa.webp: a question of every kind, four methods)
python docs/pictures.py answers        (docs/assets/answers.webp: maps of words, by examples/caption_scenes.py)
python docs/pictures.py families       (docs/assets/segments.webp, relevance.webp, gradients.webp: one scene)
python docs/pictures.py concepts       (docs/assets/concepts.webp: four concepts of cats and rabbits)
python docs/pictures.py zero_shot      (docs/assets/zero_shot.jpg: five scenes, five maps of konkyo/scenes-clip)
python docs/pictures.py checkpoints    (docs/assets/checkpoints.webp, by the code of docs/cookbook/checkpoints.md)
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import wrap
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

import konkyo
from konkyo.draw.sheets import save_image

FOLDER = Path(__file__).resolve().parent / "assets" / "methods"
SEED, INDEX, SIDE, GAP = 2033, 0, 200, 6
LARGE = 22
"""A scene whose two objects are large, for maps of fine lines."""
FAMILIES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "segments": {
        "lime": ("lime", {"segments": "slic", "ridge": 0.01}),
        "kernel_shap": ("kernel_shap", {}),
        "partition": ("partition", {}),
        "sobol": ("sobol", {}),
    },
    "relevance": {
        "lrp": ("lrp", {}),
        "lrp, gamma and box": ("lrp", {"composite": "epsilon_gamma_box"}),
        "deep_lift": ("deep_lift", {}),
        "excitation_backprop": ("excitation_backprop", {}),
        "its contrast=True": ("excitation_backprop", {"contrast": True}),
    },
    "gradients": {
        "guided_ig": ("guided_ig", {}),
        "blur_ig": ("blur_ig", {}),
        "deconvnet": ("deconvnet", {}),
        "square_grad, std=0.15": ("square_grad", {}),
        "square_grad, std=0.02": ("square_grad", {"std": 0.02}),
    },
}
"""The columns of a sheet: what stands over it, the method and its options."""
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
        of_instances |= "queries" in method.needs
        model, target = (detector, konkyo.Detections(top=2)) if of_instances else (classifier, classes)
        found = konkyo.explanations(model, scene.image, [name], target=target)[name]
        if isinstance(found, konkyo.NotApplicable) and model is classifier:  # a method of transformers
            clip = konkyo.load("konkyo/scenes-clip", texts=list(konkyo.data.scenes.CLASSES), template="a {}")
            found = konkyo.explanations(clip, scene.image, [name], target=target)[name]
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


def families() -> None:
    """A sheet per family: a row for each of the scene's classes, with its object outlined, and a column per method."""
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    model = konkyo.load("konkyo/scenes-classifier")
    scene = konkyo.data.scenes.Scenes(LARGE + 1, seed=SEED, size=256, objects=2)[LARGE]
    names = [konkyo.data.scenes.CLASSES[label] for label in scene.labels.tolist()]
    for family, columns in FAMILIES.items():
        side, top, font = 170, 22, ImageFont.load_default(13)
        sheet = Image.new("RGB", ((side + GAP) * (1 + len(columns)) - GAP, (top + side) * 2), "white")
        pen = ImageDraw.Draw(sheet)
        found = [
            konkyo.explain(model, scene.image, method=method, target=konkyo.Each(*names), **options)
            for method, options in columns.values()
        ]
        for row, name in enumerate(names):
            y = row * (top + side)
            shown = outlined(scene.image, scene.masks[row])
            cells = [shown, *(result.overlay(row, brightness="full") for result in found)]
            for column, (title, cell) in enumerate(zip((f"why {name}?", *columns), cells, strict=True)):
                x = column * (side + GAP)
                pen.text((x, y + 3), title, "black", font)
                sheet.paste(cell.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (x, y + top))
        sheet.save(FOLDER.parent / f"{family}.webp", quality=75, method=6)


def outlined(picture: Image.Image, mask: Any) -> Image.Image:
    """The picture with the edge of a mask drawn."""
    area = Image.fromarray(mask.numpy()).convert("L")
    shown = picture.copy()
    shown.paste((255, 0, 140), mask=ImageChops.subtract(area.filter(ImageFilter.MaxFilter(5)), area))
    return shown


def concepts() -> None:
    """A row per concept, the one that counts most for "cat" first: the images that hold most of it."""
    from konkyo.concepts import factorise

    model = konkyo.load("konkyo/scenes-classifier")
    scenes = [scene.image for scene in konkyo.data.scenes.Scenes(24, seed=3, objects=1, classes=["cat", "rabbit"])]
    found = factorise(model, scenes, 4)
    counts = found.importance("cat", designs=8)
    found.examples(k=5, importance=counts, side=130).save(FOLDER.parent / "concepts.webp", quality=75, method=6)


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


def segmentation() -> None:
    """A row per method: a cat and a rabbit, why each, why cat and not rabbit, and why a pixel of the cat's body."""
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    model, methods = konkyo.load("konkyo/scenes-segmenter"), ("grad_cam", "layer_cam", "hires_cam")
    scene = konkyo.data.scenes.Scenes(28, seed=77, size=256, objects=2)[27]
    target = konkyo.Each("cat", "rabbit", konkyo.ContrastTarget("cat", "rabbit"), konkyo.Pixel(80, 118))
    found = konkyo.compare(model, scene.image, methods, target=target)
    side, top, font = 190, 20, ImageFont.load_default(14)
    sheet = Image.new("RGB", ((side + GAP) * 4 + 20, top + (side + GAP) * len(methods)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(("cat", "rabbit", "cat, not rabbit", "pixel 80,118")):
        pen.text((20 + column * (side + GAP), 0), label, "black", font)
        for row, method in enumerate(methods):
            drawn = found[method].overlay(column, brightness="full").convert("RGB").resize((side, side))
            sheet.paste(drawn, (20 + column * (side + GAP), top + row * (side + GAP)))
    for row, method in enumerate(methods):
        name = Image.new("RGB", (side, 18), "white")
        ImageDraw.Draw(name).text((4, 0), method, "black", font)
        sheet.paste(name.rotate(90, expand=True), (0, top + row * (side + GAP)))
    save_image(sheet, FOLDER.parent / "segmentation.webp")


def answers() -> None:
    """Two scenes with two objects: the scene, and the map of every word of its caption, by two methods."""
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    sys.path.insert(0, str(FOLDER.parents[2] / "examples"))
    model = import_module("caption_scenes").build()
    side, top, font, methods = 150, 24, ImageFont.load_default(14), ("grad_cam", "occlusion")
    rows = []
    for scene in konkyo.data.scenes.Scenes(2, seed=SEED, size=256, objects=2):
        results = konkyo.compare(model, scene.image, methods, target=konkyo.EachWord())
        for name, result in results.items():
            rows.append(
                [(name, scene.image), *((result.labels[row], result.overlay(row)) for row in range(len(result)))]
            )
    sheet = Image.new("RGB", ((side + GAP) * max(map(len, rows)) - GAP, (side + top + GAP) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, cells in enumerate(rows):
        for x, (label, picture) in enumerate(cells):
            at = x * (side + GAP), y * (side + top + GAP)
            pen.text((at[0] + 2, at[1] + 2), label, "black", font)
            sheet.paste(picture.convert("RGB").resize((side, side)), (at[0], at[1] + top))
    save_image(sheet, FOLDER.parent / "answers.webp")


def zero_shot() -> None:
    """A row per scene: the scene with its evidence outlined, then maps of its class and of class against twin."""
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    names = konkyo.data.scenes.CLASSES
    model = konkyo.load("konkyo/scenes-clip", texts=names, template="a photo of a {}")
    columns = ("grad_eclip", "grad_eclip", "le_grad", "attention_rollout", "grad_cam")
    scenes = {int(scene.labels[0]): scene for scene in konkyo.data.scenes.Scenes(60, seed=SEED, size=256, objects=1)}
    side, top, font = 170, 34, ImageFont.load_default(13)
    sheet = Image.new("RGB", ((side + GAP) * (1 + len(columns)), top + (side + GAP) * 5), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((0, 0), "a scene\nand its evidence", "black", font)
    for column, name in enumerate(columns):
        words = "its class" if column == 0 else "any target" if name == "attention_rollout" else "class, not twin"
        pen.text(((column + 1) * (side + GAP), 0), f"{name}\n{words}", "black", font)
    for row, label in enumerate((0, 1, 2, 7, 9)):
        scene = scenes[label]
        twins = konkyo.ContrastTarget(names[label], names[label ^ 1])
        area = Image.fromarray(scene.evidence[0].numpy()).convert("L")
        shown = scene.image.copy()
        shown.paste((255, 0, 140), mask=ImageChops.subtract(area.filter(ImageFilter.MaxFilter(5)), area))
        cells = [shown]
        for column, name in enumerate(columns):
            target = names[label] if column == 0 else twins
            cells.append(konkyo.explain(model, scene.image, method=name, target=target).overlay(0))
        for column, picture in enumerate(cells):
            place = (column * (side + GAP), top + row * (side + GAP))
            sheet.paste(picture.convert("RGB").resize((side, side)), place)
    save_image(sheet, FOLDER.parent / "zero_shot.jpg")


if __name__ == "__main__":
    pages = {f.__name__: f for f in (answers, checkpoints, concepts, families, segmentation, vqa, zero_shot)}
    (pages.get(sys.argv[1], main) if len(sys.argv) == 2 else main)()
