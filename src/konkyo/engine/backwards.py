"""Backwards by other rules than the chain rule alone: guided gradients, relevance, and every bias's share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from konkyo.engine.biases import Biases, BiasTerm, bias_terms
from konkyo.engine.deep_lift import Lift
from konkyo.engine.forward import Pass, Rows, pick, rounds, scores, slopes_at_output
from konkyo.engine.guided import GuidedReLUs, deconvolved_relus, guided_relus
from konkyo.engine.layer import INPUT, Layer, covers
from konkyo.engine.linear_rules import nonzero
from konkyo.engine.relevance import ruled
from konkyo.engine.rules import CONTRASTIVE, Rules
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.targets.base import Target, as_target
from konkyo.utils.tensors import per_item, safe_divide

_Within: TypeAlias = Callable[[nn.Module], AbstractContextManager[GuidedReLUs]]

ROUNDING, ROUNDING_HALF = 5e-3, 5e-2
"""Up to which share sums of full gradients miss the score by rounding, also with TF32; and in half precision."""


def guided_gradients(pass_: Pass, rows: Rows, targets: Sequence[Target]) -> Tensor:
    """Computes `Probe.guided_gradients`."""
    return _through_relus(pass_, rows, targets, "guided backpropagation", guided_relus)


def deconv_gradients(pass_: Pass, rows: Rows, targets: Sequence[Target]) -> Tensor:
    """Computes `Probe.deconv_gradients`."""
    return _through_relus(pass_, rows, targets, "the deconvnet", deconvolved_relus)


def _through_relus(pass_: Pass, rows: Rows, targets: Sequence[Target], name: str, within: _Within) -> Tensor:
    layer = Layer(INPUT, None)
    changed = pass_.other(name, [layer], within)
    if not changed.recorded[within].used:  # type: ignore[attr-defined]
        raise NotApplicable(f"{name} changes how ReLUs are passed, and this network has none")
    return changed.gradients(rows, targets, layer)


def relevance(pass_: Pass, rows: Rows, targets: Sequence[Target], layer: Layer) -> Tensor:
    """Computes `Probe.relevance`."""
    return propagate(pass_, rows, targets, layer, CONTRASTIVE)[0]


def propagate(pass_: Pass, rows: Rows, targets: Sequence[Target], layer: Layer, rules: Rules) -> tuple[Tensor, Tensor]:
    """Computes `Probe.propagate`, and how much relevance (R,) it has handed down, regardless of signs.

    A logit of classes counts as much as the largest of them: one near 0 is a sum of parts that cancel, and these are
    of the usual size.
    """
    output = pick(pass_.output.detach(), rows)
    start = _contrastive(output, targets) if rules.start == "contrastive" else None
    at_image, bounds = layer.module is None, None
    if at_image:
        box = rules.first is not None and rules.first.name == "box"
        bounds = (pass_.black[:1], pass_.white[:1]) if box else ()
    within = partial(ruled, rules=rules, bounds=bounds)
    other = pass_.other(("relevance", replace(rules, start="logit")), [layer], within)
    if not other.output.requires_grad:
        raise NotApplicable("hands relevance down, and under these rules none of it comes to the layer")
    # Under the rules gradient times value is relevance, at the output too.
    output = pick(other.output.detach(), rows)
    if start is None:
        slope = slopes_at_output(output, targets)
        if rules.start == "one":
            total = (slope * output).flatten(1).sum(1)
            slope = slope * per_item(safe_divide(total.new_ones(()), total), output)
    else:
        slope = safe_divide(start, output)
    gradients = other.gradients_of(rows, lambda out: (out * slope).flatten(1).sum(1), layer)
    values = pick(other.activations(layer), rows)
    relevance = (nonzero(values) if at_image else values) * gradients
    slope, output = slope.double().abs(), output.double().abs()
    handed_down = slope * (output.amax(1, keepdim=True) if start is None and output.ndim == 2 else output)
    return relevance, handed_down.flatten(1).sum(1)


def _contrastive(output: Tensor, targets: Sequence[Target]) -> Tensor:
    """Returns the relevance of the output (R, K): 1 for the class, -1 / K for each of the others."""
    indices = [index for target in targets if (index := as_target(target).class_index) is not None]
    if len(indices) < len(targets):
        raise NotApplicable("relevance is handed down from one class against the others; the target is no class")
    scores(output, targets)  # KonkyoError: a class that there is not
    classes = output.shape[1]
    start = torch.full_like(output, -1 / classes)
    for row, index in zip(start, indices, strict=True):
        row[index if classes > 1 else 0] = 1 if classes > 1 else 2 * index - 1
    return start


def lifted(pass_: Pass, rows: Rows, targets: Sequence[Target], layer: Layer, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `Probe.lift`."""
    images = pass_.images.clone()
    for row, image in enumerate(rows):
        images[image] = baseline[row]
    if not torch.equal(pick(images, rows), baseline.to(images)):
        raise KonkyoError("one baseline was expected for every image; got several for targets of one image")
    scored = partial(scores, targets=targets)
    reference = Lift()
    of_baseline = _under(pass_, images, layer, reference)
    with pass_.forwards(), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        below = reference.scored(pick(of_baseline.output, rows), scored).detach()
    values = pick(of_baseline.activations(layer), rows)
    del of_baseline  # and its graph
    mode = Lift(reference)
    other = _under(pass_, pass_.images, layer, mode)
    multipliers = other.gradients_of(rows, lambda output: mode.scored(output, scored), layer)
    return (pick(other.activations(layer), rows) - values) * multipliers, below


