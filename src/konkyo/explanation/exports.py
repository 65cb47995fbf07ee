"""Explanations for other tools: tables of pandas, COCO, supervision and FiftyOne. None of them has to be installed."""

from __future__ import annotations

import math
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from konkyo.data.frame import Frame
from konkyo.errors import KonkyoError
from konkyo.explanation.rows import selected
from konkyo.explanation.words import box_of, decision_of, image_name, target_of
from konkyo.targets.detections import InstanceTarget
from konkyo.utils.frames import data_frame
from konkyo.utils.tensors import min_max

if TYPE_CHECKING:
    import pandas

    from konkyo.explanation.result import Explanation

WHOLE = Frame()
THRESHOLD = 0.2
"""A mask is where a map scaled to [0, 1] is above this: the cut at 20 % with which CAM localises (Zhou, 2016)."""


def to_frame(result: Explanation) -> pandas.DataFrame:
    """Returns a line per row; `Explanation.to_frame` says more."""
    rows = range(len(result))
    decisions = [decision_of(result, row) for row in rows]
    nan = math.nan
    return data_frame(
        {
            "image": [image_name(result, row) for row in rows],
            "true_label": result.true_labels or [None for _ in rows],
            "decision": [None if d is None else d.label for d in decisions],
            "probability": [nan if d is None else d.probability for d in decisions],
            "asked": result.labels,
            "asked_probability": [
                nan if d is None or d.asked_probability is None else d.asked_probability for d in decisions
            ],
            "rank": [nan if d is None or d.rank is None else d.rank for d in decisions],
            "score": result.scores.tolist(),
            "correct": result.correct,
            "diagnosis": [d.kind for d in result.diagnosis] or [None for _ in rows],
            "box": [box_of(result, row) for row in rows],
            "method": [result.method for _ in rows],
            "layer": [result.layer for _ in rows],
            "model": [result.model for _ in rows],
        }
    )


def to_coco(result: Explanation, threshold: float) -> dict[str, Any]:
    """Returns images, categories and annotations; `Explanation.to_coco` says more."""
    numbers = {index: number for number, index in enumerate(dict.fromkeys(result.image_index.tolist()), start=1)}
    categories = {name: number for number, name in enumerate(dict.fromkeys(result.labels), start=1)}
    images: dict[int, dict[str, Any]] = {}
    annotations = []
    for row, index in enumerate(result.image_index.tolist()):
        annotation = coco_annotation(result, row, threshold)
        height, width = annotation["segmentation"]["size"]
        known = {"id": numbers[index], "file_name": image_name(result, row)}
        images.setdefault(index, known | {"height": height, "width": width})
        ids = {"id": row + 1, "image_id": numbers[index], "category_id": categories[result.labels[row]]}
        annotations.append(ids | annotation)
    return {
        "info": {"description": f"{result.method} at {result.layer}, cut at {threshold:g}", "model": result.model},
        "images": list(images.values()),
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }


def coco_annotation(result: Explanation, row: int, threshold: float, frame: Frame = WHOLE) -> dict[str, Any]:
    """Returns a row as an annotation of COCO without its ids: box, mask as run lengths, score, method, diagnosis.

    `frame`: where what the model saw lies in the whole picture, whose pixels then count.
    """
    mask, (left, top, right, bottom) = _cut(result, row, threshold)
    if frame.whole is not None:
        x, y = frame.corner
        whole = mask.new_zeros(frame.whole)
        whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        mask, left, top, right, bottom = whole, left + x, top + y, right + x, bottom + y
    return {
        "bbox": [round(side, 2) for side in (left, top, right - left, bottom - top)],
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": _run_lengths(mask)},
        "iscrowd": 0,
        "score": _confidence(result, row),
        "method": result.method,
        "diagnosis": result.diagnosis[row].kind if result.diagnosis else None,
    }


