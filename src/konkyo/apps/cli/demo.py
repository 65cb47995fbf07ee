"""The command that shows the library at work on what ships with it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from konkyo.apps.cli.options import ModelOptions, setup_of
from konkyo.apps.cli.terminal import out, progress
from konkyo.errors import NotApplicable, install_hint

if TYPE_CHECKING:
    from konkyo.draw.sheets import Row

from konkyo.apps.cli.pictures import explained, rows_of


def demo(
    to: Annotated[Path, typer.Option("--out", help="Folder for images and contact sheet.")] = Path("out/demo"),
    number: Annotated[int, typer.Option("--scenes", min=1, help="How many scenes.")] = 6,
) -> None:
    """Explain shipped scenes: classes with the shipped classifier, and every detection with the shipped detector."""
    from konkyo.data.sets.scenes import CLASSES, Scenes
    from konkyo.draw.sheets import contact_sheet, save_image
    from konkyo.targets.classes import Each
    from konkyo.tasks.base import SEVEN_CAMS

    setup = setup_of("konkyo/scenes-classifier", ModelOptions())
    rows: list[Row] = []
    on_object = Counter[str]()
    scenes = Scenes(number, seed=DEMO_SEED, size=256, objects=(1, 2))
    for index, (scene, _) in enumerate(progress(scenes, "explaining")):
        path = save_image(scene.image, to / f"scene-{index}.png")
        labels = list(dict.fromkeys(scene.labels.tolist()))
        request = {"target": Each(*[CLASSES[label] for label in labels])}
        results = explained(setup.model, [path], list(SEVEN_CAMS), request)[0].results
        rows += rows_of(results, path.name, {})
        for name, result in results.items():
            if not isinstance(result, NotApplicable):
                for maps, label in zip(result.at((256, 256)), labels, strict=True):
                    objects = scene.masks[scene.labels == label].any(0)
                    on_object[name] += bool(objects.flatten()[maps.cpu().argmax()])
    title = "What the scenes classifier looks at: one row per image and class, one column per method"
    sheet = save_image(contact_sheet(rows, SEVEN_CAMS, title=title), to / "contact-sheet.png")
    peaks = ", ".join(f"{name} {on_object[name]}" for name in SEVEN_CAMS)
    out.print(f"{number} scenes, {len(rows)} rows of an image and a class, {len(SEVEN_CAMS)} methods")
    out.print(f"rows whose map is highest on the class's own object: {peaks}", soft_wrap=True, highlight=False)
    out.print(f"contact sheet: {sheet}", soft_wrap=True, highlight=False)
    _demo_of_detector(to)


def _demo_of_detector(to: Path) -> None:
    """Every detection on two scenes by the methods that are compared for detectors."""
    from konkyo.data.sets.scenes import Scenes
    from konkyo.draw.sheets import contact_sheet, save_image
    from konkyo.targets.detections import Detections
    from konkyo.tasks.detection import OF_DETECTORS
    from konkyo.utils.tensors import overlap

    if importlib.util.find_spec("transformers") is None:
        note = f"left out: the detector, which needs transformers: {install_hint('transformers')}"
        out.print(escape(note), soft_wrap=True, highlight=False)
        return
    setup = setup_of("konkyo/scenes-detr", ModelOptions())
    scenes = Scenes(2, seed=DEMO_SEED, size=256, objects=(2, 4))
    rows: list[Row] = []
    on_object, of_objects = Counter[str](), 0
    for index, (scene, bar) in enumerate(progress(scenes, "explaining detections")):
        path = save_image(scene.image, to / f"objects-{index}.png")
        request = {"target": Detections(), "options": {"masks": 500}, "progress": bar}
        results = explained(setup.model, [path], list(OF_DETECTORS), request)[0].results
        rows += rows_of(results, path.name, {})
        done = {name: result for name, result in results.items() if not isinstance(result, NotApplicable)}
        boxes = next(iter(done.values())).boxes
        shares = [overlap(scene.boxes, box) for box in ([] if boxes is None else boxes.cpu())]
        matched = {row: int(share.argmax()) for row, share in enumerate(shares) if share.max() > 0.5}
        of_objects += len(matched)
        for name, result in done.items():
            maps = result.at((256, 256)).cpu()
            on_object[name] += sum(bool(scene.masks[at].flatten()[maps[row].argmax()]) for row, at in matched.items())
    if not rows:
        out.print("the detector found nothing")
        return
    title = "What the scenes detector looks at: one row per detection, one column per method"
    sheet = save_image(contact_sheet(rows, OF_DETECTORS, title=title), to / "detections.png")
    peaks = ", ".join(f"{name} {on_object[name]}" for name in OF_DETECTORS)
    out.print(f"{len(scenes)} scenes, {len(rows)} detections, {of_objects} of them of an object (IoU above 0.5)")
    out.print(f"of these, the map is highest on the object itself: {peaks}", soft_wrap=True, highlight=False)
    out.print(f"contact sheet of detections: {sheet}", soft_wrap=True, highlight=False)


DEMO_SEED = 2033
"""Scenes of this seed were never trained on: training draws from other seeds."""
