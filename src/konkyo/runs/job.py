"""A job: what a run does with every image, and what its manifest says of that."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import nn

from konkyo.data.pieces import Pieces
from konkyo.engine.forward import Precision
from konkyo.errors import KonkyoError
from konkyo.evaluation.columns import Column
from konkyo.evaluation.plan import RIGHT, Plan, digest
from konkyo.explanation.explain import Which
from konkyo.explanation.run import Where
from konkyo.methods.base import Method, find
from konkyo.models import Model
from konkyo.tasks.base import Matching
from konkyo.version import __version__


@dataclass(frozen=True, eq=False)
class Job:
    """A job says what is done with every image. It decides the bytes of every shard, with the piece of the data."""

    model: Model
    methods: tuple[Method, ...]
    columns: tuple[Column, ...] = ()
    """The metrics of every map."""
    target: Any = None
    layer: Where = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: Precision | None = None
    batch: int = 1
    matching: Matching = RIGHT

    @property
    def metrics(self) -> list[str]:
        """Returns the names of the columns."""
        return [column.name for column in self.columns]

    @property
    def request(self) -> dict[str, Any]:
        """Returns the arguments of `explanations`."""
        return {
            "target": self.target,
            "layer": self.layer,
            "options": dict(self.options),
            "seed": self.seed,
            "precision": self.precision,
        }

    def plan(self) -> Plan:
        """Returns what is measured of every sample."""
        options = {k: v for k, v in self.options.items() if any(k in m.options for m in self.methods)}
        return Plan(
            self.model,
            self.methods,
            self.columns,
            "decision",
            self.matching,
            self.seed,
            self.precision,
            self.layer,
            options,
        )

    def settings(self, pieces: Pieces, size: int) -> dict[str, Any]:
        """Returns all that decides the bytes of the shards, as plain JSON values."""
        model = self.model
        parameter = next(model.module.parameters(), torch.zeros(0))
        return {
            "model": model.name,
            "weights": digest(model.module),
            "preprocess": repr(model.preprocess),
            "classes": list(model.classes),
            "data": {
                "source": pieces.source,
                "images": pieces.images,
                "listing": pieces.listing,
                "shards": len(pieces),
                "shard_size": size,
            },
            "methods": [m.name for m in self.methods],
            "metrics": self.metrics,
            "matching": str(self.matching) if self.columns else None,
            "target": in_words(self.target, model.module),
            "layer": in_words(self.layer, model.module),
            "options": {name: in_words(value, model.module) for name, value in self.options.items()},
            "seed": self.seed,
            "precision": self.precision,
            "batch": self.batch,
            "device": parameter.device.type,
            "threads": torch.get_num_threads(),
            "versions": {"konkyo": __version__, **versions()},
        }


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that prepare pictures and run networks, of those that are installed."""
    known = {}
    for name in ("torch", "torchvision", "timm", "transformers", "pillow"):
        with suppress(PackageNotFoundError):
            known[name] = version(name)
    return known


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def in_words(value: Any, network: nn.Module) -> Any:
    """Returns what tells a setting from others, as plain JSON values: the same in every process.

    Modules are named by their place in the network, tensors and arrays by their digest.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, nn.Module):
        return next((name for name, module in network.named_modules() if module is value), type(value).__name__)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = value.detach().cpu().contiguous().numpy() if isinstance(value, torch.Tensor) else value
        return f"{array.dtype} {list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if isinstance(value, (list, tuple)):
        return [in_words(item, network) for item in value]
    if isinstance(value, Mapping):
        return {str(name): in_words(item, network) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: in_words(getattr(value, f.name), network) for f in fields(value) if f.repr}
        return {type(value).__name__: parts}
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _ADDRESS.sub("", repr(value))


def methods_of(names: Sequence[Which]) -> tuple[Method, ...]:
    """Returns the methods of these names. KonkyoError: none, one that is not known, or two of one name."""
    if isinstance(names, (str, Method)) or not names:
        raise KonkyoError(f"methods is a list of names, as in ['grad_cam']; got {names!r}")
    chosen = tuple(dict.fromkeys(find(name) for name in names))
    if len({m.name for m in chosen}) < len(chosen):
        raise KonkyoError(f"two of the methods have one name: {', '.join(m.name for m in chosen)}")
    return chosen
