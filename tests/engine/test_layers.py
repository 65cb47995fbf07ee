"""Which layers torchvision's classifiers have, how they are read as grids, and replaying what follows them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import ConvNeXt, DenseNet, MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vgg import make_layers

import konkyo
from konkyo.engine.forward import Pass
from konkyo.engine.grids import Readings
from konkyo.engine.layer import Layer
from konkyo.engine.probe import Probe

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")

# name: (side of the image, automatic layer, its grid, the grid for an image that is 32 pixels wider)
FAMILIES: dict[str, tuple[int, str, tuple[int, int], tuple[int, int] | None]] = {
    "alexnet": (95, "features", (2, 2), (2, 3)),
    "convnext_tiny": (64, "features", (2, 2), (2, 3)),
    "densenet121": (64, "features", (2, 2), (2, 3)),
    "efficientnet_b0": (64, "features", (2, 2), (2, 3)),
    "googlenet": (64, "inception5b", (2, 2), (2, 3)),
    "inception_v3": (107, "Mixed_7c", (2, 2), (2, 3)),
    "maxvit_t": (224, "blocks.3", (7, 7), None),  # fixed size
    "mnasnet0_5": (64, "layers", (2, 2), (2, 3)),
    "mobilenet_v2": (64, "features", (2, 2), (2, 3)),
    "mobilenet_v3_small": (64, "features", (2, 2), (2, 3)),
    "regnet_y_400mf": (64, "trunk_output", (2, 2), (2, 3)),
    "resnet18": (64, "layer4", (2, 2), (2, 3)),
    "shufflenet_v2_x0_5": (64, "conv5", (2, 2), (2, 3)),
    "squeezenet1_1": (64, "features", (3, 3), (3, 5)),
    "swin_t": (64, "permute", (2, 2), (2, 3)),
    "swin_v2_t": (64, "permute", (2, 2), (2, 3)),
    "vgg11": (64, "features", (2, 2), (2, 3)),
    "vit_b_32": (224, "encoder.layers.encoder_layer_10", (7, 7), None),  # fixed size
}


def narrow_vgg11() -> nn.Module:
    with torch.device("meta"):  # its first linear layer has 100 million weights
        network = models.vgg11()
    network.features = make_layers([16, "M", 32, "M", 48, 48, "M", 64, 64, "M", 64, 64, "M"])
    network.classifier = nn.Sequential(nn.Linear(64 * 49, 32), nn.ReLU(), nn.Linear(32, 1000))
    return network


def narrow_alexnet() -> nn.Module:
    with torch.device("meta"):
        network = models.alexnet()
    convolutions = [nn.Conv2d(3, 16, 11, 4, 2), nn.Conv2d(16, 32, 5, padding=2), nn.Conv2d(32, 48, 3, padding=1)]
    pools = [nn.ReLU(), nn.MaxPool2d(3, 2)]
    end = [nn.Conv2d(48, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), *pools]
    network.features = nn.Sequential(convolutions[0], *pools, convolutions[1], *pools, convolutions[2], nn.ReLU(), *end)
    network.classifier = nn.Sequential(nn.Linear(32 * 36, 32), nn.ReLU(), nn.Linear(32, 1000))
    return network


SWIN: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 36, "depths": [2, 2, 6, 2], "num_heads": [1, 2, 4, 8]}
VIT: dict[str, Any] = {"num_layers": 12, "num_heads": 2, "hidden_dim": 48, "mlp_dim": 96}
MAXVIT: dict[str, Any] = {"stem_channels": 8, "block_channels": [8, 16, 24, 32], "block_layers": [1, 1, 2, 1]}
BLOCKS = [CNBlockConfig(24, 36, 1), CNBlockConfig(36, 48, 1), CNBlockConfig(48, 60, 3), CNBlockConfig(60, None, 1)]
NARROW: dict[str, Callable[[], nn.Module]] = {
    "alexnet": narrow_alexnet,
    "convnext_tiny": partial(ConvNeXt, BLOCKS),
    "densenet121": partial(DenseNet, 8, num_init_features=16),
    "googlenet": partial(models.googlenet, init_weights=False, aux_logits=False),  # which draws for seconds
    "inception_v3": partial(models.inception_v3, init_weights=False, aux_logits=False),
    "maxvit_t": partial(MaxVit, (224, 224), partition_size=7, head_dim=8, stochastic_depth_prob=0.0, **MAXVIT),
    "mobilenet_v2": partial(models.mobilenet_v2, width_mult=0.35),
    "swin_t": partial(SwinTransformer, window_size=[7, 7], **SWIN),
    "swin_v2_t": partial(
        SwinTransformer, window_size=[8, 8], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2, **SWIN
    ),
    "vgg11": narrow_vgg11,
    "vit_b_32": partial(VisionTransformer, 224, 32, **VIT),
}
"""The largest, with the same modules and fewer channels: the layers, their grids and their axes are the same."""


@lru_cache(maxsize=4)
def lively(name: str, *, wide: bool = False) -> konkyo.Model:
    """The model with seeded weights under which values neither vanish nor stay 0 (as in torchvision's new heads)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        narrow = name in NARROW and not wide
        model = konkyo.Model(NARROW[name]().eval()) if narrow else konkyo.load(f"torchvision/{name}", weights=None)
        for module in model.module.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if not wide:
        model.module.double()
    return model


def noise(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1)).double()


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().max()
    assert scale > 0
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


