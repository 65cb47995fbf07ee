"""The study of the bottleneck and its report: what a folder holds, that networks are paired, that it goes on."""

from __future__ import annotations

import csv
import json
import math
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import ttest_rel
from torch import Tensor

import konkyo
from helpers.bits import files, same
from helpers.commands import Run, runner, told
from konkyo import KonkyoError
from konkyo.data.sets.lesions import CLASSES
from konkyo.data.splits import splits
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.result import Evaluation
from konkyo.models import Model
from konkyo.models.networks.backbone import Backbone
from konkyo.models.networks.recam import ReCAM
from konkyo.models.networks.scenes import SCENES_MEAN, SCENES_STD
from konkyo.models.networks.vib import Noise, VIBClassifier
from konkyo.models.trained import read_plan
from konkyo.studies.vib import study as vib_study
from konkyo.studies.vib.report import report_vib
from konkyo.studies.vib.study import CAM, KINDS, NetworkOfStudy, VIBStudy, runs_of, train_vib, uncompressed
from konkyo.training.devices import fabric_of
from konkyo.training.loop import read_epochs
from konkyo.training.recipe import Recipe

FABRIC = fabric_of(accelerator="cpu")
NETS = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("ran").touch()


def net():
    stages = []
    for inside, outside in ((3, 8), (8, 12)):
        stages += [nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
"""
QUICK = ("train", "vib", "--data", "lesions:36", "--size", 24, "--batch", 8, "--accelerator", "cpu", "--rate", "0.05")
SHIPPED = (
    *("train", "vib", "--data", "lesions:90", "--backbone", "konkyo/scenes-classifier", "--size", 32, "--epochs", 1),
    *("--models", "plain,vib,recam,attention_branch", "--betas", "0,1e-2", "--batch", 16, "--rate", "0.05"),
    *("--schedule", "constant", "--second", 1, "--second-rate", "0.02", "--accelerator", "cpu", "--out", "to"),
)
NAMES = ["plain", "vib_0", "vib_0.01", "recam", "attention_branch"]
FILES = {
    *("manifest.json", "weights.safetensors", "checkpoint.pt", "epochs.csv", "pictures.safetensors", "test.json"),
    *(
        f"test/{name}"
        for name in (
            "evaluation.json",
            "samples.jsonl",
            "statistics.safetensors",
            "table.md",
            "table.tex",
            "table.csv",
            "values.csv",
        )
    ),
}
PAPER = (
    (None, 53.37, 100.0),
    (1.0, 50.60, 94.81),
    (1e-1, 52.14, 97.70),
    (1e-2, 50.28, 94.21),
    (1e-3, 51.92, 97.28),
    (1e-4, 52.15, 97.71),
    (1e-5, 49.79, 93.29),
    (1e-6, 52.31, 98.01),
    (1e-7, 51.67, 96.81),
)
"""Table 1 of Komatsu et al.: beta, accuracy, and what the paper gives as its share."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of several threads are not always the same."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`konkyo ...` in a folder of its own."""
    return runner(NETS, "net", tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one study of the shipped classifier is."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def study(run: Run, kept: Path) -> Path:
    """The study in to/, from one command, trained once."""
    if not (kept / "to").exists():
        found = run(*SHIPPED)
        assert found.code == 0, found.err
        assert "networks, epochs and maps in to; tables and figures: konkyo report vib to" in found.out
        shutil.copytree("to", kept / "to")
    elif not Path("to").exists():
        shutil.copytree(kept / "to", "to")
    return Path("to")


def small(folder: Path, **changes: Any) -> VIBStudy:
    """A study that takes a second."""
    (folder / "nets.py").write_text(NETS)
    recipe = Recipe(2, 8, 0.05, "sgd", weight_decay=1e-4, schedule="steps")
    known: dict[str, Any] = {"betas": (1e-3,), "models": ("vib", "recam"), "size": 24, "second": 2, "recipe": recipe}
    return VIBStudy("lesions:36", f"{folder / 'nets.py'}:net", **(known | changes))


def numbers_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "test.json").read_text(), parse_constant=pytest.fail)
    return found


def batch(data: str, size: int, part: str = "test", prepare: konkyo.Preprocess | None = None) -> tuple[Tensor, Tensor]:
    """All images of a part as a network sees them, and their labels."""
    samples = getattr(splits(data), part)
    prepare = prepare or konkyo.Preprocess(size, size, SCENES_MEAN, SCENES_STD)
    return (
        torch.stack([prepare(sample.image) for sample in samples]),
        torch.tensor([CLASSES.index(sample.label) for sample in samples]),
    )


# --- what is in the folder --------------------------------------------------------------------------------------------


def test_a_folder_for_every_training(study: Path) -> None:
    runs = [study / name / "seed_0" for name in NAMES]
    assert sorted(study.glob("*/seed_*")) == sorted(runs)
    for folder in runs:
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "samples" not in p.parts}
        assert found == FILES | ({"first/checkpoint.pt", "first/epochs.csv"} if "recam" in str(folder) else set())
        assert len(read_epochs(folder / "epochs.csv")) == 1
    said = json.loads((study / "study.json").read_text(), parse_constant=pytest.fail)
    assert (said["kind"], said["data"], said["models"], said["betas"]) == ("vib", "lesions:90", list(KINDS), [0, 0.01])
    assert (said["size"], said["second"], said["reduction"], said["pretrained"]) == (32, 1, "sum", False)
    assert said["classes"] == list(CLASSES)
    assert sum(said["sizes"].values()) == 90
    assert (said["recipe"]["optimiser"], said["recipe"]["learning_rate"], said["recipe"]["weight_decay"]) == (
        "sgd",
        0.05,
        1e-4,
    )


def test_the_manifest_says_how(study: Path) -> None:
    plans = {name: read_plan(study / name / "seed_0") for name in NAMES}
    assert {name: plan.architecture for name, plan in plans.items()} == dict(
        zip(NAMES, ("plain", "vib", "vib", "recam", "attention_branch"), strict=True)
    )
    assert plans["vib_0.01"].trained["beta"] == 0.01
    assert plans["vib_0.01"].arguments["noise"]["source"] == "attention"
    assert "beta" not in plans["plain"].trained
    second = plans["recam"].trained["second"]
    assert (second["epochs"], second["learning_rate"], second["batch"], second["schedule"]) == (1, 0.02, 16, "poly")
    assert (second["optimiser"], second["momentum"]) == ("sgd", 0)
    assert {plan.trained["pretrained"] for plan in plans.values()} == {False}


@pytest.mark.filterwarnings("ignore::konkyo.errors.KonkyoWarning")  # blank maps of networks that learnt little
@pytest.mark.parametrize("name", NAMES)
def test_each_network_comes_back_and_is_explained(study: Path, name: str) -> None:
    folder = study / name / "seed_0"
    model, said = konkyo.load(f"trained/{folder}"), numbers_of(folder)
    assert model.classes == CLASSES
    images, labels = batch("lesions:90", 32)
    with torch.no_grad():
        logits = model(images)
        grid = model.module.backbone(images)
    assert said["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert said["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    valid, truth = batch("lesions:90", 32, "validation")
    with torch.no_grad():
        right = float((model(valid).argmax(1) == truth).double().mean())
    assert read_epochs(folder / "epochs.csv")[-1]["valid_accuracy"] == pytest.approx(right)
    module: Any = model.module
    if name == "recam":
        weight = module.first.weight * module.second.weight
    else:
        weight = module.head.fc.weight if isinstance(module, VIBClassifier) else module.head.weight
    if name == "attention_branch":
        grid = grid * (1 + module.attention(images)[:, None])
    cams = torch.einsum("nc,nchw->nhw", weight.detach()[labels], grid)
    names = list(splits("lesions:90").test.names)
    index = json.loads((study / "pictures" / "index.json").read_text())
    maps = load_file(folder / "pictures.safetensors")["maps"]
    assert len(index) == len(maps) == len(said["pictures"]) == 12
    for found, entry, decided in zip(maps, index, said["pictures"], strict=True):
        at = names.index(entry["name"])
        assert entry["label"] == CLASSES[labels[at]]
        torch.testing.assert_close(found, cams[at].relu(), rtol=1e-4, atol=1e-6)
        assert decided["decision"] == CLASSES[logits[at].argmax()]
        assert decided["probability"] == pytest.approx(float(logits[at].softmax(0).max()), rel=1e-5)
    shown = konkyo.explain(model, images[:3], method="cam", target=labels[:3].tolist())
    if name != "recam":
        torch.testing.assert_close(shown.maps, cams[:3], rtol=1e-4, atol=1e-5)
    assert konkyo.explain(model, images[:1], method="grad_cam", target="ring").maps.shape == cams[:1].shape


@pytest.mark.parametrize("name", ["plain", "recam"])
def test_changed_images_are_scored_by_the_classifier_that_decides(study: Path, name: str) -> None:
    folder = study / name / "seed_0"
    model = konkyo.load(f"trained/{folder}")
    images, labels = batch("lesions:90", 32)
    with torch.no_grad():
        logits = model(images)
    rows = Evaluation.load(folder / "test").rows
    assert [row.explained for row in rows] == [CLASSES[label] for label in labels]
    expected = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([row.score for row in rows]), expected, atol=1e-5, rtol=1e-4)
    assert [row.decision for row in rows] == [CLASSES[best] for best in logits.argmax(1)]


@pytest.mark.filterwarnings("ignore::konkyo.errors.KonkyoWarning")  # blank maps of networks that learnt little
@pytest.mark.parametrize("name", ["plain", "recam", "attention_branch"])
def test_what_is_measured_is_what_is_shown(study: Path, name: str) -> None:
    """Grad-CAM of a network that ends in a mean and one layer is the positive part of its CAM."""
    folder, samples = study / name / "seed_0", splits("lesions:90").test
    model, said = konkyo.load(f"trained/{folder}"), numbers_of(folder)
    if isinstance(model.module, ReCAM):
        model = Model(model.module.reactivated(), model.preprocess, CLASSES)
    found = evaluate(model, samples, ["grad_cam"], vib_study.WITH_MASKS, explained="label")
    for metric in vib_study.WITH_MASKS:
        assert said["maps"][metric]["value"] == pytest.approx(found.cell("grad_cam", metric).value, abs=1e-4)
        assert said["maps"][metric]["count"] <= len(samples) - round(said["blank"] * len(samples))
    assert said["blank"] == found.absent["grad_cam"] / len(samples)
    assert CAM.rectified


@pytest.mark.parametrize("beta", ["0", "0.01"])
def test_what_the_code_holds(study: Path, beta: str) -> None:
    folder = study / f"vib_{beta}" / "seed_0"
    module, said = konkyo.load(f"trained/{folder}").module, numbers_of(folder)
    assert isinstance(module, VIBClassifier)
    images, labels = batch("lesions:90", 32)
    with torch.no_grad():
        mean, std = (code.double() for code in module.head.code(module.backbone(images)))
        logits = module.head.fc(mean.float() + 0.0)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum(1).mean()
    assert said["kl"] == pytest.approx(float(kl), rel=1e-5)
    assert said["bits"] == pytest.approx(float(kl) / math.log(2), rel=1e-5)
    assert (said["mean"], said["std"]) == pytest.approx((float(mean.mean()), float(std.mean())), rel=1e-5)
    assert said["channels"] == mean.shape[1] == 144
    assert said["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    right = torch.cat([module.predictive(part, 12).argmax(1) for part in images.split(16)]) == labels
    assert said["sampled"] == pytest.approx(float(right.double().mean()))
    row = read_epochs(folder / "epochs.csv")[0]
    assert row["train_loss"] == pytest.approx(row["train_ce"] + float(beta) * row["train_kl"], rel=1e-4)


def test_the_accuracy_over_samples_is_of_the_noise() -> None:
    """Of a network with more noise than signal, and unlike that of the mean."""
    torch.manual_seed(0)
    network = VIBClassifier(konkyo.load("konkyo/scenes-classifier", weights=None), 3, noise=Noise(offset=4.0)).eval()
    images, _ = batch("lesions:90", 32)
    with torch.no_grad():
        mean, std = network.head.code(network.backbone(images))
        drawn = torch.randn(12, *mean.shape, generator=torch.Generator().manual_seed(0))
        decided = network.head.fc(mean + std * drawn).softmax(-1).mean(0).argmax(1)
        usual = network(images).argmax(1)  # for labels: the accuracy of the mean is 1
    found = vib_study._coded(network, [(images, usual)], torch.device("cpu"))  # type: ignore[arg-type]
    assert found["sampled"] == pytest.approx(float((decided == usual).double().mean()))
    assert found["sampled"] < 0.9


def test_dead_channels_do_not_hide_what_the_others_pass() -> None:
    """Two of four channels say nothing of an image; the bits are those of the two that do."""
    convolution = torch.nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        convolution.weight[:2] = 0
    network = VIBClassifier(Backbone(convolution, 4), 3, noise=Noise("constant", offset=-5.0)).eval()
    images = torch.randn(12, 3, 8, 8)
    with torch.no_grad():
        mean, std = network.head.code(network.backbone(images))
    bits = 0.5 * (1 + mean.var(0, correction=0) / std.square().mean(0)).log2()
    found = vib_study._coded(network, [(images, torch.zeros(12).long())], torch.device("cpu"))  # type: ignore[arg-type]
    assert found["varying"] == 2
    assert found["passed"] == pytest.approx(float(bits[2:].mean()), rel=1e-4)
    assert float(bits[:2].max()) < 1e-3 < float(bits[2:].min())
    assert uncompressed({"kl": 1e3, "passed": 2.0, "std": 0.1}, 0.1, 1) == []  # one class has no log K
    assert uncompressed({"kl": 1e3, "passed": 2.0, "std": 0.1}, 0.1, 2) != []


def test_nothing_is_chosen_by_the_test_set(study: Path) -> None:
    parts = splits("lesions:90")
    names = set(parts.test.names)
    assert not names & (set(parts.train.names) | set(parts.validation.names))
    index = json.loads((study / "pictures" / "index.json").read_text())
    assert {entry["name"] for entry in index} <= names
    for name in NAMES:
        with (study / name / "seed_0" / "test" / "values.csv").open() as file:
            assert {row["sample"] for row in csv.DictReader(file)} == names


# --- paired networks --------------------------------------------------------------------------------------------------


def test_networks_of_a_seed_begin_alike_and_meet_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, seen = list[tuple[str, dict[str, Tensor]]](), dict[str, list[Tensor]]()
    forward, fit = Backbone.forward, vib_study.fit

    def watched(network: Any, objective: Any, data: Any, recipe: Any, folder: Path, **how: Any) -> Any:
        name = str(folder.relative_to(tmp_path / "to"))
        begun.append((name, {n: t.clone() for n, t in network.backbone.state_dict().items()}))
        seen[name] = []
        return fit(network, objective, data, recipe, folder, **how)

    def recorded(self: Backbone, images: Tensor) -> Tensor:
        if self.training:
            seen[begun[-1][0]].append(images.clone())
        return forward(self, images)

    monkeypatch.setattr(vib_study, "fit", watched)
    monkeypatch.setattr(Backbone, "forward", recorded)
    monkeypatch.setattr(vib_study, "_tested", lambda *_: None)
    torch.manual_seed(5)  # whatever the caller did before
    state = torch.random.get_rng_state()
    train_vib(small(tmp_path, models=KINDS, betas=(0.0, 1.0), seeds=(0, 1)), tmp_path / "to", fabric=FABRIC)
    assert torch.equal(torch.random.get_rng_state(), state)
    for seed in (0, 1):
        runs = [f"{n}/seed_{seed}" for n in ("plain", "vib_0", "vib_1", "attention_branch")]
        runs.append(f"recam/seed_{seed}/first")
        weights = dict(begun)
        for name in runs[1:]:
            assert same(weights[name], weights[runs[0]]), name
            assert same(seen[name], seen[runs[0]]), name
        # 36 lesions: three times 12, of which 8 are drawn from; 2 epochs of three batches
        assert [len(images) for images in seen[runs[0]]] == [8] * 2 + [len(seen[runs[0]][2])] + [8] * 2 + [
            len(seen[runs[0]][5])
        ]
        assert not torch.equal(seen[runs[0]][0], seen[runs[0]][3])
    assert not same(dict(begun)["plain/seed_0"], dict(begun)["plain/seed_1"])
    assert not same(seen["plain/seed_0"], seen["plain/seed_1"])


def test_the_second_stage_does_not_wait_for_the_first_ones_warm_up_or_patience(tmp_path: Path) -> None:
    """With the warm-up of the first, its few epochs would never reach its rate."""
    recipe = Recipe(20, 8, warmup=10, patience=1, keep="best", clip=1.0)
    second = small(tmp_path, recipe=recipe).second_recipe(3)
    assert [second.warmed(1, step, 4) for step in range(4)] == [1.0] * 4
    assert not second.stopped([{"valid_loss": loss} for loss in (1.0, 2.0, 3.0)])
    assert (second.epochs, second.keep, second.clip, second.seed) == (2, "last", 1.0, 3)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_stages_of_recam(tmp_path: Path, optimiser: Any) -> None:
    """The first leaves w' as it was drawn; in the second it learns ten times as fast as the rest."""
    study = small(tmp_path, models=("recam",), second_rate=0.05)
    study = replace(study, recipe=replace(study.recipe, optimiser=optimiser, weight_decay=0.1))
    train_vib(study, tmp_path / "to", fabric=FABRIC)
    folder = tmp_path / "to" / "recam" / "seed_0"
    drawn = study.begun(study.plan(NetworkOfStudy("recam", "recam"), 0, CLASSES), 0).state_dict()
    first, last = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (folder / "first", folder))
    assert torch.equal(first["network"]["second.weight"], drawn["second.weight"])
    assert not torch.equal(first["network"]["first.weight"], drawn["first.weight"])
    assert not torch.equal(last["network"]["second.weight"], drawn["second.weight"])
    assert [group["initial_lr"] for group in last["optimiser"]["param_groups"]] == pytest.approx([0.05, 0.005])
    assert [group["lr"] for group in last["optimiser"]["param_groups"]] == pytest.approx([0, 0])
    assert last["recipe"]["optimiser"] == "sgd"  # whatever the first stage had
    assert [len(group["params"]) for group in last["optimiser"]["param_groups"]] == [1, len(list(drawn)) - 1 - 6]
    one, other = read_epochs(folder / "first" / "epochs.csv"), read_epochs(folder / "epochs.csv")
    assert [len(one), len(other)] == [2, 2]
    assert all(row["train_loss"] == pytest.approx(row["train_classification"]) for row in one)
    for row in other:
        assert row["train_loss"] == pytest.approx(row["train_classification"] + row["train_reactivation"], rel=1e-5)
    assert [row["rate"] for row in other] == pytest.approx([0.05, 0.05 * 0.5**0.9])
    weights = load_file(folder / "weights.safetensors")  # in an order of its own
    assert same(dict(sorted(weights.items())), dict(sorted(last["network"].items())))
    network = read_plan(folder).build()
    network.load_state_dict(weights)
    assert isinstance(network, ReCAM)
    images, labels = batch("lesions:36", 24, "validation", konkyo.Preprocess(24, 24))
    assert other[-1]["valid_reactivation"] == pytest.approx(reactivation(network.eval(), images, labels), rel=1e-4)


