"""The commands that train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import names_in
from konkyo.apps.cli.terminal import Bar, err, print_line, progress_bar
from konkyo.errors import KonkyoError
from konkyo.utils.files import read_json

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from konkyo.training.recipe import Recipe

train = typer.Typer(help="Train networks to look at the right place.", no_args_is_help=True)


@train.callback()
def _train() -> None:
    """Train networks to look at the right place."""


Pretrained = Annotated[bool, typer.Option("--pretrained", help="Start from the backbone's own weights.")]
Pictures = Annotated[int | None, typer.Option(min=1, help="So many pictures of the data, drawn by seed 0; all.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try again what diverged before.")]
Seeds = Annotated[str, typer.Option(help="So many seeds, from 0; or the seeds themselves, as in 7,8,9 or (one) 7,.")]


@dataclass(frozen=True)
class Machine:
    """What a training runs on."""

    devices: Annotated[int, typer.Option(min=1, help="Devices on each node.")] = 1
    nodes: Annotated[int, typer.Option(min=1, help="Nodes; start the same command on each.")] = 1
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")] = "auto"
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32"

    def fabric(self) -> Fabric:
        """The devices, ready."""
        from konkyo.training.devices import fabric_of

        return fabric_of(self.devices, self.nodes, accelerator=self.accelerator, precision=self.precision)


@dataclass(frozen=True)
class Training:
    """How a network is trained; what is None is the command's own."""

    epochs: Annotated[int | None, typer.Option(min=1, help="gaze: 20; vib: 100.")] = None
    batch: Annotated[int | None, typer.Option(min=1, help="Images, over all devices. gaze: 32; vib: 256.")] = None
    rate: Annotated[
        float | None, typer.Option(help="Learning rate. gaze: 1e-4, of lesions 1e-3; vib: 0.1, pretrained 0.01.")
    ] = None
    optimiser: Annotated[str | None, typer.Option(help="adam, adamw or sgd. gaze: adam; vib: sgd.")] = None
    momentum: Annotated[float | None, typer.Option(help="Of sgd; 0.9.")] = None
    weight_decay: Annotated[float | None, typer.Option(help="gaze: 0; vib: 1e-4.")] = None
    schedule: Annotated[
        str | None, typer.Option(help="plateau, cosine, steps, poly or constant. gaze: plateau; vib: steps.")
    ] = None
    warmup: Annotated[int, typer.Option(min=0, help="Epochs in which the rate rises from step to step.")] = 0
    accumulate: Annotated[int, typer.Option(min=1, help="Batches a step.")] = 1
    clip: Annotated[float | None, typer.Option(help="Highest norm of the gradient; any.")] = None
    ema: Annotated[float, typer.Option(help="Decay a step of mean weights, which are judged and kept; 0: none.")] = 0.0
    class_weights: Annotated[str, typer.Option(help="In the cross-entropy: none, or balanced.")] = "none"
    sampling: Annotated[str, typer.Option(help="shuffled, or balanced: some classes, alike many images of each.")] = (
        "shuffled"
    )
    per_class: Annotated[int | None, typer.Option(min=1, help="Images of a class in a balanced batch; 4.")] = None
    keep: Annotated[str, typer.Option(help="Weights of the last epoch, or of the best by --watch.")] = "last"
    watch: Annotated[
        str, typer.Option(help="loss, accuracy, kappa; another validation number after - (less is better) or +.")
    ] = "loss"
    patience: Annotated[
        int | None, typer.Option(min=1, help="End after so many epochs that are not better by --watch; never.")
    ] = None
    track: Annotated[str, typer.Option(help="Numbers also go to tensorboard, wandb or mlflow.")] = ""
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0

    def recipe(self, usual: Recipe) -> Recipe:
        """The command's usual recipe with what is given. KonkyoError: as of `Recipe`."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.per_class is not None and self.sampling != "balanced":
            raise KonkyoError(f"--per-class is of --sampling balanced; the sampling is {self.sampling!r}")
        if "rate" in given:
            given["learning_rate"] = given.pop("rate")
        return replace(usual, **given)


@dataclass(frozen=True)
class PartOptions:
    """What stays together when data are divided into training, validation and test parts."""

    copies: Annotated[
        str,
        typer.Option(help="Copies stay in one part: identical pictures, alike or alike:BITS (of 64) too, or ignored."),
    ] = "identical"
    groups: Annotated[
        Path | None, typer.Option(help="A csv file with the columns name and group, as of patients: none is divided.")
    ] = None

    def settings(self) -> dict[str, Any]:
        """As of a study."""
        return {"copies": self.copies, "groups": "" if self.groups is None else str(self.groups)}


@train.command()
@with_groups
def gaze(
    data: Annotated[
        str, typer.Option("--data", "-d", help="chest:DIR, brain:DIR, folder:DIR or lesions:COUNT, with options.")
    ] = "lesions:1000",
    level: Annotated[
        str | None, typer.Option(help="Of the study's five networks, several as in 1,2,3 or 1..5; 2.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Another network in their place, as --model of `konkyo explain`, or FILE.py:NAME."),
    ] = None,
    pretrained: Pretrained = False,
    layer: Annotated[str | None, typer.Option(help="Whose maps are trained and measured; default: the last.")] = None,
    method: Annotated[str, typer.Option(help="Of these maps; any that the loss can differentiate.")] = "grad_cam",
    lambdas: Annotated[
        str, typer.Option(help="Weights of the loss, in units of --distance; negative ones make maps differ.")
    ] = "0,3",
    seeds: Seeds = "3",
    splits: Annotated[
        str, typer.Option(help="So many drawings of the parts, or their numbers, as in 1,4 or (one) 1,.")
    ] = "1",
    distance: Annotated[
        str,
        typer.Option(help="mse (the paper's formula), l2_over_hw (the study's code), pearson, cosine or js."),
    ] = "mse",
    aim: Annotated[str, typer.Option(help="What maps are drawn to: ema, the running mean of the class, or batch.")] = (
        "ema"
    ),
    mode: Annotated[str, typer.Option(help="auto, closed_form, autograd or detached (the study's).")] = "auto",
    view: Annotated[str, typer.Option(help="Maps of the train-mode forward, or of another one in eval mode.")] = (
        "train"
    ),
    start: Annotated[int | None, typer.Option(help="The last epoch with weight 0; 2, or before the end.")] = None,
    end: Annotated[int | None, typer.Option(help="The first epoch with the whole weight; 10, or the last.")] = None,
    ema_start: Annotated[
        int, typer.Option(min=1, help="The first epoch that running maps take in; the study's code: --start + 1.")
    ] = 1,
    least: Annotated[
        int, typer.Option(min=1, help="Correctly decided images of a class in a batch, for its part in the loss.")
    ] = 2,
    size: Annotated[
        int | None, typer.Option(min=16, help="Side of the images; 224, of lesions 48, of a backbone its own.")
    ] = None,
    augment: Annotated[bool | None, typer.Option(help="Mirror and crop at random; default: all but lesions.")] = None,
    grid: Annotated[int, typer.Option(min=2, help="Cells a side of the maps whose L is measured.")] = 14,
    limit: Pictures = None,
    retry: Retry = False,
    part_options: PartOptions = PartOptions(),
    training: Training = Training(),
    machine: Machine = Machine(),
    to: Annotated[Path, typer.Option("--out", help="Folder; an interrupted study goes on from there.")] = Path(
        "konkyo-gaze"
    ),
) -> None:
    """Train the networks of the study of gaze consistency with several weights of its loss, from paired seeds."""
    from konkyo.studies.gaze.study import GazeStudy, train_gaze
    from konkyo.training.recipe import Recipe

    if level is not None and backbone is not None:
        raise KonkyoError(
            f"--level is one of the study's networks, --backbone another in their place: got {level!r} and {backbone!r}"
        )
    synthetic = data.partition(":")[0] == "lesions"
    recipe = training.recipe(Recipe(learning_rate=1e-3 if synthetic else 1e-4))
    start, end = _schedule(start, end, recipe.epochs, to)
    study = GazeStudy(
        data,
        _whole("--level", "2" if level is None else level),
        tuple(_numbers("--lambdas", lambdas)),
        seeds_of(seeds),
        size=size or (None if backbone else 48 if synthetic else 224),
        distance=distance,  # type: ignore[arg-type] # checked by the loss
        aim=aim,  # type: ignore[arg-type]
        mode=mode,  # type: ignore[arg-type]
        view=view,  # type: ignore[arg-type]
        start=start,
        end=end,
        ema_start=ema_start,
        augment=not synthetic if augment is None else augment,
        grid=grid,
        limit=limit,
        **part_options.settings(),
        recipe=recipe,
        backbone=backbone,
        pretrained=pretrained,
        layer=layer,
        method=method,
        least=least,
        splits=seeds_of(splits, "--splits"),
    )
    fabric = machine.fabric()
    with _training("gaze", to, fabric) as progress:
        diverged = train_gaze(study, to, fabric=fabric, progress=progress, retry=retry, tell=_tell)
    _left_out(diverged)


@train.command()
@with_groups
def vib(
    data: Annotated[
        str, typer.Option("--data", "-d", help="sun397:DIR, folder:DIR, scenes:COUNT or lesions:COUNT, with options.")
    ] = "scenes:600,objects=1",
    backbone: Annotated[str, typer.Option(help="As --model of `konkyo explain`.")] = "",
    betas: Annotated[
        str, typer.Option(help="Weights of the KL divergence, as in 0,1e-7..1; 0 is the noise alone.")
    ] = "0,1e-3,1e-2,1e-1",
    models: Annotated[str, typer.Option(help="plain, vib, recam, attention_branch.")] = "plain,vib",
    seeds: Seeds = "1",
    noises: Annotated[
        str,
        typer.Option(
            help="Of the channels' attention: affine (learnt on top), or plain, as in the paper; linear, fc; constant."
        ),
    ] = "affine",
    offset: Annotated[float, typer.Option(help="Of all noises but plain, at first; -5 leaves next to none.")] = 0.0,
    reduction: Annotated[str, typer.Option(help="Of the KL over channels: sum (the definition) or mean.")] = "sum",
    samples: Annotated[int, typer.Option(min=1, help="Of the code, a step.")] = 1,
    metrics: Annotated[
        str, typer.Option(help="Of maps on the test set, beside those of masks: as in deletion,insertion.")
    ] = "",
    second: Annotated[int, typer.Option(min=1, help="Epochs of ReCAM's second stage, after the others.")] = 4,
    second_rate: Annotated[float, typer.Option(help="Of its second classifier; the rest has a tenth.")] = 5e-4,
    second_batch: Annotated[int, typer.Option(min=1, help="Images a step, there.")] = 16,
    second_optimiser: Annotated[str, typer.Option(help="sgd or adam, there.")] = "sgd",
    pretrained: Pretrained = False,
    size: Annotated[int | None, typer.Option(min=16, help="Side of the images; 224, of scenes 128.")] = None,
    augment: Annotated[bool, typer.Option(help="Mirror and crop at random.")] = True,
    limit: Pictures = None,
    part_options: PartOptions = PartOptions(),
    retry: Retry = False,
    training: Training = Training(),
    machine: Machine = Machine(),
    to: Annotated[Path, typer.Option("--out", help="Folder; an interrupted study goes on from there.")] = Path(
        "konkyo-vib"
    ),
) -> None:
    """Train a network with a variational information bottleneck for every beta, and what it is compared with."""
    from konkyo.studies.vib.study import VIBStudy, train_vib
    from konkyo.training.recipe import Recipe

    synthetic = data.partition(":")[0] == "scenes"
    if synthetic and "objects=" not in data:  # a scene with several has no class
        data = f"{data if ':' in data else data + ':600'},objects=1"
    study = VIBStudy(
        data,
        backbone or ("konkyo/scenes-classifier" if synthetic else "torchvision/resnet50"),
        tuple(_numbers("--betas", betas)),
        tuple(name.strip() for name in models.split(",") if name.strip()),  # type: ignore[misc] # checked there
        seeds_of(seeds),
        size or (128 if synthetic else 224),
        pretrained,
        tuple(names_in(noises)),
        offset,
        reduction,  # type: ignore[arg-type]
        samples,
        augment,
        metrics=tuple(names_in(metrics)),
        second=second,
        second_rate=second_rate,
        second_batch=second_batch,
        second_optimiser=second_optimiser,  # type: ignore[arg-type]
        limit=limit,
        **part_options.settings(),
        recipe=training.recipe(
            Recipe(100, 256, 0.01 if pretrained else 0.1, "sgd", weight_decay=1e-4, schedule="steps")
        ),
    )
    fabric = machine.fabric()
    with _training("vib", to, fabric) as progress:
        diverged = train_vib(study, to, fabric=fabric, progress=progress, retry=retry, tell=_tell)
    _left_out(diverged)


def _left_out(diverged: list[str]) -> None:
    """Says which trainings diverged, and ends with status 3 where one did."""
    if diverged:
        _tell(f"diverged, and left out: {'; '.join(diverged)}. --retry tries them again")
        raise typer.Exit(3)


def _tell(sentence: str) -> None:
    """Says at once, on standard error, what a training is found to be."""
    err.print(f"[bold]{escape(sentence)}[/]", soft_wrap=True, highlight=False)


def _schedule(start: int | None, end: int | None, epochs: int, to: Path) -> tuple[int, int]:
    """Returns the first and the last epoch of the growing weight: as given, as of the study that goes on, or usual."""
    path = to / "study.json"
    earlier = read_json(path) if path.is_file() else {}
    if isinstance(earlier, dict) and earlier.get("kind") == "gaze":
        start, end = earlier.get("start") if start is None else start, earlier.get("end") if end is None else end
    end = min(10, epochs) if end is None else end
    return min(2, end - 1) if start is None else start, end


def seeds_of(text: str, option: str = "--seeds") -> tuple[int, ...]:
    """Returns the seeds that "3" (0, 1, 2) or "7,8" mean. KonkyoError: neither."""
    numbers = _whole(option, text)
    if "," in text:
        return numbers
    if not numbers[0]:
        raise KonkyoError(f"{option} {text}: none at all; one or more were expected, or the number itself, as in 0,")
    return tuple(range(numbers[0]))


def _whole(option: str, text: str) -> tuple[int, ...]:
    numbers = _numbers(option, text)
    if not numbers or not all(number >= 0 and number.is_integer() for number in numbers):
        raise KonkyoError(f"{option}: whole numbers from 0 were expected, as in 3 or 7,8,9; got {text!r}")
    return tuple(int(number) for number in numbers)


def _numbers(option: str, text: str) -> list[float]:
    """Numbers separated by commas, of which 1..5 are five, and 1e-3..1 the powers of ten from one to the other."""
    try:
        return [number for part in text.split(",") if part.strip() for number in _range(part.strip())]
    except (ValueError, OverflowError):
        raise KonkyoError(f"{option}: numbers separated by commas were expected; got {text!r}") from None


def _range(text: str) -> list[float]:
    low, dots, high = text.partition("..")
    if not dots:
        return [float(text)]
    if low.isdigit() and high.isdigit():
        return [float(number) for number in range(int(low), int(high) + 1)]
    first, last = math.log10(float(low)), math.log10(float(high))
    if first != round(first) or last != round(last):
        raise ValueError(text)
    return [float(f"1e{power}") for power in range(round(first), round(last) + 1)]


@contextmanager
def _training(kind: str, to: Path, fabric: Fabric) -> Iterator[Bar]:
    """Whom to tell how far the trainings are; at their end, where what they gave is."""
    with progress_bar("preparing", "whole epochs are kept", shown=fabric.is_global_zero) as progress:
        yield progress
    if fabric.is_global_zero:
        from konkyo.studies.report import grouping_remarks, read_settings

        for remark in grouping_remarks(read_settings(to, kind)):
            print_line(remark)
        where = str(to)
        text = f"networks, epochs and maps in {where}; tables and figures: konkyo report {kind} {where}"
        print_line(text)
