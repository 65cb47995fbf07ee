"""Images in tables of Parquet, as Hugging Face's data sets are stored: some row groups are a piece."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from konkyo.data import stores
from konkyo.data.archives import class_named, classes_of, open_bytes, unique_names
from konkyo.data.images import MAX_BYTES
from konkyo.data.pieces import Cut, Piece, Pieces, listing, opener
from konkyo.data.samples import Sample, Samples, options_of
from konkyo.errors import ImageError, KonkyoError, unknown
from konkyo.utils.arrow import arrow

TOGETHER = 16
"""So many rows are in memory together."""
_BUFFER = 2**20
_Result = TypeVar("_Result")
_USUAL = ("image", "images", "img", "jpg", "jpeg", "png", "photo", "picture", "bytes")
_LABELS = ("label", "labels", "cls", "class", "category", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that matter, and the classes that numbers in it mean."""

    image: str
    label: str | None
    classes: Mapping[str, str]


@opener
def tables(text: str, cut: Cut) -> Pieces | None:
    """Returns pieces of "parquet:PATTERN[,image=COLUMN][,label=COLUMN][,classes=FILE]": row groups of `size` rows.

    Row groups follow each other in a piece until it has `size` rows; none is divided. The end of every file is read,
    which says how many rows it has. `classes`: as of tars, where the table does not name them itself.
    """
    kind, _, rest = text.partition(":")
    if kind != "parquet":
        return None
    cut.no_limit(text)
    pattern, options = options_of(rest, "parquet", ("image", "label", "classes"))
    files = stores.files_of(pattern, "parquet:")
    classes = classes_of(options.get("classes"))
    feet = stores.mapped(_foot, [file.where for file in files])
    parts, first = list[Piece](), 0
    every = [columns_of(file, schema, options, classes) for file, (schema, _) in zip(files, feet, strict=True)]
    size = cut.size_of(sum(sum(counts) for _, counts in feet))
    for file, name, columns, (_, counts) in zip(files, unique_names(files), every, feet, strict=True):
        for groups, start in _runs(counts, size):
            rows = sum(counts[k] for k in groups)
            opens = partial(open_rows, file.where, name, columns, groups, start, [counts[k] for k in groups])
            parts.append(Piece(len(parts), f"{name}/{start}-{start + rows - 1}", first, opens))
            first += rows
    known = tuple(dict.fromkeys(name for columns in every[:1] for name in columns.classes.values()))
    chosen = [f"{c.image} {c.label}" for c in every]
    source = ",".join([f"parquet:{stores.public(pattern)}", *(f"{name}={value}" for name, value in options.items())])
    return Pieces(source, tuple(parts), first, known, listing([*stores.marks(files), *chosen]))


def _runs(counts: Sequence[int], size: int) -> Iterator[tuple[list[int], int]]:
    """Yields (row groups, number of the first row) of each piece of a file."""
    groups, rows, start = list[int](), 0, 0
    for number, count in enumerate(counts):
        groups.append(number)
        rows += count
        if rows >= size:
            yield groups, start
            groups, rows, start = [], 0, start + rows
    if rows:
        yield groups, start


def _foot(where: str) -> tuple[Any, list[int]]:
    """Returns (schema, rows of every row group) of a file. KonkyoError: it is no table, or cannot be read."""

    def ask() -> tuple[Any, list[int]]:
        with _Table(where) as table:
            meta = table.metadata
            return table.schema_arrow, [meta.row_group(k).num_rows for k in range(meta.num_row_groups)]

    return _answer(where, ask)


def _answer(where: str, action: Callable[[], _Result]) -> _Result:
    """Returns what reading a file returns; at an address it is tried again, unless the table itself is damaged.

    KonkyoError: the file cannot be read.
    """
    damaged = arrow().ArrowException
    try:
        return stores.retried(where, action, (damaged,)) if stores.is_address(where) else action()
    except (OSError, damaged) as error:
        raise stores.unanswered(where, error) from error


