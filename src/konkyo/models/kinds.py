"""Kinds: who knows what the modules of a library put out, and how they are run; files under models/ register them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, TypeAlias

from torch import nn

Arguments: TypeAlias = dict[str, Any]
"""Arguments of `konkyo.Model`: `task`, `detector`, `classes`, `call`, `select`, `prompts`, `preprocess`; and `module`,
where the network is run in another module around it."""
Describe: TypeAlias = Callable[[nn.Module, Any], "Arguments | None"]
"""(module, its processor or None) -> what `Model` is to be told of it; None: a module of another kind."""

ANY = "any"
"""The library of kinds that a module's own structure tells, whoever made it; these are asked last."""
LIBRARIES = ("open_clip", "timm", "torchvision", "transformers")
"""Libraries whose modules are known. A file that bears the name of one imports it."""


@dataclass(frozen=True)
class Kind:
    """A kind of networks of one library."""

    library: str
    noun: str
    """What such a network is called, as in "object detector"."""
    describe: Describe
    auto: str = ""
    """The class of transformers that loads it, as in "AutoModelForObjectDetection"."""
    processor: str = ""
    """The class of transformers that loads what it reads text with, as in "AutoProcessor"; "": it reads none."""


KINDS: list[Kind] = []


def kind(library: str, noun: str, *, auto: str = "", processor: str = "") -> Callable[[Describe], Describe]:
    """Registers a function that knows the networks of one kind."""

    def register(describe: Describe) -> Describe:
        KINDS.append(Kind(library, noun, describe, auto, processor))
        return describe

    return register


def kinds_of(library: str) -> list[Kind]:
    """Returns the kinds of a library, in the order of their files' names."""
    _import_files(library)
    return [kind for kind in KINDS if kind.library == library]


@cache
def _import_files(library: str) -> None:
    """Imports the files under models/ that may know modules of a library."""
    package = import_module("konkyo.models")
    for file in walk_packages(package.__path__, f"{package.__name__}."):
        last = file.name.rpartition(".")[2]
        if last == library or last not in LIBRARIES:
            import_module(file.name)


def known(module: nn.Module, processor: Any = None, *, classes: Sequence[str] = ()) -> Arguments:
    """Returns what `Model` is to be told of a module; nothing of one that no kind knows.

    `classes`: the names that a user gave, which say that it has some: kinds of any library are not asked then.
    """
    libraries = [
        library for kind in type(module).__mro__ if (library := kind.__module__.partition(".")[0]) in LIBRARIES
    ]
    for library in dict.fromkeys([*libraries, *(() if classes else (ANY,))]):
        for candidate in kinds_of(library):
            if (arguments := candidate.describe(module, processor)) is not None:
                return arguments
    return {}
