"""DICOM and NIfTI files as pictures; their libraries are imported when a file asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from konkyo.data.windows import Window, no_own_window, no_window, to_bytes, windowed
from konkyo.errors import ImageError, install_hint

_Check = Callable[[int, int], None]
_Reader = Callable[[Path, _Check, list[str], "Window | None"], Image.Image]
_Array = NDArray[Any]

SUFFIXES = (".dcm", ".dicom", ".nii", ".nii.gz")

MAX_VOXELS = 1_000_000_000
"""Larger volumes are refused: how they are stored may make it necessary to read all of one for its slice."""


def reader(path: Path, file: BinaryIO) -> _Reader | None:
    """Returns what reads the file, by its first bytes or its suffix; None for other formats.

    It gives a picture in mode L or RGB, or F where the file does not say which values are black and white. It calls the
    check with the width and height before it reads pixels, and adds notes on what it did. A window says instead which
    values are black and white.
    """
    head = file.read(132)
    file.seek(0)
    name = path.name.lower()
    if head[128:] == b"DICM" or name.endswith(SUFFIXES[:2]):
        return _dicom
    return _nifti if name.endswith(SUFFIXES[2:]) else None


def imported(name: str, path: Path) -> Any:
    """Returns a library that reads such files. ImageError: it is not installed, and how to install it."""
    try:
        return import_module(name)
    except ImportError:
        raise ImageError(f"{path}: reading it takes {name.split('.')[0]}: {install_hint('medical')}") from None


# --- DICOM ------------------------------------------------------------------------------------------------------------


def _dicom(path: Path, check: _Check, notes: list[str], window: Window | None) -> Image.Image:
    """Reads a DICOM file as a viewer shows it: rescaled, by its table or first window; of frames the middle one.

    `window` is of the rescaled values, in place of the file's own. ImageError: no picture, or none for a window.
    """
    library = imported("pydicom.pixels", path)
    data = imported("pydicom", path).dcmread(path, stop_before_pixels=True)
    if "Rows" not in data or "Columns" not in data:
        raise ImageError(f"{path} holds no picture; its DICOM kind is {data.get('Modality', 'not told')}")
    check(int(data.Columns), int(data.Rows))
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        notes.append(f"frame {frames // 2 + 1} of {frames}, the middle one")
    try:
        stored: _Array = library.pixel_array(path, index=frames // 2)
    except RuntimeError as error:
        if "missing dependencies" not in str(error):
            raise
        syntax = data.file_meta.TransferSyntaxUID.name
        raise ImageError(f"{path} is compressed as {syntax}; pip install 'pylibjpeg[all]' to read it") from None
    kind = str(data.PhotometricInterpretation)
    if window is not None and (kind == "PALETTE COLOR" or stored.ndim == 3):
        raise no_window(str(path), "is a picture in colours")
    if kind == "PALETTE COLOR":
        colours: _Array = library.apply_color_lut(stored, data)
        return Image.fromarray(to_bytes(colours[..., :3], 0, float(np.iinfo(colours.dtype).max)))
    if stored.ndim == 3:
        return Image.fromarray(to_bytes(stored, 0, 2.0 ** int(data.BitsStored) - 1))
    grey = _grey_of_dicom(path, data, library.apply_modality_lut(stored, data).astype(np.float64), window, notes)
    if kind == "MONOCHROME1":
        notes.append("inverted (MONOCHROME1)")
        grey = 255 - grey
    return Image.fromarray(grey)


def _grey_of_dicom(path: Path, data: Any, values: _Array, window: Window | None, notes: list[str]) -> NDArray[np.uint8]:
    """Returns rescaled values through a window, the file's table or window, or else from the range they occupy."""
    library = imported("pydicom.pixels", path)
    if isinstance(window, tuple):
        return windowed(str(path), values, window, notes)
    if "VOILUTSequence" in data:
        values = library.apply_voi_lut(values.astype(np.int64), data)
        low, high = 0.0, 2.0 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1
        notes.append("DICOM lookup table")
    elif "WindowWidth" in data and "WindowCenter" in data:
        # what lies far outside becomes the window's black and its white
        low, high = map(float, library.apply_voi_lut(np.array([-1e12, 1e12]), data))
        values = library.apply_voi_lut(values, data)
        notes.append(
            f"DICOM window, centre {_first_value(data.WindowCenter):g}, width {_first_value(data.WindowWidth):g}"
        )
    elif window == "file":
        raise no_own_window(str(path), "WindowCenter and WindowWidth, or a lookup table")
    else:
        low, high = float(values.min()), float(values.max())
        notes.append(f"DICOM without a window, rescaled from {low:g}..{high:g}")
    return to_bytes(values, low, high)


def _first_value(value: Any) -> float:
    return float(value[0] if hasattr(value, "__getitem__") else value)


# --- NIfTI ------------------------------------------------------------------------------------------------------------


def _nifti(path: Path, check: _Check, notes: list[str], window: Window | None) -> Image.Image:
    """Reads the middle axial slice, front of the body at the top, its right at the left, as radiologists look at it.

    Of several volumes the first. The window "file" is the header's cal_min and cal_max. ImageError: they say nothing.
    """
    library = imported("nibabel", path)
    volume = library.load(path)
    shape = (*volume.shape, 1, 1)[: max(3, len(volume.shape))]
    axes = library.io_orientation(volume.affine)  # per axis as stored: which of right, front, up; and which way
    if len(volume.shape) < 3 or not np.isfinite(axes).all():
        axes = np.array([(0, 1), (1, 1), (2, 1)])
    if math.prod(shape[:3]) > MAX_VOXELS:
        raise ImageError(f"{path} ({' x '.join(map(str, shape[:3]))}) has too many voxels to be read safely")
    right, front, up = (int(np.argmax(axes[:, 0] == direction)) for direction in range(3))
    check(shape[right], shape[front])
    middle = shape[up] // 2
    stored = middle if axes[up, 1] > 0 else shape[up] - 1 - middle
    which: list[int | slice] = [slice(None)] * 3 + [0] * (len(shape) - 3)
    which[up] = stored
    grid: _Array = np.asanyarray(volume.dataobj[tuple(which[: len(volume.shape)])])
    if grid.dtype.names:  # colours are records
        grid = np.stack([grid[name] for name in grid.dtype.names[:3]], -1)
    if right > front:
        grid = grid.swapaxes(0, 1)
    # (right, front) becomes rows from the front backwards, columns from the right to the left of the body
    grid = grid.swapaxes(0, 1)[:: -1 if axes[front, 1] > 0 else 1, :: -1 if axes[right, 1] > 0 else 1]
    notes.append(f"axial slice {middle + 1} of {shape[up]}, the middle one")
    if (volumes := math.prod(shape[3:])) > 1:
        notes.append(f"first of {volumes} volumes")
    if grid.ndim == 3:
        if window is not None:
            raise no_window(str(path), "is a volume in colours")
        return Image.fromarray(np.ascontiguousarray(grid, dtype=np.uint8))
    if window == "file":
        known = "cal_min" in volume.header and "cal_max" in volume.header
        window = (float(volume.header["cal_min"]), float(volume.header["cal_max"])) if known else (0.0, 0.0)
        if not window[0] < window[1]:
            raise no_own_window(str(path), "cal_min and cal_max")
    if window is not None:
        return Image.fromarray(np.ascontiguousarray(windowed(str(path), grid, window, notes)))
    return Image.fromarray(np.ascontiguousarray(grid, dtype=np.float32))
