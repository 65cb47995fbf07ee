from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from konkyo.data.sets import scenes as drawing
from konkyo.data.sets.scenes import CLASSES, Scene, Scenes
from konkyo.errors import KonkyoError
from konkyo.models.networks.scenes import SCENES_MEAN, SCENES_SIZE, SCENES_STD
from konkyo.models.shipped import scenes_classifier

ALL = range(len(CLASSES))


def pixels(scene: Scene) -> Tensor:
    """(3, H, W), 0 to 255."""
    return torch.from_numpy(np.array(scene.image)).permute(2, 0, 1).float()


def same(a: Scene, b: Scene) -> bool:
    pairs = ((a.labels, b.labels), (a.boxes, b.boxes), (a.masks, b.masks), (a.evidence, b.evidence))
    return all(torch.equal(x, y) for x, y in pairs) and a.image.tobytes() == b.image.tobytes()


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return list(Scenes(60, seed=11))


def test_a_scene_has_the_types_and_shapes_it_promises(some):
    for scene in some:
        n = len(scene.labels)
        assert scene.image.mode == "RGB"
        assert scene.image.size == (128, 128)
        assert (scene.labels.dtype, scene.boxes.dtype) == (torch.int64, torch.float32)
        assert (scene.masks.dtype, scene.evidence.dtype) == (torch.bool, torch.bool)
        assert scene.boxes.shape == (n, 4)
        assert scene.masks.shape == scene.evidence.shape == (n, 128, 128)
        assert 1 <= n <= 5


def test_seed_and_index_alone_decide_the_scene():
    first, longer = Scenes(5, seed=4), Scenes(50, seed=4)
    assert all(same(first[i], longer[i]) for i in (3, 0, 4))
    assert same(first[-1], first[4])
    assert not same(first[0], first[1])
    assert not same(first[0], Scenes(5, seed=5)[0])


def test_neither_the_drawing_nor_the_planning_touches_global_randomness():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    Scenes(1)[0]
    assert (torch.rand(1), np.random.rand()) == expected


def test_it_is_a_sequence():
    scenes = Scenes(3, seed=1, objects=1)
    assert len(scenes) == len(list(scenes)) == 3
    for index in (3, -4):
        with pytest.raises(IndexError):
            scenes[index]


def test_evidence_is_part_of_its_object_and_objects_do_not_share_pixels(some):
    for scene in some:
        assert not (scene.evidence & ~scene.masks).any()
        assert scene.evidence.flatten(1).any(1).all()
        assert scene.masks.sum(0).max() == 1


def test_boxes_are_tight(some):
    for scene in some:
        for box, mask in zip(scene.boxes.int().tolist(), scene.masks, strict=True):
            x0, y0, x1, y1 = box
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            edges = mask[y0, :], mask[y1 - 1, :], mask[:, x0], mask[:, x1 - 1]
            assert all(edge.any() for edge in edges)


@pytest.mark.parametrize("objects", [1, 5, 8])
def test_enough_of_each_object_and_of_its_evidence_is_visible(objects):
    for index in range(20):
        plan = drawing._plan(21, index, (objects, objects), ALL)
        scene = drawing._render(plan, 128)
        assert len(scene.labels) == objects
        for i, item in enumerate(item for item in plan.items if item.label is not None):
            alone = drawing._render(replace(plan, items=(item,)), 128)
            assert scene.masks[i].sum() >= 0.5 * alone.masks[0].sum()
            assert scene.evidence[i].sum() >= 0.6 * alone.evidence[0].sum()


def test_sizes_lie_in_the_documented_range():
    for objects, largest in ((1, 0.75), (2, 0.6)):
        for index in range(60):
            plan = drawing._plan(31, index, (objects, objects), ALL)
            for item in plan.items:
                if item.label is not None:
                    alone = drawing._render(replace(plan, items=(item,)), 128).boxes[0]
                    # some twins are a little shorter than the frame that both are drawn in
                    assert 0.16 <= float((alone[2:] - alone[:2]).max()) / 128 <= largest


def test_twins_differ_in_their_evidence_and_nowhere_else():
    for index in range(40):
        plan = drawing._plan(41, index, (1, 5), ALL)
        twins = tuple(i if i.label is None else replace(i, label=i.label ^ 1) for i in plan.items)
        a, b = drawing._render(plan, 128), drawing._render(replace(plan, items=twins), 128)
        assert torch.equal(a.labels ^ 1, b.labels)
        either = (a.evidence.any(0) | b.evidence.any(0)).float()
        # an outline's antialiasing reaches a pixel or two beyond
        near = F.max_pool2d(either[None, None], 5, 1, 2)[0, 0].bool()
        different = (pixels(a) != pixels(b)).any(0)
        assert not (different & ~near).any()
        assert (different & either.bool()).any()
        assert torch.equal((a.masks ^ b.masks).any(0) & ~either.bool(), torch.zeros(128, 128, dtype=torch.bool))


