"""torchvision's detectors: their candidates, kept and differentiated, against the library's own forward."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
    RetinaNet,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from konkyo.models.detectors import Detector, Kept
from konkyo.models.detectors.torchvision import detector
from konkyo.targets.candidates import Candidates

COLUMNS, WIDTH = 4, 64
ZOOM = {"min_size": 96, "max_size": 130}
FAMILIES = ["faster_rcnn", "mask_rcnn", "keypoint_rcnn", "fcos", "retinanet", "ssd", "ssdlite"]
REGIONS = 40


class Levels(nn.Module):
    """A backbone of three levels, for SSD."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.steps = nn.ModuleList([nn.Conv2d(8, 8, 3, 2, 1) for _ in range(3)])
        self.out_channels = [8, 8, 8]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x, found = self.stem(x), OrderedDict()
        for k, step in enumerate(self.steps):
            x = found[str(k)] = torch.tanh(step(x))
        return found


def pyramid() -> nn.Module:
    return resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )


def narrow_pyramid() -> nn.Module:
    stages = {f"layer{k + 1}": str(k) for k in range(4)}
    network = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    return BackboneWithFPN(network, stages, [64, 128, 256, 512], WIDTH, LastLevelMaxPool())


def rcnn(kind: Callable[..., nn.Module], **heads: nn.Module) -> nn.Module:
    """With narrow heads."""
    network = kind(
        narrow_pyramid(),
        box_head=TwoMLPHead(WIDTH * 49, 64),
        box_predictor=FastRCNNPredictor(64, COLUMNS),
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_post_nms_top_n_test=REGIONS,
        rpn_pre_nms_top_n_test=20,
        box_detections_per_img=30,
        **heads,
        **ZOOM,
    )
    pool = network.roi_heads.box_roi_pool
    pool.canonical_scale, pool.canonical_level = 16, 3  # so that images as small as these use several levels
    network.roi_heads.box_predictor.cls_score.weight.data *= 3
    network.roi_heads.box_predictor.bbox_pred.weight.data *= 3
    return network


def dense(kind: Callable[..., nn.Module], anchors: AnchorGenerator, **limits: Any) -> nn.Module:
    network = kind(pyramid(), num_classes=COLUMNS, anchor_generator=anchors, **ZOOM, **limits)
    head = network.head
    head.classification_head.cls_logits.bias.data.fill_(-1)
    for part in (*head.classification_head.modules(), *head.regression_head.modules()):
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=1.5 / (part.in_channels * 9) ** 0.5)
    weight = head.classification_head.cls_logits.weight
    weight.data -= weight.data.mean((1, 2, 3), keepdim=True)  # or one class wins everywhere
    head.regression_head.bbox_reg.weight.data *= 0.2
    head.regression_head.bbox_reg.bias.data.fill_(1)
    return network


def build(family: str) -> nn.Module:
    sizes = ((12,), (24,), (48,), (80,), (96,))
    if family == "faster_rcnn":
        return rcnn(FasterRCNN)
    if family == "mask_rcnn":
        return rcnn(
            MaskRCNN, mask_head=MaskRCNNHeads(WIDTH, (32, 32), 1), mask_predictor=MaskRCNNPredictor(32, 32, COLUMNS)
        )
    if family == "keypoint_rcnn":
        return rcnn(
            KeypointRCNN,
            keypoint_head=KeypointRCNNHeads(WIDTH, (32, 32)),
            keypoint_predictor=KeypointRCNNPredictor(32, 5),
        )
    if family == "fcos":
        anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
        return dense(FCOS, anchors, topk_candidates=20, detections_per_img=25)
    if family == "retinanet":
        anchors = AnchorGenerator(sizes, ((0.5, 1.0),) * 5)
        return dense(RetinaNet, anchors, topk_candidates=20, detections_per_img=25)
    if family == "ssd":
        anchors = DefaultBoxGenerator([[2], [2, 3], [2]])
        return SSD(Levels(), anchors, (96, 80), COLUMNS, topk_candidates=20, detections_per_img=25)
    return ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=COLUMNS, topk_candidates=20, detections_per_img=25
    )


