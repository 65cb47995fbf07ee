"""Integration: gradients along the straight path from a baseline to the image, added up at every level of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from konkyo.engine.forward import Pass, Rows, rows_by_image
from konkyo.engine.layer import Layer
from konkyo.engine.path import Lookahead, Node, PathTrace, Sampling, Track, traced, trapezoid
from konkyo.engine.variants import Footprint, Variants
from konkyo.targets.base import Target, as_target


@dataclass(eq=False)
class Integral:
    """An integral is what adds up along the paths of all rows from a baseline."""

    of: tuple[Sampling, bool]
    """The sampling, and whether the integral is over the activations."""
    baseline: Tensor
    values: list[Tensor]
    """(N, C, *grid) of every level."""
    trace: PathTrace
    largest: Tensor
    """(N,) the largest absolute gradient of every row, integrated over the path or at its nodes."""


@dataclass(eq=False)
class Pyramid:
    """A pyramid holds the levels of a layer, and what was integrated for all of them at once."""

    levels: tuple[Layer, ...]
    integrals: list[Integral] = field(default_factory=list)


class Integration:
    """Integrates the gradients of rows along their paths, for all levels of a pyramid at once."""

    def __init__(
        self, pass_: Pass, rows: Rows, targets: Sequence[Target], pyramid: Pyramid, variants: Variants
    ) -> None:
        self._pass, self._rows, self._targets, self._pyramid = pass_, rows, tuple(targets), pyramid
        self._variants = variants

    def of(self, layer: Layer, baseline: Tensor, sampling: Sampling, by_activations: bool) -> Tensor:
        """Returns the integral at one level (N, C, *grid); the first call computes it for all levels."""
        known, settings = self._pyramid.integrals, (sampling, by_activations)
        integral = next((i for i in known if i.of == settings and torch.equal(i.baseline, baseline)), None)
        if integral is None:
            integral = self._integrated(baseline, sampling, by_activations)
            known.append(integral)
        return integral.values[self._pyramid.levels.index(layer)]

    def _integrated(self, baseline: Tensor, sampling: Sampling, by_activations: bool) -> Integral:
        """Computes the integral for all levels, image by image, until the paths are complete or progress says stop."""
        tracks = [Track() for _ in self._rows]
        sums = [_Sum(track, by_activations) for track in tracks]
        groups, footprint = rows_by_image(self._rows), Footprint()
        total = sampling.nodes * len(groups)
        for done, group in enumerate(groups):
            nodes = partial(self._nodes, baseline[group[0]], by_activations=by_activations, footprint=footprint)
            if sampling.adaptive:
                self._halve({row: tracks[row] for row in group}, sampling, nodes, done * sampling.nodes, total)
                for row in group:
                    sums[row].add_all()
            else:
                weights = dict(zip(sampling.first, trapezoid(torch.tensor(sampling.first)).tolist(), strict=True))
                for alpha, row, node in nodes(dict.fromkeys(sampling.first, group)):
                    sums[row].add_next(alpha, node, weights[alpha])
                    if row == group[-1]:
                        self._variants.report(done * sampling.nodes + len(tracks[row].nodes), total)
        values = [torch.stack(level) for level in zip(*(part.levels for part in sums), strict=True)]
        largest = torch.stack([part.largest() for part in sums])
        return Integral((sampling, by_activations), baseline, values, traced(tracks, sampling), largest)

    def _halve(self, tracks: dict[int, Track], sampling: Sampling, nodes: _Nodes, before: int, total: int) -> None:
        """Halves intervals on the paths of one image's rows until they are complete or progress says stop."""
        lookahead = Lookahead(tracks, sampling)
        while places := lookahead.places():
            for part in _parts(places):
                for alpha, row, node in nodes(part):
                    # A node that shares memory with others would keep theirs.
                    copy = replace(node, gradients=[g.clone() for g in node.gradients])
                    lookahead.add(row, alpha, copy)
            lookahead.advance()
            if self._variants.report(before + min(len(track.nodes) for track in tracks.values()), total):
                break

    def _nodes(
        self, start: Tensor, places: dict[float, list[int]], by_activations: bool, footprint: Footprint
    ) -> Iterator[tuple[float, int, Node]]:
        """Yields (alpha, row, node) for every place and the rows that want it, with a forward for every place."""
        levels, alphas = self._pyramid.levels, list(places)
        image = self._pass.images[self._rows[places[alphas[0]][0]]]

        def points(k: Tensor) -> tuple[Tensor]:
            share = image.new_tensor([alphas[i] for i in k.tolist()])
            # lerp gives exactly the image at 1
            return (torch.lerp(start, image, share.view(-1, *[1] * image.ndim)),)

        def visit(variants: Tensor) -> Pass:
            with self._pass.forwards():
                return Pass(self._pass.network, variants, levels, differentiable=levels)

        order = torch.arange(len(alphas), device=image.device)
        for chunk, pass_ in self._variants.chunked(order, points, visit, graph=True, footprint=footprint):
            here = [alphas[k] for k in chunk.tolist()]
            rows = sorted({row for alpha in here for row in places[alpha]})
            targets = [self._targets[row] for row in rows]
            of_rows = [[v for v, alpha in enumerate(here) if row in places[alpha]] for row in rows]
            activations = [pass_.activations(level) for level in levels] if by_activations else []
            output = pass_.output.detach()
            of_targets = pass_.gradients_of_each(targets, of_rows, levels)
            for row, target, of, (values, gradients) in zip(rows, targets, of_rows, of_targets, strict=True):
                boxes = as_target(target).matched_boxes(output[of])
                for v, score, box, grids in zip(of, values.tolist(), boxes, gradients, strict=True):
                    yield here[v], row, Node(grids, [a[v] for a in activations], score, box)


