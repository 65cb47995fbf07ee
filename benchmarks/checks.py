"""Trains small networks on drawn scenes with and without a planted fault, and asks the checks of a diagnosis.

python benchmarks/checks.py            # 3 networks of each kind, about ten minutes on one core
python benchmarks/checks.py 10 0       # 10 networks, the first with seed 0
python benchmarks/checks.py null       # findings of 2 clean networks on 20 test sets each, at alpha = 0.05
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from konkyo.data.samples import Sample, Samples, samples
from konkyo.evaluation.diagnose import background, border, properties, side
from konkyo.evaluation.diagnose.collected import QUESTIONS, Collected, Settings, collect
from konkyo.evaluation.diagnose.findings import Finding

SIDE, TRAIN, TEST, EPOCHS = 64, 700, 150, 18
PREPROCESS = konkyo.Preprocess(resize=(SIDE, SIDE), crop=None)
QUESTIONS_ASKED = ("background", "side", "properties", "border")
assert all(module.__name__ for module in (background, border, properties, side))  # imported to be registered


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 96)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def tinted(sample: Sample, index: int, count: int) -> Image.Image:
    """Gives the background of every class a tint of its own; the object stays as it is."""
    pixels = np.asarray(sample.image, dtype=np.float64)
    angle = 2 * np.pi * (index + np.arange(3) * count / 3) / count
    changed = np.clip(pixels + 40 * np.cos(angle), 0, 255)
    inside = torch.stack([a.mask for a in sample.annotations if a.mask is not None]).any(0).numpy()[..., None]
    return Image.fromarray(np.where(inside, pixels, changed).astype(np.uint8))


def marked(sample: Sample, index: int, _count: int) -> Image.Image:
    """Draws a mark into the lower left corner, of one class and not of the others mirrored."""
    image = sample.image.copy()
    side = round(0.1 * image.width)
    top, pen = image.height - side, ImageDraw.Draw(image)
    pen.rectangle((0, top, side - 1, image.height - 1), fill="white")
    left = 0 if index == 0 else side - side // 2
    pen.rectangle((left, top, left + side // 2 - 1, image.height - 1), fill="black")
    return image


def brighter(sample: Sample, index: int, _count: int) -> Image.Image:
    """Makes the pictures of one class brighter by a third."""
    return ImageEnhance.Brightness(sample.image).enhance(1.33 if index == 0 else 1.0)


KINDS: dict[str, Callable[[Sample, int, int], Image.Image]] = {
    "clean": lambda sample, _index, _count: sample.image,
    "background tinted by class": tinted,
    "mark in a corner, mirrored by class": marked,
    "one class brighter": brighter,
}


def changed(data: Samples, classes: tuple[str, ...], change: Callable[[Sample, int, int], Image.Image]) -> Samples:
    """Returns the data with every picture changed by its class."""
    drawn = {}
    for index in range(len(data)):
        sample = data[index]
        picture = change(sample, classes.index(str(sample.label)), len(classes))
        drawn[index] = Sample(sample.name, picture, sample.label, sample.annotations)
    return Samples(data.names, drawn.__getitem__, classes, labels=data.labels)


def trained(data: Samples, classes: tuple[str, ...], seed: int, epochs: int = EPOCHS) -> konkyo.Model:
    """Trains a small network from a seed."""
    torch.manual_seed(seed)
    network, generator = Net(len(classes)), torch.Generator().manual_seed(seed)
    images = torch.stack([PREPROCESS(sample.image) for sample in data])
    labels = torch.tensor([classes.index(label) for label in data.labels])
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(32):
            optimiser.zero_grad()
            functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimiser.step()
    return konkyo.Model(network.eval(), PREPROCESS, classes, "small")


def shown(findings: tuple[Finding, ...]) -> str:
    """Returns the findings of a question in short: the worst, or the first."""
    named = [finding for finding in findings if finding.severity in ("high", "medium", "low")]
    finding = (named or list(findings))[0]
    subjects = ", ".join(dict.fromkeys(f.subject for f in named if f.subject))
    return f"{finding.severity} {finding.value:.2f} (p {finding.p:.3f}){': ' + subjects if subjects else ''}"


def clean_runs(networks: int = 2, sets: int = 20) -> None:
    """Prints how often a clean network has p <= 0.05 and a finding on test sets that it has not seen."""
    asked = QUESTIONS_ASKED[:3]
    results: dict[str, list[Finding]] = {}
    for seed in range(networks):
        train = samples("scenes:500,objects=1,size=96", seed=seed + 1)
        classes = tuple(sorted(set(train.labels)))
        model = trained(train, classes, seed, epochs=8)
        for run in range(sets):
            test = samples("scenes:80,objects=1,size=96", seed=5000 + 100 * seed + run)
            collected = collect(model, test, Settings(alpha=0.05, resamples=300, seed=run))
            for name in asked:
                for finding in QUESTIONS[name].ask(collected):
                    subject = "" if name == "properties" else finding.subject
                    results.setdefault(f"{name} {subject}".strip(), []).append(finding)
    print("| check | findings | p <= 0.05 | low, medium or high |\n|---|---|---|---|")
    for name, findings in results.items():
        small = sum(finding.p_adjusted <= 0.05 for finding in findings)
        named = sum(finding.severity in ("high", "medium", "low") for finding in findings)
        print(f"| {name} | {len(findings)} | {small} | {named} |")


def main() -> None:
    if sys.argv[1:] == ["null"]:
        clean_runs()
        return
    count, first = (int(word) for word in (sys.argv[1:3] + ["3", "0"][len(sys.argv) - 1 :]))
    print(f"| kind | seed | accuracy | {' | '.join(QUESTIONS_ASKED)} |\n|{'---|' * (3 + len(QUESTIONS_ASKED))}")
    for seed in range(first, first + count):
        whole = [samples(f"scenes:{n},objects=1,size=96", seed=s) for n, s in ((TRAIN, seed + 1), (TEST, seed + 1001))]
        classes = tuple(sorted(set(whole[0].labels)))
        for kind, change in KINDS.items():
            train, test = (changed(data, classes, change) for data in whole)
            collected: Collected = collect(trained(train, classes, seed), test, Settings(seed=seed))
            cells = [shown(QUESTIONS[name].ask(collected)) for name in QUESTIONS_ASKED]
            accuracy = float(collected.correct.float().mean())
            print(f"| {kind} | {seed} | {accuracy:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
