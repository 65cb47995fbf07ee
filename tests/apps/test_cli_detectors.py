"""The command line on detectors: which detections are explained, what is written and printed, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import konkyo
from helpers.commands import Run, runner
from konkyo.apps.cli import demo as cli
from konkyo.draw.sheets import contact_sheet, gallery
from konkyo.errors import install_hint
from konkyo.tasks.detection import OF_DETECTORS

HIGHEST = re.compile(r"; the highest score of any candidate is (0\.\d+)\n")
NETS = """
import torch
from torch import Tensor, nn
import konkyo
from konkyo.models.detectors.yolo import dense_detector

class Cells(nn.Module):
    '''A candidate of 12 pixels per cell of 8 pixels, whose classes are how red, green and blue the cell is.'''

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 3, 8, 8, bias=False)
        with torch.no_grad():
            self.look.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8) / 64)
        self.say = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.say.weight.copy_(20 * torch.eye(3)[:, :, None, None])
            self.say.bias.fill_(-10)

    def forward(self, x: Tensor) -> Tensor:
        said = self.say(self.look(x)).sigmoid()
        y, x = torch.meshgrid(torch.arange(said.shape[2]), torch.arange(said.shape[3]), indexing="ij")
        centre = 8.0 * torch.stack([x, y], -1).flatten(0, 1) + 4
        boxes = torch.cat([centre - 6, centre + 6], 1).expand(len(said), -1, -1)
        return torch.cat([boxes, said.flatten(2).transpose(1, 2)], 2)

def detector(fit="stretch", most=300):
    module = Cells()
    size = (48, 48) if fit == "contain" else (32, 48)
    return konkyo.Model(
        module,
        konkyo.Preprocess(size, size if fit == "contain" else None, (0.0,) * 3, (1.0,) * 3, "box", fit=fit),
        ("red", "green", "blue"),
        "cells",
        detector=dense_detector(module, classes=3, boxes="xyxy", layer="look", most=most),
    )

def bordered():
    return detector("contain")

def few():
    return detector(most=3)

def bare():
    from dataclasses import replace
    return replace(detector(), preprocess=None)

def classifier():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    return konkyo.Model(nn.Sequential(*body), konkyo.Preprocess(32, 32), ("red", "green", "blue"), "small")
"""

# Two pixels of the picture are one of the network's: cell (x, y) covers 16 x 16 pixels, its box reaches 4 further.
RED, GREEN, PALE = (12, 12, 36, 36), (60, 28, 84, 52), (28, 28, 52, 52)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toys.png: on black a red cell, a green one less bright, a pale red one; dark.png: nothing."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[16:32, 16:32, 0] = 250
    pixels[32:48, 64:80, 1] = 200
    pixels[32:48, 32:48, 0] = 140
    Image.fromarray(pixels).save(folder / "toys.png")
    Image.fromarray(pixels // 5).save(folder / "dark.png")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`konkyo ...` in an empty folder that holds nets.py; the model is nets.py:detector unless another one is given."""
    return runner(NETS, "detector", tmp_path, monkeypatch, capsys)


def names(folder: str) -> list[str]:
    return sorted(p.name for p in Path(folder).iterdir())


def entries(folder: str = "o") -> Any:
    return json.loads(Path(folder, "manifest.json").read_text())["images"]


def maps(folder: str = "o") -> Any:
    return [m for entry in entries(folder) for m in entry.get("maps", ())]


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)


# --- explain ---------------------------------------------------------------------------------------------------------


def test_every_detection_is_explained_drawn_and_told(run: Run, photos: Path) -> None:
    found = run("explain", photos / "toys.png", "--out", "o")
    assert found.code == 0
    assert found.out.startswith(
        "toys.png: red (probability 1.00) at 12,12,36,36, green (probability 1.00) at 60,28,84,52, "
        "red (probability 0.73) at 28,28,52,52\n"
    )
    overlays = [f"toys.odam.{n}.png" for n in (1, 2, 3)]
    assert names("o") == sorted(
        ["images.csv", "manifest.json", "manifest.jsonl", "toys.detections.png", "toys.odam.npz", *overlays]
    )
    saved = konkyo.Explanation.load("o/toys.odam.npz")
    assert saved.boxes is not None
    assert saved.boxes.tolist() == [list(RED), list(GREEN), list(PALE)]
    assert [(m["label"], m["box"], m["overlay"], m["row"], m["quantity"]) for m in maps()] == [
        (label, list(box), overlay, row, "probability")
        for row, (label, box, overlay) in enumerate(zip(saved.labels, (RED, GREEN, PALE), overlays, strict=True))
    ]
    for row, told in enumerate(maps()):
        assert told["score"] == pytest.approx(saved.scores[row].item(), abs=1e-6)
        assert told["probability"] == told["score"]
        drawn, box = pixels(f"o/{told['overlay']}"), [int(side) for side in told["box"]]
        assert (drawn[box[1], box[0] + 2 : box[2] - 1] == 255).all()  # the box's upper side
        assert (drawn[box[1] + 2 : box[3] - 1, box[2]] == 255).all()  # its right side
    assert entries()[0]["sheet"] == "toys.detections.png"


