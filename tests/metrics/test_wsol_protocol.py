"""protocol="wsol" against a transcription of what the authors' evaluation does with OpenCV, threshold by threshold."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from konkyo import KonkyoError, NotApplicable
from konkyo.metrics.wsol import max_box_acc, max_box_acc_v2

cv2 = pytest.importorskip("cv2")
SIZE = (20, 26)


def maps_of(rows: int = 3) -> Tensor:
    """Blobs with holes, and noise."""
    random = torch.Generator().manual_seed(3)
    coarse = torch.rand(rows, 1, 5, 6, generator=random)
    maps = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")[:, 0]
    maps[0, 8:12, 8:12] -= 0.7
    maps[-1] += 0.5 * torch.rand(SIZE, generator=random)
    return maps


def iou(a: list[int], b: list[int]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(0, wide) * max(0, high)
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return shared / (area[0] + area[1] - shared)


def literal(heat: Tensor, truth: list[list[float]], thresholds: list[float], delta: float, largest: bool) -> list[bool]:
    """Whether a box is right at every threshold, in the words of the authors' code."""
    scores = heat.double().numpy()
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    image = np.expand_dims((scores.astype(np.float32) * 255).astype(np.uint8), 2)
    height, width = scores.shape
    right = []
    for threshold in thresholds:
        _, binary = cv2.threshold(image, int(threshold * np.max(image)), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        boxes = []
        for contour in [max(contours, key=cv2.contourArea)] if largest else contours:
            x, y, w, h = cv2.boundingRect(contour)
            boxes.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
        whole = [[int(v) for v in box] for box in truth]
        right.append(max(iou(box, other) for box in boxes for other in whole) >= delta)
    return right


TRUTH = [[[3.6, 2.2, 15.9, 11.0]], [[0.0, 0.0, 26.0, 20.0], [5.0, 1.0, 9.7, 8.2]], [[10.0, 4.0, 22.0, 15.0]]]


def padded() -> Tensor:
    boxes = torch.full((3, 2, 4), torch.nan)
    for row, some in enumerate(TRUTH):
        boxes[row, : len(some)] = torch.tensor(some)
    return boxes


@pytest.mark.parametrize("steps", [255, 40])
def test_box_accuracy_is_what_the_authors_code_gives(steps: int) -> None:
    maps, every = maps_of(), padded()
    thresholds = [step / steps + 1e-9 for step in range(steps)]  # floor(step * 255 / steps), exactly
    given: dict[str, Any] = {"boxes": every[:, 0], "all_boxes": every, "protocol": "wsol", "steps": steps}
    one, best = max_box_acc.statistic(maps, **given), max_box_acc_v2.statistic(maps, **given)
    assert one.shape == (3, steps)
    assert best.shape == (3, 3, steps)
    for row, heat in enumerate(maps):
        assert one[row].bool().tolist() == literal(heat, TRUTH[row], thresholds, 0.5, largest=True)
        for place, delta in enumerate((0.3, 0.5, 0.7)):
            assert best[row, place].bool().tolist() == literal(heat, TRUTH[row], thresholds, delta, largest=False)
    assert 0 < one.mean() < 1
    areas = max_box_acc.statistic(maps, **given | {"protocol": "areas"})
    assert not torch.equal(areas, one)


def test_all_thresholds_of_the_authors_are_among_255() -> None:
    """Their thousand thresholds tell no more apart: the same largest accuracy."""
    maps, every = maps_of(), padded()
    thousand = [float(t) for t in np.arange(0, 1, 0.001)]
    rows = [literal(heat, some, thousand, 0.5, largest=True) for heat, some in zip(maps, TRUTH, strict=True)]
    expected = np.mean(np.array(rows), axis=0).max()
    found = max_box_acc.statistic(maps, boxes=every[:, 0], all_boxes=every, protocol="wsol")
    assert max_box_acc.over(found).item() == pytest.approx(float(expected))


@pytest.mark.parametrize("metric", [max_box_acc, max_box_acc_v2])
def test_any_of_an_objects_boxes_will_do(metric: Any) -> None:
    maps, every = maps_of(), padded()
    for protocol in ("areas", "wsol"):
        alone = [metric.statistic(maps, boxes=every[:, k], protocol=protocol, steps=40).nan_to_num(0) for k in range(2)]
        found = metric.statistic(maps, boxes=every[:, 0] * 0, all_boxes=every, protocol=protocol, steps=40)
        assert torch.equal(found, torch.maximum(*alone))


def test_a_hole_has_a_box_and_no_box_is_the_first_pixel() -> None:
    heat = torch.ones(1, *SIZE)
    heat[0, 6:12, 7:15] = 0
    hole = torch.tensor([[6.0, 5.0, 16.0, 13.0]])  # its contour is the ring around it: pixels 6 to 15, 5 to 12
    given: dict[str, Any] = {"protocol": "wsol", "steps": 3}
    assert max_box_acc_v2.statistic(heat, boxes=hole, **given)[0, 2].tolist() == [1, 1, 1]
    assert max_box_acc.statistic(heat, boxes=hole, **given, delta=0.7)[0].tolist() == [0, 0, 0]
    blank, first = 0 * heat, torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 3.0, 3.0]])
    for box, right in zip(first, (1, 0), strict=True):
        assert max_box_acc.statistic(blank, boxes=box[None], **given).tolist() == [[right] * 3]
    assert max_box_acc.statistic(heat * torch.nan, boxes=hole, **given).isnan().all()
    assert max_box_acc.statistic(heat, boxes=hole * torch.nan, **given).isnan().all()


def test_what_the_protocol_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, every = maps_of(), padded()
    with pytest.raises(KonkyoError, match=r"all_boxes are \(3, B, 4\)"):
        max_box_acc.statistic(maps, boxes=every[:, 0], all_boxes=every[:, 0])
    with pytest.raises(KonkyoError, match="'areas', 'wsol'"):
        max_box_acc.statistic(maps, boxes=every[:, 0], protocol="choe")
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "cv2":
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr("konkyo.metrics.wsol.import_module", without)
    with pytest.raises(NotApplicable, match="pip install opencv"):
        max_box_acc.statistic(maps, boxes=every[:, 0], protocol="wsol")
