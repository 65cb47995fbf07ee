"""evaluate(): columns, what is true of a picture as the model sees it, values, resuming, and what values say."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import konkyo
from konkyo.data.samples import Sample, Samples, Thing
from konkyo.engine.probe import Probe
from konkyo.errors import ImageError, KonkyoError
from konkyo.evaluation.columns import column
from konkyo.evaluation.evaluate import OF_CLASSIFIERS as PAPERS_OF_CLASSIFIERS
from konkyo.evaluation.evaluate import OF_DETECTORS as PAPERS_OF_DETECTORS
from konkyo.evaluation.evaluate import Maps, Matching, evaluate
from konkyo.evaluation.ground_truth import Truth, box_of, matched, same_class, seen
from konkyo.evaluation.result import Evaluation, Row
from konkyo.methods.base import Method
from konkyo.metrics import METRICS, metric, metrics
from konkyo.utils.registry import signature_of
from test_instance import dense, iou_by_hand

Box = tuple[int, int, int, int]
SIZE = (32, 40)
CLASSES = ("red_fox", "green", "blue")


# --- columns ----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(metrics())), st.sampled_from(["", "@mask", "@box", "@evidence"]))
def test_a_column_has_the_name_that_it_is_read_from(name: str, region: str) -> None:
    if "masks" not in METRICS[name].needs:
        found = column(name)
        assert (found.name, found.region) == (name, None)
        if region:
            with pytest.raises(KonkyoError, match="does not look at a region"):
                column(name + region)
        return
    found = column(name + region)
    assert found.metric is METRICS[name]
    assert found.name == name + (region or "@mask")
    assert column(found.name) == found


@pytest.mark.parametrize(
    ("text", "options", "budget", "name"),
    [
        ("deletion", {}, "image", "deletion"),
        ("deletion(steps=4)", {"steps": 4}, "image", "deletion(steps=4)"),
        ("deletion(protocol=seed)", {"protocol": "seed"}, "box", "deletion(protocol=seed)"),
        ("insertion(protocol=odam, every=5)", {"protocol": "odam", "every": 5}, "box", None),
        ("insertion(protocol='rise',budget=box)", {"protocol": "rise"}, "box", "insertion(protocol=rise,budget=box)"),
        ("deletion(budget=image,protocol=seed)", {"protocol": "seed"}, "image", None),
        ("deletion(budget=box,protocol=seed)", {"protocol": "seed"}, "box", "deletion(protocol=seed)"),
        (" pointing_game@box(tolerance=2.5) ", {"tolerance": 2.5}, "image", "pointing_game@box(tolerance=2.5)"),
        ("deletion(normalise=True,substrate=None)", {"normalise": True, "substrate": None}, "image", None),
    ],
)
def test_options_are_read_and_written(text: str, options: dict[str, Any], budget: str, name: str | None) -> None:
    found = column(text)
    assert (dict(found.options), found.budget) == (options, budget)
    assert name is None or found.name == name
    again = column(found.name)
    assert (dict(again.options), again.budget, again.name) == (options, budget, found.name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("delition", "deletion"),
        ("", "unknown metric"),
        ("ebpg@box extra", "unknown metric"),
        ("ebpg@head", "On offer: box, mask, evidence"),
        ("deletion@box", "does not look at a region"),
        ("sparseness@mask", "does not look at a region"),
        ("ebpg(steps=3)", "option of metric ebpg"),
        ("deletion(steps=many)", "steps of metric deletion is of type int"),
        ("deletion(protocol=rice)", "'rise', 'odam', 'seed'"),
        ("deletion(steps)", "name=value"),
        ("deletion(budget=bocks)", "On offer: box, image"),
        ("ebpg(budget=box)", "budget"),  # of deletion and insertion only
        ("road(budget=image)", "budget"),
    ],
)
def test_columns_that_mean_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(KonkyoError) as told:
        column(text)
    assert said in str(told.value)


# --- truth ------------------------------------------------------------------------------------------------------------


def block(box: Box, size: tuple[int, int] = SIZE) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for y in range(box[1], box[3]):
        for x in range(box[0], box[2]):
            mask[y, x] = True
    return mask


def thing(label: str | None, box: Box, size: tuple[int, int] = SIZE, **more: Any) -> Thing:
    return Thing(label, tuple(map(float, box)), block(box, size), **more)


def test_the_truth_of_rows_pixel_by_pixel() -> None:
    boxes = [(2, 3, 10, 12), (8, 3, 20, 9), (30, 20, 38, 30)]
    things = (thing("a", boxes[0], evidence=block((3, 4, 5, 6))), thing("b", boxes[1]), Thing("c", (30, 20, 38, 30)))
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
    assert box_of(Thing("a", None, block((4, 5, 9, 7)))) == (4, 5, 9, 7)
    assert box_of(Thing("a", (0, 0, 2, 2), block((4, 5, 9, 7)))) == (0, 0, 2, 2)
    assert box_of(Thing("a", None, block((0, 0, 0, 0)))) is None
    assert box_of(Thing("a")) is None


def test_what_a_resize_and_a_centre_crop_leave_of_things() -> None:
    """60 x 48 becomes 30 x 24, of which the middle 16 x 20 is seen: picture pixels 14 to 46 across, 4 to 44 down."""
    size = (48, 60)
    preprocess = konkyo.Preprocess(24, (20, 16), (0.5,) * 3, (0.25,) * 3)
    image = Image.new("RGB", (60, 48))
    things = (
        thing("whole", (20, 10, 30, 25), size, evidence=block((22, 11, 23, 12), size)),
        thing("part", (0, 0, 20, 10), size),
        thing("gone", (50, 0, 60, 48), size),
        Thing("mask gone", None, block((0, 0, 14, 48), size)),
        thing("crowd", (20, 10, 30, 25), size, crowd=True),
        Thing("bare"),
    )
    found = seen(Sample("a", image, None, things), preprocess)
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
    (found,) = seen(Sample("a", image, None, (own,)), preprocess)
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


def greedy(labels: Sequence[str], boxes: Sequence[Sequence[float]], things: Sequence[Thing], least: float) -> list:
    """The same in plain loops, from the definition."""
    taken: set[int] = set()
    result = []
    for label, box in zip(labels, boxes, strict=True):
        best, share = None, -1.0
        for i, one in enumerate(things):
            alike = one.label.lower().replace("_", " ") == label.lower().replace("_", " ")
            if alike and i not in taken and (iou := iou_by_hand(box, one.box)) > share:
                best, share = i, iou
        if best is None or share < least or share == 0:
            result.append(())
        else:
            taken.add(best)
            result.append((best,))
    return result


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.3, 0.5]))
def test_detections_are_matched_one_to_one_the_best_first(seed: int, least: float) -> None:
    random = np.random.default_rng(seed)

    def boxes(count: int) -> list[list[float]]:
        low = random.uniform(0, 12, (count, 2))
        return np.concatenate([low, low + random.uniform(4, 12, (count, 2))], 1).astype(np.float32).tolist()

    things = tuple(Thing(str(random.choice(["Red_fox", "owl"])), tuple(b)) for b in boxes(4))
    labels, found = [str(random.choice(["red fox", "OWL"])) for _ in range(6)], boxes(6)
    result = matched(labels, torch.tensor(found), things, least)
    assert result == greedy(labels, found, things, least)
    given_ = [own for own in result if own]
    assert len(given_) == len(set(given_))


def test_two_detections_of_one_thing_and_the_least_overlap() -> None:
    things = (Thing("red_fox", (0, 0, 10, 10)), Thing("owl", (0, 0, 10, 10)), Thing(None, (0, 0, 10, 10)))
    boxes = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 10], [0, 0, 10, 10]])
    assert matched(["Red fox", "Red fox", "owl"], boxes, things, 0.5) == [(0,), (), (1,)]
    assert matched(["Red fox", "Red fox", "owl"], boxes, things, 0.51) == [(), (0,), (1,)]
    assert matched(["cat"], boxes[:1], things, 0.0) == [()]
    assert matched([], torch.zeros(0, 4), things, 0.5) == []
    assert matched(["owl"], boxes[:1], (), 0.5) == [()]


# --- the models and pictures of these tests ---------------------------------------------------------------------------


class Colours(nn.Module):
    """Classes are colours: each channel of the only layer is one, the logits are their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, 4)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.conv.bias.zero_()
            self.head.weight.copy_(20 * torch.eye(3) - 4)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).relu().mean((2, 3)))


