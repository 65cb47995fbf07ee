"""consistency(): how alike the maps of one class are, over a data set."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from konkyo.data.samples import Data, Sample, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.engine.capture import draw_anew, untouched
from konkyo.engine.forward import Pass, Precision
from konkyo.errors import ImageError, KonkyoError, KonkyoWarning, unknown
from konkyo.evaluation.result import Table, bracketed, markdown, number
from konkyo.explanation.explain import Where, Which, explain
from konkyo.methods.base import find
from konkyo.metrics.distances import (
    DISTANCES,
    Distance,
    blank,
    class_means,
    distances,
    kappa,
    on_grid,
    shuffled_within,
    within_total,
)
from konkyo.models import Model, as_model
from konkyo.targets.classes import class_logits
from konkyo.utils.files import csv_text, plain, replacing, write_text
from konkyo.utils.tensors import min_max

if TYPE_CHECKING:
    from PIL import Image

Of: TypeAlias = Literal["label", "decision"]
Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
Told: TypeAlias = Callable[[int, int | None], object]
"""Called with (images done, images in all; None where that is not known)."""

PLACELESS = 0.85
"""From this W / T on, classes hardly say where to look: 0.92 is measured for objects anywhere, 0.44 for fixed ones."""
_SHUFFLES = 20  # of labels, for the baseline of a distance that has to be computed again for each
_DRAWN = 48  # classes in a picture
_MOST = 4_000_000  # numbers that are drawn at once
_SIGMA = 0.25  # of the Gaussian in the centre, as a share of the side


@dataclass(frozen=True)
class Looked:
    """One image, and how far its map is from the mean map of its class."""

    name: str
    label: int
    prediction: int
    blank: bool
    """Whether its map shows nothing; such a map is never measured."""
    used: bool
    """Whether the map is in the class's mean."""
    deviation: float
    """Its distance from the mean map of the class that it explains; NaN where it is not used."""

    @property
    def correct(self) -> bool:
        """Whether the decision is the label."""
        return self.label == self.prediction


@dataclass(frozen=True)
class OfClass:
    """What was measured of one class."""

    name: str
    total: int
    """Images with this label."""
    correct: int
    used: int
    """Maps in the class's mean; 0 where there are fewer than two."""
    blank: int
    """Maps left out because they show nothing."""
    value: float
    """L of the class: the mean deviation, in the chosen distance."""
    low: float
    """Of the 95 % interval."""
    high: float
    rms: float
    """The root of the mean squared difference from the mean map, whatever the distance; at most 0.5."""
    within: float
    """The variance of its maps (divided by their number less one), the mean over cells."""


@dataclass(frozen=True)
class Baseline:
    """What the numbers are where nothing was learnt."""

    value: float
    ratio: float
    """W / T; NaN where it has no meaning."""