# --- the automatic layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_automatic_layer_of_a_family(name: str) -> None:
    side, layer, grid, wider = FAMILIES[name]
    model = lively(name)
    for width, expected in ((side, grid), (side + 32, wider)):
        if expected is None:
            continue
        shape = (3, side, width)
        found = model.automatic_layers(shape)[0]
        assert found is not None
        assert found.name == layer
        assert found.module is model.module.get_submodule(layer)
        site = next(s for s in model.sites(shape) if s.name == layer)
        assert site.grid == expected
        assert site.used
    images = noise(2, side, width if wider else side)
    ranked = model(images).topk(2).indices.tolist()
    targets = [ranked[0][0], ranked[1][1]]
    batch = konkyo.compare(model, images, ("grad_cam", "eigen_cam"), target=targets)
    for i, target in enumerate(targets):
        one = konkyo.compare(model, images[i : i + 1], ("grad_cam", "eigen_cam"), target=target)
        for method, result in batch.items():
            assert result.layer == layer
            assert result.signed.shape == (2, *(wider or grid))
            assert result.signed[i].std() > 0
            close(result.signed[i], one[method].signed[0], 1e-5)
    assert not torch.equal(batch["grad_cam"].signed[0], batch["grad_cam"].signed[1])


# --- how layers are read ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swin() -> konkyo.Model:
    return lively("swin_t")


@pytest.fixture(scope="module")
def vit() -> konkyo.Model:
    return lively("vit_b_32")


def site(model: konkyo.Model, name: str, shape: tuple[int, ...]) -> Any:
    return next(s for s in model.sites(shape) if s.name == name)


def test_a_channels_last_block_is_folded(swin: konkyo.Model) -> None:
    images = noise(1, 64, 96)
    found = site(swin, "features.1", (3, 64, 96))
    assert (found.shape, found.grid, found.kind) == ((16, 24, 36), (16, 24), "Sequential")
    assert found.used
    caught: list[Tensor] = []

    def leaf(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    handle = swin.module.features[1].register_forward_hook(leaf)
    score = swin(images)[0, 3]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, caught[0])
    features = caught[0].detach()
    layer = swin.layer("features.1", (3, 64, 96))
    folded = layer.fold(features)
    assert torch.equal(folded, features.permute(0, 3, 1, 2))
    assert torch.equal(layer.unfold(folded, features), features)
    by_hand = (gradient.mean((1, 2)) * features[0]).sum(-1)  # channels are the last axis
    result = konkyo.explain(swin, images, target=3, layer="features.1")
    close(result.signed[0], by_hand.float(), 1e-6)


