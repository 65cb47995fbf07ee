"""What rows with true labels add up to: accuracy with its interval, and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konkyo.metrics.distances import on_grid
from konkyo.report.page import ClassCard, ConfusionMatrix, ImageRow
from konkyo.utils.statistics import interval_of_share
from konkyo.utils.tensors import min_max

_GRID, _PICTURE, _EXTREMES = 14, 160, 3


def accuracy(rows: Sequence[ImageRow]) -> tuple[int, int, float, float]:
    """Returns (correct, known, low, high): decisions that are the true label, with Wilson's 95 % interval.

    Rows count whose decision and label are known; the interval is (NaN, NaN) of none.
    """
    known = [row.correct for row in rows if row.correct is not None]
    n, correct = len(known), sum(known)
    return correct, n, *interval_of_share(correct, n)


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


def cards_of(confusion: ConfusionMatrix | None, rows: Sequence[ImageRow]) -> tuple[ClassCard, ...]:
    """Returns a card per class with its mean map; none where nothing is known of classes or each has one image."""
    cards = () if confusion is None else class_cards(confusion)
    return with_mean_maps(cards, rows) if any(card.n > 1 for card in cards) else ()


def with_mean_maps(cards: Sequence[ClassCard], rows: Sequence[ImageRow]) -> tuple[ClassCard, ...]:
    """Returns the cards with the mean of the maps that explain their class, on the mean of those pictures.

    The first method's maps count that are not doubtful, scaled to [0, 1] each; a class needs two of them. Typical and
    deviant rows are those with the least and the largest mean squared distance from the mean map.
    """
    made = []
    for card in cards:
        members = [k for k, r in enumerate(rows) if r.asked == card.name and r.maps and r.maps[0].diagnosis == "ok"]
        if len(members) < 2:
            made.append(card)
            continue
        maps = torch.stack([_on_grid(rows[k].maps[0].values) for k in members])
        mean = maps.mean(0)
        near = (maps - mean).square().flatten(1).mean(1).argsort(stable=True).tolist()
        few = min(_EXTREMES, len(members) // 2)
        made.append(
            replace(
                card,
                mean_map=mean,
                mean_picture=mean_picture([rows[k].picture for k in members]),
                typical=tuple(members[k] for k in near[:few]),
                deviant=tuple(members[k] for k in reversed(near[-few:])),
            )
        )
    return tuple(made)


def _on_grid(values: Tensor) -> Tensor:
    return on_grid(min_max(values.detach().cpu().float()[None]), _GRID)[0]


def mean_picture(pictures: Sequence[Image.Image | None]) -> Image.Image | None:
    """Returns the mean of the pictures that are known, each brought to one square; None of none."""
    shown = [picture for picture in pictures if picture is not None]
    if not shown:
        return None
    total = np.zeros((_PICTURE, _PICTURE, 3))
    for picture in shown:
        total += np.asarray(picture.convert("RGB").resize((_PICTURE, _PICTURE)))
    return Image.fromarray((total / len(shown)).round().astype(np.uint8))
