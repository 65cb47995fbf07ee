"""The study of gaze consistency (Yonemura): its networks, trained with several weights of the loss, paired seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from konkyo.data.splits import Splits, splits
from konkyo.errors import KonkyoError, KonkyoWarning, unknown
from konkyo.evaluation.consistency import consistency
from konkyo.explanation.explain import explain
from konkyo.metrics.distances import Distance
from konkyo.models import Model, Preprocess
from konkyo.models.networks.levels import GAZE, LEVELS
from konkyo.models.trained import Plan, initialised, save_trained
from konkyo.studies.base import (
    Attempts,
    StudyData,
    alone,
    begin,
    finite_scores,
    is_done,
    opened,
    usual_preprocess,
    walk,
    write_maps,
)
from konkyo.training.augmentation import augmented
from konkyo.training.devices import first, processes
from konkyo.training.loop import EPOCHS, Fitted, fit, read_epochs
from konkyo.training.losses.consistency import LOW_SHARE, Aim, ConsistencyLoss, LambdaSchedule
from konkyo.training.maps import Mode, View
from konkyo.training.recipe import Numbers, Recipe
from konkyo.utils.progress import Progress, StageProgress
from konkyo.utils.seeds import mixed
from konkyo.utils.tensors import cross_entropy

if TYPE_CHECKING:
    from lightning_fabric import Fabric


BACKBONE = 0
"""The level that stands for the study's own backbone."""


@dataclass(frozen=True)
class Key:
    """It says which training of a study is meant."""

    level: int
    split: int
    strength: float
    """lambda"""
    seed: int

    @property
    def folder(self) -> Path:
        """Returns its folder in that of the study. That of the first split has no name, as in earlier studies."""
        network = "backbone" if self.level == BACKBONE else f"level-{self.level}"
        split = [f"split_{self.split}"] if self.split else []
        return Path(network, *split, f"lambda_{self.strength:g}", f"seed_{self.seed}")

    @property
    def name(self) -> str:
        """Returns the name of the training in sentences."""
        network = "backbone" if self.level == BACKBONE else f"level {self.level}"
        return f"{network}, lambda {self.strength:g}, {f'split {self.split}, ' if self.split else ''}seed {self.seed}"

    @property
    def own_seed(self) -> int:
        """Returns the seed that it draws from: another one in every split, so that splits have nothing in common."""
        return mixed(self.split, self.seed)


