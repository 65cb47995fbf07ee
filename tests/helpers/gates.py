"""A network that stops other processes at a gate, and data that fails, so that drills need no luck with time."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from konkyo import Model
from konkyo.data.samples import Sample, Samples, samples
from konkyo.models import Preprocess

IMAGES, SHARD = 24, 4
PATIENCE = 120.0


class Gate(nn.Module):
    """While the folder has a file "closed", processes other than its maker's write their number there, and wait."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.maker = folder, os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.maker and (self.folder / "closed").exists():
            (self.folder / f"at-{os.getpid()}-{os.getppid()}").touch()
            until(lambda: not (self.folder / "closed").exists())
        return x

    def close(self) -> None:
        (self.folder / "closed").touch()

    def open(self) -> None:
        (self.folder / "closed").unlink()

    def waiting(self) -> dict[int, int]:
        """Returns the processes that wait or waited, each with its parent."""
        pairs = [path.name.split("-")[1:] for path in self.folder.glob("at-*")]
        return {int(process): int(parent) for process, parent in pairs}


def until(condition: object, seconds: float = PATIENCE) -> None:
    """Returns when the condition holds."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came within {seconds} s")
        time.sleep(0.02)


def gated(folder: Path) -> tuple[Model, Gate]:
    """Returns a small classifier behind a gate; its weights are the same in every process."""
    folder.mkdir(parents=True, exist_ok=True)
    gate, generator = Gate(folder), torch.Generator().manual_seed(0)
    network = nn.Sequential(
        gate, nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return Model(network.eval(), Preprocess((32, 32), None), [f"class {k}" for k in range(5)], "gated"), gate


def drilled(folder: Path | None = None, *, raising: int = -1, deadly: int = -1) -> Samples:
    """Returns small scenes. With a file "bad" in the folder, one raises when it is read, and one kills its reader."""
    scenes = samples(f"scenes:{IMAGES},size=64")
    return Samples(scenes.names, partial(_read, scenes, folder, raising, deadly), source="drill")


def _read(scenes: Samples, folder: Path | None, raising: int, deadly: int, index: int) -> Sample:
    if folder is not None and (folder / "bad").exists():
        if index == raising:
            raise MemoryError("a cosmic ray")  # other errors become rows
        if index == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
    return scenes[index]
