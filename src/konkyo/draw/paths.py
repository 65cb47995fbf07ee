"""Pictures of paths: score, box and priorities on the way from a baseline to an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from konkyo.draw.sheets import to_image
from konkyo.draw.text import clean
from konkyo.engine.path import PathTrace
from konkyo.errors import KonkyoError
from konkyo.utils.tensors import overlap
from konkyo.utils.words import counted

_INK, _GREY = "#1a1a1a", "#606060"
_COLOURS = ("#2f6db5", "#d9562b", "#2e8b57", "#7a4fa3")  # of paths that are drawn together
_WIDTH, _INCH = 7.6, 1.1  # of the picture in inches: its width, and the height of a unit of a panel


class Integrated(Protocol):
    """A picture of paths needs this of an `Explanation` (which draws itself by this package and is not known here)."""

    @property
    def path(self) -> PathTrace | None:
        """This is what happened along the paths."""

    @property
    def method(self) -> str:
        """This is its name."""

    @property
    def labels(self) -> Sequence[str]:
        """These are the names of the rows."""

    @property
    def targets(self) -> Sequence[Any]:
        """These are what the rows explain."""


def path_figure(explanations: Integrated | Sequence[Integrated], row: int = 0) -> Image.Image:
    """Draws what happens to a row on the way from the baseline (alpha = 0) to the image (alpha = 1), in RGB.

    The upper panel has the score at every node. The next one, for a detection, has 1 - IoU of the matched box and the
    one at the end. (A hollow node: nothing is like the detection there, which counts as 1.) The lowest has the priority
    of every interval between nodes (Eq. 5), as wide as it is. Several explanations of the same row are drawn together.
    KonkyoError: a method that integrates along no path, or no such row.
    """
    several = list(explanations) if isinstance(explanations, Sequence) else [explanations]
    walks = [_Walk.of(explanation, row) for explanation in several]
    if not walks:
        raise KonkyoError("a picture of paths needs at least one explanation")
    moves = any(walk.away is not None for walk in walks)
    heights = [2.6, *([1.2] if moves else []), *[0.9] * len(walks)]
    tall = _INCH * sum(heights) + 1.1
    figure = Figure((_WIDTH, tall), dpi=100, facecolor="white")
    figure.subplots_adjust(left=0.105, right=0.975, top=1 - 0.6 / tall, bottom=0.5 / tall, hspace=0.28)
    axes = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    quantity, name = _quantity_of(several[0], row)
    title = f"{name} ({quantity} {walks[0].scores[-1]:.2f})"
    figure.text(0.105, 1 - 0.1 / tall, title[:90], va="top", size=11, weight="bold", color=_INK, parse_math=False)
    highest = max([1e-9, *(float(priority) for walk in walks for priority in walk.priorities)])
    for walk, axis, colour in zip(walks, axes[-len(walks) :], _COLOURS * len(walks), strict=False):
        _draw_nodes(walk, axes, colour)
        _draw_priorities(walk, axis, colour, highest)
    axes[0].set_ylabel(quantity)
    if moves:
        axes[1].set_ylabel("1 − IoU with\nthe final box")
        axes[1].set_ylim(-0.04, 1.04)
    for axis in axes:
        _finish(axis)
    axes[-1].set_xlabel("alpha: from the baseline (0) to the image (1)", fontsize=9, color=_INK)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.1, 1 - 0.28 / tall), "ncols": 4}
    plain: dict[str, Any] = {"fontsize": 9, "frameon": False, "borderpad": 0, "borderaxespad": 0}
    figure.legend(*axes[0].get_legend_handles_labels(), **place, **plain)
    return to_image(figure)


def _draw_nodes(walk: _Walk, axes: Sequence[Axes], colour: str) -> None:
    """Draws the scores of a path into the first panel, and how far its box is away into the second."""
    label = f"{walk.name}: {counted(len(walk.alphas), 'node')}"
    for axis, values in zip(axes, (walk.scores, walk.away), strict=False):
        if values is None:
            continue
        axis.plot(walk.alphas, values, color=colour, linewidth=1.3, label=label)
        for there, face in ((walk.there, colour), (~walk.there, "white")):
            style: dict[str, Any] = {"facecolor": face, "edgecolor": colour, "zorder": 3, "clip_on": False}
            axis.scatter(walk.alphas[there], values[there], s=18, **style)


def _draw_priorities(walk: _Walk, axis: Axes, colour: str, highest: float) -> None:
    """Draws a bar for every interval of a path, on the scale that all paths have."""
    widths = np.diff(walk.alphas)
    axis.bar(walk.alphas[:-1], walk.priorities, widths, align="edge", color=colour, edgecolor="white", linewidth=0.6)
    axis.set_ylim(0, highest * 1.15)
    axis.set_ylabel("priority")
    axis.text(0.995, 0.93, walk.name, color=colour, size=9, ha="right", va="top", transform=axis.transAxes)


def _finish(axis: Axes) -> None:
    """Gives a panel its limits, lines and letters."""
    axis.set_xlim(-0.01, 1.01)
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, colors=_GREY)
    axis.yaxis.label.set(size=9, color=_INK)
    axis.yaxis.set_label_coords(-0.065, 0.5)
    axis.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True)
class _Walk:
    """A walk is one row's path: nodes in order, and between them the intervals."""

    name: str
    alphas: NDArray[np.float64]
    scores: NDArray[np.float64]
    priorities: NDArray[np.float64]
    there: NDArray[np.bool_]
    """Whether anything is like the detection."""
    away: NDArray[np.float64] | None
    """1 - IoU with the box at the end; None for what is no detection."""

    @classmethod
    def of(cls, explanation: Integrated, row: int) -> _Walk:
        """Reads the path of one row. KonkyoError: the method has no path, or there is no such row."""
        trace = explanation.path
        if trace is None:
            raise KonkyoError(
                f"{explanation.method} keeps no path: it integrates along none, or explains a combination"
            )
        if not -len(trace.alphas) <= row < len(trace.alphas):
            raise KonkyoError(f"row {row} of an explanation with {len(trace.alphas)} rows")
        count = int(trace.alphas[row].isfinite().sum())
        alphas, scores, priorities = (
            values[row, :length].double().cpu().numpy()
            for values, length in ((trace.alphas, count), (trace.scores, count), (trace.priorities, count - 1))
        )
        boxes = trace.boxes[row, :count].double().cpu()
        there = boxes.isfinite().all(1)
        if not there.any():
            return cls(explanation.method, alphas, scores, priorities, np.ones(count, bool), None)
        away = torch.where(there, 1 - overlap(boxes.nan_to_num(0), boxes[there][-1]), 1.0)
        return cls(explanation.method, alphas, scores, priorities, there.numpy(), away.numpy())


def _quantity_of(explanation: Integrated, row: int) -> tuple[str, str]:
    """Returns (the quantity that is explained of a row, what that is the quantity of)."""
    target = explanation.targets[row]
    quantity = str(getattr(target, "quantity", getattr(target, "score", "score")))
    return quantity, clean(explanation.labels[row]).removesuffix(f", {quantity}")
