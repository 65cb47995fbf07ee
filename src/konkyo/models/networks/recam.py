"""ReCAM (Chen et al., 2022): a second classifier, of features that the first one's maps mask, sharpens its maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.capture import untouched
from konkyo.errors import KonkyoError
from konkyo.models import Model
from konkyo.models.networks.backbone import Pooled, as_backbone, fitting
from konkyo.utils.tensors import cross_entropy, grid_mean

SMALL = 1e-5
"""Added to the largest value of a map that is divided by it."""


class ReCAMOutput(NamedTuple):
    """What a ReCAM network puts out in training. For features f (N, C, h, w):"""

    logits: Tensor
    """(N, K): the first classifier's."""
    maps: Tensor
    """(N, K, h, w): w_k . f, the first classifier's maps, signed."""
    others: Tensor
    """(N, K, h, w): w'_j . f, the second classifier's."""


class ReCAM(nn.Module):
    """A backbone and two linear classifiers without bias, w and w': images -> logits of w; in training `ReCAMOutput`.

    `backbone`: a classifier, of which a copy without its head is taken (`features_of`), or a `Backbone`. Two stages,
    as in the authors' code: first `recam_loss(output, labels, weight=0)` trains backbone and w, as any classifier; then
    `recam_loss(output, labels)` trains all, w' ten times as fast (`groups`). What konkyo's methods explain in eval mode
    is the first classifier; `maps` are ReCAM's, and the CAM of `reactivated()` is.
    """

    def __init__(self, backbone: nn.Module | Model, classes: int) -> None:
        super().__init__()
        self.backbone = as_backbone(backbone)
        self.first = nn.Linear(self.backbone.channels, classes, bias=False)
        self.second = nn.Linear(self.backbone.channels, classes, bias=False)
        fitting(self.first, self.backbone)
        fitting(self.second, self.backbone)

    def forward(self, images: Tensor) -> ReCAMOutput | Tensor:
        """Maps images (N, 3, H, W) -> logits (N, K); in training `ReCAMOutput`."""
        if self.training:
            return self.output(images)
        logits: Tensor = self.first(grid_mean(self.backbone(images)))
        return logits

    def output(self, images: Tensor) -> ReCAMOutput:
        """Returns what training puts out, in any mode: so `recam_loss` can be told of images in validation."""
        grid = self.backbone(images)
        logits, weights = self.first(grid_mean(grid)), (self.first.weight, self.second.weight)
        return ReCAMOutput(logits, *(_weighed(weight, grid) for weight in weights))

    def groups(self, rate: float = 5e-4) -> list[dict[str, Any]]:
        """Returns the parameter groups of the second stage: w' with this rate, the rest with a tenth of it."""
        slow = [*self.backbone.parameters(), *self.first.parameters()]
        return [{"params": list(self.second.parameters()), "lr": rate}, {"params": slow, "lr": rate / 10}]

    def maps(
        self, images: Tensor, *, flip: bool = False, scales: Sequence[float] = (1.0,), normalised: bool = False
    ) -> Tensor:
        """ReLU((w_k * w'_k) . f) of every class k, in eval mode, without a graph. -> (N, K, h, w)

        `flip` adds the mirrored image's map, mirrored back; the maps of images resized to `scales` are added on the
        grid of the first scale. `normalised` divides by the largest value + 1e-5. The authors': flip, scales
        (1, .5, 1.5, 2), normalised, of the classes that are there.
        """
        with untouched(self), torch.no_grad():
            weight, total = self.first.weight * self.second.weight, torch.zeros(())
            for scale in scales:
                scaled = images if scale == 1 else functional.interpolate(images, scale_factor=scale, mode="bilinear")
                activation = _weighed(weight, self.backbone(scaled)).relu()
                if flip:
                    activation = activation + _weighed(weight, self.backbone(scaled.flip(-1))).relu().flip(-1)
                size = total.shape[2:] if total.ndim else activation.shape[2:]
                total = total + functional.interpolate(activation, size=size, mode="bilinear", align_corners=False)
            return total / (total.amax((-2, -1), keepdim=True) + SMALL) if normalised else total

    def reactivated(self) -> nn.Module:
        """Returns a classifier with weights w * w' on the same features, whose CAM is ReCAM: for `konkyo.explain`.

        The backbone is this network's own, the weights are a copy of what they are now.
        """
        weight = (self.first.weight * self.second.weight).detach()
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
        head.load_state_dict({"weight": weight})
        return Pooled(self.backbone, head).train(self.training)


def recam_loss(
    output: ReCAMOutput | Tensor, labels: Tensor, *, weight: float = 1.0, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """The "loss" L = L_1 + weight L_2 of a ReCAM network's output in training, and its terms, without a graph; scalars.

    With A_k = ReLU(w_k . f), M_k = A_k / (max A_k + 1e-5) and f_k = mean(M_k f) over the grid, for every class k that
    is there. L_2 ("reactivation") is the softmax cross-entropy of w' f_k with target k, a mean over an image's classes
    and over images. M_k is not detached. As w'_j . f_k is the mean of M_k (w'_j . f), no masked features are made.

    `labels` (N,) of integers: one class per image, and L_1 ("classification") is the softmax cross-entropy, with
    `weights` (K,) of the classes. (N, K) of zeros and ones: any number of classes, and L_1 is the mean binary
    cross-entropy (the paper's). "blank": the share of classes that are there whose A_k is 0 everywhere, of which L_2
    learns nothing. KonkyoError: the output of a network in eval mode, labels of another form.
    """
    if not isinstance(output, ReCAMOutput):
        raise KonkyoError(
            "recam_loss is of the output in training mode, a ReCAMOutput; in eval mode the network puts out logits for "
            f"any loss; got {type(output).__name__}"
        )
    dtype = torch.promote_types(output.logits.dtype, torch.float32)
    logits, maps, others = (t.to(dtype) for t in output)
    count, classes = logits.shape
    if labels.shape == (count,) and not labels.is_floating_point():
        first = cross_entropy(logits, labels, weights)
        image, label = torch.arange(count, device=logits.device), labels
    elif labels.shape == (count, classes):
        first = functional.multilabel_soft_margin_loss(logits, labels.to(dtype))
        image, label = (labels > 0).nonzero(as_tuple=True)
    else:
        raise KonkyoError(
            f"labels are ({count},) integers, or ({count}, {classes}) zeros and ones; got {tuple(labels.shape)} "
            f"{labels.dtype}"
        )
    active = maps[image, label].relu()  # (R, h, w), a row for every class of every image
    peak = active.amax((-2, -1))
    masks = active / (peak[:, None, None] + SMALL)
    scores = torch.einsum("rhw,rkhw->rk", masks, others[image]) / math.prod(maps.shape[2:])
    losses = functional.cross_entropy(scores, label, reduction="none")
    there = torch.bincount(image, minlength=count).to(dtype)
    second = (losses / there[image]).sum() / count
    terms = {"classification": first, "reactivation": second, "blank": (peak == 0).to(dtype).sum() / max(1, len(peak))}
    return {"loss": first + weight * second, **{name: term.detach() for name, term in terms.items()}}


def _weighed(weight: Tensor, grid: Tensor) -> Tensor:
    """Returns maps of the channels weighed. (K, C), (N, C, h, w) -> (N, K, h, w)"""
    return functional.conv2d(grid, weight[:, :, None, None])
