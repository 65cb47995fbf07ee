"""torchvision's segmenters: DeepLabV3, FCN and LR-ASPP put out logits (N, K, H, W) under the name "out"."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.segmentation import LRASPP
from torchvision.models.segmentation._utils import _SimpleSegmentationModel

from konkyo.models.kinds import kind
from konkyo.tasks.segmentation import SegmentationTask


@kind("torchvision", "segmenter")
def describe(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns the task of a segmenter; None: another module."""
    del processor
    if isinstance(module, LRASPP):  # its head reads two levels of the backbone
        return {"task": SegmentationTask(layer="backbone")}
    return {"task": SegmentationTask()} if isinstance(module, _SimpleSegmentationModel) else None
