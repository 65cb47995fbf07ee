"""Neighbours: the images of the samples' data set that the picture resembles for the model, with their maps."""

from __future__ import annotations

import gradio as gr

from konkyo.apps.web.page import Page
from konkyo.apps.web.pictures import card, cards
from konkyo.apps.web.session import Session
from konkyo.apps.web.words import word
from konkyo.errors import KonkyoError

COUNT = 6
"""So many neighbours are shown."""


def neighbours_view(session: Session) -> str:
    """Returns the neighbours, the nearest first, each with its label, the model's decision and how near it is."""
    near = session.neighbours
    if near is None:
        return word(session.lang, "neighbours.none")
    entries = []
    for rank, name in enumerate(near.names[0]):
        decision, label = near.decisions[0][rank], near.labels[0][rank]
        similarity = float(near.similarities[0, rank])
        itself = name == session.name and similarity > 0.9999  # a sample that is in the data set
        lines = [
            word(session.lang, "neighbours.itself") if itself else "",
            word(session.lang, "neighbours.cosine", value=f"{similarity:.3f}"),
            word(session.lang, "neighbours.decision", label=decision),
            word(session.lang, "neighbours.label", label=label) if label else "",
        ]
        doubt = word(session.lang, "neighbours.wrong") if label and label != decision else ""
        entries.append(card(name, near.picture(0, rank), lines, doubt, 240))
    return cards(entries)


def find(session: Session) -> None:
    """Finds the neighbours of the picture. KonkyoError: no picture, or a model that this is not made for."""
    with session.running() as run:
        if session.picture is None:
            raise KonkyoError("choose a picture first")
        session.neighbours = session.shelf.neighbours(session.model_name, session.picture, COUNT, run.check)


def neighbours_panel(page: Page) -> None:
    """Builds the panel, and says what its events do."""
    page.named(gr.Markdown(), value="neighbours.how")
    go = page.named(gr.Button(elem_id="find"), value="neighbours.go")
    page.drawing(neighbours_view, lambda s: (s.neighbours,), elem_id="neighbours")
    page.on(go.click, find)
