"""Games of segments against brute force, closed forms, scikit-learn, and the libraries in which they are known."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.closeness import close
from helpers.detectors import dense, noise
from helpers.formulas import references
from helpers.networks import SmallResNet, images, seeded
from konkyo.utils.tensors import blurred

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of random weights some maps say little

GAMES = ["feature_ablation", "lime", "kernel_shap", "shapley_sampling"]
SHAPLEY = ["kernel_shap", "shapley_sampling"]
CELLS = (2, 3)


class Game(nn.Module):
    """Any function of how much of each of six cells of a picture of ones is shown; classes: it, and twice it."""

    def __init__(self, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        shown = x.mean(1).unflatten(1, (2, 4)).unflatten(3, (3, 4)).mean((2, 4)).flatten(1)
        value = self.value(shown)
        return torch.stack([value, 2 * value, value * 0], 1)


def multilinear(z: Tensor) -> Tensor:
    """Players 0 and 1 are alike, 5 counts for nothing, 2 and 3 only together, 4 alone."""
    return 0.3 + z[:, 0] + z[:, 1] - 2 * z[:, 0] * z[:, 1] * z[:, 2] + 1.5 * z[:, 2] * z[:, 3] - 0.7 * z[:, 4]


def shapley_by_hand(value: Callable[[Tensor], Tensor], d: int = 6) -> Tensor:
    """The mean over all d! orders of what each player adds."""
    phi = torch.zeros(d, dtype=torch.float64)
    for order in itertools.permutations(range(d)):
        z = torch.zeros(d + 1, d, dtype=torch.float64)
        for place, player in enumerate(order):
            z[place + 1 :, player] = 1
        phi[list(order)] += value(z).diff()
    return phi / math.factorial(d)


def played(value: Callable[[Tensor], Tensor], method: str, **options: Any) -> Tensor:
    """The values of the six players (6,), of class 0's logit unless `target` says otherwise."""
    options = {"target": konkyo.ClassTarget(0), "segments": "grid", "count": CELLS, "hide": "zero", **options}
    x = torch.ones(1, 3, 8, 12, dtype=torch.float64)
    maps = konkyo.explain(Game(value), x, method=method, **options).signed
    assert maps.shape == (1, 8, 12)
    cells = maps[0].unflatten(0, (2, 4)).unflatten(2, (3, 4)).movedim(1, 2).flatten(2).flatten(0, 1)
    assert (cells == cells[:, :1]).all()
    return cells[:, 0].double()


@contextmanager
def watched(network: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """All images that go into the network, and what it makes of them."""
    inside, outside = list[Tensor](), list[Tensor]()

    def keep(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inside.extend(arguments[0].detach().clone())
        outside.extend(output.detach().clone())

    handle = network.register_forward_hook(keep)
    try:
        yield inside, outside
    finally:
        handle.remove()


def coalitions(x: Tensor, segments: Tensor, variants: list[Tensor]) -> Tensor:
    """Which segments the variants of an image show (V, d)."""
    kept = torch.stack([(one == x).all(0) for one in variants])
    return torch.stack([kept[:, segments == g].all(1) for g in range(int(segments.max()) + 1)], 1).double()


# --- small games -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SHAPLEY)
def test_shapley_values_of_all_coalitions_and_of_all_orders(method: str) -> None:
    expected = shapley_by_hand(multilinear)
    assert expected[0] == pytest.approx(1 - 2 / 3)
    if method == "kernel_shap":  # 62 coalitions: all of them
        found = played(multilinear, method, samples=62)
        close(found, expected, 1e-6)
        assert abs(found[5]) < 1e-6
        assert not torch.allclose(played(multilinear, method, samples=61), expected, atol=1e-3)
    else:
        found = played(multilinear, method, permutations=4000)
        torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
        assert found[5] == 0


@pytest.mark.parametrize("method", SHAPLEY)
@pytest.mark.parametrize("amount", [1, 2, 3, 7])
def test_the_sum_is_what_all_segments_add_however_few_coalitions_ran(method: str, amount: int) -> None:
    options = {"samples": amount} if method == "kernel_shap" else {"permutations": amount}
    expected = multilinear(torch.ones(1, 6).double()) - multilinear(torch.zeros(1, 6).double())
    close(played(multilinear, method, **options).sum(), expected[0])
    close(played(multilinear, method, target=konkyo.ClassTarget(1), **options).sum(), 2 * expected[0])


@pytest.mark.parametrize("method", GAMES)
def test_an_additive_game_gives_every_player_its_own(method: str) -> None:
    weights = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.25, -0.1]).double()
    additive = lambda z: z @ weights + 3.0
    options = {
        "lime": {"samples": 40, "ridge": 0.0},
        "kernel_shap": {"samples": 14},
        "shapley_sampling": {"permutations": 1},
    }
    close(played(additive, method, **options.get(method, {})), weights, 1e-6)


