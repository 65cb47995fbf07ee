"""torchvision's detectors as candidates: their own parts composed anew, so that nothing is suppressed on the way.

Labels: a class of torchvision's R-CNNs and SSDs is one more than the label here, for their column 0 is the background
and left out. RetinaNet and FCOS have no background: their columns are the labels as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSClassificationHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD, SSDScoringHead
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from konkyo.models.detectors import Detector, Kept
from konkyo.models.kinds import kind
from konkyo.targets.candidates import Candidates, pack
from konkyo.utils.tensors import at_least_float32

FeatureMaps: TypeAlias = Sequence[Tensor]
Reading: TypeAlias = Callable[[FeatureMaps, list[Tensor]], tuple[Tensor, Tensor]]
Group: TypeAlias = Literal["label", "level"]

_SMALLEST = 1e-2  # the side of a box that R-CNN keeps; torchvision means it in pixels of the resized image


@kind("torchvision", "object detector")
def describe(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns how a detector is one; None: another module."""
    del processor
    adapter = detector(module)
    return None if adapter is None else {"detector": adapter}


def detector(module: nn.Module) -> Detector | None:
    """Adapts a detector of torchvision (Faster, Mask and Keypoint R-CNN, FCOS, RetinaNet, SSD); None: another.

    Candidates are proposed in eval mode. A module with a predictor of its own making is another.
    """
    most_of: Group | None
    match module:
        case FasterRCNN(roi_heads=RoIHeads(box_predictor=FastRCNNPredictor(cls_score=scores)) as heads):
            classes, propose, limits, most_of = scores.out_features - 1, _propose_rcnn, heads, None
        case FCOS(head=nn.Module(classification_head=FCOSClassificationHead(num_classes=columns))):
            classes, propose, limits, most_of = columns, _propose_fcos, module, "level"
        case RetinaNet(head=nn.Module(classification_head=RetinaNetClassificationHead(num_classes=columns))):
            classes, propose, limits, most_of = columns, _propose_retinanet, module, "level"
        case SSD(head=nn.Module(classification_head=SSDScoringHead(num_columns=columns))):
            classes, propose, limits, most_of = columns - 1, _propose_ssd, module, "label"
        case _:
            return None
    masks = _masks if isinstance(module, MaskRCNN) else None
    return Detector(classes, propose, partial(_keep, limits, classes, most_of), "backbone", masks=masks)


# --- proposing -------------------------------------------------------------------------------------------------------


def _features(
    module: FasterRCNN | FCOS | RetinaNet | SSD, images: Tensor
) -> tuple[ImageList, OrderedDict[str, Tensor]]:
    """Returns the images as the network resizes them, and the backbone's levels, each (N, C, h, w)."""
    resized, _ = module.transform(images)
    features = module.backbone(resized.tensors)
    return resized, OrderedDict([("0", features)]) if isinstance(features, Tensor) else features


def _in_pixels(boxes: Tensor, resized: ImageList, images: Tensor) -> Tensor:
    """Returns boxes (..., 4) of the resized images, clipped to them, in pixels of the images that went in."""
    height, width = resized.image_sizes[0]
    scale = boxes.new_tensor([images.shape[3] / width, images.shape[2] / height])
    clipped: Tensor = clip_boxes_to_image(boxes, (height, width))
    return clipped * scale.repeat(2)


def _propose_rcnn(module: FasterRCNN, images: Tensor) -> Tensor:
    """Returns (N, Q, 5 K) of the Q regions that the RPN may propose; those it does not are zeros.

    Neither the weights of the head of regions nor the regions themselves get a gradient: torchvision cuts the latter.
    """
    resized, features = _features(module, images)
    with torch.no_grad():
        regions, _ = module.rpn(resized, features)
    maps = list(features.values())
    reading = partial(_read, module.roi_heads, list(features), resized.image_sizes)
    if torch.is_grad_enabled() and any(m.requires_grad for m in maps):
        logits, deltas = _RegionByRegion.apply(reading, regions, *maps)
    else:
        logits, deltas = reading(maps, regions)
    decoded = module.roi_heads.box_coder.decode(deltas, regions).reshape(*logits.shape, 4)[:, 1:]
    boxes, probabilities = _in_pixels(decoded, resized, images), logits.softmax(-1)[:, 1:]
    rows = pack(boxes[None], probabilities[None])[0]
    most = module.rpn.post_nms_top_n()
    images_rows = torch.split(rows, [len(r) for r in regions])
    return torch.stack([functional.pad(r, (0, 0, 0, most - len(r))) for r in images_rows])


