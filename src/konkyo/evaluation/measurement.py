"""What metrics say of the maps of one sample: its targets, what is true of them, and what every metric is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from konkyo.data.samples import Sample
from konkyo.engine.capture import untouched
from konkyo.engine.forward import Pass, Precision
from konkyo.engine.session import session_of
from konkyo.errors import NotApplicable, silenced
from konkyo.evaluation.ground_truth import Truth, in_view
from konkyo.evaluation.plan import Maps, Plan
from konkyo.explanation.explain import explain, explanations
from konkyo.explanation.inputs import known_classes
from konkyo.explanation.result import Explanation
from konkyo.methods.base import Method
from konkyo.metrics.base import Decided, Explain, Outputs, Score
from konkyo.metrics.variants import absent
from konkyo.models import Model, Preprocess
from konkyo.models.base import preprocess_of
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import Each
from konkyo.tasks.base import same_class
from konkyo.utils.tensors import resize


@dataclass(eq=False)
class SampleValues:
    """The values of one sample: what every metric says of the maps of every method."""

    sample: str
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """(explained, score, label, decision), as of `Row`; older records have the first two."""
    dropped: int = 0
    """Detections that the matching does not let through."""
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """method -> column -> (R, ...) as lists"""
    absent: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Why a method does not apply."""
    skipped: str = ""
    """Why the sample could not be read."""


def sample_values(plan: Plan, sample: Sample, index: int) -> SampleValues:
    """Returns the statistics of every method and column for the rows of one sample.

    Methods, too, draw anew for every sample: so intervals by resampling images hold what one draw or another does.
    """
    plan, index = replace(plan, seed=plan.seed + index), 0
    if plan.model is not None:
        with (session := untouched(plan.model.module, plan.seed)), session:  # twice: see `Session`
            model = plan.model.prompted(question=sample.question)
            return _explained(plan, _opened(plan, model, sample), index)
    things = tuple(thing for thing in sample.annotations if not thing.crowd)
    crowds = tuple(thing for thing in sample.annotations if thing.crowd)
    size = (sample.image.height, sample.image.width)
    truth = Truth(tuple((i,) for i in range(len(things))), things, size, crowds)
    part = SampleValues(sample.name, [(thing.label or "", math.nan, thing.label or "", "") for thing in things])
    for m in plan.methods:
        if isinstance(m, Maps) and things:
            maps = m.of(sample.name, len(things))
            _measure(plan, part, m.name, {"maps": maps, "raw": maps}, truth, index)
    return part


@dataclass(frozen=True, eq=False)
class _View:
    """The view is a sample as the model sees it."""

    model: Model
    preprocess: Preprocess
    sample: Sample
    images: Tensor
    """(1, C, H, W) as prepared for the network."""
    output: Tensor


@dataclass(frozen=True, eq=False)
class _MeasuredRows:
    """What is measured of a sample: a row per target."""

    targets: list[Target]
    truth: Truth
    requests: Mapping[str, list[Any]]
    """Of every method, what asks it for each of the targets."""
    numbers: list[int]
    """Which of the targets are measured; the others are left out."""

    def of(self, values: Sequence[Any]) -> list[Any]:
        """Returns those of the targets' values whose targets are measured."""
        return [values[i] for i in self.numbers]


def _opened(plan: Plan, model: Model, sample: Sample) -> _View:
    """Returns the sample with the network's output. KonkyoError: the model does not say how to prepare pictures."""
    preprocess = preprocess_of(model)
    images = model.prepared(preprocess(sample.image)[None])
    model = model.settled(images, model.task.measured(sample, plan.explained, plan.matching))
    return _View(model, preprocess, sample, images, Pass(model, images, precision=plan.precision).output.detach())


def _explained(plan: Plan, view: _View, index: int) -> SampleValues:
    """Returns the statistics of every method for what the model decides on."""
    targets, truth, dropped = _targets(plan, view)
    part = SampleValues(view.sample.name, dropped=dropped)
    if targets:
        _fill(plan, view, part, targets, truth, index)
    return part


