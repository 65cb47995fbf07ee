"""Trace: it tells which modules of a network put out grids of the image, and which of them everything passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge, saved_tensors_hooks

from konkyo.engine.cuts import Graph
from konkyo.engine.grids import (
    FAINT_PLACE,
    FEW,
    OWN_CELLS,
    OWN_TOKENS,
    TOKEN_PLACE,
    Change,
    Projection,
    Readings,
    at_own_places,
    is_place,
    owned,
    spread_cells,
)
from konkyo.engine.layer import Layer, exchanged, main_tensor, maps_in, tensors_of
from konkyo.engine.session import backward_errors, hook_after, open_modules, session_of
from konkyo.engine.sound import SoundForward

Forward: TypeAlias = Callable[[Tensor], Tensor]
Call: TypeAlias = tuple[str, int]
"""A module's name, and which of its calls in a forward."""

_GRAPH_BYTES = 32 * 2**20
"""The end of the graph that is stored in a trace of large images."""


@dataclass(frozen=True)
class Site:
    """A site is one call of a module in a traced forward: what it put out, and what that is of the image."""

    name: str
    kind: str
    """The module's class name."""
    shape: tuple[int, ...]
    """What the module puts out, without the batch."""
    layer: Layer | None
    """How to read it as a grid (its `module` left out, so that a stored trace keeps no model alive); None: no grid."""
    grid: tuple[int, ...]
    place: float
    """How well the cells follow a change of the image at their own place: a correlation, at most 1."""
    used: bool
    """Whether the output depends on it."""
    placed: bool
    """Whether its cells are at their own places of the image, as far as that was looked at."""
    call: int = 0
    calls: int = 1
    """Which of the module's calls it is, and how many there are."""


@dataclass(frozen=True)
class Trace:
    """A trace holds the sites of a forward in the order in which they finished, and the automatic layer."""

    sites: tuple[Site, ...]
    cut: tuple[Layer, ...]
    """The layers that are explained by default, which together make one layer; none where there is no grid."""
    whole: bool
    """Whether everything passes the cut on its way from the image to the output."""
    feature: bool = True
    """Whether operators with weights follow the cut; else it is the prediction itself."""


_PASS_THROUGH = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Flatten),
    nn.Softmax,  # of attention: (N, heads, L, L) is no grid of the picture, though L x L may look like one
)
_SPATIAL = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
_TIE = 0.05
"""Readings whose likeness differs by less are alike, and the first is taken."""
_TOGETHER = 8
"""At most so many branches make one layer together."""


def trace(forward: Forward, root: nn.Module, image: Tensor, *, instances: bool = False, small: bool = False) -> Trace:
    """Runs the network on an image (1, ...), and where its operators tell too little on the same with other pixels.

    `instances`: the output holds many decisions, each made from one of several levels. `small`: the image is small, so
    that the whole graph may be stored, and pixels are changed in two places, one after the other.
    """
    run = _Run(forward, root, image)
    with SoundForward(session_of(root)):
        run.first(None if small else _GRAPH_BYTES)
        choice = _Choice(run, instances)
        if not choice.certain():
            for corner in range(2 if small else 1):
                run.again(Change(image, corner))
            choice = _Choice(run, instances)
    return choice.trace()


@dataclass
class _Output:
    """This is what one call of a module put out in the first run."""

    kind: str
    shape: tuple[int, ...]
    edges: list[GradientEdge]
    """Where the gradients of its grids arrive."""
    readings: list[tuple[Layer, tuple[int, ...]]]
    sums: dict[int, Tensor]
    """Random sums over the channels, by the axis of the channels."""
    levels: list[tuple[int, ...]] = field(default_factory=list)
    """The sizes of its levels, where it puts out a pyramid."""
    changes: list[dict[int, Tensor]] = field(default_factory=list)
    """What every change of the image does to those sums."""


