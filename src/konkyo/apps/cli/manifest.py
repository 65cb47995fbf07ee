"""The record that `konkyo explain` and `konkyo compare` keep of their images, and what they tell at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from konkyo.apps.cli.options import (
    err,
    out,
)
from konkyo.errors import ImageError, KonkyoError

if TYPE_CHECKING:
    pass


class Manifest:
    """What was done, written after every image, so that an interrupted run can be resumed."""

    def __init__(self, path: Path | None, settings: dict[str, Any], *, resume: bool = False) -> None:
        self._path = path
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.values: dict[str, Any] = {"settings": settings, "started": now, "images": [], "skipped": []}
        if resume and path is not None and path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
                same, images = before["settings"] == settings, before["images"]
                _ = [entry["file"] for entry in images]
            except (ValueError, KeyError, TypeError) as error:
                raise KonkyoError(f"{path} is no manifest to resume from: {error}") from error
            if not same:
                raise KonkyoError(f"{path} was made with other settings; resume with the same, or choose another --out")
            self.values["images"] = images

    def has(self, file: Path) -> bool:
        """Whether the file's image is done."""
        return any(entry["file"] == str(file) for entry in self.values["images"])

    def image(self, file: Path) -> Entry:
        """The context in which the file's image is explained."""
        return Entry(self, file)

    def write(self) -> None:
        """Writes the whole manifest."""
        from konkyo.utils.files import write_text

        if self._path is not None:
            write_text(self._path, json.dumps(self.values, indent=2))


class Entry:
    """One image's part of the manifest; an image that cannot be used is told and left out, the others go on."""

    def __init__(self, manifest: Manifest, file: Path) -> None:
        self._manifest, self._file = manifest, file
        self._values: dict[str, Any] = {"file": str(file)}

    def __enter__(self) -> dict[str, Any]:
        return self._values

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is None:
            self._manifest.values["images"].append(self._values)
        elif isinstance(error, ImageError):
            self._manifest.values["skipped"].append({"file": str(self._file), "reason": str(error)})
            err.print(f"[yellow]skipped[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        else:
            return False
        self._manifest.write()
        return True


@contextmanager
def interrupted(manifest: Manifest) -> Iterator[None]:
    """Tells, when the user stops the run, what there is of it."""
    try:
        yield
    except KeyboardInterrupt:
        done = len(manifest.values["images"])
        err.print(f"interrupted: {done} images are done; the same command with --resume goes on from there")
        raise


def report_of(manifest: Manifest, as_json: bool, notes: list[str]) -> None:
    """Tells what was done. typer.Exit: 1 where nothing could be, 3 where images were skipped."""
    images, skipped = manifest.values["images"], manifest.values["skipped"]
    reasons = {reason for entry in images for reason in entry.get("not_applicable", ())}
    reasons |= {entry["nothing"] for entry in images if "nothing" in entry}
    if reasons and not any(entry.get("maps") for entry in images) and not as_json:
        raise KonkyoError("; ".join(sorted(reasons)))
    if as_json:
        print(json.dumps(manifest.values, indent=2))  # noqa: T201 - standard output is what was asked for
    else:
        applicable = {reason for entry in images for reason in entry.get("not_applicable", ())}
        doubtful = Counter(m["diagnosis"] for e in images for m in e.get("maps", ()) if m["diagnosis"] != "ok")
        notes = [f"{len(images)} images explained, {len(skipped)} skipped", *notes, *sorted(applicable)]
        notes += [f"{count} maps: {kind}" for kind, count in doubtful.items()]
        for note in notes:
            out.print(escape(note), soft_wrap=True, highlight=False)
    if not any(entry.get("maps") for entry in images):
        raise typer.Exit(1)
    if skipped:
        raise typer.Exit(3)


def unique_names(files: list[Path], manifest: Manifest) -> dict[Path, str]:
    """File name stems, numbered where one is taken: by another file, or in the manifest that is resumed."""
    taken, names = {str(entry.get("name")).casefold() for entry in manifest.values["images"]}, {}
    for file in files:
        if not manifest.has(file):
            tries = (file.stem if k == 1 else f"{file.stem}-{k}" for k in count(1))
            names[file] = next(name for name in tries if name.casefold() not in taken)
            taken.add(names[file].casefold())
    return names
