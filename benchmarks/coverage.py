"""How often the intervals of consistency hold what they are about: simulated samples of populations that are known.

    python benchmarks/coverage.py --out coverage.jsonl          # simulates what the file does not hold yet
    python benchmarks/coverage.py --out coverage.jsonl --table  # prints Markdown of what it holds

A population is a class's 1,000 maps, all equally likely, so that L, W and T of it are exact. Samples are drawn with
replacement. Every line of the file is one population, distance, number of maps a class and number of classes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konkyo.evaluation.consistency.estimates import corrected_distances, interval, resampled
from konkyo.metrics.distances import DISTANCES, class_means, distances, within_total
from konkyo.utils.tensors import min_max

GRID, POPULATION, RESAMPLES = 8, 1000, 200
_PLACES = [(0.3, 0.3), (0.7, 0.3), (0.5, 0.7), (0.3, 0.7), (0.7, 0.7), (0.5, 0.5), (0.2, 0.5), (0.8, 0.5), (0.5, 0.2)]
PLACES = torch.tensor([*_PLACES, (0.5, 0.8)])
"""Of ten classes, as shares of the side."""


def blobs(of: Tensor, generator: torch.Generator) -> Tensor:
    """A spot near the place of the class. -> (n, g, g)"""
    return _spots(PLACES[of] + 0.12 * torch.randn(len(of), 2, generator=generator), generator)


def modes(of: Tensor, generator: torch.Generator) -> Tensor:
    """As `blobs`, but 15 % lie anywhere: distances have a heavy tail."""
    near = PLACES[of] + 0.12 * torch.randn(len(of), 2, generator=generator)
    far = torch.rand(len(of), 1, generator=generator) < 0.15
    return _spots(torch.where(far, torch.rand(len(of), 2, generator=generator), near), generator)


def anywhere(of: Tensor, generator: torch.Generator) -> Tensor:
    """A spot whose place does not depend on the class: W / T is 1."""
    return _spots(torch.rand(len(of), 2, generator=generator), generator)


def sparse(of: Tensor, generator: torch.Generator) -> Tensor:
    """Few cells that are independent of each other and heavy-tailed, more of them near the place of the class."""
    cells = torch.empty(len(of), GRID, GRID).exponential_(generator=generator) ** 3
    return min_max(cells * _bells(PLACES[of], torch.tensor(0.22))).double()


def smooth(of: Tensor, generator: torch.Generator) -> Tensor:
    """A random smooth surface, cut at 0, and a spot at the place of the class."""
    coarse = torch.randn(len(of), 1, 4, 4, generator=generator)
    surface = torch.nn.functional.interpolate(coarse, (GRID, GRID), mode="bicubic")[:, 0].relu()
    return min_max(surface + _bells(PLACES[of], torch.tensor(0.22))).double()


MODELS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    f.__name__: f for f in (blobs, modes, anywhere, sparse, smooth)
}


def _spots(places: Tensor, generator: torch.Generator) -> Tensor:
    width = 0.15 * torch.exp(0.3 * torch.randn(len(places), 1, 1, generator=generator))
    return min_max(_bells(places, width) + 0.05 * torch.rand(len(places), GRID, GRID, generator=generator)).double()


def _bells(places: Tensor, width: Tensor) -> Tensor:
    steps = (torch.arange(GRID) + 0.5) / GRID
    square = (steps[:, None] - places[:, 0, None, None]) ** 2 + (steps - places[:, 1, None, None]) ** 2
    return torch.exp(-square / (2 * width**2))


def simulate(model: str, distance: Any, count: int, classes: int, trials: int) -> dict[str, float]:
    """Returns means of estimates as shares of the population's numbers, and shares of intervals that hold these."""
    generator = torch.Generator().manual_seed(count * 100 + classes)
    everything = torch.arange(classes).repeat_interleave(POPULATION)
    population = MODELS[model](everything, generator)
    means, _, _ = class_means(population, everything, classes)
    true = float(distances(population, means[everything], distance).mean())
    squares = (population - means[everything]).square().mean()
    within, total = float(squares), float((population - population.mean(0)).square().mean())
    of = torch.arange(classes).repeat_interleave(count)
    sums: dict[str, float] = {}
    for _ in range(trials):
        chosen = torch.randint(POPULATION, (len(of),), generator=generator) + POPULATION * of
        of_trial = _trial(population[chosen], of, classes, distance, (true, within, total), generator)
        for name, value in of_trial.items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: value / trials for name, value in sums.items()}


