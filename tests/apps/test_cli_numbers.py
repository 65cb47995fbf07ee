"""The commands on networks of embeddings and of numbers: references, pairs, and targets in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.commands import Run, runner, told

NETS = """
import torch
from torch import nn

import konkyo


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, outputs) if outputs else nn.Identity()

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def embed():
    return konkyo.Model(Net(0).eval(), konkyo.Preprocess(32, 32))


def ages():
    task = konkyo.RegressionTask(units=("years", "mg"))
    return konkyo.Model(Net(2).eval(), konkyo.Preprocess(32, 32), ("age", "dose"), task=task)


def classes():
    return konkyo.Model(Net(3).eval(), konkyo.Preprocess(32, 32))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name, sigma in (("a", 30), ("b", 80), ("c", 120)):
        Image.effect_noise((48, 40), sigma).convert("RGB").save(tmp_path / f"{name}.png")
    return runner(NETS, "embed", tmp_path, monkeypatch, capsys)


def labels(folder: str) -> list[str]:
    (image,) = json.loads((Path(folder) / "manifest.json").read_text())["images"]
    return [entry["label"] for entry in image["maps"]]


def test_images_are_likened_to_a_reference(run: Run) -> None:
    outcome = run("explain", "a.png", "--reference", "b.png", "--out", "one")
    assert outcome.code == 0, outcome.err
    assert "like b.png (cosine" in outcome.out
    assert labels("one") == ["like b.png"]
    assert run("explain", "a.png", "--reference", "b.png", "--reference", "c.png", "--out", "two").code == 0
    assert labels("two") == ["like 2 references"]
    words = run("explain", "a.png", "--target", "like:b.png,kind=cosine,threshold=0.2", "--out", "three")
    assert "by the threshold 0.2" in words.out


def test_what_is_no_reference_is_told(run: Run) -> None:
    told(run("explain", "a.png"), "--reference FILE")
    told(run("explain", "a.png", "--reference", "b.png", "--class", "cat"), "--class would say it again")
    told(run("explain", "a.png", "--class", "cat"), "embeddings, not classes")
    told(run("explain", "a.png", "--target", "like:b.png,threshold=high"), "threshold is a number")


def test_a_pair_is_drawn_with_what_a_place_adds(run: Run) -> None:
    outcome = run("pair", "a.png", "b.png", "--model", "nets.py:embed", "--place", "10,12", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["pictures"] == ["pair.png", "pair.place.png"]
    assert outcome.json["layer"] == "body"
    assert all(Path(file).is_file() for file in outcome.json["pictures"])
    told(run("pair", "a.png", "b.png", "--model", "nets.py:embed", "--place", "here"), "x,y in pixels")


def test_numbers_are_named(run: Run) -> None:
    outcome = run("explain", "a.png", "--model", "nets.py:ages", "--out", "all")
    assert labels("all") == ["age", "dose"]
    assert " years" in outcome.out
    run("explain", "a.png", "--model", "nets.py:ages", "--target", "output:dose,relative_to=b.png", "--out", "dose")
    assert labels("dose") == ["dose"]
    told(run("explain", "a.png", "--model", "nets.py:ages", "--class", "cat"), "age, dose")
    told(run("explain", "a.png", "--model", "nets.py:ages", "--top", "2"), "--top")
