"""What every question of a diagnosis is given: decisions, maps and features of all images; and the questions' names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konkyo.data.samples import Samples, chosen
from konkyo.engine.forward import Pass
from konkyo.engine.layer import Layer
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError, silenced, unknown
from konkyo.evaluation.batches import UNKNOWN, Batch, Source, class_outputs, floating
from konkyo.evaluation.diagnose.findings import Finding
from konkyo.evaluation.ground_truth import in_view
from konkyo.explanation.explain import Which, explain
from konkyo.explanation.run import Where
from konkyo.metrics.distances import on_grid
from konkyo.models import Model
from konkyo.targets.base import Target
from konkyo.utils.progress import Progress
from konkyo.utils.tensors import min_max, resize, safe_divide

_Made = TypeVar("_Made")

Pooling: TypeAlias = Literal["embedding", "map"]

THUMBNAIL = 224
"""The longer side of the pictures that evidence is made of, at most."""
_CHANNELS = 64
"""Ablation-CAM of a diagnosis takes away so many channels of the layer at most, the most important ones."""


@dataclass(frozen=True)
class CueRule:
    """The thresholds of a cue, chosen on 15 small networks with planted cues and 3 clean ones (docs/cues.md)."""

    high: float = 0.12
    """The least excess of "high", and of "low"."""
    medium: float = 0.08
    """The least excess of "medium"."""
    cover: float = 0.03
    """The least fall of P with the window covered."""
    paste: float = 0.02
    """The least rise of P with the window pasted."""

    @classmethod
    def of(cls, thresholds: Mapping[str, float]) -> CueRule:
        """Returns the rule with some thresholds changed. KonkyoError: a name that it does not have, or no number."""
        for name, value in thresholds.items():
            if name not in cls.__dataclass_fields__:
                raise unknown("threshold of a cue", name, cls.__dataclass_fields__)
            if not -1 <= value <= 1:
                raise KonkyoError(f"the cue's threshold {name} is a difference of shares, from -1 to 1; got {value}")
        return cls(**thresholds)


@dataclass(frozen=True)
class Settings:
    """The settings of a diagnosis are its error rate, how much it draws and runs, its thresholds and its seed."""

    alpha: float = 0.01
    """The error rate of a question, over all its subjects."""
    resamples: int = 1000
    """Of permutations and intervals."""
    budget: int = 48
    """Images that a class's interventions are tried on, at most."""
    batch: int = 32
    seed: int = 0
    method: Which = "grad_cam"
    layer: Where = None
    classes: tuple[str, ...] = ()
    """The classes that questions about single classes are asked of; empty: all."""
    cue: CueRule = CueRule()
    pooling: Pooling = "embedding"
    """What the features weigh places by: all the same, or as the map does."""


