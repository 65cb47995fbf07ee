"""The tables of the founding papers: what is in them, and how far paths are from the integral."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import konkyo
from konkyo.data.samples import samples
from konkyo.evaluation.result import markdown
from konkyo.studies import ig_odam as paper
from konkyo.studies.ig_odam import PATHS, Convergence, convergence, save, sweep, sweep_table, tables
from konkyo.tasks.base import SEVEN_CAMS

SCENES = "scenes:2,objects=1,size=96"
FEW = konkyo.Matching(0.2)


@pytest.fixture(scope="module")
def detector() -> konkyo.Model:
    pytest.importorskip("transformers")
    return konkyo.load("konkyo/scenes-detr")


def test_convergence_is_the_distance_from_many_nodes(detector: konkyo.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "REFERENCE_NODES", 17)
    found = convergence(detector, SCENES, nodes=(2, 9, 17), limit=1, matching=FEW)
    picture, target = samples(SCENES, limit=1)[0].image, konkyo.Detections(threshold=0.2)

    def maps(method: str, **options: int) -> torch.Tensor:
        return konkyo.explain(detector, picture, method=method, target=target, **options).signed.flatten(1).double()

    reference = maps("ig_odam", nodes=17)
    for k, count in enumerate((2, 9)):
        off = (maps("ig_odam", nodes=count) - reference).abs().sum(1) / reference.abs().sum(1)
        torch.testing.assert_close(found.errors["ig_odam"][k], off)
    assert found.errors["ig_odam"][2].abs().max() == 0
    adaptive = maps("adaptive_ig_odam", nodes=9, initial=4)
    off = (adaptive - reference).abs().sum(1) / reference.abs().sum(1)
    torch.testing.assert_close(found.errors["adaptive_ig_odam"][1], off)
    assert torch.equal(found.errors["adaptive_ig_odam"][0], found.errors["ig_odam"][0])  # two nodes are the two ends
    assert (found.errors["ig_odam"][0] > found.errors["ig_odam"][1]).all()


def test_who_is_nearer_is_counted_where_they_differ(tmp_path: Path) -> None:
    rows = [[0.5, 0.5, math.nan], [0.3, 0.2, math.nan]], [[0.5, 0.5, math.nan], [0.2, 0.4, 0.1]]
    errors = dict(zip(PATHS, map(torch.tensor, rows), strict=True))
    found = Convergence((2, 4), errors)
    assert markdown(found.table()).splitlines()[2:] == [
        "| 2 | 0.5000 | 0.5000 | all alike |",
        "| 4 | 0.2000 | 0.2000 | 1 of 2 |",
    ]
    save(found, tmp_path)
    kept = json.loads((tmp_path / "convergence.json").read_text())
    assert kept["errors"]["ig_odam"][1] == pytest.approx([0.3, 0.2, None])
    with Image.open(tmp_path / "convergence.png") as picture:
        assert picture.width > 300


def test_the_sweep_takes_the_number_of_nodes(detector: konkyo.Model, tmp_path: Path) -> None:
    found = sweep(detector, SCENES, nodes=(2, 3), limit=1, matching=FEW, steps=4, out=tmp_path)
    direct = konkyo.evaluate(detector, SCENES, ["ig_odam"], ["ebpg@box"], limit=1, matching=FEW, nodes=3)
    assert found[3].cell("ig_odam", "ebpg@box").value == direct.cell("ig_odam", "ebpg@box").value
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2-nodes", "3-nodes"]
    lines = markdown(sweep_table(found)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 2", "| 3"]
    both = [found[2].cell(name, "vea@mask").value for name in PATHS]
    assert f"{both[0]:.3f}, {both[1]:.3f}" in lines[2]


def test_the_table_of_a_classifier() -> None:
    model = konkyo.load("konkyo/scenes-classifier")
    found = tables(model, "scenes:1,objects=1,size=64", steps=4, masks=8)
    assert found.methods == (*SEVEN_CAMS, "rise")
    names = ["deletion(steps=4)", "insertion(steps=4)", "ebpg@mask", "pointing_game@evidence"]
    assert [c.name for c in found.columns] == names


def test_paths_of_a_classifier_are_refused() -> None:
    with pytest.raises(konkyo.KonkyoError, match="no detector"):
        convergence(konkyo.load("konkyo/scenes-classifier"), SCENES)
