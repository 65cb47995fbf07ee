"""Contextual decomposition of a network's output, and the penalty on what comes from outside of the object (CDEP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.capture import untouched
from konkyo.engine.functions import name_of, tensors_in
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.utils.tensors import at_least_float32, safe_divide


class Decomposition(NamedTuple):
    """The decomposition splits an output into two parts whose sum it is."""

    beta: Tensor
    """What comes from the features of the mask."""
    gamma: Tensor
    """What comes from all others, and from both together."""


def contextual_decomposition(network: nn.Module, images: Tensor, masks: Tensor) -> Decomposition:
    """Splits the output of a network in eval mode into what the masked pixels give and the rest. -> two of (N, K)

    Contextual decomposition as in Rieger et al. (ICML 2020), after Murdoch et al. (2018) and Singh et al. (2019). The
    image is beta = mask x and gamma = (1 - mask) x, and every layer keeps beta + gamma = its output:

    - convolution and linear layer: beta' = W beta + s b, gamma' = W gamma + (1 - s) b, with the bias b shared by
      s = |W beta| / (|W beta| + |W gamma|). Where both are 0 the share is that of the mask in the image; the paper
      leaves this open, and in the authors' code such biases are lost, so that beta + gamma is no longer the output.
    - batch norm with its running statistics is a linear layer, W = scale / sd and b = shift - mean W. The paper has no
      rule for it, and the authors' code passes it over.
    - ReLU: beta' = ReLU(beta), gamma' = ReLU(beta + gamma) - ReLU(beta).
    - max pooling: both parts at the place where their sum is largest. Mean pooling, sums of two branches, reshaping,
      concatenation and multiplication by a constant act on each part.
    - dropout is off.

    `images` (N, C, H, W) as the network takes them, where 0 is the value that says nothing. `masks` (N, H, W), bool or
    shares. Differentiable by the weights. Cost: about two forwards in eval mode; the network comes back as it was, also
    its running statistics. KonkyoError: other shapes, an output that is no tensor; NotApplicable: a function without a
    rule, such as a sigmoid, attention, or batch norm without running statistics.
    """
    _require(images, masks)
    with torch.autocast(images.device.type, enabled=False):
        values, shares = at_least_float32(images), masks.to(at_least_float32(images))[:, None]
        area = shares.flatten(1).mean(1)
        with untouched(network):
            output = network(_Parts(values * shares, values * (1 - shares), area))
    if not isinstance(output, _Parts):
        raise KonkyoError(f"a network that puts out one tensor was expected; got {type(output).__name__}")
    return Decomposition(output.beta, output.gamma)


def cdep(network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Returns the share of the decision that comes from outside of the object (Rieger et al., ICML 2020). -> ()

    e^beta / (e^beta + e^gamma) of every logit, where beta is what the pixels outside of the object give
    (`contextual_decomposition`) and 0 is what it shall be: the paper's penalty |share - 0| for one group of features,
    as the mean over logits and over images that have a mask, in [0, 1]. 1/2 says that inside and outside give alike,
    and an output of zeros has it too.

    `masks` (N, H, W) bool or shares, of what may matter, as of `right_reasons`. An image whose mask is empty is not
    known and left out. Errors and cost as of `contextual_decomposition`, with its own backward.
    """
    _require(images, masks)
    known = masks.flatten(1).any(1)
    beta, gamma = contextual_decomposition(network, images, 1 - masks.to(at_least_float32(images)))
    shares = (beta - gamma).sigmoid().flatten(1).mean(1)
    return torch.where(known, shares, 0.0).sum() / known.sum().clamp_min(1)


def _require(images: Tensor, masks: Tensor) -> None:
    if images.ndim != 4 or masks.shape != (len(images), *images.shape[2:]):
        raise KonkyoError(
            f"images (N, C, H, W) and masks (N, H, W) were expected; got {tuple(images.shape)} and {tuple(masks.shape)}"
        )


# --- two parts on their way through a network -------------------------------------------------------------------------


