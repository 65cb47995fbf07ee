"""Groups of samples stay in one part: copies, pictures alike, patients. Without any, parts are those of before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from konkyo.data.groups import groups_of, read_groups
from konkyo.data.samples import Sample, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.data.splits import Splits, splits
from konkyo.errors import KonkyoError


def parts_one_by_one(
    labels: Sequence[str], given_parts: Sequence[str], seed: int, validation: float, test: float
) -> list[list[int]]:
    """Divides images one by one, literally as parts were formed before there were groups."""
    pool = [index for index, part in enumerate(given_parts) if part != "test"]
    held_out = [index for index, part in enumerate(given_parts) if part == "test"]
    valid = [index for index in pool if given_parts[index] == "validation"]
    enough = len(valid) >= 0.1 * validation * len(pool)
    generator = torch.Generator().manual_seed(seed)
    for label in sorted(set(labels)):
        members = [index for index in pool if labels[index] == label]
        free = [index for index in members if given_parts[index] == "train"]
        free = [free[i] for i in torch.randperm(len(free), generator=generator).tolist()]
        if "test" not in given_parts:
            count = max(1, round(test * len(members)))
            held_out, free = held_out + free[:count], free[count:]
        if not enough:
            present = sum(given_parts[index] == "validation" for index in members)
            count = max(1, round(validation * len(members))) - present
            valid += free[: max(0, min(count, len(free) - 1))]
    taken = {*valid, *held_out}
    return [sorted(part) for part in ([index for index in pool if index not in taken], valid, held_out)]


def unopened(labels: Sequence[str], parts: Sequence[str] = ()) -> Samples:
    return Samples(
        tuple(map(str, range(len(labels)))),
        lambda _: pytest.fail("opened"),
        labels=tuple(labels),
        parts=tuple(parts),
    )


def indices(found: Splits) -> list[list[int]]:
    return [[int(name) for name in part.names] for part in (found.train, found.validation, found.test)]


PARTS = st.sampled_from(["none", "test", "validation", "both"])
DRAWN_FROM = {
    "none": ["train"], "test": ["train", "train", "test"], "validation": ["train", "train", "validation"],
    "both": ["train", "train", "train", "test", "validation"],
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=10, max_size=70),
    PARTS,
    st.floats(0.05, 0.45),
    st.floats(0.05, 0.45),
    st.integers(0, 9),
)
def test_without_copies_the_parts_are_those_of_dividing_images_one_by_one(labels, kind, validation, test, seed):
    rng = np.random.default_rng(seed)
    given_parts = [str(part) for part in rng.choice(DRAWN_FROM[kind], len(labels))]
    before = parts_one_by_one(labels, given_parts, seed, validation, test)
    complete = all({labels[i] for i in part} == set(labels) for part in before) and len(set(labels)) > 1
    data = unopened(labels, () if set(given_parts) == {"train"} else given_parts)
    try:
        found = splits(data, seed=seed, validation=validation, test=test, copies="ignored")
    except KonkyoError:
        assert not complete
        return
    if complete:
        assert indices(found) == before
        assert (found.grouping.groups, found.grouping.moved, found.grouping.removed) == (0, 0, ())
        assert found.grouping.remark == ""


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_group_lies_in_two_parts(data):
    """Groups of 1 to 12 images, of one label or several, with and without parts of the data set's own."""
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=9, max_size=40))
    mixed = data.draw(st.booleans())
    kind, seed = data.draw(PARTS), data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    of = [group for group, size in enumerate(sizes) for _ in range(size)]
    labels = [str(label) for label in rng.choice(["a", "b"], len(of))] if mixed else ["ab"[group % 2] for group in of]
    given_parts = [str(part) for part in rng.choice(DRAWN_FROM[kind], len(of))]
    source = unopened(labels, () if set(given_parts) == {"train"} else given_parts)
    table = {str(index): f"patient {group}" for index, group in enumerate(of)}
    try:
        found = splits(source, seed=seed, copies="ignored", groups=table)
    except KonkyoError:  # some class has too few groups
        return
    parts = indices(found)
    homes = [{of[index] for index in part} for part in parts]
    assert not homes[0] & homes[1]
    assert not homes[0] & homes[2]
    assert not homes[1] & homes[2]
    listed = sorted([*(i for part in parts for i in part), *map(int, found.grouping.removed)])
    assert listed == list(range(len(of)))
    if "test" in given_parts:  # it stays as it is
        assert parts[2] == [index for index, part in enumerate(given_parts) if part == "test"]
    assert {given_parts[int(name)] for name in found.grouping.removed} <= {"train", "validation"}
    if kind == "none":
        assert found.grouping.removed == ()
    assert indices(splits(source, seed=seed, copies="ignored", groups=table)) == parts


