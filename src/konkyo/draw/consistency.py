"""Pictures of how alike maps are: mean and deviation of classes, distances, histograms, and the extreme images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from konkyo.draw.overlay import SEQUENTIAL, overlay
from konkyo.draw.sheets import to_image
from konkyo.draw.text import drawable
from konkyo.errors import KonkyoError

_CLASSES_ACROSS = 6  # classes beside each other
_CELL = 1.5  # inches
_APART = 0.25  # between typical and deviant images, of a cell
_LONGEST_NAME = 18  # characters of a name over a panel
_NAMED = 40  # more classes than that are numbered by the axis alone
_LARGEST_DEVIATION = 0.5  # the largest deviation that numbers in [0, 1] can have


@dataclass(frozen=True)
class Section:
    """A section is a class with its extreme images, each (picture, map, what is written under it)."""

    title: str
    typical: Sequence[tuple[Image.Image, Tensor, str]]
    deviant: Sequence[tuple[Image.Image, Tensor, str]]


def class_maps(names: Sequence[str], means: Tensor, deviations: Tensor) -> Image.Image:
    """Draws every class's mean map over its deviation, (K, h, w) each: scales from 0 to 1 and from 0 to 0.5."""
    across = min(_CLASSES_ACROSS, len(names))
    bands = math.ceil(len(names) / across)
    figure = Figure(figsize=(max(3, across) * _CELL + 1.5, bands * (2 * _CELL + 0.4)), layout="constrained", dpi=120)
    panels = figure.subplots(2 * bands, across, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    shown = {}
    for index, name in enumerate(names):
        band, place = divmod(index, across)
        for below, (kind, map_, highest) in enumerate(
            (("mean", means[index], 1.0), ("standard deviation", deviations[index], _LARGEST_DEVIATION))
        ):
            panel = panels[2 * band + below, place]
            shown[kind] = panel.imshow(map_.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=highest)
            if not below:
                panel.set_title(shortened(name), fontsize=9, parse_math=False)
    for line, (kind, image) in zip(panels, shown.items(), strict=False):  # beside the first band
        bar = figure.colorbar(image, ax=line.tolist(), aspect=10)
        bar.set_label(kind, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return to_image(figure)


def matrix(names: Sequence[str], distances: Tensor, distance: str) -> Image.Image:
    """Draws the distances (K, K) of classes' mean maps; 0 on the diagonal."""
    count = len(names)
    side = min(12.0, max(3.2, 1.8 + 0.42 * count))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained", dpi=120)
    panel = figure.subplots()
    image = panel.imshow(distances.numpy(), cmap="viridis", vmin=0)
    if count <= _NAMED:
        panel.set_xticks(range(count), [shortened(n) for n in names], rotation=90, fontsize=8, parse_math=False)
        panel.set_yticks(range(count), [shortened(n) for n in names], fontsize=8, parse_math=False)
    if count <= 12:
        highest = float(distances.max())
        for i in range(count):
            for j in range(count):
                value = float(distances[i, j])
                ink = "black" if value > 0.6 * highest else "white"
                panel.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=7, color=ink)
    panel.set_title(f"distance of mean maps ({distance})", fontsize=10, parse_math=False)
    bar = figure.colorbar(image, ax=panel, shrink=0.8)
    bar.ax.tick_params(labelsize=8)
    return to_image(figure)


def deviations(names: Sequence[str], values: Sequence[Sequence[float]], distance: str) -> Image.Image:
    """Draws a histogram per class of how far its maps are from their mean map; the line is the class's mean, its L."""
    across = min(_CLASSES_ACROSS // 2, len(names))
    bands = math.ceil(len(names) / across)
    figure = Figure(figsize=(max(2, across) * 2.7, bands * 1.7 + 0.4), layout="constrained", dpi=120)
    panels = figure.subplots(bands, across, squeeze=False, sharex=True)
    highest = max((max(of_class) for of_class in values if len(of_class)), default=0.0) or 1.0
    steps = [highest * i / 20 for i in range(21)]
    for index, panel in enumerate(panels.flat):
        if index >= len(names):
            panel.set_axis_off()
            continue
        of_class = values[index]
        panel.hist(of_class, bins=steps, color="#2f6db5")
        panel.axvline(sum(of_class) / max(1, len(of_class)), color="#d9562b", linewidth=1.4)
        panel.set_title(shortened(names[index]), fontsize=9, parse_math=False)
        panel.tick_params(labelsize=8, labelbottom=True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"distance from the mean map of the class ({distance}); line: their mean", fontsize=9)
    figure.supylabel("images", fontsize=9)
    return to_image(figure)


def extremes(sections: Sequence[Section]) -> Image.Image:
    """Draws a line per class: its most typical images, then its most deviant ones, the map over each.

    Maps are drawn on one scale, from 0 to 1. KonkyoError: no images.
    """
    widths = [max((len(getattr(s, side)) for s in sections), default=0) for side in ("typical", "deviant")]
    if not sum(widths):
        raise KonkyoError("a sheet of extreme images needs a class with two images or more")
    wide = sum(widths) + _APART
    figure = Figure(figsize=(wide * _CELL + 1.4, len(sections) * (_CELL + 0.3) + 0.4), layout="constrained", dpi=120)
    ratios = [1.0] * widths[0] + [_APART] + [1.0] * widths[1]
    panels = figure.subplots(len(sections), len(ratios), squeeze=False, width_ratios=ratios)
    for panel in panels.flat:
        panel.set_axis_off()
    for row, (line, section) in enumerate(zip(panels, sections, strict=True)):
        for start, heading, shown in (
            (0, "most typical\n", section.typical),
            (widths[0] + 1, "most deviant\n", section.deviant),
        ):
            for place, (picture, map_, note) in enumerate(shown):
                line[start + place].imshow(overlay(picture, map_, limits=(0.0, 1.0)))
                above = heading if row == 0 and place == 0 else ""
                line[start + place].set_title(above + note, fontsize=8, pad=3)
        line[0].text(
            -0.08,
            0.5,
            shortened(section.title),
            transform=line[0].transAxes,
            ha="right",
            va="center",
            fontsize=9,
            parse_math=False,
        )
    figure.supxlabel("over each image: the distance of its map from the mean map of its class", fontsize=9)
    return to_image(figure)


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    """Returns the name without its middle where it is longer than `longest` characters.

    >>> shortened("golden retriever", 9)
    'gold…ever'
    """
    half, name = (longest - 1) // 2, drawable(name)
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"
