"""What konkyo and Quantus are asked about side by side: a network of two convolutions, its images, maps of slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 8
ROWS = 3


def network() -> nn.Module:
    """Four classes from one channel of `SIDE` pixels a side."""
    generator = torch.Generator().manual_seed(7)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4))
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return net.eval().requires_grad_(False)


NET = network()
IMAGES = torch.randn(ROWS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
CLASSES = NET(IMAGES).argmax(1)
"""What the network decides, of each image something else."""


def slopes(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """The gradients of the logits of the classes. -> (N, H, W)"""
    images = images.clone().requires_grad_()
    with torch.enable_grad():
        chosen = net(images)[torch.arange(len(images)), classes].sum()
        return torch.autograd.grad(chosen, images)[0].sum(1)


def explain_for_quantus(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
    """`slopes` as Quantus asks for them: arrays (N, 1, H, W)."""
    images, classes = torch.tensor(np.asarray(inputs), dtype=torch.float32), torch.tensor(np.asarray(targets))
    return slopes(model, images, classes)[:, None].numpy()
