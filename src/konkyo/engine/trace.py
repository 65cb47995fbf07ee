"""Trace: one forward and backward tells which modules of a network put out a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from konkyo.engine.layer import MAX_PREFIX_TOKENS, Layer, covers, exchanged, main_tensor
from konkyo.engine.session import backward_errors, hook_after, open_modules
from konkyo.errors import NetworkError


@dataclass(frozen=True)
class Site:
    """A site is one module's last output in a traced forward, and whether the decision depends on its grid."""

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
_REFUSALS = (NetworkError, RuntimeError, ValueError, AssertionError, IndexError, TypeError)
"""What networks raise for a batch or an image size that they do not take."""


def trace(forward: Callable[[Tensor], Tensor], root: nn.Module, image: Tensor) -> list[Site]:
    """Lists every module's last output, in the order in which they finish, of one forward on `image` (1, ...).

    The gradient is that of the largest output. Modules that only pool, drop or pass on are left out.
    """
    with torch.enable_grad():
        run = _run_traced(forward, root, image)
        layers = _layouts(run, forward, root, image)
        names = [name for name in run.edges if layers[name] is not None]
        with backward_errors(type(root).__name__):
            gradients = dict(zip(names, _gradients(run, [run.edges[name] for name in names]), strict=True))
    sites, norms = [], []
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
class _TracedRun:
    """This holds what one traced forward showed."""

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


def _run_traced(forward: Callable[[Tensor], Tensor], root: nn.Module, image: Tensor) -> _TracedRun:
    """Runs a forward on the image twice in one batch, or on the image alone where the network takes no batch.

    What does not come twice then (the windows of a picture, a table of positions) is no grid per image."""
    pair = torch.cat([image, image])
    with suppress(*_REFUSALS):
        run = _traced_batch(forward, root, pair)
        if run.score.ndim and len(run.score) == len(pair):
            return run
    return _traced_batch(forward, root, image)


def _traced_batch(forward: Callable[[Tensor], Tensor], root: nn.Module, images: Tensor) -> _TracedRun:
    """Runs a forward on the images with a hook on every module, and returns what the hooks noted."""
    reached = set(open_modules(root))
    names = {module: name for name, module in root.named_modules() if name and module in reached}
    run, clock = _TracedRun(len(images)), 0

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        """Notes what a module puts out, and hands on a copy that shares the module's gradient."""
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
        return exchanged(output, [tensor], [handed])

    with ExitStack() as undo:
        for module in names:
            undo.callback(hook_after(module, hook).remove)
        run.score = forward(images.detach().clone().requires_grad_().clone())
    return run


def _gradients(run: _TracedRun, grids: Sequence[GradientEdge]) -> Sequence[Tensor | None]:
    """Returns d(largest output of the first image)/d(grids).

    A head whose weights are all zero, as some libraries start them, lets no gradient through. The layers that the
    decision will depend on would look like those that it never can. What the head reads tells them apart: there a
    random projection of its input is differentiated.
    """
    top = run.score.reshape(run.batch, -1)[0].amax()
    if not grids or not top.requires_grad:
        return [None] * len(grids)
    gradients = torch.autograd.grad(top, grids, allow_unused=True, retain_graph=True)
    peaks = [g.abs().amax() for g in gradients if g is not None and g.numel()]
    read = run.head_input
    if read is None or not read.requires_grad or (peaks and torch.stack([p.float() for p in peaks]).amax() != 0):
        return gradients
    noise = torch.randn(read.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(read)
    return torch.autograd.grad((read * noise)[:1].sum(), grids, allow_unused=True)


def _layouts(
    run: _TracedRun, forward: Callable[[Tensor], Tensor], root: nn.Module, image: Tensor
) -> dict[str, Layer | None]:
    """Tells how each module's output is a grid, if it is one."""
    sizes, layers, axes = _Sizes(tuple(image.shape[2:]), run.spaces), dict[str, Layer | None](), dict[torch.Size, int]()
    wider: dict[str, int] | None = None
    for name, tensor in run.outputs.items():
        module = root.get_submodule(name)
        if isinstance(module, (*_FIRST, nn.Linear)):
            axes[tensor.shape] = -1 if isinstance(module, nn.Linear) else 1
        # A first dimension that is not the batch (windows of a picture, say) makes no grid per image.
        layer = _layout(name, tuple(tensor.shape), sizes) if len(tensor) == run.batch else None
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
    """These are the grid sizes of a network, which tell a grid from anything else of the same rank.

    Certain are the image's and what convolutions and pools of more than one place put out. Likely is what patch merging
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
        """Adds one more size that is known to be a grid."""
        if size in self.known:
            return
        self.known.append(size)
        for stride in (1, 2, 4, 8) if self.certain else range(1, max(size) + 1):
            down, up = tuple(n // stride for n in size), tuple(-(-n // stride) for n in size)
            for grid in (down, up):
                self.strided[grid] = self.strided.get(grid, False) or down == up

    def fit(self, grid: Sequence[int]) -> bool:
        """Tells whether this can be a grid's size."""
        return tuple(grid) in self.strided or (not self.certain and covers(grid, self.image))

    def of_tokens(self, length: int) -> tuple[int, tuple[int, ...]] | None:
        """Returns (prefix, grid) of so many tokens: a known grid if one fits, with as short a prefix as may be."""
        known = [(length - math.prod(g), g) for g in reversed(self.known) if math.prod(g) > 1]
        known = [(prefix, g) for prefix, g in known if 0 <= prefix <= MAX_PREFIX_TOKENS]
        if known:
            return min(known, key=lambda candidate: candidate[0])
        if length <= max(self.prefixes):  # the class token and its like alone
            return None
        prefixes = self.prefixes if self.certain else range(MAX_PREFIX_TOKENS + 1)
        strided = [
            (not exact, length - math.prod(g), g)
            for g, exact in self.strided.items()
            if length - math.prod(g) in prefixes
        ]
        return min(strided)[1:] if strided else None


def _layout(name: str, shape: tuple[int, ...], sizes: _Sizes) -> Layer | None:
    """Tells how an output of this shape is a grid over the image; None if it is none (or one cell only)."""
    layer = None
    if len(shape) == len(sizes.image) + 2:
        first, last = shape[2:], shape[1:-1]
        if sizes.fit(first) or (not sizes.certain and not sizes.fit(last)):
            layer, grid = Layer(name, None), first
        elif sizes.fit(last):
            layer, grid = Layer(name, None, channel_axis=-1), last
    elif len(shape) == 3 and len(sizes.image) > 1:
        split = sizes.of_tokens(shape[1])
        if split is not None:
            prefix, grid = split
            layer = Layer(name, None, channel_axis=-1, tokens=grid, prefix=prefix)
    return layer if layer is not None and math.prod(grid) > 1 else None


def _last_axes(forward: Callable[[Tensor], Tensor], root: nn.Module, image: Tensor) -> dict[str, int]:
    """Returns every module's last axis for an image twice as wide: where its length stays, it holds the channels.

    Nothing for a network that takes images of one size only.
    """
    axes: dict[str, int] = {}
    with ExitStack() as undo, torch.no_grad(), suppress(*_REFUSALS):
        reached = set(open_modules(root))
        for name, module in [(n, m) for n, m in root.named_modules() if m in reached]:

            def note(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                tensor = main_tensor(output)
                if tensor is not None and tensor.ndim:
                    axes[name] = tensor.shape[-1]

            undo.callback(hook_after(module, note).remove)
        forward(torch.cat([image, image], dim=-1))
    return axes
