"""Classifiers of transformers whose config says that they estimate numbers."""

from __future__ import annotations

from typing import Any

from torch import nn

from konkyo.tasks.regression import RegressionTask


def regressor(module: nn.Module) -> dict[str, Any] | None:
    """Returns what makes a model of a regressor; None where the config does not say that it is one."""
    config = getattr(module, "config", None)
    if getattr(config, "problem_type", None) != "regression":
        return None
    names = tuple(str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items()))
    invented = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return {"task": RegressionTask(), "classes": () if invented else names}
