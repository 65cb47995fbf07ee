"""The odd networks of the zoo, made by hand: as people write them, and libraries do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Row = tuple[str, Callable[[], nn.Module], tuple[int, ...], "Callable[[nn.Module, Tensor], Any] | None"]


def convs(*channels: int, stride: int = 2) -> nn.Sequential:
    """Convolutions of 3 x 3 with ReLUs, each with a stride."""
    pairs = itertools.pairwise(channels)
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.ReLU()) for a, b in pairs))


def head(channels: int) -> nn.Sequential:
    """Pooling and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Of(nn.Module):
    """A network of named parts, whose forward is a function of them and of the image."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def encoder(width: int = 16, layers: int = 2, *, batch_first: bool = True) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, 2, 24, batch_first=batch_first, dropout=0.0)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def two_streams() -> nn.Module:
    return Of(
        lambda m, x: m.fc(torch.cat([m.rgb(x[:, :3]).mean((2, 3)), m.depth(x[:, 3:]).mean((2, 3))], 1)),
        **{"rgb": convs(3, 8, 8, 8), "depth": convs(1, 8, 8, 8), "fc": nn.Linear(16, 5)},
    )


def two_scales() -> nn.Module:
    return Of(
        lambda m, x: m.fc(torch.cat([m.near(x).mean((2, 3)), m.far(functional.avg_pool2d(x, 2)).mean((2, 3))], 1)),
        **{"near": convs(3, 8, 8, 8), "far": convs(3, 8, 8), "fc": nn.Linear(16, 5)},
    )


def ensemble(count: int) -> nn.Module:
    members = nn.ModuleList(nn.Sequential(convs(3, 8, 8, 8), head(8)) for _ in range(count))
    return Of(lambda m, x: torch.stack([member(x) for member in m.members]).mean(0), members=members)


def concatenated() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        a = m.stem(x)
        return m.fc(torch.cat([m.left(a).relu(), m.right(a).relu(), a], 1).mean((2, 3)))

    parts = {"left": nn.Conv2d(8, 6, 3, 1, 1), "right": nn.Conv2d(8, 6, 1), "fc": nn.Linear(20, 5)}
    return Of(run, stem=convs(3, 8, 8), **parts)


def arc_face() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return 16 * functional.linear(functional.normalize(m.body(x).mean((2, 3))), functional.normalize(m.weight))

    return Of(run, body=convs(3, 8, 16, 16), weight=nn.Parameter(torch.randn(5, 16)))


def normed(which: str) -> nn.Module:
    norm = getattr(nn.utils.parametrizations, which)
    body = nn.Sequential(convs(3, 8, 8), norm(nn.Conv2d(8, 8, 3, 2, 1)), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm(nn.Linear(8, 5)))


class LoRA(nn.Module):
    """A linear layer with a low-rank part beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def lora() -> nn.Module:
    return nn.Sequential(convs(3, 8, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), LoRA(nn.Linear(8, 5)))


def shrinking() -> nn.Module:
    return nn.Sequential(
        convs(3, 8, 8, 8, 12, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(16, 8, 1),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(8, 5),
    )


def flips_inside() -> nn.Module:
    return Of(
        lambda m, x: m.head(m.body(x)) + m.head(m.body(x.flip(-1))).detach() * 0,
        **{"body": convs(3, 8, 8, 8), "head": head(8)},
    )


def flips_averaged() -> nn.Module:
    return Of(lambda m, x: (m.head(m.body(x)) + m.head(m.body(x.flip(-1)))) / 2, body=convs(3, 8, 8, 8), head=head(8))


def siamese() -> nn.Module:
    other = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(7))

    def run(m: Any, x: Tensor) -> Tensor:
        own, fixed = m.body(x).mean((2, 3)), m.body(other.to(x)).mean((2, 3))
        return m.fc((own - fixed).abs())

    return Of(run, body=convs(3, 8, 8, 8), fc=nn.Linear(8, 5))


