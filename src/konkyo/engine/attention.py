"""Explicit attention: while a forward runs, the probabilities of every attention are computed and stored.

Fused kernels never hold them. Within `explicit_attention` each attention becomes a product, a softmax and a product,
and its probabilities are part of the graph. How it is written does not matter: PyTorch's fused function,
`nn.MultiheadAttention`, or a softmax by hand. Nothing stays behind on the network.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from konkyo.engine.ownership import ATTENTION_KERNELS, Claim
from konkyo.engine.session import OwnMode, hooked, open_modules
from konkyo.errors import NotApplicable

_SOFTMAX = {functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
_MULTI_HEAD = inspect.signature(functional.multi_head_attention_forward)
_GRID_SAMPLE = inspect.signature(functional.grid_sample)


@dataclass(eq=False)
class _ModuleCall:
    """This is a module's call in one forward."""

    module: nn.Module
    number: int
    """Which of the module's calls, from 0."""
    input: Tensor | None
    """The first tensor that it was called with."""
    attentions: int = 0
    """How many attentions were computed within."""
    out: Tensor | None = None
    """What the module put out, where that has three axes and one attention was computed within."""
    handed_on: Tensor | None = None
    """The copy of `out` that the network went on with."""


@dataclass(frozen=True, eq=False)
class Block:
    """A block is a module that turns tokens into tokens with one self-attention in it."""

    module: nn.Module
    call: int
    """Which of the module's calls, from 0."""
    tokens: Tensor
    """What it put out (N, L, C), in the graph."""
    probabilities: Tensor
    """Of its attention, as in `Attentions.probabilities`."""


@dataclass(eq=False)
class Product:
    """A product is what an attention multiplied, each (N, heads, tokens, width), and what it put out, in the graph."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    out: Tensor
    weight: Tensor | None = None
    """Of the linear layer that what it put out goes through next, (C, heads * width)."""
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Samples:
    """These are the points at which an attention reads the values of one level, as `grid_sample` is given them."""

    points: Tensor
    """(N * heads, queries, points, 2): x and y from -1 to 1, the borders of the level."""
    size: tuple[int, int]
    """The level's rows and columns."""
    bilinear: bool
    """Whether a point reads the four cells around it, and zeros outside."""


