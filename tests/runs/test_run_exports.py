"""The records of a run in other tools' forms, beside what `Explanation` itself exports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.commands import runner, told
from helpers.folders_of_runs import divided, many_rows, map_row, nothing_row, run_folder
from konkyo.data.pieces import pieces_of
from konkyo.errors import KonkyoError
from konkyo.models import Preprocess
from konkyo.runs.exports import Wishes, export
from konkyo.runs.pictures import digest_of_pixels, with_picture
from konkyo.runs.records import Records

CROP = Preprocess(resize=20, crop=16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures 60 wide and 40 high."""
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{k}.png")
    return tmp_path / "photos"


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Path:
    rows = []
    for sample in pieces_of(photos).parts[0].open():
        known = {"sha256": digest_of_pixels(sample.image), "true_label": "cat", "correct": True}
        rows += [map_row(sample.name, seed=len(rows), method=m, **known) for m in ("grad_cam", "layer_cam")]
    rows.append(nothing_row("gone.png"))
    return run_folder(tmp_path / "run", divided(rows, 2), source=str(photos), preprocess=repr(CROP))


def test_coco_is_that_of_the_explanations_in_pixels_of_the_whole_picture(run: Path, tmp_path: Path) -> None:
    export(run, "coco", tmp_path / "maps.json", Wishes(threshold=0.4))
    coco = json.loads((tmp_path / "maps.json").read_text(encoding="utf-8"))
    assert [(image["id"], image["file_name"]) for image in coco["images"]] == [
        *((k + 1, f"{k}.png") for k in range(4)),
        (5, "gone.png"),
    ]
    assert {(image["width"], image["height"]) for image in coco["images"]} == {(60, 40)}
    assert [category["name"] for category in coco["categories"]] == ["cat", "dog", "boat"]
    view = CROP.view(Image.new("RGB", (60, 40)))
    left, top = CROP.frame(Image.new("RGB", (60, 40))).corner
    assert view.size != (60, 40)
    notes = coco["annotations"]
    results = list(Records.open(run).explanations())
    assert len(notes) == len(results) == 8
    for k, (note, result) in enumerate(zip(notes, results, strict=True)):
        (alone,) = with_picture(result, view).to_coco(threshold=0.4)["annotations"]
        assert note["id"] == k + 1
        assert (note["image_id"], note["category_id"], note["method"]) == (k // 2 + 1, 1, result.method)
        assert note["bbox"] == pytest.approx([alone["bbox"][0] + left, alone["bbox"][1] + top, *alone["bbox"][2:]])
        expected = np.zeros((40, 60), bool)
        expected[top : top + view.height, left : left + view.width] = mask_of(alone)
        assert np.array_equal(mask_of(note), expected)
        assert note["area"] == alone["area"] > 0


def mask_of(note: dict[str, Any]) -> Any:
    """COCO's run lengths, read by their definition."""
    tall, wide = note["segmentation"]["size"]
    values = [k % 2 for k, run in enumerate(note["segmentation"]["counts"]) for _ in range(run)]
    return np.array(values, bool).reshape(wide, tall).T


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_can_be_read_by_its_own_library(tmp_path: Path) -> None:
    library = pytest.importorskip("pycocotools.coco")
    run = run_folder(tmp_path / "run", divided(many_rows(20), 6))
    export(run, "coco", tmp_path / "maps.json")
    coco = library.COCO(str(tmp_path / "maps.json"))
    assert len(coco.getImgIds()) == 20
    known = [row for row in Records.open(run).rows() if row["map"] is not None]
    assert len(coco.getAnnIds()) == len(known)
    first = coco.loadAnns(coco.getAnnIds())[0]
    assert coco.annToMask(first).sum() == first["area"]


def test_numpy_has_every_map_and_every_row(tmp_path: Path) -> None:
    other = map_row("wide", seed=9)
    other |= {"map": np.arange(6, dtype="<f2").tobytes(), "shape": [2, 3], "scale": 2.0}
    run = run_folder(tmp_path / "run", [*divided(many_rows(20), 6), [map_row("square"), other]])
    export(run, "numpy", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    rows = list(Records.open(run).rows())
    assert [line["image"] for line in lines] == [row["image"] for row in rows]
    maps = [np.asarray(r.maps[0]) for r in Records.open(run).explanations()]
    with_maps = [line for line in lines if "file" in line]
    assert len(with_maps) == len(maps)
    for line, map_ in zip(with_maps, maps, strict=True):
        with np.load(tmp_path / "out" / line["file"], allow_pickle=False) as archive:
            found = archive[line["array"]][line["index"]]
        assert found.dtype == np.float32
        assert np.array_equal(found, map_)
    assert with_maps[-1]["array"] == "2x3"
    assert [line["score"] for line in lines] == [row["score"] for row in rows]


def test_fiftyone_gets_a_sample_per_picture(run: Path, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    stub, samples = ModuleType("fiftyone"), list[Any]()
    stub.Dataset = lambda name: SimpleNamespace(name=name, add_sample=samples.append)  # type: ignore[attr-defined]
    stub.Sample = lambda **values: dict(values)  # type: ignore[attr-defined]
    stub.Classification = lambda **values: values  # type: ignore[attr-defined]
    stub.Heatmap = lambda **values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fiftyone", stub)
    said = export(run, "fiftyone", tmp_path / "maps")
    assert [sample["filepath"] for sample in samples] == [str(photos / f"{k}.png") for k in range(4)]
    assert samples[0]["ground_truth"] == {"label": "cat"}
    assert samples[0]["decision"] == {"label": "cat", "confidence": 0.75}
    heat = samples[0]["layer_cam"]
    assert heat["map"].shape == (40, 60)
    left, top = CROP.frame(Image.new("RGB", (60, 40))).corner
    assert heat["map"][:top].max(initial=0) == heat["map"][:, :left].max() == 0
    assert heat["map"][top:, left:].max() > 0
    assert "4 samples" in said
    assert "1 pictures are not shown, for they cannot be read: gone.png" in said


def test_trackers_get_numbers_and_the_most_suspicious_pictures(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("duckdb")
    calls, stub = list[Any](), ModuleType("mlflow")
    stub.start_run = lambda **_: SimpleNamespace(info=SimpleNamespace(run_id="r1"))  # type: ignore[attr-defined]
    stub.log_params = calls.append  # type: ignore[attr-defined]
    stub.log_metrics = lambda numbers, step: calls.append((step, numbers))  # type: ignore[attr-defined]
    stub.log_image = lambda picture, file: calls.append((file, picture.size))  # type: ignore[attr-defined]
    stub.end_run = lambda: calls.append("end")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    said = export(run, "mlflow", tmp_path / "out", Wishes(pictures=2))
    settings, (step, numbers), *pictures, end = calls
    assert settings["model"] == "toy"
    assert (step, end) == (0, "end")
    assert numbers["images"] == 5
    assert numbers["accuracy"] == 1
    assert numbers["share of ok maps/grad_cam"] == 1
    view = CROP.view(Image.new("RGB", (60, 40)))  # the first of the two has no picture any more
    assert pictures == [(f"step-000000/001_0.png/{m}.png", view.size) for m in ("grad_cam", "layer_cam")]
    assert "2 pictures to mlflow" in said


def test_what_cannot_be_exported_is_told(run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    with pytest.raises(KonkyoError, match=r"unknown form of export 'cocoa'.*did you mean 'coco'"):
        export(run, "cocoa", tmp_path / "x")
    with pytest.raises(KonkyoError, match="no finished shard yet"):
        export(run_folder(tmp_path / "empty", [], expected=2), "coco", tmp_path / "x.json")
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(KonkyoError, match="needs fiftyone"):
        export(run, "fiftyone", tmp_path / "x")
    konkyo = runner("", "none", tmp_path, monkeypatch, capsys)
    assert konkyo("export", run, "--to", "numpy", "--out", "arrays").code == 0
    assert (tmp_path / "arrays" / "maps-000000.npz").is_file()
    told(konkyo("export", run, "--to", "coco", "--out", "x.json", "--threshold", 2), "threshold of masks lies in")
    assert not (tmp_path / "x.json").exists()
