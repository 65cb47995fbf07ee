"""The model and the images that ship: named by `load`, explained by every method, and maps that follow their class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import konkyo
from konkyo.data.sets.scenes import CLASSES, Scenes
from konkyo.tasks.base import SEVEN_CAMS


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.load("konkyo/scenes-classifier")


@pytest.fixture(scope="module")
def pairs() -> list[tuple[object, Tensor, Tensor]]:
    """(image, labels, masks) of 12 unseen scenes with two different classes, at the classifier's resolution."""
    found = []
    for scene in Scenes(200, seed=77, size=128, objects=2):
        if len(set(scene.labels.tolist())) == 2:
            found.append((scene.image, scene.labels, scene.masks))
        if len(found) == 12:
            return found
    raise AssertionError("too few scenes with two classes")


def test_the_automatic_layer_and_the_class_names(model: konkyo.Model) -> None:
    assert model.automatic_layers((3, 128, 128))[0].name == "stage4"
    assert model.classes == CLASSES


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
@pytest.mark.parametrize("method", [m for m in SEVEN_CAMS if m != "eigen_cam"])
def test_a_map_follows_its_class(model: konkyo.Model, pairs: list, method: str) -> None:
    """The mean of the map over an object is higher for the object's own class than for the other's, nearly always."""
    right = 0
    for image, labels, masks in pairs:
        names = [CLASSES[i] for i in labels.tolist()]
        maps = konkyo.explain(model, image, method=method, target=konkyo.Each(*names)).unit((128, 128))
        on = torch.stack([(maps * mask).sum((1, 2)) / mask.sum() for mask in masks], dim=1)  # (target, object)
        right += int(on[0, 0] > on[1, 0]) + int(on[1, 1] > on[0, 1])
    assert right >= 0.9 * 2 * len(pairs)


def test_eigen_cam_does_not_look_at_the_class(model: konkyo.Model, pairs: list) -> None:
    image, labels, _ = pairs[0]
    maps = konkyo.explain(model, image, method="eigen_cam", target=konkyo.Each(*labels.tolist())).maps
    torch.testing.assert_close(maps[0], maps[1])


def test_the_peak_of_a_map_lies_at_the_evidence(model: konkyo.Model) -> None:
    """Far more often than the evidence's share of the picture."""
    hits, share = 0, 0.0
    scenes = Scenes(60, seed=78, size=128, objects=1)
    for scene in scenes:
        peak = konkyo.explain(model, scene.image, target=scene.labels.tolist()).at((128, 128))[0].argmax()
        near = torch.nn.functional.max_pool2d(scene.evidence.float(), 17, 1, 8)[0]  # widened by 8 pixels
        hits += int(near.flatten()[peak] > 0)
        share += near.mean().item() / len(scenes)
    assert hits / len(scenes) > 0.75
    assert share < 0.2


def test_an_unknown_shipped_model_is_named() -> None:
    with pytest.raises(konkyo.KonkyoError, match="scenes-classifier"):
        konkyo.load("konkyo/scenes")


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of random weights a map may be blank
def test_rise_has_no_layer() -> None:
    model = konkyo.load("konkyo/scenes-classifier", weights=None)
    x = torch.randn(1, 3, 64, 64)
    found = konkyo.compare(model, x, ["grad_cam", "rise"], layer="stage3", options={"masks": 4}, target=1)
    assert (found["grad_cam"].layer, found["rise"].layer) == ("stage3", "input")
