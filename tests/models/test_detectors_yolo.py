"""Detectors with dense predictions: their forms, and what they keep against suppression written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from konkyo.errors import KonkyoError
from konkyo.models.detectors.yolo import dense_detector
from konkyo.targets.candidates import Candidates

CLASSES, ANCHORS = 3, 60
IMAGES = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


class Says(nn.Module):
    """Puts out what it was made with, scaled by its one weight, whatever the images."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output


def predictions(columns: int = CLASSES, seed: int = 0, form: str = "cxcywh") -> Tensor:
    """(2, anchors, 4 + columns): crowded boxes, some beyond the border, and probabilities."""
    source = torch.Generator().manual_seed(seed)
    centre = torch.rand(2, ANCHORS, 2, generator=source) * torch.tensor([40.0, 30.0])
    size = 8 + 12 * torch.rand(2, ANCHORS, 2, generator=source)
    said = torch.rand(2, ANCHORS, columns, generator=source)
    if form == "cxcywh":
        box = torch.cat([centre, size], 2)
    elif form == "xywh":
        box = torch.cat([centre - size / 2, size], 2)
    else:
        box = torch.cat([centre - size / 2, centre + size / 2], 2)
    return torch.cat([box, said], 2)


def corners(seed: int = 0) -> Tensor:
    return predictions(seed=seed, form="xyxy")[..., :4]


def by_hand(boxes: Tensor, probabilities: Tensor, threshold: float, iou: float, most: int) -> list[tuple[int, int]]:
    """Greedy suppression within classes, one box after the other."""
    pairs = [(float(p.max()), k, int(p.argmax())) for k, p in enumerate(probabilities)]
    kept: list[tuple[int, int]] = []
    for score, k, label in sorted(pairs, reverse=True):
        if score <= threshold:
            continue
        free = True
        for other, other_label in kept:
            a, b = boxes[k].tolist(), boxes[other].tolist()
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            common = max(width, 0) * max(height, 0)
            total = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
            free &= label != other_label or common / total <= iou
        if free:
            kept.append((k, label))
    return kept[:most]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("form", ["cxcywh", "xyxy", "xywh"])
def test_boxes_and_probabilities_come_as_they_are(form: Any, transposed: bool) -> None:
    raw = predictions(form=form)
    module = Says(raw.transpose(1, 2) if transposed else raw)
    found = dense_detector(module, classes=CLASSES, boxes=form)
    candidates = Candidates(found.propose(module, IMAGES), found.classes)
    torch.testing.assert_close(candidates.boxes(0), corners())
    torch.testing.assert_close(candidates.probabilities, raw[..., 4:])


@pytest.mark.parametrize(
    ("threshold", "iou", "most"), [(0.0, 0.3, 300), (0.6, 0.5, 300), (0.2, 0.1, 7), (0.99, 0.5, 9)]
)
def test_what_is_kept_is_what_a_loop_keeps(threshold: float, iou: float, most: int) -> None:
    """Also of boxes beyond the left and upper border, of which there are many here."""
    module = Says(predictions())
    assert (corners() < -2).any()
    found = dense_detector(module, classes=CLASSES, iou=iou, most=most)
    output = found.propose(module, IMAGES)
    for k, kept in enumerate(found.keep(output, threshold)):
        wanted = by_hand(corners()[k], output[k, :, 4:], threshold, iou, most)
        assert list(zip(kept.index.tolist(), kept.label.tolist(), strict=True)) == wanted
        assert len(wanted) < ANCHORS


def test_classes_do_not_suppress_each_other_beyond_the_border() -> None:
    """Two equal boxes of two classes, far to the left of a third: all stay."""
    boxes = torch.tensor([[-50.0, -50, 0, 0], [-50, -50, 0, 0], [0, 0, 9, 9], [-40, -40, 10, 10]])
    said = torch.tensor([[0.9, 0.1], [0.1, 0.8], [0.7, 0.2], [0.1, 0.6]])
    module = Says(torch.cat([boxes, said], 1)[None])
    found = dense_detector(module, classes=2, boxes="xyxy", iou=0.01)
    (kept,) = found.keep(found.propose(module, IMAGES[:1]), 0.0)
    assert kept.index.tolist() == [0, 1, 2]


