"""explain() and compare(): where models and methods meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

import konkyo.methods  # noqa: F401 - registers every method
from konkyo.engine.forward import OneByOne, Pass, Precision
from konkyo.engine.gradient_flow import why_no_gradient
from konkyo.engine.layer import INPUT, STAGES, Layer
from konkyo.engine.probe import NEEDS
from konkyo.engine.session import Session, refuse_within_forward, untouched
from konkyo.errors import KonkyoError, NotApplicable, unknown, warn
from konkyo.explanation.diagnosis import Diagnosis
from konkyo.explanation.inputs import Images, Prepared, labelled, outputs_of, prepare
from konkyo.explanation.result import Explanation, joined
from konkyo.explanation.run import Cut, Doubts, Request, Run, Where, explanation_of
from konkyo.methods.base import METHODS, Attribution, Method, find
from konkyo.models import Model, as_model
from konkyo.models.blackbox import BlackBox
from konkyo.targets.classes import bound_request
from konkyo.tasks.base import SEVEN_CAMS
from konkyo.utils.progress import Progress
from konkyo.utils.tensors import Fuse

Which: TypeAlias = "str | Method | Attribution"


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
    bgr: bool = False,
    column: str | None = None,
    true_labels: Sequence[Any] | None = None,
    question: str | Sequence[str | None] | None = None,
    **options: Any,
) -> Explanation:
    """Returns maps of what in the images a score was decided on, one row per image and target.

    `images`: paths, pictures, arrays or uint8 tensors, which are prepared as the model wants, or prepared float tensors
    (N, C, H, W); also folders, bytes, lists, loaders (`bgr`: arrays are blue, green, red, as OpenCV's) and a
    `datasets.Dataset` of Hugging Face (`column`: where its pictures are; None: the first column with some).
    `method`: a name, a `Method`, "augmented(NAME)" or "first_component(NAME)", or an attribution object of Captum's.
    `target`: None (the model's own decision), a class index, a class name, a list with one entry per image, `TopK(k)`,
    `Each(...)`, `ContrastTarget(this, that)`, `Against(it)`, or any callable output -> (N,) scores. `layer`: None (the
    last feature grid that the decision depends on, or where the method is defined), a dotted name, a module, "input",
    "stages" (the last layer of every grid size), or a list, shallow to deep. Several layers share the one pass and are
    fused: `fuse` "layer_cam" (as in the paper), "max", "mean", "sum" or "product"; None: as the method is defined.
    `precision`: "bf16" or "fp16" runs the model's forwards under autocast; None leaves autocast as it is. `budget`: at
    most so many variants are run for a map by methods that perturb, the most important first (layers and augmented
    views share it). `progress(done, total)` is called meanwhile. Where such variants are scored, returning True ends it
    with what has been found by then. `true_labels`: the class that each image really has, a name, an index, or None;
    samples and data sets say it themselves. `question`: what a model that reads text is asked, one text or one per
    image; samples that ask something say it themselves. `options`: the method's own.

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
        bgr=bgr,
        column=column,
        true_labels=true_labels,
        question=question,
        options=options,
    )[chosen.name]


def compare(
    model: Model | nn.Module,
    images: Images,
    methods: Sequence[Which] = SEVEN_CAMS,
    **settings: Any,
) -> dict[str, Explanation]:
    """Explains the same images by several methods, which share one forward and one backward: name -> Explanation.

    `settings`: all that `explain` takes beside the method, such as `target` and `layer`; `options` is a dictionary of
    which each method takes those that it has. NotApplicable: a method that this model has no place for (`explanations`
    gives the others all the same).
    """
    results = {}
    for name, result in explanations(model, images, methods, **settings).items():
        if isinstance(result, NotApplicable):
            raise result
        results[name] = result
    return results


def explanations(
    model: Model | nn.Module, images: Images | Prepared, methods: Sequence[Which], **settings: Any
) -> dict[str, Explanation | NotApplicable]:
    """`compare`, with the reason in place of the maps of a method that this model has no place for.

    `images` may have been prepared before, by `konkyo.explanation.reading`.
    """
    for name in settings:
        if name not in (known := [f.name for f in fields(Request)]):
            raise unknown("setting", name, known)
    if isinstance(methods, (str, Method)):
        raise KonkyoError(f"methods is a list of methods, as in [{methods!r}]; got {methods!r}")
    chosen, request = [find(m) for m in methods], Request(**settings)
    _check(chosen, request.options or ())
    adapted = as_model(model)
    refuse_within_forward(adapted.module, adapted.name)
    if isinstance(images, Prepared):
        prepared = images
    else:
        read_off = isinstance(model, nn.Module)
        prepared = prepare(adapted, images, bgr=request.bgr, column=request.column, read_off=read_off)
    prepared = labelled(adapted, prepared, request.true_labels)
    request = replace(request, target=bound_request(request.target, partial(outputs_of, adapted, seed=request.seed)))
    question = request.question if request.question is not None else prepared.questions or None
    models = _models_of_questions(adapted, question, len(prepared.images))
    session, doubts = untouched(adapted.module, request.seed), Doubts()
    with session, session:  # twice: see `Session`
        if len(models) == 1:
            results = _results(models[0], prepared, chosen, request, session, doubts)
        else:
            results = _one_by_one(models, prepared, chosen, request, session, doubts)
    if session.draws:
        doubts[_note_of_randomness(models[0], request.seed)] = None
    for doubt in doubts:
        warn(doubt)
    _warn_of_doubts([result for result in results.values() if isinstance(result, Explanation)])
    return {m.name: results[m.name] for m in chosen}


def _models_of_questions(model: Model, question: str | Sequence[str | None] | None, images: int) -> list[Model]:
    """Returns the model that is asked a question; where every image has one of its own, a model per image.

    KonkyoError: not one question per image, or a model that reads none.
    """
    if question is None or isinstance(question, str):
        return [model.prompted(question=question)]
    if not isinstance(question, Sequence) or len(question) != images:
        raise KonkyoError(f"question is one text, or a list with one per image, {images} here; got {question!r}")
    bound = {text: model.prompted(question=text) for text in dict.fromkeys(question)}
    return [bound[text] for text in question] if len(bound) > 1 else list(bound.values())


def _results(
    model: Model, prepared: Prepared, methods: Sequence[Method], request: Request, session: Session, doubts: Doubts
) -> dict[str, Explanation | NotApplicable]:
    """Returns what every method makes of the images, which share a forward where they do not depend on each other."""
    try:
        model = model.settled(prepared.images, request.target)
    except OneByOne:
        return _one_by_one([model] * len(prepared.images), prepared, methods, request, session, doubts)
    results: dict[str, Explanation | NotApplicable] = {}
    cuts: dict[Method, list[Cut]] = {}
    absences: dict[int, str] = {}
    shape = tuple(prepared.images.shape[1:])
    for m in methods:
        try:
            cuts[m] = _cuts(model, m, request.layer, shape)
        except NotApplicable as reason:
            results[m.name] = reason
    for group in _groups(cuts):
        try:
            pass_ = _shared_pass(model, prepared.images, group, request.precision)
        except OneByOne:
            session.single = True
        else:
            if not all(model.confirm(layer, shape, grid) for layer, grid in _grids(pass_, group)):
                return _results(model, prepared, methods, request, session, doubts)
        if len(prepared.images) > 1 and not session.alone:
            pass_.note_ties()
        if len(prepared.images) > 1 and session.alone:
            return _one_by_one([model] * len(prepared.images), prepared, methods, request, session, doubts)
        probabilities = _holds_probabilities(model, pass_)
        for m in group:
            try:
                result = explanation_of(Run(model, pass_, m, cuts[m], request, prepared, probabilities, doubts))
                results[m.name] = _with_cause(result, m, pass_)
            except NotApplicable as reason:
                results[m.name] = NotApplicable(f"{m.name}: {reason}")
        if model.task.instances and (without := _images_without(results.values(), len(prepared.images))):
            output = pass_.output.detach()
            doubts[_nothing(model, request.target, without, output)] = None
            absences |= {image: model.nothing(request.target, output[image : image + 1]) for image in without}
    assumed = [_note_of_randomness(model, request.seed)] if session.draws else []
    assumed += [f"{model.name} runs images one by one: in a batch they depend on each other"] if session.tied else []
    return {
        name: replace(result, assumptions=(*result.assumptions, *assumed), absences=absences)
        if isinstance(result, Explanation)
        else result
        for name, result in results.items()
    }


def _grids(pass_: Pass, group: Mapping[Method, list[Layer]]) -> list[tuple[Layer, tuple[int, ...]]]:
    """Returns the layers of a forward that put out one grid each, with its size."""
    layers = dict.fromkeys(layer for m in group for layer in group[m] if layer.module is not None)
    single = [layer for layer in layers if layer.level == -1 and layer.tokens is None]
    return [(layer, tuple(pass_.activations(layer).shape[2:])) for layer in single]


def _note_of_randomness(model: Model, seed: int) -> str:
    """Returns what is to be said of a network that draws random numbers in its forward."""
    return (
        f"{model.name} draws random numbers in its forward (dropout that stays on, say): every forward is that of one "
        f"image and starts from seed={seed}; other seeds give other maps"
    )


def _one_by_one(
    models: Sequence[Model],
    prepared: Prepared,
    methods: Sequence[Method],
    request: Request,
    session: Session,
    doubts: Doubts,
) -> dict[str, Explanation | NotApplicable]:
    """Returns `_results` of images that must not see each other in a batch, each by its model."""
    target, count = request.target, len(prepared.images)
    listed = isinstance(target, (list, tuple)) or (isinstance(target, (Tensor, np.ndarray)) and target.ndim > 0)
    parts = []
    for i in range(count):
        at = slice(i, i + 1)
        values = {f.name: getattr(prepared, f.name) for f in fields(Prepared)}
        of_image: dict[str, Any] = {
            k: v[at] for k, v in values.items() if isinstance(v, (Tensor, tuple)) and len(v) == count
        }
        single: Prepared = replace(prepared, **of_image)
        wanted = replace(request, target=target[at] if listed else target)
        parts.append(_results(models[i], single, methods, wanted, session, doubts))
    results: dict[str, Explanation | NotApplicable] = {}
    for name in parts[0]:
        of_images = [part[name] for part in parts]
        refused = [result for result in of_images if isinstance(result, NotApplicable)]
        explained = [result for result in of_images if isinstance(result, Explanation)]
        results[name] = refused[0] if refused else replace(joined(explained), images=prepared.pictures)
    return results


def _with_cause(result: Explanation, method: Method, pass_: Pass) -> Explanation:
    """Returns the explanation whose diagnoses of zero gradients name where the network cuts them off."""
    kinds = ("zero gradient", "constant") if method.needs_gradient() or method.layer == INPUT else ("zero gradient",)
    if isinstance(pass_.network.module, BlackBox) or not any(d.kind in kinds for d in result.diagnosis):
        return result
    if not (cause := why_no_gradient(pass_)):
        return result
    named = tuple(Diagnosis("zero gradient", cause) if d.kind in kinds else d for d in result.diagnosis)
    return replace(result, diagnosis=named)


def _check(methods: Sequence[Method], options: Iterable[str]) -> None:
    """Raises KonkyoError for no methods, two of one name, or an option that none of them has."""
    if not methods:
        raise KonkyoError("methods is an empty list; `konkyo.methods()` has those on offer")
    for m, other in combinations(methods, 2):
        if m.name == other.name and m is not other:
            raise KonkyoError(f"two of the methods are called {m.name!r}; explain with them one after the other")
    for name in options:
        if not any(name in m.options for m in methods):
            offer = sorted({o for m in methods for o in m.options})
            if not offer:
                raise KonkyoError(f"unknown option {name!r}: {', '.join(m.name for m in methods)} has no options")
            raise unknown(f"option of {', '.join(m.name for m in methods)}", name, offer)


def _groups(cuts: Mapping[Method, list[Cut]]) -> list[dict[Method, list[Layer]]]:
    """Returns the layers of methods that can share a forward.

    Branches that together make a layer cut off all that comes before them, so they have a forward of their own.
    """
    groups: dict[frozenset[Layer], dict[Method, list[Layer]]] = {}
    for m, several in cuts.items():
        layers = [layer for cut in several for layer in cut]
        groups.setdefault(frozenset(layer for layer in layers if layer.part), {})[m] = layers
    return list(groups.values())


def _shared_pass(
    model: Model, images: Tensor, layers: Mapping[Method, list[Layer]], precision: Precision | None
) -> Pass:
    """Returns the one forward that these methods share; it captures what any of them needs."""
    captured = [item for group in layers.values() for item in group]
    graph = [item for m in layers if m.needs_graph() for item in layers[m]]
    within = list(dict.fromkeys(context for m in layers for n in m.needs if (context := NEEDS[n].within)))
    if within:
        captured, graph = [*captured, Layer(INPUT, None)], [*graph, Layer(INPUT, None)]
    return Pass(
        model,
        images,
        list(dict.fromkeys(captured)),
        differentiable=list(dict.fromkeys(graph)),
        precision=precision,
        within=within,
    )


def _holds_probabilities(model: Model, pass_: Pass) -> bool:
    """Tells whether an output that is read as logits holds probabilities."""

    def again() -> Tensor:
        with pass_.forwards(), torch.enable_grad():
            return model(pass_.images[:1].clone().requires_grad_().clone())

    return model.task.holds_probabilities(pass_.output, again)


def _warn_of_doubts(results: Sequence[Explanation]) -> None:
    """Warns once, of the first map that says nothing."""
    doubtful = [(result, d) for result in results for d in result.diagnosis if not d.ok]
    if doubtful:
        first, diagnosis = doubtful[0]
        count = sum(result is first for result, _ in doubtful)
        warn(f"{first.method}: {count} of {len(first)} maps: {diagnosis.message}")


def _images_without(results: Iterable[Explanation | NotApplicable], count: int) -> list[int]:
    """Returns the images that have no maps."""
    first = next((result for result in results if isinstance(result, Explanation)), None)
    return [] if first is None else sorted(set(range(count)) - set(first.image_index.tolist()))


def _nothing(model: Model, target: Any, images: Sequence[int], output: Tensor) -> str:
    """Returns that nothing was detected on these images, with the highest score that there was."""
    where = "" if len(output) == 1 else f"{len(images)} of {len(output)} images: "
    return f"{where}{model.nothing(target, output[list(images)])}"


def _cuts(model: Model, method: Method, layer: Where, shape: tuple[int, ...]) -> list[Cut]:
    """Returns the layers whose maps are fused. KonkyoError: no layer, or something that is none."""
    if isinstance(model.module, BlackBox):
        if method.needs_inside():
            offer = ", ".join(name for name, m in METHODS.items() if not m.needs_inside())
            box = f"{model.name} is a black box, of which it would have to read the inside"
            raise NotApplicable(f"{method.name}: {box}; on offer: {offer}")
        layer = INPUT if layer is None else layer
    if method.layer is not None and (layer is None or not method.needs_layer()):
        layer = method.layer
    several: Sequence[str | nn.Module | Layer | None]
    several = [layer] if layer is None or isinstance(layer, (str, nn.Module, Layer)) else layer
    if not isinstance(several, (list, tuple)):
        raise KonkyoError(f"a layer is a dotted name, a module, 'input', 'stages' or a list of them; got {layer!r}")
    if not several:
        raise KonkyoError("layer=[] names no layer")
    for item in several:
        if item is not None and not isinstance(item, (str, nn.Module, Layer)):
            raise KonkyoError(f"a layer is a dotted name, a module, 'input' or 'stages'; got {item!r}")
    cuts: list[Cut] = []
    for item in several:
        many = isinstance(item, str) and item == STAGES
        cuts += [(stage,) for stage in model.stages(shape)] if many else [model.cut(item, shape)]
    return cuts
