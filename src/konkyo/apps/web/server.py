"""The server of the page: it listens on this machine only, takes files up to a size, and keeps nothing of its users."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from konkyo.apps.web.session import MOST_BYTES
from konkyo.apps.web.shelf import Shelf
from konkyo.errors import KonkyoError, install_hint

SESSIONS = 32
"""So many users' sessions are kept in memory; the one that was used longest ago goes first."""
WAITING = 32
"""So many requests wait for their turn at most; more are refused."""
AT_ONCE = 4
"""So many requests of one kind are worked on at once."""
_MOST_MESSAGE = 2**20
_ROUTES = re.compile(
    r"/(|config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(/\d+)?|assets/.*|static/.*|svelte/.*"
    r"|gradio_api/(queue/(join|data)|upload|upload_progress|heartbeat/\w+|startup-events|cancel|reset|app_id"
    r"|theme\.css|info|custom_component/.*|file=.*))/?"
)
"""What a browser needs of the server. All else that Gradio offers (calls by name, proxies, ...) is not there."""
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; object-src 'none'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]


class Gate:
    """The gate lets through what the page needs, from the page itself, and refuses messages that are too large.

    404: another route; 400: another host's name, as a page elsewhere might give this machine; 413: too large.
    """

    def __init__(self, app: Any, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if headers.get("host", "").rpartition(":")[0] not in self.hosts and headers.get("host") not in self.hosts:
            await _refuse(send, 400, "another host")
            return
        origin = headers.get("origin", "")
        if origin and re.sub(r"^https?://", "", origin) != headers.get("host"):
            await _refuse(send, 403, "another page")
            return
        if not _ROUTES.fullmatch(scope["path"]) or ".." in scope["path"]:
            await _refuse(send, 404, "not here")
            return
        most = MOST_BYTES + 2**16 if scope["path"].startswith("/gradio_api/upload") else _MOST_MESSAGE
        if not headers.get("content-length", "0").isdigit() or int(headers.get("content-length", "0")) > most:
            await _refuse(send, 413, f"at most {most >> 20} MB")
            return

        async def secured(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, secured)


async def _refuse(send: _Send, status: int, reason: str) -> None:
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def application(shelf: Shelf, host: str = "127.0.0.1", port: int = 7860) -> Gate:
    """Returns the page as an ASGI application. KonkyoError: gradio is not installed."""
    try:
        import fastapi
        import gradio as gr
    except ImportError as error:
        raise KonkyoError(f"the web page needs gradio, which is not installed: {install_hint('app')}") from error
    from konkyo.apps.web.layout import blocks_of, theme_of
    from konkyo.apps.web.page import asset

    os.environ["GRADIO_RUN_HISTORY"] = "False"  # no browser keeps what was computed; older versions do not know it
    blocks = blocks_of(shelf)
    blocks.state_session_capacity = SESSIONS
    blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        allowed_paths=[],
        show_error=False,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme_of(),
        css=asset("page.css"),
        js=asset("keyboard.js"),
    )
    blocks.has_launched = True  # of a mounted page that is not so, Gradio would copy any file that a request names
    hosts = frozenset({host, "localhost", "127.0.0.1", "[::1]"})
    return Gate(app, hosts)


def serve(shelf: Shelf, host: str = "127.0.0.1", port: int = 7860, ready: Callable[[str], None] | None = None) -> None:
    """Serves the page until it is interrupted or terminated; `ready` gets its address.

    KonkyoError: no gradio, or a taken port.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)  # by default a process would end here and leave what Gradio wrote
    with tempfile.TemporaryDirectory(prefix="konkyo-") as folder:  # what Gradio writes goes with the server
        os.environ["GRADIO_TEMP_DIR"] = folder
        app = application(shelf, host, port)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                message = f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port"
                raise KonkyoError(message) from error
            listener.listen()  # from here on a browser that comes waits, and is not turned away
            _run(app, listener, host, ready)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _run(app: Gate, listener: socket.socket, host: str, ready: Callable[[str], None] | None) -> None:
    """Serves an application on a socket until it is interrupted."""
    import uvicorn

    if ready is not None:
        ready(f"http://{host}:{listener.getsockname()[1]}/")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])
