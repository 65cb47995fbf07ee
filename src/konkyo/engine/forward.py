"""Pass: one forward of a network with layers captured, and the backwards of its output."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor, nn

from konkyo.engine.capture import capture
from konkyo.engine.layer import Layer
from konkyo.engine.session import backward_errors, in_short, out_of_memory, outside_inference, session_of
from konkyo.engine.sound import SoundForward
from konkyo.errors import KonkyoError, NetworkError
from konkyo.targets.base import BaseTarget
from konkyo.targets.classes import Target
from konkyo.utils.segments import Count, Segmentation, segments_of
from konkyo.utils.tensors import at_least_float32

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""In what a model's forwards run: under autocast in 16 bits, or in 32 bits."""


_INDEPENDENT: WeakSet[nn.Module] = WeakSet()
"""The networks whose output for an image was found not to depend on the others of its batch."""


class Network(Protocol):
    """A network is what a Pass needs of a model: modules, and a call `images -> output` (first dimension: images)."""

    @property
    def module(self) -> nn.Module:
        """This is the module tree that holds the layers."""

    @property
    def name(self) -> str:
        """This is what errors call the network."""

    @property
    def black(self) -> tuple[float, ...]:
        """This is a black pixel in the images that go in, per channel; (0.0,) where that is not known."""

    @property
    def white(self) -> tuple[float, ...]:
        """This is a white pixel in the images that go in, per channel; (1.0,) where that is not known."""

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the output for a batch of images."""

    def class_index(self, name: str) -> int:
        """Returns the index of a class by its name. KonkyoError: an unknown one."""


class OneByOne(KonkyoError):  # noqa: N818 - it says what the network does
    """A network that runs the images of a batch one by one: what its layers put out is of one image at a time."""


class Pass:
    """A Pass is one forward of the network on `images` (N, C, *size) with `layers` captured.

    Everything before the first of `differentiable` runs without a graph. `precision=None` keeps the caller's autocast
    state; "bf16" and "fp16" run every forward of this Pass under autocast. Methods always compute in fp32 or better.
    `within` is entered for the forward; what it yields is stored as `recorded`.

    Methods of a Pass that take `rows` answer for every row: row r is image `rows[r]` with target `targets[r]`.
    """

    def __init__(
        self,
        network: Network,
        images: Tensor,
        layers: Sequence[Layer] = (),
        *,
        differentiable: Sequence[Layer] = (),
        precision: Precision | None = None,
        within: Sequence[Callable[[nn.Module], AbstractContextManager[object]]] = (),
    ) -> None:
        """Runs the forward, and stores its output and what the layers put out."""
        self.network = network
        self._autocast = _autocast_arguments(images.device.type, precision)
        self._gradients: list[tuple[Rows, tuple[Target, ...], list[Tensor]]] = []
        self._others: dict[object, Pass] = {}
        self._segments: dict[str, Tensor] = {}
        with (
            self.forwards(),
            torch.no_grad(),
            capture(layers, leaves=differentiable) as captured,
            ExitStack() as entered,
        ):
            self.recorded = {enter: entered.enter_context(enter(network.module)) for enter in within}
            self.images = images.clone() if images.is_inference() else images.detach()
            leaf = self.images
            if any(layer.module is None for layer in differentiable):
                leaf = self.images.detach().requires_grad_()
                torch.set_grad_enabled(True)
            output = network(leaf.clone())
            self.calls = {layer: len(captured.calls.get(layer, ())) for layer in layers}
            self.output, self.half = at_least_float32(output), output.element_size() < 4
        self._levels: dict[Layer, tuple[Layer, ...]] = {}
        self._raw: dict[Layer, Tensor] = {}
        for layer in layers:
            raws = [leaf] if layer.module is None else captured.raw(layer)
            several = layer.level is None
            self._levels[layer] = tuple(replace(layer, level=i) for i in range(len(raws))) if several else (layer,)
            self._raw |= zip(self._levels[layer], raws, strict=True)
            self.calls |= dict.fromkeys(self._levels[layer], self.calls[layer])
        self._differentiable = [level for layer in differentiable for level in self._levels[layer]]
        if len(images) > 1 and any(raw.shape[level.batch_axis] == 1 for level, raw in self._raw.items()):
            raise OneByOne(
                f"{type(network.module).__name__} runs the images of a batch one by one, so that its layers put out "
                "one at a time; give one image"
            )
        if self.output.shape[:1] != (len(images),):
            squeezed = "" if self.output.ndim else "; select=lambda output: output.reshape(-1, 1) undoes a squeeze"
            raise KonkyoError(
                f"{len(images)} images went in, but the output has shape {tuple(self.output.shape)}{squeezed}"
            )

    @contextmanager
    def forwards(self) -> Iterator[None]:
        """Within the context a network runs as this Pass does: with its autocast, whatever the caller's is by then."""
        grad = torch.is_grad_enabled()  # leaving inference mode would switch it on
        with (
            outside_inference(),
            torch.set_grad_enabled(grad),
            torch.autocast(**self._autocast),  # type: ignore[arg-type]
            SoundForward(session_of(self.network.module)),
        ):
            yield

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """Within the context targets read the output and backwards start: as in `forwards`, but without autocast.

        So a target chooses the same in single precision, whatever the caller's autocast is."""
        with self.forwards(), torch.enable_grad(), torch.autocast(str(self._autocast["device_type"]), enabled=False):
            yield

    def forward(self, images: Tensor) -> Tensor:
        """Runs the network on other images, in the state of this Pass -> its output."""
        with self.forwards():
            return at_least_float32(self.network(images.to(self.images.dtype)))

    def note_ties(self) -> None:
        """Tells the session where the output for an image depends on the others of its batch; once per network.

        It costs a forward of a pair, and one comparison on the device. Detectors' rows, whose order is theirs alone,
        are not compared.
        """
        module = self.network.module
        session, first = session_of(module), self.images[:1]
        if session is None or session.alone or module in _INDEPENDENT or self.output.ndim == 3:
            return
        with torch.no_grad():
            try:
                other = self.forward(torch.cat([first, 3 - 3 * first.flip(-1)]))[:1]  # other company than here
            except NetworkError:  # that takes one image only
                session.tied = True
                return
            here = self.output[:1].detach()
            tolerance = (3e-2 if self.half else 1e-3) * here.abs().amax()
            session.tied |= other.shape != here.shape or bool(((other - here).abs() > tolerance).any())
        if not session.alone:
            _INDEPENDENT.add(module)

    @property
    def black(self) -> Tensor:
        """These are black images (N, C, *size); see `Network.black`."""
        return self._uniform(self.network.black)

    @property
    def white(self) -> Tensor:
        """These are white images (N, C, *size); see `Network.white`."""
        return self._uniform(self.network.white)

    def _uniform(self, pixel: Sequence[float]) -> Tensor:
        """Returns images (N, C, *size) of one colour."""
        return self.images.new_tensor(pixel).view(1, -1, *[1] * (self.images.ndim - 2)).expand_as(self.images)

    def segments(self, kind: Segmentation, count: Count) -> Tensor:
        """Returns the images' segments (N, *size); those that a segmenter found are kept for who asks again."""
        key = f"{kind} {count}" if isinstance(kind, str) else None
        segments = None if key is None else self._segments.get(key)
        if segments is None:
            segments = segments_of(self.images, kind, count, black=self.black, white=self.white)
        if key is not None:
            self._segments[key] = segments
        return segments

    def other(
        self,
        key: object,
        layers: Sequence[Layer],
        within: Callable[[nn.Module], AbstractContextManager[object]],
        images: Tensor | None = None,
    ) -> Pass:
        """Returns a Pass on the same images (or others) run another way, `layers` its leaves; one per `key` is stored.

        No layers: `within` makes the leaf.
        """
        at = (key, tuple(layers))
        other = self._others.get(at)
        if other is None or (images is not None and not torch.equal(images, other.images)):
            with self.forwards():
                other = Pass(
                    self.network,
                    self.images if images is None else images,
                    layers,
                    differentiable=layers,
                    within=(within,),
                )
            self._others[at] = other
        return other

    def levels(self, layer: Layer) -> tuple[Layer, ...]:
        """Returns the layer itself, or the levels of a pyramid, which are layers of one map."""
        return self._levels[layer]

    def activations(self, layer: Layer) -> Tensor:
        """Returns what the layer put out (N, C, *grid), detached."""
        return at_least_float32(layer.fold(self._raw[layer].detach()))

    def gradients(self, rows: Rows, targets: Sequence[Target], layer: Layer) -> Tensor:
        """Returns d score / d activations (R, C, *grid); one backward serves all differentiable layers of this Pass."""
        key = tuple(targets)
        gradients = next((g for of, known, g in self._gradients if of == rows and known == key), None)
        if gradients is None:
            raws = [self._raw[item] for item in self._differentiable]
            slopes = self._slopes_of(rows, key, raws)
            gradients = [
                of_rows(rows, [item.fold(slope[i]) for slope in slopes]) for i, item in enumerate(self._differentiable)
            ]
            self._gradients.append((rows, key, gradients))
        return at_least_float32(gradients[self._differentiable.index(layer)])

    def _slopes_of(self, rows: Rows, targets: Sequence[Target], tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Computes `slopes` of the targets' scores, with a graph per score, so that a backward walks that one only."""
        if all(target == targets[0] for target in targets):
            return self.slopes(rows, lambda output: scores(output, targets), tensors)
        with self._scoring():
            values = [scores(self.output[i : i + 1], [t])[0] for i, t in zip(rows, targets, strict=True)]
            sums = [torch.stack([values[row] for row in part]).sum() for part in rounds(rows)]
            return self._backwards(sums, tensors)

    def gradients_of(self, rows: Rows, score: Callable[[Tensor], Tensor], layer: Layer) -> Tensor:
        """Returns d score(output of every row) / d activations (R, C, *grid) of any function of the output (R,)."""
        slopes = self.slopes(rows, score, [self._raw[layer]])
        return at_least_float32(of_rows(rows, [layer.fold(slope[0]) for slope in slopes]))

    def slopes(
        self, rows: Rows, score: Callable[[Tensor], Tensor], tensors: Sequence[Tensor], *, create_graph: bool = False
    ) -> list[list[Tensor]]:
        """Returns d score / d tensors of the graph, where `score` of the rows' outputs (R, ...) gives (R,).

        A list of gradients for every round of `rounds(rows)`, as `of_rows` takes them apart.
        0 where a score depends on none of the tensors.
        """
        with self._scoring():
            values = score(pick(self.output, rows))
            return self._backwards([values[part].sum() for part in rounds(rows)], tensors, create_graph)

    def gradients_of_each(
        self, targets: Sequence[Target], images: Sequence[Sequence[int]], layers: Sequence[Layer]
    ) -> list[tuple[Tensor, list[list[Tensor]]]]:
        """Returns (score (n,), d score / d activations (C, *grid) of every layer, for every image) of every target.

        `images` are those that a target has, in rising order. A walk through the graph goes through all images: it
        costs least where all have the same number of targets.
        """
        every = list(range(len(self.images)))
        columns: list[list[Tensor]] = [[] for _ in range(max(Counter(i for of in images for i in of).values()))]
        turns, where, values = Counter[int](), list[list[tuple[int, int]]](), list[Tensor]()
        with self._scoring():
            for target, of in zip(targets, images, strict=True):
                values.append(target(self.output if list(of) == every else self.output[list(of)]))
                where.append([(turns[i], i) for i in of])
                turns.update(of)
                for (turn, _), value in zip(where[-1], values[-1], strict=True):
                    columns[turn].append(value)
            sums = [torch.stack(column).sum() for column in columns]
            slopes = self._backwards(sums, [self._raw[layer] for layer in layers])
        grids = [[at_least_float32(layer.fold(g)) for layer, g in zip(layers, slope, strict=True)] for slope in slopes]
        return [
            (value.detach(), [[grid[i] for grid in grids[turn]] for turn, i in pairs])
            for value, pairs in zip(values, where, strict=True)
        ]

    def _backwards(
        self, sums: Sequence[Tensor], tensors: Sequence[Tensor], create_graph: bool = False
    ) -> list[list[Tensor]]:
        """Returns d sum / d tensors of every sum, 0 where it depends on none."""
        slopes: Sequence[Sequence[Tensor | None]] = [[None] * len(tensors)] * len(sums)
        if any(total.requires_grad for total in sums):
            # Down to the image a batch of gradients would hold every module's at once.
            together = not create_graph and all(layer.module is not None for layer in self._differentiable)
            slopes = _backwards(self.network, sums, tensors, together=together, create_graph=create_graph)
        return [
            [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, slope, strict=True)] for slope in slopes
        ]

    def curvature(self, rows: Rows, targets: Sequence[Target], layer: Layer, vectors: Tensor) -> Tensor:
        """Multiplies the Hessian of the score with respect to the activations by `vectors` -> (R, C, *grid)."""
        raw, products = self._raw[layer], []
        with torch.enable_grad():
            first = self.slopes(rows, lambda output: scores(output, targets), [raw], create_graph=True)
            for part, (gradient,) in zip(rounds(rows), first, strict=True):
                images = torch.tensor([rows[r] for r in part], device=raw.device)
                slope = (layer.fold(gradient)[images] * vectors[part]).sum()
                ((product,),) = self._backwards([slope], [raw])
                products.append(layer.fold(product))
        return at_least_float32(of_rows(rows, products))


