"""The report of a study of gaze consistency: statistics against references, tables and pictures of made-up runs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats
from typer.testing import CliRunner

from konkyo.apps.cli.report import report
from konkyo.errors import KonkyoError
from konkyo.evaluation.consistency import Consistency, measure
from konkyo.studies.gaze import drawings as drawing
from konkyo.studies.gaze import figures
from konkyo.studies.gaze.report import report_gaze
from konkyo.training.loop import write_epochs
from konkyo.utils.statistics import Correlation, Estimate, fitted, t_quantile

CLASSES = ("disc", "ring")
COUNT = 16


def made(
    out: Path,
    levels: Sequence[int] = (2,),
    lambdas: Sequence[float] = (-1.0, 0.0, 3.0),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 8,
    stopped: Sequence[tuple[int, float, int]] = (),
) -> Path:
    """A study's folder with random maps, the more alike the larger lambda; those in `stopped` have half the epochs."""
    random = torch.Generator().manual_seed(0)
    recipe = {"epochs": epochs, "batch": 32}
    study = {"kind": "gaze", "data": "lesions:60", "levels": list(levels), "lambdas": list(lambdas)}
    study |= {"seeds": list(seeds), "distance": "mse", "classes": list(CLASSES), "start": 1, "end": 3, "recipe": recipe}
    (out / "pictures").mkdir(parents=True)
    (out / "study.json").write_text(json.dumps(study))
    index = [{"name": str(i), "label": CLASSES[i % 2], "file": f"{i:03}.png"} for i in range(4)]
    (out / "pictures" / "index.json").write_text(json.dumps(index))
    for entry in index:
        Image.new("L", (24, 24), 90).save(out / "pictures" / entry["file"])
    labels = torch.arange(COUNT) % 2
    for level in levels:
        for seed in seeds:
            for strength in lambdas:
                folder = out / f"level-{level}" / f"lambda_{strength:g}" / f"seed_{seed}"
                folder.mkdir(parents=True)
                unfinished = (level, strength, seed) in stopped
                drawn = torch.rand(epochs, 5, generator=random).tolist()
                names = ("valid_accuracy", "valid_loss", "valid_kappa", "valid_L", "valid_wt")
                rows = [{"epoch": e + 1.0, **dict(zip(names, row, strict=True))} for e, row in enumerate(drawn)]
                write_epochs(folder / "epochs.csv", rows[: epochs // 2] if unfinished else rows)
                if unfinished:
                    continue
                maps = torch.rand(COUNT, 5, 5, generator=random) / (2 + strength)
                maps[labels == 0, 1, 1] += 1
                maps[labels == 1, 3, 3] += 1
                predictions = labels.clone()
                predictions[: 1 + (seed + int(strength)) % 3] = 1 - labels[: 1 + (seed + int(strength)) % 3]
                names = [str(i) for i in range(COUNT)]
                found = measure(
                    maps, labels, predictions, classes=CLASSES, names=names, grid=5, resamples=0, permutations=0
                )
                found.save(folder / "test")
                save_file({"maps": maps[:4].contiguous()}, folder / "pictures.safetensors")
    return out


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("study") / "out", stopped=[(2, 3.0, 2)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 30, 121])
@pytest.mark.parametrize("share", [0.025, 0.5, 0.6, 0.9, 0.975, 0.9995])
def test_quantiles_of_student(share: float, freedom: int) -> None:
    assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("share", "freedom"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_no_such_quantile(share: float, freedom: int) -> None:
    with pytest.raises(KonkyoError, match="share between 0 and 1"):
        t_quantile(share, freedom)


def test_estimate_is_students_interval() -> None:
    values = [0.91, 0.93, 0.88, 0.97]
    found = Estimate.of([*values, math.nan])
    low, high = stats.t.interval(0.95, 3, loc=torch.tensor(values).mean().item(), scale=stats.sem(values))
    assert found.n == 4
    assert found.sd == pytest.approx(stats.tstd(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6)


def test_a_single_value_has_no_interval() -> None:
    alone, none = Estimate.of([0.5]), Estimate.of([math.nan])
    assert (alone.n, alone.mean) == (1, 0.5)
    assert all(map(math.isnan, (alone.sd, alone.low, alone.high)))
    same = Estimate.of([1.0, 1.0, 1.0])
    assert same.sd == 0
    assert math.isnan(same.low)
    assert none.n == 0
    assert math.isnan(none.mean)


@pytest.mark.parametrize("count", [4, 5, 12])
def test_correlation_is_scipys(count: int) -> None:
    random = torch.Generator().manual_seed(count)
    x = torch.rand(count, generator=random).mul(5).round().tolist()  # with ties
    y = [a + b for a, b in zip(x, torch.randn(count, generator=random).tolist(), strict=True)]
    found, pearson = Correlation.of([*x, math.nan], [*y, 1.0]), stats.pearsonr(x, y)
    ends = pearson.confidence_interval(0.95)
    assert found.n == count
    assert (found.pearson, found.low, found.high) == pytest.approx((pearson.statistic, ends.low, ends.high))
    rho = float(stats.spearmanr(x, y).statistic)
    assert found.spearman == pytest.approx(rho)
    reach = 1.959963985 * math.sqrt((1 + rho**2 / 2) / (count - 3))
    assert found.spearman_low == pytest.approx(math.tanh(math.atanh(rho) - reach))
    assert found.spearman_high == pytest.approx(math.tanh(math.atanh(rho) + reach))


def test_correlations_that_say_nothing() -> None:
    assert math.isnan(Correlation.of([1, 2], [2, 1]).pearson)
    assert math.isnan(Correlation.of([1, 1, 1, 1], [1, 2, 3, 4]).pearson)
    three = Correlation.of([1, 2, 3], [1, 3, 2])
    assert three.pearson == pytest.approx(0.5)
    assert math.isnan(three.low)
    assert math.isnan(three.spearman_high)
    perfect = Correlation.of([1, 2, 3, 4], [2, 4, 6, 8])
    assert (perfect.low, perfect.high) == (1, 1)


def test_what_is_held_is_a_partial_correlation() -> None:
    """Of two groups, taking out their means is the partial correlation given the group, with one point less."""
    x, y, group = [1.0, 2.0, 4.0, 11.0, 12.5, 13.0, 15.0], [3.0, 1.0, 2.0, 9.0, 11.0, 8.0, 9.5], [0, 0, 0, 1, 1, 1, 1]
    rxy, rxg, ryg = (stats.pearsonr(a, b).statistic for a, b in ((x, y), (x, group), (y, group)))
    partial = (rxy - rxg * ryg) / math.sqrt((1 - rxg**2) * (1 - ryg**2))

    def less(values: list[float]) -> list[float]:
        means = [sum(v for v, g in zip(values, group, strict=True) if g == k) / group.count(k) for k in (0, 1)]
        return [v - means[g] for v, g in zip(values, group, strict=True)]

    found = Correlation.of(less(x), less(y), held=1)
    assert found.pearson == pytest.approx(partial)
    assert found.high == pytest.approx(math.tanh(math.atanh(partial) + 1.959963985 / math.sqrt(7 - 1 - 3)))
    assert math.isnan(found.spearman)


def test_the_band_is_that_of_least_squares() -> None:
    x, y = [0.0, 1.0, 2.0, 4.0, 7.0], [1.0, 2.5, 2.0, 5.0, 6.0]
    fit = fitted(list(zip(x, y, strict=True)))
    assert fit is not None
    design = torch.tensor([[1.0, a] for a in x], dtype=torch.float64)
    truth = torch.tensor(y, dtype=torch.float64)
    beta = torch.linalg.lstsq(design, truth[:, None]).solution[:, 0]
    covariance = (truth - design @ beta).square().sum() / 3 * torch.linalg.inv(design.T @ design)
    for place in (0, 17, 60):
        at = torch.tensor([1.0, fit.x[place]], dtype=torch.float64)
        half = stats.t.ppf(0.975, 3) * float((at @ covariance @ at).sqrt())
        assert fit.y[place] == pytest.approx(float(at @ beta))
        assert (fit.low[place], fit.high[place]) == pytest.approx((fit.y[place] - half, fit.y[place] + half))
    assert (fit.x[0], fit.x[-1]) == (0, 7)
    assert fitted([(1, 1), (2, 2)]) is None
    assert fitted([(1, 1), (1, 2), (1, 3)]) is None


# --- what is read -----------------------------------------------------------------------------------------------------


def test_runs_are_read_in_their_order(study: Path) -> None:
    found = report_gaze(study)
    keys = [(run.level, run.strength, run.seed) for run in found.runs]
    assert keys == [(2, w, s) for w in (-1, 0, 3) for s in (0, 1, 2)]
    assert [run.test is None for run in found.runs] == [False] * 8 + [True]
    assert len(found.runs[-1].epochs) == 4
    first = Consistency.load(study / "level-2" / "lambda_-1" / "seed_0" / "test")
    expected = (first.accuracy, first.kappa, first.value, first.rms, first.ratio, first.coverage)
    columns = ("accuracy", "kappa", "L", "rms", "wt", "coverage")
    assert tuple(found.runs[0].value(c) for c in columns) == expected
    assert "Not finished: level 2, λ = 3, seed 2 (4 of 8 epochs)." in found.remarks()


def test_differences_are_paired_by_seed(study: Path) -> None:
    found = report_gaze(study)
    value = {(run.strength, run.seed): run.value("L") for run in found.runs}
    both = [(value[3, seed], value[0, seed]) for seed in (0, 1)]  # seed 2 is not finished
    difference, ratio = found.difference(2, 3, "L"), found.ratio(2, 3, "L")
    assert difference.n == ratio.n == 2
    assert difference.mean == pytest.approx(sum(a - b for a, b in both) / 2)
    assert difference.mean != pytest.approx(found.estimate(2, 3, "L").mean - found.estimate(2, 0, "L").mean)
    assert ratio.mean == pytest.approx(math.sqrt(math.prod(a / b for a, b in both)))
    logs = [math.log(a / b) for a, b in both]
    low, _ = stats.t.interval(0.95, 1, loc=sum(logs) / 2, scale=stats.sem(logs))
    assert ratio.low == pytest.approx(math.exp(low))


def test_correlation_across_models_has_a_point_per_model(study: Path) -> None:
    found = report_gaze(study)
    done = [run for run in found.runs if run.test is not None]
    across = found.correlations()
    assert across["all models"].n == 8
    expected = stats.pearsonr([run.value("L") for run in done], [run.value("kappa") for run in done]).statistic
    assert across["all models"].pearson == pytest.approx(expected)
    assert across["λ = 0"].n == 3
    assert across["λ ≥ 0"].n == 5
    assert "level 2" not in across  # there is no other
    assert (across["within λ"].n, math.isnan(across["within λ"].low)) == (8, False)


def test_correlation_within_runs_leaves_out_the_burn_in(study: Path) -> None:
    found = report_gaze(study)
    run = found.runs[0]
    late = [row for row in run.epochs if row["epoch"] > 3]  # the study's "end"
    within = found.within(run)
    assert within.n == 5
    assert within.pearson == pytest.approx(
        stats.pearsonr([r["valid_L"] for r in late], [r["valid_kappa"] for r in late]).statistic
    )
    assert math.isnan(within.low)  # epochs are not independent
    assert math.isnan(found.within(found.runs[-1]).pearson)  # a single epoch is left


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_report_in_a_folder(study: Path, tmp_path: Path) -> None:
    found = report_gaze(study)
    found.save(tmp_path)
    pictures = {"curves", "kappa_L", "kappa_L_within", "lambda", "mean_maps", "map_grid"}
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for name in pictures:
        assert text.count(f"]({name}.png)") == 1
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
    assert "autocorrelated" in text
    assert "Consistency is not correctness" in text
    runs = rows_of(tmp_path / "runs.csv")
    assert len(runs) == 9
    assert float(runs[0]["L"]) == found.runs[0].value("L")
    assert runs[-1]["L"] == ""
    differences = {(row["lambda"], row["quantity"]): row for row in rows_of(tmp_path / "differences.csv")}
    assert {strength for strength, _ in differences} == {"-1.0", "3.0"}
    assert float(differences["3.0", "L"]["ratio"]) == found.ratio(2, 3, "L").mean
    assert float(differences["-1.0", "accuracy"]["low"]) == found.difference(2, -1, "accuracy").low
    assert differences["3.0", "kappa"]["ratio"] == ""  # it may be negative
    assert {row["warning"] for row in rows_of(tmp_path / "within.csv")} == {"autocorrelated"}
    known = json.loads((tmp_path / "report.json").read_text())
    assert known["runs"][-1]["L"] is None
    assert known["correlations"][0]["models"] == "all models"


def test_markdown_tables_are_whole(study: Path) -> None:
    lines = report_gaze(study).markdown().splitlines()
    for before, line in pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert before.count("|") == line.count("|")


@pytest.mark.usefixtures("light")
def test_a_single_run(tmp_path: Path) -> None:
    """No intervals, no differences, no correlation, and it is said."""
    found = report_gaze(made(tmp_path / "study", lambdas=(0.0,), seeds=(4,), epochs=2))
    said = " ".join(found.remarks())
    assert "A single seed has no interval" in said
    assert "No differences" in said
    assert "No correlation within runs" in said
    assert "[" not in found.table()[1][0][3]
    assert not found.differences()[1]
    assert found.correlation_table()[1] == [["all models", "1", "-", "-"]]
    found.save(tmp_path / "report")
    assert not (tmp_path / "report" / "differences.csv").exists()
    assert (tmp_path / "report" / "kappa_L.png").exists()


def test_nothing_finished(tmp_path: Path) -> None:
    keys = [(2, 0.0, 0), (2, 3.0, 0)]
    found = report_gaze(made(tmp_path / "study", lambdas=(0.0, 3.0), seeds=(0,), stopped=keys))
    found.save(tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {"curves.png", "kappa_L_within.png"}
    assert "0 finished of 2" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("light")
def test_several_levels(tmp_path: Path) -> None:
    folder = made(tmp_path / "study", levels=(1, 3), lambdas=(0.0, 3.0), seeds=(0, 1), epochs=4)
    found = report_gaze(folder)
    assert set(found.correlations()) == {"all models", "level 1", "level 3", "λ = 0", "within λ"}
    own = [run for run in found.runs if run.level == 3]
    expected = stats.pearsonr([r.value("L") for r in own], [r.value("kappa") for r in own]).statistic
    assert found.correlations()["level 3"].pearson == pytest.approx(expected)
    assert found.estimate(1, 0, "L").mean != found.estimate(3, 0, "L").mean
    assert {"mean_maps-level-1.png", "map_grid-level-3.png"} <= set(found.figures())


def test_mean_maps_are_over_seeds(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of means, the root of mean squared deviations, and of a class's L the mean."""
    caught = list[tuple[torch.Tensor, ...]]()

    def catch(_classes: object, _strengths: object, *maps: torch.Tensor) -> Image.Image:
        caught.append(maps)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(drawing, "mean_maps", catch)
    found = report_gaze(study)
    figures.mean_maps(found, 2)
    means, deviations, values = caught[0]
    tests = [run.test for run in found.runs if run.strength == 0 and run.test is not None]
    assert means.shape == (3, 2, 5, 5)
    assert torch.allclose(means[1], sum(t.mean for t in tests) / 3)
    assert torch.allclose(deviations[1], (sum(t.deviation**2 for t in tests) / 3) ** 0.5)
    assert float(values[1, 0]) == pytest.approx(sum(t.of_class[0].value for t in tests) / 3)


def test_the_grid_shows_the_runs_own_maps(study: Path) -> None:
    found = report_gaze(study)
    grid, title = figures.map_grid(found, 2) or pytest.fail("no grid")
    assert "seed 0" in title
    assert list(grid.labels) == ["disc", "disc", "ring", "ring"]
    assert [strength for strength, *_ in grid.lines] == [-1, 0, 3]
    own = load_file(study / "level-2" / "lambda_3" / "seed_0" / "pictures.safetensors")["maps"][[0, 2, 1, 3]]
    low, high = own.amin((1, 2), keepdim=True), own.amax((1, 2), keepdim=True)
    assert torch.allclose(grid.lines[2][1], (own - low) / (high - low), atol=1e-5)
    assert list(grid.lines[1][2]) == ["ring", None, None, None]  # image 0 is decided wrongly


def test_colours_tell_signs_and_values_apart() -> None:
    found = drawing.colours_of([-1.0, 0.0, 3.0, 10.0, 50.0])
    assert list(found) == [-1.0, 0.0, 3.0, 10.0, 50.0]
    assert len({str(colour) for colour in found.values()}) == 5


# --- what is refused --------------------------------------------------------------------------------------------------


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(KonkyoError, match="holds no study"):
        report_gaze(tmp_path)
    (tmp_path / "study.json").write_text('{"kind": "vib"}')
    with pytest.raises(KonkyoError, match="no study of gaze"):
        report_gaze(tmp_path)
    (tmp_path / "study.json").write_text('{"kind": "gaze"}')
    with pytest.raises(KonkyoError, match="holds no run"):
        report_gaze(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(KonkyoError, match="cannot be read"):
        report_gaze(tmp_path)


def test_damaged_runs(tmp_path: Path) -> None:
    folder = made(tmp_path / "study", lambdas=(0.0,), seeds=(0, 1), epochs=2)
    run = folder / "level-2" / "lambda_0" / "seed_0"
    save_file({"maps": torch.rand(3, 5, 5)}, run / "pictures.safetensors")
    with pytest.raises(KonkyoError, match="has 3 maps of 4 pictures"):
        report_gaze(folder)
    (run / "pictures.safetensors").write_bytes(b"no tensors")
    with pytest.raises(KonkyoError, match="cannot be read as maps"):
        report_gaze(folder)
    (run / "pictures.safetensors").unlink()
    assert report_gaze(folder).runs[0].maps is None
    labels = torch.arange(4) % 2
    measure(torch.rand(4, 5, 5), labels, labels, classes=("a", "b"), resamples=0).save(run / "test")
    with pytest.raises(KonkyoError, match="other classes"):
        report_gaze(folder)
    (run / "test" / "consistency.json").unlink()  # stopped while it was saved
    assert report_gaze(folder).runs[0].test is None
    run.rename(run.with_name("seed_x"))
    with pytest.raises(KonkyoError, match="seed_NUMBER"):
        report_gaze(folder)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("konkyo.studies.gaze.report.GazeReport.figures", lambda _: {})
    told = CliRunner().invoke(report, ["gaze", str(study), "--out", str(tmp_path / "there")])
    assert told.exit_code == 0, told.output
    assert "Consistency is not correctness" in told.output
    assert (tmp_path / "there" / "report.md").is_file()
    plain = CliRunner().invoke(report, ["gaze", str(study), "--json"])
    assert len(json.loads(plain.stdout)["runs"]) == 9
    assert (study / "report" / "runs.csv").is_file()


def test_a_loss_that_never_had_its_whole_weight_is_told(tmp_path: Path) -> None:
    made(tmp_path)
    known = json.loads((tmp_path / "study.json").read_text())
    known |= {"start": 2, "end": 10, "recipe": {"epochs": 6}}
    (tmp_path / "study.json").write_text(json.dumps(known))
    assert "The loss never had its whole weight: 0.5 of λ in the last of 6 epochs." in report_gaze(tmp_path).remarks()


def test_a_folder_of_a_study_has_a_page_by_the_template_of_all_reports(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.new("RGB", (20, 10), "red")
    monkeypatch.setattr("konkyo.studies.gaze.report.GazeReport.figures", lambda _: {"curves.png": picture})
    told = CliRunner().invoke(report, [str(study), "--out", str(tmp_path / "study.html")])
    assert told.exit_code == 0, told.output
    page = report_gaze(study).page()
    assert len(page.tables[0].rows) == len(report_gaze(study).table()[1])
    assert [figure.caption["en"] for figure in page.figures] == ["curves"]
    text = (tmp_path / "study.html").read_text(encoding="utf-8")
    assert "Gaze consistency in training" in text
    assert "Consistency is not correctness" in text
    saved = report_gaze(study).save(tmp_path / "there", format="png")
    assert (saved / "report.html").is_file()
    assert (saved / "tables.tex").read_text(encoding="utf-8").count(r"\toprule") == len(page.tables)
