"""The study of the variational information bottleneck (Komatsu et al.): its network for every beta, and its rivals."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from konkyo.data.samples import Samples
from konkyo.data.splits import Examples, splits
from konkyo.errors import KonkyoError, KonkyoWarning, unknown, warn
from konkyo.evaluation.consistency import consistency
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.result import Cell, Evaluation
from konkyo.explanation.explain import explain
from konkyo.methods.base import Method, find
from konkyo.models import Model, Preprocess
from konkyo.models.networks.attention_branch import attention_branch_loss
from konkyo.models.networks.recam import ReCAM, recam_loss
from konkyo.models.networks.vib import (
    NOISES,
    Noise,
    Reduction,
    VIBClassifier,
    VIBLoss,
    bits_of_channels,
    kl_divergence,
)
from konkyo.models.trained import Plan, initialised, save_trained
from konkyo.studies.base import (
    Attempts,
    StudyData,
    alone,
    batches,
    begin,
    classification_scores,
    finite_scores,
    is_done,
    usual_preprocess,
    walk,
    write_maps,
)
from konkyo.training.augmentation import augmented
from konkyo.training.devices import first, over_batches
from konkyo.training.loop import fit
from konkyo.training.recipe import Numbers, Optimisers, Recipe
from konkyo.utils.files import plain, read_json, write_text
from konkyo.utils.progress import Progress, StageProgress
from konkyo.utils.tensors import channels, cross_entropy

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NetworkKind: TypeAlias = Literal["plain", "vib", "recam", "attention_branch"]
KINDS: tuple[NetworkKind, ...] = ("plain", "vib", "recam", "attention_branch")
Loss: TypeAlias = Callable[..., dict[str, Tensor]]
"""Of what a network puts out in training, and labels: "loss", and what it is made of."""
CAM = replace(find("cam"), rectified=True)
"""max(0, sum_k w_k A_k): where features speak for the class. What is shown is what is measured."""
WITH_MASKS = ("ebpg@mask", "pointing_game@mask", "best_iou@mask")
MANY = 10.0
"""From so many times log K on, the KL is far from what a label needs."""
VARIES = 0.01
"""Of the largest standard deviation of a channel's mean over images: below it, a channel says nothing of an image."""
SAMPLES = 12
"""Of the code, over which the class probabilities of an image are averaged (Alemi et al.)."""


class NetworkOfStudy(NamedTuple):
    """One network of every seed."""

    name: str
    """Its folder's: the kind; of a bottleneck vib_BETA, or vib-NOISE_BETA where the noise is not "affine"."""
    kind: str
    noise: str = ""
    """Of `NOISES`; "" where there is none."""
    beta: float = math.nan
    """NaN where there is none."""


def runs_of(models: Sequence[str], betas: Sequence[float], noises: Sequence[str] = ("affine",)) -> list[NetworkOfStudy]:
    """Lists every network of a seed: of "vib" one per noise and beta."""
    runs = list[NetworkOfStudy]()
    for kind in models:
        if kind != "vib":
            runs.append(NetworkOfStudy(kind, kind))
            continue
        for noise in noises:
            start = "vib" if noise == "affine" else f"vib-{noise}"
            runs += [NetworkOfStudy(f"{start}_{beta:g}", kind, noise, beta) for beta in sorted(betas)]
    return runs


def uncompressed(test: Mapping[str, Any], beta: float, classes: int) -> list[str]:
    """Returns a sentence where a bottleneck with beta > 0 compresses nothing on the test set; no sentence otherwise.

    That is where both hold: the KL is more than `MANY` times log K, the most that a label can hold. And the noise lets
    more than one bit through a channel, on average: its standard deviation is below 0.58 of that of the means over
    images. Then what beta changes are the means, and hardly what gets through.
    """
    kl, passed = test.get("kl"), test.get("passed")
    if not beta > 0 or classes < 2 or kl is None or passed is None:
        return []
    if not (kl > MANY * math.log(classes) and passed > 1):
        return []
    return [
        f"nothing is compressed: a KL of {kl:.0f} nats is {kl / math.log(classes):.0f} times log K, and "
        f"{passed:.1f} bits of an image get through the noise of a channel (std {test['std']:.3f}) on average. Beta "
        "acts on the means alone here, as weight decay would: choose a larger offset, a larger beta or more epochs."
    ]


