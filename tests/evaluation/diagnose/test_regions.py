import numpy as np
import pytest
import torch
from torch import nn

import konkyo
from konkyo.errors import KonkyoError
from konkyo.evaluation.diagnose.cue_test import excesses, shares
from konkyo.evaluation.diagnose.interventions import moved
from konkyo.evaluation.diagnose.regions import region_mask


class Corner(nn.Module):
    """Logits are linear: those of class 1 are the sum of the lower right quarter."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(3, 1, 8, 8)
        weight[1, :, 4:, 4:] = 0.2
        self.head = nn.Conv2d(1, 3, 8)
        self.head.weight.data, self.head.bias.data = weight, torch.zeros(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images).flatten(1)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(18) % 3
    images = torch.zeros(18, 1, 8, 8)
    images[labels == 1, :, 4:, 4:] = 1.0
    return images, labels


def test_cover_and_paste_of_a_linear_network_are_the_hand_computed_ones() -> None:
    model = konkyo.Model(Corner(), classes=["a", "b", "c"])
    test = konkyo.region_test(model, [data()], (4, 4, 8, 8), target="b", controls=0)
    e = np.exp(0.2 * 16)
    fall = e / (e + 2) - 1 / 3
    assert test.cover.values == pytest.approx([fall] * 6, abs=1e-6)
    assert test.paste.values == pytest.approx([fall] * 6, abs=1e-6)
    assert test.cover.p < 0.05
    assert test.forwards == 18 + 6 + 96
    elsewhere = konkyo.region_test(model, [data()], "upper left", target="b", controls=0)
    assert np.abs(elsewhere.cover.values).max() < 1e-7
    assert test.summary()[1]
    assert "P covered" in test.table()[0]
    assert test.description()["cover"]["mean"] > 0.5


def test_a_result_is_one_line() -> None:
    model = konkyo.Model(Corner(), classes=["a", "b", "c"])
    shown = repr(konkyo.region_test(model, [data()], (4, 4, 8, 8), target="b", resamples=20))
    assert shown.startswith("RegionTest(6 images; covered, P falls by ")
    assert "\n" not in shown
    assert len(shown) < 160


def test_controls_are_taken_off() -> None:
    model = konkyo.Model(Corner(), classes=["a", "b", "c"])
    test = konkyo.region_test(model, [data()], (0, 0, 4, 4), target="b", controls=8)
    assert (test.cover.values <= 1e-7).all()
    assert test.cover.mean < -0.05


def test_regions_by_name_box_share_and_mask() -> None:
    assert region_mask((0.5, 0.5, 1.0, 1.0), (8, 8)).equal(region_mask((4, 4, 8, 8), (8, 8)))
    assert int(region_mask("border", (20, 20)).sum()) == 400 - 16 * 16
    assert region_mask("lower right", (9, 9))[6:, 6:].all()
    assert int(region_mask("lower right", (9, 9)).sum()) == 9
    with pytest.raises(KonkyoError, match="upper left"):
        region_mask("nowhere", (8, 8))
    images, labels = data()
    one_class = [(images[labels == 1], labels[labels == 1])]
    with pytest.raises(KonkyoError, match="of one"):
        konkyo.region_test(konkyo.Model(Corner()), one_class, "middle")


def test_moved_regions_keep_their_shape_and_overlap_little() -> None:
    region = region_mask((0, 0, 3, 2), (12, 12))
    for other in moved(region, 20, torch.Generator().manual_seed(0)):
        assert int(other.sum()) == 6
        assert int((other & region).sum()) <= 3


def test_excess_of_a_class_with_a_spot() -> None:
    maps = torch.ones(4, 8, 8)
    maps[2] = 0
    maps[2, 6:, 6:] = 1
    assert shares(maps)[0].flatten().allclose(torch.tensor(4 / 64, dtype=torch.float64))
    assert float(excesses(maps)[2]) == pytest.approx(1 - 4 / 64)
    assert int(excesses(maps).argmax()) == 2
