"""Attention Branch Network (Fukui et al., 2019): a branch that classifies too, and whose map weighs the features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from konkyo.engine.capture import untouched
from konkyo.errors import KonkyoError
from konkyo.models import Model
from konkyo.models.networks.backbone import Backbone, as_backbone, fitting
from konkyo.utils.tensors import cross_entropy, grid_mean


class AttentionBranchOutput(NamedTuple):
    """What an attention branch network puts out in training."""

    logits: Tensor
    """(N, K): the perception branch's, which decide."""
    branch: Tensor
    """(N, K): the attention branch's."""
    attention: Tensor
    """(N, h, w): between 0 and 1."""


class AttentionBranch(nn.Module):
    """A grid (N, channels, h, w) -> class scores (N, classes), attention (N, 1, h, w).

    As in the authors' code: batch norm, 1x1 convolution to K maps, batch norm, ReLU. Of these a 1x1 convolution and the
    mean over the grid are the scores, and a 3x3 convolution to one map, batch norm and a sigmoid the attention. The
    convolutions have no biases.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.BatchNorm2d(channels), nn.Conv2d(channels, classes, 1, bias=False), nn.BatchNorm2d(classes), nn.ReLU()
        )
        self.scores = nn.Conv2d(classes, classes, 1, bias=False)
        self.attention = nn.Sequential(nn.Conv2d(classes, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, C, h, w) -> (N, K), (N, 1, h, w)"""
        maps = self.maps(grid)
        return grid_mean(self.scores(maps)), self.attention(maps)


class Emphasis(nn.Module):
    """Features times (1 + attention): a module of its own, so that its grid is a layer that can be explained."""

    def forward(self, grid: Tensor, attention: Tensor) -> Tensor:
        """Maps (N, C, h, w), (N, 1, h, w) -> (N, C, h, w)"""
        return grid * (1 + attention)


class AttentionBranchNetwork(nn.Module):
    """Images -> logits (N, classes), of features that an attention branch has weighed; in training
    `AttentionBranchOutput`.

    `backbone`: a classifier, of which a copy without its head is taken (`features_of`), or a `Backbone`. By default its
    last grid feeds both branches: attention emphasises it, its mean goes to a linear layer, and CAM of the emphasised
    grid is exact. The authors split a ResNet before its last stage and give each branch a copy of that. For this,
    `backbone` ends before the stage, and `branch` (without stride, so that the attention is as large as the grid) and
    `perception` are the copies, as `Backbone`s that take a grid. KonkyoError, in a forward: an attention of another
    size than the grid.
    """

    def __init__(
        self,
        backbone: nn.Module | Model,
        classes: int,
        *,
        branch: Backbone | None = None,
        perception: Backbone | None = None,
    ) -> None:
        super().__init__()
        self.backbone = as_backbone(backbone)
        self.branch, self.perception = branch, perception
        attending, deciding = ((part or self.backbone).channels for part in (branch, perception))
        self.attending, self.emphasis = AttentionBranch(attending, classes), Emphasis()
        self.head = nn.Linear(deciding, classes)
        fitting(self.attending, self.backbone)
        fitting(self.head, self.backbone)

    def forward(self, images: Tensor) -> AttentionBranchOutput | Tensor:
        """Maps images (N, 3, H, W) -> logits (N, K); in training `AttentionBranchOutput`."""
        grid = self.backbone(images)
        scores, attention = self._attend(grid)
        grid = self.emphasis(grid, attention)
        logits: Tensor = self.head(grid_mean(grid if self.perception is None else self.perception(grid)))
        return AttentionBranchOutput(logits, scores, attention[:, 0]) if self.training else logits

    def attention(self, images: Tensor) -> Tensor:
        """Returns attention maps in [0, 1], the same for every class, in eval mode, without a graph. -> (N, h, w)"""
        with untouched(self), torch.no_grad():
            return self._attend(self.backbone(images))[1][:, 0]

    def _attend(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        scores, attention = self.attending(grid if self.branch is None else self.branch(grid))
        if attention.shape[2:] != grid.shape[2:]:
            raise KonkyoError(
                f"the attention {tuple(attention.shape[2:])} is not as large as the grid {tuple(grid.shape[2:])} that "
                "it weighs: a branch has no stride"
            )
        return scores, attention


def attention_branch_loss(
    output: AttentionBranchOutput | Tensor, labels: Tensor, *, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Returns the "loss", the sum of both branches' cross-entropies, and these, without a graph; scalars, in nats.

    "ce" is the perception branch's, "branch" the attention branch's. `labels`: (N,) classes, or (N, K) probabilities.
    `weights` (K,): of the classes. KonkyoError: the output of a network in eval mode.
    """
    if not isinstance(output, AttentionBranchOutput):
        raise KonkyoError(
            "attention_branch_loss is of the output in training mode, an AttentionBranchOutput; in eval mode the "
            f"network puts out logits for any loss; got {type(output).__name__}"
        )
    dtype = torch.promote_types(output.logits.dtype, torch.float32)
    decided, branch = (cross_entropy(t.to(dtype), labels, weights) for t in (output.logits, output.branch))
    return {"loss": decided + branch, "ce": decided.detach(), "branch": branch.detach()}
