"""The command line: what it writes, what it prints, and its exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import konkyo
from helpers.commands import Outcome, Run, runner
from konkyo.apps.cli import explain as command
from konkyo.apps.cli import main as cli
from konkyo.tasks.base import SEVEN_CAMS

NETS = """
import torch
from torch import nn
import konkyo

def net(head=None, channels=3):
    torch.manual_seed(0)
    body = [nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head or nn.Linear(8, 5))

def named():
    return konkyo.Model(net(), konkyo.Preprocess(40, 32), ("cat", "dog", "fox", "owl", "bee"), "small")

def deep():
    return net(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)))

def grey():
    return net(channels=1)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.png, two.jpg, sub/one.png, sub/three.png; and broken ones in broken/."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (folder / "sub").mkdir()
    (folder / "broken").mkdir()
    for name in ("one.png", "two.jpg", "sub/one.png", "sub/three.png"):
        Image.fromarray(random.integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken" / "cut.png").write_bytes((folder / "one.png").read_bytes()[:3000])
    (folder / "broken" / "text.jpg").write_text("no picture")
    (folder / "broken" / "zero.png").write_bytes(b"")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`konkyo ...` in an empty folder that holds nets.py; the model is nets.py:named unless another one is given."""
    return runner(NETS, "named", tmp_path, monkeypatch, capsys)


def names(folder: str) -> list[str]:
    return sorted(p.name for p in Path(folder).iterdir())


def manifest(folder: str) -> Any:
    return json.loads(Path(folder, "manifest.json").read_text())


def assert_told(found: Outcome, *pieces: str) -> None:
    """Exit status 1 and one line that says why."""
    assert found.code == 1
    assert found.out == ""
    assert found.err.count("\n") == 1, found.err
    assert found.err.startswith("error: ")
    for piece in pieces:
        assert piece in found.err


# --- as a program ----------------------------------------------------------------------------------------------------


def program(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "konkyo", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


HELP = """
import contextlib, io, sys
from konkyo.apps.cli.main import main
for command in ("", "explain", "compare", "methods", "layers", "demo"):
    sys.argv = ["konkyo", *command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, command
    assert f"konkyo {command}".strip() in text.getvalue(), command
    loaded = {"torch", "torchvision", "matplotlib", "numpy"} & sys.modules.keys()
    assert not loaded, (command, loaded)
assert "typer" in sys.modules
print("well")
"""


def test_help_does_not_wait_for_torch() -> None:
    """The commands' helps follow one another in one process, so that the first of them that loads torch is named."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


def assert_layers(text: str, arrow: str, as_json: bool) -> None:
    """The text is the list of the shipped classifier's layers."""
    if as_json:
        automatic = json.loads(text)["automatic"]
        assert automatic in {layer["name"] for layer in json.loads(text)["layers"]}
    else:
        assert any(line.startswith(arrow) for line in text.splitlines())


LAYERS = ("layers", "konkyo/scenes-classifier")


@pytest.mark.parametrize(("encoding", "arrow"), [("cp1252", "? "), ("ascii", "? "), ("utf-8", "→ ")])
@pytest.mark.parametrize("as_json", [False, True])
def test_output_whose_encoding_lacks_a_character_has_a_replacement(
    monkeypatch: pytest.MonkeyPatch, encoding: str, arrow: str, as_json: bool
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["konkyo", *LAYERS, *(["--json"] if as_json else [])])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))  # strict, as of a shell
    with pytest.raises(SystemExit) as stop:
        cli.main()
    sys.stdout.flush()
    assert stop.value.code == 0
    assert_layers(written.getvalue().decode(encoding), arrow, as_json)


def test_a_shell_whose_encoding_lacks_a_character_has_a_replacement() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "konkyo", *LAYERS]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert_layers(done.stdout.decode("cp1252"), "? ", as_json=False)


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_the_shell_can_complete_commands(run: Run, option: str) -> None:
    assert option in run("--help").out


def test_as_a_program_it_explains_and_tells_errors_without_a_traceback(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    done = program("explain", photos / "one.png", "--model", "nets.py:named", "--out", "o", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 image explained, 0 skipped" in done.stdout
    assert (tmp_path / "o" / "one.grad_cam.png").is_file()
    failed = program("explain", photos / "none.png", "--model", "nets.py:named", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "none.png" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "words", [("explain",), ("explain", "x.png", "--top", "0"), ("explode",), ("methods", "--nope")]
)
def test_wrong_usage_is_2(run: Run, words: tuple[str, ...]) -> None:
    found = run(*words)
    assert found.code == 2
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--top", "0"), "'--top': 1 or more was expected; got 0"),
        (("--top", "two"), "'--top': a whole number was expected; got two"),
        (("--score", "high"), "'--score': a number was expected; got high"),
    ],
)
def test_a_value_of_another_kind_is_told(run: Run, words: tuple[str, str], said: str) -> None:
    assert said in " ".join(run("explain", "x.png", *words).err.split())


