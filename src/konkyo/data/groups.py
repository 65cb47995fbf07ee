"""Groups of samples that must not be told apart by a split: copies of one picture, pictures of one patient."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from konkyo.data.hashes import BITS, LIMIT, LIMIT_GREY, Hashes, is_grey, near_pairs
from konkyo.data.images import open_image
from konkyo.data.samples import DRAWN, Samples
from konkyo.errors import ImageError, KonkyoError
from konkyo.utils.files import read_text

COPIES = ("identical", "alike", "alike:BITS", "ignored")
"""What counts as a copy of a picture."""
_NAME_COLUMNS, _GROUP_COLUMNS = ("name", "file", "image"), ("group", "patient")


@dataclass(frozen=True)
class Groups:
    """The groups of a data set's samples, by what they were found."""

    numbers: tuple[int, ...]
    """Of the samples, in order: the smallest index of a sample in its group."""
    copies: str
    """"identical", "alike:BITS" or "ignored"."""
    table: str = ""
    """The file of groups, and a digest of what it says; "" where there is none."""
    unread: int = 0
    """Pictures that could not be opened, and so have no copy."""

    def members(self) -> list[list[int]]:
        """Returns the indices of every group, in the order of their first samples."""
        groups: dict[int, list[int]] = {}
        for index, number in enumerate(self.numbers):
            groups.setdefault(number, []).append(index)
        return list(groups.values())


def groups_of(
    data: Samples, copies: str = "identical", table: str | Path | Mapping[str, str] = "", *, whole: bool = True
) -> Groups:
    """Returns the groups of samples. Two that are copies, or of one group of the table, are of one; so are chains.

    `copies`: "identical" compares all pixels of the opened pictures, "alike:BITS" the perceptual hashes as well, which
    may differ in so many of 64 bits ("alike": 10, or 6 where most pictures are grey); mirror images are alike, too.
    "ignored" opens no picture. Of data that is drawn (scenes, lesions) none is opened either.

    `table`: name -> group, or a csv file with the columns name and group (`read_groups`). Not `whole`: the data is some
    of what the table is of. KonkyoError: other copies, or a table that does not fit the data.
    """
    kind, limit = _copies(copies)
    parents = list(range(len(data)))
    is_drawn = data.source.partition(":")[0] in DRAWN
    prints = [] if kind == "ignored" or is_drawn else [_print_of(data, index, kind) for index in range(len(data))]
    _join(parents, [None if one is None else one.pixels for one in prints])
    if kind == "alike":
        known = [(index, one) for index, one in enumerate(prints) if one is not None]
        grey = sum(one.grey for _, one in known) > len(known) / 2
        limit = (LIMIT_GREY if grey else LIMIT) if limit is None else limit
        hashes = Hashes(*(_bits([getattr(one, side) for _, one in known]) for side in ("upright", "mirrored")))
        for pair in near_pairs(hashes, None, limit)[0]:
            _unite(parents, known[pair.first][0], known[pair.second][0])
        kind = f"alike:{limit}"
    name = ""
    if table:
        of_samples = _by_sample(data, table, whole)
        _join(parents, of_samples)
        digest = hashlib.sha256(repr(sorted(zip(data.names, of_samples, strict=True))).encode()).hexdigest()[:12]
        name = f"{'a mapping' if isinstance(table, Mapping) else Path(table).name} ({digest})"
    numbers = tuple(_root(parents, index) for index in range(len(data)))
    return Groups(numbers, kind, name, sum(one is None for one in prints))


def _copies(text: str) -> tuple[str, int | None]:
    """Returns the kind of copies and the bits that may differ. KonkyoError: another kind, or a number out of range."""
    match = re.fullmatch(r"(identical|ignored|alike)|alike:(\d+)", text)
    if match is None or int(match[2] or 0) > BITS:
        raise KonkyoError(f"copies: one of {', '.join(COPIES)} (0 to {BITS}) was expected; got {text!r}")
    return match[1] or "alike", None if match[2] is None else int(match[2])


# --- prints of pictures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Print:
    """What is kept of an opened picture: a digest of its pixels, and its perceptual hashes where they are asked for."""

    pixels: bytes
    upright: bytes = b""
    mirrored: bytes = b""
    grey: bool = False


def _print_of(data: Samples, index: int, kind: str) -> _Print | None:
    """Returns the print of a sample's picture; None where it cannot be opened. The file's, before a cue is planted."""
    try:
        if not data.files:
            return _printed(data[index].image, kind)
        file = data.files[index]
        status = file.stat()
        return _print_of_file(file.absolute(), status.st_size, status.st_mtime_ns, kind)
    except (ImageError, OSError):
        return None


