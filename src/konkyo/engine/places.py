"""Places: whether the cells of what modules put out are places of the image, as a run of the network shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from konkyo.engine.cuts import Graph
from konkyo.engine.grids import (
    FAINT_PLACE,
    FEW,
    NEAR_TOKENS,
    OWN_CELLS,
    OWN_TOKENS,
    SMALL,
    TOKEN_PLACE,
    at_own_places,
    is_place,
    owned,
    spread_cells,
)
from konkyo.engine.layer import Layer
from konkyo.engine.run import Call, Output, Run

_TIE = 0.05
"""Readings whose likeness differs by less are alike, and the first is taken."""


@dataclass(frozen=True)
class Place:
    """It says how an output is read as a grid, and whether its cells are places of the image."""

    layer: Layer
    grid: tuple[int, ...]
    likeness: float
    """How well the cells follow a change of the image; of tokens the share with their gradient at their place."""
    sure: bool


def _unordered(noted: Output, reading: int) -> Layer:
    """Returns a reading's layer without the order of its places."""
    return replace(noted.readings[reading][0], order=(), tokens=None)


_TOKENS = 12
"""So many tokens are looked at."""
_STOPS = (8, 6, 4)
"""With so many of them left it is asked whether they can still be a grid."""


def _are_own(own: float, near: float, grid: Sequence[int]) -> bool:
    """Tells whether tokens are places, by the shares of those whose gradient is at their own place, or beside it."""
    return own >= OWN_TOKENS and (near >= NEAR_TOKENS or math.prod(grid) <= SMALL)


def _may_own(energies: Mapping[int, Tensor], left: Sequence[int], layer: Layer, grid: Sequence[int]) -> bool:
    """Tells whether tokens would be places if the gradients of all that are left were at their own places."""
    asked, more = (sum(index >= layer.prefix for index in some) for some in (energies, left))
    own, near = owned(energies, layer, grid)
    own, near = ((share * asked + more) / max(asked + more, 1) for share in (own, near))
    return _are_own(own, near, grid)


