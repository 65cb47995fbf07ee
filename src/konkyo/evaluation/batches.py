"""Data as prepared batches with names and labels, and what all of evaluation asks of a classifier on such batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from konkyo.data.huggingface import is_table
from konkyo.data.pieces import Piece
from konkyo.data.samples import Sample, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.engine.capture import draw_anew
from konkyo.engine.forward import Pass, Precision
from konkyo.errors import KonkyoError
from konkyo.explanation.reading import read_groups
from konkyo.models import Model
from konkyo.targets.classes import class_logits

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
UNKNOWN = -1
"""The label of an image whose label is not known."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch is some prepared images with their names and labels."""

    names: list[str]
    images: Tensor
    """(n, C, H, W)"""
    labels: Tensor
    """(n,) int64; UNKNOWN where a label is not known."""
    indices: list[int]
    """Which samples of the data they are."""


@dataclass(frozen=True)
class Source:
    """Data as prepared batches with names and labels."""

    name: str
    count: int | None
    batches: Iterator[Batch]
    skipped: list[str]
    """Why images could not be read; filled as the batches are."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns the sentence about images that could not be read, where there are any."""
        if not self.skipped:
            return ()
        return (f"{len(self.skipped)} images could not be read and were left out, the first: {self.skipped[0]}",)

    @staticmethod
    def of(model: Model, data: Any, limit: int | None, batch: int, seed: int) -> Source:
        """Opens data of any form, all with labels. KonkyoError: neither samples nor batches."""
        if isinstance(data, (str, Path, Samples, Scenes)) or is_table(data):
            return Source.of_samples(model, samples(data, limit=limit, seed=seed), batch)
        try:
            stream = iter(data)
        except TypeError as error:
            raise KonkyoError(f"data is a name, samples, or batches (images, labels); got {data!r}") from error
        head = list(islice(stream, 1))
        if head and isinstance(head[0], Sample):
            return Source.of_samples(model, samples(data, limit=limit, seed=seed), batch)
        return Source(type(data).__name__, limit, _batches(chain(head, stream), limit), [])

    @staticmethod
    def of_samples(model: Model, data: Samples, batch: int, *, labelled: bool = True) -> Source:
        """Opens samples; unless `labelled`, they need no labels, and the model needs no class names."""
        skipped = list[str]()
        return Source(data.source or "samples", len(data), _prepared(model, data, batch, skipped, labelled), skipped)


def _prepared(model: Model, data: Samples, batch: int, skipped: list[str], labelled: bool) -> Iterator[Batch]:
    """Batches of samples as the model wants them; of one with pictures of several sizes there is a batch each."""
    if not model.classes and labelled:
        raise KonkyoError(
            f"{model.name} has no class names, so labels mean nothing to it: konkyo.Model(..., classes=[...]), "
            "or --labels FILE on the command line"
        )
    piece = Piece(0, data.source, 0, lambda: data)
    for group in read_groups(model, [piece], batch=batch):
        if group.tensor is None:
            skipped += [entry.error for entry in group.entries]
            continue
        labels = []
        for entry in group.entries:
            if entry.label is None and labelled:
                raise KonkyoError(
                    f"sample {entry.name} has no label, which is needed here of every image: a folder per class has"
                    " them"
                )
            labels.append(UNKNOWN if entry.label is None or not model.classes else model.class_index(entry.label))
        names, indices = [entry.name for entry in group.entries], [entry.number for entry in group.entries]
        yield Batch(names, group.tensor, torch.tensor(labels), indices)


def _batches(data: Iterable[Any], limit: int | None) -> Iterator[Batch]:
    """Checked batches in their order, with the numbers of images for names."""
    done = 0
    for entry in data:
        pair = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, None)
        images, labels = pair
        if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
            came = " and ".join(type(part).__name__ for part in pair)
            raise KonkyoError(f"batches of tensors (images, labels) were expected; got {came}")
        if images.ndim != 4 or labels.shape != images.shape[:1] or labels.is_floating_point() or not len(labels):
            came = f"{tuple(images.shape)} and {tuple(labels.shape)} {labels.dtype}"
            raise KonkyoError(f"batches of images (N, C, H, W) and labels (N,) int64 were expected; got {came}")
        most = len(images) if limit is None else limit - done
        images, labels = images[:most], labels[:most]
        indices = list(range(done, done + len(images)))
        yield Batch([str(i) for i in indices], images, labels, indices)
        done += len(images)
        if limit is not None and done >= limit:
            return


def floating(maps: Tensor) -> Tensor:
    """Returns maps in 32 bits at least. KonkyoError: no maps of images."""
    if maps.ndim != 3:
        raise KonkyoError(f"maps (N, h, w) of images are compared; got {tuple(maps.shape)}")
    return maps.detach().to(torch.promote_types(maps.dtype, torch.float32))


def logits_of(model: Model, images: Tensor, precision: Precision | None = None) -> Tensor:
    """Returns the logits (N, K). KonkyoError: the network is no classifier."""
    return class_outputs(model, Pass(model, images, precision=precision).output)


def require_no_question(model: Model) -> None:
    """Raises KonkyoError for a network whose classes are answers, which are of questions and not of images."""
    if model.prompts is not None and model.prompts.noun == "question":
        raise KonkyoError(f"{model.name} answers questions; the classes of images are asked for here")


def class_outputs(model: Model, output: Tensor) -> Tensor:
    """Returns an output as logits (N, K), detached. KonkyoError: the network is no classifier."""
    output = output.detach()
    if output.ndim != 2:
        raise KonkyoError(f"a classifier's output is (N, classes); that of {model.name} is {tuple(output.shape)}")
    return class_logits(output)


def untrained(model: Model, seed: int) -> Model:
    """Returns a copy of the network whose weights are initialised again."""
    module = copy.deepcopy(model.module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in module.modules():
            draw_anew(part)
    return replace(model, module=module)