def crnn(*, mean: bool = True) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        steps = m.rnn(m.body(x).mean(2).mT)[0]
        return m.fc(steps.mean(1) if mean else steps[:, -1])

    rnn = nn.LSTM(16, 8, bidirectional=True, batch_first=True)
    return Of(run, body=convs(3, 8, 16), rnn=rnn, fc=nn.Linear(16, 5))


def rows_of_pixels() -> nn.Module:
    return Of(lambda m, x: m.fc(m.rnn(x.mean(1))[0].mean(1)), rnn=nn.LSTM(32, 8, batch_first=True), fc=nn.Linear(8, 5))


def queries(count: int = 16) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        tokens = m.patch(x).flatten(2).mT
        asked = m.queries.expand(len(x), -1, -1)
        return m.fc(m.norm(asked + m.cross(asked, tokens, tokens)[0]).mean(1))

    cross = nn.MultiheadAttention(16, 2, batch_first=True)
    parts = {"patch": nn.Conv2d(3, 16, 8, 8), "norm": nn.LayerNorm(16), "cross": cross, "fc": nn.Linear(16, 5)}
    return Of(run, queries=nn.Parameter(torch.randn(1, count, 16)), **parts)


def latents() -> nn.Module:
    """A Perceiver: latents read the pixels, and then each other."""

    def run(m: Any, x: Tensor) -> Tensor:
        pixels = m.pixels(functional.avg_pool2d(x, 4).flatten(2).mT)
        latents = m.latents.expand(len(x), -1, -1)
        return m.fc(m.encoder(latents + m.cross(latents, pixels, pixels)[0]).mean(1))

    parts = {"pixels": nn.Linear(3, 16), "cross": nn.MultiheadAttention(16, 2, batch_first=True)}
    return Of(run, latents=nn.Parameter(torch.randn(1, 16, 16)), encoder=encoder(), fc=nn.Linear(16, 5), **parts)


def token_types() -> nn.Module:
    """Image tokens after text tokens, all of them with a type and a position from a table."""

    def run(m: Any, x: Tensor) -> Tensor:
        image = m.patch(x).flatten(2).mT
        text = m.words(torch.arange(4)).expand(len(x), -1, -1)
        types = m.types(torch.tensor([0] * 4 + [1] * image.shape[1])).expand(len(x), -1, -1)
        places = m.places(torch.arange(4 + image.shape[1])).expand(len(x), -1, -1)
        return m.fc(m.encoder(torch.cat([text, image], 1) + types + places)[:, 0])

    tables = {"words": nn.Embedding(9, 16), "types": nn.Embedding(2, 16), "places": nn.Embedding(68, 16)}
    return Of(run, patch=nn.Conv2d(3, 16, 8, 8), encoder=encoder(layers=3), fc=nn.Linear(16, 5), **tables)


def length_first() -> nn.Module:
    parts = {"patch": nn.Conv2d(3, 16, 8, 8), "encoder": encoder(batch_first=False), "fc": nn.Linear(16, 5)}
    return Of(lambda m, x: m.fc(m.encoder(m.patch(x).flatten(2).permute(2, 0, 1)).mean(0)), **parts)


def channels_last() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        grid = m.patch(x).permute(0, 2, 3, 1)
        return m.fc((grid + m.mix(m.norm(grid))).mean((1, 2)))

    mix = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    return Of(run, patch=nn.Conv2d(3, 16, 8, 8), norm=nn.LayerNorm(16), mix=mix, fc=nn.Linear(16, 5))


class UNet(nn.Module):
    """A U-Net of three levels; its output is a picture of classes, or their mean (`pooled`)."""

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.three = convs(3, 8, stride=1), convs(8, 12), convs(12, 16)
        self.up_two, self.up_one = convs(28, 12, stride=1), convs(20, 8, stride=1)
        self.out, self.pooled = nn.Conv2d(8, 5, 1), pooled

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(one)
        three = self.three(two)
        two = self.up_two(torch.cat([functional.interpolate(three, scale_factor=2), two], 1))
        out = self.out(self.up_one(torch.cat([functional.interpolate(two, scale_factor=2), one], 1)))
        return out.mean((2, 3)) if self.pooled else out


