"""Layers: what a module puts out seen as a feature grid, and the only place where hooks and stubs touch a model.

`capture` reads grids in one forward, `Replay` runs a forward with other values in a layer's place, `trace` lists every
grid of a network. Each leaves the network as it was, also when an exception flies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map

from konkyo.errors import KonkyoError

INPUT = "input"
STAGES = "stages"
MAX_PREFIX_TOKENS = 8  # class token, distillation token, registers


@dataclass(frozen=True)
class Layer:
    """A module whose output is a feature grid; `module=None` is the image itself.

    `fold` turns what the module puts out into (N, C, *grid), `unfold` turns such a grid back. Channels first, channels
    last and tokens differ here and nowhere else.
    """

    name: str
    module: nn.Module | None
    channel_axis: int = 1
    """Where the channels are: 1 for (N, C, h, w), -1 for (N, h, w, C) and for tokens (N, L, C)."""
    tokens: tuple[int, ...] | None = None
    """The grid that the tokens form, when the module puts out tokens."""
    prefix: int = 0
    """How many tokens (class, distillation, registers) stand before the grid."""
    call: int = -1
    """Which call of the module in one forward is meant; -1 is the last."""
    level: int | None = -1
    """-1: the first tensor of what the module puts out; None: all maps in it, a pyramid's levels; or one of them."""

    def fold(self, raw: Tensor) -> Tensor:
        """The module's output as (N, C, *grid)."""
        if self.tokens is not None:
            end = self.prefix + math.prod(self.tokens)  # what follows are no places (a detector's queries)
            raw = raw[:, self.prefix : end].reshape(len(raw), *self.tokens, -1)
        return raw.movedim(self.channel_axis, 1)

    def unfold(self, grid: Tensor, raw: Tensor) -> Tensor:
        """A grid (V, C, *grid) in the module's own form; other tokens come from `raw`, its output for one image."""
        out = grid.movedim(1, self.channel_axis)
        if self.tokens is not None:
            before, _, after = raw.expand(len(grid), -1, -1).tensor_split(
                (self.prefix, self.prefix + math.prod(self.tokens)), dim=1
            )
            out = torch.cat([before, out.flatten(1, len(self.tokens)), after], dim=1)
        return out


def main_tensor(output: Any) -> Tensor | None:
    """The first tensor of what a module puts out: itself, or the first in a tuple, list or mapping."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((v for v in values if isinstance(v, Tensor)), None)


def maps_in(output: Any) -> list[Tensor]:
    """The levels of a pyramid: the floating (N, C, *grid) in what a module puts out, however nested, in its order."""
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point() and t.ndim >= 3]


def _of_layer(output: Any, layer: Layer) -> list[Tensor]:
    """What a layer captures of its module's output: one tensor, or all levels of a pyramid."""
    if layer.level == -1:
        first = main_tensor(output)
        return [] if first is None else [first]
    levels = maps_in(output)
    return levels if layer.level is None else levels[layer.level : layer.level + 1]


