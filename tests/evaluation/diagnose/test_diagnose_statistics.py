"""The tests behind findings, against literal transcriptions and against their own error rates."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from konkyo.evaluation.diagnose.confusion import significant
from konkyo.evaluation.diagnose.head import severity_of
from konkyo.evaluation.diagnose.probe import ridge_probe
from konkyo.evaluation.diagnose.statistics import (
    Swaps,
    agreement,
    auroc,
    matching,
    mcnemar,
    mcnemar_of,
    mid_ranks,
    nearest,
    rank_mean,
    standardised,
    swaps,
    vote,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (7, 2), (12, 12), (9, 0)])
def test_mcnemar_adds_up_the_binomial(first: int, second: int) -> None:
    total = first + second
    expected = sum(math.comb(total, k) for k in range(first, total + 1)) / 2**total
    assert mcnemar_of(first, second, 40).p == pytest.approx(expected, rel=1e-12)


def test_mcnemar_counts_images_that_one_alone_gets_right() -> None:
    first = torch.tensor([True, True, True, False, False])
    second = torch.tensor([True, False, False, True, False])
    test = mcnemar(first, second)
    assert (test.first_only, test.second_only, test.n) == (2, 1, 5)
    assert test.difference == pytest.approx(0.2)
    assert test.low < 0.2 < test.high


def test_the_smallest_difference_is_found_and_one_image_less_is_not() -> None:
    test = mcnemar_of(3, 2, 60)
    smallest = test.smallest(0.01, 0.05)
    wins = round(smallest * 60) + 2
    found, below = mcnemar_of(wins, 2, 60), mcnemar_of(wins - 1, 2, 60)
    assert found.p <= 0.01
    assert found.low > 0.05
    assert below.p > 0.01 or below.low <= 0.05
    assert math.isnan(mcnemar_of(0, 0, 3).smallest(0.01, 0.05))


def test_auroc_counts_pairs() -> None:
    scores = torch.randint(6, (40,), generator=seeded()).float()  # with ties
    positive = torch.rand(40, generator=seeded(1)) < 0.3
    pairs = list(itertools.product(scores[positive].tolist(), scores[~positive].tolist()))
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auroc(scores, positive) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(auroc(scores, torch.ones(40, dtype=torch.bool)))


def test_ranks_share_their_mean() -> None:
    assert mid_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert rank_mean([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])]).tolist() == [0.5] * 3


def test_nearest_by_cosine() -> None:
    queries, known = torch.randn(4, 5, generator=seeded()), torch.randn(9, 5, generator=seeded(1))
    indices, cosines = nearest(queries, known, 3)
    for q in range(4):
        values = [float(queries[q] @ k / queries[q].norm() / k.norm()) for k in known]
        order = sorted(range(9), key=lambda i: -values[i])[:3]
        assert indices[q].tolist() == order
        assert cosines[q].tolist() == pytest.approx([values[i] for i in order], abs=1e-5)


def test_votes_count_and_the_nearest_decides_ties() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    neighbours = torch.tensor([[3, 1, 2], [0, 1, 3], [1, 0, 3]])
    assert vote(neighbours, labels, 3).tolist() == [1, 0, 1]


def test_standardised_features_have_no_mean_and_unit_deviation() -> None:
    known = torch.randn(50, 3, generator=seeded()) * torch.tensor([1.0, 5.0, 0.0]) + 2
    made = standardised(known, known)
    assert made.mean(0).abs().max() < 1e-12
    assert made[:, :2].std(0, correction=0).tolist() == pytest.approx([1, 1])
    assert made[:, 2].abs().max() == 0


def test_the_probe_is_the_ridge_regression_of_the_normal_equations() -> None:
    generator = seeded()
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 6, generator=generator)
    train = centres[labels] + 0.7 * torch.randn(60, 6, generator=generator)
    queries = centres[labels] + 0.7 * torch.randn(60, 6, generator=generator)
    probe = ridge_probe(train, labels, queries, 3, generator=seeded(3))
    x, q = standardised(train, train), standardised(queries, train)
    y = 2 * torch.nn.functional.one_hot(labels, 3).double() - 1
    inverse = torch.linalg.inv(x.mT @ x + probe.strength * 60 * torch.eye(6, dtype=torch.float64))
    expected = (q @ (inverse @ x.mT @ (y - y.mean(0))) + y.mean(0)).argmax(1)
    assert torch.equal(probe.decisions, expected)
    assert float((probe.decisions == labels).float().mean()) > 0.7


def test_agreement_is_the_mean_of_own_correlations_minus_others() -> None:
    maps = torch.rand(12, 4, 4, generator=seeded())
    others = maps + 0.3 * torch.rand(12, 4, 4, generator=seeded(1))
    result = agreement(maps, others, resamples=200, alpha=0.05, generator=seeded(2))
    assert result is not None
    table = torch.corrcoef(torch.cat([maps.flatten(1), others.flatten(1)]))[:12, 12:]
    own = table.diagonal().mean()
    other = (table.sum() - table.diagonal().sum()) / (12 * 11)
    assert result.own == pytest.approx(float(own), abs=1e-5)
    assert result.other == pytest.approx(float(other), abs=1e-5)
    assert result.p == pytest.approx(1 / 201)
    unrelated = agreement(maps, others.flip(0), resamples=200, alpha=0.05, generator=seeded(2))
    assert unrelated is not None
    assert unrelated.p > 0.05
    assert agreement(maps[:5], others[:5], resamples=9, alpha=0.05, generator=seeded()) is None


def test_exchanged_labels_are_uniform_over_all_that_differ_from_the_decisions() -> None:
    """Quasi-independence: every arrangement of the labels that is no decision anywhere is equally probable."""
    labels, decisions = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([1, 2, 0, 0, 1])
    allowed = {
        order
        for order in itertools.permutations(labels.tolist())
        if all(a != b for a, b in zip(order, decisions.tolist(), strict=True))
    }
    expected = Counter[tuple[int, int]]()
    for order in allowed:
        expected.update((min(a, b), max(a, b)) for a, b in zip(order, decisions.tolist(), strict=True))
    test = swaps(labels, decisions, 4, resamples=4000, alpha=0.05, generator=seeded())
    for (i, j), count in expected.items():
        assert float(test.expected[i, j]) == pytest.approx(count / len(allowed), abs=0.05)


def test_a_planted_confusion_is_found() -> None:
    generator = seeded()
    labels = torch.randint(6, (120,), generator=generator)
    decisions = (labels + torch.randint(1, 6, (120,), generator=generator)) % 6
    decisions[labels == 0] = 1
    test = swaps(labels, decisions, 6, resamples=400, alpha=0.01, generator=generator)
    assert significant(test, 0.01)[0] == (0, 1)


def test_permuted_labels_seldom_give_a_confusion() -> None:
    """At alpha 0.05 the rate over 100 runs is to lie in 2 to 9 %."""
    found = 0
    for run in range(100):
        generator = seeded(run)
        decisions = torch.randint(5, (50,), generator=generator)
        labels = decisions[torch.randperm(50, generator=generator)]
        wrong = labels != decisions
        test = swaps(labels[wrong], decisions[wrong], 5, resamples=99, alpha=0.05, generator=generator)
        found += bool((test.p <= 0.05).any())
    assert 0.02 <= found / 100 <= 0.09


def test_permuted_labels_seldom_give_a_better_probe() -> None:
    """Features and decisions that have nothing to do with the labels: McNemar at 0.05 is exceeded in at most 9 %."""
    found, high = 0, 0
    for run in range(200):
        generator = seeded(run)
        train, queries = torch.randn(40, 4, generator=generator), torch.randn(60, 4, generator=generator)
        labels = torch.randint(3, (100,), generator=generator)  # a permutation would couple held-out and training ones
        head = torch.randint(3, (60,), generator=generator)
        probe = ridge_probe(train, labels[:40], queries, 3, generator=generator)
        test = mcnemar(probe.decisions == labels[40:], head == labels[40:])
        found += test.p <= 0.05
        high += severity_of(test, 0.05) in ("medium", "high")
    assert 0.02 <= found / 200 <= 0.09
    assert high <= found


def test_a_difference_that_few_images_cannot_show_is_unknown_not_ok() -> None:
    assert severity_of(mcnemar_of(8, 2, 32), 0.01) == "unknown"
    assert severity_of(mcnemar_of(8, 8, 300), 0.01) == "ok"
    assert severity_of(mcnemar_of(90, 5, 150), 0.01) == "high"


@pytest.mark.parametrize(
    ("wins", "severity"), [(12, "ok"), (26, "unknown"), (30, "medium"), (40, "medium"), (54, "high")]
)
def test_the_severity_of_a_head_goes_by_the_lower_bound_of_its_loss(wins: int, severity: str) -> None:
    test = mcnemar_of(wins, 6, 200)
    assert severity_of(test, 0.01) == severity
    assert (test.low > 0.05, test.low > 0.15) == (severity in ("medium", "high"), severity == "high")


def test_among_equally_frequent_labels_that_of_the_nearest_neighbour_wins() -> None:
    labels = torch.tensor([2, 1, 1, 2, 0])
    assert vote(torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2], [4, 0, 3, 1]]), labels, 3).tolist() == [2, 1, 2]


def test_the_diagonal_of_a_table_against_all_permutations_written_out() -> None:
    table = torch.rand(6, 6, generator=seeded(4)) + 0.3 * torch.eye(6)
    result = matching(table, resamples=5000, alpha=0.05, generator=seeded(1))
    means = [sum(float(table[i, j]) for i, j in enumerate(order)) / 6 for order in itertools.permutations(range(6))]
    exact = sum(mean >= result.own - 1e-9 for mean in means) / len(means)
    assert result.p == pytest.approx(exact, abs=0.01)
    others = [float(table[i, j]) for i in range(6) for j in range(6) if i != j]
    assert result.other == pytest.approx(sum(others) / len(others))


@pytest.mark.parametrize(("first", "second", "n"), [(7, 2, 40), (0, 3, 10), (20, 0, 25)])
def test_the_interval_of_a_difference_is_walds_with_half_an_image_more_in_every_cell(
    first: int, second: int, n: int
) -> None:
    """Agresti and Min (2005): the scores 1, -1 and 0 of the images, with 2 more spread over the four cells."""
    scores = [(1.0, first + 0.5), (-1.0, second + 0.5), (0.0, n - first - second + 1.0)]
    total = sum(weight for _, weight in scores)
    mean = sum(score * weight for score, weight in scores) / total
    deviation = math.sqrt(sum((score - mean) ** 2 * weight for score, weight in scores) / total)
    test = mcnemar_of(first, second, n)
    assert test.low == pytest.approx(max(-1, mean - 1.959964 * deviation / math.sqrt(total)), abs=1e-6)
    assert test.high == pytest.approx(min(1, mean + 1.959964 * deviation / math.sqrt(total)), abs=1e-6)


def test_a_pair_that_occurs_twice_is_no_confusion_however_improbable() -> None:
    counts = torch.tensor([[0.0, 2, 3], [2, 0, 3], [3, 3, 0]])
    p = torch.tensor([[1.0, 0.001, 0.001], [0.001, 1, 0.2], [0.001, 0.2, 1]]).double()
    assert significant(Swaps(counts, counts / 2, p, 3.0), 0.01) == [(0, 2)]
