"""Gradient flow: where a network cuts the gradient off on its way back to the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from konkyo.engine.forward import Pass
from konkyo.engine.session import OwnMode, running_modules
from konkyo.errors import KonkyoError


class _Cuts(OwnMode):
    """Notes the first function whose result has no graph though what went in had one."""

    def __init__(self, names: Mapping[nn.Module, str], running: Sequence[nn.Module]) -> None:
        super().__init__()
        self.names, self.running = names, running
        self.cut = ""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch, as the mode's protocol asks."""
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if not self.cut and isinstance(out, Tensor) and out.is_floating_point() and not out.requires_grad:
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if any(t.requires_grad and not isinstance(t, nn.Parameter) for t in inputs):
                module = self.names[self.running[-1]] if self.running else ""
                where = f" in module {module!r}" if module else ""
                name = getattr(function, "__name__", str(function))
                self.cut = f"{name}(){where} runs without a graph: " + (
                    "it cuts gradients off" if torch.is_grad_enabled() else "under torch.no_grad()"
                )
        return out


def why_no_gradient(pass_: Pass) -> str:
    """Returns what cuts the gradient of the output off, and what to do; "" where that is not seen.

    It costs one more forward, of the first image.
    """
    root, way_out = pass_.network.module, "methods without gradients, such as rise, work all the same"
    integers = [n for n, m in root.named_modules() if ".quantized" in type(m).__module__]
    if integers:
        return (
            f"no gradient flows back: the network's int8 layers ({', '.join(integers[:3])}) have none; explain the "
            f"network before its quantisation, or {way_out}"
        )
    names = {module: name for name, module in root.named_modules()}
    with running_modules(root) as running, torch.enable_grad(), _Cuts(names, running) as cuts:
        try:
            image = pass_.images[:1].detach().requires_grad_().clone()
            output = pass_.forward(image)
        except KonkyoError:
            return ""
    nodes = _nodes(output)
    if any(node.name().startswith("CheckpointFunction") for node in nodes):
        cuts.cut = "gradient checkpointing with use_reentrant=True hides what is in it; use_reentrant=False does not"
    elif not cuts.cut or image.grad_fn in nodes:  # what was cut off is not all that there is
        return ""
    return f"no gradient flows back from the output to this layer: {cuts.cut}; mend that in the network, or {way_out}"


def _nodes(output: Tensor) -> set[Node]:
    """Returns the nodes of the output's graph."""
    left, visited = [output.grad_fn], set[Node]()
    while left:
        node = left.pop()
        if node is not None and node not in visited:
            visited.add(node)
            left += [following for following, _ in node.next_functions]
    return visited
