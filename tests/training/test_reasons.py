"""Right for the right reasons: against the formulas in loops, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.losses import checked, maps
from konkyo.metrics.localisation import ebpg
from konkyo.training.losses.reasons import outside_energy, right_reasons


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)
    ).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 2, 5, 6, generator=generator, dtype=torch.float64)
    return images, torch.rand(3, 5, 6, generator=generator) > 0.5


def by_hand(model: nn.Module, images: Tensor, masks: Tensor) -> float:
    """Eq. 1's second term with derivatives by central differences, pixel by pixel, over the images with a mask."""

    def total(image: Tensor) -> float:
        logits = model(image[None])[0].tolist()
        if len(logits) == 1:
            return math.log(1 / (1 + math.exp(-logits[0]))) + math.log(1 / (1 + math.exp(logits[0])))
        whole = math.log(sum(math.exp(z) for z in logits))
        return sum(z - whole for z in logits)

    found, known = 0.0, 0
    for image, mask in zip(images, masks, strict=True):
        if not mask.any():
            continue
        known += 1
        for c in range(image.shape[0]):
            for y in range(image.shape[1]):
                for x in range(image.shape[2]):
                    ends = []
                    for sign in (1, -1):
                        moved = image.clone()
                        moved[c, y, x] += sign * 1e-5
                        ends.append(total(moved))
                    slope = (ends[0] - ends[1]) / 2e-5
                    found += ((1 - float(mask[y, x])) * slope) ** 2
    return found / known


@pytest.mark.parametrize("classes", [3, 1])
def test_the_penalty_is_that_of_the_paper(classes: int) -> None:
    model, (images, masks) = network(classes), batch()
    images.requires_grad_()
    found = right_reasons(images, model(images), masks)
    assert found.item() == pytest.approx(by_hand(model, images.detach(), masks), rel=1e-6)
    masks[1] = False  # no mask: nothing is known of it
    without = right_reasons(images, model(images), masks)
    assert without.item() == pytest.approx(by_hand(model, images.detach(), masks), rel=1e-6)
    assert without.item() != pytest.approx(found.item(), rel=1e-3)
    assert right_reasons(images, model(images), torch.zeros_like(masks)).item() == 0
    assert right_reasons(images, model(images), torch.ones_like(masks)).item() == 0
    shares = torch.rand(masks.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert right_reasons(images, model(images), shares).item() == pytest.approx(
        by_hand(model, images.detach(), shares), rel=1e-6
    )


def test_gradients_reach_the_weights() -> None:
    model, (images, masks) = network(), batch()
    images.requires_grad_()
    first = model[0]
    assert isinstance(first, nn.Conv2d)

    def penalty(weight: Tensor) -> Tensor:
        hidden = functional.conv2d(images, weight, first.bias, 2, 1)
        return right_reasons(images, model[1:](hidden), masks)  # type: ignore[index]

    checked(penalty, first.weight.detach())


def test_what_has_no_gradient_by_the_images() -> None:
    model, (images, masks) = network(), batch()
    with pytest.raises(konkyo.KonkyoError, match=r"requires_grad_\(\) before"):
        right_reasons(images, model(images), masks)
    logits = model(images)
    with pytest.raises(konkyo.KonkyoError, match="do not depend on these images"):
        right_reasons(images.clone().requires_grad_(), logits, masks)
    with pytest.raises(konkyo.KonkyoError, match="do not depend on these images"):
        right_reasons(images.clone().requires_grad_(), logits.detach(), masks)
    with pytest.raises(konkyo.KonkyoError, match=r"masks \(N, H, W\)"):
        right_reasons(images.requires_grad_(), logits, masks[:, :4])


def test_outside_energy_is_what_ebpg_leaves() -> None:
    found, masks = maps(4, 6, 8) * 3 - 1, maps(4, 6, 8, seed=1) > 0.7
    expected = 1 - ebpg(found, masks=masks)
    assert outside_energy(found, masks).item() == pytest.approx(expected.mean().item(), rel=1e-6)
    masks[2], found[3] = False, 0.3
    assert outside_energy(found, masks).item() == pytest.approx(expected[:2].mean().item(), rel=1e-6)
    assert outside_energy(found, torch.zeros_like(masks)).item() == 0
    assert outside_energy(found, torch.ones_like(masks)).item() == pytest.approx(0, abs=1e-12)


def test_a_cell_counts_with_the_share_that_is_the_object() -> None:
    coarse = torch.tensor([[[0.0, 2.0], [4.0, 1.0]]], dtype=torch.float64)
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, 0, 3:] = True  # half of the upper right cell
    mask[0, 2:, :2] = True  # two thirds of the lower left one
    assert outside_energy(coarse, mask).item() == pytest.approx(1 - (2 / 2 + 4 * 2 / 3) / 7, rel=1e-12)
    fine = maps(1, 8, 12)
    exact = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert outside_energy(fine, exact).item() == pytest.approx(1 - ebpg(fine, masks=exact).item(), rel=1e-6)


def test_gradients_of_the_energy() -> None:
    masks = torch.zeros(3, 6, 6, dtype=torch.bool)
    masks[0, :3], masks[1, 2:, 1:3] = True, True
    checked(lambda at: outside_energy(at, masks), maps(3, 4, 4))
    broken = torch.cat([maps(1, 4, 4), torch.full((2, 4, 4), torch.nan)]).requires_grad_()
    (gradient,) = torch.autograd.grad(outside_energy(broken, masks), broken)
    assert gradient.isfinite().all()
    with pytest.raises(konkyo.KonkyoError, match="a mask for each map"):
        outside_energy(maps(3, 4, 4), masks[:2])
