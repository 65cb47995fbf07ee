"""Grids: whether the cells of what a module puts out are places of the image, and how it is read as such a grid.

Shapes alone do not tell: 16 time steps, 16 learned queries and 4 x 4 patches look alike. So the image is changed in
some places, and in a grid the cells at those places change most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.engine.layer import MAX_PREFIX_TOKENS, Layer, covers

TOKEN_PLACE, FAINT_PLACE = 0.6, 0.25
"""The least likeness of tokens; and of those whose gradient is looked at before they are chosen."""
OWN_TOKENS = 0.5
"""The least share of tokens whose gradient at the image is largest at their own place."""
NEAR_TOKENS = 0.75
"""The least share of those where it is largest there or in a cell beside: of rows to and fro half are right."""
SMALL = 36
"""Of so many cells or fewer two are asked for their place; and a random network spreads a token over the neighbours."""
MIRRORED = 0.6
"""So much more like a mirror image of the change may a grid be, by chance: deep networks spread every change far."""
_CHANCE = 3.0
"""Of few cells it may be more: this, divided by the square root of their number."""
_PROJECTIONS = 2
"""So many random sums over the channels stand for a cell: constant sums, as after a LayerNorm, do not hide it."""
_STRENGTH = 0.3
"""How strong a change is, in deviations of the image."""
OWN_CELLS = 1.2
"""So much more energy of a cell's gradient at the image is at least at the cell's own place."""
FEW = 9
"""In a grid of fewer cells every cell sees the whole image, and its gradient has no place."""
_SPREAD = ((0.15, 0.6, 0.35), (0.4, 0.15, 0.6))
_WIDELY_SPREAD = ((0.99, 0.15, 0.35), (0.15, 0.0, 0.6), (0.0, 0.45, 0.1), (0.6, 0.8, 0.85))
"""Where two cells of a small grid, and four of a larger one, are looked at, as shares of its sides.