@pytest.mark.parametrize(
    ("words", "boxes"),
    [
        (["--score", "0.3"], [RED, GREEN, PALE]),
        (["--score", "0.8"], [RED, GREEN]),
        (["--top", "1"], [RED]),
        (["--class", "red"], [RED, PALE]),
        (["--class", "green", "--class", "0"], [RED, GREEN, PALE]),
        (["-c", "red", "--top", "1"], [RED]),
        (["--box", "30,30,50,50"], [PALE]),
        (["--box", "58,30,80,50", "--box", "10,10,40,40"], [RED, GREEN]),
        (["--box", "50,20,70,50", "-c", "green"], [GREEN]),
    ],
)
def test_which_detections(run: Run, photos: Path, words: list[str], boxes: list[tuple[int, ...]]) -> None:
    assert run("explain", photos / "toys.png", "--out", "o", *words).code == 0
    assert [tuple(m["box"]) for m in maps()] == boxes


def test_what_of_a_detection(run: Run, photos: Path) -> None:
    told = {}
    for of in ("probability", "logit", "x1", "y2", "combined"):
        found = run("explain", photos / "toys.png", "--out", of, "--of", of, "--top", 1)
        told[of], (entry,) = found.out.partition("\n")[0].partition(": ")[2], maps(of)
        assert entry["quantity"] == of
        assert entry["box"] == list(RED)
        told[f"{of} score"] = entry["score"]
    assert told["logit score"] == pytest.approx(20 * 250 / 255 - 10, abs=0.01)
    assert told["x1 score"] == 6  # in pixels of the network's input
    assert told["y2 score"] == 18
    assert told["logit"] == f"red (logit {told['logit score']:.2f}) at 12,12,36,36"
    assert told["x1"] == "x1 of red (probability 1.00) at 12,12,36,36"
    assert told["combined"] == "class and box of red (probability 1.00) at 12,12,36,36"


def test_a_box_is_explained_as_one_class_and_not_another(run: Run, photos: Path) -> None:
    found = run("explain", photos / "toys.png", "--out", "o", "--class", "red", "--not", "green", "--method", "odam")
    assert found.code == 0, found
    (entry,) = [row for row in maps() if row["box"] == list(RED)]
    assert entry["label"] == "red, not green"
    assert entry["score"] == pytest.approx(20 * 250 / 255, abs=0.01)  # of two logits with one bias


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--not", "green"], ["--not", "cells is a detector"]),
        (["--not", "green", "--class", "red", "--class", "blue"], ["--not", "cells is a detector"]),
        (["--not", "gren", "--class", "red"], ["'gren'", "'green'"]),
        (["--class", "gren"], ["'gren'", "'green'"]),
        (["--class", "7"], ["class 7", "0 to 2"]),
        (["--score", "1.5"], ["threshold", "1.5"]),
        (["--box", "1,2,3"], ["--box", "'1,2,3'"]),
        (["--box", "9,2,3,4"], ["--box", "'9,2,3,4'"]),
        (["--box", "a,b,c,d"], ["numbers", "'a,b,c,d'"]),
        (["--of", "logits"], ["quantity", "'logit'"]),
        (["--path"], ["--path", "ig_odam", "odam"]),
        (["--model", "nets.py:classifier", "--score", "0"], ["--score", "small is a classifier"]),
        (["--model", "nets.py:classifier", "--box", "1,2,3,4"], ["--box", "small is a classifier"]),
        (["--model", "nets.py:classifier", "--of", "x1"], ["--of", "small is a classifier"]),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(run: Run, photos: Path, words: list[str], pieces: list[str]) -> None:
    found = run("explain", photos / "toys.png", "--out", "o", *words)
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    for piece in pieces:
        assert piece in found.err


