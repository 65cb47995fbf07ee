"""Files that are either whole or not there, and values that any reader of JSON takes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any

from konkyo.errors import KonkyoError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write to, which becomes `path` at the end, or goes if anything fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise KonkyoError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes the text to the file, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Returns what a file holds. KonkyoError: it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KonkyoError(f"{path} cannot be read: {error}") from error


def csv_text(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns a table as csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def csv_of(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns records as csv, under the names of all of them as they come up.

    What is missing or NaN is an empty cell.
    """
    listed = list(records)
    head = list(dict.fromkeys(name for record in listed for name in record))
    known = ({n: v for n, v in record.items() if not (isinstance(v, float) and math.isnan(v))} for record in listed)
    return csv_text(head, ([record.get(name, "") for name in head] for record in known))


def plain(value: Any) -> Any:
    """Returns dicts, lists and numbers with None for the numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
