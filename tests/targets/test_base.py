"""What targets answer of themselves, and what stands for a callable of the user's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import konkyo
from konkyo.targets.base import as_target

OUTPUT = torch.tensor([[1.0, 3.0, -2.0], [0.5, 0.0, 4.0]])


def mean(output: Tensor) -> Tensor:
    return output.mean(1)


def test_a_callable_answers_with_the_defaults() -> None:
    target = as_target(mean)
    assert torch.equal(target(OUTPUT), OUTPUT.mean(1))
    assert (target.class_index, target.class_logit, target.logit(OUTPUT), target.location()) == (None,) * 4
    boxes = target.matched_boxes(OUTPUT)
    assert [len(box) for box in boxes] == [4, 4]
    assert all(math.isnan(side) for box in boxes for side in box)
    assert target.details() == {}
    assert target.in_words("mean", 1.234) == "mean (score 1.23)"


def test_a_target_of_the_package_is_itself() -> None:
    target = konkyo.ClassTarget(1)
    assert as_target(target) is target


def test_a_class_says_which_it_is_and_whether_its_logit_is_the_score() -> None:
    logit, probability = konkyo.ClassTarget(1), konkyo.ClassTarget(1, "probability")
    assert (logit.class_index, logit.class_logit) == (1, 1)
    assert (probability.class_index, probability.class_logit) == (1, None)
    assert torch.equal(probability.logit(OUTPUT), OUTPUT[:, 1])
    assert probability.in_words("cat", 0.5) == "cat (probability 0.50)"


def test_logits_of_differences() -> None:
    this, that = konkyo.ClassTarget(0, "probability"), konkyo.ClassTarget(2, "probability")
    assert torch.equal(konkyo.Against(this).logit(OUTPUT), -OUTPUT[:, 0])
    assert torch.equal(konkyo.ContrastTarget(this, that).logit(OUTPUT), OUTPUT[:, 0] - OUTPUT[:, 2])
    assert torch.equal(konkyo.ContrastTarget(this, mean).logit(OUTPUT), OUTPUT[:, 0] - OUTPUT.mean(1))
    assert torch.equal(konkyo.ContrastTarget(mean, this).logit(OUTPUT), OUTPUT.mean(1) - OUTPUT[:, 0])
    assert konkyo.ContrastTarget(mean, mean).logit(OUTPUT) is None
    assert konkyo.Against(mean).logit(OUTPUT) is None
    assert konkyo.Against(this).class_index is None


def test_a_detection_says_where_it_is() -> None:
    target = konkyo.InstanceTarget(1, (1.0, 2.0, 5.0, 6.0), (0.25, 0.7), 0, "x1")
    assert target.location() == (1.0, 2.0, 5.0, 6.0)
    assert target.details() == {"probability": 0.7, "quantity": "x1"}
    assert target.in_words("cat, x1", 1.0) == "x1 of cat (probability 0.70)"
    there = torch.tensor([[[1.0, 2.0, 5.0, 6.0, 0.25, 0.7]], [[50.0, 50.0, 60.0, 60.0, 0.25, 0.1]]])
    near, far = target.matched_boxes(there)
    assert near == (1.0, 2.0, 5.0, 6.0)
    assert all(map(math.isnan, far))
