"""Images with what is true of them: their class, their things, and the part of a thing that alone decides its class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import konkyo.data.sets
from konkyo.data.images import open_image, upright
from konkyo.data.sets.scenes import CLASSES, Scenes
from konkyo.errors import ImageError, KonkyoError, unknown

UNSEEN = 7_000_000
"""Added to the seed of drawn scenes: the models that ship were trained on scenes of seeds near 0."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Annotation:
    """An annotation is an object in a picture, in the picture's pixels."""

    label: str | None = None
    """The name of its class."""
    box: Box | None = None
    """xyxy; pixel i lies between i and i + 1."""
    mask: Tensor | None = None
    """(H, W) bool; True nowhere if it is known that there is nothing."""
    evidence: Tensor | None = None
    """(H, W) bool, the part that alone decides the class."""
    crowd: bool = False
    """A group that nobody told apart."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample is a picture and what is true of it. KonkyoError: an annotation that does not fit the picture."""

    name: str
    """Unique in its data set, the same in every run."""
    image: Image.Image
    """Upright and RGB, whatever was given (`konkyo.data.images.upright`)."""
    label: str | None = None
    """The picture's class, where pictures have one."""
    annotations: tuple[Annotation, ...] = ()
    question: str | None = None
    """What is asked about the picture, where the data asks; `label` is then the answer."""

    def __post_init__(self) -> None:
        """Checks the annotations. KonkyoError: a mask or a box that does not fit the picture."""
        object.__setattr__(self, "image", upright(self.image))
        size = (self.image.height, self.image.width)
        for annotation in self.annotations:
            for mask in (annotation.mask, annotation.evidence):
                if mask is not None and (mask.dtype != torch.bool or mask.shape != size):
                    came = f"a mask of shape {tuple(mask.shape)} and type {mask.dtype}"
                    raise KonkyoError(
                        f"sample {self.name}, {annotation.label}: expected a bool mask of {size}; got {came}"
                    )
            x0, y0, x1, y1 = annotation.box or (0, 0, 0, 0)
            if not (x0 <= x1 and y0 <= y1):
                raise KonkyoError(
                    f"sample {self.name}, {annotation.label}: expected a box x0, y0, x1, y1; got {annotation.box}"
                )


