"""Pages of a package's own: its templates, its words in several languages, and values inside a script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from konkyo.utils.files import plain


def environment_of(package: str) -> Environment:
    """Returns what renders the templates/ of a package: text is escaped, and a name that is not given is an error.

    The filter `json` is `script_json`.
    """
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = script_json
    return environment


@cache
def text_of(package: str, name: str) -> str:
    """Returns a text file of a package, as in "templates/page.css"."""
    return files(package).joinpath(*name.split("/")).read_text(encoding="utf-8")


def strings_of(package: str, languages: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns the words in the strings/ of a package, by language and key."""
    return {lang: json.loads(text_of(package, f"strings/{lang}.json")) for lang in languages}


def script_json(value: Any) -> Markup:
    """Returns JSON for a script element: no character in it can end the element or begin a comment."""
    text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
