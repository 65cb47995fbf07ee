"""Choices: what of a picture can be explained, as the model sees it: classes, detections, regions, pixels, words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

import torch
from PIL import Image

from konkyo.engine.forward import Pass
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError, silenced
from konkyo.models import Model
from konkyo.models.base import preprocess_of
from konkyo.targets.answers import Answer, EachWord, Token
from konkyo.targets.base import as_target
from konkyo.targets.classes import ClassTarget, ContrastTarget, TopK
from konkyo.targets.detections import Detections, InstanceTarget
from konkyo.targets.regions import Pixel, Region, RegionTarget
from konkyo.tasks import ClassificationTask, DetectionTask
from konkyo.tasks.answers import AnswerTask
from konkyo.tasks.segmentation import SegmentationTask

MOST = 12
"""So many decisions of an image are listed."""
THRESHOLD = 0.3
"""Detections with a higher score than this are listed."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Choice:
    """A choice is one thing that can be explained."""

    label: str
    request: Any
    """What `konkyo.explain` takes for its target."""
    probability: float | None = None
    box: Box | None = None
    """xyxy in pixels of the picture as the model sees it."""

    @property
    def words(self) -> str:
        """Returns what it is called in lists, with its probability."""
        return self.label if self.probability is None else f"{self.label} {self.probability:.2f}"

    @property
    def area(self) -> float:
        """Returns the area of its box in pixels; infinite without one."""
        return math.inf if self.box is None else (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def picture_seen(model: Model, picture: Image.Image) -> Image.Image:
    """Returns the picture as the model sees it. KonkyoError: the model does not say how to prepare pictures."""
    return preprocess_of(model).view(picture)


def choices_of(model: Model, picture: Image.Image) -> tuple[Choice, ...]:
    """Returns what the model decides of a picture: its most probable classes, detections, regions, or words.

    One forward. `model` is bound to its question where it reads one.
    """
    preprocess = preprocess_of(model)
    request = _request(model)
    session = untouched(model.module, 0)
    with torch.no_grad(), silenced(), session, session:  # twice: see `Session`
        images = model.prepared(preprocess(picture)[None])
        model = model.settled(images, request)
        output = Pass(model, images).output.detach()
        if isinstance(request, TopK) and isinstance(model.task, ClassificationTask):
            request = TopK(min(request.k, max(2, output.shape[1])))
        frame = preprocess.frame(picture)
        (targets,) = model.targets(request, output, frames=(frame,))
        decisions = model.decisions_beside(targets, [0] * len(targets), output)
    choices = list[Choice]()
    for target, decision in zip(targets[:MOST], decisions, strict=False):
        probability = None if decision is None else decision.asked_probability
        where = as_target(target).location()
        box = None if where is None else tuple(frame.shown(torch.tensor(where)).tolist())
        label = model.label(target, output.shape[1] if output.ndim > 1 else None)
        if isinstance(model.task, AnswerTask) and isinstance(target, Token):
            passage = model.task.passages([target])[0]
            label, probability = passage.text if passage else label, math.exp(min(float(target(output)), 0.0))
        choices.append(Choice(label, _asking(model, target, box), probability, box))
    if isinstance(model.task, AnswerTask):
        choices.insert(0, Choice(" ".join(choice.label for choice in choices), Answer()))
    return tuple(choices)


def _request(model: Model) -> Any:
    """Returns what asks for all that is listed of a picture."""
    if isinstance(model.task, DetectionTask):
        return Detections(threshold=THRESHOLD, top=MOST)
    if isinstance(model.task, AnswerTask):
        return EachWord()
    if isinstance(model.task, (ClassificationTask, SegmentationTask)):
        return TopK(5)
    return None


def _asking(model: Model, target: Any, box: Box | None) -> Any:
    """Returns what asks `konkyo.explain` for a target again, by names and places."""
    if isinstance(target, ClassTarget):
        return _name(model, target.index)
    if isinstance(target, InstanceTarget) and box is not None:
        rounded = _rounded(*box)
        return Detections(threshold=THRESHOLD, top=1, classes=(_name(model, target.label),), boxes=(rounded,))
    if isinstance(target, RegionTarget):
        return Region(_name(model, target.index))
    if isinstance(target, Token):
        return Token(target.which)
    return None


def _name(model: Model, index: int) -> int | str:
    """Returns the name of a class; its index where it has none, or another class has the same."""
    name = model.classes[index] if index < len(model.classes) else None
    return index if name is None or model.classes.count(name) > 1 else name


def of_class(model: Model, name: str) -> Choice:
    """Returns the choice of a class by its name or index. KonkyoError: an unknown class."""
    text = str(name).strip()
    if text.isdigit() and text not in model.classes:
        index = int(text)
        if model.classes and index >= len(model.classes):
            raise KonkyoError(f"class {index}: the classes of {model.name} are 0 to {len(model.classes) - 1}")
    else:
        index = model.class_index(text)
    known = _name(model, index)
    if isinstance(model.task, SegmentationTask):
        return Choice(str(known), Region(known, within="all"))
    return Choice(str(known), known)


def at_point(model: Model, picture: Image.Image, choices: Sequence[Choice], x: float, y: float) -> Choice | None:
    """Returns what is meant by a point of the picture as the model sees it: a pixel, or the smallest box around it."""
    if isinstance(model.task, SegmentationTask):
        left, top = _corner(model, picture)
        at = Pixel(round(x + left, 1), round(y + top, 1))
        return Choice(f"pixel {x:.0f},{y:.0f}", at, box=(x - 1, y - 1, x + 1, y + 1))
    around = [choice for choice in choices if choice.box is not None and _within(choice.box, x, y)]
    return min(around, key=lambda choice: choice.area, default=None)


def in_box(model: Model, picture: Image.Image, box: Box) -> Choice | None:
    """Returns a region of the picture as the model sees it, of a segmenter; None for other models."""
    if not isinstance(model.task, SegmentationTask):
        return None
    left, top = _corner(model, picture)
    x0, y0, x1, y1 = box
    region = _rounded(x0 + left, y0 + top, x1 + left, y1 + top)
    return Choice(f"region {x0:.0f},{y0:.0f},{x1:.0f},{y1:.0f}", Region(None, "all", box=region), box=box)


def contrast(model: Model, choice: Choice, other: str) -> Choice:
    """Returns the choice of why this and not the class `other`. KonkyoError: no such class, or the same one."""
    that = of_class(model, other)
    name = that.request.label if isinstance(that.request, Region) else that.request
    if isinstance(choice.request, ContrastTarget) or choice.request is None:
        raise KonkyoError(f"{choice.label!r} cannot be set against a class")
    if choice.request == name:
        raise KonkyoError(f"{that.label!r} is the class itself; choose another one to set it against")
    label = f"{choice.label}, not {that.label}"
    return Choice(label, ContrastTarget(choice.request, name), choice.probability, choice.box)


def _corner(model: Model, picture: Image.Image) -> tuple[int, int]:
    return preprocess_of(model).corner(picture)


def _rounded(x0: float, y0: float, x1: float, y1: float) -> Box:
    """Returns a box to a tenth of a pixel, as it stands in the Python that is shown."""
    return round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1)


def _within(box: Box, x: float, y: float) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def code_of(request: Any) -> str:
    """Returns the Python that makes a request: a text, a number, or one of konkyo's targets.

    >>> code_of(ContrastTarget("cat", Pixel(1.0, 2.0)))
    "konkyo.ContrastTarget(this='cat', that=konkyo.Pixel(x=1.0, y=2.0))"
    """
    if not is_dataclass(request) or isinstance(request, type):
        if isinstance(request, tuple):
            inside = ", ".join(map(code_of, request))
            return f"({inside},)" if len(request) == 1 else f"({inside})"
        return repr(request)
    values = [
        f"{field.name}={code_of(value)}"
        for field in fields(request)
        if field.init and ((value := getattr(request, field.name)) != field.default or field.default is MISSING)
    ]
    return f"konkyo.{type(request).__name__}({', '.join(values)})"