class _Run:
    """This runs a network and notes what its modules put out."""

    def __init__(self, forward: Forward, root: nn.Module, image: Tensor) -> None:
        self.forward, self.root, self.image = forward, root, image
        reached = set(open_modules(root))
        self.names = {module: name for name, module in root.named_modules() if name and module in reached}
        self.outputs: dict[Call, _Output] = {}
        self.order: list[Call] = []
        self.output = torch.zeros(())
        self.image_node: Node | None = None
        self.leaf, self.whole_graph = image, False
        self.head_input: Tensor | None = None
        self.head = 0
        """How many outputs were noted before the last module with weights ran."""
        self.readings, self.projection = Readings(image.shape[2:]), Projection()
        self.changes: list[Change] = []

    def first(self, most: int | None) -> None:
        """Runs the network on the image, and stores the graph: its end of `most` bytes, or all of it."""
        calls: dict[str, int] = {}

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            """Notes what a module puts out, and hands on copies that have a place in the graph of their own."""
            name = self.names[module]
            call = name, calls.get(name, 0)
            calls[name] = call[1] + 1
            if not any(module.children()) and any(True for _ in module.parameters(recurse=False)):
                self.head_input, self.head = main_tensor(args), len(self.order)
            tensors = _grids(output, self.image.ndim)
            if not tensors or isinstance(module, _PASS_THROUGH):
                return output
            if isinstance(module, _SPATIAL) and tensors[0].ndim == self.image.ndim and len(tensors[0]) == 1:
                kernel: Any = module.kernel_size
                if max((kernel,) if isinstance(kernel, int) else kernel) > 1:
                    self.readings.learn(tuple(tensors[0].shape[2:]))
            handed = [tensor.clone() for tensor in tensors]
            self._note(call, type(module).__name__, tensors, handed)
            return exchanged(output, tensors, handed)

        with torch.enable_grad(), _stored(self.root, most), self._hooked(hook):
            self.leaf = self.image.detach().clone().requires_grad_()
            start = self.leaf.clone()
            self.image_node, self.whole_graph = start.grad_fn, most is None
            self.output = self.forward(start)

    def _note(self, call: Call, kind: str, tensors: Sequence[Tensor], handed: Sequence[Tensor]) -> None:
        shape = tuple(tensors[0].shape)
        readings = list(self.readings.of(call[0], shape))
        axes = {layer.channel_axis % len(shape) for layer, _ in readings}
        edges = [get_gradient_edge(t) for t in handed if t.requires_grad]
        sums = {axis: self.projection(tensors[0], axis) for axis in axes}
        levels = [tuple(t.shape[2:]) for t in tensors] if len(tensors) > 1 else []
        self.outputs[call] = _Output(kind, shape, edges, readings, sums, levels)
        self.order.append(call)

    def again(self, change: Change) -> None:
        """Runs the network on the changed image, and notes how well the cells follow the change."""
        calls: dict[str, int] = {}

        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            name = self.names[module]
            call = name, calls.get(name, 0)
            calls[name] = call[1] + 1
            noted = self.outputs.get(call)
            if noted is None or not noted.sums:
                return
            tensors = _grids(output, self.image.ndim)
            if tensors and tuple(tensors[0].shape) == noted.shape:
                changed = {axis: self.projection(tensors[0], axis) - sums for axis, sums in noted.sums.items()}
                noted.changes.append(changed)

        self.changes.append(change)
        with torch.no_grad(), self._hooked(hook):
            self.forward(change.image)

    @contextmanager
    def _hooked(self, hook: Callable[..., Any]) -> Iterator[None]:
        with ExitStack() as undo:
            for module in self.names:
                undo.callback(hook_after(module, hook).remove)
            yield


def _grids(output: Any, axes: int) -> list[Tensor]:
    """Returns the levels of a pyramid, which are all that a module puts out; else its first tensor, if it is one."""
    if not isinstance(output, Tensor):
        levels = list({id(t): t for t in maps_in(output)}.values())
        sizes = {tuple(t.shape[2:]) for t in levels}
        if len(levels) > 1 and len(sizes) == len(levels) and all(_is_level(t, axes) for t in levels):
            return levels
    tensor = main_tensor(output)
    return [] if tensor is None or not tensor.is_floating_point() else [tensor]


def _is_level(tensor: Tensor, axes: int) -> bool:
    """Tells whether a tensor is of one image with more than one cell."""
    return tensor.ndim == axes and len(tensor) == 1 and math.prod(tensor.shape[2:]) > 1


