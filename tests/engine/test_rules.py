"""Guided backpropagation, relevance and the gradients of biases, against literal transcriptions and their sums."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

import konkyo
from helpers.closeness import close
from helpers.networks import Attention, Dense, InPlaceAfter, SmallResNet, images, seeded
from konkyo.engine.biases import bias_terms
from konkyo.engine.forward import Pass
from konkyo.engine.layer import INPUT, Layer
from konkyo.engine.probe import Probe

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


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


def literal_guided(network: Relus, x: Tensor, label: int, *, masked: bool = True) -> Tensor:
    """Forward and backward by hand, layer by layer."""
    top = 6.0 if network.kind.startswith("six") else torch.inf
    a1 = network.conv1(x)
    b1 = a1.clamp(0, top)
    a2 = network.conv2(b1)
    g = network.head.weight[label].view(1, -1, 1, 1).expand_as(a2) / a2[0, 0].numel()
    g = g * (((a2 > 0) & (a2 < top)) | (not masked)) * (g > 0)
    g = functional.conv_transpose2d(g, network.conv2.weight, stride=2, padding=1, output_padding=1)
    g = g * (((a1 > 0) & (a1 < top)) | (not masked)) * (g > 0)
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


def test_guided_backprop_and_deconvnet_equal_captums() -> None:
    from captum.attr import Deconvolution, GuidedBackprop

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
    for method, theirs in (("guided_backprop", GuidedBackprop), ("deconvnet", Deconvolution)):
        found = konkyo.explain(network, x, method=method, target=2)
        with pytest.warns(UserWarning, match="Setting backward hooks"):
            expected = theirs(network).attribute(x.clone().requires_grad_(), target=2)
        close(found.maps, expected.abs().amax(1))


@pytest.mark.parametrize("kind", ["module", "module_", "six", "function__", "tensor"])
def test_deconvnet_by_hand(kind: str) -> None:
    network, x = seeded(Relus(kind)), images(2) * 3
    parts = konkyo.compare(network, x, ["deconvnet", "guided_backprop"], target=[1, 4])
    for i, label in enumerate([1, 4]):
        with torch.no_grad():
            close(parts["deconvnet"].maps[i], literal_guided(network, x[i : i + 1], label, masked=False).abs().amax(0))
            close(parts["guided_backprop"].maps[i], literal_guided(network, x[i : i + 1], label).abs().amax(0))
    assert torch.equal(  # without pooling it knows nothing of the image
        konkyo.explain(network, -x, method="deconvnet", target=[1, 4]).maps, parts["deconvnet"].maps
    )
    with pytest.raises(konkyo.NotApplicable, match="deconvnet"):
        konkyo.explain(seeded(Attention()), images(1), method="deconvnet")


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
    from konkyo.engine.relevance import ruled
    from konkyo.engine.rules import CONTRASTIVE

    network, x = seeded(SmallResNet()), images(2)
    with ruled(network, CONTRASTIVE):
        again = network(x.clone().requires_grad_())
    torch.testing.assert_close(again, network(x))
    assert not any(m._forward_hooks for m in network.modules())


def test_relevance_says_where_there_is_no_rule() -> None:
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule for MultiheadAttention"):
        konkyo.explain(seeded(Attention()), images(1), method="relevance_cam", layer="norm")
    with pytest.raises(konkyo.NotApplicable, match="no class"):
        konkyo.explain(seeded(SmallResNet()), images(1), method="relevance_cam", target=lambda out: out.sum(1))


class Between(nn.Module):
    """Something between two convolutions and the pooled head; no biases."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 6, 3, 1, 1, bias=False)
        self.head = nn.Linear(6, 5, bias=False)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.between(self.a(x))).relu().mean((2, 3)))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(_ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def scripted(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(swish)(x)


def attend(x: Tensor) -> Tensor:
    tokens = x.flatten(2).mT
    return functional.scaled_dot_product_attention(tokens, tokens, tokens).mT.reshape_as(x)


WITHOUT_RULE: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(functional, name)
        for name in (
            *("gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "softsign", "sigmoid", "tanh", "hardswish"),
            *("hardsigmoid", "hardtanh", "instance_norm", "normalize", "logsigmoid", "hardshrink"),
        )
    },
    **{
        name: getattr(torch, name)
        for name in ("sigmoid", "tanh", "exp", "square", "sqrt", "reciprocal", "erf", "sin", "log1p", "sigmoid_")
    },
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: functional.log_softmax(x, 1),
    "power": lambda x: x**2,
    "swish by hand": swish,
    "product": lambda x: x * x,
    "product in place": lambda x: x.clone().mul_(x),
    "quotient": lambda x: x / (x.relu() + 1),
    "constant over": lambda x: torch.ones((), dtype=x.dtype) / (x.relu() + 1),
    "number over": lambda x: 1 / (x.relu() + 1),
    "clamp": lambda x: x.clamp(-1, 1),
    "layer_norm": lambda x: functional.layer_norm(x, x.shape[1:]),
    "group_norm": lambda x: functional.group_norm(x, 2),
    "rms_norm": lambda x: functional.rms_norm(x, x.shape[1:]),
    "attention": attend,
    "matmul": lambda x: x @ x.mT @ x,
    "operator": torch.ops.aten.silu,
    "function of autograd": Doubled.apply,
    "script": scripted,
    "weights that follow": lambda x: functional.conv2d(x, x[:1].mean((2, 3), True).expand(6, 6, 1, 1)),
}
MODULES_WITHOUT_RULE = [
    *(nn.ELU(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.Softsign(), nn.Hardtanh(), nn.GELU(), nn.SiLU(True), nn.Mish()),
    *(nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.Softmax2d(), nn.LogSigmoid(), nn.LayerNorm(20)),
    *(nn.InstanceNorm2d(6), nn.GroupNorm(2, 6), nn.RMSNorm(20), nn.LocalResponseNorm(3), nn.ConvTranspose2d(6, 6, 1)),
]


def relevance_sums(network: nn.Module, layer: str = "a", x: Tensor | None = None) -> Tensor:
    x = images(2) if x is None else x
    where = konkyo.Model(network).layer(layer, tuple(x.shape[1:]))
    probe = Probe(Pass(konkyo.Model(network), x, [where]), [konkyo.ClassTarget(3)] * len(x), where)
    return probe.relevance.flatten(1).sum(1)


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_functions_without_a_relevance_rule(name: str) -> None:
    network = seeded(Between(WITHOUT_RULE[name]))
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule for"):
        relevance_sums(network)
    relevance_sums(network, "b")  # before the layer anything may run


@pytest.mark.parametrize("module", MODULES_WITHOUT_RULE, ids=lambda module: type(module).__name__)
def test_modules_without_a_relevance_rule(module: nn.Module) -> None:
    with pytest.raises(konkyo.NotApplicable, match=f"no relevance rule for {type(module).__name__}'s "):
        relevance_sums(seeded(Between(module)))


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu", "swish", "mish", "tanh", "relu2"])
def test_activations_of_transformers_without_a_relevance_rule(name: str) -> None:
    activations = pytest.importorskip("transformers.activations")
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule for"):
        relevance_sums(seeded(Between(activations.ACT2FN[name])))


def test_softmax_in_the_network_has_no_relevance_rule() -> None:
    network = seeded(SmallResNet())
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule for Ended's softmax"):
        relevance_sums(seeded(Ended(network, lambda x: x.softmax(1))), "0.stage2")
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule for DoubledBackward"):
        relevance_sums(seeded(Ended(network, Doubled.apply)), "0.stage2")


class Ended(nn.Sequential):
    """A network whose output a function puts out."""

    def __init__(self, network: nn.Module, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__(network)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(super().forward(x))


def assigned(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :3], out[:, 3:] = x[:, 3:], x[:, :3]
    return out


@pytest.mark.parametrize(
    "between",
    [
        *(functional.relu, nn.ReLU(True), torch.relu_, nn.LeakyReLU(), nn.PReLU(), nn.Dropout(0.5)),
        *(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(3), nn.Upsample(scale_factor=2), nn.ZeroPad2d(1)),
        *(lambda x: x * 3, lambda x: 2 * x, lambda x: x / 7, lambda x: -x, lambda x: x.clamp(min=0), assigned),
        *(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), lambda x: x + x.relu(), lambda x: x.mT.permute(0, 1, 3, 2)),
        *(lambda x: x.view(len(x), 2, 3, 16, 20).transpose(1, 2).reshape(x.shape), lambda x: (x > 0) * x),
        *(nn.Conv2d(6, 6, 3, padding="same", padding_mode="circular", bias=False), torch.ops.aten.relu),
        *(nn.BatchNorm2d(6), nn.SyncBatchNorm(6)),
        lambda x: functional.conv2d(
            x, torch.tensor([1.0, -1.0]).to(x).repeat(81).view(6, 3, 3, 3), padding=1, groups=2
        ),
        lambda x: functional.linear(input=x, weight=torch.tensor([1.0, -1.0]).to(x).repeat(200).view(20, 20)),
    ],
)
def test_relevance_is_kept_without_biases(between: Callable[[Tensor], Tensor]) -> None:
    """What the output starts with, 1 and four times -1/5, is there at the layer."""
    close(relevance_sums(seeded(Between(between))), torch.full((2,), 1 / 5, dtype=torch.double))


def test_relevance_by_a_function_is_that_by_the_module() -> None:
    """Of a convolution, called by position, by keyword, as a function, or in a class of its own with other weights."""
    network, x = seeded(Between(functional.relu)), images(2)
    conv = network.b
    expected = relevance_map(network, x)

    class Halved(nn.Conv2d):
        def forward(self, values: Tensor) -> Tensor:
            padded = functional.pad(values, (1, 1, 1, 1))
            return functional.conv2d(padded, self.weight / 2 * self.scale, self.bias, self.stride)

    halved = Halved(6, 6, 3, bias=False)
    halved.weight, halved.scale = conv.weight, nn.Parameter(torch.full((6, 1, 1, 1), 2.0, dtype=torch.double))
    for called in (
        lambda v: conv(input=v),
        lambda v: functional.conv2d(v, conv.weight, padding=1),
        lambda v: functional.conv2d(weight=conv.weight, padding=1, input=v, bias=None),
        halved,
    ):
        other = Between(functional.relu)
        other.load_state_dict(network.state_dict())
        del other.b
        other.b = called
        close(relevance_map(other.double().eval(), x), expected, 1e-9)


def relevance_map(network: nn.Module, x: Tensor) -> Tensor:
    where = konkyo.Model(network).layer("a", tuple(x.shape[1:]))
    return Probe(Pass(konkyo.Model(network), x, [where]), [konkyo.ClassTarget(3)] * len(x), where).relevance


def test_relevance_with_convolutions_of_timm() -> None:
    """Some pad for themselves, some make their weights anew at every call; that equals convolutions that do not."""
    timm = pytest.importorskip("timm")
    layers = timm.layers
    x = images(2)
    same = layers.Conv2dSame(6, 6, 3, 2, bias=False)
    close(relevance_sums(seeded(Between(same))), torch.full((2,), 1 / 5, dtype=torch.double))
    standard = seeded(Between(layers.ScaledStdConv2d(6, 6, 3, 1, 1, bias=False)))
    plain = copy.deepcopy(standard)
    plain.between = nn.Conv2d(6, 6, 3, 1, 1, bias=False).double()
    conv, w = standard.between, standard.between.weight.detach().flatten(1)
    w = (w - w.mean(1, True)) / (w.var(1, unbiased=False, keepdim=True) + conv.eps).sqrt()
    plain.between.weight.data = (w * (conv.gain.detach() * conv.scale).flatten(1)).view_as(conv.weight)
    torch.testing.assert_close(plain(x), standard(x))
    close(relevance_map(standard, x), relevance_map(plain, x))
    assert all(p.requires_grad for p in standard.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=5).eval()
    found = konkyo.explain(network, images(1, double=False), method="relevance_cam", layer="blocks.1", target=1)
    assert found.signed.isfinite().all()
    assert found.signed.abs().max() > 0


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


def test_full_gradients_of_modules_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=self.a(input=x).relu().mean((2, 3)))

    terms, score = full_gradients(seeded(Keyword()), images(3), 1)
    assert len(terms) == 3
    close(sum(term.flatten(1).sum(1) for term in terms), score)


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


class Tokens(nn.Module):
    """A batch norm whose grid is then read as tokens: its gradient comes with the strides of those."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.body(x)).flatten(2).transpose(1, 2)
        logits: Tensor = (self.head(tokens).softmax(1) * tokens.mean(2, keepdim=True)).sum(1)
        return logits


def test_one_image_has_the_gradient_that_it_has_among_others() -> None:
    torch.manual_seed(0)
    network = Tokens().eval()
    nn.init.uniform_(network.norm.running_var, 0.3, 3)
    nn.init.normal_(network.norm.weight)
    x = torch.randn(2, 3, 5, 7)
    pair = konkyo.explain(network, x, method="hires_cam", layer="body", target=1).maps
    torch.testing.assert_close(
        konkyo.explain(network, x[:1], method="hires_cam", layer="body", target=1).maps, pair[:1]
    )
    saliency = konkyo.explain(network.double(), x[:1].double(), method="saliency", target=1).maps[0]
    step = torch.zeros_like(x[:1]).double()
    step[0, :, 2, 3] = 1e-6 * torch.tensor([1.0, 0, 0])
    slope = ((network(x[:1].double() + step) - network(x[:1].double() - step))[0, 1] / 2e-6).item()
    assert abs(slope) <= float(saliency[2, 3]) * 1.001
    assert any(
        abs(
            abs(((network(x[:1].double() + s) - network(x[:1].double() - s))[0, 1] / 2e-6).item())
            - float(saliency[2, 3])
        )
        < 1e-4 * float(saliency.max())
        for s in (step, step.roll(1, 1), step.roll(2, 1))
    )


# --- every bias once a call, and what is missing ---------------------------------------------------------------------


class Wrapped(nn.Module):
    """LoRA as libraries write it: the wrapper shows its base layer's weight and bias as its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.lora_dropout = base, nn.Dropout(0.1)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 0.5 * self.up(self.down(self.lora_dropout(x)))


class With(nn.Module):
    """A network with something of one's own between its convolutions and its head; `between` gets (N, 8, h, w)."""

    def __init__(self, between: Callable[[Tensor], Tensor], head: nn.Module | None = None) -> None:
        super().__init__()
        body = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.body, self.between = nn.Sequential(*body), between
        self.head = nn.Linear(8, 5) if head is None else head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)).mean((2, 3)))


