"""The models that ship with the library, weights included."""

from __future__ import annotations

import warnings
from importlib.resources import as_file, files
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from konkyo.data.sets.scenes import CLASSES
from konkyo.errors import unknown
from konkyo.models.base import Model, adapter
from konkyo.models.checkpoints import build_with
from konkyo.models.detectors.transformers import detector
from konkyo.models.networks.scenes import SCENES_MEAN, SCENES_SIZE, SCENES_STD, ScenesResNet, ScenesSegmenter
from konkyo.models.preprocess import Preprocess
from konkyo.models.transformers import import_transformers
from konkyo.tasks.segmentation import SegmentationTask

SHIPPED = ("scenes-classifier", "scenes-detr", "scenes-segmenter")


def scenes_classifier() -> nn.Module:
    """Returns the classifier of `konkyo.data.scenes.CLASSES`, trained, in eval mode.

    It takes images of SCENES_SIZE pixels, scaled to [0, 1] and normalised with SCENES_MEAN and SCENES_STD.
    """
    model = ScenesResNet()
    with as_file(files("konkyo") / "models" / "weights" / "scenes-classifier.safetensors") as path:
        model.load_state_dict(load_file(path))
    return model.eval()


def scenes_detector() -> nn.Module:
    """Returns a detector of `konkyo.data.scenes.CLASSES`, untrained: transformers' RT-DETR, small. In eval mode.

    Three stages to stride 16 (two levels), one encoder layer, two decoder layers, 30 queries. It takes images of
    SCENES_SIZE pixels, scaled to [0, 1]. KonkyoError: transformers is not installed.
    """
    transformers = import_transformers()
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=40,
        hidden_sizes=[40, 96, 160],
        depths=[1, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[96, 160],
        feat_strides=[8, 16],
        encode_proj_layers=[1],
        encoder_hidden_dim=96,
        encoder_ffn_dim=256,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=96,
        decoder_in_channels=[96, 96],
        num_feature_levels=2,
        decoder_layers=2,
        decoder_ffn_dim=256,
        decoder_attention_heads=4,
        num_queries=30,
        num_denoising=30,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of heads whose width is no power of 2
        module: nn.Module = transformers.RTDetrForObjectDetection(config).eval()
    return module


@adapter("konkyo")
def load(name: str, weights: str | Path | None) -> Model:
    """Returns the classifier, the detector or the segmenter of scenes.

    `weights`: "default" (shipped), None (random) or a file. KonkyoError: another name.
    """
    if name not in SHIPPED:
        raise unknown("shipped model", name, SHIPPED)
    if name == "scenes-detr":
        return _detector(weights)
    if name == "scenes-segmenter":
        return _segmenter(weights)
    module: nn.Module
    usual = True
    if weights is None:
        module = ScenesResNet()
    elif weights == "default":
        module = scenes_classifier()
    else:
        module, usual = build_with(weights, lambda classes: ScenesResNet(classes or len(CLASSES)))
    preprocess = Preprocess(SCENES_SIZE, SCENES_SIZE, SCENES_MEAN, SCENES_STD)
    return Model(module.eval(), preprocess, CLASSES if usual else (), f"konkyo/{name}")


def _detector(weights: str | Path | None) -> Model:
    module = scenes_detector()
    if weights == "default":
        with as_file(files("konkyo") / "models" / "weights" / "scenes-detr.safetensors") as path:
            module.load_state_dict(load_file(path))
    elif weights is not None:
        module, _ = build_with(weights, lambda _: scenes_detector())
    preprocess = Preprocess((SCENES_SIZE, SCENES_SIZE), None, (0.0,) * 3, (1.0,) * 3)
    return Model(module, preprocess, CLASSES, "konkyo/scenes-detr", detector=detector(module))


def _segmenter(weights: str | Path | None) -> Model:
    module: nn.Module = ScenesSegmenter()
    classes, usual = ("background", *CLASSES), True
    if weights == "default":
        with as_file(files("konkyo") / "models" / "weights" / "scenes-segmenter.safetensors") as path:
            module.load_state_dict(load_file(path))
    elif weights is not None:
        module, usual = build_with(weights, lambda count: ScenesSegmenter(count or len(classes)))
    preprocess = Preprocess((SCENES_SIZE, SCENES_SIZE), None, SCENES_MEAN, SCENES_STD)
    task = SegmentationTask(layer="body")
    return Model(module.eval(), preprocess, classes if usual else (), "konkyo/scenes-segmenter", task=task)