@contextmanager
def _stored(root: nn.Module, most: int | None) -> Iterator[None]:
    """Within the context a forward stores the end of its graph only, `most` bytes of activations; None: all of it."""
    if most is None:
        yield
        return
    weights = {t.untyped_storage().data_ptr() for t in root.parameters()}
    stored: list[list[Tensor]] = []
    total = 0

    def pack(tensor: Tensor) -> Any:
        nonlocal total
        if tensor.untyped_storage().data_ptr() in weights:
            return [tensor]
        holder = [tensor]
        stored.append(holder)
        total += tensor.numel() * tensor.element_size()
        while total > most and stored:
            oldest = stored.pop(0)
            total -= oldest[0].numel() * oldest[0].element_size()
            oldest.clear()
        return holder

    def unpack(holder: Any) -> Tensor:
        if not holder:
            raise RuntimeError("this part of the graph was not stored")
        tensor: Tensor = holder[0]
        return tensor

    with saved_tensors_hooks(pack, unpack):
        yield


@dataclass(frozen=True)
class Place:
    """It says how an output is read as a grid, and whether its cells are places of the image."""

    layer: Layer
    grid: tuple[int, ...]
    likeness: float
    """How well the cells follow a change of the image; of tokens the share with their gradient at their place."""
    sure: bool


_TOKENS = 12
"""So many tokens are looked at."""


