"""Inputs: what a user gives as images, as the network takes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from konkyo.data import huggingface
from konkyo.data.arrays import picture_of_colours, pictures_of_array, pictures_of_tensor, read_array
from konkyo.data.axes import Coordinates
from konkyo.data.images import find_images, open_image, require_local, upright
from konkyo.data.samples import Sample
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError, warn
from konkyo.models import Frame, Model
from konkyo.models.readers import Reading
from konkyo.tasks.base import plain_name
from konkyo.utils.words import note_of_image

Image_: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any] | Tensor | Sample"
"""An image: a path, the bytes of a file, an open file, a picture, an array, a tensor, or a sample."""
Images: TypeAlias = "Image_ | Mapping[str, Any] | Dataset[Any] | Iterable[Any]"
"""Images: one, a list, a loader or a data set of them, or what a processor of transformers returns."""

MOST = 4096
"""So many images are explained in one call; an iterable may be endless."""

_TAKEN = (
    "images are a path, a folder, a pattern, bytes, a file object, a PIL picture, an array (H, W, C), a uint8 tensor "
    "(C, H, W), a prepared float tensor (N, C, H, W), a mapping with pixel_values, or a list, data set or loader of "
    "them; of networks of other axes what their reader reads"
)
_ROWS = ("row", "column")
_VOLUME = 'The axes of the input are read as NCDHW, a volume; of a video: konkyo.Model(module, axes="NCTHW").'
_READ_OFF = (
    "pictures are prepared as the module itself tells; another way is told by "
    "konkyo.Model(module, preprocess=konkyo.Preprocess(...))"
)
_PICTURES = ("pixel_values", "image", "images", "img")
"""What images are called in mappings."""
_PREPARED = ("pixel_values", "input_values", "pixel_values_videos")
"""What prepared inputs are called there."""
_IGNORED = {"labels", "label", "pixel_mask"}
"""What may stand beside pixel_values and is not the network's input."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Images as the network takes them."""

    images: Tensor
    """(N, C, ...)"""
    pictures: tuple[Image.Image, ...] | Tensor
    """What the model sees of them."""
    frames: tuple[Frame, ...]
    """Where that lies in the network's input."""
    notes: tuple[str, ...] = ()
    """What was done to pictures before the model's own preprocessing, and what is said of labels; a sentence each."""
    names: tuple[str, ...] = ()
    """What every image is called, "" where that is not known; empty where no name is known."""
    labels: tuple[str | None, ...] = ()
    """The class of the model that every image really has; None where that is not known."""
    questions: tuple[str | None, ...] = ()
    """What samples ask about their images; empty where none asks."""
    places: tuple[str, ...] = ()
    """What the places of an image are called."""
    coordinates: tuple[Coordinates, ...] = ()
    """Where the cells of every image lie in the world; empty for pictures."""


def prepare(
    model: Model, images: Images, *, bgr: bool = False, column: str | None = None, read_off: bool = False
) -> Prepared:
    """Returns images in any form as the network takes them.

    Floating tensors are taken as prepared; all else are pictures, which the model's preprocessing prepares. `bgr` is of
    arrays and uint8 tensors, `column` of a `datasets.Dataset`: where its pictures are. `read_off`: the
    preprocessing was not given with the model, but read off a module. KonkyoError: something else, or pictures of other
    sizes.
    """
    reader = _Reader(model, bgr)
    table = huggingface.is_table(images)
    if column is not None and not table:
        raise KonkyoError(f"column= is said of a datasets.Dataset; got {type(images).__name__}")
    rows = huggingface.streamed(images, column) if table and not huggingface.holds_prepared(images) else images
    parts = reader.read(rows)
    if not parts:
        raise KonkyoError("no images: an empty list came")
    if bgr and not reader.arrays:
        raise KonkyoError("bgr=True is said of arrays and uint8 tensors; none came")
    if all(isinstance(part.image, Tensor) for part in parts):
        prepared = _prepared(model, [part.image for part in parts], [part.coordinates for part in parts])
        prepared = replace(prepared, notes=(*(note for part in parts for note in part.notes), *prepared.notes))
    else:
        prepared = _of_pictures(model, [part.image for part in parts])
        prepared = replace(prepared, notes=(*prepared.notes, _READ_OFF)) if read_off else prepared
    names = tuple(name for part in parts for name in part.names)
    labels, notes = known_classes(model, [label for part in parts for label in part.labels])
    questions = tuple(part.question for part in parts)
    if any(questions):
        prepared = replace(prepared, questions=questions)
    if len(names) != len(prepared.images):  # of one tensor (C, H, W) that was taken for something else
        return prepared
    return replace(prepared, names=names if any(names) else (), labels=labels, notes=(*prepared.notes, *notes))


