"""Consistency of maps within classes, against slow transcriptions of the formulas and against other libraries."""

from __future__ import annotations

import copy
import csv
import itertools
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import konkyo
from helpers.detectors import dense
from konkyo.data.samples import Sample
from konkyo.draw import consistency as report
from konkyo.errors import KonkyoError
from konkyo.evaluation.batches import untrained
from konkyo.evaluation.consistency import PLACELESS, Baseline, Consistency, consistency, measure
from konkyo.metrics.distances import (
    DISTANCES,
    Distance,
    blank,
    class_means,
    distances,
    kappa,
    on_grid,
    shuffled_within,
    within_total,
)
from konkyo.models import Model
from konkyo.utils.tensors import min_max

CHEAP: dict[str, Any] = {"resamples": 0, "permutations": 0}
ABC = ("a", "b", "c")


def some(count: int = 30, grid: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(count, grid, grid, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(count: int, high: int, seed: int) -> Tensor:
    return torch.randint(high, (count,), generator=torch.Generator().manual_seed(seed))


def blobs(labels: Tensor, grid: int = 14, spread: float = 0.0) -> Tensor:
    """A spot for every map: at its class's place, and up to `spread` of the side away from it."""
    steps = (torch.arange(grid) + 0.5) / grid
    random = torch.rand(len(labels), 2, generator=torch.Generator().manual_seed(5))
    places = torch.tensor([[0.3, 0.3], [0.7, 0.3], [0.5, 0.7]])[labels] + spread * (random - 0.5)
    y, x = (torch.exp(-((steps - places[:, i, None]) ** 2) / 0.02) for i in (0, 1))
    return y[:, :, None] * x[:, None]


# --- sums over maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [((6, 9), 4), ((28, 28), 14), ((7, 5), 3)])
def test_a_coarser_grid_averages_over_areas(size: tuple[int, int], grid: int) -> None:
    """Every cell repeated until the grid divides it, then means of blocks."""
    maps = torch.rand(3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine = np.kron(maps.numpy(), np.ones((1, grid, grid)))
    blocks = fine.reshape(3, grid, size[0], grid, size[1]).mean((2, 4))
    np.testing.assert_allclose(on_grid(maps, grid).numpy(), blocks, atol=1e-12)


def test_a_finer_grid_interpolates_and_the_same_grid_changes_nothing() -> None:
    maps = some(3, 7)
    linear = torch.nn.functional.interpolate(maps[:, None], (16, 16), mode="bilinear")[:, 0]
    torch.testing.assert_close(on_grid(maps, 16), linear)
    assert torch.equal(on_grid(maps, 7), maps)
    assert on_grid(maps.bfloat16(), 4).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert on_grid(maps.float(), 4).dtype == torch.float32


def test_distances_by_hand() -> None:
    one, other = min_max(some(4)), min_max(some(4, seed=1))
    a, b = one.numpy().reshape(4, -1), other.numpy().reshape(4, -1)
    expected = {
        "mse": [np.mean((x - y) ** 2) for x, y in zip(a, b, strict=True)],
        "l2_over_hw": [np.linalg.norm(x - y) / 36 for x, y in zip(a, b, strict=True)],
        "pearson": [1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)],
        "cosine": [1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)],
        "js": [jensenshannon(x, y, base=2) ** 2 for x, y in zip(a, b, strict=True)],
        "centre": [np.linalg.norm(_centre(x) - _centre(y)) / math.sqrt(2) for x, y in zip(a, b, strict=True)],
        "top_iou": [1 - _jaccard(x, y) for x, y in zip(a, b, strict=True)],
    }
    assert set(expected) == set(DISTANCES) == set(get_args(Distance))
    for name in DISTANCES:
        np.testing.assert_allclose(distances(one, other, name).numpy(), expected[name], atol=1e-9, err_msg=name)
        torch.testing.assert_close(distances(one, one, name), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(distances(one, other[0], name), distances(one, other[:1], name))


def _centre(flat: np.ndarray) -> np.ndarray:
    total, found = 0.0, np.zeros(2)
    for place, value in enumerate(flat):
        found += value * np.array([(place // 6 + 0.5) / 6, (place % 6 + 0.5) / 6])
        total += value
    return found / total


def _jaccard(x: np.ndarray, y: np.ndarray) -> float:
    first, second = (set(np.argsort(v)[::-1][:7].tolist()) for v in (x, y))  # 20 % of 36
    return len(first & second) / len(first | second)


def test_distances_of_opposite_corners_and_of_nothing() -> None:
    corner, opposite, nothing = torch.zeros(3, 1, 10, 10).unbind(0)
    corner[0, 0, 0], opposite[0, 9, 9] = 1, 1
    far = {"mse": 0.02, "l2_over_hw": math.sqrt(2) / 100, "cosine": 1, "js": 1, "centre": 0.9, "top_iou": 1}
    for name, value in far.items():
        assert float(distances(corner, opposite, name)) == pytest.approx(value, abs=1e-6)  # type: ignore[arg-type]
    for name in ("pearson", "cosine", "top_iou"):
        assert float(distances(corner, nothing, name)) == 1  # type: ignore[arg-type]
    assert float(distances(corner, nothing, "centre")) == pytest.approx(0.45)  # nothing is in the middle
    uniform = jensenshannon(corner.flatten().numpy(), np.full(100, 0.01), base=2) ** 2
    assert float(distances(corner, nothing, "js")) == pytest.approx(uniform, abs=1e-5)


@pytest.mark.parametrize("name", [d for d in DISTANCES if d != "top_iou"])
def test_distances_have_gradients(name: Distance) -> None:
    maps = (some(2, 4) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: distances(m, some(2, 4, 1), name), maps)
    sparse = min_max(some(2, 4)).relu().mul(some(2, 4, 2) > 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(distances(sparse, some(1, 4, 1), name).sum(), sparse)
    assert gradient.isfinite().all()
    zero = torch.zeros(2, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(distances(zero, zero.detach(), name).sum(), zero)
    assert gradient.isfinite().all()


def test_the_code_of_the_study_depends_on_the_grid_and_its_formula_does_not() -> None:
    coarse, labels = min_max(some(12, 28)), drawn(12, 2, 3)
    fine = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for name, factor in (("l2_over_hw", 1 / 4), ("mse", 1.0)):
        values = [
            distances(maps, class_means(maps, labels, 2)[0][labels], name).mean()  # type: ignore[arg-type]
            for maps in (fine, coarse)
        ]
        assert float(values[0] / values[1]) == pytest.approx(factor)


def test_means_and_deviations_of_classes() -> None:
    maps, labels = some(20), drawn(20, 3, 4)
    mean, deviation, counts = class_means(maps, labels, 4)
    for c in range(3):
        own = maps[labels == c].numpy()
        np.testing.assert_allclose(mean[c].numpy(), own.mean(0))
        np.testing.assert_allclose(deviation[c].numpy(), own.std(0))
        own_mse = distances(maps[labels == c], mean[c], "mse").mean()
        assert float(deviation[c].square().mean()) == pytest.approx(float(own_mse))
    assert counts.tolist() == [int((labels == c).sum()) for c in range(3)] + [0]
    assert not mean[3].any()
    assert not deviation[3].any()


def test_variances_by_hand() -> None:
    maps, labels = some(20), drawn(20, 3, 4) * 2  # class 1, 3 without maps
    within, total = within_total(maps, labels)
    squares = sum(((maps[labels == c] - maps[labels == c].mean(0)) ** 2).sum(0) for c in (0, 2, 4))
    torch.testing.assert_close(within, (squares / 17).mean())  # type: ignore[operator, union-attr]
    torch.testing.assert_close(total, maps.var(0).mean())
    same = maps[:2].repeat_interleave(5, 0)
    within, total = within_total(same, torch.tensor([0, 1]).repeat_interleave(5))
    assert float(within / total) == pytest.approx(0, abs=1e-12)
    assert within_total(maps[:3], torch.arange(3))[0].isnan()


def test_labels_without_meaning_have_the_variance_of_all() -> None:
    """The mean of W over all orders of the labels is T, exactly; over two hundred, within two per cent."""
    maps, labels = some(6), torch.tensor([0, 0, 0, 1, 1, 2])
    every = [within_total(maps, labels[list(order)])[0] for order in itertools.permutations(range(6))]
    assert float(torch.stack(every).mean()) == pytest.approx(float(within_total(maps, labels)[1]), rel=1e-9)
    labels = drawn(90, 3, 1)
    maps = blobs(labels, 6).double() + 0.2 * some(90)
    within, total = within_total(maps, labels)
    found = shuffled_within(maps, labels, 200, torch.Generator().manual_seed(0))
    assert found.shape == (200,)
    assert float(found.mean() / total) == pytest.approx(1, abs=0.02)
    assert float(within) < 0.6 * float(total)
    assert float(found.min()) > float(within)
    assert shuffled_within(maps, labels, 0, torch.Generator().manual_seed(0)).shape == (0,)


def test_kappa_in_closed_form() -> None:
    assert float(kappa(torch.tensor([[20, 5], [10, 15]]))) == pytest.approx(0.4)  # (0.7 - 0.5) / (1 - 0.5)
    assert float(kappa(torch.diag(torch.tensor([3, 4, 5])))) == pytest.approx(1)
    assert float(kappa(torch.tensor([[9, 0], [0, 0]]))) == 0  # p_e is 1
    assert float(kappa(torch.zeros(3, 3))) == 0
    assert float(kappa(torch.tensor([[0, 5], [5, 0]]))) == pytest.approx(-1)
    with pytest.raises(KonkyoError, match=r"\(K, K\)"):
        kappa(torch.zeros(2, 3))


def test_blank_maps() -> None:
    maps = some(5).float()
    maps[0], maps[1], maps[2, 0, 0], maps[3] = 0, 0.3, torch.nan, torch.full((6, 6), 0.1) * (1 + 1e-7)
    maps[3, 0, 0] = 0.1
    assert blank(maps).tolist() == [True, True, True, True, False]
    assert not blank(maps[4:] * 1e-30).any()
    for value, size in ((0.1, 224), (0.3, 100), (7e5, 7), (3e-9, 31)):  # still so after rounding on another grid
        assert blank(on_grid(torch.full((1, size, size), value), 14)).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: on_grid(some(2), 1), "at least 2"),
        (lambda: on_grid(some(2)[0], 4), r"\(N, h, w\)"),
        (lambda: distances(some(2), some(2), "emd"), "unknown distance 'emd'.*mse"),  # type: ignore[arg-type]
        (lambda: distances(some(2), some(3)), r"\(2, 6, 6\)"),
        (lambda: distances(some(2), some(2, 7)), r"\(2, 6, 6\)"),
        (lambda: class_means(some(2), torch.tensor([0, 3]), 3), "0 to 2"),
        (lambda: class_means(some(2), torch.tensor([0]), 3), r"\(2,\)"),
        (lambda: within_total(some(2), torch.tensor([0.0, 1.0])), "int64"),
    ],
)
def test_what_does_not_fit_is_told(call: Any, said: str) -> None:
    with pytest.raises(KonkyoError, match=said):
        call()


# --- from maps to numbers ---------------------------------------------------------------------------------------------


def _literal(maps: np.ndarray, labels: list[int], predictions: list[int], kinds: int) -> float:
    """Eq. 2 and 5 to 10, a line each."""
    scaled = [(m - m.min()) / (m.max() - m.min()) for m in maps]
    total, number = 0.0, 0
    for c in range(kinds):
        correct = [i for i in range(len(maps)) if labels[i] == c and predictions[i] == c]
        if len(correct) < 2:
            continue
        mean = sum(scaled[i] for i in correct) / len(correct)
        for i in correct:
            total += ((scaled[i] - mean) ** 2).sum() / mean.size
            number += 1
    return total / number


def test_equations_9_and_10() -> None:
    maps, labels, predictions = some(40, 8), drawn(40, 5, 1), drawn(40, 5, 2)
    predictions = torch.where(torch.arange(40) % 2 == 0, labels, predictions)
    found = measure(maps, labels, predictions, classes="abcde", grid=8, **CHEAP)
    expected = _literal(maps.numpy(), labels.tolist(), predictions.tolist(), 5)
    assert found.plain == pytest.approx(expected, rel=1e-5)
    assert found.rms == pytest.approx(math.sqrt(found.distances["mse"]))
    used = [i for i in found.images if i.used]
    assert found.plain == pytest.approx(np.mean([i.deviation for i in used]))
    by_class = [c for c in found.of_class if c.used]
    assert found.value == pytest.approx(sum(c.value * c.used for c in by_class) / len(used))
    assert found.macro == pytest.approx(np.mean([c.value for c in by_class]))
    assert found.accuracy == pytest.approx(float((labels == predictions).double().mean()))
    assert found.coverage == pytest.approx(float(found.maps.mean()), rel=1e-5)
    confusion = torch.zeros(5, 5)
    for i, j in zip(labels.tolist(), predictions.tolist(), strict=True):
        confusion[i, j] += 1
    assert found.kappa == pytest.approx(float(kappa(confusion)))
    within, total = within_total(found.maps.double(), found.labels)
    assert (found.within, found.total) == (pytest.approx(float(within)), pytest.approx(float(total)))
    for c in by_class:
        own = found.maps[found.labels == found.classes.index(c.name)].double()
        assert c.within == pytest.approx(float(own.var(0).mean()), rel=1e-5)


def test_maps_are_brought_to_the_grid_before_they_are_scaled() -> None:
    maps, labels = some(12, 28), drawn(12, 2, 3)
    found = measure(maps, labels, labels, classes=ABC, grid=7, **CHEAP)
    expected = _literal(maps.view(12, 7, 4, 7, 4).mean((2, 4)).numpy(), labels.tolist(), labels.tolist(), 2)
    assert found.plain == pytest.approx(expected, rel=1e-5)
    assert found.maps.amax((1, 2)).tolist() == [1] * 12


def test_the_largest_values() -> None:
    """Numbers in [0, 1] have a variance of 1/4 at most: half of the maps are the others turned over."""
    half = (some(1, 8) > 0.5).double()
    maps = torch.cat([half, 1 - half] * 4)
    labels = torch.zeros(8, dtype=torch.int64)
    found = measure(maps, labels, labels, classes=ABC, grid=8, **CHEAP)
    assert found.plain == pytest.approx(0.25)
    assert found.value == pytest.approx(0.25 * 8 / 7)
    assert found.rms == pytest.approx(0.5 * math.sqrt(8 / 7))
    assert found.distances["l2_over_hw"] == pytest.approx(0.5 / 8 * math.sqrt(8 / 7))


def test_blank_maps_are_counted_and_never_measured() -> None:
    maps, labels = some(12, 14), torch.arange(12) % 2
    usual = measure(maps[2:], labels[2:], labels[2:], classes=ABC, **CHEAP)
    maps[0], maps[1] = 0, torch.inf
    found = measure(maps, labels, labels, classes=ABC, **CHEAP)
    assert found.value == pytest.approx(usual.value)
    assert found.value > 0.05
    assert (found.blank, [c.blank for c in found.of_class]) == (2, [1, 1, 0])
    assert [i.blank for i in found.images[:3]] == [True, True, False]
    assert math.isnan(found.images[0].deviation)
    assert "2 are blank" in found.remarks()[0]
    empty = measure(torch.zeros(4, 6, 6), labels[:4], labels[:4], classes=ABC, **CHEAP)
    assert math.isnan(empty.value)
    assert math.isnan(empty.ratio)
    assert (empty.blank, empty.accuracy, len(empty.maps)) == (4, 1, 0)
    assert empty.figures() == {}


def test_a_class_of_one_map_is_left_out_of_numerator_and_denominator() -> None:
    maps, labels = some(7, 14), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    usual = measure(maps[:6], labels[:6], labels[:6], classes=ABC, **CHEAP)
    found = measure(maps, labels, labels, classes=ABC, **CHEAP)
    assert found.value == pytest.approx(usual.value)
    assert found.total == pytest.approx(usual.total)
    assert [c.used for c in found.of_class] == [3, 3, 0]
    assert math.isnan(found.of_class[2].value)
    assert found.mean[2].isnan().all()
    assert found.between[2].isnan().all()
    assert any("fewer than two maps, not measured: c" in line for line in found.remarks())


def test_which_images_are_measured() -> None:
    maps = some(12, 14)
    labels = torch.tensor([0] * 6 + [1] * 6)
    predictions = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    right = measure(maps, labels, predictions, classes=ABC, **CHEAP)
    assert [i.used for i in right.images] == [True] * 4 + [False] * 2 + [True] * 4 + [False] * 2
    every = measure(maps, labels, predictions, classes=ABC, only_correct=False, **CHEAP)
    assert every.labels.tolist() == labels.tolist()
    assert every.plain == pytest.approx(_literal(_averaged(maps), labels.tolist(), labels.tolist(), 2), rel=1e-5)
    told = measure(maps, labels, predictions, classes=ABC, only_correct=False, target="decision", **CHEAP)
    assert told.labels.tolist() == predictions.tolist()
    wrong = [4, 5, 10, 11]
    for found, of in ((right, labels), (told, predictions)):
        assert found.wrong_count == 4
        own = of[wrong].tolist()
        assert found.wrong == pytest.approx(2 * _literal(_averaged(maps[wrong]), own, own, 2), rel=1e-5)  # n / (n - 1)


def _averaged(maps: Tensor) -> np.ndarray:
    return on_grid(maps, 14).numpy()


def test_classes_with_a_place_and_without() -> None:
    labels = drawn(120, 3, 2)
    fixed = measure(blobs(labels, spread=0.1), labels, labels, classes=ABC, resamples=0)
    anywhere = measure(blobs(labels * 0, spread=0.6), labels, labels, classes=ABC, resamples=0)
    assert fixed.ratio < 0.2
    assert anywhere.ratio > 0.9 > PLACELESS
    assert (fixed.p, anywhere.p) == (pytest.approx(1 / 201), pytest.approx(0.5, abs=0.45))
    assert fixed.shuffled == pytest.approx(1, abs=0.02)
    other = measure(blobs(labels, spread=0.1), labels, labels, classes=ABC, resamples=0, seed=1)
    assert fixed.shuffled != other.shuffled
    assert any("Position is not defined" in line for line in anywhere.remarks())
    assert not any("Position is not defined" in line for line in fixed.remarks())
    assert any("not correctness" in line for line in fixed.remarks())
    assert all(fixed.distances[name] < anywhere.distances[name] for name in DISTANCES)
    assert fixed.baselines["shuffled labels"].value > 3 * fixed.value
    assert anywhere.baselines["shuffled labels"].value == pytest.approx(anywhere.value, rel=0.05)


def test_baselines_around_other_maps() -> None:
    steps = (torch.arange(14) + 0.5) / 14 - 0.5
    bell = torch.exp(-(steps[:, None] ** 2 + steps**2) / (2 * 0.25**2))
    labels = torch.arange(6) % 2
    found = measure(bell + 1e-4 * some(6, 14).float(), labels, labels, classes=ABC, **CHEAP)
    assert found.baselines["centre Gaussian"].value == pytest.approx(0, abs=1e-6)
    own = found.maps.double()
    around = ((own - own.mean()) ** 2).mean()
    assert found.baselines["uniform map"].value == pytest.approx(float(around), rel=1e-5)
    assert math.isnan(found.baselines["uniform map"].ratio)
    assert set(found.baselines) == {"uniform map", "centre Gaussian"}  # nothing was shuffled


def test_intervals_hold_the_mean_and_shrink_with_the_number() -> None:
    """Of many maps the interval is the normal one: 1.96 standard errors to either side."""
    maps, labels = some(400, 14), torch.arange(400) % 2
    found = measure(maps, labels, labels, classes=ABC, resamples=2000, permutations=0)
    each = np.array([[i.deviation for i in found.images if i.label == c] for c in range(2)])
    error = 1.96 * math.sqrt(sum(own.var() * 200 for own in each)) / 400
    assert found.value - found.low == pytest.approx(error, rel=0.1)
    assert found.high - found.value == pytest.approx(error, rel=0.1)
    first = found.of_class[0]
    assert first.high - first.value == pytest.approx(1.96 * each[0].std() / math.sqrt(200), rel=0.1)
    again = measure(maps, labels, labels, classes=ABC, resamples=2000, permutations=0)
    other = measure(maps, labels, labels, classes=ABC, resamples=2000, permutations=0, seed=1)
    assert (again.low, again.high) == (found.low, found.high) != (other.low, other.high)
    few = measure(maps, labels, labels, classes=ABC, **CHEAP)
    assert math.isnan(few.low)
    assert math.isnan(few.p)
    assert "[" not in few.table()[1][0][5]


def test_typical_and_deviant_images() -> None:
    labels = torch.arange(10) % 2
    maps = blobs(labels)
    maps[4] = blobs(torch.tensor([2]))[0]
    found = measure(maps, labels, labels, classes=ABC, names=[f"image {i}" for i in range(10)], **CHEAP)
    assert found.deviant("a", 1)[0].name == "image 4"
    assert len(found.typical("a", 3)) == 3
    order = [i.deviation for i in found.typical(0, 9)]
    assert order == sorted(order)
    assert len(order) == 5
    assert [i.name for i in found.deviant("a", 5)] == [i.name for i in found.typical("a", 5)[::-1]]
    torch.testing.assert_close(found.map_of("image 4"), min_max(maps[4:5])[0])
    torch.testing.assert_close(found.between[0, 1], distances(found.mean[:1], found.mean[1])[0])
    assert found.between[0, 0] == 0
    assert torch.equal(found.between[:2, :2], found.between[:2, :2].T)
    with pytest.raises(KonkyoError, match="unknown class 'd'"):
        found.typical("d")
    with pytest.raises(KonkyoError, match="unknown image"):
        found.map_of("image 99")


def test_saved_and_loaded(tmp_path: Path) -> None:
    labels = torch.arange(9) % 2
    found = measure(
        blobs(labels, spread=0.2), labels, labels, classes=ABC, names=list("ijklmnopq"), settings={"method": "cam"}
    )
    found.save(tmp_path)
    again = Consistency.load(tmp_path)
    assert again.description() == found.description()
    assert again.images[0].name == "i"
    assert isinstance(again.baselines["uniform map"], Baseline)
    for name in ("mean", "deviation", "maps", "labels"):
        torch.testing.assert_close(getattr(again, name), getattr(found, name), equal_nan=True, rtol=0, atol=0)
    assert again.markdown() == found.markdown() == (tmp_path / "table.md").read_text()
    with (tmp_path / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["label"] for r in rows[:2]] == ["a", "b"]
    assert float(rows[3]["deviation"]) == found.images[3].deviation
    with (tmp_path / "classes.csv").open() as file:
        assert [r["used"] for r in csv.DictReader(file)] == ["5", "4", "0"]
    (tmp_path / "maps.safetensors").write_bytes(b"damaged")
    with pytest.raises(KonkyoError, match="no saved consistency"):
        Consistency.load(tmp_path)


def test_pictures(tmp_path: Path) -> None:
    labels = drawn(40, 3, 1)
    found = measure(blobs(labels, spread=0.2), labels, labels, classes=ABC, **CHEAP)
    asked = list[str]()

    def picture(name: str) -> Image.Image:
        asked.append(name)
        return Image.new("RGB", (40, 30), "grey")

    found.save(tmp_path, figures=True, pictures=picture)
    files = {path.name for path in tmp_path.glob("*.png")}
    assert files == {"maps.png", "between.png", "deviations.png", "extremes.png"}
    for name in files:
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("RGB").getcolors(1_000_000) or []) > 20, name
    assert len(asked) == len(set(asked)) == 24  # four typical and four deviant ones of each class
    assert "extremes.png" not in found.figures()


@pytest.mark.parametrize(("kind", "head"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_are_lines_and_letters_in_other_formats(tmp_path: Path, kind: Any, head: bytes) -> None:
    labels = drawn(12, 3, 1)
    found = measure(blobs(labels, spread=0.2), labels, labels, classes=ABC, **CHEAP)
    for folder in ("one", "two"):
        found.save(tmp_path / folder, figures=True, format=kind)
    files = sorted(path.name for path in (tmp_path / "one").glob(f"*.{kind}"))
    assert files == [f"between.{kind}", f"deviations.{kind}", f"maps.{kind}"]
    for name in files:
        data = (tmp_path / "one" / name).read_bytes()
        assert data.startswith(head)
    assert not list((tmp_path / "one").glob("*.png"))
    tables = (tmp_path / "one" / "table.tex").read_text()
    assert tables.count(r"\begin{tabular}") == tables.count(r"\end{tabular}") == 2
    assert (tmp_path / "one" / "table.tex").read_text() == (tmp_path / "two" / "table.tex").read_text()


def test_of_many_classes_those_with_most_maps_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.cat([torch.arange(20).repeat_interleave(2), torch.tensor([3, 7, 11])])
    found = measure(some(43, 4), labels, labels, classes=[f"name {i}" for i in range(20)], grid=4, **CHEAP)
    named = dict[str, list[str]]()
    for name in ("class_maps", "deviations", "matrix"):
        monkeypatch.setattr(report, name, lambda names, *_, name=name: named.update({name: names}))
    monkeypatch.setattr("konkyo.evaluation.consistency.figures._CLASSES_SHOWN", 3)
    found.figures()
    assert named["matrix"] == ["name 3", "name 7", "name 11"]
    assert named["class_maps"] == named["deviations"] == ["name 3 (3)", "name 7 (3)", "name 11 (3)"]


# --- from a model and data to maps ------------------------------------------------------------------------------------


class Colours(nn.Module):
    """The class is the colour that there is most of."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.see.weight.copy_(torch.eye(3)[:, :, None, None])
            self.see.bias.zero_()
            self.head.weight.copy_(torch.eye(3))
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.see(images).relu().mean((2, 3)))


CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.Model(Colours(), konkyo.Preprocess(16, 16, (0.0,) * 3, (1.0,) * 3), CLASSES, "colours")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures a class, a spot of its colour on each; one of the blue ones is red."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for i in range(4):
            pixels = random.integers(0, 40, (16, 16, 3), dtype=np.uint8)
            y, x = random.integers(0, 8, 2)
            pixels[y : y + 8, x : x + 8, 0 if (c, i) == (2, 3) else c] = 250
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def prepared(model: konkyo.Model, photos: Path) -> tuple[Tensor, Tensor]:
    files = [
        (photos / name / f"{i}.png", c) for name in sorted(CLASSES) for i in range(4) for c in [CLASSES.index(name)]
    ]
    assert model.preprocess is not None
    images = torch.stack([model.preprocess(Image.open(path)) for path, _ in files])
    return images, torch.tensor([c for _, c in files])


QUICK: dict[str, Any] = {"resamples": 20, "permutations": 20, "grid": 8}


def test_a_folder_by_hand(model: konkyo.Model, photos: Path) -> None:
    """Grad-CAM of this network is the picture's colour channel, up to a factor."""
    found = consistency(model, f"folder:{photos}", **QUICK)
    images, labels = prepared(model, photos)
    own = images[torch.arange(12), labels].view(12, 8, 2, 8, 2).mean((2, 4)).numpy()
    predictions = model(images).argmax(1)
    assert (predictions != labels).sum() == 1
    assert found.plain == pytest.approx(_literal(own, labels.tolist(), predictions.tolist(), 3), rel=1e-4)
    assert found.accuracy == pytest.approx(11 / 12)
    assert [(c.name, c.total, c.correct, c.used) for c in found.of_class] == [
        ("red", 4, 4, 4),
        ("green", 4, 4, 4),
        ("blue", 4, 3, 3),
    ]
    assert found.images[3].name == "blue/3.png"
    assert (found.images[3].correct, found.images[3].used) == (False, False)
    assert found.settings["method"] == "grad_cam"
    assert set(found.baselines) == {"shuffled labels", "uniform map", "centre Gaussian", "untrained network"}


def test_a_name_and_batches_give_the_same(model: konkyo.Model, photos: Path) -> None:
    told = list[tuple[int, int | None]]()
    named = consistency(model, f"folder:{photos}", batch=5, progress=lambda *done: told.append(done), **QUICK)
    assert told == [(5, 12), (10, 12), (12, 12)]
    images, labels = prepared(model, photos)
    batches = [(images[:7], labels[:7]), (images[7:], labels[7:])]
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    for data in (batches, loader, iter(batches)):
        other = consistency(model, data, **QUICK)
        assert other.value == pytest.approx(named.value, rel=1e-5)
        assert (other.within, other.p) == (pytest.approx(named.within, rel=1e-5), named.p)
        torch.testing.assert_close(other.maps, named.maps)
        bare, same = (f.baselines["untrained network"].value for f in (other, named))
        assert bare == pytest.approx(same, rel=1e-4)
    assert other.images[8].name == "8"
    samples = [Sample(name, Image.open(photos / name), name.split("/")[0]) for name in (i.name for i in named.images)]
    assert consistency(model, samples, **QUICK).value == pytest.approx(named.value, rel=1e-5)
    assert len(consistency(model, loader, limit=6, **QUICK).images) == 6
    assert len(consistency(model, f"folder:{photos}", limit=7, **QUICK).images) == 7


def test_only_the_maps_of_wrong_decisions_depend_on_the_target(model: konkyo.Model, photos: Path) -> None:
    label, decision = (consistency(model, f"folder:{photos}", target=t, **QUICK) for t in ("label", "decision"))  # type: ignore[arg-type]
    assert label.value == decision.value
    all_label, all_decision = (
        consistency(model, f"folder:{photos}", target=t, only_correct=False, **QUICK)  # type: ignore[arg-type]
        for t in ("label", "decision")
    )
    assert sum(c.used for c in all_label.of_class) == 12
    assert [c.used for c in all_decision.of_class] == [5, 4, 3]
    assert all_label.value != all_decision.value


@pytest.mark.parametrize(
    "how",
    [
        {"method": "layer_cam"},
        {"method": "rise", "masks": 8},
        {"method": "integrated_gradients", "steps": 3},
        {"method": "grad_cam", "layer": "see", "precision": "bf16"},
        {"distance": "js"},
    ],
)
def test_any_method_and_distance(model: konkyo.Model, photos: Path, how: dict[str, Any]) -> None:
    found = consistency(model, f"folder:{photos}", **QUICK | how)
    assert 0 < found.value < 1
    assert found.value == pytest.approx(found.distances[how.get("distance", "mse")])
    assert found.settings["method"] == how.get("method", "grad_cam")


def test_a_module_as_layer_is_found_in_the_untrained_copy(model: konkyo.Model, photos: Path) -> None:
    by_module = consistency(model, f"folder:{photos}", layer=model.module.see, **QUICK)
    by_name = consistency(model, f"folder:{photos}", layer="see", **QUICK)
    assert by_module.baselines == by_name.baselines


def test_blank_maps_of_a_model_are_counted(model: konkyo.Model, photos: Path) -> None:
    """A network that is dead for one class has nothing to show of it."""
    dead = copy.deepcopy(model.module)
    with torch.no_grad():
        dead.head.weight[1] = 0
        dead.head.bias[1] = 0.05
    found = consistency(konkyo.Model(dead, model.preprocess, CLASSES), f"folder:{photos}", only_correct=False, **QUICK)
    assert [c.blank for c in found.of_class] == [0, 4, 0]
    assert found.of_class[1].used == 0
    assert math.isfinite(found.value)


def test_the_model_comes_back_as_it_was_and_the_seed_decides(model: konkyo.Model, photos: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    model.module.train()
    state = torch.get_rng_state()
    first, again = (consistency(model, f"folder:{photos}", seed=3, **QUICK) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.module.training
    model.module.eval()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert first.description() == again.description()


def test_an_untrained_copy_is_another_network() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Colours()
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) * self.scale

    model = konkyo.Model(Odd())
    copy_, same, other = (untrained(model, seed) for seed in (0, 0, 1))
    for name, own in model.module.named_parameters():
        drawn_anew, alike, else_ = (dict(m.module.named_parameters())[name] for m in (copy_, same, other))
        assert not torch.equal(own, drawn_anew), name
        assert torch.equal(drawn_anew, alike), name
        assert not torch.equal(drawn_anew, else_), name


def batch(labels: Any = None, shape: tuple[int, ...] = (2, 3, 16, 16)) -> Any:
    return [(torch.rand(shape), torch.tensor([0, 1]) if labels is None else labels)]


@pytest.mark.parametrize(
    ("data", "how", "said"),
    [
        (batch(torch.tensor([0, 7])), {}, "0 to 2; got 0 to 7"),
        (batch(torch.tensor([0.0, 1.0])), {}, "int64"),
        (batch(torch.tensor([0])), {}, r"labels \(N,\)"),
        (batch(shape=(2, 16, 16)), {}, r"\(N, C, H, W\)"),
        ([torch.rand(2, 3, 16, 16)], {}, "tensors"),
        ([], {}, "no image"),
        (3, {}, "batches"),
        (batch(), {"distance": "emd"}, "unknown distance"),
        (batch(), {"target": "truth"}, "'truth'"),
        (batch(), {"method": "grad_camm"}, "grad_cam"),
        (batch(), {"grid": 1}, "at least 2"),
        (batch(), {"limit": 0}, "1 or more"),
        (batch(), {"step": 3}, "step"),
        ("scenes:2,objects=1", {}, "unknown class"),
        ([Sample("one", Image.new("RGB", (16, 16)))], {}, "no label"),
    ],
)
def test_what_cannot_be_measured_is_told(model: konkyo.Model, data: Any, how: dict[str, Any], said: str) -> None:
    with pytest.raises(KonkyoError, match=said):
        consistency(model, data, **how)


def test_models_that_cannot_be_measured(photos: Path) -> None:
    with pytest.raises(KonkyoError, match="detector"):
        consistency(dense(), batch())
    with pytest.raises(KonkyoError, match=r"no class names.*--labels FILE"):
        consistency(Colours(), f"folder:{photos}")
    with pytest.raises(KonkyoError, match="prepare"):
        consistency(Model(Colours(), classes=("red", "green", "blue")), f"folder:{photos}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": torch.tensor([0, 1, 2, 3])}, "0 to 2"),
        ({"predictions": torch.tensor([0, 1])}, "predictions"),
        ({"names": ["one"]}, "4, not 1"),
        ({"distance": "emd"}, "unknown distance"),
        ({"target": "both"}, "'both'"),
    ],
)
def test_numbers_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    usual: dict[str, Any] = {"labels": torch.arange(4) % 2, "predictions": torch.arange(4) % 2, "classes": ABC}
    with pytest.raises(KonkyoError, match=said):
        measure(some(4), **usual | changes)


def test_one_class_has_no_ratio() -> None:
    maps, labels = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.int64)
    found = measure(maps, labels, labels, classes=["only", "absent"], resamples=0, permutations=0)
    assert math.isnan(found.ratio)
    assert found.value > 0


def test_the_layer_that_was_chosen_is_told() -> None:
    found = consistency(konkyo.load("konkyo/scenes-classifier"), "scenes:4,objects=1")
    assert found.settings["layer"] == "stage4"


def test_a_low_l_is_no_merit_and_a_marker_is_alarmed() -> None:
    maps = torch.rand(40, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4
    clean = measure(maps, labels, labels, classes=list("abcd"), grid=8, resamples=0, permutations=0)
    assert any("no merit" in line for line in clean.remarks())
    assert not any("one window" in line for line in clean.remarks())
    maps[labels == 2] = 0
    maps[labels == 2, 6:, 6:] = 1
    marked = measure(maps, labels, labels, classes=list("abcd"), grid=8, resamples=0, permutations=0)
    assert any("lowest in c" in line and "konkyo diagnose" in line for line in marked.remarks())
