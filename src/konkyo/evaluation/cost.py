"""What an explanation costs, counted in forwards of the network and not timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from konkyo.explanation.explain import Which, explain
from konkyo.explanation.inputs import Images
from konkyo.explanation.run import Where
from konkyo.models import Model, as_model

FORWARD = "edge_map"
"""A method that takes nothing more of the network than one forward."""
_aten = torch.ops.aten


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call] # of its base's __init_subclass__
    """Within this context the multiplications of convolutions and matrix products are counted, backwards as forwards.

    Elementwise functions, sums, sorting and decompositions are not.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        counted = flop_registry.get(func._overloadpacket) or _OF_CPU.get(func._overloadpacket)
        if counted is not None:
            self.count += int(counted(*args, **(kwargs or {}), out_val=result)) // 2
        return result


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    count: int = sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    return count


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    shapes = (grad.shape, query.shape, key.shape, value.shape)
    count: int = sdpa_backward_flop_count(*shapes)  # type: ignore[no-untyped-call]
    return count


_OF_CPU: Mapping[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Attentions that PyTorch's own table lacks."""


def forwards(model: Model | nn.Module, images: Images, method: Which, *, layer: Where = None, **options: Any) -> float:
    """Returns how many forwards of the network a map of this method costs: operations, over those of one forward.

    Counted are the multiplications of convolutions and matrix products of `explain(model, images, method)`, divided by
    those of explaining the same images by nothing more than a forward (`FORWARD`). So a backward down to the pixels
    counts about one, one that ends at a late layer next to nothing, and RISE the number of its masks and one. It does
    not depend on the machine; time does, and is told by the benchmarks. Options are the method's, and those of
    `explain`. KonkyoError and NotApplicable: as of `explain`.
    """
    adapted = as_model(model)
    return operations_of(adapted, images, method, layer=layer, **options) / operations_of(adapted, images, FORWARD)


def operations_of(model: Model, images: Images, method: Which, *, layer: Where = None, **options: Any) -> int:
    """Returns how many multiplications explaining the images by a method takes, as `forwards` counts them."""
    explain(model, images, method=method, layer=layer, **options)  # what the first call finds out is not of the method
    with Operations() as operations:
        explain(model, images, method=method, layer=layer, **options)
    count: int = operations.count
    return count
