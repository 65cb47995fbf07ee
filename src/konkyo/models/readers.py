"""Readers: how videos, volumes and signals become the input (C, *places) of a network, and how that is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konkyo.data import videos, volumes
from konkyo.data.arrays import pictures_of_array, pictures_of_tensor
from konkyo.data.axes import Coordinates, spacing_of
from konkyo.data.images import upright
from konkyo.errors import ImageError, KonkyoError
from konkyo.models.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Reading:
    """A reading is one input as the network takes it, and where it comes from."""

    values: Tensor
    """(C, *places) float32."""
    name: str
    coordinates: Coordinates
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """A reader makes inputs of files, and shows inputs as colours."""

    def read(self, source: Any) -> list[Reading]:
        """Returns what a file, a folder or a value in memory holds: an input or several. ImageError: none."""

    def undo(self, inputs: Tensor) -> Tensor:
        """Returns inputs (N, C, *places) as they are drawn."""

    def coordinates(self, size: tuple[int, ...], places: tuple[str, ...]) -> Coordinates:
        """Returns where the cells lie of an input that came as a tensor."""


@dataclass(frozen=True)
class Clips:
    """Clips are read from video files, folders of frames, lists of pictures and arrays (T, H, W, 3) of bytes.

    So many `frames` are taken, spread evenly over all of the clip, and `picture` prepares each. `smooth` False: a
    resize takes the nearest four pixels alone, however much it shrinks, as torchvision's presets of videos do.
    """

    frames: int = 16
    picture: Preprocess = field(default_factory=Preprocess)
    smooth: bool = True
    places: ClassVar[tuple[str, ...]] = ("time", "row", "column")

    def __post_init__(self) -> None:
        if not isinstance(self.frames, int) or self.frames < 1:
            raise KonkyoError(f"frames is how many frames of a clip are taken, 1 or more; got {self.frames!r}")

    def read(self, source: Any) -> list[Reading]:
        """Returns the clip of a file, or of a folder of frames; of a folder of videos every one of them."""
        if isinstance(source, (str, Path)):
            path = Path(source)
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in videos.SUFFIXES) if path.is_dir() else []
            if inside:
                return [reading for file in inside for reading in self.read(file)]
            if not path.exists():
                raise ImageError(f"there is no video and no folder of frames {str(path)!r}")
            read = videos.read_folder if path.is_dir() else videos.read_video
            return [self._reading(read(path, self.frames), path.name, str(path))]
        if isinstance(source, Tensor):
            pictures = pictures_of_tensor(source)
        elif isinstance(source, np.ndarray):
            pictures = pictures_of_array(source)
        elif isinstance(source, Sequence) and all(isinstance(item, Image.Image) for item in source) and len(source):
            pictures = [upright(item) for item in source]
        else:
            raise ImageError(
                "a clip is a video file, a folder of frames, a list of pictures, an array (T, H, W, 3) or a tensor (T, "
                f"3, H, W) of bytes; got {type(source).__name__}"
            )
        return [self._reading(videos.of_pictures(pictures, len(pictures), self.frames), "", "")]

    def _reading(self, frames: videos.Frames, name: str, file: str) -> Reading:
        values = self._prepared(frames.pictures)
        step, start = spacing_of(frames.times) if frames.times else (frames.count / len(frames.numbers), 0.0)
        unit = "s" if frames.times else "frame"
        # Every cell of time reaches as far on either side of its frame.
        start = start - step / 2 if frames.times else 0.0
        coordinates = Coordinates(tuple(values.shape[1:]), (step, 1.0, 1.0), (unit, "", ""), (start, 0.0, 0.0), file)
        return Reading(values, name, coordinates, (frames.note,))

    def _prepared(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Returns pictures as the network takes them (C, T, H, W). KonkyoError: frames of several sizes."""
        if len(sizes := {picture.size for picture in pictures}) > 1:
            listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
            raise KonkyoError(f"the frames of a clip have one size; got {listed}")
        if self.smooth or self.picture.resize is None:
            return torch.stack([self.picture(picture) for picture in pictures], 1)
        pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
        height, width = self.picture.resized(pictures[0])
        resized = torch.nn.functional.interpolate(pixels.float(), size=(height, width), mode="bilinear").round()
        top, left, bottom, right = self.picture.cropped_from(height, width)
        colours = resized[..., top:bottom, left:right] / 255
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.picture.mean, self.picture.std))
        return ((colours - mean) / std).transpose(0, 1)

    def undo(self, inputs: Tensor) -> Tensor:
        """Returns clips (N, C, T, H, W) as colours from 0 to 1."""
        shown = self.picture.undo(inputs.transpose(1, 2).flatten(0, 1))
        return shown.view(len(inputs), -1, *shown.shape[1:]).transpose(1, 2)

    def coordinates(self, size: tuple[int, ...], places: tuple[str, ...]) -> Coordinates:
        """Returns counted cells: a tensor says nothing of seconds or millimetres."""
        del places
        return Coordinates(size)


