"""Facts: what a user says of a module, and its library tells of it, as the fields of a `Model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from konkyo.data.axes import Axes
from konkyo.errors import KonkyoError
from konkyo.models.axes import known_axes
from konkyo.models.blackbox import BlackBox
from konkyo.models.kinds import Arguments, known, libraries_of
from konkyo.models.outputs import select_logits
from konkyo.models.pipelines import is_pipeline, opened
from konkyo.models.preprocess import Preprocess
from konkyo.models.readers import Clips
from konkyo.tasks import ClassificationTask, DetectionTask

_FACTS_OF = {
    "timm": "konkyo.models.timm",
    "torchvision": "konkyo.models.torchvision",
    "transformers": "konkyo.models.transformers",
}
"""Who knows what a library's modules say of their preprocessing and classes."""


def completed(arguments: Arguments) -> Arguments:
    """Returns the fields of a `Model` from its arguments, all of which are given. KonkyoError: see `Model`."""
    fields = _with_known(_with_published(_opened(arguments)))
    if fields["preprocess"] is None and fields["processor"] is not None:
        fields["preprocess"] = import_module(_FACTS_OF["transformers"]).preprocess_like(fields["processor"])
    task, classes = _task_of(fields)
    preprocess, reader, axes = fields["preprocess"], fields["reader"], fields["axes"]
    axes = Axes(axes) if isinstance(axes, str) else axes or known_axes(fields["module"])
    if preprocess is not None and axes is not None and axes.places == Clips.places:  # it prepares every frame
        reader = replace(reader, picture=preprocess) if isinstance(reader, Clips) else Clips(picture=preprocess)
        preprocess = None
    module = fields["module"]
    if isinstance(module, BlackBox) and module.takes_bytes and preprocess is not None:
        module.check(preprocess.mean, preprocess.std)
    return {
        **{name: fields[name] for name in ("module", "select", "call", "prompts")},
        **{"preprocess": preprocess, "classes": tuple(classes), "name": fields["name"] or type(module).__name__},
        **{"task": task, "axes": axes, "reader": reader},
    }


def _opened(arguments: Arguments) -> Arguments:
    """Takes the network out of a pipeline, and wrappers off it."""
    module, fields = arguments["module"], dict(arguments)
    if is_pipeline(module):
        module, processor = opened(module)
        fields["processor"] = fields["processor"] or processor
        fields["classes"] = fields["classes"] or facts_of(module).get("classes", ())
    return fields | {"module": unwrapped(module)}


def _with_published(fields: Arguments) -> Arguments:
    """Adds the preprocessing and the classes of published weights, where none are given."""
    if fields["weights"] is not None:
        published = import_module(_FACTS_OF["torchvision"]).described(fields["weights"], fields["module"])
        fields = fields | {n: fields[n] or published.get(n) for n in ("preprocess", "classes", "reader")}
    _require(fields["module"], fields["preprocess"])
    return fields


def _with_known(fields: Arguments) -> Arguments:
    """Adds what a library's adapter knows of a module, where a user has not said how its output is read."""
    said = ("detector", "multilabel", "probabilities", "task", "call", "prompts")
    if any(fields[name] is not None for name in said) or fields["select"] is not select_logits:
        return fields
    module = fields["module"]
    facts = known(module, fields["processor"], classes=fields["classes"])
    return {
        **fields,
        **{name: facts.get(name) for name in ("detector", "task", "call", "prompts", "multilabel")},
        **{name: fields[name] or facts.get(name) for name in ("preprocess", "axes", "reader")},
        **{"classes": fields["classes"] or facts.get("classes", ())},
        **{"name": fields["name"] or type(module).__name__, "module": facts.get("module", module)},
        **{"select": facts.get("select", select_logits)},
    }


def _task_of(fields: Arguments) -> tuple[Any, Sequence[str]]:
    """Returns the task, and the names of the classes. KonkyoError: probabilities of a detector."""
    detector, task, classes = fields["detector"], fields["task"], fields["classes"]
    multilabel, probabilities = fields["multilabel"], fields["probabilities"]
    if detector is not None and probabilities is not None:
        raise KonkyoError("probabilities= is about classifiers; of a detector dense_detector(activated=...) says it")
    if detector is not None:  # before `task`, which `dataclasses.replace` always passes on
        return DetectionTask(detector), _without_background(classes, detector.classes)
    if multilabel is None and probabilities is None and task is not None:
        return task, classes
    before = task if isinstance(task, ClassificationTask) else ClassificationTask()
    task = ClassificationTask(
        before.multilabel if multilabel is None else multilabel,
        before.probabilities if probabilities is None else probabilities,
    )
    return task, classes


def facts_of(module: nn.Module) -> dict[str, Any]:
    """Returns what a module tells of its images and classes, as arguments of `Model`."""
    facts: dict[str, Any] = {}
    for adapter in (_FACTS_OF[library] for library in libraries_of(module) if library in _FACTS_OF):
        facts |= import_module(adapter).facts(module)
    return facts


def _without_background(classes: Sequence[str], number: int) -> Sequence[str]:
    """Returns the names of a detector's classes; libraries list "background" before them, which is no class here."""
    first = classes[0].strip("_ ").lower() if len(classes) == number + 1 else ""
    return classes[1:] if first == "background" else classes


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns the network inside its wrappers. KonkyoError: no module."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            module = module.module
        elif type(module).__name__ == "OptimizedModule":  # torch.compile; its class takes seconds to import
            module = module.get_submodule("_orig_mod")
        else:
            break
    return module if isinstance(module, nn.Module) else _boxed(module)


def _require(module: nn.Module, preprocess: object) -> None:
    """Raises KonkyoError for a module that hides its layers, or a preprocessing of another kind."""
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise KonkyoError(
            f"preprocess is a konkyo.Preprocess(resize=..., crop=..., mean=..., std=...); got {preprocess!r}. For "
            "the transforms of torchvision's weights give weights="
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise KonkyoError(
            "a TorchScript module hides its layers; give the eager module that it was made from: "
            f"{module.original_name}"
        )


def _boxed(function: Any) -> nn.Module:
    """Returns a function of images, or a session of onnxruntime, as a black box. KonkyoError: something else."""
    if is_session(function):
        box: nn.Module = import_module("konkyo.models.onnx").of_session(function).module
        return box
    if not callable(function) or isinstance(function, type):
        raise KonkyoError(
            f"a model is a torch.nn.Module, a konkyo.Model, a function of images or a name for konkyo.load; got "
            f"{function!r}"
        )
    return BlackBox(function)


def is_session(model: object) -> bool:
    """Tells whether a model is a session of onnxruntime."""
    return type(model).__module__.partition(".")[0] == "onnxruntime"
