"""Paths from a baseline to an image: where on them gradients are taken, and what adds up along them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from konkyo.errors import KonkyoError, unknown
from konkyo.utils.tensors import overlap

GradientScale: TypeAlias = Literal["max", "sum", "none"]


@dataclass(frozen=True)
class Sampling:
    """This says which nodes of [0, 1] are taken: `nodes` uniform ones (a single one is 1), or adaptive ones.

    `adaptive`: `initial` uniform nodes (no more than `nodes`), then the interval of the highest priority is halved,
    again and again (Adaptive IG-ODAM, Eq. 3-5). The priority of [a, b] is (balance g + (1 - balance) s) (b -
    a)^length_power. g is |G(b) - G(a)|_1, divided, by `gradient_scale`, by the largest or the sum of the present
    intervals', as it would drown s without a bound. s is 1 - IoU of the boxes at a and b: 1 where only one of them is
    there, 0 where none is. Intervals are not halved below 1 / (4 nodes): at a jump the priority stays, however short
    the interval. `split_per_round` intervals are halved before priorities are looked at again.
    """

    nodes: int = 32
    adaptive: bool = False
    initial: int = 9
    balance: float = 0.5
    length_power: float = 0.0
    split_per_round: int = 1
    gradient_scale: GradientScale = "max"

    def __post_init__(self) -> None:
        """Checks the values. KonkyoError: one that is out of range."""
        if self.nodes < 1:
            raise KonkyoError(f"a path needs at least one node; got nodes={self.nodes}")
        if self.adaptive and not (self.initial >= 2 and self.nodes >= 2):
            raise KonkyoError(
                f"halving intervals needs two nodes to begin with; got initial={self.initial}, nodes={self.nodes}"
            )
        if not 0 <= self.balance <= 1 or not 0 <= self.length_power < math.inf or self.split_per_round < 1:
            raise KonkyoError(
                "a balance in [0, 1], length_power >= 0 and split_per_round >= 1 were expected; got "
                f"{self.balance}, {self.length_power} and {self.split_per_round}"
            )

    @property
    def first(self) -> tuple[float, ...]:
        """The path begins with these nodes."""
        count = min(self.initial, self.nodes) if self.adaptive else self.nodes
        return (1.0,) if count == 1 else tuple(i / (count - 1) for i in range(count))

    @property
    def least(self) -> float:
        """No interval of an adaptive path becomes shorter than this."""
        return 1 / (4 * self.nodes)


def trapezoid(alphas: Tensor) -> Tensor:
    """Returns the weights of sorted nodes (M,) by the trapezoid rule (Eq. 6); they sum to the length. One node: 1."""
    if len(alphas) == 1:
        return torch.ones_like(alphas)
    half = alphas.diff() / 2
    return torch.nn.functional.pad(half, (1, 0)) + torch.nn.functional.pad(half, (0, 1))


QuadratureRule: TypeAlias = Literal["right", "left", "midpoint", "trapezoid", "gauss"]
"""How an integral over [0, 1] becomes a sum: see `quadrature`."""


def quadrature(rule: QuadratureRule, steps: int) -> tuple[Tensor, Tensor]:
    """Returns nodes and weights (M,) of a rule on [0, 1], float64, the nodes in order; the weights sum to 1.

    "right", "left" and "midpoint" take one node of each of `steps` equal parts, "trapezoid" their `steps` + 1 ends.
    "gauss" is Gauss-Legendre, exact for polynomials up to degree 2 `steps` - 1; by the eigenvalues of the Legendre
    polynomials' three-term recurrence (Golub & Welsch, 1969).
    """
    if rule not in get_args(QuadratureRule):
        raise unknown("quadrature rule", rule, get_args(QuadratureRule))
    if steps < 1:
        raise KonkyoError(f"an integral needs steps >= 1; got {steps}")
    if rule == "trapezoid":
        nodes = torch.arange(steps + 1, dtype=torch.float64) / steps
        return nodes, trapezoid(nodes)
    if rule == "gauss":
        k = torch.arange(1, steps, dtype=torch.float64)
        beside = torch.diag(k / (4 * k**2 - 1).sqrt(), 1)
        places, vectors = torch.linalg.eigh(beside + beside.T)
        return (1 + places) / 2, vectors[0] ** 2
    first = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    nodes = (torch.arange(steps, dtype=torch.float64) + first) / steps
    return nodes, torch.full_like(nodes, 1 / steps)


@dataclass(eq=False)
class Node:
    """A node is a target's score, box and gradients at one point of its path."""

    gradients: list[Tensor]
    """(C, *grid) of every level."""
    activations: list[Tensor]
    """(C, *grid) of every level, where they are integrated over; else none."""
    score: float
    box: tuple[float, ...]
    """Of the matching candidate, NaN where there is none."""


