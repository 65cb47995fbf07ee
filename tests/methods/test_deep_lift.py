"""DeepLIFT: its sum is exact in networks of all kinds, and its maps are those of closed forms and of Captum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
from captum.attr import DeepLift
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.closeness import close
from helpers.networks import SmallResNet, images, seeded
from konkyo.engine.forward import Pass
from konkyo.engine.layer import INPUT, Layer
from konkyo.engine.probe import Probe

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


def lift(network: nn.Module, x: Tensor, b: Tensor, target: object = 1, layer: str = "input") -> tuple[Tensor, Tensor]:
    """Contributions per channel and the baseline's score, in double precision."""
    model = konkyo.Model(network)
    where = Layer(INPUT, None) if layer == INPUT else model.layer(layer, tuple(x.shape[1:]))
    named = konkyo.ClassTarget(target) if isinstance(target, int) else target
    return Probe(Pass(model, x, [where]), [named] * len(x), where).lift(b)


class Net(nn.Module):
    """Two convolutions and a head, with something between."""

    def __init__(self, between: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.between, self.modules_ = between, nn.ModuleList(modules)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.second(self.between(self.first(x)))).mean((2, 3)))


def relu_in_place(x: Tensor) -> Tensor:
    y = x + 0
    y.relu_()
    y += 1
    y *= 2
    return functional.relu(y - 3, inplace=True)


def sigmoid_gate(x: Tensor) -> Tensor:
    return x * (1 - x.mean((2, 3), keepdim=True)).sigmoid()


def by_largest(x: Tensor) -> Tensor:
    return x / (x.abs().amax(1, keepdim=True) + 1) + torch.maximum(x, x.flip(-1)) + x.max(1, keepdim=True)[0]


def of_length(x: Tensor) -> Tensor:
    return functional.normalize(x, dim=1) + x / x.norm(dim=1, keepdim=True) + 1 / (x * x + 1)


def roots(x: Tensor) -> Tensor:
    y = x**2 + 0.1
    return y.sqrt() + y.rsqrt() + y.log() + (-y).exp() + x.pow(3) + y.reciprocal()


def softmaxes(x: Tensor) -> Tensor:
    scores = torch.einsum("nchw,nchv->nhwv", x, x.relu())
    masked = scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool), -torch.inf)
    return x @ masked.softmax(-1).mean(1)[:, None] + 9 * x.softmax(1)


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "reused": nn.ReLU(),
    "function": functional.relu,
    "in place": relu_in_place,
    "gelu": functional.gelu,
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "leaky": nn.LeakyReLU(0.1),
    "elu": nn.ELU(),
    "tanh": torch.tanh,
    "clamp": lambda x: x.clamp(-0.1, 0.2),
    "pooled after ReLU": lambda x: functional.max_pool2d(x.relu(), 2),
    "pooled": lambda x: functional.max_pool2d(x, 2, 1, padding=1),
    "adaptive": lambda x: functional.adaptive_max_pool2d(x, (5, 4)),
    "group norm": lambda x: functional.group_norm(x, 2),
    "instance norm": lambda x: functional.instance_norm(x).relu(),
    "layer norm": lambda x: functional.layer_norm(x, x.shape[2:]).relu(),
    "rms norm": lambda x: functional.rms_norm(x, x.shape[2:]),
    "gate": sigmoid_gate,
    "largest": by_largest,
    "length": of_length,
    "roots": roots,
    "softmax": softmaxes,
}


def check(network: nn.Module, x: Tensor, layer: str = "input") -> None:
    """The sum is the difference of the network's own scores."""
    b = images(len(x), seed=7) / 2
    b = b if b.shape == x.shape else functional.interpolate(b, size=x.shape[2:])
    found, below = lift(network, x, b, layer=layer)
    with torch.no_grad():
        above, expected = network(x)[:, 1], network(b)[:, 1]
    close(found.flatten(1).sum(1), above - expected, 1e-8)
    close(below, expected, 1e-12)


@pytest.mark.parametrize("between", list(BETWEEN))
def test_sum_is_exact(between: str) -> None:
    check(seeded(Net(BETWEEN[between])), images(2))


