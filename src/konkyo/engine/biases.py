"""Biases: what functions add to what depends on the image, and the gradient of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from konkyo.engine.functions import (
    CONVOLUTIONS,
    DIVIDE,
    HAND_ON,
    MULTIPLY,
    Application,
    name_of,
    norm_arguments,
    tensors_in,
)
from konkyo.engine.session import OwnMode
from konkyo.utils.tensors import at_least_float32


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
        gradient = at_least_float32(self.gradient)
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
        learned = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        after = [t for t in learned if self._depends(t)]
        out = function(*args, **kwargs)
        results = [t for t in tensors_in((out,)) if t.requires_grad]
        if self._image is None:
            self._image = next((t for t in results if t.is_leaf), None)
        for tensor in results:
            if learned and not after:
                self._constants[tensor] = None
            elif tensor in self._constants:  # written to
                del self._constants[tensor]
        if after and results:
            name, run = name_of(function), Application(function, args, kwargs, after, out)
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


_BIAS_AT = {
    **dict.fromkeys(("linear", *CONVOLUTIONS), 2),
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
    *("linear", *CONVOLUTIONS, "bilinear", *MULTIPLY, *DIVIDE, "matmul", "rmatmul", "mm", "bmm", "mv"),
    *("dot", "inner", "einsum", "tensordot", "addmm", "baddbmm", "addmv"),
}
"""Functions that are linear where one of their arguments alone depends on the image."""
_CHOICES = {"abs", "absolute", "threshold", "rnn_relu", "rnn_relu_cell"}
"""Other functions that are linear piece by piece."""


def _is_piecewise_linear(name: str, run: Application) -> bool:
    """Tells whether a function is linear in the image, piece by piece."""
    if name in ("batch_norm", "instance_norm"):
        return not _norm_arguments(run)["training"]
    if name in _LINEAR_IN_ONE:
        return len(run.after) == 1 and (name not in DIVIDE or not _is_constant(next(iter(run.args), None), run))
    return name in HAND_ON or name in _CLIPS or name in _CHOICES


def _is_constant(value: Any, run: Application) -> bool:
    return not any(value is tensor for tensor in run.after)


def _bias_argument(name: str, run: Application) -> BiasTerm | None:
    """Takes the bias of a linear map, a convolution, or a norm over a layer or groups."""
    key = "out_proj_bias" if name == "multi_head_attention_forward" else "bias"
    bias = run.args[_BIAS_AT[name]] if len(run.args) > _BIAS_AT[name] else run.kwargs.get(key)
    if not isinstance(bias, Tensor) or not _is_constant(bias, run):
        return None
    grid = run.out.ndim - 2 if name == "group_norm" else CONVOLUTIONS.get(name, 0)
    return BiasTerm(bias.detach().view(*bias.shape, *[1] * grid), -bias.ndim - grid)


def _norm_arguments(run: Application) -> dict[str, Any]:
    """Returns the arguments of a batch norm or an instance norm by name; `training`: its own statistics are used."""
    values: dict[str, Any] = {"weight": None, "bias": None, "running_mean": None, "running_var": None, "eps": 1e-5}
    values |= norm_arguments(run)
    usual = run.name == "instance_norm"
    return values | {"training": bool(values.get("use_input_stats", values.get("training", usual)))}


def _of_norm(_name: str, run: Application) -> BiasTerm | None:
    """Takes what a batch norm adds, with what it subtracts where its statistics are constant."""
    values = _norm_arguments(run)
    bias, mean, variance, weight = (values[n] for n in ("bias", "running_mean", "running_var", "weight"))
    if not values["training"] and mean is not None:
        shift = -mean / (variance + values["eps"]).sqrt() * (1 if weight is None else weight.detach())
        bias = shift if bias is None else bias.detach() + shift
    if bias is None or not _is_constant(bias, run):
        return None
    return BiasTerm(bias.detach().view(-1, *[1] * (run.out.ndim - 2)), 1)


def _of_sum(name: str, run: Application) -> BiasTerm | None:
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


def _of_product(_name: str, run: Application) -> BiasTerm | None:
    """Takes what is added to a product of matrices."""
    bias = run.args[0] if run.args else run.kwargs["input"]
    return BiasTerm(bias.detach() * run.kwargs.get("beta", 1), -1) if _is_constant(bias, run) else None


def _of_clip(name: str, run: Application) -> BiasTerm | None:
    """Takes the ends of a clipping function's range, where they are what it puts out."""
    names = _CLIPS[name]
    given = {} if name == "relu6" else dict(zip(names, run.args[1:], strict=False)) | run.kwargs
    ends = [end for n in names if (end := given.get(n, names[n])) is not None]
    ends = [end for end in ends if isinstance(end, Tensor) or 0 < abs(end) < float("inf")]
    if not ends:
        return None
    ended = torch.stack([run.out == end for end in ends]).any(0)
    return BiasTerm(torch.where(ended, run.out.detach(), 0.0), 1, placed=False)


_ADDITIONS: dict[str, Callable[[str, Application], BiasTerm | None]] = {
    **dict.fromkeys(_BIAS_AT, _bias_argument),
    **dict.fromkeys(("batch_norm", "instance_norm"), _of_norm),
    **dict.fromkeys(_SIGNS, _of_sum),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _of_product),
    **dict.fromkeys(_CLIPS, _of_clip),
}
"""What functions add to what depends on the image; None: nothing."""
