"""Maps of a network in training: closed form, one gradient, and what they leave alone."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import konkyo
from helpers.networks import Attention, Returns, SmallResNet, Twice, images, seeded
from konkyo import KonkyoError
from konkyo.training.maps import Mode, TrainingMaps

SHAPE = (3, 32, 40)


class Plain(nn.Module):
    """Two convolutions without batch norm, and a head of pooling and one linear layer, or of a hidden one."""

    def __init__(self, classes: int = 4, *, drop: float = 0.0, bias: bool = True, deep: bool = False) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(6, 10, 3, 2, 1), nn.ReLU()
        self.drop = nn.Dropout(drop)
        linear = nn.Linear(10, classes, bias=bias)
        self.head = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, classes)) if deep else linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.head(self.drop(x.mean((2, 3))))


def network(kind: str = "resnet") -> nn.Module:
    made = {
        "resnet": SmallResNet,
        "plain": Plain,
        "no bias": lambda: Plain(bias=False),
        "one logit": lambda: Plain(1),
        "two logits": lambda: Plain(2),
        "deep": lambda: Plain(deep=True),
        "dropout": lambda: Plain(drop=0.5),
    }[kind]()
    return seeded(made).train()


def found(net: nn.Module, classes: Tensor, *, layer: str | None = None, mode: Mode = "auto", **options: str) -> Tensor:
    """The maps of a forward on the usual images, and no hooks left."""
    maps = TrainingMaps(net, SHAPE, layer=layer, mode=mode, **options)  # type: ignore[arg-type]
    torch.manual_seed(3)
    try:
        return maps(net(images(len(classes))), classes)
    finally:
        maps.close()
        assert hooks(net) == 0


def clean(net: nn.Module, layer: str | None = None) -> Tensor:
    """What `konkyo.explain` shows of a copy in eval mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of blank maps
        shown = konkyo.explain(
            copy.deepcopy(net).eval(), images(5), method="grad_cam", target=CLASSES.tolist(), layer=layer
        )
    return shown.maps.double()


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def weighted(maps: Tensor) -> Tensor:
    """A number that depends on every cell in its own way."""
    return (maps * torch.linspace(0.5, 2.0, maps.numel()).to(maps).view(maps.shape)).sum()


def gradients(net: nn.Module, value: Tensor) -> dict[str, Tensor | None]:
    names, parameters = zip(*net.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters, allow_unused=True), strict=True))


CLASSES = torch.tensor([3, 0, 1, 1, 2])


@pytest.mark.parametrize("kind", ["resnet", "plain", "no bias", "one logit"])
def test_the_closed_form_is_create_graph(kind: str) -> None:
    net = network(kind)
    labels = CLASSES % 2 if kind == "one logit" else CLASSES
    state = copy.deepcopy(net.state_dict())
    results = []
    for mode in ("closed_form", "autograd"):
        net.load_state_dict(state)
        maps = found(net, labels, mode=mode)  # type: ignore[arg-type]
        results.append((maps, gradients(net, weighted(maps))))
    (closed, mine), (graph, theirs) = results
    assert (closed.flatten(1).amax(1) > 0).sum() >= 3
    torch.testing.assert_close(closed, graph, rtol=0, atol=1e-5)
    assert any(name.startswith("head") and g is not None and g.abs().amax() > 1e-3 for name, g in mine.items())
    for name, gradient in mine.items():
        other = theirs[name]
        if gradient is None or other is None:  # the head's bias
            assert gradient is other is None, name
        else:
            torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6 * float(other.abs().amax()), msg=name)


def test_a_map_is_equation_1() -> None:
    """Literally: the mean over cells of dy/dA per channel, the channels summed with it, the ReLU; class by class."""
    net = network("deep")
    maps = found(net, CLASSES, layer="relu1")
    inside: list[Tensor] = []
    handle = net.relu1.register_forward_hook(lambda _m, _a, output: inside.append(output))  # type: ignore[union-attr]
    logits = net(images(5))
    handle.remove()
    (activations,) = inside
    for i, label in enumerate(CLASSES.tolist()):
        (gradient,) = torch.autograd.grad(logits[i, label], activations, retain_graph=True)
        height, width = activations.shape[2:]
        expected = torch.zeros(height, width, dtype=torch.float64)
        for k in range(activations.shape[1]):
            expected += gradient[i, k].sum() / (height * width) * activations[i, k]
        torch.testing.assert_close(maps[i], expected.relu(), rtol=1e-9, atol=1e-12)
    assert maps.requires_grad


