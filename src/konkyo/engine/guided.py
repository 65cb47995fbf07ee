"""Guided ReLUs: within a context the backward of a forward lets only positive gradients through its ReLUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.session import OwnMode
from konkyo.engine.sound import stored_in_checkpoints


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
