"""One Chromium for all browser tests, and pages opened in it that fail on any request or error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import chromium
from helpers.pages import example_page
from konkyo.report.html import html_of

__all__ = ["chromium"]


@pytest.fixture(scope="session")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 24 images, as a file."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(html_of(example_page()), encoding="utf-8")
    return file


@pytest.fixture
def visit(chromium: Any, report_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens a report; at the end there must be no message on the console, and no request but for the file."""
    contexts, troubles = [], []

    def opened(fragment: str = "", *, file: Path | None = None, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options})
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else troubles.append(r.url))
        page.goto((file or report_file).as_uri() + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []
