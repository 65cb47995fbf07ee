"""Guided ReLUs, another way back through a network, and what all such ways share: functions of torch as they run.

A way is a context in which a forward runs; the backward of its output then is the other one. Nothing stays behind on
the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.session import OwnMode
from konkyo.engine.sound import stored_in_checkpoints

# --- guided backpropagation ------------------------------------------------------------------------------------------


class _GuidedReLU(torch.autograd.Function):
    """This computes min(max(x, 0), top) and lets only positive gradients back: where it was on, or `everywhere`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float, inplace: bool, everywhere: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        out = x.clamp_(0, top) if inplace else x.clamp(0, top)
        ctx.save_for_backward(*([] if everywhere else [(out > 0) & (out < top)]))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        back = gradients[0].clamp(min=0)
        for passing in ctx.saved_tensors:
            back = back * passing
        return back, None, None, None


@dataclass(frozen=True)
class _Clip:
    """This says how a clipping function is called: its parameters, and the values where it has none of them."""

    parameters: tuple[str, ...]
    low: float = 0.0
    high: float = float("inf")
    inplace: bool = False


_GUIDED: dict[Callable[..., Any], _Clip] = {
    **dict.fromkeys((functional.relu, torch.relu, Tensor.relu), _Clip(("input", "inplace"))),
    **dict.fromkeys((functional.relu_, torch.relu_, Tensor.relu_), _Clip(("input",), inplace=True)),
    functional.relu6: _Clip(("input", "inplace"), high=6.0),
    functional.hardtanh: _Clip(("input", "min_val", "max_val", "inplace"), low=-1.0, high=1.0),
}
"""The functions that run guided, where they clip at 0."""


class GuidedReLUs(OwnMode):
    """Runs every ReLU and ReLU6, module or function, guided: Springenberg et al., 2015, Sec. 3.4.

    `everywhere`: their backward does not ask where they were on, as in Zeiler & Fergus, 2014.
    """

    def __init__(self, everywhere: bool = False) -> None:
        super().__init__()
        self.everywhere, self.used = everywhere, False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch in place of itself, as the mode's protocol asks."""
        kwargs = kwargs or {}
        if function in _GUIDED:
            clip = _GUIDED[function]
            values = dict(zip(clip.parameters, args, strict=False)) | kwargs
            if values.get("min_val", clip.low) == 0:
                self.used = True
                inplace = clip.inplace or bool(values.get("inplace"))
                with stored_in_checkpoints():
                    return _GuidedReLU.apply(
                        values["input"], values.get("max_val", clip.high), inplace, self.everywhere
                    )
        return function(*args, **kwargs)


@contextmanager
def guided_relus(_root: nn.Module) -> Iterator[GuidedReLUs]:
    """Within the context every ReLU of a forward lets only positive gradients back.

    Other activations pass gradients of both signs as ever: a network that mixes them with ReLUs (MobileNetV3 and its
    hardswish) is guided in part.
    """
    with GuidedReLUs() as mode:
        yield mode


@contextmanager
def deconvolved_relus(_root: nn.Module) -> Iterator[GuidedReLUs]:
    """Within the context the backward of every ReLU is a ReLU itself, wherever the ReLU was on."""
    with GuidedReLUs(everywhere=True) as mode:
        yield mode


# --- functions -------------------------------------------------------------------------------------------------------

HAND_ON = {
    *("relu", "relu6", "leaky_relu", "prelu", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_dropout", "feature_alpha_dropout", "add", "iadd", "radd", "sub", "isub"),
    *("rsub", "subtract", "neg", "negative", "sum", "mean", "where", "masked_fill", "max", "amax", "maximum"),
    *("min", "amin", "minimum", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "getitem"),
    *("select", "index_select", "narrow", "gather", "split", "split_with_sizes", "tensor_split", "chunk"),
    *("unbind", "flatten", "unflatten", "ravel", "reshape", "reshape_as", "view", "view_as", "permute"),
    *("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT", "squeeze", "unsqueeze"),
    *("expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "roll", "flip", "clone"),
    *("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "pad", "interpolate"),
    *("upsample", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold", "fold", "requires_grad"),
    "copy",
    *(f"{kind}_pool{d}d" for kind in ("avg", "adaptive_avg", "max", "adaptive_max") for d in (1, 2, 3)),
    *(f"{kind}_pool{d}d_with_indices" for kind in ("max", "adaptive_max") for d in (1, 2, 3)),
}
"""Functions whose gradient times value is relevance: linear ones without weights, ReLUs, and choices."""
AS_IT_IS = {"to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous"}
"""Functions that may return the very tensor which they are given."""
LOOKED_AT = {
    *("size", "shape", "ndim", "dim", "ndimension", "numel", "nelement", "stride", "dtype", "device", "requires_grad"),
    *("is_floating_point", "is_complex", "is_contiguous", "is_leaf", "grad_fn", "detach", "data", "is_cuda", "len"),
    *("layout", "is_quantized", "is_sparse", "is_nested", "is_meta", "element_size", "data_ptr", "grad"),
}
"""Functions that read no value in the graph."""


@dataclass(frozen=True)
class Application:
    """This is a function of torch that ran on what depends on the leaf."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    after: list[Tensor]
    """The arguments that depend on the leaf."""
    out: Any


def name_of(function: Callable[..., Any]) -> str:
    """Returns one name for a function, the tensor's method, the one in place, the operator and the attribute."""
    named: Any = getattr(function, "__self__", None) if getattr(function, "__name__", "") == "__get__" else function
    return str(getattr(named, "__name__", named)).strip("_")


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yields the tensors among arguments or results of a function, also those in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


def is_in_place(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Tells by a function's name, or by how it is called, whether it writes its result into what it is given."""
    name = getattr(function, "__name__", "")
    special = name.startswith("__i") and name.strip("_") in ("iadd", "isub", "imul", "itruediv")
    return bool(kwargs.get("inplace")) or special or (name.endswith("_") and not name.endswith("__"))


def exchanged(value: Any, tensors: list[Tensor], others: list[Tensor]) -> Any:
    """Returns arguments with other tensors in the places of some."""
    if isinstance(value, Tensor):
        return next((other for tensor, other in zip(tensors, others, strict=True) if tensor is value), value)
    if isinstance(value, (tuple, list)):
        return type(value)(exchanged(item, tensors, others) for item in value)
    if isinstance(value, dict):
        return {key: exchanged(item, tensors, others) for key, item in value.items()}
    return value


def detached(out: Any) -> Any:
    """Returns a function's result without its graph."""
    if isinstance(out, Tensor):
        return out.detach()
    return type(out)(detached(item) for item in out) if type(out) in (tuple, list) else out
