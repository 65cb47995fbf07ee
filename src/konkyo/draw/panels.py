"""Overlays as a figure of matplotlib's: a panel each with what is said of it, and the scale of its map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from konkyo.draw.overlay import Limits, overlay
from konkyo.draw.text import Font, complete, text_lines
from konkyo.errors import KonkyoError

_WIDE = 2.9  # inches of a panel
_TITLE = 8.5  # points
_LINE = 0.15  # inches from one line of a title to the next
_LONGEST_TITLE = 7  # lines
_BAR = 0.45  # inches for a colour bar and its numbers
_DPI = 110


@dataclass(frozen=True, eq=False)
class Panel:
    """A panel is a map over its picture, with the lines that stand above it."""

    picture: Image.Image
    lines: Sequence[str]
    limits: Limits | None
    """The values at the ends of the map's colours; None: the map is constant, and has none."""


class Plot(Figure):
    """A plot is a figure that a notebook shows where it is the last value of a cell, also without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def figure_of(panels: Sequence[Panel], columns: int, title: str, ax: Axes | None = None) -> Figure:
    """Draws the panels, `columns` of them beside each other, or one panel into the axes `ax`. Nothing is shown.

    KonkyoError: no panels, several of them for one `ax`, or no columns.
    """
    if not panels:
        raise KonkyoError("a figure needs a row at least; there is none")
    if columns < 1:
        raise KonkyoError(f"a figure has 1 or more columns; got {columns}")
    if ax is not None:
        if len(panels) > 1:
            raise KonkyoError(f"ax= takes one row, as in result.plot(0, ax=ax); got {len(panels)}")
        _draw(panels[0], ax, _wrapped(panels[0]))
        figure = ax.figure
        assert isinstance(figure, Figure)
        complete(figure)
        return figure
    texts = [_wrapped(panel) for panel in panels]
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    shape = max(panel.picture.height / panel.picture.width for panel in panels)
    tall = _WIDE * min(shape, 2) + max(map(len, texts)) * _LINE + _BAR
    figure = Plot(figsize=(columns * _WIDE, lines * tall + 0.35), layout="constrained", dpi=_DPI, facecolor="white")
    axes = figure.subplots(lines, columns, squeeze=False)
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    for panel, text, place in zip(panels, texts, axes.flat, strict=False):
        _draw(panel, place, text)
    wide = columns * _WIDE * 72 / 9.5
    figure.suptitle("\n".join(text_lines(title, Font(10), wide * 9.5, 3)), fontsize=9.5, parse_math=False)
    complete(figure)
    return figure


def _wrapped(panel: Panel) -> list[str]:
    """Returns the lines above a panel, none wider than it."""
    font, width = Font(12), _WIDE * 72 * 12 / _TITLE * 0.95
    parts = [part for line in panel.lines for part in text_lines(line, font, width, 4)]
    return parts if len(parts) <= _LONGEST_TITLE else [*parts[: _LONGEST_TITLE - 1], "…"]


def _draw(panel: Panel, ax: Axes, lines: Sequence[str]) -> None:
    ax.imshow(panel.picture)
    ax.set_axis_off()
    ax.set_title("\n".join(lines), fontsize=_TITLE, loc="left", parse_math=False)
    figure = ax.figure
    if panel.limits is None:
        return
    low, high = panel.limits
    settings: dict[str, Any] = {"location": "bottom", "fraction": 0.05, "pad": 0.03, "aspect": 30}
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), _colours(low < 0)), ax=ax, **settings)
    ticks = (low, 0.0, high) if low < 0 else (low, high)
    bar.set_ticks(list(ticks), labels=[f"{value:.3g}" for value in ticks])
    bar.ax.tick_params(labelsize=7.5, length=2)
    numbers = bar.ax.get_xticklabels()
    numbers[0].set_horizontalalignment("left")
    numbers[-1].set_horizontalalignment("right")
    bar.outline.set_linewidth(0.4)


def _colours(signed: bool) -> ListedColormap:
    """Returns the colours of a map as they look over grey, as in the bars of contact sheets."""
    ends = (-1.0 if signed else 0.0, 1.0)
    strip = overlay(Image.new("RGB", (255, 1), "#969696"), torch.linspace(*ends, 255)[None], limits=ends)
    return ListedColormap(np.asarray(strip)[0] / 255)
