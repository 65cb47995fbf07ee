"""Maps of signals and spectrograms: curves coloured by evidence, and evidence as a contour over frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from konkyo.draw.clips import shared_limits
from konkyo.draw.overlay import Limits, colour_table
from konkyo.draw.sheets import to_image

_WIDE, _LEAD, _DPI = 8.6, 0.95, 110
_MOST_LEADS = 12


def signal(
    values: Tensor, map_: Tensor, step: float, unit: str, leads: Sequence[str] = (), limits: Limits | None = None
) -> Image.Image:
    """Draws the channels of a signal (C, L), each a curve in the colours of a map (L,), and the map underneath.

    `step`: from one sample to the next, in `unit`. At most twelve channels are drawn, and the others told.
    """
    low, high = limits or shared_limits(map_)
    norm, colours = Normalize(low, high if high > low else low + 1), ListedColormap(colour_table(low < 0) / 255)
    shown = min(len(values), _MOST_LEADS)
    at = np.arange(values.shape[1]) * step
    figure = Figure(figsize=(_WIDE, _LEAD * shown + 0.95), dpi=_DPI, layout="constrained", facecolor="white")
    rows = figure.subplots(shown + 1, 1, sharex=True, squeeze=False, height_ratios=[*[1.0] * shown, 0.28])[:, 0]
    strong = map_.detach().cpu().float().numpy()
    for channel, ax in enumerate(rows[:shown]):
        curve = values[channel].detach().cpu().float().numpy()
        ax.plot(at, curve, color="#b0b0b0", linewidth=0.7)
        points = np.stack([at, curve], 1)[:, None]
        line = LineCollection(
            list(np.concatenate([points[:-1], points[1:]], 1)), cmap=colours, norm=norm, linewidth=2.1
        )
        line.set_array((strong[:-1] + strong[1:]) / 2)
        line.set_alpha(_strength((strong[:-1] + strong[1:]) / 2, low, high))
        ax.add_collection(line)
        ax.set_ylabel(
            leads[channel] if channel < len(leads) else f"channel {channel}", fontsize=8, rotation=0, ha="right"
        )
        ax.tick_params(labelsize=7, length=2)
        ax.spines[["top", "right"]].set_visible(False)
    bar = rows[-1]
    bar.imshow(strong[None], aspect="auto", cmap=colours, norm=norm, extent=(at[0] - step / 2, at[-1] + step / 2, 0, 1))
    bar.set_yticks([])
    bar.set_ylabel("evidence", fontsize=8, rotation=0, ha="right", va="center")
    bar.tick_params(labelsize=7.5, length=2)
    more = f"; {len(values) - shown} more channels" if len(values) > shown else ""
    bar.set_xlabel(("time in s" if unit == "s" else unit or "sample") + more, fontsize=8)
    return to_image(figure)


def spectrogram(
    values: Tensor, map_: Tensor, step: float, unit: str, limits: Limits | None = None, **style: Any
) -> Image.Image:
    """Draws a spectrogram (frequency, time) in grey, a map (frequency, time) over it in colours, and its half contour.

    Frequencies rise upwards. `step`: from one frame to the next, in `unit`.
    """
    del style
    low, high = limits or shared_limits(map_)
    norm, colours = Normalize(low, high if high > low else low + 1), ListedColormap(colour_table(low < 0) / 255)
    grey = values.detach().cpu().float().numpy()
    strong = map_.detach().cpu().float().numpy()
    figure = Figure(figsize=(_WIDE, 3.1), dpi=_DPI, layout="constrained", facecolor="white")
    ax = figure.subplots()
    extent = (0.0, values.shape[1] * step, 0.0, float(values.shape[0]))
    shades = (float(np.quantile(grey, 0.01)), float(np.quantile(grey, 0.99)))
    shades = shades if shades[1] > shades[0] else (shades[0], shades[0] + 1)
    ax.imshow(grey, aspect="auto", origin="lower", cmap="gray", vmin=shades[0], vmax=shades[1], extent=extent)
    alpha = 0.75 * _strength(strong, low, high)
    ax.imshow(strong, aspect="auto", origin="lower", cmap=colours, norm=norm, extent=extent, alpha=alpha)
    if strong.max() > 0 and strong.max() > strong.min():
        times = (np.arange(values.shape[1]) + 0.5) * step
        ax.contour(times, np.arange(values.shape[0]) + 0.5, strong, [strong.max() / 2], colors="white", linewidths=1.2)
    ax.set_xlabel("time in s" if unit == "s" else unit or "frame", fontsize=8)
    ax.set_ylabel("frequency bin", fontsize=8)
    ax.tick_params(labelsize=7.5, length=2)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=ax, fraction=0.03, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("evidence; line: half of its maximum", fontsize=8)
    return to_image(figure)


def _strength(values: Any, low: float, high: float) -> Any:
    """Returns how opaque values are drawn, from 0 where a scale is zero (or lowest) to 1 from half of its end on."""
    zero = 0.0 if low < 0 else low
    span = max(high - zero, 1e-30)
    return np.clip(2 * np.abs(np.asarray(values) - zero) / span, 0.0, 1.0)
