"""Data sets that are folders of pictures: a folder per class or all in one, with or without masks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from konkyo.data.images import find_images, open_image
from konkyo.data.samples import PARTS, Annotation, Sample, Samples, around, layout, open_annotated, selected
from konkyo.data.windows import window_of
from konkyo.errors import ImageError, KonkyoError
from konkyo.utils.files import read_text


@layout
def folder(folder: Path, *, masks: str = "", split: str = "", window: str = "") -> Samples:
    """Reads the pictures in the folder, or in its subfolders and labelled by their names, in natural order.

    Folders of classes may lie in train/, val/ (valid/, validation/) and test/; `split` takes one of these parts.

    A file classes.txt with lines "KEY<tab>NAME", as of ImageNet, names the classes. The key is the name of the
    subfolder, or what comes before the first underscore in that of a picture.

    The mask of CLASS/NAME.jpg is CLASS/NAME.png or CLASS/NAME_mask.png (any suffix) in masks/, or in the folder that
    the option `masks` names, relative to this one; or NAME_mask.png beside the picture. It is as large as the picture,
    of two values, the higher one inside, or grey, inside from 128 on. Pictures with masks are not turned upright
    (`open_annotated`). `window` is of pictures, not of masks. KonkyoError: what is missing or cannot be told, and in
    which file.
    """
    window_of(window)
    apart = folder / (masks or "masks")
    if masks and not apart.is_dir():
        raise KonkyoError(f"masks: {apart} is no folder")
    inside = [path for path in find_images(folder) if apart.resolve() not in path.resolve().parents]
    outlines = {_key(path, folder): path for path in inside}
    files = [path for path in inside if not _is_mask(_key(path, folder), outlines)]
    masks_of_files = [outlines.get(f"{_key(path, folder)}_mask") for path in files]
    if apart.is_dir():
        outlines = {_key(path, apart): path for path in find_images(apart)}
        masks_of_files = [outlines.get(f"{_key(p, folder)}_mask", outlines.get(_key(p, folder))) for p in files]
        if not any(masks_of_files):
            raise KonkyoError(f"{apart} has no mask of a picture, such as {apart / _key(files[0], folder)}.png")
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    parts, rest = _parts(names)
    labels, classes = _labels_by_folder(folder, rest)
    note = f"{sum(mask is not None for mask in masks_of_files)} of {len(files)} pictures with a mask"
    known = tuple(label for label in labels if label is not None)
    return selected(
        Samples(
            names,
            partial(_sample, names, files, labels, masks_of_files, window),
            classes,
            note,
            labels=known,
            parts=parts,
            files=tuple(files),
            window=window,
        ),
        split,
    )


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix().removesuffix(".nii")


def _is_mask(key: str, keys: dict[str, Path]) -> bool:
    return key.endswith("_mask") and key.removesuffix("_mask") in keys


def _parts(names: Sequence[str]) -> tuple[tuple[str, ...], Sequence[str]]:
    """Returns the part of every picture and its name in there, where all are PART/CLASS/NAME.

    Else there are no parts, and the names are all.
    """
    heads = [name.split("/")[0].lower() for name in names]
    if any(name.count("/") != 2 for name in names) or not PARTS.keys() >= set(heads):
        return (), names
    return tuple(PARTS[head] for head in heads), [name.partition("/")[2] for name in names]


def _labels_by_folder(folder: Path, names: Sequence[str]) -> tuple[list[str | None], tuple[str, ...]]:
    """Returns the label of every picture, and all that there are."""
    depths = {name.count("/"): name for name in names}
    if len(depths) > 1 or max(depths) > 1:
        came = " and ".join(depths.values())
        raise KonkyoError(f"{folder}: expected either DIR/NAME.jpg or DIR/CLASS/NAME.jpg everywhere; got {came}")
    keys = [name.split("/")[0] if 1 in depths else name.split("_")[0] for name in names]
    classes = class_table(folder)
    if classes is None:
        return (list(keys), tuple(dict.fromkeys(keys))) if 1 in depths else ([None] * len(names), ())
    if missing := [key for key in keys if key not in classes]:
        raise KonkyoError(
            f'{folder / CLASS_TABLE}: expected a line "KEY<tab>NAME" of every class; none is of {missing[0]!r}'
        )
    return [classes[key] for key in keys], tuple(classes.values())


CLASS_TABLE = "classes.txt"


def class_table(folder: Path) -> dict[str, str] | None:
    """Returns the names of classes by their keys, as the folder's classes.txt says; None where it has no such file.

    KonkyoError: a line that is not "KEY<tab>NAME".
    """
    table = folder / CLASS_TABLE
    if not table.is_file():
        return None
    text = read_text(table)
    try:
        return dict(line.split("\t") for line in text.splitlines() if line.strip())
    except ValueError as error:
        raise KonkyoError(f'{table}: expected a line "KEY<tab>NAME" of every class; {error!r}') from None


def _sample(
    names: Sequence[str],
    files: Sequence[Path],
    labels: Sequence[str | None],
    masks: Sequence[Path | None],
    window: str,
    index: int,
) -> Sample:
    """Opens one picture, with its mask as an annotation where it has one."""
    file, label, outline = files[index], labels[index], masks[index]
    if outline is None:
        return Sample(names[index], open_image(file, window), label)
    mask = _read_mask(outline)
    image = open_annotated(file, (mask.shape[1], mask.shape[0]), window)
    return Sample(names[index], image, label, (Annotation(label, around(mask), mask),))


def _read_mask(file: Path) -> Tensor:
    """Reads a mask (H, W) bool. ImageError: values that do not say what is inside."""
    picture = open_image(file)
    values = np.asarray(picture).max(-1)
    levels = np.unique(values)
    if "transparent parts on white" in picture.info["konkyo"] or (len(levels) > 2 and levels[-1] < 128):
        raise ImageError(f"{file} does not say what is inside: save the mask without transparency, in black and white")
    return torch.from_numpy(values >= (128 if len(levels) > 2 else max(1, levels[-1])))