They are far apart, and some lie at an edge: a crop of the middle leaves there least of all what it was. However the
grid is mirrored, or a square one turned, some cell comes to lie where none is.
"""
_WIDE = 5
"""In a grid that is as wide along an axis, the neighbours of a cell count as its place."""
_CORNERS = (
    ((0.1, 0.42), (0.58, 0.92), (0.15, 0.45)),
    ((0.55, 0.9), (0.12, 0.45), (0.1, 0.4)),
)
"""Where an image is changed, as shares of its sides: in corners that do not lie like their mirror images, nor, both
together, like each other with two axes exchanged."""


class Change:
    """A change is a copy of an image (1, C, *size) with other pixels in one of its corners."""

    def __init__(self, image: Tensor, corner: int) -> None:
        size = image.shape[2:]
        self._places = torch.zeros(size)
        limits = zip(size, _CORNERS[corner], strict=False)
        self._places[tuple(slice(int(n * low), max(int(n * low) + 1, int(n * high))) for n, (low, high) in limits)] = 1
        self._templates: dict[tuple[int, ...], Tensor] = {}
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(corner), device="cpu").to(image)
        spread = image.std() if image.numel() > 1 else image.new_ones(())
        noise = noise * torch.where(spread > 0, spread, torch.ones_like(spread)) * _STRENGTH
        self.image = image + noise * self._places.to(image)

    def likeness(self, cells: Tensor) -> Tensor:
        """Returns how well the changes of cells (*grid) follow the change of the image -> (F,), correlations.

        The first is with the places that were changed, the others are with their mirror images. 0 where no cell, or
        every cell alike, has changed; NaN where a cell became NaN.
        """
        grid = tuple(cells.shape)
        if grid not in self._templates:
            shares = _pooled(self._places, grid)
            flips = [flip for n in range(len(grid) + 1) for flip in combinations(range(len(grid)), n)]
            rows = torch.stack([shares.flip(flip).flatten() for flip in flips])
            self._templates[grid] = functional.normalize(rows - rows.mean(1, keepdim=True)).to(cells)
        flat = cells.flatten()
        flat = flat - flat.mean()
        likeness: Tensor = self._templates[grid] @ flat / flat.norm().clamp_min(1e-20)
        return likeness


def is_place(direct: float, mirrored: float, layer: Layer, grid: Sequence[int], least: float) -> bool:
    """Tells whether cells that follow a change so well (see `Change.likeness`) are places of the image.

    Of tokens more is asked, `least` of likeness: nothing else tells that they are a picture, and not a sequence.
    """
    if layer.tokens is not None:
        return direct >= least and direct >= mirrored
    return direct >= mirrored - max(MIRRORED, _CHANCE / math.sqrt(math.prod(grid)))


def owned(energies: Mapping[int, Tensor], layer: Layer, grid: Sequence[int]) -> tuple[float, float]:
    """Returns the shares of tokens whose gradient's energy (*size) is largest at their own place, and in it or beside.

    Of the tokens that are asked, also those beyond the grid. `energies`: by the index of the token, of which
    `layer.prefix` come before the grid.
    """
    distances, prefix = [], layer.prefix
    laid = [grid[axis] for axis in layer.order] if layer.order else list(grid)
    for index, energy in energies.items():
        if index >= prefix and index - prefix < math.prod(grid):
            shares = _pooled(energy, tuple(grid))
            shares = shares.permute(layer.order) if layer.order else shares
            cell = torch.stack(torch.unravel_index(shares.flatten().argmax(), laid))
            cell_index = torch.stack(torch.unravel_index(torch.tensor(index - prefix), laid)).to(cell)
            distances.append(torch.where(shares.amax() > 0, (cell - cell_index).abs().amax(), math.inf))
    indices = [index for index in energies if index >= prefix]
    if not distances:
        return 0.0, 0.0
    far = torch.stack(distances)
    exact, near = torch.stack([(far == 0).sum(), (far <= 1).sum()]).tolist()
    return exact / len(indices), near / len(indices)


def spread_cells(grid: Sequence[int], mirrored: bool) -> list[tuple[int, ...]]:
    """Returns some cells of a grid that lie far apart: two, or four of many."""
    shares = _SPREAD if math.prod(grid) <= SMALL else _WIDELY_SPREAD
    cells = [tuple(int(share * n) for share, n in zip(at, grid, strict=False)) for at in shares]
    return [(grid[0] - 1 - first, *rest) for first, *rest in cells] if mirrored else cells


def at_own_places(energy: Tensor, cells: Sequence[tuple[int, ...]], layer: Layer, grid: Sequence[int]) -> float:
    """Returns how much more energy (*size) of cells' gradient is at their places than elsewhere, of the least cell.

    0 where a cell has none; NaN where there is none at all. Of frames that stand beside each other in a batch none is
    the place of another.
    """
    wide = [n >= _WIDE and not (layer.stacked and axis == 0) for axis, n in enumerate(grid)]
    shares = _pooled(energy, tuple(grid))
    places = [
        tuple(slice(max(0, i - near), i + 1 + near) for i, near in zip(cell, wide, strict=True)) for cell in cells
    ]
    elsewhere = torch.ones_like(shares, dtype=torch.bool)
    for place in places:
        elsewhere[place] = False
    lowest = torch.stack([shares[place].mean() for place in places]).amin()
    return float(lowest / shares[elsewhere].mean())


def _pooled(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Returns the mean of values (*size) in every cell of a grid."""
    pools: dict[int, Any] = {
        1: functional.adaptive_avg_pool1d,
        2: functional.adaptive_avg_pool2d,
        3: functional.adaptive_avg_pool3d,
    }
    pooled: Tensor = pools[len(grid)](values[None, None], grid)[0, 0]
    return pooled


