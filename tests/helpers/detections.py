"""What explains a detection, in plain loops: likeness, match and score of candidates, sums over levels, masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import konkyo
from helpers.detectors import Recording
from konkyo.targets.detections import SIDES_OF_BOX, InstanceTarget


def iou_by_hand(a: Sequence[float], b: Sequence[float]) -> float:
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    return wide * tall / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * tall)


def box_of(target: InstanceTarget, candidate: Sequence[float]) -> list[float]:
    """The box of a candidate, one for all classes or the class's own."""
    classes = len(target.likeness)
    at = 4 * target.label if len(candidate) == 5 * classes and classes > 1 else 0
    return list(candidate[at : at + 4])


def likeness_by_hand(target: InstanceTarget, candidate: Sequence[float]) -> float:
    """IoU times the similarity of the classes."""
    p, own = candidate[-len(target.likeness) :], target.likeness
    alike = {
        "cosine": sum(x * y for x, y in zip(p, own, strict=True)) / (math.hypot(*p) * math.hypot(*own)),
        "probability": p[target.label],
        "difference": 1 - abs(p[target.label] - own[target.label]),
        "same": p[target.label] if max(p) == p[target.label] else 0.0,
    }[target.class_similarity]
    return alike * iou_by_hand(box_of(target, candidate), target.box)


def match_by_hand(target: InstanceTarget, candidates: Tensor) -> tuple[int, float, bool]:
    """(index, likeness, whether it is there) of the candidate that is the instance or else most like it.

    Of equal ones that of the largest p, then its own, then the first.
    """
    rows = candidates.detach().tolist()
    own = rows[target.index]
    if box_of(target, own) == list(target.box) and own[-len(target.likeness) :] == list(target.likeness):
        return target.index, likeness_by_hand(target, own), True
    alike = [likeness_by_hand(target, row) for row in rows]
    best = max(alike)
    equal = [j for j, value in enumerate(alike) if value >= best * (1 - 1e-6)]
    index = min(equal, key=lambda j: (-rows[j][-len(target.likeness) + target.label], j != target.index, j))
    return index, best, best > target.least


def score_by_hand(target: InstanceTarget, candidates: Tensor) -> Tensor:
    """The score of one image's candidates (Q, ...), in their graph."""
    index, _, found = match_by_hand(target, candidates)
    if not found:
        return 0 * candidates.sum()
    matched, classes = candidates[index], len(target.likeness)
    at = 4 * target.label if len(matched) == 5 * classes and classes > 1 else 0
    p = matched[len(matched) - classes + target.label]
    if target.quantity in SIDES_OF_BOX:
        return matched[at + SIDES_OF_BOX.index(target.quantity)]
    return (p / (1 - p)).log() if target.quantity == "logit" else p


def summed(weights: list[Tensor], activations: list[Tensor]) -> Tensor:
    """Eq. 7 before its ReLU, the levels enlarged to the finest."""
    maps = []
    for w, a in zip(weights, activations, strict=True):
        total = torch.zeros_like(a[0])
        for k in range(len(a)):
            total += w[k] * a[k]
        maps.append(total)
    size = max((tuple(m.shape) for m in maps), key=math.prod)
    enlarged = [nn.functional.interpolate(m[None, None], size=size, mode="bilinear")[0, 0] for m in maps]
    return torch.stack(enlarged).sum(0)


def masks_by_hand(network: Recording, images: Tensor, count: int) -> list[list[Tensor]]:
    """Of every image its masks, from what the detector saw after the images themselves."""
    shown = network.seen[len(images) :]
    assert len(shown) == count * len(images)
    found = []
    for i, image in enumerate(images):
        ratios = [masked / image for masked in shown[i * count : (i + 1) * count]]
        for ratio in ratios:
            assert (ratio - ratio[:1]).abs().max() < 1e-9  # all channels alike
        found.append([ratio[0] for ratio in ratios])
    return found


def instances(result: konkyo.Explanation) -> list[InstanceTarget]:
    found = [target for target in result.targets if isinstance(target, InstanceTarget)]
    assert len(found) == len(result)
    return found
