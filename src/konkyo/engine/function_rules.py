"""Rules of functions: how each function of torch that is no linear map hands relevance on, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from konkyo.engine.functions import DIVIDE, HAND_ON, MULTIPLY, NORMS, Application, norm_call, with_slopes
from konkyo.engine.linear_rules import nonzero, stabilised
from konkyo.engine.rules import Rules
from konkyo.utils.tensors import safe_divide


@dataclass(eq=False)
class Marks:
    """These mark the tensors of a forward under relevance rules."""

    rules: Rules
    first: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    """The image and what only prepares or arranges it, each with its bounds."""
    gates: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    """What sigmoids put out."""
    spreads: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    """Sizes and spreads that were made constants, and what was made of them; each with what has no rule."""


FunctionRule: TypeAlias = Callable[[Application, Marks], Any]
"""What a function put out, with the backward of its rule; None: the rule does not cover how it was called."""


def hand_on(run: Application, _marks: Marks) -> Any:
    """Returns what the function put out: its gradient times a value is relevance as it is."""
    return run.out


def _first_of(run: Application) -> Tensor:
    first: Tensor = run.args[0] if run.args else run.kwargs["input"]
    return first


def _of_input(run: Application, marks: Marks) -> Any:
    """Hands all relevance on to the input, as in batch norms alone and in smooth activations."""
    x = _first_of(run)
    if len(run.after) != 1 or x is not run.after[0]:
        return None
    # Pixels may be 0, and have relevance.
    factor = nonzero(run.out) / nonzero(x) if x in marks.first else safe_divide(run.out, x)
    return with_slopes(x * factor.detach(), run.out)


def _clip_at_zero(run: Application, _marks: Marks) -> Any:
    low = run.argument(1, "min_val", "min")
    return run.out if isinstance(low, (int, float)) and low == 0 else None


def _clip_around_zero(run: Application, marks: Marks) -> Any:
    """Clips hand relevance on where they leave 0 what it is: others put out what no input has."""
    low, high = run.argument(1, "min_val", "min"), run.argument(2, "max_val", "max")
    if run.name == "clamp_max":
        low, high = None, run.argument(1, "max")
    if run.name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    known = all(bound is None or isinstance(bound, (int, float)) for bound in (low, high))
    around = known and (low is None or low <= 0) and (high is None or high >= 0)
    return _of_input(run, marks) if around else None


def _power(run: Application, marks: Marks) -> Any:
    """A power of a positive exponent hands relevance on; x^0 does not depend on x, and 1 / x has no value at 0."""
    exponent = run.argument(1, "exponent")
    return _of_input(run, marks) if isinstance(exponent, (int, float)) and exponent > 0 else None


def _by_constant(run: Application, _marks: Marks) -> Any:
    return run.out if len(run.after) == 1 else None


def _divided_by_constant(run: Application, _marks: Marks) -> Any:
    return run.out if len(run.after) == 1 and run.after[0] is run.args[0] else None


PIECEWISE_LINEAR: dict[str, FunctionRule] = {
    **dict.fromkeys(HAND_ON, hand_on),
    "batch_norm": _of_input,
    **dict.fromkeys(("clamp", "clip", "hardtanh"), _clip_at_zero),
    **dict.fromkeys(MULTIPLY, _by_constant),
    **dict.fromkeys(DIVIDE, _divided_by_constant),
}
"""The rule of every function of piecewise linear networks that has one, by its name; linear maps have theirs apart."""


def _factored(out: Tensor, factor: Tensor | float) -> Tensor:
    """Returns the values, their slopes times a factor."""
    return with_slopes(out * factor, out)


def _mean(run: Application, marks: Marks) -> Any:
    """Averages and sums follow the epsilon rule; their weights are all alike."""
    out: Tensor = run.out
    return _factored(out, safe_divide(out, stabilised(out, marks.rules.epsilon)).detach())


def _sum_of_two(run: Application, marks: Marks) -> Any:
    """Shares the relevance of a sum; a constant that is added is a bias."""
    out: Tensor = run.out
    pair = [value for value in run.args[:2] if isinstance(value, Tensor)]
    if len(run.after) == 1:
        if run.after[0] in marks.first or marks.rules.bias == "leave_out":
            return _of_one(run, marks)
        return out
    if len(run.after) != 2 or len(pair) != 2:
        return None
    if marks.rules.addition == "epsilon":
        return _mean(run, marks)
    scale = run.kwargs.get("alpha", 1)
    a, b = pair[0], pair[1] * scale if scale != 1 else pair[1]
    shared = safe_divide(out.detach(), a.detach().abs() + b.detach().abs())
    return with_slopes(a * (a.detach().sign() * shared) + b * (b.detach().sign() * shared), out)


def _of_one(run: Application, marks: Marks) -> Any:
    """Hands all relevance on to the one argument that depends on the image, where it has the shape of the result."""
    x = run.after[0]
    if x.shape != run.out.shape:
        return run.out
    return _of_input(Application(run.function, (x,), {}, run.after, run.out), marks)


def _difference(run: Application, marks: Marks) -> Any:
    """Differences are linear, as in centring; a constant that is taken away is a bias."""
    return _sum_of_two(run, marks) if len(run.after) == 1 else run.out


def _product(run: Application, marks: Marks) -> Any:
    if len(run.after) == 1:
        return _of_one(run, marks) if run.after[0] in marks.first else run.out
    if len(run.after) != 2:
        return None
    if marks.rules.product == "gate":
        gates = [value in marks.gates for value in run.after]
        if gates[0] != gates[1]:
            values = [value.detach() if gate else value for value, gate in zip(run.after, gates, strict=True)]
            return values[0] * values[1]
    return _factored(run.out, 0.5)


def _sampled(run: Application, marks: Marks) -> Any:
    """Samples of a grid are sums of its cells, by the epsilon rule; the points where they are taken are constants."""
    grid, points = run.argument(0, "input"), run.argument(1, "grid")
    if not any(grid is value for value in run.after):
        return None
    out = run.out if len(run.after) == 1 else run.again([points], [points.detach()])
    return _mean(replace(run, out=out), marks)


def _matrix_product(run: Application, marks: Marks) -> Any:
    """Half of the relevance goes to each of two that depend on the image, each by the epsilon rule."""
    out: Tensor = run.out
    if len(run.after) > 2:
        return None
    shared = safe_divide(out, stabilised(out, marks.rules.epsilon)).detach()
    return _factored(out, shared / len(run.after))


def _quotient(run: Application, marks: Marks) -> Any:
    """A denominator is a constant, as the standard deviation of a norm is."""
    if not any(run.args[0] is value for value in run.after):
        return None
    if len(run.after) == 1:
        return _product(run, marks)
    if len(run.after) != 2:
        return None
    return run.args[0] / run.args[1].detach()


def _constant(run: Application, marks: Marks) -> Any:
    """Sizes and spreads, by which norms divide, are constants; what is made of them may multiply and divide alone."""
    out: Tensor = run.out.detach()
    marks.spreads[out] = f"{run.name} that is no divisor"
    return out


def _softmax(run: Application, marks: Marks) -> Any:
    """Attention's probabilities, over three axes or more."""
    out: Tensor = run.out
    if out.ndim < 3:
        return None
    return out.detach() if marks.rules.attention == "cp" else out


