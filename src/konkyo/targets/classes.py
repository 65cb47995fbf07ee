"""Targets of classes: which class's score is explained, which one against it, and what a user asks for."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import BaseTarget, Outputs, as_target, bound, fixed
from konkyo.targets.base import Target as Target

if TYPE_CHECKING:
    from konkyo.targets.regions import Mask

Score: TypeAlias = Literal["logit", "probability", "sigmoid", "similarity"]
"""What is explained of a decision; the "similarity" is that of detections only."""


def class_logits(output: Tensor) -> Tensor:
    """Returns the output (N, K) itself; of one logit z per image (N, 1) the two logits -z and z, of classes 0 and 1."""
    return torch.cat([-output, output], dim=1) if output.shape[1] == 1 else output


@dataclass(frozen=True)
class ClassTarget(BaseTarget):
    """This target is the score of one class: its logit, or its probability. output (N, K) -> (N,).

    A model with a single logit z has the classes 0 ("negative", logit -z) and 1 ("positive", logit z). The probability
    is the softmax, for a single logit the sigmoid; "sigmoid" is that of a model whose classes do not exclude each
    other.
    """

    index: int
    score: Score = "logit"

    def __post_init__(self) -> None:
        try:
            if isinstance(self.index, bool):
                raise TypeError
            object.__setattr__(self, "index", operator.index(self.index))  # of an array's or a tensor's element, too
        except TypeError:
            raise KonkyoError(f"a class's index is a whole number; got {self.index!r}") from None
        if self.score not in (offer := ("logit", "probability", "sigmoid")):
            raise unknown("score of a class", self.score, offer)

    def check(self, output: Tensor) -> None:
        """Raises KonkyoError for an output that is not (N, K), or has no such class."""
        if output.ndim != 2:
            raise KonkyoError(
                f"a class needs an output of shape (N, classes); got {tuple(output.shape)}. For other outputs give a "
                "target of your own: a callable output -> (N,) scores"
            )
        classes = 2 if output.shape[1] == 1 else output.shape[1]
        if not 0 <= self.index < classes:
            raise KonkyoError(f"class {self.index} of a model with {classes} classes (0 to {classes - 1})")

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the class's score of every image. KonkyoError: an output that is not (N, K), or has no such class."""
        self.check(output)
        logits = class_logits(output)
        if self.score == "logit":
            return logits[:, self.index]
        if self.score == "sigmoid":
            return logits[:, self.index].sigmoid()
        # Of one logit: softmax((-z, z)) would be sigmoid(2 z).
        return (
            (output.sigmoid() if self.index else (-output).sigmoid())[:, 0]
            if output.shape[1] == 1
            else (logits.softmax(1)[:, self.index])
        )

    @property
    def class_index(self) -> int:
        """This is the class itself."""
        return self.index

    @property
    def class_logit(self) -> int | None:
        """This is the class, where its logit is explained and not its probability."""
        return self.index if self.score == "logit" else None

    def logit(self, output: Tensor) -> Tensor:
        """Returns the class's logit of every image (N,)."""
        return class_logits(output)[:, self.index]

    def in_words(self, label: str, score: float) -> str:
        """Returns the class with its score, as in "cat (logit 3.55)"."""
        return f"{label} ({self.score} {score:.2f})"


@dataclass(frozen=True)
class Against(BaseTarget):
    """This target shows what speaks against a target: its score with the sign turned. -> (N,)"""

    target: Target

    def __call__(self, output: Any) -> Tensor:
        """Returns the negated score of every image."""
        return -self.target(output)

    def bound(self, outputs: Outputs) -> Target:
        """Returns it with its target bound."""
        return Against(bound(self.target, outputs))

    def fixed(self, output: Tensor) -> Target:
        """Returns it with its target fixed."""
        return Against(fixed(self.target, output))

    def logit(self, output: Tensor) -> Tensor | None:
        """Returns the negated logit of every image (N,)."""
        value = as_target(self.target).logit(output)
        return None if value is None else -value

    def candidate(self, output: Tensor) -> Tensor | None:
        """Returns that of its target."""
        return as_target(self.target).candidate(output)

    def of_place(self) -> bool:
        """Tells whether its target is of a place of the picture."""
        return as_target(self.target).of_place()

    def part(self) -> Mask | None:
        """Returns the part of the picture that the target itself is about."""
        return as_target(self.target).part()


