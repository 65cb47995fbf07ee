"""The record that `konkyo explain` and `konkyo compare` keep of their images, and what they say of it at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from konkyo.apps.cli.terminal import err, out
from konkyo.errors import ImageError, KonkyoError
from konkyo.utils.files import write_text
from konkyo.utils.ledger import Ledger, read_ledger

RECORD, DOCUMENT = "manifest.jsonl", "manifest.json"


class Manifest:
    """What was done with every image: in `manifest.jsonl` at once, and whole in `manifest.json` when the run ends.

    A folder holds images explained with one group of settings. What a run explains again takes the place of what is
    there, the rest stays. KonkyoError: the folder's images were explained with other settings, or another process is
    writing there. With `overwrite` what the manifest lists is removed first. It is a context manager.
    """

    def __init__(
        self, folder: Path | None, settings: dict[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self._folder, self._resume = folder, resume
        self._sheet: dict[str, str] = {}
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._files = set[str]()
        record = None if folder is None else folder / RECORD
        listed = [] if folder is None else _listed(folder)
        if folder is not None and listed and not (folder / RECORD).is_file() and not overwrite:
            raise KonkyoError(f"{folder / DOCUMENT} has no {RECORD} beside it to go on from; {_WAYS_OUT}")
        self._ledger = Ledger(record, settings, anew=overwrite or not listed, ways_out=_WAYS_OUT)
        for file in listed if overwrite else ():
            file.unlink(missing_ok=True)
        if self._ledger.damaged:
            note = f"{record}: {self._ledger.damaged} damaged lines; their images are explained again"
            err.print(escape(note), soft_wrap=True, highlight=False)
        if resume and (done := len(self.images)):
            err.print(f"{done} already there")

    @property
    def images(self) -> list[dict[str, Any]]:
        """What was done with every image of the folder."""
        return [entry for entry in self._ledger.entries.values() if "reason" not in entry]

    @property
    def of_this_run(self) -> list[dict[str, Any]]:
        """What was done with the images of this run; with `resume` those are all."""
        return [entry for entry in self.images if self._resume or entry["file"] in self._files]

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The images of this run that could not be used, and why."""
        return [e for e in self._ledger.entries.values() if "reason" in e and e["file"] in self._files]

    def document(self) -> dict[str, Any]:
        """The whole manifest."""
        values = {"settings": self._ledger.settings, "started": self._started}
        return values | {"images": self.images, "skipped": self.skipped} | self._sheet

    def sheet(self, path: Path) -> None:
        """Names the contact sheet of all images."""
        self._sheet = {"sheet": str(path)}

    def has(self, file: Path) -> bool:
        """Whether the file's image is done and need not be explained again."""
        return self._resume and "reason" not in self._ledger.entries.get(str(file), {"reason": "not done"})

    def name_of(self, file: Path) -> str | None:
        """Returns the file name stem that the image's pictures and maps have from an earlier run."""
        name = self._ledger.entries.get(str(file), {}).get("name")
        return None if name is None else str(name)

    def image(self, file: Path) -> Entry:
        """The context in which the file's image is explained."""
        self._files.add(str(file))
        return Entry(self._ledger, file)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: object) -> None:
        try:
            if self._folder is not None and (self._ledger.entries or kind is None):
                write_text(self._folder / DOCUMENT, json.dumps(self.document(), indent=2))
        finally:
            self._ledger.close()
        if kind is KeyboardInterrupt:
            done = len(self.images)
            err.print(f"interrupted: {done} images are done; the same command with --resume goes on from there")


_WAYS_OUT = "choose another --out, or --overwrite, which removes what the manifest lists"


def _listed(folder: Path) -> list[Path]:
    """Returns the pictures and maps that the manifest in a folder lists, and that lie in it."""
    entries: list[Any] = []
    try:
        entries = list(read_ledger(folder / RECORD)[1].values())
    except KonkyoError:
        try:
            entries = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))["images"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
    names: list[Any] = []
    for entry in (entry for entry in entries if isinstance(entry, Mapping)):
        maps = [m for m in entry.get("maps", ()) if isinstance(m, Mapping)]
        names += [entry.get("sheet"), *entry.get("paths", ()), *(m.get(k) for m in maps for k in ("overlay", "map"))]
    return [folder / name for name in names if isinstance(name, str) and name == Path(name).name]


class Entry:
    """One image's part of the manifest; an image that cannot be used is reported and left out, the others go on."""

    def __init__(self, ledger: Ledger, file: Path) -> None:
        self._ledger, self._file = ledger, file
        self._values: dict[str, Any] = {"file": str(file)}

    def __enter__(self) -> dict[str, Any]:
        return self._values

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is None:
            self._ledger.add(str(self._file), self._values)
        elif isinstance(error, ImageError):
            self._ledger.add(str(self._file), {"file": str(self._file), "reason": str(error)})
            err.print(f"[yellow]skipped[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        else:
            return False
        return True


def report_of(manifest: Manifest, as_json: bool, notes: list[str]) -> None:
    """Says what was done. typer.Exit: 1 where nothing could be, 3 where images were skipped."""
    images, skipped = manifest.of_this_run, manifest.skipped
    reasons = {reason for entry in images for reason in entry.get("not_applicable", ())}
    reasons |= {entry["nothing"] for entry in images if "nothing" in entry}
    if reasons and not any(entry.get("maps") for entry in images) and not as_json:
        raise KonkyoError("; ".join(sorted(reasons)))
    if as_json:
        print(json.dumps(manifest.document(), indent=2))  # noqa: T201 - standard output is what was asked for
    else:
        applicable = {reason for entry in images for reason in entry.get("not_applicable", ())}
        doubtful = Counter(m["diagnosis"] for e in images for m in e.get("maps", ()) if m["diagnosis"] != "ok")
        notes = [f"{len(images)} images explained, {len(skipped)} skipped", *notes, *sorted(applicable)]
        notes += [f"{number} maps: {kind}" for kind, number in doubtful.items()]
        for note in notes:
            out.print(escape(note), soft_wrap=True, highlight=False)
    if not any(entry.get("maps") for entry in images):
        raise typer.Exit(1)
    if skipped:
        raise typer.Exit(3)


def unique_names(files: list[Path], manifest: Manifest) -> dict[Path, str]:
    """File name stems: those of an earlier run, or new ones, numbered where one is taken by another file."""
    taken, names = {str(entry.get("name")).casefold() for entry in manifest.images}, {}
    for file in files:
        name = manifest.name_of(file)
        if name is None:
            tries = (file.stem if k == 1 else f"{file.stem}-{k}" for k in count(1))
            name = next(name for name in tries if name.casefold() not in taken)
            taken.add(name.casefold())
        names[file] = name
    return names
