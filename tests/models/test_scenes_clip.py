"""The image-text model that ships: what it reaches on unseen scenes, its texts, and maps against the evidence."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from torch import Tensor

import konkyo
from helpers.closeness import close
from konkyo.data.sets.captions import WORDS
from konkyo.data.sets.scenes import CLASSES, Scene, Scenes
from konkyo.models.networks.captions import ScenesClip, tokens_of, vocabulary
from konkyo.models.networks.scenes import SCENES_MEAN, SCENES_STD

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
WEIGHTS = files("konkyo") / "models" / "weights"


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.load("konkyo/scenes-clip", texts=CLASSES, template="a photo of a {}")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(Scenes(150, seed=4_000_000, objects=1))


def prepared(scenes: list[Scene]) -> Tensor:
    pixels = torch.stack([torch.from_numpy(np.array(scene.image)) for scene in scenes]) / 255
    return ((pixels - torch.tensor(SCENES_MEAN)) / torch.tensor(SCENES_STD)).permute(0, 3, 1, 2)


def test_it_names_unseen_scenes_as_well_as_its_file_says(model: konkyo.Model, scenes: list[Scene]) -> None:
    said = json.loads((WEIGHTS / "scenes-clip.json").read_text())["ten_classes_on_scenes_with_one_object"]
    labels = torch.cat([scene.labels for scene in scenes])
    with torch.no_grad():
        logits = model(prepared(scenes))
    assert abs(float((logits.argmax(1) == labels).float().mean()) - said["top_1"]) <= 0.02
    rows = torch.arange(len(labels))
    above = (logits[rows, labels] > logits[rows, labels ^ 1]).float().mean()
    assert abs(float(above) - said["own_class_above_twin"]) <= 0.02
    assert said["top_1"] >= 0.95


def test_its_file_is_small_and_tells_where_it_comes_from() -> None:
    assert (WEIGHTS / "scenes-clip.safetensors").stat().st_size <= 4_000_000  # type: ignore[attr-defined]
    told = json.loads((WEIGHTS / "scenes-clip.json").read_text())
    assert {"command", "seed", "sha256", "training_data", "seconds_of_training", "parameters"} <= set(told)
    assert list(vocabulary()) == json.loads((WEIGHTS / "scenes-clip-words.json").read_text()) == list(WORDS)


def test_its_logits_are_those_of_the_network(model: konkyo.Model, scenes: list[Scene]) -> None:
    network, x = model.module, prepared(scenes[:3])
    assert isinstance(network, ScenesClip)
    with torch.no_grad():
        expected = network(tokens_of([f"a photo of a {name}" for name in CLASSES]), x)
        close(model(x), expected)


def test_texts_are_padded_without_a_trace() -> None:
    network = ScenesClip(len(vocabulary()) + 2).eval()
    with torch.no_grad():
        alone, beside = (
            network.get_text_features(tokens_of(texts))[:1]
            for texts in (["a cat"], ["a cat", "a red cat left of a taxi"])
        )
    close(alone, beside)


def test_words_that_it_does_not_know_are_named() -> None:
    free = konkyo.load("konkyo/scenes-clip")
    image = Scenes(1)[0].image
    with pytest.raises(konkyo.KonkyoError, match=r"of 'a photo of a dog' not 'dog'. On offer: .*cat"):
        konkyo.explain(free, image, method="grad_cam", target="a photo of a dog")
    with pytest.raises(konkyo.KonkyoError, match="1 to 19 words"):
        free.prompted(texts=["a cat " * 20])
    assert konkyo.explain(free, image, method="grad_eclip", target="A Police_car!").labels == ("A Police_car!",)


def test_grad_eclip_of_a_contrast_lies_at_the_evidence(model: konkyo.Model, scenes: list[Scene]) -> None:
    """The part that tells the twins apart has several times the share of the map that it has of the picture."""
    shares, areas = [], []
    for scene in scenes[:16]:
        label = int(scene.labels[0])
        target = konkyo.ContrastTarget(CLASSES[label], CLASSES[label ^ 1])
        maps = konkyo.explain(model, scene.image, method="grad_eclip", target=target).at((128, 128))[0].clamp_min(0)
        shares.append(float(maps[scene.evidence[0]].sum() / maps.sum()))
        areas.append(float(scene.evidence[0].float().mean()))
    assert sum(shares) > 3 * sum(areas)
