"""Right for the right reasons: losses on what a model looks at outside of the object."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.errors import KonkyoError
from konkyo.metrics.distances import blank, on_grid
from konkyo.utils.tensors import at_least_float32, min_max, safe_divide


def right_reasons(images: Tensor, logits: Tensor, masks: Tensor) -> Tensor:
    """Returns the squared gradient outside the object (Ross et al., 2017, Eq. 1, second term). -> ()

    sum_d (A_d d/dx_d sum_k log p_k)^2 of an image x, d over its pixels and channels, A = 1 - mask. The result is the
    mean over the images that have a mask, as cross entropy's is a mean where the paper sums both. The caller's factor
    is the paper's lambda_1, of a size that makes both terms alike at the beginning. Batch norm in training mode takes
    what images have in common out of the gradient, and a network can hide there what it shows in eval mode.

    `images` (N, C, H, W) are what the forward that gave `logits` (N, K) was made of, `images.requires_grad_()` before;
    of one logit (N, 1) p is its sigmoid. `masks` (N, H, W) bool, or shares in [0, 1], of what may matter. An image
    whose mask is empty is not known and left out, as by the paper's A = 0. Cost: a backward to the images, and its own
    backward. KonkyoError: images that the logits do not depend on, shapes that do not match.
    """
    if images.ndim != 4 or masks.shape != (len(images), *images.shape[2:]) or len(logits) != len(images):
        raise KonkyoError(
            f"images (N, C, H, W), logits (N, K) and masks (N, H, W) were expected; got {tuple(images.shape)}, "
            f"{tuple(logits.shape)} and {tuple(masks.shape)}"
        )
    if not images.requires_grad:
        raise KonkyoError("the gradient by the images is asked for: images.requires_grad_() before the forward")
    with torch.autocast(images.device.type, enabled=False):
        both = at_least_float32(logits) if logits.shape[1] > 1 else functional.pad(at_least_float32(logits), (1, 0))
        total = functional.log_softmax(both, dim=1).sum()
        slope = None
        if total.requires_grad:
            (slope,) = torch.autograd.grad(total, images, create_graph=True, allow_unused=True)
        if slope is None:
            raise KonkyoError("these logits do not depend on these images: give the tensor that the network was run on")
        known = masks.flatten(1).any(1)
        outside = (1 - masks.to(slope)) * known[:, None, None]
        return (outside[:, None] * slope).square().sum() / known.sum().clamp_min(1)


def outside_energy(maps: Tensor, masks: Tensor) -> Tensor:
    """Returns the share of the maps that lies outside the object, 1 - EBPG, to be differentiated. -> () in [0, 1]

    1 - sum_mask m / sum m of maps (N, h, w) scaled to [0, 1] (energy-based pointing game, Wang et al., 2020), such as
    those of `konkyo.training.maps.TrainingMaps`. The result is the mean over the rows that have a map and a mask, 0
    where none has. `masks` (N, H, W), bool or shares: a cell counts with the share of it that the mask covers. Blank
    maps and empty masks are left out. Scaling takes the map's least value off, so a map cannot win by being high
    everywhere. One cell of a coarse map holds the object and what is around it, so 0 may be out of reach. KonkyoError:
    other shapes.
    """
    if maps.ndim != 3 or masks.ndim != 3 or len(masks) != len(maps):
        raise KonkyoError(
            f"a mask for each map, (N, h, w) and (N, H, W), was expected; got {tuple(maps.shape)} and "
            f"{tuple(masks.shape)}"
        )
    with torch.autocast(maps.device.type, enabled=False):
        rows = (masks.flatten(1).any(1).to(maps.device) & ~blank(maps)).nonzero()[:, 0]
        energy = min_max(at_least_float32(maps[rows]))
        inside = on_grid(masks.to(energy)[rows], (maps.shape[1], maps.shape[2]))
        shares = safe_divide((energy * inside).sum((1, 2)), energy.sum((1, 2)))
        return (1 - shares).sum() / max(len(rows), 1)
