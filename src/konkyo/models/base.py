"""Model: a network and what explaining it needs. Adapters build it; a plain nn.Module becomes one as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from konkyo.engine.layer import Layer, main_tensor
from konkyo.engine.session import run_network
from konkyo.engine.trace import Site
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.models.layers import Layers, Traces
from konkyo.models.preprocess import Frame, Preprocess
from konkyo.targets.classes import Score, Target, TopK
from konkyo.targets.detections import Detections
from konkyo.tasks import Classes, ClassificationTask, DetectionTask, Task
from konkyo.tasks.detection import Detector

Adapter: TypeAlias = Callable[[str, str | Path | None], "Model"]
ADAPTERS: dict[str, Adapter] = {}
"""What `load` knows: the part of a model's name before the slash -> (the rest, weights) -> Model."""


def adapter(prefix: str) -> Callable[[Adapter], Adapter]:
    """Registers the loader of all models named `prefix/...`."""

    def register(load: Adapter) -> Adapter:
        ADAPTERS[prefix] = load
        return load

    return register


def select_logits(output: Any) -> Tensor:
    """Returns the logits in what a classifier returns.

    They are a tensor, a tuple's first, a mapping's "logits", "out" or first, or a dataclass's.
    """
    if is_dataclass(output) and not isinstance(output, (Mapping, type)):
        output = {f.name: getattr(output, f.name) for f in fields(output)}
    if isinstance(output, Mapping):
        output = output.get("logits", output.get("out", output))
    logits = main_tensor(output)
    if logits is None:
        raise KonkyoError(
            f"no tensor in the model's output, a {type(output).__name__}; say where the logits are: "
            "konkyo.Model(module, select=lambda output: ...)"
        )
    return logits


