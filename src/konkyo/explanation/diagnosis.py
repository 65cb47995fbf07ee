"""Why a map says nothing, and which layer or score would."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal["ok", "not finite", "zero gradient", "saturated", "incomplete", "all negative", "constant"]


@dataclass(frozen=True)
class Diagnosis:
    """Whether a map is meaningful: `kind` is "ok", or says what is wrong; `message` gives the cause and a way out."""

    kind: Kind
    message: str = ""

    @property
    def ok(self) -> bool:
        """Returns whether the map can be read as it is."""
        return self.kind == "ok"


OK = Diagnosis("ok")
SATURATED = 1e-4
"""A softmax probability so near to 0 or 1 has a gradient below a ten-thousandth of its logit's."""


def diagnose(
    signed: Tensor,
    *,
    rectified: bool,
    largest_gradient: Tensor | None,
    missing: Tensor | None = None,
    probabilities: Sequence[Tensor | None],
    way_out: Callable[[], str],
) -> tuple[Diagnosis, ...]:
    """Returns what is wrong with each of the signed maps (R, *grid), from the values that their method has seen anyway.

    `largest_gradient` (R,) absolute, where the method asked for gradients; `probabilities`: of every row whose score
    is a softmax probability, that probability; `missing` (R,) the share of the score that a sum which should be all of
    it leaves out; `way_out` names a layer that works. One transfer from the device for all maps.
    """
    flat = signed.flatten(1)
    columns = [flat.isfinite().all(1), flat.amin(1), flat.amax(1)]
    columns.append(flat.new_full((len(flat),), math.inf) if largest_gradient is None else largest_gradient)
    if largest_gradient is None:
        probabilities = ()
    columns.append(
        torch.stack([signed.new_full((), 0.5) if p is None else p.to(signed) for p in probabilities])
        if len(probabilities)
        else flat.new_full((len(flat),), 0.5)
    )
    columns.append(flat.new_zeros(len(flat)) if missing is None else missing)
    table = torch.stack([column.to(signed.dtype) for column in columns], dim=1).tolist()
    return tuple(_judge(row, rectified, way_out) for row in table)


def _judge(row: list[float], rectified: bool, way_out: Callable[[], str]) -> Diagnosis:
    finite, low, high, gradient, probability, missing = row
    if not finite:
        return Diagnosis(
            "not finite",
            "the map holds NaN or infinity: look for them in the image and the weights; half-precision overflow is "
            'usual (precision="fp32"), and Grad-CAM++ and XGrad-CAM divide by sums that signed activations can make 0',
        )
    if min(probability, 1 - probability) < SATURATED and low > -1e-3 and high < 1e-3:
        return Diagnosis(
            "saturated",
            f"the softmax probability is {probability:.6g}, so its gradient has all but vanished; explain the logit: "
            'ClassTarget(index, score="logit")',
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
    if low == high == 0 and rectified and not math.isinf(gradient):
        return Diagnosis(
            "all negative",
            "nothing at this layer speaks for the target: no gradient (or channel) is positive, and the map is blank. "
            f"hires_cam shows what speaks against it; {way_out()}",
        )
    if low == high:
        return Diagnosis(
            "constant",
            f"the map has the same value {low:g} everywhere: it points at nothing; {way_out()}",
        )
    if rectified and high <= 0:
        return Diagnosis(
            "all negative",
            "every value is negative before the ReLU: at this layer everything speaks against the target, and the map "
            f"is blank. `signed` keeps the values; hires_cam shows both signs; {way_out()}",
        )
    return OK
