"""Classification: an output is logits (N, K) of classes, or one logit (N, 1) that decides between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import Against, ClassTarget, ContrastTarget, Each, Score, TopK, class_logits
from konkyo.tasks.base import Classes, TargetRequest, Task, ToPicture, task
from konkyo.tasks.decision import Decision, decisions_of_classes

SIDES = ("negative", "positive")
"""The classes of a model with one logit, where it names none."""


@task
@dataclass(frozen=True)
class ClassificationTask(Task):
    """The classes of an image, highest logit first. With `multilabel` they do not exclude each other.

    The probabilities of classes that do not exclude each other are sigmoids, those of others a softmax.
    """

    noun: ClassVar[str] = "classifier"
    columns: ClassVar[tuple[str, ...]] = ("deletion", "insertion", "ebpg@mask", "pointing_game@mask")

    multilabel: bool = False

    def targets_of(
        self,
        requests: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        to_picture: Sequence[ToPicture] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image; within a list or `Each` there may be classes and Targets only."""
        entries = requests.targets if isinstance(requests, Each) else requests
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if entry is None or isinstance(entry, (TopK, Each, list, tuple)):
                raise _unknown(entry)
        return super().targets_of(requests, output, classes, score=score, to_picture=to_picture)

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        to_picture: Sequence[ToPicture] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image.

        `request`: None, `TopK`, an int, a class name or a Target. KonkyoError: an unknown class.
        """
        del to_picture
        if classes.names and output.ndim == 2 and len(classes.names) != class_logits(output).shape[1]:
            raise KonkyoError(
                f"{len(classes.names)} class names for {classes.model}, whose output has "
                f"{class_logits(output).shape[1]} classes (a single logit stands for two: the negative, the positive)"
            )
        if request is None or isinstance(request, TopK):
            return self.decisions(output, 1 if request is None else request.k, score=score)
        return [[self._target(request, score, output, classes)]] * len(output)

    def decisions(self, output: Tensor, k: int = 1, *, score: Score = "logit") -> list[list[Target]]:
        """Returns the k highest classes of every image, highest first. KonkyoError: an output that is not (N, K)."""
        if output.ndim != 2:
            raise KonkyoError(
                f"no class to explain in an output of shape {tuple(output.shape)}, (N, classes) was expected; give a "
                "target: a callable output -> (N,) scores"
                + ("; dense predictions of a detector: konkyo.dense_detector" if output.ndim == 3 else "")
            )
        logits = class_logits(output)
        if k > logits.shape[1]:
            raise KonkyoError(f"TopK({k}) of a model with {logits.shape[1]} classes")
        ranked = logits.topk(k, dim=1).indices.tolist()
        return [[self._class_target(index, score) for index in row] for row in ranked]

    def _class_target(self, index: int, score: Score) -> ClassTarget:
        return ClassTarget(index, "sigmoid" if self.multilabel and score == "probability" else score)

    def _target(self, target: Any, score: Score, output: Tensor, classes: Classes) -> Target:
        if isinstance(target, ContrastTarget):
            this, that = (self._target(t, score, output, classes) for t in (target.this, target.that))
            return ContrastTarget(this, that)
        if isinstance(target, Against):
            return Against(self._target(target.target, score, output, classes))
        if isinstance(target, str):
            one_logit = output.ndim == 2 and output.shape[1] == 1
            if one_logit and target not in classes.names and target in SIDES:
                return ClassTarget(SIDES.index(target), score)
            return self._class_target(classes.index(target), score)
        if isinstance(target, int) and not isinstance(target, bool):
            return self._class_target(target, score)
        if isinstance(target, (TopK, Each)) or not callable(target):
            raise _unknown(target)
        return cast("Target", target)

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the name of a target's class; of one logit "negative" or "positive" where its sides have no names."""
        if not isinstance(target, ClassTarget):
            return super().label(target, classes, outputs)
        if outputs == 1 and target.index >= len(classes.names):
            return SIDES[target.index]
        return classes.label(target.index)

    def decisions_beside(
        self, targets: Sequence[Target], images: Sequence[int], output: Tensor, classes: Classes
    ) -> list[Decision | None]:
        """Returns the highest class of every target's image, with the probability and rank of the target's class.

        None: an output that is not (N, K), or targets of no class on a network whose outputs have no names.
        """
        asked = [_class_of(target) for target in targets]
        if output.ndim != 2 or not targets or (not classes.names and all(index is None for index in asked)):
            return [None] * len(targets)
        rows = output[torch.tensor(images, device=output.device)]
        logits, one_logit = class_logits(rows), output.shape[1] == 1
        # Of one logit: softmax((-z, z)) would be sigmoid(2 z).
        probabilities = logits.sigmoid() if self.multilabel or one_logit else logits.softmax(1)

        def label(index: int) -> str:
            return self.label(ClassTarget(index), classes, output.shape[1])

        return decisions_of_classes(logits, probabilities, asked, label, exclusive=one_logit or not self.multilabel)

    def saturates(self, target: Target) -> bool:
        """Tells whether the score is a softmax probability."""
        return isinstance(target, ClassTarget) and target.score == "probability"

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns the class and the score; None for a target that is no class."""
        return asdict(target) if isinstance(target, ClassTarget) else None

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the target of a class; None for values that are of something else."""
        return ClassTarget(**values) if values.keys() == {"index", "score"} else None

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns what the options ask for: classes, one class and not another, or the highest ones."""
        if names := options.names("threshold", "boxes", "quantity"):
            raise KonkyoError(f"{', '.join(names)}: for detectors only; {model} is a {self.noun}")
        if options.against is not None and not options.classes:
            raise KonkyoError("--not goes with --class: why this class and not that")
        if not options.classes:
            return TopK(options.top or 1)
        if options.top is not None:
            raise KonkyoError("--class names the classes to explain, --top takes the highest ones; give one of them")
        targets: list[Any] = list(options.classes)
        if options.against is not None:
            against: Any = options.against
            targets = [ContrastTarget(target, against) for target in targets]
        return Each(*targets)

    def request_of(self, target: Target, score: Score) -> Any:
        """Returns the class's index; the method decides whether its logit or its probability is explained."""
        del score
        index = as_target(target).class_index
        return target if index is None else index

    def perturbation_score(self, target: Target, box: Tensor) -> Target:
        """Returns the probability of the target's class."""
        del box
        index = as_target(target).class_index
        return target if index is None else self._class_target(index, "probability")


def _class_of(target: Target) -> int | None:
    """Returns the class that a target asks about, of a contrast the first one; None where it is for no class."""
    return _class_of(target.this) if isinstance(target, ContrastTarget) else as_target(target).class_index


def _unknown(target: Any) -> KonkyoError:
    return KonkyoError(f"a target is a class index, a class name or a callable output -> (N,); got {target!r}")
