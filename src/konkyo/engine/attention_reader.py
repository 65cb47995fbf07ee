"""AttentionReader: the attentions of one forward, their gradients, and what the head reads, for the rows of a Probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo.engine.attention import Attentions, Block, explicit_attention, per_head
from konkyo.engine.forward import Pass, Rows, differentiated, of_rows, pick, rounds, score_of, scores
from konkyo.engine.layer import MAX_PREFIX_TOKENS, Layer
from konkyo.engine.needs import Heads, ReadingAttention, ReadTokens
from konkyo.engine.replay import Replay
from konkyo.errors import NotApplicable
from konkyo.targets.classes import Target
from konkyo.utils.tensors import at_least_float32, safe_divide


class AttendedRows:
    """The rows of a Probe, and the forward in which every attention is explicit, which all readers share."""

    def __init__(self, pass_: Pass, rows: Rows, targets: Sequence[Target]) -> None:
        self._pass, self._rows, self._targets, self._count = pass_, rows, tuple(targets), len(pass_.images)

    @property
    def _attended(self) -> tuple[Pass, Attentions]:
        pass_ = self._pass.other("attention", [], explicit_attention)
        attended = pass_.recorded[explicit_attention]
        assert isinstance(attended, Attentions)
        return pass_, attended


class AttentionReader(AttendedRows):
    """Reads a forward in which every attention is explicit, the first one the leaf; one forward serves all targets."""

    def probabilities(self) -> tuple[Tensor, ...]:
        """Computes `Probe.attentions`."""
        _, attended = self._attended
        blocks = attended.among_tokens(self._count)
        return tuple(pick(at_least_float32(per_head(p.detach(), self._count)), self._rows) for p in blocks)

    def gradients(self) -> tuple[Tensor, ...]:
        """Computes `Probe.attention_gradients`."""
        pass_, attended = self._attended
        slopes = pass_.slopes(
            self._rows, lambda output: scores(output, self._targets), attended.among_tokens(self._count)
        )
        return tuple(self._per_row(block) for block in zip(*slopes, strict=True))

    def readout(self) -> Tensor:
        """Computes `Probe.readout`."""
        pass_, attended = self._attended
        count = self._count
        last = attended.among_tokens(count)[-1]
        if attended.pooling is not None:
            return pick(at_least_float32(per_head(attended.pooling.detach(), count)).mean((1, 2)), self._rows)
        noise = torch.randn(pass_.output.shape[1:], generator=torch.Generator().manual_seed(0), device="cpu").to(
            pass_.output
        )
        ((slope,),) = pass_.slopes(tuple(range(count)), lambda output: (output * noise).flatten(1).sum(1), [last])
        read = (per_head(slope, count) != 0).to(slope.dtype).amax((1, 3))
        return pick(safe_divide(read, read.sum(1, keepdim=True)), self._rows)

    def reading(self, heads: Heads) -> ReadingAttention:
        """Computes `Probe.reading`."""
        pass_, attended = self._attended
        attended.among_tokens(self._count)
        if heads == "one":
            number = len(attended.probabilities) - 1
            within = _with_one_head(number)
            pass_ = self._pass.other(("one head", number), [], within)
            one: object = pass_.recorded[within]
            assert isinstance(one, Attentions)
            attended = one
        product = attended.product
        if product is None or product.weight is None:
            raise NotApplicable(
                "needs queries, keys and values of the attention by which the head reads; this network computes it by "
                "hand, and not by scaled_dot_product_attention or nn.MultiheadAttention"
            )
        slopes = pass_.slopes(self._rows, lambda output: scores(output, self._targets), [product.out])
        gradient = at_least_float32(of_rows(self._rows, [slope for (slope,) in slopes]))
        read = gradient.abs().amax((0, 1, 3)).nonzero().flatten().tolist() or [0]
        if len(read) > 1:
            raise NotApplicable(
                f"needs a head that reads one token (a class token, or a query of its own); here it reads {len(read)}"
            )

        def of_tokens(values: Tensor) -> Tensor:
            """Returns values (N, heads, L, width) of every row (R, L, heads * width)."""
            return pick(at_least_float32(values.detach()).transpose(1, 2).flatten(2), self._rows)

        def projected(values: Tensor) -> Tensor:
            bias = None if product.bias is None else product.bias.detach().to(values)
            assert product.weight is not None
            return functional.linear(values, product.weight.detach().to(values), bias)

        return ReadingAttention(
            projected(of_tokens(product.queries)[:, read[0]]),
            projected(of_tokens(product.keys)),
            of_tokens(product.values),
            gradient[:, :, read[0]].flatten(1),
        )

    def block_gradients(self, tokens: ReadTokens) -> tuple[Tensor, ...]:
        """Computes `Probe.block_gradients`."""
        _, attended = self._attended
        blocks = attended.blocks(self._count)
        if tokens == "pooling":
            return self._pooling_gradients(attended, blocks)
        tails, slopes = self._tails(attended, blocks, tokens), []
        for image, target in zip(self._rows, self._targets, strict=True):
            leaf, output = tails[image]
            with self._pass.forwards(), torch.enable_grad():
                total = score_of(output, target).sum()
                of_row = leaf * 0
                if total.requires_grad:
                    (of_leaf,) = differentiated(self._pass.network, total, leaf, retain_graph=True, allow_unused=True)
                    of_row = of_row if of_leaf is None else of_leaf
            slopes.append(of_row.detach())
        gradients: list[list[Tensor]] = []  # of every round, of every block
        for part in rounds(self._rows):
            images = [self._rows[row] for row in part]
            gradients.append([])
            for at, block in enumerate(blocks):
                slope = torch.zeros_like(block.tokens)
                slope[images] = torch.stack([slopes[row][at] for row in part]).to(slope)
                start, leaf = block.tokens, block.probabilities
                (gradient,) = differentiated(self._pass.network, start, leaf, slope, retain_graph=True)
                assert gradient is not None
                gradients[-1].append(gradient)
        return tuple(self._per_row(block) for block in zip(*gradients, strict=True))

    def _pooling_gradients(self, attended: Attentions, blocks: Sequence[Block]) -> tuple[Tensor, ...]:
        """Returns the gradients at the head's attention to the tokens of every block (R, heads, 1, L)."""
        if attended.pooling is None:
            raise NotApplicable("needs a head that reads the tokens by an attention of its own, as SigLIP's does")
        gradients = []
        for image, target in zip(self._rows, self._targets, strict=True):
            tokens = torch.stack([block.tokens[image].detach() for block in blocks])
            replay = self._tail(blocks, image, tokens)
            with self._pass.forwards(), torch.enable_grad(), explicit_attention(self._pass.network.module) as tail:
                output = replay(tokens.clone())
                (leaf,) = tail.probabilities
                total = score_of(output, target).sum()
                (slope,) = differentiated(self._pass.network, total, leaf, allow_unused=True)
            gradients.append(torch.zeros_like(leaf) if slope is None else slope)
        return tuple(at_least_float32(block) for block in torch.stack(gradients, 1))

    def _tail(self, blocks: Sequence[Block], image: int, tokens: Tensor) -> Replay:
        """Returns what the network does with the last block's tokens, for tokens (blocks, L, C) of one image."""
        last = Layer("the last block", blocks[-1].module, call=blocks[-1].call)
        images = self._pass.images[image : image + 1]
        replay = Replay(self._pass.forward, last, self._pass.network.module, images)
        if replay.raw.shape != (1, *tokens.shape[1:]):
            raise NotApplicable("needs blocks that are modules, each handing tokens (N, L, C) on to the next")
        return replay

    def _per_row(self, gradients: Sequence[Tensor]) -> Tensor:
        """Puts the gradients of one attention, which come by rounds, in the order of the rows (R, heads, L, L)."""
        return at_least_float32(of_rows(self._rows, [per_head(gradient, self._count) for gradient in gradients]))

    def _tails(self, attended: Attentions, blocks: Sequence[Block], tokens: ReadTokens) -> list[tuple[Tensor, Tensor]]:
        """Returns for every image (the blocks' tokens (blocks, L, C), a leaf; what the network puts out for them)."""
        if tokens not in attended.tails:
            tails = []
            for image in range(len(self._pass.images)):
                leaf = torch.stack([block.tokens[image].detach() for block in blocks]).requires_grad_()
                replay = self._tail(blocks, image, leaf)
                with torch.enable_grad():
                    read = leaf if tokens == "head" else leaf.mean(1, keepdim=True).expand_as(leaf)
                    tails.append((leaf, replay(read.clone())))  # networks may work in place on it
            attended.tails[tokens] = tails
        return attended.tails[tokens]


@cache
def _with_one_head(number: int) -> Callable[[nn.Module], AbstractContextManager[Attentions]]:
    """Returns the context in which the attention of that number has one head; the same object for a number."""
    return partial(explicit_attention, one_head=number)


def tokens_on_grid(tokens: Tensor, layer: Layer, grid: Sequence[int]) -> Tensor:
    """Computes `Probe.on_grid`."""
    prefix = tokens.shape[1] - math.prod(grid)
    if not 0 <= prefix <= MAX_PREFIX_TOKENS or (layer.tokens and layer.prefix not in (0, prefix)):
        raise NotApplicable(
            f"{tokens.shape[1]} tokens do not lie on the grid {tuple(grid)} of layer {layer.name!r}; "
            "name a layer that puts out the blocks' tokens"
        )
    laid = replace(layer, channel_axis=-1, tokens=tuple(grid), prefix=prefix, batch_axis=0, stacked=0)
    return laid.fold(tokens[..., None])[:, 0]
