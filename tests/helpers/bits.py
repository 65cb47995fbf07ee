"""What is the same bit for bit: files, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def files(folder: Path) -> dict[str, Any]:
    """The content of every file; of checkpoints what they hold, for a zip knows its own name."""
    return {
        str(p.relative_to(folder)): torch.load(p, weights_only=True) if p.suffix == ".pt" else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def same(one: Any, other: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) or (one != one and other != other)
