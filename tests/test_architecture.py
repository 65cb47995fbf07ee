"""The layout: who may import whom, also where a module is imported by its name as text."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import konkyo

ROOT = Path(konkyo.__file__).parent
PROJECT = ROOT.parents[1] / "pyproject.toml"


def floors() -> dict[str, int]:
    """The floor of every part of the package, the top one first, as the import rules in pyproject.toml have it."""
    text = PROJECT.read_text(encoding="utf-8")
    (layers,) = re.findall(r'type = "layers"\nlayers = \[\n(.*?)\]', text, re.DOTALL)
    lines = re.findall(r'"(.+)"', layers)
    return {part: floor for floor, line in enumerate(lines) for part in re.split(r" [|:] ", line)}


def imported_by_name() -> list[tuple[str, str]]:
    """(module, the text that it hands to import_module) of every such call and table in the package."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(("konkyo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        if module == "konkyo":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if not {"import_module", "__import__", "lazy"} & names:
            continue
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"konkyo(\.\w+)+\.?", text):
                found.append((module, text.rstrip(".")))
    return found


@pytest.mark.skipif(not PROJECT.is_file(), reason="no checkout")
def test_no_import_by_name_climbs() -> None:
    known = floors()

    def floor(module: str) -> int:
        return max(known[part] for part in known if f"{module}.".startswith(f"{part}."))

    calls = imported_by_name()
    assert len(calls) > 5
    assert [call for call in calls if floor(call[1]) < floor(call[0])] == []


@pytest.mark.skipif(not PROJECT.is_file(), reason="no checkout")
def test_every_part_of_the_package_has_a_floor() -> None:
    parts = [path for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert {f"konkyo.{path.stem}" for path in parts} - set(floors()) == {"konkyo.__init__", "konkyo.__main__"}


def test_public_names_are_imported_when_first_used() -> None:
    for package in (konkyo, konkyo.data, konkyo.training):
        assert set(package.__all__) <= set(dir(package))
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            package.nothing  # noqa: B018
    assert not isinstance(konkyo.methods, type(sys))
