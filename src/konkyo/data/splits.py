"""Train, validation and test: three parts of a data set that have no picture in common, and what a trainer reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from konkyo.data.groups import Groups, groups_of
from konkyo.data.samples import Data, Samples, chosen, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.errors import KonkyoError, unknown


@dataclass(frozen=True)
class Grouping:
    """What the groups of a data set (`konkyo.data.groups`) did to its parts; counts are of images where not told."""

    copies: str = "ignored"
    """"identical", "alike:BITS" or "ignored"."""
    table: str = ""
    """The file of groups, with a digest of what it says of these images."""
    groups: int = 0
    """Groups of several images."""
    images: int = 0
    """In these groups."""
    largest: int = 1
    """In the largest group."""
    labels: int = 0
    """Groups whose images have several labels."""
    divided: int = 0
    """In groups that would lie in two parts, or three, were images divided one by one."""
    moved: int = 0
    """In another part than they would be in then."""
    removed: tuple[str, ...] = ()
    """Names of images of the data set's own training or validation part that are left out: their groups have images in
    a part that is given, its test part first."""
    unread: int = 0
    """That could not be opened, and were compared with none."""

    @property
    def remark(self) -> str:
        """Returns what was found in a sentence or two; "" where there is no group of several images."""
        unread = f" {self.unread} images could not be opened, and were compared with none." if self.unread else ""
        if not self.groups:
            return unread.strip()
        kind = {"ignored": "", "identical": "identical pictures"}.get(self.copies, f"pictures alike ({self.copies})")
        names = " and ".join(filter(None, (kind, self.table and f"groups of {self.table}")))
        text = (
            f"{self.images} images lie in {self.groups} groups of several ({names}), the largest of {self.largest}. "
            f"Divided one by one, {self.divided} of them would be in groups that lie in two parts; {self.moved} images "
            "are in another part for it."
        )
        text += f" {self.labels} groups have images of several labels." if self.labels else ""
        if self.removed:
            text += (
                f" {len(self.removed)} images were taken out of the training and validation parts, for their groups "
                f"have images in a part of the data set's own, such as {self.removed[0]}."
            )
        return text + unread


@dataclass(frozen=True)
class Splits:
    """These three parts have pictures of every class; choices are made on `validation`, `test` is used once."""

    train: Samples
    validation: Samples
    test: Samples
    classes: tuple[str, ...]
    """Of all parts, sorted; the order of the network's outputs."""
    grouping: Grouping = Grouping()
    """What lay in groups, none of which is in two parts."""


def splits(
    source: str | Path | Data | Scenes,
    *,
    seed: int = 0,
    validation: float = 0.15,
    test: float = 0.25,
    limit: int | None = None,
    copies: str = "identical",
    groups: str | Path | Mapping[str, str] = "",
) -> Splits:
    """Makes the three parts of what `samples(source, limit=limit, seed=seed)` gives; equal arguments give equal parts.

    A data set's own parts stay what they are. A test part that it does not have is drawn by `seed`, that share of every
    class; so is a validation part. One that is less than a tenth of the share `validation` is filled up to it from
    train. Shares are of what is not in the data set's own test part.

    No group of samples lies in two parts: `copies` ("identical", "alike", "alike:BITS", "ignored") and `groups` (name
    -> group, or a csv file) are those of `konkyo.data.groups.groups_of`. Shares of classes are kept as nearly as whole
    groups allow. Images of a data set's own training part whose group has images in its own validation or test part are
    left out; so are those of its validation part for its test part. `Splits.grouping` tells what was found.

    KonkyoError: a sample without a label, a class that is not in all parts, shares out of range, a table of groups that
    does not fit.
    """
    if not (min(validation, test) > 0 and validation + test < 1):
        raise KonkyoError(f"validation and test: expected shares above 0, below 1 in all; got {validation} and {test}")
    data = samples(source, limit=limit, seed=seed)
    labels = labels_of(data)
    data = replace(data, labels=labels)
    given = data.parts or ("train",) * len(data)
    grouping = groups_of(data, copies, groups, whole=limit is None)
    draw = partial(_divided, labels, given, validation=validation, test=test, seed=seed)
    parts, alone = draw(grouping.numbers), draw(range(len(data)))
    order = {
        name: [index for index, part in enumerate(parts) if part == name] for name in ("train", *DRAWN_PARTS[::-1])
    }
    _require_all(order, labels, grouping.numbers)
    made = [chosen(data, indices) for indices in order.values()]
    return Splits(made[0], made[1], made[2], tuple(sorted(set(labels))), _grouping(data, grouping, parts, alone))


DRAWN_PARTS = ("test", "validation")
"""Parts that are drawn, in this order; what is left is the training part."""
_OUT = ""
"""The part of what is left out."""


