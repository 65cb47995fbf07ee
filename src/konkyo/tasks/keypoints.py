"""Keypoints: an output is a heat map for each joint (N, J, h, w), highest where the joint is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from konkyo.data.frame import Frame
from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError
from konkyo.targets.base import Target
from konkyo.targets.classes import Each, Score, TopK, combination
from konkyo.targets.keypoints import Keypoint
from konkyo.tasks.base import Classes, TargetRequest, Task, task


@task
@dataclass(frozen=True)
class KeypointTask(Task):
    """This task reads an output (N, J, h, w) as heat maps of joints; `Model.classes` has their names.

    The joint of the highest value is explained where none is named. KonkyoError, when targets are made: another form of
    output, or as many names as there are not joints.
    """

    noun: ClassVar[str] = "network of keypoints"
    method: ClassVar[str] = "hires_cam"
    methods: ClassVar[tuple[str, ...]] = ("hires_cam", "grad_cam", "layer_cam", "integrated_gradients", "occlusion")

    layer: str = ""
    """The module where the backbone ends; "": a trace finds it."""
    patch: int | None = None
    """The side in pixels of the patches that the layer's tokens are of; None: the layer puts out a grid."""

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the end of the backbone where it is named; none: a trace finds it."""
        if not self.layer:
            return ()
        if self.patch is None:
            return (Layer(self.layer, None),)
        return (Layer(self.layer, None, channel_axis=-1, tokens=tuple(side // self.patch for side in shape[1:])),)

    def confidences(self, output: Tensor) -> Tensor:
        """Returns the highest value of every joint's heat map (N, J)."""
        return output.flatten(2).amax(2) if output.ndim == 4 else output

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image: `request` is `Keypoint`, a joint's name or index, `TopK`, None, a Target.

        KonkyoError: an unknown joint, or an output that is no heat maps.
        """
        del score, frames
        if output.ndim != 4:
            raise KonkyoError(
                f"heat maps (N, joints, h, w) were expected of {classes.model}; its output has shape "
                f"{tuple(output.shape)}. konkyo.Model(module, select=lambda output: ...) says where they are"
            )
        if classes.names and len(classes.names) != output.shape[1]:
            raise KonkyoError(f"{len(classes.names)} names for the {output.shape[1]} joints of {classes.model}")
        if request is None or isinstance(request, TopK):
            count = 1 if request is None else min(request.k, output.shape[1])
            ranked = self.confidences(output).topk(count, dim=1).indices.tolist()
            return [[self._target(index, classes) for index in row] for row in ranked]
        return [[self._target(request, classes)]] * len(output)

    def _target(self, request: Any, classes: Classes) -> Target:
        if (combined := combination(request, lambda part: self._target(part, classes))) is not None:
            return combined
        if isinstance(request, (int, str)) and not isinstance(request, bool):
            request = Keypoint(request)
        if isinstance(request, Keypoint):
            index = _index(request.joint, classes) if isinstance(request.joint, str) else request.joint
            name = classes.names[index] if 0 <= index < len(classes.names) else f"joint {index}"
            return replace(request, joint=index, name=request.name or name)
        if not callable(request):
            raise KonkyoError(f"a target is konkyo.Keypoint(name or index), or a callable; got {request!r}")
        target: Target = request
        return target

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the joint's name, after the coordinate where that is explained."""
        if not isinstance(target, Keypoint):
            return super().label(target, classes, outputs)
        name = target.name or f"joint {target.joint}"
        return f"{target.coordinate} of {name}" if target.coordinate else name

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns a joint with its place; None for other targets."""
        if not isinstance(target, Keypoint):
            return None
        return {**asdict(target), "place": None if target.place is None else list(target.place)}

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the joint; None for values that are of something else."""
        if "joint" not in values:
            return None
        place = values["place"]
        return Keypoint(**{**values, "place": None if place is None else (int(place[0]), int(place[1]))})

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns the joints that the options name. KonkyoError: an option that has no use here."""
        options.refuse(model, self.noun, "threshold", "boxes", "quantity", "against")
        if options.classes and options.top is not None:
            raise KonkyoError("--class names the joints to explain, --top takes the surest ones; give one of them")
        return Each(*options.classes) if options.classes else TopK(options.top or 1)


def _index(name: str, classes: Classes) -> int:
    """Returns the index of a joint; "left wrist", "left_wrist" and "L_Wrist" are one name, as data sets write it."""
    plain = _plain(name)
    matching = [index for index, label in enumerate(classes.names) if _plain(label) == plain]
    return matching[0] if len(matching) == 1 else classes.index(name)


def _plain(name: str) -> str:
    words = name.lower().replace("_", " ").replace("-", " ").split()
    return " ".join({"l": "left", "r": "right"}.get(word, word) for word in words)