@dataclass(frozen=True, eq=False)
class Consistency:
    """How alike the maps of one class are: numbers, maps, and every image's deviation. NaN: not known."""

    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    distance: Distance
    grid: int
    images: tuple[Looked, ...]
    of_class: tuple[OfClass, ...]
    value: float
    """L (Eq. 10): the mean deviation over all maps that are used."""
    low: float
    """Of the 95 % interval: 2.5 % of resampled values are lower."""
    high: float
    macro: float
    """The mean of the classes' L, each class counting the same."""
    rms: float
    """The root of the mean squared difference, whatever the distance."""
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

    @property
    def ratio(self) -> float:
        """W / T: 0 where the maps of a class are identical, about 1 where classes do not differ; NaN of one class."""
        several = sum(c.used > 0 for c in self.of_class) > 1  # one class is all there is, whatever its maps
        return self.within / self.total if several and self.total > 0 else math.nan

    @property
    def between(self) -> Tensor:
        """(K, K) the distances of the classes' mean maps; NaN of a class that is not used."""
        known = [i for i, c in enumerate(self.of_class) if c.used]
        found = torch.full((len(self.classes), len(self.classes)), math.nan, dtype=self.mean.dtype)
        for i in known:
            found[i, known] = distances(self.mean[known], self.mean[i], self.distance)
        return found

    def typical(self, name: str | int, k: int = 5) -> tuple[Looked, ...]:
        """The `k` images of a class whose maps are nearest to its mean map, nearest first."""
        return self._ranked(name)[:k]

    def deviant(self, name: str | int, k: int = 5) -> tuple[Looked, ...]:
        """The `k` images of a class whose maps are farthest from its mean map, farthest first."""
        return self._ranked(name)[::-1][:k]

    def _ranked(self, name: str | int) -> tuple[Looked, ...]:
        if name not in self.classes and not (isinstance(name, int) and 0 <= name < len(self.classes)):
            raise unknown("class", name, self.classes)
        index = self.classes.index(name) if isinstance(name, str) else name
        used = [image for image in self.images if image.used]
        own = [image for image, label in zip(used, self.labels.tolist(), strict=True) if label == index]
        return tuple(sorted(own, key=lambda image: image.deviation))

    def map_of(self, name: str) -> Tensor:
        """The map (g, g) of an image that is used. KonkyoError: no such image."""
        used = [image.name for image in self.images if image.used]
        if name not in used:
            raise unknown("image with a map", name, used)
        return self.maps[used.index(name)]

    # --- what is told -------------------------------------------------------------------------------------------------

    def table(self) -> Table:
        """A line per class that has images, and one for all."""
        head = ["class", "images", "correct", "used", "blank", "L [95 %]", "RMS", "W"]
        lines = [
            [c.name, *map(str, (c.total, c.correct, c.used, c.blank)), *_shown(c.value, c.low, c.high, c.rms, c.within)]
            for c in self.of_class
            if c.total or c.used
        ]
        sums = [sum(getattr(c, name) for c in self.of_class) for name in ("total", "correct", "used", "blank")]
        overall = _shown(self.value, self.low, self.high, self.rms, self.within)
        return head, [*lines, ["all", *map(str, sums), *overall]]

    def summary(self) -> Table:
        """A line per number of the whole data set, and what it is where nothing was learnt."""
        rows = [
            [f"L ({self.distance})", bracketed(self.value, self.low, self.high)],
            ["L, the mean of classes", number(self.macro)],
            ["W / T", number(self.ratio)],
            ["W / T of shuffled labels", f"{number(self.shuffled)} (p = {number(self.p)})"],
            ["coverage", number(self.coverage)],
            ["accuracy", number(self.accuracy)],
            ["kappa", number(self.kappa)],
            ["L of wrong decisions", f"{number(self.wrong)} ({self.wrong_count} maps)"],
            *([f"L in {name}", number(value)] for name, value in self.distances.items() if name != self.distance),
        ]
        for name, found in self.baselines.items():
            ratio = "" if math.isnan(found.ratio) else f", W / T {number(found.ratio)}"
            rows.append([f"baseline: {name}", f"L {number(found.value)}{ratio}"])
        return ["of all", "value"], rows

    def remarks(self) -> list[str]:
        """What one has to know to read the numbers."""
        total, used = len(self.images), sum(c.used for c in self.of_class)
        said = [f"Maps: {used} of {total} images are used; {self.blank} are blank and left out."]
        if alone := [c.name for c in self.of_class if c.total and not c.used]:
            said.append(f"Classes with fewer than two maps, not measured: {', '.join(alone[:10])}.")
        if self.ratio > PLACELESS:
            said.append(
                f"W / T is {self.ratio:.2f}, above {PLACELESS}: maps of one class are hardly more alike than maps of "
                "any. Position is not defined by the class here, and a low L only says that all maps are alike."
            )
        if self.distance == "l2_over_hw":
            said.append("l2_over_hw falls with the number of cells: compare it at one grid only.")
        said.append(
            "Consistency is not correctness: maps can agree on the wrong place. `konkyo evaluate` measures whether "
            "they are right."
        )
        return [*said, *self.notes]

    def markdown(self) -> str:
        """`table`, `summary` and `remarks`."""
        return "\n".join([markdown(self.table()), markdown(self.summary()), *self.remarks()]) + "\n"

    def description(self) -> dict[str, Any]:
        """Everything but maps, as plain JSON values."""
        skipped = ("mean", "deviation", "maps", "labels", "images", "of_class", "baselines")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        values |= {name: dict(values[name]) for name in ("settings", "distances")}
        values |= {"ratio": self.ratio, "score": 1 - self.ratio, "between": self.between.tolist()}
        values |= {"of_class": [asdict(c) for c in self.of_class]}
        values |= {"baselines": {name: asdict(found) for name, found in self.baselines.items()}}
        values |= {"images": [asdict(image) for image in self.images]}
        return plain(values)  # type: ignore[no-any-return]

    # --- on disk ------------------------------------------------------------------------------------------------------

    def save(
        self, folder: str | Path, *, figures: bool = False, pictures: Callable[[str], Image.Image] | None = None
    ) -> Path:
        """Writes consistency.json, table.md, classes.csv, images.csv and maps.safetensors into a folder. -> the folder

        `figures`: PNG files too, as of `figures`.
        """
        folder = Path(folder)
        names = self.classes
        rows = [
            [i.name, names[i.label], names[i.prediction], i.correct, i.blank, i.used, i.deviation] for i in self.images
        ]
        head = ["image", "label", "prediction", "correct", "blank", "used", "deviation"]
        tensors = {name: getattr(self, name).contiguous() for name in ("mean", "deviation", "maps", "labels")}
        with replacing(folder / "maps.safetensors") as temporary:
            save_file(tensors, temporary)
        for name, picture in (self.figures(pictures) if figures else {}).items():
            with replacing(folder / name) as temporary:
                picture.save(temporary, format="png")
        texts = {
            "table.md": self.markdown(),
            "classes.csv": csv_text([f.name for f in fields(OfClass)], [asdict(c).values() for c in self.of_class]),
            "images.csv": csv_text(head, rows),
            "consistency.json": json.dumps(self.description(), indent=1),  # the last: where it is, all is
        }
        for name, text in texts.items():
            write_text(folder / name, text)
        return folder

    def figures(self, pictures: Callable[[str], Image.Image] | None = None, k: int = 4) -> dict[str, Image.Image]:
        """File name -> picture: maps, distances and deviations; with `pictures` (name -> the image) the extremes too.

        Of more than 48 classes those with the most maps. None of them where no class is used.
        """
        from konkyo.draw import consistency as report  # pictures are drawn only when asked for

        used = [c.used for c in self.of_class]
        known = sorted(sorted((i for i, n in enumerate(used) if n), key=lambda i: -used[i])[:_DRAWN])
        if not known:
            return {}
        names = [f"{self.classes[i]} ({self.of_class[i].used})" for i in known]
        deviations = [[image.deviation for image in self._ranked(i)] for i in known]
        found = {
            "maps.png": report.class_maps(names, self.mean[known], self.deviation[known]),
            "deviations.png": report.deviations(names, deviations, self.distance),
        }
        if len(known) > 1:
            matrix = self.between[known][:, known]
            found["between.png"] = report.matrix([self.classes[i] for i in known], matrix, self.distance)
        if pictures is not None:
            sections = []
            for i in known:
                half = min(k, self.of_class[i].used // 2)
                both = [self.typical(i, half), self.deviant(i, half)]
                shown = [[(pictures(o.name), self.map_of(o.name), f"{o.deviation:.3g}") for o in side] for side in both]
                sections.append(report.Section(self.classes[i], *shown))
            found["extremes.png"] = report.extremes(sections)
        return found

    @classmethod
    def load(cls, folder: str | Path) -> Consistency:
        """What `save` wrote. KonkyoError: not such a folder."""
        folder = Path(folder)
        try:
            values = json.loads((folder / "consistency.json").read_text(encoding="utf-8"))
            with safe_open(folder / "maps.safetensors", "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = {f.name for f in fields(cls)}
            values = {n: math.nan if v is None else v for n, v in values.items() if n in known}
            values["images"] = tuple(Looked(**_known(image)) for image in values["images"])
            values["of_class"] = tuple(OfClass(**_known(c)) for c in values["of_class"])
            values["baselines"] = {name: Baseline(**_known(b)) for name, b in values["baselines"].items()}
            values["distances"] = _known(values["distances"])
            values |= {name: tuple(values[name]) for name in ("classes", "notes")}
            return cls(**values, **tensors)
        except Exception as error:  # damaged files fail in every possible way
            raise KonkyoError(f"{folder} holds no saved consistency: {error}") from error


# --- from maps to numbers ---------------------------------------------------------------------------------------------


def measure(
    maps: Tensor,
    labels: Tensor,
    predictions: Tensor,
    *,
    classes: Sequence[str],
    names: Sequence[str] = (),
    grid: int = 14,
    distance: Distance = "mse",
    only_correct: bool = True,
    target: Of = "label",
    resamples: int = 1000,
    permutations: int = 200,
    baselines: bool = True,
    seed: int = 0,
    settings: Mapping[str, Any] = {},
) -> Consistency:
    """The consistency of maps as a method gave them, (N, h, w): Eq. 8-10 of the study of gaze consistency.

    Maps are brought to `grid` x `grid` cells as they are, and scaled to [0, 1] then. The mean map of a class is that of
    all its maps which are used: of images that are decided correctly (D_c+; `only_correct=False`: of all), that are not
    blank, in classes with two or more of them. L is the mean over all of these of the distance from the mean map.
    `labels`, `predictions`: (N,) int64. `target`: the class that the map of a wrongly decided image is of.

    Intervals: `resamples` draws of as many images within each class, whose deviations from the mean map of all are
    averaged anew (the mean map stays; with few maps that is too short, see docs/consistency.md). `permutations` of
    the labels give the W that labels without meaning would have. Both may be 0, and nothing else costs more than the
    distances themselves. KonkyoError: what does not fit together.
    """
    count, kinds = len(maps), len(classes)
    if distance not in DISTANCES:
        raise unknown("distance", distance, DISTANCES)
    if target not in ("label", "decision"):
        raise KonkyoError(f"target is 'label' or 'decision'; got {target!r}")
    for what, given in (("labels", labels), ("predictions", predictions)):
        if given.shape != (count,) or given.is_floating_point():
            raise KonkyoError(
                f"{what}: a class index per map, ({count},) int64, was expected; got {tuple(given.shape)}"
            )
        if count and not 0 <= int(given.min()) <= int(given.max()) < kinds:
            raise KonkyoError(f"{what} from 0 to {kinds - 1} ({kinds} classes) were expected; got {int(given.max())}")
    if names and len(names) != count:
        raise KonkyoError(f"a name per map was expected: {count}, not {len(names)}")
    cells = on_grid(maps.detach(), grid)
    empty = blank(cells).cpu()
    scaled = min_max(cells.nan_to_num(0, 0, 0)).float().cpu()
    labels, predictions = labels.cpu().long(), predictions.cpu().long()
    correct = labels == predictions
    of = labels if target == "label" else predictions
    wanted = correct if only_correct else torch.ones_like(correct)
    used = _in_company(of, wanted & ~empty, kinds)
    chosen, own = scaled[used].double(), of[used]
    mean, deviation, counts = class_means(chosen, own, kinds)
    every = {name: distances(chosen, mean[own], name) for name in DISTANCES}
    each = every[distance]
    lows, highs, low, high = _intervals(each, own, kinds, resamples, seed)
    squares = _class_means_of(every["mse"], own, kinds)
    values = _class_means_of(each, own, kinds)
    deviations = torch.full((count,), math.nan, dtype=torch.float64)
    deviations[used] = each
    left_out = torch.bincount(of[wanted & empty], minlength=kinds)
    totals, rights = torch.bincount(labels, minlength=kinds), torch.bincount(labels[correct], minlength=kinds)
    columns = (totals, rights, counts, left_out, values, lows, highs, squares.sqrt())
    spread = squares * counts / (counts - 1)
    rows = zip(classes, *(column.tolist() for column in (*columns, spread)), strict=True)
    within, total = (float(v) for v in within_total(chosen, own)) if len(chosen) else (math.nan, math.nan)
    drawn = shuffled_within(chosen, own, permutations if len(chosen) else 0, _generator(seed, 1))
    extra = _in_company(of, ~correct & ~empty, kinds)
    away = _deviations(scaled[extra].double(), of[extra], kinds, distance)
    confusion = torch.bincount(labels * kinds + predictions, minlength=kinds * kinds).view(kinds, kinds)
    shuffled = _mean(drawn) / total if total > 0 else math.nan
    unused = (counts == 0)[:, None, None]
    return Consistency(
        classes=tuple(classes),
        settings=dict(settings),
        distance=distance,
        grid=grid,
        images=tuple(
            Looked(*row)
            for row in zip(
                names or [str(i) for i in range(count)],
                *(t.tolist() for t in (labels, predictions, empty, used, deviations)),
                strict=True,
            )
        ),
        of_class=tuple(OfClass(*row) for row in rows),
        value=_mean(each),
        low=low,
        high=high,
        macro=float(values.nanmean()),
        rms=math.sqrt(_mean(every["mse"])),
        within=within,
        total=total,
        shuffled=shuffled,
        p=float((1 + (drawn <= within * (1 + 1e-9)).sum()) / (1 + len(drawn))) if len(drawn) else math.nan,
        distances={name: _mean(found) for name, found in every.items()},
        coverage=_mean(chosen),
        blank=int((wanted & empty).sum()),
        accuracy=_mean(correct.double()),
        kappa=float(kappa(confusion)),
        wrong=_mean(away),
        wrong_count=len(away),
        baselines=_baselines(chosen, own, kinds, distance, shuffled, permutations, seed) if baselines else {},
        mean=mean.float().masked_fill(unused, math.nan),
        deviation=deviation.float().masked_fill(unused, math.nan),
        maps=scaled[used],
        labels=own,
    )


def _in_company(of: Tensor, among: Tensor, classes: int) -> Tensor:
    """Which maps are of a class that has two or more `among` (N,) bool. -> (N,) bool"""
    return among & (torch.bincount(of[among], minlength=classes) >= 2)[of]


def _deviations(maps: Tensor, of: Tensor, classes: int, distance: Distance) -> Tensor:
    """The distance of every map from the mean map of its class. -> (n,)"""
    return distances(maps, class_means(maps, of, classes)[0][of], distance)


def _class_means_of(values: Tensor, of: Tensor, classes: int) -> Tensor:
    """The mean value of every class, NaN of none. -> (K,)"""
    sums = values.new_zeros(classes).index_add(0, of, values)
    return sums / torch.bincount(of, minlength=classes)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else math.nan


def _generator(seed: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + use) % 2**63)


def _intervals(
    values: Tensor, of: Tensor, classes: int, resamples: int, seed: int
) -> tuple[Tensor, Tensor, float, float]:
    """The middle 95 % of the mean of every class, (K,) twice, and of all; classes keep their sizes."""
    bounds = torch.full((2, classes), math.nan, dtype=torch.float64)
    if not resamples or not len(values):
        return bounds[0], bounds[1], math.nan, math.nan
    shares, generator = torch.tensor([0.025, 0.975], dtype=torch.float64), _generator(seed, 0)
    sums = values.new_zeros(resamples)
    for index in torch.unique(of).tolist():
        own = values[of == index]
        chunk = max(1, _MOST // len(own))
        times = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
        drawn = torch.cat([own[torch.randint(len(own), (t, len(own)), generator=generator)].sum(1) for t in times])
        bounds[:, index] = (drawn / len(own)).quantile(shares)
        sums += drawn
    low, high = (sums / len(values)).quantile(shares).tolist()
    return bounds[0], bounds[1], low, high


def _baselines(
    maps: Tensor, of: Tensor, classes: int, distance: Distance, shuffled: float, permutations: int, seed: int
) -> dict[str, Baseline]:
    """L of the same maps around other maps than the mean of their class."""
    if not len(maps):
        return {}
    found, generator = dict[str, Baseline](), _generator(seed, 2)
    if times := min(permutations, _SHUFFLES):
        orders = (torch.randperm(len(of), generator=generator) for _ in range(times))
        values = [_mean(_deviations(maps, of[order], classes, distance)) for order in orders]
        found["shuffled labels"] = Baseline(sum(values) / times, shuffled)
    grid = maps.shape[1]
    steps = (torch.arange(grid, dtype=maps.dtype) + 0.5) / grid - 0.5
    bell = torch.exp(-(steps**2) / (2 * _SIGMA**2))
    even = torch.full_like(maps[0], float(maps.mean()))
    found["uniform map"] = Baseline(_mean(distances(maps, even, distance)), math.nan)
    found["centre Gaussian"] = Baseline(
        _mean(distances(maps, min_max((bell[:, None] * bell)[None]), distance)), math.nan
    )
    return found


# --- from a model and data to maps ------------------------------------------------------------------------------------


def consistency(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples | Batches,
    *,
    method: Which = "grad_cam",
    target: Of = "label",
    only_correct: bool = True,
    grid: int = 14,
    distance: Distance = "mse",
    layer: Where = None,
    limit: int | None = None,
    batch: int = 32,
    resamples: int = 1000,
    permutations: int = 200,
    baselines: bool = True,
    seed: int = 0,
    progress: Told | None = None,
    **options: Any,
) -> Consistency:
    """How alike a classifier's maps are within a class: per class and overall, with intervals and baselines.

    `data`: as `konkyo.data.samples` takes it ("folder:DIR", "scenes:200,objects=1", samples of one's own), prepared as
    the model wants; or batches of (prepared images (N, C, H, W), labels (N,) int64), such as a DataLoader. `method`:
    any that `explain` takes, `layer` and `options` (its own, and `fuse`, `precision`, `budget`) as there. `target`:
    what is explained of images that are decided wrongly, their label or the decision; all others have but one class.
    What the numbers are: `measure`, and docs/consistency.md. `limit`: so many images; of samples, drawn by the seed.
    `baselines` explains the images by an untrained copy of the network, too, which doubles the time. The model comes
    back as it was.

    KonkyoError: a detector, an image without a label, or a label that the model has no class for.
    """
    adapted = as_model(model)
    if adapted.detector is not None:
        raise KonkyoError(f"{adapted.name} is a detector; consistency is measured of a classifier's maps")
    if target not in ("label", "decision"):
        raise KonkyoError(f"target is 'label' or 'decision'; got {target!r}")
    if distance not in DISTANCES:
        raise unknown("distance", distance, DISTANCES)
    if batch < 1 or (limit is not None and limit < 1):
        raise KonkyoError(f"a batch and a limit are numbers of images, 1 or more; got {batch} and {limit}")
    chosen = find(method)
    source = _Source.of(adapted, data, limit, batch, seed)
    asked: dict[str, Any] = {"method": chosen, "layer": layer, "seed": seed} | options
    untrained = _untrained(adapted, seed) if baselines else None
    if untrained is not None and isinstance(layer, nn.Module):  # to be found in the copy
        name = next((n for n, m in adapted.module.named_modules() if m is layer), None)
        bare = asked | {"layer": name}
    else:
        bare = asked
    maps, random = list[Tensor](), list[Tensor]()
    names, labels, predictions = list[str](), list[Tensor](), list[Tensor]()
    kinds, where = len(adapted.classes), ""
    with warnings.catch_warnings(), untouched(adapted.module):
        warnings.simplefilter("ignore", KonkyoWarning)  # blank maps are counted
        for part, images, given in source.batches:
            images = adapted.prepared(images)
            decided = _decided(adapted, images, options.get("precision"))
            kinds, label = decided.shape[1], given.to(decided.device)
            if not 0 <= int(label.min()) <= int(label.max()) < kinds:
                came = f"{int(label.min())} to {int(label.max())}"
                raise KonkyoError(f"labels of {adapted.name} are 0 to {kinds - 1}; got {came}")
            prediction = decided.argmax(1)
            aims = (label if target == "label" else prediction).tolist()
            shown = explain(adapted, images, target=aims, **asked)
            where = shown.layer
            maps.append(on_grid(_floating(shown.maps), grid).cpu())
            if untrained is not None:
                random.append(on_grid(_floating(explain(untrained, images, target=aims, **bare).maps), grid).cpu())
            names += part
            labels.append(label.cpu())
            predictions.append(prediction.cpu())
            if progress is not None:
                progress(len(names), source.count)
    if not names:
        raise KonkyoError(f"no image came from the data{': ' + source.skipped[0] if source.skipped else ''}")
    settings = {
        "model": adapted.name,
        "data": source.name,
        "images": len(names),
        "method": chosen.name,
        "layer": where,
        "target": target,
        "only_correct": only_correct,
        "grid": grid,
        "distance": distance,
        "resamples": resamples,
        "permutations": permutations,
        "seed": seed,
        "options": {name: repr(value) for name, value in options.items()},
    }
    classes = adapted.classes or tuple(f"class {i}" for i in range(kinds))
    how: dict[str, Any] = {"classes": classes, "grid": grid, "distance": distance, "target": target, "seed": seed}
    found = measure(
        torch.cat(maps),
        torch.cat(labels),
        torch.cat(predictions),
        names=names,
        only_correct=only_correct,
        resamples=resamples,
        permutations=permutations,
        baselines=baselines,
        settings=settings,
        **how,
    )
    skipped = len(source.skipped)
    notes = (
        (f"{skipped} images could not be read and were left out, the first: {source.skipped[0]}",) if skipped else ()
    )
    if random:
        same = torch.tensor([image.used for image in found.images])
        bare_maps, of = torch.cat(random)[same], found.labels
        less = measure(bare_maps, of, of, resamples=0, permutations=0, baselines=False, **how)
        rows = {"untrained network": Baseline(less.value, less.ratio)}
        found = replace(found, baselines={**found.baselines, **rows})
    return replace(found, notes=notes)


@dataclass(frozen=True)
class _Source:
    """Prepared batches with names and labels."""

    name: str
    count: int | None
    batches: Iterator[tuple[list[str], Tensor, Tensor]]
    skipped: list[str]
    """Why images could not be read; filled as the batches are."""

    @staticmethod
    def of(model: Model, data: Any, limit: int | None, batch: int, seed: int) -> _Source:
        if isinstance(data, (str, Path, Samples, Scenes)):
            return _Source._of_samples(model, samples(data, limit=limit, seed=seed), batch)
        try:
            stream = iter(data)
        except TypeError as error:
            raise KonkyoError(f"data is a name, samples, or batches (images, labels); got {data!r}") from error
        head = list(islice(stream, 1))
        if head and isinstance(head[0], Sample):
            return _Source._of_samples(model, samples(data, limit=limit, seed=seed), batch)
        return _Source(type(data).__name__, limit, _batches(chain(head, stream), limit), [])

    @staticmethod
    def _of_samples(model: Model, found: Samples, batch: int) -> _Source:
        skipped = list[str]()
        return _Source(found.source or "samples", len(found), _prepared(model, found, batch, skipped), skipped)


def _prepared(
    model: Model, found: Samples, batch: int, skipped: list[str]
) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Batches of samples as the model wants them; one ends where the next picture has another size."""
    if not model.classes:
        raise KonkyoError(
            f"{model.name} has no class names, so labels mean nothing to it: konkyo.Model(..., classes=[...]), "
            "or --labels FILE on the command line"
        )
    if model.preprocess is None:
        raise KonkyoError(f"{model.name} does not say how to prepare a picture; give konkyo.Model(..., preprocess=...)")
    names, images, labels = list[str](), list[Tensor](), list[int]()
    for index, name in enumerate(found.names):
        try:
            sample = found[index]
            image = model.preprocess(sample.image)
        except ImageError as error:
            skipped.append(str(error))
            continue
        if sample.label is None:
            raise KonkyoError(f"sample {name} has no label of its own; consistency is measured within classes")
        if images and (len(images) == batch or images[0].shape != image.shape):
            yield names, torch.stack(images), torch.tensor(labels)
            names, images, labels = [], [], []
        names.append(name)
        images.append(image)
        labels.append(model.class_index(sample.label))
    if images:
        yield names, torch.stack(images), torch.tensor(labels)


def _batches(found: Iterable[Any], limit: int | None) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Batches as they come, images numbered."""
    done = 0
    for entry in found:
        pair = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, None)
        images, labels = pair
        if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
            came = " and ".join(type(part).__name__ for part in pair)
            raise KonkyoError(f"batches of tensors (images, labels) were expected; got {came}")
        if images.ndim != 4 or labels.shape != images.shape[:1] or labels.is_floating_point() or not len(labels):
            came = f"{tuple(images.shape)} and {tuple(labels.shape)} {labels.dtype}"
            raise KonkyoError(f"batches of images (N, C, H, W) and labels (N,) int64 were expected; got {came}")
        most = len(images) if limit is None else limit - done
        images, labels = images[:most], labels[:most]
        yield [str(done + i) for i in range(len(images))], images, labels
        done += len(images)
        if limit is not None and done >= limit:
            return


def _floating(maps: Tensor) -> Tensor:
    """Maps in 32 bits at least. KonkyoError: no maps of images."""
    if maps.ndim != 3:
        raise KonkyoError(f"maps (N, h, w) of images are compared; got {tuple(maps.shape)}")
    return maps.detach().to(torch.promote_types(maps.dtype, torch.float32))


def _decided(model: Model, images: Tensor, precision: Precision | None) -> Tensor:
    """Logits (N, K)."""
    output = Pass(model, images, precision=precision).output.detach()
    if output.ndim != 2:
        raise KonkyoError(f"a classifier's output is (N, classes); that of {model.name} is {tuple(output.shape)}")
    return class_logits(output)


def _untrained(model: Model, seed: int) -> Model:
    """A copy whose weights are drawn anew."""
    module = copy.deepcopy(model.module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in module.modules():
            draw_anew(part)
    return replace(model, module=module)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """NaN for the numbers that JSON does not know."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _shown(value: float, low: float, high: float, *others: float) -> list[str]:
    return [bracketed(value, low, high), *map(number, others)]
