"""Windows of grey values: which values of a file of more than 8 bits become black and white."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from konkyo.errors import ImageError, KonkyoError

Window: TypeAlias = "tuple[float, float] | Literal['file']"
"""(low, high) in the file's units, of DICOM after rescaling: Hounsfield of CT; or the window that the file names."""

FORM = "LOW..HIGH in the file's own units, as in -160..240, or file"


def window_of(window: str | Window | None) -> Window | None:
    """Returns the window that a text means, "-160..240" or "file"; None of "" and None. KonkyoError: no window.

    >>> window_of("-160..240")
    (-160.0, 240.0)
    """
    if window is None or window == "":
        return None
    if window == "file":
        return "file"
    try:
        low, high = map(float, window.split("..", 1) if isinstance(window, str) else window)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise KonkyoError(f"a window is {FORM}, the lower value first; got {window!r}")
    return low, high


def to_bytes(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Returns round(255 (v - low) / (high - low)), cut off at 0 and 255; zeros where high is not above low."""
    scaled = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    return np.asarray(scaled.round().clip(0, 255), dtype=np.uint8)


def windowed(name: str, values: NDArray[Any], window: tuple[float, float], notes: list[str]) -> NDArray[np.uint8]:
    """Returns the values through a window, and notes it. ImageError: NaN or infinite values."""
    require_finite(name, values)
    notes.append(f"window {window[0]:g}..{window[1]:g}")
    return to_bytes(values, *window)


def require_finite(name: str, values: NDArray[Any]) -> None:
    """Raises ImageError where there are NaN or infinite values."""
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values; replace them, then save it again")


def no_window(name: str, what: str) -> ImageError:
    """Returns the error for a picture that a window is not of."""
    return ImageError(f"{name} {what}; a window is of grey values of more than 8 bits: leave it out for this file")


def no_own_window(name: str, where: str) -> ImageError:
    """Returns the error for a file that names no window."""
    return ImageError(f"{name} names no window of its own ({where}): give one as LOW..HIGH")
