"""Public names of a package that are imported when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` of a package whose names are imported from their modules when first used.

    `homes`: module -> the names that it defines.

    >>> getter, _ = lazy("konkyo.utils", {"konkyo.utils.files": ("plain",)})
    >>> getter("plain")([1.5, float("nan")])
    [1.5, None]
    """
    home = {name: module for module, names in homes.items() for name in names}

    def getter(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return getter, names
