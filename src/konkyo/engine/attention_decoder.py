"""DecoderReader: by which attention the queries of a decoder (a DETR's) read the image, for the rows of a Probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from konkyo.engine.attention import Attentions, Samples, per_head
from konkyo.engine.attention_reader import AttendedRows
from konkyo.engine.forward import of_rows, rounds, scores
from konkyo.engine.layer import covers
from konkyo.engine.needs import Combine, EncoderDecoder, StepKind
from konkyo.errors import NotApplicable
from konkyo.targets.base import as_target
from konkyo.utils.tensors import at_least_float32, per_item, resize


class DecoderReader(AttendedRows):
    """Reads the forward in which every attention is explicit, which all other methods of attention share."""

    def queries(self) -> Tensor:
        """Computes `Probe.queries`.

        Which query a candidate is made of is not taken on trust: behind the last cross-attention every query goes its
        own way, so a candidate has a gradient at its own query's row alone.
        """
        pass_, attended = self._attended
        number = _crosses(attended, self._count, pass_.output.shape[1:])[-1]
        last = attended.probabilities[number]
        output = pass_.output.detach()
        matches = [
            as_target(target).candidate(output[image : image + 1])
            for image, target in zip(self._rows, self._targets, strict=True)
        ]
        numbers = [number for number in matches if number is not None]
        if len(numbers) < len(matches):
            raise NotApplicable("reads the attention of a detection's query; a target that is a detection was expected")
        candidates = torch.cat(numbers)
        noise = torch.randn(output.shape[2], generator=torch.Generator().manual_seed(0), device="cpu").to(output)
        places = torch.arange(len(self._rows), device=output.device)

        def projected(outputs: Tensor) -> Tensor:
            return (outputs[places, candidates.clamp_min(0)] * noise).sum(1)

        slopes = pass_.slopes(self._rows, projected, [last])
        if _samples(attended, number):
            sizes = [slope.abs().amax((2, 3)) for (slope,) in slopes]
        else:
            sizes = [per_head(slope, self._count).abs().amax((1, 3)) for (slope,) in slopes]
        read = of_rows(self._rows, sizes) != 0
        count = read.sum(1)[candidates >= 0]
        if (count != 1).any():
            raise NotApplicable(
                "needs candidates that are each made of one query behind the decoder's last cross-attention; in this "
                f"network a candidate is made of {int(count[count != 1][0])}"
            )
        return torch.where(candidates >= 0, read.to(torch.int64).argmax(1), -1)

    def cross_attentions(self, queries: Tensor) -> tuple[Tensor, ...]:
        """Computes `Probe.cross_attentions`."""
        pass_, attended = self._attended
        images = torch.tensor(self._rows, device=queries.device)
        maps = []
        for number in _crosses(attended, self._count, pass_.output.shape[1:]):
            probabilities = at_least_float32(attended.probabilities[number].detach())
            if samples := _samples(attended, number):
                weights = probabilities[images, queries.clamp_min(0)]  # (R, heads, points of all levels)
                of_layer = _splat(weights, _points_of(samples, self._count, images, queries.clamp_min(0)))
            else:
                grid = self._grid(attended, probabilities.shape[-1])
                of_cells = per_head(probabilities, self._count)[images, :, queries.clamp_min(0)]
                of_layer = of_cells.reshape(*of_cells.shape[:2], *grid)
            absent = per_item(queries < 0, of_layer)
            maps.append(of_layer.masked_fill(absent, 0))
        return tuple(maps)

    def encoder_decoder(self, combine: Combine) -> EncoderDecoder:
        """Computes `Probe.encoder_decoder`."""
        pass_, attended = self._attended
        crosses = _crosses(attended, self._count, pass_.output.shape[1:])
        if _samples(attended, crosses[-1]):
            raise NotApplicable(
                "follows attention between all queries and all cells of the encoder; this decoder's is deformable: it "
                "reads a few points (detr_attention shows them)"
            )
        recorded = attended.probabilities
        count, keys = recorded[crosses[-1]].shape[-2:]
        kinds: dict[int, StepKind] = dict.fromkeys(crosses, "cross")
        for number in range(len(recorded)):
            form = _form(attended, number, self._count)
            if form is not None and form[1:] in ((keys, keys), (count, count)):
                kinds[number] = "encoder" if form[1] == keys else "queries"
        numbers = sorted(kinds)
        if strange := [n for n in range(numbers[0], numbers[-1]) if n not in kinds]:
            raise NotApplicable(
                "knows attention among the encoder's cells, among queries, and of queries to cells; this network has "
                f"another one of shape {tuple(recorded[strange[0]].shape)}"
            )
        tensors = [recorded[number] for number in numbers]
        combined: list[list[Tensor]] = []  # of every round, of every attention
        for part in rounds(self._rows):
            rows = tuple(self._rows[row] for row in part)
            targets = [self._targets[row] for row in part]
            (slopes,) = pass_.slopes(rows, partial(scores, targets=targets), tensors)
            combined.append(
                [
                    combine(*(at_least_float32(per_head(t, self._count)) for t in (tensor.detach(), slope)))
                    for tensor, slope in zip(tensors, slopes, strict=True)
                ]
            )
        steps = [of_rows(self._rows, list(of_step)) for of_step in zip(*combined, strict=True)]
        grid = self._grid(attended, keys)
        return EncoderDecoder(tuple(zip((kinds[n] for n in numbers), steps, strict=True)), grid)

    def _grid(self, attended: Attentions, keys: int) -> tuple[int, ...]:
        """Returns the grid that the encoder's tokens form."""
        grid = attended.grids.get(keys)
        if grid is None or not covers(grid, self._pass.images.shape[2:]):
            raise NotApplicable(f"needs keys that form a grid of the picture; {keys} keys do not in this network")
        return grid


