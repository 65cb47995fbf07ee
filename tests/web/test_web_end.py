"""What is left of a page that was ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from konkyo.apps.web import server


@pytest.mark.skipif(os.name == "nt", reason="nothing is asked to end there")
def test_nothing_that_was_sent_outlives_a_page_that_is_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    folders = list[Path]()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        os.kill(os.getpid(), signal.SIGTERM)
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def ready(_address: str) -> None:
        folders.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        (folders[0] / "scan.dcm").touch()

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(server, "application", lambda *_: app)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit, match="143"):
            server.serve(None, port=0, ready=ready)  # type: ignore[arg-type] # the page is not asked for anything
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not folders[0].exists()
