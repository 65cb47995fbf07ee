"""Relevance propagation: the score is handed down from layer to layer by rules, and shared out among the pixels.

R: the relevance of the layer's values (N, C, *grid). What each channel gets is returned, so a map is sum_c R_c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import Lift, Note, Propagate, ScoreAt
from konkyo.engine.rules import (
    Z_PLUS,
    Addition,
    AttentionRule,
    BiasRule,
    ProductShare,
    Rules,
    Start,
    composed,
)
from konkyo.methods.base import method
from konkyo.utils.baselines import Baselines, all_baseline_images

Composite = Literal[
    "epsilon",
    "epsilon_plus",
    "epsilon_plus_flat",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
]


@method(layer="input")
def lrp(
    propagate: Propagate,
    *,
    composite: Composite = "epsilon_plus_flat",
    rules: Mapping[str, str] | None = None,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    bias: BiasRule = "absorb",
    start: Start = "logit",
    addition: Addition = "ratio",
    product: ProductShare = "uniform",
    attention: AttentionRule = "cp",
) -> Tensor:
    """LRP (Bach et al., 2015; Montavon et al., 2019) hands the score down to the pixels, each layer sharing it out.

    map = sum_c R_c. A value x_i gets its share of what it went into, R_i = sum_j share_ij R_j. For linear maps z_j =
    sum_i x_i w_ij + b_j, with + and - for positive and negative parts:

    epsilon: x_i w_ij / z_j, with `epsilon` added to z_j in its own sign. gamma: as epsilon, with products of z_j's sign
    counted 1 + `gamma` times. alpha_beta (2, 1): alpha of the positive products over their sum, less beta of the
    negative ones. z_plus: the positive products alone. flat: alike for all inputs. w_square: w_ij^2. box: (x_i w_ij -
    l_i w_ij+ - h_i w_ij-), l and h a black and a white pixel.

    `composite` says which rule convolutions, linear layers and the first layer (what reads the image) follow; `rules`
    replaces some, as in {"conv": "gamma(0.5)", "linear": "epsilon", "first": "w_square"}. A batch norm after a
    linear map is part of it. A sum of two is shared by their sizes (`addition` "ratio"), as in Otsuki et al. (2024), or
    by their values ("epsilon"); a product of two half and half, or all to what is no sigmoid's output (`product`
    "gate"). Smooth activations hand relevance on, norms divide by a constant. In `attention` "cp" the probabilities are
    constants (Ali et al., 2022), "attnlrp" gives them relevance, too (Achtibat et al., 2024). Points at
    which a grid is sampled (deformable attention) are constants, and choices (`topk`) hand relevance to what is chosen.
    A bias takes its part of the relevance ("absorb"), or none ("leave_out"); so does what the network itself cuts off
    from its graph, as RT-DETR does the first state of its queries. `start`: the score, 1 ("one"), or 1 for the class
    and -1 / K for the others ("contrastive").

    Without biases the map's sum is the score, where that is linear in the output (a logit or a difference of them; else
    it is the output times the score's slope there), and the network has neither norms nor "attnlrp". "one" divides the
    map by the score, so that of a negative one it turns the sign round. With "leave_out" and with alpha_beta values
    near 0 are divided by, and maps can be many times the score.

    One forward, in which convolutions run up to five times, and a backward. NotApplicable names a function that has no
    rule.
    """
    return propagate(
        composed(
            composite,
            rules=rules,
            gamma=gamma,
            epsilon=epsilon,
            bias=bias,
            start=start,
            addition=addition,
            product=product,
            attention=attention,
        )
    )


@method(rectified=True)
def excitation_backprop(propagate: Propagate, *, contrast: bool = False) -> Tensor:
    """Excitation backprop (Zhang et al., 2016) hands a winner's 1 down, each to the inputs that excite it.

    map = ReLU(sum_c R_c), R of the z_plus rule without biases: a layer's input gets x_i w_ij+ / sum_i x_i w_ij+ of what
    each output has (a negative input's products with negative weights count, too), and the parts of a residual sum by
    their sizes. So the map is not negative and sums to 1, a distribution of where the walk down ends; at a layer of
    several grids that is so before the coarser ones are enlarged, and not negative where averages are of no negative
    values. `contrast`
    takes away the map of the opposite, whose last linear layer has negated weights (the paper's c-MWP), which leaves
    what speaks for the class alone. NotApplicable then: a network that does not end in a linear layer. One forward and
    a backward to the layer, twice with `contrast`.
    """
    rules = Rules(conv=Z_PLUS, linear=Z_PLUS, epsilon=0.0, addition="ratio", bias="leave_out", start="one")
    relevance = propagate(rules)
    return relevance - propagate(replace(rules, negated=True)) if contrast else relevance


@method(layer="input")
def deep_lift(
    inputs: Tensor,
    activations: Tensor,
    black: Tensor,
    white: Tensor,
    generator: torch.Generator,
    lift: Lift,
    score_at: ScoreAt,
    note: Note,
    *,
    baseline: Baselines = "black",
) -> Tensor:
    """DeepLIFT (Shrikumar et al., 2017) hands down the difference from a baseline's score, by the rescale rule.

    map = sum_c m_c (x_c - b_c). The multiplier of a nonlinear function is the slope of the straight line between what
    it does at the baseline and at the image, (h(x) - h(b)) / (x - b); multipliers follow each other by the chain rule,
    as slopes do. A product gives each factor the mean of the other one; a change of a maximum goes to the place that
    makes it. Norms are made of these, and so is attention: its softmax is exp(x - log sum exp x), x centred. So the
    map's sum is score(x) - score(b) but for rounding, in one step and not as a limit: see `notes` as in
    `integrated_gradients`. `baseline` as there; the maps of several are averaged, as in DeepLiftShap (Lundberg & Lee,
    2017). At a hidden layer x and b are its activations. NotApplicable names a function that has no multiplier. Cost:
    two forwards and a backward for every baseline.
    """
    images = all_baseline_images(baseline, inputs, black=black, white=white, generator=generator)
    total, below = torch.zeros_like(activations), torch.zeros_like(score_at())
    for image in images:
        added, score = lift(image)
        total += added / len(images)
        below += score / len(images)
    together = total.flatten(1).sum(1)
    note("baseline_score", below)
    note("sum", together)
    note("gap", together - (score_at() - below).to(together))
    return total
