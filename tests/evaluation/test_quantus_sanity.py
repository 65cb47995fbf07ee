"""Tests of parameters and of classes side by side with Quantus, which draws the weights for both."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.quantus_inputs import CLASSES, IMAGES, NET, ROWS, SIDE, explain_for_quantus
from helpers.unregistered import made
from konkyo.engine.probe import Probe
from konkyo.evaluation import sanity
from konkyo.methods.wrappers import smoothed

quantus = pytest.importorskip("quantus")
pytestmark = pytest.mark.filterwarnings("ignore")

PARTS = ["5", "2", "0"]
"""The network's modules with weights, from the output down."""


@made
def slope(gradients: Tensor) -> Tensor:
    return gradients.sum(1)


@pytest.fixture
def _same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws weights as Quantus does: every module from the same seed."""

    def draw(part: nn.Module) -> None:
        torch.manual_seed(43)
        part.reset_parameters()  # type: ignore[operator]

    monkeypatch.setattr(sanity, "draw_anew", draw)


def theirs(name: str, *, net: nn.Module = NET, explain: Any = explain_for_quantus, **options: Any) -> Any:
    probabilities = name == "EfficientMPRT"  # of its scores of the network, which are not of maps
    given: dict[str, Any] = {"x_batch": IMAGES.numpy(), "y_batch": CLASSES.numpy(), "a_batch": None}
    given |= {"explain_func": explain, "softmax": probabilities}
    return getattr(quantus, name)(disable_warnings=True, **options)(model=net, channel_first=True, **given)


def settings() -> dict[str, Any]:
    return {"target": CLASSES.tolist()}


@pytest.mark.usefixtures("_same_weights")
@pytest.mark.parametrize(
    ("order", "layer_order"),
    [("cascading", "top_down"), ("independent", "independent"), ("bottom_up", "bottom_up")],
)
def test_parameter_randomisation(order: Any, layer_order: str) -> None:
    expected = theirs("MPRT", layer_order=layer_order)
    found = sanity.randomisation(NET, IMAGES, slope, order=order, steps=3, **settings())
    assert sorted(found.steps) == sorted(PARTS)
    for step, likeness in zip(found.steps, found.similarity, strict=True):
        np.testing.assert_allclose(likeness.numpy(), expected[step], atol=1e-5)
        assert likeness.abs().max() < 0.9


@pytest.mark.usefixtures("_same_weights")
def test_the_average_of_quantus_counts_the_network_as_it_is() -> None:
    """It leaves out a step called "orig", and calls it "original": 1 is among what it averages."""
    expected = theirs("MPRT", return_average_correlation=True)
    found = sanity.randomisation(NET, IMAGES, slope, steps=3, **settings()).similarity
    np.testing.assert_allclose(expected, (found.sum(0) + 1).numpy() / 4, atol=1e-5)


@pytest.mark.usefixtures("_same_weights")
def test_efficient_parameter_randomisation() -> None:
    expected = theirs("EfficientMPRT")
    found = sanity.efficient_randomisation(NET, IMAGES, slope, **settings())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert found.abs().min() > 1e-3


@pytest.mark.usefixtures("_same_weights")
def test_smooth_parameter_randomisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantus takes the image itself for the last of its copies, and only explanations of its own or of Captum."""
    copies = 4
    inner = smoothed(slope, samples=copies, std=0.2)

    @made
    def with_the_image(probe: Probe, gradients: Tensor) -> Tensor:
        return (copies * inner(probe) + gradients.sum(1)) / (copies + 1)

    found = sanity.randomisation(NET, IMAGES, with_the_image, order="bottom_up", steps=3, seed=8, **settings())
    drawn = torch.randn(copies, *IMAGES.shape[1:], generator=torch.Generator().manual_seed(8))
    calls = iter(list(range(copies)) * 50)
    monkeypatch.setattr(np.random, "randn", lambda *size: np.broadcast_to(drawn[next(calls)].numpy(), size))
    monkeypatch.setattr(quantus, "explain", explain_for_quantus)
    expected = theirs("SmoothMPRT", nr_samples=copies + 1, noise_magnitude=0.2)
    for step, likeness in zip(found.steps, found.similarity, strict=True):
        np.testing.assert_allclose(likeness.numpy(), expected[step], atol=1e-5)
    monkeypatch.undo()
    plain = sanity.randomisation(NET, IMAGES, slope, order="bottom_up", steps=3, **settings())
    assert (plain.similarity - found.similarity).abs().max() > 0.01


def test_random_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    """By rank correlation, and without signs; Quantus' own is SSIM along the pixels in one long row."""
    model = konkyo.Model(NET, classes="abcd")
    found = sanity.random_class(model, IMAGES, slope, others=3, **settings())
    expected = []
    for other in range(3):
        monkeypatch.setattr(np.random, "randint", lambda low, high, size, other=other: np.full(size, other))
        options = {"num_classes": 4, "abs": True, "similarity_func": quantus.similarity_func.correlation_spearman}
        expected.append(theirs("RandomLogit", **options))
    np.testing.assert_allclose(found.similarity.sort(0).values.numpy(), np.sort(expected, 0), atol=1e-5)
    assert found.similarity.shape == (3, ROWS)


def test_input_invariance() -> None:
    """Two calls of `explain` tell: the image moved by -1, and a network whose first layer takes the move back.

    Quantus forgets to move the image's first value, so that it finds no map of the gradient invariant.
    """
    layers = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * (SIDE - 2) ** 2, 4)]
    net = nn.Sequential(*layers).eval().requires_grad_(False)
    moved = copy.deepcopy(net)
    moved[0].bias += net[0].weight.sum((1, 2, 3))
    torch.testing.assert_close(moved(IMAGES - 1), net(IMAGES), rtol=1e-4, atol=1e-4)

    @made
    def product(inputs: Tensor, gradients: Tensor) -> Tensor:
        return (inputs * gradients).sum(1)

    def product_for_quantus(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        return np.asarray(inputs) * explain_for_quantus(model, inputs, targets)

    for method, explain, invariant in ((slope, explain_for_quantus, True), (product, product_for_quantus, False)):
        one, other = (
            konkyo.explain(n, x, method=method, **settings()).maps for n, x in ((net, IMAGES), (moved, IMAGES - 1))
        )
        assert torch.isclose(one, other, atol=1e-4).flatten(1).all(1).tolist() == [invariant] * ROWS
        told = theirs("InputInvariance", net=net, explain=explain, perturb_func=lambda arr, **_: arr - 1)
        assert [bool(v) for v in told] == [invariant] * ROWS
    seen: list[Any] = []

    def noted(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        seen.append(np.array(inputs))
        return explain_for_quantus(model, inputs, targets)

    assert not any(theirs("InputInvariance", net=net, explain=noted))
    moves = seen[-1] - IMAGES.numpy()
    assert (moves[:, 0, 0, 0] == 0).all()
    np.testing.assert_allclose(moves.reshape(ROWS, -1)[:, 1:], -1, atol=1e-6)
