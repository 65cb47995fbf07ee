"""Instances: one detection as a target, found again among the candidates of any other image by its likeness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.targets.base import BaseTarget
from konkyo.targets.candidates import Candidates
from konkyo.targets.regions import Mask
from konkyo.utils.tensors import overlap

Quantity: TypeAlias = Literal["probability", "logit", "x1", "y1", "x2", "y2", "similarity", "combined", "mask"]
ClassSimilarity: TypeAlias = Literal["cosine", "probability", "difference", "same"]
SIDES_OF_BOX: tuple[Quantity, ...] = ("x1", "y1", "x2", "y2")
NEAR = 0.1
"""The least IoU with a box that is given for a detection."""
CLOSE = 0.5
"""Below this IoU with the box that is given, the detection may be another one than is meant: it is told."""
_ROUNDING = 1e-6  # of similarities: what differs by a smaller share of them is taken for equal
_SAME = 1e-4  # of boxes and probabilities: what a candidate differs by when it is computed in another batch


@dataclass(frozen=True, eq=False)
class Match:
    """A match is the candidate of every image that is most like an instance."""

    index: Tensor
    """(N,) int64, among the candidates."""
    similarity: Tensor
    """(N,) in [0, 1]"""
    box: Tensor
    """(N, 4) xyxy in input pixels; NaN where nothing is like it."""
    found: Tensor
    """(N,) bool"""


@dataclass(frozen=True)
class InstanceTarget(BaseTarget):
    """This target is one detection. Output (N, Q, 4 B + K) -> (N,): what the candidate most like the detection says.

    The likeness of a candidate is IoU(its box, `box`) times the similarity of its class probabilities to `likeness`
    (IG-ODAM, Eq. 1; D-RISE without objectness). On the detection's own image it is candidate `index` itself, whatever
    its likeness. Of equal candidates the one with the larger probability of the class is taken, then the one with this
    index, then the first. Candidates are all there are, below every threshold; ground truth has no part in it.

    `quantity` is the "probability" of the class `label`, its "logit", a side of the box in input pixels, or the
    "similarity" itself. The logit is the log-odds log(p / (1 - p)), up to what single precision can tell from
    certainty, about 16; beyond it the gradient is 0. "combined" is for `explain`: of the scaled maps of probability and
    sides it takes the largest at every place. "mask" is for `explain` as well: see `MaskTarget`. Where no candidate is
    more similar than `least`, the instance is absent, and the score is 0 with gradient 0. `class_similarity`: "cosine"
    of the class probabilities, "probability" of the class, "difference" 1 - |p_t - p_j|, or "same": the probability
    where the class is the candidate's best.
    """

    label: int
    box: tuple[float, float, float, float]
    """xyxy in pixels of the network's input"""
    likeness: tuple[float, ...]
    """The detection's class probabilities (K,)"""
    index: int
    quantity: Quantity = "probability"
    class_similarity: ClassSimilarity = "cosine"
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.quantity not in get_args(Quantity):
            raise unknown("quantity of an instance", self.quantity, get_args(Quantity))
        if self.class_similarity not in get_args(ClassSimilarity):
            raise unknown("class_similarity", self.class_similarity, get_args(ClassSimilarity))

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the quantity of the matching candidate of every image (N,).

        KonkyoError: no candidates (N, Q, 4 B + K).
        """
        if self.quantity == "combined":
            raise KonkyoError("a combination has maps, not a score of its own; give `explain` the detection")
        if self.quantity == "mask":
            raise KonkyoError("candidates hold no masks; give `explain` the detection, which reads its mask")
        candidates = Candidates(output, len(self.likeness))
        match = self.match(output)
        rows = torch.arange(len(output), device=output.device)
        if self.quantity == "similarity":
            value = self._similarity(candidates)[rows, match.index]
        elif self.quantity in SIDES_OF_BOX:
            value = candidates.boxes(self.label)[rows, match.index, SIDES_OF_BOX.index(self.quantity)]
        else:
            value = candidates.probabilities[rows, match.index, self.label]
            value = value.logit(torch.finfo(value.dtype).eps) if self.quantity == "logit" else value
        return torch.where(match.found, value, 0.0)

    def location(self) -> tuple[float, float, float, float]:
        """Returns the detection's own box."""
        return self.box

    def candidate(self, output: Tensor) -> Tensor:
        """Returns the matching candidate of every image (N,); -1 where the instance is absent."""
        match = self.match(output)
        return torch.where(match.found, match.index, -1)

    def matched_boxes(self, output: Tensor) -> list[tuple[float, ...]]:
        """Returns the box of the matching candidate of every image; NaN where the instance is absent."""
        return [tuple(box) for box in self.match(output).box.tolist()]

    def details(self) -> dict[str, Any]:
        """Returns the probability of the detection's class, and the quantity that is explained."""
        return {"probability": round(self.likeness[self.label], 6), "quantity": self.quantity}

    def in_words(self, label: str, score: float) -> str:
        """Returns the class with its probability or logit, as in "x1 of cat (probability 0.70)"."""
        name = label.removesuffix(f", {self.quantity}")
        if self.quantity not in ("probability", "logit", "similarity"):
            name = f"{'class and box' if self.quantity == 'combined' else self.quantity} of {name}"
        logit, probability = f"logit {score:.2f}", f"probability {self.likeness[self.label]:.2f}"
        return f"{name} ({logit if self.quantity == 'logit' else probability})"

    @torch.no_grad()
    def match(self, output: Tensor) -> Match:
        """Tells which candidate of every image is this instance."""
        candidates = Candidates(output, len(self.likeness))
        similarity = self._similarity(candidates)
        best = similarity.amax(1)
        equal = similarity >= best[:, None] * (1 - _ROUNDING)
        likely = torch.where(equal, candidates.probabilities[..., self.label], -1.0)
        index, present = likely.argmax(1), best > self.least
        if self.index < output.shape[1]:
            itself = self._itself(candidates)
            mine = (likely[:, self.index] >= likely.amax(1)) | itself
            index, present = torch.where(mine, self.index, index), present | itself
        rows = torch.arange(len(output), device=output.device)
        box = torch.where(present[:, None], candidates.boxes(self.label)[rows, index], torch.nan)
        return Match(index, similarity[rows, index], box, present)

    def _itself(self, candidates: Candidates) -> Tensor:
        """Tells whether candidate `index` is the detection, as it is on the image that it was found on. -> (N,) bool"""
        box, likeness = candidates.boxes(self.label)[:, self.index], candidates.probabilities[:, self.index]
        moved = (box - box.new_tensor(self.box)).abs().amax(1)
        changed = (likeness - likeness.new_tensor(self.likeness)).abs().amax(1)
        return (moved <= _SAME * box.abs().amax(1)) & (changed <= _SAME)

    def _similarity(self, candidates: Candidates) -> Tensor:
        """Computes the likeness of every candidate to the detection. -> (N, Q)"""
        alike: Tensor
        probabilities = candidates.probabilities
        named = probabilities[..., self.label]
        if self.class_similarity == "cosine":
            likeness = probabilities.new_tensor(self.likeness)
            norms = probabilities.norm(dim=2) * likeness.norm()
            alike = (probabilities @ likeness) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        elif self.class_similarity == "probability":
            alike = named
        elif self.class_similarity == "difference":
            alike = 1 - (named - self.likeness[self.label]).abs()
        else:
            alike = torch.where(probabilities.argmax(2) == self.label, named, 0.0)
        return alike * overlap(candidates.boxes(self.label), probabilities.new_tensor(self.box))


