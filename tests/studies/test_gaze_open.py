"""The study of gaze consistency with other networks, several splits, weights that diverge or hardly act; its loss."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.bits import files, same
from helpers.commands import Run, runner
from konkyo import KonkyoError
from konkyo.data.splits import splits
from konkyo.evaluation.consistency import Consistency, consistency
from konkyo.models import Model
from konkyo.models.networks.backbone import with_classes
from konkyo.models.networks.levels import gaze_network
from konkyo.models.trained import initialised, read_plan
from konkyo.studies.gaze.report import report_gaze
from konkyo.studies.gaze.study import GazeObjective, GazeStudy, Key, train_gaze
from konkyo.training.devices import fabric_of
from konkyo.training.loop import read_epochs
from konkyo.training.losses.consistency import ConsistencyLoss, LambdaSchedule
from konkyo.training.recipe import Recipe

FABRIC = fabric_of(accelerator="cpu")
SMALL = GazeStudy("lesions:48", (1,), (0.0, 3.0), (0,), 24, start=0, end=1, augment=False, recipe=Recipe(2, 16, 1e-2))
NETS = """
from torch import nn

def network(last):
    grid = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, last)]
    return nn.Sequential(*grid, *head)

def own():
    return network(3)

def other():
    return network(10)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


# --- any backbone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layer"), [("own", None), ("other", "1")])
def test_a_backbone_with_its_own_head(tmp_path: Path, name: str, layer: str | None) -> None:
    """A network of so many classes is taken as it is; of others the last linear layer alone is another one."""
    (tmp_path / "nets.py").write_text(NETS)
    study = replace(SMALL, backbone=f"{tmp_path / 'nets.py'}:{name}", layer=layer, seeds=(2,))
    out = tmp_path / "out"
    assert train_gaze(study, out, fabric=FABRIC) == []
    folders = [out / "backbone" / f"lambda_{w}" / "seed_2" for w in ("0", "3")]
    assert sorted(out.glob("backbone/*/*")) == folders
    plan = read_plan(folders[1])
    assert (plan.architecture, len(plan.preprocess.mean), plan.preprocess.side) == ("classifier", 3, 24)
    network = initialised(plan, 2).eval()
    shapes = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(16, 32), (3, 16)]
    from safetensors.torch import load_file

    network.load_state_dict(load_file(folders[1] / "weights.safetensors"))
    parts = splits(study.data)
    again = consistency(Model(network, plan.preprocess, plan.classes), parts.test, layer=layer, baselines=False)
    measured = Consistency.load(folders[1] / "test")
    assert (measured.value, measured.accuracy) == pytest.approx((again.value, again.accuracy), nan_ok=True)
    one, three = (read_epochs(folder / "epochs.csv") for folder in folders)
    assert one[0]["train_ce"] != three[0]["train_ce"]  # the loss reaches the weights, from the first epoch on
    found = report_gaze(out)
    assert [row[0] for row in found.table()[1]] == ["backbone", "backbone"]


