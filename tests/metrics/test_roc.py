"""ROC-AUC, top-k intersection and effective complexity, against scikit-learn and loops; ignored pixels of PxAP."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from konkyo import KonkyoError
from konkyo.metrics.localisation import effective_complexity, relevance_rank, roc_auc
from konkyo.metrics.wsol import px_ap
from konkyo.utils.tensors import min_max

sklearn = pytest.importorskip("sklearn.metrics")
SIZES = [(23,), (9, 13), (3, 5, 7)]
"""Of signals, pictures and volumes."""


def scene(size: tuple[int, ...], rows: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    maps = torch.randn(rows, *size, generator=random)
    return maps, torch.rand(rows, *size, generator=random) < (0.3 + 0.1 * maps).clamp(0.1, 0.9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rounded", [False, True])
def test_roc_auc_is_scikit_learns(size: tuple[int, ...], rounded: bool) -> None:
    maps, masks = scene(size)
    maps = (2 * maps).round() if rounded else maps  # many equal values
    found = roc_auc(maps, masks=masks)
    expected = [
        sklearn.roc_auc_score(n.flatten().numpy(), m.flatten().numpy()) for m, n in zip(maps, masks, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_roc_auc_depends_on_the_order_of_values_alone() -> None:
    maps, masks = scene((9, 13))
    found = roc_auc(maps, masks=masks)
    for monotone in (lambda m: 3 * m - 1, torch.exp, torch.atan, lambda m: m**3):
        torch.testing.assert_close(roc_auc(monotone(maps.double()), masks=masks), found)
    torch.testing.assert_close(roc_auc(-maps, masks=masks), 1 - found)
    torch.testing.assert_close(roc_auc(maps, masks=~masks), 1 - found)
    assert roc_auc(masks.float(), masks=masks).tolist() == [1] * 4
    assert roc_auc(0 * maps + 3, masks=masks).tolist() == [0.5] * 4
    maps[0, 0, 0], masks[1], masks[2] = math.nan, False, True
    assert roc_auc(maps, masks=masks).isnan().tolist() == [True, True, True, False]


def test_roc_auc_of_many_pixels_is_exact() -> None:
    """Sums of ranks of half a million pixels leave 32 bits."""
    maps = torch.arange(700 * 700, dtype=torch.float32).view(1, 700, 700)
    masks = torch.arange(700 * 700).view(1, 700, 700) >= 350 * 700
    masks[0, 0, 0] = True
    n1, n0 = 350 * 700 + 1, 350 * 700 - 1
    assert roc_auc(maps, masks=masks).item() == pytest.approx(1 - n0 / (n1 * n0), abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_top_k_intersection_by_hand(size: tuple[int, ...]) -> None:
    maps, masks = scene(size)
    for k in (1, 5, 1000):
        found, lifted = (relevance_rank(maps, masks=masks, k=k, lift=lift) for lift in (False, True))
        for row in range(4):
            values, inside = maps[row].flatten().tolist(), masks[row].flatten().tolist()
            best = sorted(range(len(values)), key=lambda i: -values[i])[:k]
            share = sum(inside[i] for i in best) / len(best)
            assert found[row].item() == pytest.approx(share)
            assert lifted[row].item() == pytest.approx(share / (sum(inside) / len(inside)))
    whole = relevance_rank(maps, masks=masks, k=int(masks[0].sum()))
    assert whole[0] == relevance_rank(maps, masks=masks)[0]
    with pytest.raises(KonkyoError, match="1 or more; got 0"):
        relevance_rank(maps, masks=masks, k=0)


def test_effective_complexity_by_hand() -> None:
    maps = torch.tensor([[[4.0, -2.0, 0.05], [0.0, 1.0, -0.04]], [[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    assert effective_complexity(maps).tolist() == pytest.approx([4 / 6, 1])  # 0.04 is not above 1 % of 4
    assert effective_complexity(maps, threshold=0.3).tolist() == pytest.approx([2 / 6, 1])
    assert effective_complexity(1e-9 * maps).tolist() == effective_complexity(maps).tolist()
    assert effective_complexity(0 * maps).isnan().all()
    assert effective_complexity(maps, threshold=0).tolist() == pytest.approx([5 / 6, 1])
    with pytest.raises(KonkyoError, match=r"\[0, 1\)"):
        effective_complexity(maps, threshold=1)


def test_pixels_to_be_ignored_are_not_counted_but_those_of_the_object_are() -> None:
    """As average precision over the other pixels, by scikit-learn."""
    maps, masks = scene((9, 13))
    ignored = torch.rand(masks.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    assert (ignored & masks).any()
    levels = (min_max(maps) * 50).floor()
    for given, kept in (({"ignored": ignored}, ~ignored | masks), ({}, torch.ones_like(masks))):
        counts = px_ap.statistic(maps, masks=masks, steps=50, **given)
        assert counts.sum() == kept.sum()
        expected = sklearn.average_precision_score(masks[kept].numpy(), levels[kept].numpy())
        assert px_ap.over(counts).item() == pytest.approx(expected, rel=1e-5)
