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
from konkyo.errors import KonkyoError, unknown, warn
from konkyo.methods.base import Method
from konkyo.metrics.distances import Distance, blank, distances
from konkyo.models import Model
from konkyo.training.devices import over_processes, processes
from konkyo.training.labels import labelled_rows
from konkyo.training.maps import Mode, TrainingMaps, View
from konkyo.utils.tensors import min_max, resize

Aim: TypeAlias = Literal["ema", "batch"]
LOSSES: tuple[Distance, ...] = ("mse", "l2_over_hw", "pearson", "cosine", "js")
"""The distances that training can use: those with a gradient everywhere."""
CHECKED_EVERY = 100
"""After so many batches it is looked at whether the loss is made of anything; to ask each time would make them wait."""
FEW_MAPS, LOW_SHARE = 50, 0.1
"""Of at least so many maps that could be in the loss, a smaller share than this is a loss that does next to nothing."""


@dataclass(frozen=True)
class LambdaSchedule:
    """The schedule gives the weight of the loss by epoch, counted from 1 (Eq. 18).

    It is 0 up to `start`, `highest` from `end`, and linear between.

    KonkyoError: start after end, a weight that is no finite number.

    >>> print(*(LambdaSchedule(8.0)(epoch) for epoch in (1, 2, 3, 10, 50)))
    0.0 0.0 1.0 8.0 8.0
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
    """() int64: classes of the batch with too few of them, or with one and no map to compare it with."""
    blank: Tensor
    """() int64: correctly classified samples whose map says nothing; they are left out."""


class ConsistencyLoss(nn.Module):
    """The loss is the mean distance of maps from the map of their class, over a batch's correctly classified samples.

    After a forward of the network, `gaze(logits, labels)` is a number to be added to the loss with a weight, which may
    be negative (then maps are to differ):

        gaze, weight = ConsistencyLoss(model, (1, 224, 224)), LambdaSchedule(3.0)
        loss = cross_entropy(logits, labels) + weight(epoch) * gaze(logits, labels)

    Maps are those of the true class by `method` (`konkyo.training.maps.TrainingMaps`, which `mode`, `view` and `layer`
    are for, too; the paper's is Grad-CAM), scaled to [0, 1] (Eq. 2). Their `distance` (Eq. 15: "mse") is that from the
    `aim`. "ema" is the running mean map of the class, M = ema M + (1 - ema) mean (Eq. 17). It is updated before it is
    used, and its first value is the first mean. "batch" is the mean of this batch (Eq. 14). Neither has a gradient (for
    the mean squared distance from the mean it would be 0). Classes with fewer than `least` samples are left out (Eq.
    16); without any the loss is 0. `least` is 2; with aim "ema" it may be 1, for a single sample has a map to be
    compared with as soon as its class has been seen. (Before that it is the running map itself, and not in the loss.)

    Labels are as in `konkyo.training.labels.labelled_rows`: indices, -100 for images that are left out, soft labels
    (their largest share counts), zeros and ones of a single logit; with `multi_label` zeros and ones (N, K), and then a
    sample is an image and a class of it, correct where the class's sigmoid is above one half.

    Under torch.distributed counts and mean maps are those of all processes, and the mean over processes of the losses
    and of their gradients is that of the whole batch. The running maps are buffers and are checkpointed with
    `state_dict`; they change in training mode and with gradients enabled only. In eval mode or under `no_grad` the loss
    is a number: the distance from the running maps as they are. The network is not part of this module, nor are its
    weights.

    KonkyoWarning, once: hardly any sample was in the loss of the last batches. KonkyoError: as of `TrainingMaps`; an
    unknown distance or aim, ema outside [0, 1), `least` below 2, or below 1 with aim "ema".
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
        method: str | Method = "grad_cam",
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        if distance not in LOSSES:
            raise unknown("distance for training", distance, LOSSES)
        if aim not in ("ema", "batch"):
            raise unknown("aim", aim, ("ema", "batch"))
        lowest = 1 if aim == "ema" else 2
        if not 0 <= ema < 1 or least < lowest:
            alone = "" if aim == "ema" else " (1 needs aim 'ema': alone, a sample is its batch's mean)"
            raise KonkyoError(f"0 <= ema < 1 and least >= {lowest}{alone} were expected; got {ema} and {least}")
        self.maps = TrainingMaps(model, shape, layer=layer, mode=mode, view=view, method=method)
        if len(self.maps.grid) != 2:
            raise KonkyoError(f"a grid with two axes was expected; {self.maps.layer.name!r} has {self.maps.grid}")
        self.distance, self.aim, self.ema, self.least, self.multi_label = distance, aim, ema, least, multi_label
        device = next((p.device for p in self.maps.network.parameters()), None)
        self.register_buffer("means", torch.zeros(self.maps.classes, *self.maps.grid, device=device))
        self.register_buffer("seen", torch.zeros(self.maps.classes, dtype=torch.bool, device=device))
        nothing = torch.zeros((), dtype=torch.int64)
        self.watched = LossCounts(nothing, nothing, nothing)
        self._batches, self._warned = 0, False
        self._sums: Tensor | None = None

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss () of the network's last batch.

        logits (N, K), labels (N,) int64, or others as above. KonkyoError: other labels.
        """
        logits = logits[:, None] if logits.ndim == 1 else logits
        rows = labelled_rows(logits, labels, multi_label=self.multi_label)
        raw = self.maps(logits, rows.classes, rows.images)
        usable = rows.correct & ~blank(raw)
        with torch.autocast(raw.device.type, enabled=False):  # means would be in 16 bits
            return self._distance(torch.where(usable[:, None, None], raw, 0.0), rows.classes, rows.correct, usable)

    def _distance(self, raw: Tensor, labels: Tensor, right: Tensor, usable: Tensor) -> Tensor:
        """Returns the loss of maps as they come from the network, those that are not usable being zeros."""
        maps = min_max(resize(raw, tuple(self.means.shape[1:])))  # images may be of another size than `shape` said
        means, counts = self._class_means(maps.detach(), labels, usable)
        learning = self.training and torch.is_grad_enabled()
        enough = counts >= self.least
        active = enough
        if self.aim == "ema":  # a single map that begins the running map is its own aim
            active = enough & (self.seen | (counts >= 2)) if learning else enough & self.seen
        if learning and self.aim == "ema":
            fresh = torch.where(self.seen[:, None, None], self.ema * self.means + (1 - self.ema) * means, means)
            self.means.copy_(torch.where(enough[:, None, None], fresh, self.means))
            self.seen |= enough
        aims = means if self.aim == "batch" else self.means
        apart = distances(maps, aims[labels].to(maps), self.distance)
        total = torch.where(usable & active[labels], apart, 0.0).sum()  # to pick rows would make every step wait
        used = (counts * active).sum()
        self.watched = LossCounts(used.long(), ((counts > 0) & ~active).sum(), over_processes((right & ~usable).sum()))
        if learning and not self._warned:
            self._note(torch.stack([used, counts.sum()]))
        return total * processes() / used.clamp_min(1)

    def _note(self, used_and_usable: Tensor) -> None:
        """Adds up what the loss was made of, and warns once where that is hardly anything."""
        self._sums = used_and_usable if self._sums is None else self._sums + used_and_usable
        self._batches += 1
        if self._batches % CHECKED_EVERY:
            return
        used, usable = (int(n) for n in self._sums.tolist())
        if usable < FEW_MAPS:
            return
        if used < LOW_SHARE * usable:
            self._warned = True
            single = "" if self.least == 1 or self.aim == "batch" else "least=1, "
            warn(
                f"the consistency loss does next to nothing: {used} of {usable} correctly classified samples of the "
                f"last {self._batches} batches were in it, for the others were alone of their class in the batch "
                f"(least={self.least}). Ways out: {single}konkyo.training.ClassBalancedSampler, larger batches"
            )
        self._batches, self._sums = 0, None

    def _class_means(self, maps: Tensor, labels: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ((K, h, w) mean maps, (K,) how many), of all processes."""
        one_hot = functional.one_hot(labels, self.maps.classes).to(maps) * usable[:, None]
        counts = over_processes(one_hot.sum(0))
        sums = over_processes(torch.einsum("nk,nhw->khw", one_hot, maps))
        return (sums / counts.clamp_min(1)[:, None, None]).to(self.means), counts

    def close(self) -> None:
        """Takes the hooks off the network."""
        self.maps.close()
