"""True labels on the command line: from folders, data sets and tables; what is wrong, and in which order."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.commands import Run, runner, told

NETS = """
import torch
from torch import nn
import konkyo

class Brightest(nn.Module):
    def forward(self, images):
        return 8 * images.relu().mean((2, 3))

def net():
    preprocess = konkyo.Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3)
    return konkyo.Model(Brightest(), preprocess, ("red", "green", "blue"), "colours")

def digits():
    preprocess = konkyo.Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3)
    return konkyo.Model(Brightest(), preprocess, ("7", "1", "4"), "digits")
"""
METHOD = ("--method", "input_x_gradient")
PICTURES = {
    "red/sure.png": (255, 0, 0),
    "red/unsure.png": (130, 100, 100),
    "blue/wrong10.png": (200, 0, 0),
    "blue/wrong9.png": (0, 150, 100),
    "blue/right.png": (0, 0, 220),
}
"""The decision on every picture is its brightest colour, the surer the brighter it is than the others."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`konkyo ...` in a folder that holds nets.py and photos/CLASS/NAME.png."""
    for name, colour in PICTURES.items():
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(file)
    return runner(NETS, "net", tmp_path, monkeypatch, capsys)


def lines(folder: str = "o") -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, "images.csv").read_text().splitlines()))


def manifest(folder: str = "o") -> Any:
    return json.loads(Path(folder, "manifest.json").read_text())


def test_folders_that_are_called_like_classes_are_labels(run: Run) -> None:
    found = run("explain", "photos", *METHOD, "--out", "o")
    assert found.code == 0
    assert "2 of 5 wrong" in found.out
    assert "true labels: from the folders: blue 3, red 2" in found.out
    assert "decided: green (P 0.82), wrong, true label: blue" in found.out
    assert {line["image"]: (line["true_label"], line["decision"], line["correct"]) for line in lines()} == {
        "red/sure.png": ("red", "red", "True"),
        "red/unsure.png": ("red", "red", "True"),
        "blue/wrong10.png": ("blue", "red", "False"),
        "blue/wrong9.png": ("blue", "green", "False"),
        "blue/right.png": ("blue", "blue", "True"),
    }
    entry = manifest()["images"][0]
    assert (entry["image"], entry["true_label"], entry["correct"]) == ("blue/right.png", "blue", True)
    assert run("explain", "photos/*/*.png", *METHOD, "--out", "p").out.count("2 of 5 wrong") == 1


def test_one_folder_may_be_called_like_a_class_by_chance_which_is_said(run: Run) -> None:
    found = run("explain", "photos/blue", *METHOD, "--out", "o")
    assert "2 of 3 wrong" in found.out
    assert "all lie in 'blue', which is a class of the model; if that is chance, --true-labels none" in found.out
    without = run("explain", "photos/blue", *METHOD, "--out", "p", "--true-labels", "none")
    assert "of 3 wrong" not in without.out
    assert "true labels" not in without.out
    assert {(line["true_label"], line["correct"]) for line in lines("p")} == {("", "")}


def test_labels_are_not_taken_from_some_folders_alone(run: Run) -> None:
    Path("photos/blue").rename("photos/holiday")
    found = run("explain", "photos", *METHOD, "--out", "o")
    assert "true labels: not taken from the folders: 1 of 2 folders" in found.out
    assert "of 5 wrong" not in found.out
    taken = run("explain", "--data", "folder:photos", *METHOD, "--out", "p")
    assert "0 of 2 wrong" in taken.out
    assert "no class of colours, taken as not known: holiday" in taken.out
    told(run("compare", "photos", *METHOD, "--wrong-only"), "--wrong-only needs true labels", "1 of 2 folders")


def test_a_data_set_of_files_takes_the_place_of_images(run: Run) -> None:
    found = run("explain", "--data", "folder:photos", *METHOD, "--out", "o")
    assert "true labels: from folder:photos" in found.out
    assert lines()[0]["image"] == "blue/right.png"
    told(run("explain", "photos", "--data", "folder:photos", *METHOD), "both came")
    told(run("explain", "--data", "scenes:3", *METHOD), "folder:DIR", "are drawn")
    assert run("explain", *METHOD).code == 2
    for name in ("red", "blue"):
        Path("photos", name).rename(f"photos/{name}ish")
    told(run("explain", "--data", "folder:photos", *METHOD), "blueish, redish", "--labels FILE")


def test_a_table_of_classes_names_what_files_are_called_by(run: Run) -> None:
    Path("flat").mkdir()
    for key, name in (("n2", "blue/wrong9.png"), ("n1", "red/sure.png")):
        Path("photos", name).rename(f"flat/{key}_{Path(name).name}")
    Path("flat/classes.txt").write_text("n1\tred\nn2\tblue\nn3\tgreen\n")
    found = run("explain", "flat", *METHOD, "--out", "o")
    assert "1 of 2 wrong" in found.out
    assert "true labels: from classes.txt" in found.out


