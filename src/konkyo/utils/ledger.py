"""A record of work done: settings first, then a line per finished piece, so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from filelock import FileLock, Timeout

from konkyo.errors import KonkyoError
from konkyo.utils.files import plain, write_text


def differences(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """Returns the settings that differ, in words: `seed (0 there, 1 now)`; one inside another is named "part.name".

    `free`: settings at the top that may differ. Values are compared as JSON holds them.

    >>> differences({"seed": 0, "of": {"a": 1}}, {"seed": 1, "of": {"a": 2}}, free=("seed",))
    ['of.a (1 there, 2 now)']
    """
    there, here = _flattened(before, free), _flattened(now, free)
    names = list(dict.fromkeys((*here, *there)))
    return [f"{n} ({there.get(n)} there, {here.get(n)} now)" for n in names if there.get(n) != here.get(n)]


def _flattened(settings: Mapping[str, Any], free: Collection[str], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(plain(dict(settings)))).items():
        if isinstance(value, dict):
            flat |= _flattened(value, (), f"{before}{name}.")
        elif before or name not in free:
            flat[before + name] = value
    return flat


class Ledger:
    """A ledger is a file of JSON lines: the settings of a run, then a line per finished entry, only ever appended.

    One process at a time holds the file; it is a context manager and lets go at its end. A line that is torn or damaged
    is dropped when the file is opened, and its work counts as not done. `path=None` records in memory only. Settings
    named in `free` may differ from those in the file; the latest ones stand. `anew` forgets what the file holds.
    `ways_out` ends the error about what does not go together.

    KonkyoError: another process holds the file; the file is none of this kind; it was made with other settings.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        *,
        free: Collection[str] = (),
        anew: bool = False,
        ways_out: str = "choose another folder",
    ) -> None:
        """Opens the file and takes its lock. KonkyoError: the run in it had other settings, or it is no record."""
        self.path, self._ways_out = path, ways_out
        self.settings = json.loads(json.dumps(plain(dict(settings))))
        self.entries: dict[str, Any] = {}
        """What was done, by key, in the order of the work."""
        self.damaged = 0
        """Lines of the file that could not be read."""
        if path is None:
            return
        self._lock = _locked(path)
        try:
            present = path.is_file() and not anew
            if present:
                self._check(*_read_lines(path), free)
            # A file that is whole is appended to; any other is written again without what is damaged.
            if not present or self.damaged or self.settings != self._before:
                lines = [_checked_line({"settings": self.settings}), *(_entry(k, v) for k, v in self.entries.items())]
                write_text(path, "".join(lines))
            self._file = path.open("a", encoding="utf-8", newline="\n")
        except BaseException:
            _release(self._lock)
            raise

    _before: Any = None

    def _check(self, header: Any, entries: dict[str, Any], damaged: int, free: Collection[str]) -> None:
        assert self.path is not None
        if not isinstance(header, dict) or not isinstance(header.get("settings"), dict):
            raise KonkyoError(f"{self.path} is no record of a run; {self._ways_out}")
        self._before, self.entries, self.damaged = header["settings"], entries, damaged
        if differ := differences(self._before, self.settings, free):
            raise KonkyoError(f"{self.path} is of a run with other {', '.join(differ)}; {self._ways_out}")

    def add(self, key: str, values: Any) -> None:
        """Records an entry at once; one of the same key before it no longer counts."""
        values = json.loads(json.dumps(values))
        self.entries[key] = values
        if self.path is not None:
            try:
                self._file.write(_entry(key, values))
                self._file.flush()
            except OSError as error:
                raise KonkyoError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Lets go of the file."""
        if self.path is not None and not self._file.closed:
            self._file.close()
            _release(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ledger(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings and the entries by key in a file that may be in use. KonkyoError: it is no record."""
    header, entries, _ = _read_lines(path)
    if not isinstance(header, dict) or not isinstance(header.get("settings"), dict):
        raise KonkyoError(f"{path} is no record of a run")
    return header["settings"], entries


def _locked(path: Path) -> FileLock:
    """Takes the lock of a file. It is a file beside it, which is gone when the lock is released."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire(timeout=0)
        while not Path(lock.lock_file).exists():  # its holder removed it in this moment
            lock.release()
            lock.acquire(timeout=0)
    except Timeout:
        reason = f"another run is writing into {path.parent}: wait for its end, or choose another folder"
        raise KonkyoError(reason) from None
    except OSError as error:
        raise KonkyoError(f"{path.parent} cannot be written: {error.strerror or error}") from error
    return lock


def _release(lock: FileLock) -> None:
    with suppress(OSError):  # where a file in use cannot be removed it stays
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _read_lines(path: Path) -> tuple[Any, dict[str, Any], int]:
    """Reads (the header, entries by key, the number of lines that are damaged)."""
    try:
        first, *rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise KonkyoError(f"{path} cannot be read: {error.strerror or error}") from error
    entries: dict[str, Any] = {}
    damaged = int(rest[-1:] not in ([], [b""]))  # a line without its end
    for line in rest[:-1]:
        record = _record_in(line)
        if isinstance(record, dict) and isinstance(record.get("key"), str) and "values" in record:
            entries.pop(record["key"], None)
            entries[record["key"]] = record["values"]
        else:
            damaged += 1
    return _record_in(first), entries, damaged


def _entry(key: str, values: Any) -> str:
    return _checked_line({"key": key, "values": values})


def _checked_line(record: Any) -> str:
    """Returns the record as JSON with its checksum before it, in a line."""
    text = json.dumps(record)
    return f"{crc32(text.encode()):08x} {text}\n"


def _record_in(line: bytes) -> Any:
    """Returns what a line holds; None where it is damaged."""
    checksum, _, text = line.rstrip(b"\r").partition(b" ")  # of an editor that ends lines its own way
    try:
        return json.loads(text) if int(checksum, 16) == crc32(text) else None
    except (ValueError, RecursionError):
        return None
