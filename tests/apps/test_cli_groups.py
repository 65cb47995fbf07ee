"""`konkyo train` keeps copies and groups in one part, and says so on the terminal, in the study and its report."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from konkyo.apps.cli.main import app
from konkyo.data.sets.lesions import Lesions
from konkyo.data.splits import splits
from konkyo.studies.gaze.report import report_gaze


def data_of(folder: Path) -> str:
    for number, sample in enumerate(Lesions(36, seed=3, size=32)):
        (folder / str(sample.label)).mkdir(parents=True, exist_ok=True)
        sample.image.save(folder / str(sample.label) / f"{number:02}.png")
    (folder / "disc/copy.png").write_bytes((folder / "disc/00.png").read_bytes())
    return f"folder:{folder}"


def trained(out: Path, data: str, *words: str) -> Result:
    small = ["--level", "2", "--lambdas", "0", "--seeds", "1", "--size", "32", "--epochs", "1", "--end", "1"]
    return CliRunner().invoke(app, ["train", "gaze", "--data", data, *small, "--out", str(out), *words])


def test_training_tells_of_groups_and_keeps_to_them(tmp_path):
    data = data_of(tmp_path / "data")
    table = tmp_path / "patients.csv"
    names = sorted(path.relative_to(tmp_path / "data") for path in (tmp_path / "data").rglob("*.png"))
    table.write_text("name,patient\n" + "".join(f"{name.as_posix()},p{i // 2}\n" for i, name in enumerate(names)))
    found = splits(data, groups=table)
    result = trained(tmp_path / "out", data, "--groups", str(table))
    assert result.exception is None, result.output
    assert found.grouping.groups > 10
    assert found.grouping.remark in result.output
    settings = json.loads((tmp_path / "out" / "study.json").read_text())
    assert settings["grouping"]["remark"] == found.grouping.remark
    assert settings["grouping"]["images"] == found.grouping.images
    assert (settings["copies"], settings["groups"]) == ("identical", str(table))
    assert settings["sizes"]["test"] == len(found.test)
    assert found.grouping.remark in report_gaze(tmp_path / "out").remarks()
    other = trained(tmp_path / "out", data, "--copies", "alike")
    assert "other" in str(other.exception)
    assert "copies" in str(other.exception)


def test_mistakes_are_told_before_anything_is_trained(tmp_path):
    data = data_of(tmp_path / "data")
    assert "identical, alike, alike:BITS, ignored" in str(trained(tmp_path / "a", data, "--copies", "same").exception)
    table = tmp_path / "t.csv"
    table.write_text("name,group\ndisc/00.png,1\n")
    assert "has no group of 36" in str(trained(tmp_path / "b", data, "--groups", str(table)).exception)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