def parameter(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.double).requires_grad_()


def with_statistics(norm: nn.Module) -> nn.Module:
    for name, low in (("running_mean", -1), ("running_var", 0.5), ("bias", -1), ("weight", 0.5)):
        if getattr(norm, name, None) is not None:
            getattr(norm, name).data.uniform_(low, 2)
    return norm


def shared() -> nn.Module:
    one, other = nn.Linear(8, 8), nn.Linear(8, 8)
    other.bias = one.bias
    return nn.Sequential(one, nn.ReLU(), other, nn.ReLU(), nn.Linear(8, 5))


def twice() -> nn.Module:
    one = nn.Linear(8, 8)
    return nn.Sequential(one, nn.ReLU(), one, nn.ReLU(), nn.Linear(8, 5))


class OfLinear(nn.Module):
    """A linear layer written out: its own parameters, a function of torch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight, self.bias = how, nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return {
            "function": lambda: functional.linear(x, self.weight, self.bias),
            "keyword": lambda: functional.linear(x, bias=self.bias, weight=self.weight),
            "operators": lambda: x @ self.weight.T + self.bias,
            "addmm": lambda: torch.addmm(self.bias, x, self.weight.T, beta=2),
            "alpha": lambda: torch.add(x @ self.weight.T, self.bias, alpha=3).sub(0.25),
            "reversed": lambda: 1 - torch.rsub(x @ self.weight.T, self.bias, alpha=2),
            "sum": lambda: sum([x @ self.weight.T, self.bias]),
        }[self.how]()


class Overlay(nn.Module):
    """A bias added in place, on what is added to afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x += parameter(8, 1, 1)
        x.sub_(0.3)
        return x.relu_()


