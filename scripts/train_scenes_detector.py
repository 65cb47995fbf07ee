"""Trains the detector that ships with the library on `konkyo.data.scenes`, measures it, writes weights and numbers.

    python scripts/train_scenes_detector.py

It is transformers' RT-DETR, small. A decoder that has to match queries to objects learns slowly from nothing, so there
are two stages: first all that comes before the decoder as a dense detector, every object told to several cells; then
the whole, with RT-DETR's own loss. The weights are a running mean of those that were trained. The scenes are rendered
once into the cache folder, and a checkpoint is kept there after each epoch; `--resume` continues.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, complete_box_iou_loss

from arguments import parser_of
from konkyo.data.sets.scenes import CLASSES, Scene, Scenes
from konkyo.models.networks.scenes import SCENES_SIZE
from konkyo.models.shipped import scenes_detector
from konkyo.utils.files import replacing
from provenance import write
from rendering import Arrays, rendered

WEIGHTS = Path(__file__).parent.parent / "src/konkyo/models/weights/scenes-detr.safetensors"
UNSEEN = 1_000_003
"""Added to the seed for the scenes that measure; training uses the seed itself."""
MOST = 8  # objects in a scene
WARM_UP = 300  # steps


def main() -> None:
    parser = parser_of(__doc__, WEIGHTS, "konkyo-detr")
    parser.add_argument("--scenes", type=int, default=32_000, help="with one to five objects each")
    parser.add_argument("--dense", type=int, default=5, help="epochs of the first stage")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the second stage")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dense-rate", type=float, default=3e-3)
    parser.add_argument("--rate", type=float, default=8e-4)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    settings = {"seed": args.seed, "scenes": args.scenes, "size": SCENES_SIZE}
    shapes = {
        "images": ((SCENES_SIZE, SCENES_SIZE, 3), np.uint8),
        "boxes": ((MOST, 4), np.float32),
        "labels": ((MOST,), np.int64),
    }
    scenes = rendered(args.cache, settings, shapes, draw, args.workers)
    model, seconds = train(scenes, args)
    training_data = {
        "data": "konkyo.data.scenes",
        **settings,
        "classes": len(CLASSES),
        "dense_epochs": args.dense,
        "whole_epochs": args.epochs,
        "batch": args.batch,
        "dense_rate": args.dense_rate,
        "rate": args.rate,
    }
    results = {"seconds_of_training": round(seconds), **measured(model, args.seed + UNSEEN)}
    name, libraries = "konkyo.models.shipped.scenes_detector", ("torch", "transformers")
    write(args.out, model, name, seed=args.seed, libraries=libraries, training_data=training_data, results=results)


def draw(settings: Mapping[str, Any], index: int) -> dict[str, np.ndarray]:
    """A scene's image (H, W, 3), boxes (8, 4) xyxy in [0, 1] and labels (8,), -1 where there is no object."""
    scene = Scenes(settings["scenes"], seed=settings["seed"], size=settings["size"])[index]
    boxes, labels, count = np.zeros((MOST, 4), np.float32), np.full(MOST, -1), len(scene.labels)
    boxes[:count], labels[:count] = scene.boxes.numpy() / settings["size"], scene.labels
    return {"images": np.asarray(scene.image), "boxes": boxes, "labels": labels}


def augmented(images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, H, W, 3) uint8 as the network takes them, half of them mirrored, with brightness and tint changed."""
    n = len(images)
    images = images.permute(0, 3, 1, 2).float() / 255
    mirror = torch.rand(n) < 0.5
    images = torch.where(mirror.view(-1, 1, 1, 1), images.flip(3), images)
    flipped = torch.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)
    images = images * (1 + 0.08 * torch.randn(n, 3, 1, 1)) + 0.04 * torch.randn(n, 1, 1, 1)
    images = images.clamp(0, 1).contiguous(memory_format=torch.channels_last)
    return images, torch.where(mirror.view(-1, 1, 1), flipped, boxes)


# --- two losses -------------------------------------------------------------------------------------------------------


def dense(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What every cell says before the decoder: class logits (N, A, K), boxes xyxy (N, A, 4), cells' centres (A, 2)."""
    core = model.model
    features = core.backbone.model(images).feature_maps
    maps = [project(m) for project, m in zip(core.encoder_input_proj, features, strict=True)]
    maps = core.encoder(maps).last_hidden_state
    maps = [project(m) for project, m in zip(core.decoder_input_proj, maps, strict=True)]
    anchors, _ = core.generate_anchors(tuple(tuple(m.shape[2:]) for m in maps), device=images.device)
    memory = core.enc_output(torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1))
    boxes = (core.enc_bbox_head(memory).float() + anchors).sigmoid()
    return core.enc_score_head(memory).float(), box_convert(boxes, "cxcywh", "xyxy"), anchors[0, :, :2].sigmoid()