@dataclass(frozen=True, eq=False)
class Collected:
    """This is all that is known of the n images before a question is asked. Pictures are opened when asked for."""

    model: Model
    data: Samples
    """The n samples that could be read, in order."""
    labels: Tensor | None
    """(n,) int64 the true classes; None where they are not known of every image."""
    predictions: Tensor
    """(n,) int64 the decisions."""
    probabilities: Tensor
    """(n, K) float32."""
    features: Tensor
    """(n, C) float32, the mean over the grid of what the explained layer puts out, weighed as the settings say."""
    maps: Tensor
    """(n, h, w) float32 of the label (of the decision, without labels) by the settings' method, as it gives them."""
    eigen: Tensor
    """(n, h, w) float32, by Eigen-CAM at the same layer: what the backbone puts out, whatever the class."""
    layer: str
    settings: Settings
    train: Collected | None = None
    """The same of the images that the model was trained on, where they are given."""
    notes: tuple[str, ...] = ()
    forwards: int = 0
    """Images that were run forward to collect this."""
    _cache: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def names(self) -> tuple[str, ...]:
        """Returns what the n images are called."""
        return self.data.names

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Returns the names of the K classes."""
        return self.model.classes or tuple(f"class {i}" for i in range(self.probabilities.shape[1]))

    @property
    def grid(self) -> tuple[int, int]:
        """Returns the (height, width) of the maps in cells."""
        return self.maps.shape[1], self.maps.shape[2]

    @cached_property
    def unit_maps(self) -> Tensor:
        """Returns the maps (n, h, w) scaled to [0, 1]; a constant map is zeros."""
        return min_max(self.maps)

    @property
    def correct(self) -> Tensor:
        """Returns which images (n,) bool are decided as labelled. KonkyoError: no labels."""
        return self.true_labels == self.predictions

    @property
    def true_labels(self) -> Tensor:
        """Returns the labels (n,). KonkyoError: no labels, which a question that needs them says beforehand."""
        if self.labels is None:
            raise KonkyoError("this question needs the labels of all images")
        return self.labels

    @property
    def confidence(self) -> Tensor:
        """Returns the probability (n,) of the decision."""
        return self.probabilities.gather(1, self.predictions[:, None])[:, 0]

    @property
    def label_probability(self) -> Tensor:
        """Returns the probability (n,) of the label."""
        return self.probabilities.gather(1, self.true_labels[:, None])[:, 0]

    def of_class(self, index: int) -> list[int]:
        """Returns the indices of the images with a label."""
        return torch.nonzero(self.true_labels == index)[:, 0].tolist()

    @cached_property
    def present(self) -> tuple[int, ...]:
        """Returns the classes that images are labelled with (decided as, without labels), in order."""
        return tuple(torch.unique(self.predictions if self.labels is None else self.labels).tolist())

    @cached_property
    def subjects(self) -> tuple[int, ...]:
        """Returns the classes of `present` that questions about single classes are asked of."""
        wanted = {self.model.class_index(name) for name in self.settings.classes}
        return tuple(index for index in self.present if not wanted or index in wanted)

    # --- maps that few questions need ---------------------------------------------------------------------------------

    @cached_property
    def ablation_of_label(self) -> Tensor:
        """Returns Ablation-CAM (n, h, w) of the label: what the head makes of the features. KonkyoError: no labels."""
        return self._maps_of("ablation_cam", self.true_labels.tolist())

    @cached_property
    def ablation_of_decision(self) -> Tensor:
        """Returns Ablation-CAM (n, h, w) of the decision."""
        return self._maps_of("ablation_cam", self.predictions.tolist())

    def _maps_of(self, method: Which, targets: list[int]) -> Tensor:
        parts = []
        for indices in self.parts():
            wanted = [targets[i] for i in indices]
            parts.append(self.explained(indices, wanted, method=method, budget=_CHANNELS))
        return torch.cat(parts)

    def explained(
        self,
        indices: Sequence[int],
        targets: Sequence[Target | int],
        *,
        method: Which,
        budget: int | None = None,
        signed: bool = False,
    ) -> Tensor:
        """Returns maps (m, h, w) of images by their indices, a target each, at the explained layer and on its grid.

        `signed`: before the ReLU that the method ends in.
        """
        settings = self.settings
        with silenced():  # blank maps are counted
            explanation = explain(
                self.model,
                self.images(indices),
                method=method,
                target=list(targets),
                layer=settings.layer,
                seed=settings.seed,
                budget=budget,
            )
        return on_grid(floating(explanation.signed if signed else explanation.maps), self.grid).cpu()

    # --- images -------------------------------------------------------------------------------------------------------

    def parts(self, among: Sequence[int] | None = None) -> Iterator[list[int]]:
        """Yields indices of images that can be run together: at most a batch, of one size."""
        listed = list(range(len(self))) if among is None else list(among)
        size = self.settings.batch
        if self.one_size:
            yield from (listed[start : start + size] for start in range(0, len(listed), size))
        else:
            yield from ([index] for index in listed)

    @cached_property
    def one_size(self) -> bool:
        """Tells whether all prepared images have one size, as far as the preprocessing says."""
        preprocess = self.model.preprocess
        return preprocess is not None and (preprocess.crop is not None or isinstance(preprocess.resize, tuple))

    def image(self, index: int) -> Tensor:
        """Returns an image (C, H, W) as it was prepared for the model, on the host."""
        if index not in self._cache:
            assert self.model.preprocess is not None  # the images have been prepared
            if len(self._cache) >= 512:  # a class's interventions take the same images again and again
                self._cache.pop(next(iter(self._cache)))
            self._cache[index] = self.model.preprocess(self.data[index].image)
        return self._cache[index]

    def images(self, indices: Sequence[int]) -> Tensor:
        """Returns images (m, C, H, W) of one size as they were prepared, with the weights' device and dtype."""
        return self.model.prepared(torch.stack([self.image(i) for i in indices]))

    def probabilities_of(self, images: Tensor) -> Tensor:
        """Returns the probabilities (m, K) that the model gives prepared images (m, C, H, W), a batch at a time."""
        parts = torch.split(images, self.settings.batch)
        with torch.no_grad(), silenced():
            return torch.cat([probabilities(self.model, self._output(part)).cpu() for part in parts])

    def _output(self, images: Tensor) -> Tensor:
        session = untouched(self.model.module, self.settings.seed)
        with session, session:  # twice: see `Session`
            return Pass(self.model, self.model.prepared(images)).output.detach()

    def picture(self, index: int) -> Image.Image:
        """Returns what the model sees of an image, at its own resolution."""
        assert self.model.preprocess is not None  # the images have been prepared
        return self.model.preprocess.view(self.data[index].image)

    def thumbnail(self, index: int, side: int = THUMBNAIL) -> Image.Image:
        """Returns what the model sees of an image, its longer side at most `side` pixels."""
        picture = self.picture(index).convert("RGB")
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, Image.Resampling.BICUBIC) if scale < 1 else picture

    @cached_property
    def has_masks(self) -> bool:
        """Tells whether one of the first 50 images has a mask: the data then has masks."""
        return any(a.mask is not None for i in range(min(50, len(self))) for a in self.data[i].annotations)

    def mask(self, index: int) -> Tensor | None:
        """Returns where the objects of an image are, (H, W) bool on the prepared image; None where it is not known."""
        preprocess, sample = self.model.preprocess, self.data[index]
        assert preprocess is not None  # the images have been prepared
        masks = [a.mask for a in in_view(sample, preprocess) if a.mask is not None]
        if not masks:
            return None
        union = torch.stack(masks).any(0)
        height, width = self.image(index).shape[-2:]
        picture = Image.fromarray(union.numpy().astype(np.uint8) * 255).resize(
            (width, height), Image.Resampling.NEAREST
        )
        return torch.from_numpy(np.array(picture) > 127)

    def once(self, name: str, make: Callable[[], _Made]) -> _Made:
        """Returns what `make` gives, made at the first call of this name: several questions share it."""
        if name not in self._shared:
            self._shared[name] = make()
        made: _Made = self._shared[name]
        return made

    def generator(self, use: str) -> torch.Generator:
        """Returns the random numbers of one use ("head", "cue/coast"): the same in every run, others for every use."""
        return torch.Generator().manual_seed(self.random_seed(use))

    def random_seed(self, use: str) -> int:
        """Returns the seed of one use, for other generators."""
        return int.from_bytes(hashlib.sha256(f"{self.settings.seed} {use}".encode()).digest()[:4], "big")


