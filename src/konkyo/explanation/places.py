"""Explanations of videos, volumes, signals and spectrograms: their pictures, and files that programs of theirs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from konkyo.data.axes import Coordinates
from konkyo.errors import KonkyoError
from konkyo.utils.tensors import min_max, resize

if TYPE_CHECKING:
    from konkyo.explanation.result import Explanation

_CLIP, _VOLUME, _PLANES = ("time", "row", "column"), ("depth", "row", "column"), ("x", "y", "z")
_LONGEST = 8.0
"""So many seconds an animation lasts, at most."""


def is_picture(result: Explanation) -> bool:
    """Tells whether the maps lie on pictures."""
    return set(result.places) <= {"row", "column"} and result.signed.ndim == 3


def overlay_of(result: Explanation, row: int, style: dict[str, Any]) -> Image.Image:
    """Returns a row's map over its video, volume, signal or spectrogram. KonkyoError: of other places."""
    from konkyo.draw import clips, signals, volumes  # pictures are drawn only when asked for

    where, values = coordinates_of(result, row), _values(result, row)
    map_ = resize(result.maps[row : row + 1], where.size)[0].detach().cpu().float()
    style = {key: value for key, value in style.items() if key in ("limits", "cmap", "opacity", "signed")}
    limits = style.get("limits")
    if result.places == _CLIP:
        return clips.strip(_frames(values), map_, _centres(where, 0), where.units(0), **style)
    if result.places == _VOLUME:
        steps = where.step or (1.0,) * 3
        return volumes.montage(values.mean(0), map_, steps, where.units(0), _planes(where), **style)
    if len(result.places) == 1:
        step = where.step[0] if where.step else 1.0
        return signals.signal(values, map_, step, where.units(0), where.channels, limits)
    if set(result.places) == {"time", "frequency"}:
        time = result.places.index("time")
        step = where.step[time] if where.step else 1.0
        sound, strong = (values.mean(0), map_) if time == 1 else (values.mean(0).T, map_.T)
        return signals.spectrogram(sound, strong, step, where.units(time), limits)
    grid = "x".join(map(str, result.signed.shape[1:]))
    named = f" of the places {', '.join(result.places)}" if result.places else ""
    raise KonkyoError(f"maps {grid}{named} have no picture; `maps` are tensors")


def coordinates_of(result: Explanation, row: int) -> Coordinates:
    """Returns where the cells of a row's input lie; counted cells of the map where nothing else is known."""
    if result.coordinates:
        return result.coordinates[row]
    images = result.images
    size = tuple(images.shape[2:]) if isinstance(images, Tensor) else tuple(result.signed.shape[1:])
    return Coordinates(size)


def over_time(result: Explanation, row: int) -> list[tuple[float, float, float]]:
    """Returns (from, to, evidence) of every cell of time of a row's map, in the unit of its coordinates.

    The evidence is the mean of the map over all other places. KonkyoError: a map without time.
    """
    axis = next((i for i, name in enumerate(result.places) if name in ("time", "position")), None)
    if axis is None:
        raise KonkyoError(f"a map of {' x '.join(result.places) or 'places that have no names'} has no time")
    map_, where = result.maps[row].movedim(axis, 0), coordinates_of(result, row)
    values = map_.reshape(len(map_), -1).mean(1).tolist()
    return [(*where.interval(axis, cell, len(map_)), value) for cell, value in enumerate(values)]


def save(result: Explanation, path: Path) -> Path | None:
    """Writes a .gif or .mp4 of a video, or a NIfTI or DICOM file of a volume; None: another suffix.

    KonkyoError: several rows, or a map of other places than the file's.
    """
    name = path.name.lower()
    kinds = ((".gif", ".mp4"), _CLIP), ((".nii", ".nii.gz"), _VOLUME), ((".dcm",), _VOLUME)
    for suffixes, places in kinds:
        if name.endswith(suffixes):
            if result.places != places:
                came = ", ".join(result.places) or "no names"
                raise KonkyoError(f"{path.name} takes a map of the places {', '.join(places)}; these have {came}")
            if len(result) != 1:
                raise KonkyoError(f"{path.name} takes one map; got {len(result)}: result[0].save({path.name!r})")
            path.parent.mkdir(parents=True, exist_ok=True)
            return (_save_clip if places == _CLIP else _save_volume)(result, path)
    return None


