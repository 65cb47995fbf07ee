"""DeepLIFT's rescale rule: a forward puts out what it always does, but its backward has multipliers in place of slopes.

A multiplier m of a function says what it makes of the difference between an image and its baseline: sum m (x - b) =
y(x) - y(b), exactly. Linear functions have their slopes, and `_RULES` has all others. The forward of the baseline runs
first and notes what every function was given, the one of the image reads it. Nothing stays behind on the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from konkyo.engine.functions import (
    AS_IT_IS,
    ATTENTIONS,
    CONVOLUTIONS,
    DIVIDE,
    HAND_ON,
    LOOKED_AT,
    MULTIPLY,
    NORMS,
    Application,
    detached,
    exchanged,
    is_in_place,
    is_sum_and_product,
    name_of,
    norm_arguments,
    norm_call,
    sum_and_product,
    tensors_in,
    with_slopes,
)
from konkyo.engine.relevance import Steps
from konkyo.engine.session import OwnMode
from konkyo.errors import NotApplicable
from konkyo.utils.tensors import safe_divide

_Rule: TypeAlias = Callable[[Application, list[Tensor]], Any]
"""(what ran, what it was given for the baseline) -> its result, with multipliers; None: the call is not covered."""

_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d"}
_DROPOUTS |= {"alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
_POOLS = {f"{kind}_pool{d}d" for kind in ("max", "adaptive_max") for d in (1, 2, 3)}
_PRODUCTS = ("matmul", "rmatmul", "bmm", "mm", "einsum")
_OF_ONE = {*MULTIPLY, *DIVIDE, *_PRODUCTS, "addmm", "baddbmm", "grid_sample"}
"""Functions that are linear in one argument where no other one depends on the leaf."""
_CHOICES = {"relu", "relu6", "leaky_relu", "prelu", "max", "amax", "maximum", "min", "amin", "minimum", "topk", "sort"}
_LINEAR = (HAND_ON - _CHOICES - _POOLS - {f"{pool}_with_indices" for pool in _POOLS} - _DROPOUTS) | {
    *("linear", "setitem", "cumsum", "tril", "triu", "diagonal", *CONVOLUTIONS),
}
"""Functions that are linear in all that they are given together, but for a summand."""


# --- functions of single values ---------------------------------------------------------------------------------------


def _quotients(run: Application, given: list[Tensor], smooth: bool) -> Any:
    """The multiplier is (h(x) - h(b)) / (x - b); where x and b are too close for that, the mean of the slopes there."""
    if len(run.after) != 1 or not isinstance(run.out, Tensor) or run.out.shape != run.after[0].shape:
        return None
    x, b = run.after[0].detach(), given[0]

    def h(z: Tensor) -> Tensor:
        value: Tensor = run.again(run.after, [z])
        return value

    def slope(at: Tensor) -> Tensor:
        leaf = at.detach().clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(h(leaf.clone()).sum(), leaf)[0]

    apart = x - b
    # The slopes of smooth functions serve further than the quotient of rounded values does.
    close = torch.finfo(x.dtype).eps ** (1 / 3) if smooth else 8 * torch.finfo(x.dtype).eps
    near = apart.abs() < close * x.abs().clamp(min=1)
    with torch.no_grad():
        multiplier = (run.out.detach() - h(b.clone())) / torch.where(near, 1.0, apart)
    if near.any():
        multiplier = torch.where(near, (slope(x) + slope(b)) / 2, multiplier)
    return with_slopes(run.after[0] * multiplier, run.out)


def _kinked(run: Application, given: list[Tensor]) -> Any:
    return _quotients(run, given, smooth=False)


def _smooth(run: Application, given: list[Tensor]) -> Any:
    return _quotients(run, given, smooth=True)


def _closed(multiplier: Callable[[Tensor, Tensor], Tensor]) -> _Rule:
    """Returns the rule of a function whose multiplier has a closed form, exact however close x and b are."""

    def rule(run: Application, given: list[Tensor]) -> Any:
        if len(run.after) != 1:
            return None
        x = run.after[0]
        return with_slopes(x * multiplier(x.detach(), given[0]), run.out)

    return rule


def _of_exp(x: Tensor, b: Tensor) -> Tensor:
    apart = (x - b).abs()
    share = torch.where(apart == 0, 1.0, -torch.expm1(-apart) / torch.where(apart == 0, 1.0, apart))
    return torch.maximum(x, b).exp() * share


def _of_log(x: Tensor, b: Tensor) -> Tensor:
    apart, least = (x - b).abs(), torch.minimum(x, b)
    return torch.where(apart == 0, 1 / least, torch.log1p(apart / least) / torch.where(apart == 0, 1.0, apart))


def _of_square(x: Tensor, b: Tensor) -> Tensor:
    return x + b


def _of_sqrt(x: Tensor, b: Tensor) -> Tensor:
    roots = x.sqrt() + b.sqrt()
    return safe_divide(torch.ones_like(roots), roots)


def _of_rsqrt(x: Tensor, b: Tensor) -> Tensor:
    return -1 / (x.sqrt() * b.sqrt() * (x.sqrt() + b.sqrt()))


def _of_reciprocal(x: Tensor, b: Tensor) -> Tensor:
    return -1 / (x * b)


_POWERS: dict[float, Callable[[Tensor, Tensor], Tensor]] = {
    2: _of_square,
    0.5: _of_sqrt,
    -0.5: _of_rsqrt,
    -1: _of_reciprocal,
}


def _power(run: Application, given: list[Tensor]) -> Any:
    exponent = run.argument(1, "exponent")
    if not isinstance(exponent, (int, float)) or run.args[0] is not run.after[0]:
        return None
    return _closed(_POWERS[exponent])(run, given) if exponent in _POWERS else _smooth(run, given)


# --- products ---------------------------------------------------------------------------------------------------------


def _product(run: Application, given: list[Tensor]) -> Any:
    """Of a product every factor has the mean of the other one: D(u v) = Du v' + Dv u', exactly."""
    if len(run.after) != 2:
        return None
    (u, v), (u_mean, v_mean) = run.after, ((t.detach() + g) / 2 for t, g in zip(run.after, given, strict=True))
    return with_slopes(u * v_mean + v * u_mean, run.out)


def _matrix_product(run: Application, given: list[Tensor]) -> Any:
    if len(run.after) != 2 or run.after[0] is run.after[1]:
        return None
    parts = []
    for t, g in zip(run.after, given, strict=True):
        parts.append(run.again([t], [(t.detach() + g) / 2]))
    return with_slopes(parts[0] + parts[1], run.out)


def _quotient(run: Application, given: list[Tensor]) -> Any:
    """A quotient u / v is the product of u and 1 / v."""
    if "rounding_mode" in run.kwargs or len(run.args) < 2 or not any(run.args[1] is t for t in run.after):
        return None
    v, v_given = run.args[1], given[-1]
    inverse = v * _of_reciprocal(v.detach(), v_given)
    if len(run.after) == 1:
        return with_slopes(run.args[0] * inverse, run.out)
    u, u_given = run.args[0], given[0]
    inverse_mean = (1 / v.detach() + 1 / v_given) / 2
    return with_slopes(u * inverse_mean + inverse * ((u.detach() + u_given) / 2), run.out)


def _constant_over(run: Application, given: list[Tensor]) -> Any:
    x = run.after[0]
    if len(run.after) != 1 or x is not run.args[0]:
        return None
    return with_slopes(x * _of_reciprocal(x.detach(), given[0]) * run.args[1], run.out)


# --- norms and softmax ------------------------------------------------------------------------------------------------


def _norm(run: Application, given: list[Tensor]) -> Any:
    """A norm is centring, the mean of squares, its inverse root, and a product: each has its multiplier."""
    norm = norm_call(run)
    if norm is None:
        return None
    centred, of_b = norm.centred(norm.x), norm.centred(given[0])
    at_x = centred.detach()
    squares, squares_of_b = ((half**2).mean(norm.axes, keepdim=True) + norm.eps for half in (at_x, of_b))
    inverse = _of_rsqrt(squares, squares_of_b) * ((at_x + of_b) * centred).mean(norm.axes, keepdim=True)
    inverse_mean = (squares.rsqrt() + squares_of_b.rsqrt()) / 2
    share = (centred * inverse_mean + (at_x + of_b) / 2 * inverse).reshape(norm.x.shape)
    return with_slopes(norm.weighted(share), run.out)


def _length(run: Application, given: list[Tensor]) -> Any:
    """The Euclidean length is the root of a sum of squares."""
    values = dict(zip(("input", "p", "dim", "keepdim"), run.args, strict=False)) | run.kwargs
    if len(run.after) != 1 or values.get("p", values.get("ord", 2)) not in (2, None, "fro"):
        return None
    x, b = run.after[0], given[0]
    axes = values.get("dim")
    length = run.again([x], [b])
    squares = (x.detach() + b) * x
    total = squares.sum() if axes is None else squares.sum(axes, keepdim=bool(values.get("keepdim", False)))
    return with_slopes(safe_divide(total, (run.out.detach() + length).reshape(total.shape)), run.out)


def _softmax(run: Application, given: list[Tensor]) -> Any:
    """A softmax is centring, which leaves it as it is, and exp(x - log sum exp x). What is masked (-inf) has no part.

    The log of a sum has the multipliers w_k = L(exp x_k, exp b_k) / L(sum exp x, sum exp b), L being the logarithmic
    mean; they are from 0 to 1 and add up to at most 1, where those of a quotient are of any size.
    """
    axis = run.argument(1, "dim")
    if len(run.after) != 1 or not isinstance(axis, int):
        return None
    x, b = run.after[0].to(run.out.dtype), given[0].to(run.out.dtype)
    seen = x.isfinite() & b.isfinite()
    count = seen.sum(axis, keepdim=True).clamp(min=1)
    x, b = (half.masked_fill(~seen, 0.0) for half in (x, b))
    x, b = (half - half.sum(axis, keepdim=True) / count for half in (x, b))
    at_x = x.detach()
    logs, logs_of_b = (half.masked_fill(~seen, -torch.inf).logsumexp(axis, keepdim=True) for half in (at_x, b))
    top = torch.maximum(logs, logs_of_b)
    weights = _of_exp(at_x - top, b - top) / _of_exp(logs - top, logs_of_b - top)
    log_sum = (x * weights.masked_fill(~seen, 0.0)).sum(axis, keepdim=True)
    return with_slopes((x - log_sum) * _of_exp(at_x - logs, b - logs_of_b).masked_fill(~seen, 0.0), run.out)


# --- choices of the largest -------------------------------------------------------------------------------------------


def _chosen(x: Tensor, b: Tensor, of_x: Tensor, of_b: Tensor, out: Tensor) -> Tensor:
    """Gives the change of a maximum to the place that makes it: x's if it is larger there, otherwise b's.

    `of_x` and `of_b` are the places, along the last axis. There the value itself changes at least as much, in the same
    direction, so that multipliers are from 0 to 1.
    """
    y, y_of_b = x.detach().gather(-1, of_x), b.gather(-1, of_b)
    place = torch.where(y >= y_of_b, of_x, of_b)
    apart = (x.detach() - b).gather(-1, place)
    multiplier = torch.where(apart == 0, 1.0, (y - y_of_b) / torch.where(apart == 0, 1.0, apart))
    return with_slopes((x.gather(-1, place) * multiplier).reshape(out.shape), out)


def _pool(run: Application, given: list[Tensor]) -> Any:
    if not isinstance(run.out, Tensor) or len(run.after) != 1:  # with indices
        return None
    name = name_of(run.function)
    axes, x = int(name[-2]), run.after[0]
    kwargs = {**run.kwargs, "return_indices": True}
    pooled: Callable[..., tuple[Tensor, Tensor]] = getattr(functional, name)
    places = [
        pooled(*exchanged(run.args, [x], [half])[:6], **exchanged(kwargs, [x], [half]))[1].flatten(-axes)
        for half in (x.detach(), given[0])
    ]
    return _chosen(x.flatten(-axes), given[0].flatten(-axes), places[0], places[1], run.out)


def _largest(run: Application, given: list[Tensor]) -> Any:
    """Gives the changes of a maximum of two tensors, or along one axis, to the places that make it."""
    if len(run.after) == 2:
        shape = torch.broadcast_shapes(*(t.shape for t in run.after))  # type: ignore[no-untyped-call]
        x, b = (torch.stack([t.expand(shape) for t in pair], -1) for pair in (run.after, given))
        return _along(x, b, run.out)
    axis = run.argument(1, "dim")
    axis = axis[0] if isinstance(axis, (tuple, list)) and len(axis) == 1 else axis
    if not isinstance(axis, int):
        return None
    x, b = run.after[0].movedim(axis, -1), given[0].movedim(axis, -1)
    if isinstance(run.out, Tensor):
        return _along(x, b, run.out)
    return type(run.out)((_along(x, b, run.out[0]), run.out[1]))


def _along(x: Tensor, b: Tensor, out: Tensor) -> Tensor:
    of_x, of_b = (half.detach().argmax(-1, keepdim=True) for half in (x, b))
    return _chosen(x, b, of_x, of_b, out)


_KINKED = (
    *("relu", "relu6", "leaky_relu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "threshold", "abs", "absolute"),
    *("clamp", "clip", "clamp_min", "clamp_max", "elu", "selu", "celu", "softsign", "hardshrink", "softshrink"),
)
_SMOOTH = ("gelu", "silu", "mish", "softplus", "sigmoid", "logsigmoid", "tanh", "erf", "sin", "cos")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_KINKED, _kinked),
    **dict.fromkeys(_SMOOTH, _smooth),
    "exp": _closed(_of_exp),
    "log": _closed(_of_log),
    "square": _closed(_of_square),
    "sqrt": _closed(_of_sqrt),
    "rsqrt": _closed(_of_rsqrt),
    "reciprocal": _closed(_of_reciprocal),
    "pow": _power,
    **dict.fromkeys(MULTIPLY, _product),
    **dict.fromkeys(DIVIDE, _quotient),
    **dict.fromkeys(("rdiv", "rtruediv"), _constant_over),
    **dict.fromkeys(_PRODUCTS, _matrix_product),
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm"), _length),
    "softmax": _softmax,
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("max", "amax", "maximum"), _largest),
}
"""The rule of every function that is not linear, by its name."""


def _is_linear(run: Application) -> bool:
    name, after = run.name, run.after
    if name in _DROPOUTS:
        training = run.argument(2, "training", "train")
        return not training or run.argument(1, "p") == 0
    if name == "batch_norm":
        values = norm_arguments(run)
        return len(after) == 1 and not values.get("training") and values.get("running_mean") is not None
    if name in DIVIDE:
        return len(after) == 1 and after[0] is run.args[0] and "rounding_mode" not in run.kwargs
    if name == "grid_sample":
        return len(after) == 1 and after[0] is run.args[0]
    if name in ("linear", *CONVOLUTIONS, *_OF_ONE):
        return len(after) == 1
    return name in _LINEAR


# --- the two forwards -------------------------------------------------------------------------------------------------


class Lift(OwnMode):
    """Notes what the functions of a forward are given, or runs them with multipliers by the notes of a baseline's."""

    def __init__(self, reference: Lift | None = None) -> None:
        super().__init__()
        self._reference = reference
        self._calls: list[tuple[str, list[Tensor]]] = []
        self._at = 0
        self._known = WeakIdKeyDictionary()
        """What depends on the leaf; also what is cut off from the graph, as the results of comparisons are."""

    def entered(self, _root: nn.Module) -> Lift:
        """Returns this mode, as a Pass enters it."""
        return self

    def scored(self, output: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the score of what a forward under this mode put out, computed under it, too."""
        with self:
            self._known[output] = None
            values = score(output)
        if self._reference is not None and self._at != len(self._reference._calls):
            raise _other_way()
        return values

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch in place of itself, as the mode's protocol asks."""
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        learned = [t for t in given if t.requires_grad] if torch.is_grad_enabled() else []
        after = [t for t in learned if not isinstance(t, nn.Parameter)]
        cut_off = [t for t in given if not t.requires_grad and t in self._known]
        for tensor in after:
            if tensor.grad_fn is not None and tensor not in self._known:
                raise _without_rule(f"{tensor.grad_fn.name()}, from outside of torch's functions")
        if after and function in ATTENTIONS:
            with self:
                return Steps().__torch_function__(function, types, args, kwargs)
        if after and function is functional.normalize:
            with self:
                return _normalised(*args, **kwargs)
        if after and is_sum_and_product(function, args, kwargs):
            with self:
                return sum_and_product(function, args, kwargs)
        out = self._run(function, args, kwargs, after, cut_off)
        if learned and not after:  # what weights alone make is constant, as they are
            return detached(out)
        if after or cut_off or any(t in self._known for t in given):
            for tensor in (*tensors_in((out,)), *tensors_in(args[:1])):  # the first may be written to
                self._known[tensor] = None
        return out

    def _run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        after: list[Tensor],
        cut_off: list[Tensor],
    ) -> Any:
        name = name_of(function)
        if not after:
            return function(*args, **kwargs)
        if name in LOOKED_AT or name in AS_IT_IS:
            out = function(*args, **kwargs)
            if any(out is a for a in args[:1]) or not any(t.requires_grad for t in tensors_in((out,))):
                return out
        run = Application(function, args, kwargs, after)
        rule = None if (linear := _is_linear(run)) else _RULES.get(name)
        noted = [t.detach().clone() for t in (*([] if linear else after), *cut_off)]
        written = args[0] if is_in_place(function, kwargs) and not linear else None
        out = function(*args, **kwargs) if written is None else function(written.clone(), *args[1:], **kwargs)
        if not any(t.requires_grad for t in tensors_in((out,))):  # a size, a comparison, a detached copy
            return out
        if rule is None and not linear:
            raise _without_rule(name)
        if self._reference is None:
            self._calls.append((name, noted))
            return out if written is None else written.copy_(out)
        given = self._next(name, noted)
        if any(not torch.equal(a, b) for a, b in zip(noted[::-1], given[::-1][: len(cut_off)], strict=False)):
            raise _without_rule(f"a {name} by what was compared or cut off from the graph, other than the baseline's")
        if rule is None:
            return out
        ruled = rule(replace(run, out=out), given[: len(after)])
        if ruled is None:
            raise _without_rule(f"this use of {name}")
        return ruled if written is None else written.copy_(ruled)

    def _next(self, name: str, noted: list[Tensor]) -> list[Tensor]:
        """Returns what the same function was given for the baseline. NotApplicable: there it was another function."""
        assert self._reference is not None
        calls = self._reference._calls
        of, given = calls[self._at] if self._at < len(calls) else ("", [])
        self._at += 1
        if of != name or [t.shape for t in given] != [t.shape for t in noted]:
            raise _other_way()
        return given


def _normalised(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **_: None) -> Tensor:
    """Computes `normalize` step by step."""
    length: Tensor = torch.linalg.vector_norm(input, p, dim, keepdim=True)
    return input / length.clamp_min(eps)


def _without_rule(what: str) -> NotApplicable:
    return NotApplicable(
        f"there is no multiplier for {what}, which runs on what depends on the image; convolutions, linear maps, "
        "norms, activations, pooling, products and attention have one"
    )


def _other_way() -> NotApplicable:
    return NotApplicable("compares the image with its baseline step by step, and the network takes other steps for one")