def test_version(run: Run) -> None:
    assert run("--version").out == f"konkyo {konkyo.__version__}\n"


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain_writes_overlays_maps_and_a_manifest(run: Run, photos: Path) -> None:
    found = run("explain", photos / "one.png", "--out", "o", "--top", 2, "--method", "grad_cam, hires_cam", "--seed", 4)
    assert found.code == 0
    assert names("o") == sorted(
        ["images.csv", "manifest.json", "manifest.jsonl"]
        + [f"one.{m}.{x}" for m in ("grad_cam", "hires_cam") for x in ("npz", "1.png", "2.png")]
    )
    model = konkyo.load("nets.py:named")
    expected = konkyo.explain(model, photos / "one.png", method="hires_cam", target=konkyo.TopK(2), seed=4)
    saved = konkyo.Explanation.load("o/one.hires_cam.npz")
    assert torch.equal(saved.signed, expected.signed)
    assert (saved.targets, saved.labels, saved.seed, saved.model) == (expected.targets, expected.labels, 4, "small")
    with Image.open("o/one.hires_cam.2.png") as picture:
        drawn = np.asarray(picture)
    assert np.array_equal(drawn, np.asarray(expected.overlay(1)))
    written = manifest("o")
    assert written["settings"]["methods"] == ["grad_cam", "hires_cam"]
    assert written["settings"]["model"] == "nets.py:named"
    assert written["skipped"] == []
    (entry,) = written["images"]
    assert entry["file"] == str(photos / "one.png")
    assert [(m["method"], m["label"], m["overlay"], m["row"]) for m in entry["maps"]] == [
        (method, expected.labels[row], f"one.{method}.{row + 1}.png", row)
        for method in ("grad_cam", "hires_cam")
        for row in (0, 1)
    ]
    assert entry["maps"][2]["score"] == pytest.approx(expected.scores[0].item(), abs=1e-6)
    assert entry["maps"][2]["layer"] == expected.layer


def test_json_is_all_there_is_on_standard_output(run: Run, photos: Path) -> None:
    found = run("explain", photos / "one.png", photos / "broken" / "zero.png", "--json", "--out", "o")
    assert found.code == 3
    assert found.json == manifest("o")
    assert [Path(s["file"]).name for s in found.json["skipped"]] == ["zero.png"]


def test_classes_layers_options_and_precision_reach_the_method(run: Run, photos: Path) -> None:
    def of(*words: object) -> konkyo.Explanation:
        assert run("explain", photos / "one.png", "--out", "o", "--overwrite", *words).code == 0
        return konkyo.Explanation.load("o/one.eigen_cam.npz" if "eigen_cam" in words else "o/one.grad_cam.npz")

    model = konkyo.load("nets.py:named")
    both = of("--class", "fox", "-c", "4", "--layer", "1", "-l", "3")
    assert both.labels == ("fox", "bee")
    expected = konkyo.explain(model, photos / "one.png", target=konkyo.Each(2, 4), layer=["1", "3"])
    assert torch.equal(both.signed, expected.signed)
    assert both.layer == "1+3"
    centred = of("--method", "eigen_cam", "--option", "centred=True")
    assert centred.options == {"centred": True}
    assert torch.equal(
        centred.signed, konkyo.explain(model, photos / "one.png", method="eigen_cam", centred=True).signed
    )
    assert not torch.equal(centred.signed, of("--method", "eigen_cam", "-o", "centred=false").signed)
    half = of("--class", "2", "--layer", "1", "--precision", "bf16")
    whole = of("--class", "2", "--layer", "1")
    assert not torch.equal(half.signed, whole.signed)
    torch.testing.assert_close(half.signed, whole.signed, rtol=0, atol=0.1 * whole.signed.abs().max().item())


