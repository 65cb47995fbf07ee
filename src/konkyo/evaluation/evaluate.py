"""evaluate(): methods on a data set with truth, measured by metrics."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from konkyo.data.samples import Data, Sample, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.engine.capture import untouched
from konkyo.engine.forward import Pass, Precision
from konkyo.errors import ImageError, KonkyoError, KonkyoWarning, unknown
from konkyo.evaluation.columns import Column, column
from konkyo.evaluation.ground_truth import Truth, in_view, matched, same_class
from konkyo.evaluation.result import Evaluation, Row
from konkyo.explanation.explain import Which, explain, explanations
from konkyo.explanation.result import Explanation
from konkyo.methods.base import Method, find
from konkyo.metrics.base import Explain, Score
from konkyo.metrics.variants import absent
from konkyo.models import Model, as_model
from konkyo.targets.classes import ClassTarget, Each, Target
from konkyo.targets.detections import Detections, InstanceTarget, Tracked
from konkyo.utils.ledger import Ledger
from konkyo.utils.progress import Progress
from konkyo.utils.tensors import resize

Explained: TypeAlias = Literal["decision", "label"]

OF_CLASSIFIERS = ("deletion", "insertion", "ebpg@mask", "pointing_game@mask")
OF_DETECTORS = ("deletion(protocol=seed)", "insertion(protocol=seed)", "vea@mask", "ebpg@box")
WITHOUT_MODEL = ("ebpg@mask", "pointing_game@mask")


@dataclass(frozen=True)
class Matching:
    """Which detections are measured: those that are right, each with the thing it found.

    Detections above `threshold`, in the order of their scores, each to the thing of its class that it overlaps most and
    that no other has, by an IoU of `iou` or more. ODAM's evaluation takes threshold 0.1, iou 0.9, and `unique`: only
    where every method's map has one highest place.
    """

    threshold: float = 0.3
    iou: float = 0.5
    unique: bool = False

    def __str__(self) -> str:
        peak = ", every method's map with one highest place" if self.unique else ""
        return f"score > {self.threshold}, IoU >= {self.iou} with a thing of the class, one each{peak}"


@dataclass(frozen=True)
class Maps:
    """Maps that another tool made, as a method: a file per sample in `folder`, named as the sample.

    NAME.npz (its first array), NAME.npy or NAME.png; (H, W) or (R, H, W), a map for every row that is measured, in
    order, as large as the picture that the model sees or on a grid over it.
    """

    folder: Path
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).expanduser())
        object.__setattr__(self, "name", self.name or self.folder.name)
        if not self.folder.is_dir():
            raise KonkyoError(f"a folder of maps was expected; {self.folder} is none")

    def of(self, sample: str, rows: int) -> Tensor:
        """The maps (R, h, w) of a sample. KonkyoError: no file, or one that holds something else."""
        stem = Path(sample).with_suffix("").as_posix() if Path(sample).suffix else sample
        found = [self.folder / f"{n}{s}" for n in (sample, stem) for s in (".npz", ".npy", ".png")]
        path = next((p for p in found if p.is_file()), None)
        if path is None:
            raise KonkyoError(f"{self.folder} has no map of {sample}: {found[0].name}, .npy or .png was expected")
        try:
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    array = np.asarray(picture.convert("F"))
            else:
                array = np.load(path, allow_pickle=False)
                if path.suffix == ".npz":
                    array = array["signed" if "konkyo" in array.files else array.files[0]]
            maps = torch.from_numpy(np.array(array, dtype=np.float32))
        except Exception as error:  # damaged files fail in every possible way
            raise KonkyoError(f"{path} holds no map: {error}") from error
        maps = maps[None] if maps.ndim == 2 else maps
        if maps.ndim != 3 or len(maps) != rows:
            raise KonkyoError(f"{path}: {rows} maps (R, H, W) were expected; got {tuple(maps.shape)}")
        return maps


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is measured, the same for every sample."""

    model: Model | None
    methods: tuple[Method | Maps, ...]
    columns: tuple[Column, ...]
    explained: Explained
    matching: Matching
    seed: int
    precision: Precision | None
    options: Mapping[str, Any]


