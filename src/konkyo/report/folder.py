"""The page of a finished folder: what a command wrote there is read again, and so are the pictures that it was of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from konkyo.data.images import open_image
from konkyo.errors import ImageError, KonkyoError
from konkyo.evaluation.consistency.result import Consistency
from konkyo.evaluation.diagnose.result import DiagnosisReport
from konkyo.evaluation.result import Evaluation
from konkyo.explanation.result import Explanation
from konkyo.models.preprocess import Preprocess, preprocess_of
from konkyo.report.builders import Request
from konkyo.report.of_consistency import page_of_consistency
from konkyo.report.of_diagnosis import page_of_diagnosis
from konkyo.report.of_evaluation import page_of_evaluation
from konkyo.report.page import Page
from konkyo.report.rows import CollectedRows
from konkyo.utils.files import read_json

MANIFEST, PROVENANCE = "manifest.json", "provenance.json"
Reader: TypeAlias = Callable[[Path, Request], Page]
READERS: dict[str, Reader] = {}
"""The file that a kind of folder has, and what makes its page; the first one that is there counts."""


def reader(name: str) -> Callable[[Reader], Reader]:
    """Registers the function that makes the page of a folder which has a file of this name."""

    def register(function: Reader) -> Reader:
        READERS[name] = function
        return function

    return register


def page_of_folder(folder: str | Path, request: Request | None = None) -> Page:
    """Returns the page of a folder that a command wrote, with as many pictures as are wanted.

    KonkyoError: the folder holds nothing of the kind, or a file that cannot be read.
    """
    folder = Path(folder)
    for name, read in READERS.items():
        if (folder / name).is_file():
            return read(folder, request or Request())
    expected = ", ".join(READERS)
    what = "holds none of them" if folder.is_dir() else "is no folder"
    raise KonkyoError(
        f"a folder of `konkyo explain`, `evaluate`, `consistency` or `diagnose` has one of {expected}; {folder} {what}"
    )


@dataclass(eq=False)
class PicturesSeen:
    """It reads picture files as a model sees them, and notes those that cannot be read."""

    preprocess: Preprocess | None
    missing: list[str] = field(default_factory=list)
    window: str = ""
    """As of `konkyo.data.images.open_image`."""

    def open(self, file: Path) -> Image.Image | None:
        """Returns the part of the picture that the model sees; None where the file cannot be read."""
        try:
            picture = open_image(file, self.window)
        except ImageError:
            self.missing.append(file.name)
            return None
        return picture if self.preprocess is None else self.preprocess.view(picture)

    @property
    def notes(self) -> list[str]:
        """Returns the sentence about files that could not be read, where there are any."""
        if not self.missing:
            return []
        names = ", ".join(self.missing[:5]) + (", ..." if len(self.missing) > 5 else "")
        return [f"{len(self.missing)} pictures are not shown, for their files cannot be read any more: {names}."]


def made_by(folder: Path) -> tuple[dict[str, str], str]:
    """Returns (provenance, command) as a command wrote them beside its results; nothing where it did not."""
    path = folder / PROVENANCE
    return origin_of(read_json(path)) if path.is_file() else ({}, "")


def origin_of(values: Any) -> tuple[dict[str, str], str]:
    """Returns (provenance, command) of what a command noted about itself."""
    if not isinstance(values, Mapping) or not isinstance(values.get("provenance"), Mapping):
        return {}, ""
    return {str(name): str(value) for name, value in values["provenance"].items()}, str(values.get("command", ""))


@reader("evaluation.json")
def page_of_evaluation_folder(folder: Path, request: Request) -> Page:
    """Returns the page of a folder of `konkyo evaluate`. KonkyoError: it cannot be read."""
    return _made(page_of_evaluation(Evaluation.load(folder), request), folder)


@reader("consistency.json")
def page_of_consistency_folder(folder: Path, request: Request) -> Page:
    """Returns the page of a folder of `konkyo consistency`. KonkyoError: it cannot be read."""
    return _made(page_of_consistency(Consistency.load(folder), request), folder)


@reader("findings.json")
def page_of_diagnosis_folder(folder: Path, request: Request) -> Page:
    """Returns the page of a folder of `konkyo diagnose`. KonkyoError: it cannot be read."""
    return _made(page_of_diagnosis(DiagnosisReport.load(folder), request), folder)


def _made(page: Page, folder: Path) -> Page:
    """Returns the page with what the command noted about itself."""
    provenance, command = made_by(folder)
    return replace(page, provenance={**page.provenance, **provenance}, command=command)


@reader(MANIFEST)
def page_of_manifest(folder: Path, _request: Request) -> Page:
    """Returns the page of a folder of `konkyo explain`. KonkyoError: its manifest or a map cannot be read."""
    document = _document(folder)
    settings, entries = document["settings"], [e for e in document["images"] if _has_maps(e)]
    shown = {id(entry) for entry in entries}
    seen = _seen_by(settings)
    rows = CollectedRows(len(entries))
    for entry in entries:
        rows.add(_of_entry(folder, entry, seen))
    for entry in document["images"]:
        if isinstance(entry, dict) and id(entry) not in shown and isinstance(entry.get("decision"), dict):
            rows.count(str(entry.get("image")), entry["decision"].get("label", ""), entry.get("true_label") or "")
    provenance, command = origin_of(document)
    if not provenance:
        provenance = {name: str(settings[name]) for name in ("model", "preprocess") if name in settings}
    title = f"{settings.get('model', 'model')}: {', '.join(rows.layers)}"
    notes = [*_left_out(document), *seen.notes]
    return rows.page(title, provenance=provenance, command=command, notes=notes)


def explanations_of_manifest(folder: Path) -> Iterator[Explanation]:
    """Yields what `konkyo explain` saved: per image an explanation of every method, with the picture if it is there.

    KonkyoError: the manifest or a map cannot be read.
    """
    document = _document(folder)
    seen = _seen_by(document["settings"])
    for entry in document["images"]:
        if _has_maps(entry):
            yield from _of_entry(folder, entry, seen)


def _document(folder: Path) -> dict[str, Any]:
    document = read_json(folder / MANIFEST)
    known = isinstance(document, dict) and isinstance(document.get("settings"), dict)
    if not known or not isinstance(document.get("images"), list):
        raise KonkyoError(f"{folder / MANIFEST} is no manifest of konkyo")
    return dict(document)


def _seen_by(settings: Mapping[str, Any]) -> PicturesSeen:
    return PicturesSeen(preprocess_of(settings.get("preprocess")), window=str(settings.get("window") or ""))


def _of_entry(folder: Path, entry: Mapping[str, Any], seen: PicturesSeen) -> list[Explanation]:
    picture = seen.open(Path(str(entry["file"])))
    name = str(entry.get("image") or Path(str(entry["file"])).name)
    return [_explained(folder / file, name, entry, picture) for file in _map_files(entry)]


def _has_maps(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("maps"), list) and bool(entry["maps"]) and "file" in entry


def _map_files(entry: Mapping[str, Any]) -> list[str]:
    """Returns the files of an image's maps, a method each, in order."""
    names = (m.get("map") for m in entry["maps"] if isinstance(m, dict))
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name == Path(name).name))


def _explained(file: Path, name: str, entry: Mapping[str, Any], picture: Image.Image | None) -> Explanation:
    result = Explanation.load(file)
    labels = (entry.get("true_label"),) * len(result) if entry.get("true_label") is not None else ()
    return replace(
        result, names=(name,) * len(result), true_labels=labels, images=None if picture is None else (picture,)
    )


def _left_out(document: Mapping[str, Any]) -> list[str]:
    """Returns the sentences about images that have no rows."""
    right = sum("left_out" in entry for entry in document["images"] if isinstance(entry, dict))
    skipped = document.get("skipped") or []
    notes = [f"Only images that are decided wrongly are shown; {right} others are left out."] if right else []
    notes += [f"{len(skipped)} images could not be used, the first: {skipped[0].get('reason')}"] if skipped else []
    return notes + ([f"True labels: {origin}."] if (origin := document.get("true_labels")) else [])
