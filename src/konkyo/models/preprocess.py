"""From a picture to the tensor a model expects, and back to what the model saw of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konkyo.data.images import MAX_PIXELS
from konkyo.errors import ImageError, KonkyoError

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale to [0, 1], normalise: the evaluation preprocessing of image classifiers.

    `resize`: the short side, or (height, width), or None; `crop`: a square side, or (height, width), or None. One
    value of `mean` and `std` per channel; a single one makes a grey picture.
    """

    resize: int | tuple[int, int] | None = 256
    crop: int | tuple[int, int] | None = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise KonkyoError(f"mean and std need one value per channel, 1 or 3; got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise KonkyoError(f"std must be positive; got {self.std}")
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and min(_pair(size)) < 1:
                raise KonkyoError(f"{name} must be at least 1 pixel; got {size}")

    def __call__(self, image: Image.Image) -> Tensor:
        """The picture as the model wants it: float32 (C, height, width)."""
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        width, height = self._resized(image)
        if width * height > MAX_PIXELS:
            raise ImageError(f"a picture of {image.width} x {image.height} would become {width} x {height} pixels")
        image = image.resize((width, height), _FILTERS[self.interpolation])
        image = image.crop(self._crop_box(width, height))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).view(image.height, image.width, -1) / 255
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()

    def view(self, image: Image.Image) -> Image.Image:
        """The part of the picture that the model sees, at the picture's own resolution."""
        width, height = self._resized(image)
        across, down = image.width / width, image.height / height
        left, top, right, bottom = self._crop_box(width, height)
        return image.convert("RGB").crop(
            (round(left * across), round(top * down), round(right * across), round(bottom * down))
        )

    def undo(self, images: Tensor) -> Tensor:
        """Preprocessed images (N, C, H, W) as colours in [0, 1]."""
        mean, std = (torch.tensor(v).to(images).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) after the resize."""
        if self.resize is None:
            return image.size
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short, long = min(image.size), max(image.size)
        side = max(1, int(self.resize * long / short))
        return (self.resize, side) if image.width <= image.height else (side, self.resize)

    def _crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, width, height
        crop_height, crop_width = _pair(self.crop)
        left, top = _margin(width - crop_width), _margin(height - crop_height)
        return left, top, left + crop_width, top + crop_height


def _margin(excess: int) -> int:
    """Where a centre crop begins; before the picture if that is smaller. As torchvision rounds."""
    return round(excess / 2) if excess > 0 else -(-excess // 2)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
