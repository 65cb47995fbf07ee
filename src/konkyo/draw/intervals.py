"""Values of methods with their intervals, and their curves, as figures of matplotlib's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from konkyo.draw.panels import Plot
from konkyo.draw.text import complete
from konkyo.errors import KonkyoError

_BEST, _OTHER = "#1f5fa8", "#707070"
_ACROSS = 3  # panels beside each other


@dataclass(frozen=True)
class Measured:
    """A panel shows the values of one metric: (name, value, low, high) of every method, and perhaps mean curves."""

    title: str
    values: Sequence[tuple[str, float, float, float]]
    best: Sequence[str] = ()
    """The methods that stand out, as the best; none where neither higher nor lower is better."""
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)


def intervals_figure(panels: Sequence[Measured], foot: str) -> Figure:
    """Draws a panel per metric: a point per method with its interval, and beside it the mean curves, if there are any.

    KonkyoError: no panels.
    """
    if not panels:
        raise KonkyoError("a figure of values needs a metric at least; there is none")
    count = sum(1 + bool(panel.curves) for panel in panels)
    across = min(_ACROSS, count)
    rows = math.ceil(count / across)
    methods = max(len(panel.values) for panel in panels)
    tall = max(1.6, 0.26 * methods + 0.9, 2.8 if any(panel.curves for panel in panels) else 0)
    figure = Plot(figsize=(4.2 * across, tall * rows + 0.35), layout="constrained", dpi=110, facecolor="white")
    axes = list(figure.subplots(rows, across, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    places = iter(axes)
    for panel in panels:
        _draw_values(panel, next(places))
        if panel.curves:
            _draw_curves(panel, next(places))
    figure.supxlabel(fill(foot, 64 * across), fontsize=8.5, parse_math=False)
    complete(figure)
    return figure


def _draw_values(panel: Measured, ax: Axes) -> None:
    for place, (name, value, low, high) in enumerate(panel.values):
        colour = _BEST if name in panel.best else _OTHER
        if not math.isnan(low):
            ax.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", alpha=0.6)
        ax.plot([value], [place], "o", color=colour, markersize=5)
    labels = [name for name, *_ in panel.values]
    ax.set_yticks(range(len(labels)), labels, fontsize=8.5, parse_math=False)
    for name, label in zip(labels, ax.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if name in panel.best else "normal")
    ax.set_ylim(len(labels) - 0.4, -0.6)
    _finish(ax, panel.title, "x")


def _draw_curves(panel: Measured, ax: Axes) -> None:
    for name, values in panel.curves.items():
        last = max(1, len(values) - 1)
        ax.plot([i / last for i in range(len(values))], values, label=name, linewidth=1.5)
    ax.set_xlabel("from the first to the last place of the curve", fontsize=8.5)
    ax.legend(fontsize=8, frameon=False)
    _finish(ax, f"mean curves of {panel.title}", "both")


def _finish(ax: Axes, title: str, grid: str) -> None:
    ax.set_title(title, fontsize=9.5, loc="left", parse_math=False)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis=grid, color="#e4e4e4", linewidth=0.6)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
