"""Integrated gradients and their relatives: rules, baselines, sums, and the formulas taken at their word."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.closeness import close
from helpers.networks import Attention, SmallResNet, images, seeded
from konkyo.engine.path import QuadratureRule, quadrature
from konkyo.utils.tensors import blurred

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # a map of zeros is one of them

RULES: tuple[QuadratureRule, ...] = ("right", "left", "midpoint", "trapezoid", "gauss")
DEGREES = {"right": 0, "left": 0, "midpoint": 1, "trapezoid": 1}
PATHS = ("integrated_gradients", "gradient_shap", "blur_ig", "guided_ig")


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Power(nn.Module):
    """sum of w x^degree: its gradient has the degree below."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree
        self.head = nn.Linear(3 * 8 * 10, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x**self.degree).flatten(1))


def small(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 10, dtype=torch.float64)


def linear() -> tuple[nn.Module, Tensor]:
    network = seeded(Linear()).double()
    return network, network.head.weight[1].detach().view(3, 8, 10)


def explain(network: nn.Module, x: Tensor, method: str, **options: Any) -> konkyo.Explanation:
    return konkyo.explain(network, x, method=method, target=1, **options)


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_rules_are_exact_up_to_their_degree(rule: QuadratureRule, steps: int) -> None:
    nodes, weights = quadrature(rule, steps)
    assert len(nodes) == steps + (rule == "trapezoid")
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert (nodes.diff() > 0).all()
    degree = 2 * steps - 1 if rule == "gauss" else DEGREES[rule]
    for power in range(degree + 1):
        assert float((weights * nodes**power).sum()) == pytest.approx(1 / (power + 1), abs=1e-12)
    above = float((weights * nodes ** (degree + 1)).sum())
    assert steps > 5 or abs(above - 1 / (degree + 2)) > 1e-7


def test_the_nodes_of_gauss_are_numpys() -> None:
    for steps in (1, 3, 50):
        places, weights = np.polynomial.legendre.leggauss(steps)
        found = quadrature("gauss", steps)
        torch.testing.assert_close(found[0], torch.as_tensor((1 + places) / 2), rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1], torch.as_tensor(weights / 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [2, 4])
def test_gauss_integrates_polynomials_exactly(degree: int) -> None:
    network, x = seeded(Power(degree)).double(), small()
    weight = network.head.weight[1].detach().view(3, 8, 10)
    found = explain(network, x, "integrated_gradients", rule="gauss", steps=2, baseline=0.5)
    torch.testing.assert_close(found.maps.double(), (weight * (x**degree - 0.5**degree)).sum(1), rtol=1e-5, atol=1e-6)
    assert found.notes["gap"].abs().max() < 1e-5


