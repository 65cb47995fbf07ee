"""Images in tars as WebDataset writes them, a piece each: members are read as bytes, by their place in the file."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from konkyo.data import stores
from konkyo.data.images import MAX_BYTES, is_image_name, open_image
from konkyo.data.pieces import Cut, Piece, Pieces, listing, opener
from konkyo.data.samples import Sample, Samples, options_of
from konkyo.errors import ImageError, KonkyoError
from konkyo.utils.files import parse_json, read_text

BLOCK = 512
APART = 2**20
"""Numbers of images of one tar and of the next begin so far apart: how many a tar holds is known when it is opened."""
_MOST_TEXT = 2**20
"""Longer names and labels are not read, in bytes."""
_MOST_ZEROS = 2**11
"""After so many empty blocks a tar is taken to have ended."""
_LABELS = ("cls", "json", "txt")
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz4")


@dataclass(frozen=True)
class Member:
    """A member of a tar: where its bytes lie in the file."""

    name: str
    offset: int
    size: int
    fault: str = ""
    """Why it is not read."""


@dataclass(frozen=True)
class Packed:
    """A sample of a tar: the members of one key."""

    name: str
    image: Member
    labels: tuple[Member, ...] = ()
    note: str = ""


@opener
def tars(text: str, cut: Cut) -> Pieces | None:
    """Returns a piece for every tar of "tar:PATTERN[,classes=FILE]"; none is opened.

    `classes`: a text file that names the class of each number, a line each, or has lines KEY<tab>NAME.
    """
    kind, _, rest = text.partition(":")
    if kind != "tar":
        return None
    cut.no_limit(text)
    pattern, options = options_of(rest, "tar", ("classes",))
    files = stores.files_of(pattern, "tar:")
    if packed := next((f.base for f in files if f.base.lower().endswith(_COMPRESSED)), None):
        raise KonkyoError(
            f"{packed} is compressed, so that its members have no place in the file; unpack it: images are compressed "
            "themselves"
        )
    classes = classes_of(options.get("classes"))
    names = unique_names(files)
    parts = tuple(
        Piece(number, name, number * APART, partial(open_tar, file.where, name, classes))
        for number, (name, file) in enumerate(zip(names, files, strict=True))
    )
    digest = listing([*stores.marks(files), *(f"{key}={name}" for key, name in classes.items())])
    return Pieces(f"tar:{stores.public(pattern)}", parts, None, tuple(dict.fromkeys(classes.values())), digest)


def open_tar(where: str, name: str, classes: Mapping[str, str]) -> Samples:
    """Returns the samples of a tar, which is read through for the places of its members, not for their bytes.

    What cannot be used is a sample whose reading raises ImageError; so is what is missing of a tar that was cut short.
    KonkyoError: the file itself cannot be read.
    """
    source = Source(where)
    try:
        members, fault = source.members()
    except OSError as error:
        raise stores.unanswered(where, error) from error
    entries = grouped(name, members)
    if fault:
        lost = f"{name} {fault}; what came after is not there: get the file again"
        rest = _free(f"{name}/(the rest)", {entry.name for entry in entries}, {})
        entries.append(Packed(rest, Member("", 0, 0, lost)))
    names = tuple(entry.name for entry in entries)
    known = tuple(dict.fromkeys(classes.values()))
    return Samples(names, partial(read_packed, source, tuple(entries), classes), known, source=name)


class Source:
    """A source gives the bytes of a file: of one on this machine, or of a copy of one at an address.

    A copy lies in a temporary file without a name, which is gone when this is, or the process. Each process makes a
    copy of its own.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._copy: tuple[int, BinaryIO] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "_copy": None}

    def members(self) -> tuple[list[Member], str]:
        """Returns what `scan` does of the file. OSError, KonkyoError: it cannot be read."""
        if stores.is_address(self.where):
            return scan(self._copied())
        with Path(self.where).expanduser().open("rb") as file:
            return scan(file)

    def read(self, offset: int, size: int) -> bytes:
        """Returns bytes of the file. ImageError: it cannot be read."""
        try:
            return self._bytes(offset, size)
        except (OSError, KonkyoError) as error:
            raise ImageError(str(stores.unanswered(self.where, error))) from error

    def _bytes(self, offset: int, size: int) -> bytes:
        if not stores.is_address(self.where):
            return stores.read(self.where, offset, offset + size)
        file = self._copied()
        file.seek(offset)
        return file.read(size)

    def _copied(self) -> BinaryIO:
        if self._copy is None or self._copy[0] != os.getpid():
            copy: Any = tempfile.TemporaryFile(prefix="konkyo-")  # noqa: SIM115 - closed with this
            weakref.finalize(self, copy.close)
            stores.fetch(self.where, copy)
            self._copy = (os.getpid(), copy)
        return self._copy[1]