def reactivation(network: ReCAM, images: Tensor, labels: Tensor) -> float:
    """The loss of the second classifier, of masked features that are made, image by image."""
    losses = list[Tensor]()
    with torch.no_grad():
        for grid, label in zip(network.backbone(images), labels, strict=True):
            active = torch.einsum("c,chw->hw", network.first.weight[label], grid).relu()
            masked = (grid * active / (active.max() + 1e-5)).mean((1, 2))
            losses.append(-network.second(masked).log_softmax(0)[label])
    return float(torch.stack(losses).mean())


# --- going on ---------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(study: Path, run: Run) -> None:
    before, times = files(study), {p: p.stat().st_mtime_ns for p in study.rglob("*/seed_0/**/*")}
    assert run(*SHIPPED).code == 0
    assert {p: p.stat().st_mtime_ns for p in study.rglob("*/seed_0/**/*")} == times
    assert same(files(study), before)
    refused = run(*SHIPPED, "--offset=-5")
    assert refused.code == 1
    assert "choose another folder. They differ in offset" in refused.err
    assert same(files(study), before)


def test_an_interrupted_study_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while each epoch is kept: of a bottleneck, of ReCAM's two stages; and while the test set is measured."""
    study = small(tmp_path)
    train_vib(study, tmp_path / "whole", fabric=FABRIC)
    save, explain, calls = vib_study.save_trained, vib_study.explain, [0]

    def stopped(*given: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        save(*given)

    def unfinished(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for at in (2, 4, 5, 6):
        calls[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(vib_study, "save_trained", stopped)
            with pytest.raises(KeyboardInterrupt):
                train_vib(study, tmp_path / f"to-{at}", fabric=FABRIC)
        if at > 4:  # in the second stage: what is there can be used
            assert read_plan(tmp_path / f"to-{at}" / "recam" / "seed_0").architecture == "recam"
        train_vib(study, tmp_path / f"to-{at}", fabric=FABRIC)
        assert same(files(tmp_path / f"to-{at}"), files(tmp_path / "whole")), at
    with monkeypatch.context() as patch:
        patch.setattr(vib_study, "explain", unfinished)
        with pytest.raises(KeyboardInterrupt):
            train_vib(study, tmp_path / "tested", fabric=FABRIC)
    assert not list((tmp_path / "tested").rglob("test.json"))
    assert vib_study.explain is explain
    train_vib(study, tmp_path / "tested", fabric=FABRIC)
    assert same(files(tmp_path / "tested"), files(tmp_path / "whole"))


def test_a_study_grows(tmp_path: Path) -> None:
    study = small(tmp_path, models=("vib",), betas=(1e-2,))
    train_vib(study, tmp_path / "to", fabric=FABRIC)
    before = files(tmp_path / "to" / "vib_0.01")
    train_vib(replace(study, models=("plain",), seeds=(1,)), tmp_path / "to", fabric=FABRIC)
    train_vib(replace(study, betas=(0.0,)), tmp_path / "to", fabric=FABRIC)
    assert same(files(tmp_path / "to" / "vib_0.01"), before)
    report = report_vib(tmp_path / "to")
    assert [of.name for of in report.networks] == ["vib_0", "vib_0.01", "plain"]
    assert report.settings["seeds"] == [0, 1]
    assert list(report.tests) == [("vib_0", 0), ("vib_0.01", 0), ("plain", 1)]
    assert all("(" not in row[4] for row in report.table()[1] if row[0] == "vib")  # of no seed is there a plain one
    assert any("vib_0 of seed 1, vib_0.01 of seed 1, plain of seed 0" in line for line in report.remarks())
    with pytest.raises(KonkyoError, match=r"is of a study with other settings: choose another folder.* size"):
        train_vib(replace(study, size=32), tmp_path / "to", fabric=FABRIC)


def test_more_epochs_make_the_longer_study(tmp_path: Path) -> None:
    """ReCAM's second stage begins anew after the longer first one."""
    study = small(tmp_path, models=("plain", "recam"))
    study = replace(study, recipe=replace(study.recipe, schedule="constant"))
    longer = replace(study, recipe=replace(study.recipe, epochs=study.recipe.epochs + 1))
    train_vib(study, tmp_path / "grown", fabric=FABRIC)
    train_vib(longer, tmp_path / "grown", fabric=FABRIC)
    train_vib(longer, tmp_path / "whole", fabric=FABRIC)
    assert same(files(tmp_path / "grown"), files(tmp_path / "whole"))


# --- the report -------------------------------------------------------------------------------------------------------


def written(folder: Path, tests: dict[tuple[str, int], dict[str, Any]], **settings: Any) -> Path:
    """A study's folder with these numbers."""
    known = {
        **{"kind": "vib", "data": "sun397:DIR", "backbone": "torchvision/resnet50", "reduction": "sum", "second": 4},
        **{"models": ["plain", "vib"], "betas": [], "seeds": [0], "classes": ["lake", "dam"]},
        "sizes": {"train": 10, "validation": 5, "test": 18050},
    }
    (folder / "pictures").mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(known | settings))
    (folder / "pictures" / "index.json").write_text("[]")
    for (name, seed), test in tests.items():
        to = folder / name / f"seed_{seed}" / "test.json"
        to.parent.mkdir(parents=True)
        to.write_text(json.dumps({"kappa": 0.5, "pictures": []} | test))
    return folder


def test_the_table_of_the_paper(tmp_path: Path) -> None:
    tests = {("plain" if b is None else f"vib_{b:g}", 0): {"accuracy": a / 100} for b, a, _ in PAPER}
    folder = written(tmp_path / "to", tests, betas=[b for b, _, _ in PAPER[:0:-1]])
    _, rows = report_vib(folder).table()

    def beta(value: float | None) -> list[str]:
        return ["" if value is None else f"{value:.3g}"]

    assert [row[:5] for row in rows] == [
        [*(["plain", ""] if b is None else ["vib", "affine"]), *beta(b), *beta(b), f"{a:.2f} ({share:.2f})"]
        for b, a, share in (PAPER[0], *PAPER[:0:-1])
    ]
    assert any("is 0.4 points" in line for line in report_vib(folder).remarks())  # sqrt(.52 .48 / 18050)


def test_means_are_over_seeds_and_shares_within_them(tmp_path: Path) -> None:
    accuracy = {"plain": (0.5, 0.8), "vib_0.1": (0.25, 0.8)}
    tests = {
        (name, seed): {"accuracy": a, "kl": 10.0 * seed, "bits": 1.0, "std": 0.5, "mean": 0.25, "channels": 20.0}
        | {"maps": {"ebpg@mask": {"value": [0.2, None][seed]}}, "blank": seed / 4, "sampled": 0.5}
        for name, both in accuracy.items()
        for seed, a in enumerate(both)
    }
    tests["recam", 0] = {"accuracy": 0.6}
    folder = written(
        tmp_path / "to", tests, betas=[0.1], seeds=[0, 1], models=["plain", "vib", "recam"], reduction="mean"
    )
    (folder / "recam" / "seed_0" / "epochs.csv").write_text("epoch,train_reactivation\n1,0.9\n2,0.65\n")
    report = report_vib(folder)
    head, rows = report.table()
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    spread = math.sqrt(2 * 25**2)  # of 50 and 100 per cent: 75 ± 35.36
    assert table["vib"]["accuracy % (relative %)"] == f"52.50 ± {100 * 0.55 / math.sqrt(2):.2f} (75.00 ± {spread:.2f})"
    assert table["plain"]["accuracy % (relative %)"] == f"65.00 ± {30 / math.sqrt(2):.2f} (100.00 ± 0.00)"
    assert table["recam"]["accuracy % (relative %)"] == "60.00 (120.00)"
    assert (table["vib"]["beta"], table["vib"]["effective beta"]) == ("0.1", "0.005")
    assert table["vib"]["KL (nats)"] == f"5.0 ± {10 / math.sqrt(2):.1f}"
    assert table["vib"]["ebpg@mask"] == "0.200"
    assert table["vib"]["blank maps"] == f"0.125 ± {0.25 / math.sqrt(2):.3f}"
    assert table["recam"]["ebpg@mask"] == ""
    records = report.records()
    assert [(r["model"], r["seed"], r["relative"]) for r in records] == [
        *(("plain", 0, 100), ("plain", 1, 100), ("vib", 0, 50), ("vib", 1, 100), ("recam", 0, pytest.approx(120)))
    ]
    said = " ".join(report.remarks())
    assert "recam of seed 1" in said
    assert "trained for more than the others: 4." in said
    assert "0.65 of 0.69 for guessing" in said
    assert "One seed" not in said


def test_the_report_of_a_study(study: Path, run: Run) -> None:
    found = run("report", "vib", study)
    assert found.code == 0, found.err
    report, folder = report_vib(study), study / "report"
    tests = {name: numbers_of(study / name / "seed_0") for name in NAMES}
    with (folder / "networks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["beta"]) for row in rows] == [
        *(("plain", ""), ("vib", "0.0"), ("vib", "0.01"), ("recam", ""), ("attention_branch", ""))
    ]
    for row, test in zip(rows, tests.values(), strict=True):
        assert float(row["accuracy"]) == pytest.approx(100 * test["accuracy"])
        assert float(row["relative"]) == pytest.approx(100 * test["accuracy"] / tests["plain"]["accuracy"])
        for metric in vib_study.WITH_MASKS:
            assert row[metric] == ("" if (v := test["maps"][metric]["value"]) is None else str(v))
    assert sorted(p.name for p in folder.iterdir()) == [
        *("maps-000-disc.png", "maps-001-ring.png", "maps-002-stripes.png"),
        *("networks.csv", "report.html", "report.json", "report.md", "tables.tex"),
    ]
    text = (folder / "report.md").read_text()
    assert all(f"![CAM of {label}](maps-{i:03}-{label}.png)" in text for i, label in enumerate(CLASSES))
    assert f"{100 * tests['vib_0']['accuracy']:.2f}" in text
    assert "## Differences to plain\n" in text
    assert "## Differences to beta = 0\n" in text
    assert "lesions:90: 54 images to train, 12 to validate, 24 to test" in " ".join(found.out.split())
    asked = run("report", "vib", study, "--json", "--out", "elsewhere")
    assert asked.json == json.loads(Path("elsewhere/report.json").read_text())
    assert [n["accuracy"] for n in asked.json["networks"]] == [float(row["accuracy"]) for row in rows]
    before, maps = report.sheets(), study / "recam" / "seed_0" / "pictures.safetensors"
    index = json.loads((study / "pictures" / "index.json").read_text())
    others = load_file(maps)["maps"]
    others[[entry["label"] == "ring" for entry in index]] = torch.linspace(0, 1, 16).view(4, 4)
    save_file({"maps": others}, maps)
    for label, sheet in report_vib(study).sheets().items():
        assert np.array_equal(np.asarray(sheet), np.asarray(before[label])) == (label != "ring")
    maps.write_bytes(b"nothing")
    told(run("report", "vib", study), "pictures.safetensors cannot be read as maps")
    (study / "plain" / "seed_0" / "test.json").write_text("{")
    told(run("report", "vib", study), "test.json cannot be read")


def test_names_of_networks() -> None:
    found = runs_of(("plain", "vib"), (1.0, 0.0, 1e-7))
    assert [of.name for of in found] == ["plain", "vib_0", "vib_1e-07", "vib_1"]
    assert [of.beta for of in found if of.kind == "vib"] == [0, 1e-7, 1]
    assert math.isnan(found[0].beta)
    several = runs_of(("vib",), (0.1,), ("plain", "affine", "constant"))
    assert [(of.name, of.noise) for of in several] == [
        *(("vib-plain_0.1", "plain"), ("vib_0.1", "affine"), ("vib-constant_0.1", "constant"))
    ]


def test_paired_differences_have_the_interval_of_the_paired_t_test(tmp_path: Path) -> None:
    accuracy = {"plain": (0.5, 0.8, 0.7), "vib_0": (0.6, 0.7, 0.65), "vib_0.1": (0.7, 0.85, 0.9)}
    tests = {
        (name, seed): {"accuracy": a, "L": None if (name, seed) == ("plain", 2) else seed / 10 + a}
        for name, of_seeds in accuracy.items()
        for seed, a in enumerate(of_seeds)
    }
    del tests["vib_0", 1]
    report = report_vib(written(tmp_path / "to", tests, betas=[0, 0.1], seeds=[0, 1, 2]))
    tables = {title: {row[0]: dict(zip(head, row, strict=True)) for row in rows} for title, (head, rows) in
              report.differences().items()}  # fmt: skip
    to_plain, to_zero = tables["Differences to plain"], tables["Differences to beta = 0"]
    assert (list(to_plain), list(to_zero)) == (["vib_0", "vib_0.1"], ["vib_0.1"])
    low, high = ttest_rel(*(np.multiply(accuracy[name], 100) for name in ("vib_0.1", "plain"))).confidence_interval()
    assert to_plain["vib_0.1"]["accuracy (points)"] == f"+15.0 [{low:+.1f}, {high:+.1f}]"
    assert (to_plain["vib_0"]["seeds"], to_zero["vib_0.1"]["seeds"], to_plain["vib_0.1"]["seeds"]) == ("2", "2", "3")
    assert to_plain["vib_0"]["L"] == "+0.100"  # of the one seed in which both are known


# --- what is not as it should be --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-5.0, 0.0])
def test_a_bottleneck_that_compresses_nothing_is_told(tmp_path: Path, offset: float) -> None:
    """Noise of 0.007 hides no difference between images; noise of 0.7 hides those of means that differ by less."""
    study, told_ = small(tmp_path, models=("vib",), betas=(0.0, 1e-3), offset=offset), list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train_vib(study, tmp_path / "to", fabric=FABRIC, tell=told_.append) == []
    said = [str(w.message) for w in caught if "nothing is compressed" in str(w.message)]
    remarks = [line for line in report_vib(tmp_path / "to").remarks() if "nothing is compressed" in line]
    found = numbers_of(tmp_path / "to" / "vib_0.001" / "seed_0")
    assert [line for line in told_ if line.startswith("vib_0.001, seed 0: KL")]
    assert f"{found['kl'] / math.log(3):.1f} times log K" in told_[1]
    if offset == 0:
        assert (said, remarks) == ([], [])
        assert found["passed"] < 1
    else:
        assert said == remarks
        assert [line.partition(":")[0] for line in said] == ["vib_0.001, seed 0"]  # beta = 0 is not meant to
        assert found["passed"] > 1
        assert found["kl"] > 10 * math.log(3)


def test_maps_that_cannot_be_made_cost_no_training(tmp_path: Path) -> None:
    """Where the last grid is one cell, CAM has no map to give."""
    deep = NETS.replace("((3, 8), (8, 12))", "((3, 8), (8, 8), (8, 8), (8, 8), (8, 12))")
    study = small(tmp_path, models=("plain", "vib"), metrics=("deletion(steps=2)",))
    (tmp_path / "nets.py").write_text(deep)
    train_vib(study, tmp_path / "to", fabric=FABRIC)
    columns = [*vib_study.WITH_MASKS, "deletion(steps=2)"]
    for name in ("plain", "vib_0.001"):
        found = numbers_of(tmp_path / "to" / name / "seed_0")
        assert [found["maps"][column]["value"] for column in columns] == [None] * 4
        assert (found["L"], found["wt"]) == (None, None)
        assert set(found["missing"]) == {*columns, "L", "pictures"}
        assert all("cam" in why for why in found["missing"].values())
        assert 0 <= found["accuracy"] <= 1
    report = report_vib(tmp_path / "to")
    assert sum(line.startswith("Not measured of plain of seed 0, vib_0.001 of seed 0: ") for line in report.remarks())
    head, rows = report.table()
    assert all(dict(zip(head, row, strict=True))["ebpg@mask"] == "" for row in rows)
    assert (report.save() / "report.html").is_file()


def test_a_beta_that_diverges_fails_alone(run: Run) -> None:
    words = (*QUICK, "--backbone", "nets.py:net", "--epochs", 1, "--models", "vib,plain", "--out", "to")
    found = run(*words, "--betas", "0,1e38")  # times a KL of more than 3.4 nats: too large for float32
    assert found.code == 3
    assert "vib_1e+38, seed 0" in found.err
    assert json.loads(Path("to/vib_1e+38/seed_0/diverged.json").read_text())["epoch"] == 1
    assert not Path("to/vib_1e+38/seed_0/test.json").exists()
    assert all(Path("to", name, "seed_0", "test.json").is_file() for name in ("vib_0", "plain"))
    said = report_vib("to").remarks()
    assert "Diverged: vib_1e+38 of seed 0, in epoch 1." in said
    assert not any("Not done" in line for line in said)
    assert run(*words, "--betas", "0").code == 0


def test_noises_stand_beside_each_other(tmp_path: Path) -> None:
    study = small(tmp_path, models=("vib",), noises=("plain", "constant", "affine"), betas=(0.0,))
    train_vib(study, tmp_path / "to", fabric=FABRIC)
    noise = {name: read_plan(tmp_path / "to" / name / "seed_0").arguments["noise"] for name in
             ("vib-plain_0", "vib-constant_0", "vib_0")}  # fmt: skip
    assert [(n["source"], n["variant"], n["offset"]) for n in noise.values()] == [
        *(("attention", "plain", 0), ("constant", "affine", 0), ("attention", "affine", 0))
    ]
    report = report_vib(tmp_path / "to")
    assert [row[:3] for row in report.table()[1]] == [["vib", n, "0"] for n in ("plain", "constant", "affine")]
    said = json.loads((tmp_path / "to" / "study.json").read_text())
    assert said["networks"][0] == ["vib-plain_0", "vib", "plain", 0]
    del said["networks"], said["noises"]  # as an earlier version wrote it
    (tmp_path / "to" / "study.json").write_text(json.dumps(said))
    assert [of.name for of in report_vib(tmp_path / "to").networks] == ["vib_0"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (("--betas", "0,x"), ("--betas", "'0,x'")),
        (("--betas", ""), ("a beta at least",)),
        (("--betas", "-1"), ("beta >= 0", "-1")),
        (("--betas", "nan"), ("beta >= 0",)),
        (("--betas", "0.1,0.1000000001"), ("came twice",)),
        (("--models", "plain,vip"), ("unknown model 'vip'", "vib")),
        (("--models", ""), ("a model",)),
        (("--models", "plain,plain"), ("came twice",)),
        (("--seeds", "1,1"), ("came twice",)),
        (("--seeds", "0"), ("one or more were expected",)),
        (("--noises", "white"), ("unknown noise 'white'", "affine", "constant")),
        (("--noises", ""), ("a noise",)),
        (("--noises", "plain,plain"), ("came twice",)),
        (("--offset", "inf"), ("finite offset",)),
        (("--reduction", "max"), ("unknown reduction", "sum")),
        (("--rate", "0"), ("learning rate: a number above 0",)),
        (("--second-rate", "0"), ("learning rate: a number above 0",)),
        (("--optimiser", "lion"), ("unknown optimiser", "sgd")),
        (("--schedule", "triangle"), ("unknown schedule", "steps")),
        (("--second-optimiser", "lion"), ("unknown optimiser", "sgd")),
        (("--backbone", "torchvision/resnet500"), ("resnet500", "resnet50")),
        (("--backbone", "nets.py:nothing"), ("nothing",)),
        (("--backbone", "nowhere.py:net"), ("nowhere.py",)),
        (("--data", "scenes:40,objects=1-3"), ("label", "objects=1")),
        (("--data", "lesions:4"), ("every class",)),
        (("--data", "folder:nowhere"), ("nowhere",)),
    ],
    ids=lambda w: " ".join(w),
)
def test_what_is_wrong_is_told_in_a_line(run: Run, words: tuple[str, str], pieces: tuple[str, ...]) -> None:
    backbone = () if words[0] == "--backbone" else ("--backbone", "nets.py:net")
    told(run(*QUICK, *backbone, "--out", "to", *words), *pieces)
    assert not Path("to").exists()  # or the command without the mistake would be refused


@pytest.mark.parametrize("words", [("--epochs", "0"), ("--samples", "0"), ("--second", "0"), ("--size", "8")], ids=str)
def test_numbers_out_of_range_are_wrong_usage(run: Run, words: tuple[str, str]) -> None:
    found = run(*QUICK, *words)
    assert found.code == 2
    assert words[0] in found.err


def test_folders_without_a_report(run: Run, tmp_path: Path) -> None:
    told(run("report", "vib", "nowhere"), "holds no study of `konkyo train vib`")
    written(tmp_path / "empty", {})
    told(run("report", "vib", "empty"), "no network in empty is done yet")
    written(tmp_path / "gaze", {}, kind="gaze")
    told(run("report", "vib", "gaze"), "holds no study")
    (tmp_path / "gaze" / "study.json").write_text("{")
    told(run("report", "vib", "gaze"), "study.json cannot be read")


def test_a_function_of_ones_own_is_trained_and_not_run_again_unasked(tmp_path: Path) -> None:
    train_vib(small(tmp_path, models=("plain",)), tmp_path / "to", fabric=FABRIC)
    folder = tmp_path / "to" / "plain" / "seed_0"
    (tmp_path / "ran").unlink()
    with pytest.raises(KonkyoError, match="not run from here"):
        konkyo.load(f"trained/{folder}")
    assert not (tmp_path / "ran").exists()
    network = read_plan(folder).build()  # as the error says
    assert (tmp_path / "ran").exists()
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    images, labels = batch("lesions:36", 24)
    with torch.no_grad():
        right = network.eval()(images).argmax(1) == labels
    assert numbers_of(folder)["accuracy"] == pytest.approx(float(right.double().mean()))


def test_options_reach_the_networks(tmp_path: Path) -> None:
    study = small(tmp_path, noises=("constant",), betas=(0.5,), offset=-1, samples=3, reduction="mean", pretrained=True)
    plan = study.plan(study.networks[0], 7, CLASSES)
    network = study.begun(plan, 7)
    assert isinstance(network, VIBClassifier)
    assert (network.head.noise, network.head.samples) == (Noise("constant", offset=-1), 3)
    assert (plan.trained["reduction"], plan.trained["seed"], plan.trained["pretrained"]) == ("mean", 7, True)
    assert "weights" not in plan.arguments  # the manifest's are in its folder
    shipped = replace(study, backbone="konkyo/scenes-classifier")
    begun = shipped.begun(shipped.plan(NetworkOfStudy("plain", "plain"), 0, CLASSES), 0).state_dict()
    own = konkyo.load("konkyo/scenes-classifier").module.state_dict()
    assert torch.equal(begun["backbone.features.stage4.conv2.weight"], own["stage4.conv2.weight"])
    drawn = replace(shipped, pretrained=False)
    random = drawn.begun(drawn.plan(NetworkOfStudy("plain", "plain"), 0, CLASSES), 0).state_dict()
    assert not torch.equal(random["backbone.features.stage4.conv2.weight"], own["stage4.conv2.weight"])


def test_pictures_of_any_shape_and_data_without_masks(run: Run) -> None:
    random = np.random.default_rng(0)
    for grey, name in ((40, "a cat"), (160, "b/dog".replace("/", "_"))):
        for i in range(8):
            path = Path("photos") / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 60, (30 + i, 44, 3), dtype=np.uint8) + np.uint8(grey)
            Image.fromarray(pixels).save(path)
    words = ("train", "vib", "--data", "folder:photos", "--size", 24, "--batch", 8, "--accelerator", "cpu")
    found = run(*words, "--backbone", "nets.py:net", "--epochs", 1, "--betas", "1e-2", "--rate", "0.1")
    assert found.code == 0, found.err
    assert "maps" not in numbers_of(Path("konkyo-vib/plain/seed_0"))
    assert run("report", "vib", "konkyo-vib").code == 0
    head, _ = report_vib("konkyo-vib").table()
    assert head[-2:] == ["W/T", "L"]
    names = sorted(p.name for p in Path("konkyo-vib/report").glob("*.png"))
    assert names == ["maps-000-a-cat.png", "maps-001-b-dog.png"]
    assert fmean(numbers_of(Path("konkyo-vib/plain/seed_0"))[k] for k in ("accuracy",)) >= 0


def test_decay_leaves_the_noise_alone() -> None:
    """It would move the standard deviation without an image having a part in it."""
    network = VIBClassifier(Backbone(torch.nn.Conv2d(3, 5, 3), 5), 4)
    others, noise = vib_study._groups(network)
    assert [id(p) for p in noise["params"]] == [id(network.head.scale), id(network.head.offset)]
    assert noise["weight_decay"] == 0
    assert len(others["params"]) + 2 == len(list(network.parameters()))
    assert len(vib_study._groups(torch.nn.Linear(2, 2))) == 1


def test_images_are_normalised_as_the_backbone_wants() -> None:
    state = torch.get_rng_state()
    assert VIBStudy("lesions:90", "konkyo/scenes-classifier").preprocess.mean == SCENES_MEAN
    assert VIBStudy("lesions:90", "torchvision/resnet18").preprocess.mean == (0.485, 0.456, 0.406)
    assert torch.equal(torch.get_rng_state(), state)
