"""Curves of metrics as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from PIL import Image

from konkyo.draw.sheets import to_image


def curves_figure(curves: Mapping[str, Mapping[str, Sequence[float]]], better: Mapping[str, str]) -> Image.Image:
    """Draws mean curves, a panel per metric and a line per method, over the share of the metric's places (0 to 1)."""
    figure = Figure(figsize=(4.6 * len(curves), 3.8), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, lines) in zip(panels, curves.items(), strict=True):
        for method, values in lines.items():
            last = max(1, len(values) - 1)
            panel.plot([i / last for i in range(len(values))], values, label=method, linewidth=1.6)
        panel.set_title(f"{name} {better[name]}", fontsize=10)
        panel.set_xlabel("from the first to the last place of the curve", fontsize=9)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=9, frameon=False)
    return to_image(figure)


def convergence_figure(nodes: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Image.Image:
    """Draws the error of every method over the number of nodes, both on logarithmic axes."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained", dpi=120)
    panel = figure.subplots()
    for method, values in errors.items():
        panel.loglog(nodes, values, marker="o", label=method, linewidth=1.6)
    panel.set_xticks(list(nodes), [str(count) for count in nodes])
    panel.minorticks_off()
    panel.set_xlabel("nodes", fontsize=9)
    panel.set_ylabel("distance from the integral", fontsize=9)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=9)
    return to_image(figure)
