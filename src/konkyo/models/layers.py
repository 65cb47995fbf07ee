"""The layers of a model: which modules put out feature grids, which one is explained by default, and those named."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from konkyo.engine.layer import INPUT, Layer, bind
from konkyo.engine.session import outside_inference, untouched
from konkyo.engine.trace import Site, Trace, trace
from konkyo.errors import KonkyoError, unknown
from konkyo.models.axes import known_axes
from konkyo.tasks.classification import ClassificationTask

if TYPE_CHECKING:
    from konkyo.models.base import Model

Traces = dict[tuple[int, ...], Trace]
"""The traces of a network by the shape of their images (C, H, W)."""

_TRACES: WeakKeyDictionary[nn.Module, Traces] = WeakKeyDictionary()
"""The traces of networks whose logits are read in the usual way: all models of one network share them."""

_TRACED_SIDE = 128
"""Larger images are traced at about this side, where a network takes that: the layers are the same ones."""
_SMALLEST_SIDE, _MULTIPLE = 64, 32


@dataclass(frozen=True, eq=False)
class Layers:
    """It answers for the layers of a model, with images of one shape (C, H, W)."""

    model: Model
    shape: tuple[int, ...]
    traces: Traces
    """The traces of the model alone, where it reads its network's output in a way of its own."""

    def sites(self) -> tuple[Site, ...]:
        """Returns every module's output in one forward on a seeded noise image of the shape."""
        return self._traced(self.shape).sites

    def trace(self) -> Trace:
        """Returns a trace of images of the shape, or of smaller ones where those tell the same."""
        size = traced_size(self.shape)
        if size is None or self.shape in self._known:
            return self._traced(self.shape)
        try:
            small = self._traced((self.shape[0], *size))
        except Exception:  # a network of one image size refuses others in its own way
            return self._traced(self.shape)
        grids = [site.grid for site in small.sites if site.used and site.grid]
        # Tokens do not say how they lie at another size, and one cell here may be several there.
        tells = not any(s.layer is not None and s.layer.tokens is not None for s in small.sites)
        return small if tells and grids and min(map(min, grids)) > 2 else self._traced(self.shape)

    def moved(self, layer: Layer) -> bool:
        """Tells whether a trace saw that the cells of a layer are not at their own places of the image."""
        sites = [site for site in self.trace().sites if site.layer is not None and site.name == layer.name]
        calls = [site for site in sites if site.layer is not None and site.layer.call == layer.call] or sites[-1:]
        return any(site.used and not site.placed for site in calls)

    def confirm(self, name: str, grid: tuple[int, ...]) -> bool:
        """Tells whether the grid of a layer has the size that a trace of smaller images lets expect.

        Where it has not (a network that crops or resizes its images), images of the shape itself are traced.
        """
        size = traced_size(self.shape)
        if size is None or self.shape in self._known:
            return True
        grids = [site.grid for site in self.trace().sites if site.name == name and len(site.grid) == len(grid)]
        sides = list(zip(self.shape[1:], size, strict=True))
        for small in grids:
            expected = [n * full / side for n, (full, side) in zip(small, sides, strict=True)]
            if all(abs(n - e) <= max(2, 0.2 * e) for n, e in zip(grid, expected, strict=True)):
                return True
        if grids:
            self._traced(self.shape, whole=True)
        return not grids

    @property
    def _known(self) -> Traces:
        """These are the traces that were made before, while the network still has the modules in them."""
        module = self.model.module
        shared = (
            self.model.reads_logits
            and type(self.model.task) is ClassificationTask
            and (self.model.axes == known_axes(module))
        )
        traces = _TRACES.setdefault(module, {}) if shared else self.traces
        names = {name for name, _ in module.named_modules()}
        if any(site.name not in names for known in traces.values() for site in known.sites):
            traces.clear()
        return traces

    @property
    def remembered(self) -> bool:
        """Tells whether a trace was made before that answers for the automatic layer, or none is needed."""
        size = traced_size(self.shape)
        known = self._known
        return (
            bool(self.model.task.layers(self.shape)) or self.shape in known or (self.shape[0], *(size or ())) in known
        )

    def _traced(self, shape: tuple[int, ...], *, whole: bool = False) -> Trace:
        """Returns the trace of images of a shape; it is made once. `whole`: with the whole graph, whatever it takes."""
        known, model = self._known, self.model
        if shape not in known:
            noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), device="cpu")
            small = whole or math.prod(shape[1:]) <= 2 * _TRACED_SIDE**2
            with untouched(model.module, 0), outside_inference():
                image = model.prepared(noise)
                settings: Any = {"instances": bool(model.task.instances), "small": small, "within": model.task.within}
                free = model.axes is not None and model.axes.places != ("row", "column")
                known[shape] = trace(model, model.module, image, free=free, **settings)
        return known[shape]

    def automatic(self) -> tuple[Layer, ...]:
        """Returns the layers that are explained by default, which together make one; none where there is no grid.

        They are the last features that everything passes on its way from the image to the output. Where the task names
        layers, it is those.
        """
        return self._bound(self.model.task.layers(self.shape) or self.trace().cut)

    def _bound(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        return tuple(bind(layer, self.model.module) for layer in layers)

    def stages(self) -> list[Layer]:
        """Returns the last layer of every grid size that the decision depends on, up to the automatic one."""
        last = self._required()
        sites = self.trace().sites
        deepest: dict[tuple[int, ...], Layer] = {}
        # A pyramid has no grid of its own, but what is in it has.
        ends = [i for i, s in enumerate(sites) if any(f"{s.name}.".startswith(f"{part.name}.") for part in last)]
        for site in sites[: max(ends, default=-1) + 1]:
            if site.layer is not None and site.used:
                deepest.pop(site.grid, None)
                deepest[site.grid] = site.layer
        return [bind(layer, self.model.module) for layer in deepest.values()] or list(last)

    def named(self, name: str | nn.Module | Layer | None) -> tuple[Layer, ...]:
        """Returns the layers that a name, a module, "input" or None means. See `Model.cut`."""
        if isinstance(name, Layer):
            return (name if name.module is not None or name.name == INPUT else bind(name, self.model.module),)
        if name == INPUT:
            return (Layer(INPUT, None),)
        if name is None:
            return self._required('; only layer="input" is on offer')
        path, _, call = (self._path(name) if isinstance(name, nn.Module) else name).partition("#")
        usual = self.model.task.layers(self.shape)
        if not call and (matching := tuple(layer for layer in usual if layer.name == path)):
            return self._bound(matching)
        if call and not call.lstrip("-").isdigit():
            raise KonkyoError(f"a call of a layer is a number, as in {path + '#0'!r}; got {name!r}")
        site = self._site(self.trace().sites, path) or self._site(self.sites(), path)
        if site is None or site.layer is None:
            raise self._refusal(path)
        return self._bound((replace(site.layer, call=int(call)) if call else site.layer,))

    @staticmethod
    def _site(sites: tuple[Site, ...], path: str) -> Site | None:
        """Returns the last call of a module whose cells are places of the image, which the output depends on if any."""
        grids = [site for site in sites if site.name == path and site.layer is not None]
        return ([site for site in grids if site.used] or grids or [None])[-1]  # type: ignore[list-item]

    def _required(self, offer: str = "") -> tuple[Layer, ...]:
        """Returns the automatic layers. KonkyoError: there are none."""
        layers = self.automatic()
        if not layers:
            raise KonkyoError(
                f"{self.model.name}: no layer puts out a feature grid for images of shape {self.shape}{offer}"
            )
        return layers

    def _path(self, module: nn.Module) -> str:
        """Returns the dotted name of a module. KonkyoError: it is not part of the network."""
        for name, other in self.model.module.named_modules():
            if other is module and name:
                return str(name)
        raise KonkyoError(f"the module given as layer ({type(module).__name__}) is not part of {self.model.name}")

    def _refusal(self, name: str) -> KonkyoError:
        """Returns the error that says why a module is no layer, and which ones are."""
        sites = self.sites()
        grids = list(dict.fromkeys(s.name for s in sites if s.layer is not None))
        offer = ", ".join(grids[::-1][:8])
        site = next((s for s in reversed(sites) if s.name == name), None)
        if site is not None:
            return KonkyoError(
                f"layer {name!r} puts out shape {site.shape} per image, which is no feature grid: its cells are no "
                f"places of the image; layers with one, from the last: {offer}"
            )
        if name in dict(self.model.module.named_modules()):
            return KonkyoError(
                f"layer {name!r} only passes its input on, or is not run as a module in a forward; "
                f"layers with a grid, from the last: {offer}"
            )
        return unknown("layer", name, [INPUT, *grids[::-1]])


def traced_size(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns a smaller size of about the same form for images (C, H, W); None where it would save little."""
    sides = shape[1:]
    if len(sides) != 2 or math.prod(sides) <= 2 * _TRACED_SIDE**2:
        return None
    scale = _TRACED_SIDE / math.sqrt(math.prod(sides))
    smaller = tuple(max(_SMALLEST_SIDE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in sides)
    return smaller if 2 * math.prod(smaller) <= math.prod(sides) else None