def _trial(
    maps: Tensor, of: Tensor, classes: int, distance: Any, truth: tuple[float, float, float], generator: torch.Generator
) -> dict[str, float]:
    true, within, total = truth
    count = len(of) // classes
    plain = distances(maps, class_means(maps, of, classes)[0][of], distance)
    value = float(corrected_distances(maps, of, classes, distance).mean())
    found = [float(v) for v in within_total(maps, of)]
    index = torch.randint(count, (RESAMPLES, classes, count), generator=generator)
    fixed = plain.view(classes, count).expand(RESAMPLES, -1, -1).gather(2, index).mean((1, 2))
    old = fixed.quantile(torch.tensor([0.025, 0.975], dtype=fixed.dtype)).tolist()
    drawn = resampled(maps, of, classes, distance, RESAMPLES, generator)
    low, high = interval(value, drawn.value, len(of), classes)
    hits = {"old": _holds(old, true), "L": _holds((low, high), true)}
    hits["W"] = _holds(interval(found[0], drawn.within, len(of), classes), within)
    if classes > 1:
        hits["W / T"] = _holds(interval(found[0] / found[1], drawn.ratio, len(of), classes), within / total)
    return {"plain": float(plain.mean()) / true, "corrected": value / true, "ends": math.log(high / low) / 2, **hits}


def _holds(ends: Any, true: float) -> float:
    return float(ends[0] <= true <= ends[1])


def _cases(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in arguments.maps:
        for classes in arguments.classes:
            for distance in arguments.distances:
                for model in arguments.models:
                    yield {"model": model, "distance": distance, "count": count, "classes": classes}


def table(lines: list[dict[str, Any]]) -> str:
    """Returns the Markdown: a row per number of maps and classes, the mean over populations and the lowest of them."""
    rows = ["| maps a class | classes | distance | Eq. 10 / population | corrected | old interval | L | W | W / T |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    keys = sorted({(c["distance"] != "mse", c["count"], c["classes"]) for c in lines})
    for others, count, classes in keys:
        of = [c for c in lines if (c["distance"] != "mse", c["count"], c["classes"]) == (others, count, classes)]
        biases = [f"{min(v):.2f} to {max(v):.2f}" for v in ([c[n] for c in of] for n in ("plain", "corrected"))]
        cells = []
        for name in ("old", "L", "W", "W / T"):
            values = [100 * c[name] for c in of if name in c]
            cells.append(f"{sum(values) / len(values):.0f} ({min(values):.0f})" if values else "-")
        rows.append(
            "| " + " | ".join([str(count), str(classes), "others" if others else "mse", *biases, *cells]) + " |"
        )
    return "\n".join(rows)


def main() -> None:
    """Simulates what is missing in the file, or prints the table of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--maps", type=int, nargs="+", default=[5, 10, 20, 3, 40])
    parser.add_argument("--classes", type=int, nargs="+", default=[4, 1, 2, 10])
    parser.add_argument("--distances", nargs="+", default=list(DISTANCES))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    if arguments.table:
        print(table(lines))
        return
    with arguments.out.open("a") as file:
        for case in _cases(arguments):
            if not any(case.items() <= line.items() for line in lines):
                found = simulate(case["model"], case["distance"], case["count"], case["classes"], arguments.trials)
                file.write(json.dumps({**case, "trials": arguments.trials, **found}) + "\n")
                file.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
