"""Rules of linear maps: how what a convolution or a linear layer put out is made of parts that share its relevance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.engine.functions import Application, norm_arguments, with_slopes
from konkyo.engine.rules import Rule, Rules
from konkyo.utils.tensors import per_item, safe_divide

TINY = 1e-12
"""What stands for a pixel of value 0, so that gradient times value can be relevance there, too."""


@dataclass(eq=False)
class LinearCall:
    """This is a linear map that ran, together with what was folded into it; its rule is applied when it is read."""

    function: Callable[..., Tensor]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    rest: tuple[Any, ...]
    named: dict[str, Any]
    rule: Rule
    where: str
    """Its kind: "conv", "linear" or "first"."""
    bounds: tuple[Tensor, ...] = ()
    """The least and the largest values that `x` may have, of pixels."""
    native: bool = True
    """Whether what it put out is in the graph as it ran, so that autograd knows its slope."""
    applied: bool = False
    read: bool = False
    """Whether it is part of what was folded."""

    @property
    def axis(self) -> int:
        """This is the axis of channels of what it puts out."""
        return -1 if self.function is functional.linear else 1

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """Runs the map with another input and other weights, without a bias."""
        return self.function(x, weight, None, *self.rest, **self.named)

    def added(self, like: Tensor) -> Tensor:
        """Returns the bias, so that it broadcasts with what was put out."""
        if self.bias is None:
            return like.new_zeros(())
        return self.bias.detach() if self.axis == -1 else self.bias.detach().view(-1, *[1] * (like.ndim - 2))

    def scaled(self, scale: Tensor | None, shift: Tensor | None, native: bool) -> LinearCall:
        """Returns this map, followed by a factor and a summand per channel of what it puts out."""
        weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
        if scale is not None:
            weight = weight * per_item(scale, weight)
            bias = None if bias is None else bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return replace(self, weight=weight, bias=bias, native=native, applied=False, read=False)


_Part: TypeAlias = tuple[float, Tensor, Tensor]
"""A coefficient, a differentiable part of what a linear map put out, and the sum that relevance is divided by."""


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """Returns sums with epsilon added in their own sign (of 0 a positive one), so that they can be divided by."""
    return z + epsilon * torch.where(z >= 0, 1.0, -1.0).to(z) if epsilon else z


def nonzero(values: Tensor) -> Tensor:
    """Returns the values, and something tiny in place of those nearer to 0."""
    return torch.where(values.abs() < TINY, TINY, values)


def _of_signs(call: LinearCall, positive: bool) -> Tensor:
    """Returns the part of a linear map's result that comes from positive products (or from negative ones)."""
    x, weight = call.x, call.weight
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    first, second = (up, down) if positive else (down, up)
    return call.run(x.clamp(min=0), first) + call.run(x.clamp(max=0), second)


def _epsilon(call: LinearCall, out: Tensor, rules: Rules) -> list[_Part]:
    z = out.detach() - call.added(out) if rules.bias == "leave_out" else out.detach()
    return [(1.0, out if call.native else call.run(call.x, call.weight), stabilised(z, rules.epsilon))]


def _gamma(call: LinearCall, out: Tensor, rules: Rules) -> list[_Part]:
    (gamma,) = call.rule.numbers
    plain = out if call.native else call.run(call.x, call.weight)
    bias = torch.zeros_like(call.added(out)) if rules.bias == "leave_out" else call.added(out)
    z = out.detach() - call.added(out) + bias
    up, down = _of_signs(call, True), _of_signs(call, False)
    signed = torch.where(z > 0, up, down)
    extra = torch.where(z > 0, bias.clamp(min=0), bias.clamp(max=0))
    total = stabilised(z + gamma * (signed.detach() + extra), rules.epsilon)
    return [(1.0, plain + gamma * signed, torch.where(z == 0, 0.0, total))]


def _alpha_beta(call: LinearCall, out: Tensor, rules: Rules) -> list[_Part]:
    alpha, beta = call.rule.numbers or (1.0, 0.0)
    bias = call.added(out) if rules.bias == "absorb" else out.new_zeros(())
    up = _of_signs(call, True)
    parts = [(alpha, up, up.detach() + bias.clamp(min=0))]
    if beta:
        down = _of_signs(call, False)
        parts.append((-beta, down, down.detach() + bias.clamp(max=0)))
    return parts


