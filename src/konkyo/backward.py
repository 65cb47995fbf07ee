"""Other ways back through a network: guided ReLUs, relevance by the z+ rule, and what every bias adds.

Each is a context in which a forward runs; the backward of its output then is the other one. Nothing stays behind on the
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from konkyo.errors import NotApplicable
from konkyo.tensors import safe_divide

# --- guided backpropagation ------------------------------------------------------------------------------------------


class _GuidedReLU(torch.autograd.Function):
    """min(max(x, 0), top), which lets only positive gradients back."""

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


_RELU = {functional.relu, torch.relu, Tensor.relu, functional.relu_, torch.relu_, Tensor.relu_}
_RELU_IN_PLACE = {functional.relu_, torch.relu_, Tensor.relu_}


class GuidedReLUs(TorchFunctionMode):
    """Runs every ReLU and ReLU6, module or function, guided: Springenberg et al., 2015, Sec. 3.4."""

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch in place of itself, as the mode's protocol asks."""
        kwargs = kwargs or {}
        if function in _RELU:
            self.used = True
            inplace = function in _RELU_IN_PLACE or bool(kwargs.get("inplace", args[1] if len(args) > 1 else False))
            return _GuidedReLU.apply(args[0] if args else kwargs["input"], float("inf"), inplace)
        if function in (functional.relu6, functional.hardtanh):
            given = dict(zip(("input", "min_val", "max_val", "inplace"), args, strict=False)) | kwargs
            if function is functional.relu6:
                given = dict(zip(("input", "inplace"), args, strict=False)) | kwargs | {"min_val": 0.0, "max_val": 6.0}
            if given.get("min_val") == 0:
                self.used = True
                return _GuidedReLU.apply(given["input"], given["max_val"], bool(given.get("inplace")))
        return function(*args, **kwargs)


@contextmanager
def guided_relus(_root: nn.Module) -> Iterator[GuidedReLUs]:
    """Within the context every ReLU of a forward lets only positive gradients back."""
    with GuidedReLUs() as mode:
        yield mode


# --- relevance -------------------------------------------------------------------------------------------------------

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_WITHOUT_RULE = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.MultiheadAttention, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softmax, nn.Hardsigmoid, nn.Embedding, nn.ConvTranspose2d, nn.Bilinear),
)


@contextmanager
def positive_relevance(root: nn.Module) -> Iterator[None]:
    """Within the context a forward puts out what it always does, but its gradient times a value is relevance.

    Convolutions and linear layers follow the z+ rule (alpha = 1, beta = 0: Bach et al., 2015), batch norms hand
    relevance on, and for ReLU, pooling, dropout and sums gradient times value is relevance already (Montavon et al.,
    2019, Sec. 10.2). Other modules have no rule: NotApplicable, when one of them runs after the leaf.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if not (args and isinstance(args[0], Tensor) and args[0].requires_grad):
            return out  # before the leaf, or the leaf itself
        if isinstance(module, _WITHOUT_RULE):
            raise NotApplicable(
                f"there is no relevance rule for {type(module).__name__}, which runs after the layer; networks of "
                "convolutions, batch norms and ReLUs have rules for all they do"
            )
        x = args[0]
        z = x if isinstance(module, _NORMS) else _positive(module, x)
        part = z * safe_divide(out, z).detach()
        return part + (out - part).detach()  # the value is exact, also where z is 0

    with ExitStack() as undo:
        for module in root.modules():
            if isinstance(module, (*_CONVOLUTIONS, nn.Linear, *_NORMS, *_WITHOUT_RULE)):
                undo.callback(module.register_forward_hook(hook).remove)
        yield


def _positive(module: nn.Module, x: Tensor) -> Tensor:
    """The part of a linear map's result that comes from terms with a positive product, without the bias."""
    weight = module.weight
    assert isinstance(weight, Tensor)

    def run(values: Tensor, weights: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            return functional.linear(values, weights)
        assert isinstance(module, _CONVOLUTIONS)
        result: Tensor = module._conv_forward(values, weights, None)
        return result

    return run(x.clamp(min=0), weight.clamp(min=0)) + run(x.clamp(max=0), weight.clamp(max=0))


# --- what every bias adds --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class BiasTerm:
    """One call of a module that adds a bias, and after a backward the gradient of what it put out."""

    bias: Tensor
    """(C,)"""
    axis: int
    """Of the channels, in what the module puts out."""
    gradient: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        """Called in the backward with the gradient of the module's output."""
        self.gradient = gradient

    def value(self) -> Tensor:
        """Bias times gradient, channels second: (N, C, *grid), or (N, C). fp32 or better."""
        assert self.gradient is not None
        gradient = self.gradient if self.gradient.dtype == torch.float64 else self.gradient.float()
        gradient = gradient.movedim(self.axis, 1)
        return gradient * self.bias.detach().to(gradient).view(-1, *[1] * (gradient.ndim - 2))


@contextmanager
def bias_terms(root: nn.Module) -> Iterator[list[BiasTerm]]:
    """Within the context a forward lists every bias that it adds, in order; backwards fill the gradients in.

    A batch norm's bias is what it adds in all: beta - gamma mean / sqrt(variance + eps).
    """
    terms: list[BiasTerm] = []

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        bias = _bias(module)
        if bias is not None and isinstance(out, Tensor) and out.requires_grad:
            terms.append(BiasTerm(bias, _channel_axis(module, args[0], out)))
            out.register_hook(terms[-1].keep)  # type: ignore[no-untyped-call] # of the value before in-place operations

    with ExitStack() as undo:
        for module in root.modules():
            undo.callback(module.register_forward_hook(hook).remove)
        yield terms


def _channel_axis(module: nn.Module, x: Tensor, out: Tensor) -> int:
    """Where a module's bias is added. Layer norms over the channels of (N, C, h, w) are classes of the libraries'."""
    if isinstance(module, nn.LayerNorm):
        shape = list(module.normalized_shape)
        if list(x.shape[-1:]) != shape:
            return 1
        plain = functional.layer_norm(x, shape, module.weight, module.bias, module.eps)
        return -1 if torch.allclose(plain, out, rtol=1e-3, atol=1e-4) else 1
    return -1 if isinstance(module, nn.Linear) else 1


def _bias(module: nn.Module) -> Tensor | None:
    """What a module adds to each channel; None where it adds nothing."""
    bias = getattr(module, "bias", None)
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if isinstance(mean, Tensor) and isinstance(variance, Tensor):
        weight, eps = getattr(module, "weight", None), getattr(module, "eps", 0.0)
        scale = (torch.ones_like(mean) if weight is None else weight.detach()) / (variance + eps).sqrt()
        return (torch.zeros_like(mean) if bias is None else bias.detach()) - scale * mean
    return bias if isinstance(bias, Tensor) and bias.ndim == 1 else None
