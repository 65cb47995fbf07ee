"""Why a map says nothing, and which layer or score would."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal[
    "ok",
    "not finite",
    "zero gradient",
    "saturated",
    "incomplete",
    "unstable",
    "all negative",
    "constant",
    "not a cut",
    "moved",
    "is output",
    "from the text",
]


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis says whether a map can be read: its `kind` is "ok", or what is wrong.

    `message`: the cause and a way out; "" of "ok". All kinds are explained in docs/layers.md.
    """

    kind: Kind
    message: str = ""

    @property
    def ok(self) -> bool:
        """Returns whether the map can be read as it is."""
        return self.kind == "ok"


OK = Diagnosis("ok")
AROUND = 0.05
"""So much of the image's gradient may go around the automatic layer before its map is doubted."""
SAME = 0.99
"""A map that correlates more with the output than this repeats it."""
FROM_THE_TEXT = 0.05
"""An answer of whose score the image makes less than this share is taken to come from the text."""
SATURATED = 1e-4
"""A softmax probability so near to 0 or 1 has a gradient below a ten-thousandth of its logit's."""
GROWN = 1000.0
"""A map whose values are, in sum and without their signs, so many times what was handed down shows divisions by ~0."""
_NATS = -math.log(1 - FROM_THE_TEXT)
"""The same share of a probability, where the score is its logarithm."""


def diagnose(
    signed: Tensor,
    scores: Tensor,
    *,
    rectified: bool,
    largest_gradient: Tensor | None,
    missing: Tensor | None = None,
    grown: Tensor | None = None,
    probabilities: Sequence[Tensor | None],
    inside: bool,
    absent: Callable[[int], bool],
    way_out: Callable[[], str],
) -> tuple[Diagnosis, ...]:
    """Returns what is wrong with each of the signed maps (R, *grid), from the values that their method has seen anyway.

    `largest_gradient` (R,) absolute, where the method asked for gradients; `probabilities`: of every row whose score
    is a softmax probability, that probability; `inside`: whether the network itself makes them. `missing` (R,) is the
    share of the score that a sum which should be all of it leaves out; `grown` (R,) how many times the relevance that
    was handed down the map's values are, without their signs. `absent` tells whether a row's instance is not
    on its image; `way_out` names a layer that works. One transfer from the device for all maps.
    """
    flat = signed.flatten(1)
    columns = [flat.isfinite().all(1), scores.isfinite(), flat.amin(1), flat.amax(1)]
    columns.append(flat.new_full((len(flat),), math.inf) if largest_gradient is None else largest_gradient)
    if largest_gradient is None:
        probabilities = ()
    columns.append(
        torch.stack([signed.new_full((), 0.5) if p is None else p.to(signed) for p in probabilities])
        if len(probabilities)
        else flat.new_full((len(flat),), 0.5)
    )
    columns += [flat.new_zeros(len(flat)) if share is None else share for share in (missing, grown)]
    table = torch.stack([column.to(signed.dtype) for column in columns], dim=1).tolist()
    return tuple(_judge(values, rectified, inside, partial(absent, row), way_out) for row, values in enumerate(table))


_SCORE_NOT_FINITE = Diagnosis(
    "not finite",
    "the explained score itself is NaN or infinite: look for it in the image, the weights and the output (a class that "
    'is masked by -inf, or half precision: precision="fp32")',
)
_MAP_NOT_FINITE = Diagnosis(
    "not finite",
    "the map holds NaN or infinity: look for them in the image and the weights; half-precision overflow is usual "
    '(precision="fp32")',
)


