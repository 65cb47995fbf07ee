"""Task: what a network's output means, and what follows from it for targets, words, methods and measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
from torch import Tensor, nn

from konkyo.data.frame import Frame
from konkyo.data.samples import Annotation, Sample
from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import Target
from konkyo.targets.classes import Against, ContrastTarget, Each, Magnitude, Score, SumTarget
from konkyo.targets.regions import WHOLE, RegionTarget
from konkyo.tasks.decision import Decision
from konkyo.tasks.responses import Passage
from konkyo.utils.tensors import min_max

Explained: TypeAlias = Literal["decision", "label"]
"""What is measured of a classifier: its decision, or the sample's own class."""
Run: TypeAlias = Callable[[Callable[[], Any]], Any]
"""It runs a forward of a network, with its errors wrapped, and returns what the forward returns."""

_LONGEST_LABEL = 80
SEVEN_CAMS = ("cam", "grad_cam", "grad_cam_pp", "score_cam", "eigen_cam", "ablation_cam", "layer_cam")
"""The class activation maps of the founding survey, in its order."""


@dataclass(frozen=True)
class Classes:
    """The names of a model's classes; `model` is the model's own name, for errors."""

    model: str
    names: tuple[str, ...] = ()
    features: str = ""
    """Why the output is of features and not of classes; "": nothing says that it is."""

    def index(self, name: str) -> int:
        """Returns the index of a class name (case does not matter).

        KonkyoError: an unknown name, or the name of several classes.
        """
        if not self.names:
            raise KonkyoError(
                f"{self.model} has no class names, so {name!r} means nothing to it; give the class's index"
            )
        indices = [i for i, c in enumerate(self.names) if c == name]
        indices = indices or [i for i, c in enumerate(self.names) if c.lower() == name.lower()]
        if not indices:
            raise unknown("class", name, self.names)
        if len(indices) > 1:
            raise KonkyoError(f"{name!r} is the name of classes {indices}; give the index of the one you mean")
        return indices[0]

    def label(self, index: int) -> str:
        """Returns the name of a class, or "class 3" where it has none."""
        return self.names[index] if index < len(self.names) else f"class {index}"


@dataclass(frozen=True)
class Matching:
    """Which detections are measured: those that are right, each with the thing that it is of.

    Detections above `threshold`, in the order of their scores, each to the thing of its class that it overlaps most and
    that no other has, by an IoU of `iou` or more. ODAM's evaluation takes threshold 0.1, iou 0.9, and `unique`: only
    where every method's map has one highest place.
    """

    threshold: float = 0.3
    iou: float = 0.5
    unique: bool = False

    def __str__(self) -> str:
        peak = ", every method's map with one highest place" if self.unique else ""
        return f"score > {self.threshold}, IoU >= {self.iou} with a thing of the class, one each{peak}"


@dataclass(frozen=True)
class TargetRequest:
    """What the command line's options say of targets; None and () are options that were left out."""

    classes: tuple[int | str, ...] = ()
    top: int | None = None
    against: int | str | None = None
    threshold: float | None = None
    boxes: tuple[tuple[float, ...], ...] = ()
    quantity: str | None = None
    region: str | None = None
    mask: str | None = None
    pixels: tuple[tuple[float, float], ...] = ()

    def names(self, *fields: str) -> list[str]:
        """Returns the options among these fields that were not left out, as the command line calls them."""
        words = {"classes": "--class", "against": "--not", "threshold": "--score", "boxes": "--box", "quantity": "--of"}
        words |= {"pixels": "--pixel"}
        return [words.get(field, f"--{field}") for field in fields if getattr(self, field) not in (None, ())]

    def refuse(self, model: str, noun: str, *fields: str, whose: str = "") -> None:
        """Raises KonkyoError where one of these options was given to a model that is a `noun`; `whose` they are."""
        if names := self.names(*fields):
            kind = f"{model} is {'an' if noun[0] in 'aeiou' else 'a'} {noun}"
            reason = f"for {whose} only; {kind}" if whose else f"{kind}, which has no use for this"
            raise KonkyoError(f"{', '.join(names)}: {reason}")


