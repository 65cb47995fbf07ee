"""Trains the image-text model that ships with the library on captions of `konkyo.data.scenes`, and measures it.

    python scripts/train_scenes_clip.py

Its image tower starts as the shipped classifier, whose first three stages stay as they are. The loss is SigLIP's: a
sigmoid for each image and each text of the batch. Of every pair it is known whether the text is true of the image, so
no two captions are taken for different that say the same; pairs that cannot be told do not count. With every caption
come two that differ from it in a word. The scenes are rendered once into the cache folder, and a checkpoint is kept
there after each epoch; `--resume` continues.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from arguments import parser_of
from konkyo.data.sets.captions import WORDS, Caption, Facts, facts_of, near_misses, true_caption
from konkyo.data.sets.scenes import CLASSES, COLOURS, Scene, Scenes
from konkyo.models.networks.captions import ImageTower, ScenesClip, tokens_of, vocabulary
from konkyo.models.networks.scenes import SCENES_SIZE
from konkyo.models.shipped import scenes_classifier
from konkyo.utils.files import replacing
from provenance import write
from rendering import Arrays, rendered
from train_scenes_classifier import normalised

WEIGHTS = Path(__file__).parent.parent / "src/konkyo/models/weights/scenes-clip.safetensors"
UNSEEN = 1_000_003
"""Added to the seed for the scenes that measure; training uses the seed and the next."""
NAMES = [f"a {name.replace('_', ' ')}" for name in CLASSES]


def main() -> None:
    parser = parser_of(__doc__, WEIGHTS, "konkyo-clip", workers=1)
    parser.add_argument("--scenes", type=int, default=20_000, help="a third with one object, the others with 2 or 3")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="the highest learning rate of the cycle")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    words = WEIGHTS.with_name("scenes-clip-words.json")
    words.write_text(json.dumps(WORDS) + "\n")
    settings = {"seed": args.seed, "scenes": args.scenes, "size": SCENES_SIZE}
    kinds, names = len(CLASSES), len(COLOURS) + 1
    shapes = {
        "images": ((SCENES_SIZE, SCENES_SIZE, 3), np.uint8),
        "objects": ((kinds, names), np.float32),
        "left": ((kinds, kinds), np.float32),
    }
    model, seconds = train(rendered(args.cache, settings, shapes, draw, args.workers), args)
    training_data = {
        "data": "konkyo.data.scenes",
        "size": SCENES_SIZE,
        "with_one_object": {"scenes": args.scenes // 3, "seed": args.seed},
        "with_two_or_three_objects": {"scenes": args.scenes - args.scenes // 3, "seed": args.seed + 1},
        "captions": "konkyo.data.sets.captions: drawn anew in every epoch, with two near misses each",
        "starts_from": "konkyo/scenes-classifier, of which stem, stage1 and stage2 stay as they are",
        "epochs": args.epochs,
        "batch": args.batch,
        "rate": args.rate,
    }
    model = model.half().float()  # as it is stored
    results = {"seconds_of_training": round(seconds), **measure(model, args.seed + UNSEEN)}
    name = "konkyo.models.networks.captions.ScenesClip"
    write(args.out, model.half(), name, seed=args.seed, training_data=training_data, results=results)


def draw(settings: Mapping[str, Any], index: int) -> dict[str, object]:
    """A scene's image (H, W, 3) and its facts."""
    third = settings["scenes"] // 3
    if index < third:
        scene = Scenes(third, seed=settings["seed"], size=settings["size"], objects=1)[index]
    else:
        scene = Scenes(settings["scenes"], seed=settings["seed"] + 1, size=settings["size"], objects=(2, 3))[index]
    facts = facts_of([scene])
    return {"images": np.asarray(scene.image), "objects": facts.objects[0].numpy(), "left": facts.left[0].numpy()}


def captions_of(facts: Facts, rng: random.Random) -> tuple[list[Caption], list[Caption]]:
    """A true caption of every scene, and two near misses of each."""
    captions = [true_caption(objects, left, rng) for objects, left in zip(*facts, strict=True)]
    return captions, [miss for caption in captions for miss in near_misses(caption, rng)]


