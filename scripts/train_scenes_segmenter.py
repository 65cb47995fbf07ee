"""Trains the segmenter that ships with the library on `konkyo.data.scenes`, measures it, writes weights and numbers.

    python scripts/train_scenes_segmenter.py

It begins with the body of the shipped classifier. It renders the scenes once into the cache folder and keeps a
checkpoint there after each epoch; `--resume` continues.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from arguments import parser_of
from konkyo.data.sets.scenes import CLASSES, Scene, Scenes
from konkyo.models.networks.scenes import SCENES_MEAN, SCENES_SIZE, SCENES_STD, ScenesSegmenter
from konkyo.models.shipped import scenes_classifier
from konkyo.utils.files import replacing
from provenance import write
from rendering import rendered

WEIGHTS = Path(__file__).parent.parent / "src/konkyo/models/weights/scenes-segmenter.safetensors"
UNSEEN = 1_000_003
"""Added to the seed for the scenes that measure; training uses the seed."""
OBJECTS = (1, 4)


def main() -> None:
    parser = parser_of(__doc__, WEIGHTS, "konkyo-segmenter", seed=10)
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=4, help="half of the first to warm up")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate of the cycle")
    parser.add_argument("--background", type=float, default=0.5, help="the weight of background in the cross-entropy")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    settings = {"seed": args.seed, "scenes": args.scenes, "size": SCENES_SIZE, "objects": list(OBJECTS)}
    shapes = {
        "images": ((SCENES_SIZE, SCENES_SIZE, 3), np.uint8),
        "labels": ((SCENES_SIZE, SCENES_SIZE), np.uint8),
    }
    scenes = rendered(args.cache, settings, shapes, draw, args.workers)
    model, seconds = train(scenes["images"], scenes["labels"], args)
    model.half().float()
    training_data = {
        "data": "konkyo.data.scenes",
        **settings,
        "epochs": args.epochs,
        "batch": args.batch,
        "rate": args.rate,
        "body": "konkyo/scenes-classifier, trained further",
    }
    results = {"seconds_of_training": round(seconds), **measure(model, args.seed + UNSEEN)}
    name = "konkyo.models.networks.scenes.ScenesSegmenter"
    write(args.out, model.half(), name, seed=args.seed, training_data=training_data, results=results)


def label_map(scene: Scene) -> Tensor:
    """Returns the class of every pixel (H, W) int64: 0 is background, c + 1 the class c of CLASSES."""
    return torch.where(scene.masks, scene.labels[:, None, None] + 1, 0).amax(0)


def draw(settings: Mapping[str, Any], index: int) -> dict[str, object]:
    """Returns a scene's image (H, W, 3) and its classes (H, W)."""
    scene = Scenes(settings["scenes"], seed=settings["seed"], size=settings["size"], objects=OBJECTS)[index]
    return {"images": np.asarray(scene.image), "labels": label_map(scene).numpy().astype(np.uint8)}


def normalised(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) as the network takes it, channels last in memory."""
    scaled = (images.float() / 255 - torch.tensor(SCENES_MEAN)) / torch.tensor(SCENES_STD)
    return scaled.permute(0, 3, 1, 2)


def augmented(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Half of them mirrored with their labels, each with its own brightness and tint."""
    n = len(images)
    mirrored = torch.rand(n, 1, 1, 1) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    labels = torch.where(mirrored[:, 0], labels.flip(2), labels)
    return images * (1 + 0.1 * torch.randn(n, 3, 1, 1)) + 0.15 * torch.randn(n, 1, 1, 1), labels


def loss_of(logits: Tensor, labels: Tensor, background: float) -> Tensor:
    """Cross-entropy with a lighter background, plus one minus the mean Dice of the classes in the batch."""
    weights = torch.ones(logits.shape[1])
    weights[0] = background
    log = logits.log_softmax(1)
    entropy = F.nll_loss(log, labels, weights)
    share = log.exp()
    truth = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2)
    both, either = (share * truth).sum((0, 2, 3)), (share + truth).sum((0, 2, 3))
    dice = ((2 * both + 1) / (either + 1))[labels.unique()]
    return entropy + 1 - dice.mean()