def test_a_permutation_and_its_reverse_halve_what_two_players_do_together() -> None:
    found = played(lambda z: z[:, 1] * z[:, 4], "shapley_sampling", permutations=2)
    close(found, torch.tensor([0, 0.5, 0, 0, 0.5, 0]), 1e-6)
    alone = played(lambda z: z[:, 1] * z[:, 4], "shapley_sampling", permutations=1)
    assert sorted(alone.tolist()) == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("budget", [None, 2 + 5 * 7])
def test_shapley_sampling_tells_how_far_its_values_may_be_off(budget: int | None) -> None:
    """Of three players who count together alone, an order and its reverse give 1/2 to all but the one between."""
    options = {"segments": "grid", "count": CELLS, "hide": "zero", "target": konkyo.ClassTarget(0)}
    game = Game(lambda z: z[:, 1] * z[:, 2] * z[:, 5])
    x = torch.ones(1, 3, 8, 12, dtype=torch.float64)
    found = konkyo.explain(game, x, method="shapley_sampling", permutations=20, budget=budget, **options)
    pairs = 10 if budget is None else 3
    phi = played(game.value, "shapley_sampling", permutations=2 * pairs)
    share = 2 * phi[[1, 2, 5]]
    assert 0 < share.min() < share.max()
    errors = (pairs / (pairs - 1) * share * (1 - share) / 4 / pairs).sqrt()
    assert float(found.notes["standard_error"]) == pytest.approx(float(errors.max()), abs=1e-6)


@pytest.mark.parametrize(("permutations", "expected"), [(1, math.nan), (3, math.nan), (4, 0.0)])
def test_two_pairs_of_orders_are_needed_to_see_a_spread(permutations: int, expected: float) -> None:
    options = {"segments": "grid", "count": CELLS, "hide": "zero", "target": konkyo.ClassTarget(0)}
    game = Game(lambda z: z[:, 1] * z[:, 4])  # a pair of orders is exact
    x = torch.ones(1, 3, 8, 12, dtype=torch.float64)
    found = konkyo.explain(game, x, method="shapley_sampling", permutations=permutations, **options)
    assert float(found.notes["standard_error"]) == pytest.approx(expected, nan_ok=True)


def test_draws_of_kernel_shap_come_near_the_values_and_with_more_of_them_nearer() -> None:
    torch.manual_seed(4)
    weights, pairs = torch.randn(12).double(), 0.3 * torch.randn(12, 12).double()
    value = lambda z: z @ weights + ((z @ pairs) * z).sum(1)
    expected = weights + pairs.diagonal() + (pairs + pairs.T - 2 * pairs.diagonal().diag()).sum(1) / 2

    class Twelve(Game):
        def forward(self, x: Tensor) -> Tensor:
            shown = x.mean(1).unflatten(1, (3, 2)).unflatten(3, (4, 2)).mean((2, 4)).flatten(1)
            return torch.stack([self.value(shown), self.value(shown) * 0], 1)

    def error(samples: int) -> float:
        off = []
        for seed in range(6):
            x = torch.ones(1, 3, 6, 8, dtype=torch.float64)
            maps = konkyo.explain(
                Twelve(lambda z: value(z) + (z[:, 0] * z[:, 3] * z[:, 7] * 5)), x, method="kernel_shap", hide="zero",
                samples=samples, target=0, segments="grid", count=(3, 4), seed=seed,
            ).signed  # fmt: skip
            found = maps[0, ::2, ::2].flatten().double()
            third = torch.zeros(12).double().index_fill(0, torch.tensor([0, 3, 7]), 5 / 3)
            off.append((found - expected - third).abs().max())
        return float(torch.stack(off).mean())

    assert error(800) < 0.7 * error(60)
    assert error(800) < 0.4


