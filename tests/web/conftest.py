"""The server of the page for all its tests, and pages opened on it that fail on any request to another place."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from konkyo.apps.web.session import Session
from konkyo.apps.web.shelf import Shelf

DATA = "scenes:4,objects=1"
CLASSIFIER = "konkyo/scenes-classifier"


@pytest.fixture(scope="session")
def shelf() -> Shelf:
    """Four samples, so that little is drawn."""
    return Shelf(data=DATA)


@pytest.fixture
def session(shelf: Shelf) -> Session:
    session = Session(shelf)
    session.choose_model(CLASSIFIER)
    return session


@pytest.fixture(scope="session")
def address(shelf: Shelf) -> Iterator[str]:
    """Where the page is served."""
    pytest.importorskip("gradio")
    uvicorn = pytest.importorskip("uvicorn")
    import socket

    from konkyo.apps.web.server import application

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    shelf.samples(CLASSIFIER)

    async def made() -> Any:
        return application(shelf, port=port)

    with ThreadPoolExecutor(1) as pool:  # where no loop runs, Gradio makes loops that it never closes
        app = pool.submit(asyncio.run, made()).result()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    for _ in range(600):
        if server.started:
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    listener.close()


def opened(chromium: Any, address: str, troubles: list[str], **options: Any) -> Any:
    """A page in a browser context of its own; errors in it and requests to anywhere else go to `troubles`."""
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    local = (address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(local) else troubles.append(request.url))
    page.on("console", lambda m: troubles.append(m.text) if "Content Security Policy" in m.text else None)
    page.goto(address)
    page.wait_for_selector("#picture .stage img")
    return page


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page anew; at the end there must have been no error in it, and no request to anywhere else."""
    contexts, troubles = [], list[str]()

    def made(**options: Any) -> Any:
        page = opened(chromium, address, troubles, **options)
        contexts.append(page.context)
        return page

    yield made
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="module")
def _shared(chromium: Any, address: str) -> Iterator[tuple[Any, list[str]]]:
    troubles = list[str]()
    page = opened(chromium, address, troubles)
    yield page, troubles
    page.context.close()


@pytest.fixture
def page(_shared: tuple[Any, list[str]]) -> Iterator[Any]:
    """One page for the tests that set all they need, for opening one takes 8 seconds; it begins with a sample."""
    page, troubles = _shared
    page.set_viewport_size({"width": 1280, "height": 900})
    for message in page.locator(".toast-close").all():  # what was said to the test before
        message.click()
    page.wait_for_function("document.querySelectorAll('.toast-close').length === 0")
    if page.input_value("#model input") != CLASSIFIER:
        page.click("#model input")
        page.click(f"[role=option]:has-text('{CLASSIFIER}')")
        page.wait_for_function("document.querySelectorAll('#choices .chip').length === 5")
    page.click("#tab-maps-button")
    page.click("#samples .thumbnail[data-choice='1']")
    page.wait_for_selector("#samples .thumbnail[data-choice='1'][aria-pressed=true]")
    page.click("#samples .thumbnail[data-choice='0']")
    page.wait_for_selector("#samples .thumbnail[data-choice='0'][aria-pressed=true]")
    page.wait_for_selector("#maps .card", state="detached")
    yield page
    assert troubles == []
