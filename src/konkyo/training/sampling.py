"""Batches that have several images of every class in them, for losses that compare the images of a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from konkyo.errors import KonkyoError


class ClassBalancedSampler(Sampler[list[int]]):
    """A batch sampler whose batches are `images` images of each of `classes` classes, for any `DataLoader`:

        DataLoader(data, batch_sampler=ClassBalancedSampler(labels, classes=8, images=4))

    Every class comes equally often, so that an image of a rare class comes more often than one of a frequent class.
    Within a class none comes again before all have come. An epoch is as many batches as whole ones fit into the data,
    at least one. A class with fewer than `images` images gives what it has. Every epoch has an order of its own, from
    (seed, epoch); each pass through the batches begins the next epoch, unless `set_epoch` says which. Processes that
    train together take seeds of their own.

    labels: (N,) class indices. KonkyoError: other labels, fewer classes than `classes`, numbers below 1.
    """

    def __init__(self, labels: Sequence[int] | Tensor, classes: int, images: int, seed: int = 0) -> None:
        values = torch.as_tensor(labels)
        if values.ndim != 1 or values.is_floating_point():
            raise KonkyoError(f"labels are class indices (N,); got {tuple(values.shape)} {values.dtype}")
        present = sorted(set(values.tolist()))
        if not 1 <= classes <= len(present) or images < 1:
            raise KonkyoError(
                f"1 to {len(present)} classes of a batch, and 1 image of each or more, were expected; got {classes} "
                f"and {images}"
            )
        self._members = [(values == c).nonzero()[:, 0] for c in present]
        self.classes, self.images, self.seed, self.epoch = classes, images, seed, 0
        self._length = max(1, len(values) // (classes * images))

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next pass is, as after a resumed checkpoint."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % (1 << 63))
        self.epoch += 1
        turns: list[int] = []
        left: list[list[int]] = [[] for _ in self._members]
        for _ in range(self._length):
            chosen = turns[: self.classes]
            turns = turns[self.classes :]
            if len(chosen) < self.classes:  # no class twice in a batch
                order = torch.randperm(len(self._members), generator=draw).tolist()
                rest = [c for c in order if c not in chosen]
                fresh = rest[: self.classes - len(chosen)]
                turns = [c for c in order if c not in fresh]
                chosen += fresh
            yield [index for c in chosen for index in self._next(c, left, draw)]

    def _next(self, which: int, left: list[list[int]], draw: torch.Generator) -> list[int]:
        """Takes a class's next images; all come before one comes again, and none twice in a batch."""
        members = self._members[which]
        count = min(self.images, len(members))
        taken, left[which] = left[which][:count], left[which][count:]
        if len(taken) < count:
            order = members[torch.randperm(len(members), generator=draw)].tolist()
            fresh = [index for index in order if index not in taken][: count - len(taken)]
            left[which] = [index for index in order if index not in fresh]
            taken = taken + fresh
        return taken
