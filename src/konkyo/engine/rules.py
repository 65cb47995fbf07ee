"""Other ways back through a network: guided ReLUs, relevance by the z+ rule, and what every bias adds.

Each is a context in which a forward runs; the backward of its output then is the other one. Nothing stays behind on the
network.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from konkyo.engine.session import OwnMode, Session, hook_after, hook_before, open_modules
from konkyo.errors import NotApplicable
from konkyo.utils.tensors import safe_divide

# --- what every backward needs ---------------------------------------------------------------------------------------


class SoundForward(OwnMode):
    """Runs a forward so that its backward is sound, whatever the network does in it.

    - Batch norms get gradients in the memory format of their output. On the CPU torch (2.15) gets the backward of a
      batch norm in eval mode wrong for a single image where the gradient comes with other strides. It comes with them
      when the grid is then read as tokens. Batch norms that use the batch's own statistics are told to the session.
    - A network that hooks tensors of its own (`register_hook`, `retain_grad`) may do so where no graph is built.
    - Gradient checkpointing (`use_reentrant=False`) stores what it would compute again: by then the hooks are gone.
    - A recurrent layer in eval mode keeps what cuDNN's backward needs.
    """

    def __init__(self, session: Session | None = None) -> None:
        super().__init__()
        self._session = session

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch, as the mode's protocol asks."""
        kwargs = kwargs or {}
        if function in _TENSOR_HOOKS and not args[0].requires_grad:
            return RemovableHandle(OrderedDict()) if function is Tensor.register_hook else None
        if function in _RECURRENT and torch.is_grad_enabled():
            args = _as_in_training(args)
        with _stored() if _checkpointed() else _NOTHING:
            out = function(*args, **kwargs)
        if self._session is not None and function in _ACROSS and _reaches_first_axis(function, args, kwargs):
            self._session.suspect = True
        if function is functional.batch_norm:
            if self._session is not None and _of_batch(args, kwargs):
                self._session.tied = True
            if out.requires_grad:
                channels_last = out.ndim == 4 and not out.is_contiguous()
                memory_format = torch.channels_last if channels_last else torch.contiguous_format
                out.register_hook(lambda g: None if g is None else g.contiguous(memory_format=memory_format))
        return out


_NOTHING = nullcontext()
_ACROSS = {
    getattr(place, name)
    for name in (
        *("mean", "sum", "var", "std", "var_mean", "std_mean", "norm", "amax", "amin", "max", "min", "median", "prod"),
        *("softmax", "log_softmax", "logsumexp", "cumsum", "sort", "roll", "flip", "transpose", "permute", "movedim"),
        *("argsort", "topk", "quantile", "nanmean", "t"),
    )
    for place in (torch, Tensor)
    if hasattr(place, name)
} | {functional.softmax, functional.normalize, Tensor.T.__get__}  # type: ignore[attr-defined]
"""Functions that mix the images of a batch where they run along its axis."""
_TENSOR_HOOKS = {Tensor.register_hook, Tensor.retain_grad}
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


