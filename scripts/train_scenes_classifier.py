"""Trains the classifier that ships with the library on `konkyo.data.scenes`, measures it, writes weights and numbers.

    python scripts/train_scenes_classifier.py

It renders the scenes once into the cache folder and keeps a checkpoint there after each epoch; `--resume` continues.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from arguments import parser_of
from konkyo.data.sets.scenes import CLASSES, Scenes
from konkyo.models.networks.scenes import SCENES_MEAN, SCENES_SIZE, SCENES_STD, ScenesResNet
from konkyo.utils.files import replacing
from provenance import write
from rendering import rendered

WEIGHTS = Path(__file__).parent.parent / "src/konkyo/models/weights/scenes-classifier.safetensors"
UNSEEN = 1_000_003
"""Added to the seed for the scenes that measure; training uses the seed and the next."""


def main() -> None:
    parser = parser_of(__doc__, WEIGHTS, "konkyo-scenes")
    parser.add_argument("--scenes", type=int, default=24_000, help="half with one object, half with one to three")
    parser.add_argument("--epochs", type=int, default=7, help="two of them to warm up")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3, help="the highest learning rate of the cycle")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    settings = {"seed": args.seed, "scenes": args.scenes, "size": SCENES_SIZE}
    shapes = {"images": ((SCENES_SIZE, SCENES_SIZE, 3), np.uint8), "targets": ((len(CLASSES),), np.float32)}
    scenes = rendered(args.cache, settings, shapes, draw, args.workers)
    model, seconds = train(scenes["images"], scenes["targets"], args)
    training_data = {
        "data": "konkyo.data.scenes",
        "size": SCENES_SIZE,
        "with_one_object": {"scenes": args.scenes // 2, "seed": args.seed},
        "with_one_to_three_objects": {"scenes": args.scenes - args.scenes // 2, "seed": args.seed + 1},
        "epochs": args.epochs,
        "batch": args.batch,
        "rate": args.rate,
    }
    results = {"seconds_of_training": round(seconds), **measure(model, args.seed + UNSEEN)}
    name = "konkyo.models.networks.scenes.ScenesResNet"
    write(args.out, model, name, seed=args.seed, training_data=training_data, results=results)


def training_sets(seed: int, scenes: int) -> tuple[Scenes, Scenes]:
    half = scenes // 2
    return (
        Scenes(half, seed=seed, size=SCENES_SIZE, objects=1),
        Scenes(scenes - half, seed=seed + 1, size=SCENES_SIZE, objects=(1, 3)),
    )


def soft_label(labels: Tensor) -> np.ndarray:
    """Uniform over the classes present."""
    present = np.zeros(len(CLASSES), np.float32)
    present[labels.numpy()] = 1
    return present / present.sum()


def draw(settings: Mapping[str, Any], index: int) -> dict[str, object]:
    """A scene's image (H, W, 3) and soft label (10,)."""
    single, several = training_sets(settings["seed"], settings["scenes"])
    scene = single[index] if index < len(single) else several[index - len(single)]
    return {"images": np.asarray(scene.image), "targets": soft_label(scene.labels)}


