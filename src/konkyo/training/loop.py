"""The loop that every study trains with: an epoch after another, each from a seed of its own, kept as soon as done."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, PolynomialLR, ReduceLROnPlateau

from konkyo.errors import KonkyoError, unknown
from konkyo.training.processes import first, over_processes
from konkyo.utils.files import csv_of, replacing, write_text
from konkyo.utils.ledger import differences
from konkyo.utils.progress import Progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT, EPOCHS = "checkpoint.pt", "epochs.csv"
Numbers: TypeAlias = dict[str, float]
Optimisers: TypeAlias = Literal["adam", "sgd"]
Schedules: TypeAlias = Literal["plateau", "cosine", "steps", "poly", "constant"]


class Objective(Protocol):
    """What a step makes smaller; a module, so that what it remembers is checkpointed with the network."""

    def __call__(self, output: Any, labels: Tensor, epoch: int) -> dict[str, Tensor]:
        """Scalars of the network's output for a batch; "loss" is differentiated, the means of all are kept."""

    def state_dict(self) -> dict[str, Any]:
        """As of a module."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As of a module."""

    def train(self) -> Any:
        """As of a module."""

    def to(self, device: torch.device, /) -> Any:
        """As of a module."""


class Labelled(Protocol):
    """Prepared images with class indices."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are those of the study of gaze consistency, but for the epochs.

    KonkyoError: numbers that make no sense, an unknown optimiser or schedule.
    """

    epochs: int = 20
    batch: int = 32
    """Over all devices."""
    learning_rate: float = 1e-4
    optimiser: Optimisers = "adam"
    momentum: float = 0.9
    """Of "sgd"."""
    weight_decay: float = 0.0
    schedule: Schedules = "plateau"
    """plateau: a tenth after five epochs without a lower loss in validation; steps: a tenth at 30, 60 and 90 %.
    poly: to 0 with power 0.9, after every epoch."""
    seed: int = 0
    workers: int = 0
    """Processes that read pictures."""

    def __post_init__(self) -> None:
        counts = min(self.epochs, self.batch) >= 1 and min(self.workers, self.seed) >= 0
        if not (
            counts
            and 0 < self.learning_rate < math.inf
            and 0 <= self.weight_decay < math.inf
            and 0 <= self.momentum < 1
        ):
            raise KonkyoError(f"a recipe has one epoch, one image a batch and a positive rate at least; got {self}")
        if self.optimiser not in get_args(Optimisers):
            raise unknown("optimiser", self.optimiser, get_args(Optimisers))
        if self.schedule not in get_args(Schedules):
            raise unknown("schedule", self.schedule, get_args(Schedules))

    def check(self, images: int, processes: int) -> None:
        """Raises KonkyoError where so many processes cannot share its batches, or the images."""
        if self.batch % processes:
            raise KonkyoError(f"a batch of {self.batch} cannot be shared by {processes} processes; choose a multiple")
        if images < processes:
            raise KonkyoError(f"{images} images for {processes} processes")

    def optimizer(
        self, groups: Sequence[Mapping[str, Any]]
    ) -> tuple[Optimizer, ReduceLROnPlateau | LRScheduler | None]:
        """Returns the optimiser of parameter groups, and what changes its rates."""
        parameters = [dict(group) for group in groups]
        optimiser: Optimizer
        if self.optimiser == "adam":
            optimiser = torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        else:
            optimiser = torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        if self.schedule == "plateau":
            return optimiser, ReduceLROnPlateau(optimiser, factor=0.1, patience=5)
        if self.schedule == "cosine":
            return optimiser, CosineAnnealingLR(optimiser, self.epochs)
        if self.schedule == "steps":
            return optimiser, MultiStepLR(optimiser, [max(1, round(s * self.epochs)) for s in (0.3, 0.6, 0.9)])
        if self.schedule == "poly":
            return optimiser, PolynomialLR(optimiser, self.epochs, power=0.9)
        return optimiser, None


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
) -> Fitted:
    """Trains the network; every epoch's numbers, a checkpoint and the weights so far are in `folder`.

    A training that was interrupted goes on after its last whole epoch and ends, on a CPU, with the same bits. Every
    epoch draws its order and its dropout from the seed (seed, epoch). Every image draws its augmentation from (seed,
    epoch, image), and nothing is carried over but what the checkpoint holds. So trainings of one seed meet the same
    images, augmented alike, in the same order, whatever the objective and however many processes read them.

    `judge(network, epoch)` measures the network in eval mode after each epoch, in the first process only. Its numbers
    go to epochs.csv with prefix "valid_", and "loss" is what the plateau schedule watches. `keep(network)` writes the
    weights. `groups`: parameter groups with rates of their own. `fabric`, launched, says on what devices.

    KonkyoError: a checkpoint of another recipe or network, a batch that the devices cannot share equally.
    """
    recipe.check(len(data), fabric.world_size)
    optimiser, schedule = recipe.optimizer(groups or [{"params": list(network.parameters())}])
    rows, path = list[Numbers](), folder / CHECKPOINT
    network.to(fabric.device)
    objective.to(fabric.device)
    training = _Training(recipe, network, objective, optimiser, schedule)
    # Of the first process, so that all go on from the same epoch, wherever they run.
    checkpoint = fabric.broadcast(path.read_bytes() if fabric.is_global_zero and path.is_file() else None)
    if checkpoint is not None:
        rows = training.resumed(path, checkpoint)
    wrapped, wrapped_optimiser = fabric.setup(network, optimiser)
    # The caller's random state comes back, also after an interruption.
    with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
        for epoch in range(len(rows) + 1, recipe.epochs + 1):
            rates = [group["lr"] for group in optimiser.param_groups]
            torch.manual_seed(_mixed(recipe.seed, epoch, 1 + fabric.global_rank))
            wrapped.train()
            objective.train()
            sums, count = dict[str, Tensor](), 0
            for images, labels in _batches(data, recipe, epoch, fabric):
                terms = objective(wrapped(images), labels, epoch)
                wrapped_optimiser.zero_grad()
                fabric.backward(terms["loss"])
                wrapped_optimiser.step()
                count += len(labels)
                for name, value in terms.items():
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach() * len(labels)
            means = {name: float(over_processes(total / count)) / fabric.world_size for name, total in sums.items()}
            if not math.isfinite(means["loss"]):
                raise KonkyoError(
                    f"the loss is {means['loss']} in epoch {epoch}: lower the rate ({max(rates):g}), or the weight of "
                    "a part of it. The epochs before are kept"
                )
            network.eval()
            judged = Numbers()
            with first(fabric) as mine:
                if mine:
                    judged = judge(network, epoch)
            judged = fabric.broadcast(judged)
            rows.append(
                {"epoch": float(epoch), "rate": max(rates)}
                | {f"train_{name}": value for name, value in means.items()}
                | {f"valid_{name}": value for name, value in judged.items()}
            )
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(judged.get("loss", means["loss"]))
            elif schedule is not None:
                schedule.step()
            with first(fabric) as mine:
                if mine:
                    write_epochs(folder / EPOCHS, rows)
                    keep(network)
                    # The last, so that an epoch which it has is whole.
                    training.write(path, rows)
            if progress is not None:
                progress(epoch, recipe.epochs)
    network.eval()
    return Fitted(network, tuple(rows))


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


