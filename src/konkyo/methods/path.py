"""Gradients integrated along a path from a baseline to the image (or to the layer's activations).

`baseline`: a value of the preprocessed image, "zero" (the mean colour of the network's data), "black", "white", "mean"
(the image's own mean colour), "blur", "noise", a prepared image as a tensor, or a list of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import Note, On, Regrad, Revisit, ScoreAt
from konkyo.engine.path import QuadratureRule, quadrature
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.methods.base import method
from konkyo.methods.noise import noisy_copies
from konkyo.utils.baselines import Baseline, Baselines, all_baseline_images, baseline_images, each_baseline
from konkyo.utils.tensors import blurred, grid_mean, per_item, weigh


@method(layer="input")
def integrated_gradients(
    inputs: Tensor,
    activations: Tensor,
    black: Tensor,
    white: Tensor,
    generator: torch.Generator,
    on: On,
    regrad: Regrad,
    score_at: ScoreAt,
    note: Note,
    *,
    steps: int = 50,
    baseline: Baselines = 0.0,
    rule: QuadratureRule = "right",
) -> Tensor:
    """Integrated Gradients (Sundararajan et al., 2017, Eq. 3) averages the gradient on the way from a baseline.

    map = sum_c (x_c - b) (1 / steps) sum_k d score(b + k / steps (x - b)) / d x_c, k = 1 ... steps. The map's sum
    approaches score(x) - score(b): the explanation's `notes` have score(b) as `baseline_score`, the `sum`, and the
    `gap` = sum - (score(x) - score(b)). `baseline` is a value of the preprocessed image (0: the mean colour), "zero",
    "black", "white", "mean" (the image's own mean colour), "blur" (a Gaussian of a sixteenth of the longest side),
    "noise" (uniform between black and white), a prepared image, or a list of these, whose maps are averaged, as is
    then score(b). At a hidden layer the way goes from the activations of that image; numbers and tensors are of the
    layer itself. `rule`: "right" takes the paper's right-hand nodes, "left" the others, "midpoint" the middles and
    "trapezoid" steps + 1 ends, which need fewer steps, and "gauss" those of Gauss and Legendre (Captum's default),
    which need the fewest where the score is smooth. Cost: `steps` forwards and backwards for every baseline, and a
    forward.
    """
    nodes, weights = (part.to(activations) for part in _rule("integrated_gradients", rule, steps))
    resolved = partial(baseline_images, black=black, white=white, generator=generator)
    at_input = _at_input(inputs, activations)

    def start_of(one: Baseline) -> Tensor:
        """Returns where the way begins (N, C, *grid)."""
        if at_input or not isinstance(one, str):
            return resolved(one, activations).expand_as(activations)
        return on(resolved(one, inputs).expand_as(inputs).contiguous()).activations

    starts = [start_of(one) for one in each_baseline(baseline, activations.ndim)]
    total = torch.zeros_like(activations)
    for start in starts:
        way = activations - start

        def points(row: int, k: Tensor, start: Tensor = start, way: Tensor = way) -> Tensor:
            return start[row] + per_item(nodes[k], way) * way[row]

        total += way * regrad(weights, activations=points) / len(starts)
    _note_gap(note, total, score_at, starts)
    return total


@method(rectified=True)
def integrated_grad_cam(
    inputs: Tensor,
    activations: Tensor,
    black: Tensor,
    white: Tensor,
    generator: torch.Generator,
    on: On,
    revisit: Revisit,
    *,
    steps: int = 20,
    baseline: Baselines = 0.0,
    rule: QuadratureRule = "right",
    rectify: Literal["nodes", "sum"] = "nodes",
) -> Tensor:
    """Integrated Grad-CAM (Sattarzadeh et al., 2021) averages Grad-CAM on the way from a baseline image.

    map = (1 / steps) sum_t ReLU(sum_k mean(G_k(x_t)) (A_k(x_t) - A_k(b))), x_t = b + t / steps (x - b), t = 1 ...
    steps. `baseline` (the paper's is black) and `rule` as in `integrated_gradients`. `rectify` "sum" puts the ReLU
    outside the sum, so that what speaks against the class along the way is weighed up and stays in `signed`. Cost:
    `steps` forwards and backwards for every baseline, and a forward for the baseline.
    """
    nodes, weights = (part.to(inputs) for part in _rule("integrated_grad_cam", rule, steps))
    images = all_baseline_images(baseline, inputs, black=black, white=white, generator=generator)
    maps = activations.new_zeros(len(activations), *activations.shape[2:])
    for image in images:
        way, start = inputs - image, on(image.contiguous()).activations

        def points(row: int, k: Tensor, image: Tensor = image, way: Tensor = way) -> Tensor:
            return image[row] + per_item(nodes[k], way) * way[row]

        for row, k, values, gradients in revisit(len(nodes), inputs=points):
            node_maps = weigh(grid_mean(gradients), values - start[row])
            node_maps = node_maps.relu() if rectify == "nodes" else node_maps
            # Of equal weights the sum is divided once, so that rounding is that of a mean.
            share = per_item((weights[k] * steps).to(node_maps), node_maps)
            maps[row] += (share * node_maps).sum(0) / steps
    return maps / len(images)


@method(layer="input")
def gradient_shap(
    inputs: Tensor,
    activations: Tensor,
    black: Tensor,
    white: Tensor,
    generator: torch.Generator,
    revisit: Revisit,
    score_at: ScoreAt,
    note: Note,
    *,
    samples: int = 20,
    baselines: Baselines = "black",
    std: float = 0.0,
) -> Tensor:
    """GradientSHAP (Lundberg & Lee, 2017) averages over paths from several baselines: Expected Gradients.

    map = mean_n sum_c (x_c - b_n) G_c(b_n + a_n (x - b_n)), a_n in [0, 1]. Expected Gradients (Erion et al., 2021) are
    its expectation where the b_n are images of the training data: give those as `baselines`, a tensor (M, C, *size) as
    prepared for the network. Otherwise they are as the `baseline` of `integrated_gradients`. The samples take the
    baselines in turn, in random order, and a_n one from each of `samples` equal parts of [0, 1]. `std` > 0 adds noise
    of so much of the image's range to x, anew for every sample. The map's sum is score(x) - mean score(b_n) in
    expectation; see `notes` as in `integrated_gradients`. Cost: `samples` forwards and backwards, and a forward for
    every baseline drawn.
    """
    _require_input("gradient_shap", inputs, activations)
    noisy = noisy_copies("gradient_shap", inputs, generator, samples, std)
    listed = each_baseline(baselines, inputs.ndim)
    order = torch.randperm(len(listed), generator=generator)[:samples].tolist()
    resolved = partial(baseline_images, black=black, white=white, generator=generator)
    starts = [resolved(listed[m], inputs).expand_as(inputs) for m in order]
    parts = torch.randperm(samples, generator=generator)
    shares = ((parts + torch.rand(samples, generator=generator)) / samples).to(inputs)

    def way(row: int, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the baselines (v, C, *size) of some samples, and how far it is from there to the image."""
        begin = torch.stack([starts[n % len(starts)][row] for n in k.tolist()])
        return begin, noisy(row, k) - begin

    def points(row: int, k: Tensor) -> Tensor:
        begin, far = way(row, k)
        return begin + per_item(shares[k], far) * far

    total = torch.zeros_like(activations)
    for row, k, _, gradients in revisit(samples, inputs=points):
        total[row] += (way(row, k)[1] * gradients).sum(0) / samples
    _note_gap(note, total, score_at, starts, [len(range(m, samples, len(starts))) for m in range(len(starts))])
    return total


@method(layer="input")
def blur_ig(
    inputs: Tensor,
    activations: Tensor,
    revisit: Revisit,
    score_at: ScoreAt,
    note: Note,
    *,
    steps: int = 50,
    sigma: float = 50.0,
    scale: Literal["linear", "sqrt"] = "linear",
    padding: Literal["reflect", "constant"] = "reflect",
) -> Tensor:
    """Blur Integrated Gradients (Xu et al., 2020) go from a blurred image to the sharp one, without a baseline colour.

    map = -sum_c sum_i (s_(i+1) - s_i) d(x * g_s)_c / ds G_c(x * g_s) at s = s_i = i `sigma` / steps, i = 0 ... steps -
    1; * g_s is a blur by a Gaussian of s pixels, and the derivative is the difference quotient over 0.01 pixels. The
    map's sum approaches score(x) - score(x blurred by `sigma`), `baseline_score` in the `notes`. `scale` "sqrt" takes
    s_i = `sigma` sqrt(i / steps). `padding`: "reflect" mirrors the image at its borders; "constant" puts zeros there,
    as the authors' code does, which darkens the border and credits it. Cost: `steps` forwards and backwards, and a
    forward.
    """
    if steps < 1 or not 0 < sigma < math.inf:
        raise KonkyoError(f"blur_ig needs steps >= 1 and sigma > 0; got {steps}, {sigma}")
    _require_input("blur_ig", inputs, activations)
    places = [i / steps if scale == "linear" else math.sqrt(i / steps) for i in range(steps + 1)]
    at = [sigma * place for place in places]

    def soft(images: Tensor, i: int, more: float = 0.0) -> Tensor:
        """Returns images blurred by s_i + `more`; the kernel is as wide with it as without."""
        width, reach = at[i] + more, math.ceil(5 * at[i]) + 1
        return blurred(images, width, reach=reach, padding=padding) if width else images

    def points(row: int, k: Tensor) -> Tensor:
        return torch.cat([soft(inputs[row][None], i) for i in k.tolist()])

    total = torch.zeros_like(activations)
    for row, k, _, gradients in revisit(steps, inputs=points):
        for i, gradient in zip(k.tolist(), gradients, strict=True):
            change = (soft(inputs[row][None], i, _BLUR) - soft(inputs[row][None], i))[0] / _BLUR
            total[row] -= (at[i + 1] - at[i]) * change * gradient
    _note_gap(note, total, score_at, [soft(inputs, steps)])
    return total


_BLUR = 0.01  # pixels of blur more: the step of the authors' difference quotient


@method(layer="input")
def guided_ig(
    inputs: Tensor,
    activations: Tensor,
    black: Tensor,
    white: Tensor,
    generator: torch.Generator,
    on: On,
    score_at: ScoreAt,
    note: Note,
    *,
    steps: int = 100,
    fraction: float = 0.25,
    distance: float = 0.02,
    baseline: Baselines = "black",
) -> Tensor:
    """Guided Integrated Gradients (Kapishnikov et al., 2021) go where the gradient is small first, so noise adds less.

    map = sum_c sum over moves of (move_c) G_c. Of `steps` steps each takes 1 / steps of the way |x - b|_1 to the image.
    It moves the `fraction` of the values (pixels and channels by themselves) with the smallest |G|, up to the place
    t / steps + `distance` of their own way, then the next ones; none falls behind t / steps - `distance`. Every move is
    credited with the gradient where the step began. The sum approaches score(x) - score(b); see `notes`. `baseline` as
    in `integrated_gradients`. Cost: `steps` forwards and backwards, one after the other; of all images together.
    """
    if steps < 1 or not 0 < fraction <= 1 or not 0 <= distance <= 1:
        raise KonkyoError(
            "guided_ig needs steps >= 1, a fraction in (0, 1] and a distance in [0, 1]; got "
            f"{steps}, {fraction}, {distance}"
        )
    _require_input("guided_ig", inputs, activations)
    starts = all_baseline_images(baseline, inputs, black=black, white=white, generator=generator)
    total = torch.zeros_like(activations)
    for start in starts:
        way = inputs - start
        done = torch.zeros_like(way, dtype=torch.float64)  # of every value's own way
        for step in range(1, steps + 1):
            gradients = on(start + done.to(way) * way).gradients
            for row, gradient in enumerate(gradients):
                further = _further(done[row], way[row], gradient, step / steps, fraction, distance)
                total[row] += ((further - done[row]) * way[row] * gradient).to(total) / len(starts)
                done[row] = further
    _note_gap(note, total, score_at, starts)
    return total


def _further(done: Tensor, way: Tensor, gradient: Tensor, share: float, fraction: float, distance: float) -> Tensor:
    """Returns how much of its way every value has gone (C, *size) when `share` of the whole way is."""
    low, high = max(share - distance, 0.0), min(share + distance, 1.0)
    lengths = way.abs().double()
    target, size = lengths.sum() * (1 - share), gradient.abs().double()
    standing = lengths == 0
    count = math.floor(fraction * (size.numel() - 1)) + 1
    for _ in range(math.ceil(1 / fraction) + 1):
        done = torch.where(standing, high, done.clamp_min(low))
        left = (lengths * (1 - done)).sum()
        if left <= target + 1e-9 * (1 + target):
            break
        size = size.masked_fill(done >= high, math.inf)
        smallest = (size <= size.flatten().kthvalue(count).values) & size.isfinite()
        room = (lengths * (high - done) * smallest).sum()
        part = float((left - target) / room) if room > 0 else math.inf
        done = torch.where(smallest, high if part > 1 else done + part * (high - done), done)
        if part <= 1:
            break
    return done


def _rule(name: str, rule: QuadratureRule, steps: int) -> tuple[Tensor, Tensor]:
    """Returns the rule's nodes on the way and their weights."""
    if steps < 1:
        raise KonkyoError(f"{name} needs steps >= 1; got {steps}")
    return quadrature(rule, steps)


def _at_input(inputs: Tensor, activations: Tensor) -> bool:
    """Tells whether the layer is the input itself."""
    same = activations.shape == inputs.shape
    return same and torch.allclose(activations, inputs.to(activations), rtol=0, atol=0, equal_nan=True)


def _require_input(name: str, inputs: Tensor, activations: Tensor) -> None:
    if not _at_input(inputs, activations):
        raise NotApplicable(f'{name} changes the image and adds up over its pixels: layer="input"')


def _note_gap(
    note: Note, total: Tensor, score_at: ScoreAt, starts: Sequence[Tensor], counts: Sequence[int] | None = None
) -> None:
    """Notes how far the sum of a map (N, C, *grid) is from what lies between the baselines' scores and the image's.

    `counts`: how many paths begin at each baseline; None: one.
    """
    counts = [1] * len(starts) if counts is None else counts
    scores = torch.stack([score_at(start) * n for start, n in zip(starts, counts, strict=True)])
    below, added = scores.sum(0) / sum(counts), total.flatten(1).sum(1)
    note("baseline_score", below)
    note("sum", added)
    note("gap", added - (score_at() - below).to(added))