def _fill(
    plan: Plan, view: _View, part: SampleValues, targets: list[Target], truth: Truth, index: int
) -> dict[str, Explanation]:
    """Measures the maps of these targets, and notes it in the part. -> the maps of every method"""
    requests = {
        m.name: [view.model.task.request_of(target, m.explained(plan.options)) for target in targets]
        for m in plan.methods
        if isinstance(m, Method)
    }
    results, part.refused = _results(plan, view, requests)
    foreign = {m.name: m.of(view.sample.name, len(targets)) for m in plan.methods if isinstance(m, Maps)}
    numbers = list(range(len(targets)))
    if plan.matching.unique and view.model.task.instances and (results or foreign):
        numbers = _with_one_peak([*(result.maps for result in results.values()), *foreign.values()])
        part.dropped += len(targets) - len(numbers)
    if not numbers:
        return results
    rows = _MeasuredRows(targets, truth.of(numbers), requests, numbers)
    shared = _shared_inputs(plan, view, rows, part)
    for m in plan.methods:
        if isinstance(m, Method) and m.name in results:
            _measure(plan, part, m.name, shared | _inputs_of(plan, view, m, results[m.name], rows), rows.truth, index)
        elif m.name in foreign:
            maps = foreign[m.name][numbers].to(view.images)
            _measure(plan, part, m.name, shared | _inputs_of_foreign(view, maps), rows.truth, index)
    return results


def measured_maps(
    plan: Plan, sample: Sample, index: int, request: Any
) -> tuple[dict[str, Explanation | NotApplicable], dict[str, dict[str, list[float]]]]:
    """Returns (the maps of every method, method -> column -> a value per map) of all that is asked of a sample.

    `request`: as the target of `explain`. What is true is that of the things that the matching finds for a target; of
    a target without one, columns that need truth are NaN. `index`: decides noise, with the plan's seed.
    """
    assert plan.model is not None
    with (session := untouched(plan.model.module, plan.seed)), session:  # twice: see `Session`
        view = _opened(plan, plan.model.prompted(question=sample.question), sample)
        frame = view.preprocess.frame(sample.image)
        (targets,) = view.model.targets(request, view.output, frames=(frame,))
        part = SampleValues(sample.name)
        results: dict[str, Explanation | NotApplicable] = {}
        if targets:
            results |= _fill(
                plan, view, part, targets, _truth(view, [pair or () for pair in _matched(plan, view, targets)]), index
            )
    results |= {name: NotApplicable(reason) for name, reason in part.refused.items()}
    columns = {c.name: c for c in plan.columns}
    values = {
        method: {
            name: columns[name].metric.summarised(torch.tensor(statistic, dtype=torch.float64)).tolist()
            for name, statistic in of_columns.items()
        }
        for method, of_columns in part.statistics.items()
    }
    return results, values


def _results(
    plan: Plan, view: _View, requests: Mapping[str, list[Any]]
) -> tuple[dict[str, Explanation], dict[str, str]]:
    """Returns the maps of every method, and why others do not apply; those that explain the same share a forward."""
    results, refused = dict[str, Explanation](), dict[str, str]()
    methods = [m for m in plan.methods if isinstance(m, Method)]
    for m in methods:
        group = [n for n in methods if requests[n.name] == requests[m.name]]
        if m is not group[0]:
            continue
        options = {k: v for k, v in plan.options.items() if any(k in n.options for n in group)}
        settings = {"seed": plan.seed, "precision": plan.precision, "layer": plan.layer, "options": options}
        target = Each(*requests[m.name])
        for name, result in explanations(view.model, view.sample.image, group, target=target, **settings).items():
            if isinstance(result, Explanation):
                results[name] = result
            else:
                refused[name] = str(result)
    return results, refused


