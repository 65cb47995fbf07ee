"""The words of the page, by language."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from konkyo.report.html import strings as report_strings
from konkyo.report.page import LANGUAGES

__all__ = ["LANGUAGES", "language_of", "strings", "word"]


@cache
def strings() -> dict[str, dict[str, str]]:
    """Returns the words of the page by language and key."""
    folder = files("konkyo.apps.web") / "strings"
    return {lang: json.loads((folder / f"{lang}.json").read_text(encoding="utf-8")) for lang in LANGUAGES}


def word(lang: str, key: str, **values: Any) -> str:
    """Returns the words of a key; those of the report where the page has none of its own, else the key itself."""
    for table in (strings(), report_strings()):
        if key in table[lang]:
            return table[lang][key].format(**values) if values else table[lang][key]
    return key


def language_of(header: str | None) -> str:
    """Returns the language of a browser from its header Accept-Language.

    >>> language_of("ja,en;q=0.8"), language_of("de-DE,en"), language_of(None)
    ('ja', 'en', 'en')
    """
    return "ja" if (header or "").lower().startswith("ja") else "en"
