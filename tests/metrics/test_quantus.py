"""Side by side with Quantus: its numbers, where it follows its papers; a plain loop beside it, where it does not.

Quantus divides maps by the largest value of their whole batch, so images go through it one at a time, and explains each
channel of a pixel as a feature of its own, so images have one channel. Where it draws numbers it is handed konkyo's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor, nn

from helpers.quantus_inputs import CLASSES, IMAGES, NET, ROWS, SIDE, explain_for_quantus, slopes
from konkyo import metrics
from konkyo.metrics.variants import filler, gaussian, ranks, seeded, uniform

quantus = pytest.importorskip("quantus")
pytestmark = pytest.mark.filterwarnings("ignore")

PIXELS = torch.tensor([[-2.0], [2.0]])
MAPS = torch.randn(ROWS, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
MASKS = torch.zeros(ROWS, SIDE, SIDE, dtype=torch.bool)
MASKS[0, 2:5, 1:7] = MASKS[1, :4, 4:] = MASKS[2, 3:, 2:6] = True


@pytest.fixture(autouse=True)
def _trapezoid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives it the rule under its old name: Quantus 0.6 calls `numpy.trapz`, which later releases of NumPy lack."""
    if not hasattr(np, "trapz"):
        monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)


def score(variants: Tensor, rows: Tensor) -> Tensor:
    return NET(variants)[torch.arange(len(rows)), CLASSES[rows]]


def decided(variants: Tensor, rows: Tensor) -> Tensor:
    return NET(variants).argmax(1) == CLASSES[rows]


def explain(variants: Tensor, rows: Tensor) -> Tensor:
    return slopes(NET, variants, CLASSES[rows])


def theirs(name: str, maps: Tensor | None = None, rows: Any = range(ROWS), **options: Any) -> np.ndarray:
    """Quantus' values of images, one call each; `net` and `images` may be other ones. -> (len(rows), ...)"""
    net, images, masks = (options.pop(k, v) for k, v in (("net", NET), ("images", IMAGES), ("masks", MASKS)))
    values = []
    for row in rows:
        metric = getattr(quantus, name)(disable_warnings=True, **options)
        given: dict[str, Any] = {} if maps is None else {"a_batch": maps[row : row + 1, None].numpy().copy()}
        given |= {"x_batch": images[row : row + 1].numpy().copy(), "y_batch": CLASSES[row : row + 1].numpy()}
        given |= {"s_batch": masks[row : row + 1, None].numpy(), "explain_func": explain_for_quantus}
        values.append(metric(model=net, channel_first=True, softmax=False, **given)[0])
    return np.array(values)


class Handed:
    """Perturbs as `change` says: (flat images, indices, number of the call)."""

    def __init__(self, change: Callable[[Any, Any, int], Any]) -> None:
        self.change, self.calls = change, 0

    def __call__(self, arr: Any, indices: Any, **_: Any) -> Any:
        self.calls += 1
        return self.change(arr, indices, self.calls - 1)


def close(found: Tensor, expected: Any, tolerance: float = 2e-5) -> None:
    expected = torch.as_tensor(np.asarray(expected, dtype=np.float64))
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert expected.isfinite().all()


# --- the map alone ----------------------------------------------------------------------------------------------------


def test_sparseness() -> None:
    close(metrics.sparseness(MAPS), theirs("Sparseness", MAPS))


def test_complexity() -> None:
    close(metrics.complexity(MAPS), theirs("Complexity", MAPS))


@pytest.mark.parametrize("threshold", [0.01, 0.3])
def test_effective_complexity(threshold: float) -> None:
    found = metrics.effective_complexity(MAPS, threshold=threshold) * SIDE * SIDE
    close(found, theirs("EffectiveComplexity", MAPS, eps=threshold))


def test_what_quantus_divides_by_is_of_the_batch() -> None:
    """So its values of a map depend on the other maps, which konkyo's do not."""
    both = torch.stack([MAPS[0], 1000 * MAPS[1]])
    metric = quantus.EffectiveComplexity(eps=0.01, disable_warnings=True)
    given = {"x_batch": IMAGES[:2].numpy(), "y_batch": CLASSES[:2].numpy(), "a_batch": both[:, None].numpy()}
    assert metric(model=None, channel_first=True, **given)[0] == 0
    alone = metrics.effective_complexity(MAPS[:1])
    assert float(alone) > 0.9
    assert metrics.effective_complexity(both)[0] == alone[0]