def colours(**preparation: Any) -> konkyo.Model:
    usual: dict[str, Any] = {"resize": None, "crop": None, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return konkyo.Model(Colours().eval(), konkyo.Preprocess(**usual | preparation), CLASSES, "colours")


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return colours()


def painted(patches: dict[Box, tuple[int, int, int]], seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 30, (*size, 3), dtype=np.uint8)
    for (x0, y0, x1, y1), colour in patches.items():
        values[y0:y1, x0:x1] = colour
    return Image.fromarray(values)


RED, GREEN = (255, 20, 10), (10, 200, 30)


def pictures(count: int = 4) -> list[Sample]:
    """Every picture has a large red fox and a smaller green thing."""
    found = []
    for i in range(count):
        fox, leaf = (2 + i, 3, 20 + i, 22), (26, 20 - i, 36, 28 - i)
        image = painted({fox: RED, leaf: GREEN}, i)
        found.append(
            Sample(f"p{i}", image, "green" if i % 2 else "Red fox", (thing("red fox", fox), thing("green", leaf)))
        )
    return found


def made(function: Callable[..., Tensor], *, layer: str | None = "input", name: str = "") -> Method:
    """A method that is in no registry."""
    offer = [n for n in vars(Probe) if not n.startswith("_")]
    own, needs, options = signature_of("method", function, offer)
    return Method(name or own, function, False, layer, "logit", needs, options)


def shade(inputs: Tensor) -> Tensor:
    return inputs.sum(1)


def flat(inputs: Tensor) -> Tensor:
    return inputs.sum(1) * 0 + 1


def nowhere(inputs: Tensor) -> Tensor:
    raise konkyo.errors.NotApplicable("there is no place for it")


METRICS_OF_CLASSIFIERS = ["deletion(steps=4)", "insertion(steps=4)", "ebpg@mask", "ebpg@box", "pointing_game", "odi"]


def equal(one: Tensor, other: Tensor | Sequence[float]) -> None:
    torch.testing.assert_close(one.double(), torch.as_tensor(other).double(), rtol=1e-5, atol=1e-6, equal_nan=True)


# --- values of classifiers --------------------------------------------------------------------------------------------


def test_values_of_a_classifier_are_those_of_metrics_called_by_hand(model: konkyo.Model) -> None:
    samples, methods = pictures(3), ["grad_cam", "layer_cam"]
    found = evaluate(model, samples, methods, METRICS_OF_CLASSIFIERS, seed=5)
    assert [row.sample for row in found.rows] == ["p0", "p1", "p2"]
    assert found.methods == ("grad_cam", "layer_cam")
    assert set(found.absent.values()) == {0}
    for name in methods:
        by_hand: dict[str, list[float]] = {c: [] for c in METRICS_OF_CLASSIFIERS}
        for i, sample in enumerate(samples):
            images = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None] / 255
            label = int(model.module(images).argmax())
            assert label == 0

            def score(variants: Tensor, rows: Tensor, label: int = label) -> Tensor:
                return model.module(variants).softmax(1)[:, label].detach()

            maps = konkyo.explain(model, sample.image, method=name, target=label).maps
            fox, leaf = (t.mask[None] for t in sample.things)
            for kind in ("deletion", "insertion"):
                value = METRICS[kind](maps, images=images, score=score, steps=4, seed=5 + i)
                by_hand[f"{kind}(steps=4)"].append(float(value))
            by_hand["ebpg@mask"].append(float(METRICS["ebpg"](maps, masks=fox)))
            by_hand["ebpg@box"].append(float(METRICS["ebpg"](maps, masks=fox)))
            by_hand["pointing_game"].append(float(METRICS["pointing_game"](maps, masks=fox, seed=5 + i)))
            by_hand["odi"].append(float(METRICS["odi"](maps, masks=fox, others=leaf)))
            assert found.rows[i].score == pytest.approx(float(score(images, torch.zeros(1))), rel=1e-5)
        for c, values in by_hand.items():
            equal(found.values(name, column(c).name), values)
        assert found.values(name, "pointing_game@mask").tolist() == [1, 1, 1]
        assert found.values(name, "ebpg@mask").min() > 0.5


def test_rows_of_a_classifier_are_named_by_the_class(model: konkyo.Model) -> None:
    found = evaluate(model, pictures(2), ["grad_cam"], ["ebpg"])
    assert [row.label for row in found.rows] == ["red_fox", "red_fox"]


def test_a_decision_that_nothing_in_the_picture_bears_out_has_no_place(model: konkyo.Model) -> None:
    right, wrong = pictures(2)
    wrong = replace(wrong, things=(thing("blue", (2, 2, 9, 9)),))
    nameless = replace(right, name="nameless", things=(Thing(None, (3, 3, 9, 9), block((3, 3, 9, 9))),))
    found = evaluate(model, [right, wrong, nameless], ["grad_cam"], ["ebpg", "ebpg@evidence", "deletion(steps=4)"])
    assert found.values("grad_cam", "ebpg@mask").isnan().tolist() == [False, True, False]
    assert found.values("grad_cam", "ebpg@evidence").isnan().all()
    assert not found.values("grad_cam", "deletion(steps=4)").isnan().any()
    assert found.cell("grad_cam", "ebpg@mask").count == 2
    assert found.cell("grad_cam", "ebpg@evidence").count == 0


def test_the_label_in_place_of_the_decision(model: konkyo.Model) -> None:
    samples = [replace(s, label="green") for s in pictures(2)]
    found = evaluate(model, samples, ["grad_cam"], ["ebpg", "deletion(steps=4)"], explained="label")
    for i, sample in enumerate(samples):
        result = konkyo.explain(model, sample.image, target="green")
        equal(
            found.values("grad_cam", "ebpg@mask")[i : i + 1],
            METRICS["ebpg"](result.maps, masks=sample.things[1].mask[None]),
        )
        images = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None] / 255
        assert found.rows[i].score == pytest.approx(model.module(images).softmax(1)[0, 1].item(), rel=1e-5)
    with pytest.raises(KonkyoError, match="p0 has no label"):
        evaluate(model, [replace(samples[0], label=None)], ["grad_cam"], ["ebpg"], explained="label")


