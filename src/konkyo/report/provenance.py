"""Provenance: what made a report, as names and values that anybody can compare with his own."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from konkyo.models.base import Model
from konkyo.version import __version__


def weights_hash(module: nn.Module) -> str:
    """Returns the SHA-256 of a network's state dict in hexadecimal digits.

    It is over the name, type, shape and little-endian bytes of every tensor, in the order of their sorted names. So
    equal weights have equal hashes, wherever they lie and whatever file they came from.
    """
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):  # extra state of a module: whatever it is, as text
            digest.update(f"{name}:{value!r}\n".encode())
            continue
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
        plain = value.detach().cpu().contiguous()
        digest.update(np.ascontiguousarray(plain.flatten().view(torch.uint8).numpy()).tobytes())
    return digest.hexdigest()


def of_model(model: Model) -> dict[str, str]:
    """Returns what is known of a model, by name: its network, size, weights, preprocessing and device."""
    parameters = list(model.module.parameters())
    first = parameters[0] if parameters else torch.zeros(())
    return {
        "model": model.name,
        "network": type(model.module).__name__,
        "parameters": f"{sum(p.numel() for p in parameters):,}",
        "weights SHA-256": weights_hash(model.module),
        "classes": str(len(model.classes)) if model.classes else "not named",
        "preprocessing": "not known: tensors were given" if model.preprocess is None else str(model.preprocess),
        "device": str(first.device),
        "precision": str(first.dtype).removeprefix("torch."),
    }


def of_versions() -> dict[str, str]:
    """Returns the versions of what a result depends on, and the date in UTC."""
    return {
        "konkyo": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def of_options(options: Mapping[str, Any]) -> str:
    """Returns options in one line, as in "samples=16, sigma=0.1"."""
    return ", ".join(f"{name}={value}" for name, value in sorted(options.items())) or "the defaults"