def columns_of(file: stores.Stored, schema: Any, options: Mapping[str, str], classes: Mapping[str, str]) -> Columns:
    """Returns the columns of pictures and labels: as asked for, as Hugging Face's features say, or by name and type."""
    features = _features(schema)
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    image, label = options.get("image"), options.get("label")
    for name in (image, label):
        if name is not None and name not in schema.names:
            raise unknown(f"column of {file.base}", name, schema.names)
    by_feature = [n for n, feature in features.items() if feature.get("_type") == "Image" and n in holding]
    usual = [name for name in _USUAL if name in holding] or (holding if len(holding) == 1 else [])
    image = image or next(iter(by_feature or usual), None)
    if image is None or image not in holding:
        raise KonkyoError(
            f"{file.base}: a column with the bytes of pictures was expected, named by image=COLUMN; there are "
            + ", ".join(f"{field.name} ({field.type})" for field in schema)
        )
    named = [n for n, feature in features.items() if feature.get("_type") == "ClassLabel" and n in schema.names]
    label = label or next(iter([*named, *(name for name in _LABELS if name in schema.names)]), None)
    names = features.get(label or "", {}).get("names")
    from_list = {str(k): str(name) for k, name in enumerate(names)} if isinstance(names, list) else {}
    return Columns(image, label, dict(classes or from_list))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Returns what Hugging Face wrote of the columns; nothing where there is nothing that can be understood."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {str(name): feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _holds_bytes(kind: Any) -> bool:
    types = arrow().types
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def open_rows(
    where: str, name: str, columns: Columns, groups: Sequence[int], start: int, counts: Sequence[int]
) -> Samples:
    """Returns the rows of some row groups of a file as samples, called by their numbers in it."""
    names = tuple(f"{name}/{row}" for row in range(start, start + sum(counts)))
    known = tuple(dict.fromkeys(columns.classes.values()))
    return Samples(names, Rows(where, names, columns, groups, counts), known, source=name)


class _Table:
    """It is an open file of Parquet, which is read page by page. OSError, ArrowException: it cannot be read."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> Any:
        pa = arrow("pictures are in")
        self.file = stores.opened(self.where)
        try:
            self.table = pa.parquet.ParquetFile(self.file, buffer_size=_BUFFER, pre_buffer=False)
        except BaseException:
            self.file.close()
            raise
        return self.table

    def __exit__(self, *_: object) -> None:
        self.table.close()
        self.file.close()


class Rows:
    """It reads rows in their order, TOGETHER at a time; a row before the last one begins its row group again."""

    def __init__(
        self, where: str, names: Sequence[str], columns: Columns, groups: Sequence[int], counts: Sequence[int]
    ) -> None:
        self.where, self.names, self.columns = where, names, columns
        self.groups, self.counts = list(groups), list(counts)
        self._restart()

    def _restart(self) -> None:
        self._batches: Iterator[tuple[int, list[dict[str, Any]]]] | None = None
        self._rows: tuple[int, list[dict[str, Any]]] = (0, [])
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("where", "names", "columns", "groups", "counts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._restart()

    def __call__(self, index: int) -> Sample:
        """Returns a row. ImageError: its picture cannot be used. KonkyoError: the file cannot be read."""
        row = _answer(self.where, partial(self._advanced, index))
        data = row[self.columns.image]
        if isinstance(data, dict):
            if data.get("bytes") is None and data.get("path"):
                raise ImageError(f"{self.names[index]} names a file and holds no bytes of it")
            data = data.get("bytes")
        if data is None or len(data) > MAX_BYTES:
            raise ImageError(f"{self.names[index]} has {'no picture' if data is None else f'{len(data)} bytes'}")
        label = None if self.columns.label is None else class_named(row[self.columns.label], self.columns.classes)
        return Sample(self.names[index], open_bytes(data, self.names[index]), label)

    def _advanced(self, index: int) -> dict[str, Any]:
        if self._process != os.getpid():
            self._restart()
        first, rows = self._rows
        group, last = self._group(index), self._group(first + max(0, len(rows) - 1))
        if self._batches is None or index < first or group > last + 1:
            self._batches, (first, rows) = self._from(group), (0, [])
        while not first <= index < first + len(rows):
            try:
                first, rows = self._rows = next(self._batches)
            except BaseException as error:  # an iterator that raised has ended
                self._restart()
                if isinstance(error, StopIteration):
                    raise KonkyoError(f"{self.names[index]} is not in the file any more") from error
                raise
        return rows[index - first]

    def _group(self, index: int) -> int:
        """Returns which of the row groups a row is in."""
        for number, count in enumerate(self.counts):
            if index < count:
                return number
            index -= count
        return len(self.counts)

    def _from(self, group: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yields (number of the first row, rows), from the beginning of a row group on."""
        first = sum(self.counts[:group])
        columns = [name for name in (self.columns.image, self.columns.label) if name is not None]
        with _Table(self.where) as table:
            for batch in table.iter_batches(TOGETHER, row_groups=self.groups[group:], columns=columns):
                yield first, batch.to_pylist()
                first += len(batch)