@dataclass(frozen=True)
class Volumes:
    """Volumes are read from NIfTI files and folders of DICOM slices.

    `size`: (D, H, W) voxels that a volume is resampled to; None: its own. `window`: the values that become 0 and 1, as
    (-1000, 400); None: values stay as they are. Then `mean` is taken off, and the rest divided by `std`. `order`: which
    axis of a NIfTI file every place is; (2, 1, 0) puts slices first.
    """

    size: tuple[int, int, int] | None = None
    window: tuple[float, float] | None = None
    mean: float = 0.0
    std: float = 1.0
    order: tuple[int, int, int] = (0, 1, 2)
    places: ClassVar[tuple[str, ...]] = ("depth", "row", "column")

    def __post_init__(self) -> None:
        if sorted(self.order) != [0, 1, 2]:
            raise KonkyoError(f"order says which axis of a file every place is, as in (2, 1, 0); got {self.order}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise KonkyoError(f"a window is (low, high), two values of the file; got {self.window}")
        if not self.std > 0:
            raise KonkyoError(f"std must be positive; got {self.std}")

    def read(self, source: Any) -> list[Reading]:
        """Returns the volume of a file or of a folder of DICOM slices; of a folder of NIfTI files every one of them."""
        if not isinstance(source, (str, Path)):
            raise ImageError(f"a volume is a NIfTI file or a folder of DICOM slices; got {type(source).__name__}")
        path = Path(source)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.name.lower().endswith(volumes.NIFTI))
            if inside:
                return [reading for file in inside for reading in self.read(file)]
            volume = volumes.read_series(path)
        elif path.name.lower().endswith(volumes.NIFTI):
            volume = volumes.read_nifti(path, self.order)
        else:
            raise ImageError(f"a volume is a NIfTI file or a folder of DICOM slices; got {str(path)!r}")
        if self.size is not None:
            volume = volumes.resampled(volume, self.size)
        values = volume.values
        if self.window is not None:
            low, high = self.window
            values = ((values - low) / (high - low)).clamp(0, 1)
        values = (values - self.mean) / self.std
        return [Reading(values[None], path.name, volume.coordinates, volume.notes)]

    def undo(self, inputs: Tensor) -> Tensor:
        """Returns volumes as greys from 0 to 1: those of the window, or from the lowest to the highest value."""
        values = inputs.float() * self.std + self.mean
        if self.window is not None:
            return values.clamp(0, 1)
        flat = values.flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        shape = (-1, *[1] * (values.ndim - 1))
        return (values - low.view(shape)) / (high - low).clamp_min(1e-12).view(shape)

    def coordinates(self, size: tuple[int, ...], places: tuple[str, ...]) -> Coordinates:
        """Returns counted cells: a tensor says nothing of seconds or millimetres."""
        del places
        return Coordinates(size)


@dataclass(frozen=True)
class Signals:
    """Signals are read from .npy files of floats, whose axes are those of one input of the network.

    `rate`: samples per second (or frames of a spectrogram), None where time is counted; `leads`: the channels' names.
    """

    rate: float | None = None
    leads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise KonkyoError(f"rate is a number of samples per second; got {self.rate}")

    def read(self, source: Any) -> list[Reading]:
        """Returns the signal of a file. It is in the network's axes; see `konkyo.Model`."""
        raise ImageError(f"a signal is a .npy file of floats, an array or a tensor; got {source!r}")

    def undo(self, inputs: Tensor) -> Tensor:
        """Returns the signals as they are."""
        return inputs

    def coordinates(self, size: tuple[int, ...], places: tuple[str, ...]) -> Coordinates:
        """Returns seconds along time, or along the only place; what else there is, is counted."""
        clock = [self.rate is not None and (name == "time" or len(places) == 1) for name in places]
        step = tuple(1 / self.rate if timed and self.rate else 1.0 for timed in clock)
        return Coordinates(size, step, tuple("s" if timed else "" for timed in clock), channels=self.leads)
