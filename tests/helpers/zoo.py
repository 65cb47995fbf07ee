"""The zoo: small networks of many families with random weights, and how each is run on an image."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from helpers import zoo_odd

Shape = tuple[int, ...]
Call = Callable[[nn.Module, Tensor], Any]
WIDE: Shape = (3, 96, 128)
SQUARE: Shape = (3, 64, 64)


@dataclass(frozen=True)
class Animal:
    """An animal of the zoo is a network that is built when it is asked for."""

    library: str
    name: str
    builder: Callable[[], nn.Module]
    shape: Shape
    """The shape of its images, (C, *size)."""
    call: Call | None = None
    """How it is run on images, where it takes more than them."""
    limit: str = ""
    """Why the place of its cells cannot be told with random weights, where that is so."""

    def built(self) -> nn.Module:
        """The network in eval mode with its library's own start; weights that are all zero are drawn anew."""
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            network = self.builder().eval()
        generator = torch.Generator().manual_seed(0)
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim > 1 and not tensor.any():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5)
        return network


# --- torchvision ------------------------------------------------------------------------------------------------------


def of_torchvision(name: str, **settings: Any) -> nn.Module:
    """A network by its name, or of its class with settings that make it small."""
    import torchvision

    for place in (torchvision.models, torchvision.models.segmentation, torchvision.models.video):
        if hasattr(place, name):
            return getattr(place, name)(**settings)
    raise LookupError(name)


def small_resnet(**settings: Any) -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, **settings)


def segmenter(network: str, head: str) -> nn.Module:
    """A network of torchvision that segments, on a small dilated backbone."""
    from torchvision.models._utils import IntermediateLayerGetter

    def found(path: str) -> Any:
        module, _, name = path.partition(".")
        return getattr(import_module(f"torchvision.models.segmentation.{module}"), name)

    backbone = small_resnet(replace_stride_with_dilation=[False, True, True])
    return found(network)(IntermediateLayerGetter(backbone, {"layer4": "out"}), found(head)(2048, 5))


def small_vgg() -> nn.Module:
    from torchvision.models.vgg import VGG, cfgs, make_layers

    network = VGG(make_layers(cfgs["A"], batch_norm=True), num_classes=5, init_weights=False)
    network.classifier = nn.Sequential(nn.Linear(512 * 49, 8), nn.ReLU(), nn.Linear(8, 5))
    return network


