"""Run: a network runs on an image with a hook on every module, and what they put out is noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge, saved_tensors_hooks

from konkyo.engine.grids import Change, Projection, Readings
from konkyo.engine.layer import Layer, exchanged, main_tensor, maps_in
from konkyo.engine.session import hooked, open_modules

Forward: TypeAlias = Callable[[Tensor], Tensor]
Call: TypeAlias = tuple[str, int]
"""A module's name, and which of its calls in a forward."""

_PASS_THROUGH = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Flatten),
    nn.Softmax,  # of attention: (N, heads, L, L) is no grid of the picture, though L x L may look like one
)
_SPATIAL = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)


@dataclass
class Output:
    """This is what one call of a module put out in the first run."""

    kind: str
    shape: tuple[int, ...]
    edges: list[GradientEdge]
    """Where the gradients of its grids arrive."""
    readings: list[tuple[Layer, tuple[int, ...]]]
    sums: dict[int, Tensor]
    """Random sums over the channels, by the axis of the channels."""
    levels: list[tuple[int, ...]] = field(default_factory=list)
    """The sizes of its levels, where it puts out a pyramid."""
    changes: list[dict[int, Tensor]] = field(default_factory=list)
    """What every change of the image does to those sums."""


class Run:
    """This runs a network and notes what its modules put out."""

    def __init__(self, forward: Forward, root: nn.Module, image: Tensor, free: bool = False) -> None:
        self.forward, self.root, self.image = forward, root, image
        reached = set(open_modules(root))
        self.names = {module: name for name, module in root.named_modules() if name and module in reached}
        self.outputs: dict[Call, Output] = {}
        self.order: list[Call] = []
        self.output = torch.zeros(())
        self.image_node: Node | None = None
        self.leaf, self.whole_graph = image, False
        self.head_input: Tensor | None = None
        self.head = 0
        """How many outputs were noted before the last module with weights ran."""
        self.readings, self.projection = Readings(image.shape[2:], free), Projection()
        self.changes: list[Change] = []

    def first(self, most: int | None) -> None:
        """Runs the network on the image, and stores the graph: its end of `most` bytes, or all of it."""
        calls: dict[str, int] = {}

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            """Notes what a module puts out, and hands on copies that have a place in the graph of their own."""
            name = self.names[module]
            call = name, calls.get(name, 0)
            calls[name] = call[1] + 1
            if not any(module.children()) and any(True for _ in module.parameters(recurse=False)):
                self.head_input, self.head = main_tensor(args), len(self.order)
            tensors = _grids(output, self.image.ndim)
            if not tensors or isinstance(module, _PASS_THROUGH):
                return output
            if isinstance(module, _SPATIAL):
                kernel: Any = module.kernel_size
                if max((kernel,) if isinstance(kernel, int) else kernel) > 1:
                    self.readings.learn(tensors[0].shape)
            handed = [tensor.clone() for tensor in tensors]
            self._note(call, type(module).__name__, tensors, handed)
            return exchanged(output, tensors, handed)

        with torch.enable_grad(), _stored(self.root, most), hooked(self.names, after=hook):
            self.leaf = self.image.detach().clone().requires_grad_()
            start = self.leaf.clone()
            self.image_node, self.whole_graph = start.grad_fn, most is None
            self.output = self.forward(start)

    def _note(self, call: Call, kind: str, tensors: Sequence[Tensor], handed: Sequence[Tensor]) -> None:
        shape = tuple(tensors[0].shape)
        readings = list(self.readings.of(call[0], shape))
        axes = {layer.channel_axis % len(shape) for layer, _ in readings}
        edges = [get_gradient_edge(t) for t in handed if t.requires_grad]
        sums = {axis: self.projection(tensors[0], axis) for axis in axes}
        levels = [tuple(t.shape[2:]) for t in tensors] if len(tensors) > 1 else []
        self.outputs[call] = Output(kind, shape, edges, readings, sums, levels)
        self.order.append(call)

    def again(self, change: Change) -> None:
        """Runs the network on the changed image, and notes how well the cells follow the change."""
        calls: dict[str, int] = {}

        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            name = self.names[module]
            call = name, calls.get(name, 0)
            calls[name] = call[1] + 1
            noted = self.outputs.get(call)
            if noted is None or not noted.sums:
                return
            tensors = _grids(output, self.image.ndim)
            if tensors and tuple(tensors[0].shape) == noted.shape:
                changed = {axis: self.projection(tensors[0], axis) - sums for axis, sums in noted.sums.items()}
                noted.changes.append(changed)

        self.changes.append(change)
        with torch.no_grad(), hooked(self.names, after=hook):
            self.forward(change.image)


def _grids(output: Any, axes: int) -> list[Tensor]:
    """Returns the levels of a pyramid, which are all that a module puts out; else its first tensor, if it is one."""
    if not isinstance(output, Tensor):
        levels = list({id(t): t for t in maps_in(output)}.values())
        sizes = {tuple(t.shape[2:]) for t in levels}
        if len(levels) > 1 and len(sizes) == len(levels) and all(_is_level(t, axes) for t in levels):
            return levels
    tensor = main_tensor(output)
    return [] if tensor is None or not tensor.is_floating_point() else [tensor]


def _is_level(tensor: Tensor, axes: int) -> bool:
    """Tells whether a tensor is of one image with more than one cell."""
    return tensor.ndim == axes and len(tensor) == 1 and math.prod(tensor.shape[2:]) > 1


@contextmanager
def _stored(root: nn.Module, most: int | None) -> Iterator[None]:
    """Within the context a forward stores the end of its graph only, `most` bytes of activations; None: all of it."""
    if most is None:
        yield
        return
    weights = {t.untyped_storage().data_ptr() for t in root.parameters()}
    stored: list[list[Tensor]] = []
    total = 0

    def pack(tensor: Tensor) -> Any:
        nonlocal total
        if tensor.untyped_storage().data_ptr() in weights:
            return [tensor]
        holder = [tensor]
        stored.append(holder)
        total += tensor.numel() * tensor.element_size()
        while total > most and stored:
            oldest = stored.pop(0)
            total -= oldest[0].numel() * oldest[0].element_size()
            oldest.clear()
        return holder

    def unpack(holder: Any) -> Tensor:
        if not holder:
            raise RuntimeError("this part of the graph was not stored")
        tensor: Tensor = holder[0]
        return tensor

    with saved_tensors_hooks(pack, unpack):
        yield
