"""A linear probe: how well the classes can be told apart by a linear function of the features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from konkyo.evaluation.diagnose.statistics import standardised

STRENGTHS = tuple(10.0**power for power in range(-3, 5))
"""The ridge penalties that are tried, per training image."""
_FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """A probe's decisions for other images, and how strong its penalty was."""

    decisions: Tensor
    """(n,)"""
    strength: float


def ridge_probe(train: Tensor, labels: Tensor, features: Tensor, classes: int, *, generator: torch.Generator) -> Probe:
    """Fits a linear classifier to train (m, C) with labels (m,), and decides features (n, C).

    Ridge regression on the classes as -1 and 1, the features standardised by the training images. The penalty is that
    of `STRENGTHS` with the best accuracy over five folds; of equal ones the strongest.
    """
    known, queries = standardised(train, train), standardised(features, train)
    targets = 2 * torch.nn.functional.one_hot(labels, classes).double() - 1
    fold = torch.randperm(len(known), generator=generator) % _FOLDS
    right = torch.zeros(len(STRENGTHS))
    for k in range(_FOLDS):
        inside, outside = fold != k, fold == k
        if not inside.any() or not outside.any():
            continue
        scores = _solutions(known[inside], targets[inside], known[outside])
        right += (scores.argmax(2) == labels[outside]).sum(1)
    best = max(range(len(STRENGTHS)), key=lambda i: (float(right[i]), i))
    return Probe(_solutions(known, targets, queries)[best].argmax(1), STRENGTHS[best])


def _solutions(features: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    """Returns the ridge regression's values for queries (n, C), a set for every penalty. -> (penalties, n, K)"""
    mean, offset = features.mean(0), targets.mean(0)
    left, singular, right = torch.linalg.svd(features - mean, full_matrices=False)
    along, rotated = left.mT @ (targets - offset), (queries - mean) @ right.mT
    squares = singular.square()
    return torch.stack(
        [
            rotated @ (along * (singular / (squares + strength * len(features)))[:, None]) + offset
            for strength in STRENGTHS
        ]
    )