def _norm(run: Application, marks: Marks) -> Any:
    """Norms are centring and a factor, the spread being a constant; what they add is a bias."""
    norm = norm_call(run)
    if norm is None:
        return None
    centred = norm.centred(norm.x)
    spread = (centred.detach() ** 2).mean(norm.axes, keepdim=True).add(norm.eps).sqrt()
    share = norm.weighted((centred / spread).reshape(norm.x.shape))
    if norm.bias is not None and marks.rules.bias == "leave_out":
        share = _factored(share, safe_divide(run.out, run.out - norm.per_channel(norm.bias)).detach())
    return with_slopes(share, run.out)


GATES = ("sigmoid", "hardsigmoid")
"""The functions whose results gates multiply by."""
_ACTIVATIONS = (
    *("gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "softsign", "tanh", "hardswish", *GATES),
    *("relu6", "square"),
)
SMOOTH: dict[str, FunctionRule] = {
    **PIECEWISE_LINEAR,
    **dict.fromkeys(("add", "iadd", "radd"), _sum_of_two),
    **dict.fromkeys(("sub", "isub", "subtract"), _difference),
    **dict.fromkeys(("mean", "sum", *(f"{k}avg_pool{d}d" for k in ("", "adaptive_") for d in (1, 2, 3))), _mean),
    **dict.fromkeys((*_ACTIVATIONS, "normalize"), _of_input),
    **dict.fromkeys(("hardtanh", "clamp", "clip", "clamp_min", "clamp_max"), _clip_around_zero),
    "pow": _power,
    "grid_sample": _sampled,
    **dict.fromkeys(MULTIPLY, _product),
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "einsum", "mm"), _matrix_product),
    **dict.fromkeys(DIVIDE, _quotient),
    **dict.fromkeys(("sqrt", "rsqrt", "var", "std", "norm", "vector_norm"), _constant),
    "softmax": _softmax,
    **dict.fromkeys(NORMS, _norm),
}
"""The rule of every function that has one, by its name, for networks of all kinds."""
KEEP_PIXELS = {
    *("add", "radd", "sub", "isub", "subtract", "iadd", *MULTIPLY, *DIVIDE, "batch_norm", "clone", "contiguous"),
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "flatten", "unflatten", "reshape", "view"),
    *("reshape_as", "view_as", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze", "getitem"),
    *("select", "narrow", "split", "chunk", "unbind", "cat", "concat", "stack", "flip", "roll", "copy", "mT", "T"),
}
"""Functions whose result is the image still: prepared, or arranged in another way."""
