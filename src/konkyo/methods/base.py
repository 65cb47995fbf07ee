"""`@method`: a pure function of tensors becomes a method that any Probe can run, and the registry of all methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from konkyo.engine.forward import scores
from konkyo.engine.layer import INPUT
from konkyo.engine.probe import NEEDS, Probe, offer
from konkyo.engine.session import outside_inference, seeded
from konkyo.errors import KonkyoError, NotApplicable, unknown
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import Score
from konkyo.utils.registry import Options, check_free, check_options, signature_of, summary_of
from konkyo.utils.tensors import Fuse


@dataclass(frozen=True, eq=False)
class Method:
    """A registered method: its function's positional parameters are needs, its keyword-only parameters options."""

    name: str
    function: Callable[..., Tensor]
    rectified: bool
    """Whether the map is the function's result after a ReLU."""
    layer: str | None
    """Where it is defined: "input"; "stages", the last layer of every grid size; or None, a feature layer, the model's
    automatic one by default."""
    score: Score
    """What it explains of a class unless a Target or the option `score` says otherwise."""
    needs: tuple[str, ...]
    options: Options
    fuse: Fuse = "layer_cam"
    """How the maps of several layers become one unless the caller says otherwise."""
    inner: Method | None = None
    """The method that this one wraps."""
    holds_input: bool = True
    """Whether a value says what a place adds to the score; False: the score's slope there, as gradients do."""

    @property
    def summary(self) -> str:
        """This is the first sentence of its documentation."""
        return summary_of(self.function)

    def explained(self, options: Mapping[str, Any]) -> Score:
        """Returns what it explains of a class with these options. KonkyoError: a score that it does not have."""
        if not self._chooses_score() or SCORE not in options:
            return self.score
        check_options(self.name, {SCORE: options[SCORE]}, self.options)
        chosen: Score = options[SCORE]
        return chosen

    def _chooses_score(self) -> bool:
        """Tells whether the option `score` is the choice that `method` adds, and not the function's own."""
        return self.options.get(SCORE) is SCORE_OPTION

    def _any(self, fact: str) -> bool:
        """Tells whether one of the needs has this fact."""
        return any(getattr(NEEDS[name], fact) for name in self.needs)

    def needs_gradient(self) -> bool:
        """Tells whether its map is blank wherever the score does not depend on the layer."""
        return self._any("of_gradient") or (self.inner is not None and self.inner.needs_gradient())

    def needs_layer(self) -> bool:
        """Tells whether its map depends on the layer at all; RISE's does not."""
        return self._any("of_layer") or (self.inner is not None and self.inner.needs_layer())

    def needs_inside(self) -> bool:
        """Tells whether it reads or changes what is inside the network, and not only what it puts out."""
        return self._any("inside") or (self.inner is not None and self.inner.needs_inside())

    def needs_target(self) -> bool:
        """Tells whether its map depends on the target."""
        return self._any("of_target") and (self.inner is None or self.inner.needs_target())

    def needs_graph(self) -> bool:
        """Tells whether the layer must be a leaf of the graph of the one forward that all methods share."""
        return self._any("in_graph") or (self.inner is not None and self._any("itself") and self.inner.needs_graph())

    def runs_variants(self) -> bool:
        """Tells whether it scores variants, as many as the budget allows, or a method that it is made of does."""
        return self._any("runs_variants") or (self.inner is not None and self.inner.runs_variants())

    def traces_path(self) -> bool:
        """Tells whether it keeps what happened along a path."""
        return self._any("traces_path")

    def __call__(self, probe: Probe, **options: Any) -> Tensor:
        """Returns the signed maps (N, *grid) of a Probe, before the ReLU where the method has one."""
        result = self._run(probe, options)
        # As many axes as the images: evidence per channel. (A layer's grid has the axes of the image.)
        maps = result.sum(1) if self._per_channel(result, probe) else result
        if maps.ndim < 2 or len(maps) != len(probe.inputs):
            raise KonkyoError(
                f"method {self.name} must give one map per image, shape ({len(probe.inputs)}, *grid), or one per "
                f"channel, as many axes as the activations; got {tuple(result.shape)}"
            )
        return maps

    def evidence(self, probe: Probe, **options: Any) -> Tensor:
        """Returns what each channel adds to the map (N, C, *grid).

        NotApplicable: a method that is no sum over channels.
        """
        result = self._run(probe, options)
        if not self._per_channel(result, probe):
            raise NotApplicable(f"{self.name} is no sum over channels, so there is nothing to take the component of")
        return result

    def _per_channel(self, result: Tensor, probe: Probe) -> bool:
        """Tells whether the result has a part for every channel."""
        return self._any("of_layer") and result.ndim == probe.activations.ndim

    def _run(self, probe: Probe, options: Mapping[str, Any]) -> Tensor:
        """Calls the function with what the Probe offers for its needs. KonkyoError: an option that it does not have."""
        check_options(self.name, options, self.options)
        if self._chooses_score():  # the targets know it already
            options = {name: value for name, value in options.items() if name != SCORE}
        device = probe.inputs.device.type
        # The caller's autocast is for the network; sums over maps are done in the tensors' own precision.
        with outside_inference(), torch.no_grad(), torch.autocast(device, enabled=False):
            return self.function(*(offer(probe, need) for need in self.needs), **options)


SCORE = "score"
SCORE_OPTION = inspect.Parameter(
    SCORE, inspect.Parameter.KEYWORD_ONLY, default="probability", annotation=Literal["probability", "logit"]
)
"""The choice that methods have which explain a class's probability unless they are told to explain its logit."""

METHODS: dict[str, Method] = {}
"""All registered methods by name."""


