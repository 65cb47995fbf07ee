"""Measures maps of konkyo/scenes-vqa against the pixels that its answers are read from.

    python benchmarks/vqa.py [--questions 100] [--layer cells] [--precision bf16] [--out FOLDER]

It prints the tables of docs/vqa.md. The scenes are of seeds that the network was not trained on. An interrupted run
goes on if --out is the same folder.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

import konkyo
from konkyo.data.samples import Samples, samples
from konkyo.data.sets.questions import ANSWERED, kind_of
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.result import Evaluation
from konkyo.models import Model

COLUMNS = (
    *("ebpg@evidence", "ebpg@mask", "pointing_game@evidence", "pointing_game@mask"),
    *("deletion(steps=10)", "insertion(steps=10)"),
)
CAMS = ("grad_cam", "hires_cam", "layer_cam", "xgrad_cam", "eigen_cam", "random_cam")
OTHERS = ("score_cam", "integrated_gradients", "smooth_grad", "occlusion", "edge_map", "centre")


@konkyo.method
def centre(inputs: Tensor) -> Tensor:
    """Returns a Gaussian in the middle of the image, of a quarter of its sides, whatever is seen. -> (N, H, W)"""
    y, x = (torch.linspace(-2, 2, side) for side in inputs.shape[2:])
    return (-(y[:, None] ** 2 + x**2) / 2).exp().expand(len(inputs), -1, -1).to(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--layer", help="where methods that read a layer do it; default: the automatic layer")
    parser.add_argument("--precision", help="bf16 is faster")
    parser.add_argument("--methods", default=",".join((*CAMS, *OTHERS)))
    parser.add_argument("--out", type=Path, help="a folder for every value")
    args = parser.parse_args()
    model, data = konkyo.load("konkyo/scenes-vqa"), samples(f"questions:{args.questions}")
    settings = {"layer": args.layer, "precision": args.precision, "out": args.out}
    result = evaluate(model, data, args.methods.split(","), COLUMNS, **settings)
    print(of_methods(result))
    print(of_kinds(result, data))
    print(of_priors(model, data))


def of_methods(result: Evaluation) -> str:
    """Every method's values over all questions, with 95 % intervals."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for method in result.methods:
        cells = [result.cell(method, name) for name in COLUMNS]
        values = " | ".join(f"{c.value:.2f} ({c.low:.2f} to {c.high:.2f})" for c in cells)
        lines.append(f"| {method} | {values} |")
    return "\n".join(lines)


def of_kinds(result: Evaluation, data: Samples) -> str:
    """Every method's share of energy in the part that the answer names, by the kind of question."""
    kinds = {name: kind_of(data[i].question or "") for i, name in enumerate(data.names)}
    rows = [kinds[row.sample] for row in result.rows]
    lines = [f"| | {' | '.join(ANSWERED)} |", "|---" * (1 + len(ANSWERED)) + "|"]
    for method in result.methods:
        values = result.values(method, COLUMNS[0])
        means = [values[torch.tensor([row == kind for row in rows])].nanmean() for kind in ANSWERED]
        lines.append(f"| {method} | {' | '.join(f'{float(mean):.2f}' for mean in means)} |")
    return "\n".join(lines)


def of_priors(model: Model, data: Samples) -> str:
    """By kind: accuracy, that on a gray image, the most frequent answer, and the shares of the image in the masks."""
    lines = ["| kind | questions | correct | on a gray image | most frequent | single | union |", "|---" * 7 + "|"]
    blank = torch.zeros(1, 3, 128, 128)
    for kind in ANSWERED:
        right, blind, answers, single, union = [], [], [], [], []
        for sample in data:
            if kind_of(sample.question or "") != kind:
                continue
            asked = model.prompted(question=sample.question)
            assert asked.preprocess is not None
            with torch.no_grad():
                logits = asked(torch.cat([asked.preprocess(sample.image)[None], blank]))
            first, second = (model.classes[index] for index in logits.argmax(1).tolist())
            right.append(first == sample.label)
            blind.append(second == sample.label)
            answers.append(sample.label)
            (thing,) = sample.annotations
            single.append(math.nan if thing.evidence is None else float(thing.evidence.float().mean()))
            union.append(math.nan if thing.mask is None else float(thing.mask.float().mean()))
        if not answers:
            continue
        most = max(answers.count(answer) for answer in set(answers)) / len(answers)
        shares = [
            float(torch.tensor(values, dtype=torch.float64).nanmean()) for values in (right, blind, single, union)
        ]
        text = f"{shares[0]:.3f} | {shares[1]:.2f} | {most:.2f} | {shares[2]:.3f} | {shares[3]:.3f}"
        lines.append(f"| {kind} | {len(answers)} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
