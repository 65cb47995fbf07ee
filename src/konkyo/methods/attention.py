"""Maps from the attention of vision transformers.

A_l are the attention probabilities of block l (N, heads, L, L), rows are queries. r is the share of every token in what
the head reads (N, L), 1 for a class token. For networks whose blocks attend among all tokens of an image (ViT, DeiT,
BEiT, DINOv2, SigLIP); not for windows (Swin), nor where tokens are merged on the way.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import BlockGradients, Heads, OnGrid, Reading, ReadTokens
from konkyo.methods.base import method
from konkyo.utils.tensors import min_max


def follow(rows: Tensor, step: Tensor) -> Tensor:
    """Multiplies rows (N, L) by matrices (N, L, L)."""
    return torch.einsum("nq,nqk->nk", rows, step)


@method
def attention_rollout(
    attentions: Sequence[Tensor], readout: Tensor, on_grid: OnGrid, *, heads: Literal["mean", "max", "min"] = "mean"
) -> Tensor:
    """Attention rollout (Abnar & Zuidema, 2020) follows attention through all blocks, back to where it comes from.

    map = r Â_n ... Â_1, Â_l = heads(A_l) + I with rows that sum to 1. For the mean over heads that is (A_l + I) / 2;
    the other half stands for the residual path. The same for every target. One forward, and O(L^2) per block: rows are
    followed down, no matrices multiplied. What values and MLPs do with what is attended to is left out.
    """
    rows = readout
    for probabilities in reversed(attentions):
        fused = probabilities.mean(1) if heads == "mean" else getattr(probabilities, f"a{heads}")(1)
        share = rows / (1 + fused.sum(2))
        rows = share + follow(share, fused)
    return on_grid(rows)


@method
def transformer_attribution(
    attentions: Sequence[Tensor], attention_gradients: Sequence[Tensor], readout: Tensor, on_grid: OnGrid
) -> Tensor:
    """Transformer attribution (Chefer et al., ICCV 2021, Eq. 5-6) rolls out the attention that speaks for the target.

    map = r (I + Ā_n) ... (I + Ā_1) - r, Ā_l = mean over heads of ReLU(dS/dA_l * A_l). What a token keeps of itself is
    taken off: it is nothing on patches where a class token is read, and a constant where their mean is. One forward
    with all attention explicit, and one backward. Not the LRP of the same authors' CVPR 2021 paper.
    """
    gained = torch.zeros_like(readout)  # on its own: next to the readout it would be lost to rounding
    for probabilities, gradients in zip(reversed(attentions), reversed(attention_gradients), strict=True):
        gained = gained + follow(readout + gained, (gradients * probabilities).relu().mean(1))
    return on_grid(gained)


@method
def le_grad(block_gradients: BlockGradients, on_grid: OnGrid, *, tokens: ReadTokens = "mean") -> Tensor:
    """LeGrad (Bousselham et al., 2024) shows how each block's attention to a token would raise that block's own score.

    map = mean over blocks, heads and queries of ReLU(ds_l/dA_l), s_l the target's score of the tokens of block l read
    through the network's own final norm and head. `tokens`: "mean" reads their mean, as the paper and its code do.
    "head" reads those that the head does, so s_n is the score itself. (Of a class token, only its own row counts then.)
    Where the head reads by an attention of its own (SigLIP), the paper differentiates that one: "pooling" does, the
    others differentiate the blocks' all the same. Early blocks' tokens were not made for the head. Cost: two forwards,
    and once back through every block.
    """
    maps = [gradients.relu().mean((1, 2)) for gradients in block_gradients(tokens)]
    return on_grid(torch.stack(maps).mean(0))


@method(rectified=True)
def grad_eclip(reading: Reading, on_grid: OnGrid, *, heads: Heads = "model", loosened: bool = True) -> Tensor:
    """Grad-ECLIP (Zhao et al., ICML 2024) asks of every value that the class token reads how it would raise the score.

    map_i = ReLU(lambda_i sum_c dS/do_c v_ic), o what the token reads in the last attention, before its projection, and
    v_i the value of patch i. lambda_i, in the place of the attention, is the cosine of query and key, scaled to [0, 1]
    over the patches; both have gone through the attention's output projection, as in the authors' code. `loosened`:
    False leaves lambda out. `heads`: "one" computes the last attention with all heads as one, as the authors do. That
    makes another network of it, so "model" keeps the heads. Where the head reads by an attention of its own (SigLIP),
    that one is taken. Cost: a forward with all attention explicit, and one backward.
    """
    query, keys, values, gradient = reading(heads)
    evidence = on_grid(torch.einsum("nc,nlc->nl", gradient, values))
    if not loosened:
        return evidence
    return min_max(on_grid(torch.cosine_similarity(query[:, None], keys, dim=2))) * evidence