def test_what_is_seen_of_a_cropped_picture_is_measured() -> None:
    """Picture and masks are cut alike: the values are those of the cut picture given as it is."""
    cropped = colours(crop=(24, 24))
    cut = (8, 4, 32, 28)
    whole = pictures(2)
    parts = []
    for sample in whole:
        things = tuple(Thing(t.label, box_of(Thing(mask=m)), m) for t in sample.things for m in [t.mask[4:28, 8:32]])
        parts.append(replace(sample, image=sample.image.crop(cut), things=things))
    names = ["ebpg", "ebpg@box", "odi", "compactness", "deletion(steps=4,budget=box)"]
    one, other = (evaluate(m, data, ["grad_cam"], names) for m, data in ((cropped, whole), (colours(), parts)))
    for name in names:
        equal(one.values("grad_cam", column(name).name), other.values("grad_cam", column(name).name))


def test_the_model_is_left_as_it_was_also_by_an_error(model: konkyo.Model) -> None:
    network = model.module.train()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    network.head.weight.grad = torch.ones(3, 3)
    state = torch.get_rng_state()

    def broken(inputs: Tensor) -> Tensor:
        torch.rand(3)
        raise RuntimeError("broken")

    try:
        evaluate(model, pictures(1), ["grad_cam", "rise"], ["deletion(steps=4)"], masks=8)
        with pytest.raises(RuntimeError, match="broken"):
            evaluate(model, pictures(1), [made(broken)], ["ebpg"])
        assert network.training
        assert network.head.training
        assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
        assert network.head.weight.grad.tolist() == torch.ones(3, 3).tolist()
        assert network.conv.weight.grad is None
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        network.head.weight.grad = None
        network.eval()


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_options_reach_the_methods_that_have_them(model: konkyo.Model) -> None:
    said = []

    def scaled(inputs: Tensor, *, power: int = 1) -> Tensor:
        said.append(power)
        return inputs.sum(1) ** power

    (sample,) = pictures(1)
    found = evaluate(model, [sample], [made(scaled), "grad_cam"], ["ebpg"], power=3)
    assert said == [3]
    maps = torch.from_numpy(np.array(sample.image)).float().sum(2)[None] ** 3
    equal(found.values("scaled", "ebpg@mask"), METRICS["ebpg"](maps, masks=sample.things[0].mask[None]))


@pytest.mark.parametrize("options", [{"powr": 3}, {"explaned": "label"}])
def test_an_option_that_no_method_has_is_refused(model: konkyo.Model, options: dict[str, Any]) -> None:
    with pytest.raises(KonkyoError, match="option"):
        evaluate(model, pictures(1), ["grad_cam", "rise"], ["ebpg"], **options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": []}, "methods is an empty list"),
        ({"methods": ["grad_cma"]}, "grad_cam"),
        ({"methods": ["grad_cam", "grad_cam"]}, "one name"),
        ({"metrics": ["ebgp"]}, "ebpg"),
        ({"explained": "lable"}, "'decision' or 'label'"),
        ({"limit": 0}, "limit"),
        ({"seed": -1}, "seed"),
        ({"data": "cocoo:DIR"}, "coco"),
        ({"model": None}, "Maps of other tools"),
        ({"model": konkyo.Model(Colours())}, "how to prepare a picture"),
    ],
)
def test_what_cannot_be_measured_is_told(model: konkyo.Model, changes: dict[str, Any], said: str) -> None:
    asked = {"model": model, "data": pictures(1), "methods": ["grad_cam"], "metrics": ["ebpg"]} | changes
    positional = [asked.pop(n) for n in ("model", "data", "methods", "metrics")]
    with pytest.raises(KonkyoError) as told:
        evaluate(*positional, **asked)
    assert said in str(told.value)


def test_a_limit_is_drawn_by_the_seed(model: konkyo.Model) -> None:
    samples = pictures(6)
    names = {}
    for limit, seed in [(2, 0), (4, 0), (4, 0), (4, 1)]:
        found = evaluate(model, samples, ["grad_cam"], ["ebpg"], limit=limit, seed=seed)
        names[limit, seed] = [row.sample for row in found.rows]
        every = dict(
            zip(
                [s.name for s in samples],
                evaluate(model, samples, ["grad_cam"], ["ebpg"]).values("grad_cam", "ebpg@mask").tolist(),
                strict=True,
            )
        )
        assert found.values("grad_cam", "ebpg@mask").tolist() == [every[n] for n in names[limit, seed]]
    assert names[4, 0][:2] == names[2, 0]
    assert names[4, 1] != names[4, 0]


def test_noise_and_ties_are_equal_for_all_methods_and_differ_between_pictures(
    model: konkyo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    @metric(better="higher")
    def drawn(maps: Tensor, *, seed: int = 0) -> Tensor:
        """Notes the seed."""
        seeds.append(seed)
        return maps.flatten(1).sum(1)

    try:
        evaluate(model, pictures(3), ["grad_cam", "layer_cam"], ["drawn"], seed=7)
        assert seeds == [7, 7, 8, 8, 9, 9]
        seeds.clear()
        evaluate(model, pictures(2), ["grad_cam"], ["drawn(seed=3)"], seed=7)
        assert seeds == [3, 3]
    finally:
        METRICS.pop("drawn")


def test_equal_maps_of_two_methods_have_equal_values_whatever_is_drawn(model: konkyo.Model) -> None:
    other = made(lambda inputs: inputs.sum(1).round(), name="other")
    one = made(lambda inputs: inputs.sum(1).round(), name="one")
    names = ["deletion(steps=4,substrate=noise)", "pointing_game", "road(steps=2)", "sensitivity_n(samples=8)"]
    found = evaluate(model, pictures(2), [one, other], names)
    for name in names:
        full = column(name).name
        assert torch.equal(found.statistics["one", full].nan_to_num(7), found.statistics["other", full].nan_to_num(7))


def test_a_method_without_a_place_is_told_and_the_others_go_on(model: konkyo.Model, tmp_path: Path) -> None:
    found = evaluate(
        model, pictures(2), [made(nowhere), "grad_cam", "d_rise"], ["ebpg", "deletion(steps=4)"], out=tmp_path
    )
    assert any("nowhere" in note and "no place for it" in note for note in found.notes)
    assert any("d_rise" in note for note in found.notes)
    assert "| nowhere | not applicable | not applicable |" in found.markdown()
    assert found.cell("grad_cam", "ebpg@mask").count == 2
    assert found.best("ebpg@mask") == "grad_cam"


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_blank_maps_are_counted_and_in_no_metric(model: konkyo.Model) -> None:
    def sometimes(inputs: Tensor) -> Tensor:
        return inputs.sum(1) * float(inputs[0, 0, 0, 0] * 255 < limit)

    samples = pictures(3)
    corners = sorted(np.asarray(s.image)[0, 0, 0].item() for s in samples)
    limit = corners[1] + 0.5 if corners[1] < corners[2] else corners[0] + 0.5
    blank = [np.asarray(s.image)[0, 0, 0].item() > limit for s in samples]
    names = ["ebpg", "deletion(steps=4)", "iou", "complexity", "max_box_acc(steps=5)"]
    found = evaluate(model, samples, [made(sometimes), made(flat), "grad_cam"], names)
    assert found.absent == {"sometimes": sum(blank), "flat": 3, "grad_cam": 0}
    for name in map(column, names):
        undefined = found.statistics["sometimes", name.name].isnan().flatten(1) if name.metric.pooled else None
        if undefined is None:
            assert found.values("sometimes", name.name).isnan().tolist() == blank
            assert found.values("flat", name.name).isnan().all()
        else:
            assert undefined.all(1).tolist() == blank
        assert found.cell("grad_cam", name.name).count == 0, "no row is common to all methods"
    table = found.markdown().splitlines()
    assert next(line for line in table if line.startswith("| flat ")).endswith("| 3 |")


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_maps_that_are_no_numbers_are_counted_as_absent(model: konkyo.Model) -> None:
    def broken(inputs: Tensor) -> Tensor:
        return inputs.sum(1) * math.nan

    found = evaluate(model, pictures(2), [made(broken)], ["ebpg", "deletion(steps=4)", "sparseness"])
    for c in found.columns:
        assert found.values("broken", c.name).isnan().all()
    assert found.absent == {"broken": 2}


def test_a_damaged_picture_is_skipped_and_counted(model: konkyo.Model, tmp_path: Path) -> None:
    for i, sample in enumerate(pictures(3)):
        sample.image.save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:500])
    told = []
    found = evaluate(
        model, f"folder:{tmp_path}", ["grad_cam"], ["deletion(steps=4)"], progress=lambda *n: told.append(n)
    )
    assert [row.sample for row in found.rows] == ["0.png", "2.png"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert any("1 samples skipped" in note and "1.png" in note for note in found.notes)


FEW = {
    **dict.fromkeys(("deletion", "insertion"), "(steps=4)"),
    **dict.fromkeys(("infidelity", "monotonicity", "max_sensitivity", "map_stability"), "(samples=2)"),
    **dict.fromkeys(("sensitivity_n", "faithfulness_correlation"), "(samples=8)"),
    **dict.fromkeys(("px_ap", "max_box_acc", "max_box_acc_v2"), "(steps=9)"),
    "road": "(steps=2)",
}


@pytest.mark.parametrize("name", sorted(metrics()))
def test_every_metric_is_a_column(name: str, model: konkyo.Model) -> None:
    """Of a classifier, and of a detector whose pictures have a border; what is found again has the same values."""
    text = name + FEW.get(name, "")
    letterbox = letterboxed(dense())
    for network, samples, method in (
        (model, pictures(2), "grad_cam"),
        (letterbox, [detected(letterbox, (60, 50))], "odam"),
    ):
        found = evaluate(network, samples, [method], [text])
        assert found.columns == (column(text),)
        statistic = found.statistics[method, column(text).name]
        assert len(statistic) == len(found.rows) > 1
        if name in ("same_object", "separation") and network is model:
            assert statistic.isnan().all(), "pictures have one map each"
        elif name != "same_object":
            assert statistic.isfinite().all()
            assert found.cell(method, column(text).name).count == len(found.rows)


def test_scores_of_classes_that_do_not_exclude_each_other_are_sigmoids(model: konkyo.Model) -> None:
    (sample,) = pictures(1)
    images = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)[None] / 255
    logits = model.module(images)[0].detach()
    (row,) = evaluate(replace(model, multilabel=True), [sample], ["grad_cam"], ["ebpg"]).rows
    assert row.score == pytest.approx(1 / (1 + math.exp(-float(logits.max()))), rel=1e-5)


