"""measure(): from maps and labels to the numbers of consistency, with intervals, baselines and permutations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation.consistency.estimates import corrected_distances, interval, resampled
from konkyo.evaluation.consistency.result import Baseline, ClassResult, Consistency, ImageResult
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
from konkyo.metrics.variants import seeded
from konkyo.utils.tensors import min_max

ExplainedClass: TypeAlias = Literal["label", "decision"]
"""The class that the map of a wrongly decided image is of."""

_SHUFFLES = 20  # of labels, for the baseline of a distance that has to be computed again for each
_SIGMA = 0.25  # of the Gaussian in the centre, as a share of the side


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
    target: ExplainedClass = "label",
    resamples: int = 1000,
    permutations: int = 200,
    baselines: bool = True,
    seed: int = 0,
    settings: Mapping[str, Any] = {},
) -> Consistency:
    """Returns the consistency of maps as a method gave them, (N, h, w): Eq. 8-10 of the study of gaze consistency.

    Maps are brought to `grid` x `grid` cells as they are, and scaled to [0, 1] then. The mean map of a class is that of
    all its maps which are used. Used are maps of images that are decided correctly (D_c+; `only_correct=False`: of
    all), that are not blank, in classes with two or more of them. `labels`, `predictions`: (N,) int64. `target`: the
    class that the map of a wrongly decided image is of.

    L as defined (Eq. 10, `plain`) is the mean distance of these maps from their mean map, and falls with the number of
    maps. `value` and every other L of the result is corrected: in the mean map that it is compared with, a map counts
    about half (`estimates.corrected_distances`). So it estimates the distance of a new image's map from the mean map of
    all images that could have been, and compares over numbers of images.

    Intervals: `resamples` times the images are drawn anew within each class, with mean maps and distances of their own
    (`estimates.resampled`, `estimates.interval`). `permutations` of the labels give the W that labels without meaning
    would have. Both may be 0, and nothing else costs more than the distances themselves. KonkyoError: what does not fit
    together.
    """
    _check(len(maps), len(classes), labels, predictions, names, distance, target)
    selection = _selection(
        maps, labels.cpu().long(), predictions.cpu().long(), len(classes), grid, only_correct, target
    )
    used, of = selection.used_maps, selection.used_of
    mean, deviation, counts = class_means(used, of, len(classes))
    by_distance = {name: corrected_distances(used, of, len(classes), name) for name in DISTANCES}
    deviations, corrected = distances(used, mean[of], distance), by_distance[distance]
    within, total, shuffled, p = _variances(used, of, permutations, seed)
    intervals = _intervals(used, of, len(classes), distance, corrected, (within, total), resamples, seed)
    class_results = _class_results(selection, classes, counts, by_distance, deviations, distance, intervals)
    wrong = _wrong_deviations(selection, distance)
    unused = (counts == 0)[:, None, None]
    return Consistency(
        classes=tuple(classes),
        settings=dict(settings),
        distance=distance,
        grid=grid,
        images=_image_results(selection, names, deviations),
        of_class=class_results,
        value=_mean(corrected),
        low=intervals.value[0],
        high=intervals.value[1],
        macro=float(_class_values(corrected, of, len(classes)).nanmean()),
        rms=math.sqrt(_mean(by_distance["mse"])),
        within=within,
        total=total,
        shuffled=shuffled,
        p=p,
        distances={name: _mean(values) for name, values in by_distance.items()},
        coverage=_mean(used),
        blank=int((selection.eligible & selection.blank).sum()),
        accuracy=_mean(selection.correct.double()),
        kappa=_agreement(selection),
        wrong=_mean(wrong),
        wrong_count=len(wrong),
        baselines=_baselines(used, of, len(classes), distance, shuffled, permutations, seed) if baselines else {},
        mean=mean.float().masked_fill(unused, math.nan),
        deviation=deviation.float().masked_fill(unused, math.nan),
        maps=selection.maps[selection.used],
        labels=of,
        plain=_mean(deviations),
        within_low=intervals.within[0],
        within_high=intervals.within[1],
        ratio_low=intervals.ratio[0],
        ratio_high=intervals.ratio[1],
    )


# --- which maps are used ----------------------------------------------------------------------------------------------


def _check(
    count: int,
    classes: int,
    labels: Tensor,
    predictions: Tensor,
    names: Sequence[str],
    distance: Distance,
    target: ExplainedClass,
) -> None:
    """Raises KonkyoError where the arguments of `measure` do not fit together."""
    if distance not in DISTANCES:
        raise unknown("distance", distance, DISTANCES)
    if target not in ("label", "decision"):
        raise KonkyoError(f"target is 'label' or 'decision'; got {target!r}")
    for what, indices in (("labels", labels), ("predictions", predictions)):
        if indices.shape != (count,) or indices.is_floating_point():
            raise KonkyoError(
                f"{what}: a class index per map, ({count},) int64, was expected; got {tuple(indices.shape)}"
            )
        if count and not 0 <= int(indices.min()) <= int(indices.max()) < classes:
            raise KonkyoError(
                f"{what} from 0 to {classes - 1} ({classes} classes) were expected; got {int(indices.max())}"
            )
    if names and len(names) != count:
        raise KonkyoError(f"a name per map was expected: {count}, not {len(names)}")


@dataclass(frozen=True, eq=False)
class _Selection:
    """N maps with their classes, and which of them are used; the masks are (N,) bool."""

    maps: Tensor
    """(N, g, g) float32, scaled to [0, 1]."""
    labels: Tensor
    predictions: Tensor
    of: Tensor
    """(N,) the class that each map explains."""
    classes: int
    eligible: Tensor
    """Whether the image is of those whose maps are measured: all, or the correctly decided ones."""
    blank: Tensor
    used: Tensor

    @property
    def correct(self) -> Tensor:
        """Returns whether the decision is the label. -> (N,) bool"""
        return self.labels == self.predictions

    @property
    def used_maps(self) -> Tensor:
        """Returns the maps that are used. -> (n, g, g) float64"""
        return self.maps[self.used].double()

    @property
    def used_of(self) -> Tensor:
        """Returns the class that each used map explains. -> (n,)"""
        return self.of[self.used]


def _selection(
    maps: Tensor,
    labels: Tensor,
    predictions: Tensor,
    classes: int,
    grid: int,
    only_correct: bool,
    target: ExplainedClass,
) -> _Selection:
    cells = on_grid(maps.detach(), grid)
    empty = blank(cells).cpu()
    scaled = min_max(cells.nan_to_num(0, 0, 0)).float().cpu()
    correct = labels == predictions
    of = labels if target == "label" else predictions
    eligible = correct if only_correct else torch.ones_like(correct)
    used = _in_company(of, eligible & ~empty, classes)
    return _Selection(scaled, labels, predictions, of, classes, eligible, empty, used)


def _in_company(of: Tensor, among: Tensor, classes: int) -> Tensor:
    """Returns which maps are of a class that has two or more `among` (N,) bool. -> (N,) bool"""
    return among & (torch.bincount(of[among], minlength=classes) >= 2)[of]


# --- results of images and classes ------------------------------------------------------------------------------------


def _image_results(selection: _Selection, names: Sequence[str], deviations: Tensor) -> tuple[ImageResult, ...]:
    """Returns a result per image; `deviations` (n,) are those of the used maps."""
    count = len(selection.maps)
    by_image = torch.full((count,), math.nan, dtype=torch.float64)
    by_image[selection.used] = deviations
    columns = (selection.labels, selection.predictions, selection.blank, selection.used, by_image)
    rows = zip(names or map(str, range(count)), *(column.tolist() for column in columns), strict=True)
    return tuple(ImageResult(*row) for row in rows)


def _class_results(
    selection: _Selection,
    classes: Sequence[str],
    counts: Tensor,
    corrected: Mapping[Distance, Tensor],
    deviations: Tensor,
    distance: Distance,
    intervals: _Intervals,
) -> tuple[ClassResult, ...]:
    """A result per class, of `counts` (K,) used maps; `corrected` distances and `deviations` (n,) are those of them."""
    kinds, of = len(classes), selection.used_of
    totals = torch.bincount(selection.labels, minlength=kinds)
    correct = torch.bincount(selection.labels[selection.correct], minlength=kinds)
    left_out = torch.bincount(selection.of[selection.eligible & selection.blank], minlength=kinds)
    values, variances, plain = (
        _class_values(v, of, kinds).tolist() for v in (corrected[distance], corrected["mse"], deviations)
    )
    rows = zip(totals.tolist(), correct.tolist(), counts.tolist(), left_out.tolist(), strict=True)
    return tuple(
        ClassResult(
            classes[i], *row, values[i], *intervals.of_class[i], math.sqrt(variances[i]), variances[i], plain[i]
        )
        for i, row in enumerate(rows)
    )


def _wrong_deviations(selection: _Selection, distance: Distance) -> Tensor:
    """Returns the corrected distances of wrongly decided images' maps from their own mean maps. -> (m,)"""
    wrong = _in_company(selection.of, ~selection.correct & ~selection.blank, selection.classes)
    return corrected_distances(selection.maps[wrong].double(), selection.of[wrong], selection.classes, distance)


