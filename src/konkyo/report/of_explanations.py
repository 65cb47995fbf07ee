"""The page of explanations: one or several methods' maps over the same images."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from PIL import Image

from konkyo.errors import KonkyoError
from konkyo.explanation.result import Explanation
from konkyo.explanation.words import image_name
from konkyo.report.builders import Request, builder
from konkyo.report.page import ConfusionMatrix, HeatMap, ImageRow, Page, words
from konkyo.report.provenance import of_model, of_options, of_versions
from konkyo.report.truth import cards_of, confusion_of

UNSURE = 0.5
"""A decision less probable than this bears the flag "unsure"."""


@builder(Explanation, several=True)
def page_of_explanations(results: list[Explanation], request: Request) -> Page:
    """Returns the page of one or several methods' explanations. KonkyoError: they are not of the same rows."""
    first = results[0]
    if first.signed.ndim != 3:
        grid = "x".join(map(str, first.signed.shape[1:]))
        raise KonkyoError(
            f"a report shows maps (h, w) of pictures; these are {grid}. result.save("
            '"map.gif") or result.overlay(0).save("map.png") draw videos, volumes and signals'
        )
    for other in results[1:]:
        if other.labels != first.labels or other.image_index.tolist() != first.image_index.tolist():
            raise KonkyoError(
                "explanations on one page explain the same classes of the same images, a method each; "
                f"{first.method} has {len(first)} rows, {other.method} {len(other)}, or they differ in what they are of"
            )
    rows = image_rows(results)
    confusion = _confusion(first, rows)
    name = first.model if request.model is None else request.model.name
    methods = ", ".join(dict.fromkeys(result.method for result in results))
    return Page(
        title=request.title or f"{name or 'model'}: {methods}",
        rows=rows,
        classes=cards_of(confusion, rows),
        confusion=confusion,
        provenance=_provenance(results, request),
        command=request.command or "",
        notes=tuple(words(sentence) for sentence in dict.fromkeys(a for r in results for a in r.assumptions)),
    )


def image_rows(results: list[Explanation]) -> tuple[ImageRow, ...]:
    """Returns the rows of a page: one per row of the explanations, with a map of each of them."""
    first = results[0]
    pictures: dict[int, Image.Image | None] = {}
    rows = []
    for row in range(len(first)):
        index = int(first.image_index[row])
        if index not in pictures:
            source = next((result for result in results if result.images is not None), None)
            pictures[index] = None if source is None else source.picture(row)
        question = first.questions[row] if first.questions else None
        name = f"{image_name(first, row)}: {question}" if question else image_name(first, row)
        rows.append(_image_row(results, row, pictures[index], name))
    return tuple(rows)


def _image_row(results: list[Explanation], row: int, picture: Image.Image | None, name: str) -> ImageRow:
    first = results[0]
    maps = tuple(_heat_map(result, row) for result in results)
    decision = first.decisions[row] if first.decisions else None
    truth = (first.true_labels[row] or "") if first.true_labels else ""
    values: dict[str, Any] = {}
    flags = ["doubtful map"] if any(m.diagnosis != "ok" for m in maps) else []
    if decision is not None:
        asked = math.nan if decision.asked_probability is None else decision.asked_probability
        values = {
            "decision": decision.label,
            "probability": decision.probability,
            "asked_probability": asked,
            "asked_rank": decision.rank,
            "true_probability": _of_truth(truth, decision.label, decision.probability, first.labels[row], asked),
        }
        flags += ["unsure"] if decision.probability < UNSURE else []
    return ImageRow(
        name=name,
        picture=picture,
        maps=maps,
        true_label=truth,
        asked=first.labels[row],
        passage=first.passages[row] if first.passages else None,
        flags=tuple(flags),
        box=_box(first, row, picture),
        **values,
    )


def _of_truth(truth: str, decided: str, probability: float, target: str, asked_probability: float) -> float:
    """Returns the probability of the true label where it is that of the decided or the asked class; else NaN."""
    if not truth:
        return math.nan
    return probability if truth == decided else asked_probability if truth == target else math.nan


def _heat_map(result: Explanation, row: int) -> HeatMap:
    region = None if result.regions is None else tuple(result.regions[row].tolist())
    diagnosis = result.diagnosis[row] if result.diagnosis else None
    return HeatMap(
        method=result.method,
        values=result.maps[row],
        region=None if region is None else (region[0], region[1], region[2], region[3]),
        diagnosis="ok" if diagnosis is None else diagnosis.kind,
        message="" if diagnosis is None else diagnosis.message,
    )


def _box(result: Explanation, row: int, picture: Image.Image | None) -> tuple[float, float, float, float] | None:
    if result.boxes is None or picture is None or not bool(result.boxes[row].isfinite().all()):
        return None
    x1, y1, x2, y2 = result.boxes[row].tolist()
    return x1 / picture.width, y1 / picture.height, x2 / picture.width, y2 / picture.height


def _confusion(first: Explanation, rows: tuple[ImageRow, ...]) -> ConfusionMatrix | None:
    """Returns the counts over images, not rows: an image may have several targets."""
    of_image = {int(index): row for index, row in zip(first.image_index, rows, strict=True)}
    return confusion_of(list(of_image.values()))


def _provenance(results: list[Explanation], request: Request) -> dict[str, str]:
    first = results[0]
    counts = Counter(int(index) for index in first.image_index)
    values = {"model": first.model} if request.model is None else of_model(request.model)
    values |= {"images": str(len(counts)), "maps": str(len(first) * len(results))}
    for result in results:
        values[f"{result.method}: layer"] = result.layer
        values[f"{result.method}: options"] = of_options(result.options)
    return values | {"seed": str(first.seed)} | of_versions()
