"""Integration: gradients along the straight path from a baseline to the image, added up at every level of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from konkyo.engine.forward import Pass, Rows, rows_by_image, score_of
from konkyo.engine.layer import Layer
from konkyo.engine.path import Node, PathTrace, Sampling, Track, traced, trapezoid
from konkyo.engine.variants import Variants
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
        groups = rows_by_image(self._rows)
        total = sampling.nodes * len(groups)
        weights = dict(zip(sampling.first, trapezoid(torch.tensor(sampling.first)).tolist(), strict=True))
        for done, group in enumerate(groups):
            spare: dict[tuple[int, float], Node] = {}  # what one row asked for and another may need later
            while places := {row: alphas for row in group if (alphas := tracks[row].next_places(sampling))}:
                for row, alpha in [(row, alpha) for row, alphas in places.items() for alpha in alphas]:
                    if (row, alpha) in spare:
                        tracks[row].nodes[alpha] = spare.pop((row, alpha))
                missing = sorted({a for row, alphas in places.items() for a in alphas if a not in tracks[row].nodes})
                for alpha, row, node in self._nodes(group, missing, baseline, by_activations):
                    if alpha not in places.get(row, ()):
                        spare[row, alpha] = node
                    elif sampling.adaptive:
                        tracks[row].nodes[alpha] = node
                    else:
                        sums[row].add_next(alpha, node, weights[alpha])
                if self._variants.report(done * sampling.nodes + len(tracks[group[0]].nodes), total):
                    break
            for row in group if sampling.adaptive else ():
                sums[row].add_all()
        values = [torch.stack(level) for level in zip(*(part.levels for part in sums), strict=True)]
        return Integral((sampling, by_activations), baseline, values, traced(tracks, sampling))

    def _nodes(
        self, rows: Sequence[int], alphas: Sequence[float], baseline: Tensor, by_activations: bool
    ) -> Iterator[tuple[float, int, Node]]:
        """Yields (alpha, row, node) for all rows of one image, with a forward for every alpha."""
        levels, start = self._pyramid.levels, baseline[rows[0]]
        image = self._pass.images[self._rows[rows[0]]]
        targets = [self._targets[row] for row in rows]

        def points(k: Tensor) -> tuple[Tensor]:
            share = image.new_tensor([alphas[i] for i in k.tolist()])
            # lerp gives exactly the image at 1
            return (torch.lerp(start, image, share.view(-1, *[1] * image.ndim)),)

        def visit(variants: Tensor) -> Pass:
            with self._pass.forwards():
                return Pass(self._pass.network, variants, levels, differentiable=levels)

        order = torch.arange(len(alphas), device=image.device)
        for chunk, pass_ in self._variants.chunked(order, points, visit, graph=True):
            activations = [pass_.activations(level) for level in levels] if by_activations else []
            output = pass_.output.detach()
            of_targets = pass_.gradients_of_each(targets, levels)
            for row, target, gradients in zip(rows, targets, of_targets, strict=True):
                scores, boxes = score_of(output, target).tolist(), as_target(target).matched_boxes(output)
                for v, k in enumerate(chunk.tolist()):
                    grids = [g[v] for g in gradients], [a[v] for a in activations]
                    yield alphas[k], row, Node(*grids, scores[v], boxes[v])


class _Sum:
    """This adds up gradients along one row's path, a grid per level."""

    def __init__(self, track: Track, by_activations: bool) -> None:
        self._track, self._by_activations = track, by_activations
        self.levels: list[Tensor] = []

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
            earlier = node if before is None else before
            pairs = zip(node.gradients, earlier.gradients, strict=True)
            steps = zip(node.activations, earlier.activations, strict=True)
            parts = [(g + h) / 2 * (a - b) for (g, h), (a, b) in zip(pairs, steps, strict=True)]
        self.levels = [t + p for t, p in zip(self.levels, parts, strict=True)] if self.levels else parts