def _with(output: Any, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
    """The output with `others` in the places of `tensors`, which are in it."""
    swap = {id(tensor): other for tensor, other in zip(tensors, others, strict=True)}
    swapped = 0

    def exchange(leaf: Any) -> Any:
        nonlocal swapped
        swapped += id(leaf) in swap
        return swap.get(id(leaf), leaf)

    result = tree_map(exchange, output)
    if swapped < len(swap):
        raise KonkyoError(f"a layer's output of type {type(output).__name__} cannot be read; name a layer inside it")
    return result


# --- capture: read grids in one forward ------------------------------------------------------------------------------


class Captured:
    """What the layers put out in one forward, in the modules' own form."""

    def __init__(self) -> None:
        self.calls: dict[Layer, list[list[Tensor]]] = {}

    def raw(self, layer: Layer) -> list[Tensor]:
        """What the layer's call that is meant put out: one tensor, or all levels of a pyramid.

        KonkyoError: the forward never made that call.
        """
        calls = self.calls.get(layer, [])
        try:
            return calls[layer.call]
        except IndexError:
            raise KonkyoError(
                f"layer {layer.name!r} was called {len(calls)} times in this forward; call {layer.call} was asked for"
            ) from None


@contextmanager
def capture(layers: Sequence[Layer], *, leaves: Sequence[Layer] = ()) -> Iterator[Captured]:
    """Within the context a forward fills the `Captured`; run it under `no_grad`.

    The first of `leaves` to be reached becomes the leaf of the graph: what comes before it runs without one, whatever
    the weights' `requires_grad`, and what follows is differentiable. Downstream gets a clone, so that an in-place
    operation right after the layer cannot rewrite what was captured.
    """
    captured = Captured()

    def hook(layer: Layer) -> Callable[..., Any]:
        def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
            tensors = _of_layer(output, layer)
            if not tensors:
                raise KonkyoError(f"layer {layer.name!r} puts out no tensor but {type(output).__name__}")
            kept = tensors
            if layer in leaves:
                torch.set_grad_enabled(True)
                kept = [t.detach().requires_grad_() if not t.requires_grad or t.is_leaf else t for t in tensors]
            captured.calls.setdefault(layer, []).append(kept)
            return _with(output, tensors, [t.clone() for t in kept])

        return keep

    with ExitStack() as undo:
        undo.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))  # the hook's switch ends here
        for layer in layers:
            if layer.module is not None:
                undo.callback(layer.module.register_forward_hook(hook(layer)).remove)
        yield captured


class Watch:
    """What a layer puts out in every forward that is differentiated, graph and all, and what the network was given.

    For training, where the forward is the caller's own; `close` takes the hooks off again. Downstream gets a clone, so
    that an in-place operation right after the layer cannot rewrite what was kept. What is kept is a view: a pyramid's
    coarse levels come from its finer ones, and what is differentiated by a view is only what follows it. Copies of the
    network (`copy.deepcopy`, for averaged weights) are not watched.
    """

    def __init__(self, root: nn.Module, layer: Layer) -> None:
        assert layer.module is not None
        self._open, self._layer = True, layer
        self._given = list[tuple[tuple[Any, ...], dict[str, Any]]]()
        self._calls = list[list[Tensor]]()
        self._handles = [
            root.register_forward_pre_hook(self._start, with_kwargs=True),
            layer.module.register_forward_hook(self._keep),
        ]

    def _start(self, _root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open:
            self._calls.clear()
            self._given[:] = [(args, kwargs)] if torch.is_grad_enabled() else []

    def _keep(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if not (self._open and self._given):
            return output
        tensors = _of_layer(output, self._layer)
        if not tensors:
            return output
        kept = [t.view_as(t) for t in tensors]
        self._calls.append(kept)
        return _with(output, tensors, [t.clone() for t in kept])

    def take(self) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], list[Tensor]]:
        """((args, kwargs) of the last forward, what the layer put out in it: one tensor, or a pyramid's levels).

        Given out once. KonkyoError: there was no forward with gradients since the last time.
        """
        if not self._open:
            raise KonkyoError(
                "this network is not watched: hooks were taken off, or this is a copy; begin anew with it"
            )
        given, calls = self._given[:], self._calls[:]
        self._given.clear()
        self._calls.clear()
        if not given or not calls:
            raise KonkyoError(
                f"layer {self._layer.name!r} put out nothing since it was last asked: run the network on images, with "
                "gradients enabled, before each call; torch.compile hears of hooks that are there at its first forward"
            )
        return given[0], calls[self._layer.call]

    def close(self) -> None:
        """Takes the hooks off the network."""
        self._open = False
        self._given.clear()
        self._calls.clear()
        for handle in self._handles:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which hears of its network's forwards, too, and is not to keep what they put out."""
        return {"_open": False, "_given": [], "_calls": [], "_handles": []}


