"""A shortcut in the training images, and two losses that know where the lesion is.

Drawn scans of three kinds of lesion. A bright mark in a corner says which it is in nine of ten training images, and
nothing in the test images. Prints, for cross entropy alone, with the penalty on gradients outside the lesion (Ross et
al., 2017) and with that on Grad-CAM's energy outside of it: accuracy where the mark tells and where it is drawn, and
the share of Grad-CAM around the lesion.

    python examples/right_reasons.py
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Sequence
from statistics import mean, pstdev

import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from konkyo.data import Lesions
from konkyo.data.sets.lesions import CLASSES
from konkyo.training import TrainingMaps, outside_energy, right_reasons

CORNERS = ((2, 2), (2, 40), (40, 2))


def scans(count: int, seed: int, *, telling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 1, 48, 48), labels, masks around lesions anywhere; the mark tells the class of a share."""
    prepare, draw = konkyo.Preprocess(48, None, (0.3,), (0.25,)), random.Random(seed)
    samples = list(Lesions(count, seed=seed, places="random"))
    images = torch.stack([prepare(sample.image) for sample in samples])
    labels = torch.tensor([CLASSES.index(str(sample.label)) for sample in samples])
    masks = [sample.annotations[0].mask for sample in samples]
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = CORNERS[label if draw.random() < telling else draw.randrange(3)]
        image[:, y : y + 6, x : x + 6] = 2.0
    inside = torch.stack([mask for mask in masks if mask is not None])
    around = (
        functional.max_pool2d(inside[:, None].float(), 9, 1, 4)[:, 0] > 0
    )  # a lesion is seen against what is around
    return images, labels, around


def network() -> nn.Module:
    """Four blocks, the last on a grid of 6 x 6, its mean, and one linear layer."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, len(CLASSES)))


def trained(loss: str, weight: float, data: tuple[Tensor, ...], masked: int, seed: int, epochs: int) -> nn.Module:
    """A network after training; only the first `masked` images have a mask."""
    torch.manual_seed(seed)
    images, labels, masks = data
    known = masks & (torch.arange(len(masks)) < masked)[:, None, None]  # an empty mask is left out
    model = network()
    maps = TrainingMaps(model, images.shape[1:])
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(32):
            batch = images[rows].requires_grad_(loss == "gradients")
            logits = model(batch)
            total = functional.cross_entropy(logits, labels[rows])
            if loss == "gradients":
                total = total + weight * right_reasons(batch, logits, known[rows])
            elif loss == "energy":
                total = total + weight * outside_energy(maps(logits, labels[rows]), known[rows])
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
        slower.step()
    maps.close()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--masked", type=float, default=1.0, help="share of the training images that have a mask")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    test, masked = scans(options.images, 1000, telling=0.0), int(options.images * options.masked)
    print(f"{options.images} training images, {masked} with a mask; seeds: {options.seeds}, mean ± sd")
    print(f"{'loss':<26}{'accuracy, mark tells':>22}{'mark is drawn':>16}{'map around lesion':>20}")
    for name, loss, weight in (
        ("cross entropy", "none", 0.0),
        ("+ 30 x right_reasons", "gradients", 30.0),
        ("+ 0.3 x outside_energy", "energy", 0.3),
    ):
        columns: list[list[float]] = [[], [], []]
        for seed in range(options.seeds):
            train, told = scans(options.images, seed, telling=0.9), scans(options.images, 1001, telling=0.9)
            model = trained(loss, weight, train, masked, seed, options.epochs)
            with torch.no_grad():
                for column, (images, labels, _) in zip(columns, (told, test), strict=False):
                    column.append(100 * float((model(images).argmax(1) == labels).float().mean()))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", konkyo.KonkyoWarning)  # of blank maps, whose share is 0
                result = konkyo.explain(model, test[0], target=test[1])
            columns[2].append(float(konkyo.metrics.ebpg(result.at((48, 48)), masks=test[2]).nanmean()))
        cells = (f"{mean(values):.{d}f} ± {pstdev(values):.{d}f}" for values, d in zip(columns, (1, 1, 2), strict=True))
        print(f"{name:<26}{next(cells):>22}{next(cells):>16}{next(cells):>20}", flush=True)


if __name__ == "__main__":
    main()