def _prepared(model: Model, parts: Sequence[Any], coordinates: Sequence[Coordinates | None]) -> Prepared:
    """Returns prepared tensors as one batch."""
    tensors = [part[None] if _lacks_batch(model, part, len(parts)) else part for part in parts]
    if len({t.shape[1:] for t in tensors}) > 1:
        raise KonkyoError(
            f"prepared images of one shape were expected; got {_shapes(tensors)}; explain them one by one"
        )
    tensor = model.prepared(tensors[0] if len(tensors) == 1 else torch.cat(tensors))
    _warn_of_raw_values(model, tensors[0])
    undoing = model.reader or model.preprocess
    shown = tensor.detach() if undoing is None else undoing.undo(tensor.detach())
    places, size = model.places(tensor.shape), tuple(tensor.shape[2:])
    counted = Coordinates(size) if model.reader is None else model.reader.coordinates(size, places)
    where = [one or counted for one, part in zip(coordinates, tensors, strict=True) for _ in range(len(part))]
    notes = (_VOLUME,) if model.axes is None and tensor.ndim == 5 else ()
    pictures = places == _ROWS
    return Prepared(
        tensor,
        shown,
        (_whole(tensor),) * len(tensor),
        notes,
        places=places,
        coordinates=() if pictures else tuple(where),
    )


def _whole(images: Tensor) -> Frame:
    """Returns the frame of prepared images (N, C, *size), which are their own pictures."""
    size = tuple(images.shape[2:])
    return Frame(size=(size[0], size[1]) if len(size) == 2 else None)


def _lacks_batch(model: Model, tensor: Tensor, count: int) -> bool:
    """Returns whether a prepared tensor is a single image (C, H, W): in a list, or where the channels are known."""
    if tensor.ndim != 3 or model.axes is not None:
        return False
    return count > 1 or (model.preprocess is not None and tensor.shape[0] == len(model.preprocess.mean))


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(map(str, list(dict.fromkeys(tuple(t.shape) for t in tensors))[:4]))


def _warn_of_raw_values(model: Model, images: Tensor) -> None:
    """Warns of values far beyond white, as of pixels that were never prepared; only where looking costs no transfer."""
    if model.preprocess is None or images.device.type != "cpu" or images.requires_grad:
        return
    white, highest = max(model.preprocess.white), float(images.amax())
    if highest > 10 * max(white, 1):
        warn(
            f"the images hold values up to {highest:g}, and prepared white is {white:g}: float tensors are taken as "
            "prepared; give pixels as uint8, which are prepared as the model wants"
        )


def _of_pictures(model: Model, parts: Sequence[Any]) -> Prepared:
    """Returns pictures, and prepared tensors among them, as one batch."""
    preprocess = model.preprocess
    assert preprocess is not None  # else the reader would have refused the pictures
    images, shown, frames, notes = list[Tensor](), list[Image.Image](), list[Frame](), list[str]()
    for part in parts:
        if isinstance(part, Tensor):
            batch = part.detach()[None] if part.ndim == 3 else part.detach()
            images += list(batch.cpu().float())
            shown += [picture_of_colours(colours) for colours in preprocess.undo(batch.float())]
            frames += [_whole(batch)] * len(batch)
            continue
        notes += [note_of_image(len(images), note) for note in part.info.get("konkyo", ())]
        images.append(preprocess(part))
        shown.append(preprocess.view(part))
        frames.append(preprocess.frame(part))
    if len({t.shape for t in images}) > 1:
        raise KonkyoError(
            "the pictures differ in size after preprocessing; give the Preprocess a crop, or explain them one by one"
        )
    return Prepared(model.prepared(torch.stack(images)), tuple(shown), tuple(frames), tuple(notes))


