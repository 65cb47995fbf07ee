"""Pictures of a study of gaze consistency: curves, kappa against L, numbers against lambda, mean maps and maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from konkyo.draw.consistency import shortened
from konkyo.draw.overlay import SEQUENTIAL, overlay
from konkyo.draw.sheets import to_image
from konkyo.errors import KonkyoError
from konkyo.utils.statistics import LineFit

_MARKERS = "os^DvP*X<>"  # of levels, in their order
_GREY, _INK, _WRONG = "#606060", "#1a1a1a", "#b3261e"
_CELL, _APART = 1.1, 0.12  # inches of a map, and the space between groups of them as a share of it
_LONGEST = 14  # characters of a class's name
_HALF = 0.5  # the largest deviation that numbers in [0, 1] can have
_ROOM = 0.35  # above and below all seeds, as a share of their range: intervals of few seeds may run out of the panel


@dataclass(frozen=True)
class Line:
    """One run, epoch by epoch: the column "epoch" and those of the quantities. NaN: not known."""

    strength: float
    """lambda"""
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Point:
    """The point stands for one trained model."""

    strength: float
    level: int
    x: float
    y: float


@dataclass(frozen=True)
class SeedBar:
    """The bar shows one quantity at one lambda: mean, interval (NaN: none), and every seed's value."""

    mean: float
    low: float
    high: float
    seeds: Mapping[Any, float]
    """By what orders and pairs them."""


@dataclass(frozen=True)
class Grid:
    """Maps of the same pictures under several lambdas."""

    pictures: Sequence[Image.Image]
    labels: Sequence[str]
    """The class of each."""
    lines: Sequence[tuple[float, Tensor, Sequence[str | None]]]
    """(lambda, maps (P, h, w) in [0, 1], what each picture is wrongly taken for; None: rightly decided or not known)"""


def curves(
    panels: Mapping[str, Sequence[Line]], quantities: Mapping[str, str], rising: tuple[float, float] | None = None
) -> Image.Image:
    """Draws every quantity (column -> title) over the epochs: the mean of seeds, and a band from lowest to highest.

    A row of panels per key; of a single one, two panels stand beside each other. `rising`: between which epochs lambda
    grows, which is shaded.
    """
    single = len(panels) == 1
    across = min(2 if single else 4, len(quantities))
    down = len(panels) * math.ceil(len(quantities) / across)
    wide, tall = (4.9, 3.1) if single else (3.7, 2.7)
    figure = Figure(figsize=(wide * across, tall * down + 0.7), layout="constrained", dpi=120)
    axes = figure.subplots(down, across, squeeze=False)
    strengths = _strengths(line.strength for lines in panels.values() for line in lines)
    colours = colours_of(strengths)
    rising = rising if any(strengths) else None
    places = iter(axes.flat)
    for name, lines in panels.items():
        for column, title in quantities.items():
            axis = next(places)
            if rising is not None:
                axis.axvspan(*rising, color="#f0f0f0", linewidth=0)
            for strength in strengths:
                values = [line.values for line in lines if line.strength == strength and column in line.values]
                epochs, mean, low, high = _over(values, column)
                axis.fill_between(epochs, low, high, color=colours[strength], alpha=0.18, linewidth=0)
                mark = {"marker": "o"} if len(epochs) == 1 else {}
                axis.plot(epochs, mean, color=colours[strength], linewidth=1.7, **mark)
            axis.set_title(title if single else f"{name}: {title}", fontsize=10)
            axis.set_xlabel("epoch", fontsize=9)
            axis.xaxis.get_major_locator().set_params(integer=True)
            _plain(axis)
    for axis in places:
        axis.set_axis_off()
    grown = "; shaded: λ grows" if rising is not None else ""
    _legend(figure, colours, f"line: mean of seeds, band: lowest to highest seed{grown}")
    return to_image(figure)


