"""Other paddings: against torch's own padding modes, module by module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.padding import Border, Padding

IMAGE = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(3))


def net(mode: str) -> nn.Module:
    """Returns a net of convolutions whose padding torch itself does in this mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode),
        nn.ReLU(),
        nn.Conv2d(4, 4, (3, 5), stride=2, padding=(1, 2), padding_mode=mode),
        nn.Conv2d(4, 6, (2, 3), padding="same", dilation=2, padding_mode=mode),
        nn.Conv2d(6, 6, 1, padding_mode=mode),
    ).eval()


@pytest.mark.parametrize("border", ["reflect", "replicate"])
def test_it_equals_a_network_built_with_that_padding(border: Border) -> None:
    network = net("zeros")
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        usual = network(IMAGE)
        with Padding(border) as padding:
            changed = network(IMAGE)
        assert torch.allclose(changed, net(border)(IMAGE), atol=1e-6)
        assert not torch.allclose(changed, usual, atol=1e-3)
        assert torch.equal(network(IMAGE), usual)
    assert padding.used == 3
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network[0].padding_mode == "zeros"


@pytest.mark.parametrize("border", ["reflect", "replicate"])
def test_padding_by_a_function_is_replaced_too(border: Border) -> None:
    with Padding(border):
        padded = functional.pad(IMAGE, (1, 2, 0, 1))
        modules = nn.ZeroPad2d(1)(IMAGE)
    assert torch.equal(padded, functional.pad(IMAGE, (1, 2, 0, 1), mode=border))
    assert torch.equal(modules, functional.pad(IMAGE, (1, 1, 1, 1), mode=border))


@pytest.mark.parametrize(
    ("grid", "pad", "value"),
    [(IMAGE, (1, 1), 0.5), (IMAGE, (-1, 1, 0, 0), 0.0), (IMAGE, (0, 0, 1, 1, 0, 0), 0.0), (IMAGE[0], (1, 1), 0.0)],
    ids=["no zeros", "cuts off", "channels", "no batch"],
)
def test_other_paddings_are_left_alone(grid: Tensor, pad: tuple[int, ...], value: float) -> None:
    with Padding("reflect") as padding:
        result = functional.pad(grid, pad, value=value)
    assert torch.equal(result, functional.pad(grid, pad, value=value))
    assert padding.used == 0


def test_a_grid_too_small_to_be_mirrored_is_repeated() -> None:
    grid = torch.arange(4.0).view(1, 1, 2, 2)
    convolution = nn.Conv2d(1, 1, 5, padding=2)
    with torch.no_grad(), Padding("reflect"):
        result = convolution(grid)
        expected = functional.conv2d(
            functional.pad(grid, (2, 2, 2, 2), mode="replicate"), convolution.weight, convolution.bias
        )
    assert torch.allclose(result, expected)
