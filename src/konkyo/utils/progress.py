"""How a long call tells its caller how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """It is called with how much is done, and of how much (None: not known); returning exactly True asks for the end.

    Only where variants are scored the end comes early; elsewhere what is returned does not count.
    """

    def __call__(self, done: int, total: int | None, /) -> object:
        """Takes note."""


class StageProgress(Protocol):
    """A `Progress` that also hears the name of the stage: the training that is under way."""

    def __call__(self, done: int, total: int, stage: str, /) -> object:
        """Takes note."""
