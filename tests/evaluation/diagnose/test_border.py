"""Use of the border: a net that reads its padding, one that does not, and one that has none."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from konkyo.evaluation.diagnose.border import BorderUse, border_finding, border_to_centre, border_use, outer_share


class ReadsPadding(nn.Module):
    """Two logits: the sum of the image's outermost cells seen against zeros, and a constant.

    On a uniform image a Laplacian is zero everywhere but where zeros are seen beyond the border.
    """

    def __init__(self) -> None:
        super().__init__()
        self.laplacian = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.laplacian.weight.data = torch.tensor([[[[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]]])

    def forward(self, images: Tensor) -> Tensor:
        score = self.laplacian(images).mean((1, 2, 3))
        return torch.stack([score, torch.full_like(score, 0.2)], 1)


def probabilities(network: nn.Module):
    return lambda images: network(images).softmax(1)


IMAGES = torch.full((10, 1, 6, 6), 1.0) + 0.01 * torch.randn(10, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_a_net_that_reads_its_padding_changes_all_decisions() -> None:
    network = ReadsPadding()
    before = copy.deepcopy(network.state_dict())
    use = border_use(probabilities(network), IMAGES, torch.zeros(10, dtype=torch.int64), batch=4)
    assert use.padded
    assert use.changed == {"reflect": 1.0, "replicate": 1.0}
    assert use.accuracy == {"zeros": 1.0, "reflect": 0.0, "replicate": 0.0}
    finding = border_finding(use)
    assert (finding.severity, finding.value, finding.cost) == ("low", 1.0, 30)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_net_that_pads_but_sees_the_middle_only_is_ok() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(2))
    middle = nn.Sequential(network, Middle())
    use = border_use(probabilities(middle), IMAGES)
    assert use.changed == {"reflect": 0.0, "replicate": 0.0}
    finding = border_finding(use, torch.rand(10, 4, 4), torch.ones(6, 6))
    assert finding.severity == "ok"
    assert finding.values["border to centre"] == 1
    assert "no power" in finding.sentence["en"]


def test_the_padding_that_changes_more_is_named() -> None:
    use = BorderUse(40, True, {"reflect": 0.55, "replicate": 0.1}, {})
    finding = border_finding(use)
    assert (finding.severity, finding.value) == ("low", 0.55)
    assert border_finding(replace(use, changed={"reflect": 0.1, "replicate": 0.5})).severity == "ok"


class Middle(nn.Module):
    def forward(self, cells: Tensor) -> Tensor:
        return cells[:, :, 2 * 6 + 2]


def test_a_net_without_padding_is_not_applicable() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    finding = border_finding(border_use(probabilities(network), IMAGES))
    assert finding.severity == "unknown"
    assert "not applicable" in finding.sentence["en"]


def test_the_outer_share_is_of_the_outermost_cells() -> None:
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 1] = maps[0, 1, 1] = 1
    maps[1, 2, 2], maps[1, 0, 0] = 3, -5
    assert outer_share(maps) == pytest.approx((0.25, 12 / 16))


def test_the_activity_at_the_border_is_compared_with_the_middle() -> None:
    activity = torch.full((8, 8), 2.0)
    activity[1:-1, 1:-1] = 1
    assert border_to_centre(activity) == 2