COMPLETE: dict[str, Callable[[], nn.Module]] = {
    "LoRA": lambda: With(nn.Identity(), Wrapped(nn.Linear(8, 5))),
    "LoRA twice": lambda: With(nn.Identity(), nn.Sequential(Wrapped(nn.Linear(8, 8)), Wrapped(nn.Linear(8, 5)))),
    "one bias of two layers": lambda: With(nn.Identity(), shared()),
    "a layer called twice": lambda: With(nn.Identity(), twice()),
    **{
        f"by hand: {how}": lambda how=how: With(nn.Identity(), OfLinear(how))
        for how in ("function", "keyword", "operators", "addmm", "alpha", "reversed", "sum")
    },
    "weight norm": lambda: With(nn.Identity(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))),
    "spectral norm": lambda: With(nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3))),
    "batch norm": lambda: With(with_statistics(nn.BatchNorm2d(8))),
    "batch norm without weights": lambda: With(with_statistics(nn.BatchNorm2d(8, affine=False))),
    "frozen batch norm": lambda: With(with_statistics(FrozenBatchNorm2d(8))),
    "instance norm": lambda: With(with_statistics(nn.InstanceNorm2d(8, affine=True, track_running_stats=True))),
    "transposed": lambda: With(nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.PReLU(8))),
    "in place": lambda: With(Overlay()),
    "bias from parameters": lambda: With(lambda x: x + (parameter(8, 8) @ parameter(8)).relu()[:, None, None]),
    "the input normalised": lambda: nn.Sequential(Shifted(), With(nn.Identity())),
    "without gradient": lambda: With(lambda x: x - (x * 0.5).detach()),
    "tokens first": lambda: With(
        lambda x: (x.flatten(2).permute(2, 0, 1) + parameter(80, 1, 8)).permute(1, 2, 0).reshape(x.shape).relu()
    ),
    "ReLU6": lambda: With(lambda x: functional.relu6(60 * x)),
    "ReLU6 in place": lambda: With(lambda x: functional.relu6(60 * x, inplace=True)),
    "hardtanh": lambda: With(nn.Hardtanh(0.01, 0.05)),
    "clamp": lambda: With(lambda x: x.clamp(max=0.05)),
    "largest": lambda: With(nn.AdaptiveMaxPool2d(2)),
    "frozen": lambda: With(nn.BatchNorm2d(8)).requires_grad_(False),
}


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - torch.tensor([0.4, 0.5, 0.6], dtype=x.dtype).view(3, 1, 1)) / 0.2