def loss_of(logits: Tensor, truth: Tensor) -> Tensor:
    """Of logits (B, 3 B) for B captions and two near misses of each: sigmoids, and a softmax over all texts.

    Pairs that are true, those with near misses and all others count as much as each other, whatever their number.
    """
    batch = len(logits)
    own = torch.cat([torch.eye(batch), torch.eye(batch).repeat_interleave(2, 1)], 1) > 0
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    true, false = truth == 1, truth == 0
    parts = [each[true].mean(), each[false & own].mean(), 3 * each[false & ~own].mean()]
    known = logits.masked_fill(truth == 0.5, -torch.inf)
    picked = known.logsumexp(1) - known.masked_fill(~true, -torch.inf).logsumexp(1)
    return sum(parts, torch.zeros(())) + picked.mean()


def embedding(tower: ImageTower, grid: Tensor) -> Tensor:
    """The same as `tower.deep`, in less time: in the block only the class token, which alone is read, attends."""
    tokens, last = tower.tokens(grid), tower.block
    read, attention = tokens[:, :1], last.attention
    width = tokens.shape[2]
    inner = last.norm1(tokens)
    q = F.linear(inner[:, :1], attention.qkv.weight[:width], attention.qkv.bias[:width])
    kv = F.linear(inner, attention.qkv.weight[width:], attention.qkv.bias[width:])
    k, v = kv.unflatten(2, (2, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    q = q.unflatten(2, (attention.heads, -1)).transpose(1, 2)
    weights = (q @ k.mT / k.shape[-1] ** 0.5).softmax(-1)
    read = read + attention.out((weights @ v).transpose(1, 2).flatten(2))
    read = read + last.mlp(last.norm2(read))
    result: Tensor = tower.projection(tower.norm(read[:, 0]))
    return result


def train(scenes: Arrays, args: argparse.Namespace) -> tuple[ScenesClip, float]:
    """The trained network in eval mode, and how many seconds it took."""
    model = ScenesClip(len(vocabulary()) + 2)
    body = scenes_classifier().state_dict()
    model.image_tower.load_state_dict({k: v for k, v in body.items() if not k.startswith("head")}, strict=False)
    model.to(memory_format=torch.channels_last)
    tower = model.image_tower
    fixed = [tower.stem, tower.stage1, tower.stage2]
    fresh = [tower.stage3, tower.stage4]
    for part in fixed:
        part.requires_grad_(False)
    slow = [p for part in fresh for p in part.parameters()]
    others = [p for p in model.parameters() if p.requires_grad and all(p is not q for q in slow)]
    optimiser = torch.optim.AdamW([{"params": slow}, {"params": others}], weight_decay=0.03)
    steps = len(scenes["images"]) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [args.rate, args.rate], total_steps=steps * args.epochs, pct_start=0.15
    )
    checkpoint, first, seconds = args.cache / "checkpoint.pt", 0, 0.0
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first, seconds = state["epoch"], state["seconds"]
    facts = Facts(*(torch.from_numpy(np.array(scenes[name])) for name in ("objects", "left")))
    for epoch in range(first, args.epochs):
        start, total = time.perf_counter(), 0.0
        rng = random.Random(f"{args.seed} {epoch}")
        torch.manual_seed(1000 * args.seed + epoch)
        model.train()
        for part in fixed:
            part.eval()
        for step, chosen in enumerate(torch.randperm(len(scenes["images"]))[: steps * args.batch].view(steps, -1)):
            rows = np.sort(chosen.numpy())
            mirror = torch.rand(len(rows)) < 0.5
            images = normalised(torch.from_numpy(scenes["images"][rows]))
            images = torch.where(mirror[:, None, None, None], images.flip(3), images)
            batch = Facts(*(one[rows] for one in facts)).mirrored(mirror)
            captions, misses = captions_of(batch, rng)
            texts = [*captions, *misses]
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    shallow = tower.shallow(images.contiguous(memory_format=torch.channels_last))
                pictured = embedding(tower, shallow).float()
                read = model.get_text_features(tokens_of([text.worded(rng) for text in texts])).float()
            loss = loss_of(model.logits(pictured, read), batch.truth(texts))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
            if step % 50 == 49:
                spent = time.perf_counter() - start
                print(f"epoch {epoch + 1} step {step + 1} of {steps}: loss {total / 50:.4f}, {spent:.0f} s", flush=True)
                total = 0.0
        seconds += time.perf_counter() - start
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
                 "epoch": epoch + 1, "seconds": seconds}  # fmt: skip
        with replacing(checkpoint) as new:
            torch.save(state, new)
        quick = measure(model.eval(), args.seed + UNSEEN - 10, 200)
        print(f"epoch {epoch + 1} of {args.epochs}: {json.dumps(quick)}, {seconds:.0f} s", flush=True)
    return model.eval(), seconds


