"""The words of the page, by language."""

from __future__ import annotations

from functools import cache
from typing import Any

from konkyo.report.html import strings as report_strings
from konkyo.report.page import LANGUAGES
from konkyo.utils.templates import strings_of

__all__ = ["LANGUAGES", "language_of", "strings", "word"]


@cache
def strings() -> dict[str, dict[str, str]]:
    """Returns the words of the page by language and key."""
    return strings_of("konkyo.apps.web", LANGUAGES)


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