Rows: TypeAlias = tuple[int, ...]
"""The image of every row."""


def pick(values: Tensor, rows: Rows) -> Tensor:
    """Returns values per image (N, ...) as values per row (R, ...); of a single image without a copy."""
    if rows == tuple(range(len(values))):
        return values
    if len(values) == 1:
        return values.expand(len(rows), *values.shape[1:])
    return values[torch.tensor(rows, device=values.device, dtype=torch.int64)]


def of_rows(rows: Rows, values: Sequence[Tensor]) -> Tensor:
    """Returns values per image of every round [(N, ...), ...] as values per row (R, ...)."""
    if len(values) == 1 and rows == tuple(range(len(values[0]))):
        return values[0]
    turns: Counter[int] = Counter()
    picked = []
    for image in rows:
        picked.append(values[turns[image]][image])
        turns[image] += 1
    return torch.stack(picked)


def rounds(rows: Rows) -> list[list[int]]:
    """Deals the rows' indices into rounds, no image twice in one: the first row of every image, the second, ..."""
    turns: Counter[int] = Counter()
    parts: list[list[int]] = []
    for row, image in enumerate(rows):
        if turns[image] == len(parts):
            parts.append([])
        parts[turns[image]].append(row)
        turns[image] += 1
    return parts


def rows_by_image(rows: Rows) -> list[list[int]]:
    """Groups the rows' indices by image, in the order in which the images come."""
    groups: dict[int, list[int]] = {}
    for row, image in enumerate(rows):
        groups.setdefault(image, []).append(row)
    return list(groups.values())


