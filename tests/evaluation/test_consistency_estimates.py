"""Estimates of consistency and their intervals, against literal transcriptions and populations that are known."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom, t
from torch import Tensor

from konkyo.evaluation.consistency import Consistency, measure
from konkyo.evaluation.consistency.estimates import corrected_distances, interval, resampled
from konkyo.metrics.distances import DISTANCES, Distance, class_means, distances, within_total
from konkyo.utils.tensors import min_max

OF = torch.tensor([0, 2, 0, 2, 2, 0, 0, 2, 2])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(count: int, grid: int = 5) -> Tensor:
    return min_max(torch.rand(count, grid, grid, generator=generator(3), dtype=torch.float64) ** 2)


def blobs(of: Tensor, source: torch.Generator, grid: int = 5) -> Tensor:
    """Returns a spot for every map, near a place of its class."""
    steps = (torch.arange(grid) + 0.5) / grid
    places = torch.tensor([[0.3, 0.3], [0.7, 0.4], [0.4, 0.7]])[of] + 0.15 * torch.randn(len(of), 2, generator=source)
    y, x = (torch.exp(-((steps - places[:, i, None]) ** 2) / 0.05) for i in (0, 1))
    return min_max(y[:, :, None] * x[:, None]).double()


# --- the correction ---------------------------------------------------------------------------------------------------


def test_corrected_squares_are_the_variance_and_roots_its_root() -> None:
    maps = some(9)
    mean = class_means(maps, OF, 3)[0][OF]
    counts = torch.tensor([4.0, 0, 5])[OF].double()
    for kind, power in (("mse", 1.0), ("l2_over_hw", 0.5)):
        plain = distances(maps, mean, kind)  # type: ignore[arg-type]
        expected = plain * (counts / (counts - 1)) ** power
        torch.testing.assert_close(corrected_distances(maps, OF, 3, kind), expected)  # type: ignore[arg-type]
    within = corrected_distances(maps, OF, 3, "mse")[OF == 2].mean()
    assert float(within) == pytest.approx(float(maps[OF == 2].var(0).mean()))


@pytest.mark.parametrize("kind", DISTANCES)
def test_corrected_distances_by_hand(kind: Distance) -> None:
    maps = some(9)
    expected = []
    for i, own in enumerate(OF.tolist()):
        others = [maps[j] for j in range(9) if OF[j] == own and j != i]
        w = math.sqrt((len(others) + 1) * len(others)) - len(others)
        mean = (sum(others) + w * maps[i]) / (len(others) + w)
        expected.append(float(distances(maps[i : i + 1], mean, kind)))
    assert corrected_distances(maps, OF, 3, kind).tolist() == pytest.approx(expected)


def test_over_all_samples_the_corrected_value_is_that_of_the_population() -> None:
    """Every sample of three maps that a population of four can give, all of them equally likely."""
    population = some(4)
    true = float(distances(population, population.mean(0)).mean())
    found = []
    for chosen in itertools.product(range(4), repeat=3):
        maps, one = population[list(chosen)], torch.zeros(3, dtype=torch.int64)
        plain = distances(maps, maps.mean(0)).mean()
        found.append([float(plain), float(corrected_distances(maps, one, 1, "mse").mean())])
    means = torch.tensor(found).double().mean(0).tolist()
    assert means == pytest.approx([true * 2 / 3, true], rel=1e-6)


# --- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISTANCES)
def test_resampling_equals_its_transcription(kind: Distance) -> None:
    maps, times = some(9), 4
    maps[0, 2] = 0
    found = resampled(maps, OF, 3, kind, times, generator(7))
    source = generator(7)
    weights = {}
    for c in (0, 2):
        drawn = torch.empty(times, int((c == OF).sum()), dtype=torch.float64).exponential_(generator=source)
        weights[c] = drawn / drawn.sum(1, keepdim=True)
    for r in range(times):
        values, mean_of_all = [], torch.zeros(5, 5).double()
        within = corrected = everything = 0.0
        for c in (0, 2):
            own, w = maps[c == OF], weights[c][r].tolist()
            mean = sum(a * m for a, m in zip(w, own, strict=True))
            of_class = sum(a * float(distances(m[None], mean, kind)) for a, m in zip(w, own, strict=True))
            assert float(found.of_class[r, c]) == pytest.approx(of_class, rel=1e-9)
            values.append(len(own) * of_class)
            spread = sum(a * float(((m - mean) ** 2).mean()) for a, m in zip(w, own, strict=True))
            within += (len(own) - 1) * spread
            corrected += (len(own) - 1) * spread / (1 - sum(a * a for a in w))
            mean_of_all += len(own) / 9 * mean
        for c in (0, 2):
            own, w = maps[c == OF], weights[c][r].tolist()
            squares = [((m - mean_of_all) ** 2).mean() for m in own]
            everything += len(own) * sum(a * float(s) for a, s in zip(w, squares, strict=True))
        assert float(found.value[r]) == pytest.approx(sum(values) / 9, rel=1e-9)
        assert float(found.within[r]) == pytest.approx(within / 7, rel=1e-9)
        assert float(found.ratio[r]) == pytest.approx((corrected / 7) / (everything / 8), rel=1e-9)
    assert found.of_class[:, 1].isnan().all()


def test_the_interval_by_hand_and_where_there_is_none() -> None:
    drawn = torch.tensor([0.1, 0.12, 0.09, 0.2]).double()
    parts = torch.tensor([[0.02, 0.08], [0.05, 0.07], [0.01, 0.08], [0.11, 0.09]]).double()
    images = (4, 9)
    grown = [float(parts[:, i].var()) * (n + 1) / (n - 1) for i, n in enumerate(images)]
    square = sum(grown) / float(parts.var(0).sum())
    freedom = sum(grown) ** 2 / sum(v**2 / (n - 1) for v, n in zip(grown, images, strict=True))
    reach = t.ppf(0.975, freedom) * float(drawn.log().std()) * math.sqrt(square)
    ends = (0.11 * math.exp(-reach), 0.11 * math.exp(reach))
    assert interval(0.11, drawn, parts, torch.tensor(images)) == pytest.approx(ends)
    # A class without maps, and one whose single map varies by nothing, change nothing.
    more = torch.cat([parts, torch.full((4, 1), math.nan), torch.zeros(4, 1)], 1)
    assert interval(0.11, drawn, more, torch.tensor([4, 9, 0, 1])) == pytest.approx(ends)
    for value, counts in ((0.0, images), (math.nan, images), (0.1, (1, 1))):
        assert all(math.isnan(end) for end in interval(value, drawn, parts, torch.tensor(counts)))
    for broken in (drawn * math.nan, drawn):
        assert all(math.isnan(end) for end in interval(0.1, broken, parts * math.nan, torch.tensor(images)))


def test_of_classes_alike_the_interval_counts_all_images() -> None:
    """K classes of n images that vary alike: c = sqrt((N + K) / (N - K)), t of N - K degrees of freedom."""
    parts = torch.randn(50, 1, generator=generator(3)).double().expand(-1, 3)
    drawn = (1 + 0.1 * parts).prod(1)
    reach = t.ppf(0.975, 15 - 3) * float(drawn.log().std()) * math.sqrt(18 / 12)
    found = interval(2.0, drawn, parts, torch.tensor([5, 5, 5]))
    assert found == pytest.approx((2 * math.exp(-reach), 2 * math.exp(reach)))


def test_intervals_of_unequal_classes_hold_the_population() -> None:
    """8 maps of a class that varies much, 80 of one that does not: the few decide how well L is known."""
    trials, source = 80, generator(12)
    spread = torch.tensor([0.3, 0.03])

    def drawn_maps(of: Tensor) -> Tensor:
        places = torch.rand(len(of), 1, 1, generator=source) * spread[of][:, None, None]
        return (torch.linspace(0, 1, 16).view(1, 4, 4) * (1 - places) + places).double()

    everything = torch.arange(2).repeat_interleave(2000)
    population = drawn_maps(everything)
    squares = (population - class_means(population, everything, 2)[0][everything]).square().mean((1, 2))
    of = torch.cat([torch.zeros(8), torch.ones(80)]).long()
    true = float((squares[:2000].mean() * 8 + squares[2000:].mean() * 80) / 88)
    hits = pooled = 0
    for _ in range(trials):
        maps = population[torch.randint(2000, (88,), generator=source) + 2000 * of]
        found = resampled(maps, of, 2, "mse", 100, source)
        value, counts = float(corrected_distances(maps, of, 2, "mse").mean()), torch.tensor([8, 80])
        low, high = interval(value, found.value, found.of_class * counts, counts)
        hits += low <= true <= high
        narrow = math.exp(t.ppf(0.975, 86) * float(found.value.log().std()) * math.sqrt(90 / 86))
        pooled += value / narrow <= true <= value * narrow
    assert hits >= int(binom.ppf(0.001, trials, 0.93))
    assert pooled < hits  # as if all 88 were of one class


@pytest.mark.parametrize(("kind", "count"), [("mse", 5), ("mse", 12), ("pearson", 5), ("js", 5), ("top_iou", 5)])
def test_intervals_hold_the_population(kind: Distance, count: int) -> None:
    """Samples of a population of 300 maps a class: 95 % intervals hold its L, W and W / T as often as chance allows.

    Intervals of the fixed mean map, which this library had, are counted too: they must be seen to fail.
    """
    trials, source = 60, generator(11)
    everything = torch.arange(3).repeat_interleave(300)
    population = blobs(everything, source)
    means, _, _ = class_means(population, everything, 3)
    true = float(distances(population, means[everything], kind).mean())
    within = float((population - means[everything]).square().mean())
    ratio = within / float((population - population.mean(0)).square().mean())
    of = torch.arange(3).repeat_interleave(count)
    hits = {"L": 0, "W": 0, "W / T": 0, "fixed": 0}
    for _ in range(trials):
        maps = population[torch.randint(300, (len(of),), generator=source) + 300 * of]
        drawn = resampled(maps, of, 3, kind, 100, source)
        value, (w, all_) = float(corrected_distances(maps, of, 3, kind).mean()), within_total(maps, of)
        counts = torch.bincount(of)
        pairs: dict[str, tuple[float, float, Tensor, Tensor]] = {
            "L": (true, value, drawn.value, drawn.of_class * counts),
            "W": (within, float(w), drawn.within, drawn.of_within),
            "W / T": (ratio, float(w / all_), drawn.ratio, drawn.of_within),
        }
        for name, (known, estimate, samples, parts) in pairs.items():
            low, high = interval(estimate, samples, parts, counts)
            hits[name] += low <= known <= high
        plain = distances(maps, class_means(maps, of, 3)[0][of], kind)
        reach = 1.96 * float(plain.std()) / math.sqrt(len(of))
        hits["fixed"] += abs(float(plain.mean()) - true) <= reach
    least = int(binom.ppf(0.001, trials, 0.93))
    assert all(hits[name] >= least for name in ("L", "W", "W / T")), hits
    if (kind, count) in (("mse", 5), ("pearson", 5)):
        assert hits["fixed"] < least, hits


# --- in the result ----------------------------------------------------------------------------------------------------


def result(count: int = 24, **how: Any) -> Consistency:
    labels = torch.arange(count) % 3
    maps = blobs(labels, generator(5), 8).float()
    return measure(maps, labels, labels, classes="abc", grid=8, permutations=0, **how)


def test_the_result_has_intervals_of_all_three() -> None:
    found = result(resamples=300)
    assert found.low < found.value < found.high
    assert found.within_low < found.within < found.within_high
    assert found.ratio_low < found.ratio < found.ratio_high
    assert found.plain == pytest.approx(found.value * 7 / 8)
    assert (found.value, found.low, found.high) == pytest.approx((found.within, found.within_low, found.within_high))
    assert all(c.low < c.value < c.high and c.plain < c.value for c in found.of_class)
    summary = dict(found.summary()[1])
    assert all("[" in summary[name] for name in ("W", "W / T", "L (mse)"))
    assert "[" not in summary["L as defined (Eq. 10)"]
    assert f"W / T {summary['W / T']}" in repr(found)
    assert any("Fewer than 10 maps: a (8), b (8), c (8)" in line for line in found.remarks())
    assert not any("Fewer than" in line for line in result(60, resamples=0).remarks())
    assert math.isnan(result(resamples=0).ratio_low)


def test_one_class_has_no_interval_of_the_ratio() -> None:
    labels = torch.zeros(8, dtype=torch.int64)
    found = measure(blobs(labels, generator(5), 8), labels, labels, classes=["a", "b"], grid=8, resamples=50)
    assert math.isnan(found.ratio_low)
    assert found.within_low < found.within < found.within_high


def test_a_folder_of_before_is_read(tmp_path: Path) -> None:
    """It had L of Eq. 10 as value, with an interval around it."""
    found = result(resamples=50)
    found.save(tmp_path)
    values = json.loads((tmp_path / "consistency.json").read_text())
    for name in ("within_low", "within_high", "ratio_low", "ratio_high"):
        del values[name]
    values["value"] = values.pop("plain")
    for c in values["of_class"]:
        c["value"] = c.pop("plain")
    (tmp_path / "consistency.json").write_text(json.dumps(values))
    again = Consistency.load(tmp_path)
    assert (again.value, again.plain) == (pytest.approx(found.value), found.plain)
    assert [c.plain for c in again.of_class] == [c.plain for c in found.of_class]
    assert [c.value for c in again.of_class] == pytest.approx([c.value for c in found.of_class])
    assert all(math.isnan(end) for end in (again.low, again.high, again.within_low, again.ratio_high))
    assert again.within == found.within
