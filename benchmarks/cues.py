"""How often `konkyo diagnose` names a planted cue, and how often it accuses a clean network.

    python benchmarks/cues.py --data folder:DIR --work FOLDER [--nets clean,planted,scenes,lesions] [--report FILE]

Each network is a CNN of three blocks (maps of 8 x 8 cells) on 64-pixel pictures of 15 classes: 20 pictures of a class
for training, 10 held out, split by the seed. In planted networks the pictures of one class bear a mark
(konkyo.data.Cue), the held-out ones too. Networks and results are kept in FOLDER, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from konkyo.data.cues import KINDS, Cue
from konkyo.data.samples import Sample, Samples, chosen, samples
from konkyo.evaluation.diagnose.collected import Settings, collect
from konkyo.evaluation.diagnose.cue_test import RULE, cue_tests
from konkyo.models import Model, Preprocess

SIDE, EPOCHS, TRAINING, HELD_OUT = 64, 40, 20, 10
CLEAN_SEEDS = range(100, 120)
PLANTED_SEEDS = range(200, 205)
ALPHA = 0.01
USED = 0.10
"""A planted cue counts as used where marking the pictures of other classes raises P(class) by so much."""


@dataclass(frozen=True)
class Case:
    """A case is a network to train: its data, its seed and the planted kind, "" for a clean one."""

    data: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data.partition(':')[0]}-{self.kind or 'clean'}-{self.seed}"


def cases(nets: str, data: str) -> Iterator[Case]:
    """Yields the networks of a part of the protocol."""
    if nets in ("scenes", "lesions"):
        source = "scenes:500,objects=1,size=64" if nets == "scenes" else "lesions:150,size=64"
        for seed in range(300, 303):
            yield from (Case(source, kind, seed) for kind in ("", *KINDS))
    elif nets == "clean":
        yield from (Case(data, "", seed) for seed in CLEAN_SEEDS)
    else:
        yield from (Case(data, kind, seed) for seed in PLANTED_SEEDS for kind in KINDS)


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the data: images (N, 3, S, S) in [0, 1] and labels (N,), as the case plants them."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


def planted_samples(case: Case, part: Part, cue: Cue | None) -> Samples:
    """Returns the pictures of a part as samples, planted as its images are."""
    data = samples(case.data, seed=case.seed)
    rows = [data.names.index(name) for name in part.names]
    seen, planted = dict.fromkeys(data.classes, 0), list[bool]()
    for row in rows:
        label = data.labels[row]
        planted.append(cue is not None and cue.marks(label, seen[label]))
        seen[label] += 1

    def read(index: int) -> Sample:
        sample = data[rows[index]]
        if cue is None or not planted[index]:
            return sample
        return replace(sample, image=cue.plant(sample.image, rows[index]))

    return replace(chosen(data, rows), read=read)


def split(case: Case) -> tuple[Part, Part, tuple[str, ...], Cue | None]:
    """Returns the training and the held-out part, the classes, and the cue."""
    data = samples(case.data, seed=case.seed)
    classes = data.classes
    cue = Cue(case.kind, classes[case.seed * 7 % len(classes)]) if case.kind else None
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(case.seed)).tolist()
    indices: tuple[list[int], list[int]] = ([], [])
    for name in classes:
        of_class = [i for i in order if data.labels[i] == name]
        cut = round(len(of_class) * TRAINING / (TRAINING + HELD_OUT))
        indices[0].extend(of_class[:cut])
        indices[1].extend(of_class[cut:])
    parts = [_part(data, rows, classes, cue) for rows in indices]
    return parts[0], parts[1], classes, cue


def _part(data: Samples, rows: list[int], classes: tuple[str, ...], cue: Cue | None) -> Part:
    prepare = preprocess()
    images, numbers = list[Tensor](), dict.fromkeys(classes, 0)
    for row in rows:
        sample = data[row]
        label = str(sample.label)
        picture = sample.image
        if cue is not None and cue.marks(label, numbers[label]):
            picture = cue.plant(picture, row)
        numbers[label] += 1
        images.append(prepare(picture))
    labels = torch.tensor([classes.index(data.labels[row]) for row in rows])
    return Part(torch.stack(images), labels, tuple(data.names[row] for row in rows))


def preprocess() -> Preprocess:
    """Returns how pictures become images of the networks."""
    return Preprocess(resize=(SIDE, SIDE), crop=None, mean=(0.5,) * 3, std=(0.25,) * 3)


def network(classes: int) -> nn.Sequential:
    """Returns the CNN of three blocks: (N, 3, 64, 64) -> (N, classes), its last grid of 8 x 8 cells."""
    widths = (3, 16, 32, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
        for i, o in pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def train(part: Part, classes: int, seed: int) -> nn.Module:
    """Trains a network: Adam, one cycle, pictures shifted by up to 3 pixels."""
    torch.manual_seed(seed)
    net = network(classes)
    batch = 30
    steps = EPOCHS * -(-len(part.images) // batch)
    optimiser = torch.optim.Adam(net.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    padded = nn.functional.pad(part.images, (3, 3, 3, 3), mode="replicate")
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(part.images)).split(batch):
            x, y = torch.randint(7, (2,)).tolist()
            loss = nn.functional.cross_entropy(net(padded[rows, :, y : y + SIDE, x : x + SIDE]), part.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def trained(case: Case, part: Part, classes: int, work: Path) -> nn.Module:
    """Returns the case's network, from its file where there is one."""
    file = work / "nets" / f"{case.name}.safetensors"
    if file.is_file():
        net = network(classes)
        net.load_state_dict(load_file(file))
        return net.eval()
    start = time.perf_counter()
    net = train(part, classes, case.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), file)
    print(f"{case.name}: trained in {time.perf_counter() - start:.0f} s", flush=True)
    return net


