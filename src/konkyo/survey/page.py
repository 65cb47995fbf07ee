"""The page that raters see: served, with its questions from the server, or as one file that holds them all."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from konkyo.survey.form import Form
from konkyo.survey.order import ALPHABET, ORDERS, Showing, order_of
from konkyo.survey.words import strings
from konkyo.utils.files import read_bytes, write_text
from konkyo.utils.templates import environment_of, text_of

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of what is served: nothing inline, nothing from elsewhere, no frame around it."""


def source(name: str) -> str:
    """Returns a file of the page: survey.css or survey.js."""
    return text_of("konkyo.survey", f"templates/{name}")


def served_page(form: Form, *, is_open: bool) -> str:
    """Returns the page as the server sends it. It holds no question; `is_open`: anybody may take part."""
    return _rendered(form, {"open": is_open, "offline": False}, style=None, script=None, policy=None)


def question_of(showing: Showing) -> dict[str, Any]:
    """Returns what a rater may know of an item: pictures on two sides, and no method."""
    item = showing.item
    return {
        "id": item.id,
        "target": item.target,
        "original": item.original,
        "left": item.pictures[showing.left],
        "right": item.pictures[showing.right],
        "instruction": item.expected if item.is_instruction else None,
    }


def write_offline(form: Form, folder: str | Path, file: str | Path) -> Path:
    """Writes a form as one HTML file that asks, keeps and hands out answers without a server. -> the file

    It holds the pictures and the orders of 1,024 raters, of which a new rater draws one; no name of a method, though
    whoever reads the file's source could find out which pictures follow the same pattern. KonkyoError: a picture is
    missing.
    """
    items = []
    for item in form.items:
        names = sorted(item.pictures.values())  # by name, so that their order tells nothing of the methods
        items.append(
            {
                "id": item.id,
                "target": item.target,
                "original": item.original,
                "pictures": names,
                "instruction": item.expected if item.is_instruction else None,
            }
        )
    data = {
        "open": True,
        "offline": True,
        "items": items,
        "orders": {code: _numbers(form, code, items) for code in ORDERS},
        "alphabet": ALPHABET,
        "pictures": {name: _uri(read_bytes(Path(folder) / name)) for name in sorted(form.digests)},
    }
    style, script = source("survey.css"), source("survey.js")
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; base-uri 'none'"
    write_text(Path(file), _rendered(form, data, style=Markup(style), script=Markup(script), policy=policy))
    return Path(file)


def _numbers(form: Form, code: str, items: list[dict[str, Any]]) -> list[int]:
    """Returns an order in short: of every question 100 times the item's place, and 10 times the left, and the right."""
    places = {item["id"]: place for place, item in enumerate(items)}
    numbers = []
    for showing in order_of(form, code):
        place = places[showing.item.id]
        sides = [items[place]["pictures"].index(showing.item.pictures[m]) for m in (showing.left, showing.right)]
        numbers.append(100 * place + 10 * sides[0] + sides[1])
    return numbers


def _uri(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode('ascii')}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


@cache
def _template() -> Template:
    return environment_of("konkyo.survey").get_template("survey.html")


def _rendered(form: Form, data: dict[str, Any], **parts: str | None) -> str:
    lang = next(iter(form.texts))
    known = {"form_hash": form.form_hash, "texts": form.texts, "strings": {k: strings()[k] for k in form.texts}}
    return _template().render(
        lang=lang, title=form.texts[lang]["title"], strings=known["strings"], data=known | data, **parts
    )