def test_a_network_of_grey_pictures() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    grey = konkyo.Model(network.eval(), konkyo.Preprocess(None, None, (0.4,), (0.2,)), CLASSES)
    names = ["deletion(steps=4,substrate=noise)", "insertion(steps=4,substrate=black)", "sparseness"]
    found = evaluate(grey, pictures(2), ["grad_cam_elementwise"], names)
    assert all(found.cell("grad_cam_elementwise", name).count == 2 for name in names)


# --- maps of other tools ----------------------------------------------------------------------------------------------


def kept(folder: Path, name: str, array: np.ndarray, kind: str) -> None:
    path = folder / f"{name}{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".npz":
        np.savez(path, heat=array)
    elif kind == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array.astype(np.uint8)).save(path)


@pytest.mark.parametrize("kind", [".npz", ".npy", ".png"])
def test_maps_of_another_tool_are_measured_by_the_same_ruler(model: konkyo.Model, tmp_path: Path, kind: str) -> None:
    samples = pictures(2)
    for sample in samples:  # as konkyo's own method makes them, on its grid; with and without a first axis
        maps = konkyo.explain(model, sample.image).maps.numpy()
        maps = maps[0] * 200 / maps.max() if kind == ".png" else maps if kind == ".npz" else maps[0]
        kept(tmp_path / "peer", sample.name, maps.round() if kind == ".png" else maps, kind)
    names = ["ebpg", "deletion(steps=4)", "coherency", "sparseness"]
    found = evaluate(model, samples, ["grad_cam", Maps(tmp_path / "peer")], names)
    assert found.methods == ("grad_cam", "peer")
    for name in ("ebpg@mask", "deletion(steps=4)", "sparseness"):
        one, other = found.values("grad_cam", name), found.values("peer", name)
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 if kind == ".png" else 1e-9)
    assert "not applicable" in found.markdown().splitlines()[3], "there is no method to ask for coherency"
    assert found.cell("grad_cam", "coherency").count == 2


def test_maps_without_a_model_are_one_per_thing(tmp_path: Path) -> None:
    (sample,) = pictures(1)
    sample = replace(sample, things=(*sample.things, replace(sample.things[0], crowd=True)))
    heat = np.random.default_rng(0).random((2, 16, 20)).astype(np.float32)
    np.savez(tmp_path / "p0.npz", heat)
    found = evaluate(None, [sample], [Maps(tmp_path, "tool")], ["ebpg", "ebpg@box", "pointing_game", "compactness"])
    assert [row.label for row in found.rows] == ["red fox", "green"]
    large = torch.nn.functional.interpolate(torch.from_numpy(heat)[:, None], SIZE, mode="bilinear")[:, 0]
    low, high = large.flatten(1).amin(1)[:, None, None], large.flatten(1).amax(1)[:, None, None]
    large = (large - low) / (high - low)
    masks = torch.stack([t.mask for t in sample.things[:2]])
    equal(found.values("tool", "ebpg@mask"), (large * masks).sum((1, 2)) / large.sum((1, 2)))
    peaks = [divmod(int(m.argmax()), 40) for m in large]
    assert found.values("tool", "pointing_game@mask").tolist() == [
        float(m[p]) for m, p in zip(masks, peaks, strict=True)
    ]
    with pytest.raises(KonkyoError, match="deletion needs a model"):
        evaluate(None, [sample], [Maps(tmp_path)], ["deletion"])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 8, 8), np.float32), "2 maps"),
        (np.zeros((8, 8), np.float32), "2 maps"),
        (np.zeros((2, 1, 8, 8), np.float32), "2 maps"),
        (np.array(["a", "b"]), "holds no map"),
        (None, "has no map of p0"),
    ],
)
def test_files_that_hold_other_maps_are_refused(tmp_path: Path, array: np.ndarray | None, said: str) -> None:
    if array is not None:
        np.save(tmp_path / "p0.npy", array)
    with pytest.raises(KonkyoError, match=said):
        evaluate(None, pictures(1), [Maps(tmp_path)], ["ebpg"])


def test_damaged_files_and_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p0.npz").write_bytes(b"PK nothing")
    with pytest.raises(KonkyoError, match="holds no map"):
        evaluate(None, pictures(1), [Maps(tmp_path)], ["ebpg"])
    with pytest.raises(KonkyoError, match="is none"):
        Maps(tmp_path / "other")


def test_a_map_is_named_as_its_sample_with_or_without_the_suffix_and_in_its_own_folder(tmp_path: Path) -> None:
    samples = [replace(s, name=n) for s, n in zip(pictures(3), ["a/1.jpg", "b/1.jpg", "2.jpg"], strict=True)]
    maps = np.random.default_rng(0).random((3, 2, 8, 8)).astype(np.float32)
    for name, heat in zip(["a/1.jpg", "b/1", "2"], maps, strict=True):
        kept(tmp_path, name, heat, ".npy")
    found = Maps(tmp_path)
    for sample, heat in zip(samples, maps, strict=True):
        assert torch.equal(found.of(sample.name, 2), torch.from_numpy(heat)), sample.name


