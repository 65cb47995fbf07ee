"""Networks that say of every anchor a box and class probabilities, as those of the YOLO family do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor, nn

from konkyo.errors import KonkyoError, unknown
from konkyo.models.detectors import Detector, Kept
from konkyo.targets.candidates import Candidates, pack
from konkyo.utils.tensors import at_least_float32

Boxes: TypeAlias = Literal["cxcywh", "xyxy", "xywh"]
Scale: TypeAlias = Literal["pixels", "fraction"]


def dense_detector(
    module: nn.Module,
    *,
    classes: int,
    boxes: Boxes = "cxcywh",
    objectness: bool = False,
    activated: bool = True,
    scale: Scale = "pixels",
    select: Callable[[Any], Tensor] | None = None,
    iou: float = 0.7,
    most: int = 300,
    layer: str | Sequence[str] = "",
) -> Detector:
    """Adapts a network with predictions (N, anchors, 4 + [1] + K), or transposed, as a detector.

    The predictions are what `select` finds in the network's output; without it they are the output itself or the first
    thing in it. Their columns are a box in the form `boxes` and the unit `scale`, one for `objectness` where there is
    one, and K `classes`: probabilities, or where not `activated` their logits. With objectness the probability of a
    class is the product. An anchor is kept as its best class, unless one of the same class that overlaps it by more
    than `iou` is more probable, and `most` are kept at most.

    KonkyoError: an unknown form, unit or layer, or (while proposing) predictions of another shape.
    """
    if boxes not in get_args(Boxes):
        raise unknown("form of boxes", boxes, get_args(Boxes))
    if scale not in get_args(Scale):
        raise unknown("scale", scale, get_args(Scale))
    if classes < 1:
        raise KonkyoError(f"a detector has at least one class; got classes={classes}")
    names = (layer,) if isinstance(layer, str) else tuple(layer)
    for name in names:
        if name not in dict(module.named_modules()):
            raise unknown("layer", name, (known for known, _ in module.named_modules() if known))

    def propose(network: nn.Module, images: Tensor) -> Tensor:
        from torchvision.ops import box_convert  # a second to import, which other networks need not wait for

        output = (select or _first)(network(images))
        raw = _anchors_first(output, 4 + objectness + classes)
        corners = box_convert(raw[..., :4], boxes, "xyxy")
        if scale == "fraction":
            corners = corners * corners.new_tensor([images.shape[3], images.shape[2]]).repeat(2)
        said = raw[..., 4:] if activated else raw[..., 4:].sigmoid()
        return pack(corners, said[..., :1] * said[..., 1:] if objectness else said)

    return Detector(classes, propose, partial(_keep, classes, iou, most), names if len(names) > 1 else names[0])


def _first(output: Any) -> Any:
    """Returns the output itself, or the first thing in a tuple or list of outputs."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output


def _anchors_first(predictions: Any, columns: int) -> Tensor:
    """Predictions as (N, anchors, columns); the last axis is taken for the columns where both could be."""
    if isinstance(predictions, Tensor) and predictions.ndim == 3 and columns in predictions.shape[1:]:
        return predictions if predictions.shape[2] == columns else predictions.transpose(1, 2)
    came = tuple(predictions.shape) if isinstance(predictions, Tensor) else _described(predictions)
    raise KonkyoError(
        f"predictions of a dense detector are (N, anchors, {columns}) or (N, {columns}, anchors); got {came}. "
        "Check classes= and objectness=, or name the predictions: select=lambda output: ..."
        + _hint(predictions, columns)
    )


def _described(predictions: Any) -> str:
    """Returns the type of what are no predictions, with the names in it."""
    names = f" of {', '.join(map(str, predictions))}" if isinstance(predictions, Mapping) else ""
    return f"{type(predictions).__name__}{names}"


def _hint(predictions: Any, columns: int) -> str:
    """Returns what predictions of another shape may be."""
    if isinstance(predictions, Mapping) and "boxes" in predictions:
        return "; boxes with labels are what is left after suppression, explained are the candidates before it"
    if not isinstance(predictions, Tensor) or predictions.ndim not in (2, 3):
        return ""
    shape = predictions.shape[-2:]
    if columns + 1 in shape:
        return (
            "; one column more is objectness, or the angle of a rotated box, which has no place here: select= takes it "
            "out, and the maps are then of upright boxes"
        )
    if shape[1] in (6, 7):
        return (
            "; rows (box, score, class) are what is left after suppression: export the network without it (nms=False, "
            "end2end=False)"
        )
    return ""


def _keep(classes: int, iou: float, most: int, output: Tensor, threshold: float) -> list[Kept]:
    """Returns every candidate as its most probable class, the overlapping ones of each class suppressed."""
    from torchvision.ops import batched_nms

    output = at_least_float32(output.detach())
    candidates = Candidates(output, classes)
    detections = []
    for corners, probabilities in zip(candidates.boxes(0), candidates.probabilities, strict=True):
        scores, labels = probabilities.max(1)
        index = (scores > threshold).nonzero()[:, 0]
        # torchvision keeps classes apart by moving their boxes, which fails for boxes beyond the left or upper border
        moved = corners[index] - corners.amin()
        index = index[batched_nms(moved, scores[index], labels[index], iou)[:most]]
        detections.append(Kept(index, labels[index]))
    return detections
