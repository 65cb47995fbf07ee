"""Every check as a question: of scenes and the model that ships, whose backgrounds mean nothing; twice the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import konkyo
from konkyo.data.samples import Annotation, Sample, Samples, chosen, samples
from konkyo.evaluation.diagnose import background, border, duplicates, method_sanity, properties, side, text
from konkyo.evaluation.diagnose.changed import images_of_one_size, pictured
from konkyo.evaluation.diagnose.collected import QUESTIONS, Collected, Settings, collect
from konkyo.evaluation.diagnose.findings import Finding

NAMES = ("duplicates", "properties", "background", "side", "text", "border", "method")
assert all((background, border, duplicates, method_sanity, properties, side, text))  # imported to be registered
COUNT = 14


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.load("konkyo/scenes-classifier")


@pytest.fixture(scope="module")
def data() -> Samples:
    return samples(f"scenes:{COUNT},objects=1")


@pytest.fixture(scope="module")
def collected(model: konkyo.Model, data: Samples) -> Collected:
    settings = Settings(resamples=100)
    train = collect(model, chosen(data, [0, 1, 2]), settings)
    return collect(model, data, settings, train=train)


def values(findings: tuple[Finding, ...]) -> list[tuple[object, ...]]:
    return [
        (f.question, f.severity, f.subject, f.sentence["en"], repr((f.value, f.low, f.high, f.p)), f.n)
        for f in findings
    ]


@pytest.fixture(scope="module")
def findings(collected: Collected) -> dict[str, tuple[Finding, ...]]:
    return {name: QUESTIONS[name].ask(collected) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_each_has_findings_in_both_languages(
    name: str, collected: Collected, findings: dict[str, tuple[Finding, ...]]
) -> None:
    assert QUESTIONS[name].missing(collected) == ""
    assert findings[name]
    for finding in findings[name]:
        assert finding.question == name
        assert finding.sentence.keys() == finding.next_step.keys() == {"en", "ja"}
        assert "nan" not in finding.sentence["en"]
        assert all(evidence.caption.keys() == {"en", "ja"} for evidence in finding.evidence)
        assert finding.cost <= QUESTIONS[name].forwards(collected)


@pytest.mark.parametrize("name", ["properties", "side", "border"])
def test_asked_twice_they_say_the_same(
    name: str, collected: Collected, findings: dict[str, tuple[Finding, ...]]
) -> None:
    assert values(findings[name]) == values(QUESTIONS[name].ask(collected))


def test_the_training_images_in_the_data_are_found(
    collected: Collected, findings: dict[str, tuple[Finding, ...]]
) -> None:
    first, *_ = findings["duplicates"]
    assert first.subject == "training images"
    assert first.images == collected.names[:3]
    assert first.severity == "high"


def test_backgrounds_that_mean_nothing_are_ok(findings: dict[str, tuple[Finding, ...]]) -> None:
    assert [finding.severity for finding in findings["background"]] == ["ok", "ok"]


def test_without_masks_or_labels_nothing_is_claimed(model: konkyo.Model, data: Samples) -> None:
    bare = Samples(("a", "b"), lambda i: replace(data[i], name="ab"[i], annotations=()))
    (finding,) = QUESTIONS["background"].ask(collect(model, bare, Settings()))
    assert finding.severity == "unknown"
    assert finding.sentence["en"].startswith("No masks: not tested.")
    unnamed = Samples(("a", "b"), lambda i: replace(data[i], name="ab"[i], label=None))
    without = collect(model, unnamed, Settings(resamples=50))
    assert without.labels is None
    (finding,) = QUESTIONS["background"].ask(without)
    assert finding.sentence["en"].startswith("No labels")
    assert QUESTIONS["properties"].missing(without) == "labels"
    for name in ("side", "text", "border", "duplicates"):
        assert QUESTIONS[name].ask(without)


def test_the_model_comes_back_untouched(model: konkyo.Model, collected: Collected) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    hooks = sum(len(module._forward_hooks) for module in model.module.modules())
    for name in ("border", "method"):
        QUESTIONS[name].ask(collected)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert sum(len(module._forward_hooks) for module in model.module.modules()) == hooks
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_prepared_images_are_pictures_again(collected: Collected) -> None:
    indices = images_of_one_size(collected, 5, "test")
    assert indices == sorted(set(indices))
    assert len(indices) == 5
    for index, picture in zip(indices, pictured(collected, collected.images(indices)), strict=True):
        expected = np.asarray(collected.picture(index).resize(picture.size, Image.Resampling.BILINEAR), dtype=float)
        assert np.abs(np.asarray(picture, dtype=float) - expected).mean() < 2


def test_masks_of_several_objects_are_one_region(model: konkyo.Model, data: Samples) -> None:
    sample = data[0]
    mask = sample.annotations[0].mask
    assert mask is not None
    other = torch.zeros_like(mask)
    other[:10, :10] = True
    two = replace(sample, annotations=(*sample.annotations, Annotation("box", None, other)))
    one = collect(model, Samples(("a",), lambda _: Sample("a", two.image, two.label, two.annotations)), Settings())
    union = one.mask(0)
    assert union is not None
    assert union[:5, :5].all()


def test_images_of_other_sizes_are_left_out(model: konkyo.Model, data: Samples) -> None:
    free = konkyo.Model(model.module, replace(model.preprocess, resize=None, crop=None), model.classes)
    narrow = [replace(data[i], image=data[i].image.crop((0, 0, 96, 128)), annotations=()) for i in range(3)]
    mixed = Samples(tuple("abcde"), lambda i: replace(narrow[i] if i < 3 else data[i], name="abcde"[i], annotations=()))
    some = collect(free, mixed, Settings())
    assert not some.one_size
    indices = images_of_one_size(some, 5, "test")
    assert indices in ([0, 1, 2], [3, 4])
    assert some.images(indices).shape[0] == len(indices)
