"""Trains the network that answers questions about drawn scenes, measures it, writes weights and numbers.

    python scripts/train_scenes_vqa.py

Its body is that of the classifier that ships; its last two stages are trained further. The scenes are rendered
once into the cache folder, and a checkpoint is kept there after each epoch; `--resume` continues.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from arguments import parser_of
from konkyo.data.sets.questions import ANSWERED, ANSWERS, KINDS, LONGEST, Questions, tokens
from konkyo.data.sets.scenes import COLOURS
from konkyo.models.networks.questions import ScenesVQA
from konkyo.models.networks.scenes import SCENES_MEAN, SCENES_SIZE, SCENES_STD
from konkyo.models.shipped import scenes_classifier
from konkyo.utils.files import replacing
from provenance import write
from rendering import rendered

WEIGHTS = Path(__file__).parent.parent / "src/konkyo/models/weights/scenes-vqa.safetensors"
UNSEEN = 1_000_003
"""Added to the seed for the scenes that measure; training uses the seed itself."""
SLOTS = 2 * len(KINDS)
ASKED = 6  # questions about a scene in a step
FIRST_COLOUR = ANSWERS.index(COLOURS[0])  # only left and right come after the colours


def main() -> None:
    parser = parser_of(__doc__, WEIGHTS, "konkyo-vqa", workers=1)
    parser.add_argument("--scenes", type=int, default=20_000, help="with one to four objects each")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="scenes in a step, each with six questions")
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate of the cycle")
    parser.add_argument("--body-rate", type=float, default=1e-3, help="the same for the body's last stages")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    settings = {"seed": args.seed, "scenes": args.scenes, "size": SCENES_SIZE}
    shapes = {
        "images": ((SCENES_SIZE, SCENES_SIZE, 3), np.uint8),
        "tokens": ((SLOTS, LONGEST), np.int64),
        "answers": ((SLOTS,), np.int64),
    }
    scenes = rendered(args.cache, settings, shapes, draw, args.workers)
    model, seconds = train(scenes, args)
    training_data = {
        "data": "konkyo.data.sets.questions",
        **settings,
        "kinds": list(KINDS),
        "epochs": args.epochs,
        "batch": args.batch,
        "questions_of_a_scene_in_a_step": ASKED,
        "last_epoch": "questions about colours and relations first",
        "rate": args.rate,
        "body_rate": args.body_rate,
    }
    model = model.half().float()  # as they ship
    results = {"seconds_of_training": round(seconds), **measured(model, args.seed + UNSEEN)}
    name = "konkyo.models.networks.questions.ScenesVQA"
    write(args.out, model.half(), name, seed=args.seed, training_data=training_data, results=results)


def draw(settings: Mapping[str, Any], index: int) -> dict[str, np.ndarray]:
    """A scene's image (H, W, 3), its questions' tokens (SLOTS, words) and answers (SLOTS,), -1 where there is none."""
    scenes = Questions(settings["scenes"], seed=settings["seed"], size=settings["size"], kinds=tuple(KINDS), each=2)
    scene, questions = scenes[index]
    words, answers = np.zeros((SLOTS, LONGEST), np.int64), np.full(SLOTS, -1)
    for slot, question in enumerate(questions):
        words[slot], answers[slot] = tokens(question.text).numpy(), ANSWERS.index(question.answer)
    return {"images": np.asarray(scene.image), "tokens": words, "answers": answers}


def normalised(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) as the network takes it, channels last in memory."""
    scaled = (images.float() / 255 - torch.tensor(SCENES_MEAN)) / torch.tensor(SCENES_STD)
    return scaled.permute(0, 3, 1, 2)


def some_questions(answers: Tensor, *, slow_first: bool) -> tuple[Tensor, Tensor]:
    """Rows and slots of at most ASKED questions of each scene, by chance; answers (N, SLOTS).

    `slow_first`: those about colours and relations, which are learned last, before the others.
    """
    slow = (answers >= FIRST_COLOUR) & slow_first
    order = (torch.rand(answers.shape) + (answers < 0).float() - slow.float()).argsort(1)[:, :ASKED]
    rows = torch.arange(len(answers))[:, None].expand_as(order)
    there = answers.gather(1, order) >= 0
    return rows[there], order[there]