@dataclass(frozen=True)
class MaskTarget(BaseTarget):
    """This target is the mask of one detection: the mean of its logits over M. Masks (N, D, m, m) -> (N,).

    M is where the mask is above 0.5 in the detection's box on its own image. Box and M stay the same on all other
    images, and no gradient goes through the choice of them.
    """

    instance: InstanceTarget
    number: int
    """Which of the D masks it is."""
    cells: Mask
    """M on the grid of the box (m, m)."""
    outline: Mask
    """M in the network's input (H, W)."""

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the mean logit of the mask over M, of every image. KonkyoError: an output without this mask."""
        weights = self.cells.weights.to(output.device)
        if output.ndim != 4 or self.number >= output.shape[1] or output.shape[2:] != weights.shape:
            raise KonkyoError(
                f"mask {self.number} of masks (N, D, {weights.shape[0]}, {weights.shape[1]}) was expected; got "
                f"{tuple(output.shape)}"
            )
        return (output[:, self.number] * weights).flatten(1).sum(1) / weights.sum()

    @property
    def class_index(self) -> int:
        """This is the class of the detection."""
        return self.instance.label

    def location(self) -> tuple[float, float, float, float]:
        """Returns the detection's box."""
        return self.instance.box

    def matched_boxes(self, output: Tensor) -> list[tuple[float, ...]]:
        """Returns the detection's box, which is the same on all images."""
        return [self.instance.box] * len(output)

    def part(self) -> Mask:
        """Returns the mask in the picture."""
        return self.outline

    def details(self) -> dict[str, Any]:
        """Returns those of the detection, and the share of the picture that the mask covers."""
        return {**self.instance.details(), "region": round(self.outline.share, 6)}

    def in_words(self, label: str, score: float) -> str:
        """Returns the class with the score, as in "mask of cat (mean logit 2.31)"."""
        return f"mask of {label.removesuffix(', mask')} (mean logit {score:.2f})"


