"""Relevance: a forward puts out what it always does, but its gradient times a value is that value's relevance.

A table says by which rule each function hands relevance on (`_PIECEWISE_LINEAR`, and `_SMOOTH` for what transformers
and smooth activations need), `Rules` which rule linear maps follow by their kind and place, and `_LINEAR` has those
rules. Nothing stays behind on the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from konkyo.engine.attention import Attentions
from konkyo.engine.rules import (
    AS_IT_IS,
    HAND_ON,
    LOOKED_AT,
    Application,
    detached,
    exchanged,
    is_in_place,
    name_of,
    tensors_in,
)
from konkyo.engine.session import OwnMode, hook_after, hook_before, open_modules
from konkyo.errors import KonkyoError, NotApplicable, unknown
from konkyo.utils.tensors import safe_divide

TINY = 1e-12
"""What stands for a pixel of value 0, so that gradient times value can be relevance there, too."""

# --- which rule, where ------------------------------------------------------------------------------------------------

Addition: TypeAlias = Literal["ratio", "epsilon"]
"""How the relevance of a sum of two is shared: by their sizes, or by their signed values."""
ProductShare: TypeAlias = Literal["uniform", "gate"]
"""How the relevance of a product of two is shared: half each, or all to the one that is no sigmoid's output."""
AttentionRule: TypeAlias = Literal["cp", "attnlrp"]
"""Whether an attention's probabilities are constants (Ali et al., 2022), or get relevance (Achtibat et al., 2024)."""
BiasRule: TypeAlias = Literal["absorb", "leave_out"]
"""Whether what a linear map adds takes its part of the relevance, or none."""
Start: TypeAlias = Literal["logit", "one", "contrastive"]
"""The output's relevance: its part of the score; the same scaled to a sum of 1; 1 for the class and -1/K for others."""


@dataclass(frozen=True)
class Rule:
    """This is a rule of linear maps, with its numbers: those of gamma, or alpha and beta."""

    name: str
    numbers: tuple[float, ...] = ()


_DEFAULTS: dict[str, tuple[float, ...]] = {
    "epsilon": (),
    "gamma": (0.25,),
    "alpha_beta": (2.0, 1.0),
    "z_plus": (),
    "flat": (),
    "w_square": (),
    "box": (),
}
"""Every rule by its name, with its numbers where a user gives none."""
_AT_PIXELS = ("flat", "w_square", "box")
"""The rules that give relevance to what is 0: they have their place at the image."""


