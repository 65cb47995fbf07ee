"""The layers of a model: which modules put out feature grids, which one is explained by default, and those named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from konkyo.engine.capture import untouched
from konkyo.engine.layer import INPUT, Layer, bind
from konkyo.engine.session import outside_inference
from konkyo.engine.trace import Site, trace
from konkyo.errors import KonkyoError, unknown
from konkyo.tasks.classification import ClassificationTask

if TYPE_CHECKING:
    from konkyo.models.base import Model

Traces = dict[tuple[int, ...], list[Site]]
"""The sites of a network by the shape of its images (C, H, W)."""

_TRACES: WeakKeyDictionary[nn.Module, Traces] = WeakKeyDictionary()
"""The traces of networks whose logits are read in the usual way: all models of one network share them."""


@dataclass(frozen=True, eq=False)
class Layers:
    """It answers for the layers of a model, with images of one shape (C, H, W)."""

    model: Model
    shape: tuple[int, ...]
    traces: Traces
    """The traces of the model alone, where it reads its network's output in a way of its own."""

    def sites(self) -> list[Site]:
        """Returns every module's output in one forward on a seeded noise image; it is traced once per shape."""
        module = self.model.module
        shared = self.model.reads_logits and type(self.model.task) is ClassificationTask
        traces = _TRACES.setdefault(module, {}) if shared else self.traces
        sites = traces.get(self.shape)
        if sites is None or not _still_there(sites, module):
            noise = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0), device="cpu")
            with untouched(module, 0), outside_inference():
                sites = trace(lambda x: self.model.task.confidences(self.model(x)), module, self.model.prepared(noise))
            if any(s.gradient for s in sites):  # of an untrained head's zeros nothing can be learned for later
                traces[self.shape] = sites
        return sites

    def automatic(self) -> Layer | None:
        """Returns the last feature grid that the decision depends on and a module with weights follows, if any.

        Where the task names a layer, it is that one.
        """
        if (layer := self.model.task.layer(self.shape)) is not None:
            return bind(layer, self.model.module)
        sites = self.sites()
        grids = [s for s in sites if s.layer is not None]
        features = [s for s in grids if s.before_head] or grids
        # A Linear on a grid (query, key, value) only projects what another module put out.
        features = [s for s in features if s.kind != "Linear" and s.gradient] or features
        site = next((s for s in reversed(features) if s.gradient), features[-1] if features else None)
        return None if site is None or site.layer is None else bind(site.layer, self.model.module)

    def stages(self) -> list[Layer]:
        """Returns the last layer of every grid size that the decision depends on, up to the automatic one."""
        last = self._required()
        sites = self.sites()
        deepest: dict[tuple[int, ...], Layer] = {}
        # A pyramid has no grid of its own, but what is in it has.
        end = max(i for i, s in enumerate(sites) if f"{s.name}.".startswith(f"{last.name}."))
        for site in sites[: end + 1]:
            if site.layer is not None and site.gradient:
                deepest.pop(site.grid, None)
                deepest[site.grid] = site.layer
        return [bind(layer, self.model.module) for layer in deepest.values()] or [last]

    def named(self, name: str | nn.Module | Layer | None, *, needs_gradient: bool) -> Layer:
        """Returns the layer that a name, a module, "input" or None means. See `Model.layer`."""
        if isinstance(name, Layer):
            return name if name.module is not None or name.name == INPUT else bind(name, self.model.module)
        if name == INPUT:
            return Layer(INPUT, None)
        if name is None:
            return self._required('; only layer="input" is on offer')
        sites = self.sites()
        path, _, call = (self._path(name) if isinstance(name, nn.Module) else name).partition("#")
        usual = self.model.task.layer(self.shape)
        if usual is not None and path == usual.name and not call:
            return bind(usual, self.model.module)
        site = next((s for s in sites if s.name == path), None)
        if site is None or site.layer is None:
            raise self._refusal(path, site)
        if needs_gradient and site.gradient == 0 and any(s.gradient for s in sites):
            works = self.automatic()
            raise KonkyoError(
                f"the decision of {self.model.name} does not depend on the grid at layer {path!r} (its gradient is "
                f"exactly 0), so the map would be blank; a layer that works: {works.name if works else INPUT!r}"
            )
        if call and not call.lstrip("-").isdigit():
            raise KonkyoError(f"a call of a layer is a number, as in {path + '#0'!r}; got {name!r}")
        return bind(replace(site.layer, call=int(call)) if call else site.layer, self.model.module)

    def _required(self, offer: str = "") -> Layer:
        """Returns the automatic layer. KonkyoError: there is none."""
        layer = self.automatic()
        if layer is None:
            raise KonkyoError(
                f"{self.model.name}: no layer puts out a feature grid for images of shape {self.shape}{offer}"
            )
        return layer

    def _path(self, module: nn.Module) -> str:
        """Returns the dotted name of a module. KonkyoError: it is not part of the network."""
        for name, other in self.model.module.named_modules():
            if other is module and name:
                return str(name)
        raise KonkyoError(f"the module given as layer ({type(module).__name__}) is not part of {self.model.name}")

    def _refusal(self, name: str, site: Site | None) -> KonkyoError:
        """Returns the error that says why a module is no layer, and which ones are."""
        grids = [s.name for s in self.sites() if s.layer is not None]
        offer = ", ".join(grids[::-1][:8])
        if site is not None:
            return KonkyoError(
                f"layer {name!r} puts out shape {site.shape} per image, which is no feature grid; layers with one, "
                f"from the last: {offer}"
            )
        if name in dict(self.model.module.named_modules()):
            return KonkyoError(
                f"layer {name!r} only passes its input on, or is not run as a module in a forward; "
                f"layers with a grid, from the last: {offer}"
            )
        return unknown("layer", name, [INPUT, *grids[::-1]])


def _still_there(sites: list[Site], module: nn.Module) -> bool:
    """Tells whether the network still has the modules that were traced."""
    names = {name for name, _ in module.named_modules()}
    return all(site.name in names for site in sites)