def test_an_image_without_detections_is_explained_with_no_maps(run: Run, photos: Path) -> None:
    found = run("explain", photos / "dark.png", photos / "toys.png", "--out", "o")
    assert found.code == 0
    assert (highest := HIGHEST.match(found.out.partition("above 0.5")[2]))
    assert 0 < float(highest[1]) < 0.5
    assert found.out.startswith("dark.png: nothing detected with a score above 0.5; the highest score of")
    assert "2 images explained, 0 skipped" in found.out
    dark, toys = entries()
    assert dark["nothing"] == f"nothing detected with a score above 0.5{highest[0]}".strip()
    assert "maps" not in dark
    assert "nothing" not in toys
    assert not any(name.startswith("dark") for name in names("o"))
    again = run("explain", photos / "dark.png", photos / "toys.png", "--out", "o", "--resume")
    assert "2 images explained" in again.out
    compared = run("compare", photos / "dark.png", photos / "toys.png", "--method", "odam", "--out", "c.png")
    assert compared.code == 0
    assert compared.out.startswith(f"dark.png: {dark['nothing']}\n")


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_nothing_detected_at_all(run: Run, photos: Path, command: str) -> None:
    to = ["--out", "o" if command == "explain" else "o.png"]
    found = run(command, photos / "dark.png", *to, "--score", "0.25", "--method", "odam,grad_cam")
    assert found.code == 1
    reason = found.err.removeprefix("error: ")
    assert HIGHEST.fullmatch(reason.removeprefix("nothing detected with a score above 0.25"))
    assert found.out == f"dark.png: {reason}"
    assert not Path("o.png").exists()
    of_class = run(command, photos / "toys.png", *to, "--class", "blue", "--class", "1", "--score", "0.999")
    assert of_class.err.startswith("error: nothing of class blue or 1 detected with a score above 0.999; the highest ")
    told = run(command, photos / "dark.png", *to, "--json")
    assert told.code == 1
    assert json.loads(told.out)["images"][0]["nothing"].startswith("nothing detected with a score above 0.5; the ")


def test_the_sheet_of_detections(run: Run, photos: Path) -> None:
    """One method: the picture with all boxes and a panel each, side by side. Several: a row each, a column each."""
    assert run("explain", photos / "toys.png", "--out", "one", "--method", "odam").code == 0
    one = pixels("one/toys.detections.png")
    panel, gap, margin = 320, 10, 16
    assert one.shape[1] == 4 * panel + 3 * gap + 2 * margin
    scale = panel / 96
    top = margin + round(RED[1] * scale)
    for place, box in enumerate((None, RED, GREEN, PALE)):  # white sides of boxes: all in the first, then their own
        for each in (RED, GREEN, PALE):
            y = margin + round(each[3] * scale)
            x = margin + place * (panel + gap) + round((each[0] + each[2]) / 2 * scale)
            white = (one[y - 2 : y + 3, x] == 255).all(1).any()
            assert white == (box is None or box == each), (place, each)
    assert (one[top - 1 : top + 12, margin + round(RED[0] * scale) + 3] == 0).all(1).any()  # the number's ground
    assert run("explain", photos / "toys.png", "--out", "two", "--method", "odam,grad_cam", "--top", 2).code == 0
    two = pixels("two/toys.detections.png")
    assert two.shape[1] == 3 * panel + 2 * gap + 2 * margin
    assert two.shape[0] > 2 * round(64 * scale)


def test_paths_are_drawn(run: Run, photos: Path) -> None:
    words = ["explain", photos / "toys.png", "--out", "o", "--top", 2, "-o", "nodes=5", "-o", "initial=3", "--path"]
    assert run(*words, "--method", "odam,ig_odam,adaptive_ig_odam").code == 0
    drawn = [
        *(f"toys.{n}.path.png" for n in (1, 2)),
        *(f"toys.{m}.{n}.path.png" for m in ("ig_odam", "adaptive_ig_odam") for n in (1, 2)),
    ]
    assert sorted(entries()[0]["paths"]) == sorted(drawn)
    assert {name for name in names("o") if ".path." in name} == set(drawn)
    single, joint = pixels("o/toys.ig_odam.1.path.png"), pixels("o/toys.1.path.png")
    assert joint.shape[0] > single.shape[0]
    assert joint.shape[1] == single.shape[1]
    refused = run(*words, "--method", "adaptive_ig_odam", "--of", "combined")
    assert (refused.code, refused.err) == (
        1,
        "error: --path: what is --of combined has five paths, and none of its own\n",
    )


# --- compare, layers, demo -------------------------------------------------------------------------------------------


