"""Which classes rest on a place: maps propose a window, and covering and pasting it decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from konkyo.data.samples import Box
from konkyo.evaluation.diagnose.chance import joint_p
from konkyo.evaluation.diagnose.changed import images_of_one_size
from konkyo.evaluation.diagnose.collected import Collected, CueRule
from konkyo.evaluation.diagnose.findings import Severity
from konkyo.evaluation.diagnose.interventions import Cover, Effect, Paste, one_of_another_class, partners

LEAST_IMAGES, LEAST_CELLS, LEAST_CLASSES = 6, 6, 4
CONTROLS, HOSTS = 8, 16


RULE = CueRule()


@dataclass(frozen=True)
class Window:
    """A window of cells of the grid: rows from `top`, columns from `left`."""

    top: int
    left: int
    height: int
    width: int

    def box(self, grid: Sequence[int], size: Sequence[int]) -> Box:
        """Returns it on an image of size (height, width), xyxy in pixels."""
        down, across = size[0] / grid[0], size[1] / grid[1]
        return (
            float(round(self.left * across)),
            float(round(self.top * down)),
            float(round((self.left + self.width) * across)),
            float(round((self.top + self.height) * down)),
        )

    def mask(self, grid: Sequence[int], size: Sequence[int]) -> Tensor:
        """Returns it on an image of size (height, width). -> (H, W) bool"""
        x0, y0, x1, y1 = (int(v) for v in self.box(grid, size))
        result = torch.zeros(*size[:2], dtype=torch.bool)
        result[y0:y1, x0:x1] = True
        return result

    def middle(self, grid: Sequence[int]) -> tuple[float, float]:
        """Returns x and y of its middle, as shares of the width and the height."""
        return (self.left + self.width / 2) / grid[1], (self.top + self.height / 2) / grid[0]


def shares(maps: Tensor) -> Tensor:
    """Returns which share of each map (k, h, w) lies in each window of round(h/4) x round(w/4) cells.

    -> (k, h', w'): an entry per place of the window's upper left cell. Maps are not negative; blank maps give zeros.
    """
    size = window_size(maps.shape[1:])
    sums = torch.nn.functional.avg_pool2d(maps.double()[:, None], size, 1)[:, 0] * size[0] * size[1]
    totals = maps.double().sum((1, 2), keepdim=True)
    return torch.where(totals > 0, sums / totals.clamp_min(1e-12), 0.0)


def window_size(grid: Sequence[int]) -> tuple[int, int]:
    """Returns the (height, width) of a window in cells: a quarter of the grid."""
    return max(1, round(grid[0] / 4)), max(1, round(grid[1] / 4))


def hottest(share: Tensor, grid: Sequence[int]) -> Window:
    """Returns the window with the largest share (h', w') of a map."""
    place = int(share.flatten().argmax())
    return Window(place // share.shape[1], place % share.shape[1], *window_size(grid))


def excesses(mean_maps: Tensor) -> Tensor:
    """Returns the excess of each class's mean map (k, h, w): how much more a window has than in the other classes.

    It is the largest, over windows, of the share of the map minus the median share of the other classes. -> (k,)
    """
    share = shares(mean_maps)
    if len(share) < 2:
        return torch.full((len(share),), math.nan, dtype=torch.float64)
    rows = range(len(share))
    medians = torch.stack([torch.quantile(share[[j for j in rows if j != i]], 0.5, dim=0) for i in rows])
    return (share - medians).flatten(1).amax(1)


@dataclass(frozen=True, eq=False)
class CueTest:
    """The test of one class. NaN stands for what is not known."""

    label: int
    rows: tuple[int, ...]
    """The images that were covered, or would have been."""
    n: int
    """Images of the class."""
    excess: float
    share: float
    """Of the class's mean map in the window."""
    window: Window
    mean_map: Tensor
    """(h, w)"""
    cover: Effect
    paste: Effect
    paste_own: Effect
    """As `paste`, with every image's own hottest window at its own place."""
    p: float
    """The larger of the p-values of cover and paste, adjusted for all classes."""
    cost: int
    shown: tuple[tuple[Tensor, Tensor], ...] = field(default=())
    """Images and the same with the window covered."""
    unknown: str = ""
    """Why it could not be tested: "images", "cells", "classes"."""

    def severity(self, alpha: float, rule: CueRule = RULE) -> Severity:
        """Returns how bad it is by a rule.

        "high": a concentrated map, and effects that are large and not chance. "medium": the three effects are as large
        as the rule asks; few images may leave a chance. "low": the map is concentrated and the scores hardly move.
        """
        if self.unknown:
            return "unknown"
        if self.cover.mean >= rule.cover and self.paste.mean >= rule.paste and self.excess >= rule.medium:
            return "high" if self.excess >= rule.high and self.p <= alpha else "medium"
        return "low" if self.excess >= rule.high else "ok"


def cue_cost(collected: Collected) -> int:
    """Returns how many images `cue_tests` runs forward."""
    if collected.labels is None:
        return 0
    budget = collected.settings.budget
    counts = [len(collected.of_class(index)) for index in collected.subjects]
    cost = sum((1 + CONTROLS) * min(n, budget) + 4 * budget for n in counts if n >= LEAST_IMAGES)
    return cost + (0 if collected.train is None else cue_cost(collected.train))


def cue_tests(collected: Collected) -> tuple[CueTest, ...]:
    """Tests every class that is asked about, once; needs labels.

    Maps are those of the labels; the mean map of a class is that of all its images, decided rightly or not.
    """
    return collected.once("cue", lambda: _cue_tests(collected))