@overload
def method(function: Callable[..., Tensor], /) -> Method: ...
@overload
def method(
    *,
    rectified: bool = ...,
    layer: str | None = ...,
    score: Score = ...,
    fuse: Fuse = ...,
    holds_input: bool = ...,
) -> Callable[[Callable[..., Tensor]], Method]: ...
def method(
    function: Callable[..., Tensor] | None = None,
    /,
    *,
    rectified: bool = False,
    layer: str | None = None,
    score: Score = "logit",
    fuse: Fuse = "layer_cam",
    holds_input: bool = True,
) -> Any:
    """Registers a function of tensors as a method under its own name.

    Its positional parameters name what it needs of a `Probe`, its keyword-only parameters are the user's options. It
    returns signed maps (N, *grid), or what each channel adds to them (N, C, *grid). `rectified` says that the method's
    definition ends in a ReLU, which is applied to the result's `maps`, while `signed` keeps the map before it. `layer`:
    "input" for a method defined there, "stages" for one made of a map from the last layer of every grid size, which
    `fuse` makes one. `score`: what it explains of a class; where that is the "probability", the method gets the option
    `score`, with which the user may choose the "logit". `holds_input`: False for maps of slopes, which metrics of
    attributions multiply by what a pixel changes. KonkyoError: a name that no Probe offers, or a taken name.

    >>> @method(rectified=True)
    ... def my_cam(activations, gradients, *, power=1):
    ...     "Channels weighted by a power of their mean gradient."
    ...     return ((gradients.mean((2, 3), keepdim=True) ** power) * activations).sum(1)
    >>> my_cam.needs, list(my_cam.options)
    (('activations', 'gradients'), ['power'])
    >>> _ = METHODS.pop("my_cam")
    """

    def register(function: Callable[..., Tensor]) -> Method:
        if not (function.__module__ or "").startswith("konkyo.methods."):
            import_module("konkyo.methods")  # so that a name of theirs is seen to be taken
        name, needs, options = signature_of("method", function, NEEDS)
        check_free("method", name, function, METHODS)
        if score == "probability":
            options = {**options, SCORE: options.get(SCORE, SCORE_OPTION)}
        METHODS[name] = Method(name, function, rectified, layer, score, needs, options, fuse, holds_input=holds_input)
        return METHODS[name]

    return register if function is None else register(function)


WRAPPERS: dict[str, Callable[[Method], Method]] = {}
"""Methods made of another method, by name: "augmented(grad_cam)"."""


def find(which: str | Method | Attribution) -> Method:
    """Returns the method of this name, or made of an attribution of Captum's.

    KonkyoError with the near names otherwise.
    """
    if isinstance(which, Method):
        return which
    if not isinstance(which, (str, type)) and isinstance(which, Attribution):
        return of_attribution(which)
    if isinstance(which, str) and "(" in which:
        wrapper, _, rest = which.strip().partition("(")
        if wrapper not in WRAPPERS or not rest.endswith(")"):
            raise unknown("wrapper", which, [f"{name}(METHOD)" for name in WRAPPERS])
        return WRAPPERS[wrapper](find(rest[:-1].strip()))
    if not isinstance(which, str) or which not in METHODS:
        raise unknown("method", which, [*METHODS, *(f"{name}(METHOD)" for name in WRAPPERS)])
    return METHODS[which]


@runtime_checkable
class Attribution(Protocol):
    """Captum's attribution objects have this in common."""

    attribute: Callable[..., Any]


def of_attribution(attribution: Attribution) -> Method:
    """Makes a method of an attribution object of Captum's: its attributions, summed over channels.

    Made around the model that is explained (or its network); it runs that by itself, so nothing is shared. Options are
    those of its `attribute`. KonkyoError, when it runs: a target that is not a class, an object made around something
    that puts out something else than the model, or attributions without a grid.
    """
    name = type(attribution).__name__

    def function(
        inputs: Tensor, output: Tensor, targets: Sequence[Target], generator: torch.Generator, **options: Any
    ) -> Tensor:
        """Returns the attributions (N, *grid) for the targets' classes, summed over channels."""
        indices = [index for target in targets if (index := as_target(target).class_logit) is not None]
        if len(indices) < len(targets):
            raise KonkyoError(f"{name} of Captum explains the network's outputs by index; a class was expected")
        scores(output, targets)  # KonkyoError: a class that there is not
        if output.shape[1] == 1:  # one logit stands for two classes
            if not all(indices):
                raise KonkyoError(f"{name} of Captum explains the one logit as it is: the class 'positive'")
            indices = [0] * len(indices)
        run = getattr(attribution, "forward_func", None)
        again = output if run is None else run(inputs)
        if (
            not isinstance(again, Tensor)
            or again.shape != output.shape
            or not torch.allclose(again.to(output), output, rtol=1e-2, atol=1e-2)
        ):
            raise KonkyoError(
                f"{name} of Captum was made around something that puts out something else than the model; make it "
                f"around the konkyo.Model itself, as in {name}(model)"
            )
        with seeded(generator.initial_seed()), torch.enable_grad():
            result = attribution.attribute(inputs.clone().requires_grad_(), target=indices, **options)
        result = result[0] if isinstance(result, tuple) else result
        if not isinstance(result, Tensor) or result.ndim < 3 or len(result) != len(inputs):
            shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise KonkyoError(f"{name} was expected to give attributions (N, C, *grid); got {shape}")
        maps: Tensor = result.detach().sum(1)
        return maps

    parameters = inspect.signature(attribution.attribute).parameters
    options = {n: p for n, p in parameters.items() if n not in ("self", "inputs", "target", "kwargs", "args")}
    return Method(name, function, False, INPUT, "logit", ("inputs", "output", "targets", "generator"), options)


def methods() -> dict[str, Method]:
    """Returns every registered method by name."""
    import_module("konkyo.methods")
    return dict(METHODS)