# --- replay: other values in a layer's place -------------------------------------------------------------------------


@dataclass
class _Call:
    """A module's call in progress or finished, and the finished calls it made itself."""

    module: nn.Module | None
    output: Any = None
    finished: list[_Call] = field(default_factory=list)


class Replay:
    """Reruns only what follows a layer, for variants of its output on one image.

    Source of the idea: whatever finished before the layer did cannot depend on it. The largest such modules are
    recorded once, and stubbed while variants run: each hands back its recorded output at once. The modules that are
    still running when the layer finishes (its ancestors) run for real, and so does everything after it.

    `layer.call` counts from 0 here (the number of the call in one forward). Recorded outputs have batch size 1.
    Residual sums broadcast them; where that is not enough (concatenation) they are expanded to the variants' batch;
    where a model defeats both, the whole network runs on the variants' batch. Which of the three holds is found by
    replaying the layer's own output and comparing with what the network put out.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], layer: Layer, root: nn.Module, image: Tensor) -> None:
        self._forward, self._layer, self._image = forward, layer, image
        self._stubs: dict[nn.Module, list[Any]] = {}
        self.raw, output = self._record(root)
        self._mode: str = next(m for m in ("broadcast", "expand", "whole") if m == "whole" or self._faithful(m, output))

    def __call__(self, variants: Tensor) -> Tensor:
        """The network's output (V, ...) with the layer's output replaced by `variants` (V, C, *grid)."""
        return self._run(self._layer.unfold(variants.to(self.raw.dtype), self.raw), self._mode)

    @property
    def stubbed(self) -> frozenset[nn.Module]:
        """The modules that are answered from the record, whatever the number of variants."""
        return frozenset() if self._mode == "whole" else frozenset(self._stubs)

    def _record(self, root: nn.Module) -> tuple[Tensor, Tensor]:
        layer, stack, seen = self._layer, [_Call(None)], 0
        raw: Tensor | None = None

        def start(module: nn.Module, _args: Any) -> None:
            if raw is None:
                stack.append(_Call(module))

        def end(module: nn.Module, _args: Any, output: Any) -> None:
            nonlocal raw, seen
            if raw is not None:
                return
            call = stack.pop()
            call.output = tree_map(lambda leaf: leaf, output)  # of lists, which may be written to later, a copy
            call.finished = []  # what it called is covered by its own output
            stack[-1].finished.append(call)
            if module is layer.module:
                seen += 1
                if seen == layer.call + 1 and (tensors := _of_layer(output, layer)):
                    raw = tensors[0].detach().clone()

        with ExitStack() as undo, torch.no_grad():
            for module in root.modules():
                undo.callback(module.register_forward_pre_hook(start).remove)
                undo.callback(module.register_forward_hook(end).remove)
            output = self._forward(self._image.clone())  # networks may work in place on their input
        for call in stack:
            for done in call.finished:
                assert done.module is not None
                self._stubs.setdefault(done.module, []).append(done.output)
        assert raw is not None
        return raw, output

    def _faithful(self, mode: str, expected: Tensor) -> bool:
        recorded = [t for outputs in self._stubs.values() for o in outputs if isinstance(t := main_tensor(o), Tensor)]
        versions = [t._version for t in recorded]
        try:
            with torch.no_grad():
                again = self._run(torch.cat([self.raw, self.raw]), mode)
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):  # shapes that do not go together, ...
            return False
        untouched = versions == [t._version for t in recorded]
        tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) and self.raw.element_size() > 2 else 2e-2
        scale = expected.abs().amax().clamp_min(1e-12)
        return untouched and again.shape[0] == 2 and bool(((again - expected).abs() <= tolerance * scale).all())

    def _run(self, values: Tensor, mode: str) -> Tensor:
        image = self._image
        if mode == "whole":
            image = image.expand(len(values), *image.shape[1:])
        with ExitStack() as undo:
            for module, outputs in self._stubs.items():
                if mode != "whole":
                    undo.enter_context(_stubbed(module, self._answers(module, outputs, values, mode)))
                elif module is self._layer.module:
                    undo.enter_context(_replaced(module, self._layer, values))
            return self._forward(image.clone())

    def _answers(self, module: nn.Module, outputs: list[Any], values: Tensor, mode: str) -> list[Any]:
        answers = outputs
        if mode == "expand":
            size = len(values)
            answers = tree_map(
                lambda t: t.expand(size, *t.shape[1:]) if isinstance(t, Tensor) and t.ndim and len(t) == 1 else t,
                outputs,
            )
        if module is self._layer.module:
            answers = [*answers[:-1], _with(answers[-1], _of_layer(answers[-1], self._layer), [values])]
        return answers


@contextmanager
def _stubbed(module: nn.Module, answers: Sequence[Any]) -> Iterator[None]:
    """The module's first calls are answered with `answers`, in order, without running it; later calls run it."""
    run, left = module.forward, list(answers)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return left.pop(0) if left else run(*args, **kwargs)

    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


