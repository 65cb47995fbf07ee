"""Replay: a forward with other values in a layer's place, which reruns only what follows the layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from konkyo.engine.layer import Layer, exchanged, main_tensor, tensors_of
from konkyo.engine.session import Stub, hook_after, hooked, open_modules
from konkyo.errors import NetworkError

_MODES = ("broadcast", "expand", "whole", "single")
"""How variants are replayed, the fastest first."""


@dataclass
class _RecordedCall:
    """This is a module's call, in progress or finished, with the finished calls that it made itself."""

    module: nn.Module | None
    output: Any = None
    finished: list[_RecordedCall] = field(default_factory=list)


class Replay:
    """Reruns only what follows a layer, for variants of its output on one image.

    A module that finished before the layer did cannot depend on it. The largest such modules are recorded once, and
    stubbed while variants run: a stub returns the recorded output at once. The modules that are still running when the
    layer finishes (its ancestors) run as they are, and so does everything after it.

    `layer.call` counts from 0 here (the number of the call in one forward). Recorded outputs have batch size 1.
    Residual sums broadcast them; where that is not enough (concatenation) they are expanded to the variants' batch;
    where both fail, the whole network runs on the variants' batch, or on each variant alone. A trial tells what holds:
    the layer's original output is replayed beside half of it, and compared with what the network put out.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], layer: Layer, root: nn.Module, image: Tensor) -> None:
        self._forward, self._layer, self._image = forward, layer, image
        self._stubs: dict[nn.Module, list[Any]] = {}
        self.raw, output = self._record(root)
        self._mode: str = next(m for m in _MODES if m == "single" or self._faithful(m, output))

    def __call__(self, variants: Tensor) -> Tensor:
        """Returns the network's output (V, ...) with the layer's output replaced by `variants` (V, C, *grid)."""
        return self._run(self._layer.unfold(variants.to(self.raw.dtype), self.raw), self._mode)

    @property
    def stubbed(self) -> frozenset[nn.Module]:
        """These modules return their recorded output, whatever the number of variants."""
        return frozenset() if self._mode in ("whole", "single") else frozenset(self._stubs)

    def _record(self, root: nn.Module) -> tuple[Tensor, Tensor]:
        """Runs the network once, storing what precedes the layer.

        -> the layer's output for one image, the network's.
        """
        layer, stack, calls = self._layer, [_RecordedCall(None)], 0
        raw: Tensor | None = None

        def start(module: nn.Module, _args: Any) -> None:
            if raw is None:
                stack.append(_RecordedCall(module))

        def end(module: nn.Module, _args: Any, output: Any) -> None:
            """Closes a call: it holds its output in the place of those of the calls within it."""
            nonlocal raw, calls
            if raw is not None:
                return
            call = stack.pop()
            call.output = tree_map(lambda leaf: leaf, output)  # of lists, which may be written to later, a copy
            call.finished = []  # what it called is covered by its own output
            stack[-1].finished.append(call)
            if module is layer.module:
                calls += 1
                if calls == layer.call + 1 and (tensors := tensors_of(output, layer)):
                    raw = tensors[0].detach().clone()

        with hooked(open_modules(root), before=start, after=end), torch.no_grad():
            output = self._forward(self._image.clone())  # networks may work in place on their input
        for call in stack:
            for done in call.finished:
                assert done.module is not None
                self._stubs.setdefault(done.module, []).append(done.output)
        assert raw is not None
        return raw, output

    def _faithful(self, mode: str, expected: Tensor) -> bool:
        """Tells whether a replay in this mode gives the expected output and leaves the records as they are."""
        recorded = [t for outputs in self._stubs.values() for o in outputs if isinstance(t := main_tensor(o), Tensor)]
        versions = [t._version for t in recorded]
        try:
            with torch.no_grad():
                other = self.raw / 2  # so that the network cannot take one for the other
                alone = self._run(other, mode)
                again = self._run(torch.cat([self.raw, other], self._layer.batch_axis), mode)
        except NetworkError as error:
            if not isinstance(error.__cause__, (RuntimeError, ValueError, AssertionError, IndexError, TypeError)):
                raise
            return False  # shapes that do not go together, ...
        untouched = versions == [t._version for t in recorded]
        tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) and self.raw.element_size() > 2 else 2e-2
        if not untouched or again.shape[0] != 2 or alone.shape[0] != 1:
            return False
        expected = torch.cat([expected, alone])
        return bool(((again - expected).abs() <= tolerance * expected.abs().amax().clamp_min(1e-12)).all())

    def _run(self, values: Tensor, mode: str) -> Tensor:
        """Runs the network in this mode, the layer's output replaced by `values` -> its output."""
        if mode == "single":
            singles = torch.split(values, max(1, self._layer.stacked), self._layer.batch_axis)
            return torch.cat([self._run(value.clone(), "whole") for value in singles])
        image = self._image
        if mode == "whole":
            count = values.shape[self._layer.batch_axis] // max(1, self._layer.stacked)
            image = image.expand(count, *image.shape[1:])
        with ExitStack() as undo:
            for module, outputs in self._stubs.items():
                if mode != "whole":
                    undo.enter_context(_stubbed(module, self._answers(module, outputs, values, mode)))
                elif module is self._layer.module:
                    undo.enter_context(_replaced(module, self._layer, values))
            return self._forward(image.clone())

    def _answers(self, module: nn.Module, outputs: list[Any], values: Tensor, mode: str) -> list[Any]:
        """Returns what a stubbed module puts out, call by call, for as many variants as `values` are."""
        answers = outputs
        if mode == "expand":
            axis = self._layer.batch_axis
            answers = tree_map(lambda leaf: _expanded(leaf, values.shape[axis], axis), outputs)
        if module is self._layer.module:
            answers = [*answers[:-1], exchanged(answers[-1], tensors_of(answers[-1], self._layer), [values])]
        return answers


def _expanded(leaf: Any, size: int, batch_axis: int) -> Any:
    """Returns a recorded tensor for so many variants; what holds no single image comes back as it is.

    Images come first also where the layer's tokens (L, N, C) do, in what precedes those tokens.
    """
    if not isinstance(leaf, Tensor):
        return leaf
    for axis in dict.fromkeys((0, batch_axis)):
        if leaf.ndim > axis and leaf.shape[axis] == 1:
            return leaf.expand(*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
    return leaf


@contextmanager
def _stubbed(module: nn.Module, answers: Sequence[Any]) -> Iterator[None]:
    """Within the context the module's first calls return `answers`, in order, without running; later calls run it.

    They return copies of lists and records, which networks write to (those of transformers do); of tensors, themselves.
    """
    left = [tree_map(lambda leaf: leaf, answer) for answer in answers]

    def forward(*args: Any, **kwargs: Any) -> Any:
        return left.pop(0) if left else stub.run(*args, **kwargs)

    stub = Stub(module, forward)
    try:
        stub.put_on(module)
        yield
    finally:
        stub.take_off(module)


@contextmanager
def _replaced(module: nn.Module, layer: Layer, values: Tensor) -> Iterator[None]:
    """Within the context the module runs, but `values` replace what its call `layer.call` puts out."""
    calls = 0

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        return exchanged(output, tensors_of(output, layer), [values]) if calls == layer.call + 1 else output

    handle = hook_after(module, hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()
