"""`@metric`: a pure function of maps and what is true of their images becomes a metric in the registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.utils.registry import Options, check_free, check_options, signature_of, summary_of
from konkyo.utils.tensors import resize

Better: TypeAlias = Literal["higher", "lower", "neither"]


class Score(Protocol):
    """A score tells what the model says of variants of images."""

    def __call__(self, variants: Tensor, rows: Tensor) -> Tensor:
        """Returns the explained scores (V,) of variants (V, C, H, W) of the images of `rows` (V,) int64."""


class Explain(Protocol):
    """An explain runs the method on variants of images."""

    def __call__(self, variants: Tensor, rows: Tensor) -> Tensor:
        """Returns the maps (V, h, w) of variants (V, C, H, W) of the images of `rows` (V,) int64, for their targets."""


class Decided(Protocol):
    """A decided tells whether the model's decision stays as it is on variants of images."""

    def __call__(self, variants: Tensor, rows: Tensor) -> Tensor:
        """Returns whether what is explained of the rows is still decided on variants (V, C, H, W): (V,) bool."""


class Outputs(Protocol):
    """An outputs gives all that the model says of variants of images."""

    def __call__(self, variants: Tensor, rows: Tensor) -> Tensor:
        """Returns the network's raw outputs (V, ...), of a classifier its logits, of variants (V, C, H, W)."""


ON_OFFER: dict[str, str] = {
    "maps": "(R, H, W) the maps, enlarged to the size of images or masks; (R, T, H, W) of videos, (R, L) of signals",
    "raw": "(R, h, w) the maps as the method gave them, signed",
    "masks": "(R, H, W) bool, the object that a map is about",
    "others": "(R, H, W) bool, all other objects of the image",
    "boxes": "(R, 4) xyxy in pixels, the box of the object",
    "all_boxes": "(R, B, 4) xyxy in pixels, every box of the object, any of which will do; NaN where it has fewer",
    "ignored": "(R, H, W) bool, where nobody says whether it is the object",
    "objects": "(R,) int64, which object a map is about; equal for maps about one object",
    "image_index": "(R,) int64, which image a map is of: all of one unless given",
    "images": "(R, C, H, W) the prepared images",
    "score": "(variants (V, C, H, W), rows (V,)) -> the explained scores (V,)",
    "explain": "(variants (V, C, H, W), rows (V,)) -> maps (V, h, w) for the rows' targets",
    "decided": "(variants (V, C, H, W), rows (V,)) -> (V,) bool, whether the model still decides what is explained",
    "outputs": "(variants (V, C, H, W), rows (V,)) -> the network's raw outputs (V, ...)",
    "budget": "(R,) int64, how many pixels may be changed: those of the image unless given",
    "part": "(R, H, W) bool, the part of the images whose output is explained, of dense outputs",
    "pixels": "(2, C) a black and a white pixel as prepared for the network",
}
"""What a metric may name as positional parameters."""


