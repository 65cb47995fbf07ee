"""Gaze consistency as a loss: maps of one class are to look alike (Yonemura, "Gaze consistency", Eq. 11-18)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.layer import Layer
from konkyo.errors import KonkyoError, unknown
from konkyo.metrics.distances import Distance, blank, distances
from konkyo.models import Model
from konkyo.targets.classes import class_logits
from konkyo.training.devices import over_processes, processes
from konkyo.training.maps import Mode, TrainingMaps, View
from konkyo.utils.tensors import min_max, resize

Aim: TypeAlias = Literal["ema", "batch"]
LOSSES: tuple[Distance, ...] = ("mse", "l2_over_hw", "pearson", "cosine", "js")
"""The distances that training can use: those with a gradient everywhere."""


@dataclass(frozen=True)
class LambdaSchedule:
    """The schedule gives the weight of the loss by epoch, counted from 1 (Eq. 18).

    It is 0 up to `start`, `highest` from `end`, and linear between.

    KonkyoError: start after end, a weight that is no finite number.

    >>> [LambdaSchedule(8.0)(epoch) for epoch in (1, 2, 3, 10, 50)]
    [0.0, 0.0, 1.0, 8.0, 8.0]
    """

    highest: float
    start: int = 2
    end: int = 10

    def __post_init__(self) -> None:
        if self.start > self.end or not math.isfinite(self.highest):
            raise KonkyoError(f"start <= end and a finite weight were expected; got {self}")

    def __call__(self, epoch: float) -> float:
        """Returns the weight in this epoch; between whole numbers, within it."""
        if epoch >= self.end:
            return float(self.highest)
        return 0.0 if epoch <= self.start else self.highest * (epoch - self.start) / (self.end - self.start)


@dataclass(frozen=True)
class LossCounts:
    """The counts say what the last call of the loss was made of, over all processes.

    They are tensors, so that nothing waits for the device.
    """

    used: Tensor
    """() int64: correctly classified samples in the loss."""
    skipped: Tensor
    """() int64: classes of the batch with too few of them."""
    blank: Tensor
    """() int64: correctly classified samples whose map says nothing; they are left out."""


class ConsistencyLoss(nn.Module):
    """The loss is the mean distance of maps from the map of their class, over a batch's correctly classified samples.

    After a forward of the network, `gaze(logits, labels)` is a number to be added to the loss with a weight, which may
    be negative (then maps are to differ):

        gaze, weight = ConsistencyLoss(model, (1, 224, 224)), LambdaSchedule(3.0)
        loss = cross_entropy(logits, labels) + weight(epoch) * gaze(logits, labels)

    Maps are Grad-CAM's of the true class (`konkyo.training.maps.TrainingMaps`, which `mode`, `view` and `layer` are
    for), scaled to [0, 1] (Eq. 2). Their `distance` (Eq. 15: "mse") is that from the `aim`. "ema" is the running mean
    map of the class, M = ema M + (1 - ema) mean (Eq. 17). It is updated before it is used, and its first value is the
    first mean. "batch" is the mean of this batch (Eq. 14). Neither has a gradient (for the mean squared distance from
    the mean it would be 0). Classes with fewer than `least` samples are left out (Eq. 16); without any the loss is 0.

    Under torch.distributed counts and mean maps are those of all processes, and the mean over processes of the losses
    and of their gradients is that of the whole batch. The running maps are buffers and are checkpointed with
    `state_dict`; they change in training mode only. The network is not part of this module, nor are its weights.

    KonkyoError: as of `TrainingMaps`; an unknown distance or aim, ema outside [0, 1), fewer than two samples.
    """

    means: Tensor
    """(K, h, w) the running mean maps."""
    seen: Tensor
    """(K,) bool: which classes have one."""

    def __init__(
        self,
        model: Model | nn.Module,
        shape: Sequence[int],
        *,
        distance: Distance = "mse",
        aim: Aim = "ema",
        ema: float = 0.9,
        least: int = 2,
        layer: str | nn.Module | Layer | None = None,
        mode: Mode = "auto",
        view: View = "train",
    ) -> None:
        super().__init__()
        if distance not in LOSSES:
            raise unknown("distance for training", distance, LOSSES)
        if aim not in ("ema", "batch"):
            raise unknown("aim", aim, ("ema", "batch"))
        if not 0 <= ema < 1 or least < 2:
            raise KonkyoError(f"0 <= ema < 1 and least >= 2 were expected; got {ema} and {least}")
        self.maps = TrainingMaps(model, shape, layer=layer, mode=mode, view=view)
        if len(self.maps.grid) != 2:
            raise KonkyoError(f"a grid with two axes was expected; {self.maps.layer.name!r} has {self.maps.grid}")
        self.distance, self.aim, self.ema, self.least = distance, aim, ema, least
        device = next((p.device for p in self.maps.network.parameters()), None)
        self.register_buffer("means", torch.zeros(self.maps.classes, *self.maps.grid, device=device))
        self.register_buffer("seen", torch.zeros(self.maps.classes, dtype=torch.bool, device=device))
        nothing = torch.zeros((), dtype=torch.int64)
        self.watched = LossCounts(nothing, nothing, nothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss () of the network's last batch.

        logits (N, K), labels (N,) int64. KonkyoError: other labels.
        """
        if labels.ndim != 1 or labels.is_floating_point():
            raise KonkyoError(f"labels are class indices (N,); got {tuple(labels.shape)} {labels.dtype}")
        labels, last = labels.long(), self.maps.classes - 1
        on_host = labels.device.type == "cpu"  # to ask a device would make every step wait
        if on_host and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
            raise KonkyoError(f"labels from 0 to {last} were expected; got {labels.min()} to {labels.max()}")
        raw = self.maps(logits, labels)
        right = class_logits(logits).argmax(1) == labels
        usable = right & ~blank(raw)
        with torch.autocast(raw.device.type, enabled=False):  # means would be in 16 bits
            return self._distance(torch.where(usable[:, None, None], raw, 0.0), labels, right, usable)

    def _distance(self, raw: Tensor, labels: Tensor, right: Tensor, usable: Tensor) -> Tensor:
        """Returns the loss of maps as they come from the network, those that are not usable being zeros."""
        maps = min_max(resize(raw, tuple(self.means.shape[1:])))  # images may be of another size than `shape` said
        means, counts = self._class_means(maps.detach(), labels, usable)
        active = counts >= self.least
        if self.training and self.aim == "ema":
            fresh = torch.where(self.seen[:, None, None], self.ema * self.means + (1 - self.ema) * means, means)
            self.means.copy_(torch.where(active[:, None, None], fresh, self.means))
            self.seen |= active
        aims = means if self.aim == "batch" else self.means
        if not self.training and self.aim == "ema":
            active = active & self.seen
        apart = distances(maps, aims[labels].to(maps), self.distance)
        total = torch.where(usable & active[labels], apart, 0.0).sum()  # to pick rows would make every step wait
        used = (counts * active).sum()
        self.watched = LossCounts(used.long(), ((counts > 0) & ~active).sum(), over_processes((right & ~usable).sum()))
        return total * processes() / used.clamp_min(1)

    def _class_means(self, maps: Tensor, labels: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ((K, h, w) mean maps, (K,) how many), of all processes."""
        one_hot = functional.one_hot(labels, self.maps.classes).to(maps) * usable[:, None]
        counts = over_processes(one_hot.sum(0))
        sums = over_processes(torch.einsum("nk,nhw->khw", one_hot, maps))
        return (sums / counts.clamp_min(1)[:, None, None]).to(self.means), counts

    def close(self) -> None:
        """Takes the hooks off the network."""
        self.maps.close()
