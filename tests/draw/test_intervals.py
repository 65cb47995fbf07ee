"""Figures of values with their intervals."""

from __future__ import annotations

from konkyo.draw.intervals import Measured, intervals_figure


def test_the_foot_of_a_single_panel_is_inside_the_figure() -> None:
    foot = "points: mean; lines: 95 % interval by resampling images; blue: the best"
    figure = intervals_figure([Measured("deletion", [("grad_cam", 0.2, 0.1, 0.3)])], foot)
    figure.canvas.draw()
    (text,) = [
        text for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if "points" in text.get_text()
    ]
    place = text.get_window_extent()
    assert 0 <= place.x0 < place.x1 <= figure.bbox.width
