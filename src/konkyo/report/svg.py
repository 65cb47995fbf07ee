"""Curves as SVG: axes with titles and ticks, a line per method with its own dashes, bands of intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from konkyo.report.page import CurveFigure, Line

WIDTH, HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 48
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "12 4", "1 4", "6 2 1 2 1 2")
"""A line is told from the others by its dashes, too, not by its colour alone."""


def curve_view(curves: CurveFigure) -> dict[str, Any]:
    """Returns the figure for the template: paths in pixels, ticks with their words, and the legend."""
    lines = [line for line in curves.lines if len(line.x)]
    x0, x1 = _range([x for line in lines for x in line.x])
    y0, y1 = _range([y for line in lines for ys in (line.y, line.low, line.high) for y in ys])

    def across(x: float) -> float:
        return round(_LEFT + (x - x0) / (x1 - x0) * (WIDTH - _LEFT - _RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - _TOP - _BOTTOM), 1)

    def path(xs: Sequence[float], ys: Sequence[float]) -> str:
        points = [(across(x), down(y)) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        return "M" + "L".join(f"{x},{y}" for x, y in points) if points else ""

    def band(line: Line) -> str:
        if not line.low or not line.high:
            return ""
        forth, back = path(line.x, line.high), path(list(reversed(line.x)), list(reversed(line.low)))
        return f"{forth}L{back[1:]}Z" if forth and back else ""

    return {
        "curves": curves,
        "width": WIDTH,
        "height": HEIGHT,
        "frame": (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM),
        "x_ticks": [(across(v), f"{v:g}") for v in ticks(x0, x1)],
        "y_ticks": [(down(v), f"{v:g}") for v in ticks(y0, y1)],
        "lines": [
            {
                "name": line.name,
                "path": path(line.x, line.y),
                "band": band(line),
                "colour": k % 8,
                "dash": DASHES[k % len(DASHES)],
            }
            for k, line in enumerate(lines)
        ],
        "banded": any(line.low for line in lines),
    }


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers between two values, some `about` of them.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: list[float]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
