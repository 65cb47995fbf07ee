"""One Chromium for all browser tests, and pages opened in it that fail on any request or error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import example_page
from konkyo.report.html import html_of


@pytest.fixture(scope="session")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 24 images, as a file."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(html_of(example_page()), encoding="utf-8")
    return file


WINDOW = {"viewport": {"width": 1280, "height": 900}, "locale": "en-US"}


def opened(chromium: Any, troubles: list[str], **options: Any) -> Any:
    """An empty page in a context of its own, which writes to `troubles` what a report must not do."""
    context = chromium.new_context(**{**WINDOW, **options})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    own = ("file:", "data:", "blob:", "about:")
    page.on("request", lambda r: None if r.url.startswith(own) else troubles.append(r.url))
    return page


@pytest.fixture(scope="session")
def _shared(chromium: Any) -> Iterator[tuple[Any, list[str]]]:
    """One page for all that need no options: a new one costs more than loading a report in it."""
    troubles = list[str]()
    page = opened(chromium, troubles)
    yield page, troubles
    page.context.close()


@pytest.fixture
def visit(chromium: Any, _shared: tuple[Any, list[str]], report_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens a report anew; at the end there must be no message on the console, and no request but for the file.

    A second one without options takes the place of the first, and nothing of it stays.
    """
    shared, troubles = _shared
    troubles.clear()
    contexts = []

    def visited(fragment: str = "", *, file: Path | None = None, width: int = 1280, **options: Any) -> Any:
        page = opened(chromium, troubles, **options) if options else shared
        if options:
            contexts.append(page.context)
        else:
            page.emulate_media(media="null", color_scheme="null")
            page.set_viewport_size({"width": width, "height": 900})
            page.goto("about:blank")  # or another fragment of the same file would load nothing
        page.goto((file or report_file).as_uri() + fragment)
        return page

    yield visited
    for context in contexts:
        context.close()
    assert troubles == []
