"""The images that a command is about: their files, their names, and the class that each of them really has."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer

from konkyo.errors import KonkyoError, unknown

if TYPE_CHECKING:
    from konkyo.data.samples import Samples
    from konkyo.models import Model

_Anything = TypeVar("_Anything")

Images = Annotated[
    list[str] | None, typer.Argument(help="Image files, folders (searched through), or quoted globs; or --data.")
]
ORDERS = ("least-sure", "most-sure", "wrong-first", "name")
NO_LABELS = "none"


@dataclass(frozen=True)
class TruthOptions:
    """Which images are explained besides those that are named, what they really are, and in which order they come."""

    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A data set in place of IMAGES, as in folder:DIR,split=val.")
    ] = None
    true_labels: Annotated[
        str | None,
        typer.Option(
            "--true-labels",
            help="A csv file of images and their classes, or 'none'; default: folders that are called like classes.",
        ),
    ] = None
    wrong_only: Annotated[bool, typer.Option("--wrong-only", help="Only images that are decided wrongly.")] = False
    sort: Annotated[str | None, typer.Option("--sort", help=f"{', '.join(ORDERS)}; default: as they are given.")] = None
    window: Annotated[
        str | None,
        typer.Option(
            "--window",
            help="Black and white of 16-bit pictures and scans: LOW..HIGH in the file's units, or file; else by range.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.sort is not None and self.sort not in ORDERS:
            raise unknown("--sort", self.sort, ORDERS)


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures are files with a name each, and what is known of their classes."""

    files: list[Path]
    names: Mapping[Path, str]
    """Relative to the folder that was given."""
    labels: Mapping[Path, str] = field(default_factory=dict)
    """The class of the model that a picture really shows, where that is known."""
    origin: str = ""
    """Where the labels come from, in words; "" where nothing is to be said."""
    window: str = ""
    """As of `konkyo.data.images.open_image`."""


def require_one_source(images: Sequence[str] | None, data: str | None) -> None:
    """KonkyoError: images and a data set are given. typer.BadParameter: neither."""
    if images and data is not None:
        raise KonkyoError("images are named, or a data set is given with --data; both came")
    if not images and data is None:
        raise typer.BadParameter("images, or a data set with --data folder:DIR, are missing")


def pictures_of(images: Sequence[str] | None, model: Model, options: TruthOptions) -> Pictures:
    """Returns the images that arguments or a data set name. KonkyoError: both, or a label that is no class.

    typer.BadParameter: neither images nor a data set.
    """
    require_one_source(images, options.data)
    if options.data is None and not model.takes_pictures:
        pictures = _inputs(images or ())
    else:
        pictures = _named(images or ()) if options.data is None else _of_data(options.data, model, options)
    if options.true_labels == NO_LABELS:
        pictures = Pictures(pictures.files, pictures.names)
    elif options.true_labels is not None:
        pictures = _of_table(pictures, Path(options.true_labels), model)
    elif options.data is None:
        pictures = _of_folders(pictures, images or (), model)
    pictures = replace(pictures, window=_window(options, model))
    if not pictures.labels and (options.wrong_only or options.sort == "wrong-first"):
        option = "--wrong-only" if options.wrong_only else "--sort wrong-first"
        reason = f" ({pictures.origin})" if pictures.origin else ""
        if not model.classes:
            raise KonkyoError(
                f"{option} needs true labels, and {model.name} has no class names to compare them with{reason}: give "
                "--labels FILE (a name a line, in the order of the outputs), or konkyo.Model(..., classes=[...])"
            )
        raise KonkyoError(
            f"{option} needs true labels, which are not known{reason}: --true-labels FILE.csv with a line image,label "
            "of each, --data folder:DIR, or folders called like the model's classes"
        )
    return pictures


def samples_of(files: Sequence[Path]) -> Samples:
    """Returns image files as samples without labels."""
    from konkyo.data.images import open_image
    from konkyo.data.samples import Sample, Samples

    names = tuple(map(str, files))
    return Samples(names, lambda index: Sample(names[index], open_image(files[index])))