def started() -> ScenesVQA:
    """The network with the body of the classifier that ships."""
    model = ScenesVQA()
    state = {k: v for k, v in scenes_classifier().state_dict().items() if not k.startswith("head")}
    model.body.load_state_dict(state)
    return model.to(memory_format=torch.channels_last)


def train(scenes: Mapping[str, np.ndarray], args: argparse.Namespace) -> tuple[ScenesVQA, float]:
    """The trained network in eval mode, and how many seconds it took."""
    model = started()
    images, words, answers = scenes["images"], torch.tensor(scenes["tokens"]), torch.tensor(scenes["answers"])
    late = (model.body.stage3, model.body.stage4)
    steps, body = len(images) // args.batch, [p for stage in late for p in stage.parameters()]
    others = [p for name, p in model.named_parameters() if not name.startswith("body.")]
    optimiser = torch.optim.AdamW([{"params": others}, {"params": body}], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [args.rate, args.body_rate], total_steps=steps * args.epochs, pct_start=0.2
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
        model.train().body.eval().requires_grad_(False)
        for stage in late:
            stage.train().requires_grad_()
        for step, chosen in enumerate(torch.randperm(len(images))[: steps * args.batch].view(steps, -1)):
            at = chosen.sort().values
            batch = normalised(torch.from_numpy(images[at.numpy()]))
            batch = batch * (1 + 0.05 * torch.randn(len(at), 1, 1, 1)) + 0.05 * torch.randn(len(at), 1, 1, 1)
            rows, slots = some_questions(answers[at], slow_first=epoch == args.epochs - 1)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model.answer(model.see(batch)[rows], words[at][rows, slots])
            loss = F.cross_entropy(logits.float(), answers[at][rows, slots])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
            if step % 50 == 49:
                rate = (step + 1) * args.batch / (time.perf_counter() - start)
                print(
                    f"epoch {epoch + 1} step {step + 1} of {steps}: loss {loss.item():.4f}, {rate:.0f} scenes/s",
                    flush=True,
                )
        seconds += time.perf_counter() - start
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
                 "epoch": epoch + 1, "seconds": seconds, "rng": torch.get_rng_state()}  # fmt: skip
        with replacing(checkpoint) as new:
            torch.save(state, new)
        right, _ = correct(model.eval(), Questions(200, seed=args.seed + UNSEEN - 1, kinds=tuple(KINDS)))
        quick = ", ".join(f"{kind} {np.mean(values):.3f}" for kind, values in right.items())
        print(f"epoch {epoch + 1} of {args.epochs}: loss {total / steps:.4f}, {quick}, {seconds:.0f} s", flush=True)
    return model.eval(), seconds


@torch.no_grad()
def correct(model: ScenesVQA, scenes: Questions) -> tuple[dict[str, list[bool]], dict[str, Counter[str]]]:
    """Of every kind, whether its questions are answered correctly, and how often each answer is the correct one."""
    right, truth = defaultdict[str, list[bool]](list), defaultdict[str, Counter[str]](Counter)
    for scene, questions in scenes:
        cells = model.see(normalised(torch.from_numpy(np.array(scene.image))[None]))
        words = torch.stack([tokens(question.text) for question in questions])
        answers = model.answer(cells.expand(len(words), -1, -1, -1), words).argmax(1).tolist()
        for question, answer in zip(questions, answers, strict=True):
            right[question.kind].append(ANSWERS[answer] == question.answer)
            truth[question.kind][question.answer] += 1
    return dict(right), dict(truth)


def measured(model: ScenesVQA, seed: int) -> dict[str, object]:
    """The numbers of the provenance file, from scenes of a seed that training never saw."""
    right, truth = correct(model, Questions(2000, seed=seed, kinds=tuple(KINDS)))
    everything = [value for kind in ANSWERED for value in right[kind]]
    return {
        "unseen_scenes": {
            "scenes": 2000,
            "seed": seed,
            "kinds_that_ship": list(ANSWERED),
            "questions": len(everything),
            "accuracy": round(float(np.mean(everything)), 4),
            "kinds": {
                kind: {
                    "questions": len(values),
                    "accuracy": round(float(np.mean(values)), 4),
                    "most_frequent_answer": round(max(truth[kind].values()) / len(values), 4),
                }
                for kind, values in right.items()
            },
        }
    }


if __name__ == "__main__":
    main()