@dataclass(frozen=True)
class OfMean:
    """This pool knows of a data set only the mean of its maps' statistics, (R, ...) -> (...): shards add up."""

    value: Callable[[Tensor], Tensor]
    """The mean statistic -> the data set's value."""

    def __call__(self, statistic: Tensor) -> Tensor:
        """Returns the value of statistics (R, ...), without those that are NaN."""
        return self.value(statistic.nanmean(0))


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric is a registered function: its positional parameters are needs, its keyword-only parameters options.

    The function gives a statistic of every map, (R, ...). `summary` makes it a value per map (R,), NaN where the metric
    is not defined. `pooled` makes the statistics of a whole data set one value, where that is not the values' mean.
    """

    name: str
    function: Callable[..., Tensor]
    better: Better
    needs: tuple[str, ...]
    optional: frozenset[str]
    """The needs that it can do without: parameters whose default is None."""
    options: Options
    summary: Callable[[Tensor], Tensor] | None
    pooled: Callable[[Tensor], Tensor] | None

    @property
    def description(self) -> str:
        """This is the first sentence of its documentation."""
        return summary_of(self.function)

    def statistic(self, maps: Tensor, **arguments: Any) -> Tensor:
        """Returns what the metric measures of every map before it is one number: a curve, a histogram (R, ...)."""
        values = {"maps": maps, "raw": maps} | arguments
        for need in self.needs:
            if values.setdefault(need, None) is None and need not in self.optional:
                raise KonkyoError(f"metric {self.name} needs {need}: {ON_OFFER[need]}")
        options = {name: value for name, value in arguments.items() if name not in ON_OFFER}
        check_options(f"metric {self.name}", options, self.options)
        if not 2 <= maps.ndim <= 4:
            raise KonkyoError(f"maps are (R, *places), one to three places; got {tuple(maps.shape)}")
        if maps.ndim != 3 and "boxes" in self.needs:
            raise KonkyoError(f"{self.name} is of boxes in pictures, maps (R, H, W); got {tuple(maps.shape)}")
        of_images = [value for n in ("images", "masks", "others", "ignored") if (value := values.get(n)) is not None]
        sizes = {tuple(value.shape[1 - maps.ndim :]) for value in of_images}
        if len(sizes) > 1:
            raise KonkyoError(f"images and masks of {self.name} differ in size: {sorted(sizes)}")
        for need in self.needs:
            if need != "pixels" and isinstance(values[need], Tensor) and len(values[need]) != len(maps):
                raise KonkyoError(f"{need}: one per map, {len(maps)}, was expected; got {len(values[need])}")
        values["maps"] = resize(maps.float(), *sizes) if sizes else maps.float()
        with torch.no_grad():
            return self.function(*(values[need] for need in self.needs), **options)

    def __call__(self, maps: Tensor, **arguments: Any) -> Tensor:
        """Returns the value of every map (R,), NaN where it is not defined. `arguments`: needs and options by name."""
        return self.summarised(self.statistic(maps, **arguments))

    def summarised(self, statistic: Tensor) -> Tensor:
        """Returns the value of every map (R,) of its statistic. KonkyoError: a metric of whole data sets."""
        if self.summary is None and self.pooled is not None:
            raise KonkyoError(f"{self.name} is of a whole data set: {self.name}.over(statistic)")
        return statistic if self.summary is None else self.summary(statistic)

    def over(self, statistic: Tensor) -> Tensor:
        """Returns the value of a data set, of its maps' statistics (R, ...): a number, NaN where none is defined."""
        if self.pooled is not None:
            return self.pooled(statistic)
        return self.summarised(statistic).nanmean()


METRICS: dict[str, Metric] = {}
"""All registered metrics by name."""


def metric(
    *,
    better: Better,
    summary: Callable[[Tensor], Tensor] | None = None,
    pooled: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Callable[..., Tensor]], Metric]:
    """Registers a function of tensors as a metric under its own name.

    Its positional parameters name what it needs (`ON_OFFER`), its keyword-only parameters are the user's options. It
    returns a value per map (R,), or a statistic (R, ...) that `summary` or `pooled` reduces. A need with the default
    None can be left out. KonkyoError: a need that is not on offer, or a taken name.

    >>> @metric(better="higher")
    ... def inside(maps, masks):
    ...     "The share of the map on the object."
    ...     return (maps * masks).sum((1, 2)) / maps.sum((1, 2))
    >>> inside(torch.ones(1, 2, 2), masks=torch.tensor([[[True, False], [False, False]]]))
    tensor([0.2500])
    >>> _ = METRICS.pop("inside")
    """

    def register(function: Callable[..., Tensor]) -> Metric:
        name, needs, options = signature_of("metric", function, ON_OFFER)
        optional = frozenset(n for n in needs if inspect.signature(function).parameters[n].default is None)
        check_free("metric", name, function, METRICS)
        METRICS[name] = Metric(name, function, better, needs, optional, options, summary, pooled)
        return METRICS[name]

    return register


def metrics() -> dict[str, Metric]:
    """Returns every registered metric by name."""
    import_module("konkyo.metrics")
    return dict(METRICS)


def auc(curve: Tensor) -> Tensor:
    """Integrates curves on evenly spaced places by the trapezoid rule, divided by the range. (R, T) -> (R,)"""
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)
