"""The loop that every study trains with: an epoch after another, each from a seed of its own, kept as soon as done."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from konkyo.errors import Diverged, KonkyoError
from konkyo.training.batches import Batches, Labelled
from konkyo.training.checkpoint import CHECKPOINT, State, weights
from konkyo.training.devices import first, over_processes, together
from konkyo.training.recipe import Numbers, Recipe
from konkyo.training.trackers import Tracker, tracker_of
from konkyo.utils.files import csv_of, write_text
from konkyo.utils.progress import Progress
from konkyo.utils.seeds import mixed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

EPOCHS = "epochs.csv"


class Objective(Protocol):
    """An objective gives what a step makes smaller; it is a module, so that its state is checkpointed too."""

    def __call__(self, output: Any, labels: Tensor, epoch: int) -> dict[str, Tensor]:
        """Returns scalars () by name of the network's output for a batch, whose `labels` are (N,).

        "loss" is differentiated, and the means of all over an epoch are kept. Epochs are counted from 1.
        """

    def state_dict(self) -> dict[str, Any]:
        """As of a module."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As of a module."""

    def train(self) -> Any:
        """As of a module."""

    def to(self, device: torch.device, /) -> Any:
        """As of a module."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result says what came out of a training."""

    network: nn.Module
    """Trained, in eval mode."""
    epochs: tuple[Numbers, ...]
    """A row each, as in epochs.csv."""


