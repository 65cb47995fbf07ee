"""Maps of the same images while a model is trained, in whatever its numbers are looked at with."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import nn

from konkyo.explanation.explain import Which, explain
from konkyo.explanation.inputs import Images
from konkyo.explanation.result import Explanation
from konkyo.explanation.words import image_name
from konkyo.models import Model
from konkyo.training.trackers import PictureTracker, Tracker


def log_maps(
    tracker: Tracker,
    model: Model | nn.Module,
    images: Images,
    *,
    step: int,
    method: Which = "grad_cam",
    name: str = "maps",
    target: Any = None,
    **options: Any,
) -> Explanation:
    """Explains the images and logs the maps, drawn over them, with two numbers of the step. -> the explanation

    The numbers are NAME/score, the mean score of the targets, and NAME/ok, the share of maps whose diagnosis is "ok";
    a tracker that takes no pictures gets these alone. `tracker`: one of `konkyo.training`, or anything with its
    functions. `images`, `method`, `target`, `options`: as of `konkyo.explain`. The model comes back as it was, in
    training mode if it was, without gradients of ours; it may be called at any point between two steps of a loop.
    """
    with torch.inference_mode(False), torch.enable_grad():
        result = explain(model, images, method=method, target=target, **options)
    rows = len(result)
    if not rows:
        tracker.log({f"{name}/ok": 0.0}, step)
        return result
    ok = sum(diagnosis.kind == "ok" for diagnosis in result.diagnosis) / rows
    tracker.log({f"{name}/score": result.scores.double().mean().item(), f"{name}/ok": ok}, step)
    if isinstance(tracker, PictureTracker):
        tracker.log_pictures(_overlays(result, name), step)
    return result


def _overlays(result: Explanation, name: str) -> dict[str, Image.Image]:
    """Returns an overlay per row by what it is called; rows of one image are numbered."""
    pictures: dict[str, Image.Image] = {}
    for row in range(len(result)):
        key = first = f"{name}/{image_name(result, row)}"
        number = 1
        while key in pictures:
            number += 1
            key = f"{first} ({number})"
        pictures[key] = result.overlay(row, brightness="full")
    return pictures
