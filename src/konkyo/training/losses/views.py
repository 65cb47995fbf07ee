"""Attention consistency: the map of a mirrored or cut-out image is the mirrored or cut-out map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from konkyo.errors import KonkyoError
from konkyo.utils.tensors import at_least_float32


class Views(NamedTuple):
    """The views show parts of images, some of them mirrored."""

    images: Tensor
    """(N, C, H, W), as large as the images."""
    boxes: Tensor
    """(N, 4) float32 xyxy: the part of the image that is seen, in shares of its width and height."""
    mirrored: Tensor
    """(N,) bool: left and right are exchanged, after the cut."""


def random_views(images: Tensor, generator: torch.Generator, *, least: float = 0.5, mirror: bool = True) -> Views:
    """Draws a view of every image: a part with `least` to all of its area, mirrored with probability 1/2.

    A part has the image's proportions. `least=1` cuts nothing, and the view is then the image or its exact mirror. Else
    it is read by bilinear interpolation. `images` (N, C, H, W); the generator may live on another device. KonkyoError:
    other shapes, least outside of (0, 1].
    """
    if images.ndim != 4 or not 0 < least <= 1:
        raise KonkyoError(f"images (N, C, H, W) and 0 < least <= 1 were expected; got {tuple(images.shape)}, {least}")
    draws = torch.rand((4, len(images)), generator=generator, device=generator.device).to(images.device)
    side = (least + (1 - least) * draws[0]).sqrt()
    left, top = draws[1] * (1 - side), draws[2] * (1 - side)
    boxes = torch.stack([left, top, left + side, top + side], 1)
    mirrored = (draws[3] < 0.5) & mirror
    seen = images if least == 1 else _cut(images, boxes)
    return Views(torch.where(mirrored[:, None, None, None], seen.flip(-1), seen), boxes, mirrored)


def aligned(maps: Tensor, views: Views) -> Tensor:
    """Returns the maps of the images as their views see them. -> (N, h, w) or (N, K, h, w), as they came

    Every cell of the result is read at its place in the image, which the view's transform inverted gives. Where a view
    shows all of the image that is exact, a flip; else it is bilinear between cell centres (`grid_sample`, borders
    repeated). Differentiable. KonkyoError: maps of another shape.
    """
    if maps.ndim not in (3, 4) or len(maps) != len(views.boxes):
        raise KonkyoError(
            f"maps (N, h, w) or (N, K, h, w) of {len(views.boxes)} views were expected; got {tuple(maps.shape)}"
        )
    grids = maps if maps.ndim == 4 else maps[:, None]
    whole = (views.boxes == views.boxes.new_tensor([0.0, 0.0, 1.0, 1.0])).all(1)
    seen = torch.where(whole[:, None, None, None], grids, _cut(grids, views.boxes))
    seen = torch.where(views.mirrored[:, None, None, None], seen.flip(-1), seen)
    return seen if maps.ndim == 4 else seen[:, 0]


def attention_consistency(maps: Tensor, of_views: Tensor, views: Views) -> Tensor:
    """Returns how far the maps of views are from the views of maps (Guo et al., CVPR 2019). -> ()

    The mean of (T(M(x)) - M(T(x)))^2 over images, classes and cells, T being a view and M the map as it is, not scaled:
    the attention consistency loss in the form of the authors' code. Gradients go through both maps. `maps` and
    `of_views` (N, h, w) or (N, K, h, w) of one grid, of `TrainingMaps` or any other maps with a graph. The paper takes
    the CAMs of all labels, adds the classification loss of both branches, and mirrors and scales. Cost: another forward
    and backward, of the views. Maps of zeros are consistent. KonkyoError: maps of two shapes.
    """
    if maps.shape != of_views.shape:
        raise KonkyoError(
            f"maps of images and of views on one grid were expected; got {tuple(maps.shape)}, {tuple(of_views.shape)}"
        )
    with torch.autocast(maps.device.type, enabled=False):
        return functional.mse_loss(aligned(at_least_float32(maps), views), at_least_float32(of_views))


def _cut(values: Tensor, boxes: Tensor) -> Tensor:
    """Reads a part of every grid on as many cells as all of it has."""
    left, top, right, bottom = boxes.to(values).unbind(1)
    none = torch.zeros_like(left)
    rows = (right - left, none, left + right - 1, none, bottom - top, top + bottom - 1)
    grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(values.shape), align_corners=False)
    return functional.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