@pytest.mark.parametrize("seed", range(25))
def test_shares_of_classes_are_as_near_as_the_largest_group_allows(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 60)
    of = [group for group, size in enumerate(sizes) for _ in range(size)]
    labels = ["abc"[group % 3] for group in of]
    table = {str(index): str(group) for index, group in enumerate(of)}
    found = splits(unopened(labels), seed=seed, copies="ignored", groups=table)
    for label, count in Counter(labels).items():
        for part, share in ((found.test, 0.25), (found.validation, 0.15)):
            assert abs(part.labels.count(label) - share * count) <= sizes.max() / 2 + 0.5


def test_what_was_found_is_counted():
    labels, of = ["a"] * 12 + ["b"] * 12, [0, 0, 0, *range(3, 12), *range(12, 22), 22, 22]
    table = {str(index): str(group) for index, group in enumerate(of)}
    for seed in range(20):
        before = parts_one_by_one(labels, ["train"] * 24, seed, 0.15, 0.25)
        found = splits(unopened(labels), seed=seed, copies="ignored", groups=table)
        after, grouping = indices(found), found.grouping
        home = [{i: number for number, part in enumerate(parts) for i in part} for parts in (before, after)]
        apart = [m for m in ([0, 1, 2], [22, 23]) if len({home[0][i] for i in m}) > 1]
        assert (grouping.groups, grouping.images, grouping.largest, grouping.labels) == (2, 5, 3, 0)
        assert grouping.divided == sum(map(len, apart))
        assert grouping.moved == sum(home[0][i] != home[1][i] for i in range(24))
        assert "5 images lie in 2 groups of several (groups of a mapping (" in grouping.remark
        assert f"{grouping.divided} of them" in grouping.remark


def test_a_group_larger_than_a_part_and_a_class_of_three_groups():
    of = [0] * 20 + [1] * 20 + [2] * 20 + list(range(3, 63))
    table = {str(index): str(group) for index, group in enumerate(of)}
    found = splits(unopened(["a"] * 60 + ["b"] * 60), copies="ignored", groups=table)
    assert [part.labels.count("a") for part in (found.train, found.validation, found.test)] == [20, 20, 20]
    assert [part.labels.count("b") for part in (found.train, found.validation, found.test)] == [36, 9, 15]
    of = [0] * 50 + list(range(1, 11)) + list(range(11, 71))
    table = {str(index): str(group) for index, group in enumerate(of)}
    found = splits(unopened(["a"] * 60 + ["b"] * 60), copies="ignored", groups=table)
    assert set(range(50)) <= set(indices(found)[0])


def test_a_class_of_one_group_is_an_error_that_says_so():
    table = {str(index): "0" if index < 30 else str(index) for index in range(60)}
    with pytest.raises(KonkyoError, match=r"none of the 30 of 'a', which lie in 1 groups that stay whole"):
        splits(unopened(["a"] * 30 + ["b"] * 30), copies="ignored", groups=table)


# --- copies -----------------------------------------------------------------------------------------------------------


def drawn(folder: Path, count: int = 12, seed: int = 0) -> dict[str, Image.Image]:
    """Draws so many pictures each of the classes a and b, as PNG files; -> name, picture."""
    pictures: dict[str, Image.Image] = {}
    for number in range(2 * count):
        name = f"{'ab'[number % 2]}/{number:02}.png"
        pictures[name] = Scenes(2 * count, seed=seed, size=64)[number].image
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pictures[name].save(folder / name)
    return pictures


def home(found: Splits) -> dict[str, str]:
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    return {name: part for part, data in parts.items() for name in data.names}


