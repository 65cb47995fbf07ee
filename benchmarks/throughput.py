"""Throughput of `konkyo.run` beside a bare loop of the same batched forwards, and its memory over many images.

    python benchmarks/throughput.py                     # the ratios; some minutes on one core
    python benchmarks/throughput.py --memory 20000      # resident memory while 20,000 images are explained

The bare loop reads the same files by the same number of processes through a DataLoader of torch, runs the network on
batches of the same size, takes the gradient at the same layer and makes the maps; it keeps nothing. Both take turns,
and the ratio is that of the medians of seconds: 1 means that diagnoses, rows and shards cost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

import konkyo
from konkyo.apps.cli.main import app
from konkyo.data.images import find_images, open_image
from konkyo.data.samples import samples
from konkyo.models import Model, Preprocess

RESULTS = Path(__file__).with_name("results-throughput.json")


class Files(Dataset[Tensor]):
    """Prepared pictures of files."""

    def __init__(self, folder: Path, preprocess: Preprocess) -> None:
        self.files, self.preprocess = find_images(folder), preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess(open_image(self.files[index]))


def batches(folder: Path, model: Model, batch: int, workers: int) -> Iterator[Tensor]:
    assert model.preprocess is not None
    yield from DataLoader(Files(folder, model.preprocess), batch_size=batch, num_workers=workers)


class Captured:
    """The levels of a layer's output, made leaves of the graph; what comes before them has none."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        self.levels: list[Tensor] = []
        module.get_submodule(layer).register_forward_hook(self._capture)

    def _capture(self, _module: nn.Module, _inputs: object, output: Any) -> Any:
        self.levels = []
        return self._leaf(output)

    def _leaf(self, output: Any) -> Any:
        if isinstance(output, (list, tuple)):
            return type(output)(self._leaf(part) for part in output)
        if not output.is_floating_point():
            return output  # a mask of padding
        self.levels.append(output.detach().requires_grad_())
        return self.levels[-1].clone()


def bare_grad_cam(model: Model, layer: str) -> Callable[[Tensor], Tensor]:
    captured = Captured(model.module, layer)

    def maps(images: Tensor) -> Tensor:
        logits = model.module(images)
        (level,) = captured.levels
        (slope,) = torch.autograd.grad(logits.amax(1).sum(), level)
        return (slope.mean((2, 3), keepdim=True) * level.detach()).sum(1).relu()

    return maps


def bare_odam(model: Model, layer: str, threshold: float = 0.5) -> Callable[[Tensor], list[Tensor]]:
    captured = Captured(model.module, layer)

    def maps(images: Tensor) -> list[Tensor]:
        output = model.module(images)
        probabilities, found = output.logits.sigmoid(), []
        for image, best in enumerate(probabilities.amax(2)):
            for query in (best > threshold).nonzero()[:, 0].tolist():
                slopes = torch.autograd.grad(best[query], captured.levels, retain_graph=True)
                parts = [
                    (g[image] * a[image].detach()).sum(0)[None, None]
                    for g, a in zip(slopes, captured.levels, strict=True)
                ]
                size = parts[0].shape[2:]
                found.append(sum(nn.functional.interpolate(part, size, mode="bilinear") for part in parts).relu())
        return found

    return maps


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compared(
    model: Model, method: str, bare: Callable[[Tensor], object], folder: Path, batch: int, workers: int, rounds: int
) -> dict[str, float]:
    """Returns the medians of seconds of both, and their ratio."""

    def of_bare() -> None:
        for images in batches(folder, model, batch, workers):
            bare(images)

    def of_ours() -> None:
        with tempfile.TemporaryDirectory() as out:
            konkyo.run(model, folder, out, methods=[method], batch=batch, workers=workers)

    of_ours(), of_bare()  # what is found out once is not counted
    times = [(seconds(of_bare), seconds(of_ours)) for _ in range(rounds)]
    theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
    count = len(find_images(folder))
    return {
        "images": count,
        "batch": batch,
        "bare_images_per_second": round(count / theirs, 1),
        "ours_images_per_second": round(count / ours, 1),
        "ratio": round(theirs / ours, 3),
        "lowest_ratio": round(min(a / b for a, b in times), 3),
        "highest_ratio": round(max(a / b for a, b in times), 3),
    }


