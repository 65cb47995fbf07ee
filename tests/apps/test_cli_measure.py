"""`konkyo evaluate` and `konkyo metrics` on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import konkyo
from helpers.commands import Run, runner, told
from helpers.strict_json import strict
from konkyo.apps.cli.options import names_in
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.result import Evaluation
from konkyo.metrics import metrics

NETS = """
import torch
from torch import nn
import konkyo

def net(channels=3):
    torch.manual_seed(0)
    body = [nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

def named():
    return konkyo.Model(net(), konkyo.Preprocess(40, 32), ("cat", "dog", "fox", "owl", "bee"), "small")
"""

QUICK = (
    "--model",
    "nets.py:named",
    "--metrics",
    "deletion(steps=4),ebpg,px_ap(steps=9)",
    "--method",
    "grad_cam,layer_cam",
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`konkyo ...` in a folder with nets.py and photos/CLASS/NAME.png with masks."""
    random = np.random.default_rng(0)
    for i in range(4):
        for name in ("cat", "dog"):
            photo = tmp_path / "photos" / name / f"{i}.png"
            outline = tmp_path / "photos" / "masks" / name / f"{i}.png"
            for path in (photo, outline):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(photo)
            mask = np.zeros((48, 60), np.uint8)
            mask[10:30, 20 : 40 + i] = 255
            Image.fromarray(mask).save(outline)
    return runner(NETS, "named", tmp_path, monkeypatch, capsys)


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_the_layer_is_where_maps_are_measured(run: Run) -> None:
    found = run(
        "evaluate",
        *QUICK,
        "--data",
        "folder:photos",
        "--limit",
        "2",
        "--explained",
        "label",
        "--layer",
        "1",
        "--out",
        "to",
    )
    assert found.code == 0, found.err
    result = Evaluation.load("to")
    assert result.settings["layer"] == "1"
    data, model = konkyo.data.samples.samples("folder:photos", limit=2), konkyo.load("nets.py:named")
    values = result.values("layer_cam", "ebpg@mask")
    there = evaluate(model, data, ["layer_cam"], ["ebpg"], layer="1", explained="label").values(
        "layer_cam", "ebpg@mask"
    )
    elsewhere = evaluate(model, data, ["layer_cam"], ["ebpg"], explained="label").values("layer_cam", "ebpg@mask")
    torch.testing.assert_close(values, there)
    assert (values - elsewhere).abs().max() > 1e-3


def test_a_table_with_values_and_curves(run: Run) -> None:
    found = run("evaluate", *QUICK, "--data", "folder:photos", "--explained", "label", "--out", "to")
    assert found.code == 0, found.err
    for piece in ("grad_cam", "layer_cam", "deletion(steps=4)", "ebpg@mask", "absent", "p < 0.05", "8 of 8 pictures"):
        assert piece in " ".join(found.out.split()), found.out
    names = sorted(p.name for p in Path("to").iterdir())
    assert names == [
        "curves.png",
        "evaluation.json",
        "provenance.json",
        "samples.jsonl",
        "statistics.safetensors",
        "table.csv",
        "table.md",
        "table.tex",
        "values.csv",
    ]
    assert len(Path("to/samples.jsonl").read_text().splitlines()) == 1 + 8
    values = list(csv.DictReader(Path("to/values.csv").read_text().splitlines()))
    assert len(values) == 8 * 2 * 2
    assert {v["sample"] for v in values} == {f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)}
    assert {v["label"] for v in values} == {"cat", "dog"}


def test_the_values_are_those_of_the_library(run: Run) -> None:
    found = run("evaluate", *QUICK, "--data", "folder:photos", "--explained", "label", "--limit", 3, "--seed", 4)
    assert found.code == 0, found.err
    space: dict[str, Any] = {}
    exec(NETS, space)
    names = ["deletion(steps=4)", "ebpg", "px_ap(steps=9)"]
    own = evaluate(
        space["named"](), "folder:photos", ["grad_cam", "layer_cam"], names, explained="label", limit=3, seed=4
    )
    table = list(csv.DictReader(Path("konkyo-evaluation/table.csv").read_text().splitlines()))
    for cell in table:
        expected = own.cell(cell["method"], cell["metric"])
        assert int(cell["count"]) == expected.count == 3
        assert float(cell["value"]) == pytest.approx(expected.value, rel=1e-6)
        assert float(cell["low"]) == pytest.approx(expected.low, rel=1e-6)


