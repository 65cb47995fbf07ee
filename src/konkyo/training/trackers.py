"""Where the numbers of a training are looked at while it runs: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from konkyo.errors import KonkyoError, unknown
from konkyo.utils.files import read_text, write_text


class Tracker(Protocol):
    """This takes the numbers of a training; anything with these two functions does."""

    def log(self, numbers: Mapping[str, float], step: int, /) -> None:
        """Takes the numbers of a step; of `fit`, of an epoch."""

    def close(self) -> None:
        """Takes no more."""


@runtime_checkable
class PictureTracker(Tracker, Protocol):
    """This takes pictures beside the numbers, as all trackers of this file do."""

    def log_pictures(self, pictures: Mapping[str, Image.Image], step: int, /) -> None:
        """Takes the pictures of a step by name."""


class TensorBoard:
    """Writes to FOLDER/tensorboard: `tensorboard --logdir FOLDER` shows it, and all trainings of a study beside it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """KonkyoError: tensorboard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("recipe", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

    def log(self, numbers: Mapping[str, float], step: int, /) -> None:
        """As of `Tracker`; train_loss is the curve train/loss."""
        for name, value in numbers.items():
            self._writer.add_scalar(_grouped(name), value, step)
        self._writer.flush()

    def log_pictures(self, pictures: Mapping[str, Image.Image], step: int, /) -> None:
        """As of `PictureTracker`."""
        for name, picture in pictures.items():
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """As of `Tracker`."""
        self._writer.close()


class WandB:
    """Sends to Weights & Biases, project "konkyo" or what WANDB_PROJECT says; a training that goes on keeps its run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """KonkyoError: wandb is not installed."""
        try:
            import wandb  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise _missing("wandb", error) from error
        known = _run_of(folder, "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "konkyo"),
            name=_name(folder),
            dir=str(folder),
            config=dict(settings),
            id=known,
            resume="allow",
        )
        write_text(folder / "wandb.txt", str(self._run.id))

    def log(self, numbers: Mapping[str, float], step: int, /) -> None:
        """As of `Tracker`."""
        self._run.log({_grouped(name): value for name, value in numbers.items()}, step=step)

    def log_pictures(self, pictures: Mapping[str, Image.Image], step: int, /) -> None:
        """As of `PictureTracker`."""
        self._run.log({name: self._wandb.Image(picture) for name, picture in pictures.items()}, step=step)

    def close(self) -> None:
        """As of `Tracker`."""
        self._run.finish()


class MLflow:
    """Sends to where MLFLOW_TRACKING_URI says (./mlruns); a training that goes on keeps its run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """KonkyoError: mlflow is not installed."""
        try:
            import mlflow  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise _missing("mlflow", error) from error
        self._mlflow: Any = mlflow
        known = _run_of(folder, "mlflow")
        run = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=_name(folder))
        if not known:
            mlflow.log_params(dict(settings))
            write_text(folder / "mlflow.txt", str(run.info.run_id))

    def log(self, numbers: Mapping[str, float], step: int, /) -> None:
        """As of `Tracker`; numbers that are none are left out, which MLflow's stores do not all take."""
        known = {_grouped(name): value for name, value in numbers.items() if math.isfinite(value)}
        self._mlflow.log_metrics(known, step=step)

    def log_pictures(self, pictures: Mapping[str, Image.Image], step: int, /) -> None:
        """As of `PictureTracker`; an artifact each, in a folder of its step."""
        for name, picture in pictures.items():
            self._mlflow.log_image(picture, f"step-{step:06d}/{_file_name(name)}.png")

    def close(self) -> None:
        """As of `Tracker`."""
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def tracker_of(name: str, folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """Returns the tracker of a name for the training in a folder. KonkyoError: unknown, or not installed."""
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    return TRACKERS[name](folder, settings)


def _missing(library: str, error: ImportError) -> KonkyoError:
    return KonkyoError(f"{library} is not installed ({error}): pip install {library}")


def _grouped(name: str) -> str:
    """Returns train/loss for train_loss: trackers draw what has one beginning together."""
    part, line, rest = name.partition("_")
    return f"{part}/{rest}" if line and part in ("train", "valid") else name


def _file_name(name: str) -> str:
    """Returns a name whose folders stay, and in which nothing else is special.

    >>> _file_name("maps/../a b.png")
    'maps/a_b.png'
    """
    parts = (re.sub(r"[^\w.-]", "_", part).strip(".") for part in name.split("/"))
    return "/".join(part for part in parts if part) or "picture"


def _name(folder: Path) -> str:
    """Returns what tells a training from the others of its study: study/level-1/lambda_3/seed_0."""
    return "/".join(folder.resolve().parts[-4:]).lstrip("/")


def _run_of(folder: Path, name: str) -> str | None:
    """Returns the run that the training in a folder has begun, if it has."""
    path = folder / f"{name}.txt"
    return read_text(path).strip() or None if path.is_file() else None
