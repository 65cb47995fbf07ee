"""`konkyo concepts`: what it writes is what the library finds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import konkyo
from konkyo.apps.cli.main import app
from konkyo.concepts import factorise
from konkyo.data.samples import samples

DATA = ("--data", "scenes:4,objects=1,size=64")


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["concepts", *map(str, words)])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_say_what_the_library_finds(tmp_path: Path) -> None:
    done = run(*DATA, "-k", 3, "--class", "cat", "--designs", 4, "--examples", 2, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    chosen = samples(DATA[1])
    found = factorise(konkyo.load("konkyo/scenes-classifier"), [one.image for one in chosen], 3)
    counts = found.importance("cat", designs=4)
    rows = table(tmp_path / "concepts.csv")
    assert [int(row["concept"]) - 1 for row in rows] == counts.values.argsort(descending=True).tolist()
    for row in rows:
        j = int(row["concept"]) - 1
        assert float(row["counts"]) == pytest.approx(float(counts.values[j]), abs=1e-5)
        assert float(row["energy"]) == pytest.approx(float(found.energy[j]), abs=1e-5)
        assert row["alone decides"] == found.labels[j]
        assert row["images that hold most of it"].split("; ") == [chosen.names[i] for i in found.strongest(j, 2)]
    of_images = table(tmp_path / "images.csv")
    assert [row["image"] for row in of_images] == list(chosen.names)
    for i, row in enumerate(of_images):
        assert float(row["concept 2"]) == pytest.approx(float(found.maps[i, 1].mean()), abs=1e-5)
        assert float(row["concept 2 counts"]) == pytest.approx(float(counts.of_images[i, 1]), abs=1e-5)
        assert float(row["score"]) == pytest.approx(float(counts.scores[i]), abs=1e-4)
        assert row["explained"] == "cat"


def test_a_sheet_per_concept_of_image_files(tmp_path: Path) -> None:
    files = [tmp_path / "photos" / f"{index}.png" for index in range(3)]
    files[0].parent.mkdir()
    for file, scene in zip(files, samples("scenes:3,size=64"), strict=True):
        scene.image.save(file)
    to = tmp_path / "out"
    done = run(files[0].parent, "-k", 2, "--designs", 0, "--examples", 2, "--limit", 2, "--out", to, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["importance"] is None
    assert [row["concept"] for row in found["concepts"]] == [1, 2]
    held = {name for row in found["concepts"] for name in row["images that hold most of it"].split("; ")}
    assert len(held) == 2
    assert held <= set(map(str, files))
    names = {"concepts.png", "concept-1.png", "concept-2.png", "concepts.csv", "images.csv"}
    assert {path.name for path in to.iterdir()} == names
    one, both = (Image.open(to / name) for name in ("concept-2.png", "concepts.png"))
    assert both.height == 2 * one.height
    assert one.size == (2 * 164 - 4, 160 + 24 + 4)
    assert one.tobytes() == both.crop((0, one.height, *both.size)).tobytes()  # by energy the second comes second


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("photo.png", *DATA), "both came"),
        ((*DATA, "--class", "cat", "--designs", "0"), "--designs 0"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = run(*words, "--out", tmp_path)
    assert done.exit_code == 1
    assert said in str(done.exception)
