"""What registered functions share: positional parameters name needs, keyword-only ones are the user's options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, get_args, get_origin

from konkyo.errors import KonkyoError, unknown

Options: TypeAlias = Mapping[str, inspect.Parameter]


def signature_of(kind: str, function: Callable[..., Any], offer: Iterable[str]) -> tuple[str, tuple[str, ...], Options]:
    """Returns (name, needs, options) of a function. KonkyoError: a need that is not on offer."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except NameError:  # annotations of names that are imported for the type checker only: not checked
        parameters = inspect.signature(function).parameters
    needs = tuple(n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY)
    offer = list(offer)
    for need in needs:
        if need not in offer:
            raise unknown(f"need of {kind} {name}:", need, offer)
    return name, needs, {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def summary_of(function: Callable[..., Any]) -> str:
    """Returns the first paragraph of a function's documentation, in one line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def check_free(kind: str, name: str, function: Callable[..., Any], taken: Mapping[str, Any]) -> None:
    """Raises KonkyoError where another module has registered the name."""
    if name in taken and taken[name].function.__module__ != function.__module__:
        raise KonkyoError(f"a {kind} named {name!r} is registered already; choose another name")


def check_options(owner: str, settings: Mapping[str, Any], options: Options) -> None:
    """Raises KonkyoError for an option that is not on offer, or whose value is not of its annotated type."""
    for name, value in settings.items():
        if name not in options:
            raise unknown(f"option of {owner}", name, options or ["(none)"])
        kind = options[name].annotation
        if isinstance(kind, UnionType):  # as in int | None
            kinds = get_args(kind)
            if value is None and NoneType in kinds:
                continue
            if isinstance(value, (tuple, list)) and any(get_origin(k) is tuple for k in kinds):  # as in (2, 16, 16)
                continue
            kind = next((k for k in kinds if k is not NoneType), kind)
        accepted = (int, float) if kind is float else kind
        if kind in (int, float, str, bool) and (
            not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool))
        ):
            raise KonkyoError(f"{name} of {owner} is of type {kind.__name__}; got {value!r}")
        if get_origin(kind) is Literal and value not in get_args(kind):
            offer = ", ".join(map(repr, get_args(kind)))
            raise KonkyoError(f"{name} of {owner} is one of {offer}; got {value!r}")