def _reaches_first_axis(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tells whether a function may run along the first axis of what it is given, or move that."""
    first = args[0] if args else kwargs.get("input")
    if not isinstance(first, Tensor) or first.ndim < 2 or isinstance(first, nn.Parameter):
        return False
    names = ("dim", "axis", "dims", "dim0", "dim1", "source", "destination")
    axes: list[Any] = [*args[1:], *(kwargs[name] for name in names if name in kwargs)]
    if function in (torch.permute, Tensor.permute):
        order = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return not order or order[0] not in (0, -first.ndim)
    whole = [axis for axis in axes if isinstance(axis, (int, tuple, list)) and not isinstance(axis, bool)]
    flat = [axis for entry in whole for axis in (entry if isinstance(entry, (tuple, list)) else (entry,))]
    return not flat or any(axis in (0, -first.ndim) for axis in flat)


def _of_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tells whether a batch norm uses the statistics of its batch of features (not those of weights)."""
    values = dict(zip(("input", "mean", "variance", "weight", "bias", "training"), args, strict=False)) | kwargs
    x = values["input"]
    return bool(values.get("training")) and not isinstance(x if x._base is None else x._base, nn.Parameter)


def _as_in_training(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the arguments of a recurrent layer with its training mode on and no dropout, which computes the same."""
    training = next((i for i in range(len(args) - 1, -1, -1) if isinstance(args[i], float)), None)  # dropout, training
    if training is None or args[training + 1]:
        return args
    return (*args[:training], 0.0, True, *args[training + 2 :])


def _checkpointed() -> bool:
    """Tells whether gradient checkpointing would compute again what is stored now."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", "")


def _stored() -> AbstractContextManager[None]:
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


# --- guided backpropagation ------------------------------------------------------------------------------------------


class _GuidedReLU(torch.autograd.Function):
    """This computes min(max(x, 0), top) and lets only positive gradients back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        out = x.clamp_(0, top) if inplace else x.clamp(0, top)
        ctx.save_for_backward((out > 0) & (out < top))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (passing,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * passing, None, None


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
    """Runs every ReLU and ReLU6, module or function, guided: Springenberg et al., 2015, Sec. 3.4."""

    def __init__(self) -> None:
        super().__init__()
        self.used = False

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
                with _stored() if _checkpointed() else _NOTHING:
                    return _GuidedReLU.apply(values["input"], values.get("max_val", clip.high), inplace)
        return function(*args, **kwargs)


@contextmanager
def guided_relus(_root: nn.Module) -> Iterator[GuidedReLUs]:
    """Within the context every ReLU of a forward lets only positive gradients back.

    Other activations pass gradients of both signs as ever: a network that mixes them with ReLUs (MobileNetV3 and its
    hardswish) is guided in part.
    """
    with GuidedReLUs() as mode:
        yield mode


# --- relevance -------------------------------------------------------------------------------------------------------

_HAND_ON = {
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
class _Application:
    """This is a function of torch that ran on what depends on the leaf."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    after: list[Tensor]
    """The arguments that depend on the leaf."""
    out: Any


_Rule: TypeAlias = Callable[[_Application], Any]
"""What a function put out, with the backward of its rule; None: the rule does not cover how it was called."""


def _hand_on(run: _Application) -> Any:
    return run.out


def _positive_part(run: _Application) -> Any:
    """Applies the z+ rule of a linear map."""
    values = dict(zip(("input", "weight", "bias"), run.args, strict=False)) | run.kwargs
    x: Tensor = values.pop("input")
    return _proportional(run, x, lambda: _positive(run.function, x, run.args[3:], values))


def _of_input(run: _Application) -> Any:
    """Hands all relevance on to the input, as in batch norms."""
    x: Tensor = run.args[0] if run.args else run.kwargs["input"]
    return _proportional(run, x, lambda: x)


def _proportional(run: _Application, x: Tensor, part: Callable[[], Tensor]) -> Any:
    if len(run.after) != 1 or not x.requires_grad:
        return None
    z = part()
    share = z * safe_divide(run.out, z).detach()
    return share + (run.out - share).detach()  # the value is exact, also where z is 0


def _clip_at_zero(run: _Application) -> Any:
    low = run.args[1] if len(run.args) > 1 else run.kwargs.get("min_val", run.kwargs.get("min"))
    return run.out if isinstance(low, (int, float)) and low == 0 else None


def _by_constant(run: _Application) -> Any:
    return run.out if len(run.after) == 1 else None


def _divided_by_constant(run: _Application) -> Any:
    return run.out if len(run.after) == 1 and run.after[0] is run.args[0] else None


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_HAND_ON, _hand_on),
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
        learned = [t for t in _tensors((args, kwargs)) if t.requires_grad]
        after = [t for t in learned if not isinstance(t, nn.Parameter)]
        for tensor in after:
            if tensor.grad_fn is not None and tensor not in self._outputs:
                raise _without_rule(f"{tensor.grad_fn.name()}, from outside of torch's functions")
        out = self._run(function, args, kwargs, after)
        if learned and not after:  # what weights alone make is constant, as they are
            return out.detach() if isinstance(out, Tensor) else out
        for tensor in (*_tensors((out,)), *_tensors(args[:1])):  # the first may be written to
            self._outputs[tensor] = None
        return out

    def _run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], after: list[Tensor]
    ) -> Any:
        """Runs one function, its gradient by the rule where it depends on the leaf. NotApplicable: there is no rule."""
        out = function(*args, **kwargs)
        if not after or not any(t.requires_grad for t in _tensors((out,))):  # a size, a comparison, a detached copy
            return out
        name = _name(function)
        rule = _RULES.get(name)
        ruled = None if rule is None else rule(_Application(function, args, kwargs, after, out))
        if ruled is None:
            raise _without_rule(f"{type(self.running[-1]).__name__}'s {name}" if self.running else name)
        return ruled


def _without_rule(what: str) -> NotApplicable:
    return NotApplicable(
        f"there is no relevance rule for {what}, which runs after the layer; networks of convolutions, batch norms and "
        "ReLUs have rules for all they do"
    )


def _name(function: Callable[..., Any]) -> str:
    """Returns one name for a function, the tensor's method, the one in place, the operator and the attribute."""
    named: Any = getattr(function, "__self__", None) if getattr(function, "__name__", "") == "__get__" else function
    return str(getattr(named, "__name__", named)).strip("_")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yields the tensors among arguments or results of a function, also those in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


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


