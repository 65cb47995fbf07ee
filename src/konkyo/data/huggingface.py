"""Hugging Face's data sets (`datasets.Dataset`, also streamed): which column holds the pictures, and which the class.

The library itself is not imported: its data sets say by their own features what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from konkyo.data.arrays import pictures_of_array, pictures_of_tensor
from konkyo.data.images import open_image, upright
from konkyo.data.samples import Sample, Samples
from konkyo.errors import KonkyoError, unknown

_USUAL = ("image", "images", "img", "photo", "picture")
"""What columns of pictures are called, where nothing else tells that they hold any."""
_LABELS = ("label", "labels")


def is_table(data: Any) -> bool:
    """Tells whether this is a data set of the library `datasets`, or several of them by the names of their splits."""
    return any(kind.__module__.partition(".")[0] == "datasets" for kind in type(data).__mro__)


def holds_prepared(data: Any) -> bool:
    """Tells whether the rows hold what a processor made of pictures, as a transform of the data set may do."""
    return not isinstance(data, Mapping) and "pixel_values" in next(iter(data), ())


def samples_of(data: Any, column: str | None = None, limit: int | None = None) -> Samples:
    """Returns the rows of a data set as samples, read when they are asked for; the class is that of the labels' column.

    `column`: where the pictures are; None: the first that holds some. Of a streamed one the first `limit` rows are
    held. KonkyoError: a column that does not exist, none with pictures, a stream without a limit, or several splits.
    """
    _require_one(data)
    if not _has_length(data):
        return _held(data, column, limit)
    if not len(data):
        return Samples((), partial(_sample, data, "", None, ()), source="datasets")
    first = data[0]
    pictures, label = _picture_column(data, first, column), _label_column(data, first)
    classes = _class_names(data, label)
    labels = () if label is None else tuple(_label(value, classes) for value in data[label])
    known = all(text is not None for text in labels)
    return Samples(
        tuple(f"row {index}" for index in range(len(data))),
        partial(_sample, data, pictures, label, classes),
        classes,
        f"classes from column {label!r}" if label else "",
        f"datasets, column {pictures!r}",
        tuple(text for text in labels if text is not None) if known else (),
    )


def _held(data: Any, column: str | None, limit: int | None) -> Samples:
    """Returns the first rows of a stream as samples. KonkyoError: no limit, so that there may be no end."""
    if limit is None:
        raise KonkyoError("a streamed data set has no length; a limit says how many of its first rows are taken")
    rows = list(streamed(data, column, limit))
    classes = _class_names(data, _label_column(data, {}))
    return Samples(tuple(row.name for row in rows), rows.__getitem__, classes, source=f"datasets, first {limit} rows")


def streamed(data: Any, column: str | None = None, limit: int | None = None) -> Iterator[Sample]:
    """Yields the first rows of a data set as samples, in their order. KonkyoError: as of `samples_of`."""
    _require_one(data)
    pictures = label = None
    classes: tuple[str, ...] = ()
    for index, row in enumerate(islice(_rows(data), limit)):
        if not index:
            pictures, label = _picture_column(data, row, column), _label_column(data, row)
            classes = _class_names(data, label)
        yield _of_row(row, index, str(pictures), label, classes)


def _rows(data: Any) -> Iterable[Mapping[str, Any]]:
    rows: Iterable[Mapping[str, Any]] = data
    return rows


def _has_length(data: Any) -> bool:
    try:
        len(data)
    except TypeError:
        return False
    return True


def _require_one(data: Any) -> None:
    if isinstance(data, Mapping):
        names = ", ".join(map(str, data))
        raise KonkyoError(f"one split of the data set was expected, as in dataset[{next(iter(data), '')!r}]: {names}")


def _picture_column(data: Any, row: Mapping[str, Any], column: str | None) -> str:
    """Returns the column of pictures: that which is asked for, or the first that the features or a row show."""
    features = data.features or {}
    names = list(features) or list(row)
    if column is not None:
        if column not in names:
            raise unknown("column", column, names)
        return column
    by_feature = [name for name, feature in features.items() if type(feature).__name__ == "Image" and name in row]
    by_value = [name for name, value in row.items() if isinstance(value, Image.Image)]
    usual = [name for name in _USUAL if name in row]
    if chosen := (by_feature or by_value or usual):
        return str(chosen[0])
    raise KonkyoError(
        f"no column of the data set holds pictures; name the one that does, column=...: {', '.join(names)}"
    )


def _label_column(data: Any, row: Mapping[str, Any]) -> str | None:
    """Returns the column of class labels: the first whose feature names classes, or one of texts that is called so."""
    named = [name for name, feature in (data.features or {}).items() if type(feature).__name__ == "ClassLabel"]
    texts = [name for name in _LABELS if isinstance(row.get(name), str)]
    return next(iter(named or texts), None)


def _class_names(data: Any, label: str | None) -> tuple[str, ...]:
    feature: Any = (data.features or {}).get(label)
    return tuple(feature.names) if type(feature).__name__ == "ClassLabel" else ()


def _label(value: Any, classes: tuple[str, ...]) -> str | None:
    """Returns a row's class; None where it is not known, as -1 says."""
    if isinstance(value, str):
        return value
    return classes[int(value)] if value is not None and 0 <= int(value) < len(classes) else None


def _sample(data: Any, pictures: str, label: str | None, classes: tuple[str, ...], index: int) -> Sample:
    return _of_row(data[index], index, pictures, label, classes)


def _of_row(row: Mapping[str, Any], index: int, pictures: str, label: str | None, classes: tuple[str, ...]) -> Sample:
    class_ = None if label is None else _label(row[label], classes)
    return Sample(f"row {index}", _picture(row[pictures], index, pictures), class_)


def _picture(value: Any, index: int, column: str) -> Image.Image:
    """Returns the picture in a cell: decoded or not, or as an array or tensor that a format made of it."""
    if isinstance(value, Mapping) and "bytes" in value:  # of Image(decode=False)
        value = value["bytes"] if value["bytes"] is not None else value["path"]
    if isinstance(value, Image.Image):
        return upright(value)
    if isinstance(value, (str, Path, bytes)):
        return open_image(value)
    pictures: list[Image.Image] = []
    if isinstance(value, np.ndarray):
        pictures = pictures_of_array(value)
    elif isinstance(value, Tensor):
        pictures = pictures_of_tensor(value)
    if len(pictures) != 1:
        raise KonkyoError(f"row {index}: a picture was expected in column {column!r}; got {type(value).__name__}")
    return pictures[0]
