"""Runs the Python blocks of a page of the documentation, as a reader would paste them one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from helpers.paths import DOCS

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_page(page: Path | str) -> dict[str, Any]:
    """Runs all blocks of a page (a path, or a name in docs/) in one namespace, in this folder, and returns it."""
    path = DOCS / page
    blocks = _BLOCK.findall(path.read_text(encoding="utf-8"))
    assert blocks, f"{path} has no example"
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(compile("\n".join(blocks), path.name, "exec", dont_inherit=True), namespace)
    return namespace
