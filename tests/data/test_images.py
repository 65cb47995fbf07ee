from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from konkyo.data import images
from konkyo.data.images import find_images, open_image
from konkyo.errors import ImageError, KonkyoError, KonkyoWarning

ORIENTATION = 0x0112


def photo(width: int = 48, height: int = 32) -> Image.Image:
    """Smooth colours with a bright red corner at the top left."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 / width, y * 255 / height, 128 + 0 * x], -1)
    pixels[: height // 4, : width // 4] = (250, 10, 10)
    return Image.fromarray(pixels.astype(np.uint8))


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(np.asarray(one, float) - np.asarray(other.convert("RGB"), float)).mean())


def notes(image: Image.Image) -> tuple[str, ...]:
    return image.info["konkyo"]


def refused(path: str | Path, *words: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            open_image(path)
    text = str(caught.value)
    assert "\n" not in text
    assert Path(path).name in text
    for word in words:
        assert word in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text


# --- formats and modes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.tga", "A.PNG", "a.with.dots.png"])
def test_lossless_formats_come_back_exactly(tmp_path, name):
    image = open_image(saved(tmp_path, photo(), name))
    assert image.mode == "RGB"
    assert difference(image, photo()) == 0
    assert notes(image) == ()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.gif", "a.jp2"])
def test_lossy_formats_come_back_nearly(tmp_path, name):
    image = open_image(saved(tmp_path, photo(), name))
    assert image.mode == "RGB"
    assert difference(image, photo()) < 12


def test_string_paths_and_pixels_that_outlive_the_file(tmp_path):
    path = saved(tmp_path, photo(), "a.png")
    image = open_image(str(path))
    path.unlink()
    assert type(image) is Image.Image
    assert difference(image.copy(), photo()) == 0
    assert image.resize((8, 8)).info["konkyo"] == ()


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_narrow_modes_equal_pillows_own_conversion(tmp_path, mode):
    source = photo().convert(mode)
    assert difference(open_image(saved(tmp_path, source, "a.png")), source) == 0


@pytest.mark.parametrize(
    ("mode", "name"), [("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("YCbCr", "a.jpg"), ("YCbCr", "a.tif")]
)
def test_print_and_video_colours_stay_near_rgb(tmp_path, mode, name):
    options = {"compression": "tiff_lzw"} if name.endswith(".tif") else {}  # Pillow 12 reads no plain YCbCr TIFFs
    image = open_image(saved(tmp_path, photo().convert(mode), name, **options))
    assert image.mode == "RGB"
    assert difference(image, photo()) < 12
    assert any("CMYK" in note for note in notes(image)) == (mode == "CMYK")


def test_lab_colours_are_converted(tmp_path):
    lab = Image.new("LAB", (8, 8), (255, 128, 128))  # white
    assert min(open_image(saved(tmp_path, lab, "lab.tif")).getpixel((0, 0))) > 250


# --- transparency -----------------------------------------------------------------------------------------------------


def half_transparent() -> Image.Image:
    image = photo().convert("RGBA")
    alpha = np.full((32, 48), 255, np.uint8)
    alpha[:, 24:] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGBA", "a.png"), ("RGBA", "a.webp"), ("RGBA", "a.tif"), ("LA", "a.png"), ("P", "a.png"), ("RGBA", "a.gif")],
)
def test_transparent_parts_are_white(tmp_path, mode, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    source = half_transparent()
    source = source.quantize(64) if mode == "P" else source.convert(mode)
    image = open_image(saved(tmp_path, source, name, **options))
    pixels = np.asarray(image)
    assert (pixels[:, 24:] == 255).all()
    expected = photo().convert("L") if mode == "LA" else photo()
    assert difference(image.crop((0, 0, 24, 32)), expected.crop((0, 0, 24, 32))) < 8
    assert notes(image) == ("transparent parts on white",)


def test_half_transparent_is_mixed_with_white(tmp_path):
    image = open_image(saved(tmp_path, Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "a.png"))
    assert image.getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_opaque_alpha_changes_nothing_and_is_not_mentioned(tmp_path):
    image = open_image(saved(tmp_path, photo().convert("RGBA"), "a.png"))
    assert difference(image, photo()) == 0
    assert notes(image) == ()


@pytest.mark.parametrize(("mode", "key"), [("RGB", (9, 9, 9)), ("L", 9), ("1", 0)])
def test_one_transparent_colour(tmp_path, mode, key):
    source = Image.new(mode, (4, 4), key)
    source.putpixel((0, 0), 1 if mode == "1" else (200, 200, 200) if mode == "RGB" else 200)
    image = open_image(saved(tmp_path, source, "a.png", transparency=key))
    assert image.getpixel((3, 3)) == (255, 255, 255)
    assert notes(image) == ("transparent parts on white",)


def test_alpha_modes_that_no_file_needs_to_have():
    noted: list[str] = []
    palette = half_transparent().quantize(64)
    image = images._rgb(Path("a"), palette.convert("RGBA").convert("PA"), noted)
    assert image.mode == "RGB"
    assert noted == ["transparent parts on white"]
    assert image.getpixel((40, 10)) == (255, 255, 255)


# --- more than eight bits ---------------------------------------------------------------------------------------------


def ramp(high: float, low: float = 0) -> np.ndarray:
    return low + (high - low) * np.linspace(0, 1, 32 * 48).reshape(32, 48)


@pytest.mark.parametrize("high", [65535, 4095, 1023])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_contrast(tmp_path, name, high):
    values = ramp(high).round().astype(np.uint16)
    image = open_image(saved(tmp_path, Image.fromarray(values), name))
    grey = np.asarray(image.convert("L"), float)
    assert np.corrcoef(grey.ravel(), values.ravel().astype(float))[0, 1] > 0.9999
    assert (grey.min(), grey.max()) == (0, 255)
    assert len(np.unique(grey)) == 256
    assert notes(image) == (f"16-bit rescaled from 0..{high}",)


def test_big_endian_sixteen_bits(tmp_path):
    values = ramp(60000, 500).round().astype(">u2")
    header = struct.pack(">2sHI", b"MM", 42, 8)
    tags = [
        (256, 48),
        (257, 32),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 8 + 2 + 8 * 12 + 4),
        (278, 32),
        (279, values.nbytes),
    ]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    path = tmp_path / "big.tif"
    path.write_bytes(header + struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0) + values.tobytes())
    image = open_image(path)
    assert notes(image) == ("16-bit rescaled from 500..60000",)
    assert np.corrcoef(np.asarray(image.convert("L"), float).ravel(), values.ravel().astype(float))[0, 1] > 0.9999


def test_thirty_two_bits_and_negative_values(tmp_path):
    values = ramp(2_000_000, -1000).round().astype(np.int32)
    image = open_image(saved(tmp_path, Image.fromarray(values), "a.tif"))
    assert notes(image)[0].startswith("32-bit rescaled from -1000..")
    assert image.getextrema() == ((0, 255),) * 3


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.01), (-5, 5), (0, 255), (-1e38, 3e38)])
def test_float_tiffs_are_never_black(tmp_path, low, high):
    values = ramp(high, low).astype(np.float32)
    image = open_image(saved(tmp_path, Image.fromarray(values), "a.tif"))
    grey = np.asarray(image.convert("L"), float)
    assert (grey.min(), grey.max()) == (0, 255)
    assert np.corrcoef(grey.ravel(), values.ravel().astype(float))[0, 1] > 0.9999
    assert notes(image)[0].startswith("float rescaled from")


def test_constant_values_do_not_divide_by_zero(tmp_path):
    image = open_image(saved(tmp_path, Image.fromarray(np.full((4, 4), 700, np.uint16)), "a.png"))
    assert image.getextrema() == ((0, 0),) * 3
    assert notes(image) == ("16-bit rescaled from 700..700",)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    values = ramp(1).astype(np.float32)
    values[3, 3] = value
    refused(saved(tmp_path, Image.fromarray(values), "a.tif"), "NaN or infinite", "replace")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 65535), min_size=2, max_size=40, unique=True))
def test_rescaling_keeps_the_order_of_values(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("order") / "a.png"
    Image.fromarray(np.array([values], np.uint16)).save(path)
    grey = np.asarray(open_image(path).convert("L"), int)[0]
    assert (np.diff(grey[np.argsort(values)]) >= 0).all()
    assert (grey.min(), grey.max()) == (0, 255)


# --- orientation, frames ----------------------------------------------------------------------------------------------

_UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_pictures_are_upright(tmp_path, orientation, name):
    turned = photo() if orientation == 1 else photo().transpose(_UNDO[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = open_image(saved(tmp_path, turned, name, exif=exif))
    assert difference(image, photo()) < 12
    said = (f"turned upright (EXIF orientation {orientation})",) if orientation > 1 else ()
    assert notes(image) == said


def test_sixteen_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    values = ramp(4095).round().astype(np.uint16)
    image = open_image(saved(tmp_path, Image.fromarray(np.ascontiguousarray(np.rot90(values))), "a.png", exif=exif))
    assert image.size == (48, 32)
    assert len(notes(image)) == 2
    assert np.corrcoef(np.asarray(image.convert("L"), float).ravel(), values.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12"]
)
def test_broken_metadata_does_not_matter(tmp_path, exif):
    path = saved(tmp_path, photo(), "a.jpg", exif=exif)
    assert difference(open_image(path), photo()) < 12


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_of_several_frames_is_taken(tmp_path, name):
    others = [Image.new("RGB", (48, 32), colour) for colour in ("green", "blue")]
    path = saved(tmp_path, photo(), name, save_all=True, append_images=others)
    image = open_image(path)
    assert difference(image, photo()) < 12
    assert notes(image) == ("first of 3 frames",)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp", "a.tif", "a.ppm", "a.jp2"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, name, kept):
    rng = np.random.default_rng(0)
    path = saved(tmp_path, Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    refused(path)


def test_a_truncated_jpeg_is_said_to_be_one(tmp_path):
    path = saved(tmp_path, photo(256, 256), "cut.jpg", quality=95)
    path.write_bytes(path.read_bytes()[:-500])
    refused(path, "damaged or cut short", "get the file again")


@pytest.mark.parametrize(
    "data", [b"x", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\0" * 5000, b"GIF89a", b"BM"]
)
def test_what_is_no_image(tmp_path, data):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    refused(path)


def test_an_empty_file(tmp_path):
    (tmp_path / "a.png").touch()
    refused(tmp_path / "a.png", "empty")


def test_missing_folders_and_impossible_names(tmp_path):
    refused(tmp_path / "none.png", "does not exist")
    refused(tmp_path, "folder")
    refused(tmp_path / ("x" * 5000), "cannot be opened")
    with pytest.raises(ImageError):
        open_image("a\0b.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not a regular file")


def test_no_permission(tmp_path, monkeypatch):
    path = saved(tmp_path, photo(), "a.png")

    def forbidden(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    refused(path, "Permission denied", "permissions")


def test_programs_are_not_run(tmp_path):
    path = tmp_path / "a.eps"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    refused(path, "not an image")


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG that promises pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("width", "height"), [(8001, 8000), (10_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_bombs_are_refused_before_decoding(tmp_path, monkeypatch, width, height):
    def decoded(*_args):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    refused(bomb(tmp_path / "bomb.png", width, height), "too many pixels", "64 million")


def test_the_limit_itself_is_allowed(tmp_path, monkeypatch):
    path = saved(tmp_path, photo(), "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 48 * 32)
    open_image(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 48 * 32 - 1)
    refused(path, "48 x 32")


def test_pillows_own_bomb_warning_does_not_leak(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert open_image(saved(tmp_path, photo(), "a.png")).size == (48, 32)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "PPM"]), st.data())
def test_damaged_files_open_or_are_refused(tmp_path_factory, kind, data):
    buffer = io.BytesIO()
    photo().save(buffer, kind)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 400)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    path.write_bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    try:
        image = open_image(path)
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert image.mode == "RGB"


def test_threads_leave_the_warning_filters_as_they_were(tmp_path):
    path = saved(tmp_path, photo(), "a.jpg")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [open_image(path) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


# --- finding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in [
        *("img10.png", "img2.png", "img1.JPG", "notes.md", ".hidden.png", "data.h5"),
        *("sub/b.webp", "sub/deep/c.tif", ".cache/d.png", "odd[1].png"),
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_folders_are_searched_in_natural_order(folder):
    found = find_images([folder])
    assert names(folder, found) == ["img1.JPG", "img2.png", "img10.png", "odd[1].png", "sub/b.webp", "sub/deep/c.tif"]
    assert find_images(str(folder)) == find_images(folder) == found


def test_patterns(folder):
    assert names(folder, find_images([f"{folder}/*.png"])) == ["img2.png", "img10.png", "odd[1].png"]
    assert names(folder, find_images([f"{folder}/**/*.tif"])) == ["sub/deep/c.tif"]
    assert names(folder, find_images([f"{folder}/img?.*"])) == ["img1.JPG", "img2.png"]
    assert names(folder, find_images([f"{folder}/odd[1].png"])) == ["odd[1].png"]
    assert find_images([f"{folder}/**"]) == find_images([folder])


def test_named_files_are_kept_whatever_their_suffix(folder):
    assert names(folder, find_images([folder / "notes.md", folder / ".hidden.png"])) == ["notes.md", ".hidden.png"]


def test_duplicates_go_and_order_stays(folder, monkeypatch):
    sources = [folder / "img2.png", folder / "sub" / ".." / "img2.png", f"{folder}/img*", folder / "img2.png"]
    assert names(folder, find_images(sources)) == ["img2.png", "img1.JPG", "img10.png"]
    monkeypatch.chdir(folder)
    assert find_images(["img2.png", folder / "img2.png"]) == [Path("img2.png")]


def test_sources_that_match_nothing(folder):
    (folder / "void").mkdir()
    for source in (folder / "none.png", folder / "void", f"{folder}/*.gif", f"{folder}/*.txt", "a\0b"):
        with pytest.raises(KonkyoError, match=r"looked for \.jpg, \.png") as caught:
            find_images([folder, source])
        assert repr(str(source)) in str(caught.value)
    assert find_images([]) == []


def test_links_that_lead_to_no_file_are_told(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for name in ("b.png", "c.png", "notes.txt"):
        (tmp_path / name).symlink_to(tmp_path / "gone.png")
    with pytest.warns(KonkyoWarning, match=r"2 links lead to no file and are left out: .*[bc]\.png"):
        assert find_images(tmp_path) == [tmp_path / "a.png"]


def test_a_folder_that_contains_itself(folder):
    try:
        (folder / "sub" / "loop").symlink_to(folder)
    except OSError:
        pytest.skip("no links here")
    assert len(find_images([folder])) == 6


def test_a_link_to_a_folder_is_searched(folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    try:
        (linked / "photos").symlink_to(folder)
    except OSError:
        pytest.skip("no links here")
    assert len(find_images([linked])) == 6


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True))
def test_numbers_sort_as_numbers(numbers):
    paths = sorted((Path(f"v1/frame{n}.png") for n in numbers), key=images.natural)
    assert [int(path.stem[5:]) for path in paths] == sorted(numbers)
