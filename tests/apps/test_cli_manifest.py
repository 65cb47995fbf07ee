"""The record of `konkyo explain`: what it costs, who may write it, and what a second run into one folder does."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import Event, Timer
from time import sleep
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.commands import Run, runner
from konkyo.apps.cli.manifest import Manifest
from konkyo.apps.cli.pictures import WRITERS, Writing
from konkyo.errors import ImageError, KonkyoError
from konkyo.utils import ledger

NET = """from torch import manual_seed, nn
def build():
    manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), *head).eval()
"""
PREPARED = ["--resize", 24, "--crop", "none", "--mean", "0,0,0", "--std", "1,1,1"]
OPTIONS = ["--model", "nets.py:build", "--method", "grad_cam", "--out", "out", *map(str, PREPARED)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    random = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"{i:03}.png")
    return runner(NET, "build", tmp_path, monkeypatch, capsys)


def manifest() -> Any:
    return json.loads(Path("out/manifest.json").read_text())


def listed() -> list[str]:
    return [entry["file"] for entry in manifest()["images"]]


def test_an_image_adds_its_own_lines_and_no_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of one more image does not grow with those done."""
    assert run("explain", "000.png", *OPTIONS).code == 0
    first, _, entry = Path("out/manifest.jsonl").read_text().partition("\n")
    record = json.loads(entry.partition(" ")[2])
    more = (ledger._entry(f"earlier-{i}.png", {**record["values"], "file": f"earlier-{i}.png"}) for i in range(3000))
    Path("out/manifest.jsonl").write_text(f"{first}\n{entry}{''.join(more)}")
    sizes: list[int] = []
    add = ledger.Ledger.add

    def counted(self: ledger.Ledger, key: str, values: Any) -> None:
        before = Path("out/manifest.jsonl").stat().st_size
        add(self, key, values)
        sizes.append(Path("out/manifest.jsonl").stat().st_size - before)

    monkeypatch.setattr(ledger.Ledger, "add", counted)
    assert run("explain", "000.png", "001.png", "002.png", *OPTIONS, "--resume").code == 0
    assert len(sizes) == 2
    assert max(sizes) < 2 * len(entry)
    assert len(manifest()["images"]) == 3003


def test_two_processes_into_one_folder_lose_nothing(run: Run, tmp_path: Path) -> None:
    """The second is refused in words, or both are done."""
    commands = [
        [sys.executable, "-m", "konkyo", "explain", *files, *OPTIONS]
        for files in (["000.png", "001.png", "002.png", "003.png"], ["004.png", "005.png", "006.png", "007.png"])
    ]
    runs = [
        subprocess.Popen(c, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands
    ]
    texts = [process.communicate()[0] for process in runs]
    done = [files for files, process in zip((range(4), range(4, 8)), runs, strict=True) if process.returncode == 0]
    assert done, texts
    assert set(listed()) == {f"{i:03}.png" for files in done for i in files}
    for process, text in zip(runs, texts, strict=True):
        assert process.returncode == 0 or "another run is writing into out" in text


def test_another_run_with_the_same_settings_adds_to_the_folder(run: Run) -> None:
    assert run("explain", "000.png", *OPTIONS).code == 0
    again = run("explain", "001.png", *OPTIONS)
    assert again.code == 0
    assert "1 image explained, 0 skipped" in again.out
    assert listed() == ["000.png", "001.png"]
    assert Path("out/000.grad_cam.png").is_file()


def test_resume_says_how_much_is_there(run: Run) -> None:
    assert run("explain", "000.png", "001.png", *OPTIONS).code == 0
    again = run("explain", "000.png", "001.png", "002.png", *OPTIONS, "--resume")
    assert "2 already there" in again.err
    assert listed() == ["000.png", "001.png", "002.png"]


def test_other_settings_are_refused_and_nothing_is_touched(run: Run) -> None:
    assert run("explain", "000.png", *OPTIONS).code == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    for more in ([], ["--resume"]):
        refused = run("explain", "000.png", *OPTIONS, "--seed", 3, "--cmap", "viridis", *more)
        assert refused.code == 1
        assert "seed (0 there, 3 now), colours (None there, viridis now)" in refused.err
        assert "--overwrite" in refused.err
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_overwrite_removes_what_the_manifest_lists_and_nothing_else(run: Run) -> None:
    assert run("explain", "000.png", "001.png", *OPTIONS, "--top", 2).code == 0
    Path("out/notes.txt").write_text("mine")
    Path("mine.png").write_bytes(b"mine")
    settings, entries = ledger.read_ledger(Path("out/manifest.jsonl"))
    for entry in entries.values():  # of a stranger's manifest
        entry["maps"][0]["overlay"] = entry["sheet"] = "../mine.png"
    lines = [ledger._line({"ledger": 1, "settings": settings}), *(ledger._entry(k, v) for k, v in entries.items())]
    Path("out/manifest.jsonl").write_text("".join(lines))
    assert run("explain", "001.png", *OPTIONS, "--overwrite").code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("000.grad_cam.1.png", "001.grad_cam.1.png", "001.grad_cam.npz", "001.grad_cam.png"),
        *("images.csv", "manifest.json", "manifest.jsonl", "notes.txt"),
    ]
    assert Path("mine.png").read_bytes() == b"mine"
    assert listed() == ["001.png"]


