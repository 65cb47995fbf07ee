"""Fixed windows: pixels equal a literal formula, and two files of different ranges keep their relation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.scans import dicom, nifti
from konkyo.apps.cli.main import app
from konkyo.data.images import open_image
from konkyo.data.samples import samples
from konkyo.data.splits import Examples, splits
from konkyo.data.windows import window_of
from konkyo.errors import ImageError, KonkyoError


def transcribed(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns the grey of every value by itself: black up to `low`, white from `high` on, a line between."""
    grey = np.empty(values.shape, int)
    for place in np.ndindex(values.shape):
        value = float(values[place])
        grey[place] = 0 if value <= low else 255 if value >= high else round(255 * (value - low) / (high - low))
    return grey


def opened(path: Path, window: str | tuple[float, float] | None) -> np.ndarray:
    pixels = np.asarray(open_image(path, window))
    assert np.ptp(pixels, axis=2).max() == 0
    return pixels[..., 0].astype(int)


def values_of(seed: int, low: int, high: int, dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (7, 9)).astype(dtype)


def saved(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_pictures_are_scaled_by_the_window(tmp_path, name):
    values = values_of(0, 0, 5000)
    path = saved(tmp_path / name, values)
    assert (opened(path, (1000, 4003)) == transcribed(values, 1000, 4003)).all()
    assert (opened(path, "1000..4003") == opened(path, (1000, 4003))).all()
    assert open_image(path, "1000..4003").info["konkyo"] == ("window 1000..4003",)
    assert open_image(path).info["konkyo"] == (f"16-bit rescaled from {values.min()}..{values.max()}",)
    low, high = int(values.min()), int(values.max())
    assert (opened(path, None) == opened(path, (low, high))).all()  # the own range is one window


def test_floats_and_32_bits_too(tmp_path):
    values = np.random.default_rng(1).normal(0, 100, (7, 9)).astype(np.float32)
    assert (opened(saved(tmp_path / "f.tif", values), "-50.5..1e2") == transcribed(values, -50.5, 100)).all()
    wide = values_of(2, -100_000, 100_000, np.int32)
    assert (opened(saved(tmp_path / "i.tif", wide), "-70000..90001") == transcribed(wide, -70000, 90001)).all()


def test_dicom_is_windowed_in_rescaled_units(tmp_path):
    values = values_of(3, 0, 2000)
    changes = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "WindowCenter": "40", "WindowWidth": "400"}
    path = dicom(tmp_path / "a.dcm", values, **changes)
    assert (opened(path, "-160..241") == transcribed(2.0 * values - 1024, -160, 241)).all()
    assert open_image(path, "-160..241").info["konkyo"] == ("window -160..241",)
    inverted = dicom(tmp_path / "b.dcm", values, **changes, PhotometricInterpretation="MONOCHROME1")
    assert (opened(inverted, "-160..241") == 255 - opened(path, "-160..241")).all()
    # the conversion of docs/data.md: centre 40, width 400 (LINEAR) is -160..239
    assert np.abs(opened(path, "file") - opened(path, "-160..239")).max() <= 1
    exact = dicom(tmp_path / "c.dcm", values, **changes, VOILUTFunction="LINEAR_EXACT")
    assert np.abs(opened(exact, "file") - opened(path, "-160..240")).max() <= 1
    assert (opened(path, "file") == opened(path, None)).all()