def _window(options: TruthOptions, model: Model) -> str:
    """Returns the window that --window says, or else the data set. KonkyoError: both do, or a model of no pictures."""
    from konkyo.data.samples import samples
    from konkyo.data.windows import window_of

    if options.window is None:
        return "" if options.data is None else samples(options.data).window
    if not model.takes_pictures:
        raise KonkyoError(f"--window is of pictures; {model.name} takes other inputs, with their own values")
    if options.data is not None and samples(options.data).window:
        raise KonkyoError("--window and the option window= of --data say the same; leave one of them out")
    window_of(options.window)
    return options.window


def _named(images: Sequence[str]) -> Pictures:
    """Returns the image files that paths, folders and globs name; names are relative to a folder that is given."""
    from konkyo.data.images import find_images

    files = find_images(images)
    folders = [Path(image) for image in images if Path(image).is_dir()]
    return Pictures(files, {file: _relative(file, folders) for file in files})


def _inputs(images: Sequence[str]) -> Pictures:
    """Returns the videos, volumes and arrays that paths, folders and globs name, for networks of other than pictures.

    A folder that holds none of these is an input itself: frames of a video, or slices of a volume.
    """
    from konkyo.data import videos, volumes

    suffixes = (*videos.SUFFIXES, *volumes.NIFTI, ".npy")
    files: list[Path] = []
    for image in images:
        path = Path(image)
        matches = [path] if path.exists() else sorted(map(Path, glob(image, recursive=True)))  # noqa: PTH207 - absolute patterns
        if not matches:
            raise KonkyoError(f"there is no file and no folder {image!r}")
        for match in matches:
            inside = match.iterdir() if match.is_dir() else ()
            files += sorted(f for f in inside if f.name.lower().endswith(suffixes)) or [match]
    folders = [Path(image) for image in images if Path(image).is_dir()]
    names = {file: _relative(file, [folder for folder in folders if folder != file]) for file in files}
    return Pictures(list(dict.fromkeys(files)), names)


def _relative(file: Path, folders: Sequence[Path]) -> str:
    folder = next((folder for folder in folders if file.is_relative_to(folder)), file.parent)
    return file.relative_to(folder).as_posix()


def _of_data(source: str, model: Model, options: TruthOptions) -> Pictures:
    """Returns the pictures of a data set whose pictures are files."""
    from konkyo.data.samples import LAYOUTS, samples
    from konkyo.explanation.inputs import known_classes

    data = samples(source)
    if not data.files:
        offer = ", ".join(f"{name}:DIR" for name in LAYOUTS)
        raise KonkyoError(f"--data takes pictures that are files here, {offer}; those of {source} are drawn")
    names = dict(zip(data.files, data.names, strict=True))
    if not data.labels or options.true_labels is not None:
        return Pictures(list(data.files), names, {}, f"{source} has none" if not data.labels else "")
    classes, notes = known_classes(model, data.labels)
    if not classes:
        raise KonkyoError(
            f"none of the classes of {source} ({', '.join(data.classes[:5])}) is one of {model.name}; with "
            "--true-labels none its pictures are explained all the same, and --labels FILE names the model's classes"
        )
    labels = {file: label for file, label in zip(data.files, classes, strict=True) if label is not None}
    return Pictures(list(data.files), names, labels, "; ".join((f"from {source}", *notes)))


# --- folders ----------------------------------------------------------------------------------------------------------


def _of_folders(pictures: Pictures, images: Sequence[str], model: Model) -> Pictures:
    """Returns the pictures with the labels that their folders say, if all of these are classes of the model."""
    from konkyo.data.sets.folder import CLASS_TABLE, class_table
    from konkyo.explanation.inputs import known_classes

    tables = {folder: table for image in images if (table := class_table(folder := Path(image))) is not None}
    spellings = [_label_of(file, tables) for file in pictures.files]
    classes, _ = known_classes(model, spellings)
    if not classes:
        return pictures
    counts = Counter(spellings)
    if None in classes:
        known = len({name for name, label in zip(spellings, classes, strict=True) if label is not None})
        origin = (
            f"not taken from the folders: {known} of {len(counts)} folders are called like a class of the model; "
            "--data folder:DIR takes them"
        )
        return Pictures(pictures.files, pictures.names, {}, origin)
    labels = {file: label for file, label in zip(pictures.files, classes, strict=True) if label is not None}
    if tables:
        origin = f"from {CLASS_TABLE} ({len(counts)} classes)"
    elif len(counts) == 1:
        (name,) = counts
        origin = (
            f"from the folder: all lie in {name!r}, which is a class of the model; if that is chance, "
            f"--true-labels {NO_LABELS}"
        )
    else:
        origin = f"from the folders: {_listed(counts)}"
    return Pictures(pictures.files, pictures.names, labels, origin)


