"""neighbours(): which images come first, how near they are, and whose maps are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import konkyo
from helpers.unregistered import made
from konkyo.data.samples import Sample, Samples
from konkyo.errors import KonkyoError

CLASSES = ("a", "b", "c")


def model() -> konkyo.Model:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(5, 3),
    )
    preprocess = konkyo.Preprocess(resize=(16, 16), crop=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    return konkyo.Model(network.eval(), preprocess, CLASSES)


def data(count: int, seed: int, *, labelled: bool = True) -> Samples:
    def sample(index: int) -> Sample:
        pixels = np.random.default_rng([seed, index]).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        return Sample(f"{seed}-{index}", Image.fromarray(pixels), CLASSES[index % 3] if labelled else None)

    return Samples(tuple(f"{seed}-{index}" for index in range(count)), sample)


def features(of: konkyo.Model, samples: Samples) -> torch.Tensor:
    images = torch.stack([of.preprocess(sample.image) for sample in samples])  # type: ignore[misc]
    with torch.no_grad():
        return of.module[:2](images).mean((2, 3)).double()  # type: ignore[index]


@pytest.mark.parametrize("standardise", [False, True])
def test_neighbours_are_those_of_the_highest_cosine(standardise: bool) -> None:
    network, queries, known = model(), data(3, 1), data(14, 2)
    result = konkyo.neighbours(network, queries, known, 4, layer="1", standardise=standardise, batch=5)
    own, others = features(network, queries), features(network, known)
    if standardise:
        mean, deviation = others.mean(0), others.std(0, correction=0)
        own, others = (own - mean) / deviation, (others - mean) / deviation
    for q in range(3):
        cosines = [float(torch.dot(own[q], o) / (own[q].norm() * o.norm())) for o in others]
        expected = sorted(range(14), key=lambda k: -cosines[k])[:4]
        assert result.indices[q].tolist() == expected
        assert result.similarities[q].tolist() == pytest.approx([cosines[k] for k in expected], abs=1e-5)
        assert result.names[q] == tuple(f"2-{k}" for k in expected)
        assert result.labels[q] == tuple(CLASSES[k % 3] for k in expected)


def test_by_map_the_places_of_the_map_count() -> None:
    network, queries, known = model(), data(2, 1), data(9, 2)
    result = konkyo.neighbours(network, queries, known, 9, layer="1", by="map", method="layer_cam", batch=4)

    def weighed(samples: Samples) -> list[torch.Tensor]:
        features = []
        for sample in samples:
            map_ = konkyo.explain(network, sample.image, method="layer_cam", target=sample.label, layer="1").maps[0]
            grid = network.module[1](network.module[0](network.preprocess(sample.image)[None]))[0].detach()  # type: ignore
            features.append((grid * map_).sum((1, 2)) / map_.sum())
        return features

    own, others = weighed(queries), weighed(known)
    for q in range(2):
        cosines = [float(torch.dot(own[q], o) / (own[q].norm() * o.norm())) for o in others]
        order = sorted(range(9), key=lambda k: -cosines[k])
        assert result.indices[q].tolist() == order
        assert result.similarities[q].tolist() == pytest.approx([cosines[k] for k in order], abs=1e-5)


def test_with_a_map_of_ones_it_is_the_embedding() -> None:
    network, queries, known = model(), data(3, 1), data(9, 2)

    def ones(activations: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(activations[:, 0])

    by_map = konkyo.neighbours(network, queries, known, 4, layer="1", by="map", method=made(ones, layer=None))
    by_embedding = konkyo.neighbours(network, queries, known, 4, layer="1")
    assert torch.equal(by_map.indices, by_embedding.indices)
    torch.testing.assert_close(by_map.similarities, by_embedding.similarities)


@pytest.mark.parametrize("by", ["embedding", "map"])
def test_an_image_finds_itself(by: Any) -> None:
    result = konkyo.neighbours(model(), data(5, 3), data(5, 3), 1, layer="1", by=by, method="layer_cam")
    assert result.indices[:, 0].tolist() == list(range(5))
    assert result.similarities[:, 0].tolist() == pytest.approx([1.0] * 5)


def test_another_way_to_compare_is_an_error() -> None:
    with pytest.raises(KonkyoError, match="embedding"):
        konkyo.neighbours(model(), data(1, 1), data(2, 2), 1, layer="1", by="colour")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_every_neighbour_has_its_own_map_of_its_label(tmp_path: Path) -> None:
    network, known = model(), data(9, 2)
    result = konkyo.neighbours(network, data(2, 1), known, 3, layer="1")
    for q in range(2):
        for k, index in enumerate(result.indices[q].tolist()):
            sample = known[index]
            explained = konkyo.explain(network, sample.image, target=sample.label, layer="1")
            torch.testing.assert_close(result.maps[q, k], explained.maps[0])
    result.sheet(tmp_path / "sheet.png", side=32)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 36 - 4, 2 * 36 - 4)
    assert len(result.table()[1]) == 6


def test_an_image_of_the_data_is_its_own_nearest_one(tmp_path: Path) -> None:
    known = data(6, 2, labelled=False)
    known[3].image.save(tmp_path / "three.png")
    result = konkyo.neighbours(model(), tmp_path / "three.png", known, 99, layer="1")
    assert result.queries == ("three.png",)
    assert result.names[0][0] == "2-3"
    assert float(result.similarities[0, 0]) == pytest.approx(1, abs=1e-6)
    assert len(result.names[0]) == 6  # of the 99 that were wanted
    assert set(result.labels[0]) == {""}


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (data(1, 1), 0, "1 or more"),
        (data(1, 1), "2", "1 or more"),
        (None, 2, "data is a name"),
        ("/nope.png", 2, "unknown data"),
    ],
)
def test_what_cannot_be_asked_is_an_error(queries: Any, k: Any, message: str) -> None:
    with pytest.raises(KonkyoError, match=message):
        konkyo.neighbours(model(), queries, data(4, 2), k, layer="1")