def test_feature_ablation_hides_each_alone() -> None:
    expected = torch.tensor([-1.0, -1.0, -0.5, 1.5, -0.7, 0.0])
    close(played(multilinear, "feature_ablation"), expected, 1e-6)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", GAMES)
def test_games_of_one_and_of_two_players(method: str, count: int) -> None:
    value = lambda z: z[:, 0] * z[:, 3] + z[:, 5]
    found = played(value, method, count=(count, 1), **({"ridge": 0.0} if method == "lime" else {}))
    top, bottom = float(found[0]), float(found[5])
    if count == 1:
        assert top == pytest.approx(2, abs=1e-6)
    elif method == "feature_ablation":
        assert (top, bottom) == pytest.approx((1, 2), abs=1e-6)
    elif method != "lime":
        assert (top, bottom) == pytest.approx((0.5, 1.5), abs=1e-6)


# --- peers -----------------------------------------------------------------------------------------------------------


def lime_case(budget: int | None = None) -> tuple[Tensor, Tensor, nn.Module, Tensor, Tensor, Tensor]:
    """(image, segments, network, our coefficients of class 2, coalitions that ran, probabilities)"""
    network, x = seeded(SmallResNet()), images(1)
    segments = torch.arange(32 * 40).view(32, 40) // 157 + torch.arange(40) // 30
    konkyo.explain(network, x, method="lime", target=2, segments=segments, samples=2)
    with watched(network) as (inside, outside):
        found = konkyo.explain(network, x, method="lime", target=2, segments=segments, samples=60, budget=budget)
    ran = budget or 60
    assert len(inside) in (ran + 1, ran + 2)  # the image itself comes first
    variants, outputs = inside[-ran:], torch.stack(outside[-ran:])
    places = [(segments == g).nonzero()[0] for g in range(int(segments.max()) + 1)]
    ours = torch.stack([found.signed[0][tuple(place)] for place in places])
    LIME_FITS[budget] = float(found.notes["r2"])
    return x[0], segments, network, ours, coalitions(x[0], segments, variants), outputs.softmax(1)


LIME_FITS: dict[int | None, float] = {}
"""What the last explanation of `lime_case` says of its fit."""


@pytest.mark.parametrize("budget", [None, 25])
def test_lime_is_a_ridge_of_scikit_learn(budget: int | None) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import pairwise_distances

    _, _, _, ours, z, probabilities = lime_case(budget)
    assert z[0].all()
    assert 0.35 < z[1:].mean() < 0.65
    distances = pairwise_distances(z, z[:1], metric="cosine").ravel()
    near = np.sqrt(np.exp(-(distances**2) / 0.25**2))
    model = Ridge(alpha=1.0).fit(z.numpy(), probabilities[:, 2].numpy(), sample_weight=near)
    close(ours, torch.from_numpy(model.coef_))
    assert LIME_FITS[budget] == pytest.approx(model.score(z.numpy(), probabilities[:, 2].numpy(), near), abs=1e-4)