def test_rules_of_captum() -> None:
    """Not its trapezoid, whose nodes leave the ends of the way out."""
    from captum import attr as captum

    network, x = seeded(SmallResNet()).double(), images(2).double()
    ig = captum.IntegratedGradients(network)
    for rule, kind in (("gauss", "gausslegendre"), ("left", "riemann_left"), ("right", "riemann_right")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = ig.attribute(x, baselines=0.3, target=1, n_steps=6, method=kind).sum(1)
        found = explain(network, x, "integrated_gradients", rule=rule, steps=6, baseline=0.3)
        torch.testing.assert_close(found.maps.double(), theirs.detach(), rtol=1e-4, atol=1e-5)


# --- baselines and sums -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [SmallResNet, Attention])
def test_the_sum_is_what_the_image_adds(network: Callable[[], nn.Module]) -> None:
    model, x = seeded(network()), images(2)
    for baseline in (0.2, "black", "mean", ["blur", "noise"]):
        found = explain(model, x, "integrated_gradients", rule="midpoint", steps=60, baseline=baseline)
        notes = found.notes
        added = found.scores - notes["baseline_score"]
        torch.testing.assert_close(found.maps.flatten(1).sum(1), notes["sum"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(notes["gap"], notes["sum"] - added, rtol=1e-4, atol=1e-4)
        assert (notes["gap"].abs() < 0.05 * added.abs().amax() + 0.02).all()
    with torch.no_grad():
        noted = explain(model, x, "integrated_gradients", steps=1, baseline="mean").notes["baseline_score"]
        mean = x.mean((2, 3), keepdim=True).expand_as(x)
        torch.testing.assert_close(noted.double(), model(mean)[:, 1], rtol=1e-4, atol=1e-4)


def test_several_baselines_are_averaged() -> None:
    model, x = seeded(SmallResNet()), images(2)
    run = lambda b: explain(model, x, "integrated_gradients", steps=4, baseline=b)
    parts = [run(b) for b in ("zero", "blur", 0.4)]
    together = run(["zero", "blur", 0.4])
    close(together.maps, torch.stack([part.maps for part in parts]).mean(0))
    for name in ("baseline_score", "sum", "gap"):
        torch.testing.assert_close(together.notes[name], torch.stack([p.notes[name] for p in parts]).mean(0))
    stacked = torch.stack([torch.zeros_like(x[0]), torch.full_like(x[0], 0.4)])
    close(run(stacked).maps, run(["zero", 0.4]).maps)


def test_at_a_layer_the_way_begins_at_the_image_of_that_name() -> None:
    model, x = seeded(SmallResNet()), images(2)
    found = explain(model, x, "integrated_gradients", layer="stage2", steps=100, rule="midpoint", baseline="black")
    with torch.no_grad():
        torch.testing.assert_close(
            found.notes["baseline_score"].double(), model(torch.zeros_like(x))[:, 1], rtol=1e-4, atol=1e-4
        )
    assert (found.notes["gap"].abs() < 0.02 * (found.scores - found.notes["baseline_score"]).abs()).all()


def test_at_a_layer_that_the_score_does_not_read_the_map_is_0() -> None:
    """The score has a gradient, that of the parameters, of which nothing comes to the layer."""

    class Aside(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            return super().forward(x)

    network, x = seeded(Aside()), images(1)[..., :8, :10]
    found = konkyo.explain(network, x, method="integrated_gradients", layer="aside", steps=2, target=1)
    assert found.maps.shape == (1, 8, 10)
    assert found.maps.count_nonzero() == 0
    assert [diagnosis.kind for diagnosis in found.diagnosis] == ["constant"]


def test_integrated_grad_cam_of_several_baselines_and_by_gauss() -> None:
    model, x = seeded(SmallResNet()), images(2)
    run = lambda **o: explain(model, x, "integrated_grad_cam", rectify="sum", **o).signed
    close(run(steps=3, baseline=["zero", 0.5]), (run(steps=3) + run(steps=3, baseline=0.5)) / 2)
    fine, coarse = run(steps=200, rule="midpoint"), run(steps=24, rule="gauss")
    assert (fine - coarse).abs().max() < 0.03 * fine.abs().max()


def test_notes_go_with_their_rows(tmp_path: Any) -> None:
    model, x = seeded(SmallResNet()), images(3)
    found = explain(model, x, "integrated_gradients", steps=2)
    assert "gap" in repr(found)
    assert torch.equal(found[1:].notes["gap"], found.notes["gap"][1:])
    for name in ("one.safetensors", "one.npz"):
        again = konkyo.Explanation.load(found.save(tmp_path / name))
        assert {key: value.tolist() for key, value in again.notes.items()} == {
            key: value.tolist() for key, value in found.notes.items()
        }
    assert explain(model, x, "saliency").notes == {}


# --- GradientSHAP -----------------------------------------------------------------------------------------------------


def test_gradient_shap_of_a_linear_network_is_exact() -> None:
    network, weight = linear()
    x, data = small(), small(4)
    found = explain(network, x, "gradient_shap", samples=8, baselines=data)
    torch.testing.assert_close(found.maps.double(), (weight * (x - data.mean(0))).sum(1), rtol=1e-5, atol=1e-6)
    assert found.notes["gap"].abs().max() < 1e-5
    few = explain(network, x, "gradient_shap", samples=2, baselines=data)
    assert few.notes["gap"].abs().max() < 1e-5  # against those that were drawn
    noisy = explain(network, x, "gradient_shap", samples=8, baselines=data, std=0.1)
    assert (noisy.maps - found.maps).abs().max() > 1e-3


def test_gradient_shap_in_expectation_is_captums() -> None:
    from captum import attr as captum

    network, x, data = seeded(SmallResNet()), images(1), images(3) * 0.5
    found = explain(network, x, "gradient_shap", samples=300, baselines=data).maps
    torch.manual_seed(0)
    theirs = captum.GradientShap(network).attribute(x, data, n_samples=1500, target=1).sum(1).detach()
    exact = explain(network, x, "integrated_gradients", rule="midpoint", steps=100, baseline=data).maps
    scale = exact.abs().max()
    assert (found - exact).abs().max() < 0.1 * scale
    assert (theirs - exact).abs().mean() < 0.2 * exact.abs().mean()


# --- Blur IG ----------------------------------------------------------------------------------------------------------


def test_blur_ig_by_hand() -> None:
    network, x = seeded(SmallResNet()), images(1)
    steps, sigma, delta = 4, 3.0, 0.01
    expected = torch.zeros(32, 40, dtype=torch.float64)
    for i in range(steps):
        s = sigma * i / steps
        wide = {"reach": math.ceil(5 * s) + 1}
        here = (blurred(x, s, **wide) if s else x).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(here)[0, 1], here)
        change = (blurred(x, s + delta, **wide) - here.detach()) / delta
        expected -= sigma / steps * (change * gradient).sum(1)[0]
    found = explain(network, x, "blur_ig", steps=steps, sigma=sigma)
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("scale", ["linear", "sqrt"])
def test_blur_ig_of_a_linear_network_adds_up(scale: str) -> None:
    network, _ = linear()
    x = small()
    found = explain(network, x, "blur_ig", steps=400, sigma=3.0, scale=scale)
    with torch.no_grad():
        soft = network(blurred(x, 3.0, reach=16))[:, 1]
        added = network(x)[:, 1] - soft
    torch.testing.assert_close(found.notes["baseline_score"].double(), soft, rtol=1e-4, atol=1e-5)
    assert ((found.maps.flatten(1).sum(1) - added).abs() < 0.03 * added.abs()).all()
    flat = torch.full_like(x, 0.7)
    assert explain(network, flat, "blur_ig", steps=5, sigma=3.0).maps.abs().max() < 1e-5
    assert explain(network, flat, "blur_ig", steps=5, sigma=3.0, padding="constant").maps.abs().max() > 1e-3


# --- Guided IG --------------------------------------------------------------------------------------------------------


def guided_by_hand(network: nn.Module, x: Tensor, b: Tensor, steps: int, fraction: float, distance: float) -> Tensor:
    """The algorithm as it is printed, on values and not on shares of their way. (C, H, W), float64"""
    current, credit, whole = b.clone(), torch.zeros_like(x), (x - b).abs().sum()
    for step in range(1, steps + 1):
        leaf = current.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(leaf[None])[0, 1], leaf)
        ranked, share = slope.clone(), step / steps
        low, high = b + max(share - distance, 0) * (x - b), b + min(share + distance, 1) * (x - b)
        target, gamma = whole * (1 - share), math.inf
        while gamma > 1:
            before = current.clone()
            alpha = (current - b) / (x - b)
            alpha[alpha.isnan()] = min(share + distance, 1)
            current = torch.where(alpha < max(share - distance, 0), low, current)
            left = (x - current).abs().sum()
            if torch.isclose(left, target, rtol=1e-9, atol=1e-9):
                credit += (current - before) * slope
                break
            ranked[(current - high).abs() < 1e-12] = math.inf
            threshold = np.quantile(ranked.abs().numpy(), fraction, method="lower")
            chosen = (ranked.abs() <= threshold) & ranked.isfinite()
            room = float(((current - high).abs() * chosen).sum())
            gamma = float(left - target) / room if room > 0 else math.inf
            current = torch.where(chosen, high if gamma > 1 else current + gamma * (high - current), current)
            credit += (current - before) * slope
    return credit.sum(0)


@pytest.mark.parametrize(("fraction", "distance"), [(0.25, 0.02), (0.1, 0.3), (0.6, 0.0)])
def test_guided_ig_by_hand(fraction: float, distance: float) -> None:
    network, x = seeded(SmallResNet()).double(), images(2).double()
    x[0, :, :3] = 0  # as the baseline
    found = explain(network, x, "guided_ig", steps=7, fraction=fraction, distance=distance, baseline=0.0)
    for row in range(2):
        expected = guided_by_hand(network, x[row], torch.zeros_like(x[row]), 7, fraction, distance)
        torch.testing.assert_close(
            found.maps[row].double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )


def test_guided_ig_of_a_linear_network_and_of_its_baseline() -> None:
    network, weight = linear()
    x = small()
    found = explain(network, x, "guided_ig", steps=5, baseline=0.1)
    torch.testing.assert_close(found.maps.double(), (weight * (x - 0.1)).sum(1), rtol=1e-5, atol=1e-6)
    assert explain(network, torch.full_like(x, 0.1), "guided_ig", steps=5, baseline=0.1).maps.abs().max() == 0
    network = seeded(Power(2)).double()
    gaps = [explain(network, x, "guided_ig", steps=steps).notes["gap"].abs().mean() for steps in (4, 64)]
    assert gaps[1] < gaps[0] / 4


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PATHS[1:])
def test_paths_through_images_are_of_the_input(method: str) -> None:
    with pytest.raises(konkyo.NotApplicable, match='layer="input"'):
        explain(seeded(SmallResNet()), images(1), method, layer="stage2")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated_gradients", {"steps": 0}),
        ("integrated_gradients", {"rule": "upper"}),
        ("gradient_shap", {"samples": 0}),
        ("gradient_shap", {"std": -1.0}),
        ("blur_ig", {"sigma": 0.0}),
        ("blur_ig", {"steps": 0}),
        ("guided_ig", {"fraction": 0.0}),
        ("guided_ig", {"distance": 2.0}),
    ],
)
def test_bad_options(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(konkyo.KonkyoError, match=method):
        explain(seeded(SmallResNet()), images(1), method, **options)


def test_a_baseline_that_there_is_not() -> None:
    with pytest.raises(konkyo.KonkyoError, match="did you mean 'black'"):
        explain(seeded(SmallResNet()), images(1), "integrated_gradients", baseline="blak")