def test_the_twin_has_no_influence_on_the_plan():
    for index in range(10):
        a = drawing._plan(51, index, (3, 3), [0, 2])
        b = drawing._plan(51, index, (3, 3), [1, 3])
        assert [i.foot for i in a.items] == [i.foot for i in b.items]
        assert [i.palette for i in a.items] == [i.palette for i in b.items]
        assert [i.label if i.label is None else i.label + 1 for i in a.items] == [i.label for i in b.items]


@pytest.mark.parametrize("size", [64, 200, 256])
def test_the_geometry_is_the_same_at_every_size(size):
    for index in range(6):
        small, other = Scenes(6, seed=61)[index], Scenes(6, seed=61, size=size)[index]
        assert torch.equal(small.labels, other.labels)
        torch.testing.assert_close(other.boxes / size, small.boxes / 128, atol=1.6 / min(size, 128), rtol=0)
        for a, b in ((small.masks.float(), other.masks.float()), (pixels(small) / 255, pixels(other) / 255)):
            coarse = [F.interpolate(x[None], (64, 64), mode="area") for x in (a, b)]
            assert (coarse[0] - coarse[1]).abs().mean() < 0.015


def test_objects_and_classes_are_what_was_asked_for():
    assert all(len(scene.labels) == 2 for scene in Scenes(8, seed=1, objects=2))
    assert {len(scene.labels) for scene in Scenes(30, seed=1, objects=(2, 3), size=64)} == {2, 3}
    shown = torch.cat([scene.labels for scene in Scenes(20, seed=1, size=64, classes=["windmill", "cat"])])
    assert {CLASSES[i] for i in shown} == {"cat", "windmill"}


def test_classes_are_equally_frequent():
    counts = Counter(
        i.label for n in range(300) for i in drawing._plan(71, n, (1, 1), ALL).items if i.label is not None
    )
    assert set(counts) == set(ALL)
    assert max(counts.values()) < 2 * min(counts.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": ["cta"]}, "did you mean 'cat'"),
        ({"classes": "cat"}, "expected a list of names"),
        ({"classes": []}, "expected a list of names"),
        ({"objects": 0}, "from 1 to 8"),
        ({"objects": (3, 2)}, "from 1 to 8"),
        ({"objects": 9}, "from 1 to 8"),
        ({"size": 32}, "at least 64"),
        ({"length": -1}, "no negative number"),
        ({"seed": -1}, "no negative number"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_what_can(wrong, message):
    with pytest.raises(KonkyoError, match=message):
        Scenes(**wrong)


def test_the_shipped_weights_are_the_ones_that_were_measured():
    folder = files("konkyo") / "models" / "weights"
    weights = (folder / "scenes-classifier.safetensors").read_bytes()
    provenance = json.loads((folder / "scenes-classifier.json").read_text())
    assert len(weights) <= 4_000_000
    assert hashlib.sha256(weights).hexdigest() == provenance["sha256"]
    assert provenance["parameters"] == sum(p.numel() for p in scenes_classifier().parameters())


@torch.no_grad()
def test_the_shipped_classifier_names_what_it_has_not_seen():
    model, scenes = scenes_classifier(), list(Scenes(200, seed=987_654, objects=1, size=SCENES_SIZE))
    assert not model.training
    mean, std = (torch.tensor(v)[:, None, None] for v in (SCENES_MEAN, SCENES_STD))
    images = torch.stack([(pixels(scene) / 255 - mean) / std for scene in scenes])
    guesses = torch.cat([model(part).argmax(1) for part in images.split(50)])
    truth = torch.cat([scene.labels for scene in scenes])
    assert (guesses == truth).float().mean() >= 0.95


def test_colours_are_those_that_bodies_have_in_the_picture():
    """Two objects of one pair: the one called by the brighter or redder name is brighter or redder in the picture."""
    means: dict[str, list[Tensor]] = {}
    for scene in Scenes(150, seed=21, objects=(1, 3)):
        assert len(scene.colours) == len(scene.labels)
        for label, colour, mask, evidence in zip(scene.labels, scene.colours, scene.masks, scene.evidence, strict=True):
            assert colour in ("", *drawing.COLOURS)
            assert not (colour and CLASSES[label] in ("tulip", "daisy"))
            if colour:
                body = pixels(scene)[:, mask & ~evidence]
                means.setdefault(colour, []).append(body.median(1).values)
    mean = {colour: torch.stack(values).mean(0) for colour, values in means.items()}
    assert set(mean) == set(drawing.COLOURS)
    red, green, blue = (mean[name] for name in ("red", "green", "blue"))
    assert red[0] > green[0] + 40
    assert red[0] > blue[0] + 40
    assert green[1] > red[1] + 20
    assert blue[2] > green[2] + 40
    assert mean["white"].min() > mean["gray"].max() + 40
    assert mean["yellow"][1] > mean["orange"][1] + 20 > mean["red"][1] + 40
