"""Data sets with what is true of their images: every layout is written to disk and compared pixel by pixel."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import konkyo
from helpers.paths import DATA
from konkyo.data.samples import DRAWN, LAYOUTS, UNSEEN, Annotation, Sample, Samples, samples
from konkyo.data.sets import coco as coco_module
from konkyo.data.sets.coco import _mask
from konkyo.data.sets.scenes import CLASSES, Scenes
from konkyo.errors import ImageError, KonkyoError, install_hint

COCO = DATA / "coco"
WIDTH, HEIGHT = 12, 8
BOX = (3, 2, 8, 6)


def picture(path: Path, number: int = 0, *, size: tuple[int, int] = (WIDTH, HEIGHT), turned: int = 1) -> Image.Image:
    """Writes a picture of random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image, exif = Image.fromarray(values), Image.Exif()
    exif[0x0112] = turned
    image.save(path, exif=exif.tobytes())
    return image


def block(box: tuple[int, int, int, int] = BOX, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Tensor:
    mask = torch.zeros(size[1], size[0], dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def drawn(path: Path, values: np.ndarray | Tensor, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **options)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def refused(source: Any, *words: object, **options: Any) -> str:
    """The message of the error, in one line, with these words in it."""
    with pytest.raises(KonkyoError) as caught:
        list(samples(source, **options))
    text = str(caught.value)
    assert "\n" not in text
    assert [word for word in words if str(word) not in text] == [], text
    return text


# --- scenes -----------------------------------------------------------------------------------------------------------


def test_scenes_with_their_truth():
    found, drawings = samples("scenes:4", seed=3), Scenes(4, seed=UNSEEN + 3)
    assert (len(found), found.classes, found.source) == (4, CLASSES, "scenes:4")
    for sample, scene, name in zip(found, drawings, found.names, strict=True):
        assert same(sample.image, scene.image)
        assert sample.name == name
        assert [thing.label for thing in sample.annotations] == [CLASSES[label] for label in scene.labels]
        assert torch.equal(torch.tensor([thing.box for thing in sample.annotations]), scene.boxes)
        assert torch.equal(torch.stack([thing.mask for thing in sample.annotations]), scene.masks)
        assert torch.equal(torch.stack([thing.evidence for thing in sample.annotations]), scene.evidence)
        assert (sample.label is None) == (len(sample.annotations) > 1)


def test_scenes_of_one_object_have_a_label_and_options_are_heeded():
    assert all(len(s.annotations) == 1 and s.label == s.annotations[0].label for s in samples("scenes:5,objects=1"))
    found = list(samples("scenes:8,objects=2-3,size=64"))
    assert {len(sample.annotations) for sample in found} == {2, 3}
    assert found[0].image.size == (64, 64)
    assert len(samples("scenes")) == 1000
    given_ones = Scenes(3, seed=9, objects=1)
    assert [s.label for s in samples(given_ones)] == [CLASSES[int(scene.labels[0])] for scene in given_ones]


def test_no_shipped_model_was_trained_or_measured_on_these_scenes():
    def seeds(value: Any) -> set[int]:
        if not isinstance(value, dict):
            return set()
        own = {value["seed"]} if "seed" in value else set()
        return own.union(*map(seeds, value.values()))

    used = set()
    for file in (Path(konkyo.__file__).parent / "models/weights").glob("*.json"):
        used |= seeds(json.loads(file.read_text(encoding="utf-8")))
    assert {0, 1} <= used
    assert max(used) < UNSEEN
    name = samples("scenes:1").names[0]
    assert int(name.split("-")[1]) == UNSEEN


# --- COCO -------------------------------------------------------------------------------------------------------------


def counts_of(mask: Tensor) -> list[int]:
    """Run lengths by a literal loop down the columns."""
    counts, inside = [0], False
    for value in mask.T.flatten().tolist():
        if value != inside:
            counts.append(0)
            inside = value
        counts[-1] += 1
    return counts


def decoded(counts: list[int], height: int, width: int) -> Tensor:
    """A mask from run lengths by a literal loop."""
    mask, at, inside = torch.zeros(height, width, dtype=torch.bool), 0, False
    for count in counts:
        for place in range(at, at + count):
            mask[place % height, place // height] = inside
        at, inside = at + count, not inside
    return mask


def by_library(library: Any, packed: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools under NumPy 2
        return torch.from_numpy(library.decode(packed)).bool()


def rle(mask: Tensor) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": counts_of(mask)}


def annotated(folder: Path, things: list[dict[str, Any]], file: str = "instances.json", **changes: Any) -> Path:
    """A data set of two pictures; all things are in the first."""
    images = [
        {"id": 7, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        {"id": 3, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
    ]
    usual = {"id": 50, "image_id": 7, "category_id": 90, "bbox": [3, 2, 5, 4]}
    data = {
        "images": images,
        "categories": [{"id": 90, "name": "brush"}, {"id": 1, "name": "person"}],
        "annotations": [usual | thing for thing in things],
    }
    return written(folder / file, json.dumps(data | changes))


def coco_set(folder: Path, things: list[dict[str, Any]], where: str = "images", **changes: Any) -> str:
    annotated(folder, things, **changes)
    for number, name in enumerate(("b.png", "a.png")):
        picture(folder / where / name, number)
    return f"coco:{folder}"


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("instances.json", "images"),
        ("instances.json", "."),
        ("_annotations.coco.json", "."),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/instances_default.json", "images"),
    ],
)
def test_layouts_of_coco(tmp_path, monkeypatch, file, images):
    source = coco_set(tmp_path, [{}, {"category_id": 1}], images, file=file)
    found = samples(source)
    assert (found.names, found.classes, found.source) == (("b.png", "a.png"), ("brush", "person"), source)
    first, second = found
    assert same(first.image, Image.open(tmp_path / images / "b.png"))
    assert [(t.label, t.box, t.mask, t.crowd) for t in first.annotations] == [
        ("brush", (3.0, 2.0, 8.0, 6.0), None, False),
        ("person", (3.0, 2.0, 8.0, 6.0), None, False),
    ]
    assert (second.name, second.label, second.annotations) == ("a.png", None, ())
    monkeypatch.chdir(tmp_path.parent)
    assert len(samples(f"coco:{tmp_path.name}")) == 2


def test_several_annotation_files_are_not_guessed_between(tmp_path):
    source = coco_set(tmp_path, [{}], "pics", file="annotations/instances_val.json")
    annotated(tmp_path, [], "annotations/instances_train.json")
    refused(source, "instances_train.json", "instances_val.json", "annotations=FILE")
    chosen = f"{source},annotations=annotations/instances_val.json"
    refused(chosen, "of the 2 pictures", "2 are not in", "b.png", "images=FOLDER")
    assert len(samples(f"{chosen},images=pics")[0].annotations) == 1


def test_run_lengths_crowds_and_boxes_from_masks(tmp_path):
    mask = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) > 0.5
    things = [
        {"segmentation": rle(mask), "iscrowd": 1},
        {"segmentation": rle(block()), "bbox": None},
        {"segmentation": rle(torch.zeros_like(mask)), "bbox": []},
        {"segmentation": []},
    ]
    crowd, boxed, empty, none = samples(coco_set(tmp_path, things))[0].annotations
    assert crowd.crowd
    assert torch.equal(crowd.mask, mask)
    assert torch.equal(decoded(counts_of(mask), HEIGHT, WIDTH), mask)
    assert not boxed.crowd
    assert boxed.box == BOX
    assert torch.equal(boxed.mask, block())
    assert (bool(empty.mask.any()), empty.box) == (False, None)
    assert none.mask is None


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 1000))
def test_compressed_run_lengths_are_read_as_pycocotools_reads_them(height, width, share, seed):
    library = pytest.importorskip("pycocotools.mask")
    mask = torch.rand(40 * height, width, generator=torch.Generator().manual_seed(seed)) < share
    packed = library.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    found = _mask({"size": packed["size"], "counts": packed["counts"].decode()}, 40 * height, width)
    assert torch.equal(found, mask)
    assert torch.equal(by_library(library, packed), found)


@given(
    st.lists(st.integers(0, 30), max_size=8), st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=9)
)
def test_damaged_run_lengths_are_refused(counts, text):
    for given_counts in (counts, text):
        try:
            found = _mask({"size": [5, 4], "counts": given_counts}, 5, 4)
        except (ValueError, OverflowError):
            continue
        assert found.shape == (5, 4)
        assert given_counts is text or torch.equal(found, decoded(counts, 5, 4))


