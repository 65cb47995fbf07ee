"""Two collections of scans as they are unpacked: chest X-rays with pneumonia, and MRI slices with brain tumours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from konkyo.data.images import find_images, open_image
from konkyo.data.samples import PARTS, Sample, Samples, layout, selected
from konkyo.data.windows import window_of
from konkyo.errors import KonkyoError


@layout
def chest(folder: Path, *, split: str = "", window: str = "") -> Samples:
    """Reads Chest X-Ray Images (Pneumonia), Kermany et al., 2018: {train,val,test}/{NORMAL,PNEUMONIA}/NAME.jpeg.

    `split` is train, val or test; without it, all. Its val/ has 16 pictures: see `splits`. KonkyoError: another layout.
    """
    return _arranged("chest", folder, {name: name for name in ("NORMAL", "PNEUMONIA")}, split, window)


@layout
def brain(folder: Path, *, split: str = "", window: str = "") -> Samples:
    """Reads Brain Tumor MRI (Nickparvar, 2021): {Training,Testing}/{glioma,meningioma,notumor,pituitary}/NAME.jpg.

    Folders may be named as in older versions, glioma_tumor and no_tumor; the labels are the same. `split` is train or
    test; without it, all. KonkyoError: another layout.
    """
    classes = {name: name for name in ("glioma", "meningioma", "notumor", "pituitary")}
    return _arranged(
        "brain", folder, classes | {f"{n}_tumor": n for n in classes} | {"no_tumor": "notumor"}, split, window
    )


def _arranged(kind: str, folder: Path, classes: dict[str, str], split: str, window: str) -> Samples:
    """Reads the pictures of PART/CLASS/NAME; `classes` has the names of folders, and the labels that these mean."""
    window_of(window)
    names = {name.lower(): label for name, label in classes.items()}
    held = [part for part in _folders(folder) if part.name.lower() in PARTS]
    folders = [(part, where) for part in held for where in _folders(part)]
    strange = [where for _, where in folders if where.name.lower() not in names]
    labels_of_folders = {names.get(where.name.lower()) for _, where in folders}
    if strange or labels_of_folders != set(classes.values()):
        came = (
            f"{strange[0].relative_to(folder)}/"
            if strange
            else ", ".join(str(w.relative_to(folder)) for _, w in folders)
        )
        expected = ", ".join(dict.fromkeys(classes.values()))
        raise KonkyoError(
            f"{folder} is not laid out as {kind}: train/, test/ and in each a folder per class, {expected}; "
            f"got {came or 'neither'}; for other classes write folder:DIR"
        )
    files = [
        (file, names[where.name.lower()], PARTS[part.name.lower()])
        for part, where in folders
        for file in find_images(where)
    ]
    paths, labels, parts = zip(*files, strict=True)
    shown = tuple(path.relative_to(folder).as_posix() for path in paths)
    read = partial(read_labelled, shown, paths, labels, window=window)
    known = tuple(dict.fromkeys(classes.values()))
    return selected(Samples(shown, read, known, "", "", labels, parts, paths, window), split)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def read_labelled(
    names: Sequence[str], files: Sequence[Path], labels: Sequence[str], index: int, *, window: str = ""
) -> Sample:
    """Opens the sample of that index: a picture and its label, and no things."""
    return Sample(names[index], open_image(files[index], window), labels[index])
