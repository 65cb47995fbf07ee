"""How a network is trained: the numbers that are chosen, and the optimiser, rates, batches and weights they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, PolynomialLR, ReduceLROnPlateau

from konkyo.errors import KonkyoError, unknown
from konkyo.training.trackers import TRACKERS
from konkyo.utils.ledger import differences, other_settings

Numbers: TypeAlias = dict[str, float]
Optimisers: TypeAlias = Literal["adam", "adamw", "sgd"]
Schedules: TypeAlias = Literal["plateau", "cosine", "steps", "poly", "constant"]
ClassWeights: TypeAlias = Literal["none", "balanced"]
Sampling: TypeAlias = Literal["shuffled", "balanced"]
Keep: TypeAlias = Literal["last", "best"]

_LOWER, _HIGHER = ("loss",), ("accuracy", "kappa")
"""Judged numbers of which it is known which way is better."""
_ENDLESS = ("plateau", "constant")
"""Schedules whose rates do not depend on the number of epochs."""


@dataclass(frozen=True)
class Recipe:
    """A recipe says how a network is trained.

    The defaults are those of the study of gaze consistency, but for the epochs.
    KonkyoError: numbers that make no sense, an unknown optimiser, schedule, ..., class weights with balanced sampling.
    """

    epochs: int = 20
    batch: int = 32
    """Over all devices."""
    learning_rate: float = 1e-4
    optimiser: Optimisers = "adam"
    """adam adds weight decay to the gradient (L2); adamw decays the weights themselves (Loshchilov & Hutter, 2019)."""
    momentum: float = 0.9
    """Of "sgd"."""
    weight_decay: float = 0.0
    schedule: Schedules = "plateau"
    """plateau: a tenth after five epochs without a lower loss in validation; steps: a tenth at 30, 60 and 90 %.
    poly: to 0 with power 0.9, after every epoch."""
    seed: int = 0
    workers: int = 0
    """Processes that read pictures; they live as long as the training, and each keeps the pictures that it opened."""
    warmup: int = 0
    """In the first so many epochs every step has a larger part of the schedule's rate than the one before: (steps so
    far) / (steps of these epochs), as of Goyal et al., 2017. The schedule itself begins with the first epoch."""
    accumulate: int = 1
    """Batches a step: its gradient is of the mean over all their images, also of those left at an epoch's end."""
    clip: float | None = None
    """The highest norm of the gradient of all that is trained (Pascanu et al., 2013)."""
    ema: float = 0.0
    """Decay a step of the running mean of the weights, which is judged and kept; the weights themselves go on. After t
    steps it is min(ema, (1 + t) / (10 + t)), as in TensorFlow, so that the first weights are soon forgotten."""
    class_weights: ClassWeights = "none"
    """balanced: images / (classes * images of the class) in the cross-entropy; objectives ask `weights_of`."""
    sampling: Sampling = "shuffled"
    """balanced: a batch has images of as many classes as it can have `per_class` of, alike many of each."""
    per_class: int = 4
    """Images of a class in a balanced batch; more where there are fewer classes."""
    keep: Keep = "last"
    """The weights of which epoch: the last, or the best by `watch`, which are the network's at the end."""
    watch: str = "loss"
    """Which judged number says what is best: "loss", "accuracy", "kappa"; others with "-" before them where less is
    better, and "+" where more is."""
    patience: int | None = None
    """The training ends after so many epochs that are not better by `watch`; never."""
    track: str = ""
    """Where its numbers go beside epochs.csv: "tensorboard", "wandb" or "mlflow"."""

    def __post_init__(self) -> None:
        for name, good, what in (
            *((name, getattr(self, name) >= 1, "1 or more") for name in ("epochs", "batch", "accumulate", "per_class")),
            *((name, getattr(self, name) >= 0, "0 or more") for name in ("workers", "seed", "warmup")),
            ("patience", self.patience is None or self.patience >= 1, "1 or more, or none"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("momentum", 0 <= self.momentum < 1, "from 0 to less than 1"),
            ("ema", 0 <= self.ema < 1, "from 0 to less than 1"),
            ("clip", self.clip is None or 0 < self.clip < math.inf, "a number above 0, or none"),
        ):
            if not good:
                raise KonkyoError(f"{name.replace('_', ' ')}: {what} was expected; got {getattr(self, name)}")
        offers = {"optimiser": Optimisers, "schedule": Schedules, "class_weights": ClassWeights}
        for name, offer in {**offers, "sampling": Sampling, "keep": Keep}.items():
            if getattr(self, name) not in get_args(offer):
                raise unknown(name.replace("_", " "), getattr(self, name), get_args(offer))
        if self.track and self.track not in TRACKERS:
            raise unknown("tracker", self.track, TRACKERS)
        if self.watch[:1] not in ("+", "-") and self.watch not in (*_LOWER, *_HIGHER):
            raise KonkyoError(
                f"watch: {', '.join(_LOWER + _HIGHER)}, or a number's name after - (less is better) or + was expected; "
                f"got {self.watch!r}"
            )
        if self.sampling == "balanced" and self.class_weights == "balanced":
            raise KonkyoError("balanced sampling shows all classes alike: class weights would weigh them twice")

    def check(self, images: int, processes: int) -> None:
        """Raises KonkyoError where so many processes cannot share its batches, or the images."""
        if self.batch % processes:
            raise KonkyoError(f"a batch of {self.batch} cannot be shared by {processes} processes; choose a multiple")
        if images < processes:
            raise KonkyoError(f"{images} images for {processes} processes")

    def optimizer(
        self, groups: Sequence[Mapping[str, Any]]
    ) -> tuple[Optimizer, ReduceLROnPlateau | LRScheduler | None]:
        """Returns the optimiser of parameter groups, and what changes its rates after every epoch."""
        parameters = [dict(group) for group in groups]
        optimiser: Optimizer
        if self.optimiser == "sgd":
            optimiser = torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        else:
            kind = torch.optim.AdamW if self.optimiser == "adamw" else torch.optim.Adam
            optimiser = kind(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        if self.schedule == "plateau":
            return optimiser, ReduceLROnPlateau(optimiser, factor=0.1, patience=5)
        if self.schedule == "cosine":
            return optimiser, CosineAnnealingLR(optimiser, self.epochs)
        if self.schedule == "steps":
            return optimiser, MultiStepLR(optimiser, [max(1, round(s * self.epochs)) for s in (0.3, 0.6, 0.9)])
        if self.schedule == "poly":
            return optimiser, PolynomialLR(optimiser, self.epochs, power=0.9)
        return optimiser, None

    def warmed(self, epoch: int, step: int, steps: int) -> float:
        """The part of the schedule's rate that step `step` (from 0) of the `steps` of an epoch (from 1) has."""
        if epoch > self.warmup:
            return 1.0
        return ((epoch - 1) * steps + step + 1) / (self.warmup * steps)

    def decay(self, step: int) -> float:
        """How much of the running mean of the weights stays at a step (from 0, over all epochs)."""
        return min(self.ema, (1 + step) / (10 + step))

    def best(self, rows: Sequence[Numbers]) -> int | None:
        """The place of the best of the epochs' rows by `watch`, the first of equals; None of none.

        KonkyoError: the number is not judged, and what is.
        """
        name = self.watch.lstrip("+-")
        more = self.watch.startswith("+") or self.watch in _HIGHER
        place: int | None = None
        for index, row in enumerate(rows):
            if f"valid_{name}" not in row:
                offer = [key.removeprefix("valid_") for key in row if key.startswith("valid_")]
                raise unknown("judged number", name, offer)
            value, highest = row[f"valid_{name}"], -math.inf
            if place is not None:
                highest = rows[place][f"valid_{name}"] * (1 if more else -1)
            if place is None or math.isnan(highest) or value * (1 if more else -1) > highest:
                place = index
        return place

    def stopped(self, rows: Sequence[Numbers]) -> bool:
        """Whether the training has ended early after these epochs."""
        best = self.best(rows) if self.patience is not None and rows else None
        return best is not None and self.patience is not None and len(rows) - 1 - best >= self.patience

    def continues(self, earlier: Mapping[str, Any]) -> str:
        """Why a training by the settings `earlier` cannot go on by this recipe; "" where it can.

        More epochs are a longer training, but where the rates depend on their number they would have been others from
        the first epoch on.
        """
        now = asdict(self)
        free = {"workers", "track"} | ({"epochs"} if self.schedule in _ENDLESS else set())
        differ = differences(
            {name: earlier.get(name, value) for name, value in _BEFORE.items()} | dict(earlier), now, free
        )
        if not differ:
            return ""
        words = other_settings("a training", differ, "choose another folder")
        if earlier.get("epochs") != self.epochs and self.schedule not in _ENDLESS:
            words += (
                f". With the schedule {self.schedule!r} every rate depends on the number of epochs: a longer training "
                f"is another one from its first epoch on. Epochs can be added with {' or '.join(_ENDLESS)}"
            )
        return words

    def weights_of(self, labels: Sequence[int], classes: int) -> Tensor | None:
        """The weights (K,) of the classes in the cross-entropy, of mean 1 over the images; None: all alike.

        KonkyoError: a class without an image.
        """
        if self.class_weights == "none":
            return None
        counts = torch.bincount(torch.as_tensor(labels), minlength=classes)
        if len(counts) > classes or not counts.all():
            raise KonkyoError(
                f"balanced class weights need images of each of the {classes} classes; got {counts.tolist()}"
            )
        return len(labels) / (classes * counts.float())


_BEFORE = {
    "warmup": 0, "accumulate": 1, "clip": None, "ema": 0.0, "class_weights": "none", "sampling": "shuffled",
    "per_class": 4, "keep": "last", "watch": "loss", "patience": None, "track": "",
}  # fmt: skip
"""What a checkpoint means that is older than these fields."""
