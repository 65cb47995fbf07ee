"""Pickles that do something when they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
