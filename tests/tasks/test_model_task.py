"""How a model's task is said: in short by `detector` and `multilabel`, or as it is; and what follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import konkyo
from helpers.detectors import CLASSES, dense, noise
from konkyo.tasks import ClassificationTask, DetectionTask
from konkyo.tasks.base import TargetOptions


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_the_short_words_say_the_task() -> None:
    detector = dense().detector
    assert konkyo.Model(network()).task == ClassificationTask()
    assert konkyo.Model(network(), multilabel=True).task == ClassificationTask(multilabel=True)
    model = konkyo.Model(network(), detector=detector)
    assert model.task == DetectionTask(detector)
    assert model.detector is detector
    assert not model.multilabel
    assert konkyo.Model(network(), task=DetectionTask(detector)).detector is detector
    assert konkyo.Model(network()).detector is None


def test_a_changed_copy_has_the_task_that_is_named_and_else_keeps_its_own() -> None:
    model, other = dense(), konkyo.Detector(CLASSES, lambda module, images: module(images), list, "head")
    assert replace(model, classes=("a", "b", "c")).detector is model.detector
    assert replace(model, detector=other).detector is other
    assert replace(model, task=ClassificationTask(True)).multilabel
    assert replace(model, task=ClassificationTask()).detector is None
    assert replace(konkyo.Model(network(), multilabel=True), name="x").multilabel
    assert replace(konkyo.Model(network()), multilabel=True).multilabel
    assert not replace(konkyo.Model(network(), multilabel=True), multilabel=False).multilabel


def test_models_of_one_network_share_a_trace_only_if_they_read_its_logits_alike() -> None:
    module = network()
    one, other = konkyo.Model(module), konkyo.Model(module, classes=("a", "b", "c"))
    assert one.sites((3, 8, 8)) is other.sites((3, 8, 8))
    chosen = konkyo.Model(module, select=lambda output: output)
    assert chosen.sites((3, 8, 8)) is not one.sites((3, 8, 8))
    assert chosen.sites((3, 8, 8)) is chosen.sites((3, 8, 8))


def test_decisions_are_the_best_of_a_task() -> None:
    logits = torch.tensor([[0.1, 2.0, 1.0]])
    assert konkyo.Model(network()).decisions(logits, 2) == [[konkyo.ClassTarget(1), konkyo.ClassTarget(2)]]
    model = dense()
    (best,) = model.decisions(model(noise()).detach(), 2)
    (every,) = model.targets(konkyo.Detections(), model(noise()).detach())
    assert best == every[:2]
    assert len(every) > 2


def test_what_the_options_of_the_command_line_mean() -> None:
    classes, detections = ClassificationTask(), DetectionTask(dense().detector)
    assert classes.request(TargetOptions(), "m") == konkyo.TopK(1)
    assert classes.request(TargetOptions(top=3), "m") == konkyo.TopK(3)
    assert classes.request(TargetOptions(("cat", 1)), "m") == konkyo.Each("cat", 1)
    contrast = classes.request(TargetOptions(("cat",), against="dog"), "m")
    assert contrast == konkyo.Each(konkyo.ContrastTarget("cat", "dog"))
    asked = detections.request(TargetOptions((2,), 4, None, 0.1, ((1.0, 2.0, 3.0, 4.0),), "x1"), "m")
    assert asked == konkyo.Detections(0.1, 4, (2,), ((1.0, 2.0, 3.0, 4.0),), "x1")
    assert detections.request(TargetOptions(threshold=0.0), "m") == konkyo.Detections(0.0)
    with pytest.raises(konkyo.KonkyoError, match=r"--score, --of: for detectors only; m is a classifier"):
        classes.request(TargetOptions(threshold=0.0, quantity="x1"), "m")
    with pytest.raises(konkyo.KonkyoError, match="--not compares classes"):
        detections.request(TargetOptions(against=0), "m")


@pytest.mark.parametrize("entry", [None, konkyo.TopK(2), konkyo.Each(1), [1]])
def test_within_a_list_a_classifier_takes_classes_only(entry: object) -> None:
    for request in ([entry], konkyo.Each(entry)) if not isinstance(entry, list) else ([entry],):
        with pytest.raises(konkyo.KonkyoError, match="a target is a class index"):
            konkyo.Model(network()).targets(request, torch.zeros(1, 3))