class _Choice:
    """This chooses the automatic layer from what a run noted."""

    def __init__(self, run: _Run, instances: bool) -> None:
        self.run, self.instances = run, instances
        nodes = {edge.node: call for call, noted in run.outputs.items() for edge in noted.edges}
        assert run.image_node is not None
        self.graph = Graph(run.output, run.image_node, nodes)
        self.used, self.weighted = self.graph.used, self.graph.weighted()
        self.ends = self.graph.ends()
        self._places: dict[Call, Place | None] = {}
        self.moved = False
        """Whether a grid was met whose cells are at other places than their own."""

    def certain(self) -> bool:
        """Tells whether operators prove of all grids that their cells are places of the image."""
        grids = [call for call in self.used if self.run.outputs[call].readings]
        return bool(grids) and all(map(self._proven, grids))

    def _proven(self, call: Call) -> bool:
        """Tells whether operators that leave every place where it is make this output (N, C, *grid) of the image."""
        layer, _ = self.run.outputs[call].readings[0]
        return call in self.graph.kept and layer.tokens is None and layer.channel_axis == 1

    def place(self, call: Call) -> Place | None:
        """Returns how an output is read best as a grid; None: not at all."""
        if call not in self._places:
            self._places[call] = self._place(call, self.run.outputs[call], call in self.used)
        return self._places[call]

    def _place(self, call: Call, noted: _Output, used: bool) -> Place | None:
        if noted.readings and self._proven(call):
            return Place(*noted.readings[0], 1.0, sure=True)
        if noted.readings and not self.run.changes:  # and nothing depends on it
            return Place(*noted.readings[0], 0.0, sure=False)
        if not noted.readings or len(noted.changes) < len(self.run.changes):
            return None
        values = []
        for layer, _ in noted.readings:
            axis = layer.channel_axis % len(noted.shape)
            parts = []
            for change, sums in zip(self.run.changes, noted.changes, strict=True):
                cells = layer.fold(sums[axis].movedim(0, axis))[0].square().sum(0).sqrt()
                parts.append(change.likeness(cells))
            mean = torch.stack(parts).mean(0)
            values.append(torch.stack([mean[0], mean[1:].amax()]))
        likeness = torch.stack(values).tolist()
        # Of tokens those on a grid of the network's own, the fewest before it; else what follows the change best.
        known = [i for i, (layer, grid) in enumerate(noted.readings) if layer.tokens and self.run.readings.fit(grid)]
        best = next((i for i in known if likeness[i][0] >= TOKEN_PLACE), known[0] if known else None)
        if best is None:
            highest = max(own for own, _ in likeness)
            best = next(i for i, (own, _) in enumerate(likeness) if own > highest - _TIE or own != own)
        (layer, grid), (own, mirrored) = noted.readings[best], likeness[best]
        if own == mirrored == 0 and (not used or layer.tokens is not None):  # no cell has changed
            return None
        # The gradient tells more, of those that are asked.
        least = FAINT_PLACE if self.run.whole_graph and self.run.readings.fit(grid) else TOKEN_PLACE
        return Place(layer, grid, own, is_place(own, mirrored, layer, grid, least))

    def _place_of_tokens(self, noted: _Output) -> Place | None:
        """Returns how tokens are read as a grid: so that the gradient of each at the image is largest at its place."""
        length = noted.shape[1 - noted.readings[0][0].batch_axis]
        energies = {}
        for index in sorted({round(i * (length - 1) / (_TOKENS - 1)) for i in range(_TOKENS)}):
            seed = torch.randn(noted.shape[-1], generator=torch.Generator().manual_seed(index), device="cpu")
            weights = torch.zeros(noted.shape)
            weights.movedim(noted.readings[0][0].batch_axis, 0)[0, index] = seed
            try:
                energy = self._energy(noted, weights)
            except Exception:  # an operator without a derivative
                return None
            if energy is not None:
                energies[index] = energy
        best: Place | None = None
        known = [(layer, grid) for layer, grid in noted.readings if self.run.readings.fit(grid)]
        for layer, grid in known or noted.readings:
            own = owned(energies, layer.prefix, grid)
            if best is None or own > best.likeness:
                best = Place(layer, grid, own, own >= OWN_TOKENS)
        return best

    def _energy(self, noted: _Output, weights: Tensor) -> Tensor | None:
        """Returns the energy (*size) of the gradient at the image of a weighted sum of an output."""
        like = self.run.output
        (slope,) = torch.autograd.grad(
            [noted.edges[0]],
            [self.run.leaf],
            [weights.to(like.device, like.dtype)],
            retain_graph=True,
            allow_unused=True,
        )
        return None if slope is None else slope[0].float().square().sum(0)

    def _keeps_places(self, call: Call) -> bool:
        """Tells whether the cells of a grid are at their own places: by its operators, else by some cells' gradients.

        Crops, shifts and shuffles within a network move them; so does what mixes all places. Of few cells, and of a
        graph that is not stored, no gradient tells, so what follows the changes is believed.
        """
        place, noted = self.place(call), self.run.outputs[call]
        if place is None or call in self.graph.kept or not self.run.whole_graph:
            return True
        if place.layer.tokens is not None:
            better = self._place_of_tokens(noted) or replace(place, sure=False)
            self._places[call] = better
            return better.sure
        if math.prod(place.grid) < FEW:
            return True
        for mirrored in (False, True):
            weights, cells = torch.zeros(noted.shape), spread_cells(place.grid, mirrored)
            grid = place.layer.fold(weights)[0].movedim(0, -1)
            for cell in cells:
                grid[cell] = torch.randn(grid.shape[-1], generator=torch.Generator().manual_seed(0), device="cpu")
            try:
                energy = self._energy(noted, weights)
            except Exception:  # an operator without a derivative
                return True
            ratio = 0.0 if energy is None else at_own_places(energy, cells, place.grid)
            if ratio > 0:  # else a cell may be dead after a ReLU
                return ratio >= OWN_CELLS
        return place.likeness == 0  # nothing of the image arrives

    def trace(self) -> Trace:
        """Returns the sites and the automatic layer."""
        calls, whole, feature = self._cut()
        counts = {name: sum(other == name for other, _ in self.run.order) for name, _ in self.run.order}
        sites = tuple(self._site(call, counts[call[0]]) for call in self.run.order)
        layers = [site.layer for site in sites if (site.name, site.call) in calls and site.layer is not None]
        return Trace(sites, tuple(replace(layer, part=len(layers) > 1) for layer in layers), whole, feature)

    def _site(self, call: Call, count: int) -> Site:
        noted = self.run.outputs[call]
        place = self.place(call)
        tokens = place is not None and place.layer.tokens is not None
        if place is None or (tokens and not place.sure):
            place = None
        layer = None if place is None else self._bound(place.layer, call, count)
        shape = noted.shape[1:] if layer is None or layer.batch_axis == 0 else (noted.shape[0], *noted.shape[2:])
        grid, likeness = ((), 0.0) if place is None else (place.grid, place.likeness)
        used, sure = call in self.used, place is not None and place.sure
        return Site(call[0], noted.kind, shape, layer, grid, likeness, used, sure, call[1], count)

    def _bound(self, layer: Layer, call: Call, count: int) -> Layer:
        """Returns the layer of one of so many calls, with all levels of a pyramid."""
        levels = None if self.run.outputs[call].levels else layer.level
        return replace(layer, call=-1 if call[1] == count - 1 else call[1], level=levels)

    def _cut(self) -> tuple[list[Call], bool, bool]:
        """Returns the calls that make the automatic layer, whether everything passes them, and weights follow them."""
        usable = [call for call in self.run.order if (place := self.place(call)) is not None and place.sure]
        if not any(
            call in self.used for call in usable
        ):  # nothing flows back to the image: what is known is only which module runs when
            before = [call for call in usable if self.run.order.index(call) < self.run.head]
            return (before or usable)[-1:], True, bool(before)
        features = [call for call in usable if call in self.used and (call in self.weighted or call in self.ends)]
        # A Linear on a grid (query, key, value) only projects what another module put out.
        for some in ([call for call in features if self.run.outputs[call].kind != "Linear"], features):
            calls, whole = self._of_features(some) if some else ([], False)
            if calls:
                return calls, whole, True
        last = [] if features else [call for call in usable if call in self.used][-1:]
        last = list(self._unmoved(last, last))
        return last, last == self.graph.singles()[:1], False

    def _of_features(self, features: list[Call]) -> tuple[list[Call], bool]:
        """Returns the calls among these features that make the automatic layer, and whether everything passes them."""
        if not self._dense(features):
            return self._last_features(features)
        features = list(self._unmoved(features, [self._backbone_end(features)]))
        ends = [self._backbone_end(features)] if features else []
        return ends, ends[:1] == [call for call in self.graph.singles() if call in ends]

    def _last_features(self, features: list[Call]) -> tuple[list[Call], bool]:
        """Returns the last features of which more than one cell counts, and whether everything passes them.

        They are the first on all ways back from the score, where none of them is computed from another. Otherwise it
        is the last that everything passes by itself.
        """
        reached = self._reached(features)
        calls, avoided = self.graph.frontier(reached.__contains__)
        together = not avoided and 0 < len(calls) <= _TOGETHER
        if together and (len(calls) == 1 or self.instances or not self.graph.precedes(calls)):
            return calls, True
        singles = [call for call in self.graph.singles() if call in reached]
        if singles or together:
            return singles[:1] or calls, True
        left = [call for call in features[::-1] if call in reached and (not self.moved or call in self.graph.kept)]
        return (calls or left)[:1], False

    def _unmoved(self, features: Sequence[Call], looked_at: Sequence[Call]) -> Sequence[Call]:
        """Returns the features, without those that may have been moved if one was of those that are looked at."""
        moved = [call for call in looked_at if not self._keeps_places(call)]
        if all(self._tokens(call) for call in moved):
            return [call for call in features if call not in moved]
        self.moved = True
        return [call for call in features if call in self.graph.kept]

    def _tokens(self, call: Call) -> bool:
        return all(layer.tokens is not None for layer, _ in self.run.outputs[call].readings)

    def _dense(self, features: Sequence[Call]) -> bool:
        """Tells whether the output is a picture itself, of more cells than the coarsest features have."""
        output = self.run.output
        if self.instances or output.ndim != self.run.image.ndim:
            return False
        return math.prod(output.shape[2:]) > min(math.prod(self._grid(call)) for call in features)

    def _grid(self, call: Call) -> tuple[int, ...]:
        found = self.place(call)
        assert found is not None
        return found.grid

    def _backbone_end(self, features: list[Call]) -> Call:
        """Returns the last of the smallest grids in the part of the network that makes them first."""
        cells = {call: math.prod(self._grid(call)) for call in features}
        ends = [call for call in features if cells[call] == min(cells.values())]
        prefix = ""
        while True:
            parts = list(dict.fromkeys(_below(call[0], prefix) for call in ends))
            children = {_below(call[0], prefix) for call in self.run.order if call[0].startswith(prefix)} - {""}
            if len(children) > 1 or not parts[0]:
                break
            prefix = f"{prefix}{parts[0]}."
        inside = [call for call in ends if _below(call[0], prefix) == parts[0]]
        return next((call for call in self.graph.singles() if call in inside), inside[-1])

    def _reached(self, features: Sequence[Call]) -> set[Call]:
        """Returns the features without those of which at most one cell has a gradient, or whose cells were moved.

        Only those are asked that may be the automatic layer.
        """
        reached, told = set(features), set[Call]()
        while True:
            calls, _ = self.graph.frontier(reached.__contains__)
            single = next((call for call in self.graph.singles() if call in reached), None)
            unknown = [call for call in dict.fromkeys([*calls, single]) if call is not None and call not in told]
            if not unknown:
                return reached
            cells = self._cells(self._decisions(), unknown[:_TOGETHER])
            head = self.run.head_input
            if cells is not None and max(cells.values()) < 0 and head is not None and head.requires_grad:
                # A head whose weights are all zero, as some libraries start them, lets no gradient through.
                cells = self._cells([head], unknown[:_TOGETHER])
            told |= set(unknown[:_TOGETHER])
            reached -= {call for call, count in (cells or {}).items() if 0 <= count < 2}
            reached &= set(self._unmoved(list(reached), [call for call in unknown[:_TOGETHER] if call in reached]))

    def _decisions(self) -> list[Tensor]:
        """Returns the output, or where it holds many decisions (1, Q, ...) some of them, the last ones more densely."""
        output = self.run.output
        if not self.instances or output.ndim < 3:
            return [output]
        last = output.shape[1] - 1
        return [output[:, index] for index in sorted({last - round(last * share) for share in _SHARES})]

    def _cells(self, parts: Sequence[Tensor], calls: Sequence[Call]) -> dict[Call, int] | None:
        """Returns of how many cells of every output a part has a gradient, of the part with most; None: not known.

        -1 where nothing of the output has one.
        """
        edges = [self.run.outputs[call].edges[0] for call in calls]
        layers = [found.layer for call in calls if (found := self.place(call)) is not None]
        counts = []
        try:
            for part in parts:
                noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(part)
                with torch.enable_grad():
                    slopes = torch.autograd.grad((part * noise).sum(), edges, allow_unused=True, retain_graph=True)
                counts.append(torch.stack([_cells_of(a, g, part) for a, g in zip(layers, slopes, strict=True)]))
        except Exception:  # of what was not stored, of operators without a derivative, of checkpoints
            return None
        return dict(zip(calls, torch.stack(counts).amax(0).tolist(), strict=True))


