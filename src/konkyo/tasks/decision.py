"""Decision: what the model itself said of a row's image, beside the target that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_BRIGHTNESS = 0.4
"""How bright a map is drawn whose target has the probability 0, as a share of one that is certain."""


@dataclass(frozen=True)
class Decision:
    """A decision is the class that the model finds most probable, with the probability and rank of the asked class."""

    index: int
    """Of the class that the model finds most probable."""
    label: str
    probability: float
    """Of that class, from 0 to 1: a softmax, or a sigmoid where classes do not exclude each other."""
    rank: int | None = None
    """Of the asked class among all, by probability; 1 is the highest. None where the target is of no class."""
    asked_probability: float | None = None
    exclusive: bool = True
    """Whether classes exclude each other. Where they do not, each one above one half is decided on, or none."""

    @property
    def agrees(self) -> bool:
        """Tells whether the asked class is what the model decided, or one of the classes that it decided."""
        if self.exclusive:
            return self.rank == 1
        return self.asked_probability is not None and self.asked_probability >= 0.5

    def is_right(self, true_label: str | None) -> bool | None:
        """Tells whether the model decided on the true label and, where classes do not exclude each other, on any.

        None: the true label is not known.
        """
        if true_label is None:
            return None
        return self.label == true_label and (self.exclusive or self.probability >= 0.5)

    @property
    def brightness(self) -> float:
        """Returns how bright the map is drawn: from 0.4 of a target with the probability 0 to 1 of a certain one."""
        probability = 1.0 if self.asked_probability is None else self.asked_probability
        return LEAST_BRIGHTNESS + (1 - LEAST_BRIGHTNESS) * min(max(probability, 0.0), 1.0)

    @property
    def of_the_asked(self) -> str:
        """Returns what the model says of the asked class, as in "P 0.02, rank 2"; "" where none was asked."""
        if self.asked_probability is None:
            return ""
        return f"P {_rounded(self.asked_probability)}, rank {self.rank}"

    @property
    def of_the_model(self) -> str:
        """Returns what the model decided, as in "decided: healthy (P 0.98)"."""
        said = f"{self.label} (P {_rounded(self.probability)})"
        return f"decided: {said}" if self.exclusive or self.probability >= 0.5 else f"decided: nothing; highest {said}"


def decisions_of_classes(
    scores: Tensor,
    probabilities: Tensor,
    indices: Sequence[int | None],
    label: Callable[[int], str],
    *,
    exclusive: bool = True,
) -> list[Decision | None]:
    """Returns a decision per row, from scores and probabilities (R, K) and the class that each row asks for.

    The scores decide which class is higher, since probabilities round to 1. None: a probability is not finite. One
    transfer from the device.
    """
    index = torch.tensor([-1 if a is None else a for a in indices], device=scores.device)[:, None]
    score = scores.gather(1, index.clamp_min(0))
    best, first = scores.max(1, keepdim=True)
    first = torch.where((index >= 0) & (score == best), index, first)  # of equal ones the asked
    rank = 1 + (scores > score).sum(1, keepdim=True)
    of_first, of_asked = probabilities.gather(1, first), probabilities.gather(1, index.clamp_min(0))
    table = torch.cat([column.double() for column in (first, rank, of_first, of_asked)], 1).tolist()
    return [
        Decision(int(k), label(int(k)), p, None if a is None else int(r), None if a is None else q, exclusive)
        if math.isfinite(p) and math.isfinite(q)
        else None
        for a, (k, r, p, q) in zip(indices, table, strict=True)
    ]


def _rounded(probability: float) -> str:
    """Returns two decimals; what is not certain does not become 1.00, and what is possible not 0.00."""
    if 0 < probability < 0.005:
        return "< 0.01" if probability >= 0.0005 else f"{probability:.0e}"
    return "> 0.99" if 0.995 <= probability < 1 else f"{probability:.2f}"
