"""Data sets of Hugging Face as samples and as images: columns, classes, streams, formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import konkyo
from konkyo.data.samples import samples
from konkyo.errors import KonkyoError

datasets = pytest.importorskip("datasets")

LABELS = [0, 1, 1, 0]


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (16, 20, 3), dtype=np.uint8)) for _ in LABELS]


def table(**extra: Any) -> Any:
    features = {
        "id": datasets.Value("int64"),
        "species": datasets.ClassLabel(names=["tabby_cat", "dog"]),
        "photo": datasets.Image(),
        "other": datasets.Image(),
    }
    columns = {"id": [7, 8, 9, 10], "species": LABELS, "photo": pictures(), "other": pictures()[::-1]}
    return datasets.Dataset.from_dict({**columns, **extra}, features=datasets.Features(features))


def model() -> konkyo.Model:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*body, nn.Linear(4, 2)).eval()
    plain = konkyo.Preprocess(resize=None, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    return konkyo.Model(network, preprocess=plain, classes=("dog", "Tabby_cat"))


def test_rows_are_samples() -> None:
    data = samples(table())
    assert (len(data), data.classes) == (4, ("tabby_cat", "dog"))
    assert data.labels == ("tabby_cat", "dog", "dog", "tabby_cat")
    assert [sample.label for sample in data] == list(data.labels)
    assert data.names == ("row 0", "row 1", "row 2", "row 3")
    for sample, picture in zip(data, pictures(), strict=True):
        assert np.array_equal(np.asarray(sample.image), np.asarray(picture))
    drawn = samples(table(), limit=2, seed=1)
    assert set(drawn.names) < set(data.names)


def test_a_column_is_chosen_by_name() -> None:
    data = samples(table(), column="other")
    assert np.array_equal(np.asarray(data[0].image), np.asarray(pictures()[-1]))
    with pytest.raises(KonkyoError, match=r"unknown column 'phot'.*photo"):
        samples(table(), column="phot")
    with pytest.raises(KonkyoError, match="row 0: a picture was expected in column 'id'; got int"):
        samples(table(), column="id")[0]
    with pytest.raises(KonkyoError, match=r"no column of the data set holds pictures.*id, species"):
        samples(table().select_columns(["id", "species"]))
    with pytest.raises(KonkyoError, match=r"column= is said of a datasets.Dataset; got str"):
        samples("scenes:2", column="photo")


def test_the_splits_of_a_data_set_are_not_one() -> None:
    splits = datasets.DatasetDict(train=table(), test=table())
    for take in (samples, lambda data: konkyo.explain(model(), data)):
        with pytest.raises(KonkyoError, match=r"one split.*dataset\['train'\]: train, test"):
            take(splits)


@pytest.mark.parametrize("form", ["plain", "undecoded", "numpy", "torch", "streamed"])
def test_every_form_of_a_data_set_is_explained_as_its_pictures(form: str) -> None:
    data = table()
    if form == "undecoded":
        data = data.cast_column("photo", datasets.Image(decode=False))
    elif form == "streamed":
        data = data.to_iterable_dataset()
    elif form != "plain":
        data = data.with_format(form)
    expected = konkyo.explain(model(), pictures(), target=1)
    result = konkyo.explain(model(), data, target=1)
    torch.testing.assert_close(result.maps, expected.maps)
    assert result.true_labels == ("Tabby_cat", "dog", "dog", "Tabby_cat")
    chosen = konkyo.explain(model(), data, target=1, column="other")
    if form != "undecoded":
        torch.testing.assert_close(chosen.maps, expected.maps.flip(0))


def test_a_stream_without_features_is_read_by_its_first_row() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for picture, label in zip(pictures(), "abba", strict=True):
            yield {"text": "x", "view": picture, "label": label}

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.features is None
    data = samples(stream, limit=3)
    assert sorted(sample.label for sample in data if sample.label) == ["a", "b", "b"]
    assert set(data.names) == {"row 0", "row 1", "row 2"}
    with pytest.raises(KonkyoError, match="has no length; a limit says"):
        samples(stream)


def test_pixel_values_of_a_transform_are_taken_as_they_are() -> None:
    def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return {"pixel_values": [model().preprocess(picture) for picture in rows["photo"]]}  # type: ignore[misc]

    data = table().with_transform(transform)
    expected = konkyo.explain(model(), pictures(), target=0)
    torch.testing.assert_close(konkyo.explain(model(), data, target=0).maps, expected.maps)


def test_a_class_that_is_not_known_stays_so() -> None:
    data = samples(table(species=[0, -1, 1, None]))
    assert data.labels == ()
    assert [sample.label for sample in data] == ["tabby_cat", None, "dog", None]


def test_methods_are_measured_on_a_data_set() -> None:
    result = konkyo.evaluate(model(), table(), ["grad_cam"], ["deletion(steps=2)"], explained="label")
    assert len(result.rows) == 4
