"""What the commands show of explanations: scores in words, boxes, rows of contact sheets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konkyo.errors import KonkyoError, NotApplicable

if TYPE_CHECKING:
    from torch import Tensor

    from konkyo.draw.sheets import Row
    from konkyo.explanation.result import Explanation
    from konkyo.models import Model
    from konkyo.targets.base import BaseTarget


def explained(
    model: Model, file: Path, names: list[str], request: Mapping[str, Any], entry: dict[str, Any]
) -> dict[str, Explanation | NotApplicable]:
    """What `explanations` gives for the picture in a file, whose notes go into the entry."""
    from konkyo.data.images import open_image
    from konkyo.explanation.explain import explanations

    picture = open_image(file)
    if notes := picture.info.get("konkyo"):
        entry["notes"] = list(notes)
    with failures_of(model):
        return explanations(model, picture, names, **request)


@contextmanager
def failures_of(model: Model) -> Iterator[None]:
    """What a network says of input that it does not take, in a line."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise KonkyoError(f"{model.name} failed on this input: {type(error).__name__}: {reason}") from error


def detection(result: Explanation, row: int) -> dict[str, Any]:
    """What the manifest says of a target: its box in the picture's pixels, if it has one, and its own details."""
    box = box_of(result, row)
    place = {} if box is None else {"box": [round(side, 2) for side in box]}
    return place | _target(result, row).details()


def _target(result: Explanation, row: int) -> BaseTarget:
    from konkyo.targets.base import as_target

    target = result.targets[row]
    assert not isinstance(target, str)  # it was explained just now, and not loaded from a file
    return as_target(target)


def box_of(result: Explanation, row: int) -> list[float] | None:
    """Returns a detection's box, xyxy in the picture's pixels; None for what is no detection."""
    box = None if result.boxes is None else [float(side) for side in result.boxes[row]]
    return box if box is not None and all(map(math.isfinite, box)) else None


def score_in_words(result: Explanation, row: int, *, place: bool = True) -> str:
    """What a row explains, with its score: "cat (logit 3.55)", "x1 of cat (probability 0.70) at 257,231,565,477"."""
    score, box = result.scores[row].item(), box_of(result, row)
    words = _target(result, row).in_words(result.labels[row], score)
    return words + (f" at {','.join(str(round(side)) for side in box)}" if place and box is not None else "")


def rows_of(results: Mapping[str, Explanation | NotApplicable], title: str, entry: dict[str, Any]) -> list[Row]:
    """Returns a row of the contact sheet per target."""
    from konkyo.draw.sheets import Cell, Row

    done = {name: result for name, result in results.items() if not isinstance(result, NotApplicable)}
    entry["not_applicable"] = [str(result) for result in results.values() if isinstance(result, NotApplicable)]
    if not done:
        raise KonkyoError("; ".join(entry["not_applicable"]))
    one = next(iter(done.values()))
    maps = {name: maps_of(result) for name, result in done.items()}
    rows = []
    for row, label in enumerate(one.labels):
        cells: list[Cell] = []
        for name, result in results.items():
            if isinstance(result, NotApplicable):
                cells.append(Cell(None, f"not applicable: {str(result).partition(': ')[2]}"))
            else:
                diagnosis = result.diagnosis[row]
                cells.append(Cell(maps[name][row], "" if diagnosis.ok else diagnosis.kind))
                facts = {"method": name, "label": label, "layer": result.layer, "diagnosis": diagnosis.kind}
                entry.setdefault("maps", []).append(facts | detection(result, row))
        explained = score_in_words(one, row, place=False)  # the box is drawn
        rows.append(Row(one.picture(row), title, explained, cells, box_of(one, row)))
    return rows


def maps_of(result: Explanation) -> Tensor:
    """Returns the maps as they lie on the picture: of a picture with a border, without the border."""
    if result.regions is None or not len(result):
        return result.maps
    width, height = result.picture(0).size
    # No larger than the cells of a sheet; a coarse map stays coarse, so that it is drawn on the scale of coarse maps.
    share = min(1.0, (60 if result.maps[0].numel() < 60 * 60 else 400) / max(width, height))
    return result.at((max(1, round(height * share)), max(1, round(width * share))))