def _agreement(selection: _Selection) -> float:
    """Returns Cohen's kappa of labels and decisions."""
    kinds = selection.classes
    confusion = torch.bincount(selection.labels * kinds + selection.predictions, minlength=kinds * kinds)
    return float(kappa(confusion.view(kinds, kinds)))


def _class_values(values: Tensor, of: Tensor, classes: int) -> Tensor:
    """Returns the mean value of every class, NaN of none. -> (K,)"""
    sums = values.new_zeros(classes).index_add(0, of, values)
    return sums / torch.bincount(of, minlength=classes)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else math.nan


# --- intervals and baselines ------------------------------------------------------------------------------------------


_Ends: TypeAlias = tuple[float, float]
_UNKNOWN: _Ends = (math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class _Intervals:
    """The 95 % intervals: lower and upper ends."""

    of_class: Sequence[_Ends]
    """Of every class's L."""
    value: _Ends = _UNKNOWN
    within: _Ends = _UNKNOWN
    ratio: _Ends = _UNKNOWN


def _intervals(
    maps: Tensor,
    of: Tensor,
    classes: int,
    distance: Distance,
    corrected: Tensor,
    variances: _Ends,
    resamples: int,
    seed: int,
) -> _Intervals:
    """Returns the intervals of L, W and W / T; `corrected` (n,) distances, `variances` W and T of the maps."""
    if not resamples or not len(maps):
        return _Intervals([_UNKNOWN] * classes)
    replicates = resampled(maps, of, classes, distance, resamples, seeded(seed, 0))
    counts, values = torch.bincount(of, minlength=classes), _class_values(corrected, of, classes).tolist()
    of_class = [
        interval(values[i], replicates.of_class[:, i], replicates.of_class[:, i : i + 1], counts[i : i + 1])
        for i in range(classes)
    ]
    within, total = variances
    ratio = within / total if total > 0 and int((counts > 0).sum()) > 1 else math.nan
    return _Intervals(
        of_class,
        interval(_mean(corrected), replicates.value, replicates.of_class * counts, counts),
        interval(within, replicates.within, replicates.of_within, counts),
        interval(ratio, replicates.ratio, replicates.of_within, counts),
    )


def _variances(maps: Tensor, of: Tensor, permutations: int, seed: int) -> tuple[float, float, float, float]:
    """W, T, the mean W / T of shuffled labels, and how probable a W as small as this one is under these.

    NaN stands for what is not known.
    """
    within, total = (float(v) for v in within_total(maps, of)) if len(maps) else (math.nan, math.nan)
    permuted = shuffled_within(maps, of, permutations if len(maps) else 0, seeded(seed, 1))
    shuffled = _mean(permuted) / total if total > 0 else math.nan
    smaller = (permuted <= within * (1 + 1e-9)).sum()
    return within, total, shuffled, float((1 + smaller) / (1 + len(permuted))) if len(permuted) else math.nan


def _baselines(
    maps: Tensor, of: Tensor, classes: int, distance: Distance, shuffled: float, permutations: int, seed: int
) -> dict[str, Baseline]:
    """L of the same maps around other maps than the mean of their class."""
    if not len(maps):
        return {}
    baselines, generator = dict[str, Baseline](), seeded(seed, 2)
    if times := min(permutations, _SHUFFLES):
        orders = (torch.randperm(len(of), generator=generator) for _ in range(times))
        values = [_mean(corrected_distances(maps, of[order], classes, distance)) for order in orders]
        baselines["shuffled labels"] = Baseline(sum(values) / times, shuffled)
    grid = maps.shape[1]
    steps = (torch.arange(grid, dtype=maps.dtype) + 0.5) / grid - 0.5
    bell = torch.exp(-(steps**2) / (2 * _SIGMA**2))
    references = {
        "uniform map": torch.full_like(maps[0], float(maps.mean())),
        "centre Gaussian": min_max((bell[:, None] * bell)[None]),
    }
    for name, reference in references.items():
        baselines[name] = Baseline(_mean(distances(maps, reference, distance)), math.nan)
    return baselines