def test_a_higher_threshold_keeps_the_best_of_the_same() -> None:
    module = Says(predictions())
    found = dense_detector(module, classes=CLASSES, iou=0.3)
    output = found.propose(module, IMAGES)
    for low, high in zip(found.keep(output, 0.3), found.keep(output, 0.8), strict=True):
        assert 0 < len(high.index) < len(low.index)
        assert torch.equal(low.index[: len(high.index)], high.index)
        assert torch.equal(low.label[: len(high.label)], high.label)


def test_objectness_multiplies() -> None:
    raw = predictions(1 + CLASSES)
    module = Says(raw)
    found = dense_detector(module, classes=CLASSES, objectness=True)
    output = found.propose(module, IMAGES)
    torch.testing.assert_close(output[..., 4:], raw[..., 4:5] * raw[..., 5:])
    (kept, _) = found.keep(output, 0.25)
    assert by_hand(corners()[0], raw[0, :, 4:5] * raw[0, :, 5:], 0.25, 0.7, 300) == list(
        zip(kept.index.tolist(), kept.label.tolist(), strict=True)
    )


def test_logits_become_probabilities() -> None:
    raw = predictions(1 + CLASSES)
    logits = torch.cat([raw[..., :4], raw[..., 4:].logit()], 2)
    module = Says(logits)
    plain, doubled = (
        dense_detector(module, classes=c, objectness=o, activated=False).propose(module, IMAGES)
        for c, o in ((1 + CLASSES, False), (CLASSES, True))
    )
    torch.testing.assert_close(plain[..., 4:], raw[..., 4:])
    torch.testing.assert_close(doubled[..., 4:], raw[..., 4:5] * raw[..., 5:])


def test_fractions_of_the_image() -> None:
    raw = predictions()
    fractions = torch.cat([raw[..., :4] / torch.tensor([64.0, 48, 64, 48]), raw[..., 4:]], 2)
    module = Says(fractions)
    output = dense_detector(module, classes=CLASSES, scale="fraction").propose(module, IMAGES)
    torch.testing.assert_close(output[..., :4], corners())


def test_predictions_are_first_or_selected() -> None:
    raw = predictions()
    wanted = dense_detector(Says(raw), classes=CLASSES).propose(Says(raw), IMAGES)
    for output in ((raw, "features"), [raw], ([raw, 1], 2)):
        module = Says(output)
        assert torch.equal(dense_detector(module, classes=CLASSES).propose(module, IMAGES), wanted)
    module = Says({"other": 1, "boxes": raw})
    found = dense_detector(module, classes=CLASSES, select=lambda output: output["boxes"])
    assert torch.equal(found.propose(module, IMAGES), wanted)


def test_the_last_axis_is_taken_where_both_could_be_columns() -> None:
    raw = predictions()[:, : 4 + CLASSES]
    module = Says(raw)
    output = dense_detector(module, classes=CLASSES, boxes="xyxy").propose(module, IMAGES)
    assert torch.equal(output, raw)


def test_candidates_are_in_the_graph() -> None:
    raw = predictions(1 + CLASSES).requires_grad_()
    module = Says(raw.transpose(1, 2))
    output = dense_detector(module, classes=CLASSES, objectness=True).propose(module, IMAGES)
    (gradient,) = torch.autograd.grad(output[1, 5, 6], raw)
    assert gradient[1, 5, 4] == raw[1, 5, 7]
    assert gradient[1, 5, 7] == raw[1, 5, 4]
    assert gradient.count_nonzero() == 2


def test_half_precision() -> None:
    module = Says(predictions().bfloat16())
    found = dense_detector(module, classes=CLASSES)
    output = found.propose(module, IMAGES)
    assert output.dtype == torch.bfloat16
    assert all(len(k.index) > 3 for k in found.keep(output, 0.5))


def test_nothing_is_kept() -> None:
    module = Says(predictions())
    found = dense_detector(module, classes=CLASSES)
    assert [len(k.index) for k in found.keep(found.propose(module, IMAGES), 1.0)] == [0, 0]