def _mixed(*numbers: int) -> int:
    """Returns a seed that several numbers make."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % (1 << 63)
    return mixed


def _batches(data: Labelled, recipe: Recipe, epoch: int, fabric: Fabric) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches for this process: all processes together take the same ones, whatever their number."""
    world, rank = fabric.world_size, fabric.global_rank
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(_mixed(recipe.seed, epoch, 0))).tolist()
    batches = [order[start : start + recipe.batch] for start in range(0, len(order), recipe.batch)]
    shares = [batch[rank : len(batch) - len(batch) % world : world] for batch in batches]
    loader: torch.utils.data.DataLoader[tuple[Tensor, int]] = torch.utils.data.DataLoader(
        _Drawn(data, recipe.seed, epoch),
        batch_sampler=[share for share in shares if share],
        num_workers=recipe.workers,
        generator=torch.Generator(),  # else it would draw from the global random state, which dropout needs
    )
    for images, labels in loader:
        yield fabric.to_device(images), fabric.to_device(labels)


class _Drawn(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The data, each image drawn from a seed of its own: in whatever process it is read, and whatever else draws."""

    def __init__(self, data: Labelled, seed: int, epoch: int) -> None:
        self._data, self._seed, self._epoch = data, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mixed(self._seed, self._epoch, index))
            return self._data[index]


@dataclass(frozen=True, eq=False)
class _Training:
    """The state holds all that changes in a training."""

    recipe: Recipe
    network: nn.Module
    objective: Objective
    optimiser: Optimizer
    schedule: ReduceLROnPlateau | LRScheduler | None

    def write(self, path: Path, rows: Sequence[Numbers]) -> None:
        """Keeps it, with the rows of the epochs that are done."""
        state = {
            "recipe": asdict(self.recipe),
            "network": self.network.state_dict(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "rows": list(rows),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def resumed(self, path: Path, checkpoint: bytes) -> list[Numbers]:
        """Returns the rows of the epochs that are done; all else takes the state it had then."""
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
        now = asdict(self.recipe)
        # More epochs are a longer training, but not where the rates depend on their number.
        free = {"workers"} | ({"epochs"} if self.recipe.schedule in ("plateau", "constant") else set())
        if differ := differences(earlier, now, free):
            raise KonkyoError(f"{path} is of a training with other {', '.join(differ)}; choose another folder")
        if len(rows) > self.recipe.epochs:
            raise KonkyoError(f"{path} has {len(rows)} epochs, more than {self.recipe.epochs}; choose another folder")
        try:
            self.network.load_state_dict(state["network"])
            self.objective.load_state_dict(state["objective"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise KonkyoError(f"{path} does not fit this network: {' '.join(str(error).split())[:300]}") from error
        return rows
