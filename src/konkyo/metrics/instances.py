"""These metrics tell how maps of a detector's instances go together: alike for one object, unlike for neighbours."""

import torch
from torch import Tensor

from konkyo.metrics.base import metric
from konkyo.metrics.localisation import defined
from konkyo.utils.tensors import overlap


@metric(better="higher")
def same_object(maps: Tensor, objects: Tensor, image_index: Tensor | None = None) -> Tensor:
    """Same object is how alike the maps of one object are: the mean correlation with the other maps about it.

    The correlation of Odam-NMS (Zhao & Chan, 2023), <a, b> / (|a| |b|) of the maps' positive parts. NaN for the only
    map of an object. A map without positive part has no correlation, and counts in none. All maps of a call are
    compared: (R, R) numbers. -> (R,)
    """
    pairs = (objects[:, None] == objects) & _of_one_image(maps, image_index)
    return _mean_correlation(maps, pairs & ~torch.eye(len(maps), dtype=torch.bool, device=maps.device))


@metric(better="higher")
def separation(maps: Tensor, objects: Tensor, boxes: Tensor, image_index: Tensor | None = None) -> Tensor:
    """Separation is how unlike maps of overlapping objects are: 1 - the mean correlation with other objects' maps.

    -> (R,)

    Of the maps about another object whose box overlaps this one's; the correlation as in `same_object`. NaN where there
    are none.
    """
    pairs = (objects[:, None] != objects) & (overlap(boxes[:, None], boxes) > 0) & _of_one_image(maps, image_index)
    return 1 - _mean_correlation(maps, pairs)


def _of_one_image(maps: Tensor, image_index: Tensor | None) -> Tensor:
    """Tells which two maps are of one image. -> (R, R) bool"""
    if image_index is None:
        return torch.ones(len(maps), len(maps), dtype=torch.bool, device=maps.device)
    return image_index[:, None] == image_index


def _mean_correlation(maps: Tensor, pairs: Tensor) -> Tensor:
    """Averages the correlation with the other over a map's pairs (R, R) bool; NaN where there is none. -> (R,)"""
    flat = maps.flatten(1).relu()
    length = flat.norm(dim=1)
    there = defined(length, maps) > 0
    flat = torch.where(there[:, None], flat / length[:, None], 0.0)
    alike = (flat @ flat.T).clamp(max=1)
    return torch.where(pairs & there & there[:, None], alike, torch.nan).nanmean(1)
