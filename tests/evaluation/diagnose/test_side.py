"""Use of sides: nets that read one corner, the orientation of the whole image, or neither."""

from __future__ import annotations

import torch
from torch import Tensor

from konkyo.evaluation.diagnose.side import side_findings, side_use

SIDE = 40
IMAGES = torch.randn(30, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def two(score: Tensor) -> Tensor:
    return torch.stack([-score, score], 1).softmax(1)


def corner(images: Tensor) -> Tensor:
    """Reads whether the lower left square is brighter on its left or on its right half."""
    square = images[:, 0, -4:, :4]
    return two(3 * (square[..., :2] - square[..., 2:]).mean((1, 2)))


def halves(images: Tensor) -> Tensor:
    return two(40 * (images[:, 0, :, : SIDE // 2] - images[:, 0, :, SIDE // 2 :]).mean((1, 2)))


def mean(images: Tensor) -> Tensor:
    return two(40 * images.mean((1, 2, 3)))


def labels(probabilities: Tensor) -> Tensor:
    return probabilities.argmax(1)


def test_a_net_that_reads_a_corner_is_told_which() -> None:
    corners, _ = side_findings(side_use(corner, IMAGES, labels(corner(IMAGES))))
    assert corners.severity == "medium"
    assert "lower left" in corners.sentence["en"]
    assert "左下" in corners.sentence["ja"]
    assert corners.values["changed decisions, lower left"] == 1.0
    assert corners.values["changed decisions, upper right"] == 0.0
    assert corners.p_adjusted <= 0.01


def test_a_net_that_tells_left_from_right_is_named_by_the_mirror_image_only() -> None:
    corners, mirror = side_findings(side_use(halves, IMAGES, labels(halves(IMAGES))))
    assert (corners.severity, mirror.severity) == ("ok", "low")
    assert mirror.values["changed decisions"] == 1.0


def test_a_net_of_the_mean_knows_no_side() -> None:
    use = side_use(mean, IMAGES, labels(mean(IMAGES)))
    corners, mirror = side_findings(use)
    assert (corners.severity, mirror.severity) == ("ok", "ok")
    assert abs(mirror.value) < 1e-6
    assert use.corners.max() < 1e-6
    assert "would have been named" in corners.sentence["en"]


def test_without_labels_the_mirror_image_is_no_finding() -> None:
    _, mirror = side_findings(side_use(halves, IMAGES))
    assert mirror.severity == "unknown"


def test_a_net_that_reads_every_place_alike_is_seldom_a_finding() -> None:
    """Differences of neighbours everywhere: corners are places like any other."""
    findings = 0
    weights = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for run in range(30):
        generator = torch.Generator().manual_seed(100 + run)
        images = torch.randn(16, 1, SIDE, SIDE, generator=generator)
        shifted = weights[torch.randperm(SIDE, generator=generator)][:, torch.randperm(SIDE, generator=generator)]
        use = side_use(lambda x, w=shifted: two((x[:, 0] * w).mean((1, 2)) * 40), images, seed=run)
        findings += side_findings(use, alpha=0.05, resamples=200, seed=run)[0].severity != "ok"
    assert findings <= 4


def test_the_images_come_back_untouched_and_few_are_unknown() -> None:
    before = IMAGES.clone()
    side_use(mean, IMAGES[:5])
    assert torch.equal(IMAGES, before)
    (finding,) = side_findings(side_use(mean, IMAGES[:5]))
    assert finding.severity == "unknown"
