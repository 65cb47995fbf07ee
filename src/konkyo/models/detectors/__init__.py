"""What adapters of detectors give: candidates in the autograd graph, and which of them the detector keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from konkyo.targets.candidates import Candidates


@dataclass(frozen=True, eq=False)
class Kept:
    """An image's detections, highest score first: detection d is candidate `index[d]` taken as class `label[d]`."""

    index: Tensor
    """(D,) int64"""
    label: Tensor
    """(D,) int64"""


@dataclass(frozen=True)
class Detector:
    """How a network is a detector."""

    classes: int
    """How many classes there are; "nothing" and "background" are none."""
    propose: Callable[[nn.Module, Tensor], Tensor]
    """(network, images (N, 3, H, W)) -> the candidates' boxes and probabilities (N, Q, 4 B + K), see `Candidates`: all
    of them, nothing suppressed, in the graph of the network's activations, the same Q for all images of any batch."""
    keep: Callable[[Tensor, float], list[Kept]]
    """(candidates (N, Q, 4 B + K), lowest score) -> the detections of each image, as the library itself would keep
    them."""
    layer: str
    """The module whose output is what maps are made of by default: the backbone's end, or all levels of a pyramid; ""
    for the one that a trace finds."""
    patch: int | None = None
    """The side of the patches, in pixels, where that module puts out tokens: a class token, the patches row by row, and
    any others."""


def best_class(output: Tensor, threshold: float, classes: int) -> list[Kept]:
    """Every candidate as its most probable class: the set prediction of DETR and its like."""
    scores, labels = Candidates(output, classes).probabilities.max(2)
    kept = []
    for score, label in zip(scores, labels, strict=True):
        order = score.argsort(descending=True, stable=True)
        index = order[score[order] > threshold]
        kept.append(Kept(index, label[index]))
    return kept


def best_pairs(output: Tensor, threshold: float, classes: int, most: int | None = None) -> list[Kept]:
    """The `most` (None: as many as candidates) best pairs of candidate and class: detectors with sigmoid heads."""
    flat = Candidates(output, classes).probabilities.flatten(1)
    scores, pairs = flat.topk(min(most or output.shape[1], flat.shape[1]), dim=1)
    return [Kept(p[s > threshold] // classes, p[s > threshold] % classes) for s, p in zip(scores, pairs, strict=True)]
