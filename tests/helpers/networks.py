"""Small networks with random weights, in the shapes that users have."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A residual block with in-place ReLUs; one ReLU module is called twice."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class SmallResNet(nn.Module):
    """Three stages; the head is global average pooling + linear, or with a hidden layer (`deep_head`)."""

    def __init__(self, classes: int = 5, channels: int = 3, deep_head: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stage1, self.stage2, self.stage3 = Block(8, 12, 2), Block(12, 16, 2), Block(16, 24, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        if deep_head:
            self.head: nn.Module = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, classes))
        else:
            self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(torch.flatten(self.pool(x), 1))


class Dense(nn.Module):
    """Concatenates what it computed before, as DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 2, 1)
        self.second = nn.Conv2d(6, 4, 3, 1, 1)
        self.third = nn.Conv2d(10, 4, 3, 1, 1)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat([x, self.second(functional.relu(x)).relu()], 1)
        x = torch.cat([x, self.third(x).relu()], 1)
        return self.head(x.mean((2, 3)))


class Twice(nn.Module):
    """Calls one convolution twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 2, 1)
        self.shared = nn.Conv2d(6, 6, 3, 1, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.first(x).tanh()).tanh()
        return self.head(self.shared(x).relu().mean((2, 3)))


class InPlaceAfter(nn.Module):
    """The layer `conv` is followed at once by an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.act(self.conv(x)) + 0.5).mean((2, 3)))


class Returns(nn.Module):
    """A classifier whose output is a dict, a tuple or a nested one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.kind = SmallResNet(), kind

    def forward(self, x: Tensor) -> object:
        logits = self.body(x)
        return {
            "dict": {"aux": logits * 0, "logits": logits},
            "ordered": OrderedDict(out=logits, aux=logits * 0),
            "tuple": (logits, logits * 0),
            "list": [logits],
        }[self.kind]


class TupleLayer(nn.Module):
    """A layer that puts out a tuple, and a dict after it."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return self.conv(x).relu(), None

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"features": self.conv(x).relu()}

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.named, self.head = self.Pair(), self.Named(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.named(self.pair(x)[0])["features"].mean((2, 3)))


class Viewing(nn.Module):
    """Flattens with `view`, which channels_last tensors refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Linear(6 * 16 * 20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.head(x.view(x.shape[0], -1))


class Attention(nn.Module):
    """A vision transformer of one block whose decision is read from the class token alone."""

    def __init__(self, prefix: int = 1) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 12))
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.out_norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = self.out_norm(x + self.mlp(x))
        return self.head(x[:, 0])


def seeded(network: nn.Module, seed: int = 0, *, double: bool = True) -> nn.Module:
    """The network in eval mode with seeded weights and lively batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif "running_mean" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        elif tensor.is_floating_point():
            scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 1.0
            offset = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale * (0.2 if offset else 1.5) + offset)
    return (network.double() if double else network).eval()


def images(count: int = 3, channels: int = 3, *, double: bool = True, seed: int = 1) -> Tensor:
    """Noise images, not square: (count, channels, 32, 40)."""
    noise = torch.randn(count, channels, 32, 40, generator=torch.Generator().manual_seed(seed))
    return noise.double() if double else noise


def settled(network: nn.Module) -> nn.Module:
    """The network in eval mode and double precision with its library's own start, but no weights that are all zero."""
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim > 1 and not tensor.any():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5)
    return network.double().eval()
