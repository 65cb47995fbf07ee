"""What covers a region, where named regions lie, and how far controls are moved."""

from __future__ import annotations

import math

import pytest
import torch

from konkyo.evaluation.diagnose.interventions import fill_of, moved
from konkyo.evaluation.diagnose.places import place_at, place_of
from konkyo.evaluation.diagnose.regions import NAMED, region_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_blur_goes_both_ways_over_images_that_are_not_square() -> None:
    image = torch.rand(1, 1, 4, 6, generator=seeded())
    result = fill_of("blur")(image, image, seeded())

    def weights(at: int, side: int) -> list[float]:
        raw = [math.exp(-((at - other) ** 2) / (2 * (0.12 * side) ** 2)) for other in range(side)]
        return [value / sum(raw) for value in raw]

    for y in range(4):
        for x in range(6):
            pairs = [(j, i, a * b) for j, a in enumerate(weights(y, 4)) for i, b in enumerate(weights(x, 6))]
            assert float(result[0, 0, y, x]) == pytest.approx(
                sum(w * float(image[0, 0, j, i]) for j, i, w in pairs), abs=1e-6
            )


def test_other_fills_keep_the_mean_and_the_deviation_of_every_channel() -> None:
    image = torch.rand(1, 3, 64, 48, generator=seeded(1)) * torch.tensor([1.0, 2, 3])[:, None, None]
    noise = fill_of("noise")(image, image, seeded(2))
    assert torch.allclose(noise.mean((2, 3)), image.mean((2, 3)), atol=0.1)
    assert torch.allclose(noise.std((2, 3)), image.std((2, 3)), rtol=0.1)
    mean = fill_of("mean")(image, image, seeded())
    assert torch.allclose(mean, image.mean((2, 3), keepdim=True).expand_as(image))


def test_a_named_region_is_the_ninth_that_it_is_called() -> None:
    def middle(name: str) -> tuple[float, float]:
        rows, columns = region_mask(name, (60, 90)).nonzero().float().mean(0).tolist()
        return (columns + 0.5) / 90, (rows + 0.5) / 60

    assert middle("upper right") == pytest.approx((5 / 6, 1 / 6))
    assert middle("lower left") == pytest.approx((1 / 6, 5 / 6))
    assert middle("lower middle") == pytest.approx((1 / 2, 5 / 6))
    assert middle("middle") == pytest.approx((1 / 2, 1 / 2))
    assert sum(region_mask(name, (60, 90)).int() for name in NAMED).eq(1).all()  # type: ignore[union-attr, arg-type]


def test_the_border_is_a_tenth_of_each_side() -> None:
    inside = ~region_mask("border", (20, 60))
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (2, 17, 6, 53)
    assert int(inside.sum()) == 16 * 48


def test_places_are_said_as_they_lie() -> None:
    assert place_at(0.9, 0.1)["en"] == "the upper right"
    assert place_at(0.5, 0.95) == {"en": "the bottom", "ja": "下"}
    map_ = torch.zeros(6, 6)
    map_[5, 0] = 2
    map_[0, 5] = -9
    assert place_of(map_)["en"] == "the lower left"


def test_a_control_overlaps_its_region_by_half_at_most_and_keeps_its_shape() -> None:
    region = torch.zeros(24, 32, dtype=torch.bool)
    region[4:12, 6:14] = True
    region[4, 6] = False
    overlaps = []
    for control in moved(region, 200, seeded(3)):
        assert int(control.sum()) == int(region.sum())
        overlaps.append(int((control & region).sum()) / int(region.sum()))
    assert 0 < max(overlaps) <= 0.5
    assert max(overlaps) > 0.3  # not all are far away