def distinct_views(rows: Rows, images: Tensor) -> tuple[Tensor, Rows]:
    """Takes out of images (M, ...), view after view of all R rows, the repeats of rows of one image.

    -> (the images that differ, the image of each of the M rows). Where rows of one image see other views of it, nothing
    is left out. KonkyoError: M is no multiple of R.
    """
    views, rest = divmod(len(images), len(rows))
    if rest or not views:
        raise KonkyoError(f"a multiple of {len(rows)} images was expected; got {len(images)}")
    firsts = [group[0] for group in rows_by_image(rows)]
    if len(firsts) < len(rows):
        places = [list(dict.fromkeys(rows)).index(image) for image in rows]
        once = torch.cat([view[firsts] for view in torch.split(images, len(rows))])
        shared = tuple(v * len(firsts) + at for v in range(views) for at in places)
        if torch.equal(once[list(shared)], images):
            return once, shared
    return images, tuple(range(len(images)))


_TOGETHER = 16  # gradients in one walk through the graph


def differentiated(
    network: Network, outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor], *start: Tensor, **how: Any
) -> tuple[Tensor | None, ...]:
    """Returns what `torch.autograd.grad` does. KonkyoError: what the network's backward raises, its cause kept."""
    with backward_errors(network.name):
        slopes: tuple[Tensor | None, ...] = torch.autograd.grad(outputs, inputs, *start, **how)  # type: ignore[call-overload]
    return slopes