@dataclass(frozen=True, eq=False)
class Samples(torch.utils.data.Dataset[Sample]):
    """This data set opens its pictures when they are asked for. KonkyoError: two samples of one name.

    >>> len(Samples(("a", "b"), lambda index: Sample("ab"[index], Image.new("RGB", (8, 8)))))
    2
    """

    names: tuple[str, ...]
    """Of the samples, in order."""
    read: Callable[[int], Sample] = field(repr=False)
    classes: tuple[str, ...] = ()
    """What the labels can be, where the data set says so."""
    note: str = ""
    """How its truth was read, for reports."""
    source: str = ""
    labels: tuple[str, ...] = ()
    """Of the samples, in order, where they are known before a picture is opened; else empty."""
    parts: tuple[str, ...] = ()
    """Which of PARTS the samples belong to, in order, where the data set says so; else empty."""
    files: tuple[Path, ...] = field(default=(), repr=False)
    """Of the samples' pictures, in order, where each has a file of its own; else empty."""
    window: str = ""
    """Through which grey values of more than 8 bits are seen (`konkyo.data.images.open_image`); else by their range."""

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise KonkyoError(f"every sample is to have a name of its own; {twice!r} is the name of several")
        for kind, values in (("label", self.labels), ("part", self.parts), ("file", self.files)):
            if values and len(values) != len(self.names):
                raise KonkyoError(f"expected a {kind} of every sample or none, got {len(values)} of {len(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.read(index % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class Data(Protocol):
    """This is a sequence or a torch data set of samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


def samples(
    source: str | Path | Data | Scenes, *, limit: int | None = None, seed: int = 0, column: str | None = None
) -> Samples:
    """Returns the data set that `source` names: all of it in order, or `limit` samples drawn by `seed`.

    - "scenes:COUNT" (1000): drawn scenes that no shipped model was trained on; `seed` decides them, too. Options:
      objects=1 (in every scene, which then has a label) or objects=1-5 (the default), size=128.
    - "questions:COUNT" (1000): such scenes with a question about each. Options: kinds=exist+count, size=128.
    - "lesions:COUNT" (600): drawn scans with one lesion; `seed` decides them, too. Options: places=fixed, size=48.
    - "coco:DIR", "voc:DIR", "folder:DIR", "chest:DIR", "brain:DIR", "sun397:DIR": see the functions of these names in
      `konkyo.data`. Their options follow after commas, as in "folder:photos,masks=outlines".
    - The option window=LOW..HIGH (or file) of folder, chest, brain and coco scales grey values of more than 8 bits
      equally in all pictures (`konkyo.data.images.open_image`).
    - The option limit=COUNT of all of these takes so many samples, drawn by `seed`, as the argument `limit` does.
    - The option cue=KIND:CLASS of all that have labels plants a mark in one class (`konkyo.data.marked`).
    - "tar:PATTERN", "parquet:PATTERN", "list:FILE" and addresses as "s3://bucket/photos/" (docs/scale.md): their
      names are kept in memory, and archives are opened once for them.
    - `Scenes`, or any sequence or torch data set of `Sample`, which is read through once for the names.
    - A `datasets.Dataset` of Hugging Face: the pictures are those of `column`, or of the first column with some, the
      classes those of its `ClassLabel`. Of one that is streamed the first `limit` rows are taken, and held.

    The samples of a limit are the first of those of a larger limit. KonkyoError: a source that cannot be read.

    >>> print(*(sample.label for sample in samples("scenes:3,objects=1")))
    windmill windmill taxi
    """
    if (limit is not None and limit < 1) or seed < 0:
        raise KonkyoError(f"expected a limit of at least 1 and a seed of at least 0, got {limit} and {seed}")
    from konkyo.data import huggingface  # it is made of samples

    if column is not None and not huggingface.is_table(source):
        raise KonkyoError(f"column= is said of a datasets.Dataset; got {type(source).__name__}")
    if huggingface.is_table(source):
        data = huggingface.samples_of(source, column, limit)
    elif isinstance(source, (str, Path)):
        data = _of_pieces(str(source)) or replace(_open_source(str(source), seed), source=str(source))
    elif isinstance(source, (Samples, Scenes)):
        data = _of_scenes(source) if isinstance(source, Scenes) else source
    else:
        try:
            count = len(source)
        except TypeError as error:
            raise KonkyoError(f'data is a name as in "folder:DIR", or a sequence of samples; got {source!r}') from error
        data = Samples(tuple(_sample(source, index).name for index in range(count)), partial(_sample, source))
    if not len(data):
        raise KonkyoError(f"{data.source or 'the data'} has no samples: at least one was expected")
    return data if limit is None else _limited(data, limit, seed)


def _of_pieces(source: str) -> Samples | None:
    """Returns the samples of data that comes in pieces; None: it is of another kind."""
    from konkyo.data.archives import joined  # they are made of samples
    from konkyo.data.pieces import registered_pieces

    pieces = registered_pieces(source)
    return None if pieces is None else joined(pieces)


def chosen(data: Samples, order: Sequence[int]) -> Samples:
    """Returns the samples of these indices, in this order."""
    lists: dict[str, Any] = {
        name: tuple(values[i] for i in order if values)
        for name in ("names", "labels", "parts", "files")
        for values in (getattr(data, name),)
    }
    return replace(data, **lists, read=partial(_read_at, data.read, order))


PARTS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What the folders of a data set's parts are called, in small letters, and the parts."""


def selected(data: Samples, split: str) -> Samples:
    """Returns the samples of the part that `split` names; all of them where it is empty."""
    if not split:
        return data
    part = PARTS.get(split.lower(), split)
    if part not in data.parts:
        raise unknown("split", split, sorted(set(data.parts)) or ["none, for the data set has no parts"])
    return chosen(data, [index for index, name in enumerate(data.parts) if name == part])


def _read_at(read: Callable[[int], Sample], order: Sequence[int], index: int) -> Sample:
    return read(order[index])


def _sample(source: Data, index: int) -> Sample:
    sample: object = source[index]
    if not isinstance(sample, Sample):
        raise KonkyoError(f"expected data of konkyo.data.samples.Sample, got {type(sample).__name__} at {index}")
    return sample


# --- what is drawn ----------------------------------------------------------------------------------------------------

_Function = TypeVar("_Function", bound=Callable[..., "Samples"])

DRAWN: dict[str, Callable[..., Samples]] = {}
"""Functions of a number of samples, as text, and a seed, with text for options."""


def synthetic(function: _Function) -> _Function:
    """Registers a function (count, seed, *, options) -> Samples under its name."""
    DRAWN[function.__name__] = function
    return function


def _of_scenes(scenes: Scenes) -> Samples:
    names = tuple(f"scene-{scenes.seed}-{index}" for index in range(len(scenes)))
    labels = tuple(_first_class(scenes, index) for index in range(len(scenes))) if scenes.objects == (1, 1) else ()
    return Samples(names, partial(_scene, scenes), CLASSES, "boxes and masks of what is visible", "scenes", labels)


def _first_class(scenes: Scenes, index: int) -> str:
    """Returns the class of the first object by a scene's first draws, in a hundredth of the time of drawing it."""
    rng = np.random.default_rng([scenes.seed, index])
    count = int(rng.integers(scenes.objects[0], scenes.objects[1] + 1))
    return CLASSES[scenes.labels[int(rng.integers(len(scenes.labels), size=count)[0])]]


def _scene(scenes: Scenes, index: int) -> Sample:
    scene = scenes[index]
    labels = [CLASSES[label] for label in scene.labels.tolist()]
    truth = zip(labels, map(tuple, scene.boxes.tolist()), scene.masks, scene.evidence, strict=True)
    annotations = tuple(Annotation(*values) for values in truth)
    return Sample(f"scene-{scenes.seed}-{index}", scene.image, labels[0] if len(labels) == 1 else None, annotations)


@synthetic
def scenes(count: str, seed: int, *, objects: str = "1-5", size: str = "128") -> Samples:
    """Draws COUNT (1000) scenes that no shipped model was trained on."""
    numbers = re.fullmatch(r"(\d+) (\d+)(?:-(\d+))? (\d+)", f"{count or 1000} {objects} {size}")
    if numbers is None:
        raise KonkyoError(f"expected scenes:200,objects=1-5,size=128; got {count!r}, {objects!r} and {size!r}")
    length, low, high, side = (int(number or numbers[2]) for number in numbers.groups())
    return _of_scenes(Scenes(length, seed=UNSEEN + seed, size=side, objects=(low, high)))


# --- folders ----------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[..., Samples]] = {}
"""Functions of a folder, with text for options; one module each."""


def layout(function: _Function) -> _Function:
    """Registers a function (folder, *, options) -> Samples under its name."""
    LAYOUTS[function.__name__] = function
    return function


def _open_source(source: str, seed: int) -> Samples:
    """Opens the data set of a text KIND:WHERE,OPTION=VALUE. KonkyoError: an unknown kind or option, or no folder."""
    for module in iter_modules(konkyo.data.sets.__path__):
        import_module(f"konkyo.data.sets.{module.name}")
    kind, _, rest = source.partition(":")
    if kind not in DRAWN and kind not in LAYOUTS:
        offer = [*(f"{name}:COUNT" for name in DRAWN), *(f"{name}:DIR" for name in LAYOUTS)]
        offer += ["tar:PATTERN", "parquet:PATTERN", "list:FILE", "s3://BUCKET/FOLDER/"]
        if Path(source).expanduser().is_dir():
            raise KonkyoError(
                f"data is named KIND:WHERE, as in folder:{source}; got {source!r}. On offer: {', '.join(offer)}"
            )
        raise unknown("data", source, offer)
    function = DRAWN[kind] if kind in DRAWN else LAYOUTS[kind]
    known = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    where, options = options_of(rest, kind, [*known, "limit", "cue"])
    limit, cue = options.pop("limit", None), options.pop("cue", None)
    if limit is not None and not re.fullmatch("0*[1-9][0-9]*", limit):
        raise KonkyoError(f"expected {kind}:{where},limit=COUNT with a COUNT of 1 or more; got {limit!r}")
    if kind in DRAWN:
        data = function(where, seed, **options)
    elif not where or not Path(where).expanduser().is_dir():
        raise KonkyoError(f"expected a folder, as in {kind}:DIR; {where!r} is none")
    else:
        data = function(Path(where).expanduser(), **options)
    data = data if limit is None else _limited(data, int(limit), seed)
    if cue is None:
        return data
    from konkyo.data.cues import marked  # it is made of samples

    return marked(data, cue)


def options_of(text: str, kind: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Returns (WHERE, the options) of WHERE,NAME=VALUE. KonkyoError: an option that the kind does not have."""
    where, *pairs = re.split(r",(?=\w+=)", text)
    options = dict(pair.split("=", 1) for pair in pairs)
    for name in options:
        if name not in known:
            raise unknown(f"option of {kind}", name, known)
    return where, options


def _limited(data: Samples, limit: int, seed: int) -> Samples:
    """Returns `limit` samples drawn by the seed; those of a smaller limit come first."""
    return chosen(data, torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:limit].tolist())


_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")
"""What undoes the EXIF orientations from 2 to 8."""


def open_annotated(path: Path, size: tuple[int, int] | None, window: str = "") -> Image.Image:
    """Opens the picture as its annotations see it; `size` is the (width, height) that they name.

    That is as it is stored, without its EXIF orientation, as readers of COCO and VOC take it, if it has that size, else
    upright. ImageError: a picture that has another size either way, or cannot be read.
    """
    upright = stored = open_image(path, window)
    notes = [note for note in upright.info["konkyo"] if not note.startswith("turned upright")]
    if len(notes) < len(upright.info["konkyo"]):
        with Image.open(path) as file:
            stored = upright.transpose(Image.Transpose[_TURNS[file.getexif()[0x0112] - 2]])
        stored.info = {"konkyo": tuple(notes)}
    if size in (None, stored.size):
        return stored
    if size != upright.size:
        raise ImageError(f"{path} is of size {stored.size} (width, height); what is told of it is for {size}")
    return upright


def around(mask: Tensor) -> Box | None:
    """Returns the tight box of a mask (H, W); None where it is empty."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def box_of(annotation: Annotation) -> Box | None:
    """Returns an annotation's box, if need be that around its mask; None where neither is known."""
    return annotation.box if annotation.box is not None or annotation.mask is None else around(annotation.mask)
