"""Path: what happens on the way from a baseline to the picture, where Adaptive IG-ODAM places its nodes."""

from __future__ import annotations

import gradio as gr
from markupsafe import Markup

from konkyo.apps.web.page import Page
from konkyo.apps.web.pictures import image
from konkyo.apps.web.session import Session, explained
from konkyo.apps.web.words import word
from konkyo.draw.sheets import path_figure
from konkyo.errors import KonkyoError
from konkyo.explanation.result import Explanation

METHOD = "adaptive_ig_odam"


def path_view(session: Session) -> str:
    """Returns the picture of the paths of all methods that have one."""
    walked = [result for result in session.results.values() if result.path is not None]
    if not walked:
        return word(session.lang, "path.none")
    figure = image(path_figure(walked, 0), word(session.lang, "path.figure"), 1200)
    return str(Markup('<div class="wide">{}</div>').format(figure))


def walk(session: Session) -> None:
    """Makes the map of Adaptive IG-ODAM, whose path is drawn. KonkyoError: nothing is chosen, or it does not apply."""
    with session.running() as run:
        picture, chosen = session.request()
        outcome = explained(session.model, picture, chosen.request, METHOD, run)
        if not isinstance(outcome, Explanation):
            raise KonkyoError(outcome)
        session.results[METHOD] = outcome


def path_panel(page: Page) -> None:
    """Builds the panel, and says what its events do."""
    page.named(gr.Markdown(), value="path.how")
    go = page.named(gr.Button(elem_id="walk"), value="path.go")
    page.drawing(path_view, lambda s: tuple(r for r in s.results.values() if r.path is not None), elem_id="path")
    page.on(go.click, walk)
