"""Image files and opened pictures as upright RGB pictures, and what had to be done to them."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from konkyo.data import scans
from konkyo.data.windows import Window, no_own_window, no_window, require_finite, to_bytes, window_of, windowed
from konkyo.errors import ImageError, KonkyoError, warn
from konkyo.utils.files import read_text

MAX_PIXELS = 64_000_000
"""Larger images are refused before their pixels are read."""

_REFUSED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
"""Formats that Pillow hands to other programs, or only recognises."""

_WARNINGS = threading.Lock()
"""Warning filters belong to the whole process: two threads that change them would leave them changed."""


def open_image(source: str | Path | bytes | BinaryIO, window: str | Window | None = None) -> Image.Image:
    """Reads the image as an upright RGB picture; `info["konkyo"]` is a tuple of notes on what was done to it.

    The source is a path, the bytes of a file, or a file opened in binary mode (read from where it stands, and left
    there). EXIF orientation is applied, of several frames the first is taken, transparent parts lie on white. Grey
    values of more than 8 bits and floats are rescaled from the range they occupy to 0..255. Colour profiles are not
    applied. DICOM is shown through its own window, of its frames and of a NIfTI volume the middle
    (`konkyo.data.scans`). ImageError, in one line: not an image, damaged, more than MAX_PIXELS, or not to be read.

    `window`: (low, high), "LOW..HIGH" or "file". Grey values of more than 8 bits, floats, DICOM (rescaled) and NIfTI
    are scaled from low to high instead, equally in all files, or by the window that DICOM and NIfTI name themselves.
    KonkyoError: no window; ImageError: a picture of 8 bits or in colours, or a file without a window of its own.
    """
    window = window_of(window)
    if not isinstance(source, (str, Path)):
        data = _contents(source)
        with _reading(_NAMELESS):
            return _decode(_NAMELESS, io.BytesIO(data), None, window)
    path = Path(source)
    _require_file(path)
    with _reading(str(path)), path.open("rb") as file:
        return _decode(str(path), file, path, window)


def upright(picture: Image.Image) -> Image.Image:
    """Returns an opened picture as `open_image` returns its file: upright, RGB, with notes.

    A picture of which nothing has to be changed comes back itself; another one stays as it was. Of several frames the
    one is taken that the picture stands at. ImageError: as `open_image`.
    """
    name = str(getattr(picture, "filename", "") or _NAMELESS)
    _check_size(name, picture.width, picture.height)
    if type(picture) is Image.Image and picture.mode == "RGB" and not _TELLING & picture.info.keys():
        return picture
    if picture.format in _REFUSED:
        raise ImageError(f"{name} {_UNKNOWN}")
    with _reading(name):
        return _finished(name, picture, [])


def find_images(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """Lists image files named by files, folders and glob patterns (also `**`), in that order, without duplicates.

    A folder gives the images in it and below, by suffix, in natural order ("2" before "10"), hidden ones left out;
    so does a pattern. A .txt file gives the files that it lists, a line each, relative to its folder. Another file
    named in full is kept whatever its suffix. KonkyoError: a source that matches nothing, or an address on the web.
    """
    listed = [sources] if isinstance(sources, (str, Path)) else sources
    images: dict[str, Path] = {}
    for source in listed:
        require_local(source)
        matches = _matches(source)
        if not matches:
            kind = "holds no image files" if Path(source).is_dir() else "matches no file, folder or images"
            raise KonkyoError(f"{str(source)!r} {kind}; looked for {_suffix_text()}")
        for match in matches:
            images.setdefault(os.path.normpath(match.absolute()), match)
    return list(images.values())


# --- reading ----------------------------------------------------------------------------------------------------------

_NAMELESS = "the picture"
_TOO_LARGE = "has too many pixels to be read safely; at most {:g} million: shrink it or cut out a part"
_UNKNOWN = "is not an image that can be read; save it as PNG, JPEG or TIFF"
_TELLING = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "transparency"}
"""Entries of a picture's `info` that say that its pixels are not what is meant."""
MAX_BYTES = 2**30
"""A file object may be endless."""


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns what decoders raise into an ImageError in one line, and silences what they warn of."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of much that does not change the pixels
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except UnidentifiedImageError:
            raise ImageError(f"{name} {_UNKNOWN}") from None
        except Image.DecompressionBombError:
            raise ImageError(f"{name} {_TOO_LARGE.format(MAX_PIXELS / 1e6)}") from None
        except Exception as error:  # decoders of damaged files fail in every possible way
            if isinstance(error, OSError) and error.errno is not None:
                raise _unreadable(name, error) from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{name} is damaged or cut short ({reason}); get the file again") from None