@dataclass(eq=False)
class Track:
    """A track holds one target's nodes, in the order in which they were computed."""

    nodes: dict[float, Node] = field(default_factory=dict)
    distances: dict[tuple[float, float], float] = field(default_factory=dict)
    moves: dict[tuple[float, float], float] = field(default_factory=dict)

    @property
    def alphas(self) -> list[float]:
        """These are the places of the nodes, sorted."""
        return sorted(self.nodes)

    def priorities(self, sampling: Sampling) -> list[float]:
        """Returns the priority of every interval between neighbouring nodes (Eq. 5)."""
        pairs = list(pairwise(self.alphas))
        variations = [self.distance(a, b) for a, b in pairs]
        scales = {"max": max(variations, default=0.0), "sum": sum(variations), "none": 1.0}
        scale, balance = scales[sampling.gradient_scale] or 1.0, sampling.balance
        return [
            (balance * g / scale + (1 - balance) * self._box_move(a, b)) * (b - a) ** sampling.length_power
            for (a, b), g in zip(pairs, variations, strict=True)
        ]

    def next_places(self, sampling: Sampling) -> list[float]:
        """Returns where the next nodes belong: the middles of the intervals of the highest priority."""
        if not self.nodes:
            return list(sampling.first)
        left = min(sampling.split_per_round, sampling.nodes - len(self.nodes))
        return [(a + b) / 2 for *_, a, b in sorted(self._intervals(sampling))[:left]] if left > 0 else []

    def likely_places(self, sampling: Sampling, count: int, share: float) -> list[float]:
        """Guesses the next `count` places, as if either half of an interval had `share` of its priority."""
        if not self.nodes:
            return []
        intervals, places = self._intervals(sampling), list[float]()
        heapq.heapify(intervals)
        while intervals and len(places) < min(count, sampling.nodes - len(self.nodes)):
            rank, _, a, b = heapq.heappop(intervals)
            places.append(middle := (a + b) / 2)
            for x, y in ((a, middle), (middle, b)):
                if (y - x) / 2 >= sampling.least:
                    heapq.heappush(intervals, (share * rank, x - y, x, y))
        return places

    def _intervals(self, sampling: Sampling) -> list[tuple[float, float, float, float]]:
        """Returns the intervals that may be halved, the first in order being the next; ties: the widest, the first."""
        priorities = zip(self.priorities(sampling), pairwise(self.alphas), strict=True)
        return [(-priority, a - b, a, b) for priority, (a, b) in priorities if (b - a) / 2 >= sampling.least]

    def distance(self, a: float, b: float) -> float:
        """Returns how far the gradients of two nodes are apart (Eq. 3), over all levels."""
        if (a, b) not in self.distances:
            pairs = zip(self.nodes[a].gradients, self.nodes[b].gradients, strict=True)
            self.distances[a, b] = sum(float((y.float() - x.float()).abs().sum()) for x, y in pairs)
        return self.distances[a, b]

    def _box_move(self, a: float, b: float) -> float:
        """Returns how far the box has moved between two nodes (Eq. 4)."""
        if (a, b) not in self.moves:
            self.moves[a, b] = self._box_distance(a, b)
        return self.moves[a, b]

    def _box_distance(self, a: float, b: float) -> float:
        boxes = torch.tensor([self.nodes[a].box, self.nodes[b].box], dtype=torch.float64)
        there = boxes.isfinite().all(1)
        if not there.all():
            return float(there.any())
        return 1 - float(overlap(boxes[0], boxes[1]))


