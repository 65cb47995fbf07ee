"""Which of several detections are the same object, by where their maps lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.utils.tensors import overlap


def odam_nms(
    maps: Tensor,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | Sequence[int | str] | None = None,
    *,
    iou: float = 0.5,
    high: float = 0.8,
    low: float = 0.2,
) -> Tensor:
    """Returns the rows that stay (K,) int64, highest score first: Odam-NMS (Zhao & Chan, 2023).

    `maps` (R, h, w) of one image, not negative, one per detection; `boxes` (R, 4) xyxy; `scores` (R,); `labels` (R,),
    indices or names: detections of different labels never compete. Detections are taken in falling order of the score,
    and compared with every one that stays by the correlation of the maps c = <h_i, h_j> / (|h_i| |h_j|). A detection
    stays if c is below `high` where the boxes overlap by no more than `iou`, and below `low` where they overlap by
    more. So two boxes about one object have one map though they hardly overlap, and two objects that overlap have two.
    0.5 is the authors' `iou` for FCOS, 0.6 for Faster R-CNN. KonkyoError: shapes that do not go together, or maps that
    are negative or not numbers.
    """
    rows = len(maps)
    if labels is None:
        labels = torch.zeros(rows, dtype=torch.int64)
    elif not isinstance(labels, Tensor):
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        labels = torch.tensor([numbers[label] for label in labels])
    if maps.ndim != 3 or boxes.shape != (rows, 4) or scores.shape != (rows,) or labels.shape != (rows,):
        raise KonkyoError(
            "odam_nms takes maps (R, h, w), boxes (R, 4), scores (R,) and labels (R,); got "
            f"{tuple(maps.shape)}, {tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if rows and not maps.amin() >= 0:  # NaN too
        raise KonkyoError("odam_nms takes maps that are not negative, as an explanation's `maps` after the ReLU")
    flat = torch.nn.functional.normalize(maps.flatten(1), dim=1)
    alike = flat @ flat.T
    same = labels[:, None].to(maps.device) == labels.to(maps.device)
    far = overlap(boxes[:, None], boxes[None]) <= iou
    rival = (same & torch.where(far, alike >= high, alike >= low)).cpu()
    survivors: list[int] = []
    for row in scores.argsort(descending=True, stable=True).tolist():
        if not rival[row, survivors].any():
            survivors.append(row)
    return torch.tensor(survivors, dtype=torch.int64, device=maps.device)
