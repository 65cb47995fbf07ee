"""Requests that no page of ours makes: other routes, paths, hosts and messages."""

from __future__ import annotations

from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.gradio_queue import joined
from konkyo.apps.web.session import MOST_BYTES

httpx = pytest.importorskip("httpx")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/docs",
            "/openapi.json",
            "/gradio_api/openapi.json",
            "/monitoring",
            "/monitoring/summary",
            "/gradio_api/runs",
        ),
        *("/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/call/explain/x", "/gradio_api/dev/reload"),
        *("/gradio_api/vibe-code/", "/gradio_api/deep_link", "/gradio_api/login_check", "/gradio_api/token"),
        *("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/gradio_api/file=C:/windows/win.ini"),
        *("/gradio_api/file=%2Fetc%2Fpasswd", "/static/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/etc/passwd"),
        *("/assets/..%2f..%2f..%2fetc%2fpasswd", "/file=/etc/passwd", "/gradio_api/file=http://127.0.0.1:1/x.png"),
    ],
)
def test_other_routes_and_files_are_not_there(address: str, path: str) -> None:
    answer = httpx.get(address + path)
    assert answer.status_code in (400, 403, 404)
    assert "root:" not in answer.text


def test_calls_by_name_are_not_there(address: str) -> None:
    for path in ("/gradio_api/run/explain", "/gradio_api/api/predict", "/gradio_api/call/explain", "/component_server"):
        assert httpx.post(address + path, json={"data": []}).status_code == 404


def test_another_host_or_page_is_refused(address: str) -> None:
    assert httpx.get(address, headers={"host": "example.org"}).status_code == 400
    assert httpx.get(address, headers={"origin": "http://example.org"}).status_code == 403
    assert httpx.get(address).status_code == 200


def test_too_large_a_file_is_413(address: str) -> None:
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("content-type", "multipart/form-data; boundary=x")
    connection.putheader("content-length", str(MOST_BYTES + 2**20))
    connection.endheaders()  # it is refused before any of it is sent
    assert connection.getresponse().status == 413
    connection.close()

    def endless() -> Any:  # without a length
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.png"\r\n\r\n'
        for _ in range(MOST_BYTES // 2**20 + 4):
            yield bytes(2**20)

    try:
        answer = httpx.post(
            address + "/gradio_api/upload",
            content=endless(),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
        assert answer.status_code == 413
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pass  # the server closed the connection


def test_no_page_elsewhere_may_frame_or_feed_it(address: str) -> None:
    policy = httpx.get(address).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("component", ["upload", "class"])
def test_a_file_that_was_not_sent_is_neither_shown_nor_copied(address: str, component: str, tmp_path: Path) -> None:
    from gradio.utils import get_upload_folder

    secret = tmp_path / "secret.png"
    Image.effect_noise((64, 64), 99).save(secret)
    named = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    text = joined(address, component, [None, named], f"file{component}")
    assert '"success":false' in text.replace(" ", "")
    assert secret.is_file()
    for copy in Path(get_upload_folder()).rglob("secret.png"):
        assert copy.read_bytes() != secret.read_bytes()


@pytest.mark.parametrize(
    ("component", "data"),
    [
        ("explain", [None, ["grad_camera"]]),
        ("explain", [None, "../../etc/passwd"]),
        ("model", [None, "/etc/evil.py:build"]),
        ("model", [None, "torchvision/resnet18"]),
        ("upload", [None, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]),
        ("upload", [None, {"path": "http://127.0.0.1:1/x.png", "url": "http://127.0.0.1:1/x.png"}]),
    ],
)
def test_what_is_not_on_offer_is_refused_by_the_queue(address: str, component: str, data: list[Any]) -> None:
    text = joined(address, component, data, f"test{abs(hash(component + str(data)))}")
    assert "root:" not in text
    assert "Traceback" not in text
    assert '"success": false' in text or 'success":false' in text or "On offer" in text or "unknown" in text
