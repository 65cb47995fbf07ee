"""Small networks wired in ways that hide which layer is a picture, and which layers everything passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Build: TypeAlias = Callable[[], nn.Module]


class Wired(nn.Module):
    """Runs a function of itself and the images; modules, parameters and tensors are its parts."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Lora(nn.Module):
    """A layer with a low-rank addition."""

    def __init__(self, base: nn.Module, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.base(x) + self.up(self.down(x))
        return added


def block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.ReLU())


def tower(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(block(channels, 8, 2), block(8, 8))


def means(grid: Tensor) -> Tensor:
    return grid.mean((2, 3))


def head(channels: int = 8, *, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def classifier(stride: int = 2) -> nn.Sequential:
    return nn.Sequential(block(3, 8, stride), block(8, 8), head())


def recurrent(kind: type[nn.RNNBase]) -> nn.Module:
    """The columns of the features are the steps of a recurrent layer."""

    def run(net: Any, x: Tensor) -> Tensor:
        steps = net.features(x).mean(2).transpose(1, 2)
        return net.fc(net.rnn(steps)[0][:, -1])  # type: ignore[no-any-return]

    return Wired(
        run,
        features=nn.Sequential(block(1, 8, 2), block(8, 16, 4)),
        rnn=kind(16, 8, batch_first=True),
        fc=nn.Linear(8, 5),
    )


def rows_recurrent() -> nn.Module:
    """The rows of a picture of 16 x 16 are the steps of a recurrent layer."""
    return Wired(
        lambda net, x: net.fc(net.rnn(x[:, 0])[0][:, -1]), rnn=nn.LSTM(16, 16, batch_first=True), fc=nn.Linear(16, 5)
    )


def frames() -> nn.Module:
    """16 frames, stacked in the channels, go through one tower as a batch, then through a recurrent layer."""

    def run(net: Any, x: Tensor) -> Tensor:
        features = means(net.tower(x.reshape(len(x) * 16, 3, *x.shape[2:]))).reshape(len(x), 16, -1)
        return net.fc(net.rnn(features)[0].mean(1))  # type: ignore[no-any-return]

    return Wired(run, tower=tower(), rnn=nn.LSTM(8, 8, batch_first=True), fc=nn.Linear(8, 5))


def latents(count: int, rounds: int) -> nn.Module:
    """Learned latents read the patches, some times over."""

    def run(net: Any, x: Tensor) -> Tensor:
        patches = net.patch(x).flatten(2).transpose(1, 2)
        state = net.latents.expand(len(x), -1, -1)
        for cross in net.cross:
            state = state + cross(state, patches, patches)[0]
        return net.fc(net.norm(net.block(state)).mean(1))  # type: ignore[no-any-return]

    return Wired(
        run,
        patch=nn.Conv2d(3, 16, 8, 8),
        latents=nn.Parameter(torch.randn(1, count, 16)),
        cross=nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(rounds)),
        block=nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        norm=nn.LayerNorm(16),
        fc=nn.Linear(16, 5),
    )


def transformer(
    *, before: int = 0, after: int = 0, read: str = "mean", length_first: bool = False, types: bool = False
) -> nn.Module:
    """16 patches between other tokens; the head reads the mean of all tokens, the first or the last."""

    def run(net: Any, x: Tensor) -> Tensor:
        patches = net.patch(x).flatten(2).transpose(1, 2) + net.positions
        others = net.others.expand(len(x), -1, -1)
        tokens = torch.cat([others[:, :before], patches, others[:, before:]], 1)
        if types:
            tokens = tokens + net.types(torch.zeros(tokens.shape[:2], dtype=torch.int64))
        axes = (0, 1) if length_first else (0, 0)
        tokens = net.norm(net.encoder(tokens.transpose(*axes)).transpose(*axes))
        return net.fc({"mean": tokens.mean(1), "first": tokens[:, 0], "last": tokens[:, -1]}[read])  # type: ignore[no-any-return]

    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=not length_first)
    parts: dict[str, Any] = {"types": nn.Embedding(2, 16)} if types else {}
    return Wired(
        run,
        patch=nn.Conv2d(3, 16, 8, 8),
        positions=nn.Parameter(torch.randn(1, 16, 16)),
        others=nn.Parameter(torch.randn(1, before + after, 16)),
        encoder=nn.TransformerEncoder(encoder, 3, enable_nested_tensor=False),
        norm=nn.LayerNorm(16),
        fc=nn.Linear(16, 5),
        **parts,
    )


