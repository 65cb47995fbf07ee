"""Arrays and uint8 tensors as pictures; what could be read in two ways is refused, with the call that says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from konkyo.data.images import upright
from konkyo.errors import ImageError

_CHANNELS = (1, 3, 4)
_DARKEST, _BRIGHTEST = -0.01, 1.5
"""Floats between 0 and 1 may be a little outside after an interpolation."""


def pictures_of_array(array: NDArray[Any], *, bgr: bool = False) -> list[Image.Image]:
    """Returns the pictures in an array (H, W), (H, W, 1, 3 or 4) or (N, H, W, 1, 3 or 4), the last with transparency.

    Values are uint8, floats from 0 to 1 or bool; (H, W) may also hold uint16, rescaled as in a 16-bit file. `bgr`:
    colours are stored as blue, green, red, as OpenCV does. ImageError: other axes or values, and the right call.
    """
    shape = tuple(array.shape)
    if array.size == 0 or array.ndim not in (2, 3, 4):
        raise ImageError(f"an array (H, W), (H, W, C) or (N, H, W, C) was expected; got the shape {shape}")
    if array.ndim == 2:
        return [_grey(array)]
    if shape[-1] not in _CHANNELS:
        if shape[-3] not in _CHANNELS:
            hint = "; of several grey pictures give a list: list(array)" if array.ndim == 3 else ""
            raise ImageError(f"an array's last axis has 1, 3 or 4 colours; got the shape {shape}{hint}")
        order = "1, 2, 0" if array.ndim == 3 else "0, 2, 3, 1"
        raise ImageError(
            f"an array with its colours first, {shape}: as a picture give array.transpose({order}), "
            "as a prepared input torch.from_numpy(array)"
        )
    if np.issubdtype(array.dtype, np.uint16):  # of either byte order
        raise ImageError("colours of 16 bits: give (array / 65535).astype(numpy.float32), or 8 bits")
    pixels = _bytes(array)
    if bgr and shape[-1] > 1:
        pixels = pixels[..., [2, 1, 0, 3][: shape[-1]]]
    return [_colours(picture) for picture in (pixels[None] if array.ndim == 3 else pixels)]


def pictures_of_tensor(tensor: Tensor, *, bgr: bool = False) -> list[Image.Image]:
    """Returns the pictures in a uint8 tensor (C, H, W) or (N, C, H, W) with C 1, 3 or 4. ImageError: another one."""
    shape = tuple(tensor.shape)
    if tensor.dtype != torch.uint8:
        raise ImageError(
            f"a tensor is a picture as uint8, or prepared input as floats; got {tensor.dtype} {shape}: "
            "tensor.to(torch.uint8) where it holds 0..255"
        )
    if tensor.ndim not in (3, 4) or not tensor.numel() or shape[-3] not in _CHANNELS:
        last = tensor.ndim in (3, 4) and shape[-1] in _CHANNELS
        order = "2, 0, 1" if tensor.ndim == 3 else "0, 3, 1, 2"
        hint = f"; with its colours last: tensor.permute({order})" if last else ""
        raise ImageError(f"a uint8 tensor (C, H, W) or (N, C, H, W) with C 1, 3 or 4 was expected; got {shape}{hint}")
    return pictures_of_array(tensor.detach().movedim(-3, -1).cpu().numpy(), bgr=bgr)


def picture_of_colours(colours: Tensor) -> Image.Image:
    """Returns colours (1 or 3, H, W) from 0 to 1 as a picture."""
    pixels = (colours.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels)


def read_array(path: Path) -> Tensor:
    """Returns the floats of a .npy file as a float32 tensor. ImageError: no such file, or one of something else."""
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(f"{path} cannot be read as an array: {str(error).splitlines()[0]}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ImageError(f"{path} was expected to hold numbers; got {getattr(array, 'dtype', type(array).__name__)}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _grey(array: NDArray[Any]) -> Image.Image:
    if np.issubdtype(array.dtype, np.uint16):  # of either byte order
        return upright(Image.fromarray(np.ascontiguousarray(array.astype(np.uint16))))
    return upright(Image.fromarray(_bytes(array)))


def _colours(pixels: NDArray[np.uint8]) -> Image.Image:
    return upright(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)))


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns the values as 0..255. ImageError: values of another range."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if array.dtype == np.bool_:
        return np.asarray(array.astype(np.uint8) * 255, dtype=np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(
            f"an array of pixels is uint8, or float from 0 to 1; got {array.dtype}: where it holds 0..255, "
            "array.astype(numpy.uint8)"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= _DARKEST and high <= _BRIGHTEST):  # also NaN
        raise ImageError(
            f"an array of floats is a picture with values from 0 to 1; got {low:g}..{high:g}: give array / 255 where "
            "it holds 0..255, or torch.from_numpy(array) (N, C, H, W) where it is prepared input"
        )
    return np.asarray((array.astype(np.float64).clip(0, 1) * 255).round(), dtype=np.uint8)
