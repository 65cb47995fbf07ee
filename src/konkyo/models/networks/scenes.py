"""The small networks of drawn scenes: a residual classifier, and a segmenter on its body."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCENES_SIZE = 128
SCENES_MEAN = (0.63, 0.64, 0.62)
SCENES_STD = (0.22, 0.19, 0.21)


class _Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.around = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        result: Tensor = self.relu(inner + self.around(x))
        return result


class ScenesResNet(nn.Module):
    """A small residual network: four stages, the mean over the last one's grid (of stride 8), and one linear layer.

    So `head.weight[c]` applied at each cell of what `stage4` puts out is exactly the class activation map of c.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stage1 = _Block(32, 48, 2)
        self.stage2 = _Block(48, 80, 2)
        self.stage3 = _Block(80, 112)
        self.stage4 = _Block(112, 144)
        self.head = nn.Linear(144, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, 3, H, W) -> logits (N, classes)."""
        grid = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(images)))))
        logits: Tensor = self.head(grid.mean((-2, -1)))
        return logits


def _convolution(inside: int, outside: int, size: int, dilation: int = 1) -> nn.Sequential:
    """Returns a convolution that keeps the grid, normalised and rectified."""
    around = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(inside, outside, size, 1, around, dilation, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


class ScenesBody(nn.Module):
    """The stages of ScenesResNet without its head: images (N, 3, H, W) -> three grids, from fine to deep."""

    def __init__(self) -> None:
        super().__init__()
        network = ScenesResNet()
        self.stem, self.stage1, self.stage2 = network.stem, network.stage1, network.stage2
        self.stage3, self.stage4 = network.stage3, network.stage4

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what `stem` (stride 2), `stage1` (stride 4) and `stage4` (stride 8) put out."""
        stem = self.stem(images)
        stage1 = self.stage1(stem)
        return stem, stage1, self.stage4(self.stage3(self.stage2(stage1)))


class ScenesSegmenter(nn.Module):
    """A small DeepLabV3+ on the body of ScenesResNet: images (N, 3, H, W) -> logits (N, classes, H, W).

    The head reads `stage4` (stride 8) at three rates and by its mean. Two decoders join what it finds with the finer
    grids of `stage1` (stride 4) and of `stem` (stride 2), by which outlines are sharp (Chen et al., 2018).
    """

    def __init__(self, classes: int = 11) -> None:
        super().__init__()
        self.body = ScenesBody()
        self.rates = nn.ModuleList([_convolution(144, 48, 1), _convolution(144, 48, 3, 2), _convolution(144, 48, 3, 4)])
        self.mean = nn.Sequential(nn.Conv2d(144, 48, 1), nn.ReLU())
        self.joined = _convolution(4 * 48, 96, 1)
        self.middle = nn.Sequential(_convolution(96 + 48, 64, 1), _convolution(64, 64, 3))
        self.fine = nn.Sequential(_convolution(64 + 32, 32, 1), _convolution(32, 32, 3))
        self.head = nn.Conv2d(32, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, classes, H, W), enlarged by a factor of 2 from their own grid."""
        stem, stage1, stage4 = self.body(images)
        mean = self.mean(stage4.mean((-2, -1), keepdim=True)).expand(-1, -1, *stage4.shape[-2:])
        context = self.joined(torch.cat([*(rate(stage4) for rate in self.rates), mean], 1))
        middle = self.middle(torch.cat([_enlarged(context, stage1), stage1], 1))
        fine = self.fine(torch.cat([_enlarged(middle, stem), stem], 1))
        return _enlarged(self.head(fine), images)


def _enlarged(grid: Tensor, like: Tensor) -> Tensor:
    """Returns the grid at the height and width of `like`."""
    return F.interpolate(grid, size=like.shape[-2:], mode="bilinear", align_corners=False)