@pytest.mark.parametrize("library", ["pycocotools.mask", "faster_coco_eval.core.mask"])
def test_polygons_are_filled_and_united(tmp_path, monkeypatch, library):
    module = pytest.importorskip(library)
    monkeypatch.setattr(coco_module, "_library", lambda: module)
    rectangle, triangle = [3, 2, 8, 2, 8, 6, 3, 6], [0.5, 0.2, 2.5, 0.9, 1.2, 7.7]
    filled, both = samples(
        coco_set(tmp_path, [{"segmentation": [rectangle]}, {"segmentation": [rectangle, triangle]}])
    )[0].annotations
    assert torch.equal(filled.mask, block())
    reference = by_library(module, module.frPyObjects([triangle], HEIGHT, WIDTH))[:, :, 0]
    assert reference.any()
    assert torch.equal(both.mask, block() | reference)


def test_without_a_library_only_polygons_are_refused(tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(coco_module, "import_module", missing)
    source = coco_set(tmp_path, [{"segmentation": [[3, 2, 8, 2, 8, 6]]}])
    refused(source, "pycocotools", "faster-coco-eval", install_hint("coco"))
    coco_set(tmp_path, [{"segmentation": rle(block())}])
    assert samples(source)[0].annotations[0].mask.any()


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ({"bbox": [1, 2, 3]}, []),
        ({"bbox": [1, 2, -3, 4]}, ["-3"]),
        ({"bbox": [1, 2, float("nan"), 4]}, ["nan"]),
        ({"bbox": ["1", 2, 3, 4]}, []),
        ({"segmentation": [[1, 2, 3, 4]]}, ["three points"]),
        ({"segmentation": {"size": [4, 4], "counts": [16]}}, ["[8, 12]"]),
        ({"segmentation": {"size": [8, 12], "counts": [95]}}, ["96"]),
        ({"segmentation": {"size": [8, 12], "counts": [97, -1]}}, ["96"]),
        ({"segmentation": {"size": [8, 12], "counts": "~~~"}}, ["96"]),
        ({"segmentation": {"counts": [96]}}, ["size"]),
        ({"segmentation": 5}, []),
    ],
)
def test_damaged_annotations_are_named(tmp_path, thing, words):
    refused(coco_set(tmp_path, [thing]), "instances.json", "annotation 50", *words)