def test_identical_pictures_are_one_group_however_they_are_stored(tmp_path):
    pictures = drawn(tmp_path)
    (tmp_path / "a/copy.png").write_bytes((tmp_path / "a/00.png").read_bytes())  # the same bytes
    pictures["a/02.png"].save(tmp_path / "a/other.bmp")  # the same pixels
    pictures["b/01.png"].transpose(Image.Transpose.ROTATE_90).save(  # the same picture, upright by its EXIF orientation
        tmp_path / "b/turned.png", exif=exif_of(6)
    )
    pictures["b/03.png"].save(tmp_path / "b/lossy.jpg", quality=60)  # other pixels
    found = groups_of(samples(f"folder:{tmp_path}"))
    names = samples(f"folder:{tmp_path}").names
    several = {tuple(names[i] for i in members) for members in found.members() if len(members) > 1}
    assert several == {("a/00.png", "a/copy.png"), ("a/02.png", "a/other.bmp"), ("b/01.png", "b/turned.png")}
    for seed in range(15):
        parts = home(splits(f"folder:{tmp_path}", seed=seed))
        assert all(parts[one] == parts[other] for one, other in several)
    ignored = [home(splits(f"folder:{tmp_path}", seed=seed, copies="ignored")) for seed in range(15)]
    assert any(parts[one] != parts[other] for parts in ignored for one, other in several)


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def test_saved_again_smaller_and_mirrored_pictures_are_alike(tmp_path):
    pictures = drawn(tmp_path)
    pictures["a/00.png"].save(tmp_path / "a/lossy.jpg", quality=50)
    pictures["a/02.png"].resize((48, 48)).save(tmp_path / "a/small.png")
    pictures["b/01.png"].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b/mirrored.png")
    pairs = {("a/00.png", "a/lossy.jpg"), ("a/02.png", "a/small.png"), ("b/01.png", "b/mirrored.png")}
    data = samples(f"folder:{tmp_path}")
    found = groups_of(data, "alike")
    assert found.copies == "alike:10"  # the limit of pictures in colours
    assert {tuple(data.names[i] for i in m) for m in found.members() if len(m) > 1} == pairs
    assert all(len(members) == 1 for members in groups_of(data).members())
    for seed in range(15):
        parts = splits(f"folder:{tmp_path}", seed=seed, copies="alike")
        assert all(home(parts)[one] == home(parts)[other] for one, other in pairs)
        assert parts.grouping.images == 6
    everything = groups_of(data, "alike:64")
    assert len(everything.members()) == 1
    grey = tmp_path / "grey"
    for name, picture in pictures.items():
        (grey / name).parent.mkdir(parents=True, exist_ok=True)
        picture.convert("L").save(grey / name)
    assert groups_of(samples(f"folder:{grey}"), "alike").copies == "alike:6"


def test_training_copies_of_test_pictures_leave_the_training_part(tmp_path):
    for part, seed in (("train", 1), ("val", 2), ("test", 3)):
        drawn(tmp_path / part, 8 if part == "train" else 4, seed)
    clean = splits(f"folder:{tmp_path}")
    assert clean.grouping.remark == ""
    (tmp_path / "train/a/copy.png").write_bytes((tmp_path / "test/a/00.png").read_bytes())
    (tmp_path / "val/b/copy.png").write_bytes((tmp_path / "test/b/01.png").read_bytes())
    (tmp_path / "train/b/copy.png").write_bytes((tmp_path / "val/b/03.png").read_bytes())
    found = splits(f"folder:{tmp_path}")
    assert home(found) == home(clean)
    assert set(found.grouping.removed) == {"train/a/copy.png", "val/b/copy.png", "train/b/copy.png"}
    assert "3 images were taken out" in found.grouping.remark
    assert (found.grouping.divided, found.grouping.moved) == (6, 0)


def test_copies_with_two_labels_are_counted_and_stay_together(tmp_path):
    drawn(tmp_path)
    (tmp_path / "b/copy.png").write_bytes((tmp_path / "a/00.png").read_bytes())
    for seed in range(10):
        found = splits(f"folder:{tmp_path}", seed=seed)
        assert home(found)["a/00.png"] == home(found)["b/copy.png"]
        assert found.grouping.labels == 1
        assert "1 groups have images of several labels" in found.grouping.remark


