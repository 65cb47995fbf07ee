"""Capture: hooks read the grids of a forward.

Whatever is hung on a network, here and elsewhere, comes off again, also when an exception flies (`session`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from konkyo.engine.layer import Layer, exchanged, main_tensor, tensors_of
from konkyo.engine.session import hook_after, hooked, open_modules, session_of
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


class Forward(NamedTuple):
    """This is one forward of a watched network."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    """What the layer put out: one tensor, or all levels of a pyramid."""
    output: Any
    """What the network put out; None of a compiled one."""
    graph: bool
    """Whether gradients were enabled."""


class Watch:
    """Records the arguments and the output of every forward and what a layer puts out in it, graph and all.

    It serves training, where the caller runs the forward; `close` takes the hooks off again. Downstream gets a clone,
    so that an in-place operation right after the layer cannot rewrite the record. The record is a view: the coarse
    levels of a pyramid come from its finer ones, and a gradient at a view covers only what follows it. Copies of the
    network (`copy.deepcopy`, for averaged weights) are not watched, nor are the forwards of a `Session`, nor what a
    checkpoint runs again in the backward. `twice`: what follows the layer runs with the attention that can be
    differentiated twice, for the others have no second derivative.
    """

    def __init__(self, root: nn.Module, layer: Layer, *, twice: bool = False) -> None:
        """Puts hooks on the network and on the layer's module."""
        assert layer.module is not None
        self._open, self._layer, self._root, self._twice = True, layer, root, twice
        self._arguments = list[tuple[tuple[Any, ...], dict[str, Any], bool]]()
        self._calls = list[list[Tensor]]()
        self._outputs = list[Any]()
        self._copies = list[bool]()
        self._kernels = ExitStack()
        self._handles = [
            root.register_forward_pre_hook(self._start, with_kwargs=True),
            layer.module.register_forward_hook(self._store),
            root.register_forward_hook(self._finish, always_call=twice),
        ]

    def _start(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._open or (not torch.compiler.is_compiling() and session_of(root) is not None):
            return
        self._clear()
        if root is self._root:
            self._arguments.append((args, kwargs, torch.is_grad_enabled()))
        else:
            self._copies.append(True)

    def _store(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Stores views of what the layer puts out, and hands on copies."""
        if not (self._open and self._arguments) or self._outputs:
            return output
        if not torch.compiler.is_compiling() and session_of(self._root) is not None:
            return output
        tensors = tensors_of(output, self._layer)
        if not tensors:
            return output
        views = [t.view_as(t) for t in tensors]
        self._calls.append(views)
        if self._twice and len(self._calls) == 1 and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
        return exchanged(output, tensors, [t.clone() for t in views])

    def _finish(self, _root: nn.Module, _args: Any, output: Any) -> None:
        """Ends the record. After an error of the network there is no output, and no record.

        The output of a compiled network is not kept: to hold it would be an input of another graph.
        """
        if torch.compiler.is_compiling():
            if self._open and self._arguments and not self._outputs:
                self._outputs.append(None)
            return
        if self._open:
            self._kernels.close()
            if self._arguments and not self._outputs and output is not None and session_of(self._root) is None:
                self._outputs.append(output)

    def _clear(self) -> None:
        for stored in (self._arguments, self._calls, self._outputs, self._copies):
            stored.clear()

    def last(self) -> Forward:
        """Hands out the last forward once. KonkyoError: there was none since the last time."""
        if not self._open:
            raise KonkyoError(
                "this network is not watched: hooks were taken off, or this is a copy; begin anew with it"
            )
        arguments, calls, outputs, copies = self._arguments[:], self._calls[:], self._outputs[:], self._copies[:]
        self._clear()
        if copies:
            raise KonkyoError(
                "the network ran in copies of itself, as torch.nn.DataParallel makes them for several devices; "
                "DistributedDataParallel (a process per device) runs the network itself"
            )
        if not arguments or not calls or not outputs:
            raise KonkyoError(
                f"layer {self._layer.name!r} put out nothing since it was last asked: run the network on images before "
                "each call; torch.compile hears of hooks that are there at its first forward"
            )
        args, kwargs, graph = arguments[0]
        return Forward(args, kwargs, calls[self._layer.call], outputs[0], graph)

    def take(self) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], list[Tensor]]:
        """Hands out the last forward once, as ((args, kwargs), what the layer put out).

        KonkyoError: there was none with gradients since the last time.
        """
        forward = self.last()
        if not forward.graph:
            raise KonkyoError("the last forward was without gradients: run the network with gradients enabled")
        return (forward.args, forward.kwargs), forward.tensors

    def close(self) -> None:
        """Takes the hooks off the network."""
        self._open = False
        self._clear()
        self._kernels.close()
        for handle in self._handles:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy: its hooks still run in its network's forwards, but record nothing."""
        return {
            **{"_open": False, "_twice": False, "_arguments": [], "_calls": [], "_outputs": [], "_copies": []},
            **{"_handles": [], "_kernels": ExitStack()},
        }


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

    inside = set(open_modules(root)) - outside
    innermost = (m for m in inside if not any(m.children()) or isinstance(m, torch.jit.ScriptModule))
    with hooked(innermost, after=hook):
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