@pytest.mark.parametrize(
    "changes", [{"categories": []}, {"images": []}, {"annotations": {"a": 1}}, {"categories": 3},
                {"images": [{"id": 7, "file_name": "b.png"}]}, {"images": [{"id": 7}, {"id": 7}]}],
)  # fmt: skip
def test_files_that_are_not_as_cocos_are_refused(tmp_path, changes):
    source = coco_set(tmp_path, [{}], **changes)
    refused(source, "instances.json", "categories (id, name)")


@pytest.mark.parametrize(
    "side", ["Infinity", "-Infinity", "NaN", "1e999", "0", "-12", '"wide"', "true", "null", "[12]"]
)
@pytest.mark.parametrize("name", ["width", "height"])
def test_sides_of_coco_pictures_that_are_no_numbers_of_pixels(tmp_path, name, side):
    source = coco_set(tmp_path, [{}])
    text = (tmp_path / "instances.json").read_text()
    written(tmp_path / "instances.json", re.sub(rf'"{name}": \d+', f'"{name}": {side}', text))
    refused(source, "instances.json", "COCO")


@pytest.mark.parametrize("box", ["[Infinity, 1, 2, 3]", "[1, 1, NaN, 3]", "[1, 1, 1e999, 3]", f"[{10**400}, 1, 2, 3]"])
def test_boxes_of_coco_without_an_end(tmp_path, box):
    source = coco_set(tmp_path, [{"bbox": [1, 2, 3, 4]}])
    text = (tmp_path / "instances.json").read_text()
    written(tmp_path / "instances.json", text.replace("[1, 2, 3, 4]", box))
    refused(source, "instances.json", "annotation 50")


@pytest.mark.parametrize("begin", ["[", '{"a":', '{"images":['])
def test_deep_files_and_pipes_of_coco(tmp_path, begin):
    source = coco_set(tmp_path, [{}])
    written(tmp_path / "instances.json", begin * 100_000)
    refused(source, "instances.json", "deep in each other")
    (tmp_path / "instances.json").unlink()
    os.mkfifo(tmp_path / "instances.json")
    refused(source, "instances.json", "no regular file")


