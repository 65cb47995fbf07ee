"""Numbers: one of those that a network estimates, an age or a dose, as a target."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.targets.base import BaseTarget, Outputs
from konkyo.targets.specs import class_of_text, number_of, spec, with_settings


@dataclass(frozen=True)
class Output(BaseTarget):
    """This target is one of the numbers that a network estimates. Output (N,) or (N, K) -> (N,).

    `index`: which one, from 0, or its name for `explain`. Its evidence raises the number where it is positive and
    lowers it where it is negative; `Against` turns the sign. `relative_to` is a number that is taken off, or an image,
    whose own estimate is: what is explained is then why the number differs from that.
    """

    index: int | str = 0
    name: str = ""
    unit: str = ""
    relative_to: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.index, bool) or not isinstance(self.index, (int, str)):
            raise KonkyoError(f"an output is a whole number from 0, or its name; got {self.index!r}")
        if isinstance(self.relative_to, (int, float)) and not math.isfinite(self.relative_to):
            raise KonkyoError(f"relative_to is a finite number, or an image; got {self.relative_to}")

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the number of every image, less the reference. KonkyoError: no such output."""
        if not isinstance(self.index, int):
            raise KonkyoError(f"{self.index!r} is a name, which konkyo.explain resolves; here give the output's index")
        values = output[:, None] if output.ndim == 1 else output.flatten(1) if output.shape[2:].numel() == 1 else output
        if values.ndim != 2:
            raise KonkyoError(f"numbers are (N,) or (N, K); the output has shape {tuple(output.shape)}")
        if not 0 <= self.index < values.shape[1]:
            raise KonkyoError(f"output {self.index} of a network with {values.shape[1]} (0 to {values.shape[1] - 1})")
        return values[:, self.index] - self.offset

    @property
    def offset(self) -> float:
        """Returns the reference as a number. KonkyoError: an image that no network has seen yet."""
        if self.relative_to is None or isinstance(self.relative_to, (int, float)):
            return float(self.relative_to or 0.0)
        raise KonkyoError("relative_to is an image, whose own number is not known yet: give the target to explain")

    def bound(self, outputs: Outputs) -> Output:
        """Returns it with the reference image, if that is what it is relative to, in the place of its numbers."""
        if self.relative_to is None or isinstance(self.relative_to, (int, float, _Estimates)):
            return self
        numbers = _Estimates(tuple(outputs(self.relative_to)[:1].flatten().tolist()))
        bound = replace(self, relative_to=numbers)
        return bound.at(self.index) if isinstance(self.index, int) else bound

    def at(self, index: int, name: str = "", unit: str = "") -> Output:
        """Returns it with an index in the place of a name, and what the number is called."""
        offset = self.relative_to
        if isinstance(offset, _Estimates):
            if not 0 <= index < len(offset.values):
                raise KonkyoError(f"output {index} of a network with {len(offset.values)}")
            offset = offset.values[index]
        return Output(index, self.name or name, self.unit or unit, offset)

    def in_words(self, label: str, score: float) -> str:
        """Returns the number with its unit, as in "age 43.2 years", or how it differs from its reference."""
        unit = f" {self.unit}" if self.unit else ""
        if self.relative_to is None:
            return f"{label} {score:.4g}{unit}"
        return f"{label} {score + self.offset:.4g}{unit}, {score:+.4g} from {self.offset:.4g}"


@dataclass(frozen=True)
class _Estimates:
    """These are all the numbers of a reference image, until it is known which one is asked for."""

    values: tuple[float, ...]


@spec("output:NAME_OR_INDEX[,relative_to=NUMBER_OR_FILE]")
def _output(value: str) -> Output:
    name, settings = with_settings(value, "relative_to")
    reference: Any = settings.get("relative_to")
    if reference is not None and re.fullmatch(r"[-+.0-9eE]+", reference):
        reference = number_of(reference, "relative_to")
    return Output(class_of_text(name), relative_to=reference)
