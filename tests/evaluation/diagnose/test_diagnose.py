"""diagnose() as a whole, on a network whose features are the mean colours of the pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from konkyo.data.samples import Sample, Samples
from konkyo.errors import KonkyoError
from konkyo.evaluation.diagnose import backbone
from konkyo.evaluation.diagnose.result import DiagnosisReport
from konkyo.evaluation.diagnose.run import diagnose

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
CLASSES = tuple(COLOURS)
MINE = ("head", "backbone", "wrong", "confusion", "suspicious")


class Mean(nn.Module):
    """The mean of every channel decides, through a linear head."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.features[0].weight.copy_(torch.eye(3)[:, :, None, None])
            self.features[0].bias.zero_()
            self.head.weight.copy_(8 * torch.eye(3)[list(order)])
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.features(images)).flatten(1))


def model(order: tuple[int, ...] = (0, 1, 2)) -> konkyo.Model:
    preprocess = konkyo.Preprocess(resize=(8, 8), crop=None, mean=(0, 0, 0), std=(1, 1, 1))
    return konkyo.Model(Mean(order).eval(), preprocess, CLASSES, name="mean colour")


def pictures(count: int, seed: int, *, labelled: bool = True) -> Samples:
    """Noise with a patch of the class's colour, at places of its own."""

    def sample(index: int) -> Sample:
        rng = np.random.default_rng([seed, index])
        label = CLASSES[index % 3]
        pixels = rng.integers(0, 90, (8, 8, 3))
        y, x = rng.integers(0, 5, 2)
        pixels[y : y + 4, x : x + 4] = np.array(COLOURS[label]) + rng.integers(-30, 30, (4, 4, 3))
        return Sample(f"{seed}-{index}", Image.fromarray(pixels.astype(np.uint8)), label if labelled else None)

    return Samples(tuple(f"{seed}-{index}" for index in range(count)), sample, CLASSES)


def asked(of: konkyo.Model, ask: Any = MINE, **options: Any) -> DiagnosisReport:
    return diagnose(of, pictures(45, 1), pictures(60, 2), ask, resamples=200, **options)


def test_exchanged_rows_of_the_head_are_a_finding_of_the_head_alone() -> None:
    report = asked(model((1, 0, 2)))
    (probe,) = (f for f in report.of("head") if not f.subject)
    assert report.findings[0] is probe
    assert probe.severity == "high"
    assert probe.values["accuracy of the probe"] > 0.9
    assert probe.values["accuracy of the head"] < 0.5
    assert probe.evidence
    assert all(f.values["accuracy"] > 0.9 for f in report.of("backbone"))
    swapped = [image for image in report.images if image.label in ("red", "green")]
    assert all("wrong" in image.flags and image.why["en"] and image.why["ja"] for image in swapped)
    assert {card.name: card.recall for card in report.classes}["blue"] > 0.9


def test_a_good_network_has_no_finding_of_its_head_and_says_what_would_have_been_found() -> None:
    report = asked(model())
    for question in MINE:
        assert report.of(question)
    (probe,) = (f for f in report.of("head") if not f.subject)
    assert probe.severity == "ok"
    assert 0 < probe.values["smallest difference found"] <= 1
    assert report.of("wrong")[0].severity == "ok"
    assert report.worst in ("medium", "low", "ok", "unknown")
    assert report.consistency is not None


def test_the_same_seed_gives_the_same_bytes_and_they_are_read_again(tmp_path: Path) -> None:
    one, two = (asked(model((1, 0, 2))).save(tmp_path / name) for name in ("a", "b"))
    assert (one / "findings.json").read_bytes() == (two / "findings.json").read_bytes()
    loaded = DiagnosisReport.load(one)
    again = loaded.save(tmp_path / "c")
    assert json.loads((again / "findings.json").read_text()) == json.loads((one / "findings.json").read_text())
    assert loaded.findings[0].evidence[0].picture.size == asked(model((1, 0, 2))).findings[0].evidence[0].picture.size
    assert "retrain" in (one / "findings.md").read_text(encoding="utf-8").lower()
    assert loaded.of("wrong")[1].subject in (one / "images.csv").read_text(encoding="utf-8")
    with pytest.raises(KonkyoError, match="holds no saved diagnosis"):
        DiagnosisReport.load(tmp_path)


def test_without_labels_questions_are_not_asked_and_say_so(tmp_path: Path) -> None:
    report = diagnose(model(), pictures(12, 1, labelled=False), ask=MINE, resamples=99)
    assert set(report.not_asked) == {"head", "wrong", "confusion"}
    assert report.not_asked["head"]["en"] == "no labels"
    assert report.classes == ()
    assert report.consistency is None
    assert [f.subject for f in report.of("suspicious")] == ["probably wrong"]
    assert "head: not asked: no labels" in report.lines()
    assert "not asked" in report._repr_html_()
    assert "\n" not in repr(report)
    assert len(DiagnosisReport.load(report.save(tmp_path / "out")).findings) == len(report.findings)