def rate_at(epoch: float, epochs: int) -> float:
    """Returns the learning rate as a share of the highest: half an epoch of warming up, then half a cosine to 0."""
    return min(1.0, 0.02 + 2 * epoch) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def train(images: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> tuple[ScenesSegmenter, float]:
    """Returns the trained network in eval mode, and how many seconds it took."""
    model = ScenesSegmenter()
    model.body.load_state_dict(scenes_classifier().state_dict(), strict=False)  # all but the head
    model = model.to(memory_format=torch.channels_last).train()
    steps = len(images) // args.batch
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.03)
    checkpoint, first, seconds = args.cache / "checkpoint.pt", 0, 0.0
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, seconds = state["epoch"], state["seconds"]
        torch.set_rng_state(state["rng"])
    for epoch in range(first, args.epochs):
        start, total = time.perf_counter(), 0.0
        for step, chosen in enumerate(torch.randperm(len(images))[: steps * args.batch].view(steps, -1)):
            rows = np.sort(chosen.numpy())
            batch, truth = augmented(
                normalised(torch.from_numpy(images[rows])), torch.from_numpy(labels[rows].astype(np.int64))
            )
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch)
            loss = loss_of(logits.float(), truth, args.background)
            optimiser.zero_grad()
            loss.backward()
            for group in optimiser.param_groups:
                group["lr"] = args.rate * rate_at(epoch + step / steps, args.epochs)
            optimiser.step()
            total += loss.item()
            if step % 50 == 49:
                rate = (step + 1) * args.batch / (time.perf_counter() - start)
                done = f"epoch {epoch + 1} step {step + 1} of {steps}"
                print(f"{done}: loss {total / (step + 1):.4f}, {rate:.0f} images/s", flush=True)
        seconds += time.perf_counter() - start
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(),
                 "epoch": epoch + 1, "seconds": seconds, "rng": torch.get_rng_state()}  # fmt: skip
        with replacing(checkpoint) as new:
            torch.save(state, new)
        quick = iou(confusion_of(model, Scenes(150, seed=args.seed + UNSEEN - 1, objects=OBJECTS))).mean()
        model.train()
        done = f"epoch {epoch + 1} of {args.epochs}"
        print(f"{done}: loss {total / steps:.4f}, mIoU {quick:.3f}, {seconds:.0f} s", flush=True)
    return model.eval(), seconds


@torch.no_grad()
def confusion_of(model: ScenesSegmenter, scenes: Scenes) -> Tensor:
    """Returns how many pixels of each true class (row) were given each class (column): (11, 11)."""
    model.eval()
    k = len(CLASSES) + 1
    counts = torch.zeros(k * k, dtype=torch.int64)
    for scene in scenes:
        image = normalised(torch.from_numpy(np.asarray(scene.image).copy())[None])
        guess = model(image)[0].argmax(0)
        counts += torch.bincount((label_map(scene) * k + guess).flatten(), minlength=k * k)
    return counts.view(k, k)


def iou(counts: Tensor) -> Tensor:
    """Returns the intersection over union of every class: (11,)."""
    hits = counts.diag()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def measure(model: ScenesSegmenter, seed: int) -> dict[str, object]:
    """Returns the numbers of the provenance file, from scenes of a seed that training never saw."""
    scenes = Scenes(1000, seed=seed, objects=OBJECTS)
    counts = confusion_of(model, scenes)
    scores = iou(counts)
    objects = counts[1:, 1:]
    twins = sum(int(objects[c, c ^ 1]) for c in range(len(CLASSES)))
    return {
        "unseen_scenes": {
            "scenes": len(scenes),
            "seed": seed,
            "objects": list(OBJECTS),
            "miou": round(scores.mean().item(), 4),
            "iou": {name: round(s, 4) for name, s in zip(("background", *CLASSES), scores.tolist(), strict=True)},
            "pixel_accuracy": round((counts.diag().sum() / counts.sum()).item(), 4),
            "share_of_object_pixels_given_to_the_twin": round(twins / int(counts[1:].sum()), 4),
        },
    }


if __name__ == "__main__":
    main()
