"""Run: from one method's part of a call to an explanation: its rows, their maps, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from konkyo.engine.forward import Pass, Precision
from konkyo.engine.integration import Pyramid
from konkyo.engine.layer import INPUT, Layer
from konkyo.engine.path import PathTrace
from konkyo.engine.probe import Probe, growth, largest_gradient, missing_share, noted
from konkyo.engine.trace import share_around
from konkyo.engine.variants import Budget
from konkyo.errors import KonkyoError, unknown
from konkyo.explanation.diagnosis import Diagnosis, diagnose, judge_cut, judge_output, judge_places, judge_text
from konkyo.explanation.inputs import Prepared
from konkyo.explanation.result import Explanation
from konkyo.methods.base import SCORE_OPTION, Method
from konkyo.models import Frame, Model
from konkyo.models.blackbox import BlackBox
from konkyo.models.layers import traced_size
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import Against, Magnitude, TopK
from konkyo.tasks.base import Task
from konkyo.tasks.decision import Decision
from konkyo.utils.progress import Progress
from konkyo.utils.tensors import FUSES, Fuse, at_least_float32, fuse, on_finest, resize

Where: TypeAlias = "str | nn.Module | Layer | Sequence[str | nn.Module | Layer] | None"
"""Which layer: a dotted name, a module, "input", "stages", several of these, or None for the automatic one."""


@dataclass(frozen=True)
class Request:
    """What `explain` was asked for, besides methods and images."""

    target: Any = None
    layer: Where = None
    fuse: Fuse | None = None
    seed: int = 0
    precision: Precision | None = None
    budget: int | None = None
    progress: Progress | None = None
    bgr: bool = False
    column: str | None = None
    true_labels: Sequence[Any] | None = None
    question: str | Sequence[str | None] | None = None
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


Doubts: TypeAlias = dict[str, None]
"""What a call warns of when all methods are done, once each."""


Cut: TypeAlias = tuple[Layer, ...]
"""The branches that together make one layer: one, as a rule."""


@dataclass(frozen=True, eq=False)
class Run:
    """The run is one method's part of a call."""

    model: Model
    pass_: Pass
    method: Method
    cuts: Sequence[Cut]
    request: Request
    prepared: Prepared
    probabilities: bool
    """Whether an output that is read as logits holds probabilities."""
    doubts: Doubts

    @property
    def layers(self) -> list[Layer]:
        """Returns the layers of all cuts."""
        return [layer for cut in self.cuts for layer in cut]

    @property
    def options(self) -> dict[str, Any]:
        """Returns the options that are the method's."""
        return {name: value for name, value in self.request.options.items() if name in self.method.options}


@dataclass(frozen=True, eq=False)
class _Rows:
    """What is explained: a row per target, and the rows of the parts that a target's map is combined of."""

    targets: list[Target]
    images: list[int]
    """Of every target, which image it is of."""
    parts: list[list[Target]]
    """Of every target, itself or what it is a combination of."""

    @property
    def part_targets(self) -> list[Target]:
        """Returns the parts of all targets, one after the other."""
        return [part for group in self.parts for part in group]

    @property
    def part_images(self) -> tuple[int, ...]:
        """Of every part, which image it is of."""
        return tuple(image for image, group in zip(self.images, self.parts, strict=True) for _ in group)

    @property
    def firsts(self) -> list[int]:
        """Of every target, which of all parts is its first."""
        return list(accumulate(map(len, self.parts[:-1]), initial=0)) if self.parts else []


@dataclass(frozen=True, eq=False)
class _Maps:
    """What a method makes of rows."""

    signed: Tensor
    """(R, *grid)"""
    scores: Tensor
    """(R,)"""
    gradients: Tensor | None
    """(R,) the largest absolute gradient, where the method asked for gradients."""
    missing: Tensor | None
    """(R,) the share of the score that full gradients leave out, where the method asked for them."""
    grown: Tensor | None
    """(R,) how many times what was handed down relevance has become, where the method handed it down."""
    path: PathTrace | None
    notes: dict[str, Tensor]
    """(R,) each: what the method has noted of every row. Nothing where it ran at several layers or levels."""


