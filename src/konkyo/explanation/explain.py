"""explain() and compare(): where models and methods meet."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

import konkyo.methods  # noqa: F401 - registers every method
from konkyo.data.images import open_image
from konkyo.engine.capture import untouched
from konkyo.engine.forward import Pass, Precision
from konkyo.engine.integration import Pyramid
from konkyo.engine.layer import INPUT, STAGES, Layer
from konkyo.engine.path import PathTrace
from konkyo.engine.probe import NEEDS, Probe, largest_gradient
from konkyo.engine.variants import Budget
from konkyo.errors import KonkyoError, KonkyoWarning, NotApplicable, unknown
from konkyo.explanation.diagnosis import Diagnosis, diagnose
from konkyo.explanation.result import Explanation
from konkyo.methods.base import Attribution, Method, find
from konkyo.models import Frame, Model, as_model
from konkyo.targets.classes import ClassTarget, Target
from konkyo.targets.detections import SIDES_OF_BOX, InstanceTarget
from konkyo.utils.progress import Progress
from konkyo.utils.tensors import FUSES, Fuse, fuse, min_max, on_finest, resize

Images: TypeAlias = "Tensor | str | Path | Image.Image | Sequence[str | Path | Image.Image]"
Which: TypeAlias = "str | Method | Attribution"
Where: TypeAlias = "str | nn.Module | Layer | Sequence[str | nn.Module | Layer] | None"

SEVEN_CAMS = ("cam", "grad_cam", "grad_cam_pp", "score_cam", "eigen_cam", "ablation_cam", "layer_cam")
"""The class activation maps of the founding survey, in its order."""
OF_DETECTORS = ("grad_cam", "grad_cam_pp", "d_rise", "odam", "ig_odam", "adaptive_ig_odam")
"""The methods that the paper on IG-ODAM compares."""


def explain(
    model: Model | nn.Module,
    images: Images,
    *,
    method: Which = "grad_cam",
    target: Any = None,
    layer: Where = None,
    fuse: Fuse | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Explanation:
    """Maps of what in the images a score was decided on: one row per image and target.

    `images`: a path, a picture, a list of them (prepared as the model wants), or a prepared tensor (N, C, H, W).
    `method`: a name, a `Method`, "augmented(NAME)" or "first_component(NAME)", or an attribution object of Captum's.
    `target`: None (the model's own decision), a class index, a class name, a list with one entry per image, `TopK(k)`,
    `Each(...)`, `ContrastTarget(this, that)`, `Against(it)`, or any callable output -> (N,) scores. `layer`: None (the
    last feature grid that the decision depends on, or where the method is defined), a dotted name, a module, "input",
    "stages" (the last layer of every grid size), or a list, shallow to deep. Several layers share the one pass and are
    fused: `fuse` "layer_cam" (as in the paper), "max", "mean", "sum" or "product"; None: as the method is defined.
    `precision`: "bf16" or "fp16" runs the model's forwards under autocast; None leaves autocast as it is. `budget`: at
    most so many variants are run for a map by methods that perturb, the most important first (layers and augmented
    views share it); `progress(done, total)` is called meanwhile, and where such variants are scored, returning True
    ends it with what has been found by then. `options`: the method's own.

    The model comes back as it was, also after an exception. KonkyoWarning (once a call): a map that says nothing.
    KonkyoError: anything unknown or of the wrong form; NotApplicable: a method that this model has no place for.
    """
    chosen = find(method)
    return compare(
        model,
        images,
        (chosen,),
        target=target,
        layer=layer,
        fuse=fuse,
        seed=seed,
        precision=precision,
        budget=budget,
        progress=progress,
        options=options,
    )[chosen.name]


def compare(
    model: Model | nn.Module,
    images: Images,
    methods: Sequence[Which] = SEVEN_CAMS,
    **settings: Any,
) -> dict[str, Explanation]:
    """The same images explained by several methods, which share one forward and one backward: name -> Explanation.

    `settings`: `target`, `layer`, `fuse`, `seed`, `precision`, `budget`, `progress` as in `explain`, and `options`, a
    dictionary of which each method takes those that it has. NotApplicable: a method that this model has no place for
    (`explanations` gives the others all the same).
    """
    found = {}
    for name, result in explanations(model, images, methods, **settings).items():
        if isinstance(result, NotApplicable):
            raise result
        found[name] = result
    return found


@dataclass(frozen=True)
class _Request:
    """What `explain` was asked for, besides methods and images."""

    target: Any = None
    layer: Where = None
    fuse: Fuse | None = None
    seed: int = 0
    precision: Precision | None = None
    budget: int | None = None
    progress: Progress | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        budget = self.budget
        if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
            raise KonkyoError(f"budget is a number of forwards, 1 or more, or None; got {budget!r}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise KonkyoError(f"seed is a whole number; got {self.seed!r}")
        if self.progress is not None and not callable(self.progress):
            raise KonkyoError(f"progress is a function of (done, total), or None; got {self.progress!r}")
        if self.fuse is not None and not callable(self.fuse) and self.fuse not in FUSES:
            raise unknown("way to fuse layers", self.fuse, FUSES)


def explanations(
    model: Model | nn.Module, images: Images, methods: Sequence[Which], **settings: Any
) -> dict[str, Explanation | NotApplicable]:
    """`compare`, with the reason in place of the maps of a method that this model has no place for."""
    for name in settings:
        if name not in (known := [f.name for f in fields(_Request)]):
            raise unknown("setting", name, known)
    if isinstance(methods, (str, Method)):
        raise KonkyoError(f"methods is a list of methods, as in [{methods!r}]; got {methods!r}")
    chosen, request = [find(m) for m in methods], _Request(**settings)
    if not chosen:
        raise KonkyoError("methods is an empty list; `konkyo.methods()` has those on offer")
    for m, other in combinations(chosen, 2):
        if m.name == other.name and m is not other:
            raise KonkyoError(f"two of the methods are called {m.name!r}; explain with them one after the other")
    for name in request.options or ():
        if not any(name in m.options for m in chosen):
            offer = sorted({o for m in chosen for o in m.options})
            if not offer:
                raise KonkyoError(f"unknown option {name!r}: {', '.join(m.name for m in chosen)} has no options")
            raise unknown(f"option of {', '.join(m.name for m in chosen)}", name, offer)
    adapted = as_model(model)
    tensor, pictures, frames = _prepare(adapted, images)
    found: dict[str, Explanation | NotApplicable] = {}
    layers: dict[Method, list[Layer]] = {}
    for m in chosen:
        try:
            with _first_forward(adapted, tensor):
                layers[m] = _layers(adapted, m, request.layer, tuple(tensor.shape[1:]))
        except NotApplicable as reason:
            found[m.name] = reason
    wanted = [item for group in layers.values() for item in group]
    graph = [item for m in layers if m.needs_graph() for item in layers[m]]
    within = list(dict.fromkeys(context for m in layers for n in m.needs if (context := NEEDS[n].within)))
    if within:
        wanted, graph = [*wanted, Layer(INPUT, None)], [*graph, Layer(INPUT, None)]
    with untouched(adapted.module):
        with _first_forward(adapted, tensor):
            pass_ = Pass(
                adapted,
                tensor,
                list(dict.fromkeys(wanted)),
                differentiable=list(dict.fromkeys(graph)),
                precision=request.precision,
                within=within,
            )
        for m in layers:
            try:
                found[m.name] = _run(adapted, pass_, m, layers[m], request, pictures, frames)
            except NotApplicable as reason:
                found[m.name] = NotApplicable(f"{m.name}: {reason}")
    doubtful = [(r.method, r, d) for r in found.values() if isinstance(r, Explanation) for d in r.diagnosis if not d.ok]
    if doubtful:
        name, result, diagnosis = doubtful[0]
        count = sum(r is result for _, r, _ in doubtful)
        _warn(f"{name}: {count} of {len(result)} maps: {diagnosis.message}")
    return {m.name: found[m.name] for m in chosen}


@contextmanager
def _first_forward(model: Model, images: Tensor) -> Iterator[None]:
    """What a network says of images that it does not take, as a KonkyoError with their shape."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        if isinstance(error, KonkyoError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        hint = " (one image needs a first axis of its own: images[None])" if images.ndim == 3 else ""
        raise KonkyoError(
            f"{model.name} failed on images of shape {tuple(images.shape)}{hint}: {type(error).__name__}: {reason}"
        ) from error


def _warn(message: str) -> None:
    """A warning that points at the caller's line, however deep in the package it comes from."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] == "konkyo":
        level += 1
    warnings.warn(message, KonkyoWarning, stacklevel=level + 1)


def _prepare(model: Model, images: Images) -> tuple[Tensor, tuple[Image.Image, ...] | Tensor, tuple[Frame, ...]]:
    """(prepared images (N, C, ...), what the model saw of them, where that lies in the input)."""
    if isinstance(images, Tensor):
        tensor = model.prepared(images)
        shown = tensor.detach() if model.preprocess is None else model.preprocess.undo(tensor.detach())
        return tensor, shown, (Frame(),) * len(tensor)
    if not isinstance(images, (str, Path, Image.Image, Sequence)):
        raise KonkyoError(
            f"images are a path, a picture, a list of them, or a tensor (N, C, H, W); got {type(images).__name__}"
        )
    listed = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    if not listed:
        raise KonkyoError("no images: an empty list came")
    for item in listed:
        if not isinstance(item, (str, Path, Image.Image)):
            raise KonkyoError(
                f"images are a path, a picture, a list of them, or a tensor (N, C, H, W); got {type(item).__name__}"
            )
    if model.preprocess is None:
        raise KonkyoError(
            f"{model.name} does not say how to prepare a picture; give a prepared tensor (N, C, H, W), or "
            "konkyo.Model(module, preprocess=konkyo.Preprocess(...))"
        )
    opened = [item if isinstance(item, Image.Image) else open_image(item) for item in listed]
    prepared = [model.preprocess(picture) for picture in opened]
    if len({t.shape for t in prepared}) > 1:
        raise KonkyoError(
            "the pictures differ in size after preprocessing; give the Preprocess a crop, or explain them one by one"
        )
    seen = tuple(model.preprocess.view(picture) for picture in opened)
    return model.prepared(torch.stack(prepared)), seen, tuple(model.preprocess.frame(picture) for picture in opened)


def _layers(model: Model, method: Method, layer: Where, shape: tuple[int, ...]) -> list[Layer]:
    if method.layer is not None and (layer is None or not method.needs_layer()):
        layer = method.layer
    needs_gradient = method.needs_gradient()
    several: Sequence[str | nn.Module | Layer | None]
    several = [layer] if layer is None or isinstance(layer, (str, nn.Module, Layer)) else layer
    if not isinstance(several, (list, tuple)):
        raise KonkyoError(f"a layer is a dotted name, a module, 'input', 'stages' or a list of them; got {layer!r}")
    if not several:
        raise KonkyoError("layer=[] names no layer")
    for item in several:
        if item is not None and not isinstance(item, (str, nn.Module, Layer)):
            raise KonkyoError(f"a layer is a dotted name, a module, 'input' or 'stages'; got {item!r}")
    found = []
    for item in several:
        many = isinstance(item, str) and item == STAGES
        found += model.stages(shape) if many else [model.layer(item, shape, needs_gradient=needs_gradient)]
    return found


def _run(
    model: Model,
    pass_: Pass,
    method: Method,
    layers: Sequence[Layer],
    request: _Request,
    pictures: tuple[Image.Image, ...] | Tensor,
    frames: Sequence[Frame],
) -> Explanation:
    options = {name: value for name, value in request.options.items() if name in method.options}
    budget = Budget(request.budget, request.progress).divided(len(layers))
    per_image = model.targets(request.target, pass_.output.detach(), score=method.score, frames=frames)
    whole = [target for image in per_image for target in image]
    images = [image for image, found in enumerate(per_image) for _ in found]
    parts = [_parts(target) for target in whole]
    targets = [part for group in parts for part in group]
    rows = tuple(image for image, group in zip(images, parts, strict=True) for _ in group)
    pyramids = [Pyramid(pass_.levels(layer)) for layer in layers]
    shared: dict[str, Any] = {"rows": rows, "seed": request.seed, "knows_target": False, "budget": budget}
    of_layers = [[Probe(pass_, targets, level, pyramid=p, **shared) for level in p.levels] for p in pyramids]
    probes = [probe for levels in of_layers for probe in levels]
    # The levels of a pyramid add up, as the channels of one layer do.
    signed = [on_finest([method(probe, **options).detach() for probe in levels]).sum(0) for levels in of_layers if rows]
    if rows:
        maps = _fused(signed, method, request.fuse).float()
    else:  # a detector that keeps nothing
        maps = on_finest([probe.activations[:, 0] for probe in probes])[0].float()
    scores = probes[0].score.float() if rows else maps.new_zeros(0)
    seen = [g for probe in probes if (g := largest_gradient(probe)) is not None]
    gradients = torch.stack(seen).amax(0) if seen else None
    firsts = list(accumulate(map(len, parts[:-1]), initial=0)) if parts else []
    if len(rows) > len(images):  # combinations, whose path is that of their probability
        maps = torch.stack(
            [_combined(maps[at : at + len(part)], method) for at, part in zip(firsts, parts, strict=True)]
        )
        scores, gradients = scores[firsts], None if gradients is None else gradients[firsts]
        rows = tuple(rows[first] for first in firsts)
    classes = pass_.output.shape[1] if pass_.output.ndim == 2 else None
    bordered = any(frames[image].region != (0.0, 0.0, 1.0, 1.0) for image in images)
    integrals = [integral for pyramid in pyramids for integral in pyramid.integrals]
    return Explanation(
        signed=maps,
        rectified=method.rectified,
        scores=scores,
        image_index=torch.tensor(images, dtype=torch.int64, device=scores.device),
        targets=tuple(whole),
        labels=tuple(model.label(t, classes) for t in whole),
        method=method.name,
        layer="+".join(item.name if item.call == -1 else f"{item.name}#{item.call}" for item in layers),
        model=model.name,
        options=_options_used(method, options, request, len(layers)),
        seed=request.seed,
        diagnosis=_diagnose(model, method, layers, maps, scores, whole, gradients, pass_),
        boxes=_boxes(whole, images, frames, scores, none=model.detector is None),
        regions=scores.new_tensor([frames[image].region for image in images]) if bordered else None,
        path=_path(integrals[0].trace.of(firsts), [frames[image] for image in rows]) if integrals else None,
        images=pictures,
    )


def _options_used(method: Method, options: Mapping[str, Any], request: _Request, layers: int) -> dict[str, Any]:
    """The method's options with their defaults, and what else decided what its map is."""
    used = {name: parameter.default for name, parameter in method.options.items()} | dict(options)
    if layers > 1:
        how = request.fuse or method.fuse
        used["fuse"] = getattr(how, "__name__", how)
    if request.budget is not None and method.runs_variants():
        used["budget"] = request.budget
    return used


def _parts(target: Target) -> list[Target]:
    """What is explained for a target: itself, or all that a combination is made of."""
    if isinstance(target, InstanceTarget) and target.quantity == "combined":
        return [replace(target, quantity=quantity) for quantity in ("probability", *SIDES_OF_BOX)]
    return [target]


def _combined(signed: Tensor, method: Method) -> Tensor:
    """ODAM's combination of the maps of a class's probability and the sides of its box: the largest at every place."""
    return min_max(signed.relu() if method.rectified else signed).amax(0) if len(signed) > 1 else signed[0]


def _path(trace: PathTrace, frames: Sequence[Frame]) -> PathTrace:
    """The trace with its boxes in the pixels of the pictures."""
    shown = [frame.shown(boxes) for frame, boxes in zip(frames, trace.boxes, strict=True)]
    return replace(trace, boxes=torch.stack(shown))


def _boxes(
    targets: Sequence[Target], rows: Sequence[int], frames: Sequence[Frame], like: Tensor, *, none: bool
) -> Tensor | None:
    """The boxes of detections in the pixels of their pictures, NaN for rows that explain something else."""
    if none or (targets and not any(isinstance(target, InstanceTarget) for target in targets)):
        return None
    nothing = (math.nan,) * 4
    boxes = [
        frames[image].shown(like.new_tensor(target.box if isinstance(target, InstanceTarget) else nothing))
        for image, target in zip(rows, targets, strict=True)
    ]
    return torch.stack(boxes) if boxes else like.new_zeros(0, 4)


def _fused(signed: Sequence[Tensor], method: Method, how: Fuse | None) -> Tensor:
    """The signed maps of one layer, or of several fused: rectified first, as the method defines its map. Where that
    leaves nothing, `signed` keeps what speaks against the target at the deepest layer."""
    how = method.fuse if how is None else how
    if len(signed) == 1 and not callable(how):
        return signed[0]
    if not method.rectified:
        return fuse(signed, how)
    maps = fuse([m.relu() for m in signed], how)
    blank = (maps.flatten(1).amax(1) == 0).view(-1, *[1] * (maps.ndim - 1))
    return torch.where(blank, resize(signed[-1], tuple(maps.shape[1:])).clamp(max=0), maps)


def _diagnose(
    model: Model,
    method: Method,
    layers: Sequence[Layer],
    signed: Tensor,
    scores: Tensor,
    targets: Sequence[Target],
    largest_gradient: Tensor | None,
    pass_: Pass,
) -> tuple[Diagnosis, ...]:
    probable = [isinstance(t, ClassTarget) and t.score == "probability" for t in targets]

    def way_out() -> str:
        automatic = model.automatic_layer(tuple(pass_.images.shape[1:]))
        if automatic is None or any(layer.name in (automatic.name, INPUT) for layer in layers):
            return "try another layer: `konkyo layers` lists them"
        return f"try layer={automatic.name!r}"

    return diagnose(
        signed,
        rectified=method.rectified,
        largest_gradient=largest_gradient,
        probabilities=[s if p else None for s, p in zip(scores, probable, strict=True)] if any(probable) else (),
        way_out=way_out,
    )
