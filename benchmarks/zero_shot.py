"""Measures maps of konkyo/scenes-clip against the part of the picture that tells a class from its twin.

    python benchmarks/zero_shot.py [--scenes 60] [--columns deletion,insertion] [--methods grad_eclip] [--out FOLDER]

It prints the tables of docs/zero_shot.md: what is explained is the logit of the scene's own class among ten texts, and
then the contrast with its twin. The scenes are of seeds that the network was not trained on. An interrupted run goes on
if --out is the same folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import konkyo
from konkyo.data.samples import Annotation, Sample
from konkyo.data.sets.scenes import CLASSES
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.result import Evaluation
from konkyo.models import Model
from konkyo.tasks.base import Explained, Matching
from konkyo.tasks.texts import ZeroShotTask

COLUMNS = ("ebpg@evidence", "pointing_game@evidence", "ebpg@mask", "pointing_game@mask", "deletion", "insertion")
AT_LAYER = ("grad_cam", "layer_cam", "hires_cam", "score_cam", "eigen_cam", "random_cam")
OTHERS = ("grad_eclip", "le_grad", "attention_rollout", "transformer_attribution", "edge_map")


@dataclass(frozen=True)
class TwinTask(ZeroShotTask):
    """As `ZeroShotTask`, but what is explained of a sample is why its class and not the class's twin."""

    def measured(self, sample: Sample, explained: Explained, matching: Matching) -> Any:
        """Returns the contrast of the sample's class and its twin."""
        del explained, matching
        assert sample.label is not None
        return konkyo.ContrastTarget(sample.label, CLASSES[CLASSES.index(sample.label) ^ 1])

    def matches(
        self, labels: Sequence[str], boxes: Tensor | None, annotations: Sequence[Annotation], matching: Matching
    ) -> list[tuple[int, ...] | None]:
        """Returns the things of the first class of every contrast."""
        return super().matches([label.partition(",")[0] for label in labels], boxes, annotations, matching)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--methods", help="of those that are measured, these only")
    parser.add_argument("--weights", default="default", help="another file of weights")
    parser.add_argument("--out", type=Path, help="a folder for every value")
    args = parser.parse_args()
    model = konkyo.load("konkyo/scenes-clip", weights=args.weights, texts=CLASSES, template="a photo of a {}")
    task = model.task
    assert isinstance(task, ZeroShotTask)
    twin_task = TwinTask(multilabel=True, scale=task.scale, bias=task.bias)
    of_twins = Model(
        model.module, model.preprocess, model.classes, f"{model.name} (twins)", call=model.call, task=twin_task
    )
    data = f"scenes:{args.scenes},objects=1"
    for explained, network in (("the class", model), ("the class and not its twin", of_twins)):
        for layer, methods in (("image_tower.stage4", AT_LAYER), (None, (*AT_LAYER[:2], *OTHERS))):
            if args.methods:
                methods = tuple(method for method in methods if method in args.methods.split(","))
            out = args.out and args.out / f"{'twins' if network is of_twins else 'class'}-{layer or 'automatic'}"
            result = evaluate(network, data, methods, args.columns.split(","), explained="label", layer=layer, out=out)
            print(f"\n{explained}, layer {layer or model.automatic_layers((3, 128, 128))[0].name}")
            print(of_methods(result, args.columns.split(",")), flush=True)


def of_methods(result: Evaluation, columns: Sequence[str]) -> str:
    """Every method's mean with a 95 % interval, each over the maps that are not blank, and how many are."""
    lines = [f"| | {' | '.join(columns)} | blank |", "|---" * (2 + len(columns)) + "|"]
    generator = torch.Generator().manual_seed(0)
    for method in result.methods:
        cells, blank = [], 0
        for name in columns:
            values = result.values(method, name)
            blank = max(blank, int(values.isnan().sum()))
            values = values[~values.isnan()]
            if not len(values):
                cells.append("-")
                continue
            draws = torch.randint(len(values), (2000, len(values)), generator=generator)
            low, high = values[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
            cells.append(f"{float(values.mean()):.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {method} | {' | '.join(cells)} | {blank} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
