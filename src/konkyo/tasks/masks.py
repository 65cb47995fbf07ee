"""Masks of detections: an output is the masks that a detector gives some boxes, (N, D, m, m), as Mask R-CNN does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from konkyo.data.frame import Frame
from konkyo.engine.forward import OneByOne
from konkyo.errors import KonkyoError
from konkyo.targets.base import Target
from konkyo.targets.classes import Score, leaves
from konkyo.targets.detections import Detections, InstanceTarget, MaskTarget
from konkyo.targets.regions import Mask
from konkyo.tasks.base import Classes, Run, Task, task
from konkyo.tasks.decision import Decision
from konkyo.tasks.detection import DetectionTask
from konkyo.tasks.regions import packed, unpacked


@task
@dataclass(frozen=True)
class MaskTask(DetectionTask):
    """The masks of an image's detections, in the boxes that they have on that image."""

    candidates: Tensor
    """The image's own candidates (1, Q, 4 B + K)."""
    instances_of_image: tuple[InstanceTarget, ...]
    """The D detections whose masks are read."""
    masks: tuple[Mask | None, ...]
    """Where their masks are above 0.5 in their boxes (m, m); None: nowhere."""
    outlines: tuple[Mask | None, ...]
    """The same in the network's input (H, W)."""

    def settled(self, module: nn.Module, images: Tensor, request: Any, run: Run) -> Task:
        """Returns the task itself, which is that of one image already."""
        del module, images, request, run
        return self

    def output(self, module: nn.Module, images: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Returns the logits of the masks (N, D, m, m)."""
        del read
        assert self.adapter.masks is not None
        return self.adapter.masks(module, images, *_places(self.instances_of_image, images))

    def confidences(self, output: Tensor) -> Tensor:
        """Returns the class probabilities of the image's own candidates (1, Q, K)."""
        del output
        return super().confidences(self.candidates)

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the masks of the detections that are asked for. KonkyoError: a mask that is nowhere above 0.5."""
        del output
        if isinstance(request, MaskTarget):
            request = request.instance
        (targets,) = super().targets(request, self.candidates, classes, score=score, frames=frames)
        return [[self._mask(target, classes) for target in targets]]

    def _mask(self, target: Target, classes: Classes) -> Target:
        if not isinstance(target, InstanceTarget):
            raise KonkyoError(f"a mask is that of a detection, as in Detections(quantity='mask'); got {target!r}")
        number = self.instances_of_image.index(target)
        cells, outline = self.masks[number], self.outlines[number]
        if cells is None or outline is None:
            raise KonkyoError(
                f"the mask of {classes.label(target.label)} ({target.likeness[target.label]:.2f}) is nowhere above 0.5"
            )
        return MaskTarget(target, number, cells, outline)

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the name of the detection's class, and that it is its mask."""
        return super().label(target.instance if isinstance(target, MaskTarget) else target, classes, outputs)

    def check(self, targets: Sequence[Target], size: Sequence[int]) -> None:
        """Warns of impossible boxes. KonkyoError: most are, for images of this size (H, W)."""
        super().check([target.instance for target in targets if isinstance(target, MaskTarget)], size)

    def decisions_beside(
        self, targets: Sequence[Target], images: Sequence[int], output: Tensor, classes: Classes
    ) -> list[Decision | None]:
        """Returns the most probable class of every detection, beside its own."""
        del output
        instances = [target.instance if isinstance(target, MaskTarget) else target for target in targets]
        return super().decisions_beside(instances, images, self.candidates, classes)

    def perturbation_score(self, target: Target, box: Tensor) -> Target:
        """Returns the mask itself, whose box and region are fixed."""
        del box
        return target

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns the mask of a detection as plain values; None for other targets."""
        if not isinstance(target, MaskTarget):
            return None
        places = {"cells": packed(target.cells), "outline": packed(target.outline)}
        return {"mask_of": asdict(target.instance), "number": target.number, **places}

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the mask of a detection; None for values that are of something else."""
        if "mask_of" not in values:
            return None
        instance = DetectionTask.restored(values["mask_of"])
        assert isinstance(instance, InstanceTarget)
        return MaskTarget(instance, values["number"], unpacked(values["cells"]), unpacked(values["outline"]))


def masks_of(task: DetectionTask, module: nn.Module, images: Tensor, request: Any, run: Run) -> MaskTask | None:
    """Returns what reads the masks of the detections that a request is about; None: it is about no masks.

    OneByOne: several images, whose detections differ. KonkyoError: a detector without masks, or a request that is of
    masks and of something else.
    """
    requests = [leaf.instance if isinstance(leaf, MaskTarget) else leaf for leaf in leaves(request)]
    of_masks = [leaf for leaf in requests if isinstance(leaf, (Detections, InstanceTarget)) and leaf.quantity == "mask"]
    if not of_masks:
        return None
    read = task.adapter.masks
    if read is None:
        raise KonkyoError(
            "quantity='mask' is of detectors that give every box a mask, as Mask R-CNN; this one does not"
        )
    if len(of_masks) < len(requests):
        raise KonkyoError(f"masks are explained in a call of their own, not with other quantities; got {request!r}")
    if len(images) > 1:
        raise OneByOne("every image has detections of its own")
    with torch.no_grad():
        candidates = run(lambda: task.adapter.propose(module, images))
    instances = dict.fromkeys(leaf for leaf in of_masks if isinstance(leaf, InstanceTarget))
    for leaf in of_masks:
        if isinstance(leaf, Detections):  # classes and boxes are looked at when the names and the frame are known
            (detections,) = task.targets(replace(leaf, classes=(), boxes=(), top=None), candidates, Classes(""))
            instances |= dict.fromkeys(detections)  # type: ignore[arg-type]
    every = tuple(instances)
    places = _places(every, images)
    with torch.no_grad():
        logits = run(lambda: read(module, images, *places))[0].float()
    outlines = [
        _on_picture(mask.sigmoid(), box, tuple(images.shape[2:])) > 0.5
        for mask, box in zip(logits, places[0], strict=True)
    ]
    return MaskTask(
        task.adapter,
        candidates,
        every,
        tuple(_mask_or_none(mask > 0) for mask in logits),
        tuple(map(_mask_or_none, outlines)),
    )


def _mask_or_none(cells: Tensor) -> Mask | None:
    """Returns the cells as a mask; None where none is set."""
    return Mask(cells) if bool(cells.any()) else None


def _places(instances: Sequence[InstanceTarget], images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the boxes (D, 4) and classes (D,) of detections."""
    boxes = images.new_tensor([instance.box for instance in instances]).reshape(-1, 4)
    return boxes, torch.tensor([instance.label for instance in instances], dtype=torch.int64, device=images.device)


def _on_picture(mask: Tensor, box: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns the values of a box's mask (m, m) at all pixels of an input (*size), bilinearly, and 0 outside the box.

    torchvision draws masks so, but for boxes rounded to whole pixels.
    """
    x1, y1, x2, y2 = box.unbind()
    rows, columns = (torch.arange(side, device=mask.device) + 0.5 for side in size)
    y, x = 2 * (rows - y1) / (y2 - y1) - 1, 2 * (columns - x1) / (x2 - x1) - 1
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2).to(mask)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
