"""region_test(): what covering a region, and pasting it into other images, does to a model's scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from konkyo.data.images import open_image
from konkyo.data.samples import Data, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.engine.forward import Pass
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError, silenced, unknown
from konkyo.evaluation.batches import UNKNOWN, Batches, Source
from konkyo.evaluation.diagnose.collected import probabilities
from konkyo.evaluation.diagnose.interventions import Cover, Effect, Paste, fill_of, one_of_another_class, partners
from konkyo.evaluation.result import Table, bracketed, number
from konkyo.models import Model, as_model
from konkyo.tasks import ClassificationTask
from konkyo.utils.words import counted

BUDGET = 48
"""A region is pasted so often."""
Region: TypeAlias = str | Path | Sequence[float] | Tensor
_THIRD = 1 / 3
NAMED: dict[str, tuple[float, float, float, float]] = {
    f"{down} {across}".replace("middle middle", "middle"): (x * _THIRD, y * _THIRD, (x + 1) * _THIRD, (y + 1) * _THIRD)
    for y, down in enumerate(("upper", "middle", "lower"))
    for x, across in enumerate(("left", "middle", "right"))
}
"""Ninths of the image by name; besides them there is "border", the outer tenth."""
_BORDER = 0.1


def region_mask(region: Region, size: tuple[int, int]) -> Tensor:
    """Returns a region on images of size (height, width), (H, W) bool.

    `region`: a box x0, y0, x1, y1 in pixels of the prepared image, or as shares of its sides (all of 1 at most); a mask
    (H, W) of any size; a file of one, inside where it is bright; or a name ("upper left", ..., "middle", "border").
    KonkyoError: no such region, or an empty one.
    """
    height, width = size
    if isinstance(region, (str, Path)):
        if str(region) == "border":
            mask = torch.ones(size, dtype=torch.bool)
            down, across = max(1, round(_BORDER * height)), max(1, round(_BORDER * width))
            mask[down : height - down, across : width - across] = False
            return mask
        if str(region) in NAMED:
            return region_mask(NAMED[str(region)], size)
        if not Path(region).is_file():
            raise unknown("region", str(region), [*NAMED, "border", "x0,y0,x1,y1", "a file of a mask"])
        region = torch.from_numpy(np.array(open_image(Path(region)).convert("L")) >= 128)
    if isinstance(region, Tensor):
        if region.ndim != 2:
            raise KonkyoError(f"a mask is (H, W); got {tuple(region.shape)}")
        mask = torch.nn.functional.interpolate(region[None, None].float().cpu(), size, mode="nearest")[0, 0] > 0
    else:
        box = [float(v) for v in region]
        if len(box) != 4 or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise KonkyoError(f"a box is x0, y0, x1, y1 with x0 < x1 and y0 < y1; got {box}")
        scale = (width, height) if max(box) <= 1 else (1, 1)
        x0, y0, x1, y1 = (round(v * scale[i % 2]) for i, v in enumerate(box))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[y0:y1, x0:x1] = True
    if not mask.any():
        raise KonkyoError(f"the region is empty on images of {height} x {width} pixels")
    return mask


@dataclass(frozen=True, eq=False, repr=False)
class RegionTest:
    """The result says what covering a region does to n images, and what pasting it into others does."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    """(n,) of the images."""
    asked: Tensor
    """(n,) the class of each that is asked about."""
    before: Tensor
    """(n, K) probabilities."""
    after: Tensor
    """(n, K) with the region covered."""
    cover: Effect
    """The fall of P, less the mean fall with the same region elsewhere covered."""
    plain: Effect
    """The fall of P itself."""
    paste: Effect
    """The rise of P of a class in images of others by its region, less that by a third class's; one value per image
    that a region was taken of. Empty where nothing could be pasted."""
    region: Tensor
    """(H, W) bool."""
    shown: tuple[tuple[Tensor, Tensor], ...]
    """Of the first images, before and after, (C, H, W) each."""
    forwards: int
    model: Model

    def __repr__(self) -> str:
        effects = (("covered, P falls by", self.plain), ("pasted, it rises by", self.paste))
        parts = [f"{words} {bracketed(e.mean, e.low, e.high)}" for words, e in effects if len(e.values)]
        parts = [counted(len(self.names), "image"), *parts, f"{self.changed:.0%} of decisions change"]
        return f"RegionTest({'; '.join(parts)})"

    @property
    def changed(self) -> float:
        """Returns the share of decisions that change when the region is covered."""
        return float((self.before.argmax(1) != self.after.argmax(1)).double().mean())

    def table(self) -> Table:
        """The table has a line per image."""
        rows = []
        for i, name in enumerate(self.names):
            label = int(self.asked[i])
            now, then = float(self.before[i, label]), float(self.after[i, label])
            decisions = [self.classes[int(p[i].argmax())] for p in (self.before, self.after)]
            values = [number(v) for v in (now, then, float(self.cover.values[i]))]
            rows.append([name, self.classes[label], *values, *decisions])
        return ["image", "class", "P", "P covered", "fall less controls", "decision", "decision covered"], rows

    def summary(self) -> Table:
        """The table has a line per effect: mean, 95 % interval, p and number of images."""
        rows = []
        for name, effect in (("fall", self.plain), ("fall less controls", self.cover), ("pasted rise", self.paste)):
            if len(effect.values):
                cell = bracketed(effect.mean, effect.low, effect.high)
                rows.append([name, cell, number(effect.p), str(len(effect.values))])
        return ["effect", "mean [95 %]", "p", "images"], [*rows, ["decisions changed", f"{self.changed:.0%}", "", ""]]

    def description(self) -> dict[str, Any]:
        """The dict holds the numbers as plain JSON values."""
        effects = {"plain": self.plain, "cover": self.cover, "paste": self.paste}
        head, rows = self.table()
        return {
            "changed": self.changed,
            "forwards": self.forwards,
            "images": [dict(zip(head, row, strict=True)) for row in rows],
        } | {
            name: {
                key: None if math.isnan(value := getattr(effect, key)) else value
                for key in ("mean", "low", "high", "p")
            }
            for name, effect in effects.items()
        }

    def sheet(self) -> Image.Image:
        """Draws the first images, before in the upper row and after in the lower one."""
        from konkyo.evaluation.diagnose.evidence import beside  # pictures are drawn only when a user wants them

        pairs = [[_picture(self.model, image) for image in pair] for pair in self.shown]
        return beside([[pair[side] for pair in pairs] for side in (0, 1)])


@dataclass(frozen=True, eq=False)
class _Pool:
    """All images (n, C, H, W) of the data, and the model that runs them."""

    model: Model
    all: Tensor
    batch: int
    seed: int

    def images(self, indices: Sequence[int], /) -> Tensor:
        return self.all[list(indices)]

    def probabilities_of(self, images: Tensor, /) -> Tensor:
        session = untouched(self.model.module, self.seed)
        with torch.no_grad(), silenced(), session, session:  # twice: see `Session`
            parts = torch.split(self.model.prepared(images), self.batch)
            return torch.cat([probabilities(self.model, Pass(self.model, part).output).cpu() for part in parts])


def region_test(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples | Batches,
    region: Region,
    *,
    target: str | int = "label",
    fill: str = "swap",
    controls: int = 8,
    limit: int | None = None,
    budget: int = BUDGET,
    batch: int = 32,
    resamples: int = 1000,
    seed: int = 0,
) -> RegionTest:
    """The result says how far P falls when a region of the images is covered, and rises where it is pasted.

    `data`: images with labels, as `konkyo.evaluate` takes them, or batches (images, labels); all of one size once they
    are prepared. `region`: see `region_mask`. `target`: "label", "decision" (needs no labels), or one class.
    `fill`: "swap" takes the same region of an image of another class; "blur", "mean" and "noise" are off what a network
    has seen. `controls`: the same shape at so many other places is covered as well. A region is pasted `budget` times
    for one class, and as often in all for "label". n (2 + controls) + 2 x budget forwards.

    KonkyoError: no classifier, no image, images of several sizes, an unknown region, fill or class.
    """
    adapted = as_model(model)
    if not isinstance(adapted.task, ClassificationTask):
        raise KonkyoError(f"{adapted.name} is a {adapted.task.noun}; regions are tested of a classifier")
    fill_of(fill)
    if isinstance(data, (str, Path, Samples, Scenes)):
        chosen = samples(data, limit=limit, seed=seed)
        source = Source.of_samples(adapted, chosen, batch, labelled=target != "decision")
    else:
        source = Source.of(adapted, data, limit, batch, seed)
    batches = list(source.batches)
    if not batches:
        raise KonkyoError("no image came from the data")
    sizes = {tuple(part.images.shape[1:]) for part in batches}
    if len(sizes) > 1:
        raise KonkyoError(f"images of one size were expected, as --resize HEIGHTxWIDTH gives; got {sorted(sizes)}")
    names = [name for part in batches for name in part.names]
    true = torch.cat([part.labels for part in batches])
    pool = _Pool(adapted, torch.cat([part.images for part in batches]), batch, seed)
    mask = region_mask(region, (pool.all.shape[2], pool.all.shape[3]))
    before, generator = pool.probabilities_of(pool.all).double(), torch.Generator().manual_seed(seed)
    labels = torch.where(true == UNKNOWN, before.argmax(1), true).tolist()
    rows, aims = _covered(adapted, target, labels, before)
    others = one_of_another_class(rows, labels, generator) if fill == "swap" else rows
    cover = Cover(rows, aims, mask.expand(len(rows), *mask.shape), others, before[rows], fill, controls)
    covered = cover.run(pool, generator, batch)
    paste, pastes = _pasted(pool, rows, labels, before, mask, budget, generator, resamples, seed)
    count = min(6, len(rows))
    filled = fill_of(fill)(pool.images(rows[:count]), pool.images(others[:count]), generator)
    shown = tuple((pool.all[i], torch.where(mask, f, pool.all[i])) for i, f in zip(rows, filled, strict=False))
    return RegionTest(
        adapted.classes or tuple(f"class {i}" for i in range(before.shape[1])),
        tuple(names[i] for i in rows),
        covered.classes,
        covered.before,
        covered.after,
        Effect.of(covered.falls, resamples, seed),
        Effect.of(covered.plain_falls, resamples, seed),
        paste,
        mask,
        shown,
        len(names) + cover.forwards + pastes,
        adapted,
    )


def _covered(model: Model, target: str | int, labels: Sequence[int], before: Tensor) -> tuple[list[int], list[int]]:
    """Returns the images that are covered, and the class of each that is asked about."""
    if target == "label":
        return list(range(len(labels))), list(labels)
    if target == "decision":
        return list(range(len(labels))), before.argmax(1).tolist()
    label = model.class_index(target) if isinstance(target, str) else target
    rows = [i for i, other in enumerate(labels) if other == label]
    if not rows:
        raise KonkyoError(f"no image of class {target!r} is in the data")
    return rows, [label] * len(rows)


def _pasted(
    pool: _Pool,
    rows: Sequence[int],
    labels: Sequence[int],
    before: Tensor,
    mask: Tensor,
    budget: int,
    generator: torch.Generator,
    resamples: int,
    seed: int,
) -> tuple[Effect, int]:
    """Returns the effect of pasting the region of images of each class into others, and the forwards that it took."""
    of_class = {label: [i for i in rows if labels[i] == label] for label in dict.fromkeys(labels[i] for i in rows)}
    rises, forwards = list[float](), 0
    for label, sources in of_class.items():
        count = max(1, budget // len(of_class))
        froms, hosts, thirds = partners(sources, labels, label, count, generator)
        if not hosts:
            continue
        regions = mask.expand(len(hosts), *mask.shape)
        plan = Paste(froms, hosts, thirds, regions, before[hosts, label].numpy(), label)
        result = plan.run(pool, pool.batch)
        rises += result.by_source(result.rises).tolist()
        forwards += plan.forwards
    return Effect.of(rises, resamples, seed), forwards


def _picture(model: Model, image: Tensor) -> Image.Image:
    """Returns a prepared image (C, H, W) as a picture."""
    image = image.float().cpu()
    shown = model.preprocess.undo(image[None])[0] if model.preprocess is not None else image.clamp(0, 1)
    pixels = np.asarray((shown * 255).round().byte().permute(1, 2, 0)).squeeze()
    return Image.fromarray(pixels).convert("RGB")
