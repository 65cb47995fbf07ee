"""Saliency-guided training against Algorithm 1 written out image by image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.losses import checked
from konkyo.training import redrawn, saliency_guided


def network(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)
    ).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 2, 5, 6, generator=generator, dtype=torch.float64), torch.tensor([2, 0, 1])


@torch.no_grad()
def by_hand(model: nn.Module, images: Tensor, labels: Tensor, share: float, seed: int) -> tuple[float, Tensor]:
    """The divergence and the redrawn images, pixel by pixel; gradients by central differences."""
    count, channels, height, width = images.shape
    draws = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).double()
    changed, total = images.clone(), 0.0
    for n in range(count):
        sizes = []
        for y in range(height):
            for x in range(width):
                size = 0.0
                for c in range(channels):
                    ends = []
                    for sign in (1, -1):
                        moved = images[n : n + 1].clone()
                        moved[0, c, y, x] += sign * 1e-5
                        ends.append(float(model(moved)[0, labels[n]]))
                    size += abs(ends[0] - ends[1]) / 2e-5 / channels
                sizes.append((size, y, x))
        for _, y, x in sorted(sizes)[: int(share * height * width)]:
            for c in range(channels):
                low, high = float(images[n, c].min()), float(images[n, c].max())
                changed[n, c, y, x] = low + (high - low) * float(draws[n, c, y, x])
        p = [math.exp(z) for z in model(images[n : n + 1])[0].tolist()]
        q = [math.exp(z) for z in model(changed[n : n + 1])[0].tolist()]
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return total / count, changed


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_the_divergence_is_that_of_the_algorithm(share: float) -> None:
    model, (images, labels) = network(), batch()
    expected, changed = by_hand(model, images, labels, share, seed=4)
    generator = torch.Generator().manual_seed(4)
    found = saliency_guided(model, images, labels, model(images), generator, share=share)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert expected > 1e-5
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, labels[:, None]).sum(), leaf)
    again = redrawn(images, gradient, torch.Generator().manual_seed(4), share=share)
    torch.testing.assert_close(again, changed, rtol=1e-12, atol=1e-12)
    assert ((again != images).any(1).flatten(1).sum(1) == int(share * 30)).all()


def test_nothing_redrawn_costs_nothing() -> None:
    model, (images, labels) = network(), batch()
    found = saliency_guided(model, images, labels, model(images), torch.Generator(), share=0.0)
    assert found.item() == pytest.approx(0, abs=1e-15)


def test_one_logit_has_two_classes() -> None:
    model, (images, _) = network(1), batch()
    labels = torch.tensor([1, 0, 1])
    last = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    two = nn.Sequential(model, last)
    found = saliency_guided(model, images, labels, model(images), torch.Generator().manual_seed(0))
    same = saliency_guided(two, images, labels, two(images), torch.Generator().manual_seed(0))
    assert found.item() == pytest.approx(same.item(), rel=1e-9)
    assert found.item() > 1e-6


def test_gradients_go_through_both_outputs() -> None:
    model, (images, labels) = network(), batch()
    last = model[4]
    assert isinstance(last, nn.Linear)
    weight, bias = last.weight.detach().clone(), last.bias.detach()

    class Given(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.given = (weight,)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(model[:4](x), self.given[0], bias)

    def divergence(at: Tensor) -> Tensor:
        given = Given(at)
        return saliency_guided(given, images, labels, given(images), torch.Generator().manual_seed(3))

    checked(divergence, weight)


def test_the_network_is_as_it_was_but_for_the_forward_of_the_changed_images() -> None:
    images, labels = batch()
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    saliency_guided(model, images, labels, model(images), torch.Generator())
    assert model.training
    assert int(norm.num_batches_tracked or 0) == 2
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_shapes() -> None:
    model, (images, labels) = network(), batch()
    with pytest.raises(konkyo.KonkyoError, match=r"share in \[0, 1\]"):
        saliency_guided(model, images, labels, model(images), torch.Generator(), share=1.5)
    with pytest.raises(konkyo.KonkyoError, match="a gradient of their shape"):
        redrawn(images, images[:, :1], torch.Generator())
    with pytest.raises(konkyo.KonkyoError, match="puts out logits"):
        saliency_guided(model, images, labels, model(images)[:, :2], torch.Generator())