class Task(ABC):
    """A task says what the output (N, ...) of a network means; `Model.task` has one.

    `targets` must be written for every task. Everything else has a default. It is that of a task with one decision per
    image, which is the largest number of its output, and with no class, box or saved form of its own.
    """

    noun: ClassVar[str]
    """What a network of this task is called, as in "a classifier"."""
    instances: ClassVar[str] = ""
    """What its decisions are called where an image has any number of them, as in "detections"; "": it has one."""
    method: ClassVar[str] = "grad_cam"
    """The method that explains it where the user names none."""
    methods: ClassVar[tuple[str, ...]] = SEVEN_CAMS
    """The methods that are compared where the user names none."""
    columns: ClassVar[tuple[str, ...]] = ("deletion", "insertion")
    """The columns of metrics that are measured where the user names none."""
    preprocessing: ClassVar[Mapping[str, Any]] = {}
    """What differs from `Preprocess()` where a model does not say how to prepare pictures."""

    # --- the output ---------------------------------------------------------------------------------------------------

    def output(self, module: nn.Module, images: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Returns the output of the network for prepared images as one tensor (N, ...).

        `read(module, images)` runs the module and selects the tensor that `Model.select` finds.
        """
        return read(module, images)

    def settled(self, module: nn.Module, images: Tensor, request: Any, run: Run) -> Task:
        """Returns the task that reads the output for these images, where that depends on them and on the request.

        By default it is the task itself. `run` runs a forward of the network and returns what that does. OneByOne: the
        images need a task each.
        """
        del module, images, request, run
        return self

    def passages(self, targets: Sequence[Target]) -> tuple[Passage | None, ...]:
        """Returns the words that every target is about, of a network that answers in words; empty for other tasks."""
        del targets
        return ()

    def without_content(self, images: Tensor) -> Tensor | None:
        """Returns blank images like these (N, C, H, W), which tell what a text alone decides; None: no text is read."""
        del images
        return None

    def confidences(self, output: Tensor) -> Tensor:
        """Returns the numbers (N, ...) among which the largest is the decision."""
        return output

    def decides(self, output: Tensor, classes: Classes) -> bool:
        """Tells whether the output holds decisions, which are explained where no target is given."""
        del output, classes
        return True

    def holds_probabilities(self, output: Tensor, again: Callable[[], Tensor]) -> bool:
        """Tells whether an output that is read as logits holds probabilities; `again` gives it with a graph."""
        del output, again
        return False

    def of_probabilities(self, output: Tensor) -> tuple[Task, Tensor]:
        """Returns what reads an output that `holds_probabilities`, and the output as it reads it."""
        return self, output

    def assumptions(self, targets: Sequence[Target], output: Tensor, classes: Classes) -> tuple[str, ...]:
        """Returns what was assumed to read the output as these targets do, a sentence each."""
        del targets, output, classes
        return ()

    def doubts(self, targets: Sequence[Target], classes: Classes, *, probabilities: bool) -> tuple[str, ...]:
        """Returns what may be wrong in how the output is read as these targets do, a sentence each.

        `probabilities`: what `holds_probabilities` said.
        """
        del targets, classes, probabilities
        return ()

    def check(self, targets: Sequence[Target], size: Sequence[int]) -> None:
        """Warns of targets that images of this size (H, W) cannot have. KonkyoError: most of them are such."""
        del targets, size

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the layers that are explained by default for images (C, H, W); none: a trace finds them."""
        del shape
        return ()

    @property
    def within(self) -> str:
        """This is the dotted name of the module that reads the images, where a trace looks for layers; "": anywhere."""
        return ""

    # --- targets ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image, from one request of a user's; None asks for the network's decisions.

        A target is a request, too, and means itself. Lists and `Each` do not come here: `targets_of` takes them apart.
        `score` is what the method explains. `frames` says of every image where its picture lies in the input; none: the
        input itself is the picture. KonkyoError: an unknown request.
        """

    def targets_of(
        self,
        requests: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image, where a list has a request per image and `Each` several for every image.

        Anything else is one request, as of `targets`. KonkyoError: a list (or tensor) of another length.
        """
        entries = requests.tolist() if isinstance(requests, (Tensor, np.ndarray, np.generic)) else requests
        if isinstance(entries, (list, tuple)):
            if len(entries) != len(output):
                raise KonkyoError(
                    f"a list of targets has one entry per image: {len(output)} expected, {len(entries)} came; several "
                    f"targets for every image: Each(...) or {'Detections(...)' if self.instances else 'TopK(k)'}"
                )
            images = [
                self.targets_of(entry, output[i : i + 1], classes, score=score, frames=frames[i : i + 1])
                for i, entry in enumerate(entries)
            ]
            return [targets for (targets,) in images]
        if isinstance(entries, Each):
            parts = [self.targets_of(entry, output, classes, score=score, frames=frames) for entry in entries.targets]
            return [[target for part in image for target in part] for image in zip(*parts, strict=True)]
        return self.targets(entries, output, classes, score=score, frames=frames)

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns what a target is called in pictures; `outputs` is the number of the network's outputs, if known."""
        if isinstance(target, ContrastTarget):
            return f"{self.label(target.this, classes, outputs)}, not {self.label(target.that, classes, outputs)}"
        if isinstance(target, Against):
            return f"against {self.label(target.target, classes, outputs)}"
        if isinstance(target, SumTarget):
            return " + ".join(self.label(part, classes, outputs) for part in target.targets)
        if isinstance(target, RegionTarget):
            where = target.where or f"mean over {'all' if target.region == WHOLE else 'a region'}"
            return f"{classes.label(target.index)}, {where}"
        if isinstance(target, Magnitude):
            return "the whole output"
        words = str(getattr(target, "__name__", repr(target)))
        return words if len(words) <= _LONGEST_LABEL else f"{words[: _LONGEST_LABEL - 3]}..."

    def decisions_beside(
        self, targets: Sequence[Target], images: Sequence[int], output: Tensor, classes: Classes
    ) -> list[Decision | None]:
        """Returns what the model decided, of every target; target r is of image `images[r]` of the output.

        None: an output or a target that is of no classes.
        """
        del images, output, classes
        return [None] * len(targets)

    def parts(self, target: Target) -> list[Target]:
        """Returns the targets whose maps make the target's map: itself, or what it is a combination of."""
        return [target]

    def combined(self, maps: Tensor) -> Tensor:
        """Returns the map (*grid) of a combination, from those of its parts (P, *grid) after the ReLU.

        By default it is the largest at every place of the maps scaled to [0, 1] (ODAM's combination).
        """
        return min_max(maps).amax(0)

    def saturates(self, target: Target) -> bool:
        """Tells whether the score is a probability, whose gradient vanishes near 0 and 1."""
        del target
        return False

    def probability_inside(self, target: Target, output: Tensor, *, probabilities: bool) -> Tensor | None:
        """Returns the probability that the network itself makes of a target's logit, for one image's output (1, ...).

        `probabilities`: whether the output holds them. None: the network makes none.
        """
        del target, output, probabilities
        return None

    def boxes(self, targets: Sequence[Target], like: Tensor) -> Tensor | None:
        """Returns the boxes of targets (R, 4), xyxy in pixels of the network's input, NaN where a target has none.

        None: no target has one. The boxes have the device and dtype of `like`.
        """
        del targets, like
        return None

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns a target of this task as plain JSON values; None for other targets. See `restored`."""
        del target
        return None

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the target that `saved` gave these values for; None where another task gave them."""
        del values
        return None

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns what the command line's options ask `targets` for. KonkyoError: an option without a use here."""
        options.refuse(model, self.noun, *(field.name for field in fields(options)))

    def highest(self, request: Any, output: Tensor, classes: Classes) -> float:
        """Returns the highest score that there was, where nothing was decided that `request` asks for."""
        del request, classes
        return float(self.confidences(output).amax())

    def nothing(self, request: Any) -> str:
        """Returns why an image has no maps, where `request` was asked for."""
        del request
        return "nothing decided"

    # --- measuring ----------------------------------------------------------------------------------------------------

    def measured(self, sample: Sample, explained: Explained, matching: Matching) -> Any:
        """Returns the request for what is measured of a sample. KonkyoError: a label that the sample does not have."""
        del matching
        if explained == "label" and sample.label is None:
            raise KonkyoError(f"sample {sample.name} has no label of its own; explained='decision' needs none")
        return sample.label if explained == "label" else None

    def matches(
        self, labels: Sequence[str], boxes: Tensor | None, annotations: Sequence[Annotation], matching: Matching
    ) -> list[tuple[int, ...] | None]:
        """Returns which annotations every target is about; None leaves the target out.

        `boxes` (R, 4) are those of `boxes()` in the picture's pixels. By default these are the annotations of the
        target's class, and those without a class.
        """
        del boxes, matching
        return [
            tuple(i for i, a in enumerate(annotations) if a.label is None or same_class(a.label, label))
            for label in labels
        ]

    def request_of(self, target: Target, score: Score) -> Any:
        """Returns what asks a method that explains `score` for a target that was decided on before."""
        del score
        return target

    def perturbation_score(self, target: Target, box: Tensor) -> Target:
        """Returns the target that perturbed images are scored by; `box` (4,) is in input pixels, NaN where unknown."""
        del box
        return target


TASKS: dict[str, type[Task]] = {}
"""All tasks by the names of their classes."""

AnyTask = TypeVar("AnyTask", bound=type[Task])


def task(kind: AnyTask) -> AnyTask:
    """Registers a task, so that its targets can be loaded from files."""
    TASKS[kind.__name__] = kind
    return kind


def same_class(one: str | None, other: str | None) -> bool:
    """Tells whether two names are of one class: case, underscores and spaces do not matter."""
    return one is not None and other is not None and plain_name(one) == plain_name(other)


def plain_name(name: str) -> str:
    """Returns a class name as it is compared: in small letters, its words apart by single spaces."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
