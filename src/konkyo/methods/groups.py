"""Maps of groups of pixels: what each segment of the image adds to the score, when others are shown or hidden.

Such a method plays a game. Its players are the d segments of an image; the value v(z) of a coalition z in {0, 1}^d is
the score of the image in which the segments with z = 0 are hidden. v(1) is the image's score, v(0) that of the image
with all hidden. All targets of an image share its segments, its coalitions and their forwards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from konkyo.engine.needs import Note, Rescore, Segment
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.methods.game import Game, Hide, ran_of
from konkyo.utils.segments import Count, Segmentation
from konkyo.utils.tensors import safe_divide

_ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Scores that differ by no more than this share of the largest are one score."""


@method(layer="input", score="probability")
def feature_ablation(
    inputs: Tensor,
    black: Tensor,
    segment: Segment,
    rescore: Rescore,
    *,
    segments: Segmentation = "slic",
    count: Count = 50,
    hide: Hide = "mean",
    spread: bool = False,
) -> Tensor:
    """Feature ablation shows how far the score falls when a segment of the image is hidden.

    map = phi_g on every pixel of segment g, phi_g = v(1) - v(1 - e_g): the score less that of the image without g.
    `segments`: superpixels by "slic", "quickshift" or "felzenszwalb", a "grid", or segments (H, W) of the prepared
    image; about `count` of them. `hide`: a hidden segment shows its "mean" colour (a segment of one colour then hides
    nothing), 0 of the prepared image ("zero"), "black", the image under a "blur", or a value of the prepared image.
    `spread` divides phi_g by the segment's pixels, so that the map's sum is the sum of phi. Segments that only count
    together get nothing, as each is hidden alone. Cost: d + 1 forwards for d segments.
    """
    game = Game.of(inputs, black, segment(segments, count), hide)
    values = game.play(rescore, {d: torch.cat([torch.ones(1, d), 1 - torch.eye(d)]).bool() for d in game.sizes})
    return game.map([torch.where(ran_of(v) & ran_of(v[0]), v[0] - v, 0.0)[1:] for v in values], spread)


@method(layer="input", score="probability")
def lime(
    inputs: Tensor,
    black: Tensor,
    segment: Segment,
    rescore: Rescore,
    generator: torch.Generator,
    note: Note,
    *,
    samples: int = 1000,
    width: float = 0.25,
    ridge: float = 1.0,
    segments: Segmentation = "quickshift",
    count: Count = 50,
    hide: Hide = "mean",
    spread: bool = False,
) -> Tensor:
    """LIME (Ribeiro et al., 2016) is the linear model of which segments are shown that fits the score near the image.

    map = beta_g on every pixel of segment g. beta minimises sum_i pi_i (v(z_i) - b - beta . z_i)^2 + ridge |beta|^2
    with a free intercept b. z_1 shows all segments, every other z_i each of them with probability 1/2. pi_i =
    exp(-D_i^2 / (2 width^2)), D_i = 1 - sqrt(|z_i| / d), the cosine distance from z_1. No segments are selected: these
    are the weights of the authors' code for images. `ridge` shrinks beta, with a probability that hardly moves and 100
    samples strongly. `segments`, `count`, `hide` and `spread` as in `feature_ablation`; "quickshift" is as in the
    authors' code, and slow. The explanation's `notes` have `r2`, the share of the score's weighted variance that the
    fit accounts for: where it is low, no linear model of the segments says what the network does. Cost: `samples`
    forwards; under a budget the fit is to those that ran.
    """
    if samples < 1 or not 0 < width < math.inf or not 0 <= ridge < math.inf:
        raise KonkyoError(f"samples >= 1, width > 0 and ridge >= 0 were expected; got {samples}, {width}, {ridge}")

    def draw(d: int) -> Tensor:
        shown = torch.rand(samples, d, generator=_again(generator)) < 0.5
        shown[0] = True
        return shown

    game = Game.of(inputs, black, segment(segments, count), hide)
    coalitions = {d: draw(d) for d in game.sizes}
    weights, fits = [], []
    for d, values in zip(game.players, game.play(rescore, coalitions), strict=True):
        ran = ran_of(values)
        z, v = coalitions[d][ran].to(values), values[ran]
        near = torch.exp(-((1 - z.mean(1).sqrt()) ** 2) / (2 * width**2))
        share = safe_divide(near, near.sum())
        design, moved = z - share @ z, v - share @ v
        if len(v) and float(v.max() - v.min()) <= _ROUNDING * float(v.abs().max()):
            moved = torch.zeros_like(moved)  # what no segment changes is no evidence
        weights.append(_solve(design, moved, near, ridge))
        left = share @ (moved - design @ weights[-1]).square()
        fits.append(1 - safe_divide(left, share @ moved.square()) if moved.any() else values.new_tensor(torch.nan))
    note("r2", torch.stack(fits).to(inputs.device))
    return game.map(weights, spread)


