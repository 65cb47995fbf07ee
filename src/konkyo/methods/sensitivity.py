"""Maps of a global sensitivity analysis: how much of the score's variation under random masks is due to each cell."""

from typing import Literal

import torch
from torch import Tensor

from konkyo.engine.needs import Rescore, Segment
from konkyo.errors import KonkyoError
from konkyo.methods.base import method
from konkyo.methods.game import Game, Hide, ran_of
from konkyo.methods.rise import per_place
from konkyo.utils.sobol import sobol_designs, sobol_points, total_indices
from konkyo.utils.tensors import resize, safe_divide


@method(layer="input", score="probability", holds_input=False)
def sobol(
    inputs: Tensor,
    black: Tensor,
    segment: Segment,
    rescore: Rescore,
    generator: torch.Generator,
    *,
    grid: int | tuple[int, ...] = 8,
    designs: int = 32,
    hide: Hide = "zero",
) -> Tensor:
    """Sobol' attribution (Fel et al., 2021) is the share of the score's variance in which a cell has a part.

    map = the total Sobol' index of every cell of a `grid`, enlarged bilinearly: ST_i = sum_n (f(A_n) - f(C_n))^2 / (2
    designs var_n f(A_n)), Jansen's estimator. A and B are (designs, d) masks of d cells with values in [0, 1], the
    halves of a scrambled Sobol' sequence; C is A with the column of cell i from B. A mask m has cells with hard edges,
    and the image seen through it is x m + (1 - m) hidden; `hide` as in `feature_ablation`. It counts what a cell does
    alone and together with others, and knows no sign. `designs`: a power of two keeps the sequence balanced. Cost:
    designs (d + 1) forwards, 2,080 by default; under a budget the sum is over the n that ran.
    """
    if designs < 2:
        raise KonkyoError(f"sobol needs designs >= 2, for a variance; got {designs}")
    game, sides = _cells(inputs, black, segment, grid, hide)
    values = game.play(rescore, {d: sobol_designs(designs, d, generator.initial_seed()) for d in game.sizes})
    indices = [
        total_indices(of_row.masked_fill(~ran_of(of_row), torch.nan), d)
        for d, of_row in zip(game.players, values, strict=True)
    ]
    return _enlarged(indices, sides, inputs)


@method(layer="input", score="probability", holds_input=False)
def hsic(
    inputs: Tensor,
    black: Tensor,
    segment: Segment,
    rescore: Rescore,
    generator: torch.Generator,
    *,
    grid: int | tuple[int, ...] = 8,
    designs: int = 500,
    hide: Hide = "zero",
    bandwidth: Literal["scores", "distances"] = "scores",
) -> Tensor:
    """HSIC attribution (Novello et al., 2022) is the dependence between the score and whether a cell is shown.

    map = HSIC_i of every cell of a `grid`, enlarged bilinearly: HSIC_i = sum(H K_i H * H L H) / n over n = `designs`
    masks, H = 1 - 1/n. K_i compares cell i in two masks, 3/2 - (a - b)^2, L the scores, exp(-(y - y')^2 / (2 s^2)). The
    masks are the points of a scrambled Sobol' sequence, rounded to 0 and 1. s is the median of the scores, as in the
    authors' code; `bandwidth` "distances" is the usual choice, the median of |y - y'|. It knows no sign. `hide` as in
    `feature_ablation`. Cost: `designs` forwards, whatever the grid.
    """
    if designs < 2:
        raise KonkyoError(f"hsic needs designs >= 2; got {designs}")
    game, sides = _cells(inputs, black, segment, grid, hide)
    masks = {d: sobol_points(designs, d, generator.initial_seed()) >= 0.5 for d in game.sizes}
    indices = []
    for d, values in zip(game.players, game.play(rescore, masks), strict=True):
        ran = ran_of(values)
        if not ran.any():
            indices.append(values.new_zeros(d))
            continue
        shown, y = masks[d][ran].to(values), values[ran]
        apart = (y[:, None] - y).abs()
        pairs = torch.tril_indices(len(y), len(y), -1)
        middle = y.median() if bandwidth == "scores" else apart[pairs[0], pairs[1]].median() if len(y) > 1 else y[0] * 0
        spread = middle if middle != 0 else y.std(correction=0)
        likeness = torch.exp(-safe_divide(apart**2, 2 * spread**2))
        centred = shown - shown.mean(0)
        indices.append(2 * ((likeness @ centred) * centred).sum(0) / len(y))
    return _enlarged(indices, sides, inputs)


def _cells(
    inputs: Tensor, black: Tensor, segment: Segment, grid: int | tuple[int, ...], hide: Hide
) -> tuple[Game, tuple[int, ...]]:
    """Returns the game of a grid's cells, and how many there are along every axis."""
    sides = per_place("grid", grid, inputs.shape[2:])
    return Game.of(inputs, black, segment("grid", sides), hide), sides


def _enlarged(values: list[Tensor], sides: tuple[int, ...], inputs: Tensor) -> Tensor:
    """Returns maps (N, *size) of every row's values of the cells (d,)."""
    kind = torch.promote_types(inputs.dtype, torch.float32)
    return resize(torch.stack(values).to(inputs.device, kind).view(-1, *sides), tuple(inputs.shape[2:]))
