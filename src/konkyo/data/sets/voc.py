"""Data sets laid out as Pascal VOC's: JPEGImages, Annotations (XML), and masks in SegmentationObject."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konkyo.data.images import find_images
from konkyo.data.samples import Annotation, Box, Sample, Samples, layout, open_annotated
from konkyo.errors import ImageError, KonkyoError
from konkyo.utils.files import read_bytes, read_text

_NOBODY = 255
"""In SegmentationObject, the outlines."""


@layout
def voc(folder: Path, *, split: str = "", origin: str = "1") -> Samples:
    """Reads the pictures with an XML file in Annotations, by name; with `split` those of ImageSets/SPLIT.txt.

    VOC counts pixels from 1 and its boxes include their last pixel: xmin - 1, ymin - 1, xmax, ymax are the box.
    origin=0 takes the numbers as they are. In SegmentationObject/NAME.png the n-th object of the XML file is drawn as
    n; pictures without that file have boxes only. "Difficult" objects are kept, parts of objects left out, pictures not
    turned upright (`open_annotated`). KonkyoError: what is missing or damaged, and in which file.
    """
    if origin not in ("0", "1"):
        raise KonkyoError(f"origin: expected 0 or 1, the number of the first pixel, got {origin!r}")
    names = sorted(path.stem for path in folder.glob("Annotations/*.xml"))
    if not names or not (folder / "JPEGImages").is_dir():
        raise KonkyoError(f"{folder} is not laid out as VOC: JPEGImages/NAME.jpg, Annotations/NAME.xml")
    if split:
        try:
            lines = read_text(folder / "ImageSets" / f"{split}.txt").splitlines()
        except KonkyoError as error:
            raise KonkyoError(f"split=Main/val would take the names in ImageSets/Main/val.txt: {error}") from None
        names = [line.split()[0] for line in lines if line.strip()]
    pictures = {path.stem: path for path in find_images(folder / "JPEGImages")}
    for name in names:
        if name not in pictures or not (folder / "Annotations" / f"{name}.xml").is_file():
            raise KonkyoError(f"{folder}: there is no {name} in {'Annotations' if name in pictures else 'JPEGImages'}")
    note = "boxes from pixel 1 to the last one; pictures as they are stored"
    files = tuple(pictures[name] for name in names)
    return Samples(tuple(names), partial(_sample, folder, names, pictures, int(origin)), note=note, files=files)


def _sample(folder: Path, names: Sequence[str], pictures: dict[str, Path], origin: int, index: int) -> Sample:
    """Opens one picture with its objects, and their masks where there are any. KonkyoError: a damaged file."""
    name = names[index]
    file, outlines = folder / "Annotations" / f"{name}.xml", folder / "SegmentationObject" / f"{name}.png"
    root = _xml_root(file)
    try:
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        objects = [(_text(element, "name"), _box(element, origin)) for element in root.findall("object")]
    except ValueError as error:
        raise KonkyoError(f"{file}: {error}") from None
    image = open_annotated(pictures[name], (width, height) if width and height else None)
    masks = _masks(outlines, image.size, [box for _, box in objects]) if outlines.is_file() else [None] * len(objects)
    return Sample(
        name,
        image,
        annotations=tuple(Annotation(*annotation, mask) for annotation, mask in zip(objects, masks, strict=True)),
    )


def _xml_root(file: Path) -> Element:
    """Returns the root element. A document type, and with it entities of any kind, is refused."""
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type, which annotations have no use for")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    data = read_bytes(file)
    try:
        parser.Parse(data, True)
        return builder.close()
    except Exception as error:  # the decoders of unusual encodings fail in every possible way
        raise KonkyoError(f"{file} cannot be read as XML: {error}") from None


def _text(element: Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"an object without {path}; expected name and bndbox with xmin, ymin, xmax, ymax")
    return text


def _box(element: Element, origin: int) -> Box:
    x0, y0, x1, y1 = (float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not (origin <= x0 <= x1 < math.inf and origin <= y0 <= y1 < math.inf):
        hint = "; if the first pixel is 0, write voc:DIR,origin=0" if origin else ""
        raise ValueError(f"a box {(x0, y0, x1, y1)}, expected {origin} <= xmin <= xmax and so for y{hint}")
    return x0 - origin, y0 - origin, x1, y1


def _masks(file: Path, size: tuple[int, int], boxes: Sequence[Box]) -> list[Tensor]:
    """Reads the mask of every object, (H, W) bool. ImageError: a picture that cannot be of these objects."""
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            if picture.mode not in ("P", "L") or picture.size != size:
                raise ValueError(f"{picture.mode}, {picture.size}; expected 8-bit numbers of objects, {size}")
            numbers = torch.from_numpy(np.array(picture))
        masks = [numbers == number for number in range(1, len(boxes) + 1)]
        last = int(numbers.masked_fill(numbers == _NOBODY, 0).max())
        if last > len(boxes):
            raise ValueError(f"it shows an object {last}, the XML file tells of {len(boxes)}")
        for number, (mask, (x0, y0, x1, y1)) in enumerate(zip(masks, boxes, strict=True), 1):
            if 2 * int(mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].sum()) < int(mask.sum()):
                raise ValueError(f"object {number} lies outside of its box; the XML file has another order")
    except Exception as error:  # decoders of damaged files fail in every possible way
        raise ImageError(f"{file} is not of use as masks: {error}") from None
    return masks