@dataclass(eq=False)
class Lookahead:
    """A lookahead says what to compute next for the adaptive tracks of one image, so that the network runs in batches.

    Halving asks for one node after the other; the lookahead also guesses what comes then. A track takes its nodes in
    the order of the rule, whatever was guessed: a wrong guess costs time, and changes no path.
    """

    tracks: dict[int, Track]
    """The track of every row."""
    sampling: Sampling
    ahead: int = 3
    """Of every row that waits for a node, so many places run together; of one that halves several at once, more."""
    share: float = 0.7
    """A guess takes either half of an interval to have this share of its priority."""
    spare: int = 8
    """A row holds at most so many nodes that it has not asked for; each has a grid for every level."""
    known: dict[int, dict[float, Node]] = field(init=False)
    """The nodes of every row that its track has not taken yet."""

    def __post_init__(self) -> None:
        """Begins with nothing known."""
        self.known = {row: {} for row in self.tracks}

    def add(self, row: int, alpha: float, node: Node) -> None:
        """Stores what was computed for a row at a place."""
        self.known[row][alpha] = node

    def advance(self) -> None:
        """Hands the tracks the nodes that the rule takes next, as far as they are known, and forgets the useless."""
        for row, track in self.tracks.items():
            known = self.known[row]
            while (places := track.next_places(self.sampling)) and all(alpha in known for alpha in places):
                track.nodes |= {alpha: known.pop(alpha) for alpha in places}
            if known:
                likely = {*places, *self._likely(row)}
                self.known[row] = {alpha: node for alpha, node in known.items() if alpha in likely}

    def places(self) -> dict[float, list[int]]:
        """Returns {place: the rows whose node there is to be computed}; nothing once all tracks are complete."""
        pairs, room = dict[tuple[float, int], None](), dict[int, int]()
        for row, track in self.tracks.items():
            missing = [alpha for alpha in track.next_places(self.sampling) if alpha not in self.known[row]]
            pairs |= dict.fromkeys((alpha, row) for alpha in missing)
            room[row] = self.spare - len(self.known[row])
        ahead = self.ahead + self.sampling.split_per_round - 1
        for row in dict.fromkeys(row for _, row in pairs):
            self._guess(pairs, row, self._likely(row, ahead), room)
        together = {alpha for alpha, _ in pairs}
        for row in self.tracks:  # a row shares the places of the others that it will want
            self._guess(pairs, row, [alpha for alpha in self._likely(row) if alpha in together], room)
        rows: dict[float, list[int]] = {}
        for alpha, row in sorted(pairs):
            rows.setdefault(alpha, []).append(row)
        return rows

    def _guess(
        self, pairs: dict[tuple[float, int], None], row: int, places: Iterable[float], room: dict[int, int]
    ) -> None:
        """Adds a row's places to the pairs, as far as it has room for nodes that it has not asked for."""
        for alpha in places:
            if room[row] > 0 and alpha not in self.known[row] and (alpha, row) not in pairs:
                pairs[alpha, row] = None
                room[row] -= 1

    def _likely(self, row: int, count: int | None = None) -> list[float]:
        """Guesses the row's next places; without a count all that are left."""
        return self.tracks[row].likely_places(
            self.sampling, self.sampling.nodes if count is None else count, self.share
        )


@dataclass(frozen=True, eq=False)
class PathTrace:
    """This holds the nodes on the paths of R targets, at most M per path; NaN beyond a row's last node."""

    alphas: Tensor
    """(R, M) the nodes, in order."""
    priorities: Tensor
    """(R, M - 1) of the intervals between them (Eq. 5)."""
    scores: Tensor
    """(R, M) the explained score at every node."""
    boxes: Tensor
    """(R, M, 4) the box of the matching candidate, xyxy in pixels; NaN where there is none."""

    def of(self, rows: Sequence[int]) -> PathTrace:
        """Returns the paths of some of the targets."""
        return PathTrace(*(getattr(self, f.name)[list(rows)] for f in fields(self)))

    def trimmed(self) -> PathTrace:
        """Returns the same paths without what lies beyond the last node of all."""
        most = int(self.alphas.isfinite().any(0).sum())
        return PathTrace(
            self.alphas[:, :most], self.priorities[:, : most - 1], self.scores[:, :most], self.boxes[:, :most]
        )


def traced(tracks: list[Track], sampling: Sampling) -> PathTrace:
    """Returns the tracks' nodes as tensors."""
    most, none = max(len(track.nodes) for track in tracks), [float("nan")]

    def padded(values: list[list[float]], length: int) -> Tensor:
        return torch.tensor([row + none * (length - len(row)) for row in values])

    in_order = [[track.nodes[a] for a in track.alphas] for track in tracks]
    return PathTrace(
        padded([track.alphas for track in tracks], most),
        padded([track.priorities(sampling) for track in tracks], most - 1),
        padded([[node.score for node in nodes] for nodes in in_order], most),
        torch.tensor([[list(n.box) for n in nodes] + [none * 4] * (most - len(nodes)) for nodes in in_order]),
    )