def across(points: Sequence[Point], fit: LineFit | None, title: str, labels: tuple[str, str]) -> Image.Image:
    """Draws one point per trained model, with a dashed line and its band. `labels`: of the axes x and y."""
    figure = Figure(figsize=(6.6, 5.2), layout="constrained", dpi=120)
    axis = figure.subplots()
    colours, levels = colours_of(_strengths(p.strength for p in points)), sorted({p.level for p in points})
    if fit is not None:
        axis.fill_between(fit.x, fit.low, fit.high, color=_GREY, alpha=0.15, linewidth=0)
        axis.plot(fit.x, fit.y, color=_GREY, linestyle="--", linewidth=1.4)
    for point in points:
        marker = _MARKERS[levels.index(point.level) % len(_MARKERS)]
        style: dict[str, Any] = {"marker": marker, "s": 46, "edgecolor": "white", "linewidth": 0.7, "zorder": 3}
        axis.scatter([point.x], [point.y], color=colours[point.strength], **style)
    _within_points(axis, [p.y for p in points])
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(labels[0], fontsize=9)
    axis.set_ylabel(labels[1], fontsize=9)
    _plain(axis)
    caption = "one point per trained model, on the test set" + ("; dashed: least squares, 95 % band" if fit else "")
    _legend(figure, colours, caption, levels if len(levels) > 1 else ())
    return to_image(figure)


def within(
    panels: Mapping[str, Sequence[Line]],
    texts: Mapping[str, Mapping[float, str]],
    columns: tuple[str, str],
    *,
    after: int,
    warning: str,
) -> Image.Image:
    """Draws one point per epoch, a panel per key; pale and hollow up to epoch `after`. The warning is written above.

    `texts`: of every panel, what is written beside each lambda. `columns`: those of the axes x and y.
    """
    count = len(panels)
    across_ = min(3, count)
    down = math.ceil(count / across_)
    wide = 7.0 if count == 1 else 4.2 * across_
    figure = Figure(figsize=(wide, (4.6 if count == 1 else 3.4) * down + 1.3), layout="constrained", dpi=120)
    axes = figure.subplots(down, across_, squeeze=False)
    colours = colours_of(_strengths(line.strength for lines in panels.values() for line in lines))
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for axis, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        for line in lines:
            if not all(column in line.values for column in (*columns, "epoch")):
                continue
            x, y = (list(line.values[column]) for column in columns)
            late = [epoch > after for epoch in line.values["epoch"]]
            colour = colours[line.strength]
            axis.plot(x, y, color=colour, linewidth=0.6, alpha=0.35)
            for counted, face, alpha in ((False, "none", 0.45), (True, colour, 0.85)):
                chosen = [i for i, is_late in enumerate(late) if is_late == counted]
                style: dict[str, Any] = {"facecolor": face, "edgecolor": colour, "alpha": alpha, "s": 20}
                axis.scatter([x[i] for i in chosen], [y[i] for i in chosen], linewidth=0.8, **style)
        handles = [
            Line2D([], [], color=colours[strength], marker="o", linestyle="", label=f"λ = {strength:g}: {text}")
            for strength, text in sorted(texts[name].items())
        ]
        axis.legend(handles=handles, fontsize=8, framealpha=0.85, loc="best", title="r of each run", title_fontsize=8)
        axis.set_title(f"{name}: one point per epoch of every run, validation", fontsize=10 if count == 1 else 9)
        axis.set_xlabel("L", fontsize=9)
        axis.set_ylabel("κ", fontsize=9)
        _plain(axis)
    figure.suptitle(warning, fontsize=9, color=_WRONG, fontweight="bold")
    figure.supxlabel(f"hollow: up to epoch {after}, left out of every correlation", fontsize=9, color=_GREY)
    return to_image(figure)


def against(
    panels: Mapping[str, Mapping[float, Mapping[str, SeedBar]]], quantities: Mapping[str, str], foot: str
) -> Image.Image:
    """Draws every quantity over lambda, on a categorical axis: mean and interval, and a pale line per seed."""
    across_, down = len(quantities), len(panels)
    figure = Figure(figsize=(3.6 * across_, 3.1 * down + 0.5), layout="constrained", dpi=120)
    axes = figure.subplots(down, across_, squeeze=False)
    for row, (name, by_strength) in zip(axes, panels.items(), strict=True):
        strengths = sorted(by_strength)
        colours = colours_of(strengths)
        for axis, (quantity, title) in zip(row, quantities.items(), strict=True):
            bars = [by_strength[s][quantity] for s in strengths]
            for seed in sorted({seed for bar in bars for seed in bar.seeds}):
                values = [bar.seeds.get(seed, math.nan) for bar in bars]
                axis.plot(range(len(bars)), values, color="#b8b8b8", linewidth=0.9, marker=".", markersize=5, zorder=1)
            for place, (strength, bar) in enumerate(zip(strengths, bars, strict=True)):
                if math.isfinite(bar.low):
                    axis.plot([place, place], [bar.low, bar.high], color=colours[strength], linewidth=2, zorder=2)
                axis.scatter([place], [bar.mean], color=colours[strength], s=44, zorder=3, edgecolor="white")
            axis.set_xticks(range(len(strengths)), [f"{s:g}" for s in strengths])
            axis.set_xlim(-0.5, len(strengths) - 0.5)
            seeds = [value for bar in bars for value in bar.seeds.values()]
            ends = [end for bar in bars for end in (bar.low, bar.high)]
            _within_points(axis, seeds, ends)
            axis.set_title(title if down == 1 else f"{name}: {title}", fontsize=10)
            axis.set_xlabel("λ", fontsize=10)
            _plain(axis)
    figure.supxlabel(foot, fontsize=9, color=_GREY)
    return to_image(figure)


