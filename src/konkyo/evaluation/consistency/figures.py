"""The figures of a consistency result: which maps, distances and images they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from konkyo.draw import consistency as drawing

if TYPE_CHECKING:
    from PIL import Image

    from konkyo.evaluation.consistency.result import Consistency

_CLASSES_SHOWN = 48
"""At most, in a figure."""


def figures(result: Consistency, pictures: Callable[[str], Image.Image] | None, k: int) -> dict[str, Image.Image]:
    """Returns the figures by file name; `Consistency.figures` says which."""
    used = [c.used for c in result.of_class]
    shown = sorted(sorted((i for i, n in enumerate(used) if n), key=lambda i: -used[i])[:_CLASSES_SHOWN])
    if not shown:
        return {}
    names = [f"{result.classes[i]} ({used[i]})" for i in shown]
    deviations = [[image.deviation for image in result.ranked(i)] for i in shown]
    drawings = {
        "maps.png": drawing.class_maps(names, result.mean[shown], result.deviation[shown]),
        "deviations.png": drawing.deviations(names, deviations, result.distance),
    }
    if len(shown) > 1:
        matrix = result.between[shown][:, shown]
        drawings["between.png"] = drawing.matrix([result.classes[i] for i in shown], matrix, result.distance)
    if pictures is not None:
        drawings["extremes.png"] = drawing.extremes(_sections(result, shown, pictures, k))
    return drawings


def _sections(
    result: Consistency, shown: Sequence[int], pictures: Callable[[str], Image.Image], k: int
) -> list[drawing.Section]:
    """Returns the most typical and the most deviant images of every class, `k` of both at most."""
    sections = []
    for i in shown:
        half = min(k, result.of_class[i].used // 2)
        sides = [
            [(pictures(image.name), result.map_of(image.name), f"{image.deviation:.3g}") for image in images]
            for images in (result.typical(i, half), result.deviant(i, half))
        ]
        sections.append(drawing.Section(result.classes[i], *sides))
    return sections