def siamese(*, reference_last: bool) -> nn.Module:
    """It compares the image with a stored one, which goes through the same tower."""

    def run(net: Any, x: Tensor) -> Tensor:
        features: dict[bool, Tensor] = {}
        for reference in (not reference_last, reference_last):
            features[reference] = means(net.tower(net.reference.expand(len(x), -1, -1, -1) if reference else x))
        return net.fc((features[False] - features[True]).abs())  # type: ignore[no-any-return]

    return Wired(run, tower=tower(), reference=torch.randn(1, 3, 32, 32), fc=nn.Linear(8, 4))


def pair() -> nn.Module:
    """Two pictures, stacked in the channels, go through one tower, call by call."""
    return Wired(
        lambda net, x: net.fc(torch.cat([means(net.tower(x[:, :3])), means(net.tower(x[:, 3:]))], 1)),
        tower=tower(),
        fc=nn.Linear(16, 4),
    )


def ensemble(members: int, mix: Callable[[Tensor], Tensor] = lambda outputs: outputs.mean(0)) -> nn.Module:
    return Wired(
        lambda net, x: mix(torch.stack([member(x) for member in net.members])),
        members=nn.ModuleList(classifier(2) for _ in range(members)),
    )


def shrinking() -> nn.Module:
    """The grid shrinks to one cell, and goes on as one."""
    stem = [block(3 if i == 0 else 8, 8, 2) for i in range(5)]
    return nn.Sequential(*stem, nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten())


def unet(*, dense: bool) -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        first = net.down1(x)
        second = net.down2(first)
        third = net.down3(second)
        up = net.up2(torch.cat([functional.interpolate(third, scale_factor=2), second], 1))
        out: Tensor = net.out(net.up1(torch.cat([functional.interpolate(up, scale_factor=2), first], 1)))
        return out if dense else means(out)

    return Wired(
        run,
        down1=block(3, 8),
        down2=block(8, 8, 2),
        down3=block(8, 16, 2),
        up2=block(24, 8),
        up1=block(16, 8),
        out=nn.Conv2d(8, 3, 1),
    )


def moved(move: Callable[[Tensor], Tensor]) -> nn.Module:
    """The network moves the picture's places before it looks at them."""
    return Wired(lambda net, x: net.fc(means(net.tower(move(x)))), tower=tower(), fc=nn.Linear(8, 4))


def crops(boxes: list[tuple[int, int]], side: int = 16) -> nn.Module:
    """It averages the answers for crops of the picture."""
    return Wired(
        lambda net, x: torch.stack([net.one(x[:, :, i : i + side, j : j + side]) for i, j in boxes]).mean(0),
        one=classifier(),
    )


def through_vector() -> nn.Module:
    """The picture becomes a vector, and that a grid again, of which no cell is a place."""
    return nn.Sequential(
        *(block(3, 8, 2), block(8, 8, 2), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 512), nn.ReLU()),
        *(nn.Unflatten(1, (8, 8, 8)), block(8, 8), head()),
    )


def shuffled(x: Tensor) -> Tensor:
    """Puts the 8 x 8 patches of pictures into another order."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    patches = functional.unfold(x, 8, stride=8)[:, :, order]
    return functional.fold(patches, (32, 32), 8, stride=8)
