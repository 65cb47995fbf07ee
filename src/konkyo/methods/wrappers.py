"""Methods made of another method: over augmented views, noisy ones or windows; of a component, or low frequencies."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.engine.needs import On
from konkyo.engine.probe import Probe
from konkyo.errors import KonkyoError, NotApplicable, unknown
from konkyo.methods.base import WRAPPERS, Method, find
from konkyo.methods.noise import noisy_copies
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import class_logits
from konkyo.utils.tensors import agreeing, blurred, min_max, resize, safe_divide
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


Moment: TypeAlias = Literal["mean", "square", "variance"]


def smoothed(method: str | Method, *, samples: int = 10, std: float = 0.15, kind: Moment = "mean") -> Method:
    """This method makes one map of a method's maps of noisy copies of the image, as SmoothGrad does of gradients.

    map = the mean, the mean "square", or the "variance" (divided by `samples`) of method(x + noise_n) before its ReLU;
    of the "mean" the ReLU comes afterwards, the other two have no sign. Captum's NoiseTunnel (smoothgrad,
    smoothgrad_sq, vargrad), for any method; the square and the variance are of the finished map, summed over channels.
    The noise is that of `smooth_grad`, the same for all images. The copies run as one batch, and all explain what was
    chosen on the image itself. Cost: `samples` times that of the method.
    """
    inner = find(method)
    if kind not in get_args(Moment):
        raise unknown("kind of smoothed", kind, get_args(Moment))
    if inner.layer == "stages":
        raise NotApplicable(f"smoothed is of maps on one grid, and {inner.name} makes one on the grid of every stage")

    def function(inputs: Tensor, generator: torch.Generator, on: On, **options: Any) -> Tensor:
        """Returns the moment of the maps of all noisy copies."""
        noisy, numbers = noisy_copies("smoothed", inputs, generator, samples, std), torch.arange(samples)
        rows = torch.stack([noisy(row, numbers) for row in range(len(inputs))], 1)  # (samples, N, C, *size)
        maps = inner(on(rows.flatten(0, 1)), **options)
        maps = maps.view(samples, len(inputs), *maps.shape[1:])
        if kind == "variance":
            return (maps - maps.mean(0)).square().mean(0)
        return (maps.square() if kind == "square" else maps).mean(0)

    settings = ([] if samples == 10 else [f"samples={samples}"]) + ([] if std == 0.15 else [f"std={std}"])
    settings += [] if kind == "mean" else [f"kind={kind}"]
    made = _made_of(inner, "smoothed", function, ("inputs", "generator", "on"), settings)
    # Neither a square nor a variance says what a place adds.
    holds_input = inner.holds_input and kind == "mean"
    return replace(made, rectified=inner.rectified and kind == "mean", holds_input=holds_input)


def forgrad(method: str | Method, *, sigma: float = 15.0) -> Method:
    """This method takes the high frequencies out of a method's map (FORGrad, Muzellec et al., 2024).

    map = |F^-1(F(|map|) where the frequency is at most `sigma`)|, frequencies in periods per shorter side of the image.
    Gradients of convolutional networks have noise there, from strides and pooling. The paper tunes `sigma` for every
    network and method by deletion; 15 is only a beginning. From sqrt(2) / 2 times the shorter side on, nothing
    is taken out of a picture. For maps at the input. Cost: that of the method.
    """
    inner = find(method)
    if not 0 <= sigma < math.inf:
        raise KonkyoError(f"forgrad needs a finite sigma of 0 or more; got {sigma}")

    def function(probe: Probe, **options: Any) -> Tensor:
        """Returns the size of the low frequencies."""
        maps = inner(probe, **options)
        size = tuple(maps.shape[1:])
        if size != tuple(probe.inputs.shape[2:]):
            raise NotApplicable(
                f"forgrad is of maps at the input's resolution, {tuple(probe.inputs.shape[2:])}; {inner.name} gives "
                f'{size} here: methods such as saliency, or layer="input"'
            )
        maps = (maps.relu() if inner.rectified else maps).abs()
        axes = list(range(1, maps.ndim))
        spectrum = torch.fft.fftn(maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps, dim=axes)
        squares = maps.new_zeros((1,) * maps.ndim)
        for axis, side in zip(axes, size, strict=True):
            cycles = torch.fft.fftfreq(side, 1 / min(size)).to(maps)  # per shorter side
            squares = squares + cycles.view([-1 if a == axis else 1 for a in range(maps.ndim)]) ** 2
        low = torch.where(squares.sqrt() <= sigma + 1e-4, spectrum, 0)  # whole numbers up to rounding
        filtered: Tensor = torch.fft.ifftn(low, dim=axes).real.abs().to(maps)
        return filtered

    settings = [] if sigma == 15.0 else [f"sigma={sigma}"]
    # An absolute value says nothing of what a place adds.
    return replace(_made_of(inner, "forgrad", function, ("probe",), settings), rectified=False, holds_input=False)


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
WRAPPERS["smoothed"] = smoothed
WRAPPERS["forgrad"] = forgrad
WRAPPERS["first_component"] = first_component


# --- windows of an enlarged image -------------------------------------------------------------------------------------

_WINDOWS = 8  # that run in one batch
_NOTHING = 1e-6  # what is 0 but for rounding, of maps in [0, 1]


def sess(
    method: str | Method, *, scales: int = 12, ratio: float = 2 / 7, drop: float = 0.0, smooth: bool = True
) -> Method:
    """SESS (Tursun et al., 2022) averages a method's maps of windows on the enlarged image, weighted by their scores.

    The image is enlarged to 1 + `ratio` i times its sides, i < `scales`, and cut into windows of the image's own size,
    side by side, the last ones shifted in. The map of a window is scaled to [0, 1], multiplied by the class's
    probability there over the largest of all windows, and laid in its place on the image. The map is the mean over
    the windows whose value at a place is above 0, blurred by a Gaussian of 11 x 11 pixels with sigma 5 (`smooth`).
    `drop`: the share of windows of the lowest probability that are left out. For a class of a classifier. Cost: a
    forward (and the method) per window, 122 of them for a square image by default.
    """
    inner = find(method)
    if not isinstance(scales, int) or isinstance(scales, bool) or scales < 1:
        raise KonkyoError(f"scales of sess is a number of sizes, 1 or more; got {scales!r}")
    if not 0 < ratio < math.inf or not 0 <= drop < 1:
        raise KonkyoError(f"sess needs ratio > 0 and 0 <= drop < 1; got {ratio}, {drop}")

    def function(inputs: Tensor, targets: Sequence[Target], on: On, **options: Any) -> Tensor:
        """Returns the weighted mean of the windows' maps at the image's size."""
        labels = [index for target in targets if (index := as_target(target).class_index) is not None]
        if inputs.ndim != 4 or len(labels) < len(targets):
            raise NotApplicable("weighs windows of a picture by the probability of a class; needs such a target")
        probabilities, laid = list[Tensor](), list[Tensor]()
        for enlarged, corners in _windows(inputs, scales, ratio):
            for part in (corners[i : i + _WINDOWS] for i in range(0, len(corners), _WINDOWS)):
                height, width = inputs.shape[2:]
                probe = on(torch.cat([enlarged[..., y : y + height, x : x + width] for y, x in part]))
                if probe.output.ndim != 2:
                    raise NotApplicable("weighs windows of a picture by the probability of a class")
                shares = class_logits(probe.output).softmax(1).view(len(part), len(inputs), -1)
                probabilities += shares[:, torch.arange(len(labels)), labels].unbind()
                maps = inner(probe, **options)
                maps = min_max(resize(maps.relu() if inner.rectified else maps, (height, width)))
                for (y, x), window in zip(part, maps.view(len(part), *inputs.shape[:1], height, width), strict=True):
                    right, below = enlarged.shape[3] - x - width, enlarged.shape[2] - y - height
                    laid.append(resize(functional.pad(window, (x, right, y, below)), (height, width)))
        weights = torch.stack(probabilities)  # (windows, N)
        order = weights.argsort(dim=0, stable=True).argsort(dim=0)
        weights = safe_divide(weights, weights.amax(0)).masked_fill(order < int(len(weights) * drop), 0)
        values = torch.stack(laid) * weights[..., None, None]
        mean = safe_divide(values.sum(0), (values > _NOTHING).sum(0).to(values))
        return blurred(mean[:, None], 5.0, reach=5)[:, 0] if smooth else mean

    settings = [] if scales == 12 else [f"scales={scales}"]
    settings += [] if ratio == 2 / 7 else [f"ratio={ratio:g}"]
    settings += ([f"drop={drop:g}"] if drop else []) + ([] if smooth else ["smooth=False"])
    return _made_of(inner, "sess", function, ("inputs", "targets", "on"), settings)


def _windows(images: Tensor, scales: int, ratio: float) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Yields the images at every size, with the upper left corners (y, x) of the windows that cover them."""
    sides = tuple(images.shape[2:])
    step = round(min(sides) * ratio)
    for number in range(scales):
        shorter = min(sides) + step * number
        size = tuple(max(side, round(side * shorter / min(sides))) for side in sides)
        enlarged = images if size == sides else functional.interpolate(images, size, mode="bilinear")
        starts = [
            [min(start, length - side) for start in range(0, length, side)]
            for side, length in zip(sides, size, strict=True)
        ]
        yield enlarged, [(y, x) for y in starts[0] for x in starts[1]]


WRAPPERS["sess"] = sess