@lru_cache(maxsize=1 << 20)
def _print_of_file(file: Path, _size: int, _changed: int, kind: str) -> _Print:
    """Files are opened once in a process, as long as they stay as they are."""
    return _printed(open_image(file), kind)


def _printed(picture: Image.Image, kind: str) -> _Print:
    digest = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    digest.update(picture.tobytes())
    pixels = digest.digest()
    if kind != "alike":
        return _Print(pixels)
    hashes = Hashes.of(iter([picture]))
    return _Print(pixels, hashes.upright.tobytes(), hashes.mirrored.tobytes(), is_grey(picture))


def _bits(rows: Sequence[bytes]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.frombuffer(b"".join(rows), dtype=np.bool_).reshape(len(rows), BITS)


# --- who belongs to whom ----------------------------------------------------------------------------------------------


def _root(parents: list[int], index: int) -> int:
    """Returns the smallest index of a group, and shortens the way there."""
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _unite(parents: list[int], one: int, other: int) -> None:
    low, high = sorted((_root(parents, one), _root(parents, other)))
    parents[high] = low


def _join(parents: list[int], keys: Iterable[object]) -> None:
    """Makes one group of all samples of one key; those of the key None stay as they are."""
    seen: dict[object, int] = {}
    for index, key in enumerate(keys):
        if key is not None:
            _unite(parents, seen.setdefault(key, index), index)


# --- tables -----------------------------------------------------------------------------------------------------------


def read_groups(path: str | Path) -> dict[str, str]:
    """Returns name -> group of a csv file whose first line names the columns name (or file, image) and group (patient).

    Other columns are left alone; they are separated by commas, semicolons or tabs. KonkyoError: no such columns, an
    empty cell, a name with two groups.
    """
    path = Path(path).expanduser()
    lines = read_text(path).splitlines()
    mark = next((mark for mark in (",", ";", "\t") if lines and mark in lines[0]), ",")
    rows = list(csv.reader(lines, delimiter=mark))
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    columns = [next((head.index(n) for n in names if n in head), None) for names in (_NAME_COLUMNS, _GROUP_COLUMNS)]
    if None in columns:
        raise KonkyoError(
            f"{path}: a first line with the columns name (or {', '.join(_NAME_COLUMNS[1:])}) and group (or patient) "
            f"was expected; got {', '.join(head) or 'no line'}"
        )
    groups: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        cells = [row[c].strip() if c is not None and c < len(row) else "" for c in columns]
        if not all(cells):
            raise KonkyoError(f"{path}, line {number}: a name and a group were expected; got {mark.join(row)!r}")
        name, group = cells
        if groups.setdefault(name, group) != group:
            raise KonkyoError(f"{path}, line {number}: {name} is of group {group!r} here, and {groups[name]!r} before")
    return groups


def _by_sample(data: Samples, table: str | Path | Mapping[str, str], whole: bool) -> list[str]:
    """Returns the group of every sample. KonkyoError: a name that is of no sample, or a sample without a group."""
    where = "groups" if isinstance(table, Mapping) else str(table)
    groups = dict(table) if isinstance(table, Mapping) else read_groups(table)
    alone = Counter(name.rpartition("/")[2] for name in data.names)
    of_sample: dict[str, str] = {}
    missing, used = list[str](), set[str]()
    for index, name in enumerate(data.names):
        last = name.rpartition("/")[2]
        spellings = [name, *([str(data.files[index]), str(data.files[index].resolve())] if data.files else [])]
        spellings += [last] if alone[last] == 1 else []
        known = [spelling for spelling in spellings if spelling in groups]
        used.update(known)
        if not known:
            missing.append(name)
        elif len({groups[spelling] for spelling in known}) > 1:
            raise KonkyoError(f"{where}: {name} has two groups, under {known[0]!r} and under {known[1]!r}")
        else:
            of_sample[name] = groups[known[0]]
    if missing:
        raise KonkyoError(
            f"{where} has no group of {len(missing)} of the {len(data)} images, such as {missing[0]}; names are those "
            "of the data set, as in CLASS/NAME.jpg, paths, or file names where no two are the same"
        )
    if whole and (strange := [name for name in groups if name not in used]):
        raise KonkyoError(
            f"{where} names {len(strange)} images that {data.source or 'the data'} does not have (or has twice), such "
            f"as {strange[0]}; an image of it is called {data.names[0]}"
        )
    return [of_sample[name] for name in data.names]