class Places:
    """It tells how the outputs of a run are grids, and whether their cells are places of the image."""

    def __init__(self, run: Run, graph: Graph) -> None:
        self.run, self.graph, self.used = run, graph, graph.used
        self._places: dict[Call, Place | None] = {}
        self._kept: dict[Call, bool] = {}

    def certain(self) -> bool:
        """Tells whether operators prove of all grids that their cells are places of the image."""
        grids = [call for call in self.used if self.run.outputs[call].readings]
        return bool(grids) and all(map(self._proven, grids))

    def _proven(self, call: Call) -> bool:
        """Tells whether operators that leave every place where it is make this output (N, C, *grid) of the image."""
        layer, _ = self.run.outputs[call].readings[0]
        return call in self.graph.in_position and layer.tokens is None and layer.channel_axis == 1 and not layer.order

    def place(self, call: Call) -> Place | None:
        """Returns how an output is read best as a grid; None: not at all."""
        if call not in self._places:
            self._places[call] = self._place(call, self.run.outputs[call], call in self.used)
        return self._places[call]

    def _place(self, call: Call, noted: Output, used: bool) -> Place | None:
        if noted.readings and self._proven(call):
            return Place(*noted.readings[0], 1.0, sure=True)
        if noted.readings and not self.run.changes:  # and nothing depends on it
            return Place(*noted.readings[0], 0.0, sure=False)
        if not noted.readings or len(noted.changes) < len(self.run.changes):
            return None
        values = []
        for layer, _ in noted.readings:
            axis = layer.channel_axis % len(noted.shape)
            parts = []
            for change, sums in zip(self.run.changes, noted.changes, strict=True):
                cells = layer.fold(sums[axis].movedim(0, axis))[0].square().sum(0).sqrt()
                parts.append(change.likeness(cells))
            mean = torch.stack(parts).mean(0)
            values.append(torch.stack([mean[0], mean[1:].amax()]))
        likeness = torch.stack(values).tolist()
        # Of tokens those on a grid of the network's own, the fewest before it; else what follows the change best.
        known = [i for i, (layer, grid) in enumerate(noted.readings) if layer.tokens and self.run.readings.fit(grid)]
        best = next((i for i in known if likeness[i][0] >= TOKEN_PLACE), known[0] if known else None)
        if best is not None:  # of the orders in which a network may lay these places, the likeliest
            same = [i for i in known if _unordered(noted, i) == _unordered(noted, best)]
            highest = max(likeness[i][0] for i in same)
            best = best if likeness[best][0] > highest - _TIE else max(same, key=lambda i: likeness[i][0])
        else:
            highest = max(direct for direct, _ in likeness)
            best = next(i for i, (direct, _) in enumerate(likeness) if direct > highest - _TIE or direct != direct)
        (layer, grid), (direct, mirrored) = noted.readings[best], likeness[best]
        if direct == mirrored == 0 and (not used or layer.tokens is not None):  # no cell has changed
            return None
        # The gradient tells more, of those that are asked.
        least = FAINT_PLACE if self.run.whole_graph and self.run.readings.fit(grid) else TOKEN_PLACE
        return Place(layer, grid, direct, is_place(direct, mirrored, layer, grid, least))

    def _place_of_tokens(self, noted: Output) -> Place | None:
        """Returns how tokens are read as a grid: so that the gradient of each at the image is largest at its place."""
        length = noted.shape[1 - noted.readings[0][0].batch_axis]
        known = [(layer, grid) for layer, grid in noted.readings if self.run.readings.fit(grid)] or noted.readings
        energies: dict[int, Tensor] = {}
        left = sorted({round(i * (length - 1) / (_TOKENS - 1)) for i in range(_TOKENS)})
        while left:
            index = left.pop(0)
            seed = torch.randn(noted.shape[-1], generator=torch.Generator().manual_seed(index), device="cpu")
            weights = torch.zeros(noted.shape)
            weights.movedim(noted.readings[0][0].batch_axis, 0)[0, index] = seed
            try:
                energy = self._energy(noted, weights)
            except Exception:  # an operator without a derivative
                return None
            if energy is not None:
                energies[index] = energy
            if len(left) in _STOPS and not any(_may_own(energies, left, layer, grid) for layer, grid in known):
                break  # whatever the others show, these tokens are no grid
        best: Place | None = None
        for layer, grid in known:
            own, near = owned(energies, layer, grid)
            if best is None or own > best.likeness:
                best = Place(layer, grid, own, not left and _are_own(own, near, grid))
        return best

    def _energy(self, noted: Output, weights: Tensor) -> Tensor | None:
        """Returns the energy (*size) of the gradient at the image of a weighted sum of an output."""
        like = self.run.output
        (slope,) = torch.autograd.grad(
            [noted.edges[0]],
            [self.run.leaf],
            [weights.to(like.device, like.dtype)],
            retain_graph=True,
            allow_unused=True,
        )
        return None if slope is None else slope[0].float().square().sum(0)

    def keeps_places(self, call: Call) -> bool:
        """Tells whether the cells of a grid are at their own places: by its operators, else by some cells' gradients.

        Crops, shifts and shuffles within a network move them; so does what mixes all places. Of few cells, and of a
        graph that is not stored, no gradient tells, so what follows the changes is believed.
        """
        if call not in self._kept:
            self._kept[call] = self._keeps_places(call)
        return self._kept[call]

    def _keeps_places(self, call: Call) -> bool:
        place, noted = self.place(call), self.run.outputs[call]
        if place is None or call in self.graph.in_position or not self.run.whole_graph:
            return True
        if place.layer.tokens is not None:
            better = self._place_of_tokens(noted) or replace(place, sure=False)
            self._places[call] = better
            return better.sure
        if math.prod(place.grid) < FEW:
            return True
        arrives = False
        for mirrored in (False, True):
            weights, cells = torch.zeros(noted.shape), spread_cells(place.grid, mirrored)
            grid = place.layer.fold(weights)[0].movedim(0, -1)
            for cell in cells:
                grid[cell] = torch.randn(grid.shape[-1], generator=torch.Generator().manual_seed(0), device="cpu")
            try:
                energy = self._energy(noted, weights)
            except Exception:  # an operator without a derivative
                return True
            ratio = 0.0 if energy is None else at_own_places(energy, cells, place.layer, place.grid)
            if ratio > 0:  # else a cell may be dead after a ReLU
                return ratio >= OWN_CELLS
            arrives = arrives or (energy is not None and bool(energy.any()))
        return place.likeness == 0 and not arrives  # of a crop, too, the parts that were changed may be missing

    def are_tokens(self, call: Call) -> bool:
        """Tells whether an output is one of tokens, in whichever way it is read."""
        return all(layer.tokens is not None for layer, _ in self.run.outputs[call].readings)

    def grid(self, call: Call) -> tuple[int, ...]:
        """Returns the size of an output that is a grid."""
        place = self.place(call)
        assert place is not None
        return place.grid
