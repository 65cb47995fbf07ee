"""The loss of Odam-Train, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import konkyo
from konkyo.training import odam_loss

BOXES = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [3, 3, 8, 8], [20, 20, 30, 30]])


def maps() -> Tensor:
    """Cosines: 0.6 of the first two, 0.8 of the first and third, 0.48 of the second and third."""
    return torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0.8, 0, 0.6], [1, 1, 1]]).view(4, 1, 3)


@pytest.mark.parametrize("weighted", [True, False])
def test_three_predictions_of_two_objects_and_one_far_away(weighted: bool) -> None:
    """Object 7 has predictions 0 and 1, of which 0 is the anchor; 2 overlaps them, 3 none."""
    found = odam_loss(maps(), [7, 7, 2, 5], BOXES, torch.tensor([0.8, 0.6, 0.9, 0.7]), weighted=weighted)
    u = 0.75 if weighted else 1.0
    of_seven = -u * math.log(0.6) - math.log(1 - 0.8)
    of_two = -math.log(1 - 0.8) - math.log(1 - 0.48)
    assert found.item() == pytest.approx((of_seven + of_two) / 4, rel=1e-5)
    other = odam_loss(maps(), torch.tensor([7, 7, 2, 5]), BOXES, torch.tensor([0.6, 0.8, 0.9, 0.7]), weighted=weighted)
    of_seven = -u * math.log(0.6) - math.log(1 - 0.48)  # now 1 is the anchor
    assert other.item() == pytest.approx((of_seven + of_two) / 4, rel=1e-5)


def test_scale_of_a_map_does_not_count_and_the_best_is_nearly_zero() -> None:
    alike = torch.tensor([[1.0, 0], [3, 0], [0, 2], [0, 5]]).view(4, 2, 1)
    found = odam_loss(alike, [0, 0, 1, 1], BOXES[:1].expand(4, 4), torch.full((4,), 0.7))
    assert 0 <= found.item() <= 2e-4
    worst = odam_loss(alike, [0, 1, 0, 1], BOXES[:1].expand(4, 4), torch.full((4,), 0.7))
    assert worst.item() == pytest.approx(-math.log(1e-4) * 4 / 6 - math.log(1 - 1e-4) * 2 / 6, rel=1e-2)


def test_its_gradient_draws_maps_of_one_object_together_and_of_two_apart() -> None:
    values = (maps() + 0.1).requires_grad_()
    ious = torch.tensor([0.8, 0.6, 0.9, 0.7])
    before = odam_loss(values, [7, 7, 2, 5], BOXES, ious)
    (slope,) = torch.autograd.grad(before, values)
    assert slope[:3].abs().amax((1, 2)).min() > 0
    assert slope[3].abs().max() == 0
    after = odam_loss(values - 0.1 * slope, [7, 7, 2, 5], BOXES, ious)
    assert after < before


def test_no_pairs_no_maps_and_other_shapes() -> None:
    alone = odam_loss(maps()[:1].requires_grad_(), [0], BOXES[:1], torch.ones(1))
    assert alone.item() == 0
    assert alone.requires_grad
    assert odam_loss(maps()[:0], [], BOXES[:0], torch.ones(0)).item() == 0
    with pytest.raises(konkyo.KonkyoError, match="an object, a box"):
        odam_loss(maps(), [0, 1], BOXES, torch.ones(4))
