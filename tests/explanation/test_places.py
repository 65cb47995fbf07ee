"""Explanations of videos, volumes, signals and spectrograms: how they are drawn, saved and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from konkyo import KonkyoError
from konkyo.data.axes import Coordinates
from konkyo.draw.clips import shown_frames
from konkyo.draw.volumes import chosen_slices
from konkyo.explanation.result import Explanation

AFFINE = np.array([[-1.5, 0.2, 0, 20], [0, 1.5, 0, -30], [0, 0, 3.0, 5], [0, 0, 0, 1]])


class Bright(nn.Module):
    """Its score is the mean of what is bright: its HiResCAM lies on that alone."""

    def __init__(self, convolution: type[nn.Module]) -> None:
        super().__init__()
        self.conv = convolution(1, 1, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
            self.conv.bias.fill_(-0.5)

    def forward(self, x: Tensor) -> Tensor:
        score = self.conv(x).relu().flatten(2).mean(2)
        return torch.cat([score, -score], 1)


def explanation(places: tuple[str, ...], size: tuple[int, ...], **more: object) -> Explanation:
    """One map that is 1 at one cell, over noise."""
    signed = torch.zeros(1, *size)
    signed[(0, *(n // 2 for n in size))] = 1
    images = torch.rand(1, 3 if places[:1] == ("time",) and len(places) == 3 else 1, *size)
    values = {
        "signed": signed, "rectified": False, "scores": torch.ones(1), "image_index": torch.zeros(1, dtype=torch.int64),
        "targets": ("it",), "labels": ("it",), "method": "hires_cam", "layer": "conv", "images": images,
        "places": places, **more,
    }  # fmt: skip
    return Explanation(**values)  # type: ignore[arg-type]


def test_a_video_is_a_strip_and_an_animation(tmp_path: Path) -> None:
    where = Coordinates((12, 16, 24), (0.5, 1.0, 1.0), ("s", "", ""), (1.0, 0.0, 0.0))
    result = explanation(("time", "row", "column"), (12, 16, 24), coordinates=(where,))
    strip = result.overlay()
    assert strip.width == 8 * 136 + 4
    assert strip.height > 88 + 100  # frames, and the curve below them
    assert result.overlay(caption=True).height > strip.height
    result.save(tmp_path / "clip.gif")
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.n_frames == 12
        assert gif.info["duration"] == 500
    result.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= strip.width
    assert result.over_time()[6] == (4.0, 4.5, pytest.approx(1 / (16 * 24)))
    assert sum(value for _, _, value in result.over_time()) == pytest.approx(1 / (16 * 24))


def test_the_overlay_of_a_frame_lies_where_the_map_is() -> None:
    result = explanation(("time", "row", "column"), (4, 16, 16), images=torch.full((1, 3, 4, 16, 16), 0.5))
    pixels = np.asarray(result.overlay().convert("RGB"), dtype=int)[4:136, 4:]
    coloured = np.abs(pixels - pixels.mean(2, keepdims=True)).sum(2) > 30
    frames = [coloured[:, n * 136 : n * 136 + 132] for n in range(4)]
    assert [bool(frame.any()) for frame in frames] == [False, False, True, False]
    rows, columns = frames[2].nonzero()
    assert abs(rows.mean() - 8.5 * 132 / 16) < 6
    assert abs(columns.mean() - 8.5 * 132 / 16) < 6


def test_frames_and_slices_of_the_maximum_are_shown() -> None:
    curve = [0.0] * 40
    curve[17] = 1.0
    assert 17 in shown_frames(curve)
    assert len(shown_frames(curve)) == 8
    assert chosen_slices(40, 17)[0] == 17
    assert len(set(chosen_slices(40, 17))) == len(chosen_slices(40, 17))


@pytest.mark.parametrize(
    "places", [("position",), ("time", "frequency"), ("frequency", "time"), ("depth", "row", "column")]
)
def test_other_places_are_drawn(places: tuple[str, ...]) -> None:
    size = (40, 20, 10)[: len(places)]
    result = explanation(places, size)
    picture = result.overlay()
    assert picture.width > 300
    assert len(picture.convert("L").getcolors(maxcolors=100_000) or []) > 5
    assert result.plot().axes


def test_places_and_coordinates_are_saved(tmp_path: Path) -> None:
    where = Coordinates((40,), (0.004,), ("s",), channels=("I",))
    result = explanation(("position",), (10,), coordinates=(where,), images=torch.rand(1, 1, 40))
    for name in ("map.npz", "map.safetensors"):
        again = Explanation.load(result.save(tmp_path / name))
        assert again.places == ("position",)
        assert again.coordinates == (where,)
        assert again.over_time() == result.over_time()
        assert again.overlay().width > 300  # over grey


def test_a_file_with_other_coordinates_is_refused(tmp_path: Path) -> None:
    result = explanation(("position",), (10,), coordinates=(Coordinates((40,), (float("nan"),)),))
    with pytest.raises(KonkyoError, match="finite"):
        Explanation.load(result.save(tmp_path / "map.npz"))


@pytest.mark.parametrize(
    ("name", "places"), [("x.gif", ("depth", "row", "column")), ("x.nii", ("time", "row", "column"))]
)
def test_files_of_other_places_are_refused(name: str, places: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(KonkyoError, match="takes a map of the places"):
        explanation(places, (4, 4, 4)).save(tmp_path / name)


def _volume() -> np.ndarray:
    """A volume (i, j, k) with a lesion in one corner."""
    volume = np.random.default_rng(0).uniform(0, 0.4, (20, 16, 12)).astype(np.float32)
    volume[12:16, 3:6, 8:11] = 1
    return volume


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("halved", [False, True])
def test_a_map_of_a_nifti_file_lies_in_its_space(order: tuple[int, int, int], halved: bool, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(_volume(), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "scan.nii.gz")
    size = tuple((20, 16, 12)[axis] // 2 for axis in order) if halved else None
    reader = konkyo.Volumes(size=size, order=order)
    model = konkyo.Model(Bright(nn.Conv3d), axes="NCDHW", reader=reader)
    result = konkyo.explain(model, tmp_path / "scan.nii.gz", method="hires_cam", target=0)
    zooms = np.linalg.norm(AFFINE[:3, :3], axis=0)
    assert result.coordinates[0].step == pytest.approx([zooms[axis] * (1 + halved) for axis in order], rel=1e-5)
    written = nibabel.load(result.save(tmp_path / "map.nii.gz"))
    assert np.array_equal(written.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)
    assert written.shape == (20, 16, 12)
    assert written.get_data_dtype() == np.float32
    assert written.header["descrip"].item() == b"konkyo hires_cam"
    assert written.header.get_xyzt_units() == ("mm", "sec")
    i, j, k = np.unravel_index(written.get_fdata().argmax(), written.shape)
    assert 12 <= i < 16
    assert 3 <= j < 6
    assert 8 <= k < 11
    again = Explanation.load(result.save(tmp_path / "map.npz"))  # without pictures the space is still known
    assert np.array_equal(nibabel.load(again.save(tmp_path / "again.nii")).get_fdata(), written.get_fdata())
    assert (tmp_path / "map.nii.gz").stat().st_size


def test_a_series_of_slices_is_a_volume_and_a_secondary_capture(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder = tmp_path / "series"
    folder.mkdir()
    stored = np.random.default_rng(0).integers(0, 300, (6, 8, 10)).astype(np.uint16)
    stored[4, 2:4, 6:9] = 1500
    series, study = generate_uid(), generate_uid()
    for number, slice_ in enumerate(stored):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID, data.file_meta.MediaStorageSOPClassUID = (
            ExplicitVRLittleEndian,
            CTImageStorage,
        )
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID, data.Modality = series, study, "P7", "CT"
        data.PatientName = "Drawn"
        data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 8, 10, 16, 16, 15
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.RescaleSlope, data.RescaleIntercept = 2, -1000
        data.PixelSpacing, data.ImageOrientationPatient = [0.5, 0.7], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [-10, -20, 2.5 * number]
        data.PixelData = slice_.tobytes()
        data.save_as(folder / f"{(number * 5) % 6}.dcm", enforce_file_format=True)  # the names say nothing of the order
    model = konkyo.Model(Bright(nn.Conv3d), axes="NCDHW", reader=konkyo.Volumes(window=(-1000, 2000)))
    result = konkyo.explain(model, folder, method="hires_cam", target=0)
    where = result.coordinates[0]
    assert where.step == (2.5, 0.5, 0.7)
    assert isinstance(result.images, Tensor)
    torch.testing.assert_close(result.images[0, 0], torch.from_numpy(stored * 2 / 3000).float().clamp(0, 1))
    # the voxel (slice 4, row 2, column 6) lies at x = -10 + 6 * 0.7, y = -20 + 2 * 0.5, z = 10 of DICOM
    at = np.array(where.affine) @ [4, 2, 6, 1]
    assert at[:3] == pytest.approx([5.8, 19.0, 10.0])
    captured = pydicom.dcmread(result.save(tmp_path / "map.dcm"))
    assert captured.PatientID == "P7"
    assert captured.StudyInstanceUID == study
    assert captured.SeriesInstanceUID != series
    assert captured.SeriesDescription == "konkyo hires_cam"
    pixels = captured.pixel_array.astype(int)
    assert pixels.shape == (6, 8, 10, 3)
    strong = np.abs(pixels - pixels.mean(-1, keepdims=True)).sum(-1)
    assert np.array_equal(strong > 60, stored > 1000)
    written = result.save(tmp_path / "map.nii.gz")
    assert written.is_file()


def test_a_video_file_is_read_and_its_times_are_told(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from konkyo.data.videos import read_video, write_video

    frames = [Image.new("RGB", (32, 24), (0, 0, 255 if 20 <= n < 25 else 0)) for n in range(40)]
    write_video(tmp_path / "clip.mp4", frames, 10)
    read = read_video(tmp_path / "clip.mp4", 8)
    assert read.numbers == (2, 7, 12, 17, 22, 27, 32, 37)
    assert read.times == pytest.approx([n / 10 for n in read.numbers], abs=0.02)
    blue = [float(np.asarray(picture)[..., 2].mean()) for picture in read.pictures]
    assert [value > 128 for value in blue] == [False] * 4 + [True] + [False] * 3

    class Blue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 1, 1, bias=False)
            with torch.no_grad():
                self.conv.weight.copy_(torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1))

        def forward(self, clip: Tensor) -> Tensor:
            return self.conv(clip).relu().flatten(2).mean(2).repeat(1, 2)

    reader = konkyo.Clips(8, konkyo.Preprocess(None, None, (0.0,) * 3, (1.0,) * 3))
    model = konkyo.Model(Blue(), axes="NCTHW", reader=reader)
    result = konkyo.explain(model, str(tmp_path / "clip.mp4"), method="hires_cam", target=1)
    assert result.names == ("clip.mp4",)
    assert any("8 of 40 frames, spread evenly: 2, 7, 12" in sentence for sentence in result.assumptions)
    strongest = max(result.over_time(), key=lambda cell: cell[2])
    assert strongest[:2] == pytest.approx((1.95, 2.45), abs=0.03)  # around the frame at 2.2 s
    for number, frame in enumerate(frames):
        (tmp_path / "frames").mkdir(exist_ok=True)
        frame.save(tmp_path / "frames" / f"f{number}.png")
    of_folder = konkyo.explain(model, tmp_path / "frames", method="hires_cam", target=1)
    of_list = konkyo.explain(model, frames, method="hires_cam", target=1)
    assert torch.equal(of_folder.maps, of_list.maps)
    torch.testing.assert_close(of_folder.maps, result.maps, atol=0.05, rtol=0)


def test_what_is_no_video_is_refused_in_words(tmp_path: Path) -> None:
    pytest.importorskip("av")
    model = konkyo.Model(Bright(nn.Conv3d), axes="NCTHW", reader=konkyo.Clips(4))
    (tmp_path / "list.mp4").write_text("#EXTM3U\nhttp://example.org/clip.ts\n")
    (tmp_path / "noise.mp4").write_bytes(b"\0" * 100)
    for name, words in (("list.mp4", "list of other files"), ("noise.mp4", "cannot be read"), ("none.mp4", "no video")):
        with pytest.raises(KonkyoError, match=words):
            konkyo.explain(model, tmp_path / name)
    with pytest.raises(KonkyoError, match=r"reader=konkyo\.Clips"):
        konkyo.explain(konkyo.Model(Bright(nn.Conv3d), axes="NCTHW"), tmp_path / "noise.mp4")


def test_a_signal_comes_as_a_file_or_an_array(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 0.4, (1, 50)).astype(np.float32)
    values[0, 30:34] = 1
    np.save(tmp_path / "ecg.npy", values)
    model = konkyo.Model(Bright(nn.Conv1d), axes="NCL", reader=konkyo.Signals(rate=10, leads=("I",)))
    of_file = konkyo.explain(model, tmp_path / "ecg.npy", method="hires_cam", target=0)
    of_array = konkyo.explain(model, values, method="hires_cam", target=0)
    assert torch.equal(of_file.maps, of_array.maps)
    strong = [cell[:2] for cell in of_file.over_time() if cell[2] > 0]
    assert strong == [(3.0, 3.1), (3.1, 3.2), (3.2, 3.3), (3.3, 3.4)]
    np.save(tmp_path / "code.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(KonkyoError, match="cannot be read as an array"):
        konkyo.explain(model, tmp_path / "code.npy")
