"""Queries: a segmenter whose output is a class and a mask of every query, as a semantic map, or as its instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from konkyo.data.frame import Frame
from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError
from konkyo.targets.base import Target
from konkyo.targets.classes import Score, combination, leaves
from konkyo.targets.queries import Instance, Queries, QueryTarget, enlarged, pack_queries
from konkyo.targets.regions import Mask
from konkyo.tasks.base import Classes, Run, Task, task
from konkyo.tasks.decision import Decision, decisions_of_classes
from konkyo.tasks.regions import packed, unpacked
from konkyo.tasks.segmentation import OF_SEGMENTERS, SegmentationTask

Reading: TypeAlias = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
"""(network, images (N, 3, H, W)) -> logits of the queries' classes (N, Q, K + 1), the last "no object", and of their
masks (N, Q, h, w)."""
Size: TypeAlias = "tuple[int, int]"
_CERTAIN = 0.5
"""The score from which on the library's post-processing takes a query for an instance."""


@task
@dataclass(frozen=True)
class QueryTask(SegmentationTask):
    """The semantic map of all queries; where an `Instance` is asked for, the queries themselves."""

    read: Reading | None = None
    number: int = 0
    """How many classes there are, without "no object"."""
    enlarged: Callable[[Size], Size] | None = None
    """The size to which the post-processing enlarges the masks of images of a size; None: it leaves them."""

    def settled(self, module: nn.Module, images: Tensor, request: Any, run: Run) -> Task:
        """Returns what reads the queries one by one, where an instance is asked for."""
        del module, run
        if self.read is None or not any(isinstance(leaf, (Instance, QueryTarget)) for leaf in leaves(request)):
            return self
        height, width = images.shape[2:]
        size = None if self.enlarged is None else self.enlarged((height, width))
        return InstanceSegmentationTask(self.read, self.number, size, self.layer)


@task
@dataclass(frozen=True)
class InstanceSegmentationTask(Task):
    """The instances of an image: an output is all queries of a segmenter, (N, Q, r + h, w) as `Queries` reads it."""

    noun: ClassVar[str] = "segmenter with queries"
    method: ClassVar[str] = "layer_cam"
    methods: ClassVar[tuple[str, ...]] = OF_SEGMENTERS
    preprocessing: ClassVar[Mapping[str, Any]] = {"crop": None}

    read: Reading
    number: int
    """How many classes there are, without "no object"."""
    size: Size | None = None
    """The grid on which masks are read; None: their own."""
    layer: str = ""

    def output(self, module: nn.Module, images: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Returns classes and masks of all queries (N, Q, r + h, w)."""
        del read
        return pack_queries(*self.read(module, images))

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the end of the backbone, where the adapter names it."""
        del shape
        return (Layer(self.layer, None, level=None),) if self.layer else ()

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image: `request` is an `Instance`, a combination of such, or a Target.

        KonkyoError: no such class or query, or fewer instances of the class.
        """
        del score, frames
        return [[self._target(request, output[i : i + 1], classes)] for i in range(len(output))]

    def _target(self, request: Any, output: Tensor, classes: Classes) -> Target:
        if (made := combination(request, lambda part: self._target(part, output, classes))) is not None:
            return made
        if isinstance(request, Instance):
            return self._instance(request, output, classes)
        if not callable(request):
            raise KonkyoError(
                f"beside instances of {classes.model} only instances can be asked for in one call, as in "
                f'Instance("car", 2); got {request!r}'
            )
        target: Target = request
        return target

    def _instance(self, request: Instance, output: Tensor, classes: Classes) -> QueryTarget:
        queries = Queries(output.float(), self.number)
        masks = queries.masks if self.size is None else enlarged(queries.masks, self.size)
        inside = masks[0] > 0
        cells = inside.flatten(1).sum(1)
        surety = (masks[0].sigmoid() * inside).flatten(1).sum(1) / cells.clamp_min(1)
        probabilities = queries.class_logits[0].softmax(1)
        scores = probabilities[:, :-1] * surety[:, None]  # (Q, K), 0 where a query masks nothing
        label = classes.index(request.label) if isinstance(request.label, str) else request.label
        if label is not None and not 0 <= label < scores.shape[1]:
            raise KonkyoError(f"class {label}: the classes of {classes.model} are 0 to {scores.shape[1] - 1}")
        of_class = scores.amax(1) if label is None else scores[:, label]
        index = self._query(request, of_class, cells, classes)
        label = int(scores[index].argmax()) if label is None else label
        likeness = tuple(probabilities[index].tolist())
        return QueryTarget(label, Mask(inside[index]), likeness, index, request.quantity, float(scores[index, label]))

    def _query(self, request: Instance, scores: Tensor, cells: Tensor, classes: Classes) -> int:
        """Returns the query that is asked for, among scores (Q,). KonkyoError: there is none, or its mask is empty."""
        if request.query is None:
            order: list[int] = [q for q in scores.argsort(descending=True, stable=True).tolist() if cells[q]]
            if request.number > len(order):
                raise KonkyoError(f"{request!r}: {len(order)} queries of {classes.model} mask any part of this picture")
            return order[request.number - 1]
        if request.query >= len(scores):
            raise KonkyoError(f"query {request.query}: the queries of {classes.model} are 0 to {len(scores) - 1}")
        if not cells[request.query]:
            some = ", ".join(str(q) for q in range(len(cells)) if cells[q]) or "none"
            raise KonkyoError(f"query {request.query} masks no part of this picture; those that do: {some[:200]}")
        return request.query

    def assumptions(self, targets: Sequence[Target], output: Tensor, classes: Classes) -> tuple[str, ...]:
        """Returns which of the instances the library's post-processing would leave out."""
        del output
        parts = dict.fromkeys(part for target in targets for part in leaves(target) if isinstance(part, QueryTarget))
        return tuple(
            f"query {part.index} has a score of {part.probability:.2g} for {classes.label(part.label)}: below "
            f"{_CERTAIN}, at which the library's post-processing takes a query for an instance"
            for part in parts
            if part.probability < _CERTAIN
        )

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the class and the query of an instance, with the quantity where that is not its score."""
        if not isinstance(target, QueryTarget):
            return super().label(target, classes, outputs)
        quantity = "" if target.quantity == "score" else f", {target.quantity}"
        return f"{classes.label(target.label)}, query {target.index}{quantity}"

    def decisions_beside(
        self, targets: Sequence[Target], images: Sequence[int], output: Tensor, classes: Classes
    ) -> list[Decision | None]:
        """Returns the most probable class of every instance's query, beside the class that is asked for."""
        del images, output
        decisions: list[Decision | None] = []
        for target in targets:
            if not isinstance(target, QueryTarget):
                decisions.append(None)
                continue
            probabilities = torch.tensor([target.likeness[:-1]])
            decisions += decisions_of_classes(probabilities, probabilities, [target.label], classes.label)
        return decisions

    def saturates(self, target: Target) -> bool:
        """Tells whether the score is a product of probabilities."""
        return isinstance(target, QueryTarget) and target.quantity == "score"

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns an instance as plain values; None for other targets."""
        if not isinstance(target, QueryTarget):
            return None
        values = {name: getattr(target, name) for name in ("label", "index", "quantity", "probability")}
        return {"instance": values, "mask": packed(target.mask), "likeness_of_query": list(target.likeness)}

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the instance; None for values that are of something else."""
        if "likeness_of_query" not in values:
            return None
        likeness = tuple(map(float, values["likeness_of_query"]))
        return QueryTarget(mask=unpacked(values["mask"]), likeness=likeness, **values["instance"])
