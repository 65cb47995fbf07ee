"""Confused pairs of classes as findings, also where mistakes are too many to be tested all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import konkyo
from konkyo.data.samples import Sample, Samples
from konkyo.evaluation.diagnose import confusion
from konkyo.evaluation.diagnose.collected import Collected, Settings

CLASSES = ("a", "b", "c", "d")


def collected(labels: torch.Tensor, predictions: torch.Tensor) -> Collected:
    n = len(labels)
    data = Samples(tuple(map(str, range(n))), lambda i: Sample(str(i), Image.new("RGB", (4, 4)), CLASSES[labels[i]]))
    model: Any = konkyo.Model(torch.nn.Linear(1, 4), konkyo.Preprocess(resize=(4, 4), crop=None), CLASSES)
    maps, features = torch.rand(n, 4, 4), torch.rand(n, 3)
    settings = Settings(resamples=199)
    return Collected(model, data, labels, predictions, torch.rand(n, 4), features, maps, maps, "layer", settings)


def exchanged() -> tuple[torch.Tensor, torch.Tensor]:
    """40 of 100 images of a are called b and as many the other way round; 30 other mistakes lie anywhere."""
    labels = torch.arange(4).repeat_interleave(100)
    predictions = labels.clone()
    predictions[:40], predictions[100:140] = 1, 0
    predictions[torch.arange(200, 230)] = torch.tensor([0, 1, 3]).repeat(10)
    return labels, predictions


def test_the_pair_is_named_with_its_counts() -> None:
    finding = next(f for f in confusion.ask(collected(*exchanged())) if f.subject == "a / b")
    assert (finding.subject, finding.severity, finding.value, finding.n) == ("a / b", "medium", 80, 200)
    assert finding.values["share of their images"] == 0.4
    assert finding.values["a taken for b"] == finding.values["b taken for a"] == 40


def test_of_many_mistakes_a_part_is_tested_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    full = next(f for f in confusion.ask(collected(*exchanged())) if f.subject == "a / b")
    monkeypatch.setattr(confusion, "_MOST_WRONG", 55)  # of 110
    half = next(f for f in confusion.ask(collected(*exchanged())) if f.subject == "a / b")
    assert (half.value, half.n) == (full.value, full.n)
    assert half.values["by chance"] == pytest.approx(full.values["by chance"], rel=0.35)


def test_too_few_mistakes_are_unknown() -> None:
    labels, predictions = exchanged()
    few = torch.where(torch.arange(len(labels)) < 3, predictions, labels)
    (finding,) = confusion.ask(collected(labels, few))
    assert finding.severity == "unknown"
