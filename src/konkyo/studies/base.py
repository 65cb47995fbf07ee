"""What the studies share: a folder that knows its settings, and a network judged by how it decides."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from konkyo.data.samples import Samples
from konkyo.data.splits import Examples, Grouping, Splits
from konkyo.draw.sheets import save_image
from konkyo.errors import Diverged, KonkyoError
from konkyo.metrics.distances import kappa
from konkyo.models import Preprocess, load
from konkyo.training.checkpoint import CHECKPOINT
from konkyo.training.devices import first, over_batches
from konkyo.training.loop import EPOCHS, read_epochs
from konkyo.training.recipe import Numbers, Recipe
from konkyo.utils.files import plain, read_json, replacing, write_text
from konkyo.utils.ledger import differences, held, other_settings
from konkyo.utils.progress import Progress, StageProgress

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STUDY, MAPS, DIVERGED = "study.json", "pictures.safetensors", "diverged.json"
CLASSES_SHOWN = 20
"""At most, in the pictures of a report."""
CACHE = 2 << 30
"""Bytes of opened pictures that a study may keep, over all parts, splits and reading processes."""
GROWS = ("lambdas", "betas", "noises", "seeds", "splits", "levels", "models", "networks")
"""Settings that may be others when a study goes on: they only say which trainings there are."""


def open_study(
    folder: Path, settings: Mapping[str, Any], usual: Mapping[str, Any] = {}, recipe: Recipe | None = None
) -> None:
    """Begins a study in a folder, or goes on with it. KonkyoError: another study is there, and in what it differs.

    `usual`: what a setting was that an earlier version did not know yet, and so did not write. `recipe`: that of
    `settings`, which may have more epochs than the earlier one, if its rates do not depend on their number.
    """
    path, now = folder / STUDY, json.loads(json.dumps(plain(settings)))
    if not path.is_file() and folder.is_dir() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise KonkyoError(f"{folder} holds something else than a study: choose another folder, or an empty one")
    if path.is_file():
        try:
            earlier = dict(read_json(path))
        except (KonkyoError, ValueError, TypeError) as error:
            raise KonkyoError(f"{path} cannot be read as the settings of a study: {error}") from error
        earlier = _completed(earlier, json.loads(json.dumps(plain(usual))))
        was, why = earlier.get("recipe"), ""
        if recipe is not None and isinstance(was, dict):
            why = recipe.continues({**was, "seed": recipe.seed})
            if not why and was.get("epochs", 0) < recipe.epochs:
                earlier["recipe"] = now["recipe"]
        differ = differences(earlier, now, GROWS)
        if why and [name.split(" ")[0] for name in differ] == ["recipe.epochs"]:
            raise KonkyoError(f"{folder} {why}")
        if differ:
            raise KonkyoError(f"{folder} {other_settings('a study', differ, 'choose another folder')}")
        for name in GROWS:
            if name in now and name in earlier:
                now[name] = earlier[name] + [value for value in now[name] if value not in earlier[name]]
    write_text(path, json.dumps(now, indent=1) + "\n")


def _completed(earlier: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with those of `usual` that they lack, also within parts that both have."""
    both = {n: _completed(v, usual[n]) for n, v in earlier.items() if isinstance(v, dict) and n in usual and usual[n]}
    return {**usual, **earlier, **both}


@dataclass(frozen=True)
class TestPicture:
    """A test picture that reports show."""

    name: str
    label: str
    file: str
    """Its name in pictures/, or its path."""


