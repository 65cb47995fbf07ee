"""Files that are either whole or not there, and values that any reader of JSON takes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any

from konkyo.errors import KonkyoError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write to, which becomes `path` at the end, or goes if anything fails.

    The file has the permissions of the user's umask, also where a library writes one that only its owner may read, as
    safetensors does. KonkyoError: it cannot be written, also where a library tells that in an error of its own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        raise KonkyoError(f"{path} cannot be written: {error.strerror or error}") from error
    except Exception as error:
        if (reason := _unwritten(error)) is None:
            raise
        raise KonkyoError(f"{path} cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path, stage: str) -> Iterator[Path]:
    """Yields a folder beside `target` to fill, which becomes `target` at the end, or goes if anything fails.

    `stage`: what is going on, the ending of its name; one that was left by a killed process is begun anew. `target` may
    be there and empty. KonkyoError: it cannot be written.
    """
    under_way = target.with_name(f".{target.name}.{stage}")
    shutil.rmtree(under_way, ignore_errors=True)
    try:
        yield under_way
        if target.exists():
            target.rmdir()
        under_way.rename(target)
    except OSError as error:
        raise KonkyoError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(under_way, ignore_errors=True)


def _unwritten(error: Exception) -> str | None:
    """Returns why a library could not write a file; None if the error is of something else."""
    lines = str(error).splitlines() or [""]
    if type(error).__name__ == "SafetensorError" and "I/O error" in lines[0]:
        return lines[0].rpartition("I/O error: ")[2]
    if isinstance(error, RuntimeError) and ("inline_container" in lines[0] or "PytorchStreamWriter" in lines[0]):
        return "not all of it was taken; the disk may be full"  # torch.save does not tell what the system said
    return None


def write_text(path: Path, text: str) -> None:
    """Writes the text to the file, in UTF-8; a byte of a file's name that is no text is shown as in "\\udcff"."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a regular file. KonkyoError: something else, as a pipe that never ends, or unreadable."""
    try:
        if path.exists() and not path.is_file():
            raise KonkyoError(f"{path} cannot be read: it is {'a folder' if path.is_dir() else 'no regular file'}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise KonkyoError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: Path) -> str:
    """Returns a regular file's text, in UTF-8 with or without its mark. KonkyoError: it cannot be read."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KonkyoError(f"{path} cannot be read: it is no text in UTF-8 ({error})") from error
    return text.replace("\r\n", "\n")


DEPTH = 100
"""Lists and objects of JSON may lie in each other so deep."""
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def parse_json(text: str | bytes) -> Any:
    """Returns what JSON text holds. ValueError: no JSON in UTF-8, or nested deeper than DEPTH."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if _is_deep(data) and _is_deep(_STRING.sub(b"", data)):  # brackets in strings do not count
        raise ValueError(f"lists and objects lie more than {DEPTH} deep in each other")
    return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))


def _is_deep(data: bytes) -> bool:
    """Returns whether brackets lie deeper in each other than DEPTH: each round takes the innermost pairs away."""
    brackets = data.translate(_BRACKETS, _OTHERS)
    for taken in range(DEPTH):
        if taken + len(brackets) <= DEPTH:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def read_json(path: Path) -> Any:
    """Returns what a file of JSON holds. KonkyoError: it cannot be read, or is nested deeper than DEPTH."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise KonkyoError(f"{path} cannot be read as JSON: {error}") from error


def csv_text(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns a table as csv. Words that a spreadsheet would run as a formula have an apostrophe before them.

    >>> csv_text(["name", "value"], [["=1+1", -2], ["-", "-0.5"]])
    "name,value\\n'=1+1,-2\\n-,-0.5\\n"
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_no_formula(cell) for cell in row] for row in (head, *rows))
    return text.getvalue()


_FORMULA = re.compile(r"[=+\-@\t\r](?![\d.]+(?:e[+-]?\d+)?$).", re.IGNORECASE | re.DOTALL)


def _no_formula(cell: Any) -> Any:
    """Returns a cell as it may stand in a table that a spreadsheet opens; numbers stay numbers."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


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
