"""ARCC, ROAD's accuracy, IROF, selectivity, the faithfulness estimate and baselines of one's own: by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.metric_inputs import PIXELS, explain, images_of, linear, maps_of, network
from konkyo.errors import KonkyoError
from konkyo.metrics.additivity import faithfulness_correlation
from konkyo.metrics.faithfulness import (
    adcc,
    arcc,
    coherency,
    deletion,
    deviation,
    insertion,
    irof,
    road,
    road_accuracy,
)
from konkyo.metrics.imputation import impute
from konkyo.metrics.variants import ranks

# --- ARCC and ROAD's accuracy -----------------------------------------------------------------------------------------


def test_arcc_by_hand() -> None:
    images, maps = images_of(), maps_of()
    ramp = torch.linspace(-1, 1, 54).view(6, 9)
    score = lambda v, r: (3 * (v * maps[r, None]).mean((1, 2, 3)) + 0.1 * (v * ramp).mean((1, 2, 3))).sigmoid()
    given: dict[str, Any] = {"images": images, "score": score}
    found = arcc(maps, **given, explain=explain)
    gap, alike = road(maps, **given, steps=4), coherency(maps, images=images, explain=explain)
    seen = 0
    for row in range(3):
        heat = maps[row]
        scaled = (heat - heat.min()) / (heat.max() - heat.min())
        terms = [float(alike[row]), 1 - float(scaled.mean()), min(max(2 * float(gap[row]), 0), 1)]
        expected = 0.0 if min(terms) == 0 else 3 / sum(1 / term for term in terms)
        seen += expected > 0
        assert found[row].item() == pytest.approx(expected, rel=1e-4)
    assert seen
    inverted = arcc(-maps, **given, explain=explain)
    assert (inverted[found > 0] == 0).all()  # ROAD below 0
    assert arcc(maps * 0, **given, explain=explain).isnan().all()
    assert arcc(maps[:0], images=images[:0], score=network, explain=explain).shape == (0,)
    assert not torch.allclose(found, adcc(maps, **given, explain=explain))


def test_arcc_is_pytorch_grad_cams_formula() -> None:
    """Their terms, which are other functions of the same maps, in their formula."""
    peer = pytest.importorskip("pytorch_grad_cam.metrics.arcc")
    images, maps = images_of(), maps_of()
    scaled = torch.stack([(m - m.min()) / (m.max() - m.min()) for m in maps])
    score = lambda v, r: (2 * (v * maps[r, None]).mean((1, 2, 3))).sigmoid()
    ours = arcc(scaled, images=images, score=score, explain=lambda v, r: v[:, 1])
    metric = object.__new__(peer.ARCC)
    metric.base_method = lambda input_tensor, targets: input_tensor[:, 1].numpy()
    metric.complexity, metric.coherency = peer.Complexity(), peer.Coherency()
    metric.road = lambda *_: road(scaled, images=images, score=score, steps=4).numpy()
    theirs = metric(images, scaled.numpy(), None, None)
    assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-5)


def test_the_accuracy_of_road_by_hand() -> None:
    images, maps = images_of(), maps_of()
    limit = (images**2).mean((1, 2, 3)) * 0.8
    decided = lambda v, rows: (v**2).mean((1, 2, 3)) > limit[rows]
    given: dict[str, Any] = {"images": images, "decided": decided, "steps": 4, "seed": 3}
    found = road_accuracy.statistic(maps, **given, batch=5)
    assert found.shape == (3, 2, 4)
    order = ranks(maps, 3)
    for row in range(3):
        for step in range(4):
            count = math.floor((step + 1) / 5 * 54 + 0.5)
            for place, gone in enumerate((order[row] < count, order[row] >= 54 - count)):
                filled = impute(images[row : row + 1], gone[None], noise=0.01, seed=3)
                assert found[row, place, step] == float(decided(filled, torch.tensor([row]))[0])
    assert 0 < found.mean() < 1
    torch.testing.assert_close(road_accuracy(maps, **given), (found[:, 1] - found[:, 0]).mean(1))


def test_the_accuracy_tells_a_perfect_map_from_an_inverted_one() -> None:
    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 0.1
    images[:, :, 5:9, 6:12] += 1
    truth = images.mean(1)
    decided = lambda v, rows: v[:, :, 5:9, 6:12].mean((1, 2, 3)) > 0.6
    perfect, inverted = (road_accuracy(m, images=images, decided=decided) for m in (truth, -truth))
    assert (perfect > 0.6).all()
    torch.testing.assert_close(inverted, -perfect, atol=0.25, rtol=0)
    lost = truth.clone()
    lost[0, 0, 0] = math.nan
    assert road_accuracy(lost, images=images, decided=decided).isnan().tolist() == [True, False]
    with pytest.raises(KonkyoError, match="decided"):
        road_accuracy(truth, images=images)
    with pytest.raises(KonkyoError, match="steps >= 1"):
        road_accuracy(truth, images=images, decided=decided, steps=0)


# --- IROF -------------------------------------------------------------------------------------------------------------


def quarters() -> Tensor:
    segments = torch.zeros(3, 6, 9, dtype=torch.int64)
    segments[:, 3:] += 1
    segments[:, :, 4:] += 2
    segments[1, 0, 0] = 4  # one image has a fifth
    return segments


@pytest.mark.parametrize("substrate", ["mean", "black"])
def test_irof_by_hand(substrate: str) -> None:
    images, maps, segments = images_of(), maps_of(), quarters()
    given: dict[str, Any] = {"images": images, "score": network, "segments": segments, "pixels": PIXELS}
    found = irof(maps, **given, substrate=substrate, batch=4)
    for row in range(3):
        which = torch.tensor([row])
        means = {int(s): float(maps[row][segments[row] == s].mean()) for s in segments[row].unique()}
        whole, image, falls = float(network(images[row : row + 1], which)), images[row].clone(), []
        for segment in sorted(means, key=lambda s: -means[s]):
            for channel in range(3):
                fill = images[row, channel].mean() if substrate == "mean" else PIXELS[0, channel]
                image[channel][segments[row] == segment] = fill
            falls.append(1 - float(network(image[None], which)) / whole)
        assert found[row].item() == pytest.approx(sum(falls) / len(falls), abs=1e-5)
    assert irof(maps, **given | {"score": lambda v, r: v.new_zeros(len(v))}).isnan().all()


def test_no_map_beats_the_additive_truth() -> None:
    """The score is a sum over segments: the map of what each adds has the largest area."""
    images, segments = images_of().abs() + 0.5, quarters()
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(2))
    given: dict[str, Any] = {"images": images, "score": linear(weights), "segments": segments, "substrate": "zero"}
    worth = torch.zeros(3, 6, 9)
    for row in range(3):
        for s in segments[row].unique():
            inside = segments[row] == s
            worth[row][inside] = float((weights * images)[row].sum(0)[inside].sum())
    best = irof(worth, **given)
    assert (best > irof(-worth, **given) + 0.03).all()
    for seed in range(30):
        drawn = torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(seed))
        assert (irof(drawn, **given) <= best + 1e-6).all()


def test_segments_of_irof_by_name() -> None:
    images, maps = images_of(), maps_of()
    given: dict[str, Any] = {"images": images, "score": network}
    grid = torch.arange(2)[:, None].repeat_interleave(3, 0) * 3 + torch.arange(3).repeat_interleave(3)
    by_name, by_hand = irof(maps, **given, segments="grid", count=(2, 3)), irof(maps, **given, segments=grid)
    torch.testing.assert_close(by_name, by_hand)
    pytest.importorskip("skimage")
    assert irof(maps, **given, pixels=PIXELS, count=6).isfinite().all()
    with pytest.raises(KonkyoError, match="pixels"):
        irof(maps, **given)
    assert irof(maps[:0], images=images[:0], score=network, pixels=PIXELS).shape == (0,)


# --- patches and baselines --------------------------------------------------------------------------------------------


def test_selectivity_by_hand() -> None:
    """Squares of 4 pixels, smaller at the far borders: 2 x 3 of them, out one by one."""
    images, maps = images_of(), maps_of() - 0.3
    found = deletion.statistic(maps, images=images, score=network, patch=4, steps=6)
    back = insertion.statistic(maps, images=images, score=network, patch=4, steps=6, substrate="zero")
    for row in range(3):
        which = torch.tensor([row])
        squares = [(slice(y, y + 4), slice(x, x + 4)) for y in (0, 4) for x in (0, 4, 8)]
        squares.sort(key=lambda s: -float(maps[row][s].sum()))
        image, empty = images[row].clone(), torch.zeros(3, 6, 9)
        out, into = ([float(network(i[None], which))] for i in (image, empty))
        for down, across in squares:
            image[:, down, across] = 0
            empty[:, down, across] = images[row][:, down, across]
            out.append(float(network(image[None], which)))
            into.append(float(network(empty[None], which)))
        assert found[row].tolist() == pytest.approx(out, abs=1e-6)
        assert back[row].tolist() == pytest.approx(into, abs=1e-6)
    for wrong in ({"patch": 0}, {"patch": 4, "budget": torch.tensor([4, 4, 4])}):
        with pytest.raises(KonkyoError, match="patch is a side"):
            deletion(maps, images=images, score=network, **wrong)


@pytest.mark.parametrize("metric", [deletion, insertion, deviation])
def test_pixels_take_a_baseline_of_ones_own(metric: Any) -> None:
    images, maps = images_of(), maps_of()
    own = torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(1))
    for substrate, fill in (
        (own, own[None].expand(3, -1, -1, -1)),
        (0.25, torch.full((3, 3, 6, 9), 0.25)),
        (0, torch.zeros(3, 3, 6, 9)),
        ("mean", images.mean((2, 3), keepdim=True).expand(-1, -1, 6, 9)),
        ("white", PIXELS[1].view(1, 3, 1, 1).expand(3, 3, 6, 9)),
    ):
        seen: list[Tensor] = []

        def score(variants: Tensor, rows: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(variants)
            return network(variants, rows)

        metric.statistic(maps, images=images, score=score, pixels=PIXELS, steps=2, substrate=substrate, batch=100)
        step = seen[0].view(3, 3, 3, 6, 9)[0 if metric is insertion else -1]
        torch.testing.assert_close(step, fill)
    for wrong, said in (("grey", "unknown baseline"), (own[:, :5], "3x6x9"), (math.inf, "finite")):
        with pytest.raises(KonkyoError, match=said):
            metric(maps, images=images, score=network, pixels=PIXELS, substrate=wrong)


# --- the faithfulness estimate ----------------------------------------------------------------------------------------


def test_the_faithfulness_estimate_by_hand() -> None:
    images, maps = images_of(), maps_of() - 0.4
    given: dict[str, Any] = {"images": images, "score": network, "subsets": "ranked"}
    found = faithfulness_correlation(maps, **given, groups=6, batch=5)
    for row in range(3):
        order = maps[row].flatten().argsort(descending=True).tolist()
        which, sums, falls = torch.tensor([row]), [], []
        for group in range(6):
            pixels = order[9 * group : 9 * group + 9]
            hidden = images[row].clone()
            hidden.view(3, -1)[:, pixels] = 0
            sums.append(float(maps[row].flatten()[pixels].sum()))
            falls.append(float(network(images[row : row + 1], which) - network(hidden[None], which)))
        expected = float(torch.corrcoef(torch.tensor([sums, falls], dtype=torch.float64))[0, 1])
        assert found[row].item() == pytest.approx(expected, abs=1e-4)
    weights = maps_of()[:, None].expand_as(images)
    exact = (weights * images).sum(1)
    perfect = faithfulness_correlation(exact, images=images, score=linear(weights), subsets="ranked", groups=54)
    torch.testing.assert_close(perfect, torch.ones(3), atol=1e-4, rtol=0)
    with pytest.raises(KonkyoError, match="2 to 54 groups"):
        faithfulness_correlation(maps, **given, groups=55)
