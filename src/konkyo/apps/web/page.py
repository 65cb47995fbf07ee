"""Page: what all panels share: the session, the words of every control, and what is drawn anew after an event."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import gradio as gr
from markupsafe import escape

from konkyo.apps.web.session import Session, Stopped
from konkyo.apps.web.shelf import Shelf
from konkyo.apps.web.words import word
from konkyo.errors import KonkyoError
from konkyo.utils.templates import text_of

View = Callable[[Session], Any]
"""A session -> what a component shows of it."""
Of = Callable[[Session], tuple[Any, ...]]
"""A session -> what a view is made of; while these stay the same, it is not drawn anew."""


def asset(name: str) -> str:
    """Returns a file of the page's own: its style, or its script."""
    return text_of("konkyo.apps.web", name)


class Page:
    """The page's components, each with the keys of its words and with what it shows of a session."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.state = gr.State(None, time_to_live=3600, delete_callback=_end)
        self._words: list[tuple[Any, Mapping[str, str]]] = []
        self._views: list[tuple[Any, View, Of | None]] = []
        self._events: list[tuple[Any, Callable[..., Any], Sequence[Any], dict[str, Any]]] = []

    def named(self, component: Any, **keys: str) -> Any:
        """Returns the component, and notes which of its properties are words of the page, and which."""
        self._words.append((component, keys))
        return component

    def shown(self, component: Any, view: View, of: Of | None = None) -> Any:
        """Returns the component, and notes what it shows of a session; without `of` it is sent after every event."""
        self._views.append((component, view, of))
        return component

    def drawing(self, view: View, of: Of, **settings: Any) -> Any:
        """Returns a component for pictures of the page's own, which tells the event `select`."""
        return self.shown(gr.HTML(js_on_load=asset("page.js"), **settings), view, of)

    @property
    def outputs(self) -> list[Any]:
        """Returns what is drawn anew after an event: the session, and every component that shows something of it."""
        return [self.state, *(component for component, _, _ in self._views)]

    def values(self, session: Session) -> list[Any]:
        """Returns the values of `outputs`."""
        return [session, *(self._value(session, number) for number in range(len(self._views)))]

    def _value(self, session: Session, number: int) -> Any:
        _, view, of = self._views[number]
        if of is None:
            return view(session)
        made_of = (session.lang, *of(session))
        before = session.sent.get(number)
        if before is not None and len(before) == len(made_of) and all(map(_same, before, made_of)):
            return gr.skip()
        value = view(session)
        session.sent[number] = made_of
        return value

    @property
    def worded(self) -> list[Any]:
        """Returns the components whose words change with the language."""
        return [component for component, _ in self._words]

    def words(self, session: Session) -> list[Any]:
        """Returns the updates of `worded`."""
        updates: list[dict[str, Any]] = [
            {name: word(session.lang, key) for name, key in keys.items()} for _, keys in self._words
        ]
        return [gr.update(**update) for update in updates]

    def on(self, event: Any, function: Callable[..., Any], inputs: Sequence[Any] = (), **settings: Any) -> None:
        """Notes that `function(session, *inputs)` runs at an event, and all that changed is drawn; see `wire`."""
        self._events.append((event, function, inputs, settings))

    def wire(self) -> None:
        """Tells Gradio of all events, once all components are known."""
        for event, function, inputs, settings in self._events:
            event(guarded(self, function), [self.state, *inputs], self.outputs, api_visibility="private", **settings)


def _same(one: Any, other: Any) -> bool:
    """Tells whether two things are one, or equal words or numbers; pictures are not compared by their pixels."""
    return one is other or (isinstance(one, (str, int, float)) and bool(one == other))


def _end(session: Session | None) -> None:
    """Stops what is computed for a user who left."""
    if session is not None:
        session.stop()


def known(page: Page, session: Session | None) -> Session:
    """Returns the session; a new one where it was given up meanwhile."""
    if session is not None:
        return session
    session = Session(page.shelf)
    session.choose_model(page.shelf.offer[0])
    return session


def guarded(page: Page, function: Callable[..., Any]) -> Callable[..., Iterator[list[Any]]]:
    """Returns the function as Gradio runs it: errors of the user's making are said, and all that changed is drawn."""

    @wraps(function)
    def run(session: Session | None, *values: Any) -> Iterator[list[Any]]:
        session = known(page, session)
        try:
            steps = function(session, *values)
            if isinstance(steps, Iterator):
                for _ in steps:
                    yield page.values(session)
        except Stopped:
            pass
        except (KonkyoError, MemoryError) as error:
            message = str(error) or word(session.lang, "error.memory")
            gr.Warning(str(escape(message)), duration=12, title=word(session.lang, "error"))
        yield page.values(session)

    return run


def event_data(event: gr.EventData) -> Mapping[str, Any]:
    """Returns what the page's script told of an event."""
    data = event._data
    return data if isinstance(data, Mapping) else {}


def number_of(value: Any) -> float:
    """Returns a number that came from a browser. KonkyoError: it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise KonkyoError(f"a number was expected; got {str(value)[:40]!r}")
    return float(value)


def box_of(values: Any) -> tuple[float, float, float, float]:
    """Returns a box that came from a browser, xyxy. KonkyoError: it is none."""
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        raise KonkyoError(f"a box is four numbers; got {str(values)[:60]!r}")
    x0, y0, x1, y1 = map(number_of, values)
    return x0, y0, x1, y1
