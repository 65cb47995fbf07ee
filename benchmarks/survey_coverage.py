"""How often the intervals of a survey's analysis hold what they are about: simulated raters and items, known rates.

    python benchmarks/survey_coverage.py --out benchmarks/results-survey.json          # simulates what it lacks
    python benchmarks/survey_coverage.py --out benchmarks/results-survey.json --table  # prints it as Markdown

A population is `konkyo.survey.power.Population`: logit P(vote for the first) = middle + rater + item, both normal.
Every simulation draws new raters and new items; each rater answers each item once. Strengths: four methods, a random
pair of them an item and rater, with an effect of every rater and of every item on every method.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from konkyo.survey.power import Population
from konkyo.survey.preference import rate_of
from konkyo.survey.strengths import Strengths, davidson
from konkyo.survey.votes import Votes, percentiles, resampled
from konkyo.utils.files import write_text

SIZES = ((5, 10), (5, 40), (12, 24), (30, 15), (30, 40))
RATES = (0.5, 0.7, 0.9)
DEVIATIONS = ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0), (0.0, 1.5), (1.0, 1.0))
"""Of raters and of items: none, the usual ones, raters only, items only, both."""
RESAMPLES = 200
LOGS = np.array([0.0, 0.5, -0.5, 1.0])
TIES = 0.15


def coverage(raters: int, items: int, population: Population, simulations: int, resamples: int) -> dict[str, Any]:
    """Returns how often intervals lie above and below the rate, and how long they are."""
    seed = zlib.crc32(repr((raters, items, population)).encode())
    generator = np.random.default_rng(seed)
    ends: dict[str, list[tuple[float, float]]] = {"votes": [], "bootstrap": [], "independent": []}
    for number in range(simulations):
        votes = population.draw(raters, items, generator)
        rate, low, high, *_ = rate_of(votes)
        ends["votes"].append((low, high))
        reach = 1.96 * math.sqrt(rate * (1 - rate) / len(votes))
        ends["independent"].append((rate - reach, rate + reach))
        if resamples:
            drawn = resampled(votes, lambda w, y=votes.outcome: w @ y / w.sum(1), resamples, number)
            ends["bootstrap"].append(percentiles(drawn))
    return {name: summary(pairs, population.rate) for name, pairs in ends.items() if pairs}


def summary(ends: list[tuple[float, float]], truth: float) -> dict[str, float]:
    low, high = np.array(ends).T
    above, below = float((low > truth).mean()), float((high < truth).mean())
    return {"covered": 1 - above - below, "above": above, "below": below, "length": float((high - low).mean())}


def cast(raters: int, items: int, deviations: tuple[float, float], generator: np.random.Generator) -> Votes:
    """Votes between random pairs of four methods."""
    kinds = len(LOGS)
    rater, item = (index.ravel() for index in np.indices((raters, items)))
    pairs = np.array(list(combinations(range(kinds), 2)))[generator.integers(kinds * (kinds - 1) // 2, size=len(rater))]
    worth = LOGS + (
        deviations[0] * generator.standard_normal((raters, kinds))[rater]
        + deviations[1] * generator.standard_normal((items, kinds))[item]
    ) / math.sqrt(2)
    rows = np.arange(len(rater))
    difference = worth[rows, pairs[:, 0]] - worth[rows, pairs[:, 1]]
    outcome = (generator.random(len(rater)) < 1 / (1 + np.exp(-difference))).astype(np.float64)
    outcome[generator.random(len(rater)) < TIES] = 0.5
    names = [tuple(f"{kind}{i}" for i in range(count)) for kind, count in (("r", raters), ("i", items))]
    methods = tuple(f"method {i}" for i in range(kinds))
    return Votes(methods, names[0], names[1], rater, item, pairs[:, 0], pairs[:, 1], outcome)


def true_logs(deviations: tuple[float, float]) -> np.ndarray:
    """The strengths that votes of all raters on all items would give."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    table = np.zeros((1, 2, len(LOGS), len(LOGS)))
    for i, j in combinations(range(len(LOGS)), 2):
        difference = LOGS[i] - LOGS[j] + math.hypot(*deviations) * nodes
        share = float((weights / weights.sum()) @ (1 / (1 + np.exp(-difference))))
        table[0, 0, i, j], table[0, 0, j, i] = (1 - TIES) * share, (1 - TIES) * (1 - share)
        table[0, 1, i, j] = table[0, 1, j, i] = TIES
    logs = np.log(davidson(table)[0][0])
    return np.asarray(logs - logs.mean())


