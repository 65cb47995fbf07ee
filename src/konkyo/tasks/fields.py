"""Fields: an output is a number for every place of the picture, (N, H, W) or (N, 1, H, W): its depth, or a density."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from konkyo.data.frame import Frame
from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError
from konkyo.targets.base import Target
from konkyo.targets.classes import Each, Score, combination
from konkyo.targets.fields import Count, Depth, FieldTarget
from konkyo.targets.regions import Pixel, Region, RegionTarget
from konkyo.tasks.base import Classes, TargetRequest, Task, task
from konkyo.tasks.regions import region_of, restored_region, saved_region


@dataclass(frozen=True)
class _FieldTask(Task):
    """What depth and density have in common: one channel, and regions of the picture as what is asked for."""

    method: ClassVar[str] = "hires_cam"
    methods: ClassVar[tuple[str, ...]] = ("hires_cam", "grad_cam", "layer_cam", "occlusion")
    columns: ClassVar[tuple[str, ...]] = ("deviation",)
    preprocessing: ClassVar[Mapping[str, Any]] = {"crop": None}
    total: ClassVar[bool] = False
    quantity: ClassVar[str]

    def output(self, module: nn.Module, images: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Returns the field (N, 1, H, W). KonkyoError: an output of another form."""
        output = read(module, images)
        field = output[:, None] if output.ndim == 3 else output
        if field.ndim != 4 or field.shape[1] != 1:
            raise KonkyoError(
                f"a {self.noun} puts out a number per place, (N, H, W) or (N, 1, H, W); got {tuple(output.shape)}. "
                "konkyo.Model(module, select=lambda output: ...) says where it is"
            )
        return field

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image: `request` is `Depth` or `Count`, `Region`, `Pixel`, None, or a Target.

        KonkyoError: a class, which a field has none of, or a region without a cell.
        """
        del score
        images = [(output[i : i + 1], frames[i] if frames else Frame()) for i in range(len(output))]
        return [[self._target(request, one, frame, classes)] for one, frame in images]

    def _target(self, request: Any, output: Tensor, frame: Frame, classes: Classes) -> Target:
        if (made := combination(request, lambda part: self._target(part, output, frame, classes))) is not None:
            return made
        relative = isinstance(request, Depth) and request.relative
        where = request.where if isinstance(request, (Depth, Count)) else request
        where = Region() if where is None else where
        if isinstance(where, (Region, Pixel)):
            if where.label is not None:
                raise KonkyoError(f"label={where.label!r}: {classes.model} is a {self.noun}, which knows no classes")
            size = (output.shape[2], output.shape[3])
            region, words = region_of(where, size, frame)
            return FieldTarget(RegionTarget(0, region, where=words), relative, self.total, self.quantity, self._unit)
        if not callable(request):
            raise KonkyoError(
                f"{request!r} means nothing to {classes.model}: a target of a {self.noun} is konkyo.Region(box=...), "
                "konkyo.Pixel(x, y), or a callable output (N, 1, H, W) -> (N,)"
            )
        target: Target = request
        return target

    @property
    def _unit(self) -> str:
        return ""

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the quantity, and the region where it is not all of the picture."""
        if not isinstance(target, FieldTarget):
            return super().label(target, classes, outputs)
        rest = ", less the rest" if target.relative else ""
        return f"{target.noun}{'' if target.whole else ', ' + target.region.where}{rest}"

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns a region of a field as plain values; None for other targets."""
        if not isinstance(target, FieldTarget):
            return None
        values = {"relative": target.relative, "total": target.total, "noun": target.noun, "unit": target.unit}
        return {"field": saved_region(target.region), **values}

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the target of a field; None for values that are of something else."""
        if "field" not in values:
            return None
        region = restored_region(values["field"])
        others = {name: value for name, value in values.items() if name != "field"}
        return None if region is None else FieldTarget(region, **others)

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns what the options ask for: pixels, boxes or a mask. KonkyoError: an option without a use here."""
        options.refuse(model, self.noun, "classes", "top", "against", "threshold", "quantity", "region")
        places: list[Any] = [Pixel(x, y) for x, y in options.pixels]
        places += [Region(box=box) for box in options.boxes]  # type: ignore[arg-type]
        places += [] if options.mask is None else [Region(within=options.mask)]
        return Each(*places) if places else None


@task
@dataclass(frozen=True)
class DepthTask(_FieldTask):
    """This task reads an output (N, H, W) or (N, 1, H, W) as the depth of every place, in `unit`.

    `inverse`: the output is the inverse depth, in which large is near. What is explained is the mean over a part of the
    picture (`konkyo.Depth`), all of it where no target is given. KonkyoError, in a forward: another form of output.
    """

    noun: ClassVar[str] = "network of depth"
    quantity: ClassVar[str] = "depth"

    unit: str = ""
    inverse: bool = False
    layer: str = ""
    """The module whose grids all of the image passes, at the end of the backbone; "": a trace finds it."""

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the end of the backbone with all its grids, where it is named; none: a trace finds it."""
        del shape
        return (Layer(self.layer, None, level=None),) if self.layer else ()

    @property
    def _unit(self) -> str:
        return "(large is near)" if self.inverse else self.unit


@task
@dataclass(frozen=True)
class CountingTask(_FieldTask):
    """This task reads an output (N, H, W) or (N, 1, H, W) as a density of things.

    Its sum over a part of the picture is how many there are. That is what is explained (`konkyo.Count`), of the whole
    picture where no target is given. KonkyoError, in a forward: another form of output.
    """

    noun: ClassVar[str] = "network of densities"
    quantity: ClassVar[str] = "count"
    total: ClassVar[bool] = True
