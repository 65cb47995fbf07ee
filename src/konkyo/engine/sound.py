"""Sound forwards: their backward is right, whatever the network does in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from konkyo.engine.session import OwnMode, Session


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
        with stored_in_checkpoints():
            out = function(*args, **kwargs)
        if function is functional.batch_norm:
            if self._session is not None and _of_batch(args, kwargs):
                self._session.tied = True
            if out.requires_grad:
                channels_last = out.ndim == 4 and not out.is_contiguous()
                memory_format = torch.channels_last if channels_last else torch.contiguous_format
                out.register_hook(lambda g: None if g is None else g.contiguous(memory_format=memory_format))
        return out


_NOTHING = nullcontext()
_TENSOR_HOOKS = {Tensor.register_hook, Tensor.retain_grad}
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


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


def stored_in_checkpoints() -> AbstractContextManager[object]:
    """Returns a context in which gradient checkpointing stores what it would compute again; else an empty one."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None or "_checkpoint_hook" not in getattr(hooks[0], "__qualname__", ""):
        return _NOTHING
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