# --- measuring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def embedded(model: ScenesClip, scenes: Sequence[Scene]) -> Tensor:
    images = [torch.from_numpy(np.array(scene.image)) for scene in scenes]
    parts = [model.get_image_features(normalised(torch.stack(images[i : i + 50]))) for i in range(0, len(images), 50)]
    return torch.cat(parts)


@torch.no_grad()
def measure(model: ScenesClip, seed: int, count: int = 400) -> dict[str, object]:
    """The numbers of the provenance file, all from scenes of seeds that training never saw."""
    single = list(Scenes(count, seed=seed, objects=1))
    labels = torch.cat([scene.labels for scene in single])
    read = model.get_text_features(tokens_of([f"a photo of {name}" for name in NAMES]))
    logits = model.logits(embedded(model, single), read)
    own, twin = (logits.gather(1, which[:, None])[:, 0] for which in (labels, labels ^ 1))
    results: dict[str, object] = {
        "ten_classes_on_scenes_with_one_object": {
            "scenes": count,
            "seed": seed,
            "texts": "a photo of a CLASS",
            "top_1": share(logits.argmax(1) == labels),
            "own_class_above_twin": share(own > twin),
        }
    }
    for number, (low, high) in enumerate(((1, 1), (2, 2), (1, 3)), start=1):
        scenes = list(Scenes(count, seed=seed + number, objects=(low, high)))
        words = f"{low}" if low == high else f"{low}_to_{high}"
        results[f"retrieval_on_scenes_with_{words}_objects"] = {
            "scenes": count,
            "seed": seed + number,
            **retrieval(model, scenes, seed + number),
        }
    return results


@torch.no_grad()
def retrieval(model: ScenesClip, scenes: Sequence[Scene], seed: int, among: int = 20) -> dict[str, object]:
    """Of every scene, whether the one true caption of 20 scores highest.

    The others are near misses of it and captions of other scenes, all of them false of the scene.
    """
    rng = random.Random(seed)
    facts, images = facts_of(scenes), embedded(model, scenes)
    captions, misses = captions_of(facts, rng)
    right, kinds = [], []
    for n, caption in enumerate(captions):
        here = Facts(facts.objects[n : n + 1], facts.left[n : n + 1])
        others = dict.fromkeys([*misses[2 * n : 2 * n + 2], *rng.sample(captions, min(200, len(captions)))])
        others.pop(caption, None)
        false = [other for other, true in zip(others, here.truth(list(others))[0].tolist(), strict=True) if true == 0]
        texts = [caption, *false[: among - 1]]
        assert len(texts) == among
        read = model.get_text_features(tokens_of([text.text for text in texts]))
        right.append(bool(model.logits(images[n : n + 1], read)[0].argmax() == 0))
        kinds.append(
            "sides" if caption.left else "two" if caption.other >= 0 else "colour" if caption.colour < 10 else "class"
        )
    by_kind = {kind: [r for r, k in zip(right, kinds, strict=True) if k == kind] for kind in sorted(set(kinds))}
    return {
        "candidates": among,
        "top_1": share(torch.tensor(right)),
        "top_1_by_caption": {kind: share(torch.tensor(rights)) for kind, rights in by_kind.items()},
        "captions": {kind: len(rights) for kind, rights in by_kind.items()},
    }


def share(hits: Tensor) -> float:
    return round(hits.float().mean().item(), 4)


if __name__ == "__main__":
    main()
