"""The record that `konkyo explain` and `konkyo compare` keep of their images, and what they say of it at the end."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import typer

from konkyo.apps.cli.sources import ordered, truth_sentences
from konkyo.apps.cli.terminal import print_json, print_line, print_note, print_warning
from konkyo.errors import ImageError, KonkyoError
from konkyo.utils.files import csv_of, read_json, write_text
from konkyo.utils.ledger import Ledger
from konkyo.utils.words import counted, image_and_note

RECORD, DOCUMENT, TABLE = "manifest.jsonl", "manifest.json", "images.csv"
_SHOWN = 3  # reasons in an error
_LONGEST = 160  # bytes of a stem; file systems take 255, and what is written has more to its name


class Manifest:
    """What was done with every image: in `manifest.jsonl` at once, and whole in `manifest.json` when the run ends.

    Beside it images.csv has a line per map then, in the order of --sort.
    A folder holds images explained with one group of settings. What a run explains again takes the place of what is
    there, the rest stays. With `overwrite` what the manifest lists is removed when the first image is done.
    It is a context manager. KonkyoError: the folder's images were explained with other settings, another process is
    writing there, or a file of one of the two names is something else.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: dict[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        order: str | None = None,
    ) -> None:
        if resume and overwrite:
            raise KonkyoError("--resume goes on with what is there, --overwrite removes it; give one of them")
        from konkyo.draw.text import missing  # with it comes Pillow, which --help does not wait for

        self._folder, self._resume, self._known = folder, resume, missing()
        self._sheet: dict[str, str] = {}
        self._order = order
        self.origin = ""
        """Where true labels come from."""
        self.made_by: dict[str, Any] = {}
        """The provenance and the command line of this run."""
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._keys = set[str]()
        self._skipped: list[dict[str, str]] = []
        record = None if folder is None else folder / RECORD
        self._ledger = Ledger(
            record, settings, anew=overwrite, disposable=lambda entry: not _files_of(entry), ways_out=_WAYS_OUT
        )
        try:
            listed = [] if folder is None else _listed(folder / DOCUMENT)
            if listed and self._ledger.began and not overwrite:
                raise KonkyoError(f"{folder}: {DOCUMENT} has no {RECORD} beside it to go on from; {_WAYS_OUT}")
        except BaseException:
            self._ledger.close()
            raise
        self._outdated = [*self._ledger.forgotten.values(), *(listed if self._ledger.began else ())]
        """Entries whose files go when the first new one is recorded."""
        if self._ledger.damaged:
            note = f"{record}: {self._ledger.damaged} damaged lines; their images are explained again"
            print_note(note)
        if resume and (done := len(self.images)):
            print_note(f"{done} already there")

    @property
    def images(self) -> list[dict[str, Any]]:
        """What was done with every image of the folder."""
        return list(self._ledger.entries.values())

    @property
    def of_this_run(self) -> list[dict[str, Any]]:
        """What was done with the images of this run; with `resume` those are all."""
        return [entry for key, entry in self._ledger.entries.items() if self._resume or key in self._keys]

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The images of this run that could not be used, and why. What an earlier run made of them stays."""
        return self._skipped

    def lacking(self) -> str:
        """Returns the characters in this run's pictures that no font has, where they have not been told before."""
        from konkyo.draw.text import missing

        return "".join(character for character in missing() if character not in self._known)

    def document(self) -> dict[str, Any]:
        """The whole manifest."""
        values = {"settings": self._ledger.settings, "started": self._started}
        values |= self.made_by | ({"true_labels": self.origin} if self.origin else {})
        return values | {"images": self.images, "skipped": self.skipped} | self._sheet

    def sheet(self, path: Path) -> None:
        """Names the contact sheet of all images."""
        self._sheet = {"sheet": str(path)}

    def has(self, file: Path, true_label: str | None = None) -> bool:
        """Whether the image is done, is still what it was and of this class, and has all its pictures and maps."""
        entry = self._ledger.entries.get(_key(file))
        if not self._resume or entry is None or entry.get("of") != _state(file):
            return False
        if entry.get("true_label") != true_label:
            return False
        return self._folder is None or all((self._folder / name).is_file() for name in _files_of(entry))

    def name_of(self, file: Path) -> str | None:
        """The file name stem that the image's pictures and maps have from an earlier run."""
        name = self._ledger.entries.get(_key(file), {}).get("name")
        return None if name is None else str(name)

    def image(self, file: Path) -> Entry:
        """The context in which the file's image is explained."""
        return Entry(self, file)

    def add(self, file: Path, values: dict[str, Any]) -> None:
        """Records an image. What was listed of it before, and is no longer, is removed."""
        key, values = _key(file), {**values, "of": _state(file)}
        self._keys.add(key)
        self._outdated.append(self._ledger.entries.get(key))
        if self._folder is not None:
            for name in {name for entry in self._outdated for name in _files_of(entry)} - set(_files_of(values)):
                (self._folder / name).unlink(missing_ok=True)
        self._outdated = []
        self._ledger.add(key, values)

    def skip(self, file: Path, reason: str) -> None:
        """Notes an image that cannot be used."""
        reason = reason if file.name in reason else f"{file}: {reason}"
        self._skipped.append({"file": str(file), "reason": reason})
        print_warning("skipped", reason)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: object) -> None:
        try:
            if self._folder is not None and (self._ledger.entries or self._skipped):
                write_text(self._folder / TABLE, csv_of(_lines(self.images, self._order)))
                write_text(self._folder / DOCUMENT, json.dumps(self.document(), indent=2))
        finally:
            self._ledger.close()
        if kind is KeyboardInterrupt:
            done = len(self.images)
            print_note(
                f"interrupted: {done} images are done; the same command with --resume goes on from there"
                " (without --overwrite)"
            )


