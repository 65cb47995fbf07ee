"""Maps made of the same image at several sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.engine.needs import On
from konkyo.errors import KonkyoError, NetworkError, NotApplicable
from konkyo.methods.base import method
from konkyo.targets.base import Target, as_target
from konkyo.targets.classes import class_logits
from konkyo.utils.tensors import resize

_CHANNELS = 32  # that are enlarged at once


@method(rectified=True)
def cameras(
    inputs: Tensor,
    output: Tensor,
    activations: Tensor,
    gradients: Tensor,
    targets: Sequence[Target],
    on: On,
    *,
    scales: tuple[float, ...] | None = (1.0, 1.45, 1.89, 2.34, 2.79, 3.23, 3.68, 4.12),
) -> Tensor:
    """CAMERAS (Jalwana et al., CVPR 2021) averages activations and gradients over sizes of the image, each by itself.

    map = ReLU(sum_k mean_s(A_k) mean_s(G_k)) at the image's own size, to which A_k and G_k of every size s are
    enlarged; the image is enlarged by `scales` (bicubic), as the authors' 224, 324, ..., 924 pixels. Sizes at which the
    network decides otherwise than on the image itself are left out. Not where the network takes one size only. For a
    class of a classifier. Cost: a forward and a backward per size, of 61 times the image's pixels by default.
    """
    factors = scales or ()
    if not factors or not all(isinstance(f, (int, float)) and 0 < f < math.inf for f in factors):
        raise KonkyoError(f"cameras needs scales, positive numbers, at least one; got {scales!r}")
    if inputs.ndim != 4 or any(as_target(target).class_index is None for target in targets):
        raise NotApplicable("compares the decision at several sizes of a picture; needs a class as target")
    size = tuple(inputs.shape[2:])
    decided = class_logits(output).argmax(1)
    pairs, agreements = list[tuple[Tensor, Tensor]](), list[Tensor]()
    for factor in factors:
        sides = tuple(max(1, round(side * factor)) for side in size)
        if sides == size:
            pairs.append((activations, gradients))
            agreements.append(torch.ones_like(decided, dtype=torch.bool))
            continue
        try:
            probe = on(functional.interpolate(inputs, sides, mode="bicubic"))
        except NetworkError as error:
            raise NotApplicable(f"enlarges the image, and the network takes one size: {error}") from error
        pairs.append((probe.activations, probe.gradients))
        agreements.append(class_logits(probe.output).argmax(1) == decided)
    weights = torch.stack(agreements).to(inputs)  # (scales, N)
    if not weights.sum(0).all():
        raise NotApplicable("found no size at which the network decides as on the image; scales with 1 have one")
    weights = weights / weights.sum(0)
    total = inputs.new_zeros(len(inputs), *size)
    for start in range(0, pairs[0][0].shape[1], _CHANNELS):
        part = slice(start, start + _CHANNELS)

        def mean(which: int, part: slice = part) -> Tensor:
            """Returns the mean over the sizes of some channels, on the image's own grid."""
            return sum(
                (
                    resize(pair[which][:, part].flatten(0, 1), size).view(len(inputs), -1, *size) * w.view(-1, 1, 1, 1)
                    for pair, w in zip(pairs, weights, strict=True)
                ),
                inputs.new_zeros(()),
            )

        total += (mean(0) * mean(1)).sum(1)
    return total
