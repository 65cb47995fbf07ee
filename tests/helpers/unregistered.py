"""Methods that `konkyo.methods()` does not know."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from konkyo.engine.probe import Probe
from konkyo.methods.base import Method
from konkyo.utils.registry import signature_of


def made(function: Callable[..., Tensor], *, layer: str | None = "input", name: str = "") -> Method:
    """A method that is in no registry."""
    offer = [n for n in vars(Probe) if not n.startswith("_")]
    own, needs, options = signature_of("method", function, offer)
    return Method(name or own, function, False, layer, "logit", needs, options)