def explanation_of(run: Run) -> Explanation:
    """Returns the maps of a method with all that is known of them."""
    model, output, frames = run.model, run.pass_.output, run.prepared.frames
    rows = _rows(run)
    maps = _combined(model.task, run.method, rows, _part_maps(run, rows))
    outputs = output.shape[1] if output.ndim == 2 else None
    places = run.prepared.places or run.model.places(run.prepared.images.shape)
    bordered = any(frames[image].region != (0.0, 0.0, 1.0, 1.0) for image in rows.images)
    return Explanation(
        signed=maps.signed,
        rectified=run.method.rectified,
        scores=maps.scores,
        image_index=torch.tensor(rows.images, dtype=torch.int64, device=maps.scores.device),
        targets=tuple(rows.targets),
        labels=tuple(model.label(t, outputs) for t in rows.targets),
        method=run.method.name,
        layer="+".join(item.name if item.call == -1 else f"{item.name}#{item.call}" for item in run.layers),
        model=model.name,
        options=_options_used(run),
        seed=run.request.seed,
        diagnosis=_diagnose(run, rows, maps),
        questions=_questions(model, len(rows.images)),
        decisions=_decisions(run, rows),
        boxes=_boxes(model.task, rows, frames, maps.scores),
        regions=maps.scores.new_tensor([frames[image].region for image in rows.images]) if bordered else None,
        notes=maps.notes,
        path=None if maps.path is None else _path(maps.path, [frames[image] for image in rows.images]),
        names=tuple(run.prepared.names[image] for image in rows.images) if run.prepared.names else (),
        true_labels=tuple(run.prepared.labels[image] for image in rows.images) if run.prepared.labels else (),
        passages=model.task.passages(rows.targets),
        assumptions=(*run.prepared.notes, *_assumptions(run, rows)),
        images=run.prepared.pictures,
        places=places if len(places) == maps.signed.ndim - 1 else (),
        coordinates=tuple(run.prepared.coordinates[image] for image in rows.images) if run.prepared.coordinates else (),
    )


def _questions(model: Model, rows: int) -> tuple[str | None, ...]:
    """Returns the question that the model is asked, a row each; nothing where it reads none."""
    prompts = model.prompts
    return (prompts.value,) * rows if prompts is not None and prompts.noun == "question" else ()


def _rows(run: Run) -> _Rows:
    """Returns the targets of all images as rows."""
    score, frames, output = run.method.explained(run.options), run.prepared.frames, run.pass_.output.detach()
    if run.model.task.instances and score != run.method.score:
        raise KonkyoError(
            f"score={score!r} is of a class; what is explained of {run.model.task.instances} is said by their request, "
            f"as in target=konkyo.Detections(quantity={score!r})"
        )
    requested = run.request.target
    if requested is None and not run.method.needs_target() and not run.model.decides(output):
        requested = Magnitude()
    if run.probabilities:
        output = output - 0.5  # a single one decides for its class above that; the highest of several stays it
    per_image = run.model.targets(requested, output, score=score, frames=frames)
    targets = [target for image in per_image for target in image]
    if not callable(requested):
        run.model.task.check(targets, run.prepared.images.shape[2:])
    images = [image for image, group in enumerate(per_image) for _ in group]
    return _Rows(targets, images, [run.model.task.parts(target) for target in targets])


def _assumptions(run: Run, rows: _Rows) -> tuple[str, ...]:
    """Returns what was assumed to read the output; what is doubtful of it is noted, to be warned of."""
    output = run.pass_.output.detach()
    decided = run.request.target is None or isinstance(run.request.target, TopK)
    doubts = run.model.doubts(rows.targets, output, decided=decided, probabilities=run.probabilities)
    run.doubts.update(dict.fromkeys(doubts))
    return (*run.model.assumptions(rows.targets, output), *doubts)


def _decisions(run: Run, rows: _Rows) -> tuple[Decision | None, ...]:
    """Returns what the model decided, beside every row's target."""
    model, output = run.model, run.pass_.output.detach()
    if run.probabilities:
        task, output = model.task.of_probabilities(output)
        model = replace(model, task=task)
    return tuple(model.decisions_beside(rows.targets, rows.images, output))


