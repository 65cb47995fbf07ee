"""SUN397: photographs of 397 kinds of scenes, in nested folders, with ten official partitions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from konkyo.data.images import find_images
from konkyo.data.samples import Samples, layout, selected
from konkyo.data.sets.medical import read_labelled
from konkyo.errors import KonkyoError
from konkyo.utils.files import read_text


@layout
def sun397(folder: Path, *, partition: str = "", split: str = "") -> Samples:
    """Reads SUN397 (Xiao et al., 2010): a/abbey/sun_NAME.jpg.

    The class is the path without its letter, as in "apse/indoor".

    partition="01" (to "10") takes the pictures of Training_01.txt and Testing_01.txt, in the folder or in Partitions/,
    50 + 50 of every class; `split` is then train or test. KonkyoError: what is missing, and in which file.
    """
    if partition:
        listed = [
            (name, part) for part, kind in _FILE_NAMES.items() for name in _names_in(folder, f"{kind}_{partition}.txt")
        ]
        names, parts = zip(*listed, strict=True)
    else:
        names, parts = tuple(path.relative_to(folder).as_posix() for path in find_images(folder)), ()
    for name in names:
        letter, *inner = name.split("/")
        if len(letter) != 1 or len(inner) < 2 or ".." in inner:
            raise KonkyoError(
                f"{folder} is not laid out as SUN397, LETTER/CLASS/NAME.jpg as in a/abbey/sun_1.jpg: {name}"
            )
        if parts and not (folder / name).is_file():
            raise KonkyoError(f"{folder / name} is not there; partition {partition} lists it")
    labels = tuple(name[2:].rpartition("/")[0] for name in names)
    files = tuple(folder / name for name in names)
    read = partial(read_labelled, names, files, labels)
    return selected(Samples(names, read, tuple(sorted(set(labels))), "", "", labels, parts, files), split)


_FILE_NAMES = {"train": "Training", "test": "Testing"}


def _names_in(folder: Path, file: str) -> list[str]:
    """Reads the names in a partition's file. KonkyoError: it is missing, or lists none."""
    places = [folder / file, folder / "Partitions" / file]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise KonkyoError(f"partition: there is neither {places[0]} nor {places[1]}")
    lines = read_text(path).split()
    if not lines:
        raise KonkyoError(f"{path} lists no pictures")
    return [line.removeprefix("/") for line in lines]