class _Parts:
    """This is a tensor in two parts; functions of torch and methods of tensors that get it run by the rules below."""

    def __init__(self, beta: Tensor, gamma: Tensor, area: Tensor) -> None:
        self.beta, self.gamma, self.area = beta, gamma, area

    @property
    def total(self) -> Tensor:
        """Returns what the network computes."""
        return self.beta + self.gamma

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs one function of torch by its rule, as the protocol asks."""
        return _run(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """Returns a property of the tensor, or its method by the rule."""
        attribute = getattr(Tensor, name)
        if not callable(attribute) or name in ("size", "dim", "numel", "is_floating_point"):
            return getattr(self.beta, name)
        return lambda *args, **kwargs: _run(attribute, (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        return _run(torch.add, (self, other), {})

    __radd__ = __add__

    def __iadd__(self, other: Any) -> Any:
        return self.become(_run(torch.add, (self, other), {}))

    def __mul__(self, factor: Any) -> Any:
        return _run(torch.mul, (self, factor), {})

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return self * -1

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __len__(self) -> int:
        return len(self.beta)

    def __truediv__(self, divisor: Any) -> Any:
        return _run(torch.div, (self, divisor), {})

    def __getitem__(self, index: Any) -> Any:
        return _run(Tensor.__getitem__, (self, index), {})

    def _unruly(self, _other: Any) -> Any:
        """Refuses an operator that no rule is for."""
        raise _without_rule("this operator (a power, a comparison, a product of matrices)")

    __pow__ = __rpow__ = __matmul__ = __rtruediv__ = __gt__ = __ge__ = __lt__ = __le__ = _unruly

    def become(self, other: _Parts) -> _Parts:
        """Takes the other's values: what an operation in place does to a tensor."""
        self.beta, self.gamma = other.beta, other.gamma
        return self


_Rule: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Any]


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs one function on parts by its rule. NotApplicable: there is none."""
    name = _DISPATCHED.get(function) or name_of(function)
    in_place = bool(kwargs.get("inplace")) or getattr(function, "__name__", "").endswith(("relu_", "add_"))
    if (rule := _RULES.get(name)) is None:
        raise _without_rule(name)
    out = rule(function, args, kwargs)
    return args[0].become(out) if in_place and isinstance(args[0], _Parts) else out


def _without_rule(what: str) -> NotApplicable:
    return NotApplicable(
        f"contextual decomposition has no rule for {what}; networks of convolutions, linear layers, batch norms with "
        "running statistics, ReLUs, pooling, sums and concatenations have rules for all they do"
    )


def _biased(beta: Tensor, gamma: Tensor, bias: Tensor | None, area: Tensor) -> _Parts:
    """Returns the parts with a bias, which is shared as their sizes are."""
    if bias is None:
        return _Parts(beta, gamma, area)
    sizes = beta.abs() + gamma.abs()
    share = torch.where(sizes > 0, safe_divide(beta.abs(), sizes), area.view(-1, *[1] * (beta.ndim - 1)))
    return _Parts(beta + share * bias, gamma + (1 - share) * bias, area)


def _affine(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Parts:
    """Applies the rule of convolutions and linear layers."""
    values = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
    x, weight, bias = values.pop("input"), values.pop("weight"), values.pop("bias", None)
    if not isinstance(x, _Parts) or isinstance(weight, _Parts):
        raise _without_rule(f"{name_of(function)} with a weight that depends on the image")
    beta, gamma = (function(part, weight, None, *args[3:], **values) for part in (x.beta, x.gamma))
    if bias is not None and name_of(function) != "linear":
        bias = bias.view(-1, *[1] * (beta.ndim - 2))
    return _biased(beta, gamma, bias, x.area)


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def _batch_norm(_function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Parts:
    values = dict(zip(_BATCH_NORM, args, strict=False)) | dict(kwargs)
    x, mean, variance = values["input"], values["running_mean"], values["running_var"]
    if mean is None or values.get("training"):
        raise _without_rule("batch norm with the statistics of the batch")
    scale = (variance + values.get("eps", 1e-5)).rsqrt()
    if values.get("weight") is not None:
        scale = scale * values["weight"]
    shift = -mean * scale if values.get("bias") is None else values["bias"] - mean * scale
    scale, shift = (v.view(-1, *[1] * (x.beta.ndim - 2)) for v in (scale, shift))
    return _biased(x.beta * scale, x.gamma * scale, shift, x.area)


def _relu(_function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Parts:
    x: _Parts = args[0] if args else kwargs["input"]
    beta = x.beta.relu()
    return _Parts(beta, x.total.relu() - beta, x.area)


def _max_pool(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Parts:
    """Takes both parts where their sum is largest."""
    name = _DISPATCHED.get(function) or name_of(function)
    x, *rest = args
    named = {key: value for key, value in kwargs.items() if key != "return_indices"}
    if kwargs.get("return_indices"):
        raise _without_rule("max pooling with indices")
    pool = getattr(functional, f"{name.removesuffix('_with_indices')}_with_indices")
    indices = pool(x.total, *rest, **named)[1]
    axes = int(name.partition("pool")[2][0])

    def at(part: Tensor) -> Tensor:
        return part.flatten(-axes).gather(-1, indices.flatten(-axes)).view_as(indices)

    return _Parts(at(x.beta), at(x.gamma), x.area)


def _dropout(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Parts:
    values = dict(zip(("input", "p", "training"), args, strict=False)) | dict(kwargs)
    if values.get("training", True) and values.get("p", 0.5) > 0:
        raise _without_rule(f"{name_of(function)} that draws in eval mode")
    parts: _Parts = values["input"]
    return parts


def _each(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Applies a linear function to each part."""
    parts = list(_parts_in((*args, *kwargs.values())))
    if kwargs.get("value"):
        raise _without_rule("padding with a value other than 0")
    if name_of(function) in ("cat", "concat", "concatenate", "stack") and any(tensors_in(args)):
        raise _without_rule(f"{name_of(function)} of what depends on the image and what does not")
    results = [
        function(*(_only(v, part) for v in args), **{k: _only(v, part) for k, v in kwargs.items()})
        for part in ("beta", "gamma")
    ]
    if isinstance(results[0], (tuple, list)):
        return tuple(_Parts(beta, gamma, parts[0].area) for beta, gamma in zip(results[0], results[1], strict=True))
    return _Parts(results[0], results[1], parts[0].area)