def test_two_samples_of_one_name_in_two_folders_do_not_share_a_map(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.ones((4, 4), np.float32))
    with pytest.raises(KonkyoError, match=r"no map of a/1\.jpg"):
        Maps(tmp_path).of("a/1.jpg", 1)


# --- resuming ---------------------------------------------------------------------------------------------------------


class Counted(Samples):
    """Samples that are counted when they are opened."""


def counted(samples: Sequence[Sample]) -> tuple[Samples, list[str]]:
    opened: list[str] = []

    def read(index: int) -> Sample:
        opened.append(samples[index].name)
        return samples[index]

    return Samples(tuple(s.name for s in samples), read), opened


def test_an_interrupted_run_goes_on_where_it_stopped_with_the_same_values(model: konkyo.Model, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "methods": ["grad_cam", "rise"],
        "metrics": ["deletion(steps=4,substrate=noise)", "ebpg", "px_ap(steps=9)"],
    }
    asked |= {"masks": 8, "seed": 3}
    samples = pictures(4)
    samples[1] = replace(samples[1], things=(thing("blue", (1, 1, 4, 4)),))  # has NaN
    straight = evaluate(model, counted(samples)[0], out=tmp_path / "straight", **asked)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    data, opened = counted(samples)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, out=tmp_path / "out", progress=stop, **asked)
    assert opened == ["p0", "p1"]
    opened.clear()
    again = evaluate(model, data, out=tmp_path / "out", **asked)
    assert opened == ["p2", "p3"]
    opened.clear()
    third = evaluate(model, data, out=tmp_path / "out", **asked)
    assert opened == []
    for found in (again, third):
        assert found.rows == straight.rows
        assert found.absent == straight.absent
        assert found.notes == straight.notes
        assert set(found.statistics) == set(straight.statistics)
        for key, values in straight.statistics.items():
            assert torch.equal(values.isnan(), found.statistics[key].isnan())
            assert torch.equal(values.nan_to_num(7), found.statistics[key].nan_to_num(7)), key
    for name in ("table.md", "table.csv", "values.csv", "evaluation.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["rise", "layer_cam"]},
        {"metrics": ["ebpg@box"]},
        {"seed": 1},
        {"explained": "label"},
        {"masks": 9},
        {"matching": Matching(0.2)},
        {"model": konkyo.Model(Colours().eval(), konkyo.Preprocess(None, None), CLASSES, "another")},
        {"model": colours(mean=(0.5,) * 3)},
    ],
    ids=["methods", "metrics", "seed", "explained", "options", "matching", "model", "preprocess"],
)
def test_a_folder_of_a_run_with_other_settings_is_refused(
    model: konkyo.Model, tmp_path: Path, changes: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"model": model, "data": pictures(2), "methods": ["rise"], "metrics": ["ebpg"], "masks": 8}
    evaluate(**asked, out=tmp_path)
    with pytest.raises(KonkyoError, match="other"):
        evaluate(**asked | changes, out=tmp_path)


def test_a_folder_of_other_maps_of_the_same_name_is_refused(tmp_path: Path) -> None:
    for parent, value in (("one", 0), ("two", 1)):
        heat = np.random.default_rng(value).random((2, 8, 8)).astype(np.float32)
        kept(tmp_path / parent / "maps", "p0", heat, ".npy")
    first = evaluate(None, pictures(1), [Maps(tmp_path / "one" / "maps")], ["ebpg"], out=tmp_path / "out")
    try:
        second = evaluate(None, pictures(1), [Maps(tmp_path / "two" / "maps")], ["ebpg"], out=tmp_path / "out")
    except KonkyoError:
        return
    assert not torch.equal(first.values("maps", "ebpg@mask"), second.values("maps", "ebpg@mask"))


def test_a_folder_of_other_samples_is_refused(model: konkyo.Model, tmp_path: Path) -> None:
    evaluate(model, pictures(2), ["grad_cam"], ["ebpg"], out=tmp_path)
    other = [replace(s, name=f"other {s.name}") for s in pictures(2)]
    with pytest.raises(KonkyoError, match="not of 'other p0'"):
        evaluate(model, other, ["grad_cam"], ["ebpg"], out=tmp_path)


# --- detectors --------------------------------------------------------------------------------------------------------


