"""Boxes around what a map shows, against scipy's components and loops over thresholds; the pooled accuracies."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from konkyo import KonkyoError
from konkyo.metrics.logged import MapMetric
from konkyo.metrics.wsol import boxes_of, max_box_acc, max_box_acc_v2, px_ap

SIZE = (15, 22)


def maps_of(kind: str, rows: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(3)
    if kind == "noise":
        return torch.rand(rows, *SIZE, generator=random)
    coarse = torch.rand(rows, 1, 4, 5, generator=random)
    return torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")[:, 0] - 0.3


def components(above: Tensor) -> list[tuple[int, list[float]]]:
    """(pixels, box) of every component, by scipy."""
    labels, _ = ndimage.label(above.numpy(), structure=[[1, 1, 1]] * 3)
    found = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        box = [columns.start, rows.start, columns.stop, rows.stop]
        found.append((int((labels == index).sum()), [float(v) for v in box]))
    return found


def iou_of(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def scaled(heat: Tensor) -> Tensor:
    return (heat - heat.min()) / (heat.max() - heat.min())


@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.8, 0.99])
def test_boxes_are_those_of_scipys_components(kind: str, threshold: float) -> None:
    for heat in maps_of(kind):
        expected = components(scaled(heat) > threshold)
        found = boxes_of(heat, threshold).tolist()
        assert sorted(found) == sorted(box for _, box in expected)
        largest = max(size for size, _ in expected)
        assert found[0] in [box for size, box in expected if size == largest]


def test_long_and_branching_components_are_one() -> None:
    """Spirals, combs and diagonals: what local propagation takes long for."""
    random = torch.Generator().manual_seed(0)
    spiral = torch.zeros(41, 41)
    y, x, dy, dx, length = 20, 20, 0, 2, 1
    for turn in range(38):
        for _ in range(length):
            spiral[min(y, y + dy) : max(y, y + dy) + 1, min(x, x + dx) : max(x, x + dx) + 1] = 1
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
        length += turn % 2
        if length > 19:
            break
    comb = torch.zeros(41, 41)
    comb[0], comb[:, ::2] = 1, 1
    upturned = comb.flip(0)
    diagonal = torch.eye(41).flip(1)
    sparse = (torch.rand(41, 41, generator=random) < 0.4).float()
    for heat in (spiral, comb, upturned, diagonal, sparse):
        expected = [box for _, box in components(heat > 0)]
        assert sorted(boxes_of(heat).tolist()) == sorted(expected)
    assert len(boxes_of(spiral)) == len(boxes_of(comb)) == len(boxes_of(diagonal)) == 1


def test_boxes_of_edge_cases() -> None:
    heat = torch.zeros(5, 7)
    assert boxes_of(heat).shape == boxes_of(heat + torch.nan).shape == boxes_of(heat + 3).shape == (0, 4)
    heat[4, 6] = 1
    assert boxes_of(heat).tolist() == [[6, 4, 7, 5]]
    heat[3, 0:2], heat[2, 5], heat[0, 0] = 0.5, 0.1, 0.2
    assert boxes_of(heat).tolist() == [[0, 3, 2, 4], [6, 4, 7, 5]]  # 0.2 is not above 0.2
    assert boxes_of(torch.ones(1, 1)).shape == (0, 4)
    for wrong in (lambda: boxes_of(heat[None]), lambda: boxes_of(heat, 1.0)):
        with pytest.raises(KonkyoError, match="boxes_of"):
            wrong()


@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_box_accuracy_at_every_threshold_against_loops(kind: str) -> None:
    maps, steps = maps_of(kind), 40
    boxes = torch.tensor(
        [[3.0, 2.0, 15.5, 11.0], [0.0, 0.0, 22.0, 15.0], [10.0, 4.0, 22.0, 15.0], [0.0, 0.0, 9.0, 9.0]]
    )
    largest = max_box_acc.statistic(maps, boxes=boxes, delta=0.4, steps=steps)
    best = max_box_acc_v2.statistic(maps, boxes=boxes, steps=steps)
    assert largest.shape == (4, steps)
    assert best.shape == (4, 3, steps)
    ties = 0
    for row, heat in enumerate(maps):
        for step in range(steps):
            found = components((scaled(heat) * steps).floor() > step)
            shares = [iou_of(box, boxes[row].tolist()) for _, box in found]
            assert best[row, :, step].tolist() == [float(max(shares) >= d) for d in (0.3, 0.5, 0.7)]
            size = max(s for s, _ in found)
            answers = {float(share >= 0.4) for (s, _), share in zip(found, shares, strict=True) if s == size}
            assert largest[row, step].item() in answers
            ties += len(answers) > 1
    assert ties < steps
    assert max_box_acc.over(largest) == largest.mean(0).max()
    assert max_box_acc_v2.over(best) == pytest.approx(sum(best[:, i].mean(0).max().item() for i in range(3)) / 3)


def test_a_filled_box_is_found_and_its_inverse_is_not() -> None:
    maps, boxes = torch.zeros(2, *SIZE), torch.tensor([[4.0, 3.0, 9.0, 8.0], [12.0, 0.0, 22.0, 5.0]])
    for heat, (x1, y1, x2, y2) in zip(maps, boxes.int().tolist(), strict=True):
        heat[y1:y2, x1:x2] = 1
    for metric in (max_box_acc, max_box_acc_v2):
        assert metric.over(metric.statistic(maps, boxes=boxes)) == 1
        assert metric.over(metric.statistic(1 - maps, boxes=boxes)) == 0
        assert metric.over(metric.statistic(maps * 0 + 2, boxes=boxes)) == 0
        assert metric.over(metric.statistic(maps[:1], boxes=boxes[:1])) == 1
        assert metric.over(metric.statistic(maps[:0], boxes=boxes[:0])).isnan()
    beside = maps.clone()
    beside[:, 10:, :11] = 1  # 55 pixels: larger than the objects
    assert max_box_acc.over(max_box_acc.statistic(beside, boxes=boxes)) == 0
    assert max_box_acc_v2.over(max_box_acc_v2.statistic(beside, boxes=boxes)) == 1


def test_the_threshold_is_the_same_for_all_maps() -> None:
    """One map is right below 0.5 only, the other above: together half of them, at any threshold."""
    boxes = torch.tensor([[0.0, 0.0, 6.0, 6.0]] * 2)
    maps = torch.zeros(2, *SIZE)
    maps[0, :6, :6], maps[0, 0, 0] = 0.5, 1
    maps[1] = 0.5
    maps[1, :6, :6], maps[1, 14, 21] = 1, 0
    alone = [max_box_acc.over(max_box_acc.statistic(maps[i : i + 1], boxes=boxes[:1])).item() for i in (0, 1)]
    assert alone == [1, 1]
    assert max_box_acc.over(max_box_acc.statistic(maps, boxes=boxes)) == 0.5


def test_of_equally_large_components_the_seed_takes_one() -> None:
    maps, boxes = torch.zeros(1, *SIZE), torch.tensor([[0.0, 0.0, 3.0, 3.0]])
    maps[0, :3, :3] = maps[0, 10:13, 10:13] = 1
    drawn = [max_box_acc.over(max_box_acc.statistic(maps, boxes=boxes, steps=3, seed=s)).item() for s in range(60)]
    assert 0.25 < sum(drawn) / 60 < 0.75


def ap_by_hand(maps: Tensor, masks: Tensor, steps: int) -> float:
    values = torch.stack([(scaled(m) * steps).floor() for m in maps]).flatten().tolist()
    inside = masks.flatten().tolist()
    total, recall = 0.0, 0.0
    for level in sorted(set(values), reverse=True):
        chosen = [i for v, i in zip(values, inside, strict=True) if v >= level]
        total += sum(chosen) / len(chosen) * (sum(chosen) / sum(inside) - recall)
        recall = sum(chosen) / sum(inside)
    return total


def test_average_precision_of_pixels_against_loops() -> None:
    maps = maps_of("smooth")
    masks = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(5)) < 0.2 + maps
    for steps in (1000, 20):
        counts = px_ap.statistic(maps, masks=masks, steps=steps)
        assert counts.shape == (4, 2, steps + 1)
        assert torch.equal(counts.sum(2)[:, 1], masks.sum((1, 2)).float())
        assert px_ap.over(counts).item() == pytest.approx(ap_by_hand(maps, masks, steps), rel=1e-5)
    assert px_ap.over(px_ap.statistic(masks.float(), masks=masks)) == 1
    worst = px_ap.over(px_ap.statistic(1 - masks.float(), masks=masks)).item()
    share = masks.float().mean().item()
    assert worst == pytest.approx(share)  # all pixels at once, when the last level is reached
    blank = px_ap.over(px_ap.statistic(torch.ones_like(maps), masks=masks))
    assert blank.item() == pytest.approx(share)
    assert px_ap.over(px_ap.statistic(maps[:0], masks=masks[:0])).isnan()


def test_what_cannot_be_measured_is_left_out() -> None:
    maps, boxes = maps_of("smooth"), torch.tensor([[3.0, 2.0, 15.0, 11.0]]).repeat(4, 1)
    masks = maps > 0.2
    broken, none, few = maps.clone(), masks.clone(), boxes.clone()
    broken[0, 0, 0], none[1], few[1, 2] = torch.nan, False, few[1, 0]
    for metric, given, rest in (
        (max_box_acc, {"boxes": few}, {"boxes": boxes[2:]}),
        (max_box_acc_v2, {"boxes": few}, {"boxes": boxes[2:]}),
        (px_ap, {"masks": none, "empty": "skip"}, {"masks": masks[2:]}),
    ):
        statistic = metric.statistic(broken, **given)
        assert statistic.flatten(1).isnan().all(1).tolist() == [True, True, False, False]
        torch.testing.assert_close(metric.over(statistic), metric.over(metric.statistic(maps[2:], **rest)))
    for metric in (max_box_acc, max_box_acc_v2, px_ap):
        with pytest.raises(KonkyoError, match="whole data set"):
            metric(maps, boxes=boxes, masks=masks)
        with pytest.raises(KonkyoError, match="steps"):
            metric.statistic(maps, boxes=boxes, masks=masks, steps=0)


@pytest.mark.parametrize("empty", ["count", "skip"])
def test_pixels_of_images_without_an_object_are_false_alarms(empty: str) -> None:
    """Counted by hand, in one call, in shards, and where the objects come after the empty images."""
    maps = torch.rand(5, *SIZE, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(5, *SIZE, dtype=torch.bool)
    masks[1, :5, :5], masks[3, 3:8, 2:9] = True, True
    chosen = torch.arange(5) if empty == "count" else torch.tensor([1, 3])
    expected = ap_by_hand(maps[chosen], masks[chosen], 1000)
    assert px_ap.over(px_ap.statistic(maps, masks=masks, empty=empty)).item() == pytest.approx(expected, rel=1e-4)
    shards = MapMetric("px_ap", empty=empty)
    for part in ([0], [1, 2], [3], [4]):
        shards.update(maps[part], masks=masks[part])
    assert shards.compute().item() == pytest.approx(expected, rel=1e-4)
    assert int(shards.undefined) == 5 - len(chosen)
    if empty == "count":
        assert px_ap.over(px_ap.statistic(maps, masks=masks)).item() == pytest.approx(expected, rel=1e-4)
    nothing = px_ap.over(px_ap.statistic(maps[:1], masks=masks[:1], empty=empty))
    assert nothing.isnan()
    with pytest.raises(KonkyoError, match="'count', 'skip'"):
        px_ap.statistic(maps, masks=masks, empty="drop")
