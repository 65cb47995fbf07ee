"""Guided backpropagation, relevance and the gradients of biases, against literal transcriptions and their sums."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from konkyo.backward import bias_terms
from konkyo.forward import Pass
from konkyo.layer import INPUT, Layer
from konkyo.probe import Probe
from networks import Attention, Dense, InPlaceAfter, SmallResNet, images, seeded

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance * expected.abs().max())


# --- guided backpropagation ------------------------------------------------------------------------------------------


class Relus(nn.Module):
    """Every way to write a ReLU: module, function, tensor method, in place or not, and ReLU6."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.act = kind, {"module": nn.ReLU(), "module_": nn.ReLU(True), "six": nn.ReLU6()}.get(kind)
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)

    def relu(self, x: Tensor) -> Tensor:
        if self.act is not None:
            return self.act(x)
        kinds = {
            "function": functional.relu,
            "function_": lambda v: functional.relu(v, inplace=True),
            "function__": functional.relu_,
            "torch": torch.relu,
            "torch_": torch.relu_,
            "tensor": lambda v: v.relu(),
            "tensor_": lambda v: v.relu_(),
            "six_": lambda v: functional.relu6(v, True),
        }
        return kinds[self.kind](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv2(self.relu(self.conv1(x)))).mean((2, 3)))


def literal_guided(network: Relus, x: Tensor, label: int) -> Tensor:
    """Forward and backward by hand, layer by layer."""
    top = 6.0 if network.kind.startswith("six") else torch.inf
    a1 = network.conv1(x)
    b1 = a1.clamp(0, top)
    a2 = network.conv2(b1)
    g = network.head.weight[label].view(1, -1, 1, 1).expand_as(a2) / a2[0, 0].numel()
    g = g * ((a2 > 0) & (a2 < top)) * (g > 0)
    g = functional.conv_transpose2d(g, network.conv2.weight, stride=2, padding=1, output_padding=1)
    g = g * ((a1 > 0) & (a1 < top)) * (g > 0)
    return functional.conv_transpose2d(g, network.conv1.weight, stride=2, padding=1, output_padding=1)[0]


@pytest.mark.parametrize(
    "kind",
    ["module", "module_", "six", "function", "function_", "function__", "torch", "torch_", "tensor", "tensor_", "six_"],
)
def test_guided_backprop_by_hand(kind: str) -> None:
    network, x = seeded(Relus(kind)), images(2) * 3
    found = konkyo.explain(network, x, method="guided_backprop", target=[1, 4])
    for i, label in enumerate([1, 4]):
        with torch.no_grad():
            expected = literal_guided(network, x[i : i + 1], label).abs().amax(0)
        close(found.maps[i], expected)
    plain = konkyo.explain(network, x, method="saliency", target=[1, 4])  # the next backward is the usual one again
    assert not torch.allclose(plain.maps, found.maps)


def test_guided_backprop_equals_captum() -> None:
    from captum.attr import GuidedBackprop

    class Separate(nn.Module):  # captum takes each ReLU module once, not in place
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(640, 5)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    network, x = seeded(Separate()), images(2)
    found = konkyo.explain(network, x, method="guided_backprop", target=2)
    with pytest.warns(UserWarning, match="Setting backward hooks"):
        expected = GuidedBackprop(network).attribute(x.clone().requires_grad_(), target=2)
    close(found.maps, expected.abs().amax(1))


def test_guided_grad_cam_is_the_product() -> None:
    network, x = seeded(SmallResNet()), images(3)
    parts = konkyo.compare(network, x, ["guided_backprop", "grad_cam", "guided_grad_cam"], target=[2, 4, 1])
    cam = functional.interpolate(parts["grad_cam"].maps[:, None], (32, 40), mode="bilinear")[:, 0]
    close(parts["guided_grad_cam"].maps, parts["guided_backprop"].maps * cam)


def test_guided_backprop_needs_a_relu() -> None:
    with pytest.raises(konkyo.NotApplicable, match="this network has none"):
        konkyo.explain(seeded(Attention()), images(1), method="guided_backprop")


# --- relevance -------------------------------------------------------------------------------------------------------


def relprop(z: Tensor, x: Tensor, relevance: Tensor) -> Tensor:
    """x * d/dx of z, weighted by relevance / z: what each of x contributed to z."""
    (c,) = torch.autograd.grad(z, x, torch.where(z == 0, 0, relevance / z), retain_graph=True)
    return x * c


def relprop_conv(conv: nn.Conv2d, x: Tensor, relevance: Tensor) -> Tensor:
    """The z+ rule as the authors' code has it: positive times positive and negative times negative, no bias."""
    p, n = x.detach().clamp(min=0).requires_grad_(), x.detach().clamp(max=0).requires_grad_()
    run = lambda v, w: functional.conv2d(v, w, None, conv.stride, conv.padding)
    z = run(p, conv.weight.clamp(min=0)) + run(n, conv.weight.clamp(max=0))
    return relprop(z, p, relevance) + relprop(z, n, relevance)


