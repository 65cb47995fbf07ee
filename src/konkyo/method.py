"""`@method`: a pure function of tensors becomes a method that any Probe can run, and the registry of all methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, overload

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.probe import Probe
from konkyo.target import Score

ON_OFFER = tuple(name for name in vars(Probe) if not name.startswith("_"))
"""What a method may name as positional parameters."""


_OF_TARGET = {"gradients", "regrad", "ablated_score", "class_weights"}


@dataclass(frozen=True, eq=False)
class Method:
    """A registered method: its function's positional parameters are needs, its keyword-only parameters options."""

    name: str
    function: Callable[..., Tensor]
    rectified: bool
    """Whether the map is the function's result after a ReLU."""
    layer: str | None
    """The layer it is defined at ("input"), or None: a feature layer, the model's automatic one by default."""
    score: Score
    """What it explains of a class unless a Target says otherwise."""
    needs: tuple[str, ...]
    options: Mapping[str, inspect.Parameter]

    @property
    def summary(self) -> str:
        """The first sentence of its documentation."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    def needs_gradient(self) -> bool:
        """Whether its map is blank wherever the score does not depend on the layer."""
        return bool(_OF_TARGET & set(self.needs))

    def varies_with_target(self) -> bool:
        """Whether the variants that it rescores may depend on the target, and not on the images alone."""
        return "rescore" in self.needs and bool({"score", *_OF_TARGET} & set(self.needs))

    def needs_layer(self) -> bool:
        """Whether its map depends on the layer at all; RISE's does not."""
        return "activations" in self.needs or self.needs_gradient()

    def __call__(self, probe: Probe, **options: Any) -> Tensor:
        """The signed maps (N, *grid) of a Probe, before the ReLU where the method has one."""
        for name in options:
            if name not in self.options:
                raise unknown(f"option of {self.name}", name, self.options or ["(none)"])
            kind = self.options[name].annotation
            accepted = (int, float) if kind is float else kind
            if kind in (int, float, str, bool) and (
                not isinstance(options[name], accepted) or (kind is not bool and isinstance(options[name], bool))
            ):
                raise KonkyoError(f"{name} of {self.name} is of type {kind.__name__}; got {options[name]!r}")
        device = probe.inputs.device.type
        # The caller's autocast is for the network; sums over maps are done in the tensors' own precision.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            maps = self.function(*(getattr(probe, need) for need in self.needs), **options)
        if maps.ndim < 2 or len(maps) != len(probe.inputs):
            raise KonkyoError(
                f"method {self.name} must give one map per image, shape ({len(probe.inputs)}, *grid); "
                f"got {tuple(maps.shape)}"
            )
        return maps


METHODS: dict[str, Method] = {}
"""All registered methods by name."""


@overload
def method(function: Callable[..., Tensor], /) -> Method: ...
@overload
def method(
    *, rectified: bool = ..., layer: str | None = ..., score: Score = ...
) -> Callable[[Callable[..., Tensor]], Method]: ...
def method(
    function: Callable[..., Tensor] | None = None,
    /,
    *,
    rectified: bool = False,
    layer: str | None = None,
    score: Score = "logit",
) -> Any:
    """Registers a function of tensors as a method under its own name.

    Its positional parameters name what it needs of a `Probe`, its keyword-only parameters are the user's options. It
    returns signed maps (N, *grid); `rectified` says that the method's definition ends in a ReLU, which is applied to
    the result's `maps`, while `signed` keeps the map before it. KonkyoError: a name that no Probe offers, or a taken
    name.

    >>> @method(rectified=True)
    ... def my_cam(activations, gradients, *, power=1):
    ...     "Channels weighted by a power of their mean gradient."
    ...     return ((gradients.mean((2, 3), keepdim=True) ** power) * activations).sum(1)
    >>> my_cam.needs, list(my_cam.options)
    (('activations', 'gradients'), ['power'])
    >>> _ = METHODS.pop("my_cam")
    """

    def register(function: Callable[..., Tensor]) -> Method:
        name = getattr(function, "__name__", type(function).__name__)
        if not function.__module__.startswith("konkyo.methods."):
            import_module("konkyo.methods")  # so that a name of theirs is seen to be taken
        parameters = inspect.signature(function).parameters
        needs = tuple(n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY)
        options = {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        for need in needs:
            if need not in ON_OFFER:
                raise unknown(f"need of method {name}:", need, ON_OFFER)
        if name in METHODS and METHODS[name].function.__module__ != function.__module__:
            raise KonkyoError(f"a method named {name!r} is registered already; choose another name")
        METHODS[name] = Method(name, function, rectified, layer, score, needs, options)
        return METHODS[name]

    return register if function is None else register(function)


def find(name: str | Method) -> Method:
    """The method of this name; KonkyoError with the near names otherwise."""
    if isinstance(name, Method):
        return name
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def methods() -> dict[str, Method]:
    """Every registered method by name."""
    import_module("konkyo.methods")
    return dict(METHODS)
