"""What the first explanation at an image size costs beside a plain forward, each in a process of its own.

The first call chooses the layer, by a trace of small images. Time is CPU time on one thread, as a multiple of the
plain forward under `no_grad` in the same process state; memory is what the process's peak grows by in the first call.

    python benchmarks/first_call.py           # the table; some minutes
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

NETWORKS = (
    ("resnet18", 512, 512, ""),
    ("resnet50", 224, 224, ""),
    ("resnet50", 512, 512, ""),
    ("resnet50", 512, 512, "layer4"),
    ("mobilenet_v3_small", 224, 224, ""),
    ("efficientnet_b0", 224, 224, ""),
    ("densenet121", 224, 224, ""),
    ("convnext_tiny", 224, 224, ""),
    ("vit_b_16", 224, 224, ""),
    ("swin_t", 224, 224, ""),
    ("resnet18", 1000, 1504, ""),
)
"""Name, height, width, and the layer; "": the automatic one."""


def peak() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measured(what: str, name: str, height: int, width: int, layer: str) -> list[float]:
    """Runs a forward or an explanation twice -> seconds of the first, of the second, MiB of the first."""
    import torch
    import torchvision

    import konkyo

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def run(net: torch.nn.Module, x: torch.Tensor, layer: str | None) -> object:
        if what == "explain":
            return konkyo.explain(net, x, target=0, layer=layer)
        with torch.no_grad():
            return net(x)

    torch.manual_seed(0)
    run(torchvision.models.resnet18().eval(), torch.randn(1, 3, 64, 64), None)  # imports, and what torch sets up
    net, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, height, width)
    gc.collect()
    gc.freeze()  # otherwise a collection of all that was imported falls into one of the two
    level, start = peak(), time.process_time()
    run(net, x, layer or None)
    first, grown, start = time.process_time() - start, peak() - level, time.process_time()
    run(net, x, layer or None)
    return [first, time.process_time() - start, grown]


def rows(repeats: int = 3) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields (network, its figures), the least of the repeats."""
    for name, height, width, layer in NETWORKS:
        least: dict[str, list[float]] = {}
        for what in ("forward", "explain") * repeats:
            command = [sys.executable, __file__, "--child", what, name, str(height), str(width), layer]
            values = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            least[what] = [min(pair) for pair in zip(values, least.get(what, values), strict=True)]
        (once, again, held), (first, second, grown) = least["forward"], least["explain"]
        forward = min(once, again)
        yield (
            f"{name}, {height} x {width}" + (f", layer={layer!r}" if layer else ""),
            {
                "forward_ms": forward * 1e3,
                "first": first / forward,
                "second": second / forward,
                "mb": grown,
                "forward_mb": held,
            },
        )


def section() -> Iterator[dict[str, object]]:
    """Yields the figures as a section of benchmarks/results.json."""
    title = "The first call at an image size, against a forward on one thread"
    print(f"\n{title}", flush=True)
    found = {}
    for name, row in rows():
        figures = {
            "plain forward": (1.0, row["forward_mb"]),
            "grad_cam, first call": (row["first"], row["mb"]),
            "grad_cam, second call": (row["second"], None),
        }
        for what, (ratio, memory) in figures.items():
            found[f"{name}: {what}"] = {"wall": ratio, "cpu": ratio, "mb": memory, "rounds": 3}
        print(
            f"  {name:42s} first {row['first']:6.2f}  second {row['second']:6.2f}  "
            f"{row['mb']:7.0f} MB, forward {row['forward_mb']:.0f} MB",
            flush=True,
        )
    yield {"title": title, "rounds": 3, "forward_ms": 0.0, "rows": found}


def main() -> None:
    """Prints the table, or measures one network in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=5, metavar=("WHAT", "NETWORK", "HEIGHT", "WIDTH", "LAYER"))
    child = parser.parse_args().child
    if child:
        print(json.dumps(measured(child[0], child[1], int(child[2]), int(child[3]), child[4])))
    else:
        list(section())


if __name__ == "__main__":
    main()
