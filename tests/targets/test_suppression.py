"""Odam-NMS against a literal loop, and what it is for."""

import pytest
import torch
from torch import Tensor

import konkyo


def literal(
    maps: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, high: float, low: float
) -> list[int]:
    kept: list[int] = []
    for j in sorted(range(len(maps)), key=lambda r: -scores[r].item()):
        keep = True
        for i in kept:
            if labels[i] != labels[j]:
                continue
            hi, hj = maps[i].flatten().double(), maps[j].flatten().double()
            correlation = (hi @ hj / (hi.norm() * hj.norm())).item()
            a, b = boxes[i].tolist(), boxes[j].tolist()
            wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            common = max(wide, 0) * max(tall, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
            overlap = common / union
            keep = keep and ((overlap <= iou and correlation < high) or (overlap > iou and correlation < low))
        if keep:
            kept.append(j)
    return kept


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_literal_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(30, 2, generator=generator) * 4
    boxes = torch.cat([corners, corners + 1 + 3 * torch.rand(30, 2, generator=generator)], 1)
    maps = torch.rand(30, 5, 7, generator=generator) ** 6
    scores, labels = torch.rand(30, generator=generator), torch.randint(2, (30,), generator=generator)
    expected = literal(maps, boxes, scores, labels, 0.4, 0.6, 0.3)
    assert 1 < len(expected) < 30
    assert konkyo.odam_nms(maps, boxes, scores, labels, iou=0.4, high=0.6, low=0.3).tolist() == expected


def test_two_objects_that_overlap_stay_and_one_object_with_two_boxes_goes() -> None:
    maps = torch.zeros(3, 4, 4)
    maps[0, 0], maps[1, 3], maps[2, 0] = 1.0, 1.0, 0.9
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 10], [0, 0, 10, 4]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert konkyo.odam_nms(maps, boxes, scores).tolist() == [0, 1]
    assert konkyo.odam_nms(maps, boxes, scores, torch.tensor([0, 0, 1])).tolist() == [0, 1, 2]


def test_no_detections_and_wrong_shapes() -> None:
    assert konkyo.odam_nms(torch.zeros(0, 3, 3), torch.zeros(0, 4), torch.zeros(0)).tolist() == []
    with pytest.raises(konkyo.KonkyoError, match=r"boxes \(R, 4\)"):
        konkyo.odam_nms(torch.zeros(2, 3, 3), torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(konkyo.KonkyoError, match="not negative"):
        konkyo.odam_nms(-torch.ones(1, 3, 3), torch.zeros(1, 4), torch.zeros(1))