def pyramid() -> nn.Module:
    """A feature pyramid: the levels are summed from the top, pooled, and classified together."""

    def run(m: Any, x: Tensor) -> Tensor:
        a = m.one(x)
        b = m.two(a)
        top = m.top(b)
        low = m.low(a) + functional.interpolate(top, scale_factor=2)
        return m.fc(torch.cat([m.smooth_low(low).mean((2, 3)), m.smooth_top(top).mean((2, 3))], 1))

    parts = {"one": convs(3, 8, 8), "two": convs(8, 12), "top": nn.Conv2d(12, 8, 1), "low": nn.Conv2d(8, 8, 1)}
    smooth = {"smooth_low": nn.Conv2d(8, 8, 3, 1, 1), "smooth_top": nn.Conv2d(8, 8, 3, 1, 1)}
    return Of(run, fc=nn.Linear(16, 5), **parts, **smooth)


def many_scales() -> nn.Module:
    """The pooled features of every stage are classified together."""

    def run(m: Any, x: Tensor) -> Tensor:
        pooled = []
        for stage in m.stages:
            x = stage(x)
            pooled.append(x.mean((2, 3)))
        return m.fc(torch.cat(pooled, 1))

    return Of(run, stages=nn.ModuleList([convs(3, 8), convs(8, 12), convs(12, 16)]), fc=nn.Linear(36, 5))


def one_by_one() -> nn.Module:
    return Of(
        lambda m, x: torch.cat([m.head(m.body(image[None])) for image in x]),
        **{"body": convs(3, 8, 8, 8), "head": head(8)},
    )


def frozen() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = m.body(x)
        return m.head(features)

    return Of(run, body=convs(3, 8, 8, 8), head=head(8))


def prediction() -> nn.Module:
    """The pooled convolution is the prediction itself."""
    return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def fully_convolutional() -> nn.Module:
    return nn.Sequential(convs(3, 8, 8, 8), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def signal() -> nn.Module:
    body = nn.Sequential(nn.Conv1d(2, 8, 7, 4, 3), nn.ReLU(), nn.Conv1d(8, 8, 5, 4, 2), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5))


def volume() -> nn.Module:
    body = nn.Sequential(nn.Conv3d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv3d(6, 8, 3, 2, 1), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5))


def residual_around() -> nn.Module:
    """The mean colour of the image goes to the head beside the features."""
    return Of(
        lambda m, x: m.fc(torch.cat([m.body(x).mean((2, 3)), x.mean((2, 3))], 1)),
        **{"body": convs(3, 8, 8, 8), "fc": nn.Linear(11, 5)},
    )


def shuffled() -> nn.Module:
    """The tokens are put into another order before the encoder, and the head reads their mean."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(m.encoder(m.patch(x).flatten(2).mT[:, m.order]).mean(1))

    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    network = Of(run, patch=nn.Conv2d(3, 16, 8, 8), encoder=encoder(), fc=nn.Linear(16, 5))
    network.register_buffer("order", order)
    return network


def transposed() -> nn.Module:
    """The image is turned by 90 degrees inside."""
    return Of(lambda m, x: m.head(m.body(x.mT)), body=convs(3, 8, 8, 8), head=head(8))


def mirrored() -> nn.Module:
    """The image is mirrored inside."""
    return Of(lambda m, x: m.head(m.body(x.flip(-1))), body=convs(3, 8, 8, 8), head=head(8))


def one_row() -> nn.Module:
    """The patches are cut by unfolding, without a convolution."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(m.encoder(m.embed(functional.unfold(x, 8, stride=8).mT)).mean(1))

    return Of(run, embed=nn.Linear(192, 16), encoder=encoder(), fc=nn.Linear(16, 5))


def rows_of_cells() -> nn.Module:
    """A row of cells is read by a GRU, and the last step decides."""

    def run(m: Any, x: Tensor) -> Tensor:
        grid = m.body(x)
        return m.fc(m.rnn(grid.flatten(2).mT)[0][:, -1])

    return Of(run, body=convs(3, 8, 8, 8), rnn=nn.GRU(8, 8, batch_first=True), fc=nn.Linear(8, 5))


