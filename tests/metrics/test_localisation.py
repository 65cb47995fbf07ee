"""Localisation metrics against literal loops, closed forms and scipy; perfect, inverted, blank and broken maps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

from konkyo import KonkyoError, metrics
from konkyo.metrics.base import METRICS, Metric
from konkyo.metrics.instances import same_object, separation
from konkyo.metrics.localisation import (
    best_iou,
    box_masks,
    compactness,
    complexity,
    ebpg,
    ebpg_lift,
    iou,
    odi,
    pointing_game,
    relevance_mass,
    relevance_rank,
    sparseness,
    vea,
    vea_auc,
)
from konkyo.utils.tensors import overlap

OF_MASKS = [vea, vea_auc, iou, best_iou, ebpg, ebpg_lift, relevance_mass, relevance_rank, pointing_game, odi]
OF_MAPS = [sparseness, complexity, compactness]
SIZE = (9, 13)


def scene(rows: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """Random signed maps on two disjoint objects of a non-square image, and the first one's box."""
    random = torch.Generator().manual_seed(seed)
    objects = torch.randint(0, 4, (rows, *SIZE), generator=random)
    boxes = torch.tensor([[2.0, 1.0, 9.5, 7.0]]).repeat(rows, 1)
    maps = torch.randn(rows, *SIZE, generator=random)
    return {"maps": maps, "masks": objects == 1, "others": objects == 2, "boxes": boxes}


def value(metric: Metric, given: dict[str, Tensor], **options: object) -> Tensor:
    return metric(**given, **options)  # type: ignore[arg-type]


def literal(
    name: str, heat: list[list[float]], mask: list[list[bool]], other: list[list[bool]], box: list[float]
) -> float:
    """The definition, pixel by pixel, in double precision."""
    places = [(y, x) for y in range(len(heat)) for x in range(len(heat[0]))]
    low, high = min(map(min, heat)), max(map(max, heat))
    m = {(y, x): (heat[y][x] - low) / (high - low) for y, x in places}
    inside = [p for p in places if mask[p[0]][p[1]]]
    area = len(inside)

    def cut(threshold: float) -> float:
        above = {p for p in places if m[p] > threshold}
        return len(above & set(inside)) / len(above | set(inside))

    def energy(region: list[tuple[int, int]]) -> float:
        return math.fsum(m[p] for p in region)

    raw = {(y, x): max(heat[y][x], 0) for y, x in places}
    best = sorted(places, key=lambda p: -m[p])
    curve = [cut(i / 10) for i in range(1, 10)]
    others = [p for p in places if other[p[0]][p[1]]]
    py, px = best[0]
    spread = math.fsum(m[y, x] * ((y - py) ** 2 + (x - px) ** 2) for y, x in places)
    absolute = sorted(abs(heat[y][x]) for y, x in places)
    n = len(absolute)
    everywhere = energy(places)
    return {
        "vea": lambda: sum(curve) / 9,
        "vea_auc": lambda: sum((a + b) / 2 * 0.1 for a, b in pairwise(curve)) / 0.8,
        "iou": lambda: cut(0.5),
        "best_iou": lambda: max(cut(t) for t in sorted(set(m.values()))[:-1]),
        "ebpg": lambda: energy(inside) / everywhere,
        "ebpg_lift": lambda: energy(inside) / everywhere / (area / n),
        "relevance_mass": lambda: math.fsum(raw[p] for p in inside) / math.fsum(raw.values()),
        "relevance_rank": lambda: len(set(best[:area]) & set(inside)) / area,
        "pointing_game": lambda: float(best[0] in inside),
        "odi": lambda: energy(others) / energy(list(set(others) | set(inside))),
        "compactness": lambda: math.sqrt(spread / (everywhere * ((box[2] - box[0]) ** 2 + (box[3] - box[1]) ** 2) / 4)),
        "sparseness": lambda: sum((2 * i - n - 1) * a for i, a in enumerate(absolute, 1)) / (n * sum(absolute)),
        "complexity": lambda: float(stats.entropy(absolute)),
    }[name]()


