"""Model: a network and what explaining it needs. Adapters build it; a plain nn.Module becomes one as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from konkyo.engine.capture import untouched
from konkyo.engine.layer import INPUT, Layer, bind, main_tensor
from konkyo.engine.trace import Site, trace
from konkyo.errors import KonkyoError, NotApplicable, unknown
from konkyo.models.detectors import Detector, best_pairs
from konkyo.models.preprocess import Frame, Preprocess
from konkyo.targets.candidates import Candidates
from konkyo.targets.classes import Against, ClassTarget, ContrastTarget, Each, Score, Target, TopK, class_logits
from konkyo.targets.detections import NEAR, Detections, InstanceTarget
from konkyo.utils.tensors import overlap

Adapter: TypeAlias = Callable[[str, str | Path | None], "Model"]
SIDES = ("negative", "positive")
"""The classes of a model with one logit, where it names none."""
ADAPTERS: dict[str, Adapter] = {}
"""What `load` knows: the part of a model's name before the slash -> (the rest, weights) -> Model."""

_TRACES: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], list[Site]]] = WeakKeyDictionary()


def adapter(prefix: str) -> Callable[[Adapter], Adapter]:
    """Registers the loader of all models named `prefix/...`."""

    def register(load: Adapter) -> Adapter:
        ADAPTERS[prefix] = load
        return load

    return register


def select_logits(output: Any) -> Tensor:
    """The logits in what a classifier returns: a tensor, a tuple's first, a mapping's "logits", "out" or first, or a
    dataclass's."""
    if is_dataclass(output) and not isinstance(output, (Mapping, type)):
        output = {f.name: getattr(output, f.name) for f in fields(output)}
    if isinstance(output, Mapping):
        output = output.get("logits", output.get("out", output))
    found = main_tensor(output)
    if found is None:
        raise KonkyoError(
            f"no tensor in the model's output, a {type(output).__name__}; say where the logits are: "
            "konkyo.Model(module, select=lambda output: ...)"
        )
    return found


