"""The formulas of docs/scale.md hold in the simulation, within its statistical error."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from typing import Any

import pytest

from helpers.paths import ROOT

FILE = ROOT / "benchmarks" / "scale.py"

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="no checkout")


@pytest.fixture(scope="module")
def scale() -> Any:
    spec = importlib.util.spec_from_file_location("scale_simulation", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def runs(scale: Any, plan: Any, count: int = 12) -> tuple[Any, Any]:
    return scale.mean_of([scale.simulated(plan, seed) for seed in range(count)])


@pytest.mark.parametrize(
    ("shard", "mtbf", "images"),
    [(256, 300.0, 10_000_000), (4096, 3600.0, 100_000_000), (4096, 300.0, 20_000_000), (1024, 20.0, 2_000_000)],
)
def test_lost_work_and_deaths_are_as_the_formula_says(scale: Any, shard: int, mtbf: float, images: int) -> None:
    plan = scale.Plan(images=images, workers=8, shard=shard, mtbf=mtbf, restart=60.0, latency=0.0)
    means, errors = runs(scale, plan)
    formula = scale.expected(plan)
    for name in ("wasted", "down", "deaths", "worker_hours"):
        assert abs(getattr(means, name) - getattr(formula, name)) < 4 * getattr(errors, name) + 1e-12, name
    assert means.deaths > 20


def test_lost_work_is_half_a_shard_per_death_where_deaths_are_rare(scale: Any) -> None:
    plan = scale.Plan(images=100_000_000, workers=8, shard=4096, mtbf=1800.0, restart=0.0, latency=0.0)
    means, errors = runs(scale, plan)
    assert abs(means.wasted - plan.work / 2 / plan.mtbf) < 4 * errors.wasted
    assert errors.wasted < 0.2 * means.wasted


def test_shards_are_given_up_as_often_as_the_formula_says(scale: Any) -> None:
    plan = scale.Plan(images=2_000_000, workers=8, shard=1024, mtbf=12.0, restart=1.0, latency=0.0)
    means, errors = runs(scale, plan)
    assert means.given_up > 5
    assert abs(means.given_up - scale.expected(plan).given_up) < 4 * errors.given_up


def test_hours_are_those_of_the_work_and_half_a_shard(scale: Any) -> None:
    plan = scale.Plan(images=1_000_000, workers=16, shard=1024, mtbf=4 * 3600.0)
    means, errors = runs(scale, plan)
    assert abs(means.hours - scale.expected(plan).hours) < 4 * errors.hours + plan.work / 3600
    assert means.hours > plan.images / plan.rate / plan.workers / 3600


def test_the_best_shard_is_better_than_others(scale: Any) -> None:
    plan = scale.Plan(images=4_000_000, workers=4, mtbf=3600.0, overhead=2.0, restart=0.0, latency=0.0)
    best = round(scale.best_shard(plan))
    cost = {s: runs(scale, replace(plan, shard=s))[0].worker_hours for s in (best // 16, best, best * 16)}
    assert cost[best] < min(cost[best // 16], cost[best * 16])
    exact = {s: scale.expected(replace(plan, shard=s)).worker_hours for s in (best // 2, best, best * 2)}
    assert min(exact, key=exact.__getitem__) == best


def test_a_store_that_is_slower_than_the_network_decides_the_time(scale: Any) -> None:
    plan = scale.Plan(images=200_000, workers=4, readers=2, latency=0.05, mtbf=1e9)
    means, _ = runs(scale, plan, 3)
    rate = plan.images / plan.workers / ((means.hours * 3600) - plan.listing)
    assert rate < plan.readers / plan.latency < plan.rate
    packed = replace(plan, packed=10_000, readers=8)
    assert runs(scale, packed, 3)[0].hours < means.hours / 2
    assert math.isclose(plan.listing / packed.listing, 10_000 / 50, rel_tol=0.01)


def test_nothing_is_lost_without_failures(scale: Any) -> None:
    outcome = scale.simulated(scale.Plan(images=10_000, mtbf=1e12), 0)
    assert (outcome.deaths, outcome.wasted, outcome.down, outcome.given_up) == (0, 0, 0, 0)
