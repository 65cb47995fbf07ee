"""Networks without a head, of three libraries, whose embeddings are linear from a layer on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.networks import seeded


def of_torchvision() -> nn.Module:
    import torchvision

    resnet = torchvision.models.resnet
    network: nn.Module = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    network.fc = nn.Identity()
    return network


def of_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    network: nn.Module = timm.create_model("resnet10t", num_classes=0)
    return network


def of_transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1]))  # type: ignore[no-any-return]


class WithHead(nn.Module):
    """Two convolutions, pooling and a linear layer with a bias, which embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.project = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.project(self.body(x).mean((2, 3)))
        return embedding


def dinov2(registers: int = 0) -> nn.Module:
    """Its weights are those that the library draws, with which cells still are of their own places."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**size, num_register_tokens=registers)
        return transformers.Dinov2WithRegistersModel(config).double().eval()  # type: ignore[no-any-return]
    return transformers.Dinov2Model(transformers.Dinov2Config(**size)).double().eval()  # type: ignore[no-any-return]


LINEAR: dict[str, Callable[[], nn.Module]] = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "transformers": of_transformers,
}
"""A ReLU, global average pooling, and nothing after it."""


def embedder(name: str) -> nn.Module:
    return seeded(LINEAR[name]())


def vectors(network: nn.Module, x: Tensor) -> Tensor:
    """The embeddings (N, D) as the library gives them."""
    with torch.no_grad():
        output = network(x)
    vector: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return vector.flatten(1)


def noise(count: int = 1, size: int = 64, *, seed: int = 1) -> Tensor:
    """Noise images (count, 3, size, size) in double precision."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()
