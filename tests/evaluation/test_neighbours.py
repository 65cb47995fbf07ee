"""neighbours(): which images come first, how near they are, and whose maps are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import konkyo
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
