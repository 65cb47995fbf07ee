"""Targets of dense outputs: what a network says of the pixels of a region, and how a user asks for one."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from konkyo.data.frame import Frame
from konkyo.errors import ImageError, KonkyoError, unknown
from konkyo.targets.base import BaseTarget, Box
from konkyo.targets.specs import class_of_text, spec, with_settings
from konkyo.utils.tensors import at_least_float32

DenseScore: TypeAlias = Literal["logit", "probability", "sigmoid", "margin"]
"""What is averaged over a region: the output itself, its softmax, its sigmoid, or its lead over the other classes."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask is a weight from 0 to 1 for every cell of a grid. Two masks of the same weights are equal.

    KonkyoError: no axes, a weight outside of [0, 1], or none above 0.
    """

    weights: Tensor
    """(*grid) float32 on the CPU; booleans become 0 and 1."""

    def __post_init__(self) -> None:
        weights = self.weights.detach().to("cpu", torch.float32).clone()
        if not weights.ndim or not weights.numel() or not bool(((weights >= 0) & (weights <= 1)).all()):
            raise KonkyoError(f"a mask has weights from 0 to 1 (or booleans); got {_described(self.weights)}")
        if not bool((weights > 0).any()):
            raise KonkyoError("the mask is empty: no pixel of it is set")
        object.__setattr__(self, "weights", weights)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and torch.equal(self.weights, other.weights)

    def __hash__(self) -> int:
        return hash((tuple(self.weights.shape), float(self.weights.sum())))

    def __repr__(self) -> str:
        return f"Mask({'x'.join(map(str, self.weights.shape))}, {self.share:.1%})"

    @property
    def share(self) -> float:
        """Returns how much of the grid it covers, from 0 to 1."""
        return float(self.weights.mean())

    def at(self, size: tuple[int, ...]) -> Tensor:
        """Returns the weights averaged over the cells of another grid (*size)."""
        if tuple(self.weights.shape) == tuple(size):
            return self.weights
        if len(size) != self.weights.ndim:
            raise KonkyoError(f"a mask of {self.weights.ndim} axes does not lie on a grid {tuple(size)}")
        averaged = self.weights.double()
        for axis, (count, cells) in enumerate(zip(size, self.weights.shape, strict=True)):
            shares = _coverage(count, cells, 1.0, 0.0, cells)
            averaged = torch.tensordot(shares, averaged.movedim(axis, 0), 1).movedim(0, axis)
        return averaged.clamp(0, 1).float()


@dataclass(frozen=True)
class RegionTarget(BaseTarget):
    """This target is the mean of one class over a region. output (N, K, *grid) -> (N,)

    `region`: a `Mask`, or xyxy as shares of the output's width and height, whose cells count by how much of them lies
    in it. The region is constant: it stays the same on every other image, and has no gradient. Seg-Grad-CAM
    (Vinogradova et al., 2020) takes the sum; the mean gives the same map up to a factor, and scores that compare.
    `score`: "logit" is the output as it is, "probability" its softmax over the classes, "sigmoid" that of classes which
    do not exclude each other, and "margin" what the class is ahead of the highest other one. KonkyoError: another
    output, or no such class.
    """

    index: int
    region: Box | Mask = WHOLE
    score: DenseScore = "logit"
    where: str = ""
    """What the region is called after the class, as in "pixel 12,30"; "" where that goes without saying."""

    def __post_init__(self) -> None:
        if self.score not in get_args(DenseScore):
            raise unknown("score of a region", self.score, get_args(DenseScore))
        if not isinstance(self.region, Mask):
            left, top, right, bottom = self.region
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise KonkyoError(
                    f"a region is a Mask, or (x1, y1, x2, y2) as shares of the output from 0 to 1; got {self.region!r}"
                )

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the mean of the class's score in the region, of every image."""
        values = self._values(output)
        weights = self.weights(tuple(output.shape[2:])).to(values.device)
        return (values * weights).flatten(1).sum(1) / weights.sum()

    def _values(self, output: Tensor) -> Tensor:
        """Returns the class's score in every cell (N, *grid), in single precision at least."""
        if output.ndim < 3 or not 0 <= self.index < output.shape[1]:
            raise KonkyoError(f"class {self.index} of an output (N, K, H, W) was expected; got {tuple(output.shape)}")
        output = at_least_float32(output)
        channel = output[:, self.index]
        if self.score == "probability":
            # Of one logit z, which is the two channels -z and z, a softmax would be sigmoid(2 z).
            one_logit = output.shape[1] == 2 and torch.equal(output[:, 0], -output[:, 1])
            return channel.sigmoid() if one_logit else output.softmax(1)[:, self.index]
        if self.score == "sigmoid":
            return channel.sigmoid()
        if self.score == "margin":
            if output.shape[1] < 2:
                raise KonkyoError('score="margin" compares classes; this output has one channel')
            others = torch.cat([output[:, : self.index], output[:, self.index + 1 :]], 1)
            return channel - others.amax(1)
        return channel

    def weights(self, size: tuple[int, ...]) -> Tensor:
        """Returns how much every cell of an output's grid counts (*size), from 0 to 1."""
        if isinstance(self.region, Mask):
            return self.region.at(size)
        if self.region == WHOLE:
            return torch.ones(size)
        if len(size) != 2:
            raise KonkyoError(f"a region (x1, y1, x2, y2) lies on an output (N, K, H, W); got a grid {size}")
        left, top, right, bottom = self.region
        tall, wide = size
        return _box_weights((left * wide, top * tall, right * wide, bottom * tall), size)

    @property
    def class_index(self) -> int:
        """This is the class itself."""
        return self.index

    @property
    def channel(self) -> int:
        """This is the class's own."""
        return self.index

    def logit(self, output: Tensor) -> Tensor:
        """Returns the mean of the class's own output over the region (N,)."""
        return replace(self, score="logit")(output)

    def part(self) -> Mask | None:
        """Returns the region; None where it is all of the picture."""
        if isinstance(self.region, Mask):
            return self.region
        return None if self.region == WHOLE else Mask(self.weights((256, 256)))

    def details(self) -> dict[str, Any]:
        """Returns the share of the picture that the region covers, and what is averaged over it."""
        return {"region": round(float(self.weights((256, 256)).mean()), 6), "score": self.score}

    def in_words(self, label: str, score: float) -> str:
        """Returns the class and its region with the score, as in "cat, pixel 3,4 (mean logit 3.55)"."""
        name = "probability" if self.score == "sigmoid" else self.score
        return f"{label} (mean {name} {score:.2f})"


