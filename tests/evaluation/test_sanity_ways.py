"""Parameter randomisation from the input up, by other likenesses, and its efficient form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

import konkyo
from helpers.networks import SmallResNet, images, seeded
from helpers.unregistered import made
from konkyo.errors import KonkyoError
from konkyo.evaluation.sanity import efficient_randomisation, randomisation
from konkyo.metrics.variants import ssim
from konkyo.utils.tensors import min_max


@made
def edges(inputs: Tensor) -> Tensor:
    return inputs.abs().sum(1)


def small() -> torch.nn.Module:
    return seeded(SmallResNet(), double=False)


@pytest.mark.parametrize("size", [(20, 31), (7, 9), (6, 12)])
def test_structural_similarity_is_scikit_images(size: tuple[int, int]) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    random = torch.Generator().manual_seed(0)
    one, noise = (torch.rand(3, *size, generator=random) for _ in range(2))
    other = 0.6 * one + 0.4 * noise
    found = ssim(one, other)
    if min(size) >= 11:
        for row in range(3):
            expected = skimage.structural_similarity(
                one[row].numpy(), other[row].numpy(), gaussian_weights=True, sigma=1.5, data_range=1.0
            )
            assert found[row].item() == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close(ssim(one, one), torch.ones(3))
    assert (found < 1).all()
    assert ssim(one, torch.ones_like(one)).isnan().all()
    with pytest.raises(KonkyoError, match="3 places"):
        ssim(one[:, :2], one[:, :2])


def test_from_the_input_up_the_parts_are_those_of_the_network_in_order() -> None:
    network = small()
    parts = [n for n, m in network.named_modules() if list(m.parameters(recurse=False))]
    found = randomisation(network, images(1, double=False), "gradient", order="bottom_up", steps=len(parts))
    assert list(found.steps) == parts
    down = randomisation(network, images(1, double=False), "gradient", steps=1)
    up = randomisation(network, images(1, double=False), "gradient", order="bottom_up", steps=1)
    assert up.test == "bottom_up"
    assert abs(float(down.similarity[-1])) < 0.5
    assert abs(float(up.similarity[-1])) < 0.5
    with pytest.raises(KonkyoError, match="'bottom_up'"):
        randomisation(network, images(1, double=False), "gradient", order="top_down")  # type: ignore[arg-type]


@pytest.mark.parametrize("likeness", ["ssim", "pearson"])
def test_other_likenesses_of_maps_without_signs(likeness: str) -> None:
    batch, network = images(2, double=False), small()
    same = randomisation(network, batch, edges, likeness=likeness, steps=2)
    torch.testing.assert_close(same.similarity, torch.ones_like(same.similarity))
    assert not same.passed
    found = randomisation(network, batch, "gradient", likeness=likeness, steps=1)
    usual = konkyo.explain(network, batch, method="gradient").maps.abs()
    assert found.similarity.shape == (1, len(usual))
    assert (found.similarity < 0.9).all()
    assert {"ssim": "structural similarity", "pearson": "correlation"}[likeness] in found.verdict
    with pytest.raises(KonkyoError, match="unknown likeness"):
        randomisation(network, batch, edges, likeness="mse")  # type: ignore[arg-type]
    assert min_max(usual).amax() == 1


def test_efficient_randomisation_by_hand() -> None:
    batch, seen = images(2, double=False), []

    @made
    def watched(inputs: Tensor) -> Tensor:
        seen.append((1 + len(seen)) * inputs.sum(1) ** (1 + 2 * len(seen)))
        return seen[-1]

    found = efficient_randomisation(small(), batch, watched, bins=20)
    for row in range(2):
        before, after = (entropy(np.histogram(m[row].numpy(), bins=20)[0]) for m in seen)
        assert found[row].item() == pytest.approx((after - before) / before, abs=0.02)
    assert efficient_randomisation(small(), batch, edges).tolist() == [0, 0]
    assert konkyo.efficient_randomisation is efficient_randomisation
    with pytest.raises(KonkyoError, match="bins >= 2"):
        efficient_randomisation(small(), batch, edges, bins=1)
