"""Errors say what to do, in words that work."""

from __future__ import annotations

import importlib.metadata

import pytest

from helpers.paths import ROOT
from konkyo.errors import first_line, install_hint

REQUIREMENTS = [
    "torch>=2.10",
    'timm>=1.0; extra == "timm"',
    "pydicom>=3.0 ; extra == 'medical'",
    'nibabel>=5.3; python_version >= "3.10" and extra == "medical"',
]


def test_a_hint_names_the_libraries_of_its_extra_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIREMENTS)
    assert install_hint("timm") == 'pip install "timm>=1.0"'
    assert install_hint("medical") == 'pip install "pydicom>=3.0" "nibabel>=5.3"'


def test_a_hint_of_a_source_folder_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert install_hint("timm").startswith('pip install ".[timm]"')


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert first_line(ValueError(" bad shape\nat line 3")) == "bad shape"
    assert first_line(MemoryError()) == first_line(MemoryError("\n")) == "MemoryError"


def test_no_message_or_page_asks_for_a_name_that_is_not_published() -> None:
    pages = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    asking = [page.name for page in pages if "konkyo[" in page.read_text(encoding="utf-8")]
    assert asking == []