def glimpse() -> nn.Module:
    """A cropped centre and the whole picture run through the same convolutions."""

    def run(m: Any, x: Tensor) -> Tensor:
        centre = functional.interpolate(x[:, :, 16:48, 16:48], scale_factor=2)
        return m.fc(torch.cat([m.body(x).mean((2, 3)), m.body(centre).mean((2, 3))], 1))

    return Of(run, body=convs(3, 8, 8, 8), fc=nn.Linear(16, 5))


def gated() -> nn.Module:
    """Squeeze and excitation computed from the image, beside the features."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc((m.body(x) * m.gate(x.mean((2, 3))).sigmoid()[..., None, None]).mean((2, 3)))

    return Of(run, body=convs(3, 8, 8, 8), gate=nn.Linear(3, 8), fc=nn.Linear(8, 5))


def identity_head() -> nn.Module:
    network = nn.Sequential(convs(3, 8, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.add_module("fc", nn.Identity())
    return network


def flattened() -> nn.Module:
    return nn.Sequential(convs(3, 8, 8, 8), nn.Flatten(), nn.Linear(8 * 12 * 16, 16), nn.ReLU(), nn.Linear(16, 5))


def rows() -> Iterator[Row]:
    """Yields (name, builder, shape, call) of every odd network."""
    wide, square = (3, 96, 128), (3, 64, 64)
    yield "two streams fused late", two_streams, (4, 96, 128), None
    yield "two scales of the image", two_scales, wide, None
    yield "ensemble of 2", lambda: ensemble(2), wide, None
    yield "ensemble of 5", lambda: ensemble(5), wide, None
    yield "ensemble of 12", lambda: ensemble(12), wide, None
    yield "concatenated by a function", concatenated, wide, None
    yield "ArcFace head without a module", arc_face, wide, None
    yield "weight_norm", lambda: normed("weight_norm"), wide, None
    yield "spectral_norm", lambda: normed("spectral_norm"), wide, None
    yield "LoRA head", lora, wide, None
    yield "Identity head", identity_head, wide, None
    yield "flattened grid", flattened, wide, None
    yield "shrinks to 1 x 1", shrinking, (3, 32, 32), None
    yield "flip that does not count", flips_inside, wide, None
    yield "flips averaged", flips_averaged, wide, None
    yield "mirrored inside", mirrored, wide, None
    yield "turned by 90 degrees inside", transposed, square, None
    yield "siamese with a fixed image", siamese, wide, None
    yield "whole picture and its centre", glimpse, square, None
    yield "CRNN, mean of steps", crnn, (3, 64, 64), None
    yield "CRNN, last step", lambda: crnn(mean=False), (3, 64, 64), None
    yield "LSTM over rows of pixels", rows_of_pixels, (3, 32, 32), None
    yield "GRU over cells", rows_of_cells, wide, None
    yield "16 learned queries", queries, square, None
    yield "64 learned queries for 8 x 8 patches", lambda: queries(64), square, None
    yield "latents", latents, square, None
    yield "text, types and positions from tables", token_types, square, None
    yield "tokens (L, N, C)", length_first, square, None
    yield "tokens in another order", shuffled, square, None
    yield "patches by unfolding", one_row, square, None
    yield "grid (N, H, W, C)", channels_last, wide, None
    yield "U-Net", UNet, wide, None
    yield "U-Net, pooled", lambda: UNet(pooled=True), wide, None
    yield "feature pyramid", pyramid, wide, None
    yield "pooled features of every stage", many_scales, wide, None
    yield "image by image", one_by_one, wide, None
    yield "frozen backbone under no_grad", frozen, wide, None
    yield "convolution and pooling", prediction, wide, None
    yield "1 x 1 convolution and pooling", fully_convolutional, wide, None
    yield "mean colour beside the features", residual_around, wide, None
    yield "gate from the mean colour", gated, wide, None
    yield "signal", signal, (2, 256), None
    yield "volume", volume, (1, 24, 32, 32), None
