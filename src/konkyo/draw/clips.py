"""Maps of videos: a strip of frames over the curve of evidence in time, and the frames of an animation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from konkyo.draw.overlay import Limits, overlay
from konkyo.draw.sheets import to_image
from konkyo.draw.text import Font

MOST = 8
"""So many frames are shown beside each other, at most."""
_SIDE, _GAP, _DPI = 132, 4, 100
_LINE, _EVIDENCE, _AGAINST = 20, "#c2410c", "#2f6db5"


def shared_limits(map_: Tensor) -> Limits:
    """Returns one scale for all parts of a map: around zero where it has a negative value."""
    low, high = float(map_.min()), float(map_.max())
    return (-max(-low, high), max(-low, high)) if low < 0 else (low, high)


def shown_frames(curve: Sequence[float], most: int = MOST) -> list[int]:
    """Returns the frames of a strip: spread evenly, and in place of the nearest the one with most evidence.

    >>> shown_frames([0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0], 4)
    [1, 3, 7, 10]
    """
    count = len(curve)
    if count <= most:
        return list(range(count))
    frames = [(2 * i + 1) * count // (2 * most) for i in range(most)]
    peak = int(np.argmax(np.asarray(curve)))
    nearest = min(range(most), key=lambda i: abs(frames[i] - peak))
    frames[nearest] = peak
    return sorted(set(frames))


def strip(frames: Sequence[Image.Image], map_: Tensor, times: Sequence[float], unit: str, **style: Any) -> Image.Image:
    """Draws a map (T, h, w) over at most eight frames, on one scale, and below them its mean over time.

    `times`: of every frame. `style`: see `konkyo.draw.overlay.overlay`.
    """
    curve = map_.flatten(1).mean(1).tolist()
    chosen = shown_frames(curve)
    style = {"limits": shared_limits(map_), **style}
    ratio = frames[0].height / frames[0].width
    size = (_SIDE, max(1, round(_SIDE * ratio)))
    wide = len(chosen) * (_SIDE + _GAP) + _GAP
    picture = Image.new("RGB", (wide, size[1] + 2 * _GAP + _LINE), "white")
    draw, font = ImageDraw.Draw(picture), Font(12)
    for place, number in enumerate(chosen):
        shown = overlay(frames[number].convert("RGB").resize(size, Image.Resampling.BICUBIC), map_[number], **style)
        left = _GAP + place * (_SIDE + _GAP)
        picture.paste(shown, (left, _GAP))
        font.draw(draw, (left, _GAP + size[1] + 3), _time_in_words(times[number], unit), "#404040")
    below = _curve(curve, times, unit, chosen, wide)
    whole = Image.new("RGB", (wide, picture.height + below.height), "white")
    whole.paste(picture, (0, 0))
    whole.paste(below, (0, picture.height))
    return whole


def animation(frames: Sequence[Image.Image], map_: Tensor, *, least: int = 224, **style: Any) -> list[Image.Image]:
    """Draws a map (T, h, w) over every frame, on one scale, with a bar that runs along below.

    Frames smaller than `least` pixels are enlarged.
    """
    style = {"limits": shared_limits(map_), **style}
    curve = map_.flatten(1).mean(1).clamp_min(0)
    curve = curve / curve.max().clamp_min(1e-12)
    times = max(1, -(-least // max(frames[0].size)))
    width, height = frames[0].width * times, frames[0].height * times
    pictures = []
    for number, frame in enumerate(frames):
        shown = overlay(frame.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), map_[number], **style)
        picture = Image.new("RGB", (width, height + 24), "white")
        picture.paste(shown, (0, 0))
        draw = ImageDraw.Draw(picture)
        for other in range(len(frames)):
            left, right = other * width // len(frames), (other + 1) * width // len(frames) - 2
            tall = max(1, round(20 * float(curve[other])))
            draw.rectangle(
                (left, height + 23 - tall, right, height + 23), fill=_EVIDENCE if other == number else "#d8d8d8"
            )
        pictures.append(picture)
    return pictures


def _time_in_words(time: float, unit: str) -> str:
    return f"{time:.2f} s" if unit == "s" else f"{unit or 'frame'} {time:g}"


def _curve(curve: Sequence[float], times: Sequence[float], unit: str, chosen: Sequence[int], wide: int) -> Image.Image:
    """Draws the mean of a map over time, with a mark at every frame that is shown."""
    figure = Figure(figsize=(max(wide, 320) / _DPI, 1.5), dpi=_DPI, layout="constrained", facecolor="white")
    ax = figure.subplots()
    values, at = np.asarray(curve), np.asarray(times, dtype=float)
    ax.fill_between(at, 0, values, where=list(values >= 0), color=_EVIDENCE, alpha=0.25, interpolate=True, linewidth=0)
    ax.fill_between(at, 0, values, where=list(values <= 0), color=_AGAINST, alpha=0.25, interpolate=True, linewidth=0)
    ax.plot(at, values, color="#303030", linewidth=1.3)
    ax.plot(at[list(chosen)], values[list(chosen)], "o", color=_EVIDENCE, markersize=4)
    ax.set_xlabel("time in s" if unit == "s" else unit or "frame", fontsize=8)
    ax.set_ylabel("evidence", fontsize=8)
    ax.tick_params(labelsize=7.5, length=2)
    ax.ticklabel_format(axis="y", scilimits=(-2, 3))
    ax.yaxis.get_offset_text().set_fontsize(7)
    ax.spines[["top", "right"]].set_visible(False)
    return to_image(figure)
