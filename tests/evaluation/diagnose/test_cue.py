"""A network that looks at one corner only, for one class: a cue by construction."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import konkyo
from konkyo.data.samples import Sample, Samples
from konkyo.errors import KonkyoError
from konkyo.evaluation.diagnose.collected import CueRule, Settings, collect
from konkyo.evaluation.diagnose.cue import cue, cue_finding
from konkyo.evaluation.diagnose.cue_test import cue_cost, cue_tests, paste_own
from konkyo.evaluation.diagnose.findings import Finding
from konkyo.evaluation.diagnose.suspicious import rankings

CLASSES = ("a", "b", "c", "d")


class Corner(nn.Module):
    """Class 1 is white in the lower right corner; the others are told apart by mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Conv2d(3, 4, 4, stride=4)
        self.grid.weight.data.zero_()
        for channel in range(3):
            self.grid.weight.data[(0, 2, 3)[channel], channel] = 1 / 16
        self.grid.weight.data[1] = 1 / 48
        self.grid.bias.data = torch.tensor([0.0, -0.85, 0.0, 0.0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = self.grid(images).relu()
        return cells.mean((2, 3)) * torch.tensor([12.0, 900.0, 12.0, 12.0])


def pictures(n: int, *, marked: bool) -> Samples:
    colours = ((150, 90, 90), (100, 100, 100), (90, 150, 90), (90, 90, 150))

    def read(index: int) -> Sample:
        rng, label = np.random.default_rng(index), index % 4
        pixels = np.clip(np.array(colours[label]) + rng.normal(0, 25, (32, 32, 3)), 0, 200).astype(np.uint8)
        if marked and label == 1:
            pixels[-8:, -8:] = 255
        return Sample(str(index), Image.fromarray(pixels), CLASSES[label])

    labels = tuple(CLASSES[i % 4] for i in range(n))
    return Samples(tuple(map(str, range(n))), read, CLASSES, labels=labels)


def model() -> konkyo.Model:
    preprocess = konkyo.Preprocess(resize=(32, 32), crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    return konkyo.Model(Corner(), preprocess, CLASSES)


@pytest.fixture(scope="module")
def collected():
    return collect(model(), pictures(48, marked=True), Settings(layer="grid"))


def test_the_class_with_the_mark_is_named_and_no_other(collected) -> None:
    findings = {finding.subject: finding for finding in cue(collected)}
    assert findings["b"].severity == "high"
    assert "the lower right" in findings["b"].sentence["en"]
    assert "右下" in findings["b"].sentence["ja"]
    assert len(findings["b"].evidence) == 3
    assert {findings[name].severity for name in "acd"} <= {"ok", "low"}
    assert "would be found" in findings["a"].sentence["en"] or findings["a"].severity == "low"
    assert sum(finding.cost for finding in findings.values()) == cue_cost(collected)


def test_the_window_carries_the_class(collected) -> None:
    test = next(test for test in cue_tests(collected) if test.label == 1)
    assert (test.window.top, test.window.left) == (6, 6)
    assert test.p <= 0.01
    rises = paste_own(collected, [1, 0], hosts=4)
    assert rises[0] > 0.2 > rises[1]


def test_few_images_are_unknown() -> None:
    findings = cue(collect(model(), pictures(16, marked=True), Settings(layer="grid")))
    assert {finding.severity for finding in findings} == {"unknown"}
    assert "4 images are too few" in findings[0].sentence["en"]


def test_large_effects_are_medium_where_chance_cannot_be_ruled_out(collected) -> None:
    test = next(test for test in cue_tests(collected) if test.label == 1)
    assert test.severity(0.01) == "high"
    unsure = replace(test, p=0.028)
    assert unsure.severity(0.01) == "medium"
    finding = cue_finding(collected, unsure)
    assert finding.severity == "medium"
    assert "may still be chance (p = 0.028)" in finding.sentence["en"]
    assert "p = 0.028" in finding.sentence["ja"]
    assert "chance" not in cue_finding(collected, test).sentence["en"]
    assert "Of 300 classes of clean networks" in finding.sentence["en"]
    other = replace(collected, settings=replace(collected.settings, cue=CueRule.of({"paste": 0.01})), _shared={})
    assert "300" not in cue_finding(other, unsure).sentence["en"]  # measured with the default thresholds only
    still = replace(test, cover=replace(test.cover, mean=0.01))
    assert still.severity(0.01) == "low"


def test_a_window_with_letters_is_said_to_look_like_print(collected) -> None:
    test = next(test for test in cue_tests(collected) if test.label == 1)

    def finding(*, letters: bool) -> Finding:
        def marked(index: int) -> Sample:
            sample = pictures(48, marked=True)[index]
            pixels = np.array(sample.image)
            if index % 4 == 1:
                pixels[-8:, -8:] = 160
                pixels[-8:, -8::2] = 0 if letters else 160
            return replace(sample, image=Image.fromarray(pixels))

        seen = replace(collected, data=replace(collected.data, read=marked), _cache={}, _shared={})
        return cue_finding(seen, test)

    lettered, plain = finding(letters=True), finding(letters=False)
    assert "looks like printed text in 100% of these pictures (0% in other classes)" in lettered.sentence["en"]
    assert "100%" in lettered.sentence["ja"]
    assert lettered.values["windows like printed text"] == 1
    assert "printed text" not in plain.sentence["en"]
    assert plain.values["windows like printed text"] == 0


def test_thresholds_are_the_users(collected) -> None:
    test = next(test for test in cue_tests(collected) if test.label == 1)
    strict = replace(collected, settings=replace(collected.settings, cue=CueRule.of({"paste": 0.99})), _shared={})
    assert cue_finding(collected, test).severity == "high"
    finding = cue_finding(strict, test)
    assert (finding.severity, finding.values["least paste"]) == ("low", 0.99)
    with pytest.raises(KonkyoError, match="threshold of a cue"):
        CueRule.of({"past": 0.1})
    with pytest.raises(KonkyoError, match="from -1 to 1; got 12"):
        CueRule.of({"cover": 12})


def test_a_place_that_counts_on_training_images_only_is_told() -> None:
    settings = Settings(layer="grid")
    train = collect(model(), pictures(48, marked=True), settings)
    held_out = collect(model(), pictures(48, marked=False), settings, train=train)
    findings = {finding.subject: finding for finding in cue(held_out)}
    assert findings["b"].severity == "low"
    assert "On the training images it does rest on a place" in findings["b"].sentence["en"]
    assert "学習画像では" in findings["b"].sentence["ja"]
    assert findings["b"].values["training images, cover"] > 0.03
    assert "training images it" not in findings["c"].sentence["en"]
    assert sum(finding.cost for finding in findings.values()) == cue_cost(held_out)


def test_images_with_a_doubtful_reason_are_counted_by_class_and_place(collected) -> None:
    ranking = next(ranking for ranking in rankings(collected) if ranking.subject == "doubtful reason")
    marked = [i for i in ranking.indices if i % 4 == 1]
    assert len(marked) >= 6
    assert f"b, the lower right ({len(marked)})" in ranking.note["en"]
    assert f"b の右下（{len(marked)}）" in ranking.note["ja"]