@pytest.mark.parametrize("metric", [*OF_MASKS, *OF_MAPS], ids=lambda m: m.name)
def test_it_is_its_definition(metric: Metric) -> None:
    given = scene()
    lists = [[t.tolist() for t in given[k]] for k in ("maps", "masks", "others", "boxes")]
    expected = [literal(metric.name, *row) for row in zip(*lists, strict=True)]
    torch.testing.assert_close(value(metric, given), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    one = {k: v[2:3] for k, v in given.items()}
    torch.testing.assert_close(value(metric, one), torch.tensor(expected[2:3]), rtol=1e-5, atol=1e-6)
    none = {k: v[:0] for k, v in given.items()}
    assert value(metric, none).shape == (0,)
    assert metric.over(metric.statistic(**none)).isnan()


@pytest.mark.parametrize("metric", OF_MASKS, ids=lambda m: m.name)
def test_the_best_map_is_the_mask_and_the_worst_its_inverse(metric: Metric) -> None:
    given = scene()
    perfect = value(metric, given | {"maps": given["masks"].float()})
    inverted = value(metric, given | {"maps": 1 - given["masks"].float()})
    usual = value(metric, given)
    if metric is odi:
        assert perfect.tolist() == [0] * 5
        assert inverted.tolist() == [1] * 5
        assert ((usual > 0) & (usual < 1)).all()
        return
    best = 1 / given["masks"].float().mean((1, 2)) if metric is ebpg_lift else torch.ones(5)
    torch.testing.assert_close(perfect, best)
    assert inverted.tolist() == [0] * 5
    assert ((usual >= 0) & (usual <= best)).all()


def test_a_blank_map() -> None:
    """What is scored 0, what is not defined, and what is left to chance."""
    given = scene(2)
    for level in (0.0, 3.0, -3.0):
        blank = given | {"maps": torch.full((2, *SIZE), level)}
        for metric in (vea, vea_auc, iou, best_iou, ebpg, ebpg_lift):
            assert value(metric, blank).tolist() == [0, 0], metric.name
        for metric in (pointing_game, odi, compactness):
            assert value(metric, blank).isnan().all(), metric.name
        share = blank["masks"].float().mean((1, 2))
        drawn = torch.stack([value(relevance_rank, blank, seed=s) for s in range(200)])
        torch.testing.assert_close(drawn.mean(0), share, rtol=0, atol=0.03)
        assert drawn.std(0).min() > 0
        mass = value(relevance_mass, blank)
        torch.testing.assert_close(mass, share if level > 0 else torch.full_like(share, torch.nan), equal_nan=True)
        gini, entropy = value(sparseness, blank), value(complexity, blank)
        if level:
            torch.testing.assert_close(gini, torch.zeros(2), rtol=0, atol=1e-6)
            torch.testing.assert_close(entropy, torch.full((2,), math.log(9 * 13)))
        else:
            assert gini.isnan().all()
            assert entropy.isnan().all()


@pytest.mark.parametrize("metric", [*OF_MASKS, *OF_MAPS], ids=lambda m: m.name)
def test_what_cannot_be_measured_is_nan_and_leaves_the_others_alone(metric: Metric) -> None:
    given, whole = scene(), value(metric, scene())
    given["maps"][0, 3, 3], given["maps"][1, 0, 0] = torch.nan, torch.inf
    if "masks" in metric.needs:
        given["masks"][2] = False
    if "boxes" in metric.needs:
        given["boxes"][2, 2] = given["boxes"][2, 0]
    found = value(metric, given)
    expected = whole.clone()
    expected[: 3 if metric.needs != ("maps",) else 2] = torch.nan
    torch.testing.assert_close(found, expected, equal_nan=True)
    torch.testing.assert_close(metric.over(metric.statistic(**given)), expected.nanmean())


def test_energy_of_an_even_map_is_the_share_of_the_area() -> None:
    masks = box_masks(torch.tensor([[1.0, 2.0, 5.0, 6.0]]), SIZE)
    even = torch.ones(1, *SIZE)
    even[0, 8, 12] = 0  # else scaling by min and max leaves nothing of it
    assert ebpg(even, masks=masks).item() == pytest.approx(16 / (9 * 13 - 1))
    assert ebpg_lift(even, masks=masks).item() == pytest.approx(1, abs=0.01)
    assert relevance_mass(torch.ones(1, *SIZE), masks=masks).item() == pytest.approx(16 / (9 * 13))


def test_an_offset_changes_no_scaled_map() -> None:
    given = scene()
    for metric in (vea, ebpg, odi, iou, best_iou, pointing_game, compactness):
        moved = value(metric, given | {"maps": given["maps"] * 4 + 100})
        torch.testing.assert_close(moved, value(metric, given), rtol=1e-3, atol=1e-3)


def test_the_curve_of_vea_is_strictly_above_its_thresholds() -> None:
    heat = torch.tensor([[[0.0, 0.1, 0.2, 0.5, 0.9, 1.0]]])
    curve = vea.statistic(heat, masks=torch.ones(1, 1, 6, dtype=torch.bool))
    assert (curve * 6).round().tolist() == [[4, 3, 3, 3, 2, 2, 2, 2, 1]]
    exact = torch.tensor([[[0.0, 0.25, 0.5, 0.75, 1.0]]])
    assert iou(exact, masks=torch.ones(1, 1, 5, dtype=torch.bool), threshold=0.5).item() == pytest.approx(0.4)
    with pytest.raises(KonkyoError, match="threshold"):
        iou(exact, masks=torch.ones(1, 1, 5, dtype=torch.bool), threshold=1.0)


def test_maps_of_a_layer_are_enlarged_to_the_masks() -> None:
    given = scene(2)
    small = torch.rand(2, 3, 4)
    large = torch.nn.functional.interpolate(small[:, None], size=SIZE, mode="bilinear")[:, 0]
    for metric in OF_MASKS:
        torch.testing.assert_close(value(metric, given | {"maps": small}), value(metric, given | {"maps": large}))
        halves = value(metric, given | {"maps": large.half()})
        torch.testing.assert_close(halves, value(metric, given | {"maps": large.half().float()}))


def test_pointing_near_the_mask() -> None:
    heat, mask = torch.zeros(1, *SIZE), torch.zeros(1, *SIZE, dtype=torch.bool)
    heat[0, 1, 2], mask[0, 4:7, 6:9] = 1, True  # 3 down and 4 across: 5 away
    assert [pointing_game(heat, masks=mask, tolerance=t).item() for t in (0, 4.99, 5, 15)] == [0, 0, 1, 1]
    heat[0, 5, 7] = 2
    assert pointing_game(heat, masks=mask).item() == 1
    with pytest.raises(KonkyoError, match="tolerance"):
        pointing_game(heat, masks=mask, tolerance=-1.0)


def test_ties_are_broken_by_the_seed_and_not_by_position_or_company() -> None:
    heat = torch.zeros(4, *SIZE)
    heat[:, 0, 0] = heat[:, 8, 12] = 1
    masks = torch.zeros(4, *SIZE, dtype=torch.bool)
    masks[:, 8, 12] = True
    for metric in (pointing_game, relevance_rank):
        drawn = torch.stack([metric(heat, masks=masks, seed=s) for s in range(100)])
        assert 0.3 < drawn.mean() < 0.7
        assert torch.equal(drawn[:, :1].expand(-1, 4), drawn)
        assert torch.equal(metric(heat[:1], masks=masks[:1], seed=3), drawn[3, :1])
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(4, 1)
    reach = compactness(heat, boxes=boxes)
    torch.testing.assert_close(reach, torch.full((4,), math.sqrt((8**2 + 12**2) / (2 * 32 / 4))))


def test_compactness_of_a_point_and_of_two() -> None:
    heat = torch.zeros(1, *SIZE)
    heat[0, 4, 6] = 1
    boxes = torch.tensor([[0.0, 0.0, 6.0, 8.0]])
    assert compactness(heat, boxes=boxes).item() == 0
    heat[0, 4, 11] = 0.5  # 5 away with a third of the energy; half the diagonal is 5
    assert compactness(heat, boxes=boxes).item() == pytest.approx(math.sqrt(1 / 3), rel=1e-5)


def test_odi_needs_another_object_and_counts_what_is_shared_as_its() -> None:
    heat = torch.zeros(1, 2, 3)
    heat[0, 0] = torch.tensor([2.0, 1.0, 1.0])
    mask = torch.tensor([[[1, 1, 0], [0, 0, 0]]]).bool()
    other = torch.tensor([[[0, 1, 1], [0, 0, 0]]]).bool()
    assert odi(heat, masks=mask, others=other).item() == pytest.approx(0.5)
    assert odi(heat, masks=mask, others=torch.zeros_like(other)).isnan()
    away = torch.zeros(1, 2, 3)
    away[0, 1, 1] = 1
    assert odi(away, masks=mask, others=other).isnan()


def test_sparseness_and_complexity_of_a_point() -> None:
    heat = torch.zeros(1, *SIZE)
    heat[0, 4, 6] = -7
    assert sparseness(heat).item() == pytest.approx(1 - 1 / (9 * 13))
    assert complexity(heat).item() == 0


def test_the_mask_of_a_box() -> None:
    boxes = torch.tensor(
        [[1.2, 2.0, 3.1, 4.0], [-5.0, -5.0, 1.0, 1.0], [2.0, 2.0, 2.0, 5.0], [torch.nan] * 4, [0.0, 0.0, 99.0, 99.0]]
    )
    masks = box_masks(boxes, (5, 6))
    assert masks.shape == (5, 5, 6)
    assert masks[0].nonzero().tolist() == [[y, x] for y in (2, 3) for x in (1, 2, 3)]
    assert masks[1].nonzero().tolist() == [[0, 0]]
    assert masks.flatten(1).sum(1).tolist() == [6, 1, 0, 0, 30]
    assert box_masks(boxes[:0], (5, 6)).shape == (0, 5, 6)


def test_overlap_of_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 4.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    expected = torch.tensor([[1, 1 / 7, 0, 0], [1 / 7, 1, 1 / 7, 0], [0, 1 / 7, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(overlap(boxes[:, None], boxes), expected)


def test_maps_of_detections_against_loops() -> None:
    random = torch.Generator().manual_seed(1)
    maps = torch.randn(7, *SIZE, generator=random)
    maps[5] = -1  # nothing of it is positive
    objects = torch.tensor([3, 3, 8, 8, 3, 3, 1])
    low = torch.rand(7, 2, generator=random) * 6
    boxes = torch.cat([low, low + 4], dim=1)
    boxes[6] = torch.tensor([50.0, 50.0, 60.0, 60.0])
    alike, apart = same_object(maps, objects=objects), separation(maps, objects=objects, boxes=boxes)
    positive = [m.clamp(min=0).double().flatten() for m in maps]
    for i in range(7):
        same, different = [], []
        for j in range(7):
            if i == j or 5 in (i, j):
                continue
            corr = float(positive[i] @ positive[j] / (positive[i].norm() * positive[j].norm()))
            wide = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
            high = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
            if objects[i] == objects[j]:
                same.append(corr)
            elif wide > 0 and high > 0:
                different.append(corr)
        assert alike[i].item() == pytest.approx(sum(same) / len(same) if same else math.nan, nan_ok=True)
        wanted = 1 - sum(different) / len(different) if different else math.nan
        assert apart[i].item() == pytest.approx(wanted, nan_ok=True)
    assert alike.isnan().tolist() == [False] * 5 + [True, True]
    assert apart.isnan().tolist() == [False] * 5 + [True, True]


def test_equal_maps_of_one_object_and_disjoint_maps_of_two_are_perfect() -> None:
    one, two = torch.zeros(2, *SIZE)
    one[:4], two[5:] = 1, 2
    objects, boxes = torch.tensor([0, 0, 1, 1]), torch.tensor([[0.0, 0.0, 13.0, 9.0]]).repeat(4, 1)
    for maps, expected in ([one, one * 3, two, two], 1), ([one, two, one, two], 0):
        stacked = torch.stack(maps)
        torch.testing.assert_close(same_object(stacked, objects=objects), torch.full((4,), float(expected)))
        torch.testing.assert_close(
            separation(stacked, objects=objects, boxes=boxes), torch.full((4,), 1.0 if expected else 0.5)
        )
    assert same_object(one[None], objects=objects[:1]).isnan().all()
    assert same_object(one[None][:0], objects=objects[:0]).shape == (0,)


def test_all_are_registered_with_a_direction() -> None:
    for metric in (*OF_MASKS, *OF_MAPS, same_object, separation):
        assert METRICS[metric.name] is metric
        assert metric.better == ("lower" if metric in (odi, compactness, complexity) else "higher")
        assert metric.description.endswith(".") or ":" in metric.description


def test_temporal_iou_of_a_run_of_frames() -> None:
    maps, masks = torch.zeros(3, 10, 4, 4), torch.zeros(3, 10, 4, 4, dtype=torch.bool)
    masks[:, 3:7, 1, 1] = True
    maps[0, 3:7, 2, 2] = 1.0  # where it lies does not matter
    maps[1, 5:9, 0, 0] = 1.0
    maps[1, 1, 0, 0] = 0.9  # another run does not count
    assert metrics.temporal_iou(maps, masks=masks).tolist()[:2] == pytest.approx([1.0, 2 / 6])
    assert metrics.temporal_iou(maps, masks=masks)[2].isnan()
    assert metrics.temporal_iou(maps[:, :, 0, 0], masks=masks[:, :, 1, 1])[1] == pytest.approx(2 / 6)


@pytest.mark.parametrize("places", [(7,), (3, 4, 5)])
def test_metrics_of_maps_of_other_places_are_those_of_the_same_cells_as_a_picture(places: tuple[int, ...]) -> None:
    """The same cells in another form have the same values."""
    cells = math.prod(places)
    maps, masks = torch.rand(4, *places), torch.rand(4, *places) > 0.6
    flat_maps, flat_masks = maps.reshape(4, cells, 1), masks.reshape(4, cells, 1)
    for name in ("ebpg", "ebpg_lift", "relevance_mass", "iou", "best_iou", "vea", "pointing_game", "relevance_rank"):
        metric = getattr(metrics, name)
        torch.testing.assert_close(metric(maps, masks=masks), metric(flat_maps, masks=flat_masks), equal_nan=True)
    for name in ("sparseness", "complexity"):
        torch.testing.assert_close(getattr(metrics, name)(maps), getattr(metrics, name)(flat_maps))
    images = torch.rand(4, 2, *places)

    def score(variants: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        weights = torch.linspace(0, 1, cells)
        return (variants.flatten(2).sum(1) * weights).sum(1)

    flat_images = images.reshape(4, 2, cells, 1)
    options = {"deletion": {"steps": 5}, "insertion": {"steps": 5, "substrate": "zero"}, "average_drop": {}}
    for name, more in options.items():
        metric = getattr(metrics, name)
        torch.testing.assert_close(
            metric(maps, images=images, score=score, **more),
            metric(flat_maps, images=flat_images, score=score, **more),
        )


def test_a_peak_may_lie_so_far_outside_in_three_dimensions() -> None:
    maps, masks = torch.zeros(1, 5, 6, 7), torch.zeros(1, 5, 6, 7, dtype=torch.bool)
    maps[0, 2, 3, 4] = 1
    masks[0, 3, 1, 2] = True  # sqrt(1 + 4 + 4) away
    assert metrics.pointing_game(maps, masks=masks, tolerance=2.9).tolist() == [0.0]
    assert metrics.pointing_game(maps, masks=masks, tolerance=3.0).tolist() == [1.0]
    with pytest.raises(KonkyoError, match="boxes in pictures"):
        metrics.compactness(maps, boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
