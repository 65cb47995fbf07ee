"""An independent judge of layers: is everything decided on there, and are their cells places of the image?

Nothing here is taken from the library but what it says of a layer: which call of a module, and how that is a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

import konkyo
from helpers.zoo import Animal
from konkyo import KonkyoError
from konkyo.engine.layer import Layer

CELLS = 7
"""So many cells of a grid are asked for their place."""
PLACED = 0.8
"""The least share of them that are at their own place."""
AROUND = 0.05
"""The largest share of the gradient at the image that may go around."""
Score = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Judgement:
    """What was found of the layer that the library chose for a network."""

    layer: str
    grid: tuple[int, ...]
    around: float
    placed: float
    said: str
    """What the library says against the map: the kind of its diagnosis, or an error."""
    limit: str = ""
    """Why this judge cannot tell where the cells are."""

    @property
    def verdict(self) -> str:
        """Cut and placed, or told; all else is a fault."""
        if self.said:
            return f"told: {self.said}"
        faults = [f"{self.around:.0%} goes around"] if not self.around <= AROUND else []
        if not self.placed >= PLACED and not self.limit:
            faults.append(f"{self.placed:.0%} of cells placed")
        return "; ".join(f"FAULT: {fault}" for fault in faults) or (
            f"cut; {self.limit}" if self.limit else "cut, placed"
        )


def judged(animal: Animal) -> Judgement:
    """Judges the automatic layer of a network on an image that the library has not seen before."""
    network = animal.built()
    image = torch.randn(1, *animal.shape, generator=torch.Generator().manual_seed(11))
    model = konkyo.Model(network, call=animal.call)
    try:
        found = konkyo.explain(model, image, method="hires_cam", target=score)
        layers = model.automatic_layers(animal.shape)
    except KonkyoError as error:
        return Judgement("", (), math.nan, math.nan, f"{type(error).__name__}: {error}")

    def logits(x: Tensor) -> Tensor:
        return konkyo.models.base.select_logits(network(x) if animal.call is None else animal.call(network, x))

    kind = found.diagnosis[0].kind
    said = kind if kind not in ("ok", "all negative") else ""
    shares = [placed(logits, image, layer) for layer in layers]
    return Judgement(
        found.layer, tuple(found.signed.shape[1:]), around(logits, image, layers), min(shares), said, animal.limit
    )


def score(output: Tensor) -> Tensor:
    """Returns the score of class 1; of a picture of classes, its sum."""
    return output[:, 1].flatten(1).sum(1) if output.ndim > 2 else output[:, 1]


def read(output: Any, layer: Layer) -> list[Tensor]:
    """Returns the tensors in a module's output that a layer reads: its first one, or all levels of a pyramid."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return tensors[:1] if layer.level == -1 else [tensor for tensor in tensors if tensor.ndim >= 3]


def at(layer: Layer, calls: int, do: Callable[[Any], Any]) -> Any:
    """Adds a hook that does something with the output of the one call that is explained, of so many calls."""
    assert layer.module is not None
    wanted, seen = layer.call % calls, 0

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal seen
        seen += 1
        return do(output) if seen - 1 == wanted else None

    return layer.module.register_forward_hook(hook)


def calls_of(logits: Score, image: Tensor, layer: Layer) -> int:
    """Returns how often a layer's module runs in one forward."""
    seen: list[None] = []
    assert layer.module is not None
    hook = layer.module.register_forward_hook(lambda *_: seen.append(None))
    with torch.no_grad():
        logits(image)
    hook.remove()
    return len(seen)


def around(logits: Score, image: Tensor, layers: Sequence[Layer]) -> float:
    """Returns which share of the absolute gradient at the image is left when the layers put out constants.

    Where there is no gradient at all, 0 if another image then has the same scores as this one, else 1.
    """
    constants: dict[Layer, list[Tensor]] = {}

    def slope() -> Tensor:
        leaf = image.clone().requires_grad_()
        value = score(logits(leaf)).sum()
        gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
        return torch.zeros_like(image) if gradient is None else gradient

    def hold(layer: Layer) -> Callable[[Any], Any]:
        def held(output: Any) -> Any:
            own = constants.setdefault(layer, [tensor.detach().clone() for tensor in read(output, layer)])
            swap = {id(tensor): constant for tensor, constant in zip(read(output, layer), own, strict=True)}
            return tree_map(lambda leaf: swap.get(id(leaf), leaf), output)

        return held

    counts = [calls_of(logits, image, layer) for layer in layers]
    whole = slope()
    with ExitStack() as undo:
        for layer, count in zip(layers, counts, strict=True):
            undo.callback(at(layer, count, hold(layer)).remove)
        rest = slope()
    if whole.any():
        return float(rest.abs().sum() / whole.abs().sum())
    scores = []
    for picture in (image, image.flip(-1) * 1.5 + 0.3):
        with ExitStack() as undo, torch.no_grad():
            for layer, count in zip(layers, counts, strict=True):
                undo.callback(at(layer, count, hold(layer)).remove)
            scores.append(score(logits(picture)))
    return float(not torch.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-6))


def placed(logits: Score, image: Tensor, layer: Layer) -> float:
    """Returns which share of a layer's cells depends most on the image at their own place, or next to it.

    By the gradient of v.A at a cell A of its grid; where there is none, by a change of the image at the cell's place.
    """
    count = calls_of(logits, image, layer)

    def grids(x: Tensor) -> list[Tensor]:
        kept: list[Any] = []
        hook = at(layer, count, lambda output: kept.append(read(output, layer)))
        logits(x)
        hook.remove()
        return [layer.fold(tensor) for tensor in kept[0]]

    generator = torch.Generator().manual_seed(5)
    leaf = image.clone().requires_grad_()
    hits = []
    for level, cells in enumerate(grids(leaf)):
        size = cells.shape[2:]
        for index in torch.randperm(math.prod(size), generator=generator)[:CELLS].tolist():
            place = torch.unravel_index(torch.tensor(index), size)
            if cells.requires_grad:
                vector = torch.randn(cells.shape[1], generator=generator)
                chosen = (cells[(0, slice(None), *place)] * vector).sum()
                energy = torch.autograd.grad(chosen, leaf, retain_graph=True)[0].abs().sum(1)
            else:
                energy = (changed(grids, image, place, size, level) - cells).abs().sum(1)
            energy = (energy / energy.max()).square()
            pools = [
                None,
                functional.adaptive_avg_pool1d,
                functional.adaptive_avg_pool2d,
                functional.adaptive_avg_pool3d,
            ]
            pool: Any = pools[len(size)]
            highest = torch.unravel_index(pool(energy[None], size).argmax(), size)
            hits.append(all(abs(int(a) - int(b)) <= 1 for a, b in zip(place, highest, strict=True)))
    return sum(hits) / len(hits)


def changed(
    grids: Callable[[Tensor], list[Tensor]], image: Tensor, place: Sequence[Tensor], size: Sequence[int], level: int
) -> Tensor:
    """Returns a grid of the image with other pixels at the place of one cell."""
    other = image.clone()
    window = tuple(
        slice(int(i) * pixels // cells, (int(i) + 1) * pixels // cells)
        for i, pixels, cells in zip(place, image.shape[2:], size, strict=True)
    )
    other[(..., *window)] = -other[(..., *window)] + 0.5
    with torch.no_grad():
        return grids(other)[level]
