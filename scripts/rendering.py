"""Scenes drawn once into a cache folder, for the scripts that train on them."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
AT_ONCE = 500


def rendered(
    cache: Path,
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[tuple[int, ...], type]],
    draw: Callable[[Mapping[str, Any], int], Mapping[str, Any]],
    workers: int,
) -> Arrays:
    """Arrays of `settings["scenes"]` rows by name; from the cache folder where they are there already.

    `draw(settings, i)`, a function of a module, gives row i of every array; `shapes` are those of a row, with its type.
    """
    done, scenes = cache / "scenes.json", settings["scenes"]
    if not done.exists() or json.loads(done.read_text()) != settings:
        done.unlink(missing_ok=True)
        start = time.perf_counter()
        for name, (shape, kind) in shapes.items():
            np.lib.format.open_memmap(cache / f"{name}.npy", "w+", kind, (scenes, *shape)).flush()
        jobs = [(cache, settings, list(shapes), draw, i, min(i + AT_ONCE, scenes)) for i in range(0, scenes, AT_ONCE)]
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for i, _ in enumerate(pool.imap_unordered(_render, jobs)):
                print(f"rendered {(i + 1) * AT_ONCE} of {scenes}, {time.perf_counter() - start:.0f} s", flush=True)
        done.write_text(json.dumps(settings))
    return {name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in shapes}


def _render(job: tuple[Any, ...]) -> None:
    cache, settings, names, draw, start, stop = job
    arrays = {name: np.load(cache / f"{name}.npy", mmap_mode="r+") for name in names}
    for i in range(start, stop):
        for name, value in draw(settings, i).items():
            arrays[name][i] = value
