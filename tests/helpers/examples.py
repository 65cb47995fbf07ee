"""Runs the Python blocks of a page of the documentation, as a reader would paste them one after the other."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from helpers.paths import DOCS

_BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def python_of(page: Path | str) -> str:
    """Returns the Python of a page (a path, or a name in docs/), but for blocks whose title says what they need."""
    blocks = _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return "\n".join(code for language, title, code in blocks if language == "python" and not title)


def run_page(page: Path | str, replacements: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Runs the Python of a page, with these texts replaced, in one namespace, in this folder, and returns it."""
    path, code = DOCS / page, python_of(page)
    assert code, f"{path} has no example"
    for text, other in replacements.items():
        code = code.replace(text, other)
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(compile(code, path.name, "exec", dont_inherit=True), namespace)
    return namespace


def code_of(page: Path) -> list[str]:
    """Returns the code of every block of a page, whatever its language, without comments and spaces at line ends."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [ast.unparse(ast.parse(code)) if language == "python" else _bare(code) for language, _, code in blocks]


def _bare(code: str) -> str:
    return "\n".join(re.sub(r"(^|\s)# .*", "", line).rstrip() for line in code.splitlines())