def test_preprocessing_and_labels_are_replaced(run: Run, photos: Path) -> None:
    Path("labels.txt").write_text("n1\tcat fish\nn2\tdog fish\n\nn3\tfox\nn4\towl\nn5\tbee\n")
    Path("labels.json").write_text(json.dumps({str(i): ["n", name] for i, name in enumerate("vwxyz")}))
    own = konkyo.Preprocess((30, 36), (20, 24), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    words = ("--resize", "30x36", "--crop", "20x24", "--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6")
    found = run(
        "explain", photos / "one.png", "--out", "o", *words, "--labels", "labels.txt", "-c", "dog fish", "--json"
    )
    assert found.code == 0
    model = konkyo.Model(konkyo.load("nets.py:net").module, own)
    saved = konkyo.Explanation.load("o/one.grad_cam.npz")
    assert torch.equal(saved.signed, konkyo.explain(model, photos / "one.png", target=1).signed)
    assert saved.signed.shape == (1, 5, 6)
    assert saved.labels == ("dog fish",)
    assert (
        run("explain", photos / "one.png", "--labels", "labels.json", "-c", "x", "--out", "o", "--overwrite").code == 0
    )
    assert konkyo.Explanation.load("o/one.grad_cam.npz").targets == (konkyo.ClassTarget(2),)
    whole = run("explain", photos / "one.png", "--resize", "none", "--crop", "none", "--out", "o", "--overwrite")
    assert whole.code == 0
    assert konkyo.Explanation.load("o/one.grad_cam.npz").signed.shape == (1, 12, 15)
    grey = run("explain", photos / "one.png", "--model", "nets.py:grey", "--mean", "0.5", "--std", "0.5", "--out", "p")
    assert grey.code == 0


def test_safetensors_maps(run: Run, photos: Path) -> None:
    assert run("explain", photos / "one.png", "--maps", "safetensors", "--out", "o").code == 0
    assert names("o") == [
        "images.csv",
        "manifest.json",
        "manifest.jsonl",
        "one.grad_cam.png",
        "one.grad_cam.safetensors",
    ]


def test_folders_globs_and_files_of_the_same_name(run: Run, photos: Path) -> None:
    found = run("explain", photos / "sub", f"{photos}/*.png", photos / "two.jpg", "--out", "o", "--json")
    assert found.code == 0
    assert [Path(e["file"]).relative_to(photos).as_posix() for e in found.json["images"]] == [
        "sub/one.png",
        "sub/three.png",
        "one.png",
        "two.jpg",
    ]
    model = konkyo.load("nets.py:named")
    for entry in found.json["images"]:
        saved = konkyo.Explanation.load(Path("o", entry["maps"][0]["map"]))
        assert torch.equal(saved.signed, konkyo.explain(model, entry["file"]).signed)
    assert len({e["maps"][0]["map"] for e in found.json["images"]}) == 4


def test_a_number_added_to_a_name_takes_no_other_files_name(run: Run, photos: Path, tmp_path: Path) -> None:
    for name in ("one.png", "one.jpg", "one-2.png"):
        (tmp_path / name).write_bytes((photos / "one.png").read_bytes())
    found = run("explain", "one.png", "one.jpg", "one-2.png", "--out", "o", "--json")
    assert len({e["maps"][0]["map"] for e in found.json["images"]}) == 3


def test_unusable_images_are_skipped_and_told(run: Run, photos: Path) -> None:
    found = run("explain", photos / "broken", photos / "one.png", "--out", "o")
    assert found.code == 3
    assert "1 image explained, 3 skipped" in found.out
    lines = found.err.splitlines()
    assert len(lines) == 3
    for line, (name, reason) in zip(
        lines, [("cut.png", "damaged or cut short"), ("text.jpg", "not an image"), ("zero.png", "empty")], strict=True
    ):
        assert line.startswith("skipped ")
        assert name in line
        assert reason in line
    assert [Path(s["file"]).name for s in manifest("o")["skipped"]] == ["cut.png", "text.jpg", "zero.png"]
    assert len(manifest("o")["images"]) == 1
    nothing = run("explain", photos / "broken", "--out", "p")
    assert nothing.code == 1
    assert "0 images explained, 3 skipped" in nothing.out


def test_an_image_is_skipped_by_its_name(run: Run) -> None:
    Image.new("RGB", (50000, 1)).save("strip.png")
    found = run("explain", "strip.png", "--out", "o")
    assert found.err.startswith("skipped strip.png: a picture of 50000 x 1 would become ")


def test_what_was_done_to_a_picture_is_told_of_that_picture(run: Run) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (48, 40), "red").save("plain.jpg")
    Image.new("RGB", (40, 40), "red").save("turned.jpg", exif=turned)
    found = run("explain", "plain.jpg", "turned.jpg", "--crop", "40", "--resize", "40", "--batch-size", 2, "--json")
    assert [entry.get("notes") for entry in found.json["images"]] == [None, ["turned upright (EXIF orientation 6)"]]
    assert not any("image" in said for entry in found.json["images"] for said in entry.get("assumptions", ()))


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names of files are text here")
def test_a_name_that_is_no_text_is_taken(run: Run, photos: Path) -> None:
    Path(os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "one.png").read_bytes())
    found = run("explain", ".", "--out", "o", "--report", "o.html")
    assert found.code == 0, found.err
    assert Path("o", "caf.grad_cam.png").is_file()
    assert r"caf\udce9.png" in Path("o", "images.csv").read_text(encoding="utf-8")
    assert r"caf\udce9.png" in Path("o.html").read_text(encoding="utf-8")
    assert "1 already there" in run("explain", ".", "--out", "o", "--resume").err


