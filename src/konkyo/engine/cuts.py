"""Cuts: which outputs of modules everything passes on its way from the image to the score.

The graph of a forward tells, without a backward: a set of outputs is a cut if no path from the score reaches the image
around it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor
from torch.autograd.graph import Node

_WEIGHTED = (
    *("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Addmv", "Mv", "Dot", "Linear", "MkldnnLinear"),
    *("Convolution", "MkldnnConvolution", "CudnnConvolution", "SlowConv", "ThnnConv", "ConvDepthwise"),
    *("MkldnnRnnLayer", "CudnnRnn", "MiopenRnn", "NativeMultiHeadAttention", "Bilinear"),
)
"""The operators, as the graph names them, that multiply by weights."""

_POINTWISE = (
    *("Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Abs", "Pow", "Exp", "Log", "Sqrt", "Rsqrt", "Square", "Clamp"),
    *("ClampMin", "Relu", "LeakyRelu", "Prelu", "PreluKernel", "Elu", "Gelu", "Silu", "Mish", "Softplus", "Hardtanh"),
    *("Hardswish", "Hardsigmoid", "Sigmoid", "LogSigmoid", "Tanh", "Where", "MaskedFill", "Maximum", "Minimum"),
    *("Clone", "ToCopy", "Alias", "NativeDropout", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"),
    *("NativeGroupNorm", "Mean", "Sum"),
)
_LOCAL = (
    *("Convolution", "MkldnnConvolution", "CudnnConvolution", "SlowConv2D", "ThnnConv2D", "ConvDepthwise2D"),
    *("MaxPool2DWithIndices", "MaxPool3DWithIndices", "MkldnnMaxPool2D", "MkldnnMaxPool3D"),
    *("AvgPool1D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool1D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D"),
    *("MkldnnAdaptiveAvgPool2D", "UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D"),
    *("UpsampleLinear1D", "UpsampleBilinear2D", "UpsampleBicubic2D", "UpsampleTrilinear3D"),
)
_MOST_PADDING = 8
"""Wider a border for a convolution is not; a negative one is a crop."""
_ALONG = ("Cat", "Slice", "Split", "SplitWithSizes", "SafeSplit", "Chunk", "SplitWithSizesCopy")
"""What keeps every place where it is, if its axis is that of the channels."""

Key = TypeVar("Key", bound=Hashable)


class Graph:
    """It is the part of a forward's graph that depends on the image, and knows which module's output a node hands on.

    `outputs`: a key for every node that hands on a module's output.
    """

    def __init__(self, score: Tensor, image: Node, outputs: Mapping[Node, Any]) -> None:
        self._outputs = outputs
        self._image = image
        self._start = score.grad_fn
        self._children: dict[Node, list[Node]] = {}
        self._dependent: set[Node] = set()
        if self._start is not None:
            self._walk(self._start)

    def _walk(self, start: Node) -> None:
        """Notes every node's children, and which nodes depend on the image."""
        order, stack = list[Node](), [start]
        while stack:
            node = stack.pop()
            if node in self._children:
                continue
            self._children[node] = [child for child, _ in node.next_functions if child is not None]
            order.append(node)
            if node is not self._image:
                stack += self._children[node]
        parents: dict[Node, list[Node]] = {}
        for node in order:
            for child in self._children[node]:
                parents.setdefault(child, []).append(node)
        stack = [self._image] if self._image in self._children else []
        while stack:
            node = stack.pop()
            if node not in self._dependent:
                self._dependent.add(node)
                stack += parents.get(node, [])

    @cached_property
    def used(self) -> set[Any]:
        """These are the keys of the outputs that lie between the image and the score."""
        return {self._outputs[node] for node in self._dependent if node in self._outputs}

    @cached_property
    def weighted(self) -> set[Any]:
        """These are the keys of the outputs that an operator with weights follows before the score."""
        keys, seen, stack = set[Any](), set[tuple[Node, bool]](), [(self._start, False)]
        while stack:
            node, flag = stack.pop()
            if node is None or (node, flag) in seen or node not in self._dependent:
                continue
            seen.add((node, flag))
            if flag and node in self._outputs:
                keys.add(self._outputs[node])
            flag = flag or _is_weighted(node)
            stack += [(child, flag) for child in self._children[node]]
        return keys

    @cached_property
    def ends(self) -> set[Any]:
        """These are the keys of outputs with a norm or a sum after the last operator with weights: they end a block.

        The features of a network without a head end so; a map of predictions is what its last weights put out.
        """
        keys = set[Any]()
        for node in self._dependent:
            key, seen, stack = self._outputs.get(node), set[Node](), [node]
            while stack and key is not None and key not in keys:
                child = stack.pop()
                if child in seen or child not in self._dependent or _is_weighted(child):
                    continue
                seen.add(child)
                name = type(child).__name__
                if "Norm" in name or (name.startswith("Add") and self._joins(child)):
                    keys.add(key)
                stack += self._children[child]
        return keys

    def _joins(self, node: Node) -> bool:
        """Tells whether more than one of what a node reads depends on the image."""
        return sum(child in self._dependent for child in self._children[node]) > 1

    @cached_property
    def singles(self) -> list[Any]:
        """These are the keys of outputs that are cuts by themselves, the last first."""
        if self._start not in self._dependent:
            return []
        keys, heap, waiting = list[Any](), [self._at(self._start)], {self._start}
        while heap:
            *_, node = heapq.heappop(heap)
            key = self._outputs.get(node)
            if key is not None and key not in keys and all(self._outputs.get(other) == key for other in waiting):
                keys.append(key)
            waiting.discard(node)
            if node is self._image:
                continue
            for child in self._children[node]:
                if child in self._dependent and child not in waiting:
                    waiting.add(child)
                    heapq.heappush(heap, self._at(child))
        return keys

    def _at(self, node: Node) -> tuple[int, int, Node]:
        """Returns what orders nodes from the score to the image: a node comes after all that read it."""
        last = node is self._image or not self._children.get(node)
        return (1 if last else 0, 0 if last else -node._sequence_nr(), id(node), node)  # type: ignore[return-value]

    def frontier(self, stops: Callable[[Any], bool]) -> tuple[list[Any], bool]:
        """Returns the keys of the first outputs that `stops` accepts on all ways back, and whether a way avoids them.

        They are a cut if none does.
        """
        keys, seen, stack, avoided = list[Any](), set[Node](), [self._start], False
        while stack:
            node = stack.pop()
            if node is None or node in seen or node not in self._dependent:
                continue
            seen.add(node)
            key = self._outputs.get(node)
            if key is not None and stops(key):
                if key not in keys:
                    keys.append(key)
                continue
            if node is self._image:
                avoided = True
                continue
            stack += self._children[node]
        return keys, avoided

    @cached_property
    def in_position(self) -> set[Any]:
        """These are the keys of outputs made of the image by operators that leave every place where it is."""
        in_position, moved = set[Node](), set[Any]()
        for node in sorted(self._dependent, key=self._at, reverse=True):  # from the image on
            children = (child for child in self._children[node] if child in self._dependent)
            if node is self._image or (_keeps_places(node) and all(child in in_position for child in children)):
                in_position.add(node)
            elif node in self._outputs:
                moved.add(self._outputs[node])
        return self.used - moved

    def precedes(self, keys: Sequence[Any]) -> bool:
        """Tells whether one of these outputs is computed from another of them."""
        members = {node for node in self._dependent if self._outputs.get(node) in keys}
        for node in members:
            key, seen, stack = self._outputs[node], set[Node](), list(self._children[node])
            while stack:
                child = stack.pop()
                if child in seen or child not in self._dependent:
                    continue
                seen.add(child)
                if child in members and self._outputs[child] != key:
                    return True
                stack += self._children[child]
        return False


def _is_weighted(node: Node) -> bool:
    """Tells whether a node multiplies by weights; of a function of somebody's own nothing is known, so it may."""
    return _operator(node) in _WEIGHTED or not type(node).__name__[-1:].isdigit()


def _keeps_places(node: Node) -> bool:
    """Tells whether a node is known to leave every place of a (N, C, *grid) where it is."""
    operator = _operator(node)
    if operator == "ConstantPadNd":
        return all(0 <= pad <= _MOST_PADDING for pad in getattr(node, "_saved_pad", (-1,)))
    along_channels = operator in _ALONG and getattr(node, "_saved_dim", None) == 1
    return along_channels or operator in _POINTWISE or operator in _LOCAL


def _operator(node: Node) -> str:
    return type(node).__name__.rstrip("0123456789").removesuffix("Backward")
