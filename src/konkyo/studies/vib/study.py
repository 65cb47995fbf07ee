"""The study of the variational information bottleneck (Komatsu et al.): its network for every beta, and its rivals."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from konkyo.data.splits import Examples, splits
from konkyo.errors import KonkyoError, KonkyoWarning, unknown
from konkyo.evaluation.evaluate import evaluate
from konkyo.explanation.explain import explain
from konkyo.methods.base import find
from konkyo.models import Model, Preprocess, load
from konkyo.models.networks.attention_branch import attention_branch_loss
from konkyo.models.networks.recam import ReCAM, recam_loss
from konkyo.models.networks.vib import Noise, Reduction, VIBClassifier, VIBLoss, kl_divergence
from konkyo.models.trained import Plan, initialised, save_trained
from konkyo.studies.base import StudyData, alone, batches, begin, classification_scores, walk, write_maps
from konkyo.training.augmentation import augmented
from konkyo.training.devices import first
from konkyo.training.loop import fit
from konkyo.training.recipe import Numbers, Recipe
from konkyo.utils.files import plain, write_text
from konkyo.utils.progress import Progress, StageProgress
from konkyo.utils.tensors import cross_entropy

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NetworkKind: TypeAlias = Literal["plain", "vib", "recam", "attention_branch"]
KINDS: tuple[NetworkKind, ...] = ("plain", "vib", "recam", "attention_branch")
Loss: TypeAlias = Callable[..., dict[str, Tensor]]
"""Of what a network puts out in training, and labels: "loss", and what it is made of."""
CAM = replace(find("cam"), rectified=True)
"""max(0, sum_k w_k A_k): where features speak for the class. What is shown is what is measured."""
WITH_MASKS = ("ebpg@mask", "pointing_game@mask", "best_iou@mask")
SAMPLES = 12
"""Of the code, over which the class probabilities of an image are averaged (Alemi et al.)."""


def runs_of(models: Sequence[str], betas: Sequence[float]) -> list[tuple[str, str, float]]:
    """Lists (name, kind, beta) of every network of a seed: its folder's name, and NaN where it has no beta."""
    runs = list[tuple[str, str, float]]()
    for kind in models:
        runs += [(f"vib_{b:g}", kind, b) for b in sorted(betas)] if kind == "vib" else [(kind, kind, math.nan)]
    return runs


@dataclass(frozen=True)
class VIBStudy:
    """What is trained from every seed: `models`, and of these "vib" with every beta.

    All on the same backbone, from the same weights, with the same images in the same order.
    """

    data: str
    """As of `konkyo.data.splits.splits`: "sun397:DIR", "folder:DIR", "scenes:COUNT,objects=1"."""
    backbone: str = "torchvision/resnet50"
    """As of `konkyo.load`."""
    betas: tuple[float, ...] = (0.0, 1e-3, 1e-2, 1e-1)
    models: tuple[NetworkKind, ...] = ("plain", "vib")
    seeds: tuple[int, ...] = (0,)
    size: int = 224
    pretrained: bool = False
    noise: Noise = field(default_factory=Noise)
    reduction: Reduction = "sum"
    samples: int = 1
    augment: bool = True
    """Mirrored at random, and parts of `least` to 1 of the area."""
    least: float = 0.25
    metrics: tuple[str, ...] = ()
    """Columns of `konkyo.evaluate` to measure on the test set beside those of masks, such as "deletion"."""
    second: int = 4
    """Epochs of ReCAM's second stage."""
    second_rate: float = 5e-4
    limit: int | None = None
    split_seed: int = 0
    copies: str = "identical"
    """As of `konkyo.data.splits.splits`; no copy of a picture lies in another part."""
    groups: str = ""
    """A csv file of groups, of which none lies in two parts."""
    recipe: Recipe = field(default_factory=lambda: Recipe(100, 256, 0.1, "sgd", weight_decay=1e-4, schedule="steps"))
    """The paper's epochs, batch and rate; the rest of it is not told there."""

    def __post_init__(self) -> None:
        for kind in self.models:
            if kind not in KINDS:
                raise unknown("model", kind, KINDS)
        if not self.seeds or not self.models or ("vib" in self.models and not self.betas):
            raise KonkyoError("a model, a seed and, for vib, a beta at least were expected")
        for beta in self.betas:
            VIBLoss(beta, self.reduction)
        # As folders are named, so that a beta has one folder in every call.
        object.__setattr__(self, "betas", tuple(float(f"{beta:g}") + 0.0 for beta in self.betas))
        if any(len(set(values)) < len(values) for values in (self.betas, self.models, self.seeds)):
            raise KonkyoError(f"a beta, a model or a seed came twice: {self.betas}, {self.models}, {self.seeds}")
        replace(self.recipe, epochs=self.second, learning_rate=self.second_rate)

    @cached_property
    def preprocess(self) -> Preprocess:
        """Returns the short side resized, and the middle, with the backbone's own means."""
        with torch.random.fork_rng([]):
            preprocess = load(self.backbone, weights="default" if ".py:" in self.backbone else None).preprocess
        usual = Preprocess() if preprocess is None else preprocess
        return Preprocess(self.size, self.size, usual.mean, usual.std)

    def plan(self, kind: str, beta: float, seed: int, classes: tuple[str, ...]) -> Plan:
        """How a network is built, and how it is trained."""
        arguments: dict[str, Any] = {"backbone": self.backbone, "classes": len(classes)}
        trained = {"study": "vib", "data": self.data, "pretrained": self.pretrained, "augment": self.augment}
        if kind == "vib":
            arguments |= {"noise": asdict(self.noise), "samples": self.samples}
            trained |= {"beta": beta, "reduction": self.reduction}
        if kind == "recam":
            trained |= {"second": self.second, "second_rate": self.second_rate}
        return Plan(kind, arguments, classes, self.preprocess, trained | asdict(replace(self.recipe, seed=seed)))

    def begun(self, plan: Plan, seed: int) -> nn.Module:
        """The network before its training: the backbone, which is initialised first, is the same for all of a seed."""
        weights = {"weights": "default"} if self.pretrained else {}
        return initialised(replace(plan, arguments={**plan.arguments, **weights}), seed)


