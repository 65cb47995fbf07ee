"""Variants: changed images or changed activations, run through the network in chunks and scored or differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from konkyo.engine.capture import measured_outputs
from konkyo.engine.forward import OneByOne, Pass, Rows, differentiated, rows_by_image, score_of
from konkyo.engine.layer import Layer
from konkyo.engine.needs import Vary, Visit
from konkyo.engine.replay import Replay
from konkyo.engine.session import outside_inference, session_of
from konkyo.errors import KonkyoError, NetworkError
from konkyo.targets.classes import Target
from konkyo.utils.progress import Progress
from konkyo.utils.tensors import at_least_float32

CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 256 * 2**20, 2 * 2**30
"""Memory that the largest module output of a chunk of variants, with its working space, may take: beyond it larger
batches are no faster. On a GPU no more than half of what is free."""
_WORKING_COPIES = 6  # a convolution holds input, output and a workspace of the order of both


@dataclass(frozen=True)
class Budget:
    """A budget limits how many variants are scored for a row (None: all); `progress` is called after each chunk."""

    variants: int | None = None
    progress: Progress | None = None

    def divided(self, parts: int) -> Budget:
        """Returns the budget of one of so many parts of a map: layers, views."""
        return self if self.variants is None else replace(self, variants=max(1, self.variants // parts))


_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class _Way(Generic[_T]):
    """This says how the variants of a group of rows are made and run."""

    vary: Vary
    run: Callable[[Tensor, Sequence[int]], _T]
    """(variants, the rows that have them in common) -> a result."""
    stubbed: frozenset[nn.Module] = frozenset()
    """The modules that do not run for variants."""
    graph: bool = False
    """Whether the forward builds a graph, and so holds every module's output."""
    compared: bool = True
    """Whether the variants of rows that share them are compared once the method knows something of the targets."""


@dataclass(frozen=True, eq=False)
class _Chunk(Generic[_T]):
    """A chunk is some variants that ran in one batch."""

    rows: tuple[int, ...]
    """The rows that have them in common."""
    indices: Tensor
    result: _T
    added: int
    """How many more variants there are to run because rows that shared theirs no longer do from this chunk on."""


@dataclass(eq=False)
class Footprint:
    """A footprint is what the first variant shows: how much memory one takes, and which format the network accepts."""

    bytes: int = 0
    """0: not known yet."""
    memory_format: torch.memory_format = torch.contiguous_format


