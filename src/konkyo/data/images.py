"""Image files as upright RGB pictures, whatever their format, and what had to be done to them."""

from __future__ import annotations

import glob
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from konkyo.data import scans
from konkyo.errors import ImageError, KonkyoError

MAX_PIXELS = 64_000_000
"""Larger images are refused before their pixels are read."""

_REFUSED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
"""Formats that Pillow hands to other programs, or only recognises."""

_WARNINGS = threading.Lock()
"""Warning filters belong to the whole process: two threads that change them would leave them changed."""


def open_image(path: str | Path) -> Image.Image:
    """Reads the image as an upright RGB picture; `info["konkyo"]` is a tuple of notes on what was done to it.

    EXIF orientation is applied, of several frames the first is taken, transparent parts lie on white. Grey values of
    more than 8 bits and floats are rescaled from the range they occupy to 0..255. Colour profiles are not applied.
    DICOM is shown through its own window, of its frames and of a NIfTI volume the middle (`konkyo.data.scans`).
    ImageError, in one line: not an image, damaged, more than MAX_PIXELS, or not to be read.
    """
    path = Path(path)
    _require_file(path)
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of much that does not change the pixels
        try:
            with path.open("rb") as file:
                return _decode(path, file)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(f"{path} is not an image that can be read; save it as PNG, JPEG or TIFF") from None
        except Image.DecompressionBombError:
            raise ImageError(f"{path} {_TOO_LARGE.format(MAX_PIXELS / 1e6)}") from None
        except Exception as error:  # decoders of damaged files fail in every possible way
            if isinstance(error, OSError) and error.errno is not None:
                raise _unreadable(path, error) from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{path} is damaged or cut short ({reason}); get the file again") from None


def find_images(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """Lists image files named by files, folders and glob patterns (also `**`), in that order, without duplicates.

    A folder gives the images in it and below, by suffix, in natural order ("2" before "10"), hidden ones left out;
    so does a pattern. A file named in full is kept whatever its suffix. KonkyoError: a source that matches nothing.
    """
    listed = [sources] if isinstance(sources, (str, Path)) else sources
    images: dict[str, Path] = {}
    for source in listed:
        matches = _matches(source)
        if not matches:
            kind = "holds no image files" if Path(source).is_dir() else "matches no file, folder or images"
            raise KonkyoError(f"{str(source)!r} {kind}; looked for {_suffix_text()}")
        for match in matches:
            images.setdefault(os.path.normpath(match.absolute()), match)
    return list(images.values())


# --- reading ----------------------------------------------------------------------------------------------------------

_TOO_LARGE = "has too many pixels to be read safely; at most {:g} million: shrink it or cut out a part"


def _require_file(path: Path) -> None:
    """Raises ImageError unless the path is a file with something in it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the name and the folder") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path} is a folder; name the images in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path} is not a regular file; name an image file")
    if status.st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); get the file again")


def _unreadable(path: Path, error: Exception) -> ImageError:
    reason = getattr(error, "strerror", None) or error
    return ImageError(f"{str(path)!r} cannot be opened: {reason}; check its name and permissions")


def _decode(path: Path, file: BinaryIO) -> Image.Image:
    """Reads an open file as an upright RGB picture with notes. ImageError: too many pixels."""
    notes: list[str] = []

    def check(width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise ImageError(f"{path} ({width} x {height}) {_TOO_LARGE.format(MAX_PIXELS / 1e6)}")

    read = scans.reader(path, file)
    if read is not None:
        picture = _rgb(path, read(path, check, notes), notes)
        picture.info = {"konkyo": tuple(notes)}
        return picture
    with Image.open(file, formats=_formats()) as image:
        check(image.width, image.height)
        frames = 1 if image.format == "PSD" else getattr(image, "n_frames", 1)  # of a PSD they are layers
        if frames > 1:
            notes.append(f"first of {frames} frames")
        image.load()
        upright: Image.Image = image
        orientation = _orientation(image)
        if orientation != 1:
            upright = ImageOps.exif_transpose(image)
            notes.append(f"turned upright (EXIF orientation {orientation})")
        picture = _rgb(path, upright, notes)
    picture.info = {"konkyo": tuple(notes)}
    return picture


def _orientation(image: Image.Image) -> int:
    """Returns 1..8; 1 where EXIF says nothing or cannot be read, which is no reason to refuse the pixels."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata fails in every possible way
        return 1
    return orientation if orientation in range(2, 9) else 1


def _rgb(path: Path, image: Image.Image, notes: list[str]) -> Image.Image:
    """Converts any mode to RGB, and adds to the notes what that took."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _rescaled(path, image, notes).convert("RGB")
    if not image.has_transparency_data:
        if image.mode == "CMYK":
            notes.append("CMYK, converted without its colour profile")
        return image.convert("RGB")
    layers = image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] == 255:
        return layers.convert("RGB")
    notes.append("transparent parts on white")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _rescaled(path: Path, image: Image.Image, notes: list[str]) -> Image.Image:
    """Scales grey values of any range to 8 bits: the lowest becomes 0, the highest 255."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ImageError(f"{path} holds NaN or infinite values; replace them, then save it again")
    low, high = float(values.min()), float(values.max())
    kind = "float" if image.mode == "F" else "16-bit" if low >= -(2**15) and high < 2**16 else "32-bit"
    notes.append(f"{kind} rescaled from {low:g}..{high:g}")
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(scaled.round().astype(np.uint8))


# --- finding ----------------------------------------------------------------------------------------------------------


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _REFUSED)


@cache
def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in _formats())


def _suffix_text() -> str:
    return (
        f".jpg, .png, .webp, .tif, .dcm, .nii and {len(_suffixes()) + len(scans.SUFFIXES) - 6} other suffixes of images"
    )


def _matches(source: str | Path) -> list[Path]:
    """Lists the image files of one source in natural order: a file, a folder or a pattern."""
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(_below(path), key=_natural)
    try:
        names = glob.glob(str(source), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute patterns
    except (ValueError, re.error):
        return []
    return sorted((p for p in map(Path, names) if _is_image(p)), key=_natural)


def _below(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise KonkyoError(f"{error.filename} cannot be listed: {error.strerror}")

    for where, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for name in names if _is_image(path := Path(where) / name))


def _is_image(path: Path) -> bool:
    known = path.suffix.lower() in _suffixes() or path.name.lower().endswith(scans.SUFFIXES)
    return known and not path.name.startswith(".") and path.is_file()


def _natural(path: Path) -> list[tuple[list[str | int], str]]:
    """Returns a sorting key under which "img2" comes before "img10", folder by folder."""

    def pieces(name: str) -> list[str | int]:
        return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", name.casefold()))]

    return [(pieces(part), part) for part in path.parts]
