"""The study of gaze consistency (Yonemura): its networks, trained with several weights of the loss, paired seeds."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from konkyo.data.splits import splits
from konkyo.errors import KonkyoError, KonkyoWarning, unknown
from konkyo.evaluation.consistency import consistency
from konkyo.explanation.explain import explain
from konkyo.metrics.distances import Distance
from konkyo.models import Model, Preprocess
from konkyo.models.networks.levels import GAZE, LEVELS, gaze_network
from konkyo.models.trained import Plan, initialised, save_trained
from konkyo.studies.base import StudyData, alone, begin, classification_scores, walk, write_maps
from konkyo.training.loop import Fitted, Numbers, Recipe, fit
from konkyo.training.losses.consistency import Aim, ConsistencyLoss, LambdaSchedule
from konkyo.training.maps import Mode, View
from konkyo.training.processes import first, processes
from konkyo.training.transforms import augmented
from konkyo.utils.progress import Progress, StageProgress

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class GazeStudy:
    """What is trained: every weight `lambdas` from every seed, on networks of one or several levels.

    Trainings of a seed start with the same weights and see the same images in the same order, so that their differences
    are the loss's. Weights are in units of the `distance`: those of the study (-100 ... 500) belong to "l2_over_hw".
    """

    data: str
    """As of `konkyo.data.splits.splits`: "chest:DIR", "brain:DIR", "folder:DIR", "lesions:COUNT"."""
    levels: tuple[int, ...] = (2,)
    lambdas: tuple[float, ...] = (0.0, 3.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int = 224
    distance: Distance = "mse"
    aim: Aim = "ema"
    mode: Mode = "auto"
    view: View = "train"
    start: int = 2
    end: int = 10
    ema_start: int = 1
    """The first epoch whose maps the running maps take in. Maps are first looked at then; the study's code begins with
    the weight: start + 1."""
    augment: bool = True
    """Mirrored at random, and parts of 0.9 to 1 of the area, as in the study."""
    grid: int = 14
    """Cells a side of the maps whose L is measured; the loss is of the layer's own."""
    limit: int | None = None
    split_seed: int = 0
    copies: str = "identical"
    """As of `konkyo.data.splits.splits`; no copy of a picture lies in another part."""
    groups: str = ""
    """A csv file of groups, of which none lies in two parts."""
    recipe: Recipe = field(default_factory=Recipe)
    """Its seed is replaced by each of `seeds`."""

    def __post_init__(self) -> None:
        if not (self.levels and self.lambdas and self.seeds):
            raise KonkyoError("a level, a lambda and a seed at least were expected")
        # As folders are named, so that a weight has one folder in every call.
        object.__setattr__(self, "lambdas", tuple(float(f"{weight:g}") for weight in self.lambdas))
        if len(set(self.lambdas)) < len(self.lambdas) or len(set(self.seeds)) < len(self.seeds):
            raise KonkyoError(f"a lambda or a seed came twice: {self.lambdas}, {self.seeds}")
        for number in self.levels:
            if number not in LEVELS:
                raise unknown("level", str(number), map(str, LEVELS))
        if not 1 <= self.ema_start <= self.start + 1:
            raise KonkyoError(
                f"ema_start: an epoch from 1 to the first with a weight, {self.start + 1}, was expected; got "
                f"{self.ema_start}"
            )
        for weight in self.lambdas:
            if weight and not LambdaSchedule(weight, self.start, self.end)(self.recipe.epochs):
                raise KonkyoError(
                    f"lambda is 0 up to epoch {self.start}, and there are {self.recipe.epochs} epochs: choose an "
                    "earlier start, or more epochs"
                )

    @property
    def preprocess(self) -> Preprocess:
        """Grey, resized without regard to its shape, from -1 to 1."""
        return Preprocess((self.size, self.size), None, (0.5,), (0.5,))

    def loss(self, network: nn.Module) -> ConsistencyLoss:
        """Returns the loss on maps of one of its networks. KonkyoError: one that it cannot be of."""
        how: dict[str, Any] = {"distance": self.distance, "aim": self.aim, "mode": self.mode, "view": self.view}
        return ConsistencyLoss(network, (1, self.size, self.size), layer=GAZE, **how)


