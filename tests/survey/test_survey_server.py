"""A served survey: nothing that was acknowledged is lost, nothing that is hostile is taken, no method is told."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.surveys import METHODS, served, small_form
from konkyo.errors import KonkyoError
from konkyo.survey.form import Form
from konkyo.survey.order import order_of
from konkyo.survey.store import Store

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"


def given(form: Form, **changes: Any) -> dict[str, Any]:
    known = {"answer": "left", "ms": 900, "timestamp": "2026-01-31T09:30:00Z", "position": 1}
    return {"form_hash": form.form_hash, "key": secrets.token_hex(12), **known, **changes}


def agree(client: Any, form: Form, **more: Any) -> dict[str, Any]:
    reply = client.post("/api/raters", json={"form_hash": form.form_hash, "consent": True, **more})
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Form, Path]]:
    folder = tmp_path_factory.mktemp("survey")
    form = small_form(folder / "form", target=HOSTILE, title=HOSTILE)
    (folder / "form" / "private.webp").write_bytes(b"not of the form")
    with (
        served(folder / "form", folder / "answers.sqlite") as (address, _, _),
        httpx.Client(base_url=address, timeout=60, trust_env=False) as client,
    ):
        yield client, form, folder / "answers.sqlite"


def test_fifty_raters_at_once_and_a_kill_lose_nothing(tmp_path: Path) -> None:
    """The server is killed while they answer; every answer that it acknowledged is in the database."""
    form = small_form(tmp_path / "form", plain=8, repeats=2)
    file = tmp_path / "answers.sqlite"
    acknowledged: list[tuple[str, str, str]] = []
    lock, many = threading.Lock(), threading.Event()

    def rate(address: str, number: int) -> str:
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            try:
                state = agree(client, form)
                for at, item in enumerate(state["items"], 1):
                    word = ("left", "right", "tie")[(at + number) % 3]
                    path = f"/api/raters/{state['rater']}/answers/{item['id']}"
                    if client.put(path, json=given(form, answer=word, position=at)).status_code == 200:
                        with lock:
                            acknowledged.append((state["rater"], item["id"], word))
                            if len(acknowledged) >= 250:
                                many.set()
            except httpx.TransportError:
                return "cut off"
        return "finished"

    with served(tmp_path / "form", file) as (address, _, process), ThreadPoolExecutor(50) as pool:
        futures = [pool.submit(rate, address, number) for number in range(50)]
        assert many.wait(120)
        process.kill()
        ends = [future.result() for future in futures]
    assert "cut off" in ends  # it died in the middle
    store = Store(file)
    kept = {(a.rater, a.item, a.answer) for a in store.answers()}
    assert len(acknowledged) >= 250
    assert set(acknowledged) <= kept
    assert len(kept) <= len(acknowledged) + 50  # those under way were kept or not, and nothing else is there
    assert store._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()
    rater = acknowledged[0][0]
    with served(tmp_path / "form", file) as (address, _, _), httpx.Client(base_url=address, trust_env=False) as client:
        state = client.get(f"/api/raters/{rater}").json()  # and goes on after the crash
    assert state["answers"] == {item: word for who, item, word in kept if who == rater}
    assert [item["id"] for item in state["items"]] == [s.item.id for s in order_of(form, rater)]


def test_what_was_answered_stands_in_the_table_with_its_methods(survey: tuple[Any, Form, Path]) -> None:
    client, form, file = survey
    rater = agree(client, form)["rater"]
    order = order_of(form, rater)
    for at, showing in enumerate(order, 1):
        word = "left" if showing.left == METHODS[0] else "right"
        path = f"/api/raters/{rater}/answers/{showing.item.id}"
        assert client.put(path, json=given(form, answer=word, position=at)).json() == {"saved": showing.item.id}
    store = Store(file)
    answers = [a for a in store.answers() if a.rater == rater]
    store.close()
    assert [a.preferred for a in answers] == [METHODS[0]] * len(order)
    assert [a.position for a in answers] == list(range(1, len(order) + 1))


def test_an_answer_sent_again_counts_once_and_a_changed_mind_is_kept(survey: tuple[Any, Form, Path]) -> None:
    client, form, file = survey
    rater = agree(client, form)["rater"]
    path, body = f"/api/raters/{rater}/answers/000", given(form)
    for _ in range(3):
        assert client.put(path, json=body).status_code == 200
    assert client.put(path, json=given(form, answer="right")).status_code == 200
    assert client.put(path, json=body).status_code == 200  # a late copy of the first does not win
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT answer FROM answers WHERE rater = ? ORDER BY number", (rater,)).fetchall()
    database.close()
    assert rows == [("left",), ("right",)]
    assert client.get(f"/api/raters/{rater}").json()["answers"] == {"000": "right"}
    codes = {client.put(path, json=given(form)).status_code for _ in range(25)}
    assert codes == {200, 429}  # but not without end


def test_no_method_is_told(survey: tuple[Any, Form, Path]) -> None:
    client, form, _ = survey
    state = agree(client, form)
    texts = [client.get(path).text for path in ("/", "/survey.js", "/survey.css", f"/api/raters/{state['rater']}")]
    texts += [json.dumps(state), str(list(form.digests))]
    assert all(len(text) > 20 for text in texts)
    assert not any(word in text for text in texts for word in (*METHODS, "secret"))
    assert not any("kind" in item or "expected" in item for item in state["items"])


def test_words_of_a_form_are_escaped(survey: tuple[Any, Form, Path]) -> None:
    client, form, _ = survey
    reply = client.get("/")
    assert "<script>alert" not in reply.text
    assert "<img src=x" not in reply.text
    assert "&lt;script&gt;alert(1)" in reply.text  # the title
    assert "{{7*7}}" in reply.text
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert agree(client, form)["items"][0]["target"] == HOSTILE  # as JSON, which the page puts in as text


@pytest.mark.parametrize(
    "path",
    [
        "/pictures/private.webp",
        "/pictures/form.json",
        "/pictures/..%2fform.json",
        "/pictures/..%2f..%2fanswers.sqlite",
        "/pictures/%2e%2e/form.json",
        "/pictures//etc/passwd",
        "/pictures/%00",
        "/form.json",
        "/answers.sqlite",
        "/api/answers",
        "/docs",
        "/openapi.json",
        "/api/raters/ZZZZZZZZ",
        "/api/raters/..%2f..",
        "/api/raters/' OR 1=1 --",
    ],
)
def test_nothing_else_can_be_read(survey: tuple[Any, Form, Path], path: str) -> None:
    client, _, _ = survey
    assert client.get(path).status_code == 404


def test_pictures_of_the_form_can_be_read(survey: tuple[Any, Form, Path]) -> None:
    client, form, file = survey
    for name in form.digests:
        reply = client.get(f"/pictures/{name}")
        assert reply.content == (file.parent / "form" / name).read_bytes()
        assert reply.headers["content-type"] == "image/webp"


def test_a_path_with_dots_on_the_wire_is_refused(survey: tuple[Any, Form, Path]) -> None:
    client, _, _ = survey
    address = client.base_url
    for path in ("/pictures/../form.json", "/../../../../etc/passwd", "/pictures/..\\form.json"):
        with socket.create_connection((address.host, address.port), timeout=60) as wire:
            wire.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            assert wire.recv(64).startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"answer": "both"}, 422),
        ({"answer": ["left"]}, 422),
        ({"answer": None}, 422),
        ({"ms": -1}, 422),
        ({"ms": 1.5}, 422),
        ({"ms": "900"}, 422),
        ({"ms": 10**30}, 422),
        ({"timestamp": "<b>now</b>.."}, 422),
        ({"timestamp": "x" * 1000}, 422),
        ({"position": 0}, 422),
        ({"key": "../../etc"}, 422),
        ({"key": ""}, 422),
        ({"form_hash": "0" * 64}, 409),
        ({"form_hash": "0"}, 422),
        ({"method_left": METHODS[0]}, 422),
        ({"rater": "ZZZZZZZZ"}, 422),
    ],
)
def test_wrong_answers_are_not_taken(survey: tuple[Any, Form, Path], changes: dict[str, Any], status: int) -> None:
    client, form, _ = survey
    rater = agree(client, form)["rater"]
    reply = client.put(f"/api/raters/{rater}/answers/000", json=given(form, **changes))
    assert reply.status_code == status, reply.text
    assert HOSTILE not in reply.text
    assert client.get(f"/api/raters/{rater}").json()["answers"] == {}


def test_wrong_requests_are_not_taken(survey: tuple[Any, Form, Path]) -> None:
    client, form, _ = survey
    rater = agree(client, form)["rater"]
    put, path = client.put, f"/api/raters/{rater}/answers/000"
    assert put(f"/api/raters/{rater}/answers/999", json=given(form)).status_code == 404
    assert put(f"/api/raters/{rater}/answers/..%2f000", json=given(form)).status_code == 404
    assert put("/api/raters/ZZZZZZZZ/answers/000", json=given(form)).status_code == 404
    assert put(path, content=b"{" * 100).status_code == 422
    assert put(path, content=b"[" * 8000).status_code in (400, 422)
    assert put(path, content=b"\xff\xfe").status_code in (400, 422)
    assert put(path, content=b"x" * 100_000).status_code == 413
    assert put(path, content=(b"x" * 1000 for _ in range(100))).status_code == 413  # of no told length
    assert client.post(path, json=given(form)).status_code == 405
    assert client.delete(f"/api/raters/{rater}").status_code == 405
    post = client.post
    assert post("/api/raters", json={"form_hash": form.form_hash}).status_code == 422
    assert post("/api/raters", json={"form_hash": form.form_hash, "consent": False}).status_code == 422
    unknown = {"form_hash": form.form_hash, "consent": True, "rater": "ZZZZZZZZ"}
    assert post("/api/raters", json=unknown).status_code == 404
    assert post("/api/raters", json=unknown | {"rater": HOSTILE}).status_code == 422
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400  # a name of somebody else's
    assert client.get(f"/api/raters/{rater}").json()["answers"] == {}


@pytest.mark.parametrize("told", [b"10", b""])
def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, told: bytes) -> None:
    from konkyo.survey import server

    monkeypatch.setattr(server, "MOST_SECONDS", 0.05)
    parts = [{"type": "http.request", "body": b"{", "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*_: Any) -> None:
        raise AssertionError("half a request was handed on")

    scope = {"type": "http", "headers": [(b"content-length", told)] if told else []}
    with ThreadPoolExecutor(1) as pool:  # Playwright's loop runs in the main thread while its browser is open
        pool.submit(asyncio.run, server._Limited(never)(scope, receive, send)).result()
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_only_the_invited_take_part_and_consent_comes_first(tmp_path: Path) -> None:
    form = small_form(tmp_path / "form")
    with (
        served(tmp_path / "form", tmp_path / "a.sqlite", invite=3) as (address, links, _),
        httpx.Client(base_url=address, timeout=60, trust_env=False) as client,
    ):
        codes = [link.partition("#")[2] for link in links]
        assert len(set(codes)) == 3
        assert all(link.startswith(address) for link in links)
        body = {"form_hash": form.form_hash, "consent": True}
        assert client.post("/api/raters", json=body).status_code == 403
        assert client.get(f"/api/raters/{codes[0]}").json() == {"rater": codes[0], "consented": False}
        assert client.put(f"/api/raters/{codes[0]}/answers/000", json=given(form)).status_code == 403
        assert agree(client, form, rater=codes[0])["rater"] == codes[0]
        assert client.put(f"/api/raters/{codes[0]}/answers/000", json=given(form)).status_code == 200
    with served(tmp_path / "form", tmp_path / "a.sqlite") as (_, _, process):  # started again, without --invite
        assert process.stdout is not None
        assert [process.stdout.readline().strip().partition("#")[2] for _ in codes] == codes


def test_a_database_belongs_to_one_form(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite", small_form(tmp_path / "one"))
    assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()
    with pytest.raises(KonkyoError, match="another form"):
        Store(tmp_path / "a.sqlite", small_form(tmp_path / "two", seed=1))
    (tmp_path / "b.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(KonkyoError, match="cannot be used as the database"):
        Store(tmp_path / "b.sqlite")
    with pytest.raises(KonkyoError, match="no database"):
        Store(tmp_path / "c.sqlite")