def outputs_of(model: Model, images: Any, *, seed: int = 0) -> Tensor:
    """Returns the model's outputs (M, ...) for images in any form, without a graph. KonkyoError: as of `prepare`."""
    prepared = prepare(model, images)
    session = untouched(model.module, seed)
    with session, session, torch.no_grad():
        return model(prepared.images).detach()


def known_classes(model: Model, labels: Sequence[str | None]) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """Returns the classes of the model that labels of data name, None for the others, and a sentence about those.

    Case, underscores and hyphens do not matter. The classes are empty where no label names one.
    """
    classes = {plain_name(name): name for name in reversed(model.classes)}
    names = tuple(None if label is None else classes.get(plain_name(label)) for label in labels)
    others = list(dict.fromkeys(label for label, name in zip(labels, names, strict=True) if label and name is None))
    note = f"labels of the data that are no class of {model.name}, taken as not known: {', '.join(others[:5])}"
    return (names if any(name is not None for name in names) else ()), ((note,) if others else ())


def labelled(model: Model, prepared: Prepared, true_labels: Sequence[Any] | None) -> Prepared:
    """Returns the images with the classes that a user says they have: names, indices, or None where it is not known.

    KonkyoError: not one entry per image, or a class that the model does not have.
    """
    if true_labels is None:
        return prepared
    if isinstance(true_labels, (np.ndarray, Tensor)):
        true_labels = true_labels.tolist()
    if isinstance(true_labels, str) or not isinstance(true_labels, Sequence):
        raise KonkyoError(f"true_labels is a list with a class name or index per image; got {true_labels!r}")
    if len(true_labels) != len(prepared.images):
        raise KonkyoError(
            f"true_labels has one entry per image: {len(prepared.images)} expected, {len(true_labels)} came"
        )
    return replace(prepared, labels=tuple(class_of(model, label) for label in true_labels))