def _cue_tests(collected: Collected) -> tuple[CueTest, ...]:
    maps, grid = collected.unit_maps.clamp_min(0), collected.grid
    present = collected.present
    means = torch.stack([maps[collected.of_class(index)].mean(0) for index in present])
    excess, share = excesses(means), shares(means)
    tests = []
    for place, index in enumerate(present):
        if index not in collected.subjects:
            continue
        window = hottest(share[place], grid)
        nothing = Effect.of([])
        test = CueTest(
            index, (), len(collected.of_class(index)), float(excess[place]), float(share[place].max()), window,
            means[place], nothing, nothing, nothing, math.nan, 0,
        )  # fmt: skip
        least = max(LEAST_IMAGES, math.ceil(-math.log2(collected.settings.alpha)))
        if len(present) < 2:
            tests.append(replace(test, unknown="classes"))
        elif min(grid) < LEAST_CELLS:
            tests.append(replace(test, unknown="cells"))
        elif test.n < least:
            tests.append(replace(test, unknown="images"))
        else:
            tests.append(_intervened(collected, test))
    return _adjusted(collected, tests)


def _adjusted(collected: Collected, tests: Sequence[CueTest]) -> tuple[CueTest, ...]:
    """Returns the tests with p-values for all of them together."""
    places = [i for i, test in enumerate(tests) if not test.unknown]
    resamples, result = collected.settings.resamples, list(tests)
    ps = [
        joint_p([getattr(tests[i], name).values for i in places], resamples, collected.random_seed(f"cue/{name}"))
        for name in ("cover", "paste")
    ]
    for place, cover, paste in zip(places, *ps, strict=True):
        result[place] = replace(tests[place], p=max(cover, paste))
    return tuple(result)


def _intervened(collected: Collected, test: CueTest) -> CueTest:
    """Covers and pastes the window of a class."""
    settings, use, label = collected.settings, f"cue/{test.label}", test.label
    generator, labels = collected.generator(use), collected.true_labels.tolist()
    pool = images_of_one_size(collected, len(collected), "cue/sizes")
    of_class = [i for i in pool if labels[i] == label]
    rows = images_of_one_size(collected, settings.budget, use, of_class)
    pool_labels = [labels[i] for i in pool]
    size = tuple(collected.image(rows[0]).shape[1:])
    mask = test.window.mask(collected.grid, size)
    places = [pool.index(row) for row in rows]
    others = [pool[j] for j in one_of_another_class(places, pool_labels, generator)]
    regions = mask.expand(len(rows), *size)
    plan = Cover(rows, [label] * len(rows), regions, others, collected.probabilities[rows], controls=CONTROLS)
    covered = plan.run(collected, generator, settings.batch)
    cost, effects, seed = plan.forwards, [], collected.random_seed(use)
    for is_own in (False, True):
        sources, hosts, thirds = (
            [pool[j] for j in side] for side in partners(places, pool_labels, label, settings.budget, generator)
        )
        where = (
            torch.stack([own_window(collected, i).mask(collected.grid, size) for i in sources])
            if is_own
            else mask.expand(len(sources), *size)
        )
        before = collected.probabilities[hosts, label].double().numpy()
        paste = Paste(sources, hosts, thirds, where, before, label)
        pasted = paste.run(collected, settings.batch)
        effects.append(Effect.of(pasted.by_source(pasted.rises), settings.resamples, seed))
        cost += paste.forwards
    strongest = torch.tensor(covered.plain_falls).argsort(descending=True)[:6].tolist()
    shown = tuple(
        (
            collected.images([rows[i]])[0].cpu(),
            torch.where(mask, collected.images([others[i]])[0].cpu(), collected.images([rows[i]])[0].cpu()),
        )
        for i in strongest
    )
    cover = Effect.of(covered.falls, settings.resamples, seed)
    return replace(test, rows=tuple(rows), cover=cover, paste=effects[0], paste_own=effects[1], cost=cost, shown=shown)


def own_window(collected: Collected, index: int) -> Window:
    """Returns the hottest window of an image's own map."""
    return hottest(shares(collected.unit_maps[index : index + 1].clamp_min(0))[0], collected.grid)


def paste_own(collected: Collected, indices: Sequence[int], hosts: int = HOSTS) -> Tensor:
    """Returns the mean rise of P(label) in other classes' images, by each image's own hottest window. -> (m,)

    Each window is pasted at its own place into `hosts` images: m x `hosts` forwards. An image whose window carries its
    class to others may be right for a doubtful reason. NaN: no image of another class has its size.
    """
    labels, rises = collected.true_labels.tolist(), list[float]()
    generator = collected.generator("paste_own")
    order = torch.randperm(len(collected), generator=generator).tolist()
    for number, index in enumerate(indices):
        shape = collected.image(index).shape
        turned = order[number % len(order) :] + order[: number % len(order)]
        into = list[int]()
        for other in turned:
            if len(into) == hosts:
                break
            if labels[other] != labels[index] and collected.image(other).shape == shape:
                into.append(other)
        if not into:
            rises.append(math.nan)
            continue
        mask = own_window(collected, index).mask(collected.grid, tuple(shape[1:]))
        before = collected.probabilities[into, labels[index]].double().numpy()
        plan = Paste([index] * len(into), into, [], mask.expand(len(into), *mask.shape), before, labels[index])
        rises.append(float(plan.run(collected, collected.settings.batch).rises.mean()))
    return torch.tensor(rises, dtype=torch.float64)