@dataclass(frozen=True)
class Region:
    """This asks for a class over a region of the picture: the mean of its score there (see `RegionTarget`).

    `label`: the class's name or index; None is the most frequent one that is no background, or the only channel there
    is. `within`: "predicted" is where the network itself decides for the class; "all" is the whole picture; a mask is
    an array or tensor (H, W) of the picture's size, or the path of a picture in which the region is not black.
    `box`: (x1, y1, x2, y2) in pixels of the picture. None: "predicted" without a box, and "all" with one. With both,
    the region is what lies in both. `component`: 1 keeps the largest connected part of the region, 2 the second one;
    cells that touch at a corner are connected. `score`: see `RegionTarget`; None is what the method explains.

    The region is decided on the original picture and then stays the same.
    """

    label: int | str | None = None
    within: Any = None
    box: Box | None = None
    component: int | None = None
    score: DenseScore | None = None

    def __post_init__(self) -> None:
        if self.score is not None and self.score not in get_args(DenseScore):
            raise unknown("score of a region", self.score, get_args(DenseScore))
        _check_label(self.label)
        within: Any = self.within
        if isinstance(within, os.PathLike):
            within = os.fspath(within)
        if within is not None and not isinstance(within, (str, Mask)):
            within = Mask(_as_tensor(within))
        object.__setattr__(self, "within", within)
        if self.box is not None:
            object.__setattr__(self, "box", _box(self.box))
        if self.component is not None and (type(self.component) is not int or self.component < 1):
            raise KonkyoError(f"component is 1 for the largest part of the region, 2 ...; got {self.component!r}")