def to_supervision(result: Explanation, threshold: float) -> Any:
    """Returns the rows of one image as detections; `Explanation.to_supervision` says more."""
    import numpy as np

    library = _library("supervision", "to_supervision()")
    if len(set(result.image_index.tolist())) > 1:
        raise KonkyoError("detections of supervision are of one image; take result.of_image(0), or result[0]")
    if not len(result):
        return library.Detections.empty()
    cuts = [_cut(result, row, threshold) for row in range(len(result))]
    classes = [_class_index(result, row) for row in range(len(result))]
    return library.Detections(
        xyxy=np.array([box for _, box in cuts], np.float32),
        mask=torch.stack([mask for mask, _ in cuts]).numpy(),
        confidence=np.array([_confidence(result, row) for row in range(len(result))], np.float32),
        class_id=np.array(classes, int),
        data={
            "class_name": np.array(result.labels, dtype=str),
            "diagnosis": np.array([str(d.kind) for d in result.diagnosis] or [""] * len(result), dtype=str),
        },
    )


def to_fiftyone(result: Explanation) -> list[Any]:
    """Returns a heat map per row, on the map's own grid, which FiftyOne stretches; see `Explanation.to_fiftyone`."""
    from konkyo.explanation.sheet import maps_of

    library = _library("fiftyone", "to_fiftyone()")
    maps = maps_of(result).detach().cpu().float()
    if maps.ndim != 3:
        raise KonkyoError(f"a heat map of FiftyOne has the shape (h, w); got {tuple(maps.shape[1:])}")
    return [
        library.Heatmap(
            map=map_.nan_to_num().numpy(),
            range=_range(map_),
            label=result.labels[row],
            score=result.scores[row].item(),
            method=result.method,
            diagnosis=result.diagnosis[row].kind if result.diagnosis else None,
        )
        for row, map_ in enumerate(maps)
    ]


# --- parts ------------------------------------------------------------------------------------------------------------


def _library(name: str, what: str) -> Any:
    """Returns an optional library. KonkyoError: it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise KonkyoError(f"{what} needs the library {name}, which is not installed: pip install {name}") from error


def _range(map_: Tensor) -> list[float]:
    """Returns the ends of a map's scale: its lowest and highest value, or around zero where it is signed."""
    known = map_[map_.isfinite()]
    low, high = (float(known.min()), float(known.max())) if known.numel() else (0.0, 0.0)
    if low < 0:
        high = max(-low, high)
        low = -high
    return [low, high if high > low else low + 1]


def _class_index(result: Explanation, row: int) -> int:
    """Returns the class that a row explains; -1 where it is of none."""
    target = target_of(result, row)
    index = target.label if isinstance(target, InstanceTarget) else None if target is None else target.class_index
    return -1 if index is None else index


def _confidence(result: Explanation, row: int) -> float:
    """Returns the probability of what a row explains; where it is of no class, the score itself."""
    decision = decision_of(result, row)
    known = None if decision is None else decision.asked_probability
    return result.scores[row].item() if known is None else known


def _cut(result: Explanation, row: int, threshold: float) -> tuple[Tensor, list[float]]:
    """Returns where the map is strong on its picture (H, W) bool, and the detection's box or that of its largest part.

    What speaks against the target counts as 0. A map that is constant shows nothing: an empty
    mask, and the whole picture as its box.
    """
    from konkyo.metrics.wsol import boxes_of

    if not 0 <= threshold < 1:
        raise KonkyoError(f"a threshold of masks lies in [0, 1); got {threshold}")
    if result.images is None:
        raise KonkyoError("masks and boxes are in pixels of the pictures, which a saved explanation does not keep")
    picture = result.picture(row)
    map_ = selected(result, [row]).at((picture.height, picture.width))[0].detach().cpu().relu()
    mask = min_max(map_[None])[0] > threshold
    box = box_of(result, row)
    if box is None:
        whole = torch.tensor([[0.0, 0.0, picture.width, picture.height]])
        box = (boxes_of(map_, threshold) if mask.any() else whole)[0].tolist()
    return mask, box


def _run_lengths(mask: Tensor) -> list[int]:
    """Returns the lengths of runs down the columns, first that of zeros: COCO's RLE, not compressed.

    >>> _run_lengths(torch.tensor([[False, True], [True, True]]))
    [1, 3]
    """
    flat = mask.T.flatten()
    ends = (flat[1:] != flat[:-1]).nonzero()[:, 0] + 1
    edges = [0, *ends.tolist(), len(flat)]
    runs = [after - before for before, after in pairwise(edges)]
    return [0, *runs] if bool(flat[0]) else runs
