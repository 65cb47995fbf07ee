"""Prompts: how a network that reads text beside the image becomes one of images alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from konkyo.errors import KonkyoError

Noun: TypeAlias = Literal["question", "texts"]


@dataclass(frozen=True)
class Prompts:
    """The text that a network reads, and what becomes of the network when the text is given."""

    noun: Noun
    """What it is called, as an argument: `question=`, or `texts=`."""
    bind: Callable[[Any], dict[str, Any]]
    """The text -> arguments of `Model` that make it one of images alone: `call`, `classes`, `task`, ..."""
    default: Any = None
    """The text that is taken where the user gives none; None: there is no such text."""
    required: bool = True
    """Whether the network puts out nothing without a text."""
    value: Any = None
    """The text that was given; None: none yet."""

    def bound(self, value: Any) -> dict[str, Any]:
        """Returns the arguments of `Model` for a text, `prompts` among them."""
        return {"prompts": replace(self, value=value), **self.bind(value)}

    def require(self, model: str) -> None:
        """Raises KonkyoError where no text was given."""
        if self.value is None and self.required:
            example = '"is there a cat?"' if self.noun == "question" else '["a cat", "a dog"]'
            raise KonkyoError(f"{model} reads text beside the image; give {self.noun}=, as in {self.noun}={example}")


@dataclass(frozen=True)
class Texts:
    """What a model compares images with: its classes by name, and the texts of each."""

    names: tuple[str, ...]
    """The classes, as they are labelled."""
    sentences: tuple[tuple[str, ...], ...]
    """The texts of every class: its name in every template."""

    @classmethod
    def of(cls, texts: Sequence[str], template: str | Sequence[str] = "{}") -> Texts:
        """Returns these texts, each put into every template at "{}".

        KonkyoError: no texts, one that comes twice, something else than text, or a template without "{}".
        """
        templates = (template,) if isinstance(template, str) else tuple(template)
        if not templates or not all(isinstance(pattern, str) for pattern in templates):
            raise KonkyoError(f'a template is a text such as "a photo of {{}}", or a list of them; got {template!r}')
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise KonkyoError(f'texts is a list of texts, as in ["a cat", "a dog"]; got {texts!r}')
        if len({text.strip() for text in texts}) < len(texts):
            raise KonkyoError(f"every text stands once among texts; got {list(texts)}")
        for pattern in templates:
            if "{}" not in pattern:
                raise KonkyoError(
                    f'a template has "{{}}" where the text goes, as in "a photo of {{}}"; got {pattern!r}'
                )
        return cls(tuple(texts), tuple(tuple(p.replace("{}", text) for p in templates) for text in texts))