def export_suffix(result: Explanation, row: int) -> str:
    """Returns the suffix of the file that other programs read of a row: .gif, .nii.gz, .dcm; "" where there is none."""
    if result.places == _CLIP:
        return ".gif"
    if result.places != _VOLUME:
        return ""
    where = coordinates_of(result, row)
    return ".nii.gz" if where.header else ".dcm" if where.affine else ""


def _save_clip(result: Explanation, path: Path) -> Path:
    """Writes a row as an animation that runs as fast as its video, but lasts no longer than some seconds."""
    from konkyo.data.videos import write_video
    from konkyo.draw.clips import animation

    where = coordinates_of(result, 0)
    map_ = resize(result.maps[:1], where.size)[0].detach().cpu().float()
    pictures = animation(_frames(_values(result, 0)), map_)
    step = where.step[0] if where.step and where.units(0) == "s" else 0.25
    step = min(max(step, 0.05), _LONGEST / len(pictures))
    if path.suffix.lower() == ".mp4":
        return write_video(path, pictures, 1 / step)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(step * 1000), loop=0)
    return path


def _save_volume(result: Explanation, path: Path) -> Path:
    """Writes a row's map as a NIfTI file in the space of its volume, or its slices as a DICOM secondary capture."""
    from konkyo.data import volumes

    where = coordinates_of(result, 0)
    description = f"konkyo {result.method}"
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return volumes.write_secondary_capture(path, _slices(result, where), where.file, description)
    if not where.affine:
        raise KonkyoError(
            "a NIfTI file lies in the space of the volume that was explained; this one came as a tensor: explain the "
            "file, as in konkyo.explain(model, 'scan.nii.gz')"
        )
    size = tuple(where.shape[axis] for axis in where.order)
    return volumes.write_nifti(path, resize(result.maps[:1], size)[0], where, description)


def _slices(result: Explanation, where: Coordinates) -> list[Image.Image]:
    """Returns every slice of a volume with its map over it, on one scale, in the pixels of its file."""
    from konkyo.draw.clips import shared_limits
    from konkyo.draw.overlay import overlay

    size = tuple(where.shape[axis] for axis in where.order) if where.shape else where.size
    greys = resize(_values(result, 0).mean(0)[None].float(), size)[0].clamp(0, 1)
    map_ = resize(result.maps[:1], size)[0].detach().cpu().float()
    limits, pictures = shared_limits(map_), (greys * 255).round().byte().cpu().numpy()
    return [
        overlay(Image.fromarray(grey).convert("RGB"), part, limits=limits)
        for grey, part in zip(pictures, map_, strict=True)
    ]


def _values(result: Explanation, row: int) -> Tensor:
    """Returns what is drawn below a row's map (C, *size); nothing where the input is not known."""
    if not isinstance(result.images, Tensor):
        return torch.full((1, *coordinates_of(result, row).size), 0.6)
    values = result.images[int(result.image_index[row])].detach().cpu().float()
    is_picture = result.places in (_CLIP, _VOLUME)
    return min_max(values[None])[0] if is_picture and (values.amin() < 0 or values.amax() > 1) else values


def _frames(values: Tensor) -> list[Image.Image]:
    """Returns colours (C, T, H, W) from 0 to 1 as pictures; of other numbers of channels than 3 their mean."""
    colours = values if values.shape[0] == 3 else values.mean(0, keepdim=True).expand(3, *values.shape[1:])
    pixels = (colours.clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0).contiguous().numpy()
    return [Image.fromarray(frame) for frame in pixels]


def _centres(where: Coordinates, place: int) -> list[float]:
    """Returns the middle of every cell along a place, in its unit; of counted cells their numbers."""
    count = where.size[place]
    if not where.units(place):
        return [float(cell) for cell in range(count)]
    return [sum(where.interval(place, cell, count)) / 2 for cell in range(count)]


def _planes(where: Coordinates) -> Sequence[str]:
    """Returns what the slices across every place are called: by the body's axes where the file says where they lie."""
    if not where.affine:
        return [f"across {name}" for name in ("depth", "rows", "columns")]
    directions = torch.tensor(where.affine)[:3, :3].abs()
    named = ("sagittal", "coronal", "axial")
    return [named[int(directions[:, axis].argmax())] for axis in where.order]
