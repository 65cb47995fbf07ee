"""tcav() with a linear head, where the answer is known, and on concepts that are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import konkyo
from konkyo import concepts
from konkyo.concepts.activation_vectors import separated, welch
from konkyo.errors import KonkyoError


def model() -> konkyo.Model:
    """Class 0 is red minus green, class 1 the other way; blue counts for nothing."""
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None])
        net[4].weight.copy_(torch.tensor([[1.0, -1, 0], [-1, 1, 0]]))
    return konkyo.Model(net.eval(), classes=("red", "green"))


def pictures(count: int, colour: int | None = None) -> Tensor:
    values = torch.rand(count, 3, 4, 4)
    if colour is not None:
        values[:, colour] += 2
    return values


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("target", "expected"), [("red", 1.0), ("green", 0.0)])
def test_a_linear_head_rises_on_all_images_or_on_none(target: str, expected: float, pooled: bool) -> None:
    result = concepts.tcav(model(), pictures(5), pictures(8, 0), pictures(40), target=target, layer="1", pooled=pooled)
    assert result.scores.tolist() == [expected] * 10
    assert result.significant or pooled  # of three channels random directions are often as near
    assert result.p_value == pytest.approx(0.01) or pooled
    assert (result.slope > 0) == (target == "red")
    assert result.accuracy > 0.95
    assert set(result.random_scores.tolist()) <= {0.0, 1.0}


def test_random_concepts_are_not_significant() -> None:
    """20 concepts that are none: 1 is expected below 0.05, and 5 or more have a chance of 0.3 %."""
    below = [
        concepts.tcav(
            model(), pictures(3), pictures(6), pictures(30), target=0, layer="1", sets=4, seed=seed
        ).significant
        for seed in range(20)
    ]
    assert sum(below) < 5


def test_a_concept_that_counts_for_nothing_is_told_apart_and_not_significant() -> None:
    result = concepts.tcav(model(), pictures(5), pictures(8, 2), pictures(60), target="red", layer="1", pooled=True)
    assert result.accuracy > 0.95
    assert not result.significant


def test_the_normal_is_that_of_ridge_regression() -> None:
    values = torch.randn(9, 4).double()
    values[:4] += 1
    weights, accuracy = separated((values @ values.mT)[None], 4)
    linear = pytest.importorskip("sklearn.linear_model")
    labels = torch.tensor([1.0] * 4 + [-1.0] * 5).double()
    centred = values - values.mean(0)
    strength = 0.01 * float(centred.square().sum(1).mean())

    def fitted(rows: list[int]) -> tuple[Tensor, float]:
        theirs = linear.Ridge(alpha=strength).fit(values[rows].numpy(), labels[rows].numpy())
        return torch.tensor(theirs.coef_), float(theirs.intercept_)

    normal, _ = fitted(list(range(9)))
    torch.testing.assert_close(weights[0] @ values, normal / normal.norm())
    right = []
    for i in range(9):
        slope, intercept = fitted([row for row in range(9) if row != i])
        right.append(bool((values[i] @ slope + intercept) * labels[i] > 0))
    assert float(accuracy[0]) == pytest.approx(sum(right) / 9)


def test_the_t_test_is_welchs() -> None:
    stats = pytest.importorskip("scipy.stats")
    one, other = torch.rand(10).double(), 0.3 + 0.5 * torch.rand(7).double()
    expected = stats.ttest_ind(one.numpy(), other.numpy(), equal_var=False).pvalue
    assert welch(one, other) == pytest.approx(float(expected))
    assert welch(torch.ones(3), torch.ones(4)) == 1
    assert welch(torch.ones(3), torch.zeros(4)) == 0


def test_the_slope_is_the_derivative_along_the_concept() -> None:
    """Features of a nonlinear head, by finite differences along the normal found with all of the images."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2)
    ).double()
    shown, concept, others = (part.double() for part in (pictures(3), pictures(4, 0), pictures(8)))
    result = concepts.tcav(net, shown, concept, others, target=0, layer="1", sets=2, seed=5)
    generator = torch.Generator().manual_seed(5)
    slopes = []
    for _ in range(2):
        chosen = others[torch.randperm(8, generator=generator)[:4]]
        values = torch.cat([concept, chosen])
        rows = net[:2](values).flatten(1).detach()
        weights, _ = separated((rows @ rows.mT)[None], 4)
        direction = (weights[0] @ rows).view(1, 4, 2, 2)
        features = net[:2](shown).detach()
        up, down = (net[2:](features + step * direction)[:, 0] for step in (1e-5, -1e-5))
        slopes.append(((up - down) / 2e-5).mean().detach())
    assert result.slope == pytest.approx(float(torch.stack(slopes).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("concept", "others", "sets", "message"),
    [(1, 10, 10, "2 images"), (4, 7, 10, "8 images or more"), (4, 8, 1, "2 sets")],
)
def test_too_few_images_are_an_error(concept: int, others: int, sets: int, message: str) -> None:
    with pytest.raises(KonkyoError, match=message):
        concepts.tcav(model(), pictures(2), pictures(concept), pictures(others), target=0, layer="1", sets=sets)


def test_a_test_says_what_it_found() -> None:
    result = concepts.tcav(model(), pictures(3), pictures(4, 0), pictures(12), target="red", layer="1", sets=2)
    assert "score higher for red along the concept at 1" in repr(result)
