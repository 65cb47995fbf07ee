"""The classes of a page: cards with their mean maps, and the confusion matrix as far as it can be read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from konkyo.draw.overlay import overlay
from konkyo.evaluation.diagnose.evidence import difference_picture, map_picture
from konkyo.report.assets import data_uri
from konkyo.report.page import ClassCard, ConfusionMatrix, Page

MOST_CLASSES = 40
"""A confusion matrix shows so many classes at most, the most confused ones."""
_MEAN_SIDE, _SMALL_SIDE, _EVIDENCE_SIDE = 224, 112, 320


def class_views(page: Page) -> list[dict[str, Any]]:
    """Returns what the template needs of every class card."""
    maps = {card.name: card.mean_map for card in page.classes if card.mean_map is not None}
    return [_view(card, maps) for card in page.classes]


def _view(card: ClassCard, maps: dict[str, Tensor]) -> dict[str, Any]:
    confused = []
    for other, count in card.confused:
        pair = None
        if card.name in maps and other in maps:
            pair = {
                "own": data_uri(map_picture(maps[card.name], _SMALL_SIDE)),
                "other": data_uri(map_picture(maps[other], _SMALL_SIDE)),
                "difference": data_uri(difference_picture(maps[card.name], maps[other], _SMALL_SIDE)),
            }
        confused.append({"name": other, "count": count, "pair": pair})
    evidence = [{"uri": data_uri(e.picture, _EVIDENCE_SIDE), "caption": e.caption} for e in card.evidence]
    return {"card": card, "mean": _mean(card), "confused": confused, "evidence": evidence}


def _mean(card: ClassCard) -> str | None:
    if card.mean_map is None:
        return None if card.mean_picture is None else data_uri(card.mean_picture, _MEAN_SIDE)
    if card.mean_picture is None:
        return data_uri(map_picture(card.mean_map, _MEAN_SIDE))
    picture = card.mean_picture.convert("RGB").resize((_MEAN_SIDE, _MEAN_SIDE))
    return data_uri(overlay(picture, card.mean_map))


def matrix_view(confusion: ConfusionMatrix | None) -> dict[str, Any] | None:
    """Returns the matrix for the template: of more than 40 classes the most confused; None where there is none."""
    if confusion is None or len(confusion.classes) < 2:
        return None
    counts, total = confusion.counts, len(confusion.classes)
    index = torch.arange(total)
    if total > MOST_CLASSES:
        errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        index = errors.argsort(descending=True, stable=True)[:MOST_CLASSES].sort().values
    names = [confusion.classes[k] for k in index.tolist()]
    part = counts[index][:, index]
    sums = counts.sum(1)[index].clamp_min(1)
    lines = [
        {
            "name": name,
            "cells": [
                {"count": int(count), "name": other, "share": round(100 * int(count) / int(sums[row]))}
                for other, count in zip(names, part[row], strict=True)
            ],
        }
        for row, name in enumerate(names)
    ]
    return {"names": names, "lines": lines, "shown": len(names), "total": total}