def test_nifti_is_windowed_in_scaled_units_or_by_its_header(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(4).integers(-1000, 1000, (6, 5, 3)).astype(np.float32)
    path = nifti(tmp_path / "a.nii.gz", values)
    seen = values[::-1, ::-1, 1].T
    assert (opened(path, "-300..411") == transcribed(seen, -300, 411)).all()
    refused(path, "file", "cal_min and cal_max", "LOW..HIGH")
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header["cal_min"], image.header["cal_max"] = -300, 411
    nibabel.save(image, tmp_path / "b.nii")
    assert (opened(tmp_path / "b.nii", "file") == transcribed(seen, -300, 411)).all()


def test_two_files_of_other_ranges_keep_their_relation(tmp_path):
    dim, bright = values_of(5, 100, 300), values_of(5, 100, 300) * 10
    paths = [saved(tmp_path / "dim.png", dim), saved(tmp_path / "bright.png", bright)]
    own = [opened(path, None) for path in paths]
    assert (own[0] == own[1]).all()  # each by its own range: nothing is left of the difference
    fixed = [opened(path, "0..3001").astype(float) for path in paths]
    assert (fixed[0] == transcribed(dim, 0, 3001)).all()
    assert (fixed[1] == transcribed(bright, 0, 3001)).all()
    assert 9 < fixed[1].mean() / fixed[0].mean() < 11


def refused(path: Path, window: str, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(path, window)
    assert [word for word in (path.name, *words) if word not in str(caught.value)] == [], str(caught.value)


def test_what_a_window_is_not_of_is_refused(tmp_path):
    grey = saved(tmp_path / "grey.png", values_of(6, 0, 255, np.uint8))
    for window in ("0..100", "file"):
        refused(grey, window, "8 bits", "leave it out")
    colours = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    refused(dicom(tmp_path / "rgb.dcm", colours, **rgb), "0..100", "colours")
    refused(saved(tmp_path / "deep.png", values_of(7, 0, 4000)), "file", "no window of its own")
    refused(dicom(tmp_path / "none.dcm", values_of(7, 0, 4000)), "file", "WindowCenter")
    volume = nifti(tmp_path / "nan.nii", np.full((3, 3, 3), np.nan, np.float32))
    refused(volume, "0..1", "NaN")


@pytest.mark.parametrize("text", ["3", "4..4", "5..1", "a..b", "1,2", "nan..3", "0..inf", "1..2..3", "FILE", "40/400"])
def test_words_that_are_no_window(text, tmp_path):
    path = saved(tmp_path / "a.png", values_of(0, 0, 5000))
    with pytest.raises(KonkyoError, match=r"LOW\.\.HIGH"):
        open_image(path, text)
    with pytest.raises(KonkyoError, match=r"LOW\.\.HIGH"):
        samples(f"folder:{tmp_path},window={text}")


def test_windows_are_read_as_they_are_written():
    assert window_of("-160..240") == (-160, 240)
    assert window_of("0.5..1.5") == (0.5, 1.5)
    assert window_of("-1e3..-2.5") == (-1000, -2.5)
    assert window_of("file") == "file"
    assert (window_of(""), window_of(None)) == (None, None)


def folder_of(path: Path, count: int = 12) -> dict[str, np.ndarray]:
    """Writes 16-bit pictures of two classes; -> name, values."""
    found = {f"{'ab'[n % 2]}/{n:02}.png": values_of(n, 0, 500 * (n + 1)) for n in range(count)}
    for name, values in found.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        saved(path / name, values)
    return found


def test_data_sets_take_a_window_and_training_reads_through_it(tmp_path):
    values = folder_of(tmp_path)
    source = f"folder:{tmp_path},window=-100..4000"
    data = samples(source)
    assert (data.window, data.source) == ("-100..4000", source)
    for sample in data:
        assert (np.asarray(sample.image)[..., 0] == transcribed(values[sample.name], -100, 4000)).all()
    parts = splits(source, seed=1)
    examples = Examples(parts.train, lambda image: np.asarray(image)[..., 0], parts.classes)  # type: ignore[arg-type,return-value]
    for index, name in enumerate(parts.train.names):
        assert (examples[index][0] == transcribed(values[name], -100, 4000)).all()
    assert parts.train.names == splits(f"folder:{tmp_path}", seed=1).train.names


def test_masks_are_not_windowed(tmp_path):
    values = folder_of(tmp_path, 2)
    mask = np.zeros((7, 9), np.uint8)
    mask[2:4, 3:6] = 255
    saved(tmp_path / "a/00_mask.png", mask)
    sample = samples(f"folder:{tmp_path},window=0..4000")[0]
    assert (sample.annotations[0].mask.numpy() == (mask > 0)).all()
    assert (np.asarray(sample.image)[..., 0] == transcribed(values["a/00.png"], 0, 4000)).all()


def test_the_layouts_of_scans_take_one_too(tmp_path):
    for part in ("train", "test"):
        for label in ("NORMAL", "PNEUMONIA"):
            (tmp_path / part / label).mkdir(parents=True)
            saved(tmp_path / part / label / "1.png", values_of(1, 0, 3000))
    found = samples(f"chest:{tmp_path},split=test,window=100..2000")
    assert (np.asarray(found[0].image)[..., 0] == transcribed(values_of(1, 0, 3000), 100, 2000)).all()
    assert found.window == "100..2000"
    with pytest.raises(KonkyoError, match=r"LOW\.\.HIGH"):
        samples(f"chest:{tmp_path},window=9")


def explained(out: Path, *words: str) -> tuple[dict, str]:
    model = ["--model", "konkyo/scenes-classifier", "--method", "grad_cam"]
    result = CliRunner().invoke(app, ["explain", *words, *model, "--out", str(out)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return {}, str(result.exception)
    return json.loads((out / "manifest.json").read_text()), result.output


def test_explain_takes_a_window_and_its_manifest_says_so(tmp_path):
    path = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16))
    own, _ = explained(tmp_path / "own", str(path))
    fixed, _ = explained(tmp_path / "fixed", str(path), "--window=0..60000")
    assert "window" not in own["settings"]
    assert fixed["settings"]["window"] == "0..60000"
    assert fixed["images"][0]["notes"] == ["window 0..60000"]
    maps = [
        np.load(tmp_path / kind / made["images"][0]["maps"][0]["map"])
        for kind, made in (("own", own), ("fixed", fixed))
    ]
    assert not np.array_equal(maps[0]["signed"], maps[1]["signed"])
    _, error = explained(tmp_path / "no", str(path), "--window=7")
    assert "LOW..HIGH" in error


def test_explain_takes_the_window_of_a_data_set(tmp_path):
    folder_of(tmp_path / "data", 2)
    source = f"folder:{tmp_path / 'data'},window=0..60000"
    made, _ = explained(tmp_path / "out", "--data", source, "--true-labels", "none")
    assert made["settings"]["window"] == "0..60000"
    assert all("window 0..60000" in entry["notes"] for entry in made["images"])
    _, error = explained(tmp_path / "no", "--data", source, "--window=0..9", "--true-labels", "none")
    assert "leave one of them out" in error