def test_a_method_that_does_not_apply_leaves_the_others(run: Run, photos: Path) -> None:
    found = run("explain", photos / "one.png", "--model", "nets.py:deep", "--method", "cam,grad_cam", "--out", "o")
    assert found.code == 0
    assert "cam: needs global average pooling" in found.out
    assert names("o") == ["images.csv", "manifest.json", "manifest.jsonl", "one.grad_cam.npz", "one.grad_cam.png"]
    alone = run("explain", photos / "one.png", "--model", "nets.py:deep", "--method", "cam", "--out", "p")
    assert alone.code == 1
    assert alone.out == ""
    note, error = alone.err.splitlines()
    assert note.startswith("note: nets.py:deep does not say how to prepare pictures; taken as usual: resize 256, crop")
    assert "cam: needs global average pooling" in error


# --- resume ----------------------------------------------------------------------------------------------------------


def test_resume_leaves_out_what_is_done(run: Run, photos: Path) -> None:
    assert run("explain", photos / "one.png", "--out", "o").code == 0
    before = manifest("o")["images"]
    Path("o/one.grad_cam.png").write_bytes(b"untouched")
    found = run(
        "explain", photos / "one.png", photos / "two.jpg", photos / "broken" / "zero.png", "--out", "o", "--resume"
    )
    assert found.code == 3
    assert "2 images explained, 1 skipped" in found.out
    assert Path("o/one.grad_cam.png").read_bytes() == b"untouched"
    assert manifest("o")["images"][:1] == before
    assert [Path(e["file"]).name for e in manifest("o")["images"]] == ["one.png", "two.jpg"]
    assert run("explain", photos / "one.png", "--out", "o").code == 0  # without --resume: again
    assert Path("o/one.grad_cam.png").read_bytes() != b"untouched"


def test_resume_needs_the_same_settings_and_a_manifest(run: Run, photos: Path) -> None:
    assert run("explain", photos / "one.png", "--out", "o", "--resume").code == 0
    assert_told(run("explain", photos / "one.png", "--out", "o", "--resume", "--top", 2), "They differ in target")
    for text in ("{}", "not json", "[]"):
        Path("o/manifest.jsonl").write_text(text)
        assert_told(run("explain", photos / "one.png", "--out", "o", "--resume"), "no record of a run")