@pytest.mark.parametrize(
    ("kind", "layer", "expected"),
    [
        *(("resnet", None, "closed_form"), ("no bias", None, "closed_form"), ("one logit", None, "closed_form")),
        *(("dropout", None, "closed_form"), ("plain", "relu2", "closed_form")),
        *(("deep", None, "autograd"), ("plain", "conv2", "autograd"), ("plain", "relu1", "autograd")),
    ],
)
def test_auto_finds_the_head(kind: str, layer: str | None, expected: str) -> None:
    assert TrainingMaps(network(kind), SHAPE, layer=layer).mode == expected


def test_auto_on_resnet18_wrapped() -> None:
    net = torchvision.models.resnet18(weights=None)
    maps = TrainingMaps(AveragedModel(net), (3, 64, 64))
    assert (maps.mode, maps.grid, maps.classes) == ("closed_form", (2, 2), 1000)


def test_a_bias_or_a_head_of_zeros_does_not_hide_what_comes_before_the_head() -> None:
    """Beside a large bias, or through weights of 0, the means of any grid look as if they made the output."""
    faint = network("plain")
    with torch.no_grad():
        faint.conv2.weight.mul_(1e-6)  # type: ignore[union-attr,operator]
        faint.conv2.bias.mul_(1e-6)  # type: ignore[union-attr,operator]
    zeros = network("plain")
    nn.init.zeros_(zeros.head.weight)  # type: ignore[union-attr,arg-type]
    for net in (faint, zeros):
        assert TrainingMaps(net, SHAPE, layer="conv2").mode == "autograd"
    assert TrainingMaps(faint, SHAPE, layer="relu2").mode == "closed_form"
    assert TrainingMaps(zeros, SHAPE, layer="relu2", mode="closed_form").mode == "closed_form"  # the user may know


def test_with_dropout_the_closed_form_is_the_clean_map() -> None:
    net = network("dropout")
    expected = clean(net)
    torch.testing.assert_close(found(net, CLASSES, mode="closed_form"), expected, rtol=1e-5, atol=1e-7)
    masked = found(net, CLASSES, mode="autograd")
    assert (masked - expected).abs().amax() > 0.1 * expected.amax()
    torch.testing.assert_close(found(net, CLASSES, mode="autograd", view="eval"), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["closed_form", "autograd", "detached"])
def test_the_view_of_evaluation_is_clean_and_touches_nothing(mode: Mode) -> None:
    net = network()
    net.stage1.eval()  # type: ignore[union-attr]
    maps = TrainingMaps(net, SHAPE, mode=mode, view="eval")
    logits = net(images(5))
    expected = clean(net)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    modes = [m.training for m in net.modules()]
    state = torch.random.get_rng_state()
    result = maps(logits, CLASSES)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in net.named_buffers():
        assert torch.equal(value, buffers[name]), name
    assert all(p.grad is None for p in net.parameters())
    found_gradients = gradients(net, weighted(result))
    assert found_gradients["stem.0.weight"] is not None
    assert found_gradients["stem.0.weight"].abs().amax() > 0
    maps.close()
    assert (found(net, CLASSES, mode=mode) - expected).abs().amax() > 1e-3  # batch statistics


def test_construction_touches_nothing() -> None:
    net = network()
    buffers, state = copy.deepcopy(dict(net.named_buffers())), torch.random.get_rng_state()
    maps = TrainingMaps(net, SHAPE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert hooks(net) == 3
    maps.close()
    maps.close()
    assert hooks(net) == 0


@pytest.mark.parametrize("kind", ["resnet", "deep"])
def test_detached_is_the_same_map_without_a_gradient_of_its_weights(kind: str) -> None:
    net = network(kind)
    graph = found(net, CLASSES, mode="autograd")
    constant = found(net, CLASSES, mode="detached")
    torch.testing.assert_close(constant, graph, rtol=1e-12, atol=1e-14)
    mine, theirs = gradients(net, weighted(constant)), gradients(net, weighted(graph))
    assert all(mine[name] is None for name in mine if name.startswith("head"))
    head = theirs["head.weight" if kind == "resnet" else "head.0.weight"]
    assert head is not None
    assert head.abs().amax() > 0
    if kind == "resnet":  # pooling and one linear layer: the weights are the head's own, whatever the backbone does
        for name, gradient in mine.items():
            if not name.startswith("head"):
                torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-12, msg=name)


