"""Contextual decomposition against closed forms and the rules written out in loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.losses import checked
from konkyo.training import cdep, contextual_decomposition


def batch(channels: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, channels, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.rand(3, 8, 8, generator=generator) > 0.6


class Residual(nn.Module):
    """Two branches, in-place sums and activations, functions, a method, a constant and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 1, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)), inplace=True)
        same = x
        x += self.second(x)
        x = functional.relu(0.5 * x + 0.1)
        x = torch.cat([functional.max_pool2d(x, 3, 2, 1), functional.avg_pool2d(same, 3, 2, 1)], 1)
        scores: Tensor = self.head(functional.dropout(x.mean((2, 3)), training=self.training))
        return scores / 2


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5)),
        *(nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """The network with running statistics that are not those of an untrained one."""
    torch.manual_seed(0)
    network = build().double()
    network(batch()[0] * 2 + 1)
    return network


@pytest.mark.parametrize("build", [plain, Residual])
def test_the_parts_are_the_output_and_all_of_it_is_of_a_mask_of_everything(build: Callable[[], nn.Module]) -> None:
    network, (images, masks) = built(build), batch()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    beta, gamma = contextual_decomposition(network, images, masks)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    output = network.eval()(images)
    torch.testing.assert_close(beta + gamma, output, rtol=0, atol=1e-14)
    assert (beta - output).abs().max() > 1e-2
    assert beta.abs().max() > 1e-2
    whole = contextual_decomposition(network, images, torch.ones_like(masks))
    torch.testing.assert_close(whole.beta, output, rtol=0, atol=1e-14)
    assert whole.gamma.abs().max() < 1e-14
    nothing = contextual_decomposition(network, images, torch.zeros_like(masks))
    torch.testing.assert_close(nothing.gamma, output, rtol=0, atol=1e-14)
    assert nothing.beta.abs().max() < 1e-14


def test_a_linear_network_has_a_closed_form() -> None:
    images, masks = batch()
    network = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()
    linear = network[1]
    assert isinstance(linear, nn.Linear)
    inside = (images * masks[:, None]).flatten(1) @ linear.weight.T
    outside = (images * ~masks[:, None]).flatten(1) @ linear.weight.T
    share = inside.abs() / (inside.abs() + outside.abs())
    beta, gamma = contextual_decomposition(network, images, masks)
    torch.testing.assert_close(beta, inside + share * linear.bias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gamma, outside + (1 - share) * linear.bias, rtol=1e-12, atol=1e-12)
    beta, gamma = contextual_decomposition(network, torch.zeros_like(images), masks)  # 0 / 0: as the mask's area
    area = masks.double().mean((1, 2))[:, None]
    torch.testing.assert_close(beta, area * linear.bias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gamma, (1 - area) * linear.bias, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def by_hand(network: nn.Sequential, image: Tensor, mask: Tensor) -> tuple[list[float], list[float]]:
    """The rules in loops, one number after the other: convolution, batch norm, ReLU, max pooling, linear layer."""
    conv, norm, head = network[0], network[1], network[5]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(head, nn.Linear)
    assert conv.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None

    def biased(b: float, g: float, bias: float) -> tuple[float, float]:
        share = abs(b) / (abs(b) + abs(g))
        return b + share * bias, g + (1 - share) * bias

    flat: list[tuple[float, float]] = []
    for k in range(conv.out_channels):
        rows = []
        for y in range(6):
            row = []
            for x in range(6):
                b = g = 0.0
                for c in range(2):
                    for i in range(3):
                        for j in range(3):
                            product = float(conv.weight[k, c, i, j] * image[c, y + i, x + j])
                            b, g = (b + product, g) if mask[y + i, x + j] else (b, g + product)
                b, g = biased(b, g, float(conv.bias[k]))
                scale = float(norm.weight[k]) / math.sqrt(float(norm.running_var[k]) + norm.eps)
                b, g = biased(b * scale, g * scale, float(norm.bias[k]) - float(norm.running_mean[k]) * scale)
                relu = max(b, 0.0)
                row.append((relu, max(b + g, 0.0) - relu))
            rows.append(row)
        for y in range(0, 6, 2):
            for x in range(0, 6, 2):
                window = [rows[y][x], rows[y][x + 1], rows[y + 1][x], rows[y + 1][x + 1]]
                flat.append(max(window, key=lambda pair: pair[0] + pair[1]))
    found = []
    for k in range(head.out_features):
        b = sum(float(w) * pair[0] for w, pair in zip(head.weight[k], flat, strict=True))
        g = sum(float(w) * pair[1] for w, pair in zip(head.weight[k], flat, strict=True))
        found.append(biased(b, g, float(head.bias[k])))
    return [b for b, _ in found], [g for _, g in found]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3))
    ).double()
    network(batch()[0] * 2 + 1)
    with torch.no_grad():
        for parameter in network.parameters():  # batch norm begins with no shift
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def test_the_rules_are_those_of_the_paper() -> None:
    network, (images, masks) = small(), batch()
    found = contextual_decomposition(network, images, masks)
    expected = [by_hand(network, image, mask) for image, mask in zip(images, masks, strict=True)]
    beta, gamma = (torch.tensor(values, dtype=torch.float64) for values in zip(*expected, strict=True))
    torch.testing.assert_close(found.beta, beta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.gamma, gamma, rtol=1e-12, atol=1e-12)


