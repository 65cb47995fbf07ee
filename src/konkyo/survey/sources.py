"""Where the maps of a survey come from: folders of `konkyo run` and of `konkyo explain`, and explanations in memory."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from konkyo.errors import ImageError, KonkyoError
from konkyo.explanation.reading import digest_of_pixels
from konkyo.explanation.result import Explanation
from konkyo.explanation.words import image_name
from konkyo.report.folder import MANIFEST as OF_EXPLAIN
from konkyo.runs.manifest import MANIFEST as OF_RUN
from konkyo.runs.pictures import DataNow, RunPictures
from konkyo.runs.records import Records, explanation_of, rows_of_file
from konkyo.utils.files import read_json

Key: TypeAlias = tuple[str, str, str]
"""What maps of one image and target have in common: the pixels' digest or the name, the label, and the box."""


@dataclass(frozen=True)
class MapRow:
    """A map that could be shown, without its values: what it is of, and where it is found again."""

    key: Key
    image: str
    sha256: str
    target: str
    method: str
    strata: Mapping[str, str] = field(hash=False)
    """"true_label", "decision" and "correct", where they are known."""
    place: tuple[int, int] = (0, 0)


class Source(abc.ABC):
    """A source has maps of one model, by one method or several."""

    name: str

    @abc.abstractmethod
    def rows(self) -> Iterator[MapRow]:
        """Yields what maps there are."""

    @abc.abstractmethod
    def results(self, wanted: Iterable[MapRow]) -> Iterator[tuple[MapRow, Explanation]]:
        """Yields the maps of these rows, one row each, with what the model saw of the picture where it is found."""

    @property
    @abc.abstractmethod
    def description(self) -> Mapping[str, Any]:
        """Returns what made the maps, without the names of folders."""


def source_of(given: str | Path | Explanation | Sequence[Explanation], name: str = "", data: DataNow = None) -> Source:
    """Returns the source that a folder is, or explanations are. KonkyoError: it is none of them."""
    if isinstance(given, Explanation):
        return InMemory(name, [given])
    if not isinstance(given, (str, Path)):
        return InMemory(name, list(given))
    folder = Path(given)
    if (folder / OF_RUN).is_file():
        return OfRun(name or folder.name, Records.open(folder), data)
    if (folder / OF_EXPLAIN).is_file():
        return OfExplain(name or folder.name, folder)
    what = "holds neither" if folder.is_dir() else "is no folder"
    raise KonkyoError(f"a folder of `konkyo run` has {OF_RUN}, one of `konkyo explain` {OF_EXPLAIN}; {folder} {what}")


@dataclass(frozen=True, eq=False)
class OfRun(Source):
    """The records of a run."""

    name: str
    records: Records
    data: DataNow = None

    def rows(self) -> Iterator[MapRow]:
        """Yields what maps there are, reading no values."""
        columns = ("image", "sha256", "method", "label", "box", "true_label", "decision", "correct", "shape")
        for shard, file in enumerate(self.records.files):
            for number, row in enumerate(rows_of_file(file, columns)):
                if row["shape"] is not None and len(row["shape"]) == 2:
                    sha256 = row["sha256"] or ""
                    key = (sha256 or row["image"], row["label"], _box_text(row["box"]))
                    strata = _strata(row["true_label"], row["decision"], row["correct"])
                    yield MapRow(key, row["image"], sha256, row["label"], row["method"], strata, (shard, number))

    def results(self, wanted: Iterable[MapRow]) -> Iterator[tuple[MapRow, Explanation]]:
        """Yields the maps of these rows; only the shards in which they lie are read."""
        places = {row.place: row for row in wanted}
        pictures = RunPictures.of(self.records.manifest, self.data)
        views: dict[str, Image.Image | None] = {}
        for shard in sorted({shard for shard, _ in places}):
            for number, values in enumerate(rows_of_file(self.records.files[shard])):
                if (row := places.get((shard, number))) is None:
                    continue
                if row.image not in views:
                    picture = pictures.find(row.image, row.sha256 or None)
                    views = {row.image: None if picture is None else pictures.view(picture.sample.image)}
                view = views[row.image]
                result = explanation_of([values], self.records.manifest)
                yield row, replace(result, images=None if view is None else (view,))

    @property
    def description(self) -> Mapping[str, Any]:
        """Returns the model and the digest of its weights."""
        manifest = self.records.manifest
        return {name: manifest.get(name) for name in ("model", "weights", "layer", "options", "seed")}


@dataclass(frozen=True, eq=False)
class OfExplain(Source):
    """The maps that `konkyo explain` saved."""

    name: str
    folder: Path

    @cached_property
    def _loaded(self) -> InMemory:
        from konkyo.report.folder import explanations_of_manifest

        return InMemory(self.name, list(explanations_of_manifest(self.folder)))

    def rows(self) -> Iterator[MapRow]:
        """Yields what maps there are."""
        return self._loaded.rows()

    def results(self, wanted: Iterable[MapRow]) -> Iterator[tuple[MapRow, Explanation]]:
        """Yields the maps of these rows."""
        return self._loaded.results(wanted)

    @property
    def description(self) -> Mapping[str, Any]:
        """Returns the settings of the model."""
        settings = read_json(self.folder / OF_EXPLAIN).get("settings", {})
        return {name: settings.get(name) for name in ("model", "weights", "preprocess")}


@dataclass(frozen=True, eq=False)
class InMemory(Source):
    """Explanations that bear their pictures."""

    name: str
    explanations: Sequence[Explanation]

    def rows(self) -> Iterator[MapRow]:
        """Yields what maps there are."""
        digests: dict[tuple[int, int], str] = {}
        for number, result in enumerate(self.explanations):
            for row in range(len(result)):
                if result.signed.ndim != 3:
                    continue
                at = number, int(result.image_index[row])
                if at not in digests:
                    picture = _picture(result, row)
                    digests[at] = "" if picture is None else digest_of_pixels(picture)
                sha256 = digests[at]
                label, box = result.labels[row], None if result.boxes is None else result.boxes[row].tolist()
                decision = result.decisions[row] if result.decisions else None
                truth = result.true_labels[row] if result.true_labels else None
                strata = _strata(truth, None if decision is None else decision.label, result.correct[row])
                name = image_name(result, row)
                key = (sha256 or name, label, _box_text(box))
                yield MapRow(key, name, sha256, label, result.method, strata, (number, row))

    def results(self, wanted: Iterable[MapRow]) -> Iterator[tuple[MapRow, Explanation]]:
        """Yields the maps of these rows."""
        for row in wanted:
            yield row, self.explanations[row.place[0]][row.place[1]]

    @property
    def description(self) -> Mapping[str, Any]:
        """Returns the model's name."""
        return {"model": self.explanations[0].model if self.explanations else ""}


def _picture(result: Explanation, row: int) -> Image.Image | None:
    try:
        return None if result.images is None else result.picture(row)
    except (ImageError, KonkyoError):
        return None


def _box_text(box: Sequence[float] | None) -> str:
    """Returns a box to half a pixel: two models' detections of one thing seldom agree to the last digit."""
    return "" if box is None else " ".join(f"{round(2 * side) / 2:g}" for side in box)


def _strata(true_label: str | None, decision: str | None, correct: bool | None) -> dict[str, str]:
    known = {
        "true_label": true_label,
        "decision": decision,
        "correct": None if correct is None else str(correct).lower(),
    }
    return {name: value for name, value in known.items() if value is not None}
