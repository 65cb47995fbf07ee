"""`konkyo consistency` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from konkyo.apps.cli.consistency import consistency
from konkyo.errors import KonkyoError
from konkyo.evaluation.consistency import Consistency

QUICK = ("--data", "scenes:24,objects=1", "--resamples", "20", "--permutations", "20")


def call(*words: object) -> Result:
    app = typer.Typer()
    app.command()(consistency)
    found = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(found.exception, KonkyoError):
        raise found.exception
    return found


def test_a_table_and_a_folder(tmp_path: Path) -> None:
    found = call(*QUICK, "--out", tmp_path / "found", "--grid", 8)
    assert found.exit_code == 0, found.output
    for word in ("windmill", "W / T of shuffled labels", "untrained network", "not correctness", "kappa"):
        assert word in found.output
    files = {path.name for path in (tmp_path / "found").iterdir()}
    tables = {"consistency.json", "table.md", "table.tex", "classes.csv", "images.csv", "maps.safetensors"}
    tables |= {"provenance.json"}
    assert files == tables | {"maps.png", "between.png", "deviations.png", "extremes.png"}
    saved = Consistency.load(tmp_path / "found")
    assert saved.grid == 8
    assert len(saved.images) == 24
    assert saved.settings["data"] == "scenes:24,objects=1"


def test_json_and_options(tmp_path: Path) -> None:
    words = ("--method", "layer_cam", "--distance", "pearson", "--all", "--target", "decision", "--limit", 12)
    found = call(*QUICK, *words, "--no-baselines", "--no-figures", "--json", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)
    assert values["distance"] == "pearson"
    assert values["value"] == values["distances"]["pearson"]
    assert (values["settings"]["method"], values["settings"]["only_correct"]) == ("layer_cam", False)
    assert len(values["images"]) == 12
    assert "untrained network" not in values["baselines"]
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "grad_cam,layer_cam"), "one method"),
        (("--distance", "emd"), "unknown distance"),
        (("--target", "truth"), "'truth'"),
        (("--option", "steps=3"), "steps"),
        (("--model", "konkyo/scenes-detr"), "detector"),
    ],
)
def test_what_is_wrong_is_told(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(KonkyoError, match=said):
        call(*QUICK, *words, "--out", tmp_path)