def _masks(module: MaskRCNN, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Returns logits of the masks (N, D, m, m) of classes (D,) in boxes (D, 4) of every image."""
    resized, features = _features(module, images)
    height, width = resized.image_sizes[0]
    scale = boxes.new_tensor([width / images.shape[3], height / images.shape[2]]).repeat(2)
    pooled = module.roi_heads.mask_roi_pool(features, [boxes * scale] * len(images), resized.image_sizes)
    logits: Tensor = module.roi_heads.mask_predictor(module.roi_heads.mask_head(pooled))
    of_images = logits.reshape(len(images), len(boxes), *logits.shape[1:])
    return of_images[:, torch.arange(len(boxes), device=logits.device), labels + 1]


def _read(
    heads: RoIHeads, names: list[str], sizes: list[tuple[int, int]], maps: FeatureMaps, regions: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns logits (R, K + 1) and box deltas (R, 4 (K + 1)) of the regions of all images, in the images' order."""
    pooled = heads.box_roi_pool(OrderedDict(zip(names, maps, strict=True)), regions, sizes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    return logits, deltas


class _RegionByRegion(torch.autograd.Function):
    """A `Reading` whose backward reads again only the regions that a gradient comes from.

    Regions are independent of each other after pooling, and an instance is one region of a thousand. So the forward
    keeps no graph, and one more small forward is cheaper than a backward through all.
    """

    @staticmethod
    def forward(ctx: Any, reading: Reading, regions: list[Tensor], *maps: Tensor) -> tuple[Tensor, Tensor]:
        ctx.reading, ctx.regions = reading, regions
        ctx.save_for_backward(*maps)
        kind = maps[0].device.type
        ctx.autocast = {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }
        return reading(maps, regions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        maps = [m.detach().requires_grad_(w) for m, w in zip(ctx.saved_tensors, needed, strict=True)]
        chosen = torch.stack([(g != 0).any(1) for g in gradients]).any(0)  # also where a gradient is NaN
        split = torch.split(chosen, [len(r) for r in ctx.regions])
        regions = [r[c] for r, c in zip(ctx.regions, split, strict=True)]
        leaves = [m for m in maps if m.requires_grad]
        region_gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if any(len(r) for r in regions):
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                outputs = ctx.reading(maps, regions)
            region_gradients = torch.autograd.grad(outputs, leaves, [g[chosen] for g in gradients], allow_unused=True)
        results = iter(torch.zeros_like(m) if r is None else r for m, r in zip(leaves, region_gradients, strict=True))
        return None, None, *(next(results) if w else None for w in needed)


def _propose_ssd(module: SSD, images: Tensor) -> Tensor:
    """Returns (N, Q, 4 + K), Q the default boxes of all levels."""
    resized, levels, outputs = _dense(module, images)
    decoded = _decode(module, outputs["bbox_regression"], module.anchor_generator(resized, levels))
    return pack(_in_pixels(decoded, resized, images), outputs["cls_logits"].softmax(-1)[..., 1:])


def _propose_retinanet(module: RetinaNet, images: Tensor) -> Tensor:
    """Returns (N, Q, 4 + K), Q the anchors of all levels, with a mark after each level."""
    resized, levels, outputs = _dense(module, images)
    decoded = _decode(module, outputs["bbox_regression"], module.anchor_generator(resized, levels))
    return _mark_levels(pack(_in_pixels(decoded, resized, images), outputs["cls_logits"].sigmoid()), levels)


def _propose_fcos(module: FCOS, images: Tensor) -> Tensor:
    """Returns (N, Q, 4 + K), Q the locations of all levels, with a mark after each level."""
    resized, levels, outputs = _dense(module, images)
    anchors = torch.stack(module.anchor_generator(resized, levels))
    decoded = module.box_coder.decode(outputs["bbox_regression"], anchors)
    # sqrt(sigmoid * sigmoid) in logarithms: the gradient of the root is infinite where the product underflows to 0
    log_odds = functional.logsigmoid(outputs["cls_logits"]) + functional.logsigmoid(outputs["bbox_ctrness"])
    return _mark_levels(pack(_in_pixels(decoded, resized, images), (log_odds / 2).exp()), levels)


def _dense(module: FCOS | RetinaNet | SSD, images: Tensor) -> tuple[ImageList, list[Tensor], dict[str, Tensor]]:
    """Returns the resized images, the backbone's levels, and what the head says of all their anchors (N, Q, ...)."""
    resized, features = _features(module, images)
    levels = list(features.values())
    return resized, levels, module.head(levels)


def _decode(module: RetinaNet | SSD, deltas: Tensor, anchors: list[Tensor]) -> Tensor:
    """Returns boxes (N, Q, 4) in pixels of the resized images."""
    return torch.stack([module.box_coder.decode_single(d, a) for d, a in zip(deltas, anchors, strict=True)])


_MARK = -1.0  # every number of the box of a mark; boxes are clipped to the image, so none of them is like it


def _mark_levels(output: Tensor, levels: list[Tensor]) -> Tensor:
    """Adds an empty candidate after each level, so that `_keep` knows the levels, whatever the images' size."""
    areas = [m.shape[2] * m.shape[3] for m in levels]
    per_location = output.shape[1] // sum(areas)
    mark = functional.pad(output.new_full((len(output), 1, 4), _MARK), (0, output.shape[2] - 4))
    parts = torch.split(output, [per_location * a for a in areas], dim=1)
    return torch.cat([t for part in parts for t in (part, mark)], dim=1)


# --- keeping ---------------------------------------------------------------------------------------------------------


def _keep(
    limits: RoIHeads | FCOS | RetinaNet | SSD, classes: int, most_of: Group | None, output: Tensor, threshold: float
) -> list[Kept]:
    """Returns what the postprocessing of torchvision keeps, with the limits that the module has now.

    `most_of`: `topk_candidates` pairs of candidate and class at most go on of each level, or of each label. Without it
    (R-CNN) boxes of no size are left out instead.
    """
    output = at_least_float32(output.detach())
    lowest = max(threshold, limits.score_thresh, 0.0)
    detections = []
    for image, probabilities in zip(output, Candidates(output, classes).probabilities, strict=True):
        index, label = (probabilities > lowest).nonzero(as_tuple=True)
        if image.shape[1] == 4 + classes:
            boxes = image[index, :4]
        else:
            boxes = image[:, : 4 * classes].unflatten(1, (classes, 4))[index, label]
        scores = probabilities[index, label]
        if most_of is None:
            chosen = remove_small_boxes(boxes, _SMALLEST)
        else:
            groups = label if most_of == "label" else (image[:, 0] == _MARK).cumsum(0)[index]
            chosen = _best_of_each(groups, scores, limits.topk_candidates)
        left = batched_nms(boxes[chosen], scores[chosen], label[chosen], limits.nms_thresh)
        chosen = chosen[left[: limits.detections_per_img]]
        detections.append(Kept(index[chosen], label[chosen]))
    return detections


def _best_of_each(groups: Tensor, scores: Tensor, most: int) -> Tensor:
    """Returns the indices of the `most` best pairs of every group; groups (P,) from 0 on, scores (P,)."""
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = groups.bincount()
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[torch.arange(len(order), device=order.device) - first < most]