def test_the_result_as_json(run: Run) -> None:
    found = run("evaluate", *QUICK, "--data", "folder:photos", "--limit", 2, "--json")
    assert found.code == 0, found.err
    value = json.loads(found.out)
    assert value["settings"]["samples"] == 2
    assert value["settings"]["methods"] == ["grad_cam", "layer_cam"]
    assert len(value["table"]) == 6
    assert {c["metric"] for c in value["table"]} == {"deletion(steps=4)", "ebpg@mask", "px_ap@mask(steps=9)"}
    strict(found.out)


def test_the_same_command_again_goes_on_and_says_the_same(run: Run) -> None:
    asked = ("evaluate", *QUICK, "--data", "folder:photos", "--limit", 3, "--out", "to")
    first = run(*asked)
    kept, table = Path("to/samples.jsonl").read_bytes(), Path("to/table.csv").read_bytes()
    Path("to/samples.jsonl").write_bytes(kept[:-9])  # the last line is torn: its sample is measured again
    second = run(*asked)
    assert first.code == second.code == 0
    assert second.out == first.out
    assert Path("to/table.csv").read_bytes() == table
    assert Path("to/samples.jsonl").read_bytes() == kept
    told(run(*asked, "--seed", 1), "other", "seed", "choose another folder")


@pytest.mark.parametrize("changes", [("--mean", "0.1,0.1,0.1"), ("--resize", "36"), ("--crop", "28")], ids=" ".join)
def test_a_folder_of_pictures_prepared_otherwise_is_refused(run: Run, changes: tuple[str, str]) -> None:
    asked = ("evaluate", *QUICK, "--data", "folder:photos", "--limit", 1, "--out", "to")
    assert run(*asked).code == 0
    told(run(*asked, *changes), "choose another folder")


def test_maps_of_another_tool_with_and_without_a_model(run: Run) -> None:
    random = np.random.default_rng(1)
    for name in ("cat", "dog"):
        Path("peer", name).mkdir(parents=True)
        for i in range(4):
            np.save(Path("peer", name, f"{i}.png.npy"), random.random((12, 15)))
    common = ("--data", "folder:photos", "--metrics", "ebpg,pointing_game", "--explained", "label", "--maps", "peer")
    both = run("evaluate", "--model", "nets.py:named", "--method", "grad_cam", *common, "--out", "both", "--json")
    alone = run("evaluate", "--model", "nets.py:named", *common, "--out", "alone", "--json")
    without = run("evaluate", "--model", "none", *common, "--out", "without", "--json")
    assert both.code == alone.code == without.code == 0, (both.err, alone.err, without.err)
    assert [x.json["settings"]["methods"] for x in (both, alone, without)] == [["grad_cam", "peer"], ["peer"], ["peer"]]
    assert without.json["settings"]["model"] is None
    assert {c["count"] for c in without.json["table"]} == {8}
    one, other = (
        next(c for c in x.json["table"] if (c["method"], c["metric"]) == ("peer", "ebpg@mask")) for x in (both, alone)
    )
    assert one["value"] == pytest.approx(other["value"])
    told(
        run("evaluate", "--model", "none", "--data", "folder:photos", "--metrics", "ebpg", "--out", "x"),
        "maps of other tools",
    )
    told(
        run("evaluate", "--model", "none", *common[:2], "--metrics", "deletion", *common[-2:], "--out", "y"), "a model"
    )
    told(run("evaluate", "--model", "none", *common[:4], "--maps", "nowhere", "--out", "z"), "nowhere")


def test_options_reach_methods(run: Run) -> None:
    asked = ("evaluate", "--model", "nets.py:named", "--data", "folder:photos", "--limit", 1, "--metrics", "sparseness")
    values = []
    for masks in (4, 40):
        found = run(*asked, "--method", "rise", "--option", f"masks={masks}", "--out", f"to{masks}", "--json")
        assert found.code == 0, found.err
        values.append(found.json["table"][0]["value"])
    assert values[0] != values[1]
    told(run(*asked, "--method", "grad_cam", "--option", "masks=4", "--out", "x"), "masks")


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (("--metrics", "ebgp"), ("unknown metric", "ebpg")),
        (("--metrics", "ebpg@head"), ("unknown region", "evidence")),
        (("--metrics", "deletion(step=4)"), ("step", "steps")),
        (("--metrics", "deletion(steps=x)"), ("steps", "int")),
        (("--method", "gradcam"), ("unknown method", "grad_cam")),
        (("--data", "foldr:photos"), ("unknown data", "folder")),
        (("--data", "folder:nowhere"), ("nowhere",)),
        (("--explained", "lable"), ("did you mean 'label'? On offer: decision, label",)),
        (("--seed", "-1"), ("seed",)),
        (("--maps", "nowhere"), ("nowhere",)),
        (("--precision", "fp8"), ("fp8",)),
    ],
    ids=lambda w: " ".join(w),
)
def test_what_is_wrong_is_told_in_a_line(run: Run, words: tuple[str, str], pieces: tuple[str, ...]) -> None:
    usual = {"--model": "nets.py:named", "--data": "folder:photos", "--method": "grad_cam", "--metrics": "ebpg"}
    asked = [w for pair in (usual | {words[0]: words[1]}).items() for w in pair]
    told(run("evaluate", *asked, "--limit", 1), *pieces)