def with_pictures(name: str, weights: str, folder: Path, batch: int, rounds: int) -> dict[str, float]:
    """Returns how fast `konkyo explain` is, which writes an overlay and a map per image, beside `konkyo run`."""
    runner, common = CliRunner(), ["--model", name, "--weights", weights, "--method", "grad_cam"]

    def call(command: str, *options: str) -> tuple[float, float]:
        """Returns the seconds on the clock, and of CPU time."""
        with tempfile.TemporaryDirectory() as out:
            start, computed = time.perf_counter(), time.process_time()
            ended = runner.invoke(app, [command, str(folder), "--out", out, *common, *options])
            spent = time.perf_counter() - start, time.process_time() - computed
        assert ended.exit_code == 0, ended.output
        return spent

    def of_explain() -> tuple[float, float]:
        return call("explain", "--batch-size", str(batch))

    def of_run() -> tuple[float, float]:
        return call("run", "--batch", str(batch), "--workers", "0")

    of_explain(), of_run()
    times = [(*of_run(), *of_explain()) for _ in range(rounds)]
    run, run_cpu, explain, explain_cpu = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "images": len(find_images(folder)),
        "load": round(os.getloadavg()[0], 1),
        "run_seconds": round(run, 2),
        "explain_seconds": round(explain, 2),
        "ratio": round(run / explain, 3),
        "lowest_ratio": round(min(a / b for a, _, b, _ in times), 3),
        "highest_ratio": round(max(a / b for a, _, b, _ in times), 3),
        "ratio_of_cpu_time": round(run_cpu / explain_cpu, 3),
    }


def drawn(folder: Path, count: int, size: int) -> Path:
    """Writes drawn scenes as JPEG files, unless they are there."""
    folder.mkdir(exist_ok=True)
    for sample in samples(f"scenes:{count},objects=1,size={size}"):
        path = folder / f"{sample.name}.jpg"
        if not path.exists():
            sample.image.save(path, quality=90)
    return folder


def memory(count: int, workers: int) -> dict[str, object]:
    """Returns the resident megabytes of the process that explains, after every tenth of the images."""
    page, levels = os.sysconf("SC_PAGE_SIZE"), list[tuple[int, float]]()

    def note(state: object) -> None:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6
        levels.append((state.images, round(resident, 1)))  # type: ignore[attr-defined]

    model = konkyo.load("konkyo/scenes-classifier")
    with tempfile.TemporaryDirectory() as out:
        data = f"scenes:{count},objects=1,size=64"
        konkyo.run(model, data, out, methods=["grad_cam"], batch=16, workers=workers, progress=note)
    step = max(1, len(levels) // 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"images": count, "resident_mb": levels[::step] + levels[-1:], "peak_mb": round(peak, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=("grad_cam", "odam", "explain"), action="append")
    parser.add_argument("--memory", type=int, metavar="IMAGES", help="measure memory over so many images instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if arguments.memory:
        results["memory"] = memory(arguments.memory, arguments.workers)
        print(results["memory"])
    else:
        with tempfile.TemporaryDirectory() as folder:
            pictures = drawn(Path(folder) / "all", arguments.images, 128)
            cases = {
                "grad_cam": ("konkyo/scenes-classifier", "stage4", bare_grad_cam),
                "odam": ("konkyo/scenes-detr", None, bare_odam),
            }
            wanted = arguments.only or [*cases, "explain"]
            for method, (name, layer, bare) in cases.items():
                if method not in wanted:
                    continue
                model, own = konkyo.load(name), konkyo.load(name)
                layer = layer or konkyo.explain(model, next(iter(samples("scenes:1"))), method=method).layer
                contender = bare(own, layer)
                found = compared(model, method, contender, pictures, 16, arguments.workers, arguments.rounds)
                results[method] = found
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                print(method, found, flush=True)
            for name, weights, share in (
                ("konkyo/scenes-classifier", "default", 1),
                ("torchvision/resnet50", "random", 4),
            ):
                if "explain" in wanted:
                    few = Path(folder) / f"a-{share}th"
                    drawn(few, max(16, arguments.images // share), 128)
                    result = with_pictures(name, weights, few, 16, max(1, arguments.rounds // 2))
                    results[f"explain, {name}"] = result
                    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                    print(name, result, flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
