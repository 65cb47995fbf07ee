"""Small detectors of every family in transformers, with random weights. Without transformers, importing this skips."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from konkyo.models.detectors import Detector
from konkyo.models.detectors.transformers import detector

T = pytest.importorskip("transformers")

CLASSES, QUERIES, SIZE = 5, 20, (64, 96)
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
COMMON = {"d_model": 32, "num_queries": QUERIES, "num_labels": CLASSES, "decoder_layers": 2}
DETR = {**COMMON, **HEADS, "encoder_layers": 1}
RT = {**COMMON, **HEADS, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3, "num_denoising": 0}
HG = {
    **{"stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 24, 32], "stage_mid_channels": [8] * 4},
    **{"stage_out_channels": [16, 24, 32, 40], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4},
    **{"hidden_sizes": [16, 24, 32, 40], "depths": [1] * 4, "embedding_size": 8, "out_indices": [2, 3, 4]},
}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
GROUPS = {
    **{"decoder_ffn_dim": 32, "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "group_detr": 2},
    **{"c2f_num_blocks": 1, **COMMON},
}


def resnet(*stages: int) -> Any:
    return T.ResNetConfig(**STAGES, out_features=[f"stage{s}" for s in stages])


def of_timm(*indices: int) -> Any:
    pytest.importorskip("timm")
    return T.TimmBackboneConfig(backbone="resnet10t", out_indices=list(indices), use_pretrained_backbone=False)


def rt_resnet() -> Any:
    return T.RTDetrResNetConfig(**STAGES, out_features=["stage2", "stage3", "stage4"])


def dino() -> Any:
    settings = {**VIT, "num_hidden_layers": 3, "intermediate_size": 32, "num_register_tokens": 0}
    return T.DINOv3ViTConfig(**settings, out_indices=[1, 2, 3], return_class_token=False)


def rf_vit() -> Any:
    kind = importlib.import_module("transformers.models.rf_detr.configuration_rf_detr").RfDetrDinov2Config
    return kind(**VIT, image_size=64, num_windows=2, out_indices=[1, 2], num_register_tokens=0)


def lw_vit() -> Any:
    return T.LwDetrViTConfig(**VIT, image_size=64, pretrain_image_size=64, num_windows=4, out_indices=[1, 2])


LAST, PYRAMID = [(2, 3)], [(8, 12), (4, 6), (2, 3)]
PROJECTED = {"encoder_in_channels": [12, 16, 24]}
Case = tuple[str, Callable[[], Any], dict[str, Any], str, list[tuple[int, int]]]
# (the family in transformers' names, its backbone, its settings, default layer, grids there)
CASES: dict[str, Case] = {
    "detr": ("Detr", lambda: resnet(4), DETR, "model.backbone", LAST),
    "detr, timm": ("Detr", lambda: of_timm(1, 2, 3, 4), DETR, "model.backbone.model.layer4", LAST),
    "table": ("TableTransformer", lambda: resnet(4), DETR, "model.backbone.conv_encoder", LAST),
    "table, timm": (
        *("TableTransformer", lambda: of_timm(1, 2, 3, 4), DETR),
        *("model.backbone.conv_encoder.model.layer4", LAST),
    ),
    "conditional": ("ConditionalDetr", lambda: resnet(4), DETR, "model.backbone", LAST),
    "conditional, timm": (
        *("ConditionalDetr", lambda: of_timm(1, 2, 3, 4), DETR),
        *("model.backbone.model.layer4", LAST),
    ),
    "dab": ("DabDetr", lambda: resnet(4), {**DETR, "hidden_size": 32}, "model.backbone.conv_encoder", LAST),
    "dab, timm": (
        *("DabDetr", lambda: of_timm(1, 2, 3, 4), {**DETR, "hidden_size": 32}),
        *("model.backbone.conv_encoder.model._backbone.layer4", LAST),
    ),
    "deformable": ("DeformableDetr", lambda: resnet(2, 3, 4), DETR, "model.backbone", PYRAMID),
    "deformable, timm": ("DeformableDetr", lambda: of_timm(2, 3, 4), DETR, "model.backbone", PYRAMID),
    "deformable, one level": (
        *("DeformableDetr", lambda: resnet(4), {**DETR, "num_feature_levels": 1}),
        *("model.backbone", LAST),
    ),
    "deformable, refined": (
        *("DeformableDetr", lambda: resnet(2, 3, 4), {**DETR, "with_box_refine": True}),
        *("model.backbone", PYRAMID),
    ),
    "deformable, two stages": (
        "DeformableDetr",
        lambda: resnet(2, 3, 4),
        {**DETR, "with_box_refine": True, "two_stage": True, "two_stage_num_proposals": QUERIES},
        *("model.backbone", PYRAMID),
    ),
    "rt": ("RTDetr", rt_resnet, {**RT, **PROJECTED}, "model.backbone", PYRAMID),
    "rt, timm": (
        *("RTDetr", lambda: of_timm(2, 3, 4), {**RT, "encoder_in_channels": [128, 256, 512]}),
        *("model.backbone", PYRAMID),
    ),
    "rt 2": ("RTDetrV2", rt_resnet, {**RT, **PROJECTED}, "model.backbone", PYRAMID),
    "d-fine": (
        *("DFine", lambda: T.HGNetV2Config(**HG), {**RT, "encoder_in_channels": [24, 32, 40]}),
        *("model.backbone", PYRAMID),
    ),
    "deim 2": (
        *("Deimv2", lambda: T.HGNetV2Config(**HG), {**RT, "encoder_in_channels": [24, 32, 40]}),
        *("model.conv_encoder", PYRAMID),
    ),
    "deim 2, dino": (
        *("Deimv2", dino, {**RT, "encoder_in_channels": [32] * 3, "spatial_tuning_adapter_inplanes": 8}),
        *("model.conv_encoder", PYRAMID),
    ),
    "lw": ("LwDetr", lw_vit, {**GROUPS, "projector_scale_factors": [2.0, 0.5]}, "model.backbone", [(8, 12), (2, 3)]),
    "rf": ("RfDetr", rf_vit, GROUPS, "model.backbone", [(4, 6)]),
    "yolos": (
        "Yolos",
        lambda: None,
        {
            **{**VIT, "intermediate_size": 32, "image_size": list(SIZE)},
            **{"num_detection_tokens": QUERIES, "num_labels": CLASSES},
        },
        *("vit.encoder.layer.1.layernorm_before", [(4, 6)]),
    ),
}
SCORES = ("class_embed", "class_labels_classifier", "enc_score_head")


def network(name: str, seed: int = 0, **more: Any) -> nn.Module:
    """A network whose scores differ between classes, places and images."""
    family, backbone, settings, _, _ = CASES[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        body = backbone()
        parts = {} if body is None else {"backbone_config": body}
        config = getattr(T, f"{family}Config")(**parts, **{**settings, **more})
        module = getattr(T, f"{family}ForObjectDetection")(config)
        for key, part in module.named_modules():  # fresh ones are nearly blind, and their box heads are zero
            if isinstance(part, (nn.Linear, nn.Conv2d)) and "sampling_offsets" not in key:
                nn.init.kaiming_normal_(part.weight)
            if isinstance(part, nn.BatchNorm2d):
                nn.init.ones_(part.weight)
            if isinstance(part, nn.Linear) and any(score in key for score in SCORES):
                nn.init.normal_(part.bias)
        for key, parameter in module.named_parameters():
            if "detection_tokens" in key or "position_embeddings" in key:
                nn.init.normal_(parameter)
    return module.eval()


def pictures(count: int = 2, seed: int = 3) -> Tensor:
    """Images of few large patches, so that they differ for the network."""
    coarse = torch.randn(count, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=SIZE, mode="bilinear") * 2


def known(module: nn.Module) -> Detector:
    found = detector(module)
    assert found is not None
    return found


@contextmanager
def leaves_at(module: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """What the layer puts out becomes leaves of the graph."""
    leaves: list[Tensor] = []

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1].clone()

    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _a, output: tree_map(cut, output))
    try:
        yield leaves
    finally:
        handle.remove()
