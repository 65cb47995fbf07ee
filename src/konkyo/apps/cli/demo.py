"""The command that shows the library at work on what ships with it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from konkyo.apps.cli.options import ModelOptions, setup_of
from konkyo.apps.cli.terminal import print_line, progress
from konkyo.errors import NotApplicable, install_hint

if TYPE_CHECKING:
    from konkyo.draw.sheets import Row
    from konkyo.models import Model

from konkyo.apps.cli.pictures import explained, rows_of


def demo(
    to: Annotated[Path, typer.Option("--out", help="Folder for images and contact sheet.")] = Path("out/demo"),
    number: Annotated[int, typer.Option("--scenes", min=1, help="How many scenes.")] = 6,
) -> None:
    """Explain shipped scenes, one of the shipped classifier's mistakes, and every detection of the shipped detector."""
    from konkyo.data.sets.scenes import CLASSES, Scenes
    from konkyo.draw.sheets import contact_sheet, save_image
    from konkyo.targets.classes import Each
    from konkyo.tasks.base import SEVEN_CAMS

    print_line(PLAN.format(number=number))
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
    print_line(f"{number} scenes, {len(rows)} rows of an image and a class, {len(SEVEN_CAMS)} methods")
    print_line(f"rows whose map is highest on the class's own object: {peaks}")
    pages = [sheet, *_demo_of_mistake(setup.model, to), *_demo_of_detector(to)]
    print_line("done; open these:\n" + "\n".join(f"  {page}" for page in pages))


def _demo_of_mistake(model: Model, to: Path) -> list[Path]:
    """Reports on scenes of which one is decided wrongly, and covers what that decision rests on. -> sheet and report"""
    from konkyo.data.samples import samples
    from konkyo.draw.sheets import contact_sheet, save_image
    from konkyo.explanation.explain import compare
    from konkyo.report.report import report
    from konkyo.targets.classes import ClassTarget, ContrastTarget

    scenes = samples(MISTAKES)
    page = report(
        compare(model, [scenes[index] for index in range(MISTAKE - 20, MISTAKE + 3)], ["grad_cam", "layer_cam"]),
        to / "report.html",
        title="konkyo demo: 23 scenes, one of them decided wrongly",
        model=model,
    )
    picture = scenes[MISTAKE].image
    covered = picture.copy()
    covered.paste(picture.crop(SKY), POST[:2])
    rows: list[Row] = []
    words = []
    for name, image, this, that in (("mistake", picture, *TWINS), ("post-covered", covered, *TWINS[::-1])):
        path = save_image(image, to / f"{name}.png")
        classes = (ClassTarget(scenes.classes.index(label)) for label in (this, that))
        results = explained(model, [path], list(MISTAKE_METHODS), {"target": ContrastTarget(*classes)})[0].results
        rows += rows_of(results, path.name, {})
        decision = next(r.decisions[0] for r in results.values() if not isinstance(r, NotApplicable))
        words.append("nothing" if decision is None else f"{decision.label} (P {decision.probability:.2f})")
    title = f"A cat that is called a {TWINS[0]}: occlusion points at the post behind its ears; without it, it is a cat"
    sheet = save_image(contact_sheet(rows, MISTAKE_METHODS, title=title), to / "why-wrong.png")
    print_line(f"why is it wrong: scene {MISTAKE}, a cat, is called {words[0]};")
    print_line(f"  with the post behind its ears covered: {words[1]}")
    return [sheet, page]


def _demo_of_detector(to: Path) -> list[Path]:
    """Explains every detection on two scenes by the methods that are compared for detectors. -> the sheet, if any"""
    from konkyo.data.sets.scenes import Scenes
    from konkyo.draw.sheets import contact_sheet, save_image
    from konkyo.targets.detections import Detections
    from konkyo.tasks.detection import OF_DETECTORS
    from konkyo.utils.tensors import overlap

    if importlib.util.find_spec("transformers") is None:
        note = f"left out: the detector, which needs transformers: {install_hint('transformers')}"
        print_line(note)
        return []
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
        print_line("the detector found nothing")
        return []
    title = "What the scenes detector looks at: one row per detection, one column per method"
    sheet = save_image(contact_sheet(rows, OF_DETECTORS, title=title), to / "detections.png")
    peaks = ", ".join(f"{name} {on_object[name]}" for name in OF_DETECTORS)
    print_line(f"{len(scenes)} scenes, {len(rows)} detections, {of_objects} of them of an object (IoU above 0.5)")
    print_line(f"of these, the map is highest on the object itself: {peaks}")
    return [sheet]


DEMO_SEED = 2033
"""Scenes of this seed were never trained on: training draws from other seeds."""
MISTAKES, MISTAKE = "scenes:200,objects=1", 197
"""The only one of these scenes that the shipped classifier decides wrongly."""
POST, SKY = (86, 41, 94, 57), (66, 41, 74, 57)
"""Boxes in that scene: a post between a cat's ears, and sky of the same size beside it."""
TWINS = ("rabbit", "cat")
"""What it is called, and what it is."""
MISTAKE_METHODS = ("grad_cam", "occlusion")
PLAN = (
    "konkyo demo: {number} drawn scenes by seven methods, a mistake and its cause, two scenes with a detector.\n"
    "Nothing is downloaded. It takes a minute or two on two CPU cores."
)
