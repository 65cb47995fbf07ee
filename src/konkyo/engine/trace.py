"""Trace: it tells which modules of a network put out grids of the image, and which of them everything passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.engine.choice import Choice
from konkyo.engine.grids import Change
from konkyo.engine.layer import Layer, exchanged, tensors_of
from konkyo.engine.run import Call, Forward, Output, Run
from konkyo.engine.session import backward_errors, hook_after, session_of
from konkyo.engine.sound import SoundForward

_GRAPH_BYTES = 32 * 2**20
"""The end of the graph that is stored in a trace of large images."""


@dataclass(frozen=True)
class Site:
    """A site is one call of a module in a traced forward: what it put out, and what that is of the image."""

    name: str
    kind: str
    """The module's class name."""
    shape: tuple[int, ...]
    """What the module puts out, without the batch."""
    layer: Layer | None
    """How to read it as a grid (its `module` left out, so that a stored trace keeps no model alive); None: no grid."""
    grid: tuple[int, ...]
    place: float
    """How well the cells follow a change of the image at their own place: a correlation, at most 1."""
    used: bool
    """Whether the output depends on it."""
    placed: bool
    """Whether its cells are at their own places of the image, as far as that was looked at."""
    call: int = 0
    calls: int = 1
    """Which of the module's calls it is, and how many there are."""


@dataclass(frozen=True)
class Trace:
    """A trace holds the sites of a forward in the order in which they finished, and the automatic layer."""

    sites: tuple[Site, ...]
    cut: tuple[Layer, ...]
    """The layers that are explained by default, which together make one layer; none where there is no grid."""
    whole: bool
    """Whether everything passes the cut on its way from the image to the output."""


def trace(
    forward: Forward,
    root: nn.Module,
    image: Tensor,
    *,
    instances: bool = False,
    small: bool = False,
    free: bool = False,
    within: str = "",
) -> Trace:
    """Runs the network on an image (1, ...), and where its operators tell too little on the same with other pixels.

    `instances`: the output holds many decisions, each made from one of several levels. `small`: the image is small, so
    that the whole graph may be stored, and pixels are changed in two places, one after the other. `free`: the network
    may lay the axes of the image in any order, of which two places tell. `within`: the dotted name of the module in
    which the automatic layer is looked for; "": anywhere.
    """
    run = Run(forward, root, image, free)
    with SoundForward(session_of(root)):
        run.first(None if small else _GRAPH_BYTES)
        choice = Choice(run, instances, within)
        if not choice.places.certain():
            for corner in range(2 if small or free else 1):
                run.again(Change(image, corner))
    return _trace(choice)


def _trace(choice: Choice) -> Trace:
    """Returns the sites and the automatic layer."""
    run, (calls, whole) = choice.run, choice.cut()
    counts = {name: sum(other == name for other, _ in run.order) for name, _ in run.order}
    sites = tuple(_site(choice, call, counts[call[0]]) for call in run.order)
    layers = [site.layer for site in sites if (site.name, site.call) in calls and site.layer is not None]
    return Trace(sites, tuple(replace(layer, part=len(layers) > 1) for layer in layers), whole)


def _site(choice: Choice, call: Call, count: int) -> Site:
    noted, place = choice.run.outputs[call], choice.places.place(call)
    tokens = place is not None and place.layer.tokens is not None
    if place is None or (tokens and not place.sure):
        place = None
    layer = None if place is None else _bound(noted, place.layer, call, count)
    shape = noted.shape[1:] if layer is None or layer.batch_axis == 0 else (noted.shape[0], *noted.shape[2:])
    grid, likeness = ((), 0.0) if place is None else (place.grid, place.likeness)
    used, sure = call in choice.used, place is not None and place.sure
    return Site(call[0], noted.kind, shape, layer, grid, likeness, used, sure, call[1], count)


def _bound(noted: Output, layer: Layer, call: Call, count: int) -> Layer:
    """Returns the layer of one of so many calls, with all levels of a pyramid."""
    levels = None if noted.levels else layer.level
    return replace(layer, call=-1 if call[1] == count - 1 else call[1], level=levels)


def share_around(forward: Forward, score: Callable[[Tensor], Tensor], image: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Returns which share of the gradient of `score(output)` at the image does not pass the layers -> ().

    Of the absolute gradient's sum, what is left when their outputs are held constant. NaN where there is no gradient.
    """

    def slope(held: Sequence[Layer]) -> Tensor:
        with torch.enable_grad(), SoundForward(), ExitStack() as undo:
            for layer in held:
                if layer.module is not None:
                    undo.callback(hook_after(layer.module, _holding(layer), prepend=True).remove)
            leaf = image.detach().clone().requires_grad_()
            value = score(forward(leaf.clone())).sum()
            if not value.requires_grad:
                return torch.zeros_like(image)
            with backward_errors("the network"):
                (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        return torch.zeros_like(image) if gradient is None else gradient

    return slope(layers).float().abs().sum() / slope(()).float().abs().sum()


def _holding(layer: Layer) -> Callable[..., Any]:
    """Makes a hook that holds constant what the layer's call puts out; of the last call, what all calls do."""
    calls = 0

    def hold(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if layer.call not in (-1, calls - 1):
            return output
        tensors = tensors_of(output, layer)
        return exchanged(output, tensors, [tensor.detach() for tensor in tensors])

    return hold