def test_only_the_last_linear_layer_is_another_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 9))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    resized = with_classes(Model(network), 2, torch.randn(2, 3, 8, 8))
    assert resized is network
    after = network.state_dict()
    assert {n for n in before if before[n].shape != after[n].shape} == {"4.weight", "4.bias"}
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("4."))
    assert network(torch.randn(5, 3, 8, 8)).shape == (5, 2)
    convolution = nn.Sequential(nn.Conv2d(3, 7, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert with_classes(Model(convolution), 2, torch.randn(2, 3, 8, 8)) is None


def test_a_method_that_the_loss_does_not_know_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(KonkyoError, match="no_such_method"):
        train_gaze(replace(SMALL, method="no_such_method"), tmp_path / "out", fabric=FABRIC)
    assert not (tmp_path / "out").exists()


def test_another_method_in_the_loss_and_in_measuring(tmp_path: Path) -> None:
    """What is measured is what was trained."""
    study = replace(SMALL, method="layer_cam", lambdas=(3.0,))
    train_gaze(study, tmp_path, fabric=FABRIC)
    folder = tmp_path / "level-1/lambda_3/seed_0"
    model, test = konkyo.load(f"trained/{folder}"), splits("lesions:48").test
    found, usual = (
        consistency(model, test, method=m, layer="gaze", baselines=False) for m in ("layer_cam", "grad_cam")
    )
    measured = Consistency.load(folder / "test").value
    assert measured == pytest.approx(found.value)
    assert measured != pytest.approx(usual.value)


def test_levels_have_no_weights_of_their_own() -> None:
    with pytest.raises(KonkyoError, match="that is of backbones"):
        replace(SMALL, pretrained=True)


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of two seeds."""
    folder = tmp_path_factory.mktemp("splits")
    train_gaze(replace(SMALL, seeds=(0, 1), splits=(0, 2)), folder, fabric=FABRIC)
    return folder


def test_a_split_has_its_own_images_weights_and_folder(several: Path, tmp_path: Path) -> None:
    train_gaze(replace(SMALL, seeds=(1,)), tmp_path, fabric=FABRIC)
    for weight in ("0", "3"):
        for seed in (0, 1):
            first, second = (several / f"level-1/{split}lambda_{weight}/seed_{seed}" for split in ("", "split_2/"))
            if seed == 1:  # as without splits
                assert same(files(first), files(tmp_path / first.relative_to(several)))
            drawn = [splits("lesions:48", seed=n).test.names for n in (0, 2)]
            names = [[image.name for image in Consistency.load(f / "test").images] for f in (first, second)]
            assert list(map(sorted, names)) == list(map(sorted, drawn))
            assert not (second / "pictures.safetensors").exists()
    begun = [json.loads((several / f"level-1/{s}lambda_0/seed_0/manifest.json").read_text()) for s in ("", "split_2/")]
    assert [said["trained"]["seed"] for said in begun] == [0, Key(1, 2, 0.0, 0).own_seed]


def test_the_report_pairs_within_splits(several: Path) -> None:
    found = report_gaze(several)
    assert [run.key for run in found.runs] == [(0, 0), (0, 1), (2, 0), (2, 1)] * 2
    value = {(run.strength, *run.key): run.value("accuracy") for run in found.runs}
    apart = [[value[3, s, n] - value[0, s, n] for n in (0, 1)] for s in (0, 2)]
    difference = found.difference(1, 3, "accuracy")
    assert difference.n == 4
    assert difference.mean == pytest.approx(sum(map(sum, apart)) / 4)
    means = [sum(of_split) / 2 for of_split in apart]
    if means[0] != means[1]:
        reach = 12.706204736 * abs(means[0] - means[1]) / 2
        assert difference.high - difference.low == pytest.approx(2 * reach)
    assert any("Intervals are of the means of 2 splits" in line for line in found.remarks())
    assert found.run_table()[0][:4] == ["level", "split", "λ", "seed"]


def test_a_study_of_an_earlier_version_goes_on(several: Path, tmp_path: Path) -> None:
    """Its settings lack what was not known yet."""
    train_gaze(replace(SMALL, lambdas=(0.0,)), tmp_path, fabric=FABRIC)
    path = tmp_path / "study.json"
    said = json.loads(path.read_text())
    for name in ("backbone", "pretrained", "layer", "method", "least", "splits"):
        del said[name]
    del said["recipe"]["clip"]
    path.write_text(json.dumps(said))
    train_gaze(SMALL, tmp_path, fabric=FABRIC)
    assert same(files(tmp_path / "level-1/lambda_3/seed_0"), files(several / "level-1/lambda_3/seed_0"))
    assert json.loads(path.read_text())["splits"] == [0]


# --- what fails, and what does nothing --------------------------------------------------------------------------------


def test_a_lambda_that_diverges_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Run = runner("import torch\n", "", tmp_path, monkeypatch, capsys)
    asked = (
        *("train", "gaze", "--data", "lesions:48", "--level", 1, "--size", 24, "--epochs", 2, "--batch", 16),
        *("--start", 0, "--end", 1, "--accelerator", "cpu", "--lambdas", "1e38,0", "--seeds", 1, "--out", "to"),
    )
    found = run(*asked)
    assert found.code == 3
    assert "level 1, lambda 1e+38, seed 0 diverged: the loss is" in found.err
    record, other = Path("to/level-1/lambda_1e+38/seed_0/diverged.json"), Path("to/level-1/lambda_0/seed_0")
    assert json.loads(record.read_text())["epoch"] == 1
    assert (other / "test" / "consistency.json").is_file()
    written = record.stat().st_mtime_ns
    again = run(*asked)
    assert again.code == 3
    assert "diverged: the loss is" not in again.err  # it is not tried again
    assert record.stat().st_mtime_ns == written
    assert "diverged: the loss is" in run(*asked, "--retry").err
    report = report_gaze(Path("to"))
    assert "Diverged: level 1, λ = 1e+38, seed 0, in epoch 1." in report.remarks()
    assert [row[3] for row in report.run_table()[1]] == ["2", "diverged in epoch 1"]
    assert report.settings() == [(1, 0.0)]


@pytest.mark.filterwarnings("ignore::konkyo.errors.KonkyoWarning")  # of the loss itself, in a loop of one's own
@pytest.mark.parametrize(("batch", "least", "acts"), [(1, 2, False), (1, 1, True), (36, 2, True)])
def test_a_weight_that_hardly_acts_is_told(tmp_path: Path, batch: int, least: int, acts: bool) -> None:
    """One image a batch is never two of a class."""
    told = list[str]()
    study = replace(SMALL, recipe=Recipe(2, batch, 1e-3), least=least, start=1, end=2)
    train_gaze(study, tmp_path, fabric=FABRIC, tell=told.append)
    remarks = [line for line in report_gaze(tmp_path).remarks() if "hardly acts" in line]
    assert len(told) == len(remarks) == (0 if acts else 1)
    (row,) = report_gaze(tmp_path).share_table()[1]
    assert row[:2] == ["1", "3"]
    if not acts:
        assert told[0].startswith("level 1, lambda 3, seed 0: the loss is of 0.0 % of the correctly decided images")
        assert "--least 1" in told[0]
        assert row[2:4] == ["0.0", "0.0"]
    else:
        assert float(row[3]) > 50


# --- the study's loss -------------------------------------------------------------------------------------------------


class Published:
    """The study's code, line by line: a class after another, the running mean first, then the distance from it."""

    def __init__(self) -> None:
        self.ema: dict[int, Tensor] = {}

    def loss(self, logits: Tensor, grid: Tensor, labels: Tensor, weight: float) -> Tensor:
        entropy = functional.cross_entropy(logits, labels)
        if weight == 0:
            return entropy  # no map is computed, and no running mean
        total, count = torch.zeros(()), 0
        for kind in labels.unique().tolist():
            own = ((labels == kind) & (logits.argmax(1) == kind)).nonzero()[:, 0]
            if len(own) < 2:
                continue
            (gradient,) = torch.autograd.grad(logits[own, kind].sum(), grid, retain_graph=True)
            alpha = gradient[own].mean((2, 3), keepdim=True)
            cam = torch.relu((alpha * grid[own]).sum(1))
            low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
            cam = (cam - low) / (high - low + 1e-8)
            mean = cam.detach().mean(0)
            self.ema[kind] = 0.9 * self.ema[kind] + 0.1 * mean if kind in self.ema else mean
            for map_ in cam:
                total = total + torch.norm(map_ - self.ema[kind], p=2) / map_.numel()
                count += 1
        return entropy + weight * total / max(1, count)


@pytest.mark.parametrize("number", [2, 3])
def test_the_studys_loss_step_by_step(number: int) -> None:
    """Losses and weights of trainings side by side: from epoch 2, where the running maps begin with the weight."""
    torch.manual_seed(0)
    ours = gaze_network(number, 3).double()
    theirs = gaze_network(number, 3).double()
    theirs.load_state_dict(ours.state_dict())
    labels = torch.arange(24) % 3
    images = torch.randn(24, 1, 16, 16, dtype=torch.float64) + labels[:, None, None, None]
    schedule = LambdaSchedule(40.0, 1, 3)
    gaze = ConsistencyLoss(ours, (1, 16, 16), layer="gaze", distance="l2_over_hw", mode="detached")
    objective, published = GazeObjective(gaze, schedule, begin=2), Published()
    kept = list[Tensor]()
    theirs.get_submodule("gaze").register_forward_hook(lambda _m, _i, grid: kept.append(grid))
    optimisers = [torch.optim.SGD(network.parameters(), 0.05) for network in (ours, theirs)]
    used = 0.0
    for epoch in (1, 2, 3, 4):
        for step in range(2):
            batch = slice(12 * step, 12 * step + 12)
            torch.manual_seed(10 * epoch + step)  # dropout
            terms = objective(ours(images[batch]), labels[batch], epoch)
            torch.manual_seed(10 * epoch + step)
            logits = theirs(images[batch])
            loss = published.loss(logits, kept.pop(), labels[batch], schedule(epoch))
            assert float(terms["loss"].detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
            assert ("used" in terms) == (epoch >= 2)
            assert float(terms.get("blank", 0)) == 0  # where the study's code would score a zero
            used += float(terms.get("used", 0))
            for total, optimiser in ((terms["loss"], optimisers[0]), (loss, optimisers[1])):
                optimiser.zero_grad()
                total.backward()
                optimiser.step()
    assert used > 1  # the loss was of something
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for kind, mean in published.ema.items():
        torch.testing.assert_close(gaze.means[kind].double(), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("light")
def test_epochs_before_the_running_maps_have_no_columns_of_the_loss(tmp_path: Path) -> None:
    train_gaze(replace(SMALL, start=1, end=2, ema_start=2), tmp_path, fabric=FABRIC)
    for weight in ("0", "3"):
        rows = read_epochs(tmp_path / f"level-1/lambda_{weight}/seed_0/epochs.csv")
        assert ["train_gaze" in row for row in rows] == [False, True]
        assert math.isfinite(rows[0]["train_loss"])
    found = report_gaze(tmp_path)
    assert [row[1] for row in found.share_table()[1]] == ["3"]
    found.save(tmp_path / "report")
    assert (tmp_path / "report" / "curves.png").is_file()
    assert len(found.claims()[1]) >= 5