@dataclass(frozen=True, eq=False, init=False)
class Model:
    """A network, how to prepare its images, and what its output means. Callable: images (N, C, H, W) -> output.

    `preprocess` is needed for paths and pictures, not for tensors; `classes` for targets by name; `select` finds the
    logits in what the module returns. Wrappers (DataParallel, DistributedDataParallel, AveragedModel, torch.compile)
    are taken off. `multilabel` and `detector` say the task in short: classes that do not exclude each other, whose
    probabilities are sigmoids, or detection. KonkyoError: not a module, or a TorchScript module.
    """

    module: nn.Module
    preprocess: Preprocess | None
    classes: tuple[str, ...]
    name: str
    select: Callable[[Any], Tensor]
    call: Callable[[nn.Module, Tensor], Any] | None
    """How the module is run on images (M, C, H, W), where it takes more than them; None: `module(images)`."""
    task: Task
    """What the output means: classification, unless something else is said."""
    _traces: Traces = field(init=False, repr=False)

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess | None = None,
        classes: Sequence[str] = (),
        name: str = "",
        select: Callable[[Any], Tensor] = select_logits,
        call: Callable[[nn.Module, Tensor], Any] | None = None,
        multilabel: bool | None = None,
        detector: Detector | None = None,
        task: Task | None = None,
    ) -> None:
        module = _unwrapped(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise KonkyoError(
                "a TorchScript module hides its layers; give the eager module that it was made from: "
                f"{module.original_name}"
            )
        if detector is not None:  # before `task`, which `dataclasses.replace` always passes on
            task = DetectionTask(detector)
        elif multilabel is not None or task is None:
            task = ClassificationTask(bool(multilabel))
        values: dict[str, Any] = {
            "module": module,
            "preprocess": preprocess,
            "classes": tuple(classes),
            "name": name or type(module).__name__,
            "select": select,
            "call": call,
            "task": task,
            "_traces": {},
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the output for prepared images: logits (N, K) of a classifier, (N, Q, 4 B + K) of a detector.

        KonkyoError: whatever the network raises, its cause kept; but out of memory passes. Also: no such tensor.
        """
        output: object = run_network(
            self.module, self.name, images, lambda: self.task.output(self.module, images, self._selected)
        )
        if not isinstance(output, Tensor) or not output.ndim:
            came = "a tensor without axes" if isinstance(output, Tensor) else type(output).__name__
            raise KonkyoError(
                f"the output of {self.name} was expected to be a tensor (N, ...) with an entry per image; got {came}: "
                "konkyo.Model(module, select=lambda output: ...) says where it is"
            )
        return output

    def _selected(self, module: nn.Module, images: Tensor) -> Tensor:
        return self.select(module(images) if self.call is None else self.call(module, images))

    @property
    def detector(self) -> Detector | None:
        """Returns how the network is a detector; None: it is none."""
        return self.task.adapter if isinstance(self.task, DetectionTask) else None

    @property
    def multilabel(self) -> bool:
        """Returns whether the classes do not exclude each other: their probabilities are sigmoids."""
        return isinstance(self.task, ClassificationTask) and self.task.multilabel

    @property
    def reads_logits(self) -> bool:
        """Returns whether the logits are found in the usual way, without a `select` or `call` of the model's own."""
        return self.select is select_logits and self.call is None

    @property
    def black(self) -> tuple[float, ...]:
        """Returns the value of a black pixel in prepared images, per channel; (0.0,) without a preprocessing."""
        preprocess = self.preprocess
        return (
            (0.0,)
            if preprocess is None
            else tuple(-m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True))
        )

    def _like(self) -> Tensor | None:
        """Returns a tensor with the device and dtype of the weights, if there are any."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((t for t in tensors if t.is_floating_point()), None)

    def prepared(self, images: Tensor) -> Tensor:
        """Returns preprocessed images with the device and dtype of the weights.

        KonkyoError: not a floating (N, C, ...).
        """
        axes = 3 if self.preprocess is None else 4  # a network of signals is one without pictures to prepare
        if images.ndim < axes or not images.is_floating_point() or not images.numel():
            raise KonkyoError(
                f"preprocessed images are a floating tensor (N, C, H, W) with N >= 1; got {tuple(images.shape)} "
                f"{images.dtype}"
            )
        like = self._like()
        return images if like is None else images.to(like.device, like.dtype)

    # --- layers -------------------------------------------------------------------------------------------------------

    def _layers(self, shape: Sequence[int]) -> Layers:
        return Layers(self, tuple(shape), self._traces)

    def sites(self, shape: Sequence[int]) -> list[Site]:
        """Lists every module's output in a traced forward for images of a shape (C, H, W), as `konkyo layers` shows.

        Traced once per network and shape, on one seeded noise image.
        """
        return self._layers(shape).sites()

    def automatic_layer(self, shape: Sequence[int]) -> Layer | None:
        """Returns the last feature grid that the decision depends on, with weights after it if there is such a one.

        Of a detector: where its adapter says, at the backbone's end.
        """
        return self._layers(shape).automatic()

    def stages(self, shape: Sequence[int]) -> list[Layer]:
        """Returns the last layer of every grid size that the decision depends on, from shallow to deep.

        The last of them is the automatic one.
        """
        return self._layers(shape).stages()

    def layer(
        self, which: str | nn.Module | Layer | None, shape: Sequence[int], *, needs_gradient: bool = True
    ) -> Layer:
        """Returns the layer meant by a dotted name (`"block.relu#1"`: its second call), a module, "input" or None.

        None: the automatic layer. KonkyoError: no such layer, no grid there, or a grid that the decision does not
        depend on (where that blanks the map).
        """
        return self._layers(shape).named(which, needs_gradient=needs_gradient)

    # --- decisions and targets ----------------------------------------------------------------------------------------

    def decisions(self, output: Tensor, k: int = 1, *, score: Score = "logit") -> list[list[Target]]:
        """Returns what the model decided: the k highest classes (or detections) of every image, highest first."""
        return self.targets(TopK(k), output, score=score)

    def targets(
        self, target: Any, output: Tensor, *, score: Score = "logit", frames: Sequence[Frame] = ()
    ) -> list[list[Target]]:
        """Returns the targets of every image.

        `target`: None, `TopK`, `Each`, an int, a class name, a Target, or a list (or integer tensor) of these with one
        entry per image; for a detector `Detections` too. KonkyoError: an unknown class, a list of the wrong length.
        """
        if not self.task.instances and (score == "similarity" or isinstance(target, Detections)):
            raise NotApplicable(f"{self.name} is no detector: it has no detections to be explained")
        to_picture = [frame.shown for frame in frames]
        return self.task.targets_of(target, output, self._classes, score=score, to_picture=to_picture)

    @property
    def _classes(self) -> Classes:
        return Classes(self.name, self.classes)

    def class_index(self, name: str) -> int:
        """Returns the index of a class name (case does not matter).

        KonkyoError: unknown, or the name of several classes.
        """
        return self._classes.index(name)

    def label(self, target: Target, classes: int | None = None) -> str:
        """Returns a target's name in pictures; `classes` is the number of the model's outputs, where it is known."""
        return self.task.label(target, self._classes, classes)


_DETECTORS_OF = {
    "torchvision": "konkyo.models.detectors.torchvision",
    "transformers": "konkyo.models.detectors.transformers",
}
"""Who knows the detectors of a library."""


def as_model(model: Model | nn.Module) -> Model:
    """Returns the model itself, or a plain nn.Module as a model.

    It is a detector where a library's adapter knows it for one.
    """
    if isinstance(model, Model):
        return model
    module = _unwrapped(model)
    libraries = dict.fromkeys(kind.__module__.partition(".")[0] for kind in type(module).__mro__)
    for adapter in (_DETECTORS_OF[library] for library in libraries if library in _DETECTORS_OF):
        if (detector := import_module(adapter).detector(module)) is not None:
            return Model(module, detector=detector)
    return Model(module)


def _unwrapped(module: nn.Module) -> nn.Module:
    """Returns the network inside its wrappers. KonkyoError: no module."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            module = module.module
        elif type(module).__name__ == "OptimizedModule":  # torch.compile; its class takes seconds to import
            module = module.get_submodule("_orig_mod")
        else:
            break
    if not isinstance(module, nn.Module):
        raise KonkyoError(f"a model is a torch.nn.Module, a konkyo.Model or a name for konkyo.load; got {module!r}")
    return module
