"""evaluate() on detectors: boxes, borders, and which detections are measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import konkyo
from helpers.detections import iou_by_hand
from helpers.detectors import dense
from helpers.evaluation_inputs import block, detected, equal, greedy, letterboxed
from helpers.unregistered import made
from konkyo.evaluation.columns import column
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.plan import Maps
from konkyo.metrics import METRICS, metric
from konkyo.tasks.base import Matching

OF_DETECTORS = ["deletion(protocol=seed,steps=4)", "insertion(protocol=odam,steps=4,every=2)", "ebpg@box", "vea"]


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
@pytest.mark.parametrize(("boxed", "size"), [(False, (48, 64)), (False, (40, 50)), (True, (60, 50)), (True, (36, 60))])
def test_values_of_a_detector_are_those_of_metrics_called_by_hand(boxed: bool, size: tuple[int, int]) -> None:
    model = letterboxed(dense()) if boxed else dense()
    sample = detected(model, size)
    found = evaluate(model, [sample], ["odam"], OF_DETECTORS, seed=2, matching=Matching(0.3, 0.5))
    height, width = size
    # input pixel = picture pixel * share + border
    if boxed:
        scale = min(24 / height, 32 / width)
        inner = (round(width * scale), round(height * scale))
        shares, border = (inner[0] / width, inner[1] / height), ((32 - inner[0]) // 2, (24 - inner[1]) // 2)
    else:
        shares, border = (32 / width, 24 / height), (0, 0)
    images = model.preprocess(sample.image)[None].double()
    output = model(images).detach()[0]
    targets = konkyo.Detections(threshold=0.3)
    result = konkyo.explain(model, sample.image, method="odam", target=targets)
    owners = greedy(
        [name.replace(" ", "_") for name in result.labels],
        result.boxes.tolist(),
        [replace(t, label=t.label.lower()) for t in sample.annotations],
        0.5,
    )
    rows = [i for i, own in enumerate(owners) if own]
    assert len(rows) == len(found.rows) == 3
    things = [sample.annotations[owners[i][0]] for i in rows]
    in_input = [[t.box[k] * shares[k % 2] + border[k % 2] for k in range(4)] for t in things]
    labels = [int(t.label[-1]) for t in things]

    def sure(candidates: Tensor, row: int) -> float:
        best = 0.0
        for candidate in candidates.tolist():
            if iou_by_hand(candidate[:4], in_input[row]) > 0.5:
                best = max(best, candidate[4 + labels[row]])
        return best

    def score(variants: Tensor, of: Tensor) -> Tensor:
        return torch.tensor([sure(o, r) for o, r in zip(model(variants).detach(), of.tolist(), strict=True)])

    assert [row.score for row in found.rows] == pytest.approx([sure(output, r) for r in range(3)], rel=1e-5)
    assert [row.explained for row in found.rows] == [f"class {k}" for k in labels]
    assert [row.decision for row in found.rows] == [f"class {k}" for k in labels]
    assert [row.label for row in found.rows] == [f"class {k}" for k in labels]
    area = [
        (min(math.ceil(b[2]), 32) - max(math.floor(b[0]), 0)) * (min(math.ceil(b[3]), 24) - max(math.floor(b[1]), 0))
        for b in in_input
    ]
    maps = result.maps[rows]
    given_: dict[str, Any] = {"images": images.expand(3, -1, -1, -1), "score": score, "budget": torch.tensor(area)}
    given_["pixels"] = torch.stack(
        [(v - torch.tensor(model.preprocess.mean)) / torch.tensor(model.preprocess.std) for v in (0.0, 1.0)]
    ).double()
    for name in OF_DETECTORS[:2]:
        c = column(name)
        by_hand = c.metric(maps, **given_, **c.options, seed=2)
        equal(found.values("odam", c.name), by_hand)
    shown = result.at(size)[rows]
    boxes = torch.stack(
        [
            block(tuple(f(v) for f, v in zip((math.floor, math.floor, math.ceil, math.ceil), t.box, strict=True)), size)
            for t in things
        ]
    )
    equal(found.values("odam", "ebpg@box"), METRICS["ebpg"](shown, masks=boxes))
    equal(found.values("odam", "vea@mask"), METRICS["vea"](shown, masks=torch.stack([t.mask for t in things])))


@pytest.mark.parametrize("boxed", [False, True])
def test_maps_over_the_picture_come_to_the_places_that_they_show(boxed: bool, tmp_path: Path) -> None:
    """Of another tool: a map's highest pixel lies where the picture's pixel lies in the input, also with a border."""
    found = []

    @metric(better="higher")
    def highest(maps: Tensor, images: Tensor) -> Tensor:
        """Notes where, in the input."""
        assert maps.shape[1:] == images.shape[2:]
        found.extend(divmod(int(m.argmax()), maps.shape[2]) for m in maps)
        return maps.flatten(1).amax(1)

    model = letterboxed(dense()) if boxed else dense()
    height, width = size = (60, 50)
    sample = detected(model, size)
    places = [(10, 10), (50, 12), (30, 44)]
    down, across = np.mgrid[:height, :width]
    np.save(tmp_path / "d0.npy", np.stack([np.exp(-((down - y) ** 2 + (across - x) ** 2) / 40) for y, x in places]))
    shares, border = ((0.4, 0.4), (0, 6)) if boxed else ((24 / 60, 32 / 50), (0, 0))
    try:
        values = evaluate(model, [sample], [Maps(tmp_path, "peer")], ["highest", "pointing_game"])
        assert len(values.rows) == 3
        for place, came in zip(places, found, strict=True):
            for axis in range(2):
                assert came[axis] == pytest.approx((place[axis] + 0.5) * shares[axis] + border[axis] - 0.5, abs=1)
    finally:
        METRICS.pop("highest")


def test_only_detections_that_are_right_are_measured_and_the_rest_counted() -> None:
    model = dense()
    sample = detected(model, (48, 64), 2)
    every = len(konkyo.explain(model, sample.image, target=konkyo.Detections(threshold=0.3)))
    found = evaluate(model, [sample], ["odam"], ["ebpg"])
    assert len(found.rows) == 2
    assert any(f"2 of {every} (score > 0.3, IoU >= 0.5" in note for note in found.notes)
    whole = evaluate(model, [sample], ["odam"], ["ebpg"], matching=Matching(iou=0))
    assert len(whole.rows) == every


def test_where_nothing_is_detected_there_is_a_table_all_the_same(tmp_path: Path) -> None:
    model = dense()
    found = evaluate(
        model, [detected(model, (48, 64), 2)], ["odam"], OF_DETECTORS, matching=Matching(0.999), out=tmp_path
    )
    assert found.rows == ()
    assert "0 of 0" in (tmp_path / "table.md").read_text()


def test_only_maps_with_one_highest_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    sample = detected(model, (48, 64), 3)

    def peaked(inputs: Tensor) -> Tensor:
        maps = torch.zeros(len(inputs), 24, 32)
        for row in range(len(maps)):
            maps[row, row, 5] = 1
            if row == 1:
                maps[row, row, 6] = 1
        return maps

    def sloped(inputs: Tensor) -> Tensor:
        return torch.arange(24 * 32.0).view(1, 24, 32).expand(len(inputs), -1, -1).clone()

    both, alone = ([made(peaked), made(sloped)], [made(sloped)])
    assert len(evaluate(model, [sample], both, ["ebpg"]).rows) == 3
    found = evaluate(model, [sample], both, ["ebpg", "deletion(protocol=seed,steps=4)"], matching=Matching(unique=True))
    usual = evaluate(model, [sample], both, ["ebpg", "deletion(protocol=seed,steps=4)"])
    assert found.rows == (usual.rows[0], usual.rows[2])
    for c in found.columns:
        equal(found.values("peaked", c.name), usual.values("peaked", c.name)[[0, 2]])
    assert "one highest place" in " ".join(found.notes)
    assert len(evaluate(model, [sample], alone, ["ebpg"], matching=Matching(unique=True)).rows) == 3


def test_d_rise_explains_the_likeness_and_is_scored_as_the_others() -> None:
    model = dense()
    sample = detected(model, (48, 64), 2)
    found = evaluate(model, [sample], ["odam", "d_rise"], ["deletion(protocol=seed,steps=4)", "ebpg"], masks=16)
    curves = [found.statistics[m, "deletion(protocol=seed,steps=4)"] for m in ("odam", "d_rise")]
    assert torch.equal(curves[0][:, 0], curves[1][:, 0])
    assert not found.notes or not any(note.startswith(("odam", "d_rise")) for note in found.notes)


def test_same_object_and_separation_of_a_detector() -> None:
    model = dense()
    sample = detected(model, (48, 64), 3)
    found = evaluate(model, [sample], ["odam"], ["same_object", "separation"])
    assert found.values("odam", "same_object").isnan().all(), "every object is found once"


def test_the_shipped_detector_on_scenes() -> None:
    found = evaluate(
        konkyo.load("konkyo/scenes-detr"), "scenes:2", ["odam"], ["ebpg@box", "deletion(protocol=seed,steps=4)"]
    )
    assert len(found.rows) >= 2
    assert found.cell("odam", "ebpg@box").value > 0.1
    assert any("boxes and masks" in note for note in found.notes)
