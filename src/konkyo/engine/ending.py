"""Ending: which operations a network ends in, as the graph of its output tells."""

from __future__ import annotations

import re
from enum import Enum
from functools import reduce
from typing import TypeAlias

from torch import Tensor
from torch.autograd.graph import Node

_Found: TypeAlias = "Ending | None"


class Ending(Enum):
    """What the last operations of a network make of its output."""

    LOGITS = "logits"
    """It can be any number."""
    PROBABILITIES = "probabilities"
    """It is a sigmoid or softmax as it comes."""
    SQUASHED = "squashed"
    """It is made of numbers that a bounded function put out, and may be a probability."""
    MIXED = "mixed"
    """It is made of any numbers by sums, products or quotients, and may be normalised."""
    UNKNOWN = "unknown"
    """There is no graph that tells."""


_SQUASHING = frozenset(("Sigmoid", "Softmax", "Hardsigmoid"))
_BOUNDED = frozenset(("Exp", "Exp2", "Reciprocal", "Tanh", "Erf", "Erfc", "Hardtanh", "Clamp", "ClampMin", "ClampMax"))
_VIEWS = frozenset(
    (
        *("View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Index", "Alias"),
        *("IndexSelect", "Clone", "ToCopy", "Permute", "Transpose", "T", "Expand", "Split", "Unbind", "AsStrided"),
    )
)
_MIXING = frozenset(
    (
        *("Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Mean", "Sum", "Prod", "Amax", "Amin", "Max", "Min", "Maximum"),
        *("Minimum", "Cat", "Stack", "Where", "Lerp", "Pow", "Sqrt"),
    )
)
_DEEPEST = 40
"""So many operations are followed; a longer chain is no activation of a network's end."""


def ending_of(output: Tensor) -> Ending:
    """Returns what the output's graph says of its last operations, without a look at the values."""
    return _ending(output.grad_fn, {}, _DEEPEST) or Ending.UNKNOWN


def _ending(node: Node | None, known: dict[Node, _Found], depth: int) -> _Found:
    """Returns what a node of the graph puts out; None for a constant or a parameter."""
    if node is None or node.name().endswith("AccumulateGrad"):
        return None
    if depth == 0:
        return Ending.LOGITS
    if node not in known:
        known[node] = _of_node(node, known, depth)
    return known[node]


def _of_node(node: Node, known: dict[Node, _Found], depth: int) -> _Found:
    match = re.fullmatch(r"_?(\w+?)Backward\d+", node.name())  # functions of the user's own have no number
    name = match[1] if match else ""
    if not name:
        return Ending.UNKNOWN
    if name in _SQUASHING:
        return Ending.PROBABILITIES
    if name in _BOUNDED:
        return Ending.SQUASHED
    if name not in _VIEWS and name not in _MIXING:
        return Ending.LOGITS
    parts = [_ending(source, known, depth - 1) for source, _ in node.next_functions]
    endings = [part for part in parts if part is not None]
    if name in _VIEWS or not endings:
        return reduce(_weaker, endings) if endings else None
    return Ending.UNKNOWN if Ending.UNKNOWN in endings else _mixed(endings)


def _mixed(endings: list[Ending]) -> Ending:
    """Returns what sums and products of such numbers are."""
    bounded = all(ending in (Ending.PROBABILITIES, Ending.SQUASHED) for ending in endings)
    return Ending.SQUASHED if bounded else Ending.MIXED


def _weaker(one: Ending, other: Ending) -> Ending:
    return one if one is other else Ending.MIXED
