"""Explanation: what is in it, and that files give it back as it was or say why they cannot."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import konkyo
import konkyo.explanation
from helpers.bombs import Bomb
from helpers.networks import SmallResNet, images, seeded
from konkyo.targets.classes import ContrastTarget

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
FORMATS = ["npz", "safetensors"]


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    network = seeded(SmallResNet(), double=False)
    return konkyo.Model(network, konkyo.Preprocess(40, 32), ("cat", "dog", "fox", "owl", "bee"), "small")


@pytest.fixture(scope="module")
def result(model: konkyo.Model) -> konkyo.Explanation:
    return konkyo.explain(model, images(3, double=False), target=konkyo.TopK(2), seed=5)


def made(maps: Tensor, **more: Any) -> konkyo.Explanation:
    rows = len(maps)
    values = {
        "rectified": False,
        "scores": torch.zeros(rows),
        "image_index": torch.arange(rows),
        "targets": tuple(konkyo.ClassTarget(i) for i in range(rows)),
        "labels": tuple(map(str, range(rows))),
        "method": "by_hand",
        "layer": "none",
    }
    return konkyo.Explanation(signed=maps, **(values | more))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_are_images_in_order_each_with_its_targets_in_order(
    model: konkyo.Model, result: konkyo.Explanation
) -> None:
    assert len(result) == 6
    assert result.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    with torch.no_grad():
        scores, ranked = model(images(3, double=False)).topk(2)
    assert [t.index for t in result.targets] == ranked.flatten().tolist()
    assert result.labels == tuple(model.classes[i] for i in ranked.flatten().tolist())
    torch.testing.assert_close(result.scores, scores.flatten())
    assert (result.method, result.layer, result.model, result.seed) == ("grad_cam", "stage3", "small", 5)
    assert torch.equal(result.maps, result.signed.clamp(min=0))


def test_it_cannot_be_changed(result: konkyo.Explanation) -> None:
    with pytest.raises(AttributeError):
        result.method = "other"


# --- sizes and scales ------------------------------------------------------------------------------------------------


def test_at_keeps_cell_centres_in_place(result: konkyo.Explanation) -> None:
    large = result.at((4 * 3, 5 * 3))
    assert large.shape == (6, 12, 15)
    torch.testing.assert_close(large[:, 1::3, 1::3], result.maps)
    assert torch.equal(result.at((4, 5)), result.maps)


def test_unit_scales_every_map_on_its_own() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[-1.0, 0.0], [0.5, 1.0]]])
    expected = torch.tensor([[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.5], [0.75, 1.0]]])
    torch.testing.assert_close(made(maps).unit(), expected)
    large = made(maps).unit((8, 6))
    assert large.flatten(1).amin(1).tolist() == [0, 0]
    assert large.flatten(1).amax(1).tolist() == [1, 1]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e-30, 7e7])
@pytest.mark.parametrize("size", [None, (17, 23)])
def test_a_constant_map_becomes_zeros(value: float, size: tuple[int, int] | None) -> None:
    """Also after enlarging it, whose rounding errors must not be blown up to a pattern."""
    assert made(torch.full((2, 3, 3), value)).unit(size).abs().max() == 0


def test_what_is_not_finite_stays_visible() -> None:
    maps = torch.tensor([[[1.0, torch.nan], [2.0, 5.0]], [[1.0, 2.0], [2.0, 5.0]]])
    found = made(maps).unit()
    assert found[0].isnan().any()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("size", [(7,), (8, 8, 8), (0, 4), 7])
def test_a_size_of_the_wrong_form_is_named(result: konkyo.Explanation, size: Any) -> None:
    with pytest.raises(konkyo.KonkyoError, match="size"):
        result.at(size)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_of_a_prepared_tensor_are_its_colours(model: konkyo.Model) -> None:
    colours = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocess.mean, model.preprocess.std))
    found = konkyo.explain(model, (colours - mean) / std, target=konkyo.TopK(2))
    expected = (colours[1] * 255).round().byte().permute(1, 2, 0).numpy()
    for row in (2, 3, -1):
        pixels = np.asarray(found.picture(row)).astype(int)
        assert np.abs(pixels - expected).max() <= 1
        assert found.overlay(row).size == (40, 32)


def test_pictures_of_a_path_are_what_the_model_saw(model: konkyo.Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    found = konkyo.explain(model, tmp_path / "photo.png")
    # the short side of 80 becomes 40, of which the middle 32 x 32 are used: 64 x 64 of the photograph
    assert found.picture(0).size == (64, 64)
    assert np.array_equal(np.asarray(found.picture(0)), pixels[8:72, 18:82])
    assert found.overlay().size == (64, 64)


def test_a_row_that_does_not_exist(result: konkyo.Explanation) -> None:
    for row in (6, -7):
        with pytest.raises(konkyo.KonkyoError, match="6 rows"):
            result.overlay(row)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_loaded_one_needs_its_picture(result: konkyo.Explanation, tmp_path: Path, suffix: str) -> None:
    loaded = konkyo.Explanation.load(result.save(tmp_path / f"a.{suffix}"))
    with pytest.raises(konkyo.KonkyoError, match="image="):
        loaded.overlay(0)
    picture = result.picture(4)
    drawn = loaded.overlay(4, image=picture)
    assert np.array_equal(np.asarray(drawn), np.asarray(result.overlay(4)))
    assert not np.array_equal(np.asarray(drawn), np.asarray(picture))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_gives_back_what_was_saved(model: konkyo.Model, tmp_path: Path, suffix: str) -> None:
    def my_score(output: Tensor) -> Tensor:
        return output[:, 1] - output[:, 0]

    targets = konkyo.Each(
        "fox", konkyo.ClassTarget(1, "probability"), my_score, ContrastTarget(*map(konkyo.ClassTarget, (1, 2)))
    )
    saved = konkyo.explain(
        model,
        images(2, double=False),
        method="eigen_cam",
        target=targets,
        layer=["stage2", "stage3"],
        seed=3,
        centred=True,
    )
    path = saved.save(tmp_path / "new" / f"a.{suffix}")
    assert path == tmp_path / "new" / f"a.{suffix}"
    found = konkyo.Explanation.load(path)
    for name in ("signed", "scores", "image_index"):
        before, after = getattr(saved, name), getattr(found, name)
        assert after.dtype == before.dtype
        assert torch.equal(after, before)
    for name in ("method", "layer", "model", "seed", "labels", "diagnosis", "rectified", "boxes"):
        assert getattr(found, name) == getattr(saved, name), name
    assert found.layer == "stage2+stage3"
    assert dict(found.options) == {"centred": True, "fuse": "layer_cam"}
    assert found.targets[:2] == (konkyo.ClassTarget(2), konkyo.ClassTarget(1, "probability"))
    assert found.targets[2] == "my_score"
    assert isinstance(found.targets[3], str)
    assert len(found.targets) == 8
    assert torch.equal(found.maps, saved.maps)


@pytest.mark.parametrize("suffix", FORMATS)
def test_diagnoses_boxes_and_nan_are_kept(tmp_path: Path, suffix: str) -> None:
    maps = torch.tensor([[[1.0, torch.nan], [-torch.inf, 5.0]]])
    diagnosis = (konkyo.Diagnosis("not finite", 'a message: 漢字 "quoted"\nand more'),)
    saved = made(
        maps, diagnosis=diagnosis, boxes=torch.tensor([[1.0, 2.0, 3.0, 4.5]]), labels=("ねこ",), rectified=True
    )
    found = konkyo.Explanation.load(saved.save(tmp_path / f"a.{suffix}"))
    assert found.diagnosis == diagnosis
    assert found.labels == ("ねこ",)
    assert found.boxes is not None
    assert torch.equal(found.boxes, saved.boxes)
    torch.testing.assert_close(found.signed, maps, rtol=0, atol=0, equal_nan=True)
    assert found.maps[0, 1].tolist() == [0, 5]


def test_other_suffixes_are_refused(result: konkyo.Explanation, tmp_path: Path) -> None:
    for name in ("a.pt", "a", "a.npy", "a.safetensors.bak"):
        with pytest.raises(konkyo.KonkyoError, match=r"\.safetensors or \.npz"):
            result.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_save_leaves_the_old_file_and_no_other(
    result: konkyo.Explanation, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = result.save(tmp_path / f"a.{suffix}")
    before = path.read_bytes()

    def broken(*arguments: Any, **_more: Any) -> None:
        for argument in arguments:
            if isinstance(argument, Path):
                argument.write_bytes(b"half")
            elif isinstance(argument, io.IOBase):
                argument.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(konkyo.explanation.files, "save_file", broken)
    monkeypatch.setattr(np, "savez_compressed", broken)
    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(konkyo.KonkyoError, match="No space left"):
        result.save(path)
    assert path.read_bytes() == before
    with pytest.raises(konkyo.KonkyoError, match="No space left"):
        result.save(tmp_path / f"b.{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_place_that_cannot_be_written(result: konkyo.Explanation, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(konkyo.KonkyoError, match="cannot be written"):
        result.save(tmp_path / "file" / f"a.{suffix}")
    with pytest.raises(konkyo.KonkyoError, match="cannot be written"):
        result.save(tmp_path / f"{'x' * 240}.{suffix}")  # the name is too long for a file system


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_that_are_no_explanations(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    array = np.zeros((2, 2), np.float32)
    contents = [b"", b"hello", b"PK\x03\x04 and no more", pickle.dumps({"signed": array}), b"\x10" + b"\0" * 7 + b"{}"]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(konkyo.KonkyoError, match="no saved explanation"):
            konkyo.Explanation.load(path)
    with pytest.raises(konkyo.KonkyoError, match="no saved explanation"):
        konkyo.Explanation.load(tmp_path / f"missing.{suffix}")
    with pytest.raises(konkyo.KonkyoError, match="no saved explanation"):
        konkyo.Explanation.load(tmp_path)
    if suffix == "npz":  # foreign, but whole
        np.savez(path, signed=array)
    else:
        save_file({"signed": torch.zeros(2, 2)}, path)
    with pytest.raises(konkyo.KonkyoError, match="no saved explanation"):
        konkyo.Explanation.load(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_are_told_or_harmless(result: konkyo.Explanation, tmp_path: Path, suffix: str) -> None:
    """Whatever a byte more or less does, it is a KonkyoError or an Explanation, never another exception."""
    whole = result.save(tmp_path / f"whole.{suffix}").read_bytes()
    path, random = tmp_path / f"damaged.{suffix}", np.random.default_rng(0)
    for length in random.integers(0, len(whole), 60):
        path.write_bytes(whole[:length])
        with pytest.raises(konkyo.KonkyoError, match="no saved explanation"):
            konkyo.Explanation.load(path)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole), 3):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(konkyo.Explanation.load(path), konkyo.Explanation)
        except konkyo.KonkyoError:
            continue


def test_pickles_are_not_run(result: konkyo.Explanation, tmp_path: Path) -> None:
    bomb, path = Bomb(tmp_path / "sentinel"), tmp_path / "a.npz"
    arrays: dict[str, Any] = {n: getattr(result, n).numpy() for n in ("signed", "scores", "image_index")}
    text = np.array(json.dumps(result.description()))
    for arrangement in (
        {**arrays, "konkyo": text, "boxes": np.array([bomb], dtype=object)},
        {**arrays, "konkyo": np.array([bomb], dtype=object)},
    ):
        np.savez(path, **arrangement)
        with pytest.raises(konkyo.KonkyoError, match="no saved explanation"):
            konkyo.Explanation.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("signed.npy", pickle.dumps(bomb))
        archive.writestr("konkyo.npy", pickle.dumps(bomb))
    for content in (None, pickle.dumps(bomb)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(konkyo.KonkyoError, match="no saved explanation"):
            konkyo.Explanation.load(path)
    assert not bomb.path.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists()  # it would have gone off
