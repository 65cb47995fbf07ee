"""Train, validation and test: nothing twice, every class everywhere, the same every time; and what a trainer reads."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import to_tensor

from helpers.paths import DATA
from konkyo.data import splits as module
from konkyo.data.samples import Sample, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.data.splits import Examples, Splits, labels_of, splits
from konkyo.errors import KonkyoError


def empty(folder: Path, counts: dict[str, int]) -> Path:
    """Files of these numbers in these folders; they are no pictures, so that opening one is an error."""
    for where, count in counts.items():
        (folder / where).mkdir(parents=True)
        for number in range(count):
            (folder / where / f"{number}.png").write_bytes(b"no picture")
    return folder


def counted(part: Samples) -> dict[str, int]:
    return dict(Counter(part.labels))


def names(found: Splits) -> list[str]:
    """Of all parts; fails where a sample is in two."""
    listed = [name for part in (found.train, found.validation, found.test) for name in part.names]
    assert len(set(listed)) == len(listed)
    return sorted(listed)


def refused(source: object, *words: str, **options: float) -> None:
    with pytest.raises(KonkyoError) as caught:
        splits(source, **options)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_a_folder_is_split_in_three_class_by_class_without_opening_a_picture(tmp_path):
    source = f"folder:{empty(tmp_path, {'a': 100, 'b': 20})}"
    found = splits(source)
    assert (counted(found.train), counted(found.validation)) == ({"a": 60, "b": 12}, {"a": 15, "b": 3})
    assert counted(found.test) == {"a": 25, "b": 5}
    assert found.classes == ("a", "b")
    assert names(found) == sorted(samples(source).names)
    assert splits(source).test.names == found.test.names
    assert splits(source, seed=1).test.names != found.test.names
    assert splits(source, validation=0.3).test.names == found.test.names
    assert [label[0] for label in found.train.names] == list(found.train.labels)
    few = splits(source, limit=60)
    assert len(names(few)) == 60
    assert set(names(few)) == set(samples(source, limit=60).names)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=12, max_size=80),
    st.floats(0.05, 0.45),
    st.floats(0.05, 0.45),
    st.integers(0, 5),
)
def test_every_class_in_every_part_or_an_error(labels, validation, test, seed):
    found = Samples(tuple(map(str, range(len(labels)))), lambda _: pytest.fail("opened"), labels=tuple(labels))
    counts = Counter(labels)
    try:
        made = splits(found, seed=seed, validation=validation, test=test, copies="ignored")
    except KonkyoError:
        assert min(counts.values()) < 6 or len(counts) == 1
        return
    assert len(names(made)) == len(labels)
    for part, share in ((made.validation, validation), (made.test, test)):
        for label, count in counts.items():
            assert abs(part.labels.count(label) - share * count) <= 1
    assert set(made.train.labels) == set(labels)
    assert all(labels[int(n)] == label for n, label in zip(made.train.names, made.train.labels, strict=True))


def test_chest_keeps_its_test_set_and_its_small_validation_set_is_filled_up(tmp_path):
    counts = {"train/NORMAL": 400, "train/PNEUMONIA": 1200, "test/NORMAL": 30, "test/PNEUMONIA": 40}
    empty(tmp_path, counts | {"val/NORMAL": 8, "val/PNEUMONIA": 8})
    found = splits(f"chest:{tmp_path}")
    assert counted(found.test) == {"NORMAL": 30, "PNEUMONIA": 40}
    assert all(name.startswith("test/") for name in found.test.names)
    assert counted(found.validation) == {"NORMAL": round(0.15 * 408), "PNEUMONIA": round(0.15 * 1208)}
    assert sum(name.startswith("val/") for name in found.validation.names) == 16
    assert all(name.startswith("train/") for name in found.train.names)
    assert len(names(found)) == sum(counts.values()) + 16


def test_brain_keeps_its_test_set(tmp_path):
    classes = ("glioma", "meningioma", "notumor", "pituitary")
    empty(tmp_path, {f"Training/{name}": 20 for name in classes} | {f"Testing/{name}": 5 for name in classes})
    found = splits(f"brain:{tmp_path}")
    assert {name.split("/")[0] for name in found.test.names} == {"Testing"}
    assert {name.split("/")[0] for name in (*found.train.names, *found.validation.names)} == {"Training"}
    assert counted(found.validation) == dict.fromkeys(classes, 3)
    assert counted(found.train) == dict.fromkeys(classes, 17)


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_folders_that_are_split_already_stay_so(tmp_path, validation):
    parts = ("train", validation, "test")
    source = f"folder:{empty(tmp_path, {f'{part}/{label}': 6 for part in parts for label in 'ab'})}"
    everything = samples(source)
    assert everything.classes == ("a", "b")
    assert len(samples(f"{source},split=test")) == 12
    found = splits(source)
    for part, made in zip(parts, (found.train, found.validation, found.test), strict=True):
        assert {name.split("/")[0] for name in made.names} == {part}
        assert counted(made) == {"a": 6, "b": 6}


def test_a_small_validation_set_of_ones_own_is_kept(tmp_path):
    counts = {f"{part}/{label}": n for part, n in (("train", 60), ("val", 4), ("test", 9)) for label in "ab"}
    found = splits(f"folder:{empty(tmp_path, counts)}")
    assert [counted(p)["a"] for p in (found.train, found.validation, found.test)] == [60, 4, 9]


def test_what_a_data_set_does_not_split_is_drawn(tmp_path):
    empty(tmp_path / "one", {f"{part}/{label}": 20 for part in ("train", "val") for label in "ab"})
    found = splits(f"folder:{tmp_path / 'one'}")
    assert {name.split("/")[0] for name in found.validation.names} == {"val"}
    assert {name.split("/")[0] for name in found.test.names} == {"train"}
    assert [counted(p) for p in (found.train, found.validation, found.test)] == [
        {"a": 10, "b": 10}, {"a": 20, "b": 20}, {"a": 10, "b": 10},
    ]  # fmt: skip
    empty(tmp_path / "two", {f"{part}/{label}": 20 for part in ("train", "test") for label in "ab"})
    found = splits(f"folder:{tmp_path / 'two'}")
    assert [counted(p)["a"] for p in (found.train, found.validation, found.test)] == [17, 3, 20]
    assert {name.split("/")[0] for name in found.test.names} == {"test"}


def test_train_and_test_may_be_classes(tmp_path):
    found = samples(f"folder:{empty(tmp_path, {'train': 3, 'tram': 3})}")
    assert (found.classes, found.parts) == (("train", "tram"), ())


def test_sun397(tmp_path):
    empty(tmp_path, {"a/abbey": 8, "a/apse/indoor": 8, "b/bar": 8})
    source = f"sun397:{tmp_path}"
    found = samples(source)
    assert found.classes == ("abbey", "apse/indoor", "bar")
    assert found.labels == ("abbey",) * 8 + ("apse/indoor",) * 8 + ("bar",) * 8
    assert found.parts == ()
    assert counted(splits(source).test) == dict.fromkeys(found.classes, 2)
    with pytest.raises(KonkyoError, match=r"Training_01.txt.*Partitions"):
        samples(f"{source},partition=01")
    (tmp_path / "Partitions").mkdir()
    for kind, numbers in (("Training", (0, 1, 2, 3)), ("Testing", (4, 5))):
        lines = [f"/{where}/{n}.png\n" for where in ("a/abbey", "a/apse/indoor", "b/bar") for n in numbers]
        (tmp_path / "Partitions" / f"{kind}_01.txt").write_text("".join(lines))
    found = splits(f"{source},partition=01", validation=0.25)
    assert set(found.test.names) == set(samples(f"{source},partition=01,split=test").names)
    assert counted(found.test) == dict.fromkeys(found.classes, 2)
    assert counted(found.validation) == dict.fromkeys(found.classes, 1)
    assert len(names(found)) == 18
    for line, words in (("/a/abbey/9.png", "lists it"), ("/a/../b/bar/0.png", "not laid out"), ("", "no pictures")):
        (tmp_path / "Partitions/Training_01.txt").write_text(line)
        with pytest.raises(KonkyoError, match=words):
            samples(f"{source},partition=01")
    with pytest.raises(KonkyoError, match=r"a/abbey/sun_1\.jpg"):
        samples(f"sun397:{tmp_path / 'a'}")


def test_what_is_drawn_is_split_too():
    found = splits("lesions:40,places=random", seed=3)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [24, 6, 10]
    assert names(found) == sorted(samples("lesions:40,places=random", seed=3).names)
    sample = found.test[4]
    assert (sample.name, sample.label) == (found.test.names[4], found.test.labels[4])
    scenes = splits("scenes:120,objects=1")
    assert len(scenes.classes) == 10
    assert [scenes.validation[i].label for i in range(5)] == list(scenes.validation.labels[:5])


def test_labels_of_scenes_are_known_before_they_are_drawn():
    for given_ones in (Scenes(12, seed=9, objects=1), Scenes(12, seed=2, objects=1, classes=["daisy", "cat"])):
        found = samples(given_ones)
        assert found.labels == tuple(sample.label for sample in found)
    assert samples("scenes:5").labels == ()


def test_labels_are_read_where_nothing_else_tells():
    image = Image.new("RGB", (8, 8))
    own = [Sample(str(n), Image.new("RGB", (8, 8), (n, 0, 0)), "ab"[n % 2]) for n in range(20)]
    found = splits(own)
    assert (counted(found.train), counted(found.test)) == ({"a": 6, "b": 6}, {"a": 2, "b": 2})
    refused([*own, Sample("x", image)], "x has none", "DIR/CLASS/NAME.jpg")
    refused("scenes:6,objects=2", "objects=1")
    assert labels_of(samples(own)) == tuple("ab" * 10)


def test_mistakes_are_named(tmp_path):
    refused(
        f"folder:{empty(tmp_path / 'few', {'a': 20, 'b': 2})}", "'b'", "none of the 2", "train, validation and test"
    )
    refused(f"folder:{empty(tmp_path / 'one', {'a': 20})}", "two classes", "got a")
    both = {"train/a": 20, "train/b": 20, "test/a": 3}
    refused(f"folder:{empty(tmp_path / 'gap', both)}", "test has none of the 20 of 'b'")
    for shares in ((0, 0.2), (0.2, 0), (0.5, 0.5), (-1, 0.5), (float("nan"), 0.5)):
        refused("lesions:40", "shares above 0", validation=shares[0], test=shares[1])
    with pytest.raises(KonkyoError, match="a label of every sample"):
        Samples(("a", "b"), lambda _: pytest.fail("opened"), labels=("x",))
    with pytest.raises(KonkyoError, match="a part of every sample"):
        Samples(("a", "b"), lambda _: pytest.fail("opened"), parts=("train",))


# --- examples ---------------------------------------------------------------------------------------------------------


def test_examples_are_inputs_and_classes():
    found = samples("lesions:9")
    examples = Examples(found, to_tensor)
    assert len(examples) == 9
    assert examples.classes == ("disc", "ring", "stripes")
    picture, label = examples[4]
    assert torch.equal(picture, to_tensor(found[4].image))
    assert (label, type(label)) == (1, int)
    assert examples[-1][1] == 2
    batches = list(torch.utils.data.DataLoader(examples, batch_size=4))
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 48, 48), (4, 3, 48, 48), (1, 3, 48, 48)]
    assert torch.cat([y for _, y in batches]).tolist() == [0, 1, 2] * 3
    assert torch.cat([y for _, y in batches]).dtype == torch.int64
    assert Examples(found, to_tensor, ("stripes", "ring", "disc"))[0][1] == 2
    with pytest.raises(KonkyoError, match="'ring'"):
        Examples(found, to_tensor, ("disc", "stripes"))
    with pytest.raises(IndexError):
        examples[9]


def test_a_cache_opens_every_picture_once_and_transforms_it_every_time():
    found, opened, transformed = samples("lesions:6"), [], []

    def read(index: int) -> Sample:
        opened.append(index)
        return found[index]

    def transform(image: Image.Image) -> torch.Tensor:
        transformed.append(image)
        return to_tensor(image)

    known = Samples(found.names, read, found.classes, labels=found.labels)
    for cache, times in ((0, 12), (1 << 20, 6)):
        opened.clear(), transformed.clear()
        examples = Examples(known, transform, cache=cache)
        first, second = [[examples[index][0] for index in range(6)] for _ in range(2)]
        assert (len(opened), len(transformed)) == (times, 12)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert examples[-1][0].equal(first[5])
        assert len(opened) == times + (not cache)


def test_examples_travel_to_workers():
    found = splits("lesions:24")
    examples = pickle.loads(pickle.dumps(Examples(found.train, to_tensor, found.classes)))
    assert examples[3][1] == module.Examples(found.train, to_tensor)[3][1]


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the photographs: KONKYO_TEST_DATA names their folder")
@pytest.mark.parametrize(("folder", "count", "classes"), [("cxr", 80, 2), ("brain_mri", 253, 2), ("scenes15", 450, 15)])
def test_photographs(folder, count, classes):
    found = splits(f"folder:{DATA / folder}")
    assert (len(names(found)), len(found.classes)) == (count, classes)
    picture, label = Examples(found.validation, to_tensor, found.classes)[0]
    assert (len(picture), found.classes[label]) == (3, found.validation[0].label)
