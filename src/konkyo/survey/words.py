"""The words of a survey's page, in English and Japanese."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from konkyo.errors import KonkyoError, unknown
from konkyo.survey.form import LANGUAGES
from konkyo.utils.templates import strings_of

TEXTS = ("title", "question", "consent")
"""The texts of a form; the other words of the page belong to the page."""
_MOST = 20_000


@cache
def strings() -> dict[str, dict[str, str]]:
    """Returns the words of the page by language and key; with those of `TEXTS`, as they are where a form has none."""
    return strings_of("konkyo.survey", LANGUAGES)


def texts_of(given: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Returns title, question and consent by language: the usual ones, but for those that are given.

    `given`: by language; only languages that it has are offered, if it has any. KonkyoError: it is no such thing.
    """
    if not isinstance(given, Mapping):
        raise KonkyoError(f"texts are an object with {' and '.join(LANGUAGES)}; got {type(given).__name__}")
    for lang, texts in given.items():
        if lang not in LANGUAGES:
            raise unknown("language of a form's texts", lang, LANGUAGES)
        if not isinstance(texts, Mapping):
            raise KonkyoError(f"the texts of {lang} are an object with {', '.join(TEXTS)}")
        for key, text in texts.items():
            if key not in TEXTS:
                raise unknown(f"text of {lang}", key, TEXTS)
            if not isinstance(text, str) or not text.strip() or len(text) > _MOST:
                raise KonkyoError(f"the {key} of {lang} is a text of 1 to {_MOST} characters")
    usual = strings()
    return {lang: {key: usual[lang][key] for key in TEXTS} | dict(given.get(lang, {})) for lang in given or LANGUAGES}
