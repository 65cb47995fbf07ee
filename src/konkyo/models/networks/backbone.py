"""The part of a classifier that ends in its last feature grid, for heads of one's own to be put on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from konkyo.engine.capture import untouched
from konkyo.errors import KonkyoError, unknown
from konkyo.models import Model
from konkyo.utils.tensors import grid_mean

SIDE = 128
"""Height and width, in pixels, of the image that a network is looked at with."""
_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)
"""What networks raise for an image size that they do not take."""
_YOURSELF = "give the module that makes the grid: Backbone(features, channels)"


class Backbone(nn.Module):
    """Images (N, 3, H, W) -> their last feature grid (N, channels, h, w), by `features`: any module that does that.

    KonkyoError, in a forward: `features` puts out something else.
    """

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features, self.channels = features, channels

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, 3, H, W) -> (N, channels, h, w)"""
        grid: Tensor = self.features(images)
        if not isinstance(grid, Tensor) or grid.ndim != 4 or grid.shape[1] != self.channels:
            came = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
            raise KonkyoError(f"a backbone puts out a grid (N, {self.channels}, h, w); this one put out {came}")
        return grid


class Pooled(nn.Module):
    """Features, the mean over their grid, and a linear head: images (N, 3, H, W) -> logits (N, K)."""

    def __init__(self, backbone: Backbone, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, 3, H, W) -> logits (N, K)"""
        logits: Tensor = self.head(grid_mean(self.backbone(images)))
        return logits


def as_backbone(network: nn.Module | Model) -> Backbone:
    """Returns the backbone itself, or that of a classifier, copied (`features_of`)."""
    return network if isinstance(network, Backbone) else features_of(network)


def fitting(part: nn.Module, backbone: Backbone) -> None:
    """Moves the part to the device and dtype of the backbone's weights."""
    like = next((p for p in backbone.parameters() if p.is_floating_point()), None)
    if like is not None:
        part.to(like.device, like.dtype)


def with_classes(network: Model, classes: int, images: Tensor) -> nn.Module | None:
    """Returns the network with a new linear layer of so many classes in the place of the one that makes its logits.

    `images` (N, C, H, W) that it takes show which layer that is: the last one whose output is the network's. The
    network itself is changed; its weights below are as they were, those of the new layer are drawn from the global
    random state. None: its logits are not the output of a linear layer, and nothing is changed.
    """
    module, outputs = network.module, dict[str, Tensor]()

    def note(name: str) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
            outputs[name] = output

        return keep

    heads = {name: m for name, m in module.named_modules() if name and isinstance(m, nn.Linear)}
    hooks = [head.register_forward_hook(note(name)) for name, head in heads.items()]
    try:
        with untouched(module), torch.no_grad():
            logits = network.select(module(images))
    finally:
        for hook in hooks:
            hook.remove()
    name = next((n for n, o in reversed(outputs.items()) if o.shape == logits.shape and torch.equal(o, logits)), None)
    if name is None:
        return None
    parent, _, last = name.rpartition(".")
    old = heads[name]
    head = nn.Linear(old.in_features, classes, old.bias is not None)
    setattr(module.get_submodule(parent), last, head.to(old.weight.device, old.weight.dtype))
    return module


