"""Instances of segmenters with queries: one query as a target, by its class and the part of the picture it masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import BaseTarget
from konkyo.targets.regions import Mask
from konkyo.targets.specs import class_of_text, spec, with_settings
from konkyo.utils.tensors import at_least_float32

QueryQuantity: TypeAlias = Literal["score", "class", "mask"]
"""What is explained of a query: class and mask together, what it is, or where it is."""
_SAME = 1e-4  # of probabilities: what a query differs by when it is computed in another batch


@dataclass(frozen=True)
class Queries:
    """This reads an output (N, Q, r + h, w) as logits of classes and masks of Q queries, both in the output's graph.

    The first r rows hold the logits of K classes and of "no object", which is the last, and are filled up with zeros.
    KonkyoError: another shape.
    """

    output: Tensor
    classes: int
    """K, without "no object"."""

    def __post_init__(self) -> None:
        if self.output.ndim != 4 or self.output.shape[2] <= self._rows:
            raise KonkyoError(
                f"queries of {self.classes} classes are (N, Q, rows, w), as pack_queries makes them; got "
                f"{tuple(self.output.shape)}"
            )

    @property
    def _rows(self) -> int:
        return -(-(self.classes + 1) // self.output.shape[3])

    @property
    def class_logits(self) -> Tensor:
        """These are the logits of the classes (N, Q, K + 1), the last "no object"."""
        return self.output[:, :, : self._rows].flatten(2)[..., : self.classes + 1]

    @property
    def masks(self) -> Tensor:
        """These are the logits of the masks (N, Q, h, w)."""
        return self.output[:, :, self._rows :]


def pack_queries(class_logits: Tensor, masks: Tensor) -> Tensor:
    """Puts logits of classes (N, Q, K + 1) and of masks (N, Q, h, w) into one output (N, Q, r + h, w)."""
    width = masks.shape[3]
    filled = F.pad(class_logits, (0, -class_logits.shape[2] % width))
    return torch.cat([filled.reshape(*filled.shape[:2], -1, width), masks], 2)


def enlarged(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns logits of masks (N, Q, h, w) on another grid (*size), bilinearly as the library's post-processing."""
    if tuple(masks.shape[2:]) == tuple(size):
        return masks
    return F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class QueryTarget(BaseTarget):
    """This target is one instance of a segmenter with queries. Output (N, Q, r + h, w), see `Queries`, -> (N,).

    "score" is softmax(class)[label] times the mean of sigmoid(mask) over M: on the instance's own image that of the
    library's post-processing. "class" is log softmax(class)[label], and "mask" the mean logit of the mask over M. M is
    where the query's mask was above 0.5 on its own image; it stays the same on all others, and has no gradient.

    On its own image the instance is query `index`. On another it is the query of the highest soft IoU of sigmoid(mask)
    with M times the cosine of the class probabilities, and query `index` among equals.
    """

    label: int
    mask: Mask
    """M, on the grid on which the post-processing reads masks."""
    likeness: tuple[float, ...]
    """The query's class probabilities on its own image (K + 1,), the last "no object"."""
    index: int
    quantity: QueryQuantity = "score"
    probability: float = 0.0
    """Its score on its own image, from 0 to 1."""

    def __post_init__(self) -> None:
        if self.quantity not in get_args(QueryQuantity):
            raise unknown("quantity of an instance", self.quantity, get_args(QueryQuantity))

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the quantity of the instance's query on every image. KonkyoError: no output of queries."""
        queries = self._queries(output)
        rows, index = torch.arange(len(output), device=output.device), self.match(output)
        classes = queries.class_logits[rows, index].log_softmax(1)[:, self.label]
        if self.quantity == "class":
            return classes
        weights = self.mask.weights.to(output.device)
        masks = enlarged(queries.masks[rows, index][:, None], tuple(weights.shape))[:, 0]
        values = masks if self.quantity == "mask" else masks.sigmoid()
        inside = (values * weights).flatten(1).sum(1) / weights.sum()
        return inside if self.quantity == "mask" else classes.exp() * inside

    @torch.no_grad()
    def match(self, output: Tensor) -> Tensor:
        """Returns which query of every image the instance is (N,) int64."""
        queries = self._queries(output)
        probabilities = queries.class_logits.softmax(2)
        likeness = probabilities.new_tensor(self.likeness)
        alike = F.cosine_similarity(probabilities[..., :-1], likeness[:-1], dim=2)
        masks = queries.masks.sigmoid()
        weights = self.mask.at(tuple(masks.shape[2:])).to(masks)
        overlap = torch.minimum(masks, weights).flatten(2).sum(2) / torch.maximum(masks, weights).flatten(2).sum(2)
        alike = alike * overlap
        if self.index >= alike.shape[1]:
            return alike.argmax(1)
        itself = (probabilities[:, self.index] - likeness).abs().amax(1) <= _SAME
        itself |= alike[:, self.index] >= alike.amax(1)
        return torch.where(itself, self.index, alike.argmax(1))

    def _queries(self, output: Tensor) -> Queries:
        return Queries(at_least_float32(output), len(self.likeness) - 1)

    @property
    def class_index(self) -> int:
        """This is the class of the instance."""
        return self.label

    def part(self) -> Mask:
        """Returns the instance's mask M."""
        return self.mask

    def details(self) -> dict[str, Any]:
        """Returns the query, its score, the share of the picture that its mask covers, and the explained quantity."""
        values = {"query": self.index, "probability": round(self.probability, 6), "quantity": self.quantity}
        return {**values, "region": round(self.mask.share, 6)}

    def in_words(self, label: str, score: float) -> str:
        """Returns the class and its query with the score, as in "cat, query 3 (score 0.83)"."""
        names = {"class": "log probability", "mask": "mean mask logit", "score": "score"}
        return f"{label} ({names[self.quantity]} {score:.2f})"


@dataclass(frozen=True)
class Instance:
    """This asks a segmenter with queries (Mask2Former, MaskFormer and their like) for one instance.

    `label`: its class, name or index; None: each query is of its most probable class. `number`: 1 is the instance of
    the highest score, 2 the second. `query`: the number of a query instead, from 0. `quantity`: "score", "class" or
    "mask", see `QueryTarget`. KonkyoError: values that do not go together.
    """

    label: int | str | None = None
    number: int = 1
    query: int | None = None
    quantity: QueryQuantity = "score"

    def __post_init__(self) -> None:
        if self.quantity not in get_args(QueryQuantity):
            raise unknown("quantity of an instance", self.quantity, get_args(QueryQuantity))
        if self.label is not None and (isinstance(self.label, bool) or not isinstance(self.label, (int, str))):
            raise KonkyoError(f"a label is a class's name or index; got {self.label!r}")
        if type(self.number) is not int or self.number < 1:
            raise KonkyoError(f"number is 1 for the instance of the highest score, 2 ...; got {self.number!r}")
        if self.query is not None and (type(self.query) is not int or self.query < 0 or self.number != 1):
            raise KonkyoError(f"query is the number of a query, from 0, without number=; got {self.query!r}")


@spec("instance:QUERY|CLASS[:NUMBER][,of=score|class|mask]")
def _instance_of_text(value: str) -> Instance:
    first, settings = with_settings(value, "of")
    quantity: Any = settings.get("of", "score")
    name, colon, number = first.rpartition(":")
    if not colon and first.isdigit():
        return Instance(query=int(first), quantity=quantity)
    if not colon or not number.isdigit():
        name, number = first, "1"
    return Instance(class_of_text(name) if name else None, int(number), quantity=quantity)
