"""Networks of transformers that estimate depth, or the joints of a person."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from konkyo.models.kinds import Arguments, kind
from konkyo.tasks.fields import DepthTask
from konkyo.tasks.keypoints import KeypointTask

_METRIC = ("GLPN", "ZoeDepth", "DepthPro")
"""The families that estimate metres; others estimate inverse depth, up to a factor and an offset."""

_TAPS = "neck.reassemble_stage"
"""Where DPT and its like put the tokens of several blocks onto grids, which is all that the rest sees of the image."""


@kind("transformers", "depth estimator", auto="AutoModelForDepthEstimation")
def depth(module: nn.Module, processor: Any = None) -> Arguments | None:
    """Returns what makes a model of a network of depth; None: another module."""
    del processor
    name = type(module).__name__
    if not name.endswith("ForDepthEstimation"):
        return None
    kind_of_depth = getattr(module.config, "depth_estimation_type", None)
    metric = name.startswith(_METRIC) if kind_of_depth is None else kind_of_depth == "metric"
    layer = _TAPS if _TAPS in dict(module.named_modules()) else ""
    task = DepthTask(unit="m", layer=layer) if metric else DepthTask(inverse=True, layer=layer)
    return {"task": task, "select": select_depth, "classes": ()}


@kind("transformers", "network of keypoints")
def keypoints(module: nn.Module, processor: Any = None) -> Arguments | None:
    """Returns what makes a model of ViTPose and its like, with the names of the joints; None: another module."""
    del processor
    config: Any = getattr(module, "config", None)
    if not type(module).__name__.endswith("ForPoseEstimation"):
        return None
    names = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    invented = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    end = "backbone.layernorm"
    patch = getattr(getattr(config, "backbone_config", None), "patch_size", None)
    known = end in dict(module.named_modules()) and isinstance(patch, (list, tuple)) and len(set(patch)) == 1
    task = KeypointTask(end, int(patch[0])) if known else KeypointTask()  # type: ignore[index]
    return {"task": task, "select": select_heatmaps, "classes": () if invented else names}


def select_depth(output: Any) -> Tensor:
    """Returns the field (N, H, W) in what a network of depth returns."""
    return cast("Tensor", output.predicted_depth)


def select_heatmaps(output: Any) -> Tensor:
    """Returns the heat maps (N, joints, h, w) in what a network of keypoints returns."""
    return cast("Tensor", output.heatmaps)
