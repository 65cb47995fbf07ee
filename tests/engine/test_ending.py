"""What the graph of an output tells of a network's last operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from konkyo.engine.ending import Ending, ending_of

Make = Callable[[Tensor], Tensor]


class Custom(torch.autograd.Function):
    """A function of the user's own, of which nothing is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


ENDINGS: dict[str, tuple[Make, Ending]] = {
    "linear": (lambda z: z, Ending.LOGITS),
    "log softmax": (lambda z: z.log_softmax(1), Ending.LOGITS),
    "a view": (lambda z: z[:, :2].unsqueeze(0).squeeze(0), Ending.LOGITS),
    "sigmoid": (torch.sigmoid, Ending.PROBABILITIES),
    "module": (nn.Sigmoid(), Ending.PROBABILITIES),
    "in place": (lambda z: z.clone().sigmoid_(), Ending.PROBABILITIES),
    "softmax": (lambda z: z.softmax(1), Ending.PROBABILITIES),
    "column of a softmax": (lambda z: z.softmax(1)[:, 1:2], Ending.PROBABILITIES),
    "half": (lambda z: z.half().sigmoid().float(), Ending.PROBABILITIES),
    "hard sigmoid": (functional.hardsigmoid, Ending.PROBABILITIES),
    "by hand": (lambda z: 1 / (1 + torch.exp(-z)), Ending.SQUASHED),
    "of tanh": (lambda z: (z.tanh() + 1) / 2, Ending.SQUASHED),
    "the other side": (lambda z: 1 - z.sigmoid(), Ending.SQUASHED),
    "clamped": (lambda z: z.sigmoid().clamp(1e-4, 1), Ending.SQUASHED),
    "ensemble": (lambda z: torch.stack([z.softmax(1), (2 * z).softmax(1)]).mean(0), Ending.SQUASHED),
    "softmax by hand": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), Ending.SQUASHED),
    "swish": (lambda z: z * z.sigmoid(), Ending.MIXED),
    "scaled": (lambda z: 30 * functional.normalize(z), Ending.MIXED),
    "sum": (lambda z: z + z.sigmoid(), Ending.MIXED),
    "custom": (Custom.apply, Ending.UNKNOWN),
    "no gradient": (lambda z: z.detach().sigmoid(), Ending.UNKNOWN),
}


@pytest.mark.parametrize(("make", "ending"), ENDINGS.values(), ids=ENDINGS)
def test_endings(make: Make, ending: Ending) -> None:
    logits = nn.Linear(4, 3)(torch.randn(2, 4))
    assert ending_of(make(logits)) is ending


def test_checkpoints_and_long_chains() -> None:
    logits = nn.Linear(4, 3)(torch.randn(2, 4))
    assert ending_of(checkpoint(torch.sigmoid, logits, use_reentrant=False)) is Ending.PROBABILITIES
    total = logits.sigmoid()
    for _ in range(5000):
        total = total + 1
    assert ending_of(total) in (Ending.LOGITS, Ending.MIXED, Ending.SQUASHED)
