"""Needs: what a method may ask of a `Probe`, as facts that a decorator declares and as types of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from torch import Tensor, nn

from konkyo.engine.path import Sampling
from konkyo.engine.rules import Rules
from konkyo.utils.registry import summary_of
from konkyo.utils.segments import Count, Segmentation

if TYPE_CHECKING:
    from konkyo.engine.probe import Probe

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Need:
    """A need is a public member of `Probe`, described for the methods that name it as a parameter."""

    of_target: bool
    """Whether its value, or what it returns when called, depends on the target and not on the image alone."""
    of_layer: bool = False
    """Whether it depends on the layer."""
    of_gradient: bool = False
    """Whether a map made of it is blank wherever the score does not depend on the layer."""
    in_graph: bool = False
    """Whether it needs the layer as a leaf in the graph of the one forward that all methods share."""
    within: Callable[[nn.Module], AbstractContextManager[object]] | None = None
    """A context that the shared forward runs in for it, with the image as a leaf."""
    runs_variants: bool = False
    """Whether it scores variants of an image or of its activations, as many as the call's budget allows."""
    traces_path: bool = False
    """Whether it keeps what happened along a path from a baseline."""
    inside: bool = False
    """Whether it reads or changes modules inside the network; the others only call the network."""
    itself: bool = False
    """Whether it is the Probe itself, on which a method runs another method."""
    cost: str = ""
    """What it costs or asks of the network, in words; nothing beyond a forward and a backward where this is empty."""
    networks: str = ""
    """Which networks have it, in words; all where this is empty."""
    name: str = ""
    signature: str = ""
    """The parameters of a member that is called; empty for a value."""
    summary: str = ""
    """The first sentence of its documentation."""

    def __post_init__(self) -> None:
        for fact, implied in (("of_gradient", "of_target"), ("of_gradient", "of_layer"), ("in_graph", "inside")):
            if getattr(self, fact) and not getattr(self, implied):
                raise TypeError(f"a need that is {fact} is {implied}, too")


def need(**facts: Any) -> Callable[[_Function], _Function]:
    """Declares what a member of `Probe` is; `facts`: the fields of `Need`, of which `of_target` has no default."""
    declared = Need(**facts)

    def declare(function: _Function) -> _Function:
        function.__need__ = declared  # type: ignore[attr-defined]
        return function

    return declare


def needs_of(kind: type) -> dict[str, Need]:
    """Returns every need that a class offers, by name. TypeError: a public member that declares nothing."""
    return {name: _declared(name, member) for name, member in vars(kind).items() if not name.startswith("_")}


def _declared(name: str, member: Any) -> Need:
    """Returns the need that a member of a class declares. TypeError: it declares none."""
    function = getattr(member, "fget", None) or getattr(member, "func", None) or member  # of a (cached) property
    declared: Need | None = getattr(function, "__need__", None)
    if declared is None:
        raise TypeError(f"{name} is a public member without @need(...): does what it gives depend on the target?")
    parameters = list(inspect.signature(function).parameters)[1:] if callable(member) else []
    signature = f"({', '.join(parameters)})" if callable(member) else ""
    return replace(declared, name=name, signature=signature, summary=summary_of(function))


# --- the types of the needs that are called, as a method's parameters ------------------------------------------------

Vary: TypeAlias = Callable[[int, Tensor], Tensor]
"""(row, variant indices (v,)) -> the variants (v, C, *grid). The same arguments give the same variants."""


class Rescore(Protocol):
    """This is `Probe.rescore`, as a method's parameter."""

    def __call__(
        self, count: int, *, inputs: Vary | None = ..., activations: Vary | None = ..., priority: Tensor | None = ...
    ) -> Tensor:
        """Returns the scores of variants (N, count)."""


class Note(Protocol):
    """This is `Probe.note`, as a method's parameter."""

    def __call__(self, name: str, values: Tensor) -> None:
        """Keeps a number of every row (N,) beside the map."""


class ScoreAt(Protocol):
    """This is `Probe.score_at`, as a method's parameter."""

    def __call__(self, activations: Tensor | None = ...) -> Tensor:
        """Returns the score with these activations, or the image's own (N,)."""


class Ablate(Protocol):
    """This is `Probe.ablate`, as a method's parameter."""

    def __call__(self, priority: Tensor | None = ...) -> Tensor:
        """Returns the score without each channel (N, C)."""


Through: TypeAlias = Literal["alpha", "activations"]


class Integrate(Protocol):
    """This is `Probe.integrate`, as a method's parameter."""

    def __call__(self, baseline: Tensor, sampling: Sampling, *, through: Through = ...) -> Tensor:
        """Returns the gradient at the layer, integrated along the path (N, C, *grid)."""


