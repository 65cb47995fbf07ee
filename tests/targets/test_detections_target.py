"""A detection as a target: its likeness, match and score against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import konkyo
from helpers.detections import box_of, match_by_hand, score_by_hand
from helpers.detectors import CLASSES, candidates, dense, noise
from konkyo.targets.detections import SIDES_OF_BOX, InstanceTarget


def target_of(output: Tensor, image: int, index: int, label: int, **options: object) -> InstanceTarget:
    row = output[image, index].tolist()
    target = InstanceTarget(label, (0.0,) * 4, tuple(row[-CLASSES:]), index, **options)  # type: ignore[arg-type]
    return replace(target, box=tuple(box_of(target, row)))


KINDS = ("cosine", "probability", "difference", "same")


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_matches_and_scores_equal_a_loop(kind: str, per_class: bool) -> None:
    output = candidates(3, per_class=per_class)
    others = 0
    for index in range(0, 20, 3):
        target = target_of(output, 0, index, index % CLASSES, class_similarity=kind)
        match, scores = target.match(output), target(output)
        for image in range(3):
            expected, best, there = match_by_hand(target, output[image])
            assert image or expected == index, "on its own image a detection is itself, though others may be likelier"
            assert match.similarity[image].item() == pytest.approx(best, abs=1e-12)
            assert match.found[image] == there
            if not there:
                assert kind == "same"
                assert scores[image] == 0
                continue
            assert match.index[image] == expected
            assert match.box[image].tolist() == box_of(target, output[image, expected].tolist())
            assert scores[image] == output[image, expected, -CLASSES + target.label]
            others += expected != index
        for quantity in ("logit", *SIDES_OF_BOX):
            other = replace(target, quantity=quantity)
            torch.testing.assert_close(other(output), torch.stack([score_by_hand(other, image) for image in output]))
        similarity = replace(target, quantity="similarity")(output)
        torch.testing.assert_close(similarity, match.similarity)
    assert others > 7


@pytest.mark.parametrize("kind", KINDS)
def test_on_its_own_image_a_detection_is_itself_even_without_area(kind: str) -> None:
    box, likelier = [3.0, 3.0, 3.0, 9.0], [2.0, 2.0, 9.0, 9.0, 0.1, 0.9]
    output = torch.tensor([[[*box, 0.5, 0.4], likelier]], dtype=torch.float64)
    target = InstanceTarget(1, tuple(box), (0.5, 0.4), 0, class_similarity=kind)
    match = target.match(output)
    assert match.index.tolist() == [0]
    assert match.found.all()
    assert match.box[0].tolist() == box
    assert target(output).tolist() == [0.4]


def test_the_choices_of_class_similarity_choose_differently() -> None:
    output = candidates(3)
    found = {
        kind: [target_of(output, 0, j, j % 3, class_similarity=kind).match(output).index.tolist() for j in range(20)]
        for kind in KINDS
    }
    assert len({str(rows) for rows in found.values()}) == len(KINDS)


def test_of_equal_candidates_the_more_probable_then_the_own_then_the_first() -> None:
    box = [1.0, 1.0, 5.0, 6.0]
    rows = [[0.0, 0.0, 2.0, 2.0, 0.9, 0.9], [*box, 0.1, 0.2], [*box, 0.2, 0.4], [*box, 0.4, 0.8], [*box, 0.4, 0.8]]
    output = torch.tensor([rows], dtype=torch.float64)
    # 1 is the detection itself; 99 is of an image with more candidates
    for own, expected in [(1, 1), (2, 3), (4, 4), (0, 3), (99, 3)]:
        target = InstanceTarget(1, tuple(box), (0.1, 0.2), own)
        assert target.match(output).index.tolist() == [expected], own
        assert target(output).tolist() == [output[0, expected, 5].item()]
    one_ten_thousandth = output.clone()
    one_ten_thousandth[0, 1, 2] += 1e-3  # no longer equal: the own index is no help
    assert InstanceTarget(1, tuple(box), (0.1, 0.2), 1).match(one_ten_thousandth).index.tolist() == [3]


@pytest.mark.parametrize("quantity", ["probability", "logit", "x1", "y2", "similarity"])
def test_what_nothing_overlaps_is_absent_with_score_and_gradient_zero(quantity: str) -> None:
    output = candidates(5).requires_grad_()
    target = InstanceTarget(0, (100.0, 100.0, 120.0, 130.0), (0.5, 0.2, 0.1), 4, quantity=quantity)
    scores = target(output)
    assert scores.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(scores.sum(), output)
    assert torch.equal(gradient, torch.zeros_like(output))
    match = target.match(output)
    assert not match.found.any()
    assert match.box.isnan().all()
    assert match.similarity.tolist() == [0, 0, 0]


def test_absent_in_one_image_only() -> None:
    output = candidates(5)
    output[1, :, :4] += 1000
    target = target_of(output, 0, 2, 1)
    leaf = output.clone().requires_grad_()
    scores = target(leaf)
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    assert (scores != 0).tolist() == [True, False, True]
    assert gradient.flatten(1).abs().sum(1).tolist() == [1, 0, 1]
    assert target.match(output).box.isnan().all(1).tolist() == [False, True, False]


def test_least_is_the_similarity_below_which_an_instance_is_absent() -> None:
    output = candidates(3)
    target = target_of(output, 0, 2, 1)
    similarity = target.match(output).similarity
    between = float(similarity.sort().values[:2].mean())
    found = replace(target, least=between)(output)
    assert torch.equal(found != 0, similarity > between)
    assert (found == 0).sum() == 1


def test_log_odds_stay_finite_and_do_not_saturate() -> None:
    p = torch.tensor([0.3, 1 - 1e-9, 0.0, 1.0], dtype=torch.float64)
    output = torch.cat([torch.tensor([0.0, 0.0, 4.0, 4.0]).double().expand(4, 1, 4), p.view(4, 1, 1)], 2)
    target = InstanceTarget(0, (0.0, 0.0, 4.0, 4.0), (0.3,), 0, quantity="logit", class_similarity="difference")
    leaf = output.clone().requires_grad_()
    scores = target(leaf)
    assert scores[0].item() == pytest.approx(math.log(0.3 / 0.7))
    assert scores[1].item() == pytest.approx(math.log(1e9), abs=1e-3)
    assert scores.isfinite().all()
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    assert gradient[0, 0, 4].item() == pytest.approx(1 / (0.3 * 0.7))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["cosine", "probability", "difference"])
def test_the_similarity_can_be_differentiated(kind: str) -> None:
    output = candidates(7)[:, :6]
    target = target_of(output, 0, 2, 1, class_similarity=kind)
    target = replace(target, quantity="similarity", box=tuple(v + 0.05 * (i + 1) for i, v in enumerate(target.box)))
    assert torch.autograd.gradcheck(target, output.clone().requires_grad_())
    leaf = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target(leaf).sum(), leaf)
    assert gradient[..., :4].abs().sum() > 0
    assert gradient[..., 4:].abs().sum() > 0


def test_an_empty_box_and_a_candidate_without_any_class_have_finite_gradients() -> None:
    output = candidates(7)[:, :4].clone()
    output[0, 1, 2:4] = output[0, 1, :2]  # no area
    output[0, :, 4:] = 0
    target = replace(target_of(candidates(7), 1, 2, 1), quantity="similarity")
    leaf = output.requires_grad_()
    (gradient,) = torch.autograd.grad(target(leaf).sum(), leaf)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 7), (2, 5, 8), (2, 5, 16), (2, 3, 4, 7)])
def test_outputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    target = InstanceTarget(0, (0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.3), 0)
    with pytest.raises(konkyo.KonkyoError, match=r"candidates of 3 classes are \(N, Q, 7\) or \(N, Q, 15\)"):
        target(torch.rand(shape))


def test_unknown_choices_and_a_combination_without_a_score_are_refused() -> None:
    whole = InstanceTarget(0, (0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.3), 0)
    with pytest.raises(konkyo.KonkyoError, match="quantity of an instance"):
        replace(whole, quantity="width")  # type: ignore[arg-type]
    with pytest.raises(konkyo.KonkyoError, match="class_similarity"):
        replace(whole, class_similarity="dot")  # type: ignore[arg-type]
    with pytest.raises(konkyo.KonkyoError, match="combination"):
        replace(whole, quantity="combined")(candidates(0))


# --- which detections `explain` is asked for --------------------------------------------------------------------------


def test_detections_become_targets_highest_score_first() -> None:
    model, images = dense(), noise(3)
    output = model(images).detach()
    threshold = float(output[..., 4:].amax(2).flatten().sort().values[-9])
    found = model.targets(konkyo.Detections(threshold=threshold), output)
    assert sum(map(len, found)) == 8
    for image, targets in zip(output, found, strict=True):
        p = [max(row[4:]) for row in image.tolist()]
        order = sorted((j for j in range(len(p)) if p[j] > threshold), key=lambda j: -p[j])
        assert [target.index for target in targets] == order
        for target in targets:
            row = image[target.index].tolist()
            assert target.label == max(range(CLASSES), key=lambda k: row[4 + k])
            assert list(target.box) == row[:4]
            assert list(target.likeness) == row[4:]
            assert (target.quantity, target.class_similarity, target.least) == ("probability", "cosine", 0.0)


def test_detections_of_classes_of_boxes_and_the_best() -> None:
    model, images = dense(), noise(1)
    output = model(images).detach()
    (every,) = model.targets(konkyo.Detections(threshold=0.0), output)
    assert len(every) == 48
    (ones,) = model.targets(konkyo.Detections(threshold=0.0, classes=(1,), top=2), output)
    assert [t.index for t in ones] == [t.index for t in every if t.label == 1][:2]
    wanted = every[20].box, every[7].box
    (boxed,) = model.targets(konkyo.Detections(threshold=0.0, boxes=wanted), output)
    assert [t.index for t in boxed] == [every[7].index, every[20].index]
    (pairs,) = model.targets(konkyo.Detections(threshold=0.3, suppressed=False), output)
    flat = sorted(((p, j, k) for j, r in enumerate(output[0].tolist()) for k, p in enumerate(r[4:])), reverse=True)
    assert [(t.index, t.label) for t in pairs] == [(j, k) for p, j, k in flat if p > 0.3][:48]
    with pytest.raises(konkyo.KonkyoError, match="class 3"):
        model.targets(konkyo.Detections(classes=(3,)), output)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"threshold": 1.0}, {"top": 0}, {"classes": "cat"}, {"boxes": ((1, 2, 3),)}),
        *({"boxes": ((1, 2, "3", 4),)}, {"boxes": ((1, 2, math.inf, 4),)}),
    ],
)
def test_detections_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(konkyo.KonkyoError):
        konkyo.Detections(**wrong)  # type: ignore[arg-type]
