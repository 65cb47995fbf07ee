"""ScenesVQA: a network that answers questions about drawn scenes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from konkyo.data.sets.questions import ANSWERS, WORDS
from konkyo.models.networks.scenes import ScenesBody


class _Modulated(nn.Module):
    """A residual block whose channels a question scales and shifts (FiLM; Perez et al., 2018, figure 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width + 2, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width, affine=False)

    def forward(self, grid: Tensor, places: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Returns the grid (M, C, h, w) changed by scale and shift (M, C); places (2, h, w)."""
        inner = F.relu(self.conv1(torch.cat([grid, places.expand(len(grid), -1, -1, -1)], 1)))
        return inner + F.relu(self.norm(self.conv2(inner)) * (1 + scale[..., None, None]) + shift[..., None, None])


class _Cells(nn.Module):
    """What is known of every cell of the picture: what is there, beside a soft histogram of its colours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.things = nn.Sequential(nn.Conv2d(144, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, grid: Tensor, colours: Tensor) -> Tensor:
        """Returns the cells (N, C + COLOURS, h, w) of the body's grid (N, 144, h, w) and of the colours."""
        return torch.cat([self.things(grid), colours], 1)


COLOURS = 32
"""Bins of the soft histogram."""


class ScenesVQA(nn.Module):
    """A network of a picture and a question: the picture's cells, changed and read as the question says.

    All that is seen of the picture passes `cells`, whose output (N, C + COLOURS, 16, 16) is made of the body's last
    stage and of `colours`, which the body has forgotten by then. The answer is read from the mean and the maximum of
    the changed cells, and by `heads` soft attentions, each of which gives content, colours and mean place.
    """

    def __init__(self, width: int = 96, heads: int = 3) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.body = ScenesBody()
        bins = nn.Sequential(nn.Conv2d(3, COLOURS, 1, bias=False), nn.BatchNorm2d(COLOURS), nn.ReLU())
        self.colours = nn.Sequential(nn.AvgPool2d(2), bins, nn.AvgPool2d(4))
        self.cells = _Cells(width)
        self.reduce = nn.Sequential(
            nn.Conv2d(width + COLOURS, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.words = nn.Embedding(1 + len(WORDS), 64, padding_idx=0)
        self.reader = nn.GRU(64, width, batch_first=True)
        self.modulation = nn.Linear(width, 4 * width)
        self.blocks = nn.ModuleList(_Modulated(width) for _ in range(2))
        self.query = nn.Linear(width, heads * width)
        self.head = nn.Sequential(
            nn.Linear(3 * width + heads * (width + COLOURS + 2), 192), nn.ReLU(), nn.Linear(192, len(ANSWERS))
        )

    def see(self, images: Tensor) -> Tensor:
        """Returns the cells (N, C + COLOURS, 8, 8), at half size, of images (N, 3, 128, 128) of the classifier."""
        _, _, grid = self.body(images)
        cells = self.cells(grid, self.colours(images))
        return torch.cat([self.reduce(cells), F.avg_pool2d(cells[:, self.width :], 2)], 1)

    def answer(self, cells: Tensor, tokens: Tensor) -> Tensor:
        """Returns logits (M, answers) of questions (M, words) about cells (M, C + COLOURS, 8, 8)."""
        question = self.reader(self.words(tokens))[0][:, -1]
        grid, colours = cells[:, : self.width], cells[:, self.width :]
        places = _places(grid)
        parts = self.modulation(question).chunk(4, 1)
        for block, scale, shift in zip(self.blocks, parts[:2], parts[2:], strict=True):
            grid = block(grid, places, scale, shift)
        flat = grid.flatten(2)
        query = self.query(question).view(-1, self.heads, self.width)
        attention = (query @ flat * self.width**-0.5).softmax(-1)
        known = torch.cat([flat, colours.flatten(2), places.flatten(1).expand(len(flat), -1, -1)], 1)
        content = attention @ known.transpose(1, 2)
        logits: Tensor = self.head(torch.cat([flat.mean(-1), flat.amax(-1), content.flatten(1), question], 1))
        return logits

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Returns logits (N, answers) of a question about each image: tokens (N, words) or one for all (1, words)."""
        cells = self.see(images)
        return self.answer(cells, tokens.expand(len(cells), -1))


def _places(grid: Tensor) -> Tensor:
    """Returns the x and y (2, h, w) of a grid's cells, from -1 to 1."""
    y, x = (torch.linspace(-1, 1, side, device=grid.device, dtype=grid.dtype) for side in grid.shape[2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))