def probabilities(model: Model, output: Tensor) -> Tensor:
    """Returns an output as probabilities (N, K), float32; of one logit the two of its sigmoid."""
    logits = class_outputs(model, output).float()
    if output.shape[1] == 1:
        return logits.sigmoid()
    return logits.sigmoid() if model.multilabel else logits.softmax(1)


# --- collecting -------------------------------------------------------------------------------------------------------


def collect(
    model: Model,
    data: Samples,
    settings: Settings = Settings(),
    *,
    train: Collected | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Runs and explains all images of the data. KonkyoError: no classifier, no image that can be read."""
    source = Source.of_samples(model, data, settings.batch, labelled=False)
    session = untouched(model.module, settings.seed)
    parts = list[_Part]()
    done, grid = 0, None if train is None else train.grid
    with silenced(), session, session:  # blank maps are counted; twice: see `Session`
        for batch in source.batches:
            parts.append(_part(model, batch, settings, grid))
            grid = (parts[0].maps.shape[1], parts[0].maps.shape[2])
            done += len(batch.names)
            if progress is not None:
                progress(done, source.count)
    if not parts:
        raise KonkyoError(f"no image came from the data{': ' + source.skipped[0] if source.skipped else ''}")
    indices = [index for part in parts for index in part.indices]
    labels = torch.cat([part.labels for part in parts])
    return Collected(
        model,
        chosen(data, indices),
        None if bool((labels == UNKNOWN).any()) else labels,
        torch.cat([part.predictions for part in parts]),
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.features for part in parts]),
        torch.cat([part.maps for part in parts]),
        torch.cat([part.eigen for part in parts]),
        parts[0].layer,
        settings,
        train,
        source.notes,
        3 * len(indices),
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """What was collected of one batch."""

    indices: list[int]
    labels: Tensor
    predictions: Tensor
    probabilities: Tensor
    features: Tensor
    maps: Tensor
    eigen: Tensor
    layer: str


def _part(model: Model, batch: Batch, settings: Settings, grid: tuple[int, int] | None) -> _Part:
    images = model.prepared(batch.images)
    output, grids = outputs_of_layers(model, images, settings.layer)
    logits = class_outputs(model, output)
    kinds, labels = logits.shape[1], batch.labels
    if int(labels.max()) >= kinds:
        raise KonkyoError(f"labels of {model.name} are 0 to {kinds - 1}; got {int(labels.max())}")
    for name, finite in zip(batch.names, logits.isfinite().all(1).tolist(), strict=True):
        if not finite:
            raise KonkyoError(
                f"the output of {model.name} for {name} is not finite (NaN or infinite): its weights, or the precision "
                "it runs in; nothing can be said of such decisions"
            )
    predictions = logits.argmax(1).cpu()
    targets = torch.where(labels == UNKNOWN, predictions, labels).tolist()
    explain_by = partial(explain, model, images, target=targets, layer=settings.layer, seed=settings.seed)
    explanation = explain_by(method=settings.method)
    maps = floating(explanation.maps)
    size = grid or (maps.shape[1], maps.shape[2])
    features = pooled(grids, maps if settings.pooling == "map" else None)
    eigen = explain_by(method="eigen_cam")
    return _Part(
        batch.indices,
        labels,
        predictions,
        probabilities(model, output).cpu(),
        features.cpu(),
        on_grid(maps, size).cpu(),
        on_grid(floating(eigen.maps), size).cpu(),
        explanation.layer,
    )


def embedded(model: Model, images: Tensor, layer: Where) -> tuple[Tensor, Tensor]:
    """Runs prepared images (N, C, H, W) -> (the output, the features (N, C'): what the layers put out, pooled).

    Pooled is the mean over the grid; several layers, or levels of one, stand beside each other.
    """
    output, grids = outputs_of_layers(model, images, layer)
    return output, pooled(grids)


def outputs_of_layers(model: Model, images: Tensor, layer: Where) -> tuple[Tensor, list[Tensor]]:
    """Runs prepared images (N, C, H, W) -> (the output, what every layer, or level of one, puts out (N, C', h, w))."""
    shape = tuple(images.shape[1:])
    wanted = layer if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
    layers: list[Layer] = [one for which in wanted for one in model.cut(which, shape)]
    made = Pass(model, images, layers)
    return made.output.detach(), [made.activations(level) for one in layers for level in made.levels(one)]


def pooled(grids: Sequence[Tensor], maps: Tensor | None = None) -> Tensor:
    """Returns the means over grids (N, C, h, w) beside each other (N, C'); with maps (N, h, w) weighed by these.

    sum_p m_p A_p / sum_p m_p of the maps' positive part; zeros where there is none.
    """
    if maps is None:
        return torch.cat([grid.flatten(2).mean(2) for grid in grids], 1).float()
    parts = []
    for grid in grids:
        weights = resize(maps.clamp_min(0), tuple(grid.shape[2:])).flatten(1).to(grid)
        parts.append(torch.einsum("ncp,np->nc", grid.flatten(2), safe_divide(weights, weights.sum(1, keepdim=True))))
    return torch.cat(parts, 1).float()


# --- questions --------------------------------------------------------------------------------------------------------

Need: TypeAlias = Literal["labels", "train", "masks"]
Ask: TypeAlias = Callable[[Collected], tuple[Finding, ...]]


@dataclass(frozen=True)
class Question:
    """A question is a function of what was collected that gives one finding at least."""

    name: str
    ask: Ask
    needs: tuple[Need, ...]
    order: int
    """Its place among the questions."""
    forwards: Callable[[Collected], int]
    """How many images it will run forward, about."""

    def missing(self, collected: Collected) -> str:
        """Returns what this question needs and the data lacks, "" where it can be asked."""
        lacks = {
            "labels": collected.labels is None,
            "train": collected.train is None or collected.train.labels is None,
            "masks": not collected.has_masks,
        }
        return next((need for need in self.needs if lacks[need]), "")


QUESTIONS: dict[str, Question] = {}
"""All questions by name."""
ORDER = ("cue", "head", "backbone", "wrong", "confusion", "suspicious", "background", "border", "text", "side",
         "duplicates", "properties", "method")  # fmt: skip
"""The order in which they are asked and, within a severity, reported; others follow."""


def question(
    name: str, *, needs: Sequence[Need] = (), forwards: Callable[[Collected], int] = lambda _: 0
) -> Callable[[Ask], Ask]:
    """Registers a function of `Collected` as a question of this name. KonkyoError: the name is taken."""

    def register(ask: Ask) -> Ask:
        if name in QUESTIONS and QUESTIONS[name].ask.__module__ != ask.__module__:
            raise KonkyoError(f"a question named {name!r} is registered already; choose another name")
        order = ORDER.index(name) if name in ORDER else len(ORDER)
        QUESTIONS[name] = Question(name, ask, tuple(needs), order, forwards)
        return ask

    return register