def test_a_class_that_the_model_does_not_have_is_said_before_the_work() -> None:
    announced: list[str] = []
    named = replace(pictures(3, 1), labels=("red", "green", "zebra"))
    with pytest.raises(KonkyoError, match="unknown class 'zebra'"):
        diagnose(model(), named, announce=announced.append)
    assert announced == []


def test_the_network_comes_back_as_it_was() -> None:
    network = model()
    network.module.train()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    state = torch.get_rng_state()
    asked(network)
    assert network.module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert not any(module._forward_hooks for module in network.module.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ask": "heads"}, "question"),
        ({"ask": ""}, "names no question"),
        ({"alpha": 0}, "alpha"),
        ({"batch": 0}, "batch is a whole number"),
        ({"batch": 2.5}, "batch is a whole number"),
        ({"resamples": 20}, "at least 99 resamples are needed"),
        ({"alpha": "x"}, "alpha lies between 0 and 1"),
        ({"ask": 3}, "ask names questions"),
        ({"train": 5}, "data is a name"),
    ],
)
def test_arguments_that_cannot_be_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KonkyoError, match=message):
        diagnose(model(), pictures(6, 1), **options)


def test_an_output_that_is_not_finite_is_an_error_and_no_finding() -> None:
    broken = model()
    with torch.no_grad():
        broken.module.head.bias[1] = torch.nan
    with pytest.raises(KonkyoError, match=r"mean colour for 1-0 is not finite"):
        diagnose(broken, pictures(12, 1), ask="wrong")


def test_too_few_images_for_a_probe_are_no_good_head() -> None:
    report = diagnose(model(), pictures(6, 1), pictures(30, 2), ask="head")
    (probe,) = (f for f in report.of("head") if not f.subject)
    assert probe.severity == "unknown"
    assert "6 images are too few to find any difference" in probe.sentence["en"]
    assert "nan" not in " ".join(report.lines() + report.lines("ja"))


def test_constant_maps_are_no_lack_of_images() -> None:
    dead = model()
    with torch.no_grad():
        dead.module.features[0].bias.fill_(-10)
    report = diagnose(dead, pictures(12, 1), ask=("head", "backbone"))
    for question, subject in (("head", "maps"), ("backbone", "pictures")):
        (finding,) = (f for f in report.of(question) if f.subject == subject)
        assert finding.severity == "unknown"
        assert finding.sentence["en"] == "Too few images whose maps are not constant: 0 of 12."
        assert "correlation of Eigen-CAM and Ablation-CAM" in finding.statistic


def test_images_of_sizes_that_go_with_the_class_are_diagnosed_without_interventions() -> None:
    """A swap needs images of one size; what needs none is asked all the same."""

    def sample(index: int) -> Sample:
        one = pictures(30, 1)[index]
        return Sample(one.name, one.image.resize((8 + 4 * (index % 3), 8)), one.label)

    several = Samples(pictures(30, 1).names, sample)
    free = replace(model(), preprocess=konkyo.Preprocess(resize=None, crop=None, mean=(0, 0, 0), std=(1, 1, 1)))
    report = diagnose(free, several, ask="cue,wrong,suspicious", resamples=99)
    assert report.of("wrong")
    assert report.of("cue") or "several sizes" in report.not_asked["cue"]["en"]


def test_the_backbone_is_compared_with_an_untrained_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = model()
    with torch.no_grad():
        blank.module.features[0].weight.zero_()
    monkeypatch.setattr(backbone, "untrained", lambda _model, _seed: blank)
    (finding,) = diagnose(model(), pictures(45, 1), pictures(60, 2), "backbone", resamples=200).findings
    assert finding.severity == "ok"
    assert finding.values["accuracy"] > 0.9
    assert finding.values["accuracy of an untrained copy"] < 0.5


def test_a_batch_of_another_size_gives_the_same_findings() -> None:
    one, two = (asked(model((1, 0, 2)), batch=batch).description() for batch in (32, 7))
    for first, second in zip(one["findings"], two["findings"], strict=True):
        assert first["sentence"] == second["sentence"]
        assert first["value"] == pytest.approx(second["value"], abs=1e-5)
    assert [image["flags"] for image in one["images"]] == [image["flags"] for image in two["images"]]


@pytest.mark.parametrize("forwards", [1, 4, 9])
def test_the_network_comes_back_as_it_was_when_it_fails(forwards: int) -> None:
    """After so many forwards; while images are collected, and while a question is asked."""
    network = model()
    calls = iter(range(forwards))

    def failing(_module: nn.Module, _inputs: Any) -> None:
        if next(calls, None) is None:
            raise RuntimeError("out of order")

    handle = network.module.register_forward_pre_hook(failing)
    network.module.train()
    network.module.head.weight.requires_grad_(False)
    with pytest.raises(KonkyoError, match="out of order"):
        asked(network, ask="all", batch=8)
    handle.remove()
    assert network.module.training
    assert not network.module.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in network.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.module.modules())