# --- members ----------------------------------------------------------------------------------------------------------


def scan(file: BinaryIO) -> tuple[list[Member], str]:
    """Returns (the members of an open tar, why it ends before its end): headers are read, nothing is unpacked."""
    total = file.seek(0, os.SEEK_END)
    members, position, zeros, long = list[Member](), 0, 0, dict[str, str]()
    while position < total and zeros < _MOST_ZEROS:
        file.seek(position)
        block = file.read(BLOCK)
        if block.count(0) == BLOCK:
            position, zeros = position + BLOCK, zeros + 1
            continue
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            fault = "" if zeros else f"is damaged or cut short at byte {position}, where a member was expected"
            return members, fault
        zeros, begin = 0, position + BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            begin = _after_map(file, block, begin)
        size = _size(header, long)
        if size < 0 or (_has_data(header) and begin + size > total):
            size, fault = max(0, total - begin), f"ends within its member {header.name}"
            members.append(_member(header, long, begin, size, f"is cut short: {size} bytes are there"))
            return [m for m in members if m.name], fault
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            long |= _long(header.type, file.read(min(size, _MOST_TEXT)))
        elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            members.append(_member(header, long, begin, size))
            long = {}
        position = begin + (-(-size // BLOCK) * BLOCK if _has_data(header) else 0)
    return members, "" if zeros else "has no end, as one that was cut short"


def _has_data(header: tarfile.TarInfo) -> bool:
    return header.isreg() or header.type not in tarfile.SUPPORTED_TYPES or header.type in _EXTRA


_EXTRA = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _size(header: tarfile.TarInfo, long: dict[str, str]) -> int:
    """Returns a member's size; that of a pax header before it counts. -1: it is no number."""
    if header.type in _EXTRA or "size" not in long:
        return header.size
    return int(long["size"]) if re.fullmatch(r"[0-9]{1,18}", long["size"]) else -1


def _after_map(file: BinaryIO, block: bytes, begin: int) -> int:
    """Returns where the data of a sparse member of GNU begins: after the blocks that continue its map."""
    more = block[482]
    while more and len(block := file.read(BLOCK)) == BLOCK:
        begin, more = begin + BLOCK, block[504]
    return begin


def _long(kind: bytes, data: bytes) -> dict[str, str]:
    """Returns what an extra header says of the member after it: path, size, and whether it is sparse."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    values, at = dict[str, str](), 0
    while record := re.compile(rb"(\d{1,9}) ([^=]{1,200})=").match(data, at):
        length = int(record[1])
        if length <= record.end() - at:
            break
        values[record[2].decode("utf-8", "replace")] = data[record.end() : at + length - 1].decode("utf-8", "replace")
        at += length
    return values


def _member(header: tarfile.TarInfo, long: dict[str, str], begin: int, size: int, fault: str = "") -> Member:
    """Returns a member with the reason, if any, why it is not read; without a name if it is no file at all."""
    name = long.get("GNU.sparse.name", long.get("path", header.name))
    if header.isdir():
        return Member("", begin, 0)
    if header.islnk() or header.issym():
        fault = "is a link; pack the file itself"
    elif not header.isreg():
        fault = "is no regular file"
    elif header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in long):
        fault = "is stored as a sparse file; pack it whole"
    elif name.startswith("/") or ".." in PurePosixPath(name).parts:
        fault = "names a place outside of the tar"
    elif size > MAX_BYTES:
        fault = f"has {size} bytes; at most {MAX_BYTES} are read"
    return Member(name, begin, size, fault)


def grouped(tar: str, members: Iterable[Member]) -> list[Packed]:
    """Returns the samples: members of one key, which is a name up to the first dot of its last part.

    A key without a picture is a sample, too, that cannot be read. Hidden files and notes on the whole tar (__NAME__)
    are none. Of several pictures of a key the first is taken whose suffix alone is one of images, as in KEY.jpg.
    """
    keys: dict[str, list[tuple[str, Member]]] = {}
    for member in members:
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if stem and not (stem.startswith("__") and stem.endswith("__")) and "__MACOSX" not in folder.split("/"):
            keys.setdefault(f"{folder}/{stem}" if folder else stem, []).append((suffix.lower(), member))
    names, counts = dict[str, Packed](), dict[str, int]()
    for key, of_key in keys.items():
        name = _free(f"{tar}/{_printable(key)}", names, counts)
        pictures = [m for suffix, m in of_key if "." not in suffix and is_image_name(f"x.{suffix}")]
        pictures = pictures or [m for suffix, m in of_key if is_image_name(f"x.{suffix}")]
        by_suffix = {suffix: member for suffix, member in of_key if not member.fault and member.size <= _MOST_TEXT}
        labels = tuple(by_suffix[suffix] for suffix in _LABELS if suffix in by_suffix)
        if not pictures:
            there = ", ".join(f".{suffix}" for suffix, _ in of_key[:5])
            pictures = [Member(key, 0, 0, f"has no picture; there is {there}")]
        of = f"{PurePosixPath(pictures[0].name).name}, one of {len(pictures)} pictures of its key"
        names[name] = Packed(name, pictures[0], labels, _printable(of) if len(pictures) > 1 else "")
    return list(names.values())


def _printable(key: str) -> str:
    """Returns a key as part of a name that leads nowhere: relative, without "..", and text in UTF-8."""
    text = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return "/".join("_" if part == ".." else part for part in parts).replace("\0", "")


def _free(name: str, taken: Container[str], counts: dict[str, int]) -> str:
    """Returns a name that is not taken: NAME#2, NAME#3 and so on; `counts` keeps the last number of each name."""
    number = counts.get(name, 1)
    while (free := name if number == 1 else f"{name}#{number}") in taken:
        number += 1
    counts[name] = number
    return free


# --- samples ----------------------------------------------------------------------------------------------------------


def read_packed(source: Source, entries: Sequence[Packed], classes: Mapping[str, str], index: int) -> Sample:
    """Returns a sample of a tar. ImageError: its picture cannot be used."""
    entry = entries[index]
    if entry.image.fault:
        base = PurePosixPath(entry.image.name).name
        raise ImageError(f"{_printable(base)} {entry.image.fault}" if base else entry.image.fault)
    image = open_bytes(source.read(entry.image.offset, entry.image.size), entry.name)
    label, note = None, entry.note
    for member in entry.labels:
        try:
            label = _label(member.name, source.read(member.offset, member.size), classes)
        except ValueError as error:
            note = f"its label cannot be read ({error})"
        if label is not None:
            break
    if note:
        image.info["konkyo"] = (*image.info.get("konkyo", ()), note)
    return Sample(entry.name, image, label)


def open_bytes(data: bytes, name: str) -> Any:
    """Returns the picture in a file's bytes. ImageError: as of `open_image`, with the name."""
    try:
        return open_image(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None


def _label(name: str, data: bytes, classes: Mapping[str, str]) -> str | None:
    """Returns the class that a member names: .cls and .txt are its name or number, .json has it under "label"."""
    if name.lower().endswith(".json"):
        values = parse_json(data)
        value = values.get("label") if isinstance(values, dict) else None
    else:
        value = data.decode("utf-8").strip()
    return class_named(value, classes)


def class_named(value: Any, classes: Mapping[str, str]) -> str | None:
    """Returns the class that a value means: a key or a number of the classes, or its name; None: nothing, or -1."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or str(value) in ("", "-1"):
        return None
    return classes.get(str(value), str(value))


def classes_of(file: str | None) -> dict[str, str]:
    """Returns number or key -> name of a text file's classes. KonkyoError: it cannot be read, or has none."""
    if file is None:
        return {}
    lines = [line for line in read_text(Path(file).expanduser()).splitlines() if line.strip()]
    if not lines:
        raise KonkyoError(f"{file} names no classes: a line NAME or KEY<tab>NAME for each was expected")
    pairs = [line.partition("\t")[::2] if "\t" in line else (line, line) for line in lines]
    numbers = {str(number): name.strip() for number, (_, name) in enumerate(pairs)}
    return {key.strip(): name.strip() for key, name in pairs if key != name} | numbers


def unique_names(files: Sequence[stores.Stored]) -> list[str]:
    """Returns what the files are called: their names, or their whole addresses where names come twice."""
    bases = [file.base for file in files]
    return bases if len(set(bases)) == len(bases) else [stores.public(file.where) for file in files]


def joined(pieces: Pieces) -> Samples:
    """Returns the samples of all pieces. Each is opened once for the names, and again when its pictures are read."""
    starts, names = [0], list[str]()
    labels: list[str] = []
    for piece in pieces.parts:
        opened = piece.open()
        names += opened.names
        labels += opened.labels
        starts.append(len(names))
    known = tuple(labels) if len(labels) == len(names) else ()
    return Samples(tuple(names), Joined(pieces.parts, starts), pieces.classes, source=pieces.source, labels=known)


class Joined:
    """It reads a sample of several pieces; the one that was read last stays open."""

    def __init__(self, parts: Sequence[Piece], starts: Sequence[int]) -> None:
        self.parts, self.starts = parts, starts
        self._open: tuple[int, Samples] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "starts": self.starts, "_open": None}

    def __call__(self, index: int) -> Sample:
        """Returns a sample by its number of all."""
        number = bisect_right(self.starts, index) - 1
        if self._open is None or self._open[0] != number:
            self._open = (number, self.parts[number].open())
        return self._open[1][index - self.starts[number]]