def test_drawn_data_is_not_opened_and_pictures_without_files_are():
    assert len(groups_of(samples("lesions:30")).members()) == 30
    calls = list[int]()

    def read(index: int) -> Sample:
        calls.append(index)
        return Sample(str(index), Image.new("RGB", (4, 4), (index // 2, 0, 0)), "ab"[index % 2])

    data = Samples(tuple(map(str, range(8))), read, labels=tuple("abababab"))
    assert groups_of(data).numbers == (0, 0, 2, 2, 4, 4, 6, 6)
    assert calls == list(range(8))
    assert groups_of(data, "ignored").numbers == tuple(range(8))
    assert calls == list(range(8))


def test_what_cannot_be_opened_has_no_copy_and_is_counted(tmp_path):
    drawn(tmp_path)
    for name in ("a/x.png", "a/y.png"):
        (tmp_path / name).write_bytes(b"no picture")
    found = splits(f"folder:{tmp_path}")
    assert (found.grouping.groups, found.grouping.unread) == (0, 2)
    assert found.grouping.remark.startswith("2 images could not be opened")


@pytest.mark.parametrize("copies", ["same", "alike:", "alike:65", "alike:-1", "identical:3", ""])
def test_other_kinds_of_copies_are_refused(copies):
    with pytest.raises(KonkyoError, match="identical, alike, alike:BITS, ignored"):
        splits("lesions:30", copies=copies)


# --- tables -----------------------------------------------------------------------------------------------------------


def table_of(path: Path, rows: Mapping[str, str], head: str = "name,group") -> Path:
    path.write_text("\n".join([head, *(f"{name},{group}" for name, group in rows.items())]) + "\n")
    return path


def test_images_of_a_patient_stay_together_and_names_are_matched_in_three_ways(tmp_path):
    names = list(drawn(tmp_path / "data"))
    patients = {name: f"p{number // 3}" for number, name in enumerate(names)}
    ways = {
        "name": dict(patients),
        "file": {name.rpartition("/")[2]: patient for name, patient in patients.items()},
        "path": {str((tmp_path / "data" / name).resolve()): patient for name, patient in patients.items()},
    }
    found = [
        splits(f"folder:{tmp_path / 'data'}", seed=1, groups=table_of(tmp_path / f"{way}.csv", rows))
        for way, rows in ways.items()
    ]
    assert home(found[0]) == home(found[1]) == home(found[2])
    for patient in set(patients.values()):
        assert len({home(found[0])[name] for name in names if patients[name] == patient}) == 1
    assert found[0].grouping.table.startswith("name.csv (")
    assert home(splits(f"folder:{tmp_path / 'data'}", seed=1, groups=patients)) == home(found[0])
    (tmp_path / "semicolons.csv").write_text(
        "age;Patient;FILE\n" + "".join(f"7;{p};{n}\n" for n, p in patients.items())
    )
    assert read_groups(tmp_path / "semicolons.csv") == patients
    few = splits(f"folder:{tmp_path / 'data'}", limit=20, groups=patients)  # the table may name more
    assert len(home(few)) == 20


def test_a_table_and_copies_make_chains(tmp_path):
    names = list(drawn(tmp_path))
    (tmp_path / "a/copy.png").write_bytes((tmp_path / "a/00.png").read_bytes())
    rows = {name: name for name in names} | {"a/copy.png": "x", "a/04.png": "x"}
    data = samples(f"folder:{tmp_path}")
    several = [[data.names[i] for i in m] for m in groups_of(data, "identical", rows).members() if len(m) > 1]
    assert several == [["a/00.png", "a/04.png", "a/copy.png"]]


def test_tables_that_do_not_fit_are_refused(tmp_path):
    names = list(drawn(tmp_path / "data", 4))
    whole = {name: "p" + name for name in names}

    def refused(text: str | Mapping[str, str], *words: str) -> None:
        path = tmp_path / "t.csv"
        path.write_text(text) if isinstance(text, str) else table_of(path, text)
        with pytest.raises(KonkyoError) as caught:
            splits(f"folder:{tmp_path / 'data'}", groups=path)
        assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)

    refused("", "name (or file, image) and group (or patient)", "got no line")
    refused("name,age\na,3\n", "got name, age")
    refused("name,group\na/00.png\n", "line 2", "'a/00.png'")
    refused("name,group\na/00.png,1\na/00.png,2\n", "line 3", "'2' here, and '1' before")
    refused(dict.fromkeys(names[1:], "p"), "no group of 1 of the 8 images, such as a/00.png", "CLASS/NAME.jpg")
    refused(whole | {"a/99.png": "p"}, "names 1 images", "such as a/99.png", "is called a/00.png")
    refused(whole | {"00.png": "other"}, "a/00.png has two groups")
    with pytest.raises(KonkyoError, match="cannot be read"):
        splits(f"folder:{tmp_path / 'data'}", groups=tmp_path / "nowhere.csv")
    data = Samples(("a/1.png", "b/1.png"), lambda _: pytest.fail("opened"), labels=("a", "b"))
    with pytest.raises(KonkyoError, match="no group of 2"):  # a file name that two have says nothing
        groups_of(data, "ignored", {"1.png": "p"})