def evaluate(
    model: Model | nn.Module | None,
    data: str | Path | Data | Scenes | Samples,
    methods: Sequence[Which | Maps],
    metrics: Sequence[str] | None = None,
    *,
    explained: Explained = "decision",
    matching: Matching = Matching(),
    limit: int | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """A table of methods and metrics over a data set: every value kept, with intervals and paired tests.

    `data`: as `konkyo.data.samples` takes it: "scenes:200", "coco:DIR", "voc:DIR", "folder:DIR", or samples of one's
    own. `methods`: as `compare` takes them, and `Maps` of other tools; with `model=None` those only, a map for every
    thing of a sample. `metrics`: columns such as "ebpg@box" (see `evaluation.columns`); None: the founding papers'.

    What is explained of a classifier is its decision, or the sample's "label"; truth is then the things of that class
    (all things, if they have none). Of a detector, the detections that `matching` lets through. Perturbed images are
    scored by the class's probability; of a detector by the largest probability of the class among all candidates that
    overlap the object (IoU > 0.5).

    `limit` and `seed`: so many samples, drawn by the seed, which also decides noise and ties. `options`: the methods'
    own. `out`: a folder where every sample's values are kept as soon as they are known, and where an interrupted run
    goes on; the result is `save`d there too. KonkyoError: another run's folder, or an unknown name.
    """
    plan = _planned(model, methods, metrics, explained, matching, seed, precision, options)
    pictures = samples(data, limit=limit, seed=seed)
    settings = _settings(plan, pictures, type(data).__name__)
    parts = _measured_samples(plan, pictures, settings, None if out is None else Path(out) / "samples.jsonl", progress)
    if parts and all(part.skipped for part in parts):
        raise KonkyoError(f"none of the {len(parts)} samples could be read: {parts[0].skipped}")
    result = _gathered(plan, settings, parts, pictures.note)
    if out is not None:
        result.save(out)
    return result


def _planned(
    model: Model | nn.Module | None,
    methods: Sequence[Which | Maps],
    metrics: Sequence[str] | None,
    explained: Explained,
    matching: Matching,
    seed: int,
    precision: Precision | None,
    options: Mapping[str, Any],
) -> _Plan:
    """What is to be measured. KonkyoError: a method, metric or option that is unknown, or does not go together."""
    adapted = None if model is None else as_model(model)
    if isinstance(methods, str) or isinstance(metrics, str):
        raise KonkyoError("methods and metrics are lists of names, as in ['grad_cam']; a string came")
    if not methods and model is None:
        raise KonkyoError("without a model there is nothing to measure but maps of other tools: give Maps(folder)")
    if not methods:
        raise KonkyoError("methods is an empty list; `konkyo.methods()` has those on offer")
    if explained not in ("decision", "label"):
        raise KonkyoError(f"explained is 'decision' or 'label'; got {explained!r}")
    if adapted is None and not all(isinstance(m, Maps) for m in methods):
        raise KonkyoError("methods need a model; without one only Maps of other tools can be measured")
    usual = OF_DETECTORS if adapted is not None and adapted.detector is not None else OF_CLASSIFIERS
    names = (WITHOUT_MODEL if adapted is None else usual) if metrics is None else tuple(metrics)
    columns = tuple(column(name) for name in names)
    for c in columns:
        if adapted is None and {"images", "score", "explain"} & set(c.metric.needs):
            raise KonkyoError(f"{c.name} needs a model, which came as None")
    chosen = tuple(m if isinstance(m, Maps) else find(m) for m in methods)
    labels = [m.name for m in chosen]
    offer = sorted({o for m in chosen if isinstance(m, Method) for o in m.options})
    for name in options:
        if name not in offer:
            raise unknown(f"option of {', '.join(labels)}", name, offer or ["(none)"])
    if len(set(labels)) < len(labels):
        raise KonkyoError(f"two of the methods have one name: {', '.join(labels)}")
    if len({c.name for c in columns}) < len(columns):
        raise KonkyoError(f"two of the metrics are one: {', '.join(c.name for c in columns)}")
    return _Plan(adapted, chosen, columns, explained, matching, seed, precision, options)


def _settings(plan: _Plan, pictures: Samples, kind: str) -> dict[str, Any]:
    """What a run that goes on must have in common with the one before; `kind` names data without a source."""
    adapted = plan.model
    return {
        "konkyo": 1,  # of what is recorded
        "model": None if adapted is None else adapted.name,
        "weights": None if adapted is None else _digest(adapted.module),
        "preprocess": None if adapted is None else repr(adapted.preprocess),
        "maps": {m.name: str(m.folder.resolve()) for m in plan.methods if isinstance(m, Maps)},
        "data": pictures.source or kind,
        "samples": len(pictures),
        "methods": [m.name for m in plan.methods],
        "metrics": [c.name for c in plan.columns],
        "explained": plan.explained,
        "matching": str(plan.matching),
        "seed": plan.seed,
        "precision": plan.precision,
        "options": {name: repr(value) for name, value in plan.options.items()},
    }


def _measured_samples(
    plan: _Plan, pictures: Samples, settings: Mapping[str, Any], record: Path | None, progress: Progress | None
) -> list[_Part]:
    """What was measured of every sample: now, or by an earlier run into the same record."""
    parts = list[_Part]()
    # The samples of a limit are the first of those of a larger one.
    with Ledger(record, settings, free=("samples",)) as ledger:
        for index, name in enumerate(pictures.names):
            if str(index) not in ledger.entries:
                try:
                    part = _measured(plan, pictures[index], index)
                except ImageError as error:
                    part = _Part(name, skipped=str(error))
                ledger.add(str(index), asdict(part))
            parts.append(_Part(**ledger.entries[str(index)]))
            if parts[-1].sample != name:
                raise KonkyoError(
                    f"{ledger.path}: sample {index} is {parts[-1].sample!r}, not of {name!r}; choose another folder"
                )
            if progress is not None:
                progress(index + 1, len(pictures))
    return parts


# --- what is kept -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Part:
    """What was measured of one sample."""

    sample: str
    rows: list[tuple[str, float]] = field(default_factory=list)
    """(label, score)"""
    dropped: int = 0
    """Detections that the matching does not let through."""
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """method -> column -> (R, ...) as lists"""
    absent: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Why a method does not apply."""
    skipped: str = ""
    """Why the sample could not be read."""


def _digest(module: nn.Module) -> str:
    """What tells networks of other weights apart: a digest of a thousand numbers of every tensor."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 1000)].double().cpu()
        found.update(f"{name} {tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return found.hexdigest()[:16]


def _gathered(plan: _Plan, settings: Mapping[str, Any], parts: Sequence[_Part], note: str) -> Evaluation:
    """The parts as one table; a method that does not apply to some samples has NaN there."""
    statistics = dict[tuple[str, str], Tensor]()
    for m in plan.methods:
        for c in plan.columns:
            found = [part.statistics.get(m.name, {}).get(c.name) for part in parts]
            known = {i: torch.tensor(f, dtype=torch.float64) for i, f in enumerate(found) if f is not None}
            if not known:
                continue
            shape = next(iter(known.values())).shape[1:]
            nothing = (torch.full((len(part.rows), *shape), math.nan, dtype=torch.float64) for part in parts)
            statistics[m.name, c.name] = torch.cat([known.get(i, empty) for i, empty in enumerate(nothing)])
    rows = tuple(Row(part.sample, label, score) for part in parts for label, score in part.rows)
    skipped = [part.skipped for part in parts if part.skipped]
    notes = [f"Truth: {note}."] if note else []
    if plan.model is not None and plan.model.detector is not None:
        dropped = sum(part.dropped for part in parts)
        notes.append(f"Detections: {len(rows)} of {len(rows) + dropped} ({plan.matching}).")
    notes += [f"{len(skipped)} samples skipped: {skipped[0]}"] if skipped else []
    refused = {name: why for part in parts for name, why in part.refused.items()}
    notes += [f"{name}: {why}" for name, why in refused.items()]
    absent = {m.name: sum(part.absent.get(m.name, 0) for part in parts) for m in plan.methods}
    return Evaluation(
        tuple(m.name for m in plan.methods), plan.columns, rows, statistics, absent, settings, tuple(notes)
    )


# --- one sample -------------------------------------------------------------------------------------------------------


def _measured(plan: _Plan, sample: Sample, index: int) -> _Part:
    """The statistics of every method and column for the rows of one sample."""
    if plan.model is not None:
        with untouched(plan.model.module):
            return _explained(plan, plan.model, sample, index)
    things = tuple(thing for thing in sample.annotations if not thing.crowd)
    truth = Truth(tuple((i,) for i in range(len(things))), things, (sample.image.height, sample.image.width))
    part = _Part(sample.name, [(thing.label or "", math.nan) for thing in things])
    for m in plan.methods:
        if isinstance(m, Maps) and things:
            maps = m.of(sample.name, len(things))
            _measure(plan, part, m.name, {"maps": maps, "raw": maps}, truth, index)
    return part


def _explained(plan: _Plan, model: Model, sample: Sample, index: int) -> _Part:
    preprocess = model.preprocess
    if preprocess is None:
        raise KonkyoError(f"{model.name} does not say how to prepare a picture; give konkyo.Model(..., preprocess=...)")
    images = model.prepared(preprocess(sample.image)[None])
    output = Pass(model, images, precision=plan.precision).output.detach()
    targets, truth, dropped = _targets(plan, model, sample, output)
    part = _Part(sample.name, dropped=dropped)
    if not targets:
        return part
    found = dict[str, Explanation]()
    aims = {m.name: _aims(m, targets) for m in plan.methods}
    for m in plan.methods:  # those that explain the same share a forward
        group = [n for n in plan.methods if isinstance(n, Method) and aims[n.name] == aims[m.name]]
        if group and m is group[0]:
            options = {k: v for k, v in plan.options.items() if any(k in n.options for n in group)}
            settings = {"seed": plan.seed, "precision": plan.precision, "options": options}
            for name, result in explanations(
                model, sample.image, group, target=Each(*aims[m.name]), **settings
            ).items():
                if isinstance(result, Explanation):
                    found[name] = result
                else:
                    part.refused[name] = str(result)
    foreign = {m.name: m.of(sample.name, len(targets)) for m in plan.methods if isinstance(m, Maps)}
    whole = {name: result.maps for name, result in found.items()} | foreign
    keep = list(range(len(targets)))
    if plan.matching.unique and model.detector is not None and whole:
        peaks = [(m.flatten(1) == m.flatten(1).amax(1, keepdim=True)).sum(1).cpu() == 1 for m in whole.values()]
        keep = torch.stack(peaks).all(0).nonzero()[:, 0].tolist()
        part.dropped += len(targets) - len(keep)
    if not keep:
        return part
    targets, truth = [targets[i] for i in keep], truth.of(keep)
    boxes = preprocess.frame(sample.image).placed(truth.objects()["boxes"].to(images))
    boxes = torch.stack([_or_own(box, target) for box, target in zip(boxes, targets, strict=True)])
    scored = [_scored(model, t, box) for t, box in zip(targets, boxes, strict=True)]
    shared: dict[str, Any] = {
        "images": images.expand(len(keep), *images.shape[1:]),
        "score": _scorer(model, scored, plan.precision),
        "area": _areas(boxes, images.shape[2:]),
        "pixels": images.new_tensor([model.black, preprocess.white]),
    }
    part.rows = [(_name(model, t), float(s(output))) for t, s in zip(targets, scored, strict=True)]
    for m in plan.methods:
        given = dict(shared)
        if isinstance(m, Method) and m.name in found:
            result = found[m.name]
            of_rows = [aims[m.name][i] for i in keep]
            given |= {"seen": result.at(truth.size)[keep], "maps": result.maps[keep], "raw": result.signed[keep]}
            given["explain"] = _explainer(plan, model, m, of_rows)
            given["own_score"] = _scorer(model, [_explained_score(model, m, aim) for aim in of_rows], plan.precision)
        elif m.name in foreign:
            given["seen"] = foreign[m.name][keep].to(images)
            region = preprocess.frame(sample.image).region
            given["maps"] = given["raw"] = _bordered(given["seen"], region, (images.shape[2], images.shape[3]))
        else:
            continue
        _measure(plan, part, m.name, given, truth, index)
    return part


def _explained_score(model: Model, method: Method, aim: Any) -> Target:
    """What a method explains of a row, as a score."""
    if not isinstance(aim, int):
        return cast("Target", aim)
    return ClassTarget(aim, "sigmoid" if model.multilabel and method.score == "probability" else method.score)


def _name(model: Model, target: Any) -> str:
    """What the target is called; a class by its name."""
    return model.label(ClassTarget(target) if isinstance(target, int) else target)


def _bordered(maps: Tensor, region: tuple[float, float, float, float], size: tuple[int, int]) -> Tensor:
    """Maps over the picture as maps over the network's input, at their lowest on the border around the picture."""
    if region == (0.0, 0.0, 1.0, 1.0):
        return maps
    height, width = size
    sides = (width, height, width, height)
    x0, y0, x1, y1 = (round(share * side) for share, side in zip(region, sides, strict=True))
    found = maps.flatten(1).amin(1)[:, None, None].expand(-1, *size).clone()
    found[:, y0:y1, x0:x1] = resize(maps, (y1 - y0, x1 - x0))
    return found


def _measure(plan: _Plan, part: _Part, method: str, given: Mapping[str, Any], truth: Truth, index: int) -> None:
    """Every column's statistic of a method's maps. NaN where a map is blank: it is counted instead."""
    maps: Tensor = given["maps"]
    flat = maps.flatten(1)
    blank = (flat.amax(1) == flat.amin(1)) | absent(maps)
    part.absent[method] = int(blank.sum())
    for c in plan.columns:
        needs = c.metric.needs
        if "explain" in needs and "explain" not in given:
            continue  # maps of another tool
        values = dict(given)
        if "images" not in needs:  # over the picture, so that maps of all grids are measured at one size
            values["maps"] = resize(given.get("seen", maps).float(), truth.size)
            values |= {n: v.to(maps.device) for n, v in truth.objects().items()}
            if c.region is not None:
                values |= {n: v.to(maps.device) for n, v in truth.masks(c.region).items()}
        values["budget"] = given.get("area") if c.budget == "box" else None
        if "raw" in needs:  # attributions in units of what the method explains, which need not be the probability
            values["score"] = given.get("own_score", given.get("score"))
        options = dict(c.options)
        if "seed" in c.metric.options:
            options.setdefault("seed", plan.seed + index)
        asked = {n: values[n] for n in needs if n != "maps" and values.get(n) is not None}
        statistic = c.metric.statistic(values["maps"], **asked, **options).double()
        statistic = statistic.masked_fill(blank.view(-1, *[1] * (statistic.ndim - 1)), math.nan)
        part.statistics.setdefault(method, {})[c.name] = statistic.tolist()


def _targets(plan: _Plan, model: Model, sample: Sample, output: Tensor) -> tuple[list[Any], Truth, int]:
    """What is explained of a sample, what is true of it, and how many detections are left out."""
    assert model.preprocess is not None
    view = model.preprocess.view(sample.image)
    things, size = in_view(sample, model.preprocess), (view.height, view.width)
    if model.detector is None:
        if plan.explained == "label" and sample.label is None:
            raise KonkyoError(f"sample {sample.name} has no label of its own; explained='decision' needs none")
        (target,) = model.targets(sample.label if plan.explained == "label" else None, output)[0]
        name = model.label(target)
        own = tuple(i for i, thing in enumerate(things) if thing.label is None or same_class(thing.label, name))
        return [target.index if isinstance(target, ClassTarget) else target], Truth((own,), things, size), 0
    frames = (model.preprocess.frame(sample.image),)
    (found,) = model.targets(Detections(threshold=plan.matching.threshold), output, frames=frames)
    boxes = torch.tensor([t.box for t in found if isinstance(t, InstanceTarget)]).reshape(-1, 4)
    owned = matched([model.label(t) for t in found], frames[0].shown(boxes), things, plan.matching.iou)
    keep = [i for i, own in enumerate(owned) if own or plan.matching.iou == 0]
    return [found[i] for i in keep], Truth(tuple(owned[i] for i in keep), things, size), len(found) - len(keep)


def _aims(method: Method | Maps, targets: Sequence[Any]) -> list[Any]:
    """What a method explains of the targets: D-RISE an instance's likeness, which is what it weighs masks by."""
    if isinstance(method, Method) and method.score == "similarity":
        return [replace(t, quantity="similarity") if isinstance(t, InstanceTarget) else t for t in targets]
    return list(targets)


def _or_own(box: Tensor, target: Any) -> Tensor:
    """The box, or where it is not known the detection's own."""
    return torch.where(box.isnan(), box.new_tensor(target.box), box) if isinstance(target, InstanceTarget) else box


def _scored(model: Model, target: Any, box: Tensor) -> Target:
    """What perturbed images are scored by."""
    if isinstance(target, InstanceTarget):
        return Tracked(target.label, tuple(box.tolist()), len(target.likeness))
    if isinstance(target, int):
        return ClassTarget(target, "sigmoid" if model.multilabel else "probability")
    return cast("Target", target)


def _scorer(model: Model, targets: Sequence[Target], precision: Precision | None) -> Score:
    """Variants and the rows that they are of -> the scores of the rows' targets."""

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        output = Pass(model, variants, precision=precision).output.detach()
        scores = variants.new_empty(len(variants), dtype=torch.float32)
        for row in sorted(set(rows.tolist())):
            of_row = (rows == row).to(output.device)
            scores[of_row] = targets[row](output[of_row]).to(scores)
        return scores

    return score


def _explainer(plan: _Plan, model: Model, method: Method, targets: Sequence[Any]) -> Explain:
    """Variants and the rows that they are of -> their maps."""
    options = {k: v for k, v in plan.options.items() if k in method.options}

    def maps(variants: Tensor, rows: Tensor) -> Tensor:
        aims = [targets[row] for row in rows.tolist()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KonkyoWarning)  # blank maps of variants are no news
            found = explain(
                model, variants, method=method, target=aims, seed=plan.seed, precision=plan.precision, **options
            )
        return found.maps

    return maps


def _areas(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """How many pixels of an image (H, W) boxes (R, 4) have (R,); 0 where a box is not known."""
    low = boxes[:, :2].clamp_min(0).floor()
    high = torch.minimum(boxes[:, 2:], boxes.new_tensor([size[1], size[0]])).ceil()
    return (high - low).clamp_min(0).prod(1).nan_to_num(0).long()
