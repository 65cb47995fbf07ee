"""From a picture to the tensor a model expects, and back to what the model saw of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konkyo.data.images import MAX_PIXELS
from konkyo.errors import ImageError, KonkyoError, unknown

Interpolation: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Fit: TypeAlias = Literal["stretch", "cover", "contain"]
Centre: TypeAlias = Literal["round", "floor"]

_FILTERS = {found.name.lower(): found for found in Image.Resampling}


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale to [0, 1], normalise: the evaluation preprocessing of image classifiers.

    `resize`: the short side, or (height, width), or None; `crop`: a square side, or (height, width), or None. One
    value of `mean` and `std` per channel; a single one makes a grey picture. `fit`: how a picture of another shape
    comes to (height, width): "stretch" it, "cover" with its shape kept, or "contain" it, with the mean colour around.
    `centre`: whether a crop that cannot lie in the middle is rounded to the even pixel ("round", as torchvision does)
    or up and left ("floor", as transformers does).
    """

    resize: int | tuple[int, int] | None = 256
    crop: int | tuple[int, int] | None = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    fit: Fit = "stretch"
    centre: Centre = "round"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise KonkyoError(f"mean and std need one value per channel, 1 or 3; got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise KonkyoError(f"std must be positive; got {self.std}")
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and min(_pair(size)) < 1:
                raise KonkyoError(f"{name} must be at least 1 pixel; got {size}")
        for name, choice, offer in (
            ("interpolation", self.interpolation, tuple(_FILTERS)),
            ("fit", self.fit, get_args(Fit)),
            ("centre", self.centre, get_args(Centre)),
        ):
            if choice not in offer:
                raise unknown(name, choice, offer)

    def __call__(self, image: Image.Image) -> Tensor:
        """The picture as the model wants it: float32 (C, height, width)."""
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        width, height = self._resized(image)
        if width * height > MAX_PIXELS:
            raise ImageError(f"a picture of {image.width} x {image.height} would become {width} x {height} pixels")
        image = image.resize((width, height), _FILTERS[self.interpolation])
        image = self._cropped(image, self._crop_box(width, height))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).view(image.height, image.width, -1) / 255
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()

    def view(self, image: Image.Image) -> Image.Image:
        """The part of the picture that the model sees, at the picture's own resolution."""
        width, height = self._resized(image)
        across, down = image.width / width, image.height / height
        left, top, right, bottom = self._crop_box(width, height)
        box = round(left * across), round(top * down), round(right * across), round(bottom * down)
        return self._cropped(image.convert("RGB"), box)

    def undo(self, images: Tensor) -> Tensor:
        """Preprocessed images (N, C, H, W) as colours in [0, 1]."""
        mean, std = (torch.tensor(v).to(images).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) after the resize."""
        if self.resize is None:
            return image.size
        if isinstance(self.resize, tuple):
            height, width = self.resize
            if self.fit == "stretch":
                return width, height
            ratios = image.height / height, image.width / width
            ratio = min(ratios) if self.fit == "cover" else max(ratios)
            return max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
        short, long = min(image.size), max(image.size)
        side = max(1, int(self.resize * long / short))
        return (self.resize, side) if image.width <= image.height else (side, self.resize)

    def _cropped(self, image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        """The part of the picture in the box; what the picture does not reach is black, or has the mean colour."""
        if self.fit != "contain":
            return image.crop(box)
        colour = tuple(round(255 * value) for value in self.mean) * (len(image.mode) // len(self.mean))
        canvas = Image.new(image.mode, (box[2] - box[0], box[3] - box[1]), colour)
        canvas.paste(image, (-box[0], -box[1]))
        return canvas

    def _crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, width, height
        crop_height, crop_width = _pair(self.crop)
        left, top = (_margin(n, self.centre == "floor") for n in (width - crop_width, height - crop_height))
        return left, top, left + crop_width, top + crop_height


def _margin(excess: int, floor: bool) -> int:
    """Where a centre crop begins; before the picture if that is smaller."""
    if excess < 0:
        return -(-excess // 2)
    return excess // 2 if floor else round(excess / 2)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
