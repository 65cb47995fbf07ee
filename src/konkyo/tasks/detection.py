"""Detection: an output is all candidates of a detector, before it suppresses any, as one tensor (N, Q, 4 B + K)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from konkyo.data.frame import Frame
from konkyo.data.samples import Annotation, Sample, box_of
from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError, unknown, warn
from konkyo.targets.base import Target, as_target
from konkyo.targets.candidates import Candidates
from konkyo.targets.classes import Against, ContrastTarget, Score, TopK
from konkyo.targets.detections import CLOSE, NEAR, SIDES_OF_BOX, Detections, InstanceTarget, Quantity, Tracked
from konkyo.tasks.base import Classes, Explained, Matching, Run, TargetRequest, Task, same_class, task
from konkyo.tasks.decision import Decision, decisions_of_classes
from konkyo.utils.tensors import overlap

OF_DETECTORS = ("grad_cam", "grad_cam_pp", "d_rise", "odam", "ig_odam", "adaptive_ig_odam")
"""The methods that the paper on IG-ODAM compares."""


@dataclass(frozen=True, eq=False)
class Kept:
    """It holds an image's detections, highest first: detection d is candidate `index[d]` taken as class `label[d]`."""

    index: Tensor
    """(D,) int64"""
    label: Tensor
    """(D,) int64"""


@dataclass(frozen=True)
class Detector:
    """A detector says how a network's candidates are made, which of them it keeps, and where its backbone ends.

    `konkyo.Model(module, detector=Detector(...))` is then explained as any other. Boxes are xyxy in pixels of the
    network's input, probabilities lie in [0, 1]. N counts images, Q candidates, K classes; B is 1, or K where every
    class has a box of its own.
    """

    classes: int
    """How many classes there are; "nothing" and "background" are none."""
    propose: Callable[[nn.Module, Tensor], Tensor]
    """(network, images (N, 3, H, W)) -> the candidates' boxes and probabilities (N, Q, 4 B + K), see `Candidates`: all
    of them, nothing suppressed, in the graph of the network's activations, the same Q for all images of any batch."""
    keep: Callable[[Tensor, float], list[Kept]]
    """(candidates (N, Q, 4 B + K), lowest score) -> the detections of each image, as the library itself would keep
    them."""
    layer: str | tuple[str, ...]
    """The module whose output is what maps are made of by default: the backbone's end, or all levels of a pyramid; ""
    for the one that a trace finds."""
    patch: int | None = None
    """The side of the patches, in pixels, where that module puts out tokens: a class token, the patches row by row, and
    any others."""
    threshold: float = 0.5
    """The score above which detections are explained, where the user names none."""
    masks: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None = None
    """(network, images (N, 3, H, W), boxes (D, 4) in their pixels, classes (D,)) -> logits of the masks (N, D, m, m) in
    these boxes; None: it has no masks."""


def best_class(output: Tensor, threshold: float, classes: int) -> list[Kept]:
    """Returns every candidate as its most probable class: the set prediction of DETR and its like."""
    scores, labels = Candidates(output, classes).probabilities.max(2)
    detections = []
    for score, label in zip(scores, labels, strict=True):
        order = score.argsort(descending=True, stable=True)
        index = order[score[order] > threshold]
        detections.append(Kept(index, label[index]))
    return detections