def dense_loss(logits: Tensor, boxes: Tensor, centres: Tensor, truth: Tensor, labels: Tensor, top: int = 9) -> Tensor:
    """Every object is told to the `top` cells inside its box that name and place it best (task-aligned assignment)."""
    with torch.no_grad():
        x, y = centres.T
        t = truth[:, :, None]
        inside = (x > t[..., 0]) & (x < t[..., 2]) & (y > t[..., 1]) & (y < t[..., 3]) & (labels >= 0)[..., None]
        overlap = torch.stack([box_iou(a, b) for a, b in zip(truth, boxes, strict=True)])  # (N, G, A)
        named = logits.sigmoid().gather(2, labels.clamp(0)[:, None].expand(-1, logits.shape[1], -1)).transpose(1, 2)
        fit = (named.sqrt() * overlap.square() + 1e-6) * inside
        best = torch.zeros_like(fit).scatter(2, fit.topk(top, dim=2).indices, 1.0) * (fit > 0)
        owned, owner = (best * (overlap + 1e-6)).max(1)  # (N, A)
        taken = owned > 0
        # An object's best cell is told its overlap with it, the others less in proportion to their fit.
        share = fit.gather(1, owner[:, None])[:, 0] / fit.amax(2).gather(1, owner).clamp_min(1e-9)
        peak = (overlap * best).amax(2).gather(1, owner)
        quality = torch.where(taken, share * peak.clamp_min(0.1), 0.0)
        target = F.one_hot(labels.clamp(0).gather(1, owner), logits.shape[2]) * quality[..., None]
        weight = torch.where(target > 0, target, 0.75 * logits.sigmoid().square())
        count = quality.sum().clamp_min(1)
    naming = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / count
    found, own = boxes[taken], truth.gather(1, owner[..., None].expand(-1, -1, 4))[taken]
    placing = 2 * complete_box_iou_loss(found, own, reduction="none") + 5 * (found - own).abs().sum(1)
    return naming + (placing * (quality / count)[taken]).sum()


