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


def class_names(module: nn.Module, library: str = "") -> list[str]:
    """Returns the names of the classes that a module is of, its own first; `library`: of those defined there alone."""
    classes = type(module).__mro__
    return [kind.__name__ for kind in classes if not library or kind.__module__.partition(".")[0] == library]


def is_a(module: nn.Module, name: str) -> bool:
    """Tells whether a module is of a class of this name, or of one that is made of it."""
    return name in class_names(module)


def source_of(module: nn.Module) -> str:
    """Returns the folder or id that a module of transformers was loaded from; "" where it was built from a config."""
    return str(getattr(getattr(module, "config", None), "_name_or_path", "") or "")


def libraries_of(module: nn.Module) -> list[str]:
    """Returns the libraries that the classes of a module are defined in, its own first, each once."""
    return list(dict.fromkeys(kind.__module__.partition(".")[0] for kind in type(module).__mro__))


def known(module: nn.Module, processor: Any = None, *, classes: Sequence[str] = ()) -> Arguments:
    """Returns what `Model` is to be told of a module; nothing of one that no kind knows.

    `classes`: the names that a user gave, which say that it has some. Without any, a network without a head is one of
    embeddings, whatever library it is of.
    """
    for library in libraries_of(module):
        for candidate in kinds_of(library) if library in LIBRARIES else ():
            if (arguments := candidate.describe(module, processor)) is not None:
                return arguments
    if classes:
        return {}
    embeddings: Arguments | None = import_module("konkyo.models.embeddings").embeddings(module)
    return embeddings or {}