@dataclass(frozen=True)
class Pixel:
    """This asks for what the network says of one pixel of the picture, x to the right and y down, from 0.

    `label`: the class's name or index; None is the class that the network decides on there, or the only channel there
    is. `score`: see `RegionTarget`; None is what the method explains.
    """

    x: float
    y: float
    label: int | str | None = None
    score: DenseScore | None = None

    def __post_init__(self) -> None:
        if self.score is not None and self.score not in get_args(DenseScore):
            raise unknown("score of a pixel", self.score, get_args(DenseScore))
        _check_label(self.label)
        for name in ("x", "y"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise KonkyoError(f"a pixel is (x, y) in pixels of the picture, from 0; got {name}={value!r}")

    @property
    def box(self) -> Box:
        """Returns the square of the pixel, xyxy in pixels of the picture."""
        x, y = math.floor(self.x), math.floor(self.y)
        return (float(x), float(y), float(x + 1), float(y + 1))


@spec("region:CLASS[,within=predicted|all][,mask=FILE][,box=X1:Y1:X2:Y2][,component=N][,score=SCORE]")
def _region_of_text(value: str) -> Region:
    label, settings = with_settings(value, "within", "mask", "box", "component", "score")
    if "within" in settings and "mask" in settings:
        raise KonkyoError(f"within= and mask= both say where; got {value!r}")
    component = settings.get("component")
    if component is not None and not component.isdigit():
        raise KonkyoError(f"component is a number from 1; got {component!r}")
    return Region(
        class_of_text(label) if label else None,
        settings.get("mask", settings.get("within")),
        _box(settings["box"].split(":")) if "box" in settings else None,
        None if component is None else int(component),
        settings.get("score"),  # type: ignore[arg-type]
    )


@spec("pixel:X:Y[,label=CLASS][,score=SCORE]")
def _pixel_of_text(value: str) -> Pixel:
    place, settings = with_settings(value, "label", "score")
    try:
        x, y = (float(number) for number in place.split(":"))
    except ValueError:
        raise KonkyoError(f"a pixel is X:Y in pixels of the picture, as in 120:64; got {place!r}") from None
    label = class_of_text(settings["label"]) if "label" in settings else None
    return Pixel(x, y, label, settings.get("score"))  # type: ignore[arg-type]


# --- from the picture to the grid of an output ------------------------------------------------------------------------


def shown_size(frame: Frame) -> tuple[float, float]:
    """Returns the (height, width) of the picture that an input shows. KonkyoError: a frame without a size."""
    if frame.size is None:
        raise KonkyoError("the size of the network's input is not known, so no pixel of the picture can be found in it")
    left, top, right, bottom = frame.region
    height, width = frame.size
    return (bottom - top) * height * frame.scale[1], (right - left) * width * frame.scale[0]


def box_on_grid(box: Box, size: tuple[int, int], frame: Frame) -> Tensor:
    """Returns how much of every cell of an output's grid (*size) lies in a box of the picture, xyxy in its pixels.

    KonkyoError: the box lies outside of what the network sees of the picture.
    """
    tall, wide = shown_size(frame)
    left, top = frame.corner
    x1, y1, x2, y2 = box[0] - left, box[1] - top, box[2] - left, box[3] - top
    slack = 0.5  # a picture's size is rounded
    if x1 >= wide + slack or y1 >= tall + slack or x2 <= 0 or y2 <= 0:
        raise ImageError(
            f"({', '.join(f'{side:g}' for side in box)}) lies outside of what the network sees of the picture: x from "
            f"{left} to {left + round(wide)}, y from {top} to {top + round(tall)}, in pixels of the picture"
        )
    assert frame.size is not None
    inside = frame.placed(torch.tensor((x1, y1, x2, y2), dtype=torch.float64))
    height, width = frame.size
    sides = inside / torch.tensor([width, height, width, height]) * torch.tensor([size[1], size[0], size[1], size[0]])
    weights = _box_weights(tuple(sides.tolist()), size)
    if not bool((weights > 0).any()):
        raise ImageError(f"the box {box} has no cell of an output of {size[1]} x {size[0]}")
    return weights


def mask_on_grid(mask: Mask, size: tuple[int, int], frame: Frame) -> Tensor:
    """Returns a mask of the picture (H, W) averaged over the area of every cell of an output's grid (*size).

    KonkyoError: the mask is not as large as the picture.
    """
    tall, wide = frame.whole or shown_size(frame)
    shape = tuple(mask.weights.shape)
    if len(shape) != 2 or abs(shape[0] - tall) > 1 or abs(shape[1] - wide) > 1:
        raise ImageError(
            f"a mask is as large as the picture, {round(wide)} x {round(tall)} pixels; got "
            f"{' x '.join(map(str, shape[::-1]))}"
        )
    assert frame.size is not None
    left, top = frame.corner
    rows = _coverage(size[0], frame.size[0], frame.scale[1], frame.offset[1] + top, shape[0])
    columns = _coverage(size[1], frame.size[1], frame.scale[0], frame.offset[0] + left, shape[1])
    averaged = (rows @ mask.weights.double() @ columns.T).clamp(0, 1).float()
    if not bool((averaged > 0).any()):
        raise ImageError("the mask has nothing in what the network sees of the picture")
    return averaged


def component_of(region: Tensor, number: int) -> Tensor:
    """Returns the part of a region (H, W) that is its n-th largest of connected cells, 1 the largest; 0 elsewhere.

    KonkyoError: there are fewer parts.
    """
    inside = region > 0
    labels = torch.arange(1, inside.numel() + 1, dtype=torch.float64).view(inside.shape) * inside
    while True:
        spread = F.max_pool2d(labels[None, None], 3, 1, 1)[0, 0] * inside
        if torch.equal(spread, labels):
            break
        labels = spread
    names, counts = torch.unique(labels[inside], return_counts=True)
    if number > len(names):
        raise ImageError(f"component={number} of a region that has {len(names)} connected parts")
    name = names[counts.argsort(descending=True, stable=True)[number - 1]]
    return torch.where(labels == name, region, 0.0)


def _box_weights(box: tuple[float, ...], size: tuple[int, ...]) -> Tensor:
    """Returns how much of every cell of a grid (*size) lies in a box, xyxy in cells."""
    left, top, right, bottom = box
    columns, rows = _overlaps(left, right, size[1]), _overlaps(top, bottom, size[0])
    return (rows[:, None] * columns).float()


def _overlaps(low: float, high: float, count: int) -> Tensor:
    """Returns how much of every one of `count` cells of length 1 lies between two places (count,)."""
    cells = torch.arange(count, dtype=torch.float64)
    return ((cells + 1).clamp(max=high) - cells.clamp(min=low)).clamp(min=0)


def _coverage(count: int, length: int, scale: float, offset: float, pixels: int) -> Tensor:
    """Returns the share that every pixel of the picture has of every cell of an output's axis (count, pixels)."""
    edges = torch.arange(count + 1, dtype=torch.float64) * (length / count) * scale + offset
    low, high = edges[:-1, None], edges[1:, None]
    pixel = torch.arange(pixels, dtype=torch.float64)[None]
    return (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(min=0) / (high - low)


def _as_tensor(values: Any) -> Tensor:
    """Returns an array (H, W) of booleans, or of numbers in which 0 is outside, as a tensor of booleans."""
    try:
        tensor = torch.as_tensor(values)
    except Exception as error:
        raise KonkyoError(
            f'within is "predicted", "all", a mask (H, W), or a path; got {type(values).__name__}'
        ) from error
    if tensor.ndim != 2:
        raise KonkyoError(f"a mask is (H, W), as large as the picture; got {tuple(tensor.shape)}")
    if tensor.is_floating_point() and tensor.numel():
        low, high = float(tensor.amin()), float(tensor.amax())
        if not 0 <= low <= high <= 1 and not (low >= 0 and high <= 255):
            raise KonkyoError(f"a mask has weights from 0 to 1, or 0 outside and more inside; got {low:g} to {high:g}")
        return tensor if high <= 1 else tensor != 0
    if tensor.dtype != torch.bool and tensor.numel() and int(tensor.amin()) < 0:
        raise KonkyoError(f"a mask is 0 outside and more inside; got {int(tensor.amin())}")
    return tensor != 0


def _box(values: Any) -> Box:
    try:
        x1, y1, x2, y2 = (float(value) for value in values)
    except (TypeError, ValueError):
        raise KonkyoError(f"a box is (x1, y1, x2, y2) in pixels of the picture; got {values!r}") from None
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x1 >= x2 or y1 >= y2:
        raise KonkyoError(f"a box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2; got {values!r}")
    return (x1, y1, x2, y2)


def _check_label(label: Any) -> None:
    if label is not None and (isinstance(label, bool) or not isinstance(label, (int, str))):
        raise KonkyoError(f"a label is a class's name or index; got {label!r}")


def _described(tensor: Tensor) -> str:
    if not tensor.numel():
        return f"{tuple(tensor.shape)} {tensor.dtype}"
    return f"{tuple(tensor.shape)} {tensor.dtype} from {float(tensor.amin()):g} to {float(tensor.amax()):g}"
