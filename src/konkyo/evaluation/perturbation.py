"""Perturbation of one picture: what its score does when a place is covered, and when pixels go in a map's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from konkyo.data.arrays import picture_of_colours
from konkyo.engine.forward import Pass
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError, silenced
from konkyo.evaluation.columns import Column, column
from konkyo.evaluation.diagnose.interventions import fill_of, moved
from konkyo.evaluation.diagnose.regions import region_mask
from konkyo.evaluation.measurement import box_areas
from konkyo.explanation.result import Explanation
from konkyo.metrics.base import auc
from konkyo.models import Model
from konkyo.models.base import preprocess_of
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import ContrastTarget
from konkyo.utils.tensors import resize

STEPS = 20
CONTROLS = 8
Check = Callable[[], None]
"""It is called between forwards, and ends the work by an exception."""


@dataclass(frozen=True, eq=False)
class Covering:
    """The result says what covering a region of a picture does to one score."""

    before: float
    """The score of the picture as it is."""
    after: float
    """The score with the region covered."""
    controls: tuple[float, ...]
    """The scores with the same shape covered elsewhere."""
    decision: str
    """What the model decides of the picture, with its probability; "" where that is of no classes."""
    decision_after: str
    picture: Image.Image
    """The picture with the region covered, as the network gets it."""

    @property
    def fall(self) -> float:
        """Returns how far the score falls."""
        return self.before - self.after

    @property
    def control_fall(self) -> float:
        """Returns how far it falls on average with the shape elsewhere; NaN without controls."""
        return self.before - sum(self.controls) / len(self.controls) if self.controls else float("nan")


@dataclass(frozen=True, eq=False)
class PixelCurve:
    """A curve of scores while pixels go, or come, in the order of a map, with the pictures that were scored."""

    metric: str
    better: str
    scores: tuple[float, ...]
    """(T,) as the metric gives them, the first of the picture (or of none of it)."""
    pictures: tuple[Image.Image, ...]
    """(T,)"""

    @property
    def area(self) -> float:
        """Returns the area under the curve, its places evenly spaced from 0 to 1."""
        return float(auc(torch.tensor([self.scores], dtype=torch.float64)))


@dataclass(frozen=True, eq=False)
class _Scored:
    """A picture as the network gets it, with what is scored of it."""

    model: Model
    images: Tensor
    """(1, C, H, W)"""
    target: Target
    """What is explained."""
    score: Target
    """What changed pictures are scored by: a probability, where there is one."""
    box: Tensor
    """(4,) of a detection, xyxy in input pixels; NaN of other targets."""

    @classmethod
    def of(cls, model: Model, picture: Image.Image, explanation: Explanation, row: int) -> _Scored:
        """Prepares the picture of a row. KonkyoError: a model without preprocessing, or a target known by its name."""
        preprocess = preprocess_of(model)
        target = explanation.targets[row]
        if isinstance(target, str):
            raise KonkyoError(f"the target {target!r} was loaded from a file by its name; explain the picture anew")
        images = model.prepared(preprocess(picture)[None])
        where = as_target(target).location()
        box = images.new_full((4,), torch.nan) if where is None else images.new_tensor(where)
        return cls(model, images, target, _probability(model, target, box), box)

    def output(self, images: Tensor) -> Tensor:
        """Returns the network's output for images, one by one, so that none depends on the others."""
        return torch.cat([Pass(self.model, image[None]).output.detach() for image in images])

    def shown(self, image: Tensor) -> Image.Image:
        """Returns a prepared image (C, H, W) as a picture."""
        return picture_of_colours(preprocess_of(self.model).undo(image[None].float())[0])

    def decision(self, output: Tensor) -> str:
        """Returns what the model decides, in words."""
        (decision,) = self.model.decisions_beside([self.target], [0], output)
        return "" if decision is None else decision.of_the_model.removeprefix("decided: ")


def _probability(model: Model, target: Target, box: Tensor) -> Target:
    """Returns what changed pictures are scored by; a contrast of two classes as the difference of both."""
    if isinstance(target, ContrastTarget):
        return ContrastTarget(_probability(model, target.this, box), _probability(model, target.that, box))
    return model.task.perturbation_score(target, box)


