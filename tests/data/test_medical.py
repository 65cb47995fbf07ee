"""Scans: DICOM and NIfTI files written here and read as pictures, and the two layouts of chest X-rays and brain MRI."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.scans import dicom, nifti
from konkyo.data import images, scans
from konkyo.data.images import find_images, open_image
from konkyo.data.samples import samples
from konkyo.errors import ImageError, KonkyoError, install_hint

ROWS, COLUMNS = 6, 9


def grey(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert np.ptp(pixels, axis=2).max() == 0
    return pixels[..., 0].astype(int)


def notes(path: Path) -> str:
    return "; ".join(open_image(path).info["konkyo"])


def ramp(dtype: Any = np.uint16, high: float = 1000, low: float = 0) -> np.ndarray:
    return np.linspace(low, high, ROWS * COLUMNS).reshape(ROWS, COLUMNS).round().astype(dtype)


# --- DICOM ------------------------------------------------------------------------------------------------------------


def test_without_a_window_the_range_is_what_the_values_occupy(tmp_path):
    values = ramp(high=900, low=100)
    found = grey(dicom(tmp_path / "a.dcm", values))
    assert found.shape == (ROWS, COLUMNS)
    assert (found == np.round((values - 100) * (255 / 800))).all()
    assert "rescaled from 100..900" in notes(tmp_path / "a.dcm")
    assert (grey(dicom(tmp_path / "b.dcm", np.full((4, 4), 7, np.uint16))) == 0).all()


def test_window_slope_and_intercept(tmp_path):
    """PS3.3 C.11.2.1.2: y = ((x - (c - 0.5)) / (w - 1) + 0.5), clipped to 0..1."""
    values = ramp(np.int16, 2000, -500)
    changes = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "WindowCenter": "40", "WindowWidth": "400"}
    found = grey(dicom(tmp_path / "a.dcm", values, **changes))
    units = 2.0 * values - 1024
    want = 255 * ((units - (40 - 0.5)) / (400 - 1) + 0.5).clip(0, 1)
    assert np.abs(found - want).max() <= 0.51
    assert (found.min(), found.max()) == (0, 255)
    assert notes(tmp_path / "a.dcm") == "DICOM window, centre 40, width 400"
    several = dicom(tmp_path / "b.dcm", values, **changes | {"WindowCenter": [40, 900], "WindowWidth": [400, 50]})
    assert (grey(several) == found).all()


def test_a_window_that_the_values_do_not_fill_keeps_its_meaning(tmp_path):
    found = grey(dicom(tmp_path / "a.dcm", ramp(high=100), WindowCenter="200", WindowWidth="400"))
    assert 50 < found.max() < 80


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_window_functions(tmp_path, function):
    values = ramp(high=1000)
    changes = {"WindowCenter": "500", "WindowWidth": "200", "VOILUTFunction": function}
    x = values.astype(float) - 500
    want = (x / 200 + 0.5).clip(0, 1) if function == "LINEAR_EXACT" else 1 / (1 + np.exp(-4 * x / 200))
    assert np.abs(grey(dicom(tmp_path / "a.dcm", values, **changes)) - 255 * want).max() <= 0.6


def test_lookup_tables(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], [255 - i // 2 for i in range(256)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    values = ramp(np.uint8, 255)
    found = grey(dicom(tmp_path / "a.dcm", values, VOILUTSequence=[table], WindowCenter="9", WindowWidth="2"))
    assert (found == 255 - values.astype(int) // 2).all()
    assert notes(tmp_path / "a.dcm") == "DICOM lookup table"


def test_monochrome1_is_inverted(tmp_path):
    plain = grey(dicom(tmp_path / "a.dcm", ramp()))
    assert (grey(dicom(tmp_path / "b.dcm", ramp(), PhotometricInterpretation="MONOCHROME1")) == 255 - plain).all()
    assert "inverted" in notes(tmp_path / "b.dcm")


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_the_middle_of_several_frames(tmp_path, frames):
    values = np.stack([np.roll(ramp(), number, 1) for number in range(frames)])
    path = dicom(tmp_path / "a.dcm", values)
    assert (grey(path) == grey(dicom(tmp_path / "b.dcm", values[frames // 2]))).all()
    assert (f"frame {frames // 2 + 1} of {frames}, the middle one" in notes(path)) == (frames > 1)


def test_colours(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS, 3), np.uint8)
    changes = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    assert (np.asarray(open_image(dicom(tmp_path / "a.dcm", values, **changes))) == values).all()
    table = {
        f"{name}PaletteColorLookupTable{kind}": value
        for name, shift in (("Red", 0), ("Green", 1), ("Blue", 2))
        for kind, value in (
            ("Descriptor", [256, 0, 16]),
            ("Data", np.roll(257 * np.arange(256), shift).astype("<u2").tobytes()),
        )
    }
    indices = values[..., 0]
    path = dicom(tmp_path / "b.dcm", indices, PhotometricInterpretation="PALETTE COLOR", **table)
    want = np.stack([np.roll(np.arange(256), shift)[indices] for shift in range(3)], -1)
    assert np.abs(np.asarray(open_image(path)).astype(int) - want).max() <= 1


def test_dicom_is_known_by_its_first_bytes_too(tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp())
    pixels = grey(path)
    path.rename(tmp_path / "IM0001")
    assert (grey(tmp_path / "IM0001") == pixels).all()


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(path)
    text = str(caught.value)
    assert "\n" not in text
    assert [word for word in (str(path), *words) if word not in text] == [], text


def test_damaged_and_oversized_dicom_is_refused(tmp_path, monkeypatch):
    path = dicom(tmp_path / "a.dcm", ramp())
    whole = path.read_bytes()
    for kept in (140, len(whole) - 50):
        (tmp_path / "cut.dcm").write_bytes(whole[:kept])
        refused(tmp_path / "cut.dcm")
    (tmp_path / "no.dcm").write_bytes(b"no scan" * 50)
    refused(tmp_path / "no.dcm", "damaged")
    monkeypatch.setattr(images, "MAX_PIXELS", ROWS * COLUMNS - 1)
    refused(path, "9 x 6", "too many pixels")


def test_dicom_without_a_picture(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dicom(tmp_path / "a.dcm", ramp())
    data = pydicom.dcmread(tmp_path / "a.dcm")
    del data.Rows, data.PixelData
    data.Modality = "SR"
    data.save_as(tmp_path / "a.dcm")
    refused(tmp_path / "a.dcm", "no picture", "SR")


# --- NIfTI ------------------------------------------------------------------------------------------------------------

VOLUME = np.random.default_rng(1).integers(0, 1000, (4, 6, 5)).astype(np.int16)
"""Over (right, front, up)."""


def as_seen(plane: np.ndarray) -> np.ndarray:
    """(right, front) as a picture, pixel by pixel: the front at the top, the right of the body at the left."""
    width, height = plane.shape
    picture = np.zeros((height, width))
    for right in range(width):
        for front in range(height):
            picture[height - 1 - front, width - 1 - right] = plane[right, front]
    low, high = picture.min(), picture.max()
    return np.round((picture - low) * (255 / (high - low)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_the_middle_axial_slice(tmp_path, suffix):
    path = nifti(tmp_path / f"a{suffix.lower()}", VOLUME).rename(tmp_path / f"a{suffix}")
    assert (grey(path) == as_seen(VOLUME[:, :, 2])).all()
    assert "axial slice 3 of 5, the middle one" in notes(path)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_the_slice_is_the_same_however_the_volume_is_stored(tmp_path, order, flips):
    stored, affine = VOLUME.transpose(order), np.zeros((4, 4))
    for axis, direction in enumerate(order):
        affine[direction, axis] = flips[axis]
    affine[3, 3] = 1
    stored = stored[tuple(slice(None, None, flip) for flip in flips)]
    path = nifti(tmp_path / "a.nii", stored, affine)
    assert (grey(path) == as_seen(VOLUME[:, :, 2])).all()
    nibabel = pytest.importorskip("nibabel")
    canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    assert (canonical == VOLUME).all()


def test_several_volumes_planes_scaling_and_colours(tmp_path):
    several = np.stack([VOLUME, VOLUME[::-1]], -1)
    assert (grey(nifti(tmp_path / "a.nii", several)) == as_seen(VOLUME[:, :, 2])).all()
    assert "first of 2 volumes" in notes(tmp_path / "a.nii")
    assert (grey(nifti(tmp_path / "b.nii", VOLUME[:, :, 0])) == as_seen(VOLUME[:, :, 0])).all()
    assert (grey(nifti(tmp_path / "c.nii", VOLUME / 7.0 - 3)) == as_seen(VOLUME[:, :, 2])).all()
    assert "float rescaled from" in notes(tmp_path / "c.nii")
    colours = np.zeros((4, 6, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"][..., 0] = np.arange(24).reshape(4, 6)
    found = np.asarray(open_image(nifti(tmp_path / "d.nii", colours)))
    assert np.array_equal(found[::-1, ::-1, 1].T, np.arange(24).reshape(4, 6))
    assert found[..., [0, 2]].max() == 0


def test_nifti_that_is_refused(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii", VOLUME)
    (tmp_path / "cut.nii").write_bytes(path.read_bytes()[:-150])
    refused(tmp_path / "cut.nii")
    (tmp_path / "no.nii.gz").write_bytes(b"no scan" * 80)
    refused(tmp_path / "no.nii.gz")
    refused(nifti(tmp_path / "nan.nii", np.full((3, 3, 3), np.nan)), "NaN")
    with monkeypatch.context() as patch:
        patch.setattr(scans, "MAX_VOXELS", VOLUME.size - 1)
        refused(path, "4 x 6 x 5", "voxels")
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    refused(path, "4 x 6", "too many pixels")


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "library"), [("a.dcm", "pydicom"), ("a.nii.gz", "nibabel")])
def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch, name, library):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(scans, "import_module", missing)
    (tmp_path / name).write_bytes(b"anything")
    refused(tmp_path / name, library, install_hint("medical"))


def test_scans_are_found_and_are_samples(tmp_path):
    dicom(tmp_path / "b.dcm", ramp())
    nifti(tmp_path / "a.nii.gz", VOLUME)
    (tmp_path / "notes.gz").touch()
    Image.new("L", (4, 6), 255).save(tmp_path / "a_mask.png")
    assert [path.name for path in find_images(tmp_path)] == ["a.nii.gz", "a_mask.png", "b.dcm"]
    found = samples(f"folder:{tmp_path}")
    assert found.names == ("a.nii.gz", "b.dcm")
    assert found[0].annotations[0].mask.all()
    assert "DICOM" in found[1].image.info["konkyo"][0]


# --- layouts ----------------------------------------------------------------------------------------------------------


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * number).save(folder / name)
    return folder


def test_chest(tmp_path):
    names = ("train/NORMAL/a.jpeg", "train/PNEUMONIA/b.jpeg", "test/NORMAL/a.jpeg", "val/PNEUMONIA/c.jpeg")
    pictures(tmp_path, *names, "__MACOSX/train/NORMAL/x.jpeg", "chest_xray/train/NORMAL/x.jpeg")
    found = samples(f"chest:{tmp_path}")
    assert set(found.names) == set(names)
    assert found.classes == ("NORMAL", "PNEUMONIA")
    assert [sample.label for sample in found] == list(found.labels) == [name.split("/")[1] for name in found.names]
    told = {"train": "train", "test": "test", "val": "validation"}
    assert found.parts == tuple(told[name.split("/")[0]] for name in found.names)
    assert samples(f"chest:{tmp_path},split=train").names == names[:2]
    assert samples(f"chest:{tmp_path},split=val").names == names[3:]
    assert pickle.loads(pickle.dumps(found))[0].label == found.labels[0]
    assert samples(f"chest:{tmp_path}", limit=2).parts[0] in told.values()
    with pytest.raises(KonkyoError, match=r"split 'dev'.*test, train, validation"):
        samples(f"chest:{tmp_path},split=dev")


@pytest.mark.parametrize("older", [False, True])
def test_brain(tmp_path, older):
    classes = ("glioma", "meningioma", "notumor", "pituitary")
    folders = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor") if older else classes
    pictures(tmp_path, *(f"{part}/{name}/1.jpg" for part in ("Training", "Testing") for name in folders))
    found = samples(f"brain:{tmp_path}")
    assert found.classes == classes
    assert found.labels == classes * 2
    assert found.parts == ("test",) * 4 + ("train",) * 4
    assert samples(f"brain:{tmp_path},split=test").names == tuple(f"Testing/{name}/1.jpg" for name in folders)
    with pytest.raises(KonkyoError, match="val"):
        samples(f"brain:{tmp_path},split=val")


def test_other_layouts_are_refused(tmp_path):
    pictures(tmp_path, "normal/1.png", "pneumonia/1.png")
    with pytest.raises(KonkyoError, match=r"NORMAL, PNEUMONIA; got neither; .*folder:DIR"):
        samples(f"chest:{tmp_path}")
    pictures(tmp_path, "train/NORMAL/1.png")
    with pytest.raises(KonkyoError, match=r"got train/NORMAL; "):
        samples(f"chest:{tmp_path}")
    pictures(tmp_path, "train/PNEUMONIA/1.png", "train/COVID/1.png")
    with pytest.raises(KonkyoError, match=r"got train/COVID/; "):
        samples(f"chest:{tmp_path}")
