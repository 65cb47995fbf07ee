"""Covering and curves of one picture, held to `region_test` and `evaluate`, which measure data sets."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

import konkyo
from konkyo.data.samples import Sample, Samples
from konkyo.evaluation.perturbation import cover, curves

REGION = (0.25, 0.125, 0.75, 0.5)


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.load("konkyo/scenes-classifier")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return konkyo.data.scenes.Scenes(1, seed=7)[0].image


def test_covering_moves_the_probability_as_region_test_does(model: konkyo.Model, picture: Image.Image) -> None:
    explained = konkyo.explain(model, picture)
    covering = cover(model, picture, explained, REGION, controls=4, seed=3)
    data = Samples(("one",), lambda _: Sample("one", picture))
    reference = konkyo.region_test(model, data, REGION, target="decision", fill="blur", controls=4, seed=3)
    index = int(reference.asked[0])
    assert covering.before == pytest.approx(float(reference.before[0, index]), abs=1e-5)
    assert covering.after == pytest.approx(float(reference.after[0, index]), abs=1e-5)
    assert covering.fall - covering.control_fall == pytest.approx(float(reference.cover.values[0]), abs=1e-5)
    assert covering.decision.startswith(explained.labels[0])
    assert len(covering.controls) == 4


def test_covering_everything_leaves_nothing_of_the_picture(model: konkyo.Model, picture: Image.Image) -> None:
    covering = cover(model, picture, konkyo.explain(model, picture), (0, 0, 1, 1), fill="mean", controls=0)
    extrema = covering.picture.getextrema()
    assert all(high - low <= 1 for low, high in extrema)
    assert math.isnan(covering.control_fall)


@pytest.mark.parametrize("region", [(0.5, 0, 0.5, 1), (0, 0, 2, 1), (0.1, 0.2, 0.3)])
def test_no_region_is_refused(model: konkyo.Model, picture: Image.Image, region: tuple[float, ...]) -> None:
    with pytest.raises(konkyo.KonkyoError, match="a region is"):
        cover(model, picture, konkyo.explain(model, picture), region)


def test_one_image_has_nothing_to_swap(model: konkyo.Model, picture: Image.Image) -> None:
    with pytest.raises(konkyo.KonkyoError, match="there is one"):
        cover(model, picture, konkyo.explain(model, picture), REGION, fill="swap")


def test_curves_are_those_of_evaluate(model: konkyo.Model, picture: Image.Image) -> None:
    explained = konkyo.explain(model, picture)
    found = {curve.metric: curve for curve in curves(model, picture, explained, steps=5)}
    data = Samples(("one",), lambda _: Sample("one", picture))
    columns = ["deletion(steps=5)", "insertion(steps=5)"]
    reference = konkyo.evaluate(model, data, ["grad_cam"], columns)
    for name in columns:
        expected = reference.statistics["grad_cam", name][0].tolist()
        curve = found[name.partition("(")[0]]
        assert curve.scores == pytest.approx(expected, abs=1e-5)
        assert len(curve.pictures) == 6
    assert found["deletion"].pictures[0].tobytes() != found["deletion"].pictures[1].tobytes()


def test_a_check_ends_it_between_forwards(model: konkyo.Model, picture: Image.Image) -> None:
    calls = list[int]()

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("enough")

    explained = konkyo.explain(model, picture)
    with pytest.raises(RuntimeError, match="enough"):
        curves(model, picture, explained, check=check)
    calls.clear()
    with pytest.raises(RuntimeError, match="enough"):
        cover(model, picture, explained, REGION, check=check)
    torch.testing.assert_close(konkyo.explain(model, picture).maps, explained.maps)


def test_a_detection_is_followed_by_its_box() -> None:
    pytest.importorskip("transformers")
    model, picture = konkyo.load("konkyo/scenes-detr"), konkyo.data.scenes.Scenes(3, seed=7)[2].image
    explained = konkyo.explain(model, picture, method="odam", target=konkyo.Detections(threshold=0.1, top=1))
    width, height = picture.size
    assert explained.boxes is not None
    box = explained.boxes[0].tolist()
    shares = [min(max(side / (width, height)[at % 2], 0), 1) for at, side in enumerate(box)]
    covering = cover(model, picture, explained, shares, fill="mean", controls=2)
    assert covering.after < covering.before
    deleted, inserted = curves(model, picture, explained, steps=4)
    assert len(deleted.scores) == len(inserted.scores) == 5
    assert deleted.scores[0] == pytest.approx(1)  # of the first score
