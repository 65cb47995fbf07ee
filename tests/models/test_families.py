"""Families of classifiers from timm and transformers: layers, grids and maps; their adapters; wrapped networks."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import konkyo
from helpers.bombs import Bomb
from helpers.networks import Attention, SmallResNet, images, seeded, settled
from konkyo.errors import install_hint
from konkyo.models.preprocess import Fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

Size = tuple[int, int]
WIDE, LONG = (64, 96), (32, 128)  # of patches of 16 pixels, LONG has 2 x 8, and a square of 4 x 4 would do
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = {**SMALL, "patch_size": 16}
SWIN = {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}
DENSE = {"block_config": (1, 1, 1, 1), "growth_rate": 8}
MVIT = {"embed_dims": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}

# (timm's name, its settings, does it ask for the size, size, automatic layer, grid, tokens before the grid)
TIMM: list[tuple[str, dict[str, Any], bool, Size, str, Size, int]] = [
    ("resnet10t", {}, False, WIDE, "layer4", (2, 3), 0),
    ("resnetv2_18", {}, False, WIDE, "norm", (2, 3), 0),
    ("convnext_atto", CONVNEXT, False, WIDE, "stages", (2, 3), 0),
    ("convnextv2_atto", CONVNEXT, False, WIDE, "stages", (2, 3), 0),
    ("efficientnet_b0", {}, False, WIDE, "bn2", (2, 3), 0),
    ("mobilenetv2_035", {}, False, WIDE, "bn2", (2, 3), 0),
    ("mobilenetv3_small_050", {}, False, WIDE, "blocks", (2, 3), 0),
    ("densenet121", DENSE, False, WIDE, "features", (2, 3), 0),
    ("vgg11", {"mlp_ratio": 0.01}, False, WIDE, "features", (2, 3), 0),
    ("regnetx_002", {}, False, WIDE, "s4", (2, 3), 0),
    ("mobilevitv2_050", {}, False, WIDE, "stages", (2, 4), 0),
    ("vit_tiny_patch16_224", VIT, True, WIDE, "blocks.0", (4, 6), 1),
    ("vit_tiny_patch16_224", VIT, True, LONG, "blocks.0", (2, 8), 1),
    ("vit_tiny_patch16_224", VIT, True, (70, 100), "blocks.0", (4, 6), 1),  # not whole patches
    ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg"}, True, LONG, "blocks", (2, 8), 1),
    ("vit_tiny_patch16_224", {**VIT, "global_pool": "map", "class_token": False}, True, WIDE, "norm", (4, 6), 0),
    ("deit_tiny_patch16_224", VIT, True, WIDE, "blocks.0", (4, 6), 1),
    ("deit_tiny_distilled_patch16_224", VIT, True, WIDE, "blocks.0", (4, 6), 2),
    ("vit_little_patch16_reg4_gap_256", VIT, True, WIDE, "blocks", (4, 6), 4),
    ("vit_small_patch14_reg4_dinov2", SMALL, True, (56, 84), "blocks.0", (4, 6), 5),
    ("naflexvit_base_patch16_gap", SMALL, False, WIDE, "blocks.1", (4, 6), 4),  # embeds patches without a convolution
    ("vit_base_r26_s32_224", SMALL, True, WIDE, "blocks.0", (2, 3), 1),
    ("beit_base_patch16_224", VIT, True, WIDE, "blocks.1", (4, 6), 1),
    ("eva02_tiny_patch14_224", SMALL, True, (56, 84), "blocks.1", (4, 6), 1),
    ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}, True, WIDE, "norm", (2, 3), 0),
    ("swinv2_tiny_window8_256", {**SWIN, "window_size": 2}, True, WIDE, "norm", (2, 3), 0),
    ("maxvit_pico_rw_256", {}, True, WIDE, "norm", (2, 3), 0),
    ("coatnet_nano_rw_224", {}, True, WIDE, "norm", (2, 3), 0),
    ("mixer_s32_224", {}, True, (64, 128), "norm", (2, 4), 0),
    ("pit_ti_distilled_224", {}, True, WIDE, "transformers.2.blocks.2", (2, 3), 2),
    ("cait_xxs24_224", {"depth": 2}, True, WIDE, "blocks", (4, 6), 0),
    ("hiera_tiny_224", {}, True, WIDE, "blocks.11", (2, 3), 0),
    ("pvt_v2_b0", {}, False, WIDE, "stages", (2, 3), 0),
]

HIDDEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5}
DINO = {**HIDDEN, "patch_size": 14, "image_size": 56}
PATCHES = {**HIDDEN, "intermediate_size": 48, "patch_size": 16, "image_size": WIDE}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 24], "num_labels": 5}
WINDOWS = {
    **{"image_size": WIDE, "embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 2},
    "num_labels": 5,
}

# (the family in transformers' names, head, settings, size, automatic layer, grid, tokens before the grid)
HF: list[tuple[str, str, dict[str, Any], Size, str, Size, int]] = [
    ("ResNet", "", {**STAGES, "embedding_size": 8}, WIDE, "resnet.encoder", (2, 3), 0),
    ("RegNet", "", {**STAGES, "embedding_size": 8, "groups_width": 4}, WIDE, "regnet.encoder", (2, 3), 0),
    ("ConvNext", "", STAGES, WIDE, "convnext.encoder", (2, 3), 0),
    ("ConvNextV2", "", STAGES, WIDE, "convnextv2.encoder", (2, 3), 0),
    ("MobileNetV1", "", {"depth_multiplier": 0.25, "num_labels": 5}, WIDE, "mobilenet_v1.layer.25", (2, 3), 0),
    ("MobileNetV2", "", {"depth_multiplier": 0.35, "num_labels": 5}, WIDE, "mobilenet_v2.conv_1x1", (2, 3), 0),
    (
        "EfficientNet",
        "",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "num_labels": 5},
        WIDE,
        "efficientnet.encoder",
        (2, 3),
        0,
    ),
    ("ViT", "", PATCHES, WIDE, "vit.layers.0", (4, 6), 1),
    ("ViT", "", {**PATCHES, "image_size": LONG}, LONG, "vit.layers.0", (2, 8), 1),
    ("DeiT", "", PATCHES, WIDE, "deit.layers.0", (4, 6), 2),
    ("DeiT", "WithTeacher", PATCHES, WIDE, "deit.layers.0", (4, 6), 2),
    ("Beit", "", PATCHES, WIDE, "beit.layers.1", (4, 6), 1),
    ("Dinov2", "", DINO, (56, 84), "dinov2", (4, 6), 1),  # its positions are interpolated
    ("Dinov2WithRegisters", "", DINO, (56, 84), "dinov2_with_registers", (4, 6), 5),
    ("Swin", "", WINDOWS, WIDE, "swin.layernorm", (2, 3), 0),
    ("Swinv2", "", WINDOWS, WIDE, "swinv2.encoder.layers.2", (2, 3), 0),
    ("Segformer", "", {"num_labels": 5}, WIDE, "segformer", (2, 3), 0),
]


def of_timm(name: str, settings: dict[str, Any], size: Size | None) -> nn.Module:
    timm = pytest.importorskip("timm")
    sized = {} if size is None else {"img_size": size}
    return timm.create_model(name, pretrained=False, num_classes=5, **settings, **sized)


def of_hf(family: str, head: str, settings: dict[str, Any]) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(**settings)
    return getattr(transformers, f"{family}ForImageClassification{head}")(config)


CASES = [
    *(
        pytest.param(lambda n=n, s=s, sized=sized, size=size: of_timm(n, s, size if sized else None), size, *rest, id=n)
        for n, s, sized, size, *rest in TIMM
    ),
    *(pytest.param(lambda f=f, h=h, s=s: of_hf(f, h, s), size, *rest, id=f"hf {f}{h}") for f, h, s, size, *rest in HF),
]


def noise(count: int, size: Size) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1)).double()


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().max()
    assert scale > 0
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


# --- the automatic layer, its grid, and maps of it -------------------------------------------------------------------


@pytest.mark.parametrize(("build", "size", "layer", "grid", "prefix"), CASES)
def test_a_family(build: Callable[[], nn.Module], size: Size, layer: str, grid: Size, prefix: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        # Attention with wild weights mixes all places, so that no cell has one of its own.
        attends = any(isinstance(module, nn.LayerNorm) for module in network.modules())
        model = konkyo.Model(settled(network) if attends else seeded(network))
    shape = (3, *size)
    found = model.automatic_layers(shape)[0]
    assert found is not None
    assert (found.name, found.prefix) == (layer, prefix)
    sites = {s.name: s for s in model.sites(shape)}
    assert sites[layer].grid == grid
    assert sites[layer].used
    pictures = noise(2, size)
    targets = model(pictures).argmax(1).tolist()
    maps = konkyo.explain(model, pictures, target=targets)
    assert maps.layer == layer
    assert maps.signed.shape == (2, *grid)
    assert maps.signed.flatten(1).std(1).min() > 0
    assert not torch.equal(maps.signed[0], maps.signed[1])
    for i, target in enumerate(targets):
        close(maps.signed[i], konkyo.explain(model, pictures[i : i + 1], target=target).signed[0], 1e-6)


@pytest.mark.parametrize("size", [WIDE, LONG, (70, 100)])
def test_tokens_lie_where_the_patches_are(size: Size) -> None:
    """The tokens folded are what the convolution that embeds the patches put out, place for place."""
    model = konkyo.Model(seeded(of_timm("vit_tiny_patch16_224", VIT, size)))
    sites = {s.name: s.layer for s in model.sites((3, *size))}
    outputs: dict[str, Tensor] = {}
    for name in ("patch_embed.proj", "patch_embed"):
        model.module.get_submodule(name).register_forward_hook(lambda _m, _a, out, n=name: outputs.update({n: out}))
    model(noise(1, size))
    convolved, tokens = outputs["patch_embed.proj"], outputs["patch_embed"]
    assert torch.equal(sites["patch_embed"].fold(tokens), sites["patch_embed.proj"].fold(convolved))
    assert sites["patch_embed.proj"].fold(convolved).shape == convolved.shape


def windowed() -> nn.Module:
    """torchvision's MaxViT, whose windows are an axis of their own: (N, windows, cells, C)."""
    return torchvision.models.maxvit.MaxVit(
        input_size=(96, 96),
        stem_channels=8,
        partition_size=4,
        block_channels=[8, 16],
        block_layers=[1, 1],
        head_dim=4,
        stochastic_depth_prob=0,
        num_classes=5,
    )


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (windowed, (96, 96)),
        (lambda: of_timm("maxvit_pico_rw_256", {}, WIDE), WIDE),
        (lambda: of_timm("coatnet_nano_rw_224", {}, WIDE), WIDE),
        (lambda: of_timm("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}, WIDE), WIDE),
        (lambda: of_timm("swinv2_tiny_window8_256", {**SWIN, "window_size": 2}, WIDE), WIDE),
        (lambda: of_timm("mobilevitv2_050", {}, None), (64, 64)),
        (lambda: of_hf("Swinv2", "", WINDOWS), WIDE),
    ],
    ids=["torchvision maxvit", "maxvit", "coatnet", "swin", "swinv2", "mobilevitv2", "hf swinv2"],
)
def test_windows_and_tables_are_no_grids(build: Callable[[], nn.Module], size: Size) -> None:
    """Every grid that is listed is the picture at a stride of 1, 2, 4, ...: no windows, no tables of positions."""
    sites = konkyo.Model(seeded(build())).sites((3, *size))
    grids = {s.grid for s in sites if s.layer is not None}
    strides = [tuple(n // 2**k for n in size) for k in range(6)]
    assert grids <= set(strides)
    assert len(grids) >= 3
    assert any(s.layer is None and len(s.shape) > 1 for s in sites)  # there was something to leave out


def test_a_network_that_takes_one_image_at_a_time() -> None:
    class One(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stage3(self.stage2(self.stage1(self.stem(x)))).mean((2, 3)).view(24))[None]

    network = seeded(One())
    found = konkyo.explain(network, images(1), target=1)
    assert found.layer == "stage3"
    close(found.signed, konkyo.explain(seeded(SmallResNet()), images(1), target=1).signed, 1e-9)


@pytest.mark.parametrize(
    ("build", "size", "layer"),
    [
        (Attention, (32, 40), "patch"),
        (lambda: of_timm("vit_tiny_patch16_224", VIT, WIDE), WIDE, "blocks.0"),
        (lambda: of_timm("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}, WIDE), WIDE, "norm"),
    ],
    ids=["attention", "vit", "swin"],
)
def test_a_head_of_zeros_hides_no_layer(build: Callable[[], nn.Module], size: Size, layer: str) -> None:
    """Fresh heads are often zero: what the decision depends on once the head is trained is found all the same."""
    network = seeded(build())
    head = next(m for m in reversed(list(network.modules())) if isinstance(m, nn.Linear))
    with torch.no_grad():
        head.weight.zero_()
        assert network(noise(2, size)).diff(dim=0).abs().max() == 0  # the head's bias alone
    model = konkyo.Model(network)
    found = model.automatic_layers((3, *size))[0]
    assert found is not None
    assert found.name == layer


def test_what_a_module_used_itself_is_not_its_layer() -> None:
    """The body hands on its grid and what it pooled of it; the head reads that, which no change to the grid moves."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            grid = self.conv(x).relu()
            return grid, grid.mean((2, 3))

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Body(), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[1])

    network = seeded(Pooling())
    found = konkyo.explain(network, images(1), target=1)
    assert found.layer == "body.conv"
    assert found.signed.std() > 0
    with pytest.warns(konkyo.KonkyoWarning, match=r"gradient is exactly 0.*'body\.conv'"):
        assert konkyo.explain(network, images(1), layer="body").diagnosis[0].kind == "zero gradient"


# --- timm's adapter --------------------------------------------------------------------------------------------------

PICTURES = [(120, 90), (75, 101), (301, 57)]


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_timm_model_has_its_names_and_preprocessing() -> None:
    timm = pytest.importorskip("timm")
    model = konkyo.load("timm/resnet10t.c3_in1k", weights=None)
    assert model.name == "timm/resnet10t.c3_in1k"
    assert not model.module.training
    assert len(model.classes) == 1000
    assert (model.classes[0], model.classes[207], model.classes[639]) == (
        "tench",
        "golden retriever",
        "maillot, tank suit",  # there are two maillots
    )
    data = timm.data.resolve_model_data_config(model.module)
    transform = timm.data.create_transform(**data, is_training=False)
    assert model.preprocess is not None
    for size in PICTURES:
        torch.testing.assert_close(model.preprocess(photo(*size)), transform(photo(*size)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 48), (64, 40)])
@pytest.mark.parametrize("crop", [0.8, 1.0])
@pytest.mark.parametrize(
    ("mode", "interpolation"), [("center", "bicubic"), ("squash", "bilinear"), ("border", "lanczos")]
)
def test_preprocessing_equals_timms(size: Size, crop: float, mode: str, interpolation: str) -> None:
    timm = pytest.importorskip("timm")
    from konkyo.models.timm import preprocessing

    data = {"input_size": (3, *size), "crop_pct": crop, "crop_mode": mode, "interpolation": interpolation}
    data |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    transform, found = timm.data.create_transform(**data, is_training=False), preprocessing(data)
    for picture in (photo(*s) for s in PICTURES):
        torch.testing.assert_close(found(picture), transform(picture), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fit", ["cover", "contain"])
def test_a_view_of_a_fitted_picture_keeps_its_shape(fit: Fit) -> None:
    found = konkyo.Preprocess((40, 40), 40, fit=fit)
    view = found.view(Image.new("RGB", (200, 100), "white"))
    assert view.size == ((100, 100) if fit == "cover" else (200, 100))
    assert (np.asarray(view) == 255).all()


def test_a_border_around_a_picture_is_taken_off_its_map() -> None:
    found = konkyo.Preprocess((40, 40), 40, (0.0,) * 3, (1.0,) * 3, fit="contain")
    picture = Image.new("RGB", (200, 100))
    picture.paste("white", (150, 50, 200, 100))
    network = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        result = konkyo.explain(konkyo.Model(network, found), picture, method="input_x_gradient", target=0)
    assert result.regions is not None
    assert result.regions.tolist() == [[0.0, 0.25, 1.0, 0.75]]
    shown = result.at((100, 200))[0]
    corner = torch.zeros(100, 200, dtype=torch.bool)
    corner[50:, 150:] = True
    assert shown[52:98, 154:198].min() > 10 * shown[~corner].median()
    assert result.overlay(0).size == (200, 100)
    frame = found.frame(picture)
    assert frame.shown(torch.tensor([30.0, 20.0, 40.0, 30.0])).tolist() == [150.0, 50.0, 200.0, 100.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"fit": "crop"}, "fit 'crop'"), ({"interpolation": "cubic"}, "'bicubic'"), ({"centre": "up"}, "centre 'up'")],
)
def test_ways_to_prepare_that_are_unknown(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.Preprocess(**settings)


@pytest.mark.parametrize("classes", [1000, 7])
def test_timm_weights_from_a_file(tmp_path: Path, classes: int) -> None:
    timm = pytest.importorskip("timm")
    tuned = timm.create_model("mobilenetv3_small_050", num_classes=classes).eval()
    save_file(tuned.state_dict(), tmp_path / "w.safetensors")
    found = konkyo.load("timm/mobilenetv3_small_050", weights=tmp_path / "w.safetensors")
    x = noise(1, (64, 64)).float()
    torch.testing.assert_close(found(x), tuned(x))
    assert len(found.classes) == (1000 if classes == 1000 else 0)


def test_a_tuned_head_on_features(tmp_path: Path) -> None:
    """timm knows DINOv2 without a head; a file with one is a classifier."""
    timm = pytest.importorskip("timm")
    name = "vit_small_patch14_dinov2"
    with pytest.raises(konkyo.KonkyoError, match="puts out features, not classes"):
        konkyo.load(f"timm/{name}", weights=None)
    tuned = timm.create_model(name, num_classes=3)
    save_file(tuned.state_dict(), tmp_path / "w.safetensors")
    found = konkyo.load(f"timm/{name}", weights=tmp_path / "w.safetensors")
    assert torch.equal(found.module.get_parameter("head.weight"), tuned.head.weight)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("huggingface_hub").constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet188", "did you mean 'resnet18'"),
        ("timm/hub:timm/resnet18", "unknown timm model"),
        ("timm/", "unknown timm model ''"),
        ("timm/resnet18.nonsense", "Invalid pretrained tag"),
        ("timm/resnet10t", "could not be downloaded"),
        ("hf/nobody/knows-this", "cannot be loaded: "),
        ("hf/", "cannot be loaded: "),
        ("hf/./no-such-folder", "cannot be loaded: "),
    ],
)
@pytest.mark.usefixtures("offline")
def test_names_that_cannot_be_had(name: str, message: str) -> None:
    pytest.importorskip("timm" if name.startswith("timm") else "transformers")
    with pytest.raises(konkyo.KonkyoError, match=message) as caught:
        konkyo.load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "extra"), [("timm/resnet18", "timm"), ("hf/google/vit", "transformers")])
def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(konkyo.KonkyoError, match=re.escape(install_hint(extra))):
        konkyo.load(name, weights=None)


def test_other_adapters_do_not_import_these_libraries() -> None:
    code = (
        "import konkyo, sys, torch; konkyo.Model(torch.nn.Conv2d(3, 4, 3)); print('torchvision' in sys.modules); "
        "konkyo.load('konkyo/scenes-classifier'); print({'timm', 'transformers', 'torchvision'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "False\nset()\n"


# --- transformers' adapter -------------------------------------------------------------------------------------------

NAMES = {"id2label": {0: "cat", 1: "dog", 2: "fox"}, "label2id": {"cat": 0, "dog": 1, "fox": 2}}
TINY = {**PATCHES, "num_hidden_layers": 1, "image_size": 64}
del TINY["num_labels"]


def saved(folder: Path, processor: Any = None, head: str = "ForImageClassification", **settings: Any) -> nn.Module:
    """A ViT of one block in the folder, as `save_pretrained` leaves it."""
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"ViT{head}")(transformers.ViTConfig(**TINY, **settings))
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return model.eval()


@pytest.mark.usefixtures("offline")
def test_a_folder_that_transformers_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    written = saved(tmp_path, transformers.ViTImageProcessor(size={"height": 64, "width": 64}), **NAMES)
    model = konkyo.load(f"hf/{tmp_path}")
    assert (model.name, model.classes, model.multilabel) == (f"hf/{tmp_path}", ("cat", "dog", "fox"), False)
    assert not model.module.training
    x = noise(2, (64, 64)).float()
    torch.testing.assert_close(model(x), written(x).logits)
    assert model.preprocess is not None
    pil = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    usual = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for size in PICTURES:
        picture = photo(*size)
        prepared = model.preprocess(picture)
        torch.testing.assert_close(prepared, pil(picture, return_tensors="pt")["pixel_values"][0], rtol=0, atol=1e-5)
        # torchvision resizes tensors of bytes, and rounds some to the next grey level; one is 2 / 255 here.
        near = usual(picture, return_tensors="pt")["pixel_values"][0]
        assert (prepared - near).abs().max() < 1.01 * 2 / 255
    picture = photo(120, 90)
    maps = konkyo.explain(model, picture, target="fox")
    assert maps.labels == ("fox",)
    assert maps.layer == "vit.embeddings"
    assert maps.signed.shape == (1, 4, 4)
    fresh = konkyo.load(f"hf/{tmp_path}", weights=None)
    assert not torch.equal(fresh(x), model(x))
    assert fresh.preprocess == model.preprocess


PROCESSORS = {
    "ViT": {"size": {"height": 40, "width": 56}},
    "DeiT": {"size": {"height": 72, "width": 72}, "crop_size": {"height": 64, "width": 64}},
    "CLIP": {"size": {"shortest_edge": 65}, "crop_size": {"height": 64, "width": 48}},
    "Bit": {"size": {"shortest_edge": 70}, "crop_size": {"height": 61, "width": 61}, "resample": 1},
    "ConvNext": {"size": {"shortest_edge": 64}},
    "ConvNext large": {"size": {"shortest_edge": 384}},
    "EfficientNet": {"size": {"height": 50, "width": 50}, "rescale_factor": 1 / 127.5, "rescale_offset": True},
    "PoolFormer": {"size": {"shortest_edge": 64}, "crop_size": {"height": 60, "width": 60}},
    "MobileNetV2": {"size": {"shortest_edge": 66}, "crop_size": {"height": 63, "width": 64}, "do_normalize": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_equals_transformers(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{name.partition(' ')[0]}ImageProcessor")(**PROCESSORS[name])
    saved(tmp_path, processor)
    found = konkyo.load(f"hf/{tmp_path}", weights=None).preprocess
    assert found is not None
    expected = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for size in PICTURES:
        picture = photo(*size)
        prepared = expected(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found(picture), prepared, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["MobileViT", "Levit", None])
def test_preprocessing_that_cannot_be_followed_is_not_guessed(tmp_path: Path, name: str | None) -> None:
    """MobileViT swaps colours, LeViT resizes in its own way: nothing in their numbers says so."""
    transformers = pytest.importorskip("transformers")
    saved(tmp_path, None if name is None else getattr(transformers, f"{name}ImageProcessor")())
    model = konkyo.load(f"hf/{tmp_path}")
    assert model.preprocess is None
    with pytest.raises(konkyo.KonkyoError, match="does not say how to prepare a picture"):
        konkyo.explain(model, photo(80, 80))


def test_labels_that_transformers_made_up(tmp_path: Path) -> None:
    saved(tmp_path, num_labels=3)
    assert konkyo.load(f"hf/{tmp_path}").classes == ()


def test_one_logit_has_two_sides(tmp_path: Path) -> None:
    saved(tmp_path, num_labels=1)
    model = konkyo.load(f"hf/{tmp_path}")
    assert model.classes == ()
    x = noise(1, (64, 64)).float()
    sides = [konkyo.explain(model, x, target=side).signed for side in ("negative", "positive")]
    close(sides[0], -sides[1], 1e-5)


def test_many_labels(tmp_path: Path) -> None:
    saved(tmp_path, problem_type="multi_label_classification", **NAMES)
    model = konkyo.load(f"hf/{tmp_path}")
    assert model.multilabel
    x = noise(1, (64, 64)).float()
    output = model(x)
    dog = model.targets("dog", output, score="probability")[0][0]
    torch.testing.assert_close(dog(output), output.sigmoid()[:, 1])


def test_a_file_of_weights_for_a_folder(tmp_path: Path) -> None:
    saved(tmp_path / "model", **NAMES)
    for classes, names in ((3, ("cat", "dog", "fox")), (4, ())):
        tuned = saved(tmp_path / "tuned", num_labels=classes)
        model = konkyo.load(f"hf/{tmp_path / 'model'}", weights=tmp_path / "tuned" / "model.safetensors")
        x = noise(1, (64, 64)).float()
        torch.testing.assert_close(model(x), tuned(x).logits)
        assert model.classes == names


def test_a_file_of_weights_that_does_not_fit(tmp_path: Path) -> None:
    saved(tmp_path / "model", **NAMES)
    state = saved(tmp_path / "other", **NAMES).state_dict()
    for change, message in (
        ({"vit.layernorm.weight": torch.zeros(5)}, r"vit\.layernorm\.weight is \(5,\) for \(32,\)"),
        ({"classifier.weight": torch.zeros(3, 5)}, r"classifier\.weight is \(3, 5\) for \(3, 32\)"),
        ({"classifier.bias": None}, r"lacks 1 weights \(classifier\.bias"),
    ):
        torch.save({k: t for k, t in {**state, **change}.items() if t is not None}, tmp_path / "w.pth")
        with pytest.raises(konkyo.KonkyoError, match=message):
            konkyo.load(f"hf/{tmp_path / 'model'}", weights=tmp_path / "w.pth")


def test_a_backbone_without_a_head_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, head="Model")
    with pytest.raises(konkyo.KonkyoError, match=r"no trained image classifier.*classifier\.bias"):
        konkyo.load(f"hf/{tmp_path}")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(konkyo.KonkyoError, match="BertLMHeadModel is no writer of captions that is known here"):
        konkyo.load(f"hf/{tmp_path}", weights=None)


def test_a_folder_with_a_malicious_pickle(tmp_path: Path) -> None:
    folder, bomb = tmp_path / "model", Bomb(tmp_path / "sentinel")
    saved(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": bomb}, folder / "pytorch_model.bin")
    with pytest.raises(konkyo.KonkyoError, match="cannot be loaded"):
        konkyo.load(f"hf/{folder}")
    assert not bomb.path.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists()  # it would have gone off


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder, sentinel = tmp_path / "model", tmp_path / "sentinel"
    saved(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Net"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(sentinel)!r})\n")
    with pytest.raises(konkyo.KonkyoError, match="cannot be loaded"):
        konkyo.load(f"hf/{folder}")
    assert not sentinel.exists()


# --- number formats and memory formats -------------------------------------------------------------------------------

FORMATS = {
    "cnn": lambda: of_timm("resnet10t", {}, None),
    "vit": lambda: of_timm("vit_tiny_patch16_224", VIT, WIDE),
    "swin": lambda: of_timm("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}, WIDE),
    "hf deit": lambda: of_hf("DeiT", "", PATCHES),
}


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast", "channels_last"])
@pytest.mark.parametrize("name", FORMATS)
def test_half_precision_autocast_and_channels_last(name: str, how: str) -> None:
    network = seeded(FORMATS[name](), double=False)
    pictures = noise(1, WIDE).float()
    expected = konkyo.explain(network, pictures, target=1)
    context = torch.autocast("cpu", torch.bfloat16) if how == "autocast" else nullcontext()
    if how in ("bfloat16", "float16"):
        network = network.to(getattr(torch, how))
    if how == "channels_last":
        pictures = pictures.to(memory_format=torch.channels_last)
    with context:
        found = konkyo.explain(network, pictures, target=1)
    assert (found.layer, found.signed.dtype) == (expected.layer, torch.float32)
    if how == "channels_last":
        close(found.signed, expected.signed, 1e-4)
    else:
        assert not torch.equal(found.signed, expected.signed)  # half precision did reach the network
        assert torch.corrcoef(torch.stack([found.signed.flatten(), expected.signed.flatten()]))[0, 1] > 0.9


class Tokens3d(nn.Module):
    """A transformer of one block over the patches of a volume, two tokens in front; the decision is a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv3d(1, 12, (2, 4, 4), (2, 4, 4))
        self.front = nn.Parameter(torch.randn(1, 2, 12))
        self.norm, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 2, batch_first=True)
        self.out, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.front.expand(len(x), -1, -1), x], 1)
        y = self.norm(x)
        return self.head(self.out(x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


class Signals(nn.Module):
    """Convolutions over a signal of two axes with a stride in one of them only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, (1, 9), (1, 4)), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, (1, 9), (1, 4)), nn.ReLU()
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "shape", "layer", "grid", "prefix"),
    [(Tokens3d, (1, 4, 12, 8), "out", (2, 3, 2), 2), (Signals, (1, 3, 200), "body", (3, 10), 0)],
)
def test_volumes_of_tokens_and_uneven_strides(
    network: Callable[[], nn.Module], shape: tuple[int, ...], layer: str, grid: tuple[int, ...], prefix: int
) -> None:
    model = konkyo.Model(seeded(network()))
    found = model.automatic_layers(shape)[0]
    assert found is not None
    assert (found.name, found.prefix) == (layer, prefix)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).double()
    maps = konkyo.explain(model, x, target=1)
    assert maps.signed.shape == (2, *grid)
    assert maps.signed.flatten(1).std(1).min() > 0


# --- wrapped networks ------------------------------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "averaged": AveragedModel,
    "distributed": nn.parallel.DistributedDataParallel,
    "compiled distributed": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="eager"),
    "distributed compiled": lambda m: nn.parallel.DistributedDataParallel(torch.compile(m, backend="eager")),
    "averaged parallel": lambda m: AveragedModel(nn.DataParallel(m)),
    "parallel averaged": lambda m: nn.DataParallel(AveragedModel(m)),
}


@pytest.mark.parametrize("how", WRAPPERS)
@pytest.mark.usefixtures("process_group")
def test_wrapped_networks(how: str) -> None:
    network, x = seeded(SmallResNet()), images(2)
    expected = konkyo.explain(network, x, target=1)
    found = konkyo.explain(WRAPPERS[how](network).eval(), x, target=1)
    assert (found.layer, found.model) == ("stage3", "SmallResNet")
    assert torch.equal(found.signed, expected.signed)


@pytest.mark.parametrize("how", [torch.jit.script, lambda m: torch.jit.trace(m, images(1))], ids=["script", "trace"])
def test_torchscript_is_refused_with_the_eager_modules_name(how: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(konkyo.KonkyoError, match="give the eager module that it was made from: SmallResNet"):
        konkyo.explain(how(seeded(SmallResNet())), images(1))
