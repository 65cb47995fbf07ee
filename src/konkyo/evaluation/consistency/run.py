"""consistency(): from a model and data to maps, and to the numbers of `measure`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.data.samples import Data, Samples
from konkyo.data.sets.scenes import Scenes
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError, silenced, unknown
from konkyo.evaluation.batches import Batches, Source, floating, logits_of, require_no_question, untrained
from konkyo.evaluation.consistency.result import Baseline, Consistency
from konkyo.evaluation.consistency.statistics import ExplainedClass, measure
from konkyo.explanation.explain import Which, explain
from konkyo.explanation.run import Where
from konkyo.methods.base import find
from konkyo.metrics.distances import DISTANCES, Distance, on_grid
from konkyo.models import Model, as_model
from konkyo.tasks import ClassificationTask
from konkyo.utils.progress import Progress


def consistency(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples | Batches,
    *,
    method: Which = "grad_cam",
    target: ExplainedClass = "label",
    only_correct: bool = True,
    grid: int = 14,
    distance: Distance = "mse",
    layer: Where = None,
    limit: int | None = None,
    batch: int = 32,
    resamples: int = 1000,
    permutations: int = 200,
    baselines: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Consistency:
    """The result says how alike a classifier's maps are within a class: per class and overall.

    `data`: as `konkyo.data.samples` takes it ("folder:DIR", "scenes:200,objects=1", samples of one's own), prepared as
    the model wants. Or it is batches of (prepared images (N, C, H, W), labels (N,) int64), such as a DataLoader.
    `method`: any that `explain` takes, `layer` and `options` (its own, and `fuse`, `precision`, `budget`) as there.
    `target`: what is explained of images that are decided wrongly, their label or the decision; all others have but one
    class. What the numbers are: `measure`, and docs/consistency.md. `limit`: so many images; of samples, chosen by the
    seed. `baselines` explains the images by an untrained copy of the network, too, which doubles the time. The model
    comes back as it was.

    KonkyoError: a detector, an image without a label, or a label that the model has no class for.
    """
    adapted = as_model(model)
    _check(adapted, target, distance, batch, limit)
    chosen = find(method)
    source = Source.of(adapted, data, limit, batch, seed)
    settings: dict[str, Any] = {"method": chosen, "layer": layer, "seed": seed} | options
    maps = _CollectedMaps(adapted, _Untrained.of(adapted, settings) if baselines else None, settings, grid, target)
    maps.collect(source, progress)
    classes = adapted.classes or tuple(f"class {i}" for i in range(maps.kinds))
    how: dict[str, Any] = {"classes": classes, "grid": grid, "distance": distance, "target": target, "seed": seed}
    result = measure(
        torch.cat(maps.trained),
        torch.cat(maps.labels),
        torch.cat(maps.predictions),
        names=maps.names,
        only_correct=only_correct,
        resamples=resamples,
        permutations=permutations,
        baselines=baselines,
        settings={
            "model": adapted.name,
            "preprocess": None if adapted.preprocess is None else repr(adapted.preprocess),
            "data": source.name,
            "images": len(maps.names),
            "method": chosen.name,
            "layer": maps.layer,
            "target": target,
            "only_correct": only_correct,
            "grid": grid,
            "distance": distance,
            "resamples": resamples,
            "permutations": permutations,
            "seed": seed,
            "options": {name: repr(value) for name, value in options.items()},
        },
        **how,
    )
    if maps.untrained:
        result = _with_untrained(result, torch.cat(maps.untrained), how)
    return replace(result, notes=source.notes)


def _check(adapted: Model, target: ExplainedClass, distance: Distance, batch: int, limit: int | None) -> None:
    """Raises KonkyoError where the arguments of `consistency` cannot be right."""
    if not isinstance(adapted.task, ClassificationTask):
        raise KonkyoError(f"{adapted.name} is a {adapted.task.noun}; consistency is measured of a classifier's maps")
    require_no_question(adapted)
    if target not in ("label", "decision"):
        raise KonkyoError(f"target is 'label' or 'decision'; got {target!r}")
    if distance not in DISTANCES:
        raise unknown("distance", distance, DISTANCES)
    if batch < 1 or (limit is not None and limit < 1):
        raise KonkyoError(f"a batch and a limit are numbers of images, 1 or more; got {batch} and {limit}")


def _with_untrained(result: Consistency, maps: Tensor, how: Mapping[str, Any]) -> Consistency:
    """Returns the result with the baseline of the maps that an untrained network gives for the same images."""
    used = torch.tensor([image.used for image in result.images])
    labels = result.labels
    untrained = measure(maps[used], labels, labels, resamples=0, permutations=0, baselines=False, **how)
    rows = {"untrained network": Baseline(untrained.value, untrained.ratio)}
    return replace(result, baselines={**result.baselines, **rows})


# --- maps of all images -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Untrained:
    """A copy of the network without training, and the settings that explain it."""

    model: Model
    settings: Mapping[str, Any]

    @staticmethod
    def of(model: Model, settings: Mapping[str, Any]) -> _Untrained:
        layer = settings["layer"]
        if isinstance(layer, nn.Module):  # the copy has a module of its own under that name
            name = next((n for n, m in model.module.named_modules() if m is layer), None)
            settings = {**settings, "layer": name}
        return _Untrained(untrained(model, settings["seed"]), settings)


@dataclass(eq=False)
class _CollectedMaps:
    """The maps of all images with labels and decisions, a batch per entry, as they are collected."""

    model: Model
    untrained_copy: _Untrained | None
    settings: Mapping[str, Any]
    """Of `explain`."""
    grid: int
    target: ExplainedClass
    trained: list[Tensor] = field(default_factory=list)
    """(n, g, g) each."""
    untrained: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    layer: str = ""
    kinds: int = 0
    """The classes that the network has outputs for."""

    def collect(self, source: Source, progress: Progress | None) -> None:
        """Explains all images of a source. KonkyoError: there is none, or a label has no class."""
        session = untouched(self.model.module, self.settings["seed"])
        with silenced(), session, session:  # blank maps are counted; twice: see `Session`
            for batch in source.batches:
                self._add(batch.names, self.model.prepared(batch.images), batch.labels)
                if progress is not None:
                    progress(len(self.names), source.count)
        if not self.names:
            raise KonkyoError(f"no image came from the data{': ' + source.skipped[0] if source.skipped else ''}")

    def _add(self, names: list[str], images: Tensor, labels: Tensor) -> None:
        logits = logits_of(self.model, images, self.settings.get("precision"))
        self.kinds, labels = logits.shape[1], labels.to(logits.device)
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.kinds:
            came = f"{int(labels.min())} to {int(labels.max())}"
            raise KonkyoError(f"labels of {self.model.name} are 0 to {self.kinds - 1}; got {came}")
        predictions = logits.argmax(1)
        targets = (labels if self.target == "label" else predictions).tolist()
        explanation = explain(self.model, images, target=targets, **self.settings)
        self.layer = explanation.layer
        self.trained.append(on_grid(floating(explanation.maps), self.grid).cpu())
        if (bare := self.untrained_copy) is not None:
            maps = explain(bare.model, images, target=targets, **bare.settings).maps
            self.untrained.append(on_grid(floating(maps), self.grid).cpu())
        self.names += names
        self.labels.append(labels.cpu())
        self.predictions.append(predictions.cpu())
