"""The door of the report: a builder per kind of result, each in a file `of_*.py` of this folder, that nothing lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeAlias, TypeVar

from konkyo.errors import KonkyoError
from konkyo.models.base import Model
from konkyo.report.page import Page


@dataclass(frozen=True, eq=False)
class Request:
    """A request is what a caller of `report` said besides the result."""

    title: str | None = None
    model: Model | None = None
    """The model that was explained: its weights' hash and preprocessing go into the provenance."""
    command: str | None = None
    """The command line that makes the page again."""
    most: int | None = 500
    """So many pictures of a data set are opened at most; None: all."""


Builder: TypeAlias = Callable[[Any, Request], Page]
BUILDERS: dict[type, Builder] = {}
"""Kind of result -> the function that makes its page. It gets a list of them where several may be shown together."""
_SEVERAL: set[type] = set()
_Function = TypeVar("_Function", bound=Builder)


def builder(kind: type, *, several: bool = False) -> Callable[[_Function], _Function]:
    """Registers the function that makes the page of a kind of result.

    `several`: it takes a non-empty list of such results, and `report` takes one, a list or a dict of them.
    """

    def register(function: _Function) -> _Function:
        BUILDERS[kind] = function
        if several:
            _SEVERAL.add(kind)
        return function

    return register


def page_of(result: Any, request: Request) -> Page:
    """Returns the page of a result, or of several of one kind. KonkyoError: no builder knows this kind of result."""
    if isinstance(result, Page):
        return result
    _load()
    many = isinstance(result, (Mapping, Sequence)) and not any(isinstance(result, kind) for kind in BUILDERS)
    results = list(result.values() if isinstance(result, Mapping) else result) if many else [result]
    for kind, build in BUILDERS.items():
        if results and all(isinstance(entry, kind) for entry in results):
            if kind in _SEVERAL:
                return build(results, request)
            if not many:
                return build(result, request)
    names = ", ".join(f"{kind.__name__}{' (or several)' if kind in _SEVERAL else ''}" for kind in BUILDERS)
    came = f"{type(result).__name__} of {', '.join(sorted({type(r).__name__ for r in results})) or 'nothing'}"
    raise KonkyoError(f"a report is made of one of {names}; got {came if many else type(result).__name__}")


def _load() -> None:
    """Imports every `of_*.py` of this folder, which registers its builders."""
    package = import_module(__package__ or "")
    for module in iter_modules(package.__path__):
        if module.name.startswith("of_"):
            import_module(f"{package.__name__}.{module.name}")
