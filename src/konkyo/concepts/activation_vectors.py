"""tcav(): whether a score rises along a concept that the user shows by examples, tested against chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.concepts.features import features, one_layer, passes, targets_of
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError
from konkyo.explanation.inputs import Images, prepare
from konkyo.explanation.run import Where
from konkyo.models import Model, as_model
from konkyo.utils.tensors import safe_divide

_RIDGE = 0.01  # of the mean square of the features
_RANDOM = 99  # random concepts
ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class ConceptTest:
    """The test says on which share of images a score rises along a concept, and whether random concepts do the same."""

    score: float
    """The mean of `scores`: 1, the score rises along the concept on every image; 0, it falls on every one."""
    scores: Tensor
    """(sets,) one per random set that the concept was told apart from."""
    random_scores: Tensor
    """(sets,) those of random sets told apart from other random sets."""
    t_test: float
    """p of the paper's two-sided t-test between both. Too small: all of `scores` have the same concept images."""
    slope: float
    """The mean of d score / d features . v, v of length 1, over images and sets: how steeply the score rises."""
    random_slopes: Tensor
    """(99,) those of random images in the concept's place."""
    p_value: float
    """The share of random concepts whose slope is as far from 0 (the concept counts as one of them): at least 0.01."""
    accuracy: float
    """How well a linear classifier tells the concept from random images, each left out in turn; 0.5 is chance."""
    target: str
    layer: str

    @property
    def significant(self) -> bool:
        """Tells whether the concept differs from random ones (p < 0.05); of several concepts divide by their number."""
        return self.p_value < ALPHA

    def __repr__(self) -> str:
        verdict = "differs from" if self.significant else "cannot be told from"
        return (
            f"ConceptTest: {self.score:.2f} of the images score higher for {self.target} along the concept at "
            f"{self.layer}; it {verdict} random concepts (p = {self.p_value:.2g}); told from random images with "
            f"accuracy {self.accuracy:.2f}"
        )


