"""How often the intervals of consistency hold what they are about: simulated samples of populations that are known.

    python benchmarks/intervals.py --out coverage.jsonl          # simulates what the file does not hold yet
    python benchmarks/intervals.py --out coverage.jsonl --table  # prints Markdown of what it holds

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


def uneven(of: Tensor, generator: torch.Generator) -> Tensor:
    """A spot near the place of the class; those of the first class lie four times as far from it as the others'."""
    spread = torch.where(of == 0, 0.2, 0.05)[:, None]
    return _spots(PLACES[of] + spread * torch.randn(len(of), 2, generator=generator), generator)


MODELS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    f.__name__: f for f in (blobs, modes, anywhere, sparse, smooth, uneven)
}


def _spots(places: Tensor, generator: torch.Generator) -> Tensor:
    width = 0.15 * torch.exp(0.3 * torch.randn(len(places), 1, 1, generator=generator))
    return min_max(_bells(places, width) + 0.05 * torch.rand(len(places), GRID, GRID, generator=generator)).double()


def _bells(places: Tensor, width: Tensor) -> Tensor:
    steps = (torch.arange(GRID) + 0.5) / GRID
    square = (steps[:, None] - places[:, 0, None, None]) ** 2 + (steps - places[:, 1, None, None]) ** 2
    return torch.exp(-square / (2 * width**2))


def simulate(model: str, distance: Any, sizes: tuple[int, ...], trials: int) -> dict[str, float]:
    """Returns means of estimates as shares of the population's numbers, and shares of intervals that hold these.

    `sizes`: how many maps a sample has of every class. The population's numbers weigh the classes as the sample does.
    """
    classes = len(sizes)
    generator = torch.Generator().manual_seed(sizes[0] * 100 + classes)
    everything = torch.arange(classes).repeat_interleave(POPULATION)
    population = MODELS[model](everything, generator)
    means, _, _ = class_means(population, everything, classes)
    counts = torch.tensor(sizes, dtype=torch.float64)
    shares = counts / counts.sum()
    centre = (shares[:, None, None] * means).sum(0)

    def known(values: Tensor, weights: Tensor) -> float:
        return float((values.view(classes, POPULATION).mean(1) * weights).sum())

    true = known(distances(population, means[everything], distance), shares)
    squares = (population - means[everything]).square().mean((1, 2))
    within = known(squares, (counts - 1) / (counts.sum() - classes))
    total = known((population - centre).square().mean((1, 2)), shares)
    of = torch.arange(classes).repeat_interleave(torch.tensor(sizes))
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
    plain = distances(maps, class_means(maps, of, classes)[0][of], distance)
    value = float(corrected_distances(maps, of, classes, distance).mean())
    found, counts = [float(v) for v in within_total(maps, of)], torch.bincount(of)
    fixed = maps.new_zeros(RESAMPLES)
    for own in plain.split(counts.tolist()):
        fixed += own[torch.randint(len(own), (RESAMPLES, len(own)), generator=generator)].sum(1) / len(of)
    old = fixed.quantile(torch.tensor([0.025, 0.975], dtype=fixed.dtype)).tolist()
    drawn = resampled(maps, of, classes, distance, RESAMPLES, generator)
    low, high = interval(value, drawn.value, drawn.of_class * counts, counts)
    hits = {"old": _holds(old, true), "L": _holds((low, high), true)}
    hits["W"] = _holds(interval(found[0], drawn.within, drawn.of_within, counts), within)
    if classes > 1:
        ratio = interval(found[0] / found[1], drawn.ratio, drawn.of_within, counts)
        hits["W / T"] = _holds(ratio, within / total)
    return {"plain": float(plain.mean()) / true, "corrected": value / true, "ends": math.log(high / low) / 2, **hits}


def _holds(ends: Any, true: float) -> float:
    return float(ends[0] <= true <= ends[1])


def _cases(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    kinds = [(str(count), classes) for count in arguments.maps for classes in arguments.classes]
    kinds += [(sizes, sizes.count("+") + 1) for sizes in arguments.sizes]
    for count, classes in kinds:
        for distance in arguments.distances:
            for model in arguments.models:
                yield {"model": model, "distance": distance, "count": count, "classes": classes}


def _sizes(case: dict[str, Any]) -> tuple[int, ...]:
    """Returns the maps of every class."""
    sizes = [int(size) for size in case["count"].split("+")]
    return tuple(sizes) if len(sizes) > 1 else tuple(sizes * case["classes"])


def table(lines: list[dict[str, Any]]) -> str:
    """Returns the Markdown: a row per number of maps and classes, the mean over populations and the lowest of them."""
    rows = ["| maps a class | classes | distance | Eq. 10 / population | corrected | old interval | L | W | W / T |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    keys = sorted({(c["distance"] != "mse", c["count"], c["classes"]) for c in lines}, key=_order)
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


def _order(key: tuple[bool, str, int]) -> tuple[bool, int, list[int], int]:
    """Rows by distance, then by number of maps, unequal classes last."""
    others, count, classes = key
    sizes = [int(size) for size in count.split("+")]
    return others, len(sizes), sizes, classes


def main() -> None:
    """Simulates what is missing in the file, or prints the table of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--maps", type=int, nargs="+", default=[5, 10, 20, 3, 40])
    parser.add_argument("--classes", type=int, nargs="+", default=[4, 1, 2, 10])
    parser.add_argument("--sizes", nargs="+", default=["3+30", "10+100"], help="classes of unequal numbers of maps")
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
                found = simulate(case["model"], case["distance"], _sizes(case), arguments.trials)
                file.write(json.dumps({**case, "trials": arguments.trials, **found}) + "\n")
                file.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