def rule_of(text: str, gamma: float = 0.25) -> Rule:
    """Reads a rule: its name, or its name with numbers, as in "gamma(0.5)" and "alpha_beta(2, 1)".

    KonkyoError: no such rule, or numbers that it does not take.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text) if isinstance(text, str) else None
    if match is None or match[1] not in _DEFAULTS:
        raise unknown("relevance rule", text, list(_DEFAULTS))
    usual = (gamma,) if match[1] == "gamma" else _DEFAULTS[match[1]]
    try:
        numbers = usual if match[2] is None else tuple(float(part) for part in match[2].split(","))
    except ValueError:
        numbers = (float("nan"),)
    if len(numbers) != len(usual) or any(not 0 <= number < float("inf") for number in numbers):
        raise KonkyoError(f"rule {match[1]} takes {len(usual)} numbers of 0 or more; got {text!r}")
    if match[1] == "alpha_beta" and abs(numbers[0] - numbers[1] - 1) > 1e-9:
        raise KonkyoError(f"alpha - beta is 1, or relevance is not kept; got {text!r}")
    return Rule(match[1], numbers)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """These are the rules of one way of handing relevance down."""

    conv: Rule
    linear: Rule
    first: Rule | None = None
    """Of the linear maps that read the image itself; None: that of their kind."""
    epsilon: float = 1e-6
    addition: Addition = "ratio"
    product: ProductShare = "uniform"
    attention: AttentionRule = "cp"
    bias: BiasRule = "absorb"
    start: Start = "logit"
    fold: bool = True
    """Whether a batch norm (or a factor and a summand per channel) after a linear map is part of that map."""
    smooth: bool = True
    """Whether there are rules beyond those of piecewise linear functions."""
    negated: bool = False
    """Whether the linear map that puts out the scores runs with negated weights on the way back."""

    def __post_init__(self) -> None:
        for kind in ("conv", "linear"):
            if (rule := getattr(self, kind)).name in _AT_PIXELS:
                raise KonkyoError(
                    f"rule {rule.name} gives relevance to values that are 0, so its place is at the image ('first'); "
                    f"got it for {kind!r}"
                )
        if not 0 <= self.epsilon < float("inf"):
            raise KonkyoError(f"epsilon is 0 or more; got {self.epsilon}")


Z_PLUS = Rule("z_plus")
CONTRASTIVE = Rules(
    conv=Z_PLUS,
    linear=Z_PLUS,
    epsilon=0.0,
    addition="epsilon",
    bias="leave_out",
    start="contrastive",
    fold=False,
    smooth=False,
)
"""The rules of `Probe.relevance`."""
COMPOSITES: Mapping[str, Mapping[str, str]] = {
    "epsilon": {"conv": "epsilon", "linear": "epsilon"},
    "epsilon_plus": {"conv": "z_plus", "linear": "epsilon"},
    "epsilon_plus_flat": {"conv": "z_plus", "linear": "epsilon", "first": "flat"},
    "epsilon_gamma_box": {"conv": "gamma", "linear": "epsilon", "first": "box"},
    "epsilon_alpha2_beta1": {"conv": "alpha_beta(2, 1)", "linear": "epsilon"},
    "epsilon_alpha2_beta1_flat": {"conv": "alpha_beta(2, 1)", "linear": "epsilon", "first": "flat"},
}
"""The composites: the rule of every kind of linear map, by name."""


# --- linear maps ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _LinearCall:
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

    def scaled(self, scale: Tensor | None, shift: Tensor | None, native: bool) -> _LinearCall:
        """Returns this map, followed by a factor and a summand per channel of what it puts out."""
        weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
        if scale is not None:
            weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            bias = None if bias is None else bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return replace(self, weight=weight, bias=bias, native=native, applied=False, read=False)


_Part: TypeAlias = tuple[float, Tensor, Tensor]
"""A coefficient, a differentiable part of what a linear map put out, and the sum that relevance is divided by."""


def _stabilised(z: Tensor, epsilon: float) -> Tensor:
    return z + epsilon * torch.where(z >= 0, 1.0, -1.0).to(z) if epsilon else z


def nonzero(values: Tensor) -> Tensor:
    """Returns the values, and something tiny in place of those nearer to 0."""
    return torch.where(values.abs() < TINY, TINY, values)


def _of_signs(call: _LinearCall, positive: bool) -> Tensor:
    """Returns the part of a linear map's result that comes from positive products (or from negative ones)."""
    x, weight = call.x, call.weight
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    first, second = (up, down) if positive else (down, up)
    return call.run(x.clamp(min=0), first) + call.run(x.clamp(max=0), second)


def _epsilon(call: _LinearCall, out: Tensor, rules: Rules) -> list[_Part]:
    z = out.detach() - call.added(out) if rules.bias == "leave_out" else out.detach()
    return [(1.0, out if call.native else call.run(call.x, call.weight), _stabilised(z, rules.epsilon))]


def _gamma(call: _LinearCall, out: Tensor, rules: Rules) -> list[_Part]:
    (gamma,) = call.rule.numbers
    plain = out if call.native else call.run(call.x, call.weight)
    bias = torch.zeros_like(call.added(out)) if rules.bias == "leave_out" else call.added(out)
    z = out.detach() - call.added(out) + bias
    up, down = _of_signs(call, True), _of_signs(call, False)
    signed = torch.where(z > 0, up, down)
    extra = torch.where(z > 0, bias.clamp(min=0), bias.clamp(max=0))
    total = _stabilised(z + gamma * (signed.detach() + extra), rules.epsilon)
    return [(1.0, plain + gamma * signed, torch.where(z == 0, 0.0, total))]


def _alpha_beta(call: _LinearCall, out: Tensor, rules: Rules) -> list[_Part]:
    alpha, beta = call.rule.numbers or (1.0, 0.0)
    bias = call.added(out) if rules.bias == "absorb" else out.new_zeros(())
    up = _of_signs(call, True)
    parts = [(alpha, up, up.detach() + bias.clamp(min=0))]
    if beta:
        down = _of_signs(call, False)
        parts.append((-beta, down, down.detach() + bias.clamp(max=0)))
    return parts


