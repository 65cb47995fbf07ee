"""The plan of an evaluation: the model, methods and metrics, and maps that other tools made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from konkyo.engine.forward import Precision
from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation.columns import Column
from konkyo.explanation.run import Where
from konkyo.methods.base import Method
from konkyo.models import Model
from konkyo.tasks.base import Explained, Matching

RIGHT = Matching()
"""The usual matching: detections that are right."""


@dataclass(frozen=True)
class Maps:
    """Maps that another tool made, as a method: a file per sample in `folder`, named as the sample.

    NAME.npz (its first array), NAME.npy or NAME.png. It is (H, W) or (R, H, W), a map for every row that is measured,
    in order, as large as the picture that the model sees or on a grid over it.
    """

    folder: Path
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).expanduser())
        object.__setattr__(self, "name", self.name or self.folder.name)
        if not self.folder.is_dir():
            raise KonkyoError(f"a folder of maps was expected; {self.folder} is none")

    def of(self, sample: str, rows: int) -> Tensor:
        """Returns the maps (R, h, w) of a sample. KonkyoError: no file, or one that holds something else."""
        stem = Path(sample).with_suffix("").as_posix() if Path(sample).suffix else sample
        candidates = [self.folder / f"{n}{s}" for n in (sample, stem) for s in (".npz", ".npy", ".png")]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise KonkyoError(f"{self.folder} has no map of {sample}: {candidates[0].name}, .npy or .png was expected")
        try:
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    array = np.asarray(picture.convert("F"))
            else:
                array = np.load(path, allow_pickle=False)
                if path.suffix == ".npz":
                    array = array["signed" if "konkyo" in array.files else array.files[0]]
            maps = torch.from_numpy(np.array(array, dtype=np.float32))
        except Exception as error:  # damaged files fail in every possible way
            raise KonkyoError(f"{path} holds no map: {error}") from error
        maps = maps[None] if maps.ndim == 2 else maps
        if maps.ndim != 3 or len(maps) != rows:
            raise KonkyoError(f"{path}: {rows} maps (R, H, W) were expected; got {tuple(maps.shape)}")
        return maps


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan says what is measured, the same for every sample."""

    model: Model | None
    methods: tuple[Method | Maps, ...]
    columns: tuple[Column, ...]
    explained: Explained
    matching: Matching
    seed: int
    precision: Precision | None
    layer: Where
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        labels = [m.name for m in self.methods]
        offer = sorted({o for m in self.methods if isinstance(m, Method) for o in m.options})
        for name in self.options:
            if name not in offer:
                raise unknown(f"option of {', '.join(labels)}", name, offer or ["(none)"])
        if len(set(labels)) < len(labels):
            raise KonkyoError(f"two of the methods have one name: {', '.join(labels)}")
        if len({c.name for c in self.columns}) < len(self.columns):
            raise KonkyoError(f"two of the metrics are one: {', '.join(c.name for c in self.columns)}")

    def settings(self, data: str, count: int) -> dict[str, Any]:
        """Returns what decides the values, as plain JSON values: a run that goes on must have the same."""
        model = self.model
        return {
            "konkyo": 2,  # of what is kept
            "model": None if model is None else model.name,
            "weights": None if model is None else digest(model.module),
            "preprocess": None if model is None else repr(model.preprocess),
            "maps": {m.name: str(m.folder.resolve()) for m in self.methods if isinstance(m, Maps)},
            "data": data,
            "samples": count,
            "methods": [m.name for m in self.methods],
            "metrics": [c.name for c in self.columns],
            "explained": self.explained,
            "matching": str(self.matching),
            "seed": self.seed,
            "precision": self.precision,
            "layer": None if self.layer is None else str(self.layer),
            "options": {name: repr(value) for name, value in self.options.items()},
        }


def digest(module: nn.Module) -> str:
    """Returns what tells networks of other weights apart: a digest of a thousand numbers of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 1000)].double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
