"""Frame: where a picture lies in the input that a network gets of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in the input made of it: pixel x of the input is pixel x * scale + offset of the picture."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Across, down."""
    offset: tuple[float, float] = (0.0, 0.0)
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """The part of the input that shows the picture, xyxy as shares of its width and height; the rest is border."""
    size: tuple[int, int] | None = None
    """(height, width) of the input; None: it is not known."""
    corner: tuple[int, int] = (0, 0)
    """Where the part that the network sees begins in the whole picture, (left, top): a crop cuts the rest off."""
    whole: tuple[int, int] | None = None
    """(height, width) of the whole picture; None: the network sees all of it."""

    def shown(self, boxes: Tensor) -> Tensor:
        """Returns boxes (..., 4) xyxy in input pixels as boxes in the pixels of the picture."""
        return boxes * boxes.new_tensor(self.scale * 2) + boxes.new_tensor(self.offset * 2)

    def placed(self, boxes: Tensor) -> Tensor:
        """Returns boxes (..., 4) xyxy in the pixels of the picture as boxes in input pixels."""
        return (boxes - boxes.new_tensor(self.offset * 2)) / boxes.new_tensor(self.scale * 2)
