"""Rows of an explanation: which ones a user means, and an explanation of those alone."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from konkyo.errors import KonkyoError, NoSuchName, NoSuchRow, did_you_mean
from konkyo.utils.words import counted, image_and_note, note_of_image

if TYPE_CHECKING:
    from konkyo.explanation.result import Explanation

Rows: TypeAlias = "int | slice | str | Sequence[int] | Sequence[bool] | Tensor | NDArray[np.generic]"
"""A row's number, a slice, a label or an image's name, a list of numbers, or a mask with a truth value per row."""

TENSORS = ("signed", "scores", "image_index", "boxes", "regions")
LISTS = (
    "targets",
    "labels",
    "diagnosis",
    "questions",
    "decisions",
    "names",
    "true_labels",
    "passages",
    "coordinates",
)


def numbers_of(result: Explanation, rows: Rows | None) -> list[int]:
    """Returns the numbers of the rows that are meant, each from 0; None means all.

    NoSuchRow (an IndexError), NoSuchName (a KeyError): there is no such row. KonkyoError: something else.
    """
    count = len(result)
    if rows is None:
        return list(range(count))
    if isinstance(rows, slice):
        return list(range(*rows.indices(count)))
    if isinstance(rows, str):
        return _named(result, rows)
    try:
        wanted = torch.as_tensor(rows) if not isinstance(rows, Tensor) else rows.detach()
    except (TypeError, ValueError, RuntimeError):
        wanted = torch.empty(0, 0)
    if wanted.dtype == torch.bool and wanted.ndim == 1:
        if len(wanted) != count:
            raise NoSuchRow(f"a mask has a truth value for each of the {count} rows; got {len(wanted)}")
        numbers: list[int] = wanted.nonzero()[:, 0].tolist()
        return numbers
    whole = not wanted.numel() or not (wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool)
    if wanted.ndim > 1 or not whole:
        raise KonkyoError(
            "rows are meant by a number, a slice, a label or name, a list of numbers, or a mask of truth values; got "
            f"{str(rows)[:80]} ({type(rows).__name__})"
        )
    return [_from_zero(int(row), count) for row in wanted.reshape(-1).tolist()]


def row_number(result: Explanation, row: int) -> int:
    """Returns a row's number from 0; negative ones count from the end. NoSuchRow: there is none."""
    return _from_zero(operator.index(row), len(result))


def selected(result: Explanation, rows: Sequence[int], images: Sequence[int] | None = None) -> Explanation:
    """Returns the rows of these numbers, as if they alone had been explained; tensors are views where they can be.

    `images`: those that the rows are of, in their new order; None: as they first come up.
    """
    index: list[int] = result.image_index.tolist()
    images = list(dict.fromkeys(index[row] for row in rows)) if images is None else images
    place = {image: number for number, image in enumerate(images)}
    values: dict[str, Any] = {n: _taken(t, rows) for n in TENSORS if (t := getattr(result, n)) is not None}
    values |= {name: tuple(v[row] for row in rows) for name in LISTS if (v := getattr(result, name))}
    values["image_index"] = result.image_index.new_tensor([place[index[row]] for row in rows])
    values["absences"] = {place[image]: why for image, why in result.absences.items() if image in place}
    values["assumptions"] = tuple(_assumed(result.assumptions, place))
    values["notes"] = {name: _taken(noted, rows) for name, noted in result.notes.items()}
    if result.path is not None:
        path = result.path.of(rows)
        values["path"] = path.trimmed() if rows else path
    if isinstance(result.images, Tensor):
        values["images"] = _taken(result.images, images)
    elif result.images is not None:
        values["images"] = tuple(result.images[image] for image in images)
    return replace(result, **values)


def _assumed(assumptions: Sequence[str], place: Mapping[int, int]) -> Iterator[str]:
    """Yields what was assumed of all images, or of one of these, under its new number."""
    for sentence in assumptions:
        number, note = image_and_note(sentence)
        if number is None:
            yield sentence
        elif number in place:
            yield note_of_image(place[number], note)


def _from_zero(row: int, count: int) -> int:
    if not -count <= row < count:
        there = f"rows 0 to {count - 1}, or -{count} to -1" if count else "none"
        raise NoSuchRow(f"row {row} of an explanation with {counted(count, 'row')} ({there})")
    return row % count


def _named(result: Explanation, name: str) -> list[int]:
    """Returns the rows with a label, or else those of an image's name."""
    for names in (result.labels, result.names):
        if name in names:
            return [row for row, known in enumerate(names) if known == name]
    there = list(dict.fromkeys([*result.labels, *result.names]))
    shown = ", ".join(there[:20]) + (f", ... ({len(there)} in all)" if len(there) > 20 else "")
    raise NoSuchName(f"no row is labelled {name!r}{did_you_mean(name, there)} There are: {shown or 'none'}")


def _taken(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Returns the entries of a tensor; a view of it where they follow each other."""
    if len(rows) and list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return tensor[rows[0] : rows[0] + len(rows)]
    return tensor[list(rows)]