class Readings:
    """Readings are the ways in which the shapes of a network's tensors can be grids of an image of one size.

    Certain sizes are the image's and what convolutions and pools of more than one place put out, and likely is what
    patch merging (a stride of 2, 4 or 8) makes of those. A network without such modules is believed as it comes.
    `free`: the network may lay the axes of the image in any order, as those of videos and spectrograms do.
    """

    def __init__(self, size: Sequence[int], free: bool = False) -> None:
        self.size = tuple(size)
        self._orders = list(permutations(range(len(size)))) if free else [tuple(range(len(size)))]
        self._known: list[tuple[int, ...]] = []
        self._likely = {self.size}
        self._by_count: dict[int, list[tuple[int, ...]]] | None = None

    def learn(self, shape: Sequence[int]) -> None:
        """Notes the sizes of grids that a convolution or a pool puts out for one image, whatever its strides."""
        axes = len(self.size)
        if len(shape) == axes + 2 and shape[0] == 1:
            laid = tuple(shape[2:])
        elif axes == 3 and len(shape) == 4 and shape[0] == self.size[0]:  # every frame by itself
            laid = (shape[0], *shape[2:])
        else:
            return
        for order in self._orders:
            grid = _placed(laid, order)
            if grid not in self._known and all(n <= side for n, side in zip(grid, self.size, strict=True)):
                self._known.append(grid)
                for stride in (1, 2, 4, 8):
                    self._likely |= {tuple(n // stride for n in grid), tuple(-(-n // stride) for n in grid)}

    def fit(self, grid: tuple[int, ...]) -> bool:
        """Tells whether this is likely a size of the network's grids."""
        return grid in self._likely or (not self._known and covers(grid, self.size))

    def of(self, name: str, shape: Sequence[int]) -> Iterator[tuple[Layer, tuple[int, ...]]]:
        """Yields (layer, grid) for an output of this shape for one image; the likelier come first."""
        axes = len(self.size)
        if len(shape) == axes + 2 and shape[0] == 1:
            first, last = tuple(shape[2:]), tuple(shape[1:-1])
            if math.prod(first) > 1 and (self.fit(first) or not (self._known or self.fit(last))):
                yield Layer(name, None), first
            if math.prod(last) > 1 and self.fit(last):
                yield Layer(name, None, channel_axis=-1), last
            for order in self._orders[1:]:
                for channel_axis, laid in ((1, first), (-1, last)):
                    grid = _placed(laid, order)
                    if math.prod(grid) > 1 and grid in self._likely:
                        yield Layer(name, None, channel_axis=channel_axis, order=order), grid
        elif axes == 3 and len(shape) == 4 and shape[0] == self.size[0] > 1:
            for channel_axis, laid in ((1, tuple(shape[2:])), (-1, tuple(shape[1:-1]))):
                if math.prod(laid) > 1 and self.fit(grid := (shape[0], *laid)):
                    yield Layer(name, None, channel_axis=channel_axis, stacked=shape[0]), grid
        elif len(shape) == 3 and axes > 1 and 1 in shape[:2]:
            batch_axis = 0 if shape[0] == 1 else 1
            for prefix, grid in self._of_tokens(shape[1 - batch_axis]):
                for order in self._orders:
                    laid = () if order == self._orders[0] else order
                    layer = Layer(name, None, channel_axis=-1, tokens=grid, prefix=prefix, batch_axis=batch_axis)
                    yield replace(layer, order=laid), grid
        elif axes == 3 and len(shape) == 3 and shape[0] == self.size[0] > 1:  # tokens of every frame
            for prefix, grid in self._of_tokens(shape[1] * shape[0], shape[0]):
                if grid[0] == shape[0]:
                    tokens = Layer(name, None, channel_axis=-1, tokens=grid, prefix=prefix, stacked=shape[0])
                    yield tokens, grid

    def _of_tokens(self, length: int, frames: int = 1) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yields (prefix, grid) for so many tokens: sizes that are known, then those that one stride makes.

        `frames`: so many times the tokens before a grid are there.
        """
        prefixes = range(MAX_PREFIX_TOKENS + 1)
        counts = {prefix: count for prefix in prefixes if (count := length - prefix * frames) > 1}
        sizes = [grid for grid in self._known if min(grid) > 1]  # of one row of tokens nothing tells that it is a row
        known = [(p, grid) for p, count in counts.items() for grid in sizes if math.prod(grid) == count]
        yield from known
        for prefix, count in counts.items():
            for grid in self._strided().get(count, ()):
                if (prefix, grid) not in known:
                    yield prefix, grid

    def _strided(self) -> dict[int, list[tuple[int, ...]]]:
        """Returns the grids that one stride along all axes makes, by the number of cells."""
        if self._by_count is None:
            pairs = ([(-(-n // stride), n // stride) for n in self.size] for stride in range(1, max(self.size) + 1))
            grids = {grid for pair in pairs for grid in product(*pair) if min(grid) > 1}
            self._by_count = {}
            for grid in sorted(grids):
                self._by_count.setdefault(math.prod(grid), []).append(grid)
        return self._by_count


def _placed(laid: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Returns the sizes of axes, laid in an order of the image's places, in the order of the places."""
    sizes = [0] * len(order)
    for axis, place in enumerate(order):
        sizes[place] = laid[axis]
    return tuple(sizes)


class Projection:
    """It takes random sums over the channels of tensors: the same ones for the same number of channels."""

    def __init__(self) -> None:
        self._weights: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, tensor: Tensor, axis: int) -> Tensor:
        """Returns the sums (2, ...) over one axis, in single precision."""
        key = tensor.shape[axis], tensor.device
        if key not in self._weights:
            generator = torch.Generator().manual_seed(key[0])
            self._weights[key] = torch.randn(_PROJECTIONS, key[0], generator=generator, device="cpu").to(tensor.device)
        sums: Tensor = torch.tensordot(self._weights[key], tensor.detach().float(), dims=([1], [axis]))
        return sums
