"""The page of a consistency result: a card per class with its mean map, and the images nearest and farthest from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from PIL import Image

from konkyo.evaluation.consistency.result import ClassResult, Consistency, ImageResult
from konkyo.report.builders import Request, builder
from konkyo.report.data import DataPictures, provenance_of
from konkyo.report.page import ClassCard, ConfusionMatrix, HeatMap, ImageRow, MatrixBlock, Page, TableBlock, words
from konkyo.report.truth import class_cards, confusion_of, mean_picture

EXTREMES = 5
"""So many typical and so many deviant images of a class are named."""
_MOST_IN_MATRIX = 40


@builder(Consistency)
def page_of_consistency(result: Consistency, request: Request) -> Page:
    """Returns the page of a consistency result."""
    settings = result.settings
    source = DataPictures(settings, request)
    extremes = {
        image.name
        for c in result.of_class
        if c.used
        for of_class in (result.typical(c.name, EXTREMES), result.deviant(c.name, EXTREMES))
        for image in of_class
    }
    wrong = {image.name for image in result.images if not image.correct}
    pictures = source.of([image.name for image in result.images], extremes | wrong)
    rows = _rows(result, pictures)
    confusion = confusion_of(rows)
    return Page(
        title=request.title or f"{settings.get('model', 'model')}: gaze consistency",
        verdict=_verdict(result),
        rows=rows,
        classes=_cards(result, confusion, rows, pictures),
        confusion=confusion,
        tables=(
            TableBlock(words("Classes", "クラス"), *result.table()),
            TableBlock(words("The whole data set", "データ全体"), *result.summary()),
        ),
        matrices=_matrices(result),
        provenance=provenance_of(settings, request),
        command=request.command or "",
        notes=(*(words(line) for line in result.remarks()), *source.notes),
    )


def _verdict(result: Consistency) -> Mapping[str, str]:
    interval = "" if math.isnan(result.low) else f" [{result.low:.3g}, {result.high:.3g}]"
    used = sum(c.used for c in result.of_class)
    return words(
        f"Maps of one class deviate from their mean by L = {result.value:.3g}{interval} ({used} maps). This says how "
        "alike maps are, not whether they are right.",
        f"同じクラスのマップは平均から L = {result.value:.3g}{interval} ずれています（{used} 枚）。"
        "マップがどれほど似ているかを示すもので、正しいかどうかは示しません。",
    )


def _rows(result: Consistency, pictures: Mapping[str, Image.Image]) -> tuple[ImageRow, ...]:
    method = str(result.settings.get("method", "map"))
    maps = iter(result.maps)
    rows = []
    for image in result.images:
        shown = next(maps) if image.used else None
        target = image.label if result.settings.get("target", "label") == "label" else image.prediction
        rows.append(
            ImageRow(
                name=image.name,
                picture=pictures.get(image.name),
                maps=() if shown is None else (HeatMap(method, shown, limits=(0.0, 1.0)),),
                decision=result.classes[image.prediction],
                true_label=result.classes[image.label],
                asked=result.classes[target],
                flags=(() if image.used else ("not measured",)) + (("doubtful map",) if image.blank else ()),
                values={} if math.isnan(image.deviation) else {"deviation": image.deviation},
            )
        )
    return tuple(rows)


def _cards(
    result: Consistency,
    confusion: ConfusionMatrix | None,
    rows: tuple[ImageRow, ...],
    pictures: Mapping[str, Image.Image],
) -> tuple[ClassCard, ...]:
    counted = {} if confusion is None else {card.name: card for card in class_cards(confusion)}
    places = {image.name: index for index, image in enumerate(result.images)}
    alarms = dict([alarm] if (alarm := result.alarm()) is not None else [])

    def numbers(images: tuple[ImageResult, ...]) -> tuple[int, ...]:
        return tuple(places[image.name] for image in images)

    def card(index: int, c: ClassResult) -> ClassCard:
        of_class = [row for row in rows if row.true_label == c.name and row.name in pictures]
        base = counted.get(c.name, ClassCard(c.name, c.total))
        if not c.used:
            return base
        few = max(1, min(EXTREMES, c.used // 2))
        return replace(
            base,
            consistency=c.value,
            low=c.low,
            high=c.high,
            mean_map=result.mean[index],
            mean_picture=mean_picture([pictures[row.name] for row in of_class]),
            typical=numbers(result.typical(c.name, few)),
            deviant=numbers(result.deviant(c.name, few)),
            alarm=alarms.get(c.name, {}),
        )

    return tuple(card(index, c) for index, c in enumerate(result.of_class) if c.total or c.used)


def _matrices(result: Consistency) -> tuple[MatrixBlock, ...]:
    """Returns the distances of mean maps of the classes with the most maps, if there are two or more."""
    used = sorted((i for i, c in enumerate(result.of_class) if c.used), key=lambda i: -result.of_class[i].used)
    shown = sorted(used[:_MOST_IN_MATRIX])
    if len(shown) < 2:
        return ()
    title = words(f"Distance of mean maps ({result.distance})", f"平均マップの距離（{result.distance}）")
    return (MatrixBlock(title, tuple(result.classes[i] for i in shown), result.between[shown][:, shown]),)
