"""`konkyo diagnose` and `konkyo neighbours`, on drawn scenes and a shipped model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from konkyo.apps.cli.main import app

MODEL = ("--model", "konkyo/scenes-classifier")
DATA = ("--data", "scenes:12,objects=1")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, result.output


def test_a_line_per_finding_and_a_folder_that_becomes_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code, output = run("diagnose", *MODEL, *DATA, "--ask", "backbone,wrong", "--resamples", "99", "--out", str(folder))
    assert code == 0, output
    assert "backbone" in output
    values = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    assert {f["question"] for f in values["findings"]} == {"backbone", "wrong"}
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "findings.md", "images.csv", "classes.csv", "maps.safetensors"} <= names
    page = folder / "again.html"
    assert run("report", str(folder), "--out", str(page))[0] == 0
    assert "backbone" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("severity", "expected"), [("low", 4), ("high", 0)])
def test_a_severe_finding_fails_where_that_is_asked_for(tmp_path: Path, severity: str, expected: int) -> None:
    arguments = ("--ask", "suspicious", "--no-html", "--fail-on", severity, "--out", str(tmp_path))
    assert run("diagnose", *MODEL, *DATA, *arguments)[0] == expected


def test_thresholds_of_a_cue_are_given_by_name(tmp_path: Path) -> None:
    words = ("diagnose", *MODEL, "--data", "scenes:2,objects=1", "--ask", "cue", "--no-html", "--out", str(tmp_path))
    assert run(*words, "--cue-rule", "cover=0.05,paste=0.04")[0] == 0
    rule = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))["settings"]["cue rule"]
    assert rule == {"high": 0.12, "medium": 0.08, "cover": 0.05, "paste": 0.04}
    result = CliRunner().invoke(app, [*words, "--cue-rule", "cover"])
    assert "NAME=NUMBER" in str(result.exception)


def test_neighbours_are_listed_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "near.png"
    code, output = run("neighbours", "scenes:2,objects=1", *MODEL, *DATA, "-k", "2", "--out", str(picture), "--json")
    assert code == 0, output
    assert len(json.loads(output)) == 4
    assert picture.is_file()


def test_covering_says_its_cost_before_and_what_the_scores_do(tmp_path: Path) -> None:
    words = ("cover", *MODEL, *DATA, "--region", "lower right", "--controls", "2")
    code, output = run(*words, "--out", str(tmp_path))
    assert code == 0, output
    assert "at most 144 forwards" in output  # 12 images x (2 + 2) + 2 x 48
    assert "fall less controls" in output
    assert {"before-after.png", "images.csv"} == {path.name for path in tmp_path.iterdir()}
    values = json.loads(run(*words, "--json")[1])
    assert values["forwards"] <= 144
    assert len(values["images"]) == 12
    whole = json.loads(run("cover", *MODEL, *DATA, "--region", "0,0,1,1", "--controls", "0", "--json")[1])
    assert whole["plain"]["mean"] > values["plain"]["mean"] + 0.2  # nothing of the image is left


def test_covering_an_image_file(tmp_path: Path) -> None:
    from konkyo.data.samples import samples

    picture = tmp_path / "scene.png"
    samples("scenes:1,objects=1")[0].image.save(picture)
    code, output = run("cover", *MODEL, "--image", str(picture), "--region", "border", "--fill", "mean", "--json")
    assert code == 0, output
    assert len(json.loads(output)["images"]) == 1
