"""What the studies share: a folder that knows its settings, and a network judged by how it decides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.data.samples import Samples
from konkyo.errors import KonkyoError
from konkyo.files import plain, write_text
from konkyo.metrics.consistency import kappa
from konkyo.models import Preprocess
from konkyo.report.figures import save_image
from konkyo.training.loop import Numbers

STUDY = "study.json"
CLASSES_SHOWN = 20
"""At most, in the pictures of a report."""
CACHE = 2 << 30
"""Bytes of opened pictures that a part of a data set may keep."""
GROWS = ("lambdas", "betas", "seeds", "levels", "models")
"""Settings that may be others when a study goes on: they only say which trainings there are."""


def open_study(folder: Path, settings: Mapping[str, Any]) -> None:
    """Begins a study in a folder, or goes on with it. KonkyoError: another study is there, and in what it differs."""
    path, now = folder / STUDY, json.loads(json.dumps(plain(settings)))
    if not path.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise KonkyoError(f"{folder} holds something else than a study: choose another folder, or an empty one")
    if path.is_file():
        try:
            earlier = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise KonkyoError(f"{path} cannot be read as the settings of a study: {error}") from error
        there, here = _flat(earlier), _flat(now)
        differ = [
            f"{name} ({there.get(name)} there, {here[name]} now)" for name in here if there.get(name) != here[name]
        ]
        if differ:
            raise KonkyoError(f"{folder} is of a study with other {', '.join(differ)}; choose another folder")
        for name in GROWS:
            if name in now and name in earlier:
                now[name] = earlier[name] + [value for value in now[name] if value not in earlier[name]]
    write_text(path, json.dumps(now, indent=1) + "\n")


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings that must stay the same, those of a part named "part.name"."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        elif before or name not in GROWS:
            found[before + name] = value
    return found


@dataclass(frozen=True)
class Shown:
    """A test picture that reports show."""

    name: str
    label: str
    file: str
    """Its name in pictures/, or its path."""


def show(test: Samples, classes: Sequence[str], preprocess: Preprocess, out: Path, most: int = 4) -> list[Shown]:
    """Keeps the first `most` pictures of each class, as the network sees them, in pictures/ with an index.json.

    Of many classes, so many of them evenly chosen that reports can be looked at.
    """
    step = -(-len(classes) // CLASSES_SHOWN)
    found, counts = list[Shown](), {label: 0 if i % step == 0 else most for i, label in enumerate(classes)}
    side = preprocess.crop or preprocess.resize
    height, width = (side, side) if isinstance(side, int) or side is None else side
    for index, label in enumerate(test.labels):
        if counts[label] < most:
            counts[label] += 1
            found.append(Shown(test.names[index], label, f"{len(found):03}.png"))
            picture = preprocess.view(test[index].image)
            save_image(
                picture if height is None or width is None else picture.resize((width, height)),
                out / "pictures" / found[-1].file,
            )
    write_text(out / "pictures" / "index.json", json.dumps([asdict(each) for each in found], indent=1) + "\n")
    return found


@torch.no_grad()
def decisions(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Numbers:
    """Cross-entropy ("loss"), accuracy and Cohen's kappa of a network in eval mode that puts out logits (N, K)."""
    logits, labels = list[Tensor](), list[Tensor]()
    for images, label in batches:
        logits.append(network(images.to(device)).float().cpu())
        labels.append(label)
    found, truth = torch.cat(logits), torch.cat(labels)
    kinds = found.shape[1]
    decided = found.argmax(1)
    confusion = torch.bincount(truth * kinds + decided, minlength=kinds**2).view(kinds, kinds)
    return {
        "loss": float(functional.cross_entropy(found, truth)),
        "accuracy": float((decided == truth).double().mean()),
        "kappa": float(kappa(confusion)),
    }
