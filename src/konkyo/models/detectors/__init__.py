"""What adapters of detectors give: candidates in the autograd graph, and which of them the detector keeps."""

import torch
from torch import Tensor

from konkyo.tasks.detection import Detector, Kept, best_class, best_pairs
from konkyo.utils.tensors import at_least_float32

__all__ = ["Detector", "Kept", "best_class", "best_pairs", "boxes_in_pixels"]


def boxes_in_pixels(boxes: Tensor, images: Tensor) -> Tensor:
    """Returns boxes (N, Q, 4), centre and size as shares of the images (N, C, H, W), as xyxy in their pixels."""
    height, width = images.shape[2:]
    centres, sides = torch.split(at_least_float32(boxes), 2, -1)
    corners = torch.cat([centres - sides / 2, centres + sides / 2], -1)
    return corners * corners.new_tensor([width, height, width, height])