def _contents(source: bytes | BinaryIO) -> bytes:
    """Returns the bytes of a file; a file object is left where it stands. ImageError: no bytes, or no end of them."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        try:
            start = source.tell() if source.seekable() else None
            data = source.read(MAX_BYTES + 1)
            if start is not None:
                source.seek(start)
        except (OSError, ValueError, AttributeError) as error:
            raise ImageError(f"a file opened for reading in binary mode was expected; reading it: {error}") from None
    if not isinstance(data, bytes):
        raise ImageError('a file in binary mode was expected, open(path, "rb"); this one gives text')
    if not data:
        raise ImageError("the picture's bytes are empty; of a file that was read before: file.seek(0)")
    if len(data) > MAX_BYTES:
        raise ImageError(f"a file object gives more than {MAX_BYTES >> 20} MB; name a file instead")
    return data


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


def _unreadable(name: str | Path, error: Exception) -> ImageError:
    reason = getattr(error, "strerror", None) or error
    return ImageError(f"{str(name)!r} cannot be opened: {reason}; check its name and permissions")


def _check_size(name: str, width: int, height: int) -> None:
    if not width * height:
        raise ImageError(f"{name} has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} ({width} x {height}) {_TOO_LARGE.format(MAX_PIXELS / 1e6)}")


def _decode(name: str, file: BinaryIO, path: Path | None, window: Window | None) -> Image.Image:
    """Reads an open file as an upright RGB picture with notes. ImageError: too many pixels."""
    notes: list[str] = []
    read = scans.reader(Path(name), file)
    if read is not None:
        if path is None:
            raise ImageError(f"{name} is a scan, of which the libraries read files only; give the path of a file")
        picture = _rgb(name, read(path, partial(_check_size, name), notes, window), notes)
        picture.info = {"konkyo": tuple(notes)}
        return picture
    with Image.open(file, formats=_formats()) as image:
        _check_size(name, image.width, image.height)
        return _finished(name, image, notes, window)


def _finished(name: str, image: Image.Image, notes: list[str], window: Window | None = None) -> Image.Image:
    """Returns an opened picture upright and in RGB, with notes."""
    # of a PSD the frames are layers; of a closed file the others cannot be counted
    frames = 1 if image.format == "PSD" or getattr(image, "fp", None) is None else getattr(image, "n_frames", 1)
    if number := image.tell():
        notes.append(f"frame {number + 1}")
    elif frames > 1:
        notes.append(f"first of {frames} frames")
    image.load()
    turned: Image.Image = image
    orientation = _orientation(image)
    if orientation != 1:
        turned = ImageOps.exif_transpose(image)
        notes.append(f"turned upright (EXIF orientation {orientation})")
    earlier = image.info.get("konkyo", ())
    picture = _rgb(name, turned, notes, window)
    picture.info = {"konkyo": (*earlier, *notes)}
    return picture


def _orientation(image: Image.Image) -> int:
    """Returns 1..8; 1 where EXIF says nothing or cannot be read, which is no reason to refuse the pixels."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata fails in every possible way
        return 1
    return orientation if orientation in range(2, 9) else 1


def _rgb(name: str, image: Image.Image, notes: list[str], window: Window | None = None) -> Image.Image:
    """Converts any mode to RGB, and adds to the notes what that took."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _rescaled(name, image, notes, window).convert("RGB")
    if window is not None:
        raise no_window(name, "is a picture of 8 bits, or in colours")
    if not image.has_transparency_data:
        if image.mode == "CMYK":
            notes.append("CMYK, converted without its colour profile")
        return image.convert("RGB")
    layers = image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] == 255:
        return layers.convert("RGB")
    notes.append("transparent parts on white")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _rescaled(name: str, image: Image.Image, notes: list[str], window: Window | None = None) -> Image.Image:
    """Scales grey values of any range to 8 bits: the lowest becomes 0, the highest 255; or those of the window."""
    values = np.asarray(image, dtype=np.float64)
    if window == "file":
        raise no_own_window(name, "DICOM and NIfTI can")
    if window is not None:
        return Image.fromarray(windowed(name, values, window, notes))
    require_finite(name, values)
    low, high = float(values.min()), float(values.max())
    kind = "float" if image.mode == "F" else "16-bit" if low >= -(2**15) and high < 2**16 else "32-bit"
    notes.append(f"{kind} rescaled from {low:g}..{high:g}")
    return Image.fromarray(to_bytes(values, low, high))


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
        return _listed(path) if path.suffix.lower() == ".txt" else [path]
    if path.is_dir():
        return sorted(_below(path), key=natural)
    try:
        names = glob.glob(str(source), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute patterns
    except (ValueError, re.error):
        return []
    return sorted((p for p in map(Path, names) if _is_image(p)), key=natural)


def _listed(path: Path) -> list[Path]:
    """Lists the files named in a text file, a line each."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    for name in names:
        require_local(name)
    files = [path.parent / Path(name).expanduser() for name in names]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise KonkyoError(f"{path} lists image files, a line each; there is no file {missing}")
    return files


def require_local(source: str | Path) -> None:
    """Raises KonkyoError for an address on the web: nothing is downloaded."""
    address = re.match(r"([a-z][a-z0-9+.-]+):/|data:", str(source), re.IGNORECASE)
    if address and not Path(source).exists():
        shown = str(source)[:80]
        raise KonkyoError(f"{shown!r} is an address, and konkyo downloads nothing: save the file, and give its path")


def _below(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise KonkyoError(f"{error.filename} cannot be listed: {error.strerror}")

    visited, lost = set[str](), list[Path]()
    for where, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        if (real := os.path.realpath(where)) in visited:  # links that lead in a circle
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(where) / name for name in names):
            if _is_image(path):
                yield path
            elif is_image_name(path.name) and path.is_symlink():
                lost.append(path)
    if lost:
        several = f"{len(lost)} links lead" if len(lost) > 1 else "a link leads"
        warn(f"in {folder} {several} to no file and {'are' if len(lost) > 1 else 'is'} left out: {lost[0]}")


def _is_image(path: Path) -> bool:
    return is_image_name(path.name) and path.is_file()


def is_image_name(name: str) -> bool:
    """Tells whether a file's name has a suffix of images, and is not hidden."""
    known = PurePath(name).suffix.lower() in _suffixes() or name.lower().endswith(scans.SUFFIXES)
    return known and not name.startswith(".")


def natural(path: PurePath) -> list[tuple[list[str | int], str]]:
    """Returns a sorting key under which "img2" comes before "img10", folder by folder."""

    def pieces(name: str) -> list[str | int]:
        return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", name.casefold()))]

    return [(pieces(part), part) for part in path.parts]
