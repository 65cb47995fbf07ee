"""Train, validation and test: three parts of a data set that have no picture in common, and what a trainer reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from konkyo.data.samples import Data, Samples, chosen, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.errors import KonkyoError, unknown


@dataclass(frozen=True)
class Splits:
    """These three parts have pictures of every class; choices are made on `validation`, `test` is used once."""

    train: Samples
    validation: Samples
    test: Samples
    classes: tuple[str, ...]
    """Of all parts, sorted; the order of the network's outputs."""


def splits(
    source: str | Path | Data | Scenes,
    *,
    seed: int = 0,
    validation: float = 0.15,
    test: float = 0.25,
    limit: int | None = None,
) -> Splits:
    """Makes the three parts of what `samples(source, limit=limit, seed=seed)` gives; equal arguments give equal parts.

    A data set's own parts stay what they are. A test part that it does not have is drawn by `seed`, that share of every
    class; so is a validation part. One that is less than a tenth of the share `validation` is filled up to it from
    train. Shares are of what is not in the data set's own test part.

    KonkyoError: a sample without a label, a class that is not in all parts, shares out of range.
    """
    if not (min(validation, test) > 0 and validation + test < 1):
        raise KonkyoError(f"validation and test: expected shares above 0, below 1 in all; got {validation} and {test}")
    data = samples(source, limit=limit, seed=seed)
    labels = labels_of(data)
    data = replace(data, labels=labels)
    parts = data.parts or ("train",) * len(data)
    pool = [index for index, part in enumerate(parts) if part != "test"]
    held_out = [index for index, part in enumerate(parts) if part == "test"]
    valid = [index for index in pool if parts[index] == "validation"]
    enough = len(valid) >= 0.1 * validation * len(pool)  # the 16 pictures of chest X-rays are too few to choose by
    generator = torch.Generator().manual_seed(seed)
    for label in sorted(set(labels)):
        members = [index for index in pool if labels[index] == label]
        free = [index for index in members if parts[index] == "train"]
        free = [free[i] for i in torch.randperm(len(free), generator=generator).tolist()]
        if "test" not in parts:
            count = max(1, round(test * len(members)))
            held_out, free = held_out + free[:count], free[count:]
        if not enough:
            present = sum(parts[index] == "validation" for index in members)
            count = max(1, round(validation * len(members))) - present
            valid += free[: max(0, min(count, len(free) - 1))]  # one at least is left to train on
    taken = {*valid, *held_out}
    train = [index for index in pool if index not in taken]
    _require_all({"train": train, "validation": valid, "test": held_out}, labels)
    made = [chosen(data, sorted(indices)) for indices in (train, valid, held_out)]
    return Splits(made[0], made[1], made[2], tuple(sorted(set(labels))))


def labels_of(data: Samples) -> tuple[str, ...]:
    """Returns the labels of all samples; pictures are opened where nothing else tells.

    KonkyoError: one without a label.
    """
    if data.labels or not len(data):
        return data.labels
    labels = []
    for sample in data:
        if sample.label is None:
            hint = (
                "; scenes have one with objects=1"
                if isinstance(sample.annotations, tuple) and len(sample.annotations) > 1
                else ""
            )
            raise KonkyoError(f"expected samples with a label, as of DIR/CLASS/NAME.jpg; {sample.name} has none{hint}")
        labels.append(sample.label)
    return tuple(labels)


def _require_all(order: dict[str, list[int]], labels: Sequence[str]) -> None:
    """Raises KonkyoError unless every part has every class, and there are two classes."""
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise KonkyoError(f"expected pictures of two classes or more; got {', '.join(classes) or 'no picture'}")
    for part, indices in order.items():
        for label in classes:
            if label not in {labels[index] for index in indices}:
                count = sum(one == label for one in labels)
                raise KonkyoError(
                    f"every class is to be in train, validation and test; {part} has none of the {count} of {label!r}: "
                    "add pictures of it, leave the class out, or raise the limit"
                )


class Examples(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """This gives (input, class) of every sample: the transformed picture, and the index of its label in `classes`.

    classes: sorted(samples.classes) where none are given. Opened pictures are kept, 3 bytes per pixel, up to `cache`
    bytes, so that the next epoch does not open them again. A `DataLoader` of several workers keeps so many per worker.
    KonkyoError: a sample whose label is not among the classes.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Callable[[Image.Image], Tensor],
        classes: Sequence[str] = (),
        *,
        cache: int = 0,
    ) -> None:
        """Looks up the labels of all samples; pictures are opened later. KonkyoError: a label that is no class."""
        self.samples, self.transform, self.cache = samples, transform, cache
        self.classes = tuple(classes) or tuple(sorted(samples.classes))
        self.labels = [self._index(label) for label in labels_of(samples)]
        self._opened, self._bytes = dict[int, Image.Image](), 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Returns the transformed picture and the index of its class, from the cache if it is there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        image = self._opened.get(index)
        if image is None:
            image = self.samples[index].image
            size = 3 * image.width * image.height
            if self._bytes + size <= self.cache:
                self._opened[index], self._bytes = image, self._bytes + size
        return self.transform(image), self.labels[index]

    def _index(self, label: str) -> int:
        if label not in self.classes:
            raise unknown("class", label, self.classes)
        return self.classes.index(label)