def _under(pass_: Pass, images: Tensor, layer: Layer, mode: Lift) -> Pass:
    """Returns a Pass under a mode, which is not stored: what it holds is of one baseline."""
    with pass_.forwards():
        return Pass(pass_.network, images, [layer], differentiable=[layer], within=(mode.entered,))


def full_gradients(pass_: Pass, rows: Rows, targets: Sequence[Target]) -> FullGradients:
    """Computes `Probe.full_gradients`, and how complete they are."""
    layer, images, listed = Layer(INPUT, None), pass_.images, pass_
    if bias_terms not in pass_.recorded:  # asked for by a method that another one is made of
        listed = pass_.other("biases", [layer], bias_terms)
    biases: Biases = listed.recorded[bias_terms]  # type: ignore[assignment]
    values: list[tuple[Tensor, ...]] = []
    for part in (split := rounds(rows)):  # a backward fills the terms in, the next one anew
        images_of, targets_of = tuple(rows[row] for row in part), [targets[row] for row in part]
        gradient = listed.gradients_of(images_of, partial(scores, targets=targets_of), layer)
        of_biases = (pick(_placed(term, images), images_of) for term in biases.terms if term.gradient is not None)
        values.append((pick(images, images_of) * gradient, *of_biases))
    order = torch.tensor([row for part in split for row in part]).argsort().to(images.device)
    together = values[0] if len(values) == 1 else tuple(torch.cat(term)[order] for term in zip(*values, strict=True))
    if not biases.piecewise_linear:
        return FullGradients(together, None)
    return FullGradients(together, _missing(together, pick(listed.output.detach(), rows), targets, listed.half))


@dataclass(frozen=True, eq=False)
class FullGradients:
    """These are input times gradient and bias times gradient, and what of the score they leave out."""

    terms: tuple[Tensor, ...]
    missing: Tensor | None
    """(R,) the share that is missing; 0 where that is no more than rounding, None where the sum claims nothing."""


def _missing(terms: Sequence[Tensor], output: Tensor, targets: Sequence[Target], half: bool) -> Tensor:
    """Returns the share (R,) that terms lack of what they should add up to: the output times the score's slope there.

    (That is the score, where it is linear in the output.) The share is of the sum of all absolute terms.
    """
    slope = slopes_at_output(output, targets)
    sums = torch.stack([term.flatten(1).sum(1) for term in terms])
    right = (slope * output).flatten(1).sum(1).to(sums)
    share = safe_divide((right - sums.sum(0)).abs(), right.abs() + sums.abs().sum(0))
    return torch.where(share > (ROUNDING_HALF if half else ROUNDING), share, 0.0)


def _placed(term: BiasTerm, images: Tensor) -> Tensor:
    """Returns a term (N, C, *grid) if it is of a grid per image, otherwise its sum per image (N, 1)."""
    value = term.value()
    grid = value.ndim == images.ndim and len(value) == len(images) and covers(value.shape[2:], images.shape[2:])
    if grid and term.placed:
        return value
    if value.ndim == 3 and len(value) != len(images) and len(images) in value.shape[1:]:  # tokens first, then images
        return value.movedim(1 + value.shape[1:].index(len(images)), 0).flatten(1).sum(1, keepdim=True)
    if value.numel() % len(images):  # of no image alone
        return value.sum().expand(len(images), 1) / len(images)
    return value.reshape(len(images), -1).sum(1, keepdim=True)