@dataclass(frozen=True)
class GazeStudy:
    """What is trained: every weight `lambdas` from every seed, on networks of one or several levels, or a backbone.

    Trainings of a split and a seed start with the same weights and see the same images in the same order, so that their
    differences are the loss's. Weights are in units of the `distance`: those of the study (-100 ... 500) belong to
    "l2_over_hw".
    """

    data: str
    """As of `konkyo.data.splits.splits`: "chest:DIR", "brain:DIR", "folder:DIR", "lesions:COUNT"."""
    levels: tuple[int, ...] = (2,)
    """Of the study's five networks; (0,) with a `backbone`, which stands for them."""
    lambdas: tuple[float, ...] = (0.0, 3.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int | None = 224
    """Side of the images; None: the backbone's own preprocessing."""
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
    """Of the first split."""
    copies: str = "identical"
    """As of `konkyo.data.splits.splits`; no copy of a picture lies in another part."""
    groups: str = ""
    """A csv file of groups, of which none lies in two parts."""
    recipe: Recipe = field(default_factory=Recipe)
    """Its seed is replaced by each of `seeds`."""
    backbone: str | None = None
    """As of `konkyo.load`, in colour and with its own means: its head gets a row per class (`classifier`)."""
    pretrained: bool = False
    layer: str | None = None
    """Whose maps are trained and measured; None: "gaze" of the levels, the automatic one of a backbone."""
    method: str = "grad_cam"
    """Of the maps, in the loss and in measuring; any that the loss can differentiate."""
    least: int = 2
    """Correctly decided images of a class in a batch, so that it takes part in the loss."""
    splits: tuple[int, ...] = (0,)
    """Drawings of the three parts: number n is that of the seed split_seed + n."""

    def __post_init__(self) -> None:
        if self.backbone is not None:
            object.__setattr__(self, "levels", (BACKBONE,))
        if not (self.levels and self.lambdas and self.seeds and self.splits):
            raise KonkyoError("a level, a lambda, a seed and a split at least were expected")
        # As folders are named, so that a weight has one folder in every call.
        object.__setattr__(self, "lambdas", tuple(float(f"{weight:g}") for weight in self.lambdas))
        for several in (self.lambdas, self.seeds, self.splits, self.levels):
            if len(set(several)) < len(several):
                raise KonkyoError(
                    f"a lambda, a seed, a split or a level came twice: {self.lambdas}, {self.seeds}, {self.splits}, "
                    f"{self.levels}"
                )
        for number in self.levels:
            if number not in LEVELS and self.backbone is None:
                raise unknown("level", str(number), map(str, LEVELS))
        if self.backbone is None and (self.pretrained or self.size is None):
            raise KonkyoError(
                "the study's five networks have no weights and no size of their own: that is of backbones"
            )
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

    @cached_property
    def preprocess(self) -> Preprocess:
        """Grey, resized without regard to its shape, from -1 to 1; of a backbone its own, as `usual_preprocess`."""
        if self.backbone is not None:
            return usual_preprocess(self.backbone, self.size)
        assert self.size is not None  # of the levels
        return Preprocess((self.size, self.size), None, (0.5,), (0.5,))

    @property
    def place(self) -> str | None:
        """Returns the layer whose maps are trained and measured; None: the automatic one."""
        return GAZE if self.layer is None and self.backbone is None else self.layer

    def trainings(self) -> list[Key]:
        """Returns which trainings there are, in their order."""
        return [
            Key(level, split, weight, seed)
            for level in self.levels
            for split in self.splits
            for seed in self.seeds
            for weight in self.lambdas
        ]

    def loss(self, network: nn.Module) -> ConsistencyLoss:
        """Returns the loss on maps of one of its networks. KonkyoError: one that it cannot be of."""
        how: dict[str, Any] = {"distance": self.distance, "aim": self.aim, "mode": self.mode, "view": self.view}
        how |= {"least": self.least} | ({} if self.method == "grad_cam" else {"method": self.method})
        side = self.preprocess.side
        if side is None:
            raise KonkyoError(f"{self.backbone} has images of any size; choose one: size")
        sides = (side, side) if isinstance(side, int) else side
        return ConsistencyLoss(network, (len(self.preprocess.mean), *sides), layer=self.place, **how)

    def parts(self, split: int) -> Splits:
        """Returns the three parts of a split. KonkyoError: data without classes."""
        seed = self.split_seed + split
        return splits(self.data, seed=seed, limit=self.limit, copies=self.copies, groups=self.groups)

    def plan(self, number: int, weight: float, seed: int, classes: tuple[str, ...]) -> Plan:
        """Returns how the network of a level, or the backbone, is built, and how it is trained."""
        trained = {"study": "gaze", "data": self.data, "lambda": weight, "distance": self.distance}
        trained |= asdict(replace(self.recipe, seed=seed))
        if self.backbone is None:
            return Plan("level", {"number": number, "classes": len(classes)}, classes, self.preprocess, trained)
        arguments = {"backbone": self.backbone, "classes": len(classes)}
        return Plan("classifier", arguments, classes, self.preprocess, trained | {"pretrained": self.pretrained})

    def begun(self, plan: Plan, seed: int) -> nn.Module:
        """Returns the network before its training; all of a seed begin with the same weights."""
        return initialised(plan, seed, pretrained=self.pretrained)


class GazeObjective(nn.Module):
    """Cross-entropy and, weighted by the schedule, the distance of maps from their class's (Eq. 11)."""

    def __init__(
        self, gaze: ConsistencyLoss, schedule: LambdaSchedule, begin: int = 1, weights: Tensor | None = None
    ) -> None:
        """`weights`: of the classes in the cross-entropy (`Recipe.weights_of`)."""
        super().__init__()
        self.gaze, self.schedule, self.begin, self.weights = gaze, schedule, begin, weights

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> dict[str, Tensor]:
        """As of `konkyo.training.loop.Objective`."""
        weight, entropy = self.schedule(epoch), cross_entropy(logits, labels, self.weights)
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


def _warn(sentence: str) -> None:
    warnings.warn(sentence, KonkyoWarning, stacklevel=3)


def train_gaze(
    study: GazeStudy,
    out: str | Path,
    *,
    fabric: Fabric,
    progress: StageProgress | None = None,
    retry: bool = False,
    tell: Callable[[str], None] = _warn,
) -> list[str]:
    """Trains every network of the study into `out`, a folder each; `konkyo.studies.gaze.report` reads them.

    level-L/lambda_W/seed_S holds the weights and their manifest (`konkyo.load("trained/FOLDER")`), a checkpoint,
    epochs.csv, and in test/ the consistency on the test set, which nothing was chosen by. Further splits are in
    level-L/split_N/, and a backbone is in backbone/. What is done already is not done again, so an interrupted study
    goes on. A training that diverges fails alone (`walk`). What a reader has to know at once goes to `tell`.

    -> the names of the trainings that diverged. KonkyoError: another study's folder; data without classes.
    """
    out = Path(out)
    parts = {split: study.parts(split) for split in sorted({0, *study.splits})}
    classes = parts[0].classes
    for number in study.levels:  # what cannot be trained is told before anything is written
        study.loss(study.begun(study.plan(number, 0.0, 0, classes), 0)).close()
    prepare = augmented(study.preprocess) if study.augment else study.preprocess
    attempts = Attempts(fabric, retry, tell)
    with alone(out, fabric):
        data = {0: begin("gaze", study, parts[0], prepare, out, fabric, splits=len(parts))}
        data |= {n: opened(study, part, prepare, splits=len(parts)) for n, part in parts.items() if n}
        runs = dict[str, Callable[[Progress], None]]()
        for key in study.trainings():
            train = partial(_run, study, data[key.split], key, out / key.folder, fabric, tell)
            runs[key.name] = attempts.of(key.name, out / key.folder, train)
        walk(runs, study.recipe.epochs, progress)
    return attempts.diverged


def _run(
    study: GazeStudy,
    data: StudyData,
    key: Key,
    folder: Path,
    fabric: Fabric,
    tell: Callable[[str], None],
    progress: Progress,
) -> None:
    if is_done(folder, "test/consistency.json", study.recipe, fabric):
        return
    seed, classes = key.own_seed, data.parts.classes
    recipe, plan = replace(study.recipe, seed=seed), study.plan(key.level, key.strength, seed, classes)
    network = study.begun(plan, seed)
    gaze, weights = study.loss(network), recipe.weights_of(data.train.labels, len(classes))
    schedule = LambdaSchedule(key.strength, study.start, study.end)

    def judge(network: nn.Module, _epoch: int) -> Numbers:
        return judged(network, data, study, fabric)

    def after(epoch: int, of: int | None) -> None:
        if fabric.is_global_zero and key.strength and epoch == study.start + 1:
            row = read_epochs(folder / EPOCHS)[epoch - 1]
            for sentence in _hardly_acting(row, study):
                tell(f"{key.name}: {sentence}")
        progress(epoch, of)

    with closing(gaze):
        fitted = fit(
            network,
            GazeObjective(gaze, schedule, study.ema_start, weights),
            data.train,
            recipe,
            folder,
            judge=judge,
            keep=lambda network: save_trained(folder, network, plan),
            fabric=fabric,
            progress=after,
        )
    with first(fabric) as mine:
        if mine:
            _tested(study, data, fitted, folder, seed)


def used_of_correct(row: Numbers) -> float:
    """Returns the share of the correctly decided images of an epoch that the loss used; NaN where none is correct."""
    correct = row.get("train_accuracy", math.nan)
    return row.get("train_used", math.nan) / correct if correct > 0 else math.nan


def _hardly_acting(row: Numbers, study: GazeStudy) -> list[str]:
    share = used_of_correct(row)
    return [seldom_used(share, study.recipe.batch)] if share < LOW_SHARE else []


def seldom_used(share: float, batch: int) -> str:
    """Returns the sentence about a loss that is of so few of the correctly decided images, and the ways out."""
    return (
        f"the loss is of {100 * share:.1f} % of the correctly decided images, so its weight hardly acts: a class needs "
        f"enough of them in a batch of {batch}. Ways out: --batch larger, --sampling balanced, --least 1 with --aim ema"
    )


def judged(network: nn.Module, data: StudyData, study: GazeStudy, fabric: Fabric) -> Numbers:
    """Returns how a network decides and how consistent its maps are, as epochs.csv has it, in the first process.

    All processes call this: the decisions are of all of them, the maps of the first. Diverged: its outputs are no
    finite numbers.
    """
    scores = finite_scores(network, data, fabric, "the weight of the loss on maps")
    with first(fabric) as mine:
        if mine:
            how: dict[str, Any] = {"method": study.method, "layer": study.place, "grid": study.grid}
            how |= {"resamples": 0, "permutations": 0, "baselines": False}
            measured = consistency(Model(network, classes=data.parts.classes), data.validation, **how)
            scores |= {
                "L": measured.value,
                "rms": measured.rms,
                "wt": measured.ratio,
                "coverage": measured.coverage,
                "blank": measured.blank / len(measured.images),
            }
    return scores


def _tested(study: GazeStudy, data: StudyData, fitted: Fitted, folder: Path, seed: int) -> None:
    """The consistency on the test set, and the maps of the pictures that are shown."""
    parts, shown = data.parts, data.shown
    model = Model(fitted.network, study.preprocess, parts.classes)
    # The paper's own distance, whatever was trained with: so runs compare.
    result = consistency(model, parts.test, method=study.method, layer=study.place, grid=study.grid, seed=seed)
    if shown:
        images = torch.stack([study.preprocess(data.picture(picture)) for picture in shown])
        aims = [parts.classes.index(picture.label) for picture in shown]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KonkyoWarning)  # blank maps are shown as such
            maps = explain(model, images, method=study.method, target=aims, layer=study.place).maps
        write_maps(folder, maps)
    result.save(folder / "test")
