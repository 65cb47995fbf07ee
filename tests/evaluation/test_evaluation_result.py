"""An evaluation: what its values say, what is on disk, and that a run goes on where it stopped."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import konkyo
from helpers.evaluation_inputs import CLASSES, Colours, colours, equal, kept, pictures, thing
from helpers.strict_json import strict
from helpers.unregistered import made
from konkyo.data.samples import Sample, Samples
from konkyo.errors import ImageError, KonkyoError
from konkyo.evaluation.columns import column
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.plan import Maps
from konkyo.evaluation.result import Evaluation, Row, latex
from konkyo.metrics import METRICS, metric
from konkyo.tasks.base import Matching
from konkyo.utils.ledger import Ledger, read_ledger

# --- what the values say ----------------------------------------------------------------------------------------------


def table(values: dict[str, Sequence[float]], images: Sequence[int], name: str = "ebpg") -> tuple[Evaluation, str]:
    """One column of given values, rows on given images."""
    c = column(name)
    rows = tuple(Row(f"image {i}", f"row {k}", 0.5) for k, i in enumerate(images))
    statistics = {(m, c.name): torch.tensor(v, dtype=torch.float64) for m, v in values.items()}
    return Evaluation(tuple(values), (c,), rows, statistics, dict.fromkeys(values, 0)), c.name


def test_means_and_intervals_by_resampling_images() -> None:
    """Rows of an image are drawn together, so that twenty equal rows say no more than one."""
    random = np.random.default_rng(0)
    images = [i for i in range(12) for _ in range(1 + 7 * (i % 3))]
    centre = random.normal(0.5, 0.2, 12)
    values = [centre[i] + random.normal(0, 0.01) for i in images]
    found, name = table({"a": values}, images)
    cell = found.cell("a", name)
    assert cell.value == pytest.approx(np.mean(values))
    assert cell.count == len(values)
    assert math.isnan(cell.p)
    means = []
    for _ in range(4000):
        rows = [v for i in random.integers(0, 12, 12) for v, j in zip(values, images, strict=True) if j == i]
        means.append(np.mean(rows))
    low, high = np.quantile(means, [0.025, 0.975])
    assert cell.low == pytest.approx(low, abs=0.02)
    assert cell.high == pytest.approx(high, abs=0.02)
    row_by_row = [np.mean(random.choice(values, len(values))) for _ in range(2000)]
    narrow = np.quantile(row_by_row, 0.975) - np.quantile(row_by_row, 0.025)
    assert cell.high - cell.low > 1.5 * narrow
    assert found.cell("a", name) == cell


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.15])
def test_the_paired_test_against_all_flips_of_signs(shift: float) -> None:
    random = np.random.default_rng(1)
    images = [i for i in range(9) for _ in range(1 + i % 3)]
    one = random.normal(0.5, 0.1, len(images))
    other = one + shift + np.array([random.normal(0, 0.1) for _ in range(9)])[images]
    found, name = table({"one": one.tolist(), "other": other.tolist()}, images)
    best = "one" if one.mean() > other.mean() else "other"
    assert found.best(name) == best
    assert math.isnan(found.cell(best, name).p)
    sums = [sum((one - other)[k] for k, i in enumerate(images) if i == j) for j in range(9)]
    flips = [
        abs(sum(s * v for s, v in zip(signs, sums, strict=True))) for signs in itertools.product([-1, 1], repeat=9)
    ]
    exact = np.mean([f >= abs(sum(sums)) - 1e-12 for f in flips])
    rest = "other" if best == "one" else "one"
    assert found.cell(rest, name).p == pytest.approx(exact, abs=0.04)


def test_methods_are_compared_on_the_rows_that_all_have() -> None:
    nan = math.nan
    found, name = table({"a": [1, 0.2, nan, 0.4], "b": [nan, 0.3, 0.9, 0.1], "c": [1, 1, 1, nan]}, [0, 1, 2, 3])
    assert [found.cell(m, name).value for m in "abc"] == pytest.approx([0.2, 0.3, 1.0])
    assert [found.cell(m, name).count for m in "abc"] == [1, 1, 1]
    assert found.best(name) == "c"
    two, name = table({"a": [1, 0.2, nan, 0.4], "b": [nan, 0.3, 0.9, 0.1]}, [0, 1, 2, 3], "deletion")
    two = replace(two, statistics={k: torch.stack([v, v], 1) for k, v in two.statistics.items()})
    assert [two.cell(m, name).value for m in "ab"] == pytest.approx([0.3, 0.2])
    assert two.best(name) == "b", "of deletion the lower is better"
    none, name = table({"a": [nan, 1], "b": [1, nan]}, [0, 1])
    assert none.cell("a", name).count == 0
    assert math.isnan(none.cell("a", name).value)
    assert "nan" in none.markdown()


def test_equal_methods_differ_by_nothing() -> None:
    found, name = table({"a": [0.2, 0.5, 0.6], "b": [0.2, 0.5, 0.6]}, [0, 1, 2])
    assert found.best(name) == "a"
    assert found.cell("b", name).p == 1


def test_worst_and_contested_rows() -> None:
    nan = math.nan
    values = {"a": [0.9, 0.1, nan, 0.4, 0.3], "b": [0.8, 0.9, 0.1, 0.4, 0.1]}
    found, name = table(values, [0, 1, 2, 3, 4])
    assert [r.explained for r in found.worst("a", name)] == ["row 1", "row 4", "row 3", "row 0"]
    assert [r.explained for r in found.worst("b", name, 2)] == ["row 2", "row 4"]
    assert [r.explained for r in found.contested(name)] == ["row 1", "row 4", "row 0", "row 3"]
    lower, name = table(values, [0, 1, 2, 3, 4], "odi")
    assert [r.explained for r in lower.worst("a", name, 1)] == ["row 0"]


@pytest.mark.parametrize("name", ["px_ap(steps=10)", "max_box_acc(steps=10)"])
def test_metrics_of_whole_data_sets(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(9, 6, 6, generator=generator)
    masks = torch.zeros(9, 6, 6, dtype=torch.bool)
    masks[:, 1:4, 2:5] = True
    maps += masks * torch.rand(9, 1, 1, generator=generator)
    images = [0, 0, 1, 2, 2, 2, 3, 4, 5]
    c = column(name)
    boxes = torch.tensor([[2.0, 1, 5, 4]]).expand(9, 4)
    statistic = c.metric.statistic(maps, masks=masks, boxes=boxes, **c.options).double()
    statistic[4] = math.nan
    rows = tuple(Row(f"{i}", "x", 0.1) for i in images)
    found = Evaluation(("a",), (c,), rows, {("a", c.name): statistic}, {"a": 1})
    there = [k for k in range(9) if k != 4]

    def value(rows: Sequence[int]) -> float:
        if name.startswith("max"):
            return max(float(np.mean([statistic[r, t] for r in rows])) for t in range(10))
        outside, inside = (np.sum([statistic[r, k].numpy() for r in rows], axis=0)[::-1] for k in (0, 1))
        area, hit, miss = 0.0, 0.0, 0.0
        for wrong, right in zip(outside, inside, strict=True):
            hit, miss = hit + right, miss + wrong
            area += hit / (hit + miss) * right if hit + miss else 0
        return area / inside.sum()

    cell = found.cell("a", c.name)
    assert cell.count == 8
    assert cell.value == pytest.approx(value(there), rel=1e-6)
    assert math.isnan(cell.p)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        chosen = [k for i in random.integers(0, 6, 6) for k in there if images[k] == i]
        drawn.append(value(chosen))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert cell.low == pytest.approx(low, abs=0.06)
    assert cell.high == pytest.approx(high, abs=0.06)
    with pytest.raises(KonkyoError, match="whole data set"):
        found.values("a", c.name)


def test_a_metric_of_which_neither_is_better_has_a_place_in_the_table(model: konkyo.Model, tmp_path: Path) -> None:
    @metric(better="neither")
    def mean_value(maps: Tensor) -> Tensor:
        """The mean."""
        return maps.flatten(1).mean(1)

    try:
        found = evaluate(model, pictures(2), ["grad_cam", "layer_cam"], ["mean_value", "ebpg"], out=tmp_path)
        cell = found.cell("grad_cam", "mean_value")
        assert cell.count == 2
        assert math.isnan(cell.p)
        assert "**" not in found.markdown().splitlines()[2].split("|")[2]
    finally:
        METRICS.pop("mean_value")


def test_names_that_are_not_there() -> None:
    found, name = table({"a": [1.0]}, [0])
    for wrong in (lambda: found.cell("b", name), lambda: found.cell("a", "vea"), lambda: found.curve("a", name)):
        with pytest.raises(KonkyoError):
            wrong()


def test_stars_are_corrected_for_the_number_of_methods() -> None:
    """Of methods that are all alike few are starred; one that is far worse is."""
    random, starred = np.random.default_rng(1), 0
    for _ in range(20):
        found, name = table({k: list(random.normal(0, 1, 20)) for k in "abcdef"}, list(range(20)))
        starred += bool(found.differing(name))
    assert starred <= 4
    one = list(random.normal(1, 0.1, 20))
    found, name = table(
        {"one": one, "far": [v - 0.9 for v in one], "near": [v - 1e-3 * (-1) ** i for i, v in enumerate(one)]},
        list(range(20)),
    )
    assert found.differing(name) == {"far"}


def test_equal_values_are_best_together() -> None:
    found, name = table({"a": [1.0, 0.0], "b": [0.5, 0.25], "c": [0.0, 1.0]}, [0, 1])
    assert found.bests(name) == ("a", "c")
    assert found.best(name) == "a"
    assert [row[1].startswith("**") for row in found.table()[1]] == [True, False, True]


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    folder = tmp_path_factory.mktemp("saved")
    samples = pictures(5)
    samples[2] = replace(samples[2], annotations=(thing("blue", (1, 1, 4, 4)),))
    other = made(lambda inputs: -inputs.sum(1), name="other")
    names = ["deletion(steps=4)", "ebpg", "px_ap(steps=9)"]
    return evaluate(colours(), samples, ["grad_cam", other], names, out=folder), folder


def test_the_table_in_markdown(saved: tuple[Evaluation, Path]) -> None:
    found, folder = saved
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text == found.markdown()
    head, rule, first, second = text.splitlines()[:4]
    assert head == "| method | deletion(steps=4) ↓ | ebpg@mask ↑ | px_ap@mask(steps=9) ↑ | absent |"
    assert rule.count("|") == head.count("|")
    cells = [c.strip() for c in first.strip("|").split("|")]
    cell = found.cell("grad_cam", "ebpg@mask")
    assert cells[0] == "grad_cam"
    assert cells[2] == f"**{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]**"
    assert "**" not in second.split("|")[3]
    assert cells[-1] == "0"
    assert "of 5: deletion(steps=4) 5, ebpg@mask 4, px_ap@mask(steps=9) 5." in text


def test_the_tables_in_csv(saved: tuple[Evaluation, Path]) -> None:
    found, folder = saved
    cells = list(csv.DictReader((folder / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert len(cells) == 6
    for cell in cells:
        own = found.cell(cell["method"], cell["metric"])
        for name in ("value", "low", "high", "count", "p"):
            assert float(cell[name]) == pytest.approx(getattr(own, name), nan_ok=True)
    values = list(csv.DictReader((folder / "values.csv").read_text(encoding="utf-8").splitlines()))
    assert len(values) == 2 * 2 * 5
    for method in found.methods:
        own = [float(v["value"]) for v in values if (v["method"], v["metric"]) == (method, "ebpg@mask")]
        assert own == pytest.approx(found.values(method, "ebpg@mask").tolist(), nan_ok=True)
    assert [v["sample"] for v in values[:5]] == [f"p{i}" for i in range(5)]


def test_what_is_written_as_json_is_json(saved: tuple[Evaluation, Path]) -> None:
    found, folder = saved
    value = strict((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert value["konkyo"] == 1
    assert value["settings"]["model"] == "colours"
    assert value["settings"]["seed"] == 0
    assert {(c["method"], c["metric"]) for c in value["table"]} == {
        (m, c.name) for m in found.methods for c in found.columns
    }
    (cell,) = [c for c in value["table"] if (c["method"], c["metric"]) == ("grad_cam", "ebpg@mask")]
    assert cell["value"] == pytest.approx(found.cell("grad_cam", "ebpg@mask").value)
    assert cell["count"] == 4
    assert cell["p"] is None
    assert len(value["worst"]["grad_cam: ebpg@mask"]) == 4
    assert len(value["contested"]["deletion(steps=4)"]) == 5


def test_what_is_written_without_a_model_is_json_too(tmp_path: Path) -> None:
    np.save(tmp_path / "p0.npy", np.random.default_rng(0).random((2, 8, 8)))
    evaluate(None, pictures(1), [Maps(tmp_path)], ["ebpg"], out=tmp_path / "out")
    value = strict((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert value["contested"]["ebpg@mask"][0]["score"] is None


def test_curves_are_drawn(saved: tuple[Evaluation, Path]) -> None:
    found, folder = saved
    with Image.open(folder / "curves.png") as picture:
        picture.load()
        assert min(picture.size) > 100
    curve = found.curve("grad_cam", "deletion(steps=4)")
    equal(curve, found.statistics["grad_cam", "deletion(steps=4)"].mean(0))
    assert len(curve) == 5


def test_where_there_are_no_curves_there_is_no_picture_of_them(model: konkyo.Model, tmp_path: Path) -> None:
    evaluate(model, pictures(1), ["grad_cam"], ["ebpg"], out=tmp_path)
    assert not (tmp_path / "curves.png").exists()


# --- resuming ---------------------------------------------------------------------------------------------------------


def counted(samples: Sequence[Sample]) -> tuple[Samples, list[str]]:
    opened: list[str] = []

    def read(index: int) -> Sample:
        opened.append(samples[index].name)
        return samples[index]

    return Samples(tuple(s.name for s in samples), read), opened


def test_an_interrupted_run_goes_on_where_it_stopped_with_the_same_values(model: konkyo.Model, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "methods": ["grad_cam", "rise"],
        "metrics": ["deletion(steps=4,substrate=noise)", "ebpg", "px_ap(steps=9)"],
    }
    asked |= {"masks": 8, "seed": 3}
    samples = pictures(4)
    samples[1] = replace(samples[1], annotations=(thing("blue", (1, 1, 4, 4)),))  # has NaN
    straight = evaluate(model, counted(samples)[0], out=tmp_path / "straight", **asked)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    data, opened = counted(samples)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, out=tmp_path / "out", progress=stop, **asked)
    assert opened == ["p0", "p1"]
    opened.clear()
    again = evaluate(model, data, out=tmp_path / "out", **asked)
    assert opened == ["p2", "p3"]
    opened.clear()
    third = evaluate(model, data, out=tmp_path / "out", **asked)
    assert opened == []
    for found in (again, third):
        assert found.rows == straight.rows
        assert found.absent == straight.absent
        assert found.notes == straight.notes
        assert set(found.statistics) == set(straight.statistics)
        for key, values in straight.statistics.items():
            assert torch.equal(values.isnan(), found.statistics[key].isnan())
            assert torch.equal(values.nan_to_num(7), found.statistics[key].nan_to_num(7)), key
    for name in ("table.md", "table.csv", "values.csv", "evaluation.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["rise", "layer_cam"]},
        {"metrics": ["ebpg@box"]},
        {"seed": 1},
        {"explained": "label"},
        {"masks": 9},
        {"matching": Matching(0.2)},
        {"model": konkyo.Model(Colours().eval(), konkyo.Preprocess(None, None), CLASSES, "another")},
        {"model": colours(mean=(0.5,) * 3)},
    ],
    ids=["methods", "metrics", "seed", "explained", "options", "matching", "model", "preprocess"],
)
def test_a_folder_of_a_run_with_other_settings_is_refused(
    model: konkyo.Model, tmp_path: Path, changes: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"model": model, "data": pictures(2), "methods": ["rise"], "metrics": ["ebpg"], "masks": 8}
    evaluate(**asked, out=tmp_path)
    with pytest.raises(KonkyoError, match="other"):
        evaluate(**asked | changes, out=tmp_path)


def test_a_folder_of_other_maps_of_the_same_name_is_refused(tmp_path: Path) -> None:
    for parent, value in (("one", 0), ("two", 1)):
        heat = np.random.default_rng(value).random((2, 8, 8)).astype(np.float32)
        kept(tmp_path / parent / "maps", "p0", heat, ".npy")
    first = evaluate(None, pictures(1), [Maps(tmp_path / "one" / "maps")], ["ebpg"], out=tmp_path / "out")
    try:
        second = evaluate(None, pictures(1), [Maps(tmp_path / "two" / "maps")], ["ebpg"], out=tmp_path / "out")
    except KonkyoError:
        return
    assert not torch.equal(first.values("maps", "ebpg@mask"), second.values("maps", "ebpg@mask"))


def test_a_folder_of_other_samples_is_refused(model: konkyo.Model, tmp_path: Path) -> None:
    evaluate(model, pictures(2), ["grad_cam"], ["ebpg"], out=tmp_path)
    other = [replace(s, name=f"other {s.name}") for s in pictures(2)]
    with pytest.raises(KonkyoError, match="not of 'other p0'"):
        evaluate(model, other, ["grad_cam"], ["ebpg"], out=tmp_path)


def test_samples_that_cannot_be_read_stay_told_after_resuming(model: konkyo.Model, tmp_path: Path) -> None:
    def read(index: int) -> Sample:
        if index == 0:
            raise ImageError("the first is damaged")
        return pictures(2)[index]

    data = Samples(("p0", "p1"), read)
    first = evaluate(model, data, ["grad_cam"], ["ebpg"], out=tmp_path)
    again = evaluate(model, data, ["grad_cam"], ["ebpg"], out=tmp_path)
    assert first.notes == again.notes == ("1 samples skipped: the first is damaged",)
    assert [r.sample for r in again.rows] == ["p1"]


def test_damaged_lines_are_told_and_measured_again(model: konkyo.Model, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": pictures(3), "methods": ["grad_cam"], "metrics": ["ebpg"], "out": tmp_path / "a"}
    whole = evaluate(model, **asked)
    record = (tmp_path / "a" / "samples.jsonl").read_bytes()
    (tmp_path / "a" / "samples.jsonl").write_bytes(record[:-30])
    with pytest.warns(konkyo.KonkyoWarning, match="1 damaged lines; their samples are measured again"):
        again = evaluate(model, **asked)
    assert again.rows == whole.rows
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == record


def test_a_run_goes_on_to_a_larger_limit_and_not_to_other_weights(model: konkyo.Model, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": pictures(4), "methods": ["grad_cam"], "metrics": ["ebpg"]}
    evaluate(model, **asked, limit=2, out=tmp_path / "a")
    found = evaluate(model, **asked, limit=3, out=tmp_path / "a")
    whole = evaluate(model, **asked, limit=3)
    assert found.rows == whole.rows
    equal(found.values("grad_cam", "ebpg@mask"), whole.values("grad_cam", "ebpg@mask"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.module.parameters()).mul_(2)
    with pytest.raises(KonkyoError, match="differ in weights"):
        evaluate(other, **asked, limit=3, out=tmp_path / "a")


def test_what_was_saved_is_loaded(saved: tuple[Evaluation, Path], tmp_path: Path) -> None:
    found, folder = saved
    again = Evaluation.load(folder)
    assert again.rows == found.rows
    assert again.description() == found.description()
    assert set(again.statistics) == set(found.statistics)
    for key, values in found.statistics.items():
        torch.testing.assert_close(again.statistics[key], values, equal_nan=True, rtol=0, atol=0)
    copied = again.save(tmp_path)
    for name in ("table.md", "table.csv", "values.csv", "evaluation.json", "curves.png"):
        assert (copied / name).read_bytes() == (folder / name).read_bytes(), name
    old = json.loads((tmp_path / "evaluation.json").read_text())
    del old["rows"]
    (tmp_path / "evaluation.json").write_text(json.dumps(old))
    with pytest.raises(KonkyoError, match="older version"):
        Evaluation.load(tmp_path)
    with pytest.raises(KonkyoError, match="no saved evaluation"):
        Evaluation.load(tmp_path / "nothing")


def test_values_name_the_truth_the_decision_and_what_is_explained(model: konkyo.Model, tmp_path: Path) -> None:
    samples = pictures(3)
    samples[2] = replace(samples[2], label=None)
    for explained, names in (("decision", ["red_fox"] * 3), ("label", ["green"])):
        some = samples if explained == "decision" else samples[1:2]
        found = evaluate(model, some, ["grad_cam"], ["ebpg"], explained=explained, out=tmp_path / explained)  # type: ignore[arg-type]
        values = list(csv.DictReader((tmp_path / explained / "values.csv").read_text().splitlines()))
        assert [row.explained for row in found.rows] == [v["explained"] for v in values] == names
        labels = {"p0": "red_fox", "p1": "green", "p2": ""}  # "Red fox" of the data, as the model calls it
        assert [v["label"] for v in values] == [labels[sample.name] for sample in some]
        assert [v["decision"] for v in values] == ["red_fox"] * len(some)


def test_records_of_an_older_version_go_on(model: konkyo.Model, tmp_path: Path) -> None:
    """They have what was explained and its score of every row, and no truth."""
    data = pictures(3)
    evaluate(model, counted(data[:2])[0], ["grad_cam"], ["ebpg"], out=tmp_path)
    path = tmp_path / "samples.jsonl"
    settings, entries = read_ledger(path)
    path.unlink()
    with Ledger(path, settings) as ledger:
        for key, entry in entries.items():
            ledger.add(key, {**entry, "rows": [row[:2] for row in entry["rows"]]})
    opened: list[str]
    source, opened = counted(data)
    found = evaluate(model, source, ["grad_cam"], ["ebpg"], out=tmp_path)
    assert opened == ["p2"]
    assert [(row.explained, row.label, row.decision) for row in found.rows] == [
        ("red_fox", "", ""),
        ("red_fox", "", ""),
        ("red_fox", "red_fox", "red_fox"),
    ]


def test_a_table_in_latex() -> None:
    odd = "~^\\<$#{}"
    text = latex((["method", "a_b ↑"], [["grad_cam", "**0.5 [0.4, 0.6]**"], ["x & y 50 %", "0.3 \\*"], [odd, "-"]]))
    assert text.splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & a\_b $\uparrow$ \\",
        r"\midrule",
        r"grad\_cam & \textbf{0.5 [0.4, 0.6]} \\",
        r"x \& y 50 \% & 0.3$^{*}$ \\",
        r"\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\$\#\{\} & - \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
