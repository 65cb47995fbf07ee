"""Why images are wrong, and which lists they stand in: on a network whose contrast is the difference of two colours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from konkyo.data.samples import Sample, Samples
from konkyo.evaluation.diagnose.collected import Collected, Settings, collect
from konkyo.evaluation.diagnose.run import report_of
from konkyo.evaluation.diagnose.suspicious import DOUBTFUL, LEAST_RISE, rankings
from konkyo.evaluation.diagnose.wrong import class_mean_maps, map_distance, mistakes

CLASSES = ("red", "green", "blue")


class Mean(nn.Module):
    """A class's logit is 30 times the mean of its colour."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.features.weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, images: Tensor) -> Tensor:
        return 30 * self.features(images).mean((2, 3))


@pytest.fixture(scope="module")
def collected() -> Collected:
    """Every third image is labelled as the class after its own, so that it is wrong."""

    def sample(index: int) -> Sample:
        rng = np.random.default_rng(index)
        colour = index % 3
        pixels = rng.integers(0, 120, (8, 8, 3))
        y, x = rng.integers(0, 5, 2)
        pixels[y : y + 4, x : x + 4, colour] = rng.integers(120, 256)
        label = (colour + 1) % 3 if index % 4 == 0 else colour
        return Sample(str(index), Image.fromarray(pixels.astype(np.uint8)), CLASSES[label])

    preprocess = konkyo.Preprocess(resize=(8, 8), crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = konkyo.Model(Mean(), preprocess, CLASSES)
    return collect(model, Samples(tuple(map(str, range(36))), sample), Settings(layer="features", resamples=99))


def test_the_contrast_speaks_for_the_decision_and_against_the_label(collected: Collected) -> None:
    wrong = mistakes(collected)
    assert len(wrong.indices) >= 9
    for index, contrast in zip(wrong.indices, wrong.contrasts, strict=True):
        image, decision = collected.image(index), int(collected.predictions[index])
        difference = image[decision] - image[int(collected.true_labels[index])]
        torch.testing.assert_close(contrast, 30 / 64 * difference)


def test_the_surest_mistakes_come_first(collected: Collected) -> None:
    wrong = mistakes(collected)
    margins = [
        float(collected.probabilities[i, collected.predictions[i]] - collected.probabilities[i, label])
        for i, label in ((i, int(collected.true_labels[i])) for i in wrong.indices)
    ]
    assert margins == sorted(margins, reverse=True)
    assert wrong.margins.tolist() == pytest.approx(margins, abs=1e-6)


def test_the_distance_of_maps_is_one_minus_pearsons_correlation(collected: Collected) -> None:
    one, two = torch.rand(5, 4, 6), torch.rand(5, 4, 6)
    expected = [1 - np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(one, two, strict=True)]
    assert map_distance(one, two).tolist() == pytest.approx(expected, abs=1e-5)
    assert math.isnan(float(map_distance(torch.ones(1, 2, 2), two[:1, :2, :2])[0]))
    means = class_mean_maps(collected)
    of = [i for i in range(36) if int(collected.true_labels[i]) == 1]
    torch.testing.assert_close(means[1], torch.stack([collected.unit_maps[i] for i in of]).mean(0))


def test_a_label_to_check_is_one_that_the_model_hardly_believes(collected: Collected) -> None:
    ranking = next(ranking for ranking in rankings(collected) if ranking.subject == "label")
    of_label = collected.label_probability
    expected = [i for i in range(36) if not collected.correct[i] and of_label[i] < DOUBTFUL]
    assert expected
    assert list(ranking.indices) == sorted(expected, key=lambda i: float(of_label[i]))[:12]


def test_a_doubtful_reason_is_asked_of_correct_and_sure_images_only(collected: Collected) -> None:
    ranking = next(ranking for ranking in rankings(collected) if ranking.subject == "doubtful reason")
    assert ranking.indices
    assert bool(collected.correct[list(ranking.indices)].all())
    assert bool((collected.confidence[list(ranking.indices)] >= collected.confidence.median()).all())
    scores = ranking.scores[list(ranking.indices)]
    assert bool((scores > LEAST_RISE).all())
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_flags_and_confusions_of_the_report(collected: Collected) -> None:
    report = report_of(collected, (), {})
    for index, image in enumerate(report.images):
        doubted = not collected.correct[index] and float(collected.label_probability[index]) < DOUBTFUL
        assert ("wrong" in image.flags) is not bool(collected.correct[index])
        assert ("label?" in image.flags) is bool(doubted)
        assert "duplicate" not in image.flags
    labels, decisions = collected.true_labels.tolist(), collected.predictions.tolist()
    for card in report.classes:
        for other, count in card.confused:
            pair = {CLASSES.index(card.name), CLASSES.index(other)}
            assert count == sum({a, b} == pair for a, b in zip(labels, decisions, strict=True))
