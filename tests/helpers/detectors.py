"""Small detectors with random weights, the images for them, and the candidates that they could put out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import konkyo
from konkyo.models.detectors import Kept

CLASSES, SIZE = 3, (24, 32)


class DenseDetector(nn.Module):
    """A box and class probabilities for every place of a grid: (N, Q, 4 + K). `still` boxes do not move."""

    def __init__(self, *, still: bool = False) -> None:
        super().__init__()
        self.still = still
        self.body: nn.Module = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(inplace=True)
        )
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.Tanh(), nn.Conv2d(8, 4 + CLASSES, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.after([self.body(images)])

    def after(self, levels: Sequence[Tensor]) -> Tensor:
        """What follows the body."""
        return self.placed(self.head(levels[0]), 4)

    def placed(self, raw: Tensor, stride: int) -> Tensor:
        """(N, 4 + K, h, w) -> (N, h w, 4 + K): boxes around the places, probabilities."""
        down, across = torch.meshgrid(*(torch.arange(n) + 0.5 for n in raw.shape[2:]), indexing="ij")
        centres = torch.stack([across, down]).to(raw) * stride
        moved, grown = raw[:, :2].tanh() * (not self.still), raw[:, 2:4].tanh() * (not self.still)
        centres, halves = centres + 3 * moved, stride * (1.5 + grown)
        return torch.cat([centres - halves, centres + halves, (raw[:, 4:] - 1).sigmoid()], 1).flatten(2).mT


class PyramidDetector(DenseDetector):
    """The same on two levels, of 8 x 6 and 4 x 3 places."""

    class Body(nn.Module):
        """Two maps, the finer first."""

        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 8, 3, 2, 1), nn.Tanh())
            self.coarse = nn.Conv2d(8, 8, 3, 2, 1)

        def forward(self, images: Tensor) -> list[Tensor]:
            fine = self.fine(images)
            return [fine, self.coarse(fine).tanh()]

    def __init__(self) -> None:
        super().__init__()
        self.body = self.Body()
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.body(images))

    def after(self, levels: Sequence[Tensor]) -> Tensor:
        fine, coarse = levels
        upper = nn.functional.interpolate(self.mix(coarse), size=fine.shape[2:])
        return torch.cat([self.placed(self.head(fine + upper), 4), self.placed(self.head(coarse), 8)], 1)


def dense(network: DenseDetector | None = None, seed: int = 0) -> konkyo.Model:
    """A detector in double precision with seeded weights, every candidate a detection above the threshold."""
    network = DenseDetector() if network is None else network
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        scale = 2 * tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.3
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return wrapped(network)


def wrapped(network: nn.Module, classes: int = CLASSES) -> konkyo.Model:
    """The network, whose output are candidates and whose `body` is the layer, as a model of 0.5 +- 0.25 images."""

    def keep(output: Tensor, threshold: float) -> list[Kept]:
        kept = []
        for image in output:
            best = image[:, -classes:].max(1)
            order = [int(j) for j in best.values.argsort(descending=True) if best.values[j] > threshold]
            kept.append(Kept(torch.tensor(order, dtype=torch.int64), best.indices[order]))
        return kept

    return konkyo.Model(
        network.double().eval(),
        konkyo.Preprocess(SIZE, None, (0.5, 0.4, 0.3), (0.25, 0.2, 0.5)),
        detector=konkyo.Detector(classes, lambda module, images: module(images), keep, "body"),
    )


def noise(count: int = 1, seed: int = 1) -> Tensor:
    """Images (count, 3, 24, 32)"""
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def candidates(seed: int, *, per_class: bool = False) -> Tensor:
    """Random candidates of three images (3, 20, 4 B + 3) that overlap one another."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(3, 20, CLASSES if per_class else 1, 2, generator=generator, dtype=torch.float64) * 6
    high = low + 2 + 4 * torch.rand(low.shape, generator=generator, dtype=torch.float64)
    p = torch.rand(3, 20, CLASSES, generator=generator, dtype=torch.float64)
    return torch.cat([torch.cat([low, high], 3).flatten(2), p], 2)


class Recording(nn.Module):
    """Keeps every image that a detector is run on."""

    def __init__(self, network: DenseDetector) -> None:
        super().__init__()
        self.network, self.body = network, network.body
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += list(images.detach().clone())
        return self.network(images)


def recorded(count: int = 1) -> tuple[konkyo.Model, Recording, Tensor]:
    """A detector that records, and images without zeros, so that masks can be told from them."""
    network = Recording(dense().module)
    return wrapped(network), network, noise(count).abs() + 0.1