def detected(model: konkyo.Model, size: tuple[int, int], count: int = 3, seed: int = 0) -> Sample:
    """A picture with as many things, each on a detection of the model."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    found = konkyo.explain(model, image, target=konkyo.Detections(threshold=0.3))
    things: list[Thing] = []
    for label, box in zip(found.labels, found.boxes.tolist(), strict=True):
        inside = (max(box[0], 0), max(box[1], 0), min(box[2], size[1]), min(box[3], size[0]))
        free = all(iou_by_hand(inside, t.box) < 0.3 for t in things)
        if free and iou_by_hand(inside, box) > 0.8 and len(things) < count:
            whole = tuple(map(round, inside))
            things.append(Thing(label.replace(" ", "_").upper(), tuple(inside), block(whole, size)))
    assert len(things) == count
    return Sample(f"d{seed}", image, None, tuple(things))


def letterboxed(model: konkyo.Model) -> konkyo.Model:
    assert model.preprocess is not None
    return replace(model, preprocess=replace(model.preprocess, resize=(24, 32), crop=(24, 32), fit="contain"))


OF_DETECTORS = ["deletion(protocol=seed,steps=4)", "insertion(protocol=odam,steps=4,every=2)", "ebpg@box", "vea"]


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
@pytest.mark.parametrize(("boxed", "size"), [(False, (48, 64)), (False, (40, 50)), (True, (60, 50)), (True, (36, 60))])
def test_values_of_a_detector_are_those_of_metrics_called_by_hand(boxed: bool, size: tuple[int, int]) -> None:
    model = letterboxed(dense()) if boxed else dense()
    sample = detected(model, size)
    found = evaluate(model, [sample], ["odam"], OF_DETECTORS, seed=2, matching=Matching(0.3, 0.5))
    height, width = size
    # input pixel = picture pixel * share + border
    if boxed:
        scale = min(24 / height, 32 / width)
        inner = (round(width * scale), round(height * scale))
        shares, border = (inner[0] / width, inner[1] / height), ((32 - inner[0]) // 2, (24 - inner[1]) // 2)
    else:
        shares, border = (32 / width, 24 / height), (0, 0)
    images = model.preprocess(sample.image)[None].double()
    output = model(images).detach()[0]
    targets = konkyo.Detections(threshold=0.3)
    result = konkyo.explain(model, sample.image, method="odam", target=targets)
    owners = greedy(
        [name.replace(" ", "_") for name in result.labels],
        result.boxes.tolist(),
        [replace(t, label=t.label.lower()) for t in sample.things],
        0.5,
    )
    rows = [i for i, own in enumerate(owners) if own]
    assert len(rows) == len(found.rows) == 3
    things = [sample.things[owners[i][0]] for i in rows]
    in_input = [[t.box[k] * shares[k % 2] + border[k % 2] for k in range(4)] for t in things]
    labels = [int(t.label[-1]) for t in things]

    def sure(candidates: Tensor, row: int) -> float:
        best = 0.0
        for candidate in candidates.tolist():
            if iou_by_hand(candidate[:4], in_input[row]) > 0.5:
                best = max(best, candidate[4 + labels[row]])
        return best

    def score(variants: Tensor, of: Tensor) -> Tensor:
        return torch.tensor([sure(o, r) for o, r in zip(model(variants).detach(), of.tolist(), strict=True)])

    assert [row.score for row in found.rows] == pytest.approx([sure(output, r) for r in range(3)], rel=1e-5)
    assert [row.label for row in found.rows] == [f"class {k}" for k in labels]
    area = [
        (min(math.ceil(b[2]), 32) - max(math.floor(b[0]), 0)) * (min(math.ceil(b[3]), 24) - max(math.floor(b[1]), 0))
        for b in in_input
    ]
    maps = result.maps[rows]
    given_: dict[str, Any] = {"images": images.expand(3, -1, -1, -1), "score": score, "budget": torch.tensor(area)}
    given_["pixels"] = torch.stack(
        [(v - torch.tensor(model.preprocess.mean)) / torch.tensor(model.preprocess.std) for v in (0.0, 1.0)]
    ).double()
    for name in OF_DETECTORS[:2]:
        c = column(name)
        by_hand = c.metric(maps, **given_, **c.options, seed=2)
        equal(found.values("odam", c.name), by_hand)
    shown = result.at(size)[rows]
    boxes = torch.stack(
        [
            block(tuple(f(v) for f, v in zip((math.floor, math.floor, math.ceil, math.ceil), t.box, strict=True)), size)
            for t in things
        ]
    )
    equal(found.values("odam", "ebpg@box"), METRICS["ebpg"](shown, masks=boxes))
    equal(found.values("odam", "vea@mask"), METRICS["vea"](shown, masks=torch.stack([t.mask for t in things])))


@pytest.mark.parametrize("boxed", [False, True])
def test_maps_over_the_picture_come_to_the_places_that_they_show(boxed: bool, tmp_path: Path) -> None:
    """Of another tool: a map's highest pixel lies where the picture's pixel lies in the input, also with a border."""
    found = []

    @metric(better="higher")
    def highest(maps: Tensor, images: Tensor) -> Tensor:
        """Notes where, in the input."""
        assert maps.shape[1:] == images.shape[2:]
        found.extend(divmod(int(m.argmax()), maps.shape[2]) for m in maps)
        return maps.flatten(1).amax(1)

    model = letterboxed(dense()) if boxed else dense()
    height, width = size = (60, 50)
    sample = detected(model, size)
    places = [(10, 10), (50, 12), (30, 44)]
    down, across = np.mgrid[:height, :width]
    np.save(tmp_path / "d0.npy", np.stack([np.exp(-((down - y) ** 2 + (across - x) ** 2) / 40) for y, x in places]))
    shares, border = ((0.4, 0.4), (0, 6)) if boxed else ((24 / 60, 32 / 50), (0, 0))
    try:
        values = evaluate(model, [sample], [Maps(tmp_path, "peer")], ["highest", "pointing_game"])
        assert len(values.rows) == 3
        for place, came in zip(places, found, strict=True):
            for axis in range(2):
                assert came[axis] == pytest.approx((place[axis] + 0.5) * shares[axis] + border[axis] - 0.5, abs=1)
    finally:
        METRICS.pop("highest")


def test_only_detections_that_are_right_are_measured_and_the_rest_counted() -> None:
    model = dense()
    sample = detected(model, (48, 64), 2)
    every = len(konkyo.explain(model, sample.image, target=konkyo.Detections(threshold=0.3)))
    found = evaluate(model, [sample], ["odam"], ["ebpg"])
    assert len(found.rows) == 2
    assert any(f"2 of {every} (score > 0.3, IoU >= 0.5" in note for note in found.notes)
    whole = evaluate(model, [sample], ["odam"], ["ebpg"], matching=Matching(iou=0))
    assert len(whole.rows) == every


def test_where_nothing_is_detected_there_is_a_table_all_the_same(tmp_path: Path) -> None:
    model = dense()
    found = evaluate(
        model, [detected(model, (48, 64), 2)], ["odam"], OF_DETECTORS, matching=Matching(0.999), out=tmp_path
    )
    assert found.rows == ()
    assert "0 of 0" in (tmp_path / "table.md").read_text()


def test_columns_that_no_method_has_do_not_stop_the_rest(model: konkyo.Model, tmp_path: Path) -> None:
    for sample in pictures(2):
        kept(tmp_path / "maps", sample.name, np.random.default_rng(0).random((8, 8)), ".npy")
    found = evaluate(model, pictures(2), [Maps(tmp_path / "maps")], ["ebpg", "coherency"], out=tmp_path / "out")
    assert found.cell("maps", "ebpg@mask").count == 2
    assert (tmp_path / "out" / "evaluation.json").is_file()


def test_only_maps_with_one_highest_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    sample = detected(model, (48, 64), 3)

    def peaked(inputs: Tensor) -> Tensor:
        maps = torch.zeros(len(inputs), 24, 32)
        for row in range(len(maps)):
            maps[row, row, 5] = 1
            if row == 1:
                maps[row, row, 6] = 1
        return maps

    def sloped(inputs: Tensor) -> Tensor:
        return torch.arange(24 * 32.0).view(1, 24, 32).expand(len(inputs), -1, -1).clone()

    both, alone = ([made(peaked), made(sloped)], [made(sloped)])
    assert len(evaluate(model, [sample], both, ["ebpg"]).rows) == 3
    found = evaluate(model, [sample], both, ["ebpg", "deletion(protocol=seed,steps=4)"], matching=Matching(unique=True))
    usual = evaluate(model, [sample], both, ["ebpg", "deletion(protocol=seed,steps=4)"])
    assert found.rows == (usual.rows[0], usual.rows[2])
    for c in found.columns:
        equal(found.values("peaked", c.name), usual.values("peaked", c.name)[[0, 2]])
    assert "one highest place" in " ".join(found.notes)
    assert len(evaluate(model, [sample], alone, ["ebpg"], matching=Matching(unique=True)).rows) == 3


def test_d_rise_explains_the_likeness_and_is_scored_as_the_others() -> None:
    model = dense()
    sample = detected(model, (48, 64), 2)
    found = evaluate(model, [sample], ["odam", "d_rise"], ["deletion(protocol=seed,steps=4)", "ebpg"], masks=16)
    curves = [found.statistics[m, "deletion(protocol=seed,steps=4)"] for m in ("odam", "d_rise")]
    assert torch.equal(curves[0][:, 0], curves[1][:, 0])
    assert not found.notes or not any(note.startswith(("odam", "d_rise")) for note in found.notes)


def test_same_object_and_separation_of_a_detector() -> None:
    model = dense()
    sample = detected(model, (48, 64), 3)
    found = evaluate(model, [sample], ["odam"], ["same_object", "separation"])
    assert found.values("odam", "same_object").isnan().all(), "every object is found once"


def test_the_shipped_detector_on_scenes() -> None:
    found = evaluate(
        konkyo.load("konkyo/scenes-detr"), "scenes:2", ["odam"], ["ebpg@box", "deletion(protocol=seed,steps=4)"]
    )
    assert len(found.rows) >= 2
    assert found.cell("odam", "ebpg@box").value > 0.1
    assert any("boxes and masks" in note for note in found.notes)


# --- what the values say ----------------------------------------------------------------------------------------------


def table(values: dict[str, Sequence[float]], images: Sequence[int], name: str = "ebpg") -> tuple[Evaluation, str]:
    """One column of given values, rows on given images."""
    c = column(name)
    rows = tuple(Row(f"image {i}", f"row {k}", 0.5) for k, i in enumerate(images))
    statistics = {(m, c.name): torch.tensor(v, dtype=torch.float64) for m, v in values.items()}
    return Evaluation(tuple(values), (c,), rows, statistics, dict.fromkeys(values, 0)), c.name


def test_means_and_intervals_by_resampling_images() -> None:
    """Rows of an image are drawn together, so that twenty equal rows say no more than one."""
    random = np.random.default_rng(0)
    images = [i for i in range(12) for _ in range(1 + 7 * (i % 3))]
    centre = random.normal(0.5, 0.2, 12)
    values = [centre[i] + random.normal(0, 0.01) for i in images]
    found, name = table({"a": values}, images)
    cell = found.cell("a", name)
    assert cell.value == pytest.approx(np.mean(values))
    assert cell.count == len(values)
    assert math.isnan(cell.p)
    means = []
    for _ in range(4000):
        rows = [v for i in random.integers(0, 12, 12) for v, j in zip(values, images, strict=True) if j == i]
        means.append(np.mean(rows))
    low, high = np.quantile(means, [0.025, 0.975])
    assert cell.low == pytest.approx(low, abs=0.02)
    assert cell.high == pytest.approx(high, abs=0.02)
    row_by_row = [np.mean(random.choice(values, len(values))) for _ in range(2000)]
    narrow = np.quantile(row_by_row, 0.975) - np.quantile(row_by_row, 0.025)
    assert cell.high - cell.low > 1.5 * narrow
    assert found.cell("a", name) == cell


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.15])
def test_the_paired_test_against_all_flips_of_signs(shift: float) -> None:
    random = np.random.default_rng(1)
    images = [i for i in range(9) for _ in range(1 + i % 3)]
    one = random.normal(0.5, 0.1, len(images))
    other = one + shift + np.array([random.normal(0, 0.1) for _ in range(9)])[images]
    found, name = table({"one": one.tolist(), "other": other.tolist()}, images)
    best = "one" if one.mean() > other.mean() else "other"
    assert found.best(name) == best
    assert math.isnan(found.cell(best, name).p)
    sums = [sum((one - other)[k] for k, i in enumerate(images) if i == j) for j in range(9)]
    flips = [
        abs(sum(s * v for s, v in zip(signs, sums, strict=True))) for signs in itertools.product([-1, 1], repeat=9)
    ]
    exact = np.mean([f >= abs(sum(sums)) - 1e-12 for f in flips])
    rest = "other" if best == "one" else "one"
    assert found.cell(rest, name).p == pytest.approx(exact, abs=0.04)


def test_methods_are_compared_on_the_rows_that_all_have() -> None:
    nan = math.nan
    found, name = table({"a": [1, 0.2, nan, 0.4], "b": [nan, 0.3, 0.9, 0.1], "c": [1, 1, 1, nan]}, [0, 1, 2, 3])
    assert [found.cell(m, name).value for m in "abc"] == pytest.approx([0.2, 0.3, 1.0])
    assert [found.cell(m, name).count for m in "abc"] == [1, 1, 1]
    assert found.best(name) == "c"
    two, name = table({"a": [1, 0.2, nan, 0.4], "b": [nan, 0.3, 0.9, 0.1]}, [0, 1, 2, 3], "deletion")
    two = replace(two, statistics={k: torch.stack([v, v], 1) for k, v in two.statistics.items()})
    assert [two.cell(m, name).value for m in "ab"] == pytest.approx([0.3, 0.2])
    assert two.best(name) == "b", "of deletion the lower is better"
    none, name = table({"a": [nan, 1], "b": [1, nan]}, [0, 1])
    assert none.cell("a", name).count == 0
    assert math.isnan(none.cell("a", name).value)
    assert "nan" in none.markdown()


def test_equal_methods_differ_by_nothing() -> None:
    found, name = table({"a": [0.2, 0.5, 0.6], "b": [0.2, 0.5, 0.6]}, [0, 1, 2])
    assert found.best(name) == "a"
    assert found.cell("b", name).p == 1


def test_worst_and_contested_rows() -> None:
    nan = math.nan
    values = {"a": [0.9, 0.1, nan, 0.4, 0.3], "b": [0.8, 0.9, 0.1, 0.4, 0.1]}
    found, name = table(values, [0, 1, 2, 3, 4])
    assert [r.label for r in found.worst("a", name)] == ["row 1", "row 4", "row 3", "row 0"]
    assert [r.label for r in found.worst("b", name, 2)] == ["row 2", "row 4"]
    assert [r.label for r in found.contested(name)] == ["row 1", "row 4", "row 0", "row 3"]
    lower, name = table(values, [0, 1, 2, 3, 4], "odi")
    assert [r.label for r in lower.worst("a", name, 1)] == ["row 0"]


@pytest.mark.parametrize("name", ["px_ap(steps=10)", "max_box_acc(steps=10)"])
def test_metrics_of_whole_data_sets(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(9, 6, 6, generator=generator)
    masks = torch.zeros(9, 6, 6, dtype=torch.bool)
    masks[:, 1:4, 2:5] = True
    maps += masks * torch.rand(9, 1, 1, generator=generator)
    images = [0, 0, 1, 2, 2, 2, 3, 4, 5]
    c = column(name)
    boxes = torch.tensor([[2.0, 1, 5, 4]]).expand(9, 4)
    statistic = c.metric.statistic(maps, masks=masks, boxes=boxes, **c.options).double()
    statistic[4] = math.nan
    rows = tuple(Row(f"{i}", "x", 0.1) for i in images)
    found = Evaluation(("a",), (c,), rows, {("a", c.name): statistic}, {"a": 1})
    there = [k for k in range(9) if k != 4]

    def value(rows: Sequence[int]) -> float:
        if name.startswith("max"):
            return max(float(np.mean([statistic[r, t] for r in rows])) for t in range(10))
        outside, inside = (np.sum([statistic[r, k].numpy() for r in rows], axis=0)[::-1] for k in (0, 1))
        area, hit, miss = 0.0, 0.0, 0.0
        for wrong, right in zip(outside, inside, strict=True):
            hit, miss = hit + right, miss + wrong
            area += hit / (hit + miss) * right if hit + miss else 0
        return area / inside.sum()

    cell = found.cell("a", c.name)
    assert cell.count == 8
    assert cell.value == pytest.approx(value(there), rel=1e-6)
    assert math.isnan(cell.p)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        chosen = [k for i in random.integers(0, 6, 6) for k in there if images[k] == i]
        drawn.append(value(chosen))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert cell.low == pytest.approx(low, abs=0.06)
    assert cell.high == pytest.approx(high, abs=0.06)
    with pytest.raises(KonkyoError, match="whole data set"):
        found.values("a", c.name)


def test_a_metric_of_which_neither_is_better_has_a_place_in_the_table(model: konkyo.Model, tmp_path: Path) -> None:
    @metric(better="neither")
    def mean_value(maps: Tensor) -> Tensor:
        """The mean."""
        return maps.flatten(1).mean(1)

    try:
        found = evaluate(model, pictures(2), ["grad_cam", "layer_cam"], ["mean_value", "ebpg"], out=tmp_path)
        cell = found.cell("grad_cam", "mean_value")
        assert cell.count == 2
        assert math.isnan(cell.p)
        assert "**" not in found.markdown().splitlines()[2].split("|")[2]
    finally:
        METRICS.pop("mean_value")


def test_names_that_are_not_there() -> None:
    found, name = table({"a": [1.0]}, [0])
    for wrong in (lambda: found.cell("b", name), lambda: found.cell("a", "vea"), lambda: found.curve("a", name)):
        with pytest.raises(KonkyoError):
            wrong()


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    folder = tmp_path_factory.mktemp("saved")
    samples = pictures(5)
    samples[2] = replace(samples[2], things=(thing("blue", (1, 1, 4, 4)),))
    other = made(lambda inputs: -inputs.sum(1), name="other")
    names = ["deletion(steps=4)", "ebpg", "px_ap(steps=9)"]
    return evaluate(colours(), samples, ["grad_cam", other], names, out=folder), folder


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_table_in_markdown(saved: tuple[Evaluation, Path]) -> None:
    found, folder = saved
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text == found.markdown()
    head, rule, first, second = text.splitlines()[:4]
    assert head == "| method | deletion(steps=4) ↓ | ebpg@mask ↑ | px_ap@mask(steps=9) ↑ | absent |"
    assert rule.count("|") == head.count("|")
    cells = [c.strip() for c in first.strip("|").split("|")]
    cell = found.cell("grad_cam", "ebpg@mask")
    assert cells[0] == "grad_cam"
    assert cells[2] == f"**{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]**"
    assert "**" not in second.split("|")[3]
    assert cells[-1] == "0"
    assert "of 5: deletion(steps=4) 5, ebpg@mask 4, px_ap@mask(steps=9) 4." in text


def test_the_tables_in_csv(saved: tuple[Evaluation, Path]) -> None:
    found, folder = saved
    cells = list(csv.DictReader((folder / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert len(cells) == 6
    for cell in cells:
        own = found.cell(cell["method"], cell["metric"])
        for name in ("value", "low", "high", "count", "p"):
            assert float(cell[name]) == pytest.approx(getattr(own, name), nan_ok=True)
    values = list(csv.DictReader((folder / "values.csv").read_text(encoding="utf-8").splitlines()))
    assert len(values) == 2 * 2 * 5
    for method in found.methods:
        own = [float(v["value"]) for v in values if (v["method"], v["metric"]) == (method, "ebpg@mask")]
        assert own == pytest.approx(found.values(method, "ebpg@mask").tolist(), nan_ok=True)
    assert [v["sample"] for v in values[:5]] == [f"p{i}" for i in range(5)]


def test_what_is_written_as_json_is_json(saved: tuple[Evaluation, Path]) -> None:
    found, folder = saved
    value = strict((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert value["konkyo"] == 1
    assert value["settings"]["model"] == "colours"
    assert value["settings"]["seed"] == 0
    assert {(c["method"], c["metric"]) for c in value["table"]} == {
        (m, c.name) for m in found.methods for c in found.columns
    }
    (cell,) = [c for c in value["table"] if (c["method"], c["metric"]) == ("grad_cam", "ebpg@mask")]
    assert cell["value"] == pytest.approx(found.cell("grad_cam", "ebpg@mask").value)
    assert cell["count"] == 4
    assert cell["p"] is None
    assert len(value["worst"]["grad_cam: ebpg@mask"]) == 4
    assert len(value["contested"]["deletion(steps=4)"]) == 5


def test_what_is_written_without_a_model_is_json_too(tmp_path: Path) -> None:
    np.save(tmp_path / "p0.npy", np.random.default_rng(0).random((2, 8, 8)))
    evaluate(None, pictures(1), [Maps(tmp_path)], ["ebpg"], out=tmp_path / "out")
    value = strict((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert value["contested"]["ebpg@mask"][0]["score"] is None


def test_curves_are_drawn(saved: tuple[Evaluation, Path]) -> None:
    found, folder = saved
    with Image.open(folder / "curves.png") as picture:
        picture.load()
        assert min(picture.size) > 100
    curve = found.curve("grad_cam", "deletion(steps=4)")
    equal(curve, found.statistics["grad_cam", "deletion(steps=4)"].mean(0))
    assert len(curve) == 5


def test_where_there_are_no_curves_there_is_no_picture_of_them(model: konkyo.Model, tmp_path: Path) -> None:
    evaluate(model, pictures(1), ["grad_cam"], ["ebpg"], out=tmp_path)
    assert not (tmp_path / "curves.png").exists()


def test_samples_that_cannot_be_read_stay_told_after_resuming(model: konkyo.Model, tmp_path: Path) -> None:
    def read(index: int) -> Sample:
        if index == 0:
            raise ImageError("the first is damaged")
        return pictures(2)[index]

    data = Samples(("p0", "p1"), read)
    first = evaluate(model, data, ["grad_cam"], ["ebpg"], out=tmp_path)
    again = evaluate(model, data, ["grad_cam"], ["ebpg"], out=tmp_path)
    assert first.notes == again.notes == ("1 samples skipped: the first is damaged",)
    assert [r.sample for r in again.rows] == ["p1"]


def test_the_default_metrics_are_the_founding_papers(model: konkyo.Model) -> None:
    assert [column(n).name for n in PAPERS_OF_CLASSIFIERS] == [
        "deletion",
        "insertion",
        "ebpg@mask",
        "pointing_game@mask",
    ]
    assert [column(n).budget for n in PAPERS_OF_DETECTORS[:2]] == ["box", "box"]
    found = evaluate(model, pictures(1), ["grad_cam"])
    assert [c.name for c in found.columns] == list(PAPERS_OF_CLASSIFIERS)


def test_a_run_goes_on_to_a_larger_limit_and_not_to_other_weights(model: konkyo.Model, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": pictures(4), "methods": ["grad_cam"], "metrics": ["ebpg"]}
    evaluate(model, **asked, limit=2, out=tmp_path / "a")
    found = evaluate(model, **asked, limit=3, out=tmp_path / "a")
    whole = evaluate(model, **asked, limit=3)
    assert found.rows == whole.rows
    equal(found.values("grad_cam", "ebpg@mask"), whole.values("grad_cam", "ebpg@mask"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.module.parameters()).mul_(2)
    with pytest.raises(KonkyoError, match="other weights"):
        evaluate(other, **asked, limit=3, out=tmp_path / "a")


def test_stars_are_corrected_for_the_number_of_methods() -> None:
    """Of methods that are all alike few are starred; one that is far worse is."""
    random, starred = np.random.default_rng(1), 0
    for _ in range(20):
        found, name = table({k: list(random.normal(0, 1, 20)) for k in "abcdef"}, list(range(20)))
        starred += bool(found.differing(name))
    assert starred <= 4
    one = list(random.normal(1, 0.1, 20))
    found, name = table(
        {"one": one, "far": [v - 0.9 for v in one], "near": [v - 1e-3 * (-1) ** i for i, v in enumerate(one)]},
        list(range(20)),
    )
    assert found.differing(name) == {"far"}


def test_maps_of_all_grids_are_measured_at_the_size_of_the_picture(model: konkyo.Model) -> None:
    samples = pictures(2)
    found = evaluate(model, samples, ["grad_cam"], ["complexity"])
    for i, sample in enumerate(samples):
        maps = konkyo.explain(model, sample.image).at((sample.image.height, sample.image.width))
        equal(found.values("grad_cam", "complexity")[i : i + 1], METRICS["complexity"](maps))


def test_a_run_of_which_nothing_could_be_read_is_an_error(model: konkyo.Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(KonkyoError, match="none of the 1 samples"):
        evaluate(model, f"folder:{tmp_path}", ["grad_cam"], ["deletion(steps=4)"])
