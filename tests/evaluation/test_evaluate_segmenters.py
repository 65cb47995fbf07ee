"""Segmenters measured on scenes: against masks by hand, with the context deleted, as a table."""

import pytest
import torch

import konkyo
from konkyo.data.samples import samples
from konkyo.data.sets.scenes import CLASSES, Scenes
from konkyo.evaluation.ground_truth import in_view


@pytest.fixture(scope="module")
def model():
    return konkyo.load("konkyo/scenes-segmenter")


@pytest.fixture(scope="module")
def evaluation(model):
    columns = ["deletion(substrate=blur,where=context,steps=4)", "ebpg@mask", "ebpg@explained", "ebpg@evidence"]
    return konkyo.evaluate(model, "scenes:2,objects=2", ["layer_cam"], columns)


def test_every_predicted_class_is_a_row(model, evaluation):
    for row in evaluation.rows:
        assert row.explained in CLASSES
        assert 0 <= row.score <= 1


def test_shares_of_the_energy_are_those_by_hand(model, evaluation):
    data = samples("scenes:2,objects=2")
    at = 0
    for index in range(2):
        sample = data[index]
        rows = [row for row in evaluation.rows if row.sample == sample.name]
        result = konkyo.explain(
            model, sample.image, target=konkyo.Each(*[row.explained for row in rows]), method="layer_cam"
        )
        maps = result.unit((sample.image.height, sample.image.width))
        things = in_view(sample, model.preprocess)
        for row, map_ in enumerate(maps):
            mine = [thing for thing in things if thing.label == rows[row].explained]
            for column, field in (("ebpg@mask", "mask"), ("ebpg@evidence", "evidence")):
                inside = torch.stack([getattr(thing, field) for thing in mine]).any(0)
                value = float(evaluation.statistics["layer_cam", column][at])
                assert value == pytest.approx(float(map_[inside].sum() / map_.sum()), abs=2e-3)
            weights = result.targets[row].weights((128, 128))
            value = float(evaluation.statistics["layer_cam", "ebpg@explained"][at])
            assert value == pytest.approx(float(map_[weights > 0.5].sum() / map_.sum()), abs=2e-3)
            at += 1
    assert at == len(evaluation.rows)


def test_the_context_is_deleted_and_the_curve_starts_with_the_score(evaluation):
    curves = evaluation.statistics["layer_cam", "deletion(substrate=blur,where=context,steps=4)"]
    for curve, row in zip(curves.tolist(), evaluation.rows, strict=True):
        assert curve[0] == pytest.approx(row.score, abs=1e-4)
        assert curve[-1] > 0.2 * row.score  # the region itself is still there


def test_the_shipped_segmenter_is_as_good_as_its_card_says(model):
    import json
    from importlib.resources import files

    card = json.loads((files("konkyo") / "models" / "weights" / "scenes-segmenter.json").read_text())
    counts = torch.zeros(11, 11, dtype=torch.int64)
    scenes = Scenes(100, seed=4_000_000, objects=(1, 4))
    for scene in scenes:
        truth = torch.where(scene.masks, scene.labels[:, None, None] + 1, 0).amax(0)
        with torch.no_grad():
            guess = model(model.preprocess(scene.image)[None])[0].argmax(0)
        counts += torch.bincount((truth * 11 + guess).flatten(), minlength=121).view(11, 11)
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    assert float((counts.diag() / union).mean()) > card["unseen_scenes"]["miou"] - 0.02