def test_missing_and_damaged_files_of_coco(tmp_path):
    refused(f"coco:{tmp_path}", "instances_*.json", "there is none")
    refused(f"coco:{tmp_path / 'none'}", "expected a folder")
    refused("coco:", "coco:DIR")
    source = coco_set(tmp_path, [{}])
    refused(f"{source},image=pics", "'images'", "annotations")
    refused(f"{source},annotations=none.json", "none.json")
    (tmp_path / "images/b.png").write_bytes(b"no image")
    assert samples(source)[1].annotations == ()
    refused(source, "b.png")
    picture(tmp_path / "images/b.png", size=(9, 9))
    refused(source, "b.png", "(9, 9)", "(12, 8)")
    (tmp_path / "images/a.png").unlink()
    refused(source, "1 are not in", "a.png")
    written(tmp_path / "instances.json", "{")
    refused(source, "instances.json", "JSON")


@pytest.mark.parametrize("turned", range(2, 9))
def test_pictures_lie_as_their_annotations_see_them(tmp_path, turned):
    source = coco_set(tmp_path, [{"segmentation": rle(block())}])
    stored = picture(tmp_path / "images/b.png", 5, turned=turned)
    sample = samples(source)[0]
    assert same(sample.image, stored)
    assert sample.image.info["konkyo"] == ()
    if turned > 4:
        upright = {"id": 7, "file_name": "b.png", "width": HEIGHT, "height": WIDTH}
        annotated(tmp_path, [{}], images=[upright])
        sample = samples(source)[0]
        assert sample.image.size == (HEIGHT, WIDTH)
        assert "turned upright" in sample.image.info["konkyo"][0]


@pytest.mark.skipif(not COCO.is_dir(), reason="needs the photographs: KONKYO_TEST_DATA names their folder")
def test_photographs_of_coco():
    found = samples(f"coco:{COCO}")
    assert (len(found), len(found.classes)) == (100, 80)
    things = [thing for sample in found for thing in sample.annotations]
    assert (len(things), sum(thing.crowd for thing in things)) == (746, 6)
    for thing in things:
        rows, columns = thing.mask.any(1).nonzero(), thing.mask.any(0).nonzero()
        tight = (columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1)
        assert max(abs(a - b) for a, b in zip(thing.box, tight, strict=True)) <= 2


# --- VOC --------------------------------------------------------------------------------------------------------------

PERSON = (
    "<object><name>person</name><bndbox><xmin>4</xmin><ymin>3</ymin><xmax>8</xmax><ymax>6</ymax></bndbox>{}</object>"
)
CAT = (
    "<object><name>cat</name><difficult>1</difficult><bndbox><ymax>2.5</ymax><xmax>2</xmax><xmin>1</xmin>"
    "<ymin>1</ymin></bndbox></object>"
)
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


def voc_set(folder: Path, objects: str = PERSON.format("") + CAT, *, size: str = SIZE, before: str = "") -> str:
    for number, name in enumerate(("one", "two")):
        picture(folder / "JPEGImages" / f"{name}.png", number)
        things = objects if name == "one" else ""
        written(folder / "Annotations" / f"{name}.xml", f"{before}<annotation>{size}{things}</annotation>")
    return f"voc:{folder}"


def test_voc_boxes_count_from_one_and_include_their_last_pixel(tmp_path):
    parts = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    source = voc_set(tmp_path, PERSON.format(parts) + CAT)
    found = samples(source)
    assert found.names == ("one", "two")
    assert same(found[0].image, Image.open(tmp_path / "JPEGImages/one.png"))
    assert [(t.label, t.box, t.mask) for t in found[0].annotations] == [
        ("person", BOX, None),
        ("cat", (0.0, 0.0, 2.0, 2.5), None),
    ]
    assert found[1].annotations == ()
    assert [t.box for t in samples(f"{source},origin=0")[0].annotations] == [(4, 3, 8, 6), (1, 1, 2, 2.5)]
    voc_set(tmp_path, PERSON.format("").replace("<xmin>4", "<xmin>0"))
    refused(source, "one.xml", "origin=0")
    refused(f"{source},origin=2", "origin", "'2'")


