"""timm's classifiers: `timm/NAME`, with the preprocessing and class names that timm knows. Needs the extra `timm`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from konkyo.errors import KonkyoError, first_line, install_hint, unknown
from konkyo.models.base import Model, adapter
from konkyo.models.checkpoints import build_with
from konkyo.models.preprocess import Fit, Preprocess

_FITS: dict[str, Fit] = {"center": "cover", "squash": "stretch", "border": "contain"}


def _timm() -> ModuleType:
    """Returns timm, imported when one of its models is asked for. KonkyoError: it is not installed."""
    try:
        return import_module("timm")
    except ImportError as error:
        raise KonkyoError(f"timm/NAME needs the library timm: {install_hint('timm')}") from error


@adapter("timm")
def load(name: str, weights: str | Path | None) -> Model:
    """Returns the classifier `name`, as timm spells it ("resnet50", "vit_base_patch16_224.augreg_in21k_ft_in1k").

    `weights`: "default" (downloaded once by timm), None (random) or a file. KonkyoError: timm is not installed, an
    unknown name, a network without classes, or weights that cannot be had or do not fit.
    """
    timm = _timm()
    if not timm.is_model(name.partition(".")[0]):
        raise unknown("timm model", name, timm.list_models())

    def build(classes: int | None) -> Any:
        extra = {} if classes is None else {"num_classes": classes}
        try:
            return timm.create_model(name, pretrained=False, **extra)
        except RuntimeError as error:
            raise KonkyoError(f"timm/{name} cannot be built: {first_line(error)}") from error

    usual = True
    if weights is None:
        module = build(None)
    elif weights == "default":
        try:
            module = timm.create_model(name, pretrained=True)
        except Exception as error:  # no such tag, no weights published, no network: each fails in its own way
            raise KonkyoError(
                f"the weights of timm/{name} could not be downloaded ({first_line(error)}); give a file: weights=..."
            ) from error
    else:
        # What timm builds without a head gets one of a single class, so that a tuned file's head has a place.
        published = timm.get_pretrained_cfg(name)
        least = 1 if published is not None and published.num_classes == 0 else None
        module, usual = build_with(weights, lambda classes: build(classes or least))
    if module.num_classes == 0:
        raise KonkyoError(
            f"timm/{name} puts out features, not classes; give the weights of one with a head: weights=..."
        )
    data = timm.data.resolve_model_data_config(module)
    subset = timm.data.infer_imagenet_subset(module) if usual else None
    classes = _names(timm.data.ImageNetInfo(subset).label_descriptions()) if subset else ()
    return Model(module.eval(), preprocessing(data), classes, f"timm/{name}")


def facts(module: Any) -> dict[str, Any]:
    """Returns the preprocessing that a module of timm tells in its `pretrained_cfg`; nothing where it tells none.

    A module built without such a configuration has ImageNet's numbers from timm's defaults, which would be a guess.
    """
    config = getattr(module, "pretrained_cfg", None) or {}
    if not all(config.get(name) for name in ("input_size", "mean", "std")):
        return {}
    first = next((m for m in module.modules() if isinstance(m, torch.nn.Conv2d)), None)
    preprocess = preprocessing(_timm().data.resolve_model_data_config(module))
    if first is not None and first.in_channels != len(preprocess.mean):
        return {}  # a network of other channels than those the numbers are of
    return {"preprocess": preprocess}


def preprocessing(data: Mapping[str, Any]) -> Preprocess:
    """Returns what timm's data configuration (`resolve_data_config`) does to a picture in evaluation."""
    height, width = data["input_size"][1:]
    scaled = math.floor(height / data["crop_pct"]), math.floor(width / data["crop_pct"])
    square = scaled[0] == scaled[1] and data["crop_mode"] == "center"
    return Preprocess(
        resize=scaled[0] if square else scaled,
        crop=(height, width),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        fit=_FITS[data["crop_mode"]],
    )


def _names(descriptions: list[str]) -> tuple[str, ...]:
    """Returns the first of each class's synonyms; all of them where several classes share the first."""
    first = [text.partition(",")[0] for text in descriptions]
    counts = Counter(first)
    return tuple(text if counts[name] > 1 else name for text, name in zip(descriptions, first, strict=True))
