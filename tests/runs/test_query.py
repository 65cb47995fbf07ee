"""Questions to the rows of a run, beside the same ones answered slowly in Python."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Run, runner, told
from helpers.folders_of_runs import divided, error_row, many_rows, map_row, nothing_row, run_folder
from konkyo.errors import KonkyoError
from konkyo.report import of_explanations
from konkyo.runs import query
from konkyo.runs.records import Records, rows_of_file
from konkyo.runs.shards import shard_path

pytest.importorskip("duckdb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = many_rows(60)
    return run_folder(tmp_path_factory.mktemp("it's [a] run"), divided(rows, 25))


@pytest.fixture(scope="module")
def records(folder: Path) -> Records:
    return Records.open(folder)


def suspicion(row: dict[str, Any]) -> tuple[float, str]:
    p = row["probability"]
    if row["error"] is not None:
        return 5, "error"
    if row["correct"] is False:
        return 3 + (p or 0), "wrong"
    if row["diagnosis"] == "nothing":
        return 1, "nothing found"
    if row["diagnosis"] not in (None, "ok"):
        return 2, "doubtful map"
    return (0, "ok") if p is None else (1 - p, "unsure" if p < 0.5 else "ok")


def slow(records: Records) -> list[dict[str, Any]]:
    """The rows in the order of their suspicion, as Python finds it."""
    rows = [row | dict(zip(("suspicion", "why"), suspicion(row), strict=True)) for row in records.rows()]
    return sorted(rows, key=lambda r: (-r["suspicion"], r["image"], r["method"] is None, r["method"], r["row"]))


def test_the_most_suspicious_come_first(records: Records) -> None:
    expected = slow(records)
    rows = records.query(limit=None, columns=["image", "method", "why", "suspicion"])
    assert [(r["image"], r["method"], r["why"]) for r in rows] == [
        (r["image"], r["method"], r["why"]) for r in expected
    ]
    assert [r["suspicion"] for r in rows] == pytest.approx([r["suspicion"] for r in expected])
    assert {r["why"] for r in rows} == {"error", "wrong", "nothing found", "doubtful map", "unsure", "ok"}
    assert records.query(columns=["image"]) == [{"image": r["image"]} for r in expected[:20]]


def test_conditions_columns_and_order(records: Records) -> None:
    rows = records.query(
        "\"ebpg@box\" > 0.25 AND label <> 'cat' -- well", columns=["image", "ebpg@box"], sort="-ebpg@box", limit=None
    )
    kept = [r for r in records.rows() if (r["ebpg@box"] or 0) > 0.25 and r["label"] != "cat"]
    kept.sort(key=lambda r: (-r["ebpg@box"], r["image"], r["method"]))
    assert len(kept) > 5
    assert rows == [{"image": r["image"], "ebpg@box": r["ebpg@box"]} for r in kept]
    upwards = records.query(columns=["probability"], sort="probability", limit=None)
    known = sorted(r["probability"] for r in records.rows() if r["probability"] is not None)
    assert [r["probability"] for r in upwards] == known + [None] * (len(records) - len(known))


def test_maps_come_as_bytes_where_they_are_asked_for(records: Records) -> None:
    first = next(row for row in records.rows() if row["map"] is not None)
    (found,) = records.query(f"image = '{first['image']}' AND method = 'grad_cam'", columns=["map", "shape", "notes"])
    assert found == {name: first[name] for name in ("map", "shape", "notes")}


def test_a_row_knows_its_shard_and_how_long_its_images_took(folder: Path) -> None:
    for path in sorted((folder / "shards").glob("*.json")):
        receipt = json.loads(path.read_text())
        receipt["seconds"] = {"explain": 2.0 * (receipt["shard"] + 1), "write": 0.5, "all": 9.0}
        path.write_text(json.dumps(receipt))
    records = Records.open(folder)
    images = {r.shard: r.images for r in records.receipts}
    shards = [number for number, file in enumerate(records.files) for _ in rows_of_file(file, ["image"])]
    rows = records.query(sql="SELECT image, shard, seconds FROM rows")
    assert sorted(row["shard"] for row in rows) == shards
    for row in rows:
        assert row["seconds"] == pytest.approx(2.0 * (row["shard"] + 1) / images[row["shard"]])
    assert records.query(sql="SELECT shard, write_seconds, all_seconds, images FROM receipts ORDER BY shard") == [
        {"shard": n, "write_seconds": 0.5, "all_seconds": 9.0, "images": images[n]} for n in sorted(images)
    ]


def test_a_query_waits_for_no_network_library(folder: Path) -> None:
    """Torch takes seconds to import; the limit of probabilities is that of reports all the same."""
    code = (
        "import sys; from konkyo.runs.records import Records; "
        f"print(len(Records.open({str(folder)!r}).query(limit=3)), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["3", "False"]
    assert query.UNSURE == of_explanations.UNSURE


def test_whole_queries(records: Records) -> None:
    counts = records.query(sql="SELECT why, count(*) AS n FROM rows GROUP BY why ORDER BY why")
    expected = [row["why"] for row in slow(records)]
    assert counts == [{"why": why, "n": expected.count(why)} for why in sorted(set(expected))]


def test_a_file_without_a_receipt_does_not_count(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [[map_row("a")], [map_row("b")], [map_row("c")]])
    shard_path(run, 1).with_suffix(".json").unlink()
    assert [r["image"] for r in Records.open(run).query(sort="image")] == ["a", "c"]
    for number in (0, 2):
        shard_path(run, number).with_suffix(".json").unlink()
    with pytest.raises(KonkyoError, match="no shard is finished yet"):
        Records.open(run).query()


@pytest.mark.parametrize(
    "sql",
    [
        "COPY rows TO 'stolen.csv'",
        "SELECT 1; COPY rows TO 'stolen.csv'",
        "EXPLAIN ANALYZE COPY rows TO 'stolen.csv'",
        "CREATE TABLE t AS SELECT 1",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM records",
        "ATTACH 'other.db'",
        "SET enable_external_access = true",
        "",
        "SELEC",
        "SELECT nope FROM rows",
        "SELECT 1 / (CASE WHEN row = 0 THEN error('stop') ELSE 1 END) FROM rows",
    ],
)
def test_a_query_reads_rows_and_nothing_else(
    records: Records, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KonkyoError, match=r"a query is one SELECT; got|the query cannot be run: "):
        records.query(sql=sql)
    if sql:
        with pytest.raises(KonkyoError):
            records.query(f"1 = 1) ; {sql} --")
    assert list(tmp_path.iterdir()) == []


def test_wrong_questions_are_told(records: Records) -> None:
    with pytest.raises(KonkyoError, match=r"unknown column 'labell'.*did you mean 'label'"):
        records.query(columns=["labell"])
    with pytest.raises(KonkyoError, match="unknown column 'nope'"):
        records.query(sort="-nope")
    with pytest.raises(KonkyoError, match="columns is a list of names; got 'image'"):
        records.query(columns="image")
    with pytest.raises(KonkyoError, match="limit is a number of rows, 1 or more"):
        records.query(limit=0)
    with pytest.raises(KonkyoError, match="sql is the whole query"):
        records.query("1 = 1", sql="SELECT 1")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def konkyo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner("", "none", tmp_path, monkeypatch, capsys)


def test_the_command_prints_a_table(konkyo: Run, folder: Path, records: Records) -> None:
    found = konkyo("query", folder, "--limit", 3)
    assert found.code == 0
    head, *lines = found.out.splitlines()
    assert head.split()[:3] == ["why", "suspicion", "image"]
    assert [line.split()[2] for line in lines] == [row["image"] for row in slow(records)[:3]]
    shown = konkyo("query", folder, "--columns", "image,map", "--where", "map IS NOT NULL", "--limit", 1)
    assert "32 bytes" in shown.out


def test_the_command_prints_json_and_writes_csv(konkyo: Run, folder: Path, records: Records, tmp_path: Path) -> None:
    expected = slow(records)
    found = konkyo("query", folder, "--json", "--limit", 0)
    assert [row["image"] for row in found.json] == [row["image"] for row in expected]
    assert konkyo("query", folder, "--json", "--where", "1 = 0").json == []
    said = konkyo("query", folder, "--csv", tmp_path / "rows.csv", "--limit", 0)
    assert f"{len(records)} rows in " in said.out.replace("\n", "")
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["why"] for row in rows] == [row["why"] for row in expected]
    every = konkyo("query", folder, "--sql", "SELECT * FROM rows", "--json").json
    assert json.dumps(every[0]["shape"]) in ("[4, 4]", "null")


def test_the_command_tells_what_is_wrong(konkyo: Run, folder: Path, tmp_path: Path) -> None:
    where = partial(konkyo, "query", folder, "--where")
    told(where("probabilty > 1"), "cannot be run: there is no column 'probabilty'; did you mean 'probability'")
    told(where("method = grad_cam"), "A text has single quotes, as in = 'grad_cam'. Columns of rows: ")
    told(where("score >"), "the condition ends before it is whole, or closes a bracket")
    told(where("score >> > 1"), "this is no SQL at '>' in 'score >> > 1'; a condition is as in")
    told(where("method = 'grad"), "unterminated string literal, in")
    told(where("nosuch(score) > 1"), "Scalar Function with name nosuch does not exist!")
    told(konkyo("query", tmp_path / "nowhere"), "a folder of `konkyo run` was expected", "is no folder")
    assert not list(tmp_path.glob("*.csv"))
    told(konkyo("query", folder, "--sql", "DROP VIEW rows", "--csv", "x.csv"), "one SELECT")
    assert not list(tmp_path.glob("*.csv"))


def test_numbers_that_are_none_are_null(konkyo: Run, tmp_path: Path) -> None:
    rows = [map_row("a", score=math.nan), error_row("b"), nothing_row("c")]
    found = konkyo("query", run_folder(tmp_path / "run", [rows]), "--columns", "image,score", "--json").json
    assert [(row["image"], row["score"]) for row in found] == [("b", None), ("c", None), ("a", None)]