@pytest.mark.parametrize("palette", [False, True])
def test_voc_masks_belong_to_objects_in_the_order_of_the_file(tmp_path, palette):
    source = voc_set(tmp_path)
    numbers = block().to(torch.uint8)
    numbers[0, :2] = 2
    numbers[1, 3:8] = 255  # an outline
    image = Image.fromarray(numbers.numpy())
    if palette:
        image = Image.fromarray(numbers.numpy())
        image.putpalette([value for i in range(256) for value in (i * 37 % 256, i * 91 % 256, i * 13 % 256)])
    (tmp_path / "SegmentationObject").mkdir()
    image.save(tmp_path / "SegmentationObject/one.png")
    person, cat = samples(source)[0].annotations
    assert torch.equal(person.mask, block())
    assert cat.mask.nonzero().tolist() == [[0, 0], [0, 1]]

    voc_set(tmp_path, CAT + PERSON.format(""))
    refused(source, "one.png", "another order")
    voc_set(tmp_path, PERSON.format(""))
    refused(source, "one.png", "an object 2", "tells of 1")
    drawn(tmp_path / "SegmentationObject/one.png", np.zeros((HEIGHT, WIDTH, 3)))
    refused(source, "one.png", "RGB")
    drawn(tmp_path / "SegmentationObject/one.png", np.zeros((4, 4)))
    refused(source, "one.png", "(4, 4)")
    (tmp_path / "SegmentationObject/one.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    refused(source, "one.png")


def test_voc_splits(tmp_path):
    source = voc_set(tmp_path)
    written(tmp_path / "ImageSets/Main/cat_val.txt", "two -1\n")
    assert samples(f"{source},split=Main/cat_val").names == ("two",)
    refused(f"{source},split=Main/test", "split=Main/val", "test.txt")
    written(tmp_path / "ImageSets/Main/val.txt", "two\nthree\n")
    refused(f"{source},split=Main/val", "three", "JPEGImages")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "declared", ['<!ENTITY x SYSTEM "file:///etc/passwd">', '<!ENTITY a "aa"><!ENTITY x "&a;&a;&a;">', ""]
)
def test_document_types_and_entities_are_refused(tmp_path, declared, encoding):
    source = voc_set(tmp_path)
    text = f"<!DOCTYPE annotation [{declared}]><annotation><object><name>&x;</name></object></annotation>"
    (tmp_path / "Annotations/one.xml").write_bytes(text.encode(encoding))
    refused(source, "one.xml", "document type")


def test_damaged_and_missing_files_of_voc(tmp_path):
    refused(f"voc:{tmp_path}", "JPEGImages/NAME.jpg", "Annotations/NAME.xml")
    source = voc_set(tmp_path, "<object><name>cat</name></object>")
    refused(source, "one.xml", "bndbox/xmin")
    voc_set(tmp_path, PERSON.format("").replace("person", " "))
    refused(source, "one.xml", "without name")
    voc_set(tmp_path, PERSON.format("").replace("<xmax>8", "<xmax>wide"))
    refused(source, "one.xml", "wide")
    voc_set(tmp_path, PERSON.format("").replace("<xmax>8", "<xmax>inf"))
    refused(source, "one.xml", "inf")
    voc_set(tmp_path, size="<size><width>5</width><height>6</height></size>")
    refused(source, "one.png", "(5, 6)", "(12, 8)")
    voc_set(tmp_path, size="")
    assert len(list(samples(source))) == 2
    for name in ("klingon", "utf-7", "cp037", "idna", "unicode_escape", "shift_jis", "rot13", "hex", "a" * 500):
        body = f"<annotation>{SIZE}</annotation>"
        written(tmp_path / "Annotations/one.xml", f'<?xml version="1.0" encoding="{name}"?>{body}')
        with suppress(KonkyoError):  # an encoding that is read, or a refusal
            assert samples(source)[0].annotations == ()
    written(tmp_path / "Annotations/one.xml", '<?xml version="1.0" encoding="klingon"?><annotation/>')
    refused(source, "one.xml", "XML")
    (tmp_path / "Annotations/one.xml").unlink()
    os.mkfifo(tmp_path / "Annotations/one.xml")
    refused(source, "one")
    (tmp_path / "Annotations/one.xml").unlink()
    for text in ("", "<annotation>", "no xml"):
        written(tmp_path / "Annotations/one.xml", text)
        refused(source, "one.xml", "XML")
    (tmp_path / "JPEGImages/two.png").unlink()
    refused(source, "two", "JPEGImages")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_flat_folders_and_folders_of_classes(tmp_path):
    for number, name in enumerate(("img10.png", "img2.png")):
        picture(tmp_path / "flat" / name, number)
        picture(tmp_path / "classes" / ("dog", "cat")[number] / "same.png", number)
    flat, classes = samples(f"folder:{tmp_path / 'flat'}"), samples(f"folder:{tmp_path / 'classes'}")
    assert (flat.names, flat.classes) == (("img2.png", "img10.png"), ())
    assert [(sample.label, sample.annotations) for sample in flat] == [(None, ())] * 2
    assert same(flat[0].image, Image.open(tmp_path / "flat/img2.png"))
    assert (classes.names, classes.classes) == (("cat/same.png", "dog/same.png"), ("cat", "dog"))
    assert [sample.label for sample in classes] == ["cat", "dog"]
    assert "0 of 2" in classes.note