def whole_loss(model: Any, images: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
    """RT-DETR's own."""
    wanted = [
        {"class_labels": names[names >= 0], "boxes": box_convert(boxes[names >= 0], "xyxy", "cxcywh")}
        for names, boxes in zip(labels, truth, strict=True)
    ]
    loss: Tensor = model(images, labels=wanted).loss
    return loss


# --- training ---------------------------------------------------------------------------------------------------------


def train(scenes: Arrays, args: argparse.Namespace) -> tuple[nn.Module, float]:
    """The running mean of the weights in eval mode, and how many seconds it took."""
    model = scenes_detector().to(memory_format=torch.channels_last)
    mean, seconds, done = deepcopy(model).eval(), 0.0, 0
    steps = len(scenes["images"]) // args.batch
    checkpoint = args.cache / "checkpoint.pt"
    before = torch.load(checkpoint) if args.resume and checkpoint.exists() else None
    if before is not None:
        model.load_state_dict(before["model"])
        mean.load_state_dict(before["averaged"])
        done, seconds = before["epoch"], before["seconds"]
    for stage, rate, first, last in (
        ("dense", args.dense_rate, 0, args.dense),
        ("whole", args.rate, args.dense, args.dense + args.epochs),
    ):
        optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step, n=steps * (last - first): pace(step, n))
        if before is not None and before["stage"] == stage:
            optimiser.load_state_dict(before["optimiser"])
            schedule.load_state_dict(before["schedule"])
            torch.set_rng_state(before["rng"])
        for epoch in range(max(first, done), last):
            start, total = time.perf_counter(), 0.0
            model.train()
            for step, chosen in enumerate(torch.randperm(len(scenes["images"]))[: steps * args.batch].view(steps, -1)):
                rows = np.sort(chosen.numpy())
                images, truth = augmented(*(torch.from_numpy(scenes[name][rows]) for name in ("images", "boxes")))
                labels = torch.from_numpy(scenes["labels"][rows])
                if stage == "dense":
                    with torch.autocast("cpu", torch.bfloat16):
                        said = dense(model, images)
                    loss = dense_loss(*said, truth, labels)
                else:
                    loss = whole_loss(model, images, truth, labels)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 10.0 if stage == "dense" else 1.0)
                optimiser.step()
                schedule.step()
                follow(mean, model, step + (epoch - first) * steps)
                total += loss.item()
                if step % 50 == 49:
                    print(f"{stage} {epoch + 1} step {step + 1} of {steps}: loss {total / (step + 1):.4f}", flush=True)
            seconds += time.perf_counter() - start
            state = {"model": model.state_dict(), "averaged": mean.state_dict(), "optimiser": optimiser.state_dict(),
                     "schedule": schedule.state_dict(), "stage": stage, "epoch": epoch + 1, "seconds": seconds,
                     "rng": torch.get_rng_state()}  # fmt: skip
            with replacing(checkpoint) as new:
                torch.save(state, new)
            found = recall_and_precision(mean, Scenes(300, seed=args.seed + UNSEEN - 1)) if stage == "whole" else {}
            print(f"{stage} {epoch + 1}: loss {total / steps:.4f}, {found}, {seconds:.0f} s", flush=True)
    return mean.eval(), seconds


def pace(step: int, steps: int) -> float:
    """The share of the highest rate: a warm-up, then half a cosine down to a fiftieth."""
    return min((step + 1) / WARM_UP, 0.02 + 0.49 * (1 + math.cos(math.pi * min(1, step / steps))))


@torch.no_grad()
def follow(mean: nn.Module, model: nn.Module, step: int) -> None:
    """One step of the running mean of weights and statistics: over a thousand steps, fewer when a stage begins."""
    decay = min(0.999, (step + 1) / (step + 10))
    for kept, now in zip(mean.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - decay)
        else:
            kept.copy_(now)


# --- measuring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def detected(model: nn.Module, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """(scores, labels, boxes xyxy in pixels) of the queries with a score above 0.5, highest first."""
    image = torch.from_numpy(np.asarray(scene.image).copy()).permute(2, 0, 1)[None].float() / 255
    output = model(image)
    scores, labels = output.logits[0].sigmoid().max(1)
    order = scores.argsort(descending=True)
    order = order[scores[order] > 0.5]
    return scores[order], labels[order], box_convert(output.pred_boxes[0], "cxcywh", "xyxy")[order] * SCENES_SIZE


def recall_and_precision(model: nn.Module, scenes: Scenes) -> dict[str, float]:
    """At IoU 0.5 and score 0.5, each object matched once, by the detection of the highest score."""
    hits = claims = objects = 0
    for scene in scenes:
        _, labels, boxes = detected(model, scene)
        overlap = box_iou(boxes, scene.boxes) * (labels[:, None] == scene.labels)
        free = torch.ones(len(scene.labels))
        for row in overlap:
            best = (row * free).max(0)
            if best.values > 0.5:
                free[best.indices] = 0
                hits += 1
        claims, objects = claims + len(boxes), objects + len(scene.labels)
    return {"recall": round(hits / objects, 4), "precision": round(hits / max(1, claims), 4)}


def measured(model: nn.Module, seed: int) -> dict[str, object]:
    """The numbers of the provenance file, from scenes of seeds that training never saw."""
    return {
        "unseen_scenes": {
            f"with_{objects}_objects": {
                "scenes": 500,
                "seed": seed + objects,
                **recall_and_precision(model, Scenes(500, seed=seed + objects, objects=objects)),
            }
            for objects in range(1, 6)
        },
        "unseen_scenes_with_one_to_five_objects": {
            "scenes": 2000,
            "seed": seed,
            **recall_and_precision(model, Scenes(2000, seed=seed)),
        },
    }


if __name__ == "__main__":
    main()
