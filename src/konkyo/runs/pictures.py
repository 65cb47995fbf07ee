"""The pictures of a run, found again in the data that its manifest names, or where they are now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from konkyo.data.frame import Frame
from konkyo.data.pieces import Piece, pieces_of
from konkyo.data.samples import Sample, Samples
from konkyo.errors import KonkyoError
from konkyo.explanation.reading import digest_of_pixels
from konkyo.explanation.result import Explanation
from konkyo.models.preprocess import Preprocess, preprocess_of
from konkyo.runs.manifest import MERGED

DataNow: TypeAlias = str | Path | Sequence[str | Path] | None
"""Where the pictures of a run are now: as of `run`; None: where the manifest says."""


@dataclass(frozen=True, eq=False)
class RunPicture:
    """A picture that was found again."""

    sample: Sample
    file: Path | None
    """None: it has no file of its own."""


@dataclass(eq=False)
class RunPictures:
    """It opens the pictures of a run by name, and knows those that are not there any more."""

    preprocess: Preprocess | None
    unopened: Iterator[Piece]
    reason: str = ""
    """Why data could not be opened."""
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Names of pictures whose pixels are others now."""
    _homes: dict[str, list[tuple[Piece, int]]] = field(default_factory=dict)
    _open: tuple[Piece, Samples] | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any], data: DataNow = None) -> RunPictures:
        """Returns the pictures of a run. KonkyoError: `data` was given and cannot be opened."""
        seed = int(manifest.get("seed") or 0)
        if data is not None:
            if not isinstance(data, (str, Path)) and len(data) == 1:
                (data,) = data  # one name may be that of a data set, several are files and folders
            return cls(preprocess_of(manifest.get("preprocess")), iter(pieces_of(data, seed=seed).parts))
        parts = manifest["data"].get(MERGED) or [manifest["data"]]
        known, reasons = list[Piece](), list[str]()
        for part in parts:
            try:
                known += pieces_of(_named(str(part["source"])), seed=seed).parts
            except (KonkyoError, OSError) as error:
                reasons.append(f"{part['source']}: {error}")
        return cls(preprocess_of(manifest.get("preprocess")), iter(known), "; ".join(reasons))

    def of_next_page(self) -> RunPictures:
        """Returns the same pictures, listed no further than before, of which none is known to be missing."""
        return replace(self, missing=[], changed=[])

    def find(self, name: str, sha256: str | None) -> RunPicture | None:
        """Returns the picture of this name whose pixels have the digest; None: it cannot be read, or is another."""
        tried, other = 0, False
        while True:
            homes = self._homes.get(name, [])
            for piece, index in homes[tried:]:
                picture = self._read(piece, index)
                if picture is not None and (sha256 is None or digest_of_pixels(picture.sample.image) == sha256):
                    return picture
                other |= picture is not None
            tried = len(homes)
            if not self._list_next():
                (self.changed if other else self.missing).append(name)
                return None

    def view(self, picture: Image.Image) -> Image.Image:
        """Returns the part of a picture that the model saw."""
        return picture if self.preprocess is None else self.preprocess.view(picture)

    @property
    def notes(self) -> list[str]:
        """Returns the sentences about pictures that are not shown."""
        notes = []
        for names, why in ((self.missing, "they cannot be read"), (self.changed, "their pixels are others now")):
            if names:
                listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                notes.append(f"{len(names)} pictures are not shown, for {why}: {listed}.")
        if notes:
            notes.append(
                f"{self.reason + '. ' if self.reason else ''}`--data` says where the pictures are, if they were moved."
            )
        return notes

    def _list_next(self) -> bool:
        """Notes the names of the next piece. -> whether there was one"""
        piece = next(self.unopened, None)
        if piece is None:
            return False
        for index, name in enumerate(self._samples(piece).names):
            self._homes.setdefault(name, []).append((piece, index))
        return True

    def _samples(self, piece: Piece) -> Samples:
        if self._open is None or self._open[0] is not piece:
            self._open = piece, piece.open()
        return self._open[1]

    def _read(self, piece: Piece, index: int) -> RunPicture | None:
        try:
            samples = self._samples(piece)
            return RunPicture(samples[index], samples.files[index] if samples.files else None)
        except (KonkyoError, OSError):
            return None


def with_picture(result: Explanation, picture: Image.Image | None) -> Explanation:
    """Returns an explanation of one image with what the model saw of it."""
    return replace(result, images=None if picture is None else (picture,))


def seen_of(preprocess: Preprocess | None, size: tuple[int, int]) -> tuple[Image.Image, Frame]:
    """Returns a blank picture as large as what the model saw of one of a size (height, width), and where that lies."""
    blank = Image.new("RGB", (size[1], size[0]))
    return (blank, Frame()) if preprocess is None else (preprocess.view(blank), preprocess.frame(blank))


def _named(source: str) -> Any:
    """Returns data as a manifest names it: several files and folders stand apart by commas there."""
    several = source.split(", ")
    return several if len(several) > 1 and all(Path(name).expanduser().exists() for name in several) else source