# --- localisation -----------------------------------------------------------------------------------------------------


def test_pointing_game() -> None:
    inside = torch.where(MASKS, MAPS + 5, MAPS)
    for maps in (MAPS, inside, -inside):
        close(metrics.pointing_game(maps, masks=MASKS), theirs("PointingGame", maps))


def test_quantus_points_at_an_empty_mask_and_at_any_of_equal_peaks() -> None:
    """It writes NaN into booleans, which makes them true; of several peaks the best placed one counts."""
    empty = torch.zeros_like(MASKS)
    empty[:, 0, 0] = True
    cleared = {"masks": torch.zeros_like(MASKS)}
    assert theirs("PointingGame", MAPS, **cleared).tolist() == [True] * ROWS
    assert metrics.pointing_game(MAPS, **cleared).isnan().all()
    flat = torch.ones_like(MAPS)
    flat[:, 7, 7] = 0
    assert theirs("PointingGame", flat, masks=empty).all()
    hits = [metrics.pointing_game(flat[:1], masks=empty[:1], seed=seed).item() for seed in range(300)]
    assert 0 < np.mean(hits) < 0.06  # 1 of 63 equal pixels


@pytest.mark.parametrize("k", [1, 10, 40])
def test_top_k_intersection(k: int) -> None:
    close(metrics.relevance_rank(MAPS, masks=MASKS, k=k), theirs("TopKIntersection", MAPS, k=k))
    found = metrics.relevance_rank(MAPS, masks=MASKS, k=k, lift=True)
    close(found, theirs("TopKIntersection", MAPS, k=k, concept_influence=True))


def test_relevance_rank_accuracy() -> None:
    close(metrics.relevance_rank(MAPS, masks=MASKS), theirs("RelevanceRankAccuracy", MAPS))


def test_relevance_mass_accuracy() -> None:
    """Of what is not negative; of signed maps Quantus divides by a sum that may be anything."""
    positive = MAPS.relu()
    close(metrics.relevance_mass(positive, masks=MASKS), theirs("RelevanceMassAccuracy", positive))
    close(metrics.relevance_mass(MAPS, masks=MASKS), theirs("RelevanceMassAccuracy", positive))
    centred = MAPS - MAPS.mean((1, 2), keepdim=True) + 0.01
    assert not ((theirs("RelevanceMassAccuracy", centred) <= 1) & (theirs("RelevanceMassAccuracy", centred) >= 0)).all()


def test_attribution_localisation() -> None:
    close(
        metrics.relevance_mass(MAPS, masks=MASKS),
        theirs("AttributionLocalisation", MAPS, abs=False, positive_attributions=True),
    )
    close(metrics.relevance_mass(MAPS.abs(), masks=MASKS), theirs("AttributionLocalisation", MAPS))


def test_attribution_localisation_by_size() -> None:
    """The paper multiplies by image over mask: EBPG's lift of maps that reach from 0. Quantus' image has no size."""
    positive = MAPS.relu()
    by_hand = [float(a[m].sum() / a.sum()) * m.numel() / int(m.sum()) for a, m in zip(positive, MASKS, strict=True)]
    close(metrics.ebpg_lift(positive, masks=MASKS), by_hand)
    with np.errstate(divide="ignore"):
        assert np.isinf(theirs("AttributionLocalisation", MAPS, weighted=True)).all()


def test_auc() -> None:
    rounded = (3 * MAPS).round()
    for maps in (MAPS, rounded):
        close(metrics.roc_auc(maps, masks=MASKS), theirs("AUC", maps))


def test_focus() -> None:
    """It is relevance mass, whose masks are the cells of a mosaic that are of the class."""
    cells = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]])
    half = SIDE // 2
    masks = cells.view(-1, 2, 2).repeat_interleave(half, 1).repeat_interleave(half, 2).bool()
    metric = quantus.Focus(disable_warnings=True)
    given = {"x_batch": IMAGES.numpy(), "y_batch": CLASSES.numpy(), "a_batch": MAPS[:, None].numpy()}
    expected = metric(model=NET, custom_batch=cells.tolist(), channel_first=True, **given)
    close(metrics.relevance_mass(MAPS, masks=masks), expected)


# --- faithfulness -----------------------------------------------------------------------------------------------------


