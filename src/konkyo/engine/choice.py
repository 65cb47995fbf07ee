"""Choice: which of the outputs of a run is explained by default."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from konkyo.engine.cuts import Graph
from konkyo.engine.layer import Layer
from konkyo.engine.places import Places
from konkyo.engine.run import Call, Run

_LINEAR = ("Linear", "Conv1D")
"""The classes of linear layers; transformers calls that of GPT-2 "Conv1D"."""
_TOGETHER = 8
"""At most so many branches make one layer together."""


class Choice:
    """This chooses the automatic layer from what a run noted."""

    def __init__(self, run: Run, instances: bool, within: str = "") -> None:
        self.run, self.instances, self.within = run, instances, within
        nodes = {edge.node: call for call, noted in run.outputs.items() for edge in noted.edges}
        assert run.image_node is not None
        self.graph = Graph(run.output, run.image_node, nodes)
        self.used, self.weighted = self.graph.used, self.graph.weighted
        self.ends = self.graph.ends
        self.places = Places(run, self.graph)
        self.moved = False
        """Whether a grid was met whose cells are at other places than their own."""

    def cut(self) -> tuple[list[Call], bool]:
        """Returns the calls that make the automatic layer, and whether everything passes them."""
        usable = [call for call in self.run.order if (place := self.places.place(call)) is not None and place.sure]
        usable = [call for call in usable if f"{call[0]}.".startswith(f"{self.within}." if self.within else "")]
        if self.used.isdisjoint(usable):  # nothing flows back to the image: only the order of the modules is known
            before = [call for call in usable if self.run.order.index(call) < self.run.head]
            return (before or usable)[-1:], True
        features = [call for call in usable if call in self.used and (call in self.weighted or call in self.ends)]
        # A Linear on a grid (query, key, value) only projects what another module put out.
        for some in ([call for call in features if self.run.outputs[call].kind not in _LINEAR], features):
            calls, whole = self._of_features(some) if some else ([], False)
            if calls:
                return calls, whole
        last = [] if features else [call for call in usable if call in self.used][-1:]
        last = list(self._unmoved(last, last))
        return last, last == self.graph.singles[:1]

    def _of_features(self, features: list[Call]) -> tuple[list[Call], bool]:
        """Returns the calls among these features that make the automatic layer, and whether everything passes them."""
        if not self._dense(features):
            return self._last_features(features)
        features = list(self._unmoved(features, [self._backbone_end(features)]))
        ends = [self._backbone_end(features)] if features else []
        return ends, ends[:1] == [call for call in self.graph.singles if call in ends]

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
        singles = [call for call in self.graph.singles if call in reached]
        if singles or together:
            return singles[:1] or calls, True
        left = [
            call for call in features[::-1] if call in reached and (not self.moved or call in self.graph.in_position)
        ]
        return (calls or left)[:1], False

    def _unmoved(self, features: Sequence[Call], looked_at: Sequence[Call]) -> Sequence[Call]:
        """Returns the features, without those that may have been moved if one was of those that are looked at."""
        moved = [call for call in looked_at if not self.places.keeps_places(call)]
        if all(self.places.are_tokens(call) for call in moved):
            return [call for call in features if call not in moved]
        self.moved = True
        return [call for call in features if call in self.graph.in_position]

    def _dense(self, features: Sequence[Call]) -> bool:
        """Tells whether the output is a picture itself, of more cells than the coarsest features have."""
        output = self.run.output
        if self.instances or output.ndim != self.run.image.ndim:
            return False
        return math.prod(output.shape[2:]) > min(math.prod(self.places.grid(call)) for call in features)

    def _backbone_end(self, features: list[Call]) -> Call:
        """Returns the last of the smallest grids in the part of the network that makes them first."""
        cells = {call: math.prod(self.places.grid(call)) for call in features}
        ends = [call for call in features if cells[call] == min(cells.values())]
        prefix = ""
        while True:
            parts = list(dict.fromkeys(_below(call[0], prefix) for call in ends))
            children = {_below(call[0], prefix) for call in self.run.order if call[0].startswith(prefix)} - {""}
            if len(children) > 1 or not parts[0]:
                break
            prefix = f"{prefix}{parts[0]}."
        inside = [call for call in ends if _below(call[0], prefix) == parts[0]]
        return next((call for call in self.graph.singles if call in inside), inside[-1])

    def _reached(self, features: Sequence[Call]) -> set[Call]:
        """Returns the features without those of which at most one cell has a gradient, or whose cells were moved.

        Only those are asked that may be the automatic layer.
        """
        reached, examined = set(features), set[Call]()
        while True:
            calls, _ = self.graph.frontier(reached.__contains__)
            single = next((call for call in self.graph.singles if call in reached), None)
            unknown = [call for call in dict.fromkeys([*calls, single]) if call is not None and call not in examined]
            if not unknown:
                return reached
            cells = self._cells(self._decisions(), unknown[:_TOGETHER])
            head = self.run.head_input
            if cells is not None and max(cells.values()) < 0 and head is not None and head.requires_grad:
                # A head whose weights are all zero, as some libraries start them, lets no gradient through.
                cells = self._cells([head], unknown[:_TOGETHER])
            examined |= set(unknown[:_TOGETHER])
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
        layers = [place.layer for call in calls if (place := self.places.place(call)) is not None]
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
