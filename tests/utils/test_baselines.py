"""Baselines by name, as numbers, as tensors, and several of them."""

from __future__ import annotations

import pytest
import torch

from konkyo.errors import KonkyoError
from konkyo.metrics.variants import filler, seeded
from konkyo.utils.baselines import NAMES, all_baseline_images, baseline_images, each_baseline
from konkyo.utils.tensors import blurred

BLACK, WHITE = torch.tensor([-2.0, -1.0, -0.5]).view(3, 1, 1), torch.tensor([2.0, 3.0, 0.5]).view(3, 1, 1)


def images_of(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 10, 12)


def test_names_and_numbers_give_what_they_say() -> None:
    images = images_of()

    def image(which: object) -> torch.Tensor:
        found = baseline_images(which, images, black=BLACK, white=WHITE, generator=seeded(3))  # type: ignore[arg-type]
        assert found.ndim == images.ndim
        return found.expand_as(images)

    assert (image("zero") == 0).all()
    assert (image(0.25) == 0.25).all()
    assert (image(2) == 2).all()
    assert torch.equal(image("black"), BLACK.expand_as(images))
    assert torch.equal(image("white"), WHITE.expand_as(images))
    assert torch.allclose(image("mean")[1, 2], images[1, 2].mean(), atol=1e-6)
    assert torch.equal(image("blur"), blurred(images, 12 / 16))
    noise = image("noise")
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(noise, image("noise"))
    assert (noise >= BLACK).all()
    assert (noise <= WHITE).all()
    assert ((noise[0] - BLACK) / (WHITE - BLACK)).flatten(1).std(1) == pytest.approx([12**-0.5] * 3, abs=0.05)


def test_a_tensor_is_one_image_or_several() -> None:
    images = images_of()
    one, many = torch.randn(3, 10, 12), torch.randn(4, 3, 10, 12)
    assert torch.equal(baseline_images(one, images)[0], one)
    assert torch.equal(baseline_images(BLACK, images).expand_as(images)[1], BLACK.expand(3, 10, 12))
    assert len(each_baseline(many, images.ndim)) == 4
    assert len(each_baseline(one, images.ndim)) == 1
    found = all_baseline_images([many, "zero", 0.5, ["mean"]], images)
    assert len(found) == 7
    assert all(part.shape == images.shape for part in found)
    assert torch.equal(found[2][1], many[2])
    assert (found[5] == 0.5).all()
    videos = torch.randn(2, 3, 4, 10, 12)
    assert len(all_baseline_images(torch.randn(3, 4, 10, 12), videos)) == 1  # (C, T, H, W) is one of them


def test_metrics_fill_pixels_with_the_same() -> None:
    images, pixels, rows = images_of(3), torch.stack([BLACK, WHITE]).view(2, 3), torch.tensor([2, 0])
    for name in set(NAMES) - {"blur", "noise"}:
        fill = filler(name, images, pixels, 0)(rows)  # type: ignore[arg-type]
        expected = baseline_images(name, images, black=BLACK, white=WHITE)  # type: ignore[arg-type]
        assert torch.equal(fill.expand(2, 3, 10, 12), expected.expand_as(images)[rows])
    with pytest.raises(KonkyoError, match="white pixels need `pixels`"):
        filler("white", images, None, 0)


@pytest.mark.parametrize(
    ("which", "piece"),
    [
        ("blak", "did you mean .black."),
        (True, "unknown baseline"),
        (None, "unknown baseline"),
        (float("nan"), "finite"),
        ("black", "what black is"),
        ("noise", "what black is"),
        (torch.zeros(3, 9, 12), "3x10x12"),
        (torch.zeros(2, 2, 3, 10, 12), "3x10x12"),
        ([], "got none"),
    ],
)
def test_what_is_no_baseline(which: object, piece: str) -> None:
    with pytest.raises(KonkyoError, match=piece):
        all_baseline_images(which, images_of())  # type: ignore[arg-type]