OtherScore: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(output (N, K), explained score (N,)) -> another score (N,), differentiable."""


class Differentiate(Protocol):
    """This is `Probe.differentiate`, as a method's parameter."""

    def __call__(self, score: OtherScore) -> Tensor:
        """Returns the other score's gradient (N, C, *grid)."""


class Curvature(Protocol):
    """This is `Probe.curvature`, as a method's parameter."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """Returns the Hessian times the vectors (N, C, *grid)."""


Visit: TypeAlias = tuple[int, Tensor, Tensor, Tensor]
"""(row, variant indices (v,), activations (v, C, *grid), gradients (v, C, *grid))."""


class Revisit(Protocol):
    """This is `Probe.revisit`, as a method's parameter."""

    def __call__(self, count: int, *, inputs: Vary) -> Iterator[Visit]:
        """Yields the variants' activations and gradients, chunk by chunk."""


ReadTokens: TypeAlias = Literal["mean", "head", "pooling"]
"""How a block's tokens are scored: their mean in every token's place, or as they stand.

"pooling": as they stand, and it is the head's own attention to them that is differentiated."""


class BlockGradients(Protocol):
    """This is `Probe.block_gradients`, as a method's parameter."""

    def __call__(self, tokens: ReadTokens = ...) -> tuple[Tensor, ...]:
        """Returns the gradient of every block's own score at its attention (N, heads, L, L); of a pooling one row."""


Heads: TypeAlias = Literal["model", "one"]
"""How the attention by which the head reads is computed: as the network does, or with all its heads as one."""


class ReadingAttention(NamedTuple):
    """These are the parts of the attention by which the head reads the tokens, from one token of its own."""

    query: Tensor
    """(R, C): of the token that reads, after the attention's own projection of what it puts out."""
    keys: Tensor
    """(R, L, C): of all tokens, after the same projection."""
    values: Tensor
    """(R, L, C): all heads side by side."""
    gradient: Tensor
    """(R, C): d score / d what the reading token was given, before the projection."""


class Reading(Protocol):
    """This is `Probe.reading`, as a method's parameter."""

    def __call__(self, heads: Heads = ...) -> ReadingAttention:
        """Returns the parts of the attention by which the head reads."""


class Propagate(Protocol):
    """This is `Probe.propagate`, as a method's parameter."""

    def __call__(self, rules: Rules) -> Tensor:
        """Returns the relevance of the layer's values (N, C, *grid)."""


class Lift(Protocol):
    """This is `Probe.lift`, as a method's parameter."""

    def __call__(self, baseline: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what each value adds to the score (N, C, *grid), and the baseline's score (N,)."""


class Segment(Protocol):
    """This is `Probe.segment`, as a method's parameter."""

    def __call__(self, kind: Segmentation = ..., count: Count = ...) -> Tensor:
        """Returns the segment of every pixel (N, *size)."""


ClassIndex: TypeAlias = Callable[[str], int]
"""`Probe.class_index`: the name of a class -> its index."""

CrossAttentions: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]
"""`Probe.cross_attentions`: queries (N,) -> their attention to the picture (N, heads, *grid), a tensor per layer."""

Combine: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(probabilities of an attention (N, heads, q, k), the score's gradients there) -> one matrix (N, q, k)."""

StepKind: TypeAlias = Literal["encoder", "queries", "cross"]
"""Attention among the encoder's cells (k x k), among the decoder's queries (q x q), or of queries to cells (q x k)."""


class EncoderDecoder(NamedTuple):
    """These are the attentions of an encoder and its decoder, each combined to one matrix per row."""

    steps: tuple[tuple[StepKind, Tensor], ...]
    """In the order in which the network computes them: of what kind, and the matrix (R, q, k)."""
    grid: tuple[int, ...]
    """The grid that the cells form."""


class EncoderDecoders(Protocol):
    """This is `Probe.encoder_decoder`, as a method's parameter."""

    def __call__(self, combine: Combine) -> EncoderDecoder:
        """Returns the attentions of encoder and decoder."""


class On(Protocol):
    """This is `Probe.on`, as a method's parameter."""

    def __call__(self, images: Tensor, layer: str | None = ...) -> Probe:
        """Returns a Probe of the same targets on other images."""


OnGrid: TypeAlias = Callable[[Tensor], Tensor]
"""`Probe.on_grid`: values per token (N, L) -> (N, *grid)."""


class Regrad(Protocol):
    """This is `Probe.regrad`, as a method's parameter."""

    def __call__(self, weights: Tensor, *, inputs: Vary | None = ..., activations: Vary | None = ...) -> Tensor:
        """Returns the weighted sum of variants' gradients (N, C, *grid)."""