@pytest.mark.parametrize("name", ["n02_tabby.png", "n02/1.png"])
def test_classes_are_named_by_a_table(tmp_path, name):
    picture(tmp_path / name)
    written(tmp_path / "classes.txt", "n01\ttench\nn02\ttabby cat\n")
    found = samples(f"folder:{tmp_path}")
    assert (found[0].label, found.classes) == ("tabby cat", ("tench", "tabby cat"))
    written(tmp_path / "classes.txt", "n01\ttench\n")
    refused(f"folder:{tmp_path}", "classes.txt", "'n02'")
    written(tmp_path / "classes.txt", "n02 tabby\n")
    refused(f"folder:{tmp_path}", "classes.txt", "KEY<tab>NAME")


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        ("cat/one_mask.png", ""),
        ("masks/cat/one.png", ""),
        ("masks/cat/one_mask.gif", ""),
        ("outlines/cat/one.png", ",masks=outlines"),
        ("../elsewhere/cat/one.png", ",masks=../elsewhere"),
    ],
)
def test_masks_of_folders(tmp_path, mask, options):
    root = tmp_path / "data"
    picture(root / "cat/one.png", turned=3)
    picture(root / "cat/two.png")
    drawn(root / mask, 255 * block())
    found = samples(f"folder:{root}{options}")
    assert found.names == ("cat/one.png", "cat/two.png")
    assert "1 of 2" in found.note
    (thing,) = found[0].annotations
    assert (thing.label, thing.box) == ("cat", BOX)
    assert torch.equal(thing.mask, block())
    assert same(found[0].image, Image.open(root / "cat/one.png"))  # as the mask: not turned upright
    assert found[1].annotations == ()


def test_what_masks_may_look_like(tmp_path):
    picture(tmp_path / "one.png")
    source = f"folder:{tmp_path}"
    wide = (24, 16)
    for values in (block(), 255 * block(), 100 + 100 * block(), torch.stack([255 * block()] + 2 * [0 * block()], -1)):
        drawn(tmp_path / "masks/one.png", values)
        assert torch.equal(samples(source)[0].annotations[0].mask, block())
    Image.fromarray(block().numpy()).save(tmp_path / "masks/one.png")  # 1 bit
    assert torch.equal(samples(source)[0].annotations[0].mask, block())
    for value in (0, 1, 255):
        drawn(tmp_path / "masks/one.png", np.full((HEIGHT, WIDTH), value))
        thing = samples(source)[0].annotations[0]
        assert bool(thing.mask.all()) == bool(thing.mask.any()) == (value > 0)
        assert thing.box == ((0, 0, WIDTH, HEIGHT) if value else None)
    grey = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 255 // (HEIGHT * WIDTH - 1)
    drawn(tmp_path / "masks/one.png", grey)
    assert torch.equal(samples(source)[0].annotations[0].mask, torch.from_numpy(grey >= 128))
    drawn(tmp_path / "masks/one.png", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3)
    refused(source, "masks/one.png", "what is inside")
    drawn(tmp_path / "masks/one.png", np.zeros((HEIGHT, WIDTH, 4)))
    refused(source, "masks/one.png", "transparency")
    drawn(tmp_path / "masks/one.png", block((0, 0, 5, 5), wide))
    refused(source, "one.png", "(12, 8)", "(24, 16)")
    (tmp_path / "masks/one.png").rename(tmp_path / "masks/other.png")
    refused(source, "no mask of a picture", "masks/one.png")


def test_a_picture_named_mask_is_a_picture_where_no_other_has_its_name(tmp_path):
    picture(tmp_path / "with_mask.png")
    assert samples(f"folder:{tmp_path}").names == ("with_mask.png",)


