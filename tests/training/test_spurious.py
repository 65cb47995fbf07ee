"""The study of planted marks at a tiny size: its data, its runs, and that it goes on with the same bits."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import konkyo
from helpers.paths import ROOT
from konkyo.data.samples import samples
from konkyo.utils.statistics import Estimate

STUDY = runpy.run_path(str(ROOT / "benchmarks" / "spurious.py"))
TINY = ["--data", "lesions", "--seeds", "1", "--images", "18", "--test", "12", "--epochs", "1"]


def test_images_are_marked_as_the_option_of_data_sets_marks_them() -> None:
    part: Any = STUDY["part"]("lesions", 18, 3)
    prepare = STUDY["preprocess"](48)
    plain, boxed = (samples(f"lesions:18,places=random,size=48{cue}", seed=3) for cue in ("", ",cue=box:disc"))
    striped = samples("lesions:18,places=random,size=48,cue=patch:stripes", seed=3)
    for index in range(18):
        marked = {"disc": boxed, "stripes": striped}.get(str(plain[index].label))
        assert torch.equal(part.images["none"][index], prepare(plain[index].image))
        if marked is not None:
            assert torch.equal(part.images["own"][index], prepare(marked[index].image))
        changed = (part.images["own"][index] != part.images["none"][index]).any(0)
        assert (changed & ~part.marks["own"][index]).sum() <= 0.25 * changed.sum()  # soft edges
        assert not torch.equal(part.images["own"][index], part.images["other"][index])
    assert sorted(part.labels.tolist()) == [0] * 6 + [1] * 6 + [2] * 6


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_a_study_goes_on_with_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, grid = STUDY["chosen"].__globals__, {"cdep": (1, 3), "saliency_guided": (1,), "attention_consistency": (1,)}
    monkeypatch.setitem(names, "GRID", grid)
    monkeypatch.setitem(names, "ARMS", ("cross entropy", *grid, "marks drawn"))
    arguments = ["--work", str(tmp_path), *TINY]
    STUDY["main"](arguments)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    runs = [path for path in files if path.suffix == ".json"]
    assert len(runs) == 5 + 1 + 4
    lost = [path for path in files if "attention" in path.name or "saliency" in path.name or "cdep" in path.name]
    assert len(lost) > 6
    for path in lost:
        path.unlink()
    capsys.readouterr()
    STUDY["main"](arguments)
    said = capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert said.count(" s\n") == sum(path.suffix == ".json" for path in lost)
    STUDY["main"]([*arguments[:5], "3", *arguments[6:], "--table"])  # of the seeds that are whole
    said = capsys.readouterr().out
    assert " 1 paired seeds" in said
    assert said.count("\n| ") == 2 * 5 + 1
    STUDY["main"]([*arguments, "--sheet", str(tmp_path / "sheet.png")])
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    with pytest.raises(konkyo.KonkyoError, match="of another size"):
        STUDY["main"]([*arguments, "--epochs", "2"])


def test_the_verdict_needs_an_interval() -> None:
    verdict = STUDY["verdict"]
    near, far = Estimate(5, -2, 1, -3, -1), Estimate(5, -30, 1, -33, -27)
    assert verdict(Estimate(5, 60, 3, 50, 70), near) == "yes"
    assert verdict(Estimate(5, 60, 3, 50, 70), far) == "partly"
    assert verdict(Estimate(5, 1, 3, -2, 4), far) == "no"
    assert verdict(Estimate(5, 20, 30, -10, 50), far) == "cannot be told"
    assert verdict(Estimate.of([0.0] * 5), far) == "no"
    assert verdict(Estimate.of([0.0]), far) == "cannot be told"
