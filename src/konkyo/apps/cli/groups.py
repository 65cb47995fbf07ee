"""Groups of options: a dataclass declares them once, and every command that has a parameter of it offers them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

from konkyo.errors import KonkyoError


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets one parameter per field in the place of a parameter whose type is a dataclass.

    The result collects the fields' values and passes the dataclass on. KonkyoError: two parameters of one name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            if parameter.default not in (inspect.Parameter.empty, groups[name]()):
                raise KonkyoError(f"{command.__name__}: the defaults of {name} are those of its fields, and no others")
            parameters += _parameters(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    names = [parameter.name for parameter in parameters]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise KonkyoError(f"{command.__name__}: two parameters have the name {', '.join(repeated)}")

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            members = [field.name for field in fields(group)]
            values[name] = group(**{member: values.pop(member) for member in members if member in values})
        command(**values)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    flat.__signature__ = inspect.Signature(keyword, return_annotation=None)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    return flat


def _parameters(group: Any) -> list[inspect.Parameter]:
    """Returns a parameter per field of the dataclass, with its type and default."""
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, kind, default=_default(field), annotation=hints[field.name])
        for field in fields(group)
    ]


def _default(field: Field[Any]) -> Any:
    """Returns the default of a field. KonkyoError: it has none, or one that is made anew."""
    if field.default is MISSING:
        raise KonkyoError(f"an option in a group needs a plain default; {field.name} has none")
    return field.default