def of_strengths(
    raters: int, items: int, deviations: tuple[float, float], simulations: int, resamples: int
) -> dict[str, Any]:
    """Returns the coverage of all four strengths together, and their mean error."""
    generator = np.random.default_rng(zlib.crc32(repr((raters, items, deviations)).encode()))
    truth = true_logs(deviations)
    covered: dict[str, list[bool]] = {"votes": [], "bootstrap": []}
    values, without = [], 0
    for number in range(simulations):
        strengths = Strengths.of(cast(raters, items, deviations, generator), resamples=resamples, seed=number)
        by_name = {s.method: s for s in strengths.methods}
        if not by_name:
            without += 1
            continue
        found = [by_name[f"method {i}"] for i in range(len(truth))]
        values.append([s.value for s in found])
        covered["votes"] += [s.low <= t <= s.high for s, t in zip(found, truth, strict=True)]
        if resamples:
            covered["bootstrap"] += [
                s.bootstrap_low <= t <= s.bootstrap_high for s, t in zip(found, truth, strict=True)
            ]
    means = np.array(values).mean(0)
    return {
        **{name: {"covered": float(np.mean(which))} for name, which in covered.items() if which},
        "truth": truth.tolist(),
        "mean": means.tolist(),
        "separated": without,
    }


def jobs(simulations: int, resamples: int) -> Iterator[tuple[str, Any]]:
    for raters, items in SIZES:
        for rate in RATES:
            for deviations in DEVIATIONS:
                population = Population(rate, *deviations)
                name = (
                    f"rate {rate:g}, {raters} raters, {items} items, deviations {deviations[0]:g} and {deviations[1]:g}"
                )
                yield name, lambda r=raters, i=items, p=population: coverage(r, i, p, simulations, resamples)
    for raters, items in ((5, 10), (12, 24), (30, 40)):
        for deviations in ((0.0, 0.0), (0.5, 1.0), (1.0, 1.0)):
            name = f"strengths, {raters} raters, {items} items, deviations {deviations[0]:g} and {deviations[1]:g}"
            yield name, lambda r=raters, i=items, d=deviations: of_strengths(r, i, d, simulations, resamples // 2)


def table(results: dict[str, Any]) -> str:
    head = "| population | votes | its length | two-way bootstrap | its length | votes as if independent |"
    lines = [head, "|---" * 6 + "|"]
    for name, row in results["coverage"].items():
        cells = []
        for kind in ("votes", "bootstrap", "independent"):
            part = row.get(kind)
            cells.append("" if part is None else f"{100 * part['covered']:.1f} %")
            if kind != "independent":
                cells.append(f"{part['length']:.3f}" if part and "length" in part else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--only", default="", help="populations whose name has this in it")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {"simulations": options.simulations, "resamples": RESAMPLES, "coverage": {}}
    if options.out.is_file():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    if options.table:
        print(table(results))
        return
    for name, job in jobs(results["simulations"], results["resamples"]):
        if name not in results["coverage"] and options.only in name:
            results["coverage"][name] = job()
            write_text(options.out, json.dumps(results, indent=1) + "\n")
            print(name, {k: v["covered"] for k, v in results["coverage"][name].items() if "covered" in v}, flush=True)


if __name__ == "__main__":
    main()