@dataclass(frozen=True, eq=False)
class Model:
    """A network, how to prepare its images, and the names of its classes. Callable: images (N, C, H, W) -> output.

    `preprocess` is needed for paths and pictures, not for tensors; `classes` for targets by name; `select` finds the
    logits in what the module returns. Wrappers (DataParallel, DistributedDataParallel, AveragedModel, torch.compile)
    are taken off. KonkyoError: not a module, or a TorchScript module.
    """

    module: nn.Module
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] = ()
    name: str = ""
    select: Callable[[Any], Tensor] = select_logits
    call: Callable[[nn.Module, Tensor], Any] | None = None
    """How the module is run on images (M, C, H, W), where it takes more than them; None: `module(images)`."""
    multilabel: bool = False
    """Whether the classes do not exclude each other: their probabilities are sigmoids."""
    detector: Detector | None = None
    """How the network is a detector; None: it is none. Its output then are `Candidates` (N, Q, 4 B + K)."""
    _traces: dict[tuple[int, ...], list[Site]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        module = _unwrapped(self.module)
        if isinstance(module, torch.jit.ScriptModule):
            raise KonkyoError(
                "a TorchScript module hides its layers; give the eager module that it was made from: "
                f"{module.original_name}"
            )
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "name", self.name or type(module).__name__)

    def __call__(self, images: Tensor) -> Tensor:
        """The output for prepared images; for a classifier the logits (N, K), for a detector (N, Q, 4 B + K)."""
        if self.detector is not None:
            return self.detector.propose(self.module, images)
        return self.select(self.module(images) if self.call is None else self.call(self.module, images))

    @property
    def black(self) -> tuple[float, ...]:
        """What a black pixel is in prepared images, per channel; (0.0,) where the preprocessing is not known."""
        own = self.preprocess
        return (0.0,) if own is None else tuple(-m / s for m, s in zip(own.mean, own.std, strict=True))

    def _like(self) -> Tensor | None:
        """A tensor with the device and dtype of the weights, if there are any."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((t for t in tensors if t.is_floating_point()), None)

    def prepared(self, images: Tensor) -> Tensor:
        """Preprocessed images with the device and dtype of the weights. KonkyoError: not a floating (N, C, ...)."""
        axes = 3 if self.preprocess is None else 4  # a network of signals is one without pictures to prepare
        if images.ndim < axes or not images.is_floating_point() or not images.numel():
            raise KonkyoError(
                f"preprocessed images are a floating tensor (N, C, H, W) with N >= 1; got {tuple(images.shape)} "
                f"{images.dtype}"
            )
        like = self._like()
        return images if like is None else images.to(like.device, like.dtype)

    # --- layers -------------------------------------------------------------------------------------------------------

    def sites(self, shape: Sequence[int]) -> list[Site]:
        """Every module's output in one traced forward for images of this shape (C, H, W), as `konkyo layers` shows.

        Traced once per network and shape, on one seeded noise image.
        """
        usual = self.select is select_logits and self.call is None and self.detector is None
        traces = _TRACES.setdefault(self.module, {}) if usual else self._traces
        found = traces.get(tuple(shape))
        if found is None or not _still_there(found, self.module):
            noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), device="cpu")
            with untouched(self.module), torch.inference_mode(False):
                found = trace(self._decided, self.module, self.prepared(noise))
            if any(s.gradient for s in found):  # of an untrained head's zeros nothing can be learned for later
                traces[tuple(shape)] = found
        return found

    def _decided(self, images: Tensor) -> Tensor:
        """The numbers among which the largest is the decision."""
        output = self(images)
        return output if self.detector is None else Candidates(output, self.detector.classes).probabilities

    def _backbone_end(self, detector: Detector, shape: Sequence[int]) -> Layer:
        if detector.patch is None:
            return bind(Layer(detector.layer, None, level=None), self.module)
        grid = tuple(side // detector.patch for side in shape[1:])
        return bind(Layer(detector.layer, None, channel_axis=-1, tokens=grid, prefix=1), self.module)

    def automatic_layer(self, shape: Sequence[int]) -> Layer | None:
        """The last feature grid that the decision depends on and a module with weights follows, if there is one.

        Of a detector: where its adapter says, at the backbone's end.
        """
        if self.detector is not None and self.detector.layer:
            return self._backbone_end(self.detector, shape)
        sites = self.sites(shape)
        grids = [s for s in sites if s.layer is not None]
        features = [s for s in grids if s.before_head] or grids
        # A Linear on a grid (query, key, value) only projects what another module put out.
        features = [s for s in features if s.kind != "Linear" and s.gradient] or features
        chosen = next((s for s in reversed(features) if s.gradient), features[-1] if features else None)
        return None if chosen is None or chosen.layer is None else bind(chosen.layer, self.module)

    def stages(self, shape: Sequence[int]) -> list[Layer]:
        """The last layer of every grid size that the decision depends on, up to the automatic one, shallow to deep."""
        last = self.automatic_layer(shape)
        if last is None:
            raise KonkyoError(f"{self.name}: no layer puts out a feature grid for images of shape {tuple(shape)}")
        sites = self.sites(shape)
        found: dict[tuple[int, ...], Layer] = {}
        # A pyramid has no grid of its own, but what is in it has.
        end = max(i for i, s in enumerate(sites) if f"{s.name}.".startswith(f"{last.name}."))
        for site in sites[: end + 1]:
            if site.layer is not None and site.gradient:
                found.pop(site.grid, None)
                found[site.grid] = site.layer
        return [bind(layer, self.module) for layer in found.values()] or [last]

    def layer(
        self, which: str | nn.Module | Layer | None, shape: Sequence[int], *, needs_gradient: bool = True
    ) -> Layer:
        """The layer meant by a dotted name (`"block.relu#1"`: its second call), a module, "input" or None.

        None: the automatic layer. KonkyoError: no such layer, no grid there, or a grid that the decision does not
        depend on (where that blanks the map).
        """
        if isinstance(which, Layer):
            return which if which.module is not None or which.name == INPUT else bind(which, self.module)
        if which == INPUT:
            return Layer(INPUT, None)
        if which is None:
            automatic = self.automatic_layer(shape)
            if automatic is None:
                raise KonkyoError(
                    f"{self.name}: no layer puts out a feature grid for images of shape {tuple(shape)}; "
                    'only layer="input" is on offer'
                )
            return automatic
        sites = self.sites(shape)
        name, _, call = (self._name_of(which) if isinstance(which, nn.Module) else which).partition("#")
        if self.detector is not None and name == self.detector.layer and not call:
            return self._backbone_end(self.detector, shape)
        site = next((s for s in sites if s.name == name), None)
        if site is None or site.layer is None:
            self._refuse(name, site, sites)
        assert site is not None
        assert site.layer is not None
        if needs_gradient and site.gradient == 0 and any(s.gradient for s in sites):
            works = self.automatic_layer(shape)
            raise KonkyoError(
                f"the decision of {self.name} does not depend on the grid at layer {name!r} (its gradient is exactly "
                f"0), so the map would be blank; a layer that works: {works.name if works else INPUT!r}"
            )
        if call and not call.lstrip("-").isdigit():
            raise KonkyoError(f"a call of a layer is a number, as in {name + '#0'!r}; got {which!r}")
        return bind(replace(site.layer, call=int(call)) if call else site.layer, self.module)

    def _name_of(self, module: nn.Module) -> str:
        for name, found in self.module.named_modules():
            if found is module and name:
                return str(name)
        raise KonkyoError(f"the module given as layer ({type(module).__name__}) is not part of {self.name}")

    def _refuse(self, name: str, site: Site | None, sites: list[Site]) -> None:
        grids = [s.name for s in sites if s.layer is not None]
        if site is not None:
            raise KonkyoError(
                f"layer {name!r} puts out shape {site.shape} per image, which is no feature grid; layers with one, "
                f"from the last: {', '.join(grids[::-1][:8])}"
            )
        if name in dict(self.module.named_modules()):
            raise KonkyoError(
                f"layer {name!r} only passes its input on, or is not run as a module in a forward; "
                f"layers with a grid, from the last: {', '.join(grids[::-1][:8])}"
            )
        raise unknown("layer", name, [INPUT, *grids[::-1]])

    # --- decisions and targets ----------------------------------------------------------------------------------------

    def decisions(self, output: Tensor, k: int = 1, *, score: Score = "logit") -> list[list[Target]]:
        """What the model itself decided: the k highest classes of every image, highest first."""
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

    def targets(
        self, target: Any, output: Tensor, *, score: Score = "logit", frames: Sequence[Frame] = ()
    ) -> list[list[Target]]:
        """The targets of every image.

        `target`: None, `TopK`, `Each`, an int, a class name, a Target, or a list (or integer tensor) of these with one
        entry per image; for a detector `Detections` too. KonkyoError: an unknown class, a list of the wrong length.
        """
        count = len(output)
        if self.detector is not None:
            return self._instances(target, output, score, frames)
        if isinstance(target, Detections) or score == "similarity":
            raise NotApplicable(f"{self.name} is no detector: it has no detections to be explained")
        if self.classes and output.ndim == 2 and len(self.classes) != class_logits(output).shape[1]:
            raise KonkyoError(
                f"{len(self.classes)} class names for {self.name}, whose output has {class_logits(output).shape[1]} "
                "classes (a single logit stands for two: the negative, the positive)"
            )
        if target is None:
            return self.decisions(output, score=score)
        if isinstance(target, TopK):
            return self.decisions(output, target.k, score=score)
        if isinstance(target, Each):
            return [[self._target(t, score, output) for t in target.targets]] * count
        entries = target.tolist() if isinstance(target, (Tensor, np.ndarray, np.generic)) else target
        if isinstance(entries, (list, tuple)):
            if len(entries) != count:
                raise KonkyoError(
                    f"a list of targets has one entry per image: {count} expected, {len(entries)} came; "
                    "several targets for every image: Each(...) or TopK(k)"
                )
            return [[self._target(t, score, output)] for t in entries]
        return [[self._target(entries, score, output)]] * count

    def _target(self, target: Any, score: Score, output: Tensor) -> Target:
        if isinstance(target, ContrastTarget):
            return ContrastTarget(self._target(target.this, score, output), self._target(target.that, score, output))
        if isinstance(target, Against):
            return Against(self._target(target.target, score, output))
        if isinstance(target, str):
            one_logit = output.ndim == 2 and output.shape[1] == 1
            if one_logit and target not in self.classes and target in SIDES:
                return ClassTarget(SIDES.index(target), score)
            return self._class_target(self.class_index(target), score)
        if isinstance(target, int) and not isinstance(target, bool):
            return self._class_target(target, score)
        if isinstance(target, (TopK, Each)) or not callable(target):
            raise KonkyoError(f"a target is a class index, a class name or a callable output -> (N,); got {target!r}")
        return cast("Target", target)

    def _instances(self, target: Any, output: Tensor, score: Score, frames: Sequence[Frame]) -> list[list[Target]]:
        """The targets of every image of a detector: detections, or Targets as they come."""
        if isinstance(target, (list, tuple)):
            if len(target) != len(output):
                raise KonkyoError(
                    f"a list of targets has one entry per image: {len(output)} expected, {len(target)} came; "
                    "several targets for every image: Each(...) or Detections(...)"
                )
            each = [self._instances(t, output[i : i + 1], score, frames[i : i + 1]) for i, t in enumerate(target)]
            return [row for (row,) in each]
        if isinstance(target, Each):
            parts = [self._instances(t, output, score, frames) for t in target.targets]
            return [[t for part in image for t in part] for image in zip(*parts, strict=True)]
        if isinstance(target, TopK):
            target = Detections(top=target.k)
        elif isinstance(target, str) or (isinstance(target, int) and not isinstance(target, bool)):
            target = Detections(classes=(target,))
        elif target is None:
            target = Detections()
        if not isinstance(target, Detections):
            if not callable(target) or isinstance(target, (ContrastTarget, Against)):
                raise KonkyoError(f"a target of a detector is Detections(...), a class or a callable; got {target!r}")
            return [[cast("Target", target)]] * len(output)
        return self._detected(target, output, score, frames)

    def _detected(
        self, wanted: Detections, output: Tensor, score: Score, frames: Sequence[Frame]
    ) -> list[list[Target]]:
        assert self.detector is not None
        if self.classes and len(self.classes) < self.detector.classes:
            raise KonkyoError(f"{len(self.classes)} class names for a detector of {self.detector.classes} classes")
        if output[..., -self.detector.classes :].isnan().any():
            raise KonkyoError(
                f"{self.name} predicts NaN; half-precision weights are a usual reason: keep them in float32 and "
                'explain with precision="bf16"'
            )
        classes = [self.class_index(c) if isinstance(c, str) else c for c in wanted.classes]
        for index in classes:
            if not 0 <= index < self.detector.classes:
                raise KonkyoError(f"class {index}: this detector's classes are 0 to {self.detector.classes - 1}")
        quantity = wanted.quantity or ("similarity" if score == "similarity" else "probability")
        candidates, found = Candidates(output, self.detector.classes), list[list[Target]]()
        keep = self.detector.keep if wanted.suppressed else partial(best_pairs, classes=self.detector.classes)
        for image, kept in enumerate(keep(output, wanted.threshold)):
            likeness = candidates.probabilities[image, kept.index].tolist()
            pairs = list(zip(kept.index.tolist(), kept.label.tolist(), strict=True))
            targets = [
                InstanceTarget(
                    label,
                    tuple(candidates.boxes(label)[image, index].tolist()),
                    tuple(alike),
                    index,
                    quantity,
                    wanted.class_similarity,
                    wanted.least,
                )
                for (index, label), alike in zip(pairs, likeness, strict=True)
                if not classes or label in classes
            ]
            if wanted.boxes and targets:
                boxes = output.new_tensor([target.box for target in targets])
                boxes = frames[image].shown(boxes) if frames else boxes
                shares = [overlap(boxes, boxes.new_tensor(box)) for box in wanted.boxes]
                targets = [targets[at] for at in sorted({int(s.argmax()) for s in shares if s.amax() >= NEAR})]
            found.append(list(targets[: wanted.top]))
        return found

    def class_index(self, name: str) -> int:
        """The index of a class name (case does not matter). KonkyoError: unknown, or the name of several classes."""
        if not self.classes:
            raise KonkyoError(
                f"{self.name} has no class names, so {name!r} means nothing to it; give the class's index"
            )
        found = [i for i, c in enumerate(self.classes) if c == name]
        found = found or [i for i, c in enumerate(self.classes) if c.lower() == name.lower()]
        if not found:
            raise unknown("class", name, self.classes)
        if len(found) > 1:
            raise KonkyoError(f"{name!r} is the name of classes {found}; give the index of the one you mean")
        return found[0]

    def label(self, target: Target, classes: int | None = None) -> str:
        """What a target is called in pictures; `classes` is the number of the model's outputs, where it is known."""
        if isinstance(target, ContrastTarget):
            return f"{self.label(target.this, classes)}, not {self.label(target.that, classes)}"
        if isinstance(target, Against):
            return f"against {self.label(target.target, classes)}"
        if isinstance(target, InstanceTarget):
            name = self.classes[target.label] if target.label < len(self.classes) else f"class {target.label}"
            return name if target.quantity in ("probability", "logit") else f"{name}, {target.quantity}"
        if isinstance(target, ClassTarget):
            if target.index < len(self.classes):
                return self.classes[target.index]
            return SIDES[target.index] if classes == 1 else f"class {target.index}"
        return str(getattr(target, "__name__", repr(target)))


_DETECTORS_OF = {
    "torchvision": "konkyo.models.detectors.torchvision",
    "transformers": "konkyo.models.detectors.transformers",
}
"""Who knows the detectors of a library."""


def as_model(model: Model | nn.Module) -> Model:
    """The model itself, or a plain nn.Module made into one: a detector where a library's adapter knows it for one."""
    if isinstance(model, Model):
        return model
    module = _unwrapped(model)
    libraries = dict.fromkeys(kind.__module__.partition(".")[0] for kind in type(module).__mro__)
    for adapter in (_DETECTORS_OF[library] for library in libraries if library in _DETECTORS_OF):
        if (detector := import_module(adapter).detector(module)) is not None:
            return Model(module, detector=detector)
    return Model(module)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside its wrappers. KonkyoError: no module."""
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


def _still_there(sites: list[Site], module: nn.Module) -> bool:
    """Whether the network still has the modules that were traced."""
    names = {name for name, _ in module.named_modules()}
    return all(site.name in names for site in sites)
