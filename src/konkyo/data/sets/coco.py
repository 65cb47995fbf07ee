"""Data sets laid out as COCO's: images, and a JSON file with boxes, polygons and run lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from konkyo.data.samples import Annotation, Box, Sample, Samples, around, layout, open_annotated
from konkyo.data.windows import window_of
from konkyo.errors import KonkyoError, install_hint
from konkyo.utils.files import read_json

_FILES = ("instances.json", "_annotations.coco.json", "instances_*.json", "annotations/instances*.json")
_FORM = "images (id, file_name, width, height), annotations (image_id, category_id, bbox), categories (id, name)"


@layout
def coco(folder: Path, *, annotations: str = "", images: str = "", window: str = "") -> Samples:
    """Reads the pictures of an annotations file, in its order, with their things.

    The file is instances.json, _annotations.coco.json or instances_*.json in the folder or in annotations/. The
    pictures lie in images/, in a folder named as the file ends (val2017/, images/val2017/), or beside the file. The
    options `annotations` and `images` name others, relative to the folder.

    Boxes x, y, width, height become xyxy; a thing without a box gets that of its mask. Polygons are filled by
    pycocotools or faster-coco-eval. Pictures without things are kept, and none is turned upright (`open_annotated`).
    KonkyoError: what is missing or damaged, and in which file.
    """
    window_of(window)
    files = [folder / annotations] if annotations else sorted({p for pattern in _FILES for p in folder.glob(pattern)})
    if len(files) != 1:
        came = f"there are {', '.join(str(file.relative_to(folder)) for file in files)}" if files else "there is none"
        raise KonkyoError(f"{folder}: of {', '.join(_FILES)} {came}; name one: coco:DIR,annotations=FILE")
    data = read_json(files[0])
    try:
        classes = {category["id"]: str(category["name"]) for category in data["categories"]}
        truths: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            truths[annotation["image_id"]].append({**annotation, "label": classes[annotation["category_id"]]})
        if len(truths) < len(data["images"]):
            raise LookupError("several images of one id")
        names = tuple(str(image["file_name"]) for image in data["images"])
        sizes = [(_pixels(image["width"]), _pixels(image["height"])) for image in data["images"]]
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        came = f"{type(error).__name__} {error}"
        raise KonkyoError(
            f"{files[0]} is not as COCO's instances, lists of {_FORM} that fit together: {came}"
        ) from None
    by_picture = [truths[image["id"]] for image in data["images"]]
    where = _picture_folder(folder, files[0], images, names)
    read = partial(_sample, files[0], where, names, sizes, by_picture, window)
    note = "boxes as x, y, width, height; pictures as they are stored"
    paths = tuple(where / name for name in names)
    return Samples(names, read, tuple(classes.values()), note, files=paths, window=window)


def _picture_folder(folder: Path, file: Path, images: str, names: Sequence[str]) -> Path:
    """Returns the folder that holds all pictures. KonkyoError: some are in none."""
    split = file.stem.removeprefix("instances_")
    usual = [folder / "images", folder / split, folder / "images" / split, file.parent, folder]
    folders = [folder / images] if images else usual
    missing = [[name for name in names if not (where / name).is_file()] for where in folders]
    fewest, where = min(zip(missing, folders, strict=True), key=lambda pair: len(pair[0]))
    if fewest:
        raise KonkyoError(
            f"of the {len(names)} pictures that {file} lists, {len(fewest)} are not in {where}, such as {fewest[0]}; "
            "name another folder, coco:DIR,images=FOLDER, or take them out of the file"
        )
    return where


def _sample(
    file: Path,
    where: Path,
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    truths: Sequence[list[dict[str, Any]]],
    window: str,
    index: int,
) -> Sample:
    """Opens one picture with its annotations. KonkyoError: an annotation that cannot be read."""
    width, height = sizes[index]
    image, annotations = open_annotated(where / names[index], sizes[index], window), []
    for truth in truths[index]:
        try:
            mask = _mask(truth.get("segmentation"), height, width)
            box = _xyxy(*truth["bbox"]) if truth.get("bbox") else None if mask is None else around(mask)
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise KonkyoError(f"{file}: annotation {truth.get('id')} cannot be read, {reason}") from None
        annotations.append(Annotation(truth["label"], box, mask, crowd=bool(truth.get("iscrowd"))))
    return Sample(names[index], image, annotations=tuple(annotations))


def _pixels(side: Any) -> int:
    """Returns a side of a picture. ValueError, OverflowError: no positive number of pixels."""
    if isinstance(side, bool) or int(side) < 1:
        raise ValueError(f"a picture of {side} pixels")
    return int(side)


def _xyxy(x: float, y: float, width: float, height: float) -> Box:
    if not (width >= 0 and height >= 0 and math.isfinite(x + y + width + height)):
        raise ValueError(f"a box of x, y, width, height {(x, y, width, height)}")
    return float(x), float(y), float(x + width), float(y + height)


def _mask(segmentation: Any, height: int, width: int) -> Tensor | None:
    """Returns a mask (H, W) bool; None where there is no segmentation."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return _filled(segmentation, height, width)
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"a mask of size {segmentation['size']}, expected {[height, width]}")
    counts = segmentation["counts"]
    return _unrolled(list(_unpacked(counts)) if isinstance(counts, str) else counts, height, width)


def _unrolled(counts: Sequence[int], height: int, width: int) -> Tensor:
    """Makes a mask (H, W) bool of run lengths, outside first, column by column."""
    lengths = np.array(counts, dtype=np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:  # pycocotools would show memory that is not its own
        raise ValueError(f"run lengths of {lengths.sum()} pixels in all, expected {height * width}")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return torch.from_numpy(np.ascontiguousarray(flat.reshape(width, height).T))


def _unpacked(text: str) -> Iterator[int]:
    """Yields the run lengths in COCO's compressed text.

    A character has five bits of a number, the lowest first; 32 says that the number goes on, and 16 in its last
    character that it is negative. From the fourth on, numbers are differences to the length two before.
    """
    lengths: list[int] = []
    number = shift = 0
    for bits in (ord(character) - 48 for character in text):
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) << (shift - 4)
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            yield lengths[-1]
            number = shift = 0


def _filled(polygons: Sequence[Sequence[float]], height: int, width: int) -> Tensor:
    """Fills the union of polygons [x, y, x, y, ...]."""
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(np.array(polygon, dtype=np.float64)).all():
            raise ValueError(f"a polygon {polygon}, expected x, y of three points or more")
    library = _library()
    union = library.merge(library.frPyObjects(polygons, height, width))
    return _unrolled(list(_unpacked(union["counts"].decode())), height, width)


def _library() -> Any:
    for name in ("pycocotools.mask", "faster_coco_eval.core.mask"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise KonkyoError(f"masks given as polygons need pycocotools or faster-coco-eval: {install_hint('coco')}")