def cover(
    model: Model,
    picture: Image.Image,
    explanation: Explanation,
    region: Sequence[float] | str,
    *,
    row: int = 0,
    fill: str = "blur",
    controls: int = CONTROLS,
    seed: int = 0,
    check: Check | None = None,
) -> Covering:
    """Returns what covering a region of a picture does to the score that a row explains.

    `picture`: the one that was explained, by this model, bound to its question. `region`: x0, y0, x1, y1 as shares of
    the sides of what the model sees, or a name as of `konkyo.region_test`. `fill`: "blur", "mean" or "noise".
    `controls`: the same shape is covered at so many other places. The score is a probability where the task has one; of
    a detection the largest of its class among all candidates that overlap it. 2 + `controls` forwards.
    """
    scored, generator = _Scored.of(model, picture, explanation, row), torch.Generator().manual_seed(seed)
    height, width = scored.images.shape[2:]
    if fill == "swap":
        raise KonkyoError("a swap takes regions from other images, and there is one: fill='blur', 'mean' or 'noise'")
    mask = region_mask(_in_input(region, explanation, row), (height, width)).to(scored.images.device)
    filled = fill_of(fill)(scored.images, scored.images, generator)[0]
    regions = [torch.zeros_like(mask), mask, *moved(mask, controls, generator)]
    scores, decisions = list[float](), list[str]()
    changed = [torch.where(one, filled, scored.images[0]) for one in regions]
    session = untouched(model.module, seed)
    with torch.no_grad(), silenced(), session, session:  # twice: see `Session`
        for image in changed:
            if check is not None:
                check()
            output = scored.output(image[None])
            scores.append(float(scored.score(output)))
            decisions.append(scored.decision(output) if len(decisions) < 2 else "")
    return Covering(scores[0], scores[1], tuple(scores[2:]), decisions[0], decisions[1], scored.shown(changed[1]))


def _in_input(region: Sequence[float] | str, explanation: Explanation, row: int) -> Any:
    """Returns a region of what the model sees as one of its input, which may have a border. KonkyoError: no region."""
    if isinstance(region, str):
        return region
    shares = [float(side) for side in region]
    if len(shares) != 4 or not (0 <= shares[0] < shares[2] <= 1 and 0 <= shares[1] < shares[3] <= 1):
        raise KonkyoError(f"a region is x0, y0, x1, y1 as shares from 0 to 1, the smaller first; got {list(region)}")
    if explanation.regions is None:
        return shares
    left, top, right, bottom = explanation.regions[row].tolist()
    wide, tall = right - left, bottom - top
    return [left + shares[0] * wide, top + shares[1] * tall, left + shares[2] * wide, top + shares[3] * tall]


def curves(
    model: Model,
    picture: Image.Image,
    explanation: Explanation,
    *,
    row: int = 0,
    steps: int = STEPS,
    seed: int = 0,
    check: Check | None = None,
) -> tuple[PixelCurve, ...]:
    """Returns the curves of deletion and insertion of a row's map, with the pictures on the way.

    The columns are those of the model's task, as `konkyo.evaluate` measures them, in `steps` steps instead of theirs.
    `picture`: the one that was explained, by this model, bound to its question. 2 (1 + `steps`) forwards.
    """
    scored = _Scored.of(model, picture, explanation, row)
    height, width = scored.images.shape[2:]
    maps = resize(explanation.maps[row : row + 1].float(), (height, width))
    of_task = reversed([column(name) for name in model.task.columns])  # of several the first
    columns = {c.metric.name: c for c in of_task}
    session = untouched(model.module, seed)
    with torch.no_grad(), silenced(), session, session:  # twice: see `Session`
        return tuple(
            _curve(scored, maps, columns.get(name) or column(name), steps, seed, check)
            for name in ("deletion", "insertion")
        )


def _curve(scored: _Scored, maps: Tensor, measured: Column, steps: int, seed: int, check: Check | None) -> PixelCurve:
    pictures = list[Image.Image]()

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        del rows
        if check is not None:
            check()
        pictures.extend(map(scored.shown, variants))
        return scored.score(scored.output(variants)).reshape(-1)

    needs = {
        "images": scored.images,
        "score": score,
        "pixels": scored.images.new_tensor([scored.model.black, preprocess_of(scored.model).white]),
        "budget": _area(scored) if measured.budget == "box" else None,
    }
    options = {name: value for name, value in measured.options.items() if name not in ("steps", "every")}
    options = {"seed": seed, **options, "steps": steps, "batch": 1}
    if options.get("protocol") == "odam":
        options["every"] = 1
    statistic = measured.metric.statistic(maps, **needs, **options)[0]
    return PixelCurve(measured.metric.name, measured.metric.better, tuple(statistic.double().tolist()), tuple(pictures))


def _area(scored: _Scored) -> Tensor | None:
    """Returns how many pixels of the input the detection's box has, (1,) int64; None where nothing is detected."""
    return None if bool(scored.box.isnan().any()) else box_areas(scored.box[None], scored.images.shape[2:])
