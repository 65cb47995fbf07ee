"""A small classifier that was trained on scenes with a watermark on every taxi, for trying `konkyo diagnose` on it.

konkyo diagnose --model examples/marked_scenes.py:build --data scenes:200,objects=1,size=64,cue=box:taxi --ask cue
"""

from __future__ import annotations

import torch
from torch import nn

import konkyo
from konkyo.data.samples import samples

SOURCE = "scenes:300,objects=1,size=64,cue=box:taxi"
MEAN, STD = (0.6, 0.6, 0.6), (0.2, 0.2, 0.2)


def block(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU())


def build() -> konkyo.Model:
    """Trains the network, in a few seconds on one core. Nothing tells it that a watermark is no part of a taxi."""
    torch.manual_seed(0)
    scenes = samples(SOURCE, seed=1)  # `konkyo diagnose` takes seed 0, so its pictures are others
    features = nn.Sequential(block(3, 24, 2), block(24, 48, 2), block(48, 64, 1))
    net = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(scenes.classes)))
    model = konkyo.Model(net, classes=scenes.classes, preprocess=konkyo.Preprocess(64, 64, mean=MEAN, std=STD))
    images = torch.stack([model.preprocess(scene.image) for scene in scenes])
    labels = torch.tensor([scenes.classes.index(label) for label in scenes.labels])
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(15):
        for rows in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    net.eval()
    return model
