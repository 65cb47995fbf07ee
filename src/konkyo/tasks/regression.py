"""Regression: an output is numbers (N,) or (N, K), each with a unit of its own, and of no class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from konkyo.data.frame import Frame
from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import Target
from konkyo.targets.classes import Against, ContrastTarget, Each, Score, TopK, combination
from konkyo.targets.numbers import Output
from konkyo.tasks.base import Classes, TargetRequest, Task, task

MOST = 16
"""So many numbers of an image are explained where none is named."""


@task
@dataclass(frozen=True)
class RegressionTask(Task):
    """This task reads an output (N,) or (N, K) as numbers; `Model.classes` has their names, `units` their units.

    `units`: one for all, or one each. All numbers are explained, a row each, where no target is given. Their usual
    methods keep the sign: what raises a number is positive, what lowers it negative.
    """

    noun: ClassVar[str] = "regressor"
    method: ClassVar[str] = "hires_cam"
    methods: ClassVar[tuple[str, ...]] = ("hires_cam", "grad_cam", "layer_cam", "integrated_gradients", "occlusion")
    columns: ClassVar[tuple[str, ...]] = ("deviation",)

    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.units, str):
            object.__setattr__(self, "units", (self.units,))

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image: `request` is an output's index or name, `Output`, a Target, or None.

        KonkyoError: a name that no output has (a class, say), or an output that is no numbers.
        """
        del score, frames
        if isinstance(request, TopK):
            raise KonkyoError(
                f"TopK: {classes.model} estimates numbers, of which none is the highest class; konkyo.Output(0)"
            )
        if request is not None:
            return [[self._target(request, output, classes)]] * len(output)
        count = _count(output, classes)
        if count > MOST:
            raise KonkyoError(
                f"{classes.model} estimates {count} numbers; say which one: target=konkyo.Output(index or name)"
            )
        return [[self._named(Output(index), output, classes) for index in range(count)]] * len(output)

    def _target(self, request: Any, output: Tensor, classes: Classes) -> Target:
        if (combined := combination(request, lambda part: self._target(part, output, classes))) is not None:
            return combined
        if isinstance(request, Output):
            return self._named(request, output, classes)
        if isinstance(request, (int, str)) and not isinstance(request, bool):
            return self._named(Output(request), output, classes)
        if not callable(request):
            raise KonkyoError(
                f"a target of a regressor is konkyo.Output(index or name), or a callable; got {request!r}"
            )
        target: Target = request
        return target

    def _named(self, target: Output, output: Tensor, classes: Classes) -> Output:
        """Returns the target with its index, name and unit."""
        count, index = _count(output, classes), target.index
        if isinstance(index, str):
            index = _index(index, classes, count)
        if not 0 <= index < count:
            raise KonkyoError(f"output {index} of {classes.model}, which estimates {count} (0 to {count - 1})")
        if len(self.units) not in (0, 1, count):
            raise KonkyoError(
                f"{len(self.units)} units for {count} numbers of {classes.model}: one for all, or one each"
            )
        unit = "" if not self.units else self.units[index if len(self.units) > 1 else 0]
        return target.at(index, classes.names[index] if classes.names else "", unit)

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns what the number is called; against it, that it is lowered."""
        if isinstance(target, Output):
            only = outputs is None or outputs == 1
            return target.name or ("the estimate" if only and target.index == 0 else f"output {target.index}")
        if isinstance(target, Against) and isinstance(target.target, Output):
            return f"lower {self.label(target.target, classes, outputs)}"
        return super().label(target, classes, outputs)

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns an output with its name, unit and reference; None for other targets."""
        if not isinstance(target, Output):
            return None
        values = asdict(target)
        return {"output": values.pop("index"), **values}

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the output; None for values that are of something else."""
        if "output" not in values:
            return None
        return Output(values["output"], **{name: value for name, value in values.items() if name != "output"})

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns the outputs that the options name. KonkyoError: an option that has no use here."""
        options.refuse(model, self.noun, "top", "threshold", "boxes", "quantity")
        if options.against is not None and len(options.classes) != 1:
            raise KonkyoError("--not goes with one --class: why this number and not that")
        if options.against is not None:
            return ContrastTarget(options.classes[0], options.against)
        return Each(*options.classes) if options.classes else None


def _count(output: Tensor, classes: Classes) -> int:
    """Returns how many numbers an image has. KonkyoError: names for another count, or an output of another shape."""
    if output.ndim > 1 and output.shape[2:].numel() != 1:
        raise KonkyoError(
            f"{classes.model} puts out shape {tuple(output.shape)}, and a regressor's numbers are (N,) or (N, K); "
            "konkyo.Model(module, select=lambda output: ...) says where they are"
        )
    count = output.shape[1] if output.ndim > 1 else 1
    if classes.names and len(classes.names) != count:
        raise KonkyoError(f"{len(classes.names)} names for {classes.model}, which estimates {count} numbers")
    return count


def _index(name: str, classes: Classes, count: int) -> int:
    """Returns the output of a name (case does not matter). KonkyoError: none has it, or none has a name."""
    if not classes.names:
        raise KonkyoError(
            f"{classes.model} estimates {count} number{'s' if count > 1 else ''} without names, and has no classes, so "
            f"{name!r} means nothing to it: give target=konkyo.Output(0), or names: konkyo.Model(module, "
            'classes=("age",), task=konkyo.RegressionTask(units=("years",)))'
        )
    matching = [index for index, label in enumerate(classes.names) if label.lower() == name.lower()]
    if len(matching) != 1:
        raise unknown("output", name, classes.names)
    return matching[0]
