"""Axes: what the axes of a network's input are, as in "NTCHW", and where the cells of one input lie in the world."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from torch import Tensor

from konkyo.errors import KonkyoError

PLACES = {"T": "time", "D": "depth", "H": "row", "W": "column", "L": "position", "F": "frequency"}
"""The names of the places of an input, by the letter of their axis."""
USUAL = {3: "NCL", 4: "NCHW", 5: "NCDHW"}
"""What the axes are where nothing is said and the channels come first, by their number."""


@dataclass(frozen=True)
class Axes:
    """Axes say what the axes of a network's input are: N images, C channels, and places in any order.

    konkyo itself holds inputs as (N, C, *places), the places in the order in which they are declared. KonkyoError: a
    letter that is not known or comes twice, no N, no place or more than three.

    >>> Axes("NTCHW").places
    ('time', 'row', 'column')
    """

    text: str

    def __post_init__(self) -> None:
        offer = ", ".join(f"{letter} {name}" for letter, name in PLACES.items())
        if not isinstance(self.text, str) or not set(self.text) <= {"N", "C", *PLACES}:
            raise KonkyoError(f"axes are letters as in 'NTCHW': N images, C channels, {offer}; got {self.text!r}")
        if len(set(self.text)) < len(self.text) or "N" not in self.text or not 1 <= len(self.places) <= 3:
            raise KonkyoError(
                f"axes have one N, at most one C, and one to three places, each once ({offer}); got {self.text!r}"
            )

    @property
    def places(self) -> tuple[str, ...]:
        """Returns the names of the places, in their order."""
        return tuple(PLACES[letter] for letter in self.text if letter in PLACES)

    @property
    def reordered(self) -> bool:
        """Tells whether the network takes its input in another order than (N, C, *places)."""
        return self.text[:2] != "NC"

    def inside(self, inputs: Tensor) -> Tensor:
        """Returns inputs in the network's axes as (N, C, *places); one channel where the network has none.

        KonkyoError: another number of axes.
        """
        if inputs.ndim != len(self.text):
            raise KonkyoError(
                f"inputs have the axes {self.text} ({', '.join(self.text)}); got the shape {tuple(inputs.shape)}"
            )
        if not self.reordered:
            return inputs
        order = [self.text.index("N"), *([self.text.index("C")] if "C" in self.text else [])]
        order += [index for index, letter in enumerate(self.text) if letter in PLACES]
        laid = inputs.permute(order)
        return laid if "C" in self.text else laid[:, None]

    def outside(self, inputs: Tensor) -> Tensor:
        """Returns inputs (N, C, *places) in the network's axes. KonkyoError: several channels where it has none."""
        if not self.reordered:
            return inputs
        if "C" not in self.text:
            if inputs.shape[1] != 1:
                raise KonkyoError(f"a network of the axes {self.text} has one channel; got {inputs.shape[1]}")
            inputs = inputs[:, 0]
        letters = ["N", *(["C"] if "C" in self.text else []), *(letter for letter in self.text if letter in PLACES)]
        return inputs.permute([letters.index(letter) for letter in self.text])


@dataclass(frozen=True)
class Coordinates:
    """Coordinates say where the cells of one input (C, *size) lie in the world: in seconds, millimetres, samples.

    The cell of index i along a place covers start + step * i to start + step * (i + 1) of its unit.
    """

    size: tuple[int, ...]
    """How many cells the input has along its places."""
    step: tuple[float, ...] = ()
    """How wide a cell is along each place; () for 1."""
    unit: tuple[str, ...] = ()
    """What that is measured in, as "s" or "mm"; "" for counted cells. () for counted cells alone."""
    start: tuple[float, ...] = ()
    """Where the first cell begins; () for 0."""
    file: str = ""
    """The path of the file that the input was read from, or the folder of a series."""
    affine: tuple[tuple[float, ...], ...] = ()
    """Of a volume: from the indices of a voxel of the file to millimetres in the world, (4, 4)."""
    shape: tuple[int, ...] = ()
    """Of a volume: how many voxels the file has, along the axes as it stores them."""
    order: tuple[int, ...] = ()
    """Of a volume: which axis of the file every place of the input is."""
    header: str = ""
    """Of a NIfTI file: its header, as hexadecimal digits."""
    channels: tuple[str, ...] = ()
    """What the channels are called, as the leads of an ECG."""

    def interval(self, place: int, cell: int, cells: int) -> tuple[float, float]:
        """Returns from where to where a cell of a map reaches, of so many cells along a place, in the place's unit.

        >>> Coordinates((16,), (0.04,), ("s",)).interval(0, 1, 8)
        (0.08, 0.16)
        """
        step = self.step[place] if self.step else 1.0
        start = self.start[place] if self.start else 0.0
        width = step * self.size[place] / cells
        return round(start + cell * width, 9), round(start + (cell + 1) * width, 9)

    def units(self, place: int) -> str:
        """Returns what a place is measured in; "" for counted cells."""
        return self.unit[place] if self.unit else ""

    def __str__(self) -> str:
        steps = self.step or (1.0,) * len(self.size)
        units = self.unit or ("",) * len(self.size)
        return " x ".join(
            f"{n} of {step:g} {unit}".strip() for n, step, unit in zip(self.size, steps, units, strict=True)
        )


def spacing_of(times: Sequence[float]) -> tuple[float, float]:
    """Returns (step, start) of frames that were shown at these times, in seconds; of a single one (0, its time)."""
    steps = [after - before for before, after in pairwise(times)]
    step = math.fsum(steps) / len(steps) if steps else 0.0
    return step, times[0] if times else 0.0


def coordinates_of(values: Mapping[str, Any]) -> Coordinates:
    """Returns the coordinates that a file holds as plain values. ValueError: something else."""
    known = {f.name: values[f.name] for f in fields(Coordinates) if f.name in values}
    listed: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    if "affine" in listed:
        listed["affine"] = tuple(tuple(map(float, row)) for row in listed["affine"])
    where = Coordinates(**listed)
    count = len(where.size)
    numbers = [n for numbers in (where.size, where.step, where.start, where.shape, where.order) for n in numbers]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise ValueError(f"coordinates are finite numbers; got {str(values)[:80]}")
    if any(len(part) not in (0, count) for part in (where.step, where.start, where.unit)) or not where.size:
        raise ValueError(f"coordinates have a number per place; got {str(values)[:80]}")
    if not all(isinstance(text, str) for text in (*where.unit, *where.channels, where.file, where.header)):
        raise ValueError(f"coordinates have names in words; got {str(values)[:80]}")
    return where
