"""ODAM and every other method on an instance, against autograd on the network itself, one instance at a time."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.closeness import close_to_largest as close
from helpers.detections import instances, iou_by_hand, score_by_hand, summed
from helpers.detectors import CLASSES, SIZE, DenseDetector, PyramidDetector, candidates, dense, noise, wrapped
from konkyo.targets.detections import SIDES_OF_BOX, InstanceTarget

ALL = konkyo.Detections(threshold=0.0, top=4)


def levels_of(network: DenseDetector, image: Tensor) -> list[Tensor]:
    """What the body puts out for one image (1, ...), detached."""
    with torch.no_grad():
        found = network.body(image)
    return [found] if isinstance(found, Tensor) else list(found)


def by_hand(network: DenseDetector, image: Tensor, target: InstanceTarget) -> tuple[list[Tensor], list[Tensor]]:
    """(A, G) of every level, each (C, h, w), of one image (1, ...)."""
    leaves = [level.clone().requires_grad_() for level in levels_of(network, image)]
    score = score_by_hand(target, network.after([leaf.clone() for leaf in leaves])[0])
    gradients = torch.autograd.grad(score, leaves, allow_unused=True)
    pairs = list(zip(leaves, gradients, strict=True))
    return [a.detach()[0] for a in leaves], [torch.zeros_like(a)[0] if g is None else g[0] for a, g in pairs]


def odam_by_hand(network: DenseDetector, image: Tensor, target: InstanceTarget) -> Tensor:
    activations, gradients = by_hand(network, image, target)
    return summed(gradients, activations)


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of a map that is negative everywhere
@pytest.mark.parametrize("quantity", ["probability", "logit", *SIDES_OF_BOX])
@pytest.mark.parametrize("kind", [DenseDetector, PyramidDetector])
def test_odam_is_the_rectified_sum_of_gradient_times_activation(kind: type[DenseDetector], quantity: str) -> None:
    model, images = dense(kind()), noise(2)
    wanted = replace(ALL, quantity=quantity)  # type: ignore[arg-type]
    result = konkyo.explain(model, images, method="odam", target=wanted)
    assert result.signed.shape == (8, 6, 8)
    assert result.image_index.tolist() == [0] * 4 + [1] * 4
    for row, target in enumerate(instances(result)):
        image = images[int(result.image_index[row])][None]
        assert target.quantity == quantity
        close(result.signed[row], odam_by_hand(model.module, image, target))
        assert torch.equal(result.maps[row], result.signed[row].clamp(min=0))
        score = score_by_hand(target, model(image)[0])
        assert result.scores[row].item() == pytest.approx(score.item(), rel=1e-6)
        assert result.boxes is not None
        assert result.boxes[row].tolist() == pytest.approx(list(target.box), rel=1e-6)
    names = [f"class {t.label}" + (f", {quantity}" if quantity in SIDES_OF_BOX else "") for t in instances(result)]
    assert list(result.labels) == names


def test_the_map_of_an_instance_is_where_its_gradient_reaches() -> None:
    """The head sees 3 x 3 places, so an instance's map is zero elsewhere: this is what Grad-CAM does not have."""
    model, images = dense(), noise(1)
    result = konkyo.explain(model, images, method="odam", target=ALL)
    broad = konkyo.explain(model, images, method="grad_cam", target=ALL)
    for row, target in enumerate(instances(result)):
        y, x = divmod(target.index, 8)
        outside = torch.ones(6, 8, dtype=torch.bool)
        outside[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = False
        assert result.signed[row][outside].abs().max() == 0
        assert broad.signed[row][outside].abs().max() > 0


def test_odam_is_rectified_hires_cam() -> None:
    both = konkyo.compare(dense(), noise(2), ["odam", "hires_cam"], target=ALL)
    assert torch.equal(both["odam"].signed, both["hires_cam"].signed)
    assert torch.equal(both["odam"].maps, both["hires_cam"].maps.relu())


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_a_pyramid_is_summed_before_the_rectifier() -> None:
    model, images = dense(PyramidDetector()), noise(1)
    result = konkyo.explain(model, images, method="odam", target=replace(ALL, top=12))
    differences = 0.0
    for target in instances(result):
        activations, gradients = by_hand(model.module, images, target)
        early = [(g * a).sum(0).relu()[None, None] for a, g in zip(activations, gradients, strict=True)]
        late = odam_by_hand(model.module, images, target).relu()
        enlarged = [nn.functional.interpolate(m, size=(6, 8), mode="bilinear")[0, 0] for m in early]
        differences += float((sum(enlarged, torch.zeros(())) - late).abs().max())
    assert differences > 0.01  # else the order of sum and rectifier would not show in the other test
    assert result.layer == "body"


def test_smoothing_the_gradient_is_a_gaussian_mirrored_at_the_border() -> None:
    model, images, sigma = dense(), noise(1), 0.8
    result = konkyo.explain(model, images, method="odam", target=ALL, grad_smooth_sigma=sigma)
    for row, target in enumerate(instances(result)):
        (a,), (g,) = by_hand(model.module, images, target)
        expected = torch.zeros_like(a[0])
        for y in range(6):
            for x in range(8):
                total, weights = torch.zeros(len(g), dtype=torch.float64), 0.0
                for dy in range(-3, 4):
                    for dx in range(-3, 4):
                        weight = math.exp(-(dy**2 + dx**2) / (2 * sigma**2))
                        v, u = abs(y + dy), abs(x + dx)
                        total += weight * g[:, 10 - v if v > 5 else v, 14 - u if u > 7 else u]
                        weights += weight
                expected[y, x] = (total / weights * a[:, y, x]).sum()
        close(result.signed[row], expected)
    with pytest.raises(konkyo.KonkyoError, match="grad_smooth_sigma"):
        konkyo.explain(model, images, method="odam", target=ALL, grad_smooth_sigma=-1.0)


# --- many instances ---------------------------------------------------------------------------------------------------

SMALL: dict[str, dict[str, object]] = {
    **{
        "odam": {},
        "ss_grad_cam": {},
        "ss_grad_cam_pp": {},
        "grad_cam": {},
        "grad_cam_pp": {},
        "layer_cam": {},
        "saliency": {},
        "ablation_cam": {},
    },
    **{"occlusion": {"window": 8, "stride": 8}, "xgrad_cam": {}, "integrated_gradients": {"steps": 4}},
    **{"d_rise": {"masks": 20, "cells": 4}, "rise": {"masks": 20, "cells": 4}, "smooth_grad": {"samples": 3}},
    **{"ig_odam": {"nodes": 5}, "path_odam": {"nodes": 5}, "adaptive_ig_odam": {"nodes": 8, "initial": 3}},
}


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
@pytest.mark.parametrize("kind", [DenseDetector, PyramidDetector])
@pytest.mark.parametrize("method", SMALL)
def test_instances_together_equal_each_on_its_own(method: str, kind: type[DenseDetector]) -> None:
    model, images, known = dense(kind()), noise(2), konkyo.methods()[method].options
    options = {name: value for name, value in SMALL[method].items() if name in known}
    assert len(options) == len(SMALL[method])
    result = konkyo.explain(model, images, method=method, target=ALL, **options)
    assert len(result) == 8
    distinct = {tuple(m.flatten().tolist()) for m in result.signed}
    assert len(distinct) == 8
    for row in (0, 3, 4, 6):
        image, target = images[int(result.image_index[row])], result.targets[row]
        alone = konkyo.explain(model, image[None], method=method, target=target, **options)
        scale = float(result.signed[row].abs().max())
        assert scale > 0
        torch.testing.assert_close(alone.signed[0], result.signed[row], rtol=0, atol=1e-6 * scale)
        assert alone.scores[0].item() == pytest.approx(result.scores[row].item(), rel=1e-6)


def test_images_with_different_numbers_of_detections_and_one_with_none() -> None:
    model, images = dense(), noise(3, seed=4)
    highest = model(images).detach()[..., 4:].amax(2)  # (3, Q)
    poorest = int(highest.amax(1).argmin())
    rest = [i for i in range(3) if i != poorest]
    threshold = float(highest[highest > highest[poorest].max()].min())
    with pytest.warns(konkyo.KonkyoWarning, match="1 of 3 images: nothing detected"):
        result = konkyo.explain(model, images, method="odam", target=konkyo.Detections(threshold=threshold))
    counts = [int((highest[i] > threshold).sum()) for i in range(3)]
    assert counts[poorest] == 0
    assert len({counts[i] for i in rest} - {0}) == 2
    assert [result.image_index.tolist().count(i) for i in range(3)] == counts
    for row, target in enumerate(instances(result)):
        close(result.signed[row], odam_by_hand(model.module, images[int(result.image_index[row])][None], target))


def test_a_target_per_image_and_several_for_every_image() -> None:
    model, images = dense(), noise(2)
    a, b = instances(konkyo.explain(model, images, method="odam", target=konkyo.TopK(1)))
    mixed = konkyo.explain(model, images, method="odam", target=[b, konkyo.Each(a, b)])
    assert mixed.image_index.tolist() == [0, 1, 1]
    for row, (image, target) in enumerate([(0, b), (1, a), (1, b)]):
        close(mixed.signed[row], odam_by_hand(model.module, images[image][None], target))
    with pytest.raises(konkyo.KonkyoError, match="one entry per image: 2 expected, 3 came"):
        konkyo.explain(model, images, method="odam", target=[a, b, a])


@pytest.mark.parametrize("method", ["odam", "ig_odam", "adaptive_ig_odam", "grad_cam"])
def test_frozen_parameters_change_nothing(method: str) -> None:
    model, images = dense(), noise(1)
    expected = konkyo.explain(model, images, method=method, target=ALL)
    frozen = wrapped(copy.deepcopy(model.module))
    for parameter in frozen.module.parameters():
        parameter.requires_grad_(False)
    found = konkyo.explain(frozen, images, method=method, target=ALL)
    assert torch.equal(found.signed, expected.signed)
    assert not any(p.requires_grad for p in frozen.module.parameters())
    assert all(p.grad is None for p in model.module.parameters())


# --- methods of classifiers on an instance ----------------------------------------------------------------------------


def test_grad_cam_of_an_instance_weighs_channels_by_their_mean_gradient() -> None:
    model, images = dense(), noise(2)
    result = konkyo.explain(model, images, method="grad_cam", target=ALL)
    for row, target in enumerate(instances(result)):
        (a,), (g,) = by_hand(model.module, images[int(result.image_index[row])][None], target)
        close(result.signed[row], sum((g[k].mean() * a[k] for k in range(8)), torch.zeros(())))


def test_grad_cam_pp_of_an_instance_follows_its_equation() -> None:
    model, images = dense(), noise(1)
    result = konkyo.explain(model, images, method="grad_cam_pp", target=ALL)
    for row, target in enumerate(instances(result)):
        (a,), (g,) = by_hand(model.module, images, target)
        expected = torch.zeros_like(a[0])
        for k in range(8):
            weight = torch.zeros((), dtype=torch.float64)
            for i in range(6):
                for j in range(8):
                    slope = g[k, i, j]
                    if slope > 0:
                        weight += slope**2 / (2 * slope**2 + a[k].sum() * slope**3) * slope
            expected += weight * a[k]
        close(result.signed[row], expected)


def test_layer_cam_saliency_and_ablation_cam_of_an_instance() -> None:
    model, images = dense(), noise(1)
    found = konkyo.compare(model, images, ["layer_cam", "saliency", "ablation_cam"], target=ALL)
    for row, target in enumerate(instances(found["layer_cam"])):
        (a,), (g,) = by_hand(model.module, images, target)
        close(found["layer_cam"].signed[row], (g.clamp(min=0) * a).sum(0))
        leaf = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(score_by_hand(target, model.module(leaf)[0]), leaf)
        close(found["saliency"].signed[row], slope[0].abs().amax(0))
        whole, expected = score_by_hand(target, model(images)[0]).detach(), torch.zeros_like(a[0])
        for k in range(8):
            without = a.clone()
            without[k] = 0
            with torch.no_grad():
                rest = score_by_hand(target, model.module.after([without[None]])[0])
            expected += (whole - rest) / whole * a[k]
        close(found["ablation_cam"].signed[row], expected)


# --- the combination --------------------------------------------------------------------------------------------------


def test_the_combination_is_the_largest_of_five_scaled_maps_at_every_place() -> None:
    model, images = dense(), noise(2)
    result = konkyo.explain(model, images, method="odam", target=replace(ALL, quantity="combined"))
    assert result.signed.shape == (8, 6, 8)
    for row, target in enumerate(instances(result)):
        assert target.quantity == "combined"
        image, scaled = images[int(result.image_index[row])][None], []
        for quantity in ("probability", "x1", "y1", "x2", "y2"):
            single = odam_by_hand(model.module, image, replace(target, quantity=quantity)).relu()
            scaled.append((single - single.min()) / (single.max() - single.min()))
        expected = scaled[0].clone()
        for y in range(6):
            for x in range(8):
                expected[y, x] = max(float(m[y, x]) for m in scaled)
        close(result.maps[row], expected)
        close(result.unit()[row], expected)
        p = score_by_hand(replace(target, quantity="probability"), model(image)[0])
        assert result.scores[row].item() == pytest.approx(p.item(), rel=1e-6)
    assert result.path is None


def test_a_combination_beside_a_single_target_and_of_a_path() -> None:
    model, images = dense(), noise(1)
    a, b = instances(konkyo.explain(model, images, method="odam", target=konkyo.Detections(threshold=0.0, top=2)))
    each = konkyo.Each(b, replace(a, quantity="combined"), a)
    mixed = konkyo.explain(model, images, method="ig_odam", nodes=4, target=each)
    lone = konkyo.explain(model, images, method="ig_odam", nodes=4, target=konkyo.Each(b, a))
    torch.testing.assert_close(mixed.signed[[0, 2]], lone.signed)
    torch.testing.assert_close(mixed.scores, lone.scores[[0, 1, 1]])
    assert mixed.maps[1].amax() == 1


# --- images with nothing, and with much -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("method", ["odam", "ig_odam", "adaptive_ig_odam", "path_odam", "d_rise", "grad_cam"])
def test_an_image_without_detections_has_no_rows(method: str, suffix: str, tmp_path: Path) -> None:
    options = {"masks": 4} if method == "d_rise" else {}
    wanted = konkyo.Detections(threshold=0.9999)
    with pytest.warns(konkyo.KonkyoWarning, match="2 of 2 images: nothing detected"):
        result = konkyo.explain(dense(), noise(2), method=method, target=wanted, **options)
    size = SIZE if method == "d_rise" else (6, 8)
    assert result.signed.shape == (0, *size)
    assert result.scores.shape == (0,)
    assert result.image_index.tolist() == []
    assert (result.targets, result.labels, result.diagnosis) == ((), (), ())
    assert result.at((10, 12)).shape == result.unit((10, 12)).shape == (0, 10, 12)
    again = konkyo.Explanation.load(result.save(tmp_path / f"nothing{suffix}"))
    assert again.signed.shape == (0, *size)
    assert len(again) == 0
    assert again.path is None


def test_a_black_image_and_one_of_the_baseline_itself() -> None:
    model = dense()
    black = torch.tensor([-2.0, -2.0, -0.6], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, *SIZE)
    assert torch.tensor(model.black).tolist() == pytest.approx([-2.0, -2.0, -0.6])
    result = konkyo.explain(model, black, method="odam", target=ALL)
    for row, target in enumerate(instances(result)):
        close(result.signed[row], odam_by_hand(model.module, black, target))
    for method in ("ig_odam", "adaptive_ig_odam"):  # nothing moves on the way, so the gradient is constant
        still = konkyo.explain(model, black, method=method, target=ALL)
        torch.testing.assert_close(still.signed, result.signed)
        assert still.path is not None
        torch.testing.assert_close(still.path.scores, result.scores[:, None].expand_as(still.path.scores))
        assert still.path.priorities.abs().max() < 1e-6
    with pytest.warns(konkyo.KonkyoWarning, match="path_odam: 4 of 4 maps"):
        nothing = konkyo.explain(model, black, method="path_odam", target=ALL)
    assert nothing.signed.abs().max() < 1e-9


def test_a_hundred_detections_of_one_image() -> None:
    model, images = dense(), noise(1)
    pairs = konkyo.Detections(threshold=0.0, suppressed=False)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = model.module
            self.body = model.module.body

        def forward(self, x: Tensor) -> Tensor:
            """The candidates, and once more a little larger: more than are asked for."""
            found = self.one.after([self.body(x)])
            return torch.cat([found, found + 1e-2, found + 2e-2], 1)

    many = wrapped(Twice())
    result = konkyo.explain(many, images, method="odam", target=replace(pairs, top=100))  # in seven walks back
    assert len(result) == 100
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
    for row in (0, 50, 99):
        alone = konkyo.explain(many, images, method="odam", target=result.targets[row])
        torch.testing.assert_close(alone.signed[0], result.signed[row])
    path = konkyo.explain(many, images, method="ig_odam", nodes=3, target=replace(pairs, top=100)).path
    assert path is not None
    assert path.alphas.shape == (100, 3)


# --- the detector's own output and pictures ---------------------------------------------------------------------------


def test_a_box_per_class_is_the_class_s_own() -> None:
    """The heads of R-CNN: (N, Q, 5 K), a box for each class."""
    table = candidates(3, per_class=True)[0]

    class PerClass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 4, 4)
            self.head = nn.Linear(4, 20 * 15)

        def forward(self, x: Tensor) -> Tensor:
            moved = self.head(self.body(x).tanh().mean((2, 3))).view(-1, 20, 15).tanh()
            return torch.cat([table[:, :12] + moved[..., :12] / 4, (table[:, 12:] + moved[..., 12:]).sigmoid()], 2)

    torch.manual_seed(0)
    model, images = wrapped(PerClass()), noise(1)
    for quantity in ("probability", "x2"):
        wanted = konkyo.Detections(threshold=0.0, top=5, quantity=quantity)  # type: ignore[arg-type]
        result = konkyo.explain(model, images, method="odam", target=wanted)
        for row, target in enumerate(instances(result)):
            leaf = model.module.body(images).detach().requires_grad_()
            output = model.module
            moved = output.head(leaf.tanh().mean((2, 3))).view(20, 15).tanh()
            column = 12 + target.label if quantity == "probability" else 4 * target.label + 2
            value = (
                (table[target.index, column] + moved[target.index, column]).sigmoid()
                if quantity == "probability"
                else table[target.index, column] + moved[target.index, column] / 4
            )
            (gradient,) = torch.autograd.grad(value, leaf)
            close(result.signed[row], (gradient * leaf).detach()[0].sum(0))
            assert result.scores[row].item() == pytest.approx(value.item(), rel=1e-6)
            assert target.box == tuple(model(images)[0, target.index, 4 * target.label :][:4].tolist())