def class_of(model: Model, label: Any) -> str | None:
    """Returns the name of the class that a user means. KonkyoError: the model has no such class."""
    if label is None:
        return None
    if isinstance(label, (Integral, np.integer)) and not isinstance(label, bool):
        index = int(label)
        if index < 0 or (model.classes and index >= len(model.classes)):
            offer = f"0 to {len(model.classes) - 1}" if model.classes else "0 or more"
            raise KonkyoError(f"classes of {model.name} are {offer}; a true label of {index} came")
        return model.classes[index] if model.classes else f"class {index}"
    if not isinstance(label, str):
        raise KonkyoError(f"a true label is a class name, an index or None; got {label!r}")
    names, _ = known_classes(model, [label])
    return names[0] if names else model.classes[model.class_index(label)]


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of what a user gives is one picture, or prepared images in a tensor, with a name and a label of each."""

    image: Image.Image | Tensor
    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    question: str | None = None
    coordinates: Coordinates | None = None
    notes: tuple[str, ...] = ()


def _part(image: Image.Image | Tensor, name: str = "", label: str | None = None) -> _Part:
    count = len(image) if isinstance(image, Tensor) and image.ndim > 3 else 1
    return _Part(image, (name,) * count, (label,) * count)


@dataclass(eq=False)
class _Reader:
    """The reader turns what a user gives into upright RGB pictures and prepared tensors."""

    model: Model
    bgr: bool
    arrays: bool = field(default=False, init=False)
    """Whether arrays or uint8 tensors came."""

    def read(self, images: Any) -> list[_Part]:
        """Returns pictures and prepared tensors, in order. KonkyoError: something else, or no end of them."""
        if _is_one(images) or isinstance(images, Mapping) or self._is_clip(images):
            return self._one(images)
        if isinstance(images, Dataset) and not isinstance(images, Iterable):
            items: Iterable[Any] = (images[index] for index in range(len(images)))  # type: ignore[arg-type]
        elif isinstance(images, Iterable):
            items = images
        else:
            raise KonkyoError(f"{_TAKEN}; got {type(images).__name__}")
        loaded = isinstance(images, torch.utils.data.DataLoader)
        classes = _classes_of(images)
        parts: list[_Part] = []
        count = 0
        for item in islice(items, MOST + 1):
            image = item[0] if isinstance(item, (tuple, list) if loaded else tuple) and len(item) else item
            parts += (read := _with_labels(self._one(image), item, classes))
            count += sum(len(part.names) for part in read)
            if count > MOST:
                raise KonkyoError(f"more than {MOST} images in one call; explain them batch by batch, in a loop")
        return parts

    def _one(self, image: Any) -> list[_Part]:
        """Returns what one item of a list holds: a picture, several pictures, or a prepared tensor."""
        if isinstance(image, Mapping):
            return self._mapping(image)
        if isinstance(image, Tensor):
            return self._tensor(image)
        if self._has_other_axes and (read := self._values_of(image)) is not None:
            return read
        if not _is_one(image):
            raise KonkyoError(f"{_TAKEN}; got {type(image).__name__}")
        self._require_preprocess()
        if isinstance(image, Sample):
            return [replace(_part(image.image, image.name, image.label), question=image.question)]
        if isinstance(image, Image.Image):
            return [_part(upright(image), Path(str(getattr(image, "filename", ""))).name)]
        if isinstance(image, (str, os.PathLike)):
            return _opened(os.fspath(image))
        if isinstance(image, np.ndarray):
            self.arrays = True
            return list(map(_part, pictures_of_array(image, bgr=self.bgr)))
        return [_part(open_image(image))]

    @property
    def _has_other_axes(self) -> bool:
        """Tells whether an input of the model is something else than a picture."""
        return not self.model.takes_pictures

    def _is_clip(self, images: Any) -> bool:
        """Tells whether a list of pictures is a clip's frames."""
        listed = isinstance(images, (list, tuple)) and len(images) > 0
        return listed and self._has_other_axes and all(isinstance(item, Image.Image) for item in images)

    def _values_of(self, source: Any) -> list[_Part] | None:
        """Returns what a file or a value is to a network of other axes than a picture's; None: no such value."""
        if isinstance(source, np.ndarray) and np.issubdtype(source.dtype, np.floating):
            return self._tensor(torch.from_numpy(np.ascontiguousarray(source, dtype=np.float32)))
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
        if name:
            require_local(name)
        if name.lower().endswith(".npy"):
            (part,) = self._tensor(read_array(Path(name)))
            return [replace(part, names=(Path(name).name,) * len(part.names))]
        if self.model.reader is None:
            axes = "" if self.model.axes is None else self.model.axes.text
            raise KonkyoError(
                f"{self.model.name} takes inputs of the axes {axes}: give a floating tensor or array of them, a .npy "
                "file, or say how files are read: konkyo.Model(module, reader=konkyo.Clips(...)) for videos, "
                "konkyo.Volumes(...) for volumes"
            )
        readings = self.model.reader.read(source)
        return [_Part(r.values[None], (r.name,), (None,), None, r.coordinates, _noted(r)) for r in readings]

    def _require_preprocess(self) -> None:
        """Raises KonkyoError where the model does not say how pictures are prepared."""
        if self.model.preprocess is None:
            raise KonkyoError(
                f"{self.model.name} does not say how to prepare a picture; give a prepared floating tensor (N, C, H, "
                "W), or konkyo.Model(module, preprocess=konkyo.Preprocess(...)), or the weights of torchvision that it "
                "has: konkyo.Model(module, weights=torchvision.models.ResNet50_Weights.DEFAULT)"
            )

    def _tensor(self, tensor: Tensor) -> list[_Part]:
        if type(tensor).__module__.startswith("torchvision."):  # a tv_tensor would follow through the network
            tensor = tensor.as_subclass(Tensor)
        if tensor.is_floating_point():
            laid = self.model.laid(tensor)
            return [_part(tensor) if self.model.axes is None else _Part(laid, ("",) * len(laid), (None,) * len(laid))]
        if self._has_other_axes and self.model.reader is not None:
            return self._values_of(tensor) or []
        if tensor.ndim < 3:
            raise KonkyoError(
                f"a tensor {tuple(tensor.shape)} of {tensor.dtype} is no image; of a pair of images and labels give "
                "the images"
            )
        self._require_preprocess()
        self.arrays = True
        return list(map(_part, pictures_of_tensor(tensor, bgr=self.bgr)))

    def _mapping(self, values: Mapping[str, Any]) -> list[_Part]:
        """Returns the images in a mapping: prepared ones in "pixel_values", or pictures. KonkyoError: none, or more."""
        name = next((name for name in (*_PREPARED, *_PICTURES) if name in values), None)
        if name is None:
            raise KonkyoError(f"a mapping with one of {', '.join(_PICTURES)} was expected; got {', '.join(values)}")
        images = values[name]
        if name not in _PREPARED:
            return self.read(images)
        others = [key for key in values if key != name and key not in _IGNORED]
        if others:
            if self.model.prompts is not None:
                raise KonkyoError(
                    f"pixel_values with other inputs, {', '.join(others)}: give values['pixel_values'] alone, and the "
                    f"text as {self.model.prompts.noun}="
                )
            raise KonkyoError(
                f"pixel_values with other inputs, {', '.join(others)}: give values['pixel_values'], and say how the "
                "network is run: konkyo.Model(module, call=lambda module, images: module(pixel_values=images, ...))"
            )
        if "pixel_mask" in values and not bool(torch.as_tensor(np.asarray(values["pixel_mask"])).all()):
            raise KonkyoError("pixel_values of several sizes, padded (pixel_mask); explain the pictures one by one")
        listed = list(images) if isinstance(images, (list, tuple)) else [images]
        tensors = [image if isinstance(image, Tensor) else torch.as_tensor(np.asarray(image)) for image in listed]
        for tensor in tensors:
            if not tensor.is_floating_point() or tensor.ndim < 3:
                raise KonkyoError(
                    f"pixel_values are prepared images, floats (N, C, H, W); got {tuple(tensor.shape)} {tensor.dtype}"
                )
        if self.model.axes is not None:
            return [part for tensor in tensors for part in self._tensor(tensor)]
        return [_part(tensor[None] if tensor.ndim == 3 else tensor) for tensor in tensors]