@contextmanager
def _replaced(module: nn.Module, layer: Layer, values: Tensor) -> Iterator[None]:
    """The module runs, but what its call that is meant puts out is replaced by `values`."""
    calls = 0

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        return _with(output, _of_layer(output, layer), [values]) if calls == layer.call + 1 else output

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# --- trace: every grid of a network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """One module's last output in a traced forward, and whether the decision depends on its grid."""

    name: str
    kind: str
    """The module's class name."""
    shape: tuple[int, ...]
    """What the module puts out, without the batch."""
    layer: Layer | None
    """How to read it as a grid (its `module` left out, so that a stored trace keeps no model alive); None: no grid."""
    grid: tuple[int, ...]
    gradient: float
    """Norm of d(top score)/d(grid) on a noise image; 0 when the decision does not depend on the grid."""
    before_head: bool
    """Whether a module with weights runs after it: otherwise it is the decision, no longer a feature."""


_PASS_THROUGH = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Flatten),
    nn.Softmax,  # of attention: (N, heads, L, L) is no grid of the picture, though L x L may look like one
)
_SPATIAL = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)
"""What networks raise for a batch or an image size that they do not take."""


def trace(forward: Callable[[Tensor], Tensor], root: nn.Module, image: Tensor) -> list[Site]:
    """Every module's last output, in the order in which they finish, from one forward and backward on `image` (1, ...).

    The gradient is that of the largest output. Modules that only pool, drop or pass on are left out.
    """
    with torch.enable_grad():
        run = _traced(forward, root, image)
        layers = _layouts(run, forward, root, image)
        wanted = [name for name in run.edges if layers[name] is not None]
        found = _gradients(run, [run.edges[name] for name in wanted])
    gradients, sites, norms = dict(zip(wanted, found, strict=True)), [], []
    for name, tensor in run.outputs.items():
        layer, gradient, norm = layers[name], gradients.get(name), tensor.new_zeros(())
        if layer is not None and gradient is not None:
            norm = layer.fold(gradient)[0].norm()
        norms.append(norm.detach().float())
        grid = tuple(layer.fold(tensor).shape[2:]) if layer is not None else ()
        kind, shape = type(root.get_submodule(name)).__name__, tuple(tensor.shape[1:])
        sites.append(Site(name, kind, shape, layer, grid, 0.0, run.finished[name] < run.last_weights))
    sizes = torch.stack(norms).tolist() if norms else []
    return [replace(site, gradient=size) for site, size in zip(sites, sizes, strict=True)]


