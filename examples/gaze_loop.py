"""Gaze consistency in a plain PyTorch loop: evaluation every epoch, mixed precision, a checkpoint to go on from.

    python examples/gaze_loop.py --out gaze_loop

Begun again, it goes on after the last whole epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from konkyo.data import Examples
from konkyo.data.splits import splits
from konkyo.models import Preprocess
from konkyo.training import ClassBalancedSampler, ConsistencyLoss, LambdaSchedule, gaze_network


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Trains, prints a line per epoch and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="lesions:300")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("gaze_loop"))
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    size = (options.size, options.size)
    parts, prepare = splits(options.data), Preprocess(size, None, (0.5,), (0.5,))
    data, valid = (Examples(part, prepare, parts.classes) for part in (parts.train, parts.validation))
    sampler = ClassBalancedSampler(data.labels, classes=len(parts.classes), images=8)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = gaze_network(2, classes=len(parts.classes)).to(device)
    gaze, weight = ConsistencyLoss(model, (1, *size)), LambdaSchedule(3.0, start=1, end=3)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    stateful = {"model": model, "gaze": gaze, "optimiser": optimiser}
    checkpoint, begin, lines = options.out / "checkpoint.pt", 1, list[dict[str, float]]()
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, thing in stateful.items():
            thing.load_state_dict(saved[name])
        begin = saved["epoch"] + 1
    for epoch in range(begin, options.epochs + 1):
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch)  # so that dropout after a new start is what it would have been
        for module in (model, gaze):
            module.train()
        for images, classes in DataLoader(data, batch_sampler=sampler):
            images, classes = images.to(device), classes.to(device)
            with torch.autocast(device, torch.bfloat16):
                logits = model(images)
                loss = cross_entropy(logits, classes) + weight(epoch) * gaze(logits, classes)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for module in (model, gaze):
            module.eval()
        sums, count = torch.zeros(2), 0
        with torch.no_grad():  # the loss is a number here: the distance from the running maps
            for images, classes in DataLoader(valid, batch_size=32):
                images, classes = images.to(device), classes.to(device)
                logits = model(images)
                right = (logits.argmax(1) == classes).float().sum()
                sums += torch.stack([right, gaze(logits, classes) * len(images)]).cpu()
                count += len(images)
        lines.append({"epoch": epoch, "accuracy": float(sums[0] / count), "gaze": float(sums[1] / count)})
        print(lines[-1], flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        torch.save({name: thing.state_dict() for name, thing in stateful.items()} | {"epoch": epoch}, checkpoint)
    gaze.close()
    return lines


if __name__ == "__main__":
    main()
