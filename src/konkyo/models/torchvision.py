"""torchvision's networks: `torchvision/NAME`, with preprocessing and class names from their weights' metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models import WeightsEnum
from torchvision.transforms._presets import (
    ImageClassification,
    ObjectDetection,
    SemanticSegmentation,
    VideoClassification,
)

from konkyo.errors import KonkyoError, unknown
from konkyo.models.base import Model, adapter
from konkyo.models.checkpoints import build_with
from konkyo.models.detectors.torchvision import detector
from konkyo.models.preprocess import Preprocess
from konkyo.models.readers import Clips

OF_DETECTORS = Preprocess(None, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Detectors resize and normalise by themselves."""


def names() -> list[str]:
    """Returns the names of all classifiers."""
    return list(torchvision.models.list_models(module=torchvision.models))


def video_names() -> list[str]:
    """Returns the names of all classifiers of videos."""
    return list(torchvision.models.list_models(module=torchvision.models.video))


def detector_names() -> list[str]:
    """Returns the names of all detectors."""
    return list(torchvision.models.list_models(module=torchvision.models.detection))


def segmenter_names() -> list[str]:
    """Returns the names of all segmenters."""
    return list(torchvision.models.list_models(module=torchvision.models.segmentation))


@adapter("torchvision")
def load(name: str, weights: str | Path | None) -> Model:
    """Returns the classifier of pictures or videos, the detector or the segmenter `name`.

    `weights`: "default" (downloaded once by torchvision), None or a file.
    """
    if name in detector_names():
        return _detector(name, weights)
    if name in segmenter_names():
        return _segmenter(name, weights)
    if name not in names() and name not in video_names():
        raise unknown("torchvision model", name, [*names(), *detector_names(), *segmenter_names(), *video_names()])
    metadata = torchvision.models.get_model_weights(name).DEFAULT

    def build(classes: int | None) -> nn.Module:
        extra: dict[str, object] = {} if classes is None else {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            # Their own initialisation warns and takes scipy; their published weights expect transformed input.
            extra |= {"init_weights": False, "transform_input": weights is not None}
        network: nn.Module = torchvision.models.get_model(name, weights=None, **extra)
        return network

    module, usual = _built(name, weights, metadata, build)
    classes = tuple(metadata.meta["categories"]) if usual else ()
    prepare = _clips(metadata)
    if prepare is not None:
        return Model(module.eval(), None, classes, f"torchvision/{name}", reader=prepare)
    return Model(module.eval(), _preprocess(metadata), classes, f"torchvision/{name}")


def _clips(weights: Any) -> Clips | None:
    """Returns how the transforms of published weights prepare the frames of clips; None: those of pictures."""
    transform = weights.transforms()
    if not isinstance(transform, VideoClassification):
        return None
    resize, crop = list(transform.resize_size), list(transform.crop_size)
    picture = Preprocess(
        resize=(resize[0], resize[1]) if len(resize) == 2 else resize[0],
        crop=(crop[0], crop[-1]),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
    return Clips(16, picture, smooth=False)


def _preprocess(weights: Any) -> Preprocess:
    """Returns what the transforms of published weights do to a picture. KonkyoError: transforms of something else."""
    transform = weights.transforms()
    if isinstance(transform, ObjectDetection):
        return OF_DETECTORS
    if not isinstance(transform, (ImageClassification, SemanticSegmentation)):
        raise KonkyoError(f"{weights} are of no network of pictures; give preprocess=konkyo.Preprocess(...)")
    return Preprocess(
        resize=transform.resize_size[0],
        crop=transform.crop_size[0] if isinstance(transform, ImageClassification) else None,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )


def described(weights: Any, module: nn.Module) -> dict[str, Any]:
    """Returns preprocessing and class names of published weights. KonkyoError: something else than such weights."""
    if not isinstance(weights, WeightsEnum):
        raise KonkyoError(
            "weights are a choice of torchvision's, as torchvision.models.ResNet50_Weights.DEFAULT; got "
            f"{str(weights)[:80]!r}. Weights from a file are loaded by konkyo.load(NAME, weights=FILE)"
        )
    if (clips := _clips(weights)) is not None:
        return {"reader": clips, "classes": tuple(weights.meta["categories"])}
    return {"preprocess": _preprocess(weights), "classes": _classes(weights.meta["categories"], module)}


def facts(module: nn.Module) -> dict[str, Any]:
    """Returns the preprocessing of a detector, which resizes and normalises by itself; of others nothing is told."""
    return {} if detector(module) is None else {"preprocess": OF_DETECTORS}


def _classes(categories: Sequence[str], module: nn.Module) -> tuple[str, ...]:
    """Returns the names of what a network puts out.

    The background of a detector is no class, where it has a column; names that stand for nothing are told apart.
    """
    adapter = detector(module)
    if adapter is None:
        return tuple(categories)
    names = [c if c != "N/A" else f"N/A {i}" for i, c in enumerate(categories)]
    return tuple(names[len(names) - adapter.classes :])


def _detector(name: str, weights: str | Path | None) -> Model:
    """Builds a detector, which resizes and normalises by itself: it takes pictures of any size, colours in [0, 1]."""
    metadata = torchvision.models.get_model_weights(name).DEFAULT

    def build(classes: int | None) -> nn.Module:
        extra = {} if classes is None else {"num_classes": classes}
        network: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None, **extra)
        return network

    module, usual = _built(name, weights, metadata, build)
    classes = _classes(metadata.meta["categories"], module) if usual else ()
    return Model(module.eval(), OF_DETECTORS, classes, f"torchvision/{name}", detector=detector(module))


def _segmenter(name: str, weights: str | Path | None) -> Model:
    """Builds a segmenter; the head that only helps in training is left out where the weights come from a file."""
    metadata = torchvision.models.get_model_weights(name).DEFAULT

    def build(classes: int | None) -> nn.Module:
        extra = {} if classes is None else {"num_classes": classes}
        network: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None, **extra)
        return network

    module, usual = _built(name, weights, metadata, build)
    classes = tuple(metadata.meta["categories"]) if usual else ()
    return Model(module.eval(), _preprocess(metadata), classes, f"torchvision/{name}")


def _built(
    name: str, weights: str | Path | None, published: object, build: Callable[[int | None], nn.Module]
) -> tuple[nn.Module, bool]:
    """Returns (the network with these weights, whether its classes are the usual ones)"""
    if weights is None:
        return build(None), True
    if weights != "default":
        return build_with(weights, build)
    try:
        return torchvision.models.get_model(name, weights=published), True
    except OSError as error:
        raise KonkyoError(
            f"the weights of torchvision/{name} could not be downloaded ({error}); give a file: weights=..."
        ) from error
