"""The pages of public names: every public name is on one of them, once, and what stands there exists."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import konkyo
from helpers.examples import code_of
from helpers.paths import DOCS, ROOT

SOURCE = ROOT / "src"
PACKAGES = (
    "konkyo",
    *(f"konkyo.{name}" for name in ("concepts", "data", "metrics", "models", "survey", "tasks", "training")),
)
"""Whose `__all__` is public, whole."""


@cache
def file_of(module: str) -> Path | None:
    path = SOURCE / module.replace(".", "/")
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@cache
def text_of(module: str) -> str:
    file = file_of(module)
    assert file is not None, module
    return file.read_text(encoding="utf-8")


@cache
def imports(module: str) -> dict[str, str]:
    """What a module's file imports from konkyo, read and not run, by name: where each of these comes from."""
    found = {}
    for source, names in re.findall(r"^ *from (konkyo[\w.]*) import (\([^)]*\)|.*)", text_of(module), re.M):
        for name in re.findall(r"\w+(?: as \w+)?", names):
            original, _, other = name.partition(" as ")
            found[other or original] = f"{source}.{original}"
    return found


def home(path: str) -> str | None:
    """The path of the definition that a path leads to; itself of a module, None where it leads nowhere."""
    module, _, name = path.rpartition(".")
    if not module or file_of(module) is None:
        return None
    if re.search(rf"^(?:(?:class|def) {name}\b|{name}(?::.*)? = )", text_of(module), re.M):
        return path
    origin = imports(module).get(name, path)
    return home(origin) if origin != path else path if file_of(path) else None


def entries() -> list[str]:
    pages = sorted((DOCS / "reference").glob("*.md"))
    return [path for page in pages for path in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M)]


def exported(package: str) -> list[str]:
    found = re.search(r"^__all__ = (\[.*?\])", text_of(package), re.M | re.S)
    assert found, f"{package} says nowhere what is public"
    return list(ast.literal_eval(found[1]))


def named_in_pages() -> set[str]:
    """What the examples of the pages import of konkyo, and what their text names in full."""
    names = set()
    for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "cookbook").glob("*.md"))]:
        names |= set(re.findall(r"`(konkyo(?:\.\w+)+)`", page.read_text(encoding="utf-8")))
        for code in code_of(page):
            for module, imported in re.findall(r"^from (konkyo[\w.]*) import \(?([\w, ]+)", code, re.M):
                names |= {f"{module}.{name.split(' as ')[0]}" for name in imported.split(", ")}
    return names


def test_what_stands_in_the_reference_exists_and_stands_there_once() -> None:
    homes = {path: home(path) for path in entries()}
    assert [path for path, found in homes.items() if found is None or file_of(found)] == []  # nor is it a module
    assert [path for path, times in Counter(map(home, entries())).items() if times > 1] == []


def test_every_public_name_stands_in_the_reference() -> None:
    there = {home(path) for path in entries()}
    public = {f"{package}.{name}" for package in PACKAGES for name in exported(package)}
    public |= {f"{metric.function.__module__}.{name}" for name, metric in konkyo.metrics.metrics().items()}
    assert len(public) > 200
    assert {"konkyo.data.Scenes", "konkyo.metrics.localisation.ebpg"} <= public
    homes = {path: home(path) for path in public}
    assert [path for path, found in homes.items() if found is None] == []
    assert [path for path, found in homes.items() if found not in there and file_of(str(found)) is None] == []


def test_what_the_pages_name_stands_in_the_reference() -> None:
    there = {home(path) for path in entries()}
    names = named_in_pages()
    assert {"konkyo.data.samples.samples", "konkyo.evaluation.cost.forwards"} <= names
    names -= {f"konkyo.metrics.{name}" for name in konkyo.metrics.metrics()}  # there by their functions
    missing = []
    for path in sorted(names):
        found, owner = home(path), home(path.rpartition(".")[0])
        if not (found in there or owner in there or (found and file_of(found))):
            missing.append(path)
    assert missing == []
