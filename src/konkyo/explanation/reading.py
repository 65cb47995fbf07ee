"""Reading: samples become prepared images, in processes of their own, some batches ahead of the network."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from konkyo.data.frame import Frame
from konkyo.data.pieces import Piece
from konkyo.data.samples import Sample, Samples
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.explanation.inputs import Prepared, known_classes
from konkyo.models import Model, Preprocess
from konkyo.models.base import preprocess_of
from konkyo.utils.words import note_of_image

T = TypeVar("T")
WHOLE = Frame()
AHEAD = 2
"""So many batches every reading process has ready."""


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry is what was read of one sample, but for its pixels."""

    name: str
    number: int
    """Which image of the data it is."""
    error: str = ""
    """Why it cannot be used; then the rest says nothing."""
    label: str | None = None
    question: str | None = None
    notes: tuple[str, ...] = ()
    """What was done to the picture when it was read."""
    size: tuple[int, int] = (0, 0)
    """(height, width) of the picture."""
    sha256: str = ""
    """Of the picture's pixels, upright and RGB."""
    frame: Frame = WHOLE
    sample: Sample | None = None
    """The sample itself, where it is extras."""
    view: Image.Image | None = None
    """What the model sees of the picture, where it is extras."""


Read: TypeAlias = "tuple[Entry, Tensor | None]"
"""What was read of a sample, and its pixels as the network takes them (C, H, W); None: it cannot be used."""


@dataclass(frozen=True, eq=False)
class Group:
    """A group is some images of one size that were read together or, without a tensor, some that cannot be used."""

    piece: int
    entries: tuple[Entry, ...]
    tensor: Tensor | None
    """(n, C, H, W)"""
    last: bool
    """Whether it is the last one of its piece."""
    failure: str = ""
    """Why the piece cannot be opened at all; then it is its only group."""

    def split(self) -> list[Group]:
        """Returns the images of a group with a tensor one by one."""
        assert self.tensor is not None
        return [Group(self.piece, (entry,), self.tensor[k : k + 1], last=False) for k, entry in enumerate(self.entries)]


@dataclass(frozen=True)
class Extras:
    """The extras say what is kept of a sample beside what the network gets."""

    samples: bool = False
    views: bool = False
    hashes: bool = False


PIXELS_ALONE = Extras()


class _Stream(IterableDataset[Group]):
    """It reads pieces batch by batch; of several processes each reads pieces of its own."""

    def __init__(self, preprocess: Preprocess, pieces: Sequence[Piece], batch: int, extras: Extras) -> None:
        self.preprocess, self.pieces, self.batch, self.extras = preprocess, list(pieces), batch, extras

    def __iter__(self) -> Iterator[Group]:
        worker = get_worker_info()
        pieces = self.pieces if worker is None else self.pieces[worker.id :: worker.num_workers]
        for piece in pieces:
            yield from self._of_piece(piece)

    def _of_piece(self, piece: Piece) -> Iterator[Group]:
        try:
            data = piece.open()
        except MemoryError:
            raise
        except Exception as error:
            yield Group(piece.number, (), None, last=True, failure=_reason(error))
            return
        numbers, groups = iter(range(len(data))), list[Group]()
        while batch := list(islice(numbers, self.batch)):
            read = [self._read(piece, data, number) for number in batch]
            for group in grouped(piece.number, read):
                yield from groups
                groups = [group]
        yield replace(groups[0] if groups else Group(piece.number, (), None, last=True), last=True)

    def _read(self, piece: Piece, data: Samples, number: int) -> Read:
        piece.watch(number)
        try:
            return read_sample(self.preprocess, data, number, self.extras, piece.first)
        finally:
            piece.watch(None)