def _flat(call: _LinearCall, _out: Tensor, _rules: Rules) -> list[_Part]:
    return _by_weights(call, torch.ones_like(call.weight))


def _w_square(call: _LinearCall, _out: Tensor, _rules: Rules) -> list[_Part]:
    return _by_weights(call, call.weight.detach() ** 2)


def _by_weights(call: _LinearCall, weights: Tensor) -> list[_Part]:
    """Shares relevance by weights alone, whatever the input is."""
    return [(1.0, call.run(_units(call.x), weights), call.run(torch.ones_like(call.x.detach()), weights))]


def _box(call: _LinearCall, _out: Tensor, rules: Rules) -> list[_Part]:
    low, high = call.bounds
    units, weight = _units(call.x), call.weight.detach()

    def above_the_least(of: Tensor) -> Tensor:
        least = call.run(of * low, weight.clamp(min=0)) + call.run(of * high, weight.clamp(max=0))
        return call.run(of * call.x.detach(), weight) - least

    total = above_the_least(torch.ones_like(call.x.detach()))
    return [(1.0, above_the_least(units), _stabilised(total, rules.epsilon))]


def _units(x: Tensor) -> Tensor:
    """Returns ones whose relevance is that of the values."""
    return x / nonzero(x.detach())


_LINEAR: dict[str, Callable[[_LinearCall, Tensor, Rules], list[_Part]]] = {
    "epsilon": _epsilon,
    "gamma": _gamma,
    "alpha_beta": _alpha_beta,
    "z_plus": _alpha_beta,
    "flat": _flat,
    "w_square": _w_square,
    "box": _box,
}
"""The rules of linear maps: how what was put out is made of parts, whose slopes share its relevance."""


def _applied(call: _LinearCall, out: Tensor, rules: Rules) -> Tensor:
    """Returns what a linear map put out, with the backward of its rule."""
    shares = [
        coefficient * (part * safe_divide(out.detach(), total).detach())
        for coefficient, part, total in _LINEAR[call.rule.name](call, out, rules)
    ]
    share = sum(shares[1:], shares[0])
    return share + (out - share).detach()  # the value is exact, also where a sum is 0


# --- other functions --------------------------------------------------------------------------------------------------

_Rule: TypeAlias = "Callable[[Application, _Relevance], Any]"
"""What a function put out, with the backward of its rule; None: the rule does not cover how it was called."""


def _hand_on(run: Application, _mode: _Relevance) -> Any:
    return run.out


def _first_of(run: Application) -> Tensor:
    first: Tensor = run.args[0] if run.args else run.kwargs["input"]
    return first


def _of_input(run: Application, mode: _Relevance) -> Any:
    """Hands all relevance on to the input, as in batch norms alone and in smooth activations."""
    x = _first_of(run)
    if len(run.after) != 1 or x is not run.after[0]:
        return None
    # Pixels may be 0, and have relevance.
    factor = nonzero(run.out) / nonzero(x) if x in mode.first else safe_divide(run.out, x)
    share = x * factor.detach()
    return share + (run.out - share).detach()


def _clip_at_zero(run: Application, _mode: _Relevance) -> Any:
    low = run.args[1] if len(run.args) > 1 else run.kwargs.get("min_val", run.kwargs.get("min"))
    return run.out if isinstance(low, (int, float)) and low == 0 else None


def _clip_around_zero(run: Application, mode: _Relevance) -> Any:
    """Clips hand relevance on where they leave 0 what it is: others put out what no input has."""
    low = run.args[1] if len(run.args) > 1 else run.kwargs.get("min_val", run.kwargs.get("min"))
    high = run.args[2] if len(run.args) > 2 else run.kwargs.get("max_val", run.kwargs.get("max"))
    name = name_of(run.function)
    if name == "clamp_max":
        low, high = None, run.kwargs.get("max", low)
    if name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    known = all(bound is None or isinstance(bound, (int, float)) for bound in (low, high))
    around = known and (low is None or low <= 0) and (high is None or high >= 0)
    return _of_input(run, mode) if around else None