def test_a_limit_below_one_is_refused(run: Run) -> None:
    found = run("evaluate", *QUICK, "--data", "folder:photos", "--limit", 0)
    assert found.code == 2
    assert "--limit" in found.err


def test_a_damaged_picture_is_told_and_the_rest_measured(run: Run) -> None:
    whole = Path("photos/dog/1.png")
    whole.write_bytes(whole.read_bytes()[:400])
    found = run("evaluate", *QUICK, "--data", "folder:photos")
    assert found.code == 0, found.err
    said = " ".join(found.out.split())
    assert "1 samples skipped" in said
    assert "1.png" in said


def test_a_detector_that_finds_nothing_has_an_empty_table(run: Run) -> None:
    found = run(
        *("evaluate", "--model", "konkyo/scenes-detr", "--data", "scenes:1", "--method", "odam", "--score", "0.999"),
        *("--metrics", "ebpg@box,deletion(protocol=seed,steps=4)"),
    )
    assert found.code == 0, found.err
    assert "0 of 0" in found.out


def test_detections_are_filtered_as_asked_for(run: Run) -> None:
    asked = (
        "evaluate",
        "--model",
        "konkyo/scenes-detr",
        "--data",
        "scenes:2",
        "--method",
        "odam",
        "--metrics",
        "ebpg@box",
    )
    found = run(*asked, "--score", "0.4", "--iou", "0.6", "--unique", "--json")
    assert found.code == 0, found.err
    assert found.json["settings"]["matching"].startswith("score > 0.4, IoU >= 0.6")
    assert "one highest place" in found.json["settings"]["matching"]
    assert any(note.startswith("Detections: ") for note in found.json["notes"])


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_are_listed(run: Run) -> None:
    found = run("metrics")
    assert found.code == 0
    for name, metric in metrics().items():
        assert name in found.out
        assert metric.better in found.out
    assert "tolerance=0.0" in found.out


def test_metrics_as_json(run: Run) -> None:
    listed = strict(run("metrics", "--json").out)
    assert listed.keys() == metrics().keys()
    assert listed["deletion"]["better"] == "lower"
    assert listed["deletion"]["needs"] == ["maps", "images", "score", "budget", "pixels", "part"]
    assert listed["deletion"]["options"]["steps"] == "100"
    for said in listed.values():
        assert said["summary"].strip()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("ebpg", ["ebpg"]),
        (" ebpg@box , deletion(protocol=seed,steps=4),vea ", ["ebpg@box", "deletion(protocol=seed,steps=4)", "vea"]),
        ("a(b=1),c(d=2,e=3),", ["a(b=1)", "c(d=2,e=3)"]),
    ],
)
def test_commas_in_parentheses_do_not_separate_metrics(text: str, names: list[str]) -> None:
    assert names_in(text) == names


def test_the_library_has_evaluate() -> None:
    assert konkyo.evaluate is evaluate


def test_recommend_ranks_methods_on_the_data(run: Run, tmp_path: Path) -> None:
    found = run(
        *("recommend", "--data", "scenes:3,objects=1,size=64", "--method", "grad_cam,eigen_cam"),
        *("--metrics", "deletion(steps=4),ebpg@mask", "--criteria", "localisation=2", "--out", tmp_path / "to"),
    )
    assert found.code == 0, found.err
    assert "forward(s) an image" in found.out or "none is recommended" in found.out
    text = (tmp_path / "to" / "recommendation.md").read_text()
    assert "localisation (2)" in text
    assert (tmp_path / "to" / "values.csv").is_file()


@pytest.mark.parametrize("order", ["cascading", "independent", "bottom_up"])
def test_weights_are_drawn_anew_in_every_order(run: Run, order: str) -> None:
    found = run("sanity", "photos/cat/0.png", "--model", "nets.py:named", "--order", order, "--steps", 2, "--json")
    assert found.code == 0, found.err
    assert set(found.json["grad_cam"]) == {order, "class"}
