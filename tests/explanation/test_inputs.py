"""What is taken as images: the same pixels in whatever form they come, and a refusal of what could be read two ways."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import konkyo
from konkyo import KonkyoError
from konkyo.data import Sample
from konkyo.data.images import open_image
from konkyo.errors import KonkyoWarning
from konkyo.explanation import inputs
from konkyo.explanation.inputs import Prepared, prepare

PREPROCESS = konkyo.Preprocess(20, 16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
ORIENTATION = 0x0112


def model(channels: int = 3, preprocess: konkyo.Preprocess | None = PREPROCESS) -> konkyo.Model:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return konkyo.Model(network.append(nn.Linear(8, 5)).eval(), preprocess=preprocess)


def pixels(height: int = 24, width: int = 30, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(pixels(seed=seed))


def prepared(images: Any, **settings: Any) -> Prepared:
    return prepare(model(), images, **settings)


def expected(*seeds: int) -> Tensor:
    return torch.stack([PREPROCESS(picture(seed)) for seed in seeds or (0,)])


def refused(images: Any, *words: str, of: konkyo.Model | None = None, **settings: Any) -> None:
    with pytest.raises(KonkyoError) as caught:
        prepare(of or model(), images, **settings)
    text = " ".join(str(caught.value).split())
    assert all(word in text for word in words), text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    picture().save(path)
    return path


# --- one reader for paths and pictures --------------------------------------------------------------------------------


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def ramp(low: float, high: float, kind: str) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 24 * 30).reshape(24, 30).astype(kind))


def clear(mode: str) -> Image.Image:
    alpha = Image.fromarray(np.where(np.arange(30) < 12, 255, 40)[None].repeat(24, 0).astype(np.uint8))
    image = picture().convert("RGBA")
    image.putalpha(alpha)
    return image.quantize(32) if mode == "P" else image.convert(mode)


FILES: dict[str, tuple[Callable[[], Image.Image], str, dict[str, Any]]] = {
    **{f"exif {n}": (picture, "a.jpg", {"exif": exif(n), "quality": 90}) for n in range(1, 9)},
    "exif png": (picture, "a.png", {"exif": exif(6)}),
    "exif webp": (picture, "a.webp", {"exif": exif(8), "lossless": True}),
    "exif tiff": (picture, "a.tif", {"exif": exif(3)}),
    "exif 16-bit": (lambda: ramp(0, 4095, "uint16"), "a.png", {"exif": exif(6)}),
    "RGBA": (lambda: clear("RGBA"), "a.png", {}),
    "LA": (lambda: clear("LA"), "a.png", {}),
    "P with transparency": (lambda: clear("P"), "a.png", {}),
    "P with one clear colour": (lambda: picture().quantize(16), "a.gif", {"transparency": 3}),
    "RGB with one clear colour": (picture, "a.png", {"transparency": tuple(map(int, pixels()[0, 0]))}),
    "1": (lambda: picture().convert("1"), "a.png", {}),
    "L": (lambda: picture().convert("L"), "a.png", {}),
    "I;16": (lambda: ramp(0, 4095, "uint16"), "a.png", {}),
    "I;16 tiff": (lambda: ramp(100, 60000, "uint16"), "a.tif", {}),
    "I": (lambda: ramp(-500, 90000, "int32"), "a.tif", {}),
    "F in 0..1": (lambda: ramp(0, 1, "float32"), "a.tif", {}),
    "F below 0": (lambda: ramp(-1000, 2000, "float32"), "a.tif", {}),
    "CMYK": (lambda: picture().convert("CMYK"), "a.jpg", {"quality": 95}),
    "YCbCr": (
        lambda: picture().convert("YCbCr"),
        "a.tif",
        {"compression": "tiff_lzw"},
    ),  # Pillow 12 reads no plain ones
    "LAB": (lambda: Image.new("LAB", (30, 24), (120, 150, 90)), "a.tif", {}),
    "gif": (picture, "a.gif", {"save_all": True, "append_images": [picture(1), picture(2)]}),
    "apng": (picture, "a.png", {"save_all": True, "append_images": [picture(1)], "default_image": True}),
    "tiff of pages": (picture, "a.tif", {"save_all": True, "append_images": [picture(1)]}),
    "webp of frames": (picture, "a.webp", {"save_all": True, "append_images": [picture(1)], "lossless": True}),
}


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make, name, options = FILES[request.param]
    path = tmp_path / name
    make().save(path, **options)
    return path


@pytest.mark.parametrize("saved", FILES, indirect=True)
def test_a_path_and_its_opened_picture_are_the_same_pixels(saved: Path) -> None:
    by_path = prepared(saved)
    with Image.open(saved) as opened:
        mode, size = opened.mode, opened.size
        assert torch.equal(prepared(opened).images, by_path.images)
        assert (opened.mode, opened.size, opened.tell() if hasattr(opened, "tell") else 0) == (mode, size, 0)
        assert PREPROCESS(opened).equal(by_path.images[0])  # the preprocessing alone, too
        assert PREPROCESS.frame(opened) == by_path.frames[0]
        assert PREPROCESS.view(opened).tobytes() == by_path.pictures[0].tobytes()
        assert Sample("a", opened).image.tobytes() == open_image(saved).tobytes()
        copied = opened.copy()
    assert torch.equal(prepared(copied).images, by_path.images)  # loaded, the file closed
    assert torch.equal(prepared(saved.read_bytes()).images, by_path.images)
    assert torch.equal(prepared(open_image(saved)).images, by_path.images)
    assert prepared(saved.read_bytes()).notes == by_path.notes


@pytest.mark.parametrize("saved", ["exif 6", "exif 5"], indirect=True)
def test_a_converted_picture_is_turned_as_its_file(saved: Path) -> None:
    with Image.open(saved) as opened:
        for mode in ("RGB", "RGBA", "RGBX"):
            assert torch.equal(prepared(opened.convert(mode)).images, prepared(saved).images)
        assert torch.equal(prepared(opened.resize(opened.size)).images, prepared(saved).images)


def test_pixels_by_hand(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(300, 4096, (24, 30)).astype(np.uint16)
    scaled = ((values - values.min()) / (values.max() - values.min()) * 255).round().astype(np.uint8)
    by_hand = PREPROCESS(Image.fromarray(np.stack([scaled] * 3, -1)))
    assert torch.equal(prepared(Image.fromarray(values)).images[0], by_hand)
    assert torch.equal(prepared(values).images[0], by_hand)
    assert torch.equal(prepared(values.astype(">u2")).images[0], by_hand)
    colours = pixels()
    ground = np.dstack([colours, np.where(np.arange(30) < 12, 255, 0)[None].repeat(24, 0)]).astype(np.uint8)
    white = np.where(np.arange(30)[None, :, None] < 12, colours, 255).astype(np.uint8)
    assert torch.equal(prepared(Image.fromarray(ground)).images[0], PREPROCESS(Image.fromarray(white)))
    assert torch.equal(prepared(ground).images[0], PREPROCESS(Image.fromarray(white)))
    path = tmp_path / "turned.jpg"
    picture().save(path, exif=exif(6), quality=100, subsampling=0)
    with Image.open(path) as opened:
        turned = Image.fromarray(np.rot90(np.asarray(opened.convert("RGB")), -1).copy())
    with Image.open(path) as opened:
        assert torch.equal(prepared(opened).images[0], PREPROCESS(turned))


def test_the_frame_that_a_picture_stands_at_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    picture().save(path, save_all=True, append_images=[picture(1), picture(2)])
    with Image.open(path) as opened:
        assert prepared(opened).notes == ("image 0: first of 3 frames",)
        opened.seek(2)
        assert torch.equal(prepared(opened).images, expected(2))
        assert prepared(opened).notes == ("image 0: frame 3",)
        frames = prepared([frame.copy() for frame in ImageSequence.Iterator(opened)])
    assert torch.equal(frames.images, expected(0, 1, 2))


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    picture().resize((300, 300)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as cut:
        refused(cut, "damaged or cut short", "cut.jpg")
    refused(path.read_bytes(), "damaged or cut short")
    picture().save(tmp_path / "b.png")
    closed = Image.open(tmp_path / "b.png")
    closed.close()
    refused(closed, "b.png")
    refused(Image.fromarray(np.array([[np.nan, 1], [2, 3]], np.float32)), "NaN")
    for mode in ("L", "RGB"):
        refused(Image.new(mode, (9000, 9000)), "too many pixels")
        refused(Image.new(mode, (0, 5)), "no pixels")


def test_explanations_say_what_was_done_to_a_picture() -> None:
    found = konkyo.explain(model(), Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)), target=1)
    assert found.assumptions == ("image 0: 16-bit rescaled from 0..899",)
    turned = Image.fromarray(pixels(24, 24))
    turned.info["exif"] = exif(6).tobytes()
    plain = konkyo.explain(model(), pixels(24, 24), target=1)
    assert plain.assumptions == ()
    straight = plain.overlay(0, image=Image.fromarray(np.rot90(pixels(24, 24), -1).copy()))
    assert plain.overlay(0, image=turned).tobytes() == straight.tobytes()


# --- forms ------------------------------------------------------------------------------------------------------------


def floats() -> Any:
    return pixels().astype(np.float64) / 255


FORMS: dict[str, Callable[[], Any]] = {
    "array": pixels,
    "floats": floats,
    "half floats": lambda: floats().astype(np.float32),
    "a batch": lambda: pixels()[None],
    "read-only": lambda: np.frombuffer(pixels().tobytes(), np.uint8).reshape(24, 30, 3),
    "not contiguous": lambda: np.ascontiguousarray(pixels()[:, ::-1])[:, ::-1],
    "opaque": lambda: np.dstack([pixels(), np.full((24, 30), 255, np.uint8)]),
    "tensor": lambda: torch.from_numpy(pixels()).permute(2, 0, 1),
    "batch of tensors": lambda: torch.from_numpy(pixels()).permute(2, 0, 1)[None],
    "list": lambda: [picture()],
    "tuple": lambda: (pixels(),),
    "generator": lambda: (picture(seed) for seed in (0,)),
    "iterator": lambda: iter([picture()]),
    "sample": lambda: Sample("a", picture()),
    "samples": lambda: [Sample("a", picture())],
    "dictionary": lambda: {"image": picture(), "label": 3},
    "rows of a table": lambda: [{"img": pixels(), "label": 3}],
    "pairs": lambda: [(picture(), 3)],
    "prepared": expected,
    "prepared without a batch": lambda: expected()[0],
    "list of prepared": lambda: [expected()[0]],
    "pixel_values": lambda: {"pixel_values": expected()},
    "pixel_values of numpy": lambda: {"pixel_values": expected().numpy(), "labels": [1]},
    "pixel_values in a list": lambda: {"pixel_values": [expected()[0].numpy()]},
    "pixel_mask of ones": lambda: {"pixel_values": expected(), "pixel_mask": torch.ones(1, 16, 16)},
    "loader": lambda: DataLoader(TensorDataset(expected(), torch.tensor([1]))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_input(form: str) -> None:
    assert torch.allclose(prepared(FORMS[form]()).images, expected(), atol=1e-6)


def test_files_in_every_form(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = file.read_bytes()
    with file.open("rb") as opened:
        forms = [
            file,
            str(file),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            opened,
            f"{tmp_path}/*.png",
        ]
        for form in [*forms, opened, opened, tmp_path, str(tmp_path), [data, io.BytesIO(data)][:1]]:
            assert torch.equal(prepared(form).images, expected())
    (tmp_path / "list.txt").write_text("a.png\n\n  a.png \n", encoding="utf-8")
    assert torch.equal(prepared(tmp_path / "list.txt").images, expected())
    monkeypatch.chdir(tmp_path)
    assert torch.equal(prepared("*.png").images, expected())


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    picture().save(tmp_path / "a[1].png")
    picture(1).save(tmp_path / "a1.png")
    assert torch.equal(prepared(f"{tmp_path}/a[1].png").images, expected(0))
    assert torch.equal(prepared(f"{tmp_path}/a?.png").images, expected(1))


def test_several_forms_in_one_list(file: Path) -> None:
    mixed = [file, picture(1), pixels(seed=2), expected(3)[0], expected(4), file.read_bytes()]
    found = prepared(mixed)
    assert torch.allclose(found.images, expected(0, 1, 2, 3, 4, 0), atol=1e-6)
    assert len(found.pictures) == len(found.frames) == 6
    shown = np.asarray(found.pictures[3], float) / 255
    assert np.allclose(shown, PREPROCESS.undo(expected(3))[0].permute(1, 2, 0).numpy(), atol=1 / 255)


def test_order_and_batches_of_a_loader(file: Path, tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(expected(*range(5)), torch.arange(5)), batch_size=2)
    assert torch.equal(prepared(loader).images, expected(*range(5)))
    by_name = DataLoader([{"pixel_values": t, "labels": 0} for t in expected(*range(3))], batch_size=2)
    assert torch.equal(prepared(by_name).images, expected(*range(3)))
    picture(1).save(tmp_path / "b2.png")
    picture(2).save(tmp_path / "b10.png")
    assert torch.equal(prepared(tmp_path).images, expected(0, 1, 2))


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index > 2:
            raise AssertionError("asked beyond its end")
        return picture(index), index


def test_a_data_set_ends_where_its_length_says() -> None:
    assert torch.equal(prepared(Pairs()).images, expected(0, 1, 2))


def test_images_of_torchvision() -> None:
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    image = tv_tensors.Image(picture())
    assert torch.equal(prepared(image).images, expected())
    assert torch.equal(prepared([image, image]).images, expected(0, 0))
    found = prepared(tv_tensors.Image(expected()))
    assert torch.equal(found.images, expected())
    assert type(found.images) is Tensor


def test_a_batch_feature_of_transformers() -> None:
    feature = pytest.importorskip("transformers").BatchFeature({"pixel_values": expected(0, 1)})
    assert torch.equal(prepared(feature).images, expected(0, 1))


def test_blue_green_red_is_said_by_a_flag() -> None:
    bgr = np.ascontiguousarray(pixels()[..., ::-1])
    for form in (bgr, [bgr], bgr / 255, torch.from_numpy(bgr).permute(2, 0, 1), np.dstack([bgr, bgr[..., :1] | 255])):
        assert torch.allclose(prepared(form, bgr=True).images, expected(), atol=1e-6)
    assert not torch.allclose(prepared(bgr).images, expected(), atol=0.1)
    by_flag = konkyo.explain(model(), bgr, target=1, bgr=True)
    assert torch.equal(by_flag.signed, konkyo.explain(model(), picture(), target=1).signed)
    both = konkyo.compare(model(), bgr, ["grad_cam"], target=1, bgr=True)["grad_cam"]
    assert torch.equal(both.signed, by_flag.signed)
    for form in (picture(), expected()):
        refused(form, "bgr=True", bgr=True)


def test_grey_models_take_grey_and_colour() -> None:
    grey = model(1, konkyo.Preprocess(20, 16, (0.5,), (0.25,)))
    values = pixels()[..., 0]
    by_picture = prepare(grey, Image.fromarray(values)).images
    forms = (values, values[..., None], values / 255, np.stack([values] * 3, -1), torch.from_numpy(values)[None])
    for form in forms:
        assert torch.equal(prepare(grey, form).images, by_picture)
    assert torch.equal(prepare(grey, values > 127).images, prepare(grey, (values > 127) * np.uint8(255)).images)
    assert prepare(grey, by_picture[0]).images.shape == by_picture.shape


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pixels().astype(np.float32), ("/ 255",)),
        (lambda: floats() * 2 - 1, ("from 0 to 1", "torch.from_numpy")),
        (lambda: np.full((4, 4), np.nan), ("nan",)),
        (lambda: pixels().transpose(2, 0, 1), ("array.transpose(1, 2, 0)",)),
        (lambda: floats().transpose(2, 0, 1), ("array.transpose(1, 2, 0)",)),
        (lambda: pixels()[None].transpose(0, 3, 1, 2), ("array.transpose(0, 2, 3, 1)",)),
        (lambda: pixels().astype(np.int64), ("astype(numpy.uint8)",)),
        (lambda: pixels().astype(np.uint16), ("16 bits",)),
        (lambda: np.zeros((10, 24, 30), np.uint8), ("list(array)",)),
        (lambda: np.zeros((24, 30, 2), np.uint8), ("1, 3 or 4 colours",)),
        (lambda: np.zeros((0, 30, 3), np.uint8), ("shape (0, 30, 3)",)),
        (lambda: np.zeros(9, np.uint8), ("shape (9,)",)),
        (lambda: np.array(["a.png"]), ("shape",)),
        (lambda: np.array([[{}]]), ("object",)),
        (lambda: pixels().astype(np.complex64), ("complex64",)),
        (lambda: torch.from_numpy(pixels()), ("permute(2, 0, 1)",)),
        (lambda: torch.from_numpy(pixels())[None], ("permute(0, 3, 1, 2)",)),
        (lambda: torch.zeros(3, 8, 8, dtype=torch.int64), ("to(torch.uint8)",)),
        (lambda: torch.zeros(3, 8, 8, dtype=torch.bool), ("torch.bool",)),
        (lambda: (expected(), torch.tensor([1, 2])), ("labels",)),
        (lambda: torch.zeros(8, 8), ("N, C, H, W",)),
        (lambda: torch.zeros(5, 8, 8), ("N, C, H, W",)),
        (lambda: [torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)], ("one shape", "(1, 3, 9, 8)")),
        (lambda: [], ("empty list",)),
        (lambda: iter(()), ("empty list",)),
        (lambda: 3, ("images are a path", "int")),
        (lambda: None, ("images are a path", "NoneType")),
        (lambda: [None], ("images are a path", "NoneType")),
        (lambda: [[picture()]], ("images are a path", "list")),
        (lambda: {"x": expected()}, ("pixel_values", "got x")),
        (lambda: {"pixel_values": expected(), "input_ids": torch.ones(1, 4)}, ("input_ids", "call=")),
        (lambda: {"pixel_values": expected(), "pixel_mask": torch.eye(16)[None]}, ("one by one",)),
        (lambda: {"pixel_values": pixels()}, ("floats (N, C, H, W)",)),
        (lambda: b"", ("empty",)),
        (lambda: b"GIF89a nothing", ("the picture",)),
        (lambda: io.StringIO("text"), ("binary mode",)),
        (lambda: "https://example.com/cat.jpg", ("downloads nothing",)),
        (lambda: Path("https://example.com/cat.jpg"), ("downloads nothing",)),
        (lambda: ["s3://bucket/cat.jpg"], ("downloads nothing",)),
        (lambda: "data:image/png;base64,AAAA", ("downloads nothing",)),
        (lambda: "none/*.png", ("matches no file",)),
        (lambda: "none.png", ("does not exist",)),
        (lambda: "a\0b.png", ("cannot be opened",)),
        (lambda: "", ("empty path",)),
        (lambda: ["a.png", ""], ("does not exist",)),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(
    make: Callable[[], Any], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(make(), *words)


def test_files_that_are_none(tmp_path: Path, file: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not a regular file")
    os.mkfifo(tmp_path / "pipe.txt")
    refused(tmp_path / "pipe.txt", "pipe.txt")
    refused("/dev/zero", "not a regular file")
    (tmp_path / "list.txt").write_text("a.png\nmissing.png\n", encoding="utf-8")
    refused(tmp_path / "list.txt", "no file", "missing.png")
    (tmp_path / "web.txt").write_text("https://example.com/a.png\n", encoding="utf-8")
    refused(tmp_path / "web.txt", "downloads nothing")
    with file.open("rb") as opened:
        opened.read()
        refused(opened, "seek(0)")
    refused(opened, "reading it")  # closed


def test_an_endless_iterable_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MOST", 8)

    def endless() -> Iterator[Tensor]:
        while True:
            yield expected()[0]

    refused(endless(), "more than 8 images")
    refused((expected() for _ in range(9)), "more than 8 images")
    assert len(prepared(expected()[0] for _ in range(8)).images) == 8


def test_endless_file_objects_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("konkyo.data.images.MAX_BYTES", 1000)
    with Path("/dev/zero").open("rb") as endless:
        refused(endless, "file object gives more than")


def test_models_without_a_preprocessing_take_prepared_tensors_only(file: Path) -> None:
    plain = model(preprocess=None)
    for form in (file, "none.png", picture(), pixels(), torch.from_numpy(pixels()).permute(2, 0, 1), b"x", [picture()]):
        refused(form, "preprocess=", "weights=", of=plain)
    assert torch.equal(prepare(plain, [expected()[0], expected(1)[0]]).images, expected(0, 1))
    assert torch.equal(prepare(plain, {"pixel_values": expected()}).images, expected())


@pytest.mark.parametrize("other", ["sparse", "meta"])
def test_tensors_that_are_not_dense_are_refused(other: str) -> None:
    prepared = torch.rand(1, 3, 32, 32)
    images = prepared.to_sparse() if other == "sparse" else prepared.to("meta")
    with pytest.raises(konkyo.KonkyoError, match="a dense tensor"):
        konkyo.explain(nn.Conv2d(3, 4, 3), images)


def test_raw_floats_are_warned_of() -> None:
    with pytest.warns(KonkyoWarning, match="values up to 255"):
        prepared(torch.full((1, 3, 16, 16), 255.0))


def test_scans_are_read_from_files_only() -> None:
    head = b"\0" * 128 + b"DICM" + struct.pack("<I", 0)
    refused(head, "scan", "path")


def test_a_data_set_by_name_brings_names_and_labels() -> None:
    from konkyo.data.samples import samples

    scenes = samples("scenes:3,objects=1")
    result = konkyo.explain(konkyo.load("konkyo/scenes-classifier"), scenes)
    assert result.names == scenes.names
    assert result.true_labels == tuple(scene.label for scene in scenes)
