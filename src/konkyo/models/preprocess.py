"""From a picture to the tensor a model expects, and back to what the model saw of it."""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from konkyo.data.frame import Frame
from konkyo.data.images import MAX_PIXELS, upright
from konkyo.errors import ImageError, KonkyoError, unknown

Interpolation: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "gaussian"]
Fit: TypeAlias = Literal["stretch", "cover", "contain", "square"]
Centre: TypeAlias = Literal["round", "floor"]

Size: TypeAlias = tuple[int, int]
"""Height and width."""

_FILTERS = {filter_.name.lower(): filter_ for filter_ in Image.Resampling}


class Resizing(ABC):
    """A resizing says what a picture is resized to by its own size. Subclasses are frozen dataclasses of numbers."""

    @abstractmethod
    def steps(self, size: Size) -> tuple[Size, ...]:
        """Returns the sizes that a picture of a size (height, width) is resized to, one after the other."""


_RESIZINGS: dict[str, type[Resizing]] = {}
_Rule = TypeVar("_Rule", bound=type[Resizing])


def resizing(rule: _Rule) -> _Rule:
    """Registers a resizing by its class's name, so that `preprocess_of` can read it."""
    _RESIZINGS[rule.__name__] = rule
    return rule


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale to [0, 1], normalise: the evaluation preprocessing of image classifiers.

    `resize`: the short side, (height, width), a `Resizing`, or None; `crop`: a square side, or (height, width), or
    None. One value of `mean` and `std` per channel; a single one makes a grey picture. `fit`: how a picture of another
    shape comes to (height, width): "stretch" it, "cover" with its shape kept, "contain" it, with a border around it, or
    "square" it by a border below or at the right, and stretch that. The border has the grey `border` (0 black, 1 white;
    None: the mean colour). `interpolation`: a filter of Pillow's, or "gaussian", a blur before a linear zoom of
    floating pixels, as scikit-image and OWLv2 do. `centre`: whether a crop that cannot lie in the middle is rounded to
    the even pixel ("round", as torchvision does) or up and left ("floor", as transformers does).
    `longest`: where `resize` is the short side, how long the other may become; if it were longer, both shrink.
    `multiple`: sides that follow from the picture's shape are cut down to multiples of it. `patches`: the picture keeps
    its shape, as large as it can be with so many patches of `multiple` pixels, sides rounded up (SigLIP 2, NaFlex).
    """

    resize: int | tuple[int, int] | Resizing | None = 256
    crop: int | tuple[int, int] | None = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    fit: Fit = "stretch"
    centre: Centre = "round"
    longest: int | None = None
    multiple: int = 1
    border: float | None = None
    patches: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, (tuple, list)) or not all(map(_is_finite, values)):
                raise KonkyoError(f"{name} is a tuple of finite numbers, one per channel; got {values!r}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise KonkyoError(f"mean and std need one value per channel, 1 or 3; got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise KonkyoError(f"std must be positive; got {self.std}")
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is None or isinstance(size, Resizing):
                continue
            sides = _pair(size)
            if len(sides) != 2 or not all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides):
                raise KonkyoError(f"{name} is a whole number of pixels, or (height, width); got {size!r}")
            if min(sides) < 1:
                raise KonkyoError(f"{name} must be at least 1 pixel; got {size}")
            if sides[0] * sides[1] > MAX_PIXELS:
                raise KonkyoError(f"{name} makes at most {MAX_PIXELS / 1e6:g} million pixels; got {size}")
        if self.border is not None and not (_is_finite(self.border) and 0 <= self.border <= 1):
            raise KonkyoError(f"border is a grey from 0 (black) to 1 (white), or None; got {self.border}")
        limits = [self.multiple, *(n for n in (self.longest, self.patches) if n is not None)]
        if not all(isinstance(n, Integral) and not isinstance(n, bool) and 1 <= n <= MAX_PIXELS for n in limits):
            raise KonkyoError(
                f"longest, multiple and patches must be at least 1; got {self.longest}, {self.multiple}, {self.patches}"
            )
        for name, choice, offer in (
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("fit", self.fit, get_args(Fit)),
            ("centre", self.centre, get_args(Centre)),
        ):
            if choice not in offer:
                raise unknown(name, choice, offer)
        if (self.fit == "square" or self.interpolation == "gaussian") and self.crop is not None:
            raise KonkyoError('fit="square" and interpolation="gaussian" go without a crop: crop=None')
        if self.fit == "square" and not isinstance(self.resize, tuple):
            raise KonkyoError(f'fit="square" goes with resize=(height, width); got {self.resize!r}')

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns the picture, made `upright`, as the model wants it: float32 (C, height, width)."""
        image = upright(image)
        image = image.convert("L") if len(self.mean) == 1 else image
        width, height = self._resized(image)
        if width * height > MAX_PIXELS:
            raise ImageError(f"a picture of {image.width} x {image.height} would become {width} x {height} pixels")
        image = self._squared(image) if self.fit == "square" else image
        if self.interpolation == "gaussian":
            array = _zoomed(np.asarray(image, dtype=np.float32), width, height)
        else:
            for size in self._steps(image):
                image = image.resize(size, _FILTERS[self.interpolation])
            array = np.array(self._cropped(image, self._crop_box(width, height)), dtype=np.float32)
        pixels = torch.from_numpy(array).view(*array.shape[:2], -1) / 255
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()

    def size(self, image: Image.Image) -> tuple[int, int]:
        """Returns the (height, width) of what the picture becomes."""
        left, top, right, bottom = self._crop_box(*self._resized(image))
        return bottom - top, right - left

    def view(self, image: Image.Image) -> Image.Image:
        """Returns the part of the picture that the model sees, at the picture's own resolution."""
        image = upright(image)
        return image.crop(self._window(image))

    def frame(self, image: Image.Image) -> Frame:
        """Returns where the `view` of the picture lies in the model's input."""
        image = upright(image)
        width, height = self._resized(image)
        if self.fit == "square":
            side = max(image.size)
            part = (0.0, 0.0, image.width / side, image.height / side)
            return Frame((side / width, side / height), (0.0, 0.0), part, (height, width))
        left, top, right, bottom = self._crop_box(width, height)
        across, down = image.width / width, image.height / height
        x, y = self._window(image)[:2]
        wide, tall = right - left, bottom - top
        return Frame(
            (across, down),
            (left * across - x, top * down - y),
            (
                max(0, -left) / wide,
                max(0, -top) / tall,
                (min(right, width) - left) / wide,
                (min(bottom, height) - top) / tall,
            ),
            (tall, wide),
            (x, y),
            (image.height, image.width),
        )

    def _window(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Returns the box of the picture's own pixels that the model sees."""
        if self.fit == "square":
            return 0, 0, image.width, image.height
        width, height = self._resized(image)
        left, top, right, bottom = self._crop_box(width, height)
        across, down = image.width / width, image.height / height
        return (
            round(max(left, 0) * across),
            round(max(top, 0) * down),
            round(min(right, width) * across),
            round(min(bottom, height) * down),
        )

    def corner(self, image: Image.Image) -> tuple[int, int]:
        """Returns where the `view` begins in the picture: (left, top)."""
        return self._window(upright(image))[:2]

    @property
    def side(self) -> int | tuple[int, int] | None:
        """Returns the side of prepared pictures, or (height, width), as far as it is not a picture's own affair."""
        size = self.resize if self.crop is None else self.crop
        return None if isinstance(size, Resizing) else size

    @property
    def white(self) -> tuple[float, ...]:
        """Returns what a white pixel becomes, per channel."""
        return tuple((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    def undo(self, images: Tensor) -> Tensor:
        """Returns preprocessed images (N, C, H, W) as colours in [0, 1]. KonkyoError: they have other channels."""
        if images.ndim < 4 or (images.shape[1] not in (1, len(self.mean)) and len(self.mean) > 1):
            raise KonkyoError(f"prepared images (N, {len(self.mean)}, H, W) were expected; got {tuple(images.shape)}")
        mean, std = (torch.tensor(v).to(images).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def _steps(self, image: Image.Image) -> list[tuple[int, int]]:
        """Returns every (width, height) that the picture is resized to, one after the other."""
        if isinstance(self.resize, Resizing):
            return [(width, height) for height, width in self.resize.steps((image.height, image.width))]
        return [self._resized(image)]

    def resized(self, image: Image.Image) -> tuple[int, int]:
        """Returns (height, width) of what the picture becomes before the crop."""
        return self._resized(image)[::-1]

    def cropped_from(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns what the crop leaves of a resized picture: (top, left, bottom, right)."""
        left, top, right, bottom = self._crop_box(width, height)
        return top, left, bottom, right

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """Returns (width, height) after the resize."""
        if self.patches is not None:
            return _fitting(image.size, self.multiple, self.patches)
        if self.resize is None:
            return image.size
        if isinstance(self.resize, Resizing):
            return self._steps(image)[-1]
        if isinstance(self.resize, tuple):
            height, width = self.resize
            if self.fit in ("stretch", "square"):
                return width, height
            ratios = image.height / height, image.width / width
            ratio = min(ratios) if self.fit == "cover" else max(ratios)
            return max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
        short, long = min(image.size), max(image.size)
        side, exact = self.resize, float(self.resize)
        if self.longest is not None and long / short * side > self.longest:
            exact = self.longest * short / long
            side = round(exact)
        # The other side follows from the exact one, not from the rounded: so transformers does it.
        other = long if side == short else int(exact * long / short)
        side, other = (max(self.multiple, n - n % self.multiple) for n in (side, other))
        return (side, other) if image.width <= image.height else (other, side)

    def _cropped(self, image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        """Returns the part of the picture in the box; outside of the picture it is black, or has the mean colour."""
        return self._on_canvas(image, box) if self.fit == "contain" else image.crop(box)

    def _squared(self, image: Image.Image) -> Image.Image:
        """Returns the picture with a border below or at the right that makes it a square."""
        side = max(image.size)
        return self._on_canvas(image, (0, 0, side, side))

    def _on_canvas(self, image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        """Returns what is in the box, a border where that is no part of the picture."""
        shades = self.mean if self.border is None else (self.border,) * len(self.mean)
        colour = tuple(round(255 * value) for value in shades) * (len(image.mode) // len(self.mean))
        canvas = Image.new(image.mode, (box[2] - box[0], box[3] - box[1]), colour)
        canvas.paste(image, (-box[0], -box[1]))
        return canvas

    def _crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, width, height
        crop_height, crop_width = _pair(self.crop)
        left, top = (_margin(n, self.centre == "floor") for n in (width - crop_width, height - crop_height))
        return left, top, left + crop_width, top + crop_height


def _fitting(size: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
    """Returns the largest (width, height) in multiples of the patch that `most` patches cover, the shape kept.

    The search for the factor is that of transformers, step by step, so that it ends at the same size.
    """

    def scaled(factor: float) -> tuple[int, int]:
        width, height = (max(1, math.ceil(side * factor / patch)) for side in size)
        return width, height

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(scaled(middle)) <= most else (low, middle)
    width, height = scaled(low)
    return width * patch, height * patch


def _zoomed(pixels: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Returns pixels (H, W) or (H, W, C) at another size: blurred by a Gaussian of sigma (factor - 1) / 2, then linear.

    A zoom that makes them larger is not blurred.
    """
    factors = [pixels.shape[0] / height, pixels.shape[1] / width, 1.0][: pixels.ndim]
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(pixels, [max(0, (factor - 1) / 2) for factor in factors], mode="mirror")
    zoomed: NDArray[np.float32] = ndimage.zoom(
        blurred, [1 / factor for factor in factors], order=1, mode="mirror", grid_mode=True
    )
    return np.clip(zoomed, pixels.min(), pixels.max())


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _margin(excess: int, floor: bool) -> int:
    """Returns where a centre crop begins; before the picture if that is smaller."""
    if excess < 0:
        return -(-excess // 2)
    return excess // 2 if floor else round(excess / 2)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def preprocess_of(text: str | None) -> Preprocess | None:
    """Returns the preprocessing that settings hold as text, as in "Preprocess(resize=256, ...)".

    None: there is none. KonkyoError: another text.
    """
    if text in (None, "", "None"):
        return None
    try:
        call = ast.parse(str(text), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or getattr(call.func, "id", "") != Preprocess.__name__:
            raise ValueError("no Preprocess(...)")
        return Preprocess(**{str(word.arg): _value_of(word.value) for word in call.keywords})
    except (SyntaxError, ValueError, TypeError, KeyError) as error:
        raise KonkyoError(f"settings hold a preprocessing that cannot be read, {str(text)[:80]!r}: {error}") from error


def _value_of(node: ast.expr) -> Any:
    """Returns a value in the text of a preprocessing: plain, or a resizing of plain values."""
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    import_module("konkyo.models.vision_language.sizes")  # registers its resizings
    rule = _RESIZINGS[node.func.id if isinstance(node.func, ast.Name) else ""]
    return rule(**{str(word.arg): ast.literal_eval(word.value) for word in node.keywords})