class StepLoss(nn.Module):
    """A loss of an output and labels, as an objective."""

    def __init__(self, loss: Loss, weights: Tensor | None = None) -> None:
        """`weights`: of the classes in the cross-entropy (`Recipe.weights_of`)."""
        super().__init__()
        self.loss, self.weights = loss, weights

    def forward(self, output: Any, labels: Tensor, _epoch: int) -> dict[str, Tensor]:
        """As of `konkyo.training.loop.Objective`."""
        return self.loss(output, labels, weights=self.weights)


def train_vib(study: VIBStudy, out: str | Path, *, fabric: Fabric, progress: StageProgress | None = None) -> None:
    """Trains every network of the study into `out`, a folder each; `konkyo.studies.vib.report` reads them.

    NAME/seed_S holds the weights and their manifest (`konkyo.load("trained/FOLDER")`), a checkpoint, epochs.csv, and in
    test.json how it decides on the test set, which nothing was chosen by. Where there are masks, test/ has the
    localisation of its CAM. What is done already is not done again. KonkyoError: another study's folder; data without
    classes.
    """
    out = Path(out)
    parts = splits(study.data, seed=study.split_seed, limit=study.limit, copies=study.copies, groups=study.groups)
    for kind in study.models:  # what cannot be built is told before anything is written
        study.begun(study.plan(kind, 0.0, 0, parts.classes), 0)
    prepare = augmented(study.preprocess, study.least) if study.augment else study.preprocess
    with alone(out, fabric):
        data = begin("vib", study, parts, prepare, out, fabric)
        runs = {
            f"{name}, seed {seed}": partial(_run, study, data, kind, beta, seed, out / name / f"seed_{seed}", fabric)
            for seed in study.seeds
            for name, kind, beta in runs_of(study.models, study.betas)
        }
        walk(runs, study.recipe.epochs, progress)