def _flat(call: LinearCall, _out: Tensor, _rules: Rules) -> list[_Part]:
    return _by_weights(call, torch.ones_like(call.weight))


def _w_square(call: LinearCall, _out: Tensor, _rules: Rules) -> list[_Part]:
    return _by_weights(call, call.weight.detach() ** 2)


def _by_weights(call: LinearCall, weights: Tensor) -> list[_Part]:
    """Shares relevance by weights alone, whatever the input is."""
    return [(1.0, call.run(_units(call.x), weights), call.run(torch.ones_like(call.x.detach()), weights))]


def _box(call: LinearCall, _out: Tensor, rules: Rules) -> list[_Part]:
    low, high = call.bounds
    units, weight = _units(call.x), call.weight.detach()

    def above_the_least(of: Tensor) -> Tensor:
        least = call.run(of * low, weight.clamp(min=0)) + call.run(of * high, weight.clamp(max=0))
        return call.run(of * call.x.detach(), weight) - least

    total = above_the_least(torch.ones_like(call.x.detach()))
    return [(1.0, above_the_least(units), stabilised(total, rules.epsilon))]


def _units(x: Tensor) -> Tensor:
    """Returns ones whose relevance is that of the values."""
    return x / nonzero(x.detach())


_LINEAR: dict[str, Callable[[LinearCall, Tensor, Rules], list[_Part]]] = {
    "epsilon": _epsilon,
    "gamma": _gamma,
    "alpha_beta": _alpha_beta,
    "z_plus": _alpha_beta,
    "flat": _flat,
    "w_square": _w_square,
    "box": _box,
}
"""The rules of linear maps: how what was put out is made of parts, whose slopes share its relevance."""


def applied(call: LinearCall, out: Tensor, rules: Rules) -> Tensor:
    """Returns what a linear map put out, with the backward of its rule."""
    shares = [
        coefficient * (part * safe_divide(out.detach(), total).detach())
        for coefficient, part, total in _LINEAR[call.rule.name](call, out, rules)
    ]
    return with_slopes(sum(shares[1:], shares[0]), out)  # also where a sum is 0


# --- factors and summands after a linear map --------------------------------------------------------------------------

_Affine: TypeAlias = "tuple[Tensor | None, Tensor | None] | None"
"""A factor and a summand (channels,), each None where there is none; None: it is something else."""


def affine(call: LinearCall, run: Application) -> _Affine:
    """Returns the factor and the summand per channel that a function is of what a linear map put out."""
    return _AFFINE[run.name](call, run) if run.name in _AFFINE else None


def _batch_norm(_call: LinearCall, run: Application) -> _Affine:
    values = norm_arguments(run)
    mean, variance = values["running_mean"], values["running_var"]
    if values.get("training") or mean is None or variance is None:
        return None
    scale = (variance + values.get("eps", 1e-5)).rsqrt()
    scale = scale if values.get("weight") is None else scale * values["weight"].detach()
    shift = -mean * scale
    return scale, shift if values.get("bias") is None else shift + values["bias"].detach()


def _factor(call: LinearCall, run: Application) -> _Affine:
    scale = _per_channel(call, run)
    return None if scale is None else (scale, None)


def _summand(call: LinearCall, run: Application) -> _Affine:
    shift = None if run.kwargs else _per_channel(call, run)
    return None if shift is None else (None, shift)


def _per_channel(call: LinearCall, run: Application) -> Tensor | None:
    """Returns the constant that a function of two is given, if it is one value for each channel."""
    x = run.after[0]
    others = [value for value in run.args[:2] if value is not x]
    if len(run.args) < 2 or len(others) != 1 or not isinstance(others[0], (int, float, Tensor)):
        return None
    value = torch.as_tensor(others[0], dtype=x.dtype, device=x.device).detach()
    count = x.shape[call.axis]
    shape = [1] * x.ndim
    shape[call.axis] = count
    if value.ndim > x.ndim or any(s not in (1, t) for s, t in zip(value.shape[::-1], shape[::-1], strict=False)):
        return None
    return value.reshape(-1).expand(count)


_AFFINE: dict[str, Callable[[LinearCall, Application], _Affine]] = {
    "batch_norm": _batch_norm,
    **dict.fromkeys(("mul", "rmul", "multiply"), _factor),
    **dict.fromkeys(("add", "radd"), _summand),
}
"""Factors and summands per channel."""
