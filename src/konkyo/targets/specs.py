"""Specs: targets in words, as the command line takes them: KIND:VALUE."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeAlias

from konkyo.errors import KonkyoError

Parser: TypeAlias = Callable[[str], Any]
"""What stands after the colon -> what `explain` takes for a target. KonkyoError: it cannot be read."""


@dataclass(frozen=True)
class Spec:
    """A kind of target, how it is written, and how that is read."""

    form: str
    """As in "pixel:X:Y"."""
    parse: Parser


SPECS: dict[str, Spec] = {}


def spec(form: str) -> Callable[[Parser], Parser]:
    """Registers what reads targets of a form, as in "pixel:X:Y[,label=CLASS]"; its kind stands before the colon.

    A form such as "answer[:TEXT]" needs no value; the parser gets "" then.
    """

    def register(parse: Parser) -> Parser:
        SPECS[re.split(r"[\[:]", form)[0]] = Spec(form, parse)
        return parse

    return register


def parse_target(text: str) -> Any:
    """Returns the target that a text such as "class:cat" means. KonkyoError: an unknown kind or value."""
    package = import_module("konkyo.targets")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    kind, _, value = text.partition(":")
    if kind not in SPECS:
        offer = ", ".join(sorted(item.form for item in SPECS.values()))
        raise KonkyoError(f"a target is KIND:VALUE; got {text!r}. On offer: {offer}")
    return SPECS[kind].parse(value)


def class_of_text(text: str) -> int | str:
    """Returns a class as the command line names it: an index, or a name."""
    return int(text) if re.fullmatch("-?[0-9]+", text) else text


def number_of(text: str, what: str) -> float:
    """Returns the number that a text is; `what` it is of, for the error. KonkyoError: it is none."""
    try:
        return float(text)
    except ValueError:
        raise KonkyoError(f"{what} is a number; got {text!r}") from None


def with_settings(value: str, *names: str) -> tuple[str, dict[str, str]]:
    """Returns (what stands first, the settings after it), as of "road,within=all". KonkyoError: an unknown setting."""
    first, *others = value.split(",")
    settings = {}
    for item in others:
        name, equals, setting = item.partition("=")
        if not equals or name not in names:
            offer = ", ".join(f"{name}=VALUE" for name in names) or "nothing"
            raise KonkyoError(f"after the comma of a target: {offer}; got {item!r}")
        settings[name] = setting
    return first, settings


@spec("class:NAME_OR_INDEX")
def _class(value: str) -> int | str:
    return class_of_text(value)