def test_resume_overwrites_no_map_of_another_image(run: Run, photos: Path) -> None:
    """The files of a resumed run keep their names, whatever images come before them this time."""
    assert run("explain", photos / "sub" / "one.png", "--out", "o").code == 0
    found = run("explain", photos / "one.png", photos / "sub" / "one.png", "--out", "o", "--resume", "--json")
    assert found.code == 0
    model = konkyo.load("nets.py:named")
    assert len(found.json["images"]) == 2
    for entry in found.json["images"]:
        saved = konkyo.Explanation.load(Path("o", entry["maps"][0]["map"]))
        assert torch.equal(saved.signed, konkyo.explain(model, entry["file"]).signed)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        (("--model", "nets.py:nams"), "did you mean 'named'"),
        (("--model", "torchvision/resnet5", "--weights", "random"), "did you mean"),
        (("--model", "torchvision/squeezenet1_1", "--weights", "none.pth"), "no weights file 'none.pth'"),
        (("--method", "gradcam"), "did you mean 'grad_cam'"),
        (("--method", ","), "names no method"),
        (("--class", "wolf"), "unknown class 'wolf'"),
        (("--class", "5"), "0 to 4"),
        (("--class=-1",), "0 to 4"),
        (("--top", "6"), "TopK(6) of a model with 5 classes"),
        (("--layer", "conv"), "unknown layer 'conv'"),
        (("--layer", "6"), "no feature grid"),
        (("--option", "steps"), "NAME=VALUE"),
        (("--option", "steps=3"), "unknown option 'steps': grad_cam has no options"),
        (("--precision", "int8"), "fp32"),
        (("--device", "cuda:99"), "cannot be used"),
        (("--maps", "pt"), "npz or safetensors"),
        (("--resize", "big"), "HEIGHTxWIDTH"),
        (("--crop", "1x2x3"), "HEIGHTxWIDTH"),
        (("--crop", "0"), "at least 1"),
        (("--mean", "a,b,c"), "numbers separated by commas"),
        (("--mean", "0.5"), "one value per channel"),
        (("--std", "0,0,0"), "positive"),
        (("--labels", "none.txt"), "labels cannot be read"),
        (("--cmap", "rainbows"), "did you mean"),
        (("--out", "nets.py"), "cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Run, photos: Path, words: tuple[str, ...], piece: str) -> None:
    assert_told(run("explain", photos / "one.png", *words), piece)


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "rise", "-o", "masks=many"),
        ("--method", "rise", "-o", "masks=1.5"),
        ("--method", "rise", "-o", "masks=0"),
        ("--method", "integrated_gradients", "-o", "baseline=blak"),
    ],
)
def test_values_that_an_option_cannot_have(run: Run, photos: Path, words: tuple[str, ...]) -> None:
    assert_told(run("explain", photos / "one.png", *words), words[-1].partition("=")[0])


@pytest.mark.parametrize("text", ["5", '"abc"', "[[]]", "{", '{"a": "b"}'])
def test_labels_that_are_no_list_of_names(run: Run, photos: Path, text: str) -> None:
    Path("labels.json").write_text(text)
    assert_told(run("explain", photos / "one.png", "--labels", "labels.json"), "no JSON list of names")


def test_images_that_are_not_there(run: Run, photos: Path) -> None:
    assert_told(run("explain", photos / "none.png"), "none.png", "matches no file")
    assert_told(run("explain", f"{photos}/*.gif"), "matches no file")
    Path("empty").mkdir()
    assert_told(run("explain", "empty"), "holds no image files")


# --- compare, methods, layers ----------------------------------------------------------------------------------------