def _scaled(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    first, second = args[:2] if len(args) > 1 else (args[0], kwargs["other"])
    if isinstance(second, _Parts) and (isinstance(first, _Parts) or name_of(function) != "mul"):
        raise _without_rule(f"{name_of(function)} of two things that depend on the image")
    return _each(function, args, kwargs)


def _sum(_function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Adds two branches part by part; a constant is a bias."""
    first, second = args[:2] if len(args) > 1 else (args[0], kwargs["other"])
    if kwargs.get("alpha", 1) != 1:
        raise _without_rule("a sum with a factor (alpha)")
    if isinstance(first, _Parts) and isinstance(second, _Parts):
        return _Parts(first.beta + second.beta, first.gamma + second.gamma, first.area)
    parts, constant = (first, second) if isinstance(first, _Parts) else (second, first)
    bias = torch.as_tensor(constant, dtype=parts.beta.dtype, device=parts.beta.device)
    return _biased(parts.beta, parts.gamma, bias, parts.area)


def _only(value: Any, part: str) -> Any:
    """Returns the argument with one part in the place of both."""
    if isinstance(value, _Parts):
        return getattr(value, part)
    return type(value)(_only(v, part) for v in value) if type(value) in (tuple, list) else value


def _parts_in(values: Any) -> Any:
    for value in values:
        if isinstance(value, _Parts):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _parts_in(value)


_DISPATCHED: dict[Callable[..., Any], str] = {
    getattr(functional, name): name
    for name in (f"{kind}_pool{d}d" for kind in ("max", "adaptive_max") for d in (1, 2, 3))
}
"""Functions that PyTorch chooses by a flag: they have no name of their own."""

_RULES: dict[str, _Rule] = {
    **dict.fromkeys((*(f"conv{d}d" for d in (1, 2, 3)), "linear"), _affine),
    "batch_norm": _batch_norm,
    "relu": _relu,
    **dict.fromkeys((*_DISPATCHED.values(), *(f"{name}_with_indices" for name in _DISPATCHED.values())), _max_pool),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout),
    **dict.fromkeys(("add", "iadd", "radd"), _sum),
    **dict.fromkeys(("mul", "multiply", "div", "truediv", "divide"), _scaled),
    **dict.fromkeys((f"{kind}_pool{d}d" for kind in ("avg", "adaptive_avg") for d in (1, 2, 3)), _each),
    **dict.fromkeys(
        ("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"), _each
    ),
    **dict.fromkeys(("mean", "sum", "getitem", "chunk", "split", "clone", "pad"), _each),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _each),
}
"""The rule of every function that has one, by its name."""