@dataclass(frozen=True)
class VIBStudy:
    """What is trained from every seed: `models`, and of these "vib" with every one of `noises` and `betas`.

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
    noises: tuple[str, ...] = ("affine",)
    """Of `NOISES`."""
    offset: float = 0.0
    """Of the affine noises, at first."""
    reduction: Reduction = "sum"
    samples: int = 1
    augment: bool = True
    """Mirrored at random, and parts of `least` to 1 of the area."""
    least: float = 0.25
    metrics: tuple[str, ...] = ()
    """Columns of `konkyo.evaluate` to measure on the test set beside those of masks, such as "deletion"."""
    second: int = 4
    """Epochs of ReCAM's second stage. Its defaults are its authors', for a pretrained ResNet-50 and 10582 images."""
    second_rate: float = 5e-4
    """Of its second classifier; the rest has a tenth. It falls to 0 with power 0.9."""
    second_batch: int = 16
    second_optimiser: Optimisers = "sgd"
    """Without momentum, as the authors' code has it: there the weight decay stands in its place."""
    limit: int | None = None
    split_seed: int = 0
    copies: str = "identical"
    """As of `konkyo.data.splits.splits`; no copy of a picture lies in another part."""
    groups: str = ""
    """A csv file of groups, of which none lies in two parts."""
    recipe: Recipe = field(default_factory=lambda: Recipe(100, 256, 0.1, "sgd", weight_decay=1e-4, schedule="steps"))
    """The paper's epochs, batch and rate; the rest of it is not told there."""
    networks: tuple[NetworkOfStudy, ...] = field(init=False)
    """Those that `models`, `noises` and `betas` make."""

    def __post_init__(self) -> None:
        for kind in self.models:
            if kind not in KINDS:
                raise unknown("model", kind, KINDS)
        if not self.seeds or not self.models or ("vib" in self.models and not (self.betas and self.noises)):
            raise KonkyoError("a model, a seed and, for vib, a noise and a beta at least were expected")
        for beta in self.betas:
            VIBLoss(beta, self.reduction)
        # As folders are named, so that a beta has one folder in every call.
        object.__setattr__(self, "betas", tuple(float(f"{beta:g}") + 0.0 for beta in self.betas))
        chosen = (self.betas, self.noises, self.models, self.seeds)
        if any(len(set(values)) < len(values) for values in chosen):
            raise KonkyoError(f"a beta, a noise, a model or a seed came twice: {', '.join(map(str, chosen))}")
        for noise in self.noises:
            self.noise_of(noise)
        object.__setattr__(self, "networks", tuple(runs_of(self.models, self.betas, self.noises)))
        self.second_recipe(0)

    def noise_of(self, name: str) -> Noise:
        """Returns the noise of a name, with the study's offset. KonkyoError: an unknown one."""
        if name not in NOISES:
            raise unknown("noise", name, NOISES)
        return replace(NOISES[name], offset=self.offset)

    def second_recipe(self, seed: int) -> Recipe:
        """Returns how ReCAM's second stage is trained: all of its few epochs, without a warm-up of the first stage."""
        return replace(
            self.recipe,
            epochs=self.second,
            batch=self.second_batch,
            learning_rate=self.second_rate,
            optimiser=self.second_optimiser,
            momentum=0.0,
            schedule="poly",
            warmup=0,
            keep="last",
            patience=None,
            seed=seed,
        )

    @cached_property
    def preprocess(self) -> Preprocess:
        """Returns the short side resized, and the middle, with the backbone's own means."""
        return usual_preprocess(self.backbone, self.size)

    def plan(self, of: NetworkOfStudy, seed: int, classes: tuple[str, ...]) -> Plan:
        """How a network is built, and how it is trained."""
        kind = of.kind
        arguments: dict[str, Any] = {"backbone": self.backbone, "classes": len(classes)}
        trained = {"study": "vib", "data": self.data, "pretrained": self.pretrained, "augment": self.augment}
        if kind == "vib":
            arguments |= {"noise": asdict(self.noise_of(of.noise)), "samples": self.samples}
            trained |= {"beta": of.beta, "reduction": self.reduction}
        if kind == "recam":
            trained |= {"second": asdict(self.second_recipe(seed))}
        return Plan(kind, arguments, classes, self.preprocess, trained | asdict(replace(self.recipe, seed=seed)))

    def begun(self, plan: Plan, seed: int) -> nn.Module:
        """The network before its training: the backbone, which is initialised first, is the same for all of a seed."""
        return initialised(plan, seed, pretrained=self.pretrained)


