"""Augmentation that a network's own maps guide, when there are few images.

Drawn scans with a lesion anywhere. The maps are Grad-CAM's of the network in training, made anew in every epoch; with
blank maps in their place the same functions are CutMix and Cutout. Prints accuracy on unseen scans, and how much of the
lesion was cut or hidden.

    python examples/saliency_mixing.py
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
from konkyo.data import Lesions
from konkyo.data.sets.lesions import CLASSES
from konkyo.training import keep_salient_cutout, saliency_mix

SIDE = 16
"""Of the squares that are cut, of 48 pixels."""


def scans(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 1, 48, 48), labels, and masks of lesions anywhere."""
    prepare = konkyo.Preprocess(48, None, (0.3,), (0.25,))
    samples = list(Lesions(count, seed=seed, places="random"))
    masks = [sample.annotations[0].mask for sample in samples]
    return (
        torch.stack([prepare(sample.image) for sample in samples]),
        torch.tensor([CLASSES.index(str(sample.label)) for sample in samples]),
        torch.stack([mask for mask in masks if mask is not None]),
    )


def network() -> nn.Module:
    """Four blocks, the last on a grid of 6 x 6, its mean, and one linear layer."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, len(CLASSES)))


def trained(how: str, data: tuple[Tensor, Tensor, Tensor], seed: int, epochs: int) -> tuple[nn.Module, float]:
    """A network after training, and the share of the lesions' pixels that were cut or pasted over."""
    torch.manual_seed(seed)
    images, labels, masks = data
    model, generator, hidden = network(), torch.Generator().manual_seed(seed), [0.0]
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for epoch in range(epochs):
        maps = torch.zeros(len(images), 6, 6)  # blank: any place
        if how in ("SaliencyMix", "KeepAugment") and epoch >= 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", konkyo.KonkyoWarning)  # of blank maps, which are part of the game
                maps = konkyo.explain(model, images, target=labels).maps
        for rows in torch.randperm(len(images)).split(32):
            batch, aims = images[rows], functional.one_hot(labels[rows], len(CLASSES)).float()
            changed = torch.zeros(len(rows), *images.shape[2:], dtype=torch.bool)
            if how in ("CutMix", "SaliencyMix"):
                batch, aims, changed, _ = saliency_mix(batch, aims, maps[rows], generator)
            elif how in ("Cutout", "KeepAugment"):
                batch, changed = keep_salient_cutout(batch, maps[rows], generator, side=SIDE)
            hidden.append(float((changed & masks[rows]).sum() / masks[rows].sum()))
            loss = functional.cross_entropy(model(batch), aims)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        slower.step()
    return model.eval(), mean(hidden[1:] or hidden)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    images, labels, _ = scans(3 * options.images, 1000)
    print(f"{options.images} training images, {len(images)} unseen; seeds: {options.seeds}, mean ± sd")
    print(f"{'augmentation':<16}{'accuracy':>14}{'lesion hidden':>16}")
    for how in ("none", "CutMix", "SaliencyMix", "Cutout", "KeepAugment"):
        right, hidden = list[float](), list[float]()
        for seed in range(options.seeds):
            model, share = trained(how, scans(options.images, seed), seed, options.epochs)
            with torch.no_grad():
                right.append(100 * float((model(images).argmax(1) == labels).float().mean()))
            hidden.append(100 * share)
        print(f"{how:<16}{f'{mean(right):.1f} ± {pstdev(right):.1f}':>14}{f'{mean(hidden):.1f} %':>16}", flush=True)


if __name__ == "__main__":
    main()
