"""Reports of results on disk: of every kind of folder, with its pictures read again, or told where they are gone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.commands import Run, runner, told
from konkyo.errors import KonkyoError, silenced
from konkyo.evaluation.consistency import consistency, measure
from konkyo.evaluation.evaluate import evaluate
from konkyo.models.preprocess import preprocess_of
from konkyo.report.builders import Request, page_of
from konkyo.report.folder import page_of_folder
from konkyo.report.page import Measure, Page
from konkyo.report.rows import CollectedRows

NETS = """
import torch
from torch import nn
import konkyo

class Colours(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])
            self.conv.bias.zero_()

    def forward(self, images):
        return 40 * self.conv(images).relu().mean((2, 3))

def net():
    preprocess = konkyo.Preprocess(16, (16, 16), (0.0,) * 3, (1.0,) * 3)
    return konkyo.Model(Colours(), preprocess, ("red", "green", "blue"), "colours")
"""
COLOURS = {"red": (255, 40, 0), "green": (0, 255, 40), "blue": (20, 0, 255)}
METHODS = ("--method", "grad_cam,layer_cam")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`konkyo ...` in a folder with photos/CLASS/N.png: a patch of the class's colour; blue/2.png is green in truth."""
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            picture = Image.new("RGB", (24, 16), (30, 30, 30))
            patch = COLOURS["green"] if (name, number) == ("blue", 2) else colour
            picture.paste(patch, (6 + 2 * number, 2 + number, 12 + 2 * number, 10 + number))
            picture.save(tmp_path / "photos" / name / f"{number}.png")
    return runner(NETS, "net", tmp_path, monkeypatch, capsys)


def summary(page: Page) -> list[tuple[Any, ...]]:
    return [(r.name, r.decision, r.true_label, r.asked, r.correct, tuple(m.method for m in r.maps)) for r in page.rows]


def test_the_page_of_explained_images(run: Run) -> None:
    found = run("explain", "photos", *METHODS, "--out", "o", "--report", "o.html")
    assert found.code == 0
    assert "report: o.html" in found.out
    page = page_of_folder("o")
    assert len(page.rows) == 9
    assert summary(page)[2] == ("blue/2.png", "green", "blue", "green", False, ("grad_cam", "layer_cam"))
    assert page.confusion is not None
    assert page.confusion.counts.tolist() == [[2, 1, 0], [0, 3, 0], [0, 0, 3]]  # blue, green, red
    row = page.rows[0]
    assert row.picture is not None
    assert row.picture.size == (16, 16)  # what the model sees
    expected = konkyo.Explanation.load("o/0.grad_cam.npz").maps[0]
    torch.testing.assert_close(row.maps[0].values, expected)
    assert len(page.provenance["weights SHA-256"]) == 64
    assert (
        page.command == "konkyo explain photos --method grad_cam,layer_cam --out o --report o.html --model nets.py:net"
    )
    assert any("from the folders: blue 3, green 3, red 3" in note["en"] for note in page.notes)
    text = Path("o.html").read_text(encoding="utf-8")
    assert "blue/2.png" in text


def test_resuming_reports_all_images_and_a_file_that_is_gone_is_told(run: Run) -> None:
    run("explain", "photos/red", *METHODS, "--out", "o")
    run("explain", "photos", *METHODS, "--out", "o", "--resume", "--report", "o.html")
    assert len(page_of_folder("o").rows) == 9
    Path("photos/red/1.png").unlink()
    page = page_of_folder("o")
    assert [row.name for row in page.rows if row.picture is None] == ["1.png"]
    assert any("1 pictures are not shown" in note["en"] and "1.png" in note["en"] for note in page.notes)
    assert run("report", "o").code == 0
    assert Path("o/report.html").is_file()