class StepLoss(nn.Module):
    """A loss of an output and labels, as an objective."""

    def __init__(self, loss: Loss, weights: Tensor | None = None) -> None:
        """`weights`: of the classes in the cross-entropy (`Recipe.weights_of`)."""
        super().__init__()
        self.loss, self.weights = loss, weights

    def forward(self, output: Any, labels: Tensor, _epoch: int) -> dict[str, Tensor]:
        """As of `konkyo.training.loop.Objective`."""
        return self.loss(output, labels, weights=self.weights)


def train_vib(
    study: VIBStudy,
    out: str | Path,
    *,
    fabric: Fabric,
    progress: StageProgress | None = None,
    retry: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Trains every network of the study into `out`, a folder each; `konkyo.studies.vib.report` reads them.

    A training that diverges fails alone, as in `Attempts`, and the names of these are returned. `tell` gets a line for
    every bottleneck, of what its code holds, and a `KonkyoWarning` says where nothing is compressed (`uncompressed`).

    NAME/seed_S holds the weights and their manifest (`konkyo.load("trained/FOLDER")`), a checkpoint, epochs.csv, and in
    test.json how it decides on the test set, which nothing was chosen by. Where there are masks, test/ has the
    localisation of its CAM. What is done already is not done again. KonkyoError: another study's folder; data without
    classes.
    """
    out = Path(out)
    parts = splits(study.data, seed=study.split_seed, limit=study.limit, copies=study.copies, groups=study.groups)
    for of in {of.kind: of for of in study.networks}.values():  # what cannot be built is told before all is written
        study.begun(study.plan(of, 0, parts.classes), 0)
    attempts = Attempts(fabric, retry, tell)
    prepare = augmented(study.preprocess, study.least) if study.augment else study.preprocess
    with alone(out, fabric):
        data = begin("vib", study, parts, prepare, out, fabric)
        runs = {
            (name := f"{of.name}, seed {seed}"): attempts.of(
                name, home := out / of.name / f"seed_{seed}", partial(_run, study, data, of, seed, home, fabric)
            )
            for seed in study.seeds
            for of in study.networks
        }
        walk(runs, study.recipe.epochs, progress)
        for line in _of_codes(study, len(parts.classes), out):
            tell(line)
    return attempts.diverged


def _of_codes(study: VIBStudy, classes: int, out: Path) -> list[str]:
    """Returns a line for every bottleneck that is tested."""
    lines = list[str]()
    for of, seed in product(study.networks, study.seeds):
        path = out / of.name / f"seed_{seed}" / "test.json"
        if of.kind != "vib" or not path.is_file():
            continue
        test = read_json(path)
        if test["kl"] is None:
            lines.append(f"{of.name}, seed {seed}: the code is no number")
            continue
        lines.append(
            f"{of.name}, seed {seed}: KL {test['kl']:.1f} nats, {test['kl_over_log_k']:.1f} times log K (of "
            f"{classes} classes); std {test['std']:.3f}, {test['passed']:.2f} bits a channel"
        )
        for why in uncompressed(test, of.beta, classes):
            warn(f"{of.name}, seed {seed}: {why}")
            lines.append(f"  {why}")
    return lines


def _run(
    study: VIBStudy,
    data: StudyData,
    of: NetworkOfStudy,
    seed: int,
    folder: Path,
    fabric: Fabric,
    progress: Progress,
) -> None:
    first_stage = folder / "first" if of.kind == "recam" else folder
    if is_done(folder, "test.json", study.recipe, fabric, first_stage):
        return
    recipe, plan = replace(study.recipe, seed=seed), study.plan(of, seed, data.parts.classes)
    network = study.begun(plan, seed)
    train, weights = data.train, recipe.weights_of(data.train.labels, len(data.parts.classes))

    def keep(network: nn.Module) -> None:
        save_trained(folder, network, plan)

    how: dict[str, Any] = {"judge": partial(_judged, data, fabric), "keep": keep, "fabric": fabric}
    if isinstance(network, ReCAM):
        stage, second = StepLoss(partial(recam_loss, weight=0.0), weights), StepLoss(recam_loss, weights)
        # Without w', of which nothing is asked yet: weight decay alone would change it.
        groups = [{"params": [*network.backbone.parameters(), *network.first.parameters()]}]
        fit(network, stage, train, recipe, folder / "first", groups=groups, progress=progress, **how)
        recipe = study.second_recipe(seed)
        fit(network, second, train, recipe, folder, groups=network.groups(study.second_rate), **how)
    else:
        loss = VIBLoss(of.beta, study.reduction) if of.kind == "vib" else _LOSSES[of.kind]
        fit(network, StepLoss(loss, weights), train, recipe, folder, groups=_groups(network), progress=progress, **how)
    with first(fabric) as mine, warnings.catch_warnings():
        warnings.simplefilter("ignore", KonkyoWarning)  # of blank maps, which are counted, and shown as such
        if mine:
            _tested(study, data, network.eval(), folder, fabric.device)


@torch.no_grad()
def _judged(data: StudyData, fabric: Fabric, network: nn.Module, _epoch: int) -> Numbers:
    """Returns the scores in validation; of ReCAM also the loss of its second classifier ("reactivation").

    Diverged: the network's outputs are no finite numbers.
    """
    scores = finite_scores(network, data, fabric, "beta")
    if not isinstance(network, ReCAM):
        return scores

    def reactivation(batch: tuple[Tensor, Tensor]) -> float:
        images, labels = (tensor.to(fabric.device) for tensor in batch)
        return float(recam_loss(network.output(images), labels)["reactivation"]) * len(labels)

    total = sum(over_batches(reactivation, data.validation, fabric))
    return scores | {"reactivation": total / len(data.parts.validation)}


def _entropy(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> dict[str, Tensor]:
    return {"loss": cross_entropy(logits, labels, weights)}


_LOSSES: dict[str, Loss] = {"plain": _entropy, "attention_branch": attention_branch_loss}


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """All parameters; without decay those of the noise, which it would move towards more of it, whatever beta is."""
    noise = [p for name, p in network.named_parameters() if name in ("head.scale", "head.offset")]
    others = [p for p in network.parameters() if not any(p is parameter for parameter in noise)]
    return [{"params": others}, *([{"params": noise, "weight_decay": 0.0}] if noise else [])]


def _tested(study: VIBStudy, data: StudyData, network: nn.Module, folder: Path, device: torch.device) -> None:
    """How the network decides on the test set, how good and how consistent its maps are, and those that are shown.

    What cannot be measured is NaN, and why is told under "missing": a training is not lost for it.
    """
    parts, missing = data.parts, dict[str, str]()
    test = batches(Examples(parts.test, study.preprocess, parts.classes), study.recipe)
    numbers: dict[str, Any] = classification_scores(network, test, device)
    if isinstance(network, VIBClassifier):
        numbers |= _coded(network, test, device)
    method = reactivated(network) if isinstance(network, ReCAM) else CAM
    model = Model(network, study.preprocess, parts.classes, study.backbone)
    few = (parts.test[i].annotations for i in range(min(len(parts.test), 20)))
    masked = any(thing.mask is not None for things in few for thing in things)
    if columns := (*(WITH_MASKS if masked else ()), *study.metrics):
        evaluation = evaluate(model, parts.test, [method], columns, explained="label", out=folder / "test")
        numbers["maps"] = _cells(evaluation, missing)
        numbers["blank"] = evaluation.absent[CAM.name] / max(1, len(evaluation.rows))
    numbers |= _consistency(model, method, parts.test, missing)
    try:
        maps = _shown_maps(study, data, model, method)
    except KonkyoError as error:
        maps, missing["pictures"] = torch.zeros(len(data.shown), 1, 1), str(error)
    if len(maps):
        write_maps(folder, maps)
    numbers["pictures"] = _decisions(study, data, network, device)
    write_text(folder / "test.json", json.dumps(plain(numbers | {"missing": missing}), indent=1) + "\n")


def reactivated(network: ReCAM) -> Method:
    """Returns ReCAM as a method of the network's first classifier, which decides: its CAM with weights w_k * w'_k.

    Decisions, and scores of changed images, are those of w; the classifier `network.reactivated()` has ReCAM for its
    CAM, but its own scores were trained for nothing.
    """
    second = network.second.weight.detach()

    def recam(class_weights: Tensor, activations: Tensor, targets: Sequence[Any]) -> Tensor:
        classes = [target.index for target in targets]
        return channels(class_weights * second[classes], activations) * activations

    return replace(CAM, function=recam, needs=("class_weights", "activations", "targets"))


def _cells(evaluation: Evaluation, missing: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Returns every column's value with its interval; why it has none goes into `missing`."""
    cells = dict[str, dict[str, Any]]()
    for column in (c.name for c in evaluation.columns):
        if (CAM.name, column) in evaluation.statistics:
            cells[column] = asdict(evaluation.cell(CAM.name, column))
            why = "all maps are blank, or there is no truth for them"
        else:
            cells[column] = asdict(Cell(math.nan, math.nan, math.nan, 0, math.nan))
            why = " ".join(evaluation.notes) or "no map was made"
        if not cells[column]["count"]:
            missing[column] = why
    return cells


def _consistency(model: Model, method: Method, test: Samples, missing: dict[str, str]) -> Numbers:
    """Returns "L" and "wt" (W / T) of the maps of the label, of images decided correctly; NaN as in `_cells`."""
    try:
        measured = consistency(model, test, method=method, resamples=0, permutations=0, baselines=False)
    except KonkyoError as error:
        missing["L"] = str(error)
        return {"L": math.nan, "wt": math.nan}
    if math.isnan(measured.value):
        missing["L"] = "no class has two maps that are not blank, of images that are decided correctly"
    return {"L": measured.value, "wt": measured.ratio}


def _shown_maps(study: VIBStudy, data: StudyData, model: Model, method: Method) -> Tensor:
    """Returns the maps (P, h, w) of the pictures that are shown. KonkyoError: there can be none."""
    maps = list[Tensor]()
    for picture in data.shown:
        image = study.preprocess(data.picture(picture))[None]
        maps.append(explain(model, image, method=method, target=data.parts.classes.index(picture.label)).maps.cpu())
    return torch.cat(maps) if maps else torch.zeros(0, 1, 1)


def _decisions(study: VIBStudy, data: StudyData, network: nn.Module, device: torch.device) -> list[dict[str, Any]]:
    """Returns what the network decides on the pictures that are shown, and how sure it is."""
    decided = list[dict[str, Any]]()
    for picture in data.shown:
        image = study.preprocess(data.picture(picture))[None]
        with torch.no_grad():
            sure, best = network(image.to(device)).float().softmax(1)[0].max(0)
        decided.append({"decision": data.parts.classes[int(best)], "probability": float(sure)})
    return decided


@torch.no_grad()
def _coded(network: VIBClassifier, batches: DataLoader[Any], device: torch.device) -> Numbers:
    """Of the code on the test set: "kl" in nats, "bits", mean and standard deviation on average, channels; how many
    bits of an image get through the noise of a channel, on average over those channels whose mean varies ("passed",
    "varying": a standard deviation over images of at least `VARIES` of the largest; dead channels have nothing to
    pass); and "sampled", the accuracy of class probabilities averaged over samples of the code."""
    means, stds, right, classes = list[Tensor](), list[Tensor](), list[Tensor](), 1
    for images, labels in batches:
        images = images.to(device)
        mean, std = network.head.code(network.backbone(images))
        sampled = network.predictive(images, SAMPLES)
        classes = sampled.shape[1]
        right.append(sampled.argmax(1).cpu() == labels)
        means.append(mean.cpu().double())
        stds.append(std.cpu().double())
    mean, std = torch.cat(means), torch.cat(stds)
    kl = float(kl_divergence(mean, std).mean())
    spread = mean.std(0, correction=0)
    varying = ((spread > 0) & (spread >= VARIES * spread.max())).nonzero()[:, 0]
    return {
        "kl": kl,
        "bits": kl / math.log(2),
        "kl_over_log_k": kl / math.log(classes) if classes > 1 else math.inf,
        "mean": float(mean.mean()),
        "std": float(std.mean()),
        "passed": float(bits_of_channels(mean, std)[varying].mean()) if len(varying) else 0.0,
        "varying": float(len(varying)),
        "channels": float(network.backbone.channels),
        "sampled": float(torch.cat(right).double().mean()),
    }
