"""Networks of transformers that estimate depth, or the joints of a person."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from konkyo.models.kinds import Arguments, kind
from konkyo.tasks.fields import DepthTask
from konkyo.tasks.keypoints import KeypointTask

_METRIC = ("GLPN", "ZoeDepth", "DepthPro")
"""The families that estimate metres; others estimate inverse depth, up to a factor and an offset."""


@kind("transformers", "depth estimator", auto="AutoModelForDepthEstimation")
def depth(module: nn.Module, processor: Any = None) -> Arguments | None:
    """Returns what makes a model of a network of depth; None: another module."""
    del processor
    name = type(module).__name__
    if not name.endswith("ForDepthEstimation"):
        return None
    kind_of_depth = getattr(module.config, "depth_estimation_type", None)
    metric = name.startswith(_METRIC) if kind_of_depth is None else kind_of_depth == "metric"
    task = DepthTask(unit="m") if metric else DepthTask(inverse=True)
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
    return {"task": KeypointTask(), "select": select_heatmaps, "classes": () if invented else names}


def select_depth(output: Any) -> Tensor:
    """Returns the field (N, H, W) in what a network of depth returns."""
    return cast("Tensor", output.predicted_depth)


def select_heatmaps(output: Any) -> Tensor:
    """Returns the heat maps (N, joints, h, w) in what a network of keypoints returns."""
    return cast("Tensor", output.heatmaps)
