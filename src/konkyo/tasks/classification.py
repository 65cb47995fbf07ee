"""Classification: an output is logits (N, K) of classes, or one logit (N, 1) that decides between two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from konkyo.data.frame import Frame
from konkyo.engine.ending import Ending, ending_of
from konkyo.errors import KonkyoError
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import (
    Against,
    ClassTarget,
    ContrastTarget,
    Each,
    Score,
    TopK,
    class_logits,
    combination,
    leaves,
)
from konkyo.tasks.base import Classes, TargetRequest, Task, task
from konkyo.tasks.decision import Decision, decisions_of_classes
from konkyo.utils.tensors import at_least_float32

SIDES = ("negative", "positive")
"""The classes of a model with one logit, where it names none."""
_ROUNDING = 2e-3  # of probabilities, which half precision rounds
_CERTAIN = 15.9  # the log-odds that single precision cannot tell from certainty


@task
@dataclass(frozen=True)
class ClassificationTask(Task):
    """This task reads an output (N, K) as logits of classes; one logit (N, 1) decides between two.

    The highest is explained where no target is given. With `multilabel` classes do not exclude each other.

    The probabilities of classes that do not exclude each other are sigmoids, those of others a softmax. With
    `probabilities` the network puts these out itself, and its output becomes logits: log(p / (1 - p)) of sigmoids, up
    to about 16, and log(p) of a softmax. False: they are logits, whatever they look like.
    """

    noun: ClassVar[str] = "classifier"
    columns: ClassVar[tuple[str, ...]] = ("deletion", "insertion", "ebpg@mask", "pointing_game@mask")

    multilabel: bool = False
    probabilities: bool | None = None

    # --- the output ---------------------------------------------------------------------------------------------------

    def output(self, module: nn.Module, images: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Returns the logits (N, ...); NaN in the place of a probability that is none."""
        output = read(module, images)
        return self._logits(output) if self.probabilities else output

    def _logits(self, output: Tensor) -> Tensor:
        """Returns probabilities as logits; NaN in the place of one that is none."""
        values = at_least_float32(output)
        values = values.where((values >= -_ROUNDING) & (values <= 1 + _ROUNDING), torch.nan)
        limits = torch.finfo(values.dtype)
        return values.logit(limits.eps) if self._sigmoids(output) else values.clamp_min(limits.tiny).log()

    def of_probabilities(self, output: Tensor) -> tuple[Task, Tensor]:
        """Returns what reads an output (N, K) that holds probabilities after all, and the logits of these."""
        exclusive = output.shape[1] > 1 and bool(((output.sum(1) - 1).abs() < 10 * _ROUNDING).all())
        task = replace(self, multilabel=self.multilabel or not exclusive, probabilities=True)
        return task, task._logits(output)

    def _sigmoids(self, output: Tensor) -> bool:
        """Tells whether probabilities are sigmoids, so that each output stands for itself."""
        return self.multilabel or output.ndim < 2 or output.shape[1] == 1

    def decides(self, output: Tensor, classes: Classes) -> bool:
        """Tells whether the output is of classes (N, K)."""
        return output.ndim == 2 and not classes.features

    def holds_probabilities(self, output: Tensor, again: Callable[[], Tensor]) -> bool:
        """Tells whether an output (N, K) that is read as logits holds probabilities.

        The graph of a network's last operations knows it as a rule, without a look at the values. `again` is called
        where the output has no graph and its values lie in [0, 1].
        """
        if self.probabilities or output.ndim != 2:
            return False
        ending = ending_of(output)
        if ending in (Ending.LOGITS, Ending.PROBABILITIES):
            return ending is Ending.PROBABILITIES
        values = output.detach()
        off = (values.sum(1) - 1).abs().amax() if values.shape[1] > 1 else values.new_ones(())
        low, high, off_one = torch.stack([values.amin(), values.amax(), off]).tolist()
        if not (low >= 0 and high <= 1 + _ROUNDING):
            return False
        if off_one <= _ROUNDING:
            return True
        if ending is Ending.UNKNOWN:
            ending = ending_of(again())
        if ending is Ending.UNKNOWN:  # nothing but its range speaks for it
            return output.shape[1] == 1
        return ending in (Ending.PROBABILITIES, Ending.SQUASHED)

    def assumptions(self, targets: Sequence[Target], output: Tensor, classes: Classes) -> tuple[str, ...]:
        """Returns that a single output without names was read as a decision between two classes."""
        if classes.names or output.ndim != 2 or output.shape[1] != 1 or not any(map(_of_class, targets)):
            return ()
        return (
            'The single output is read as the logit that decides between two classes, "negative" and "positive"; of '
            "another number give target=lambda output: output[:, 0].",
        )

    def doubts(self, targets: Sequence[Target], classes: Classes, *, probabilities: bool) -> tuple[str, ...]:
        """Returns that features, or probabilities, are read as logits of classes."""
        if not any(map(_of_class, targets)):
            return ()
        doubts = []
        if classes.features:
            doubts.append(f"{_of_features(classes)}. Its largest number is explained as if it were a class.")
        if probabilities and self.probabilities is None:
            doubts.append(
                f"{classes.model} puts out probabilities (all in [0, 1]), which are explained as they are, as if they "
                "were logits; say konkyo.Model(module, probabilities=True), or probabilities=False if they are logits."
            )
        return tuple(doubts)

    def probability_inside(self, target: Target, output: Tensor, *, probabilities: bool) -> Tensor | None:
        """Returns the probability of a class, where the network makes it and the gradient is that of its own step."""
        target = target.target if isinstance(target, Against) else target
        if not isinstance(target, ClassTarget) or output.ndim != 2:
            return None
        value = output[0, min(target.index, output.shape[1] - 1)]
        if probabilities:
            return value
        if not self.probabilities:
            return None
        if not self._sigmoids(output):
            return value.exp()
        # The log-odds undo the vanishing of the sigmoid's gradient, but where the probability is 0 or 1 itself.
        return value.sigmoid().where(value.abs() >= _CERTAIN, 0.5)

    # --- targets ------------------------------------------------------------------------------------------------------

    def targets_of(
        self,
        requests: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image; within a list or `Each` there may be classes and Targets only."""
        entries = requests.targets if isinstance(requests, Each) else requests
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if entry is None or isinstance(entry, (TopK, Each, list, tuple)):
                raise _unknown(entry)
        return super().targets_of(requests, output, classes, score=score, frames=frames)

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image.

        `request`: None, `TopK`, an int, a class name or a Target. KonkyoError: an unknown class.
        """
        del frames
        if classes.names and output.ndim == 2 and len(classes.names) != class_logits(output).shape[1]:
            raise KonkyoError(
                f"{len(classes.names)} class names for {classes.model}, whose output has "
                f"{class_logits(output).shape[1]} classes (a single logit stands for two: the negative, the positive)"
            )
        if request is None or isinstance(request, TopK):
            if classes.features and output.ndim != 2:
                raise KonkyoError(f"{_of_features(classes)}. The output has shape {tuple(output.shape)}")
            if self.probabilities:
                self._check_probabilities(output, classes)
            return self.decisions(output, 1 if request is None else request.k, score=score)
        return [[self._target(request, score, output, classes)]] * len(output)

    def _check_probabilities(self, output: Tensor, classes: Classes) -> None:
        """Raises KonkyoError where an output of probabilities, as logits, was none."""
        total = output.logsumexp(1) if output.ndim > 1 and not self._sigmoids(output) else output.new_zeros(())
        broken, off = torch.stack([output.isnan().any().to(output), total.abs().amax()]).tolist()
        if broken:
            raise KonkyoError(
                f"{classes.model} puts out numbers outside [0, 1], or NaN, which probabilities=True does not allow; "
                "logits need probabilities=False"
            )
        if off > 10 * _ROUNDING:
            raise KonkyoError(
                f"the probabilities of {classes.model} do not sum to 1, so its classes do not exclude each other: "
                "say multilabel=True beside probabilities=True"
            )

    def decisions(self, output: Tensor, k: int = 1, *, score: Score = "logit") -> list[list[Target]]:
        """Returns the k highest classes of every image, highest first. KonkyoError: an output that is not (N, K)."""
        if output.ndim != 2:
            raise KonkyoError(
                f"no class to explain in an output of shape {tuple(output.shape)}, (N, classes) was expected; give a "
                f"target: a callable output -> (N,) scores{_of_shape(output)}"
            )
        logits = class_logits(output)
        if k > logits.shape[1]:
            raise KonkyoError(f"TopK({k}) of a model with {logits.shape[1]} classes")
        ranked = logits.topk(k, dim=1).indices.tolist()
        return [[self._class_target(index, score) for index in row] for row in ranked]

    def _class_target(self, index: int, score: Score) -> ClassTarget:
        return ClassTarget(index, "sigmoid" if self.multilabel and score == "probability" else score)

    def _target(self, target: Any, score: Score, output: Tensor, classes: Classes) -> Target:
        if (combined := combination(target, lambda part: self._target(part, score, output, classes))) is not None:
            return combined
        if isinstance(target, str):
            if classes.features:
                raise KonkyoError(f"{_of_features(classes)}; so {target!r} names none of its numbers")
            one_logit = output.ndim == 2 and output.shape[1] == 1
            if one_logit and target not in classes.names and target in SIDES:
                return ClassTarget(SIDES.index(target), score)
            return self._class_target(classes.index(target), score)
        if isinstance(target, int) and not isinstance(target, bool):
            target = self._class_target(target, score)
        if isinstance(target, (TopK, Each)) or not callable(target):
            raise _unknown(target)
        if isinstance(target, ClassTarget):
            target.check(output)
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
        indices = [_class_of(target) for target in targets]
        if output.ndim != 2 or not targets or (not classes.names and all(index is None for index in indices)):
            return [None] * len(targets)
        rows = output[torch.tensor(images, device=output.device)]
        logits, one_logit = class_logits(rows), output.shape[1] == 1
        # Of one logit: softmax((-z, z)) would be sigmoid(2 z).
        probabilities = logits.sigmoid() if self.multilabel or one_logit else logits.softmax(1)

        def label(index: int) -> str:
            return self.label(ClassTarget(index), classes, output.shape[1])

        return decisions_of_classes(logits, probabilities, indices, label, exclusive=one_logit or not self.multilabel)

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
        options.refuse(model, self.noun, "threshold", "boxes", "quantity", whose="detectors")
        options.refuse(model, self.noun, "region", "mask", "pixels", whose="segmenters")
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


def _of_features(classes: Classes) -> str:
    """Returns that a network has no classes, and what explains it all the same."""
    return (
        f"{classes.model} puts out features, not classes: {classes.features}. Give target=, "
        "konkyo.Similarity(reference image) or another callable output -> (N,) scores; methods that know no class "
        "(eigen_cam, kpca_cam, fem) need none"
    )


def _of_shape(output: Tensor) -> str:
    """Returns what an output that is no (N, classes) may be, and how it is explained."""
    if output.ndim == 1:
        return "; one logit per image: select=lambda output: output[:, None]"
    if output.ndim == 3:
        return (
            "; dense predictions of a detector: konkyo.dense_detector; features of a network without a head (tokens, "
            "an embedding): eigen_cam and other methods that know no class need no target"
        )
    if output.ndim == 4 and output.shape[2:].numel() == 1:
        return "; logits (N, K, 1, 1): select=lambda output: output.flatten(1)"
    return (
        "; a segmentation: konkyo.Model(module, task=konkyo.SegmentationTask()), or the mean of class 3 alone: "
        "target=konkyo.RegionTarget(3); features of a network without a head: eigen_cam and other methods that know "
        "no class need no target"
    )


def _of_class(target: Target) -> bool:
    """Tells whether a target is of a class's score."""
    return any(isinstance(leaf, ClassTarget) for leaf in leaves(target))


def _class_of(target: Target) -> int | None:
    """Returns the class that a target asks about, of a contrast the first one; None where it is for no class."""
    return _class_of(target.this) if isinstance(target, ContrastTarget) else as_target(target).class_index


def _unknown(target: Any) -> KonkyoError:
    return KonkyoError(f"a target is a class index, a class name or a callable output -> (N,); got {target!r}")
