"""Forms: how families of image-text-to-text models cut a picture up, and where its tokens lie in the picture.

Every form takes pictures as one floating tensor (N, 3, H, W), so that a method may change their pixels, and cuts them
in torch: into patches (Qwen-VL), tiles (LLaVA-NeXT, Idefics3, InternVL), or not at all (LLaVA, PaliGemma, Gemma 3).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.errors import KonkyoError
from konkyo.utils.tensors import at_least_float32

Size: TypeAlias = tuple[int, int]
"""Height and width."""
Colour: TypeAlias = tuple[float, ...]
"""The value of every channel, as the processor normalises it."""
Filter: TypeAlias = Literal["bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, eq=False)
class Layout:
    """A layout says where the tokens of one picture lie: all `count` of them, in the order they are read in."""

    count: int
    places: tuple[Tensor, ...]
    """Index grids (h, w): which token lies at each cell of a grid over the whole picture. The finest comes first."""


class Form(ABC):
    """A form cuts pictures for a network's vision tower."""

    @abstractmethod
    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Returns what `get_image_features` takes for pictures (N, 3, H, W). KonkyoError: a size of no use to it."""

    @abstractmethod
    def layout(self, size: Size) -> Layout:
        """Returns where the tokens of a picture of this size lie. KonkyoError: a size that the form has no use for."""


@dataclass(frozen=True)
class Whole(Form):
    """The whole picture, of one size, is one grid: LLaVA, PaliGemma, Gemma 3."""

    size: Size
    cells: Size
    prefix: int = 0
    """How many tokens (a class token) come before the grid."""

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the pictures as they are."""
        self.layout(_size(images))
        return {"pixel_values": images}

    def layout(self, size: Size) -> Layout:
        """Returns one grid."""
        if size != self.size:
            raise KonkyoError(f"pictures of {_words(self.size)} pixels were expected; got {_words(size)}")
        count = math.prod(self.cells)
        return Layout(self.prefix + count, (self.prefix + torch.arange(count).view(self.cells),))


@dataclass(frozen=True)
class Packed(Form):
    """Pictures of any size become rows of patches, without a batch's axis: the Qwen-VL family.

    Patches of `patch` pixels come in blocks of `merge` x `merge`, each of which becomes one token. A still picture is
    a film of `frames` equal pictures.
    """

    patch: int
    merge: int
    frames: int

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Returns patches (N h w, 3 `frames` `patch`^2) and how many there are (N, 3): films, rows, columns."""
        n, channels, height, width = images.shape
        self.layout((height, width))
        p, m = self.patch, self.merge
        h, w = height // p, width // p
        blocks = images.reshape(n, channels, h // m, m, p, w // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        patches = blocks.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, self.frames, -1, -1)
        grid = torch.tensor([[1, h, w]], device=images.device).expand(n, -1)
        return {"pixel_values": patches.reshape(n * h * w, -1), "image_grid_thw": grid}

    def layout(self, size: Size) -> Layout:
        """Returns one grid."""
        side = self.patch * self.merge
        if size[0] % side or size[1] % side:
            raise KonkyoError(f"sides that are multiples of {side} pixels were expected; got {_words(size)}")
        h, w = size[0] // side, size[1] // side
        return Layout(h * w, (torch.arange(h * w).view(h, w),))


@dataclass(frozen=True)
class Tiled(Form):
    """A canvas of tiles of `side` pixels, `cells` x `cells` tokens each, with the whole picture after them.

    Idefics3 and SmolVLM get the canvas itself. A picture of one tile has no second, whole one.
    """

    side: int
    cells: int
    black: Colour
    white: Colour
    filter: Filter = "lanczos"

    def canvas(self, images: Tensor) -> Tensor:
        """Returns pictures as a canvas whose sides are multiples of the tile's."""
        return images

    def canvas_size(self, size: Size) -> Size:
        """Returns the size of the canvas for pictures of a size."""
        if size[0] % self.side or size[1] % self.side:
            raise KonkyoError(f"sides that are multiples of {self.side} pixels were expected; got {_words(size)}")
        return size

    def tiles(self, images: Tensor) -> Tensor:
        """Returns the tiles (N, T, 3, side, side), row by row, and the whole picture as the last."""
        self.canvas_size(_size(images))
        tiles = cut(self.canvas(images), self.side)
        if tiles.shape[1] == 1:
            return tiles
        whole = resampled(images, (self.side, self.side), self.filter, self.black, self.white)
        return torch.cat([tiles, whole[:, None]], 1)

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the tiles of every picture.

        The library takes a tile of zeros for padding and drops it, so one that is zero is made a little brighter.
        """
        tiles = self.tiles(images)
        empty = (tiles == 0).flatten(2).all(2)
        return {"pixel_values": tiles + 1e-6 * empty[:, :, None, None, None].to(tiles)}

    def layout(self, size: Size) -> Layout:
        """Returns the grid of the tiles, put together, and that of the whole picture."""
        height, width = self.canvas_size(size)
        rows, columns, c = height // self.side, width // self.side, self.cells
        count = rows * columns * c * c
        tiles = torch.arange(count).view(rows, columns, c, c).permute(0, 2, 1, 3).reshape(rows * c, columns * c)
        if rows * columns == 1:
            return Layout(count, (tiles,))
        return Layout(count + c * c, (tiles, count + torch.arange(c * c).view(c, c)))


@dataclass(frozen=True)
class Stretched(Tiled):
    """Tiles of a canvas that the picture is stretched to: InternVL. Pictures come at their own size.

    The canvas has `least` to `most` tiles and is as nearly of the picture's form as it can be.
    """

    filter: Filter = "bicubic"
    least: int = 1
    most: int = 12

    def canvas(self, images: Tensor) -> Tensor:
        """Returns pictures stretched to the canvas."""
        return resampled(images, self.canvas_size(_size(images)), self.filter, self.black, self.white)

    def canvas_size(self, size: Size) -> Size:
        """Returns the size of the canvas, as the library chooses it."""
        library = import_module("transformers.models.got_ocr2.image_processing_got_ocr2")
        tile = (self.side, self.side)
        columns, rows = library.get_optimal_tiled_canvas(size, tile, self.least, self.most)
        return int(rows) * self.side, int(columns) * self.side

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the tiles of all pictures, one after the other."""
        return {"pixel_values": self.tiles(images).flatten(0, 1)}


