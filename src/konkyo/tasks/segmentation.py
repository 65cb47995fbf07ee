"""Segmentation: an output is what a network says of every class in every cell of the picture, (N, K, H, W)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from konkyo.data.frame import Frame
from konkyo.data.samples import Sample
from konkyo.engine.ending import Ending, ending_of
from konkyo.engine.layer import Layer
from konkyo.errors import ImageError, KonkyoError
from konkyo.targets.base import Target
from konkyo.targets.classes import ContrastTarget, Each, Score, TopK, combination, leaves
from konkyo.targets.regions import DenseScore, Pixel, Region, RegionTarget
from konkyo.tasks.base import Classes, Explained, Matching, TargetRequest, Task, task
from konkyo.tasks.decision import Decision, decisions_of_classes
from konkyo.tasks.regions import region_of, restored_region, saved_region

OF_SEGMENTERS = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_pp", "eigen_cam", "ablation_cam")
"""The methods that are compared on segmenters."""
_ROUNDING = 2e-3  # of probabilities, which half precision rounds


@dataclass(frozen=True)
class PredictedClasses:
    """This asks for every class that is predicted on a share of the picture of `least` or more, the largest first."""

    least: float = 0.0
    top: int | None = None


@task
@dataclass(frozen=True)
class SegmentationTask(Task):
    """The classes of a picture's pixels: logits (N, K, H, W), or one logit (N, 1, H, W) that decides between two.

    With `multilabel` the classes do not exclude each other. With `probabilities` the network puts out scores of classes
    that are explained as they are: probabilities, or the sums over queries of MaskFormer and its like. False: they are
    logits, whatever they look like; None: they are logits, and a doubt is said where they do not look so. `background`:
    the class that is nothing in particular; None: the one of that name, if there is one. One logit z becomes the two
    channels -z and z.
    """

    noun: ClassVar[str] = "segmenter"
    method: ClassVar[str] = "layer_cam"
    methods: ClassVar[tuple[str, ...]] = OF_SEGMENTERS
    columns: ClassVar[tuple[str, ...]] = (
        *("deletion(substrate=blur)", "deletion(substrate=blur,where=context)", "insertion"),
        *("ebpg@mask", "ebpg@explained", "ebpg@evidence", "pointing_game@mask"),
    )
    preprocessing: ClassVar[Mapping[str, Any]] = {"crop": None}

    multilabel: bool = False
    probabilities: bool | None = None
    background: int | None = None
    layer: str = ""
    """The module whose output, with all levels of a pyramid, maps are made of by default; "" for the one that a trace
    finds."""

    # --- the output ---------------------------------------------------------------------------------------------------

    def output(self, module: nn.Module, images: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Returns the scores of the classes (N, K, H, W), of two classes at least.

        KonkyoError: an output of another form.
        """
        output = read(module, images)
        if output.ndim != images.ndim:
            raise KonkyoError(
                f"a segmenter puts out a score per class and pixel, (N, K, H, W); got {tuple(output.shape)}. "
                "konkyo.Model(module, task=konkyo.SegmentationTask(), select=lambda output: ...) says where it is"
            )
        if output.shape[1] > 1:
            return output
        return torch.cat([1 - output if self.probabilities else -output, output], 1)

    def layers(self, shape: Sequence[int]) -> tuple[Layer, ...]:
        """Returns the end of the backbone, where the adapter names it; none where it names none."""
        del shape
        return (Layer(self.layer, None, level=None),) if self.layer else ()

    def decides(self, output: Tensor, classes: Classes) -> bool:
        """Tells whether the output has classes in cells; that of a segmenter always has."""
        del classes
        return output.ndim > 3

    def holds_probabilities(self, output: Tensor, again: Callable[[], Tensor]) -> bool:
        """Tells whether an output that is read as logits holds probabilities, by its graph or its values."""
        del again
        if self.probabilities is not None:
            return False
        ending = ending_of(output)
        if ending in (Ending.LOGITS, Ending.PROBABILITIES):
            return ending is Ending.PROBABILITIES
        values = output.detach()
        off = (values.sum(1) - 1).abs().amax()
        low, high, off_one = torch.stack([values.amin(), values.amax(), off]).tolist()
        return bool(low >= 0 and high <= 1 + _ROUNDING and off_one <= _ROUNDING)

    def of_probabilities(self, output: Tensor) -> tuple[Task, Tensor]:
        """Returns what reads an output that holds probabilities after all, and the output itself."""
        return replace(self, probabilities=True), output

    def doubts(self, targets: Sequence[Target], classes: Classes, *, probabilities: bool) -> tuple[str, ...]:
        """Returns that probabilities are read as logits."""
        if (
            not probabilities
            or self.probabilities is not None
            or not any(isinstance(target, RegionTarget) for target in targets)
        ):
            return ()
        return (
            f"{classes.model} puts out probabilities, which are explained as they are, as if they were logits; say "
            "konkyo.Model(module, task=konkyo.SegmentationTask(probabilities=True)).",
        )

    def predicted(self, output: Tensor, index: int) -> Tensor:
        """Returns the cells in which a class is decided on (N, H, W) bool."""
        if self.multilabel:
            return output[:, index] > (0.5 if self.probabilities else 0.0)
        return output.argmax(1) == index

    def shares(self, output: Tensor) -> Tensor:
        """Returns the share of the cells in which each class is decided on (N, K)."""
        classes = output.shape[1]
        if self.multilabel:
            return torch.stack([self.predicted(output, k).flatten(1).float().mean(1) for k in range(classes)], 1)
        decided = output.argmax(1).flatten(1)
        counts = torch.stack([torch.bincount(labels, minlength=classes) for labels in decided])
        return counts.float() / decided.shape[1]

    def _score(self, score: Score, output: Tensor) -> DenseScore:
        """Returns what is averaged over a region where a method explains a logit or a probability."""
        if self.probabilities or score == "logit":
            return "logit"
        if score == "similarity":
            raise KonkyoError("a similarity is that of detections; a segmenter has none")
        one_logit = output.shape[1] == 2 and torch.equal(output[:, 0], -output[:, 1])
        return "sigmoid" if self.multilabel or one_logit or score == "sigmoid" else "probability"

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
        """Returns the targets of every image.

        `request`: None (the most frequent class that is no background), `TopK(k)`, a class's index or name (over the
        region where it is predicted), `Region`, `Pixel`, combinations of these, or a Target. KonkyoError: an unknown
        class, or a region without a cell.
        """
        if classes.names and len(classes.names) != output.shape[1]:
            raise KonkyoError(
                f"{len(classes.names)} class names for {classes.model}, whose output has {output.shape[1]} channels "
                "(background is one of them)"
            )
        if request is None:
            request = PredictedClasses(top=1)
        elif isinstance(request, TopK):
            request = PredictedClasses(top=request.k)
        images = []
        for i in range(len(output)):
            requests = _ImageRequests(self, output[i : i + 1], classes, score, frames[i] if frames else Frame())
            requests.check()
            several = isinstance(request, PredictedClasses)
            images.append(requests.predicted_classes(request) if several else [requests.target(request)])
        return images

    def background_of(self, classes: Classes) -> int | None:
        """Returns the class that is nothing in particular; None where there is none, or no names say which."""
        if self.background is not None:
            return self.background
        plain = [name.strip("_ ").lower() for name in classes.names]
        return plain.index("background") if "background" in plain else None

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        """Returns the name of a region's class, and what the region is called."""
        if not isinstance(target, RegionTarget):
            return super().label(target, classes, outputs)
        return ", ".join(text for text in (classes.label(target.index), target.where) if text)

    def decisions_beside(
        self, targets: Sequence[Target], images: Sequence[int], output: Tensor, classes: Classes
    ) -> list[Decision | None]:
        """Returns the class that is most probable over every target's region, beside the asked class.

        Probabilities are means over the region. None: a target of no region.
        """
        regions = [(row, region) for row, target in enumerate(targets) if (region := _region(target)) is not None]
        decisions: list[Decision | None] = [None] * len(targets)
        if not regions:
            return decisions
        means = torch.cat([self._means(region, output[images[row] : images[row] + 1]) for row, region in regions])
        labels = [region.index for _, region in regions]
        of_regions = decisions_of_classes(means, means, labels, classes.label, exclusive=not self.multilabel)
        for (row, _), decision in zip(regions, of_regions, strict=True):
            decisions[row] = decision
        return decisions

    def _means(self, region: RegionTarget, output: Tensor) -> Tensor:
        """Returns the probability of every class, averaged over a region (1, K)."""
        weights = region.weights(tuple(output.shape[2:])).to(output.device)
        score = self._score("probability", output)
        values = output.float()
        if score != "logit":
            values = values.sigmoid() if score == "sigmoid" else values.softmax(1)
        return (values * weights).flatten(2).sum(2) / weights.sum()

    def saturates(self, target: Target) -> bool:
        """Tells whether the score is a softmax probability."""
        return isinstance(target, RegionTarget) and target.score == "probability"

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        """Returns a region as plain values; None for other targets."""
        return saved_region(target) if isinstance(target, RegionTarget) else None

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        """Returns the target of a region; None for values that are of something else."""
        return restored_region(values)

    def request(self, options: TargetRequest, model: str) -> Any:
        """Returns what the options ask for: pixels, regions of classes, or the most frequent classes."""
        options.refuse(model, self.noun, "threshold", "quantity", whose="detectors")
        places: list[Any] = [partial(Pixel, x, y) for x, y in options.pixels]
        if options.pixels and (names := options.names("region", "mask", "boxes")):
            raise KonkyoError(f"--pixel is a place by itself; {', '.join(names)} would name another")
        if options.region is not None and options.mask is not None:
            raise KonkyoError("--region and --mask both say where; give one of them")
        within = options.mask if options.mask is not None else options.region
        if not places and (options.boxes or within is not None):
            boxes: Any = options.boxes or (None,)
            places = [partial(Region, within=within, box=box) for box in boxes]
        if options.top is not None and (options.classes or places or options.against is not None):
            raise KonkyoError("--top takes the most frequent classes; it goes with no --class and no place")
        if not (options.classes or places or options.against is not None):
            return TopK(options.top or 1)
        labels = options.classes or (None,)
        targets = [place(label=label) for place in places or [Region] for label in labels]
        against: Any = options.against
        return Each(*(ContrastTarget(t, against) if against is not None else t for t in targets))

    # --- measuring ----------------------------------------------------------------------------------------------------

    def measured(self, sample: Sample, explained: Explained, matching: Matching) -> Any:
        """Returns the request for every class that is predicted on half a percent of the picture or more."""
        del sample, matching
        if explained == "label":
            raise KonkyoError("a segmenter's pictures have no label of their own; explained='decision' needs none")
        return PredictedClasses(least=0.005)

    def request_of(self, target: Target, score: Score) -> Any:
        """Returns the region with what the method explains, a logit or a probability."""
        if not isinstance(target, RegionTarget) or self.probabilities or score not in ("logit", "probability"):
            return target
        other: DenseScore = "sigmoid" if self.multilabel else "probability"
        return replace(target, score="logit" if score == "logit" else other)

    def perturbation_score(self, target: Target, box: Tensor) -> Target:
        """Returns the mean probability of the class over the region."""
        del box
        return cast("Target", self.request_of(target, "probability"))


