"""The variational bottleneck and the backbone below it, against literal transcriptions and closed forms."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.networks import Attention, Block, Dense, InPlaceAfter, Returns, SmallResNet, images, seeded
from konkyo.errors import KonkyoError
from konkyo.models.networks.backbone import Backbone, features_of
from konkyo.models.networks.scenes import ScenesResNet
from konkyo.models.networks.vib import (
    LEAST,
    SOURCES,
    Noise,
    VIBClassifier,
    VIBHead,
    VIBLoss,
    VIBOutput,
    bits_of_channels,
    channel_attention,
    kl_divergence,
    linear_attention,
    sampled,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grids(*shape: int, seed: int = 0) -> Tensor:
    """As after a ReLU, with a dead channel."""
    grid = noise(*shape, seed=seed).relu()
    grid[:, 0] = 0
    return grid


def test_a_channel_lets_through_what_shannon_says() -> None:
    """One channel at a time; noise as large as the spread of the means: half a bit; none through a constant one."""
    mean, std = noise(50, 4), 0.1 + noise(50, 4, seed=1).abs()
    mean[:, 0], mean[:, 1] = 2.0, torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(25)
    std[:, 1] = 1.0
    found = bits_of_channels(mean, std)
    for channel in range(4):
        spread = sum((m - sum(mean[:, channel]) / 50) ** 2 for m in mean[:, channel]) / 50
        power = sum(s**2 for s in std[:, channel]) / 50
        assert float(found[channel]) == pytest.approx(math.log2(math.sqrt(1 + spread / power)))
    assert found[:2].tolist() == pytest.approx([0, 0.5])


def classifier(**options: object) -> VIBClassifier:
    torch.manual_seed(0)
    return VIBClassifier(seeded(SmallResNet()), 4, **options)  # type: ignore[arg-type]


# --- the backbone -----------------------------------------------------------------------------------------------------


def vgg() -> nn.Module:
    """torchvision's, but for its head's hundred million weights."""
    with torch.device("meta"):
        network = torchvision.models.vgg11(weights=None)
    network.classifier = nn.Sequential(nn.Linear(512 * 49, 4, device="meta"))
    network = network.to_empty(device="cpu")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


class Reading(SmallResNet):
    """Reads a size of its input when all else is done."""

    def forward(self, x: Tensor) -> Tensor:
        grid = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(self.pool(grid).view(x.size(0), -1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "scenes": (ScenesResNet, lambda m, x: m.stage4(m.stage3(m.stage2(m.stage1(m.stem(x)))))),
    "resnet18": (
        lambda: torchvision.models.resnet18(weights=None),
        lambda m, x: nn.Sequential(*list(m.children())[:-2])(x),
    ),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), lambda m, x: m.features(x)),
    "vgg11": (vgg, lambda m, x: m.features(x)),
    "densenet121": (lambda: torchvision.models.densenet121(weights=None), lambda m, x: m.features(x).relu()),
    "timm/resnet10t": (lambda: timm.create_model("resnet10t"), lambda m, x: m.forward_features(x)),
    "timm/efficientnet_lite0": (lambda: timm.create_model("efficientnet_lite0"), lambda m, x: m.forward_features(x)),
    "timm/convnext_atto": (lambda: timm.create_model("convnext_atto"), lambda m, x: m.forward_features(x)),
    "in place": (InPlaceAfter, lambda m, x: m.act(m.conv(x)) + 0.5),
    "reading": (Reading, lambda m, x: m.stage3(m.stage2(m.stage1(m.stem(x))))),
    "nested": (lambda: Returns("dict"), lambda m, x: m.body.stage3(m.body.stage2(m.body.stage1(m.body.stem(x))))),
    "sequential": (
        lambda: nn.Sequential(Block(3, 6, 2), nn.Sequential(nn.Conv2d(6, 7, 3), nn.ReLU()), nn.Flatten()),
        lambda m, x: m[1](m[0](x)),
    ),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_features_are_what_the_network_makes_before_its_pooling(name: str) -> None:
    build, expected = NETWORKS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = build().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    backbone = features_of(network)
    pictures = torch.randn(2, 3, 64, 96)
    grid = backbone(pictures)
    assert torch.equal(grid, expected(network, pictures))
    assert grid.shape[1] == backbone.channels
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert {key for key, _ in backbone.features.named_parameters()} <= set(before)
    loaded = copy.deepcopy(backbone)
    loaded.load_state_dict({key: torch.zeros_like(value) for key, value in backbone.state_dict().items()})
    loaded.load_state_dict(backbone.state_dict())
    assert torch.equal(loaded(pictures), grid)
    backbone.train()(pictures).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())  # as DistributedDataParallel wants it
    assert all(p.grad is None for p in network.parameters())


def test_the_features_train_as_the_networks_do() -> None:
    torch.manual_seed(0)
    network = timm.create_model("efficientnet_lite0", drop_path_rate=0.2).train()  # batch norms, drop path
    backbone, pictures = features_of(network), torch.randn(2, 3, 64, 64)
    assert network.training
    assert all(m.training for m in backbone.modules())
    torch.manual_seed(1)
    grid = backbone(pictures)
    torch.manual_seed(1)
    expected = network.forward_features(pictures)
    assert torch.equal(grid, expected)
    assert torch.equal(backbone.features.bn1.running_mean, network.bn1.running_mean)
    network.eval()
    network.bn1.train()
    mixed = features_of(network)
    assert mixed.features.bn1.training
    assert not mixed.features.conv_stem.training
    assert not mixed.training


def test_weights_and_constants_of_the_forward_itself_come_along() -> None:
    class Shifted(SmallResNet):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) * self.shift)

    network, pictures = seeded(Shifted()), images()
    backbone = features_of(network)
    shifted = (pictures - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) * network.shift
    assert torch.equal(backbone(pictures), network.stage3(network.stage2(network.stage1(network.stem(shifted)))))
    assert isinstance(backbone.features.shift, nn.Parameter)
    assert "features.shift" in backbone.state_dict()


def test_a_layer_can_be_named() -> None:
    network, pictures = seeded(SmallResNet()), images()
    assert torch.equal(features_of(network, "stage2")(pictures), network.stage2(network.stage1(network.stem(pictures))))
    inner = features_of(network, "stage3.bn1")
    assert inner.channels == 24
    x = network.stage2(network.stage1(network.stem(pictures)))
    assert torch.equal(inner(pictures), network.stage3.bn1(network.stage3.conv1(x)))
    assert not any("conv2" in key for key, _ in inner.named_parameters() if "stage3" in key)
    wrapped = features_of(konkyo.Model(network, classes=tuple("abcde")))
    assert torch.equal(wrapped(pictures), network.stage3(x))


def test_what_the_features_are_refuses_to_be_guessed() -> None:
    with pytest.raises(KonkyoError, match="more than a head"):
        features_of(Attention())
    with pytest.raises(KonkyoError, match="did you mean 'stage3'"):
        features_of(SmallResNet(), "stage_3")
    with pytest.raises(KonkyoError, match="is no grid"):
        features_of(SmallResNet(), "head")
    with pytest.raises(KonkyoError, match="no last feature grid"):
        features_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 128 * 128, 2)))

    class TwoGrids(SmallResNet):
        """A head that sees the third stage and the second."""

        def forward(self, x: Tensor) -> Tensor:
            x = self.stage2(self.stage1(self.stem(x)))
            return torch.cat([x.mean((2, 3)), self.stage3(x).mean((2, 3))], 1)

    with pytest.raises(KonkyoError, match=r"more than a head \(stage3\.conv1, "):
        features_of(TwoGrids())

    class Branching(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.mean() > 0 else -x)

    class Changing(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 1 if self.training else x)

    network = Changing().eval()
    for broken in (Branching(), network):
        with pytest.raises(KonkyoError, match=r"Backbone\(features, channels\)"):
            features_of(broken)
    assert not any(m.training for m in network.modules())
    with pytest.raises(KonkyoError, match="a grid \\(N, 5, h, w\\); this one put out \\(3, 8, 32, 40\\)"):
        Backbone(seeded(SmallResNet()).stem, 5)(images())


def test_networks_of_one_size_and_one_channel() -> None:
    fixed = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.Flatten(), nn.Linear(96, 2))
    backbone = features_of(fixed, shape=(1, 16, 16))
    assert backbone(torch.randn(2, 1, 16, 16)).shape == (2, 6, 4, 4)
    assert features_of(fixed).channels == 6  # the head's refusal of other sizes comes after the grid
    assert features_of(SmallResNet(channels=2)).channels == 24


def test_a_backbone_is_pickled_whole() -> None:
    backbone, pictures = features_of(seeded(SmallResNet())), images()
    file = io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(pictures), backbone(pictures))


# --- the standard deviation -------------------------------------------------------------------------------------------


def naive_attention(grid: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
    """Image by image, with the C x C matrix, and the mean taken of the mixed maps."""
    rows = []
    for image, value in zip(grid.flatten(2), values, strict=True):
        q = (image - image.mean(1, keepdim=True)) / (image.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        energies = q @ q.T / (temperature * math.sqrt(image.shape[1]))
        rows.append((energies.exp() / energies.exp().sum(1, keepdim=True)) @ value)
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("side", [(7, 7), (4, 4), (3, 5), (1, 1)])
def test_channel_attention_is_the_softmax_of_all_pairs(side: tuple[int, int], temperature: float) -> None:
    grid = grids(2, 40, *side).requires_grad_()
    mean = grid.mean((-2, -1))
    found, expected = channel_attention(grid, mean, temperature), naive_attention(grid, mean, temperature)
    assert torch.allclose(found, expected, atol=1e-12)
    weights = noise(2, 40, seed=1)
    gradients = [torch.autograd.grad((s * weights).sum(), grid, retain_graph=True)[0] for s in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-10)


def test_attention_of_the_means_is_the_mean_of_the_mixed_maps() -> None:
    grid = grids(2, 12, 5, 4)
    q = functional.layer_norm(grid.flatten(2), (20,))
    mixed = torch.softmax(q @ q.mT / math.sqrt(20), -1) @ grid.flatten(2)
    assert torch.allclose(channel_attention(grid, grid.mean((-2, -1))), mixed.mean(2), atol=1e-12)


def test_linear_attention_is_its_kernel_normalised() -> None:
    grid = grids(2, 12, 5, 4)
    mean = grid.mean((-2, -1))
    features = functional.elu(functional.layer_norm(grid.flatten(2), (20,))) + 1
    kernel = features @ features.mT
    expected = ((kernel / kernel.sum(-1, keepdim=True)) @ mean[..., None])[..., 0]
    assert torch.allclose(linear_attention(grid, mean), expected, atol=1e-12)


@pytest.mark.parametrize("variant", ["affine", "plain"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_standard_deviation_is_that_of_the_options(source: str, variant: str) -> None:
    torch.manual_seed(0)
    grid = grids(3, 10, 4, 4)
    head = VIBHead(10, 3, noise=Noise(source, variant, offset=-2.0, temperature=0.5)).double()  # type: ignore[arg-type]
    mean, std = head.code(grid)
    assert torch.equal(mean, grid.mean((-2, -1)))
    value = torch.ones_like(mean)
    if source == "attention":
        value = naive_attention(grid, mean, 0.5)
    elif source == "linear":
        value = linear_attention(grid, mean)
    elif head.spread is not None:
        value = head.spread(mean)
    expected = (1 + (value - 2).exp()).log() if variant == "affine" else value.abs()
    assert torch.allclose(std, expected + LEAST, atol=1e-12)
    assert (std > 0).all()
    output = head(grid)
    VIBLoss(1e-3)(output, torch.tensor([0, 1, 2]))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_a_signed_grid_has_a_standard_deviation_too() -> None:
    grid = -noise(2, 6, 4, 4).abs()
    grid[0] = 0
    mean, std = VIBHead(6, 3, noise=Noise(variant="plain")).double().code(grid)
    assert (std >= LEAST).all()
    assert kl_divergence(mean, std).isfinite().all()


# --- the divergence ---------------------------------------------------------------------------------------------------


def test_the_divergence_is_torchs() -> None:
    mean, std = noise(4, 9), noise(4, 9, seed=1).exp()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl_divergence(mean, std), expected, atol=1e-12)
    assert kl_divergence(torch.zeros(2, 5), torch.ones(2, 5)).tolist() == [0, 0]
    assert kl_divergence(mean.bfloat16(), std.bfloat16()).dtype == torch.float32


def test_equal_mean_and_deviation_never_cost_less_than_half_a_bit() -> None:
    both = torch.linspace(1e-3, 3, 30000, dtype=torch.float64)[:, None]
    divergence = kl_divergence(both, both)
    assert divergence.amin() >= math.log(2) / 2
    assert float(divergence.amin()) == pytest.approx(math.log(2) / 2, abs=1e-8)
    assert float(both[divergence.argmin()]) == pytest.approx(math.sqrt(0.5), abs=1e-3)
    # Attention among equal channels gives each its own mean.
    grid = noise(1, 1, 4, 4).abs().expand(2, 32, 4, 4)
    output = VIBHead(32, 3, noise=Noise(variant="plain")).double()(grid)
    assert (output.kl >= 32 * math.log(2) / 2).all()


# --- the head, the loss -----------------------------------------------------------------------------------------------


def test_samples_are_of_the_code() -> None:
    head, grid = VIBHead(6, 3, samples=20000).double(), grids(2, 6, 4, 4)
    head.offset.data.fill_(0.5)
    output = head(grid)
    assert output.logits.shape == (20000, 2, 3)
    weight = head.fc.weight
    assert torch.allclose(output.logits.mean(0), head.fc(output.mean), atol=0.05)
    spread = (output.std.square() @ weight.T.square()).sqrt()  # of a sum of independent normals
    assert torch.allclose(output.logits.std(0), spread, rtol=0.03)
    torch.manual_seed(3)
    drawn = sampled(output.mean, output.std, 2)
    torch.manual_seed(3)
    assert torch.equal(drawn, output.mean + output.std * torch.randn(2, 2, 6, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_equation_2(reduction: str) -> None:
    torch.manual_seed(0)
    head, grid, labels = VIBHead(6, 3, samples=4).double(), grids(5, 6, 4, 4), torch.tensor([0, 2, 1, 0, 2])
    output = head(grid)
    terms = VIBLoss(0.1, reduction)(output, labels)  # type: ignore[arg-type]
    ce = -sum(output.logits[s, n].log_softmax(0)[labels[n]].item() for s in range(4) for n in range(5)) / 20
    each = 0.5 * (output.mean**2 + output.std**2 - 1 - 2 * output.std.log())
    kl = each.sum(1).mean()
    weighed = 0.1 * (each.mean() if reduction == "mean" else kl)
    assert terms["loss"].item() == pytest.approx(ce + weighed.item(), rel=1e-12)
    assert float(terms["ce"]) == pytest.approx(ce, rel=1e-12)
    assert float(terms["kl"]) == pytest.approx(kl.item())
    assert float(terms["bits"]) == pytest.approx(kl.item() / math.log(2))
    assert float(terms["kl_over_log_k"]) == pytest.approx(kl.item() / math.log(3))
    assert float(terms["information"]) == pytest.approx(math.log(3) - ce)
    assert float(terms["mean"]) == pytest.approx(float(grid.mean()))
    assert float(terms["std"]) == pytest.approx(output.std.mean().item())
    assert terms["loss"].requires_grad
    assert not any(term.requires_grad for name, term in terms.items() if name != "loss")
    soft = functional.one_hot(labels, 3).double()
    assert torch.allclose(VIBLoss(0.1, reduction)(output, soft)["loss"], terms["loss"])  # type: ignore[arg-type]


def test_the_gradient_of_the_loss_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    head, labels = VIBHead(5, 3, noise=Noise(offset=0.0), samples=2).double(), torch.tensor([1, 0])

    def loss(grid: Tensor) -> Tensor:
        torch.manual_seed(7)
        return VIBLoss(0.3)(head(grid), labels)["loss"]

    grid = (noise(2, 5, 3, 4).abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(loss, [grid], eps=1e-6, atol=1e-6)


def test_the_effective_beta_is_told() -> None:
    loss = VIBLoss(0.1, "mean")
    assert loss.effective_beta(2048) == 0.1 / 2048
    assert VIBLoss(0.1).effective_beta(2048) == 0.1
    assert "4.88e-05 times their sum" in loss.describe(2048)
    assert VIBLoss(0.1).describe(2048) == "beta 0.1 times the KL summed over 2048 channels"


def test_mistakes_are_told() -> None:
    with pytest.raises(KonkyoError, match="beta >= 0"):
        VIBLoss(-1.0)
    with pytest.raises(KonkyoError, match="On offer: sum, mean"):
        VIBLoss(1.0, "max")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="did you mean 'attention'"):
        Noise("atention")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="On offer: affine, plain"):
        Noise(variant="x")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="positive temperature"):
        Noise(temperature=0.0)
    with pytest.raises(KonkyoError, match="at least one sample"):
        VIBHead(3, 2, samples=0)
    with pytest.raises(KonkyoError, match="in eval mode"):
        VIBLoss(1.0)(torch.zeros(2, 3), torch.tensor([0, 1]))


# --- the classifier ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of maps that are blank before a random head
def test_in_evaluation_the_logits_are_the_mean_of_the_maps() -> None:
    network, pictures = classifier().eval(), images()
    logits = network(pictures)
    assert isinstance(logits, Tensor)
    grid, fc = network.backbone(pictures), network.head.fc
    maps = torch.einsum("kc,nchw->nkhw", fc.weight, grid)
    assert torch.allclose(maps.mean((-2, -1)) + fc.bias, logits, atol=1e-12)
    for target in range(4):
        found = konkyo.explain(network, pictures, method="cam", target=target)
        assert torch.allclose(found.maps.double(), maps[:, target].float().double(), atol=1e-6)
        assert torch.allclose(found.maps.mean((-2, -1)).double() + fc.bias[target], logits[:, target], atol=1e-5)
        gradient = konkyo.explain(network, pictures, method="grad_cam", target=target)
        places = grid.shape[2] * grid.shape[3]
        assert torch.allclose(gradient.maps, found.maps.relu() / places, atol=1e-6)
    assert torch.equal(network(pictures), logits)


def test_maps_of_a_network_in_training_are_those_of_evaluation() -> None:
    network, pictures = classifier().train(), images()
    found = konkyo.explain(network, pictures, method="cam", target=1).maps
    assert network.training
    assert torch.equal(found, konkyo.explain(network.eval(), pictures, method="cam", target=1).maps)


def test_the_predictive_distribution_is_the_average_of_samples() -> None:
    network, pictures = classifier(noise=Noise(offset=1.0)).train(), images()
    state = torch.random.get_rng_state()
    found = network.predictive(pictures, 5, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training
    assert not found.requires_grad
    assert torch.allclose(found.sum(1), torch.ones(3, dtype=torch.float64))
    network.eval()
    mean, std = network.head.code(network.backbone(pictures))
    generator, total = torch.Generator().manual_seed(3), torch.zeros(3, 4, dtype=torch.float64)
    draws = torch.randn(5, 3, 24, generator=generator, dtype=torch.float64)
    for draw in draws:
        total += network.head.fc(mean + std * draw).softmax(1)
    assert torch.allclose(found, total / 5, atol=1e-12)
    assert not torch.equal(found, network.predictive(pictures, 5, seed=4))


def test_it_learns_through_the_bottleneck() -> None:
    """Bright quarters of noisy images; the divergence falls where beta asks for it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 2
    pictures = torch.randn(32, 3, 16, 16, generator=generator) * 0.2
    pictures[labels == 1, :2, :8, :8] += 1.5
    found = {}
    for beta in (0.0, 0.01):
        torch.manual_seed(0)
        network = VIBClassifier(nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()), 2, samples=2)
        optimiser, loss, values = torch.optim.Adam(network.parameters(), 0.02), VIBLoss(beta), []
        for _ in range(40):
            terms = loss(network.train()(pictures), labels)
            optimiser.zero_grad()
            terms["loss"].backward()
            optimiser.step()
            values.append({name: float(term.detach()) for name, term in terms.items()})
        assert values[-1]["loss"] < 0.6 * values[0]["loss"]
        assert (network.eval()(pictures).argmax(1) == labels).float().mean() > 0.9
        found[beta] = values[-1]["kl"]
    assert found[0.01] < 0.7 * found[0.0]


