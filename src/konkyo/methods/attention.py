"""Maps from the attention of vision transformers, and of detectors that are made of an encoder and a decoder.

A_l are the attention probabilities of block l (N, heads, L, L), rows are queries. r is the share of every token in what
the head reads (N, L), 1 for a class token. For networks whose blocks attend among all tokens of an image (ViT, DeiT,
BEiT, DINOv2, SigLIP); not for windows (Swin), nor where tokens are merged on the way.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.layer import INPUT
from konkyo.engine.needs import BlockGradients, CrossAttentions, EncoderDecoders, Heads, OnGrid, Reading, ReadTokens
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.utils.tensors import fuse, min_max, safe_divide


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


@method(layer=INPUT)
def detr_attention(
    queries: Tensor,
    cross_attentions: CrossAttentions,
    *,
    decoder_layer: int | None = -1,
    decoder_fuse: Literal["mean", "product", "max"] = "mean",
    heads: Literal["mean", "max"] = "mean",
) -> Tensor:
    """DETR's attention (Carion et al., 2020) shows which places of the picture a detection's query attends to.

    map = heads(A_l) of that query, A_l the cross-attention's probabilities in decoder layer l. `decoder_layer` is the
    number of l from 0, or from the end; None takes all layers by `decoder_fuse`: their "mean", their largest value, or
    the "product" of the maps, each divided by its largest value first. A deformable attention (Deformable DETR,
    RT-DETR, DEIM) reads a few points and not all cells: then A_l is the weights of these points, each laid on the
    four cells that it reads. Every map sums to 1, but for points outside the picture. It says where the detector looks,
    not what speaks for the class. One forward, no backward through the network.
    """
    maps = cross_attentions(queries)
    layers = [of_layer.mean(1) if heads == "mean" else of_layer.amax(1) for of_layer in maps]
    if decoder_layer is not None:
        if not -len(layers) <= decoder_layer < len(layers):
            raise KonkyoError(
                f"this decoder has {len(layers)} layers, 0 to {len(layers) - 1}; got decoder_layer={decoder_layer}"
            )
        return layers[decoder_layer]
    if decoder_fuse == "product":
        return fuse(layers, "product")
    stack = torch.stack(layers)
    return stack.mean(0) if decoder_fuse == "mean" else stack.amax(0)


@method(layer=INPUT)
def mm_explainability(queries: Tensor, encoder_decoder: EncoderDecoders) -> Tensor:
    """Bi-modal transformer explanation (Chefer et al., ICCV 2021, Eq. 5-11) rolls out the attention of a DETR.

    map = the query's row of R_qi, which every attention of the network changes in turn, from R_ii = I, R_qq = I,
    R_qi = 0 on. Ā = mean over heads of ReLU(dS/dA * A). Among cells: R_ii += Ā R_ii. Among queries: R_qq += Ā R_qq, and
    R_qi += Ā R_qi. From queries to cells: R_qi += N(R_qq)ᵀ Ā N(R_ii), N(R) = I + (R - I with rows that sum to 1, or are
    0). S is what is explained; the authors' is a logit, as in `Detections(quantity="logit")`. Their released code
    takes relevance (LRP) for A by default; this is the paper's final form. Not for deformable attention. One forward
    with all attention explicit, and a backward per detection.
    """
    steps, grid = encoder_decoder(lambda probabilities, gradients: (gradients * probabilities).relu().mean(1))
    cells = _identity(next(matrix.shape[2] for kind, matrix in steps if kind == "cross"), queries)
    among = _identity(next(matrix.shape[1] for kind, matrix in steps if kind == "cross"), queries)
    read = queries.new_zeros(len(queries), among.shape[1], cells.shape[1]).to(steps[0][1])
    cells, among = cells.to(read), among.to(read)
    for kind, attention in steps:
        if kind == "encoder":
            cells = cells + attention @ cells
        elif kind == "queries":
            among, read = among + attention @ among, read + attention @ read
        else:
            read = read + _evened(among).mT @ attention @ _evened(cells)
    rows = read[torch.arange(len(queries), device=queries.device), queries.clamp_min(0)]
    shown: Tensor = torch.where(queries[:, None] < 0, 0, rows)
    return shown.view(-1, *grid)


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, device=like.device).expand(len(like), size, size)


def _evened(relevance: Tensor) -> Tensor:
    """Returns I + (R - I) with rows that sum to 1, or are 0."""
    identity = torch.eye(relevance.shape[-1]).to(relevance)
    rest = relevance - identity
    return identity + safe_divide(rest, rest.sum(-1, keepdim=True))