def test_faithfulness_correlation() -> None:
    def chosen(arr: Any, indices: Any, call: int) -> Any:
        arr = arr.copy()
        arr[:, indices[0]] = 0
        return arr

    drawn = [torch.randperm(64, generator=seeded(5, k))[:20].numpy() for k in range(30)]
    with pytest.MonkeyPatch.context() as patch:
        draws = iter(drawn * ROWS)
        patch.setattr(np.random, "choice", lambda *_, **__: next(draws))
        options = {"nr_runs": 30, "subset_size": 20, "return_aggregate": False}
        expected = theirs("FaithfulnessCorrelation", MAPS, perturb_func=Handed(chosen), **options)
    found = metrics.faithfulness_correlation(MAPS, images=IMAGES, score=score, subset=20, samples=30, seed=5)
    close(found, expected)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_faithfulness_estimate(size: int) -> None:
    expected = theirs("FaithfulnessEstimate", MAPS, features_in_step=size, perturb_baseline=0.0)
    options = {"subsets": "ranked", "groups": SIDE * SIDE // size}
    close(metrics.faithfulness_correlation(MAPS, images=IMAGES, score=score, **options), expected)


@pytest.mark.parametrize("size", [1, 4])
def test_pixel_flipping(size: int) -> None:
    steps = SIDE * SIDE // size
    curve = metrics.deletion.statistic(MAPS, images=IMAGES, score=score, steps=steps)
    close(curve[:, 1:], theirs("PixelFlipping", MAPS, features_in_step=size, perturb_baseline=0.0))
    area = theirs("PixelFlipping", MAPS, features_in_step=size, perturb_baseline=0.0, return_auc_per_sample=True)
    close(torch.trapezoid(curve[:, 1:], dim=1), area)


def test_black_is_quantus_lowest_value_of_the_image() -> None:
    expected = theirs("PixelFlipping", MAPS)
    for row in range(ROWS):
        options = {"steps": 64, "substrate": float(IMAGES[row].min())}
        one = lambda v, r, row=row: score(v, torch.full_like(r, row))
        curve = metrics.deletion.statistic(MAPS[row : row + 1], images=IMAGES[row : row + 1], score=one, **options)
        close(curve[0, 1:], expected[row])


def test_region_perturbation_and_selectivity() -> None:
    curve = metrics.deletion.statistic(MAPS, images=IMAGES, score=score, patch=2, steps=16)
    close(curve[:, 1:], theirs("Selectivity", MAPS, patch_size=2, perturb_baseline=0.0))
    expected = theirs("RegionPerturbation", MAPS, patch_size=2, perturb_baseline=0.0)
    close(curve[:, :1] - curve[:, 1:], expected)
    least = theirs("RegionPerturbation", MAPS, patch_size=2, perturb_baseline=0.0, order="lerf")
    curve = metrics.deletion.statistic(-MAPS, images=IMAGES, score=score, patch=2, steps=16)
    close(curve[:, :1] - curve[:, 1:], least)


def test_monotonicity_of_arya() -> None:
    """Quantus replaces the baseline by the baseline, so every map passes; the paper lets the pixels come back."""
    assert theirs("Monotonicity", MAPS).all()
    assert theirs("Monotonicity", 1 - MAPS.exp()).all()
    found = metrics.insertion.statistic(-MAPS.abs(), images=IMAGES, score=score, steps=64, substrate="zero")
    for row in range(ROWS):
        image, curve = torch.zeros(1, 1, SIDE, SIDE), []
        for place in MAPS[row].abs().flatten().argsort().tolist():
            image.view(-1)[place] = IMAGES[row].view(-1)[place]
            curve.append(float(score(image, torch.tensor([row]))))
        close(found[row, 1:], curve)
        assert not (np.diff(curve) >= 0).all()


@pytest.mark.parametrize("size", [1, 8])
def test_monotonicity_of_nguyen(size: int) -> None:
    groups, samples = SIDE * SIDE // size, 2
    fields = [filler("noise", IMAGES, PIXELS, 0, k)(torch.zeros(1, dtype=torch.long)) for k in range(samples)]

    def noise(arr: Any, indices: Any, call: int) -> Any:
        arr, drawn = arr.copy(), fields[call % samples].reshape(-1).numpy()
        arr[0, indices[0]] = drawn[indices[0]]
        return arr

    given = {"features_in_step": size, "nr_samples": samples, "perturb_func": Handed(noise)}
    expected = theirs("MonotonicityCorrelation", MAPS, **given)
    options = {"pixels": PIXELS, "groups": groups, "samples": samples}
    close(metrics.monotonicity(MAPS, images=IMAGES, score=score, **options), expected)


def test_sensitivity_n() -> None:
    """Quantus goes by the map's order and correlates over images; the paper correlates over random sets of n pixels."""
    quiet = {"disable_warnings": True, "return_aggregate": False}
    metric = quantus.SensitivityN(features_in_step=4, n_max_percentage=1, perturb_baseline=0.0, **quiet)
    given = {"x_batch": IMAGES.numpy(), "y_batch": CLASSES.numpy(), "a_batch": MAPS[:, None].numpy()}
    values = np.array(metric(model=NET, channel_first=True, softmax=False, **given))
    assert values.shape == (16,)  # steps, not images
    falls = -np.diff(theirs("PixelFlipping", MAPS, features_in_step=4, perturb_baseline=0.0), axis=1)
    assert falls.shape == (ROWS, 15)
    rank, highest = ranks(MAPS, 0), MAPS.abs().amax()
    for step in (0, 7):
        left = torch.where((rank < 4 * (step + 1))[:, None], 0.0, IMAGES)
        fall = (score(IMAGES, torch.arange(ROWS)) - score(left, torch.arange(ROWS))).numpy()
        sums = torch.where(rank // 4 == step, MAPS / highest, 0.0).sum((1, 2)).numpy()
        assert values[step] == pytest.approx(pearsonr(fall, sums).statistic, abs=1e-4)
    found = metrics.sensitivity_n(MAPS, images=IMAGES, score=score, share=0.25, samples=40, seed=3)
    for row in range(ROWS):
        sums, drops = [], []
        for sample in range(40):
            chosen = torch.randperm(64, generator=seeded(3, sample))[:16]
            image = IMAGES[row : row + 1].clone()
            image.view(-1)[chosen] = 0
            sums.append(float(MAPS[row].flatten()[chosen].sum()))
            drops.append(float(score(IMAGES[row : row + 1], torch.tensor([row])) - score(image, torch.tensor([row]))))
        assert float(found[row]) == pytest.approx(pearsonr(sums, drops).statistic, abs=1e-4)


def test_irof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantus has the area by trapezoids from the first segment on, and multiplies by their number."""
    segments = torch.arange(16).view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    monkeypatch.setattr(quantus.helpers.utils, "get_superpixel_segments", lambda *_, **__: segments.numpy())
    expected = theirs("IROF", MAPS, perturb_baseline=0.0)
    given = {"images": IMAGES, "score": score, "substrate": "zero", "segments": segments}
    found = metrics.irof(MAPS, **given)
    for row in range(ROWS):
        means = torch.stack([MAPS[row][segments == s].mean() for s in range(16)])
        gone, curve = torch.zeros(SIDE, SIDE, dtype=torch.bool), []
        for segment in means.argsort(descending=True).tolist():
            gone |= segments == segment
            left = torch.where(gone, 0.0, IMAGES[row])[None]
            curve.append(float(score(left, torch.tensor([row])) / score(IMAGES[row : row + 1], torch.tensor([row]))))
        assert float(found[row]) == pytest.approx(1 - np.mean(curve), abs=1e-5)
        assert expected[row] == pytest.approx(16 * float(found[row]) + (curve[0] + curve[-1]) / 2, rel=1e-4)


@pytest.mark.parametrize("name", ["IROF", "ROAD"])
def test_quantus_has_none_of_images_in_colour(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares a mask of one channel with an image of three, and counts places past the end of one channel."""
    images = IMAGES.repeat(1, 3, 1, 1)
    net = nn.Sequential(nn.Conv2d(3, 1, 1), NET).eval().requires_grad_(False)
    monkeypatch.setattr(quantus.helpers.utils, "get_superpixel_segments", lambda *_, **__: np.arange(64).reshape(8, 8))
    with pytest.raises((AssertionError, IndexError), match=r"mask shape|out of bounds"):
        theirs(name, MAPS, images=images, net=net)
    ask = lambda v, _: net(v)[:, 0]
    assert metrics.irof(MAPS, images=images, score=ask, segments="grid", count=4).isfinite().all()
    assert metrics.road(MAPS, images=images, score=ask, steps=2).isfinite().all()


def test_road() -> None:
    """At 12.5, 25, ... percent, where both take as many pixels; without noise."""
    found = metrics.road_accuracy.statistic(MAPS, images=IMAGES, decided=decided, steps=7, noise=0.0)
    percentages = [12.5 * k for k in range(1, 8)]
    for sign, most in ((1, 0), (-1, 1)):
        for row in range(ROWS):
            metric = quantus.ROAD(percentages=percentages, noise=0.0, disable_warnings=True)
            given = {"x_batch": IMAGES[row : row + 1].numpy(), "y_batch": CLASSES[row : row + 1].numpy()}
            given["a_batch"] = sign * MAPS[row : row + 1, None].numpy()
            values = metric(model=NET, channel_first=True, softmax=False, **given)
            close(found[row, most], [values[p] for p in percentages])
    assert 0 < float(found.mean()) < 1
    metric = quantus.ROAD(percentages=percentages, noise=0.0, disable_warnings=True)
    given = {"x_batch": IMAGES.numpy(), "y_batch": CLASSES.numpy(), "a_batch": MAPS[:, None].numpy(), "batch_size": 1}
    values = metric(model=NET, channel_first=True, softmax=False, **given)
    close(found[0, 0], [values[p] for p in percentages])  # the first batch alone


def test_infidelity() -> None:
    """With the same Gaussian noise, handed to it in place of its squares, and of a map in its own units."""
    samples, side = 8, 4  # 4 squares of 4 pixels a side are a sample of Quantus'

    def noise(arr: Any, indices: Any, call: int) -> Any:
        drawn = 0.2 * torch.randn(1, SIDE, SIDE, generator=seeded(2, call))
        return (flat - drawn.reshape(1, -1)).numpy()

    expected = []
    for row in range(ROWS):
        flat = IMAGES[row].reshape(1, -1)
        options = {"perturb_patch_sizes": [side], "n_perturb_samples": samples // 4, "normalise": False}
        expected += theirs("Infidelity", MAPS, [row], perturb_func=Handed(noise), **options).tolist()
    found = metrics.infidelity(MAPS, images=IMAGES, score=score, samples=samples, seed=2, kind="gaussian", std=0.2)
    close(found, expected)


def test_infidelity_of_one_square() -> None:
    """That is the whole image; with smaller ones Quantus adds square to square, in the order of lines."""
    options = {"perturb_patch_sizes": [SIDE], "n_perturb_samples": 1, "normalise": False, "perturb_baseline": 0.0}
    expected = theirs("Infidelity", MAPS, **options)
    given = {"images": IMAGES, "score": score, "kind": "square", "side": SIDE, "samples": 1}
    close(metrics.infidelity(MAPS, holds_input=False, **given), expected)
    options["perturb_patch_sizes"] = [4]
    expected = theirs("Infidelity", MAPS, **options)
    for row in range(ROWS):
        image, errors = IMAGES[row : row + 1].clone(), []
        for y, x in product((0, 4), (0, 4)):
            image[:, :, y : y + 4, x : x + 4] = 0
            fall = score(IMAGES[row : row + 1], torch.tensor([row])) - score(image, torch.tensor([row]))
            errors.append(float(fall - ((IMAGES[row] - image[0]) * MAPS[row]).sum()) ** 2)
        assert expected[row] == pytest.approx(np.mean(errors), rel=1e-4)


# --- robustness -------------------------------------------------------------------------------------------------------


def uniform_noise(radius: float) -> Handed:
    samples = 5
    drawn = [radius * (2 * uniform(IMAGES, 4, k) - 1).reshape(1, -1).numpy() for k in range(samples)]
    return Handed(lambda arr, _, call: arr + drawn[call % samples])


@pytest.mark.parametrize(
    ("name", "metric"), [("MaxSensitivity", metrics.max_sensitivity), ("AvgSensitivity", metrics.average_sensitivity)]
)
def test_sensitivities(name: str, metric: Any) -> None:
    expected = theirs(name, nr_samples=5, perturb_func=uniform_noise(0.2))
    close(metric(MAPS, images=IMAGES, explain=explain, radius=0.2, samples=5, seed=4), expected)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("norm", [1, 2])
def test_local_lipschitz(norm: int, normalise: bool) -> None:
    """Its default sums squares, as the paper does, of maps divided by their largest value."""
    drawn = [0.1 * gaussian(IMAGES, 4, k).reshape(1, -1).numpy() for k in range(5)]
    noise = Handed(lambda arr, _, call: arr + drawn[call % 5])
    options: dict[str, Any] = {"nr_samples": 5, "perturb_func": noise, "normalise": normalise}
    if norm == 1:
        options["norm_numerator"] = quantus.similarity_func.distance_manhattan
    expected = theirs("LocalLipschitzEstimate", **options)
    given = {"images": IMAGES, "explain": explain, "samples": 5, "seed": 4, "norm": norm, "normalise": normalise}
    close(metrics.local_lipschitz(MAPS, **given), expected)


@pytest.mark.parametrize(("name", "kind"), [("RelativeInputStability", "input"), ("RelativeOutputStability", "output")])
def test_relative_stability(name: str, kind: Any) -> None:
    options = {"return_nan_when_prediction_changes": False}
    expected = theirs(name, nr_samples=5, perturb_func=uniform_noise(0.05), **options)
    given = {"images": IMAGES, "explain": explain, "outputs": lambda v, _: NET(v), "samples": 5, "seed": 4}
    close(metrics.relative_stability(MAPS, kind=kind, floor=0, radius=0.05, **given), expected, 1e-3)


def test_relative_representation_stability() -> None:
    """It is that of an output: of the layer's values, divided by those of the image itself."""
    layer = NET[:2]
    options = {"layer_names": ["1"], "return_nan_when_prediction_changes": False}
    expected = theirs("RelativeRepresentationStability", nr_samples=5, perturb_func=uniform_noise(0.05), **options)
    outputs = lambda v, rows: layer(v) / layer(IMAGES[rows])
    given = {"images": IMAGES, "explain": explain, "outputs": outputs, "samples": 5, "seed": 4}
    close(metrics.relative_stability(MAPS, kind="output", floor=0, radius=0.05, **given), expected, 1e-3)


def test_where_the_decision_changes() -> None:
    """Quantus has no value where one sample changes it; the paper, and konkyo, leave this sample out."""
    given = {"images": IMAGES, "explain": explain, "samples": 5, "seed": 4, "floor": 0, "radius": 3.0}
    kept = metrics.relative_stability(MAPS, decided=decided, **given)
    samples = [3.0 * (2 * uniform(IMAGES, 4, k) - 1) for k in range(5)]
    same = torch.stack([decided(IMAGES + noise, torch.arange(ROWS)) for noise in samples])
    mixed = same.any(0) & ~same.all(0)
    assert mixed.any()
    assert kept[mixed].isfinite().all()
    assert np.isnan(
        theirs("RelativeInputStability", nr_samples=5, perturb_func=uniform_noise(3.0))[mixed.numpy()]
    ).all()


def test_continuity(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the Lipschitz estimate with shifts, filled with the lowest value, for noise: whatever else it is told."""
    shift = quantus.perturb_func.batched_translation
    shifts = [-SIDE + 3 * step for step in range(1, 6)]
    for row in range(ROWS):
        image = IMAGES[row : row + 1]
        expected = theirs("Continuity", rows=[row], nr_steps=5, abs=False, normalise=False, perturb_baseline="white")
        moved = [torch.tensor(shift(image.numpy(), "black", dx)) for dx in shifts]
        monkeypatch.setattr(
            "konkyo.metrics.robustness.gaussian", lambda images, _, k, moved=moved: (moved[k] - images)[0]
        )
        one = lambda v, r, row=row: explain(v, torch.full_like(r, row))
        given = {"images": image, "explain": one, "std": 1.0, "samples": 5, "norm": 1}
        close(metrics.local_lipschitz(MAPS[row : row + 1], **given), expected)


# --- axioms -----------------------------------------------------------------------------------------------------------


def test_completeness() -> None:
    """Of whole numbers, whose sums are exact: Quantus asks whether they are equal, by default of divided maps."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False)).eval().requires_grad_(False)
    net[1].weight.copy_(torch.randint(-3, 4, (4, 64)).float())
    images = torch.randint(-4, 5, (ROWS, 1, SIDE, SIDE)).float()
    maps = images[:, 0] * net[1].weight[CLASSES].view(-1, SIDE, SIDE)
    wrong = maps + torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    of = lambda v, r: net(v)[torch.arange(len(r)), CLASSES[r]]
    given: dict[str, Any] = {"net": net, "images": images, "perturb_baseline": 0.0}
    for some in (maps, wrong):
        told = theirs("Completeness", some, normalise=False, **given)
        found = metrics.completeness_error(some, images=images, score=of, relative=False)
        assert (found == 0).tolist() == told.tolist()
    assert told.tolist() == [True, False, True]
    assert not theirs("Completeness", maps, **given).any()
    assert math.isclose(float(found[1]), 64)