def test_half_precision_keeps_the_divergence_in_single() -> None:
    torch.manual_seed(0)
    network = VIBClassifier(seeded(SmallResNet(), double=False), 4).train()
    pictures, labels = images(double=False), torch.tensor([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        output = network(pictures)
        terms = VIBLoss(0.1)(output, labels)
    assert isinstance(output, VIBOutput)
    assert output.logits.dtype == torch.bfloat16
    assert {t.dtype for t in (output.mean, output.std, output.kl, *terms.values())} == {torch.float32}
    terms["loss"].backward()
    half = copy.deepcopy(network).bfloat16()
    output = half(pictures.bfloat16())
    assert output.kl.dtype == torch.float32
    assert half.eval()(pictures.bfloat16()).dtype == torch.bfloat16
    again = network.bfloat16().double().train()(pictures.double())
    assert torch.allclose(output.kl.double(), again.kl, rtol=0.05)


def test_the_classifier_is_where_its_backbone_is() -> None:
    network = classifier()
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert "head.fc.weight" in network.state_dict()
    assert "backbone.features.stage3.conv1.weight" in network.state_dict()
    own = VIBClassifier(Backbone(nn.Conv2d(3, 7, 3), 7), 2)
    assert own.eval()(torch.randn(1, 3, 8, 8)).shape == (1, 2)
    assert isinstance(VIBClassifier(Dense(), 3).train()(torch.randn(2, 3, 16, 16)), VIBOutput)
