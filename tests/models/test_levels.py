"""The five networks of the study: layer by layer, number of weights by number of weights."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from konkyo import KonkyoError
from konkyo.models.networks.levels import GAZE, LEVELS, gaze_network

COUNTS = {
    1: (4_866, 4_932),
    2: (389_314, 389_828),
    3: (1_208_258, 1_208_772),
    4: (400_542, 401_056),
    5: (4_824_962, 4_825_988),
}
"""The weights of the study's networks, of two classes and of four."""


def convolution(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1)


def of_the_table(number: int, classes: int) -> nn.Sequential:
    """Levels 1 and 2 as the study lists them, and where its hook is."""
    if number == 1:
        return nn.Sequential(
            convolution(1, 16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            convolution(16, 32),
            nn.ReLU(),  # 4: the hook
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, classes),
        )
    return nn.Sequential(
        *(convolution(1, 32), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(convolution(32, 64), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(convolution(64, 128), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2)),
        *(convolution(128, 256), nn.BatchNorm2d(256), nn.ReLU()),  # 13: the hook, before the ReLU
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, classes)),
    )


HOOKS = {1: 4, 2: 13}


def by_hand(number: int, state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """(what the hook sees, logits) of levels 3 to 5 in eval mode, from their weights and the table."""

    def conv(name: str, x: Tensor, padding: int = 1) -> Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        shape = (1, -1, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)

    def residual(name: str, x: Tensor) -> Tensor:
        inner = norm(f"{name}.first.1", conv(f"{name}.first.0", x)).relu()
        inner = norm(f"{name}.second.1", conv(f"{name}.second.0", inner))
        return (inner + conv(f"{name}.around", x, 0)).relu()

    def excited(name: str, x: Tensor) -> Tensor:
        x = norm(f"{name}.conv.1", conv(f"{name}.conv.0", x)).relu()
        hidden = (x.mean((2, 3)) @ state[f"{name}.gate.2.weight"].T + state[f"{name}.gate.2.bias"]).relu()
        gate = torch.sigmoid(hidden @ state[f"{name}.gate.4.weight"].T + state[f"{name}.gate.4.bias"])
        return x * gate[:, :, None, None]

    block = excited if number == 4 else residual
    x = functional.max_pool2d(norm("stage1.1", conv("stage1.0", images)).relu(), 2)
    for name in ("stage2", "stage3"):
        x = functional.max_pool2d(block(name, x), 2)
    grid = block(GAZE, x)
    return grid, grid.mean((2, 3)) @ state["head.weight"].T + state["head.bias"]


def seeded(number: int, classes: int = 3) -> nn.Module:
    """In double precision, with statistics of batch norm that are those of no fresh network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = gaze_network(number, classes).double().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
    return network


def images(count: int = 2, side: int = 24) -> Tensor:
    return torch.randn(count, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def seen(network: nn.Module, pictures: Tensor, name: str = GAZE) -> tuple[Tensor, Tensor]:
    """(what the layer puts out, the network's output)"""
    kept: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda _m, _a, output: kept.append(output.clone()))
    with torch.no_grad():
        output = network(pictures)
    handle.remove()
    (grid,) = kept
    return grid, output


@pytest.mark.parametrize("number", LEVELS)
def test_weights_are_as_many_as_in_the_study(number: int) -> None:
    with torch.device("meta"):
        counts = tuple(sum(p.numel() for p in gaze_network(number, classes).parameters()) for classes in (2, 4))
    assert counts == COUNTS[number]


@pytest.mark.parametrize("number", [1, 2])
def test_levels_1_and_2_are_the_tables_layers(number: int) -> None:
    ours, table = seeded(number), of_the_table(number, 3).double().eval()
    state = ours.state_dict()
    assert [t.shape for t in state.values()] == [t.shape for t in table.state_dict().values()]
    table.load_state_dict(OrderedDict(zip(table.state_dict(), state.values(), strict=True)))
    for mine, theirs in zip(seen(ours, images()), seen(table, images(), str(HOOKS[number])), strict=True):
        assert torch.equal(mine, theirs)
    leaves = [m for m in ours.modules() if not list(m.children())]
    assert [type(m) for m in leaves] == [type(m) for m in table]


@pytest.mark.parametrize("number", [3, 4, 5])
def test_levels_3_to_5_are_the_tables_sums(number: int) -> None:
    ours = seeded(number)
    for mine, theirs in zip(seen(ours, images()), by_hand(number, ours.state_dict(), images()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("number", LEVELS)
def test_the_grid_that_is_compared(number: int) -> None:
    with torch.device("meta"):
        network = gaze_network(number, 2)
        grid, output = seen(network, torch.empty(1, 1, 224, 224))
    channels = {1: 32, 5: 512}.get(number, 256)
    assert grid.shape == (1, channels, *([112, 112] if number == 1 else [28, 28]))
    assert output.shape == (1, 2)


@pytest.mark.parametrize("number", LEVELS)
def test_dropout_before_the_head(number: int) -> None:
    found = [m.p for m in gaze_network(number, 2).modules() if isinstance(m, nn.Dropout)]
    assert found == {1: [], 5: [0.6]}.get(number, [0.5])


def test_level_2_is_seen_before_its_relu() -> None:
    assert seen(seeded(2), images())[0].min() < 0
    for number in (1, 3, 4, 5):
        assert seen(seeded(number), images())[0].min() >= 0


@pytest.mark.parametrize("number", LEVELS)
def test_the_smallest_images(number: int) -> None:
    assert seeded(number)(images(side=16)).shape == (2, 3)


def test_images_of_several_channels() -> None:
    assert gaze_network(1, 2, channels=3)(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.filterwarnings("ignore::konkyo.errors.KonkyoWarning")  # a blank map of random weights
def test_grad_cam_of_these_levels_is_the_heads_weights(number: int) -> None:
    """alpha = W / (H W), whatever comes before the layer."""
    network = seeded(number)
    grid, _ = seen(network, images())
    shown = konkyo.explain(network, images(), method="grad_cam", target=1, layer=GAZE).signed
    alpha = network.get_submodule("head").weight[1] / grid[0, 0].numel()
    expected = torch.einsum("c,nchw->nhw", alpha, grid).detach()
    torch.testing.assert_close(shown, expected.to(shown), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("number", [0, 6, 9, -1])
def test_an_unknown_level(number: int) -> None:
    with pytest.raises(KonkyoError, match=rf"unknown level '{number}'.*On offer: 1, 2, 3, 4, 5"):
        gaze_network(number, 2)