@method(layer="input")
def kernel_shap(
    inputs: Tensor,
    black: Tensor,
    segment: Segment,
    rescore: Rescore,
    generator: torch.Generator,
    *,
    samples: int = 1000,
    segments: Segmentation = "slic",
    count: Count = 50,
    hide: Hide = "mean",
    spread: bool = False,
) -> Tensor:
    """KernelSHAP (Lundberg & Lee, 2017, Theorem 2) estimates every segment's Shapley value by a weighted regression.

    map = phi_g on every pixel of segment g. phi minimises sum_z pi(z) (v(z) - v(0) - phi . z)^2 among the phi whose sum
    is v(1) - v(0), pi(z) = (d - 1) / (C(d, k) k (d - k)) with k = |z|. All 2^d - 2 coalitions are run where that are
    `samples` or fewer, and phi are the Shapley values themselves. Otherwise `samples` are drawn with probability pi,
    each followed by its complement; repeats run once and count as often. The sum holds however few ran: it is solved
    for, and not a heavy weight. Where too few ran for one solution, phi is the one nearest to equal parts. Nothing is
    selected (shap's default keeps 10 features or so). `segments`, `count`, `hide` and `spread` as in
    `feature_ablation`. Cost: up to `samples` + 2 forwards.
    """
    if samples < 1:
        raise KonkyoError(f"kernel_shap needs samples >= 1; got {samples}")

    def design(d: int) -> tuple[Tensor, Tensor]:
        """Returns the coalitions (V, d) between none and the whole, and their weights pi (V,)."""
        every = d < 64 and 2**d - 2 <= samples
        return _all_coalitions(d) if every else _kernel_draws(d, samples, _again(generator))

    game = Game.of(inputs, black, segment(segments, count), hide)
    designs = {d: design(d) for d in game.sizes}
    coalitions = {d: torch.cat([_whole_and_none(d), shown]) for d, (shown, _) in designs.items()}
    phi = []
    for d, v in zip(game.players, game.play(rescore, coalitions), strict=True):
        if not ran_of(v[:2]).all():
            phi.append(v.new_zeros(d))
            continue
        shown, pi = (part.to(v) for part in designs[d])
        ran, gain = ran_of(v[2:]), v[0] - v[1]
        share = shown[ran].mean(1)  # phi is an equal part of the gain for all, and what adds up to 0
        apart = _solve(shown[ran] - share[:, None], v[2:][ran] - v[1] - share * gain, pi[ran])
        phi.append(gain / d + apart - apart.mean())
    return game.map(phi, spread)