def test_the_penalty_is_the_share_of_what_is_outside() -> None:
    network, (images, masks) = small(), batch()

    def share(rows: list[int]) -> float:
        values = []
        for row in rows:
            beta, gamma = by_hand(network, images[row], ~masks[row])
            values += [math.exp(b) / (math.exp(b) + math.exp(g)) for b, g in zip(beta, gamma, strict=True)]
        return sum(values) / len(values)

    assert cdep(network, images, masks).item() == pytest.approx(share([0, 1, 2]), rel=1e-7)
    masks[1] = False  # not known
    assert cdep(network, images, masks).item() == pytest.approx(share([0, 2]), rel=1e-7)
    assert cdep(network, images, torch.zeros_like(masks)).item() == 0


def test_gradients_reach_the_weights() -> None:
    images, masks = batch()
    network = small()
    first = network[0]
    assert isinstance(first, nn.Conv2d)
    weight, bias = first.weight.detach().clone(), first.bias

    class Given(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.rest, self.given = network[1:], (weight,)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.rest(functional.conv2d(x, self.given[0], bias))
            return scores

    checked(lambda at: cdep(Given(at), images, masks), weight)


def test_a_penalty_that_is_minimised_takes_the_outside_out() -> None:
    """One linear layer, a class that only an outside pixel tells: the part from there falls."""
    images, masks = batch()
    network = nn.Sequential(nn.Flatten(), nn.Linear(128, 2)).double()
    before = cdep(network, images, masks).item()
    optimiser = torch.optim.SGD(network.parameters(), 0.5)
    for _ in range(20):
        optimiser.zero_grad()
        torch.autograd.backward(cdep(network, images, masks))
        optimiser.step()
    assert cdep(network, images, masks).item() < before - 0.1


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Sigmoid(), "no rule for sigmoid"),
        (nn.BatchNorm2d(2, track_running_stats=False), "batch norm with the statistics of the batch"),
        (nn.GELU(), "no rule for gelu"),
        (nn.ConstantPad2d(1, 2.0), "padding with a value other than 0"),
        (nn.Bilinear(8, 8, 2), "no rule for"),
    ],
)
def test_what_has_no_rule_says_so(layer: nn.Module, words: str) -> None:
    images, masks = batch()
    network = layer if not isinstance(layer, nn.Bilinear) else Twice(layer)
    with pytest.raises(konkyo.NotApplicable, match=words):
        contextual_decomposition(network.double(), images, masks)


class Said(nn.Module):
    """A network of one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("function", [lambda x: x**2, lambda x: x @ x.mT, lambda x: x * (x > 0), lambda x: 1 / x])
def test_operators_without_a_rule_say_so(function: Callable[[Tensor], Tensor]) -> None:
    images, masks = batch()
    with pytest.raises(konkyo.NotApplicable, match="no rule for"):
        contextual_decomposition(Said(function), images, masks)


@pytest.mark.parametrize(
    "function", [lambda x: x - 0.5, lambda x: 0.5 - x, lambda x: -x, lambda x: x - x.relu(), lambda x: x[: len(x)]]
)
def test_differences_keep_the_sum(function: Callable[[Tensor], Tensor]) -> None:
    images, masks = batch()
    found = contextual_decomposition(Said(function), images, masks)
    torch.testing.assert_close(found.beta + found.gamma, function(images))


def test_a_difference_of_branches_is_that_of_each_part() -> None:
    images, masks = batch()
    found = contextual_decomposition(Said(lambda x: x - 3 * x), images, masks)
    torch.testing.assert_close(found.beta, -2 * images * masks[:, None])


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x, x)
        return scores


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_other_shapes_and_outputs() -> None:
    images, masks = batch()
    with pytest.raises(konkyo.KonkyoError, match=r"masks \(N, H, W\) were expected"):
        cdep(plain(), images, masks[:, :4])
    with pytest.raises(konkyo.KonkyoError, match="puts out one tensor"):
        contextual_decomposition(Pair(), images, masks)
