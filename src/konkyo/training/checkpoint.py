"""All that changes in a training: written after every epoch, and read where a training goes on."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from konkyo.errors import KonkyoError
from konkyo.training.devices import aligned
from konkyo.training.recipe import Numbers, Recipe
from konkyo.utils.files import replacing

if TYPE_CHECKING:
    from lightning_fabric.plugins.precision.precision import Precision

    from konkyo.training.loop import Objective

CHECKPOINT = "checkpoint.pt"
Weights: TypeAlias = dict[str, Tensor]


@dataclass(eq=False)
class State:
    """A network in training, and what was found on the way."""

    recipe: Recipe
    network: nn.Module
    """With the weights that go on training."""
    objective: Objective
    optimiser: Optimizer
    schedule: ReduceLROnPlateau | LRScheduler | None
    precision: Precision
    """Fabric's; that of fp16 scales the loss by a number that changes."""
    rows: list[Numbers] = field(default_factory=list)
    """A row for every epoch that is done, as in epochs.csv."""
    average: Weights | None = None
    """The running mean of weights and floating point buffers, of a recipe with `ema`; other buffers as they are."""
    best: Weights | None = None
    """What was judged best, of a recipe that keeps it."""

    def __post_init__(self) -> None:
        if self.recipe.ema:
            self.average = weights(self.network)

    @torch.no_grad()
    def averaged(self, step: int) -> None:
        """Takes the weights after a step (from 0, over all epochs) into the running mean."""
        if self.average is None:
            return
        decay = self.recipe.decay(step)
        for name, value in self.network.state_dict().items():
            mean = self.average[name]
            if mean.is_floating_point():
                mean.mul_(decay).add_(value, alpha=1 - decay)
            else:
                mean.copy_(value)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Within the context the network is in eval mode, with the weights that are judged and kept: the mean ones, if
        there are any. All processes have the same."""
        trained = None if self.average is None else weights(self.network)
        if self.average is not None:
            self.network.load_state_dict(self.average)
        aligned(self.network)
        self.network.eval()
        try:
            yield
        finally:
            if trained is not None:
                self.network.load_state_dict(trained)

    def chosen(self) -> None:
        """Gives the network the weights that the training is to end with."""
        final = self.best if self.best is not None else self.average
        if final is not None:
            self.network.load_state_dict(final)
        aligned(self.network)
        self.network.eval()

    def write(self, path: Path) -> None:
        """Keeps it. KonkyoError: the file cannot be written."""
        state = {
            "recipe": asdict(self.recipe),
            "network": self.network.state_dict(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "precision": self.precision.state_dict(),
            "average": self.average,
            "best": self.best,
            "rows": list(self.rows),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def read(self, path: Path, checkpoint: bytes) -> None:
        """Takes the state of a checkpoint. KonkyoError: it is damaged, or of another recipe or network."""
        try:
            with zipfile.ZipFile(
                io.BytesIO(checkpoint)
            ) as parts:  # torch does not look at the checksums that it writes
                if (damaged := parts.testzip()) is not None:
                    raise ValueError(f"{damaged} in it is damaged")
            state = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
            earlier, rows = dict(state["recipe"]), list[Numbers](state["rows"])
        except Exception as error:  # damaged files fail in every possible way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise KonkyoError(f"{path} is no checkpoint of a training ({reason}); remove it to begin anew") from error
        if words := self.recipe.continues(earlier):
            raise KonkyoError(f"{path} {words}")
        if len(rows) > self.recipe.epochs:
            raise KonkyoError(f"{path} has {len(rows)} epochs, more than {self.recipe.epochs}; choose another folder")
        try:
            self._take(state, bool(rows))
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise KonkyoError(f"{path} does not fit this network: {' '.join(str(error).split())[:300]}") from error
        self.rows = rows

    def _take(self, state: dict[str, Any], begun: bool) -> None:
        if self.average is not None:
            self.network.load_state_dict(state["average"])
            self.average = weights(self.network)
        if self.recipe.keep == "best" and begun:
            self.network.load_state_dict(state["best"])
            self.best = weights(self.network)
        self.network.load_state_dict(state["network"])
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.precision.load_state_dict(state.get("precision", {}))


def weights(network: nn.Module) -> Weights:
    """Returns copies of all parameters and buffers of a network."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