def test_a_damaged_line_is_explained_again(run: Run) -> None:
    assert run("explain", "000.png", "001.png", *OPTIONS).code == 0
    record = Path("out/manifest.jsonl").read_bytes()
    Path("out/manifest.jsonl").write_bytes(record[:-20])
    again = run("explain", "000.png", "001.png", *OPTIONS, "--resume")
    assert "1 damaged lines; their images are explained again" in " ".join(again.err.split())
    assert "1 already there" in again.err
    assert listed() == ["000.png", "001.png"]


def test_the_manifest_of_before_is_not_written_over(run: Run) -> None:
    assert run("explain", "000.png", *OPTIONS).code == 0
    Path("out/manifest.jsonl").unlink()
    before = Path("out/manifest.json").read_bytes()
    refused = run("explain", "001.png", *OPTIONS)
    assert refused.code == 1
    assert "has no manifest.jsonl beside it" in refused.err
    assert Path("out/manifest.json").read_bytes() == before
    assert run("explain", "001.png", *OPTIONS, "--overwrite").code == 0
    assert not Path("out/000.grad_cam.png").exists()


def test_an_image_that_has_become_unreadable_loses_nothing(run: Run) -> None:
    assert run("explain", "000.png", "001.png", *OPTIONS).code == 0
    Path("000.png").write_bytes(b"no picture")
    again = run("explain", "000.png", "001.png", *OPTIONS)
    assert again.code == 3
    assert listed() == ["000.png", "001.png"]
    assert [entry["file"] for entry in manifest()["skipped"]] == ["000.png"]
    assert Path("out/000.grad_cam.png").is_file()


def test_what_an_image_no_longer_lists_is_removed(tmp_path: Path) -> None:
    for names in (("a.1.png", "a.2.png"), ("a.1.png",)):
        with Manifest(tmp_path, {"seed": 0}) as record, record.image(Path("a.png")) as entry:
            entry["maps"] = [{"overlay": name, "map": "a.npz"} for name in names]
            for name in (*names, "a.npz", "other.png"):
                (tmp_path / name).write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.1.png", "a.npz", "images.csv", "manifest.json", "manifest.jsonl", "other.png")
    ]


def test_images_of_one_relative_path_are_told_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path("000.png" if folder == "one" else "001.png").rename(Path(folder, "cat.png"))
        Path(folder, "nets.py").write_text(NET)
    options = [*OPTIONS[:5], "../out", *OPTIONS[6:]]
    for folder in ("one", "two"):
        monkeypatch.chdir(folder)
        assert run("explain", "cat.png", *options, "--resume").code == 0
        monkeypatch.chdir("..")
    assert [entry["name"] for entry in manifest()["images"]] == ["cat", "cat-2"]


def test_overwrite_touches_nothing_until_an_image_is_done(run: Run) -> None:
    assert run("explain", "000.png", *OPTIONS).code == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert run("explain", "000.png", *OPTIONS, "--overwrite", "--layer", "nope").code == 1
    after = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert {n: b for n, b in after.items() if n != "manifest.json"} == {
        n: b for n, b in before.items() if n != "manifest.json"
    }
    assert listed() == ["000.png"]
    refused = run("explain", "000.png", *OPTIONS, "--overwrite", "--resume")
    assert "give one of them" in refused.err


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.json"])
@pytest.mark.parametrize("more", [[], ["--resume"], ["--overwrite"]], ids=["plain", "resume", "overwrite"])
def test_a_file_of_the_users_own_is_left_alone(run: Run, name: str, more: list[str]) -> None:
    Path("out").mkdir()
    Path("out", name).write_text('{"image": "a.png", "label": 3}\n')
    refused = run("explain", "000.png", *OPTIONS, *more)
    assert refused.code == 1
    assert "is no record of a run" in refused.err or "is no manifest of konkyo" in refused.err
    assert Path("out", name).read_text() == '{"image": "a.png", "label": 3}\n'
    assert [path.name for path in Path("out").iterdir()] == [name]


def test_a_damaged_head_is_no_reason_to_forget(run: Run) -> None:
    assert run("explain", "000.png", *OPTIONS).code == 0
    Path("out/manifest.json").unlink()
    record = Path("out/manifest.jsonl").read_text().replace("grad", "grbd", 1)
    Path("out/manifest.jsonl").write_text(record)
    assert "is no record of a run" in run("explain", "001.png", *OPTIONS, "--seed", 5, "--resume").err
    assert Path("out/manifest.jsonl").read_text() == record


