"""What a training reads: the batches of every epoch, each image drawn from a seed of its own, shared by processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.training.recipe import Recipe
from konkyo.training.sampling import balanced
from konkyo.utils.seeds import mixed

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
            _Drawn(data, recipe.seed),
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
            batches = self._balanced(self._labels, generator)
        turns, places = Counter[int](), list[list[Place]]()
        for indices in batches:
            places.append([(epoch, index, turns[index]) for index in indices])
            turns.update(indices)
        shares = [batch[rank : len(batch) - len(batch) % world : world] for batch in places]
        return [share for share in shares if share]

    def _balanced(self, labels: Sequence[int], generator: torch.Generator) -> list[list[int]]:
        """Returns as many batches as shuffled ones would be, of batch / per_class classes, or of all of fewer."""
        batch = self._recipe.batch
        classes = min(len(set(labels)), max(1, batch // self._recipe.per_class))
        sizes = [batch // classes + (place < batch % classes) for place in range(classes)]
        return balanced(labels, sizes, -(-len(labels) // batch), generator)

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
            # torch.manual_seed would write down the whole stack, once for each kind of device.
            torch.default_generator.manual_seed(mixed(self._seed, epoch, index, *([turn] if turn else [])))
            return self._data[index]
