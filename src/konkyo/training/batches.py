"""What a training reads: the batches of every epoch, each image drawn from a seed of its own, shared by processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Place: TypeAlias = tuple[int, int, int]
"""An epoch, an image, and how often the image has come in the epoch before."""


class Labelled(Protocol):
    """Prepared images with class indices. Balanced sampling also asks for `labels`, all of them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


class Batch(NamedTuple):
    """The images that a process takes at once."""

    images: Tensor
    labels: Tensor
    share: float
    """Of the images of its step: 1 without accumulation."""
    last: bool
    """Of its step."""


class Batches:
    """The batches of this process: all processes together take the same ones, whatever their number.

    Processes that read pictures (`recipe.workers`) live as long as this object, so that what the data keeps in memory
    is there in the next epoch. What is read does not depend on them: an image is drawn from the seed (seed, epoch,
    image), and from one of its own where it comes again in an epoch.

    KonkyoError: balanced sampling of data without labels.
    """

    def __init__(self, data: Labelled, recipe: Recipe, fabric: Fabric) -> None:
        self._recipe, self._fabric, self._count = recipe, fabric, len(data)
        self._labels: Sequence[int] | None = None
        if recipe.sampling == "balanced":
            self._labels = getattr(data, "labels", None)
            if self._labels is None or len(self._labels) != len(data):
                raise KonkyoError(
                    f"balanced sampling needs data with labels, a class index each; {type(data).__name__}"
                )
        self._shares = list[list[Place]]()
        self._loader: torch.utils.data.DataLoader[tuple[Tensor, int]] | None = torch.utils.data.DataLoader(
            _Drawn(data, recipe.seed),  # type: ignore[arg-type] # indexed by places
            batch_sampler=_Current(self._shares),
            num_workers=recipe.workers,
            persistent_workers=recipe.workers > 0,
            generator=torch.Generator(),  # else it would draw from the global random state, which dropout needs
        )

    @property
    def steps(self) -> int:
        """How often an epoch changes the weights."""
        return -(-len(self.shares(1)) // self._recipe.accumulate)

    def shares(self, epoch: int) -> list[list[Place]]:
        """What this process reads of each batch of an epoch, equally much in all processes."""
        world, rank = self._fabric.world_size, self._fabric.global_rank
        generator = torch.Generator().manual_seed(mixed(self._recipe.seed, epoch, 0))
        if self._labels is None:
            order, batch = torch.randperm(self._count, generator=generator).tolist(), self._recipe.batch
            batches = [order[start : start + batch] for start in range(0, len(order), batch)]
        else:
            batches = balanced(self._labels, self._recipe.batch, self._recipe.per_class, generator)
        turns, places = Counter[int](), list[list[Place]]()
        for indices in batches:
            places.append([(epoch, index, turns[index]) for index in indices])
            turns.update(indices)
        shares = [batch[rank : len(batch) - len(batch) % world : world] for batch in places]
        return [share for share in shares if share]

    def of(self, epoch: int) -> Iterator[Batch]:
        """Reads the batches of an epoch, on this process's device."""
        assert self._loader is not None
        size, shares = self._recipe.accumulate, self.shares(epoch)
        self._shares[:] = shares
        for number, (images, labels) in enumerate(self._loader):
            begin = number - number % size
            step = shares[begin : begin + size]
            share = len(shares[number]) / sum(map(len, step))
            last = number + 1 == begin + len(step)
            yield Batch(self._fabric.to_device(images), self._fabric.to_device(labels), share, last)

    def close(self) -> None:
        """Ends the processes that read."""
        self._loader = None


def balanced(labels: Sequence[int], batch: int, per_class: int, generator: torch.Generator) -> list[list[int]]:
    """Returns as many batches of indices as shuffled ones would be, each with equally many images of several classes.

    Of P = batch / per_class classes, or of all where there are fewer, and batch / P images of each; of a class that has
    fewer, all of them. Classes come in turn, as do the images of a class: none a second time before all have come once,
    and none twice in a batch.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    images = {label: _Turns(members[label], generator) for label in sorted(members)}
    classes = _Turns(list(images), generator)
    count = min(len(images), max(1, batch // per_class))
    sizes = [batch // count + (place < batch % count) for place in range(count)]
    return [
        [index for label, size in zip(classes.take(count), sizes, strict=True) for index in images[label].take(size)]
        for _ in range(-(-len(labels) // batch))
    ]


def mixed(*numbers: int) -> int:
    """Returns a seed that several numbers make."""
    found = 0
    for number in numbers:
        found = (found * 1_000_003 + number) % (1 << 63)
    return found


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


class _Current(torch.utils.data.Sampler[list[Any]]):
    """The shares of the epoch that is read next; one object, so that the processes that read stay."""

    def __init__(self, shares: list[list[Place]]) -> None:
        self._shares = shares

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._shares)

    def __len__(self) -> int:
        return len(self._shares)


class _Drawn(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The data, each image drawn from a seed of its own: in whatever process it is read, and whatever else draws."""

    def __init__(self, data: Labelled, seed: int) -> None:
        self._data, self._seed = data, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, index, turn = place
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(self._seed, epoch, index, *([turn] if turn else [])))
            return self._data[index]