def mean_maps(
    classes: Sequence[str], strengths: Sequence[float], means: Tensor, deviations: Tensor, values: Tensor
) -> Image.Image:
    """Draws mean maps of every class and lambda (S, K, h, w), and the standard deviations; `values` (S, K): L.

    Scales from 0 to 1 and from 0 to 0.5; crossed out: no maps.
    """
    count, kinds = len(strengths), len(classes)
    figure = Figure(
        figsize=((2 * count + _APART) * _CELL + 2.2, kinds * (_CELL + 0.22) + 0.9), layout="constrained", dpi=120
    )
    # The empty column in the middle keeps the two kinds apart.
    ratios = [1.0] * count + [_APART / 2] + [1.0] * count
    axes = figure.subplots(kinds, 2 * count + 1, squeeze=False, width_ratios=ratios)
    for axis in axes.flat:
        axis.set_axis_off()
    for start, kind, maps, highest in ((0, "mean", means, 1.0), (count + 1, "standard deviation", deviations, _HALF)):
        shown = None
        for place in range(count):
            for row in range(kinds):
                axis, map_ = axes[row, start + place], maps[place, row]
                if not map_.isfinite().all():
                    axis.plot([0, 1, math.nan, 0, 1], [0, 1, math.nan, 1, 0], color="#c8c8c8", linewidth=0.8)
                    axis.set_box_aspect(1)
                else:
                    shown = axis.imshow(map_.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=highest)
                heads = f"λ = {strengths[place]:g}\n" if row == 0 else ""
                value = float(values[place, row])
                under = f"L {value:.3g}" if kind == "mean" and math.isfinite(value) else " "
                axis.set_title(heads + under, fontsize=8, pad=3)
        if shown is not None:
            bar = figure.colorbar(
                shown, ax=axes[:, start : start + count].ravel().tolist(), location="bottom", aspect=30, shrink=0.8
            )
            bar.set_label(kind, fontsize=9)
            bar.ax.tick_params(labelsize=8)
    for row, name in enumerate(classes):
        axis = axes[row, 0]
        axis.text(-0.1, 0.5, shortened(name, _LONGEST), transform=axis.transAxes, ha="right", va="center", fontsize=9)
    return to_image(figure)