def tcav(
    model: Model | nn.Module,
    images: Images,
    concept: Images,
    others: Images,
    *,
    target: Any = None,
    layer: Where = None,
    sets: int = 10,
    pooled: bool = False,
    batch: int = 16,
    seed: int = 0,
) -> ConceptTest:
    """Tests a concept that is shown by examples: TCAV (Kim et al., 2018), against random concepts.

    A concept's direction v is the normal of a linear classifier (ridge regression on +1 and -1) between the features of
    the `concept` images and those of as many random ones, drawn `sets` times from `others`. A score is the share of
    `images` with d score / d features . v > 0. With a linear head that share is 0 or 1 whatever the concept, and the
    paper's t-test calls many random concepts significant, so the p-value is another: that of the mean slope among 99
    random concepts, images of `others` in the concept's place. `target`: None for what is decided of every image, else
    as in `explain`, one per image; as a rule `images` are of one class and the target is this class. `pooled` takes
    the features' mean over the grid, so that v has no places. Costs a forward per image, and a backward to the layer
    per one of `images`. KonkyoError: fewer than 2 sets or concept images, `others` not twice as many as them.
    """
    adapted = as_model(model)
    read_off = isinstance(model, nn.Module)
    shown, examples, pool = (prepare(adapted, part, read_off=read_off).images for part in (images, concept, others))
    size = len(examples)
    if sets < 2 or size < 2:
        raise KonkyoError(f"2 sets and 2 images of the concept are needed at least; got {sets} and {size}")
    if len(pool) < 2 * size:
        raise KonkyoError(
            f"others: {2 * size} images or more were expected, twice those of the concept, for random sets that share "
            f"none; got {len(pool)}"
        )
    where = one_layer(adapted, layer, tuple(shown.shape[1:]))
    one, many = (_flat(features(adapted, part, where, batch, seed), pooled) for part in (examples, pool))
    if one.shape[1] != many.shape[1]:
        raise KonkyoError("the concept and the others have grids of different sizes at this layer; pooled=True")
    slopes, label = _slopes(adapted, shown, where, target, batch, seed)
    values = torch.cat([one, many])
    products, along = values @ values.mT, values @ _flat(slopes, pooled, total=True).mT
    generator, members = torch.Generator().manual_seed(seed), torch.arange(size)

    def measured(members: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (the scores (sets,), the slopes (sets,), the accuracies (sets,)) of images as a concept."""
        negatives = torch.stack([rest[torch.randperm(len(rest), generator=generator)[:size]] for _ in range(sets)])
        rows = torch.cat([members.expand(sets, -1), negatives], 1)
        weights, accuracy = separated(products[rows[:, :, None], rows[:, None, :]], size)
        rises = torch.einsum("sn,snm->sm", weights, along[rows])
        return (rises > 0).double().mean(1), rises.mean(1), accuracy

    scores, of_concept, accuracy = measured(members, size + torch.arange(len(many)))
    of_random, random_scores = list[Tensor](), list[Tensor]()
    for _ in range(_RANDOM):
        order = size + torch.randperm(len(many), generator=generator)
        shares, rises, _ = measured(order[:size], order[size:])
        of_random.append(rises.mean())
        random_scores.append(shares[0])
    random_slopes, slope = torch.stack(of_random).cpu(), of_concept.mean().cpu()
    beyond = int((random_slopes.abs() >= slope.abs()).sum())
    scores, null = scores.cpu(), torch.stack(random_scores[:sets]).cpu()
    return ConceptTest(
        score=float(scores.mean()),
        scores=scores,
        random_scores=null,
        t_test=welch(scores, null),
        slope=float(slope),
        random_slopes=random_slopes,
        p_value=(1 + beyond) / (1 + _RANDOM),
        accuracy=float(accuracy.mean()),
        target=label,
        layer=where.name,
    )


def separated(products: Tensor, positive: int) -> tuple[Tensor, Tensor]:
    """Returns the weights (B, n) whose sum over features is the unit normal between two groups, and its accuracy (B,).

    `products` (B, n, n) are those of features, the `positive` ones first. Ridge regression on +1 and -1 with a free
    intercept, in its dual form: as many unknowns as there are images. The accuracy is that with each left out in turn.
    """
    count = products.shape[-1]
    labels = torch.cat([products.new_ones(positive), -products.new_ones(count - positive)])
    centring = torch.eye(count).to(products) - 1 / count
    centred = centring @ products @ centring
    ridge = (_RIDGE * centred.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(1e-12)
    inverse = torch.linalg.inv(centred + ridge[:, None, None] * torch.eye(count).to(products))
    weights = (inverse @ (labels - labels.mean())) @ centring
    lengths = torch.einsum("bn,bnm,bm->b", weights, products, weights).clamp_min(0).sqrt()
    hat = centred @ inverse + 1 / count  # the intercept is fitted, too
    left_out = labels - (labels - hat @ labels) / (1 - hat.diagonal(dim1=-2, dim2=-1)).clamp_min(1e-12)
    return safe_divide(weights, lengths[:, None]), ((left_out * labels) > 0).double().mean(1)


def _flat(values: Tensor, pooled: bool, *, total: bool = False) -> Tensor:
    """Returns features (N, C, *grid) as rows; pooled: their mean over the grid, or of gradients the sum."""
    places = values.flatten(2)
    if pooled:
        return (places.sum(2) if total else places.mean(2)).double()
    return places.flatten(1).double()


def _slopes(model: Model, images: Tensor, layer: Any, target: Any, batch: int, seed: int) -> tuple[Tensor, str]:
    """Returns d score / d features (N, C, *grid), and what was explained."""
    session, slopes, labels = untouched(model.module, seed), list[Tensor](), list[str]()
    with session, session:
        for made in passes(model, images, layer, batch, gradients=True):
            targets, names = targets_of(model, made, target, len(labels))
            slopes.append(made.gradients(tuple(range(len(targets))), targets, layer).detach())
            labels += names
    kinds = list(dict.fromkeys(labels))
    return torch.cat(slopes), kinds[0] if len(kinds) == 1 else "what is decided of each"


def welch(one: Tensor, other: Tensor) -> float:
    """Returns p of Welch's two-sided t-test; of two groups without spread 1 where they are equal, else 0."""
    parts = [float(group.double().var()) / len(group) for group in (one, other)]
    gap, spread = float(one.double().mean() - other.double().mean()), sum(parts)
    if spread == 0:
        return float(gap == 0)
    from scipy.special import stdtr  # loads in a sixth of the time of scipy.stats

    freedom = spread**2 / sum(p**2 / (len(group) - 1) for p, group in zip(parts, (one, other), strict=True))
    return float(2 * stdtr(freedom, -abs(gap) / math.sqrt(spread)))
