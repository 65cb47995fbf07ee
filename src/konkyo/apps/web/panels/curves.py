"""Curves: pixels go, or come, in the order of a map, and the score is shown on the way."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from konkyo.apps.web.page import Page
from konkyo.apps.web.pictures import animation, image
from konkyo.apps.web.session import Session
from konkyo.apps.web.words import word
from konkyo.draw.curves import curves_figure
from konkyo.errors import unknown
from konkyo.evaluation.perturbation import STEPS, curves


def curves_view(session: Session) -> str:
    """Returns the animations of deletion and insertion, and the curves of all maps that were measured."""
    if not session.curves:
        return word(session.lang, "curves.none" if session.results else "maps.first")
    last = list(session.curves.values())[-1]
    name = list(session.curves)[-1]
    parts = []
    for curve in last:
        captions = [
            f"{number / max(1, len(curve.scores) - 1):.0%} · {score:.3f}" for number, score in enumerate(curve.scores)
        ]
        captions = captions[len(captions) - len(curve.pictures) :]
        title = word(session.lang, f"curves.{curve.metric}", method=name, area=f"{curve.area:.3f}")
        moving = animation(curve.pictures, captions, title, word(session.lang, "curves.play"))
        parts.append(Markup("<div><h3>{}</h3>{}</div>").format(title, Markup(moving)))
    lines = {
        curve.metric: {method: by_number[number].scores for method, by_number in session.curves.items()}
        for number, curve in enumerate(last)
    }
    better = {curve.metric: "(lower is better)" if curve.better == "lower" else "(higher is better)" for curve in last}
    figure = image(curves_figure(lines, better), word(session.lang, "curves.figure"), 1200)
    return str(Markup('<div class="cards">{}</div><div class="wide">{}</div>').format(Markup("").join(parts), figure))


def measure(session: Session, name: Any) -> None:
    """Measures the curves of a map. KonkyoError: there is no such map."""
    if name not in session.results:
        raise unknown("map", str(name)[:80], session.results)
    with session.running() as run:
        picture = session.picture
        assert picture is not None
        measured = curves(session.model, picture, session.results[name], steps=STEPS, check=run.check)
        session.curves.pop(name, None)
        session.curves[name] = measured


def names_view(session: Session) -> Any:
    """Returns the list of the maps there are."""
    names = list(session.results)
    return gr.update(choices=names, value=next(reversed([*names, *session.curves]), None))


def curves_panel(page: Page) -> None:
    """Builds the panel, and says what its events do."""
    page.named(gr.Markdown(), value="curves.how")
    with gr.Row():
        name = page.named(gr.Dropdown([], elem_id="curve-of"), label="map")
        go = page.named(gr.Button(elem_id="measure"), value="curves.go")
    page.shown(name, names_view, lambda s: tuple(s.results))
    page.drawing(curves_view, lambda s: (*s.results, *s.curves.values()), elem_id="curves")
    page.on(go.click, measure, [name])
