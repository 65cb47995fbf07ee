"""A record of work done: settings first, then a line per finished piece, so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO
from zlib import crc32

from filelock import FileLock, Timeout

from konkyo.errors import KonkyoError
from konkyo.utils.files import parse_json, plain, read_bytes, write_text

_LONGEST = 40
"""Values of more characters are shown where they differ alone."""
_MOST = 4
"""So many settings are named in an error."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """Returns the settings that differ, in words: `seed (0 there, 1 now)`; one inside another is named "part.name".

    `free`: settings at the top that may differ. Values are compared as JSON holds them. Of long ones the words are
    named in which they differ.

    >>> differences({"seed": 0, "of": {"a": 1}}, {"seed": 1, "of": {"a": 2}}, free=("seed",))
    ['of.a (1 there, 2 now)']
    """
    there, here = _flat(before, free), _flat(now, free)
    names = list(dict.fromkeys((*here, *there)))
    pairs = {n: (there.get(n), here.get(n)) for n in names if there.get(n) != here.get(n)}
    texts = {name: _shortened(before, now) for name, (before, now) in pairs.items()}
    return [f"{name} ({before} there, {now} now)" for name, (before, now) in texts.items()]


def _shortened(before: Any, now: Any) -> tuple[str, str]:
    """Returns two values as texts; of long ones the words in which they differ.

    >>> _shortened("Preprocess(resize=128, crop=128, fit='stretch')", "Preprocess(resize=128, crop=60, fit='stretch')")
    ('... crop=128, ...', '... crop=60, ...')
    """
    texts = str(before), str(now)
    if max(map(len, texts)) <= _LONGEST:
        return texts
    one, other = (text.split() for text in texts)
    head = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
    tail = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one[:head:-1], other[:head:-1], strict=False))))
    return _within(one, head, tail), _within(other, head, tail)


def _within(words: Sequence[str], head: int, tail: int) -> str:
    """Returns the words between so many at the start and so many at the end, cut where they are long."""
    text = " ".join(words[head : len(words) - tail])
    text = text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST]}..."
    return " ".join(filter(None, ("..." if head else "", text, "..." if tail else "")))


def other_settings(kind: str, differ: Sequence[str], way_out: str) -> str:
    """Returns why work cannot go on in a folder: the way out first, and then what differs, as of `differences`.

    >>> other_settings("a run", ["seed (0 there, 1 now)"], "choose another folder")
    'is of a run with other settings: choose another folder. They differ in seed (0 there, 1 now)'
    """
    more = f" and {len(differ) - _MOST} more" if len(differ) > _MOST else ""
    return f"is of {kind} with other settings: {way_out}. They differ in {', '.join(differ[:_MOST])}{more}"


def _flat(settings: Mapping[str, Any], free: Collection[str], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(plain(dict(settings)))).items():
        if isinstance(value, dict):
            flat |= _flat(value, (), f"{before}{name}.")
        elif before or name not in free:
            flat[before + name] = value
    return flat


VERSION = 1


class Ledger:
    """A file of JSON lines: the settings of a run, then a line per finished entry, which is appended and never moved.

    One process at a time holds the file; it is a context manager and lets go at its end. A line that is torn or damaged
    is dropped when the file is opened, and its work counts as not done. `path=None` records in memory only.

    Settings named in `free` may differ from those in the file; the latest ones stand. A file without entries, or of
    `disposable` ones alone, takes any settings. `anew` forgets the entries in the file, whatever their settings. They
    are in the file until the first new one is added. `ways_out` ends the error about what does not go together.

    KonkyoError: another process holds the file; the file is none of this kind; it was made with other settings.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        *,
        free: Collection[str] = (),
        anew: bool = False,
        disposable: Callable[[Any], bool] = lambda _: False,
        ways_out: str = "choose another folder",
    ) -> None:
        self.path, self._ways_out = path, ways_out
        self.settings = json.loads(json.dumps(plain(dict(settings))))
        self.entries: dict[str, Any] = {}
        """What was done, by key, in the order of the work."""
        self.forgotten: dict[str, Any] = {}
        """The entries that the file held and that no longer count."""
        self.damaged = 0
        """Lines of the file that could not be read."""
        self.began = True
        """Whether there was no file before."""
        self._file: TextIO | None = None
        self._closed = False
        if path is None:
            return
        self._lock = _locked(path)
        try:
            self.began = not path.is_file()
            if not self.began:
                self._read(path, free, anew, disposable)
        except BaseException:
            _release(self._lock)
            raise

    def _read(self, path: Path, free: Collection[str], anew: bool, disposable: Callable[[Any], bool]) -> None:
        header, entries, damaged = _read(path)
        before = _settings_of(header, path, self._ways_out)
        differ = differences(before, self.settings, free)
        if anew or (differ and all(map(disposable, entries.values()))):
            self.forgotten = entries
            return
        if differ:
            raise KonkyoError(f"{path} {other_settings('a run', differ, self._ways_out)}")
        self.entries, self.damaged = entries, damaged
        if damaged or before != self.settings:  # what is damaged goes, and the latest settings stand
            self._write(path)
        else:
            self._file = path.open("a", encoding="utf-8", newline="\n")

    def _write(self, path: Path) -> None:
        """Writes the file as a whole, and opens it for what comes."""
        lines = [_line({"ledger": VERSION, "settings": self.settings})]
        write_text(path, "".join([*lines, *(_entry(k, v) for k, v in self.entries.items())]))
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def add(self, key: str, values: Any) -> None:
        """Records an entry at once; one of the same key before it no longer counts."""
        values = json.loads(json.dumps(values))
        self.entries.pop(key, None)
        self.entries[key] = values
        if self.path is None:
            return
        try:
            if self._file is None:
                self._write(self.path)
            else:
                self._file.write(_entry(key, values))
                self._file.flush()
        except OSError as error:
            raise KonkyoError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Lets go of the file."""
        if self.path is None or self._closed:
            return
        self._closed = True
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            raise KonkyoError(f"{self.path} cannot be written: {error.strerror or error}") from error
        finally:
            _release(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ledger(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the entries by key in a file that may be in use. KonkyoError: it is no record."""
    header, entries, _ = _read(path)
    return _settings_of(header, path, "choose another file"), entries