def size_of(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_compare_draws_a_sheet(run: Run, photos: Path) -> None:
    found = run("compare", photos / "one.png", photos / "two.jpg", "--out", "sheet.png", "--top", 2, "--json")
    assert found.code == 0
    assert found.json["sheet"] == "sheet.png"
    assert found.json["settings"]["methods"] == list(SEVEN_CAMS)
    assert [len(e["maps"]) for e in found.json["images"]] == [14, 14]
    large = size_of("sheet.png")
    less = run("compare", photos / "one.png", photos / "two.jpg", "--out", "less.png", "--method", "cam", "--limit", 1)
    assert less.code == 0
    assert "1 of 2 images left out" in less.err
    small = size_of("less.png")
    assert small[0] < large[0]
    assert small[1] < large[1]


def test_compare_says_what_does_not_apply_and_what_is_broken(run: Run, photos: Path) -> None:
    found = run("compare", photos / "broken", photos / "one.png", "--model", "nets.py:deep", "--method", "cam,grad_cam")
    assert found.code == 3
    assert "cam: needs global average pooling" in found.out
    assert Path("konkyo.png").is_file()
    whole = ("--resize", "40", "--crop", "32", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    alone = run("compare", photos / "one.png", "--model", "nets.py:deep", "--method", "cam", *whole)
    assert_told(alone, "global average pooling")
    assert_told(run("compare", photos / "one.png", "--out", "sheet.xyz"), "'sheet.xyz'")


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_a_method_named_twice_is_run_once(run: Run, photos: Path, command: str) -> None:
    found = run(command, photos / "one.png", "--method", "cam,cam", "--json")
    assert found.code == 0
    assert [m["method"] for m in found.json["images"][0]["maps"]] == ["cam"]


def test_methods(run: Run) -> None:
    assert list(run("methods", "--json").json) == list(konkyo.methods())
    assert run("methods", "--json").json["rise"]["options"]["masks"] == "4000"
    table = run("methods").out
    assert all(name in table for name in konkyo.methods())


def test_layers(run: Run) -> None:
    found = run("layers", "nets.py:named", "--json").json
    assert found["automatic"] == "3"
    assert [(entry["name"], entry["grid"]) for entry in found["layers"]] == [
        (str(i), [s, s]) for i, s in enumerate((16, 16, 8, 8))
    ]
    assert all(entry["used"] for entry in found["layers"])
    every = run("layers", "nets.py:named", "--json", "--all", "--size", "40x64").json["layers"]
    assert [entry["name"] for entry in every] == ["0", "1", "2", "3", "6"]
    assert every[0]["grid"] == [20, 32]
    grey = run("layers", "nets.py:grey", "--channels", 1, "--size", 24)
    assert "→ 3" in grey.out
    assert "6x6" in grey.out


def test_long_layer_names_are_printed_whole(run: Run) -> None:
    """Off a terminal, too: they are there to be copied."""
    Path("long.py").write_text(
        "from torch import nn\n\ndef build():\n    net = nn.Sequential(nn.Conv2d(3, 4, 3))\n"
        "    net.add_module('c' * 100, nn.ReLU())\n"
        "    return nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
    )
    assert f"0.{'c' * 100} " in run("layers", "long.py:build", "--size", 16).out


@pytest.mark.parametrize("words", [("--size", "-5"), ("--size", "0"), ("--size", "axb"), ("--channels", "0")])
def test_layers_of_images_that_cannot_be(run: Run, words: tuple[str, ...]) -> None:
    found = run("layers", "nets.py:named", *words)
    assert found.code in (1, 2)
    assert "Traceback" not in found.err
    assert found.out == ""


# --- contrast, layers, budgets, wrappers ------------------------------------------------------------------------------


def test_why_this_and_not_that(run: Run, photos: Path) -> None:
    found = run("compare", photos / "one.png", "--method", "hires_cam", "--class", "cat", "--not", "dog", "--json")
    assert [m["label"] for m in found.json["images"][0]["maps"]] == ["cat, not dog"]
    assert_told(run("explain", photos / "one.png", "--not", "dog"), "--not goes with --class")
    assert_told(run("explain", photos / "one.png", "--class", "cat", "--not", "wolf"), "unknown class 'wolf'")


def test_layers_fused_another_way_and_a_budget(run: Run, photos: Path) -> None:
    words = ("--layer", "1", "--layer", "3", "--fuse", "product", "--budget", "3", "--method", "score_cam")
    assert run("explain", photos / "one.png", *words, "--out", "o").code == 0
    result = konkyo.Explanation.load("o/one.score_cam.npz")
    assert result.layer == "1+3"
    assert (result.options["fuse"], result.options["budget"]) == ("product", 3)
    assert manifest("o")["settings"]["budget"] == "3"
    assert_told(run("explain", photos / "one.png", "--fuse", "meann"), "did you mean 'mean'")


def test_all_methods_and_wrappers(run: Run, photos: Path) -> None:
    found = run("compare", photos / "one.png", "--method", "all", "--budget", "4", "--out", "all.png", "--json")
    assert found.code == 0
    entry = found.json["images"][0]
    told = {m["method"] for m in entry["maps"]} | {reason.partition(":")[0] for reason in entry["not_applicable"]}
    assert told == set(konkyo.methods())
    run("explain", photos / "one.png", "--method", "augmented(grad_cam)", "--out", "o")
    assert "one.augmented-grad_cam.png" in names("o")


def test_the_explained_class_is_told(run: Run, photos: Path) -> None:
    found = run("explain", photos / "one.png", "--top", "2", "--out", "o")
    first, second = manifest("o")["images"][0]["maps"]
    more = f"logit {second['score']:.2f}, P {second['decision']['asked_probability']:.2f}, rank 2"
    assert found.out.splitlines()[0] == (
        f"one.png: {first['label']} (logit {first['score']:.2f}), asked: {second['label']} ({more}); "
        f"decided: {first['label']} (P {first['decision']['probability']:.2f})"
    )
    found = run("explain", photos / "one.png", "--method", "occlusion,grad_cam", "--out", "p")
    assert "(probability 0." in found.out.splitlines()[0]
    assert "(logit " in found.out.splitlines()[0]


LUNGS = """
import torch
from torch import nn
import konkyo

def lung():
    torch.manual_seed(0)
    head = nn.Linear(4, 2)
    head.weight.data.mul_(1e-4)
    head.bias.data.copy_(torch.tensor([4.0, 0.0]))
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return konkyo.Model(net, konkyo.Preprocess(40, 32), ("healthy", "pneumonia"), "lungs")
"""


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_a_class_that_was_asked_for_never_reads_as_a_diagnosis(run: Run, photos: Path, command: str) -> None:
    Path("lungs.py").write_text(LUNGS)
    words = ("--model", "lungs.py:lung", "--class", "pneumonia", "--method", "hires_cam")
    shown = run(command, photos / "one.png", *words, "--out", "o" if command == "explain" else "o.png")
    assert shown.code == 0
    line = shown.out.splitlines()[0]
    assert line.startswith("one.png: asked: pneumonia (logit ")
    assert line.endswith(", P 0.02, rank 2); decided: healthy (P 0.98)")
    told = run(command, photos / "one.png", *words, "--json", "--out", "p" if command == "explain" else "p.png")
    (row,) = told.json["images"][0]["maps"]
    decision = row["decision"]
    assert (row["label"], decision["label"], decision["index"], decision["rank"]) == ("pneumonia", "healthy", 0, 2)
    assert decision["probability"] + decision["asked_probability"] == pytest.approx(1)
    own = run("explain", photos / "one.png", *words[:2], "--out", "q").out.splitlines()[0]
    assert own.startswith("one.png: healthy (logit ")
    assert own.endswith("); decided: healthy (P 0.98)")


def test_the_sheet_says_what_was_decided(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from konkyo.draw import sheets

    Path("lungs.py").write_text(LUNGS)
    rows: list[Any] = []
    draw = sheets.contact_sheet
    monkeypatch.setattr(sheets, "contact_sheet", lambda given, *a, **k: rows.extend(given) or draw(given, *a, **k))
    words = ("--model", "lungs.py:lung", "-c", "pneumonia", "-c", "healthy", "--method", "hires_cam", "--out", "s.png")
    assert run("compare", photos / "one.png", *words).code == 0
    asked, own = rows
    assert (asked.asked, asked.decided) == ("P 0.02, rank 2", "decided: healthy (P 0.98)")
    assert asked.subtitle.startswith("asked: pneumonia (logit ")
    assert (own.asked, own.decided) == ("", "decided: healthy (P 0.98)")
    assert asked.brightness < 0.5 < 0.95 < own.brightness
    ink = np.asarray(Image.open("s.png").convert("RGB"))
    assert ((ink == (0x8F, 0x4A, 0x00)).all(-1)).sum() > 20
    assert run("compare", photos / "one.png", *words, "--brightness", "full").code == 0
    assert [row.brightness for row in rows[2:]] == [1, 1]


def test_a_pale_overlay_is_asked_to_be_bright(run: Run, photos: Path) -> None:
    Path("lungs.py").write_text(LUNGS)
    words = ("--model", "lungs.py:lung", "-c", "pneumonia", "--method", "eigen_cam")
    assert run("explain", photos / "one.png", *words, "--out", "pale").code == 0
    assert run("explain", photos / "one.png", *words, "--brightness", "full", "--out", "full").code == 0
    pale, full = (np.asarray(Image.open(f"{folder}/one.eigen_cam.png")) for folder in ("pale", "full"))
    assert not np.array_equal(pale, full)
    saved = [konkyo.Explanation.load(f"{folder}/one.eigen_cam.npz") for folder in ("pale", "full")]
    assert torch.equal(saved[0].signed, saved[1].signed)


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (("--class", "cat", "--top", "2"), ("--class", "--top", "one of them")),
        (("--class", "cat", "--not", "dog", "--top", "1"), ("--class", "--top")),
        (("--brightness", "dim"), ("--brightness", "dim", "probability, full")),
        (("--interpolation", "cubic"), ("cubic", "did you mean 'bicubic'")),
    ],
)
@pytest.mark.parametrize("command", ["explain", "compare"])
def test_options_that_contradict_or_are_unknown(
    run: Run, photos: Path, command: str, words: tuple[str, ...], pieces: tuple[str, ...]
) -> None:
    assert_told(run(command, photos / "one.png", *words), *pieces)


def test_a_title_is_that_of_a_sheet(run: Run, photos: Path) -> None:
    sheets = []
    for words in ((), ("--title", "lungs"), ("--title", "hearts")):
        assert run("compare", photos / "one.png", "--method", "grad_cam", *words, "--out", "s.png").code == 0
        sheets.append(np.asarray(Image.open("s.png")))
    assert not any(np.array_equal(one, other) for one, other in pairwise(sheets))
    assert_told(run("explain", photos / "one.png", "--title", "lungs"), "--title", "konkyo compare")


def test_the_interpolation_is_that_of_the_preprocessing(run: Run, photos: Path) -> None:
    assert run("explain", photos / "one.png", "--interpolation", "Nearest", "--out", "o").code == 0
    model = konkyo.Model(konkyo.load("nets.py:named").module, konkyo.Preprocess(40, 32, interpolation="nearest"))
    saved = konkyo.Explanation.load("o/one.grad_cam.npz")
    assert torch.equal(saved.signed, konkyo.explain(model, photos / "one.png").signed)
    assert not torch.equal(saved.signed, konkyo.explain(konkyo.load("nets.py:named"), photos / "one.png").signed)
    assert "nearest" in manifest("o")["settings"]["preprocess"]


@pytest.mark.parametrize("size", [2, 3, 99])
def test_a_batch_gives_what_single_images_give(run: Run, photos: Path, size: int) -> None:
    Image.new("RGB", (80, 30), "red").save("wide.png")
    files = (photos / "one.png", "wide.png", photos / "broken" / "cut.png", photos / "two.jpg", photos / "sub")
    words = ("--top", 2, "--method", "grad_cam,score_cam", "--crop", "none", "--json")
    one = run("explain", *files, *words, "--out", "one")
    batch = run("explain", *files, *words, "--out", "batch", "--batch-size", size)
    assert (one.code, batch.code) == (3, 3)  # one file is broken
    assert names("one") == names("batch")
    assert [e["file"] for e in one.json["images"]] == [e["file"] for e in batch.json["images"]]
    assert len(one.json["skipped"]) == len(batch.json["skipped"]) == 1
    for entry, other in zip(one.json["images"], batch.json["images"], strict=True):
        assert [(m["label"], m["overlay"], m["row"]) for m in entry["maps"]] == [
            (m["label"], m["overlay"], m["row"]) for m in other["maps"]
        ]
        for m in entry["maps"]:
            single, shared = (konkyo.Explanation.load(f"{folder}/{m['map']}") for folder in ("one", "batch"))
            torch.testing.assert_close(single.signed, shared.signed)
            assert single.targets == shared.targets
    assert one.json["settings"] == batch.json["settings"]  # a batch changes nothing: runs go on from each other


def test_compare_takes_batches(run: Run, photos: Path) -> None:
    sheets = []
    for size in (1, 4):
        words = ("--method", "grad_cam,hires_cam", "--batch-size", size, "--out", "s.png")
        assert run("compare", photos / "sub", photos / "one.png", *words).code == 0
        sheets.append(np.asarray(Image.open("s.png"), int))
    assert abs(sheets[0] - sheets[1]).max() <= 8


def test_a_label_in_japanese_is_drawn_and_what_no_font_has_is_told(run: Run, photos: Path) -> None:
    from konkyo.draw import text

    sheets = []
    text._missing.clear()
    text._file_of.cache_clear()
    for label in ("海", "森"):
        Path("labels.txt").write_text(f"{label}\nの\nc\nd\ne\n", encoding="utf-8")
        found = run(
            "compare",
            photos / "one.png",
            "--class",
            label,
            "--labels",
            "labels.txt",
            "--method",
            "grad_cam",
            "--out",
            "s.png",
        )
        assert found.code == 0
        sheets.append(np.asarray(Image.open("s.png")))
        assert (label in text.missing()) == (f"no font of this machine has {label}" in found.err)
    assert not np.array_equal(*sheets)


def test_data_without_samples_is_an_error(run: Run) -> None:
    assert_told(run("evaluate", "--data", "scenes:0", "--model", "nets.py:named"), "scenes:0 has no samples")
    assert_told(run("consistency", "--data", "scenes:0,objects=1", "--model", "nets.py:named"), "has no samples")


def test_an_interrupted_run_says_how_to_go_on(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explained, calls = command.explained, []

    def stops(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return explained(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(command, "explained", stops)
        found = run("explain", photos / "one.png", photos / "two.jpg", photos / "sub", "--out", "o")
    assert found.code == 130
    assert "interrupted: 2 images are done; the same command with --resume goes on" in found.err
    assert run("explain", photos / "one.png", photos / "two.jpg", photos / "sub", "--out", "o", "--resume").code == 0
    assert len(manifest("o")["images"]) == 4


def test_captions_stand_under_overlays(run: Run, photos: Path) -> None:
    picture = sorted(photos.glob("*.*"))[0]
    for folder, words in (("plain", ()), ("said", ("--caption",))):
        assert run("explain", picture, "-m", "konkyo/scenes-classifier", "--out", folder, *words).code == 0
    plain, said = (Image.open(next(Path(folder).glob("*.png"))).convert("RGB") for folder in ("plain", "said"))
    assert said.height / said.width > plain.height / plain.width + 0.1