@dataclass(frozen=True)
class Tracked:
    """This is an object as metrics of detection follow it.

    Output (N, Q, 4 B + K) -> (N,): how sure the detector is of it.

    The score is the largest probability of the class `label` among all candidates whose IoU with `box` (xyxy in input
    pixels) is above `iou`. It is 0 where there is none. This is the evaluation of ODAM; no candidate is suppressed.
    """

    label: int
    box: tuple[float, ...]
    classes: int
    """K, how many classes there are."""
    iou: float = 0.5

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the score of every image (N,)."""
        candidates = Candidates(output, self.classes)
        near = overlap(candidates.boxes(self.label), output.new_tensor(self.box)) > self.iou
        return torch.where(near, candidates.probabilities[..., self.label], 0.0).amax(1)


@dataclass(frozen=True)
class Detections:
    """This asks `explain` for what a detector keeps: a row per detection, highest score first, any number per image.

    The detections have a score above `threshold` (None: the detector's own, as a rule 0.5) and are of `classes` (names
    or indices; none: all). For every one of `boxes` (xyxy in pixels of the picture) it is the detection that overlaps
    it most, by an IoU of 0.1 or more. Of all those the `top` best stay. `quantity`, `class_similarity` and `least` are
    those of the `InstanceTarget` that each becomes; None: what the method explains. `suppressed=False` takes the
    candidates above the threshold as they are, before the detector suppresses any. KonkyoError: a value that none of
    them can have.
    """

    threshold: float | None = None
    top: int | None = None
    classes: tuple[int | str, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    quantity: Quantity | None = None
    class_similarity: ClassSimilarity = "cosine"
    least: float = 0.0
    suppressed: bool = True

    def __post_init__(self) -> None:
        """Checks the values. KonkyoError: one that is out of range or unknown."""
        limit = self.threshold
        if limit is not None and (not isinstance(limit, (int, float)) or not 0 <= limit < 1):
            raise KonkyoError(f"a threshold of scores lies in [0, 1); got {self.threshold!r}")
        if self.quantity is not None and self.quantity not in get_args(Quantity):
            raise unknown("quantity of an instance", self.quantity, get_args(Quantity))
        if self.class_similarity not in get_args(ClassSimilarity):
            raise unknown("class_similarity", self.class_similarity, get_args(ClassSimilarity))
        if not isinstance(self.least, (int, float)) or not 0 <= self.least < 1:
            raise KonkyoError(f"least, a similarity, lies in [0, 1); got {self.least!r}")
        if self.top is not None and (not isinstance(self.top, int) or isinstance(self.top, bool) or self.top < 1):
            raise KonkyoError(f"top is a number of detections, 1 or more; got {self.top!r}")
        listed = isinstance(self.classes, (list, tuple))
        if not listed or not all(isinstance(c, (int, str)) and not isinstance(c, bool) for c in self.classes):
            raise KonkyoError(f"classes is a list of names or indices; got {self.classes!r}")
        if not isinstance(self.boxes, (list, tuple)):
            raise KonkyoError(f"boxes is a list of (x1, y1, x2, y2); got {self.boxes!r}")
        for box in self.boxes:
            if not isinstance(box, (tuple, list)) or len(box) != 4:
                raise KonkyoError(f"boxes is a list of (x1, y1, x2, y2) in pixels; got {self.boxes!r}")
            if not all(isinstance(side, (int, float)) and math.isfinite(side) for side in box):
                raise KonkyoError(f"the sides of a box are numbers of pixels; got {box!r}")
            if not (box[0] < box[2] and box[1] < box[3]):
                raise KonkyoError(f"a box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2; got {box!r}")
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "boxes", tuple(tuple(map(float, box)) for box in self.boxes))
