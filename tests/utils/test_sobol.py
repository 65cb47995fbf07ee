"""Sobol' total indices against closed forms."""

from __future__ import annotations

import pytest
import torch

from konkyo.errors import KonkyoError
from konkyo.utils.sobol import sobol_designs, total_indices


def test_a_weighted_sum_has_the_shares_of_its_squares() -> None:
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5])
    points = sobol_designs(512, 4)
    expected = weights.square() / weights.square().sum()
    indices = total_indices(points @ weights, 4)
    torch.testing.assert_close(indices.float(), expected, atol=0.03, rtol=0)
    assert float(indices[2]) == 0


def test_a_product_counts_for_both_of_its_factors() -> None:
    points = sobol_designs(2048, 3)
    indices = total_indices((points[:, 0] - 0.5) * (points[:, 1] - 0.5), 3)
    torch.testing.assert_close(indices, torch.tensor([1.0, 1.0, 0.0]).double(), atol=0.05, rtol=0)


def test_every_design_differs_from_the_first_in_one_column() -> None:
    points = sobol_designs(8, 3, seed=4)
    first, mixed = points[:8], points[8:].view(8, 3, 3)
    for group in range(3):
        changed = (mixed[:, group] != first).any(0)
        assert changed.tolist() == [column == group for column in range(3)]


def test_a_constant_score_has_no_indices() -> None:
    assert total_indices(torch.ones(2, 4 * 4), 3).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(("count", "groups"), [(1, 3), (8, 0)])
def test_too_few_points_are_an_error(count: int, groups: int) -> None:
    with pytest.raises(KonkyoError, match="2 or more"):
        sobol_designs(count, groups)