@pytest.mark.parametrize("name", COMPLETE)
def test_full_gradients_count_every_bias_once_a_call(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network, x = seeded(COMPLETE[name]()), images(3)
    terms, score = full_gradients(network, x, 1)
    close(sum(term.flatten(1).sum(1) for term in terms), score)
    plain = full_gradients(seeded(With(nn.Identity())), x, 1)[0]
    assert len(terms) >= len(plain) == 4
    found = konkyo.explain(network, x, method="full_grad", target=1)
    assert [d.kind for d in found.diagnosis] == ["ok"] * 3


def test_a_bias_that_a_wrapper_shows_is_one_term() -> None:
    linear = nn.Linear(8, 5)
    plain, wrapped = seeded(With(nn.Identity(), linear)), With(nn.Identity(), Wrapped(linear)).double().eval()
    wrapped.body = plain.body
    nn.init.zeros_(wrapped.head.up.weight)
    x = images(2)
    for one, other in zip(full_gradients(plain, x, 1)[0], full_gradients(wrapped, x, 1)[0], strict=True):
        close(one, other)
    methods = [konkyo.explain(n, x, method="full_grad", target=1).maps for n in (plain, wrapped)]
    close(methods[0], methods[1])
    assert len(full_gradients(seeded(With(nn.Identity(), shared())), x, 1)[0]) == 6
    assert len(full_gradients(seeded(With(nn.Identity(), twice())), x, 1)[0]) == 6


class Unseen(torch.autograd.Function):
    """Adds 2, unseen by torch's functions."""

    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x + 2

    @staticmethod
    def backward(_ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def recurrent() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.RNN(8, 8, nonlinearity="relu", batch_first=True), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.cell(x[:, None])[0][:, 0])

    return With(nn.Identity(), Recurrent())


INCOMPLETE: dict[str, Callable[[], nn.Module]] = {
    "a function of autograd": lambda: With(Unseen.apply),
    "traced": lambda: With(
        nn.Identity(), nn.Sequential(torch.jit.trace(nn.Linear(8, 8), torch.rand(1, 8)), nn.Linear(8, 5))
    ),
    "recurrent": recurrent,
    "joined on": lambda: With(lambda x: torch.cat([x, torch.full_like(x, 3.0)], 2)),
    "chosen": lambda: With(lambda x: torch.where(x > 0.1, x, torch.full_like(x, 3.0))),
    "filled in": lambda: With(lambda x: functional.pad(x, (1, 1, 1, 1), value=4.0)),
    "overwritten": lambda: With(lambda x: parameter(1, 8, 1, 1).expand_as(x).clone().add_(x)),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_what_full_gradients_miss_is_said(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of traced modules
        network, x = seeded(INCOMPLETE[name]()), images(2)
    for module in network.modules():
        if isinstance(module, nn.RNN):
            module.bias_ih_l0.data += 1
    terms, score = full_gradients(network, x, 1)
    sums = torch.stack([term.flatten(1).sum(1) for term in terms])
    share = (score - sums.sum(0)).abs() / (score.abs() + sums.abs().sum(0))
    assert (share > 0.005).all()
    for method, rows in (("full_grad", 2), ("augmented(full_grad)", 2)):
        found = konkyo.explain(network, x, method=method, target=1)
        assert [d.kind for d in found.diagnosis] == ["incomplete"] * rows
    message = konkyo.explain(network, x, method="full_grad", target=1).diagnosis[1].message
    assert message.startswith(f"{float(share[1]):.1%} of what adds up to the score")
    for target in (konkyo.ClassTarget(1, "probability"), konkyo.TopK(2), lambda out: out[:, 1] ** 2):
        found = konkyo.explain(network, x, method="full_grad", target=target)
        assert {d.kind for d in found.diagnosis} == {"incomplete"}
    both = konkyo.compare(network, x, ["full_grad", "input_x_gradient"], target=1)
    assert [d.kind for d in both["input_x_gradient"].diagnosis] == ["ok"] * 2


@pytest.mark.parametrize(
    "between", [nn.GELU(), nn.Sigmoid(), nn.GroupNorm(2, 8), lambda x: x * x.mean((2, 3), keepdim=True)]
)
def test_networks_that_are_not_piecewise_linear_claim_nothing(between: Callable[[Tensor], Tensor]) -> None:
    network, x = seeded(With(between)), images(2)
    terms, score = full_gradients(network, x, 1)
    assert not torch.allclose(sum(term.flatten(1).sum(1) for term in terms), score, rtol=1e-2)
    assert [d.kind for d in konkyo.explain(network, x, method="full_grad", target=1).diagnosis] == ["ok"] * 2


@pytest.mark.parametrize("probability", [False, True])
def test_full_gradients_of_a_score_that_bends_the_output_are_complete(probability: bool) -> None:
    network, x = seeded(With(nn.Identity())), images(2)
    target = konkyo.ClassTarget(1, "probability") if probability else konkyo.ContrastTarget(0, 2)
    found = konkyo.explain(network, x, method="full_grad", target=target)
    assert [d.kind for d in found.diagnosis] == ["ok"] * 2


# --- classes that there are not --------------------------------------------------------------------------------------

WRONG = {
    "beyond": 9,
    "negative": -1,
    "one of a list": [0, 9],
    "one below 0": [-1, 0],
    "a bool": True,
    "a bool of a list": [True, 0],
    "a number": 1.0,
    "a tensor": torch.tensor([0, 9]),
    "bools": torch.tensor([True, False]),
    "of each": konkyo.Each(0, 9),
    "a target": konkyo.ClassTarget(9),
    "of a probability": konkyo.ClassTarget(9, "probability"),
}


@pytest.mark.parametrize("classes", [5, 1])
@pytest.mark.parametrize("name", WRONG)
def test_a_class_that_there_is_not(name: str, classes: int) -> None:
    from captum.attr import Saliency

    network = seeded(With(nn.Identity(), nn.Linear(8, classes)))
    model = konkyo.Model(network)
    methods = ("relevance_cam", "augmented(relevance_cam)", "first_component(relevance_cam)", "cam", "full_grad")
    for method in (*methods, "finer_cam", "grad_cam", "gradient", Saliency(model)):
        with pytest.raises(konkyo.KonkyoError, match="class") as error:
            konkyo.explain(model, images(2), method=method, target=WRONG[name])
        if name in ("beyond", "negative"):
            assert f"(0 to {max(classes, 2) - 1})" in str(error.value) or method == "finer_cam"


@pytest.mark.parametrize("index", [True, 1.0, "cat", None, torch.rand(2)])
def test_an_index_is_a_whole_number(index: object) -> None:
    with pytest.raises(konkyo.KonkyoError, match="whole number"):
        konkyo.ClassTarget(index)  # type: ignore[arg-type]
    assert konkyo.ClassTarget(torch.tensor(3)) == konkyo.ClassTarget(3)
