"""The linear probe against ridge regression written out, and what a backbone is compared with."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import konkyo
from helpers.networks import SmallResNet, images, seeded
from konkyo.evaluation.batches import untrained
from konkyo.evaluation.diagnose.backbone import LEAST_GAP, _severity
from konkyo.evaluation.diagnose.probe import STRENGTHS, ridge_probe


def ridge(features: Tensor, targets: Tensor, queries: Tensor, strength: float) -> Tensor:
    """Values for queries (n, K), the mean not penalised, by the normal equations."""
    mean, offset = features.mean(0), targets.mean(0)
    centred = features - mean
    inverse = torch.linalg.inv(centred.T @ centred + strength * len(features) * torch.eye(features.shape[1]).double())
    return (queries - mean) @ inverse @ centred.T @ (targets - offset) + offset


def test_the_penalty_is_the_one_of_the_best_accuracy_over_five_folds() -> None:
    generator = torch.Generator().manual_seed(3)
    train, queries = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (60, 25))
    labels = (train[:, :3] + 1.5 * torch.randn(60, 3, generator=generator)).argmax(1)
    probe = ridge_probe(train, labels, queries, 3, generator=torch.Generator().manual_seed(5))
    mean, deviation = train.mean(0), train.std(0, correction=0)
    known, asked = (train - mean) / deviation, (queries - mean) / deviation
    targets = 2.0 * (labels[:, None] == torch.arange(3)).double() - 1
    fold = torch.randperm(60, generator=torch.Generator().manual_seed(5)) % 5
    right = []
    for strength in STRENGTHS:
        hits = 0
        for k in range(5):
            values = ridge(known[fold != k], targets[fold != k], known[fold == k], strength)
            hits += int((values.argmax(1) == labels[fold == k]).sum())
        right.append(hits)
    assert len(set(right)) > 2
    best = max(strength for strength, hits in zip(STRENGTHS, right, strict=True) if hits == max(right))
    assert probe.strength == best
    assert torch.equal(probe.decisions, ridge(known, targets, asked, best).argmax(1))


@pytest.mark.parametrize(
    ("p", "p_chance", "high", "severity"),
    [
        (0.001, 0.5, 0.9, "high"),  # no better than chance, whatever an untrained copy does
        (0.001, 0.001, 0.3, "ok"),
        (0.2, 0.001, LEAST_GAP - 0.01, "medium"),
        (0.2, 0.001, LEAST_GAP + 0.01, "unknown"),
        (math.nan, 0.001, 0.0, "medium"),
    ],
)
def test_the_severity_of_a_backbone(p: float, p_chance: float, high: float, severity: str) -> None:
    assert _severity(p, p_chance, high, 0.01) == severity


def test_an_untrained_copy_has_other_weights_and_leaves_the_network_alone() -> None:
    model = konkyo.Model(seeded(SmallResNet()), classes=["a", "b", "c", "d", "e"])
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    bare = untrained(model, 1)
    some = images(2)
    with torch.no_grad():
        assert not torch.allclose(bare.module(some), model.module(some))
        assert torch.equal(bare.module(some), untrained(replace(model), 1).module(some))
        assert not torch.equal(bare.module(some), untrained(model, 2).module(some))
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
