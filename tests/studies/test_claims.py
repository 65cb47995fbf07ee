"""The claims of the paper on IG-ODAM: how they are judged, what they are held against, and the record of paths."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import konkyo
from helpers.paths import ROOT
from konkyo.data.samples import samples
from konkyo.evaluation.columns import column
from konkyo.evaluation.result import Evaluation, Row
from konkyo.methods.base import methods
from konkyo.studies import claims, ig_odam
from konkyo.studies.claims import CLAIMS, Claim, Comparison, Difference, judge, path_values, values_of
from konkyo.studies.ig_odam import Convergence, convergence

TABLE_1 = {
    "grad_cam": (72.82, 11.23),
    "grad_cam_pp": (72.60, 11.04),
    "d_rise": (57.57, 13.23),
    "odam": (55.25, 15.37),
    "ig_odam": (51.48, 18.14),
    "adaptive_ig_odam": (46.48, 25.88),
}
TABLE_2 = {"adaptive_ig_odam": (0.1492, 0.3934), "ig_odam": (0.0964, 0.2801)}


def test_the_gains_are_those_of_the_paper_s_tables() -> None:
    compared = [comparison for claim in CLAIMS for comparison in claim.comparisons]
    for c in compared:
        assert c.better in methods()
        if c.column == "deletion":
            assert c.gain == pytest.approx((TABLE_1[str(c.worse)][0] - TABLE_1[c.better][0]) / 100)
        elif c.column == "insertion":
            assert c.gain == pytest.approx((TABLE_1[c.better][1] - TABLE_1[str(c.worse)][1]) / 100)
        elif c.better in TABLE_2 and c.worse in TABLE_2 and c.column in ("vea@mask", "ebpg@box"):
            place = ("vea@mask", "ebpg@box").index(c.column)
            assert c.gain == pytest.approx(TABLE_2[c.better][place] - TABLE_2[str(c.worse)][place])
        else:
            assert c.gain == 0
    assert {c.column for c in compared} >= {"deletion", "insertion", "vea@mask", "ebpg@box"}
    measured = {c.column for c in compared} - {claims.DISTANCE, claims.TRACKED}
    for name in measured:
        assert (column(name).metric.better == "lower") == (name.partition("@")[0] in claims.LOWER)


@pytest.mark.parametrize(
    ("images", "low", "high", "highest", "gain", "verdict"),
    [
        (10, 0.01, 0.03, 0.04, 0.05, "confirmed"),
        (9, 0.01, 0.03, 0.04, 0.05, "cannot be told"),
        (10, 0.01, 0.03, 0.04, 0.4, "refuted"),  # a tenth of the gain is not reached
        (10, 0.01, 0.03, 0.05, 0.4, "confirmed"),  # the wider interval reaches it
        (10, -0.01, 0.03, 0.04, 0.05, "cannot be told"),
        (10, -0.03, -0.01, 0.004, 0.05, "refuted"),
        (10, -0.03, -0.01, 0.004, 0.0, "cannot be told"),
        (10, 0.0, 0.0, 0.0, 0.0, "refuted"),  # the two are the same
    ],
)
def test_a_comparison_is_judged_by_its_interval(
    images: int, low: float, high: float, highest: float, gain: float, verdict: str
) -> None:
    assert Difference(images, images, (low + high) / 2, low, high, highest).verdict(gain) == verdict


def many(
    difference: float, count: int = 40, spread: float = 0.1
) -> dict[tuple[str, str], dict[tuple[str, int], float]]:
    """Values of two methods, two detections on each image, that differ by so much in the mean."""
    noise = spread * torch.randn(count, 2, dtype=torch.float64)
    noise = noise - noise.mean() + difference
    keys = [(f"image {i}", k) for i in range(count) for k in range(2)]
    one = dict(zip(keys, (0.5 + noise).flatten().tolist(), strict=True))
    return {("one", "ebpg@box"): one, ("other", "ebpg@box"): dict.fromkeys(keys, 0.5)}


def test_the_interval_comes_from_resampled_images() -> None:
    """Against loops; images have different numbers of detections, and values that are NaN count nowhere."""
    generator = torch.Generator().manual_seed(3)
    one, other = dict[tuple[str, int], float](), dict[tuple[str, int], float]()
    for i in range(12):
        for k in range(i % 3 + 1):
            one[f"{i}", k], other[f"{i}", k] = torch.rand(2, generator=generator).tolist()
    one["3", 0] = math.nan
    other["7", 1] = math.nan
    one["only here", 0] = 0.9
    claim = Claim("", "", "", (Comparison("one", "other", "deletion"), Comparison("other", "one", "deletion")))
    judgement = judge(claim, {("one", "deletion"): one, ("other", "deletion"): other}, seed=5)
    by_image: dict[str, list[float]] = {}
    for key, value in one.items():
        if key in other and value == value and other[key] == other[key]:
            by_image.setdefault(key[0], []).append(other[key] - value)  # the lower is better
    groups = list(by_image.values())
    drawn = torch.randint(len(groups), (claims.RESAMPLES, len(groups)), generator=torch.Generator().manual_seed(5))
    means = []
    for row in drawn.tolist():
        values = [value for i in row for value in groups[i]]
        means.append(sum(values) / len(values))
    sorted_means = torch.tensor(sorted(means), dtype=torch.float64)
    expected = sorted_means.quantile(torch.tensor([0.025, 0.975, 0.9875], dtype=torch.float64)).tolist()
    found = judgement.differences[0]
    assert (found.images, found.detections) == (len(groups), sum(map(len, groups)))
    assert [found.low, found.high, found.highest] == pytest.approx(expected)
    assert found.mean == pytest.approx(sum(map(sum, groups)) / sum(map(len, groups)))
    assert judgement.differences[1].mean == pytest.approx(-found.mean)


@pytest.mark.parametrize(
    ("difference", "gain", "verdict"),
    [(0.1, 0.1, "confirmed"), (-0.1, 0.1, "refuted"), (0.0, 0.1, "cannot be told"), (0.001, 2.0, "refuted")],
)
def test_verdicts_follow_what_is_true(difference: float, gain: float, verdict: str) -> None:
    claim = Claim("", "", "", (Comparison("one", "other", "ebpg@box", gain),))
    assert judge(claim, many(difference)).verdict == verdict


def test_chance_rarely_confirms() -> None:
    claim = Claim("", "", "", (Comparison("one", "other", "ebpg@box", 1e-9),))
    told = []
    for _ in range(150):
        noise = 0.1 * torch.randn(30, dtype=torch.float64)
        keys = [(str(i), 0) for i in range(30)]
        values = {("one", "ebpg@box"): dict(zip(keys, noise.tolist(), strict=True))}
        told.append(judge(claim, values | {("other", "ebpg@box"): dict.fromkeys(keys, 0.0)}).verdict)
    assert told.count("confirmed") <= 10  # 2.5 % of each side, and a little more of so few images
    assert told.count("refuted") <= 10
    assert told.count("confirmed") + told.count("refuted") > 0


def test_a_claim_needs_all_of_its_comparisons() -> None:
    good, bad = Comparison("one", "other", "ebpg@box", 0.1), Comparison("other", "one", "ebpg@box", 0.1)
    absent = Comparison("one", "nobody", "ebpg@box", 0.1)
    values = many(0.1)
    verdicts = [
        judge(Claim("", "", "", of), values).verdict for of in ((good,), (good, bad), (good, absent), (absent,))
    ]
    assert verdicts == ["confirmed", "refuted", "cannot be told", "cannot be told"]
    constant = judge(Claim("", "", "", (Comparison("one", 0.5, "ebpg@box"),)), values)
    assert constant.verdict == "confirmed"
    assert constant.differences == judge(Claim("", "", "", (good,)), values).differences
    _, rows = claims.comparison_table([judge(Claim("c", "", "", (good, absent)), values)])
    assert [row[-1] for row in rows] == ["confirmed", "not measured"]
    judgements = {
        "a": [judge(Claim("", "it is so", "here", of), values) for of in ((good,), (good,), (good,), (absent,))],
        "b": [judge(Claim("", "it is so", "here", of), values) for of in ((good,), (bad,), (absent,), (absent,))],
    }
    _, rows = claims.verdict_table(judgements)
    assert [row[-1] for row in rows] == [
        "**confirmed**",
        "**detectors differ**",
        "**cannot be told**",
        "**cannot be told**",
    ]
    assert claims.beyond([]) is None


def evaluation(method: str, name: str, rows: list[str], values: list[float]) -> Evaluation:
    of = column(name)
    table = {(method, of.name): torch.tensor(values, dtype=torch.float64)}
    return Evaluation((method,), (of,), tuple(Row(row, "cat", 0.9) for row in rows), table, {method: 0})


def test_values_of_several_evaluations_are_paired_by_image_and_number() -> None:
    first = evaluation("odam", "ebpg@box", ["a", "a", "b"], [0.1, 0.2, 0.3])
    second = evaluation("d_rise", "ebpg@box", ["b", "a", "a"], [0.6, 0.4, math.nan])
    again = evaluation("odam", "ebpg@box", ["a"], [0.7])
    found = values_of(first, second, again)
    assert found["odam", "ebpg@box"] == {("a", 0): 0.1, ("a", 1): 0.2, ("b", 0): 0.3}
    claim = Claim("", "", "", (Comparison("d_rise", "odam", "ebpg@box"),))
    difference = judge(claim, found).differences[0]
    assert (difference.images, difference.detections) == (2, 2)
    assert difference.mean == pytest.approx((0.3 + 0.3) / 2)
    curves = evaluation("odam", "max_sensitivity(samples=3)", ["a"], [0.1])
    assert set(values_of(curves)) == {("odam", "max_sensitivity")}


# --- the record of paths ----------------------------------------------------------------------------------------------

SCENES = "scenes:3,objects=1-3,size=96"
FEW = konkyo.Matching(0.2)


@pytest.fixture(scope="module")
def detector() -> konkyo.Model:
    pytest.importorskip("transformers")
    return konkyo.load("konkyo/scenes-detr")


def test_convergence_goes_on_where_it_was_interrupted(
    detector: konkyo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ig_odam, "REFERENCE_NODES", 5)
    asked, original = list[Any](), ig_odam.explain

    def counted(model: konkyo.Model, picture: Any, **how: Any) -> konkyo.Explanation:
        asked.append(picture)
        return original(model, picture, **how)

    monkeypatch.setattr(ig_odam, "explain", counted)
    first = convergence(detector, SCENES, nodes=(2, 3), limit=1, matching=FEW, out=tmp_path)
    assert len(asked) == 5
    whole = convergence(detector, SCENES, nodes=(2, 3), limit=2, matching=FEW, out=tmp_path)
    assert len(asked) == 10
    assert len({id(picture) for picture in asked[5:]}) == 1
    read = Convergence.read(tmp_path)
    for found in (whole, read):
        assert found.nodes == (2, 3)
        assert found.images == whole.images
        assert torch.equal(found.tracked, whole.tracked)
        for name, errors in whole.errors.items():
            torch.testing.assert_close(found.errors[name], errors, equal_nan=True)
            torch.testing.assert_close(errors[:, : len(first.images)], first.errors[name], equal_nan=True)
    assert set(first.images) == {samples(SCENES, limit=1).names[0]}
    with pytest.raises(konkyo.KonkyoError, match="nodes"):
        convergence(detector, SCENES, nodes=(2, 4), limit=1, matching=FEW, out=tmp_path)
    values = path_values(whole, 3)
    assert list(values["ig_odam", claims.DISTANCE].values()) == whole.errors["ig_odam"][1].tolist()
    assert len(values["ig_odam", claims.TRACKED]) == len(whole.images)


def test_boxes_that_jump_are_not_tracked(detector: konkyo.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ig_odam, "REFERENCE_NODES", 3)
    gone, box, near, far = [math.nan] * 4, [0.0, 0, 4, 4], [1.0, 0, 5, 4], [3.0, 0, 7, 4]  # IoU 1/3 of near and far
    paths = torch.tensor([[gone, box, near], [box, near, far], [gone, gone, box], [box, gone, far]])

    class Explained:
        signed = torch.ones(4, 2, 2)
        path = type("Path", (), {"boxes": paths})

    monkeypatch.setattr(ig_odam, "explain", lambda *_, **__: Explained)
    found = convergence(detector, SCENES, nodes=(2,), limit=1)
    assert found.tracked.tolist() == [1, 0, 1, 1]


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_the_script_measures_and_reports(
    detector: konkyo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del detector
    script = runpy.run_path(str(ROOT / "benchmarks" / "paper_ig_odam.py"))
    monkeypatch.setattr(ig_odam, "REFERENCE_NODES", 5)
    monkeypatch.setitem(script["main"].__globals__, "NODES", (2, 3))
    monkeypatch.setitem(script["main"].__globals__, "USUAL_NODES", 3)
    some = ["--data", "scenes:1,objects=1,size=96", "--limit", "1", "--steps", "4", "--masks", "8"]
    script["main"](["run", str(tmp_path / "scenes"), *some])
    out = tmp_path / "report.md"
    script["main"](["report", f"scenes={tmp_path / 'scenes'}", "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    for claim in CLAIMS:
        assert f"| {claim.text} | {claim.source} | cannot be told | **cannot be told** |" in text
    rows = [line for line in text.partition("scenes: ")[0].splitlines() if line.startswith("|")]
    assert rows
    unmeasured = {row.split("|")[3].strip() for row in rows if "not measured" in row}
    assert unmeasured == {"odi@mask"}  # a single object has no others
    settings = json.loads((tmp_path / "scenes" / "nodes-2" / "evaluation.json").read_text())["settings"]
    assert settings["options"] == {"nodes": "2", "initial": "2"}
    assert "1 of 1 images" in capsys.readouterr().out
