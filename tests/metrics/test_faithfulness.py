"""Metrics of faithfulness against closed forms and against transcriptions of their protocols, pixel by pixel."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.metric_inputs import PIXELS, explain, images_of, linear, maps_of, network
from konkyo.errors import KonkyoError
from konkyo.metrics.base import METRICS
from konkyo.metrics.faithfulness import (
    adcc,
    average_drop,
    average_gain,
    coherency,
    deletion,
    increase_in_confidence,
    insertion,
    road,
)
from konkyo.metrics.imputation import impute
from konkyo.metrics.variants import filler, ranks

# --- deletion and insertion -------------------------------------------------------------------------------------------


def test_deletion_of_a_linear_scorer_in_closed_form() -> None:
    """Contributions p - 1, ..., 1, 0 deleted one at a time leave a parabola; its mean is known."""
    p = 5 * 8
    values = torch.arange(p, dtype=torch.float64).view(1, 1, 5, 8)
    score = linear(torch.ones_like(values))
    total = p * (p - 1) / 2
    curve = deletion.statistic(values[:, 0], images=values, score=score, steps=p)
    left = [sum(range(p - t)) for t in range(p + 1)]
    assert curve[0].tolist() == pytest.approx(left)
    area = sum(p_ * (p_ - 1) / 2 for p_ in range(1, p + 1)) / p - 0.0 - total / 2 / p
    assert deletion(values[:, 0], images=values, score=score, steps=p).item() == pytest.approx(area, rel=1e-6)
    assert area == pytest.approx((p**3 - p) / 6 / p - total / 2 / p)
    inverted = insertion(values[:, 0], images=values, score=score, steps=p, substrate="zero")
    assert inverted.item() == pytest.approx(total - area, rel=1e-6)  # what comes in is what does not stay


def test_an_even_scorer_and_steps_that_do_not_divide() -> None:
    images = torch.ones(1, 1, 5, 7)
    score = linear(torch.ones_like(images))
    curve = deletion.statistic(maps_of(1, (5, 7)), images=images, score=score, steps=4)
    assert curve[0].tolist() == [35, 35 - 9, 35 - 18, 35 - 26, 0]  # 8.75, 17.5, 26.25 pixels
    some = deletion.statistic(maps_of(1, (5, 7)), images=images, score=score, steps=4, budget=torch.tensor([10]))
    assert some[0].tolist() == [35, 32, 30, 27, 25]
    most = deletion.statistic(maps_of(1, (5, 7)), images=images, score=score, steps=4, budget=torch.tensor([99]))
    assert torch.equal(most, curve)
    part = deletion.statistic(maps_of(1, (5, 7)), images=images, score=score, steps=4, every=2, normalise=True)
    assert part[0].tolist() == pytest.approx([1, 17 / 35, 0])


@pytest.mark.parametrize("protocol", ["rise", "odam", "seed"])
def test_a_perfect_and_an_inverted_map_bracket_all_others(protocol: str) -> None:
    images = images_of(2).abs() + 3
    weights = torch.rand(2, 1, 6, 9, generator=torch.Generator().manual_seed(0)).expand(2, 3, 6, 9)
    given = {"images": images, "score": linear(weights), "pixels": PIXELS * 0, "protocol": protocol, "steps": 10}
    perfect = (images * weights).sum(1)
    for name, sign in (("deletion", 1), ("insertion", -1)):
        values = [METRICS[name](m, **given, substrate="zero") for m in (perfect, maps_of(2), -perfect)]
        assert ((values[0] * sign < values[1] * sign) & (values[1] * sign < values[2] * sign)).all()


def literal(
    image: Tensor, order: list[int], area: int, noise: Tensor, score: Any, row: int, *, delete: bool, every: int
) -> list[float]:
    """The released evaluation of ODAM for one object, with loops: D(1..100), noise or black, every tenth step."""
    height, width = image.shape[1:]
    step = max(1, int(area / 100))
    current = image.clone() if delete else noise.expand_as(image).clone()
    curve = [float(score(current[None], torch.tensor([row])))]
    place = 0
    for t in range(1, 101):
        for _ in range(step):
            if place < height * width:
                y, x = divmod(order[place], width)
                current[:, y, x] = noise.expand_as(image)[:, y, x] if delete else image[:, y, x]
                place += 1
        if t % every == 0:
            curve.append(float(score(current[None], torch.tensor([row]))))
    return curve


@pytest.mark.parametrize("protocol", ["odam", "seed"])
@pytest.mark.parametrize("areas", [(40, 150, 260), (330, 1000, 99)])
def test_odam_s_protocol_against_its_loops(protocol: str, areas: tuple[int, int, int]) -> None:
    size = (16, 20)
    images, maps = images_of(3, 3, size), maps_of(3, size)  # no two values are equal
    noise = filler("noise", images, PIXELS, 0)(torch.tensor([0]))[0]
    black = PIXELS[0].view(3, 1, 1)
    given: dict[str, Any] = {"images": images, "score": network, "pixels": PIXELS, "protocol": protocol}
    given["budget"] = torch.tensor(areas)
    removed = deletion.statistic(maps, **given, batch=7)
    added = insertion.statistic(maps, **given, batch=7)
    every = 10 if protocol == "odam" else 1
    assert removed.shape == added.shape == (3, 1 + 100 // every)
    for row, area in enumerate(areas):
        order = sorted(range(320), key=lambda i: -float(maps[row].flatten()[i]))
        curve = literal(images[row], order, area, noise, network, row, delete=True, every=every)
        assert removed[row].tolist() == pytest.approx([v / curve[0] for v in curve], rel=1e-5)
        curve = literal(images[row], order, area, black, network, row, delete=False, every=every)
        assert added[row].tolist() == pytest.approx(([0.0] if every == 10 else curve[:1]) + curve[1:], abs=1e-5)
    area_under = [float(sum((a + b) / 2 for a, b in pairwise(c)) / (len(c) - 1)) for c in removed]
    assert deletion(maps, **given).tolist() == pytest.approx(area_under, rel=1e-5)


def test_insertion_over_the_image_s_own_score() -> None:
    images, maps = images_of(), maps_of()
    given = {"images": images, "score": network, "budget": torch.tensor([20, 20, 20])}
    plain = insertion.statistic(maps, **given)
    assert torch.equal(insertion.statistic(maps, **given, normalise=False), plain)
    own = network(images, torch.arange(3))
    torch.testing.assert_close(insertion.statistic(maps, **given, normalise=True), plain / own[:, None])
    left = deletion.statistic(maps, images=images, score=network, pixels=PIXELS, protocol="seed", normalise=False)
    torch.testing.assert_close(left[:, 0], own)


def test_rise_s_blur_is_theirs() -> None:
    scipy = pytest.importorskip("scipy.ndimage")
    point = torch.zeros(11, 11, dtype=torch.float64).numpy()
    point[5, 5] = 1
    kernel = torch.from_numpy(scipy.gaussian_filter(point, 5))
    images = images_of(2, 3, (14, 17)).double()
    expected = torch.nn.functional.conv2d(images.reshape(-1, 1, 14, 17), kernel[None, None], padding=5)
    found = filler("blur", images, None, 0)(torch.tensor([0, 1]))
    torch.testing.assert_close(found, expected.view(images.shape), rtol=1e-6, atol=1e-7)
    curve = insertion.statistic(maps_of(2, (14, 17)), images=images, score=network, steps=3)
    torch.testing.assert_close(curve[:, 0], network(found, torch.arange(2)))
    torch.testing.assert_close(curve[:, -1], network(images, torch.arange(2)))


def test_equal_values_go_in_random_order_by_the_seed_and_not_in_lines() -> None:
    flat = torch.ones(2, 40, 50)
    order = ranks(flat, 0)
    assert torch.equal(order[0], order[1])
    assert sorted(order[0].flatten().tolist()) == list(range(2000))
    assert not torch.equal(order, ranks(flat, 1))
    assert torch.equal(order, ranks(flat, 0))
    halves = [(order[0] < 1000)[:20].float().mean(), (order[0] < 1000)[:, :25].float().mean()]
    assert all(abs(float(share) - 0.5) < 0.06 for share in halves)
    some = flat.clone()
    some[0, 7, 7] = 2
    some[0, 9, 9] = 0
    assert ranks(some, 0)[0, 7, 7] == 0
    assert ranks(some, 0)[0, 9, 9] == 1999


def test_noise_is_the_same_for_all_maps_steps_and_metrics() -> None:
    images = images_of(2)
    seen: list[Tensor] = []

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        seen.append(variants)
        return variants.sum((1, 2, 3))

    for maps in (maps_of(2), -maps_of(2)):
        deletion(maps, images=images, score=score, pixels=PIXELS, protocol="odam", batch=300)
        insertion(maps, images=images, score=score, pixels=PIXELS, substrate="noise", batch=300)
    ends = [seen[0][20:], seen[2][20:], seen[1][:2], seen[3][:2]]  # all gone, nothing come
    noise = ends[0][0]
    assert all(torch.equal(end[row], noise) for end in ends for row in (0, 1))
    assert (noise >= PIXELS[0].view(3, 1, 1)).all()
    assert (noise <= PIXELS[1].view(3, 1, 1)).all()
    assert noise[0].std() > 0.5
    other = filler("noise", images, PIXELS, 1)(torch.tensor([0]))
    assert not torch.equal(other[0], noise)


def test_chunks_run_across_rows_and_never_change_a_value() -> None:
    images, maps, calls = images_of(), maps_of(), []

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        calls.append(len(variants))
        assert not torch.is_grad_enabled()
        return network(variants, rows)

    expected = deletion.statistic(maps, images=images, score=network, steps=10, batch=1)
    found = deletion.statistic(maps, images=images, score=score, steps=10, batch=7)
    torch.testing.assert_close(found, expected)
    assert calls == [7, 7, 7, 7, 5]
    alone = deletion.statistic(maps[1:2], images=images[1:2], score=lambda v, r: network(v, r + 1), steps=10)
    torch.testing.assert_close(alone, expected[1:2])


def test_where_deletion_is_not_defined() -> None:
    images, maps = images_of(), maps_of()
    maps[1] = torch.nan
    assert deletion(maps, images=images, score=network).isnan().tolist() == [False, True, False]
    budget = torch.tensor([10, 10, 0])
    assert insertion(maps, images=images, score=network, budget=budget).isnan().tolist() == [False, True, True]
    nothing = deletion(maps_of(), images=images, score=lambda v, r: v.sum((1, 2, 3)) * 0, normalise=True)
    assert nothing.isnan().all()
    assert deletion(maps_of() * 0, images=images, score=network).isfinite().all()
    none = deletion.statistic(maps[:0], images=images[:0], score=network)
    assert none.shape == (0, 101)
    assert insertion(maps[:0], images=images[:0], score=network).shape == (0,)
    with pytest.raises(KonkyoError, match="noise pixels need `pixels`"):
        deletion(maps, images=images, score=network, protocol="odam")
    with pytest.raises(KonkyoError, match="`every` divides"):
        deletion(maps, images=images, score=network, steps=10, every=3)
    with pytest.raises(KonkyoError, match="one number per variant"):
        deletion(maps, images=images, score=lambda v, r: v)
    with pytest.raises(KonkyoError, match="batch"):
        deletion(maps, images=images, score=network, batch=0)


def test_images_of_one_channel_and_maps_of_a_coarse_grid() -> None:
    images, coarse = images_of(2, 1, (8, 12)), maps_of(2, (2, 3))
    fine = torch.nn.functional.interpolate(coarse[:, None], size=(8, 12), mode="bilinear")[:, 0]
    for name in ("deletion", "insertion", "average_drop", "road"):
        given = {"images": images, "score": network}
        assert torch.equal(METRICS[name](coarse, **given), METRICS[name](fine, **given))


# --- what is seen through the map -------------------------------------------------------------------------------------


def test_drop_increase_and_gain_by_hand() -> None:
    images, maps = images_of(4), maps_of(4)
    expected: list[list[float]] = []
    for row in range(4):
        m = (maps[row] - maps[row].min()) / (maps[row].max() - maps[row].min())
        y, o = (float(network(i[None], torch.tensor([row]))) for i in (images[row], images[row] * m))
        expected.append([max(0.0, y - o) / y, float(y < o), max(0.0, o - y) / (1 - y)])
    metrics = (average_drop, increase_in_confidence, average_gain)
    found = torch.stack([metric(maps, images=images, score=network) for metric in metrics], 1)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert {0.0, 1.0} == set(found[:, 1].tolist())


def test_where_drop_and_gain_are_not_defined() -> None:
    images = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    maps = torch.rand(3, 2, 2)
    given = {"images": images, "score": lambda v, r: v.mean((1, 2, 3))}
    assert average_drop(maps, **given).isnan().tolist() == [True, False, False]
    assert average_gain(maps, **given).isnan().tolist() == [False, True, False]
    maps[2] = torch.nan
    for metric in (average_drop, average_gain, increase_in_confidence):
        assert metric(maps, **given)[2].isnan()
    assert average_drop(torch.zeros(3, 2, 2), **given)[1:].tolist() == [1, 1]  # nothing is seen through a zero map


def test_coherency_and_adcc_by_hand() -> None:
    images, maps = images_of(), maps_of()
    found = coherency(maps, images=images, explain=explain)
    combined = adcc(maps, images=images, explain=explain, score=network)
    drop = average_drop(maps, images=images, score=network)
    for row in range(3):
        m = (maps[row] - maps[row].min()) / (maps[row].max() - maps[row].min())
        again = explain((images[row] * m)[None], torch.tensor([row]))
        again = torch.nn.functional.interpolate(again[None], size=(6, 9), mode="bilinear")[0, 0]
        r = float(torch.corrcoef(torch.stack([maps[row].flatten(), again.flatten()]))[0, 1])
        assert found[row].item() == pytest.approx((r + 1) / 2, abs=1e-5)
        terms = [(r + 1) / 2, 1 - float(m.mean()), 1 - float(drop[row])]
        assert combined[row].item() == pytest.approx(3 / sum(1 / t for t in terms), rel=1e-4)


def test_coherency_of_a_method_that_never_changes_is_one_and_a_term_of_zero_makes_adcc_zero() -> None:
    images, maps = images_of(), maps_of()
    given = {"images": images, "explain": lambda v, r: maps[r]}
    torch.testing.assert_close(coherency(maps, **given), torch.ones(3))
    against = coherency(maps, images=images, explain=lambda v, r: -maps[r])
    torch.testing.assert_close(against, torch.zeros(3), atol=1e-6, rtol=0)
    lost = adcc(maps, **given, score=lambda v, r: (v == images[r]).all(1).all(1).all(1).float())
    assert lost.tolist() == [0, 0, 0]
    constant = torch.ones(3, 6, 9)
    assert coherency(constant, **given).isnan().all()
    assert adcc(constant, **given, score=network).isnan().all()
    assert adcc(maps[:0], images=images[:0], explain=explain, score=network).shape == (0,)


# --- ROAD -------------------------------------------------------------------------------------------------------------


def test_road_by_hand() -> None:
    images, maps = images_of(), maps_of()
    found = road.statistic(maps, images=images, score=network, steps=4, batch=5)
    assert found.shape == (3, 2, 4)
    for row in range(3):
        order = sorted(range(54), key=lambda i: -float(maps[row].flatten()[i]))
        for step, count in enumerate([11, 22, 32, 43]):  # 10.8, 21.6, 32.4, 43.2
            for which, gone in enumerate((order[:count], order[54 - count :])):
                mask = torch.zeros(54, dtype=torch.bool)
                mask[gone] = True
                filled = impute(images[row : row + 1], mask.view(1, 6, 9))
                expected = float(network(filled, torch.tensor([row])))
                assert found[row, which, step].item() == pytest.approx(expected, abs=1e-4)
    value = road(maps, images=images, score=network, steps=4)
    torch.testing.assert_close(value, (found[:, 1] - found[:, 0]).mean(1) / 2)


def test_road_tells_a_perfect_map_from_an_inverted_one_and_takes_maps_of_zeros() -> None:
    """What counts is a bright square, and what is around it looks otherwise."""
    images = images_of(2, 3, (20, 24)) * 0.1
    images[:, :, 5:12, 6:14] += 3
    truth = torch.zeros(2, 20, 24)
    truth[:, 5:12, 6:14] = 1
    score = linear(truth[:, None].expand(2, 3, 20, 24) / 500)
    perfect, inverted = (road(m, images=images, score=score) for m in (truth, -truth))
    assert (perfect > 0.1).all()
    torch.testing.assert_close(inverted, -perfect, atol=0.3, rtol=0)
    assert (inverted < 0).all()
    flat = road(torch.zeros(2, 20, 24), images=images, score=score)
    assert (flat.abs() < 0.1).all()
    lost = truth.clone()
    lost[1] = math.nan
    assert road(lost, images=images, score=score).isnan().tolist() == [False, True]
    assert road(truth[:0], images=images[:0], score=score).shape == (0,)


# --- the context of a dense output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [deletion, insertion])
def test_the_context_goes_or_comes_and_the_part_stays(metric: Any) -> None:
    """A transcription, a pixel a step: what is deleted (or inserted) is outside of the part, highest value first."""
    images, maps = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5)
    part = torch.rand(2, 4, 5) > 0.6
    weights = torch.randn(2, 3, 4, 5)

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        return (variants * weights[rows]).flatten(1).sum(1)

    steps = 20
    curve = metric.statistic(
        maps, images=images, score=score, part=part, where="context", substrate="zero", steps=steps
    )
    for row in range(2):
        outside = (~part[row]).flatten().nonzero()[:, 0].tolist()
        order = sorted(outside, key=lambda pixel: -float(maps[row].flatten()[pixel]))
        for t in range(steps + 1):
            count = math.floor(t / steps * len(outside) + 0.5)
            gone = order[:count] if metric is deletion else order[count:]
            left = images[row].flatten(1).clone()
            left[:, gone] = 0
            expected = float((left * weights[row].flatten(1)).sum())
            assert float(curve[row, t]) == pytest.approx(expected, abs=1e-4)


def test_the_context_of_all_of_an_image_or_of_nothing_is_told() -> None:
    images, maps = torch.rand(1, 3, 4, 5), torch.rand(1, 4, 5)
    score = linear(torch.ones_like(images[:, :1]))
    everything = torch.ones(1, 4, 5, dtype=torch.bool)
    curve = deletion.statistic(maps, images=images[:, :1], score=score, part=everything, where="context", steps=4)
    assert bool(curve.isnan().all())
    with pytest.raises(KonkyoError, match="needs `part`"):
        deletion.statistic(maps, images=images, score=score, where="context")
    with pytest.raises(KonkyoError, match="one of 'image', 'context'"):
        deletion.statistic(maps, images=images, score=score, part=everything, where="contxt")
