"""The five networks of the study of gaze consistency (Yonemura): from two convolutions to four residual blocks.

All take grey images (N, 1, H, W) and end in global average pooling and one linear layer; the layer whose maps are
compared is called `gaze` in each.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from konkyo.errors import unknown

LEVELS = (1, 2, 3, 4, 5)
GAZE = "gaze"
"""The name of the layer that the study takes maps from."""


def gaze_network(number: int, classes: int, channels: int = 1) -> nn.Module:
    """Returns the untrained network of a level, for images of 16 pixels a side or more. KonkyoError: no such level.

    1: Conv 16, ReLU, pool, Conv 32, ReLU (gaze), pool. 2: three of Conv, batch norm, ReLU, pool with 32, 64 and 128
    channels, Conv 256, batch norm (gaze: before the ReLU), ReLU. 3: Conv 32 and residual blocks of 64, 128 and 256,
    the last one gaze, pooled in between. 4: as 3 with convolutions that squeeze and excite in place of the blocks.
    5: as 3, twice as wide. Levels 2 to 4 drop half of the channels before the head, level 5 drops 0.6.

    >>> sum(p.numel() for p in gaze_network(3, classes=2).parameters())
    1208258
    """
    if number not in LEVELS:
        raise unknown("level", str(number), map(str, LEVELS))
    width = 64 if number == 5 else 32
    parts: list[tuple[str, nn.Module]]
    if number == 1:
        parts = [
            ("conv1", nn.Conv2d(channels, 16, 3, padding=1)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(16, 32, 3, padding=1)),
            (GAZE, nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
        ]
    elif number == 2:
        parts = []
        for index, (inside, outside) in enumerate(((channels, 32), (32, 64), (64, 128)), 1):
            parts += [(f"stage{index}", _conv(inside, outside)), (f"pool{index}", nn.MaxPool2d(2))]
        parts += [("conv4", nn.Conv2d(128, 256, 3, padding=1)), (GAZE, nn.BatchNorm2d(256)), ("relu4", nn.ReLU())]
    else:
        block = _Excited if number == 4 else _Residual
        parts = [("stage1", _conv(channels, width)), ("pool1", nn.MaxPool2d(2))]
        for index, name in ((1, "stage2"), (2, "stage3"), (3, GAZE)):
            parts.append((name, block(width * 2 ** (index - 1), width * 2**index)))
            if name != GAZE:
                parts.append((f"pool{index + 1}", nn.MaxPool2d(2)))
    last = 32 if number == 1 else 8 * width
    parts += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    if number > 1:
        parts.append(("dropout", nn.Dropout(0.6 if number == 5 else 0.5)))
    parts.append(("head", nn.Linear(last, classes)))
    return nn.Sequential(OrderedDict(parts))


def _conv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU())


class _Residual(nn.Module):
    """Conv, batch norm, ReLU, Conv, batch norm, and the input added through a 1x1 convolution; then ReLU."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = _conv(inside, outside)
        self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, padding=1), nn.BatchNorm2d(outside))
        self.around = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)
        self.relu = nn.ReLU()

    def forward(self, grid: Tensor) -> Tensor:
        result: Tensor = self.relu(self.second(self.first(grid)) + self.around(grid))
        return result


class _Excited(nn.Module):
    """Conv, batch norm, ReLU, and every channel multiplied by a gate that all channels' means decide on."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = _conv(inside, outside)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(outside, outside // 16),
            nn.ReLU(),
            nn.Linear(outside // 16, outside),
            nn.Sigmoid(),
        )

    def forward(self, grid: Tensor) -> Tensor:
        grid = self.conv(grid)
        result: Tensor = grid * self.gate(grid)[:, :, None, None]
        return result
