"""Explanations interrupted by Ctrl-C at random moments: what is left on the network?

    python benchmarks/interrupts.py --signals 2000

Every signal hits an explanation of a tiny network in train mode by one of ten methods. After it the network, the
random state and the thread must be as they were, while the exception is still alive. The exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter

import torch
from torch import nn

import konkyo
from konkyo.engine.ownership import Claim
from konkyo.errors import silenced

METHODS = (
    *("grad_cam", "layer_cam", "recipro_cam", "score_cam", "saliency", "integrated_gradients"),
    *("guided_backprop", "full_grad", "ablation_cam", "relevance_cam"),
)


def network() -> nn.Module:
    """Returns a tiny network in train mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def state(net: nn.Module) -> dict[str, object]:
    """Returns all that an explanation must leave as it is."""
    found: dict[str, object] = {
        "grad mode": torch.is_grad_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random state": torch.get_rng_state().tolist(),
        "Python's random state": random.getstate(),
    }
    for name, module in net.named_modules():
        kept = {key: value for key, value in module.__dict__.items() if key != "_modules"}
        for key, value in kept.items():
            found[f"{name}.{key}"] = dict(value) if isinstance(value, dict) else value
    for name, parameter in net.named_parameters():
        found[f"{name}.requires_grad"], found[f"{name}.grad"] = parameter.requires_grad, parameter.grad
    return found


def held_by_this_thread() -> bool:
    """Tells whether a claim of this thread's is still held, which another thread would wait for."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(Claim([]).contested()))
    thread.start()
    thread.join()
    return answers[0]


def run(signals: int, seed: int = 0) -> tuple[int, Counter[str]]:
    """Interrupts explanations -> (how many were hit, what was left how often)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    net, image, draw = network(), torch.randn(1, 3, 16, 16), random.Random(seed)
    seconds = {}
    for name in METHODS:
        for _ in range(2):
            start = time.perf_counter()
            konkyo.explain(net, image, method=name, target=1)
            seconds[name] = time.perf_counter() - start
    before, left, hits = state(net), Counter[str](), 0
    while hits < signals:
        name = draw.choice(METHODS)
        timer = threading.Thread(target=_fire, args=(draw.random() * seconds[name],))
        caught: BaseException | None = None
        try:
            timer.start()
            while timer.is_alive():
                konkyo.explain(net, image, method=name, target=1)
            time.sleep(0.01)
        except KeyboardInterrupt as error:
            caught = error
            hits += 1
        timer.join()
        after = state(net)
        left.update(key for key in before.keys() | after.keys() if not _same(before.get(key), after.get(key)))
        if held_by_this_thread():
            left["a claim"] += 1
        del caught
    return hits, left


def _same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


def _fire(after: float) -> None:
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGINT)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with silenced():
        hits, left = run(given.signals)
    print(f"{hits} signals: {sum(left.values())} things left: {dict(left)}")
    return bool(left)


if __name__ == "__main__":
    sys.exit(main())
