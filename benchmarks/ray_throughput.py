"""Images per second of one actor on Ray, divided by those of the engine on one machine, when both are under way.

    python benchmarks/ray_throughput.py --images 1024 --rounds 3

The two run in turns. What comes before the first shards is not counted: rates are of the shards after the second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import konkyo
from konkyo.runs.run import run

SKIPPED = 2


def rate(engine: str, images: int, shard: int, batch: int, model: str, size: int) -> float:
    """Returns the images per second between the second shard and the last one."""
    times: list[tuple[float, int]] = []
    network = konkyo.load(model)
    with tempfile.TemporaryDirectory() as folder:
        run(
            network, f"scenes:{images},size={size}", Path(folder) / "run", methods=["grad_cam"], batch=batch,
            shard=shard, workers=1, engine=engine,
            progress=lambda state: times.append((time.perf_counter(), state.images)),
        )  # fmt: skip
    (start, before), (end, after) = times[SKIPPED - 1], times[-1]
    return (after - before) / (end - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--shard", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="konkyo/scenes-classifier")
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    pairs = []
    for _ in range(given.rounds):
        local, ray = (
            rate(engine, given.images, given.shard, given.batch, given.model, given.size) for engine in ("local", "ray")
        )
        pairs.append((local, ray))
        print(json.dumps({"local": round(local, 1), "ray": round(ray, 1), "ratio": round(ray / local, 3)}), flush=True)
    print(json.dumps({"ratio": round(statistics.median(ray / local for local, ray in pairs), 3)}))


if __name__ == "__main__":
    main()