@dataclass
class _Run:
    """What one traced forward showed."""

    batch: int
    score: Tensor = field(default_factory=lambda: torch.zeros(()))
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Every module's last output, in the order in which they finish."""
    edges: dict[str, GradientEdge] = field(default_factory=dict)
    """Where the gradients of what went on from there arrive."""
    finished: dict[str, int] = field(default_factory=dict)
    last_weights: int = 0
    """When the last module with weights of its own finished: the head, as a rule."""
    head_input: Tensor | None = None
    spaces: list[tuple[int, ...]] = field(default_factory=list)
    """The sizes that convolutions and pools put out."""


def _traced(forward: Callable[[Tensor], Tensor], root: nn.Module, image: Tensor) -> _Run:
    """A forward on the image twice in one batch: what does not come twice then (the windows of a picture, a table of
    positions) is no grid per image. On the image alone where the network takes no batch."""
    pair = torch.cat([image, image])
    with suppress(*_REFUSALS):
        run = _traced_batch(forward, root, pair)
        if run.score.ndim and len(run.score) == len(pair):
            return run
    return _traced_batch(forward, root, image)


def _traced_batch(forward: Callable[[Tensor], Tensor], root: nn.Module, images: Tensor) -> _Run:
    names = {module: name for name, module in root.named_modules() if name}
    run, clock = _Run(len(images)), 0

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal clock
        tensor, name = main_tensor(output), names[module]
        clock += 1
        if not any(module.children()) and any(True for _ in module.parameters(recurse=False)):
            run.last_weights, run.head_input = clock, main_tensor(args)
        if tensor is None or not tensor.is_floating_point() or isinstance(module, _PASS_THROUGH):
            return output
        if isinstance(module, _SPATIAL) and tensor.ndim == images.ndim and len(tensor) == len(images):
            kernel: Any = module.kernel_size
            if max((kernel,) if isinstance(kernel, int) else kernel) > 1:
                run.spaces.append(tuple(tensor.shape[2:]))
        run.outputs.pop(name, None)  # order by the last call
        run.outputs[name], run.finished[name] = tensor, clock
        # Of a clone, as in `capture`: a module may have used its output itself (pooled it, say) before handing it on.
        handed = tensor.clone()
        if handed.requires_grad:
            run.edges[name] = get_gradient_edge(handed)  # taken before an in-place operation makes it another's
        return _with(output, [tensor], [handed])

    with ExitStack() as undo:
        for module in names:
            undo.callback(module.register_forward_hook(hook).remove)
        run.score = forward(images.detach().clone().requires_grad_().clone())
    return run