def normalised(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) as the network takes it, channels last in memory."""
    scaled = (images.float() / 255 - torch.tensor(SCENES_MEAN)) / torch.tensor(SCENES_STD)
    return scaled.permute(0, 3, 1, 2)


def augmented(images: Tensor) -> Tensor:
    """Half of them mirrored, each with its own brightness and tint."""
    n = len(images)
    images = torch.where(torch.rand(n, 1, 1, 1) < 0.5, images, images.flip(3))
    return images * (1 + 0.1 * torch.randn(n, 3, 1, 1)) + 0.15 * torch.randn(n, 1, 1, 1)


def train(images: np.ndarray, targets: np.ndarray, args: argparse.Namespace) -> tuple[ScenesResNet, float]:
    """The trained network in eval mode, and how many seconds it took."""
    model = ScenesResNet().to(memory_format=torch.channels_last).train()
    steps = len(images) // args.batch
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.rate, total_steps=steps * args.epochs, pct_start=min(2 / args.epochs, 0.5)
    )
    checkpoint, first, seconds = args.cache / "checkpoint.pt", 0, 0.0
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first, seconds = state["epoch"], state["seconds"]
        torch.set_rng_state(state["rng"])
    for epoch in range(first, args.epochs):
        start, total = time.perf_counter(), 0.0
        for step, chosen in enumerate(torch.randperm(len(images))[: steps * args.batch].view(steps, -1)):
            rows = np.sort(chosen.numpy())
            batch = augmented(normalised(torch.from_numpy(images[rows])))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), torch.from_numpy(targets[rows]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
            if step % 50 == 49:
                print(f"epoch {epoch + 1} step {step + 1} of {steps}: loss {total / (step + 1):.4f}", flush=True)
        seconds += time.perf_counter() - start
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
                 "epoch": epoch + 1, "seconds": seconds, "rng": torch.get_rng_state()}  # fmt: skip
        with replacing(checkpoint) as new:
            torch.save(state, new)
        quick = accuracy(model, Scenes(300, seed=args.seed + UNSEEN - 1, objects=1))
        print(
            f"epoch {epoch + 1} of {args.epochs}: loss {total / steps:.4f}, accuracy {quick:.3f}, {seconds:.0f} s",
            flush=True,
        )
    return model.eval(), seconds


@torch.no_grad()
def predict(model: ScenesResNet, scenes: Scenes) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Of every scene the logits (n, 10), its objects' labels, and its first object's class activation map and truth.

    The maps come as (3, H, W): the map, the object's mask, and the evidence.
    """
    model.eval()
    logits, labels, maps = [], [], []
    for scene in scenes:
        image = normalised(torch.from_numpy(np.asarray(scene.image).copy())[None])
        grid = model.stage4(model.stage3(model.stage2(model.stage1(model.stem(image)))))
        cam = torch.einsum("c,chw->hw", model.head.weight[scene.labels[0]], grid[0])
        cam = F.interpolate(cam[None, None], size=SCENES_SIZE, mode="bilinear")[0, 0]
        maps.append(torch.stack([cam, scene.masks[0].float(), scene.evidence[0].float()]))
        logits.append(model.head(grid.mean((-2, -1)))[0])
        labels.append(scene.labels)
    return torch.stack(logits), labels, maps


def accuracy(model: ScenesResNet, scenes: Scenes) -> float:
    logits, labels, _ = predict(model, scenes)
    model.train()
    return (logits.argmax(1) == torch.cat(labels)).float().mean().item()


def measure(model: ScenesResNet, seed: int) -> dict[str, object]:
    """The numbers of the provenance file, all from scenes of seeds that training never saw."""
    logits, labels, _ = predict(model, Scenes(2000, seed=seed, objects=1))
    truth, guess = torch.cat(labels), logits.argmax(1)
    confusion = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    confusion.index_put_((truth, guess), torch.ones_like(truth), accumulate=True)
    recall = confusion.diag() / confusion.sum(1)
    wrong = confusion - confusion.diag().diag()
    worst = [(int(wrong[i, j]), CLASSES[i], CLASSES[j]) for i, j in wrong.nonzero().tolist()]
    twins = sum(n for n, a, b in worst if CLASSES.index(a) // 2 == CLASSES.index(b) // 2)
    logits, labels, _ = predict(model, Scenes(1000, seed=seed + 1, objects=2))
    both = [set(row.topk(2).indices.tolist()) == set(pair.tolist())
            for row, pair in zip(logits, labels, strict=True) if len(set(pair.tolist())) == 2]  # fmt: skip
    maps = torch.stack(predict(model, Scenes(300, seed=seed + 2, objects=1))[2])
    peak = maps[:, 0].flatten(1).argmax(1)
    wide = F.max_pool2d(maps[:, 2:], 17, 1, 8)[:, 0]
    regions = {"object": maps[:, 1], "evidence": maps[:, 2], "evidence_widened_by_8_pixels": wide}
    return {
        "unseen_scenes_with_one_object": {
            "scenes": len(truth),
            "seed": seed,
            "accuracy": round((truth == guess).float().mean().item(), 4),
            "recall": {name: round(r, 4) for name, r in zip(CLASSES, recall.tolist(), strict=True)},
            "errors_between_twins": twins,
            "errors": {f"{a} taken for {b}": n for n, a, b in sorted(worst, reverse=True)[:6]},
        },
        "unseen_scenes_with_two_classes": {
            "scenes": len(both),
            "seed": seed + 1,
            "share_with_both_as_top_two": round(sum(both) / len(both), 4),
        },
        "class_activation_maps": {
            "scenes": len(maps),
            "seed": seed + 2,
            "share_of_maxima_in": {
                k: round(r.flatten(1).gather(1, peak[:, None]).mean().item(), 4) for k, r in regions.items()
            },
            "share_of_image_covered_by": {k: round(r.mean().item(), 4) for k, r in regions.items()},
        },
    }


if __name__ == "__main__":
    main()