def _with_one_peak(maps: Sequence[Tensor]) -> list[int]:
    """Returns the rows whose maps (R, h, w) all have one highest place."""
    peaks = [(m.flatten(1) == m.flatten(1).amax(1, keepdim=True)).sum(1).cpu() == 1 for m in maps]
    rows: list[int] = torch.stack(peaks).all(0).nonzero()[:, 0].tolist()
    return rows


def _shared_inputs(plan: Plan, view: _View, rows: _MeasuredRows, part: SampleValues) -> dict[str, Any]:
    """Returns what metrics of all methods are given; the part gets the rows' labels and scores."""
    model, images, targets = view.model, view.images, rows.of(rows.targets)
    boxes = view.preprocess.frame(view.sample.image).placed(rows.truth.objects()["boxes"].to(images))
    boxes = torch.stack([_box_or_location(box, target) for box, target in zip(boxes, targets, strict=True)])
    scores = [model.task.perturbation_score(target, box) for target, box in zip(targets, boxes, strict=True)]
    names, decided = map(model.label, targets), _decided(view, targets)
    labels = _true_labels(view, rows, decided)
    values = [float(score(view.output)) for score in scores]
    part.rows = list(zip(names, values, labels, decided, strict=True))
    return {
        "images": images.expand(len(targets), *images.shape[1:]),
        "score": _scorer(model, scores, plan.precision),
        **_answers(model, targets, view.output, plan.precision),
        "area": box_areas(boxes, images.shape[2:]),
        **_parts(view, targets, rows.truth.size),
        "pixels": images.new_tensor([model.black, view.preprocess.white]),
    }


def _parts(view: _View, targets: Sequence[Target], size: tuple[int, int]) -> dict[str, Tensor]:
    """Returns the regions of dense outputs that are explained, on the input (R, H, W) and on the picture (R, *size).

    Nothing where a target has none; a region is where it covers at least half as much as where it covers most.
    """
    parts = [as_target(target).part() for target in targets]
    if any(part is None for part in parts):
        return {}
    height, width = view.images.shape[2:]
    weights = torch.stack([part.at((height, width)) for part in parts if part is not None])
    inside = weights >= weights.flatten(1).amax(1)[:, None, None] / 2
    x0, y0, x1, y1 = view.preprocess.frame(view.sample.image).region
    shown = inside[:, round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]
    seen = torch.nn.functional.interpolate(shown[:, None].float(), size=size, mode="nearest")[:, 0] > 0
    return {"part": inside.to(view.images.device), "explained": seen}


def _true_labels(view: _View, rows: _MeasuredRows, decided: Sequence[str]) -> list[str]:
    """Returns what is true of every row, as the model calls it: its image's class, or that of the thing it is of."""
    if view.model.task.instances:
        things = rows.truth.annotations
        labels = [things[numbers[0]].label if numbers else None for numbers in rows.truth.rows]
    else:
        labels = [view.sample.label] * len(rows.numbers)
    known, _ = known_classes(view.model, labels)
    return [
        decision if same_class(label, decision) else name or label or ""
        for label, name, decision in zip(labels, known or (None,) * len(labels), decided, strict=True)
    ]


def _decided(view: _View, targets: Sequence[Target]) -> list[str]:
    """Returns what the model decided, of every target; "" where that is of no classes."""
    decisions = view.model.decisions_beside(targets, [0] * len(targets), view.output)
    return ["" if decision is None else decision.label for decision in decisions]


def _inputs_of(plan: Plan, view: _View, method: Method, result: Explanation, rows: _MeasuredRows) -> dict[str, Any]:
    """Returns what metrics are given of a method's maps."""
    requests, model = rows.of(rows.requests[method.name]), view.model
    score = method.explained(plan.options)
    scores = [model.targets(request, view.output, score=score)[0][0] for request in requests]
    return {
        "holds_input": method.holds_input,
        "seen": result.at(rows.truth.size)[rows.numbers],
        "maps": result.maps[rows.numbers],
        "raw": result.signed[rows.numbers],
        "explain": _explainer(plan, model, method, requests),
        "own_score": _scorer(model, scores, plan.precision),
    }