def _run(
    study: VIBStudy,
    data: StudyData,
    kind: str,
    beta: float,
    seed: int,
    folder: Path,
    fabric: Fabric,
    progress: Progress,
) -> None:
    if fabric.broadcast((folder / "test.json").is_file()):
        return
    recipe, plan = replace(study.recipe, seed=seed), study.plan(kind, beta, seed, data.parts.classes)
    network = study.begun(plan, seed)
    train, weights = data.train, recipe.weights_of(data.train.labels, len(data.parts.classes))

    def judge(network: nn.Module, _epoch: int) -> Numbers:
        return classification_scores(network, data.validation, fabric.device, fabric)

    def keep(network: nn.Module) -> None:
        save_trained(folder, network, plan)

    how: dict[str, Any] = {"judge": judge, "keep": keep, "fabric": fabric}
    if isinstance(network, ReCAM):
        stage, second = StepLoss(partial(recam_loss, weight=0.0), weights), StepLoss(recam_loss, weights)
        # Without w', of which nothing is asked yet: weight decay alone would change it.
        groups = [{"params": [*network.backbone.parameters(), *network.first.parameters()]}]
        fit(network, stage, train, recipe, folder / "first", groups=groups, progress=progress, **how)
        recipe = replace(recipe, epochs=study.second, learning_rate=study.second_rate, schedule="constant")
        fit(network, second, train, recipe, folder, groups=network.groups(study.second_rate), **how)
    else:
        loss = VIBLoss(beta, study.reduction) if kind == "vib" else _LOSSES[kind]
        fit(network, StepLoss(loss, weights), train, recipe, folder, groups=_groups(network), progress=progress, **how)
    with first(fabric) as mine, warnings.catch_warnings():
        warnings.simplefilter("ignore", KonkyoWarning)  # of blank maps, which are counted, and shown as such
        if mine:
            _tested(study, data, network.eval(), folder, fabric.device)


def _entropy(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> dict[str, Tensor]:
    return {"loss": cross_entropy(logits, labels, weights)}


_LOSSES: dict[str, Loss] = {"plain": _entropy, "attention_branch": attention_branch_loss}


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """All parameters; without decay those of the noise, which it would move towards more of it, whatever beta is."""
    noise = [p for name, p in network.named_parameters() if name in ("head.scale", "head.offset")]
    others = [p for p in network.parameters() if not any(p is parameter for parameter in noise)]
    return [{"params": others}, *([{"params": noise, "weight_decay": 0.0}] if noise else [])]


def _tested(study: VIBStudy, data: StudyData, network: nn.Module, folder: Path, device: torch.device) -> None:
    """How the network decides on the test set, how far its maps lie on masks, and its maps of the shown pictures."""
    parts, shown = data.parts, data.shown
    test = batches(Examples(parts.test, study.preprocess, parts.classes), study.recipe)
    numbers: dict[str, Any] = classification_scores(network, test, device)
    if isinstance(network, VIBClassifier):
        numbers |= _coded(network, test, device)
    explained = network.reactivated().eval() if isinstance(network, ReCAM) else network
    model = Model(explained, study.preprocess, parts.classes, study.backbone)
    few = (parts.test[i].annotations for i in range(min(len(parts.test), 20)))
    masked = any(thing.mask is not None for things in few for thing in things)
    if columns := (*(WITH_MASKS if masked else ()), *study.metrics):
        evaluation = evaluate(model, parts.test, [CAM], columns, explained="label", out=folder / "test")
        numbers["maps"] = {name: asdict(evaluation.cell(CAM.name, name)) for name in columns}
        numbers["blank"] = evaluation.absent[CAM.name] / max(1, len(evaluation.rows))
    maps, decided = list[Tensor](), list[dict[str, Any]]()
    for picture in shown:
        sample = parts.test[parts.test.names.index(picture.name)]
        image = study.preprocess(sample.image)[None]
        with torch.no_grad():
            sure, best = network(image.to(device)).float().softmax(1)[0].max(0)
        decided.append({"decision": parts.classes[int(best)], "probability": float(sure)})
        maps.append(explain(model, image, method=CAM, target=parts.classes.index(picture.label)).maps.cpu())
    if maps:
        write_maps(folder, torch.cat(maps))
    numbers["pictures"] = decided
    write_text(folder / "test.json", json.dumps(plain(numbers), indent=1) + "\n")


@torch.no_grad()
def _coded(network: VIBClassifier, batches: DataLoader[Any], device: torch.device) -> Numbers:
    """Of the code on the test set: "kl" in nats, "bits", mean and standard deviation on average, channels; and
    "sampled", the accuracy of class probabilities averaged over samples of the code."""
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    for images, labels in batches:
        images = images.to(device)
        mean, std = network.head.code(network.backbone(images))
        right = network.predictive(images, SAMPLES).argmax(1).cpu() == labels
        of_batch = (kl_divergence(mean, std).sum(), mean.mean(1).sum(), std.mean(1).sum(), right.sum())
        sums += torch.tensor([float(number) for number in of_batch])
        count += len(images)
    kl, mean_, std_, sampled = (sums / count).tolist()
    return {
        "kl": kl,
        "bits": kl / math.log(2),
        "mean": mean_,
        "std": std_,
        "channels": float(network.backbone.channels),
        "sampled": sampled,
    }