@pytest.mark.parametrize(
    "changed", [["--labels", "names.txt"], ["--path", "--method", "ig_odam"], ["--maps", "safetensors"]]
)
def test_what_decides_the_output_is_compared(run: Run, changed: list[str]) -> None:
    Path("names.txt").write_text("a\nb\nc\n")
    options = [*OPTIONS[:2], *OPTIONS[4:]] if "--method" in changed else OPTIONS
    first = [] if "--method" not in changed else ["--method", "ig_odam"]
    assert run("explain", "000.png", *options, *first).code == 0
    assert (
        "with other settings: choose another --out, or --overwrite" in run("explain", "000.png", *options, *changed).err
    )


def test_images_without_maps_are_done_too(tmp_path: Path) -> None:
    with Manifest(tmp_path, {"seed": 0}) as record, record.image(Path("a.png")) as entry:
        entry["nothing"] = "nothing detected"
    with Manifest(tmp_path, {"seed": 0}, resume=True) as record:
        assert record.has(Path("a.png"))
    with Manifest(tmp_path, {"seed": 1}, resume=True) as record:  # nothing is lost with it
        assert not record.has(Path("a.png"))


def test_what_another_run_adds_until_the_folder_is_free_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is read under the lock only."""
    locked = ledger._locked

    def later(path: Path) -> Any:
        monkeypatch.setattr(ledger, "_locked", locked)
        with Manifest(tmp_path, {"seed": 0}) as record, record.image(Path("a.png")) as entry:
            entry["maps"] = [{"overlay": "a.png", "map": "a.npz"}]
            for name in ("a.png", "a.npz"):
                (tmp_path / name).write_text("")
        return locked(path)

    monkeypatch.setattr(ledger, "_locked", later)
    with Manifest(tmp_path, {"seed": 0}, resume=True) as record:
        assert record.has(Path("a.png"))


def test_resume_explains_again_what_has_changed_or_is_gone(run: Run) -> None:
    assert run("explain", "000.png", "001.png", "002.png", *OPTIONS).code == 0
    Path("out/000.grad_cam.png").unlink()
    Image.new("RGB", (24, 24), "red").save("001.png")
    before = Path("out/002.grad_cam.png").stat().st_mtime_ns
    again = run("explain", "000.png", "001.png", "002.png", *OPTIONS, "--resume")
    assert again.code == 0
    assert [line.partition(":")[0] for line in again.out.splitlines()[:2]] == ["000.png", "001.png"]
    assert Path("out/000.grad_cam.png").is_file()
    assert Path("out/002.grad_cam.png").stat().st_mtime_ns == before


def test_ctrl_c_records_what_is_under_way_and_nothing_else(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.png" for k in range(40)]
    begun, interrupted = Event(), Event()

    def write(k: int) -> tuple[dict[str, Any], str]:
        begun.set()
        interrupted.wait(10)
        files[k].touch()
        return {"name": str(k)}, str(k)

    lines: list[str] = []

    def interrupt() -> None:
        with Manifest(tmp_path / "out", {}) as record, Writing(record, len(files), lines.append) as writing:
            for k, file in enumerate(files):
                writing.add(file, partial(write, k))
            assert begun.wait(10)
            Timer(0.2, interrupted.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    written = [file.stem for file in files if file.exists()]
    assert 1 <= len(written) <= WRITERS
    with Manifest(tmp_path / "out", {}) as record:
        assert lines == written == [entry["name"] for entry in record.images]


def test_an_image_counts_when_its_files_are_written_in_the_order_of_the_images(tmp_path: Path) -> None:
    """The first image takes longest, the third is none, and on the fifth the disk is full."""
    files, lines = [tmp_path / f"{k}.png" for k in range(6)], list[str]()

    def write(k: int) -> tuple[dict[str, Any], str]:
        sleep(0.3 * (k == 0))
        if k == 2:
            raise ImageError("2.png is not an image")
        if k == 4:
            raise KonkyoError("4.png cannot be written: no space left on device")
        return {"name": str(k)}, str(k)

    def fill(record: Manifest) -> None:
        with Writing(record, 3, lines.append) as writing:
            for k, file in enumerate(files[:4]):
                writing.add(file, partial(write, k))
            assert lines == ["0"]  # of four images three wait at most
            writing.add(files[4], partial(write, 4))

    with Manifest(tmp_path / "out", {}) as record, pytest.raises(KonkyoError, match="no space left"):
        fill(record)
    assert lines == ["0", "1", "3"]
    assert [entry["name"] for entry in record.images] == lines
    assert [entry["reason"] for entry in record.skipped] == ["2.png is not an image"]


def test_a_long_name_is_cut_short(run: Run) -> None:
    Path("000.png").rename("é" * 120 + ".png")
    assert run("explain", "é" * 120 + ".png", *OPTIONS).code == 0
    assert manifest()["images"][0]["name"] == "é" * 80
