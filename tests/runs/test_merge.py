"""Runs of one job over different data become one run, or nothing is there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Run, runner, told
from helpers.folders_of_runs import divided, error_row, many_rows, map_row, nothing_row, run_folder
from konkyo import load
from konkyo.errors import KonkyoError
from konkyo.runs.manifest import MANIFEST, manifest_of
from konkyo.runs.merge import merge
from konkyo.runs.records import Records
from konkyo.runs.run import run
from konkyo.runs.shards import shard_path, whole_shards


def rows_of(*folders: Path) -> list[dict[str, Any]]:
    return [row for folder in folders for row in Records.open(folder).rows()]


def nothing_left(folder: Path, *kept: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    a, b = many_rows(10, before="a"), many_rows(12, seed=1, before="b")
    other = run_folder(tmp_path / "b", divided(b, 6), source="folder:others")
    return run_folder(tmp_path / "a", divided(a, 7)), other


def test_rows_follow_each_other_and_every_shard_is_whole(two: tuple[Path, Path], tmp_path: Path) -> None:
    merged = merge(two, tmp_path / "all")
    assert list(merged.rows()) == rows_of(*two)
    assert merged.complete
    assert merged.images == 22
    whole, broken = whole_shards(tmp_path / "all")
    assert (sorted(whole), broken) == ([0, 1, 2, 3], [])
    data = merged.manifest["data"]
    assert data["source"] == "folder:photos + folder:others"
    assert data["images"] == 22
    assert [part["source"] for part in data["merged"]] == ["folder:photos", "folder:others"]
    assert {k: v for k, v in merged.manifest.items() if k != "data"} == {
        k: v for k, v in manifest_of(two[0]).items() if k != "data"
    }
    assert len(list(merged.explanations())) == sum(row["map"] is not None for row in rows_of(*two))
    nothing_left(tmp_path, "a", "b", "all")


def test_a_merged_run_is_merged_again(two: tuple[Path, Path], tmp_path: Path) -> None:
    third = run_folder(tmp_path / "c", [[map_row("c")]], source="c")
    merge(two, tmp_path / "all")
    merged = merge([tmp_path / "all", third], tmp_path / "more")
    assert [part["source"] for part in merged.manifest["data"]["merged"]] == ["folder:photos", "folder:others", "c"]
    assert list(merged.rows()) == rows_of(*two, third)
    other = merge([*two, third], tmp_path / "at once")
    assert other.manifest == merged.manifest


def test_an_image_of_two_runs_counts_once(tmp_path: Path) -> None:
    same = [
        map_row("same", seed=3),
        map_row("same", seed=3, method="layer_cam"),
        error_row("cut"),
        nothing_row("empty"),
    ]
    a = run_folder(tmp_path / "a", [[map_row("first"), *same]])
    b = run_folder(tmp_path / "b", [[map_row("other"), *same[:2]], same[2:], [map_row("first", seed=9)]])
    merged = merge([a, b], tmp_path / "all")
    assert [(row["image"], row["sha256"]) for row in merged.rows()] == [
        *((row["image"], row["sha256"]) for row in Records.open(a).rows()),
        ("other", "other-0"),
        ("cut", None),  # nobody can tell whether it is the same file
        ("first", "first-9"),
    ]
    receipts = merged.receipts
    assert [(r.shard, r.images, r.rows, r.errors) for r in receipts] == [
        (0, 4, 5, 1),
        (1, 1, 1, 0),
        (2, 1, 1, 1),
        (3, 1, 1, 0),
    ]
    assert merged.complete
    assert merged.manifest["data"]["images"] == 7
    assert whole_shards(tmp_path / "all")[1] == []


@pytest.mark.parametrize("change", [{"score": 1.25}, {"map": b"\0" * 32}, {"decision": "dog"}, {"ebpg@box": 0.5}])
def test_an_image_of_which_two_runs_differ_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    a = run_folder(tmp_path / "a", [[map_row("x"), map_row("same", seed=3)]])
    b = run_folder(tmp_path / "b", [[map_row("same", seed=3, **change), map_row("y")]])
    with pytest.raises(KonkyoError, match="say different things of the image same"):
        merge([a, b], tmp_path / "all")
    nothing_left(tmp_path, "a", "b")


def test_other_jobs_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    other = run_folder(tmp_path / "c", [[map_row("c")]], seed=1, weights="4567")
    with pytest.raises(
        KonkyoError, match=r"weights \(0123 in the first, 4567 in the other\), seed \(0 in the first, 1 in the other\)"
    ):
        merge([two[0], other], tmp_path / "all")
    newer = run_folder(tmp_path / "d", [[map_row("c")]], versions={"konkyo": "0.1.0", "torch": "3"})
    with pytest.raises(KonkyoError, match=r"versions\.torch \(2 in the first, 3 in the other\)"):
        merge([two[0], newer], tmp_path / "all")
    merge(two, tmp_path / "all")
    with pytest.raises(KonkyoError, match="two folders of `konkyo run` or more"):
        merge([two[0]], tmp_path / "one")
    with pytest.raises(KonkyoError, match="a folder is named twice"):
        merge([two[0], two[0].parent / "b" / ".." / "a"], tmp_path / "one")
    with pytest.raises(KonkyoError, match="is there already"):
        merge(two, tmp_path / "all")


def test_unfinished_and_damaged_runs_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    unfinished = run_folder(tmp_path / "c", [[map_row("c")]], expected=3)
    with pytest.raises(KonkyoError, match=r"has 1 of 3 shards. Finish it"):
        merge([two[0], unfinished], tmp_path / "all")
    shard = shard_path(two[1], 1)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(KonkyoError, match=r"shard-000001.parquet holds other bytes"):
        merge(two, tmp_path / "all")
    nothing_left(tmp_path, "a", "b", "c")


def test_files_are_copied_where_they_cannot_be_linked(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = merge(two, tmp_path / "linked")
    assert linked.files[0].samefile(shard_path(two[0], 0))

    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copied = merge(two, tmp_path / "copied")
    assert [f.read_bytes() for f in copied.files] == [f.read_bytes() for f in linked.files]
    assert not copied.files[0].samefile(shard_path(two[0], 0))


def test_a_full_disk_leaves_nothing(two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(KonkyoError, match="all cannot be written: No space left on device"):
        merge(two, tmp_path / "all")
    nothing_left(tmp_path, "a", "b")


def test_what_a_killed_merge_left_goes(two: tuple[Path, Path], tmp_path: Path) -> None:
    left = tmp_path / ".all.merging" / "shards"
    left.mkdir(parents=True)
    (left / "shard-000099.json").write_text("{}")
    assert len(merge(two, tmp_path / "all").receipts) == 4
    nothing_left(tmp_path, "a", "b", "all")


def test_real_runs_merge_and_do_not_go_on(tmp_path: Path) -> None:
    model = load("konkyo/scenes-classifier")
    for name, count in (("a", 5), ("b", 8)):
        run(model, f"scenes:{count},size=64", tmp_path / name, methods=["grad_cam"], shard=3, batch=1, workers=0)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")  # the five are among the eight
    every = rows_of(tmp_path / "b")
    assert sorted(merged.rows(), key=lambda r: r["image"]) == sorted(every, key=lambda r: r["image"])
    before = (tmp_path / "all" / MANIFEST).read_text(encoding="utf-8")
    with pytest.raises(KonkyoError, match="was merged from 2 runs and does not go on"):
        run(model, "scenes:8,size=64", tmp_path / "all", methods=["grad_cam"], shard=3, batch=1, workers=0)
    assert (tmp_path / "all" / MANIFEST).read_text(encoding="utf-8") == before


def test_the_command(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    konkyo: Run = runner("", "none", tmp_path, monkeypatch, capsys)
    assert konkyo("merge", *two, "--out", "all", "--json").json["images"] == 22
    told(konkyo("merge", *two, "--out", "all"), "all is there already")
    assert "22 images" in konkyo("merge", "b", "a", "--out", "again").out
    assert json.loads((tmp_path / "again" / MANIFEST).read_text())["data"]["shards"] == 4
