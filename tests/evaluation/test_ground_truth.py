"""What is true of a picture as the model sees it: rows, boxes, crops, names, and detections matched to things."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import konkyo
from helpers.evaluation_inputs import SIZE, block, greedy, thing
from konkyo.data.samples import Annotation, Sample, box_of
from konkyo.evaluation.ground_truth import Truth, in_view
from konkyo.tasks.base import same_class
from konkyo.tasks.detection import matched


def test_the_truth_of_rows_pixel_by_pixel() -> None:
    boxes = [(2, 3, 10, 12), (8, 3, 20, 9), (30, 20, 38, 30)]
    things = (
        thing("a", boxes[0], evidence=block((3, 4, 5, 6))),
        thing("b", boxes[1]),
        Annotation("c", (30, 20, 38, 30)),
    )
    truth = Truth(((0,), (0, 1), (), (2,), (0,)), things, SIZE)
    masks, others = truth.masks("mask").values()
    assert torch.equal(masks[0], block(boxes[0]))
    assert torch.equal(masks[1], block(boxes[0]) | block(boxes[1]))
    assert not masks[2].any()
    assert not masks[3].any(), "a thing without a mask has none"
    assert torch.equal(others[0], block(boxes[1]))
    assert not others[1].any(), "the third thing has no mask"
    assert not others[2].any(), "where nothing is known, neither is what is other"
    boxed = truth.masks("box")
    assert torch.equal(boxed["masks"][3], block(boxes[2]))
    assert torch.equal(boxed["others"][1], block(boxes[2]))
    evidence = truth.masks("evidence")["masks"]
    assert torch.equal(evidence[0], block((3, 4, 5, 6)))
    assert not evidence[3].any()
    found = truth.objects()
    assert found["boxes"][0].tolist() == [2, 3, 10, 12]
    assert found["boxes"][1].tolist() == [2, 3, 20, 12]
    assert found["boxes"][2].isnan().all()
    assert found["boxes"][3].tolist() == [30, 20, 38, 30]
    numbers = found["objects"].tolist()
    assert numbers[0] == numbers[4]
    assert len(set(numbers)) == 4
    some = truth.of([3, 0])
    assert some.rows == ((2,), (0,))
    assert torch.equal(some.masks("mask")["masks"][1], masks[0])


def test_two_rows_of_which_nothing_is_known_share_no_object() -> None:
    assert len(set(Truth(((), (), ()), (), SIZE).objects()["objects"].tolist())) == 3


def test_the_box_of_a_thing_is_if_need_be_that_around_its_mask() -> None:
    assert box_of(Annotation("a", None, block((4, 5, 9, 7)))) == (4, 5, 9, 7)
    assert box_of(Annotation("a", (0, 0, 2, 2), block((4, 5, 9, 7)))) == (0, 0, 2, 2)
    assert box_of(Annotation("a", None, block((0, 0, 0, 0)))) is None
    assert box_of(Annotation("a")) is None


def test_what_a_resize_and_a_centre_crop_leave_of_things() -> None:
    """60 x 48 becomes 30 x 24, of which the middle 16 x 20 is seen: picture pixels 14 to 46 across, 4 to 44 down."""
    size = (48, 60)
    preprocess = konkyo.Preprocess(24, (20, 16), (0.5,) * 3, (0.25,) * 3)
    image = Image.new("RGB", (60, 48))
    things = (
        thing("whole", (20, 10, 30, 25), size, evidence=block((22, 11, 23, 12), size)),
        thing("part", (0, 0, 20, 10), size),
        thing("gone", (50, 0, 60, 48), size),
        Annotation("mask gone", None, block((0, 0, 14, 48), size)),
        thing("crowd", (20, 10, 30, 25), size, crowd=True),
        Annotation("bare"),
    )
    found = in_view(Sample("a", image, None, things), preprocess)
    assert preprocess.view(image).size == (32, 40)
    assert [t.label for t in found] == ["whole", "part", "gone", "mask gone", "bare"]
    for before, after in zip(things[:4], found[:4], strict=True):
        assert after.mask.shape == (40, 32)
        assert after.mask.dtype == torch.bool
        assert torch.equal(after.mask, before.mask[4:44, 14:46]), before.label
    assert found[0].box == (6, 6, 16, 21)
    assert found[0].evidence.nonzero().tolist() == [[7, 8]]
    assert found[1].box == (0, 0, 6, 6)
    assert found[2].box is None
    assert box_of(found[2]) is None
    assert not found[2].mask.any()
    assert not found[3].mask.any()
    assert found[4] == replace(things[5], label="bare") or (found[4].box, found[4].mask) == (None, None)


def test_a_letterbox_shows_all_of_the_picture() -> None:
    preprocess = konkyo.Preprocess((24, 24), (24, 24), (0.5,) * 3, (0.25,) * 3, fit="contain")
    image, own = Image.new("RGB", (40, 32)), thing("a", (3, 5, 20, 31))
    (found,) = in_view(Sample("a", image, None, (own,)), preprocess)
    assert preprocess.view(image).size == (40, 32)
    assert found.box == own.box
    assert torch.equal(found.mask, own.mask)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Fire_Truck", "fire truck", True),
        ("traffic-light", "Traffic_light", True),
        ("cat", "cat ", True),
        ("cat", "cats", False),
        (None, "cat", False),
        (None, None, False),
    ],
)
def test_names_of_one_class(one: str | None, other: str | None, same: bool) -> None:
    assert same_class(one, other) is same
    assert same_class(other, one) is same


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.3, 0.5]))
def test_detections_are_matched_one_to_one_the_best_first(seed: int, least: float) -> None:
    random = np.random.default_rng(seed)

    def boxes(count: int) -> list[list[float]]:
        low = random.uniform(0, 12, (count, 2))
        return np.concatenate([low, low + random.uniform(4, 12, (count, 2))], 1).astype(np.float32).tolist()

    things = tuple(Annotation(str(random.choice(["Red_fox", "owl"])), tuple(b)) for b in boxes(4))
    labels, found = [str(random.choice(["red fox", "OWL"])) for _ in range(6)], boxes(6)
    result = matched(labels, torch.tensor(found), things, least)
    assert result == greedy(labels, found, things, least)
    given_ = [own for own in result if own]
    assert len(given_) == len(set(given_))


def test_two_detections_of_one_thing_and_the_least_overlap() -> None:
    things = (
        Annotation("red_fox", (0, 0, 10, 10)),
        Annotation("owl", (0, 0, 10, 10)),
        Annotation(None, (0, 0, 10, 10)),
    )
    boxes = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 10], [0, 0, 10, 10]])
    assert matched(["Red fox", "Red fox", "owl"], boxes, things, 0.5) == [(0,), (), (1,)]
    assert matched(["Red fox", "Red fox", "owl"], boxes, things, 0.51) == [(), (0,), (1,)]
    assert matched(["cat"], boxes[:1], things, 0.0) == [()]
    assert matched([], torch.zeros(0, 4), things, 0.5) == []
    assert matched(["owl"], boxes[:1], (), 0.5) == [()]


def test_all_boxes_of_a_rows_things_and_the_crowds_of_their_class() -> None:
    things = (thing("a", (2, 3, 10, 12)), thing("b", (8, 3, 20, 9)), thing("a", (30, 20, 38, 30)))
    crowds = (
        replace(thing("a", (0, 0, 9, 9)), crowd=True),
        replace(thing("b", (20, 0, 30, 9)), mask=None, crowd=True),
    )
    rows = ((0, 2), (1,), ())
    found = Truth(rows, things, SIZE, crowds).objects()
    assert found["all_boxes"].shape == (3, 2, 4)
    assert found["all_boxes"][0].tolist() == [[2, 3, 10, 12], [30, 20, 38, 30]]
    assert found["all_boxes"][1, 0].tolist() == [8, 3, 20, 9]
    assert found["all_boxes"][1, 1].isnan().all()
    assert found["all_boxes"][2].isnan().all()
    assert torch.equal(found["ignored"][0], block((0, 0, 9, 9)))
    assert torch.equal(found["ignored"][1], block((20, 0, 30, 9)))
    assert not found["ignored"][2].any()
    assert "ignored" not in Truth(rows, things, SIZE).objects()