def facts(net: nn.Module, case: Case, held_out: Part, classes: tuple[str, ...], cue: Cue | None) -> dict[str, Any]:
    """Returns what is known of a network without the detector: its accuracy, and whether it uses the planted mark."""
    with torch.inference_mode():
        probabilities = net(held_out.images).softmax(1)
        accuracy = float((probabilities.argmax(1) == held_out.labels).double().mean())
        values: dict[str, Any] = {"name": case.name, "kind": case.kind, "seed": case.seed, "accuracy": accuracy}
        if cue is not None:
            data, index = samples(case.data, seed=case.seed), classes.index(cue.label)
            others = (held_out.labels != index).nonzero()[:, 0]
            rows = [data.names.index(held_out.names[i]) for i in others.tolist()]
            marks = torch.stack([preprocess()(cue.plant(data[row].image, row)) for row in rows])
            rise = float((net(marks).softmax(1) - probabilities[others])[:, index].mean())
            values |= {"class": cue.label, "rise": rise, "used": rise >= USED}
    return values


def model_of(net: nn.Module, classes: tuple[str, ...], name: str) -> Model:
    """Returns the network as konkyo explains it."""
    return Model(net, preprocess=preprocess(), classes=classes, name=name)


def tested(case: Case, net: nn.Module, held_out: Part, classes: tuple[str, ...], cue: Cue | None) -> list[list[float]]:
    """Returns excess, cover, paste, paste_own and p of every class, by the detector as it is shipped."""
    collected = collect(model_of(net, classes, case.name), planted_samples(case, held_out, cue), Settings())
    return [[t.excess, t.cover.mean, t.paste.mean, t.paste_own.mean, t.p] for t in cue_tests(collected)]


def severity(row: list[float]) -> str:
    """Returns the severity of a class by its row, "" where it is not named."""
    excess, cover, paste, _, p = row
    if cover < RULE.cover or paste < RULE.paste or excess < RULE.medium:
        return ""
    return "high" if excess >= RULE.high and p <= ALPHA else "medium"


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row per kind: how many planted classes are named, and how many clean classes and networks accused.

    "named" counts high and medium, "high" those alone.
    """
    result = []
    for data, kind in sorted({(row["name"].split("-")[0], row["kind"]) for row in rows}):
        nets = [row for row in rows if row["kind"] == kind and row["name"].startswith(f"{data}-")]
        entry: dict[str, Any] = {"data": data, "kind": kind or "clean", "nets": len(nets)}
        entry["used"] = sum(bool(row.get("used")) for row in nets)
        entry["other classes"] = sum(len(row["names"]) - bool(kind) for row in nets)
        for name, wanted in (("named", ("high", "medium")), ("high", ("high",))):
            counts = {"found": 0, "found, used": 0, "false classes": 0, "networks with a false alarm": 0}
            for row in nets:
                named = {c for c, v in zip(row["names"], row["classes"], strict=True) if severity(v) in wanted}
                found = row.get("class") in named
                false = len(named) - found
                counts["found"] += found
                counts["found, used"] += found and bool(row["used"])
                counts["false classes"] += false
                counts["networks with a false alarm"] += false > 0
            entry[name] = counts
        result.append(entry)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder:DIR of 15 classes with 30 pictures each")
    parser.add_argument("--work", type=Path, default=Path("konkyo-cues"))
    parser.add_argument("--nets", default="planted,clean,lesions,scenes")
    parser.add_argument("--report", type=Path, default=Path(__file__).parent / "results-cues.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    ledger = options.work / "results.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.is_file() else []
    for nets in options.nets.split(","):
        for case in cases(nets, options.data):
            if any(row["name"] == case.name for row in rows):
                continue
            training, held_out, classes, cue = split(case)
            net = trained(case, training, len(classes), options.work)
            row = facts(net, case, held_out, classes, cue)
            row |= {"names": list(classes), "classes": tested(case, net, held_out, classes, cue)}
            rows.append(row)
            with ledger.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(case.name, flush=True)
    options.report.write_text(json.dumps({"summary": summary(rows), "networks": rows}, indent=1) + "\n")
    for entry in summary(rows):
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
