"""Capture: hooks read the grids of a forward.

Hooks and stubs touch a network here, in `replay`, `trace` and `rules` only; each leaves it as it was, also when an
exception flies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.engine.layer import Layer, exchanged, main_tensor, tensors_of
from konkyo.engine.session import hook_after, open_modules
from konkyo.engine.session import untouched as untouched
from konkyo.errors import KonkyoError


class Captured:
    """This holds what the layers put out in one forward, in the form of their modules."""

    def __init__(self) -> None:
        self.calls: dict[Layer, list[list[Tensor]]] = {}

    def raw(self, layer: Layer) -> list[Tensor]:
        """Returns what the layer's module put out in its call `layer.call`: one tensor, or all levels of a pyramid.

        KonkyoError: the forward never made that call.
        """
        calls = self.calls.get(layer, [])
        try:
            return calls[layer.call]
        except IndexError:
            raise KonkyoError(
                f"layer {layer.name!r} was called {len(calls)} times in this forward; call {layer.call} was asked for"
            ) from None


@contextmanager
def capture(layers: Sequence[Layer], *, leaves: Sequence[Layer] = ()) -> Iterator[Captured]:
    """Within the context a forward fills the `Captured`; run it under `no_grad`.

    The first of `leaves` to be reached becomes the leaf of the graph: what comes before it runs without one, whatever
    the weights' `requires_grad`, and what follows is differentiable. Downstream gets a clone, so that an in-place
    operation right after the layer cannot rewrite what was captured.
    """
    captured = Captured()
    parts: list[Tensor] = []
    """What was handed on from layers that make one together: two of them may be calls of one module."""

    def hook(layer: Layer) -> Callable[..., Any]:
        """Makes the forward hook of a layer."""

        def store(_module: nn.Module, _args: Any, output: Any) -> Any:
            """Stores what the module puts out, and hands on copies."""
            tensors = tensors_of(output, layer)
            if not tensors:
                raise KonkyoError(f"layer {layer.name!r} puts out no tensor but {type(output).__name__}")
            raws = tensors
            if layer in leaves:
                torch.set_grad_enabled(True)
                # Of layers that make one together none is on another's way.
                leaf = layer.part and not any(t is part for t in tensors for part in parts)
                raws = [t.detach().requires_grad_() if leaf or not t.requires_grad or t.is_leaf else t for t in tensors]
            captured.calls.setdefault(layer, []).append(raws)
            handed = [t.clone() for t in raws]
            if layer.part:
                parts.extend(handed)
            return exchanged(output, tensors, handed)

        return store

    with ExitStack() as undo:
        undo.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))  # the hook's switch ends here
        for layer in layers:
            # First, so that other hooks see what is handed on: those of transformers collect hidden states.
            if layer.module is not None:
                undo.callback(hook_after(layer.module, hook(layer), prepend=True).remove)
        yield captured


class Watch:
    """Records the arguments of every forward with gradients and what a layer puts out in it, graph and all.

    It serves training, where the caller runs the forward; `close` takes the hooks off again. Downstream gets a clone,
    so that an in-place operation right after the layer cannot rewrite the record. The record is a view: the coarse
    levels of a pyramid come from its finer ones, and a gradient at a view covers only what follows it. Copies of the
    network (`copy.deepcopy`, for averaged weights) are not watched.
    """

    def __init__(self, root: nn.Module, layer: Layer) -> None:
        """Puts hooks on the network and on the layer's module."""
        assert layer.module is not None
        self._open, self._layer = True, layer
        self._arguments = list[tuple[tuple[Any, ...], dict[str, Any]]]()
        self._calls = list[list[Tensor]]()
        self._handles = [
            root.register_forward_pre_hook(self._start, with_kwargs=True),
            layer.module.register_forward_hook(self._store),
        ]

    def _start(self, _root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open:
            self._calls.clear()
            self._arguments[:] = [(args, kwargs)] if torch.is_grad_enabled() else []

    def _store(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Stores views of what the layer puts out, and hands on copies."""
        if not (self._open and self._arguments):
            return output
        tensors = tensors_of(output, self._layer)
        if not tensors:
            return output
        views = [t.view_as(t) for t in tensors]
        self._calls.append(views)
        return exchanged(output, tensors, [t.clone() for t in views])

    def take(self) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], list[Tensor]]:
        """Hands out the last forward once: ((args, kwargs), what the layer put out, a tensor or a pyramid's levels).

        KonkyoError: there was no forward with gradients since the last time.
        """
        if not self._open:
            raise KonkyoError(
                "this network is not watched: hooks were taken off, or this is a copy; begin anew with it"
            )
        arguments, calls = self._arguments[:], self._calls[:]
        self._arguments.clear()
        self._calls.clear()
        if not arguments or not calls:
            raise KonkyoError(
                f"layer {self._layer.name!r} put out nothing since it was last asked: run the network on images, with "
                "gradients enabled, before each call; torch.compile hears of hooks that are there at its first forward"
            )
        return arguments[0], calls[self._layer.call]

    def close(self) -> None:
        """Takes the hooks off the network."""
        self._open = False
        self._arguments.clear()
        self._calls.clear()
        for handle in self._handles:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy: its hooks still run in its network's forwards, but record nothing."""
        return {"_open": False, "_arguments": [], "_calls": [], "_handles": []}


@dataclass
class OutputBytes:
    """This counts the memory of the module outputs of a forward, in bytes."""

    largest: int = 0
    total: int = 0


@contextmanager
def measured_outputs(root: nn.Module, outside: frozenset[nn.Module] = frozenset()) -> Iterator[OutputBytes]:
    """Within the context a forward adds up the bytes of what the innermost modules, but those `outside`, put out."""
    measured = OutputBytes()

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        tensor = main_tensor(output)
        if tensor is not None:
            size = tensor.numel() * tensor.element_size()
            measured.largest = max(measured.largest, size)
            measured.total += size

    with ExitStack() as undo:
        for module in set(open_modules(root)) - outside:
            if not any(module.children()) or isinstance(module, torch.jit.ScriptModule):
                undo.callback(hook_after(module, hook).remove)
        yield measured


@torch.no_grad()
def draw_anew(part: nn.Module) -> None:
    """Draws a module's own weights: as it initialises itself, or normal, with each parameter's deviation."""
    if callable(reset := getattr(part, "reset_parameters", None)):
        reset()
        return
    for parameter in part.parameters(recurse=False):
        deviation = float(parameter.std()) if parameter.numel() > 1 else 0.0
        parameter.normal_(0, deviation or 0.02)