def fit(
    network: nn.Module,
    objective: Objective,
    data: Labelled,
    recipe: Recipe,
    folder: Path,
    *,
    judge: Callable[[nn.Module, int], Numbers],
    keep: Callable[[nn.Module], None],
    fabric: Fabric,
    groups: Sequence[Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
) -> Fitted:
    """Trains the network; every epoch's numbers, a checkpoint and the weights so far are in `folder`.

    A training that was interrupted goes on after its last whole epoch and ends, on a CPU, with the same bits. Every
    epoch draws its order and its dropout from the seed (seed, epoch). Every image draws its augmentation from (seed,
    epoch, image), and nothing is carried over but what the checkpoint holds. So trainings of one seed meet the same
    images, augmented alike, in the same order, whatever the objective and however many processes read them.

    `judge(network, epoch)` measures the network in eval mode after each epoch, in every process, so that they can share
    the work (`konkyo.training.devices.over_batches`); the numbers of the first count. They go to epochs.csv with prefix
    "valid_", and "loss" is what the plateau schedule watches. `keep(network)` writes the weights, in the first process.
    What is judged, kept and returned are the running mean weights, if the recipe has any; what is kept and returned is
    of the best epoch, if the recipe says so. `groups`: parameter groups with rates of their own. `fabric`, launched,
    says on what devices. `tracker` gets the row of every epoch; without one, the recipe's.

    KonkyoError: a checkpoint of another recipe or network, a batch that the devices cannot share equally, a number to
    watch that is not judged. Diverged: the loss is no number.
    """
    recipe.check(len(data), fabric.world_size)
    optimiser, schedule = recipe.optimizer(groups or [{"params": list(network.parameters())}])
    path = folder / CHECKPOINT
    network.to(fabric.device)
    objective.to(fabric.device)
    state = State(recipe, network, objective, optimiser, schedule, fabric.strategy.precision)
    # Of the first process, so that all go on from the same epoch, wherever they run.
    checkpoint = fabric.broadcast(path.read_bytes() if fabric.is_global_zero and path.is_file() else None)
    if checkpoint is not None:
        state.read(path, checkpoint)
    wrapped, wrapped_optimiser = fabric.setup(network, optimiser)
    cuda = [fabric.device] if fabric.device.type == "cuda" else []
    # The caller's random state comes back, also after an interruption.
    with torch.random.fork_rng(cuda), closing(Batches(data, recipe, fabric)) as batches:
        loop = _Loop(state, batches, wrapped, wrapped_optimiser, fabric)
        with _tracked(tracker, loop, folder) as log:
            for epoch in loop.left():
                row = loop.trained(epoch)
                with state.judged():
                    with together(fabric):
                        judged = judge(network, epoch)
                    judged = fabric.broadcast(judged)
                    state.rows.append(row | {f"valid_{name}": value for name, value in judged.items()})
                    loop.keep(keep)
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(judged.get("loss", row["train_loss"]))
                elif schedule is not None:
                    schedule.step()
                with first(fabric) as mine:
                    if mine:
                        write_epochs(folder / EPOCHS, state.rows)
                        log(state.rows[-1])
                        # The last, so that an epoch which it has is whole.
                        state.write(path)
                if progress is not None:
                    progress(epoch, recipe.epochs)
    state.chosen()
    return Fitted(network, tuple(state.rows))


@dataclass(frozen=True, eq=False)
class _Loop:
    """What an epoch does to the state of a training."""

    state: State
    batches: Batches
    network: Any
    """Fabric's, as is the optimiser."""
    optimiser: Any
    fabric: Fabric

    def left(self) -> Iterator[int]:
        """The epochs that are to be trained, unless it has ended early."""
        for epoch in range(len(self.state.rows) + 1, self.state.recipe.epochs + 1):
            if self.state.recipe.stopped(self.state.rows):
                return
            yield epoch

    def trained(self, epoch: int) -> Numbers:
        """Trains an epoch and returns its row, without what is judged. Diverged: the loss is no number."""
        state, fabric, steps = self.state, self.fabric, self.batches.steps
        recipe, groups = state.recipe, state.optimiser.param_groups
        rates, rate = [group["lr"] for group in groups], 0.0
        torch.manual_seed(mixed(recipe.seed, epoch, 1 + fabric.global_rank))
        self.network.train()
        state.objective.train()
        sums, count, step = dict[str, Tensor](), 0, 0
        self.optimiser.zero_grad()
        for batch in self.batches.of(epoch):
            # Gradients of several processes meet at the step.
            alone = fabric.world_size > 1 and not batch.last
            with fabric.no_backward_sync(self.network) if alone else nullcontext():
                terms = state.objective(self.network(batch.images), batch.labels, epoch)
                fabric.backward(terms["loss"] * batch.share if batch.share < 1 else terms["loss"])
            count += len(batch.labels)
            for name, value in terms.items():
                total = sums.get(name, torch.zeros((), device=value.device))
                sums[name] = total + value.detach() * len(batch.labels)
            if batch.last:
                for group, highest in zip(groups, rates, strict=True):
                    group["lr"] = highest * recipe.warmed(epoch, step, steps)
                rate = max(group["lr"] for group in groups)
                self._step((epoch - 1) * steps + step)
                step += 1
        for group, highest in zip(groups, rates, strict=True):
            group["lr"] = highest  # the schedule's own again
        means = {name: float(over_processes(total / count)) / fabric.world_size for name, total in sums.items()}
        if not math.isfinite(means["loss"]):
            raise Diverged(
                f"the loss is {means['loss']} in epoch {epoch}: lower the rate ({rate:g}), or the weight of a part of "
                "it. The epochs before are kept"
            )
        return {"epoch": float(epoch), "rate": rate} | {f"train_{name}": value for name, value in means.items()}

    def _step(self, number: int) -> None:
        """Changes the weights by the gradients that there are, as the step of this number (from 0) over all epochs."""
        if self.state.recipe.clip is not None:
            parameters = nn.ParameterList([p for group in self.state.optimiser.param_groups for p in group["params"]])
            self.fabric.clip_gradients(
                parameters, self.optimiser, max_norm=self.state.recipe.clip, error_if_nonfinite=False
            )  # a loss that is no number is told at the end of the epoch
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.state.averaged(number)

    def keep(self, write: Callable[[nn.Module], None]) -> None:
        """Keeps the network as it is judged, if it is to be kept."""
        state = self.state
        if state.recipe.keep == "best":
            if state.recipe.best(state.rows) != len(state.rows) - 1:
                return
            state.best = weights(state.network)
        with first(self.fabric) as mine:
            if mine:
                write(state.network)


@contextmanager
def _tracked(tracker: Tracker | None, loop: _Loop, folder: Path) -> Iterator[Callable[[Numbers], None]]:
    """What takes the rows of the epochs, in the first process; nothing is begun where no epoch is left."""
    recipe, begun = loop.state.recipe, None
    if tracker is None and recipe.track and next(loop.left(), None) is not None:
        with first(loop.fabric) as mine:
            if mine:
                tracker = begun = tracker_of(recipe.track, folder, asdict(recipe))

    def log(row: Numbers) -> None:
        if tracker is not None:
            tracker.log({name: value for name, value in row.items() if name != "epoch"}, int(row["epoch"]))

    try:
        yield log
    finally:
        if begun is not None:
            begun.close()


def write_epochs(path: Path, rows: Sequence[Numbers]) -> None:
    """Rows as csv, numbers with all their digits."""
    write_text(path, csv_of({n: f"{v:g}" if n == "epoch" else repr(v) for n, v in row.items()} for row in rows))


def read_epochs(path: Path) -> list[Numbers]:
    """Returns what `write_epochs` wrote. KonkyoError: a file that cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{n: float(v) for n, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise KonkyoError(f"{path} cannot be read as the epochs of a training: {error}") from error