_SHARES = (0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
"""Which decisions are looked at, from the last: coarse levels of a detector are last and have few."""


def _cells_of(layer: Layer, slope: Tensor | None, like: Tensor) -> Tensor:
    """Returns how many cells of a layer have a gradient -> (); -1 where nothing of its output has one."""
    if slope is None:
        return torch.tensor(-1, device=like.device)
    count = (layer.fold(slope)[0] != 0).any(0).sum()
    return torch.where((slope != 0).any(), count, -1)


def _below(name: str, prefix: str) -> str:
    """Returns the first part of a dotted name below a prefix."""
    return name[len(prefix) :].partition(".")[0] if name.startswith(prefix) else ""


def share_around(forward: Forward, score: Callable[[Tensor], Tensor], image: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Returns which share of the gradient of `score(output)` at the image does not pass the layers -> ().

    Of the absolute gradient's sum, what is left when their outputs are held constant. NaN where there is no gradient.
    """

    def slope(held: Sequence[Layer]) -> Tensor:
        with torch.enable_grad(), SoundForward(), ExitStack() as undo:
            for layer in held:
                if layer.module is not None:
                    undo.callback(hook_after(layer.module, _holding(layer)).remove)
            leaf = image.detach().clone().requires_grad_()
            value = score(forward(leaf.clone())).sum()
            if not value.requires_grad:
                return torch.zeros_like(image)
            with backward_errors("the network"):
                (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        return torch.zeros_like(image) if gradient is None else gradient

    return slope(layers).float().abs().sum() / slope(()).float().abs().sum()


def _holding(layer: Layer) -> Callable[..., Any]:
    """Makes a hook that holds constant what the layer's call puts out; of the last call, what all calls do."""
    calls = 0

    def hold(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if layer.call not in (-1, calls - 1):
            return output
        tensors = tensors_of(output, layer)
        return exchanged(output, tensors, [tensor.detach() for tensor in tensors])

    return hold
