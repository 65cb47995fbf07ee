"""Answers in words are measured: every word that names a thing, on that thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers import speakers
from konkyo.data.samples import Annotation, Sample, Samples
from konkyo.tasks.answers import AnswerTask, Speaker, Vocabulary

INSIDE = 7 / 8
"""Of a cell of 8 pixels beside one of 0, enlarged linearly: (4 + 3) of 8 lie on its own half."""
pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


@dataclass(frozen=True)
class Halves(Speaker):
    """It says "cat dog" of what is bright on the left and on the right: the brighter a half, the likelier its word."""

    def encode(self, module: nn.Module, images: Tensor, question: str) -> Tensor:
        grid: Tensor = module(images)
        return grid.mean((1, 2))

    def logits(self, module: nn.Module, encoded: Any, answer: Sequence[int]) -> Tensor:
        rows = encoded.new_zeros(len(encoded), 3, len(speakers.WORDS))
        words = torch.tensor([[7, 8, 2]]).expand(len(encoded), -1)[..., None]
        chosen = torch.stack([encoded[:, 0], encoded[:, 1], torch.ones_like(encoded[:, 0])], 1)[..., None]
        return rows.scatter(2, words, chosen)[:, : len(answer) + 1]


def _model() -> konkyo.Model:
    network = nn.Conv2d(3, 2, 8, 8)
    nn.init.constant_(network.weight, 0.05)
    nn.init.constant_(network.bias, 0.1)
    module = nn.Sequential(network, nn.ReLU(), nn.Conv2d(2, 2, 1))
    nn.init.constant_(module[2].weight, 0.5)
    nn.init.zeros_(module[2].bias)
    preprocess = konkyo.Preprocess(None, None, mean=(0.0,) * 3, std=(1.0,) * 3)
    speaker = Halves(Vocabulary(speakers.tokenizer(), frozenset({2})))
    return konkyo.Model(module, preprocess=preprocess, task=AnswerTask(speaker))


def _samples(*labels: str) -> Samples:
    def read(index: int) -> Sample:
        image = Image.new("RGB", (16, 16), (200, 180, 160))
        boxes = ((0.0, 0.0, 8.0, 16.0), (8.0, 0.0, 16.0, 16.0))
        things = tuple(Annotation(label, box) for label, box in zip(labels, boxes, strict=False))
        return Sample(f"{index}", image, annotations=things)

    return Samples(("0",), read)


def test_words_that_name_things_are_measured_on_them() -> None:
    table = konkyo.evaluate(_model(), _samples("cat", "dog"), ["hires_cam"], ["ebpg@box"])
    assert [row.explained for row in table.rows] == ["cat", "dog"]
    values = table.statistics["hires_cam", "ebpg@box"].flatten().tolist()
    assert values == pytest.approx([INSIDE, INSIDE])


def test_words_that_name_nothing_are_left_out() -> None:
    table = konkyo.evaluate(_model(), _samples("dog", "umbrella"), ["hires_cam"], ["ebpg@box"])
    assert [row.explained for row in table.rows] == ["dog"]
    assert table.statistics["hires_cam", "ebpg@box"].flatten().tolist() == pytest.approx([1 - INSIDE])


def test_an_answer_that_names_nothing_is_measured_as_a_whole() -> None:
    table = konkyo.evaluate(_model(), _samples("umbrella"), ["hires_cam"], ["deletion"])
    assert [row.explained for row in table.rows] == ["cat dog"]
    assert 0 < table.rows[0].score < 1