def _power(run: Application, mode: _Relevance) -> Any:
    """A power of a positive exponent hands relevance on; x^0 does not depend on x, and 1 / x has no value at 0."""
    exponent = run.args[1] if len(run.args) > 1 else run.kwargs.get("exponent")
    return _of_input(run, mode) if isinstance(exponent, (int, float)) and exponent > 0 else None


def _by_constant(run: Application, _mode: _Relevance) -> Any:
    return run.out if len(run.after) == 1 else None


def _divided_by_constant(run: Application, _mode: _Relevance) -> Any:
    return run.out if len(run.after) == 1 and run.after[0] is run.args[0] else None


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
MULTIPLY = ("mul", "imul", "rmul", "multiply")
DIVIDE = ("div", "itruediv", "truediv", "divide", "true_divide")
_PIECEWISE_LINEAR: dict[str, _Rule] = {
    **dict.fromkeys(HAND_ON, _hand_on),
    "batch_norm": _of_input,
    **dict.fromkeys(("clamp", "clip", "hardtanh"), _clip_at_zero),
    **dict.fromkeys(MULTIPLY, _by_constant),
    **dict.fromkeys(DIVIDE, _divided_by_constant),
}
"""The rule of every function of piecewise linear networks that has one, by its name; linear maps have theirs apart."""


def _factored(out: Tensor, factor: Tensor | float) -> Tensor:
    """Returns the values, their slopes times a factor."""
    share = out * factor
    return share + (out - share).detach()


def _mean(run: Application, mode: _Relevance) -> Any:
    """Averages and sums follow the epsilon rule; their weights are all alike."""
    out: Tensor = run.out
    return _factored(out, safe_divide(out, _stabilised(out, mode.rules.epsilon)).detach())


def _sum_of_two(run: Application, mode: _Relevance) -> Any:
    """Shares the relevance of a sum; a constant that is added is a bias."""
    out: Tensor = run.out
    pair = [value for value in run.args[:2] if isinstance(value, Tensor)]
    if len(run.after) == 1:
        if run.after[0] in mode.first or mode.rules.bias == "leave_out":
            return _of_one(run, mode)
        return out
    if len(run.after) != 2 or len(pair) != 2:
        return None
    if mode.rules.addition == "epsilon":
        return _mean(run, mode)
    scale = run.kwargs.get("alpha", 1)
    a, b = pair[0], pair[1] * scale if scale != 1 else pair[1]
    shared = safe_divide(out.detach(), a.detach().abs() + b.detach().abs())
    share = a * (a.detach().sign() * shared) + b * (b.detach().sign() * shared)
    return share + (out - share).detach()


def _of_one(run: Application, mode: _Relevance) -> Any:
    """Hands all relevance on to the one argument that depends on the image, where it has the shape of the result."""
    x = run.after[0]
    if x.shape != run.out.shape:
        return run.out
    return _of_input(Application(run.function, (x,), {}, run.after, run.out), mode)


def _difference(run: Application, mode: _Relevance) -> Any:
    """Differences are linear, as in centring; a constant that is taken away is a bias."""
    return _sum_of_two(run, mode) if len(run.after) == 1 else run.out


def _product(run: Application, mode: _Relevance) -> Any:
    if len(run.after) == 1:
        return _of_one(run, mode) if run.after[0] in mode.first else run.out
    if len(run.after) != 2:
        return None
    if mode.rules.product == "gate":
        gates = [value in mode.gates for value in run.after]
        if gates[0] != gates[1]:
            values = [value.detach() if gate else value for value, gate in zip(run.after, gates, strict=True)]
            return values[0] * values[1]
    return _factored(run.out, 0.5)


def _matrix_product(run: Application, mode: _Relevance) -> Any:
    """Half of the relevance goes to each of two that depend on the image, each by the epsilon rule."""
    out: Tensor = run.out
    if len(run.after) > 2:
        return None
    shared = safe_divide(out, _stabilised(out, mode.rules.epsilon)).detach()
    return _factored(out, shared / len(run.after))


def _quotient(run: Application, mode: _Relevance) -> Any:
    """A denominator is a constant, as the standard deviation of a norm is."""
    if not any(run.args[0] is value for value in run.after):
        return None
    if len(run.after) == 1:
        return _product(run, mode)
    if len(run.after) != 2:
        return None
    return run.args[0] / run.args[1].detach()