# --- what every bias adds --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class BiasTerm:
    """This is one addition of a constant; after a backward it holds the gradient of the sum."""

    bias: Tensor
    """What is added; it broadcasts to the sum."""
    axis: int
    """Of the channels, in the sum."""
    placed: bool = True
    """Whether it has a place in a map; False: it counts in the sum of all terms only."""
    gradient: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        """Stores the gradient of the sum; the backward calls it."""
        self.gradient = gradient

    def value(self) -> Tensor:
        """Returns bias times gradient, channels second: (N, C, *grid), or (N, C); in fp32 or better."""
        assert self.gradient is not None
        gradient = self.gradient if self.gradient.dtype == torch.float64 else self.gradient.float()
        value = gradient * self.bias.to(gradient)
        return value.movedim(self.axis, 1) if value.ndim > 1 else value


class Biases(OwnMode):
    """Lists every constant that is added to what depends on the image, by whichever module or function, once a call.

    A batch norm's bias is what it adds in all: beta - gamma mean / sqrt(variance + eps). What a clipping function
    (ReLU6) adds above its range has no place in a map.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[BiasTerm] = []
        self.piecewise_linear = True
        """Whether all functions that were seen are linear, ReLUs, clips or choices."""
        self._image: Tensor | None = None
        """The first that was made to have a gradient; what a Pass hands to the network comes of it."""
        self._constants = WeakIdKeyDictionary()
        """What was made of other leaves alone, such as parameters."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch, as the mode's protocol asks."""
        kwargs = kwargs or {}
        learned = [t for t in _tensors((args, kwargs)) if t.requires_grad]
        after = [t for t in learned if self._depends(t)]
        out = function(*args, **kwargs)
        results = [t for t in _tensors((out,)) if t.requires_grad]
        if self._image is None:
            self._image = next((t for t in results if t.is_leaf), None)
        for tensor in results:
            if learned and not after:
                self._constants[tensor] = None
            elif tensor in self._constants:  # written to
                del self._constants[tensor]
        if after and results:
            name, run = _name(function), _Application(function, args, kwargs, after, out)
            self.piecewise_linear = self.piecewise_linear and _is_piecewise_linear(name, run)
            term = _ADDITIONS[name](name, run) if name in _ADDITIONS else None
            if term is not None:
                self.terms.append(term)
                results[0].register_hook(term.keep)  # type: ignore[no-untyped-call] # before in-place operations on it
        return out

    def _depends(self, learned: Tensor) -> bool:
        """Tells whether a tensor with a gradient depends on the image and not on other leaves alone."""
        return learned is self._image if learned.is_leaf else learned not in self._constants


@contextmanager
def bias_terms(_root: nn.Module) -> Iterator[Biases]:
    """Within the context a forward lists every bias that it adds, in order; backwards fill the gradients in."""
    with Biases() as mode:
        yield mode


_CONVOLUTIONS = {f"conv{kind}{d}d": d for kind in ("", "_transpose") for d in (1, 2, 3)}
"""The convolutions, with their dimensions."""
_BIAS_AT = {
    **dict.fromkeys(("linear", *_CONVOLUTIONS), 2),
    **dict.fromkeys(("bilinear", "layer_norm", "group_norm"), 3),
    "multi_head_attention_forward": 12,
}
"""Which argument of a function is its bias."""
_SIGNS = {
    **dict.fromkeys(("add", "iadd", "radd"), (1, 1)),
    **dict.fromkeys(("sub", "isub", "subtract"), (1, -1)),
    "rsub": (-1, 1),
}
"""The signs of the two that are added."""
_CLIPS: dict[str, dict[str, float | None]] = {
    "relu6": {"max": 6.0},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "clamp": {"min": None, "max": None},
    "clip": {"min": None, "max": None},
    "clamp_min": {"min": None},
    "clamp_max": {"max": None},
}
"""The ends of clipping functions' ranges, in the order of their parameters."""
_LINEAR_IN_ONE = {
    *("linear", *_CONVOLUTIONS, "bilinear", "mul", "imul", "rmul", "multiply", "matmul", "rmatmul", "mm", "bmm", "mv"),
    *("dot", "inner", "einsum", "tensordot", "addmm", "baddbmm", "addmv"),
    *("div", "itruediv", "truediv", "divide", "true_divide"),
}
"""Functions that are linear where one of their arguments alone depends on the image."""
_CHOICES = {"abs", "absolute", "topk", "sort", "threshold", "rnn_relu", "rnn_relu_cell"}
"""Other functions that are linear piece by piece."""


def _is_piecewise_linear(name: str, run: _Application) -> bool:
    """Tells whether a function is linear in the image, piece by piece."""
    if name in ("batch_norm", "instance_norm"):
        return not _norm_arguments(run)["training"]
    if name in _LINEAR_IN_ONE:
        return len(run.after) == 1 and ("div" not in name or not _is_constant(next(iter(run.args), None), run))
    return name in _HAND_ON or name in _CLIPS or name in _CHOICES


