"""Simulates a run of any number of images on many workers that fail now and then, and compares it with the formulas.

python benchmarks/scale.py simulate --images 1000000000 --workers 256 --rate 400 --mtbf-hours 24
python benchmarks/scale.py measure --model konkyo/scenes-classifier --data scenes:256,objects=1 --methods grad_cam

What it assumes is written in docs/scale.md. No price is known here: `--price` is that of an hour of one worker.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

HOUR = 3600.0
SIZES = (64, 256, 1024, 4096, 16384)
"""Shard sizes of the table, unless others are asked for."""


@dataclass(frozen=True)
class Plan:
    """A plan says what is run, and on what. Times are in seconds, sizes in bytes."""

    images: int = 1_000_000
    workers: int = 32
    rate: float = 400.0
    """Images per second of one worker while it explains."""
    shard: int = 256
    """Images per shard, which is also what is lost when a worker dies."""
    mtbf: float = 24 * HOUR
    """The mean time that one worker lives, at work; its end has no memory (exponential)."""
    restart: float = 180.0
    """Until a worker that died is replaced and has its model."""
    overhead: float = 0.15
    """What a shard costs beside its images: it is opened, written, and its receipt is written."""
    latency: float = 0.05
    """The mean time of a request to the store until its first byte (exponential)."""
    bandwidth: float = 50e6
    """Of one reading process, in bytes per second."""
    image_bytes: float = 110_000.0
    readers: int = 8
    """Reading processes of a worker, which read ahead while it explains."""
    packed: int = 0
    """Images of one archive, which is read in one request; 0: each image is an object of its own."""
    listed: int = 1000
    """Objects per request that lists."""
    tries: int = 3
    """A shard is given up when so many workers died over it."""

    @property
    def shards(self) -> int:
        """Returns how many shards there are; the last one is as large as the others."""
        return math.ceil(self.images / self.shard)

    @property
    def requests(self) -> float:
        """Returns the requests that read a shard."""
        return max(1.0, self.shard / self.packed) if self.packed else float(self.shard)

    @property
    def reading(self) -> float:
        """Returns the mean time in which the readers of a worker read a shard."""
        return (self.requests * self.latency + self.shard * self.image_bytes / self.bandwidth) / self.readers

    @property
    def explaining(self) -> float:
        """Returns the time in which a worker explains a shard."""
        return self.shard / self.rate

    @property
    def work(self) -> float:
        """Returns the mean time of a shard without failures; reading goes on beside explaining: the longer counts."""
        return max(self.reading, self.explaining) + self.overhead

    @property
    def listing(self) -> float:
        """Returns the time before the start: the objects are listed, one request after the other."""
        return math.ceil(self.images / (self.packed or 1) / self.listed) * self.latency


@dataclass(frozen=True)
class Outcome:
    """This is what a run took. Shares are of the time that all workers spent."""

    hours: float
    """From the start to the last shard."""
    worker_hours: float
    """That all workers spent, waiting for the last shard not counted."""
    wasted: float
    """The share of work that was lost with a worker."""
    down: float
    """The share in which workers were replaced."""
    deaths: float
    given_up: float
    """Shards over which `tries` workers died."""


# --- the formulas -----------------------------------------------------------------------------------------------------


def expected(plan: Plan) -> Outcome:
    """Returns what the formulas of docs/scale.md say: x = work / MTBF, and e^x - 1 deaths for every shard.

    A shard that is given up counts as one that is done after the next try, as in the simulation.
    """
    x = plan.work / plan.mtbf
    deaths = math.expm1(x)
    at_work, down = plan.mtbf * deaths, plan.restart * deaths
    whole = at_work + down
    hours = (plan.listing + plan.shards * whole / plan.workers + tail(plan)) / HOUR
    died = -math.expm1(-x)
    return Outcome(
        hours,
        plan.shards * whole / HOUR,
        (at_work - plan.work) / whole,
        down / whole,
        plan.shards * deaths,
        plan.shards * died**plan.tries,
    )


def tail(plan: Plan) -> float:
    """Returns how long workers wait for the last of them, on average: half a shard."""
    return plan.work / 2 if plan.workers > 1 else 0.0


def best_shard(plan: Plan) -> float:
    """Returns the shard size at which overhead and lost work together are smallest: sqrt(2 overhead MTBF) rate."""
    each = (plan.work - plan.overhead) / plan.shard
    return math.sqrt(2 * plan.overhead * plan.mtbf) / each


# --- the simulation ---------------------------------------------------------------------------------------------------


def simulated(plan: Plan, seed: int) -> Outcome:
    """Returns what happened in one simulated run: the events are ends of shards and deaths of workers."""
    random = np.random.default_rng(seed)
    durations, lives = _durations(plan, random), _lives(plan, random)
    waiting: deque[tuple[int, float]] = deque()  # (deaths over it, its work) of shards that are to be done again
    left, now, end = plan.shards, plan.listing, plan.listing
    spent = lost = down = 0.0
    deaths = given_up = 0
    free = [(now, number) for number in range(plan.workers)]
    lifetimes = [next(lives) for _ in free]
    heapq.heapify(free)
    while left or waiting:
        now, worker = heapq.heappop(free)
        if waiting:
            tried, work = waiting.popleft()
        else:
            tried, work, left = 0, next(durations), left - 1
        if lifetimes[worker] >= work:
            lifetimes[worker] -= work
            spent += work
            end = max(end, now + work)
            heapq.heappush(free, (now + work, worker))
            continue
        life = lifetimes[worker]
        spent, lost, down, deaths = spent + life, lost + life, down + plan.restart, deaths + 1
        given_up += tried + 1 == plan.tries
        waiting.append((tried + 1, work))
        lifetimes[worker] = next(lives)
        heapq.heappush(free, (now + life + plan.restart, worker))
    whole = spent + down
    return Outcome(end / HOUR, whole / HOUR, lost / whole, down / whole, deaths, given_up)


def _blocks(draw: Callable[[int], np.ndarray]) -> Iterator[float]:  # type: ignore[type-arg]
    while True:
        yield from draw(4096).tolist()


def _lives(plan: Plan, random: np.random.Generator) -> Iterator[float]:
    return _blocks(lambda count: random.exponential(plan.mtbf, count))


def _durations(plan: Plan, random: np.random.Generator) -> Iterator[float]:
    """Yields the time of a shard: its requests take an exponential time each, so together a gamma-distributed one."""
    transfer = plan.shard * plan.image_bytes / plan.bandwidth

    def draw(count: int) -> np.ndarray:  # type: ignore[type-arg]
        waits = random.gamma(plan.requests, plan.latency, count) if plan.latency else np.zeros(count)
        return np.maximum((waits + transfer) / plan.readers, plan.explaining) + plan.overhead

    return _blocks(draw)


def mean_of(outcomes: list[Outcome]) -> tuple[Outcome, Outcome]:
    """Returns (means, standard errors of the means) of several runs."""
    columns = {name: [getattr(o, name) for o in outcomes] for name in Outcome.__dataclass_fields__}
    means = {name: statistics.fmean(values) for name, values in columns.items()}
    errors = {name: statistics.stdev(v) / math.sqrt(len(v)) if len(v) > 1 else math.nan for name, v in columns.items()}
    return Outcome(**means), Outcome(**errors)


# --- the command ------------------------------------------------------------------------------------------------------


def table(plan: Plan, sizes: Sequence[int], repeats: int, price: float | None, seed: int) -> Iterator[str]:
    """Yields the lines of a table: a shard size each, by the formulas and by simulation."""
    head = ["images per shard", "shards", "hours", "worker-hours", "lost (formula)", "lost (simulated)", "replacing"]
    head += ["deaths", "given up", *(["cost"] if price is not None else [])]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for size in sizes:
        sized = replace(plan, shard=size)
        means, errors = mean_of([simulated(sized, seed + k) for k in range(repeats)])
        formula = expected(sized)
        cells = [f"{size}", f"{sized.shards}", f"{means.hours:.2f}", f"{means.worker_hours:.1f}"]
        cells += [
            f"{formula.wasted:.5%}",
            f"{means.wasted:.5%} ± {errors.wasted:.5%}" if repeats > 1 else f"{means.wasted:.5%}",
            f"{means.down:.3%}",
        ]
        cells += [f"{means.deaths:.1f}", f"{means.given_up:.2g}"]
        cells += [f"{means.worker_hours * price:.0f}"] if price is not None else []
        yield f"| {' | '.join(cells)} |"


def measure(model: str, data: str, methods: str, batch: str) -> str:
    """Returns a row of what a run on this machine took: one thread, and no reading processes."""
    import torch

    import konkyo
    from konkyo.runs.run import run

    torch.set_num_threads(1)
    loaded = konkyo.load(model)
    with tempfile.TemporaryDirectory() as folder:
        start, wall = time.process_time(), time.perf_counter()
        size = int(batch) if batch.isdigit() else "auto"
        records = run(loaded, data, folder, methods=methods.split(","), batch=size, workers=0)  # type: ignore[arg-type]
        taken, wall = time.process_time() - start, time.perf_counter() - wall
        written = sum(receipt.bytes for receipt in records.receipts)
        shape = next((row["shape"] for row in records.rows() if row["shape"]), None)
    cells = [
        model,
        methods,
        "x".join(map(str, shape or ())),
        str(records.images),
        f"{len(records) / records.images:.2f}",
    ]
    cells += [f"{records.images / taken:.1f}", f"{records.images / wall:.1f}"]
    cells += [f"{written / records.images:.0f}", f"{written / max(1, len(records)):.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    simulate = commands.add_parser("simulate", help="a table over shard sizes")
    default = Plan()
    for name in ("images", "workers", "readers", "packed", "listed"):
        simulate.add_argument(f"--{name}", type=int, default=getattr(default, name))
    simulate.add_argument("--shard", type=int, nargs="+", default=SIZES, help="images per shard, a row each")
    for name in ("rate", "restart", "overhead", "latency", "bandwidth"):
        simulate.add_argument(f"--{name}", type=float, default=getattr(default, name))
    simulate.add_argument("--image-bytes", type=float, default=default.image_bytes)
    simulate.add_argument("--mtbf-hours", type=float, default=default.mtbf / HOUR)
    simulate.add_argument("--price", type=float, help="of an hour of one worker, in any currency")
    simulate.add_argument("--repeats", type=int, default=5)
    simulate.add_argument("--seed", type=int, default=0)
    measuring = commands.add_parser("measure", help="images per second and bytes per image on this machine")
    for name, value in (("model", "konkyo/scenes-classifier"), ("data", "scenes:256,objects=1")):
        measuring.add_argument(f"--{name}", default=value)
    measuring.add_argument("--methods", default="grad_cam")
    measuring.add_argument("--batch", default="auto")
    options = vars(parser.parse_args())
    if options.pop("command") == "measure":
        print(measure(**options))
        return
    price, repeats, seed, sizes = (options.pop(name) for name in ("price", "repeats", "seed", "shard"))
    plan = Plan(mtbf=options.pop("mtbf_hours") * HOUR, **options)
    for line in table(plan, sizes, repeats, price, seed):
        print(line, flush=True)
    best = best_shard(plan)
    print(f"best: {best:.0f} images per shard; listing: {plan.listing / HOUR:.3f} h; "
          f"a worker reads {plan.shard / plan.reading:.0f} and explains {plan.rate:.0f} images per second")  # fmt: skip


if __name__ == "__main__":
    main()
