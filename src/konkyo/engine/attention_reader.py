"""AttentionReader: the attentions of one forward, their gradients, and what the head reads, for the rows of a Probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from konkyo.engine.attention import Attentions, Block, explicit_attention, per_head
from konkyo.engine.forward import Pass, Rows, at_least_float32, differentiated, of_rows, pick, rounds, score_of, scores
from konkyo.engine.layer import MAX_PREFIX_TOKENS, Layer
from konkyo.engine.needs import ReadTokens
from konkyo.engine.replay import Replay
from konkyo.errors import NotApplicable
from konkyo.targets.classes import Target
from konkyo.utils.tensors import safe_divide


class AttentionReader:
    """Reads a forward in which every attention is explicit, the first one the leaf; one forward serves all targets."""

    def __init__(self, pass_: Pass, rows: Rows, targets: Sequence[Target]) -> None:
        self._pass, self._rows, self._targets, self._count = pass_, rows, tuple(targets), len(pass_.images)

    @property
    def _attended(self) -> tuple[Pass, Attentions]:
        pass_ = self._pass.other("attention", [], explicit_attention)
        attended = pass_.recorded[explicit_attention]
        assert isinstance(attended, Attentions)
        return pass_, attended

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

    def block_gradients(self, tokens: ReadTokens) -> tuple[Tensor, ...]:
        """Computes `Probe.block_gradients`."""
        _, attended = self._attended
        blocks = attended.blocks(self._count)
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

    def _per_row(self, gradients: Sequence[Tensor]) -> Tensor:
        """Puts the gradients of one attention, which come by rounds, in the order of the rows (R, heads, L, L)."""
        return at_least_float32(of_rows(self._rows, [per_head(gradient, self._count) for gradient in gradients]))

    def _tails(self, attended: Attentions, blocks: Sequence[Block], tokens: ReadTokens) -> list[tuple[Tensor, Tensor]]:
        """Returns for every image (the blocks' tokens (blocks, L, C), a leaf; what the network puts out for them)."""
        if tokens not in attended.tails:
            last = Layer("the last block", blocks[-1].module, call=blocks[-1].call)
            tails = []
            images = self._pass.images
            for image in range(len(images)):
                replay = Replay(self._pass.forward, last, self._pass.network.module, images[image : image + 1])
                leaf = torch.stack([block.tokens[image].detach() for block in blocks]).requires_grad_()
                if replay.raw.shape != (1, *leaf.shape[1:]):
                    raise NotApplicable("needs blocks that are modules, each handing tokens (N, L, C) on to the next")
                with torch.enable_grad():
                    read = leaf if tokens == "head" else leaf.mean(1, keepdim=True).expand_as(leaf)
                    tails.append((leaf, replay(read.clone())))  # networks may work in place on it
            attended.tails[tokens] = tails
        return attended.tails[tokens]


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
