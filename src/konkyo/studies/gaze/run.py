"""One training of a study of gaze consistency, as its folder holds it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.evaluation.consistency import Consistency
from konkyo.studies.base import MAPS
from konkyo.studies.reports import read_test_maps
from konkyo.training.loop import EPOCHS, read_epochs
from konkyo.training.recipe import Numbers

MEASURED: Mapping[str, str] = {
    "accuracy": "accuracy",
    "kappa": "kappa",
    "L": "value",
    "rms": "rms",
    "wt": "ratio",
    "coverage": "coverage",
}
"""What the tables have of the test set: column -> field of `Consistency`."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training: its epochs and, where it is finished, its test."""

    level: int
    strength: float
    """lambda"""
    seed: int
    epochs: tuple[Numbers, ...]
    test: Consistency | None
    """None: not finished."""
    maps: Tensor | None
    """(P, h, w) raw, of the study's pictures."""

    def value(self, column: str) -> float:
        """Returns a number of the test set, named as in `MEASURED`; NaN of a run that is not finished."""
        return math.nan if self.test is None else float(getattr(self.test, MEASURED[column]))

    @property
    def name(self) -> str:
        """Returns the name of the run in sentences."""
        return f"level {self.level}, λ = {self.strength:g}, seed {self.seed}"


def read_runs(folder: Path, pictures: int) -> Iterator[Run]:
    """The runs in the folder of a study with so many test pictures. KonkyoError: a file that cannot be read."""
    for path in folder.glob(f"level-*/lambda_*/seed_*/{EPOCHS}"):
        home = path.parent
        parts = [home.parent.parent.name, home.parent.name, home.name]
        try:
            level, strength, seed = (float(re.split("[-_]", part, maxsplit=1)[1]) for part in parts)
        except ValueError:
            raise KonkyoError(f"{home}: level-NUMBER/lambda_NUMBER/seed_NUMBER was expected") from None
        finished = (home / "test" / "consistency.json").is_file()  # written last
        maps = read_test_maps(home, pictures) if finished and (home / MAPS).is_file() else None
        test = Consistency.load(home / "test") if finished else None
        yield Run(int(level), strength + 0.0, int(seed), tuple(read_epochs(path)), test, maps)
