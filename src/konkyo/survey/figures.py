"""The figures of an analysis: votes by item, preferences with their intervals, and strengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from PIL import Image

from konkyo.draw.consistency import shortened
from konkyo.draw.intervals import Measured, intervals_figure
from konkyo.draw.sheets import to_image

if TYPE_CHECKING:
    from konkyo.survey.analysis import Analysis, ItemVotes

_COLOURS = ("#1f5fa8", "#c9c9c9", "#d9822b")  # the first method, ties, the second: apart for the colour-blind, too
_MOST = 60  # items in a picture
_LONGEST = 28  # characters of an item's name


def figures(analysis: Analysis) -> dict[str, Image.Image]:
    """Returns the figures by file name; `Analysis.figures` says which."""
    pictures = {}
    pairs = list(dict.fromkeys((row.first, row.second) for row in analysis.by_item))
    for first, second in pairs:
        ending = "" if len(pairs) == 1 else f"-{pairs.index((first, second)) + 1}"
        rows = [row for row in analysis.by_item if (row.first, row.second) == (first, second)]
        pictures[f"votes{ending}.png"] = votes_figure(rows)
    if analysis.preferences:
        pictures["preference.png"] = _preferences(analysis)
    if analysis.strengths is not None and analysis.strengths.methods:
        pictures["strengths.png"] = _strengths(analysis)
    return pictures


def votes_figure(rows: list[ItemVotes]) -> Image.Image:
    """Draws the votes on every item as a bar of three parts, the clearest for the first method on top.

    A star marks items whose votes differ from chance, p < 0.05 each; of more than 60 items, every so-manieth is shown.
    """
    ordered = sorted(rows, key=lambda r: (r.for_second - r.for_first, r.ties, r.item))
    shown = ordered[:: -(-len(ordered) // _MOST)]
    figure = Figure(figsize=(6.4, 0.24 * len(shown) + 1.5), layout="constrained", dpi=120)
    axes = figure.subplots()
    places = range(len(shown))
    left = [0] * len(shown)
    parts = ((shown[0].first, "for_first"), ("no difference", "ties"), (shown[0].second, "for_second"))
    for colour, (name, column) in zip(_COLOURS, parts, strict=True):
        counts = [getattr(row, column) for row in shown]
        axes.barh(places, counts, left=left, color=colour, label=shortened(name, _LONGEST), height=0.8)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    for place, row in enumerate(shown):
        if row.p < 0.05:
            axes.text(left[place] + 0.01 * max(left), place, "*", va="center", fontsize=9)
    axes.set_yticks(places, [shortened(row.image, _LONGEST) for row in shown], fontsize=7.5, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("votes; *: differ from chance for this item alone, p < 0.05", fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8.5, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # "$" in a name is no formula
    return to_image(figure)


def _preferences(analysis: Analysis) -> Image.Image:
    """Draws the rate of every pair: raters kept and all, ties dropped and half, and the share of items won."""
    panels = []
    for first, second in dict.fromkeys((p.first, p.second) for p in analysis.preferences):
        rows = [p for p in analysis.preferences if (p.first, p.second) == (first, second)]
        values = [
            (f"{'' if p.raters == 'kept' else 'all raters, '}ties {p.ties}", p.rate, p.low, p.high)
            for p in sorted(rows, key=lambda p: (p.raters != "kept", p.ties))
            if analysis.excluded or p.raters == "kept"
        ]
        main = analysis.preference(first, second)
        if main is not None:
            values.append(("two-way bootstrap", main.rate, main.bootstrap_low, main.bootstrap_high))
            values.append(("items won", main.items.share, main.items.low, main.items.high))
        title = f"for {shortened(first, _LONGEST)}\nagainst {shortened(second, _LONGEST)}"
        panels.append(Measured(title, values, best=[values[0][0]]))
    figure = intervals_figure(panels, "shares, 95 % intervals; dashed: no preference")
    for axes in figure.axes:
        axes.set_xlim(0, 1)
        axes.axvline(0.5, color="#404040", linewidth=0.9, linestyle="--", zorder=0)
    return to_image(figure)


def _strengths(analysis: Analysis) -> Image.Image:
    assert analysis.strengths is not None  # the caller has looked
    values = [(s.method, s.value, s.low, s.high) for s in analysis.strengths.methods]
    figure = intervals_figure(
        [Measured("strength (Bradley–Terry, logarithm)", values, best=[values[0][0]])],
        "mean 0; bars: 95 % intervals, raters and items drawn at random",
    )
    figure.set_size_inches(5.6, 0.34 * len(values) + 1.4)
    figure.axes[0].axvline(0, color="#404040", linewidth=0.9, linestyle="--", zorder=0)
    return to_image(figure)