class Variants:
    """Runs variants of the images or of the activations of rows, in chunks as large as memory allows.

    Rows of one image share the variants that are the same. `knows_target` says whether the method has been given
    anything of the targets: until then its variants cannot depend on them; from then on those of the rows are compared.
    """

    def __init__(
        self, pass_: Pass, layer: Layer, rows: Rows, targets: Sequence[Target], budget: Budget, knows_target: bool
    ) -> None:
        self._pass, self._layer, self._rows, self._targets = pass_, layer, rows, tuple(targets)
        self.budget, self.knows_target = budget, knows_target
        self._spent, self._stopped = 0, False

    def known(self, value: Tensor) -> Tensor:
        """Returns the value, and notes that the method has been given something of the targets."""
        self.knows_target = True
        return value

    def scores(
        self,
        like: Tensor,
        count: int,
        *,
        inputs: Vary | None = None,
        activations: Vary | None = None,
        priority: Tensor | None = None,
        of_image: bool = False,
    ) -> Tensor:
        """Computes `Probe.rescore`, in the type of `like`. `of_image`: the variants depend on no target."""
        result = like.new_full((len(self._rows), count), -torch.inf)
        groups = self._groups(priority)
        orders = [self._order(count, None if priority is None else priority[group[0]]) for group in groups]
        self._spent += max(map(len, orders), default=0)
        done, total = 0, sum(map(len, orders))
        for group, order in zip(groups, orders, strict=True):
            if self._stopped:
                break
            forward, vary, stubbed = self._forward(group[0], inputs, activations)
            way = _Way(vary, partial(_without_graph, forward), stubbed, compared=not of_image)
            for chunk in self._shared_chunks(group, order, way):
                for row in chunk.rows:
                    result[row, chunk.indices] = score_of(chunk.result, self._targets[row]).to(result)
                done, total = done + len(chunk.indices), total + chunk.added
                if self.report(done, total):
                    break
        return result

    def gradient_sum(self, weights: Tensor, *, inputs: Vary | None = None, activations: Vary | None = None) -> Tensor:
        """Computes `Probe.regrad`."""
        order, total = self._order_of_all(len(weights)), [torch.zeros(())] * len(self._rows)
        if not len(order):
            raise KonkyoError("regrad needs at least one variant")
        groups, done = self._groups(), 0
        count = len(groups) * len(order)
        for group in groups:
            forward, vary, stubbed = self._forward(group[0], inputs, activations)
            way = _Way(vary, partial(self._slopes, forward), stubbed, graph=True)
            for chunk in self._shared_chunks(group, order, way):
                for row, slope in zip(chunk.rows, chunk.result, strict=True):
                    weighted = torch.einsum("v,v...->...", weights.to(slope)[chunk.indices], slope)
                    total[row] = total[row].to(slope) + weighted
                done, count = done + len(chunk.indices), count + chunk.added
                self.report(done, count)
        return torch.stack(total)

    def visits(self, count: int, inputs: Vary) -> Iterator[Visit]:
        """Computes `Probe.revisit`."""
        return self._visits(self._groups(), _Way(inputs, self._visit, graph=True), self._order_of_all(count))

    def _visits(
        self, groups: Sequence[list[int]], way: _Way[tuple[Tensor, Iterator[Tensor]]], order: Tensor
    ) -> Iterator[Visit]:
        """Yields the activations and gradients of every row, chunk by chunk, group by group."""
        done, count = 0, len(groups) * len(order)
        for group in groups:
            for chunk in self._shared_chunks(group, order, way):
                activations, slopes = chunk.result
                for row, gradients in zip(chunk.rows, slopes, strict=True):
                    yield row, chunk.indices, activations, gradients
                done, count = done + len(chunk.indices), count + chunk.added
                self.report(done, count)

    def report(self, done: int, total: int) -> bool:
        """Calls the budget's progress and returns whether the caller wants the run to stop."""
        if self.budget.progress is not None and not self._stopped:
            self._stopped = self.budget.progress(done, total) is True
        return self._stopped

    def chunked(
        self,
        order: Tensor,
        make: Callable[[Tensor], Iterable[Tensor]],
        run: Callable[[Tensor], _T],
        stubbed: frozenset[nn.Module] = frozenset(),
        *,
        graph: bool = False,
        footprint: Footprint | None = None,
    ) -> Iterator[tuple[Tensor, _T]]:
        """Yields (indices, what `run` gives for their variants), one chunk after the other, as large as memory allows.

        `make(indices)` gives the variants of a chunk, once for every row or group of rows that has its own. The first
        variant runs alone: it shows how much memory a variant takes, and whether the network accepts the channels_last
        format. That is faster where it does; where it does not, `view` fails. A `footprint` keeps that for later calls.
        """
        footprint = footprint or Footprint()
        if len(order) and not footprint.bytes:
            yield from self._first(order[:1], make, run, stubbed, graph, footprint)
            order = order[1:]
        if not len(order):
            return
        self._pass.note_ties()
        session = session_of(self._pass.network.module)
        size = 1 if session is not None and session.alone else max(1, _free_bytes(order.device) // footprint.bytes)
        for indices in torch.split(order, size):
            for batch in make(indices):
                variants = batch.contiguous(memory_format=footprint.memory_format)
                try:
                    yield indices, run(variants)
                except OneByOne:
                    if session is not None:
                        session.single = True
                    yield from ((indices[i : i + 1], run(variants[i : i + 1])) for i in range(len(indices)))

    def _first(
        self,
        index: Tensor,
        make: Callable[[Tensor], Iterable[Tensor]],
        run: Callable[[Tensor], _T],
        stubbed: frozenset[nn.Module],
        graph: bool,
        footprint: Footprint,
    ) -> Iterator[tuple[Tensor, _T]]:
        """Runs the first variant alone, and fills the footprint."""
        batches = iter(make(index))
        first = next(batches)
        with measured_outputs(self._pass.network.module, stubbed) as outputs:
            try:
                footprint.memory_format = torch.channels_last if first.ndim == 4 else torch.contiguous_format
                result = run(first.contiguous(memory_format=footprint.memory_format))
            except (RuntimeError, NetworkError) as error:
                if not isinstance(error.__cause__ or error, RuntimeError):
                    raise
                footprint.memory_format = torch.contiguous_format
                result = run(first.contiguous())
        largest = max(outputs.largest, first.numel() * first.element_size())
        footprint.bytes = outputs.total if graph else _WORKING_COPIES * largest
        yield index, result
        for batch in batches:
            yield index, run(batch.contiguous(memory_format=footprint.memory_format))

    def _shared_chunks(self, group: Sequence[int], order: Tensor, way: _Way[_T]) -> Iterator[_Chunk[_T]]:
        """Yields the chunks of rows that share variants; where these differ, every part of the rows has a chunk."""
        parts, rows, done, added = [list(group)], list[int](), 0, 0

        def make(indices: Tensor) -> Iterator[Tensor]:
            """Yields the variants of every part of the rows; rows whose variants differ become parts."""
            nonlocal rows, done, added
            for rows in parts:  # which grow while this runs
                variants = way.vary(rows[0], indices)
                # The builder may just have asked for something of the targets: so this is looked at afterwards.
                if way.compared and self.knows_target:
                    others = [row for row in rows[1:] if not torch.equal(way.vary(row, indices), variants)]
                    if others:
                        rows[:] = [row for row in rows if row not in others]
                        parts.append(others)
                        added += len(order) - done
                yield variants
            done += len(indices)

        chunks = self.chunked(order, make, lambda variants: way.run(variants, rows), way.stubbed, graph=way.graph)
        for indices, result in chunks:
            yield _Chunk(tuple(rows), indices, result, added)
            added = 0

    def _groups(self, priority: Tensor | None = None) -> list[list[int]]:
        """Returns the rows that may share variants: those of an image, where they run them in the same order."""
        groups = rows_by_image(self._rows)
        if priority is None or all(bool((priority[group] == priority[group[0]]).all()) for group in groups):
            return groups
        return [[row] for row in range(len(self._rows))]

    def _order_of_all(self, count: int) -> Tensor:
        return torch.arange(count, device=self._pass.images.device)

    def _order(self, count: int, priority: Tensor | None) -> Tensor:
        """Returns the indices of a row's variants that are run, the first first."""
        if priority is None:
            order = self._order_of_all(count)
        else:
            order = priority.to(torch.float32).argsort(descending=True, stable=True)[: int((priority > 0).sum())]
        return order if self.budget.variants is None else order[: max(0, self.budget.variants - self._spent)]

    def _forward(
        self, row: int, inputs: Vary | None, activations: Vary | None
    ) -> tuple[Callable[[Tensor], Tensor], Vary, frozenset[nn.Module]]:
        """Returns (variants -> output, what makes the variants, modules that do not run for them) of a row's image."""
        vary = activations if inputs is None else inputs
        if vary is None or (inputs is not None and activations is not None):
            raise KonkyoError("rescore and regrad take either inputs= or activations=, exactly one of them")
        if inputs is not None or self._layer.module is None:
            return self._pass.forward, vary, frozenset()
        once = replace(self._layer, call=self._layer.call % self._pass.calls[self._layer])
        image = self._rows[row]
        replay = Replay(self._pass.forward, once, self._pass.network.module, self._pass.images[image : image + 1])
        return replay, vary, replay.stubbed

    def _slopes(self, forward: Callable[[Tensor], Tensor], variants: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Returns d score / d variants (v, C, *grid) of every row."""
        with outside_inference(), torch.enable_grad():
            leaf = variants.detach().requires_grad_()
            output, slopes = forward(leaf.clone()), []
            for row in rows:
                score, slope = score_of(output, self._targets[row]).sum(), None
                if score.requires_grad:
                    more, network = row != rows[-1], self._pass.network
                    (slope,) = differentiated(network, score, leaf, allow_unused=True, retain_graph=more)
                slopes.append(torch.zeros_like(leaf) if slope is None else at_least_float32(slope))
        return slopes

    def _visit(self, variants: Tensor, rows: Sequence[int]) -> tuple[Tensor, Iterator[Tensor]]:
        """Returns (activations (v, C, *grid), the rows' gradients (v, C, *grid), computed one by one when needed)."""
        layer = self._layer
        with self._pass.forwards():
            pass_ = Pass(self._pass.network, variants, (layer,), differentiable=(layer,))
        images = tuple(range(len(variants)))
        slopes = (pass_.gradients(images, [self._targets[row]] * len(variants), layer) for row in tuple(rows))
        return pass_.activations(layer), slopes


@torch.no_grad()
def _without_graph(forward: Callable[[Tensor], Tensor], variants: Tensor, _rows: Sequence[int]) -> Tensor:
    return forward(variants)


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_CHUNK_BYTES
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(GPU_CHUNK_BYTES, (torch.cuda.mem_get_info(device)[0] + reusable) // 2)