def test_a_score_that_no_segment_changes_is_no_map() -> None:
    """Rounding noise must not become a picture."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)
    )
    torch.nn.init.zeros_(network[-1].weight)
    with pytest.warns(konkyo.KonkyoWarning):
        found = konkyo.explain(
            network.eval(), torch.rand(1, 3, 12, 12), method="lime", target=1, segments="grid", count=9
        )
    assert not found.maps.any()
    assert found.notes["r2"].isnan().all()


def test_lime_of_its_authors_on_the_same_segments_and_masks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lime import lime_image

    x, segments, network, ours, z, _ = lime_case()
    explainer = lime_image.LimeImageExplainer(random_state=0)

    class Recorded:
        def randint(self, *_: Any) -> Any:
            return z.numpy().astype(int).flatten()

    explainer.random_state = Recorded()

    def classify(pictures: Any) -> Any:
        with torch.no_grad():
            return network(torch.from_numpy(pictures).movedim(-1, 1)).softmax(1).numpy()

    theirs = explainer.explain_instance(
        x.movedim(0, -1).numpy(),
        classify,
        labels=(2,),
        top_labels=None,
        num_samples=60,
        random_seed=0,
        segmentation_fn=lambda _: segments.numpy(),
    )
    expected = torch.tensor([weight for _, weight in sorted(theirs.local_exp[2])])
    close(ours, expected)


@pytest.mark.parametrize(("budget", "kinds"), [(2, 1), (4, 2), (6, 4)])
def test_kernel_shap_of_too_few_coalitions_favours_no_segment(budget: int, kinds: int) -> None:
    """Segments that were always shown together get the same; so where only both ends ran, all do."""
    phi = played(multilinear, "kernel_shap", budget=budget)
    assert len(phi.float().mul(1e4).round().unique()) <= kinds
    close(phi.sum(), shapley_by_hand(multilinear).sum())


def test_kernel_shap_of_shap() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import shap

        value = lambda z: multilinear(torch.from_numpy(z)).numpy()
        theirs = shap.KernelExplainer(value, np.zeros((1, 6))).shap_values(
            np.ones((1, 6)), nsamples=2000, l1_reg=False, silent=True
        )
    close(played(multilinear, "kernel_shap"), torch.from_numpy(theirs[0]), 1e-5)


def test_feature_ablation_and_shapley_values_of_captum() -> None:
    from captum.attr import FeatureAblation, ShapleyValues

    network, x = seeded(SmallResNet()), images(2)
    own = torch.arange(4).view(2, 2).repeat_interleave(16, 0).repeat_interleave(20, 1)
    targets = [konkyo.ClassTarget(3), konkyo.ClassTarget(0)]
    run = lambda method, **o: (
        konkyo.explain(network, x, method=method, target=targets, segments=own, hide=0.2, **o).signed
    )
    theirs = FeatureAblation(network).attribute(x, 0.2, target=[3, 0], feature_mask=own[None, None])
    close(run("feature_ablation"), theirs[:, 0])
    theirs = ShapleyValues(network).attribute(x, 0.2, target=[3, 0], feature_mask=own[None, None])
    close(run("kernel_shap"), theirs[:, 0])


def test_feature_ablation_by_a_grid_is_occlusion_by_its_cells() -> None:
    network, x = seeded(SmallResNet()), images(2)
    cells = konkyo.explain(network, x, method="feature_ablation", target=1, segments="grid", count=(4, 5), hide="zero")
    windows = konkyo.explain(network, x, method="occlusion", target=1, window=8, stride=8)
    close(cells.signed, windows.signed)


# --- what is hidden, and how the map is made -------------------------------------------------------------------------

MODEL_MEAN, MODEL_STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.5)


@pytest.mark.parametrize("hide", ["mean", "zero", "black", "blur", -0.3, 2])
def test_what_hidden_segments_show(hide: Any) -> None:
    network, x = seeded(SmallResNet()), images(1)
    model = konkyo.Model(network, preprocess=konkyo.Preprocess(mean=MODEL_MEAN, std=MODEL_STD))
    own = torch.arange(2).view(1, 2).repeat_interleave(32, 0).repeat_interleave(20, 1)
    konkyo.explain(model, x, method="feature_ablation", segments=own)
    with watched(network) as (inside, _):
        konkyo.explain(model, x, method="feature_ablation", target=1, segments=own, hide=hide)
    shown = inside[2]  # the image, all shown, without the left half
    assert torch.equal(shown[..., 20:], x[0][..., 20:])
    left = x[0][..., :20]
    expected = {
        "mean": lambda: left.mean((1, 2), keepdim=True).expand_as(left),
        "zero": lambda: left * 0,
        "black": lambda: (-torch.tensor(MODEL_MEAN) / torch.tensor(MODEL_STD)).view(3, 1, 1).expand_as(left),
        "blur": lambda: blurred(x, 2.5)[0][..., :20],
    }.get(hide, lambda: torch.full_like(left, float(hide)))()
    torch.testing.assert_close(shown[..., :20], expected.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", GAMES)
def test_values_spread_over_pixels_sum_to_the_sum_of_the_segments(method: str) -> None:
    network, x = seeded(SmallResNet()), images(2)
    options = {"samples": 20} if method in ("lime", "kernel_shap") else {}
    own = (torch.arange(32 * 40).view(32, 40) // 300).clamp_max(3)
    run = lambda spread: konkyo.explain(
        network, x, method=method, target=1, segments=own, spread=spread, **options
    ).signed.double()
    whole, spread = run(False), run(True)
    sizes = own.flatten().bincount()[own]
    close(spread * sizes, whole)
    if method in SHAPLEY:
        hidden = torch.stack([torch.stack([x[i, :, own == g].mean(1) for g in range(4)], 1)[:, own] for i in range(2)])
        close(spread.sum((1, 2)), (network(x) - network(hidden))[:, 1].detach())


@pytest.mark.parametrize("method", GAMES)
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_images_of_other_numbers_of_segments_and_other_classes_in_one_batch(kind: str, method: str) -> None:
    """Each as if alone; classes of one image share its forwards."""
    x = images(2)
    network = seeded(SmallResNet(deep_head=True)) if kind == "resnet" else references("vit", x[:1], 0)[0]
    own = torch.stack([torch.arange(32)[:, None].expand(32, 40) // 7, torch.arange(40).expand(32, 40) // 20])
    options: dict[str, Any] = {"lime": {"samples": 12}, "kernel_shap": {"samples": 30}}.get(method, {})
    run = lambda x, target, own: (
        konkyo.explain(network, x, method=method, target=target, segments=own, **options).signed
    )
    run(x, 0, own)
    with watched(network) as (inside, _):
        together = run(x, konkyo.Each(3, 0), own)
    assert len(inside) == 2 + {
        "feature_ablation": 6 + 3, "lime": 24, "kernel_shap": 32 + 4, "shapley_sampling": (2 + 40) + (2 + 10)
    }[method]  # fmt: skip
    for row, (image, label) in enumerate(itertools.product(range(2), (3, 0))):
        close(together[row], run(x[image : image + 1], label, own[image])[0])
    assert not torch.allclose(together[0], together[1])


def test_detections() -> None:
    """Those of one image share its forwards; each is found again in what the detector makes of the changed image."""
    model, x = dense(), noise()
    network = model.__call__
    own = torch.arange(24 * 32).view(24, 32) // 200
    found = konkyo.explain(
        model, x, method="feature_ablation", target=konkyo.Detections(threshold=0.0, top=3), segments=own, hide="zero"
    )
    for row, target in enumerate(found.targets):
        whole = target(network(x))
        expected = torch.zeros(24, 32).double()
        for g in range(4):
            expected[own == g] = (whole - target(network(torch.where(own == g, 0, x)))).detach()
        close(found.signed[row], expected)
    sums = konkyo.explain(
        model,
        x,
        method="kernel_shap",
        target=konkyo.Detections(threshold=0.0, top=3),
        segments=own,
        hide="zero",
        spread=True,
    )
    expected = torch.cat([target(network(x)) - target(network(x * 0)) for target in sums.targets])
    close(sums.signed.sum((1, 2)), expected.detach())


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2, 3, 9, 33])
def test_a_budget_of_kernel_shap_keeps_the_sum(budget: int) -> None:
    expected = multilinear(torch.ones(1, 6).double()) - multilinear(torch.zeros(1, 6).double())
    close(played(multilinear, "kernel_shap", budget=budget).sum(), expected[0])
    if budget == 2:
        assert played(multilinear, "kernel_shap", budget=1).abs().max() == 0


def test_a_budget_of_shapley_sampling_averages_the_orders_that_were_completed() -> None:
    whole = lambda permutations: played(multilinear, "shapley_sampling", permutations=permutations)
    close(played(multilinear, "shapley_sampling", permutations=10, budget=2 + 2 * 5 + 4), whole(2))
    assert played(multilinear, "shapley_sampling", permutations=10, budget=6).abs().max() == 0


def test_a_budget_of_feature_ablation_goes_to_the_first_segments() -> None:
    full = played(multilinear, "feature_ablation")
    found = played(multilinear, "feature_ablation", budget=4)
    close(found[:3], full[:3])
    assert found[3:].abs().max() == 0


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lime", {"samples": 0}, "samples >= 1"),
        ("lime", {"width": 0.0}, "width > 0"),
        ("lime", {"ridge": -1.0}, "ridge >= 0"),
        ("kernel_shap", {"samples": 0}, "samples >= 1"),
        ("shapley_sampling", {"permutations": 0}, "permutations >= 1"),
        ("kernel_shap", {"hide": "white noise"}, "unknown way to hide segments"),
        ("lime", {"hide": float("nan")}, "unknown way to hide segments"),
        ("feature_ablation", {"segments": "squares"}, "unknown kind of segments 'squares'"),
        ("feature_ablation", {"count": 0}, "count"),
    ],
)
def test_bad_options_are_told(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(seeded(SmallResNet()), images(1), method=method, target=1, **options)