def test_hidden_layers_have_a_second_derivative() -> None:
    """Against finite differences, by a weight before the layer and one after it."""
    net = network("deep")
    for name, where in (("conv1.weight", (2, 1, 0, 2)), ("head.0.weight", (3, 4)), ("head.2.weight", (1, 5))):
        weight = dict(net.named_parameters())[name]
        exact = gradients(net, weighted(found(net, CLASSES, layer="relu2", mode="autograd")))[name]
        assert exact is not None
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[where] += step
            values.append(weighted(found(net, CLASSES, layer="relu2", mode="autograd")).detach())
            with torch.no_grad():
                weight[where] -= step
        assert float(exact[where]) == pytest.approx(float(values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_the_last_forward_counts_and_each_counts_once() -> None:
    net = network("plain")
    maps = TrainingMaps(net, SHAPE)
    first = maps(net(images(5, seed=4)), CLASSES)
    net(images(3))
    again = maps(net(images(5, seed=4)), CLASSES)
    torch.testing.assert_close(first, again)
    (weighted(first) + weighted(again)).backward()  # two forwards, one backward
    logits = net(images(5))
    maps(logits, CLASSES)
    with pytest.raises(KonkyoError, match="run the network on images"):
        maps(logits, CLASSES)
    net = seeded(Twice()).train()
    maps = TrainingMaps(net, SHAPE, layer="shared#0")
    net(images(5, seed=4))
    result = maps(net(images(5)), CLASSES)
    maps.close()
    torch.testing.assert_close(result, found(net, CLASSES, layer="shared#0"))


def test_a_layer_that_is_called_twice_and_one_that_is_followed_in_place() -> None:
    net = seeded(Twice()).train()
    for which in ("shared#0", "shared#1"):
        torch.testing.assert_close(found(net, CLASSES, layer=which), clean(net, which), rtol=1e-5, atol=1e-7)
    net = network().eval()
    maps = found(net, CLASSES, layer="stage3.bn1")
    torch.testing.assert_close(maps, clean(net, "stage3.bn1"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("view", ["train", "eval"])
def test_outputs_that_are_no_tensors(view: str) -> None:
    net = seeded(Returns("dict"))
    maps = TrainingMaps(net, SHAPE, view=view)  # type: ignore[arg-type]
    expected = clean(net)
    torch.testing.assert_close(maps(net(x=images(5))["logits"], CLASSES), expected, rtol=1e-5, atol=1e-7)


def test_what_follows_the_layer_runs_with_the_attention_that_has_a_second_derivative() -> None:
    """Fused attention has none, which a backward long after would say in words of its own."""
    net = seeded(Attention()).train()
    expected = clean(net)
    fused = torch.backends.cuda.flash_sdp_enabled()
    for view in ("train", "eval"):
        maps = TrainingMaps(net, SHAPE, view=view)  # type: ignore[arg-type]
        logits = net(images(5))
        assert torch.backends.cuda.flash_sdp_enabled() == fused  # for this forward alone
        result = maps(logits, CLASSES)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)
        found_gradients = gradients(net, weighted(result))
        assert found_gradients["attention.in_proj_weight"] is not None
        exact, weight = found_gradients["attention.in_proj_weight"], net.attention.in_proj_weight  # type: ignore[union-attr]
        where = tuple(int(i) for i in (exact.abs() == exact.abs().amax()).nonzero()[0])
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[where] += step  # type: ignore[index,operator]
            values.append(weighted(maps(net(images(5)), CLASSES)).detach())
            with torch.no_grad():
                weight[where] -= step  # type: ignore[index,operator]
        assert float(exact[where]) == pytest.approx(float(values[0] - values[1]) / 2e-6, rel=1e-4)
        maps.close()
    assert found(net, CLASSES, mode="detached").requires_grad
    broken = TrainingMaps(net, SHAPE, mode="autograd")
    with pytest.raises(RuntimeError):
        net(images(5)[:, :2])
    assert torch.backends.cuda.flash_sdp_enabled() == fused
    broken.close()


def test_copies_are_not_watched() -> None:
    net = network("plain")
    maps = TrainingMaps(net, SHAPE)
    logits = net(images(5))
    averaged = AveragedModel(net)
    averaged(images(2))
    copy.deepcopy(net)(images(2))
    saved = io.BytesIO()
    torch.save(net, saved)
    saved.seek(0)
    torch.load(saved, weights_only=False)(images(2))
    assert len(maps(logits, CLASSES)) == 5
    twin = copy.deepcopy(maps)
    twin.network(images(5))
    with pytest.raises(KonkyoError, match="not watched"):
        twin(logits, CLASSES)
    twin.close()
    net(images(5))
    maps.close()
    with pytest.raises(KonkyoError, match="not watched"):
        maps(net(images(5)), CLASSES)
    own = copy.deepcopy(net)
    assert len(found(own, CLASSES)) == 5  # hooks of another that came with it are deaf


def test_what_cannot_be_is_said() -> None:
    net = network("plain")
    with pytest.raises(KonkyoError, match="did you mean 'autograd'"):
        TrainingMaps(net, SHAPE, mode="autogrd")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="unknown view 'test'"):
        TrainingMaps(net, SHAPE, view="test")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="closed_form needs global average pooling"):
        TrainingMaps(network("deep"), SHAPE, mode="closed_form")
    with pytest.raises(KonkyoError, match="one feature grid; 'input' has none"):
        TrainingMaps(net, SHAPE, layer="input")
    with pytest.raises(KonkyoError, match="logits"):
        TrainingMaps(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), SHAPE, layer="1")
    maps = TrainingMaps(net, SHAPE)
    with pytest.raises(KonkyoError, match="run the network on images before each call"):
        maps(torch.zeros(5, 4), CLASSES)
    with torch.no_grad():
        logits = net(images(5))
    with pytest.raises(KonkyoError, match="last forward was without gradients"):
        maps(logits, CLASSES)
    logits = net(images(5))
    with pytest.raises(KonkyoError, match="5 images went in; got logits of 5 and 4 labels"):
        maps(logits, CLASSES[:4])
    logits = net(images(5))
    with pytest.raises(KonkyoError, match="5 images went in; got logits of 3"):
        maps(logits[:3], CLASSES[:3])
    deep = network("deep")
    maps = TrainingMaps(deep, SHAPE)
    logits = deep(images(5)).detach()
    with pytest.raises(KonkyoError, match="cannot be differentiated by the layer"):
        maps(logits, CLASSES)


