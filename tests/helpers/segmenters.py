"""Small networks with random weights whose queries, or boxes, have a class and a mask."""

import pytest
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

transformers = pytest.importorskip("transformers")


def _swin():
    return transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def maskformer():
    decoder = transformers.DetrConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, num_queries=6, encoder_layers=1
    )
    config = transformers.MaskFormerConfig(
        backbone_config=_swin(), num_labels=5, fpn_feature_size=32, mask_feature_size=32, decoder_config=decoder
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(), num_labels=5, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16,
        num_queries=6, train_num_points=16,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def mask_rcnn():
    """A Mask R-CNN of three classes that sees something, frozen and in eval mode."""
    torch.manual_seed(3)
    network = MaskRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None), num_classes=4, rpn_post_nms_top_n_test=20,
        rpn_anchor_generator=AnchorGenerator(((16,), (24,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_test=20, box_detections_per_img=10, min_size=96, max_size=130,
    )  # fmt: skip
    network.roi_heads.box_predictor.cls_score.weight.data *= 3
    for part in network.roi_heads.mask_predictor.modules():
        if isinstance(part, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.normal_(part.weight, std=0.2)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        network.backbone.train()
        network.backbone(torch.randn(4, 3, 96, 128))
    return network.eval().requires_grad_(False)
