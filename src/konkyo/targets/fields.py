"""Fields: a number for every place of the picture, a depth or a density, averaged or summed over a region."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.targets.base import BaseTarget
from konkyo.targets.regions import WHOLE, Mask, Pixel, Region, RegionTarget


@dataclass(frozen=True)
class Depth:
    """This asks for the depth of a part of the picture, as the network estimates it: the mean over the part.

    `where`: a `Region` or a `Pixel` of the picture; None: all of it. `relative`: less the mean of the rest of the
    picture. Networks that know depth up to a factor and an offset estimate nothing but such differences.
    """

    where: Region | Pixel | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if self.where is None and self.relative:
            raise KonkyoError("relative=True compares a part with the rest: Depth(konkyo.Pixel(x, y), relative=True)")


@dataclass(frozen=True)
class Count:
    """This asks for how many things a network of densities counts: the sum of the density over a part of the picture.

    `where`: a `Region` or a `Pixel` of the picture; None: all of it.
    """

    where: Region | Pixel | None = None


@dataclass(frozen=True)
class FieldTarget(BaseTarget):
    """This target is what a field says of a region that stays the same. Output (N, 1, H, W) -> (N,).

    It is the mean over the region, less that of the rest where it is `relative`; or, with `total`, the sum.
    """

    region: RegionTarget
    relative: bool = False
    total: bool = False
    noun: str = "value"
    unit: str = ""

    def __call__(self, output: Tensor) -> Tensor:
        """Returns the mean, difference or sum of every image. KonkyoError: no field, or no rest."""
        if output.ndim != 4 or output.shape[1] != 1:
            raise KonkyoError(f"a field is (N, 1, H, W); the output has shape {tuple(output.shape)}")
        value: Tensor = self.region(output)
        if self.total:
            return value * self.region.weights(tuple(output.shape[2:])).sum().to(value)
        return value - self._rest(tuple(output.shape[2:]))(output) if self.relative else value

    def _rest(self, size: tuple[int, ...]) -> RegionTarget:
        weights = 1 - self.region.weights(size)
        if not bool((weights > 0).any()):
            raise KonkyoError("relative=True needs a rest of the picture; the region is all of it")
        return RegionTarget(0, Mask(weights))

    @property
    def channel(self) -> int:
        """This is the only one."""
        return 0

    def part(self) -> Mask | None:
        """Returns the region; None where it is all of the picture."""
        return self.region.part()

    @property
    def whole(self) -> bool:
        """Returns whether it is about all of the picture."""
        return self.region.region == WHOLE

    def in_words(self, label: str, score: float) -> str:
        """Returns the value with its unit, as in "depth, pixel 12,30: 2.31 m"."""
        sign = "+" if self.relative else ""
        return f"{label}: {score:{sign}.3g}{' ' + self.unit if self.unit else ''}"
