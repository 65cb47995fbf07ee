"""`konkyo.run`: every image has its rows once, whatever happens meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.gates import IMAGES, drilled, gated
from konkyo.data.pieces import Piece
from konkyo.data.samples import Sample, samples
from konkyo.runs.deaths import Logbook
from konkyo.runs.manifest import MANIFEST
from konkyo.runs.shards import packed, shard_path, unpacked
from konkyo.utils.ledger import held

pa = pytest.importorskip("pyarrow")
COUNT, SHARD = 22, 5


class Net(nn.Module):
    """A small classifier of colours, deterministic."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def model_of(module: nn.Module) -> konkyo.Model:
    prepare = konkyo.Preprocess(resize=None, crop=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    return konkyo.Model(module.eval(), preprocess=prepare, classes=["red", "green", "blue"], name="net")


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return model_of(Net())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of two sizes in folders called like classes, and two files that are none."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k in range(COUNT):
        side = 24 if k % 3 else 32
        to = folder / ("red" if k % 2 else "others") / f"{k:03d}.png"
        to.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(to)
    (folder / "red" / "007.png").write_bytes(b"no picture")
    whole = (folder / "others" / "004.png").read_bytes()
    (folder / "others" / "004.png").write_bytes(whole[: len(whole) // 2])
    return folder


def explained(model: konkyo.Model, photos: Path, out: Path, **changes: object) -> konkyo.Records:
    settings = {"methods": ["grad_cam", "layer_cam"], "shard": SHARD, "batch": 2, "workers": 0} | changes
    return konkyo.run(model, photos, out, **settings)


@pytest.fixture(scope="module")
def undisturbed(model: konkyo.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    explained(model, photos, out)
    return out


def assert_same(one: Path, other: Path) -> None:
    """Every shard has the same bytes, every image its rows once, and nothing else lies there."""
    assert sorted(p.name for p in (one / "shards").iterdir()) == sorted(p.name for p in (other / "shards").iterdir())
    for path in sorted((one / "shards").glob("*.parquet")):
        assert path.read_bytes() == (other / "shards" / path.name).read_bytes(), path.name
    keys = [(row["image"], row["method"], row["row"]) for row in konkyo.Records.open(other, verify=True)]
    assert len(set(keys)) == len(keys)
    assert len({image for image, _, _ in keys}) == COUNT


# --- what is in a shard -----------------------------------------------------------------------------------------------


def test_rows_are_what_explain_gives_of_each_image_alone(model: konkyo.Model, photos: Path, undisturbed: Path) -> None:
    records = konkyo.Records.open(undisturbed)
    assert (records.images, records.errors, records.complete) == (COUNT, 2, True)
    assert len(records) == 2 * (COUNT - 2) + 2
    for result in records.explanations():
        alone = konkyo.explain(model, str(photos / result.names[0]), method=result.method)
        bound = float(alone.signed.abs().amax()) * 2**-10
        assert torch.allclose(result.signed, alone.signed, atol=bound, rtol=0)
        assert result.labels == alone.labels
        assert result.targets == alone.targets
        assert result.layer == alone.layer
        assert result.rectified == alone.rectified
        assert [d.kind for d in result.diagnosis] == [d.kind for d in alone.diagnosis]
        assert torch.allclose(result.scores, alone.scores, atol=1e-5)
        (of_run,), (of_alone,) = result.decisions, alone.decisions
        assert (of_run.label, of_run.rank) == (of_alone.label, of_alone.rank)
        assert of_run.probability == pytest.approx(of_alone.probability, abs=1e-6)


def test_true_labels_are_folders_that_are_called_like_classes(undisturbed: Path) -> None:
    rows = [row for row in konkyo.Records.open(undisturbed) if row["error"] is None]
    assert {row["true_label"] for row in rows if row["image"].startswith("red/")} == {"red"}
    assert all(row["correct"] == (row["decision"] == "red") for row in rows if row["true_label"] == "red")
    assert all(row["correct"] is None for row in rows if row["image"].startswith("others/"))


def test_an_image_that_cannot_be_read_is_a_row_with_its_error(undisturbed: Path) -> None:
    failed = [row for row in konkyo.Records.open(undisturbed) if row["error"] is not None]
    assert [row["image"] for row in failed] == ["others/004.png", "red/007.png"]
    assert "cut short" in failed[0]["error"]
    assert "is not an image" in failed[1]["error"]
    assert all(row["map"] is None and row["method"] is None for row in failed)


def test_the_hash_is_of_the_pixels(undisturbed: Path, photos: Path) -> None:
    import hashlib

    rows = [row for row in konkyo.Records.open(undisturbed) if row["error"] is None]
    for row in rows[::7]:
        pixels = np.asarray(Image.open(photos / row["image"]).convert("RGB"))
        assert row["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert (row["height"], row["width"]) == pixels.shape[:2]


def test_maps_of_tiny_gradients_do_not_become_zero() -> None:
    map_ = np.array([[3e-11, -1e-11], [0.0, 2e-12]], dtype=np.float32)
    data, shape, scale = packed(map_)
    assert np.allclose(unpacked(data, shape, scale), map_, rtol=1e-3, atol=0)
    data, shape, scale = packed(map_ * np.float32(1e20))  # nor does what is beyond 65504 become infinite
    assert np.isfinite(unpacked(data, shape, scale)).all()
    assert unpacked(*packed(np.zeros((2, 2), np.float32))).sum() == 0
    assert np.isnan(unpacked(*packed(np.array([[np.nan, 1]], np.float32)))).tolist() == [[True, False]]


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_are_the_same_for_any_number_of_reading_processes(
    model: konkyo.Model, photos: Path, undisturbed: Path, tmp_path: Path, workers: int
) -> None:
    explained(model, photos, tmp_path / "run", workers=workers)
    assert_same(undisturbed, tmp_path / "run")


def test_metrics_are_those_of_evaluate(tmp_path: Path) -> None:
    columns = ["deletion(steps=5)", "ebpg@mask"]
    model = konkyo.load("konkyo/scenes-classifier")
    rows = list(konkyo.run(model, "scenes:3,objects=1", tmp_path, methods=["grad_cam"], metrics=columns, workers=0))
    measured = konkyo.evaluate(model, "scenes:3,objects=1", ["grad_cam"], columns)
    for name in columns:
        expected = measured.values("grad_cam", name)
        assert not expected.isnan().any()
        assert [row[name] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)


def test_measured_rows_know_what_is_true_as_others_do(tmp_path: Path) -> None:
    model, data = konkyo.load("konkyo/scenes-classifier"), "scenes:3,objects=1"
    plain = konkyo.run(model, data, tmp_path / "plain", methods=["grad_cam"], workers=0)
    measured = konkyo.run(model, data, tmp_path / "measured", methods=["grad_cam"], metrics=["compactness"], workers=0)
    assert [row["correct"] for row in measured] == [row["correct"] for row in plain]
    assert None not in [row["correct"] for row in measured]


def test_a_metric_without_truth_is_told(model: konkyo.Model, photos: Path, tmp_path: Path) -> None:
    records = explained(model, photos / "red", tmp_path / "run", methods=["grad_cam"], metrics=["ebpg@box"], batch=1)
    assert f"ebpg@box could not be measured of {COUNT // 2 - 1} of {COUNT // 2 - 1} maps" in records.summary()


def test_a_folder_of_other_files_is_refused(model: konkyo.Model, photos: Path) -> None:
    before = sorted(photos.iterdir())
    with pytest.raises(konkyo.KonkyoError, match="holds other files"):
        explained(model, photos, photos)
    assert sorted(photos.iterdir()) == before


def test_a_detector_has_a_row_per_detection_or_one_that_says_nothing(tmp_path: Path) -> None:
    model = konkyo.load("konkyo/scenes-detr")
    blank = Sample("blank", Image.new("RGB", (64, 64)))
    data = [samples("scenes:1")[0], blank]
    rows = list(konkyo.run(model, data, tmp_path, workers=0))
    alone = konkyo.explain(model, data[0], method="odam")
    of_scene = [row for row in rows if row["image"] != "blank"]
    assert [row["label"] for row in of_scene] == list(alone.labels)
    assert torch.allclose(torch.tensor([row["box"] for row in of_scene]), alone.boxes, atol=1e-3)
    (nothing,) = [row for row in rows if row["image"] == "blank"]
    assert nothing["diagnosis"] == "nothing"
    assert nothing["map"] is None
    assert nothing["error"] is None


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_what_is_missing_alone(
    model: konkyo.Model, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    explained(model, photos, out)
    before = {p.name: p.stat().st_mtime_ns for p in (out / "shards").iterdir()}
    shard_path(out, 2).unlink()
    shard_path(out, 2).with_suffix(".json").unlink()
    states = []
    explained(model, photos, out, progress=states.append)
    after = {p.name: p.stat().st_mtime_ns for p in (out / "shards").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"shard-000002.json", "shard-000002.parquet"}
    assert [(state.images, state.shards) for state in states] == [(COUNT, 5)]
    assert_same(undisturbed, out)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "said"), [(_cut, "bytes, and had"), (_flip, "holds other bytes"), (Path.unlink, "is missing")]
)
def test_a_damaged_shard_is_found_and_made_again(
    model: konkyo.Model, photos: Path, undisturbed: Path, tmp_path: Path, damage: object, said: str
) -> None:
    out = tmp_path / "run"
    explained(model, photos, out)
    damage(shard_path(out, 1))  # type: ignore[operator]
    with pytest.warns(konkyo.KonkyoWarning, match=f"{said}.*made again"):
        explained(model, photos, out)
    assert_same(undisturbed, out)


def test_a_damaged_receipt_is_found_and_made_again(
    model: konkyo.Model, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    explained(model, photos, out)
    _cut(shard_path(out, 3).with_suffix(".json"))
    with pytest.warns(konkyo.KonkyoWarning, match="made again"):
        explained(model, photos, out)
    assert_same(undisturbed, out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["grad_cam"]}, "methods"),
        ({"seed": 1}, "seed"),
        ({"shard": 6}, "data.shard_size"),
        ({"batch": 3}, "batch"),
        ({"target": 1}, "target"),
    ],
)
def test_a_run_with_other_settings_is_refused(
    model: konkyo.Model, photos: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    out = tmp_path / "run"
    explained(model, photos, out)
    with pytest.raises(konkyo.KonkyoError, match=f"other .*{said} "):
        explained(model, photos, out, **changes)


def test_other_weights_and_other_data_are_refused(model: konkyo.Model, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    explained(model, photos, out)
    changed = Net()
    with torch.no_grad():
        changed.head.bias += 1
    with pytest.raises(konkyo.KonkyoError, match="weights"):
        explained(model_of(changed), photos, out)
    with pytest.raises(konkyo.KonkyoError, match=r"data\.images .*data\.listing"):
        explained(model, photos / "red", out)


def test_settings_may_change_as_long_as_nothing_was_finished(model: konkyo.Model, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(konkyo.NotApplicable, match="attention_rollout"):
        explained(model, photos, tmp_path / "run", methods=["grad_cam", "attention_rollout"])
    assert not (tmp_path / "run" / "shards").exists()
    assert explained(model, photos, tmp_path / "run").complete


def test_automatic_batches_are_kept_when_a_run_goes_on(model: konkyo.Model, photos: Path, tmp_path: Path) -> None:
    first = explained(model, photos, tmp_path / "run", batch="auto")
    assert 1 <= first.manifest["batch"] <= 16
    assert first.manifest["batch"] == explained(model, photos, tmp_path / "run", batch="auto").manifest["batch"]


def test_few_images_are_divided_among_those_that_read_and_stay_so(model: konkyo.Model, tmp_path: Path) -> None:
    """The size of shards follows the first run's number of readers, and not that of the one that goes on."""
    data, out = samples("scenes:70,size=64,objects=1"), tmp_path / "run"
    assert len(konkyo.run(model, data, out, batch=8, workers=2).receipts) == 3
    before = shard_path(out, 1).read_bytes()
    shard_path(out, 1).unlink()
    with pytest.warns(konkyo.KonkyoWarning, match="missing"):
        records = konkyo.run(model, data, out, batch=8, workers=0)
    assert [receipt.images for receipt in records.receipts] == [32, 32, 6]
    assert shard_path(out, 1).read_bytes() == before
    alone = konkyo.run(model, data, tmp_path / "alone", batch=8, workers=0)
    assert [receipt.images for receipt in alone.receipts] == [70]


def test_the_number_of_threads_is_noted_and_may_change(model: konkyo.Model, tmp_path: Path) -> None:
    data, threads = samples("scenes:4,size=64,objects=1"), torch.get_num_threads()
    konkyo.run(model, data, tmp_path, shard=2, batch=2, workers=0)
    shard_path(tmp_path, 1).with_suffix(".json").unlink()
    try:
        torch.set_num_threads(threads + 1)
        records = konkyo.run(model, data, tmp_path, shard=2, batch=2, workers=0)
    finally:
        torch.set_num_threads(threads)
    assert records.complete
    assert records.manifest["threads"] == threads


def test_errors_are_tried_again_when_asked(model: konkyo.Model, tmp_path: Path) -> None:
    folder, rng = tmp_path / "photos", np.random.default_rng(1)
    folder.mkdir()
    for k in range(4):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[:40])
    assert explained(model, folder, tmp_path / "run", shard=2).errors == 1
    (folder / "3.png").write_bytes(whole)
    before = shard_path(tmp_path / "run", 0).stat().st_mtime_ns
    with pytest.raises(konkyo.KonkyoError, match=r"data\.listing"):
        explained(model, folder, tmp_path / "run", shard=2)
    for retry_errors in (True, False):
        assert explained(model, folder, tmp_path / "run", shard=2, retry_errors=retry_errors).errors == 0
    assert shard_path(tmp_path / "run", 0).stat().st_mtime_ns == before
    explained(model, folder, tmp_path / "fresh", shard=2)
    assert shard_path(tmp_path / "run", 1).read_bytes() == shard_path(tmp_path / "fresh", 1).read_bytes()


def test_trying_errors_again_never_makes_it_worse(model: konkyo.Model, tmp_path: Path) -> None:
    folder, rng = tmp_path / "photos", np.random.default_rng(1)
    folder.mkdir()
    for k in range(4):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(bytes(len(whole)))
    explained(model, folder, tmp_path / "run", shard=4)
    before = shard_path(tmp_path / "run", 0).read_bytes()
    pictures = {path: path.read_bytes() for path in folder.iterdir()}
    for path in pictures:  # the store is away
        path.write_bytes(bytes(path.stat().st_size))
    assert explained(model, folder, tmp_path / "run", shard=4, retry_errors=True).errors == 1
    assert shard_path(tmp_path / "run", 0).read_bytes() == before
    for path, data in pictures.items():
        path.write_bytes(data)
    (folder / "3.png").write_bytes(whole)
    assert explained(model, folder, tmp_path / "run", shard=4, retry_errors=True).errors == 0


class Odd(torch.utils.data.Dataset):
    """Samples of which one raises an error of its own kind, which nobody expects."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sample:
        if index == self.bad and self.spoilt:
            raise ZeroDivisionError("odd")
        return Sample(f"s{index}", Image.new("RGB", (24, 24), (40 * index, 90, 30)))

    bad, spoilt = 2, False


@pytest.mark.parametrize("workers", [0, 1])
def test_any_error_of_a_sample_is_a_row(model: konkyo.Model, tmp_path: Path, workers: int) -> None:
    data = Odd()
    listed = samples(data)
    data.spoilt = True
    rows = list(explained(model, listed, tmp_path / "run", methods=["grad_cam"], workers=workers))
    assert {row["image"]: row["error"] for row in rows} == {
        "s0": None, "s1": None, "s2": "ZeroDivisionError: odd", "s3": None, "s4": None
    }  # fmt: skip


class Picky(Net):
    """It fails on images that are dark all over."""

    def forward(self, images: Tensor) -> Tensor:
        if (images.amax((1, 2, 3)) < -0.9).any():
            raise ValueError("too dark")
        return super().forward(images)


@pytest.mark.parametrize("place", [0, 2])
def test_an_image_on_which_the_network_fails_is_a_row_wherever_it_stands(tmp_path: Path, place: int) -> None:
    colours = [(90, 10, 200), (10, 200, 30), (220, 90, 30)]
    colours.insert(place, (0, 0, 0))
    data = [Sample(f"s{k}", Image.new("RGB", (24, 24), colour)) for k, colour in enumerate(colours)]
    rows = list(konkyo.run(model_of(Picky()), data, tmp_path / "run", methods=["grad_cam"], workers=0))
    assert len(rows) == 4
    assert [row["image"] for row in rows if row["error"] is not None] == [f"s{place}"]
    assert "too dark" in rows[place]["error"]


def test_modules_of_one_look_are_told_apart_in_the_manifest(tmp_path: Path, photos: Path) -> None:
    net = Net()
    first, second = net.features[1], net.features[3]
    explained(model_of(net), photos, tmp_path / "run", layer=first)
    with pytest.raises(konkyo.KonkyoError, match=r"layer \(features\.1 there, features\.3 now\)"):
        explained(model_of(net), photos, tmp_path / "run", layer=second)
    explained(model_of(net), photos, tmp_path / "run", layer="features.1")


def test_shards_without_a_manifest_are_not_adopted(model: konkyo.Model, photos: Path, tmp_path: Path) -> None:
    explained(model, photos, tmp_path / "run")
    (tmp_path / "run" / MANIFEST).unlink()
    with pytest.raises(konkyo.KonkyoError, match=r"holds shards and no run\.json"):
        explained(model, photos, tmp_path / "run", methods=["layer_cam"])


def test_a_store_is_no_folder(model: konkyo.Model, photos: Path) -> None:
    with pytest.raises(konkyo.KonkyoError, match=r"a folder on a disk.*s3://bucket/run"):
        explained(model, photos, "s3://bucket/run")  # type: ignore[arg-type]


def test_progress_of_an_empty_archive(model: konkyo.Model, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    states = []
    records = konkyo.run(model, f"tar:{tmp_path}/empty.tar", tmp_path / "run", workers=0, progress=states.append)
    assert records.complete
    assert [(state.images, state.rate, state.left) for state in states] == [(0, 0, None)]


def test_what_a_killed_process_left_half_written_goes(model: konkyo.Model, photos: Path, tmp_path: Path) -> None:
    explained(model, photos, tmp_path / "run")
    leftover = tmp_path / "run" / "shards" / ".shard-000001.parquet.12-34.parquet"
    leftover.write_bytes(b"PAR1")
    explained(model, photos, tmp_path / "run")
    assert not leftover.exists()


def test_a_name_that_is_no_text_is_written_all_the_same(model: konkyo.Model, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (24, 24), "red").save(folder / "whole.png")
    (folder / os.fsdecode(b"odd\xff.png")).write_bytes((folder / "whole.png").read_bytes())
    (folder / os.fsdecode(b"bad\xff.png")).write_bytes(b"no picture")
    rows = list(explained(model, folder, tmp_path / "run", methods=["grad_cam"]))
    assert [row["image"] for row in rows] == ["bad\\xff.png", "odd\\xff.png", "whole.png"]
    assert [row["error"] is None for row in rows] == [False, True, True]


def test_a_part_that_cannot_be_opened_is_told_when_the_others_are_done(model: konkyo.Model, tmp_path: Path) -> None:
    import io
    import tarfile

    for k in range(3):
        with tarfile.open(tmp_path / f"part-{k}.tar", "w") as archive:
            data = io.BytesIO()
            Image.new("RGB", (24, 24), ("red", "green", "blue")[k]).save(data, "PNG")
            member = tarfile.TarInfo(f"{k}.png")
            member.size = len(data.getvalue())
            archive.addfile(member, io.BytesIO(data.getvalue()))

    class Hiding(Net):
        def forward(self, images: Tensor) -> Tensor:
            if (tmp_path / "part-1.tar").exists():
                (tmp_path / "part-1.tar").replace(tmp_path / "hidden")
            return super().forward(images)

    with pytest.raises(konkyo.KonkyoError, match=r"part of the data is missing.*part-1\.tar"):
        konkyo.run(model_of(Hiding()), f"tar:{tmp_path}/part-{{0..2}}.tar", tmp_path / "run", batch=1, workers=0)
    assert konkyo.Records.open(tmp_path / "run").images == 2
    (tmp_path / "hidden").replace(tmp_path / "part-1.tar")
    records = konkyo.run(model, f"tar:{tmp_path}/part-{{0..2}}.tar", tmp_path / "run", batch=1, workers=0)
    assert records.images == 3


# --- nothing is lost --------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(model: konkyo.Model, photos: Path, tmp_path: Path) -> None:
    with held(tmp_path / "run" / MANIFEST), pytest.raises(konkyo.KonkyoError, match="another run is writing"):
        explained(model, photos, tmp_path / "run")


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_done(
    model: konkyo.Model, photos: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, calls = tmp_path / "run", pa.parquet.write_table, []

    def full(table: object, path: Path, **options: object) -> None:
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"PAR1")
            raise OSError(28, "No space left on device")
        write(table, path, **options)

    monkeypatch.setattr(pa.parquet, "write_table", full)
    with pytest.raises(konkyo.KonkyoError, match="No space left on device"):
        explained(model, photos, out)
    assert [p.name for p in sorted((out / "shards").iterdir())] == [
        f"shard-00000{k}.{suffix}" for k in range(2) for suffix in ("json", "parquet")
    ]
    explained(model, photos, out)
    assert_same(undisturbed, out)


class Murderous(Net):
    """It kills a process that reads, at the first forwards of a shard's images."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, images: Tensor) -> Tensor:
        if (children := multiprocessing.active_children()) and self.times:
            self.times -= 1
            for child in children:
                os.kill(child.pid, signal.SIGKILL)
                child.join()
        return super().forward(images)


def test_a_killed_reading_process_is_replaced(
    model: konkyo.Model, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    murderous = Murderous(times=2)
    explained(model_of(murderous), photos, tmp_path / "run", workers=2)
    assert murderous.times == 0
    assert_same(undisturbed, tmp_path / "run")


def test_reading_processes_that_always_die_are_reported(model: konkyo.Model, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(konkyo.KonkyoError, match=r"a part of the data is missing.*died 3 times"):
        explained(model_of(Murderous(times=1000)), photos, tmp_path / "run", workers=1, shard=1000)
    assert explained(model, photos, tmp_path / "run", shard=1000).complete


def test_a_picture_that_kills_its_reader_is_a_row_with_its_error(tmp_path: Path) -> None:
    model, _ = gated(tmp_path / "gate")
    (tmp_path / "bad").touch()
    data = drilled(tmp_path, deadly=1)
    out = tmp_path / "run"
    records = konkyo.run(model, data, out, shard=4, batch=2, workers=2)
    assert (records.images, records.errors, len(records), records.complete) == (IMAGES, 1, IMAGES, True)
    (row,) = (row for row in records.rows() if row["error"] is not None)
    assert row["image"] == data.names[1]
    assert "died 2 times over it" in row["error"]
    assert not list((out / "shards").glob(".*"))

    (tmp_path / "bad").unlink()
    konkyo.run(model, data, out, shard=4, batch=2, workers=2, retry_errors=True)
    konkyo.run(model, data, tmp_path / "undisturbed", shard=4, batch=2, workers=0)
    for path in sorted((out / "shards").glob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "undisturbed" / "shards" / path.name).read_bytes()


def test_a_death_is_of_the_picture_that_was_being_read(tmp_path: Path) -> None:
    logbook, data = Logbook.of(tmp_path, 3), samples("scenes:4,size=64")
    piece = Piece(3, "0-3", 0, lambda: data)
    assert logbook.deaths() == {}
    logbook.piece(piece).watch(2)
    assert logbook.deaths() == {2: 1}
    again = logbook.piece(piece)
    assert [sample.name for sample in again.open()] == list(data.names)  # one death is no proof
    again.watch(2)
    again.watch(None)  # it was read after all
    assert logbook.deaths() == {2: 1}
    again.watch(2)
    last = logbook.piece(piece).open()
    assert last[1].name == data.names[1]
    with pytest.raises(konkyo.KonkyoError, match="died 2 times"):
        last[2]
    logbook.close()
    assert logbook.deaths() == {}
    logbook.path.write_text("torn")
    assert logbook.deaths() == {}


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import konkyo
from runs.test_run import Net, explained, model_of

class Waiting(Net):
    calls = 0
    def forward(self, images):
        Waiting.calls += 1
        if Waiting.calls == 16:
            Path({reached!r}).touch()
            time.sleep(600)
        return super().forward(images)

explained(model_of(Waiting()), Path({photos!r}), Path({out!r}), workers=1)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on(
    model: konkyo.Model, photos: Path, undisturbed: Path, tmp_path: Path, how: signal.Signals
) -> None:
    out, reached = tmp_path / "run", tmp_path / "reached"
    tests = str(Path(__file__).parents[1])
    script = SCRIPT.format(tests=tests, reached=str(reached), photos=str(photos), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    while not reached.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(how)
    try:
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()  # in case that it has not ended
    assert process.returncode != 0
    finished = len(list((out / "shards").glob("*.json")))
    assert 0 < finished < 5, errors
    explained(model, photos, out)
    assert not list((out / "shards").glob(".*"))
    assert_same(undisturbed, out)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_tells_what_is_there(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from konkyo.apps.cli.main import app

    arguments = ["run", "--data", "scenes:6,objects=1,size=64", "--out", str(tmp_path / "run"), "--shard", "4"]
    arguments += ["--workers", "0", "--json"]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert (said["images"], said["rows"], said["shards"], said["complete"]) == (6, 6, 2, True)
    assert said["manifest"]["methods"] == ["grad_cam"]


def test_the_command_ends_with_3_where_images_could_not_be_used(tmp_path: Path, photos: Path) -> None:
    from typer.testing import CliRunner

    from konkyo.apps.cli.main import app

    arguments = ["run", str(photos / "red"), "--out", str(tmp_path / "run"), "--workers", "0"]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 3, ran.output
    assert "1 images could not be used, the first: 007.png" in ran.stdout