class Attentions(OwnMode):
    """This mode records the attentions of one forward; see `explicit_attention`.

    `one_head`: the number of an attention, from 0, that is computed with all of its heads as one.
    """

    def __init__(self, one_head: int | None = None) -> None:
        """Starts with no attention recorded."""
        super().__init__()
        self._one_head = one_head
        self.product: Product | None = None
        """Of the last attention; None where that is a softmax by hand."""
        self.probabilities: list[Tensor] = []
        """(N, heads, queries, keys) each, or (N * heads, queries, keys) where the network has them so, in the graph.
        At least in single precision."""
        self.samples: dict[int, list[Samples]] = {}
        """By an attention's number, the points that were read since: a deformable attention's, level by level."""
        self.grids: dict[int, tuple[int, ...]] = {}
        """By a number of keys, the last grid of so many cells that a module put out before they were attended to."""
        self._sizes: dict[int, tuple[int, ...]] = {}
        self.tails: dict[object, list[tuple[Tensor, Tensor]]] = {}
        """What was computed from the blocks' tokens, stored by whoever computed it."""
        self._stack: list[_ModuleCall] = []
        self._paths: list[tuple[_ModuleCall, ...]] = []
        self._counts: dict[nn.Module, int] = {}

    # --- what a forward computed --------------------------------------------------------------------------------------

    def among_tokens(self, images: int) -> list[Tensor]:
        """Returns the probabilities of every self-attention over the tokens of whole images, first to last.

        NotApplicable: none; attention within windows; or tokens that become fewer (or other ones) on the way.
        """
        square = [p for p in self.probabilities if p.shape[-1] == p.shape[-2]]
        if not square:
            raise NotApplicable("reads attention between tokens, and this network computes none that can be seen")
        if any(p.ndim > 4 or len(p) % images or (p.ndim == 4 and len(p) != images) for p in square):
            raise NotApplicable(
                "needs attention between all tokens of an image; this network attends within windows or pieces"
            )
        others = [p for p in self.probabilities if p.shape[-1] != p.shape[-2]]
        tokens = {p.shape[-1] for p in [*square, *others]}
        if len(tokens) > 1 or len(others) > 1 or (others and others[0] is not self.probabilities[-1]):
            raise NotApplicable(
                "needs the same tokens in every block; in this network they are merged, or attention is between "
                f"different ones (keys: {', '.join(map(str, sorted(tokens)))})"
            )
        return square

    @property
    def pooling(self) -> Tensor | None:
        """By these probabilities the head reads the tokens, where its queries are other ones; else None."""
        last = self.probabilities[-1]
        return last if last.shape[-1] != last.shape[-2] else None

    def blocks(self, images: int) -> list[Block]:
        """Returns the modules around the self-attentions, which hand tokens on, one to the next.

        NotApplicable: a network that is not made so; and what `among_tokens` says.
        """
        reason = "needs blocks that are modules, each handing tokens (N, L, C) on to the next"
        blocks, count = list[Block](), len(self.among_tokens(images))
        calls = list[_ModuleCall]()
        for probabilities, path in zip(self.probabilities[:count], self._paths, strict=False):
            # With a single attention nothing tells a block from the attention in it, but that it is around it.
            inside = path[:-1] if count == 1 else path
            call = next((call for call in inside if call.attentions == 1 and call.out is not None), None)
            if call is None or call.out is None or call.out.shape[:2] != (images, probabilities.shape[-1]):
                raise NotApplicable(reason)
            calls.append(call)
            blocks.append(Block(call.module, call.number, call.out, probabilities))
        if any(after.input is not before.handed_on for before, after in pairwise(calls)):
            raise NotApplicable(reason)
        return blocks

    # --- attention, explicitly ----------------------------------------------------------------------------------------

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one function of torch, or in its place the explicit form, as the mode's protocol asks."""
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function is functional.multi_head_attention_forward:
            bound = _MULTI_HEAD.bind(*args, **kwargs)
            bound.apply_defaults()
            return self._multi_head(**bound.arguments)
        if function is functional.linear and self.product is not None and self.product.weight is None:
            self.product.weight, self.product.bias = args[1], kwargs.get("bias", args[2] if len(args) > 2 else None)
        if function is functional.grid_sample and self.probabilities:
            self._sample(*args, **kwargs)
        if function in _SOFTMAX:
            self.product = None
            out: Tensor = function(*args, **kwargs)
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            square = out.ndim >= 3 and out.shape[-1] == out.shape[-2]
            if axis in (-1, out.ndim - 1) and (square or out.ndim == 4 or self._follows(out)):
                return self._record(out.float() if out.element_size() < 4 else out).to(out.dtype)
            return out
        return function(*args, **kwargs)

    def _follows(self, out: Tensor) -> bool:
        """Tells whether (N * heads, queries, keys) are of the queries that have just attended to each other."""
        last = self.probabilities[-1].shape if self.probabilities else ()
        return out.ndim == 3 and len(last) == 3 and last[1] == last[2] and out.shape[:2] == last[:2]

    def _record(self, probabilities: Tensor) -> Tensor:
        """Notes the probabilities; the first ones become the leaf of the graph."""
        if not torch.is_grad_enabled() or not probabilities.requires_grad:
            torch.set_grad_enabled(True)
            probabilities = probabilities.detach().requires_grad_()
        keys = probabilities.shape[-1]
        if keys in self._sizes:
            self.grids.setdefault(keys, self._sizes[keys])
        self.probabilities.append(probabilities)
        self._paths.append(tuple(self._stack))
        for call in self._stack:
            call.attentions += 1
        return probabilities

    def _sample(self, *args: Any, **kwargs: Any) -> None:
        """Notes where `grid_sample` reads."""
        bound = _GRID_SAMPLE.bind(*args, **kwargs)
        bound.apply_defaults()
        values, points, mode, padding, corners = bound.arguments.values()
        if values.ndim == 4:
            how = (mode, padding, bool(corners)) == ("bilinear", "zeros", False)
            samples = Samples(points.detach(), (values.shape[2], values.shape[3]), how)
            self.samples.setdefault(len(self.probabilities) - 1, []).append(samples)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Computes `scaled_dot_product_attention` step by step."""
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        heads = query.shape[-3:-2]
        if len(self.probabilities) == self._one_head:
            query, key, value = (t.transpose(-3, -2).flatten(-2).unsqueeze(-3) for t in (query, key, value))
            scale = None
        scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.mT
        if is_causal:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        kind = torch.float32 if scores.element_size() < 4 else scores.dtype
        probabilities = functional.dropout(self._record(scores.softmax(-1, dtype=kind)), dropout_p)
        out = probabilities.to(value.dtype) @ value
        self.product = Product(query, key, value, out)
        if out.shape[-3:-2] != heads:
            out = out.squeeze(-3).reshape(*out.shape[:-3], out.shape[-2], *heads, -1).transpose(-3, -2)
        return out

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        training: bool,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        average_attn_weights: bool,
        is_causal: bool,
        use_separate_proj_weight: bool,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes `multi_head_attention_forward`: tokens (L, N, C) -> the same, and the weights if `need_weights`."""
        if query.ndim != 3 or any(others[name] is not None for name in ("bias_k", "bias_v", "static_k", "static_v")):
            raise NotApplicable("cannot read an attention with keys of its own, or one without a batch")
        if others["add_zero_attn"]:
            raise NotApplicable("cannot read an attention with keys of its own")
        if use_separate_proj_weight or in_proj_weight is None:
            weights = tuple(others[f"{name}_proj_weight"] for name in "qkv")
        else:
            weights = in_proj_weight.chunk(3)
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)

        def heads(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            projected = functional.linear(tokens, weight, bias)  # (L, N, heads * width)
            return projected.view(*projected.shape[:2], num_heads, -1).permute(1, 2, 0, 3)

        q, k, v = (heads(*parts) for parts in zip((query, key, value), weights, biases, strict=True))
        mask: Tensor | None = None
        if attn_mask is not None:  # here True is what is left out
            mask = _added(attn_mask, q)
            mask = mask.view(-1, num_heads, *mask.shape[1:]) if mask.ndim == 3 else mask
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q)[:, None, None]
            mask = padding if mask is None else mask + padding
        out = self._attention(q, k, v, mask, dropout_p if training else 0.0, is_causal and mask is None)
        if self.product is not None:
            self.product.weight, self.product.bias = out_proj_weight, out_proj_bias
        out = functional.linear(out.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
        if not need_weights:
            return out, None
        probabilities = self.probabilities[-1].to(out.dtype)
        return out, probabilities.mean(1) if average_attn_weights else probabilities

    # --- the modules around ------------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes that the call of a module begins."""
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        self._counts[module] = number = self._counts.get(module, -1) + 1
        self._stack.append(_ModuleCall(module, number, first))

    def leave(self, module: nn.Module, _args: Any, output: Any) -> Any:
        """A module's call ends; where it may be a block, its tokens are recorded and the network gets a copy."""
        call = self._stack.pop()
        while call.module is not module:  # calls that ended in an exception which the network caught
            call = self._stack.pop()
        first = output[0] if type(output) in (tuple, list) and output else output
        if isinstance(first, Tensor) and first.ndim >= 4:
            self._sizes[math.prod(first.shape[2:])] = tuple(first.shape[2:])
        if call.attentions == 1 and isinstance(first, Tensor) and first.ndim == 3 and first.requires_grad:
            call.out, call.handed_on = first, first.clone()
            return call.handed_on if first is output else type(output)((call.handed_on, *output[1:]))
        call.input = None
        return output


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Turns a mask of `nn.MultiheadAttention` into numbers that are added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def per_head(values: Tensor, images: int) -> Tensor:
    """Returns values (N, heads, queries, keys), or (N * heads, queries, keys), as (N, heads, queries, keys)."""
    return values if values.ndim == 4 else values.view(images, -1, *values.shape[1:])


@contextmanager
def differentiable_attention(_root: nn.Module) -> Iterator[None]:
    """Within the context attention runs in a form that has a second derivative, for this thread alone."""
    claim = Claim([ATTENTION_KERNELS])  # which kernels run is a setting of the whole process
    try:
        claim.hold()
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        claim.release()


@contextmanager
def explicit_attention(root: nn.Module, one_head: int | None = None) -> Iterator[Attentions]:
    """Within the context a forward computes every attention step by step; run it under `no_grad`.

    The first attention's probabilities become the leaf of the graph: what comes before runs without one, whatever the
    weights' `requires_grad`, and what follows is differentiable. The network's output is what it always is, but with
    the attention of number `one_head` computed with all its heads as one.
    """
    attentions = Attentions(one_head)
    with ExitStack() as undo:
        undo.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))  # the switch in `_record` ends here
        modules = open_modules(root)
        undo.enter_context(hooked(modules, before=attentions.enter, after=attentions.leave, with_kwargs=True))
        undo.enter_context(attentions)
        yield attentions
