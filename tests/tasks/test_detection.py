"""Candidates that cannot be such are refused, with the setting that mends it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from konkyo.models.detectors import best_pairs

SIDE, CELL = 64, 8
IMAGE = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
Form = Callable[[Tensor, Tensor, Tensor], Any]


class Anchors(nn.Module):
    """A detector of 64 anchors, which returns what `form(centres, sides, logits)` makes, each (N, 64, 2)."""

    def __init__(self, form: Form, no_grad: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.head, self.form, self.no_grad = nn.Conv2d(3, 8, CELL, CELL), nn.Conv2d(8, 4, 1), form, no_grad

    def forward(self, x: Tensor) -> Any:
        features = self.conv(x).relu()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.no_grad):
            raw = self.head(features).flatten(2).transpose(1, 2)
        cells = (torch.arange(SIDE // CELL) + 0.5) * CELL
        centres = torch.cartesian_prod(cells, cells).flip(1).expand(len(x), -1, -1)
        return self.form(centres, raw[..., :2].exp() * 16, raw[..., 2:] * 9)


def joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


def corners(centres: Tensor, sides: Tensor) -> Tensor:
    return joined(centres - sides / 2, centres + sides / 2)


def right(centres: Tensor, sides: Tensor, logits: Tensor) -> Tensor:
    return joined(centres, sides, logits.sigmoid())


def rows(centres: Tensor, sides: Tensor, logits: Tensor) -> Tensor:
    """As an export with suppression: (box, score, class), the highest score first."""
    scores, classes = logits.sigmoid().max(-1)
    order = scores.argsort(1, descending=True)[..., None]
    table = joined(corners(centres, sides), scores[..., None], classes[..., None].float())
    return table.gather(1, order.expand(-1, -1, 6))[:, :20]


def explain(form: Form, method: str = "odam", target: Any = None, **settings: Any) -> konkyo.Explanation:
    network = Anchors(form, settings.pop("no_grad", False)).eval()
    settings = {"classes": 2, "layer": "conv"} | settings
    model = konkyo.Model(network, detector=konkyo.dense_detector(network, **settings))
    return konkyo.explain(model, IMAGE, method=method, target=target or konkyo.Detections(top=3))


def test_what_is_right_is_explained_without_a_word() -> None:
    expected = right(*Anchors(lambda *parts: parts).eval()(IMAGE))[0, :, 4:].detach()
    result = explain(right)
    assert abs(float(result.scores[0]) - float(expected.amax())) < 1e-6


IMPOSSIBLE: dict[str, tuple[Form, dict[str, Any], str]] = {
    "logits": (lambda c, s, z: joined(c, s, z), {}, r"activated=.*objectness=.*select="),
    "small logits": (lambda c, s, z: joined(c, s, z / 9), {}, "activated="),
    "percent": (lambda c, s, z: joined(c, s, z.sigmoid() * 100), {}, "activated="),
    "negative": (lambda c, s, z: joined(c, s, -z.sigmoid()), {}, "activated="),
    "infinite": (lambda c, s, z: joined(c, s, z * torch.inf), {}, "activated="),
    "NaN": (lambda c, s, z: joined(c, s, z * torch.nan), {}, r"NaN.*activated="),
    "one NaN": (lambda c, s, z: joined(c, s, z.sigmoid() + torch.nan * (z == z.amax())), {}, "NaN"),
    "a sigmoid twice": (right, {"activated": False}, "activated=True"),
    "logits of objectness": (
        lambda c, s, z: joined(c, s, z[..., :1] * 2, z),
        {"objectness": True},
        "activated=False",
    ),
    "rows of two classes": (rows, {"boxes": "xyxy"}, r"suppression.*select="),
    "rows of many classes": (
        lambda c, s, z: rows(c, s, z) + torch.tensor([0.0, 0, 0, 0, 0, 7]),
        {"boxes": "xyxy"},
        "a class's index",
    ),
    "rows for 80 classes": (rows, {"boxes": "xyxy", "classes": 80}, "without it"),
    "an angle": (lambda c, s, z: joined(right(c, s, z), z[..., :1]), {}, "angle of a rotated box"),
    "an angle for a class": (lambda c, s, z: joined(c, s, z[..., :1].sigmoid(), z[..., 1:]), {}, "an angle"),
    "objectness": (lambda c, s, z: joined(c, s, z[..., :1].sigmoid(), z.sigmoid()), {}, "objectness="),
    "dictionaries": (lambda c, s, z: [{"boxes": c[0], "scores": z[0, :, 0]}], {}, "after suppression"),
    "centre and size as corners": (right, {"boxes": "xyxy"}, "cxcywh"),
    "fractions as pixels": (lambda c, s, z: joined(c / SIDE, s / SIDE, z.sigmoid()), {}, "scale='fraction'"),
    "pixels as fractions": (right, {"scale": "fraction"}, "scale="),
    "boxes of NaN": (lambda c, s, z: joined(c, s * torch.nan, z.sigmoid()), {}, "NaN or infinite sides"),
    "boxes without end": (lambda c, s, z: joined(c, s * torch.inf, z.sigmoid()), {}, "NaN or infinite sides"),
}


@pytest.mark.parametrize(("form", "settings", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_is_refused_with_what_to_change(form: Form, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        explain(form, **settings)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda c, s, z: joined(corners(c, s), z), "activated="),
        (lambda c, s, z: joined(c, s, z.sigmoid()), "end before they begin"),
        (lambda c, s, z: joined(corners(c, s) / SIDE, z.sigmoid()), "less than a pixel"),
        (lambda c, s, z: joined(corners(c, s), z.sigmoid(), z[..., :1]), r"\(N, Q, 6\)"),
    ],
)
def test_a_detector_of_the_users_own_is_looked_at_as_well(form: Form, message: str) -> None:
    network = Anchors(form).eval()
    adapter = konkyo.Detector(2, lambda module, x: module(x), partial(best_pairs, classes=2), "conv")
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(konkyo.Model(network, detector=adapter), IMAGE, method="odam")


def test_flat_boxes_in_the_upper_right_corner_are_boxes() -> None:
    """Half a pixel high, and further to the right than down: no side of theirs ends before it begins."""
    corner, flat = torch.tensor([46.0, 2.0]), torch.tensor([6.0, 0.5])
    result = explain(lambda c, s, z: joined(c / 4 + corner, flat.expand_as(s), z.sigmoid()))
    assert result.boxes is not None
    assert (result.boxes[:, 3] < result.boxes[:, 0] - 1).all()
    torch.testing.assert_close(result.boxes[:, 2:] - result.boxes[:, :2], flat.expand(3, 2))


def test_a_few_boxes_that_end_before_they_begin_are_warned_of() -> None:
    def form(centres: Tensor, sides: Tensor, logits: Tensor) -> Tensor:
        turned = torch.zeros(64, 1)
        turned[int(logits[0].amax(1).argmax())] = 1
        return joined(centres, sides * (1 - 2 * turned), logits.sigmoid())

    with pytest.warns(konkyo.KonkyoWarning, match="1 of 3 detections have boxes that end"):
        explain(form)


def test_names_for_another_number_of_classes() -> None:
    network = Anchors(right).eval()
    detector = konkyo.dense_detector(network, classes=2, layer="conv")
    with pytest.raises(konkyo.KonkyoError, match="3 class names for a detector of 2"):
        konkyo.explain(konkyo.Model(network, classes="abc", detector=detector), IMAGE, method="odam")
    model = konkyo.Model(network, classes=("background", "a", "b"), detector=detector)
    result = konkyo.explain(model, IMAGE, method="odam", target=konkyo.Detections(top=3))
    assert set(result.labels) <= {"a", "b"}


PATHS = ("odam", "ig_odam", "adaptive_ig_odam", "path_odam", "grad_cam")


@pytest.mark.parametrize("method", PATHS)
def test_a_network_without_gradient_is_named_by_all_relatives_of_odam(method: str) -> None:
    with pytest.warns(konkyo.KonkyoWarning, match=r"torch\.no_grad"):
        result = explain(right, method, no_grad=True)
    assert {d.kind for d in result.diagnosis} == {"zero gradient"}


@pytest.mark.parametrize("method", PATHS)
def test_an_instance_that_is_not_there_is_named_by_all_relatives_of_odam(method: str) -> None:
    absent = konkyo.InstanceTarget(0, (600.0, 600.0, 620.0, 620.0), (0.9, 0.1), 10**6)
    with pytest.warns(konkyo.KonkyoWarning, match="nothing on this image is like the explained instance"):
        result = explain(right, method, absent)
    assert float(result.scores[0]) == 0


@pytest.mark.parametrize("method", PATHS)
def test_where_nothing_is_detected_there_are_no_rows(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", konkyo.KonkyoWarning)
        assert len(explain(lambda c, s, z: joined(c, s, z.sigmoid() / 100), method)) == 0
