"""`konkyo train gaze` on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import konkyo
from helpers.commands import Run, runner, told
from konkyo import KonkyoError
from konkyo.apps.cli.train import _numbers, seeds_of
from konkyo.evaluation.consistency import Consistency
from konkyo.training.loop import read_epochs

QUICK = (
    *("train", "gaze", "--data", "lesions:48", "--level", 1, "--size", 24, "--epochs", 2, "--batch", 16),
    *("--start", 0, "--end", 1, "--accelerator", "cpu"),
)
NETS = "import torch\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`konkyo ...` in a folder of its own."""
    return runner(NETS, "", tmp_path, monkeypatch, capsys)


def photos(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 8) -> None:
    """CLASS/NAME.png of several shapes; a class has its own grey."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        for i in range(count):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = random.integers(0, 128, (30 + i, 40, 3), dtype=np.uint8) + np.uint8(100 * label)
            Image.fromarray(grey).save(path)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_study_from_one_command(run: Run) -> None:
    found = run(*QUICK, "--lambdas", "0,-0.5", "--seeds", 2, "--out", "to")
    assert found.code == 0, found.err
    assert "networks, epochs and maps in to; tables and figures: konkyo report gaze to" in found.out
    runs = [Path(f"to/level-1/lambda_{w}/seed_{s}") for w in ("0", "-0.5") for s in (0, 1)]
    assert sorted(Path("to").glob("level-*/*/*")) == sorted(runs)
    for folder in runs:
        assert [row["epoch"] for row in read_epochs(folder / "epochs.csv")] == [1, 2]
        assert len(Consistency.load(folder / "test").images) == 12
    said = json.loads(Path("to/study.json").read_text())
    assert (said["data"], said["size"], said["augment"], said["recipe"]["learning_rate"]) == (
        "lesions:48",
        24,
        False,
        1e-3,
    )
    assert konkyo.load(f"trained/{runs[0]}").classes == ("disc", "ring", "stripes")


def test_the_same_command_again_and_another(run: Run) -> None:
    asked = (*QUICK, "--lambdas", "3", "--out", "to")
    assert run(*asked, "--seeds", "4,").code == 0
    kept = {p: p.stat().st_mtime_ns for p in Path("to/level-1").rglob("*")}
    assert run(*asked, "--seeds", "4,").code == 0
    assert {p: p.stat().st_mtime_ns for p in Path("to/level-1").rglob("*")} == kept
    assert sorted(p.name for p in Path("to/level-1/lambda_3").iterdir()) == ["seed_4"]
    told(
        run(*asked, "--seeds", "4,", "--distance", "cosine"),
        "choose another folder. They differ in distance (mse there, cosine now)",
    )


def test_a_longer_study_keeps_the_schedule_of_its_weight(run: Run) -> None:
    asked = (*("train", "gaze", "--data", "lesions:48", "--level", 1, "--size", 24, "--batch", 16), "--lambdas", "3")
    asked = (*asked, "--seeds", 1, "--accelerator", "cpu", "--out", "to")
    assert run(*asked, "--epochs", 2).code == 0
    assert run(*asked, "--epochs", 3).code == 0  # not the end of three epochs
    assert [row["train_weight"] for row in read_epochs(Path("to/level-1/lambda_3/seed_0/epochs.csv"))] == [0, 3, 3]
    told(run(*asked, "--epochs", 3, "--end", 3), "choose another folder. They differ in end")


def test_a_folder_of_photos(run: Run) -> None:
    photos(Path("photos"))
    found = run(*("train", "gaze", "--data", "folder:photos", "--level", 1, "--size", 16, "--epochs", 1))
    assert found.code == 0, found.err
    said = json.loads(Path("konkyo-gaze/study.json").read_text())
    assert said["classes"] == ["cat", "dog"]
    assert (said["augment"], said["recipe"]["learning_rate"]) == (True, 1e-4)
    assert sorted(p.name for p in Path("konkyo-gaze/level-1").iterdir()) == ["lambda_0", "lambda_3"]
    assert len(list(Path("konkyo-gaze/level-1").glob("*/*"))) == 6


def test_help(run: Run) -> None:
    for words in (("train", "--help"), ("train",)):
        assert "Train networks to look at the right place." in (said := "".join(map(str, vars(run(*words)).values())))
        assert "gaze" in said
    found = run("train", "gaze", "--help")
    assert found.code == 0
    for option in (
        *("--data", "--level", "--lambdas", "--seeds", "--distance", "--aim", "--mode", "--view", "--start", "--end"),
        *("--size", "--augment", "--epochs", "--batch", "--rate", "--workers", "--limit", "--devices", "--nodes"),
        *("--accelerator", "--precision", "--out"),
    ):
        assert option in found.out, option


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (("--level", "9"), ("unknown level '9'", "1, 2, 3, 4, 5")),
        (("--level", "1.5"), ("--level", "whole numbers", "'1.5'")),
        (("--level", "one"), ("--level", "'one'")),
        (("--level", ""), ("--level",)),
        (("--lambdas", "0,x"), ("--lambdas", "'0,x'")),
        (("--lambdas", ""), ("at least were expected",)),
        (("--lambdas", "nan"), ("finite weight",)),
        (("--lambdas", "1..1e999"), ("--lambdas", "1..1e999")),
        (("--lambdas", "0,3,3"), ("came twice",)),
        (("--seeds", "0"), ("one or more were expected",)),
        (("--seeds", ""), ("--seeds",)),
        (("--seeds", "nan"), ("--seeds", "'nan'")),
        (("--seeds", "inf"), ("--seeds", "'inf'")),
        (("--seeds", "1,-2"), ("--seeds", "'1,-2'")),
        (("--seeds", "1,1"), ("came twice",)),
        (("--rate", "0"), ("learning rate: a number above 0", "got 0.0")),
        (("--rate", "-1"), ("learning rate: a number above 0",)),
        (("--distance", "iou"), ("unknown distance", "mse")),
        (("--aim", "mean"), ("unknown aim", "ema")),
        (("--mode", "closed"), ("unknown mode", "closed_form")),
        (("--view", "test"), ("unknown view", "eval")),
        (("--start", "7"), ("start <= end",)),
        (("--accelerator", "abacus"), ("cannot be used", "abacus")),
        (("--precision", "fp13"), ("cannot be used", "fp13")),
        (("--data", "lesion:48"), ("unknown data", "lesions")),
        (("--data", "lesions:many"), ("lesions:600", "'many'")),
        (("--data", "lesions:4"), ("every class",)),
        (("--data", "folder:nowhere"), ("nowhere",)),
        (("--data", "folder:flat"), ("label", "DIR/CLASS/NAME.jpg")),
        (("--data", "folder:one"), ("two classes", "cat")),
    ],
    ids=lambda w: " ".join(w),
)
def test_what_is_wrong_is_told_in_a_line(run: Run, words: tuple[str, str], pieces: tuple[str, ...]) -> None:
    photos(Path("one"), ("cat",))
    Path("flat").mkdir()
    Image.new("RGB", (20, 20)).save("flat/picture.png")
    told(run(*QUICK, "--out", "to", *words), *pieces)
    assert not Path("to").exists()  # or the command without the mistake would be refused


@pytest.mark.parametrize("words", [("--epochs", "0"), ("--batch", "x"), ("--devices", "0"), ("--size", "8")], ids=str)
def test_numbers_out_of_range_are_wrong_usage(run: Run, words: tuple[str, str]) -> None:
    found = run(*QUICK, *words)
    assert found.code == 2
    assert words[0] in found.err


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", (0, 1, 2)), ("7,8", (7, 8)), ("5,", (5,)), (" 2 , 1 ", (2, 1)), ("1", (0,)), ("0,", (0,))],
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", ",", "a", "0", "1.5", "-1", "nan", "inf", "1,,x"])
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(KonkyoError, match="--seeds"):
        seeds_of(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--per-class", "3"), "--per-class is of --sampling balanced"),
        (("--level", "1", "--backbone", "konkyo/scenes-classifier"), "--level is one of the study's networks"),
        (("--precision", "int4"), "the precision 'int4' cannot be used"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_would_do_nothing_is_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    found = run("train", "gaze", "--data", "lesions:30", "--out", "to", *words)
    assert found.code == 1
    assert said in " ".join(found.err.split())
    assert not Path("to").exists()


# --- in a shell -------------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_usable_run(run: Run, tmp_path: Path) -> None:
    """As in a shell: the process is interrupted from outside, after an epoch."""
    asked = (*QUICK, "--lambdas", "3", "--seeds", "1", "--epochs", "400", "--out", "to")
    command = [sys.executable, "-m", "konkyo", *map(str, asked)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    epochs, end = Path("to/level-1/lambda_3/seed_0/epochs.csv"), time.monotonic() + 120
    while not epochs.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None), (out, err)
    assert "interrupted: whole epochs are kept" in err, err
    assert "Traceback" not in err
    done = len(read_epochs(epochs))
    assert 0 < done < 400
    assert konkyo.load(f"trained/{epochs.parent}").classes == ("disc", "ring", "stripes")
    assert not (epochs.parent / "test").exists()


def test_two_processes(run: Run) -> None:
    """`--devices 2` starts the second one, and one set of files is written."""
    command = [*QUICK, "--lambdas", "3", "--seeds", "1", "--epochs", "1", "--devices", "2", "--out", "to"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "ignore", "-m", "konkyo", *map(str, command)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("networks, epochs and maps") == 1
    assert len(read_epochs(Path("to/level-1/lambda_3/seed_0/epochs.csv"))) == 1
    assert not list(Path("to").rglob(".*"))
    assert Path("to/level-1/lambda_3/seed_0/test/maps.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1..5", [1, 2, 3, 4, 5]),
        ("0,1e-3..1", [0, 1e-3, 1e-2, 1e-1, 1]),
        ("-100,0,5.5", [-100, 0, 5.5]),
        ("1e-7..1e-6", [1e-7, 1e-6]),
    ],
)
def test_ranges_of_numbers(text: str, expected: list[float]) -> None:
    assert _numbers("--betas", text) == expected


@pytest.mark.parametrize("text", ["1..", "..5", "0.5..2", "0..1e-3", "a..b", "1e-3..-1"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(KonkyoError, match="--betas: numbers separated by commas were expected"):
        _numbers("--betas", text)
