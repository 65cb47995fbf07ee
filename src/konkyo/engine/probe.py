"""Probe: a Pass seen from one target, with all that a method may ask for.

A method names what it needs; the Probe computes it when first asked, and whatever targets and methods can share
belongs to the Pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, wraps
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from konkyo.engine.attention import Attentions, Block, explicit_attention, per_head
from konkyo.engine.capture import measured_outputs
from konkyo.engine.forward import Pass, Rows, columns, of_rows, pick, real, scores
from konkyo.engine.layer import INPUT, MAX_PREFIX_TOKENS, Layer, covers, linear_head
from konkyo.engine.needs import Need, need, needs_of
from konkyo.engine.path import Node, PathTrace, Sampling, Track, traced, trapezoid
from konkyo.engine.replay import Replay
from konkyo.engine.rules import BiasTerm, bias_terms, guided_relus, positive_relevance
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.targets.classes import ClassTarget, Target
from konkyo.targets.detections import InstanceTarget
from konkyo.utils.tensors import grid_mean, safe_divide

Vary: TypeAlias = Callable[[int, Tensor], Tensor]
"""(image index, variant indices (v,)) -> the variants (v, C, *grid)."""


class Rescore(Protocol):
    """`Probe.rescore`, as a method's parameter."""

    def __call__(
        self, count: int, *, inputs: Vary | None = ..., activations: Vary | None = ..., priority: Tensor | None = ...
    ) -> Tensor:
        """Scores of variants (N, count)."""


class Ablate(Protocol):
    """`Probe.ablate`, as a method's parameter."""

    def __call__(self, priority: Tensor | None = ...) -> Tensor:
        """The score without each channel (N, C)."""


Through: TypeAlias = Literal["alpha", "activations"]


class Integrate(Protocol):
    """`Probe.integrate`, as a method's parameter."""

    def __call__(self, baseline: Tensor, sampling: Sampling, *, through: Through = ...) -> Tensor:
        """The gradient at the layer, integrated along the path (N, C, *grid)."""


OtherScore: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(output (N, K), explained score (N,)) -> another score (N,), differentiable."""


class Differentiate(Protocol):
    """`Probe.differentiate`, as a method's parameter."""

    def __call__(self, score: OtherScore) -> Tensor:
        """The other score's gradient (N, C, *grid)."""


class Curvature(Protocol):
    """`Probe.curvature`, as a method's parameter."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """The Hessian times the vectors (N, C, *grid)."""


class Revisit(Protocol):
    """`Probe.revisit`, as a method's parameter."""

    def __call__(self, count: int, *, inputs: Vary) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """(image, variant indices (v,), activations (v, C, *grid), gradients (v, C, *grid)), chunk by chunk."""


class On(Protocol):
    """`Probe.on`, as a method's parameter."""

    def __call__(self, images: Tensor, layer: str | None = ...) -> Probe:
        """A Probe of the same targets on other images."""


ReadTokens: TypeAlias = Literal["mean", "head"]
"""How a block's tokens are scored: their mean in every token's place, or as they stand."""


class BlockGradients(Protocol):
    """`Probe.block_gradients`, as a method's parameter."""

    def __call__(self, tokens: ReadTokens = ...) -> tuple[Tensor, ...]:
        """The gradient of every block's own score at its attention (N, heads, L, L)."""


OnGrid: TypeAlias = Callable[[Tensor], Tensor]
"""`Probe.on_grid`: values per token (N, L) -> (N, *grid)."""


class Regrad(Protocol):
    """`Probe.regrad`, as a method's parameter."""

    def __call__(self, weights: Tensor, *, inputs: Vary | None = ..., activations: Vary | None = ...) -> Tensor:
        """The weighted sum of variants' gradients (N, C, *grid)."""


CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 256 * 2**20, 2 * 2**30
"""Memory that the largest module output of a chunk of variants, with its working space, may take: beyond it larger
batches are no faster. On a GPU no more than half of what is free."""
_WORKING_COPIES = 6  # a convolution holds input, output and a workspace of the order of both


