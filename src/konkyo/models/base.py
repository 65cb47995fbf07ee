"""Model: a network and what explaining it needs. Adapters build it; a plain nn.Module becomes one as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from konkyo.data.axes import Axes
from konkyo.data.frame import Frame
from konkyo.engine.layer import Layer
from konkyo.engine.session import run_network
from konkyo.engine.trace import Site, Trace
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.models import display
from konkyo.models.axes import likely_axes
from konkyo.models.facts import completed, facts_of, is_session, unwrapped
from konkyo.models.kinds import Arguments
from konkyo.models.layers import Layers, Traces
from konkyo.models.outputs import Choice, base_model_features, choose, headless, of_unit_length, select_logits
from konkyo.models.pipelines import is_pipeline
from konkyo.models.preprocess import Preprocess
from konkyo.models.prompts import Prompts, Texts
from konkyo.models.readers import Clips, Reader
from konkyo.targets.base import fixed
from konkyo.targets.classes import Score, Target, TopK
from konkyo.targets.detections import Detections
from konkyo.tasks import Classes, ClassificationTask, DetectionTask, Task
from konkyo.tasks.decision import Decision
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


@dataclass(frozen=True, eq=False, init=False)
class Model:
    """A network, how to prepare its images, and what its output means. Callable: images (N, C, H, W) -> output.

    `preprocess` is needed for paths and pictures, not for tensors; `classes` for targets by name; `select` finds the
    logits in what the module returns. Wrappers (DataParallel, DistributedDataParallel, AveragedModel, torch.compile)
    are taken off. `multilabel`, `probabilities` and `detector` say the task in short: classes that do not exclude each
    other, whose probabilities are sigmoids; an output of probabilities (True) or logits (False; None: a warning where
    they look like probabilities); or detection. Without any of these, and without a `select` or `call`, a module that a
    library's adapter knows for a detector is one. `weights`: those of torchvision that the module has, as
    `ResNet50_Weights.DEFAULT`, whose preprocessing and classes are taken where none are given; nothing is loaded.
    `processor`: what a module of transformers reads texts and pictures with; None: of the files it came from.
    A pipeline of transformers in the place of the module has both in it.
    `axes`: what the axes of the module's input are where they are not (N, C, H, W), as in "NTCHW" (`konkyo.data.Axes`);
    None: those of the module's class, where a library's. `reader`: how files become inputs of more than pictures.
    KonkyoError: not a module, or a TorchScript module.
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
    axes: Axes | None
    """What the axes of the module's input are; None: the usual ones."""
    reader: Reader | None
    """How videos, volumes or signals are read; None: inputs are pictures, or tensors."""
    prompts: Prompts | None
    """The text that the network reads beside the image; None: it reads none."""
    _traces: Traces = field(init=False, repr=False)
    _choice: dict[str, str] = field(init=False, repr=False)
    """What was found out while the logits were looked for in the output; it is the same for all images."""

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
        probabilities: bool | None = None,
        prompts: Prompts | None = None,
        weights: Any = None,
        processor: Any = None,
        axes: str | Axes | None = None,
        reader: Reader | None = None,
    ) -> None:
        arguments: Arguments = {
            **{"module": module, "preprocess": preprocess, "classes": classes, "name": name, "select": select},
            **{"call": call, "multilabel": multilabel, "detector": detector, "task": task, "prompts": prompts},
            **{"probabilities": probabilities, "weights": weights, "processor": processor},
            **{"axes": axes, "reader": reader},
        }
        for key, value in {**completed(arguments), "_traces": {}, "_choice": {}}.items():
            object.__setattr__(self, key, value)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the output for prepared images: logits (N, K) of a classifier, (N, Q, 4 B + K) of a detector.

        KonkyoError: whatever the network raises, its cause kept; but out of memory passes. Also: no such tensor.
        """
        if self.prompts is not None:
            self.prompts.require(self.name)
        output: object = run_network(
            self.module, self.name, images, lambda: self.task.output(self.module, images, self._selected)
        )
        if not isinstance(output, Tensor) or not output.ndim:
            came = "a tensor without axes" if isinstance(output, Tensor) else type(output).__name__
            raise KonkyoError(
                f"the output of {self.name} was expected to be a tensor (N, ...) with an entry per image; got {came}: "
                "konkyo.Model(module, select=lambda output: ...) says where; output.reshape(-1, 1) undoes a squeeze"
            )
        return output

    def prompted(self, *, question: str | None = None, texts: Texts | Sequence[str] | None = None) -> Model:
        """Returns the model of images alone that this one is with a question, or with texts for its classes.

        Without either it is the model itself, with its usual text where it has one. KonkyoError: a text of which the
        network has no use.
        """
        if question is not None and not isinstance(question, str):
            raise KonkyoError(
                f"a question is a text; got {question!r}; one per image: konkyo.explain(..., question=[...])"
            )
        values = {
            "question": question,
            "texts": texts if texts is None or isinstance(texts, Texts) else Texts.of(texts),
        }
        noun = "" if self.prompts is None else self.prompts.noun
        for name, value in values.items():
            if value is not None and name != noun:
                reads = f"reads {noun}=" if noun else "reads no text beside the image"
                raise KonkyoError(f"{name}= goes with networks that read it; {self.name} {reads}")
        if self.prompts is None:
            return self
        value = values[noun]
        if value is None:
            value = None if self.prompts.value is not None else self.prompts.default
        if value is None:
            return self
        bound = replace(self, **self.prompts.bound(value))
        object.__setattr__(bound, "_traces", self._traces)  # the layers are those of the image, whatever the text
        return bound

    def __repr__(self) -> str:
        return display.words_of(self)

    def _repr_html_(self) -> str:
        return display.html_of(self)

    def _selected(self, module: nn.Module, images: Tensor) -> Tensor:
        """Returns the tensor in what the module returns that is its output (N, ...)."""
        images = images if self.axes is None else self.axes.outside(images)
        output = module(images) if self.call is None else self.call(module, images)
        choice = choose(output, len(self.classes)) if self.select is select_logits else Choice(self.select(output))
        self._choice.update(assumed=choice.assumed, doubt=choice.doubt, features=choice.features)
        tensor = choice.tensor
        if not isinstance(tensor, Tensor):
            raise KonkyoError(f"`select` returns a tensor (N, ...); it gave {type(tensor).__name__}")
        return tensor

    def _headless(self, output: Tensor) -> str:
        """Returns why this output is of features and not of classes; "" where it is of classes, as far as is known."""
        if self.classes:
            return ""
        if self.select is not select_logits:
            return base_model_features(self.module, output.shape[-1])
        features = self._choice.get("features", "") or headless(self.module, output.shape[-1])
        return features or of_unit_length(output)

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
        preprocess = self._colours
        return (
            (0.0,)
            if preprocess is None
            else tuple(-m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True))
        )

    @property
    def white(self) -> tuple[float, ...]:
        """Returns the value of a white pixel in prepared images, per channel; (1.0,) without a preprocessing."""
        preprocess = self._colours
        return (1.0,) if preprocess is None else preprocess.white

    @property
    def _colours(self) -> Preprocess | None:
        """Returns what prepares the colours of pictures, or of the pictures of a clip."""
        return self.reader.picture if isinstance(self.reader, Clips) else self.preprocess

    def like(self) -> Tensor | None:
        """Returns a tensor with the device and dtype of the weights, if there are any."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((t for t in tensors if t.is_floating_point()), None)

    @property
    def takes_pictures(self) -> bool:
        """Returns whether its inputs are pictures, and not videos, volumes, signals or spectrograms."""
        return self.reader is None and (self.axes is None or self.axes.places == ("row", "column"))

    def laid(self, images: Tensor) -> Tensor:
        """Returns prepared inputs in the module's own axes as (N, C, *places), as konkyo holds them.

        An input without its first axis is one of a batch of one. KonkyoError: other axes, or axes that nobody said.
        """
        if self.axes is None:
            if images.ndim == 5:
                likely_axes(self.module, images.shape)
            return images
        return self.axes.inside(images[None] if images.ndim == len(self.axes.text) - 1 else images)

    def places(self, shape: Sequence[int]) -> tuple[str, ...]:
        """Returns the names of the places of inputs (N, C, *places), as "time", "row" and "column"."""
        return likely_axes(self.module, shape).places if self.axes is None else self.axes.places

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
        if images.layout is not torch.strided or images.is_meta:
            kind = "a meta tensor without values" if images.is_meta else f"one of layout {images.layout}"
            raise KonkyoError(f"preprocessed images are a dense tensor; got {kind}: a sparse one has images.to_dense()")
        like = self.like()
        return images if like is None else images.to(like.device, like.dtype)

    # --- layers -------------------------------------------------------------------------------------------------------

    def _layers(self, shape: Sequence[int]) -> Layers:
        return Layers(self, tuple(shape), self._traces)

    def sites(self, shape: Sequence[int]) -> tuple[Site, ...]:
        """Lists every module's output in a traced forward for images of a shape (C, H, W), as `konkyo layers` shows.

        Traced once per network and shape, on one seeded noise image.
        """
        return self._layers(shape).sites()

    def trace(self, shape: Sequence[int]) -> Trace:
        """Returns what a trace tells of the automatic layer for images of a shape (C, H, W)."""
        return self._layers(shape).trace()

    def moved(self, layer: Layer, shape: Sequence[int]) -> bool:
        """Tells whether a trace saw that the cells of a layer are not at their own places of images of a shape."""
        return layer.module is not None and layer.level == -1 and self._layers(shape).moved(layer)

    def confirm(self, layer: Layer, shape: Sequence[int], grid: Sequence[int]) -> bool:
        """Tells whether a layer's grid for images of a shape is as a trace of smaller images lets expect.

        Else the layers are to be asked for again: by then images of the shape itself were traced.
        """
        return self._layers(shape).confirm(layer.name, tuple(grid))

    def automatic_layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the layers that are explained by default: one, or several branches that together make one.

        Everything passes them on its way from the image to the output, if there are such layers. Of a detector they
        are where its adapter says, at the backbone's end. Empty where no module puts out a grid.
        """
        return self._layers(shape).automatic()

    def known_layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns `automatic_layers` if a trace has found them before; otherwise none, and nothing is run."""
        layers = self._layers(shape)
        return layers.automatic() if layers.remembered else ()

    def stages(self, shape: Sequence[int]) -> list[Layer]:
        """Returns the last layer of every grid size that the decision depends on, from shallow to deep.

        The last of them is the automatic one.
        """
        return self._layers(shape).stages()

    def cut(self, which: str | nn.Module | Layer | None, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the layers meant by a dotted name (`"block.relu#1"`: its second call), a module, "input" or None.

        None: the automatic layers; all others mean one. KonkyoError: no such layer, or no grid there.
        """
        return self._layers(shape).named(which)

    def layer(self, which: str | nn.Module | Layer | None, shape: Sequence[int]) -> Layer:
        """Returns the one layer that is meant, as by `cut`. KonkyoError: they are several branches."""
        layers = self.cut(which, shape)
        if len(layers) > 1:
            names = ", ".join(repr(layer.name) for layer in layers)
            raise KonkyoError(f"the features of {self.name} come from several layers, {names}; name one of them")
        return layers[0]

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
        classes = Classes(self.name, self.classes, self._headless(output))
        targets = self.task.targets_of(target, output, classes, score=score, frames=frames)
        return [[fixed(one, output[i : i + 1]) for one in image] for i, image in enumerate(targets)]

    def settled(self, images: Tensor, request: Any) -> Model:
        """Returns the model whose task reads the output for these prepared images; itself, as a rule.

        Of a network that answers in words that is one image and its answer. OneByOne: the images need a task each.
        """
        run = partial(run_network, self.module, self.name, images)
        task = self.task.settled(self.module, images, request, run)
        if task is self.task:
            return self
        settled = replace(self, task=task)
        object.__setattr__(settled, "_traces", self._traces)  # the layers are the same for all answers
        return settled

    def decides(self, output: Tensor) -> bool:
        """Tells whether the output holds decisions, which are explained where no target is given."""
        return self.task.decides(output, Classes(self.name, self.classes, self._headless(output)))

    def assumptions(self, targets: Sequence[Target], output: Tensor) -> tuple[str, ...]:
        """Returns what was assumed to read the output as these targets do, a sentence each."""
        assumed = self._choice.get("assumed", "")
        return (*((assumed,) if assumed else ()), *self.task.assumptions(targets, output, self._classes))

    def doubts(
        self, targets: Sequence[Target], output: Tensor, *, decided: bool, probabilities: bool
    ) -> tuple[str, ...]:
        """Returns what may be wrong in how the output is read as these targets do, a sentence each.

        `decided`: whether the targets are the model's own decisions. `probabilities`: see `Task.holds_probabilities`.
        """
        doubt = self._choice.get("doubt", "")
        classes = Classes(self.name, self.classes, self._headless(output) if decided else "")
        return (*((doubt,) if doubt else ()), *self.task.doubts(targets, classes, probabilities=probabilities))

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

    def decisions_beside(
        self, targets: Sequence[Target], images: Sequence[int], output: Tensor
    ) -> list[Decision | None]:
        """Returns what the model decided, of every target; target r is of image `images[r]` of the output."""
        return self.task.decisions_beside(targets, images, output, self._classes)

    def nothing(self, target: Any, output: Tensor) -> str:
        """Returns why images have no maps, where `target` was asked for, with the highest score that there was."""
        highest = self.task.highest(target, output, self._classes)
        return f"{self.task.nothing(target)}; the highest score of any candidate is {highest:.3g}"


def preprocess_of(model: Model) -> Preprocess:
    """Returns how a model's pictures are prepared. KonkyoError: the model does not say it."""
    if model.preprocess is None:
        raise KonkyoError(f"{model.name} does not say how to prepare a picture; give konkyo.Model(..., preprocess=...)")
    return model.preprocess


def as_model(model: Model | nn.Module) -> Model:
    """Returns the model itself, or as a model: an nn.Module, a pipeline of transformers, or a function of images.

    A function is a black box, and so is a session of onnxruntime. A module is a detector where a library's adapter
    knows it for one. Preprocessing and class names are those that the module itself tells (`pretrained_cfg` of timm,
    `config` of transformers); nothing is downloaded, and nothing guessed.
    """
    if isinstance(model, Model):
        return model
    if is_pipeline(model):
        return Model(model)
    if is_session(model):
        session: Model = import_module("konkyo.models.onnx").of_session(model)
        return session
    module = unwrapped(model)
    return Model(module, **facts_of(module))
