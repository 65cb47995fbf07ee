"""Functions of torch as they run: their names, kinds and arguments, for the other ways back through a network.

A way is a context in which a forward runs; the backward of its output then is the other one. Nothing stays behind on
the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map

HAND_ON = {
    *("relu", "relu6", "leaky_relu", "prelu", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_dropout", "feature_alpha_dropout", "add", "iadd", "radd", "sub", "isub"),
    *("rsub", "subtract", "neg", "negative", "sum", "mean", "where", "masked_fill", "max", "amax", "maximum"),
    *("min", "amin", "minimum", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "getitem"),
    *("select", "index_select", "narrow", "gather", "take_along_dim", "topk", "sort", "split", "split_with_sizes"),
    *("tensor_split", "chunk", "unbind", "flatten", "unflatten", "ravel", "reshape", "reshape_as", "view", "view_as"),
    *("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT", "squeeze", "unsqueeze"),
    *("permute", "expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "roll", "flip"),
    *("clone", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "pad", "interpolate"),
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
MULTIPLY = ("mul", "imul", "rmul", "multiply")
DIVIDE = ("div", "itruediv", "truediv", "divide", "true_divide")
CONVOLUTIONS = {f"conv{kind}{d}d": d for kind in ("", "_transpose") for d in (1, 2, 3)}
"""The convolutions, with their dimensions."""
ATTENTIONS = (functional.scaled_dot_product_attention, functional.multi_head_attention_forward)
NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm")
"""The norms that take their statistics from the features."""
_STATISTICS, _SCALE = ("running_mean", "running_var"), ("weight", "bias")
_OF_NORMS: dict[Callable[..., Any] | str, tuple[str, ...]] = {
    "layer_norm": ("input", "normalized_shape", *_SCALE, "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", *_SCALE, "eps"),
    functional.instance_norm: ("input", *_STATISTICS, *_SCALE, "use_input_stats", "momentum", "eps"),
    functional.batch_norm: ("input", *_STATISTICS, *_SCALE, "training", "momentum", "eps"),
    "instance_norm": ("input", *_SCALE, *_STATISTICS, "use_input_stats", "momentum", "eps"),
    "batch_norm": ("input", *_SCALE, *_STATISTICS, "training", "momentum", "eps"),
}
"""The parameters of norms in their order, which for those of `torch` itself is another one."""


@dataclass(frozen=True)
class Application:
    """This is a function of torch that runs on what depends on the leaf."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    after: list[Tensor]
    """The arguments that depend on the leaf."""
    out: Any = None
    """What it put out."""

    @property
    def name(self) -> str:
        """This is the function's name; see `name_of`."""
        return name_of(self.function)

    def argument(self, position: int, *names: str) -> Any:
        """Returns an argument by its position or one of its names; None: it was not given."""
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)

    def again(self, tensors: list[Tensor], others: list[Tensor]) -> Any:
        """Returns what the function puts out with other tensors in the places of some of its arguments."""
        return self.function(*exchanged(self.args, tensors, others), **exchanged(self.kwargs, tensors, others))


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
    """Returns a function's result without its graph, also that of functions with several results, as `topk`."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, out)


def with_slopes(share: Tensor, out: Tensor) -> Tensor:
    """Returns the values of `out`, but for rounding, with the slopes of `share`."""
    share = share.to(out.dtype)
    return share + (out - share).detach()


def is_sum_and_product(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tells whether this is `addcmul`, called in the form that `sum_and_product` computes."""
    return name_of(function) == "addcmul" and len(args) <= 3 and "out" not in kwargs


def sum_and_product(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Computes `addcmul`, or the same in place, step by step: input + value * tensor1 * tensor2."""
    values = dict(zip(("input", "tensor1", "tensor2"), args, strict=False)) | kwargs
    product = values["tensor1"] * values["tensor2"]
    value = values.get("value", 1)
    out: Tensor = values["input"] + (product if value == 1 else product * value)
    written: Tensor = args[0].copy_(out) if is_in_place(function, kwargs) else out
    return written


class NormCall(NamedTuple):
    """This is how a norm was called that takes its statistics from the features."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    axes: tuple[int, ...]
    """Over these axes of the groups the statistics are taken."""
    groups: int
    """So many groups of channels have statistics of their own; 0: all that `axes` says."""
    subtracts_mean: bool

    def centred(self, values: Tensor) -> Tensor:
        """Returns values like x in their groups, less the mean of each where the norm subtracts it."""
        grouped = values.reshape(len(values), self.groups, -1) if self.groups else values
        return grouped - grouped.mean(self.axes, keepdim=True) if self.subtracts_mean else grouped

    def per_channel(self, values: Tensor) -> Tensor:
        """Returns a weight or a bias so that it broadcasts with x, detached."""
        return values.detach().view(-1, *[1] * (self.x.ndim - 2)) if self.groups else values.detach()

    def weighted(self, values: Tensor) -> Tensor:
        """Returns values like x, times the norm's weight."""
        return values if self.weight is None else values * self.per_channel(self.weight)


def norm_arguments(run: Application) -> dict[str, Any]:
    """Returns the arguments that a norm was given, by name."""
    names = _OF_NORMS.get(run.function) or _OF_NORMS[run.name]
    return dict(zip(names, run.args, strict=False)) | run.kwargs


def norm_call(run: Application) -> NormCall | None:
    """Returns how a norm (one of `NORMS`) was called; None where more than its input depends on the leaf, or less."""
    name = run.name
    values = norm_arguments(run)
    x, eps = values["input"], values.get("eps", 1e-5)
    if len(run.after) != 1 or x is not run.after[0] or not values.get("use_input_stats", True):
        return None
    axes: tuple[int, ...] = (2,)
    groups: int = values["num_groups"] if name == "group_norm" else x.shape[1]
    if name in ("layer_norm", "rms_norm"):
        axes, groups = tuple(range(x.ndim - len(values["normalized_shape"]), x.ndim)), 0
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return NormCall(x, values.get("weight"), values.get("bias"), eps, axes, groups, name != "rms_norm")
