"""Every automatic layer is a cut between image and score whose cells are places of the image, or it is told.

The zoo has the networks, and `helpers.cuts` the judge, which knows nothing of how a layer is chosen.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers import cuts, zoo, zoo_odd
from helpers.zoo import Animal
from konkyo.engine.cuts import Graph

pytestmark = [
    pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

# What may be told, and of which networks: of all others the layer is a cut and placed.
TOLD = {
    **dict.fromkeys(("ensemble of 12", "flips averaged", "mean colour beside the features"), "not a cut"),
    **dict.fromkeys(
        ("gate from the mean colour", "U-Net", "lraspp_mobilenet_v3_large", "whole picture and its centre"), "not a cut"
    ),
    **dict.fromkeys(("SegFormer, segmentation", "UperNet on ConvNext", "Mask2Former on Swin"), "not a cut"),
    **dict.fromkeys(("Qwen3-VL", "qwen3_vl on grids"), "KonkyoError"),  # a trace takes heads of its text for places
    "turned by 90 degrees inside": "KonkyoError",
    "frozen backbone under no_grad": "zero gradient",
    # Their random weights are so small that nothing of the image arrives.
    **dict.fromkeys(("EfficientNet", "MobileViT", "MobileViTV2"), "constant"),
    **dict.fromkeys(("mirrored inside", "LSTM over rows of pixels", "Qwen2-VL", "Qwen2.5-VL"), "KonkyoError"),
}


@functools.cache
def animals() -> tuple[Animal, ...]:
    return tuple(zoo.animals())


@pytest.mark.parametrize("animal", animals(), ids=lambda animal: f"{animal.library}: {animal.name}")
def test_the_automatic_layer_is_a_cut_of_places_or_is_told(animal: Animal) -> None:
    pytest.importorskip(animal.library.replace("hand-made", "torch"))
    judgement = cuts.judged(animal)
    allowed = {f"cut; {animal.limit}" if animal.limit else "cut, placed"}
    if animal.name in TOLD and judgement.verdict not in allowed:
        assert judgement.verdict.startswith(f"told: {TOLD[animal.name]}"), judgement
    else:
        assert judgement.verdict in allowed, judgement


def test_the_zoo_is_large_and_has_every_kind() -> None:
    counts = {library: sum(a.library == library for a in animals()) for library in ("torchvision", "timm")}
    counts |= {library: sum(a.library == library for a in animals()) for library in ("transformers", "hand-made")}
    assert min(counts.values()) >= 20
    assert counts["timm"] >= 25
    assert counts["transformers"] >= 25
    assert len({a.name for a in animals()}) == len(animals()) == sum(counts.values())


# --- the judge can condemn --------------------------------------------------------------------------------------------


def judge(network: nn.Module, layer: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The share that goes around a named layer, and the share of its cells that are placed."""
    network = network.eval()
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(11))

    found = konkyo.engine.layer.Layer(layer, network.get_submodule(layer))

    return cuts.around(network, image, [found]), cuts.placed(network, image, found)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_judge_sees_what_goes_around(weight: float) -> None:
    """The share is that of a linear network, by hand: the pixels' weights of the one branch among those of both."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.side = nn.Conv2d(1, 5, 1, bias=False), nn.Conv2d(1, 5, 1, bias=False)
            nn.init.constant_(self.body.weight, 2.0)
            nn.init.constant_(self.side.weight, weight)

        def forward(self, x: Tensor) -> Tensor:
            return (self.body(x) + self.side(x)).mean((2, 3))

    share, placed = judge(Branches(), "body", (1, 8, 8))
    assert share == pytest.approx(weight / (2 + weight), rel=1e-5)
    assert placed == 1


def test_the_judge_sees_cells_at_other_places() -> None:
    torch.manual_seed(0)
    for network in (zoo_odd.mirrored(), zoo_odd.transposed()):
        share, placed = judge(network, "body", (3, 64, 64))
        assert share == 0
        assert placed < cuts.PLACED


def test_the_judge_looks_at_changes_where_there_is_no_gradient() -> None:
    torch.manual_seed(0)
    assert judge(zoo_odd.frozen(), "body", (3, 64, 64)) == (0, 1)
    assert judge(zoo_odd.frozen(), "body.0", (3, 64, 64)) == (0, 1)


# --- the graph that cuts are found in, by hand ------------------------------------------------------------------------


def test_what_a_graph_tells_of_its_outputs_by_hand() -> None:
    """image -> a -> b -> turned -> c -> normed, and normed + turned is what the score reads."""
    weight, image = torch.randn(2, 2, 3, 3), torch.randn(1, 2, 6, 6, requires_grad=True) * 1
    a = functional.conv2d(image, weight, padding=1)
    b = a.relu()
    turned = b.flip(-1)
    c = functional.conv2d(turned, weight, padding=1)
    normed = functional.group_norm(c, 1)
    both = normed + turned
    outputs = {"a": a, "b": b, "turned": turned, "c": c, "normed": normed, "both": both}
    assert image.grad_fn is not None
    nodes = {node: name for name, output in outputs.items() if (node := output.grad_fn) is not None}
    graph = Graph(both.mean(), image.grad_fn, nodes)
    assert graph.used == set(outputs)
    assert graph.weighted == {"a", "b", "turned"}  # which the second convolution follows
    assert graph.ends == {"normed", "both"}
    assert graph.in_position == {"a", "b"}

    def frontier(*stops: str) -> tuple[set[str], bool]:
        keys, avoided = graph.frontier(set(stops).__contains__)
        return set(keys), avoided

    assert frontier("a", "b") == ({"b"}, False)
    assert frontier("c") == ({"c"}, True)
    assert frontier("c", "turned") == ({"c", "turned"}, False)
    assert frontier() == (set(), True)
    assert graph.precedes(["c", "turned"])
    assert not graph.precedes(["turned"])
