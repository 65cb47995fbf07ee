"""What the adapters of networks that speak have in common: ids as tensors, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def rows_of(ids: Sequence[int], like: Tensor) -> Tensor:
    """Returns ids as a tensor (N, L), the same row for each of the N entries of `like`, on its device."""
    return torch.tensor(list(ids), device=like.device).expand(len(like), -1)


def ends_of(*settings: int | Iterable[int] | None) -> frozenset[int]:
    """Returns the ids of the tokens that end an answer, from what configs say: an id, several, or None."""
    ends: set[int] = set()
    for setting in settings:
        ends |= set() if setting is None else {setting} if isinstance(setting, int) else set(setting)
    return frozenset(ends)