@pytest.mark.parametrize(
    "network",
    [
        SmallResNet,
        lambda: tv.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3),
        lambda: tv.mobilenet_v3_small(num_classes=3, width_mult=0.25),
    ],
    ids=["residual", "vit", "mobilenet"],
)
def test_sum_is_exact_in_whole_networks(network: Callable[[], nn.Module]) -> None:
    network = seeded(network())
    for name, tensor in network.state_dict().items():
        if "running" not in name and tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))
    x = images(2)
    check(network, functional.interpolate(x, size=(16, 16)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("after", [nn.ReLU(), nn.MaxPool2d(2)], ids=["relu", "pool"])
def test_equals_captum(after: nn.Module) -> None:
    """Captum's own sum is off where a max pooling follows a ReLU (0.9), so that each is alone here."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), after, nn.Conv2d(4, 6, 3), nn.ReLU()),
        *(nn.Flatten(), nn.LazyLinear(8), nn.Sigmoid(), nn.Linear(8, 3)),
    )
    x, b = images(2), images(2, seed=5)
    network(x.float())
    network = seeded(network)
    expected = DeepLift(network).attribute(x, b, target=1)
    close(lift(network, x, b)[0], expected.detach(), 1e-6)


def test_several_baselines_are_averaged() -> None:
    network, x = seeded(Net(functional.gelu)), images(2)
    several = konkyo.explain(network, x, method="deep_lift", target=1, baseline=[0.0, "white", "blur"])
    alone = [konkyo.explain(network, x, method="deep_lift", target=1, baseline=b) for b in (0.0, "white", "blur")]
    close(several.signed, sum(a.signed for a in alone) / 3)
    close(several.notes["baseline_score"], sum(a.notes["baseline_score"] for a in alone) / 3)
    assert several.notes["gap"].abs().max() < 1e-6


def test_linear_network() -> None:
    network, x = seeded(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AvgPool2d(4), nn.Flatten(), Half())), images(2)
    b = torch.tensor([0.3, -0.2, 0.1], dtype=x.dtype).view(3, 1, 1)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(network(leaf)[:, 1].sum(), leaf)
    found = konkyo.explain(network, x, method="deep_lift", target=1, baseline=b)
    close(found.signed, ((x - b) * slope).sum(1))


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 2, -1).sum(2) / 2


class OneReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.sum((1, 2, 3)) - 1).relu()[:, None]


def test_one_relu_by_hand() -> None:
    x = torch.zeros(1, 1, 2, 2, dtype=torch.double)
    x[0, 0, 0] = torch.tensor([4.0, -1.0])  # 3 in all: the ReLU is at 2, and at the baseline at -1
    found = konkyo.explain(OneReLU(), x, method="deep_lift", target=1, baseline=0.0)
    close(found.signed[0], torch.tensor([[8 / 3, -2 / 3], [0, 0]], dtype=torch.double))


def test_rows_and_hidden_layers() -> None:
    network, x = seeded(Net(functional.gelu)), images(2)
    several = konkyo.explain(network, x[:1], method="deep_lift", target=konkyo.Each(1, 4), baseline=0.0)
    for row, target in enumerate((1, 4)):
        alone = konkyo.explain(network, x[:1], method="deep_lift", target=target, baseline=0.0)
        close(several.signed[row], alone.signed[0])
    check(network, x, layer="second")


def test_score_itself_has_multipliers() -> None:
    network, x, b = seeded(Net(functional.relu)), images(2), images(2, seed=7)
    found, below = lift(network, x, b, lambda output: output.softmax(1)[:, 1])
    with torch.no_grad():
        scores = [network(z).softmax(1)[:, 1] for z in (x, b)]
    close(found.flatten(1).sum(1), scores[0] - scores[1], 1e-8)
    close(below, scores[1])


class Compares(nn.Module):
    """Values are taken where they are large, which has no multiplier."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.5 * x).mean((2, 3))


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(-1)[0].mean((2, 3))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.relu() if x.sum() else x).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "named"), [(Sorted(), "sort"), (Compares(), "where"), (Branches(), "other steps")], ids=str
)
def test_what_has_no_multiplier(network: nn.Module, named: str) -> None:
    with pytest.raises(konkyo.NotApplicable, match=named):
        konkyo.explain(network, images(1), method="deep_lift", target=1, baseline=0.0)