def literal_relevance(network: SmallResNet, image: Tensor, label: int, to: str) -> tuple[Tensor, Tensor]:
    """(activations of the layer, its relevance), module by module from the output down."""
    classes = network.head.out_features
    a1 = network.stage1(network.stem(image)).detach()
    a2 = network.stage2(a1).detach()

    def block(block: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
        c1 = block.conv1(x)
        r1 = block.bn1(c1).relu()
        c2 = block.conv2(r1)
        main, side = block.bn2(c2), block.shortcut(x)
        total = main + side
        share = torch.where(total == 0, 0, relevance / total)
        into_main, into_side = main * share, side * share  # the ReLU after the sum hands relevance on
        through = relprop_conv(block.conv2, r1, into_main)  # batch norms hand it on too
        return relprop_conv(block.conv1, x, through) + relprop_conv(block.shortcut, x, into_side)

    with torch.enable_grad():
        a3 = network.stage3(a2).detach()
        means = a3.mean((2, 3))
        relevance = torch.full((1, classes), -1 / classes, dtype=a3.dtype)
        relevance[0, label] = 1
        w = network.head.weight.clamp(min=0)
        per_mean = means * ((relevance / (means @ w.T)) @ w)
        total = a3.sum((2, 3), keepdim=True)
        r3 = torch.where(total == 0, 0, a3 / total) * per_mean[:, :, None, None]
        if to == "stage3":
            return a3, r3
        r2 = block(network.stage3, a2, r3)
        return (a2, r2) if to == "stage2" else (a1, block(network.stage2, a1, r2))


@pytest.mark.parametrize("layer", ["stage3", "stage2", "stage1"])
def test_relevance_cam_by_hand(layer: str) -> None:
    network, x = seeded(SmallResNet()), images(2)
    found = konkyo.explain(network, x, method="relevance_cam", layer=layer, target=[1, 4])
    for i, label in enumerate([1, 4]):
        a, r = literal_relevance(network, x[i : i + 1], label, layer)
        expected = (r.sum((2, 3), keepdim=True) * a).sum(1)[0].detach()
        close(found.signed[i], expected)


@pytest.mark.parametrize(("layer", "lost"), [("stage3", 1e-9), ("stage2", 1e-9), ("stage1", 0.02)])
def test_relevance_is_kept(layer: str, lost: float) -> None:
    """What is handed down adds up to what the output had, 1 - (K - 1) / K, but for units without positive input."""
    network, x = seeded(SmallResNet()), images(2)
    model = konkyo.Model(network)
    where = model.layer(layer, (3, 32, 40))
    probe = Probe(Pass(model, x, [where]), [konkyo.ClassTarget(3)] * 2, where)
    close(probe.relevance.flatten(1).sum(1), torch.full((2,), 1 - 4 / 5, dtype=torch.double), lost)


def test_relevance_at_a_module_that_has_a_rule_itself() -> None:
    """A ReLU hands relevance on: before it and after it there is the same."""
    network, x = seeded(SmallResNet()), images(2)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    found = []
    for layer in ("stem.1", "stem"):
        where = konkyo.Model(network).layer(layer, (3, 32, 40))
        found.append(Probe(Pass(konkyo.Model(network), x, [where]), [konkyo.ClassTarget(3)] * 2, where).relevance)
    close(*found)


def test_relevance_leaves_the_output_as_it_is() -> None:
    from konkyo.backward import positive_relevance

    network, x = seeded(SmallResNet()), images(2)
    with positive_relevance(network):
        again = network(x.clone().requires_grad_())
    torch.testing.assert_close(again, network(x))
    assert not any(m._forward_hooks for m in network.modules())


def test_relevance_says_where_there_is_no_rule() -> None:
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule for MultiheadAttention"):
        konkyo.explain(seeded(Attention()), images(1), method="relevance_cam")
    with pytest.raises(konkyo.NotApplicable, match="no class"):
        konkyo.explain(seeded(SmallResNet()), images(1), method="relevance_cam", target=lambda out: out.sum(1))


# --- the gradients of biases -----------------------------------------------------------------------------------------


def full_gradients(network: nn.Module, x: Tensor, label: int) -> tuple[tuple[Tensor, ...], Tensor]:
    layer = Layer(INPUT, None)
    pass_ = Pass(konkyo.Model(network), x, [layer], differentiable=[layer], within=[bias_terms])
    probe = Probe(pass_, [konkyo.ClassTarget(label)] * len(x), layer)
    return probe.full_gradients, probe.score


@pytest.mark.parametrize(
    "network", [SmallResNet(), SmallResNet(deep_head=False, classes=7), Dense(), InPlaceAfter(), Relus("six")]
)
def test_full_gradients_add_up_to_the_score(network: nn.Module) -> None:
    network, x = seeded(network), images(3)
    if isinstance(network, InPlaceAfter):
        network.forward = lambda v: network.head(network.act(network.conv(v)).mean((2, 3)))  # without its + 0.5
    if isinstance(network, Relus):
        x = x * 0.3  # no value beyond 6, where ReLU6 has a bias of its own
    terms, score = full_gradients(network, x, 1)
    close(sum(term.flatten(1).sum(1) for term in terms), score)
    assert len(terms) > 2


@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_full_grad_by_hand(scale: str) -> None:
    """Every channel of every term made a picture on its own and enlarged on its own, batch norms as convolutions."""
    network, x = seeded(SmallResNet()), images(2)
    found = konkyo.explain(network, x, method="full_grad", target=2, scale=scale)

    def psi(term: Tensor) -> Tensor:
        term = term.abs()
        low, high = (
            (term.amin(), term.amax())
            if scale == "layer"
            else (
                term.amin((2, 3), keepdim=True),
                term.amax((2, 3), keepdim=True),
            )
        )
        term = torch.where(high == low, 0, (term - low) / (high - low))
        return functional.interpolate(term, (32, 40), mode="bilinear").sum(1)[0]

    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for i in range(2):
        image = x[i : i + 1].clone().requires_grad_()
        outputs, handles = list[tuple[Tensor, Tensor]](), []
        for module in plain.modules():
            bias = network_bias(module) if isinstance(module, nn.BatchNorm2d) else getattr(module, "bias", None)
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and bias is not None:
                keep = lambda _m, _a, o, bias=bias, outputs=outputs: outputs.append((o, bias))
                handles.append(module.register_forward_hook(keep))
        score = forward_out_of_place(plain, image)[0, 2]
        for handle in handles:
            handle.remove()
        gradients = torch.autograd.grad(score, [image, *(o for o, _ in outputs)])
        expected = psi(image * gradients[0])
        for (_, bias), gradient in zip(outputs, gradients[1:], strict=True):
            expected = expected + psi(gradient * bias.view(1, -1, 1, 1))
        close(found.maps[i], expected.detach())


def network_bias(norm: nn.BatchNorm2d) -> Tensor:
    """What a batch norm puts out for zeros."""
    zeros = torch.zeros(1, norm.num_features, 1, 1, dtype=norm.weight.dtype)
    return functional.batch_norm(zeros, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)[
        0, :, 0, 0
    ]


def forward_out_of_place(network: SmallResNet, x: Tensor) -> Tensor:
    """SmallResNet without its in-place sum."""
    x = network.stem(x)
    for block in (network.stage1, network.stage2, network.stage3):
        inner = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        x = block.relu(inner + block.shortcut(x))
    return network.head(x.mean((2, 3)))


def test_full_grad_with_other_methods_in_one_pass() -> None:
    network, x = seeded(SmallResNet()), images(2)
    together = konkyo.compare(network, x, ["full_grad", "grad_cam", "saliency"], target=2)
    for name, result in together.items():
        close(result.signed, konkyo.explain(network, x, method=name, target=2).signed, 1e-6)
    calls: list[int] = []
    handle = network.stem.register_forward_hook(lambda *_: calls.append(1))
    konkyo.compare(network, x, ["full_grad", "grad_cam"], target=2)
    handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("method", ["guided_backprop", "guided_grad_cam", "relevance_cam", "full_grad"])
def test_a_batch_is_its_images(method: str) -> None:
    network, x, labels = seeded(SmallResNet()), images(3), [4, 0, 2]
    batch = konkyo.explain(network, x, method=method, target=labels)
    for i, label in enumerate(labels):
        one = konkyo.explain(network, x[i : i + 1], method=method, target=label)
        torch.testing.assert_close(batch.signed[i], one.signed[0], rtol=1e-5, atol=1e-7)


def test_full_grad_of_a_network_with_layers_of_tokens() -> None:
    """Tokens have no place in the map: what is left is the input's term and the patch embedding's."""
    network, x = seeded(Attention()), images(1)
    found = konkyo.explain(network, x, method="full_grad", target=1)
    terms, _ = full_gradients(network, x, 1)
    pictures = [t for t in terms if t.ndim == 4]
    assert [tuple(t.shape[1:]) for t in pictures] == [(3, 32, 40), (12, 4, 5)]
    expected = torch.zeros(32, 40, dtype=torch.double)
    for term in pictures:
        size = term.abs()
        size = (size - size.min()) / (size.max() - size.min())
        expected += functional.interpolate(size, (32, 40), mode="bilinear").sum(1)[0]
    close(found.maps[0], expected)