def digest_of_pixels(picture: Image.Image) -> str:
    """Returns the SHA-256 of a picture's pixels, upright and RGB as samples are."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def read_sample(preprocess: Preprocess, data: Samples, number: int, extras: Extras, first: int = 0) -> Read:
    """Returns a sample as the network takes it; an error of one that cannot be read is part of the entry."""
    name = data.names[number]
    try:
        sample = data[number]
        image = sample.image
        pixels = preprocess(image)
    except MemoryError:
        raise
    except Exception as error:  # data sets of users and stores fail in every possible way
        return Entry(name, first + number, error=_reason(error)), None
    entry = Entry(
        name,
        first + number,
        label=sample.label,
        question=sample.question,
        notes=tuple(image.info.get("konkyo", ())),
        size=(image.height, image.width),
        sha256=digest_of_pixels(image) if extras.hashes else "",
        frame=preprocess.frame(image),
        sample=sample if extras.samples else None,
        view=preprocess.view(image) if extras.views else None,
    )
    return entry, pixels


def _reason(error: Exception) -> str:
    """Returns what an error says, in a line; of one that is not konkyo's with its kind."""
    sentence = " ".join(str(error).split())
    return sentence if isinstance(error, KonkyoError) else f"{type(error).__name__}: {sentence}".removesuffix(": ")


def grouped(piece: int, read: Sequence[Read]) -> Iterator[Group]:
    """Yields the images of one size after the other, in the order in which sizes come up."""
    groups: dict[Any, list[Read]] = {}
    for entry, pixels in read:
        groups.setdefault(None if pixels is None else tuple(pixels.shape), []).append((entry, pixels))
    for shape, members in groups.items():
        tensor = None if shape is None else torch.stack([p for _, p in members if p is not None])
        yield Group(piece, tuple(entry for entry, _ in members), tensor, last=False)


def _unchanged(group: Any) -> Any:
    return group


def read_groups(
    model: Model, pieces: Sequence[Piece], *, batch: int, workers: int = 0, extras: Extras = PIXELS_ALONE
) -> Iterator[Group]:
    """Yields the images of pieces, at most `batch` at a time, of one size each, prepared for the model.

    `workers`: so many processes read, each pieces of its own; 0: this one. A piece's groups come in order, and are the
    same for any number of workers. KonkyoError: the model does not say how to prepare a picture.
    """
    stream = _Stream(preprocess_of(model), pieces, batch, extras)
    workers = min(workers, len(pieces))
    if workers == 0:
        yield from stream
        return
    yield from DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_unchanged,
        worker_init_fn=_begin,
    )


def _begin(_worker: int) -> None:
    """A reading process uses one thread, for others read beside it, and leaves Ctrl-C to the one that explains."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def explained_groups(
    group: Group, explain: Callable[[Group], T], failing: type[KonkyoError]
) -> Iterator[tuple[Group, T | KonkyoError]]:
    """Yields a group with a tensor and what `explain` gives for it; where that fails, each of its images alone.

    The error takes the place of what an image alone would give. `failing`: errors that are an image's; others, and
    NotApplicable, come from here.
    """
    try:
        outcome: T | KonkyoError = explain(group)
    except NotApplicable:
        raise
    except failing as error:
        if len(group.entries) > 1:
            for single in group.split():
                yield from explained_groups(single, explain, failing)
            return
        outcome = error
    yield group, outcome


def prepared_of(model: Model, group: Group) -> Prepared:
    """Returns a group with a tensor as `explanations` takes it."""
    assert group.tensor is not None
    entries = group.entries
    labels, of_labels = known_classes(model, [entry.label for entry in entries])
    views = tuple(entry.view for entry in entries if entry.view is not None)
    notes = [note_of_image(k, note) for k, entry in enumerate(entries) for note in entry.notes]
    questions = tuple(entry.question for entry in entries)
    return Prepared(
        model.prepared(group.tensor),
        views if len(views) == len(entries) else group.tensor[:0],
        tuple(entry.frame for entry in entries),
        (*notes, *of_labels),
        tuple(entry.name for entry in entries),
        labels,
        questions if any(questions) else (),
    )
