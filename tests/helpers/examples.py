"""Runs the Python blocks of a page of the documentation, as a reader would paste them one after the other."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from helpers.paths import DOCS

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_page(page: Path | str) -> dict[str, Any]:
    """Runs all blocks of a page (a path, or a name in docs/) in one namespace, in this folder, and returns it."""
    path = DOCS / page
    blocks = [code for language, code in _BLOCK.findall(path.read_text(encoding="utf-8")) if language == "python"]
    assert blocks, f"{path} has no example"
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(compile("\n".join(blocks), path.name, "exec", dont_inherit=True), namespace)
    return namespace


def code_of(page: Path) -> list[str]:
    """Returns the code of every block of a page, whatever its language, without comments and spaces at line ends."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [ast.unparse(ast.parse(code)) if language == "python" else _bare(code) for language, code in blocks]


def _bare(code: str) -> str:
    return "\n".join(re.sub(r"(^|\s)# .*", "", line).rstrip() for line in code.splitlines())
