"""One network explained from several threads at once: how many maps differ from those of a single thread?

    python benchmarks/threads.py --calls 10000 --threads 8

Every call draws a method and an image. Half of the calls explain a second network that shares its first layers with the
first. Both are in train mode, with a pause in the forward that lets other threads in. Meanwhile a thread of the user's
own runs the first network; its outputs must be right, too. The exit status is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import konkyo
from konkyo.errors import silenced

METHODS = (
    *("grad_cam", "hires_cam", "layer_cam", "recipro_cam", "score_cam", "saliency", "integrated_gradients"),
    *("guided_backprop", "full_grad", "ablation_cam"),
)


class Pause(nn.Module):
    """This stands for whatever lets another thread in: a kernel, a lock, reading a file."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        """Returns what comes in, a little later."""
        time.sleep(self.seconds)
        return x


def networks(pause: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """Returns two small networks with common first layers, in train mode."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), Pause(pause))
    first, second = (
        nn.Sequential(
            trunk, nn.Conv2d(8, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)
        )
        for width in (12, 16)
    )
    return first, second


def explained(network: nn.Module, image: Tensor, method: str) -> Tensor:
    """Returns the map of class 1."""
    options = {"steps": 4} if method == "integrated_gradients" else {}
    with silenced():  # a blank map is as good as another here
        return konkyo.explain(network, image, method=method, target=1, **options).signed


@dataclass
class Outcome:
    """This is what went wrong."""

    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """Returns how many things went wrong."""
        return sum(map(len, (self.wrong, self.errors, self.outputs, self.left)))


def leftovers(network: nn.Module) -> list[str]:
    """Returns what is on a network in train mode that was not there before."""
    left = []
    for name, module in network.named_modules():
        left += [f"{name}: a hook"] * (len(module._forward_hooks) + len(module._forward_pre_hooks))
        left += [f"{name}: a forward"] if "forward" in module.__dict__ else []
        left += [] if module.training else [f"{name}: eval mode"]
    return left + [f"{name}: a gradient" for name, p in network.named_parameters() if p.grad is not None]


def run(calls: int, threads: int, pause: float = 0.0002) -> Outcome:
    """Explains in several threads and compares with what a single thread gives."""
    both, outcome = networks(pause), Outcome()
    images = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    alone = {
        (n, i, m): explained(both[n], image, m) for n in range(2) for i, image in enumerate(images) for m in METHODS
    }
    random_state, filters = torch.get_rng_state(), list(warnings.filters)
    over = threading.Event()

    def explain(thread: int) -> None:
        draw = random.Random(thread)
        for _ in range(calls // threads):
            case = draw.randrange(2), draw.randrange(4), draw.choice(METHODS)
            try:
                result = explained(both[case[0]], images[case[1]], case[2])
                if not torch.allclose(result, alone[case], rtol=1e-3, atol=1e-6):
                    outcome.wrong.append(str(case))
            except Exception as error:
                outcome.errors.append(f"{case}: {type(error).__name__}: {error}")

    def use() -> None:
        """Runs a module of the network that batch statistics do not change."""
        convolution = both[0][1]
        x = torch.ones(1, 8, 16, 16)
        right = convolution(x)
        while not over.is_set():
            if not torch.equal(convolution(x), right):
                outcome.outputs.append("another thread's own forward")

    user = threading.Thread(target=use)
    workers = [threading.Thread(target=explain, args=(i,)) for i in range(threads)]
    user.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    over.set()
    user.join()
    outcome.left += leftovers(both[0]) + leftovers(both[1])
    outcome.left += [] if torch.equal(random_state, torch.get_rng_state()) else ["the random state"]
    outcome.left += [] if filters == list(warnings.filters) else ["filters of warnings"]
    return outcome


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    outcome = run(given.calls, given.threads)
    seconds = time.perf_counter() - start
    print(
        f"{given.calls} calls from {given.threads} threads in {seconds:.0f} s: {len(outcome.wrong)} wrong maps, "
        f"{len(outcome.errors)} errors, {len(outcome.outputs)} wrong outputs of another thread, left: {outcome.left}"
    )
    for fault in (*outcome.wrong[:5], *outcome.errors[:5]):
        print(f"  {fault}")
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