class GazeObjective(nn.Module):
    """Cross-entropy and, weighted by the schedule, the distance of maps from their class's (Eq. 11)."""

    def __init__(self, gaze: ConsistencyLoss, schedule: LambdaSchedule, begin: int = 1) -> None:
        super().__init__()
        self.gaze, self.schedule, self.begin = gaze, schedule, begin

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> dict[str, Tensor]:
        """As of `konkyo.training.loop.Objective`."""
        weight, entropy = self.schedule(epoch), functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        if epoch < self.begin:
            return {"loss": entropy, "ce": entropy, "weight": torch.zeros_like(entropy), "accuracy": accuracy}
        gaze = self.gaze(logits, labels)
        # What is watched is of all processes, each of which has the same number of images.
        watched, count = self.gaze.watched, len(labels) * processes()
        return {
            "loss": entropy + weight * gaze if weight else entropy,
            "ce": entropy,
            "gaze": gaze,
            "weight": torch.tensor(weight, device=entropy.device),
            "accuracy": accuracy,
            "used": watched.used / count,
            "skipped": watched.skipped.float(),
            "blank": watched.blank / count,
        }


def train_gaze(study: GazeStudy, out: str | Path, *, fabric: Fabric, progress: StageProgress | None = None) -> None:
    """Trains every network of the study into `out`, a folder each; `konkyo.studies.gaze.report` reads them.

    level-L/lambda_W/seed_S holds the weights and their manifest (`konkyo.load("trained/FOLDER")`), a checkpoint,
    epochs.csv, and in test/ the consistency on the test set, which nothing was chosen by. What is done already is not
    done again, so an interrupted study goes on. KonkyoError: another study's folder; data without classes.
    """
    out = Path(out)
    parts = splits(study.data, seed=study.split_seed, limit=study.limit, copies=study.copies, groups=study.groups)
    with torch.random.fork_rng([]):
        for number in study.levels:  # what cannot be trained is told before anything is written
            study.loss(gaze_network(number, len(parts.classes))).close()
    prepare = augmented(study.preprocess) if study.augment else study.preprocess
    with alone(out, fabric):
        data = begin("gaze", study, parts, prepare, out, fabric)
        runs = {
            f"level {number}, lambda {weight:g}, seed {seed}": partial(
                _run,
                study,
                data,
                number,
                weight,
                seed,
                out / f"level-{number}" / f"lambda_{weight:g}" / f"seed_{seed}",
                fabric,
            )
            for number in study.levels
            for seed in study.seeds
            for weight in study.lambdas
        }
        walk(runs, study.recipe.epochs, progress)


def _run(
    study: GazeStudy,
    data: StudyData,
    number: int,
    weight: float,
    seed: int,
    folder: Path,
    fabric: Fabric,
    progress: Progress,
) -> None:
    if fabric.broadcast((folder / "test" / "consistency.json").is_file()):  # written last
        return
    recipe, classes = replace(study.recipe, seed=seed), data.parts.classes
    trained = {"study": "gaze", "data": study.data, "lambda": weight, "distance": study.distance, **asdict(recipe)}
    plan = Plan("level", {"number": number, "classes": len(classes)}, classes, study.preprocess, trained)
    network = initialised(plan, seed)
    gaze = study.loss(network)
    fitted = fit(
        network,
        GazeObjective(gaze, LambdaSchedule(weight, study.start, study.end), study.ema_start),
        data.train,
        recipe,
        folder,
        judge=lambda network, _epoch: judged(network, data.validation, classes, study.grid, fabric.device),
        keep=lambda network: save_trained(folder, network, plan),
        fabric=fabric,
        progress=progress,
    )
    gaze.close()
    with first(fabric) as mine:
        if mine:
            _tested(study, data, fitted, folder, seed)


def judged(
    network: nn.Module, batches: DataLoader[Any], classes: tuple[str, ...], grid: int, device: torch.device
) -> Numbers:
    """Returns how a network decides and how consistent its maps are, as epochs.csv has it."""
    model = Model(network, classes=classes)
    measured = consistency(model, batches, layer=GAZE, grid=grid, resamples=0, permutations=0, baselines=False)
    return classification_scores(network, batches, device) | {
        "L": measured.value,
        "rms": measured.rms,
        "wt": measured.ratio,
        "coverage": measured.coverage,
        "blank": measured.blank / len(measured.images),
    }


def _tested(study: GazeStudy, data: StudyData, fitted: Fitted, folder: Path, seed: int) -> None:
    """The consistency on the test set, and the maps of the pictures that are shown."""
    parts, shown = data.parts, data.shown
    model = Model(fitted.network, study.preprocess, parts.classes)
    # The paper's own distance, whatever was trained with: so runs compare.
    result = consistency(model, parts.test, layer=GAZE, grid=study.grid, seed=seed)
    pictures = [parts.test[parts.test.names.index(picture.name)].image for picture in shown]
    images = torch.stack([study.preprocess(picture) for picture in pictures])
    aims = [parts.classes.index(picture.label) for picture in shown]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KonkyoWarning)  # blank maps are shown as such
        maps = explain(model, images, method="grad_cam", target=aims, layer=GAZE).maps
    write_maps(folder, maps)
    result.save(folder / "test")