def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows and columns of every contact sheet that is drawn from now on."""
    drawn: list[Any] = []

    def spy(rows: Any, columns: Any, **style: Any) -> Image.Image:
        drawn.append((rows, columns))
        return contact_sheet(rows, columns, **style)

    monkeypatch.setattr("konkyo.draw.sheets.contact_sheet", spy)
    return drawn


def test_compare_has_a_row_per_detection(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = sheets(monkeypatch)
    found = run("compare", photos / "toys.png", "--top", 2, "-o", "masks=20", "-o", "nodes=4", "-o", "initial=3")
    assert found.code == 0
    ((rows, columns),) = drawn
    assert columns == ["grad_cam", "grad_cam_pp", "d_rise", "odam", "ig_odam", "adaptive_ig_odam"]
    assert [(r.title, r.subtitle, tuple(r.box)) for r in rows] == [
        ("toys.png", "red (probability 1.00)", RED),
        ("toys.png", "green (probability 1.00)", GREEN),
    ]
    sheet, side, gap, margin, top = pixels("konkyo.png"), 1600 // 7, 10, 16, 16 + 18 + 10 + 17 + 5
    bottom = top + round(RED[3] * side / 96)
    for column in range(7):  # the box is drawn in every cell
        x = margin + column * (side + gap) + round((RED[0] + RED[2]) / 2 * side / 96)
        assert (sheet[bottom - 3 : bottom + 4, x] == 255).all(1).any(), column


def test_maps_of_pictures_with_a_border_lie_on_the_picture(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's input is square: of its 6 x 6 cells the upper and the lower row are border."""
    drawn = sheets(monkeypatch)
    words = ["--model", "nets.py:bordered", "--method", "odam,grad_cam", "--top", 1]
    assert run("compare", photos / "toys.png", *words).code == 0
    ((rows, _),) = drawn
    assert tuple(rows[0].box) == RED
    for cell in rows[0].cells[:1]:
        down, across = cell.map.shape
        y, x = divmod(int(cell.map.argmax()), across)
        assert RED[0] < (x + 0.5) / across * 96 < RED[2]
        assert RED[1] < (y + 0.5) / down * 64 < RED[3]
    assert run("explain", photos / "toys.png", "--out", "o", *words).code == 0


def test_the_layer_of_a_detector_is_marked(run: Run) -> None:
    found = run("layers", "nets.py:detector")
    assert found.code == 0
    marked = [line for line in found.out.splitlines() if line.startswith("→")]
    assert len(marked) == 1
    assert marked[0].split()[1:5] == ["look", "Conv2d", "3x4x6", "4x6"]
    assert json.loads(run("layers", "nets.py:detector", "--json").out)["automatic"] == "look"


def test_a_layer_that_is_no_grid_is_marked_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("nets.py").open("a") as file:
        file.write("\ndef other():\n    made = detector()\n    made.module.levels = nn.Identity()\n")
        file.write("    kept = dense_detector(made.module, classes=3, boxes='xyxy', layer='levels')\n")
        file.write("    from dataclasses import replace\n    return replace(made, detector=kept)\n")
    found = run("layers", "nets.py:other")
    assert [line.split()[1] for line in found.out.splitlines() if line.startswith("→")] == ["levels"]
    assert "  look" in found.out


def test_a_detector_that_does_not_say_how_to_prepare_pictures_sees_all_of_them(run: Run, photos: Path) -> None:
    found = run("explain", photos / "toys.png", "--model", "nets.py:bare", "--out", "o")
    assert "taken as usual: resize None, crop None, mean (0.0, 0.0, 0.0), std (1.0, 1.0, 1.0)" in found.err
    with Image.open("o/toys.odam.1.png") as picture:
        assert picture.size == (96, 64)


def test_demo_of_the_detector(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, drawn = cli.setup_of, sheets(monkeypatch)

    def setup(name: str, *rest: Any) -> Any:
        return usual("nets.py:few" if name == "konkyo/scenes-detr" else name, *rest)

    monkeypatch.setattr(cli, "setup_of", setup)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *p: object() if n == "transformers" else find(n, *p))
    found = run("demo", "--scenes", 1, "--out", "d")
    assert found.code == 0
    (*_, (rows, columns)) = drawn
    assert columns == OF_DETECTORS
    assert f"2 scenes, {len(rows)} detections, " in found.out
    mistake = {"mistake.png", "post-covered.png", "why-wrong.png", "report.html"}
    detections = {"objects-0.png", "objects-1.png", "detections.png"}
    assert {"scene-0.png", "contact-sheet.png"} | mistake | detections == set(names("d"))
    for name in OF_DETECTORS:
        assert re.search(rf"on the object itself: .*\b{name} ", found.out)
    assert all(Path(line.strip()).is_file() for line in found.out.split("done; open these:\n")[1].splitlines())


def test_demo_without_transformers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *p: None if n == "transformers" else find(n, *p))
    monkeypatch.setattr(cli, "_demo_of_mistake", lambda *_: [])  # another test has it
    found = run("demo", "--scenes", 1, "--out", "d")
    assert found.code == 0
    assert f"left out: the detector, which needs transformers: {install_hint('transformers')}\n" in found.out
    assert "detections.png" not in names("d")


def test_a_gallery_needs_one_cell_in_each_row() -> None:
    with pytest.raises(konkyo.KonkyoError, match="one cell"):
        gallery([])
    row = konkyo.draw.sheets.Row(Image.new("RGB", (9, 9)), "a")
    with pytest.raises(konkyo.KonkyoError, match="one cell"):
        gallery([row])
