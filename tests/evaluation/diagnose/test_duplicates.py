"""Duplicates in data: what is said of copies, of copies in the training data, and of labels that contradict."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from konkyo.data.samples import Sample, Samples
from konkyo.data.sets.scenes import Scenes
from konkyo.evaluation.diagnose.duplicates import Duplicates, Pictures, duplicate_findings

SCENES = Scenes(16, seed=11, size=64)
DRAWN = [SCENES[i].image for i in range(16)]


def data(pictures: list[Image.Image], labels: str = "") -> Samples:
    names = tuple(f"{i}.png" for i in range(len(pictures)))
    known = tuple(labels)
    return Samples(
        names, lambda i: Sample(names[i], pictures[i], known[i] if known else None), tuple(set(known)), labels=known
    )


def test_data_without_duplicates_is_ok_and_says_what_would_have_been_seen() -> None:
    (finding,) = duplicate_findings(Duplicates.of(Pictures.of(data(DRAWN))))
    assert (finding.severity, finding.value, finding.n) == ("ok", 0.0, 16)
    assert "would be" in finding.sentence["en"]
    assert finding.values["pairs compared"] == 16 * 15 / 2


def test_images_of_the_training_data_are_counted_and_the_accuracy_is_without_them() -> None:
    test = data([*DRAWN[:8], ImageOps.mirror(DRAWN[9]), DRAWN[10].resize((32, 32))], "aaaaaaaabb")
    train = data(DRAWN[8:], "bbbbbbbb")
    correct = np.array([True, True, False, False, False, False, False, False, True, True])
    duplicates = Duplicates.of(Pictures.of(test, test.labels), Pictures.of(train, train.labels))
    (finding,) = duplicate_findings(duplicates, correct, training=True)
    assert duplicates.images == [8, 9]
    assert (finding.severity, finding.value) == ("high", 0.2)
    assert finding.values["accuracy"] == pytest.approx(0.4)
    assert finding.values["accuracy without duplicates"] == pytest.approx(0.25)
    assert finding.values["accuracy of duplicates"] == 1
    assert finding.values["pairs that are one picture"] == 2
    assert "2 of 10 images" in finding.sentence["en"]
    assert "10 枚のうち 2 枚" in finding.sentence["ja"]
    assert [evidence.picture.mode for evidence in finding.evidence] == ["RGB", "RGB"]


def test_a_copy_with_another_label_is_a_contradiction() -> None:
    findings = duplicate_findings(Duplicates.of(Pictures.of(data([*DRAWN, DRAWN[2]]), "a" * 16 + "b")))
    assert [finding.severity for finding in findings] == ["medium", "medium"]
    assert "2.png (a) and 16.png (b)" in findings[1].sentence["en"]


def test_of_several_copies_all_but_the_first_count() -> None:
    duplicates = Duplicates.of(Pictures.of(data([*DRAWN, DRAWN[0], DRAWN[0]])))
    assert duplicates.images == [16, 17]
    assert len(duplicates.pairs) == 3


def test_grey_data_has_the_narrower_limit() -> None:
    grey = [picture.convert("L") for picture in DRAWN]
    assert Duplicates.of(Pictures.of(data(grey))).limit == 6
    assert Duplicates.of(Pictures.of(data(DRAWN))).limit == 10
    assert Duplicates.of(Pictures.of(data(DRAWN)), Pictures.of(data(grey))).limit == 6


def test_pictures_that_are_alike_are_not_called_one_and_are_of_the_lowest_severity() -> None:
    """One has other pixels than the other: the first of these that is near by its hash, but not by its pixels."""
    generator = np.random.default_rng(0)
    pixels = np.asarray(DRAWN[3], dtype=np.float64)
    patch = pixels.copy()
    patch[::2, ::2] += generator.normal(0, 250, patch[::2, ::2].shape)
    alike = Image.fromarray(patch.clip(0, 255).astype(np.uint8))
    duplicates = Duplicates.of(Pictures.of(data([DRAWN[3], alike])))
    assert duplicates.same == (False,)
    finding, *_ = duplicate_findings(duplicates)
    assert finding.severity == "low"
    assert "0 of the 1 pairs" in finding.sentence["en"]


def test_no_pictures_at_all_are_no_error() -> None:
    empty = Pictures.of(Samples((), lambda _: Sample("", DRAWN[0])))
    assert Duplicates.of(empty).images == []
