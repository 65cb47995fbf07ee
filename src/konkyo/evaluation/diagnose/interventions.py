"""Covering and pasting regions: what it does to the probability of a class, image by image, beside what chance does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation.diagnose.chance import Values, interval_of_mean, sign_flips

Fill: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(images, images of other classes, random numbers), (m, C, H, W) each -> what a covered region is filled with."""
_BLUR = 0.12
"""The standard deviation of a blur, as a share of the side."""


class Images(Protocol):
    """Prepared images by their indices, and what a model makes of them."""

    def images(self, indices: Sequence[int], /) -> Tensor:
        """Returns images (m, C, H, W)."""
        ...

    def probabilities_of(self, images: Tensor, /) -> Tensor:
        """Returns the probabilities (m, K)."""
        ...


# --- fills ------------------------------------------------------------------------------------------------------------


def _swap(_images: Tensor, others: Tensor, _generator: torch.Generator) -> Tensor:
    """Takes the same region of an image of another class: nothing that no picture shows."""
    return others


def _blur(images: Tensor, _others: Tensor, _generator: torch.Generator) -> Tensor:
    """Blurs the image by a Gaussian of an eighth of its side."""
    result = images.float()
    for axis in (-2, -1):
        size = images.shape[axis]
        at = torch.arange(size, device=images.device, dtype=torch.float32)
        weights = torch.exp(-((at[:, None] - at) ** 2) / (2 * (_BLUR * size) ** 2))
        weights = weights / weights.sum(1, keepdim=True)
        result = torch.einsum("ij,nchj->nchi" if axis == -1 else "ij,ncjw->nciw", weights, result)
    return result.to(images.dtype)


def _mean(images: Tensor, _others: Tensor, _generator: torch.Generator) -> Tensor:
    """Takes the image's mean colour."""
    return images.mean((-2, -1), keepdim=True).expand_as(images)


def _noise(images: Tensor, _others: Tensor, generator: torch.Generator) -> Tensor:
    """Draws noise with the mean and the deviation of each of the image's channels."""
    noise = torch.randn(images.shape, generator=generator).to(images)
    return images.mean((-2, -1), keepdim=True) + images.std((-2, -1), keepdim=True) * noise


FILLS: dict[str, Fill] = {"swap": _swap, "blur": _blur, "mean": _mean, "noise": _noise}
"""What a region can be covered with."""


def fill_of(name: str) -> Fill:
    """Returns a fill by its name. KonkyoError: no such fill."""
    if name not in FILLS:
        raise unknown("fill", name, FILLS)
    return FILLS[name]


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Effect:
    """An effect is a mean over n images, with its 95 % interval and a p-value by sign flips. NaN: not known."""

    values: Values
    """(n,) of every image."""
    mean: float
    low: float
    """Of the 95 % interval, by resampling the images."""
    high: float
    p: float
    """How probable so high a mean is if every image's value could as well have the other sign."""

    @classmethod
    def of(cls, values: Sequence[float] | Values, resamples: int = 1000, seed: int = 0) -> Effect:
        """Measures the values of n images."""
        known = np.asarray(values, dtype=np.float64)
        if not len(known):
            return cls(known, *(math.nan,) * 4)
        low, high = interval_of_mean(known, resamples, seed)
        p = float(sign_flips(known[:, None], resamples, seed)[0][0]) if len(known) > 1 and resamples else math.nan
        return cls(known, float(known.mean()), low, high, p)


# --- covering ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Covered:
    """What covering a region does to n images."""

    before: Tensor
    """(n, K) probabilities."""
    after: Tensor
    """(n, K) with the region covered."""
    controls: Tensor
    """(n, c, K) with the region moved elsewhere covered instead."""
    classes: Tensor
    """(n,) the classes that are asked about."""

    @property
    def falls(self) -> Values:
        """Returns the fall of P of the class (n,), minus the mean fall of the controls."""
        falls = self.plain_falls
        return falls - self.control_falls if self.controls.shape[1] else falls

    @property
    def plain_falls(self) -> Values:
        """Returns the fall of P of the class (n,) itself."""
        return (_of(self.before, self.classes) - _of(self.after, self.classes)).numpy()

    @property
    def control_falls(self) -> Values:
        """Returns the mean fall (n,) of P of the class with the region elsewhere; NaN without controls."""
        n, c, k = self.controls.shape
        controls = _of(self.controls.reshape(n * c, k), self.classes.repeat_interleave(c)).view(n, c)
        return (_of(self.before, self.classes) - controls.mean(1)).numpy()


