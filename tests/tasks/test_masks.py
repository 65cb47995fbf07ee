"""Masks of detections, against torchvision's own masks and gradients by hand."""

import json

import pytest
import torch
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image

import konkyo
from helpers.segmenters import mask_rcnn
from konkyo.targets.detections import MaskTarget
from konkyo.tasks.masks import MaskTask, _on_picture

NAMES = ("cat", "dog", "lamp")


@pytest.fixture(scope="module")
def network():
    return mask_rcnn()


@pytest.fixture
def images():
    return torch.rand(1, 3, 80, 100, generator=torch.Generator().manual_seed(5))


def _explained(network, images, target=None, **settings):
    target = target or konkyo.Detections(threshold=0.05, top=3, quantity="mask")
    model = konkyo.Model(network, classes=NAMES)
    return konkyo.explain(model, images, target=target, method="hires_cam", **settings)


def test_the_mask_is_that_of_the_library(network, images):
    logits = []
    handle = network.roi_heads.mask_predictor.register_forward_hook(lambda module, args, output: logits.append(output))
    with torch.no_grad():
        (expected,) = network(list(images))
    handle.remove()
    result = _explained(network, images)
    assert len(result) == 3
    for row, target in enumerate(result.targets):
        label = int(expected["labels"][row])
        assert target.instance.label + 1 == label
        torch.testing.assert_close(torch.tensor(target.instance.box), expected["boxes"][row], atol=1e-3, rtol=1e-4)
        mask = logits[0][row, label]
        assert torch.equal(target.cells.weights > 0, mask > 0)
        assert float(result.scores[row]) == pytest.approx(float(mask[mask > 0].mean()), rel=1e-3)
    assert result.labels[0].endswith(", mask")
    assert result.boxes.shape == (3, 4)


@pytest.mark.parametrize("box", [(10.2, 5.1, 70.4, 60.3), (-10.0, -20.0, 50.0, 40.0), (60.0, 40.0, 119.0, 99.0)])
def test_the_outline_lies_where_the_library_draws_the_mask(box):
    cells = torch.linspace(-1, 1, 28)
    mask = (4 * (0.6 - (cells[:, None] ** 2 + (cells - 0.3) ** 2))).sigmoid()
    own = _on_picture(mask, torch.tensor(box), (80, 100)) > 0.5
    library = paste_masks_in_image(mask[None, None], torch.tensor([box]), (80, 100))[0, 0] > 0.5
    assert float((own & library).sum() / (own | library).sum()) > 0.93


def test_the_map_is_that_of_the_gradient_by_hand(network, images):
    result = _explained(network, images)
    target = result.targets[1]
    resized, _ = network.transform(list(images))
    levels = {name: level.requires_grad_() for name, level in network.backbone(resized.tensors).items()}
    height, width = resized.image_sizes[0]
    box = torch.tensor([target.instance.box]) * torch.tensor([width / 100, height / 80] * 2)
    heads = network.roi_heads
    logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(levels, [box], resized.image_sizes)))
    logits = logits[0, target.instance.label + 1]
    score = logits[logits > 0].mean()
    gradients = torch.autograd.grad(score, list(levels.values()), allow_unused=True, materialize_grads=True)
    maps = [(g * a).sum(1).detach() for g, a in zip(gradients, levels.values(), strict=True)]
    finest = maps[0].shape[1:]
    expected = sum(functional.interpolate(m[:, None], finest, mode="bilinear")[:, 0] for m in maps)
    assert float(result.scores[1]) == pytest.approx(score.item(), rel=1e-4)
    torch.testing.assert_close(result.signed[1:2], expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0


def test_several_images_have_masks_of_their_own(network, images):
    other = torch.rand(1, 3, 80, 100)
    both = _explained(network, torch.cat([images, other]))
    alone = _explained(network, other)
    rows = (both.image_index == 1).nonzero()[:, 0]
    assert len(rows) == len(alone)
    torch.testing.assert_close(both.scores[rows], alone.scores, rtol=1e-4, atol=1e-4)


def test_a_class_alone_and_a_detection_again(network, images):
    result = _explained(network, images)
    name = NAMES[result.targets[0].instance.label]
    asked = konkyo.Detections(threshold=0.05, classes=(name,), quantity="mask")
    assert {target.instance.label for target in _explained(network, images, asked).targets} == {
        result.targets[0].instance.label
    }
    for target in (result.targets[0].instance, result.targets[0]):
        again = _explained(network, images, target)
        torch.testing.assert_close(again.scores, result.scores[:1])


def test_masks_by_perturbation_keep_box_and_region(network, images):
    asked = konkyo.Detections(threshold=0.05, top=1, quantity="mask")
    model = konkyo.Model(network, classes=NAMES)
    result = konkyo.explain(model, images, target=asked, method="occlusion", window=40, stride=40)
    assert bool(result.signed.isfinite().all())
    assert isinstance(result.targets[0], MaskTarget)


def test_masks_are_stored(network, images, tmp_path):
    result = _explained(network, images)
    result.save(tmp_path / "maps.npz")
    assert konkyo.Explanation.load(tmp_path / "maps.npz").targets == result.targets
    values = json.loads(json.dumps(MaskTask.saved(result.targets[0])))
    assert MaskTask.restored(values) == result.targets[0]


def test_nothing_detected_has_no_maps(network, images):
    with pytest.warns(konkyo.KonkyoWarning, match="nothing detected with a score above"):
        result = _explained(network, images, konkyo.Detections(threshold=0.999, quantity="mask"))
    assert len(result) == 0


def test_masks_with_other_quantities_are_refused(network, images):
    mask = konkyo.Detections(threshold=0.05, quantity="mask")
    with pytest.raises(konkyo.KonkyoError, match="a call of their own"):
        _explained(network, images, konkyo.Each(mask, konkyo.Detections(threshold=0.05)))
    instances = [target.instance for target in _explained(network, images).targets[:2]]
    with pytest.raises(konkyo.KonkyoError, match="is that of a detection"):
        _explained(network, images, konkyo.SumTarget(*instances))
