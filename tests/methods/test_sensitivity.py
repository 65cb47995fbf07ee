"""Sobol' indices, HSIC and Owen values of halves against closed forms and slow transcriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

import konkyo
from helpers.closeness import close
from helpers.formulas import references
from helpers.networks import SmallResNet, images, seeded
from konkyo.utils.tensors import blurred

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")

WEIGHTS = torch.tensor([[1.0, -2.0, 0.0], [0.5, 3.0, 1.5]], dtype=torch.float64)


class Cells(nn.Module):
    """Logits (value, 0) of how much of each cell of a grid is shown of a picture of ones."""

    def __init__(self, value: Callable[[Tensor], Tensor], cells: tuple[int, int]) -> None:
        super().__init__()
        self.value, self.cells = value, cells

    def forward(self, x: Tensor) -> Tensor:
        value = self.value(nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), self.cells)[:, 0])
        return torch.stack([value, value * 0], 1)


def map_of(value: Callable[[Tensor], Tensor], method: str, size: tuple[int, int] = (2, 3), **options: Any) -> Tensor:
    """A map of cells of one pixel (h, w)."""
    x = torch.ones(1, 1, *size, dtype=torch.float64)
    options = {"target": konkyo.ClassTarget(0), "hide": "zero"} | options
    return konkyo.explain(Cells(value, size), x, method=method, **options).signed[0].double()


linear = lambda z: (z * WEIGHTS).sum((1, 2)) + 0.4


# --- Sobol' indices ---------------------------------------------------------------------------------------------------


def test_sobol_indices_of_an_additive_score_are_shares_of_its_variance() -> None:
    found = map_of(linear, "sobol", grid=(2, 3), designs=4096)
    torch.testing.assert_close(found, WEIGHTS**2 / (WEIGHTS**2).sum(), atol=0.02, rtol=0)
    assert found[0, 2] == 0  # which the score ignores


def test_sobol_indices_count_what_cells_do_together() -> None:
    """z1 z2 of uniform z: variance 7/144, of which each has the total share 1/3 * 1/12 = 4/144."""
    found = map_of(lambda z: z[:, 0, 0] * z[:, 1, 1], "sobol", grid=(2, 3), designs=4096)
    assert float(found[0, 0]) == pytest.approx(4 / 7, abs=0.02)
    assert float(found[1, 1]) == pytest.approx(4 / 7, abs=0.02)
    assert (found != 0).sum() == 2


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_sobol_by_hand(kind: str) -> None:
    x = images(1)
    network = seeded(SmallResNet(deep_head=True)) if kind == "resnet" else references("vit", x, 0)[0]
    found = konkyo.explain(network, x, method="sobol", target=2, grid=2, designs=8, seed=3)
    points = SobolEngine(8, scramble=True, seed=3).draw(8).double()

    def score(mask: Tensor) -> Tensor:
        large = mask.view(2, 2).repeat_interleave(16, 0).repeat_interleave(20, 1)
        return network(x * large).softmax(1)[0, 2].detach()

    plain = torch.stack([score(point[:4]) for point in points])
    indices = torch.zeros(4).double()
    for i in range(4):
        for n, point in enumerate(points):
            swapped = point[:4].clone()
            swapped[i] = point[4 + i]
            indices[i] += (plain[n] - score(swapped)) ** 2 / (2 * 8 * plain.var())
    expected = nn.functional.interpolate(indices.view(1, 1, 2, 2), (32, 40), mode="bilinear")[0, 0]
    close(found.signed[0], expected)


def test_a_budget_of_sobol_and_of_hsic_is_for_the_first_designs() -> None:
    run = lambda **o: map_of(linear, "sobol", grid=(2, 3), designs=64, seed=2, **o)
    close(run(budget=10**5), run())
    assert run(budget=64).abs().max() == 0
    part = run(budget=64 + 6 * 20)
    assert part[0, 2] == 0
    torch.testing.assert_close(part, WEIGHTS**2 / (WEIGHTS**2).sum(), atol=0.3, rtol=0)
    assert map_of(linear, "hsic", grid=(2, 3), budget=1).abs().max() == 0


# --- HSIC ------------------------------------------------------------------------------------------------------------


def hsic_by_hand(z: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    n = len(y)
    centre = torch.eye(n).double() - 1 / n
    of_scores = torch.exp(-((y[:, None] - y) ** 2) / (2 * scale**2))
    values = []
    for column in z.T:
        of_masks = 1.5 - (column[:, None] - column) ** 2
        values.append(((centre @ of_masks @ centre) * (centre @ of_scores @ centre)).sum() / n)
    return torch.stack(values)


@pytest.mark.parametrize("bandwidth", ["scores", "distances"])
def test_hsic_by_hand(bandwidth: str) -> None:
    z = SobolEngine(6, scramble=True, seed=0).draw(100).round().double()
    y = linear(z.view(-1, 2, 3))
    apart = (y[:, None] - y).abs()[tuple(torch.tril_indices(100, 100, -1))]
    expected = hsic_by_hand(z, y, y.median() if bandwidth == "scores" else apart.median())
    found = map_of(linear, "hsic", grid=(2, 3), designs=100, bandwidth=bandwidth).flatten()
    close(found, expected)
    assert (found >= 0).all()
    assert found.argmax() == 4


def test_hsic_of_distances_knows_no_unit_of_the_score() -> None:
    changed = lambda z: 7 * linear(z) - 30
    run = lambda value, bandwidth: map_of(value, "hsic", grid=(2, 3), designs=64, bandwidth=bandwidth)
    close(run(changed, "distances"), run(linear, "distances"))
    assert not torch.allclose(run(changed, "scores"), run(linear, "scores"), rtol=0.05)


def test_a_score_without_variation_has_no_indices() -> None:
    still = lambda z: z[:, 0, 0] * 0
    for method in ("sobol", "hsic"):
        assert map_of(still, method, grid=(2, 3), designs=16).abs().max() < 1e-12


# --- halves ----------------------------------------------------------------------------------------------------------


def product(z: Tensor) -> Tensor:
    """Of four pixels: together, and one alone."""
    return 1 + z[:, 0, 0] * z[:, 1, 1] * 4 + z[:, 0, 1] - z[:, 1, 0] * z[:, 0, 1] * z[:, 0, 0]


def owen_by_hand(value: Callable[[Tensor], Tensor]) -> Tensor:
    """Of 2 x 2 pixels: the mean over all orders in which the pixels of a row follow each other."""
    total, count = torch.zeros(2, 2).double(), 0
    for rows in ((0, 1), (1, 0)):
        for columns in (((a, 1 - a), (b, 1 - b)) for a in (0, 1) for b in (0, 1)):
            z = torch.zeros(2, 2).double()
            for row, pair in zip(rows, columns, strict=True):
                for column in pair:
                    before = value(z[None])[0]
                    z[row, column] = 1
                    total[row, column] += value(z[None])[0] - before
            count += 1
    return total / count


def test_partition_of_four_pixels_is_their_owen_values() -> None:
    close(map_of(product, "partition", (2, 2)), owen_by_hand(product), 1e-6)


@pytest.mark.parametrize("evaluations", [2, 3, 7, 20, 61])
def test_the_sum_of_partition_holds_however_few_evaluations(evaluations: int) -> None:
    found = map_of(
        lambda z: (z * WEIGHTS).sum((1, 2)).tanh() + z[:, 0, 0] * z[:, 1, 2], "partition", evaluations=evaluations
    )
    expected = WEIGHTS.sum().tanh() + 1
    assert float(found.sum()) == pytest.approx(float(expected), rel=1e-6)
    if evaluations < 4:
        assert (found == found[0, 0]).all()


def test_partition_of_an_additive_score_is_exact_at_the_pixels() -> None:
    close(map_of(linear, "partition"), WEIGHTS, 1e-6)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_partition_refines_where_the_score_depends_and_rows_are_their_own(kind: str) -> None:
    x = images(2)
    network = seeded(SmallResNet(deep_head=True)) if kind == "resnet" else references("vit", x[:1], 0)[0]
    run = lambda x, target, **o: (
        konkyo.explain(network, x, method="partition", target=target, evaluations=40, **o).signed
    )
    together = run(x, konkyo.Each(3, 0))
    expected = (network(x) - network(blurred(x, 2.5))).detach()
    close(together.double().sum((1, 2)), torch.stack([expected[i, k] for i in range(2) for k in (3, 0)]))
    close(together[2], run(x[1:], 3)[0])
    assert run(x, 3, budget=1).abs().max() == 0
    close(run(x, 3, budget=11).double().sum((1, 2)), expected[:, 3])


def test_partition_halves_the_part_of_the_largest_value_first() -> None:
    """Of 64 columns all depends on the last: it is found by halving alone."""
    value = lambda z: z[:, 0, 63]
    found = map_of(value, "partition", (1, 64), evaluations=2 + 2 * (1 + 2 * 32))
    assert found[0, 63] > 0.1
    assert found[0, :32].abs().max() == 0


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sobol", {"designs": 1}, "designs >= 2"),
        ("hsic", {"designs": 1}, "designs >= 2"),
        ("hsic", {"bandwidth": "median"}, "'scores', 'distances'"),
        ("sobol", {"grid": 0}, "count of a grid"),
        ("sobol", {"grid": (2, 2, 2)}, "grid is a whole number"),
        ("partition", {"evaluations": 1}, "evaluations >= 2"),
        ("partition", {"hide": "red"}, "unknown way to hide"),
    ],
)
def test_bad_options_are_told(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(seeded(SmallResNet()), images(1), method=method, target=1, **options)
