"""Probe: a Pass seen from one target, with all that a method may ask for.

A method names what it needs; the Probe computes it when first asked, and whatever targets and methods can share
belongs to the Pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, wraps
from typing import Any

import torch
from torch import Tensor

from konkyo.engine import backwards
from konkyo.engine.attention import differentiable_attention
from konkyo.engine.attention_decoder import DecoderReader
from konkyo.engine.attention_reader import AttentionReader, tokens_on_grid
from konkyo.engine.biases import bias_terms
from konkyo.engine.channels import Channels
from konkyo.engine.forward import OneByOne, Pass, Rows, distinct_views, pick, scores
from konkyo.engine.integration import Integration, Pyramid
from konkyo.engine.layer import INPUT, Layer
from konkyo.engine.needs import (
    Combine,
    EncoderDecoder,
    Heads,
    Need,
    OtherScore,
    ReadingAttention,
    ReadTokens,
    Through,
    Vary,
    Visit,
    need,
    needs_of,
)
from konkyo.engine.path import Sampling
from konkyo.engine.rules import Rules
from konkyo.engine.session import session_of
from konkyo.engine.variants import Budget, Variants
from konkyo.errors import NotApplicable
from konkyo.targets.classes import Target
from konkyo.utils.segments import Count, Segmentation
from konkyo.utils.tensors import safe_divide

_GRADIENT = {"of_target": True, "of_layer": True, "of_gradient": True, "inside": True}
"""What all gradients at the layer are, as needs."""
_TRANSFORMERS = "transformers with global attention"
_DECODERS = "detectors whose queries attend to the picture (DETR and its relatives)"


class Probe:
    """A Probe is a Pass seen from targets, at one layer: R rows, each an image of the Pass and a target of it.

    Its public names are what a method may ask for, each declared by `@need`. `rows` is the image of every row (None:
    one row per image). `knows_target`: see `Variants`. `pyramid`: what the Probes of all levels have in common.
    """

    def __init__(
        self,
        pass_: Pass,
        targets: Sequence[Target],
        layer: Layer,
        *,
        rows: Rows | None = None,
        seed: int = 0,
        knows_target: bool = True,
        budget: Budget | None = None,
        pyramid: Pyramid | None = None,
    ) -> None:
        """Prepares what answers the needs; nothing runs before a method asks."""
        rows = tuple(range(len(pass_.images))) if rows is None else rows
        self._pass, self._layer, self._rows, self._seed, self._targets = pass_, layer, rows, seed, tuple(targets)
        self._variants = Variants(pass_, layer, rows, targets, budget or Budget(), knows_target)
        self._integration = Integration(pass_, rows, targets, pyramid or Pyramid((layer,)), self._variants)
        self._attention = AttentionReader(pass_, rows, targets)
        self._decoder = DecoderReader(pass_, rows, targets)
        self._channels = Channels(pass_, rows, targets, layer, self._variants)
        self._missing: list[Tensor] = []
        """What full gradients leave out of the score, of all rows of every view that was asked for them."""
        self._grown: list[Tensor] = []
        """How many times what was handed down relevance has become, in the same way."""
        self._noted: dict[str, Tensor] = {}

    @property
    @need(of_target=False)
    def inputs(self) -> Tensor:
        """This is the preprocessed image of every row (N, C, *size)."""
        return pick(self._pass.images, self._rows)

    @property
    @need(of_target=False)
    def output(self) -> Tensor:
        """This is what the network put out (N, ...), detached."""
        return pick(self._pass.output.detach(), self._rows)

    @property
    @need(of_target=True, itself=True, cost="other methods")
    def probe(self) -> Probe:
        """This is the Probe itself, for methods that are made of other methods."""
        return self

    @property
    @need(of_target=True)
    def targets(self) -> tuple[Target, ...]:
        """These are the targets: one per row."""
        return self._targets

    @cached_property
    @need(of_target=True)
    def score(self) -> Tensor:
        """This is the explained score of every row (N,)."""
        with torch.autocast(self.output.device.type, enabled=False):  # as where gradients start
            return scores(self.output, self.targets)

    @cached_property
    @need(of_target=False, of_layer=True, inside=True)
    def activations(self) -> Tensor:
        """This is the layer's output as a grid (N, C, *grid)."""
        return pick(self._pass.activations(self._layer), self._rows)

    @cached_property
    @need(**_GRADIENT, in_graph=True)
    def gradients(self) -> Tensor:
        """This is d score / d activations (N, C, *grid)."""
        return self._pass.gradients(self._rows, self.targets, self._layer)

    @need(of_target=True, of_layer=True, inside=True, cost="a forward")
    def score_at(self, activations: Tensor | None = None) -> Tensor:
        """Returns the score (N,) with other activations (N, C, *grid) at the layer: with other images at the input.

        None: the score of the image itself. It belongs to no budget.
        """
        if activations is None:
            return self.score
        others, variants = activations, Variants(self._pass, self._layer, self._rows, self._targets, Budget(), True)
        return variants.scores(self.score, 1, activations=lambda row, _: others[row][None])[:, 0]

    @need(of_target=False, cost="a note")
    def note(self, name: str, values: Tensor) -> None:
        """Keeps a number of every row (N,) beside the map, for the explanation's `notes`."""
        self._noted[name] = values.detach()

    @property
    @need(of_target=False, cost="a seed")
    def generator(self) -> torch.Generator:
        """This is a new random generator on the CPU with the call's seed: every method draws the same numbers."""
        return torch.Generator().manual_seed(self._seed)

    @property
    @need(of_target=False, cost="a black image")
    def black(self) -> Tensor:
        """These are black images (N, C, *size), as prepared for the network; zeros where that is not known."""
        return pick(self._pass.black, self._rows)

    @property
    @need(of_target=False, cost="a white image")
    def white(self) -> Tensor:
        """These are white images (N, C, *size), as prepared for the network; ones where that is not known."""
        return pick(self._pass.white, self._rows)

    @need(of_target=False, cost="segments (by scikit-image, or a grid)")
    def segment(self, kind: Segmentation = "slic", count: Count = 50) -> Tensor:
        """Returns the segment of every pixel (N, *size), int64, numbered 0, 1, ... without a gap.

        `kind`: superpixels by "slic", "quickshift" or "felzenszwalb", a "grid", or segments (*size) or (images, *size)
        of the user's. About `count` of them; a grid also takes the cells along each axis. NotApplicable: superpixels
        without scikit-image, or of inputs that are no pictures.
        """
        return pick(self._pass.segments(kind, count), self._rows)

    @need(of_target=False, cost="names of classes, where they are given")
    def class_index(self, name: str) -> int:
        """Returns the index of a class by its name. KonkyoError: an unknown name, or a model without names."""
        return self._pass.network.class_index(name)

    @cached_property
    @need(
        **_GRADIENT,
        cost="a head of global average pooling + linear",
        networks="networks whose head is global average pooling and one linear layer (or 1x1 convolution)",
    )
    def class_weights(self) -> Tensor:
        """This is what each channel's mean counts for the score (N, C), with a head of global average pooling + linear.

        NotApplicable: what follows the layer is something else.
        """
        return self._channels.class_weights()

    @need(
        **_GRADIENT,
        runs_variants=True,
        cost="a replay of what follows the layer per channel (closed form for pooling + linear)",
    )
    def ablate(self, priority: Tensor | None = None) -> Tensor:
        """Returns the score with one channel of the activations set to zero, for every channel (N, C).

        `priority` (N, C) as in `rescore`: a channel that is left out keeps the whole score, as if it did not matter.
        """
        return self._channels.ablate(self.activations, self.score, priority)

    @need(of_target=True, runs_variants=True, cost="a forward per variant")
    def rescore(
        self, count: int, *, inputs: Vary | None = None, activations: Vary | None = None, priority: Tensor | None = None
    ) -> Tensor:
        """Scores `count` variants of every row's image, or of its activations (N, count).

        `inputs(i, k)` builds the variants `k` (indices) of row `i` when their chunk's turn comes, so that no more
        than a chunk is ever held; the network may overwrite them. Variants of activations replay only what follows the
        layer. `priority` (N, count), bool or numbers: variants run in falling order of it, and those with 0 or less
        are left out. Left-out variants, and those beyond the call's budget, score -inf.
        """
        return self._variants.scores(self.score, count, inputs=inputs, activations=activations, priority=priority)

    @need(**_GRADIENT, cost="a forward and backward per variant")
    def regrad(self, weights: Tensor, *, inputs: Vary | None = None, activations: Vary | None = None) -> Tensor:
        """Returns the weighted sum over variants of d score / d variant (N, C, *grid).

        `weights` (count,) weighs the `count` variants; the rest is as in `rescore`.
        """
        return self._variants.gradient_sum(weights, inputs=inputs, activations=activations)

    @need(**_GRADIENT, cost="a forward and backward per variant")
    def revisit(self, count: int, *, inputs: Vary) -> Iterator[Visit]:
        """Yields activations and gradients at the layer for `count` variants of every row's image, chunk by chunk.

        -> (row, variant indices (v,), activations (v, C, *grid), gradients (v, C, *grid)). `inputs` as in `rescore`.
        """
        return self._variants.visits(count, inputs)

    @need(**_GRADIENT, traces_path=True, cost="a forward and a backward to the layer per node of the path")
    def integrate(self, baseline: Tensor, sampling: Sampling, *, through: Through = "alpha") -> Tensor:
        """Integrates the gradient at the layer along the straight path from `baseline` (N, C, *size) to the images.

        -> (N, C, *grid), by the trapezoid rule. Through "alpha" it is the integral of d score(I_alpha) / dA. Through
        the "activations" it is that of d score / dA dA, whose sum approaches score(I) - score(baseline). Rows of one
        image share the forwards of uniform nodes; no backward goes below the layer.
        """
        return self._integration.of(self._layer, baseline, sampling, through == "activations")

    @need(**_GRADIENT, in_graph=True, cost="another score's gradient")
    def differentiate(self, score: OtherScore) -> Tensor:
        """Returns the gradient (N, C, *grid) of another score: `score(output (N, K), explained score (N,))` -> (N,)."""
        known = self._variants.known  # who is called back is given the score
        return self._pass.gradients_of(self._rows, lambda o: score(o, known(scores(o, self.targets))), self._layer)

    @need(**_GRADIENT, cost="a second derivative")
    def curvature(self, vectors: Tensor) -> Tensor:
        """Multiplies the Hessian of the score at the layer by `vectors`: d sum(gradients * vectors) / d activations.

        Costs one more forward, whose attentions (if any) are of the kind that can be differentiated twice.
        """
        pass_ = self._pass.other("curvature", [self._layer], differentiable_attention)
        return pass_.curvature(self._rows, self.targets, self._layer, vectors)

    @need(of_target=True, cost="a forward and backward on other images")
    def on(self, images: Tensor, layer: str | None = None) -> Probe:
        """Returns a Probe of the same targets on other images (M, C, *size), M a multiple of N: one view after another.

        Its layer is this one's, or the input for `layer="input"`. Targets that ask for the same images share a forward.
        """
        distinct, rows = distinct_views(self._rows, images)
        session = session_of(self._pass.network.module)
        if session is not None and session.tied and len(distinct) > 1:
            raise NotApplicable("runs several images in a batch, and in this network they depend on each other")
        views, where = len(images) // len(self._rows), Layer(INPUT, None) if layer == INPUT else self._layer
        if where.tokens is not None and images.shape[2:] != self.inputs.shape[2:]:
            raise NotApplicable(
                f"takes images of several sizes, and layer {where.name!r} is read as tokens of one grid"
            )
        try:
            pass_ = self._pass.other("on", [where], nullcontext, distinct)
        except OneByOne as error:
            raise NotApplicable("runs several images in a batch, and this network takes them one by one") from error
        budget = self._variants.budget.divided(views)
        view = Probe(pass_, self.targets * views, where, rows=rows, seed=self._seed, budget=budget)
        view._missing, view._grown = self._missing, self._grown
        return view

    @cached_property
    @need(of_target=True, inside=True, cost="ReLUs", networks="networks with ReLU or ReLU6")
    def guided_gradients(self) -> Tensor:
        """This is d score / d inputs (N, C, *size) where every ReLU lets only positive gradients back.

        NotApplicable: the network has no ReLU. Costs one more forward and a whole backward.
        """
        return backwards.guided_gradients(self._pass, self._rows, self.targets)

    @cached_property
    @need(of_target=True, inside=True, cost="ReLUs", networks="networks with ReLU or ReLU6")
    def deconv_gradients(self) -> Tensor:
        """This is d score / d inputs (N, C, *size) where the backward of every ReLU is a ReLU, wherever it was on.

        NotApplicable: the network has no ReLU. Costs one more forward and a whole backward.
        """
        return backwards.deconv_gradients(self._pass, self._rows, self.targets)

    @cached_property
    @need(
        **_GRADIENT,
        cost="convolutions, batch norms, ReLUs and pooling after the layer",
        networks="networks whose layers after the chosen one are convolutions, batch norms, ReLUs, pooling and linear",
    )
    def relevance(self) -> Tensor:
        """This is the contrastive relevance of the layer's activations (N, C, *grid), by the z+ rule from the output.

        The output's relevance is 1 for the explained class and -1 / K for each of the others. NotApplicable: a target
        that is no class, or a module after the layer that has no rule.
        """
        return backwards.relevance(self._pass, self._rows, self.targets, self._layer)

    @need(
        **_GRADIENT,
        cost="a rule for every function after the layer",
        networks="networks of convolutions, linear layers, norms, usual activations, pooling and attention",
    )
    def propagate(self, rules: Rules) -> Tensor:
        """Returns the relevance of the layer's values (N, C, *grid), handed down from the output by `rules`.

        `relevance` is the one of `konkyo.engine.rules.CONTRASTIVE`. NotApplicable: a function after the layer that
        has no rule. Costs one more forward, in which a linear map runs up to five times, and a backward to the layer.
        """
        relevance, start = backwards.propagate(self._pass, self._rows, self.targets, self._layer, rules)
        self._grown.append(safe_divide(relevance.double().abs().flatten(1).sum(1), start))
        return relevance

    @need(
        **_GRADIENT,
        cost="a multiplier for every function after the layer",
        networks="networks of convolutions, linear layers, norms, usual activations, pooling and attention",
    )
    def lift(self, baseline: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what each of the layer's values adds to the score (N, C, *grid), and the baseline's score (N,).

        That is its difference from what it is for `baseline` (N, C, *size), times its multiplier; together they add up
        to the difference of the scores. NotApplicable: a function after the layer that has no multiplier. Costs a
        forward of the baselines, one more forward, and a backward to the layer.
        """
        return backwards.lifted(self._pass, self._rows, self.targets, self._layer, baseline)

    @cached_property
    @need(of_target=True, inside=True, within=bias_terms, cost="a whole backward")
    def full_gradients(self) -> tuple[Tensor, ...]:
        """These are input times gradient (N, C, *size), then bias times gradient of every function that adds one.

        Those are (N, C, *grid), or (N, 1) where what is added to is no grid of the image (windows of it, tokens). In a
        piecewise linear network they add up to the score; where they do not, the diagnosis says so.
        """
        full = backwards.full_gradients(self._pass, self._rows, self.targets)
        if full.missing is not None:
            self._missing.append(full.missing)
        return full.terms

    @cached_property
    @need(of_target=False, inside=True, cost="global attention", networks=f"{_TRANSFORMERS} (ViT, DeiT, BEiT, ...)")
    def attentions(self) -> tuple[Tensor, ...]:
        """These are the probabilities of every self-attention (N, heads, L, L), first block to last; rows are queries.

        NotApplicable: a network without attention, with attention within windows, or one that merges tokens.
        """
        return self._attention.probabilities()

    @cached_property
    @need(**_GRADIENT, cost="gradients of the attentions")
    def attention_gradients(self) -> tuple[Tensor, ...]:
        """This is d score / d probabilities of every self-attention (N, heads, L, L), first block to last."""
        return self._attention.gradients()

    @cached_property
    @need(of_target=False, inside=True, cost="the tokens that the head reads")
    def readout(self) -> Tensor:
        """This is the share of every token in what the head reads (N, L): a class token, all patches alike, or others.

        Those are the tokens whose queries in the last block reach the output. Where the head reads by an attention of
        its own, its probabilities are the shares.
        """
        return self._attention.readout()

    @need(
        **_GRADIENT,
        cost="the attention by which the head reads one token",
        networks=f"{_TRANSFORMERS} with a class token or an attention pooling",
    )
    def reading(self, heads: Heads = "model") -> ReadingAttention:
        """Returns the parts of the attention by which the head reads the tokens, and the gradient at what it reads.

        It is the last one of the network: of the last block, or the head's own. `heads="one"` computes it with all
        heads as one, which costs another forward. NotApplicable: a head that reads several tokens.
        """
        return self._attention.reading(heads)

    @cached_property
    @need(of_target=True, inside=True, cost="a decoder with a query per candidate", networks=_DECODERS)
    def queries(self) -> Tensor:
        """This is the decoder's query that every row's detection is made of (N,); -1 where it is absent.

        NotApplicable: a target that is no detection; a network without such a decoder. Costs a backward of what follows
        the decoder's last cross-attention, by which it is found.
        """
        return self._decoder.queries()

    @need(
        of_target=False, inside=True, cost="attention to the picture, or points of a deformable one", networks=_DECODERS
    )
    def cross_attentions(self, queries: Tensor) -> tuple[Tensor, ...]:
        """Returns the attention of each row's query (N,) to the picture (N, heads, *grid), first decoder layer to last.

        Where it is deformable, it is the weights of its points, laid on the finest level: each on the four cells that
        it reads, by their bilinear shares. 0 for a query of -1. NotApplicable: no such decoder.
        """
        return self._decoder.cross_attentions(queries)

    @need(
        **_GRADIENT,
        cost="gradients of all attentions of encoder and decoder",
        networks=f"{_DECODERS}, without deformable attention",
    )
    def encoder_decoder(self, combine: Combine) -> EncoderDecoder:
        """Returns every attention of encoder and decoder, `combine`d with its gradient into one matrix (N, q, k).

        NotApplicable: no such decoder, one whose attention is deformable, or attentions of other kinds between.
        """
        return self._decoder.encoder_decoder(combine)

    @need(of_target=False, inside=True, cost="a grid of tokens")
    def on_grid(self, tokens: Tensor) -> Tensor:
        """Puts values per token (N, L) on the grid (N, *grid): class token, registers and the like are left out.

        NotApplicable: the layer's grid is not the tokens'.
        """
        return tokens_on_grid(tokens, self._layer, self.activations.shape[2:])

    @need(
        **_GRADIENT,
        cost="gradients of every block's own score at its attention",
        networks=f"{_TRANSFORMERS} whose blocks are modules",
    )
    def block_gradients(self, tokens: ReadTokens = "mean") -> tuple[Tensor, ...]:
        """Returns d s_l / d probabilities of block l (N, heads, L, L), first block to last.

        s_l is the target's score of what the network puts out for the tokens of block l in place of the last block's.
        `tokens` puts their mean in every token's place ("mean"), or the tokens as they stand ("head"). With "pooling"
        the probabilities are those by which the head reads the tokens (N, heads, 1, L). NotApplicable: blocks that are
        no modules; a head without an attention of its own. Costs another forward of every image, and once back through
        every block.
        """
        return self._attention.block_gradients(tokens)


NEEDS: Mapping[str, Need] = needs_of(Probe)
"""What a method may name as positional parameters."""


def offer(probe: Probe, name: str) -> Any:
    """Returns the need of this name, for a method.

    The Probe notes when the method is given something of the target: by a value at once, by what is called when it has
    returned. See `Variants` for what follows from that.
    """
    value, declared = getattr(probe, name), NEEDS[name]
    if not declared.of_target:
        return value
    if not declared.signature:
        probe._variants.knows_target = True
        return value

    @wraps(value)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return value(*args, **kwargs)
        finally:
            probe._variants.knows_target = True

    return called


def largest_gradient(probe: Probe) -> Tensor | None:
    """Returns the largest absolute gradient of every row (R,), if a method has used the gradients at the layer."""
    return probe.gradients.flatten(1).abs().amax(1) if "gradients" in vars(probe) else None


def noted(probe: Probe) -> dict[str, Tensor]:
    """Returns the numbers (R,) that a method has noted of every row, by name."""
    return dict(probe._noted)


def missing_share(probe: Probe) -> Tensor | None:
    """Returns the largest share of the score (R,) that full gradients leave out, if a method has used them."""
    return _largest(probe._missing, len(probe.targets))


def growth(probe: Probe) -> Tensor | None:
    """Returns how many times what was handed down relevance has become at most (R,), if a method has used it."""
    return _largest(probe._grown, len(probe.targets))


def _largest(views: Sequence[Tensor], rows: int) -> Tensor | None:
    return torch.cat([view.view(-1, rows) for view in views]).amax(0) if views else None
