"""The report of a run: what it counts, beside slow Python, and its pages as their reader meets them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.commands import runner, told
from helpers.folders_of_runs import divided, error_row, many_rows, map_row, nothing_row, run_folder
from konkyo.data.pieces import pieces_of
from konkyo.errors import KonkyoError
from konkyo.models import Preprocess
from konkyo.report.folder import page_of_folder
from konkyo.runs import pictures
from konkyo.runs.merge import merge
from konkyo.runs.pictures import digest_of_pixels
from konkyo.runs.query import opened
from konkyo.runs.records import Records
from konkyo.runs.report import RunReportOptions, report_run
from konkyo.runs.summary import Summary, most_suspicious

pytest.importorskip("duckdb")
NAMES = "[...document.querySelectorAll('#rows tbody tr .open')].map(node => node.textContent)"


def embedded(file: Path) -> Any:
    """The data of a page."""
    (text,) = re.findall(r'id="k-data"[^>]*>(.*?)</script>', file.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(text)


def names(file: Path) -> list[str]:
    return [row["n"] for row in embedded(file)["rows"]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k in range(9):
        pixels = np.random.default_rng(k).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def photo_rows(photos: Path) -> list[dict[str, Any]]:
    """Nine photographs: the surer and wrong, the lower the number; then one that is cut off, and one with nothing."""
    rows = []
    for k, sample in enumerate(pieces_of(photos).parts[0].open()):
        known = {"sha256": digest_of_pixels(sample.image), "probability": 0.95 - k / 10, "ebpg@box": k / 10}
        truth = {"true_label": "dog" if k < 3 else "cat", "correct": k >= 3}
        rows += [map_row(sample.name, seed=k, method=m, **known, **truth) for m in ("grad_cam", "layer_cam")]
    return [*rows, error_row("cut.png"), nothing_row("empty.png")]


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    preprocess = repr(Preprocess(resize=20, crop=16))
    return run_folder(folder, divided(photo_rows(photos), 4), source=str(photos), preprocess=preprocess)


ORDER = ["cut.png", "0.png", "1.png", "2.png", "empty.png", "8.png", "7.png", "6.png", "5.png", "4.png", "3.png"]
"""The names of the photographs' run, the most suspicious first."""


@pytest.fixture(scope="module")
def files(run: Path) -> list[Path]:
    return report_run(run, run / "report", RunReportOptions(pages=2, per_page=4))


def test_the_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    records = Records.open(run_folder(tmp_path / "run", divided(many_rows(80, seed=4), 9)))
    with opened(records.files) as database:
        summary, order = Summary.of(records, database), most_suspicious(database, None)
        suspicions = {r["image"]: (r["suspicion"], r["why"]) for r in reversed(records.query(limit=None))}
    rows = list(records.rows())
    first = {row["image"]: row for row in reversed(rows)}
    known = [row for row in first.values() if row["correct"] is not None]
    assert (summary.images, summary.rows) == (80, len(rows))
    assert (summary.known, summary.correct) == (len(known), sum(row["correct"] for row in known))
    assert summary.kinds == Counter(why for _, why in suspicions.values())
    assert [name for name, _ in order] == sorted(first, key=lambda name: (-suspicions[name][0], name))
    assert summary.confusion == Counter((row["true_label"], row["decision"]) for row in known)
    of_maps = Counter((row["method"], row["diagnosis"]) for row in rows if row["method"])
    assert {(method, kind): n for method, kind, n in summary.diagnosis} == of_maps
    assert summary.errors == (("it is cut off", sum(row["error"] is not None for row in rows)),)
    assert {c.name: (c.images, c.correct) for c in summary.classes} == {
        name: (
            sum(row["true_label"] == name for row in known),
            sum(row["correct"] for row in known if row["true_label"] == name),
        )
        for name in ("cat", "dog", "boat")
    }
    for mean in summary.metrics:
        values = [r["ebpg@box"] for r in rows if r["method"] == mean.method and r["ebpg@box"] is not None]
        reach = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values))
        assert mean.n == len(values)
        assert (mean.mean, mean.low) == pytest.approx((np.mean(values), np.mean(values) - reach), rel=1e-4)


def test_pages_hold_the_most_suspicious_images_in_order(files: list[Path]) -> None:
    assert [file.name for file in files] == ["index.html", "page-001.html", "page-002.html"]
    assert names(files[0]) == ORDER
    assert names(files[1]) == ORDER[:4]
    assert names(files[2]) == ORDER[4:8]
    cut, first, *_ = embedded(files[1])["rows"]
    assert cut["f"] == ["error"]
    assert cut["why"]["en"] == "it is cut off"
    assert [m["n"] for m in first["m"]] == ["grad_cam", "layer_cam"]
    assert "p" in first
    assert first["s"] == pytest.approx(3.95)
    assert first["v"] == {"ebpg@box (grad_cam)": 0, "ebpg@box (layer_cam)": 0}
    text = files[0].read_text(encoding="utf-8")
    assert "3 of 9 decisions differ from the true label" in text
    for table in ("Images by what to look at first", "Classes, the least often right first", "Throughput"):
        assert table in text


