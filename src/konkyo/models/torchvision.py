"""torchvision's classifiers: `torchvision/NAME`, with preprocessing and class names from their weights' metadata."""

from __future__ import annotations

from pathlib import Path

import torchvision
from torch import nn

from konkyo.errors import KonkyoError, unknown
from konkyo.models.base import Model, adapter
from konkyo.models.checkpoints import build_with
from konkyo.models.preprocess import Preprocess


def names() -> list[str]:
    """The names of all classifiers."""
    return list(torchvision.models.list_models(module=torchvision.models))


@adapter("torchvision")
def load(name: str, weights: str | Path | None) -> Model:
    """The classifier `name`. `weights`: "default" (downloaded once by torchvision), None (random) or a file."""
    if name not in names():
        raise unknown("torchvision classifier", name, names())
    metadata = torchvision.models.get_model_weights(name).DEFAULT

    def build(classes: int | None) -> nn.Module:
        extra: dict[str, object] = {} if classes is None else {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            # Their own initialisation warns and takes scipy; their published weights expect transformed input.
            extra |= {"init_weights": False, "transform_input": weights is not None}
        network: nn.Module = torchvision.models.get_model(name, weights=None, **extra)
        return network

    usual = True
    if weights is None:
        module = build(None)
    elif weights == "default":
        try:
            module = torchvision.models.get_model(name, weights=metadata)
        except OSError as error:
            raise KonkyoError(
                f"the weights of torchvision/{name} could not be downloaded ({error}); give a file: weights=..."
            ) from error
    else:
        module, usual = build_with(weights, build)
    transform = metadata.transforms()
    preprocess = Preprocess(
        resize=transform.resize_size[0],
        crop=transform.crop_size[0],
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
    classes = tuple(metadata.meta["categories"]) if usual else ()
    return Model(module.eval(), preprocess, classes, f"torchvision/{name}")
