"""Truth: which things of a sample the rows of an explanation are about, and what a map of them is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from konkyo.data.samples import Annotation, Box, Sample, box_of
from konkyo.evaluation.columns import Region
from konkyo.metrics.localisation import box_masks
from konkyo.models import Preprocess


@dataclass(frozen=True, eq=False)
class Truth:
    """Rows and the things that each is about, in the pixels of the picture that the model sees."""

    rows: tuple[tuple[int, ...], ...]
    """Of every row, which of the things; none where that is not known."""
    annotations: tuple[Annotation, ...]
    size: tuple[int, int]
    """(height, width)"""
    crowds: tuple[Annotation, ...] = ()
    """Things of a class that nobody has told apart: where they are, nobody says what is the object."""
    _masks: dict[Region, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    """Those that were asked for."""

    def of(self, rows: Sequence[int]) -> Truth:
        """Returns the truth of some of the rows."""
        return replace(self, rows=tuple(self.rows[row] for row in rows), _masks={})

    def objects(self) -> dict[str, Tensor]:
        """Returns the box (R, 4) and all boxes (R, B, 4) of the rows' things, NaN of none, and who shares them (R,).

        Where there are crowds, also the pixels (R, H, W) to be ignored: those of crowds of the things' class.
        """
        boxes = torch.full((len(self.rows), 4), torch.nan)
        most = max((len(numbers) for numbers in self.rows), default=0)
        every = torch.full((len(self.rows), max(1, most), 4), torch.nan)
        for row, numbers in enumerate(self.rows):
            corners = torch.tensor([box for i in numbers if (box := box_of(self.annotations[i])) is not None])
            if len(corners):
                every[row, : len(corners)] = corners
                boxes[row] = torch.cat([corners[:, :2].amin(0), corners[:, 2:].amax(0)])
        known = {numbers: number for number, numbers in enumerate(dict.fromkeys(self.rows))}
        groups = [known[numbers] if numbers else -1 - row for row, numbers in enumerate(self.rows)]
        tensors = {"boxes": boxes, "all_boxes": every, "objects": torch.tensor(groups, dtype=torch.int64)}
        return tensors | ({"ignored": self._ignored()} if self.crowds else {})

    def _ignored(self) -> Tensor:
        """Returns the pixels of crowds of the class of every row's things. -> (R, H, W) bool"""
        ignored = torch.zeros(len(self.rows), *self.size, dtype=torch.bool)
        for row, numbers in enumerate(self.rows):
            labels = {self.annotations[i].label for i in numbers}
            for crowd in self.crowds:
                if crowd.label in labels:
                    ignored[row] |= self._mask(crowd, "box" if crowd.mask is None else "mask")
        return ignored

    def masks(self, region: Region) -> dict[str, Tensor]:
        """Returns the rows' things and all others (R, H, W) bool, empty where nothing is known."""
        if region not in self._masks:
            self._masks[region] = self._together(region)
        return self._masks[region]

    def unknown(self, region: Region) -> Tensor:
        """Tells which rows (R,) bool are about things that nobody has drawn this region of: their masks are empty."""
        outlined = [self._has_region(annotation, region) for annotation in self.annotations]
        return torch.tensor([bool(numbers) and not any(outlined[i] for i in numbers) for numbers in self.rows])

    @staticmethod
    def _has_region(annotation: Annotation, region: Region) -> bool:
        known = {"mask": annotation.mask, "evidence": annotation.evidence, "box": box_of(annotation)}
        return known[region] is not None

    def _together(self, region: Region) -> dict[str, Tensor]:
        masks = [self._mask(annotation, region) for annotation in self.annotations]

        def together(which: Sequence[int]) -> Tensor:
            return torch.stack([masks[i] for i in which]).any(0) if which else torch.zeros(self.size, dtype=torch.bool)

        rest = [[i for i in range(len(masks)) if numbers and i not in numbers] for numbers in self.rows]
        return {
            "masks": torch.stack([together(numbers) for numbers in self.rows]),
            "others": torch.stack([together(others) for others in rest]),
        }

    def _mask(self, annotation: Annotation, region: Region) -> Tensor:
        if region != "box":
            mask = annotation.mask if region == "mask" else annotation.evidence
            return torch.zeros(self.size, dtype=torch.bool) if mask is None else mask
        return box_masks(torch.tensor([box_of(annotation) or (math.nan,) * 4]), self.size)[0]


def in_view(sample: Sample, preprocess: Preprocess, *, crowds: bool = False) -> tuple[Annotation, ...]:
    """Returns the things of a sample, or its crowds, as far as the model sees them, in the pixels of what it sees.

    A thing that a crop has cut off entirely keeps an empty mask or no box.
    """
    annotations = tuple(annotation for annotation in sample.annotations if annotation.crowd == crowds)
    view = preprocess.view(sample.image)
    if view.size == sample.image.size:
        return annotations
    left, top = preprocess.corner(sample.image)

    def cut(mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        picture = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
        return torch.from_numpy(np.array(preprocess.view(picture).convert("L")) > 0)

    def moved(box: Box | None) -> Box | None:
        if box is None:
            return None
        x0, x1 = (min(max(x - left, 0), view.width) for x in (box[0], box[2]))
        y0, y1 = (min(max(y - top, 0), view.height) for y in (box[1], box[3]))
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    return tuple(
        replace(annotation, box=moved(annotation.box), mask=cut(annotation.mask), evidence=cut(annotation.evidence))
        for annotation in annotations
    )
