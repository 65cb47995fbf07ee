"""Explanation: a frozen batch of maps, one row per (image, target), with what made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from konkyo.data.arrays import picture_of_colours
from konkyo.data.axes import Coordinates
from konkyo.data.images import upright
from konkyo.engine.path import PathTrace
from konkyo.errors import KonkyoError, unknown
from konkyo.explanation import display, exports, files, places
from konkyo.explanation.diagnosis import Diagnosis
from konkyo.explanation.exports import THRESHOLD
from konkyo.explanation.rows import TENSORS, Rows, numbers_of, row_number, selected
from konkyo.targets.base import Target, as_target
from konkyo.tasks.decision import Decision
from konkyo.tasks.responses import Passage
from konkyo.utils.tensors import min_max, resize

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import supervision
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from konkyo.draw.overlay import Brightness


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
    questions: tuple[str | None, ...] = ()
    """What the model was asked about the image of every row; empty of models that read no question."""
    boxes: Tensor | None = None
    """(R, 4) xyxy pixels where a row explains a detection."""
    path: PathTrace | None = None
    """What happened along the path, of methods that integrate over one: nodes, priorities, scores, matched boxes."""
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    """(R,) each: what the method itself knows of every map, by name, as the gap of a sum that should be the score."""
    regions: Tensor | None = None
    """(R, 4) the part of the map that lies on the picture, xyxy as shares of its width and height; None: all of it.
    The rest lies on the border around a picture that was fitted into the model's input."""
    names: tuple[str, ...] = ()
    """What the image of every row is called, its file's name as a rule; empty where nothing is known of names."""
    true_labels: tuple[str | None, ...] = ()
    """The class that the image of every row really has, as its data set says; empty where nothing is known of it."""
    passages: tuple[Passage | None, ...] = ()
    """The words that every row explains, in the answer that they are of; empty where none is in words."""
    assumptions: tuple[str, ...] = ()
    """What was not told but assumed: a sentence each, which says how to tell it."""
    images: tuple[Image.Image, ...] | Tensor | None = None
    """What the model saw: pictures, or a tensor (N, C, *places), drawn as it is if it lies in [0, 1]. Not saved."""
    places: tuple[str, ...] = ()
    """What the axes of a map are, in order, as "time", "row" and "column"; () where that is not known."""
    coordinates: tuple[Coordinates, ...] = ()
    """Where the cells of every row's input lie in the world: seconds, millimetres; empty for pictures."""

    absences: Mapping[int, str] = field(default_factory=dict)
    """Why an image has no row, by its index: nothing of what was asked for was detected. Not saved."""

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

    def __iter__(self) -> Iterator[Explanation]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: Rows) -> Explanation:
        """Returns some of the rows as an explanation: `[0]`, `[2:5]`, `["cat"]` (or an image's name), `[mask]`.

        NoSuchRow (an IndexError), NoSuchName (a KeyError): there is none. Tensors are views where they can be.
        """
        return selected(self, numbers_of(self, rows))

    def of_image(self, index: int) -> Explanation:
        """Returns the rows of one image, as if it had been explained alone."""
        return selected(self, (self.image_index == index).nonzero()[:, 0].tolist(), [index])

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
            return picture_of(self.images[index])
        return self.images[index]

    def part(self, row: int) -> Tensor | None:
        """Returns the region of the picture whose output a row explains, weights (h, w) from 0 to 1.

        None: the row is of no dense output, or of all of it.
        """
        target = self.targets[row]
        region = None if isinstance(target, str) else as_target(target).part()
        if region is None or region.weights.ndim != 2:
            return None
        weights = region.weights
        if self.regions is None:
            return weights
        left, top, right, bottom = self.regions[row].tolist()
        tall, wide = (4 * side for side in weights.shape)  # of a picture with a border, without the border
        cut = region.at((tall, wide))[
            round(top * tall) : round(bottom * tall), round(left * wide) : round(right * wide)
        ]
        return cut if cut.numel() else None

    def over_time(self, row: int = 0) -> list[tuple[float, float, float]]:
        """Returns (from, to, evidence) of every cell of time of a video's, signal's or spectrogram's map.

        In seconds where the input has a clock, else in frames or samples. The evidence is the map's mean over all
        other places. KonkyoError: a map without time.
        """
        return places.over_time(self, row_number(self, row))

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
        caption: bool | str = False,
        **style: Any,
    ) -> Image.Image:
        """Returns the map drawn over its picture. `style`: see `konkyo.draw.overlay.overlay`.

        `outline`: with a box around the largest part above that share of the map's range (0.2: as CAM localises).
        `brightness`: a map is as pale as its target is improbable, or "full"; an `opacity` in `style` goes before it.
        `caption`: a strip below with class, score, decision, method and diagnosis (True), or with a text of your own.
        Of a video it is a strip of frames over the curve of evidence, of a volume slices in three planes, of a signal
        its curves coloured; `limits` and `cmap` are the style of these.
        """
        from konkyo.draw.overlay import OPACITY, boxed, outlined, overlay  # pictures are drawn only when asked for
        from konkyo.metrics.wsol import boxes_of

        row = row_number(self, row)
        if not places.is_picture(self):
            drawing = places.overlay_of(self, row, style)
            return display.captioned(self, row, drawing, caption) if caption else drawing
        picture = self.picture(row) if image is None else upright(image)
        map_ = self.maps[row] if self.regions is None else self.at((picture.height, picture.width))[row]
        overlaid = overlay(picture, map_, **{"opacity": OPACITY * self.brightness(row, brightness), **style})
        if outline is not None:
            for box in boxes_of(self.at((picture.height, picture.width))[row], outline)[:1].tolist():
                overlaid = boxed(overlaid, box)
        overlaid = overlaid if self.boxes is None else boxed(overlaid, self.boxes[row].tolist())
        part = self.part(row)
        overlaid = overlaid if part is None else outlined(overlaid, part)
        return display.captioned(self, row, overlaid, caption) if caption else overlaid

    def sheet(
        self,
        path: str | Path | None = None,
        *,
        page: int = 1,
        title: str | None = None,
        brightness: Brightness = "probability",
    ) -> Image.Image:
        """Returns the contact sheet: every row's picture with its map, and what is said of it; 40 rows a page.

        `path`: the file that it is written to, as well; further pages are beside it, as in `sheet-2.png`. `page`: the
        one that is returned. `title`: None for method, layer and model. KonkyoError: no rows, or no such page.
        """
        from konkyo.explanation.sheet import sheet  # pictures are drawn only when a user wants them

        return sheet(self, path, page, title, brightness)

    def plot(self, rows: Rows | None = None, *, columns: int = 4, ax: Axes | None = None, **style: Any) -> Figure:
        """Returns a figure of matplotlib's with an overlay per row, its title, and a bar with the scale of its map.

        `rows`: as in `result[rows]`; None: all. `ax`: the axes to draw a single row in. `style`: as of `overlay`.
        Nothing is shown: a notebook shows a figure that a cell returns, and `figure.savefig` writes it.
        """
        return display.plot(self, rows, columns, ax, style)

    def __repr__(self) -> str:
        return display.words_of(self)

    def _repr_html_(self) -> str:
        return display.html_of(self)

    def _repr_png_(self) -> bytes | None:
        return display.png_of(self)

    # --- elsewhere ----------------------------------------------------------------------------------------------------

    def to(self, device: str | torch.device) -> Explanation:
        """Returns the explanation with all tensors on a device."""
        moved: dict[str, Any] = {name: t.to(device) for name in TENSORS if (t := getattr(self, name)) is not None}
        if self.path is not None:
            moved["path"] = PathTrace(*(getattr(self.path, f.name).to(device) for f in fields(PathTrace)))
        moved["notes"] = {name: values.to(device) for name, values in self.notes.items()}
        if isinstance(self.images, Tensor):
            moved["images"] = self.images.to(device)
        return replace(self, **moved)

    def numpy(self) -> NDArray[np.float32]:
        """Returns the maps (R, *grid) as an array of float32; `to_frame` has what is known beside them."""
        return self.maps.detach().cpu().float().numpy()

    def to_frame(self) -> pandas.DataFrame:
        """Returns a table of pandas with a line per row. KonkyoError: pandas is not installed.

        Columns: image, true_label, decision, probability, asked, asked_probability, rank, score, correct, diagnosis,
        box (xyxy or None), method, layer, model. What is not known is None, or NaN where it is a number.
        """
        return exports.to_frame(self)

    def to_coco(self, *, threshold: float = THRESHOLD) -> dict[str, Any]:
        """Returns images, categories and annotations as COCO has them, with a score and the map cut as a mask.

        `threshold`: see `to_supervision`. The list of annotations is what COCO calls results.
        """
        return exports.to_coco(self, threshold)

    def to_supervision(self, *, threshold: float = THRESHOLD) -> supervision.Detections:
        """Returns the rows of one image as detections of the library supervision: boxes, masks, classes, confidence.

        `threshold`: the mask is where the map, scaled to [0, 1], is above this; a row of no detection has the box
        around the largest part. KonkyoError: rows of several images, unknown pictures, or no supervision.
        """
        detections: supervision.Detections = exports.to_supervision(self, threshold)
        return detections

    def to_fiftyone(self) -> list[Any]:
        """Returns a heat map of FiftyOne per row, with its label, score and diagnosis. KonkyoError: no fiftyone."""
        return exports.to_fiftyone(self)

    # --- on disk ------------------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """Returns everything but the tensors, as plain JSON values."""
        return files.description(self)

    def save(self, path: str | Path) -> Path:
        """Writes a .safetensors or .npz file, which `load` reads, or the `sheet` as .png, .jpg or .webp. -> the path

        Of one row of a video also .gif and .mp4; of one of a volume .nii and .nii.gz, in the volume's own space, and
        .dcm, a secondary capture of all slices.
        """
        path = Path(path)
        if (written := places.save(self, path)) is not None:
            return written
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            self.sheet(path)
            return path
        return files.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Returns an explanation from `save`, on the CPU, without its pictures.

        KonkyoError: not such a file, or one whose parts do not fit each other.
        """
        return files.load(cls, Path(path))


def picture_of(colours: Tensor) -> Image.Image:
    """Returns colours (1 or 3, H, W) in [0, 1] as a picture. KonkyoError: something else than an image."""
    colours = colours.float()
    if colours.ndim != 3 or colours.shape[0] not in (1, 3):
        raise KonkyoError(f"only images (1 or 3, H, W) can be drawn; got {tuple(colours.shape)}; pass image=")
    if colours.amin() < 0 or colours.amax() > 1:  # normalised by means that nobody told
        colours = min_max(colours[None])[0]
    return picture_of_colours(colours)


def joined(parts: Sequence[Explanation]) -> Explanation:
    """Returns the rows of several explanations by one method, each of images of its own, as one explanation."""
    values: dict[str, Any] = {}
    for f in fields(Explanation):
        of_parts = [getattr(part, f.name) for part in parts]
        if f.name == "image_index":
            of_parts = [index + at for at, index in enumerate(of_parts)]
        if f.name == "places":
            values[f.name] = of_parts[0]
        elif f.name == "assumptions":
            values[f.name] = tuple(dict.fromkeys(sentence for part in of_parts for sentence in part))
        elif f.name == "absences":
            values[f.name] = {at + image: why for at, part in enumerate(of_parts) for image, why in part.items()}
        elif f.name == "notes":
            values[f.name] = _joined_notes(parts)
        elif all(isinstance(value, Tensor) for value in of_parts):
            values[f.name] = torch.cat(of_parts)
        elif all(isinstance(value, tuple) for value in of_parts):
            values[f.name] = tuple(entry for part in of_parts for entry in part)
        elif all(isinstance(value, PathTrace) for value in of_parts):
            values[f.name] = _joined_paths(of_parts)
        else:
            values[f.name] = next((value for value in of_parts if value is not None), None)
    return Explanation(**values)


def _joined_notes(parts: Sequence[Explanation]) -> dict[str, Tensor]:
    """Returns the notes of all parts, NaN in the rows of a part that has not got one."""
    names = dict.fromkeys(name for part in parts for name in part.notes)
    return {
        name: torch.cat([part.notes.get(name, part.scores.new_full((len(part),), torch.nan)) for part in parts])
        for name in names
    }


def _joined_paths(parts: Sequence[PathTrace]) -> PathTrace:
    """Returns the paths of all parts, filled up with NaN to the longest."""

    def filled(name: str) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        longest = max(t.shape[1] for t in tensors)
        return torch.cat(
            [torch.cat([t, t.new_full((len(t), longest - t.shape[1], *t.shape[2:]), torch.nan)], 1) for t in tensors]
        )

    return PathTrace(**{f.name: filled(f.name) for f in fields(PathTrace)})