def test_boxes_come_back_in_the_pixels_of_the_picture() -> None:
    from PIL import Image

    model = dense()
    pixels = torch.randint(256, (48, 96, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    assert model.preprocess is not None
    prepared = model.preprocess(picture)[None].double()
    result = konkyo.explain(model, picture, method="adaptive_ig_odam", nodes=10, target=ALL)
    plain = konkyo.explain(model, prepared, method="adaptive_ig_odam", nodes=10, target=ALL)
    torch.testing.assert_close(result.signed, plain.signed)
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])  # 96 / 32 across, 48 / 24 down
    assert result.boxes is not None
    assert plain.boxes is not None
    assert result.path is not None
    assert plain.path is not None
    torch.testing.assert_close(result.boxes, plain.boxes * scale)
    torch.testing.assert_close(result.path.boxes, plain.path.boxes * scale, equal_nan=True)
    shown = result.boxes[2].tolist()
    near = [v + 1.0 for v in shown]
    assert iou_by_hand(near, shown) > max(iou_by_hand(near, result.boxes[r].tolist()) for r in (0, 1, 3))
    chosen = konkyo.explain(model, picture, method="odam", target=replace(ALL, top=None, boxes=(tuple(shown),)))
    assert instances(chosen)[0].index == instances(result)[2].index


def test_a_class_by_name_or_index() -> None:
    model = replace(dense(), classes=("cat", "dog", "cow"))
    images = noise(1)
    result = konkyo.explain(model, images, method="odam", target=konkyo.Detections(threshold=0.0, classes=("dog",)))
    assert set(result.labels) == {"dog"}
    assert {t.label for t in instances(result)} == {1}
    threshold = float(result.scores.sort().values[-2])
    assert threshold < 0.5 or len(konkyo.explain(model, images, method="odam", target="dog")) > 0
    with pytest.raises(konkyo.KonkyoError, match="sheep"):
        konkyo.explain(model, images, method="odam", target="sheep")
    assert CLASSES == 3


def test_detections_of_a_classifier_do_not_apply() -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for method in ("odam", "grad_cam"):
        with pytest.raises(konkyo.NotApplicable, match="no detector"):
            konkyo.explain(classifier, noise(1).float(), method=method, target=konkyo.Detections())
    found = konkyo.explain(classifier.eval(), noise(1).float(), method="odam", target=1)  # a class's probability
    leaf = classifier[:2](noise(1).float()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier[2:](leaf).softmax(1)[0, 1], leaf)
    torch.testing.assert_close(found.signed, (gradient * leaf).detach().sum(1))