def test_a_report_of_wrong_images_counts_all(run: Run) -> None:
    run("explain", "photos", *METHODS, "--wrong-only", "--out", "o")
    page = page_of_folder("o")
    assert [row.name for row in page.rows] == ["blue/2.png"]
    assert page.verdict["en"] == "1 of 9 decisions differ from the true label."
    assert [number for _, number in page.counts][::2] == ["9", "1"]
    found = run("compare", "photos", *METHODS, "--wrong-only", "--report", "c.html")
    assert "report: c.html" in found.out
    assert "1 of 9 decisions differ" in Path("c.html").read_text(encoding="utf-8")


def test_options_of_reports(run: Run) -> None:
    run("explain", "photos", *METHODS, "--out", "o")
    assert run("report", "o", "--anonymous", "--lang", "ja", "--pictures", "2", "--out", "a.html").code == 0
    text = Path("a.html").read_text(encoding="utf-8")
    assert '<html lang="ja"' in text
    assert "blue/2.png" not in text
    assert "konkyo explain" not in text
    told(run("report", "photos"), "manifest.json", "evaluation.json", "holds none of them")
    told(run("report", "nowhere"), "is no folder")
    told(run("report", "o", "--lang", "de"), "unknown --lang 'de'")
    told(run("report", "o", "--pictures", "many"), "a number or all")
    told(run("report", "o", "--out", "o.pdf"), "FILE.html")


def test_the_command_is_told_with_names_in_place_of_paths(run: Run, tmp_path: Path) -> None:
    run("explain", "--data", f"folder:{tmp_path}/photos,split=", *METHODS, "--out", tmp_path / "deep o")
    command = json.loads((tmp_path / "deep o" / "manifest.json").read_text())["command"]
    assert "--data folder:photos,split=" in command
    assert "--out 'deep o'" in command
    assert str(tmp_path) not in command


def model() -> konkyo.Model:
    values: dict[str, Any] = {}
    exec(NETS, values)
    return values["net"]()  # type: ignore[no-any-return]


def test_the_page_of_consistency(run: Run) -> None:
    found = run("consistency", "--model", "nets.py:net", "--data", "folder:photos", "--out", "c", "--grid", 4,
                "--no-baselines", "--no-figures", "--all", "--report", "c.html")  # fmt: skip
    assert found.code == 0, found.err
    assert "report: c.html" in found.out
    page = page_of_folder("c")
    with silenced():
        result = consistency(model(), "folder:photos", grid=4, only_correct=False, baselines=False)
    assert len(page.rows) == 9
    cards = {card.name: card for card in page.classes}
    for index, c in enumerate(result.of_class):
        card = cards[c.name]
        assert (card.n, card.consistency) == (c.total, pytest.approx(c.value))
        assert card.mean_map is not None
        torch.testing.assert_close(card.mean_map, result.mean[index])
        assert [page.rows[i].name for i in card.typical] == [image.name for image in result.typical(c.name, 1)]
        assert [page.rows[i].name for i in card.deviant] == [image.name for image in result.deviant(c.name, 1)]
        assert card.mean_picture is not None
    assert cards["blue"].confused == (("green", 1),)
    assert [row.name for row in page.rows if row.correct is False] == ["blue/2.png"]
    assert [row.values.get("deviation") for row in page.rows] == pytest.approx([i.deviation for i in result.images])
    assert "colours" in page.title or "nets.py" in page.title
    shutil.move("photos", "elsewhere")
    gone = page_of_folder("c")
    assert all(row.picture is None for row in gone.rows)
    assert any("cannot be opened again" in note["en"] for note in gone.notes)


def test_a_class_whose_maps_gather_in_one_window_bears_an_alarm_on_its_card() -> None:
    labels = torch.arange(12) % 3
    maps = torch.rand(12, 8, 8)
    maps[labels == 1] = 0.0
    maps[labels == 1, 6:, 6:] = 1.0
    result = measure(maps, labels, labels, classes=("a", "b", "c"), grid=8, resamples=10, permutations=10)
    cards = {card.name: card for card in page_of(result, Request()).classes}
    assert "L is lowest in b" in cards["b"].alarm["en"]
    assert "L は b で最も低く" in cards["b"].alarm["ja"]
    assert cards["b"].alarm["en"] in result.remarks()
    assert not cards["a"].alarm
    assert not cards["c"].alarm
    alike = measure(
        torch.rand(12, 8, 8), labels, labels, classes=("a", "b", "c"), grid=8, resamples=10, permutations=10
    )
    assert not any(card.alarm for card in page_of(alike, Request()).classes)