_WAYS_OUT = "choose another --out, or --overwrite, which removes what the manifest lists"


def _key(file: Path) -> str:
    """What tells images apart, wherever the command is given."""
    return str(file.resolve())


def _state(file: Path) -> list[int]:
    """The size in bytes and the time of the last change, in nanoseconds, of an image's file."""
    try:
        state = file.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def _listed(document: Path) -> list[Any]:
    """The entries of a manifest's document; none where there is no such file. KonkyoError: another file."""
    if not document.is_file():
        return []
    values = read_json(document)
    if not isinstance(values, dict) or not isinstance(values.get("images"), list) or "settings" not in values:
        raise KonkyoError(f"{document} is no manifest of konkyo; choose another --out")
    return list(values["images"])


def _lines(entries: Iterable[Mapping[str, Any]], order: str | None) -> Iterator[dict[str, Any]]:
    """Yields a line per map of the entries."""
    for entry, _ in ordered([(dict(entry), None) for entry in entries], order):
        of_image = {"image": entry.get("image", entry.get("file")), "true_label": entry.get("true_label")}
        for m in _maps_of(entry):
            decision = m.get("decision") or {}
            yield {
                **of_image,
                "decision": decision.get("label"),
                "probability": decision.get("probability"),
                "correct": entry.get("correct"),
                "method": m.get("method"),
                "explained": m.get("label"),
                "score": m.get("score"),
                "explained_probability": decision.get("asked_probability"),
                "explained_rank": decision.get("rank"),
                "layer": m.get("layer"),
                "diagnosis": m.get("diagnosis"),
                "overlay": m.get("overlay"),
                "map": m.get("map"),
                "file": entry.get("file"),
            }