def _part_maps(run: Run, rows: _Rows) -> _Maps:
    """Returns what the method makes of every part, at all layers together."""
    targets, images = rows.part_targets, rows.part_images
    budget = Budget(run.request.budget, run.request.progress).divided(len(run.cuts))
    # Branches that together make a layer add up, as the levels of a pyramid do.
    pyramids = [Pyramid(tuple(level for layer in cut for level in run.pass_.levels(layer))) for cut in run.cuts]
    signed, probes = [], list[Probe]()
    for pyramid in pyramids:
        levels = [
            Probe(
                run.pass_,
                targets,
                level,
                rows=images,
                seed=run.request.seed,
                knows_target=False,
                budget=budget,
                pyramid=pyramid,
            )
            for level in pyramid.levels
        ]
        probes += levels
        if images:
            # The levels of a pyramid add up, as the channels of one layer do.
            signed.append(on_finest([run.method(probe, **run.options).detach() for probe in levels]).sum(0))
    if images:
        maps = _fused(signed, run.method, run.request.fuse).float()
    else:  # a detector that keeps nothing
        maps = on_finest([probe.activations[:, 0] for probe in probes])[0].float()
    scores = probes[0].score.float() if images else maps.new_zeros(0)
    missing = [share for probe in probes if (share := missing_share(probe)) is not None]
    growths = [times for probe in probes if (times := growth(probe)) is not None]
    integrals = [integral for pyramid in pyramids for integral in pyramid.integrals]
    largest = [gradient for probe in probes if (gradient := largest_gradient(probe)) is not None]
    largest += [integral.largest for integral in integrals]
    trace = integrals[0].trace.of(rows.firsts) if integrals else None  # a combination's is that of its first part
    gradients, left_out, grown = (torch.stack(s).amax(0) if s else None for s in (largest, missing, growths))
    notes = {name: values.float() for name, values in noted(probes[0]).items()} if len(probes) == 1 else {}
    return _Maps(maps, scores, gradients, left_out, grown, trace, notes)


def _combined(task: Task, method: Method, rows: _Rows, maps: _Maps) -> _Maps:
    """Returns the maps of all targets from those of their parts; score and gradient are those of the first part."""
    firsts = rows.firsts
    if len(maps.scores) == len(rows.targets):
        return maps
    groups = [maps.signed[at : at + len(part)] for at, part in zip(firsts, rows.parts, strict=True)]
    signed = [
        group[0] if len(group) == 1 else task.combined(group.relu() if method.rectified else group) for group in groups
    ]
    gradients, missing, grown = (None if v is None else v[firsts] for v in (maps.gradients, maps.missing, maps.grown))
    return _Maps(torch.stack(signed), maps.scores[firsts], gradients, missing, grown, maps.path, {})


def _options_used(run: Run) -> dict[str, Any]:
    """Returns all options of the method with their values, and what else decides its maps."""
    defaults = {name: p.default for name, p in run.method.options.items() if p is not SCORE_OPTION}  # targets say that
    used = defaults | run.options
    if len(run.cuts) > 1:
        how = run.request.fuse or run.method.fuse
        used["fuse"] = getattr(how, "__name__", how)
    if run.request.budget is not None and run.method.runs_variants():
        used["budget"] = run.request.budget
    return used


def _path(trace: PathTrace, frames: Sequence[Frame]) -> PathTrace:
    """Returns the trace with its boxes in the pixels of the pictures."""
    shown = [frame.shown(boxes) for frame, boxes in zip(frames, trace.boxes, strict=True)]
    return replace(trace, boxes=torch.stack(shown))


def _boxes(task: Task, rows: _Rows, frames: Sequence[Frame], like: Tensor) -> Tensor | None:
    """Returns the boxes of the targets in the pixels of their pictures; None where none has one."""
    boxes = task.boxes(rows.targets, like)
    if boxes is None or not len(boxes):
        return boxes
    return torch.stack([frames[image].shown(box) for image, box in zip(rows.images, boxes, strict=True)])


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


def _diagnose(run: Run, rows: _Rows, maps: _Maps) -> tuple[Diagnosis, ...]:
    """Returns whether every map is meaningful, and what would help."""
    targets, images = rows.targets, rows.images
    task, output = run.model.task, run.pass_.output.detach()
    saturating = [task.saturates(target) for target in targets]
    inside = [
        task.probability_inside(target, output[image : image + 1], probabilities=run.probabilities)
        for target, image in zip(targets, images, strict=True)
    ]

    def way_out() -> str:
        if isinstance(run.model.module, BlackBox):
            return "try other options of the method"
        automatic = [layer.name for layer in run.model.automatic_layers(tuple(run.prepared.images.shape[1:]))]
        if len(automatic) != 1 or any(layer.name in (automatic[0], INPUT) for layer in run.layers):
            return "try another layer: `konkyo layers` lists them"
        return f"try layer={automatic[0]!r}"

    def absent(row: int) -> bool:
        boxes = as_target(targets[row]).matched_boxes(output[images[row] : images[row] + 1])
        return as_target(targets[row]).location() is not None and boxes[0][0] != boxes[0][0]

    probabilities: list[Tensor | None] = [
        score if saturates and inner is None else inner
        for score, saturates, inner in zip(maps.scores, saturating, inside, strict=True)
    ]
    diagnosis = diagnose(
        maps.signed,
        maps.scores,
        rectified=run.method.rectified,
        largest_gradient=maps.gradients,
        missing=maps.missing,
        grown=maps.grown,
        probabilities=probabilities if any(p is not None for p in probabilities) else (),
        inside=any(inner is not None for inner in inside),
        absent=absent,
        way_out=way_out,
    )
    return _judge_text(run, rows, maps.scores, _judge_layers(run, rows, maps.signed, diagnosis))


