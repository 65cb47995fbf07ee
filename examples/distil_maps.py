"""A small student with few images learns from the maps of the shipped classifier.

The teacher is `konkyo/scenes-classifier`; the student, a tenth of its size, is trained from scratch on a few drawn
scenes. Prints, for cross entropy alone, with the distance to the teacher's Grad-CAM, and with that to the teacher's
maps of other images (what any map would do): accuracy on unseen scenes, the distance of its maps from the teacher's
there, and the share of its maps that lies on the object.

    python examples/distil_maps.py
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from statistics import mean, pstdev

import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from konkyo.data import Scenes
from konkyo.data.sets.scenes import CLASSES
from konkyo.training import TrainingMaps, map_distillation

NAMES = ("cat", "taxi", "sailboat", "tulip", "lighthouse")
"""One of each pair of twins: telling twins apart takes thousands of scenes."""


def scenes(model: konkyo.Model, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 3, 128, 128), labels, masks of the object, and the teacher's maps (N, 16, 16) of the label."""
    assert model.preprocess is not None
    found = list(Scenes(count, seed=seed, objects=1, classes=NAMES))
    images = torch.stack([model.preprocess(scene.image) for scene in found])
    labels = torch.cat([scene.labels for scene in found])
    maps = [
        konkyo.explain(model, part, target=of).maps for part, of in zip(images.split(50), labels.split(50), strict=True)
    ]
    return images, labels, torch.cat([scene.masks for scene in found]), torch.cat(maps)


def network() -> nn.Module:
    """Four blocks, the last on a grid of 16 x 16, its mean, and one linear layer."""
    layers: list[nn.Module] = []
    for inside, outside, stride in ((3, 12, 2), (12, 24, 2), (24, 48, 2), (48, 64, 1)):
        layers += [nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))


def trained(weight: float, data: tuple[Tensor, ...], aims: Tensor, seed: int, epochs: int) -> nn.Module:
    """A student after training with the distance of its maps from `aims`."""
    torch.manual_seed(seed)
    images, labels = data[:2]
    model = network()
    maps = TrainingMaps(model, images.shape[1:])
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(16):
            logits = model(images[rows])
            loss = functional.cross_entropy(logits, labels[rows])
            if weight:
                loss = loss + weight * map_distillation(maps(logits, labels[rows]), aims[rows]).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        slower.step()
    maps.close()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--weight", type=float, default=10.0)
    options = parser.parse_args(arguments)
    teacher = konkyo.load("konkyo/scenes-classifier")
    test = scenes(teacher, options.images, 9_001)
    print(f"{options.images} training images, {options.images} unseen; seeds: {options.seeds}, mean ± sd")
    print(f"{'loss':<34}{'accuracy':>14}{'distance (mse)':>18}{'map on object':>16}{'blank':>8}")
    for name, weight in (("cross entropy", 0.0), ("+ teacher's maps", 1.0), ("+ maps of other images", 1.0)):
        columns: list[list[float]] = [[], [], [], []]
        for seed in range(options.seeds):
            train = scenes(teacher, options.images, 9_100 + seed)
            aims = train[3].roll(1, 0) if "other" in name else train[3]
            model = trained(weight * options.weight, train, aims, seed, options.epochs)
            images, labels, masks, maps = test
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", konkyo.KonkyoWarning)  # of blank maps, which are counted
                columns[0].append(100 * float((model(images).argmax(1) == labels).float().mean()))
                own = konkyo.explain(model, images, target=labels)
            said = map_distillation(own.maps, maps)
            columns[1].append(float(said.loss))
            columns[2].append(float(konkyo.metrics.ebpg(own.at(masks.shape[1:]), masks=masks).nanmean()))
            columns[3].append(100 * int(said.blank_student) / len(images))
        cells = [f"{mean(c):.{d}f} ± {pstdev(c):.{d}f}" for c, d in zip(columns[:3], (1, 3, 2), strict=True)]
        print(f"{name:<34}{cells[0]:>14}{cells[1]:>18}{cells[2]:>16}{f'{mean(columns[3]):.0f} %':>8}", flush=True)


if __name__ == "__main__":
    main()