def test_autocast_leaves_maps_in_single_precision() -> None:
    for kind in ("plain", "deep"):
        net = network(kind).float()
        for mode in ("auto", "autograd", "detached"):
            full = TrainingMaps(net, SHAPE, mode=mode)  # type: ignore[arg-type]
            exact = full(net(images(5, double=False)), CLASSES)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = net(images(5, double=False))
                maps = full(logits, CLASSES)
            assert logits.dtype == torch.bfloat16
            assert maps.dtype == torch.float32
            assert (maps - exact).abs().amax() < 0.03 * exact.amax()
            weighted(maps).backward()
            weight = net.get_submodule("conv1").weight
            assert isinstance(weight.grad, Tensor)
            assert weight.grad.isfinite().all()
            full.close()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str) -> None:
    torch._dynamo.reset()
    net = network("plain").float()
    expected = found(copy.deepcopy(net).double(), CLASSES)
    compiled = torch.compile(net, backend=backend)
    for mode, view in (("closed_form", "train"), ("autograd", "train"), ("autograd", "eval")):
        torch._dynamo.reset()
        maps = TrainingMaps(compiled, SHAPE, mode=mode, view=view)  # type: ignore[arg-type]
        logits = compiled(images(5, double=False))
        if (backend, mode, view) == ("aot_eager", "autograd", "train"):
            with pytest.raises(KonkyoError, match=r"Under torch.compile use view='eval'"):
                maps(logits, CLASSES)
        else:
            result = maps(logits, CLASSES)
            torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-6)
            assert gradients(net, weighted(result))["conv1.weight"] is not None
        maps.close()
    torch._dynamo.reset()
    compiled(images(5, double=False))
    late = TrainingMaps(compiled, SHAPE)
    with pytest.raises(KonkyoError, match="hooks that are there at its first forward"):
        late(compiled(images(5, double=False)), CLASSES)


class Between(nn.Module):
    """A layer, something that is the identity at first, and a head of pooling and one linear layer."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.conv, self.between, self.head = nn.Conv2d(3, 6, 3, 2, 1), between, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.conv(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


@pytest.mark.parametrize("between", [nn.BatchNorm2d(6), Residual()], ids=["batch norm", "zero residual"])
def test_what_is_the_identity_at_first_does_not_pass_for_nothing(between: nn.Module) -> None:
    net = Between(between).eval()
    with torch.no_grad():
        x = images(2).float()
        assert torch.allclose(net.head(net.conv(x).mean((2, 3))), net(x), atol=1e-4)  # it is the identity now
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert TrainingMaps(net, SHAPE, layer="conv").mode == "autograd"
    assert TrainingMaps(Between(nn.Identity()), SHAPE, layer="conv").mode == "closed_form"
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_zero_initialised_residuals_of_a_library() -> None:
    net = torchvision.models.resnet18(weights=None, zero_init_residual=True)
    shape = (3, 64, 64)
    assert TrainingMaps(net, shape, layer="layer4.0").mode == "autograd"
    assert TrainingMaps(net, shape, layer="layer4.1").mode == "closed_form"


def test_large_maps_in_half_precision() -> None:
    """65,536 cells are more than the largest number of 16 bits."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net.append(nn.Linear(4, 2))
    x = torch.rand(2, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 1])
    maps = TrainingMaps(net, (1, 256, 256), layer="1", mode="autograd")
    whole = maps(net(x), classes)
    with torch.autocast("cpu", torch.float16):
        logits = net(x)
    half = maps(logits, classes)
    assert half.isfinite().all()
    torch.testing.assert_close(half, whole, rtol=0, atol=0.01 * whole.max().item())