def _gradients(run: _Run, grids: Sequence[GradientEdge]) -> Sequence[Tensor | None]:
    """d(largest output of the first image)/d(grids).

    A head whose weights are all zero, as some libraries start them, lets no gradient through, and the layers that the
    decision will depend on would look like those that it never can. What the head reads tells them apart: there a
    random projection of its input is differentiated.
    """
    top = run.score.reshape(run.batch, -1)[0].amax()
    if not grids or not top.requires_grad:
        return [None] * len(grids)
    found = torch.autograd.grad(top, grids, allow_unused=True, retain_graph=True)
    seen = [g.abs().amax() for g in found if g is not None and g.numel()]
    read = run.head_input
    if read is None or not read.requires_grad or (seen and torch.stack([s.float() for s in seen]).amax() != 0):
        return found
    noise = torch.randn(read.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(read)
    return torch.autograd.grad((read * noise)[:1].sum(), grids, allow_unused=True)


def _layouts(run: _Run, forward: Callable[[Tensor], Tensor], root: nn.Module, image: Tensor) -> dict[str, Layer | None]:
    """How each module's output is a grid, if it is one."""
    sizes, layers, axes = _Sizes(tuple(image.shape[2:]), run.spaces), dict[str, Layer | None](), dict[torch.Size, int]()
    wider: dict[str, int] | None = None
    for name, tensor in run.outputs.items():
        module = root.get_submodule(name)
        if isinstance(module, (*_FIRST, nn.Linear)):
            axes[tensor.shape] = -1 if isinstance(module, nn.Linear) else 1
        # A first dimension that is not the batch (windows of a picture, say) makes no grid per image.
        layer = _read(name, tuple(tensor.shape), sizes) if len(tensor) == run.batch else None
        if layer is not None and layer.tokens is None and sizes.fit(tensor.shape[2:]) and sizes.fit(tensor.shape[1:-1]):
            wider = _last_axes(forward, root, image) if wider is None else wider
            # A network of one image size tells nothing there; then the last operator with an output of this shape does.
            last = wider[name] == tensor.shape[-1] if name in wider else axes.get(tensor.shape) == -1
            layer = replace(layer, channel_axis=-1 if last else 1)
        layers[name] = layer
        if layer is not None:
            sizes.add(tuple(layer.fold(tensor).shape[2:]))
            sizes.prefixes.add(layer.prefix)
    return layers


class _Sizes:
    """The grid sizes of a network, which tell a grid from anything else of the same rank.

    Certain are the image's and what convolutions and pools of more than one place put out; likely is what patch merging
    (a stride of 2, 4 or 8) makes of those. A network without such modules is believed as it comes, at any stride.
    """

    def __init__(self, image: tuple[int, ...], spaces: Sequence[tuple[int, ...]]) -> None:
        self.image, self.certain = image, bool(spaces)
        self.known: list[tuple[int, ...]] = []
        self.strided: dict[tuple[int, ...], bool] = {}
        """Sizes that a stride makes of the known ones, and whether it divides them exactly."""
        self.prefixes: set[int] = {0}
        for size in (image, *spaces):
            self.add(size)

    def add(self, size: tuple[int, ...]) -> None:
        """One more size that is known to be a grid."""
        if size in self.known:
            return
        self.known.append(size)
        for stride in (1, 2, 4, 8) if self.certain else range(1, max(size) + 1):
            down, up = tuple(n // stride for n in size), tuple(-(-n // stride) for n in size)
            for grid in (down, up):
                self.strided[grid] = self.strided.get(grid, False) or down == up

    def fit(self, grid: Sequence[int]) -> bool:
        """Whether this can be a grid's size."""
        return tuple(grid) in self.strided or (not self.certain and covers(grid, self.image))

    def of_tokens(self, length: int) -> tuple[int, tuple[int, ...]] | None:
        """(prefix, grid) of so many tokens, the known grids first, with as few tokens before the grid as may be."""
        known = [(length - math.prod(g), g) for g in reversed(self.known) if math.prod(g) > 1]
        known = [(prefix, g) for prefix, g in known if 0 <= prefix <= MAX_PREFIX_TOKENS]
        if known:
            return min(known, key=lambda found: found[0])
        if length <= max(self.prefixes):  # the class token and its like alone
            return None
        prefixes = self.prefixes if self.certain else range(MAX_PREFIX_TOKENS + 1)
        strided = [
            (not exact, length - math.prod(g), g)
            for g, exact in self.strided.items()
            if length - math.prod(g) in prefixes
        ]
        return min(strided)[1:] if strided else None


def _read(name: str, shape: tuple[int, ...], sizes: _Sizes) -> Layer | None:
    """How an output of this shape is a grid over the image; None if it is none (or one cell only)."""
    layer = None
    if len(shape) == len(sizes.image) + 2:
        first, last = shape[2:], shape[1:-1]
        if sizes.fit(first) or (not sizes.certain and not sizes.fit(last)):
            layer, grid = Layer(name, None), first
        elif sizes.fit(last):
            layer, grid = Layer(name, None, channel_axis=-1), last
    elif len(shape) == 3 and len(sizes.image) > 1:
        found = sizes.of_tokens(shape[1])
        if found is not None:
            prefix, grid = found
            layer = Layer(name, None, channel_axis=-1, tokens=grid, prefix=prefix)
    return layer if layer is not None and math.prod(grid) > 1 else None


def _last_axes(forward: Callable[[Tensor], Tensor], root: nn.Module, image: Tensor) -> dict[str, int]:
    """The last axis of every module's output for an image twice as wide: where it stays, it holds the channels.

    Nothing for a network that takes images of one size only.
    """
    found: dict[str, int] = {}
    with ExitStack() as undo, torch.no_grad(), suppress(*_REFUSALS):
        for name, module in root.named_modules():

            def keep(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                tensor = main_tensor(output)
                if tensor is not None and tensor.ndim:
                    found[name] = tensor.shape[-1]

            undo.callback(module.register_forward_hook(keep).remove)
        forward(torch.cat([image, image], dim=-1))
    return found


def covers(grid: Sequence[int], spatial: Sequence[int]) -> bool:
    """Whether the grid could be the input divided by one stride, up to rounding."""
    if any(g > s or g < 1 for g, s in zip(grid, spatial, strict=True)):
        return False
    stride = max(spatial) / grid[spatial.index(max(spatial))]
    return all(abs(g - s / stride) <= 1 for g, s in zip(grid, spatial, strict=True))


def bind(layer: Layer, root: nn.Module) -> Layer:
    """The layer with its module, looked up by name in `root`."""
    return replace(layer, module=root.get_submodule(layer.name))


def linear_head(root: nn.Module, means: Tensor, output: Tensor, tolerance: float) -> nn.Linear | None:
    """The linear layer that makes the output (N, K) of the means over the grid (N, C); None: none does."""
    for linear in reversed([m for m in root.modules() if isinstance(m, nn.Linear)]):
        if (linear.out_features, linear.in_features) != (output.shape[1], means.shape[1]):
            continue
        # Without the bias: beside a large one, what other grids give would look the same.
        own = output if linear.bias is None else output - linear.bias.detach().to(output)
        again = means @ linear.weight.detach().to(means).T
        if ((again - own).abs() <= tolerance * own.abs().amax()).all():
            return linear
    return None


@dataclass
class OutputBytes:
    """Memory of the module outputs of a forward."""

    largest: int = 0
    total: int = 0


@contextmanager
def measured_outputs(root: nn.Module, outside: frozenset[nn.Module] = frozenset()) -> Iterator[OutputBytes]:
    """Within the context a forward adds up the bytes of what the innermost modules, but those `outside`, put out."""
    measured = OutputBytes()

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        tensor = main_tensor(output)
        if tensor is not None:
            size = tensor.numel() * tensor.element_size()
            measured.largest = max(measured.largest, size)
            measured.total += size

    with ExitStack() as undo:
        for module in set(root.modules()) - outside:
            if not any(module.children()):
                undo.callback(module.register_forward_hook(hook).remove)
        yield measured


@contextmanager
def untouched(root: nn.Module) -> Iterator[None]:
    """Within the context the network is in eval mode and runs eagerly; after it all is as it was.

    That is: every module's mode, what `module.compile()` left, the random state; and the caller's autocast keeps no
    weights that were cast here without a graph.
    """
    modules = list(root.modules())
    modes = [(module, module.training) for module in modules]
    compiled = [(m, m.__dict__["_compiled_call_impl"]) for m in modules if m.__dict__.get("_compiled_call_impl")]
    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            if any(mode for _, mode in modes):
                root.eval()
            for module, _ in compiled:
                module.__dict__["_compiled_call_impl"] = None
            yield
        finally:
            for module, mode in modes:
                if module.training != mode:
                    module.training = mode
            for module, call in compiled:
                module.__dict__["_compiled_call_impl"] = call
            torch.clear_autocast_cache()


@torch.no_grad()
def draw_anew(part: nn.Module) -> None:
    """Draws a module's own weights: as it initialises itself, or normal, with each parameter's deviation."""
    if callable(reset := getattr(part, "reset_parameters", None)):
        reset()
        return
    for parameter in part.parameters(recurse=False):
        deviation = float(parameter.std()) if parameter.numel() > 1 else 0.0
        parameter.normal_(0, deviation or 0.02)
