"""The experiment on a detector's maps as teachers, tiny: arms are paired, the folder resumes, the report adds up."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import konkyo
from helpers.paths import ROOT

TINY = ["--scenes", "3", "--unseen", "3", "--steps", "1", "--nodes", "2"]
COLUMNS = ("ap", "ap50", "probability", "to_odam", "to_ig_odam", "in_box", "in_mask", "blank")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("transformers")
    pytest.importorskip("pycocotools")
    specification = spec_from_file_location("distil_detector_maps", ROOT / "benchmarks" / "distil_detector_maps.py")
    assert specification is not None
    assert specification.loader is not None
    module = module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def runs(folder: Path) -> dict[str, dict[str, float]]:
    return {p.name: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("run-*.json")}


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_arms_are_paired_and_a_folder_resumes(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = ["--weights", "odam=0,ig_odam=0,outputs=0"]
    script.main(["--out", str(tmp_path), "--seeds", "1", *TINY, *none])
    first = runs(tmp_path)
    references = {run["arm"]: first.pop(name) for name, run in list(first.items()) if run["arm"] in script.REFERENCES}
    assert references["teacher"]["probability"] > references["pruned"]["probability"]
    assert references["teacher"]["to_odam"] == pytest.approx(0, abs=1e-4)
    assert sorted(run["arm"] for run in first.values()) == sorted(script.ARMS)
    own = next(run for run in first.values() if run["arm"] == "none")
    for run in first.values():  # without a weight, an arm is the student that has none
        assert [run[column] for column in COLUMNS] == [own[column] for column in COLUMNS]
        assert run["training"]["last_loss"] == own["training"]["last_loss"]
    script.main(["--out", str(tmp_path), "--seeds", "1", *TINY, "--weights", "odam=50,ig_odam=50,outputs=50"])
    taught = {run["arm"]: run for run in runs(tmp_path).values() if run["weight"] == 50}
    assert set(taught) == {"odam", "ig_odam", "others", "outputs"}
    for run in taught.values():
        assert run["training"]["first_loss"] == own["training"]["first_loss"]
        assert run["probability"] != own["probability"]
    path = tmp_path / "run-9001-seed1-ig_odam-50.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    maps = path.with_suffix(".safetensors").read_bytes()
    others = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.stem != path.stem and p.name != "settings.json"}
    path.unlink()
    script.main(["--out", str(tmp_path), "--seeds", "1", *TINY, "--weights", "odam=50,ig_odam=50,outputs=50"])
    again = json.loads(path.read_text(encoding="utf-8"))
    assert [again[column] for column in COLUMNS] == [before[column] for column in COLUMNS]
    assert path.with_suffix(".safetensors").read_bytes() == maps
    assert {p: p.stat().st_mtime_ns for p in others} == others  # nothing else is made again
    script.main(["--out", str(tmp_path), *TINY, "--sheet", str(tmp_path / "maps.png")])
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.width > 500
    capsys.readouterr()
    with pytest.raises(konkyo.KonkyoError, match="holds runs with"):
        script.main(["--out", str(tmp_path), *TINY, "--steps", "2"])
    with pytest.raises(konkyo.KonkyoError, match="seed 0 is the pilot's"):
        script.main(["--out", str(tmp_path), *TINY, "--seeds", "0"])
    with pytest.raises(konkyo.KonkyoError, match="arm with a weight"):
        script.main(["--out", str(tmp_path), *TINY, "--weights", "others=3"])


def test_maps_of_other_detections_are_of_other_images(script: ModuleType) -> None:
    index = torch.tensor([0, 0, 1, 2, 2, 2, 3])

    class Rows:
        image_index, maps = index, torch.arange(7.0).view(7, 1, 1)

    class Part:
        ig_odam = odam = Rows

    taken = script.maps_of("others", Part).flatten().long()
    assert sorted(taken.tolist()) == list(range(7))
    assert (index[taken] != index).all()


def test_the_report_has_paired_differences_with_student_t_intervals(script: ModuleType, tmp_path: Path) -> None:
    for seed, (alone, taught) in enumerate(((10.0, 11.0), (20.0, 23.0), (30.0, 32.0)), 1):
        for arm, weight, value in (("none", 0, alone), ("ig_odam", 5, taught)):
            run = {
                "arm": arm,
                "weight": weight,
                "seed": seed,
                "unseen": 9001,
                "training": {"cpu_seconds": 2 + weight},
            } | dict.fromkeys(COLUMNS, value)
            (tmp_path / f"run-9001-seed{seed}-{arm}-{weight}.json").write_text(json.dumps(run), encoding="utf-8")
    report = script.report(tmp_path)
    # differences 1, 3, 2: mean 2, sd 1, t(.975, 2) = 4.302653, so 2 -+ 4.302653 / sqrt(3)
    assert report.count("+2.000 [-0.484, +4.484]") == len(COLUMNS)
    assert "| ig_odam 5 - none 0 | 3 |" in report
    assert "| 20.000 ± 10.000 |" in report
    assert "IG-ODAM maps: 3.50 of the CPU time" in report
    with pytest.raises(konkyo.KonkyoError, match="holds no runs"):
        script.report(tmp_path / "nothing")
