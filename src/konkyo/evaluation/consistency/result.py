"""The result of consistency(): numbers, maps, and what they say; on disk and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation import display
from konkyo.evaluation.consistency import text
from konkyo.evaluation.consistency.estimates import corrected_distances
from konkyo.evaluation.result import FigureFormat, Table, latex, markdown, with_nan
from konkyo.metrics.distances import Distance, distances
from konkyo.utils.files import csv_text, plain, read_json, replacing, write_text
from konkyo.utils.frames import data_frame

if TYPE_CHECKING:
    import pandas
    from PIL import Image


@dataclass(frozen=True)
class ImageResult:
    """The result of one image: its classes, and how far its map is from the mean map of its class."""

    name: str
    label: int
    prediction: int
    blank: bool
    """Whether its map shows nothing; such a map is never measured."""
    used: bool
    """Whether the map is in the class's mean."""
    deviation: float
    """Its distance from the mean map of the class that it explains (Eq. 9); NaN where it is not used."""

    @property
    def correct(self) -> bool:
        """Returns whether the decision is the label."""
        return self.label == self.prediction


@dataclass(frozen=True)
class ClassResult:
    """The result of one class: counts of its images, and how alike their maps are."""

    name: str
    total: int
    """Images with this label."""
    correct: int
    used: int
    """Maps in the class's mean; 0 where there are fewer than two."""
    blank: int
    """Maps left out because they show nothing."""
    value: float
    """L of the class in the chosen distance, corrected for the number of its maps."""
    low: float
    """Of the 95 % interval of `value`."""
    high: float
    rms: float
    """The root of `within`, whatever the distance."""
    within: float
    """The variance of its maps (divided by their number less one), the mean over cells."""
    plain: float = math.nan
    """L as defined (Eq. 10): the mean deviation, which falls with the number of maps."""


@dataclass(frozen=True)
class Baseline:
    """The numbers of a comparison in which nothing was learnt."""

    value: float
    ratio: float
    """W / T; NaN where it has no meaning."""


