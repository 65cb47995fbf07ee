"""Sanity of a method as findings: the numbers are those of `konkyo.evaluation.sanity`."""

from __future__ import annotations

import pytest
import torch

import konkyo
from helpers.networks import SmallResNet, images, seeded
from konkyo.evaluation.diagnose.method_sanity import sanity_findings
from konkyo.evaluation.sanity import random_class, randomisation, stability


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.Model(seeded(SmallResNet()), classes=["a", "b", "c", "d", "e"])


def test_the_values_are_those_of_the_three_tests(model: konkyo.Model) -> None:
    some = images(3)
    weights, classes, noise = sanity_findings(model, some, "grad_cam", seed=1)
    assert weights.value == float(randomisation(model, some, "grad_cam", steps=3, seed=1).similarity[-1].nanmean())
    assert classes.value == float(random_class(model, some, "grad_cam", others=3, seed=1).similarity.nanmean())
    assert noise.value == float(stability(model, some, "grad_cam", samples=4, seed=1).similarity.nanmean())
    assert [finding.subject for finding in (weights, classes, noise)] == ["weights", "class", "noise"]
    assert all(finding.severity in ("ok", "low", "medium") for finding in (weights, classes, noise))


def test_what_cannot_be_tested_is_unknown_with_the_reason(model: konkyo.Model) -> None:
    nameless = konkyo.Model(model.module)
    findings = {finding.subject: finding for finding in sanity_findings(nameless, images(2))}
    assert findings["class"].severity == "unknown"
    assert "no class names" in findings["class"].sentence["en"]


def test_the_model_comes_back_untouched(model: konkyo.Model) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    sanity_findings(model, images(2))
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_a_method_that_looks_at_the_picture_alone_fails(model: konkyo.Model) -> None:
    """Sobel edges are the same whatever the weights, and whatever the class."""
    weights, classes, _ = sanity_findings(model, images(3), "edge_map")
    assert (weights.severity, classes.severity) == ("medium", "low")
    assert weights.value == pytest.approx(1)
    assert "much the same" in weights.sentence["en"]