_Nodes: TypeAlias = Callable[[dict[float, list[int]]], Iterator[tuple[float, int, Node]]]


def _parts(places: dict[float, list[int]]) -> list[dict[float, list[int]]]:
    """Divides the places into parts that run together, at the least cost.

    Gradients take as many walks through a part's graph as rows want its most wanted place, each through all places. A
    walk has the cost of one place more; a forward has that of two. (What the first costs was measured on a CPU.)
    """
    order = sorted(places, key=lambda alpha: -len(places[alpha]))
    costs, starts = [0], [0]
    for end in range(1, len(order) + 1):
        walks = [len(places[order[start]]) for start in range(end)]
        choices = [(costs[start] + 2 + walks[start] * (end - start + 1), start) for start in range(end)]
        cost, start = min(choices)
        costs.append(cost)
        starts.append(start)
    parts, end = list[dict[float, list[int]]](), len(order)
    while end:
        parts.append({alpha: places[alpha] for alpha in order[starts[end] : end]})
        end = starts[end]
    return parts[::-1]


class _Sum:
    """This adds up gradients along one row's path, a grid per level."""

    def __init__(self, track: Track, by_activations: bool) -> None:
        self._track, self._by_activations = track, by_activations
        self.levels: list[Tensor] = []
        self._peaks: list[Tensor] = []

    def largest(self) -> Tensor:
        """Returns the largest absolute gradient, () of all levels."""
        peaks = self._peaks or [level.abs().amax() for level in self.levels]
        return torch.stack([peak.to(peaks[0]) for peak in peaks]).amax()

    def add_next(self, alpha: float, node: Node, weight: float) -> None:
        """Adds the next node of a path whose nodes come in order: of those before, only the last one holds grids."""
        nodes = self._track.nodes
        last = next(reversed(nodes), None)
        nodes[alpha] = node
        self._add(node, None if last is None else nodes[last], weight)
        if last is not None:
            self._track.distance(last, alpha)
            nodes[last].gradients, nodes[last].activations = [], []

    def add_all(self) -> None:
        """Adds all nodes of the path."""
        alphas, before = self._track.alphas, None
        for alpha, weight in zip(alphas, trapezoid(torch.tensor(alphas)).tolist(), strict=True):
            node = self._track.nodes[alpha]
            self._add(node, before, weight)
            before = node

    def _add(self, node: Node, before: Node | None, weight: float) -> None:
        parts = [g * weight for g in node.gradients]
        if self._by_activations:
            self._peaks += [g.abs().amax() for g in node.gradients]  # what is integrated is 0 also where they are not
            earlier = node if before is None else before
            pairs = zip(node.gradients, earlier.gradients, strict=True)
            steps = zip(node.activations, earlier.activations, strict=True)
            parts = [(g + h) / 2 * (a - b) for (g, h), (a, b) in zip(pairs, steps, strict=True)]
        self.levels = [t + p for t, p in zip(self.levels, parts, strict=True)] if self.levels else parts