def map_grid(grid: Grid, title: str) -> Image.Image:
    """Draws the pictures, and below each its map for every lambda, from its own lowest to its own highest value.

    KonkyoError: no pictures, or lines of other lengths.
    """
    count = len(grid.pictures)
    if not count or any(len(maps) != count or len(notes) != count for _, maps, notes in grid.lines):
        raise KonkyoError(f"a grid of maps needs a map per picture and lambda; got {count} pictures")
    down = len(grid.lines) + 1
    turns = [i for i in range(1, count) if grid.labels[i] != grid.labels[i - 1]]
    columns = [i + sum(turn <= i for turn in turns) for i in range(count)]  # an empty one before every other class
    ratios = [1.0 if i in columns else _APART for i in range(columns[-1] + 1)]
    close = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
    figure = Figure(figsize=(sum(ratios) * _CELL + 0.9, down * (_CELL + 0.16) + 0.6), layout=close, dpi=120)
    every = figure.subplots(down, len(ratios), squeeze=False, width_ratios=ratios)
    for axis in every.flat:
        axis.set_axis_off()
    axes = every[:, columns]
    names = ["image", *(f"λ = {strength:g}" for strength, *_ in grid.lines)]
    for row, name in zip(axes, names, strict=True):
        row[0].text(-0.1, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    for place, (picture, label) in enumerate(zip(grid.pictures, grid.labels, strict=True)):
        large = _enlarged(picture)
        axes[0, place].imshow(large)
        axes[0, place].set_title(shortened(label, _LONGEST), fontsize=9, pad=3)
        for row, (_, maps, notes) in enumerate(grid.lines, start=1):
            axis, note, map_ = axes[row, place], notes[place], maps[place]
            axis.imshow(overlay(large, map_, limits=(0.0, 1.0)))
            if float(map_.max()) <= 0:
                axis.text(
                    0.5,
                    0.5,
                    "blank",
                    transform=axis.transAxes,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="w",
                    bbox={"facecolor": "black", "alpha": 0.7, "pad": 2},
                )
            if note is not None:
                axis.set_title(f"✗ {shortened(note, _LONGEST)}", fontsize=8, pad=2, color=_WRONG)
    figure.suptitle(title, fontsize=10)
    return to_image(figure)


def colours_of(strengths: Sequence[float]) -> dict[float, Any]:
    """Returns a colour per lambda: grey for 0, warm below, from blue to green above, darker near 0."""
    below = sorted((s for s in strengths if s < 0), reverse=True)
    above = sorted(s for s in strengths if s > 0)
    colours: dict[float, Any] = {0.0: "#404040"} if 0 in strengths else {}
    for map_name, ends, of_sign in (("YlOrRd", (0.75, 0.45), below), ("viridis", (0.25, 0.75), above)):
        for i, strength in enumerate(of_sign):
            share = i / max(1, len(of_sign) - 1)
            colours[strength] = matplotlib.colormaps[map_name](ends[0] + share * (ends[1] - ends[0]))
    return {s: colours[s] for s in sorted(colours)}


# --- parts ------------------------------------------------------------------------------------------------------------


def _strengths(values: Any) -> list[float]:
    return sorted(set(values))


def _over(runs: Sequence[Mapping[str, Sequence[float]]], column: str) -> tuple[list[float], ...]:
    """Returns (epochs, mean, lowest, highest) of a column over runs, which may have come to different epochs."""
    at: dict[float, list[float]] = {}
    for values in runs:
        for epoch, value in zip(values["epoch"], values[column], strict=True):
            if math.isfinite(value):
                at.setdefault(epoch, []).append(value)
    epochs = sorted(at)
    return epochs, [sum(at[e]) / len(at[e]) for e in epochs], [min(at[e]) for e in epochs], [max(at[e]) for e in epochs]


def _within_points(axis: Axes, points: Sequence[float], ends: Sequence[float] = ()) -> None:
    """The panel's height: that of the points and some room, which long intervals and bands do not make larger."""
    known = [value for value in points if math.isfinite(value)]
    if not known:
        return
    low, high = min(known), max(known)
    room = (high - low or abs(high) or 1.0) * _ROOM
    reach = [end for end in ends if math.isfinite(end)]
    bottom = max(low - room, min([low - room / 4, *(end - room / 8 for end in reach)])) if ends else low - room / 2
    top = min(high + room, max([high + room / 4, *(end + room / 8 for end in reach)])) if ends else high + room / 2
    # What all seeds have between 0 and 1 is a share: nothing is to be seen outside.
    axis.set_ylim(max(bottom, -room / 8) if low >= 0 else bottom, min(top, 1 + room / 8) if high <= 1 else top)


def _plain(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, colours: Mapping[float, Any], caption: str, levels: Sequence[int] = ()) -> None:
    """Below the panels: the colours of lambdas, the markers of levels, and how to read the picture."""
    handles = [Line2D([], [], color=c, marker="o", linestyle="", label=f"λ = {s:g}") for s, c in colours.items()]
    for i, level in enumerate(levels):
        marker = _MARKERS[i % len(_MARKERS)]
        handles.append(
            Line2D([], [], color=_GREY, marker=marker, linestyle="", label=f"Level {level}" if level else "Backbone")
        )
    columns = min(7, len(handles), int(figure.get_figwidth() / 1.3))  # inches of an entry, so that none is cut off
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False, title=caption
    )
    legend.get_title().set(fontsize=9, color=_GREY)


def _enlarged(picture: Image.Image, least: int = 128) -> Image.Image:
    """Returns a small picture with the pixels it has, larger: maps are drawn as fine as they are shown."""
    times = max(1, math.ceil(least / max(picture.size)))
    size = (picture.width * times, picture.height * times)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if times > 1 else Image.Resampling.BICUBIC)
