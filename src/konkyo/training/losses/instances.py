"""The loss of Odam-Train: maps of one object are alike, those of objects that overlap differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.errors import KonkyoError
from konkyo.utils.tensors import overlap

_CLOSE = 1e-4  # a cosine's distance from 0 and 1, whose logarithm would be infinite


def odam_loss(
    maps: Tensor,
    objects: Tensor | Sequence[int],
    boxes: Tensor,
    ious: Tensor,
    *,
    weighted: bool = True,
) -> Tensor:
    """Returns the loss of Odam-Train (Zhao & Chan, 2024), by which a detector's maps tell its objects apart. -> ()

    `maps` (R, *grid) are those of one image's predictions, rectified, on one grid and in the graph, as `odam_maps` and
    `InstanceMaps` give them. Prediction r is of object `objects[r]`, has the box `boxes[r]` (xyxy), and overlaps its
    object by `ious[r]`. Of every object the prediction with the largest IoU, its anchor, is compared with others:

        L = (sum over its object's other predictions of -u log c - sum over negatives of log(1 - c)) / number of pairs

    c is the cosine of the two maps, kept 1e-4 away from 0 and 1. Negatives are the predictions of other objects whose
    boxes overlap the anchor's. u = IoU / the anchor's IoU (the authors' R-CNN), or 1 with `weighted=False` (their
    FCOS). 0 where there are no pairs. The authors add it with a weight of 0.5 or 0.2, over at most 300 predictions of
    the largest IoU. (Their FCOS takes one anchor for a whole image, by a slip; here every object has one.) A blank map
    has the cosine 0, and no gradient. KonkyoError: not one object, box and IoU per map.
    """
    count = len(maps)
    numbers = torch.as_tensor(objects, device=maps.device)
    if maps.ndim < 2 or numbers.shape != (count,) or boxes.shape != (count, 4) or ious.shape != (count,):
        raise KonkyoError(
            f"maps (R, *grid) with an object, a box (4) and an IoU each were expected; got {tuple(maps.shape)}, "
            f"{tuple(numbers.shape)}, {tuple(boxes.shape)} and {tuple(ious.shape)}"
        )
    directions = functional.normalize(maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32)), dim=1)
    total, pairs = directions.sum() * 0, 0
    for number in torch.unique(numbers).tolist():
        members = (numbers == number).nonzero().flatten()
        anchor = members[ious[members].argmax()]
        likeness = (directions @ directions[anchor]).clamp(_CLOSE, 1 - _CLOSE)
        others = members[members != anchor]
        apart = ((numbers != number) & (overlap(boxes, boxes[anchor]) > 0)).nonzero().flatten()
        shares = ious[others] / ious[anchor].clamp_min(torch.finfo(ious.dtype).tiny)
        shares = shares if weighted else torch.ones_like(shares)
        total = total - (shares.detach().to(total) * likeness[others].log()).sum() - (1 - likeness[apart]).log().sum()
        pairs += len(others) + len(apart)
    return total / max(1, pairs)
