"""What is left of a page that was ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal
from pathlib import Path
from konkyo.apps.web import server

async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    os.kill(os.getpid(), signal.SIGTERM)
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

def ready(address):
    (Path(os.environ["GRADIO_TEMP_DIR"]) / "scan.dcm").touch()
    print(os.environ["GRADIO_TEMP_DIR"], flush=True)

server.application = lambda *_: app
server.serve(None, port=0, ready=ready)
"""


@pytest.mark.skipif(os.name == "nt", reason="nothing is asked to end there")
def test_nothing_that_was_sent_outlives_a_page_that_is_terminated(tmp_path: Path) -> None:
    """In a process of its own: signals come to its main thread, where no other loop may run."""
    pytest.importorskip("uvicorn")
    settings = {**os.environ, "TMPDIR": str(tmp_path), "GRADIO_TEMP_DIR": ""}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=settings, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode in (143, -15), ended.stderr
    folder = Path(ended.stdout.split()[0])
    assert folder.parent == tmp_path
    assert not folder.exists()