def _divided(
    labels: Sequence[str],
    given: Sequence[str],
    groups: Sequence[int],
    *,
    validation: float,
    test: float,
    seed: int,
) -> list[str]:
    """Returns the part of every sample; `groups`: a number of each one's group.

    The samples of a class come in an order drawn by the seed, and their groups in that of their first samples. Each is
    taken whole into the part that is drawn as long as it fits into what is missing there of all of its classes.
    """
    parts = _without_copies(given, groups)
    pool = [index for index, part in enumerate(parts) if part in ("train", "validation")]
    counts = Counter(labels[index] for index in pool)
    wanted: dict[str, dict[str, int]] = {}
    if "test" not in given:
        wanted["test"] = {label: max(1, round(test * count)) for label, count in counts.items()}
    # the 16 pictures of chest X-rays are too few to choose by
    if parts.count("validation") < 0.1 * validation * len(pool):
        wanted["validation"] = {label: max(1, round(validation * count)) for label, count in counts.items()}
    division = _Division(parts, labels, groups, wanted)
    generator = torch.Generator().manual_seed(seed)
    for label in sorted(set(labels)):
        free = [index for index in pool if labels[index] == label and given[index] == "train"]
        order = [free[i] for i in torch.randperm(len(free), generator=generator).tolist()]
        for part in wanted:
            division.fill(part, label, order)
    return parts


def _without_copies(given: Sequence[str], groups: Sequence[int]) -> list[str]:
    """Returns the given parts, without training and validation images of groups that reach into a given part."""
    held: dict[str, set[int]] = {
        part: {group for name, group in zip(given, groups, strict=True) if name == part} for part in DRAWN_PARTS
    }
    barred = {"train": held["test"] | held["validation"], "validation": held["test"]}
    return [_OUT if group in barred.get(part, ()) else part for part, group in zip(given, groups, strict=True)]


class _Division:
    """This moves whole groups of the training part into parts that are drawn."""

    def __init__(
        self, parts: list[str], labels: Sequence[str], groups: Sequence[int], wanted: Mapping[str, Mapping[str, int]]
    ) -> None:
        """`parts` is changed; `wanted`: how many samples of every class a part is to have."""
        self.parts, self.groups, self.wanted = parts, groups, wanted
        self.members: dict[int, list[int]] = {}
        for index, part in enumerate(parts):
            if part == "train":
                self.members.setdefault(groups[index], []).append(index)
        self.contents = {g: Counter(labels[i] for i in members) for g, members in self.members.items()}
        self.counts = {p: Counter(labels[i] for i, of in enumerate(parts) if of == p) for p in (*DRAWN_PARTS, "train")}
        self.free = Counter(label for content in self.contents.values() for label in content)
        """Groups of a class that are in the training part still."""

    def fill(self, part: str, label: str, order: Sequence[int]) -> None:
        """Takes groups of a class until the part has what it is to have of it; `order`: of the samples, as drawn."""
        groups = [g for g in dict.fromkeys(self.groups[i] for i in order) if self.parts[self.members[g][0]] == "train"]
        for group in groups:
            if self._missing(part, label) <= 0:
                return
            if all(self._missing(part, name) >= count for name, count in self.contents[group].items()):
                self._take(part, group)
        larger = sorted(
            (g for g in groups if self.parts[self.members[g][0]] == "train"), key=lambda g: len(self.members[g])
        )
        for group in larger:  # what is taken in part would be too little, in whole too much: the nearer one
            without = sum(abs(self._missing(part, name)) for name in self.contents[group])
            whole = sum(abs(self._missing(part, name) - count) for name, count in self.contents[group].items())
            if self._missing(part, label) > 0 and (whole < without or not self.counts[part][label]):
                self._take(part, group)

    def _missing(self, part: str, label: str) -> int:
        return self.wanted[part][label] - self.counts[part][label]

    def _take(self, part: str, group: int) -> None:
        """Moves a group, unless another part would be left without any of one of its classes."""
        for label in self.contents[group]:
            others = sum(of != part and not self.counts[of][label] for of in self.wanted)
            if self.free[label] - 1 < 1 + others:
                return
        for index in self.members[group]:
            self.parts[index] = part
        self.counts[part].update(self.contents[group])
        self.free.subtract(dict.fromkeys(self.contents[group], 1))


def _grouping(data: Samples, groups: Groups, parts: Sequence[str], alone: Sequence[str]) -> Grouping:
    """Returns what groups did; `alone`: the parts as they would be if every image were a group."""
    several = [members for members in groups.members() if len(members) > 1]
    divided = [m for m in several if len({alone[index] for index in m}) > 1]
    changed = [i for i, (part, before) in enumerate(zip(parts, alone, strict=True)) if part not in (before, _OUT)]
    return Grouping(
        copies=groups.copies,
        table=groups.table,
        groups=len(several),
        images=sum(map(len, several)),
        largest=max(map(len, several), default=1),
        labels=sum(len({data.labels[index] for index in members}) > 1 for members in several),
        divided=sum(map(len, divided)),
        moved=len(changed),
        removed=tuple(data.names[index] for index, part in enumerate(parts) if part == _OUT),
        unread=groups.unread,
    )


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


def _require_all(order: Mapping[str, Sequence[int]], labels: Sequence[str], groups: Sequence[int]) -> None:
    """Raises KonkyoError unless every part has every class, and there are two classes."""
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise KonkyoError(f"expected pictures of two classes or more; got {', '.join(classes) or 'no picture'}")
    for part, indices in order.items():
        for label in classes:
            if label not in {labels[index] for index in indices}:
                members = [groups[index] for index, one in enumerate(labels) if one == label]
                kinds = len(set(members))
                whole = "" if kinds == len(members) else f", which lie in {kinds} groups that stay whole"
                raise KonkyoError(
                    f"every class is to be in train, validation and test; {part} has none of the {len(members)} of "
                    f"{label!r}{whole}: add pictures of it, leave the class out, or raise the limit"
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