def best_pairs(output: Tensor, threshold: float, classes: int, most: int | None = None) -> list[Kept]:
    """Returns the best pairs of candidate and class, `most` of them (None: as many as candidates).

    Detectors with sigmoid heads decide so."""
    flat = Candidates(output, classes).probabilities.flatten(1)
    scores, pairs = flat.topk(min(most or output.shape[1], flat.shape[1]), dim=1)
    return [Kept(p[s > threshold] // classes, p[s > threshold] % classes) for s, p in zip(scores, pairs, strict=True)]


@task
@dataclass(frozen=True)
class DetectionTask(Task):
    """This task reads candidates (N, Q, 4 B + K) as detections, any number per image.

    `adapter` says how candidates are made of the network and which of them it keeps. All that it keeps are explained
    where no target is given, highest score first.
    """

    noun: ClassVar[str] = "detector"
    instances: ClassVar[str] = "detections"
    method: ClassVar[str] = "odam"
    methods: ClassVar[tuple[str, ...]] = OF_DETECTORS
    columns: ClassVar[tuple[str, ...]] = ("deletion(protocol=seed)", "insertion(protocol=seed)", "vea@mask", "ebpg@box")
    # They see the whole picture, and most of them take its colours as they are.
    preprocessing: ClassVar[Mapping[str, Any]] = {"resize": None, "crop": None, "mean": (0.0,) * 3, "std": (1.0,) * 3}

    adapter: Detector

    def output(self, module: nn.Module, images: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Returns the candidates (N, Q, 4 B + K) that the adapter proposes."""
        del read
        return self.adapter.propose(module, images)

    def confidences(self, output: Tensor) -> Tensor:
        """Returns the class probabilities of all candidates (N, Q, K)."""
        return Candidates(output, self.adapter.classes).probabilities

    def settled(self, module: nn.Module, images: Tensor, request: Any, run: Run) -> Task:
        """Returns what reads the masks of the detections that are asked for, where it is their masks; else itself."""
        from konkyo.tasks.masks import masks_of

        return masks_of(self, module, images, request, run) or self

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the end of the backbone, where the adapter names it; none where it names none."""
        names = self.adapter.layer
        names = (names,) if isinstance(names, str) else names
        if self.adapter.patch is None:
            return tuple(Layer(name, None, level=None, part=len(names) > 1) for name in names if name)
        grid = tuple(side // self.adapter.patch for side in shape[1:])
        return tuple(Layer(name, None, channel_axis=-1, tokens=grid, prefix=1) for name in names)

    # --- targets ------------------------------------------------------------------------------------------------------

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: Score = "logit",
        frames: Sequence[Frame] = (),
    ) -> list[list[Target]]:
        """Returns the targets of every image: detections, or Targets as they come.

        `request`: None, `Detections`, `TopK`, a class's index or name, `ContrastTarget` of two classes, or a Target.
        KonkyoError: an unknown class.
        """
        request = _as_detections(request)
        if isinstance(request, ContrastTarget) and not (callable(request.this) and callable(request.that)):
            return self._contrasts(request, output, classes, frames)
        if not isinstance(request, Detections):
            if not callable(request) or (isinstance(request, Against) and not callable(request.target)):
                raise KonkyoError(f"a target of a detector is Detections(...), a class or a callable; got {request!r}")
            return [[cast("Target", request)]] * len(output)
        if request.quantity is None:
            request = replace(request, quantity="similarity" if score == "similarity" else "probability")
        return self._detections(request, output, classes, frames)

    def _contrasts(
        self, request: ContrastTarget, output: Tensor, classes: Classes, frames: Sequence[Frame]
    ) -> list[list[Target]]:
        """Returns the detections of one class, each as what its candidate says of that class and not of another.

        Of a request for all classes those of the other class itself are left out.
        """
        this, that = _as_detections(request.this), request.that
        if not isinstance(this, Detections) or not isinstance(that, (str, int)):
            raise KonkyoError(f'a contrast of a detector is of two classes, as in ("left cat", "cat"); got {request!r}')
        if this.class_similarity != "cosine":
            raise KonkyoError('a contrast follows one candidate, whatever the class: class_similarity="cosine"')
        this = replace(this, quantity=this.quantity or "logit")
        label, number = classes.index(that) if isinstance(that, str) else that, self.adapter.classes
        if not 0 <= label < number:
            raise KonkyoError(f"class {label}: this detector's classes are 0 to {number - 1}")
        boxes = Candidates(output, number).boxes(label)
        images = self._detections(this, output, classes, frames)
        return [
            [
                ContrastTarget(t, replace(t, label=label, box=tuple(boxes[image, t.index].tolist())))
                for t in targets
                if isinstance(t, InstanceTarget) and t.label != label
            ]
            for image, targets in enumerate(images)
        ]

    def _detections(
        self, request: Detections, output: Tensor, classes: Classes, frames: Sequence[Frame]
    ) -> list[list[Target]]:
        number = self.adapter.classes
        if classes.names and len(classes.names) != number:
            raise KonkyoError(
                f'{len(classes.names)} class names for a detector of {number} classes ("nothing" and "background" are '
                "no classes)"
            )
        _check_candidates(Candidates(output, number), classes.model)
        labels = [classes.index(c) if isinstance(c, str) else c for c in request.classes]
        for index in labels:
            if not 0 <= index < number:
                raise KonkyoError(f"class {index}: this detector's classes are 0 to {number - 1}")
        keep = self.adapter.keep if request.suppressed else partial(best_pairs, classes=number)
        detections = list[list[Target]]()
        threshold = self.adapter.threshold if request.threshold is None else request.threshold
        for image, selection in enumerate(keep(output, threshold)):
            targets = [t for t in self._instances(request, output[image], selection) if not labels or t.label in labels]
            if request.boxes and targets:
                boxes = output.new_tensor([target.box for target in targets])
                boxes = frames[image].shown(boxes) if frames else boxes
                shares = [overlap(boxes, boxes.new_tensor(box)) for box in request.boxes]
                nearest = [
                    (box, int(s.argmax()), float(s.amax())) for box, s in zip(request.boxes, shares, strict=True)
                ]
                for box, at, share in nearest:
                    if NEAR <= share < CLOSE:
                        warn(_far(box, boxes[at], share))
                targets = [targets[at] for at in sorted({at for _, at, share in nearest if share >= NEAR})]
            detections.append(list(targets[: request.top]))
        return detections

    def _instances(self, request: Detections, output: Tensor, selection: Kept) -> list[InstanceTarget]:
        """Returns the detections of an image, whose output is (Q, 4 B + K), as targets."""
        candidates = Candidates(output[None], self.adapter.classes)
        likeness = candidates.probabilities[0, selection.index].tolist()
        return [
            InstanceTarget(
                label,
                tuple(candidates.boxes(label)[0, index].tolist()),
                tuple(probabilities),
                index,
                request.quantity or "probability",
                request.class_similarity,
                request.least,
            )
            for index, label, probabilities in zip(
                selection.index.tolist(), selection.label.tolist(), likeness, strict=True
            )
        ]

    def check(self, targets: Sequence[Target], size: Sequence[int]) -> None:
        """Warns of impossible boxes. KonkyoError: most are, for images of this size (H, W)."""
        boxes = [target.box for target in targets if isinstance(target, InstanceTarget)]
        for fault, way_out in _FAULTS.items():
            count = sum(fault(box, size) for box in boxes)
            message = (
                f"{count} of {len(boxes)} detections have boxes {way_out}; (x1, y1, x2, y2) in pixels was expected"
            )
            if 2 * count > len(boxes):
                raise KonkyoError(f"{message}; such a box: {_plain(next(b for b in boxes if fault(b, size)))}")
            if count and fault in (_not_finite, _inverted):
                warn(message)

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the name of a detection's class, with the quantity where that is not its score."""
        if not isinstance(target, InstanceTarget):
            return super().label(target, classes, outputs)
        name = classes.label(target.label)
        return name if target.quantity in ("probability", "logit") else f"{name}, {target.quantity}"

    def decisions_beside(
        self, targets: Sequence[Target], images: Sequence[int], output: Tensor, classes: Classes
    ) -> list[Decision | None]:
        """Returns the most probable class of every detection's candidate on its image, beside the detection's class.

        None: other targets, and detections that are not there.
        """
        instances = [(row, target) for row, target in enumerate(targets) if isinstance(target, InstanceTarget)]
        decisions: list[Decision | None] = [None] * len(targets)
        if not instances:
            return decisions
        matches = [target.match(output[images[row], None]) for row, target in instances]
        chosen = torch.stack([match.index[0] for match in matches])
        place = torch.tensor([images[row] for row, _ in instances], device=output.device)
        probabilities = Candidates(output, self.adapter.classes).probabilities[place, chosen]
        present = torch.stack([match.found for match in matches])
        probabilities = torch.where(present, probabilities, torch.nan)
        labels = [target.label for _, target in instances]
        for (row, _), decision in zip(
            instances, decisions_of_classes(probabilities, probabilities, labels, classes.label), strict=True
        ):
            decisions[row] = decision
        return decisions

    def parts(self, target: Target) -> list[Target]:
        """Returns the probability and the four sides of the box of what is "combined", else the target itself."""
        if isinstance(target, InstanceTarget) and target.quantity == "combined":
            return [replace(target, quantity=quantity) for quantity in ("probability", *SIDES_OF_BOX)]
        return [target]

    def boxes(self, targets: Sequence[Target], like: Tensor) -> Tensor | None:
        """Returns the boxes of detections (R, 4), NaN for other targets; None where there are other targets only."""
        boxes = [as_target(target).location() for target in targets]
        if boxes and all(box is None for box in boxes):
            return None
        return like.new_tensor([(torch.nan,) * 4 if box is None else box for box in boxes]).reshape(-1, 4)

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns the fields of a detection; None for other targets."""
        return asdict(target) if isinstance(target, InstanceTarget) else None

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the detection; None for values that are of something else."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return InstanceTarget(**fields) if "likeness" in fields else None

    def request(self, options: TargetRequest, model: str) -> Detections | ContrastTarget:
        """Returns the detections that the options ask for."""
        options.refuse(model, self.noun, "region", "mask", "pixels", whose="segmenters")
        if options.quantity is not None and options.quantity not in get_args(Quantity):
            raise unknown("quantity of a detection", options.quantity, get_args(Quantity))
        if options.against is not None and len(options.classes) != 1:
            raise KonkyoError(
                f"--not goes with one --class; {model} is a {self.noun}: boxes of this class, not of that"
            )
        boxes: Any = options.boxes
        quantity: Any = options.quantity
        detections = Detections(options.threshold, options.top, options.classes, boxes, quantity)
        return detections if options.against is None else ContrastTarget(detections, options.against)

    def highest(self, request: Any, output: Tensor, classes: Classes) -> float:
        """Returns the highest score of all candidates, for the classes that are asked for."""
        detections, confidences = _preferred(request), self.confidences(output)
        if isinstance(detections, Detections) and detections.classes:
            confidences = confidences[..., [classes.index(c) if isinstance(c, str) else c for c in detections.classes]]
        return float(confidences.amax()) if confidences.numel() else 0.0

    def nothing(self, request: Any) -> str:
        """Returns which detections were asked for and are not there."""
        request = _preferred(request)
        if not isinstance(request, Detections):
            return "nothing detected"
        kinds = "" if not request.classes else f" of class {' or '.join(map(str, request.classes))}"
        boxes = " or ".join(",".join(f"{side:g}" for side in box) for box in request.boxes)
        where = f" that overlaps {boxes} by an IoU of {NEAR} or more" if boxes else ""
        threshold = self.adapter.threshold if request.threshold is None else request.threshold
        return f"nothing{kinds} detected with a score above {threshold:g}{where}"

    # --- measuring ----------------------------------------------------------------------------------------------------

    def measured(self, sample: Sample, explained: Explained, matching: Matching) -> Detections:
        """Returns the request for the detections above the threshold."""
        del sample, explained
        return Detections(threshold=matching.threshold)

    def matches(
        self, labels: Sequence[str], boxes: Tensor | None, annotations: Sequence[Annotation], matching: Matching
    ) -> list[tuple[int, ...] | None]:
        """Returns the annotation that every detection is of; where there is none, () if `iou` is 0, else None."""
        nothing = () if matching.iou == 0 else None
        places = torch.zeros(0, 4) if boxes is None else boxes
        return [pair or nothing for pair in matched(labels, places, annotations, matching.iou)]

    def request_of(self, target: Target, score: Score) -> Any:
        """Returns the detection; its likeness for D-RISE, which weighs masks by that."""
        instance = isinstance(target, InstanceTarget) and score == "similarity"
        return replace(target, quantity="similarity") if instance else target  # type: ignore[type-var]

    def perturbation_score(self, target: Target, box: Tensor) -> Target:
        """Returns the largest probability of the class among all candidates that overlap the box (IoU > 0.5)."""
        if not isinstance(target, InstanceTarget):
            return target
        return Tracked(target.label, tuple(box.tolist()), len(target.likeness))


Box: TypeAlias = "tuple[float, float, float, float]"


def _far(target: Box, nearest: Tensor, share: float) -> str:
    """Returns that the detection taken for a box hardly overlaps it."""
    taken, wanted = (",".join(f"{side:.0f}" for side in box) for box in (nearest.tolist(), target))
    return f"box {wanted}: the detection nearest to it, at {taken}, overlaps it by an IoU of {share:.2f} only"


def _not_finite(box: Box, size: Sequence[int]) -> bool:
    del size
    return not all(map(math.isfinite, box))


def _inverted(box: Box, size: Sequence[int]) -> bool:
    """Tells whether a box ends before it begins, by more than a pixel."""
    del size
    return box[2] < box[0] - 1 or box[3] < box[1] - 1


def _within_a_pixel(box: Box, size: Sequence[int]) -> bool:
    """Tells whether a box on a larger image has sides in [0, 1], as shares of width and height have them."""
    return min(size) > _SMALL and all(-_SLACK <= side <= 1 + _SLACK for side in box)


def _outside(box: Box, size: Sequence[int]) -> bool:
    """Tells whether the centre of a box lies beyond the image by a quarter of its side or more."""
    shares = (box[0] + box[2]) / 2 / size[1], (box[1] + box[3]) / 2 / size[0]
    return not all(-0.25 <= share <= 1.25 for share in shares)


_FAULTS: dict[Callable[[Box, Sequence[int]], bool], str] = {
    _not_finite: "with NaN or infinite sides",
    _inverted: "that end before they begin (centre and size, perhaps: boxes='cxcywh' or 'xywh' of dense_detector)",
    _within_a_pixel: "of less than a pixel (shares of the picture, perhaps: scale='fraction' of dense_detector)",
    _outside: "beyond the picture (pixels that were taken for shares, or another form: scale= and boxes= of "
    "dense_detector)",
}
"""What is wrong with a box, and what may be the reason."""
_SMALL, _SLACK = 8, 0.1
_ROUNDING = 1e-2  # of probabilities, which half precision rounds


def _plain(box: Box) -> str:
    return "(" + ", ".join(f"{side:.4g}" for side in box) + ")"


def _check_candidates(candidates: Candidates, model: str) -> None:
    """Raises KonkyoError where candidates cannot be such, from one transfer from the device."""
    probabilities = candidates.probabilities
    if not probabilities.numel():
        return
    last, boxes = probabilities[..., -1], candidates.boxes(0)
    ordered = (probabilities[..., 0].diff(dim=1) <= 0).all() & (last == last.round()).all()
    inverted = (boxes[..., 2:] < boxes[..., :2] - 1).any(-1).float().mean()
    values = [probabilities.isnan().any(), *probabilities.aminmax(), ordered, inverted]
    broken, lowest, highest, rows, wrong = torch.stack([value.to(probabilities) for value in values]).tolist()
    if broken:
        raise KonkyoError(
            f"{model} predicts NaN; half-precision weights are a usual reason: keep them in float32 and "
            'explain with precision="bf16". Or its columns are others: activated=, objectness= and select= of '
            "dense_detector say which"
        )
    if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
        raise KonkyoError(
            f"{model} puts out class probabilities from {lowest:.4g} to {highest:.4g}, which must lie in [0, 1]. Of "
            "dense_detector: logits need activated=False; a column of objectness before the classes objectness=True; "
            "other columns (a class's index, an angle) select=lambda output: ..., which takes them out"
        )
    if wrong > 0.5:
        raise KonkyoError(f"{wrong:.0%} of the candidates of {model} have boxes {_FAULTS[_inverted]}")
    if probabilities.shape[2] == 2 and probabilities.shape[1] > 2 and rows:
        raise KonkyoError(
            f"{model} puts out rows (box, score, class), highest score first: what an export with suppression keeps, "
            "not the class probabilities of all candidates. Export it without suppression (nms=False, end2end=False), "
            "or find them by select=lambda output: ..."
        )
    if probabilities[0].numel() >= _MANY and lowest >= _OF_SIGMOIDS[0] and highest <= _OF_SIGMOIDS[1]:
        raise KonkyoError(
            f"{model} gives every candidate a probability from {lowest:.4g} to {highest:.4g}, as a sigmoid of a "
            "probability does: the network's predictions are probabilities already, activated=True"
        )


_MANY, _OF_SIGMOIDS = 20, (0.5, 0.7311)
"""So many numbers do not all lie in there by chance: the sigmoids of [0, 1]."""


def _as_detections(request: Any) -> Any:
    """Returns what asks for a detector's decisions, the best ones or those of a class, as `Detections`."""
    if isinstance(request, TopK):
        return Detections(top=request.k)
    if isinstance(request, str) or (isinstance(request, int) and not isinstance(request, bool)):
        return Detections(classes=(request,))
    return Detections() if request is None else request


def _preferred(request: Any) -> Any:
    """Returns the detections that are asked for, in a contrast those of the class that is preferred."""
    return _as_detections(request.this if isinstance(request, ContrastTarget) else request)


def matched(
    labels: Sequence[str], boxes: Tensor, annotations: Sequence[Annotation], least: float
) -> list[tuple[int, ...]]:
    """Returns of every detection (best first) the annotation of its class that it overlaps most and no better one has.

    It is empty where no such annotation overlaps it by an IoU of `least`.
    """
    pairs: list[tuple[int, ...]] = []
    for label, box in zip(labels, boxes, strict=True):
        free = [
            i
            for i, annotation in enumerate(annotations)
            if same_class(annotation.label, label) and box_of(annotation) is not None and (i,) not in pairs
        ]
        shares = overlap(boxes.new_tensor([box_of(annotations[i]) for i in free]).reshape(-1, 4), box)
        best = int(shares.argmax()) if len(free) else 0
        pairs.append((free[best],) if len(free) and 0 < float(shares[best]) >= least else ())
    return pairs
