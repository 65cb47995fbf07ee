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


@pytest.mark.skipif(not PROJECT.is_file(), reason="no checkout")
def test_what_lies_beside_the_package_imports_modules_that_are_there() -> None:
    """Nothing else runs all of benchmarks, scripts and examples."""
    files = [path for name in ("benchmarks", "scripts", "examples") for path in (PROJECT.parent / name).rglob("*.py")]
    modules = [
        (path.name, node.module)
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("konkyo.")
    ]
    assert len(modules) > 50
    places = {module: ROOT.parent.joinpath(*str(module).split(".")) for _, module in modules}
    there = {module for module, path in places.items() if path.is_dir() or path.with_suffix(".py").is_file()}
    assert [entry for entry in modules if entry[1] not in there] == []