@pytest.mark.parametrize("shape", [(3, 96, 192), (3, 384, 384)])
def test_channels_last_where_the_channels_could_be_pixels(shape: tuple[int, ...]) -> None:
    """Swin-T's first stage puts out (H/4, W/4, 96), and here (W/4, 96) would do for a grid, too."""
    model = lively("swin_t", wide=True)
    found = site(model, "features.1", shape)
    assert found.shape == (shape[1] // 4, shape[2] // 4, 96)
    assert found.layer.channel_axis == -1
    assert found.grid == (shape[1] // 4, shape[2] // 4)


def test_tokens_are_folded_without_the_class_token(vit: konkyo.Model) -> None:
    found = site(vit, "encoder.layers.encoder_layer_0", (3, 224, 224))
    assert (found.shape, found.grid, found.layer.prefix) == ((50, 48), (7, 7), 1)
    assert found.used
    raw = noise(2, 50, 48)[:, 0]  # (2, 50, 48)
    layer = vit.layer("encoder.layers.encoder_layer_0", (3, 224, 224))
    folded = layer.fold(raw)
    assert folded.shape == (2, 48, 7, 7)
    assert torch.equal(folded[1, :, 2, 5], raw[1, 1 + 2 * 7 + 5])
    assert torch.equal(layer.unfold(folded[:1], raw[:1]), raw[:1])


def test_sites_list_what_is_a_grid_and_what_is_not() -> None:
    model = lively("resnet18")
    sites = {s.name: s for s in model.sites((3, 64, 96))}
    assert {name: sites[name].grid for name in ("conv1", "layer1", "layer2", "layer3", "layer4")} == {
        "conv1": (32, 48),
        "layer1": (16, 24),
        "layer2": (8, 12),
        "layer3": (4, 6),
        "layer4": (2, 3),
    }
    assert all(s.used and s.layer.channel_axis == 1 for s in sites.values() if s.layer is not None)
    assert sites["fc"].layer is None
    assert sites["fc"].shape == (1000,)
    assert "avgpool" not in sites  # passes on
    order = list(sites)
    assert order.index("conv1") < order.index("layer1.0.conv1") < order.index("layer1") < order.index("fc")


@pytest.mark.parametrize("name", ["encoder.layers.encoder_layer_11", "encoder.layers", "encoder.ln", "encoder"])
def test_the_last_block_of_a_vit_is_blank_and_told(vit: konkyo.Model, name: str) -> None:
    """Its head reads the class token alone, so no gradient reaches the grid after the last attention."""
    images = noise(1, 224, 224)
    diagnosis = konkyo.explain(vit, images, layer=name).diagnosis[0]
    assert diagnosis.kind == "zero gradient"
    assert "'encoder.layers.encoder_layer_10'" in diagnosis.message
    works = konkyo.explain(vit, images, layer="encoder.layers.encoder_layer_11.ln_1", target=1)
    assert works.signed.std() > 0


def test_the_trace_depends_on_which_output_is_explained() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 3, 2, 1)
            self.of_left, self.of_right = nn.Linear(4, 5), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = self.left(x).relu().mean((2, 3)), self.right(x).relu().mean((2, 3))
            return self.of_left(a), self.of_right(b)

    network = TwoHeads().eval()
    for index, expected in enumerate(("left", "right")):
        model = konkyo.Model(network, select=lambda output, index=index: output[index])
        layer = model.automatic_layers((3, 32, 32))[0]
        assert layer is not None
        assert layer.name == expected


# --- replay: what follows a layer, with other values there -----------------------------------------------------------

REPLAYED = [
    ("densenet121", 64, "features.denseblock1.denselayer2.conv1"),
    ("densenet121", 64, "features.denseblock4.denselayer3"),
    ("swin_t", 64, "features.1.0"),
    ("swin_t", 64, "features.5.3.attn"),
    ("vit_b_32", 224, "encoder.layers.encoder_layer_9.ln_2"),
    ("vit_b_32", 224, "encoder.layers.encoder_layer_11.ln_1"),
    ("googlenet", 64, "inception4b.branch2.0"),
    ("googlenet", 64, "inception5a.branch4"),
    ("shufflenet_v2_x0_5", 64, "stage3.1.branch2"),
]


@pytest.mark.parametrize(("name", "side", "layer"), REPLAYED)
def test_ablating_a_channel_equals_a_full_forward(name: str, side: int, layer: str) -> None:
    model, images, label = lively(name), noise(2, side, side), 5
    found = model.layer(layer, (3, side, side))
    pass_ = Pass(model, images, [found])
    activations = pass_.activations(found)
    channels = activations.mean((0, 2, 3)).topk(3).indices  # large ones, which a ReLU does not stop

    def without(image: int, k: Tensor) -> Tensor:
        variants = activations[image].expand(len(k), *activations.shape[1:]).clone()
        variants[torch.arange(len(k)), channels[k]] = 0
        return variants

    probe = Probe(pass_, [konkyo.ClassTarget(label)] * 2, found)
    replayed = probe.rescore(len(channels), activations=without)
    slow = torch.stack([full_forward(model, found, images, int(k))[:, label] for k in channels], dim=1)
    drop = pass_.output[:, label, None] - slow
    assert (drop != 0).any(0).all()
    close(pass_.output[:, label, None] - replayed, drop, 1e-6)


def full_forward(model: konkyo.Model, layer: Layer, images: Tensor, channel: int) -> Tensor:
    """The network's output with one channel of the layer's grid set to zero, without konkyo's machinery."""

    def zero(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        if layer.tokens is not None:
            output[:, layer.prefix :, channel] = 0
        elif layer.channel_axis == -1:
            output[..., channel] = 0
        else:
            output[:, channel] = 0
        return output

    assert layer.module is not None
    handle = layer.module.register_forward_hook(zero)
    try:
        with torch.no_grad():
            return model(images)
    finally:
        handle.remove()


def test_sizes_that_a_convolution_puts_out_are_those_of_tokens_and_of_grids_after_it() -> None:
    """5 x 11 is no stride of 30 x 40, so that only what was learnt can tell it, with or without a class token."""

    def grids(*shape: int) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        return [(layer.channel_axis, layer.tokens or (), grid) for layer, grid in readings.of("x", shape)]

    readings = Readings((30, 40))
    readings.learn((2, 8, 5, 11))  # of two images
    readings.learn((8, 5, 11))
    assert not any((5, 11) in found for found in (*grids(1, 55, 8), *grids(1, 56, 8)))
    readings.learn((1, 8, 5, 11))
    assert grids(1, 55, 8)[0] == grids(1, 56, 8)[0] == (-1, (5, 11), (5, 11))
    assert (next(readings.of("x", (1, 55, 8)))[0].prefix, next(readings.of("x", (1, 56, 8)))[0].prefix) == (0, 1)
    assert grids(1, 8, 5, 11) == [(1, (), (5, 11))]
    assert grids(1, 5, 11, 8) == [(-1, (), (5, 11))]
    assert grids(1, 8, 3, 6) == [(1, (), (3, 6))]  # half of it, rounded up
    assert grids(1, 8, 4, 6) == []
