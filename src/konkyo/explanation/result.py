"""Explanation: a frozen batch of maps, one row per (image, target), with what made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from konkyo.data.images import upright
from konkyo.engine.path import PathTrace
from konkyo.errors import KonkyoError, unknown
from konkyo.explanation.diagnosis import Diagnosis
from konkyo.explanation.stored import require_file, require_fitting
from konkyo.targets.base import Target
from konkyo.tasks import TASKS
from konkyo.tasks.decision import Decision
from konkyo.utils.files import parse_json, replacing
from konkyo.utils.tensors import min_max, resize

if TYPE_CHECKING:
    from collections.abc import Callable

    from konkyo.draw.overlay import Brightness

_TENSORS = ("signed", "scores", "image_index", "boxes", "regions")
_LISTS = ("targets", "labels", "diagnosis", "decisions", "names", "true_labels")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of one method at one layer. R rows: every image with every one of its targets, images in order."""

    signed: Tensor
    """(R, *grid) fp32, at the layer's resolution, before the ReLU where the method ends in one."""
    rectified: bool
    """Whether the method ends in a ReLU."""
    scores: Tensor
    """(R,) the explained scores."""
    image_index: Tensor
    """(R,) int64: which image a row belongs to."""
    targets: tuple[Target | str, ...]
    """What was explained, a row each (a string for a target of one's own that was loaded from a file)."""
    labels: tuple[str, ...]
    """What the targets are called."""
    method: str
    layer: str
    """Name of the layer; several fused ones are joined by "+"."""
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    diagnosis: tuple[Diagnosis, ...] = ()
    """Whether each row's map is meaningful, and what would help."""
    decisions: tuple[Decision | None, ...] = ()
    """What the model itself decided, a row each, beside the asked target; None where that is of no classes."""
    boxes: Tensor | None = None
    """(R, 4) xyxy pixels where a row explains a detection."""
    path: PathTrace | None = None
    """What happened along the path, of methods that integrate over one: nodes, priorities, scores, matched boxes."""
    regions: Tensor | None = None
    """(R, 4) the part of the map that lies on the picture, xyxy as shares of its width and height; None: all of it.
    The rest lies on the border around a picture that was fitted into the model's input."""
    names: tuple[str, ...] = ()
    """What the image of every row is called, its file's name as a rule; empty where nothing is known of names."""
    true_labels: tuple[str | None, ...] = ()
    """The class that the image of every row really has, as its data set says; empty where nothing is known of it."""
    assumptions: tuple[str, ...] = ()
    """What was not told but assumed: a sentence each, which says how to tell it."""
    images: tuple[Image.Image, ...] | Tensor | None = None
    """What the model saw: pictures, or a tensor (N, 1 or 3, H, W), drawn as it is if it lies in [0, 1]. Not saved."""

    @property
    def maps(self) -> Tensor:
        """Returns the maps (R, *grid) as the method defines them, unscaled: `signed`, after its ReLU if any."""
        return self.signed.relu() if self.rectified else self.signed

    @property
    def correct(self) -> tuple[bool | None, ...]:
        """Tells of every row whether the model decided on its image's true label; None where that cannot be said.

        That is where the true label or the decision is not known, and of detections.
        """
        if not self.true_labels or not self.decisions or self.boxes is not None:
            return (None,) * len(self)
        pairs = zip(self.decisions, self.true_labels, strict=True)
        return tuple(None if decision is None else decision.is_right(label) for decision, label in pairs)

    def __len__(self) -> int:
        return len(self.signed)

    def of_image(self, index: int) -> Explanation:
        """Returns the rows of one image, as if it had been explained alone."""
        rows = (self.image_index == index).nonzero()[:, 0].tolist()
        tensors = {name: t[rows] for name in _TENSORS if (t := getattr(self, name)) is not None}
        lists = {name: tuple(values[r] for r in rows) for name in _LISTS if (values := getattr(self, name))}
        alone = {
            "image_index": torch.zeros_like(self.image_index[rows]),
            "path": None if self.path is None else self.path.of(rows).trimmed(),
            "images": None if self.images is None else self.images[index : index + 1],
        }
        return replace(self, **tensors | lists | alone)

    def at(self, size: Sequence[int]) -> Tensor:
        """Returns the maps enlarged linearly to their pictures' size (cell centres stay in place): (R, *size)."""
        return self._placed(self.maps, self._sized(size))

    def unit(self, size: Sequence[int] | None = None) -> Tensor:
        """Returns the maps scaled to [0, 1]; a constant map becomes zeros.

        Where a size is given, they are enlarged first.
        """
        scaled = min_max(self.maps)  # before enlarging, whose rounding a constant map must not show
        return scaled if size is None else min_max(self._placed(scaled, self._sized(size)))

    def _placed(self, maps: Tensor, size: tuple[int, ...]) -> Tensor:
        if self.regions is None:
            return resize(maps, size)
        placed = []
        for map_, (left, top, right, bottom) in zip(maps, self.regions.tolist(), strict=True):
            tall, wide = round(size[0] / (bottom - top)), round(size[1] / (right - left))
            y, x = round(top * tall), round(left * wide)
            placed.append(resize(map_[None], (tall, wide))[0, y : y + size[0], x : x + size[1]])
        return torch.stack(placed) if placed else maps.new_zeros(0, *size)

    def _sized(self, size: Sequence[int]) -> tuple[int, ...]:
        axes = self.signed.ndim - 1
        if not isinstance(size, Sequence) or len(size) != axes or min(size) < 1:
            raise KonkyoError(f"a size is {axes} positive numbers of pixels, one per axis of the map; got {size!r}")
        return tuple(size)

    def picture(self, row: int) -> Image.Image:
        """Returns the picture that a row explains, as the model saw it. KonkyoError where it is not known."""
        index = int(self.image_index[row])
        if self.images is None:
            raise KonkyoError("this explanation was loaded from a file, which keeps no pictures; pass image=")
        if isinstance(self.images, Tensor):
            colours = self.images[index].float()
            if colours.ndim != 3 or colours.shape[0] not in (1, 3):
                raise KonkyoError(f"only images (1 or 3, H, W) can be drawn; got {tuple(colours.shape)}; pass image=")
            if colours.amin() < 0 or colours.amax() > 1:  # normalised by means that nobody told
                colours = min_max(colours[None])[0]
            pixels = (colours.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            return Image.fromarray(pixels)
        return self.images[index]

    def brightness(self, row: int, how: str = "probability") -> float:
        """Returns how bright a row's map is drawn, of 1: see `Decision.brightness`; "full" gives all maps 1."""
        if how not in (offer := ("probability", "full")):
            raise unknown("brightness", how, offer)
        decision = self.decisions[row] if self.decisions else None
        return 1.0 if how == "full" or decision is None else decision.brightness

    def overlay(
        self,
        row: int = 0,
        *,
        image: Image.Image | None = None,
        outline: float | None = None,
        brightness: Brightness = "probability",
        **style: Any,
    ) -> Image.Image:
        """Returns the map drawn over its picture. `style`: see `konkyo.draw.overlay.overlay`.

        `outline`: with a box around the largest part above that share of the map's range (0.2: as CAM localises).
        `brightness`: a map is as pale as its target is improbable, or "full"; an `opacity` in `style` goes before it.
        """
        from konkyo.draw.overlay import OPACITY, boxed, overlay  # pictures are drawn only when asked for
        from konkyo.metrics.wsol import boxes_of

        if not -len(self) <= row < len(self):
            raise KonkyoError(f"row {row} of an explanation with {len(self)} rows")
        picture = self.picture(row) if image is None else upright(image)
        map_ = self.maps[row] if self.regions is None else self.at((picture.height, picture.width))[row]
        overlaid = overlay(picture, map_, **{"opacity": OPACITY * self.brightness(row, brightness), **style})
        if outline is not None:
            for box in boxes_of(self.at((picture.height, picture.width))[row], outline)[:1].tolist():
                overlaid = boxed(overlaid, box)
        return overlaid if self.boxes is None else boxed(overlaid, self.boxes[row].tolist())

    # --- on disk ------------------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """Returns everything but the tensors, as plain JSON values."""
        return {
            "konkyo": 1,
            "model": self.model,
            "method": self.method,
            "layer": self.layer,
            "rectified": self.rectified,
            "options": {k: v if isinstance(v, (int, float, str, bool)) else repr(v) for k, v in self.options.items()},
            "seed": self.seed,
            "labels": list(self.labels),
            "targets": [_target_to_json(t) for t in self.targets],
            "diagnosis": [{"kind": d.kind, "message": d.message} for d in self.diagnosis],
            "decisions": [None if d is None else asdict(d) for d in self.decisions],
            "names": list(self.names),
            "true_labels": list(self.true_labels),
            "assumptions": list(self.assumptions),
        }

    def save(self, path: str | Path) -> Path:
        """Writes tensors and description to a .safetensors or .npz file, under a temporary name first. -> the path"""
        path = Path(path)
        tensors = {name: getattr(self, name) for name in _TENSORS}
        if self.path is not None:
            tensors |= {f"path.{f.name}": getattr(self.path, f.name) for f in fields(PathTrace)}
        tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items() if t is not None}
        text = json.dumps(self.description())
        writers: dict[str, Callable[[Path], Any]] = {
            ".safetensors": lambda to: save_file(tensors, to, metadata={"konkyo": text}),
            ".npz": lambda to: _save_npz(to, tensors, text),
        }
        if path.suffix not in writers:
            raise KonkyoError(f"explanations are saved as {' or '.join(writers)}; got {path.name!r}")
        try:
            with replacing(path) as temporary:
                writers[path.suffix](temporary)
        except SafetensorError as error:
            raise KonkyoError(f"{path} cannot be written: {error}") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Returns an explanation from `save`, on the CPU, without its pictures.

        KonkyoError: not such a file, or one whose parts do not fit each other.
        """
        path = Path(path)
        try:
            require_file(path)
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    text = (file.metadata() or {})["konkyo"]
            else:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                    tensors = {n: torch.from_numpy(archive[n]) for n in archive.files if n != "konkyo"}
                    text = str(archive["konkyo"])
            values = parse_json(text)
            require_fitting(tensors, values)
            trace = {f.name: tensors.pop(f"path.{f.name}") for f in fields(PathTrace) if f"path.{f.name}" in tensors}
            values["path"] = PathTrace(**trace) if trace else None
            values["targets"] = tuple(_target_from_json(t) for t in values["targets"])
            values["diagnosis"] = tuple(Diagnosis(**d) for d in values["diagnosis"])
            values["decisions"] = tuple(None if d is None else Decision(**d) for d in values.get("decisions", ()))
            values |= {name: tuple(values.get(name, ())) for name in ("labels", "names", "true_labels", "assumptions")}
            known = {f.name for f in fields(cls)}
            return cls(**{k: v for k, v in values.items() if k in known}, **tensors)
        except Exception as error:  # damaged archives fail in every possible way
            raise KonkyoError(f"{path} is no saved explanation: {error}") from error


def joined(parts: Sequence[Explanation]) -> Explanation:
    """Returns the rows of several explanations by one method, each of images of its own, as one explanation."""
    values: dict[str, Any] = {}
    for f in fields(Explanation):
        of_parts = [getattr(part, f.name) for part in parts]
        if f.name == "image_index":
            of_parts = [index + at for at, index in enumerate(of_parts)]
        if f.name == "assumptions":
            values[f.name] = tuple(dict.fromkeys(sentence for part in of_parts for sentence in part))
        elif all(isinstance(value, Tensor) for value in of_parts):
            values[f.name] = torch.cat(of_parts)
        elif all(isinstance(value, tuple) for value in of_parts):
            values[f.name] = tuple(entry for part in of_parts for entry in part)
        elif all(isinstance(value, PathTrace) for value in of_parts):
            values[f.name] = _joined_paths(of_parts)
        else:
            values[f.name] = next((value for value in of_parts if value is not None), None)
    return Explanation(**values)


def _joined_paths(parts: Sequence[PathTrace]) -> PathTrace:
    """Returns the paths of all parts, filled up with NaN to the longest."""

    def filled(name: str) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        longest = max(t.shape[1] for t in tensors)
        return torch.cat(
            [torch.cat([t, t.new_full((len(t), longest - t.shape[1], *t.shape[2:]), torch.nan)], 1) for t in tensors]
        )

    return PathTrace(**{f.name: filled(f.name) for f in fields(PathTrace)})


def _save_npz(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    with path.open("wb") as file:  # a file object, so that numpy keeps the temporary name
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez_compressed(file, konkyo=np.array(text), **arrays)


def _target_to_json(target: Target | str) -> Any:
    """Returns a target as its task saves it; of one that no task saves, the name."""
    if isinstance(target, str):
        return target
    saved = (kind.saved(target) for kind in TASKS.values())
    return next((values for values in saved if values is not None), getattr(target, "__name__", repr(target)))


def _target_from_json(value: Any) -> Target | str:
    if not isinstance(value, dict):
        return str(value)
    targets = (kind.restored(value) for kind in TASKS.values())
    target = next((target for target in targets if target is not None), None)
    if target is None:
        raise KonkyoError(f"no task knows a target with {', '.join(value)}")
    return target
