"""Explain: the methods that are chosen, their maps, and what is said of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from konkyo.apps.web.page import Page
from konkyo.apps.web.pictures import card, cards
from konkyo.apps.web.session import MOST_METHODS, Session
from konkyo.apps.web.shelf import groups_of_methods
from konkyo.apps.web.words import word
from konkyo.explanation.result import Explanation
from konkyo.explanation.words import decided_in_words, diagnosis_in_words, score_in_words
from konkyo.methods.base import methods


def maps_view(session: Session) -> str:
    """Returns the maps side by side, each with its score, the model's decision and its diagnosis."""
    entries = [map_card(session, name, result) for name, result in session.results.items()]
    entries += [card(name, None, [], reason) for name, reason in session.refused.items()]
    return cards(entries, word(session.lang, "maps.none"))


def map_card(session: Session, name: str, result: Explanation) -> Any:
    """Returns the map of a method with what is said of it."""
    decision = result.decisions[0] if result.decisions else None
    decided = decided_in_words(result, 0) or ("" if decision is None else decision.of_the_model)
    doubt = diagnosis_in_words(result, 0, message=True)
    if doubt:
        kind = result.diagnosis[0].kind
        translated = word(session.lang, f"diag.{kind}")
        doubt = f"{doubt}" if translated in (f"diag.{kind}", kind) else f"{translated} ({doubt})"
    lines = [_translated(session.lang, line) for line in (score_in_words(result, 0, place=False), decided)]
    return card(name, result.overlay(0), [*lines, "" if doubt else word(session.lang, "diag.fine")], doubt)


def _translated(lang: str, line: str) -> str:
    """Returns what was asked or decided with its first word in the language of the page."""
    first, colon, rest = line.partition(": ")
    return f"{word(lang, f'said.{first}')}: {rest}" if colon and first in ("asked", "decided") else line


def methods_view(session: Session) -> Any:
    """Returns the list of the methods for the model, by family, the usual ones first."""
    if not session.model_name:
        return gr.update()
    model = session.shelf.model(session.model_name)
    summaries = methods()
    choices = [
        (f"{name} · {word(session.lang, f'family.{group}')}", name)
        for group, names in groups_of_methods(model).items()
        for name in names
        if name in summaries
    ]
    return gr.update(choices=choices, value=list(session.methods) or [model.task.method], max_choices=MOST_METHODS)


def status_view(session: Session) -> str:
    """Returns how many maps there are, and whether more are being made."""
    if session.run.active:
        return word(session.lang, "status.running", count=len(session.results))
    key = "status.stopped" if session.run.stopped.is_set() and session.run.ran else "status.done"
    return word(session.lang, key, count=len(session.results)) if session.run.ran else ""


def explain_panel(page: Page) -> None:
    """Builds the panel, and says what its events do."""
    chosen = page.named(
        gr.Dropdown([], multiselect=True, max_choices=MOST_METHODS, elem_id="methods"),
        label="methods",
        info="methods.info",
    )
    page.shown(chosen, methods_view, lambda s: (s.model_name,))
    chosen.input(_wanted, [page.state, chosen], None, api_visibility="private", show_progress="hidden")
    with gr.Row():
        go = page.named(gr.Button(variant="primary", elem_id="explain"), value="explain")
        stop = page.named(gr.Button(variant="stop", elem_id="stop"), value="stop")
    status = page.shown(gr.Markdown(elem_id="status"), status_view)
    page.on(go.click, explain, [chosen], show_progress="full", show_progress_on=[status], concurrency_limit=4)
    stop.click(  # in the queue, as all that the gate lets through; it waits for nobody there
        _stop, [page.state], None, api_visibility="private", show_progress="hidden", concurrency_limit=None
    )


def maps_panel(page: Page) -> None:
    """Builds the part with the maps."""
    page.drawing(maps_view, lambda s: (*s.results.values(), *s.refused.values()), elem_id="maps")


def _stop(session: Session | None) -> None:
    if session is not None:
        session.stop()


def _wanted(session: Session | None, names: Any) -> None:
    """Notes the methods that are chosen, so that they stay when the language changes."""
    if session is not None and isinstance(names, list):
        session.methods = tuple(str(name) for name in names[:MOST_METHODS])


def explain(session: Session, names: Any, progress: gr.Progress = gr.Progress()) -> Iterator[str]:  # noqa: B008 - Gradio's own way
    """Yields the name of every method when its map is there."""

    def tell(name: str, done: int, total: int | None) -> None:
        progress((done, total), desc=name, unit=word(session.lang, "unit"))

    wanted = names if isinstance(names, list) else [names]
    yield from session.explain(wanted, tell)