Progress: TypeAlias = Callable[[int, int], object]
"""Called with (variants done, variants in all); what is exactly True stops the run."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Effort:
    """How many variants `rescore` may run for a row (None: all), and who is told after each chunk."""

    budget: int | None = None
    progress: Progress | None = None

    def shared(self, parts: int) -> Effort:
        """The effort of each of so many parts of a map: layers, views."""
        return self if self.budget is None else replace(self, budget=max(1, self.budget // parts))


@dataclass(eq=False)
class Pyramid:
    """The levels of a layer, and what was integrated for all of them at once."""

    levels: tuple[Layer, ...]
    integrals: list[Integral] = field(default_factory=list)


@dataclass(eq=False)
class Integral:
    """What adds up along paths from a baseline."""

    of: tuple[Sampling, bool]
    baseline: Tensor
    values: list[Tensor]
    """(N, C, *grid) of every level."""
    trace: PathTrace


class Probe:
    """A Pass seen from targets, at one layer: R rows, each an image of the Pass and a target of it.

    Its public names are what a method may ask for, each declared by `@need`. `rows` is the image of every row (None:
    one row per image). `knows_target`: whether who asks has been given anything of the targets; as long as not, the
    variants that it makes cannot depend on them, and rows of one image share theirs. `pyramid`: what the Probes of all
    levels have in common.
    """

    def __init__(
        self,
        pass_: Pass,
        targets: Sequence[Target],
        layer: Layer,
        *,
        rows: Rows | None = None,
        seed: int = 0,
        knows_target: bool = True,
        effort: Effort = Effort(),
        pyramid: Pyramid | None = None,
    ) -> None:
        self._pass, self._layer, self._seed, self._effort = pass_, layer, seed, effort
        self._targets, self._knows_target = tuple(targets), knows_target
        self._rows: Rows = tuple(range(len(pass_.images))) if rows is None else rows
        self._spent, self._stopped = 0, False
        self._pyramid = Pyramid((layer,)) if pyramid is None else pyramid

    @property
    @need(of_target=False)
    def inputs(self) -> Tensor:
        """The preprocessed image of every row (N, C, *size)."""
        return pick(self._pass.images, self._rows)

    @property
    @need(of_target=False)
    def output(self) -> Tensor:
        """What the network put out (N, ...), detached."""
        return pick(self._pass.output.detach(), self._rows)

    @property
    @need(of_target=True, itself=True, cost="other methods")
    def probe(self) -> Probe:
        """This Probe itself, for methods that are made of other methods."""
        return self

    @property
    @need(of_target=True)
    def targets(self) -> tuple[Target, ...]:
        """What is explained: one target per row."""
        return self._targets

    @cached_property
    @need(of_target=True)
    def score(self) -> Tensor:
        """The explained score of every row (N,)."""
        output = self.output
        with torch.autocast(output.device.type, enabled=False):  # as where gradients start, whatever the caller's is
            return scores(output, self.targets)

    @cached_property
    @need(of_target=False, of_layer=True, inside=True)
    def activations(self) -> Tensor:
        """The layer's output as a grid (N, C, *grid)."""
        return pick(self._pass.activations(self._layer), self._rows)

    @cached_property
    @need(of_target=True, of_layer=True, of_gradient=True, in_graph=True, inside=True)
    def gradients(self) -> Tensor:
        """d score / d activations (N, C, *grid)."""
        return self._pass.gradients(self._rows, self.targets, self._layer)

    @property
    @need(of_target=False, cost="a seed")
    def generator(self) -> torch.Generator:
        """A fresh random generator on the CPU with the call's seed: every method draws the same numbers anywhere."""
        return torch.Generator().manual_seed(self._seed)

    @cached_property
    @need(
        of_target=True,
        of_layer=True,
        of_gradient=True,
        inside=True,
        cost="a head of global average pooling + linear",
        networks="networks whose head is global average pooling and one linear layer",
    )
    def class_weights(self) -> Tensor:
        """How much each channel's mean counts for the score (N, C), where the head is global average pooling + linear.

        NotApplicable: what follows the layer is something else.
        """
        if self._layer.module is None:
            raise NotApplicable("needs a feature layer; the input is none")
        head = self._linear_head
        if head is None:
            raise NotApplicable(
                f"needs global average pooling and one linear layer right after the layer; "
                f"what follows {self._layer.name!r} is something else (grad_cam works for any head)"
            )
        output = self.output.clone().requires_grad_()
        with torch.enable_grad():
            total = scores(output, self.targets).sum()
            (gradient,) = torch.autograd.grad(total, output) if total.requires_grad else (torch.zeros_like(output),)
        return gradient @ real(head)

    @need(
        of_target=True,
        of_layer=True,
        of_gradient=True,
        runs_variants=True,
        inside=True,
        cost="a replay of what follows the layer per channel (closed form for pooling + linear)",
    )
    def ablate(self, priority: Tensor | None = None) -> Tensor:
        """The score with one channel of the activations set to zero, for every channel (N, C).

        `priority` (N, C) as in `rescore`: a channel that is left out keeps the whole score, as if it did not matter.
        """
        head, activations = self._linear_head, self.activations
        count = activations.shape[1]
        if head is None:

            def without(image: int, channels: Tensor) -> Tensor:
                variants = activations[image].expand(len(channels), *activations.shape[1:]).clone()
                variants[torch.arange(len(channels), device=variants.device), channels] = 0
                return variants

            alive = activations.flatten(2).any(2)  # the others are zero already
            priority = alive if priority is None else priority * alive
            # Whatever the method knows: what is taken out does not depend on the target.
            found = self._rescored(count, self._sharing(True, priority), activations=without, priority=priority)
            return torch.where(found == -torch.inf, self.score.to(found)[:, None], found)
        # The output is linear in the channels' means, so each channel's share is known without a forward.
        means, output = grid_mean(activations), self.output
        share = real(head).T  # (C, K)
        return torch.stack([self.targets[i](output[i] - means[i, :, None] * share) for i in range(len(means))])

    @need(of_target=True, runs_variants=True, cost="a forward per variant")
    def rescore(
        self,
        count: int,
        *,
        inputs: Vary | None = None,
        activations: Vary | None = None,
        priority: Tensor | None = None,
    ) -> Tensor:
        """Scores (N, count) of `count` variants of every row's image, or of its activations.

        `inputs(i, k)` builds the variants `k` (indices) of row `i` when their chunk's turn comes, so that no more
        than a chunk is ever held; the network may overwrite them. Variants of activations replay only what follows the
        layer. `priority` (N, count), bool or numbers: variants run in falling order of it, and those with 0 or less
        are left out. Left-out variants, and those beyond the call's budget, score -inf.
        """
        groups = self._sharing(not self._knows_target, priority)
        return self._rescored(count, groups, inputs=inputs, activations=activations, priority=priority)

    def _rescored(
        self,
        count: int,
        groups: Sequence[Sequence[int]],
        *,
        inputs: Vary | None = None,
        activations: Vary | None = None,
        priority: Tensor | None = None,
    ) -> Tensor:
        """`rescore`, where every group of rows has its variants in common."""
        result = self.score.new_full((len(self._rows), count), -torch.inf)
        orders = [self._order(count, None if priority is None else priority[group[0]]) for group in groups]
        self._spent += max(map(len, orders), default=0)
        done, total = 0, sum(map(len, orders))
        for group, todo in zip(groups, orders, strict=True):
            if self._stopped:
                break
            make, run, outside = self._variants(group[0], inputs, activations)
            for chunk, output in self._chunked(todo, make, torch.no_grad()(run), outside):
                for row in group:
                    result[row, chunk] = self._targets[row](output).to(result)
                done += len(chunk)
                if self._told(done, total):
                    break
        return result

    def _sharing(self, share: bool, priority: Tensor | None = None) -> list[list[int]]:
        """The rows that have their variants in common: those of an image if they are to `share`, and in one order."""
        groups = self._by_image()
        if share and (priority is None or all(bool((priority[g] == priority[g[0]]).all()) for g in groups)):
            return groups
        return [[row] for row in range(len(self._rows))]

    def _by_image(self) -> list[list[int]]:
        """The rows of every image."""
        groups: dict[int, list[int]] = {}
        for row, image in enumerate(self._rows):
            groups.setdefault(image, []).append(row)
        return list(groups.values())

    def _order(self, count: int, priority: Tensor | None) -> Tensor:
        """The indices of a row's variants that are run, the first first."""
        if priority is None:
            order = torch.arange(count, device=self.inputs.device)
        else:
            order = priority.to(torch.float32).argsort(descending=True, stable=True)[: int((priority > 0).sum())]
        return order if self._effort.budget is None else order[: max(0, self._effort.budget - self._spent)]

    def _told(self, done: int, total: int) -> bool:
        """Whether the caller, told how far the run is, wants no more of it."""
        if self._effort.progress is not None and not self._stopped:
            self._stopped = self._effort.progress(done, total) is True
        return self._stopped

    @need(of_target=True, of_layer=True, of_gradient=True, inside=True, cost="a forward and backward per variant")
    def regrad(self, weights: Tensor, *, inputs: Vary | None = None, activations: Vary | None = None) -> Tensor:
        """The weighted sum over variants of d score / d variant (N, C, *grid).

        `weights` (count,) weighs the `count` variants; the rest is as in `rescore`.
        """
        todo, total = torch.arange(len(weights), device=self.inputs.device), [torch.zeros(())] * len(self._rows)
        if not len(todo):
            raise KonkyoError("regrad needs at least one variant")
        groups = self._sharing(not self._knows_target)
        for done, group in enumerate(groups):
            make, run, outside = self._variants(group[0], inputs, activations)

            def gradients(
                variants: Tensor, run: Callable[[Tensor], Tensor] = run, group: Sequence[int] = group
            ) -> list[Tensor]:
                with torch.inference_mode(False), torch.enable_grad():
                    leaf = variants.detach().requires_grad_()
                    output, found = run(leaf.clone()), []
                    for row in group:
                        score = self._targets[row](output).sum()
                        slope = None
                        if score.requires_grad:
                            (slope,) = torch.autograd.grad(
                                score, leaf, allow_unused=True, retain_graph=row != group[-1]
                            )
                        found.append(torch.zeros_like(leaf) if slope is None else real(slope))
                return found

            for chunk, slopes in self._chunked(todo, make, gradients, outside, graph=True):
                for row, slope in zip(group, slopes, strict=True):
                    total[row] = total[row].to(slope) + torch.einsum("v,v...->...", weights.to(slope)[chunk], slope)
            self._told(done + 1, len(groups))
        return torch.stack(total)

    # --- other ways through the network -------------------------------------------------------------------------------

    @need(of_target=True, of_layer=True, of_gradient=True, in_graph=True, inside=True, cost="another score's gradient")
    def differentiate(self, score: OtherScore) -> Tensor:
        """The gradient (N, C, *grid) of another score: `score(output (N, K), explained score (N,))` -> (N,)."""
        return self._pass.gradients_of(
            self._rows, lambda output: score(output, scores(output, self.targets)), self._layer
        )

    @need(of_target=True, of_layer=True, of_gradient=True, inside=True, cost="a second derivative")
    def curvature(self, vectors: Tensor) -> Tensor:
        """The Hessian of the score at the layer times `vectors`: d sum(gradients * vectors) / d activations.

        Costs one more forward, whose attentions (if any) are of the kind that can be differentiated twice.
        """
        pass_ = self._pass.other("curvature", [self._layer], lambda _: sdpa_kernel(SDPBackend.MATH))
        return pass_.curvature(self._rows, self.targets, self._layer, vectors)

    @need(of_target=True, of_layer=True, of_gradient=True, inside=True, cost="a forward and backward per variant")
    def revisit(self, count: int, *, inputs: Vary) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Activations and gradients at the layer for `count` variants of every row's image, chunk by chunk.

        -> (row, variant indices (v,), activations (v, C, *grid), gradients (v, C, *grid)). `inputs` as in `rescore`.
        """
        return self._visits(count, self._sharing(not self._knows_target), inputs)

    def _visits(
        self, count: int, groups: Sequence[Sequence[int]], inputs: Vary
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """`revisit`, where every group of rows has its variants in common."""
        layer, todo = self._layer, torch.arange(count, device=self.inputs.device)
        for done, group in enumerate(groups):

            def visit(variants: Tensor, group: Sequence[int] = group) -> tuple[Tensor, Iterator[Tensor]]:
                with self._pass.forwards():
                    pass_ = Pass(self._pass.network, variants, (layer,), differentiable=(layer,))
                images = tuple(range(len(variants)))
                return pass_.activations(layer), (
                    pass_.gradients(images, [self._targets[row]] * len(variants), layer) for row in group
                )

            for chunk, (found, slopes) in self._chunked(
                todo, partial(inputs, group[0]), visit, frozenset(), graph=True
            ):
                for row, gradients in zip(group, slopes, strict=True):
                    yield row, chunk, found, gradients
            self._told(done + 1, len(groups))

    @property
    @need(of_target=False, cost="a black image")
    def black(self) -> Tensor:
        """Black images (N, C, *size), as prepared for the network; zeros where nobody told how that is done."""
        inputs = self.inputs
        pixel = inputs.new_tensor(self._pass.network.black)
        return pixel.view(1, -1, *[1] * (inputs.ndim - 2)).expand_as(inputs)

    @need(
        of_target=True,
        of_layer=True,
        of_gradient=True,
        inside=True,
        traces_path=True,
        cost="a forward and a backward to the layer per node of the path",
    )
    def integrate(self, baseline: Tensor, sampling: Sampling, *, through: Through = "alpha") -> Tensor:
        """The gradient at the layer, integrated on the straight path from `baseline` (N, C, *size) to the images.

        -> (N, C, *grid): the integral of d score(I_alpha) / dA by the trapezoid rule, through "alpha", or through the
        "activations": that of d score / dA dA, whose sum approaches score(I) - score(baseline). Rows of one image
        share the forwards of uniform nodes; no backward goes below the layer.
        """
        known = self._pyramid.integrals
        of = sampling, through == "activations"
        found = next((i for i in known if i.of == of and torch.equal(i.baseline, baseline)), None)
        if found is None:
            found = self._integrated(baseline, sampling, of[1])
            known.append(found)
        return found.values[self._pyramid.levels.index(self._layer)]

    def _integrated(self, baseline: Tensor, sampling: Sampling, by_activations: bool) -> Integral:
        tracks = [Track() for _ in self._rows]
        totals: list[list[Tensor]] = [[] for _ in self._rows]

        def add(row: int, node: Node, before: Node | None, weight: float) -> None:
            parts = [g * weight for g in node.gradients]
            if by_activations:
                earlier = node if before is None else before
                pairs = zip(node.gradients, earlier.gradients, strict=True)
                moved = zip(node.activations, earlier.activations, strict=True)
                parts = [(g + h) / 2 * (a - b) for (g, h), (a, b) in zip(pairs, moved, strict=True)]
            totals[row] = [t + p for t, p in zip(totals[row], parts, strict=True)] if totals[row] else parts

        groups = self._by_image()
        total = sampling.nodes * len(groups)
        weights = dict(zip(sampling.first, trapezoid(torch.tensor(sampling.first)).tolist(), strict=True))
        for done, group in enumerate(groups):
            spare: dict[tuple[int, float], Node] = {}  # what one row wanted and another may want later
            while wanted := {row: found for row in group if (found := tracks[row].wanted(sampling))}:
                places = [(row, alpha) for row, those in wanted.items() for alpha in those]
                for row, alpha in places:
                    if (row, alpha) in spare:
                        tracks[row].nodes[alpha] = spare.pop((row, alpha))
                missing = sorted({alpha for row, alpha in places if alpha not in tracks[row].nodes})
                for alpha, row, node in self._nodes(group, missing, baseline, by_activations):
                    nodes = tracks[row].nodes
                    if alpha not in wanted.get(row, ()):
                        spare[row, alpha] = node
                        continue
                    last = next(reversed(nodes), None)
                    nodes[alpha] = node
                    if not sampling.adaptive:  # nodes come in order: nothing but the last one is kept
                        add(row, node, None if last is None else nodes[last], weights[alpha])
                        if last is not None:
                            tracks[row].distance(last, alpha)
                            nodes[last].gradients, nodes[last].activations = [], []
                if self._told(done * sampling.nodes + len(tracks[group[0]].nodes), total):
                    break
            for row in group if sampling.adaptive else ():
                track = tracks[row]
                before = None
                for alpha, weight in zip(track.alphas, trapezoid(torch.tensor(track.alphas)).tolist(), strict=True):
                    add(row, track.nodes[alpha], before, weight)
                    before = track.nodes[alpha]
        values = [torch.stack(level) for level in zip(*totals, strict=True)]
        return Integral((sampling, by_activations), baseline, values, traced(tracks, sampling))

    def _nodes(
        self, rows: Sequence[int], alphas: Sequence[float], baseline: Tensor, by_activations: bool
    ) -> Iterator[tuple[float, int, Node]]:
        """(alpha, row, node) of all rows of one image, a forward for every alpha."""
        levels, one = self._pyramid.levels, rows[0]
        targets = [self._targets[row] for row in rows]

        def points(k: Tensor) -> Tensor:
            share = self.inputs.new_tensor([alphas[i] for i in k.tolist()])
            # lerp gives exactly the image at 1
            return torch.lerp(baseline[one], self.inputs[one], share.view(-1, *[1] * (self.inputs.ndim - 1)))

        def visit(variants: Tensor) -> Pass:
            with self._pass.forwards():
                return Pass(self._pass.network, variants, levels, differentiable=levels)

        todo = torch.arange(len(alphas), device=self.inputs.device)
        for chunk, pass_ in self._chunked(todo, points, visit, frozenset(), graph=True):
            activations = [pass_.activations(level) for level in levels] if by_activations else []
            output = pass_.output.detach()
            found = pass_.gradients_of_each(targets, levels)
            for row, target, gradients in zip(rows, targets, found, strict=True):
                scores_, boxes = target(output).tolist(), _matched(target, output)
                for v, k in enumerate(chunk.tolist()):
                    grids = [g[v] for g in gradients], [a[v] for a in activations]
                    yield alphas[k], row, Node(*grids, scores_[v], boxes[v])

    @need(of_target=True, cost="a forward and backward on other images")
    def on(self, images: Tensor, layer: str | None = None) -> Probe:
        """A Probe of the same targets on other images (M, C, *size), M a multiple of N: view after view of them all.

        Its layer is this one's, or the input for `layer="input"`. One forward serves all targets that ask for the
        same images.
        """
        count = len(self._rows)
        views, rest = divmod(len(images), count)
        if rest or not views:
            raise KonkyoError(f"a multiple of {count} images was expected; got {len(images)}")
        rows = tuple(range(len(images)))
        firsts = [group[0] for group in self._by_image()]
        if len(firsts) < count:  # rows of one image see the same views of it, if the views do not depend on targets
            own = [list(dict.fromkeys(self._rows)).index(image) for image in self._rows]
            once = torch.cat([view[firsts] for view in torch.split(images, count)])
            shared = tuple(v * len(firsts) + at for v in range(views) for at in own)
            if torch.equal(once[list(shared)], images):
                images, rows = once, shared
        where = Layer(INPUT, None) if layer == INPUT else self._layer
        pass_ = self._pass.other("on", [where], _nothing, images)
        effort = self._effort.shared(views)
        return Probe(pass_, self.targets * views, where, rows=rows, seed=self._seed, effort=effort)

    @cached_property
    @need(of_target=True, inside=True, cost="ReLUs", networks="networks with ReLU or ReLU6")
    def guided_gradients(self) -> Tensor:
        """d score / d inputs (N, C, *size) where every ReLU lets only positive gradients back.

        NotApplicable: the network has no ReLU. Costs one more forward and a whole backward.
        """
        layer = Layer(INPUT, None)
        pass_ = self._pass.other("guided", [layer], guided_relus)
        if not pass_.recorded[guided_relus].used:  # type: ignore[attr-defined]
            raise NotApplicable("guided backpropagation changes how ReLUs are passed, and this network has none")
        return pass_.gradients(self._rows, self.targets, layer)

    @cached_property
    @need(
        of_target=True,
        of_layer=True,
        of_gradient=True,
        inside=True,
        cost="convolutions, batch norms, ReLUs and pooling after the layer",
        networks="networks whose layers after the chosen one are convolutions, batch norms, ReLUs, pooling and linear",
    )
    def relevance(self) -> Tensor:
        """Contrastive relevance of the layer's activations (N, C, *grid), by the z+ rule down from the output.

        The output's relevance is 1 for the explained class and -1 / K for each of the others. NotApplicable: a target
        that is no class, or a module after the layer that has no rule.
        """
        if not all(isinstance(target, ClassTarget) for target in self.targets):
            raise NotApplicable("relevance is handed down from one class against the others; the target is no class")
        layer = self._layer
        pass_ = self._pass.other("relevance", [layer], positive_relevance)
        classes = self.output.shape[1]
        start = torch.full_like(self.output, -1 / classes)
        for row, target in zip(start, self.targets, strict=True):
            assert isinstance(target, ClassTarget)
            row[target.index if classes > 1 else 0] = 1 if classes > 1 else 2 * target.index - 1
        # Under the rules gradient times value is relevance, at the output too.
        slope = safe_divide(start, pick(pass_.output.detach(), self._rows))
        gradients = pass_.gradients_of(self._rows, lambda output: (output * slope).sum(1), layer)
        return pick(pass_.activations(layer), self._rows) * gradients

    @cached_property
    @need(of_target=True, inside=True, within=bias_terms, cost="a whole backward")
    def full_gradients(self) -> tuple[Tensor, ...]:
        """Input times gradient (N, C, *size), then bias times gradient of every module that adds one.

        Those are (N, C, *grid), or (N, 1) where a module puts out no grid of the image (windows of it, tokens). In a
        piecewise linear network they add up to the score.
        """
        layer, pass_ = Layer(INPUT, None), self._pass
        if bias_terms not in pass_.recorded:  # asked for by a method that another one is made of
            pass_ = pass_.other("biases", [layer], bias_terms)
        terms: list[BiasTerm] = pass_.recorded[bias_terms]  # type: ignore[assignment]
        parts: list[tuple[Tensor, ...]] = []
        for column in (split := columns(self._rows)):  # a backward fills the terms in, the next one anew
            rows, targets = tuple(self._rows[row] for row in column), [self._targets[row] for row in column]
            gradient = pass_.gradients_of(rows, partial(scores, targets=targets), layer)
            values = (pick(self._placed(term.value()), rows) for term in terms if term.gradient is not None)
            parts.append((pick(self._pass.images, rows) * gradient, *values))
        order = torch.tensor([row for column in split for row in column]).argsort().to(self.inputs.device)
        return parts[0] if len(parts) == 1 else tuple(torch.cat(part)[order] for part in zip(*parts, strict=True))

    def _placed(self, term: Tensor) -> Tensor:
        """What a bias adds, where its module puts out a grid of every image; its sum per image (N, 1) otherwise."""
        images = self._pass.images
        grid = term.ndim == images.ndim and len(term) == len(images) and covers(term.shape[2:], images.shape[2:])
        return term if grid else term.reshape(len(images), -1).sum(1, keepdim=True)

    # --- attention ----------------------------------------------------------------------------------------------------

    @property
    def _attended(self) -> tuple[Pass, Attentions]:
        """A forward with every attention explicit, the first one the leaf; one serves all targets."""
        pass_ = self._pass.other("attention", [], explicit_attention)
        attended = pass_.recorded[explicit_attention]
        assert isinstance(attended, Attentions)
        return pass_, attended

    @cached_property
    @need(
        of_target=False,
        inside=True,
        cost="global attention",
        networks="transformers with global attention (ViT, DeiT, BEiT, ...)",
    )
    def attentions(self) -> tuple[Tensor, ...]:
        """The probabilities of every self-attention (N, heads, L, L), first block to last; rows are queries.

        NotApplicable: a network without attention, with attention within windows, or one that merges tokens.
        """
        (pass_, attended) = self._attended
        count = len(pass_.images)
        return tuple(pick(real(per_head(p.detach(), count)), self._rows) for p in attended.among_tokens(count))

    @cached_property
    @need(of_target=True, of_layer=True, of_gradient=True, inside=True, cost="gradients of the attentions")
    def attention_gradients(self) -> tuple[Tensor, ...]:
        """d score / d probabilities of every self-attention (N, heads, L, L), first block to last."""
        pass_, attended = self._attended
        count = len(pass_.images)
        found = pass_.slopes(self._rows, lambda output: scores(output, self.targets), attended.among_tokens(count))
        return tuple(
            real(of_rows(self._rows, [per_head(g, count) for g in block])) for block in zip(*found, strict=True)
        )

    @cached_property
    @need(of_target=False, inside=True, cost="the tokens that the head reads")
    def readout(self) -> Tensor:
        """The share of every token in what the head reads (N, L): the class token, or all patches alike, or others.

        Those are the tokens whose queries in the last block reach the output. Where the head reads by an attention of
        its own, its probabilities are the shares.
        """
        pass_, attended = self._attended
        count = len(pass_.images)
        last = attended.among_tokens(count)[-1]
        if attended.pooling is not None:
            return pick(real(per_head(attended.pooling.detach(), count)).mean((1, 2)), self._rows)
        noise = torch.randn(pass_.output.shape[1:], generator=torch.Generator().manual_seed(0), device="cpu").to(
            pass_.output
        )
        ((slope,),) = pass_.slopes(tuple(range(count)), lambda output: (output * noise).flatten(1).sum(1), [last])
        read = (per_head(slope, count) != 0).to(slope.dtype).amax((1, 3))
        return pick(safe_divide(read, read.sum(1, keepdim=True)), self._rows)

    @need(of_target=False, inside=True, cost="a grid of tokens")
    def on_grid(self, tokens: Tensor) -> Tensor:
        """Values per token (N, L) as maps (N, *grid): class token, registers and the like are left out.

        NotApplicable: the layer's grid is not the tokens'.
        """
        grid = self.activations.shape[2:]
        prefix = tokens.shape[1] - math.prod(grid)
        if not 0 <= prefix <= MAX_PREFIX_TOKENS or (self._layer.tokens is not None and prefix != self._layer.prefix):
            raise NotApplicable(
                f"{tokens.shape[1]} tokens do not lie on the grid {tuple(grid)} of layer {self._layer.name!r}; "
                "name a layer that puts out the blocks' tokens"
            )
        return tokens[:, prefix:].reshape(len(tokens), *grid)

    @need(
        of_target=True,
        of_layer=True,
        of_gradient=True,
        inside=True,
        cost="gradients of every block's own score at its attention",
        networks="transformers with global attention whose blocks are modules",
    )
    def block_gradients(self, tokens: ReadTokens = "mean") -> tuple[Tensor, ...]:
        """d s_l / d probabilities of block l (N, heads, L, L), first block to last.

        s_l is the target's score of what the network puts out for the tokens of block l in place of the last block's:
        their mean in every token's place ("mean"), or the tokens as they stand ("head"). NotApplicable: blocks that are
        no modules. Costs another forward of every image, and once back through every block.
        """
        pass_, attended = self._attended
        count = len(pass_.images)
        blocks = attended.blocks(count)
        tails, slopes = self._tails(attended, blocks, tokens), []
        for image, target in zip(self._rows, self._targets, strict=True):
            leaf, output = tails[image]
            with self._pass.forwards(), torch.enable_grad():
                total = target(output).sum()
                found = torch.autograd.grad(total, leaf, retain_graph=True) if total.requires_grad else [leaf * 0]
            slopes.append(found[0].detach())
        gradients: list[list[Tensor]] = []  # of every column, of every block
        for column in columns(self._rows):
            images = [self._rows[row] for row in column]
            gradients.append([])
            for at, block in enumerate(blocks):
                slope = torch.zeros_like(block.tokens)
                slope[images] = torch.stack([slopes[row][at] for row in column]).to(slope)
                (found_at,) = torch.autograd.grad(block.tokens, block.probabilities, slope, retain_graph=True)
                gradients[-1].append(per_head(found_at, count))
        return tuple(real(of_rows(self._rows, list(block))) for block in zip(*gradients, strict=True))

    def _tails(self, attended: Attentions, blocks: Sequence[Block], tokens: ReadTokens) -> list[tuple[Tensor, Tensor]]:
        """Of every image: (the blocks' tokens (blocks, L, C), a leaf; what the network puts out for them)."""
        if tokens not in attended.tails:
            last = Layer("the last block", blocks[-1].module, call=blocks[-1].call)
            tails = []
            images = self._pass.images
            for image in range(len(images)):
                replay = Replay(self._pass.forward, last, self._pass.network.module, images[image : image + 1])
                leaf = torch.stack([block.tokens[image].detach() for block in blocks]).requires_grad_()
                if replay.raw.shape != (1, *leaf.shape[1:]):
                    raise NotApplicable("needs blocks that are modules, each handing tokens (N, L, C) on to the next")
                with torch.enable_grad():
                    read = leaf if tokens == "head" else leaf.mean(1, keepdim=True).expand_as(leaf)
                    tails.append((leaf, replay(read.clone())))  # networks may work in place on it
            attended.tails[tokens] = tails
        return attended.tails[tokens]

    # --- how variants are run -----------------------------------------------------------------------------------------

    def _variants(
        self, row: int, inputs: Vary | None, activations: Vary | None
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], frozenset[nn.Module]]:
        """(indices -> variants, variants -> output, modules that do not run for variants) of one row."""
        vary = activations if inputs is None else inputs
        if vary is None or (inputs is not None and activations is not None):
            raise KonkyoError("rescore and regrad take either inputs= or activations=, exactly one of them")
        if inputs is not None or self._layer.module is None:
            return partial(vary, row), self._pass.forward, frozenset()
        once = replace(self._layer, call=self._layer.call % self._pass.calls[self._layer])
        image = self._rows[row]
        replay = Replay(self._pass.forward, once, self._pass.network.module, self._pass.images[image : image + 1])
        return partial(vary, row), replay, replay.stubbed

    def _chunked(
        self,
        todo: Tensor,
        make: Callable[[Tensor], Tensor],
        run: Callable[[Tensor], _T],
        outside: frozenset[nn.Module],
        *,
        graph: bool = False,
    ) -> Iterator[tuple[Tensor, _T]]:
        """(indices, what `run` gives for their variants), one chunk after the other, as large as memory allows.

        The first variant runs on its own: it shows how much memory a variant takes, and whether the network accepts
        the channels_last format (faster where it does; `view` fails on it where it does not).
        """
        if not len(todo):
            return
        first, memory_format = make(todo[:1]), torch.contiguous_format
        with measured_outputs(self._pass.network.module, outside) as outputs:
            try:
                memory_format = torch.channels_last if first.ndim == 4 else torch.contiguous_format
                found = run(first.contiguous(memory_format=memory_format))
            except RuntimeError:
                memory_format = torch.contiguous_format
                found = run(first.contiguous())
        yield todo[:1], found
        if len(todo) == 1:
            return
        largest = max(outputs.largest, first.numel() * first.element_size())
        needed = outputs.total if graph else _WORKING_COPIES * largest
        for chunk in torch.split(todo[1:], max(1, _free_bytes(first.device) // needed)):
            yield chunk, run(make(chunk).contiguous(memory_format=memory_format))

    @cached_property
    def _linear_head(self) -> Tensor | None:
        """The weight (K, C) of the linear layer that follows the mean over the grid; None if the head is not that."""
        if self._layer.module is None or self._pass.output.ndim != 2:
            return None
        means, output = grid_mean(self._pass.activations(self._layer)), self._pass.output.detach()
        head = linear_head(self._pass.network.module, means, output, 3e-2 if self._pass.half else 1e-4)
        return None if head is None else head.weight.detach()


NEEDS: Mapping[str, Need] = needs_of(Probe)
"""What a method may name as positional parameters."""


def offer(probe: Probe, name: str) -> Any:
    """The need of this name, for a method. The Probe notes when the method is given something of the target: by a value
    at once, by what is called when it has returned. Variants that are made from then on are shared by no other row."""
    value, declared = getattr(probe, name), NEEDS[name]
    if not declared.of_target:
        return value
    if not declared.signature:
        probe._knows_target = True
        return value

    @wraps(value)
    def called(*args: Any, **kwargs: Any) -> Any:
        result = value(*args, **kwargs)
        probe._knows_target = True
        return result

    return called


def largest_gradient(probe: Probe) -> Tensor | None:
    """The largest absolute gradient at the layer of every row (R,), where a method has asked for it."""
    asked = "gradients" in vars(probe)
    return probe.gradients.flatten(1).abs().amax(1) if asked else None


def _matched(target: Target, output: Tensor) -> list[tuple[float, ...]]:
    """The boxes of the candidates that a target is about, one per image; NaN for a target that is about none."""
    if isinstance(target, InstanceTarget):
        return [tuple(box) for box in target.match(output).box.tolist()]
    return [(math.nan,) * 4] * len(output)


@contextmanager
def _nothing(_root: nn.Module) -> Iterator[None]:
    yield


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_CHUNK_BYTES
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(GPU_CHUNK_BYTES, (torch.cuda.mem_get_info(device)[0] + reusable) // 2)