@dataclass(frozen=True, eq=False)
class Cover:
    """A plan of covering: which images, where, and with what."""

    rows: Sequence[int]
    classes: Sequence[int]
    """Of every row, the class that is asked about."""
    regions: Tensor
    """(n, H, W) bool."""
    others: Sequence[int]
    """Of every row, the image of another class that a swap takes."""
    before: Tensor
    """(n, K) the probabilities of the images as they are."""
    fill: str = "swap"
    controls: int = 8

    @property
    def forwards(self) -> int:
        """Returns how many images are run."""
        return len(self.rows) * (1 + self.controls)

    def run(self, pool: Images, generator: torch.Generator, batch: int = 32) -> Covered:
        """Covers the regions, and the same regions elsewhere."""
        fill, kinds = fill_of(self.fill), 1 + self.controls
        outputs = list[Tensor]()
        for start in range(0, len(self.rows), step := max(1, batch // kinds)):
            chosen = slice(start, start + step)
            images, others = pool.images(self.rows[chosen]), pool.images(self.others[chosen])
            filled = fill(images, others, generator)
            regions = [torch.stack([r, *moved(r, self.controls, generator)]) for r in self.regions[chosen]]
            where = torch.stack(regions).to(images.device)[:, :, None]
            changed = torch.where(where, filled[:, None], images[:, None])
            outputs.append(pool.probabilities_of(changed.flatten(0, 1)).double().cpu())
        after = torch.cat(outputs).view(len(self.rows), kinds, -1)
        return Covered(self.before.double(), after[:, 0], after[:, 1:], torch.tensor(list(self.classes)))


def moved(region: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Draws `count` regions of the same shape (H, W) elsewhere: no more than half of one lies on the region itself.

    A region that fills the image from side to side, such as a border, is moved across the edges to the other side.
    Where nothing overlaps little enough, the region of the least overlap of 20 drawn is taken.
    """
    height, width = region.shape
    rows, columns = region.any(1).nonzero()[:, 0], region.any(0).nonzero()[:, 0]
    if not len(rows):
        return [region.clone() for _ in range(count)]
    down = (-int(rows[0]), height - 1 - int(rows[-1]))
    across = (-int(columns[0]), width - 1 - int(columns[-1]))
    places = (down[1] - down[0] + 1) * (across[1] - across[0] + 1)
    if places < 4:
        down, across = (0, height - 1), (0, width - 1)
    area, result = int(region.sum()), list[Tensor]()
    for _ in range(count):
        best: tuple[int, Tensor] | None = None
        for _ in range(20):
            shift = [int(torch.randint(low, high + 1, (), generator=generator)) for low, high in (down, across)]
            other = torch.roll(region, shift, (0, 1))
            overlap = int((other & region).sum())
            if best is None or overlap < best[0]:
                best = overlap, other
            if 2 * overlap <= area:
                break
        assert best is not None  # 20 were drawn
        result.append(best[1])
    return result


# --- pasting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pasted:
    """What pasting regions into other images does to the probability of a class, for m pastes."""

    before: Values
    """(m,) P of the class in the image that is pasted into."""
    after: Values
    """(m,) with the region of an image of the class."""
    control: Values
    """(m,) with the same region of an image of a third class; NaN without."""
    sources: tuple[int, ...]
    """(m,) the images that the regions are of."""

    @property
    def rises(self) -> Values:
        """Returns the rise (m,) of P of the class, minus that by the region of a third class."""
        return self.after - np.where(np.isnan(self.control), self.before, self.control)

    def by_source(self, values: Values) -> Values:
        """Returns the mean of values (m,) over the pastes of each source image, in the order of the first pastes."""
        order = dict.fromkeys(self.sources)
        sources = np.array(self.sources)
        return np.array([values[sources == source].mean() for source in order])


@dataclass(frozen=True, eq=False)
class Paste:
    """A plan of pasting: m times the region of a source, and that of a third image, into a host."""

    sources: Sequence[int]
    hosts: Sequence[int]
    thirds: Sequence[int]
    """Empty: no controls."""
    regions: Tensor
    """(m, H, W) bool."""
    before: Values
    """(m,) P of the class in the hosts."""
    label: int
    """The class that is asked about."""

    @property
    def forwards(self) -> int:
        """Returns how many images are run."""
        return len(self.hosts) + len(self.thirds)

    def run(self, pool: Images, batch: int = 32) -> Pasted:
        """Pastes the regions."""
        sides = [self.sources, self.thirds] if len(self.thirds) else [self.sources]
        values: list[list[Tensor]] = [[] for _ in sides]
        for start in range(0, len(self.hosts), step := max(1, batch // len(sides))):
            chosen = slice(start, start + step)
            hosts = pool.images(self.hosts[chosen])
            where = self.regions[chosen].to(hosts.device)[:, None]
            changed = [torch.where(where, pool.images(side[chosen]), hosts) for side in sides]
            outputs = pool.probabilities_of(torch.cat(changed)).double().cpu()[:, self.label]
            for part, output in zip(values, torch.split(outputs, len(hosts)), strict=True):
                part.append(output)
        after, *control = [torch.cat(part).numpy() if part else np.zeros(0) for part in values]
        return Pasted(
            np.asarray(self.before),
            after,
            control[0] if control else np.full(len(after), math.nan),
            tuple(self.sources),
        )


def partners(
    sources: Sequence[int], labels: Sequence[int], label: int, count: int, generator: torch.Generator
) -> tuple[list[int], list[int], list[int]]:
    """Draws `count` pastes of a class: (sources in turn, hosts of other classes, images of a third class).

    No host comes twice as long as there are others. Without a third class there are no thirds.
    """
    others = [i for i, other in enumerate(labels) if other != label]
    if not others or not sources:
        return [], [], []
    order = [others[i] for i in torch.randperm(len(others), generator=generator).tolist()]
    hosts = [order[i % len(order)] for i in range(count)]
    thirds = list[int]()
    for host in hosts:
        third = [i for i in others if labels[i] != labels[host]]
        if not third:
            return [sources[i % len(sources)] for i in range(count)], hosts, []
        thirds.append(third[int(torch.randint(len(third), (), generator=generator))])
    return [sources[i % len(sources)] for i in range(count)], hosts, thirds


def one_of_another_class(rows: Sequence[int], labels: Sequence[int], generator: torch.Generator) -> list[int]:
    """Draws for every row an image of another class. KonkyoError: all are of one class."""
    result = list[int]()
    for row in rows:
        others = [i for i, label in enumerate(labels) if label != labels[row]]
        if not others:
            raise KonkyoError(
                "a swap takes regions from images of other classes, and all images are of one; fill='blur', 'mean' or "
                "'noise' needs none"
            )
        result.append(others[int(torch.randint(len(others), (), generator=generator))])
    return result


def _of(probabilities: Tensor, classes: Tensor) -> Tensor:
    return probabilities.gather(1, classes[:, None])[:, 0]