def features_of(
    network: nn.Module | Model, layer: str | None = None, *, shape: Sequence[int] | None = None
) -> Backbone:
    """Copies the part of a classifier up to its last feature grid; the network itself stays as it is.

    The last grid is the last (N, C, h, w) from which alone everything after it is computed, and which is wider for a
    wider image. Pooling and head are left out, so that every weight of the copy is used; its weights have the names
    that they have in the network. `layer`: the output of this module instead, at its last call. `shape`: of the images
    (C, H, W) that it is looked at with, for networks that do not take 128 x 128 pixels.

    The network's own forward is traced (torch.fx). The modules in it are taken as they are, and opened only where the
    end of the grid is inside. KonkyoError: a forward that cannot be traced, or that is not the same in training and in
    evaluation. Also: no grid, or more than a head after the last one; an unknown layer.
    """
    module = (network if isinstance(network, Model) else Model(network)).module
    names = [name for name, _ in module.named_modules() if name]
    if layer is not None and layer not in names:
        raise unknown("layer", layer, names[::-1])
    with untouched(module), torch.no_grad():
        if shape is None:
            convolutions = (m for m in module.modules() if isinstance(m, nn.Conv2d))
            shape = (next((m.in_channels for m in convolutions), 3), SIDE, SIDE)
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
        image = like.new_zeros(1, *shape)
        look, end = _automatic(module, image) if layer is None else _named(module, image, layer)
        graph, channels = _until(look.traced, end.name), look.shapes[end][1]
        module.train()
        if str(_until(_traced(module, look.opened), end.name)) != str(graph):
            raise KonkyoError(
                f"the forward of {type(module).__name__} itself does one thing in training and another in evaluation "
                f"before its last grid; {_YOURSELF}"
            )
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            part = attrgetter(str(node.target))(look.traced)
            node.target = str(node.target).removeprefix("network.")
            parts[node.target] = part
    features = fx.GraphModule(parts, graph, class_name=f"FeaturesOf{type(module).__name__}")
    features.training = module.training
    backbone = Backbone(copy.deepcopy(features), channels)
    backbone.training = module.training
    return backbone


class _Called(nn.Module):
    """The network called with images alone, so that its other arguments have their defaults in a trace."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """Returns what the network puts out."""
        return self.network(images)


class _Tracer(fx.Tracer):
    """Records the calls of modules but those in `opened`, whose forwards it goes into.

    So what a module does in training and in evaluation, or for some shape only, stays what it is.
    """

    def __init__(self, opened: frozenset[str] = frozenset()) -> None:  # torch makes one without, to unpickle
        super().__init__()
        self._opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - named by torch
        """Returns whether a call of the module is recorded as one."""
        return module_qualified_name not in self._opened


def _traced(module: nn.Module, opened: frozenset[str]) -> fx.GraphModule:
    """Returns the forward as a graph, without what its output does not need. KonkyoError: it cannot be traced."""
    called = _Called(module)
    try:
        traced = fx.GraphModule(called, _Tracer(opened).trace(called))
    except Exception as error:  # a forward may do anything with the stand-ins for tensors, and fail in its own way
        raise KonkyoError(f"the forward of {type(module).__name__} cannot be traced ({error}); {_YOURSELF}") from error
    traced.graph.eliminate_dead_code()
    return traced


def _until(traced: fx.GraphModule, name: str) -> fx.Graph:
    """Its graph with the node of this name for its output; without an end where there is none."""
    graph = traced.graph
    for node in graph.nodes:
        if node.name == name:
            (output,) = (n for n in graph.nodes if n.op == "output")
            output.args = (node,)
            graph.eliminate_dead_code()
    return graph


class _Shapes(fx.Interpreter):
    """Runs a graph on an image as far as it takes it, and notes the shapes of all tensors."""

    def __init__(self, module: fx.GraphModule, image: Tensor) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...] | None] = {}
        """None: not a floating tensor. Nodes that were not reached are not in it."""
        self.refusal = ""
        try:
            self.run(image)
        except _REFUSALS as error:
            self.refusal = str(error).partition("\n")[0]

    def run_node(self, n: fx.Node) -> Any:
        """Returns the node's value."""
        value = super().run_node(n)
        self.shapes[n] = tuple(value.shape) if isinstance(value, Tensor) and value.is_floating_point() else None
        return value