def _label_of(file: Path, tables: Mapping[Path, Mapping[str, str]]) -> str:
    """Returns what a picture's place says that it shows: its folder's name, or what a table says of its key."""
    folder = next((folder for folder in tables if file.is_relative_to(folder)), None)
    if folder is None:
        return file.absolute().parent.name
    key = file.name.split("_")[0] if file.parent == folder else file.parent.name
    return tables[folder].get(key, key)


def _listed(counts: Mapping[Any, int]) -> str:
    shown = ", ".join(f"{name} {number}" for name, number in list(counts.items())[:6])
    return shown + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


# --- tables -----------------------------------------------------------------------------------------------------------


def _of_table(pictures: Pictures, path: Path, model: Model) -> Pictures:
    """Returns the pictures with the labels of a csv file. KonkyoError: none of them is in it, or an unknown class."""
    from konkyo.explanation.inputs import class_of

    places = _places(pictures, path)
    labels: dict[Path, str] = {}
    from konkyo.data.lists import labelled_lines

    for number, image, label in labelled_lines(path):
        file = places.get(image)
        if file is None or not label:
            continue
        named = label in model.classes or not re.fullmatch("[0-9]+", label)
        try:
            name = class_of(model, label if named else int(label))
        except KonkyoError as error:
            raise KonkyoError(f"{path}, line {number}: {error}") from error
        if file in labels and labels[file] != name:
            raise KonkyoError(f"{path}, line {number}: {image} is {name} here, and {labels[file]} before")
        labels[file] = str(name)
    if not labels:
        first = pictures.names[pictures.files[0]]
        raise KonkyoError(f"{path} has no label of any of the images; the first of them is called {first}")
    missing = len(pictures.files) - len(labels)
    note = f"; {missing} of {len(pictures.files)} images have no line in it" if missing else ""
    return Pictures(pictures.files, pictures.names, labels, f"from {path.name}{note}")


def _places(pictures: Pictures, table: Path) -> dict[str, Path]:
    """Returns the files by all that a table may call them: path, path from the table, name, and a name of its own."""
    alone = Counter(file.name for file in pictures.files)
    places = {file.name: file for file in pictures.files if alone[file.name] == 1}
    for file in pictures.files:
        places |= {str(file): file, file.as_posix(): file, str(file.resolve()): file, pictures.names[file]: file}
        if file.resolve().is_relative_to(table.resolve().parent):
            places[file.resolve().relative_to(table.resolve().parent).as_posix()] = file
    return places


# --- what became of them ----------------------------------------------------------------------------------------------


_Judged: TypeAlias = tuple[dict[str, Any], _Anything]


def ordered(rows: Sequence[_Judged[_Anything]], order: str | None) -> list[_Judged[_Anything]]:
    """Returns pairs of a manifest's entry and anything in the order of --sort; what is not known comes last.

    wrong-first: of wrong decisions the surest first, of right ones the least sure.
    """
    from konkyo.data.images import natural

    def unsureness(entry: Mapping[str, Any], sign: int) -> float:
        decision = entry.get("decision") or {}
        return sign * float(decision.get("probability", sign * math.inf))

    def key(row: _Judged[_Anything]) -> tuple[Any, ...]:
        entry, _ = row
        if order == "name":
            return tuple(natural(PurePath(entry.get("image", ""))))
        if order == "wrong-first":
            place = 2 if (correct := entry.get("correct")) is None else int(correct)
            return place, unsureness(entry, 1 if place else -1)
        return (unsureness(entry, -1 if order == "most-sure" else 1),)

    return list(rows) if order is None else sorted(rows, key=key)


def truth_sentences(entries: Iterable[Mapping[str, Any]], origin: str) -> list[str]:
    """Returns the sentences at the end of a run: how many images are wrong, and where their labels come from."""
    judged = [entry["correct"] for entry in entries if entry.get("correct") is not None]
    lines = [f"{judged.count(False)} of {len(judged)} wrong"] if judged else []
    return lines + ([f"true labels: {origin}"] if origin else [])
