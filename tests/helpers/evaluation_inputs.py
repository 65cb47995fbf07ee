"""Models and pictures to evaluate, with what is true of them: classes that are colours, and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.detections import iou_by_hand
from konkyo.data.samples import Annotation, Sample

Box = tuple[int, int, int, int]
SIZE = (32, 40)
CLASSES = ("red_fox", "green", "blue")
RED, GREEN = (255, 20, 10), (10, 200, 30)


def block(box: Box, size: tuple[int, int] = SIZE) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for y in range(box[1], box[3]):
        for x in range(box[0], box[2]):
            mask[y, x] = True
    return mask


def thing(label: str | None, box: Box, size: tuple[int, int] = SIZE, **more: Any) -> Annotation:
    return Annotation(label, tuple(map(float, box)), block(box, size), **more)


class Colours(nn.Module):
    """Classes are colours: each channel of the only layer is one, the logits are their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, 4)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.conv.bias.zero_()
            self.head.weight.copy_(20 * torch.eye(3) - 4)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).relu().mean((2, 3)))


def colours(**preparation: Any) -> konkyo.Model:
    usual: dict[str, Any] = {"resize": None, "crop": None, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return konkyo.Model(Colours().eval(), konkyo.Preprocess(**usual | preparation), CLASSES, "colours")


def painted(patches: dict[Box, tuple[int, int, int]], seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 30, (*size, 3), dtype=np.uint8)
    for (x0, y0, x1, y1), colour in patches.items():
        values[y0:y1, x0:x1] = colour
    return Image.fromarray(values)


def pictures(count: int = 4) -> list[Sample]:
    """Every picture has a large red fox and a smaller green thing."""
    found = []
    for i in range(count):
        fox, leaf = (2 + i, 3, 20 + i, 22), (26, 20 - i, 36, 28 - i)
        image = painted({fox: RED, leaf: GREEN}, i)
        found.append(
            Sample(f"p{i}", image, "green" if i % 2 else "Red fox", (thing("red fox", fox), thing("green", leaf)))
        )
    return found


def letterboxed(model: konkyo.Model) -> konkyo.Model:
    assert model.preprocess is not None
    return replace(model, preprocess=replace(model.preprocess, resize=(24, 32), crop=(24, 32), fit="contain"))


def detected(model: konkyo.Model, size: tuple[int, int], count: int = 3, seed: int = 0) -> Sample:
    """A picture with as many things, each on a detection of the model."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    found = konkyo.explain(model, image, target=konkyo.Detections(threshold=0.3))
    things: list[Annotation] = []
    for label, box in zip(found.labels, found.boxes.tolist(), strict=True):
        inside = (max(box[0], 0), max(box[1], 0), min(box[2], size[1]), min(box[3], size[0]))
        free = all(iou_by_hand(inside, t.box) < 0.3 for t in things)
        if free and iou_by_hand(inside, box) > 0.8 and len(things) < count:
            whole = tuple(map(round, inside))
            things.append(Annotation(label.replace(" ", "_").upper(), tuple(inside), block(whole, size)))
    assert len(things) == count
    return Sample(f"d{seed}", image, None, tuple(things))


def greedy(labels: Sequence[str], boxes: Sequence[Sequence[float]], things: Sequence[Annotation], least: float) -> list:
    """Which thing each detection is matched with, or none: in plain loops, from the definition."""
    taken: set[int] = set()
    result = []
    for label, box in zip(labels, boxes, strict=True):
        best, share = None, -1.0
        for i, one in enumerate(things):
            alike = one.label.lower().replace("_", " ") == label.lower().replace("_", " ")
            if alike and i not in taken and (iou := iou_by_hand(box, one.box)) > share:
                best, share = i, iou
        if best is None or share < least or share == 0:
            result.append(())
        else:
            taken.add(best)
            result.append((best,))
    return result


def kept(folder: Path, name: str, array: np.ndarray, kind: str) -> None:
    """Writes a map as another tool could have left it."""
    path = folder / f"{name}{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".npz":
        np.savez(path, heat=array)
    elif kind == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array.astype(np.uint8)).save(path)


def equal(one: Tensor, other: Tensor | Sequence[float]) -> None:
    torch.testing.assert_close(one.double(), torch.as_tensor(other).double(), rtol=1e-5, atol=1e-6, equal_nan=True)