def _judge_layers(run: Run, rows: _Rows, signed: Tensor, diagnosis: tuple[Diagnosis, ...]) -> tuple[Diagnosis, ...]:
    """Returns the diagnoses with what is wrong with the layers."""
    shape = tuple(run.prepared.images.shape[1:])
    if not rows.targets or not run.method.needs_layer() or run.method.layer == INPUT:
        return diagnosis
    names = "+".join(layer.name for layer in run.layers)
    output = run.pass_.output.detach()
    if output.ndim == run.prepared.images.ndim:
        diagnosis = judge_output(diagnosis, names, _likeness_to_output(rows, signed, output))
    if not _is_automatic(run):
        named = () if run.model.task.layers(shape) or run.request.layer is None else run.layers
        moved = [layer.name for layer in named if run.model.moved(layer, shape)]
        return judge_places(diagnosis, moved) if moved else diagnosis
    trace = run.model.trace(shape)
    if trace.whole and [layer.name for layer in trace.cut] == [layer.name for layer in run.layers]:
        return diagnosis
    return judge_cut(diagnosis, names, _shares_around(run, rows.targets, rows.images))


def _likeness_to_output(rows: _Rows, signed: Tensor, output: Tensor) -> list[float]:
    """Returns the correlation of every row's map (R, *grid) with the channel of a dense output that it is about.

    With all of it or, where that is more, with what it has in the explained region. NaN: it is about no channel, or one
    of the two is constant.
    """
    likeness = []
    for target, image, map_ in zip(rows.targets, rows.images, signed, strict=True):
        channel = as_target(target).channel
        if channel is None or min(output.shape[2:]) < 2:
            likeness.append(map_.new_full((), torch.nan))
            continue
        cells = output[image, channel].float()
        part = as_target(target).part()
        inside = cells if part is None else cells * part.at(tuple(cells.shape)).to(cells)
        both = resize(torch.stack([cells, inside]), tuple(map_.shape)).flatten(1).to(map_)
        likeness.append(torch.corrcoef(torch.cat([map_.flatten()[None], both]))[0, 1:].nan_to_num(-1).amax())
    values: list[float] = torch.stack(likeness).tolist() if likeness else []
    return values


def _judge_text(run: Run, rows: _Rows, scores: Tensor, diagnosis: tuple[Diagnosis, ...]) -> tuple[Diagnosis, ...]:
    """Returns the diagnoses with what a text alone decides, where the network reads one: one more forward."""
    judged = [d.ok and not isinstance(t, Against) for d, t in zip(diagnosis, rows.targets, strict=True)]
    blank = run.model.task.without_content(run.pass_.images) if any(judged) else None
    if blank is None:
        return diagnosis
    with run.pass_.forwards(), torch.no_grad():
        output = at_least_float32(run.model(blank))
    parts = [target(output[i : i + 1])[0] for target, i in zip(rows.targets, rows.images, strict=True)]
    text_diagnosis = judge_text(diagnosis, scores, torch.stack(parts))
    return tuple(new if judge else old for judge, new, old in zip(judged, text_diagnosis, diagnosis, strict=True))


def _is_automatic(run: Run) -> bool:
    """Tells whether a trace has chosen the layer, or the adapter of a network whose output is looked at as a whole."""
    chosen = run.request.layer is None and run.method.layer is None and run.method.needs_layer()
    named = bool(run.model.task.layers(tuple(run.prepared.images.shape[1:])))
    dense = run.pass_.output.ndim == run.pass_.images.ndim
    return chosen and (dense or not named)


def _shares_around(run: Run, targets: Sequence[Target], images: Sequence[int]) -> list[float]:
    """Returns of every row how much of the score's gradient at the image goes around the layers.

    Two more forwards and backwards a row, of an image that is as small as in the trace.
    """
    pictures = run.prepared.images
    size: Any = traced_size(tuple(pictures.shape[1:]))
    if size is not None:
        pictures = torch.nn.functional.adaptive_avg_pool2d(pictures, (size[0], size[1]))
    shares = []
    for target, image in zip(targets, images, strict=True):
        try:
            share = share_around(run.model, target, pictures[image : image + 1].to(run.prepared.images), run.layers)
        except KonkyoError:  # a network of one image size, or without a gradient
            share = share_around(run.model, target, run.prepared.images[image : image + 1], run.layers)
        shares.append(float(share))
    return shares