def _crosses(attended: Attentions, images: int, output: Sequence[int]) -> list[int]:
    """Returns the numbers of the attentions by which the decoder reads the encoder's cells, first layer to last.

    They are those of the last form in which as many queries as there are candidates read other cells than themselves.
    NotApplicable: there is none.
    """
    reason = "needs a decoder whose queries, one per candidate, attend to the picture (as in DETR)"
    if len(output) != 2:
        raise NotApplicable(f"{reason}; this network is no detector")
    for number, probabilities in reversed(list(enumerate(attended.probabilities))):
        samples = _samples(attended, number)
        keys = sum(math.prod(level.size) for level in samples) if samples else probabilities.shape[-1]
        form = _form(attended, number, images)
        if form is None or form[1] != output[0] or (keys == output[0] and not samples):
            continue
        if keys == output[0]:
            break
        return [n for n in range(number + 1) if _form(attended, n, images) == form]
    if any(p.shape[-2:] == (output[0], output[0]) for p in attended.probabilities):
        reason += f"; that of {output[0]} queries to as many cells cannot be told from that among either"
    raise NotApplicable(f"{reason}; this network computes none that can be seen")


def _form(attended: Attentions, number: int, images: int) -> tuple[Any, ...] | None:
    """Returns (heads, queries, keys or points, sizes of the levels) of an attention; None: not of whole images."""
    probabilities, samples = attended.probabilities[number], _samples(attended, number)
    if samples:
        _, queries, heads, points = probabilities.shape
        return (heads, queries, points, *(level.size for level in samples))
    if (
        probabilities.ndim > 4
        or len(probabilities) % images
        or (probabilities.ndim == 4 and len(probabilities) > images)
    ):
        return None
    return tuple(per_head(probabilities, images).shape[1:])


def _samples(attended: Attentions, number: int) -> list[Samples]:
    """Returns the levels at whose points a deformable attention reads; none where it is another attention."""
    levels, probabilities = attended.samples.get(number, []), attended.probabilities[number]
    if probabilities.ndim != 4 or not all(level.bilinear for level in levels):
        return []
    images, queries, heads, points = probabilities.shape
    fits = all(level.points.shape[:2] == (images * heads, queries) for level in levels)
    return levels if levels and fits and sum(level.points.shape[2] for level in levels) == points else []


def _points_of(
    samples: Sequence[Samples], count: int, images: Tensor, queries: Tensor
) -> list[tuple[Tensor, tuple[int, int]]]:
    """Returns the points (R, heads, points, 2) of every row's query at every level, and the level's size."""
    by_query = [(level.points.reshape(count, -1, *level.points.shape[1:]), level.size) for level in samples]
    return [(at_least_float32(points[images, :, queries]), size) for points, size in by_query]


def _splat(weights: Tensor, levels: Sequence[tuple[Tensor, tuple[int, int]]]) -> Tensor:
    """Lays sampling weights (R, heads, points) on the cells that they read, on the finest level -> (R, heads, h, w).

    A point counts for the four cells around it, by their bilinear shares; what lies outside is lost, as for the
    network. Coarser levels are enlarged, and their values divided by how many cells become of one.
    """
    finest = max((size for _, size in levels), key=math.prod)
    maps = weights.new_zeros(*weights.shape[:2], *finest)
    parts = torch.split(weights, [points.shape[2] for points, _ in levels], dim=2)
    for part, (points, (height, width)) in zip(parts, levels, strict=True):
        x, y = ((points + 1) * points.new_tensor([width, height]) - 1).div(2).unbind(-1)
        cells = weights.new_zeros(*weights.shape[:2], height * width)
        for down in (0, 1):
            for right in (0, 1):
                row, column = y.floor() + down, x.floor() + right
                share = (1 - (y - row).abs()) * (1 - (x - column).abs()) * part
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
                cells.scatter_add_(2, place, torch.where(inside, share, 0.0))
        grid = resize(cells.view(-1, height, width), finest).view_as(maps)
        maps += grid * (height * width / math.prod(finest))
    return maps
