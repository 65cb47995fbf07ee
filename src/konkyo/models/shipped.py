"""The models that ship with the library, weights included."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load_file
from torch import Tensor, nn

from konkyo.data.sets.questions import ANSWERED, ANSWERS, kind_of, tokens
from konkyo.data.sets.scenes import CLASSES
from konkyo.errors import KonkyoError, unknown
from konkyo.models.base import Model, adapter
from konkyo.models.checkpoints import build_with
from konkyo.models.detectors.transformers import detector
from konkyo.models.networks.captions import ScenesClip, vocabulary
from konkyo.models.networks.captions import tokens_of as word_tokens
from konkyo.models.networks.questions import ScenesVQA
from konkyo.models.networks.scenes import SCENES_MEAN, SCENES_SIZE, SCENES_STD, ScenesResNet, ScenesSegmenter
from konkyo.models.preprocess import Preprocess
from konkyo.models.prompts import Prompts
from konkyo.models.texts.clip import Pair
from konkyo.models.transformers import import_transformers
from konkyo.tasks.segmentation import SegmentationTask


def scenes_classifier() -> nn.Module:
    """Returns the classifier of `konkyo.data.scenes.CLASSES`, trained, in eval mode.

    It takes images of SCENES_SIZE pixels, scaled to [0, 1] and normalised with SCENES_MEAN and SCENES_STD.
    """
    module, _ = _built("scenes-classifier", "default", lambda _: ScenesResNet())
    return module


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


Weights: TypeAlias = "str | Path | None"
"""What `load` takes: "default" (shipped), None (random), or a file."""
SHIPPED: dict[str, Callable[[Weights], Model]] = {}
"""The models by name."""
_PREPROCESS = Preprocess(SCENES_SIZE, SCENES_SIZE, SCENES_MEAN, SCENES_STD)


def _shipped(name: str) -> Callable[[Callable[[Weights], Model]], Callable[[Weights], Model]]:
    """Registers what builds a model that ships."""

    def register(build: Callable[[Weights], Model]) -> Callable[[Weights], Model]:
        SHIPPED[name] = build
        return build

    return register


@adapter("konkyo")
def load(name: str, weights: Weights) -> Model:
    """Returns a model that ships, in eval mode.

    `weights`: "default" (shipped), None (random) or a file. KonkyoError: another name.
    """
    if name not in SHIPPED:
        raise unknown("shipped model", name, SHIPPED)
    return SHIPPED[name](weights)


def _built(name: str, weights: Weights, build: Callable[[int | None], nn.Module]) -> tuple[nn.Module, bool]:
    """Returns (the network with these weights, in eval mode; whether its classes are the usual ones)."""
    module, usual = build(None), True
    if weights == "default":
        with as_file(files("konkyo") / "models" / "weights" / f"{name}.safetensors") as path:
            module.load_state_dict(load_file(path))
    elif weights is not None:
        module, usual = build_with(weights, build)
    return module.eval(), usual


@_shipped("scenes-classifier")
def _classifier(weights: Weights) -> Model:
    module, usual = _built("scenes-classifier", weights, lambda classes: ScenesResNet(classes or len(CLASSES)))
    return Model(module, _PREPROCESS, CLASSES if usual else (), "konkyo/scenes-classifier")


@_shipped("scenes-detr")
def _detector(weights: Weights) -> Model:
    module, _ = _built("scenes-detr", weights, lambda _: scenes_detector())
    preprocess = Preprocess((SCENES_SIZE, SCENES_SIZE), None, (0.0,) * 3, (1.0,) * 3)
    return Model(module, preprocess, CLASSES, "konkyo/scenes-detr", detector=detector(module))


@_shipped("scenes-segmenter")
def _segmenter(weights: Weights) -> Model:
    classes = ("background", *CLASSES)
    module, usual = _built("scenes-segmenter", weights, lambda count: ScenesSegmenter(count or len(classes)))
    preprocess = Preprocess((SCENES_SIZE, SCENES_SIZE), None, SCENES_MEAN, SCENES_STD)
    task = SegmentationTask(layer="body")
    return Model(module, preprocess, classes if usual else (), "konkyo/scenes-segmenter", task=task)


@_shipped("scenes-vqa")
def _answerer(weights: Weights) -> Model:
    module, _ = _built("scenes-vqa", weights, lambda _: ScenesVQA())
    return Model(module, _PREPROCESS, ANSWERS, "konkyo/scenes-vqa", prompts=Prompts("question", _with_question))


def _with_question(question: str) -> dict[str, Any]:
    """Returns how the network of questions is run with one question. KonkyoError: one that it does not answer."""
    if kind_of(question) not in ANSWERED:
        raise KonkyoError(
            f"konkyo/scenes-vqa does not answer {question!r}: it was wrong too often about colours. It answers "
            f"questions of the kinds {', '.join(ANSWERED)}"
        )
    return {"call": partial(_run_with, tokens(question)[None])}


def _run_with(words: Tensor, module: nn.Module, images: Tensor) -> Any:
    return module(images, words.to(images.device))


@_shipped("scenes-clip")
def _image_text(weights: Weights) -> Model:
    module, _ = _built("scenes-clip", weights, lambda _: ScenesClip(len(vocabulary()) + 2))
    arguments = Pair(module, _image_embeddings, partial(_text_embeddings, module), sigmoid=True).arguments()
    return Model(module, _PREPROCESS, name="konkyo/scenes-clip", **arguments)


def _image_embeddings(module: nn.Module, images: Tensor) -> Tensor:
    """Returns the embeddings of images (N, 128)."""
    embeddings: Tensor = module.get_image_features(images)  # type: ignore[operator]
    return embeddings


def _text_embeddings(module: nn.Module, texts: Sequence[str]) -> Tensor:
    """Returns the embeddings of texts (T, 128). KonkyoError: a word that the network does not know."""
    like = next(module.parameters())
    embeddings: Tensor = module.get_text_features(word_tokens(texts).to(like.device))  # type: ignore[operator]
    return embeddings
