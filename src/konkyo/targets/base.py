"""Target: a callable output -> a score per image. Targets of the package also say what they are about."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from konkyo.targets.regions import Mask

Target: TypeAlias = Callable[[Any], Tensor]
"""A target is any function from a network's output (N, ...) to a score per image (N,); gradients go through it."""
Outputs: TypeAlias = Callable[[Any], Tensor]
"""Images, in any form that `explain` takes, -> the network's outputs for them (M, ...)."""
Box: TypeAlias = "tuple[float, float, float, float]"


class BaseTarget(ABC):
    """A target answers what it is about. Every answer has a default, which is that of a callable of the user's."""

    @abstractmethod
    def __call__(self, output: Any) -> Tensor:
        """Returns the score of every image (N,)."""

    def bound(self, outputs: Outputs) -> Target:
        """Returns the target with what it needs of other images, read from the network's outputs for these."""
        del outputs
        return self

    def fixed(self, output: Tensor) -> Target:
        """Returns the target as it is for one image, from its own output (1, ...): what variants must not change."""
        del output
        return self

    @property
    def class_index(self) -> int | None:
        """This is the class that the score is of; None where it is of none, or of several."""
        return None

    @property
    def channel(self) -> int | None:
        """This is the channel of a dense output (N, K, *grid) that the score is read from; None where there is none."""
        return None

    @property
    def class_logit(self) -> int | None:
        """This is the class whose logit the score is; None where it is something else."""
        return None

    def logit(self, output: Tensor) -> Tensor | None:
        """Returns the score with logits in the place of classes' probabilities (N,); None where no class is in it."""
        del output
        return None

    def location(self) -> Box | None:
        """Returns the box that the score is about, xyxy in pixels of the network's input; None where there is none."""
        return None

    def part(self) -> Mask | None:
        """Returns the part of the picture whose output is scored; None where that is all of it, or has no places."""
        return None

    def of_place(self) -> bool:
        """Tells whether the score is of a place of the picture, so that it means something else on a mirrored one."""
        return self.location() is not None or self.part() is not None

    def candidate(self, output: Tensor) -> Tensor | None:
        """Returns which candidate is scored, one per image (N,), -1 where none is; None for what is no detection."""
        del output
        return None

    def matched_boxes(self, output: Tensor) -> list[tuple[float, ...]]:
        """Returns the box of the candidate that is scored, one per image; NaN where the score is of no candidate."""
        return [(math.nan,) * 4] * len(output)

    def details(self) -> dict[str, Any]:
        """Returns what a manifest lists of the target besides its box, as plain JSON values."""
        return {}

    def in_words(self, label: str, score: float) -> str:
        """Returns what a picture says of the target: its label with the score."""
        return f"{label} (score {score:.2f})"


@dataclass(frozen=True)
class CallableTarget(BaseTarget):
    """This makes a target of a callable of the user's; it answers with the defaults."""

    function: Target

    def __call__(self, output: Any) -> Tensor:
        """Returns what the callable returns."""
        return self.function(output)


def as_target(target: Target) -> BaseTarget:
    """Returns the target itself, or a callable of the user's as a target that answers with the defaults."""
    return target if isinstance(target, BaseTarget) else CallableTarget(target)


def bound(target: Any, outputs: Outputs) -> Any:
    """Returns a target with what it needs of other images; what is no `BaseTarget` as it is."""
    return target.bound(outputs) if isinstance(target, BaseTarget) else target


def fixed(target: Any, output: Tensor) -> Any:
    """Returns a target as it is for the image with this output (1, ...); what is no `BaseTarget` as it is."""
    return target.fixed(output) if isinstance(target, BaseTarget) else target