def _noted(reading: Reading) -> tuple[str, ...]:
    """Returns what was done to read an input, with its name."""
    return tuple(f"{reading.name}: {note}" if reading.name else note for note in reading.notes)


def _classes_of(images: Any) -> list[str]:
    """Returns the names of a data set's classes, as torchvision's data sets and loaders of them have; else none."""
    names = getattr(getattr(images, "dataset", images), "classes", None)
    named = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return list(names) if named and names is not None else []


def _with_labels(parts: list[_Part], item: Any, classes: Sequence[str]) -> list[_Part]:
    """Returns the parts of an item (image, label) with the label's name; unchanged where the names are not known."""
    if not classes or len(parts) != 1 or not isinstance(item, (tuple, list)) or len(item) < 2:
        return parts
    numbers = item[1].tolist() if isinstance(item[1], Tensor) else item[1]
    numbers = numbers if isinstance(numbers, list) else [numbers]
    (part,) = parts
    if len(numbers) != len(part.names) or not all(type(n) is int and 0 <= n < len(classes) for n in numbers):
        return parts
    return [replace(part, labels=tuple(classes[n] for n in numbers))]


def _is_one(images: Any) -> bool:
    """Returns whether this is what an image comes in, and no list of them; a file object can be iterated too."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Tensor, np.ndarray, Sample)
    return isinstance(images, kinds) or _is_file(images)


def _is_file(value: Any) -> bool:
    return callable(getattr(value, "read", None)) and not isinstance(value, Dataset)  # `Samples.read` is of a sample


def _opened(source: str) -> list[_Part]:
    """Opens a file, or all images of a folder, a pattern or a .txt list."""
    if not source:
        raise KonkyoError("an empty path names no image")
    require_local(source)
    path = Path(source)
    several = path.is_dir() or path.suffix.lower() == ".txt" or (not path.exists() and any(c in source for c in "*?["))
    files = find_images(path) if several else [path]
    names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files]
    return [_part(open_image(file), name) for file, name in zip(files, names, strict=True)]
