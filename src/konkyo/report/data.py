"""The pictures of a data set that settings name, as a model sees them: opened again for a page, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image

from konkyo.data.samples import Samples, samples
from konkyo.errors import KonkyoError
from konkyo.evaluation.diagnose.findings import Text
from konkyo.models.preprocess import preprocess_of
from konkyo.report.assets import picture_side, reduced
from konkyo.report.builders import Request
from konkyo.report.page import words
from konkyo.report.provenance import of_model, of_versions


def provenance_of(settings: Mapping[str, Any], request: Request) -> dict[str, str]:
    """Returns what made a result, by name: its settings, and of the model that is known what it is."""
    values = {
        name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for name, value in settings.items()
        if value not in (None, "", {}, []) and name not in ("konkyo", "weights")  # the form of a record, and its digest
    }
    if "preprocess" in values:
        values["preprocessing"] = values.pop("preprocess")
    return values | ({} if request.model is None else of_model(request.model)) | of_versions()


def some_of(names: Sequence[str], most: int | None, first: Collection[str] = ()) -> list[str]:
    """Returns the names whose pictures are shown: all, or `most`, those in `first` and an even choice of the others."""
    distinct = list(dict.fromkeys(names))
    if most is None or len(distinct) <= most:
        return distinct
    head = [name for name in distinct if name in first][:most]
    others = [name for name in distinct if name not in first]
    rest = min(most - len(head), len(others))
    return head + [others[k * len(others) // rest] for k in range(rest)]


class DataPictures:
    """The pictures of a data set by the names of its samples. What cannot be opened is noted, and not shown."""

    def __init__(self, settings: Mapping[str, Any], request: Request) -> None:
        """`settings`: those of the result, which name the data, and its preprocessing where no model is given."""
        model, self._most = request.model, request.most
        self._preprocess = preprocess_of(settings.get("preprocess")) if model is None else model.preprocess
        self._data: Samples | None = None
        self._missing = list[str]()
        self._refused = ""
        try:
            self._data = samples(str(settings.get("data")), seed=int(settings.get("seed") or 0))
        except KonkyoError as error:
            self._refused = str(error)
        names = () if self._data is None else self._data.names
        self._places = {name: index for index, name in enumerate(names)}

    def of(self, names: Sequence[str], first: Collection[str] = ()) -> dict[str, Image.Image]:
        """Returns small pictures by name: of those that `some_of` chooses."""
        distinct = some_of(names, self._most, first)
        side = picture_side(len(distinct))
        opened = ((name, self._open(name)) for name in distinct)
        return {name: reduced(picture, side) for name, picture in opened if picture is not None}

    def _open(self, name: str) -> Image.Image | None:
        if self._data is None:
            return None
        try:
            picture = self._data[self._places[name]].image
        except (KonkyoError, KeyError):
            self._missing.append(name)
            return None
        return picture if self._preprocess is None else self._preprocess.view(picture)

    @property
    def notes(self) -> tuple[Text, ...]:
        """Returns the sentence about pictures that could not be opened, where there are any."""
        if self._refused:
            return (words(f"Pictures are not shown: the data cannot be opened again ({self._refused})."),)
        if self._missing:
            number = len(self._missing)
            return (words(f"{number} pictures are not shown, for they cannot be opened, such as {self._missing[0]}."),)
        return ()
