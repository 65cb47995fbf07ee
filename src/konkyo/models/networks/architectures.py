"""The networks that a manifest can ask for: functions of what JSON knows, each of a network with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from konkyo.engine.session import untouched
from konkyo.models import Model, load
from konkyo.models.networks.attention_branch import AttentionBranchNetwork
from konkyo.models.networks.backbone import Pooled, as_backbone, fitting, with_classes
from konkyo.models.networks.levels import gaze_network
from konkyo.models.networks.recam import ReCAM
from konkyo.models.networks.vib import Noise, VIBClassifier


def plain(backbone: str, classes: int, weights: str | None = None) -> nn.Module:
    """Returns a classifier of the mean over the grid of a backbone that `konkyo.load` knows; its `weights` as there."""
    features = as_backbone(_classifier(backbone, weights))
    head = nn.Linear(features.channels, classes)
    fitting(head, features)
    return Pooled(features, head)


def classifier(backbone: str, classes: int, weights: str | None = None) -> nn.Module:
    """Returns a network that `konkyo.load` knows, with its own head for so many classes; `weights` as there.

    The linear layer that makes the logits is replaced by one of `classes` rows. A FILE.py:FUNCTION that puts out as
    many logits as there are classes keeps its head as it is. Where no linear layer makes the logits, the head is
    the mean over the last grid and a linear layer, as of `plain`.
    """
    model = _classifier(backbone, weights)
    side = 224 if model.preprocess is None or model.preprocess.side is None else model.preprocess.side
    height, width = (side, side) if isinstance(side, int) else side
    channels = 3 if model.preprocess is None else len(model.preprocess.mean)
    noise = model.prepared(torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0)))
    if ".py:" in backbone:
        with untouched(model.module), torch.no_grad():
            if model.select(model.module(noise)).shape == (2, classes):
                return model.module
    resized = with_classes(model, classes, noise)
    return plain(backbone, classes, weights) if resized is None else resized


def vib(
    backbone: str, classes: int, weights: str | None = None, noise: Mapping[str, Any] = {}, samples: int = 1
) -> nn.Module:
    """Returns a `VIBClassifier`; `noise` are the arguments of a `Noise`."""
    return VIBClassifier(_classifier(backbone, weights), classes, noise=Noise(**noise), samples=samples)


def recam(backbone: str, classes: int, weights: str | None = None) -> nn.Module:
    """Returns a `ReCAM` network."""
    return ReCAM(_classifier(backbone, weights), classes)


def attention_branch(backbone: str, classes: int, weights: str | None = None) -> nn.Module:
    """Returns an `AttentionBranchNetwork`."""
    return AttentionBranchNetwork(_classifier(backbone, weights), classes)


def _classifier(name: str, weights: str | None) -> Model:
    """Returns the network that a backbone is taken of; a function in a file makes its own weights."""
    return load(name, weights="default" if ".py:" in name else weights)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "level": gaze_network,
    "plain": plain,
    "classifier": classifier,
    "vib": vib,
    "recam": recam,
    "attention_branch": attention_branch,
}
"""By the name in a manifest."""