def test_all_pages_are_written_where_they_are_asked_for(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    listed: list[Any] = []
    monkeypatch.setattr(pictures, "pieces_of", lambda *a, **k: listed.append(a) or pieces_of(*a, **k))
    files = report_run(run, tmp_path, RunReportOptions(pages=None, per_page=4))
    assert len(listed) == 1  # the data is listed once, and not for every page
    assert [name for file in files[1:] for name in names(file)] == ORDER
    assert [file.name for file in report_run(run, tmp_path / "none", RunReportOptions(pages=0))] == ["index.html"]
    assert [row.name for row in page_of_folder(run).rows] == ORDER
    with pytest.raises(KonkyoError, match="a page has at least one image"):
        RunReportOptions(per_page=0)


def test_pictures_that_are_gone_or_changed_are_said(photos: Path, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", divided(photo_rows(photos), 4), source=str(tmp_path / "moved"))
    (index,) = report_run(run, tmp_path / "a", RunReportOptions(pages=0))
    assert all("p" not in row for row in embedded(index)["rows"])
    text = index.read_text(encoding="utf-8")
    assert "10 pictures are not shown, for they cannot be read: 0.png, 1.png, 2.png, empty.png, 8.png, ..." in text
    assert "`--data` says where the pictures are" in text
    (tmp_path / "now").mkdir()
    for file in photos.iterdir():
        Image.open(photos / ("1.png" if file.name == "0.png" else file.name)).save(tmp_path / "now" / file.name)
    (index,) = report_run(run, tmp_path / "b", RunReportOptions(pages=0, data=[str(tmp_path / "now")]))
    assert [row["n"] for row in embedded(index)["rows"] if "p" not in row] == ["cut.png", "0.png", "empty.png"]
    assert "1 pictures are not shown, for their pixels are others now: 0.png" in index.read_text(encoding="utf-8")
    with pytest.raises(KonkyoError):
        report_run(run, tmp_path / "c", RunReportOptions(data=tmp_path / "nowhere"))


def test_a_merged_run_finds_pictures_of_one_name_in_both_folders(tmp_path: Path) -> None:
    runs = []
    for k, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        pixels = np.full((40, 60, 3), 90 * (k + 1), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / "same.png")
        rows = [map_row("same.png", seed=k, sha256=digest_of_pixels(Image.fromarray(pixels)))]
        runs.append(run_folder(tmp_path / f"run-{name}", [rows], source=str(tmp_path / name)))
    page = page_of_folder(merge(runs, tmp_path / "all").folder)
    colours = [row.picture.getpixel((5, 5)) for row in page.rows if row.picture is not None]
    assert sorted(colours) == [(90, 90, 90), (180, 180, 180)]
    assert not page.notes


def test_the_reader_goes_from_page_to_page(files: list[Path], visit: Callable[..., Any]) -> None:
    page = visit(file=files[0])
    assert page.evaluate(NAMES) == ORDER
    assert page.inner_text(".pages [aria-current=page]") == "Summary"
    page.click(".pages a:has-text('2')")
    page.wait_for_url("**/page-002.html")
    assert page.evaluate(NAMES) == ORDER[4:8]
    assert page.inner_text(".pages [aria-current=page]") == "2"
    page.click(".pages a:has-text('Summary')")
    page.wait_for_url("**/index.html")
    page.click("#numbers button[data-copy=csv] >> nth=0")  # the page works as any other


def test_the_command(run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    konkyo = runner("", "none", tmp_path, monkeypatch, capsys)
    found = konkyo("report", run, "--out", "pages", "--per-page", 5, "--pages", "all", "--anonymous", "--lang", "ja")
    assert found.code == 0
    assert "and 3 pages of images" in found.out
    text = (tmp_path / "pages" / "page-001.html").read_text(encoding="utf-8")
    assert "cut.png" not in text
    assert 'lang="ja"' in text
    told(konkyo("report", run, "--pages", "some"), "--pages is a number or all; got 'some'")
    told(konkyo("report", run, "--out", "x.html"), "the report of a run is a folder of pages; got x.html")
    empty = run_folder(tmp_path / "empty", [], expected=2)
    told(konkyo("report", empty), "no shard is finished yet")
