"""Pieces: data of any size, divided into parts that are opened one by one, each as a small data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from konkyo.data.samples import Data, Samples, chosen, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.errors import KonkyoError

SIZE = 256
"""So many images are a piece at most, unless the data or the user says otherwise."""
LEAST = 32
"""So many images a piece has at least, where data is divided among several that read it."""


def _unwatched(_number: int | None) -> None:
    """Takes no note."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece is the part of the data that becomes one shard of a run."""

    number: int
    name: str
    """What it is called, the same in every run."""
    first: int
    """The number of its first image; the others follow."""
    open: Callable[[], Samples] = field(repr=False)
    """Returns its samples, which open their pictures when they are asked for."""
    watch: Callable[[int | None], object] = field(default=_unwatched, repr=False)
    """It hears which of its images is being read; None: none is."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces are all of the data, in order."""

    source: str
    """What the user called the data."""
    parts: tuple[Piece, ...]
    images: int | None
    """How many there are; None where only opening every piece would tell."""
    classes: tuple[str, ...] = ()
    listing: str = ""
    """A digest of all names, and of sizes, marks of a store and labels where they are known: other data has another."""

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class Cut:
    """A cut says how images that are known by name become pieces, as the arguments of `pieces_of` do."""

    size: int | None = None
    limit: int | None = None
    seed: int = 0
    readers: int = 1
    """So many read side by side; of `size` None each gets two pieces at least, if there are images enough."""

    def size_of(self, images: int | None) -> int:
        """Returns how many of so many images are a piece. None: nobody knows how many there are.

        >>> Cut(readers=4).size_of(400), Cut(readers=4).size_of(100), Cut(readers=4).size_of(10**6), Cut(7).size_of(400)
        (50, 32, 256, 7)
        """
        if self.size is not None:
            return self.size
        return SIZE if self.readers < 2 or images is None else min(SIZE, max(LEAST, -(-images // (2 * self.readers))))

    def no_limit(self, data: str) -> None:
        """Raises KonkyoError where a limit is asked for of archives."""
        if self.limit is not None:
            raise KonkyoError(f"a limit is of images that are known by name; {data} comes in archives: name fewer")


Openable = Callable[[str, Cut], "Pieces | None"]
OPENERS: list[Openable] = []
"""What opens data that comes in pieces of its own, as archives; the first that takes a text counts."""


def opener(function: Openable) -> Openable:
    """Registers a function that returns the pieces of data that a text names, or None if it is not its kind."""
    OPENERS.append(function)
    return function


def pieces_of(
    data: str | Path | Data | Scenes | Samples | Sequence[str | Path],
    *,
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    readers: int = 1,
) -> Pieces:
    """Returns data as pieces of `size` images (None: as `Cut.size_of`), or as the archives that it comes in.

    `data`: as `konkyo.data.samples` takes it, a list of image files, folders and patterns, or addresses of archives.
    `limit`: so many images, drawn by the seed. For the listing the size of every file on this machine is asked for.
    KonkyoError: data that cannot be opened, or a limit on archives.
    """
    if size is not None and size < 1:
        raise KonkyoError(f"a piece has at least one image; got {size}")
    cut = Cut(size, limit, seed, readers)
    alone = data[0] if isinstance(data, (list, tuple)) and len(data) == 1 else data
    if isinstance(alone, str) and (pieces := registered_pieces(alone, cut)) is not None:
        return pieces
    files = _are_files(data)
    listed = samples(_of_files(data) if files else data, limit=limit, seed=seed)  # type: ignore[arg-type]
    parts = tuple(
        Piece(k, f"{span.start}-{span.stop - 1}", span.start, _opening(listed, span, files))
        for k, span in enumerate(spans(len(listed), cut.size_of(len(listed))))
    )
    return Pieces(listed.source or "samples", parts, len(listed), listed.classes, listing(_marks(listed)))


def _opening(listed: Samples, span: range, files: bool) -> Callable[[], Samples]:
    """Returns what opens a piece: of files, with its own alone; a data set may read in any way, and goes as a whole."""
    if not files:
        return partial(chosen, listed, span)
    part = slice(span.start, span.stop)
    return partial(_samples, listed.files[part], listed.names[part], listed.source)


def spans(count: int, size: int) -> list[range]:
    """Returns the numbers of images in parts of `size`; the last one may be smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def registered_pieces(data: str, cut: Cut = Cut()) -> Pieces | None:
    """Returns the pieces of data that comes in its own; None: a text names other data."""
    import konkyo.data.archives
    import konkyo.data.lists
    import konkyo.data.tables  # noqa: F401 - each registers openers

    opened = (function(data, cut) for function in OPENERS)
    return next((pieces for pieces in opened if pieces is not None), None)


def mark(name: str, file: str | Path | None = None, label: str | None = None) -> str:
    """Returns what a listing takes of an image: its name, the size of its file on this machine, and its label.

    A picture that was replaced by one of the same size is not told apart: no file is opened.
    """
    if file is None and label is None:
        return name
    try:
        size = "" if file is None else os.stat(file).st_size  # noqa: PTH116 - a Path each takes three times as long
    except OSError:
        size = "none"
    return f"{name}\n{size}\n{label or ''}"


def _marks(data: Samples) -> Iterator[str]:
    """Yields what a listing takes of samples."""
    for index, name in enumerate(data.names):
        yield mark(name, data.files[index] if data.files else None, data.labels[index] if data.labels else None)


def listing(names: Iterable[str]) -> str:
    """Returns a digest of names, in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _are_files(data: Any) -> bool:
    """Tells whether data is a list of paths, or one path that names no data set."""
    if isinstance(data, (list, tuple)):
        return bool(data) and all(isinstance(item, (str, Path)) for item in data)
    return isinstance(data, Path) or (isinstance(data, str) and Path(data).expanduser().exists())


def _of_files(data: Any) -> Samples:
    """Returns image files, folders and patterns as samples; what lies in a folder within is labelled by its name."""
    from konkyo.data.images import find_images

    given = [Path(item).expanduser() for item in (data if isinstance(data, (list, tuple)) else [data])]
    files = tuple(find_images(given))
    names = _names(files, given)
    source = ", ".join(map(str, given[:3])) + (", ..." if len(given) > 3 else "")
    return _samples(files, names, source)


def _samples(files: tuple[Path, ...], names: tuple[str, ...], source: str) -> Samples:
    return Samples(names, partial(_read, files, names), source=source, files=files)


def _names(files: Sequence[Path], given: Sequence[Path]) -> tuple[str, ...]:
    """Returns what every file is called: its path within the one folder that was given, or as it was given."""
    if len(given) == 1 and given[0].is_dir():
        return tuple(file.relative_to(given[0]).as_posix() for file in files)
    alone = len({file.name for file in files}) == len(files)
    return tuple(file.name if alone else file.as_posix() for file in files)


def _read(files: Sequence[Path], names: Sequence[str], index: int) -> Any:
    from konkyo.data.images import open_image
    from konkyo.data.samples import Sample

    folder = Path(names[index]).parent.name
    return Sample(names[index], open_image(files[index]), folder or None)