@dataclass(frozen=True, eq=False)
class Consistency:
    """The result says how alike the maps of one class are: numbers, maps, and every image's deviation.

    NaN stands for a number that is not known.
    """

    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    distance: Distance
    grid: int
    images: tuple[ImageResult, ...]
    of_class: tuple[ClassResult, ...]
    value: float
    """L, corrected for the number of maps: what a new image's map is expected to be away from the population's mean
    map. It compares over numbers of images, as `plain` (Eq. 10) does not."""
    low: float
    """Of the 95 % interval of `value`, by resampling images."""
    high: float
    macro: float
    """The mean of the classes' L, each class counting the same."""
    rms: float
    """The root of L in "mse", whatever the distance."""
    within: float
    """W: variance within classes, the mean over cells."""
    total: float
    """T: variance of all maps."""
    shuffled: float
    """The mean W of shuffled labels, divided by T: what `ratio` is where classes mean nothing."""
    p: float
    """How probable a W as small as this one is under shuffled labels."""
    distances: Mapping[str, float]
    """L in every distance."""
    coverage: float
    """The mean of the maps scaled to [0, 1]: which share of the picture they cover."""
    blank: int
    """Maps that would be used, but show nothing."""
    accuracy: float
    kappa: float
    """Cohen's."""
    wrong: float
    """L of the images that are decided wrongly, with their own mean maps."""
    wrong_count: int
    baselines: Mapping[str, Baseline]
    mean: Tensor
    """(K, g, g) the mean map of every class; NaN of a class that is not used."""
    deviation: Tensor
    """(K, g, g) the standard deviation."""
    maps: Tensor
    """(n, g, g) float32, every map that is used, scaled to [0, 1], in the order of `images`."""
    labels: Tensor
    """(n,) the class that each of them explains."""
    notes: tuple[str, ...] = field(default=())
    plain: float = math.nan
    """L as defined (Eq. 10): the mean deviation over all maps that are used. With n maps a class it is about
    (n - 1) / n of `value`. Published numbers are of it."""
    within_low: float = math.nan
    """Of the 95 % interval of W, by resampling images."""
    within_high: float = math.nan
    ratio_low: float = math.nan
    """Of the 95 % interval of W / T."""
    ratio_high: float = math.nan

    @property
    def ratio(self) -> float:
        """W / T: 0 where the maps of a class are identical, about 1 where classes do not differ; NaN of one class."""
        several = sum(c.used > 0 for c in self.of_class) > 1  # one class is all there is, whatever its maps
        return self.within / self.total if several and self.total > 0 else math.nan

    @property
    def between(self) -> Tensor:
        """Returns (K, K) the distances of the classes' mean maps; NaN of a class that is not used."""
        known = [i for i, c in enumerate(self.of_class) if c.used]
        matrix = torch.full((len(self.classes), len(self.classes)), math.nan, dtype=self.mean.dtype)
        for i in known:
            matrix[i, known] = distances(self.mean[known], self.mean[i], self.distance)
        return matrix

    def typical(self, name: str | int, k: int = 5) -> tuple[ImageResult, ...]:
        """Returns the `k` images of a class whose maps are nearest to its mean map, nearest first."""
        return self.ranked(name)[:k]

    def deviant(self, name: str | int, k: int = 5) -> tuple[ImageResult, ...]:
        """Returns the `k` images of a class whose maps are farthest from its mean map, farthest first."""
        return self.ranked(name)[::-1][:k]

    def ranked(self, name: str | int) -> tuple[ImageResult, ...]:
        """Returns the used images of a class, the nearest to the mean map first. KonkyoError: no such class."""
        if name not in self.classes and not (isinstance(name, int) and 0 <= name < len(self.classes)):
            raise unknown("class", name, self.classes)
        index = self.classes.index(name) if isinstance(name, str) else name
        used = [image for image in self.images if image.used]
        of_class = [image for image, label in zip(used, self.labels.tolist(), strict=True) if label == index]
        return tuple(sorted(of_class, key=lambda image: image.deviation))

    def map_of(self, name: str) -> Tensor:
        """Returns the map (g, g) of an image that is used. KonkyoError: no such image."""
        used = [image.name for image in self.images if image.used]
        if name not in used:
            raise unknown("image with a map", name, used)
        return self.maps[used.index(name)]

    def __repr__(self) -> str:
        return display.words_of_consistency(self)

    def _repr_html_(self) -> str:
        return display.html_of_consistency(self)

    def to_frame(self) -> pandas.DataFrame:
        """Returns a table of pandas with a line per image: what `images.csv` of `save` holds.

        KonkyoError: pandas is not installed.
        """
        rows = self._of_images()
        return data_frame({name: [row[place] for row in rows] for place, name in enumerate(_OF_IMAGES)})

    def _of_images(self) -> list[list[Any]]:
        names = self.classes
        return [
            [i.name, names[i.label], names[i.prediction], i.correct, i.blank, i.used, i.deviation] for i in self.images
        ]

    # --- tables and text ----------------------------------------------------------------------------------------------

    def table(self) -> Table:
        """The table has a line per class that has images, and one for all."""
        return text.table(self)

    def summary(self) -> Table:
        """The table has a line per number of the whole data set, and lines for the baselines."""
        return text.summary(self)

    def remarks(self) -> list[str]:
        """Returns the sentences that a reader of the numbers has to know."""
        return text.remarks(self)

    def alarm(self) -> tuple[str, dict[str, str]] | None:
        """Returns the class of the lowest L and a sentence by language, where its maps gather in one window.

        None: no such class, or fewer than two with maps. A low L may come from a marker, and is no merit then.
        """
        return text.alarm(self)

    def markdown(self) -> str:
        """The text holds `table`, `summary` and `remarks`."""
        return "\n".join([markdown(self.table()), markdown(self.summary()), *self.remarks()]) + "\n"

    def description(self) -> dict[str, Any]:
        """The dict holds everything but maps, as plain JSON values."""
        skipped = ("mean", "deviation", "maps", "labels", "images", "of_class", "baselines")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        values |= {name: dict(values[name]) for name in ("settings", "distances")}
        values |= {"ratio": self.ratio, "score": 1 - self.ratio, "between": self.between.tolist()}
        values |= {"of_class": [asdict(c) for c in self.of_class]}
        values |= {"baselines": {name: asdict(baseline) for name, baseline in self.baselines.items()}}
        values |= {"images": [asdict(image) for image in self.images]}
        return plain(values)  # type: ignore[no-any-return]

    # --- on disk ------------------------------------------------------------------------------------------------------

    def save(
        self,
        folder: str | Path,
        *,
        figures: bool = False,
        pictures: Callable[[str], Image.Image] | None = None,
        format: FigureFormat = "png",
    ) -> Path:
        """Writes consistency.json, table.md, .tex, classes.csv, images.csv and maps.safetensors. -> the folder

        `figures`: pictures too, as of `figures`, in the `format` "png", "svg" or "pdf".
        """
        from konkyo.draw.sheets import save_image

        folder = Path(folder)
        tensors = {name: getattr(self, name).contiguous() for name in ("mean", "deviation", "maps", "labels")}
        with replacing(folder / "maps.safetensors") as temporary:
            save_file(tensors, temporary)
        for name, picture in (self.figures(pictures) if figures else {}).items():
            save_image(picture, (folder / name).with_suffix(f".{format}"))
        texts = {
            "table.md": self.markdown(),
            "table.tex": "\n".join(map(latex, (self.table(), self.summary()))),
            "classes.csv": csv_text([f.name for f in fields(ClassResult)], [asdict(c).values() for c in self.of_class]),
            "images.csv": csv_text(_OF_IMAGES, self._of_images()),
            "consistency.json": json.dumps(self.description(), indent=1),  # the last: where it is, all is
        }
        for name, content in texts.items():
            write_text(folder / name, content)
        return folder

    def figures(self, pictures: Callable[[str], Image.Image] | None = None, k: int = 4) -> dict[str, Image.Image]:
        """Draws the pictures by file name: maps, distances, deviations; with `pictures` (name -> image) the extremes.

        Of more than 48 classes, those with the most maps are drawn. There is no picture where no class is used.
        """
        from konkyo.evaluation.consistency.figures import figures  # pictures are drawn only when a user wants them

        return figures(self, pictures, k)

    @classmethod
    def load(cls, folder: str | Path) -> Consistency:
        """Reads the result that `save` wrote. KonkyoError: the folder holds none."""
        folder = Path(folder)
        try:
            values = read_json(folder / "consistency.json")
            tensors: dict[str, Any] = load_file(folder / "maps.safetensors")
            known = {f.name for f in fields(cls)}
            values = with_nan({name: value for name, value in values.items() if name in known})
            values["images"] = tuple(ImageResult(**with_nan(image)) for image in values["images"])
            values["of_class"] = tuple(ClassResult(**with_nan(c)) for c in values["of_class"])
            values["baselines"] = {name: Baseline(**with_nan(b)) for name, b in values["baselines"].items()}
            values["distances"] = with_nan(values["distances"])
            if "plain" not in values:
                values = _of_older(values, tensors)
            values |= {name: tuple(values[name]) for name in ("classes", "notes")}
            return cls(**values, **tensors)
        except Exception as error:  # damaged files fail in every possible way
            raise KonkyoError(f"{folder} holds no saved consistency: {error}") from error


_OF_IMAGES = ["image", "label", "prediction", "correct", "blank", "used", "deviation"]


def _of_older(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the values of a folder from before L was corrected: its L is `plain`, and `value` is computed.

    The intervals were of another number, and too short: they are not known. The other L of such a folder (by other
    distances, of baselines, of wrong decisions) stay as they were.
    """
    maps, of, kinds = tensors["maps"].double(), tensors["labels"], len(values["classes"])
    corrected = corrected_distances(maps, of, kinds, values["distance"])
    by_class = [corrected[of == index] for index in range(kinds)]
    of_class = tuple(
        replace(c, plain=c.value, value=float(v.mean()), low=math.nan, high=math.nan)
        for c, v in zip(values["of_class"], by_class, strict=True)
    )
    means = {"value": float(corrected.mean()), "macro": float(torch.tensor([c.value for c in of_class]).nanmean())}
    return {**values, "plain": values["value"], "of_class": of_class, **means, "low": math.nan, "high": math.nan}
