"""evaluate(): methods on a data set with truth, measured by metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.data.samples import Data, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.engine.forward import Precision
from konkyo.errors import ImageError, KonkyoError, KonkyoWarning
from konkyo.evaluation.columns import Column, column
from konkyo.evaluation.measurement import SampleValues, sample_values
from konkyo.evaluation.plan import RIGHT, Maps, Plan
from konkyo.evaluation.result import Evaluation, Row
from konkyo.explanation.explain import Which
from konkyo.explanation.run import Where
from konkyo.methods.base import find
from konkyo.models import Model, as_model
from konkyo.tasks.base import Explained, Matching
from konkyo.utils.ledger import Ledger
from konkyo.utils.progress import Progress

WITHOUT_MODEL = ("ebpg@mask", "pointing_game@mask")


def evaluate(
    model: Model | nn.Module | None,
    data: str | Path | Data | Scenes | Samples,
    methods: Sequence[Which | Maps],
    metrics: Sequence[str] | None = None,
    *,
    explained: Explained = "decision",
    matching: Matching = RIGHT,
    limit: int | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    layer: Where = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Measures methods by metrics over a data set, and returns a table of all values, intervals and paired tests.

    `data`: as `konkyo.data.samples` takes it: "scenes:200", "coco:DIR", "voc:DIR", "folder:DIR", or samples of one's
    own. `methods`: as `compare` takes them, and `Maps` of other tools; with `model=None` those only, a map for every
    thing of a sample. `metrics`: columns such as "ebpg@box" (see `evaluation.columns`); None: the founding papers'.

    What is explained of a classifier is its decision, or the sample's "label"; truth is then the things of that class
    (all things, if they have none). Of a detector, the detections that `matching` lets through. Perturbed images are
    scored by the class's probability; of a detector by the largest probability of the class among all candidates that
    overlap the object (IoU > 0.5).

    The question of a sample is put to the model, whose answer is explained.

    `layer`: where methods that read a layer do it, as in `explain`. `limit` and `seed`: so many samples, drawn by the
    seed, which also decides noise and ties. `options`: the methods' own. `out`: a folder where every sample's values
    are kept as soon as they are known, and where an interrupted run goes on; the result is `save`d there too.
    KonkyoError: another run's folder, or an unknown name.
    """
    adapted = None if model is None else as_model(model)
    _check(adapted, methods, metrics, explained)
    columns = _columns(adapted, metrics)
    chosen = tuple(m if isinstance(m, Maps) else find(m) for m in methods)
    plan = Plan(adapted, chosen, columns, explained, matching, seed, precision, layer, options)
    source = samples(data, limit=limit, seed=seed)
    settings = plan.settings(source.source or type(data).__name__, len(source))
    parts = list[SampleValues]()
    # The samples of a limit are the first of those of a larger one.
    with Ledger(None if out is None else Path(out) / "samples.jsonl", settings, free=("samples",)) as ledger:
        if ledger.damaged:
            message = f"{ledger.path}: {ledger.damaged} damaged lines; their samples are measured again"
            warnings.warn(message, KonkyoWarning, stacklevel=2)
        for index in range(len(source)):
            parts.append(_recorded(plan, source, index, ledger))
            if progress is not None:
                progress(index + 1, len(source))
    if parts and all(part.skipped for part in parts):
        raise KonkyoError(f"none of the {len(parts)} samples could be read: {parts[0].skipped}")
    result = _gathered(plan, settings, parts, source.note)
    if out is not None:
        result.save(out)
    return result


def _check(
    model: Model | None, methods: Sequence[Which | Maps], metrics: Sequence[str] | None, explained: Explained
) -> None:
    """Raises KonkyoError for methods or metrics that are no lists, nothing to measure, or methods without a model."""
    if isinstance(methods, str) or isinstance(metrics, str):
        raise KonkyoError("methods and metrics are lists of names, as in ['grad_cam']; a string came")
    if not methods and model is None:
        raise KonkyoError("without a model there is nothing to measure but maps of other tools: give Maps(folder)")
    if not methods:
        raise KonkyoError("methods is an empty list; `konkyo.methods()` has those on offer")
    if explained not in ("decision", "label"):
        raise KonkyoError(f"explained is 'decision' or 'label'; got {explained!r}")
    if model is None and not all(isinstance(m, Maps) for m in methods):
        raise KonkyoError("methods need a model; without one only Maps of other tools can be measured")


def _columns(model: Model | None, metrics: Sequence[str] | None) -> tuple[Column, ...]:
    """Returns the columns by their names, or those of the task. KonkyoError: one that needs a model without one."""
    names = (WITHOUT_MODEL if model is None else model.task.columns) if metrics is None else metrics
    columns = tuple(column(name) for name in names)
    for c in columns:
        if model is None and {"images", "score", "explain"} & set(c.metric.needs):
            raise KonkyoError(f"{c.name} needs a model, which came as None")
    return columns


def _recorded(plan: Plan, source: Samples, index: int, ledger: Ledger) -> SampleValues:
    """Returns what was measured of a sample; it is measured now if the ledger does not have it."""
    name = source.names[index]
    if str(index) not in ledger.entries:
        try:
            part = sample_values(plan, source[index], index)
        except ImageError as error:
            part = SampleValues(name, skipped=str(error))
        ledger.add(str(index), asdict(part))
    part = SampleValues(**ledger.entries[str(index)])
    if part.sample != name:
        raise KonkyoError(f"{ledger.path}: sample {index} is {part.sample!r}, not of {name!r}; choose another folder")
    return part


def _gathered(plan: Plan, settings: Mapping[str, Any], parts: Sequence[SampleValues], note: str) -> Evaluation:
    """Returns the parts as one table; a method that does not apply to some samples has NaN there."""
    statistics = dict[tuple[str, str], Tensor]()
    for m in plan.methods:
        for c in plan.columns:
            of_parts = [part.statistics.get(m.name, {}).get(c.name) for part in parts]
            known = {i: torch.tensor(f, dtype=torch.float64) for i, f in enumerate(of_parts) if f is not None}
            if not known:
                continue
            shape = next(iter(known.values())).shape[1:]
            nothing = (torch.full((len(part.rows), *shape), math.nan, dtype=torch.float64) for part in parts)
            statistics[m.name, c.name] = torch.cat([known.get(i, empty) for i, empty in enumerate(nothing)])
    rows = tuple(Row(part.sample, *row) for part in parts for row in part.rows)
    skipped = [part.skipped for part in parts if part.skipped]
    notes = [f"Truth: {note}."] if note else []
    if plan.model is not None and plan.model.task.instances:
        dropped = sum(part.dropped for part in parts)
        notes.append(
            f"{plan.model.task.instances.capitalize()}: {len(rows)} of {len(rows) + dropped} ({plan.matching})."
        )
    notes += [f"{len(skipped)} samples skipped: {skipped[0]}"] if skipped else []
    refused = {name: why for part in parts for name, why in part.refused.items()}
    notes += [f"{name}: {why}" for name, why in refused.items()]
    absent = {m.name: sum(part.absent.get(m.name, 0) for part in parts) for m in plan.methods}
    return Evaluation(
        tuple(m.name for m in plan.methods), plan.columns, rows, statistics, absent, settings, tuple(notes)
    )