def _judge(
    values: list[float], rectified: bool, inside: bool, absent: Callable[[], bool], way_out: Callable[[], str]
) -> Diagnosis:
    finite, finite_score, low, high, gradient, probability, missing, grown = values
    if not finite_score:
        return _SCORE_NOT_FINITE
    if not finite:
        return _MAP_NOT_FINITE
    if min(probability, 1 - probability) < SATURATED and low > -1e-3 and high < 1e-3:
        return Diagnosis(
            "saturated",
            f"the network's own sigmoid or softmax gives {probability:.6g}, so its gradient has all but vanished; let "
            "the network put out what goes into it, its logits (or, if it ends in a sigmoid, probabilities=True)"
            if inside
            else f"the softmax probability is {probability:.6g}, so its gradient has all but vanished; explain the "
            'logit: ClassTarget(index, score="logit")',
        )
    if gradient == 0 and absent():
        return Diagnosis(
            "zero gradient",
            "the gradient is exactly 0: nothing on this image is like the explained instance, so its score is 0",
        )
    if gradient == 0:
        return Diagnosis(
            "zero gradient",
            "the gradient is exactly 0: the score does not depend on this layer for this image, or the model runs what "
            f"lies between under a torch.no_grad() of its own; {way_out()}",
        )
    if missing > 0:
        return Diagnosis(
            "incomplete",
            f"{missing:.1%} of what adds up to the score is not in the map: the network adds constants where no "
            "function of torch shows them (compiled or scripted parts, recurrent layers, constants that are joined on, "
            "chosen or filled in); input_x_gradient and integrated_gradients do not need them",
        )
    if grown > GROWN:
        return Diagnosis(
            "unstable",
            f"the values of the map are together {grown:.2g} times the relevance that was handed down: the rules "
            'divided by sums near 0, and the map shows these; in convolutions composite="epsilon_plus" has no such '
            'sums, and bias="absorb" or a larger epsilon has fewer',
        )
    if low == high == 0 and rectified and not math.isinf(gradient):
        return Diagnosis(
            "all negative",
            "nothing at this layer speaks for the target: no gradient (or channel) is positive, and the map is blank. "
            f"hires_cam shows what speaks against it; {way_out()}",
        )
    if low == high:
        return Diagnosis(
            "constant",
            f"the map has the same value {low:g} everywhere: it points at nothing"
            + (" (the score does not depend on it, or it runs under a torch.no_grad() of its own)" if low == 0 else "")
            + f"; {way_out()}",
        )
    if rectified and high <= 0:
        return Diagnosis(
            "all negative",
            "every value is negative before the ReLU: at this layer everything speaks against the target, and the map "
            f"is blank. `signed` keeps the values; hires_cam shows both signs; {way_out()}",
        )
    return OK


def judge_cut(known: Sequence[Diagnosis], layer: str, shares: Sequence[float]) -> tuple[Diagnosis, ...]:
    """Returns the diagnoses of maps of an automatic layer that not everything passes.

    `shares`: how much of every row's gradient at the image goes around the layer.
    """
    return tuple(
        Diagnosis(
            "not a cut",
            f"{share:.0%} of the score's gradient at the image goes around layer {layer!r}, so the map lacks what was "
            "decided on there; no layer of this network has everything: name several with layer=[...], or explain at "
            'layer="input"',
        )
        if diagnosis.ok and share > AROUND
        else diagnosis
        for diagnosis, share in zip(known, shares, strict=True)
    )


def judge_output(known: Sequence[Diagnosis], layer: str, likeness: Sequence[float]) -> tuple[Diagnosis, ...]:
    """Returns the diagnoses of maps that repeat a dense output.

    `likeness`: the correlation of every row's map with the channel of the output that is explained; NaN where there is
    none.
    """
    return tuple(
        Diagnosis(
            "is output",
            f"the map is the prediction itself: it correlates by {alike:.3f} with the output that is explained, as at "
            f"a layer that the output is read from place by place, as {layer!r}. An earlier layer says what the "
            "prediction rests on: layer=None, or one that `konkyo layers` lists before it",
        )
        if diagnosis.ok and alike > SAME
        else diagnosis
        for diagnosis, alike in zip(known, likeness, strict=True)
    )


def judge_places(known: Sequence[Diagnosis], layers: Sequence[str]) -> tuple[Diagnosis, ...]:
    """Returns the diagnoses of maps of layers whose cells are not at their own places of the image."""
    moved = Diagnosis(
        "moved",
        f"the cells of layer {' and '.join(map(repr, layers))} change most where the image does not: the network "
        "turns, mirrors or mixes it before, so the map does not lie on the picture; layer=None takes one that does",
    )
    return tuple(moved if diagnosis.ok else diagnosis for diagnosis in known)


def judge_text(known: Sequence[Diagnosis], scores: Tensor, without: Tensor) -> tuple[Diagnosis, ...]:
    """Returns the diagnoses of answers that a network would give to a blank image, too.

    `scores` (R,) are those of the image, `without` (R,) those of the blank one: their difference is less than 5 % of
    the score, or of the probability. One transfer from the device.
    """
    pairs = torch.stack([scores, without.to(scores)], 1).tolist()
    return tuple(
        Diagnosis(
            "from the text",
            f"a blank image has the score {blank:.3g}, and this one {score:.3g}: the words before it make the answer, "
            "so the map shows what hardly mattered; a contrast may tell more: "
            'ContrastTarget(Answer("yes"), Answer("no"))',
        )
        if diagnosis.ok and score - blank < max(FROM_THE_TEXT * abs(score), _NATS if score <= 0 else 0.0)
        else diagnosis
        for diagnosis, (score, blank) in zip(known, pairs, strict=True)
    )
