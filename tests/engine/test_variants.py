"""Rows of one image share variants while they are the same; a row whose variants turn out to be others runs its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.networks import SmallResNet, images, seeded
from konkyo.engine import variants
from konkyo.engine.capture import measured_outputs
from konkyo.engine.forward import distinct_views
from konkyo.errors import KonkyoError

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")

TARGETS = (1, 3, 1, 4)


def rescored_within(ablate: Any, inputs: Tensor, rescore: Any) -> Tensor:
    """Variants whose builder asks what depends on the target."""
    weights = ablate_shares(ablate)
    scores = rescore(5, inputs=lambda row, k: weights(row, k)[:, None, None, None] * inputs[row])
    return scores[:, :, None] * inputs[:, 0, :5]


def rescored_late(ablate: Any, inputs: Tensor, rescore: Any) -> Tensor:
    """Variants whose builder asks that from the third one on."""
    weights = ablate_shares(ablate, first=2)
    scores = rescore(5, inputs=lambda row, k: weights(row, k)[:, None, None, None] * inputs[row])
    return scores[:, :, None] * inputs[:, 0, :5]


def rescored_activations(ablate: Any, activations: Tensor, rescore: Any) -> Tensor:
    weights = ablate_shares(ablate)
    scores = rescore(4, activations=lambda row, k: weights(row, k)[:, None, None, None] * activations[row])
    return scores[:, :, None] * activations[:, 0, :4]


def regraded_within(ablate: Any, inputs: Tensor, regrad: Any) -> Tensor:
    weights, sizes = ablate_shares(ablate, first=1), torch.arange(1.0, 6.0)
    return regrad(sizes, inputs=lambda row, k: weights(row, k)[:, None, None, None] * inputs[row])


def revisited_with_what_came_before(inputs: Tensor, activations: Tensor, revisit: Any) -> Tensor:
    """Variants that are made of the gradients at those before."""
    sums, strengths = torch.zeros_like(activations), torch.ones(len(inputs)).to(inputs)

    def stronger(row: int, k: Tensor) -> Tensor:
        return strengths[row] * (1 + 0.1 * k.to(inputs).view(-1, 1, 1, 1)) * inputs[row]

    for row, k, grids, gradients in revisit(5, inputs=stronger):
        sums[row] += (grids * gradients * (1 + k.to(grids).view(-1, 1, 1, 1))).sum(0)
        strengths[row] = 0.5 + sums[row].mean().abs().clamp(max=1)
    return sums


def ablate_shares(ablate: Any, first: int = 0) -> Callable[[int, Tensor], Tensor]:
    """Numbers in (0, 1) for variants of a row: of the target from variant `first` on, of none before."""

    def shares(row: int, k: Tensor) -> Tensor:
        plain = 0.9 - 0.1 * k.to(torch.float64)
        if int(k.max()) < first:
            return plain
        of_target = 0.5 + 0.4 * (20 * ablate()[row, k]).sin()
        return torch.where(k < first, plain, of_target)

    return shares


def differentiated(inputs: Tensor, differentiate: Any, rescore: Any) -> Tensor:
    """Variants that are made while the explained score is in hand."""
    scores: list[Tensor] = []

    def other(_output: Tensor, score: Tensor) -> Tensor:
        share = 0.5 + 0.4 * torch.sin(20 * score.detach())
        scores.append(rescore(1, inputs=lambda row, _: share[row] * inputs[row][None]))
        return score

    differentiate(other)
    return scores[0][:, :, None] * inputs[:, 0]


FUNCTIONS: dict[Callable[..., Tensor], tuple[str, ...]] = {
    differentiated: ("inputs", "differentiate", "rescore"),
    rescored_within: ("ablate", "inputs", "rescore"),
    rescored_late: ("ablate", "inputs", "rescore"),
    rescored_activations: ("ablate", "activations", "rescore"),
    regraded_within: ("ablate", "inputs", "regrad"),
    revisited_with_what_came_before: ("inputs", "activations", "revisit"),
}


def method_of(function: Callable[..., Tensor]) -> konkyo.Method:
    return konkyo.Method(function.__name__, function, False, None, "logit", FUNCTIONS[function], {})


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("chunk_bytes", [1, variants.CPU_CHUNK_BYTES], ids=["one_by_one", "in_one_chunk"])
def test_targets_together_are_explained_as_if_alone(
    function: Callable[..., Tensor], chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "CPU_CHUNK_BYTES", chunk_bytes)
    network, x, method = seeded(SmallResNet()), images(2), method_of(function)
    together = konkyo.explain(network, x, method=method, target=konkyo.Each(*TARGETS)).signed
    for at, target in enumerate(TARGETS):
        alone = konkyo.explain(network, x, method=method, target=target).signed
        torch.testing.assert_close(together[at :: len(TARGETS)], alone, rtol=1e-6, atol=1e-9)


def forwards(network: nn.Module, run: Callable[[], object]) -> int:
    batches: list[int] = []
    handle = network.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    run()
    handle.remove()
    return sum(batches)


@pytest.mark.parametrize("name", ["smooth_grad", "integrated_grad_cam", "rise"])
def test_variants_that_are_the_same_for_all_targets_run_once(name: str) -> None:
    network, x = seeded(SmallResNet()), images(1)
    small = {"rise": {"masks": 6}, "smooth_grad": {"samples": 6}, "integrated_grad_cam": {"steps": 6}}[name]

    def cost(*targets: int) -> int:
        explain: Any = konkyo.explain
        return forwards(network, lambda: explain(network, x, method=name, target=konkyo.Each(*targets), **small))

    cost(1)  # the first call traces the network
    assert cost(1) == cost(1, 2, 3)


@pytest.mark.parametrize("budget", [None, 4])
def test_progress_counts_the_variants_of_rows_that_no_longer_share_them(budget: int | None) -> None:
    network, x, calls = seeded(SmallResNet(deep_head=True)), images(1), list[tuple[int, int]]()

    def late(inputs: Tensor, score: Tensor, rescore: Any) -> Tensor:
        """Shares the first two variants."""
        scores = rescore(6, inputs=lambda row, k: inputs[row] * (1 + score[row] * (k > 1).view(-1, 1, 1, 1)))
        return scores[:, :, None] * inputs[:, 0, :6]

    method = konkyo.Method("late", late, False, None, "logit", ("inputs", "score", "rescore"), {})
    targets = konkyo.Each(1, 3)
    konkyo.explain(
        network, x, method=method, target=targets, budget=budget, progress=lambda *counts: calls.append(counts)
    )
    count = budget or 6
    assert calls[0] == (1, count)
    assert calls[-1] == (2 * count - 1, 2 * count - 1)  # the first variant ran for both
    assert calls == sorted(calls)


def test_views_that_repeat_for_rows_of_one_image_are_left_out() -> None:
    views = torch.arange(6.0).view(6, 1)[[0, 0, 1, 2, 2, 3]]
    distinct, rows = distinct_views((0, 0, 1), views)
    assert distinct.flatten().tolist() == [0, 1, 2, 3]
    assert rows == (0, 0, 1, 2, 2, 3)
    distinct, rows = distinct_views((0, 0, 1), torch.arange(6.0).view(6, 1))
    assert len(distinct) == 6
    assert rows == tuple(range(6))
    with pytest.raises(KonkyoError, match="multiple of 3"):
        distinct_views((0, 0, 1), views[:4])


def test_the_outputs_of_a_forward_are_measured_in_bytes() -> None:
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images(2)
    network.append(nn.Linear(4, 3)).double()
    convolved, pooled, logits = (8 * 2 * numbers for numbers in (4 * 30 * 38, 4, 3))  # of two images of 32 x 40
    for outside, total in ((), 2 * convolved), ((network[1],), convolved):
        with measured_outputs(network, frozenset(outside)) as outputs:
            network(x)
        network(x)  # the hooks are gone
        assert (outputs.largest, outputs.total) == (convolved, total + 2 * pooled + logits)
