"""Methods of noisy views and of low frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import konkyo
from helpers.closeness import close
from helpers.networks import SmallResNet, images, seeded
from konkyo.methods.base import METHODS, Method, method

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # maps of one value are among them


def explain(which: str | Method, x: Tensor, **options: Any) -> konkyo.Explanation:
    return konkyo.explain(seeded(SmallResNet()), x, method=which, target=[1, 3][: len(x)], **options)


@pytest.mark.parametrize("inner", ["grad_cam", "gradient", "ablation_cam"])
def test_without_noise_smoothed_is_the_method(inner: str) -> None:
    x = images(2)
    plain = explain(inner, x)
    close(explain(konkyo.smoothed(inner, samples=3, std=0.0), x).signed, plain.signed)
    close(explain(konkyo.smoothed(inner, samples=3, std=0.0), x).maps, plain.maps)
    close(explain(konkyo.smoothed(inner, samples=2, std=0.0, kind="square"), x).maps, plain.signed**2)
    still = explain(konkyo.smoothed(inner, samples=2, std=0.0, kind="variance"), x).maps
    assert still.abs().max() <= 1e-8 * plain.signed.abs().max() ** 2


@pytest.mark.parametrize("inner", ["grad_cam", "gradient"])
def test_smoothed_by_hand(inner: str) -> None:
    x, samples, std = images(2), 4, 0.2
    noise = torch.randn(samples, 3, 32, 40, generator=torch.Generator().manual_seed(5))
    spread = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)
    parts = torch.stack([explain(inner, x + std * spread * one).signed for one in noise])
    expected = {"mean": parts.mean(0), "square": (parts**2).mean(0), "variance": parts.var(0, correction=0)}
    found = {
        kind: explain(konkyo.smoothed(inner, samples=samples, std=std, kind=kind), x, seed=5)  # type: ignore[arg-type]
        for kind in expected
    }
    for kind, values in expected.items():
        close(found[kind].signed, values)
    close(found["square"].signed, found["variance"].signed + found["mean"].signed ** 2)
    assert found["mean"].rectified == (inner == "grad_cam")
    assert not found["square"].rectified


def test_smoothed_gradient_is_smooth_grad_signed() -> None:
    """Of one channel their sizes are the same."""

    @method(layer="input")
    def size_of_smoothed(gradients: Tensor) -> Tensor:
        """The gradient's first channel."""
        return gradients[:, 0]

    try:
        x = images(1)
        found = explain(konkyo.smoothed(size_of_smoothed, samples=5), x).maps
        assert found.min() < 0 < found.max()
        assert (found.abs() <= explain("smooth_grad", x, samples=5).maps * (1 + 1e-4)).all()
    finally:
        METHODS.pop("size_of_smoothed")


def test_names_of_wrappers_and_what_they_refuse() -> None:
    x = images(1)
    assert explain("smoothed(grad_cam)", x).method == "smoothed(grad_cam)"
    named = konkyo.smoothed("grad_cam", samples=2, std=0.1, kind="square").name
    assert named == "smoothed(grad_cam, samples=2, std=0.1, kind=square)"
    assert explain("forgrad(smoothed(saliency))", x).maps.shape == (1, 32, 40)
    with pytest.raises(konkyo.KonkyoError, match="'variance'"):
        konkyo.smoothed("grad_cam", kind="varianz")  # type: ignore[arg-type]
    with pytest.raises(konkyo.KonkyoError, match="samples >= 1"):
        explain(konkyo.smoothed("grad_cam", samples=0), x)
    with pytest.raises(konkyo.NotApplicable, match="every stage"):
        konkyo.smoothed("zoom_cam")
    with pytest.raises(konkyo.NotApplicable, match="input's resolution"):
        explain("forgrad(grad_cam)", x)
    with pytest.raises(konkyo.KonkyoError, match="sigma"):
        konkyo.forgrad("saliency", sigma=-1.0)


def test_forgrad_by_hand() -> None:
    x = images(2)
    plain = explain("gradient", x).maps.abs()
    close(explain(konkyo.forgrad("gradient", sigma=32.0), x).maps, plain)  # nothing is taken out
    values = plain[1].double().numpy()
    spectrum, kept = np.fft.fft2(values), np.zeros((32, 40), complex)
    for row in range(32):
        for column in range(40):
            fy, fx = min(row, 32 - row), min(column, 40 - column) * 32 / 40
            if fy**2 + fx**2 <= 6**2:
                kept[row, column] = spectrum[row, column]
    expected = np.abs(np.fft.ifft2(kept).real)
    close(explain(konkyo.forgrad("gradient", sigma=6.0), x).maps[1], torch.from_numpy(expected))
    mean = explain(konkyo.forgrad("gradient", sigma=0.0), x).maps
    close(mean, plain.mean((1, 2), keepdim=True).expand_as(plain))