def show(test: Samples, classes: Sequence[str], preprocess: Preprocess, out: Path, most: int = 4) -> list[TestPicture]:
    """Saves the first `most` pictures of each class, as the network sees them, in pictures/ with an index.json.

    Of many classes only some are saved, evenly chosen, so that reports can be looked at.
    """
    step = -(-len(classes) // CLASSES_SHOWN)
    pictures, counts = list[TestPicture](), {label: 0 if i % step == 0 else most for i, label in enumerate(classes)}
    side = preprocess.side
    height, width = (side, side) if isinstance(side, int) or side is None else side
    for index, label in enumerate(test.labels):
        if counts[label] < most:
            counts[label] += 1
            pictures.append(TestPicture(test.names[index], label, f"{len(pictures):03}.png"))
            image = preprocess.view(test[index].image)
            save_image(
                image if height is None or width is None else image.resize((width, height)),
                out / "pictures" / pictures[-1].file,
            )
    write_text(out / "pictures" / "index.json", json.dumps([asdict(picture) for picture in pictures], indent=1) + "\n")
    return pictures


def write_maps(folder: Path, maps: Tensor) -> None:
    """Saves a network's raw maps (P, h, w) of the pictures that are shown."""
    with replacing(folder / MAPS) as temporary:
        save_file({"maps": maps.cpu().contiguous()}, temporary)


def read_maps(folder: Path) -> Tensor:
    """Reads the maps (P, h, w) that `write_maps` saved. KonkyoError: they cannot be read."""
    path = folder / MAPS
    try:
        maps = load_file(path)["maps"]
    except (SafetensorError, OSError, LookupError) as error:
        raise KonkyoError(f"{path} cannot be read as maps: {error}") from error
    if maps.ndim != 3:
        raise KonkyoError(f"{path}: maps (P, h, w) were expected; got {tuple(maps.shape)}")
    return maps


class Study(Protocol):
    """What all studies are asked for; a dataclass whose fields but `data` have defaults."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def data(self) -> str:
        """As of `konkyo.data.splits.splits`."""

    @property
    def recipe(self) -> Recipe:
        """How its networks are trained; its seed is replaced."""

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are prepared for evaluation."""


@dataclass(frozen=True, eq=False)
class StudyData:
    """The data that all trainings of a study read; pictures that one of them has opened stay open for the next."""

    parts: Splits
    train: Examples
    validation: DataLoader[tuple[Tensor, int]]
    shown: Sequence[TestPicture]
    """In the first process."""

    def picture(self, shown: TestPicture) -> Image.Image:
        """Returns a picture that is shown, as the test set has it."""
        return self.parts.test[self.parts.test.names.index(shown.name)].image


@contextmanager
def alone(out: Path, fabric: Fabric) -> Iterator[None]:
    """Within the context no other command trains into the folder of a study. KonkyoError: one does already."""
    with ExitStack() as stack:
        with first(fabric) as mine:
            if mine:
                stack.enter_context(held(out / STUDY))
        yield


def begin(
    kind: str,
    study: Study,
    parts: Splits,
    prepare: Callable[[Image.Image], Tensor],
    out: Path,
    fabric: Fabric,
    splits: int = 1,
) -> StudyData:
    """Begins a study in its folder, or goes on with it; `prepare` and `splits` as of `opened`.

    KonkyoError: as of `open_study`; a batch or images that the processes cannot share.
    """
    settings, usual = _settings(study), _settings(type(study)(study.data))  # type: ignore[call-arg] # a dataclass
    sizes = {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}
    study.recipe.check(len(parts.train), fabric.world_size)
    shown: list[TestPicture] = []
    with first(fabric) as mine:
        if mine:
            grouping = asdict(parts.grouping) | {"remark": parts.grouping.remark}
            ungrouped = {"grouping": asdict(Grouping()) | {"copies": parts.grouping.copies, "remark": ""}}
            now = {"kind": kind, **settings, "classes": list(parts.classes), "sizes": sizes, "grouping": grouping}
            open_study(out, now, usual | ungrouped, study.recipe)
            shown = show(parts.test, parts.classes, study.preprocess, out)
    return opened(study, parts, prepare, shown, splits=splits)


def opened(
    study: Study,
    parts: Splits,
    prepare: Callable[[Image.Image], Tensor],
    shown: Sequence[TestPicture] = (),
    splits: int = 1,
) -> StudyData:
    """Returns what trainings on these parts read; `prepare` makes training images of pictures.

    `splits`: of so many the study has parts at once, which share the memory for pictures.
    """
    cache = CACHE // (2 * splits * max(1, study.recipe.workers))
    train = Examples(parts.train, prepare, parts.classes, cache=cache)
    validation = Examples(parts.validation, study.preprocess, parts.classes, cache=cache)
    return StudyData(parts, train, batches(validation, study.recipe), shown)


def _settings(study: Study) -> dict[str, Any]:
    """Returns the settings of a study as study.json holds them."""
    settings = asdict(study)
    settings["recipe"] = {n: value for n, value in settings["recipe"].items() if n not in ("seed", "workers", "track")}
    return settings


def batches(examples: Examples, recipe: Recipe) -> DataLoader[tuple[Tensor, int]]:
    """For evaluation."""
    workers = recipe.workers
    return DataLoader(examples, min(recipe.batch, 64), num_workers=workers, persistent_workers=workers > 0)


def walk(runs: Mapping[str, Callable[[Progress], None]], epochs: int, progress: StageProgress | None) -> None:
    """Trains one network after another, each of so many epochs, and tells how far all of them are."""
    for done, (what, train) in enumerate(runs.items()):

        def tell(epoch: int, _of: int | None, before: int = done * epochs, what: str = what) -> None:
            if progress is not None:
                progress(before + min(epoch, epochs), len(runs) * epochs, what)

        tell(0, epochs)
        train(tell)
        tell(epochs, epochs)


@dataclass(frozen=True, eq=False)
class Attempts:
    """They let a training whose loss is no finite number any more fail alone, so that the study goes on.

    Its folder gets a diverged.json, and `tell` a sentence. Another call does not try it again, but with `retry`: after
    its last whole epoch, as after an interruption.
    """

    fabric: Fabric
    retry: bool = False
    tell: Callable[[str], None] = lambda _: None
    diverged: list[str] = field(default_factory=list)
    """The names of those that diverged, now or in an earlier call."""

    def of(self, what: str, folder: Path, train: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Returns the training that may fail alone; `what` is its name in sentences."""
        path = folder / DIVERGED

        def attempted(progress: Progress) -> None:
            if self.fabric.broadcast(path.is_file()) and not self.retry:
                self.diverged.append(what)
                return
            record: str | None = None
            try:
                train(progress)
            except Diverged as error:
                past = folder / EPOCHS
                epoch = len(read_epochs(past)) + 1 if past.is_file() else 1
                record = json.dumps({"epoch": epoch, "message": str(error)}, indent=1) + "\n"
                self.diverged.append(what)
                self.tell(f"{what} diverged: {error}")
            with first(self.fabric) as mine:
                if mine and record is None:
                    path.unlink(missing_ok=True)
                elif mine and record is not None:
                    write_text(path, record)

        return attempted


def is_done(folder: Path, test: str, recipe: Recipe, fabric: Fabric, stage: Path | None = None) -> bool:
    """Returns whether the training in a folder has all its epochs and is tested; `test` is the file written last.

    Where more epochs are asked for than were tested, the test goes, for it is of other weights. `stage`: the folder of
    the stage that the recipe is of; what was trained after it goes, too.
    """
    with first(fabric) as mine:
        if mine and (folder / test).is_file():
            rows = read_epochs((stage or folder) / EPOCHS)
            if len(rows) < recipe.epochs and not recipe.stopped(rows):
                (folder / test).unlink()
                rmtree(folder / "test", ignore_errors=True)
                if stage not in (None, folder):
                    (folder / CHECKPOINT).unlink(missing_ok=True)
    return bool(fabric.broadcast((folder / test).is_file()))


def diverged_in(folder: Path) -> int | None:
    """Returns the epoch in which the training in a folder diverged; None: it did not. KonkyoError: an unknown file."""
    path = folder / DIVERGED
    if not path.is_file():
        return None
    try:
        return int(read_json(path)["epoch"])
    except (LookupError, TypeError, ValueError) as error:
        raise KonkyoError(f"{path} cannot be read as the end of a training: {error}") from error


def usual_preprocess(backbone: str, size: int | None) -> Preprocess:
    """Returns how a backbone wants its pictures; `size`: the short side resized, and the middle of so many pixels.

    Without a size it is the backbone's own preprocessing, or 224 pixels with ImageNet's means where it has none.
    """
    with torch.random.fork_rng([]):
        of_backbone = load(backbone, weights="default" if ".py:" in backbone else None).preprocess
    usual = Preprocess() if of_backbone is None else of_backbone
    return usual if size is None else Preprocess(size, size, usual.mean, usual.std)


def finite_scores(network: nn.Module, data: StudyData, fabric: Fabric, weight: str) -> Numbers:
    """Returns `classification_scores` in validation, by all processes; `weight`: what may be lowered beside the rate.

    Diverged: the network's outputs are no finite numbers.
    """
    scores = classification_scores(network, data.validation, fabric.device, fabric)
    if not math.isfinite(scores["loss"]):
        raise Diverged(f"the loss in validation is {scores['loss']}: lower the rate, or {weight}")
    return scores


@torch.no_grad()
def classification_scores(
    network: nn.Module, batches: DataLoader[Any], device: torch.device, fabric: Fabric | None = None
) -> Numbers:
    """Cross-entropy ("loss"), accuracy and Cohen's kappa of a network in eval mode that puts out logits (N, K).

    With `fabric` all its processes call this, and each computes a part of the logits.
    """
    outputs = over_batches(lambda batch: (network(batch[0].to(device)).float().cpu(), batch[1]), batches, fabric)
    scores, label = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    kinds = scores.shape[1]
    decision = scores.argmax(1)
    confusion = torch.bincount(label * kinds + decision, minlength=kinds**2).view(kinds, kinds)
    return {
        "loss": float(functional.cross_entropy(scores, label)),
        "accuracy": float((decision == label).double().mean()),
        "kappa": float(kappa(confusion)),
    }