@dataclass(frozen=True)
class ContrastTarget(BaseTarget):
    """This target tells why this and not that: it is the difference of two targets. -> (N,)

    For `explain` each of the two may also be a class index or name. For a detector `this` is a class or `Detections`,
    and the candidate of every such detection is asked for both classes.
    """

    this: Any
    """A target; for `explain` also a class index or name."""
    that: Any

    def __post_init__(self) -> None:
        """KonkyoError: both are one class."""
        if isinstance(self.this, (int, str, ClassTarget)) and self.this == self.that:
            raise KonkyoError(f"a contrast of {self.this!r} with itself is 0 everywhere; name another class")

    def __call__(self, output: Any) -> Tensor:
        """Returns the difference of the two scores of every image."""
        difference: Tensor = self.this(output) - self.that(output)
        return difference

    def bound(self, outputs: Outputs) -> Target:
        """Returns it with both targets bound."""
        return ContrastTarget(bound(self.this, outputs), bound(self.that, outputs))

    def fixed(self, output: Tensor) -> Target:
        """Returns it with both targets fixed."""
        return ContrastTarget(fixed(self.this, output), fixed(self.that, output))

    def location(self) -> tuple[float, float, float, float] | None:
        """Returns the box of what is preferred."""
        return as_target(self.this).location() if callable(self.this) else None

    def candidate(self, output: Tensor) -> Tensor | None:
        """Returns the candidate that is preferred; None where the other is of another one."""
        this, that = (as_target(target).candidate(output) for target in (self.this, self.that))
        return this if this is not None and that is not None and torch.equal(this, that) else None

    def matched_boxes(self, output: Tensor) -> list[tuple[float, ...]]:
        """Returns the box of the candidate that is preferred, one per image."""
        return as_target(self.this).matched_boxes(output)

    def logit(self, output: Tensor) -> Tensor | None:
        """Returns the difference of the two logits (N,); of what has none, the score stands in its place."""
        pair = [(target, as_target(target).logit(output)) for target in (self.this, self.that)]
        if all(value is None for _, value in pair):
            return None
        this, that = (target(output) if value is None else value for target, value in pair)
        return this - that

    def of_place(self) -> bool:
        """Tells whether one of the two is of a place of the picture."""
        return any(as_target(target).of_place() for target in (self.this, self.that) if callable(target))

    def part(self) -> Mask | None:
        """Returns the part of the picture that the first of the two is about."""
        return as_target(self.this).part()


@dataclass(frozen=True, init=False)
class SumTarget(BaseTarget):
    """This target is the sum of several targets' scores, as of classes that are one in the user's eyes. -> (N,)

    For `explain` each of them may also be a class index or name: SumTarget("taxi", "police_car").
    """

    targets: tuple[Target, ...]

    def __init__(self, *targets: Any) -> None:
        if not targets or isinstance(targets[0], (list, tuple)):
            raise KonkyoError('SumTarget needs at least one target, as in SumTarget("cat", "dog")')
        object.__setattr__(self, "targets", targets)

    def __call__(self, output: Any) -> Tensor:
        """Returns the sum of the scores of every image."""
        return torch.stack([target(output) for target in self.targets]).sum(0)

    def bound(self, outputs: Outputs) -> Target:
        """Returns it with all targets bound."""
        return SumTarget(*(bound(target, outputs) for target in self.targets))

    def fixed(self, output: Tensor) -> Target:
        """Returns it with all targets fixed."""
        return SumTarget(*(fixed(target, output) for target in self.targets))

    def logit(self, output: Tensor) -> Tensor | None:
        """Returns the sum of the logits (N,); of what has none, the score stands in its place."""
        values = [as_target(target).logit(output) for target in self.targets]
        if all(value is None for value in values):
            return None
        return torch.stack([t(output) if v is None else v for t, v in zip(self.targets, values, strict=True)]).sum(0)

    def of_place(self) -> bool:
        """Tells whether one of the targets is of a place of the picture."""
        return any(as_target(target).of_place() for target in self.targets)

    def part(self) -> Mask | None:
        """Returns the part of the picture that the first of the targets is about."""
        return as_target(self.targets[0]).part()


@dataclass(frozen=True)
class Magnitude(BaseTarget):
    """This target stands for an output without decisions, where none is needed: the norm of all its numbers. -> (N,)"""

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the Euclidean norm of every image's output."""
        return output.flatten(1).norm(dim=1) if output.ndim > 1 else output.abs()


@dataclass(frozen=True)
class TopK:
    """This asks `explain` for the k highest classes of every image, one row each, from one forward."""

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise KonkyoError(f"TopK needs a whole number k >= 1; got {self.k!r}")


@dataclass(frozen=True, init=False)
class Each:
    """This asks `explain` for every one of these targets (names, indices or Targets) on every image, one row each."""

    targets: tuple[int | str | Target, ...]

    def __init__(self, *targets: int | str | Target) -> None:
        if not targets or isinstance(targets[0], (list, tuple)):
            raise KonkyoError('Each needs at least one target, as in Each("cat", "dog")')
        object.__setattr__(self, "targets", targets)


def combination(request: Any, part: Callable[[Any], Target]) -> Target | None:
    """Returns a combination of targets with every part as `part` makes it of what was asked; None for anything else."""
    if isinstance(request, ContrastTarget):
        return ContrastTarget(part(request.this), part(request.that))
    if isinstance(request, SumTarget):
        return SumTarget(*map(part, request.targets))
    return Against(part(request.target)) if isinstance(request, Against) else None


def leaves(request: Any) -> Iterator[Any]:
    """Yields what a request is made of: a list of requests, `Each`, or a combination; else the request itself."""
    parts: Sequence[Any]
    if isinstance(request, (Each, SumTarget)):
        parts = request.targets
    elif isinstance(request, ContrastTarget):
        parts = (request.this, request.that)
    elif isinstance(request, Against):
        parts = (request.target,)
    elif isinstance(request, (list, tuple)):
        parts = request
    else:
        yield request
        return
    for part in parts:
        yield from leaves(part)


def bound_request(request: Any, outputs: Outputs) -> Any:
    """Returns what a user asked for, a target, a list of targets or `Each`, with every target bound."""
    if isinstance(request, Each):
        return Each(*(bound_request(target, outputs) for target in request.targets))
    if isinstance(request, (list, tuple)):
        return [bound_request(entry, outputs) for entry in request]
    return bound(request, outputs)
