"""Other ways back through a network: guided ReLUs, and relevance by the z+ rule.

Each is a context in which a forward runs; the backward of its output then is the other one. Nothing stays behind on the
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from konkyo.engine.session import OwnMode, hook_after, hook_before, open_modules
from konkyo.engine.sound import stored_in_checkpoints
from konkyo.errors import NotApplicable
from konkyo.utils.tensors import safe_divide

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


# --- relevance -------------------------------------------------------------------------------------------------------

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


@dataclass(frozen=True)
class Application:
    """This is a function of torch that ran on what depends on the leaf."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    after: list[Tensor]
    """The arguments that depend on the leaf."""
    out: Any


_Rule: TypeAlias = Callable[[Application], Any]
"""What a function put out, with the backward of its rule; None: the rule does not cover how it was called."""


def _hand_on(run: Application) -> Any:
    return run.out


def _positive_part(run: Application) -> Any:
    """Applies the z+ rule of a linear map."""
    values = dict(zip(("input", "weight", "bias"), run.args, strict=False)) | run.kwargs
    x: Tensor = values.pop("input")
    return _proportional(run, x, lambda: _positive(run.function, x, run.args[3:], values))


def _of_input(run: Application) -> Any:
    """Hands all relevance on to the input, as in batch norms."""
    x: Tensor = run.args[0] if run.args else run.kwargs["input"]
    return _proportional(run, x, lambda: x)


def _proportional(run: Application, x: Tensor, part: Callable[[], Tensor]) -> Any:
    if len(run.after) != 1 or not x.requires_grad:
        return None
    z = part()
    share = z * safe_divide(run.out, z).detach()
    return share + (run.out - share).detach()  # the value is exact, also where z is 0


def _clip_at_zero(run: Application) -> Any:
    low = run.args[1] if len(run.args) > 1 else run.kwargs.get("min_val", run.kwargs.get("min"))
    return run.out if isinstance(low, (int, float)) and low == 0 else None


def _by_constant(run: Application) -> Any:
    return run.out if len(run.after) == 1 else None


def _divided_by_constant(run: Application) -> Any:
    return run.out if len(run.after) == 1 and run.after[0] is run.args[0] else None


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(HAND_ON, _hand_on),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), _positive_part),
    "batch_norm": _of_input,
    **dict.fromkeys(("clamp", "clip", "hardtanh"), _clip_at_zero),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), _by_constant),
    **dict.fromkeys(("div", "itruediv", "truediv", "divide", "true_divide"), _divided_by_constant),
}
"""The rule of every function that has one, by its name."""


class _Relevance(OwnMode):
    """Runs what depends on the leaf by the rules. `running` are the modules whose forward runs, innermost last."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[nn.Module] = []
        self._outputs = WeakIdKeyDictionary()
        """What functions put out here; scripts and custom functions of autograd run unseen."""

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
        out = self._run(function, args, kwargs, after)
        if learned and not after:  # what weights alone make is constant, as they are
            return out.detach() if isinstance(out, Tensor) else out
        for tensor in (*tensors_in((out,)), *tensors_in(args[:1])):  # the first may be written to
            self._outputs[tensor] = None
        return out

    def _run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], after: list[Tensor]
    ) -> Any:
        """Runs one function, its gradient by the rule where it depends on the leaf. NotApplicable: there is no rule."""
        out = function(*args, **kwargs)
        if not after or not any(t.requires_grad for t in tensors_in((out,))):  # a size, a comparison, a detached copy
            return out
        name = name_of(function)
        rule = _RULES.get(name)
        ruled = None if rule is None else rule(Application(function, args, kwargs, after, out))
        if ruled is None:
            raise _without_rule(f"{type(self.running[-1]).__name__}'s {name}" if self.running else name)
        return ruled


def _without_rule(what: str) -> NotApplicable:
    return NotApplicable(
        f"there is no relevance rule for {what}, which runs after the layer; networks of convolutions, batch norms and "
        "ReLUs have rules for all they do"
    )


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


def _positive(linear: Callable[..., Tensor], x: Tensor, rest: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """Returns the part of a linear map's result that comes from positive products, without the bias."""
    weight: Tensor = named["weight"]
    others = {name: value for name, value in named.items() if name not in ("weight", "bias")}

    def run(values: Tensor, weights: Tensor) -> Tensor:
        return linear(values, weights, None, *rest, **others)

    return run(x.clamp(min=0), weight.clamp(min=0)) + run(x.clamp(max=0), weight.clamp(max=0))


@contextmanager
def positive_relevance(root: nn.Module) -> Iterator[None]:
    """Within the context a forward puts out what it always does, but its gradient times a value is relevance.

    Convolutions and linear maps, modules or functions, follow the z+ rule (alpha = 1, beta = 0: Bach et al., 2015) with
    the weights they run with. Batch norms hand relevance on. For ReLU, pooling, dropout, sums, rearrangements and
    multiplication by a constant, gradient times value is relevance already (Montavon et al., 2019, Sec. 10.2). Nothing
    else has a rule: NotApplicable, when any other function runs on what depends on the leaf.
    """
    mode = _Relevance()

    def start(module: nn.Module, _args: Any) -> None:
        mode.running.append(module)

    def end(_module: nn.Module, _args: Any, _out: Any) -> None:
        mode.running.pop()

    with ExitStack() as undo:
        for module in open_modules(root):
            undo.callback(hook_before(module, start).remove)
            undo.callback(hook_after(module, end, always_call=True).remove)
        undo.enter_context(mode)
        yield