def test_the_page_of_an_evaluation(run: Run) -> None:
    found = run("evaluate", "--model", "nets.py:net", "--data", "folder:photos", *METHODS, "--out", "e",
                "--metrics", "deletion(steps=4),sparseness", "--report", "e.html")  # fmt: skip
    assert found.code == 0, found.err
    page = page_of_folder("e")
    with silenced():
        result = evaluate(model(), "folder:photos", ["grad_cam", "layer_cam"], ["deletion(steps=4)", "sparseness"])
    (table,) = page.tables
    for line, method in zip(table.rows, result.methods, strict=True):
        assert line[0] == method
        for cell, c in zip(line[1:], result.columns, strict=False):
            assert isinstance(cell, Measure)
            expected = result.cell(method, c.name)
            assert (cell.value, cell.low, cell.high) == pytest.approx((expected.value, expected.low, expected.high))
            assert cell.best == (method in result.bests(c.name))
    (figure,) = page.curves
    assert list(figure.lines[0].y) == pytest.approx(result.curve("grad_cam", "deletion(steps=4)").tolist())
    wrong = next(row for row in page.rows if row.correct is False)
    assert (wrong.name, wrong.true_label, wrong.decision) == ("blue/2.png", "blue", "green")
    assert wrong.probability == pytest.approx(next(r.score for r in result.rows if r.sample == "blue/2.png"))
    mean = torch.stack([result.values(m, "sparseness") for m in result.methods]).mean(0)
    assert [row.values["sparseness"] for row in page.rows] == pytest.approx(mean.tolist())
    worst = next(s for s in page.shortlists if s.title["en"].startswith("sparseness: worst"))
    assert [page.rows[i].name for i in worst.rows] == [
        row.sample for row in result.worst(result.best("sparseness"), "sparseness", 8)
    ]
    matrix = page.matrices[0].values
    assert torch.equal(matrix, matrix.T)
    assert matrix.diag().tolist() == [1, 1]
    assert all(row.picture is not None for row in page.rows)


def test_rows_hold_small_pictures_only() -> None:
    """Of 300 pictures of 1200 pixels, what is held has 224 along the longer side."""

    class Means(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 8 * images.mean((2, 3))

    network = konkyo.Model(Means(), konkyo.Preprocess(None, None, (0.0,) * 3, (1.0,) * 3), ("a", "b", "c"))
    with silenced():
        result = konkyo.explain(network, Image.new("RGB", (1200, 800), "red"), method="gradient")
    rows = CollectedRows(300)
    for number in range(3):
        rows.add([replace(result, names=(f"{number}",))])
    assert [row.picture.size for row in rows.rows if row.picture is not None] == [(224, 149)] * 3
    assert page_of(rows.page("three", provenance={}), Request()).title == "three"
    with pytest.raises(KonkyoError, match="at least one map"):
        CollectedRows(3).page("none", provenance={})


def test_a_preprocessing_is_read_as_it_was_written() -> None:
    for preprocess in (konkyo.Preprocess(), konkyo.Preprocess((8, 9), None, (0.5,), (0.2,), "nearest", "contain")):
        assert preprocess_of(repr(preprocess)) == preprocess
    assert preprocess_of(None) is preprocess_of("None") is None
    for text in ("open('x')", "Preprocess(8)", "Preprocess(resize=open('x'))", "Preprocess(nothing=1)", "Preprocess("):
        with pytest.raises(KonkyoError, match="cannot be read"):
            preprocess_of(text)