@dataclass(frozen=True, eq=False)
class _Seen:
    """A network's forward as a graph, and the shapes in it for an image and for one of twice the width."""

    network: nn.Module
    opened: frozenset[str]
    """The modules whose calls are not recorded as one; names as in `_Called`."""
    traced: fx.GraphModule
    shapes: dict[fx.Node, Any]
    wide: dict[fx.Node, Any]
    refusal: str

    def is_grid(self, node: fx.Node) -> bool:
        """Returns whether the node's value is (N, C, h, w) with places of the picture for (h, w)."""
        one, other = self.shapes.get(node), self.wide.get(node)
        if one is None or other is None or len(one) != 4 or len(other) != 4:
            return False
        return bool(one[1] == other[1] and one[3] < other[3] and one[2] * one[3] > 1)

    def grids(self) -> Iterator[fx.Node]:
        """Returns the grids, from the last, from which alone all that follows is computed."""
        nodes = list(self.traced.graph.nodes)
        place = {node: i for i, node in enumerate(nodes)}
        needed, alone = 0, list[fx.Node]()  # needed: where the last use of any tensor so far is
        for node in nodes:
            tensor = node.op != "get_attr" and self.shapes.get(node, ()) is not None
            if tensor and needed <= place[node] and self.is_grid(node):
                alone.append(node)
            # A size of a tensor that is read (to flatten another one, say) is no use of the tensor.
            uses = [place[u] for u in node.users if u.op == "output" or self.shapes.get(u, ()) is not None]
            needed = max([needed, *uses]) if tensor else needed
        return reversed(alone)

    def called(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that the node calls."""
        return (
            self.network.get_submodule(str(node.target).removeprefix("network.")) if node.op == "call_module" else None
        )

    def sees_places(self, node: fx.Node) -> bool:
        """Tells whether the node calls a module that convolves, or has weights and puts out more for a wider image."""
        module = self.called(node)
        if module is None:
            return False
        convolutions = [m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)]
        grows = self.wide.get(node) not in (None, self.shapes.get(node)) and any(True for _ in module.parameters())
        return grows or any(side > 1 for m in convolutions for side in m.kernel_size)


def _look(network: nn.Module, image: Tensor, opened: frozenset[str]) -> _Seen:
    traced = _traced(network, opened)
    one, other = (_Shapes(traced, picture) for picture in (image, torch.cat([image, image], dim=-1)))
    return _Seen(network, opened, traced, one.shapes, other.shapes, one.refusal)


def _automatic(network: nn.Module, image: Tensor) -> tuple[_Seen, fx.Node]:
    """Returns the last grid, in modules opened as far as that takes.

    KonkyoError: none, or more than a head after it.
    """
    look = _look(network, image, frozenset({"network"}))
    while True:
        end = next(look.grids())  # the image itself at least
        users = [u for u in end.users if (module := look.called(u)) is not None and any(module.children())]
        if not users:
            break
        try:
            look = _look(network, image, look.opened | {str(u.target) for u in users})
        except KonkyoError:
            if end.op == "placeholder":
                raise
            break  # a head that cannot be looked into is one head
    if end.op == "placeholder":
        raise KonkyoError(
            f"{type(network).__name__} has no last feature grid (N, C, h, w) for images {tuple(image.shape[1:])}"
            + (f" ({look.refusal})" if look.refusal else "")
            + f"; name one: features_of(network, layer=...), images of its size: shape=(C, H, W), or {_YOURSELF}"
        )
    nodes = list(look.traced.graph.nodes)
    lost = [str(n.target).removeprefix("network.") for n in nodes[nodes.index(end) + 1 :] if look.sees_places(n)]
    if lost:
        raise KonkyoError(
            f"{type(network).__name__} goes on after its last grid with more than a head ({', '.join(lost[:8])}), "
            "which would be lost; say where its features end: features_of(network, layer=...)"
        )
    return look, end


def _named(network: nn.Module, image: Tensor, layer: str) -> tuple[_Seen, fx.Node]:
    """Returns what the module puts out at its last call. KonkyoError: no grid, or no call."""
    parts = ["network", *layer.split(".")]
    look = _look(network, image, frozenset(".".join(parts[:i]) for i in range(1, len(parts))))
    calls = [n for n in look.traced.graph.nodes if n.op == "call_module" and n.target == ".".join(parts)]
    if not calls or not look.is_grid(calls[-1]):
        what = f"puts out {look.shapes.get(calls[-1])}, which is no grid (N, C, h, w)" if calls else "is not called"
        grids = [str(n.target).removeprefix("network.") for n in look.grids() if n.op == "call_module"]
        raise KonkyoError(
            f"layer {layer!r} {what} for images {tuple(image.shape[1:])}; layers with one: {', '.join(grids[:8])}"
        )
    return look, calls[-1]