def _backwards(
    network: Network, sums: Sequence[Tensor], tensors: Sequence[Tensor], *, together: bool, create_graph: bool
) -> Sequence[Sequence[Tensor | None]]:
    """Returns the gradients of every sum; `together` tries to walk the graph once with a batch of gradients.

    In the channels_last format no such walk comes to its end: convolutions ask there what a batch does not tell.
    """
    if together and len(sums) > 1 and all(tensor.is_contiguous() for tensor in tensors):
        rows: list[list[Tensor | None]] = []
        _ignore_fallback_warnings()
        with suppress(NetworkError):
            for part in (sums[i : i + _TOGETHER] for i in range(0, len(sums), _TOGETHER)):
                stack = torch.stack(list(part))
                one_hot = torch.eye(len(part), device=stack.device, dtype=stack.dtype)
                slopes = differentiated(
                    network, stack, tensors, one_hot, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
                rows += [[None if g is None else g[i] for g in slopes] for i in range(len(part))]
            return rows
    return [
        differentiated(network, total, tensors, retain_graph=True, allow_unused=True, create_graph=create_graph)
        if total.requires_grad
        else [None] * len(tensors)
        for total in sums
    ]


def _ignore_fallback_warnings() -> None:
    """Ignores what torch says of operators without a rule for batches of gradients, which run one by one.

    Within `warnings.catch_warnings` threads would put back each other's filters.
    """
    warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented", UserWarning)


def scores(output: Tensor, targets: Sequence[Target]) -> Tensor:
    """Scores every row of the output by its own target -> (N,)."""
    if len(set(map(id, targets))) == 1 or all(target == targets[0] for target in targets):
        return score_of(output, targets[0])
    return torch.cat([score_of(output[i : i + 1], target) for i, target in enumerate(targets)])


def slopes_at_output(output: Tensor, targets: Sequence[Target]) -> Tensor:
    """Returns d score / d output of every row, 0 where its score does not depend on the output."""
    with torch.enable_grad(), torch.autocast(output.device.type, enabled=False):
        leaf = output.clone().requires_grad_()
        total = scores(leaf, targets).sum()
        (slope,) = torch.autograd.grad(total, leaf) if total.requires_grad else (torch.zeros_like(leaf),)
    return slope


def score_of(output: Tensor, target: Target) -> Tensor:
    """Returns the score of every image (N,) by one target.

    KonkyoError: what a target of the user's raises, its cause kept; or something else than a floating tensor (N,).
    """
    try:
        values: object = target(output)
    except KonkyoError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        name = getattr(target, "__name__", repr(target))
        raise KonkyoError(
            f"the target {name} failed on an output of shape {tuple(output.shape)}: {in_short(error)}"
        ) from error
    if not isinstance(values, Tensor):
        raise KonkyoError(f"a target is a callable output -> (N,) scores; it gave {type(values).__name__}")
    if values.shape != (len(output),):
        raise KonkyoError(f"a target gives one score per image, shape ({len(output)},); got {tuple(values.shape)}")
    if not values.is_floating_point():
        raise KonkyoError(f"a target gives floating scores; got {values.dtype}")
    if output.requires_grad and not values.requires_grad and not isinstance(target, BaseTarget):
        raise KonkyoError(
            f"the target {getattr(target, '__name__', repr(target))} gives scores that are cut off from the output "
            "(detached, or made of numbers), so that nothing can be differentiated"
        )
    return values


def _autocast_arguments(device: str, precision: Precision | None) -> dict[str, object]:
    """Returns the arguments of `torch.autocast` for a precision. KonkyoError: an unknown one."""
    if precision not in (None, "fp32", "bf16", "fp16"):
        raise KonkyoError(f"precision is 'fp32', 'bf16', 'fp16' or None (as the caller's autocast); got {precision!r}")
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision is None:
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    else:
        enabled, dtype = precision in kinds, kinds.get(precision, torch.get_autocast_dtype(device))
    return {"device_type": device, "dtype": dtype, "enabled": enabled}