def _constant(run: Application, mode: _Relevance) -> Any:
    """Sizes and spreads, by which norms divide, are constants; what is made of them may multiply and divide alone."""
    out: Tensor = run.out.detach()
    mode.spreads[out] = f"{name_of(run.function)} that is no divisor"
    return out


def _softmax(run: Application, mode: _Relevance) -> Any:
    """Attention's probabilities, over three axes or more."""
    out: Tensor = run.out
    if out.ndim < 3:
        return None
    return out.detach() if mode.rules.attention == "cp" else out


def _norm(run: Application, mode: _Relevance) -> Any:
    """Norms are centring and a factor, the spread being a constant; what they add is a bias."""
    name, x = name_of(run.function), _first_of(run)
    values = dict(zip(NORMS[name], run.args, strict=False)) | run.kwargs
    weight, bias = values.get("weight"), values.get("bias")
    if len(run.after) != 1 or x is not run.after[0] or not values.get("use_input_stats", True):
        return None
    eps = values.get("eps", 1e-5)
    if name in ("layer_norm", "rms_norm"):
        axes = tuple(range(x.ndim - len(values["normalized_shape"]), x.ndim))
        grouped, shape = x, tuple[int, ...]()
    else:
        groups = values["num_groups"] if name == "group_norm" else x.shape[1]
        grouped = x.reshape(len(x), groups, -1)
        axes, shape = (2,), (-1, *[1] * (x.ndim - 2))
    centred = grouped if name == "rms_norm" else grouped - grouped.mean(axes, keepdim=True)
    if eps is None:
        eps = torch.finfo(x.dtype).eps
    spread = (centred.detach() ** 2).mean(axes, keepdim=True).add(eps).sqrt()
    share = (centred / spread).reshape(x.shape)
    if weight is not None:
        share = share * weight.detach().view(shape or weight.shape)
    if bias is not None and mode.rules.bias == "leave_out":
        share = _factored(share, safe_divide(run.out, run.out - bias.detach().view(shape or bias.shape)).detach())
    return share + (run.out - share).detach()


NORMS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": (
        *("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    ),
}
"""The norms that take their statistics from the features, with their parameters."""
_GATES = ("sigmoid", "hardsigmoid")
_ACTIVATIONS = (
    *("gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "softsign", "tanh", "hardswish", *_GATES),
    *("relu6", "square"),
)
_SMOOTH: dict[str, _Rule] = {
    **_PIECEWISE_LINEAR,
    **dict.fromkeys(("add", "iadd", "radd"), _sum_of_two),
    **dict.fromkeys(("sub", "isub", "subtract"), _difference),
    **dict.fromkeys(("mean", "sum", *(f"{k}avg_pool{d}d" for k in ("", "adaptive_") for d in (1, 2, 3))), _mean),
    **dict.fromkeys((*_ACTIVATIONS, "normalize"), _of_input),
    **dict.fromkeys(("hardtanh", "clamp", "clip", "clamp_min", "clamp_max"), _clip_around_zero),
    "pow": _power,
    **dict.fromkeys(MULTIPLY, _product),
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "einsum", "mm"), _matrix_product),
    **dict.fromkeys(DIVIDE, _quotient),
    **dict.fromkeys(("sqrt", "rsqrt", "var", "std", "norm", "vector_norm"), _constant),
    "softmax": _softmax,
    **dict.fromkeys(NORMS, _norm),
}
"""The rule of every function that has one, by its name, for networks of all kinds."""
_KEEP_PIXELS = {
    *("add", "radd", "sub", "isub", "subtract", "iadd", *MULTIPLY, *DIVIDE, "batch_norm", "clone", "contiguous"),
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "flatten", "unflatten", "reshape", "view"),
    *("reshape_as", "view_as", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze", "getitem"),
    *("select", "narrow", "split", "chunk", "unbind", "cat", "concat", "stack", "flip", "roll", "copy", "mT", "T"),
}
"""Functions whose result is the image still: prepared, or arranged in another way."""


# --- the forward ------------------------------------------------------------------------------------------------------


