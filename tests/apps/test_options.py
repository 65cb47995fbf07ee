"""Groups of options: a dataclass in a command's signature is its fields on the command line."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from konkyo.apps.cli import options
from konkyo.apps.cli.groups import with_groups
from konkyo.errors import KonkyoError

RECEIVED: list[Any] = []


@dataclass(frozen=True)
class Colour:
    shade: Annotated[str, typer.Option("--shade", "-s", help="How dark.")] = "light"
    names: Annotated[list[str] | None, typer.Option("--name", help="Repeatable.")] = None


def paint(wall: str, colour: Colour, coats: int = 1) -> None:
    """Paint a wall."""
    RECEIVED.append((wall, colour, coats))


def paint_twice(colour: Colour, shade: str = "dark") -> None:
    """Paint a wall with two shades."""


def invoke(*words: str) -> Any:
    app = typer.Typer()
    app.command()(with_groups(paint))
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return RECEIVED.pop() if RECEIVED else result.output


def test_a_group_expands_to_its_fields_in_its_place() -> None:
    assert list(signature(with_groups(paint)).parameters) == ["wall", "shade", "names", "coats"]
    shown = invoke("--help")
    assert "--shade" in shown
    assert "How dark." in shown
    assert "--colour" not in shown


def test_the_values_are_collected_into_the_group() -> None:
    assert invoke("north", "-s", "dark", "--name", "a", "--name", "b", "--coats", "2") == (
        "north",
        Colour("dark", ["a", "b"]),
        2,
    )


def test_defaults_are_not_shared_between_calls() -> None:
    invoke("north", "--name", "a")
    assert invoke("south")[1].names in (None, [])


def test_a_clash_of_names_is_an_error() -> None:
    with pytest.raises(KonkyoError, match="two parameters have the name shade"):
        with_groups(paint_twice)


def test_an_option_is_declared_once() -> None:
    """What several commands share stands in a group or in a named type; the rest is a command's own."""
    own = {
        "--method",
        "--model",
        "--out",
        "--all",
        "--score",
        "--data",
        "--limit",
        "--sort",
        "--target",
        "--region",
        "--class",
        "--resamples",
        "--items",
        "steps",
        "size",
        "augment",
        "backbone",
    }  # each means another thing
    declared: dict[str, int] = {}
    for path in sorted(Path(options.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            annotation = node.annotation if isinstance(node, (ast.arg, ast.AnnAssign)) else None
            if annotation is not None and "typer.Option" in (text := ast.unparse(annotation)):
                flags = re.findall(r"'(--[a-z-]+)'", text)
                name = flags[0] if flags else ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else node.arg
                declared[name] = declared.get(name, 0) + 1
    assert len(declared) > 40
    assert {name for name, count in declared.items() if count > 1} == own


def test_every_group_is_shared_by_commands() -> None:
    texts = [path.read_text(encoding="utf-8") for path in Path(options.__file__).parent.glob("*.py")]
    groups = [name for name, value in vars(options).items() if name.endswith("Options") and is_dataclass(value)]
    assert len(groups) == 6
    for name in groups:
        assert sum(f": {name} = {name}()" in text for text in texts) >= 2, name


def test_a_command_has_no_defaults_of_its_own_for_a_group() -> None:
    def dark(colour: Colour = Colour("dark")) -> None:
        """Paint it dark."""

    dark.__annotations__["colour"] = Colour
    with pytest.raises(KonkyoError, match="the defaults of colour are those of its fields"):
        with_groups(dark)
