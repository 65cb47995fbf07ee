"""Small networks of transformers whose queries have a class and a mask."""

import pytest

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
