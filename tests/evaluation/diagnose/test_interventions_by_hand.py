"""Covering and pasting on a linear network, against loops over single images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from konkyo.evaluation.diagnose.interventions import Cover, Paste, moved, one_of_another_class, partners

IMAGES = torch.randn(12, 2, 6, 7, generator=torch.Generator().manual_seed(0))
WEIGHTS = 0.3 * torch.randn(3, 2 * 6 * 7, generator=torch.Generator().manual_seed(1))
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
REGION = torch.zeros(6, 7, dtype=torch.bool)
REGION[3:5, 4:6] = True


class Linear:
    def images(self, indices: Sequence[int]) -> Tensor:
        return IMAGES[list(indices)]

    def probabilities_of(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ WEIGHTS.T).softmax(1)


def probability(image: Tensor) -> float:
    return float((image.flatten() @ WEIGHTS.T).softmax(0)[0])


def with_region(image: Tensor, other: Tensor, region: Tensor) -> Tensor:
    changed = image.clone()
    changed[:, region] = other[:, region]
    return changed


def test_covering_is_the_fall_less_that_of_the_region_elsewhere() -> None:
    rows = [0, 1, 2, 3]
    others = one_of_another_class(rows, LABELS, torch.Generator().manual_seed(1))
    assert all(LABELS[other] != 0 for other in others)
    plan = Cover(rows, [0] * 4, REGION.expand(4, 6, 7), others, Linear().probabilities_of(IMAGES[rows]), controls=5)
    covered = plan.run(Linear(), torch.Generator().manual_seed(2), batch=7)
    generator = torch.Generator().manual_seed(2)
    for place, (row, other) in enumerate(zip(rows, others, strict=True)):
        before = probability(IMAGES[row])
        fall = before - probability(with_region(IMAGES[row], IMAGES[other], REGION))
        elsewhere = moved(REGION, 5, generator)
        assert all(region.sum() == 4 and (region & REGION).sum() <= 2 for region in elsewhere)
        controls = [before - probability(with_region(IMAGES[row], IMAGES[other], region)) for region in elsewhere]
        assert np.isclose(covered.plain_falls[place], fall, atol=1e-6)
        assert np.isclose(covered.falls[place], fall - np.mean(controls), atol=1e-6)


def test_pasting_is_the_rise_over_the_region_of_a_third_class() -> None:
    sources, hosts, thirds = partners([0, 1, 2, 3], LABELS, 0, 16, torch.Generator().manual_seed(3))
    assert all(
        LABELS[host] != 0 and LABELS[third] not in (0, LABELS[host]) for host, third in zip(hosts, thirds, strict=True)
    )
    before = np.array([probability(IMAGES[host]) for host in hosts])
    pasted = Paste(sources, hosts, thirds, REGION.expand(16, 6, 7), before, 0).run(Linear(), batch=5)
    rises = [
        probability(with_region(IMAGES[host], IMAGES[source], REGION))
        - probability(with_region(IMAGES[host], IMAGES[third], REGION))
        for source, host, third in zip(sources, hosts, thirds, strict=True)
    ]
    assert np.allclose(pasted.rises, rises, atol=1e-6)
    by_source = [
        np.mean([rise for rise, of in zip(rises, sources, strict=True) if of == source]) for source in range(4)
    ]
    assert np.allclose(pasted.by_source(pasted.rises), by_source, atol=1e-6)