def _inputs_of_foreign(view: _View, maps: Tensor) -> dict[str, Any]:
    """Returns what metrics are given of another tool's maps (R, h, w)."""
    size = (view.images.shape[2], view.images.shape[3])
    bordered = _bordered(maps, view.preprocess.frame(view.sample.image).region, size)
    return {"seen": maps, "maps": bordered, "raw": bordered}


def _bordered(maps: Tensor, region: tuple[float, float, float, float], size: tuple[int, int]) -> Tensor:
    """Returns maps of the picture as maps of the network's input; on the border they have their lowest value."""
    if region == (0.0, 0.0, 1.0, 1.0):
        return maps
    height, width = size
    sides = (width, height, width, height)
    x0, y0, x1, y1 = (round(share * side) for share, side in zip(region, sides, strict=True))
    bordered = maps.flatten(1).amin(1)[:, None, None].expand(-1, *size).clone()
    bordered[:, y0:y1, x0:x1] = resize(maps, (y1 - y0, x1 - x0))
    return bordered


def _measure(plan: Plan, part: SampleValues, method: str, offers: Mapping[str, Any], truth: Truth, index: int) -> None:
    """Every column's statistic of a method's maps. NaN where a map is blank (it is counted) or the truth unknown."""
    maps: Tensor = offers["maps"]
    flat = maps.flatten(1)
    blank = (flat.amax(1) == flat.amin(1)) | absent(maps)
    part.absent[method] = int(blank.sum())
    for c in plan.columns:
        needs = c.metric.needs
        if "explain" in needs and "explain" not in offers:
            continue  # maps of another tool
        values = dict(offers)
        if "images" not in needs:  # over the picture, so that maps of all grids are measured at one size
            values["maps"] = resize(offers.get("seen", maps).float(), truth.size)
            values |= {n: v.to(maps.device) for n, v in truth.objects().items()}
            if c.region == "explained":
                masks = offers.get("explained", torch.zeros(len(maps), *truth.size, dtype=torch.bool))
                values |= {"masks": masks.to(maps.device), "others": torch.zeros_like(masks, device=maps.device)}
            elif c.region is not None:
                values |= {n: v.to(maps.device) for n, v in truth.masks(c.region).items()}
        values["budget"] = offers.get("area") if c.budget == "box" else None
        if "raw" in needs:  # attributions in units of what the method explains, which need not be the probability
            values["score"] = offers.get("own_score", offers.get("score"))
        options = dict(c.options)
        if "seed" in c.metric.options:
            options.setdefault("seed", plan.seed + index)
        if "holds_input" in c.metric.options:  # maps of other tools are taken for what most maps are
            options.setdefault("holds_input", offers.get("holds_input", True))
        arguments = {n: values[n] for n in needs if n != "maps" and values.get(n) is not None}
        statistic = c.metric.statistic(values["maps"], **arguments, **options).double()
        always_known = c.region in (None, "explained")
        left_out = blank if always_known else blank | truth.unknown(c.region).to(blank.device)  # type: ignore[arg-type]
        statistic = statistic.masked_fill(left_out.view(-1, *[1] * (statistic.ndim - 1)), math.nan)
        part.statistics.setdefault(method, {})[c.name] = statistic.tolist()


def _targets(plan: Plan, view: _View) -> tuple[list[Target], Truth, int]:
    """Returns what is explained of a sample, what is true of it, and how many targets are left out."""
    frame = view.preprocess.frame(view.sample.image)
    request = view.model.task.measured(view.sample, plan.explained, plan.matching)
    (targets,) = view.model.targets(request, view.output, frames=(frame,))
    pairs = _matched(plan, view, targets)
    known = [(target, pair) for target, pair in zip(targets, pairs, strict=True) if pair is not None]
    return [target for target, _ in known], _truth(view, [pair for _, pair in known]), len(targets) - len(known)


