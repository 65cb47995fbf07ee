"""Images that are named one by one: in a list, in a table of labels, or in a folder at an address."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from konkyo.data import stores
from konkyo.data.archives import open_bytes
from konkyo.data.images import is_image_name, open_image
from konkyo.data.pieces import Cut, Piece, Pieces, listing, mark, opener, spans
from konkyo.data.samples import Sample, Samples, samples
from konkyo.errors import ImageError, KonkyoError
from konkyo.utils.files import read_text

_IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "name")
_LABEL_COLUMNS = ("label", "true_label", "class", "category", "target")


@opener
def lists(text: str, cut: Cut) -> Pieces | None:
    """Returns the images of "list:FILE.txt" (one a line) or "list:FILE.csv" (with columns image and label).

    What is no address and no whole path lies below the folder of the list.
    """
    kind, _, rest = text.partition(":")
    if kind != "list":
        return None
    path = Path(rest).expanduser()
    if path.suffix.lower() == ".csv":
        rows: list[tuple[str, str | None]] = [(image, label or None) for _, image, label in labelled_lines(path)]
    else:
        rows = [(line.strip(), None) for line in read_text(path).splitlines() if line.strip()]
    if not rows:
        raise KonkyoError(f"{path} names no images")
    names = [stores.public(name) for name, _ in rows]
    files = [name if stores.is_address(name) else str(path.parent / Path(name).expanduser()) for name, _ in rows]
    labels = tuple(label for _, label in rows)

    def marked(k: int) -> str:
        return mark(names[k], None if stores.is_address(files[k]) else files[k], labels[k])

    return _in_pieces(text, names, files, labels, marked, cut)


@opener
def folders(text: str, cut: Cut) -> Pieces | None:
    """Returns the images below an address, as s3://bucket/photos/, or that it matches, as memory://photos/**/*.jpg.

    They are called and labelled as those of a folder of this machine: by the path from there, and the last folder.
    """
    if not stores.is_address(text):
        return None
    base, below = stores.below(text)
    images = [file for file in below if _is_seen(stores.public(file.where)[len(base) :])]
    if not images:
        raise KonkyoError(f"{stores.public(text)}: of {len(below)} files none is an image, by their suffixes")
    names = [stores.public(file.where)[len(base) :] for file in images]
    labels = tuple(PurePosixPath(name).parent.name or None for name in names)
    source = stores.public(text)
    marks = stores.marks(images)
    return _in_pieces(source, names, [file.where for file in images], labels, marks.__getitem__, cut)


def _is_seen(name: str) -> bool:
    """Tells whether a path is of an image, and nothing of it is hidden."""
    return is_image_name(name.rpartition("/")[2]) and not any(part.startswith(".") for part in name.split("/"))


def _in_pieces(
    source: str,
    names: Sequence[str],
    files: Sequence[str],
    labels: Sequence[str | None],
    marked: Callable[[int], str],
    cut: Cut,
) -> Pieces:
    """Returns the images as pieces of `size`, each of which holds the names of its own images alone.

    `marked` returns what the listing takes of an image.
    """
    every = list(range(len(names)))
    if cut.limit is not None:
        whole = samples(Samples(tuple(names), partial(_read, names, files, labels)), limit=cut.limit, seed=cut.seed)
        places = {name: k for k, name in enumerate(names)}
        every = [places[name] for name in whole.names]
    elif len(set(names)) < len(names):
        Samples(tuple(names), partial(_read, names, files, labels))  # says which name comes twice
    parts = []
    for number, span in enumerate(spans(len(every), cut.size_of(len(every)))):
        members = [every[k] for k in span]
        opens = partial(
            _samples, [names[k] for k in members], [files[k] for k in members], [labels[k] for k in members], source
        )
        parts.append(Piece(number, f"{span.start}-{span.stop - 1}", span.start, opens))
    return Pieces(source, tuple(parts), len(every), (), listing(map(marked, every)))


def _samples(names: Sequence[str], files: Sequence[str], labels: Sequence[str | None], source: str) -> Samples:
    known = tuple(label for label in labels if label is not None)
    return Samples(
        tuple(names),
        partial(_read, names, files, labels),
        source=source,
        labels=known if len(known) == len(names) else (),
    )


def _read(names: Sequence[str], files: Sequence[str], labels: Sequence[str | None], index: int) -> Sample:
    """Returns an image at a path or an address. ImageError: it cannot be read."""
    where = files[index]
    if not stores.is_address(where):
        return Sample(names[index], open_image(where), labels[index])
    try:
        data = stores.read(where)
    except FileNotFoundError:
        raise ImageError(f"{stores.public(where)} does not exist") from None
    except KonkyoError as error:
        raise ImageError(str(error)) from error
    return Sample(names[index], open_bytes(data, stores.public(where)), labels[index])


# --- tables of labels -------------------------------------------------------------------------------------------------


def labelled_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, image, label) of a csv file, whose first line may name its columns."""
    text = read_text(path).splitlines()
    first = text[0] if text else ""
    separator = next((mark for mark in (",", ";", "\t") if mark in first), None)
    if separator is None:
        raise KonkyoError(f"{path}: lines image,label were expected; the first is {first[:60]!r}")
    rows = list(csv.reader(text, delimiter=separator))
    head = [cell.strip().lower() for cell in rows[0]]
    image = next((head.index(name) for name in _IMAGE_COLUMNS if name in head), None)
    label = next((head.index(name) for name in _LABEL_COLUMNS if name in head), None)
    if image is None and label is None:
        image, label, start = 0, 1, 0
    elif image is None or label is None:
        raise KonkyoError(
            f"{path}: the columns image and label were expected; got {', '.join(rows[0])}. A column of images is called"
            f" one of {', '.join(_IMAGE_COLUMNS)}, one of labels one of {', '.join(_LABEL_COLUMNS)}"
        )
    else:
        start = 1
    for number, row in enumerate(rows[start:], start=start + 1):
        if not row:
            continue
        if len(row) <= max(image, label):
            raise KonkyoError(f"{path}, line {number}: {len(head)} columns were expected; got {len(row)}")
        yield number, row[image].strip(), row[label].strip()