@dataclass(frozen=True, eq=False)
class _ImageRequests:
    """This makes targets of what a user requests of one image."""

    task: SegmentationTask
    output: Tensor
    """(1, K, H, W)"""
    classes: Classes
    score: Score
    frame: Frame

    def target(self, request: Any) -> Target:
        """Returns the target that a request means. KonkyoError: it means none."""
        if isinstance(request, ContrastTarget):
            this, that = self.target(request.this), request.that
            if isinstance(this, RegionTarget) and isinstance(that, (int, str)):  # over the same region
                return ContrastTarget(this, replace(this, index=self._index(that)))
            return ContrastTarget(this, self.target(that))
        if (combined := combination(request, self.target)) is not None:
            return combined
        if isinstance(request, RegionTarget):
            self._index(request.index)
            return request
        if isinstance(request, (int, str)) and not isinstance(request, bool):
            request = Region(request)
        if isinstance(request, Pixel):
            return self._pixel(request)
        if isinstance(request, Region):
            return self._region(request)
        if not callable(request):
            raise KonkyoError(
                "a target of a segmenter is a class, Region(...), Pixel(x, y), or a callable output (N, K, H, W) -> "
                f"(N,); got {request!r}"
            )
        return cast("Target", request)

    def check(self) -> None:
        """Raises KonkyoError where one output per cell lies in [0, 1]: as a logit it decides one way."""
        output = self.output.detach()
        if self.task.probabilities is not None or output.shape[1] != 2 or not torch.equal(output[:, 0], -output[:, 1]):
            return
        low, high = torch.stack([output[:, 1].amin(), output[:, 1].amax()]).tolist()
        if 0 <= low < high <= 1:
            raise KonkyoError(
                f"{self.classes.model} has one output per pixel, all in [0, 1]: probabilities, it seems. Say "
                "konkyo.SegmentationTask(probabilities=True), or probabilities=False if they are logits"
            )

    def predicted_classes(self, request: PredictedClasses) -> list[Target]:
        """Returns the classes that are predicted, that of most cells first; the background only where it is alone."""
        shares = self.task.shares(self.output)[0].tolist()
        background = self.task.background_of(self.classes)
        ranked = sorted((k for k, s in enumerate(shares) if s > 0 and s >= request.least), key=lambda k: -shares[k])
        things = [k for k in ranked if k != background] or ranked[:1]
        return [self.target(Region(k)) for k in things[: request.top]]

    def _region(self, request: Region) -> RegionTarget:
        if request.label is None:
            predicted = self.predicted_classes(PredictedClasses(top=1))
            if not predicted:
                raise ImageError("no class is predicted anywhere in the picture; name one, as in Region('road', 'all')")
            first = predicted[0]
            assert isinstance(first, RegionTarget)
            index = first.index
        else:
            index = self._index(request.label)
        region, where = region_of(request, self._size, self.frame, lambda: self._predicted(index))
        return RegionTarget(index, region, request.score or self._score, where)

    def _pixel(self, request: Pixel) -> RegionTarget:
        region, where = region_of(request, self._size, self.frame)
        place = RegionTarget(0, region)
        if request.label is None:
            weights = place.weights(self._size).to(self.output.device)
            index = int((self.output[0].float() * weights).flatten(1).sum(1).argmax())
        else:
            index = self._index(request.label)
        return RegionTarget(index, region, request.score or self._score, where)

    def _predicted(self, index: int) -> Tensor:
        """Returns where a class is predicted (H, W). KonkyoError: nowhere."""
        cells = self.task.predicted(self.output, index)[0].cpu()
        if not bool(cells.any()):
            shares = self.task.shares(self.output)[0]
            order = shares.argsort(descending=True)
            known = [f"{self.classes.label(int(k))} {float(shares[k]):.1%}" for k in order[:10] if shares[k] > 0]
            name = self.classes.label(index)
            raise ImageError(
                f"{name!r} is predicted nowhere in the picture; predicted are {', '.join(known)}. "
                f'Region({name!r}, within="all") explains it over the whole picture'
            )
        return cells

    @property
    def _size(self) -> tuple[int, int]:
        height, width = self.output.shape[2:]
        return height, width

    @property
    def _score(self) -> DenseScore:
        return self.task._score(self.score, self.output)

    def _index(self, label: int | str) -> int:
        index = self.classes.index(label) if isinstance(label, str) else label
        if not 0 <= index < self.output.shape[1]:
            raise KonkyoError(f"class {index}: the classes of {self.classes.model} are 0 to {self.output.shape[1] - 1}")
        return index


def _region(target: Target) -> RegionTarget | None:
    """Returns the region that a target is about; of a combination, that of the first."""
    first = next(leaves(target))
    return first if isinstance(first, RegionTarget) else None
