"""The numbers of a cue against slow transcriptions of their definitions."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from konkyo.evaluation.diagnose import cue_test
from konkyo.evaluation.diagnose.cue_test import CueTest, Window, excesses, hottest, shares, window_size
from konkyo.evaluation.diagnose.interventions import Effect, partners


def share_of(map_: torch.Tensor, top: int, left: int, height: int, width: int) -> float:
    cells = [float(map_[y, x]) for y in range(top, top + height) for x in range(left, left + width)]
    return sum(cells) / float(map_.sum())


def test_the_excess_is_the_largest_share_above_the_median_of_the_other_classes() -> None:
    maps = torch.rand(5, 9, 12, generator=torch.Generator().manual_seed(0)) ** 4
    height, width = window_size((9, 12))
    assert (height, width) == (2, 3)
    for own, result in enumerate(excesses(maps).tolist()):
        expected = max(
            share_of(maps[own], top, left, height, width)
            - median(share_of(maps[k], top, left, height, width) for k in range(5) if k != own)
            for top in range(9 - height + 1)
            for left in range(12 - width + 1)
        )
        assert result == pytest.approx(expected, abs=1e-6)
    assert excesses(maps[:1]).isnan().all()  # there is no other class


def test_the_window_is_where_the_largest_share_lies() -> None:
    map_ = torch.zeros(8, 8)
    map_[3:5, 6:8] = 1
    (share,) = shares(map_[None])
    window = hottest(share, (8, 8))
    assert window == Window(3, 6, 2, 2)
    assert float(share.max()) == 1
    assert window.box((8, 8), (80, 40)) == (30, 30, 40, 50)
    assert window.mask((8, 8), (80, 40)).nonzero().aminmax(dim=0).max.tolist() == [49, 39]
    assert shares(torch.zeros(1, 8, 8)).abs().sum() == 0


def test_both_effects_have_to_be_beyond_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    effect, nothing = Effect.of([0.1] * 8), Effect.of([])
    test = CueTest(0, (), 8, 0.5, 0.5, Window(0, 0, 2, 2), torch.ones(8, 8), effect, effect, nothing, float("nan"), 0)
    by_effect: dict[str, list[float]] = {}

    def joint_p(groups: Any, _resamples: int, seed: str) -> list[float]:
        return by_effect[seed.removeprefix("cue/")]

    monkeypatch.setattr(cue_test, "joint_p", joint_p)
    collected: Any = SimpleNamespace(settings=SimpleNamespace(resamples=9), random_seed=lambda use: use)
    by_effect |= {"cover": [0.001, 0.4], "paste": [0.3, 0.002]}
    tests = [test, replace(test, unknown="images"), test]
    assert [t.p for t in cue_test._adjusted(collected, tests)][::2] == [0.3, 0.4]


def test_a_region_is_pasted_against_that_of_a_third_class() -> None:
    labels = [0, 0, 1, 1, 2, 2]
    sources, hosts, thirds = partners([0, 1], labels, 0, 12, torch.Generator().manual_seed(1))
    assert sources == [0, 1] * 6
    assert sorted(hosts[:4]) == [2, 3, 4, 5]  # none twice before all came
    assert all({labels[host], labels[third]} == {1, 2} for host, third in zip(hosts, thirds, strict=True))
    assert partners([0, 1], labels[:4], 0, 3, torch.Generator())[2] == []  # two classes have no third