def test_folders_that_cannot_be_told(tmp_path):
    refused(f"folder:{tmp_path}", "no image files")
    picture(tmp_path / "cat/one.png")
    refused(f"folder:{tmp_path},masks=none", "masks", "none")
    picture(tmp_path / "flat.png")
    refused(f"folder:{tmp_path}", "DIR/CLASS/NAME.jpg", "cat/one.png", "flat.png")
    (tmp_path / "flat.png").unlink()
    assert len(samples(f"folder:{tmp_path}")) == 1
    (tmp_path / "cat").rename(tmp_path / "train")
    picture(tmp_path / "train/cat/one.png")
    refused(f"folder:{tmp_path / 'train'}/..", "train/cat/one.png")


# --- all of them ------------------------------------------------------------------------------------------------------


def test_a_limit_draws_by_seed_and_nothing_is_opened_before_it_is_asked_for(tmp_path):
    for number in range(12):
        written(tmp_path / f"{number}.png", "no image")
    picture(tmp_path / "5.png")
    source = f"folder:{tmp_path}"
    everything = samples(source)
    assert everything.names == tuple(f"{number}.png" for number in range(12))
    five, eight, other = samples(source, limit=5), samples(source, limit=8), samples(source, limit=8, seed=1)
    assert eight.names[:5] == five.names == samples(source, limit=5).names != everything.names[:5]
    assert set(other.names) != set(eight.names)
    assert sorted(samples(source, limit=99).names) == sorted(everything.names)
    drawn_all = samples(source, limit=12)
    assert drawn_all[drawn_all.names.index("5.png")].name == "5.png"
    assert samples(everything, limit=5).names == samples(f"{source},limit=5").names == five.names
    assert samples(f"{source},limit=8", seed=1).names == other.names
    with pytest.raises(ImageError):
        everything[0]


def test_samples_travel_to_workers(tmp_path):
    coco_set(tmp_path / "c", [{}])
    voc_set(tmp_path / "v")
    picture(tmp_path / "f/1.png")
    for source in ("scenes:2", *(f"{kind}:{tmp_path / kind[0]}" for kind in ("coco", "voc", "folder"))):
        found = samples(source, limit=1)
        copied = pickle.loads(pickle.dumps(found))
        assert same(copied[0].image, found[0].image)
        assert copied[-1].name == found.names[0]


def test_data_of_ones_own():
    image = Image.new("RGB", (WIDTH, HEIGHT))
    own = [Sample(name, image, annotations=(Annotation("cat", mask=block()),)) for name in "abc"]
    assert samples(own).names == ("a", "b", "c")
    assert samples(own)[2] is own[2]
    assert len(samples(own, limit=2)) == 2

    class Own(torch.utils.data.Dataset[Sample]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Sample:
            return own[index]

    assert samples(Own()).names == ("a", "b", "c")
    refused([own[0], own[0]], "'a'")
    refused([(image, 3)], "Sample", "tuple")
    with pytest.raises(IndexError):
        samples(own)[3]
    with pytest.raises(KonkyoError, match="bool mask"):
        Sample("a", image, annotations=(Annotation(mask=block(size=(5, 5), box=(0, 0, 1, 1))),))
    with pytest.raises(KonkyoError, match="bool mask"):
        Sample("a", image, annotations=(Annotation(evidence=block().float()),))
    with pytest.raises(KonkyoError, match="a box"):
        Sample("a", image, annotations=(Annotation(box=(3, 3, 2, 5)),))
    with pytest.raises(KonkyoError, match="several"):
        Samples(("a", "a"), own.__getitem__)


def test_errors_say_what_is_on_offer(tmp_path):
    assert set(LAYOUTS) == {"coco", "voc", "folder", "chest", "brain", "sun397"}
    assert set(DRAWN) == {"scenes", "lesions", "questions"}
    for source in ("coca:x", "scene:3", str(tmp_path), tmp_path, ""):
        refused(source, "scenes:COUNT", "coco:DIR", "voc:DIR", "folder:DIR")
    for source in ("scenes:many", "scenes:3,objects=1-", "scenes:3,size=big", "scenes:-1"):
        refused(source, "scenes:200,objects=1-5,size=128")
    refused("scenes:3,objects=9", "from 1 to 8")
    refused("scenes:3,number=2", "number", "objects")
    refused("scenes:3", "limit", limit=0)
    refused("scenes:3,limit=0", "scenes:3,limit=COUNT", "'0'")
    refused("scenes:3,limits=2", "did you mean 'limit'")
    refused("scenes:3", "seed", seed=-1)
