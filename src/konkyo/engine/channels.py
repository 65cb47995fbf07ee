"""Channels: what each channel of a layer counts for the score, and the score without it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from konkyo.engine.forward import Pass, Rows, pick, slopes_at_output
from konkyo.engine.layer import Layer, head_weight, linear_head
from konkyo.engine.variants import Variants
from konkyo.errors import NotApplicable
from konkyo.targets.classes import Target
from konkyo.utils.tensors import at_least_float32, grid_mean


class Channels:
    """Tells what the channels of a layer count for the scores of rows; in closed form where a linear head allows it."""

    def __init__(self, pass_: Pass, rows: Rows, targets: Sequence[Target], layer: Layer, variants: Variants) -> None:
        self._pass, self._rows, self._targets, self._layer = pass_, rows, tuple(targets), layer
        self._variants = variants

    def class_weights(self) -> Tensor:
        """Computes `Probe.class_weights`."""
        if self._layer.module is None:
            raise NotApplicable("needs a feature layer; the input is none")
        if self._head_weight is None:
            raise NotApplicable(
                f"needs global average pooling and one linear layer (or 1x1 convolution) right after the layer; "
                f"what follows {self._layer.name!r} is something else (grad_cam works for any head)"
            )
        return slopes_at_output(self._output(), self._targets) @ at_least_float32(self._head_weight)

    def ablate(self, activations: Tensor, score: Tensor, priority: Tensor | None) -> Tensor:
        """Computes `Probe.ablate` from the activations and scores of the rows."""
        if self._head_weight is not None:
            # The output is linear in the channels' means, so each channel's share is known without a forward.
            means, output, share = (
                grid_mean(activations),
                self._output(),
                at_least_float32(self._head_weight).T,
            )  # (C, K)
            return torch.stack([self._targets[i](output[i] - means[i, :, None] * share) for i in range(len(means))])

        def without(row: int, channels: Tensor) -> Tensor:
            grids = activations[row].expand(len(channels), *activations.shape[1:]).clone()
            grids[torch.arange(len(channels), device=grids.device), channels] = 0
            return grids

        alive = activations.flatten(2).any(2)  # the others are zero already
        priority = alive if priority is None else priority * alive
        count = activations.shape[1]
        ablated = self._variants.scores(score, count, activations=without, priority=priority, of_image=True)
        return torch.where(ablated == -torch.inf, score.to(ablated)[:, None], ablated)

    @cached_property
    def _head_weight(self) -> Tensor | None:
        """This is the weight (K, C) of what makes the output of the means over the grid; None if the head is another.

        It is a linear layer's, a 1x1 convolution's, or the identity where the means are the output.
        """
        if self._layer.module is None or self._pass.output.ndim != 2:
            return None
        means, output = grid_mean(self._pass.activations(self._layer)), self._pass.output.detach()
        tolerance = 3e-2 if self._pass.half else 1e-4
        if means.shape == output.shape and ((means - output).abs() <= tolerance * output.abs().amax()).all():
            return torch.eye(means.shape[1], device=means.device, dtype=means.dtype)
        head = linear_head(self._pass.network.module, means, output, tolerance)
        return None if head is None else head_weight(head)

    def _output(self) -> Tensor:
        return pick(self._pass.output.detach(), self._rows)
