"""serve(): the page of a survey on the web. FastAPI and uvicorn are imported in this file alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from konkyo.errors import KonkyoError, install_hint, unknown
from konkyo.survey.form import CODE, Answer, Form, Word, answer_of
from konkyo.survey.order import Showing, order_of
from konkyo.survey.page import POLICY, question_of, served_page, source
from konkyo.survey.store import RefusedError, Store

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise KonkyoError(f"a survey is served with FastAPI and uvicorn: {install_hint('survey')}") from error

LOCAL = ("127.0.0.1", "localhost")
MOST_BYTES = 8192
"""A request has no larger body: an answer has about 250 bytes."""
MOST_SECONDS = 20.0
"""The body of a request has come by then; the page gives up after as long, and sends again."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _Body(BaseModel):
    """What a rater sends: these fields, of these types, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")
    form_hash: str = Field(pattern="^[0-9a-f]{64}$")


class Consent(_Body):
    """The consent of a rater, who may have a code already."""

    consent: Literal[True]
    rater: str | None = Field(default=None, pattern=f"^{CODE.pattern}$")


class Given(_Body):
    """The answer to an item; `key` is the same when it is sent again."""

    answer: Word
    ms: int = Field(ge=0, le=86_400_000)
    timestamp: str = Field(min_length=10, max_length=40)
    position: int = Field(ge=1, le=100_000)
    key: str = Field(pattern="^[0-9a-f]{16,64}$")


def app_of(store: Store, folder: Path, *, hosts: tuple[str, ...] = LOCAL) -> FastAPI:
    """Returns the application: the page, the pictures of the form, and what a rater asks and sends.

    `hosts`: the names by which it may be called; "*": any. A web page elsewhere can so not reach a local survey by a
    name of its own. No answer ever leaves by the web, but for a rater's own words.
    """
    form = store.form
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Limited)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["*"] if "*" in hosts else list(hosts))

    @app.middleware("http")
    async def with_headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(RefusedError)
    async def refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        return JSONResponse({"detail": str(error)}, status_code=error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        wrong = sorted({".".join(map(str, entry["loc"][1:])) or "the body" for entry in error.errors()})
        return JSONResponse({"detail": f"not as expected: {', '.join(wrong)[:200]}"}, status_code=422)

    _add_page(app, store, folder)
    _add_raters(app, store, form)
    return app


def _add_page(app: FastAPI, store: Store, folder: Path) -> None:
    """Adds the page, its style and script, and the pictures, which are found by name in the form, never by path."""
    pictures = {name: folder / name for name in store.form.digests}

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(served_page(store.form, is_open=store.is_open))

    @app.get("/survey.css")
    def style() -> Response:
        return Response(source("survey.css"), media_type="text/css")

    @app.get("/survey.js")
    def script() -> Response:
        return Response(source("survey.js"), media_type="text/javascript")

    @app.get("/pictures/{name}")
    def picture(name: str) -> FileResponse:
        if name not in pictures:
            raise RefusedError("there is no such picture", 404)
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return FileResponse(pictures[name], media_type="image/webp", headers=headers)


def _add_raters(app: FastAPI, store: Store, form: Form) -> None:
    """Adds what a rater does: consents, goes on, answers."""

    def state(rater: str) -> dict[str, Any]:
        questions = [question_of(showing) for showing in order_of(form, rater)]
        return {"rater": rater, "consented": True, "items": questions, "answers": store.answers_of(rater)}

    @app.post("/api/raters", status_code=201)
    def consent(body: Consent) -> dict[str, Any]:
        _require_form(body, form)
        return state(store.enrol(body.rater))

    @app.get("/api/raters/{rater}")
    def rater_state(rater: str) -> dict[str, Any]:
        return state(rater) if store.has_consented(rater) else {"rater": rater, "consented": False}

    @app.put("/api/raters/{rater}/answers/{item}")
    def answer(rater: str, item: str, body: Given) -> dict[str, Any]:
        _require_form(body, form)
        store.has_consented(rater)
        showing = next((s for s in order_of(form, rater) if s.item.id == item), None)
        if showing is None:
            raise RefusedError("there is no such item", 404)
        store.add(_answer(rater, showing, body, form), body.key)
        return {"saved": item}


def _answer(rater: str, showing: Showing, body: Given, form: Form) -> Answer:
    """Returns the answer with its two methods, which the server knows and the rater does not."""
    values = body.model_dump(exclude={"key"})
    try:
        return answer_of(
            values
            | {"rater": rater, "item": showing.item.id, "method_left": showing.left, "method_right": showing.right},
            form,
        )
    except KonkyoError as error:
        raise RefusedError("the answer is not as expected", 422) from error


def _require_form(body: _Body, form: Form) -> None:
    if body.form_hash != form.form_hash:
        raise RefusedError("this page is of another form; please load it again", 409)


class _Limited:
    """It refuses requests whose body is too large, told or not, before it is whole, and bodies that come too slowly."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if not told.isdigit() or int(told) > MOST_BYTES:
                raise _too_large()
            body = await asyncio.wait_for(_body(receive), MOST_SECONDS)
        except RefusedError as error:
            await _refuse(error.status, str(error), scope, receive, send)
            return
        except asyncio.TimeoutError:
            await _refuse(408, f"a request comes within {MOST_SECONDS:g} seconds", scope, receive, send)
            return
        if body is None:
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replayed, send)


def _too_large() -> RefusedError:
    return RefusedError(f"a request has {MOST_BYTES} bytes at most", 413)


async def _body(receive: Receive) -> bytes | None:
    """Returns the body of a request; None of one who has gone. RefusedError: it is too large."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > MOST_BYTES:
            raise _too_large()
        if not message.get("more_body"):
            return b"".join(parts)


async def _refuse(status: int, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse({"detail": detail}, status_code=status, headers={"Connection": "close"})
    await response(scope, receive, send)


def serve(
    folder: str | Path,
    *,
    database: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    raters: int = 0,
    started: Callable[[str, list[str]], None] | None = None,
) -> None:
    """Serves the form of a folder until it is interrupted; answers are kept in `database` (answers.sqlite in it).

    `host`: the address it listens at; another than this machine's own opens it to others. `raters`: so many are
    invited by code, and nobody else may take part; 0: anybody who opens the page. `started` hears the address and the
    codes. KonkyoError: no form, another form's database, or an address that cannot be used.
    """
    if not 0 <= raters <= 10_000:
        raise unknown("number of raters", raters, ["0 to 10000"])
    form = Form.load(folder, verify=True)
    place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    store = Store(place / "answers.sqlite" if database is None else database, form)
    codes = store.invite(raters)  # with those of an earlier start
    hosts = LOCAL if host in LOCAL else ("*",)
    config = uvicorn.Config(
        app_of(store, place, hosts=hosts),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=1000,
        timeout_keep_alive=30,
    )
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        store.close()
        raise KonkyoError(f"{host}, port {port}, cannot be listened at: {error}") from error
    if started is not None:
        started(f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/", codes)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()
        store.close()
