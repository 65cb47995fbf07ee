"""Methods made of another method: averaged over augmented views, or reduced to a first component."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from konkyo.engine.probe import On, Probe
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.methods.base import WRAPPERS, Method, find
from konkyo.targets.base import Target, as_target
from konkyo.utils.tensors import agreeing
from konkyo.utils.tensors import first_component as project

_SCALES = (0.9, 1.0, 1.1)


def augmented(method: str | Method, *, scales: Sequence[float] = _SCALES, flip: bool = True) -> Method:
    """This method averages a method's map over views of the image: with its values scaled, and each of those mirrored.

    map = mean_v v^-1(method(v(x))). The views run as one batch, and all explain the class that was chosen on the image
    itself. The six views by default are pytorch-grad-cam's `aug_smooth`. Cost: a forward (and the method) per view.
    """
    inner, sizes = find(method), tuple(scales) if isinstance(scales, Sequence) else ()
    if not sizes or not all(isinstance(scale, (int, float)) and math.isfinite(scale) for scale in sizes):
        raise KonkyoError(f"augmented needs finite scales, at least one; got {scales!r}")

    def function(inputs: Tensor, targets: Sequence[Target], on: On, **options: Any) -> Tensor:
        """Returns the mean of the maps of all views, each turned back."""
        if flip and any(as_target(target).of_place() for target in targets):
            raise NotApplicable(
                "a mirrored image has its detections, regions and joints elsewhere; for those: augmented(..., "
                "flip=False)"
            )
        views = torch.cat([inputs * scale for scale in sizes])
        maps = inner(on(torch.cat([views, views.flip(-1)]) if flip else views), **options)
        if flip:
            maps = torch.cat([maps[: len(views)], maps[len(views) :].flip(-1)])
        maps = maps.relu() if inner.rectified else maps
        return maps.view(-1, len(inputs), *maps.shape[1:]).mean(0)

    settings = ([] if sizes == _SCALES else [f"scales={sizes}"]) + ([] if flip else ["flip=False"])
    return _made_of(inner, "augmented", function, ("inputs", "targets", "on"), settings)


def first_component(method: str | Method) -> Method:
    """This method is the first component of what the channels add to a method's map, in place of their sum.

    map = projection of every place's evidence (w_k A_k)_k on the first right singular vector; its sign is the one that
    agrees with the sum. It takes noise out of a map, and with it what few channels say: pytorch-grad-cam's
    `eigen_smooth`, without its centring. For methods that are sums over channels.
    """
    inner = find(method)

    def function(probe: Probe, **options: Any) -> Tensor:
        evidence = inner.evidence(probe, **options)
        return agreeing(project(evidence), evidence)

    return _made_of(inner, "first_component", function, ("probe",))


def _made_of(
    inner: Method, wrapper: str, function: Callable[..., Tensor], needs: tuple[str, ...], settings: Sequence[str] = ()
) -> Method:
    name = f"{wrapper}({', '.join([inner.name, *settings])})"
    return replace(inner, name=name, function=function, needs=needs, inner=inner)


WRAPPERS["augmented"] = augmented
WRAPPERS["first_component"] = first_component