def _settings_of(header: Any, path: Path, ways_out: str) -> dict[str, Any]:
    if not isinstance(header, dict) or not isinstance(header.get("settings"), dict):
        raise KonkyoError(f"{path} is no record of a run; {ways_out}")
    if header.get("ledger") != VERSION:
        raise KonkyoError(f"{path} is of another version of konkyo, {header.get('ledger')}; {ways_out}")
    return dict(header["settings"])


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Within the context no other process holds this file. KonkyoError: one does already."""
    made = not path.parent.exists()
    lock = _locked(path)
    try:
        yield
    finally:
        _release(lock)
        with suppress(OSError):  # it is not empty, as a rule
            if made:
                path.parent.rmdir()


def _locked(path: Path) -> FileLock:
    """The lock of a file, held. It is a file beside it, which is gone when the lock is released."""
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


def _read(path: Path) -> tuple[Any, dict[str, Any], int]:
    """(the header, entries by key, the number of lines that are damaged)"""
    first, *rest = read_bytes(path).split(b"\n")
    entries: dict[str, Any] = {}
    damaged = int(rest[-1:] not in ([], [b""]))  # a line without its end
    for line in rest[:-1]:
        record = _parsed(line)
        if isinstance(record, dict) and isinstance(record.get("key"), str) and "values" in record:
            entries.pop(record["key"], None)
            entries[record["key"]] = record["values"]
        else:
            damaged += 1
    return _parsed(first), entries, damaged


def _entry(key: str, values: Any) -> str:
    return _line({"key": key, "values": values})


def _line(record: Any) -> str:
    """The record as JSON with its checksum before it, in a line."""
    text = json.dumps(record)
    return f"{crc32(text.encode()):08x} {text}\n"


def _parsed(line: bytes) -> Any:
    """What a line holds; None where it is damaged."""
    checksum, _, text = line.rstrip(b"\r").partition(b" ")  # of an editor that ends lines its own way
    try:
        return parse_json(text) if int(checksum, 16) == crc32(text) else None
    except ValueError:
        return None