class Steps(Attentions):
    """Computes attentions step by step, so that every step is a function with a rule."""

    def _record(self, probabilities: Tensor) -> Tensor:
        self.probabilities.append(probabilities)
        return probabilities


class _Relevance(OwnMode):
    """Runs what depends on the leaf by the rules. `running` are the modules whose forward runs, innermost last."""

    def __init__(self, rules: Rules, bounds: tuple[Tensor, ...] | None) -> None:
        super().__init__()
        self.rules, self.table = rules, _SMOOTH if rules.smooth else _PIECEWISE_LINEAR
        self.running: list[nn.Module] = []
        self.first = WeakIdKeyDictionary()
        """The image and what only prepares or arranges it, each with its bounds."""
        self.gates = WeakIdKeyDictionary()
        """What sigmoids put out."""
        self.spreads = WeakIdKeyDictionary()
        """Sizes and spreads that were made constants, and what was made of them; each with what has no rule."""
        self._bounds = bounds
        self._outputs = WeakIdKeyDictionary()
        """What functions put out here; scripts and custom functions of autograd run unseen."""
        self._calls = WeakIdKeyDictionary()
        """The linear map that put a tensor out."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch in place of itself, as the mode's protocol asks."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():  # before the leaf, or within a custom function of autograd
            return function(*args, **kwargs)
        learned = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        after = [t for t in learned if not isinstance(t, nn.Parameter)]
        for tensor in after:
            if tensor.grad_fn is not None and tensor not in self._outputs:
                raise _without_rule(f"{tensor.grad_fn.name()}, from outside of torch's functions")
        if after and self.rules.smooth and function in ATTENTIONS:
            with self:
                return Steps().__torch_function__(function, types, args, kwargs)
        if self._bounds is not None and after and not len(self.first):
            self.first[after[0]] = self._bounds
        spreads = [t for t in tensors_in((args, kwargs)) if t in self.spreads] if len(self.spreads) else []
        if after and spreads and name_of(function) not in (*LOOKED_AT, *MULTIPLY, *DIVIDE):
            raise self._refused(self.spreads[spreads[0]])  # its part would be lost in silence
        out = self._run(function, args, kwargs, after)
        for tensor in tensors_in((out,)):
            if spreads and not after and tensor.is_floating_point():
                self.spreads[tensor] = self.spreads[spreads[0]]
        if learned and not after:  # what weights alone make is constant, as they are
            return detached(out)
        for tensor in (*tensors_in((out,)), *tensors_in(args[:1])):  # the first may be written to
            self._outputs[tensor] = None
        return out

    def _run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], after: list[Tensor]
    ) -> Any:
        """Runs one function, its gradient by the rule where it depends on the leaf. NotApplicable: there is no rule."""
        name = name_of(function)
        if not after or name in LOOKED_AT:
            out = function(*args, **kwargs)
            if not after or not any(t.requires_grad for t in tensors_in((out,))) or any(out is a for a in args[:1]):
                return out
        if name in AS_IT_IS and any((out := function(*args, **kwargs)) is a for a in args[:1]):
            return out
        inplace = is_in_place(function, kwargs)
        if not inplace and (folded := self._folded(name, function, args, kwargs, after)) is not None:
            return folded
        for tensor in after:
            self._apply(tensor)
        matrix = self.rules.smooth and _times_matrix(name, args, kwargs, after)
        if matrix or name in (*_CONVOLUTIONS, "linear") or (self.rules.smooth and name in _TRANSPOSED):
            if matrix:
                call = self._linear("linear", functional.linear, (args[0], args[1].mT), {}, after)
            else:
                call = self._linear(name, function, args, kwargs, after)
            if call is not None:
                out = function(*args, **kwargs)
                out = out.clone() if out._is_view() else out  # what is a view cannot get another graph for nothing
                self._calls[out] = call
                return out
            raise self._refused(name)
        rule = self.table.get(name)
        written = args[0] if inplace and rule is not None and rule is not _hand_on else None
        out = function(*args, **kwargs) if written is None else function(written.clone(), *args[1:], **kwargs)
        if not any(t.requires_grad for t in tensors_in((out,))):  # a size, a comparison, a detached copy
            return out
        ruled = None if rule is None else rule(Application(function, args, kwargs, after, out), self)
        if ruled is None:
            raise self._refused(name)
        ruled = ruled if written is None else written.copy_(ruled)
        self._mark(name, function, args, kwargs, after, ruled)
        return ruled

    def _refused(self, name: str) -> NotApplicable:
        return _without_rule(f"{type(self.running[-1]).__name__}'s {name}" if self.running else name)

    def _mark(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        after: list[Tensor],
        ruled: Any,
    ) -> None:
        """Notes results that are the image still, and gates."""
        if name in _KEEP_PIXELS and after and all(t in self.first for t in after):
            bounds: list[Any] = []
            for i in range(len(self.first[after[0]])):
                swapped = [exchanged(a, after, [self.first[t][i] for t in after]) for a in (args, kwargs)]
                with torch.no_grad():
                    bounds.append(list(tensors_in((function(*swapped[0], **swapped[1]),))))
            for at, tensor in enumerate(tensors_in((ruled,))):
                ends = [bound[at] for bound in bounds]
                self.first[tensor] = (torch.minimum(*ends), torch.maximum(*ends)) if ends else ()
        if name in _GATES or (name in HAND_ON and len(after) == 1 and after[0] in self.gates):
            for tensor in tensors_in((ruled,)):
                self.gates[tensor] = None

    # --- linear maps --------------------------------------------------------------------------------------------------

    def _linear(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        after: list[Tensor],
    ) -> _LinearCall | None:
        """Returns the call of a linear map; None where its weights depend on the leaf, too."""
        values = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x, weight, bias = values.pop("input"), values.pop("weight"), values.pop("bias", None)
        if len(after) != 1 or not x.requires_grad:
            return None
        flat = name != "linear" and all(s == 1 for s in (*weight.shape[2:], *x.shape[2:]))
        where = "linear" if name == "linear" or flat else "conv"
        rule, bounds = getattr(self.rules, where), ()
        if x in self.first and self.rules.first is not None:
            rule, where, bounds = self.rules.first, "first", self.first[x]
        named = {key: value for key, value in values.items() if key in kwargs}
        return _LinearCall(function, x, weight.detach(), bias, args[3:], named, rule, where, bounds)

    def _folded(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        after: list[Tensor],
    ) -> Any:
        """Runs a factor and a summand per channel after a linear map as part of that map; None: it is none."""
        if not self.rules.fold or len(after) != 1 or (name not in _AFFINE) or after[0] not in self._calls:
            return None
        call: _LinearCall = self._calls[after[0]]
        if name_of(call.function) in _TRANSPOSED:
            return None
        affine = _AFFINE[name](call, after[0], args, kwargs)
        if affine is None:
            return None
        # What is read may get the backward of its rule later, which a norm that saved it would see.
        copied = [after[0].clone()]
        out = function(*exchanged(args, after, copied), **exchanged(kwargs, after, copied))
        self._calls[out] = call.scaled(*affine, native=call.native and not call.applied)
        call.read = True
        return out

    def _apply(self, tensor: Tensor, *, last: bool = False) -> None:
        """Gives what a linear map put out the backward of its rule, once, before anything reads it."""
        if tensor not in self._calls or self._calls[tensor].applied:
            return
        call: _LinearCall = self._calls[tensor]
        call.applied = True
        if last and self.rules.negated:
            call = replace(call, weight=-call.weight, bias=None)
        with torch.enable_grad():
            tensor.copy_(_applied(call, tensor, self.rules))

    def end(self) -> None:
        """Applies the rules of linear maps that nothing has read, as of the one that put out the scores."""
        left = [
            tensor for tensor in list(self._calls) if not self._calls[tensor].applied and not self._calls[tensor].read
        ]
        if self.rules.negated and not left:
            raise NotApplicable("compares with the opposite of what a last linear map puts out; this network has none")
        for tensor in left:
            self._apply(tensor, last=True)


def _times_matrix(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], after: list[Tensor]) -> bool:
    """Tells whether a product is a linear layer in other words: features times one matrix of weights."""
    pair = name in ("matmul", "mm") and len(args) == 2 and not kwargs and len(after) == 1 and args[0] is after[0]
    return bool(pair and args[0].ndim > 1 and isinstance(args[1], Tensor) and args[1].ndim == 2)


_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
ATTENTIONS = (functional.scaled_dot_product_attention, functional.multi_head_attention_forward)
_Affine: TypeAlias = "tuple[Tensor | None, Tensor | None] | None"


def _batch_norm(_call: _LinearCall, _x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Affine:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    values = dict(zip(names, args, strict=False)) | kwargs
    mean, variance = values["running_mean"], values["running_var"]
    if values.get("training") or mean is None or variance is None:
        return None
    scale = (variance + values.get("eps", 1e-5)).rsqrt()
    scale = scale if values.get("weight") is None else scale * values["weight"].detach()
    shift = -mean * scale
    return scale, shift if values.get("bias") is None else shift + values["bias"].detach()


def _factor(call: _LinearCall, x: Tensor, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> _Affine:
    scale = _per_channel(call, x, args)
    return None if scale is None else (scale, None)


def _summand(call: _LinearCall, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Affine:
    shift = None if kwargs else _per_channel(call, x, args)
    return None if shift is None else (None, shift)


_AFFINE: dict[str, Callable[[_LinearCall, Tensor, tuple[Any, ...], dict[str, Any]], _Affine]] = {
    "batch_norm": _batch_norm,
    **dict.fromkeys(("mul", "rmul", "multiply"), _factor),
    **dict.fromkeys(("add", "radd"), _summand),
}
"""Factors and summands per channel."""


def _per_channel(call: _LinearCall, x: Tensor, args: tuple[Any, ...]) -> Tensor | None:
    """Returns the constant that a function of two was given, if it is one value for each channel."""
    others = [value for value in args[:2] if value is not x]
    if len(args) < 2 or len(others) != 1 or not isinstance(others[0], (int, float, Tensor)):
        return None
    value = torch.as_tensor(others[0], dtype=x.dtype, device=x.device).detach()
    count = x.shape[call.axis]
    shape = [1] * x.ndim
    shape[call.axis] = count
    if value.ndim > x.ndim or any(s not in (1, t) for s, t in zip(value.shape[::-1], shape[::-1], strict=False)):
        return None
    return value.reshape(-1).expand(count)


def _without_rule(what: str) -> NotApplicable:
    return NotApplicable(
        f"there is no relevance rule for {what}, which runs after the layer; networks of convolutions, batch norms and "
        "ReLUs have rules for all they do"
    )


@contextmanager
def ruled(root: nn.Module, rules: Rules, bounds: tuple[Tensor, ...] | None = None) -> Iterator[None]:
    """Within the context a forward puts out what it always does, but its gradient times a value is relevance.

    Convolutions and linear maps, modules or functions, follow the rule of their kind with the weights they run with.
    For ReLU, pooling, dropout, rearrangements and multiplication by a constant, gradient times value is relevance
    already (Montavon et al., 2019, Sec. 10.2). `bounds`: given where the leaf is the image, which may have a rule of
    its own; the least and the largest images for the rule box, else (). NotApplicable, when a function that has no
    rule runs on what depends on the leaf.
    """
    mode = _Relevance(rules, bounds)

    def start(module: nn.Module, _args: Any) -> None:
        mode.running.append(module)

    def end(_module: nn.Module, _args: Any, _out: Any) -> None:
        mode.running.pop()

    with ExitStack() as undo:
        for module in open_modules(root):
            undo.callback(hook_before(module, start).remove)
            undo.callback(hook_after(module, end, always_call=True).remove)
        with mode:
            yield
        mode.end()


def composed(
    composite: str,
    *,
    rules: Mapping[str, str] | None = None,
    gamma: float = 0.25,
    **settings: Any,
) -> Rules:
    """Returns the rules of a composite, some of them replaced: "conv", "linear" and "first" by name.

    `settings` are other fields of `Rules`. KonkyoError: an unknown composite, kind or rule.
    """
    if composite not in COMPOSITES:
        raise unknown("composite", composite, list(COMPOSITES))
    named = dict(COMPOSITES[composite])
    for kind, text in (rules or {}).items():
        if kind not in ("conv", "linear", "first"):
            raise unknown("kind of linear map", kind, ["conv", "linear", "first"])
        named[kind] = text
    return Rules(**cast(dict[str, Any], {kind: rule_of(text, gamma) for kind, text in named.items()}), **settings)