_BUILT: dict[str, nn.Module] = {}


def network(family: str) -> nn.Module:
    """A frozen network of a family, in eval mode."""
    if family not in _BUILT:
        torch.manual_seed(3)
        built = build(family).eval().requires_grad_(False)
        for part in built.modules():  # batch norms with statistics, or deep random networks see nothing
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
        with torch.no_grad():
            built.backbone.train()
            built.backbone(torch.randn(4, 3, 96, 128))
            built.eval()
        _BUILT[family] = built
    return _BUILT[family]


def images(count: int = 2) -> Tensor:
    noise = torch.rand(count, 3, 9, 12, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, (73, 101), mode="bilinear")


def known(family: str) -> tuple[nn.Module, Detector]:
    module = network(family)
    found = detector(module)
    assert found is not None
    return module, found


def read(found: Detector, row: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """The boxes (D, 4) and scores (D,) of an image's kept candidates."""
    candidates = Candidates(row[None], found.classes)
    pairs = list(zip(kept.index.tolist(), kept.label.tolist(), strict=True))
    boxes = torch.stack([candidates.boxes(k)[0, q] for q, k in pairs])
    return boxes, torch.stack([candidates.probabilities[0, q, k] for q, k in pairs])


@contextmanager
def leaves(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within it, the backbone's levels are leaves; the dictionary holds those of the last forward."""
    held: dict[str, Tensor] = {}

    def hook(_module: nn.Module, _args: Any, output: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        held.clear()
        held.update({k: v.detach().clone().requires_grad_() for k, v in output.items()})
        return OrderedDict(held)

    handle = module.backbone.register_forward_hook(hook)
    try:
        yield held
    finally:
        handle.remove()


def gradients(value: Tensor, levels: dict[str, Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, list(levels.values()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, levels.values(), strict=True)]


def close(mine: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-4) -> None:
    largest = max(float(t.abs().max()) for t in theirs)
    assert largest > 0
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_is_what_the_library_detects(family: str) -> None:
    module, found = known(family)
    with torch.no_grad():
        output = found.propose(module, images())
        theirs = module(list(images()))
    assert Candidates(output, found.classes).probabilities.shape[0] == 2
    first = 0 if family in ("fcos", "retinanet") else 1
    for row, kept, said in zip(output, found.keep(output, 0.0), theirs, strict=True):
        assert len(said["scores"]) > 5
        boxes, scores = read(found, row, kept)
        torch.testing.assert_close(scores, said["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(boxes, said["boxes"], rtol=0, atol=1e-2)  # of a hundred pixels
        assert torch.equal(kept.label + first, said["labels"])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_library(family: str) -> None:
    """Of scores and box sides with regard to all levels; the library's own forward has a graph, too."""
    module, found = known(family)
    for image in images():
        with leaves(module) as levels:
            theirs = module([image])[0]
            reference = dict(levels)
            output = found.propose(module, image[None])
        boxes, scores = read(found, output[0], found.keep(output, 0.0)[0])
        for d in (0, len(scores) // 2, len(scores) - 1):
            close(gradients(scores[d], levels), gradients(theirs["scores"][d], reference))
        width, widths = boxes[0, 2] - boxes[0, 0], theirs["boxes"][:, 2] - theirs["boxes"][:, 0]
        area = width * (boxes[0, 3] - boxes[0, 1])
        own = widths[0] * (theirs["boxes"][0, 3] - theirs["boxes"][0, 1])
        if own.requires_grad and max(g.abs().max() for g in gradients(own, reference)) > 0:
            close(gradients(area, levels), gradients(own, reference))
        total, own_total = scores.log().sum(), theirs["scores"].log().sum()
        close(gradients(total, levels), gradients(own_total, reference))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_images_one_by_one(family: str) -> None:
    """In float64: a ReLU whose input is 0 but for rounding has a gradient in one of the two, and none in the other."""
    module, found = known(family)
    module = copy.deepcopy(module).double()
    batch = images().double()
    with leaves(module) as levels:
        together = found.propose(module, batch)
    of_batch = gradients(Candidates(together, found.classes).probabilities[:, :7].sum(), levels)
    for k, image in enumerate(batch):
        with leaves(module) as levels:
            alone = found.propose(module, image[None])
        torch.testing.assert_close(together[k], alone[0], rtol=0, atol=1e-3)
        own = gradients(Candidates(alone, found.classes).probabilities[:, :7].sum(), levels)
        close([g[k : k + 1] for g in of_batch], own)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_higher_threshold_keeps_the_best_of_the_same(family: str) -> None:
    module, found = known(family)
    with torch.no_grad():
        output = found.propose(module, images())
    for row, all_kept, middle in zip(output, found.keep(output, 0.0), range(2), strict=True):
        _, scores = read(found, row, all_kept)
        threshold = float(scores[len(scores) // 2])
        some = found.keep(output, threshold)[middle]
        count = int((scores > threshold).sum())
        assert 0 < count < len(scores)
        assert torch.equal(some.index, all_kept.index[:count])
        assert torch.equal(some.label, all_kept.label[:count])
    assert [len(k.index) for k in found.keep(output, 1.0)] == [0, 0]


@pytest.mark.parametrize("family", ["faster_rcnn", "fcos", "retinanet", "ssd"])
def test_the_limits_are_those_the_module_has_now(family: str) -> None:
    module, found = known(family)
    limits = module.roi_heads if family == "faster_rcnn" else module
    names = ("detections_per_img", "nms_thresh", "score_thresh")
    before = {name: getattr(limits, name) for name in names}
    with torch.no_grad():
        output = found.propose(module, images(1))
        _, scores = read(found, output[0], found.keep(output, 0.0)[0])
        try:
            limits.detections_per_img, limits.nms_thresh, limits.score_thresh = 1000, 0.2, float(scores[-1]) * 0.97
            (kept,), (theirs,) = found.keep(output, 0.0), module(list(images(1)))
            limits.score_thresh = 0.0
            (more,) = found.keep(output, 0.0)
        finally:
            for name in names:
                setattr(limits, name, before[name])
    torch.testing.assert_close(read(found, output[0], kept)[1], theirs["scores"], rtol=0, atol=1e-4)
    assert len(scores) != len(kept.index) < len(more.index)


def test_boxes_of_no_size_are_not_kept() -> None:
    """Those of one class lie beyond the image here; R-CNN drops what is left of them at the border."""
    module, found = known("faster_rcnn")
    bias = module.roi_heads.box_predictor.bbox_pred.bias
    before = bias.clone()
    try:
        bias.data[4 * 2] = 1e4
        with torch.no_grad():
            output = found.propose(module, images(1))
            (kept,), (theirs,) = found.keep(output, 0.0), module(list(images(1)))
    finally:
        bias.data.copy_(before)
    assert (Candidates(output, found.classes).boxes(1)[0, :, ::2].diff() == 0).all()
    assert torch.equal(kept.label + 1, theirs["labels"])
    assert 1 not in kept.label


def test_boxes_lie_in_the_images_that_went_in() -> None:
    for family in FAMILIES:
        module, found = known(family)
        with torch.no_grad():
            output = found.propose(module, images(1))
        boxes = torch.cat([Candidates(output, found.classes).boxes(k)[0] for k in range(found.classes)])
        boxes = boxes[boxes[:, 0] >= 0]
        assert boxes.amin() >= 0
        assert boxes[:, 2].max() <= 101.001
        assert boxes[:, 3].max() <= 73.001
        if "rcnn" not in family:  # whose boxes are small here
            assert boxes[:, 2].max() > 100.99
            assert boxes[:, 3].max() > 72.99


def test_each_level_has_its_own_best() -> None:
    """The limit on candidates holds within levels: an overall limit as large in sum would keep others."""
    module, found = known("retinanet")
    with torch.no_grad():
        output = found.propose(module, images(1))
    marks = (output[0, :, 0] < 0).nonzero()[:, 0]
    assert len(marks) == 5
    assert marks[-1] == output.shape[1] - 1
    assert Candidates(output, found.classes).probabilities[0, marks].sum() == 0
    module.nms_thresh, before = 1.0, module.nms_thresh
    module.detections_per_img, most = 1000, module.detections_per_img
    try:
        (kept,) = found.keep(output, 0.0)
    finally:
        module.nms_thresh, module.detections_per_img = before, most
    counts = torch.bucketize(kept.index, marks).bincount(minlength=5).tolist()
    assert counts[:3] == [20, 20, 20]


def test_regions_that_are_not_proposed_are_zeros() -> None:
    module, found = known("faster_rcnn")
    resized, _ = module.transform(list(images()))
    before = module.rpn.score_thresh
    try:
        with torch.no_grad():
            features = module.backbone(resized.tensors)
            scores = torch.cat([level.flatten(1) for level in module.rpn.head(list(features.values()))[0]], 1).sigmoid()
            module.rpn.score_thresh = float(scores.topk(8).values.amin())
            counts = [len(r) for r in module.rpn(resized, features)[0]]
            output = found.propose(module, images())
    finally:
        module.rpn.score_thresh = before
    assert output.shape == (2, REGIONS, 5 * (COLUMNS - 1))
    assert 0 < min(counts) < REGIONS
    for row, count in zip(output, counts, strict=True):
        assert (row[:count] != 0).any(1).all()
        assert not row[count:].any()


def test_no_region_at_all() -> None:
    module, found = known("faster_rcnn")
    module.rpn.score_thresh, before = 2.0, module.rpn.score_thresh
    try:
        with leaves(module) as levels:
            output = found.propose(module, images())
    finally:
        module.rpn.score_thresh = before
    assert not output.any()
    assert [len(k.index) for k in found.keep(output, 0.0)] == [0, 0]
    assert not any(g.any() for g in gradients(output.sum(), levels))


def ordinary(module: nn.Module, batch: Tensor) -> Tensor:
    """The class probabilities (R, K) of all regions in one ordinary graph."""
    resized, _ = module.transform(list(batch))
    features = module.backbone(resized.tensors)
    regions, _ = module.rpn(resized, features)
    pooled = module.roi_heads.box_roi_pool(features, regions, resized.image_sizes)
    logits, _ = module.roi_heads.box_predictor(module.roi_heads.box_head(pooled))
    return logits.softmax(-1)[:, 1:]


@pytest.mark.parametrize("precision", ["double", "autocast"])
def test_region_by_region_is_the_ordinary_graph(precision: str) -> None:
    """Several regions of both images at once, in double precision and under autocast."""
    module, found = known("faster_rcnn")
    batch = images().double() if precision == "double" else images()
    if precision == "double":
        module.double()
    try:
        with leaves(module) as levels, torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            reference = ordinary(module, batch)
            ours = dict(levels)
            theirs = gradients(reference[[3, REGIONS + 21, REGIONS + 24], [0, 1, 2]].sum(), ours)
            output = found.propose(module, batch)
        probabilities = Candidates(output, found.classes).probabilities
        value = probabilities[[0, 1, 1], [3, 21, 24], [0, 1, 2]].sum()  # autocast has ended before the backward
        mine = gradients(value, levels)
    finally:
        module.float()
    tolerance = 1e-12 if precision == "double" else 1e-2
    torch.testing.assert_close(probabilities.flatten(0, 1), reference, rtol=0, atol=tolerance)
    close(mine, theirs, tolerance)


def test_backward_reads_only_the_regions_that_count() -> None:
    """And levels that none of them used, or that no region ever uses, get zeros."""
    module, found = known("faster_rcnn")
    rows: list[int] = []
    handle = module.roi_heads.box_head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        with leaves(module) as levels:
            output = found.propose(module, images())
        probabilities = Candidates(output, found.classes).probabilities
        values = list(levels.values())
        one = torch.autograd.grad(probabilities[1, 5, 1], values, retain_graph=True)
        two = torch.autograd.grad(probabilities[0, 2, 0] + probabilities[1, 7, 1], values, retain_graph=True)
        none = torch.autograd.grad(probabilities.sum() * 0, values, retain_graph=True)
    finally:
        handle.remove()
    assert rows == [2 * REGIONS, 1, 2]
    assert sum(bool(g.any()) for g in one) == 1
    assert not any(g.any() for g in none)
    assert not any(g[0].any() for g in one)
    assert all(any(g[k].any() for g in two) for k in (0, 1))


def test_no_graph_where_none_is_wanted() -> None:
    module, found = known("faster_rcnn")
    assert not found.propose(module, images(1)).requires_grad
    with leaves(module), torch.no_grad():
        assert not found.propose(module, images(1)).requires_grad
    with torch.inference_mode():
        assert found.propose(module, images(1)).shape[1] == REGIONS


def test_some_levels_only() -> None:
    """A graph that begins at one level gives that level its gradient."""
    module, found = known("faster_rcnn")

    def hook(_module: nn.Module, _args: Any, output: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        return OrderedDict((k, v.requires_grad_() if k == "1" else v) for k, v in output.items())

    handle = module.backbone.register_forward_hook(hook)
    try:
        held: list[Tensor] = []
        second = module.backbone.register_forward_hook(lambda _, __, o: held.extend(o.values()))
        output = found.propose(module, images())
        second.remove()
    finally:
        handle.remove()
    (mine,) = torch.autograd.grad(Candidates(output, found.classes).probabilities.log().sum(), [held[1]])
    with leaves(module) as levels:
        theirs = gradients(ordinary(module, images()).log().sum(), levels)[1]
    close([mine], [theirs])


def test_gradients_of_gradients_are_refused() -> None:
    module, found = known("faster_rcnn")
    with leaves(module) as levels:
        output = found.propose(module, images(1))
    first = torch.autograd.grad(output[0, 3, -1], list(levels.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(g.sum() for g in first).backward()


def test_certain_nothing_has_a_finite_gradient() -> None:
    """Where FCOS's product of sigmoids underflows, its root would have the gradient infinity times 0."""
    module, found = known("fcos")
    bias = module.head.classification_head.cls_logits.bias
    before = bias.clone()
    try:
        bias.data.copy_(torch.tensor([-400.0, 0, 0, 0]))
        with leaves(module) as levels:
            output = found.propose(module, images(1))
        probabilities = Candidates(output, found.classes).probabilities
        assert (probabilities[..., 0] == 0).all()
        found_gradients = gradients(probabilities[0, 10, 2], levels)
    finally:
        bias.data.copy_(before)
    assert all(g.isfinite().all() for g in found_gradients)
    assert any(g.any() for g in found_gradients)


def test_a_backbone_of_one_level() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.Tanh())
    backbone.out_channels = 8
    torch.manual_seed(0)
    module = RetinaNet(backbone, 3, anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)), **ZOOM).eval()
    module.head.classification_head.cls_logits.bias.data.fill_(0)
    found = detector(module)
    assert found is not None
    with torch.no_grad():
        output = found.propose(module, images(1))
        (theirs,) = module(list(images(1)))
    _, scores = read(found, output[0], found.keep(output, 0.0)[0])
    torch.testing.assert_close(scores, theirs["scores"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_detector_says_of_itself(family: str) -> None:
    module, found = known(family)
    assert found.classes == (COLUMNS if family in ("fcos", "retinanet") else COLUMNS - 1)
    assert isinstance(module.get_submodule(found.layer)(torch.zeros(1, 3, 64, 64)), dict)


def test_other_networks_are_none() -> None:
    assert detector(nn.Linear(2, 2)) is None
    assert detector(resnet18()) is None
    module = rcnn(FasterRCNN)
    module.roi_heads.box_predictor = nn.Identity()
    assert detector(module) is None
