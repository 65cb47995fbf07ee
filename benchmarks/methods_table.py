"""Every method on the models that ship: what it costs, counted in forwards, and how its maps are measured.

    python benchmarks/methods_table.py --out FOLDER [--models classifier,detector,...] [--images 12] [--most 500]

A folder per model in FOLDER, where an interrupted run goes on, also in counting; at the end
benchmarks/results-methods.json, of which
docs/generate.py makes the table of methods. Methods that cost more than `--most` forwards of an image are counted and
not measured; those that do on the classifier are counted there alone. The images are the same for all methods of a
model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import konkyo
from konkyo.data.samples import samples
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.evaluation.cost import forwards
from konkyo.evaluation.evaluate import evaluate
from konkyo.tasks.base import Matching
from konkyo.utils.files import read_json, write_text

RESULTS = Path(__file__).parent / "results-methods.json"


@dataclass(frozen=True)
class Setting:
    """A setting is a model, its data and the columns that its maps are measured by."""

    model: str
    data: str
    """With {count} for the number of images."""
    columns: tuple[str, ...]


SETTINGS = {
    "classifier": Setting(
        "konkyo/scenes-classifier",
        "scenes:{count},objects=1",
        ("deletion(steps=20)", "insertion(steps=20)", "ebpg@mask", "pointing_game@mask"),
    ),
    "detector": Setting(
        "konkyo/scenes-detr",
        "scenes:{count}",
        ("deletion(protocol=seed,steps=20)", "insertion(protocol=seed,steps=20)", "ebpg@mask", "pointing_game@mask"),
    ),
    "segmenter": Setting(
        "konkyo/scenes-segmenter",
        "scenes:{count}",
        ("deletion(substrate=blur,steps=20)", "insertion(steps=20)", "ebpg@mask", "pointing_game@mask"),
    ),
    "vqa": Setting(
        "konkyo/scenes-vqa",
        "questions:{count}",
        ("deletion(steps=20)", "insertion(steps=20)", "ebpg@mask", "pointing_game@mask"),
    ),
}


def measured(kind: str, count: int, most: float, folder: Path, dear: dict[str, float]) -> dict[str, Any]:
    """Returns the costs and the values of all methods that apply to a model.

    `dear`: the costs that were counted on another model. A method of more than `most` forwards there is neither
    counted nor measured again: what it costs are its samples.
    """
    setting = SETTINGS[kind]
    model, source = konkyo.load(setting.model), samples(setting.data.format(count=count))
    known = folder / kind / "costs.json"
    costs, refused = read_json(known) if known.is_file() else ({}, {})
    for name in konkyo.methods():
        if name in costs or name in refused or dear.get(name, 0) > most:
            continue
        start, sample = time.perf_counter(), source[0]
        try:
            costs[name] = forwards(model.prompted(question=sample.question), [sample], name)
        except NotApplicable as error:
            refused[name] = str(error)
        write_text(known, json.dumps([costs, refused]))
        print(f"{kind} {name}: {costs.get(name, 'refused')}, {time.perf_counter() - start:.1f} s", flush=True)
    chosen = [name for name, cost in costs.items() if cost <= most]
    parts = {}
    for name in chosen:  # a folder each, so that a new method is measured alone
        try:
            found = evaluate(
                model, source, [name], setting.columns, matching=Matching(), out=folder / kind / name, seed=0
            )
        except KonkyoError as error:
            refused[name] = str(error)
            continue
        cells = {c.name: found.cell(name, c.name) for c in found.columns}
        parts[name] = {c: [cell.value, cell.low, cell.high] for c, cell in cells.items()}
        maps = len(found.rows)
        print(f"{kind} {name}: {parts[name]}", flush=True)
    return {
        "model": setting.model,
        "data": setting.data.format(count=count),
        "columns": list(setting.columns),
        "maps": maps,
        "most": most,
        "costs": costs,
        "refused": refused,
        "values": {
            m: {c: [None if math.isnan(v) else v for v in vs] for c, vs in of.items()} for m, of in parts.items()
        },
    }


def main() -> None:
    """Measures what is asked for, and writes the results with what was there of other models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--most", type=float, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", konkyo.KonkyoWarning)
    results = read_json(RESULTS) if RESULTS.is_file() else {}
    for kind in arguments.models.split(","):
        dear = results.get("classifier", {}).get("costs", {}) if kind != "classifier" else {}
        results[kind] = measured(kind, arguments.images, arguments.most, arguments.out, dear)
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
