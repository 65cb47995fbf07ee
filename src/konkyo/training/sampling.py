"""Batches that have several images of every class in them, for losses that compare the images of a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from konkyo.errors import KonkyoError
from konkyo.utils.seeds import mixed


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
        present = [int(c) for c in torch.unique(values)]
        if not 1 <= classes <= len(present) or images < 1:
            raise KonkyoError(
                f"1 to {len(present)} classes of a batch, and 1 image of each or more, were expected; got {classes} "
                f"and {images}"
            )
        self._labels, self.classes, self.images, self.seed, self.epoch = values.tolist(), classes, images, seed, 0
        self._length = max(1, len(values) // (classes * images))

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next pass is, as after a resumed checkpoint."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        self.epoch += 1
        return iter(balanced(self._labels, [self.images] * self.classes, self._length, draw))


def balanced(labels: Sequence[int], sizes: Sequence[int], count: int, generator: torch.Generator) -> list[list[int]]:
    """Returns `count` batches of indices, each with images of as many classes as `sizes` has numbers of images.

    A class that has fewer images gives all of them. Classes come in turn, as do the images of a class: none a second
    time before all have come once, and none twice in a batch.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    images = {label: _Turns(members[label], generator) for label in sorted(members)}
    classes = _Turns(list(images), generator)
    return [
        [i for label, size in zip(classes.take(len(sizes)), sizes, strict=True) for i in images[label].take(size)]
        for _ in range(count)
    ]


class _Turns:
    """Members in a random order, and then in another one."""

    def __init__(self, members: list[int], generator: torch.Generator) -> None:
        self._members, self._generator, self._left = members, generator, list[int]()

    def take(self, count: int) -> list[int]:
        """Returns the next ones, all different; all members, if there are no more."""
        taken, self._left = self._left[:count], self._left[count:]
        missing = min(count, len(self._members)) - len(taken)
        if missing > 0:
            order = torch.randperm(len(self._members), generator=self._generator).tolist()
            fresh = [self._members[place] for place in order]
            more = [member for member in fresh if member not in taken][:missing]
            self._left = [member for member in fresh if member not in more]
            taken += more
        return taken
