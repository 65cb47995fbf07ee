"""Compare: two maps, or a map and its picture, under one slider."""

from __future__ import annotations

from typing import Any

import gradio as gr

from konkyo.apps.web.page import Page
from konkyo.apps.web.pictures import slider
from konkyo.apps.web.session import Session
from konkyo.apps.web.words import word
from konkyo.errors import unknown

PICTURE = "picture"
"""What stands for the picture without a map."""


def compare_view(session: Session) -> str:
    """Returns the two that are compared, on top of each other."""
    if not session.results:
        return word(session.lang, "maps.first")
    this, that = pair_of(session)
    pictures = {name: result.overlay(0, brightness="full") for name, result in session.results.items()}
    pictures[PICTURE] = next(iter(session.results.values())).picture(0)
    label = word(session.lang, "compare.slider")
    names = [word(session.lang, "compare.picture") if name == PICTURE else name for name in (this, that)]
    return slider((pictures[this], names[0]), (pictures[that], names[1]), label)


def pair_of(session: Session) -> tuple[str, str]:
    """Returns the names of the two that are compared: those chosen, else the first two there are."""
    offer = [*session.results, PICTURE]
    this = session.pair[0] if session.pair[0] in offer else offer[0]
    others = [name for name in offer if name != this]
    that = session.pair[1] if session.pair[1] in offer else others[0]
    return this, that


def _names(session: Session, side: int) -> Any:
    if not session.results:
        return gr.update(choices=[], value=None)
    choices = [(word(session.lang, "compare.picture") if n == PICTURE else n, n) for n in (*session.results, PICTURE)]
    return gr.update(choices=choices, value=pair_of(session)[side])


def choose_pair(session: Session, this: Any, that: Any) -> None:
    """Takes the two that are compared. KonkyoError: one of them has no map."""
    for name in (this, that):
        if name is not None and name not in session.results and name != PICTURE:
            raise unknown("map", str(name)[:80], [*session.results, PICTURE])
    session.pair = (this or "", that or "")


def compare_panel(page: Page) -> None:
    """Builds the panel, and says what its events do."""
    with gr.Row():
        this = page.named(gr.Dropdown([], elem_id="this"), label="compare.this")
        that = page.named(gr.Dropdown([], elem_id="that"), label="compare.that")
    page.shown(this, lambda session: _names(session, 0), lambda s: (*s.results, *s.pair))
    page.shown(that, lambda session: _names(session, 1), lambda s: (*s.results, *s.pair))
    page.drawing(compare_view, lambda s: (*s.results.values(), *s.pair), elem_id="compare")
    for component in (this, that):
        page.on(component.input, choose_pair, [this, that])