@pytest.mark.parametrize(
    "text",
    [
        "image,label\nred/sure.png,red\nphotos/blue/right.png,Blue\nwrong9.png,1\n",
        "red/sure.png;red\nphotos/blue/right.png;blue\nwrong9.png;green\n",
        "id\ttrue_label\tfilename\n1\tred\tsure.png\n2\tblue\tright.png\n3\tgreen\twrong9.png\n4\tred\tother.png\n",
    ],
)
def test_a_table_says_labels_by_path_or_name_and_by_name_or_index(run: Run, text: str) -> None:
    Path("truth.csv").write_text(text)
    found = run("explain", "photos", *METHOD, "--true-labels", "truth.csv", "--out", "o")
    assert "0 of 3 wrong" in found.out
    assert "true labels: from truth.csv; 2 of 5 images have no line in it" in found.out
    labels = {line["image"]: line["true_label"] for line in lines()}
    assert labels["blue/wrong9.png"] == "green"
    assert labels["blue/wrong10.png"] == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,label\nsure.png,purple\n", ("truth.csv, line 2", "unknown class 'purple'", "red, green, blue")),
        ("image,label\nsure.png,3\n", ("truth.csv, line 2", "0 to 2")),
        ("image,label\nelsewhere.png,red\n", ("has no label of any", "blue/right.png")),
        ("image,value\nsure.png,red\n", ("columns image and label", "image, value")),
        ("image,label\nsure.png\n", ("line 2", "2 columns")),
        ("sure.png\n", ("image,label were expected",)),
        ("sure.png,red\nred/sure.png,blue\n", ("line 2", "blue here, and red before")),
        ("", ("image,label were expected",)),
    ],
)
def test_a_table_that_says_no_labels_is_refused(run: Run, text: str, words: tuple[str, ...]) -> None:
    Path("truth.csv").write_text(text)
    told(run("explain", "photos", *METHOD, "--true-labels", "truth.csv", "--out", "o"), *words)


def test_a_number_that_is_a_class_name_is_the_name(run: Run) -> None:
    Path("truth.csv").write_text("sure.png,7\n")
    run("explain", "photos/red/sure.png", *METHOD, "--model", "nets.py:digits", "--true-labels", "truth.csv")
    assert manifest("konkyo-out")["images"][0]["true_label"] == "7"


def test_wrong_only_draws_and_lists_what_is_wrong_and_counts_all(run: Run) -> None:
    found = run("explain", "photos", *METHOD, "--wrong-only", "--out", "o")
    assert found.code == 0
    assert "2 images explained" in found.out
    assert "2 of 5 wrong" in found.out
    assert {line["image"] for line in lines()} == {"blue/wrong9.png", "blue/wrong10.png"}
    assert sorted(p.name for p in Path("o").glob("*.png")) == [
        "wrong10.input_x_gradient.png",
        "wrong9.input_x_gradient.png",
    ]
    again = run("explain", "photos", *METHOD, "--wrong-only", "--out", "o", "--resume")
    assert "5 already there" in again.err
    assert "2 of 5 wrong" in again.out
    none = run("explain", "photos/red", *METHOD, "--wrong-only", "--out", "p")
    assert (none.code, "0 of 2 wrong" in none.out) == (0, True)


def test_what_is_right_is_not_explained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from konkyo.explanation import explain as module

    asked: list[tuple[str, ...]] = []
    real = module.explanations

    def noting(model: Any, images: Any, methods: Any, **settings: Any) -> Any:
        asked.append((*sorted(images.names), *methods))
        return real(model, images, methods, **settings)

    monkeypatch.setattr(module, "explanations", noting)
    found = run("explain", "photos", *METHOD, "--wrong-only", "--batch-size", "8", "--out", "o")
    assert found.code == 0
    assert asked == [
        (*sorted(f"{name.split('/')[0]}/{Path(name).name}" for name in PICTURES), "edge_map"),
        ("blue/wrong10.png", "blue/wrong9.png", "input_x_gradient"),
    ]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("least-sure", "unsure wrong9 wrong10 right sure"),
        ("most-sure", "sure right wrong10 wrong9 unsure"),
        ("wrong-first", "wrong10 wrong9 unsure right sure"),
        ("name", "right wrong9 wrong10 sure unsure"),
    ],
)
def test_the_order(run: Run, order: str, expected: str) -> None:
    assert run("explain", "photos", *METHOD, "--sort", order, "--out", "o").code == 0
    assert [Path(line["image"]).stem for line in lines()] == expected.split()
    told(run("explain", "photos", *METHOD, "--sort", "size"), "unknown --sort 'size'", "least-sure")


def test_a_sheet_shows_the_first_of_the_order(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from konkyo.draw import sheets

    shown: list[str] = []
    real = sheets.contact_sheet

    def noting(rows: Any, *arguments: Any, **options: Any) -> Image.Image:
        shown.extend(f"{row.title} {row.truth}" for row in rows)
        return real(rows, *arguments, **options)

    monkeypatch.setattr(sheets, "contact_sheet", noting)
    found = run("compare", "photos", *METHOD, "--sort", "wrong-first", "--limit", "2")
    assert [line.split()[0] for line in shown] == ["blue/wrong10.png", "blue/wrong9.png"]
    assert all(line.endswith("wrong, true label: blue") for line in shown)
    assert "2 of 5 wrong" in found.out
    assert "3 of 5 images left out" in found.err
    shown.clear()
    found = run("compare", "photos", *METHOD, "--wrong-only")
    assert len(shown) == 2
    assert "left out" not in found.err


def test_another_label_makes_an_entry_anew(run: Run) -> None:
    run("explain", "photos", *METHOD, "--out", "o")
    Path("truth.csv").write_text("sure.png,green\n")
    found = run("explain", "photos/red/sure.png", *METHOD, "--out", "o", "--resume", "--true-labels", "truth.csv")
    assert found.code == 0
    entry = next(e for e in manifest()["images"] if e["image"].endswith("sure.png") and "unsure" not in e["image"])
    assert (entry["true_label"], entry["correct"]) == ("green", False)