@method(layer="input")
def shapley_sampling(
    inputs: Tensor,
    black: Tensor,
    segment: Segment,
    rescore: Rescore,
    generator: torch.Generator,
    note: Note,
    *,
    permutations: int = 10,
    segments: Segmentation = "slic",
    count: Count = 50,
    hide: Hide = "mean",
    spread: bool = False,
) -> Tensor:
    """Shapley value sampling (Castro et al., 2009) averages what a segment adds when segments appear in random order.

    map = phi_g on every pixel of segment g, phi_g = mean over orders of v(those before g, and g) - v(those before g).
    Every second order is the one before it backwards, which leaves less noise; `permutations` counts both. The sum of
    phi is v(1) - v(0) for any number of them, and a segment that never changes the score gets exactly 0. `segments`,
    `count`, `hide` and `spread` as in `feature_ablation`. The explanation's `notes` have `standard_error`, that of the
    segment whose phi is least certain, by the spread over pairs of an order and its reverse; NaN of fewer than two
    pairs. Cost: `permutations` (d - 1) + 2 forwards for d segments, 492
    for 50; under a budget the mean is over the orders that were completed.
    """
    if permutations < 1:
        raise KonkyoError(f"shapley_sampling needs permutations >= 1; got {permutations}")

    def orders(d: int) -> Tensor:
        one = torch.rand(-(-permutations // 2), d, generator=_again(generator)).argsort(1)
        return torch.stack([one, one.flip(1)], 1).flatten(0, 1)[:permutations]

    def prefixes(order: Tensor) -> Tensor:
        d = order.shape[1]
        shown = order.argsort(1)[:, None] < torch.arange(1, d)[:, None]  # (permutations, d - 1, d)
        return torch.cat([_whole_and_none(d), shown.flatten(0, 1)])

    game = Game.of(inputs, black, segment(segments, count), hide)
    order_of = {d: orders(d) for d in game.sizes}
    phi, errors = [], []
    for d, v in zip(game.players, game.play(rescore, {d: prefixes(of) for d, of in order_of.items()}), strict=True):
        whole, none = (end.expand(permutations, 1) for end in v[:2])
        chains = torch.cat([none, v[2:].view(permutations, d - 1), whole], 1)
        done = ran_of(chains).all(1)
        steps = torch.where(done[:, None], chains.diff(), 0.0)
        added = torch.zeros_like(steps).scatter(1, order_of[d], steps)  # (permutations, d): what each player adds
        phi.append(safe_divide(added.sum(0), done.sum()))
        pairs = permutations // 2 * 2
        both = done[:pairs].view(-1, 2).all(1)
        means = added[:pairs].view(-1, 2, d).mean(1)[both]
        spread_of = means.std(0).amax() if len(means) > 1 else v.new_tensor(torch.nan)
        errors.append(spread_of / max(len(means), 1) ** 0.5)
    note("standard_error", torch.stack(errors).to(inputs.device))
    return game.map(phi, spread)


def _whole_and_none(d: int) -> Tensor:
    """Returns the coalitions of all players and of none (2, d) bool."""
    return torch.tensor([[True], [False]]).expand(2, d)


def _again(generator: torch.Generator) -> torch.Generator:
    """Returns a generator that draws what this one does at first: the same for every number of players."""
    return torch.Generator().manual_seed(generator.initial_seed())


def _solve(design: Tensor, values: Tensor, weights: Tensor, ridge: float = 0.0) -> Tensor:
    """Returns the beta (d,) of least sum_i weights_i (values_i - design_i . beta)^2 + ridge |beta|^2; the smallest."""
    weighted = weights[:, None] * design
    gram = weighted.mT @ design + ridge * torch.eye(design.shape[1]).to(design)
    beta: Tensor = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ (weighted.mT @ values)
    return beta


def _all_coalitions(d: int) -> tuple[Tensor, Tensor]:
    """Returns all coalitions of d players but the whole and none, (2^d - 2, d) bool, and their weights pi(z).

    Those of the largest weights come first, each followed by its complement.
    """
    half = torch.arange(1, 2 ** (d - 1))  # without the last player: the complements have it
    shown = (half[:, None] >> torch.arange(d) & 1).bool()
    shown = torch.stack([shown, ~shown], 1).flatten(0, 1)
    pi = torch.tensor([(d - 1) / (math.comb(d, k) * k * (d - k)) for k in shown.sum(1).tolist()], dtype=torch.float64)
    order = pi.argsort(descending=True, stable=True)
    return shown[order], pi[order]


def _kernel_draws(d: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns different coalitions (V, d) bool, and how often each is among so many draws of KernelSHAP's."""
    sizes = torch.arange(1, d, dtype=torch.float64)
    k = 1 + torch.multinomial(1 / (sizes * (d - sizes)), -(-samples // 2), replacement=True, generator=generator)
    ranks = torch.rand(len(k), d, generator=generator).argsort(1).argsort(1)
    shown = ranks < k[:, None]
    shown = torch.stack([shown, ~shown], 1).flatten(0, 1)[:samples]
    kinds, which, times = torch.unique(shown, dim=0, return_inverse=True, return_counts=True)
    first = torch.full((len(kinds),), len(shown)).scatter_reduce_(0, which, torch.arange(len(shown)), "amin")
    order = first.argsort()
    return kinds[order], times[order].double()
