"""The examples of the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import konkyo
from helpers.paths import DOCS


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
@pytest.mark.parametrize("page", ["index.md", "extending.md"])
def test_the_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from konkyo.data.samples import LAYOUTS
    from konkyo.methods.base import METHODS
    from konkyo.metrics import METRICS
    from konkyo.tasks import TASKS

    monkeypatch.chdir(tmp_path)
    konkyo.methods()
    registries: list[dict[str, Any]] = [METHODS, METRICS, LAYOUTS, TASKS]
    before = [dict(registry) for registry in registries]
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    try:
        exec(compile("\n".join(blocks), page, "exec", dont_inherit=True), {"__name__": "docs"})
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry.clear()
            registry.update(entries)
    assert any(tmp_path.iterdir())  # each page saves a picture


@pytest.mark.parametrize("page", ["consistency.md", "training.md", "data.md"])
def test_the_examples_of_a_page_on_training_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), page, "exec", dont_inherit=True), {"__name__": "docs"})
