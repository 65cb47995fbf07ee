"""The records of a run for other tools, a few rows at a time in memory: COCO, NumPy, FiftyOne, trackers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from PIL import Image

from konkyo.data.frame import Frame
from konkyo.draw.sheets import save_image
from konkyo.errors import KonkyoError, unknown
from konkyo.explanation.exports import THRESHOLD, coco_annotation, to_fiftyone
from konkyo.explanation.result import Explanation
from konkyo.models.preprocess import preprocess_of
from konkyo.runs.pictures import DataNow, RunPictures, seen_of, with_picture
from konkyo.runs.query import opened
from konkyo.runs.records import Records, explanations_of, rows_of_file
from konkyo.runs.shards import unpacked
from konkyo.runs.summary import Summary, most_suspicious, rows_of_images
from konkyo.training.trackers import TRACKERS, PictureTracker, tracker_of
from konkyo.utils.files import plain, replacing

PICTURES = 16
"""So many of the most suspicious images are drawn for a tracker."""
_SIDE = 256
"""Heat maps of cropped pictures are made so large for FiftyOne."""


@dataclass(frozen=True)
class Wishes:
    """The wishes are what exports may be told beside the records."""

    threshold: float = THRESHOLD
    """COCO: where a map scaled to [0, 1] is above it, the mask is."""
    data: DataNow = None
    """Where the pictures are now; None: where the manifest says."""
    pictures: int = PICTURES
    """Trackers: so many of the most suspicious images are drawn."""


Export = Callable[[Records, Path, Wishes], str]
EXPORTS: dict[str, Export] = {}
"""What writes the records in a form, into a file or folder, and says what it wrote."""


def export(records: Records | str | Path, to: str, out: str | Path, wishes: Wishes = Wishes()) -> str:
    """Writes the records of a run in another tool's form. -> a sentence that says what was written

    `to`: "coco" (a file of JSON), "numpy" (a folder), "fiftyone" (a data set of the folder's name), or a tracker of
    `konkyo.training`: "tensorboard", "mlflow", "wandb". KonkyoError: another form, a library that is not installed.
    """
    if to not in EXPORTS:
        raise unknown("form of export", to, EXPORTS)
    known = records if isinstance(records, Records) else Records.open(records)
    if not known.receipts:
        raise KonkyoError(f"{known.folder} has no finished shard yet: there is nothing to export")
    return EXPORTS[to](known, Path(out), wishes)


# --- COCO -------------------------------------------------------------------------------------------------------------


def export_coco(records: Records, out: Path, wishes: Wishes = Wishes()) -> str:
    """Writes images, annotations (mask, box, score of every map) and categories, as `Explanation.to_coco` has them.

    Coordinates are pixels of the whole pictures, whose sizes the records know; the pictures are not opened.
    """
    preprocess = preprocess_of(records.manifest.get("preprocess"))
    categories = {name: number for number, name in enumerate(records.manifest.get("classes") or (), start=1)}
    size, seen, frame, images, count = (0, 0), Image.new("RGB", (1, 1)), Frame(), 0, 0
    with (
        replacing(out) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        TemporaryFile("w+", encoding="utf-8") as notes,
    ):
        methods = ", ".join(records.manifest.get("methods") or ())
        info = {"description": f"{methods}, cut at {wishes.threshold:g}", "model": records.manifest.get("model")}
        file.write(f'{{"info": {json.dumps(info)},\n"images": [')
        for rows in _images_of(records):
            known = (rows[0]["height"] or 0, rows[0]["width"] or 0)
            if known != size and 0 not in known:
                size = known
                seen, frame = seen_of(preprocess, size)
            images += 1
            about = {"id": images, "file_name": rows[0]["image"], "height": known[0], "width": known[1]}
            file.write(("," if images > 1 else "") + "\n" + json.dumps(about))
            for result in explanations_of(rows, records.manifest):
                shown = with_picture(result, seen)
                for row, label in enumerate(result.labels):
                    count += 1
                    ids = {"id": count, "image_id": images}
                    ids["category_id"] = categories.setdefault(label, len(categories) + 1)
                    text = json.dumps(plain(ids | coco_annotation(shown, row, wishes.threshold, frame)))
                    notes.write(("," if count > 1 else "") + "\n" + text)
        file.write('],\n"annotations": [')
        notes.seek(0)
        shutil.copyfileobj(notes, file)
        listed = [{"id": number, "name": name} for name, number in categories.items()]
        file.write(f'],\n"categories": {json.dumps(listed)}}}\n')
    return f"{images} images, {count} annotations: {out}"


# --- NumPy ------------------------------------------------------------------------------------------------------------


def export_numpy(records: Records, out: Path, _wishes: Wishes = Wishes()) -> str:
    """Writes maps-NUMBER.npz for every shard, and rows.jsonl with all but the maps, a line per row.

    An archive has an array (n, h, w) float32 for each grid, as "7x7"; a line names its `file`, `array` and `index`.
    Maps are as the method defines them, after its ReLU if it ends in one: `Explanation.maps`.
    """
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    with replacing(out / "rows.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
        for receipt, file in zip(records.receipts, records.files, strict=True):
            maps: dict[str, list[Any]] = {}
            name = f"maps-{receipt.shard:06d}.npz"
            for row in rows_of_file(file):
                data, shape, scale = (row.pop(key) for key in ("map", "shape", "scale"))
                if data is not None:
                    array = "x".join(map(str, shape))
                    row |= {"file": name, "array": array, "index": len(maps.setdefault(array, []))}
                    signed = unpacked(data, shape, scale)
                    maps[array].append(np.maximum(signed, 0) if row["rectified"] else signed)
                    count += 1
                lines.write(json.dumps(plain(row)) + "\n")
            with replacing(out / name) as archive:
                np.savez(archive, **{array: np.stack(values) for array, values in maps.items()})  # type: ignore[arg-type]
    return f"{count} maps of {len(records)} rows in {len(records.receipts)} archives, and rows.jsonl: {out}"


# --- FiftyOne ---------------------------------------------------------------------------------------------------------


def export_fiftyone(records: Records, out: Path, wishes: Wishes = Wishes()) -> str:
    """Makes a data set of FiftyOne named as the folder: a sample per image with labels and heat maps.

    Pictures that have no file of their own, as those of archives, are written into the folder.
    """
    library = _library("fiftyone")
    pictures, dataset, count = RunPictures.of(records.manifest, wishes.data), library.Dataset(out.name), 0
    dataset.persistent = True
    for rows in _images_of(records):
        picture = pictures.find(rows[0]["image"], rows[0]["sha256"])
        if picture is None:
            continue
        file = picture.file or save_image(picture.sample.image, _picture_file(out, rows[0]["image"], count))
        sample = library.Sample(filepath=str(file.resolve()))
        first = rows[0]
        if first["true_label"] is not None:
            sample["ground_truth"] = library.Classification(label=first["true_label"])
        if first["decision"] is not None:
            sample["decision"] = library.Classification(label=first["decision"], confidence=first["probability"])
        seen, frame = seen_of(pictures.preprocess, (picture.sample.image.height, picture.sample.image.width))
        for result in explanations_of(rows, records.manifest):
            for place, heat in enumerate(to_fiftyone(_on_whole(with_picture(result, seen), frame))):
                sample[f"{result.method}_{place}" if place else result.method] = heat
        dataset.add_sample(sample)
        count += 1
    return " ".join([f"{count} samples in FiftyOne's data set {out.name}.", *pictures.notes])


def _on_whole(result: Explanation, frame: Frame) -> Explanation:
    """Returns maps that lie on the whole picture, with zeros where the model did not see it."""
    seen = result.picture(0)
    if frame.whole in (None, (seen.height, seen.width)):
        return result
    assert frame.whole is not None
    share = min(1.0, _SIDE / max(frame.whole))
    left, top = round(frame.corner[0] * share), round(frame.corner[1] * share)
    right, bottom = round((frame.corner[0] + seen.width) * share), round((frame.corner[1] + seen.height) * share)
    tall, wide = max(bottom, round(frame.whole[0] * share)), max(right, round(frame.whole[1] * share))
    whole = torch.zeros(len(result), tall, wide)
    whole[:, top:bottom, left:right] = result.at((bottom - top, right - left))
    values = {"signed": whole, "images": (Image.new("RGB", (wide, tall)),), "regions": None, "boxes": None}
    return Explanation(**{**vars(result), **values})


def _picture_file(folder: Path, name: str, number: int) -> Path:
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(name).stem)[:80]
    return folder / f"{number:06d}-{stem}.png"


# --- trackers ---------------------------------------------------------------------------------------------------------


def _export_to_tracker(name: str, records: Records, out: Path, wishes: Wishes) -> str:
    """Sends the run's numbers, and the most suspicious images with their maps drawn over them, to a tracker."""
    with opened(records.files, records.receipts) as database:
        summary = Summary.of(records, database)
        rows = rows_of_images(database, most_suspicious(database, wishes.pictures))
    tracker = tracker_of(name, out, {k: v for k, v in plain(dict(records.manifest)).items() if not isinstance(v, dict)})
    pictures, count = RunPictures.of(records.manifest, wishes.data), 0
    try:
        tracker.log(summary.numbers(), 0)
        assert isinstance(tracker, PictureTracker)
        for place, of_image in enumerate(rows):
            picture = pictures.find(of_image[0]["image"], of_image[0]["sha256"])
            if picture is None:
                continue
            view = pictures.view(picture.sample.image)
            for result in explanations_of(of_image, records.manifest):
                shown = with_picture(result, view)
                tracker.log_pictures({f"{place:03d} {of_image[0]['image']}/{result.method}": shown.overlay(0)}, 0)
                count += 1
    finally:
        tracker.close()
    return " ".join([f"{len(summary.numbers())} numbers and {count} pictures to {name}: {out}.", *pictures.notes])


def _tracker_export(name: str) -> Export:
    def send(records: Records, out: Path, wishes: Wishes = Wishes()) -> str:
        return _export_to_tracker(name, records, out, wishes)

    return send


EXPORTS |= {"coco": export_coco, "numpy": export_numpy, "fiftyone": export_fiftyone}
EXPORTS |= {name: _tracker_export(name) for name in TRACKERS}


# --- parts ------------------------------------------------------------------------------------------------------------


def _images_of(records: Records) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of one image after the other."""
    for _, rows in groupby(records.rows(), lambda row: (row["image"], row["sha256"])):
        yield list(rows)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise KonkyoError(f"this export needs {name}, which is not installed: pip install {name}") from error