def _is_constant(value: Any, run: _Application) -> bool:
    return not any(value is tensor for tensor in run.after)


def _bias_argument(name: str, run: _Application) -> BiasTerm | None:
    """Takes the bias of a linear map, a convolution, or a norm over a layer or groups."""
    key = "out_proj_bias" if name == "multi_head_attention_forward" else "bias"
    bias = run.args[_BIAS_AT[name]] if len(run.args) > _BIAS_AT[name] else run.kwargs.get(key)
    if not isinstance(bias, Tensor) or not _is_constant(bias, run):
        return None
    grid = run.out.ndim - 2 if name == "group_norm" else _CONVOLUTIONS.get(name, 0)
    return BiasTerm(bias.detach().view(*bias.shape, *[1] * grid), -bias.ndim - grid)


def _norm_arguments(run: _Application) -> dict[str, Any]:
    """Returns the arguments of a batch norm or an instance norm by name; `training`: its own statistics are used."""
    rest = ("training", "momentum", "eps")
    names: tuple[str, ...] = ("input", "weight", "bias", "running_mean", "running_var", *rest)
    if run.function in (functional.batch_norm, functional.instance_norm):
        names = ("input", "running_mean", "running_var", "weight", "bias", *rest)
    values: dict[str, Any] = {"weight": None, "bias": None, "running_mean": None, "running_var": None, "eps": 1e-5}
    values |= dict(zip(names, run.args, strict=False)) | run.kwargs
    own = run.function is functional.instance_norm
    return values | {"training": bool(values.get("use_input_stats", values.get("training", own)))}


def _of_norm(_name: str, run: _Application) -> BiasTerm | None:
    """Takes what a batch norm adds, with what it subtracts where its statistics are constant."""
    values = _norm_arguments(run)
    bias, mean, variance, weight = (values[n] for n in ("bias", "running_mean", "running_var", "weight"))
    if not values["training"] and mean is not None:
        shift = -mean / (variance + values["eps"]).sqrt() * (1 if weight is None else weight.detach())
        bias = shift if bias is None else bias.detach() + shift
    if bias is None or not _is_constant(bias, run):
        return None
    return BiasTerm(bias.detach().view(-1, *[1] * (run.out.ndim - 2)), 1)


def _of_sum(name: str, run: _Application) -> BiasTerm | None:
    """Takes the one of two that are added which is constant."""
    values = dict(zip(("input", "other"), run.args, strict=False)) | run.kwargs
    first, second = _SIGNS[name]
    alpha = values.get("alpha", 1)
    signs = (first * alpha, second) if name == "rsub" else (first, second * alpha)
    parts = [(values[n], sign) for n, sign in zip(("input", "other"), signs, strict=True)]
    constant, sign = next(((v, sign) for v, sign in parts if _is_constant(v, run)), (run.out, 1))
    if constant is run.out:  # both depend on the image, or the constant is overwritten
        return None
    if not isinstance(constant, Tensor):
        return BiasTerm(torch.tensor(float(constant) * sign), 1) if constant else None
    in_last = constant.ndim == 1 or (constant.ndim > 1 and constant.shape[-1] == constant.numel() > 1)
    return BiasTerm(constant.detach() * sign, -1 if in_last else 1)


def _of_product(_name: str, run: _Application) -> BiasTerm | None:
    """Takes what is added to a product of matrices."""
    bias = run.args[0] if run.args else run.kwargs["input"]
    return BiasTerm(bias.detach() * run.kwargs.get("beta", 1), -1) if _is_constant(bias, run) else None


def _of_clip(name: str, run: _Application) -> BiasTerm | None:
    """Takes the ends of a clipping function's range, where they are what it puts out."""
    names = _CLIPS[name]
    given = {} if name == "relu6" else dict(zip(names, run.args[1:], strict=False)) | run.kwargs
    ends = [end for n in names if (end := given.get(n, names[n])) is not None]
    ends = [end for end in ends if isinstance(end, Tensor) or 0 < abs(end) < float("inf")]
    if not ends:
        return None
    ended = torch.stack([run.out == end for end in ends]).any(0)
    return BiasTerm(torch.where(ended, run.out.detach(), 0.0), 1, placed=False)


_ADDITIONS: dict[str, Callable[[str, _Application], BiasTerm | None]] = {
    **dict.fromkeys(_BIAS_AT, _bias_argument),
    **dict.fromkeys(("batch_norm", "instance_norm"), _of_norm),
    **dict.fromkeys(_SIGNS, _of_sum),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _of_product),
    **dict.fromkeys(_CLIPS, _of_clip),
}
"""What functions add to what depends on the image; None: nothing."""