@dataclass(frozen=True)
class AnyResolution(Form):
    """The whole picture in one tile, then tiles of the canvas that suits it best: LLaVA-NeXT and LLaVA-OneVision.

    Pictures come at their own size. On the canvas, one of `canvases`, the picture keeps its shape and has a border of
    `black`. Of the tokens the border's are left out, to whole cells; so the second grid may
    be up to half a cell larger than the picture on both sides. After every row comes a token that is no place. Of more
    than `most` tiles' tokens (None: no limit) the grid is made coarser.
    """

    side: int
    cells: int
    canvases: tuple[Size, ...]
    black: Colour
    white: Colour
    filter: Filter = "bicubic"
    most: int | None = None

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the tiles (N, 1 + T, 3, side, side) and the sizes of the pictures (N, 2)."""
        size = _size(images)
        height, width = self._canvas(size)
        utils = import_module("transformers.image_processing_utils")
        inner = utils.get_patch_output_size(torch.empty(3, *size, device="meta"), (height, width), "channels_first")
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        black = images.new_tensor(self.black).view(1, -1, 1, 1)
        border = (left, width - inner[1] - left, top, height - inner[0] - top)
        canvas, whole = (
            resampled(images, to, self.filter, self.black, self.white) for to in (inner, (self.side, self.side))
        )
        canvas = functional.pad(canvas - black, border) + black
        tiles = torch.cat([whole[:, None], cut(canvas, self.side)], 1)
        return {
            "pixel_values": tiles,
            "image_sizes": torch.tensor([size], device=images.device).expand(len(images), -1),
        }

    def layout(self, size: Size) -> Layout:
        """Returns the grid of the canvas and, coarser, that of the whole picture."""
        c = self.cells
        h, w = self._cells(size)
        rows = c * c + torch.arange(h * (w + 1)).view(h, w + 1)
        return Layout(c * c + rows.numel(), (rows[:, :w], torch.arange(c * c).view(c, c)))

    def _canvas(self, size: Size) -> Size:
        utils = import_module("transformers.image_processing_utils")
        height, width = utils.select_best_resolution(size, list(self.canvases))
        return int(height), int(width)

    def _cells(self, size: Size) -> Size:
        """Returns how many rows and columns of tokens the canvas has without its border."""
        library = import_module("transformers.models.llava_next.modeling_llava_next")
        height, width = (n // self.side * self.cells for n in self._canvas(size))
        h, w = library.unpad_image(torch.empty(1, height, width, device="meta"), list(size)).shape[1:]
        if self.most is not None and (ratio := math.sqrt(h * w / (self.most * self.cells**2))) > 1.1:
            return int(h // ratio), int(w // ratio)
        return int(h), int(w)


def cut(canvas: Tensor, side: int) -> Tensor:
    """Returns pictures (N, 3, H, W) as tiles (N, T, 3, side, side), row by row."""
    n, channels, height, width = canvas.shape
    tiles = canvas.reshape(n, channels, height // side, side, width // side, side)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels, side, side)


def resampled(images: Tensor, size: Sequence[int], how: Filter, black: Colour, white: Colour) -> Tensor:
    """Returns pictures (N, 3, H, W) at another size, as processors resample them: smoothed first where they shrink.

    What swings past black and white (their values per channel) is cut off, as in a picture of whole numbers; but not
    of pictures that are themselves darker or brighter, as changed ones may be.
    """
    if tuple(images.shape[2:]) == tuple(size):
        return images
    wide = at_least_float32(images)  # half precision has no such kernel everywhere
    other: Tensor = functional.interpolate(wide, size=tuple(size), mode=how, antialias=True)
    values = wide.detach().flatten(2)
    low = torch.minimum(values.amin(2), values.new_tensor(black))[..., None, None]
    high = torch.maximum(values.amax(2), values.new_tensor(white))[..., None, None]
    cut = torch.minimum(torch.maximum(other, low), high)
    return (other + (cut - other).detach()).to(images.dtype)  # a cut would have no gradient, though white can darken


def _size(images: Tensor) -> Size:
    return int(images.shape[-2]), int(images.shape[-1])


def _words(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