MIXED = "with random weights every cell depends on all of a picture of this size alike"
LIMITS = {"fcn_resnet50": MIXED, "deeplabv3_mobilenet_v3_large": MIXED, "lraspp_mobilenet_v3_large": MIXED}
SWIN = {
    **{"patch_size": [4, 4], "embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]},
    **{"window_size": [3, 3], "num_classes": 5},
}
TORCHVISION: list[tuple[str, Shape, dict[str, Any]]] = [
    ("convnext_tiny", WIDE, {}),
    ("densenet121", WIDE, {}),
    ("efficientnet_b0", WIDE, {}),
    ("googlenet", WIDE, {"init_weights": False, "aux_logits": False}),
    ("inception_v3", (3, 139, 171), {"init_weights": False}),
    ("mnasnet0_5", WIDE, {}),
    ("mobilenet_v2", WIDE, {}),
    ("mobilenet_v3_small", WIDE, {}),
    ("regnet_x_400mf", WIDE, {}),
    ("regnet_y_400mf", WIDE, {}),
    ("resnet18", WIDE, {}),
    ("shufflenet_v2_x0_5", WIDE, {}),
    ("squeezenet1_1", WIDE, {}),
    ("SwinTransformer", WIDE, SWIN),
    (
        "VisionTransformer",
        SQUARE,
        {
            **{"image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 2},
            **{"hidden_dim": 32, "mlp_dim": 48, "num_classes": 5},
        },
    ),
    (
        "MaxVit",
        SQUARE,
        {
            **{"input_size": (64, 64), "stem_channels": 8, "partition_size": 2, "block_channels": [8, 16]},
            **{"block_layers": [1, 1], "head_dim": 8, "stochastic_depth_prob": 0.0, "num_classes": 5},
        },
    ),
    ("fcn_resnet50", WIDE, {"weights_backbone": None, "num_classes": 5}),
    ("deeplabv3_mobilenet_v3_large", WIDE, {"weights_backbone": None, "num_classes": 5}),
    ("lraspp_mobilenet_v3_large", WIDE, {"weights_backbone": None, "num_classes": 5}),
    ("mc3_18", (3, 4, 48, 64), {"num_classes": 5}),
    (
        "SwinTransformer3d",
        (3, 8, 48, 64),
        {**SWIN, "patch_size": [2, 4, 4], "depths": [1, 1], "num_heads": [1, 1], "window_size": [2, 3, 3]},
    ),
]
TORCHVISION_OF_PARTS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("resnet of one block a stage", small_resnet),
    ("resnext of one block a stage", lambda: small_resnet(groups=4, width_per_group=16)),
    ("dilated resnet", lambda: small_resnet(replace_stride_with_dilation=[False, True, True])),
    ("vgg11_bn with a small head", small_vgg),
    ("FCN on a resnet of one block a stage", lambda: segmenter("fcn.FCN", "fcn.FCNHead")),
    ("DeepLabV3 on a resnet of one block a stage", lambda: segmenter("deeplabv3.DeepLabV3", "deeplabv3.DeepLabHead")),
]

# --- timm -------------------------------------------------------------------------------------------------------------

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
VIT = {**SMALL, "patch_size": 16}
TIMM: list[tuple[str, Shape, dict[str, Any]]] = [
    *((f"test_{name}", WIDE, {}) for name in ("byobnet", "convnext", "convnext2", "convnext3", "mambaout")),
    *((f"test_{name}", WIDE, {}) for name in ("efficientnet", "efficientnet_gn", "efficientnet_ln", "nfnet", "resnet")),
    *(
        (f"test_{name}", WIDE, {"img_size": (96, 128), "depth": 3})
        for name in ("vit", "vit2", "vit3", "vit4", "vit_relpos")
    ),
    ("test_coatnet", SQUARE, {"img_size": 64}),
    ("test_maxvit", SQUARE, {"img_size": 64}),
    ("deit_tiny_distilled_patch16_224", WIDE, {**VIT, "img_size": (96, 128)}),
    ("vit_little_patch16_reg4_gap_256", WIDE, {**VIT, "img_size": (96, 128)}),
    ("vit_small_patch14_reg4_dinov2", (3, 84, 112), {**SMALL, "img_size": (84, 112)}),
    ("vit_tiny_patch16_224", WIDE, {**VIT, "img_size": (96, 128), "global_pool": "map", "class_token": False}),
    ("naflexvit_base_patch16_gap", WIDE, SMALL),
    ("beit_base_patch16_224", WIDE, {**VIT, "img_size": (96, 128)}),
    ("eva02_tiny_patch14_224", (3, 84, 112), {**SMALL, "img_size": (84, 112)}),
    (
        "swin_tiny_patch4_window7_224",
        WIDE,
        {
            **{"img_size": (96, 128), "embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)},
            **{"window_size": 4},
        },
    ),
    ("cait_xxs24_224", WIDE, {"img_size": (96, 128), "depth": 2, "embed_dim": 32, "num_heads": 2}),
    ("xcit_nano_12_p16_224", WIDE, {"img_size": (96, 128), "depth": 2, "embed_dim": 32, "num_heads": 2}),
    ("hrnet_w18_small", WIDE, {}),
    ("dla46_c", WIDE, {}),
    ("mobilevit_xxs", WIDE, {}),
    ("ghostnet_100", WIDE, {}),
    ("repvgg_a0", WIDE, {}),
    ("edgenext_xx_small", WIDE, {}),
    ("levit_128s", SQUARE, {"img_size": 64, "embed_dim": (16, 32, 32), "depth": (1, 1, 1)}),
    ("tresnet_m", WIDE, {"layers": (1, 1, 1, 1), "width_factor": 0.25}),
    ("vovnet39a", WIDE, {"stem_chs": (8, 8, 8), "stage_conv_chs": (8,) * 4, "stage_out_chs": (8, 12, 16, 24)}),
    ("fastvit_t8", WIDE, {}),
    (
        "tnt_s_legacy_patch16_224",
        SQUARE,
        {"img_size": 64, "embed_dim": 32, "depth": 2, "inner_dim": 8, "num_heads_outer": 2, "num_heads_inner": 2},
    ),
    ("twins_svt_small", SQUARE, {"img_size": 64, "embed_dims": (16, 16, 16, 16), "depths": (1, 1, 1, 1)}),
    ("visformer_tiny", SQUARE, {"img_size": 64, "embed_dim": 24, "depth": (1, 1, 1), "init_channels": 8}),
    ("focalnet_tiny_srf", WIDE, {}),
]
# (the class, its module, the image's shape, settings)
TIMM_CLASSES: list[tuple[str, str, Shape, dict[str, Any]]] = [
    ("MlpMixer", "mlp_mixer", WIDE, {"img_size": (96, 128), "num_blocks": 2, "embed_dim": 32}),
    (
        "PoolingVisionTransformer",
        "pit",
        WIDE,
        {"img_size": (96, 128), "base_dims": (16, 16, 16), "depth": (1, 1, 1), "heads": (1, 2, 4), "distilled": True},
    ),
    (
        "CrossVit",
        "crossvit",
        (3, 96, 96),
        {
            **{"img_size": 96, "patch_size": (12, 16), "img_scale": (1.0, 1.0), "embed_dim": (16, 32)},
            **{"depth": ((1, 1, 0),), "num_heads": (2, 2), "mlp_ratio": (2.0, 2.0, 1.0)},
        },
    ),
    (
        "PyramidVisionTransformerV2",
        "pvt_v2",
        WIDE,
        {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 2, 4)},
    ),
    ("MetaFormer", "metaformer", WIDE, {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}),
    ("ConvMixer", "convmixer", WIDE, {"dim": 24, "depth": 2}),
    (
        "VOLO",
        "volo",
        (3, 96, 96),
        {
            **{"img_size": 96, "layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "stem_hidden_dim": 8},
            **{"num_heads": (2, 2, 2, 2), "use_aux_head": False, "post_layers": ("ca",)},
        },
    ),
]


def of_timm_class(name: str, module: str, **settings: Any) -> nn.Module:
    """A network of one of timm's classes."""
    return getattr(import_module(f"timm.models.{module}"), name)(num_classes=5, **settings)


def of_timm(name: str, **settings: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=5, **settings)


def animals() -> list[Animal]:
    """All networks of the zoo."""
    from helpers import zoo_transformers

    found = [
        Animal(
            "torchvision", name, lambda n=name, s=settings: of_torchvision(n, **s), shape, None, LIMITS.get(name, "")
        )
        for name, shape, settings in TORCHVISION
    ]
    found += [Animal("torchvision", name, build, WIDE) for name, build in TORCHVISION_OF_PARTS]
    found += [Animal("timm", name, lambda n=name, s=settings: of_timm(n, **s), shape) for name, shape, settings in TIMM]
    found += [
        Animal("timm", name, lambda n=name, m=module, s=settings: of_timm_class(n, m, **s), shape)
        for name, module, shape, settings in TIMM_CLASSES
    ]
    found += [Animal("transformers", *row) for row in zoo_transformers.rows()]
    found += [Animal("hand-made", *row) for row in zoo_odd.rows()]
    return found
