"""Backwards by other rules than the chain rule alone: guided gradients, relevance, and every bias's share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from konkyo.engine.forward import Pass, Rows, pick, rounds, scores
from konkyo.engine.layer import INPUT, Layer, covers
from konkyo.engine.rules import BiasTerm, bias_terms, guided_relus, positive_relevance
from konkyo.errors import NotApplicable
from konkyo.targets.base import Target, as_target
from konkyo.utils.tensors import safe_divide


def guided_gradients(pass_: Pass, rows: Rows, targets: Sequence[Target]) -> Tensor:
    """Computes `Probe.guided_gradients`."""
    layer = Layer(INPUT, None)
    guided = pass_.other("guided", [layer], guided_relus)
    if not guided.recorded[guided_relus].used:  # type: ignore[attr-defined]
        raise NotApplicable("guided backpropagation changes how ReLUs are passed, and this network has none")
    return guided.gradients(rows, targets, layer)


def relevance(pass_: Pass, rows: Rows, targets: Sequence[Target], layer: Layer) -> Tensor:
    """Computes `Probe.relevance`."""
    indices = [index for target in targets if (index := as_target(target).class_index) is not None]
    if len(indices) < len(targets):
        raise NotApplicable("relevance is handed down from one class against the others; the target is no class")
    ruled = pass_.other("relevance", [layer], positive_relevance)
    classes = pass_.output.shape[1]
    start = torch.full_like(pick(pass_.output.detach(), rows), -1 / classes)
    for row, index in zip(start, indices, strict=True):
        row[index if classes > 1 else 0] = 1 if classes > 1 else 2 * index - 1
    # Under the rules gradient times value is relevance, at the output too.
    slope = safe_divide(start, pick(ruled.output.detach(), rows))
    gradients = ruled.gradients_of(rows, lambda output: (output * slope).sum(1), layer)
    return pick(ruled.activations(layer), rows) * gradients


def full_gradients(pass_: Pass, rows: Rows, targets: Sequence[Target]) -> tuple[Tensor, ...]:
    """Computes `Probe.full_gradients`."""
    layer, images, listed = Layer(INPUT, None), pass_.images, pass_
    if bias_terms not in pass_.recorded:  # asked for by a method that another one is made of
        listed = pass_.other("biases", [layer], bias_terms)
    terms: list[BiasTerm] = listed.recorded[bias_terms]  # type: ignore[assignment]
    values: list[tuple[Tensor, ...]] = []
    for part in (split := rounds(rows)):  # a backward fills the terms in, the next one anew
        images_of, targets_of = tuple(rows[row] for row in part), [targets[row] for row in part]
        gradient = listed.gradients_of(images_of, partial(scores, targets=targets_of), layer)
        of_biases = (pick(_placed(term.value(), images), images_of) for term in terms if term.gradient is not None)
        values.append((pick(images, images_of) * gradient, *of_biases))
    order = torch.tensor([row for part in split for row in part]).argsort().to(images.device)
    return values[0] if len(values) == 1 else tuple(torch.cat(term)[order] for term in zip(*values, strict=True))


def _placed(term: Tensor, images: Tensor) -> Tensor:
    """Returns a bias term as it is if its module puts out a grid per image, otherwise its sum per image (N, 1)."""
    grid = term.ndim == images.ndim and len(term) == len(images) and covers(term.shape[2:], images.shape[2:])
    return term if grid else term.reshape(len(images), -1).sum(1, keepdim=True)
