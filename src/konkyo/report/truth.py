"""What rows with true labels add up to: accuracy with its interval, and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from konkyo.report.page import ClassCard, ConfusionMatrix, ImageRow

_Z = 1.959964  # of the 95 % interval


def accuracy(rows: Sequence[ImageRow]) -> tuple[int, int, float, float]:
    """Returns (correct, known, low, high): decisions that are the true label, with Wilson's 95 % interval.

    Rows count whose decision and label are known; the interval is (NaN, NaN) of none. Wilson (JASA, 1927).
    """
    known = [row.correct for row in rows if row.correct is not None]
    n, correct = len(known), sum(known)
    if not n:
        return 0, 0, math.nan, math.nan
    share, spread = correct / n, _Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    reach = _Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return correct, n, max(0.0, centre - reach), min(1.0, centre + reach)


def confusion_of(rows: Sequence[ImageRow]) -> ConfusionMatrix | None:
    """Returns the confusion matrix of rows, one per image; None where no decision and label are both known."""
    pairs = [(row.true_label, row.decision) for row in rows if row.correct is not None]
    if not pairs:
        return None
    names = sorted({name for pair in pairs for name in pair})
    place = {name: index for index, name in enumerate(names)}
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    for label, decision in pairs:
        counts[place[label], place[decision]] += 1
    return ConfusionMatrix(tuple(names), counts)


def class_cards(confusion: ConfusionMatrix) -> tuple[ClassCard, ...]:
    """Returns a card per class of a confusion matrix: its counts, recall, precision, and what it is confused with."""
    counts, names = confusion.counts, confusion.classes
    mixed = counts + counts.T
    cards = []
    for index, name in enumerate(names):
        n, right, given = int(counts[index].sum()), int(counts[index, index]), int(counts[:, index].sum())
        others = [(names[k], int(mixed[index, k])) for k in range(len(names)) if k != index and mixed[index, k] > 0]
        cards.append(
            ClassCard(
                name=name,
                n=n,
                recall=right / n if n else math.nan,
                precision=right / given if given else math.nan,
                confused=tuple(sorted(others, key=lambda other: -other[1])[:3]),
            )
        )
    return tuple(cards)