def _matched(plan: Plan, view: _View, targets: Sequence[Target]) -> list[tuple[int, ...] | None]:
    """Returns of every target which things it is about; None where the matching lets it through for none."""
    boxes = view.model.task.boxes(targets, torch.zeros(0))
    shown = None if boxes is None else view.preprocess.frame(view.sample.image).shown(boxes)
    labels, annotations = [view.model.label(target) for target in targets], in_view(view.sample, view.preprocess)
    return list(view.model.task.matches(labels, shown, annotations, plan.matching))


def _truth(view: _View, rows: Sequence[tuple[int, ...]]) -> Truth:
    """Returns what is true of rows that are about these things each."""
    picture = view.preprocess.view(view.sample.image)
    annotations, crowds = in_view(view.sample, view.preprocess), in_view(view.sample, view.preprocess, crowds=True)
    return Truth(tuple(rows), annotations, (picture.height, picture.width), crowds)


def _box_or_location(box: Tensor, target: Target) -> Tensor:
    """Returns the box (4,), or where it is not known the place that the target is about."""
    location = as_target(target).location()
    return box if location is None else torch.where(box.isnan(), box.new_tensor(location), box)


def _output(model: Model, variants: Tensor, precision: Precision | None) -> Tensor:
    """Returns the network's output for variants, one by one where its session says so."""
    session = session_of(model.module)
    parts = torch.split(variants, 1 if session is not None and session.alone else len(variants))
    return torch.cat([Pass(model, part, precision=precision).output.detach() for part in parts])


def _answers(
    model: Model, targets: Sequence[Target], output: Tensor, precision: Precision | None
) -> dict[str, Decided | Outputs]:
    """Returns what tells the outputs of variants, and where targets are of classes, whether they are still decided."""

    def outputs(variants: Tensor, rows: Tensor) -> Tensor:
        del rows
        return _output(model, variants, precision)

    def decided(variants: Tensor, rows: Tensor) -> Tensor:
        aims = [targets[row] for row in rows.tolist()]
        decisions = model.decisions_beside(aims, list(range(len(aims))), _output(model, variants, precision))
        stays = [decision is not None and decision.agrees for decision in decisions]  # None: it is not there any more
        return torch.tensor(stays, dtype=torch.bool, device=variants.device)

    now = model.decisions_beside(targets, [0] * len(targets), output)
    comparable = all(decision is not None and decision.asked_probability is not None for decision in now)
    return {"outputs": outputs} | ({"decided": decided} if comparable else {})


def _scorer(model: Model, targets: Sequence[Target], precision: Precision | None) -> Score:
    """Variants and the rows that they are of -> the scores of the rows' targets."""

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        output = _output(model, variants, precision)
        scores = variants.new_empty(len(variants), dtype=torch.float32)
        for row in sorted(set(rows.tolist())):
            of_row = (rows == row).to(output.device)
            scores[of_row] = targets[row](output[of_row]).to(scores)
        return scores

    return score


def _explainer(plan: Plan, model: Model, method: Method, targets: Sequence[Any]) -> Explain:
    """Variants and the rows that they are of -> their maps."""
    options = {k: v for k, v in plan.options.items() if k in method.options}

    def maps(variants: Tensor, rows: Tensor) -> Tensor:
        aims = [targets[row] for row in rows.tolist()]
        with silenced():  # blank maps of variants are no news
            explanation = explain(
                model,
                variants,
                method=method,
                target=aims,
                seed=plan.seed,
                precision=plan.precision,
                layer=plan.layer,
                **options,
            )
        return explanation.maps

    return maps


def box_areas(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Returns how many pixels of an image (H, W) boxes (R, 4) have (R,); 0 where a box is not known."""
    low = boxes[:, :2].clamp_min(0).floor()
    high = torch.minimum(boxes[:, 2:], boxes.new_tensor([size[1], size[0]])).ceil()
    return (high - low).clamp_min(0).prod(1).nan_to_num(0).long()