def _maps_of(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [m for m in entry.get("maps", ()) if isinstance(m, Mapping)]


def _files_of(entry: Any) -> list[str]:
    """The names of the pictures and maps that an entry lists, all of which lie in the folder itself."""
    if not isinstance(entry, Mapping):
        return []
    parts = (m.get(k) for m in _maps_of(entry) for k in ("overlay", "map", "export"))
    names = [entry.get("sheet"), *entry.get("paths", ()), *parts]
    return [name for name in names if isinstance(name, str) and name == Path(name).name and name not in ("", "..")]


class Entry:
    """One image's part of the manifest; an image that cannot be used is reported and left out, the others go on."""

    def __init__(self, manifest: Manifest, file: Path) -> None:
        self._manifest, self._file = manifest, file
        self._values: dict[str, Any] = {"file": str(file)}

    def __enter__(self) -> dict[str, Any]:
        return self._values

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is None:
            self._manifest.add(self._file, self._values)
        elif isinstance(error, ImageError):
            self._manifest.skip(self._file, str(error))
        else:
            return False
        return True


def report_of(manifest: Manifest, as_json: bool, notes: list[str]) -> None:
    """Says what was done. typer.Exit: 1 where nothing could be, 3 where images were skipped."""
    if lacking := manifest.lacking():
        note = f"no font of this machine has {lacking[:20]}: pictures have the code points; Noto Sans CJK has most"
        print_note(f"note: {note}")
    images, skipped = manifest.of_this_run, manifest.skipped
    reasons = {reason for entry in images for reason in entry.get("not_applicable", ())}
    reasons |= {entry["nothing"] for entry in images if "nothing" in entry}
    if reasons and not any(entry.get("maps") for entry in images) and not as_json:
        first, more = sorted(reasons)[:_SHOWN], len(reasons) - _SHOWN
        raise KonkyoError("; ".join([*first, *([f"and {more} more, each in {DOCUMENT}"] if more > 0 else [])]))
    if as_json:
        print_json(manifest.document())
    else:
        applicable = {reason for entry in images for reason in entry.get("not_applicable", ())}
        doubtful = Counter(m["diagnosis"] for e in images for m in e.get("maps", ()) if m["diagnosis"] != "ok")
        shown = [entry for entry in images if "left_out" not in entry]
        notes = [f"{counted(len(shown), 'image')} explained, {len(skipped)} skipped", *notes, *sorted(applicable)]
        notes += truth_sentences(images, manifest.origin)
        notes += [f"{counted(number, 'map')}: {kind}" for kind, number in doubtful.items()]
        assumed: dict[str, list[str]] = {}
        for entry in images:
            for sentence in entry.get("assumptions", ()):
                assumed.setdefault(sentence, []).append(entry["image"])
        notes += [f"assumed: {_of_images(sentence, names)}" for sentence, names in assumed.items()]
        for note in notes:
            print_line(note)
    if not any(entry.get("maps") or "left_out" in entry for entry in images):
        raise typer.Exit(1)
    if skipped:
        raise typer.Exit(3)


def _of_images(sentence: str, names: list[str]) -> str:
    """Returns what was assumed of an image with the names of the images, which are explained one by one.

    >>> _of_images("image 0: inverted", ["a.dcm", "b.dcm"]), _of_images("classes: guessed", ["a.dcm"])
    ('a.dcm and 1 more: inverted', 'classes: guessed')
    """
    number, note = image_and_note(sentence)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return note if number is None else f"{names[0]}{more}: {note}"


def unique_names(files: list[Path], manifest: Manifest) -> dict[Path, str]:
    """File name stems: those of an earlier run, or new ones, numbered where one is taken by another file."""
    taken, names = {str(entry.get("name")).casefold() for entry in manifest.images}, {}
    for file in files:
        name = manifest.name_of(file)
        if name is None:
            stem = os.fsencode(file.stem)[:_LONGEST].decode(errors="ignore")
            tries = (stem if k == 1 else f"{stem}-{k}" for k in count(1))
            name = next(name for name in tries if name.casefold() not in taken)
            taken.add(name.casefold())
        names[file] = name
    return names