@pytest.mark.parametrize(
    ("output", "came"),
    [
        (torch.zeros(2, 9, 11), r"got \(2, 9, 11\)"),
        (torch.zeros(2, 7), r"got \(2, 7\)"),
        ({"boxes": 1}, "got dict"),
        ((), "got tuple"),
    ],
)
def test_other_shapes_are_named(output: Any, came: str) -> None:
    module = Says(output)
    with pytest.raises(KonkyoError, match=r"are \(N, anchors, 7\) or \(N, 7, anchors\); " + came):
        dense_detector(module, classes=CLASSES).propose(module, IMAGES)


def test_what_is_not_on_offer() -> None:
    module = Says(predictions())
    with pytest.raises(KonkyoError, match=r"form of boxes 'cxcy'; did you mean 'cxcywh'"):
        dense_detector(module, classes=3, boxes="cxcy")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="scale 'percent'"):
        dense_detector(module, classes=3, scale="percent")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="at least one class; got classes=0"):
        dense_detector(module, classes=0)
    with pytest.raises(KonkyoError, match=r"layer 'neck'\. On offer: stem"):
        dense_detector(module, classes=3, layer="neck")
    assert dense_detector(module, classes=3, layer="stem").layer == "stem"


# --- layers ----------------------------------------------------------------------------------------------------------


class Levels(nn.Module):
    """It detects at some strides, each with a head of its own; the candidates of the finest level come first."""

    def __init__(self, strides: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
        self.features = nn.ModuleList(nn.Conv2d(8, 8, 2, 2) for _ in range(strides))
        self.heads = nn.ModuleList(nn.Conv2d(8, 6, 1) for _ in range(strides))

    def forward(self, x: Tensor) -> Tensor:
        levels, grid = list[Tensor](), self.stem(x)
        for number, (feature, head) in enumerate(zip(self.features, self.heads, strict=True)):
            grid = feature(grid).relu()
            values, stride = head(grid), 8 * 2**number
            rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in values.shape[2:]), indexing="ij")
            centres = torch.stack([columns, rows]) * stride + values[:, :2]
            parts = [centres, values[:, 2:4].exp() * 2 * stride, values[:, 4:].sigmoid()]
            levels.append(torch.cat(parts, 1).flatten(2))
        return torch.cat(levels, 2)


def best_of(net: Levels, x: Tensor, first: int, last: int) -> konkyo.InstanceTarget:
    """Returns the target of the most probable of some candidates."""
    rows = konkyo.Model(net, classes=["a", "b"], detector=dense_detector(net, classes=2))(x)[0]
    index, label = divmod(int(rows[first:last, 4:].argmax()), 2)
    row = rows[first + index]
    return konkyo.InstanceTarget(label, tuple(row[:4].tolist()), tuple(row[4:].tolist()), first + index)


@pytest.mark.parametrize(("strides", "level"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_a_detection_of_any_level_is_explained_at_that_level(strides: int, level: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Levels(strides).eval()
    with torch.no_grad():
        net.heads[-1 - level].bias[4:] += 1  # on noise the best candidate is another level's
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    counts = [(8 // 2**number) ** 2 for number in range(strides)]
    first = sum(counts[:level])
    target = best_of(net, x, first, first + counts[level])
    model = konkyo.Model(net, classes=["a", "b"], detector=dense_detector(net, classes=2))
    kept: list[Tensor] = []
    handle = net.features[level].register_forward_hook(lambda _m, _i, output: kept.append(output))
    assert target.index is not None
    score = net(x)[0, 4 + target.label, target.index]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    by_hand = (gradient * kept[0])[0].sum(0).detach()
    found = konkyo.explain(model, x, method="odam", layer=f"features.{level}", target=target).signed[0]
    torch.testing.assert_close(found, by_hand, rtol=1e-3, atol=1e-6)
    automatic = konkyo.explain(model, x, method="odam", target=target)
    assert float(automatic.signed.abs().max()) > 0
    assert automatic.diagnosis[0].kind in ("ok", "all negative")
    names = [f"features.{number}" for number in range(strides)]
    several = konkyo.explain(model, x, method="odam", layer=names, target=target)
    assert several.layer == "+".join(names)
    assert float(several.signed.abs().max()) > 0
